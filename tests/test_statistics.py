"""What the statistics chapter cannot check about itself: oracles, error rates under a true null, power, refusals."""
import subprocess, sys
from functools import partial

import numpy as np
import pytest
from scipy.stats import binomtest, norm, ttest_1samp
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import roc_auc_score
from statsmodels.stats.contingency_tables import mcnemar as sm_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import confint_proportions_2indep, proportions_ztest
from statsmodels.stats.weightstats import DescrStatsW

from conftest import ROOT
from gansynth import statistics as st
from gansynth.core import UserError


def brute(y, *scores):
    "DeLong from all pairs: AUROCs and covariance."
    y = np.asarray(y)
    psi = [(s[y == 1][:, None] > s[y == 0]) + .5*(s[y == 1][:, None] == s[y == 0]) for s in map(np.asarray, scores)]
    v10, v01 = np.stack([p.mean(1) for p in psi]), np.stack([p.mean(0) for p in psi])
    return v10.mean(1), np.atleast_2d(np.cov(v10))/v10.shape[1] + np.atleast_2d(np.cov(v01))/v01.shape[1]


# ---- DeLong ---------------------------------------------------------------------------------------------------------

def test_delong_reference_values():
    auc, cov = st.delong([1, 1, 1, 0, 0, 0], [.9, .8, .3, .7, .3, .1])
    assert auc[0] == pytest.approx(5/6, abs=1e-12) and cov[0, 0] == pytest.approx(1/27, abs=1e-12) and auc.shape == (1,) and cov.shape == (1, 1)
    data = load_breast_cancer()
    y, s = 1 - data.target, dict(zip(data.feature_names, data.data.T))
    texture, smoothness, symmetry = (s[f'mean {k}'] for k in ('texture', 'smoothness', 'symmetry'))
    assert st.delong(y, texture, smoothness, symmetry)[0] == pytest.approx([.7758244807356904, .7220416468474182, .6985624438454627], abs=1e-14)
    for other, z, p in ((smoothness, 1.7133449373159062, .08664909979344951), (symmetry, 2.4960746099618225, .012557618562248306)):
        assert st.delong_test(y, texture, other)[1:] == pytest.approx((z, p), rel=1e-11)
        assert st.delong_test(y, other, texture)[1] == pytest.approx(-z, rel=1e-11)

@pytest.mark.parametrize('levels', [3, 10, None])
@pytest.mark.parametrize('seed', range(4))
def test_delong_equals_all_pairs_and_scikit_learn(seed, levels):
    rng = np.random.default_rng(seed)
    y = np.r_[0, 0, 1, 1, rng.integers(0, 2, 120)]
    scores = rng.normal(size=(3, len(y))) + .7*y*rng.random((3, 1))
    if levels: scores = np.floor(scores*levels/4)
    auc, cov = st.delong(y, *scores)
    expected, expected_cov = brute(y, *scores)
    np.testing.assert_allclose(auc, expected, atol=1e-13); np.testing.assert_allclose(cov, expected_cov, atol=1e-14)
    np.testing.assert_allclose(auc, [roc_auc_score(y, s) for s in scores], atol=1e-13)
    d, z, p = st.delong_test(y, scores[0], scores[1])
    assert d == pytest.approx(auc[0] - auc[1]) and z == pytest.approx(d/np.sqrt(cov[0, 0] + cov[1, 1] - 2*cov[0, 1])) and p == pytest.approx(2*norm.sf(abs(z)))
    order = rng.permutation(len(y))
    np.testing.assert_allclose(st.delong(y[order], *scores[:, order])[1], cov, atol=1e-14)
    np.testing.assert_allclose(st.delong(y, *np.exp(scores))[1], cov, atol=1e-14)     # ranks only

def test_equal_rankings_give_z_0_and_p_1():
    rng = np.random.default_rng(0)
    y, s = np.repeat([0, 1], 30), rng.random(60)
    assert st.delong_test(y, s, s) == st.delong_test(y, s, 10*s - 3) == (0, 0, 1)
    apart = np.arange(60.)
    assert st.delong_test(y, apart, apart**3) == (0, 0, 1)
    with pytest.raises(UserError, match='no variance'): st.delong_test(y, apart, -apart)

