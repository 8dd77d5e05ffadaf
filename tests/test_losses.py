"The losses and what keeps them honest, against independent oracles."
import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from gansynth.core import UserError
from gansynth.losses import LOSSES, add_spectral_norm, ema_rate, find_loss, gradient_penalty, update_ema, zero_centred


def softplus(a): return np.logaddexp(0, a)


ORACLE = {'bce': (lambda r, f: softplus(-r).mean()+softplus(f).mean(), lambda r, f: softplus(-f).mean()),
          'hinge': (lambda r, f: np.maximum(0, 1-r).mean()+np.maximum(0, 1+f).mean(), lambda r, f: -f.mean()),
          'wasserstein': (lambda r, f: f.mean()-r.mean(), lambda r, f: -f.mean()),
          'relativistic': (lambda r, f: softplus(-(r-f)).mean(), lambda r, f: softplus(-(f-r)).mean())}


@pytest.fixture
def logits():
    torch.manual_seed(0)
    return 4*torch.randn(2, 33, dtype=torch.double)


@pytest.fixture
def D():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 1), nn.Flatten(0)).double()


@pytest.fixture
def images():
    torch.manual_seed(2)
    return torch.randn(2, 4, 1, 3, 3, dtype=torch.double)


def slopes(D, x, h=1e-6):
    "Squared length of the slope at each image, by central differences."
    out = np.zeros(len(x))
    with torch.no_grad():
        for i in range(len(x)):
            for j in np.ndindex(*x.shape[1:]):
                up, down = x[i:i+1].clone(), x[i:i+1].clone()
                up[(0, *j)] += h; down[(0, *j)] -= h
                out[i] += ((D(up)-D(down)).item()/(2*h))**2
    return out


@pytest.mark.parametrize('name', ORACLE)
def test_losses_against_numpy(name, logits):
    r, f = logits
    for loss, oracle in zip(find_loss(name), ORACLE[name]):
        assert loss(r, f).shape == () and loss(r, f).item() == pytest.approx(oracle(r.numpy(), f.numpy()), abs=1e-12)
        x = (logits/4).detach().requires_grad_()
        assert gradcheck(lambda v: loss(*v), x) and gradgradcheck(lambda v: loss(*v), x)
        assert all(torch.isfinite(loss(s*r*1e4, -s*f*1e4)) for s in (1, -1))
    assert set(LOSSES) == set(ORACLE)


@pytest.mark.parametrize('name', ['bce', 'hinge', 'wasserstein'])
def test_only_the_pairing_needs_real_logits(name, logits):
    assert LOSSES[name][1](None, logits[1]) == LOSSES[name][1](*logits)


@pytest.mark.parametrize('s', [0., .1, .25, .49])
def test_smoothing_against_torch(s, logits):
    r, f = logits
    bce, d_loss = nn.BCEWithLogitsLoss(), LOSSES['bce'][0]
    assert d_loss(r, f, s).item() == pytest.approx((bce(r, torch.full_like(r, 1-s))+bce(f, torch.zeros_like(f))).item(), abs=1e-12)
    if s:
        best = torch.full((3,), np.log((1-s)/s), dtype=torch.double, requires_grad=True)
        assert torch.autograd.grad(d_loss(best, f, s), best)[0].abs().max() < 1e-12
    assert torch.autograd.grad(d_loss(r, (v := f.clone().requires_grad_()), s), v)[0].allclose(f.sigmoid()/len(f))      # one-sided


@pytest.mark.parametrize('s', [-.1, .5, 1., float('nan')])
def test_smoothing_out_of_range(s, logits):
    with pytest.raises(UserError, match='smoothing='): LOSSES['bce'][0](*logits, s)


def test_pairs_are_pairs(logits):
    r, f = logits
    for loss in find_loss('relativistic'):
        assert loss(r, f) != loss(r.flip(0), f) and torch.allclose(loss(r.flip(0), f.flip(0)), loss(r, f))
        assert torch.allclose(loss(r+3, f+3), loss(r, f), atol=1e-12)
        for bad in (f[:, None], f[:-1], f[:1]):
            with pytest.raises(UserError, match='cannot be paired'): loss(r, bad)


def test_unknown_loss():
    with pytest.raises(UserError, match="loss='hing' is unknown: did you mean 'hinge'"): find_loss('hing')


def test_zero_centred_against_differences(D, images):
    x = images[0].clone().requires_grad_()
    assert zero_centred(D(x), x).item() == pytest.approx(slopes(D, x.detach()).mean(), rel=1e-6)
    zero_centred(D(x), x).backward()
    w, h = D[0].weight, 1e-5
    with torch.no_grad():                                   # its own gradient, which trains D
        w[1, 0, 0, 1] += h; up = slopes(D, images[0]).mean()
        w[1, 0, 0, 1] -= 2*h; down = slopes(D, images[0]).mean()
    assert w.grad[1, 0, 0, 1].item() == pytest.approx((up-down)/(2*h), rel=1e-3)
    assert zero_centred(D(x), x).requires_grad and not zero_centred(D(x), x, create_graph=False).requires_grad


