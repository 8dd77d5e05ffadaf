"""GAN training against the loop that one would copy and against fastai's GANLearner, taking turns in one run: `make bench`.

A row is {case, variant, reference, ratio, target, limit, rounds}: ratio = time of the reference / time of the variant, median over rounds; memory rows hold MB instead.
Run with one thread (OMP_NUM_THREADS=1) on a processor that others use too: two threads collapse when a core is taken away."""
import json, os, platform, subprocess, sys, tempfile, time
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from gansynth.core import environment, has_bf16, root, save_json
from gansynth.data import index_batches, load
from gansynth.gan_training import GraphedStep, identity_of, step_seed
from gansynth.gans import draw, noise, to_unit
from gansynth.generators import PAIRS, build_pair
from gansynth.recipes import Training, find_recipe, gan_step

DEVICE, PEAKS = torch.device('cuda' if torch.cuda.is_available() else 'cpu'), {}
NETWORKS = {'study 1, 64 px': ('dcgan', 64), 'study 4, 28 px': ('lung_adam', 28)}
TARGETS = {'study 1, 64 px': ((2.5, 3.2), (2.5, None)), 'study 4, 28 px': ((2.5, 4.2), (3.3, 5.8))} if DEVICE.type == 'cpu' else {'study 1, 64 px': ((10, None), (None, None)), 'study 4, 28 px': ((None, None), (None, None))}


class Files(Dataset):
    "PNG files decoded one by one, as tutorials do."
    def __init__(self, files): self.files = files
    def __len__(self): return len(self.files)
    def __getitem__(self, i): return torch.from_numpy(np.asarray(Image.open(self.files[i]).convert('L'), 'float32'))[None]/127.5-1


def forever(dl):
    while True: yield from dl


def plain(recipe, size, data, files, bs):
    "The loop to copy: DataLoader over files, BCELoss on probabilities, three backward passes, .item() for the log, float32."
    r = find_recipe(recipe)
    torch.manual_seed(0)
    G, D = (m.to(DEVICE) for m in build_pair(r.pair, size))
    opt_g, opt_d = (torch.optim.Adam(m.parameters(), r.lr, (r.beta1, r.beta2)) for m in (G, D))
    bce, batches = nn.BCELoss(), forever(DataLoader(Files(files), bs, shuffle=True, drop_last=True))
    def step():
        real = next(batches).to(DEVICE)
        ones, zeros = torch.ones(bs, device=DEVICE), torch.zeros(bs, device=DEVICE)
        D.zero_grad(); a = bce(D(real).sigmoid(), ones); a.backward()
        fake = G(torch.randn(bs, 100, device=DEVICE))
        b = bce(D(fake.detach()).sigmoid(), zeros); b.backward(); opt_d.step()
        G.zero_grad(); c = bce(D(fake).sigmoid(), ones); c.backward(); opt_g.step()
        return a.item()+b.item(), c.item()
    return lambda n: [step() for _ in range(n)]


