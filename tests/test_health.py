"The monitor of a training: each warning where the fault was planted, none where it was not, and not one bit of the training changed."
import hashlib, json, random, time
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from gansynth import health
from gansynth.core import UserError
from gansynth.data import load
from gansynth.gan_training import train_gan
from gansynth.gans import Gan
from gansynth.generators import PAIRS, Pair
from gansynth.health import Monitor, diagnose, judge, plot_health, verdict
from gansynth.recipes import RECIPES, Recipe, Training


class Replay(nn.Module):
    "A generator that shows `images` by turns: the rows of one batch after another, whatever z is."
    def __init__(self, images, sd=0.):
        super().__init__()
        self.images, self.sd, self.k, self.w = torch.from_numpy(images.astype('float32')/127.5-1)[:, None], sd, 0, nn.Parameter(torch.zeros(1))
    def forward(self, z, y=None):
        i = (self.k+torch.arange(len(z)))%len(self.images)
        self.k += len(z)
        return self.images[i]+self.sd*z[:, :1, None, None]*torch.linspace(-1, 1, 28)


class Brightness(nn.Module):
    "A discriminator whose logit is a number looked up by the sum of the pixels."
    def __init__(self, images, gain):
        super().__init__()
        self.known, self.gain, self.w = {round(float(v), 2) for v in (images.astype('float32')/127.5-1).sum((1, 2))}, gain, nn.Parameter(torch.zeros(1))
    def forward(self, x, y=None): return torch.tensor([self.gain*(round(float(v.sum()), 2) in self.known) for v in x[:, 0]])+x.mean((1, 2, 3))


class Small(nn.Sequential):
    def __init__(self): super().__init__(nn.Conv2d(1, 8, 4, 4), nn.BatchNorm2d(8), nn.LeakyReLU(.2), nn.Dropout(.3), nn.Flatten(), nn.Linear(8*49, 1), nn.Flatten(0))

def small_g(size=28, nz=16): return nn.Sequential(nn.Linear(nz, 8*49), nn.BatchNorm1d(8*49), nn.LeakyReLU(.2), nn.Unflatten(1, (8, 7, 7)), nn.Upsample(scale_factor=4), nn.Conv2d(8, 1, 3, padding=1), nn.Tanh())


@pytest.fixture(autouse=True, scope='module')
def small_pair():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    PAIRS['small'], RECIPES['small'] = Pair(small_g, lambda size=28: Small(), (28,), nz=16), Recipe('small', lr=1e-3)
    yield
    del PAIRS['small'], RECIPES['small']
    torch.set_num_threads(threads)


@pytest.fixture(scope='module')
def all_images(): return load('phantom:n_patients=300', size=28)


@pytest.fixture(scope='module')
def halves(all_images):
    ill = all_images.positives
    half = np.isin(ill.patients, sorted(set(ill.patients))[::2])
    return ill.take(half), ill.take(~half)


@pytest.fixture(scope='module')
def monitor(halves): return Monitor(*halves, n=100)


class FakeTraining:
    "What a monitor needs of a training, with planted networks and history."
    def __init__(self, drawer, D=None, step=10, health=(), d_loss=1.2, g_norm=5., n_classes=0, **config):
        self.drawer, self.D, self.step, self.health, self.device = drawer, D or Small(), step, list(health), torch.device('cpu')
        self.config = dict(nz=16, n_classes=n_classes, size=28, seed=0, precision='float32', pair='small', loss='bce', smoothing=0.) | config
        self.history = torch.tensor([1., d_loss, g_norm, 2.]).repeat(step, 1)
    def next(self, row, **changes): return FakeTraining(**dict(drawer=self.drawer, D=self.D, step=self.step+10, health=[*self.health, {'step': self.step} | row]) | changes)


def seen(monitor, **kw):
    t = FakeTraining(**kw)
    return {'step': t.step} | monitor(t)


# --- spread

def test_a_constant_generator_is_flagged(monitor, halves):
    row = seen(monitor, drawer=Replay(halves[0].images[:1]))
    assert row['spread'] == row['nearest'] == 0 and row['warnings'] == ['collapsed']


