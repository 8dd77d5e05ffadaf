"A grid with a known truth must give the verdict that was planted, whatever failed, and whoever finished first."
import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom, t as student
from sklearn.metrics import roc_auc_score

from gansynth.comparisons import Evidence, Stand, compare_all, simulate
from gansynth.evaluation import interval
from gansynth.core import UserError
from gansynth.findings import SCHEMA, Findings

RAW, AUG, GAN = ('raw', '', 0.), ('classic_aug', '', 0.), ('gan_classic', 'g', 1.)


def findings(gaps, sets=None, failed=None, design=None, keep=None, **kw):
    "Findings of a simulated grid; `keep`: which cells finished."
    kw = dict(n=400, n_runs=3) | kw
    preds, cells = simulate(gaps, **kw)
    if keep is not None:
        cells = cells[keep(cells)]
        preds = preds.merge(cells[['split', 'fraction', 'classifier', 'label', 'run']])
    return Findings(design or Stand(n_boot=400, seeds=tuple(range(kw['n_runs']))), preds, cells, sets, failed)


def rows(f, family='primary'):
    c = f.tables['contrasts']
    return c[c.family == family]


def audit(generator='g', fraction=1., **changes):
    return [dict(generator=generator, split=0, fraction=fraction, gan_seed=k, n=10, steps=100, verdict='PASS', words='', weights='', weights_words='', kid=.1, kid_low=.05, kid_high=.2, collapsed=False) | {'class': 'ill'} | changes for k in range(3)]


@pytest.mark.parametrize('gap, n, word', [(2.6, 400, 'helps'), (.6, 400, 'hurts'), (2.6, 36, 'inconclusive')])
def test_planted_truth(gap, n, word):
    f = findings({RAW: 1.4, AUG: 1.6, GAN: gap}, n=n)
    r, = rows(f).itertuples()
    assert (r.word, r.base, f.answer['word']) == (word, 'classic_aug', word)
    assert ('no benefit shown' in r.sentence) == (word != 'helps') and ('No benefit shown' in f.answer['sentence']) == (word != 'helps')
    assert 'phantom' in f.answer['certainty'] and 'indication' in f.answer['certainty']


def test_equivalent():
    preds, cells = simulate({RAW: 1.5, GAN: 1.5}, n=3000, n_runs=8, n_gans=8)
    r, = rows(Findings(Stand(n_boot=400, seeds=tuple(range(8))), preds, cells, None, None)).itertuples()
    assert r.word == 'equivalent' and r.p_tost < .05 and 'no benefit shown: equivalent' in r.sentence


def test_dose_and_base_are_chosen_on_validation():
    "Validation likes dose 0.5 and oversampling; the test part would like dose 2 and classic augmentation."
    half, two, over = ('gan_classic', 'g', .5), ('gan_classic', 'g', 2.), ('oversample', '', 0.)
    f = findings({RAW: 1., AUG: 2., over: 1.2, half: 1.5, two: 3.}, valid_bonus={half: 4., over: 3.})
    means = f.tables['results'].query("metric == 'auroc'").set_index('label').value
    assert means['gan_classic[g 2x]'] > means['gan_classic[g 0.5x]'] and means['classic_aug'] > means['oversample']      # the test part disagrees
    r, = rows(f).itertuples()
    assert (r.label, r.base) == ('gan_classic[g 0.5x]', 'oversample')
    assert set(rows(f, 'secondary').base) == {'oversample'} and 'gan_classic[g 2x]' in set(rows(f, 'secondary').label)


def test_base_is_never_raw_when_something_better_was_run():
    assert set(rows(findings({RAW: 1., AUG: 2., GAN: 2.}, n=100)).base) == {'classic_aug'}


