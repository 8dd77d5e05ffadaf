"Steps, schedules, augmentation and the memory of the classifier training, against oracles."
import math, os
from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as TF

from gansynth import classifier_training as ct
from gansynth.classifier_training import Arm, Plan, Stage, classic, find_plan, schedule, stage_epochs, train_classifier
from gansynth.classifiers import save_classifier
from gansynth.core import UserError, cache_folder
from gansynth.data import load, split

PLAN = Plan('sgd', 1e-2, 'constant', keep='last')


@pytest.fixture(scope='module')
def parts(): return split(load('phantom:n_patients=40', size=32))


@pytest.fixture(scope='module')
def arm(parts): return Arm('raw', (Stage(parts.train.images, parts.train.labels, np.zeros(len(parts.train), bool)),))


def train(arm, parts, **kw): return train_classifier(arm, parts.valid, 'fracture_cnn', **(dict(plan=PLAN, n_epoch=3, steps_per_epoch=4, bs=8, precision='float32') | kw))
def weights(t): return torch.cat([p.detach().flatten() for p in t.model.parameters()])


@pytest.mark.parametrize('kind, draw, oracle', [
    ('rotate', dict(rotate=30.), lambda x, u: TF.affine(x, -30*u, [0, 0], 1., [0, 0], TF.InterpolationMode.BILINEAR)),
    ('zoom', dict(zoom=.3), lambda x, u: TF.affine(x, 0, [0, 0], 1+.3*u, [0, 0], TF.InterpolationMode.BILINEAR)),
    ('hflip', dict(hflip=1.), lambda x, u: x.flip(-1)), ('vflip', dict(vflip=1.), lambda x, u: x.flip(-2))])
def test_classic_against_torchvision(kind, draw, oracle, monkeypatch):
    "One transform at a time on a disc off the centre, well inside the picture, so that borders do not matter."
    monkeypatch.setitem(ct.TRANSFORMS, 'one', draw)
    g = torch.stack(torch.meshgrid(torch.arange(33.), torch.arange(33.), indexing='ij'))
    x = (2*torch.exp(-((g[0]-12)**2+(g[1]-19)**2)/8)-1)[None, None]
    monkeypatch.setattr(torch, 'rand', lambda n, device=None: torch.full((n,), .8))     # u = .6; a flip with probability 1 happens
    got, want = classic(x, 'one'), oracle(x+1, .6)-1
    assert (got-want).abs().max() < .06 and (want-x).abs().max() > .5


def test_classic_draws_for_each_image_and_scales_with_strength():
    torch.manual_seed(0)
    x = torch.rand(1, 1, 32, 32).expand(64, -1, -1, -1)*2-1
    assert len({round(float(v), 4) for v in classic(x, 'chest').sum((1, 2, 3))}) > 60
    moved = [(classic(x, 'bone_fracture', s)-x).abs().mean() for s in (0., .25, .5, 1.)]
    assert moved[0] < 1e-5 and moved == sorted(moved)
    flipped = (classic(x, 'covid_ct', 1e-9)-x).abs().amax((1, 2, 3)) > 1e-3
    assert not flipped.any()                                                          # a strength of nearly nothing flips nobody


def test_steps_are_the_product_whatever_the_stages(arm, parts):
    stage = arm.stages[0]
    for stages in ((stage,), (replace(stage, share=.5),)*2, (replace(stage, share=.2), stage)):
        assert train(Arm('x', stages), parts).steps == 12
    for shares, n, want in (((1,), 5, [5]), ((.5, .5), 5, [2, 3]), ((.9, .1), 3, [2, 1]), ((.01, .01, .98), 4, [1, 1, 2])):
        assert stage_epochs([replace(stage, share=s) for s in shares], n) == want
    with pytest.raises(UserError, match='3 stages'): stage_epochs([stage]*3, 2)


def test_the_first_stage_hands_its_weights_on(arm, parts):
    "Two halves without an optimiser's memory equal one whole: same batches, same weights."
    whole = train(arm, parts, n_epoch=2)
    stage = arm.stages[0]
    first = train(Arm('x', (replace(stage, share=.5),)*2), parts, n_epoch=2)
    assert not torch.equal(weights(whole), weights(first))                            # the second half draws other batches
    other = train(Arm('x', (replace(stage, labels=1-stage.labels, share=.5), replace(stage, share=.5))), parts, n_epoch=2)
    assert not torch.equal(weights(first), weights(other))                            # the first half matters


def test_best_epoch_by_each_rule(arm, parts):
    for keep, column, best in (('auroc', 'valid_auroc', max), ('accuracy', 'valid_accuracy', max), ('loss', 'valid_loss', min)):
        t = train(arm, parts, plan=replace(PLAN, keep=keep, lr=.1), n_epoch=6)
        assert t.epochs[column][t.epochs.best].item() == best(t.epochs[column])
        learn = ct.make_learner(t.model, arm.stages[0], parts.valid, n_batches=1, bs=8)
        loss, auroc, accuracy = learn.validate(dl=learn.dls.valid)
        assert dict(valid_loss=loss, valid_auroc=auroc, valid_accuracy=accuracy)[column] == pytest.approx(best(t.epochs[column]), abs=1e-6)     # these weights are back
    assert train(arm, parts).epochs.best.tolist() == [False, False, True]


def test_published_stop(arm, parts):
    "Ends after the epoch whose training accuracy passes the mark, not before, and counts the steps that were taken."
    easy = Arm('easy', (replace(arm.stages[0], labels=np.zeros(len(parts.train), int)),))
    t = train(easy, parts, plan=replace(PLAN, stop_at=.95, lr=.5), n_epoch=6)
    assert t.steps < 24 and t.steps == 4*len(t.epochs)
    assert train(easy, parts, plan=replace(PLAN, lr=.5), n_epoch=6).steps == 24


