"The networks that classify: counts, every combination, weights from elsewhere, frozen bodies, files."
import copy, json, socket, subprocess, sys, threading
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import LIMIT, ROOT
from torch import nn
from torchvision import models

from gansynth import classifiers
from gansynth.classifiers import (GREY, HEADS, NETWORKS, Classifier, Precision, at_hand, build_classifier, fetch, imagenet_weights, load_classifier,
                                  make_head, save_classifier)
from gansynth.core import UserError, file_hash
from gansynth.generators import count_parameters, list_networks

LARGE = [n for n in NETWORKS if NETWORKS[n].nf]
SMALL = [n for n in NETWORKS if not NETWORKS[n].nf]
CHEAP = [n for n in at_hand() if n not in ('vgg16', 'resnet34', 'resnet101')]
needs_timm = pytest.mark.skipif('deit_tiny' not in at_hand(), reason='timm is not installed')


def named(names): return [pytest.param(n, marks=needs_timm) if n == 'deit_tiny' else n for n in names]


def images(n=2, size=32, seed=0): return torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, (n, 1, size, size)).astype('float32'))


def wake(model):
    "Random BatchNorm statistics and biases: nothing in the network is a no-op. Returns the model."
    g = torch.Generator().manual_seed(0)
    for name, v in model.state_dict().items():
        if name.endswith('running_mean') or name.endswith('bias'): v.copy_(.1*torch.randn(v.shape, generator=g))
        if name.endswith('running_var'): v.copy_(torch.rand(v.shape, generator=g)+.5)
    return model


@pytest.fixture
def hub(tmp_path, monkeypatch):
    "torch's folder for weights, empty, and no way to the internet."
    attempts = []
    def refuse(*a, **k): attempts.append(a); raise OSError('sockets are blocked')
    monkeypatch.setattr(socket, 'getaddrinfo', refuse)
    monkeypatch.setattr(socket.socket, 'connect', refuse)
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    folder = tmp_path/'checkpoints'
    folder.mkdir()
    return folder, attempts


# --- counts ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name, size, statistics, published', [('covid_cnn', 128, False, 697_186), ('covid_cnn', 224, False, 1_778_530), ('covid_cnn', 256, False, 2_270_050), ('fracture_cnn', 64, True, 13_585), ('fracture_cnn', 64, False, 13_489)])
def test_published_counts(name, size, statistics, published):
    assert count_parameters(build_classifier(name, size), statistics) == published


@pytest.mark.parametrize('head, published', [('default', 4_098), ('dropout', 4_098), ('simple', 1_050_114), ('complex', 1_118_946)])
def test_heads_of_study_5(head, published): assert count_parameters(make_head(head, 2048, 2)) == published


@pytest.mark.parametrize('name, old_head', [('resnet18', 513_000), ('resnet34', 513_000), ('resnet50', 2_049_000), ('resnet101', 2_049_000), ('vgg16', 123_642_856)])
def test_bodies_have_torchvisions_counts(name, old_head):
    with torch.device('meta'): body = build_classifier(name).body
    first = next(m for m in body.modules() if isinstance(m, nn.Conv2d))
    assert first.weight.shape[1] == 1
    assert count_parameters(body) == models.get_model_weights(name).DEFAULT.meta['num_params']-old_head-2*first.weight.numel()


@needs_timm
def test_deit_has_timms_count():
    with torch.device('meta'): body = build_classifier('deit_tiny', 224).body
    assert count_parameters(body) == 5_717_416-(192*1000+1000)-2*192*16*16      # the paper's 5.7 million


def test_fastais_head_is_fastais():
    from fastai.vision.learner import create_vision_model
    with torch.device('meta'): ours, theirs = build_classifier('resnet34', head='fastai'), create_vision_model(models.resnet34, 2, pretrained=False, n_in=1)
    assert [(k.split('.', 1)[1], v.shape) for k, v in ours.state_dict().items()] == [(k.split('.', 1)[1], v.shape) for k, v in theirs.state_dict().items()]
    assert str(ours.head) == str(theirs[1])


