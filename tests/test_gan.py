"The GAN's step against an independent one, its repeatability, and the lineage of its images."
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from gansynth.core import UserError, set_seed
from gansynth.data import load, split
from gansynth.gan_training import draw, gan_step, load_gan, noise, sample, save_gan, to_uint8, to_unit, train_dcgan
from gansynth.generators import dcgan_discriminator, dcgan_generator
from gansynth.synthesis import synthesise
from gansynth.regimes import gan_aug


@pytest.fixture(scope='module')
def parts(): return split(load('phantom:n_patients=60', size=32), imbalance_ratio=5.)


@pytest.fixture(scope='module')
def gan(parts): return train_dcgan(parts.train.positives, 6, 8, seed=0, precision='float32', split_hash=parts.manifest['hash'])


def tutorial_step(G, D, opt_g, opt_d, real, z):
    "The plain loop: sigmoid probabilities, BCELoss, two backward passes for D, nothing frozen."
    bce = nn.BCELoss()
    ones, zeros = torch.ones(len(real), dtype=real.dtype), torch.zeros(len(real), dtype=real.dtype)
    D.zero_grad(); d_real = bce(torch.sigmoid(D(real)), ones); d_real.backward()
    fake = G(z)
    d_fake = bce(torch.sigmoid(D(fake.detach())), zeros); d_fake.backward(); opt_d.step()
    G.zero_grad(); g = bce(torch.sigmoid(D(fake)), ones); g.backward(); opt_g.step()
    return torch.stack([g, d_real+d_fake]).detach()


def run(step, n=6):
    set_seed(0)
    G, D = dcgan_generator(32).double(), dcgan_discriminator(32).double()
    opts = [torch.optim.Adam(m.parameters(), 2e-4, (.5, .999)) for m in (G, D)]
    rng = torch.Generator().manual_seed(1)
    losses = [step(G, D, *opts, torch.rand(8, 1, 32, 32, generator=rng).double()*2-1, torch.randn(8, 100, generator=rng).double()) for _ in range(n)]
    return torch.stack(losses), torch.cat([p.detach().flatten() for m in (G, D) for p in m.parameters()])


def test_lean_step_equals_the_plain_loop():
    (lean, w), (plain, v) = run(gan_step), run(tutorial_step)
    assert torch.allclose(lean, plain, rtol=1e-7, atol=1e-9) and (w-v).abs().max() < 1e-7
    assert (lean[0]-lean[-1]).abs().max() > .1            # something was learned meanwhile
    def wrong(*a): return tutorial_step(*a[:5], a[5].flip(0)*.99)
    assert not torch.allclose(run(wrong)[0], plain, rtol=1e-3)      # the comparison can fail


def test_published_networks_layer_by_layer():
    G, D = dcgan_generator(64), dcgan_discriminator(64)
    convs = [m for m in G.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert [(m.in_channels, m.out_channels) for m in convs] == [(100, 1024), (1024, 512), (512, 256), (256, 128), (128, 1)]
    assert all(m.kernel_size == (4, 4) and m.bias is None for m in [*convs, *(m for m in D.modules() if isinstance(m, nn.Conv2d))])
    assert sum(p.numel() for p in G.parameters()) == 12_654_336 and sum(p.numel() for p in D.parameters()) == 11_032_064


def test_f63_same_seed_same_gan(parts, gan):
    again = train_dcgan(parts.train.positives, 6, 8, seed=0, precision='float32', split_hash=parts.manifest['hash'])
    assert again.hash == gan.hash and (again.losses == gan.losses).all()
    assert train_dcgan(parts.train.positives, 6, 8, seed=1, precision='float32').hash != gan.hash


def test_a_sample_does_not_depend_on_its_neighbours(gan):
    z = noise(40, 100, 3)
    assert abs(draw(gan.generator, z, bs=40).astype(int)-draw(gan.generator, z, bs=7)).max() <= 1     # rounding only
    assert (sample(gan, 140, 3)[:5] == sample(gan, 5, 3)).all()
    assert (sample(gan, 5, 3) != sample(gan, 5, 4)).any()


def test_bytes_survive():
    x = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16)
    assert (to_uint8(to_unit(x)) == x).all() and to_uint8(torch.tensor([[[[-9., 9.]]]])).tolist() == [[[0, 255]]]


def test_f16_divergence_is_no_result(parts):
    with pytest.raises(UserError, match='diverged: its loss is not finite at step'): train_dcgan(parts.train.positives, 40, 8, lr=1e20, precision='float32')


def test_f46_batch_larger_than_data(parts):
    with pytest.raises(UserError, match='batch size 400 is larger than .* choose at most'): train_dcgan(parts.train.positives, 3, 400)


def test_f44_generator_that_saw_other_images(parts, gan):
    assert gan_aug(parts.train, synthesise(gan, 4)).synthetic.sum() == 4
    everything = load('phantom:n_patients=60', size=32)
    leaky = train_dcgan(everything.positives, 1, 8)
    with pytest.raises(UserError, match='images outside this training part'): gan_aug(parts.train, synthesise(leaky, 4))


def test_class_by_name(parts, gan):
    with pytest.raises(UserError, match="class 'Pneumonia'"): gan_aug(parts.train, replace(synthesise(gan, 4), class_name='Pneumonia'))
    s = gan_aug(parts.train, synthesise(gan, 4))
    assert (s.labels[s.synthetic] == 1).all() and parts.train.classes[1] == 'pneumonia'


def test_f04_one_flipped_byte(tmp_path, gan):
    path = tmp_path/'g.safetensors'
    save_gan(gan, path)
    assert load_gan(path).hash == gan.hash
    raw = bytearray(path.read_bytes()); raw[-100] ^= 1; path.write_bytes(raw)
    with pytest.raises(UserError, match='g.safetensors is damaged'): load_gan(path)


@pytest.mark.parametrize('meta', [{}, {'format': 'other'}])
def test_f05_foreign_generator(tmp_path, gan, meta):
    save_gan(gan, tmp_path/'g.safetensors')
    (tmp_path/'g.safetensors.json').write_text(json.dumps(meta))
    with pytest.raises(UserError, match='does not describe a gansynth generator'): load_gan(tmp_path/'g.safetensors')
