"""Study 2: what its notebook promises. Small sets in the form of the published one; one whole run through the command line."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from conftest import gansynth
from gansynth import regimes
from gansynth.catalogue import STUDIES, granularity
from gansynth.classifier_training import TRANSFORMS, find_plan, train_classifier
from gansynth.core import UserError
from gansynth.data import load, split
from gansynth.evaluation import is_k_over_n
from gansynth.probes import label_check
from gansynth.statistics import two_proportions
from gansynth.studies import read_parameters
from gansynth.synthesis import Synthetic

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT/'nbs'/'studies'/'covid_ct.ipynb'
SHARED = ROOT.parent/'shared'/'data'/'covid_ct'

def cells(): return [''.join(c['source']) for c in json.loads(NOTEBOOK.read_text())['cells'] if c['cell_type'] == 'code']

def cell(words): # that stand in one code cell alone
    found = [s for s in cells() if words in s]
    assert len(found) == 1, f'{len(found)} cells hold {words!r}'
    return found[0]

def slices(folder, n=12, twin=False): # folder to write; patients of each class, two slices each; write one picture under both labels
    rng, rows = np.random.default_rng(0), {'COVID': [], 'NonCOVID': []}
    for k, c in enumerate(rows):
        (folder/'Images'/f'CT_{c}').mkdir(parents=True)
        for i in range(2*n):
            picture = rng.integers(0, 100, (40, 40)).astype('uint8') + np.uint8(120*(1-k))
            if twin and i == 0: picture = np.full((40, 40), 7, 'uint8'); picture[:9] = 90
            Image.fromarray(picture).save(folder/'Images'/f'CT_{c}'/f'{c}-{i}.png')
            rows[c].append((f'{c}-{i}.png', f'{c} patient {i//2}', str(30+i//2) if i//2%2 else '40+', ('M ', 'F')[i//2%2]))
    pd.DataFrame(rows['COVID'], columns=['File name', 'Patient ID', 'Age', 'Gender']).to_csv(folder/'COVID-CT-MetaInfo.csv', index=False)
    pd.DataFrame([r[:2] for r in rows['NonCOVID']], columns=['image name', 'patient id']).to_csv(folder/'NonCOVID-CT-MetaInfo.csv', index=False)
    return f'covid_ct:{folder}'

@pytest.fixture
def parts(tmp_path): return split(load(slices(tmp_path/'c'), 32))

def drawn(images, seen): # Images whose pixels are used; Images that the "generator" saw
    rng = np.random.default_rng(1)
    return [Synthetic(np.clip(images.images[images.labels == k]+rng.integers(0, 9, (1, 32, 32)), 0, 255).astype('uint8'), c, tuple(seen.ids), 'g', 0) for k, c in enumerate(images.classes)]

# --- data ----------------------------------------------------------------------------------------------------------------

def test_facts_are_known_for_one_class_only(tmp_path):
    d = load(slices(tmp_path/'c'), 32)
    assert set(d.facts.sex[d.labels == 1]) == {'M', 'F'} and d.facts.sex[d.labels == 0].isna().all()
    assert d.facts.age[d.labels == 1].isna().mean() == .5                     # 40+ is no age
    assert sorted(d.facts.age.dropna().unique())[:2] == [31, 33]

def test_one_picture_under_both_labels_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=r'1 pictures carry both labels, e\.g\. .*CT_.*-0\.png.*: remove or relabel'): split(load(slices(tmp_path/'c', twin=True), 32))

@pytest.mark.skipif(not SHARED.is_dir(), reason='the COVID-CT images are not here')
def test_the_real_set_can_be_split_both_ways():
    d = load(f'covid_ct:{SHARED}', 64)
    official = split(d, official=True)
    assert len(d) == 746 and len(official.test) == 203 and len(split(d).test) > 60
    assert d.facts.sex[d.labels == 0].isna().all() and d.facts.sex.isin(['M', 'F']).sum() == 137

# --- the leak ------------------------------------------------------------------------------------------------------------

def refused(train, leaky): # the promise of the notebook, in its own words: its cell, with the GANs' training taken out
    source = cell("leaky = []").split('    test_fail(')[1]
    from fastcore.test import test_fail
    exec('test_fail('+source.split('\n')[0], dict(test_fail=test_fail, make_arm=regimes.make_arm, parts=type('P', (), dict(train=train)), leaky=leaky))

def test_images_of_a_leaky_gan_are_refused(parts, monkeypatch):
    leaky = drawn(parts.train, load_all(parts))
    refused(parts.train, leaky)
    with pytest.raises(AssertionError): refused(parts.train, drawn(parts.train, parts.train))   # an honest generator is not refused
    monkeypatch.setattr(regimes, 'admit', lambda *a, **k: None)
    with pytest.raises(AssertionError): refused(parts.train, leaky)                             # without the guard the cell fails

def load_all(parts): # Split
    return replace(parts.train, ids=np.concatenate([parts.train.ids, parts.valid.ids]))

def test_a_drill_is_called_a_drill(parts):
    arm = regimes.make_arm('gan_aug', parts.train, drawn(parts.train, load_all(parts)), label='gan_aug', drill=True)
    assert arm.name == 'leak_drill' and arm.drill
    assert "drill=arm == 'leak_drill'" in cell('def build(arm)')

def test_the_control_notices_copies(parts):
    "A network that trained on copies of the judged images does better on them than one that did not: labels are shuffled, so that nothing else can be learned."
    rng = np.random.default_rng(2)
    def shuffled(d):
        return replace(d, labels=rng.permutation(d.labels), images=rng.integers(0, 256, d.images.shape).astype('uint8'))
    train, valid = shuffled(parts.train), shuffled(parts.valid)
    copies = [Synthetic(np.repeat(valid.images[valid.labels == k], 12, 0), c, tuple(valid.ids), 'copies', 0) for k, c in enumerate(valid.classes)]
    with pytest.raises(UserError, match='outside this training part'): regimes.make_arm('gan_aug', train, copies)
    arms = regimes.make_arm('raw', train), regimes.make_arm('gan_aug', train, copies, drill=True)
    honest, leaky = (train_classifier(a, valid, 'covid_cnn', find_plan('one_cycle', lr=1e-3, keep='last'), 6, 10, 16) for a in arms)
    right = [np.mean((t(valid.images) > .5) == valid.labels) for t in (honest, leaky)]
    assert right[1] == 1 > right[0]

# --- what the study printed ----------------------------------------------------------------------------------------------

def test_published_table():
    t = granularity('covid_ct').set_index('arm')
    assert len(t) == 12 and list(t.index[~t.fits]) == ['vgg16/conditional_aug', 'resnet50/conditional_aug']
    assert is_k_over_n(.7337, 199, 4) and (t.k['vgg16/raw'], t.k['vgg16/gan_aug']) == (150, 161)
    assert round(two_proportions(150, 199, 161, 199)['p'], 2) == .18
    assert t.published['covid_cnn/gan_aug'] < t.published['covid_cnn/classic_aug']

def test_plans_and_transforms_are_those_of_the_study():
    cnn, transfer = find_plan('covid_cnn'), find_plan('covid_transfer')
    assert (cnn.optimiser, cnn.lr, cnn.stop_at, cnn.keep) == ('sgd', 1e-3, .95, 'loss') and (transfer.lr, transfer.stop_at) == (5e-3, 0)
    assert TRANSFORMS['covid_ct'] == dict(rotate=45, hflip=.5, vflip=.5)

def test_swapped_classes_are_noticed(parts):
    sets = {s.class_name: s.images for s in drawn(parts.train, parts.train)}
    bright = lambda x: x.mean((1, 2))/255
    assert label_check(sets, bright, parts.train.classes)['word'] == 'agree'
    assert label_check(dict(zip(parts.train.classes, [sets[c] for c in parts.train.classes[::-1]])), bright, parts.train.classes)['word'] == 'swapped'

# --- the notebook --------------------------------------------------------------------------------------------------------

def test_arms_are_those_of_the_catalogue():
    p, ns = read_parameters(NOTEBOOK), {}
    exec(next(l for l in cell('def chosen').splitlines() if l.startswith('NETS')), ns)
    assert set(p['arms'].default.split(',')) == set(ns['ARMS'])
    made = {f'{n}/{a}' for n in ns['NETS'] for a in ns['ARMS'] if a != 'leak_drill' or n == 'covid_cnn'}
    assert made == set(STUDIES['covid_ct']['arms'])
    for profile in STUDIES['covid_ct']['profiles'].values():
        assert set(profile) <= set(p), set(profile)-set(p)
        for k, v in profile.items(): p[k].check(v)

def smoke_run(folder, *more): # a folder for cache and runs; further arguments
    return gansynth('run', 'covid_ct', '--profile', 'smoke', '--runs', folder/'runs', *more, GANSYNTH_CACHE=str(folder/'cache'))

@pytest.fixture(scope='session')
def covid_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp('covid')
    r = smoke_run(folder)
    assert r.returncode == 0, r.stderr[-3000:]
    return next((folder/'runs').rglob('done.json')).parent

@pytest.mark.slow
def test_a_misspelt_network_is_refused_before_training(tmp_path):
    r = smoke_run(tmp_path, '-p', 'networks=covid_cnn,vgg61')
    assert r.returncode and "did you mean 'vgg16'?" in r.stderr+r.stdout and not list((tmp_path/'cache').rglob('*gans*'))

def test_smoke_run_writes_what_is_promised(covid_run):
    preds, arms, cuts, m = (pd.read_csv(covid_run/f'{f}.csv') for f in ('predictions', 'arms', 'thresholds', 'measures'))
    assert set(preds.arm) == set(arms.arm) == set(cuts.arm) == {f'covid_cnn/{a}' for a in ('raw', 'classic_aug', 'gan_aug', 'conditional_aug', 'gan_classic', 'synth_only', 'leak_drill')}
    assert arms.steps.nunique() == 1
    assert arms.set_index('arm').n_synthetic[['covid_cnn/gan_aug', 'covid_cnn/leak_drill']].nunique() == 1
    assert {'control on validation', 'label check'} <= set(m.table) and len((covid_run/'test_reads.jsonl').read_text().splitlines()) == 1
    assert {'accuracy', 'recall', 'precision', 'auroc'} <= set(pd.read_csv(covid_run/'results.csv').metric)
    assert {'sex', 'age'} <= set(preds) and (covid_run/'figures'/'curve_accuracy.png').is_file()
