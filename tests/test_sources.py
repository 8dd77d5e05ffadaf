"Every source on small files made here, and on the real sets where they lie beside the checkout."
import io, zipfile

import numpy as np
import pandas as pd
import pydicom
import pytest
from conftest import SHARED, gansynth, image_folder, medmnist_arrays, needs_real_data
from PIL import Image
from test_decoding import dicom, RAMP

from gansynth.core import UserError
from gansynth.data import load, split
from gansynth.listing import from_csv, from_folder, settle_patients, typos
from gansynth.sources import SOURCES, absolute_spec, find_source, from_covid_ct, from_kermany, from_medmnist, from_nih, nih_boxes, open_source


def pictures(folder, *names):
    for i, n in enumerate(names):
        (folder/n).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng([len(n), i]).integers(0, 256, (24, 24), 'uint8')).save(folder/n)
    return folder


def zipped(folder, path):
    with zipfile.ZipFile(path, 'w') as z:
        for f in sorted(folder.rglob('*')):
            if f.is_file(): z.write(f, f'{folder.name}/{f.relative_to(folder).as_posix()}')
    return path


# --- tables -------------------------------------------------------------------------------------------------------------
ROWS = 'image,label,patient,split\n'+''.join(f'im/{i}.png,{"ill" if i%2 else "well"},{i//2:03},train\n' for i in range(8))


@pytest.fixture
def table(tmp_path):
    pictures(tmp_path, *(f'im/{i}.png' for i in range(8)))
    def write(text=ROWS, encoding='utf-8'):
        (tmp_path/'t.csv').write_bytes(text.encode(encoding))
        return tmp_path/'t.csv'
    return write


def test_csv(table):
    f = from_csv(table())
    assert f.table.patient.tolist() == ['000', '000', '001', '001', '002', '002', '003', '003'] and set(f.table.part) == {'train'} and f.classes == ('ill', 'well')
    d = load(f'csv:{table()},bits=12', 28, positive='ill')
    assert d.labels.tolist() == [0, 1]*4


@pytest.mark.parametrize('text, encoding, options, says', [
    (ROWS.replace('image,', 'picture,'), 'utf-8', {}, r'has no column for the image; found: picture, label, patient, split. Name it with image='),
    (ROWS, 'utf-8', dict(label='dx'), 'lacks the column dx; found: image, label'),
    (ROWS.replace(',', ';'), 'utf-8', {}, 'the separator with sep=;'),
    (ROWS.replace(',', ';'), 'utf-8', dict(image='image'), "lacks the column image; found: image;label;patient;split. It seems to be separated by ';'"),
    (ROWS, 'utf-16', {}, 'not UTF-8')])
def test_f34_table_of_wrong_form(table, text, encoding, options, says):
    with pytest.raises(UserError, match=says): from_csv(table(text, encoding), **options)


def test_f34_bom_and_separator_are_fine(table):
    assert len(from_csv(table(ROWS, 'utf-8-sig'))) == len(from_csv(table(ROWS.replace(',', ';')), sep=';')) == 8


def test_f35_missing_files_with_their_rows(table):
    with pytest.raises(UserError, match=r'the image is missing .*\(im/92.png\) in 2 rows: 4, 7'): from_csv(table(ROWS.replace('im/2.', 'im/92.').replace('im/5.', 'im/95.')))
    many = ROWS+''.join(f'no/{i}.png,ill,{i},train\n' for i in range(50))
    with pytest.raises(UserError, match='in 50 rows: 10, .*29 ...$'): from_csv(table(many))


@pytest.mark.parametrize('wrong, says', [('Ill', r"unknown label 'Ill' \(did you mean 'ill'"), ('ill ', "unknown label 'ill '"), ('', 'the label is empty in 1 row: 3')])
def test_f36_label_slips(table, wrong, says):
    with pytest.raises(UserError, match=says): from_csv(table(ROWS.replace('im/1.png,ill', f'im/1.png,{wrong}')))


def test_f36_rare_slip_is_no_new_class(table):
    assert typos(['Pneumonia']*40+['Pnuemonia', 'normal']) == {'Pnuemonia': 'Pneumonia'}
    assert typos(['Pneumonia']*5+['Pnuemonia']*5) == {} == typos(['normal']*40+['abnormal'])       # not rare; not a slip
    for name in ('NA', 'None', 'nan'):
        f = from_csv(table(ROWS.replace(',well,', f',{name},')))
        assert name in f.classes                       # text, not a missing value
        with pytest.raises(UserError, match=f"unknown label '{name}'.*in 4 rows: 2, 4, 6, 8"): from_csv(table(ROWS.replace(',well,', f',{name},')), classes='ill,well')


