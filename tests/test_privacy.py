"The privacy audit: planted copies are flagged, innocent generators are not, and unfair comparisons are refused."
import json, subprocess, sys

import numpy as np
import pytest
from scipy.stats import binom, norm

from gansynth import privacy
from gansynth.core import UserError, hash_of
from gansynth.phantom import phantom
from gansynth.privacy import (DECIDED_FROM, KINDS, TPR_FROM, attack, audit, digests, distances, epsilon, excess_copies, find_canaries, gate, gather, hard_copies, judge, judge_weights, near,
                              plant_canaries, planted, plot_distances, power, principal, refuse_extractor, refuse_overlap, refuse_twins, show_pairs,
                              thirds, verdict, views, zscore)

from conftest import ROOT, SHARED, needs_real_data


def draw(seed, n=40, size=28):
    "T, H, A, fresh images and the patients of the first three."
    d = phantom(n_patients=3*n, size=size, seed=seed)
    parts = thirds(d['patients'], seed)
    T, H, A = (d['images'][i] for i in parts)
    fresh = phantom(n_patients=2*n, size=size, seed=seed+10_000)['images'][:max(len(T), int(1.3*len(T)))]
    assert len(fresh) >= len(T)
    return T, H, A, fresh, tuple(d['patients'][i] for i in parts)


def number(names): return np.unique(names, return_inverse=True)[1]


@pytest.fixture(scope='module')
def sets(): return draw(1, n=60, size=32)


def flagged(r): return {c['name'] for c in r['checks'] if c['flagged']}


# what must be flagged

@pytest.mark.parametrize('kind', KINDS)
def test_replay_of_every_kind_fails(sets, kind):
    T, H, A, fresh, patients = sets
    r = audit(T, H, A, planted(T, kind, seed=3), patients, kinds=())
    assert r['verdict'] == 'FAIL' and 'memorisation detected' in r['words']
    if kind != 'blended': assert len(r['copies']) > .9*len(T) and all(c['train'] < len(T) for c in r['copies'])
    if kind not in ('one', 'blended'): assert {'hard copies', 'excess copies', 'membership'} <= flagged(r)


@pytest.mark.parametrize('kind', ['exact', 'noise', 'mirrored', 'shifted', 'gamma', 'disguised', 'blended'])
def test_a_tenth_of_replay_fails(sets, kind):
    T, H, A, fresh, patients = sets
    G = planted(T, kind, .1, 3, fresh)
    r = audit(T, H, A, G, patients, kinds=())
    assert r['verdict'] == 'FAIL'
    if kind != 'blended': assert {c['synthetic'] for c in r['copies']} == set(range(round(.1*len(fresh))))


def test_one_copied_image_is_enough(sets):
    T, H, A, fresh, patients = sets
    r = audit(T, H, A, np.concatenate([fresh, planted(T[7:8], 'disguised')]), patients, kinds=())
    assert r['verdict'] == 'FAIL' and [(c['synthetic'], c['train']) for c in r['copies']] == [(len(fresh), 7)] and flagged(r) == {'hard copies'}


def test_without_views_a_mirrored_or_shifted_copy_escapes(sets):
    "Ablation of the flips and shifts."
    T, H, A, fresh, patients = sets
    f, plain = principal(A), lambda x: [privacy.centre(x)]
    def share(kind, look): return (near(planted(T, kind), T, f, look=look).first < near(H, T, f).first.min()/2).mean()
    assert share('exact', plain) == 1
    for kind in ('mirrored', 'shifted'): assert share(kind, views) == 1 and share(kind, plain) < .2, (kind, share(kind, plain))


def test_without_zscore_brightness_hides_a_copy(sets):
    "Ablation: raw pixels as features."
    T, H, *_ = sets
    bright = np.clip(T.astype(int)+60, 0, 255).astype('uint8')
    raw = lambda x: x.reshape(len(x), -1).astype('float32')
    share = lambda f: (near(bright, T, f).first < near(H, T, f).first.min()/2).mean()
    assert share(principal(sets[2])) > .95 and share(raw) < .5


# what must not be

