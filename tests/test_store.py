"Prepared images: killed anywhere, never wrong; ten times the images at the same memory."
import json, os, shutil, signal, subprocess, sys
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from conftest import LIMIT, gansynth, image_folder, until
from PIL import Image

from gansynth.core import UserError
from gansynth.decoding import Options, resize
from gansynth.listing import from_folder
from gansynth import store
from gansynth.store import HEADER, prepare, store_key

PREPARE = '''
import sys
from gansynth.listing import from_folder
from gansynth.store import prepare
images = prepare(from_folder(sys.argv[1]), int(sys.argv[2]), jobs=2).images
assert not {'torch', 'fastai'} & set(sys.modules)
peak = next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmHWM'))
print(peak//1024, images.shape[0])
'''

HOLD = '''
import sys, time
from gansynth import store
def some(chunks, *_):
    for i, c in enumerate(chunks):
        if i == int(sys.argv[3]): time.sleep(10**6)
        yield c
store.progress = some
'''


def linked_set(folder, n, size=28):
    "`n` image files of 500 different pictures, in two classes."
    (folder/'src').mkdir(parents=True)
    for c in 'ab': (folder/'set'/c).mkdir(parents=True)
    for i in range(500): Image.fromarray(np.random.default_rng(i).integers(0, 256, (size, size), 'uint8')).save(folder/'src'/f'{i}.png')
    for i in range(n): os.link(folder/'src'/f'{i%500}.png', folder/'set'/'ab'[i%2]/f'{i:06}.png')
    return folder/'set'


def finished(cache): return [p for p in Path(cache).iterdir() if p.is_dir() and p.suffix == '']


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('GANSYNTH_CACHE', str(tmp_path/'cache'))
    return tmp_path/'cache'


def test_equals_a_plain_loop(tmp_path, cache):
    found = from_folder(image_folder(tmp_path/'f', a=300, b=301))
    for size, o in ((16, Options()), (40, Options(aspect='pad'))):
        plain = np.stack([resize(np.asarray(Image.open(tmp_path/'f'/n)), size, o.aspect) for n in found.table.file])
        for jobs in (1, 2):
            shutil.rmtree(cache, ignore_errors=True)
            out = prepare(found, size, o, jobs)
            assert (out.images == plain).all() and isinstance(out.images, np.memmap) and (out.facts.file == found.table.file).all()
    assert np.abs(out.facts['mean']-[np.asarray(Image.open(tmp_path/'f'/n)).mean() for n in found.table.file]).max() < 1e-3


def test_prepared_once(tmp_path, cache, monkeypatch):
    found = from_folder(image_folder(tmp_path/'f', a=9, b=9))
    prepare(found, 16)
    monkeypatch.setattr(store, 'decode_chunk', None)       # nothing is left that could decode
    assert len(prepare(from_folder(tmp_path/'f'), 16).images) == 18
    with pytest.raises(TypeError): prepare(found, 17)