def test_f37_patients_are_text_and_never_empty(table):
    assert from_csv(table()).table.patient.tolist()[:3] == ['000', '000', '001']         # numbers only, and still text
    who = from_csv(table(ROWS.replace(',000,', ',1,').replace(',001,', ',01,').replace(',002,', ',1.0,').replace(',003,', ',NA,'))).table.patient
    assert who.tolist() == ['1', '1', '01', '01', '1.0', '1.0', 'NA', 'NA']
    with pytest.raises(UserError, match=r'the patient is empty .*patient=-.* in 2 rows: 4, 5'): from_csv(table(ROWS.replace(',001,', ',,')))
    own = settle_patients(from_csv(table(ROWS.replace(',001,', ',,')), patient='-'))
    assert own.table.patient.is_unique and 'own patient' in own.source['notes'][0]


@pytest.mark.parametrize('label, says', [('ill', r'im/1.png stands in the rows 3, 10; keep one'), ('well', r'im/1.png stands in the rows 3, 10 with different labels \(ill, well\)')])
def test_f38_a_file_in_two_rows(table, label, says):
    with pytest.raises(UserError, match=says): from_csv(table(ROWS+f'im/1.png,{label},9,train\n'))


@pytest.mark.parametrize('path', ['../../etc/passwd', '/etc/passwd', 'im/../../x.png', 'C:\\x.png'])
def test_f39_a_path_that_leads_out(table, path):
    with pytest.raises(UserError, match='leads out of .* in 1 row: 3'): from_csv(table(ROWS.replace('im/1.png', path)))


def test_f39_a_link_that_leads_out(table, tmp_path):
    t = table(ROWS.replace('im/1.png', 'im/link.png'))
    (tmp_path/'im'/'link.png').symlink_to('/etc/passwd')
    with pytest.raises(UserError, match='link that leads out'): from_csv(t)


def test_csv_split_words_and_zip_root(table, tmp_path):
    with pytest.raises(UserError, match='the split is none of train, .* in 8 rows'): from_csv(table(ROWS.replace(',train', ',learn')))
    z = zipped(tmp_path/'im', tmp_path/'im.zip')
    f, o = open_source(f'csv:{table()},root={z}')
    assert len(load(f'csv:{table()},root={z}', 28, positive='ill')) == len(f) == 8


# --- trees --------------------------------------------------------------------------------------------------------------
def test_folder_and_zip_agree(tmp_path):
    f = image_folder(tmp_path/'bones', fractured=5, sound=6)
    a, b = load(f, 28), load(zipped(f, tmp_path/'bones.zip'), 28)
    assert (a.images == b.images).all() and (a.labels == b.labels).all() and (a.hashes == b.hashes).all() and a.classes == ('sound', 'fractured')


def test_parts_of_a_tree(tmp_path):
    t = from_folder(pictures(tmp_path/'x', 'data/Train/a/1.png', 'data/Train/b/deep/2.png', 'data/val/a/3.png', 'data/test/b/4.png')).table
    assert t.part.tolist() == ['train', 'train', 'test', 'valid'] and t.label.tolist() == ['a', 'b', 'b', 'a']
    t = from_folder(pictures(tmp_path/'y', 'train/1.png', 'train/2.png', 'other/3.png')).table      # a class may be called train
    assert set(t.label) == {'train', 'other'} and set(t.part) == {''}


def test_kermany_names(tmp_path):
    names = ('train/PNEUMONIA/person1_bacteria_2.jpeg', 'train/PNEUMONIA/person1_virus_6.jpeg', 'val/NORMAL/NORMAL2-IM-1427-0001.jpeg', 'test/NORMAL/IM-0001-0001.jpeg')
    f = pictures(tmp_path/'chest_xray', *names)
    for root in (f, zipped(f, tmp_path/'k.zip')):
        l = from_kermany(root)
        assert sorted(l.table.patient) == ['IM-0001', 'NORMAL2-IM-1427', 'person1', 'person1'] and set(l.table.part) == {'train', 'valid', 'test'} and set(l.table.label) == {'normal', 'pneumonia'}
        assert find_source(str(root))[0] == 'kermany'
    with pytest.raises(UserError, match='hold no person, e.g. .*x.jpeg'): from_kermany(pictures(f, 'test/NORMAL/x.jpeg'))