def test_listing():
    listed = list_networks(at_hand())
    assert set(listed) == set(at_hand()) and all(v['parameters'] > 0 and v['about'] == NETWORKS[k].about for k, v in listed.items())
    json.dumps(listed)


# --- every combination ----------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    "name -> file of that network with random weights, written once."
    folder, files = tmp_path_factory.mktemp('classifiers'), {}
    def get(name):
        if name not in files:
            torch.manual_seed(1)
            files[name] = save_classifier(wake(build_classifier(name, 32)), folder/f'{name}.safetensors', note='random')
        return files[name]
    return get


@pytest.mark.parametrize('frozen', [False, True])
@pytest.mark.parametrize('name', named(NETWORKS))
def test_every_combination_learns(name, frozen, saved):
    "Forward and backward with each head that fits; a frozen body gets no gradient, everything else gets one."
    full = build_classifier(name, 32, weights=saved(name) if frozen else 'none', frozen=frozen)
    for head in HEADS if name in LARGE else ['default']:
        if head == 'fastai' and name == 'deit_tiny': continue
        if name in LARGE: full.head, full.settings['head'] = make_head(head, NETWORKS[name].nf, 2, NETWORKS[name].maps), head
        full.zero_grad()
        logits = full.train()(images())
        assert logits.shape == (2, 2) and logits.dtype == torch.float32
        nn.functional.cross_entropy(logits, torch.tensor([0, 1])).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in full.head.parameters())
        assert all((p.grad is None) == frozen for p in full.body.parameters())


@pytest.mark.parametrize('head', HEADS)
@pytest.mark.parametrize('name', named(CHEAP))
def test_heads_by_name(name, head):
    if (name in SMALL and head != 'default') or (name == 'deit_tiny' and head == 'fastai'):
        with pytest.raises(UserError, match='head='): build_classifier(name, 32, head=head)
    else:
        model = build_classifier(name, 32, head=head)
        assert model.settings['head'] == head and model(images()).shape == (2, 2)
        assert str(model.head) == str(make_head(head, NETWORKS[name].nf, 2, NETWORKS[name].maps)) if name in LARGE else True


@pytest.mark.parametrize('name', named(CHEAP))
def test_classes(name):
    if name == 'fracture_cnn':
        with pytest.raises(UserError, match='n_out=5'): build_classifier(name, 32, n_out=5)
    else: assert build_classifier(name, 32, n_out=5)(images()).shape == (2, 5)


def test_one_sigmoid_unit():
    "Cross-entropy over (0, z) is the binary cross-entropy of z; the last linear layer holds one unit."
    model, x, y = build_classifier('fracture_cnn', 32).eval(), images(5), torch.tensor([0, 1, 1, 0, 1])
    logits = model(x)
    assert logits[:, 0].abs().max() == 0 and logits[:, 1].abs().min() > 0
    assert torch.allclose(nn.functional.cross_entropy(logits, y), nn.functional.binary_cross_entropy_with_logits(logits[:, 1], y.float()), atol=1e-6)
    from gansynth.features import from_classifier
    bytes_ = ((x[:, 0].numpy()+1)*127.5).round().astype('uint8')
    extractor = from_classifier(model, 'fracture')
    features = extractor(bytes_)
    assert features.shape == (5, 128)
    assert np.allclose(extractor.probabilities(features)[:, 1], logits[:, 1].sigmoid().detach(), atol=.02)


@pytest.mark.parametrize('name', SMALL)
def test_dropout_rates(name):
    assert {m.p for m in build_classifier(name, 32).modules() if isinstance(m, nn.Dropout)} == {.25}


# --- sizes ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name', named(['fracture_cnn', 'covid_cnn', 'vgg16', 'deit_tiny', 'resnet18']))
def test_smallest_size(name):
    "The size that the message names works; one pixel less is refused, and would not work."
    net = NETWORKS[name]
    assert build_classifier(name, net.least).eval()(images(2, net.least)).isfinite().all()
    with pytest.raises(UserError, match=f'at least {net.least}'): build_classifier(name, net.least-1)
    if name in ('covid_cnn', 'fracture_cnn'):
        with pytest.raises(Exception): nn.Sequential(*net.build(net.least-1, 2))(images(2, net.least-1))
    if name == 'vgg16':
        with pytest.raises(RuntimeError): build_classifier(name, 32)(images(2, 31))