def test_row_order_does_not_show(tmp_path):
    preds, cells = simulate({RAW: 1.4, AUG: 1.6, GAN: 2., ('warm_start', 'g', 1.): 1.9, ('gan_aug', 'g', 1.): 1.8}, fractions={.5: 40, 1.: 80}, splits=(0, 1), n_runs=2, parts=('valid', 'test', 'external'))
    sets, failed = pd.DataFrame(audit()), pd.DataFrame([dict(key=k, kind='cell', name='x', error='no memory') for k in 'ba'])
    def save(seed, name): return Findings(Stand(n_boot=100, seeds=(0, 1)), *(t.sample(frac=1, random_state=seed) for t in (preds, cells.assign(seconds=seed), sets, failed))).save(tmp_path/name)
    a, b = save(1, 'a'), save(2, 'b')
    files = sorted(p.relative_to(a) for p in a.rglob('*') if p.is_file())
    assert len(files) > 12 and all((a/p).read_bytes() == (b/p).read_bytes() for p in files)
    assert all((a/p).stat().st_size < 100_000 for p in files if p.suffix == '.png')
    assert {p.stem for p in files if p.suffix == '.png'} == {f'curve_{k}' for k in ('forest', 'doses', 'orders', 'generators', 'curve', 'roc')}


def test_schema_is_what_is_written(tmp_path):
    folder = findings({RAW: 1.4, GAN: 2.}, n=100).save(tmp_path)
    assert {p.stem: list(pd.read_csv(p).columns) for p in folder.glob('*.csv')} == {t: list(c) for t, c in SCHEMA.items()}
    assert all(text for c in SCHEMA.values() for text in c.values())


def test_failed_run_is_left_out_on_both_sides():
    f = findings({RAW: 1.4, AUG: 1.6, GAN: 2.6}, keep=lambda c: ~((c.label == 'gan_classic[g 1x]') & (c.run == 1)), failed=[dict(key='k', kind='cell', name='gan_classic run 1', error='out of memory')])
    r, = rows(f).itertuples()
    assert r.n_seeds == 2 and '2 of 3 planned runs' in r.sentence and '1 steps of the study failed' in f.answer['certainty']
    e = f.evidence.parts[0, 1., 'test']
    want = np.mean([roc_auc_score(e.y, e.scores['cnn', 'gan_classic[g 1x]', k]) - roc_auc_score(e.y, e.scores['cnn', 'classic_aug', k]) for k in (0, 2)])
    assert r.difference == pytest.approx(want)


def test_no_shared_run_gives_no_comparison():
    f = findings({RAW: 1.4, GAN: 2.6}, keep=lambda c: (c.generator == '') == (c.run == 0), n=100)
    assert not len(rows(f)) and f.answer['word'] == 'inconclusive'


def test_without_generators():
    f = findings({RAW: 1.4, AUG: 1.6}, n=100)
    assert f.answer['word'] == 'inconclusive' and 'no arm with synthetic images' in f.answer['sentence'] and not len(rows(f))
    assert set(f.figures()) == {'forest', 'roc'} and list(rows(f, 'secondary').label) == ['raw']
    only = findings({RAW: 1.4}, n=100)
    assert only.answer['figure'] == 'roc' and set(only.figures()) == {'roc'} and not len(only.tables['contrasts'])


def test_without_an_opponent():
    "Only synthetic arms were finished: nothing to compare with, but tables all the same."
    f = findings({GAN: 2., ('synth_only', 'g', 1.): 1.}, n=100)
    assert not len(f.tables['contrasts']) and f.answer['by_fraction'] == [] and len(f.tables['results'])


def test_single_run():
    f = findings({RAW: 1.4, AUG: 1.6, GAN: 2.6}, n_runs=1)
    r, = rows(f).itertuples()
    assert (r.n_seeds, r.n_gans, r.level) == (1, 1, 'indication') and 'one training run cannot separate benefit from luck' in r.sentence and '1 generator seed, too few to tell how much generators differ' in r.sentence


