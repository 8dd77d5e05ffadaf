"""Classifier training against fastai from image files and against a plain torchvision loop, taking turns in one run: `make bench`.

A row is {case, variant, reference, ratio, target, limit, rounds} as in bench_gan.py; memory rows hold MB, the row `outside the network` a share of the time."""
import subprocess, sys, tempfile
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from bench_gan import DEVICE, Files, forever, main, row, turns
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from gansynth.classifier_training import Arm, Plan, Stage, Told, fit_stage, make_learner
from gansynth.classifiers import Precision, build_classifier
from gansynth.core import pick_precision, set_seed
from gansynth.data import load

PLAN, BS = Plan(lr=1e-3), 64
CASES = {'ResNet-18, 64 px': ('resnet18', 64, 4), 'ResNet-34, 64 px': ('resnet34', 64, 3), 'ResNet-18, 28 px': ('resnet18', 28, 8), 'study 2\'s CNN, 32 px': ('covid_cnn', 32, 20), 'study 3\'s CNN, 28 px': ('fracture_cnn', 28, 40)} # network, pixels, steps in a round
TARGETS = {'ResNet-18, 64 px': 2.2, 'study 2\'s CNN, 32 px': 5, 'study 3\'s CNN, 28 px': 5} if DEVICE.type == 'cpu' else {}


class Labelled(Files):
    "PNG files and their labels, decoded one by one."
    def __init__(self, files, labels): super().__init__(files); self.labels = labels
    def __getitem__(self, i): return super().__getitem__(i), self.labels[i]


def plain(name, data, files, steps=None):
    "The loop to copy: DataLoader over files, Adam, .item() for the log, float32."
    set_seed(0)
    net, loss = build_classifier(name, data.images.shape[1]).to(DEVICE).train(), nn.CrossEntropyLoss()
    opt, batches = torch.optim.Adam(net.parameters(), 1e-3), forever(DataLoader(Labelled(files, data.labels), BS, shuffle=True, drop_last=True))
    def step():
        x, y = (t.to(DEVICE) for t in next(batches))
        opt.zero_grad()
        l = loss(net(x), y); l.backward(); opt.step()
        return l.item()
    return lambda n: [step() for _ in range(n)]


def from_files(name, data, files):
    "fastai as its documentation has it: ImageDataLoaders from files, one-cycle."
    from fastai.vision.all import CrossEntropyLossFlat, ImageDataLoaders, Learner, PILImageBW, RocAucBinary, accuracy
    set_seed(0)
    net, learners = build_classifier(name, data.images.shape[1]), {}
    def run(n):
        if n not in learners: # n training batches and one of validation
            some = np.arange((n+1)*BS) % len(files)
            dls = ImageDataLoaders.from_lists(files[0].parent, [files[i] for i in some], data.labels[some].tolist(), valid_pct=1/(n+1), bs=BS, num_workers=0, img_cls=PILImageBW, device=DEVICE)
            learners[n] = Learner(dls, net, CrossEntropyLossFlat(), metrics=[RocAucBinary(), accuracy])
        with learners[n].no_bar(), learners[n].no_logging(): learners[n].fit_one_cycle(1, 1e-3)
    return run


def resident(name, data, files=None, precision='auto'):
    "What train_classifier does in an epoch, validation of one batch included."
    set_seed(0)
    net = Precision(build_classifier(name, data.images.shape[1]), pick_precision(precision, DEVICE)).to(DEVICE, memory_format=torch.channels_last)
    def run(n):
        learn = make_learner(net, Stage(data.images, data.labels, np.zeros(len(data), bool)), data.take(np.arange(BS)), Arm('raw', ()), PLAN, BS, n, DEVICE)
        fit_stage(learn, PLAN, 1, Told('bench', n, 0))
    return run


def network_only(name, data, files=None):
    "Forward, backward and update of the same network on a batch that lies ready."
    learn = make_learner(Precision(build_classifier(name, data.images.shape[1]), pick_precision('auto', DEVICE)).to(DEVICE, memory_format=torch.channels_last), Stage(data.images, data.labels, np.zeros(len(data), bool)), data.take(np.arange(BS)), Arm('raw', ()), PLAN, BS, 2, DEVICE)
    opt = torch.optim.AdamW(learn.model.parameters(), 1e-3, fused=True)
    x, y = next(iter(learn.dls.train))
    valid = next(iter(learn.dls.valid))[0]
    def step():
        learn.model.train()
        nn.functional.cross_entropy(learn.model(x), y).backward(); opt.step(); opt.zero_grad()
    def run(n):
        for _ in range(n): step()
        with torch.no_grad(): learn.model.eval()(valid)
    return run


VARIANTS = {'plain loop from files': plain, 'fastai from files': from_files, 'ours': resident, 'ours, float32': partial(resident, precision='float32'), 'network only': network_only}


def material(folder, size, times=1):
    "Phantom images as an Images and as PNG files."
    data = load('phantom:n_patients=200', size=size)
    data = data.take(np.arange(512*times) % len(data))
    files = [folder/f'{i}.png' for i in range(len(data))]
    for f, x in zip(files, data.images): Image.fromarray(x).save(f)
    return data, files


def memory(variant, name, size):
    "Peak MB of a process of its own that does two steps."
    code = f'import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import bench_classifiers as b; b.child({variant!r}, {name!r}, {size})'
    return int(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split()[-1])


def child(variant, name, size):
    with tempfile.TemporaryDirectory() as d: VARIANTS[variant](name, *material(Path(d), size))(2)
    print(int(torch.cuda.max_memory_allocated()/2**20) if DEVICE.type == 'cuda' else int(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1])//1024)


def measured(rounds=5):
    for case, (name, size, n) in CASES.items():
        with tempfile.TemporaryDirectory() as d:
            data, files = material(Path(d), size)
            times = turns({k: f(name, data, files) for k, f in VARIANTS.items()}, n, rounds)
        case = f'{case}, batch {BS}'
        print(case, {k: f'{median(BS*n/t[k] for t in times):.0f} images/s' for k in VARIANTS})
        yield row(case, 'ours', 'fastai from files', times, TARGETS.get(case.rsplit(',', 1)[0]))
        yield row(case, 'ours', 'plain loop from files', times)
        yield row(case, 'ours, float32', 'fastai from files', times)
        yield dict(case=case, variant='outside the network', reference='time of ours', ratio=round(median(1-t['network only']/t['ours'] for t in times), 3), target=None, limit=None, rounds=rounds)
        if name == 'resnet18':
            for k in ('plain loop from files', 'fastai from files', 'ours'): yield dict(case=f'{case}, peak memory', variant=k, reference='MB', ratio=memory(k, name, size), target=None, limit=None, rounds=1)
    with tempfile.TemporaryDirectory() as d: runs = {f'{k}x the images': resident('resnet18', material(Path(d), 28, k)[0]) for k in (1, 2, 4)}
    times = turns(runs, 8, rounds)
    for k in (2, 4): yield row('ResNet-18, 28 px, a step', f'{k}x the images', '1x the images', times, target=1)


if __name__ == '__main__': main(measured, 'bench_classifiers')