refused = dict(one_positive=([1, 0, 0, 0], [1, 2, 3, 4.], '1 positive'), no_negative=([1, 1, 1], [1, 2, 3.], '0 negative'), one_negative=([1, 1, 0], [1, 2, 3.], '1 negative'),
               constant=([1, 1, 0, 0], [.5]*4, 'same for everybody'), nan=([1, 1, 0, 0], [1, 2, 3, np.nan], 'finite'), infinite=([1, 1, 0, 0], [1, 2, 3, np.inf], 'finite'),
               length=([1, 1, 0, 0], [1, 2, 3.], 'equally long'), label=([1, 1, 0, 2], [1, 2, 3, 4.], '0 and 1 only'))

@pytest.mark.parametrize('fault', refused)
def test_refusals(fault):
    y, s, said = refused[fault]
    for f in (st.delong, st.auc_interval, lambda y, s: st.delong_test(y, s, s)):
        with pytest.raises(UserError, match=said): f(y, s)
    with pytest.raises(UserError): st.delong_test(y, np.arange(len(y)), s)       # the fault in the second score

def test_interval_covers_and_knows_its_edge():
    rng, hits, n = np.random.default_rng(1), 0, 500
    y, truth = np.repeat([0, 1], [80, 40]), norm.cdf(1/2**.5)
    for _ in range(n):
        auc, low, high = st.auc_interval(y, rng.normal(size=120) + y)
        hits += low <= truth <= high
        assert 0 <= low < auc < high <= 1
    assert .91 <= hits/n <= .98
    auc, low, high = st.auc_interval([0]*5 + [1]*10, range(15))
    assert (auc, high) == (1, 1) and low == pytest.approx(binomtest(5, 5).proportion_ci(.95).low)    # not "certainly 1"
    auc, low, high = st.auc_interval([1]*5 + [0]*10, range(15))
    assert (auc, low) == (0, 0) and high == pytest.approx(binomtest(0, 5).proportion_ci(.95).high)
    half = [np.subtract(*st.auc_interval(y, y + rng.normal(size=120)*0 + np.arange(120) % 7, level=v)[:0:-1]) for v in (.5, .95)]
    assert 0 < half[0] < half[1]


def clustered(rng, gap, n=120, per=4, sd=.9):
    "Labels, two scores and patients: a patient's images share a difficulty and each arm's luck."
    who = np.repeat(np.arange(n), per)
    y = (who % 3 == 0).astype(int)
    shared = rng.normal(0, sd, n)[who]
    return y, *(1.4*y + g*y + shared + rng.normal(0, .6, n)[who] + rng.normal(0, .3, len(who)) for g in (gap, 0)), who

def rates(gap, n=400, seed=0):
    "Share of studies with p < .05: one row a patient (mean score), and one row an image."
    rng, found = np.random.default_rng(seed), np.zeros(2)
    for _ in range(n):
        y, a, b, who = clustered(rng, gap)
        mean = partial(lambda who, v: np.bincount(who, v)/np.bincount(who), who)
        found += st.delong_test(mean(y).astype(int), mean(a), mean(b))[2] < .05, st.delong_test(y, a, b)[2] < .05
    return found/n

def test_null_is_rejected_in_the_binomial_band_by_patients_and_too_often_by_images():
    low, high = (binomtest(20, 400).proportion_ci(.999).low, binomtest(20, 400).proportion_ci(.999).high)
    patients, images = rates(0)
    print('null rejected by patients, by images:', patients, images)
    assert low < patients < high and images > .15      # the ablation: treating images as patients breaks the promise

def test_power_for_a_planted_effect():
    assert rates(.8, n=200, seed=1)[0] > .8


# ---- counts, families, equality, splits -----------------------------------------------------------------------------

