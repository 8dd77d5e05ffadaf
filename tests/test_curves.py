"Curves: every point is told once, as it was measured, to whatever listens."
import sys

import numpy as np
import pandas as pd
import pytest

from gansynth.classifier_training import train_classifier
from gansynth.core import UserError
from gansynth.curves import board, callbacks, curves, tell, to_tensorboard, watching
from gansynth.data import load, split
from gansynth.gan_training import train_gan
from gansynth.gans import Gan
from gansynth.regimes import make_arm


@pytest.fixture(scope='module')
def parts(): return split(load('phantom:n_patients=60', size=32))


def classifier(parts, **how): return train_classifier(make_arm('raw', parts.train), parts.valid, 'fracture_cnn', 'fracture', n_epoch=2, steps_per_epoch=3, bs=8, precision='float32', **how)


def read(folder):
    "[(name, value, step)] of an event file."
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    e = EventAccumulator(str(folder), size_guidance=dict(scalars=0)); e.Reload()
    return [(tag, x.value, x.step) for tag in e.Tags()['scalars'] for x in e.Scalars(tag)]


def same(a, b):
    a, b = sorted(a), sorted(b)
    return [(n, s) for n, _, s in a] == [(n, s) for n, _, s in b] and np.allclose([v for _, v, _ in a], [v for _, v, _ in b], rtol=1e-6)


def test_of_a_gan():
    history = np.arange(12, dtype='float32').reshape(3, 4)
    history[1, 2] = np.inf
    rows = list(curves(Gan(None, {}, history=history, health=[dict(step=2, kid=.5, warnings=[]), dict(step=3, kid=np.nan, warnings=['collapsed'])])))
    assert ('gan/discriminator', 5., 2) in rows and ('health/kid', .5, 2) in rows
    assert len(rows) == 12 and not [r for r in rows if r[0] == 'gan/generator_gradient' and r[2] == 2] and not [r for r in rows if 'warnings' in r[0]]
    assert list(curves(Gan(None, {}))) == []


def test_of_a_finished_run(tmp_path):
    pd.DataFrame(dict(step=[0, 1], generator=[.1, .2])).to_csv(tmp_path/'gan_losses.csv', index=False)
    pd.DataFrame(dict(train_loss=[3., 2., 1.], best=[False, True, False], stage=[0, 1, 0], epoch=[1, 1, 1], arm=['warm_start', 'warm_start', 'raw'])).to_csv(tmp_path/'epochs.csv', index=False)
    pd.DataFrame(dict(arm=['raw']*4, seed=[0, 1, 1, 'mean'], metric=['auroc', 'auroc', 'auprc', 'auroc'], value=[.7, .8, np.nan, .75])).to_csv(tmp_path/'results.csv', index=False)
    want = [('gan/generator', .1, 0), ('gan/generator', .2, 1), ('classifier/warm_start/train_loss', 3., 1), ('classifier/warm_start/train_loss', 2., 2), ('classifier/raw/train_loss', 1., 1), ('test/raw/auroc', .7, 0), ('test/raw/auroc', .8, 1)]
    assert list(curves(tmp_path)) == want and same(read(to_tensorboard(tmp_path, tmp_path/'tb')), want)
    (tmp_path/'results.csv').unlink()
    with pytest.raises(UserError, match='results.csv is missing'): list(curves(tmp_path))


def test_mlflow_is_told_in_its_own_words(tmp_path):
    "log_metric(key, value, step): keys of letters, digits, _ - . / and spaces."
    heard = []
    def log_metric(key, value, step=None): heard.append((key, value, step))
    tell(Gan(None, {}, history=np.ones((2, 4), 'float32')), log_metric)
    assert len(heard) == 8 and all(set(k) <= set('abcdefghijklmnopqrstuvwxyz_/') and isinstance(v, float) and isinstance(s, int) for k, v, s in heard)


def test_live_and_afterwards_are_the_same(parts):
    live, asked = [], []
    def watch(t): asked.append(t.step); return dict(kid=1/t.step)
    watch.identity = 'mine'
    look = watching(lambda *p: live.append(p), watch)
    assert look.identity == 'mine'
    gan = train_gan(parts.train.positives, 6, bs=8, precision='float32', watch=look, snapshots=3)
    plain = train_gan(parts.train.positives, 6, bs=8, precision='float32', watch=watch, snapshots=3)
    assert sorted(live) == sorted(curves(gan)) and len(live) == 24+3 and asked == [2, 4, 6]*2
    assert gan.hash == plain.hash       # who listens changes nothing


def test_fastai_callback_for_tensorboard(parts, tmp_path):
    pytest.importorskip('tensorboard')
    from fastai.learner import defaults
    before = list(defaults.callbacks)
    with callbacks(board(tmp_path/'live')): t = classifier(parts)
    plain = classifier(parts)
    assert defaults.callbacks == before and t.epochs.equals(plain.epochs)
    live = read(tmp_path/'live')
    assert sorted({s for n, _, s in live if n == 'train_loss'}) == list(range(1, t.steps+1))      # fastai tells the last one again after each batch of the validation part
    assert [v for n, v, _ in live if n == 'lr_0'][:1] == [pytest.approx(1e-3)]
    assert np.allclose([v for n, v, _ in live if n == 'roc_auc_score'], t.epochs.valid_auroc)
    assert same(read(to_tensorboard(t, tmp_path/'after')), curves(t)) and same([p for p in curves(t) if 'auroc' in p[0]], [('classifier/raw/valid_auroc', v, i+1) for i, v in enumerate(t.epochs.valid_auroc)])


def test_callbacks_are_gone_after_an_error():
    from fastai.learner import defaults
    before = list(defaults.callbacks)
    with pytest.raises(KeyError):
        with callbacks(print): raise KeyError
    assert defaults.callbacks == before


def test_without_tensorboard_there_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', None)
    monkeypatch.setitem(sys.modules, 'fastai.callback.tensorboard', None)
    for f in (lambda: to_tensorboard(Gan(None, {}), tmp_path), lambda: board(tmp_path)):
        with pytest.raises(UserError, match=r'pip install gansynth\[tensorboard\]'): f()
