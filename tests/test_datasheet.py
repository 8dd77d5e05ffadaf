"The datasheet finds what was planted, what is known of the real sets, and nothing in a clean one."
import json
from collections import Counter

import numpy as np
import pytest
from conftest import SHARED, gansynth, image_folder, needs_real_data
from PIL import Image

from gansynth.datasheet import as_text, check, rank_auroc


def found(sheet, code): return [f for f in sheet['findings'] if f['code'] == code]


@pytest.fixture
def clean(tmp_path):
    "Two classes of 40 grey pictures of 20 people each, one size, one format."
    f = image_folder(tmp_path/'set', normal=40, pneumonia=40)
    (tmp_path/'who.csv').write_text('file,patient_id\n'+''.join(f'{c}/{i}.png,{c}{i//2}\n' for c in ('normal', 'pneumonia') for i in range(40)))
    def sheet(**kw): return check(f, 32, patients=tmp_path/'who.csv', **kw)
    sheet.folder, sheet.who = f, tmp_path/'who.csv'
    return sheet


def image(seed=99, size=(32, 32)): return Image.fromarray(np.random.default_rng(seed).integers(0, 256, size, 'uint8'))


def test_clean_set(clean):
    s = clean()
    assert s['fit'] and s['findings'] == [] and s['images'] == 80 and s['patients'] == 40 and s['formats'] == {'PNG': 80}
    assert as_text(s).endswith('fit for a study')


def rename(folder, old, new): (folder/old).rename(folder/new)