@pytest.mark.slow
def test_false_alarms_of_innocent_generators():
    "70 draws: alarms by patient stay in the binomial band of 5 %, scores have variance 1; by image (the ablation) they scatter more."
    alarms, z = [], []
    for s in range(70):
        T, H, A, fresh, patients = draw(500+s, n=30)
        f = principal(A)
        x = near(fresh, T, f), near(fresh, H, f), near(H, T, f)
        e = [judge(gather(*x, t, h)) for t, h in (map(number, patients[:2]), [np.arange(len(T))]*2)]
        alarms.append([any(c['flagged'] for c in j) for j in e])
        z.append([norm.isf(next(c['p'] for c in j if c['name'] == 'membership')) for j in e])
    by_patient, by_image = np.sum(alarms, 0)
    assert by_patient <= binom.ppf(.99, 70, .05)
    v = np.var(z, axis=0)
    assert v[0] < 1.45 and v[1] > 1.2*v[0], v


@pytest.mark.parametrize('seed', [1, 2, 3])
def test_fresh_passes_with_its_power(seed):
    T, H, A, fresh, patients = draw(seed, n=60)
    r = audit(T, H, A, fresh, patients)
    assert r['verdict'] == 'PASS' and r['words'].startswith('no memorisation detected at this power: disguised copies would have been found from a share of')
    assert 'private' not in json.dumps(r, allow_nan=False).lower()
    assert r['power']['disguised']['share'] <= .05 and r['copies'] == [] and len(r['pairs']) == 10
    assert r['pairs'] == sorted(r['pairs'], key=lambda p: p['distance']) and r['unit'] == 'patient'
    assert json.loads(json.dumps(r)) == r == audit(T, H, A, fresh, patients)


@pytest.mark.slow
def test_power_claims_what_it_finds(sets):
    "A replay of the claimed share, drawn anew, is found; an audit without the power to find a tenth never passes."
    T, H, A, fresh, patients = sets
    p = audit(T, H, A, fresh, patients, kinds=('blended',))['power']
    assert p['disguised']['share'] <= p['blended']['share']
    for kind in p:
        G = [planted(T, kind, p[kind]['share']*1.5, s, fresh) for s in range(5)]
        assert sum(audit(T, H, A, g, patients, kinds=())['verdict'] == 'FAIL' for g in G) >= 4
    word, words = verdict([], {'disguised': dict(share=.2)}, .1)
    assert word == 'not auditable' and '10%' in words and verdict([], {'disguised': dict(share=None)}, .1)[0] == 'not auditable'
    assert verdict([], {'disguised': dict(share=.05)}, .1)[0] == 'PASS'


def test_power_is_the_smallest_share_above_which_all_is_found(monkeypatch, sets):
    T, H, A, fresh, patients = sets
    f, (t, h) = principal(A), map(number, patients[:2])
    e = gather(near(fresh, T, f), near(fresh, H, f), near(H, T, f), t, h)
    blind = power(e._replace(radius=0, tau=0), T, H, f, t, h)
    assert blind['share'] is None or blind['share'] > .05
    found = [c[2] for c in blind['curve']]
    assert found[0] < .8 and (blind['share'] is None or all(r >= .8 for s, _, r in blind['curve'] if s >= blind['share']))
    monkeypatch.setattr(privacy, 'judge', lambda e: [dict(flagged=False)])
    assert power(e, T, H, f, t, h)['share'] is None


# the gate

def test_noise_and_collapse_are_not_auditable(sets):
    T, H, A, fresh, patients = sets
    rng = np.random.default_rng(0)
    for G, why in ((rng.integers(0, 256, fresh.shape, 'uint8'), 'unlike the real'), (np.repeat(fresh[5:6], len(fresh), 0), 'repeat themselves')):
        r = audit(T, H, A, G, patients)
        assert r['verdict'] == 'not auditable' and why in r['words'] and r['power'] == {}


def test_a_closed_gate_never_hides_a_copy(sets):
    T, H, A, fresh, patients = sets
    G = np.concatenate([T[:1], np.random.default_rng(0).integers(0, 256, fresh.shape, 'uint8')])
    r = audit(T, H, A, G, patients)
    assert r['verdict'] == 'FAIL' and 'fidelity' in flagged(r)


