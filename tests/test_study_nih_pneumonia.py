"Study 1: its arms, lists and tables. One smoke run, shared with the other tests; the rest calls the notebook's own small functions."
import json

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, gansynth

from gansynth import collection
from gansynth.catalogue import STUDIES
from gansynth.core import UserError, load_json
from gansynth.data import load, split
from gansynth.evaluation import at_threshold, choose_threshold
from gansynth.probes import match_intensity
from gansynth.regimes import make_arm
from gansynth.studies import notebook_path, read_parameters
from gansynth.synthesis import Synthetic

STUDY = STUDIES['nih_pneumonia']
DEFAULTS = {k: p.default for k, p in read_parameters(notebook_path('nih_pneumonia')).items()}


@pytest.fixture(scope='module')
def lists():
    "(MADE, chosen) of the notebook, from the cell that defines them."
    cells = [''.join(c['source']) for c in json.loads((ROOT/'nbs'/'studies'/'nih_pneumonia.ipynb').read_text())['cells'] if c['cell_type'] == 'code']
    cell, = [c for c in cells if c.startswith('MADE = ')]
    from gansynth.core import did_you_mean
    names = dict(UserError=UserError, did_you_mean=did_you_mean)
    exec(cell.split('\nstudy, ')[0], names)
    return names['MADE'], names['chosen']


@pytest.mark.parametrize('text, says', [('raw,gan_agu', "there is no 'gan_agu'; did you mean 'gan_aug'?"), ('raw;gan_aug', "there is no 'raw;gan_aug'"), ('RAW', "there is no 'RAW'")])
def test_a_misspelt_arm_is_refused(lists, text, says):
    made, chosen = lists
    with pytest.raises(UserError) as e: chosen(text, made, 'arms')
    assert says in str(e.value)
    assert chosen('raw , gan_aug,raw', made, 'arms') == ['raw', 'gan_aug'] and chosen('', made, 'arms') == []


@pytest.mark.slow
def test_it_is_refused_before_anything_is_trained(tmp_path):
    done = gansynth('run', 'nih_pneumonia', '--profile', 'smoke', '--runs', tmp_path, '-p', 'arms=gan_aug')
    folder, = (tmp_path/'nih_pneumonia').iterdir()
    assert done.returncode == 1 and "'raw' is missing" in done.stderr, done.stderr
    assert {p.name for p in folder.iterdir()} == {'run.json', 'notebook.ipynb'}


def test_every_arm_is_described_and_can_be_made(lists):
    made, chosen = lists
    assert set(STUDY['arms']) == set(made)
    for p in (DEFAULTS, *STUDY['profiles'].values()):
        if 'arms' in p: assert 'raw' in chosen(p['arms'], made, 'arms')
    for a, bases in STUDY['questions']: assert {a, *bases} <= set(made)
    d = split(load('phantom:n_patients=60', 28), imbalance_ratio=5.).train
    fake = Synthetic(np.zeros((7, 28, 28), 'uint8'), d.classes[1], (), 'g', 0, np.arange(7).astype(str))
    for a, how in made.items():
        arm = make_arm(how, d, [fake], label=a)
        assert arm.name == a and arm.n_synthetic == (0 if a in ('raw', 'class_weights', 'oversample', 'classic_aug') else 7) and bool(arm.augment) == a.endswith(('classic', 'classic_aug'))
        assert arm.n_train == len(d)+arm.n_synthetic


def test_profiles_fit_the_parameters():
    for name, p in STUDY['profiles'].items(): assert set(p) <= set(DEFAULTS), name
    assert STUDY['profiles']['paper'] | dict(gan_batch=400, clf_batch=96, image_size=64, n_synthetic=2000, gan_steps=3000) == STUDY['profiles']['paper'], 'the published sizes'
    assert set(STUDY['profiles']['paper']['compare_networks'].split(',')) == {'resnet34', 'resnet50', 'resnet101'} and DEFAULTS['network'] == 'resnet34'
    assert sum(STUDY['shares'].values()) == pytest.approx(1) and list(STUDY['shares']) == ['GAN', 'classifiers']         # in the order in which they come


