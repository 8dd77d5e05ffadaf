"""What the evaluation chapter cannot check about itself: oracles, coverage, planted effects, refused tables."""
import subprocess, sys, warnings

import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom, sem, t as student_t
from sklearn import metrics as sk
from sklearn.datasets import load_breast_cancer

from gansynth import evaluation as ev


def simulate(arms, n_patients=100, per=4, n_seeds=1, prevalence=1/3, run_sd=.2, seed=0):
    "Simulated predictions: patients share a difficulty; `arms` maps a name to the gap between the classes."
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(n_patients), per)
    label = (who < prevalence*n_patients).astype(int)
    difficulty = rng.normal(0, .9, n_patients)[who] + rng.normal(0, .4, len(who))
    frames = []
    for arm, gap in arms.items():
        for s in range(n_seeds):
            noise = rng.normal(0, run_sd, n_patients)[who] + rng.normal(0, run_sd, len(who))
            p = 1/(1 + np.exp(-(gap*(label - .5) + difficulty + noise)))
            frames.append(pd.DataFrame(dict(image_id=[f'i{i:04d}' for i in range(len(who))], patient_id=[f'p{i:03d}' for i in who],
                                            label=label, probability=p, arm=arm, seed=s)))
    return pd.concat(frames, ignore_index=True)


@pytest.fixture(scope='module')
def preds(): return simulate({'classic_aug': 1.4, 'gan_aug': 1.9}, n_patients=30, n_seeds=2)


# ---- refused tables -------------------------------------------------------------------------------------------------

def spoil(preds, column, value, rows=(125,)):
    out = preds.astype({column: object}) if not isinstance(value, float) else preds.copy()
    out.loc[list(rows), column] = value
    return out

faults = dict(
    nan=(lambda d: spoil(d, 'probability', float('nan')), 'outside'),
    above_one=(lambda d: spoil(d, 'probability', 1.5), 'outside'),
    infinite=(lambda d: spoil(d, 'probability', float('inf')), 'outside'),
    negative=(lambda d: spoil(d, 'probability', -.1), 'outside'),
    label_two=(lambda d: spoil(d, 'label', 2), 'label is not 0 or 1'),
    patient_missing=(lambda d: spoil(d, 'patient_id', None), 'missing'),
    duplicate=(lambda d: pd.concat([d, d.loc[[125]]]), 'twice'),
    missing_id=(lambda d: d.drop(index=125), 'differ between runs'),
    other_id=(lambda d: spoil(d, 'image_id', 'stranger'), 'differ between runs'),
    other_label=(lambda d: spoil(d, 'label', 1 - int(d.label[125])), 'label or patient'),
    other_patient=(lambda d: spoil(d, 'patient_id', 'stranger'), 'label or patient'),
)

@pytest.mark.parametrize('fault', faults)
def test_f66_refused_with_ids_arm_and_mend(preds, fault):
    change, why = faults[fault]
    assert preds.arm[125] == 'classic_aug' and preds.seed[125] == 1 and preds.image_id[125] == 'i0005'
    with pytest.raises(ValueError) as e: ev.check_predictions(change(preds))
    said = str(e.value)
    assert why in said and 'i0005' in said and 'classic_aug (seed 1)' in said and 'Mend:' in said

def test_f66_every_entry_point_refuses(preds):
    bad = preds.drop(index=125)
    for f in (ev.align, ev.plot_roc, lambda d: ev.summarise(d, {}, 10), lambda d: ev.contrast(d, 'gan_aug', 'classic_aug', B=10)):
        with pytest.raises(ValueError, match='i0005'): f(bad)

def test_f66_columns_one_class_reserved_arm_and_at_most_five_ids(preds):
    with pytest.raises(ValueError, match="patient_id"): ev.check_predictions(preds.drop(columns='patient_id'))
    with pytest.raises(ValueError, match='no rows'): ev.check_predictions(preds[:0])
    with pytest.raises(ValueError, match='one class only'): ev.check_predictions(preds[preds.label == 0])
    with pytest.raises(ValueError, match='reserved'): ev.check_predictions(preds.assign(arm='constant'))
    with pytest.raises(ValueError) as e: ev.check_predictions(preds.assign(probability=np.nan))
    assert 'i0004' in str(e.value) and 'i0005' not in str(e.value)
    assert ev.check_predictions(preds) is preds

