"Study 5: class names that cannot be exchanged unnoticed, lent weights that saw no judge, and a run at smoke size."
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, gansynth, image_folder, medmnist_arrays

from gansynth import probes
from gansynth.catalogue import STUDIES
from gansynth.classifier_training import train_classifier
from gansynth.classifiers import build_classifier, save_classifier
from gansynth.core import UserError, load_json
from gansynth.data import load, split
from gansynth.regimes import make_arm
from gansynth.synthesis import Synthetic, export_set

NOTEBOOK = ROOT/'nbs'/'studies'/'pneumonia_transfer.ipynb'


def cell(words, **given):
    "Execute the one cell of the notebook that holds the words, after its imports; returns the names that it leaves."
    cells = [c.source for c in nbformat.read(NOTEBOOK, as_version=4).cells if c.cell_type == 'code']
    found = [c for c in cells if words in c]
    assert len(found) == 1, f'{len(found)} cells hold {words!r}'
    names = {}
    exec(cells[0], names)
    names |= given
    exec(found[0], names)
    return names


@pytest.fixture(scope='module')
def drill():
    "(names, fresh images of each class, a classifier that was trained on other people)."
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    real, fresh = (load(f'phantom:n_patients=100,prevalence=.5,difficulty=0,seed={s}', 28) for s in (0, 1))
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(probes.reader_features(real.images), real.labels)
    class Judge:
        arm, row = SimpleNamespace(name='judge'), dict(valid_auroc=np.float64(1.))
        def __call__(self, images): return model.predict_proba(probes.reader_features(images))[:, 1]
    return list(real.classes), [SimpleNamespace(class_name=c, images=fresh.images[fresh.labels == i]) for i, c in enumerate(real.classes)], Judge()


def check_names(drill, exchanged, refuse):
    "The notebook's check on a foreign set, whose names may be exchanged."
    names, sets, judge = drill
    if exchanged: sets = [SimpleNamespace(class_name=c, images=s.images) for c, s in zip(names, sets[::-1])]
    return cell('judge = max(', names=names, held_out=sets, done={0: judge}, rows=[], gans={}, exams={}, refuse_swapped=refuse)


def the_swap_is_caught(drill, refuse):
    with pytest.raises(UserError, match='look swapped'): check_names(drill, True, refuse)


def test_exchanged_names_are_caught_and_right_ones_are_not(drill):
    the_swap_is_caught(drill, probes.refuse_swapped)
    assert check_names(drill, False, probes.refuse_swapped)['word'] == 'agree'


def test_images_like_nothing_leave_the_names_undecided(drill, capsys):
    names, sets, judge = drill
    given = dict(names=names, held_out=sets, done={0: judge}, rows=[], gans={'own': 1})
    unlike = {names[0]: dict(audit=dict(words='the synthetic images look unlike the real ones'))}
    assert cell('judge = max(', exams={}, **given)['word'] == 'agree' and cell('judge = max(', exams=unlike, **given)['word'] == 'undecided'
    assert 'look unlike real ones' in capsys.readouterr().out


def test_the_drill_fails_where_the_alarm_is_off(drill):
    with pytest.raises(pytest.fail.Exception): the_swap_is_caught(drill, probes.label_check)


def test_the_drill_in_the_notebook_says_what_happened(drill, capsys):
    names, sets, judge = drill
    shown = {s.class_name: s.images for s in sets}
    cell('exchanged = dict(', names=names, shown=shown, judge=judge, doubts=[], said=probes.label_check(shown, judge, names))
    assert 'caught: the class names' in capsys.readouterr().out
    def blind(images): return np.full(len(images), .5)
    cell('exchanged = dict(', names=names, shown=shown, judge=blind, doubts=['blind'], said=probes.label_check(shown, blind, names))
    assert 'not caught: undecided' in capsys.readouterr().out


