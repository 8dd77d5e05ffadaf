"Whole files, seeds and devices."
import os, random, subprocess, sys

import numpy as np
import pytest
import torch

from gansynth.core import UserError, atomic, code_hash, code_of, pick_device, pick_precision, save_json, save_text, set_seed


def test_f11_full_disk_keeps_the_old_file(tmp_path):
    code = f'''
import resource, signal
from gansynth.core import save_text
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
save_text('old', {str(tmp_path/"a.txt")!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
save_text('x'*5000, {str(tmp_path/"a.txt")!r})
'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 1 and f'cannot write {tmp_path/"a.txt"}' in done.stderr
    assert (tmp_path/'a.txt').read_text() == 'old' and os.listdir(tmp_path) == ['a.txt']


def test_f13_folder_that_is_a_file(tmp_path):
    (tmp_path/'a').write_text('I am a file')
    with pytest.raises(UserError, match='cannot write'): save_text('x', tmp_path/'a'/'b.txt')
    assert (tmp_path/'a').read_text() == 'I am a file'


def test_f02_death_in_the_middle_of_a_write(tmp_path):
    save_text('old', tmp_path/'a.txt')
    code = f'''
import os
from gansynth.core import atomic
with atomic({str(tmp_path/"a.txt")!r}) as tmp:
    tmp.write_text('half'); os._exit(9)
'''
    assert subprocess.run([sys.executable, '-c', code]).returncode == 9
    assert (tmp_path/'a.txt').read_text() == 'old'


def test_json_without_nan(tmp_path):
    with pytest.raises(ValueError): save_json({'a': float('nan')}, tmp_path/'a.json')
    assert not (tmp_path/'a.json').exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason='this machine has a GPU')
def test_f20_cuda_is_never_replaced_silently():
    with pytest.raises(UserError, match='torch finds no GPU'): pick_device('cuda')
    assert pick_device('auto').type == 'cpu'


def test_precision_by_name():
    cpu = torch.device('cpu')
    assert pick_precision('float32', cpu) == 'float32' and pick_precision('auto', cpu) in ('float32', 'bfloat16')
    with pytest.raises(UserError, match='choose auto'): pick_precision('half', cpu)


def test_f63_seeds():
    def draw(s): set_seed(s); return random.random(), np.random.rand(), torch.rand(3).tolist()
    assert draw(1) == draw(1) != draw(2)


def test_progress_in_a_program_that_loaded_ipykernel():
    code = 'import ipykernel, IPython\nfrom gansynth.core import progress\nprint(sum(progress(range(4), "x")))'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env={k: v for k, v in os.environ.items() if k != 'GANSYNTH_PROGRESS'})
    assert (done.returncode, done.stdout) == (0, '6\n'), done.stderr


@pytest.fixture
def pack(tmp_path, monkeypatch):
    "Function (name, source) that writes a module of a package `pack`, which can be found by name."
    monkeypatch.syspath_prepend(tmp_path)
    def write(name, text): save_text(text, tmp_path/'pack'/f'{name}.py')
    write('__init__', '')
    return write


def code_now(*modules):
    code_hash.cache_clear()
    return code_hash(*modules)


def test_a_key_changes_with_the_code_that_is_imported_and_with_nothing_else(pack):
    pack('top', 'import os\nfrom .middle import g\n\ndef h(): return g()\n')
    pack('middle', '"Doc."\nclass A:\n    "Doc."\n    x = 1\n\ndef g():\n    from pack import low # late\n    return low.f()\n')
    pack('low', 'def f(a=1): return a\n')
    pack('other', 'x = 1\n')
    first = code_now('pack.top')
    pack('middle', '# A note.\nclass A: x = 1\ndef g():\n\n    """Another text,\n    of two lines."""\n\n    from pack import low\n    return low.f()\n')
    pack('other', 'x = 2\n')
    assert code_now('pack.top') == first
    pack('low', 'def f(a=2): return a\n')
    assert code_now('pack.top') not in (first, code_now('pack.other'))
    code_hash.cache_clear()


def test_every_way_to_import_is_followed(pack):
    ways = ['from .low import f', 'from . import low', 'from pack.low import f', 'from pack import low', 'import pack.low', 'import pack.low as l',
            'try:\n    pass\nexcept ValueError:\n    from .low import f', 'def f():\n    if f:\n        pass\n    else:\n        with f:\n            from .low import f',
            'class A:\n    def f(self):\n        for i in self:\n            pass\n        else:\n            import pack.low', 'match 1:\n    case 1:\n        from .low import f']
    pack('low', 'from .top import x') # imports the other way round end too
    for way in ways:
        pack('top', way+'\n')
        assert {*code_of('pack.top')} == {'pack.top', 'pack.low'}, way
    pack('sub/__init__', 'from ..low import f')
    pack('sub/deep', 'from .deeper import f')
    pack('sub/deeper', 'from .. import low')
    assert {*code_of('pack.sub.deep')} == {'pack.sub.deep', 'pack.sub.deeper', 'pack.low', 'pack.top'}
    assert {*code_of('pack.sub')} == {'pack.sub', 'pack.low', 'pack.top'}
    with pytest.raises(UserError, match="no module 'pack.lost'"): code_of('pack.lost')


def test_keys_cover_what_was_forgotten_in_lists_kept_by_hand():
    for module, others in dict(classifier_training=['data', 'classifiers', 'convolutions'], gan_training=['data', 'generators', 'losses'], health=['statistics', 'fidelity'],
                               cells=['data', 'statistics', 'duplicates', 'privacy', 'classifier_training', 'gan_training']).items():
        assert {f'gansynth.{m}' for m in others} <= {*code_of(f'gansynth.{module}')}, module
    assert not {f'gansynth.{m}' for m in ('report', 'tables', 'widgets', 'cli', 'answers')} & {*code_of('gansynth.cells')}


def test_the_code_is_read_once_a_process(pack):
    pack('top', 'x = 1\n')
    first = code_now('pack.top')
    pack('top', 'x = 2\n')
    assert code_hash('pack.top') == first != code_now('pack.top')
    code_hash.cache_clear()
