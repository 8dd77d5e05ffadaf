"Widgets without a browser: the numbers against oracles, and controls moved from Python."
import os, signal, subprocess, sys
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from scipy.stats import beta
from sklearn.metrics import cohen_kappa_score, confusion_matrix

from gansynth.core import UserError
from gansynth.explorers import LatentExplorer, TrainingMonitor, slerp
from gansynth.gan_training import train_gan
from gansynth.readers import KINDS, ReaderStudy, append_answer, compare_readers, mark, read_answers
from gansynth.widgets import DoseExplorer, Explorer, ThresholdExplorer, at_point, in_people, live, predictive_values
from gansynth.data import load


def img(w): return w.picture.value


@pytest.fixture(scope='module')
def data(): return load('phantom:n_patients=40', size=28)


@pytest.fixture(scope='module')
def gan(data): return train_gan(data, 4, 'conditional', 8, 0, snapshots=2)


@pytest.fixture
def line():
    rng = np.random.default_rng(0)
    def part(n, who): return pd.DataFrame([dict(image_id=f'{who}{i}', patient_id=f'{who}{i//2}', label=int(i < n//2), probability=float(np.clip(.4+.25*(i < n//2)+rng.normal(0, .2), 0, 1)), arm=a, seed=0) for a in ('raw', 'gan_aug') for i in range(n)])
    return ThresholdExplorer(dict(test=part(60, 't'), validation=part(30, 'v')), {('raw', 0): .5, ('gan_aug', 0): .6}, B=50)


@pytest.fixture
def dose():
    return DoseExplorer(pd.DataFrame([dict(split=0, fraction=f, classifier='c', generator=g, arm='gan_aug', ratio=r, value=.7+f/10+r/100+len(g)/1000, low=.6, high=.9) for f in (.5, 1.) for g in ('dcgan', 'r3') for r in (0., 1., 2.)]))


def readers(path, n=10, seed=0):
    rng = np.random.default_rng(9)
    return ReaderStudy(*rng.integers(0, 256, (2, 20, 16, 16), 'uint8'), path, n, seed)


# ---- numbers

@pytest.mark.parametrize('sens,spec,prev', [('9/10', '91/100', '1/100'), ('1/2', '1/2', '1/3'), ('1', '99/100', '1/1000')])
def test_predictive_values_are_those_of_bayes(sens, spec, prev):
    s, c, p = map(Fraction, (sens, spec, prev))
    found = predictive_values(float(s), float(c), float(p))
    assert found == pytest.approx((float(s*p/(s*p+(1-c)*(1-p))), float(c*(1-p)/(c*(1-p)+(1-s)*p))))


def test_predictive_values_where_nobody_is_called_so():
    assert np.isnan(predictive_values(0., 1., .1)[0]) and np.isnan(predictive_values(1., 0., .1)[1])
    assert 'nothing to be right about' in in_people(0., 1., .1)


def test_point_is_what_counting_gives(line):
    y, _, scores = line.parts['test']
    p = scores['raw', 0]
    (tn, fp), (fn, tp) = confusion_matrix(y, p >= .5)
    at = at_point(y, p, .5, y.mean(), line.w['test'])
    assert [v[0] for v in at.values()] == pytest.approx([tp/(tp+fn), tn/(tn+fp), tp/(tp+fp), tn/(tn+fn)])


def test_slerp_ends_norm_and_plane():
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.normal(size=(2, 100))
        ts = np.linspace(0, 1, 7)
        way = slerp(a, b, ts)
        assert np.allclose(way[[0, -1]], [a, b])
        assert np.allclose(np.linalg.norm(way, axis=1), (1-ts)*np.linalg.norm(a)+ts*np.linalg.norm(b))
        u = way/np.linalg.norm(way, axis=1)[:, None]
        assert np.ptp(np.arccos((u[1:]*u[:-1]).sum(1))) < 1e-6          # equal turns
    for bad in (-a, np.zeros(100)):
        with pytest.raises(UserError): slerp(a, bad, .5)


def test_marks_against_sklearn_and_clopper_pearson():
    rng = np.random.default_rng(0)
    for n in (4, 30, 101):
        kinds, said = np.arange(n)%2, rng.integers(0, 2, n)
        m, k = mark(kinds, said), int((kinds == said).sum())
        assert m['kappa'] == pytest.approx(cohen_kappa_score(kinds, said))
        assert (m['low'], m['high']) == pytest.approx((beta.ppf(.025, k, n-k+1) if k else 0, beta.ppf(.975, k+1, n-k) if k < n else 1))


# ---- the file of answers

def test_each_answer_is_on_disk_and_reading_goes_on(tmp_path):
    f = tmp_path/'deep'/'me.csv'
    a = readers(f)
    for i in range(4):
        a.answer('real')
        assert len(f.read_text().splitlines()) == i+2
    b = readers(f)
    assert b.next == 4 and b.said == a.said and np.array_equal(b.images, a.images)
    with pytest.raises(UserError, match='other images'): readers(f, seed=1)


@pytest.mark.slow
def test_killed_in_the_middle(tmp_path):
    f = tmp_path/'me.csv'
    code = f'import os, signal, sys; sys.path.insert(0, {os.path.dirname(__file__)!r})\nfrom pathlib import Path; from test_widgets import readers\na = readers(Path({str(f)!r}))\nfor _ in range(3): a.answer("generated")\nos.kill(os.getpid(), signal.SIGKILL)'
    assert subprocess.run([sys.executable, '-c', code]).returncode == -signal.SIGKILL
    assert readers(f).next == 3


@pytest.mark.parametrize('keep', range(1, 30))
def test_a_torn_line_is_asked_again(tmp_path, keep):
    f = tmp_path/'me.csv'
    a = readers(f)
    a.answer('real'); a.answer('generated')
    whole = f.read_bytes()
    last = whole.rstrip(b'\n').rfind(b'\n')+1
    f.write_bytes(whole[:last+keep])
    b = readers(f)
    assert b.next == (2 if whole[last:last+keep].strip() == whole[last:].strip() else 1)
    if b.next == 1:
        b.answer('real')
        assert readers(f).said[b.names[1]] == 'real' and readers(f).next == 2


def test_second_thoughts_and_foreign_lines_do_not_count(tmp_path):
    f = tmp_path/'me.csv'
    a = readers(f)
    a.answer('real')
    append_answer(f, a.study, 1, a.names[0], 'generated')
    with open(f, 'ab') as g: g.write(b'\xff\xfe,,\n' + f'{a.study},2,nobody,real\n'.encode() + f'{a.study},2,{a.names[1]},perhaps\n'.encode())
    said, bad = read_answers(f, a.study, a.names)
    assert said == {a.names[0]: 'real'} and len(bad) == 3


def test_the_truth_is_told_at_the_end_only(tmp_path):
    a = readers(tmp_path/'a.csv', 4)
    for i in range(4):
        with pytest.raises(UserError, match='after the last'): a.kinds
        assert not set('right accuracy kappa'.split()) & set(a.drawn()[1].split())
        a.answer(KINDS[i%2])
    assert f'{(a.kinds == a.answers()).sum()} of 4 right' in a.drawn()[1]
    assert not {'real', 'generated'} & set(','.join(a.names).split(','))


def test_between_readers(tmp_path):
    studies = [readers(tmp_path/f'{k}.csv', 10) for k in 'ab']
    rng = np.random.default_rng(1)
    for s in studies:
        for i in rng.integers(0, 2, 10): s.answer(KINDS[i])
    t = compare_readers(studies[0], [s.file for s in studies])
    a, b = (s.answers() for s in studies)
    assert t.kappa['a', 'b'] == pytest.approx(cohen_kappa_score(a, b)) and t.kappa['a', 'truth'] == pytest.approx(cohen_kappa_score(studies[0].kinds, a))


# ---- controls, moved from Python

def every_control(line, dose, gan, data):
    "[(explorer, name of the control, another value)]"
    walk, watch = LatentExplorer(gan, data), TrainingMonitor(gan)
    return [(line, 'threshold', .8), (line, 'prevalence', .01), (line, 'part', 'validation'), (line, 'run', 'gan_aug, seed 0'), (dose, 'ratio', 1.), (dose, 'fraction', 1.), (dose, 'generator', 'r3'),
            (walk, 'position', .5), (walk, 'seed_a', 5), (walk, 'seed_b', 7), (walk, 'image', data.classes[1]), (watch, 'look', 0)]


def unmoved(controls):
    "Names of the controls that leave the picture as it is."
    out = []
    for w, name, value in controls:
        w.view
        before = img(w)
        w.controls[name].value = value
        if img(w) == before: out.append(name)
    return out


def test_every_control_changes_its_picture(line, dose, gan, data): assert unmoved(every_control(line, dose, gan, data)) == []


def test_without_its_callback_no_control_does(line, dose, gan, data, monkeypatch):
    "The ablation: the test above can fail."
    monkeypatch.setattr(Explorer, 'moved', lambda self, change: None)
    for c in (ThresholdExplorer, LatentExplorer, TrainingMonitor): monkeypatch.setattr(c, 'moved', Explorer.moved)
    controls = every_control(line, dose, gan, data)
    assert unmoved(controls) == [name for _, name, _ in controls]


def test_another_arm_brings_its_threshold_and_the_button_brings_it_back(line):
    line.view
    line.controls['run'].value = 'gan_aug, seed 0'
    assert line.controls['threshold'].value == .6
    line.controls['threshold'].value = .2
    line.controls['back'].click()
    assert line.state['threshold'] == .6 and 'threshold 0.600' in img(line)


def test_keys_and_buttons_of_the_reader(tmp_path):
    a = readers(tmp_path/'a.csv', 4)
    a.view
    seen = {img(a)}
    a.controls['real'].click(); seen.add(img(a))
    a.controls['key'].value = 'g'; seen.add(img(a))
    assert len(seen) == 3 and list(a.said.values()) == ['real', 'generated'] and a.controls['key'].value == ''
    a.controls['key'].value = 'rg'         # typed ahead of an image that was not seen yet
    a.controls['key'].value = 'x'
    assert len(a.said) == 2 and a.controls['key'].value == ''
    a.controls['generated'].click(); a.controls['key'].value = 'R'
    assert a.next is None and 'of 4 right' in img(a) and a.controls['real'].disabled
    a.controls['real'].click()
    assert len(a.file.read_text().splitlines()) == 5


def test_a_full_disk_is_told_and_the_image_stays(tmp_path):
    (tmp_path/'taken').write_text('a file where a folder should be')
    a = readers(tmp_path/'a.csv', 4)
    a.view
    a.file = tmp_path/'taken'/'a.csv'
    a.controls['real'].click()
    assert 'cannot write' in img(a) and a.next == 0


# ---- sources

def test_monitor_follows_the_checkpoints_of_a_training(tmp_path, data):
    train_gan(data, 2, 'conditional', 8, 0, folder=tmp_path, snapshots=1, save_every=0)
    w = TrainingMonitor(tmp_path)
    w.view
    before = img(w)
    train_gan(data, 4, 'conditional', 8, 0, folder=tmp_path, snapshots=1, save_every=0)
    w.controls['follow'].value += 1        # what the play button does every two seconds
    assert img(w) != before and len(w.seen['checkpoint'].losses) == 4
    for f in tmp_path.glob('step-*'): f.unlink()
    shown = img(w)
    w.controls['again'].click()            # between two checkpoints
    assert img(w) == shown


def test_monitor_as_watch_draws_while_training_and_changes_nothing(data, gan):
    pictures, w = [], TrainingMonitor()
    w.view
    w.picture.observe(lambda c: pictures.append(c.new), 'value')
    same = train_gan(data, 4, 'conditional', 8, 0, snapshots=2, watch=w)
    assert len(set(pictures)) >= 2 and same.hash == gan.hash


@pytest.mark.parametrize('make', [ThresholdExplorer, LatentExplorer, TrainingMonitor, DoseExplorer])
def test_a_folder_of_something_else_is_refused_in_a_sentence(make, tmp_path):
    with pytest.raises(UserError) as e: make(tmp_path)
    assert str(tmp_path) in str(e.value) and 'give' in str(e.value).lower()


def test_outside_a_notebook_there_is_the_picture_and_its_words(line):
    assert not live()
    bundle, facts = line._repr_mimebundle_()
    assert set(bundle) == {'text/plain', 'image/png'} and facts['image/png']['alt'] == bundle['text/plain'] and 'view' not in vars(line)


def test_a_finished_run(smoke_run):
    _, smoke_run = smoke_run
    assert len(TrainingMonitor(smoke_run).seen['generator'].losses) and 'hantom' in TrainingMonitor(smoke_run).about
    assert 'nearest training image' in LatentExplorer(smoke_run).drawn()[1]
    assert 'validation chose' in ThresholdExplorer(smoke_run).drawn()[1]
