"""What the calibration chapter cannot check about itself: oracles, planted arms and planted worth, coverage, refusals."""
import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit
from scipy.stats import norm
from sklearn.metrics import brier_score_loss, log_loss

from gansynth import calibration as ca, evaluation as ev
from gansynth.core import UserError


def simulate(arms, n_patients=120, n_seeds=5, per=2, jitter=.03, run_sd=.15, seed=0):
    "Simulated predictions; `arms` maps a name to the gap between the classes, or to (gap, scatter over seeds)."
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(n_patients), per)
    label = (who % 3 == 0).astype(int)
    difficulty, frames = rng.normal(0, .9, n_patients)[who] + rng.normal(0, .4, len(who)), []
    for arm, gap in arms.items():
        gap, scatter = gap if np.ndim(gap) else (gap, jitter)
        for s in range(n_seeds):
            p = expit((gap + rng.normal(0, scatter))*(label - .5) + difficulty + rng.normal(0, run_sd, len(who)))
            frames.append(pd.DataFrame(dict(image_id=[f'i{i:04d}' for i in range(len(who))], patient_id=[f'p{i:03d}' for i in who], label=label, probability=p, arm=arm, seed=s)))
    return pd.concat(frames, ignore_index=True)

def gap_for(auc, run_sd=.15): return norm.ppf(auc)*2**.5*np.sqrt(.9**2 + .4**2 + run_sd**2)

def drawn(n=2000, seed=0, stretch=1., shift=0.):
    "Labels drawn from true probabilities, and probabilities whose logits are stretched and shifted."
    rng = np.random.default_rng(seed)
    x = rng.normal(-.3, 1.3, n)
    return (rng.random(n) < expit(x)).astype(int), expit(stretch*x + shift)


# ---- calibration ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('stretch,shift,n', [(1, 0, 2000), (2.5, 1, 400), (.4, -2, 150), (6, 3, 300)])
def test_recalibration_equals_statsmodels(stretch, shift, n):
    y, p = drawn(n, n, stretch, shift)
    x = logit(np.clip(p, 1e-7, 1 - 1e-7))
    both = sm.GLM(y, sm.add_constant(x), family=sm.families.Binomial()).fit(tol=1e-12).params
    large = sm.GLM(y, np.ones(n), offset=x, family=sm.families.Binomial()).fit(tol=1e-12).params
    got = ca.recalibration(y, p)
    assert (got['intercept'], got['slope'], got['in_the_large']) == pytest.approx((*both, *large), rel=1e-5, abs=1e-6)

def test_recalibration_knows_the_truth_and_its_limits():
    y, p = drawn(200_000)
    assert list(ca.recalibration(y, p).values()) == pytest.approx([1, 0, 0], abs=.03)
    y, p = drawn(200_000, stretch=2, shift=1)
    assert list(ca.recalibration(y, p).values())[:2] == pytest.approx([.5, -.5], abs=.03)
    for y, p in (([0, 0, 1, 1], [.1, .2, .8, .9]), ([1, 1, 0, 0], [.1, .2, .8, .9]), ([0, 1, 0, 1], [.3]*4), ([0, 0, 1, 1], [.1, .5, .5, .9])):
        got = ca.recalibration(y, p)
        assert np.isnan(got['slope']) and np.isnan(got['intercept']) and np.isfinite(got['in_the_large'])
    assert np.isfinite(list(ca.recalibration([0, 1, 0, 1], [0., 0., 1., 1.]).values())).all()      # 0 and 1 are clipped

def test_temperature_is_the_most_likely_one_and_keeps_the_order():
    y, p = drawn(500, 3, 2.2)
    x, T = logit(p), ca.temperature(y, p)
    best = minimize_scalar(lambda t: log_loss(y, expit(x/t)), bounds=(.1, 10), method='bounded', options=dict(xatol=1e-9)).x
    assert T == pytest.approx(best, rel=1e-4) and ca.apply_temperature(p, 1) == pytest.approx(p)
    assert ev.auroc(y, ca.apply_temperature(p, T)) == ev.auroc(y, p)
    assert ca.temperature(y, ca.apply_temperature(p, T)) == pytest.approx(1, abs=1e-6)
    for bad in (([0, 0, 1, 1], [.1, .2, .8, .9]), ([1, 1, 0, 0], [.1, .2, .8, .9])):
        with pytest.raises(UserError, match='larger validation'): ca.temperature(*bad)