def test_equal_training_in_all_arms(smoke_run):
    t = pd.read_csv(smoke_run[1]/'arms.csv')
    assert t.arm.tolist() == DEFAULTS['arms'].split(',') and set(t.network) == {'resnet34'}
    assert set(t.steps) == {DEFAULTS['n_epoch']*DEFAULTS['steps_per_epoch']}
    extra = t.set_index('arm').n_train-t.set_index('arm').n_train['raw']
    assert extra.to_dict() == dict(raw=0, gan_aug=DEFAULTS['n_synthetic'], gan_aug_matched=DEFAULTS['n_synthetic'], class_weights=0)
    assert pd.read_csv(smoke_run[1]/'epochs.csv').groupby('arm').size().to_dict() == {a: DEFAULTS['n_epoch'] for a in t.arm}


def test_each_arm_is_another_training(smoke_run):
    "An arm that was quietly given the images of another would predict the same."
    p = pd.read_csv(smoke_run[1]/'predictions.csv').pivot(index='image_id', columns='arm', values='probability')
    assert len(p.T.drop_duplicates()) == p.shape[1] == 4


def test_thresholds_come_from_validation(smoke_run):
    valid, test, cuts = (pd.read_csv(smoke_run[1]/f'{f}.csv') for f in ('valid_predictions', 'predictions', 'thresholds'))
    assert not set(valid.patient_id) & set(test.patient_id)
    for r in cuts.itertuples():
        mine = valid[valid.arm == r.arm]
        assert choose_threshold(mine.label.to_numpy(), mine.probability.to_numpy()) == pytest.approx(r.threshold)
    m = pd.read_csv(smoke_run[1]/'measures.csv').query("table == 'threshold'").set_index(['arm', 'metric']).value
    for a, t in test.groupby('arm'):
        at = at_threshold(t.label.to_numpy(), t.probability.to_numpy(), .5)
        assert [m[a, f'{k} at 0.5'] for k in ('accuracy', 'sensitivity', 'specificity')] == pytest.approx([at[k] for k in ('accuracy', 'sensitivity', 'specificity')])
    v = valid[(valid.arm == 'raw') & (valid.label == 0)].probability
    assert {'specificity at specificity 90 %', 'specificity at youden'} <= set(m['raw'].index) and len(v) >= 10


def test_measures_can_be_pooled(smoke_run):
    m = pd.read_csv(smoke_run[1]/'measures.csv')
    assert {'probe', 'network', 'threshold'} <= set(m.table)
    nets = m[m.table == 'network']
    assert set(nets.arm) == set(DEFAULTS['compare_networks'].split(',')) and set(nets.metric) == {'valid_auroc', 'valid_accuracy'}
    assert set(m[m.table == 'probe'].arm) >= {'gan_aug', 'gan_aug_matched'} and m.value.between(0, 1).all()
    pooled = collection.pool(pd.concat([m.assign(seed=s) for s in (0, 1)]))
    assert len(pooled) == len(m) and (pooled.seeds == 2).all()


def test_the_probe_sees_grey_values_and_matching_takes_them_away():
    "What the two columns of the probe are for, on images that differ in nothing else."
    from gansynth.probes import real_or_synthetic
    x = load('phantom:n_patients=60', 28)
    who = x.patients
    half = np.isin(who, np.unique(who)[::2])
    a, b = x.images[half], (x.images[~half]*.7+40).astype('uint8')
    before, after = (real_or_synthetic(a, v, patients=who[half])['auroc'] for v in (b, match_intensity(b, a)))
    assert before > .95 and after < .75


def test_figures_and_record(smoke_run):
    run = smoke_run[1]
    names = {p.stem for p in (run/'figures').glob('*.png')}
    assert {'real', 'real_and_synthetic', 'generated_history', 'curve_gan_losses', 'curve_classifiers', 'curve_threshold', 'curve_test', 'curve_probe'} == names
    done = load_json(run/'done.json')
    assert len(done['generator']) == 64 and done['gan'] == 'dcgan' and done['audit']['verdict'] in ('PASS', 'not auditable') and done['parameters']['classifier'] > 21e6
    assert load_json(run/'audit.json')['audit']['verdict'] == done['audit']['verdict']
