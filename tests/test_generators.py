"Every network against the count that its study's text gives, and what a training loop asks of each pair."
import copy
from functools import cache

import pytest
import torch
from torch import nn

from gansynth.core import UserError
from gansynth.generators import (NETWORKS, PAIRS, Residual, bone_fracture_discriminator, bone_fracture_generator, build_pair, count_parameters, covid_ct_discriminator, covid_ct_generator, dcgan_discriminator,
                                 dcgan_generator, list_networks, lung_optimizers_discriminator, lung_optimizers_generator)

EVERY = [(name, size) for name, pair in PAIRS.items() for size in pair.sizes]
SMALL = [(name, min(pair.sizes)) for name, pair in PAIRS.items()]


def on_meta(f, *args, **kw):
    with torch.device('meta'): return f(*args, **kw)


def layers(net): return [n for m in net.modules() if not list(m.children()) and (n := sum(p.numel() for p in m.parameters()))]


@cache
def built(name, size):
    torch.manual_seed(0)
    return build_pair(name, size, n_classes=3)


def inputs(name, size, b=3, device='cpu', seed=0):
    "z, images and the labels that a conditional pair takes."
    pair, rng = PAIRS[name], torch.Generator().manual_seed(seed)
    y = (torch.arange(b, device=device)%3,) if pair.conditional else ()
    return torch.randn(b, pair.nz, generator=rng).to(device), torch.rand(b, pair.channels, size, size, generator=rng).mul(2).sub(1).to(device), y


@pytest.mark.parametrize('f, args, n', [
    (dcgan_generator, (64,), 12_654_336), (dcgan_discriminator, (64,), 11_032_064), (dcgan_generator, (64, 100, 3), 12_658_432), (dcgan_discriminator, (64, 3), 11_036_160),
    (covid_ct_generator, (256,), 26_876_289), (covid_ct_generator, (128,), 27_269_505), (covid_ct_generator, (512,), 26_777_985),
    (covid_ct_discriminator, (256,), 299_713), (covid_ct_discriminator, (128,), 103_105), (covid_ct_discriminator, (512,), 1_086_145),
    (bone_fracture_generator, (64,), 3_979_651), (bone_fracture_discriminator, (64,), 404_801), (lung_optimizers_generator, (28,), 2_305_472), (lung_optimizers_discriminator, (28,), 212_865)])
def test_count(f, args, n): assert count_parameters(on_meta(f, *args)) == n


@pytest.mark.parametrize('f, expected', [
    (bone_fracture_generator, [1_056_768, 262_272, 524_544, 2_097_664, 38_403]), (bone_fracture_discriminator, [3_136, 131_200, 262_272, 8_193]),
    (lung_optimizers_discriminator, [1_664, 204_928, 6_273]), (lung_optimizers_generator, [1_254_400, 2*12_544, 819_200, 256, 204_800, 128, 1_600]),
    (covid_ct_generator, [100*262_144+262_144, 131_200, 262_272, 6_273]), (covid_ct_discriminator, [640, 36_928, 262_145])])
def test_count_of_each_layer(f, expected): assert layers(on_meta(f)) == expected


def test_statistics_count_as_keras_does():
    G = on_meta(lung_optimizers_generator)
    assert count_parameters(G, statistics=True) == 2_330_944 and count_parameters(G)+25_472 == 2_330_944


def test_defaults_are_the_studies():
    sizes = dict(dcgan=64, covid_ct=256, bone_fracture=64, lung_optimizers=28)
    for name, size in sizes.items():
        for default, explicit in zip((on_meta(PAIRS[name].generator), on_meta(PAIRS[name].discriminator)), on_meta(build_pair, name, size)): assert layers(default) == layers(explicit)
    assert PAIRS['bone_fracture'].nz == 128 and PAIRS['bone_fracture'].channels == 3


