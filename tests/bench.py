"""Speed, as ratios of variants that take turns in one run: `make bench`.

A round gives every variant a few steps; the ratio is taken within a round, and the median over rounds is printed with its range."""
import os, platform, sys, tempfile, time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from gansynth.classifiers import TensorDL, grey_resnet34, make_learner
from gansynth.core import environment, has_bf16, set_seed
from gansynth.data import index_batches, load
from gansynth.gan_training import gan_step, to_unit
from gansynth.generators import dcgan_discriminator, dcgan_generator

ROUNDS, DEVICE = 5, torch.device('cuda' if torch.cuda.is_available() else 'cpu')


class Files(Dataset):
    "PNG files decoded one by one, as tutorials do."
    def __init__(self, files): self.files = files
    def __len__(self): return len(self.files)
    def __getitem__(self, i): return torch.from_numpy(np.asarray(Image.open(self.files[i]).convert('L'), 'float32'))[None]/127.5-1


def forever(dl):
    while True: yield from dl


def networks(size, fused=False, channels_last=False):
    set_seed(0)
    nets = [m.to(DEVICE, memory_format=torch.channels_last if channels_last else torch.contiguous_format) for m in (dcgan_generator(size), dcgan_discriminator(size))]
    return nets, [torch.optim.Adam(m.parameters(), 2e-4, (.5, .999), **({'fused': True} if fused else {})) for m in nets]


def tutorial(files, size, bs):
    "The plain loop: files, DataLoader, BCELoss on probabilities, .item() for the log."
    (G, D), (opt_g, opt_d) = networks(size)
    bce, batches = nn.BCELoss(), forever(DataLoader(Files(files), bs, shuffle=True, drop_last=True))
    def step():
        real = next(batches).to(DEVICE)
        ones, zeros = torch.ones(bs, device=DEVICE), torch.zeros(bs, device=DEVICE)
        D.zero_grad(); a = bce(D(real).sigmoid(), ones); a.backward()
        fake = G(torch.randn(bs, 100, device=DEVICE))
        b = bce(D(fake.detach()).sigmoid(), zeros); b.backward(); opt_d.step()
        G.zero_grad(); c = bce(D(fake).sigmoid(), ones); c.backward(); opt_g.step()
        return a.item()+b.item(), c.item()
    return step


def ours(images, size, bs, precision):
    (G, D), opts = networks(size, fused=True, channels_last=True)
    real, stream = torch.from_numpy(images).to(DEVICE), index_batches(len(images), bs, 0)
    def step():
        xb = to_unit(real[torch.from_numpy(next(stream)).to(DEVICE)]).contiguous(memory_format=torch.channels_last)
        return gan_step(G, D, *opts, xb, torch.randn(bs, 100, device=DEVICE), precision)
    return step


def classifier_from_files(files, labels, size, bs):
    "fastai as its documentation has it: ImageDataLoaders from files."
    from fastai.vision.all import ImageDataLoaders, Learner, CrossEntropyLossFlat, PILImageBW
    dls = ImageDataLoaders.from_lists(files[0].parent, files, labels.tolist(), bs=bs, num_workers=0, img_cls=PILImageBW, device=DEVICE)
    return learner_step(Learner(dls, grey_resnet34(), CrossEntropyLossFlat()))


def classifier_resident(images, labels, bs, precision):
    return learner_step(make_learner((images, labels), (images[:bs], labels[:bs]), bs, 10_000, DEVICE, precision))


def learner_step(learn):
    "One training step of a fastai Learner, callbacks included, as a function."
    learn.create_opt(); learn.model.train(); learn.model.to(DEVICE)
    batches = forever(learn.dls.train)
    def step():
        xb, yb = next(batches)
        learn.loss_func(learn.model(xb), yb).backward()
        learn.opt.step(); learn.opt.zero_grad()
    return step


def clocked(step, n):
    if DEVICE.type == 'cuda': torch.cuda.synchronize()
    t = time.perf_counter()
    for _ in range(n): step()
    if DEVICE.type == 'cuda': torch.cuda.synchronize()
    return time.perf_counter()-t


def compare(title, variants, bs, n): # {name: step}, the first is the yardstick; images in a step; steps in a round
    warm = {k: clocked(s, 2) for k, s in variants.items()}
    rounds = [{k: clocked(s, n) for k, s in variants.items()} for _ in range(ROUNDS)]
    first = next(iter(variants))
    print(f'\n{title} (batch {bs}, {ROUNDS} rounds of {n} steps)\n{"":34}{"images/s: median (min, max)":>32}{"ratio: median (min, max)":>30}{"ms a step":>12}{"warm-up s":>11}')
    for k in variants:
        rate, ratio = ([f(r) for r in rounds] for f in (lambda r: bs*n/r[k], lambda r: r[first]/r[k]))
        print(f'{k:34}{median(rate):14.0f} ({min(rate):.0f}, {max(rate):.0f}){"":8}{median(ratio):8.2f} ({min(ratio):.2f}, {max(ratio):.2f}){1000*bs/median(rate):16.0f}{warm[k]:11.1f}')


def drift(images, size, bs=16, n=10):
    "Largest relative distance of all weights from the float32 tutorial arithmetic after n steps."
    def weights(precision, channels_last, fused):
        (G, D), opts = networks(size, fused, channels_last)
        rng = torch.Generator().manual_seed(0)
        for idx, _ in zip(index_batches(len(images), bs, 0), range(n)):
            xb = to_unit(torch.from_numpy(images[idx])).to(DEVICE)
            gan_step(G, D, *opts, xb, torch.randn(bs, 100, generator=rng).to(DEVICE), precision)
        return torch.cat([p.detach().flatten() for m in (G, D) for p in m.parameters()])
    ref = weights('float32', False, False)
    for name, args in (('ours, float32', ('float32', True, True)), ('ours, bfloat16', ('bfloat16', True, True))):
        print(f'weights of {name} after {n} steps at {size} px: relative distance {((weights(*args)-ref).norm()/ref.norm()).item():.1e} from plain float32')


if __name__ == '__main__':
    env, load1 = environment(DEVICE), os.getloadavg()[0]
    print(f"{env['device']} {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, native bfloat16: {has_bf16(DEVICE)}, load before: {load1:.1f}")
    print(', '.join(f'{k} {v}' for k, v in env['versions'].items() if v))
    if load1 > .7 and DEVICE.type == 'cpu': print('CONTENDED: other processes are running, do not quote these figures')
    precisions = ('float32', 'bfloat16')
    with tempfile.TemporaryDirectory() as d:
        for size, bs, n in ((64, 32, 2), (32, 64, 4)):
            data = load('phantom:n_patients=120', size=size)
            files = [Path(d)/f'{size}-{i}.png' for i in range(len(data))]
            for f, x in zip(files, data.images): Image.fromarray(x).save(f)
            compare(f'DCGAN, {size} px, real images a step pair', {'plain loop, files': tutorial(files, size, bs)} | {f'ours, {p}': ours(data.images, size, bs, p) for p in precisions}, bs, n)
            drift(data.images, size)
            compare(f'ResNet34, {size} px', {'fastai from files': classifier_from_files(files, data.labels, size, bs)} | {f'ours, {p}': classifier_resident(data.images, data.labels, bs, p) for p in precisions}, bs, n)