def test_ece_by_hand_and_its_floor():
    rng = np.random.default_rng(0)
    y, p = rng.integers(0, 2, 300), np.round(rng.random(300), 2)
    bins = np.minimum((p*15).astype(int), 14)
    assert ca.ece(y, p) == pytest.approx(sum((bins == b).mean()*abs(y[bins == b].mean() - p[bins == b].mean()) for b in np.unique(bins)))
    assert ca.ece(np.stack([y, 1 - y]), p) == pytest.approx([ca.ece(y, p), ca.ece(1 - y, p)])
    for n, expected in ((50, .168), (1000, .038)):
        found = np.mean([ca.ece_floor(rng.random(n), B=20, seed=i)[0] for i in range(500)])
        assert round(found, 3) == pytest.approx(expected, abs=.0011), n
    mean, high = ca.ece_floor(p, B=4000)
    assert np.mean([ca.ece(rng.random(300) < p, p) > high for _ in range(2000)]) == pytest.approx(.05, abs=.02) and mean < high
    assert ca.ece([1, 1], [1., 1.]) == 0 and ca.ece([0, 0], [1., 1.]) == 1

def test_brier():
    y, p = drawn(300, stretch=2)
    assert ca.brier(y, p) == pytest.approx(brier_score_loss(y, p))

@pytest.mark.parametrize('f', [ca.recalibration, ca.brier, ca.temperature, ca.ece, ca.decision_curve], ids=lambda f: f.__name__)
def test_probabilities_are_refused(f):
    for p in ([-1., 2., 0, 1], [.1, np.nan, .2, .3], [.1, .2]):
        with pytest.raises(UserError): f([0, 1, 0, 1], p)

def test_one_class_is_refused():
    for f in (ca.recalibration, ca.brier, ca.temperature, ca.decision_curve, ca.threshold_at_specificity):
        with pytest.raises(UserError): f([1, 1], [.1, .2])


# ---- decisions ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('seed', range(15))
@pytest.mark.parametrize('specificity', [.5, .8, .9])
def test_threshold_at_specificity_is_the_lowest_that_will_do(seed, specificity):
    rng = np.random.default_rng(seed)
    y, p = np.r_[np.zeros(12), np.ones(3), rng.integers(0, 2, 20)].astype(int), rng.integers(0, 12, 35)/11
    t = ca.threshold_at_specificity(y, p, specificity)
    s = np.unique(p)
    cuts = np.r_[s[0], (s[1:] + s[:-1])/2, np.nextafter(s[-1], 2)]
    fits = [c for c in cuts if ev.at_threshold(y, p, c)['specificity'] >= specificity - 1e-12]
    assert t == pytest.approx(fits[0], abs=1e-12) and ev.at_threshold(y, p, t)['specificity'] >= specificity - 1e-12

def test_threshold_at_specificity_neighbours_and_refusals():
    a = .3
    b = np.nextafter(a, 1)
    assert ev.at_threshold([0]*10 + [1], [a]*10 + [b], ca.threshold_at_specificity([0]*10 + [1], [a]*10 + [b]))['accuracy'] == 1
    with pytest.raises(UserError, match='9 negatives'): ca.threshold_at_specificity([0]*9 + [1], range(10))
    for s in (0, 1, 1.5):
        with pytest.raises(UserError): ca.threshold_at_specificity([0]*20 + [1], range(21), s)

def test_decision_curve_by_hand():
    y, p = np.array([1, 1, 0, 0, 0]), np.array([.9, .4, .6, .2, .1])
    d = ca.decision_curve(y, p, [.25, .5]).set_index('threshold')
    assert d.model[.25] == pytest.approx(2/5 - 1/5/3) and d.model[.5] == pytest.approx(1/5 - 1/5)
    assert d.treat_all[.25] == pytest.approx(2/5 - 3/5/3) and (d.treat_none == 0).all()
    for t in ([0], [1], [.5, 2]):
        with pytest.raises(UserError): ca.decision_curve(y, p, t)
    ax = ca.plot_decision_curve(y, {'a': p, 'b': 1 - p})
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ['a', 'b', 'treat all', 'treat none']; plt.close('all')

def test_calibration_table():
    valid, test = (simulate({'a': 1.4, 'b': 2.}, n_seeds=2, seed=s) for s in (1, 2))
    t = ca.calibration_table(valid, test)
    assert list(zip(t.arm, t.seed)) == [('a', 0), ('b', 0), ('a', 1), ('b', 1)] and np.isfinite(t.drop(columns=['arm', 'seed'])).all(axis=None)
    flipped = test.assign(label=1 - test.label)
    assert (ca.calibration_table(valid, flipped)[['temperature', 't90']] == t[['temperature', 't90']]).all(axis=None)     # test labels move neither
    with pytest.raises(UserError, match="'b'"): ca.calibration_table(valid[valid.arm == 'a'], test)


