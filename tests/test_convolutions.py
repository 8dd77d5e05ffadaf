"Convolutions of small maps against PyTorch's own, in double precision, and what the networks of this package give with and without them."
import copy, itertools

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d, conv_transpose2d

import gansynth.convolutions as c
from gansynth.classifiers import Precision, build_classifier
from gansynth.convolutions import SmallMaps, col2im, computing, im2col
from gansynth.generators import PAIRS, build_pair

CPU, DOUBLE = torch.device('cpu'), torch.double
HOWS = [(k, s, p, size) for k, s, p, size in itertools.product((1, 2, 3, 4, 5, 7), (1, 2, 3), (0, 1, 2, 3), (1, 2, 3, 4, 5, 8, 9)) if p < k and size+2*p >= k]


@pytest.fixture
def answered(monkeypatch):
    "A list that grows by one bool for each convolution: whether it was taken over."
    calls = []
    def told(f):
        def g(*args, **kwargs):
            y = f(*args, **kwargs)
            calls.append(y is not None)
            return y
        return g
    monkeypatch.setattr(c, 'TAKEN', {k: told(f) for k, f in c.TAKEN.items()})
    return calls


def both(f, *inputs):
    "(value and all gradients within SmallMaps, the same without), of the scalar sum of f times fixed numbers."
    out = []
    for ours in (True, False):
        if ours:
            with SmallMaps(): y = f(*inputs)
        else: y = f(*inputs)
        g = torch.sin(torch.arange(y.numel(), dtype=y.dtype)).view(y.shape)
        out.append([y, *torch.autograd.grad(y, inputs, g)])
    return out


def test_every_geometry(answered):
    "Side of the kernel, stride, padding and size in all combinations, oblong images, with and without a bias."
    torch.manual_seed(0)
    for k, s, p, size in HOWS:
        x, w, b = (torch.randn(n, dtype=DOUBLE, requires_grad=True) for n in ((2, 3, size, size+1), (4, 3, k, k), (4,)))
        for mine, theirs in zip(*both(lambda x, w, b: conv2d(x, w, b, s, p), x, w, b)): torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)
        if min((size-1)*s-2*p+k, size*s-2*p+k) < 1: continue
        x, w = torch.randn(2, 4, size, size+1, dtype=DOUBLE, requires_grad=True), torch.randn(4, 3, k, k, dtype=DOUBLE, requires_grad=True)
        for more in {0, s-1}:
            for mine, theirs in zip(*both(lambda x, w: conv_transpose2d(x, w, None, s, p, more), x, w)): torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)
    assert answered.count(True) > 300 and answered.count(False) > 100       # both ways were taken, many times


@pytest.mark.parametrize('k, s, p, size', [(3, 1, 1, 2), (3, 1, 1, 4), (3, 2, 1, 4), (4, 2, 1, 8), (4, 1, 0, 4), (3, 1, 1, 1), (3, 2, 1, 2)])
def test_slopes_of_slopes(k, s, p, size, answered):
    "What a penalty on the gradient needs, against finite differences."
    torch.manual_seed(0)
    x, w = torch.randn(1, 2, size, size, dtype=DOUBLE, requires_grad=True), torch.randn(2, 2, k, k, dtype=DOUBLE, requires_grad=True)
    def f(x, w):
        with SmallMaps(): return conv2d(x, w, None, s, p)
    assert torch.autograd.gradcheck(f, (x, w)) and torch.autograd.gradgradcheck(f, (x, w))
    y = torch.randn(f(x, w).shape, dtype=DOUBLE, requires_grad=True)
    def t(y, w):
        with SmallMaps(): return conv_transpose2d(y, w, None, s, p)
    assert torch.autograd.gradcheck(t, (y, w)) and torch.autograd.gradgradcheck(t, (y, w)) and any(answered)


def test_im2col_against_unfold():
    x = torch.randn(3, 5, 6, 7).contiguous(memory_format=torch.channels_last)
    for k, s, p in ((3, 1, 1), (3, 2, 0), (4, 2, 1), (1, 1, 0)):
        rows = im2col(x, k, s, p)
        assert torch.equal(rows, nn.functional.unfold(x, k, padding=p, stride=s).unflatten(1, (5, k*k)).permute(0, 3, 2, 1).reshape(rows.shape))
        back = rows.view(3, -1, k*k, 5).permute(0, 3, 2, 1).flatten(1, 2)
        torch.testing.assert_close(col2im(rows, x.shape, k, s, p), nn.functional.fold(back, (6, 7), k, padding=p, stride=s))


@pytest.mark.parametrize('layer, size', [(nn.Conv2d(4, 4, 3, groups=2), 4), (nn.Conv2d(4, 4, 2, dilation=2), 4), (nn.Conv2d(4, 4, 3, padding='same'), 4), (nn.Conv2d(4, 4, (3, 1)), 4), (nn.Conv2d(4, 4, 2, (2, 1)), 4),
    (nn.Conv2d(4, 4, 3, padding=(1, 0)), 4), (nn.Conv2d(4, 4, 3, padding=1), 5), (nn.ConvTranspose2d(4, 4, 3, groups=2), 2), (nn.ConvTranspose2d(4, 4, 2, dilation=2), 2), (nn.ConvTranspose2d(4, 4, 3, 2), 5)], ids=str)
