"Private training: the gradient is what it should be, one patient moves it by C at most, and nothing of the secret is written down."
import json, sys
from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import chi2, kstest

from gansynth import private_training as dp
from gansynth.core import UserError
from gansynth.data import load
from gansynth.gan_training import step_seed
from gansynth.gans import load_gan, save_gan
from gansynth.generators import PAIRS, bone_fracture_discriminator, covid_ct_discriminator, dcgan_discriminator, lung_optimizers_discriminator
from gansynth.privacy import epsilon
from gansynth.private_training import (FAKE, REAL, PrivateTraining, clipped, default_delta, drawn_patients, epsilon_for, find_secret, image_gradients, portions, private_gradient, promise, sigma_for, step_rng,
                                       train_private, unmixed)

SECRET = 0xb5ad4eceda1ce2a9b5ad4eceda1ce2a9
QUICK = dict(gan='lung_adam', bs=4, nz=8, secret=SECRET, snapshots=1)
NETWORKS = dict(dcgan=(dcgan_discriminator, 28, 1), lung=(partial(lung_optimizers_discriminator, dropout=0.), 28, 1), covid=(partial(covid_ct_discriminator, dropout=0.), 64, 1), bone=(partial(bone_fracture_discriminator, dropout=0.), 32, 3))


@pytest.fixture(scope='module')
def data(): return load('phantom:n_patients=30,prevalence=.6', size=28).positives


def discriminator(name='lung', seed=0, n=7):
    "As it is trained: channels_last, with images to match."
    torch.manual_seed(seed)
    make, size, channels = NETWORKS[name]
    return unmixed(make(size)).to(memory_format=torch.channels_last), (torch.rand(n, channels, size, size)*2-1).contiguous(memory_format=torch.channels_last)


def flat(grads): return torch.cat([g.flatten() for g in grads])
def alone(D, image, loss=REAL['bce']):
    D.zero_grad()
    loss(D(image[None])).sum().backward()
    out = flat([p.grad.clone() for p in D.parameters()])
    D.zero_grad()
    return out


@pytest.mark.parametrize('loss', REAL)
@pytest.mark.parametrize('name', NETWORKS)
def test_image_gradients_are_those_of_a_loop(name, loss):
    D, x = discriminator(name, n=3)
    each = image_gradients(D, x, REAL[loss])
    for i in range(3):
        want = alone(D, x[i], REAL[loss])
        assert (flat([g[i] for g in each])-want).abs().max() <= 1e-5*want.abs().max()
    assert not any(hasattr(p, 'grad_sample') for p in D.parameters()) and not any(m._forward_hooks or m._backward_hooks for m in D.modules())


def test_an_image_does_not_touch_its_neighbours():
    "The reason for GroupNorm: with BatchNorm the gradient of an image depends on the others."
    D, x = discriminator('dcgan')
    y = x.clone(); y[1:] = -x[1:]
    assert torch.allclose(image_gradients(D, x, REAL['bce'])[1][0], image_gradients(D, y, REAL['bce'])[1][0], rtol=1e-4, atol=1e-7)
    assert not any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in D.modules())


def test_ordinary_gradient_without_noise_and_limit():
    D, x = discriminator('dcgan')
    who = np.array([0, 0, 0, 1, 2, 2, 3])
    got = flat(private_gradient(D, x, who, REAL['bce'], 0, 1e9, len(x), np.random.default_rng(0)))
    REAL['bce'](D(x)).mean().backward()
    want = flat([p.grad for p in D.parameters()])
    assert (got-want).abs().max() < 1e-6+1e-5*want.abs().max()


