"Synthetic sets: drawn by seed, chosen by rules, written with papers that can be checked."
import json, shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import gansynth, snapshot
from PIL import Image

from gansynth.core import UserError
from gansynth.data import load, split
from gansynth.gan_training import train_dcgan
from gansynth.synthesis import Synthetic, at_least, at_random, compose, distances, diverse, examine, export_set, load_set, no_near_copies, realism, synthesise, top

PASS = dict(verdict='PASS', words='No memorisation detected at this power.')


@pytest.fixture(scope='module')
def parts(): return split(load('phantom:n_patients=60', size=32))


@pytest.fixture(scope='module')
def pool(parts):
    return synthesise(train_dcgan(parts.train.positives, 8, 8, precision='float32', split_hash=parts.manifest['hash']), 50, seed=3)


def made(n, seed=0):
    return Synthetic(np.random.default_rng(seed).integers(0, 256, (n, 16, 16), 'uint8'), 'ill', ('a', 'b'), 'g'*64, seed, np.array([f'{seed}-{i:06}' for i in range(n)]))


def pixels(x): return x.reshape(len(x), -1).astype(float)


def test_numbers_in_a_stream(pool, parts):
    assert pool.ids[7] == '3-000007' and pool.split_hash == parts.manifest['hash'] and set(pool.trained_on) == set(parts.train.positives.ids)
    assert not set(pool.trained_on) & set(parts.table.id[parts.table.part != 'train'])


def test_rules_compose_and_keep_ids_scores_and_pixels_together():
    s = made(40).scored('a', np.arange(40)).scored('b', -np.arange(40))
    out = compose(at_least(10, 'a'), top(12, 'b'), at_random(5, 1))(s)
    assert len(out) == 5 and out.rule == 'a >= 10, then top 12 by b, then 5 at random'
    for i, x, a in zip(out.ids, out.images, out.scores['a']):
        k = int(i.split('-')[1])
        assert 10 <= k < 22 and a == k and (x == s.images[k]).all()
    assert compose(at_least(99, 'a'), top(3, 'b'))(s).ids.size == 0


def test_random_choice_is_uniform_and_seeded():
    s = made(20)
    assert (at_random(5, 3)(s).ids == at_random(5, 3)(s).ids).all()
    n = np.zeros(20)
    for seed in range(2000): n[[int(i.split('-')[1]) for i in at_random(5, seed)(s).ids]] += 1
    assert abs(n/2000-.25).max() < .05


def test_distances_equal_a_plain_loop():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(70, 9)), rng.normal(size=(33, 9))
    plain = np.array([[np.linalg.norm(x-y) for y in b] for x in a])
    assert abs(distances(a, b, chunk=16)-plain).max() < 1e-6


def test_realism_equals_the_paper_written_out():
    real, s, k = made(30, 1).images, made(12, 2), 3
    f, g = pixels(real), pixels(s.images)
    d = np.linalg.norm(f[:, None]-f, axis=2)
    radius = np.array([sorted(row)[k] for row in d])        # the 0-th is the image itself
    keep = radius <= np.median(radius)
    want = [max(radius[i]/np.linalg.norm(x-f[i]) for i in np.flatnonzero(keep)) for x in g]
    assert np.allclose(realism(pixels, real, k)(s).scores['realism'], want)


def test_diverse_is_greedy_k_centre():
    s = made(25)
    f, chosen = pixels(s.images), []
    chosen.append(int(np.argmin(((f-f.mean(0))**2).sum(1))))
    while len(chosen) < 6: chosen.append(max(range(25), key=lambda i: min(np.linalg.norm(f[i]-f[j]) for j in chosen)))
    assert diverse(6, pixels)(s).ids.tolist() == [s.ids[i] for i in sorted(chosen)]
    assert len(diverse(99, pixels)(s)) == 25


def test_near_copies_of_training_images_are_dropped(parts):
    train = parts.train.positives.images
    changed = [train[0], train[1][:, ::-1], np.clip(train[2]*.95+5, 0, 255).astype('uint8'), np.asarray(Image.fromarray(train[3]).resize((24, 24)).resize((32, 32)))]
    fresh = np.random.default_rng(0).integers(0, 256, (5, 32, 32), 'uint8')
    s = replace(made(9), images=np.stack([*changed, *fresh]))
    assert no_near_copies(train)(s).ids.tolist() == s.ids[4:].tolist()


def test_written_and_read(tmp_path, pool):
    s = at_random(9)(pool.scored('x', np.linspace(0, 1, 50)))
    folder = export_set(s, tmp_path/'set', PASS, {'KID[rand-conv-s0]': .01}, dict(kind='phantom', name='phantom'))
    b = load_set(folder)
    assert (b.images == s.images).all() and (b.ids == s.ids).all() and (b.scores['x'] == s.scores['x']).all()
    assert (b.class_name, b.rule, b.generator, b.seed, b.trained_on, b.split_hash) == (s.class_name, s.rule, s.generator, s.seed, s.trained_on, s.split_hash)
    t = pd.read_parquet(folder/'lineage.parquet')
    assert t.synthetic.all() and set(t.generator) == {pool.generator} and [(folder/f).is_file() for f in t.file] == [True]*9
    c = json.loads((folder/'card.json').read_text())
    assert c['audit']['verdict'] == 'PASS' and c['n'] == 9 and 'rand-conv' in (folder/'card.md').read_text() and 'private' not in (folder/'card.md').read_text().lower().replace('## privacy', '')