def test_what_the_studies_state():
    def rates(net): return [m.p for m in net.modules() if isinstance(m, nn.Dropout) and m.p]
    def norms(net): return sum(isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)) for m in net.modules())
    nets = {n: on_meta(build_pair, n, p.sizes[-1]) for n, p in PAIRS.items()}
    assert rates(nets['covid_ct'][1]) == [.4, .4] and rates(nets['lung_optimizers'][1]) == [.3, .3] and len(rates(nets['bone_fracture'][1])) == 1
    assert {n: (norms(g) > 0, norms(d) > 0) for n, (g, d) in nets.items()} == dict(dcgan=(True, True), covid_ct=(False, False), bone_fracture=(False, False), lung_optimizers=(True, False),
                                                                                 conditional=(True, True), r3gan=(False, False))
    convs = [(m.kernel_size[0], m.stride[0]) for m in nets['lung_optimizers'][0].modules() if isinstance(m, nn.ConvTranspose2d)]
    assert convs == [(5, 1), (5, 2), (5, 2)]


@pytest.mark.parametrize('name, size', EVERY)
def test_shapes(name, size):
    with torch.device('meta'): G, D = build_pair(name, size, n_classes=3)
    z, x, y = inputs(name, size, device='meta')
    assert G(z, *y).shape == x.shape and D(x, *y).shape == D(G(z, *y), *y).shape == (3,)
    assert D(x[:1], *(l[:1] for l in y)).shape == (1,)
    with torch.device('meta'): assert build_pair(name, size, nz=7)[0](torch.empty(3, 7), *y).shape == x.shape


@pytest.mark.parametrize('name, size', SMALL)
def test_range_precision_and_memory_format(name, size):
    z, x, y = inputs(name, size)
    G, D = (copy.deepcopy(m).eval() for m in built(name, size))
    with torch.no_grad():
        image, logit = G(z, *y), D(x, *y)
        assert image.dtype == torch.float32 and image.min() >= -1 and image.max() <= 1 and image.std() > 1e-3 and (image[0]-image[1]).abs().max() > 1e-3
        loud = G(1e4*z, *y)
        assert loud.abs().max() <= 1 and loud.min() < -.5 and loud.max() > .5            # bounded, and both ends can be reached
        for m in (G, D): m.to(memory_format=torch.channels_last)
        last = x.contiguous(memory_format=torch.channels_last)
        assert torch.allclose(G(z, *y), image, atol=1e-5) and torch.allclose(D(last, *y), logit, atol=1e-4)
        with torch.autocast('cpu', torch.bfloat16): a, b = G(z, *y), D(last, *y)
        assert (a.float()-image).abs().mean() < .02 and (b.float()-logit).abs().max() < .05+.05*logit.abs().max()
        G, D = G.double(), D.double()
        assert G(z.double(), *y).dtype == D(x.double(), *y).dtype == torch.float64
        assert (G(z.double(), *y)-image).abs().max() < 1e-4 and (D(x.double(), *y)-logit).abs().max() < 1e-4


@pytest.mark.parametrize('name, size', SMALL)
def test_a_step_of_each_network(name, size):
    "Every weight gets a gradient, also under bfloat16 and in channels_last."
    z, x, y = inputs(name, size)
    G, D = (copy.deepcopy(m).to(memory_format=torch.channels_last).train() for m in built(name, size))
    for m in D.modules():
        if isinstance(m, Residual): nn.init.normal_(m.layers[-1].weight, 0., .01)
    for m in G.modules():
        if isinstance(m, Residual): nn.init.normal_(m.layers[-1].weight, 0., .01)
    with torch.autocast('cpu', torch.bfloat16): logits = D(G(z, *y), *y)
    nn.functional.softplus(-logits.float()).mean().backward()
    dead = [k for net in (G, D) for k, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all() or not p.grad.abs().sum() > 0]
    assert not dead


