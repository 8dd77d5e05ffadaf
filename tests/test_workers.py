"Many tasks side by side: death, damage, interruption, company, and the same bytes everywhere."
import importlib.util, json, os, random, re, signal, subprocess, sys, time, tracemalloc, zipfile
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest

import tasks_for_workers as t
from conftest import LIMIT, until
from gansynth.core import UserError
from gansynth.pools import Loky
from gansynth.processes import Terminated
from gansynth.shelf import Missing, Shelf
from gansynth.workers import Board, Task, let_end, run_all

HERE = str(Path(__file__).parent)
TASKS = str(Path(HERE)/'tasks_for_workers.py')


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    "Workers of every kind find the tasks."
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join([HERE, str(Path(HERE).parent), os.environ.get('PYTHONPATH', '')]))


def files(folder): return {p.name: p.read_bytes() for p in Path(folder).glob('[!.]*.npz')}

def alive(processes):
    "Those that still run, without the one that cleans up after Python and ends with its owner."
    def runs(p):
        try: return p.is_running() and p.status() != 'zombie' and 'resource_tracker' not in ' '.join(p.cmdline())
        except psutil.Error: return False
    return [p for p in processes if runs(p)]

def gone(processes): return until(lambda: not alive(processes), 'the end of all workers')

def children(): return alive(psutil.Process().children(recursive=True))

@pytest.fixture
def start():
    "Function that starts Python with arguments, in a process group of its own, killed with the test."
    begun = []
    def begin(*args, stderr=subprocess.PIPE):
        command = [sys.executable, *map(str, args)]
        begun.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, start_new_session=True))
        return begun[-1]
    yield begin
    for p in begun:
        if p.poll() is None: os.killpg(p.pid, signal.SIGKILL)
        p.communicate()

@pytest.fixture
def study(start):
    "Function that starts a run of t.grid(**args) on a shelf in a process of its own."
    return lambda folder, stderr=subprocess.PIPE, **args: start(TASKS, folder, json.dumps(args), stderr=stderr)

def faulty(*faults): return [Task(f'k{i}', 'cell', f'cell {i}', args=dict(seed=i, fault=f, nap=.1)) for i, f in enumerate(faults)]


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp('undisturbed')
    assert {o.status for o in run_all(t.grid(), t.do, Shelf(folder), backend='here')} == {'done'}
    return files(folder)


@pytest.mark.parametrize('fault', ['exit', 'kill'])
def test_f30_one_of_four_dies(tmp_path, fault):
    before = children()
    out = run_all(faulty('', fault, '', ''), t.do, Shelf(tmp_path), 4)
    assert [o.status for o in out] == ['done', 'failed', 'done', 'done'] and out[1].error == 'its process died, perhaps for lack of memory'
    assert set(files(tmp_path)) == {'k0.npz', 'k2.npz', 'k3.npz'} and gone([p for p in children() if p not in before])
    again = run_all(faulty('', '', '', ''), t.do, Shelf(tmp_path), 4)
    assert [o.status for o in again] == ['found', 'done', 'found', 'found'] and not [*tmp_path.glob('*.lock')]


def test_two_of_six_die_and_the_innocent_are_not_blamed(tmp_path):
    out = run_all(faulty('', 'exit', '', '', 'kill', ''), t.do, Shelf(tmp_path), 2)
    assert [o.status for o in out] == ['done', 'failed', 'done', 'done', 'failed', 'done']


@pytest.mark.parametrize('backend', ['here', 'threading', 'loky'])
def test_f23_failures_are_sentences_and_the_rest_goes_on(tmp_path, backend):
    tasks = [*faulty('raise', 'error', 'quit', 'nothing', ''), Task('d', 'cell', 'needs a failed one', ('k0',)), Task('e', 'cell', 'needs that', ('d', 'k4'))]
    out = run_all(tasks, t.do, Shelf(tmp_path), 2, backend)
    assert [o.status for o in out] == ['failed']*4+['done', 'left out', 'left out']
    assert [o.error for o in out[:3]] == ['no images of class B: add some', "KeyError: 'absent'", 'SystemExit: 4'] and 'nothing was written' in out[3].error
    assert out[5].error == 'cell 0 failed' and "return {}['absent']" in out[1].trace and set(files(tmp_path)) == {'k4.npz'}


