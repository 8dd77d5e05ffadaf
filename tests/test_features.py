"Extractors: bytes in, the same features whatever the batch, and no network; distances against brute force."
import socket

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.distance import cdist
from torch import nn

from conftest import small_classifier
from gansynth import features, fidelity
from gansynth.core import UserError
from gansynth.features import Extractor, check_images, from_classifier, inception, pick_extractor, random_conv, squared_distances
from gansynth.fidelity import compare, rank_check
from gansynth.phantom import phantom


@pytest.fixture(scope='module')
def people(): return phantom(n_patients=120, size=32, prevalence=.4)


@pytest.fixture
def no_network(monkeypatch):
    "Every way to open a connection raises; returns the list of attempts."
    tried = []
    def refuse(*a, **k): tried.append(a); raise AssertionError('a connection was attempted')
    for name in ('socket', 'create_connection', 'getaddrinfo'): monkeypatch.setattr(socket, name, refuse)
    return tried


@pytest.mark.parametrize('kind, far', [('float32', 1e-4), ('float64', 1e-12)])
def test_squared_distances_against_scipy(kind, far):
    "In the precision of the tables; far from the origin digits are lost, which is why the callers centre."
    x, y = (np.random.default_rng(s).normal(size=(n, 40)).astype(kind) for s, n in ((0, 30), (1, 70)))
    d, want = squared_distances(x, y), cdist(x, y, 'sqeuclidean')
    assert d.dtype == kind and d.shape == (30, 70) and abs(d-want).max() < far
    assert abs(squared_distances(x+1000, y+1000)-want).max() > 100*far


# --- images and extractors

def test_scale_of_images_is_guarded(people, monkeypatch):
    real = people['images'][:60]
    as_floats = {'[-1,1]': real/127.5-1, '[0,1]': (real/255).astype('float32')}
    for fake in as_floats.values():
        with pytest.raises(UserError, match='images 2: float.*scale'): compare(real, fake, random_conv())
        with pytest.raises(UserError, match='images 2: float.*scale'): rank_check(real, fake, random_conv())
        with pytest.raises(UserError, match='images 1: only 0, 1 and 255'): random_conv()(fake.astype('int8').astype('uint8'))
    check_images(np.zeros((3, 32, 32), 'uint8'))                                               # a black sample is bad, but bytes
    check_images(np.where(real > 99, 255, 0).astype('uint8'))
    with pytest.raises(UserError, match='different sizes'): compare(real, real[:, ::2, ::2], random_conv())
    for m in (features, fidelity): monkeypatch.setattr(m, 'check_images', lambda *s: list(s))     # without it: a number, and a wrong one
    t = compare(real, as_floats['[-1,1]'], random_conv()).set_index('metric')
    assert t.loc['KID[rand-conv-s0]', 'value'] > 10*abs(t.loc['KID[rand-conv-s0]', 'floor'])


@pytest.mark.parametrize('make', [random_conv, lambda: from_classifier(small_classifier(), 'cls')], ids=['random_conv', 'from_classifier'])
def test_features_do_not_depend_on_batch_or_order(make, people):
    x, f = people['images'][:50], make()
    want, order = f(x), np.random.default_rng(0).permutation(50)
    assert want.dtype == np.float32 and want.std(0).max() > 1e-3
    for f.bs in (1, 7, 50): assert np.allclose(f(x), want, rtol=1e-4, atol=1e-5)
    assert np.allclose(f(x[order]), want[order], rtol=1e-4, atol=1e-5)
    assert np.array_equal(make()(x), make()(x))


def test_batch_statistics_would_depend_on_the_batch(people):
    "Ablation: the same network left in training mode."
    net, x = small_classifier().train(), people['images'][:50]
    f = Extractor('training-mode', lambda x: net(x))
    want = f(x)
    f.bs = 7
    assert not np.allclose(f(x), want, rtol=1e-2)


def test_random_conv_is_its_name(people):
    x = people['images'][:20]
    assert random_conv().name == 'rand-conv-s0' and random_conv(3).name == 'rand-conv-s3'
    assert not np.allclose(random_conv()(x), random_conv(3)(x))
    torch.manual_seed(99)
    assert np.array_equal(random_conv()(x), random_conv(0)(x))
    assert random_conv()(x).astype(float).mean() == pytest.approx(1.174734794, rel=1e-4)           # the same numbers on every machine


