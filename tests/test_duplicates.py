"Exact and near duplicates: the search against brute force, planted copies across parts, and what each guard is for."
from math import gcd

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import rule_duplicates
from conftest import ROOT, needs_real_data
from gansynth import duplicates
from gansynth.core import UserError
from gansynth.duplicates import across_parts, close_bits, close_rows, fingerprints, groups, mirror, near_pairs, score
from gansynth.phantom import phantom


@pytest.fixture(scope='module')
def people(): return phantom(n_patients=235, size=64, seed=3)


@pytest.fixture(scope='module')
def prints(people): return fingerprints(people['images'])


def keys(t): return set(zip(t.i.tolist(), t.j.tolist()))


def area(a, rows, cols):
    "Area means by brute force: each pixel repeated until the cells hold whole pixels."
    r, c = rows//gcd(rows, a.shape[0]), cols//gcd(cols, a.shape[1])
    return a.astype(float).repeat(r, 0).repeat(c, 1).reshape(rows, a.shape[0]*r//rows, cols, a.shape[1]*c//cols).mean((1, 3))


def slow_prints(x):
    "The prints again, image by image: bits, thumbnails, and details as what 32x32 cells show beyond 16x16."
    bits, thumbs, details = [], [], []
    for a in x:
        small, t, low = area(a, 8, 9), area(a, 32, 32), area(a, 16, 16)
        bits.append((small[:, :-1]-small[:, 1:] > .01).ravel())
        thumbs.append(low.ravel()-low.mean())
        details.append((t-np.kron(low, np.ones((2, 2)))).ravel())
    unit = lambda v: np.array(v)/np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-9)
    return np.array(bits), unit(thumbs), unit(details)


def brute(x, y=None):
    "Scores of all pairs of two sets, from the pixels of the images and of the really mirrored ones: dict of (n,m)."
    a, b, c = slow_prints(x), slow_prints(x if y is None else y), slow_prints((x if y is None else y)[:, :, ::-1])
    apart = lambda u, v: (u[:, None] != v[None]).sum(2)
    return dict(bits=np.minimum(apart(a[0], b[0]), apart(a[0], c[0])), ncc=np.maximum(a[1] @ b[1].T, a[1] @ c[1].T), detail=np.maximum(a[2] @ b[2].T, a[2] @ c[2].T))


def check(t, want, same, min_ncc=.98, min_detail=.85, max_bits=None, eps=2e-5):
    "The pairs of a table are those of brute force; a pair within rounding of a threshold may go either way."
    def flagged(e):
        hit = np.zeros(want['ncc'].shape, bool)
        if min_ncc is not None: hit |= want['ncc'] >= min_ncc+e
        if min_detail is not None: hit |= want['detail'] >= min_detail+e
        if max_bits is not None: hit |= want['bits'] <= max_bits
        return set(map(tuple, np.argwhere(np.triu(hit, 1) if same else hit).tolist()))
    assert flagged(eps) <= keys(t) <= flagged(-eps)
    return flagged(eps)


def sample(seed, n=800):
    "About n different images: phantom people and changed copies, shuffled."
    x, rng = phantom(n_patients=200, size=64, seed=seed)['images'], np.random.default_rng(seed)
    changes = list(rule_duplicates.CHANGES.values())
    more = [changes[k % len(changes)](x[rng.integers(len(x))], rng) for k in range(n-len(x))]
    return rng.permutation(np.unique(np.concatenate([x, more]), axis=0))


RULES = [dict(), dict(min_ncc=.9), dict(min_detail=None), dict(min_ncc=None, min_detail=.6), dict(min_detail=None, max_bits=4), dict(min_ncc=None, min_detail=None, max_bits=0), dict(min_ncc=None, min_detail=None, max_bits=9)]


@pytest.mark.parametrize('seed', [1, 2, 3])
def test_equals_brute_force(seed):
    x = sample(seed)
    p, want = fingerprints(x, chunk=300), brute(x)
    for rule in RULES:
        t = near_pairs(p, **rule)
        expected = check(t, want, True, **rule)
        assert len(expected) > (0 if rule else 20)
        i, j = t.i.to_numpy(), t.j.to_numpy()
        assert (t.bits == want['bits'][i, j]).all() and np.abs(t.ncc-want['ncc'][i, j]).max() < 2e-5 and np.abs(t.detail-want['detail'][i, j]).max() < 2e-5
        assert (i < j).all() and not t.duplicated(['i', 'j']).any()


