"Files as they come: each has one meaning, or is refused by name."
import io, os, struct, subprocess, sys, zipfile, zlib

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless

from gansynth.core import UserError
from gansynth.decoding import Options, decode, list_files, picture, read_bytes, resize, stamps

RNG = np.random.default_rng(0)


def saved(im, kind='PNG', **kw):
    f = io.BytesIO(); im.save(f, kind, **kw)
    return f.getvalue()


def noise(h=40, w=40): return RNG.integers(0, 256, (h, w), 'uint8')


@pytest.mark.parametrize('kind', ['PNG', 'TIFF'])
def test_f47_sixteen_bits_keep_their_range(kind):
    ramp = np.arange(65536, dtype='uint16').reshape(256, 256)
    out = decode(saved(Image.fromarray(ramp), kind))[0]
    assert (np.bincount(out.ravel()) == 256).all() and (out == ramp >> 8).all()
    clipped = np.asarray(Image.open(io.BytesIO(saved(Image.fromarray(ramp), kind))).convert('L'))
    assert (clipped == 255).mean() > .9 or not (clipped == out).all()      # what Pillow alone makes of it


def test_f47_declared_bits():
    ramp = (np.arange(4096, dtype='uint16')).reshape(64, 64)
    assert len(np.unique(decode(saved(Image.fromarray(ramp)), o=Options(bits=12))[0])) == 256
    assert len(np.unique(decode(saved(Image.fromarray(ramp)))[0])) == 16       # undeclared: dark, and the datasheet says so
    with pytest.raises(UserError, match='a.png: values from 0 to 4095, declared are 0 to 1023'): decode(saved(Image.fromarray(ramp)), 'a.png', Options(bits=10))


def test_f47_32_bit_and_float():
    whole = Image.fromarray(np.arange(65536, dtype='int32').reshape(256, 256))
    assert len(np.unique(decode(saved(whole, 'TIFF'))[0])) == 256
    with pytest.raises(UserError, match='values from 0 to 131070'): decode(saved(Image.fromarray(np.arange(65536, dtype='int32').reshape(256, 256)*2), 'TIFF'))
    f = np.linspace(0, 1, 1024, dtype='float32').reshape(32, 32)
    assert len(np.unique(decode(saved(Image.fromarray(f), 'TIFF'))[0])) == 256
    assert (decode(saved(Image.fromarray(f*1000-500), 'TIFF'), o=Options(low=-500, high=500))[0] == decode(saved(Image.fromarray(f), 'TIFF'))[0]).mean() > .99
    with pytest.raises(UserError, match='set bits for whole numbers, low and high'): decode(saved(Image.fromarray(f*255), 'TIFF'))


def test_f48_alpha_on_the_declared_background():
    x, alpha = noise(), np.where(np.indices((40, 40))[0] < 20, 0, 255).astype('uint8')
    for im in (Image.merge('LA', (Image.fromarray(x), Image.fromarray(alpha))), Image.merge('RGBA', [Image.fromarray(x)]*3+[Image.fromarray(alpha)])):
        for back in (0, 77):
            out = decode(saved(im), o=Options(background=back))[0]
            assert (out[:20] == back).all() and (out[20:] == x[20:]).all()


def test_f48_palette_and_one_bit():
    x = np.repeat(np.arange(0, 250, 10, dtype='uint8'), 25).reshape(25, 25)
    assert (decode(saved(Image.fromarray(x).convert('P')))[0] == x).all()
    gif = Image.fromarray(x).convert('P'); gif.info['transparency'] = 0
    assert (decode(saved(gif, 'GIF', transparency=0), o=Options(background=200))[0][0, 0]) == 200
    assert set(np.unique(decode(saved(Image.fromarray(x > 100)))[0])) == {0, 255}


def test_f48_cmyk_is_refused():
    with pytest.raises(UserError, match='a.jpg: mode CMYK has no grey value'): decode(saved(Image.new('CMYK', (9, 9)), 'JPEG'), 'a.jpg')


