"A study from its design to its page: killed and continued, changed in part, on other backends, with one part failing."
import json, os, random, re, shutil, signal, subprocess, sys, time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import COMMAND, ROOT, command, gansynth, image_folder, snapshot, until

from gansynth import gan_training, grid
from gansynth.cells import cell_key, describe_split, make_cell, make_set, parts_of, set_key, tasks_of
from gansynth.core import UserError, load_json
from gansynth.data import SealedTest
from gansynth.designs import Classifier, Design, Generator, as_yaml, cells, sets
from gansynth.grid import collect_study, run_design
from gansynth.shelf import Shelf
from gansynth.sources import open_source

TINY = Design('tiny', 'Does it run?', 'phantom:n_patients=60,prevalence=.5', size=28, arms=('raw', 'class_weights', 'gan_aug'), generators=(Generator('fresh', kind='fresh'),),
              classifiers=(Classifier('cnn', 'fracture_cnn', 'fracture', steps=8, epochs=2, bs=8),), seeds=(0, 1), n_boot=100, device='cpu', precision='float32')
GAN = replace(TINY, name='tiny_gan', generators=(Generator('small', gan='lung_adam', steps=4, bs=8),))


@pytest.fixture
def quick(monkeypatch):
    "Without the notebook behind the page, which takes its seconds."
    monkeypatch.setattr(grid, 'keep_notebook', lambda folder: None)


def tables(folder): return snapshot(folder/'tables')
def outcomes(folder): return load_json(folder/'study.json')['outcomes']


@pytest.fixture(scope='module')
def done(tmp_path_factory):
    "A finished study in this process: (folder of all, folder of the study)."
    place, kept = tmp_path_factory.mktemp('grid'), grid.keep_notebook
    grid.keep_notebook = lambda folder: None
    try: yield place, run_design(TINY, place/'runs', str(place/'shelf'), backend='here')
    finally: grid.keep_notebook = kept


def test_a_study_has_all_its_parts(done):
    _, folder = done
    told = load_json(folder/'study.json')
    n = len(cells(TINY))+len(sets(TINY))
    assert told['status'] == 'ok' and told['outcomes'] == dict(found=0, done=n, failed=0, left_out=0)
    assert {'results', 'contrasts', 'cells', 'sets', 'doses', 'failed'} <= {p.stem for p in (folder/'tables').glob('*.csv')}
    assert (folder/'report'/'index.html').is_file() and (folder/'design.yaml').is_file()
    c = pd.read_csv(folder/'tables'/'cells.csv')
    assert set(c.steps) == {8} and len(c) == len(cells(TINY))                      # equal steps, read back
    assert not any(k in (folder/'tables'/'cells.csv').read_text() for k in ('seconds', '/tmp'))


def test_a_second_call_does_nothing(done, quick, capsys):
    place, folder = done
    before = snapshot(folder)
    assert run_design(TINY, place/'runs', str(place/'shelf'), backend='here') == folder and snapshot(folder) == before
    assert 'complete already' in capsys.readouterr().err


def test_the_design_that_was_kept_runs_again_as_it_stands(done, quick):
    place, folder = done
    assert run_design(folder/'design.yaml', place/'runs', str(place/'shelf'), backend='here') == folder


def test_force_keeps_the_earlier_folder(tmp_path, quick):
    one = replace(TINY, arms=('raw', 'class_weights'), generators=(), seeds=(0,))
    folder = run_design(one, tmp_path/'runs', str(tmp_path/'shelf'), backend='here')
    before = tables(folder)
    assert run_design(one, tmp_path/'runs', str(tmp_path/'shelf'), backend='here', force=True) == folder
    assert outcomes(folder)['done'] == 2 and tables(folder) == before == tables(folder.with_name(f'{folder.name}.old1'))


def test_a_changed_seed_makes_only_what_stands_on_it(done, quick):
    place, folder = done
    other = run_design(replace(TINY, seeds=(0, 5)), place/'runs', str(place/'shelf'), backend='here')
    n = len(cells(TINY))//2
    assert other != folder and outcomes(other) == dict(found=n+1, done=n, failed=0, left_out=0)       # one set, which has no classifier seed in it


