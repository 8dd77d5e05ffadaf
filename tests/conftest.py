"What the tests share: small sources with one fault each, and the command line, in a process of its own or in this one."
import io, os, shutil, subprocess, sys, tempfile, time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
COMMAND = str(Path(sys.executable).with_name('gansynth'))
SHARED = ROOT.parent/'shared'/'data'
LIMIT = 300 # seconds after which a test gives up waiting: an emergency brake, never a measurement

os.environ['GANSYNTH_CACHE'] = tempfile.mkdtemp(prefix='gansynth-cache-')     # for this process and those it starts

needs_real_data = pytest.mark.skipif(not (SHARED/'pneumoniamnist').is_dir(), reason='no real images beside the checkout (../shared/data)')


def pytest_configure(config):
    config.addinivalue_line('markers', "slow: make test-slow runs it, make test leaves it out")
    config.addinivalue_line('markers', "site: builds the documentation; -m 'not site' leaves it out")
    for library in ('ibis', 'pyspark', 'fastai', 'torch'): config.addinivalue_line('filterwarnings', f'ignore:::{library}')     # their own, about versions to come


WHOLE_STUDIES = {'smoke_run', 'covid_run', 'transfer_run', 'fracture_run'}     # fixtures that run a published study, half a minute and more each


def pytest_collection_modifyitems(items):
    "A test on a whole study is slow; make test runs the notebooks of all studies as chapters."
    for item in items:
        if WHOLE_STUDIES & set(item.fixturenames): item.add_marker('slow')


def gansynth(*args, cwd=None, **env):
    "Run the command line; returns the finished process."
    return subprocess.run([COMMAND, *map(str, args)], cwd=cwd or ROOT, capture_output=True, text=True, env=os.environ | env, timeout=600)


def command(*args, cwd=ROOT, **env):
    "The same in this process, which spares the start: for what is decided before anything is trained, and for reports."
    from gansynth.cli import main
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as m, redirect_stdout(out), redirect_stderr(err):
        m.chdir(cwd)
        for k, v in env.items(): m.setenv(k, v)
        code = main([*map(str, args)])
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())


def until(happened, what): # function; words for the message
    "Wait until `happened()` is true and return what it gave; AssertionError after LIMIT seconds."
    end = time.monotonic()+LIMIT
    while not (found := happened()):
        assert time.monotonic() < end, f'still waiting for {what}'
        time.sleep(.02)
    return found


def snapshot(folder):
    "{path: bytes} of every file below a folder."
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(Path(folder).rglob('*')) if p.is_file()}


def medmnist_arrays(n=(60, 12, 12), seed=0):
    "Arrays of a MedMNIST-format file with random images."
    rng = np.random.default_rng(seed)
    out = {}
    for part, k in zip(('train', 'val', 'test'), n):
        out[f'{part}_images'] = rng.integers(0, 256, (k, 28, 28), 'uint8')
        out[f'{part}_labels'] = rng.integers(0, 2, (k, 1), 'uint8')
    return out


def image_folder(path, seed=0, **classes):
    "A folder with a folder of random PNG files for each class: name=number."
    rng = np.random.default_rng(seed)
    for name, n in classes.items():
        (path/name).mkdir(parents=True)
        for i in range(n): Image.fromarray(rng.integers(0, 256, (32, 32), 'uint8')).save(path/name/f'{i}.png')
    return path


def small_classifier():
    "One channel, BatchNorm and dropout, 8 features before the last of two linear layers."
    import torch
    from torch import nn
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Dropout(.5), nn.Linear(8, 2))


@pytest.fixture(scope='session')
def smoke_run(tmp_path_factory):
    "One study through papermill at smoke size: (folder of all runs, folder of the run). Made once for all processes of pytest; each has its own copy."
    mine = tmp_path_factory.getbasetemp()
    shared, runs = mine.parent if 'PYTEST_XDIST_WORKER' in os.environ else mine, tmp_path_factory.mktemp('runs')
    with FileLock(shared/'smoke.lock'): done = gansynth('run', 'nih_pneumonia', '--profile', 'smoke', '--runs', shared/'smoke')
    assert done.returncode == 0, done.stderr
    run = Path(done.stdout.strip())
    shutil.copytree(shared/'smoke', runs, dirs_exist_ok=True)
    return runs, runs/run.relative_to(shared/'smoke')


@pytest.fixture(autouse=True, scope='session')
def _remove_cache():
    yield
    shutil.rmtree(os.environ['GANSYNTH_CACHE'], ignore_errors=True)
