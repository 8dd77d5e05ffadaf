"Synthetic sets: drawn by seed, chosen by rules, written with papers that can be checked."
import json, shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import select_images
from conftest import command, snapshot
from PIL import Image

from gansynth import synthesis
from gansynth.calibration import contrasts
from gansynth.classifier_training import predict
from gansynth.core import UserError, load_json, save_json
from gansynth.data import load, split
from gansynth.evaluation import auroc
from gansynth.gan_training import train_gan
from gansynth.privacy import digests, thirds
from gansynth.regimes import make_arm
from gansynth.synthesis import Synthetic, at_least, at_random, audit_in_short, compose, diverse, examine, export_set, load_set, near_copies, no_near_copies, realism, synthesise, top

PASS = dict(verdict='PASS', words='No memorisation detected at this power.')


@pytest.fixture(scope='module')
def parts(): return split(load('phantom:n_patients=60', size=32))


@pytest.fixture(scope='module')
def pool(parts):
    return synthesise(train_gan(parts.train.positives, 8, bs=8, precision='float32', split_hash=parts.manifest['hash']), 50, seed=3)


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


def test_realism_equals_the_paper_written_out():
    real, s, k = made(30, 1).images, made(12, 2), 3
    f, g = pixels(real), pixels(s.images)
    d = np.linalg.norm(f[:, None]-f, axis=2)
    radius = np.array([sorted(row)[k] for row in d])        # the 0-th is the image itself
    keep = radius <= np.median(radius)
    want = [max(radius[i]/np.linalg.norm(x-f[i]) for i in np.flatnonzero(keep)) for x in g]
    assert np.allclose(realism(pixels, real, k)(s).scores['realism'], want)
    with pytest.raises(UserError, match='more than 3 real images'): realism(pixels, real[:3])(s)


def test_realism_of_a_copy_stands_out_in_single_precision():
    "Features far from the origin: the distance of a copy is 0, not what rounding leaves of two large squares."
    rng = np.random.default_rng(0)
    real = rng.integers(0, 256, (20, 4, 4), 'uint8')
    far = lambda x: (pixels(x)/255+1e4).astype('float32')
    s = realism(far, real)(replace(made(10), images=np.concatenate([real[:8], rng.integers(0, 256, (2, 4, 4), 'uint8')])))
    assert (s.scores['realism'][:8] > 1e6).any() and (s.scores['realism'][8:] < 100).all()


def test_diverse_is_greedy_k_centre():
    s = made(25)
    f, chosen = pixels(s.images), []
    chosen.append(int(np.argmin(((f-f.mean(0))**2).sum(1))))
    while len(chosen) < 6: chosen.append(max(range(25), key=lambda i: min(np.linalg.norm(f[i]-f[j]) for j in chosen)))
    assert diverse(6, pixels)(s).ids.tolist() == [s.ids[i] for i in sorted(chosen)]
    assert len(diverse(99, pixels)(s)) == 25


def test_no_rule_takes_an_image_twice():
    "Not even from a collapsed generator, which drew three pictures again and again."
    s = made(30).scored('a', np.zeros(30))
    s = replace(s, images=s.images[np.arange(30) % 3])
    for rule in (diverse(12, pixels), top(12, 'a'), at_random(12)): assert len(set(rule(s).ids)) == 12
    assert len({x.tobytes() for x in diverse(3, pixels)(s).images}) == 3


def test_near_copies_of_training_images_are_dropped(parts):
    train = parts.train.positives.images
    changed = [train[9], train[8][:, ::-1], np.clip(train[7]*.95+5, 0, 255).astype('uint8'), np.asarray(Image.fromarray(train[6]).resize((24, 24)).resize((32, 32)))]
    fresh = np.random.default_rng(0).integers(0, 256, (5, 32, 32), 'uint8')
    s = replace(made(9), images=np.stack([*changed, *fresh]))
    assert no_near_copies(train)(s).ids.tolist() == s.ids[4:].tolist() and near_copies(s, train).tolist() == [0, 1, 2, 3]
    assert len(no_near_copies(train)(s.take([], 'none'))) == 0