@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'TIFF', 'BMP'])
def test_f49_truncated(kind):
    whole = saved(Image.fromarray(noise(64, 64)), kind)
    decode(whole)
    with pytest.raises(UserError, match='x.img: not a readable image'): decode(whole[:len(whole)*2//3], 'x.img')


def test_f49_pillow_alone_would_pass_it():
    half = saved(Image.fromarray(noise(64, 64)), 'JPEG'); half = half[:len(half)//2]
    Image.open(io.BytesIO(half)).verify()


@pytest.mark.parametrize('content', [b'', b'hello', b'<html></html>', b'\x89PNG\r\n\x1a\n'])
def test_f50_no_image_at_all(content):
    with pytest.raises(UserError, match='scan.png: not a readable image'): decode(content, 'scan.png')


def test_f50_wrong_ending_is_read_by_content():
    assert decode(saved(Image.fromarray(noise()), 'JPEG'), 'a.png')[1]['format'] == 'JPEG'


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_f51_pixels_that_are_no_numbers(value):
    x = np.full((9, 9), .5, 'float32'); x[3, 3] = value
    f = io.BytesIO(); np.save(f, x)
    for content in (saved(Image.fromarray(x), 'TIFF'), f.getvalue()):
        with pytest.raises(UserError, match='a.x: holds pixels that are no numbers'): decode(content, 'a.x')


def bomb_png(w, h):
    def chunk(kind, data): return struct.pack('>I', len(data))+kind+data+struct.pack('>I', zlib.crc32(kind+data))
    return b'\x89PNG\r\n\x1a\n'+chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, 8, 0, 0, 0, 0))+chunk(b'IDAT', zlib.compress(bytes(1000)))+chunk(b'IEND', b'')


PEAK = '''
print(next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmHWM'))//1024)'''      # ru_maxrss would count what the parent had


def peak_mb(code, *args):
    "Peak memory of a Python process in MB, and what it printed."
    done = subprocess.run([sys.executable, '-c', 'import sys\n'+code+PEAK, *map(str, args)], capture_output=True, text=True, check=True)
    *said, mb = done.stdout.splitlines()
    return int(mb), '\n'.join(said)


def test_f52_header_of_20000_by_20000(tmp_path):
    (tmp_path/'bomb.png').write_bytes(bomb_png(20000, 20000)); (tmp_path/'large.png').write_bytes(bomb_png(9000, 9000))
    code = 'from gansynth.decoding import decode, read_bytes\nfor n in ("bomb.png", "large.png"):\n  try: decode(read_bytes(sys.argv[1], n), n)\n  except ValueError as e: print(e)'
    mb, said = peak_mb(code, tmp_path)
    assert mb < 300 and 'bomb.png: claims more pixels' in said and 'large.png: 9000x9000 pixels' in said


def test_f52_npz_that_unfolds(tmp_path):
    np.savez_compressed(tmp_path/'a.npz', **{f'{p}_{k}': np.zeros((40_000, 28, 28), 'uint8') if k == 'images' else np.zeros((40_000, 1), 'uint8') for p in ('train', 'val', 'test') for k in ('images', 'labels')})
    assert (tmp_path/'a.npz').stat().st_size < 150_000
    code = 'from gansynth.sources import from_medmnist\ntry: from_medmnist(sys.argv[1])\nexcept ValueError as e: print(e)'
    mb, said = peak_mb(code, tmp_path/'a.npz')
    assert mb < 300 and 'a.npz claims to unfold to 94 MB; refused' in said


def test_f52_zip_that_unfolds(tmp_path):
    with zipfile.ZipFile(tmp_path/'a.zip', 'w', zipfile.ZIP_DEFLATED) as z: z.writestr('a/big.png', bytes(200_000_000))
    code = 'from gansynth.decoding import list_files\ntry: list_files(sys.argv[1])\nexcept ValueError as e: print(e)'
    mb, said = peak_mb(code, tmp_path/'a.zip')
    assert mb < 300 and "'a/big.png' claims to unfold" in said


@pytest.mark.parametrize('name', ['../evil.png', '/etc/evil.png', 'a/../../evil.png', 'C:\\evil.png', '..\\evil.png'])
def test_f53_archive_that_climbs_out(tmp_path, name):
    with zipfile.ZipFile(tmp_path/'a.zip', 'w') as z: z.writestr(name, saved(Image.fromarray(noise())))
    with pytest.raises(UserError, match='leads out of the archive'): list_files(tmp_path/'a.zip')
    assert [p.name for p in tmp_path.rglob('*')] == ['a.zip']


def test_f53_link_in_an_archive(tmp_path):
    with zipfile.ZipFile(tmp_path/'a.zip', 'w') as z:
        i = zipfile.ZipInfo('a/link.png'); i.external_attr = 0o120777 << 16
        z.writestr(i, '/etc/passwd')
    with pytest.raises(UserError, match='leads out of the archive'): list_files(tmp_path/'a.zip')


def test_f53_damaged_entry_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path/'a.zip', 'w') as z: z.writestr('a/x.png', saved(Image.fromarray(noise())))
    raw = bytearray((tmp_path/'a.zip').read_bytes()); raw[100] ^= 1; (tmp_path/'a.zip').write_bytes(raw)
    with pytest.raises(UserError, match='a/x.png: cannot be read from'): read_bytes(tmp_path/'a.zip', 'a/x.png')


