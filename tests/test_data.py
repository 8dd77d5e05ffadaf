"Splits, lineage and the sealed test part, with the faults that a person can make."
import hashlib, subprocess, sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import SHARED, gansynth, image_folder, medmnist_arrays, needs_real_data
from PIL import Image

from gansynth.core import UserError
from gansynth.data import SealedError, fraction_of, index_batches, join_duplicates, load, near_across, official_parts, rebalance, split, split_parts
from gansynth.phantom import phantom


def no_overlap(s):
    for column in ('patient', 'hash'): assert s.table.groupby(column).part.nunique().max() == 1, column


@pytest.mark.parametrize('seed', range(5))
def test_f42_no_patient_in_two_splits(seed):
    d = load(f'phantom:n_patients=80,seed={seed}', size=28)
    s = split(d, seed=seed, imbalance_ratio=5.)
    no_overlap(s)
    counts = s.manifest['counts']
    assert all(n['images'] for part in counts.values() for n in part.values())
    by_image = replace(d, patients=d.ids)     # the ablation: without patients the same check fails
    t = split(by_image, seed=seed).table.merge(pd.DataFrame({'id': d.ids, 'person': d.patients}))
    assert t.groupby('person').part.nunique().max() > 1


def test_f40_identical_images_stay_together():
    d = load('phantom:n_patients=60', size=28)
    images, hashes = d.images.copy(), d.hashes.copy()
    a, b = np.flatnonzero(d.labels == 0)[[0, -1]]
    images[b], hashes[b] = images[a], hashes[a]
    for seed in range(6): no_overlap(split(replace(d, images=images, hashes=hashes), seed=seed))
    assert len(set(join_duplicates(d.patients, hashes))) == len(set(d.patients))-1


def test_f38_one_picture_with_two_labels():
    d = load('phantom:n_patients=60', size=28)
    hashes = d.hashes.copy()
    a, b = np.flatnonzero(d.labels == 0)[0], np.flatnonzero(d.labels == 1)[0]
    hashes[b] = hashes[a]
    with pytest.raises(UserError, match=f'carry both labels.*{d.ids[a]}') as e: split(replace(d, hashes=hashes))
    assert d.ids[b] in str(e.value)


def test_split_is_by_hash_alone():
    "An independent reading of the rule, in plain Python, gives the same parts."
    d = load('phantom:n_patients=70', size=28)
    s = split(d, seed=3)
    want = {}
    kinds = {p: frozenset(d.labels[d.patients == p].tolist()) for p in set(d.patients)}
    for kind in set(kinds.values()):
        who = sorted((p for p in kinds if kinds[p] == kind), key=lambda p: hashlib.sha256(f'3:{p}'.encode()).digest())
        n = max(1, round(.1*len(who))) if len(who) > 2 else 0
        want |= {p: 'test' if i < n else 'valid' if i < 2*n else 'train' for i, p in enumerate(who)}
    assert dict(zip(s.table.patient, s.table.part)) == want


def test_rebalance_either_way():
    d = load('phantom:n_patients=200,prevalence=0.6', size=28)
    for data in (d, replace(d, labels=1-d.labels)):
        out = rebalance(data, 5.)
        n = np.bincount(out.labels)
        assert 4 < n[0]/n[1] < 6.5
        for p in set(out.patients):     # a patient's images of a class leave together
            for y in (0, 1):
                kept = ((out.patients == p) & (out.labels == y)).sum()
                assert kept in (0, ((data.patients == p) & (data.labels == y)).sum())


def test_test_part_is_left_as_it_is():
    d = load('phantom:n_patients=90', size=28)
    a, b = split(d), split(d, imbalance_ratio=20.)
    assert a.manifest['counts']['test'] == b.manifest['counts']['test'] and a.manifest['counts']['train'] != b.manifest['counts']['train']


def test_f65_test_part_is_sealed(tmp_path):
    s = split(load('phantom:n_patients=60', size=28), log=tmp_path/'reads.jsonl')
    for name in ('labels', 'images', 'patients', 'ids', 'positives', 'take'):
        with pytest.raises(SealedError, match='sealed'): getattr(s.test, name)
    assert 'label' not in s.table
    assert not (tmp_path/'reads.jsonl').exists()
    s.test.open('final evaluation')
    with pytest.warns(UserWarning, match='read 2 times'): s.test.open('again')
    assert (tmp_path/'reads.jsonl').read_text().count('\n') == 2