def test_align_does_not_depend_on_row_order(preds):
    y, patients, scores = ev.align(preds)
    y2, patients2, scores2 = ev.align(preds.sample(frac=1, random_state=3))
    assert (y == y2).all() and (patients == patients2).all() and all((scores[k] == scores2[k]).all() for k in scores)


# ---- oracles --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('levels', [2, 5, 50, None])
@pytest.mark.parametrize('seed', range(3))
def test_ranking_equals_scikit_learn(levels, seed):
    rng = np.random.default_rng(seed)
    y, p = rng.integers(0, 2, 300), rng.random(300)
    if levels: p = np.floor(p*levels)/levels
    w = np.stack([rng.integers(0, 4, 300), rng.random(300), np.ones(300)])
    for ours, theirs in ((ev.auroc, sk.roc_auc_score), (ev.auprc, sk.average_precision_score)):
        expected = [theirs(y, p, sample_weight=v) for v in w]
        np.testing.assert_allclose(ours(y, p, w), expected, atol=1e-12, rtol=0)
        assert ours(y, p) == pytest.approx(theirs(y, p), abs=1e-12)
        assert ours(y, p, w[1]) == pytest.approx(expected[1], abs=1e-12)

def test_weights_are_copies_and_chunks_do_not_matter():
    rng = np.random.default_rng(1)
    y, p, w = rng.integers(0, 2, 80), rng.integers(0, 9, 80)/8, rng.integers(0, 4, (50, 80)).astype(np.uint16)
    for f in (ev.auroc, ev.auprc):
        np.testing.assert_allclose(f(y, p, w), [f(np.repeat(y, v), np.repeat(p, v)) for v in w], atol=1e-12)
    whole = ev._over_resamples(lambda v: v.cumsum(1)[:, -1], w, 80)
    np.testing.assert_array_equal(ev._over_resamples(lambda v: v.cumsum(1)[:, -1], w, 80, cells=100), whole)

def test_reference_values():
    y, p = [1, 1, 1, 0, 0, 0], [.9, .8, .3, .7, .3, .1]
    assert ev.auroc(y, p) == pytest.approx(5/6, abs=1e-12)
    data = load_breast_cancer()
    scores = dict(zip(data.feature_names, data.data.T))
    for name, expected in (('mean texture', .7758244807356904), ('mean smoothness', .7220416468474182), ('mean symmetry', .6985624438454627)):
        assert ev.auroc(1 - data.target, scores[name]) == pytest.approx(expected, abs=1e-12)
    fpr, tpr = ev.roc_curve(1 - data.target, scores['mean texture'])
    assert np.trapezoid(tpr, fpr) == pytest.approx(.7758244807356904, abs=1e-12)

@pytest.mark.parametrize('bad', [([1, 1], [.1, .2]), ([0, 1], [.1, np.nan]), ([0, 2], [.1, .2]), ([0, 1, 1], [.1, .2])])
def test_ranking_refuses(bad):
    for f in (ev.auroc, ev.auprc, ev.choose_threshold, ev.roc_curve):
        with pytest.raises(ValueError): f(*bad)
    with pytest.raises(ValueError): ev.auroc([0, 1], [.1, .2], np.ones(3))

def test_threshold_metrics_equal_scikit_learn():
    rng = np.random.default_rng(2)
    y, p, w = rng.integers(0, 2, 200), rng.integers(0, 20, 200)/20, rng.integers(0, 3, (4, 200))
    got = ev.at_threshold(y, p, .6, w)
    for i, v in enumerate(w):
        c, k = p >= .6, dict(sample_weight=v)
        expected = dict(accuracy=sk.accuracy_score(y, c, **k), balanced_accuracy=sk.balanced_accuracy_score(y, c, **k),
                        precision=sk.precision_score(y, c, **k), recall=sk.recall_score(y, c, **k), sensitivity=sk.recall_score(y, c, **k),
                        specificity=sk.recall_score(1 - y, ~c, **k), f1=sk.f1_score(y, c, **k), mcc=sk.matthews_corrcoef(y, c, **k))
        tn, fp, fn, tp = sk.confusion_matrix(y, c, **k).ravel()
        for m, e in {**expected, 'tn': tn, 'fp': fp, 'fn': fn, 'tp': tp}.items(): assert got[m][i] == pytest.approx(e, abs=1e-12), m