def test_a_changed_file_is_seen(tmp_path, cache):
    f = image_folder(tmp_path/'f', a=5, b=5)
    before = prepare(from_folder(f), 16).images.copy()
    Image.fromarray(np.full((32, 32), 7, 'uint8')).save(f/'a'/'0.png')
    after = prepare(from_folder(f), 16).images
    assert (after[0] == 7).all() and (after[1:] == before[1:]).all()


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(3))
def test_killed_and_continued(tmp_path, cache, seed):
    "kill -9 in the middle, then the same command: the array equals that of an undisturbed run, and no work is done twice."
    folder = linked_set(tmp_path, 12_000, 64)
    run = [sys.executable, '-c', PREPARE, str(folder), '48']
    want = int(np.random.default_rng(seed).integers(3, 30))
    held = [sys.executable, '-c', HOLD+PREPARE, str(folder), '48', str(want)]      # it notes so many chunks and waits, while its workers go on
    p = subprocess.Popen(held, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    journal = lambda: next(iter(cache.glob('*.part/journal.jsonl')), None)
    lines = lambda: journal().read_text().count('\n') if journal() else 0
    until(lambda: lines() == want or p.poll() is not None, 'the chunks')
    workers = psutil.Process(p.pid).children(recursive=True)
    os.kill(p.pid, signal.SIGKILL) if seed else os.killpg(p.pid, signal.SIGKILL)     # alone, or with its workers
    assert p.wait() == -signal.SIGKILL and not finished(cache)
    assert len(workers) >= 2 and not psutil.wait_procs(workers, timeout=LIMIT)[1]       # nobody is left behind
    assert lines() == want
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (made,) = finished(cache)
    broken_off = np.load(made/'images.npy')
    assert sorted(p.name for p in made.iterdir()) == ['facts.parquet', 'images.npy', 'store.json'] and not list(cache.glob('*.part'))
    facts = pd.read_parquet(made/'facts.parquet')
    shutil.rmtree(cache)
    assert subprocess.run(run, capture_output=True).returncode == 0
    assert (np.load(finished(cache)[0]/'images.npy') == broken_off).all()
    pd.testing.assert_frame_equal(pd.read_parquet(finished(cache)[0]/'facts.parquet'), facts)


def half_made(found, folder, size=16):
    "A store of which three chunks are done: chunk 1 has other pixels than its line says, and the last line is torn."
    folder.mkdir(parents=True)
    store.blank_array(folder/'images.npy', len(found), size)
    rows = [store.decode_chunk(k, found.root, found.table.file[k*256:(k+1)*256].tolist(), size, Options(), folder/'images.npy', os.getpid()) for k in range(3)]
    text = ''.join(json.dumps(dict(chunk=k, sha256=s, rows=r))+'\n' for k, r, s in rows)
    (folder/'journal.jsonl').write_text(text[:-40])
    with open(folder/'images.npy', 'r+b') as f: f.seek(HEADER+300*size*size); f.write(b'\1'*50)
    return folder


def test_only_proven_chunks_are_taken_over(tmp_path, cache, monkeypatch):
    found = from_folder(image_folder(tmp_path/'f', a=500, b=400))
    right = prepare(found, 16).images.copy()
    shutil.rmtree(cache)
    def resumed():
        shutil.rmtree(cache, ignore_errors=True)
        half_made(found, (cache/store_key(found, 16, Options())[:16]).with_suffix('.part'))
        return prepare(found, 16).images
    assert (resumed() == right).all()
    def believing(folder, n, size): # the ablation: believe every line of the journal
        out, at = {}, 0
        for line in (folder/'journal.jsonl').read_bytes().splitlines(True):
            if line.endswith(b'\n'): out[json.loads(line)['chunk']] = at
            at += len(line)
        if not line.endswith(b'\n'):
            with open(folder/'journal.jsonl', 'ab') as f: f.write(b'\n')
        return out
    monkeypatch.setattr(store, 'done_chunks', believing)
    assert not (resumed() == right).all()


@pytest.mark.parametrize('harm', ['short', 'no table', 'no seal'])
def test_a_damaged_store_is_made_again(tmp_path, cache, harm):
    found = from_folder(image_folder(tmp_path/'f', a=5, b=5))
    right = prepare(found, 16).images.copy()
    (made,) = finished(cache)
    if harm == 'short': (made/'images.npy').write_bytes((made/'images.npy').read_bytes()[:-9])
    if harm == 'no table': (made/'facts.parquet').unlink()
    if harm == 'no seal': (made/'store.json').unlink()
    assert (prepare(found, 16).images == right).all()


def test_bad_files_are_all_named_and_the_rest_is_kept(tmp_path, cache):
    f = image_folder(tmp_path/'f', a=40, b=5)
    for i in range(25): (f/'a'/f'{i}.png').write_bytes(b'x')
    with pytest.raises(UserError, match='25 of 45 images cannot be used') as e: prepare(from_folder(f), 16)
    assert str(e.value).count('not a readable image') == 20 and str(e.value).endswith('...')
    kept = prepare(from_folder(f), 16, bad='keep')
    assert (kept.facts.error != '').sum() == 25 and kept.images[-1].any()


def test_two_at_once_make_it_once(tmp_path, cache):
    folder = linked_set(tmp_path, 3000)
    two = [subprocess.Popen([sys.executable, '-c', PREPARE, str(folder), '20'], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in 'ab']
    assert [p.wait() for p in two] == [0, 0], [p.stderr.read() for p in two]
    assert len(finished(cache)) == 1 and not list(cache.glob('*.part'))


def test_nowhere_to_write(tmp_path, monkeypatch):
    f = image_folder(tmp_path/'f', a=5, b=5)
    (tmp_path/'file').write_text('')
    monkeypatch.setenv('GANSYNTH_CACHE', str(tmp_path/'file'/'cache'))
    with pytest.raises(UserError, match='cannot write to .*GANSYNTH_CACHE'): prepare(from_folder(f), 16)


def test_disk_full_keeps_what_is_there(tmp_path, cache):
    "The file size limit stops the writing; afterwards the work goes on where it was."
    folder = linked_set(tmp_path, 1500)
    limit = 'import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000)); import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n'
    code = limit+'import sys\nfrom gansynth.listing import from_folder\nfrom gansynth.store import prepare\ntry: prepare(from_folder(sys.argv[1]), 28, jobs=1)\nexcept ValueError as e: print(e)'
    done = subprocess.run([sys.executable, '-c', code, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0 and 'cannot write to' in done.stdout, done.stdout+done.stderr
    assert not finished(cache)
    assert len(prepare(from_folder(folder), 28).images) == 1500


def test_command_line(tmp_path, cache):
    f = image_folder(tmp_path/'my images', a=4, b=4)
    for i, name in enumerate(('-rf.png', 'Röntgen 日本.png', 'x'*120+'.png', 'a,b;c.png')): (f/'a'/f'{i}.png').rename(f/'a'/name)      # F62
    done = gansynth('data', 'prepare', f, '--size', '20')
    assert (done.returncode, done.stdout, done.stderr) == (0, '8 images of 20x20 pixels are prepared\n', '')
    (f/'b'/'0.png').write_bytes(b'')
    done = gansynth('data', 'prepare', f, '--size', '20')
    assert done.returncode == 1 and 'b/0.png: not a readable image' in done.stderr and 'Traceback' not in done.stderr


def peaks(tmp_path, n):
    "Peak memory (MB) of preparing n images: of the main process, which is the only one that knows how many there are."
    done = subprocess.run([sys.executable, '-c', PREPARE, str(linked_set(tmp_path/str(n), n)), '28'], capture_output=True, text=True, env=os.environ | {'GANSYNTH_CACHE': str(tmp_path/f'c{n}')})
    assert done.returncode == 0, done.stderr
    mb, rows = map(int, done.stdout.split())
    assert rows == n
    return mb


@pytest.mark.slow
def test_memory_does_not_grow_with_the_set(tmp_path):
    workers = 2*45      # MB that two workers need in any case, counted low
    few, many = (peaks(tmp_path, n)+workers for n in (20_000, 100_000))
    assert many < 1.15*few, (few, many)


def test_opening_maps_no_more_than_it_reads(tmp_path, cache):
    code = "import sys, numpy as np\nrss = lambda: int(open('/proc/self/statm').read().split()[1])*4\na = np.load(sys.argv[1], mmap_mode='r'); b = rss(); a[5].sum(); a[-1].sum(); print(rss()-b)"
    found = from_folder(linked_set(tmp_path, 6000))
    prepare(found, 128)
    (made,) = finished(cache)
    assert (made/'images.npy').stat().st_size > 90e6
    assert int(subprocess.run([sys.executable, '-c', code, str(made/'images.npy')], capture_output=True, text=True, check=True).stdout) < 5_000       # kB
