"Training survives: F01 to F20, each fault made and met. What is killed goes on to the same bits."
import json, multiprocessing, os, random, shutil, signal, subprocess, sys, time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import LIMIT, until
from safetensors.torch import load_file, save_file
from torch import nn

from gansynth import checkpoints, gan_training, generators, processes, recipes
from gansynth.checkpoints import last_checkpoint
from gansynth.core import UserError, file_hash, load_json, save_json
from gansynth.data import load
from gansynth.gan_training import train_gan
from gansynth.gans import load_gan, sample, save_gan

# Dropout, augmentation that adapts, an averaged generator, smoothing, two optimisers with moments: everything that can be forgotten in a checkpoint.
RECIPE = dict(gan='tiny', bs=8, seed=3, precision='float32', nz=16, ema=.9, augment='adaptive', smoothing=.1, lr=2e-4, snapshots=3)


def tiny_generator(size, nz): return nn.Sequential(nn.Linear(nz, 392), nn.BatchNorm1d(392), nn.Unflatten(1, (8, 7, 7)), nn.ConvTranspose2d(8, 8, 4, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 1, 4, 2, 1), nn.Tanh())
def tiny_discriminator(size): return nn.Sequential(nn.Conv2d(1, 8, 4, 2, 1), nn.LeakyReLU(.2), nn.Dropout(.3), nn.Conv2d(8, 8, 4, 2, 1), nn.LeakyReLU(.2), nn.Flatten(), nn.Linear(392, 1), nn.Flatten(0))


def register():
    "Networks so small that a checkpoint takes milliseconds."
    generators.PAIRS['tiny'] = generators.Pair(tiny_generator, tiny_discriminator, (28,))
    generators.SIZES['tiny'] = (28,)
    recipes.RECIPES['tiny'] = recipes.Recipe('tiny')


@pytest.fixture(autouse=True, scope='module')
def tiny():
    register()
    torch.set_num_threads(1)
    yield
    for d in (generators.PAIRS, generators.SIZES, recipes.RECIPES): d.pop('tiny')


@pytest.fixture(scope='module')
def data(): return load('phantom:n_patients=30', size=28).positives


def bits(gan): return {k: v.clone() for n, m in (('G', gan.generator), ('D', gan.discriminator)) for k, v in ((f'{n}.{k}', v) for k, v in m.state_dict().items())} | {'history': torch.from_numpy(gan.history)}
def same(a, b): return bits(a).keys() == bits(b).keys() and all(torch.equal(v, bits(b)[k]) for k, v in bits(a).items()) and a.hash == b.hash and all((a.grids[k] == b.grids[k]).all() for k in a.grids.keys() & b.grids.keys())
def state(folder): return last_checkpoint(folder)[0]


def job(data, folder, steps, every, started): # what the killed process does
    torch.set_num_threads(1)
    register()
    if not every: # dwell in the middle of writing, where a kill does most harm
        real = checkpoints.save_file
        checkpoints.save_file = lambda tensors, path: (real(tensors, path), time.sleep(.02))
    step = gan_training.gan_step
    def first(*a): started.set(); return step(*a)      # the clock of the killer starts when training does
    gan_training.gan_step = first
    train_gan(data, steps, folder=folder, save_every=every, **RECIPE)


@pytest.mark.slow
def test_f01_f02_fifty_kills_change_nothing(tmp_path, data, monkeypatch):
    "SIGKILL at random moments, between steps and in the middle of writing: five runs of 300 steps, each killed ten times; three of them save after every step."
    steps, rng, clean, half, killed = 300, random.Random(0), tmp_path/'clean', 0, 0
    reference = train_gan(data, steps, folder=clean, save_every=0, **RECIPE)
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['torch._dynamo', __name__])         # so that a child trains at once
    monkeypatch.setenv('PYTHONPATH', str(Path(__file__).parent), prepend=os.pathsep)
    for k in range(5):
        folder, kills = tmp_path/f'run{k}', 0
        while True:
            started = context.Event()
            p = context.Process(target=job, args=(data, folder, steps, (0, .02)[k > 2], started))
            p.start(); assert started.wait(LIMIT)
            p.join(rng.uniform(.02, .5) if kills < 10 else LIMIT)
            if not p.is_alive(): break
            p.kill(); p.join()
            kills, half = kills+1, half+any(q.name.startswith('.') or q.suffix == '.safetensors' and not Path(f'{q}.json').exists() for q in folder.glob('*'))
        assert p.exitcode == 0
        killed += kills
        a, b = state(folder), state(clean)
        assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a), 'another end than the undisturbed run'
        assert not list(folder.glob('.*')), 'a temporary file was left'
        assert same(train_gan(data, steps, folder=folder, **RECIPE), reference)
        shutil.rmtree(folder)
    assert killed and half, 'no kill in the middle of a write'