def test_f33_nothing_is_done_twice(tmp_path):
    tasks, log = t.grid(log=str(tmp_path/'log')), tmp_path/'log'
    shelf = Shelf(tmp_path/'s')
    run_all(tasks, t.do, shelf, 2)
    assert sorted(log.read_text().split()) == sorted(x.key for x in tasks)
    assert {o.status for o in run_all(tasks, t.do, shelf, 2)} == {'found'}
    extra = [Task('new', 'cell', 'new', ('set1',), dict(seed=9, log=str(log)))]
    assert [o.status for o in run_all(tasks+extra+extra, t.do, shelf, 2)] == ['found']*8+['done']*2
    assert log.read_text().split()[8:] == ['new']


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(4))
def test_f14_interrupted_at_a_random_moment(tmp_path, undisturbed, study, seed):
    rng, shelf, log = random.Random(seed), tmp_path/'s', tmp_path/'log'
    number = rng.choice([signal.SIGINT, signal.SIGTERM])
    for _ in range(2):
        log.write_text('')
        p = study(shelf, nap=.15, log=str(log))
        until(lambda: log.read_text() or p.poll() is not None, 'the first task')
        time.sleep(rng.random()*.6)
        workers = psutil.Process(p.pid).children(recursive=True) if p.poll() is None else []
        p.send_signal(number)
        _, said = p.communicate(timeout=LIMIT)
        if 'stopped: ' in said: assert p.returncode in ((-2, 130) if number == signal.SIGINT else (143,)), said
        else: assert set(files(shelf)) == set(undisturbed), said        # it came after the last task
        assert gone(workers)
        assert all(b == undisturbed[k] for k, b in files(shelf).items())
    assert study(shelf).wait(LIMIT) == 0
    assert files(shelf) == undisturbed and not [*shelf.glob('.*')]


TRAININGS = """
import sys; sys.path.insert(0, {here!r})
import tasks_for_workers as t
from gansynth.pools import Loky
from gansynth.shelf import Shelf
from gansynth.workers import Task, run_all
Loky.grace = float({grace!r})
tasks = [Task(f'k{{i}}', 'set', 'gan', args=dict(saved=f'{folder}/saved{{i}}', saving={saving})) for i in range(2)]
run_all(tasks, t.slow_to_stop, Shelf('{folder}/shelf'), 2)
"""

@pytest.fixture
def trainings(start, tmp_path):
    "Function that starts two trainings and returns when both run: their process, and its workers."
    def begin(saving, grace='inf'): # seconds that a checkpoint takes; seconds that the run gives them
        p = start('-c', TRAININGS.format(here=HERE, folder=tmp_path, saving=saving, grace=grace))
        until(lambda: p.poll() is not None or len([*tmp_path.glob('*.begun')]) == 2, 'two trainings')
        assert p.poll() is None, p.communicate()
        return p, psutil.Process(p.pid).children(recursive=True)
    return begin


@pytest.mark.slow
@pytest.mark.parametrize('number, send', [(signal.SIGTERM, os.kill), (signal.SIGTERM, os.killpg), (signal.SIGINT, os.killpg)])
def test_f15_running_tasks_save_their_state(tmp_path, trainings, number, send):
    """To the run alone, or to all its processes, as a terminal's Ctrl-C and a scheduler do. The run
    tells its workers in the middle of their checkpoints, and several times."""
    p, workers = trainings(saving=3)
    send(p.pid, number)
    _, said = p.communicate(timeout=LIMIT)
    assert p.returncode in ((-2, 130) if number == signal.SIGINT else (143,)), said
    assert {f.name for f in tmp_path.glob('saved?')} == {'saved0', 'saved1'}, said
    assert gone(workers)


def test_a_second_ctrl_c_ends_a_run_at_once(tmp_path, trainings):
    "Checkpoints that take for ever are not waited for."
    p, workers = trainings(saving=10**6)
    os.killpg(p.pid, signal.SIGINT)
    until(lambda: len([*tmp_path.glob('*.told')]) == 2, 'both workers told')
    os.killpg(p.pid, signal.SIGINT)
    _, said = p.communicate(timeout=LIMIT)
    assert p.returncode in (-2, 130) and 'stopped at once' in said, (p.returncode, said)
    assert gone(workers) and not [*tmp_path.glob('saved?')]