def test_written_and_read(tmp_path, pool):
    s = at_random(9)(pool.scored('x', np.linspace(0, 1, 50)))
    folder = export_set(s, tmp_path/'set', PASS, {'KID[rand-conv-s0]': .01}, dict(kind='phantom', name='phantom'))
    b = load_set(folder)
    assert (b.images == s.images).all() and (b.ids == s.ids).all() and (b.scores['x'] == s.scores['x']).all()
    assert (b.class_name, b.rule, b.generator, b.seed, b.trained_on, b.split_hash) == (s.class_name, s.rule, s.generator, s.seed, s.trained_on, s.split_hash)
    t = pd.read_parquet(folder/'lineage.parquet')
    assert t.synthetic.all() and set(t.generator) == {pool.generator} and [(folder/f).is_file() for f in t.file] == [True]*9
    c = json.loads((folder/'card.json').read_text())
    assert c['audit']['verdict'] == 'PASS' and c['n'] == 9 and 'rand-conv' in (folder/'README.md').read_text() and 'private' not in (folder/'README.md').read_text().lower().replace('## privacy', '')


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
    assert (tmp_path/'set'/'README.md').read_text().split('\n---\n')[1].split('\n')[2].startswith('> **Warning: the privacy audit says:')


def test_nothing_is_overwritten(tmp_path, pool):
    export_set(at_random(3)(pool), tmp_path/'set', PASS)
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match='holds a set already'): export_set(at_random(4)(pool), tmp_path/'set', PASS)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize('harm, says', [('image', '1 images were changed'), ('table', 'lineage.parquet was changed'), ('card', 'no card of a synthetic set'), ('no card', 'no such file'),
                                        ('class', 'card.json says class .another.'), ('seed', 'another generator or seed'), ('lost', '1 images are missing')])
def test_changed_sets_are_refused(tmp_path, pool, harm, says):
    folder = export_set(at_random(3)(pool), tmp_path/'set', PASS)
    if harm == 'image':
        f = next(folder.rglob('*.png')); Image.fromarray(255-np.asarray(Image.open(f))).save(f)
    if harm == 'table': pd.read_parquet(folder/'lineage.parquet').assign(synthetic=False).to_parquet(folder/'lineage.parquet')
    if harm == 'card': (folder/'card.json').write_text('{}')
    if harm == 'no card': (folder/'card.json').unlink()
    if harm in ('class', 'seed'): save_json(load_json(folder/'card.json') | ({'class_name': 'another'} if harm == 'class' else {'seed': 99}), folder/'card.json')
    if harm == 'lost': next(folder.rglob('*.png')).unlink()
    with pytest.raises(UserError, match=says): load_set(folder)


# --- from a finished run, by the command line ---------------------------------------------------------------------------
def test_audit_and_export_of_a_run(smoke_run, tmp_path):
    runs, run = smoke_run
    said = json.loads((run/'audit.json').read_text())['audit']
    assert said['verdict'] in ('PASS', 'FAIL', 'not auditable') and json.loads((run/'done.json').read_text())['audit']['verdict'] == said['verdict']
    done = command('audit', run)
    assert done.returncode == (0 if said['verdict'] == 'PASS' else 1), done.stderr
    images, weights = done.stdout.splitlines()
    assert images == f"images: {said['verdict']} - {said['words']}" and weights == 'weights: {verdict} - {words}'.format(**said['weights'])
    done = command('export', run, '--to', tmp_path/'set', '--n', 6)
    if said['verdict'] != 'PASS':
        assert done.returncode == 1 and '--allow-failed-audit' in done.stderr and not (tmp_path/'set').exists()
    done = command('export', run, '--to', tmp_path/'set2', '--n', 6, '--allow-failed-audit')
    assert done.returncode == 0, done.stderr
    s = load_set(tmp_path/'set2')
    assert len(s) == 6 and s.generator == json.loads((run/'done.json').read_text())['generator']
    done = command('data', 'split', tmp_path/'set2', '--size', 32)
    assert done.returncode == 1 and 'never a validation or test part' in done.stderr


def test_runs_of_other_studies_are_told_where_their_audit_is(smoke_run, tmp_path):
    for f in ('run.json', 'generator.safetensors'): shutil.copy(smoke_run[1]/f, tmp_path/f.replace('generator.', 'generator_0.'))
    for args in (('audit', tmp_path), ('export', tmp_path, '--to', tmp_path/'set')):
        done = command(*args)
        assert done.returncode == 1 and 'generator_0.safetensors' in done.stderr and 'audit.json' in done.stderr