def test_distinct_real_images_are_not(monitor, halves):
    row = seen(monitor, drawer=Replay(np.unique(halves[0].images, axis=0)))
    assert row['warnings'] == [] and .8 < row['spread'] < 1.25 and row['kid'] < 5*row['kid_se']


def test_black_and_white_drawings_are_judged_like_any(monitor, halves):
    "0, 1 and 255 alone look like floats that somebody cast to bytes; from a generator they are what it draws."
    stark = np.random.default_rng(0).choice(np.array([0, 1, 255], 'uint8'), (100, 28, 28), p=[.5, .01, .49])
    row = seen(monitor, drawer=Replay(stark))
    assert np.isfinite(row['kid']) and row['kid'] > .5
    with pytest.raises(UserError, match='cast to bytes'): monitor.extractor(stark)


@pytest.mark.parametrize('k', [2, 3, 10])
def test_a_few_images_are_flagged_by_their_neighbours(monitor, halves, k):
    row = seen(monitor, drawer=Replay(halves[0].images[:k]))
    assert row['warnings'] == ['collapsed'] and row['nearest'] == 0
    if k == 10: assert row['spread'] > .6         # the mean distance alone would not see it


def test_one_image_in_many_shades_is_flagged(monitor, halves):
    assert 'collapsed' in seen(monitor, drawer=Replay(halves[0].images[:1], sd=.05))['warnings']


def test_what_the_spread_cannot_see(monitor, halves):
    "As many images as are looked at: no twin among them. The chapter says so."
    assert seen(monitor, drawer=Replay(np.unique(halves[0].images[:150], axis=0)[:100]))['warnings'] == []


def test_one_blur_per_class_is_flagged(all_images):
    "The conditional GAN of the fault list: two blurs differ from each other, but not within their class."
    half = np.isin(all_images.patients, sorted(set(all_images.patients))[::2])
    m = Monitor(all_images.take(half), all_images.take(~half), n=120)
    means = [all_images.images[all_images.labels == c].mean(0) for c in (0, 1)]
    class Blurs(Replay):
        def forward(self, z, y): return self.images[y]
    class Real(Replay):
        def forward(self, z, y):
            own = [np.unique(all_images.images[half & (all_images.labels == c)], axis=0) for c in (0, 1)]
            out = np.stack([own[c][(self.k+i)%len(own[c])] for i, c in enumerate(y.tolist())])
            self.k += len(z)
            return torch.from_numpy(out.astype('float32')/127.5-1)[:, None]
    rows = [seen(m, drawer=g(np.stack(means)), D=Labelled(), n_classes=2) for g in (Blurs, Real)]
    assert rows[0]['warnings'] == ['collapsed'] and rows[0]['spread'] == 0 and rows[1]['warnings'] == [] and rows[1]['spread'] > .7


class Labelled(Small):
    def forward(self, x, y):
        assert len(x) == len(y) and y.dtype == torch.int64
        return super().forward(x)+y


# --- discriminator and gradients

def test_learned_by_heart_is_flagged(monitor, halves):
    good = Replay(np.unique(halves[0].images, axis=0))
    by_heart, fair = (seen(monitor, drawer=good, D=Brightness(halves[0].images, gain)) for gain in (50., 0.))
    assert by_heart['d_auc'] == 1 and by_heart['warnings'] == ['overfitting'] and by_heart['d_train'] > by_heart['d_holdout']+40
    assert fair['warnings'] == [] and fair['d_auc_low'] < .5 < fair['d_auc_high']


def test_all_logits_alike_are_chance(monitor, halves):
    class Deaf(Small):
        def forward(self, x): return torch.zeros(len(x))
    row = seen(monitor, drawer=Replay(halves[0].images[:40]), D=Deaf())
    assert (row['d_auc'], row['d_auc_low'], row['d_auc_high']) == (.5, 0, 1)


WELL = dict(step=40, spread=.8, nearest=.8, contest=.7, d_auc=.52, d_auc_low=.4, d_holdout=1., d_fake=-1., g_norm=5.)