@pytest.mark.slow
def test_the_grace_of_a_polite_end_is_limited(tmp_path, trainings):
    p, workers = trainings(saving=10**6, grace=2)
    p.send_signal(signal.SIGTERM)
    _, said = p.communicate(timeout=LIMIT)
    assert p.returncode == 143 and 'stopping: 2 running tasks' in said, (p.returncode, said)
    assert gone(workers)


@pytest.fixture
def held_back(tmp_path, monkeypatch):
    "(pool of one process that cannot begin, function that lets it): Python starts when a file is there."
    (tmp_path/'sitecustomize.py').write_text(f"""import os, time
while not os.path.exists({str(tmp_path/'go')!r}): time.sleep(.02)""")
    monkeypatch.setenv('PYTHONPATH', str(tmp_path), prepend=os.pathsep)
    pool = Loky(1, '')
    yield pool, (tmp_path/'go').touch
    (tmp_path/'go').touch()
    pool.close()


def test_a_worker_that_is_just_starting_survives_both_signals(held_back):
    "Its death would break the pool, and joblib would kill those that save their state."
    pool, go = held_back
    f = pool.submit(os.getpid)
    pid, = pool.pool._processes
    for number in (signal.SIGINT, signal.SIGTERM): os.kill(pid, number)
    go()
    assert f.result(LIMIT) == pid


def test_a_call_that_begins_after_the_end_was_asked_for_is_ended(held_back):
    pool, go = held_back
    f = pool.submit(partial(time.sleep, LIMIT))
    pool.hurry()
    go()
    pool.grace = float('inf')
    let_end(pool, flying := {f: 'k'}, lambda ended: [flying.pop(f) for f in ended])
    assert isinstance(f.exception(), Terminated)


def test_a_worker_that_somebody_terminates_costs_nobody_else(tmp_path):
    "Its task is tried again, in the same two processes."
    tasks = [*faulty('', '', ''), Task('k3', 'cell', 'cell 3', args=dict(fault='terminated once', marker=str(tmp_path/'m')))]
    out = run_all(tasks[::-1], t.do, Shelf(tmp_path/'s'), 2)
    assert {o.status for o in out} == {'done'} and (tmp_path/'m').exists()
    assert len({o.worker for o in out}) <= 2


@pytest.mark.slow
def test_killed_parent_leaves_nobody_and_the_next_call_goes_on(tmp_path, undisturbed, study):
    p = study(tmp_path, cells=dict(nap=10**6))
    def at_work(): return [f for f in tmp_path.glob('cell*.lock') if f.stat().st_size]
    until(lambda: p.poll() is not None or len(at_work()) == 2, 'two cells')
    workers = alive(psutil.Process(p.pid).children(recursive=True))
    p.kill(); p.wait()
    assert len(workers) == 2 and gone(workers) and set(files(tmp_path)) == {'set0.npz', 'set1.npz'}
    done = study(tmp_path)
    out, said = done.communicate(timeout=LIMIT)
    assert out.split().count('found') == 2 and out.split().count('done') == 6 and files(tmp_path) == undisturbed
    assert said.count('taken over from pid') == 2 and not [*tmp_path.glob('.*')]


@pytest.mark.slow
def test_f29_two_at_once(tmp_path, undisturbed, study):
    "The second run leaves alone what the first works on, and does the rest."
    shelf, log, words, go = tmp_path/'s', tmp_path/'log', tmp_path/'words', tmp_path/'go'
    one = study(shelf, log=str(log), wait=str(go))
    until(lambda: log.exists() and len(log.read_text().split()) == 2, 'two tasks of the first run')
    with open(words, 'w') as f: two = study(shelf, stderr=f, log=str(log), wait=str(go))
    until(lambda: 'the others come first' in words.read_text() or two.poll() is not None, 'the second run')
    go.touch()
    said = [r.communicate(timeout=LIMIT)[0] for r in (one, two)]
    assert [one.returncode, two.returncode] == [0, 0], (said, words.read_text())
    assert sorted(log.read_text().split()) == sorted(x.key for x in t.grid()) and files(shelf) == undisturbed
    assert sum(o.split().count('done') for o in said) == 8 and 'the others come first' in words.read_text()