@pytest.mark.parametrize('forgotten', ['nothing', 'optimiser', 'random numbers', 'average', 'augmentation', 'order of images', 'layout of moments'])
def test_f01_what_is_forgotten_shows(data, tmp_path, monkeypatch, forgotten):
    "The comparison is not vacuous: leave one thing out of the checkpoint and the end is another."
    reference = train_gan(data, 12, folder=tmp_path/'clean', **RECIPE)
    clean, folder = state(tmp_path/'clean'), tmp_path/'stopped'
    full = recipes.to_tensors
    def partly(t):
        drop = {'optimiser': 'opt_g.', 'average': 'ema.', 'augmentation': 'state.p'}.get(forgotten)
        out = full(t)
        if drop == 'ema.': return out | {k: torch.zeros_like(v) if v.is_floating_point() else v for k, v in out.items() if k.startswith(drop)}
        if drop == 'state.p': return out | {'state.p': torch.ones(())}
        return {k: v for k, v in out.items() if not drop or not k.startswith(drop)}
    monkeypatch.setattr(gan_training, 'to_tensors', partly)
    if forgotten == 'random numbers': monkeypatch.setattr(gan_training.torch, 'manual_seed', lambda seed: None)
    if forgotten == 'order of images': monkeypatch.setattr(gan_training, 'index_batches', lambda n, bs, seed, start=0: (np.random.permutation(n)[:bs] for _ in range(1000)))
    if forgotten == 'layout of moments': monkeypatch.setattr(recipes.torch, 'empty_like', lambda p: torch.empty(p.shape))
    def stop(t):
        if t.step == 4: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): train_gan(data, 12, folder=folder, save_every=0, watch=stop, **RECIPE)
    assert last_checkpoint(folder)[1]['step'] == 3
    monkeypatch.setattr(gan_training, 'to_tensors', full)
    equal = same(train_gan(data, 12, folder=folder, **RECIPE), reference) and all(torch.equal(v, state(folder)[k]) for k, v in clean.items())
    assert equal == (forgotten == 'nothing')


@pytest.fixture
def two(tmp_path, data):
    "A folder with the checkpoints of steps 5 and 6."
    train_gan(data, 6, folder=tmp_path/'gan', save_every=0, **RECIPE)
    return tmp_path/'gan'


def newest(folder): return sorted(folder.glob('step-*.safetensors'))[-1]


@pytest.mark.parametrize('how', ['raises', 'half'])
def test_f02_a_writer_that_dies(two, data, monkeypatch, how):
    real = checkpoints.save_file
    def bad(tensors, path):
        Path(path).write_bytes(b'x'*1000)
        raise RuntimeError('the machine died')
    before = {p.name: p.read_bytes() for p in two.glob('step-*')}
    monkeypatch.setattr(checkpoints, 'save_file', bad)
    (two/'.999.step-000000007.safetensors').write_bytes(b'half')
    with pytest.raises(RuntimeError): train_gan(data, 8, folder=two, save_every=0, **RECIPE)
    assert {p.name: p.read_bytes() for p in two.glob('step-*')} == before and not list(two.glob('.*'))
    monkeypatch.setattr(checkpoints, 'save_file', real)
    assert same(train_gan(data, 8, folder=two, **RECIPE), train_gan(data, 8, **RECIPE))