@pytest.mark.parametrize('no', ['not fractured', 'not_fractured', 'Not-Fractured'])
def test_fracture(tmp_path, no):
    l, _ = open_source(f'fracture:{pictures(tmp_path, *(f"{p}/{c}/{i}.png" for p in ("train", "val", "test") for c in ("fractured", no) for i in range(2)))}')
    assert l.classes == ('not fractured', 'fractured') and l.table.groupby(['part', 'label']).size().tolist() == [2]*6 and (l.table.patient == '').all()
    with pytest.raises(UserError, match='expected the folders "fractured" and "not fractured", found broken'): open_source(f'fracture:{pictures(tmp_path/"z", "train/broken/1.png")}')


def test_synthetic_images_never_judge(tmp_path):
    "F43: a set that is marked synthetic cannot be divided into parts."
    f = pictures(tmp_path/'s', *(f'G_NC/{i}.png' for i in range(9)))
    d = load(f'synthetic_cxr:{f}', 28)
    assert d.source['synthetic'] and len(d) == 9 and d.labels.all()
    with pytest.raises(UserError, match='never a validation or test part'): split(d)


# --- COVID-CT, NIH, MedMNIST --------------------------------------------------------------------------------------------
@pytest.fixture
def covid(tmp_path):
    pictures(tmp_path/'c', 'Images/CT_COVID/a%1.png', 'Images/CT_COVID/b.png', 'Images/CT_NonCOVID/0.jpg')
    (tmp_path/'c'/'COVID-CT-MetaInfo.csv').write_text('File name,Patient ID\na_1.png,Patient 1\nb.png,Patient 2\n')
    (tmp_path/'c'/'NonCOVID-CT-MetaInfo.csv').write_text(',image name,patient id\n0,0.jpg,crawled_patient_0\n')
    for c, names in (('COVID', ('a%1.png', 'b.png', '')), ('NonCOVID', ('', '', '0.jpg'))):
        (tmp_path/'c'/'Data-split'/c).mkdir(parents=True)
        for p, n in zip(('train', 'val', 'test'), names): (tmp_path/'c'/'Data-split'/c/f'{p}CT_{c}.txt').write_text(n+'\n'*bool(n))
    return tmp_path/'c'


def test_covid_ct(covid):
    t = from_covid_ct(covid).table
    assert t[['label', 'patient', 'part']].values.tolist() == [['COVID', 'Patient 1', 'train'], ['COVID', 'Patient 2', 'valid'], ['NonCOVID', 'crawled_patient_0', 'test']]
    assert find_source(str(covid))[0] == 'covid_ct'
    (covid/'Images'/'CT_COVID'/'b.png').unlink()
    with pytest.raises(UserError, match='the split lists name 1 images that are not in Images/CT_COVID, e.g. b.png'): from_covid_ct(covid)


HEAD = 'Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,OriginalImage[Width,Height]'


@pytest.mark.parametrize('name, rows', [('Data_Entry_2017.csv', ',\n00000001_000.png,Mass|Pneumonia,000,00000001,058Y,M,PA,9,9,\n00000002_000.png,No Finding,000,00000002,012M,F,AP,9,9,\n00000003_000.png,Mass,0,3,1Y,F,AP,9,9,\n'),
                                        ('Data_Entry_2017_v2020.csv', '\n00000001_000.png,Mass|Pneumonia,0,1,58,M,PA,9,9\n00000002_000.png,No Finding,0,2,1,F,AP,9,9\n00000003_000.png,Mass,0,3,1,F,AP,9,9\n')])
def test_nih_in_both_editions(tmp_path, name, rows):
    f = pictures(tmp_path, 'images_001/images/00000001_000.png', 'images_012/images/00000002_000.png')
    (f/name).write_text(HEAD+rows)
    (f/'train_val_list.txt').write_text('00000002_000.png\n00000003_000.png'); (f/'test_list.txt').write_text('00000001_000.png')
    l = from_nih(f)
    assert l.table[['patient', 'part', 'sex']].values.tolist() == [['00000001', 'test', 'M'], ['00000002', 'train', 'F']] and l.source['notes'] == ['1 of 3 listed images are not here.']
    assert load(f'nih:{f}', 28).labels.tolist() == [1, 0] and load(f'nih:{f}', 28).classes == ('no Pneumonia', 'Pneumonia')
    assert load(f'nih:{f}', 28).facts.to_dict('list') == dict(sex=['M', 'F'], age=[58, 1], view=['PA', 'AP'])     # 012M is a year
    d = load(f'nih:{f}', 28, classes='No Finding,Mass', positive='Mass')
    assert d.classes == ('No Finding', 'Mass') and len(d) == 2
    (f/name).write_text(HEAD.replace('Patient ID', 'Patient')+rows)
    with pytest.raises(UserError, match='lacks the column Patient ID; found: Image Index'): from_nih(f)


