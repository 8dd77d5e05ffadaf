"The runner and the command line: one fault each, through the front door."
import json, os, re, shutil, signal, subprocess, sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import COMMAND, LIMIT, ROOT, SHARED, command, gansynth, image_folder, medmnist_arrays, needs_real_data, snapshot, until

from gansynth import collection, studies
from gansynth.core import UserError, code_of, load_json, save_json
from gansynth.data import load
from gansynth.studies import Parameter, execute, read_parameters

RUN = ('run', 'nih_pneumonia', '--profile', 'smoke')
LEAN = ('-p', 'arms=raw,gan_aug', '-p', 'compare_networks=', '-p', 'network=resnet18')     # where any two arms will do
ARMS = {'raw', 'gan_aug', 'gan_aug_matched', 'class_weights'} # of its smoke run


def test_run_and_report(smoke_run, tmp_path):
    runs, folder = smoke_run
    record = load_json(folder/'run.json')
    assert record['status'] == 'ok' and record['parameters']['seed'] == 0 and record['data']['hash'] and record['environment']['versions']['torch']
    preds = pd.read_csv(folder/'predictions.csv')
    assert set(preds.arm) == ARMS and preds.probability.between(0, 1).all() and not preds.duplicated(['arm', 'image_id']).any()
    assert len((folder/'test_reads.jsonl').read_text().splitlines()) == 1
    assert 'FutureWarning' not in (folder/'notebook.ipynb').read_text()
    results = pd.read_csv(folder/'results.csv')
    n = results.n_images.iloc[0]
    for v in results.value[results.metric == 'accuracy']: assert abs(v*n-round(v*n)) < 1e-3      # k/n
    done = command('report', '--runs', runs, '--out', tmp_path/'report')
    assert done.returncode == 0, done.stderr
    page = (tmp_path/'report'/'index.html').read_text()
    for needed in ('constant predictor', 'gan_aug', '0.8599', 'in place of NIH ChestX-ray14', 'never medical evidence', record['data']['hash']): assert needed in page, needed
    assert page.count('data:image/png;base64') >= 6
    assert not re.search(r'(src|href)="(?!data:)', page) and 'url(' not in page
    shown = pd.read_csv(tmp_path/'report'/'results'/'results.csv').query("arm == 'gan_aug' and metric == 'auroc' and seed == 'mean'").value.item()
    assert f'{shown:.3f}' in page


def test_subgroups_where_the_source_knows_them(smoke_run, tmp_path):
    "Sex and age travel from the source to the predictions and into the report; so few patients get words instead of numbers."
    runs, folder = smoke_run
    preds = pd.read_csv(folder/'predictions.csv')
    known = load('phantom:n_patients=120', 32)
    want = known.facts.assign(image_id=known.ids).set_index('image_id').loc[preds.image_id]
    assert preds.sex.tolist() == want.sex.tolist() and preds.age.tolist() == want.age.tolist() and preds.sex.nunique() == 2
    assert command('report', '--runs', runs, '--out', tmp_path).returncode == 0
    t, page = pd.read_csv(tmp_path/'results'/'subgroups.csv'), (tmp_path/'index.html').read_text()
    assert set(t.attribute) == {'sex', 'age'} and set(t.arm) == ARMS and t.auroc.isna().all() and t.note.str.startswith('no number: ').all()
    women = preds[(preds.sex == 'F') & (preds.arm == 'raw')]
    assert (t.n_images[t.group == 'F'] == len(women)).all() and (t.n_patients[t.group == 'F'] == women.patient_id.nunique()).all()
    assert 'For whom?' in page and 'there is no number for any' in page


PREDICTED = '''import numpy as np, pandas as pd
from pathlib import Path
rng = np.random.default_rng(seed)
n = np.arange(120)
rows = [dict(image_id=f'i{i}', patient_id=f'p{i}', label=i % 2, probability=rng.random()/2+(i % 2)/4*(a == 'gan_aug'), arm=a, seed=seed, **KNOWN) for a in ('raw', 'gan_aug') for i in n]
pd.DataFrame(rows).to_csv(Path(run_dir)/'predictions.csv', index=False)
pd.DataFrame(dict(arm=['raw', 'gan_aug'], seed=seed, threshold=.4)).to_csv(Path(run_dir)/'thresholds.csv', index=False)
Path(run_dir, 'test_reads.jsonl').write_text('{}')
finish(run_dir, generator='g')'''