@pytest.mark.parametrize('seed', range(3))
def test_one_patient_moves_the_sum_by_the_limit_at_most(seed):
    "Whatever the images are and however many; also a patient who fills a portion alone."
    rng = np.random.default_rng(seed)
    who = np.sort(rng.integers(0, 5, 60))
    D, x = discriminator(n=60, seed=seed)
    x[who == 2] *= 50
    total = lambda keep: flat(private_gradient(D, x[torch.from_numpy(keep)], who[keep], REAL['bce'], 0, .3, 1, rng))
    everyone = total(who >= 0)
    moved = [(everyone-total(who != p)).norm().item() for p in range(5)]
    assert max(moved) <= .3*(1+1e-3) and max(moved) > .29
    by_image = flat(private_gradient(D, x, np.arange(60), REAL['bce'], 0, .3, 1, rng))
    without = flat(private_gradient(D, x[who != 2], np.arange((who != 2).sum()), REAL['bce'], 0, .3, 1, rng))
    assert (by_image-without).norm() > .6, 'clipping by image would do as well, and this test shows nothing'


def test_clipped_by_hand():
    grads = [torch.tensor([[3., 0], [0, 0], [0, 1]]), torch.tensor([[0.], [4], [0]])]
    total, norms = clipped(grads, torch.tensor([7, 7, 9]), 2.)
    assert norms.tolist() == [5, 1] and torch.allclose(flat(total), torch.tensor([1.2, 1, 1.6]))


@pytest.mark.parametrize('who', [[], [0], [0]*9, [0, 1, 2, 3, 4], [0, 0, 1, 1, 1, 2, 5, 5], [0]*5+[1]*5])
def test_portions_divide_nobody(who):
    who = np.array(who, int)
    parts = [who[p] for p in portions(who, 3)]
    assert np.concatenate([*parts, who[:0]]).tolist() == who.tolist() and all(len(p) for p in parts)
    assert all(not set(a) & set(b) for i, a in enumerate(parts) for b in parts[:i]) and all(len(p) <= 3 or len(set(p)) == 1 for p in parts)


def test_noise_has_the_scale_that_was_promised():
    "Also in an empty step, where the noise is all there is: its spread is sigma*C/expected, its shape Gaussian."
    D, x = discriminator()
    none = flat(private_gradient(D, x[:0], np.array([], int), REAL['bce'], 1.5, .2, 10, np.random.default_rng(1))).numpy()
    assert kstest(none/(1.5*.2/10), 'norm').pvalue > .01
    assert chi2.cdf(((none/.03)**2).sum(), len(none)) == pytest.approx(.5, abs=.499)
    who = np.arange(7)
    with_noise, without = (flat(private_gradient(D, x, who, REAL['bce'], s, .2, 10, np.random.default_rng(1))) for s in (1.5, 0))
    assert np.allclose((with_noise-without).numpy(), none, atol=1e-5)


def test_poisson_subsampling():
    n, q, steps = 50, .08, 4000
    drawn = [drawn_patients(n, q, step_rng(SECRET, i, 0, 'who')) for i in range(steps)]
    size, each = np.array([len(d) for d in drawn]), np.bincount(np.concatenate(drawn), minlength=n)
    assert abs(size.mean()-n*q) < 4*np.sqrt(n*q*(1-q)/steps) and size.var() == pytest.approx(n*q*(1-q), rel=.1)
    assert 1e-3 < chi2.sf(((each-steps*q)**2/(steps*q*(1-q))).sum(), n) < .999
    assert (size == 0).mean() == pytest.approx((1-q)**n, abs=.01)
    assert len(drawn_patients(9, 1., step_rng(1, 1, 0, 'who'))) == 9


def test_streams_differ():
    "Noise, choice and the rest never share random numbers, nor do two updates or two steps."
    keys = [(SECRET, s, k, u) for s in (1, 2) for k in (0, 1) for u in ('who', 'noise', 'other')]
    assert len({step_rng(*k).integers(2**63) for k in keys}) == len(keys) and step_rng(*keys[0]).integers(2**63) == step_rng(*keys[0]).integers(2**63)