def test_nih_without_its_images(tmp_path):
    (tmp_path/'Data_Entry_2017.csv').write_text(HEAD+'\n00000001_000.png,Mass,0,1,58,M,PA,9,9\n')
    with pytest.raises(UserError, match='holds none of the 1 images .*unpack images_001'): from_nih(tmp_path)
    (tmp_path/'BBox_List_2017.csv').write_text('Image Index,Finding Label,Bbox [x,y,w,h],,,\n00000001_000.png,Mass,1.5,2,3,4\n')
    assert nih_boxes(tmp_path)[['x', 'h']].values.tolist() == [[1.5, 4.]]


@pytest.mark.parametrize('size', [28, 64])
def test_medmnist_of_any_size(tmp_path, size):
    a = {k: v if 'labels' in k else np.random.default_rng(0).integers(0, 256, (len(v), size, size, 3), 'uint8') for k, v in medmnist_arrays().items()}
    np.savez_compressed(tmp_path/f'pneumoniamnist_{size}.npz', **a)
    l = from_medmnist(tmp_path/f'pneumoniamnist_{size}.npz')
    assert l.arrays.shape == (84, size, size) and l.source['native_size'] == size and l.classes == ('normal', 'pneumonia')


def test_medmnist_finds_the_patient_map_beside_it(tmp_path):
    a = medmnist_arrays()
    np.savez(tmp_path/'pneumoniamnist.npz', **a)
    pd.DataFrame([(p, i, f'{p}{i//2}') for p in ('train', 'val', 'test') for i in range(len(a[f'{p}_labels']))], columns=['split', 'index', 'patient_id']).to_csv(tmp_path/'pneumoniamnist_patient_map.csv', index=False)
    by_file, by_folder = from_medmnist(tmp_path/'pneumoniamnist.npz'), from_medmnist(tmp_path)
    assert by_file.table.patient.tolist() == by_folder.table.patient.tolist() and by_file.table.patient.iloc[1] == 'train0'


def test_medmnist_with_many_findings(tmp_path):
    a = medmnist_arrays()
    np.savez(tmp_path/'chestmnist.npz', **{k: v if 'images' in k else np.tile(np.arange(14) == 6, (len(v), 1)).astype('uint8')*(np.arange(len(v))%2)[:, None].astype('uint8') for k, v in a.items()})
    d = load(tmp_path/'chestmnist.npz', 28)
    assert d.classes == ('no finding', 'pneumonia') and d.labels.mean() == .5


def test_medmnist_by_name_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setenv('GANSYNTH_CACHE', str(tmp_path)); monkeypatch.setenv('HOME', str(tmp_path))
    with pytest.raises(UserError, match="did you mean 'pneumoniamnist'|gansynth\\[medmnist\\]"): from_medmnist('pneumonamnist')
    with pytest.raises(UserError, match='no such file'): from_medmnist(str(tmp_path/'pneumoniamnist.npz'))


# --- DICOM --------------------------------------------------------------------------------------------------------------
@pytest.fixture
def hospital(tmp_path):
    for i in range(12):
        f = tmp_path/'h'/('ill' if i%2 else 'well')/f'{i}.dcm'; f.parent.mkdir(parents=True, exist_ok=True)
        f.write_bytes(dicom(np.roll(RAMP, 100*i), PatientID=f'PLANTED-{i//2}', PatientName=f'Planted^{i}', PatientSex='FM'[i % 2], PatientAge='600M' if i else ''))
    return tmp_path/'h'


def test_f61_dicom_folder(hospital):
    d = load(f'dicom:{hospital}', 28, positive='ill')
    assert not any('PLANTED' in w or 'Planted' in w for w in (*d.patients, *d.ids))
    assert len(d) == 12 and len(set(d.patients)) == 6 and find_source(str(hospital))[0] == 'dicom'
    assert list(d.facts) == ['sex', 'age'] and d.facts.sex.value_counts().to_dict() == dict(F=6, M=6) and d.facts.age.isna().sum() == 1 and d.facts.age.max() == 50
    (hospital/'ill'/'broken.dcm').write_bytes(b'nothing')
    with pytest.raises(UserError, match='1 of 13 files cannot be used.*\n.*ill/broken.dcm: not a DICOM file'): load(f'dicom:{hospital}', 28)