@needs_timm
def test_deit_wants_whole_patches():
    with pytest.raises(UserError, match='input_size=32'): build_classifier('deit_tiny', 28)
    assert build_classifier('deit_tiny', 28, input_size=32)(images(2, 28)).shape == (2, 2)


def test_other_sizes_than_built_for():
    with pytest.raises(UserError, match='built for 64 pixels, these images have 96'): build_classifier('covid_cnn', 64)(images(2, 96))
    assert build_classifier('resnet18', 64)(images(2, 96)).shape == (2, 2)       # any size will do


def test_resize():
    "Enlarging is torch's bilinear; shrinking averages; the right size is left alone."
    def look(size): return Classifier(nn.Identity(), nn.Identity(), dict(name='look', input_size=size))
    x = images(2, 28)
    assert torch.equal(look(224)(x), nn.functional.interpolate(x, (224, 224), mode='bilinear'))
    assert look(224)(x).shape == (2, 1, 224, 224) and torch.equal(look(28)(x), x) and torch.equal(look(0)(x), x)
    stripes = torch.tensor([-1., 1, 1, -1]).repeat(16).expand(1, 1, 64, 64)
    assert look(16)(stripes).abs().max() < .1                                    # without antialias: white
    model = build_classifier('covid_cnn', 28, input_size=64)
    assert torch.equal(model.eval()(x), model(nn.functional.interpolate(x, (64, 64), mode='bilinear')))


# --- ImageNet -------------------------------------------------------------------------------------------------------

def fake(name, folder, old=False):
    "Random three-channel weights under ImageNet's file name: (the network in evaluation mode, the path)."
    torch.manual_seed(2)
    if name == 'deit_tiny':
        import timm
        model = wake(timm.create_model('deit_tiny_patch16_224'))
    else: model = wake(models.get_model(name, weights=None))
    path = folder/NETWORKS[name].url.rsplit('/')[-1]
    state = {k: v for k, v in model.state_dict().items() if not (old and k.endswith('num_batches_tracked'))}
    torch.save({'model': state} if name == 'deit_tiny' else state, path, _use_new_zipfile_serialization=not old)
    return model.eval(), path


@pytest.mark.parametrize('name, size', [('resnet18', 64), ('resnet50', 64), pytest.param('vgg16', 224, marks=pytest.mark.slow), pytest.param('deit_tiny', 224, marks=needs_timm)])
def test_one_channel_is_three(name, size, hub):
    "Grey weights on the grey image = three-channel weights on the image in all three channels, with the old head put back."
    theirs, path = fake(name, hub[0], old=name.startswith('resnet'))
    ours = build_classifier(name, size, weights='imagenet').eval()
    x = images(2, size)
    three = (((x+1)/2-GREY[0])/GREY[1]).expand(-1, 3, -1, -1)
    if name == 'vgg16': ours.head = nn.Sequential(theirs.avgpool, nn.Flatten(), theirs.classifier)
    elif name == 'deit_tiny': ours.head = theirs.head
    else: ours.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), theirs.fc)
    with torch.no_grad(): a, b = ours(x), theirs(three)
    assert a.shape == (2, 1000) and b.std() > 1e-2
    assert (a-b).abs().max() < 1e-4*max(1, b.abs().max())
    assert not hub[1], 'the file was there, and something went to the internet'


def test_standardised_only_for_imagenet(hub):
    fake('resnet18', hub[0])
    x = images()
    assert torch.equal(build_classifier('resnet18').prepare(x), x)
    grey = build_classifier('resnet18', weights='imagenet').prepare(x)
    assert torch.allclose(grey, ((x+1)/2-.449)/.226, atol=1e-6)