def test_runs_that_share_a_gan_count_once():
    "Four runs, three generators: runs 0 and 3 are averaged first, so the difference is not the plain mean over runs."
    f = findings({RAW: 1.4, GAN: 2.}, n_runs=4)
    r, = rows(f).itertuples()
    e = f.evidence.parts[0, 1., 'test']
    d = [roc_auc_score(e.y, e.scores['cnn', 'gan_classic[g 1x]', k]) - roc_auc_score(e.y, e.scores['cnn', 'raw', k]) for k in range(4)]
    assert r.n_gans == 3 and r.difference == pytest.approx(np.mean([(d[0] + d[3])/2, d[1], d[2]])) and r.difference != pytest.approx(np.mean(d), abs=1e-9)


def test_a_lucky_generator_widens_the_interval():
    "Nine runs of three generators, of which one is good: more runs of the same three must not feign certainty."
    preds, cells = simulate({RAW: 1.5, GAN: 1.5}, n_runs=9, n_gans=3, n=600)
    lucky = (preds.label == 'gan_classic[g 1x]') & (preds.run % 3 == 0)
    preds.loc[lucky, 'probability'] = (preds.probability + .4*preds.y).clip(0, 1)[lucky]
    def width(c):
        r = compare_all(Evidence(Stand(n_boot=400), preds, c))[0]
        return r['high'] - r['low']
    assert width(cells) > 1.3*width(cells.assign(gan_seed=cells.run))


def test_external_site():
    f = findings({RAW: 1.4, AUG: 1.6, GAN: 2.6}, parts=('valid', 'test', 'external'))
    r, = rows(f, 'external').itertuples()
    assert (r.label, r.base) == tuple(rows(f)[['label', 'base']].iloc[0]) and 'at the other site' in r.sentence and r.difference != rows(f).difference.iloc[0]


def test_orders():
    gaps = {RAW: 1.4, AUG: 1.6, ('real_warm_start', '', 0.): 1.5, ('gan_aug', 'g', .5): 1.7, ('gan_aug', 'g', 2.): 1.7, ('warm_start', 'g', 1.): 2.4, ('synth_finetune', 'g', 1.): .6}
    f = findings(gaps)
    assert {(r.label.split('[')[0], r.base) for r in rows(f, 'order').itertuples()} == {('warm_start', 'gan_aug[g 0.5x]'), ('synth_finetune', 'gan_aug[g 0.5x]'), ('warm_start', 'synth_finetune[g 1x]'), ('warm_start', 'real_warm_start')}
    assert list(f.tables['orders'].order) == ['mix', 'synthetic first', 'real first', 'real twice']
    assert list(f.tables['doses'].query("arm == 'gan_aug'").ratio) == [0, .5, 2]


def test_several_splits_by_hand():
    f = findings({RAW: 1.4, AUG: 1.6, GAN: 2.6}, splits=(0, 1, 2, 3), n_runs=2, fractions={1.: 300})
    c = rows(f)
    every, one = c[c.split == 'all'].iloc[0], c[c.split != 'all']
    d = one.difference.to_numpy()
    se = np.sqrt(d.var(ddof=1)*(1/4 + 200/300))
    assert every.difference == pytest.approx(d.mean()) and every.p == pytest.approx(2*student.sf(abs(d.mean()/se), 3))
    assert (every.low, every.high90) == pytest.approx((d.mean() - student.ppf(.975, 3)*se, d.mean() + student.ppf(.95, 3)*se))
    assert f.answer['word'] == every.word and [r['split'] for r in f.answer['by_fraction']] == ['all'] and '4 overlapping splits' in every.sentence


def test_one_split_repeated_is_inconclusive():
    preds, cells = simulate({RAW: 1.4, GAN: 2.6}, n_runs=2)
    both = [pd.concat([t, t.assign(split=1)]) for t in (preds, cells)]
    f = Findings(Stand(n_boot=100, seeds=(0, 1)), *both, None, None)
    assert f.answer['word'] == 'inconclusive' and len(json.dumps(f.answer, allow_nan=False))