def fastai_learner(recipe, size, data, files, bs):
    "fastai's GANLearner as its documentation has it: images from files, one critic batch for one generator batch."
    from fastai.vision.all import DataBlock, ImageBlock, IndexSplitter, Normalize, PILImageBW, TransformBlock
    from fastai.vision.gan import FixedGANSwitcher, GANLearner, InvisibleTensor
    r = find_recipe(recipe)
    torch.manual_seed(0)
    G, D = build_pair(r.pair, size)
    soft = nn.functional.softplus
    learners = {}
    def run(n):
        if n not in learners:
            some = (files*(2*n*bs//len(files)+1))[:2*n*bs]
            block = DataBlock((TransformBlock, ImageBlock(PILImageBW)), get_x=lambda f: InvisibleTensor(torch.randn(100)), get_items=lambda s: some, splitter=IndexSplitter([]), batch_tfms=Normalize.from_stats(torch.tensor([.5]), torch.tensor([.5])))
            dls = block.dataloaders(some, bs=bs, num_workers=0, device=DEVICE)
            learners[n] = GANLearner(dls, G, D, gen_loss_func=lambda pred, out, target: soft(-pred).mean(), crit_loss_func=lambda real, fake: soft(-real).mean()+soft(fake).mean(), switcher=FixedGANSwitcher(n_crit=1, n_gen=1), show_img=False)
        with learners[n].no_bar(), learners[n].no_logging(): learners[n].fit(1, r.lr)
    return run


def ours(recipe, size, data, files, bs, precision='auto'):
    "What train_gan does in a step."
    t = Training(identity_of(data, recipe, bs, 0, DEVICE, precision)[0], DEVICE)
    images, stream, advance, at = torch.from_numpy(data.images).to(DEVICE), index_batches(len(data), bs, 0), GraphedStep(), iter(range(10**9))
    def step():
        xb = to_unit(images[torch.from_numpy(next(stream)).to(DEVICE)]).contiguous(memory_format=torch.channels_last)
        torch.manual_seed(step_seed(0, next(at)))
        return advance(t, xb)
    return lambda n: [step() for _ in range(n)]


def clocked(run, n):
    if DEVICE.type == 'cuda': torch.cuda.synchronize()
    t = time.perf_counter(); run(n)
    if DEVICE.type == 'cuda': torch.cuda.synchronize()
    return time.perf_counter()-t


def turns(variants, n, rounds): # {name: run}; steps in a round
    "Seconds of each variant in each round."
    for v in variants.values(): clocked(v, n)
    return [{k: clocked(v, n) for k, v in variants.items()} for _ in range(rounds)]


def row(case, variant, reference, times, target=None, limit=None):
    ratios = sorted(t[reference]/t[variant] for t in times)
    print(f'{case:34} {variant:26} {median(ratios):6.2f}x ({ratios[0]:.2f} .. {ratios[-1]:.2f}) of {reference}', flush=True)
    return dict(case=case, variant=variant, reference=reference, ratio=round(median(ratios), 3), target=target, limit=limit, rounds=len(times))


def peaks(n=1024):
    "GFLOP/s of a matrix product and of a convolution, by precision: what the machine can do at all."
    a, x, w = torch.randn(n, n, device=DEVICE), torch.randn(16, 128, 32, 32, device=DEVICE), torch.randn(128, 128, 3, 3, device=DEVICE)
    out = {}
    for name, dtype in (('float32', torch.float32), ('bfloat16', torch.bfloat16)):
        b, y, k = a.to(dtype), x.to(dtype, memory_format=torch.channels_last), w.to(dtype, memory_format=torch.channels_last)
        for what, f, flop in (('matrix product', lambda: b @ b, 2*n**3), ('convolution', lambda: nn.functional.conv2d(y, k, padding=1), 2*16*32*32*128*128*9)):
            run = lambda m: [f() for _ in range(m)]
            run(3); out[f'{what}, {name}'] = round(10*flop/min(clocked(run, 10) for _ in range(5))/1e9, 1)
    return out


def flop(recipe, size):
    "GFLOP of one image in a step pair, counted by torch: forward and backward of both networks as gan_step does them."
    from torch.utils.flop_counter import FlopCounterMode
    b = 4
    data = load('phantom:n_patients=20', size=size).positives.take(np.arange(4))
    run = ours(recipe, size, data, [], b, 'float32')
    with FlopCounterMode(display=False) as c: run(1)
    return c.get_total_flops()/b/1e9


def memory(name, recipe, size, bs):
    "Peak MB of a process of its own that does two steps."
    code = f'import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import bench_gan; bench_gan.child({name!r}, {recipe!r}, {size}, {bs})'
    return int(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split()[-1])


def child(name, recipe, size, bs):
    with tempfile.TemporaryDirectory() as d:
        data, files = material(Path(d), size, bs)
        VARIANTS[name](recipe, size, data, files, bs)(2)
    print(int(torch.cuda.max_memory_allocated()/2**20) if DEVICE.type == 'cuda' else int(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1])//1024)


def material(folder, size, at_least, times=1):
    "Phantom images, repeated up to a number, as an Images and as PNG files."
    data = load('phantom:n_patients=200', size=size).positives
    data = data.take(np.arange(max(at_least, 256)*times) % len(data))
    files = [folder/f'{i}.png' for i in range(len(data))]
    for f, x in zip(files, data.images): Image.fromarray(x).save(f)
    return data, files


def drift(recipe, size, n=10, bs=16):
    "Relative distance of all weights from the float32 arithmetic after n steps, in the precision that is chosen here."
    data = load('phantom:n_patients=60', size=size).positives
    def weights(precision):
        t = Training(identity_of(data, recipe, bs, 0, DEVICE, precision)[0], DEVICE)
        for i, idx in zip(range(n), index_batches(len(data), bs, 0)):
            torch.manual_seed(i)
            gan_step(t, to_unit(torch.from_numpy(data.images[idx])).to(DEVICE).contiguous(memory_format=torch.channels_last))
        return torch.cat([p.detach().flatten() for m in (t.G, t.D) for p in m.parameters()])
    ref = weights('float32')
    return ((weights('auto')-ref).norm()/ref.norm()).item()


VARIANTS = {'plain loop from files': plain, 'fastai GANLearner from files': fastai_learner, 'ours': ours, 'ours, float32': partial(ours, precision='float32')}


def measured(rounds=5):
    for case, (recipe, size) in NETWORKS.items():
        for bs, n in ((64, 2 if size == 64 else 10), (400, 1 if size == 64 else 3)):
            with tempfile.TemporaryDirectory() as d:
                data, files = material(Path(d), size, bs)
                used = {k: f for k, f in VARIANTS.items() if k != 'ours, float32' or bs == 64} # the largest batch takes most of the time
                times = turns({k: f(recipe, size, data, files, bs) for k, f in used.items()}, n, rounds)
            where, pairs = f'{case}, batch {bs}', {k: median(bs*n/t[k] for t in times) for k in used}
            print(where, {k: f'{v:.0f} images/s' for k, v in pairs.items()}, f'{flop(recipe, size):.2f} GFLOP an image')
            (a, b) = TARGETS[case]
            yield row(where, 'ours', 'plain loop from files', times, *a)
            yield row(where, 'ours', 'fastai GANLearner from files', times, *b)
            if 'ours, float32' in used: yield row(where, 'ours, float32', 'plain loop from files', times)
            yield dict(case=where, variant='share of the peak (convolution)', reference=f'{max(PEAKS.values())} GFLOP/s', ratio=round(pairs['ours']*flop(recipe, size)/max(PEAKS.values()), 3), target=None, limit=1, rounds=rounds)
            if bs == 64:
                for k in ('plain loop from files', 'fastai GANLearner from files', 'ours'): yield dict(case=f'{where}, peak memory', variant=k, reference='MB', ratio=memory(k, recipe, size, bs), target=None, limit=None, rounds=1)
        with tempfile.TemporaryDirectory() as d:
            runs = {f'{k}x the images': ours(recipe, size, material(Path(d), size, 64, k)[0], [], 64) for k in (1, 2, 4)}
        times = turns(runs, 2 if size == 64 else 10, rounds)
        for k in (2, 4): yield row(f'{case}, a step', f'{k}x the images', '1x the images', times, target=1)
        yield dict(case=f'{case}, weights after 10 steps', variant='precision chosen here', reference='float32', ratio=round(drift(recipe, size), 4), target=None, limit=None, rounds=1)
        G = PAIRS[find_recipe(recipe).pair].generator(size, 100).to(DEVICE).eval()
        fast = G.to(memory_format=torch.channels_last)
        print(f'{case}: {256/clocked(lambda n: draw(fast, noise(256, 100, 0)), 1):.0f} images/s drawn')


def main(measured, name): # function that yields rows, once PEAKS is known; file below results/, without .json
    "Measure, print and write; a contended machine is marked."
    before = os.getloadavg()[0]
    PEAKS.update(peaks())
    machine = environment(DEVICE) | dict(processor=platform.processor(), bfloat16=has_bf16(DEVICE), load_before=round(before, 2), contended=bool(before > .7 and DEVICE.type == 'cpu'), gflops=PEAKS)
    print(json.dumps(machine, indent=1))
    rows = list(measured())
    print('CONTENDED: do not quote' if machine['contended'] else '')
    save_json(dict(machine=machine, rows=rows), root()/'results'/(f'{name}.json' if DEVICE.type == 'cpu' else f'{name}_gpu.json'))


if __name__ == '__main__': main(measured, 'bench_gan')