@needs_timm
def test_deit_at_another_size(hub):
    "Position vectors are stretched as timm does it; all else is the file's."
    import timm
    theirs, path = fake('deit_tiny', hub[0])
    given = dict(pretrained=True, pretrained_cfg_overlay=dict(state_dict=torch.load(path, weights_only=True)['model']))
    ours = build_classifier('deit_tiny', 64, weights='imagenet').eval()
    assert torch.equal(ours.body.blocks[0].attn.qkv.weight, theirs.blocks[0].attn.qkv.weight)
    assert ours.body.pos_embed.shape == (1, 17, 192) and ours(images(2, 64)).isfinite().all()
    timms = timm.create_model('deit_tiny_patch16_224', in_chans=1, num_classes=0, img_size=64, **given)
    for k, v in timms.state_dict().items(): assert torch.allclose(ours.body.state_dict()[k], v, atol=1e-6), k


def test_origin_of_a_file(hub, monkeypatch):
    "'imagenet' only where the content has the published hash; else the file's own."
    _, path = fake('resnet18', hub[0])
    assert build_classifier('resnet18', weights='imagenet').weights == file_hash(path)
    monkeypatch.setattr(classifiers, 'file_hash', lambda p: path.stem.rsplit('-')[1]+'0'*56)
    assert build_classifier('resnet18', weights='imagenet').weights == 'imagenet'
    assert build_classifier('resnet18').weights == 'none'


@pytest.mark.parametrize('name', named(LARGE))
def test_missing_weights(name, hub):
    "No file, no internet: a sentence at once, never a random network."
    with pytest.raises(UserError) as e: build_classifier(name, 32, weights='imagenet')
    file = NETWORKS[name].url.rsplit('/')[-1]
    for part in (file, str(hub[0]), NETWORKS[name].url, "weights='none'"): assert part in str(e.value)
    assert len(hub[1]) >= 1
    assert not list(hub[0].iterdir()), 'the failed download left something behind'
    assert socket.getdefaulttimeout() is None


def test_silent_server_is_not_waited_for(tmp_path, monkeypatch):
    "A server that accepts and says nothing."
    server = socket.create_server(('127.0.0.1', 0))
    rescued = threading.Event()         # the test ends even where nothing limits the wait
    rescue = threading.Timer(LIMIT, lambda: (rescued.set(), server.close()))
    rescue.start()
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    monkeypatch.setattr(classifiers, 'SILENCE', .5)
    import dataclasses
    net = dataclasses.replace(NETWORKS['resnet18'], url=f'http://127.0.0.1:{server.getsockname()[1]}/resnet18-f37072fd.pth')
    for v in ('http_proxy', 'HTTP_PROXY', 'all_proxy', 'ALL_PROXY'): monkeypatch.delenv(v, raising=False)
    with pytest.raises(UserError, match='download failed'): fetch(net)
    rescue.cancel()
    assert not rescued.is_set() and socket.getdefaulttimeout() is None
    server.close()


def test_download_is_checked(hub, monkeypatch, tmp_path):
    "What arrives must have the hash in its name; then it is kept and used."
    import dataclasses, hashlib
    source = tmp_path/'source'
    source.mkdir()
    _, path = fake('resnet18', source)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    good = path.rename(source/f'resnet18-{digest}.pth')
    bad = source/'resnet18-00000000.pth'
    bad.write_bytes(good.read_bytes())
    net = dataclasses.replace(NETWORKS['resnet18'], url=bad.as_uri())
    with pytest.raises(UserError, match='download failed'): fetch(net)
    assert not list(hub[0].iterdir())
    tensors, origin = imagenet_weights(dataclasses.replace(net, url=good.as_uri()))
    assert origin == 'imagenet' and (hub[0]/good.name).is_file() and tensors['conv1.weight'].shape == (64, 3, 7, 7)


class Evil:
    "Pickled, a program that makes a file."
    def __init__(self, path): self.path = path
    def __reduce__(self): return Path.touch, (self.path,)


