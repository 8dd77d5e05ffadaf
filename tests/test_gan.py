"The GAN's step against an independent one, its repeatability, and the lineage of its images."
import copy
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from gansynth import gan_training, generators
from gansynth.core import UserError
from gansynth.data import load, split
from gansynth.gan_training import train_gan, train_many
from gansynth.gans import draw, load_gan, noise, sample, save_gan, to_uint8, to_unit
from gansynth.generators import dcgan_discriminator, dcgan_generator
from gansynth.recipes import RECIPES, Training, find_recipe, gan_step
from gansynth.synthesis import synthesise
from gansynth.regimes import make_arm


@pytest.fixture(scope='module')
def parts(): return split(load('phantom:n_patients=60', size=32), imbalance_ratio=5.)


@pytest.fixture(scope='module')
def gan(parts): return train_gan(parts.train.positives, 6, bs=8, seed=0, precision='float32', split_hash=parts.manifest['hash'])


def tutorial_step(t, real):
    "The plain loop: sigmoid probabilities, BCELoss, two backward passes for D, nothing frozen."
    bce = nn.BCELoss()
    ones, zeros = torch.ones(len(real), dtype=real.dtype), torch.zeros(len(real), dtype=real.dtype)
    t.D.zero_grad(); d_real = bce(torch.sigmoid(t.D(real)), ones); d_real.backward()
    fake = t.G(t.noise(real))
    d_fake = bce(torch.sigmoid(t.D(fake.detach())), zeros); d_fake.backward()
    d_grads = [p.grad.clone() for p in t.D.parameters()]
    t.opt_d.step()
    t.G.zero_grad(); g = bce(torch.sigmoid(t.D(fake)), ones); g.backward()
    g_grads = [p.grad.clone() for p in t.G.parameters()]
    t.opt_g.step()
    return torch.stack([g, d_real+d_fake]).detach(), g_grads+d_grads


def double(**changes):
    t = Training(asdict(find_recipe('dcgan')) | dict(size=28, nz=100, bs=2, seed=0, precision='float32', n_classes=0) | changes, 'cpu')
    for m in (t.G, t.D): m.double()
    return t


def test_lean_step_equals_the_plain_loop(monkeypatch):
    """Losses, gradients and weights over the first 200 steps, in float64, of study 1's networks with 32 maps in each layer.

    Before each step ours takes over the plain loop's state: GAN training is chaotic, so that left alone both part from rounding errors (1e-13 after 50 steps, everything after 150)."""
    monkeypatch.setattr(generators, 'feature_maps', partial(generators.feature_maps, most=32))
    x = to_unit(torch.from_numpy(load('phantom:n_patients=60', size=28).images)).double()
    ours, plain, worst, moved = double(), double(), 0., 0.
    for i in range(200):
        for a, b in ((ours.G, plain.G), (ours.D, plain.D), (ours.opt_g, plain.opt_g), (ours.opt_d, plain.opt_d)): a.load_state_dict(b.state_dict() if isinstance(b, nn.Module) else copy.deepcopy(b.state_dict()))
        real = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(i))[:2]]
        torch.manual_seed(i); lean = gan_step(ours, real)
        torch.manual_seed(i); losses, grads = tutorial_step(plain, real)
        got = [p.grad for m in (ours.G, ours.D) for p in m.parameters()]
        worst = max(worst, ((lean[:2]-losses)/losses).abs().max().item(), *(((a-b).norm()/b.norm().clamp(1e-12)).item() for a, b in zip(got, grads)),
                    *((a-b).abs().max().item() for m in 'GD' for a, b in zip(getattr(ours, m).parameters(), getattr(plain, m).parameters())))
        assert lean[2].item() == pytest.approx(torch.cat([g.flatten() for g in grads[:len(list(ours.G.parameters()))]]).norm().item(), rel=1e-6)
    assert worst < 1e-6
    torch.manual_seed(0); assert (gan_step(ours, real.flip(0)*.99)[:2]-losses).abs().max() > 1e-4      # the comparison can fail


def test_published_networks_layer_by_layer():
    G, D = dcgan_generator(64), dcgan_discriminator(64)
    convs = [m for m in G.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert [(m.in_channels, m.out_channels) for m in convs] == [(100, 1024), (1024, 512), (512, 256), (256, 128), (128, 1)]
    assert all(m.kernel_size == (4, 4) and m.bias is None for m in [*convs, *(m for m in D.modules() if isinstance(m, nn.Conv2d))])
    assert sum(p.numel() for p in G.parameters()) == 12_654_336 and sum(p.numel() for p in D.parameters()) == 11_032_064


def test_f63_same_seed_same_gan(parts, gan):
    again = train_gan(parts.train.positives, 6, bs=8, seed=0, precision='float32', split_hash=parts.manifest['hash'])
    assert again.hash == gan.hash and (again.history == gan.history).all()
    assert train_gan(parts.train.positives, 6, bs=8, seed=1, precision='float32').hash != gan.hash


def test_a_sample_does_not_depend_on_its_neighbours(gan):
    z = noise(40, 100, 3)
    assert abs(draw(gan.generator, z, bs=40).astype(int)-draw(gan.generator, z, bs=7)).max() <= 1     # rounding only
    assert (sample(gan, 140, 3)[:5] == sample(gan, 5, 3)).all()
    assert (sample(gan, 5, 3) != sample(gan, 5, 4)).any()


def test_bytes_survive():
    x = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16)
    assert (to_uint8(to_unit(x)) == x).all() and to_uint8(torch.tensor([[[[-9., 9.]]]])).tolist() == [[[0, 255]]]