@pytest.mark.parametrize('edit, says', [
    (lambda a: a.pop('train_labels'), 'lacks train_labels'),
    (lambda a: a.update(train_labels=a['train_labels'][:5]), r'train_labels is uint8 \(5, 1\)'),
    (lambda a: a.update(val_images=a['val_images'].astype(float)), 'val_images is float64'),
    (lambda a: a.update(test_images=a['test_images'][:, :, 0]), 'test_images is uint8'),
    (lambda a: a.update(test_labels=a['test_labels']+7), 'labels up to 8, but 2 class names')])
def test_f55_npz_of_wrong_form(tmp_path, edit, says):
    a = medmnist_arrays()
    edit(a)
    np.savez(tmp_path/'pneumoniamnist.npz', **a)
    with pytest.raises(UserError, match=says): load(tmp_path/'pneumoniamnist.npz', size=28)


def test_f55_flat_labels_are_fine(tmp_path):
    a = medmnist_arrays()
    np.savez(tmp_path/'pneumoniamnist.npz', **a | {k: v.reshape(-1) for k, v in a.items() if 'labels' in k})
    assert len(load(tmp_path/'pneumoniamnist.npz', size=28)) == 84


def test_f54_object_array_is_not_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self): return open, (str(tmp_path/'marker'), 'w')
    np.savez(tmp_path/'a.npz', **medmnist_arrays() | {'train_labels': np.array([Bomb()]*60, dtype=object)})
    with pytest.raises(UserError, match='without unpickling'): load(tmp_path/'a.npz', size=28)
    np.savez(tmp_path/'b.npz', **medmnist_arrays(), extra=np.array([Bomb()], dtype=object))      # a member that nobody would read
    with pytest.raises(UserError, match='extra.npy holds objects'): load(tmp_path/'b.npz', size=28)
    assert not (tmp_path/'marker').exists()
    np.load(tmp_path/'a.npz', allow_pickle=bool(1))['train_labels']     # the ablation: it would have run
    assert (tmp_path/'marker').exists()


@pytest.mark.parametrize('content', [b'', b'<html>', b'PK\x03\x04 broken'])
def test_f05_not_an_npz(tmp_path, content):
    (tmp_path/'a.npz').write_bytes(content)
    with pytest.raises(UserError, match='a.npz cannot be read'): load(tmp_path/'a.npz', size=28)


def patient_table(path, text):
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_f37_patient_ids_are_text(tmp_path):
    image_folder(tmp_path/'f', a=3, b=3)
    who = patient_table(tmp_path/'p.csv', '\ufefffile,patient_id\na/0.png,001\na/1.png,1\na/2.png,NA\nb/0.png,None\nb/1.png,1.0\nb/2.png,\n')
    d = load(tmp_path/'f', size=28, patients=who, positive='a')
    assert d.patients.tolist() == ['001', '1', 'NA', 'None', '1.0']
    assert d.source['notes'] == ['1 of 6 images left out: their patient is unknown.']


@pytest.mark.parametrize('text, says', [
    ('file;patient_id\na/0.png;1\n', 'lacks the column file'), ('file,name\na/0.png,x\n', 'lacks the column patient_id or patient'),
    ('file,patient_id\na/0.png,1\na/0.png,2\n', 'has two patients'), ('file,patient_id\nq.png,1\n', 'names no patient for any image'),
    ('file,patient_id\n'.encode('utf-16'), 'is not UTF-8')])
def test_f34_patient_table_of_wrong_form(tmp_path, text, says):
    image_folder(tmp_path/'f', a=3, b=3)
    with pytest.raises(UserError, match=says): load(tmp_path/'f', size=28, patients=patient_table(tmp_path/'p.csv', text))


@pytest.mark.parametrize('classes, says', [(dict(a=9), 'one class only'), (dict(a=9, b=1), "too few patients with class 'b'"), (dict(a=4, b=4, c=4), 'found 3 classes')])
def test_f45_class_that_cannot_be_split(tmp_path, classes, says):
    with pytest.raises(UserError, match=says): split(load(image_folder(tmp_path/'f', **classes), size=28))