def test_an_exported_set_is_data_for_nobody_elses_test_part(tmp_path, pool):
    "F43: read as a folder of images it would look real; its card says that it is not."
    folder = export_set(at_random(9)(pool), tmp_path/'set', PASS)
    from gansynth.sources import open_source
    assert open_source(str(folder))[0].source.get('synthetic') is True
    with pytest.raises(UserError, match='never a validation or test part'): split(load(str(folder), 32))


@pytest.mark.parametrize('audit', [None, dict(verdict='FAIL', words='3 near copies.'), dict(verdict='not auditable')])
def test_a_failed_audit_stops_the_export(tmp_path, pool, audit):
    with pytest.raises(UserError, match='these images are not written.*--allow-failed-audit'): export_set(pool, tmp_path/'set', audit)
    assert not (tmp_path/'set').exists()
    export_set(pool, tmp_path/'set', audit, allow_failed_audit=True)
    assert (tmp_path/'set'/'card.md').read_text().split('\n')[2].startswith('> **Warning: the privacy audit of this set says:')


def test_nothing_is_overwritten(tmp_path, pool):
    export_set(at_random(3)(pool), tmp_path/'set', PASS)
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match='holds a set already'): export_set(at_random(4)(pool), tmp_path/'set', PASS)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize('harm, says', [('image', '1 images were changed'), ('table', 'lineage.parquet was changed'), ('card', 'no card of a synthetic set'), ('no card', 'no such file')])
def test_changed_sets_are_refused(tmp_path, pool, harm, says):
    folder = export_set(at_random(3)(pool), tmp_path/'set', PASS)
    if harm == 'image':
        f = next(folder.rglob('*.png')); Image.fromarray(255-np.asarray(Image.open(f))).save(f)
    if harm == 'table': pd.read_parquet(folder/'lineage.parquet').assign(synthetic=False).to_parquet(folder/'lineage.parquet')
    if harm == 'card': (folder/'card.json').write_text('{}')
    if harm == 'no card': (folder/'card.json').unlink()
    with pytest.raises(UserError, match=says): load_set(folder)


# --- from a finished run, by the command line ---------------------------------------------------------------------------
def test_audit_and_export_of_a_run(smoke_run, tmp_path):
    runs, run = smoke_run
    said = json.loads((run/'audit.json').read_text())['audit']
    assert said['verdict'] in ('PASS', 'FAIL', 'not auditable') and json.loads((run/'done.json').read_text())['audit']['verdict'] == said['verdict']
    done = gansynth('audit', run)
    assert done.returncode == (0 if said['verdict'] == 'PASS' else 1) and done.stdout.startswith(said['verdict']), done.stderr
    done = gansynth('export', run, '--to', tmp_path/'set', '--n', 6)
    if said['verdict'] != 'PASS':
        assert done.returncode == 1 and '--allow-failed-audit' in done.stderr and not (tmp_path/'set').exists()
    done = gansynth('export', run, '--to', tmp_path/'set2', '--n', 6, '--allow-failed-audit')
    assert done.returncode == 0, done.stderr
    s = load_set(tmp_path/'set2')
    assert len(s) == 6 and s.generator == json.loads((run/'done.json').read_text())['generator']
    done = gansynth('data', 'split', tmp_path/'set2', '--size', 32)
    assert done.returncode == 1 and 'never a validation or test part' in done.stderr


def test_audit_refuses_changed_data(smoke_run, tmp_path):
    runs, run = smoke_run
    other = shutil.copytree(run, tmp_path/'run')
    record = json.loads((other/'run.json').read_text())
    record['parameters']['data'] = 'phantom:n_patients=61'
    (other/'run.json').write_text(json.dumps(record))
    done = gansynth('audit', other)
    assert done.returncode == 1 and 'the data have changed since this run' in done.stderr
    done = gansynth('audit', tmp_path)
    assert done.returncode == 1 and 'no such file' in done.stderr and 'Traceback' not in done.stderr


@pytest.mark.parametrize('copies', [0, 20])
def test_a_replaying_generator_fails_the_examination(pool, parts, copies):
    train = parts.train.positives
    s = replace(pool, images=np.concatenate([pool.images[copies:], train.images[:copies, ::1, ::-1]]))
    found = examine(s, train, parts.valid.positives, parts.train.take(parts.train.labels == 0))
    assert (found['audit']['verdict'] == 'FAIL') == (copies > 0) and found['audit']['near_copies'] == copies
