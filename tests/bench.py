"""Speed of classifier training, as ratios of variants that take turns in one run: `make bench`.

A round gives every variant a few steps; the ratio is taken within a round, and the median over rounds is printed with its range."""
import os, platform, tempfile, time
from pathlib import Path
from statistics import median

import torch
from PIL import Image

from gansynth.classifiers import grey_resnet34, make_learner
from gansynth.core import environment, has_bf16
from gansynth.data import load

ROUNDS, DEVICE = 5, torch.device('cuda' if torch.cuda.is_available() else 'cpu')


def forever(dl):
    while True: yield from dl


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
            compare(f'ResNet34, {size} px', {'fastai from files': classifier_from_files(files, data.labels, size, bs)} | {f'ours, {p}': classifier_resident(data.images, data.labels, bs, p) for p in precisions}, bs, n)
