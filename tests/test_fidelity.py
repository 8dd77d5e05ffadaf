"The fidelity metrics against closed forms, against torch-fidelity and brute force; what is refused; the report and the rank check."
import re, subprocess, sys, textwrap, warnings

import numpy as np
import pytest
import torch

from conftest import ROOT, small_classifier
from gansynth import fidelity
from gansynth.core import UserError
from gansynth.features import from_classifier, random_conv
from gansynth.fidelity import compare, fid, fid_inf, frechet_distance, inception_score, jackknife, kid, noise_like, prdc, rank_check
from gansynth.phantom import phantom


@pytest.fixture(scope='module')
def people(): return phantom(n_patients=120, size=32, prevalence=.4)


def draw(n, d, seed=0, shift=0., scale=1.): return np.random.default_rng(seed).normal(shift, scale, (n, d))


# --- FID

I, O = np.eye(4), np.zeros(4)

@pytest.mark.parametrize('args, want', [
    ((O, I, O+1, I), 4), ((O, I, O, 4*I), 4), ((O[:3], np.diag([1, 4, 9]), [1, 2, 2], np.diag([4, 1, 16])), 12),
    ((O[:2], [[2, 1], [1, 2]], O[:2], np.diag([1, 3])), .516685226452),
    ((O[:2], np.diag([1, 0]), O[:2], np.diag([0, 1])), 2), ((O, I, O, I), 0)])
def test_frechet_closed_forms(args, want): assert frechet_distance(*args) == pytest.approx(want, abs=5e-13)


def test_frechet_refuses_no_covariance():
    with pytest.raises(UserError, match='negative eigenvalue'): frechet_distance([0, 0], np.diag([1, -1]), [0, 0], np.eye(2))


@pytest.mark.parametrize('n, m, d', [(300, 250, 16), (40, 60, 100), (60, 200, 100), (100, 101, 100)])
@pytest.mark.filterwarnings('ignore:FID of')
def test_fid_equals_torch_fidelity(n, m, d):
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    a, b = draw(n, d), draw(m, d, 1, .2, 1.3)
    want = fid_statistics_to_metric(*(fid_features_to_statistics(torch.from_numpy(x)) for x in (a, b)), verbose=False)
    assert fid(a, b) == pytest.approx(want['frechet_inception_distance'], rel=1e-6)


@pytest.mark.filterwarnings('ignore:FID of')
def test_small_n_form_equals_the_full_one():
    a, b = draw(50, 200), draw(70, 200, 1, .3)
    full = frechet_distance(a.mean(0), np.cov(a.T), b.mean(0), np.cov(b.T))
    assert fid(a, b) == pytest.approx(full, rel=1e-6)
    assert [r.shape for _, r in map(fidelity._moments, (a, b))] == [(50, 200), (70, 200)]      # nothing of 200 x 200 was made


def test_fid_of_a_table_with_itself():
    for n, d in ((300, 16), (30, 100)):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            assert abs(fid(draw(n, d), draw(n, d))) < 1e-10


def test_fid_bias_and_its_removal():
    "D = 64, N = 100: 22.1 at identical distributions, near D^2/(2N); the extrapolation takes it away."
    found = np.mean([fid(draw(100, 64, s), draw(100, 64, 100+s)) for s in range(20)])
    assert found == pytest.approx(22.1, abs=.4) and found == pytest.approx(64**2/200, rel=.1)
    plain, gone = np.mean([(fid(a, b), fid_inf(a, b)) for a, b in ((draw(400, 16, s), draw(400, 16, 50+s)) for s in range(10))], 0)
    assert plain > .25 and abs(gone) < .05
    moved = np.mean([fid_inf(draw(800, 16, s), draw(800, 16, 50+s, .5)) for s in range(10)])
    assert moved == pytest.approx(4, rel=.05)


def test_fid_warns_where_n_is_small():
    with pytest.warns(UserWarning, match='N <= D'): fid(draw(16, 16), draw(99, 16))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        fid(draw(17, 16), draw(17, 16, 1))
    with pytest.raises(UserError, match='more than 64'): fid_inf(draw(64, 16), draw(99, 16))


# --- KID

def test_kid_reference_values():
    assert kid([[0], [1]], [[1], [2]]).value == 9.5
    v = np.array([kid(draw(200, 16, s), draw(200, 16, 1000+s, .5)).value for s in range(60)])
    assert v.mean() == pytest.approx(1.02930, abs=4*v.std()/60**.5) and v.std()/60**.5 < .03


