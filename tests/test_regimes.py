"Every arm with every classifier, equal steps, and the two doors."
from dataclasses import replace

import numpy as np
import pytest
import torch

from gansynth import regimes
from gansynth.classifier_training import Arm, Plan, Stage, class_weights, classic, train_classifier
from gansynth.classifiers import NETWORKS, at_hand
from gansynth.core import UserError
from gansynth.data import Images, load, split
from gansynth.regimes import ARMS, NO_GAN, admit, fake_stage, make_arm, predictions, refuse_leaks
from gansynth.synthesis import Synthetic

PLAN, SIZE, BS = Plan('sgd', 1e-3, 'constant', keep='last'), 64, 4


def synthetic(parts, name, n=12, trained_on=None, seed=0):
    x = np.random.default_rng(seed).integers(0, 256, (n, SIZE, SIZE), 'uint8')
    return Synthetic(x, name, tuple(parts.train.ids[:5] if trained_on is None else trained_on), 'hash', seed, np.array([f'{seed}-{i}' for i in range(n)]))


@pytest.fixture(scope='module')
def parts(): return split(load('phantom:n_patients=40', size=SIZE))


@pytest.fixture(scope='module')
def pair(parts): return [synthetic(parts, c, seed=i) for i, c in enumerate(parts.train.classes)]


@pytest.fixture(scope='module')
def few(parts, pair):
    "The arms on twelve real images, so that the grid is quick."
    small = parts.train.take(np.r_[np.flatnonzero(parts.train.labels == 0)[:8], np.flatnonzero(parts.train.labels == 1)[:4]])
    sets = [replace(s, trained_on=tuple(small.ids[:3])) for s in pair]
    return {a: make_arm(a, small, [replace(s, trained_on=()) for s in sets] if a == 'untrained_classic' else sets) for a in ARMS}


LARGE = ('resnet34', 'resnet50', 'resnet101', 'vgg16')


@pytest.mark.parametrize('network', [pytest.param(n, marks=pytest.mark.slow) if n in LARGE else n for n in NETWORKS])
def test_every_arm_runs_with_every_classifier(network, few, parts):
    "Each trains for the same number of steps, read back from its own record, and each arm leads to another network than raw."
    if network not in at_hand(): pytest.skip(f'{network} needs an optional library')
    valid, equal = parts.valid.take(np.r_[np.flatnonzero(parts.valid.labels == 0)[:3], np.flatnonzero(parts.valid.labels)[:2]]), []
    for a, arm in few.items(): # raw comes first
        t = train_classifier(arm, valid, network, PLAN, 2, 1, BS, precision='float32')
        assert t.row['steps'] == 2 and len(t.epochs) == 2 and t.row['n_synthetic'] == (0 if a in NO_GAN else 24)
        found = torch.cat([p.detach().flatten() for p in t.model.parameters()])
        assert found.isfinite().all()
        if a == 'raw': raw = found
        elif torch.equal(found, raw): equal.append(a)
    assert equal == []


def test_an_arm_sees_what_it_says(few, monkeypatch):
    "The images that pass through the network: none twice as long as a deck lasts, and of the right kind in each stage."
    for a, arm in few.items():
        kinds = [('synthetic' if s.synthetic.all() else 'both' if s.synthetic.any() else 'real') for s in arm.stages]
        want = {'synth_only': ['synthetic'], 'warm_start': ['synthetic', 'real'], 'synth_finetune': ['real', 'synthetic'], 'real_warm_start': ['real', 'real']}.get(a, ['real'] if a in NO_GAN else ['both'])
        assert kinds == want, a
    labels = few['oversample'].stages[0].labels[few['oversample'].stages[0].deck]
    assert np.bincount(labels).tolist() == [8, 8] and class_weights(few['raw'].stages[0]).tolist() == [.75, 1.5]


def test_ratio_counts_by_class(parts, pair):
    train = parts.train.take(np.r_[np.flatnonzero(parts.train.labels == 0)[:10], np.flatnonzero(parts.train.labels == 1)[:4]])
    s = fake_stage(pair, train, 1.)
    assert np.bincount(s.labels).tolist() == [10, 4] and (s.images[:10] == pair[0].images[:10]).all()
    with pytest.raises(UserError, match='20 of .normal., there are 12'): fake_stage(pair, train, 2.)


@pytest.mark.parametrize('change, words', [(dict(class_name='Pneumonia'), "pneumonia"), (dict(images=np.zeros((3, 32, 32), 'uint8')), 'at that size'), (dict(images=np.zeros((3, SIZE, SIZE), 'float32')), 'float32'),
                                           (dict(images=np.zeros((0, SIZE, SIZE), 'uint8')), 'no synthetic image'), (dict(trained_on=('stranger',)), 'outside this training part')])
def test_the_door_refuses(change, words, parts, pair):
    with pytest.raises(UserError, match=words): make_arm('gan_aug', parts.train, [replace(pair[1], **change)])


def test_f44_a_generator_that_saw_the_test_part(parts, pair, monkeypatch):
    "Refused at both doors; without the first one the second still holds; a drill passes under its own name only."
    test = parts.test._SealedTest__part
    leaky = [replace(s, trained_on=tuple(test.ids)) for s in pair]
    with pytest.raises(UserError, match='outside this training part'): make_arm('gan_aug', parts.train, leaky)
    drill = make_arm('gan_aug', parts.train, leaky, drill=True, label='gan_aug')
    assert drill.name == 'leak_drill'
    refuse_leaks(drill, test)
    monkeypatch.setattr(regimes, 'admit', lambda *a: None)
    with pytest.raises(UserError, match='of this part'): refuse_leaks(make_arm('gan_aug', parts.train, leaky), test)


def test_f43_synthetic_images_are_no_judges(parts, pair):
    arm = make_arm('gan_aug', parts.train, pair)
    planted = replace(parts.valid, images=np.concatenate([parts.valid.images[1:], pair[0].images[3:4]]))
    with pytest.raises(UserError, match='synthetic images of its training'): refuse_leaks(arm, planted)
    with pytest.raises(UserError, match='never a validation'): refuse_leaks(make_arm('raw', parts.train), replace(parts.valid, source=dict(name='set', synthetic=True)))
    with pytest.raises(UserError, match='of this part'): refuse_leaks(make_arm('raw', parts.train), parts.train)
    refuse_leaks(arm, parts.valid)


def test_one_class_alone(parts, pair):
    for a in ('synth_only', 'warm_start', 'synth_finetune'):
        with pytest.raises(UserError, match='both classes'): make_arm(a, parts.train, pair[1:])
    assert make_arm('gan_aug', parts.train, pair[1:]).n_synthetic == 12
    with pytest.raises(UserError, match='one for each class'): make_arm('gan_aug', parts.train, [pair[1], pair[1]])
    with pytest.raises(UserError, match='is synthetic'): make_arm('raw', replace(parts.train, source=dict(name='x', synthetic=True)))