def test_f61_no_name_leaves_the_hospital(hospital, tmp_path):
    "What the commands print, and every file that they write, holds neither name nor id."
    (hospital/'ill'/'99.dcm').write_bytes(dicom(RAMP, PatientID='PLANTED-7', PatientName='Planted^X')[:-4000])
    seen = []
    for args in (('data', 'check', f'dicom:{hospital}', '--json'), ('data', 'split', f'dicom:{hospital}', '--positive', 'ill'), ('data', 'prepare', f'dicom:{hospital}')):
        done = gansynth(*args, cwd=tmp_path, GANSYNTH_CACHE=str(tmp_path/'cache'))
        seen += [done.stdout, done.stderr]
    (hospital/'ill'/'99.dcm').unlink()
    done = gansynth('data', 'split', f'dicom:{hospital}', '--positive', 'ill', '--json', cwd=tmp_path, GANSYNTH_CACHE=str(tmp_path/'cache'))
    assert done.returncode == 0, done.stderr
    seen += [done.stdout, done.stderr, *(p.read_bytes().decode('latin1') for p in (tmp_path/'cache').rglob('*') if p.is_file()), *(str(p.relative_to(tmp_path)) for p in (tmp_path/'cache').rglob('*'))]
    assert len(seen) > 12 and not any(w in s for s in seen for w in ('PLANTED', 'Planted'))
    assert 'PLANTED-0' in str(pydicom.dcmread(hospital/'ill'/'1.dcm'))      # it was there to be leaked


# --- names --------------------------------------------------------------------------------------------------------------
def test_every_source_needs_a_place():
    for kind in SOURCES:
        if kind != 'phantom':
            with pytest.raises(UserError, match='say where|no such'): open_source(kind+':')
            with pytest.raises(UserError): open_source(f'{kind}:/no/such/place')


def test_options_of_sources(tmp_path):
    f = image_folder(tmp_path/'a, b', x=3, y=3)                     # commas and blanks in a path
    assert open_source(f'folder:{f},aspect=pad')[1].aspect == 'pad'
    for spec, says in ((f'folder:{f},aspct=pad', "did you mean 'aspect'"), (f'folder:{f},bits=x', "bits='x' is not a number"), (f'folder:{f},aspect=wide', 'stretch, pad or crop')):
        with pytest.raises(UserError, match=says): open_source(spec)
    assert absolute_spec(f'{f},bits=12') == f'folder:{f.resolve()},bits=12'


# --- the real sets ------------------------------------------------------------------------------------------------------
@needs_real_data
def test_covid_ct_as_published():
    d = load(f'covid_ct:{SHARED}/covid_ct', 64)
    assert len(d) == 746 and d.labels.sum() == 349 and d.images.shape == (746, 64, 64) and d.images.dtype == np.uint8
    who = [len(set(d.patients[d.labels == y])) for y in (1, 0)]
    assert who == [213, 171] and pd.DataFrame({'p': d.patients, 'part': d.parts}).groupby('p').part.nunique().max() == 1
    counts = split(d, official=True).manifest['counts']
    assert [counts[p][c]['images'] for c in ('COVID', 'NonCOVID') for p in ('train', 'valid', 'test')] == [191, 60, 98, 234, 58, 105]


@needs_real_data
def test_kermany_from_the_zip():
    l, _ = open_source(f'kermany:{SHARED}/kermany_cxr_224')
    index = pd.read_csv(SHARED/'kermany_cxr_224'/'kermany_index.csv', dtype=str)
    t = l.table.assign(file=l.table.file.str.split('/').str[-1]).merge(index, on='file', validate='1:1')
    assert len(t) == 5856 and (t.patient == t.group_id).all() and (t.label == t['class'].str.lower()).all() and (t.part.str[:3] == t.kaggle_split.str[:3]).all()


@needs_real_data
def test_nih_as_published():
    l, _ = open_source(f'nih:{SHARED}/nih_chestxray14')
    assert len(l) == 621 and l.source['listed'] == {'images': 112120, 'patients': 30805} and len(l.classes) == 15 and (l.table.part == 'test').sum() == 75
    z = np.load(SHARED/'nih_chestxray14'/'nih_starter621_224.npz')
    assert dict(zip(l.table.id, l.table.label)) == dict(zip(z['image_index'].astype(str), z['finding_labels'].astype(str)))
    assert len(nih_boxes(SHARED/'nih_chestxray14')) == 984