# ---- subgroups ------------------------------------------------------------------------------------------------------

def about(preds):
    ids = preds.image_id.drop_duplicates()
    n = preds.drop_duplicates('image_id').patient_id.str[1:].astype(int)
    return pd.DataFrame(dict(image_id=ids, sex=np.where(n % 2, 'F', 'M'), age=np.where(n < 9, 5., 30.), view='PA', other=1)).reset_index(drop=True)

def test_subgroups_are_the_metric_of_the_part():
    preds = simulate({'a': 1.4, 'b': 2.}, n_seeds=2)
    table = ca.subgroups(preds, about(preds).sample(frac=1, random_state=1), B=100)
    women = preds[preds.image_id.isin(about(preds).query("sex == 'F'").image_id)]
    expected = ev.summarise(women, {k: .5 for k in women.groupby(['arm', 'seed']).groups}, B=100).query("metric == 'auroc' and seed == 'mean' and arm == 'b'").iloc[0]
    row = table.query("arm == 'b' and group == 'F'").iloc[0]
    assert (row.auroc, row.low, row.high, row.n_patients, row.n_images) == (expected.value, expected.low, expected.high, expected.n_patients, expected.n_images)
    assert set(table.attribute) == {'sex', 'age', 'view'} and len(table) == 2*(2 + 2 + 1)

def test_small_and_one_class_groups_get_words():
    preds = simulate({'a': 1.4}, n_seeds=1)
    t = about(preds)
    row = ca.subgroups(preds, t, B=50).query("group == '0-17'").iloc[0]
    assert np.isnan([row.auroc, row.low, row.high]).all() and row.note == 'no number: 3 patients with the rarer class, fewer than 10' and row.n_patients == 9
    assert np.isfinite(ca.subgroups(preds, t, B=50, min_patients=3).query("group == '0-17'").auroc).all()        # the guard did it
    label = preds.set_index('image_id').label
    t['sex'] = np.where(t.image_id.map(label) == 1, 'ill', 'well')
    assert (ca.subgroups(preds, t, B=50).query("attribute == 'sex'").note == 'no number: no patients with the rarer class, fewer than 10').all()
    t['sex'] = np.where(preds.patient_id.str[1:].astype(int) < 20, 'few', 'many')
    got = ca.subgroups(preds, t, B=50).query("attribute == 'sex'").set_index('group')
    assert got.note[['few', 'many']].tolist() == ['no number: 7 patients with the rarer class, fewer than 10', ''] and got.auroc.isna()[['few', 'many']].tolist() == [True, False]

def test_unknown_attributes_and_refusals():
    preds = simulate({'a': 1.4}, n_seeds=1)
    t = about(preds)
    t.loc[:79, 'age'], t.loc[:79, 'sex'] = 414, None
    got = ca.subgroups(preds, t, B=50)
    assert got[got.group == 'unknown'].n_images.tolist() == [80, 80]
    for bad, said in ((t[1:], 'i0000'), (t[['image_id', 'other']], 'sex, age or view'), (pd.concat([t, t]), 'one row')):
        with pytest.raises(UserError, match=said): ca.subgroups(preds, bad, B=10)


# ---- many arms ------------------------------------------------------------------------------------------------------

def test_contrasts_equal_the_single_contrast_and_holm():
    preds = simulate({'base': 1.4, 'a': 1.5, 'b': 1.8}, n_seeds=3)
    many = ca.contrasts(preds, 'base', B=200)
    for r in many.to_dict('records'):
        one = ev.contrast(preds, r['arm'], 'base', B=200)
        assert {k: r[k] for k in one} == one
    from statsmodels.stats.multitest import multipletests
    np.testing.assert_allclose(many.p_holm, multipletests(many.p, method='holm')[1])
    t = {k: .5 for k in preds.groupby(['arm', 'seed']).groups}
    assert ca.contrasts(preds, 'base', 'mcc', B=100, thresholds=t).difference[1] == ev.contrast(preds, 'b', 'base', 'mcc', B=100, thresholds=t)['difference']