@pytest.mark.slow
def test_subgroups_pool_seeds_and_disappear_with_the_columns(tiny_study, tmp_path):
    from gansynth.evaluation import summarise
    runs = tiny_study(PREDICTED.replace('KNOWN', "{'sex': 'FM'[i//2 % 2] if i < 112 else None, 'view': 'PA'}"))
    for s in (0, 1): studies.run_study('tiny', 'smoke', {'seed': s}, runs=runs)
    out = collection.collect('tiny', tmp_path/'out', runs)
    t = pd.read_csv(out/'subgroups.csv').set_index(['arm', 'group'])
    preds = collection.gather(collection.group(collection.complete_runs('tiny', runs)), 'predictions.csv')
    women = preds[preds.sex == 'F']
    want = summarise(women, {k: .5 for k in women.groupby(['arm', 'seed']).groups}, B=200).query("metric == 'auroc' and seed == 'mean' and arm == 'gan_aug'").iloc[0]
    assert t.loc[('gan_aug', 'F'), ['auroc', 'low', 'high', 'n_patients']].tolist() == pytest.approx([want.value, want.low, want.high, 56], abs=1e-6)
    assert t.loc[('raw', 'unknown'), 'note'] == 'no number: 4 patients with the rarer class, fewer than 10' and np.isfinite(t.loc[('raw', 'PA'), 'auroc'])
    runs = tiny_study(PREDICTED.replace('KNOWN', '{}'))
    studies.run_study('tiny', 'smoke', {'data': 'phantom:n_patients=31'}, runs=runs)
    collection.collect('tiny', tmp_path/'out', runs)
    assert not (out/'subgroups.csv').exists() and (out/'results.csv').exists()


def test_f33_the_same_run_is_not_done_twice(smoke_run):
    runs, folder = smoke_run
    before = snapshot(folder)
    done = gansynth(*RUN, '--runs', runs)
    assert done.returncode == 0 and 'complete already' in done.stderr and done.stdout.strip() == str(folder)
    assert snapshot(folder) == before


@pytest.mark.slow
def test_f63_same_seed_same_bits(tmp_path):
    first, again, other = (gansynth(*RUN, *LEAN, '--runs', tmp_path/str(i), '--seed', s, GANSYNTH_CACHE=str(tmp_path/f'cache{i}')) for i, s in enumerate((0, 0, 1))) # nothing recalled
    assert first.returncode == again.returncode == other.returncode == 0
    folder = Path(first.stdout.strip())
    for f in ('predictions.csv', 'gan_losses.csv', 'epochs.csv'):
        assert (Path(again.stdout.strip())/f).read_bytes() == (folder/f).read_bytes(), f
        assert (Path(other.stdout.strip())/f).read_bytes() != (folder/f).read_bytes(), f
    a, b = (load_json(Path(r.stdout.strip())/'run.json') for r in (again, other))
    assert a['data']['hash'] == b['data']['hash'] and a['key'] != b['key']


@pytest.mark.slow
def test_report_shows_what_was_asked_for_last(tiny_study):
    runs = tiny_study('finish(run_dir)')
    one, two = (studies.run_study('tiny', 'smoke', {'data': f'phantom:n_patients={n}'}, runs=runs) for n in (30, 31))
    assert collection.group(collection.complete_runs('tiny', runs))[0]['folder'] == two
    os.utime(two/'run.json', (1e9, 1e9))         # long ago
    assert studies.run_study('tiny', 'smoke', {'data': 'phantom:n_patients=30'}, runs=runs) == one
    assert collection.group(collection.complete_runs('tiny', runs))[0]['folder'] == one
    other_seed = studies.run_study('tiny', 'smoke', {'data': 'phantom:n_patients=30', 'seed': 1}, runs=runs)
    assert [r['folder'] for r in collection.group(collection.complete_runs('tiny', runs))] == [one, other_seed]


def test_a_damaged_run_is_not_complete(smoke_run, tmp_path):
    copy = tmp_path/'copy'
    shutil.copytree(smoke_run[1], copy)
    key = load_json(copy/'run.json')['key']
    assert studies.is_complete(copy, key) and not studies.is_complete(copy, 'another key')
    (copy/'predictions.csv').write_text('image_id\n')
    assert not studies.is_complete(copy, key)


WRONG = [
    (['-p', 'n_epochs=2'], "did you mean 'n_epoch'?"),                                # F24
    (['-p', 'a=1;import os=1'], "-p 'a=1;import os=1': no parameter 'a'"),            # F25
    (['-p', 'a;import os=1'], "'a;import os' is not a parameter name"),
    (['-p', 'x\nimport os=1'], 'is not a parameter name'),
    (['-p', 'run_dir=/x'], "no parameter 'run_dir'"),
    (['-p', 'n_epoch=two'], "n_epoch='two' is not int"),                              # F27
    (['-p', 'n_epoch=-1'], 'n_epoch=-1 is outside 1 to 1000'),
    (['-p', 'gan_lr=nan'], 'gan_lr=nan is outside'),
    (['-p', 'device=gpu'], "device='gpu': "),
    (['-p', 'seed'], 'expected name=value'),
    (['--profile', 'quik'], "did you mean 'quick'?"),
    (['--data', 'nowhere.npz'], 'nowhere.npz'),
    (['--data', 'phantom:n_patients=1'], 'found one class only'),
    (['--data', '{tmp}/wrong.npz'], 'wrong.npz is not in MedMNIST format: it lacks train_images'),
    (['--data', '{tmp}/one_class'], 'found one class only (a)'),
    (['--data', '{tmp}/one_image'], "too few patients with class 'b' (1 images of 1 patients)"),
    (['--data', '{tmp}/wrong.npz', '--patients', 'who.csv'], 'lacks train_images'),
    (['--data', '{tmp}/right.npz', '--patients', 'who.csv'], 'no such table'),
    (['-p', 'image_size=50'], 'image_size=50: known: 128, 28, 32, 64')]