def test_undefined_is_nan_without_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        never = ev.at_threshold([0, 0, 1], [.1, .2, .3], 1)
        alone = ev.at_threshold([0, 0], [.1, .2], .15)
        assert np.isnan(ev.auroc([0, 1], [.1, .2], [1, 0])) and np.isnan(ev.auprc([0, 1], [.1, .2], [1, 0]))
        assert np.isnan(ev.interval([np.nan, np.nan])).all() and ev.interval([np.nan, 3.]) == (3., 3.)
    assert {k for k, v in never.items() if np.isnan(v)} == {'precision', 'mcc'} and never['f1'] == 0
    assert {k for k, v in alone.items() if np.isnan(v)} == {'sensitivity', 'recall', 'balanced_accuracy', 'mcc'}
    with pytest.raises(ValueError): ev.at_threshold([0, 1], [.1, .2], np.nan)

@pytest.mark.parametrize('seed', range(20))
def test_chosen_threshold_is_the_lowest_best(seed):
    rng = np.random.default_rng(seed)
    y, p = np.r_[0, 1, rng.integers(0, 2, 20)], rng.integers(0, 8, 22)/7
    s = np.unique(p)
    cuts = np.r_[s[0], (s[1:] + s[:-1])/2, 2]
    for rule, value in (('youden', lambda m: m['sensitivity'] + m['specificity']), ('accuracy', lambda m: m['accuracy'])):
        gains = [value(ev.at_threshold(y, p, t)) for t in cuts]
        best = next(t for t, g in zip(cuts, gains) if g > max(gains) - 1e-9)
        assert ev.choose_threshold(y, p, rule) == pytest.approx(best if best < 2 else s[-1])
    with pytest.raises(ValueError): ev.choose_threshold(y, p, 'best')

def test_neighbouring_floats_stay_apart():
    a = .3
    b = np.nextafter(a, 1)
    assert ev.at_threshold([0, 1], [a, b], ev.choose_threshold([0, 1], [a, b]))['accuracy'] == 1

def test_constant_predictor():
    c = ev.constant_predictor(np.repeat([0, 1], [500, 100]))
    assert round(c['accuracy'], 3) == .833 and c['auroc'] == .5 and c['auprc'] == pytest.approx(1/6) and np.isnan(c['precision'])
    assert ev.constant_predictor([1, 1, 0])['accuracy'] == pytest.approx(2/3)
    assert ev.constant_predictor([1, 0])['tp'] == 0   # a draw: negative
    with pytest.raises(ValueError): ev.constant_predictor([1, 1])

def test_published_accuracies():
    printed = [.6583, .7186, .6985, .7035, .7538, .7839, .8090, .7638, .7688, .8040]
    assert all(ev.is_k_over_n(v, 199, 4) for v in printed)
    assert not ev.is_k_over_n(.7038, 199, 4) and not ev.is_k_over_n(.7657, 199, 4)
    assert all(ev.is_k_over_n(v, 624, 4) for v in (.8365, .8846, .8750)) and ev.is_k_over_n(1., 7, 2) and not ev.is_k_over_n(.14, 8, 2)
    assert ev.is_k_over_n(.12, 8, 2) and ev.is_k_over_n(.13, 8, 2)   # .125 printed either way
    with pytest.raises(ValueError): ev.is_k_over_n(70.38, 199, 2)


# ---- resamples and coverage -----------------------------------------------------------------------------------------

def test_resamples_keep_patients_whole_and_strata_full():
    patients, labels = np.array(list('aabbbccdd')), np.array([0, 1, 0, 0, 0, 0, 0, 1, 1])
    w = ev.patient_resamples(patients, labels, 400, 5)
    first = {q: w[:, np.flatnonzero(patients == q)[0]] for q in 'abcd'}
    for q in 'abcd': assert (w[:, patients == q] == first[q][:, None]).all()
    assert (first['a'].astype(int) + first['d'] == 2).all() and (first['b'].astype(int) + first['c'] == 2).all()
    assert {tuple(r) for r in np.c_[first['a'], first['d']]} == {(0, 2), (1, 1), (2, 0)}
    assert (w == ev.patient_resamples(patients, labels, 400, 5)).all() and (w != ev.patient_resamples(patients, labels, 400, 6)).any()
    with pytest.raises(ValueError): ev.patient_resamples(['a', None], [0, 1])
    with pytest.raises(ValueError): ev.patient_resamples(['a', 'b'], [0, 1, 1])