def test_lent_weights_must_not_have_seen_the_judges(tmp_path):
    for seed, name in ((0, 'ours'), (1, 'theirs')): np.savez(tmp_path/f'{name}.npz', **medmnist_arrays(seed=seed))
    ours, theirs = (load(f'medmnist:{tmp_path}/{n}.npz', 28) for n in ('ours', 'theirs'))
    parts = split(ours)
    refuse = cell('def refuse_shared', starts=['scratch'], domain_data='')['refuse_shared']
    assert refuse(theirs, parts.table) is theirs and refuse(parts.train, parts.table) is parts.train
    judged = parts.table.id[parts.table.part == 'test'].iloc[:1]
    stolen = ours.take(np.isin(ours.ids, judged))
    with pytest.raises(UserError, match=f'1 pictures of our test part, e.g. {judged.iloc[0]}'): refuse(stolen, parts.table)
    with pytest.raises(UserError, match='test and valid'): refuse(ours, parts.table)


def test_foreign_sets_carry_a_name_of_ours(tmp_path):
    image_folder(tmp_path, drawings=6)
    foreign = cell('def foreign(item)', names=['normal', 'pneumonia'], image_size=28, seed=0)['foreign']
    s = foreign(f'pneumonia=synthetic_cxr:{tmp_path}/drawings')
    assert (s.class_name, len(s), s.generator, s.trained_on) == ('pneumonia', 6, 'unknown', ()) and s.images.shape[1:] == (28, 28)
    with pytest.raises(UserError, match="'COVID-19'"): foreign(f'synthetic_cxr:{tmp_path}/drawings')
    with pytest.raises(UserError, match="did you mean 'pneumonia'"): foreign(f'pnuemonia=synthetic_cxr:{tmp_path}/drawings')
    with pytest.raises(UserError, match='not known to be synthetic'): foreign('pneumonia=phantom:n_patients=8,prevalence=.5')


def parameters(**changes):
    return dict(run_dir='unused', device='cpu', lr=0., networks='resnet18', initialisations='scratch', heads='default') | changes


@pytest.mark.parametrize('wrong, says', [(dict(networks='resnet18,resnet81'), 'did you mean'), (dict(initialisations='domain'), 'scratch among'), (dict(networks='resnet18, resnet18'), 'twice'),
                                         (dict(networks=''), 'at least one'), (dict(heads='complx'), "did you mean 'complex'"), (dict(networks='covid_cnn'), 'not known')])
def test_misspelt_names_are_refused_before_training(wrong, says):
    with pytest.raises(UserError, match=says): cell('def words_in', **parameters(**wrong))
    assert cell('def words_in', **parameters())['nets'] == ['resnet18']


def test_absent_weights_leave_their_arms_out(capsys):
    def build(*a, **k): raise UserError('no ImageNet weights for resnet18')
    given = dict(nets=['resnet18'], starts=['scratch', 'imagenet', 'domain'], domain=None, image_size=28, inside=lambda n: 0, kinds=['default'], swap_drill=True, build_classifier=build,
                 parts=SimpleNamespace(valid=None), plan=None, n_epoch=2, steps_per_epoch=1)
    names = cell('absent = {', **given)
    assert names['pairs'] == [('resnet18', 'scratch')] and names['modes'] == ['scratch'] and names['total'] == 7+3+1+1
    out = capsys.readouterr().out
    assert 'left out: resnet18-imagenet: no ImageNet weights' in out and 'left out: domain' in out


def test_frozen_and_fine_tuned_are_two_entries_of_the_cache(tmp_path):
    "The same weights, seed and images: the cache must not answer one with the other, nor one input size with another."
    data = load('phantom:n_patients=16,prevalence=.5', 28)
    path = save_classifier(build_classifier('resnet18', 28), tmp_path/'lent.safetensors')
    def train(**options): return train_classifier(make_arm('raw', data), data, 'resnet18', 'transfer', 1, 1, 8, folder='cache', weights=str(path), **options)
    tuned, frozen, large = train(), train(frozen=True), train(input_size=32)
    lent = build_classifier('resnet18', 28, weights=str(path)).body.state_dict()
    def same(t): return all(v.equal(lent[k]) for k, v in t.model.model.body.state_dict().items())
    assert same(frozen) and not same(tuned)
    assert not np.array_equal(tuned(data.images), large(data.images))
    assert same(train(frozen=True))