def test_features_of_the_real_classifier(people):
    "Those before the last layer of a fastai Learner's ResNet34; the head gives its probabilities."
    from gansynth.classifier_training import Stage, make_learner, predict
    from gansynth.classifiers import Precision, build_classifier
    from gansynth.data import Images
    x, y = people['images'][:40], people['labels'][:40]
    names = np.arange(40).astype(str)
    learn = make_learner(Precision(build_classifier('resnet34', 32, 'fastai'), 'float32'), Stage(x, y, np.zeros(40, bool)), Images(x, y, names, names, names, ('a', 'b')), bs=8, n_batches=1)
    f = from_classifier(learn, 'resnet34-train')
    assert f(x).shape == (40, 512)
    assert np.allclose(f.probabilities(f(x))[:, 1], predict(learn.model, x), atol=1e-5)
    assert set(compare(x, x, f).metric) >= {'KID[resnet34-train]', 'IS[resnet34-train]'}
    with pytest.raises(UserError, match='no linear layer'): from_classifier(nn.Conv2d(1, 1, 3), 'bare')


def test_one_resize_for_all():
    "Bicubic with antialiasing: a fine chequerboard becomes grey, not a coarse pattern."
    board = (np.indices((64, 64)).sum(0) % 2*255).astype('uint8')[None]
    x = features._as_input(board, 16, 3)
    assert x.shape == (1, 3, 16, 16) and (x[:, 0] == x[:, 2]).all() and abs(x[..., 2:-2, 2:-2]).max() < .02
    want = np.asarray(Image.fromarray(board[0].astype('float32')).resize((16, 16), Image.Resampling.BICUBIC))/127.5-1
    assert np.allclose(x[0, 0], want, atol=1e-6)
    stripes = np.tile(np.array([0, 255, 255], 'uint8'), 22)[None, None, :64].repeat(64, 1)
    naive = torch.nn.functional.interpolate(torch.from_numpy(stripes/127.5-1)[None], size=16, mode='bicubic')
    assert naive.std() > .5 > 5*features._as_input(stripes, 16, 1).std()                        # ablation: without antialiasing, a new pattern


# --- Inception, without a network

def test_f64_absent_weights(no_network, tmp_path, capsys, monkeypatch, people):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))                             # an empty cache
    for path in (None, tmp_path/'absent.pth'):
        with pytest.raises(UserError, match='Inception weights not found at'): inception(path)
        x = pick_extractor(path)
        assert 'Inception weights not found at' in (said := capsys.readouterr().out) and 'using domain extractor rand-conv-s0' in said and str(tmp_path) in said
        assert set(compare(people['images'], people['images'], x).metric) >= {'KID[rand-conv-s0]'}
    domain = from_classifier(small_classifier(), 'cls')
    assert pick_extractor(domain=domain) is domain and 'using domain extractor cls' in capsys.readouterr().out
    assert not no_network


def test_blocked_network_would_be_noticed(no_network, tmp_path, monkeypatch):
    "Ablation: what torchvision does by itself is to download."
    from torchvision.models import Inception_V3_Weights, inception_v3
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    for proxy in ('http_proxy', 'https_proxy', 'HTTP_PROXY', 'HTTPS_PROXY', 'all_proxy', 'ALL_PROXY'): monkeypatch.delenv(proxy, raising=False)
    with pytest.raises(Exception): Inception_V3_Weights.IMAGENET1K_V1.get_state_dict(progress=False)
    assert no_network


def test_inception_file(no_network, tmp_path, people, monkeypatch):
    "Random weights, for this test only, are read and never pass for the published ones, whatever the file's name."
    from torchvision.models import inception_v3
    torch.manual_seed(0)
    path = tmp_path/features.inception_file()[0].name
    torch.save(inception_v3(weights=None, init_weights=False).state_dict(), path)
    x = inception(path)
    digest = features.file_hash(path)[:8]
    assert x.name == f'inception-custom-{digest}' and pick_extractor(path).name == x.name
    monkeypatch.setattr(features, 'file_hash', lambda p: features.inception_file()[1]+'0'*56)
    assert inception(path).name == f'inception-v3-{features.inception_file()[1]}' == 'inception-v3-0cc3c7bd'
    images = people['images'][:3]
    f = x(images)
    assert f.shape == (3, 2048) and np.isfinite(f).all()
    assert np.allclose(x.probabilities(f).sum(1), 1) and x.probabilities(f).shape == (3, 1000)
    x.bs = 1
    assert np.allclose(x(images), f, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('content', [b'', b'no weights', 'other'])
def test_wrong_inception_file(content, tmp_path):
    path = tmp_path/'w.pth'
    if content == 'other': torch.save(nn.Linear(2, 2).state_dict(), path)
    else: path.write_bytes(content)
    with pytest.raises(UserError, match="w.pth does not hold the weights of torchvision's inception_v3"): inception(path)