def test_f16_divergence_is_no_result(parts):
    with pytest.raises(UserError, match='diverged'): train_gan(parts.train.positives, 40, bs=8, lr=1e20, precision='float32')


def test_f46_batch_larger_than_data(parts):
    with pytest.raises(UserError, match='batch size 400 is larger than .* choose at most'): train_gan(parts.train.positives, 3, bs=400)


def test_f44_generator_that_saw_other_images(parts, gan):
    assert make_arm('gan_aug', parts.train, [synthesise(gan, 4)]).n_synthetic == 4
    everything = load('phantom:n_patients=60', size=32)
    leaky = train_gan(everything.positives, 1, bs=8)
    with pytest.raises(UserError, match='images outside this training part'): make_arm('gan_aug', parts.train, [synthesise(leaky, 4)])


def test_class_by_name(parts, gan):
    with pytest.raises(UserError, match="class 'Pneumonia'"): make_arm('gan_aug', parts.train, [replace(synthesise(gan, 4), class_name='Pneumonia')])
    s = make_arm('gan_aug', parts.train, [synthesise(gan, 4)]).stages[0]
    assert (s.labels[s.synthetic] == 1).all() and parts.train.classes[1] == 'pneumonia'


def test_f04_one_flipped_byte(tmp_path, gan):
    path = tmp_path/'g.safetensors'
    save_gan(gan, path)
    assert load_gan(path).hash == gan.hash
    raw = bytearray(path.read_bytes()); raw[-100] ^= 1; path.write_bytes(raw)
    with pytest.raises(UserError, match='g.safetensors is damaged'): load_gan(path)


@pytest.mark.parametrize('name', [pytest.param(n, marks=pytest.mark.slow) if n in ('covid_ct', 'bone_fracture') else n for n in RECIPES])
def test_every_recipe_trains_and_is_kept(tmp_path, parts, name):
    size = {'covid_ct': 64, 'bone_fracture': 32, 'lung_adam': 28, 'lung_rmsprop': 28}.get(name, 32)
    data = split(load('phantom:n_patients=40', size=size), imbalance_ratio=5.).train
    gan = train_gan(data if name == 'conditional' else data.positives, 2, name, bs=3, precision='float32', augment='fixed', spectral=name == 'dcgan', snapshots=1)
    assert np.isfinite(gan.history).all() and gan.grids[2].shape == (16, size, size)
    save_gan(gan, tmp_path/'g.safetensors', discriminator=True)
    back = load_gan(tmp_path/'g.safetensors')
    who = data.classes[1]
    assert back.hash == gan.hash and (sample(back, 3, 1, who) == sample(gan, 3, 1, who)).all() and synthesise(gan, 3, 1, who).class_name == who
    x = torch.zeros(2, back.generator(torch.zeros(2, gan.lineage['config']['nz']), *([torch.zeros(2, dtype=torch.long)]*(name == 'conditional'))).shape[1], size, size)
    y = [torch.tensor([0, 1])]*(name == 'conditional')
    assert torch.allclose(back.discriminator(x, *y), gan.discriminator(x, *y), rtol=1e-3)


def test_average_is_what_it_says(parts):
    "The averaged generator against the recursion, written out."
    kept, seen = .5, []
    def watch(t): seen.append({k: v.clone() for k, v in t.G.state_dict().items()})
    gan = train_gan(parts.train.positives, 4, bs=8, ema=kept, snapshots=4, watch=watch, precision='float32')
    w = next(iter(seen[0]))
    start = Training(gan.lineage['config'], 'cpu').G.state_dict()[w]
    for s in seen: start = kept*start+(1-kept)*s[w]
    assert torch.allclose(gan.generator.state_dict()[w], start, atol=1e-7)


def test_lineage_names_everything(parts, gan):
    train = parts.train.positives
    assert set(gan.lineage) >= {'config', 'classes', 'class_name', 'trained_on', 'pixels', 'split_hash', 'parent', 'step', 'chosen', 'changed'}
    assert gan.lineage['trained_on'] == train.ids.tolist() and gan.lineage['step'] == 6 and gan.lineage['parent'] is None
    child = train_gan(train, 2, bs=8, start=gan, precision='float32')
    assert child.lineage['parent'] == gan.hash and child.hash != train_gan(train, 2, bs=8, precision='float32').hash