@pytest.fixture(scope='session')
def transfer_run(tmp_path_factory):
    "The study through papermill at smoke size: folder of the run."
    done = gansynth('run', 'pneumonia_transfer', '--profile', 'smoke', '--runs', tmp_path_factory.mktemp('transfer'))
    assert done.returncode == 0, done.stderr
    return type(ROOT)(done.stdout.strip())


@pytest.mark.slow
def test_copies_end_no_study(tmp_path):
    """A published study on a foreign set that is the training part itself: it ends well, records the
    finding, and its report says in red what it means."""
    spec, runs = 'phantom:n_patients=220,prevalence=.5,difficulty=.2', tmp_path/'runs'
    train = split(load(spec, 28)).train
    for k, c in enumerate(train.classes):
        d = train.take(np.resize(np.flatnonzero(train.labels == k), 4*(train.labels == k).sum()))
        copies = Synthetic(d.images, c, tuple(d.ids), 'g'*64, 0, np.array([f'0-{i:06}' for i in range(len(d))]))
        export_set(copies, tmp_path/c, allow_failed_audit=True)
    foreign = ';'.join(f'{c}=synthetic:{tmp_path/c}' for c in train.classes)
    done = gansynth('run', 'pneumonia_transfer', '--profile', 'smoke', '--runs', runs, '--data', spec, *(x for k, v in dict(
        synthetic_data=foreign, initialisations='scratch', heads='', domain_data='', swap_drill=False, lr=.003, steps_per_epoch=10).items() for x in ('-p', f'{k}={v}')))
    assert done.returncode == 0, done.stderr
    run = Path(done.stdout.strip())
    found = load_json(run/'done.json')['audit']
    assert {c: a['verdict'] for c, a in found.items()} == dict.fromkeys(train.classes, 'FAIL') and (run/'audit.json').is_file()
    assert {a['weights']['verdict'] for a in found.values()} == {'not audited'} and 'resnet18-scratch/mix_300' in set(pd.read_csv(run/'predictions.csv').arm)
    shown = gansynth('report', 'pneumonia_transfer', '--runs', runs, '--out', tmp_path/'report')
    assert shown.returncode == 0, shown.stderr
    page = (tmp_path/'report'/'index.html').read_text()
    assert page.count('<li class=failed>Privacy audit of the synthetic images: FAIL. ') == 2 and 'export and share are closed' in page
    collected = gansynth('collect', 'pneumonia_transfer', '--runs', runs, '--to', tmp_path/'out')
    assert collected.returncode == 0 and not list((tmp_path/'out'/'figures').glob('generated*')) and list((run/'figures').glob('generated*'))


def test_smoke_run(transfer_run):
    study, preds, arms, measures = STUDIES['pneumonia_transfer'], *(pd.read_csv(transfer_run/f'{f}.csv') for f in ('predictions', 'arms', 'measures'))
    assert set(preds.arm) == set(arms.arm) <= set(study['arms']) and arms.steps.nunique() == 1
    assert {f'resnet18-{s}/{a}' for s in ('scratch', 'domain') for a in ('real', 'mix_300', 'synth_finetune', 'warm_start')} <= set(preds.arm)
    assert not preds.arm.str.contains('swap').any() and {'swap drill', 'heads', 'domain shift', 'class names'} <= set(measures.table)
    assert not measures.duplicated(['table', 'arm', 'metric']).any()
    assert set(measures.arm[measures.table == 'heads']) == {f'{k}/{m}' for k in ('default', 'simple', 'complex') for m in ('frozen', 'fine-tuned', 'scratch')}
    assert len((transfer_run/'test_reads.jsonl').read_text().splitlines()) == 1
    n = arms.set_index('arm').n_train
    assert all(n[f'resnet18-scratch/mix_{k}00'] == (k+1)*n['resnet18-scratch/real'] for k in (1, 2, 3))
    assert 'phantom' in load_json(transfer_run/'done.json')['domain']