@pytest.mark.parametrize('changes,earlier,expected', [
    ({}, (WELL, WELL), []),
    (dict(spread=.44), (), ['collapsed']), (dict(spread=.46, nearest=.46), (), []), (dict(nearest=.1), (WELL,), ['collapsed']),
    (dict(spread=2., nearest=1.9), (), ['scattered']), (dict(spread=2., nearest=1.5), (), []),
    (dict(d_auc_low=.61), (), ['overfitting']), (dict(d_auc=.7, d_auc_low=.59), (), []),
    (dict(contest=.05), (WELL,), []), (dict(contest=.05), (), []), (dict(contest=.05), (WELL, WELL | dict(contest=.02)), ['discriminator won']), (dict(contest=.05), (WELL | dict(contest=.02), WELL), []),
    (dict(contest=None), (WELL | dict(contest=None),), []),
    (dict(g_norm=.01), (WELL,), ['gradients vanished']), (dict(g_norm=0.), (WELL,), ['gradients vanished']), (dict(g_norm=0.), (), []), (dict(g_norm=.5), (WELL,), []),
    (dict(g_norm=1000.), (WELL,), ['gradients exploded']), (dict(g_norm=50.), (WELL,), []),
    (dict(spread=0., d_auc_low=.9, g_norm=0.), (WELL,), ['collapsed', 'gradients vanished', 'overfitting'])])
def test_diagnose(changes, earlier, expected):
    found = diagnose(WELL | changes, earlier)
    assert [c for c, _ in found] == expected
    assert all('step 40: ' in words and 'try' in words.lower() for _, words in found)


def test_rows_of_another_monitor_do_not_disturb():
    assert diagnose(WELL, [dict(step=10), dict(step=20, kid=1.)]) == []


def test_losses_count_since_the_last_look(monitor, halves):
    t = FakeTraining(Replay(halves[0].images[:100]), step=20, health=[dict(step=15)])
    t.history[15:] = torch.tensor([.5, .01, 7., 3.])
    row = monitor(t)
    assert [round(row[k], 4) for k in ('g_loss', 'd_loss', 'g_norm', 'd_norm', 'contest')] == [.5, .01, 7, 3, round(.01/(2*np.log(2)), 4)]


@pytest.mark.parametrize('loss,smoothing,d_loss,expected', [('bce', 0, 2*np.log(2), 1), ('bce', .1, -.9*np.log(.9)-.1*np.log(.1), 0), ('hinge', 0, 0, 0), ('relativistic', 0, np.log(2), 1), ('wasserstein', 0, -5, None)])
def test_contest(loss, smoothing, d_loss, expected):
    assert health.contest(d_loss, dict(loss=loss, smoothing=smoothing)) == pytest.approx(expected, abs=1e-6)


# --- words

def test_a_warning_is_printed_once_and_its_end_too(monitor, halves, capsys):
    bad, good = Replay(halves[0].images[:1]), Replay(np.unique(halves[0].images, axis=0))
    t, said = FakeTraining(good), []
    for drawer in (good, bad, bad, bad, good, bad):
        t.drawer = drawer
        row = json.loads(json.dumps(monitor(t), allow_nan=False))        # as it comes back from a checkpoint
        said.append(capsys.readouterr().err)
        t = t.next(row)
    assert [s.count('warning (collapsed)') for s in said] == [0, 1, 0, 0, 0, 1]
    assert said[1].startswith('warning (collapsed): step 20: ') and '0.00 of the spread' in said[1] and 'try' in said[1]
    assert [bool(s) for s in said] == [False, True, False, False, True, True] and 'step 50: no longer: collapsed' in said[4]


def test_a_clean_run_says_nothing(monitor, halves, capsys):
    seen(monitor, drawer=Replay(np.unique(halves[0].images, axis=0)))
    assert capsys.readouterr() == ('', '')


# --- it changes nothing

def bits(gan): return hashlib.sha256(b''.join(v.numpy().tobytes() for m in (gan.generator, gan.discriminator) for v in m.state_dict().values())+gan.history.tobytes()).hexdigest()
def without_kid(m): return lambda t: {k: v for k, v in m(t).items() if k != 'kid'}