@pytest.mark.parametrize('content', ['html', 'program', 'list', 'other', 'cut'])
def test_foreign_files_under_the_name(content, hub):
    path = hub[0]/NETWORKS['resnet18'].url.rsplit('/')[-1]
    if content == 'html': path.write_text('<html>404</html>')
    if content == 'program': torch.save(Evil(hub[0]/'evil'), path)
    if content == 'list': torch.save([1, 2], path)
    if content == 'other': torch.save(models.resnet34(weights=None).state_dict(), path)
    if content == 'cut':
        fake('resnet18', hub[0])
        path.write_bytes(path.read_bytes()[:10_000_000])
    with pytest.raises(UserError, match='another network' if content == 'other' else str(path.name)): build_classifier('resnet18', weights='imagenet')
    assert not (hub[0]/'evil').exists(), 'a file ran a program'


@needs_timm
@pytest.mark.parametrize('weights_of', ['resnet18', 'vit_small'])
def test_foreign_weights_for_deit(weights_of, hub):
    import timm
    other = models.resnet18(weights=None) if weights_of == 'resnet18' else timm.create_model('deit_small_patch16_224')
    torch.save(other.state_dict(), hub[0]/NETWORKS['deit_tiny'].url.rsplit('/')[-1])
    with pytest.raises(UserError, match='another network'): build_classifier('deit_tiny', 64, weights='imagenet')


@pytest.mark.parametrize('name', SMALL)
def test_no_imagenet_for_the_small_ones(name, hub):
    with pytest.raises(UserError, match='no ImageNet weights'): build_classifier(name, weights='imagenet')
    assert not hub[1]


@pytest.mark.slow
def test_without_timm():
    "Everything but DeiT works without the library."
    code = ("import sys, importlib.util as u; real = u.find_spec; u.find_spec = lambda n, *a: None if n == 'timm' else real(n, *a); sys.modules['timm'] = None\n"
            "from gansynth.classifiers import at_hand, build_classifier; from gansynth.generators import list_networks\n"
            "assert 'deit_tiny' not in list_networks(at_hand()) and 'resnet18' in at_hand(); build_classifier('resnet18')\n"
            "build_classifier('deit_tiny', weights='imagenet')")
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and 'UserError: deit_tiny needs the library timm: pip install "gansynth[timm]"' in done.stderr
    assert 'extra_timm' in (ROOT/'settings.ini').read_text()


# --- files of our own -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name', named(CHEAP))
def test_round_trip(name, saved):
    path = saved(name)
    whole, x = load_classifier(path), images()
    assert not whole.training and whole.weights == file_hash(path)
    body = build_classifier(name, 32, weights=path).eval()
    assert body.weights == file_hash(path) and torch.equal(body.body(x), whole.body(x))
    assert not torch.equal(body(x), whole(x)), 'the head is new'
    again = save_classifier(Precision(whole, 'float32'), path.with_name(f'{name}-again.safetensors'))
    assert torch.equal(load_classifier(again)(x), whole(x))
    assert json.loads(Path(f'{path}.json').read_text())['note'] == 'random' and json.loads(Path(f'{again}.json').read_text())['weights'] == whole.weights


def test_other_head_same_body(saved):
    "Fourteen findings first, two classes after."
    model = build_classifier('resnet18', head='complex', n_out=14, weights=saved('resnet18'))
    assert model(images()).shape == (2, 14)
    assert build_classifier('covid_cnn', 64, weights=saved('covid_cnn'))(images(2, 64)).shape == (2, 2) # its body fits any size


def test_brightness_travels_with_the_body(hub, tmp_path):
    "ImageNet -> our file -> the next task: still standardised."
    fake('resnet18', hub[0])
    path = save_classifier(build_classifier('resnet18', weights='imagenet'), tmp_path/'x.safetensors')
    for model in (build_classifier('resnet18', weights=path), load_classifier(path)):
        assert model.standardised and not torch.equal(model.prepare(images()), images())


@pytest.mark.parametrize('name, of, words', [('resnet50', 'resnet18', 'missing'), ('resnet18', 'resnet50', 'unexpected'), ('resnet50', 'resnet101', 'unexpected'), ('covid_cnn', 'fracture_cnn', 'unexpected'), pytest.param('deit_tiny', 'resnet18', 'missing', marks=needs_timm)])
def test_wrong_network(name, of, words, saved):
    with pytest.raises(UserError, match=words) as e: build_classifier(name, 32, weights=saved(of))
    assert 'another network' in str(e.value) and of in str(e.value) and name in str(e.value)