@pytest.mark.parametrize('args, says', WRONG, ids=lambda x: '-'.join(x)[:40] if isinstance(x, list) else '')
def test_f24_f25_f27_wrong_input_is_refused_before_training(smoke_run, tmp_path, args, says):
    np.savez(tmp_path/'wrong.npz', x=np.zeros(3))
    np.savez(tmp_path/'right.npz', **medmnist_arrays())
    image_folder(tmp_path/'one_class', a=5)
    image_folder(tmp_path/'one_image', a=9, b=1)
    runs, _ = smoke_run
    before = snapshot(runs)
    done = command(*RUN, '--runs', runs, *(a.replace('{tmp}', str(tmp_path)) for a in args))
    assert done.returncode == 1 and done.stdout == '' and says in done.stderr, done.stderr
    assert 'Traceback' not in done.stderr and snapshot(runs) == before


def test_f24_misspelt_parameter(): assert gansynth(*RUN, '-p', 'epochz=3').returncode == 1


def tiny(path, *cells):
    nb = nbformat.v4.new_notebook(metadata={'kernelspec': {'name': 'python3', 'display_name': 'python3', 'language': 'python'}})
    for c in cells:
        nb.cells.append(nbformat.v4.new_code_cell(c))
        if c.startswith('seed'): nb.cells[-1].metadata['tags'] = ['parameters']
    nbformat.write(nb, path)
    return path


PARAMETERS = "seed = 0  # 0..9: seed\ndata = 'phantom:n_patients=30'  # source\nimage_size = 32  # 28..64: pixels\nn_boot = 200  # 100..9999: resamples\nrun_dir = ''  # set by the runner"


@pytest.fixture
def tiny_study(tmp_path, monkeypatch):
    "A study of three cells in a folder of its own; returns a function that sets its last cell."
    def make(*cells):
        tiny(tmp_path/'tiny.ipynb', PARAMETERS, 'from gansynth.studies import finish', *cells)
        return tmp_path/'runs'
    monkeypatch.setitem(studies.STUDIES, 'tiny', dict(title='t', question='q', shares={}, profiles={'smoke': {}}, shows='s', source='o', published_data='x', published_n=99, published_constant=.6,
                        decimals=2, metric='auroc', published={'raw': dict(auroc=.7, accuracy=.8)}, arms={'raw': 'real only', 'gan_aug': 'real and synthetic'}, questions=[('gan_aug', ('raw', 'oversample')), ('gan_aug', ('raw',))]))
    monkeypatch.setattr(studies, 'notebook_path', lambda name: tmp_path/'tiny.ipynb')
    return make


@pytest.mark.parametrize('cells, says', [
    (['1/0'], 'cell 4 raised ZeroDivisionError'),                                     # F23; cell 2 holds the injected parameters
    (['import os; os._exit(9)', 'x = 1'], 'the kernel died in cell 4'),               # F21
    (['x = 1'], 'ended without calling finish'),
    (["from gansynth.core import UserError\nraise UserError('do this instead')"], 'cell 4: do this instead')])
def test_f21_f23_failure_names_the_cell(tiny_study, cells, says):
    runs = tiny_study(*cells)
    with pytest.raises(UserError, match=re.escape(says)): studies.run_study('tiny', 'smoke', runs=runs)
    folder, = (runs/'tiny').iterdir()
    record = load_json(folder/'run.json')
    assert record['status'] == 'failed' and says in record['error']
    assert nbformat.read(folder/'notebook.ipynb', as_version=4).cells


@pytest.mark.slow
def test_f22_timeout(tmp_path):
    nb = tiny(tmp_path/'a.ipynb', PARAMETERS, 'import time; time.sleep(600)')
    assert execute(nb, tmp_path/'out.ipynb', {}, tmp_path/'p.json', timeout=10) == ('failed', 'cell 2 took longer than 10 s')


@pytest.mark.slow
def test_failed_run_is_kept_and_repeated(tiny_study):
    runs = tiny_study("import pathlib\nif not pathlib.Path(run_dir, '..', 'ok').exists(): raise SystemError('first time')", 'finish(run_dir)')
    with pytest.raises(UserError, match='first time'): studies.run_study('tiny', 'smoke', runs=runs)
    (runs/'tiny'/'ok').touch()
    folder = studies.run_study('tiny', 'smoke', runs=runs)
    assert load_json(folder/'run.json')['status'] == 'ok' and load_json(folder.with_name(folder.name+'.old1')/'run.json')['status'] == 'failed'
    forced = studies.run_study('tiny', 'smoke', runs=runs, force=True)
    assert forced == folder and load_json(folder.with_name(folder.name+'.old2')/'run.json')['status'] == 'ok'


@pytest.mark.slow
def test_another_notebook_is_another_run(tiny_study):
    one = studies.run_study('tiny', 'smoke', runs=tiny_study('finish(run_dir)'))
    two = studies.run_study('tiny', 'smoke', runs=tiny_study('finish(run_dir) # changed'))
    three = studies.run_study('tiny', 'smoke', {'data': 'phantom:n_patients=31'}, runs=one.parents[1])
    assert len({one, two, three}) == 3