def test_direct_bootstrap_agrees():
    "An oracle that shares no line: patients drawn by name, rows copied, AUROC from scikit-learn, one run, so no run is drawn."
    preds, cells = simulate({RAW: 1.4, GAN: 2.2}, n_runs=1, n=200)
    r = compare_all(Evidence(Stand(n_boot=2000, seeds=(0,)), preds, cells))[0]
    t = preds[preds.part == 'test'].pivot(index=['image_id', 'patient_id', 'y'], columns='label', values='probability').reset_index()
    rng, ill, every = np.random.default_rng(7), t.groupby('patient_id').y.max(), {p: g.index.to_numpy() for p, g in t.groupby('patient_id')}
    def once():
        i = np.concatenate([every[p] for k in (0, 1) for p in rng.choice(ill.index[ill == k], (ill == k).sum())])
        return roc_auc_score(t.y[i], t['gan_classic[g 1x]'][i]) - roc_auc_score(t.y[i], t.raw[i])
    d = np.array([once() for _ in range(600)])
    assert r['difference'] == pytest.approx(roc_auc_score(t.y, t['gan_classic[g 1x]']) - roc_auc_score(t.y, t.raw))
    assert np.quantile(d, [.025, .975]) == pytest.approx([r['low'], r['high']], abs=.15*(r['high'] - r['low']))


def test_holm_by_hand():
    f = findings({RAW: 1.4, AUG: 1.6, GAN: 2.1, ('gan_classic', 'h', 1.): 1.7, ('gan_classic', 'i', 1.): 1.3}, n=200)
    c = rows(f).sort_values('p')
    want = np.minimum(1, np.maximum.accumulate(c.p.to_numpy()*[3, 2, 1]))
    assert c.p_holm.to_numpy() == pytest.approx(want) and 'p adjusted for 3 comparisons' in c.sentence.iloc[0]
    for family, t in f.tables['contrasts'].groupby('family'): assert (t.p_holm >= t.p - 1e-12).all() and t.p_holm.max() <= 1


def test_too_few_resamples_are_told():
    f = findings({RAW: 1.4, GAN: 2.6, ('gan_classic', 'h', 1.): 2.6}, design=Stand(n_boot=60, seeds=(0, 1, 2)), n=100)
    assert '60 resamples are too few for 2 comparisons' in f.answer['certainty']


def test_failed_audit_and_collapse_spoil_a_benefit():
    gaps = {RAW: 1.4, AUG: 1.6, GAN: 2.6}
    for sets, said in ((audit(verdict='FAIL'), 'the privacy audit says FAIL'), (audit(collapsed=True), 'the generator collapsed')):
        a = findings(gaps, sets).answer
        assert a['word'] == 'helps' and a['sentence'].startswith('Not a plain benefit') and said in a['sentence'] and said in a['certainty']
    assert 'FAIL' not in findings(gaps, audit()).answer['certainty'] and 'not auditable for privacy: g: ill' in findings(gaps, audit(verdict='not auditable')).answer['certainty']
    other = findings(gaps, audit('unused', verdict='FAIL')).answer
    assert 'FAIL' not in other['sentence'] + other['certainty']


def test_planted_generators_are_named():
    f = findings({RAW: 1.4, GAN: 2.6}, design=Stand(source='folder:xrays', n_boot=100, seeds=(0, 1, 2), generators=(SimpleNamespace(name='g', kind='fresh'),)), n=100)
    assert 'planted generators, a test of the method on the phantom: g' in f.answer['certainty'] and f.words == 'Images: folder:xrays'
    assert 'Phantom' in findings({RAW: 1.4}, n=100).words


def test_mixed_verdicts_say_which_holds_where():
    f = findings({RAW: 1.4, AUG: 1.6, GAN: lambda n: 2.8 if n < 100 else .4}, fractions={.25: 50, 1.: 200})
    a = f.answer
    assert a['word'] == 'inconclusive' and not a['agrees'] and [r['word'] for r in a['by_fraction']] == ['helps', 'hurts']
    assert 'help (with 25 % of the real patients' in a['sentence'] and 'hurt (with 100 % of the real patients' in a['sentence']
    json.dumps(a, allow_nan=False)