@pytest.mark.slow
def test_patients_cover_and_images_do_not():
    truth_y, _, scores = ev.align(simulate({'raw': 1.4}, n_patients=30_000))
    truth, hits, n = ev.auroc(truth_y, scores['raw', 0]), np.zeros(2), 400
    for i in range(n):
        y, patients, s = ev.align(simulate({'raw': 1.4}, n_patients=90, seed=10_000 + i))
        for j, unit in enumerate((patients, np.arange(len(y)))):
            low, high = ev.interval(ev.auroc(y, s['raw', 0], ev.patient_resamples(unit, y, 300, i)))
            hits[j] += low <= truth <= high
    print('coverage by patients, by images:', hits/n)
    assert .90 <= hits[0]/n <= .98
    assert hits[1]/n < .88

@pytest.mark.slow
def test_null_is_rejected_at_the_nominal_rate_only_by_patients():
    n, rejected = 300, np.zeros(2)
    for i in range(n):
        d = simulate({'a': 1.4, 'b': 1.4}, n_patients=90, run_sd=.5, seed=20_000 + i)
        rejected += [ev.contrast(d.assign(patient_id=d[unit]), 'a', 'b', B=300, seed=i)['p'] < .05 for unit in ('patient_id', 'image_id')]
    print('null rejected by patients, by images:', rejected/n)
    assert .015 <= rejected[0]/n <= .095
    assert rejected[1]/n > .12


# ---- summary, contrast, verdict -------------------------------------------------------------------------------------

def test_summary_of_two_arms_three_seeds_600_images():
    d = simulate({'classic_aug': 1.4, 'gan_aug': 1.9}, n_patients=150, n_seeds=3)
    t = {k: ev.choose_threshold(g.label, g.probability) for k, g in d.groupby(['arm', 'seed'])}
    table = ev.summarise(d, t, B=2000)
    assert list(table) == ['arm', 'seed', 'metric', 'value', 'low', 'high', 'n_images', 'n_patients', 'n_positive', 'threshold']
    assert len(table) == (2*4 + 1)*len(ev.METRICS) and not table.duplicated(['arm', 'seed', 'metric']).any()
    assert set(table.seed) == {'0', '1', '2', 'mean'} and (table[['n_images', 'n_patients', 'n_positive']] == [600, 150, 200]).all(axis=None)
    v = table.set_index(['arm', 'seed', 'metric']).value
    y, _, scores = ev.align(d)
    assert v['gan_aug', '1', 'auroc'] == ev.auroc(y, scores['gan_aug', 1])
    assert v['gan_aug', 'mean', 'auroc'] == pytest.approx(np.mean([v['gan_aug', i, 'auroc'] for i in '012']))
    for m, e in ev.constant_predictor(y).items():
        if m in ev.METRICS: assert v['constant', 'mean', m] == pytest.approx(e, nan_ok=True)
    ok = table.value.notna()
    assert (table.low[ok] <= table.value[ok] + 1e-12).all() and (table.value[ok] <= table.high[ok] + 1e-12).all()
    assert table.threshold.isna().equals(table.seed == 'mean')
    pd.testing.assert_frame_equal(table, ev.summarise(d.sample(frac=1, random_state=0).sort_values('arm'), t, B=2000).set_index(
        ['arm', 'seed', 'metric']).loc[list(v.index)].reset_index())
    t.pop(('gan_aug', 2))
    with pytest.raises(ValueError, match='gan_aug.*Mend'): ev.summarise(d, t, B=10)