def test_planted_arms_give_the_four_words():
    preds = simulate({'base': 1.4, 'helpful': 2.2, 'harmful': .6}, n_patients=240, seed=2)
    nudge = np.random.default_rng(0).normal(0, .01, (preds.arm == 'base').sum())
    same = preds[preds.arm == 'base'].assign(arm='identical', probability=lambda d: (d.probability + nudge).clip(0, 1))
    words = ca.contrasts(pd.concat([preds, same]), 'base', B=500).set_index('arm').word
    assert dict(words) == dict(helpful='helps', harmful='hurts', identical='equivalent')
    tiny = ca.contrasts(simulate({'base': 1.4, 'helpful': 3.4}, n_patients=15, seed=3), 'base', B=500).iloc[0]
    assert tiny.word == 'inconclusive' and 'patients show the rarer class' in tiny.sentence
    exact = ca.contrasts(pd.concat([preds, preds[preds.arm == 'base'].assign(arm='copy')]), 'base', B=100).set_index('arm')
    assert exact.p['copy'] == 1 and exact.word['copy'] == 'equivalent'

def test_a_family_needs_stronger_evidence():
    preds = simulate({'base': 1.4, 'a': 1.75, **{f'null {i}': 1.4 for i in range(11)}}, n_patients=150, run_sd=.3, seed=4)
    alone, family = (ca.contrasts(d, 'base', B=400).set_index('arm') for d in (preds[preds.arm.isin(['base', 'a'])], preds))
    assert alone.p['a'] == family.p['a'] and family.p_holm['a'] == pytest.approx(12*alone.p_holm['a'])
    assert (alone.word['a'], family.word['a']) == ('helps', 'inconclusive')