def test_f39_link_out_of_the_folder(tmp_path):
    (tmp_path/'outside').mkdir(); (tmp_path/'outside'/'x.png').write_bytes(saved(Image.fromarray(noise())))
    (tmp_path/'set'/'a').mkdir(parents=True); (tmp_path/'set'/'a'/'1.png').write_bytes(saved(Image.fromarray(noise())))
    assert list_files(tmp_path/'set') == ['a/1.png']
    (tmp_path/'set'/'a'/'in.png').symlink_to(tmp_path/'set'/'a'/'1.png')
    assert list_files(tmp_path/'set') == ['a/1.png']                        # a link that stays inside is the same picture
    for target in (tmp_path/'outside'/'x.png', tmp_path/'outside'):
        (tmp_path/'set'/'out').symlink_to(target)
        with pytest.raises(UserError, match='link that leads out'): list_files(tmp_path/'set')
        (tmp_path/'set'/'out').unlink()


@pytest.mark.parametrize('turn', range(1, 9))
def test_f56_every_exif_orientation(turn):
    upright = Image.fromarray(noise(20, 30))
    undo = {2: 'FLIP_LEFT_RIGHT', 3: 'ROTATE_180', 4: 'FLIP_TOP_BOTTOM', 5: 'TRANSPOSE', 6: 'ROTATE_90', 7: 'TRANSVERSE', 8: 'ROTATE_270'}
    held = upright.transpose(getattr(Image.Transpose, undo[turn])) if turn > 1 else upright
    exif = Image.Exif(); exif[0x0112] = turn
    assert (decode(saved(held, exif=exif))[0] == np.asarray(upright)).all()


@pytest.mark.parametrize('kind', ['TIFF', 'GIF'])
def test_f57_frames(kind):
    a, b = (Image.fromarray(noise()) for _ in 'ab')
    content = saved(a, kind, save_all=True, append_images=[b])
    with pytest.raises(UserError, match='2 frames; name the one you mean with frame=0 .. 1'): decode(content)
    assert (decode(content, o=Options(frame=1))[0] == np.asarray(b)).all()
    with pytest.raises(UserError, match='2 frames'): decode(content, o=Options(frame=2))


@pytest.mark.parametrize('shape, ok', [((1, 1), False), ((1, 50), False), ((50, 1), False), ((8193, 2), False), ((8192, 2), True), ((2, 2), True)])
def test_f58_sizes(shape, ok):
    content = saved(Image.fromarray(np.zeros(shape, 'uint8')))
    if ok: decode(content, 'a.png'); return
    with pytest.raises(UserError, match='a.png: .* pixels, accepted are 2 to 8192'): decode(content, 'a.png')


def test_f58_aspect_policies():
    x = np.full((20, 60), 200, 'uint8'); x[:, :20] = 50
    assert set(np.unique(resize(x, 30, 'crop'))) == {200}
    pad = resize(x, 30, 'pad')
    assert (pad[:10] == 0).all() and (pad[20:] == 0).all() and pad[15, 2] == 50
    assert (resize(x, 30)[:, :8] == 50).all()


def dicom(x, **tags):
    "Bytes of a DICOM file that shows uint16 x; a tag given as None is left out."
    meta = FileMetaDataset(); meta.TransferSyntaxUID = tags.pop('syntax', ExplicitVRLittleEndian); meta.MediaStorageSOPClassUID = '1.2.840.10008.5.1.4.1.1.2'; meta.MediaStorageSOPInstanceUID = '1.2.3'
    ds = FileDataset('', {}, file_meta=meta, preamble=b'\0'*128)
    fields = dict(PatientName='Planted^Name', PatientID='PLANTED-ID', Rows=x.shape[0], Columns=x.shape[1], SamplesPerPixel=1, PhotometricInterpretation='MONOCHROME2', BitsAllocated=16, BitsStored=16, HighBit=15,
                  PixelRepresentation=0, SOPClassUID='1.2.840.10008.5.1.4.1.1.2', SOPInstanceUID='1.2.3', PixelData=x.astype('uint16').tobytes()) | tags
    for k, v in fields.items():
        if v is not None: setattr(ds, k, v)
    f = io.BytesIO(); ds.save_as(f, enforce_file_format=True)
    return f.getvalue()


RAMP = np.arange(64*64).reshape(64, 64)


def test_f59_monochrome1_is_inverted():
    plain, inverse = decode(dicom(RAMP))[0], decode(dicom(RAMP.max()-RAMP, PhotometricInterpretation='MONOCHROME1'))[0]
    assert np.abs(plain.astype(int)-inverse).max() <= 1 and plain[-1, -1] > plain[0, 0]