def test_left_alone(layer, size, answered):
    "Groups, dilation, words for the padding, oblong kernels and strides, large maps."
    x = torch.randn(2, 4, size, size)
    with SmallMaps(): y = layer(x)
    assert torch.equal(y, layer(x)) and answered == [False]


def test_odd_calls(answered):
    "An image without a batch, and a kernel that is too large: PyTorch answers, in its own words."
    x, w = torch.randn(4, 4, 4), torch.randn(4, 4, 3, 3)
    with SmallMaps():
        assert conv2d(x, w).shape == (4, 2, 2)
        with pytest.raises(RuntimeError, match='size'): conv2d(x[:, :2, :2], w)
        with pytest.raises(RuntimeError, match='channels'): conv2d(torch.randn(2, 3, 4, 4), w)
    assert not any(answered)


def test_keywords_are_the_ones_of_pytorch(answered):
    x, w = torch.randn(2, 4, 4, 4), torch.randn(4, 4, 3, 3)
    with SmallMaps(): y, z = conv2d(input=x, weight=w, padding=1), conv_transpose2d(input=x, weight=w, stride=2, output_padding=1)
    torch.testing.assert_close((y, z), (conv2d(x, w, padding=1), conv_transpose2d(x, w, stride=2, output_padding=1)))
    assert answered == [True, True]


@pytest.mark.parametrize('name, size', [('resnet18', 64), ('resnet18', 28), ('vgg16', 32), ('covid_cnn', 32), ('deit_tiny', 32)])
def test_classifiers_give_the_same(name, size, answered):
    torch.manual_seed(0)
    net = build_classifier(name, size).to(dtype=DOUBLE, memory_format=torch.channels_last).eval()
    x = torch.randn(4, 1, size, size, dtype=DOUBLE)
    mine, theirs = both(lambda *ps: net(x), *[p for p in net.parameters()])
    for a, b in zip(mine, theirs): torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)
    assert any(answered)


@pytest.mark.parametrize('pair', PAIRS)
def test_gans_give_the_same(pair, answered):
    torch.manual_seed(0)
    size = 32 if pair == 'dcgan' else PAIRS[pair].sizes[0]
    G, D = (m.to(dtype=DOUBLE, memory_format=torch.channels_last).eval() for m in build_pair(pair, size))
    z, y = torch.randn(3, PAIRS[pair].nz, dtype=DOUBLE), [torch.tensor([0, 1, 1])] if PAIRS[pair].conditional else []
    mine, theirs = both(lambda *ps: D(G(z, *y), *y), *G.parameters(), *D.parameters())
    for a, b in zip(mine, theirs): torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-10)
    assert any(answered) == (pair in ('dcgan', 'bone_fracture', 'conditional'))     # the others have large maps, or groups


def test_precision():
    "In bfloat16 the gradient is no farther from the exact one than PyTorch's own, and types and memory formats are the same."
    torch.manual_seed(0)
    net = build_classifier('resnet18', 64).to(memory_format=torch.channels_last).train()
    x = torch.randn(16, 1, 64, 64).contiguous(memory_format=torch.channels_last)
    def gradient(precision, patches):
        m = copy.deepcopy(net)
        with torch.autocast('cpu', torch.bfloat16, enabled=precision == 'bfloat16') if not patches else computing(precision, CPU): y = m(x)
        y.float().logsumexp(1).sum().backward()
        assert all(p.grad.dtype == torch.float32 and p.grad.stride() == p.stride() for p in m.parameters())      # what the fused optimiser needs
        return torch.cat([p.grad.flatten().double() for p in m.parameters()]), y.dtype
    exact = gradient('float32', False)[0]
    def error(*how): return ((gradient(*how)[0]-exact).norm()/exact.norm()).item()
    assert error('float32', True) < 1e-4 and 1e-3 < error('bfloat16', True) < 1.2*error('bfloat16', False)
    assert [gradient(p, True)[1] for p in ('float32', 'bfloat16')] == [gradient(p, False)[1] for p in ('float32', 'bfloat16')] == [torch.float32, torch.bfloat16]


def test_our_networks_use_it(answered):
    "A classifier inside Precision and a GAN in training; the context ends with the call."
    net = Precision(build_classifier('resnet18', 28), 'float32')
    net(torch.randn(2, 1, 28, 28))
    assert answered.count(True) >= 4
    answered.clear()
    from gansynth.gan_training import identity_of
    from gansynth.data import load
    from gansynth.recipes import Training, gan_step
    data = load('phantom:n_patients=20', 32)
    t = Training(identity_of(data.take(data.labels == 1), 'dcgan', 4, 0, 'cpu', 'float32')[0], 'cpu')
    assert gan_step(t, torch.randn(4, 1, 32, 32)).isfinite().all() and any(answered)
    answered.clear()
    nn.Conv2d(4, 4, 3)(torch.randn(2, 4, 4, 4))
    assert not answered