def test_the_code_that_a_notebook_imports_is_in_its_key(tiny_study, in_process, monkeypatch):
    "And no other: what the notebook does not import may change."
    changed = set()
    monkeypatch.setattr(studies, 'code_hash', lambda *modules: f'{sorted(modules)} {sorted({*modules} & changed)}')
    runs = tiny_study('from gansynth.data import load', 'def late():\n    import gansynth.evaluation', 'finish(run_dir)')
    def key(): return studies.run_study('tiny', 'smoke', runs=runs)
    first = key()
    changed |= {'gansynth.report'}
    assert key() == first
    for module in ('gansynth.data', 'gansynth.evaluation', 'gansynth.studies'):
        changed = {module}
        assert key() != first, module


def test_published_notebooks_are_keyed_by_their_own_imports():
    for name in studies.STUDIES:
        found = studies.notebook_imports(ROOT/'nbs'/'studies'/f'{name}.ipynb')
        assert {'gansynth.data', 'gansynth.gan_training', 'gansynth.synthesis', 'gansynth.studies'} <= {*found}, name
        assert not {'gansynth.cli', 'gansynth.grid', 'gansynth.answers'} & {*code_of(*found)}, name


@pytest.mark.parametrize('edit, says', [(lambda c: c['metadata'].pop('tags'), 'has 0 cells tagged'), (None, 'has 2 cells tagged')])
def test_f28_parameters_tag(tmp_path, edit, says):
    "In a copy of the checkout, so that the front door is used."
    for f in ('settings.ini',): shutil.copy(ROOT/f, tmp_path)
    (tmp_path/'gansynth').mkdir(); (tmp_path/'nbs'/'studies').mkdir(parents=True)
    nb = json.loads((ROOT/'nbs'/'studies'/'nih_pneumonia.ipynb').read_text())
    i = next(i for i, c in enumerate(nb['cells']) if c['metadata'].get('tags') == ['parameters'])
    edit(nb['cells'][i]) if edit else nb['cells'].append(nb['cells'][i] | {'id': 'second'})
    (tmp_path/'nbs'/'studies'/'nih_pneumonia.ipynb').write_text(json.dumps(nb))
    done = gansynth(*RUN, cwd=tmp_path)
    assert done.returncode == 1 and says in done.stderr and 'tag' in done.stderr, done.stderr
    assert not (tmp_path/'runs').exists()


def test_f26_types():
    p, t = Parameter('n', 3, 1, 9), Parameter('t', 'x')
    assert p.check(np.int64(4)) == 4 and type(p.check(np.int64(4))) is int and t.check(Path('/x')) == '/x'
    for bad in ((1, 2), 2.5, True, None): 
        with pytest.raises(UserError, match='n='): p.check(bad)
    import datetime
    with pytest.raises(UserError, match='t='): t.check(datetime.date(2026, 1, 1))


@pytest.mark.slow
def test_a_signal_between_two_cells_is_not_lost(tmp_path):
    "The first cell takes the signal and goes on, as an idle kernel does; the second is stopped all the same."
    cells = ["n = 1  # 1..2: a parameter", f"""
import signal, time
from pathlib import Path
folder = Path({str(tmp_path)!r})
signal.signal(signal.SIGINT, lambda number, frame: (folder/'got').touch())
(folder/'begun').touch()
while not (folder/'go').exists(): time.sleep(.05)
""", "for _ in range(600): time.sleep(.1)\n(folder/'ended').touch()"]
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    nb.cells[0].metadata.tags = ['parameters']
    nbformat.write(nb, tmp_path/'a.ipynb')
    code = f"""
from pathlib import Path
from gansynth.studies import execute
folder = Path({str(tmp_path)!r})
print(execute(folder/'a.ipynb', folder/'out.ipynb', {{}}, folder/'p.json'))
"""
    p = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    until(lambda: (tmp_path/'begun').exists() or p.poll() is not None, 'the first cell')
    p.send_signal(signal.SIGINT)
    until(lambda: (tmp_path/'got').exists() or p.poll() is not None, 'the signal')
    (tmp_path/'go').touch()
    out, err = p.communicate(timeout=LIMIT)
    assert 'interrupted' in out and not (tmp_path/'ended').exists(), (out, err)