def test_dicom_window_and_slope():
    x = RAMP-1000.
    for o, tags in ((Options(), dict(WindowCenter=100, WindowWidth=500)), (Options(window='100/500'), {}), (Options(window='100/500'), dict(WindowCenter=0, WindowWidth=9)), (Options(), dict(WindowCenter=[100, 7], WindowWidth=[500, 8]))):
        out = decode(dicom(RAMP, RescaleSlope=1, RescaleIntercept=-1000, **tags), o=o)[0]
        assert (out[x < -151] == 0).all() and (out[x > 350] == 255).all()
        assert abs(int(out[np.abs(x-100).argmin()//64, np.abs(x-100).argmin() % 64])-127) <= 1
    steep = decode(dicom(RAMP, RescaleSlope=2, RescaleIntercept=0, WindowCenter=1000, WindowWidth=1000))[0]
    assert (steep[RAMP > 760] == 255).all() and (steep[RAMP < 250] == 0).all()


def test_dicom_without_a_window_uses_percentiles():
    x = RAMP.copy(); x[0, 0] = 65535         # one hot pixel must not darken the rest
    assert decode(dicom(x))[0][-1, -1] > 250


@pytest.mark.parametrize('content, says', [
    (dicom(RAMP, PixelData=None), 'tag PixelData is missing'), (dicom(RAMP, Rows=0), 'tag Rows is missing or zero'), (dicom(RAMP)[:-3000], 'PixelData cannot be decoded'),
    (dicom(RAMP, NumberOfFrames=3), 'NumberOfFrames is 3'), (dicom(RAMP, SamplesPerPixel=3), 'SamplesPerPixel is 3'), (dicom(RAMP, PhotometricInterpretation='RGB'), 'PhotometricInterpretation'),
    (b'no dicom', 'not a DICOM file'), (b'Planted^Name', 'not a DICOM file'), (b'', 'not a DICOM file'), (dicom(RAMP, Columns=60000), '60000x64 pixels')], ids=lambda v: v if isinstance(v, str) else '')
def test_f60_dicom_that_shows_nothing(content, says):
    with pytest.raises(UserError, match=f'scan.dcm: .*{says}') as e: decode(content, 'scan.dcm')
    assert 'Planted' not in str(e.value) and 'PLANTED' not in str(e.value) and str(e.value).count('\n') == 0


def test_f60_compressed_without_a_decoder():
    ds = pydicom.dcmread(io.BytesIO(dicom(RAMP)))
    ds.PixelData = pydicom.encaps.encapsulate([b'\xff\x4f\xff\x51 not really'])
    ds.file_meta.TransferSyntaxUID = JPEG2000Lossless
    ds['PixelData'].VR = 'OB'
    f = io.BytesIO(); ds.save_as(f, enforce_file_format=True)
    with pytest.raises(UserError, match='a.dcm: PixelData cannot be decoded .* needs a decoder'): decode(f.getvalue(), 'a.dcm')


@pytest.mark.parametrize('content', [b'\x93NUMPY', b'\x93NUMPY\x01\x00\xff\xff', None])
def test_f54_npy_is_never_unpickled(tmp_path, content):
    if content is None:
        class Bomb:
            def __reduce__(self): return open, (str(tmp_path/'marker'), 'w')
        f = io.BytesIO(); np.save(f, np.array([[Bomb()]], dtype=object), allow_pickle=bool(1)); content = f.getvalue()
    with pytest.raises(UserError, match='a.npy'): decode(content, 'a.npy')
    assert not (tmp_path/'marker').exists()


def test_facts_hold_no_text_of_the_file():
    "F61 for a picture: what goes on is pixels and plain facts."
    from PIL.PngImagePlugin import PngInfo
    text = PngInfo(); text.add_text('Comment', 'Planted^Name')
    exif = Image.Exif(); exif[0x010E] = 'Planted^Name'
    for content in (saved(Image.fromarray(noise()), pnginfo=text), saved(Image.fromarray(noise()), 'JPEG', exif=exif), dicom(RAMP)):
        x, facts = picture(content, 16, Options(), 'f')
        assert set(facts) == {'format', 'mode', 'peak', 'hash', 'width', 'height', 'mean', 'spread'} and 'Planted' not in str(facts)


def test_stamps_follow_the_file(tmp_path):
    (tmp_path/'a.png').write_bytes(b'1')
    before = list(stamps(tmp_path, ['a.png']))
    (tmp_path/'a.png').write_bytes(b'2'); os.utime(tmp_path/'a.png', (5, 5))
    assert list(stamps(tmp_path, ['a.png'])) != before
