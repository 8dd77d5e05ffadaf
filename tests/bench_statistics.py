"""Speed of the tests and resamples that every result needs, as ratios of variants that take turns.

A round runs every variant once; the ratio, time of the reference / time of the variant, is taken within a round, and its median is reported.
References that would take minutes run fewer resamples, and their time is scaled; their name says so."""
import json, time
from statistics import median

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from gansynth import calibration, evaluation, statistics

N, PER, ARMS, B, FEW, ROUNDS = 10_000, 4, 12, 2_000, 5, 3


def predictions(seed=0):
    "Simulated: labels and patients (n,), and {arm: probabilities (n,)}."
    rng, who = np.random.default_rng(seed), np.repeat(np.arange(N//PER), PER)
    y, difficulty = (who % 3 == 0).astype(int), rng.normal(0, .9, N//PER)[who]
    return y, who, {f'arm {i}': 1/(1 + np.exp(-(difficulty + (1.2 + .05*i)*y + rng.normal(0, .5, N)))) for i in range(ARMS)}


def by_scikit_learn(y, who, arms, resamples):
    "AUROC of each arm in each resample of patients, (arms, resamples), by a loop over scikit-learn."
    w = evaluation.patient_resamples(who, y, resamples)
    return np.array([[roc_auc_score(y, p, sample_weight=v) for v in w] for p in arms.values()])


def ours(y, who, arms, resamples=B):
    w = evaluation.patient_resamples(who, y, resamples)
    return np.stack([evaluation.auroc(y, p, w) for p in arms.values()])


def delong_by_pairs(y, *scores):
    "DeLong from the table of all pairs."
    psi = [(s[y == 1][:, None] > s[y == 0]) + .5*(s[y == 1][:, None] == s[y == 0]) for s in scores]
    v10, v01 = np.stack([p.mean(1) for p in psi]), np.stack([p.mean(0) for p in psi])
    return v10.mean(1), np.cov(v10)/v10.shape[1] + np.cov(v01)/v01.shape[1]


def seconds(f):
    t = time.perf_counter(); f()
    return time.perf_counter() - t


def compare(case, variant, f, reference, g, target, limit, scale=1, rounds=ROUNDS):
    f(); pairs = [(seconds(f), seconds(g)*scale) for _ in range(rounds)]
    ratios = [b/a for a, b in pairs]
    return dict(case=case, variant=variant, reference=reference, ratio=median(ratios), target=target, limit=limit, rounds=rounds, lowest=min(ratios), highest=max(ratios),
                seconds=median(a for a, _ in pairs), reference_seconds=median(b for _, b in pairs))


def rows():
    "One dict for each comparison."
    y, who, arms = predictions()
    np.testing.assert_allclose(ours(y, who, arms, FEW), by_scikit_learn(y, who, arms, FEW), atol=1e-12)
    two = list(arms.values())[:2]
    for a, b in zip(statistics.delong(y, *two), delong_by_pairs(y, *two)): np.testing.assert_allclose(a, b, atol=1e-12)
    table = pd.concat([pd.DataFrame(dict(image_id=[f'{i:05d}' for i in range(N)], patient_id=who, label=y, probability=p, arm=a, seed=0)) for a, p in arms.items()], ignore_index=True)
    reference, scaled = f'scikit-learn in a loop, {FEW} resamples scaled to {B:,}', dict(g=lambda: by_scikit_learn(y, who, arms, FEW), scale=B/FEW)
    case = f'{B:,} patient resamples of {N:,} predictions, {ARMS} arms'
    return [compare(case, 'evaluation.auroc', lambda: ours(y, who, arms), reference, target=20., limit=8., **scaled),
            compare(case + ', checks and table included', 'calibration.contrasts', lambda: calibration.contrasts(table, 'arm 0', B=B), reference, target=15., limit=6., **scaled),
            compare(f'DeLong, 2 scores of {N:,} patients', 'statistics.delong', lambda: statistics.delong(y, *two), 'all pairs', lambda: delong_by_pairs(y, *two), target=20., limit=8.)]


if __name__ == '__main__':
    for r in rows(): print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in r.items()}), flush=True)