@pytest.mark.parametrize('n, d', [(2, 1), (37, 5), (600, 64)])
def test_kid_equals_torch_fidelity(n, d):
    "One subset of everything makes its estimator the plain unbiased one."
    from torch_fidelity.metric_kid import kid_features_to_metric
    a, b = draw(n, d), draw(n, d, 1, .3)
    want = kid_features_to_metric(torch.from_numpy(a), torch.from_numpy(b), kid_subsets=1, kid_subset_size=n, kid_kernel='poly', kid_kernel_poly_degree=3,
                                  kid_kernel_poly_gamma=None, kid_kernel_poly_coef0=1, rng_seed=0, verbose=False)['kernel_inception_distance_mean']
    assert kid(a, b).value == pytest.approx(want, rel=1e-6)


def test_kid_of_unequal_sizes_by_its_definition():
    a, b = draw(31, 4), draw(52, 4, 1)
    k = lambda x, y: np.array([[(p @ q/4+1)**3 for q in y] for p in x])
    want = (k(a, a).sum()-np.trace(k(a, a)))/31/30+(k(b, b).sum()-np.trace(k(b, b)))/52/51-2*k(a, b).mean()
    assert kid(a, b).value == pytest.approx(want, rel=1e-10)


def test_kid_is_unbiased_and_keeps_negatives():
    v = np.array([kid(draw(60, 8, s), draw(60, 8, 1000+s)).value for s in range(300)])
    assert abs(v.mean()) < 3*v.std()/300**.5 and .3 < (v < 0).mean() < .7
    clipped = v.clip(0)
    assert clipped.mean() > 3*clipped.std()/300**.5                                         # what cutting at 0 would do


def test_block_jackknife_is_the_plain_one():
    "The sums over blocks give what recomputing without each block gives."
    a, b = draw(103, 5), draw(87, 5, 1, .4)
    value, se = jackknife(lambda x, y: kid(x, y).value, a, b)
    assert kid(a, b) == pytest.approx((float(value), float(se)), rel=1e-9)


# --- inception score

def test_inception_score_reference_values():
    assert inception_score(np.full((50, 7), 1/7)).value == pytest.approx(1, abs=1e-12)
    assert inception_score(np.eye(10)).value == pytest.approx(10, abs=1e-12)
    assert inception_score(np.eye(10)[[3]*9]).value == pytest.approx(1, abs=1e-12)
    assert inception_score(np.eye(2)[[0, 1, 1, 1]]).value == pytest.approx(1.7547653506, abs=5e-11)


def test_inception_score_equals_torch_fidelity():
    "Our parts are every 10th row, theirs are runs: the rows are put in an order that makes both the same."
    from torch_fidelity.metric_isc import isc_features_to_metric
    logits = torch.from_numpy(draw(200, 12, scale=2))
    want = isc_features_to_metric(logits[np.concatenate([np.arange(i, 200, 10) for i in range(10)])], splits=10, shuffle=False)
    got = inception_score(logits.softmax(1).numpy(), splits=10)
    assert got == pytest.approx((want['inception_score_mean'], want['inception_score_std']), rel=1e-6)


@pytest.mark.parametrize('p', [[[.5, .6]]*3, [[1.5, -.5]]*3, draw(5, 3)])
def test_inception_score_refuses_no_probabilities(p):
    with pytest.raises(UserError, match='row 0.*softmax'): inception_score(p)


# --- precision, recall, density, coverage

def brute_force(real, fake, k):
    "From the full matrices of true differences."
    dist = lambda a, b: ((a[:, None]-b[None])**2).sum(-1)
    ball = lambda x: np.sort(dist(x, x), 1)[:, k]
    d, r, f = dist(real, fake), ball(real), ball(fake)
    inside = d < r[:, None]
    return inside.any(0).mean(), (d < f[None]).any(1).mean(), inside.sum()/k/len(fake), inside.any(1).mean()


@pytest.mark.parametrize('n, m, d, k', [(40, 70, 3, 1), (300, 200, 8, 5), (6, 90, 2, 5), (250, 260, 4, 3)])
def test_prdc_equals_brute_force(n, m, d, k):
    a, b = draw(n, d), draw(m, d, 1, .3, 1.2)
    assert prdc(a, b, k) == pytest.approx(brute_force(a, b, k), abs=1e-12)
    f = a.astype('float32'), b.astype('float32')
    assert prdc(*f, k) == pytest.approx(brute_force(*(x.astype(float) for x in f), k), abs=1e-12)


def test_prdc_in_blocks(monkeypatch):
    "Any size of block gives the same, also one with fewer columns than neighbours."
    a, b, blocks = draw(90, 3), draw(110, 3, 1, .3), fidelity._distances
    for rows, cols in ((7, 11), (1, 3), (200, 200)):
        monkeypatch.setattr(fidelity, '_distances', lambda x, y, mean: blocks(x, y, mean, rows, cols))
        assert prdc(a, b) == pytest.approx(brute_force(a, b, 5), abs=1e-12)