@pytest.mark.parametrize('values', [[.7, .8], [.7, .8, .9], [.01, .05, .02, -.03, .04]])
def test_where_patients_are_alike_the_interval_is_the_t_interval(values):
    flat = np.repeat(np.array(values)[:, None], 20_000, axis=1)
    for level in (.9, .95):
        want = student_t.interval(level, len(values)-1, np.mean(values), sem(values))
        assert ev.interval(ev.drawn_means(values, flat, (-np.inf, np.inf)), level) == pytest.approx(want, abs=2e-3)
    assert ev.drawn_means(values, flat, (0, 1)).max() <= 1

def test_one_seed_leaves_the_patients_and_arms_draw_their_own_luck():
    one = np.random.default_rng(0).random((1, 50))
    assert (ev.drawn_means(one[:, 0], one) == one[0]).all()
    flat = np.repeat([[.7], [.8], [.9]], 4000, axis=1)
    a, b = (ev.drawn_means(flat[:, 0], flat, (-np.inf, np.inf), seed=k) for k in (0, 1))
    assert abs(np.corrcoef(a, b)[0, 1]) < .1
    assert ev.interval(ev.drawn_means(flat[:, 0], flat, (-np.inf, np.inf), arms=6)) == pytest.approx(student_t.interval(.95, 12, .8, sem(flat[:, 0])), abs=2e-3)

def test_null_of_three_seeds_whose_luck_is_all_there_is():
    "Two equal arms on very many patients: the plain bootstrap over seeds sees differences in a quarter of the studies."
    rng, wrong = np.random.default_rng(0), dict(t=[], bootstrap=[])
    for n in [3, 5]*300:
        v = rng.normal(0, .01, n)
        for k, d in (('t', ev.drawn_means(v, np.repeat(v[:, None], 400, 1))), ('bootstrap', v[rng.integers(n, size=(400, n))].mean(1))): wrong[k].append(ev.interval(d)[0] > 0 or ev.interval(d)[1] < 0)
    assert binom.ppf(.01, 600, .05)/600 <= np.mean(wrong['t']) <= binom.ppf(.99, 600, .05)/600 and np.mean(wrong['bootstrap']) > .12

def test_contrast_is_paired_antisymmetric_and_never_certain(preds):
    c, back = (ev.contrast(preds, *pair, B=200) for pair in (('gan_aug', 'classic_aug'), ('classic_aug', 'gan_aug')))
    assert c['difference'] == pytest.approx(-back['difference']) and c['p'] == back['p'] and c['low'] == pytest.approx(-back['high'])
    copy = pd.concat([preds, preds[preds.arm == 'gan_aug'].assign(arm='copy')])
    same = ev.contrast(copy, 'copy', 'gan_aug', B=200)
    assert same['p'] == 1 and same['low'] == same['high'] == 0
    sure = ev.contrast(simulate({'a': 9, 'b': 0}, n_patients=60), 'a', 'b', B=200)
    assert sure['p'] == 2/201
    assert {'n_seeds', 'n_images', 'n_patients', 'n_positive', 'low90', 'high90'} <= set(c)

def test_contrast_refuses_unpaired_runs_and_missing_thresholds(preds):
    with pytest.raises(ValueError, match='Mend: pair'): ev.contrast(preds[:360], 'gan_aug', 'classic_aug', B=10)
    with pytest.raises(ValueError, match='seeds'): ev.contrast(preds, 'gan_aug', 'nobody', B=10)
    with pytest.raises(ValueError, match='threshold'): ev.contrast(preds, 'gan_aug', 'classic_aug', 'accuracy', B=10)
    with pytest.raises(ValueError, match='unknown'): ev.contrast(preds, 'gan_aug', 'classic_aug', 'loss', B=10)
    t = {(a, s): .5 for a in ('gan_aug', 'classic_aug') for s in (0, 1)}
    c = ev.contrast(preds, 'gan_aug', 'classic_aug', 'balanced_accuracy', B=200, thresholds=t)
    y, _, scores = ev.align(preds)
    by_seed = [ev.at_threshold(y, scores['gan_aug', s], .5)['balanced_accuracy'] - ev.at_threshold(y, scores['classic_aug', s], .5)['balanced_accuracy'] for s in (0, 1)]
    assert c['difference'] == pytest.approx(np.mean(by_seed))