@pytest.mark.slow
def test_f14_interrupted(tmp_path):
    p = subprocess.Popen([COMMAND, *RUN, *LEAN, '--runs', str(tmp_path), '-p', 'gan_steps=100000'], cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    def trains(): return any(load_json(f)['stage'] == 'GAN' for f in tmp_path.glob('*/*/progress.json'))
    until(lambda: trains() or p.poll() is not None, 'the training')
    os.killpg(p.pid, signal.SIGINT)
    _, err = p.communicate(timeout=LIMIT)
    assert p.returncode == 130 and 'interrupted' in err and 'Traceback' not in err, err
    record, = tmp_path.glob('*/*/run.json')
    assert load_json(record)['status'] == 'interrupted'


@pytest.mark.slow
def test_who_reads_may_stop_reading():
    p = subprocess.Popen([COMMAND, 'list', '--json'], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {'PYTHONUNBUFFERED': '1'})
    p.stdout.close()
    assert 'Traceback' not in p.stderr.read() and p.wait(LIMIT) == 141


def test_list():
    done = gansynth('list', '--json')
    found = json.loads(done.stdout)
    assert found['networks']['dcgan_generator']['parameters'] == 12_654_336 and found['networks']['dcgan_discriminator']['parameters'] == 11_032_064
    assert {'raw', 'gan_aug'} <= set(found['arms']) and {'phantom', 'medmnist', 'folder'} <= set(found['sources']) and {'smoke', 'quick', 'paper'} <= set(found['profiles']['nih_pneumonia'])
    assert 'dcgan_generator' in command('list').stdout


def test_report_without_runs(tmp_path):
    done = command('report', '--runs', tmp_path, '--out', tmp_path/'r')
    assert done.returncode == 1 and 'no complete run yet' in done.stderr and not (tmp_path/'r').exists()


@pytest.mark.slow
def test_folder_of_images_end_to_end(tmp_path):
    folder = image_folder(tmp_path/'bones', sound=60, broken=30)
    pd.DataFrame({'file': [f'{c}/{i}.png' for c, n in (('sound', 60), ('broken', 30)) for i in range(n)], 'patient_id': [f'{c}{i//2}' for c, n in (('s', 60), ('b', 30)) for i in range(n)]}).to_csv(tmp_path/'who.csv', index=False)
    done = gansynth(*RUN, *LEAN, '--data', 'bones', '--patients', 'who.csv', '--runs', 'out', '-p', 'gan_batch=4', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = load_json(tmp_path/done.stdout.strip()/'run.json')
    assert record['data']['classes'] == ['sound', 'broken'] and record['data']['counts']['test']['broken']['patients'] >= 1
    assert command('report', '--runs', 'out', '--out', 'page', cwd=tmp_path).returncode == 0
    assert not (tmp_path/'page'/'results'/'subgroups.csv').exists() and 'For whom?' not in (tmp_path/'page'/'index.html').read_text()   # nothing known, nothing said


@pytest.mark.slow
@needs_real_data
def test_real_images_end_to_end(tmp_path):
    d = SHARED/'pneumoniamnist'
    done = gansynth(*RUN, *LEAN, '--data', d/'pneumoniamnist.npz', '--runs', tmp_path) # the patient map stands beside it
    assert done.returncode == 0, done.stderr
    record = load_json(Path(done.stdout.strip())/'run.json')
    assert '96 of 5856 images left out: their patient is unknown.' in record['data']['source']['notes']


def test_f61_committed_results_name_no_path():
    for p in [*ROOT.glob('results/**/*.json'), *ROOT.glob('results/**/*.csv')]: assert not re.search(r'(?<![\w.:])/(home|root|work|Users|tmp)/', p.read_text()), p


def test_two_runs_of_one_seed_are_not_pooled():
    "After a change of the code the same seed lies there twice; the later run counts."
    def run(seed, key): return dict(parameters=dict(seed=seed, n=1), data=dict(hash='h'), profile='smoke', key=key)
    assert [r['key'] for r in collection.group([run(1, 'a'), run(0, 'b'), run(0, 'c')])] == ['c', 'a']


MANY = """import numpy as np, pandas as pd
from pathlib import Path
rng, arms, part = np.random.default_rng(seed), ARMS, {}
for name, k in (('valid_predictions', 90), ('predictions', 160)):
    rows = [dict(image_id=f'{name}{i}', patient_id=f'p{i}', label=i % 2, probability=1/(1+np.exp(-(s*(i % 2-.5)+rng.normal()))), arm=a, seed=seed) for a, s in arms.items() for i in range(k)]
    pd.DataFrame(rows).to_csv(Path(run_dir)/f'{name}.csv', index=False)
pd.DataFrame(dict(arm=list(arms), seed=seed, threshold=.5)).to_csv(Path(run_dir)/'thresholds.csv', index=False)
pd.DataFrame(dict(arm=list(arms), network='net', steps=STEPS, n_train=9, n_synthetic=0, lr=.1, best_epoch=1)).to_csv(Path(run_dir)/'arms.csv', index=False)
pd.DataFrame(dict(table='quality', arm=['gan_aug', 'real'], metric='KID[x]', value=[1.+seed**2, .1], low=[.5, 0], high=[1.5, .2], n=50)).to_csv(Path(run_dir)/'measures.csv', index=False)
(Path(run_dir)/'figures').mkdir(exist_ok=True)
for f in ('curve_a', 'generated_b', 'real'): (Path(run_dir)/'figures'/f'{f}.png').write_bytes(b'PNG')
finish(run_dir, generator={'ill': 'a'*64, 'well': None}, health={'ill': 'collapsed'}, audit={'ill': dict(verdict='FAIL', words='w', weights=dict(verdict='WEIGHTS', words='v'))})"""


@pytest.fixture
def in_process(monkeypatch):
    "Runs the cells in this process: the runner is tested above, and a kernel takes seconds to start."
    def execute(path, out, params, progress_file, timeout=None):
        space = {}
        first, *others = nbformat.read(path, as_version=4).cells
        exec(first.source, space); space.update(params)
        for c in others: exec(c.source, space)
        return 'ok', ''
    monkeypatch.setattr(studies, 'execute', execute)


def run_many(tiny_study, arms, steps=8, seeds=(0, 1, 2), weights='PASS'):
    runs = tiny_study(MANY.replace('ARMS', repr(arms)).replace('STEPS', repr(steps)).replace('WEIGHTS', weights))
    for s in seeds: studies.run_study('tiny', 'smoke', {'seed': s}, runs=runs)
    return runs


def test_questions_opponents_and_holm(tiny_study, in_process, tmp_path):
    "The opponent is chosen on validation; verdicts use Holm's p over all questions; the headline is the first."
    from gansynth.calibration import choose_base
    from gansynth.evaluation import contrast
    from gansynth.statistics import holm
    from gansynth.tables import Results
    studies.STUDIES['tiny']['questions'] = [('gan_aug', ('raw', 'oversample', 'never_run')), ('gan_aug', ('raw',)), ('gan_classic', ('raw',)), ('never_run', ('raw',))]
    runs = run_many(tiny_study, dict(raw=.4, oversample=1.6, gan_aug=2.6, gan_classic=.4, more=.1), [8, 8, 16, 8, 8])
    out = collection.collect('tiny', tmp_path/'out', runs, pixels=False)
    preds, valid = (collection.gather(collection.group(collection.complete_runs('tiny', runs)), f) for f in ('predictions.csv', 'valid_predictions.csv'))
    t, head = pd.read_csv(out/'contrasts.csv'), load_json(out/'contrast.json')
    assert choose_base(valid, ['raw', 'oversample']) == 'oversample'
    assert t[['arm', 'base']].values.tolist() == [['gan_aug', 'oversample'], ['gan_aug', 'raw'], ['gan_classic', 'raw']] and t.not_run[0] == 'never_run'
    want = contrast(preds, 'gan_aug', 'oversample', B=200)
    assert t.loc[0, ['difference', 'low', 'high', 'p']].tolist() == pytest.approx([want[k] for k in ('difference', 'low', 'high', 'p')], abs=1e-6)
    right = contrast(preds, 'gan_aug', 'oversample', 'accuracy', B=200, thresholds={k: .5 for k in preds.groupby(['arm', 'seed']).groups})
    assert t.accuracy_difference[0] == pytest.approx(right['difference'], abs=1e-6)
    assert t.p_holm.tolist() == pytest.approx(holm(t.p), abs=1e-6) and (t.p_holm > t.p).any()
    assert t.word[1] == 'helps' and t.word[2] != 'helps' and head['base'] == 'oversample' and head['verdict']['sentence'] == t.sentence[0]
    assert {p.name for p in (out/'figures').iterdir()} == {'curve_a.png', 'curve_roc.png', 'curve_answers.png'}       # an audit failed: no drawings
    r = Results(out)
    from gansynth.report import limits, make_report
    said = ' '.join(limits(r))
    assert 'Unequal training: gan_aug took 16 optimiser steps, oversample took 8.' in said and 'gan_classic took' not in said
    assert 'names never_run as opponents too' in said and 'ill: collapsed' in said and 'FAIL. ill: w' in said
    page = make_report(out, tmp_path/'index.html').read_text()
    assert page.count('class=failed') == 4 and page.count('class=failed>Privacy audit of the synthetic images: FAIL. ill: w. The answer still compares the arms') == 1
    assert '<li>Attack on the weights: PASS. ill: v.</li>' in page and 'Measures: quality (n = 50, 3 seeds' in page and page.index('<th>AUROC') < page.index('oversample</td>')       # five arms: a row each
    assert load_json(out/'provenance.json')['generators'] == ['ill: '+'a'*64]*3


def test_a_finding_of_before_is_removed_with_its_drawings(tiny_study, in_process, tmp_path):
    "Drawings that were collected while the audit passed leave the folder when it fails."
    runs = run_many(tiny_study, dict(raw=.4, gan_aug=1.), seeds=(0,))
    (tmp_path/'out'/'figures').mkdir(parents=True); (tmp_path/'out'/'figures'/'generated_b.png').write_bytes(b'PNG')
    assert not (collection.collect('tiny', tmp_path/'out', runs, pixels=False)/'figures'/'generated_b.png').exists()


@pytest.mark.parametrize('verdict', ['FAIL', 'described', None])
def test_the_attack_on_the_weights_is_a_sentence_of_its_own(tiny_study, in_process, tmp_path, verdict):
    "Red only for FAIL; records of before do not have it."
    from gansynth.report import make_report
    runs = run_many(tiny_study, dict(raw=.4, gan_aug=1.), seeds=(0,), weights=verdict or 'PASS')
    out = collection.collect('tiny', tmp_path/'out', runs)
    p = load_json(out/'provenance.json')
    if verdict is None:
        del p['audits'][0]['weights']
        save_json(p, out/'provenance.json')
    page = make_report(out, tmp_path/'index.html').read_text()
    assert ('class=failed>Attack on the weights: FAIL. ill: v. ' in page) == (verdict == 'FAIL')
    assert page.count('Attack on the weights') == (verdict is not None) and ('<li>Attack on the weights: described. ill: v.</li>' in page) == (verdict == 'described')
    assert page.count('Privacy audit of the synthetic images: FAIL. ill: w.') == 1


NAMES = ['normal', 'pneumonia']


@pytest.mark.parametrize('name, given', [('nih_pneumonia', dict(np=np)), ('bone_fracture', dict(names=NAMES, measure=None)), ('lung_optimizers', dict(names={'adam': 'Adam'})),
                                         ('covid_ct', dict(names=NAMES, n_synthetic=4, n_conditional=4, gans=dict.fromkeys(NAMES), synthesise=lambda g, n, seed, c: SimpleNamespace(class_name=c))),
                                         ('pneumonia_transfer', dict(names=NAMES, pool=[SimpleNamespace(class_name=c, take=lambda *a: None) for c in NAMES], gans={}))])
def test_a_failed_audit_stops_no_notebook(tmp_path, capsys, name, given):
    "The cell that audits, with an audit that fails images and discriminator: it prints both, keeps both and goes on."
    from gansynth.synthesis import audit_in_short
    from gansynth.tables import on_images, on_weights
    found = dict(verdict='FAIL', words='2 copies', weights=dict(verdict='FAIL', words='it knows them'))
    def examine(*args): return dict(audit=dict(found, checks=[]), fidelity=[dict(metric='KID', note='not measured')])
    def no_probe(*args, **how): raise UserError('not measured')
    space = {k: MagicMock() for k in 'synthetic sick parts healthy holdout drawn gans of seen unseen of_class held_out np measure trained'.split()}
    space |= dict(examine=examine, audit_in_short=audit_in_short, on_images=on_images, on_weights=on_weights, real_or_synthetic=no_probe, UserError=UserError,
                  save_json=save_json, run_dir=tmp_path, pd=pd, seed=0, n_audit=9) | given
    cells = [c.source for c in nbformat.read(ROOT/'nbs'/'studies'/f'{name}.ipynb', as_version=4).cells if c.cell_type == 'code']
    cell, = [c for c in cells if "run_dir/'audit.json'" in c]
    exec(cell, space)
    out = capsys.readouterr().out
    assert on_images(found) in out and on_weights(found['weights']) in out and 'it knows them' in (tmp_path/'audit.json').read_text()


def test_what_may_leave(tmp_path):
    "Small curves always, small drawings unless an audit failed, real images never."
    files = {n: tmp_path/f'{n}.png' for n in ('curve_a', 'generated_b', 'real', 'real_and_synthetic', 'curve_large')}
    for n, f in files.items(): f.write_bytes(b'0'*(100_000 if n == 'curve_large' else 9))
    for audit, want in ((None, {'curve_a', 'generated_b'}), (dict(verdict='PASS'), {'curve_a', 'generated_b'}), (dict(verdict='FAIL'), {'curve_a'}), ({'ill': dict(verdict='PASS'), 'well': dict(verdict='FAIL')}, {'curve_a'}),
                        (dict(verdict='PASS', weights=dict(verdict='FAIL')), {'curve_a', 'generated_b'}), (dict(verdict='FAIL', weights=dict(verdict='PASS')), {'curve_a'})):
        assert {n for n, f in files.items() if collection.may_leave(f, audit)} == want


def test_measures_are_pooled_as_scipy_would(tiny_study, in_process, tmp_path):
    from scipy.stats import t as student
    runs = run_many(tiny_study, dict(raw=.4, gan_aug=1.), seeds=(0,))
    one = pd.read_csv(collection.collect('tiny', tmp_path/'one', runs)/'measures.csv').iloc[0]
    assert one[['value', 'low', 'high', 'seeds', 'how']].tolist() == [1, .5, 1.5, 1, 'one run']
    for s in (1, 2): studies.run_study('tiny', 'smoke', {'seed': s}, runs=runs)
    t = pd.read_csv(collection.collect('tiny', tmp_path/'all', runs)/'measures.csv')
    v = np.array([1., 2, 5])
    assert t.iloc[0][['value', 'low', 'high']].tolist() == pytest.approx([v.mean(), *student.interval(.95, 2, loc=v.mean(), scale=v.std(ddof=1)/3**.5)], abs=1e-6)
    assert t.iloc[0][['n', 'seeds', 'how']].tolist() == [50, 3, 't over seeds'] and t.iloc[1][['low', 'high']].tolist() == pytest.approx([.1, .1])


QUALITY = """import pandas as pd
from pathlib import Path
v = dict(adam_full=(.5, .7, .3)[seed], rmsprop_full=(.2, .3, .1)[seed], constant=3.)
pd.DataFrame([dict(table='quality', arm=a, metric='KID[rand]', value=x, low=x-.1, high=x+.1, n=64) for a, x in v.items()]+[dict(table='quality', arm='adam_half', metric='IS[rand]', value=1.1, low=1., high=1.2, n=64)]).to_csv(Path(run_dir)/'measures.csv', index=False)
finish(run_dir)"""


def test_a_study_without_predictions(tiny_study, in_process, tmp_path):
    "Its headline is a paired t over seeds; one seed concludes nothing; report and front page cope."
    from scipy.stats import ttest_rel
    from gansynth.report import front_line, make_report
    from gansynth.tables import Results, published_table
    studies.STUDIES['tiny'] |= {k: studies.STUDIES['lung_optimizers'][k] for k in ('metric', 'better', 'published', 'published_n', 'published_constant', 'decimals', 'arms', 'questions')}
    runs = tiny_study(QUALITY)
    studies.run_study('tiny', 'smoke', runs=runs)
    one = load_json(collection.collect('tiny', tmp_path/'tiny', runs)/'contrast.json')
    assert one['verdict']['word'] == 'inconclusive' and '1 seed with a difference: no interval' in one['verdict']['sentence'] and one['low'] is None and one['difference'] == pytest.approx(-.3)
    for s in (1, 2): studies.run_study('tiny', 'smoke', {'seed': s}, runs=runs)
    out = collection.collect('tiny', tmp_path/'tiny', runs)
    head, test = load_json(out/'contrast.json'), ttest_rel([.2, .3, .1], [.5, .7, .3])
    assert [head['difference'], head['p'], head['low']] == pytest.approx([-.3, test.pvalue, test.confidence_interval().low]) and head['verdict']['word'] == 'helps' and head['metric'] == 'KID[rand]'
    assert not (out/'results.csv').exists()
    r = Results(out)
    assert published_table(r).loc['adam_half'].tolist() == ['IS', '1.0008', '1.1000 [1.1000, 1.1000]', '- / 64', '- / -']
    page = make_report(out, tmp_path/'index.html').read_text()
    assert 'lower is better' in page and 'Measures: quality' in page and 'only opponent' not in page and '<h2>Results' not in page
    line = front_line('tiny', tmp_path)
    assert line['answer'].startswith('**helps**: rmsprop_full against adam_full, KID[rand] -0.3 [') and line['n'] == '64' and line['constant predictor'] == '-'


def test_nothing_to_collect(tiny_study, in_process, tmp_path):
    runs = tiny_study('finish(run_dir)')
    studies.run_study('tiny', 'smoke', runs=runs)
    with pytest.raises(UserError, match='neither predictions.csv nor measures.csv'): collection.collect('tiny', tmp_path/'out', runs)
    assert not (tmp_path/'out').exists()


def test_front_table_with_and_without_results(tmp_path):
    from gansynth.catalogue import STUDIES
    from gansynth.report import front_table, study_table
    empty = front_table(tmp_path).splitlines()
    assert len([l for l in empty if 'no committed result yet' in l]) == len(STUDIES) == 5 and 'No committed result' in study_table('nih_pneumonia', tmp_path)
    shutil.copytree(ROOT/'results'/'nih_pneumonia', tmp_path/'nih_pneumonia')
    head = load_json(tmp_path/'nih_pneumonia'/'contrast.json')
    line = next(l for l in front_table(tmp_path).splitlines() if 'nih_pneumonia' in l)
    assert f"{head['difference']:+.3f} [{head['low']:+.3f}, {head['high']:+.3f}]" in line and f"{head['n_images']} of {head['n_patients']} patients" in line
    save_json(head | dict(verdict=dict(word='hurts', sentence='')), tmp_path/'nih_pneumonia'/'contrast.json')
    assert 'no benefit shown: it hurts' in front_table(tmp_path)


def test_committed_results_still_load(tmp_path):
    "Of before there were questions: no contrasts.csv, measures.csv, arms.csv."
    from gansynth.report import make_report
    from gansynth.tables import Results, published_table
    for folder in {p.parent for p in ROOT.glob('results/*/contrast.json')}:
        assert '<h2>Published and measured' in make_report(folder, tmp_path/'index.html').read_text() and len(published_table(Results(folder)))


def test_published_table(tiny_study, in_process, tmp_path):
    from gansynth.tables import Results, published_table
    runs = run_many(tiny_study, dict(raw=.4, gan_aug=1.), seeds=(0, 1))
    r = Results(collection.collect('tiny', tmp_path/'out', runs))
    auroc, accuracy = published_table(r).reset_index().to_dict('records')
    mean = r.table[(r.table.seed == 'mean') & (r.table.arm == 'raw')].set_index('metric')
    assert (auroc['arm'], auroc['published'], accuracy['published']) == ('raw', '0.7000', '0.80')
    assert accuracy['measured [95 % interval]'] == '{value:.3f} [{low:.3f}, {high:.3f}]'.format(**mean.loc['accuracy'])
    assert accuracy['n (published / here)'] == '99 / 160' and accuracy['constant predictor (published / here)'] == '0.600 / 0.500'


@pytest.mark.parametrize('study', ['covid_ct', 'bone_fracture', 'lung_optimizers', 'pneumonia_transfer'])
def test_every_study_can_be_named(tmp_path, study, capsys):
    from gansynth.cli import main
    for command in (('report', study, '--out', tmp_path/'r'), ('collect', study, '--to', tmp_path/'r')):
        assert main([*map(str, command), '--runs', str(tmp_path)]) == 1 and f'start one with `gansynth run {study}`' in capsys.readouterr().err