def test_the_lowest_kid_is_taken_not_the_last(parts):
    "And a monitor cannot change what is learned."
    kids = {2: .5, 4: .1, 6: .3}
    weights = {}
    def watch(t):
        weights[t.step] = [v.clone() for v in t.G.state_dict().values()]
        torch.rand(5)
        return {'kid': kids[t.step]}
    gan = train_gan(parts.train.positives, 6, bs=8, watch=watch, snapshots=3, precision='float32')
    assert gan.lineage['step'] == 4 and gan.lineage['chosen'] == 'lowest KID'
    assert all(torch.equal(a, b) for a, b in zip(gan.generator.state_dict().values(), weights[4]))
    assert (gan.history == train_gan(parts.train.positives, 6, bs=8, precision='float32').history).all()


@pytest.mark.slow
def test_eleven_snapshots_as_files(tmp_path, parts):
    "Study 2 keeps its generator every 300 of 3,300 epochs."
    train_gan(parts.train.positives, 11, bs=8, snapshots=11, keep_snapshots=True, folder=tmp_path, precision='float32')
    files = sorted(tmp_path.glob('generator-*.safetensors'))
    assert len(files) == 11 and load_gan(files[4]).lineage['step'] == 5
    assert all(load_gan(f).discriminator is not None for f in (files[0], files[-1]))


def weights(gan): return [v for m in (gan.generator, gan.discriminator) for v in m.state_dict().values()]
def same(a, b): return all(torch.equal(x, y) for x, y in zip(weights(a), weights(b), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize('recipe', [dict(), dict(spectral=True), dict(ema=.9)], ids=str)
def test_the_discriminator_belongs_to_the_released_step(tmp_path, parts, recipe):
    """KID is lowest at step 3 of 6: both networks are those of a training that stops there, also after
    an interruption between that step and the end, and when the finished training is asked for again."""
    stopped = []
    def watch(t):
        if t.step == 5 and not stopped:
            stopped.append(t.step)
            raise KeyboardInterrupt
        return dict(kid=abs(t.step-3))
    how = dict(data=parts.train.positives, bs=8, seed=4, precision='float32', **recipe)
    at_3, at_6 = train_gan(steps=3, **how), train_gan(steps=6, **how)
    asked = how | dict(steps=6, watch=watch, snapshots=6, folder=tmp_path, save_every=0)
    with pytest.raises(KeyboardInterrupt): train_gan(**asked)
    for gan in (train_gan(**asked), train_gan(**asked), train_gan(**asked | dict(folder=tmp_path/'at once'))):
        assert gan.lineage['step'] == 3 and gan.lineage['steps'] == 6 and same(gan, at_3)
    assert stopped == [5] and not any(torch.equal(a, b) for a, b in zip(at_3.discriminator.parameters(), at_6.discriminator.parameters()))


@pytest.mark.slow
def test_several_at_once_are_those_of_one_after_the_other(parts):
    jobs = [dict(data=parts.train.positives, steps=3, bs=8, seed=s, precision='float32') for s in (0, 1)]
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    try: assert [g.hash for g in train_many(jobs, 2)] == [train_gan(**j).hash for j in jobs]
    finally: torch.set_num_threads(n)


def test_progress_in_a_batch_log(monkeypatch, capsys):
    "A few lines for a night, each with steps, images a second and the time left."
    from gansynth import core
    now = [0.]
    monkeypatch.delenv('GANSYNTH_PROGRESS', raising=False)
    monkeypatch.setattr(core.time, 'time', lambda: now[0])
    for _ in core.progress(range(30_000), 'GAN', per=64): now[0] += 1
    lines = capsys.readouterr().err.splitlines()
    assert 5 < len(lines) < 60 and all('64 images/s' in l and l.endswith('left') for l in lines), lines[:3]


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
@pytest.mark.parametrize('name', ['dcgan', 'lung_adam', 'r3gan', 'conditional'])
def test_cuda_graph_equals_the_eager_step(parts, name):
    data = parts.train if name == 'conditional' else split(load('phantom:n_patients=60', size=28)).train.positives if name == 'lung_adam' else parts.train.positives
    settings = dict(bs=8, device='cuda', precision='float32', augment='adaptive', ema=.9)
    graphed = train_gan(data, 20, name, **settings)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(gan_training.GraphedStep, '__call__', lambda self, t, real, y=None: gan_step(t, real, y))
        eager = train_gan(data, 20, name, **settings)
    assert np.allclose(graphed.history, eager.history, rtol=1e-3)
    step = gan_training.GraphedStep()
    t = Training(gan_training.identity_of(data, name, 8, 0, 'cuda', 'float32')[0], 'cuda')
    x = torch.zeros(8, 1, *data.images.shape[1:], device='cuda')
    for _ in range(5): step(t, x, torch.zeros(8, dtype=torch.long, device='cuda') if name == 'conditional' else None)
    assert step.graph is not None and not step.failed
