"""Preparing and reading images against what one would write oneself, alternating in one run: `make bench`.

A row is {case, variant, reference, ratio, target, limit, rounds}: ratio = time of the reference / time of the variant, median over rounds."""
import os, shutil, sys, tempfile, time
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from gansynth.core import environment, root, save_json
from gansynth.listing import from_folder
from gansynth.phantom import phantom
from gansynth.store import cores, prepare


def made_files(folder, n, size):
    "`n` grey PNG files of phantom chests with `size` pixels of a side, in two classes."
    x = phantom(n_patients=40, size=size)['images']
    for i in range(n):
        f = folder/'ab'[i%2]/f'{i:06}.png'; f.parent.mkdir(parents=True, exist_ok=True)
        if i < len(x): Image.fromarray(x[i]).save(f)
        else: os.link(folder/'ab'[(k := i%len(x))%2]/f'{k:06}.png', f)
    return folder


def plain_loop(folder, size):
    "Pillow, one file after the other, as a notebook would do it."
    return np.stack([np.asarray(Image.open(f).convert('L').resize((size, size), Image.BICUBIC)) for f in sorted(folder.rglob('*.png'))])


def ours(folder, size, fresh=True):
    if fresh: shutil.rmtree(os.environ['GANSYNTH_CACHE'], ignore_errors=True)
    return prepare(from_folder(folder), size).images


def fastai_epoch(folder, size, bs=64):
    "All batches of one epoch from files, as fastai's documentation has it."
    from fastai.vision.all import ImageDataLoaders, PILImageBW, Resize
    dls = ImageDataLoaders.from_folder(folder, valid_pct=.01, seed=0, item_tfms=Resize(size), bs=bs, num_workers=0, img_cls=PILImageBW)
    return sum(len(x) for x, _ in dls.train)


def resident_epoch(folder, size, bs=64):
    "The same from the prepared store, opened anew."
    import torch
    from gansynth.data import index_batches
    x, stream = ours(folder, size, False), None
    stream = index_batches(len(x), bs, 0)
    return sum(len(torch.from_numpy(x[next(stream)]).float().div_(255)) for _ in range(len(x)//bs))


def clocked(f, *args):
    t = time.perf_counter(); f(*args)
    return time.perf_counter()-t


def compare(case, reference, variant, rounds, target=None, limit=None): # (name, function) twice
    clocked(reference[1]); clocked(variant[1])
    times = [(clocked(reference[1]), clocked(variant[1])) for _ in range(rounds)]
    ratios = sorted(a/b for a, b in times)
    print(f'{case:42} {variant[0]:28} {median(ratios):7.2f}x ({ratios[0]:.2f} .. {ratios[-1]:.2f}) of {reference[0]}', flush=True)
    return dict(case=case, variant=variant[0], reference=reference[0], ratio=round(median(ratios), 3), target=target, limit=limit, rounds=rounds)


def rows(n=10_000, rounds=5):
    with tempfile.TemporaryDirectory() as d:
        os.environ['GANSYNTH_CACHE'] = f'{d}/cache'
        files = made_files(Path(d)/'files', n, 256)
        tenth = made_files(Path(d)/'tenth', n//10, 256)
        assert (ours(files, 64) == plain_loop(files, 64)).all()
        loop, made = ('plain Pillow loop', lambda: plain_loop(files, 64)), (f'prepared, {cores()} processes', lambda: ours(files, 64))
        yield compare(f'{n} PNG files, 256 to 64 pixels', loop, made, 3, limit=cores())
        yield compare('the same, the second time', loop, ('store opened', lambda: ours(files, 64, False)), 3)
        ours(files, 64)
        yield compare('an epoch of batches of 64', ('fastai ImageDataLoaders', lambda: fastai_epoch(files, 64)), ('prepared store', lambda: resident_epoch(files, 64)), 3)
        yield compare(f'{n} images against {n//10} (10 = linear)', made, (f'a tenth of them', lambda: ours(tenth, 64)), rounds)


KEYS = ('case', 'variant', 'reference', 'ratio', 'target', 'limit', 'rounds')


def tidy(rows):
    "The rows in the common form; a peak of memory becomes a row of its own."
    for r in rows:
        yield {k: round(r[k], 3) if isinstance(r[k], float) else r[k] for k in KEYS}
        if r.get('reference_peak_mb') and 'peak memory' not in r['variant']: yield dict(case=r['case'], variant=f"{r['variant']}, peak memory", reference=r['reference'], ratio=round(r['reference_peak_mb']/r['peak_mb'], 3), target=None, limit=None, rounds=1)


def main():
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} processors, load before: {load:.1f}"+(' - CONTENDED: do not quote these figures' if load > .7 else ''))
    for file, parts in (('bench_data', [rows, 'bench_duplicates', 'bench_eda']), ('bench_evidence', ['bench_statistics', 'bench_fidelity'])):
        found = []
        for part in parts:
            for r in tidy(part() if callable(part) else __import__(part).rows()):
                if part is not rows: print(f"{r['case']:42} {r['variant']:28} {r['ratio']:7.2f}x of {r['reference']}", flush=True)
                found.append(r)
        save_json(dict(machine=environment() | dict(load_before=round(load, 2), contended=load > .7), rows=found), root()/'results'/f'{file}.json')


if __name__ == '__main__':
    sys.path.insert(0, str(Path(__file__).parent))
    main()