def test_features_fitted_on_T_hide_replay_and_are_caught(sets):
    "The trap, its refusal, and the control that catches an extractor that keeps silent."
    T, H, A, fresh, patients = sets
    ten, (t, h) = planted(T, 'exact', .1, 0, fresh), map(number, patients[:2])
    def membership(x, g):
        f = principal(x, whiten=True)
        return next(c for c in judge(gather(near(g, T, f), near(g, H, f), near(H, T, f), t, h)) if c['name'] == 'membership')
    assert membership(T, fresh)['value'] < .4 and not membership(T, ten)['flagged']
    assert abs(membership(A, fresh)['value']-.5) < .12 and membership(A, ten)['value'] > membership(A, fresh)['value']
    knows = principal(T, whiten=True)
    flags = lambda f: [c['flagged'] for c in gate(T, H, A, fresh, f, t, h)]
    assert flags(principal(A, whiten=True)) == [False]*3 and flags(knows) == [False, False, True]


# refusals

def test_refuses_overlapping_images(sets):
    T, H, A, fresh, patients = sets
    with pytest.raises(UserError, match='both train and holdout'): audit(T, T, A, fresh)
    with pytest.raises(UserError, match=r'row 4 of train and row 2 of others'): audit(T, H, np.concatenate([A[:2], T[4:5], A[3:]]), fresh)
    with pytest.raises(UserError, match='row 9 of holdout'): audit(T, np.concatenate([H[:9], T[:1], H[10:]]), A, fresh)
    assert audit(T, H, A, fresh, kinds=())['unit'] == 'image'


def test_without_the_refusal_T_equal_H_would_never_fail(sets, monkeypatch):
    "Ablation: the audit of a perfect replay finds nothing when H is T."
    T, H, A, fresh, patients = sets
    for name in ('refuse_overlap', 'refuse_twins'): monkeypatch.setattr(privacy, name, lambda *a: None)
    r = audit(T, T, A, planted(T, 'noise'), kinds=())
    assert r['verdict'] != 'FAIL'
    assert audit(T, H, A, planted(T, 'noise'), kinds=())['verdict'] == 'FAIL'


def test_refuses_near_twins_in_the_holdout(sets, monkeypatch):
    "One training image in the hold-out part, saved anew, blinds the copy radius."
    T, H, A, fresh, patients = sets
    H2 = np.concatenate([planted(T[3:4], 'disguised'), H[1:]])
    with pytest.raises(UserError, match='row 0 of holdout and row 3 of train'): audit(T, H2, A, fresh)
    monkeypatch.setattr(privacy, 'refuse_twins', lambda *a: None)
    G = np.concatenate([fresh, planted(T[7:8], 'disguised')])
    assert audit(T, H2, A, G, patients, kinds=())['verdict'] != 'FAIL' and audit(T, H, A, G, patients, kinds=())['verdict'] == 'FAIL'


def test_refuses_a_patient_in_two_parts(sets):
    T, H, A, fresh, (pt, ph, pa) = sets
    audit(T, H, A, fresh, (pt, ph, pa), kinds=())
    for i, (where, names) in enumerate({'train and holdout': (pt, np.r_[pt[:1], ph[1:]], pa), 'train and others': (pt, ph, np.r_[pt[:1], pa[1:]]),
                                        'holdout and others': (pt, ph, np.r_[ph[:1], pa[1:]])}.items()):
        with pytest.raises(UserError, match=where) as e: audit(T, H, A, fresh, names)
        assert names[0][0] in str(e.value) or ph[0] in str(e.value)
    with pytest.raises(UserError, match='give one for each image'): audit(T, H, A, fresh, (pt, ph[1:], pa))