def test_audit_refuses_changed_data(smoke_run, tmp_path):
    runs, run = smoke_run
    other = shutil.copytree(run, tmp_path/'run')
    record = json.loads((other/'run.json').read_text())
    record['parameters']['data'] = 'phantom:n_patients=61'
    (other/'run.json').write_text(json.dumps(record))
    done = command('audit', other)
    assert done.returncode == 1 and 'the data have changed since this run' in done.stderr
    done = command('audit', tmp_path)
    assert done.returncode == 1 and 'no such file' in done.stderr and 'Traceback' not in done.stderr


@pytest.mark.parametrize('copies', [0, 20])
def test_a_replaying_generator_fails_the_examination(pool, parts, copies):
    train = parts.train.positives
    s = replace(pool, images=np.concatenate([pool.images[copies:], train.images[:copies, ::1, ::-1]]))
    found = examine(s, train, parts.valid.positives, parts.train.take(parts.train.labels == 0))
    assert (found['audit']['verdict'] == 'FAIL') == (copies > 0) and found['audit']['near_copies'] == copies


def test_a_guilty_discriminator_does_not_close_the_export(tmp_path, monkeypatch):
    "The scores of the discriminator tell all members apart, the images are those of other people."
    data = load('phantom:n_patients=360,prevalence=.5,seed=1', 32)
    sick, healthy = data.positives, data.take(data.labels == 0)
    t, h, rest = thirds(sick.patients, 1)
    train, holdout, fresh = (sick.take(i) for i in (t, h, rest))
    assert not set(healthy.patients) & set(sick.patients) and min(len(set(d.patients)) for d in (train, holdout)) >= 40
    s = Synthetic(fresh.images, 'pneumonia', tuple(train.ids), 'g'*64, 0, np.array([f'0-{i:06}' for i in range(len(fresh))]))
    known = set(digests(train.images))
    monkeypatch.setattr(synthesis, 'logits', lambda gan, images, name: np.array([float(d in known) for d in digests(images)])+np.linspace(0, .1, len(images)))
    found = examine(s.take(slice(len(train)), 'as many'), train, holdout, healthy, gan=SimpleNamespace(discriminator='here'))['audit']
    assert found['weights']['verdict'] == 'FAIL' and found['verdict'] == 'PASS', found['words']
    assert audit_in_short(found) == {k: found[k] for k in ('verdict', 'words', 'weights')}
    folder = export_set(s, tmp_path/'set', found)
    assert 'Warning' not in (folder/'README.md').read_text() and len(load_set(folder)) == len(s)
    copies = replace(s, images=np.concatenate([train.images[:5], s.images[5:]]))
    assert examine(copies, train, holdout, healthy)['audit'].items() >= dict(verdict='FAIL', weights=dict(verdict='not audited', words='no discriminator was attacked')).items()


# --- the experiment of tests/select_images.py ---------------------------------------------------------------------------
SMALL = dict(steps=90, batch=32, epochs=3, lr=2e-3)


@pytest.fixture(scope='module')
def experiment():
    "Split with few positives, further positives, and a scored pool in which every second image is a fresh positive phantom and the others are fresh healthy ones under a false name."
    (few, spare), fresh = select_images.few(load('phantom:n_patients=150,seed=4', 32), imbalance_ratio=5, fraction=.5), load('phantom:n_patients=400,seed=5', 32)
    k = min(120, int(fresh.labels.sum()))
    images, true = np.stack([fresh.images[fresh.labels == 1][:k], fresh.images[fresh.labels == 0][:k]], 1).reshape(-1, 32, 32), np.tile([1, 0], k)
    s = Synthetic(images, 'pneumonia', tuple(few.train.positives.ids), 'g'*64, 0, np.array([f'0-{i:06}' for i in range(2*k)]))
    return few, spare, s.scored('agreement', np.linspace(0, 1, 2*k)).scored('realism', np.zeros(2*k)).scored('discriminator', np.arange(2*k) % 7).scored('oracle', true)