PLANTED = {
    'unreadable': ('error', lambda f: (f/'normal'/'0.png').write_bytes(b''), '1 of 80 files'),
    'constant': ('warning', lambda f: Image.new('L', (32, 32), 9).save(f/'normal'/'0.png'), '1 images have a single grey value'),
    'bits': ('error', lambda f: [Image.fromarray(np.random.default_rng(i).integers(0, 4096, (32, 32)).astype('uint16')).save(f/c/f'{i}.png') for c in ('normal', 'pneumonia') for i in range(40)], '12 bits only'),
    'sizes': ('note', lambda f: image(size=(50, 40)).save(f/'normal'/'0.png'), '2 different sizes, from 32x32 to 40x50'),
    'suffix': ('note', lambda f: image().save(f/'normal'/'0.png', 'JPEG'), '1 files hold another format'),
    'duplicates': ('warning', lambda f: (f/'normal'/'0.png').write_bytes((f/'normal'/'1.png').read_bytes()), '1 groups of identical pictures (2 files)'),
    'contradiction': ('error', lambda f: (f/'normal'/'0.png').write_bytes((f/'pneumonia'/'1.png').read_bytes()), '1 pictures carry several labels'),
    'near_across_labels': ('warning', lambda f: Image.open(f/'pneumonia'/'1.png').transpose(Image.FLIP_LEFT_RIGHT).save(f/'normal'/'0.png'), '1 pairs of images of different people'),
    'label': ('error', lambda f: ((f/'pnuemonia').mkdir(), [rename(f, f'pneumonia/{i}.png', f'pnuemonia/{i}.png') for i in (0, 1, 2)]), "'pnuemonia' looks like a slip for 'pneumonia'"),
    'few_patients': ('error', lambda f: [rename(f, f'pneumonia/{i}.png', f'normal/p{i}.png') for i in range(38)], 'pneumonia (1)'),
    'unknown_patients': ('warning', lambda f: image().save(f/'normal'/'new.png'), '1 of 81 images have no known patient'),
    'giveaway_number': ('warning', lambda f: [Image.fromarray(np.asarray(Image.open(p))//2).save(p) for p in (f/'normal').iterdir()], 'AUROC of 1.00')}


@pytest.mark.parametrize('code', PLANTED)
def test_planted(clean, code):
    level, plant, says = PLANTED[code]
    if code == 'few_patients': clean.who.write_text(clean.who.read_text()+''.join(f'normal/p{i}.png,p{i}\n' for i in range(38)))
    plant(clean.folder)
    if code == 'label': clean.who.write_text(clean.who.read_text()+'pnuemonia/0.png,a\npnuemonia/1.png,b\npnuemonia/2.png,c\n')
    s = clean()
    (f,) = found(s, code)[:1]
    assert f['level'] == level and says in f['text'], f['text']
    assert s['fit'] == (not any(f['level'] == 'error' for f in s['findings']))
    if code in ('unreadable', 'constant', 'suffix'): assert 'normal/0.png' in f['examples'][0]


GIVEAWAYS = {'alpha channel': lambda f: [Image.open(p).convert('RGBA').save(p) for p in (f/'pneumonia').iterdir()], 'colour mode': lambda f: [Image.open(p).convert('RGB').save(p) for p in (f/'pneumonia').iterdir()],
             'file format': lambda f: [Image.open(p).save(p, 'BMP') for p in (f/'pneumonia').iterdir()], 'size': lambda f: [Image.open(p).resize((48, 48)).save(p) for p in (f/'pneumonia').iterdir()]}


@pytest.mark.parametrize('trait', GIVEAWAYS)
def test_giveaways(clean, trait):
    GIVEAWAYS[trait](clean.folder)
    texts = [f['text'] for f in found(clean(), 'giveaway')]
    assert any(t.startswith(f'The {trait} gives the class away') and 'right for 100 % of a balanced set' in t for t in texts), texts


def test_ending_gives_away(clean):
    for p in list((clean.folder/'pneumonia').iterdir()): p.rename(p.with_suffix('.tif'))
    clean.who.write_text(clean.who.read_text()+''.join(f'pneumonia/{i}.tif,p{i//2}\n' for i in range(40)))
    assert any('The ending of the name' in f['text'] for f in found(clean(), 'giveaway'))


def test_rare_oddity_is_no_giveaway(clean):
    Image.open(clean.folder/'pneumonia'/'3.png').convert('RGBA').save(clean.folder/'pneumonia'/'3.png')
    assert not found(clean(), 'giveaway')


def test_rank_auroc_equals_counting():
    rng = np.random.default_rng(0)
    y, x = rng.random(60) < .4, rng.integers(0, 9, 60)
    pairs = (x[y][:, None] > x[~y]).mean()+.5*(x[y][:, None] == x[~y]).mean()
    assert abs(rank_auroc(y, x)-pairs) < 1e-12


def test_no_patients_at_all(tmp_path):
    assert found(check(image_folder(tmp_path/'set', a=20, b=20), 32), 'no_patients')[0]['level'] == 'warning'


def test_command(clean, tmp_path):
    done = gansynth('data', 'check', clean.folder, '--patients', clean.who, '--size', 32)
    assert (done.returncode, done.stderr) == (0, '') and 'fit for a study' in done.stdout
    (clean.folder/'normal'/'0.png').write_bytes(b'')
    done = gansynth('data', 'check', clean.folder, '--patients', clean.who, '--size', 32, '--json')
    assert done.returncode == 1 and found(json.loads(done.stdout), 'unreadable')[0]['examples'] == ['row 1: normal/0.png: not a readable image, or a damaged one (UnidentifiedImageError)']
    done = gansynth('data', 'check', tmp_path/'nothing')
    assert done.returncode == 1 and 'no such file' in done.stderr and 'Traceback' not in done.stderr


# --- the four real sets say what is known of them ------------------------------------------------------------------------
@needs_real_data
def test_covid_ct_format_gives_the_class_away():
    s = check(SHARED/'covid_ct')
    text = {f['text'].split(' gives')[0]: dict(e.split(': ') for e in f['examples']) for f in found(s, 'giveaway')}
    assert text['The alpha channel'] == {'with': '0 NonCOVID, 174 others', 'without': '397 NonCOVID, 175 others'}
    assert text['The ending of the name'] == {'.jpg': '202 NonCOVID, 0 others', '.png': '195 NonCOVID, 349 others'}
    assert '34 files hold another format' in found(s, 'suffix')[0]['text'] and '634 different sizes' in found(s, 'sizes')[0]['text']
    assert not found(s, 'duplicates') and not found(s, 'patients_across_parts') and s['patients'] == 384
    assert s['modes'] == {'RGB': 120+34+195+179, 'RGBA': 174, 'L': 21+23} and not s['fit']
    twins = found(s, 'near_across_labels')[0]['examples']       # the same slice under both labels, found by its looks
    assert any('kjr-21-e24-p5-29.png' in e and '71%0.jpg' in e for e in twins)


@needs_real_data
def test_pneumoniamnist_own_validation_part_is_guilty():
    s = check(SHARED/'pneumoniamnist', 28)
    guilty = {f['text'].split(' images of the ')[1].split()[0]: f for f in found(s, 'patients_across_parts')}
    assert guilty['valid']['level'] == 'error' and guilty['valid']['text'].startswith('340 of 523') and guilty['test']['level'] == 'warning'
    assert '8 pictures' in found(s, 'copies_across_parts')[0]['text'] and not s['fit']
    assert Counter({(c['class'], c['part']): c['images'] for c in s['counts']}) == Counter({('normal', 'train'): 1214, ('pneumonia', 'train'): 3494, ('normal', 'valid'): 135, ('pneumonia', 'valid'): 389, ('normal', 'test'): 234, ('pneumonia', 'test'): 390})


@needs_real_data
def test_kermany_duplicates():
    s = check(SHARED/'kermany_cxr_224')
    assert found(s, 'duplicates')[0]['text'] == '30 groups of identical pictures (62 files).' and not found(s, 'contradiction') and not found(s, 'copies_across_parts') and not found(s, 'unreadable')
    assert '170 patients' in found(s, 'patients_across_parts')[0]['text'] and s['formats'] == {'JPEG': 5856} and s['modes'] == {'RGB': 5856}


@needs_real_data
def test_nih_what_is_here():
    s = check(SHARED/'nih_chestxray14')
    assert s['images'] == s['patients'] == 621 and not found(s, 'duplicates') and not found(s, 'patients_across_parts')
    assert '111499 of 112120 listed images are not here.' in [f['text'] for f in found(s, 'source')]