@needs_timm
def test_deit_of_another_size(saved):
    with pytest.raises(UserError, match='pos_embed'): build_classifier('deit_tiny', 64, weights=saved('deit_tiny'))


def test_wrong_files(tmp_path, saved):
    with pytest.raises(UserError, match='no such file'): build_classifier('resnet18', weights=tmp_path/'x.safetensors')
    with pytest.raises(UserError, match='.safetensors file'): build_classifier('resnet18', weights='x.pth')
    with pytest.raises(UserError, match='choose none, imagenet'): build_classifier('resnet18', weights='chestmnist')
    with pytest.raises(UserError, match='only what build_classifier made'): save_classifier(nn.Linear(2, 2), tmp_path/'y.safetensors')
    damaged = tmp_path/'z.safetensors'
    damaged.write_bytes(saved('covid_cnn').read_bytes()[:-100])
    Path(f'{damaged}.json').write_text(Path(f"{saved('covid_cnn')}.json").read_text())
    with pytest.raises(UserError, match='damaged'): build_classifier('covid_cnn', 32, weights=damaged)


# --- frozen ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name', named(CHEAP))
@pytest.mark.parametrize('wrapped', [False, True])
def test_frozen_body_does_not_move(name, wrapped, saved):
    "A step with weight decay and momentum in training mode, twice switched: the head moves, no tensor of the body does."
    model = build_classifier(name, 32, weights=saved(name), frozen=True)
    net = Precision(model, 'float32') if wrapped else model
    before = copy.deepcopy(model.state_dict())
    opt = torch.optim.SGD(net.parameters(), lr=.1, momentum=.9, weight_decay=.1)
    for step in range(2):
        net.eval().train()
        assert not any(m.training for m in model.body.modules()) and model.head.training
        opt.zero_grad()
        nn.functional.cross_entropy(net(images(4, seed=step)), torch.tensor([0, 1, 1, 0])).backward()
        opt.step()
    moved = {k.split('.')[0] for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {'head'}


def test_free_body_moves(saved):
    "The same step without frozen moves weights and BatchNorm statistics: the test above can fail."
    model = build_classifier('resnet18', 32, weights=saved('resnet18'))
    before = copy.deepcopy(model.state_dict())
    nn.functional.cross_entropy(model(images(4)), torch.tensor([0, 1, 1, 0])).backward()
    torch.optim.SGD(model.parameters(), lr=.1).step()
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert 'body.0.weight' in moved and 'body.1.running_mean' in moved


def test_frozen_trains_the_head_only(saved):
    model = build_classifier('resnet50', 32, head='simple', weights=saved('resnet50'), frozen=True)
    assert count_parameters(model) == 1_050_114


@pytest.mark.parametrize('name', named(CHEAP))
def test_frozen_random_body_is_refused(name):
    with pytest.raises(UserError, match='random body'): build_classifier(name, 32, frozen=True)


# --- the rest -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name, words', [('resnet43', "did you mean 'resnet34'"), ('grey_resnet34', "did you mean 'resnet34'"), ('zzz', 'known: covid_cnn')])
def test_unknown_names(name, words):
    with pytest.raises(UserError, match=words): build_classifier(name)


@pytest.mark.parametrize('name', named(CHEAP))
def test_precision(name):
    torch.manual_seed(0)
    model, x = build_classifier(name, 32).eval(), images(4)
    half, full = (Precision(model, p)(x) for p in ('bfloat16', 'float32'))
    assert half.dtype == full.dtype == torch.float32
    assert torch.allclose(full, model(x), atol=1e-4) and 0 < (half-full).abs().max() < .1*full.abs().max()+.02


def test_same_seed_same_network():
    def weights(seed):
        torch.manual_seed(seed)
        return build_classifier('covid_cnn', 32).state_dict()
    a, b, c = weights(0), weights(0), weights(1)
    assert all(torch.equal(a[k], b[k]) for k in a) and not torch.equal(a['body.0.weight'], c['body.0.weight'])