def test_refuses_an_extractor_fitted_on_T_or_H(sets):
    T, H, A, fresh, patients = sets
    def extractor(x): return zscore(x)
    assert audit(T, H, A, fresh, patients, extractor, kinds=())['extractor'] == 'unnamed'
    extractor.name, extractor.fitted_on = 'net', digests(A)
    assert audit(T, H, A, fresh, patients, extractor, kinds=())['extractor'] == 'net'
    for mark in (digests(T)[3:4], [*digests(A), digests(H)[0]], hash_of(sorted(digests(T))), set(patients[0][:1])):
        extractor.fitted_on = mark
        with pytest.raises(UserError, match='net was fitted on'): audit(T, H, A, fresh, patients, extractor)


def test_refuses_unfair_sizes(sets):
    T, H, A, fresh, patients = sets
    for parts, why in (((T, H[1:], A, fresh), 'nearer by chance'), ((T, H, A, fresh[:len(T)-1]), f'sample at least {len(T)}'), ((T, H, A, fresh[:, :-1]), 'synthetic is uint8'),
                       ((T, H, A, fresh/255.), 'synthetic is float64'), ((T[:9], H[:9], A, fresh), 'at least 20')):
        with pytest.raises(UserError, match=why): audit(*parts)


def test_a_larger_training_part_would_raise_false_alarms(sets):
    "Ablation of the equal sizes: against a quarter of H an innocent generator seems to copy T."
    T, H, A, fresh, patients = sets
    f = principal(A)
    def p(H, patients):
        t, h = map(number, patients)
        return excess_copies(gather(near(fresh, T, f), near(fresh, H, f), near(H, T, f), t, h)._replace(tau=float(np.quantile(near(H, T, f).first, .2))))['p']
    assert p(H, patients[:2]) > .05 and p(H[:len(H)//4], (patients[0], patients[1][:len(H)//4])) < .01


def test_refuses_an_extractor_that_fails(sets):
    T, H, A, fresh, _ = sets
    for bad in (lambda x: np.full((len(x), 2), np.nan), lambda x: np.zeros(len(x)), lambda x: np.zeros((1, 2))):
        with pytest.raises(UserError, match='the extractor gives'): audit(T, H, A, fresh, extractor=bad)


# the pieces

def test_distances_against_brute_force():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, 9, 12, 10), 'uint8')
    f = lambda x: 1000+zscore(x)                        # a constant does not matter
    want = np.min([np.linalg.norm(f(v)[:, None]-f(b[:, 1:-1, 1:-1]), axis=2) for v in views(a)], 0)
    for chunk in (1, 4, 128): assert np.allclose(np.concatenate([d for _, d in distances(a, b, f, chunk=chunk)]), want, atol=1e-2)
    n = near(a, b, f)
    assert np.allclose(np.sort(want, 1)[:, :2].T, (n.first, n.second), atol=1e-2) and (n.who == want.argmin(1)).all() and np.allclose(n.back, want.min(0), atol=1e-2)
    assert len(list(views(a))) == 36 and near(a, a, f).first.max() < 1 < near(a, a, f, same=True).first.min()


def test_thirds_follow_the_hash():
    d = phantom(n_patients=30, size=28, seed=0)['patients']
    t, h, a = thirds(d, 4)
    assert len(t) == len(h) and not {*d[t]} & {*d[h]} and not {*d[t]} & {*d[a]} and not {*d[h]} & {*d[a]}
    assert {*d[a]} == {*d[::-1][thirds(d[::-1], 4)[2]]} != {*d[thirds(d, 5)[2]]}


def test_attack_values():
    c = attack(np.array([.9, .8, .3]), np.array([.7, .3, .1]), 'x')
    assert c['value'] == pytest.approx(5/6, abs=1e-5) and c['tpr'] is None
    half = 1.959964*np.sqrt(1/27)
    assert c['interval'] == pytest.approx([5/6-half, 1], abs=1e-4)
    assert attack(np.zeros(5), np.zeros(5), 'x')['p'] == 1