def test_three_classes_with_a_word(tmp_path):
    d = load(image_folder(tmp_path/'f', a=4, b=4, c=4), size=28, positive='b')
    assert d.classes == ('no b', 'b') and d.labels.sum() == 4


@pytest.mark.parametrize('suffix', ['png', 'jpg'])
def test_f49_truncated_image(tmp_path, suffix):
    folder = image_folder(tmp_path/'f', a=4, b=4)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), 'uint8')).save(folder/'a'/f'x.{suffix}')
    whole = (folder/'a'/f'x.{suffix}').read_bytes()
    (folder/'a'/f'x.{suffix}').write_bytes(whole[:len(whole)//2])
    (folder/'b'/'empty.png').touch()                                       # F50
    with pytest.raises(UserError, match='2 of 10 images cannot be used') as e: load(folder, size=28)
    assert f'x.{suffix}' in str(e.value) and 'empty.png' in str(e.value)


def test_f62_odd_file_names(tmp_path):
    folder = image_folder(tmp_path/'my images', a=4, b=4)
    for i, name in enumerate(('-rf.png', 'Röntgen 日本.png', 'x'*120+'.png', 'a,b;c.png')): (folder/'a'/f'{i}.png').rename(folder/'a'/name)
    assert len(load(folder, size=28)) == 8


def test_phantom_is_the_same_in_another_process():
    code = "import hashlib; from gansynth.phantom import phantom; print(hashlib.sha256(phantom(n_patients=9, size=40, seed=5)['images'].tobytes()).hexdigest())"
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env={'NPY_DISABLE_CPU_FEATURES': 'AVX2 FMA3 AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL', 'OMP_NUM_THREADS': '1'})
    assert out.stdout.strip() == hashlib.sha256(phantom(n_patients=9, size=40, seed=5)['images'].tobytes()).hexdigest(), out.stderr


def test_f63_batches_are_a_function_of_seed_and_number():
    def first(n, **k):
        s = index_batches(50, 7, **k)
        return np.concatenate([next(s) for _ in range(n)])
    assert (first(30, seed=1) == first(30, seed=1)).all() and (first(30, seed=1) != first(30, seed=2)).any()
    assert (first(30, seed=1)[7*11:] == first(19, seed=1, start=11)).all()
    assert (np.bincount(first(50, seed=1)) == 7).all()


@needs_real_data
def test_pneumoniamnist_by_patient():
    folder = SHARED/'pneumoniamnist'
    d = load(folder/'pneumoniamnist.npz', patients=folder/'pneumoniamnist_patient_map.csv')
    s = split(d, imbalance_ratio=5.)
    no_overlap(s)
    assert d.classes == ('normal', 'pneumonia') and len(d) == 4681+523+556
    train = s.manifest['counts']['train']
    assert 4.5 < train['normal']['images']/train['pneumonia']['images'] < 5.5
    hand = pd.read_csv(folder/'pneumoniamnist_patient_map.csv', dtype=str, keep_default_na=False)
    who = {f'{r.split}-{r.index}': r.group_id for r in hand.rename(columns={'index': 'i'}).assign(index=hand['index']).itertuples(index=False)}
    people = pd.DataFrame({'person': [who[i] for i in s.table.id], 'part': s.table.part})
    assert people.groupby('person').part.nunique().max() == 1


@needs_real_data
def test_official_validation_part_leaks():
    "Why the division of the file is not kept: persons of its training part are in its validation part."
    t = pd.read_csv(SHARED/'pneumoniamnist'/'pneumoniamnist_patient_map.csv', dtype=str, keep_default_na=False)
    t = t[t.group_id != '']
    assert len(set(t.group_id[t.split == 'train'])&set(t.group_id[t.split == 'val'])) > 100


# --- official parts, fractions, near duplicates --------------------------------------------------------------------------
@pytest.fixture
def given():
    "A set with a division of its own, by patient."
    d = load('phantom:n_patients=90', size=32)
    return replace(d, parts=split_parts(d.patients, d.labels, seed=7))


def test_official_parts_are_kept(given):
    s = split(given, official=True)
    assert dict(zip(s.table.id, s.table.part)) == dict(zip(given.ids, given.parts)) and s.manifest['official']
    two = replace(given, parts=np.where(given.parts == 'valid', 'train', given.parts))       # no validation part: some of train becomes one
    t = split(two, official=True).table
    assert set(t.part) == {'train', 'valid', 'test'} and (t.part[t.id.isin(given.ids[given.parts == 'test'])] == 'test').all() and t.groupby('patient').part.nunique().max() == 1


def test_f42_official_parts_that_share_patients(given):
    parts = given.parts.copy()
    many = [p for p, n in zip(*np.unique(given.patients, return_counts=True)) if n > 1][:12]
    for p in many: parts[np.flatnonzero(given.patients == p)[:2]] = ['train', 'test']
    with pytest.raises(UserError, match='12 patients stand in two official parts: .* and 2 more') as e: split(replace(given, parts=parts), official=True)
    assert sorted(many)[0] in str(e.value)


def test_f40_identical_pictures_in_two_official_parts(given):
    a, b = (np.flatnonzero((given.parts == p) & (given.labels == 0))[0] for p in ('train', 'test'))
    hashes = given.hashes.copy(); hashes[b] = hashes[a]
    with pytest.raises(UserError, match='one picture stands in two official parts') as e: split(replace(given, hashes=hashes), official=True)
    assert given.ids[a] in str(e.value) and given.ids[b] in str(e.value)


def test_no_official_parts():
    with pytest.raises(UserError, match='came without a division'): split(load('phantom:n_patients=60', size=28), official=True)


def test_f43_synthetic_images_are_no_data_to_split(given):
    with pytest.raises(UserError, match='x is synthetic: it may join a training part'): split(replace(given, source=dict(name='x', synthetic=True)))


@pytest.mark.parametrize('change, flipped', [(lambda x: x[:, ::-1], True), (lambda x: np.asarray(Image.fromarray(x).resize((20, 20)).resize((32, 32))), False),
                                             (lambda x: np.clip(x.astype(int)+6, 0, 255).astype('uint8'), False)], ids=['mirrored', 'resized', 'brighter'])
def test_f41_near_duplicates_across_parts(given, change, flipped):
    a = np.flatnonzero(given.parts == 'train')[0]
    twin = given.take(np.r_[np.arange(len(given)), a])
    images = np.array(twin.images); images[-1] = change(images[-1])
    last = lambda old, new: np.r_[old[:-1], [new]]
    twin = replace(twin, images=images, ids=last(twin.ids, 'twin'), patients=last(twin.patients, 'stranger'), hashes=last(twin.hashes, 'other'), parts=last(twin.parts, 'test'))
    found = near_across(twin, twin.parts)
    assert ((found.a == given.ids[a]) & (found.b == 'twin') & (found.mirrored == flipped)).sum() == 1
    plain = split(twin, official=True)
    assert plain.manifest['near_duplicates'] == len(found)                   # reported
    with pytest.raises(UserError, match='pairs of images in different parts look alike, e.g.'): split(twin, official=True, strict=True)
    others = near_across(given, given.parts)
    assert len(others) < len(found)                                          # the twin is what was found


@pytest.mark.parametrize('seed', range(3))
def test_fractions_are_nested_and_stratified(given, seed):
    kept = {}
    for f in (.05, .1, .2, .5, 1.):
        s = split(given, seed=seed, fraction=f, imbalance_ratio=5.)
        assert s.manifest['fraction'] == f and s.manifest['counts']['test'] == split(given, seed=seed).manifest['counts']['test']
        for part in ('train', 'valid'):
            ids = set(s.table.id[s.table.part == part])
            assert kept.get(part, set()) <= ids and all(n['images'] for n in s.manifest['counts'][part].values())
            kept[part] = ids
    half = fraction_of(given, .5, seed)
    assert abs(len(set(half.patients))/len(set(given.patients))-.5) < .05
    for p in set(half.patients): assert (half.patients == p).sum() == (given.patients == p).sum()
    for bad in (0, -1, 1.5):
        with pytest.raises(UserError, match='fraction='): fraction_of(given, bad)


@needs_real_data
def test_pneumoniamnist_as_divided_by_its_makers_is_refused():
    folder = SHARED/'pneumoniamnist'
    d = load(f'medmnist:{folder}', 28)
    with pytest.raises(UserError, match='patients stand in two official parts'): split(d, official=True)
