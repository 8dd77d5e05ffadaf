"Study 3: equal steps, published counts, text lists, and one run on folders named as the public set names them."
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, gansynth, image_folder
from PIL import Image

from gansynth.catalogue import STUDIES
from gansynth.core import UserError, load_json
from gansynth.studies import read_parameters

NOTEBOOK, STUDY = ROOT/'nbs'/'studies'/'bone_fracture.ipynb', STUDIES['bone_fracture']


def settings(**params):
    "What the notebook's cell behind the parameters makes of them."
    cells = nbformat.read(NOTEBOOK, 4).cells
    code = next(c.source for c in cells if c.source.startswith('ARM = '))
    space = {k: p.default for k, p in read_parameters(NOTEBOOK).items()} | params
    from gansynth.core import did_you_mean, pick_device
    space |= dict(UserError=UserError, did_you_mean=did_you_mean, STUDIES=STUDIES, Path=Path, mkdtemp=lambda prefix: '.', pick_device=pick_device, np=np, use_style=lambda: None)
    exec(code, space)
    return space


@pytest.mark.parametrize('params, words', [
    (dict(extra_arms='warm_start_equl'), "did you mean 'warm_start_equal'?"), (dict(extra_arms='mixup,'), "no extra arm ''"), (dict(extra_arms='real'), "no extra arm 'real'"),
    (dict(strengths='0,a'), 'numbers separated by commas'), (dict(strengths='0,-1'), '-1 is not between 0 and 4'), (dict(strengths='nan'), 'not between')])
def test_wrong_lists_are_refused_before_anything_is_loaded(params, words):
    with pytest.raises(UserError, match=words.replace('?', r'\?')): settings(**params)


def test_lists_choose_arms_and_strengths():
    assert settings(extra_arms='mixup, focal', strengths='2,0,2')['sweep'] == [0, 2]
    assert list(settings(extra_arms='mixup, focal')['ARM'])[5:] == ['mixup', 'focal'] and len(settings(extra_arms='none')['ARM']) == 5
    assert len(settings()['ARM']) == 15


def test_questions_compare_arms_of_equal_steps_only():
    times = {a: t for a, (_, t) in settings()['ARM'].items()}
    assert set(times) == set(STUDY['arms']) and STUDY['questions'][0] == ('warm_start', ('real_warm_start',))
    for arm, bases in STUDY['questions']: assert {times[b] for b in bases} == {times[arm]}, arm
    assert times['warm_start'] == 2 and times['real'] == 1     # so this pair, which the study compared, is not among them
    assert not any(arm == 'warm_start' and 'real' in bases for arm, bases in STUDY['questions'])


def test_profiles_name_parameters_that_exist_and_are_in_range():
    known = read_parameters(NOTEBOOK)
    for name, profile in STUDY['profiles'].items():
        for k, v in profile.items(): assert known[k].check(v) == v, (name, k)
    paper = STUDY['profiles']['paper']
    assert paper['image_size'] == 64 and paper['n_epoch'] == 20 and paper['n_synthetic'] == 10_500 and paper['steps_per_epoch'] == 0


@pytest.fixture(scope='session')
def fracture_run(tmp_path_factory):
    "The study on tiny folders as the public set has them: the folder of the run."
    path, runs = tmp_path_factory.mktemp('bones'), tmp_path_factory.mktemp('runs')
    for i, (part, n) in enumerate(dict(train=30, valid=12, test=10).items()):
        image_folder(path/part, seed=i, **{'fractured': n, 'not fractured': n+2*i})
        for f in (path/part/'fractured').glob('*.png'): Image.fromarray(np.asarray(Image.open(f))//2).save(f)     # darker, so that there is something to learn
    done = gansynth('run', 'bone_fracture', '--profile', 'smoke', '--data', f'fracture:{path}', '--runs', runs, *(x for k, v in dict(
        official_split=True, extra_arms='warm_start_equal,untrained_classic', strengths='0,1', gan_steps=2, looks=1, n_watch=10, n_synthetic=64).items() for x in ('-p', f'{k}={v}')))
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def test_the_division_that_came_with_the_set_is_kept(fracture_run):
    counts = load_json(fracture_run/'run.json')['data']['counts']
    assert {k: v['fractured']['images'] for k, v in counts.items()} == dict(train=30, valid=12, test=10)
    preds = pd.read_csv(fracture_run/'predictions.csv')
    assert preds.groupby('arm').size().unique().tolist() == [24] and preds.image_id.str.startswith('test/').all()
    assert preds.drop_duplicates('image_id').label.sum() == 10
    assert len((fracture_run/'test_reads.jsonl').read_text().splitlines()) == 1


def test_steps_of_the_arms(fracture_run):
    arms = pd.read_csv(fracture_run/'arms.csv').set_index('arm')
    assert arms.steps.to_dict() == dict(real=8, classic_aug=8, gan_aug=8, warm_start=16, real_warm_start=16, warm_start_equal=8, untrained_classic=8)
    assert arms.n_synthetic.to_dict() == dict(real=0, classic_aug=0, gan_aug=64, warm_start=64, real_warm_start=0, warm_start_equal=64, untrained_classic=64)
    stages = pd.read_csv(fracture_run/'epochs.csv').groupby('arm').stage.nunique()
    assert stages[['real', 'warm_start', 'real_warm_start']].tolist() == [1, 2, 2]


def test_sweep_starts_at_experiment_1_and_passes_experiment_2(fracture_run):
    "Strength 0 and 1 are the arms themselves, on the validation part."
    m, valid = pd.read_csv(fracture_run/'measures.csv'), pd.read_csv(fracture_run/'valid_predictions.csv')
    t = m[(m.table == 'transform sweep') & (m.metric == 'validation accuracy')].set_index('arm')
    for strength, arm in (('strength 0', 'real'), ('strength 1', 'classic_aug')):
        v = valid[valid.arm == arm]
        assert abs(((v.probability >= .5) == v.label).mean()-t.value[strength]) < 1e-6 and t.n[strength] == 26
    assert not m.duplicated(['table', 'arm', 'metric']).any()


def test_generated_images_have_the_class_shares_of_training(fracture_run):
    done = load_json(fracture_run/'done.json')
    assert set(done['generator']) == set(done['health']) == set(done['audit']) == {'fractured', 'not fractured'}
    assert len(set(done['generator'].values())) == 2 and done['parameters'] == {'generator': 3_979_651-792_576, 'classifier': 13_489-6_144}
    assert {'curve_experiments.png', 'curve_sweep.png', 'curve_test.png', 'generated_images.png'} <= {p.name for p in (fracture_run/'figures').iterdir()}


def test_report(fracture_run, tmp_path):
    done = gansynth('report', 'bone_fracture', '--runs', fracture_run.parents[1], '--out', tmp_path)
    assert done.returncode == 0, done.stderr
    page = (tmp_path/'index.html').read_text()
    for needed in ('real_warm_start', 'constant predictor', 'transform sweep', '0.93'): assert needed in page, needed
