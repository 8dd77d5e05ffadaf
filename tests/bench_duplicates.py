"""Speed of the search for near duplicates against comparing all pairs: `python tests/bench_duplicates.py`.

Both get the same prints and the default rule, on one thread; brute force is one matrix product for each correlation, plain and mirrored, over
the upper half of all pairs. They take turns; the ratio is time(brute force)/time(search), the median over rounds."""
import os, time
os.environ.setdefault('OMP_NUM_THREADS', '1')
from statistics import median

import numpy as np

from gansynth.duplicates import fingerprints, mirror, near_pairs
from gansynth.phantom import phantom

SIZES, TARGET, LIMIT = (5_000, 20_000), {5_000: 1., 20_000: 2.}, {5_000: .7, 20_000: 1.2}


def made(n, seed=0):
    "n images: phantom people, each picture again moved by whole pixels and with noise."
    x, rng = phantom(n_patients=n//14+20, size=64, seed=seed)['images'], np.random.default_rng(seed)
    out = np.empty((n, 64, 64), 'uint8')
    for i in range(n):
        a = np.roll(x[i % len(x)], rng.integers(-6, 7, 2), (0, 1)) if i >= len(x) else x[i]
        out[i] = (a+rng.normal(0, 4, a.shape)).clip(0, 255)
    return out


def brute_force(p, min_ncc=.98, min_detail=.85, block=512):
    "All pairs i < j of the rule, by comparing all."
    found = []
    for v, least in ((p.thumbs, min_ncc), (p.details, min_detail)):
        for w in (v, mirror(v)):
            for s in range(0, len(v), block):
                i, j = np.nonzero(v[s:s+block] @ w[s:].T >= least)
                found.append(np.array([i+s, j+s])[:, j > i])
    return np.unique(np.concatenate(found, 1)[0]*len(p)+np.concatenate(found, 1)[1])


def clocked(f, *args):
    t = time.perf_counter()
    out = f(*args)
    return time.perf_counter()-t, out


def rows(rounds=3):
    "[{case, variant, reference, ratio, target, limit, rounds}], one for each size."
    out = []
    for n in SIZES:
        p, ratios = fingerprints(made(n)), []
        for _ in range(rounds):
            (slow, want), (fast, got) = clocked(brute_force, p), clocked(near_pairs, p)
            ratios.append(slow/fast)
        differ = np.setxor1d(want, got.i*n+got.j)
        assert len(differ) <= 1e-3*len(want), 'the two disagree by more than rounding'
        out.append(dict(case=f'near duplicates of {n:,} images', variant='near_pairs', reference='all pairs, matrix products', ratio=median(ratios), target=TARGET[n], limit=LIMIT[n], rounds=rounds))
    return out


if __name__ == '__main__':
    for r in rows(): print(r)
