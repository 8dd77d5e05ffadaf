"The augmentation of both sides, against NumPy, finite differences, and a device that may not be asked."
import numpy as np
import pytest
import torch
from torch.autograd import grad, gradcheck, gradgradcheck
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

from gansynth.core import UserError
from gansynth.augmentation import DEFAULT, POLICIES, adapt, augment


@pytest.fixture
def x():
    torch.manual_seed(0)
    return torch.rand(6, 2, 9, 12)*2-1


def numpy_version(name, x, seed):
    "The same transform one image at a time, from the same draws."
    torch.manual_seed(seed)
    b, _, h, w = x.shape
    if name == 'translation': dy, dx = torch.randint(-1, 2, (b, 1)), torch.randint(-2, 3, (b, 1))     # an eighth of 9 and of 12, rounded
    elif name == 'cutout': cy, cx = torch.randint(h, (b, 1)), torch.randint(w, (b, 1))
    else: u = torch.rand(b, 1, 1, 1).flatten().tolist()
    out = []
    for i, img in enumerate(x.double().numpy()):
        if name == 'brightness': img = img+(u[i]-.5)
        if name == 'contrast': img = img.mean()+(img-img.mean())*(.5+u[i])
        if name == 'gamma':
            e = 2**(.7*(2*u[i]-1))
            img = 2*(((img+1)/2+.05)**e-.05**e)/(1.05**e-.05**e)-1
        if name == 'translation':
            padded = np.pad(img, ((0, 0), (h, h), (w, w)), 'edge')
            img = padded[:, h+int(dy[i]):2*h+int(dy[i]), w+int(dx[i]):2*w+int(dx[i])]
        if name == 'cutout':
            img, sy, sx = img.copy(), int(h/2+.5), int(w/2+.5)
            y0, x0 = int(cy[i])-sy//2, int(cx[i])-sx//2
            img[:, max(0, y0):max(0, y0+sy), max(0, x0):max(0, x0+sx)] = 0
        if name == 'flip' and u[i] < .5: img = img[..., ::-1]
        out.append(img)
    return np.stack(out)


@pytest.mark.parametrize('name', POLICIES)
def test_each_transform_against_numpy(name, x):
    changed = 0
    for seed in range(10):
        torch.manual_seed(seed)
        y = POLICIES[name](x)
        assert np.allclose(y, numpy_version(name, x, seed), atol=1e-5), seed
        changed += (y != x).flatten(1).any(1).sum().item()
    assert changed > 20


@pytest.mark.parametrize('policy', [(n,) for n in POLICIES]+[DEFAULT, tuple(POLICIES)], ids='+'.join)
def test_differentiable_twice(policy):
    torch.manual_seed(0)
    x = (torch.rand(3, 1, 3, 4, dtype=torch.double)*1.6-.8).requires_grad_()
    def fixed(x, p=.7):
        torch.manual_seed(7)
        return augment(x, policy, p)
    assert gradcheck(fixed, x) and gradgradcheck(fixed, x)
    assert grad(fixed(x, 1.).sum(), x)[0].abs().sum() > 0


@pytest.mark.parametrize('value', [-1., 1., -1.5, 1.5, 0.])
def test_gamma_is_tame_at_black_white_and_beyond(value):
    torch.manual_seed(0)
    x = torch.full((200, 1, 1, 1), value, dtype=torch.double, requires_grad=True)
    first, = grad(POLICIES['gamma'](x).sum(), x, create_graph=True)
    second, = grad(first.square().sum(), x)
    assert first.isfinite().all() and first.min() > .2 and first.max() < 3 and second.isfinite().all()
    if value: assert torch.allclose(POLICIES['gamma'](x), x)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('autocast', [False, True])
def test_shape_dtype_and_layout(dtype, channels, layout, autocast):
    x = (torch.rand(4, channels, 16, 8)*2-1).to(dtype, memory_format=layout)
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast): y = augment(x, tuple(POLICIES), torch.tensor(.8))
    assert y.dtype == dtype and y.shape == x.shape and y.is_contiguous(memory_format=layout) and y.stride() == x.stride() and y.isfinite().all()