@pytest.mark.parametrize('gan,kw', [('small', {}), ('small', dict(ema=.9, augment='adaptive', spectral=True)), ('lung_adam', dict(lr=2e-4, steps=2, snapshots=2))])
def test_watched_and_unwatched_weights_are_equal(monitor, halves, gan, kw):
    "BatchNorm, dropout, spectral norm, an average: nothing moves, whatever was asked for, and however often."
    run = dict(steps=10, bs=8, seed=1, precision='float32', snapshots=5) | kw
    a, b = (train_gan(halves[0], gan=gan, watch=w, **run) for w in (without_kid(monitor), None))
    assert bits(a) == bits(b)
    if gan == 'small': assert bits(a) != bits(train_gan(halves[0], gan=gan, **run | dict(seed=2)))


def test_random_numbers_and_modes_are_left_alone(monitor, halves):
    t = Training(dict(**Recipe('small').__dict__, size=28, nz=16, bs=8, seed=0, precision='float32', n_classes=0), 'cpu')
    t.step, t.history = 3, torch.ones(3, 4)
    def state(): return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(), [v.tolist() for m in (t.G, t.D) for v in m.state_dict().values()], [m.training for n in (t.G, t.D) for m in n.modules()]
    before = state()
    first = monitor(t)
    assert state() == before and t.D.training
    assert monitor(t) == first and json.loads(json.dumps(first, allow_nan=False)) == first


def test_the_discriminator_is_asked_in_evaluation_mode(halves):
    D = Small()
    class Config: config, device = dict(pair='small', n_classes=0), torch.device('cpu')
    Config.D = D
    x, y = halves[0].images[:9], halves[0].labels[:9]
    assert (judge(Config, x, y) == judge(Config, x, y)).all()
    with torch.no_grad(): assert np.allclose(judge(Config, x, y), np.concatenate([judge(Config, x[i:i+1], y[i:i+1]) for i in range(9)]), atol=1e-6)


def test_another_monitor_gives_the_same(halves, monitor):
    t = FakeTraining(Replay(np.unique(halves[0].images, axis=0)))
    again = Monitor(*halves, n=100)
    a = monitor(t); t.drawer.k = 0
    assert again(t) == a and again.identity == monitor.identity
    others = [Monitor(*halves, n=99), Monitor(*halves, n=100, seed=1), Monitor(halves[0], halves[1].take(slice(0, 30)), halves[1], n=100), Monitor(halves[0], halves[1], halves[1].take(slice(0, 50)), n=100), Monitor(halves[0].take(slice(0, 40)), halves[1], n=100),
              Monitor(*halves, n=100, extractor=health.random_conv(1)), Monitor(halves[0], replace(halves[1], images=halves[1].images ^ (np.arange(28) == 0).astype('uint8')), n=100)]
    assert len({m.identity for m in (monitor, *others)}) == len(others)+1 and all(isinstance(m.identity, str) for m in others)


def test_it_is_quick(halves):
    m = Monitor(*halves, n=200)
    t = FakeTraining(Replay(np.unique(halves[0].images, axis=0)))
    start = time.process_time(); m(t)
    assert time.process_time()-start < 1


# --- the loop

class Planted(Monitor):
    "A monitor with KIDs that we chose."
    kids = {2: 3., 4: .5, 6: 2., 8: .7}
    def __call__(self, t): return super().__call__(t) | dict(kid=self.kids[t.step])


def test_the_step_with_the_lowest_kid_is_returned(halves):
    weights, run = {}, dict(bs=8, seed=1, precision='float32', snapshots=4)
    m = Planted(*halves, n=20)
    def keep(t):
        weights[t.step] = torch.cat([v.double().flatten() for v in t.drawer.state_dict().values()])
        return m(t) | dict(warnings=[])
    gan = train_gan(halves[0], 8, 'small', watch=keep, **run)
    assert gan.lineage['step'] == 4 and gan.lineage['chosen'] == 'lowest KID'
    assert torch.equal(torch.cat([v.double().flatten() for v in gan.generator.state_dict().values()]), weights[4]) and not torch.equal(weights[4], weights[8])
    assert [r['step'] for r in gan.health] == [2, 4, 6, 8]