def test_mcnemar():
    assert st.mcnemar(10, 5) == pytest.approx(.3017578125, abs=1e-15)
    for table in ([[100, 10], [5, 50]], [[3, 0], [7, 2]], [[0, 1], [1, 0]], [[5, 40], [12, 9]]):
        assert st.mcnemar(table[0][1], table[1][0]) == pytest.approx(sm_mcnemar(np.array(table), exact=True).pvalue, abs=1e-13)
    assert st.mcnemar(0, 0) == 1 and st.mcnemar(0, 6) == 2/64 == st.mcnemar(6, 0)
    assert st.binomial_excess(0, 0) == 1 and st.binomial_excess(9, 10) == pytest.approx(11/1024) and st.binomial_excess(3, 10, .01) == pytest.approx(binomtest(3, 10, .01, 'greater').pvalue)

def test_holm():
    np.testing.assert_allclose(st.holm([.01, .04, .03, .005]), [.03, .06, .06, .02], atol=1e-15)
    rng = np.random.default_rng(0)
    for k in (1, 2, 7, 30):
        p = np.round(rng.random(k)**3, 2)      # with ties
        np.testing.assert_allclose(st.holm(p), multipletests(p, method='holm')[1], atol=1e-14)
    assert len(st.holm([])) == 0
    for bad in ([np.nan], [-.1], [1.1], [[.1]]):
        with pytest.raises(UserError): st.holm(bad)

def test_holm_keeps_the_family_and_single_tests_do_not():
    p = np.random.default_rng(3).random((2000, 12))
    assert np.mean([st.holm(row).min() < .05 for row in p]) < .065 and np.mean(p.min(1) < .05) > .4

def test_tost():
    x = np.random.default_rng(0).normal(.004, .03, 40)
    d, se = x.mean(), x.std(ddof=1)/40**.5
    assert st.tost(d, se, .02, df=39) == pytest.approx(DescrStatsW(x).ttost_mean(-.02, .02)[0], rel=1e-9)
    for d, se in np.random.default_rng(1).uniform([-.04, .001], [.04, .03], (200, 2)):      # p < .05 and the 90 % interval agree
        half = norm.ppf(.95)*se
        assert (st.tost(d, se) < .05) == (-.02 < d - half and d + half < .02)
    assert st.tost(0, 0) == 0 and st.tost(.02, 0) == 1
    assert st.tost_resampled(np.zeros(99)) == .01 and st.tost_resampled([np.nan, .5]) == 1 and st.tost_resampled([]) == 1
    for f in (lambda: st.tost(0, .1, 0), lambda: st.tost_resampled([0], -.1), lambda: st.tost(0, 1, np.nan)):
        with pytest.raises(UserError, match='margin'): f()

def test_corrected_t():
    d = np.array([.01, .03, -.01, .02, .02])
    mean, t, p = st.corrected_t(d, 80, 20)
    naive = ttest_1samp(d, 0)
    assert mean == pytest.approx(d.mean()) and t == pytest.approx(naive.statistic*np.sqrt((1/5)/(1/5 + 20/80))) and p > naive.pvalue
    assert st.corrected_t(d, 10**9, 1)[2] == pytest.approx(naive.pvalue, rel=1e-6)
    for bad in (([.1], 80, 20), ([.1, np.nan], 80, 20), ([.1, .2], 0, 20), ([.1, .1], 80, 20)):
        with pytest.raises(UserError): st.corrected_t(*bad)

def test_corrected_t_under_overlapping_splits():
    rng, hits, n = np.random.default_rng(5), np.zeros(2), 600
    for _ in range(n):
        e = rng.normal(0, 1, 150)
        d = [rng.choice(e, 30, replace=False).mean() for _ in range(10)]
        hits += st.corrected_t(d, 120, 30)[2] < .05, ttest_1samp(d, 0).pvalue < .05
    print('null rejected by the corrected t, by the ordinary t:', hits/n)
    assert .02 < hits[0]/n < .08 and hits[1]/n > .2


# ---- published numbers and planning ---------------------------------------------------------------------------------