def test_zero_centred_needs_a_leaf(D, images):
    with pytest.raises(UserError, match='requires_grad_'): zero_centred(D(images[0]), images[0])


@pytest.mark.parametrize('eps', [0., 1., .3, torch.tensor([.1, .9, .5, .2])])
def test_gradient_penalty_against_differences(D, images, eps):
    real, fake = images
    share = torch.as_tensor(eps, dtype=torch.double).expand(4).reshape(4, 1, 1, 1)
    expected = ((np.sqrt(slopes(D, share*real+(1-share)*fake))-1)**2).mean()
    assert gradient_penalty(D, real, fake, eps).item() == pytest.approx(expected, rel=1e-5)


def test_gradient_penalty_draws_and_trains_d_only(D, images):
    real, fake = images
    fake = fake.clone().requires_grad_()
    torch.manual_seed(3); eps = torch.rand(4)
    torch.manual_seed(3); drawn = gradient_penalty(D, real, fake)
    assert drawn == gradient_penalty(D, real, fake, eps) != gradient_penalty(D, real, fake, eps.flip(0))
    drawn.backward()
    assert fake.grad is None and D[0].weight.grad.abs().max() > 0


@pytest.mark.parametrize('scale', [0., .5, 1., 2.])
def test_gradient_penalty_is_two_sided(images, scale):
    w = torch.full((9,), scale/3, dtype=torch.double, requires_grad=True)
    gp = gradient_penalty(lambda x: x.flatten(1)@w, *images)
    assert gp.item() == pytest.approx((scale-1)**2, abs=1e-12)
    assert torch.autograd.grad(gp, w)[0].isfinite().all()


def test_spectral_norm_divides_by_the_largest_singular_value():
    torch.manual_seed(0)
    D = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 2, 3), nn.Flatten(), nn.Linear(2*36, 5))
    plain = copy.deepcopy(D)
    assert add_spectral_norm(D) is D and add_spectral_norm(D) is D
    for _ in range(100): D(torch.randn(2, 1, 6, 6))
    for i, dim in ((0, 0), (2, 1), (4, 0)):
        w = plain[i].weight.detach()
        sigma = torch.linalg.svdvals(w.transpose(0, dim).flatten(1))[0]
        assert torch.allclose(D[i].weight, w/sigma, atol=1e-4) and (sigma-1).abs() > .01
        assert torch.linalg.svdvals(D[i].weight.detach().transpose(0, dim).flatten(1))[0].item() == pytest.approx(1, abs=1e-3)
        assert D[i].bias.equal(plain[i].bias) and len(D[i].parametrizations.weight) == 1        # twice is once
    assert D[1].weight.equal(plain[1].weight) and len(list(D.parameters())) == len(list(plain.parameters()))


def test_ema_against_numpy():
    torch.manual_seed(0)
    G = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    ema = copy.deepcopy(G)
    mean = [p.detach().numpy().astype('float64') for p in G.parameters()]
    for _ in range(20):
        for p in G.parameters(): p.data += torch.randn_like(p)
        G(torch.randn(8, 3))
        before = [p.clone() for p in G.state_dict().values()]
        update_ema(ema, G, .8)
        assert all(a.equal(b) for a, b in zip(before, G.state_dict().values()))
        mean = [.8*m+.2*p.detach().numpy() for m, p in zip(mean, G.parameters())]
    for e, m in zip(ema.parameters(), mean): assert np.allclose(e.detach(), m, atol=1e-5) and e.requires_grad and e.grad_fn is None
    assert all(a.equal(b) and a is not b for a, b in zip(ema.buffers(), G.buffers())) and int(ema[1].num_batches_tracked) == 20


def test_ema_of_another_network():
    with pytest.raises((RuntimeError, ValueError)): update_ema(nn.Linear(3, 4), nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1)), .9)
    with pytest.raises(ValueError): update_ema(nn.BatchNorm1d(3, track_running_stats=False), nn.BatchNorm1d(3), .9)


@pytest.mark.parametrize('bs', [1, 64, 5000])
def test_ema_half_life(bs):
    assert ema_rate(10_000, bs)**(10_000/bs) == pytest.approx(.5, abs=1e-12)
    for bad in ((0, bs), (-1, bs), (10, 0)):
        with pytest.raises(UserError, match='positive'): ema_rate(*bad)
