"Whole files, seeds and devices."
import os, random, subprocess, sys

import numpy as np
import pytest
import torch

from gansynth.core import UserError, atomic, pick_device, pick_precision, save_json, save_text, set_seed


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