@pytest.mark.parametrize('harm', ['cut to half', 'one bit', 'empty', 'html', 'random'])
def test_f03_f04_f05_damaged_checkpoint_falls_back(two, data, capsys, harm):
    p = newest(two)
    raw = bytearray(p.read_bytes())
    if harm == 'one bit': raw[-100] ^= 1
    p.write_bytes({'cut to half': raw[:len(raw)//2], 'one bit': raw, 'empty': b'', 'html': b'<html>404</html>', 'random': os.urandom(500)}[harm])
    gan = train_gan(data, 8, folder=two, **RECIPE)
    said = capsys.readouterr().err
    assert p.name in said and 'is damaged' in said and f"{len(p.read_bytes()) if p.exists() else ''}" in said and 'expected' in said and load_json(f'{newest(two)}.json')['step'] == 8
    assert same(gan, train_gan(data, 8, **RECIPE))


@pytest.mark.parametrize('content', [b'', b'<html>404</html>', None])
def test_f05_a_file_that_is_no_checkpoint(tmp_path, content):
    f = tmp_path/'a.safetensors'
    f.write_bytes(os.urandom(300) if content is None else content)
    with pytest.raises(UserError, match='not a gansynth generator: .*a.safetensors'): load_gan(f)
    (tmp_path/'a.safetensors.json').write_text('[]')
    with pytest.raises(UserError, match='not a gansynth generator'): load_gan(f)


def test_f06_checkpoint_with_nan(two, data, capsys):
    p = newest(two)
    t = load_file(p); name = next(k for k in t if k.startswith('G.') and t[k].is_floating_point()); t[name].view(-1)[0] = float('nan'); save_file(t, p)
    meta = load_json(f'{p}.json') | dict(sha256=file_hash(p)); del meta['papers']
    save_json(meta, f'{p}.json')
    gan = train_gan(data, 8, folder=two, **RECIPE)
    assert f'non-finite values in {name}' in capsys.readouterr().err and np.isfinite(gan.history).all()


def test_f07_weights_of_another_network(tmp_path, data):
    a = train_gan(data, 2, **RECIPE)
    save_gan(a, tmp_path/'g.safetensors')
    meta = load_json(tmp_path/'g.safetensors.json')
    meta['lineage']['config']['nz'] = 50
    save_json(meta, tmp_path/'g.safetensors.json')
    with pytest.raises(UserError, match='g.safetensors.json was changed after it was written'): load_gan(tmp_path/'g.safetensors')
    del meta['papers']
    save_json(meta, tmp_path/'g.safetensors.json')
    with pytest.raises(UserError, match=r"belong to another network: shape: .*\(.*16.*\) for \(.*50.*\)"): load_gan(tmp_path/'g.safetensors')
    with pytest.raises(UserError, match="missing: .*The file was made with .*'tiny'.*the network here with .*'dcgan'"): train_gan(data, 2, 'dcgan', bs=8, start=a)


def test_f08_other_settings_or_data(two, data, capsys):
    before = {p.name: p.read_bytes() for p in two.glob('step-*')}
    for change, words in ((dict(lr=1e-3), 'lr=0.0002 there, 0.001 here'), (dict(bs=4), 'bs=8 there, 4 here')):
        with pytest.raises(UserError, match=words): train_gan(data, 8, folder=two, **RECIPE | change)
    with pytest.raises(UserError, match='pixels='): train_gan(data.take(np.arange(len(data)-1)), 8, folder=two, **RECIPE)
    assert {p.name: p.read_bytes() for p in two.glob('step-*')} == before
    gan = train_gan(data, 8, folder=two, allow_config_change=True, **RECIPE | dict(lr=1e-3))
    assert gan.lineage['changed'] == ['lr'] and not same(gan, train_gan(data, 8, **RECIPE))
    assert train_gan(data, 8, folder=two, **RECIPE | dict(lr=1e-3)).lineage['changed'] == ['lr']      # it stays on record


class Bomb:
    def __init__(self, marker): self.marker = marker
    def __reduce__(self): return os.system, (f'touch {self.marker}',)


@pytest.mark.parametrize('suffix', ['.pt', '.pkl', '.safetensors'])
def test_f09_nothing_is_executed(tmp_path, suffix):
    f, marker = tmp_path/f'g{suffix}', tmp_path/'marker'
    torch.save({'w': Bomb(marker)}, f)
    (tmp_path/f'g{suffix}.json').write_text(json.dumps(dict(format='gansynth tensors 1', kind='generator', bytes=f.stat().st_size, sha256=file_hash(f), lineage={})))
    with pytest.raises(UserError, match='not a gansynth generator.*only .safetensors files that gansynth wrote'): load_gan(f)
    assert not marker.exists()


CHILD = """
import resource, signal, sys
from gansynth.data import load
from gansynth.gan_training import train_gan
from gansynth.core import UserError
import torch; torch.set_num_threads(1)
sys.path.insert(0, {here!r}); import test_training_faults; test_training_faults.register()
data = load('phantom:n_patients=30', size=28).positives
{before}
try: train_gan(data, {steps}, folder=sys.argv[1], save_every={every}, **{recipe})
except UserError as e: sys.exit(f'UserError: {{e}}')
except KeyboardInterrupt as e: print(e, file=sys.stderr); sys.exit(130) # as the command line does; left alone, Python forgets the reason where an exit handler compiles code
"""


def start(folder, **kw):
    code = CHILD.format(steps=kw.pop('steps', 8), every=kw.pop('every', 0), before=kw.pop('before', ''), here=str(Path(__file__).parent), recipe=repr(RECIPE | kw))
    return subprocess.Popen([sys.executable, '-c', code, str(folder)], stderr=subprocess.PIPE, text=True, env=os.environ | {'GANSYNTH_PROGRESS': 'off'},
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))      # also where the tests themselves were started with SIGINT ignored


@pytest.mark.slow
def test_f11_disk_full(two, data):
    before = {p.name: p.read_bytes() for p in two.glob('step-*')}
    p = start(two, before="signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))")
    err = p.communicate(timeout=LIMIT)[1]
    assert p.returncode == 1 and err.count('UserError') == 1 and 'cannot write' in err and 'step-000000007.safetensors' in err and 'Free some space' in err, err
    assert {q.name: q.read_bytes() for q in two.glob('step-*')} == before and not list(two.glob('.*'))


def test_f12_folder_that_cannot_be_written(tmp_path, data, monkeypatch):
    steps = []
    def refuse(*a, **k): raise PermissionError(13, 'Permission denied')
    monkeypatch.setattr(Path, 'write_text', refuse)
    with pytest.raises(UserError, match='cannot write .*Permission denied.*choose a folder that you may write to'): train_gan(data, 2, folder=tmp_path/'x', watch=steps.append, **RECIPE)
    assert not steps


@pytest.mark.parametrize('kind', ['file', 'below a file', 'loop'])
def test_f13_folder_that_is_none(tmp_path, data, kind):
    (tmp_path/'file').write_text(''); (tmp_path/'loop').symlink_to(tmp_path/'loop')
    steps = []
    with pytest.raises(UserError, match='cannot write'): train_gan(data, 2, folder=tmp_path/{'file': 'file', 'below a file': 'file/a/b', 'loop': 'loop'}[kind], watch=steps.append, **RECIPE)
    assert not steps


def begun(folder, p):
    "Wait until the first checkpoint is there."
    until(lambda: [*Path(folder).glob('step-*.json')] or p.poll() is not None, 'the first checkpoint')
    assert p.poll() is None, p.communicate()[1]


@pytest.mark.slow
@pytest.mark.parametrize('number,code', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_f14_f15_a_polite_end(tmp_path, data, number, code):
    p = start(tmp_path, steps=1_000_000, every=.5)
    begun(tmp_path, p)
    p.send_signal(number)
    err = p.communicate(timeout=LIMIT)[1]
    assert p.returncode == code, (p.returncode, err)
    tensors, facts = last_checkpoint(tmp_path)
    assert not list(tmp_path.glob('.*')) and len(tensors['state.history']) == facts['step'] > 0
    if code == 130: assert f"stopped after step {facts['step']} of 1000000; the same call goes on from there" in err       # saved at the very step it stopped
    k = facts['step']+3
    assert same(train_gan(data, k, folder=tmp_path, **RECIPE | dict(snapshots=1)), train_gan(data, k, **RECIPE | dict(snapshots=1)))


def test_f14_a_second_ctrl_c_stops_at_once():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match='at once'), processes.stoppable() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop() == signal.SIGINT
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_f16_loss_that_is_no_number(two, data, monkeypatch):
    real, drawn = gan_training.gan_step, []
    def poisoned(t, *a):
        out = real(t, *a)
        return out*float('nan') if t.step == 6 else out           # the seventh step
    monkeypatch.setattr(gan_training, 'gan_step', poisoned)
    with pytest.raises(UserError, match='diverged.* at step 7'): train_gan(data, 9, folder=two, save_every=0, watch=lambda t: drawn.append(t.step), **RECIPE)
    assert last_checkpoint(two)[1]['step'] == 6 and max([0, *drawn]) <= 6


def test_f17_gradient_that_is_no_number(two, data, monkeypatch):
    real = recipes.update
    def poisoned(m, opt, loss):
        opt.register_step_pre_hook(lambda o, a, k: [p.grad.fill_(float('inf')) for p in list(m.parameters())[2:3]] and None)
        return real(m, opt, loss)
    monkeypatch.setattr(recipes, 'update', poisoned)
    with pytest.raises(UserError, match=r'non-finite values in [GD]\.\S+ \(the GAN diverged at step 7\)'): train_gan(data, 9, folder=two, save_every=0, **RECIPE)
    assert last_checkpoint(two)[1]['step'] == 6


def test_f16_no_image_of_a_broken_generator(data):
    gan = train_gan(data, 1, **RECIPE)
    next(gan.generator.parameters()).data.fill_(float('nan'))
    with pytest.raises(UserError, match='not finite: its training diverged'): sample(gan, 3)


@pytest.mark.parametrize('error', [torch.OutOfMemoryError('CUDA out of memory'), RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory")])
def test_f19_out_of_memory(two, data, monkeypatch, error):
    before = {p.name: p.read_bytes() for p in two.glob('step-*')}
    def full(*a): raise error
    monkeypatch.setattr(gan_training, 'gan_step', full)
    with pytest.raises(UserError, match='out of memory at batch size 8: try 4'): train_gan(data, 9, folder=two, save_every=0, **RECIPE)
    assert {p.name: p.read_bytes() for p in two.glob('step-*')} == before
    def other(*a): raise RuntimeError('something else')
    monkeypatch.setattr(gan_training, 'gan_step', other)
    with pytest.raises(RuntimeError, match='something else'): train_gan(data, 9, folder=two, **RECIPE)


def test_f20_a_gpu_that_is_not_there(data):
    if torch.cuda.is_available(): pytest.skip('there is one')
    from gansynth.core import pick_device
    with pytest.raises(UserError, match='finds no GPU'): pick_device('cuda')


def test_finished_work_is_not_done_again(tmp_path, data, monkeypatch):
    monkeypatch.setenv('GANSYNTH_CACHE', str(tmp_path))
    first = train_gan(data, 4, folder='cache', **RECIPE)
    def never(*a): raise AssertionError('trained again')
    monkeypatch.setattr(gan_training, 'gan_step', never)
    assert same(train_gan(data, 4, folder='cache', **RECIPE), first)
    with pytest.raises(AssertionError): train_gan(data, 4, folder='cache', **RECIPE | dict(seed=4))


HOLD = """
import os, time
from gansynth import gan_training
step = gan_training.gan_step
def held(t, *a):
    while t.step == 2 and not os.path.exists({go!r}): time.sleep(.02)
    return step(t, *a)
gan_training.gan_step = held
"""


@pytest.mark.slow
def test_two_processes_in_one_folder(tmp_path, data):
    "The second waits, then finds the work done."
    folder, go = tmp_path/'gan', tmp_path/'go'
    a = start(folder, before=HOLD.format(go=str(go))); begun(folder, a)
    b = start(folder)
    assert any('waiting for another process' in line for line in b.stderr)      # read until it says so, or ends
    go.touch()
    for p in (a, b): assert p.communicate(timeout=LIMIT) and p.returncode == 0