def test_no_share_at_one_percent_of_fewer_than_a_hundred():
    "`tpr` needs non-members: one in a hundred of 99 is less than one."
    members, others = np.arange(200.)+30, np.arange(200.)
    assert TPR_FROM == 100 and attack(members, others[:99], 'x')['tpr'] is None
    assert attack(members, others[:100], 'x')['tpr'] == pytest.approx((members > others[:100].max()).mean(), abs=1e-5)
    assert attack(others[:3]+500, others[:100], 'x')['tpr'] == 1                  # the members may be few
    assert attack(np.zeros(99), np.zeros(99), 'x')['tpr'] is None and attack(np.zeros(5), np.zeros(100), 'x')['tpr'] == 0


def test_a_guilty_discriminator_is_a_verdict_of_its_own(sets):
    "It fails the weights and changes nothing in the rows, the power and the verdict of the images."
    T, H, A, fresh, patients = sets
    rng = np.random.default_rng(0)
    same, more = ([rng.normal(m, 1, len(T)), rng.normal(0, 1, len(H))] for m in (0, 1))
    alone, guilty, innocent = (audit(T, H, A, fresh, patients, discriminator_scores=s, kinds=()) for s in (None, more, same))
    assert alone['verdict'] == 'PASS' and alone['weights']['verdict'] == 'not audited'
    assert flagged(guilty) == {'discriminator'} and guilty['weights']['verdict'] == 'FAIL'
    assert innocent['weights']['verdict'] == 'PASS' and innocent['weights']['words'].startswith('no memorisation detected')
    for r in (guilty, innocent):
        assert sum(c['name'] == 'discriminator' for c in r['checks']) == 1
        rest = [c for c in r['checks'] if c['name'] != 'discriminator']
        assert (rest, r['verdict'], r['words'], r['power']) == (alone['checks'], 'PASS', alone['words'], alone['power'])
        assert 'discriminator' not in r['words'] and json.loads(json.dumps(r, allow_nan=False)) == r
    copied = audit(T, H, A, planted(T, 'exact', .1, 0, fresh), patients, discriminator_scores=same, kinds=())
    assert (copied['verdict'], copied['weights']['verdict']) == ('FAIL', 'PASS')
    noise = audit(T, H, A, rng.integers(0, 256, fresh.shape, 'uint8'), patients, discriminator_scores=more, kinds=())
    assert (noise['verdict'], noise['weights']['verdict']) == ('not auditable', 'FAIL')


@pytest.mark.parametrize('t, h, decided', [(40, 40, True), (39, 40, False), (40, 39, False), (39, 39, False)])
def test_few_patients_are_described_and_not_decided(t, h, decided):
    "Scores that tell everybody apart: from 40 patients a side on that is a FAIL, below it is an AUC with its interval."
    rng = np.random.default_rng(1)
    (row,), said = judge_weights((rng.normal(4, 1, t), rng.normal(0, 1, h)))
    assert DECIDED_FROM == 40 and row['value'] > .95 and row['interval'][0] > .8 and f"AUC {row['value']:.2f}" in said['words']
    if decided: assert (said['verdict'], row['role'], row['flagged']) == ('FAIL', 'test', True) and row['p_holm'] < .05
    else: assert (said['verdict'], row['role'], row['flagged'], row['p'], row['p_holm']) == ('described', 'description', False, None, None)


def test_patients_are_counted_and_not_images():
    "Many images of few patients: the attack is described."
    d = phantom(n_patients=105, size=28, seed=3)
    t, h, a = thirds(d['patients'], 0)
    fresh, names = phantom(n_patients=80, size=28, seed=11)['images'], tuple(d['patients'][i] for i in (t, h, a))
    scores = [np.full(len(x), v)+np.arange(len(x))*1e-3 for x, v in ((t, 9.), (h, 0.))]
    assert len(t) > DECIDED_FROM > len(set(names[0]))
    for patients, verdict in ((names, 'described'), (None, 'FAIL')):
        assert audit(d['images'][t], d['images'][h], d['images'][a], fresh, patients, discriminator_scores=scores, kinds=())['weights']['verdict'] == verdict


def test_scores_that_do_not_belong_are_refused(sets):
    T, H, A, fresh, patients = sets
    more = [np.arange(float(len(T))), np.arange(float(len(H)))]
    with pytest.raises(UserError, match='one finite score'): audit(T, H, A, fresh, patients, discriminator_scores=(more[0], more[1][1:]))