def test_a_wider_result_is_brought_back(x, monkeypatch):
    monkeypatch.setitem(POLICIES, 'wide', lambda x: x.double()*2)       # as autocast does on a GPU, to float32
    assert augment(x, ['wide']).dtype == x.dtype


def test_seeded(x):
    def once(seed):
        torch.manual_seed(seed)
        return augment(x, tuple(POLICIES), .5)
    assert once(1).equal(once(1)) and not once(1).equal(once(2))
    state = torch.get_rng_state()
    np.random.seed(0); before = np.random.get_state()[1].copy()
    augment(x)
    assert (np.random.get_state()[1] == before).all() and not torch.get_rng_state().equal(state)


@pytest.mark.parametrize('p', [0., .001, .3, .9, 1., torch.tensor(.3)])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_dose(p, dtype):
    torch.manual_seed(0)
    n = 40_000
    y = augment(torch.zeros(n, 1, 1, 1, dtype=dtype), ('brightness',), p)
    assert abs((y != 0).float().mean()-float(p)) <= 4*np.sqrt(float(p)*(1-float(p))/n)+2/n


def test_transforms_are_tossed_for_independently():
    torch.manual_seed(0)
    x = torch.linspace(-.9, .9, 64).reshape(1, 1, 8, 8).repeat(4000, 1, 1, 1)
    shifted = augment(x, ('brightness', 'flip'), .5)
    light = (shifted.mean((1, 2, 3)).abs() > 1e-6).float()
    mirrored = (shifted[..., 0] > shifted[..., -1]).all(-1).all(-1).float()
    assert abs(light.mean()-.5) < .04 and abs(mirrored.mean()-.25) < .04 and abs(torch.corrcoef(torch.stack([light, mirrored]))[0, 1]) < .06
    assert POLICIES['brightness'](x)[:, 0, 0, 0].unique().numel() > 3900            # each image has a draw of its own


def test_policy_names(x):
    torch.manual_seed(0); a = augment(x, 'contrast, translation')
    torch.manual_seed(0); assert augment(x, ['contrast', 'translation']).equal(a)
    assert augment(x, ()) is x and augment(x, '') is x
    assert set(DEFAULT) <= set(POLICIES)-{'flip', 'cutout'}
    with pytest.raises(UserError, match="augmentation 'translatoin' is unknown: did you mean 'translation'"): augment(x, 'translatoin')
    with pytest.raises(UserError, match='known: brightness'): augment(x, ['zz'])


def step(x, p):
    y = augment(x, tuple(POLICIES), p)
    return y, adapt(p, y.mean((1, 2, 3)), len(x))


def test_nothing_asks_the_device():
    "Fake tensors have shapes and no values: whatever needs a value fails."
    with FakeTensorMode():
        x, p = torch.empty(4, 1, 16, 16), torch.empty(())
        y, q = step(x, p)
        assert y.shape == x.shape and q.shape == () and q.dtype == torch.float32
        with pytest.raises(DataDependentOutputException): float(p)
        with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)): x[x[:, 0, 0, 0] > 0]       # and so would a choice of images


@pytest.mark.parametrize('logits, sign', [([1., 2., 3., 4.], 1), ([9., -1., 9., -1.], -1), ([1e-3]*9+[-5.], 1), ([5.]*7+[-1e-3]*3, -1), ([1.]*8+[-1.]*2, 0)])
def test_adapt_follows_the_sign_only(logits, sign):
    q = adapt(.5, torch.tensor(logits, dtype=torch.double), 100, images=1000)
    if sign: assert q.item() == pytest.approx(.5+.1*sign, abs=1e-6)
    assert .4-1e-6 <= q.item() <= .6+1e-6 and q.dtype == torch.float32 and q.shape == ()


def test_adapt_stays_in_bounds_and_takes_as_long_as_said():
    p, n = 0., 0
    while (p := adapt(p, torch.ones(8), 500)) < .9-1e-5: n += 1
    assert abs(n-.9*50_000/500) <= 2 and adapt(p, torch.ones(8), 10**9).item() == pytest.approx(.9)
    assert adapt(p, -torch.ones(8), 10**9) == 0 and adapt(.2, torch.ones(8), 10**9, most=.5) == .5
    assert not adapt(.2, torch.ones(8, requires_grad=True), 8).requires_grad