def gan_luck(seed, gans=4, per_gan=5):
    "Predictions of two equally good arms; an arm's runs share the luck of their GAN."
    rng, gan_of = np.random.default_rng(seed), {s: s//per_gan for s in range(gans*per_gan)}
    base = simulate({'base': 1.4}, n_patients=60, n_seeds=len(gan_of), per=1, seed=seed)
    luck = rng.normal(0, .5, gans)
    arm = base.assign(arm='gan_aug', probability=expit(logit(base.probability) + (base.label - .5)*luck[[gan_of[s] for s in base.seed]] + rng.normal(0, .15, len(base))))
    return pd.concat([base, arm]), gan_of

@pytest.mark.slow
def test_the_outermost_unit_is_the_gan():
    n, hits = 60, np.zeros(2)
    for i in range(n):
        preds, gan_of = gan_luck(i)
        hits += [not (c.low[0] <= 0 <= c.high[0]) for c in (ca.contrasts(preds, 'base', B=200, seed=i, gan_of=g) for g in (gan_of, None))]
    print('null excluded when GANs, when runs are drawn:', hits/n)
    assert hits[0]/n < .25 and hits[1]/n > hits[0]/n + .15          # four GANs remain few; taking 20 runs for 20 GANs is far worse

def test_null_contrast_in_the_binomial_band():
    n, hits = 200, 0
    for i in range(n): hits += ca.contrasts(simulate({'base': 1.4, 'a': 1.4}, n_patients=90, n_seeds=1, run_sd=.5, jitter=0, seed=900 + i), 'base', B=300, seed=i).p[0] < .05
    print('null rejected:', hits/n)
    assert .005 < hits/n < .105

def test_refusals_of_contrasts_and_choice_of_base():
    preds = simulate({'base': 1.4, 'a': 1.8}, n_seeds=2)
    with pytest.raises(UserError, match='pair the runs'): ca.contrasts(preds[(preds.arm == 'base') | (preds.seed == 0)], 'base', B=10)
    with pytest.raises(UserError, match="'nobody'"): ca.contrasts(preds, 'nobody', B=10)
    assert ca.choose_base(preds, ['base', 'a']) == 'a' and ca.choose_base(preds, ['base']) == 'base'


# ---- learning curve and worth ---------------------------------------------------------------------------------------

SIZES, CURVE = np.array([25, 50, 100, 200, 400]), .92 - .6*np.array([25, 50, 100, 200, 400])**-.4

def test_learning_curve_recovers_and_is_vectorised():
    for a, b, c in ((.92, .6, .4), (.99, 2, 1.), (.8, .9, .6)):
        v = a - b*SIZES**-float(c)
        got = ca.learning_curve(SIZES, v)
        assert got[0] - got[1]*SIZES**-got[2] == pytest.approx(v, abs=3e-4) and got == pytest.approx((a, b, c), rel=.06)
    noisy = CURVE + np.random.default_rng(0).normal(0, .005, (50, 5))
    for one, *many in zip(noisy, *ca.learning_curve(SIZES, noisy)): assert ca.learning_curve(SIZES, one) == pytest.approx(many)
    a, b, c = ca.learning_curve(SIZES, noisy)
    assert (a <= 1).all() and (b > 0).all()
    assert ca.learning_curve(SIZES[::-1], CURVE[::-1]) == pytest.approx(ca.learning_curve(SIZES, CURVE))

def test_learning_curve_is_the_least_squares_fit():
    from scipy.optimize import curve_fit
    noisy = CURVE + np.random.default_rng(1).normal(0, .004, 5)
    best, _ = curve_fit(lambda n, a, b, c: a - b*n**-c, SIZES, noisy, p0=(.9, .6, .4), bounds=((0, 0, .05), (1, 50, 4)), max_nfev=20_000)
    def error(p): return ((p[0] - p[1]*SIZES**-p[2] - noisy)**2).sum()
    assert error(ca.learning_curve(SIZES, noisy)) <= error(best)*1.01 + 1e-9

def test_learning_curve_refuses():
    for n, s in (([25, 50, 100], [.7, .8, .9]), ([25, 25, 50, 100], [.7]*4), ([0, 1, 2, 3], [.7]*4), (SIZES, CURVE[:4]), (SIZES, [.7, .8, np.nan, .8, .9])):
        with pytest.raises(UserError): ca.learning_curve(n, s)
    assert np.isnan(ca.learning_curve(SIZES, CURVE[::-1])).all()

def study(seed, synthetic, n_seeds=3, B=150, n_patients=150, flat=False):
    arms = {f'real {k}': gap_for(.8 if flat else v) for k, v in zip(SIZES, CURVE)} | dict(synthetic=gap_for(synthetic))
    s = ca.arm_samples(simulate(arms, n_patients, n_seeds, per=1, jitter=.05, seed=seed), B, seed)
    return ca.worth(SIZES, [s[f'real {k}'] for k in SIZES], 50, s['synthetic'])

@pytest.mark.slow
def test_worth_covers_the_planted_number():
    n, found = 80, []
    for i in range(n): found.append(study(i, CURVE[2]))
    hits = np.mean([f['low'] <= 50 <= f['high'] for f in found])
    print('coverage of the planted worth:', hits, 'words:', pd.Series([f['word'] for f in found]).value_counts().to_dict())
    assert hits > .85
    assert np.mean([f['low'] > 0 for f in found]) > .5

@pytest.mark.slow
def test_worth_of_nothing_is_seldom_announced():
    found = [study(500 + i, CURVE[1])['word'] for i in range(60)]
    assert found.count('worth') + found.count('harmful') <= 9, found

def test_worth_refuses_honestly():
    outside = study(1, .97)
    assert outside['word'] == 'outside the curve' and np.isnan(outside['worth']) and 'nothing is extrapolated' in outside['sentence']
    flat = study(2, .8, flat=True)
    assert flat['word'] == 'not identifiable' and np.isnan([flat['worth'], flat['low'], flat['high']]).all()
    sample = (.8, np.full(20, .8))
    with pytest.raises(UserError, match='n0=10'): ca.worth(SIZES, [sample]*5, 10, sample)

def made_worth(gained, falling=0, wobble=0.):
    "`worth` from exact resamples of the curve, of which `falling` in 100 go down instead of up."
    samples = np.repeat(CURVE[:, None], 100, axis=1)
    samples[:, :falling] = CURVE[::-1, None]
    return ca.worth(SIZES, list(zip(CURVE, samples)), 50, (gained, gained + wobble*np.linspace(-1, 1, 100)))

def test_words_of_worth_follow_from_the_resamples():
    assert made_worth(CURVE[2])['word'] == 'worth' and made_worth(CURVE[2])['worth'] == pytest.approx(50, abs=1)
    assert made_worth(CURVE[2], falling=4)['word'] == 'worth' and made_worth(CURVE[2], falling=6)['word'] == 'not identifiable'
    assert made_worth(CURVE[1], wobble=.01)['word'] == 'none shown' and made_worth(CURVE[1] - .02)['word'] == 'harmful'
    wide = made_worth(CURVE[3], wobble=.03)
    assert wide['word'] == 'worth' and wide['high'] == np.inf and 'to more than were measured' in wide['sentence']
    below = made_worth(CURVE[0] - .05)
    assert below['word'] == 'outside the curve' and below['high'] == -np.inf