def test_one_secret_never_gives_the_same_noise_twice(data):
    "Noise that repeats vanishes in the difference of two trainings: settings and patients are part of the key."
    config = train_private(data, 1, **QUICK).lineage['config']
    keys = [PrivateTraining(c, 'cpu', p, SECRET).key for c, p in ((config, data.patients), (config | dict(privacy=config['privacy'] | dict(sigma=2.)), data.patients), (config, data.ids), (config | dict(lr=1.), data.patients))]
    assert PrivateTraining(config, 'cpu', data.patients, SECRET+1).key != keys[0], 'the key follows from what the lineage tells'
    assert len(set(keys)) == 4 and keys[0] == PrivateTraining(config, 'cpu', data.patients, SECRET).key and SECRET not in keys


def test_the_training_uses_patients(data, monkeypatch):
    "Each update sees all images of the drawn patients and no others, sorted, and divides by the expected number."
    seen, drawn, real = [], [], dp.private_gradient
    def spy(D, x, who, loss, sigma, clip, expected, rng=None):
        if rng: seen.append((who, expected, x.clone()))
        else: drawn.append((who, sigma, clip, expected, len(x)))
        return real(D, x, who, loss, sigma, clip, expected, rng)
    monkeypatch.setattr(dp, 'private_gradient', spy)
    gan = train_private(data, 4, n_critic=2, **QUICK)
    names, number = np.unique(data.patients, return_inverse=True)
    assert len(seen) == 8 and len({tuple(w) for w, *_ in seen}) > 4 and gan.lineage['privacy']['steps'] == 8
    for who, expected, x in seen:
        assert expected == pytest.approx(4/len(names)*len(data)) and (np.diff(who) >= 0).all() and all((who == p).sum() == (number == p).sum() for p in set(who))
        pixels = torch.from_numpy(np.concatenate([data.images[number == p] for p in sorted(set(who))])).float()/127.5-1 if len(who) else x[:, 0]
        assert torch.equal(x[:, 0], pixels)
    assert len(drawn) == 8 and all(len(set(who)) == 4 and (sigma, clip, expected) == (0, 1., n) and n == round(seen[0][1]) for who, sigma, clip, expected, n in drawn), 'drawings: clipped alike, without noise'
    seen.clear()
    train_private(data, 2, unit='image', **QUICK)
    assert all(len(set(w)) == len(w) for w, *_ in seen) and seen[0][1] == pytest.approx(4)


def bits(gan): return {k: v.clone() for n, m in (('G', gan.generator), ('D', gan.discriminator)) for k, v in ((f'{n}.{k}', v) for k, v in m.state_dict().items())} | {'history': torch.from_numpy(gan.history)}
def same(a, b): return bits(a).keys() == bits(b).keys() and all(torch.equal(v, bits(b)[k]) for k, v in bits(a).items()) and a.hash == b.hash


@pytest.mark.slow
@pytest.mark.parametrize('recipe', [dict(gan='lung_adam'), dict(gan='dcgan', ema=.9, n_critic=2, loss='hinge', augment='fixed', unit='image')])
def test_goes_on_to_the_same_bits(data, tmp_path, recipe):
    options = QUICK | recipe
    def stop(t):
        if t.step == 2: raise KeyboardInterrupt
    straight = train_private(data, 4, **options)
    with pytest.raises(KeyboardInterrupt): train_private(data, 4, folder=tmp_path, save_every=0, watch=stop, **options | dict(snapshots=4))
    resumed = train_private(data, 4, folder=tmp_path, **options)
    assert same(straight, resumed) and straight.lineage['privacy'] == resumed.lineage['privacy']
    assert not same(straight, train_private(data, 4, **options | dict(secret=SECRET+1)))
    with pytest.raises(UserError, match='made with other settings'): train_private(data, 6, folder=tmp_path, **options | dict(secret=SECRET+1))
    with pytest.raises(UserError, match='made with other settings'): train_private(data, 6, folder=tmp_path, sigma=.9, **options)


def test_empty_steps_train(data):
    gan = train_private(data, 6, **QUICK | dict(bs=.2))
    assert np.isfinite(gan.history).all() and (gan.history[:, 3] > 0).all()