def test_prdc_reference_values():
    x = draw(500, 8)
    assert prdc(x, x) == (1, 1, 1, 1) and prdc(x, x+99) == (0, 0, 0, 0)
    grid = np.arange(10.)[:, None]
    assert prdc(grid, grid+.25, k=1) == pytest.approx((1, 1, 1.9, 1), abs=1e-12)
    v = np.array([prdc(draw(500, 8, s), draw(500, 8, 1000+s)).coverage for s in range(40)])
    assert v.mean() == pytest.approx(.96922, abs=4*v.std()/40**.5) and v.std()/40**.5 < .003


def test_ties_are_not_inside(monkeypatch):
    "The neighbour that defines a ball lies on it, far from the origin too; without the hair, rounding would let some in."
    x = draw(3000, 8)+1000
    assert prdc(x, x) == (1, 1, 1, 1)
    radii = fidelity._radii
    monkeypatch.setattr(fidelity, '_radii', lambda x, mean, k: radii(x, mean, k)*(1+1e-9))
    assert prdc(x, x).density > 1.1


def peak_over_inputs(n, how='prdc'):
    "Megabytes that `how` needs on top of its two tables of n x 16, in a process of its own; VmHWM, since ru_maxrss is inherited from this one."
    code = f'''
        import numpy as np
        from gansynth.fidelity import prdc
        def full_matrix(a, b): return ((a*a).sum(1)[:, None]+(b*b).sum(1)-2*a @ b.T).min()
        a, b = np.random.default_rng(0).normal(size=(2, {n}, 16))
        {how}(a[:50], b[:50])
        peak = lambda: next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmHWM'))/1024
        before = peak(); {how}(a, b); print(peak()-before)'''
    return float(subprocess.run([sys.executable, '-c', textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
def test_prdc_memory_does_not_grow_with_the_square():
    """Blocks of 1,024 x 4,096 doubles: 32 MB, two or three of that kind at a time from n = 8,192 on, whatever n is. Twice the images would take four times
    the memory in full matrices (20,000 MB each at n = 50,000); here only k+1 numbers and a few flags a row grow. One full matrix shows that the gauge works."""
    assert peak_over_inputs(9_000, 'full_matrix') >= 9_000**2*8/2**20 > 600
    small, large = peak_over_inputs(9_000), peak_over_inputs(18_000)
    assert 32 < large < 160 and large < 2*small


# --- what all metrics refuse

PAIRS = {'fid': fid, 'fid_inf': fid_inf, 'kid': kid, 'prdc': prdc}

@pytest.mark.parametrize('name', PAIRS)
def test_bad_features_raise(name):
    good, nan = draw(99, 4), draw(99, 4)
    nan[7, 2] = np.nan
    for bad, why in ((nan, 'features 2, row 7'), (draw(99, 5), r'width \[4, 5\]'), (draw(1, 4), 'at least'), (np.ones(9), 'shape')):
        with pytest.raises(UserError, match=why): PAIRS[name](good, bad)
        if why[0] != 'w':
            with pytest.raises(UserError, match=why.replace('features 2', 'features 1')): PAIRS[name](bad, good)


def test_nan_guard_is_needed(monkeypatch):
    "Without the check, a NaN passes through the neighbours unnoticed."
    nan = draw(99, 4)
    nan[7, 2] = np.nan
    monkeypatch.setattr(fidelity, 'check_features', lambda *t, **k: list(t))
    with np.errstate(invalid='ignore'): assert 0 < prdc(draw(99, 4, 1), nan).coverage < 1


def test_too_few_neighbours_raise():
    for a, b in ((5, 50), (50, 5)):
        with pytest.raises(UserError, match='5 images, but at least 6'): prdc(draw(a, 3), draw(b, 3))
    prdc(draw(6, 3), draw(6, 3))
    with pytest.raises(UserError, match='k=0'): prdc(draw(50, 3), draw(50, 3), k=0)


@pytest.mark.filterwarnings('ignore:FID of')
def test_order_does_not_matter():
    a, b, rng = draw(200, 6), draw(150, 6, 1, .2), np.random.default_rng(2)
    x, y = rng.permutation(a), rng.permutation(b)
    for f in (fid, prdc, lambda a, b: kid(a, b).value): assert f(a, b) == pytest.approx(f(x, y), rel=1e-9)
    p = np.abs(a)/np.abs(a).sum(1, keepdims=True)
    assert inception_score(p).value == pytest.approx(inception_score(rng.permutation(p)).value, rel=1e-12)


# --- report and rank check

def test_report(people):
    images, labels, patients = (people[k] for k in ('images', 'labels', 'patients'))
    noisy = noise_like(images)
    t = compare(images, np.where((labels == 1)[:, None, None], noisy, images), random_conv(), (labels, labels), ('normal', 'pneumonia'), patients)
    assert list(dict.fromkeys(t['class'])) == ['all', 'normal', 'pneumonia'] and t.metric.str.endswith('[rand-conv-s0]').all()
    k = t[t.metric == 'KID[rand-conv-s0]'].set_index('class')
    assert k.loc['pneumonia', 'low'] > 10 > k.loc['normal', 'value'] and (k.floor.abs() < 4*k.floor_se).all()
    assert (t.low <= t.value)[t.value.notna()].all() and (t.n > 20).all() and (t.groupby('class').n.nunique() == 1).all()
    assert set(t[t.metric.str.startswith('FID[') & (t.n <= 112)].note) == {'N <= D: mostly bias'}
    pd_equal = compare(images, noisy, random_conv(), seed=1).equals(compare(images, noisy, random_conv(), seed=1))
    assert pd_equal and not compare(images, noisy, random_conv(), seed=1).equals(compare(images, noisy, random_conv(), seed=2))


def test_report_of_any_callable_with_a_name(people):
    class Pixels:
        name = 'pixels'
        def __call__(self, x): return x[:, ::4, ::4].reshape(len(x), -1)/255
    assert set(compare(people['images'], people['images'], Pixels()).metric) >= {'KID[pixels]', 'coverage[pixels]'}
    with pytest.raises(UserError, match='no name'): compare(people['images'], people['images'], lambda x: x)
    with pytest.raises(UserError, match='labels='): compare(people['images'], people['images'], Pixels(), labels=([1], [1]))


def test_inception_score_only_where_classes_are(people):
    x, f = people['images'], from_classifier(small_classifier(), 'cls')
    t = compare(x, x, f).set_index('metric')
    assert 1 <= t.loc['IS[cls]', 'value'] <= 2 and 'IS[rand-conv-s0]' not in set(compare(x, x, random_conv()).metric)
    assert t.loc['IS[cls]', 'note'] == 'for comparison only'


def test_small_classes_are_told(people):
    x = people['images']
    labels = np.zeros(len(x), int); labels[:30] = 1
    t = compare(x, x, random_conv(), (labels, labels))
    assert t[t['class'] == '1'].note.item() == 'fewer than 20 images: not measured'


def test_floor_by_patient():
    "Images of a patient are alike; halves that share patients are too near, and coverage shows it."
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(60), 8)
    x = (rng.integers(20, 230, (60, 16, 16))[patients]+rng.integers(0, 4, (480, 16, 16))).astype('uint8')
    first, second = fidelity._halves(480, patients, np.random.default_rng(0))
    assert not set(patients[first]) & set(patients[second]) and len(first)+len(second) == 480
    by_patient, by_image = (compare(x, x, random_conv(), patients=p).set_index('metric').loc['coverage[rand-conv-s0]', 'floor'] for p in (patients, None))
    assert by_patient < .7 < .8 < by_image


def test_rank_check(people):
    real = people['images']
    speckled = (real+np.random.default_rng(0).normal(0, 16, real.shape)).clip(0, 255).astype('uint8')
    table, verdict = rank_check(real, speckled, random_conv(), people['patients'])
    assert verdict == 'fit' and table['KID[rand-conv-s0]'].is_monotonic_increasing and list(table['set']) == ['real-real', 'GAN', 'blurred real', 'noise']


@pytest.mark.parametrize('name, f, why', [
    ('constant', lambda x: np.ones((len(x), 8)), 'GAN is not above real-real|blurred real is not above GAN'),
    ('mean grey', lambda x: x.mean((1, 2))[:, None]/255, 'not above'),
    ('random', lambda x: np.random.default_rng(len(x)).normal(size=(len(x), 8)), 'not above')])
def test_unfit_extractors(name, f, why, people):
    real = people['images']
    fake = (real+np.random.default_rng(0).normal(0, 16, real.shape)).clip(0, 255).astype('uint8')
    class Named:
        def __call__(self, x): return f(x)
    Named.name = name
    table, verdict = rank_check(real, fake, Named())
    assert verdict.startswith('unfit') and re.search(why, verdict)


def test_a_generator_worse_than_blur_is_named(people):
    verdict = rank_check(people['images'], noise_like(people['images']), random_conv())[1]
    assert verdict == 'unfit: blurred real is not above GAN'