def planted(case, seed):
    "A contrast whose word we know."
    if case == 'tiny': return ev.contrast(simulate({'arm': 2.2, 'base': 1.4}, n_patients=12, n_seeds=5, seed=seed), 'arm', 'base', B=400)
    d = simulate({'arm': dict(helpful=2.2, harmful=.7, identical=1.4)[case], 'base': 1.4}, n_patients=240, n_seeds=5, seed=seed)
    if case == 'identical':   # the base's own predictions with a little rounding noise
        noise = np.random.default_rng(seed).normal(0, .01, 5*960)
        d.loc[d.arm == 'arm', 'probability'] = (d.probability[d.arm == 'base'].values + noise).clip(0, 1)
    return ev.contrast(d, 'arm', 'base', B=400)

@pytest.mark.parametrize('case,word', [('helpful', 'helps'), ('harmful', 'hurts'), ('identical', 'equivalent'), ('tiny', 'inconclusive')])
def test_planted_arms_get_their_word(case, word):
    words = [ev.verdict(planted(case, s))['word'] for s in range(5)]
    assert words == [word]*5, words   # power well above 80 % for what was planted

def test_two_perfect_scores_on_few_patients_prove_nothing():
    d = simulate({'arm': 20, 'base': 20}, n_patients=12, n_seeds=5)
    c = ev.contrast(d, 'arm', 'base', B=200)
    assert c['low90'] == c['high90'] == 0 and ev.verdict(c)['word'] == 'inconclusive' and ev.verdict(c, min_patients=1)['word'] == 'equivalent'

def test_verdict_rules_and_sentence():
    c = dict(arm='gan_aug', base='classic_aug', metric='auroc', difference=.01, low=.002, high=.018, low90=.003, high90=.017, p=.01,
             n_seeds=10, n_images=600, n_patients=150, n_positive=200, n_rarer=50)
    def word(**change): return ev.verdict({**c, **change})['word']
    assert word() == 'helps'                                             # precedence over equivalent
    assert word(p=.06) == 'equivalent' and word(p=.06, high90=.021) == 'inconclusive'
    assert word(low=-.018, high=-.002, low90=-.017, high90=-.003) == 'hurts'
    assert word(low=-.001) == 'equivalent' and word(low=-.001, low90=-.02) == 'inconclusive'
    assert word(n_rarer=9) == 'inconclusive' and word(difference=np.nan, low=np.nan, high=np.nan, low90=np.nan, high90=np.nan, p=1.) == 'inconclusive'
    said = ev.verdict(c)['sentence']
    assert all(x in said for x in ('+0.010', '+0.002 to +0.018', '10 seeds', '150 patients', '600 images', 'helps')) and 'indication' not in said
    assert 'an indication only: fewer than 5 seeds' in ev.verdict({**c, 'n_seeds': 4})['sentence']
    assert 'one training run cannot separate benefit from luck' in ev.verdict({**c, 'n_seeds': 1})['sentence']
    assert 'no effect' not in ev.verdict({**c, 'p': .5, 'high90': .1})['sentence']


# ---- figures and imports --------------------------------------------------------------------------------------------

def test_figures_set_no_style_and_say_what_they_show(preds):
    before = dict(plt.rcParams)
    ax = ev.plot_roc(preds, B=100)
    text = [t.get_text() for t in ax.get_legend().get_texts()]
    y, _, scores = ev.align(preds)
    mean = np.mean([ev.auroc(y, scores['gan_aug', s]) for s in (0, 1)])
    assert len(text) == 2 and any(t.startswith(f'gan_aug {mean:.3f} [') for t in text)
    lines = [l.get_ydata() for l in ax.get_lines() if l.get_linewidth() == 2]
    assert all((np.diff(l) >= -1e-12).all() and l[0] == 0 and l[-1] == 1 for l in lines)
    ax = ev.plot_confusion([0, 0, 1, 1, 1], [.1, .9, .8, .2, .7], .5, ('normal', 'pneumonia'))
    assert [t.get_text() for t in ax.texts] == ['1\n50%', '1\n50%', '1\n33%', '2\n67%']
    mine = plt.subplots()[1]
    assert ev.plot_roc(preds, mine, B=10) is mine
    assert dict(plt.rcParams) == before
    plt.close('all')

def test_module_needs_neither_torch_nor_scikit_learn():
    code = "import sys, gansynth.evaluation; sys.exit(bool({'torch', 'sklearn', 'fastai'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0