def test_cache_is_asked_first_and_knows_what_matters(arm, parts, monkeypatch):
    first = train(arm, parts, folder='cache')
    monkeypatch.setattr(ct, 'fit_stage', lambda *a, **k: pytest.fail('trained again'))
    again = train(arm, parts, folder='cache')
    assert torch.equal(weights(first), weights(again)) and first.epochs.equals(again.epochs) and again.row == first.row
    stage = arm.stages[0]
    pixels = stage.images.copy(); pixels[0, 0, 0] ^= 1
    for other, kw in ((Arm('raw', (replace(stage, images=pixels),)), {}), (Arm('raw', (replace(stage, labels=stage.labels[::-1].copy()),)), {}), (replace(arm, loss='focal'), {}), (replace(arm, augment='chest', strength=.5), {}),
                      (replace(arm, mixup=.2), {}), (Arm('raw', (replace(stage, deck=np.arange(20)),)), {}), (arm, dict(seed=1)), (arm, dict(n_epoch=2)), (arm, dict(plan=replace(PLAN, wd=.5))), (arm, dict(bs=4))):
        with pytest.raises(pytest.fail.Exception, match='trained again'): train(other, parts, folder='cache', **kw)


def test_cache_tells_frozen_and_resized_networks_apart(arm, parts, tmp_path, monkeypatch):
    save_classifier(train_classifier(arm, parts.valid, 'resnet18', PLAN, 1, 1, 8, precision='float32').model, tmp_path/'body.safetensors')
    def again(**net): return train_classifier(arm, parts.valid, 'resnet18', PLAN, 1, 1, 8, precision='float32', folder='cache', weights=str(tmp_path/'body.safetensors'), **net)
    again()
    monkeypatch.setattr(ct, 'fit_stage', lambda *a, **k: pytest.fail('trained again'))
    again()
    for net in (dict(frozen=True), dict(input_size=48), dict(head='simple')):
        with pytest.raises(pytest.fail.Exception, match='trained again'): again(**net)


def test_a_damaged_cache_is_no_cache(arm, parts):
    t = train(arm, parts, seed=5, folder='cache')
    newest = max((cache_folder()/'classifiers').glob('*.safetensors'), key=lambda p: p.stat().st_mtime)
    raw = bytearray(newest.read_bytes()); raw[-3] ^= 1; newest.write_bytes(raw)
    assert torch.equal(weights(train(arm, parts, seed=5, folder='cache')), weights(t))


def test_cache_stays_small(tmp_path):
    "Weights and record go together, oldest first; so does what an interrupted call left; sizes of all files count."
    def put(name, at):
        (tmp_path/name).write_bytes(b'0'*100)
        os.utime(tmp_path/name, (at, at))
    for i in range(4):
        put(f'{i}.safetensors', 10+i)
        put(f'{i}.safetensors.json', 1)     # written once, only the weights are touched by a later use
    put('.77.4.safetensors', 2)
    put('5.safetensors.json', 3)
    ct.keep_small(tmp_path, 450e-9)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f'{i}.safetensors{s}' for i in (2, 3) for s in ('', '.json')]
    ct.keep_small(tmp_path, 350e-9)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['3.safetensors', '3.safetensors.json']
    ct.keep_small(tmp_path, 0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['3.safetensors', '3.safetensors.json']    # the latest stays


def test_the_cache_of_classifiers_is_bounded(arm, parts, tmp_path, monkeypatch):
    "With files as training writes them."
    monkeypatch.setenv('GANSYNTH_CACHE', str(tmp_path))
    keep = ct.keep_small
    monkeypatch.setattr(ct, 'keep_small', lambda folder: keep(folder, 0))
    for seed in (0, 1): train(arm, parts, seed=seed, folder='cache')
    weights, record = sorted((tmp_path/'classifiers').iterdir())
    assert record.name == f'{weights.name}.json'


def test_wrong_words_are_refused(arm, parts):
    for kw, words in ((dict(plan='one_cycl'), 'one_cycle'), (dict(plan=replace(PLAN, keep='auc')), 'auroc'), (dict(plan=replace(PLAN, optimiser='sdg')), 'sgd'), (dict(plan=replace(PLAN, lr=-1.)), 'lr=-1'), (dict(bs=10_000), 'choose at most')):
        with pytest.raises(UserError, match=words): train(arm, parts, **kw)
    with pytest.raises(UserError, match='focal'): train(replace(arm, loss='fcal'), parts)
    with pytest.raises(UserError, match='chest'): train(replace(arm, augment='cheast', strength=1.), parts)


def test_f16_divergence_is_not_success(arm, parts):
    with pytest.raises(UserError, match='not finite after epoch'): train(arm, parts, plan=replace(PLAN, lr=9.9, optimiser='sgd', wd=9.), n_epoch=40)


def test_f63_seeds(arm, parts):
    a, b, c = (train(replace(arm, augment='chest', strength=1., mixup=.4), parts, seed=s) for s in (0, 0, 1))
    assert torch.equal(weights(a), weights(b)) and not torch.equal(weights(a), weights(c))


@pytest.mark.parametrize('name, at, want', [('transfer', (0, .05, .1, 1), (.01, .505, 1., .01)), ('domain', (.1, .6, .9), (1., .1, .01))])
def test_schedules(name, at, want):
    f = schedule(find_plan(name), 1.)['lr']
    assert [float(f(min(t, 1-1e-9))) for t in at] == pytest.approx(want, abs=2e-3)