def test_without_noise_and_limit_it_is_the_ordinary_training(data):
    "One step in which everybody is drawn: the discriminator's gradient is that of train_gan, for a network without BatchNorm and dropout."
    torch.manual_seed(0)
    config = train_private(data, 1, sigma=0., clip=1e9, **QUICK).lineage['config'] | dict(lr_d=0.)
    config['privacy'] = config['privacy'] | dict(q=1.)
    t = PrivateTraining(config, 'cpu', data.patients, SECRET)
    for m in t.D.modules():
        if isinstance(m, torch.nn.Dropout): m.p = 0.
    order = t.chosen()[0]
    x = (torch.from_numpy(data.images[order]).float()/127.5-1).unsqueeze(1)
    fake = t.G(torch.randn(len(x), 8)).detach()
    private = flat(dp.real_gradient(t, x, order, 0))
    FAKE['bce'](t.D(fake)).mean().backward()
    got = private+flat([p.grad for p in t.D.parameters()])
    t.D.zero_grad()
    (REAL['bce'](t.D(x)).mean()+FAKE['bce'](t.D(fake)).mean()).backward()
    want = flat([p.grad for p in t.D.parameters()])
    assert len(order) == len(data) and (got-want).abs().max() <= 1e-5*want.abs().max()


def test_drawings_do_not_depend_on_who_was_drawn(data):
    "The noise z of a step is the same for every secret; only weights carry news of patients."
    seen = []
    class Watched(PrivateTraining):
        def noise(self, like): seen.append(z := super().noise(like)); return z
    for secret in (SECRET, SECRET+1):
        config = train_private(data, 1, **QUICK | dict(secret=secret, n_critic=2)).lineage['config']
        t = Watched(config, 'cpu', data.patients, secret)
        torch.manual_seed(5)
        i = np.concatenate(t.chosen())
        dp.private_step(t, (torch.from_numpy(data.images[i]).float()/127.5-1).unsqueeze(1))
    assert torch.equal(torch.stack(seen[:2]), torch.stack(seen[2:])) and len(seen) == 4


def test_the_loss_on_real_images_is_not_written_down(data):
    "The discriminator's loss in the history can be computed without a patient."
    gan = train_private(data, 1, **QUICK)
    t = PrivateTraining(gan.lineage['config'], 'cpu', data.patients, SECRET)
    torch.manual_seed(step_seed(0, 1))
    fake = t.G(t.noise(torch.empty(max(2, round(t.expected)), 1)))
    assert FAKE['bce'](t.judge(fake)).mean().item() == pytest.approx(gan.history[0, 1], rel=1e-5)


def test_epsilon_in_the_lineage(data):
    n = len(set(data.patients))
    gans = [train_private(data, k, **QUICK) for k in (1, 2)]
    facts = [g.lineage['privacy'] for g in gans]
    assert [f['epsilon'] for f in facts] == [epsilon_for(1., 4/n, k, default_delta(n)) for k in (1, 2)] and facts[0]['epsilon'] < facts[1]['epsilon']
    assert {k: facts[1][k] for k in ('unit', 'n', 'sigma', 'clip', 'delta', 'q', 'steps', 'accountant')} == dict(unit='patient', n=n, sigma=1., clip=1., delta=1e-5, q=4/n, steps=2, accountant='rdp')
    tight = train_private(data, 1, accountant='prv', unit='image', **QUICK).lineage['privacy']
    assert (tight['unit'], tight['n'], tight['accountant']) == ('image', len(data), 'prv') and tight['epsilon'] == epsilon_for(1., 4/len(data), 1, 1e-5, 'prv')
    assert train_private(data, 1, sigma=0., **QUICK).lineage['privacy']['epsilon'] is None


def test_the_accountant():
    steps = 60*60_000//256
    assert epsilon_for(1.12, 256/60_000, steps, 1e-5) == pytest.approx(2.5186, abs=1e-4) == epsilon(60_000, 256, 1.12, 60)
    assert epsilon_for(1.12, 256/60_000, steps, 1e-5, 'prv') < 2.5186
    assert 1.9 < epsilon_for(sigma_for(2., .1, 200, 1e-5), .1, 200, 1e-5) <= 2
    assert default_delta(60) == 1e-5 and default_delta(10**6) == pytest.approx(1e-7)
    for bad in (dict(sigma=-1), dict(q=0), dict(q=1.1), dict(steps=0), dict(delta=1.), dict(accountant='moments')):
        with pytest.raises(UserError): epsilon_for(**dict(sigma=1., q=.1, steps=5, delta=1e-5) | bad)
    for bad in (0, 1e-9):
        with pytest.raises(UserError): sigma_for(bad, 1., 10_000, 1e-9)


