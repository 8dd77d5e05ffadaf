"""Speed and memory of the fidelity metrics against the usual code: `python tests/bench_fidelity.py [full]`.

Both get the same features and one thread, and take turns; the ratio is time(reference)/time(ours), the median over rounds. Memory is what a
process of its own needs on top of its features, reference over ours. With `full`, PRDC of 50,000 against 50,000 is run once: minutes."""
import os, subprocess, sys, tempfile, time
os.environ.setdefault('OMP_NUM_THREADS', '1')
from pathlib import Path
from statistics import median

import numpy as np

from gansynth.fidelity import fid, kid, prdc

FULL, MIB = 50_000, 2**20


def features(n, d, seed=0):
    "Two float32 tables, (n,d), of correlated features; the second is a little moved."
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(d, d))/d**.5*np.linspace(1, .05, d)
    return tuple((rng.normal(shift, 1, (n, d)) @ mix).astype('float32') for shift in (0, .05))


def full_matrix_prdc(real, fake, k=5):
    "Precision, recall, density and coverage from three full distance matrices, as published code does it, with scikit-learn."
    from sklearn.metrics import pairwise_distances
    ball = lambda x: np.partition(pairwise_distances(x.astype(float)), k, axis=1)[:, k]
    r, f, d = ball(real), ball(fake), pairwise_distances(real.astype(float), fake.astype(float))
    inside = d < r[:, None]
    return inside.any(0).mean(), (d < f).any(1).mean(), inside.sum(0).mean()/k, inside.any(1).mean()


def sqrtm_fid(a, b):
    "The usual formula, with scipy's matrix square root."
    from scipy.linalg import sqrtm
    s, t = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    return float(((a.mean(0, dtype=float)-b.mean(0, dtype=float))**2).sum()+np.trace(s)+np.trace(t)-2*np.trace(sqrtm(s @ t).real))


def torch_fidelity_kid(a, b):
    "Its estimator on one subset that holds everything, which is the same number."
    import torch
    from torch_fidelity.metric_kid import kid_features_to_metric
    torch.set_num_threads(1)
    return kid_features_to_metric(*(torch.from_numpy(x.astype(float)) for x in (a, b)), kid_subsets=1, kid_subset_size=len(a), kid_kernel='poly', kid_kernel_poly_degree=3,
                                  kid_kernel_poly_gamma=None, kid_kernel_poly_coef0=1, rng_seed=0, verbose=False)['kernel_inception_distance_mean']


def our_kid(a, b): return kid(a, b).value


# case: (n, d, ours, reference, target and limit of the ratio of time, of memory, bytes of one matrix that the reference holds, rounds)
CASES = {
    'PRDC, 5,000 x 5,000, 112 features': (5_000, 112, prdc, full_matrix_prdc, (1.2, .8), (4., 2.), 8*5_000**2, 7),
    'FID, 500 images, 2,048 features': (500, 2048, fid, sqrtm_fid, (20., 8.), (4., 2.), 8*2048**2, 1),
    'KID with its error, 5,000 images, 112 features': (5_000, 112, our_kid, torch_fidelity_kid, (1.5, 1.), (4., 2.), 8*5_000**2, 7)}


def clocked(f, *args):
    t = time.perf_counter()
    out = f(*args)
    return time.perf_counter()-t, np.ravel(out)


def peak():
    "MiB that this program had at most. Not ru_maxrss: a child starts with that of the process which started it, and a large parent hides everything."
    return next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmHWM'))/1024


def memory(f, x):
    "MiB that `f` needs on top of its two tables of features, in a process of its own; a small call first loads what it imports."
    code = """import sys, warnings; warnings.simplefilter('ignore')
import numpy as np, bench_fidelity as b
f, x = getattr(b, sys.argv[1]), [np.load(p) for p in sys.argv[2:]]
f(*b.features(40, 8))
before = b.peak(); f(*x); print(b.peak()-before)"""
    here = Path(__file__).resolve().parent
    with tempfile.TemporaryDirectory() as d:
        for i, t in enumerate(x): np.save(f'{d}/{i}.npy', t)
        done = subprocess.run([sys.executable, '-c', code, f.__name__, f'{d}/0.npy', f'{d}/1.npy'], capture_output=True, text=True, check=True, cwd=here,
                              env=os.environ | {'PYTHONPATH': str(here.parent)})
    return float(done.stdout)


def rows():
    "[{case, variant, reference, ratio, target, limit, rounds}], time and memory of each case."
    out = []
    for case, (n, d, ours, reference, speed, space, holds, rounds) in CASES.items():
        x, ratios = features(n, d), []
        for _ in range(rounds):
            (slow, want), (fast, got) = clocked(reference, *x), clocked(ours, *x)
            ratios.append(slow/fast)
            assert np.allclose(want, got, rtol=1e-6, atol=1e-9), f'{case}: {want} and {got}'
        common = dict(case=case, reference=reference.__name__)
        out.append(common | dict(variant=ours.__name__, ratio=median(ratios), target=speed[0], limit=speed[1], rounds=rounds, lowest=min(ratios), highest=max(ratios), seconds=fast, reference_seconds=slow))
        mine, theirs = memory(ours, x), memory(reference, x)
        assert theirs >= holds/MIB, f'{case}: {theirs:.0f} MiB measured where the reference holds a matrix of {holds/MIB:.0f}'
        out.append(common | dict(variant='peak memory', ratio=theirs/mine, target=space[0], limit=space[1], rounds=1, peak_mb=mine, reference_peak_mb=theirs))
    return out


def full_size(d=112):
    "PRDC of 50,000 x 50,000, once, which has to stay below 2 GiB. The reference is arithmetic: one full matrix of doubles."
    seconds, (mine,) = clocked(memory, prdc, features(FULL, d))
    mine = float(mine)
    return dict(case=f'PRDC, {FULL:,} x {FULL:,}, {d} features', variant='peak memory', reference='one full matrix, by arithmetic', ratio=FULL**2*8/MIB/mine,
                target=FULL**2*8/MIB/2048, limit=FULL**2*8/MIB/2048, rounds=1, peak_mb=mine, seconds=seconds)


if __name__ == '__main__':
    import warnings
    warnings.simplefilter('ignore')
    for r in [full_size()] if 'full' in sys.argv else rows(): print(r, flush=True)