@pytest.mark.parametrize('name, size', SMALL)
@pytest.mark.parametrize('bf16', [False, True])
def test_double_backward(name, size, bf16):
    "The R1 penalty's gradient: its weights move, and in float64 it is the difference quotient of the penalty."
    _, x, y = inputs(name, size)
    D = copy.deepcopy(built(name, size)[1]).train()
    for m in D.modules():
        if isinstance(m, nn.Dropout): m.p = 0.
    if not bf16: D, x = D.double(), x.double()

    def penalty():
        real = x.clone().requires_grad_(True)
        with torch.autocast('cpu', torch.bfloat16, enabled=bf16): logits = D(real, *y)
        gradient, = torch.autograd.grad(logits.to(x.dtype).sum(), real, create_graph=True)
        return gradient.square().sum((1, 2, 3)).mean()

    p = penalty()
    p.backward()
    w = next(m for m in D.modules() if isinstance(m, nn.Conv2d)).weight
    assert p.isfinite() and w.grad.isfinite().all() and w.grad.abs().sum() > 0
    if bf16: return
    step = 1e-6*w.grad/w.grad.norm()
    with torch.no_grad(): w += step
    up = penalty()
    with torch.no_grad(): w -= 2*step
    assert torch.isclose((up-penalty())/2e-6, w.grad.norm(), rtol=1e-3)


def test_conditional_reacts_to_the_label():
    G, D = (m.eval() for m in built('conditional', 32))
    z, x, _ = inputs('conditional', 32)
    with torch.no_grad():
        a, b = (G(z[:1], torch.tensor([i])) for i in (0, 2))
        assert (a-b).abs().mean() > 1e-3 and (D(x, torch.tensor([0, 0, 0]))-D(x, torch.tensor([1, 1, 1]))).abs().min() > 1e-4
    with pytest.raises((IndexError, RuntimeError)): G(z[:1], torch.tensor([3]))


def test_only_batchnorm_looks_at_the_neighbours():
    for name, size in SMALL:
        D = copy.deepcopy(built(name, size)[1]).train()
        for m in D.modules():
            if isinstance(m, nn.Dropout): m.p = 0.
        _, x, y = inputs(name, size)
        with torch.no_grad(): moved = (D(x, *y)-D(torch.cat([x[:1], -.5*x[1:]]), *y))[0].abs()
        assert (moved > 1e-3) == (name in ('dcgan', 'conditional')), name


def test_r3gan_is_small_and_starts_as_the_identity():
    for size in (28, 32, 64):
        assert all(1e6 < count_parameters(m) < 3e6 for m in on_meta(build_pair, 'r3gan', size))
    G, D = built('r3gan', 32)
    x = torch.randn(2, 64, 8, 8)
    assert torch.equal(Residual(64, 4)(x), x)
    assert not any(isinstance(m, nn.ConvTranspose2d) for m in G.modules())
    assert sum(isinstance(m, Residual) for m in G.modules()) == sum(isinstance(m, Residual) for m in D.modules()) == 8


def test_same_seed_same_weights():
    def weights(seed):
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for m in build_pair('r3gan', 28) for p in m.parameters()])
    assert torch.equal(weights(1), weights(1)) and not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize('name, size, message', [('r3gam', 64, "no pair of networks is called 'r3gam'; did you mean 'r3gan'"), ('zzz', 64, 'known: bone_fracture'), ('dcgan', 50, 'image_size=50: .*28, 32, 64 or 128'),
                                                 ('covid_ct', 28, 'covid_ct .*64, 128, 256 or 512'), ('bone_fracture', 28, '32, 64 or 128'), ('lung_optimizers', 128, '28, 32 or 64'), ('conditional', 128, '28, 32 or 64'), ('r3gan', 0, '28, 32, 64 or 128')])
def test_wrong_names_and_sizes(name, size, message):
    with pytest.raises(UserError, match=message): build_pair(name, size)
    if name in PAIRS:
        for f in (PAIRS[name].generator, PAIRS[name].discriminator):
            with pytest.raises(UserError, match='choose'): f(size)


def test_list_networks():
    listed = list_networks()
    assert set(listed) == set(NETWORKS) and len(listed) == 2*len(PAIRS) and all(v['about'] and v['parameters'] > 1e5 for v in listed.values())
    assert listed['covid_ct_generator']['parameters'] == 26_876_289
    assert not [f for f in NETWORKS.values() if f.__name__ not in NETWORKS]