@pytest.mark.parametrize('change, word', [(dict(gan='r3gan'), 'loss='), (dict(gan='wgan_gp'), 'loss='), (dict(loss='relativistic'), 'pairs it'), (dict(gamma=1.), 'R1'), (dict(penalty=1.), 'mixes'), (dict(augment='adaptive'), 'logits of real'),
                                          (dict(spectral=True), 'spectral'), (dict(gan='conditional'), 'labels'), (dict(start='a Gan'), 'start afresh'), (dict(allow_config_change=True), 'one set of settings'), (dict(folder='cache'), 'secret'),
                                          (dict(unit='pateint'), "did you mean 'patient'"), (dict(bs=10_000), 'between'), (dict(clip=0.), 'positive'), (dict(delta=.5), 'delta below'), (dict(sigma=-1.), 'negative'), (dict(secret=12345), 'by trying'),
                                          (dict(lossy=1), "did you mean 'loss'")])
def test_refusals(data, change, word):
    with pytest.raises(UserError, match=word): train_private(data, 1, **QUICK | change)


def test_a_refusal_leaves_no_secret(data, tmp_path):
    with pytest.raises(UserError): train_private(data, 1, folder=tmp_path/'x', **QUICK | dict(secret='new', clip=-1.))
    assert not (tmp_path/'x').exists()


def test_without_opacus(monkeypatch, data):
    monkeypatch.setitem(sys.modules, 'opacus.accountants', None)
    with pytest.raises(UserError, match=r'pip install gansynth\[dp\]'): train_private(data, 1, **QUICK)


def test_the_secret_stays_secret(data, tmp_path):
    "Fresh for each training, readable by its owner only, and in no file but its own."
    made = find_secret('new'), find_secret('new')
    assert made[0] != made[1] and all(2**127 <= v < 2**128 for v in made)
    folder, options = tmp_path/'run', QUICK | dict(secret='new')
    gan = train_private(data, 2, folder=folder, **options)
    kept = folder/'secret'
    secret = int(kept.read_text(), 16)
    assert kept.stat().st_mode & 0o077 == 0 and secret == find_secret('new', folder)
    save_gan(gan, tmp_path/'out'/'g.safetensors')
    for p in [*folder.iterdir(), *(tmp_path/'out').iterdir()]:
        if p != kept: assert not any(w in p.read_bytes() for v in (secret,) for w in (str(v).encode(), f'{v:x}'.encode(), v.to_bytes(16, 'little'), v.to_bytes(16, 'big'))), p.name
    assert str(secret) not in json.dumps(gan.lineage) and len(gan.lineage['privacy']['secret']) == 64
    assert same(gan, train_private(data, 2, folder=folder, **options))
    assert not same(gan, train_private(data, 2, **options))
    assert load_gan(tmp_path/'out'/'g.safetensors').lineage['privacy'] == gan.lineage['privacy']


def test_without_a_secret_the_lineage_says_so(data):
    a, b = (train_private(data, 1, **QUICK | dict(secret=None)) for _ in range(2))
    assert same(a, b) and a.lineage['privacy']['secret'] is None


def test_every_pair_that_can_is_trained(data):
    "Each network of one class has layers that opacus knows."
    for name, pair in PAIRS.items():
        if pair.conditional: continue
        D = unmixed(pair.discriminator(min(pair.sizes)))
        x = torch.rand(1, pair.channels, min(pair.sizes), min(pair.sizes))
        if name != 'r3gan': assert len(image_gradients(D, x, REAL['bce'])) == len(list(D.parameters()))