def test_planted():
    T = phantom(n_patients=20, size=28, seed=0)['images']
    assert {*digests(planted(T, 'exact'))} == {*digests(T)} and len({*digests(planted(T, 'one'))}) == 1
    G = planted(T, 'mirrored', .25, 1, fresh=T[::-1])
    assert len(G) == len(T) and np.array_equal(G, planted(T, 'mirrored', .25, 1, fresh=T[::-1]))
    assert {*digests(G[:round(.25*len(T)), :, ::-1])} <= {*digests(T)}
    with pytest.raises(UserError, match='did you mean'): planted(T, 'exakt')
    with pytest.raises(UserError, match='fresh'): planted(T, 'exact', .5)


def test_canaries(sets):
    T, H, A, fresh, _ = sets
    caught = []
    for s in range(10):
        c = plant_canaries(T, seed=s)
        assert c.images.dtype == np.uint8 and len(c.images) == len(T)+20 and {*digests(c.planted)} <= {*digests(c.images)} and not {*digests(c.unplanted)} & {*digests(c.images)}
        caught.append([find_canaries(g, c)['flagged'] for g in (fresh, np.concatenate([fresh, planted(c.planted[2:4], 'disguised')]))])
    innocent, guilty = np.sum(caught, 0)
    assert innocent <= 2 and guilty == 10


def test_figures(sets):
    T, H, A, fresh, patients = sets
    G = planted(T, 'disguised', .1, 0, fresh)
    r = audit(T, H, A, G, patients, kinds=())
    fig = show_pairs(T, G, r, 4)
    first = r['pairs'][0]
    assert len(fig.axes) == 8 and np.array_equal(fig.axes[0].images[0].get_array(), T[first['train']]) and np.array_equal(fig.axes[1].images[0].get_array(), G[first['synthetic']])
    ax = plot_distances(r)
    assert ax.get_title() == 'FAIL' and sum(r['histogram']['synthetic']) == len(G) and sum(r['histogram']['holdout']) == len(H)


def test_epsilon():
    pytest.importorskip('opacus')
    assert epsilon(60_000, 256, 1.12, 60, 1e-5) == pytest.approx(2.5186, abs=1e-4)
    assert epsilon(60_000, 256, 1.12, 30) < 2.5186 < epsilon(60_000, 256, .9, 60)
    for bad in (dict(batch=70_000), dict(noise_multiplier=0), dict(delta=.1), dict(epochs=0)):
        with pytest.raises(UserError, match='delta below 1/n'): epsilon(**dict(n=60_000, batch=256, noise_multiplier=1.12, epochs=60, delta=1e-5) | bad)


def test_epsilon_without_opacus(monkeypatch):
    monkeypatch.setitem(sys.modules, 'opacus.accountants', None)
    with pytest.raises(UserError, match='pip install'): epsilon(60_000, 256, 1.12, 60)


def test_module_needs_no_torch():
    assert subprocess.run([sys.executable, '-c', 'import sys, gansynth.privacy; sys.exit("torch" in sys.modules)'], cwd=ROOT).returncode == 0


@pytest.mark.slow
@needs_real_data
def test_real_images():
    "PneumoniaMNIST by patient: other patients pass, every kind of replay of a tenth fails."
    from gansynth.data import join_duplicates, load
    d = load(f'medmnist:{SHARED}/pneumoniamnist', 28)
    p = join_duplicates(d.patients, d.hashes)
    who = np.array_split(sorted(set(p), key=lambda q: hash_of([7, q])), 4)
    T, H, A, G = (np.flatnonzero(np.isin(p, w)) for w in who)
    n = min(map(len, (T, H, G)))
    parts, fresh, names = [d.images[i] for i in (T[:n], H[:n], A)], d.images[G], [p[i] for i in (T[:n], H[:n], A)]
    assert audit(*parts, fresh, names)['verdict'] == 'PASS'
    for kind in ('noise', 'mirrored', 'blended'): assert audit(*parts, planted(parts[0], kind, .1, 0, fresh), names, kinds=())['verdict'] == 'FAIL', kind