def test_an_interrupted_run_warns_as_one_that_was_not(halves, tmp_path, capsys):
    run, m = dict(bs=8, seed=1, precision='float32', snapshots=4), Monitor(*halves, n=20)
    whole, said = train_gan(halves[0], 8, 'small', watch=m, **run), capsys.readouterr().err
    def stop(t):
        if t.step == 6: raise KeyboardInterrupt
        return m(t)
    stop.identity = m.identity
    with pytest.raises(KeyboardInterrupt): train_gan(halves[0], 8, 'small', watch=stop, folder=tmp_path, save_every=0, **run)
    gone_on = train_gan(halves[0], 8, 'small', watch=m, folder=tmp_path, **run)
    assert gone_on.health == whole.health and capsys.readouterr().err == said and 'warning' in said


def test_a_conditional_gan_is_watched(all_images):
    half = np.isin(all_images.patients, sorted(set(all_images.patients))[::2])
    m = Monitor(all_images.take(half), all_images.take(~half), n=40)
    gan = train_gan(all_images.take(half), 2, 'conditional', bs=8, seed=0, precision='float32', watch=m, snapshots=1)
    row = gan.health[0]
    assert set(m.labels) == {0, 1} and row['kid'] > 0 and 'collapsed' in row['warnings'] and verdict(gan) == 'collapsed'


def test_verdict_is_that_of_the_chosen_step():
    assert [verdict(Gan(None, dict(warnings=w))) for w in (['collapsed', 'overfitting'], [], ['overfitting'], None)] == ['collapsed', 'healthy', 'overfitting', 'not watched']
    assert verdict(Gan(None, {})) == 'not watched'


def test_a_collapsed_generator_is_not_chosen(halves):
    "Its KID may be the lowest all the same."
    rows = {2: dict(kid=.5, warnings=[]), 4: dict(kid=.1, warnings=['collapsed']), 6: dict(kid=.3, warnings=['overfitting'])}
    gan = train_gan(halves[0], 6, 'small', bs=8, precision='float32', watch=lambda t: rows[t.step], snapshots=3)
    assert (gan.lineage['step'], gan.lineage['warnings'], verdict(gan)) == (6, ['overfitting'], 'overfitting')
    rows = {s: r | dict(warnings=['collapsed']) for s, r in rows.items()}
    gan = train_gan(halves[0], 6, 'small', bs=8, precision='float32', watch=lambda t: rows[t.step], snapshots=3)
    assert (gan.lineage['step'], gan.lineage['chosen'], verdict(gan)) == (6, 'last', 'collapsed')


def test_figure(halves):
    import matplotlib.pyplot as plt
    gan = train_gan(halves[0], 4, 'small', bs=8, precision='float32', watch=Planted(*halves, n=20), snapshots=2)
    fig = plot_health(gan)
    assert [ax.get_title() for ax in fig.axes] == ['KID to unseen real images', 'Spread, real images = 1', 'Logits of the discriminator', 'Norm of the gradient']
    assert fig.axes[0].lines[1].get_xdata()[0] == 4 and fig.axes[1].lines[2].get_ydata()[0] == health.ALIKE
    plt.close(fig)
    with pytest.raises(UserError, match='watch=Monitor'): plot_health(Gan(None, {}))


# --- mistakes of the user

def test_refusals(halves, all_images, monitor):
    train, holdout = halves
    for args, words in (((train, train), 'share .* images, e.g. .*take images of other patients'), ((train, holdout, train), 'valid and train share'), ((train, holdout.take([0])), 'holdout: 1 patients'),
                        ((train, replace(holdout, images=np.zeros_like(holdout.images))), 'all the same')):
        with pytest.raises(UserError, match=words): Monitor(*args)
    with pytest.raises(UserError, match='n=3, but'): Monitor(train, holdout, n=3)
    with pytest.raises(UserError, match='32 pixels, the monitor.* 28'): monitor(FakeTraining(Replay(train.images), size=32))
    half = np.isin(all_images.patients, sorted(set(all_images.patients))[::2])
    with pytest.raises(UserError, match='one class, the monitor was given two'): Monitor(all_images.take(half), all_images.take(~half))(FakeTraining(Replay(train.images)))