@pytest.mark.parametrize('k1,n1,k2,n2', [(150, 199, 161, 199), (466, 506, 471, 506), (1, 10, 9, 12), (0, 5, 5, 5), (3, 7, 3, 7)])
def test_two_proportions(k1, n1, k2, n2):
    r, back = st.two_proportions(k1, n1, k2, n2), st.two_proportions(k2, n2, k1, n1)
    z, p = proportions_ztest([k2, k1], [n2, n1]) if k1*n2 != k2*n1 else (0, 1)
    assert (r['z'], r['p']) == pytest.approx((z, p))
    assert (r['low'], r['high']) == pytest.approx(confint_proportions_2indep(k2, n2, k1, n1, method='newcomb'), abs=1e-12)
    assert back['low'] == pytest.approx(-r['high']) and back['p'] == pytest.approx(r['p']) and -1 <= r['low'] <= r['difference'] <= r['high'] <= 1

def test_two_proportions_published_and_refused():
    def p(a, b, n): return st.two_proportions(round(a*n), n, round(b*n), n)['p']
    assert round(p(.7538, .8090, 199), 2) == .18 and round(p(.93, .92, 506), 2) == .55 and round(p(.87, .92, 506), 3) == .008 and round(p(.8365, .8526, 624), 2) == .43
    for bad in ((5, 4, 1, 4), (-1, 4, 1, 4), (0, 0, 1, 4)):
        with pytest.raises(UserError): st.two_proportions(*bad)

@pytest.mark.parametrize('k1,k2,n', [(3, 5, 7), (2, 2, 6), (0, 6, 6), (9, 4, 12)])
def test_mcnemar_range_is_the_range_over_all_tables(k1, k2, n):
    every = [st.mcnemar(k1 - both, k2 - both) for both in range(n + 1) if both <= min(k1, k2) and k1 + k2 - both <= n]
    assert st.mcnemar_range(k1, k2, n) == pytest.approx((min(every), max(every)))

def test_every_published_contrast_is_computed():
    rows = st.published_contrasts()
    found = {(r['model'], r['arm']): r for r in rows if r['study'] == 'covid_ct'}
    assert len(rows) == 43 and round(found['VGG-16', 'gan']['p'], 2) == .18
    assert all(r['p_least'] <= r['p_most'] and r['low'] <= r['difference'] <= r['high'] for r in rows)

def test_detectable_difference():
    assert st.hanley_mcneil(.9, 50, 70) == pytest.approx(np.mean([np.var([roc_auc_score(np.repeat([0, 1], [70, 50]), np.r_[rng.exponential(1/9, 70), rng.exponential(1, 50)])
        for _ in range(1500)]) for rng in [np.random.default_rng(0)]]), rel=.15)      # exponential scores, for which the formula is exact: A = 9/10
    d = st.detectable_difference(.8, 60, 90, rho=.5)
    sd = [np.sqrt(st.hanley_mcneil(a, 60, 90)) for a in (.8, .8 + d)]
    assert d/np.sqrt(sd[0]**2 + sd[1]**2 - sd[0]*sd[1]) == pytest.approx(norm.ppf(.975) + norm.ppf(.8))
    assert st.detectable_difference(.8, 600, 900) < d < st.detectable_difference(.8, 60, 90, power=.9)
    assert np.isnan(st.detectable_difference(.95, 4, 4))
    for bad in ((1., 5, 5), (.8, 1, 5), (.8, 5, 5, 2)):
        with pytest.raises(UserError): st.detectable_difference(*bad)
    with pytest.raises(UserError): st.detectable_accuracy(1, 50)

def test_detectable_accuracy_has_the_power_it_says():
    assert st.detectable_accuracy(.92, 10_900) == pytest.approx(.01, abs=1e-4)
    d, rng = st.detectable_accuracy(.75, 300), np.random.default_rng(0)
    k = rng.binomial(300, [[.75], [.75 + d]], (2, 2000))
    power = np.mean([st.two_proportions(a, 300, b, 300)['p'] < .05 for a, b in k.T])
    assert .77 < power < .83

def test_module_is_light():
    code = 'import sys, gansynth.statistics; sys.exit(any(m in sys.modules for m in ("torch", "statsmodels", "gansynth.evaluation")))'
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode == 0