def test_a_changed_name_or_another_arm_makes_nothing_anew(done, quick):
    place, _ = done
    more = run_design(replace(TINY, name='more', arms=(*TINY.arms, 'mixup')), place/'runs', str(place/'shelf'), backend='here')
    assert outcomes(more)['done'] == 2 and outcomes(more)['found'] == len(cells(TINY))+1


def test_a_lost_result_is_made_again_with_the_same_bits(done, quick):
    place, folder = done
    shelf, before = Shelf(str(place/'shelf')), tables(folder)
    victim = pd.read_csv(folder/'tables'/'cells.csv').key[1]
    shelf.drop(victim)
    run_design(TINY, place/'runs', str(place/'shelf'), backend='here', force=False)     # complete: it is not looked for
    (folder/'study.json').unlink()
    run_design(TINY, place/'runs', str(place/'shelf'), backend='here')
    assert shelf.has(victim) and tables(folder) == before and outcomes(folder)['done'] == 1


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    "Folder of the study with a GAN, made in this process in one go."
    place = tmp_path_factory.mktemp('undisturbed')
    (place/'d.yaml').write_text(as_yaml(GAN))
    with pytest.MonkeyPatch.context() as m:
        m.setattr(grid, 'keep_notebook', lambda folder: None)
        return run_design(place/'d.yaml', place/'runs', str(place/'shelf'), backend='here')