def test_rare_disease_is_judged_by_auprc():
    f = findings({RAW: 1.4, GAN: 2.6}, prevalence=.08)
    assert set(rows(f).metric) == {'auprc'} and 'AUPRC' in f.answer['sentence'] and 'AUPRC' in f.figures()['forest'].axes[0].get_xlabel()


def test_worth_and_curve_need_sizes():
    gaps = {RAW: lambda n: 3 - 12/n**.5, GAN: lambda n: 3 - 12/(2*n)**.5}
    f = findings(gaps, fractions={.1: 40, .2: 80, .5: 200, 1.: 400})
    assert len(f.tables['worth']) == 4 and len(f.tables['curve']) == 8 and f.answer['figure'] == 'curve'
    few = findings(gaps, fractions={.1: 40, 1.: 400})
    assert not len(few.tables['worth']) and list(few.tables['worth']) == list(SCHEMA['worth']) and len(few.tables['curve']) == 4
    assert not len(findings(gaps, n=100).tables['curve'])


def test_thresholds_are_the_frozen_ones():
    f = findings({RAW: 1.4}, n=100, n_runs=2)
    e, r = f.evidence.parts[0, 1., 'test'], f.tables['results'].set_index(['label', 'metric']).value
    def sensitivity(t): return np.mean([np.mean(e.scores['cnn', 'raw', k][e.y == 1] >= t) for k in (0, 1)])
    assert r['raw', 'sensitivity'] == pytest.approx(sensitivity(.5)) and r['raw', 'sensitivity_at_90_specificity'] == pytest.approx(sensitivity(.8))
    preds, cells = simulate({RAW: 1.4}, n_runs=2)
    t = Findings(Stand(n_boot=50), preds, cells.assign(t90=np.nan), None, None).tables['results'].set_index('metric')
    assert np.isnan(t.value['sensitivity_at_90_specificity']).all()


def test_claim_needs_runs_and_generators():
    f = findings({RAW: 1.4, GAN: 2.6}, n_runs=10, n=100)
    assert rows(f).level.item() == 'claim' and f.answer['level'] == 'claim' and 'a claim needs' not in f.answer['certainty']
    assert rows(findings({RAW: 1.4, GAN: 2.6}, n_runs=10, n_gans=2, n=100)).level.item() == 'report'


def test_what_does_not_fit_is_refused():
    preds, cells = simulate({RAW: 1.4, GAN: 2.})
    with pytest.raises(UserError, match='do not fit together'): Findings(Stand(), preds, cells[1:], None, None)
    with pytest.raises(UserError, match='table cells lacks threshold'): Findings(Stand(), preds, cells.drop(columns='threshold'), None, None)
    with pytest.raises(UserError, match='differ between runs'): Findings(Stand(), preds.drop(index=preds.index[preds.part == 'test'][5]), cells, None, None)
    with pytest.raises(UserError, match='no classifier was finished'): Findings(Stand(), preds, cells[:0], None, None)


@pytest.mark.slow
def test_null_simulation():
    "200 studies without any effect, dose and base chosen on validation: verdicts in at most 5 %, within the binomial band."
    gaps = {RAW: 1.5, AUG: 1.5, ('gan_classic', 'g', .5): 1.5, GAN: 1.5}
    words = [compare_all(Evidence(Stand(n_boot=200, seeds=(0, 1, 2)), *simulate(gaps, n_runs=3, n=80, seed=k)))[0]['word'] for k in range(200)]
    assert sum(w in ('helps', 'hurts') for w in words) <= binom.ppf(.99, 200, .05)


def test_power():
    "The same studies with a planted gain: most are seen, so the null simulation is no empty promise."
    gaps = {RAW: 1.5, AUG: 1.5, ('gan_classic', 'g', .5): 2.2, GAN: 2.2}
    words = [compare_all(Evidence(Stand(n_boot=200, seeds=(0, 1, 2)), *simulate(gaps, n_runs=3, n=100, seed=k)))[0]['word'] for k in range(20)]
    assert words.count('helps') >= 16