def test_arms_differ_in_the_added_images_only(experiment):
    few, spare, pool = experiment
    made = select_images.arms(few.train, spare, pool, 20, 3, pixels)
    assert list(made) == ['random', *select_images.RULES, *select_images.SCALE]
    for name, (t, s) in made.items():
        n = 0 if name == 'raw' else 20
        assert len(t.labels) == len(few.train)+n and (t.images[:len(few.train)] == few.train.images).all() and (t.labels[len(few.train):] == 1).all() and (s is None or len(set(s.ids)) == n), name
    seen = {x.tobytes() for x in few.train.images}
    real = {k: [x.tobytes() in seen for x in made[k][0].images[len(few.train):]] for k in ('duplicates', 'more real')}
    assert all(real['duplicates']) and not any(real['more real']) and not set(spare.patients) & {*few.train.patients, *few.valid.patients, *few.table.patient[few.table.part == 'test']}
    again = select_images.arms(few.train, spare, pool, 20, 4, pixels)
    same = {k: made[k][1].ids.tolist() == again[k][1].ids.tolist() for k in ('random', 'discriminator', 'diverse')}
    assert same == dict(random=False, discriminator=True, diverse=True)     # the luck of one draw is not the opponent


def test_every_classifier_makes_the_same_steps_and_keeps_its_best_epoch(experiment):
    few, spare, pool = experiment
    made, found = select_images.arms(few.train, spare, pool, 20, 3, pixels), []
    for name in ('raw', 'diverse'):
        net, value, steps = select_images.train_classifier(made[name][0], few.valid, 1, **SMALL)
        assert steps == SMALL['steps'] and abs(auroc(few.valid.labels, predict(net, few.valid.images))-value) < 1e-9
        found.append(value)
    assert select_images.train_classifier(made['raw'][0], few.valid, 1, **SMALL)[1] == found[0]     # the seed decides all


def test_foreign_descent_is_refused(experiment):
    few, spare, pool = experiment
    with pytest.raises(UserError, match='outside this training part'): select_images.arms(few.train, spare, replace(pool, trained_on=tuple(spare.ids)), 20, 3, pixels)


@pytest.mark.slow
def test_a_planted_oracle_beats_the_random_choice(experiment):
    "And a rule that is the random choice is equivalent to it; both with the intervals and verdicts of the script."
    few, spare, pool = experiment
    n, rows, test = 60, [], load('phantom:n_patients=300,seed=6', 32)
    for seed in range(5):
        rules = dict(random=at_random(n, seed), oracle=top(n, 'oracle'), same=at_random(n, seed))
        for arm, rule in rules.items():
            net, _, _ = select_images.train_classifier(make_arm('gan_aug', few.train, [rule(pool)]).stages[0], few.valid, seed, **SMALL)
            rows.append(pd.DataFrame(dict(image_id=test.ids, patient_id=test.patients, label=test.labels, probability=predict(net, test.images), arm=arm, seed=seed)))
    preds, gan_of = pd.concat(rows), {s: s//2 for s in range(5)}
    words = contrasts(preds, 'random', B=300, gan_of=gan_of).set_index('arm').word.to_dict()
    assert words == dict(oracle='helps', same='equivalent')
    level = select_images.levels(preds, gan_of, 300).set_index('arm')
    assert level.auroc['constant'] == .5 and level.auroc['oracle'] > level.auroc['random'] and (level.auroc_low < level.auroc)[1:].all()


def test_the_script_goes_on_where_it_stopped_and_opens_the_test_part_once(experiment, tmp_path, monkeypatch):
    few, spare, _ = experiment
    tiny = dict(pool=30, chosen=5, gan=dict(steps=1, batch=4), classifier=dict(steps=2, batch=8, epochs=1, lr=2e-3), gans=1, classifiers=1, resamples=50)
    monkeypatch.setattr(select_images, 'DESIGN', select_images.DESIGN | tiny)
    assert not select_images.train_all(few, spare, tmp_path, 0) and select_images.train_all(few, spare, tmp_path, np.inf)
    (tmp_path/'diverse 0.json').unlink()
    with open(tmp_path/'raw 0.json', 'a') as f: f.write(' ')     # trained again, it would be written again
    before = snapshot(tmp_path)
    assert select_images.train_all(few, spare, tmp_path, np.inf)
    after = snapshot(tmp_path)
    assert set(after)-set(before) == {'diverse 0.json'} and all(after[k] == v for k, v in before.items()) and few.test.reads == 0
    tables = [select_images.write(few, spare, tmp_path, tmp_path/'out', 'Phantom') for _ in range(2)]
    assert few.test.reads == 1 and tables[0].equals(tables[1])
    t = tables[0].set_index('arm')
    assert set(t.index) == {'constant', 'random', *select_images.RULES, *select_images.SCALE} and t.family.value_counts().to_dict() == dict(rule=6, scale=3) and (t.n_added.drop(['constant', 'raw']) == 5).all()