@pytest.mark.slow
@pytest.mark.parametrize('n', [0, 2, 5])
def test_killed_and_continued(tmp_path, n, undisturbed, quick):
    "With a GAN, in two processes: killed with -9 after n results, then gone on with here; the tables are those of an undisturbed run."
    (tmp_path/'d.yaml').write_text(as_yaml(GAN))
    asked = ['d.yaml', '--runs', 'runs', '--cache', 'shelf', '--jobs', '2']
    env = os.environ | dict(GANSYNTH_CACHE=str(tmp_path/'cache'), OMP_NUM_THREADS='1')
    p = subprocess.Popen([COMMAND, 'study', *asked], cwd=tmp_path, env=env, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
    def begun(): return [*tmp_path.glob('runs/study/*/plan.json')] and len([*tmp_path.glob('shelf/[!.]*.npz')]) >= n
    until(lambda: begun() or p.poll() is not None, f'{n} results')
    time.sleep(random.Random(n).random())
    os.killpg(p.pid, signal.SIGKILL); p.wait()
    again = command('study', *asked, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    folder, = (tmp_path/'runs'/'study').iterdir()
    assert tables(folder) == tables(undisturbed) and undisturbed.name == folder.name


@pytest.mark.parametrize('backend', ['loky', *(pytest.param(b, marks=pytest.mark.slow) for b in ('dask', 'ray'))])
def test_every_backend_gives_the_same_tables(done, tmp_path, backend, quick):
    if backend != 'loky': pytest.importorskip(dict(dask='distributed').get(backend, backend))
    try: folder = run_design(TINY, tmp_path/'runs', str(tmp_path/'shelf'), jobs=2, backend=backend)
    except UserError as e:
        if backend == 'ray' and 'start' in str(e): pytest.skip(str(e))
        raise
    assert tables(folder) == tables(done[1])


@pytest.mark.slow
def test_one_part_fails_and_the_rest_goes_on(tmp_path, quick, capsys, monkeypatch):
    "A GAN that diverges: its set fails, its cells are left out, the others are judged, and the record names it."
    step = gan_training.gan_step
    monkeypatch.setenv('GANSYNTH_CACHE', str(tmp_path/'cache'))        # no GAN of before
    monkeypatch.setattr(gan_training, 'gan_step', lambda *a: step(*a)*float('nan'))
    wild = replace(GAN, generators=(Generator('wild', gan='lung_adam', steps=4, bs=8), Generator('fresh', kind='fresh')), seeds=(0,))
    folder = run_design(wild, tmp_path/'runs', str(tmp_path/'shelf'), backend='here')
    o = outcomes(folder)
    assert o == dict(found=0, done=4, failed=1, left_out=1) and load_json(folder/'study.json')['status'] == 'incomplete'
    assert 'diverged' in capsys.readouterr().err and 'diverged' in (folder/'tables'/'failed.csv').read_text()
    assert 'wild' in (folder/'report'/'index.html').read_text()


@pytest.mark.slow
def test_exit_code_tells_a_failure(tmp_path, quick):
    "From the command, with a set whose generator saw strangers: the leak is caught in its cell."
    from gansynth.synthesis import Synthetic, export_set
    rng = np.random.default_rng(0)
    for c in ('normal', 'pneumonia'): export_set(Synthetic(rng.integers(0, 256, (200, 28, 28), 'uint8'), c, ('P9999-0',), 'g'*64, 0, np.array([f'0-{i:06}' for i in range(200)])), tmp_path/c, allow_failed_audit=True)
    (tmp_path/'d.yaml').write_text(as_yaml(replace(TINY, generators=(Generator('given', kind='set', path=f'{tmp_path}/normal, {tmp_path}/pneumonia'),), seeds=(0,))))
    done = command('study', tmp_path/'d.yaml', '--runs', tmp_path/'runs', '--cache', tmp_path/'shelf', '--jobs', 1, '--json')
    assert done.returncode == 1 and 'outside this training part' in done.stderr and 'Traceback' not in done.stderr
    told = json.loads(done.stdout)
    assert told['status'] == 'incomplete' and told['outcomes']['failed'] == 1


@pytest.mark.parametrize('args, says', [(('--data', 'nowhere'), 'no such file'), (('--fractions', '0'), 'fractions'), (('--seeds', '1,1'), 'twice'), (('--budget', '1s'), 'give at least'), (('--backend', 'spork'), "did you mean 'spark'"),
                                        (('--size', '30'), 'size'), (('--fractions', '.02'), 'patient')])
def test_wrong_input_is_one_sentence_and_writes_nothing(tmp_path, args, says):
    done = command('study', 'smoke', *args, '--runs', tmp_path/'runs', '--cache', tmp_path/'shelf')
    assert done.returncode == 1 and says in done.stderr and 'Traceback' not in done.stderr, done.stderr
    assert not list(tmp_path.rglob('*.npz')) and not list(tmp_path.rglob('index.html'))


@pytest.mark.slow
def test_a_cell_as_a_notebook_gives_the_same_record(done, tmp_path, quick):
    place, folder = done
    one = replace(TINY, seeds=(0,), arms=('raw', 'gan_aug'))
    other = run_design(one, tmp_path/'runs', str(tmp_path/'shelf'), jobs=1, backend='here', notebooks=True)
    a, b = Shelf(str(place/'shelf')), Shelf(str(tmp_path/'shelf'))
    keys = pd.read_csv(other/'tables'/'cells.csv').key
    for k in keys:
        (ra, xa), (rb, xb) = a.read(k), b.read(k)
        assert ra == rb and all(np.array_equal(xa[n], xb[n]) for n in xa)
    assert {p.parent.name for p in (other/'cells').glob('*/notebook.ipynb')} == set(keys)


def test_another_site_is_judged_too(tmp_path, quick):
    folder = run_design(replace(TINY, external='phantom:n_patients=20,prevalence=.5,seed=99'), tmp_path/'runs', str(tmp_path/'shelf'), backend='here')
    c = pd.read_csv(folder/'tables'/'contrasts.csv')
    assert {'primary', 'external'} <= set(c.family) and c[c.family == 'external'].n_patients.iloc[0] == 20
    with pytest.raises(UserError, match='pictures of .* are in the data too'): run_design(replace(TINY, external=TINY.source), tmp_path/'r2', str(tmp_path/'s2'), backend='here')


def test_synthetic_images_for_the_rarer_class_only(tmp_path):
    d = replace(TINY, source='phantom:n_patients=60,prevalence=.3', synthetic_for='rarer')
    parts = parts_of(d)
    c = next(c for c in cells(d) if c.arm == 'gan_aug')
    record, _ = make_cell(d, c, make_set(d, sets(d, [c])[0]))
    assert record['n_synthetic'] == (parts.train.labels == 1).sum()
    m = parts.manifest
    assert cell_key(d, c, m, 'x') != cell_key(replace(d, synthetic_for='both'), c, m, 'x')


def test_a_budget_goes_on_with_its_plan(tmp_path, quick):
    "What was found costs nothing, but the same budget keeps the same cells."
    d = replace(TINY, budget='9h')
    folder = run_design(d, tmp_path/'runs', str(tmp_path/'shelf'), backend='here')
    (folder/'study.json').unlink()
    assert run_design(d, tmp_path/'runs', str(tmp_path/'shelf'), backend='here') == folder and outcomes(folder)['done'] == 0


def test_a_collected_study_names_no_path(done, tmp_path):
    _, folder = done
    out = collect_study(folder, tmp_path/'out')
    assert {'study.json', 'tables'} == {p.name for p in out.iterdir()} and not list(out.rglob('*.npz'))
    for p in [*out.rglob('*.json'), *out.rglob('*.csv')]: assert str(folder.parent) not in p.read_text() and str(ROOT) not in p.read_text(), p
    with pytest.raises(UserError, match='not finished'): collect_study(tmp_path, tmp_path/'no')


def test_the_audit_of_a_study_is_told(done):
    _, folder = done
    said, records = command('audit', folder), json.loads(command('audit', folder, '--json').stdout)
    sets = pd.read_csv(folder/'tables'/'sets.csv', keep_default_na=False)
    assert [r['words'] for r in records] == sets.words.tolist() and all(w in said.stdout for w in sets.words)
    lines = said.stdout.splitlines()
    assert said.returncode == int((sets.verdict != 'PASS').any()) and len(lines) == 3*len(sets), said.stderr
    assert [x.split(':')[0] for x in lines[1::3]+lines[2::3]] == ['images']*len(sets)+['weights']*len(sets)
    assert set(lines[2::3]) == {'weights: not audited - no discriminator was attacked'}


def test_exit_code_of_the_audit_is_about_the_images(done, tmp_path):
    "A discriminator that knows its patients fails nobody; folders of before have no word on it."
    _, folder = done
    (tmp_path/'tables').mkdir(); shutil.copy(folder/'study.json', tmp_path)
    sets = pd.read_csv(folder/'tables'/'sets.csv', keep_default_na=False).assign(verdict='PASS', words='nothing')
    for weights, lines in (('FAIL', 3), (None, 2)):
        t = sets.assign(weights=weights, weights_words='it knows them') if weights else sets.drop(columns=['weights', 'weights_words'])
        t.to_csv(tmp_path/'tables'/'sets.csv', index=False)
        said = command('audit', tmp_path)
        assert said.returncode == 0 and len(said.stdout.splitlines()) == lines*len(sets) and ('weights: FAIL - it knows them' in said.stdout) == bool(weights)


@pytest.mark.slow
def test_copies_are_a_finding_and_never_an_end(tmp_path):
    "A generator that gives its training images back: the study ends well, says so in red, and its images stay here."
    d = replace(TINY, name='copies', generators=(Generator('copier', kind='replay'),))
    (tmp_path/'copies.yaml').write_text(as_yaml(d))
    ran = gansynth('study', tmp_path/'copies.yaml', '--runs', tmp_path/'runs', '--cache', tmp_path/'shelf', '--backend', 'here')
    assert ran.returncode == 0, ran.stderr
    folder, = [p for p in (tmp_path/'runs'/'study').iterdir() if (p/'study.json').is_file()]
    told, sets = load_json(folder/'study.json'), pd.read_csv(folder/'tables'/'sets.csv')
    assert told['status'] == 'ok' and told['outcomes']['failed'] == told['outcomes']['left_out'] == 0
    assert set(sets.verdict) == {'FAIL'} and set(sets.weights) == {'not audited'}
    assert set(pd.read_csv(folder/'tables'/'results.csv').arm) >= {'raw', 'class_weights', 'gan_aug'}       # its arm was trained and tested
    page = (folder/'report'/'index.html').read_text()
    said, = re.findall('<li class="failed">(Privacy audit of the synthetic images: FAIL[^<]*)</li>', page)
    assert 'may come from repeated patients' in said and 'must not leave this machine' in said and 'Privacy audit of the synthetic images: FAIL' in ran.stdout
    refused = command('export', folder, '--cache', tmp_path/'shelf', '--to', tmp_path/'out')
    assert refused.returncode == 1 and 'did not pass' in refused.stderr and not (tmp_path/'out').exists()
    assert command('audit', folder).returncode == 1


@pytest.mark.slow
def test_the_images_of_a_study_can_be_exported(done, tmp_path):
    place, folder = done
    asked = ('export', folder, '--cache', place/'shelf', '--to', tmp_path/'out', '--n', 5)
    refused = command(*asked)
    assert refused.returncode == 1 and 'did not pass' in refused.stderr and not (tmp_path/'out').exists()
    written = gansynth(*asked, '--allow-failed-audit', '--generator', 'fresh')
    assert written.returncode == 0, written.stderr
    assert {p.name for p in (tmp_path/'out').iterdir()} == {'normal', 'pneumonia', 'README.md', 'card.json'} and open_source(str(tmp_path/'out'))[0].source['synthetic'] and len(list((tmp_path/'out').rglob('*.png'))) == 10
    lost = command(*asked, '--generator', 'frehs')
    assert lost.returncode == 1 and 'fresh seed 0' in lost.stderr


def sealed(self, *a, **kw): pytest.fail('the test part was opened')


def test_plans_and_cells_leave_the_test_part_sealed(tmp_path, monkeypatch):
    (tmp_path/'d.yaml').write_text(as_yaml(TINY))
    monkeypatch.setattr(SealedTest, 'open', sealed)
    planned = command('plan', tmp_path/'d.yaml', '--cache', tmp_path/'shelf')
    assert planned.returncode == 0, planned.stderr
    parts = parts_of(TINY)
    record, arrays = make_cell(TINY, next(c for c in cells(TINY) if not c.generator))
    assert arrays['test_p'].shape == (len(parts.test),)
    assert {k for k in describe_split(TINY, parts)[1] if k.startswith('test')} == {'test_id', 'test_patient'}


def reads(folder): return load_json(folder/'study.json')['provenance']['test_reads']


def test_each_reading_of_the_test_part_is_recorded(tmp_path, quick):
    one = replace(TINY, arms=('raw', 'class_weights'), generators=(), seeds=(0,), split_seeds=(0, 1))
    def go(design): return run_design(design, tmp_path/'runs', str(tmp_path/'shelf'), backend='here')
    folder = go(one)
    lines = [json.loads(l) for l in (folder/'test_reads.jsonl').read_text().splitlines()]
    assert reads(folder) == {'0': 1, '1': 1} and [l['split'] for l in lines] == [0, 1]          # one for each split, after all cells
    assert lines[0]['reason'] == 'tiny: tables of 4 classifiers' and lines[0]['test'] != lines[1]['test']
    go(one)                                                                                      # complete already
    (folder/'study.json').unlink()
    go(one)                                                                                      # the same results once more
    assert reads(folder) == {'0': 1, '1': 1} and 'more than once' not in (folder/'report'/'index.html').read_text()
    other = go(replace(one, name='another'))
    assert reads(other) == {'0': 1, '1': 1}
    more = go(replace(one, seeds=(0, 1)))
    assert more != folder and reads(more) == {'0': 2, '1': 2}
    assert 'The test part was read more than once.' in (more/'report'/'index.html').read_text()
    why = load_json(more/'study.json')['provenance']['test_reads_why']
    assert [w.split(': ', 1)[1] for w in why] == ['tiny: tables of 4 classifiers', 'tiny: tables of 8 classifiers']*2
    assert reads(go(replace(one, split_seeds=(0, 2), seeds=(5,)))) == {'0': 3, '2': 1}           # another split is another test part


@pytest.mark.parametrize('step', ['gather', 'Findings', 'make_study_report'])
def test_a_step_that_breaks_after_the_trainings_is_told_and_alone_repeated(tmp_path, monkeypatch, quick, step):
    one = replace(TINY, arms=('raw', 'class_weights'), generators=(), seeds=(0,))
    def go(): return run_design(one, tmp_path/'runs', str(tmp_path/'shelf'), backend='here')
    def breaks(*a): raise RuntimeError('broken on purpose')
    with monkeypatch.context() as m:
        m.setattr(grid, step, breaks)
        with pytest.raises(UserError, match='broken on purpose.*results so far are kept'): go()
    folder, = (tmp_path/'runs'/'study').iterdir()
    told = load_json(folder/'study.json')
    assert told['status'] == 'failed' and told['error'] == 'RuntimeError: broken on purpose' and 'in breaks' in (folder/'failed.txt').read_text()
    assert len(Shelf(str(tmp_path/'shelf')).keys()) == 2
    with pytest.raises(UserError, match='not finished'): collect_study(folder, tmp_path/'out')
    tables = folder/'tables'
    (tables/'.ipynb_checkpoints').mkdir(parents=True)       # JupyterLab's, where a table was opened
    (tables/'.4711.cells.csv').write_text('half a table')   # of a call that was killed while it wrote
    assert go() == folder and load_json(folder/'study.json')['status'] == 'ok' and not (folder/'failed.txt').exists()
    assert (tables/'.ipynb_checkpoints').is_dir() and not (tables/'.4711.cells.csv').exists()
    assert outcomes(folder) == dict(found=2, done=0, failed=0, left_out=0) and reads(folder) == {'0': 1}


def test_a_mistake_that_shows_late_is_told_as_it_is(tmp_path, quick):
    with pytest.raises(UserError, match="did you mean 'spark'.$"): run_design(TINY, tmp_path/'runs', str(tmp_path/'shelf'), backend='spork')
    folder, = (tmp_path/'runs'/'study').iterdir()
    assert load_json(folder/'study.json')['status'] == 'failed' and "did you mean 'spark'" in load_json(folder/'study.json')['error'] and not (folder/'failed.txt').exists()


def test_a_small_set_has_an_answer_that_says_what_cannot_be_estimated(tmp_path, quick):
    "Four negatives in the validation part: no threshold at 90 % specificity exists."
    source = str(image_folder(tmp_path/'d', healthy=40, ill=40))
    design = replace(TINY, source=source, generators=(Generator('again', kind='replay'),))
    folder = run_design(design, tmp_path/'runs', str(tmp_path/'shelf'), backend='here')
    assert load_json(folder/'study.json')['status'] == 'ok'
    t = pd.read_csv(folder/'tables'/'results.csv', keep_default_na=False)
    mine = t[(t.metric == 'sensitivity_at_90_specificity') & (t.label != 'constant')]
    assert (mine.value == '').all() and set(mine.note) == {'cannot be estimated in 2 of 2 runs: the validation part has fewer than 10 negatives'}
    assert ((t.value == '') == (t.note != '')).all()
    page = (folder/'report'/'index.html').read_text()
    assert 'cannot be estimated in 2 of 2 runs: the validation part has fewer than 10 negatives' in page and 'KID of 2 of 2 synthetic sets' in page
    assert (pd.read_csv(folder/'tables'/'cells.csv').t90.isna()).all()


@pytest.mark.parametrize('n, says', [((12, 12), 'valid has 1 patient of class'), ((2, 40), 'too few patients')])
def test_a_set_that_is_too_small_is_refused_before_anything_is_trained(tmp_path, n, says):
    source = str(image_folder(tmp_path/'d', healthy=n[0], ill=n[1]))
    for run in ('plan', 'study'):
        done = command(run, 'smoke', '--data', source, '--size', 32, '--cache', tmp_path/'shelf', *(('--runs', tmp_path/'runs') if run == 'study' else ()))
        assert done.returncode == 1 and says in done.stderr and 'Traceback' not in done.stderr
    assert not (tmp_path/'shelf').exists() and not (tmp_path/'runs').exists()


@pytest.mark.slow
def test_no_warning_of_a_library_reaches_the_terminal(tmp_path):
    "Not from the command, nor from its workers and notebook kernels."
    (tmp_path/'d.yaml').write_text(as_yaml(replace(TINY, arms=('raw', 'class_weights'), generators=(), seeds=(0,))))
    done = gansynth('study', tmp_path/'d.yaml', '--runs', tmp_path/'runs', '--cache', tmp_path/'shelf', '--jobs', 2, PYTHONWARNINGS='')
    assert done.returncode == 0 and 'Warning' not in done.stderr, done.stderr
    trained = gansynth('train', 'phantom:n_patients=30', '--size', 28, '--gan', 'lung_adam', '--steps', 2, '--bs', 8, '--to', tmp_path/'g.safetensors', PYTHONWARNINGS='')
    assert trained.returncode == 0 and 'Warning' not in trained.stderr, trained.stderr
    assert 'FutureWarning' not in next((tmp_path/'runs').rglob('notebook.ipynb')).read_text()