def test_between_sets_equals_brute_force():
    x = sample(4)
    a, b, want = fingerprints(x[:300]), fingerprints(x[300:]), brute(x[:300], x[300:])
    for rule in RULES: assert check(near_pairs(a, b, **rule), want, False, **rule) or rule


@pytest.mark.parametrize('n, m', [(1, 1), (2, 3), (900, 1), (1, 900), (900, 3), (20, 300), (300, 20)])
def test_few_rows_equal_all_products(n, m):
    "Fewer rows than columns, down to one, whose principal axes are as many as there are rows; some rows are equal."
    rng = np.random.default_rng(n+m)
    y = rng.normal(size=(m, 256))
    y[m//2:] = y[0]
    x = y[rng.integers(m, size=n)]+rng.normal(size=(n, 256))*rng.choice([0, .3, 1], size=(n, 1))
    x, y = ((v/np.linalg.norm(v, axis=1, keepdims=True)).astype('float32') for v in (x, y))
    for least in (.5, .9):
        (i, j), _ = close_rows(x, y, least)
        dots = x.astype(float) @ y.T.astype(float)
        assert set(np.flatnonzero(dots > least+1e-6)) <= set(i*m+j) <= set(np.flatnonzero(dots > least-1e-6)) and (len(i) or n == 1)


def test_search_of_many_boxes_equals_all_products():
    "More than one box and more than one slice, and a rule that the projection can hardly help."
    rng = np.random.default_rng(0)
    v = rng.normal(size=(3000, 40)) @ rng.normal(size=(40, 256)) + rng.normal(size=(3000, 256))
    v = (v/np.linalg.norm(v, axis=1, keepdims=True)).astype('float32')
    v[7] = 0
    for least in (.35, .5, .6):
        (i, j), compared = close_rows(v, v, least, same=True)
        dots = np.triu(v.astype(float) @ v.T.astype(float), 1)
        assert set(np.flatnonzero(dots > least+1e-6)) <= set(i*3000+j) <= set(np.flatnonzero(dots > least-1e-6)) and len(i)
        assert compared < 3000**2/2
        (i, j), _ = close_rows(v[:1000], v[1000:], least)
        assert set(np.flatnonzero(dots[:1000, 1000:] > least+1e-6)) <= set(i*2000+j) <= set(np.flatnonzero(dots[:1000, 1000:] > least-1e-6))


def test_pigeonhole_needs_one_band_more_than_bits():
    "Ablation: with as many bands as bits that may differ, pairs are missed."
    rng = np.random.default_rng(1)
    a = rng.integers(0, 2**63, 400, dtype=np.uint64)
    b = a.copy()
    for _ in range(4): b ^= np.uint64(1) << rng.integers(0, 64, 400).astype(np.uint64)
    near = lambda: set(zip(*close_bits(a, b, 4)[0].tolist()))
    assert {(k, k) for k in range(400)} <= near()
    original = np.array_split
    try:
        np.array_split = lambda x, n: original(x, n-1)
        assert len(near()) < 400
    finally: np.array_split = original


@pytest.mark.parametrize('change', list(rule_duplicates.CHANGES))
def test_f41_planted_copies_are_found_across_parts(people, change):
    x, who = people['images'], people['patients']
    parts = np.where(pd.factorize(who)[0] % 4 == 0, 'test', 'train')
    drawn, rng = np.flatnonzero(parts == 'train')[::12], np.random.default_rng(0)
    copies = np.stack([rule_duplicates.CHANGES[change](x[i], rng) for i in drawn])
    leaks = across_parts(near_pairs(fingerprints(np.concatenate([x, copies]))), np.r_[parts, ['test']*len(copies)])
    found = {(i, len(x)+k) for k, i in enumerate(drawn)} & keys(leaks)
    assert len(found) >= (0 if change in ('crop 2 %', 'marker') else .95)*len(drawn)
    assert set(leaks.part_i) | set(leaks.part_j) <= {'train', 'test'} and (leaks.part_i != leaks.part_j).all()


def test_f40_exact_copy_across_parts(people):
    x = people['images'][:50]
    leaks = across_parts(near_pairs(fingerprints(np.concatenate([x, x[3:4]])), ), ['train']*50+['test'])
    assert leaks[leaks.exact][['i', 'j', 'part_i', 'part_j']].values.tolist() == [[3, 50, 'train', 'test']]


def test_every_guard_is_needed(people, monkeypatch):
    "Ablations: without the mirrored prints mirrored copies are missed, without the detail the marked ones, without the thumbnail the doubly saved ones."
    x = people['images']
    def missed(change, **rule):
        y = np.stack([change(a) for a in x[:100]])
        t = near_pairs(fingerprints(x[:100]), fingerprints(y), **rule)
        return 100-(t.i == t.j).sum()
    def marked(a): a = a.copy(); a[:4, :6] = 255; return a
    def shaken(a): return np.asarray(Image.fromarray(a[:, ::-1]).resize((18, 18), Image.BOX).resize((64, 64), Image.BILINEAR))
    assert missed(marked) == missed(shaken) == missed(lambda a: a[:, ::-1]) == 0
    assert missed(marked, min_detail=None) > 90
    assert missed(shaken, min_ncc=None) > 70
    for rule in (dict(), dict(min_ncc=None, min_detail=None, max_bits=4)): assert missed(lambda a: a[:, ::-1], **rule) == 0
    monkeypatch.setattr(duplicates, 'mirror', lambda v: v)
    assert missed(lambda a: a[:, ::-1]) > 90
    monkeypatch.setattr(duplicates, 'difference_bits', lambda s, f=duplicates.difference_bits: f(s*0 if s.strides[-1] < 0 else s))
    assert missed(lambda a: a[:, ::-1], min_ncc=None, min_detail=None, max_bits=4) > 90


@pytest.mark.parametrize('size', [20, 28, 45, 64, 100, 224])
def test_copies_of_another_size(people, prints, size):
    y = np.stack([np.asarray(Image.fromarray(a).resize((size, size), Image.BICUBIC)) for a in people['images'][:60]])
    t = near_pairs(prints.take(np.arange(200)), fingerprints(y))
    assert {(k, k) for k in range(60)} <= keys(t)


def test_sides_may_differ():
    x = np.random.default_rng(0).integers(0, 256, (20, 37, 91), 'uint8')
    p, want = fingerprints(x), brute(x)
    np.testing.assert_allclose(p.thumbs @ p.thumbs.T, slow_prints(x)[1] @ slow_prints(x)[1].T, atol=2e-5)
    assert len(near_pairs(p)) == 0 and want['ncc'].max() > .9999


def test_constant_images_match_exact_copies_only(people):
    "And the ablation: with their zero hashes they would all be near each other."
    grey = np.stack([np.full((64, 64), v, 'uint8') for v in (0, 0, 9, 255)])
    faint = np.full((64, 64), 100, 'uint8'); faint[::2] += 1
    p = fingerprints(np.concatenate([people['images'][:5], grey, faint[None]]))
    for rule in RULES:
        t = near_pairs(p, **rule)
        t = t[t.j >= 5]
        assert t[['i', 'j', 'bits', 'ncc', 'detail', 'mirrored', 'exact']].values.tolist() == [[5, 6, 0, 1, 1, False, True]]
    assert (p.bits[5:9] == p.bits[5]).all()
    both = near_pairs(fingerprints(grey), fingerprints(grey[1:]), max_bits=4)
    assert both.exact.all() and keys(both) == {(0, 0), (1, 0), (2, 1), (3, 2)}


@pytest.mark.parametrize('n', [0, 1])
def test_no_pairs_among_few(people, n):
    p = fingerprints(people['images'][:n])
    for rule in RULES:
        for t in (near_pairs(p, **rule), near_pairs(p.take([]), p, **rule)):
            assert list(t) == ['i', 'j', 'bits', 'ncc', 'detail', 'mirrored', 'exact'] and len(t) == 0
    assert groups(t, n).tolist() == list(range(n)) and len(across_parts(t, ['train']*n)) == 0


def test_equal_images_make_a_short_table(people, monkeypatch):
    x = np.repeat(people['images'][:1], 5000, 0)
    p = fingerprints(np.concatenate([people['images'][:300], x]))
    t = near_pairs(p)
    assert len(t) < 5300 and t.exact.sum() == 5000
    assert len(set(groups(t, 5300)[np.r_[0, 300:5300]])) == 1
    parts = np.array(['train']*300+['test', 'valid']*2500)
    leaks = across_parts(t, parts)
    assert set(range(300, 5300)) <= set(leaks.j) | set(leaks.i) and len(leaks) < 3*5300
    monkeypatch.setattr(duplicates, '_kinds', lambda p: (np.arange(len(p)), pd.DataFrame(dict(first=[0], copy=[0])).iloc[:0]))   # ablation: no exact groups
    with pytest.raises(UserError, match='near pairs'): near_pairs(p)


def test_every_copy_with_a_twin_elsewhere_is_listed(people):
    "Also where the first of its kind is in the same part, and through a near duplicate of the first."
    x = people['images']
    y = np.stack([x[0], x[0], x[0], rule_duplicates.jpeg(x[0], None), x[5]])
    t, parts = near_pairs(fingerprints(y)), np.array(['test', 'train', 'test', 'valid', 'train'])
    leaks = across_parts(t, parts)
    assert keys(leaks) == {(0, 1), (1, 2), (0, 3), (1, 3), (2, 3)}
    assert keys(t[parts[t.i] != parts[t.j]]) < keys(leaks)    # ablation: reading the pairs alone forgets image 2
    with pytest.raises(UserError, match='part of every image'): across_parts(t, parts[:3])


def test_nearly_equal_images_are_refused_not_listed(people):
    rng = np.random.default_rng(0)
    x = np.clip(people['images'][0]+rng.integers(0, 3, (2000, 64, 64)), 0, 255).astype('uint8')
    with pytest.raises(UserError, match='raise min_ncc and min_detail'): near_pairs(fingerprints(x))
    with pytest.raises(UserError, match='max_pairs'): near_pairs(fingerprints(x), min_ncc=None, min_detail=None, max_bits=4)


@pytest.mark.slow
def test_work_grows_slower_than_all_pairs():
    "Compared pairs, not time: four times the images, copies in proportion."
    x = phantom(n_patients=1150, size=64, seed=5)['images']
    x = np.random.default_rng(0).permutation(np.concatenate([x[:3600], rule_duplicates.CHANGES['brightness -5 %'](x[:400], None)]))
    p = fingerprints(x)
    def work(n): return n+near_pairs(p.take(np.arange(n))).attrs['compared']
    few, many = work(1000), work(4000)
    assert many < 12*few and many < 4000*3999/2/20


def test_memory_map_and_portions(tmp_path, people):
    np.save(tmp_path/'x.npy', people['images'])
    mapped = np.load(tmp_path/'x.npy', mmap_mode='r')
    whole, parts = fingerprints(people['images']), fingerprints(mapped, chunk=17)
    for k in ('digest', 'bits', 'mirrored_bits'): assert (getattr(whole, k) == getattr(parts, k)).all()
    for k in ('thumbs', 'details'): np.testing.assert_allclose(getattr(whole, k), getattr(parts, k), atol=1e-5)
    assert keys(near_pairs(whole)) == keys(near_pairs(parts))


def test_mistakes_are_named(people, prints):
    for bad in (people['images'].astype(float), people['images'][0], np.zeros((2, 4, 4, 3), 'uint8'), np.zeros((2, 0, 4), 'uint8')):
        with pytest.raises(UserError, match='expected uint8'): fingerprints(bad)
    for rule in (dict(min_ncc=1), dict(min_detail=.1), dict(max_bits=16), dict(max_bits=-1)):
        with pytest.raises(UserError, match=next(iter(rule))): near_pairs(prints, **rule)


def test_groups_against_a_walk():
    rng = np.random.default_rng(0)
    t = pd.DataFrame(dict(zip('ij', np.sort(rng.integers(0, 200, (2, 120)), 0))))
    want = list(range(200))
    for _ in range(200):
        for i, j in keys(t): want[i] = want[j] = min(want[i], want[j])
    assert groups(t, 200).tolist() == pd.factorize(np.array(want))[0].tolist()


@pytest.mark.slow
@needs_real_data
def test_rule_table_is_what_the_script_measures(monkeypatch):
    "The smallest of the three sets again; the committed table must say the same."
    got, kept = pd.DataFrame(rule_duplicates.measure('COVID-CT', *rule_duplicates.covid_ct())), pd.read_csv(ROOT/'results'/'duplicates'/'rule.csv', dtype={'seeds': str})
    kept = kept[kept.data == 'COVID-CT'].reset_index(drop=True)
    assert list(got) == list(kept) and (got.rule == kept.rule).all() and (got.flagged-kept.flagged).abs().max() <= 1
    assert (got[list(rule_duplicates.CHANGES)]-kept[list(rule_duplicates.CHANGES)]).abs().max().max() < .01