def test_f11_full_disk_keeps_what_was_there(tmp_path):
    code = f'''
import sys; sys.path.insert(0, {HERE!r})
import tasks_for_workers as t, resource, signal
from gansynth.workers import *
from gansynth.shelf import Shelf
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for o in run_all([Task(f'k{{n}}', 'set', str(n), args=dict(n=n)) for n in (10, 10**6, 20)], t.big, Shelf({str(tmp_path)!r}), 2, 'threading'): print(o.status, o.error)
'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert [x.split()[0] for x in lines] == ['done', 'failed', 'done'] and 'cannot write' in lines[1] and 'k1000000' in lines[1], done
    assert set(os.listdir(tmp_path)) == {'k10.npz', 'k20.npz'}


def test_f13_shelf_that_is_a_file(tmp_path):
    (tmp_path/'a').write_text('I am a file')
    with pytest.raises(UserError, match='is a file'): Shelf(tmp_path/'a')
    with pytest.raises(UserError, match='cannot write'): run_all(t.grid(), t.do, Shelf(tmp_path/'a'/'b'), backend='here')


@pytest.mark.parametrize('damage', [lambda b: b'', lambda b: b[:len(b)//2], lambda b: b'<html>', lambda b: b[:-5]+bytes([b[-5] ^ 255])+b[-4:], lambda b: b[:2000]+bytes([b[2000] ^ 1])+b[2001:]])
def test_f03_damaged_result_is_made_again(tmp_path, undisturbed, damage, capsys):
    run_all(t.grid(), t.do, Shelf(tmp_path), backend='here')
    for name in ('set0.npz', 'cell4.npz'): (tmp_path/name).write_bytes(damage(undisturbed[name]))
    out = run_all(t.grid(), t.do, Shelf(tmp_path), 2, 'threading')
    assert [o.task.key for o in out if o.status == 'done'] == ['cell4', 'set0'] and files(tmp_path) == undisturbed
    assert capsys.readouterr().err.count('was damaged') == 2


def test_what_is_needed_is_read_to_its_last_byte_before(tmp_path):
    shelf = Shelf(tmp_path)
    shelf.write('big', {}, {'x': np.zeros((400, 400))})
    b = bytearray((tmp_path/'big.npz').read_bytes()); b[len(b)//2] ^= 1; (tmp_path/'big.npz').write_bytes(b)
    big = Task('big', 'set', 'big', args=dict(seed=1))
    assert run_all([big], t.do, shelf, backend='here')[0].status == 'found'            # nobody reads it
    assert [o.status for o in run_all([big, Task('c', 'cell', 'c', ('big',))], t.do, shelf, backend='here')] == ['done', 'done']


def test_f54_foreign_files_are_refused_and_left(tmp_path):
    shelf = Shelf(tmp_path)
    np.savez(tmp_path/'a.npz', x=np.zeros(3))
    shelf.write('b', {'n': 1}); b = (tmp_path/'b.npz').read_bytes().replace(b'gansynth shelf 1', b'gansynth shelf 2')
    with zipfile.ZipFile(tmp_path/'b.npz') as z: head = z.read('record.npy').replace(b'shelf 1', b'shelf 2')
    with zipfile.ZipFile(tmp_path/'b.npz', 'w') as z: z.writestr('record.npy', head)
    shelf.write('c', {}); os.rename(tmp_path/'c.npz', tmp_path/'d.npz')
    marker = tmp_path/'marker'
    class Evil:
        def __reduce__(self): return os.system, (f'touch {marker}',)
    shelf.write('e', {}, {'x': np.zeros(1)})
    with zipfile.ZipFile(tmp_path/'e.npz') as z: head = z.read('record.npy')
    with zipfile.ZipFile(tmp_path/'e.npz', 'w') as z:
        z.writestr('record.npy', head)
        with z.open('x.npy', 'w') as f: np.lib.format.write_array(f, np.array([Evil()], dtype=object))
    before = files(tmp_path)
    for key, words in dict(a='no result of gansynth', b='gansynth shelf 2', d='of that key', e='may hold').items():
        with pytest.raises(UserError, match=words) as e: shelf.read(key)
        assert not isinstance(e.value, Missing)
    assert files(tmp_path) == before and not marker.exists()


def test_keys_stay_in_their_folder(tmp_path):
    for key in ('../a', 'a/b', '', 'a.b', '.a', 'ä', 'a'*300, 'a\n'):
        with pytest.raises(UserError, match='use letters'): Shelf(tmp_path).write(key, {})


@pytest.mark.parametrize('url', ['memory://workers-{}', 'file://{}'])
def test_addresses(tmp_path, undisturbed, url):
    shelf = Shelf(url.format(tmp_path if 'file' in url else 'a/b'))
    run_all(t.grid(), t.do, shelf, 2, 'threading')
    assert shelf.keys() == {k[:-4] for k in undisturbed} and {o.status for o in run_all(t.grid(), t.do, shelf, backend='here')} == {'found'}
    assert np.array_equal(shelf.read('cell0', ['x'])[1]['x'], Shelf_of(undisturbed, tmp_path/'u').read('cell0')[1]['x'])
    if 'memory' in url:
        with pytest.raises(UserError, match='one process only'): run_all(t.grid(), t.do, shelf, 2)
        with pytest.raises(UserError, match='nosuch'): Shelf('nosuch://x')


def Shelf_of(content, folder):
    folder.mkdir()
    for k, b in content.items(): (folder/k).write_bytes(b)
    return Shelf(folder)


@pytest.mark.parametrize('backend', ['threading', 'loky', *(pytest.param(b, marks=pytest.mark.slow) for b in ('dask', 'ray', 'spark'))])
def test_the_same_bytes_everywhere(tmp_path, undisturbed, backend, monkeypatch):
    library = dict(dask='distributed', ray='ray', spark='pyspark').get(backend)
    if library and not importlib.util.find_spec(library): pytest.skip(f'{library} is not installed')
    if backend == 'spark': monkeypatch.delenv('PYTHONPATH')       # its Java may have been started long before, with other surroundings
    before = children()
    tasks = [*t.grid(), *([] if backend == 'threading' else faulty('exit', 'raise'))]
    try: out = run_all(tasks, t.do, Shelf(tmp_path), 2, backend)
    except UserError as e:
        if backend == 'ray' and 'does not start here' in str(e): pytest.skip(str(e))       # it gives up when its own services take more than 15 s
        raise
    assert {o.status for o in out[:8]} == {'done'} and files(tmp_path) == undisturbed, out
    if backend != 'threading':
        assert [o.status for o in out[8:]] == ['failed', 'failed'] and out[9].error == 'no images of class B: add some'
        assert 'its process died' in out[8].error, out[8].error
    assert backend == 'spark' or gone([p for p in children() if p not in before])         # Spark keeps its Java process for the next session


def test_missing_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'ray', None)
    with pytest.raises(UserError, match=r'pip install gansynth\[ray\]'): run_all(t.grid(), t.do, Shelf(tmp_path), 2, 'ray')


@pytest.mark.slow
def test_2000_tasks_leave_the_memory_flat(tmp_path):
    def peak(n):
        tasks = [Task(f'k{i}', 'cell', f'cell {i}', args=dict(nap=0)) for i in range(n)]
        tracemalloc.start()
        out = run_all(tasks, t.do, Shelf(tmp_path/str(n)), 2)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert {o.status for o in out} == {'done'}
        return size/2**20
    small, large = peak(200), peak(2000)
    assert large-small < 5, (small, large)


def test_workers_are_light():
    code = 'import sys, gansynth.workers; sys.exit(bool({"torch", "fastai", "matplotlib", "pandas", "dask", "ray", "fsspec"} & {*sys.modules}))'
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0


def test_board(monkeypatch, capsys, tmp_path):
    monkeypatch.delenv('GANSYNTH_PROGRESS', raising=False)
    run_all(t.grid(), t.do, Shelf(tmp_path/'a'), 2, 'threading', Board(every=0))
    out, err = capsys.readouterr()
    assert not out and err.splitlines()[-1].startswith('cell 6/6, set 2/2; ')
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True)
    run_all([*t.grid(), *faulty('raise')], t.do, Shelf(tmp_path/'b'), 2, 'threading', Board())
    err = capsys.readouterr().err
    assert re.search(r'\033\[\d+A', err) and 'waiting' in err and 'now: set 0, set 1' in err and 'time left not known yet' in err     # drawn again in its place
    monkeypatch.setenv('GANSYNTH_PROGRESS', 'off')
    run_all(t.grid(), t.do, Shelf(tmp_path/'c'), 2, 'threading', Board(0))
    assert capsys.readouterr() == ('', '')
    monkeypatch.setenv('GANSYNTH_PROGRESS', str(tmp_path/'p.json'))
    run_all(t.grid(), t.do, Shelf(tmp_path/'d'), 2, 'threading', Board())
    assert json.loads((tmp_path/'p.json').read_text())['counts']['set']['done'] == 2
