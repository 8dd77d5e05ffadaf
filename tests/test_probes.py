"Probes: intervals that hold under the null, planted looks, planted shortcuts, planted swaps, and every refusal."
from dataclasses import replace

import numpy as np
import pytest

from gansynth.core import UserError
from gansynth.features import random_conv
from gansynth.fidelity import blurred
from gansynth.phantom import phantom
from gansynth.probes import LEAST, Probe, check_papers, label_check, match_intensity, plain_statistics, plot_probe, probe_scores, real_or_synthetic, refuse_swapped, shortcut_risk, told_apart
from gansynth.statistics import auc_interval
from gansynth.synthesis import Synthetic

NAMES = ('normal', 'pneumonia')


@pytest.fixture(scope='module')
def pool():
    "Phantom images: features of each, and who is shown."
    d = phantom(n_patients=600, size=32, prevalence=.4, seed=5)
    return random_conv()(d['images']), d['patients']


@pytest.fixture(scope='module')
def sets():
    "Real phantom images with their patients, and one image of each of 80 fresh patients."
    d, f = (phantom(n_patients=80, size=32, prevalence=.4, seed=s) for s in (0, 1000))
    return d['images'], d['patients'], f['images'][np.unique(f['patients'], return_index=True)[1]]


def numbered(i):
    "Images that carry a number below 65,536, and nothing else."
    return np.stack([i % 256, i//256], 1).astype('uint8')[:, None]


def looked_up(table): return lambda x: table[x[:, 0, 0]+256*x[:, 0, 1].astype(int)]


def noise(n, seed=0, size=16): return np.random.default_rng(seed).integers(0, 256, (n, size, size), 'uint8')


def null(pool, number, patients=40, one_each=False):
    "Two groups of patients who differ in nothing: told apart with folds by patient, and by image."
    table, who = pool
    names = np.random.default_rng(number).permutation(np.unique(who))
    a, b = (np.flatnonzero(np.isin(who, n)) for n in (names[:patients], names[patients:2*patients]))
    if one_each: b = b[np.unique(who[b], return_index=True)[1]]
    return [told_apart(probe_scores(numbered(a), numbered(b), looked_up(table), *w, seed=number)) for w in ((who[a], who[b]), (None, None))]


@pytest.mark.slow
@pytest.mark.parametrize('one_each', [False, True], ids=['several images of both', 'one of each synthetic'])
def test_null_coverage(pool, one_each):
    rows = [null(pool, i, one_each=one_each) for i in range(60)]
    auc, low, high = (np.array([[r[k] for r in pair] for pair in rows]).T for k in ('auroc', 'low', 'high'))
    covered, narrow = (low <= .5) & (.5 <= high), np.abs(auc-.5) <= (high-low)/2/2**.5
    assert covered[0].sum() >= 53 and abs(auc[0].mean()-.5) < .025       # P(fewer than 53 of 60) is .01 at 95 %
    assert auc[1].mean() > auc[0].mean()+.02                             # people are recognised ...
    if not one_each:
        assert covered[1].sum() < 45 and auc[1].mean() > .55             # ... and the interval breaks
        assert narrow[0].sum() < covered[0].sum()                        # the doubled variance is used


def test_interval_against_delong_and_repeated_persons():
    rng = np.random.default_rng(0)
    y, s = np.repeat([0, 1], [40, 25]), rng.normal(0, 1, 65)+.8*np.repeat([0, 1], [40, 25])
    g = np.arange(65).astype(str)
    auc, low, high = auc_interval(y, s)
    r = told_apart(Probe(y, s, g))
    assert r['auroc'] == pytest.approx(auc) and r['high']-r['low'] == pytest.approx(2**.5*(high-low)) and (r['n_real'], r['n_fake']) == (40, 25)
    four = told_apart(Probe(*(np.tile(v, 4) for v in (y, s, g))))
    assert [four[k] for k in ('auroc', 'low', 'high')] == pytest.approx([r[k] for k in ('auroc', 'low', 'high')])
    strangers = told_apart(Probe(np.tile(y, 4), np.tile(s, 4), np.arange(260).astype(str)))
    assert strangers['high']-strangers['low'] < .6*(r['high']-r['low'])


def test_interval_where_all_are_told():
    y, g = np.repeat([0, 1], [30, 12]), np.r_[np.arange(30)//3, np.arange(100, 112)].astype(str)
    r = told_apart(Probe(y, y+.1*np.arange(42)/42, g))
    assert (r['auroc'], r['high']) == (1, 1) and r['low'] == pytest.approx(.025**.1)     # 10 persons of the rarer kind


def test_planted_looks(sets):
    real, who, fresh = sets
    tell = lambda x: real_or_synthetic(real, x, patients=who)
    dim, soft = (.75*fresh).round().astype('uint8'), blurred(fresh, 1/30)
    r = {k: tell(x) for k, x in dict(fresh=fresh, dim=dim, soft=soft, dim_matched=match_intensity(dim, real), soft_matched=match_intensity(soft, real), copies=real[:80]).items()}
    assert r['fresh']['low'] <= .5 <= r['fresh']['high'] and r['dim_matched']['low'] <= .5
    assert min(r[k]['low'] for k in ('dim', 'soft', 'soft_matched')) > .9 and r['copies']['auroc'] < .5
    assert tell(dim) == tell(dim) and set(r['dim']) == {'auroc', 'low', 'high', 'n_real', 'n_fake'}
    other = real_or_synthetic(real, dim, lambda x: np.c_[plain_statistics(x)[:, 7:], np.arange(len(x)) % 7], who)     # features of the caller are used
    assert other['auroc'] < r['dim']['auroc']


def test_folds_keep_a_patient_together():
    seen = np.arange(200)//5
    x = np.random.default_rng(0).normal(0, 1, (40, 30))[seen]            # a patient's images are the same: only a memory could tell
    table = np.r_[x, np.random.default_rng(1).normal(0, 1, (200, 30))]
    asked = lambda who: real_or_synthetic(numbered(np.arange(200)), numbered(np.arange(200, 400)), looked_up(table), who)
    assert asked(None)['low'] > .6 and asked(seen)['low'] < .5


@pytest.mark.parametrize('real, fake, who, words', [
    (noise(9), noise(20), None, 'real: 9 images'), (noise(20), noise(9), None, 'synthetic: 9 images'), (noise(20), noise(20), np.arange(20)//3, 'real: 7 patients'),
    (noise(20), noise(20, size=17), None, 'different sizes'), (noise(20)/255, noise(20), None, 'bytes in 0..255'), (noise(20), noise(20)/127.5-1, None, 'bytes in 0..255'),
    (noise(20), noise(20), np.arange(19), 'name one for each image')])
def test_probe_refuses(real, fake, who, words):
    with pytest.raises(UserError, match=words): real_or_synthetic(real, fake, patients=who)
    with pytest.raises(UserError, match='NaN'): real_or_synthetic(noise(20), noise(20, 1), lambda x: np.full((len(x), 2), np.nan))


def test_ten_are_enough():
    assert real_or_synthetic(noise(LEAST), noise(LEAST, 1)//2)['n_real'] == 10


@pytest.mark.parametrize('images, like', [(noise(6), noise(5, 1)//2), (noise(6)//3+40, noise(9, 1, 20)), (np.full((2, 8, 8), 7, 'uint8'), noise(3)), (noise(6)//64*64, noise(5)//32*32)])
def test_match_intensity(images, like):
    out = match_intensity(images, like)
    values, ranks = np.unique(images), [((images < v).mean()+(images <= v).mean())/2 for v in np.unique(images)]
    assert (np.quantile(like, ranks, method='inverted_cdf') == [out[images == v][0] for v in values]).all()
    for v in values: assert len(set(out[images == v])) == 1
    assert (np.diff([int(out[images == v][0]) for v in values]) >= 0).all() and set(np.unique(out)) <= set(np.unique(like))
    assert (match_intensity(out, like) == out).all() and (match_intensity(images, images) == images).all() and out.dtype == np.uint8 and out.shape == images.shape


def test_match_intensity_pools_and_refuses():
    dark, light = noise(1)//4, 150+noise(1)//4
    out = match_intensity(np.r_[dark, light], noise(8))
    assert out[0].max() <= out[1].min()                                  # not image by image
    for bad in ((noise(2)/255, noise(2)), (noise(2), noise(2)/255), (noise(2)[0], noise(2))):
        with pytest.raises(UserError, match='images 1'): match_intensity(*bad)


def level(images): return images.mean((1, 2))/255
def mind(share, seed):
    "A 'classifier': noise of its own, and a share of brightness."
    noise = lambda x: np.array([np.random.default_rng([seed, int(i.astype(int).sum())]).random() for i in x])
    return lambda x: (1-share)*noise(x)+share*level(x)


def test_shortcut_planted_and_absent():
    rng = np.random.default_rng(0)
    x = (rng.integers(60, 140, (120, 1, 1))+rng.integers(0, 40, (120, 12, 12))).astype('uint8')
    who, look = np.arange(120)//3, lambda x: x+60
    controls = [mind(.3, s) for s in range(1, 7)]
    bad, good = (shortcut_risk(mind(share, 99), controls, x, look, who) for share in (1, .3))
    assert bad['low'] > 0 and bad['auroc'] > .8 and good['low'] <= 0 <= good['high'] and (bad['n'], bad['n_patients'], bad['n_controls']) == (120, 40, 6)
    assert shortcut_risk(lambda x: 1-mind(1, 99)(x), controls, x, look, who)['high'] < 0
    alone = shortcut_risk(mind(.3, 99), controls, x, look)
    assert alone['excess'] == good['excess'] and alone['low'] != good['low']
    flat = shortcut_risk(lambda x: np.full(len(x), .5), [lambda x: np.full(len(x), .5)]*3, x, look, who)
    assert [flat[k] for k in ('excess', 'low', 'high')] == [0, 0, 0]
    certain = shortcut_risk(lambda z: (z.mean((1, 2)) > 190).astype(float), [lambda x: np.full(len(x), .5)]*3, x, lambda x: np.full_like(x, 200), who)
    assert certain['auroc'] == 1 and certain['high']-certain['excess'] == pytest.approx(1-.025**(1/40))


def test_shortcut_null_coverage():
    "One more classifier like the controls is called a shortcut about as seldom as promised, although all differ."
    rng, said = np.random.default_rng(3), []
    for i in range(120):
        x = (rng.integers(60, 140, (40, 1, 1))+rng.integers(0, 40, (40, 8, 8))).astype('uint8')
        arm, *controls = [mind(s, 1000*i+k) for k, s in enumerate(np.clip(rng.normal(.4, .15, 6), 0, 1))]
        r = shortcut_risk(arm, controls, x, lambda x: x+60)
        said.append(r['low'] > 0 or r['high'] < 0)
    assert sum(said) <= 12                                               # P(more than 12 of 120) is .01 at 5 %


@pytest.mark.parametrize('change, words', [
    (dict(controls=[level]), 'train more seeds'), (dict(look=lambda x: x), 'changes nothing'), (dict(look=lambda x: x[:, ::2, ::2]), 'different sizes'), (dict(look=lambda x: x[1:]//2), 'each image back'),
    (dict(look=lambda x: x/2), 'bytes'), (dict(negatives=noise(9)), 'at least 10'), (dict(patients=np.arange(20)//4), '5 patients'), (dict(probability=lambda x: np.ones((len(x), 2))), 'one probability'),
    (dict(probability=lambda x: 5*level(x)-1), 'outside'), (dict(controls=[level, lambda x: level(x)*np.nan]), 'outside')])
def test_shortcut_refuses(change, words):
    with pytest.raises(UserError, match=words): shortcut_risk(**dict(probability=level, controls=[level, level], negatives=noise(20), look=lambda x: x//2, patients=None) | change)


def planted(gap, n=40, seed=0):
    "Two sets whose brightness is `gap` standard deviations apart, the second the brighter one."
    rng = np.random.default_rng(seed)
    return {c: np.repeat((128+20*(rng.normal(0, 1, (n, 1, 1))+g)).clip(0, 255).astype('uint8'), 8, 1).repeat(8, 2) for c, g in zip(NAMES, (0, gap))}


def test_names():
    words = {g: label_check(planted(g), level, NAMES)['word'] for g in (-1.5, 0, 1.5)}
    assert words == {-1.5: 'swapped', 0: 'undecided', 1.5: 'agree'}
    r, back = label_check(planted(1.5), level, NAMES), label_check(dict(reversed(planted(1.5).items())), level, NAMES)
    assert r == back and r['n'] == 80 and r['low'] < r['auroc'] < r['high']      # by name, not by the order of the sets
    assert label_check(planted(1.5), lambda x: 1-level(x), NAMES[::-1])['word'] == 'agree'       # the positive class is the second one
    assert refuse_swapped(planted(1.5), level, NAMES) == r and refuse_swapped(planted(0), level, NAMES)['word'] == 'undecided'
    with pytest.raises(UserError, match="look swapped.*'normal' from 'pneumonia'.*rename the sets, or check the label map"): refuse_swapped(planted(-1.5), level, NAMES)


def test_names_need_ten_images():
    assert label_check(planted(-4, 9), level, NAMES)['word'] == 'undecided' and label_check(planted(-4, 10), level, NAMES)['word'] == 'swapped'
    assert label_check(planted(1), lambda x: np.full(len(x), .3), NAMES)['word'] == 'undecided'


@pytest.mark.parametrize('change, words', [
    (dict(sets={'normal': noise(20), 'pnuemonia': noise(20)}), "did you mean 'pneumonia'"), (dict(sets={'pneumonia': noise(20)}), "no synthetic images of class 'normal'"),
    (dict(sets=dict(zip(NAMES, [noise(20)]*2)) | {'covid': noise(20)}), "class 'covid'"), (dict(classes=('normal', 'normal')), 'two different names'), (dict(classes=(*NAMES, 'covid')), 'two different names'),
    (dict(sets=dict(zip(NAMES, (noise(20), noise(20, size=8))))), 'different sizes'), (dict(probability=lambda x: level(x)[1:]), 'one probability'), (dict(probability=lambda x: level(x)*9), 'outside')])
def test_label_check_refuses(change, words):
    with pytest.raises(UserError, match=words): label_check(**dict(sets=dict(zip(NAMES, (noise(20), noise(20, 1)))), probability=level, classes=NAMES) | change)


def test_papers():
    sets = {c: Synthetic(noise(4, i), c, (), 'g'*64, 0) for i, c in enumerate(NAMES)}
    assert check_papers(sets) is sets and check_papers({}) == {}
    with pytest.raises(UserError, match="'normal' holds synthetic images of 'pneumonia'"): check_papers(dict(zip(NAMES, list(sets.values())[::-1])))
    shared = sets['pneumonia'].images.copy(); shared[2] = sets['normal'].images[3]
    with pytest.raises(UserError, match="image 2 of the synthetic 'pneumonia' is image 3 of 'normal'"): check_papers(sets | {'pneumonia': replace(sets['pneumonia'], images=shared)})
    twice = replace(sets['normal'], images=np.concatenate([sets['normal'].images]*2))
    assert check_papers(sets | {'normal': twice})                        # a repeated picture in one set is no wrong name


def test_plot():
    rng = np.random.default_rng(0)
    p = Probe(np.repeat([0, 1], 20), rng.normal(0, 1, 40), np.arange(40).astype(str))
    fig = plot_probe({'one': p, 'two': p}, 'Phantom')
    assert len(fig.axes) == 2 and f"{told_apart(p)['auroc']:.2f}" in fig.axes[0].get_title() and fig.get_suptitle() == 'Phantom'
