"""What goes wrong when GANs are trained, on real images: `python tests/gan_trials.py [--seconds 90] [--data FOLDER]` writes results/gan_trials/.

One call does the next unfinished pieces until the seconds are over; a piece is the training from one snapshot to the next, kept in runs/gan_trials/.
Call it again until it says that nothing is left; more steps in `trials` continue what was there. Aggregates and generated images only; PneumoniaMNIST is read from ../shared/data. The chapter What goes wrong shows the tables."""
import argparse, time
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from conftest import SHARED
from scipy.stats import t as student_t

from gansynth.core import UserError, environment, load_json, root, save_figure, save_json, save_text, show_images, use_style
from gansynth.data import load, split
from gansynth.duplicates import fingerprints, near_pairs
from gansynth.features import random_conv
from gansynth.fidelity import kid
from gansynth.gan_training import train_gan
from gansynth.gans import draw, noise
from gansynth.recipes import find_recipe
from gansynth.synthesis import as_many

RUNS, OUT = root()/'runs'/'gan_trials', root()/'results'/'gan_trials' # what is trained, with a row file for each trial; what is committed
ROWS = RUNS
COLUMNS = 'trial gan images augment lr optimiser seed step kid kid_low kid_high kid_floor spread g_loss d_loss n_train n_valid'.split()


@dataclass(frozen=True)
class Trial:
    "One training: which question it belongs to, and what it is."
    trial: str
    gan: str
    images: int                 # the first so many pneumonia images of the training part, whole patients in hash order
    steps: int
    bs: int = 32
    seed: int = 0
    snapshots: int = 5
    changes: dict = field(default_factory=dict)

    @property
    def is_done(self): # also when `steps` was raised since: then the training goes on
        table = pd.read_csv(ROWS/f'{self.name}.csv') if (ROWS/f'{self.name}.csv').is_file() else None
        return table is not None and (table.step.max() >= self.steps or table.failed.notna().any())

    @property
    def name(self): return '-'.join([self.gan, f'{self.images}', f's{self.seed}', *(f'{k}={v}' for k, v in sorted(self.changes.items()) if v != '')])


def trials():
    "All of them, the most important first."
    def few(trial, images, seed=0, **changes): return Trial(trial, 'dcgan', images, 500, seed=seed, changes=changes)
    def study4(gan, lr): return Trial('optimiser', f'lung_{gan}', 3400, 300, changes=dict(lr=lr))
    yield from (few('augmentation', 300, augment=a) for a in ('', 'fixed'))
    yield from (few('number', 60, augment=a) for a in ('', 'fixed'))
    yield from (study4(gan, 1e-3) for gan in ('adam', 'rmsprop'))
    yield from (study4('adam', lr) for lr in (1e-2, 1e-4))
    yield few('augmentation', 300, augment='adaptive')
    yield from (few('number', 600, augment=a) for a in ('', 'fixed'))
    # r3gan's own average keeps .995 of itself a step: after 60 steps that would still be the untrained network
    yield from (Trial('r3gan', 'r3gan', 300, 60, 16, changes=dict(augment=a, gamma=1., ema=.9)) for a in ('fixed', ''))
    yield from (few('augmentation', 300, seed, augment=a) for seed in (1, 2) for a in ('', 'fixed'))
    yield from (study4('rmsprop', lr) for lr in (1e-2, 1e-4))


class Judge:
    "The monitor of a training: KID against the validation part, its interval, and the spread of the drawn images."
    def __init__(self, sick, valid, n_floor): # pneumonia images of the training part; of the validation part; real images for the floor
        self.extractor, self.valid = random_conv(), valid
        self.real = self.extractor(valid.images)
        unseen = np.flatnonzero(~np.isin(sick.ids, as_many(sick, len(sick)-n_floor).ids))
        unseen = sick.take(unseen).images
        self.small = thumbnails(valid.images)
        self.floor, self.small_floor = self.interval(self.real, self.extractor(unseen)), self.interval(self.small, thumbnails(unseen))

    def interval(self, real, features):
        v = kid(real, features)
        reach = student_t.ppf(.975, 9)*v.se
        return v.value, v.value-reach, v.value+reach

    def look(self, images): # uint8 (n,h,w)
        two = self.interval(self.real, self.extractor(images)), self.interval(self.small, thumbnails(images))
        return dict(zip(('kid', 'kid_low', 'kid_high', 'kid_small', 'kid_small_low', 'kid_small_high'), two[0]+two[1]), kid_floor=self.floor[0], spread=float(spread(images)/spread(self.valid.images)))

    def __call__(self, t):
        n = t.config['n_classes']
        found = self.look(draw(t.drawer, noise(len(self.valid), t.config['nz'], 1), torch.zeros(1, dtype=torch.int64) if n else None))
        last = t.history[max(0, t.step-50):t.step].mean(0)
        return found | dict(g_loss=float(last[0]), d_loss=float(last[1]), p=float(t.p))


def thumbnails(images): # uint8 (n,28,28)
    "Features (n,49) that know where things are, as the mean responses of random_conv do not: 7x7 means, in [-1,1]."
    return images.reshape(-1, 7, 4, 7, 4).mean((2, 4)).reshape(len(images), 49)/127.5-1


def spread(images): # uint8 (n,h,w)
    "Standard deviation of a pixel over the images, root mean square over the pixels."
    return np.sqrt(images.astype(float).var(0).mean())


def piece(trial, data, judge):
    "Train to the next snapshot; writes the table when that was the last. Returns a line to print."
    folder = RUNS/trial.name
    state = load_json(folder/'state.json') if (folder/'state.json').is_file() else dict(step=0, cpu_s={'0': 0.}, rows=[])
    step, start = state['step']+trial.steps//trial.snapshots, time.process_time()
    try: gan = train_gan(data, step, trial.gan, trial.bs, trial.seed, folder=folder/'checkpoints', save_every=600., watch=judge, snapshots=1, **trial.changes)
    except UserError as e: state, gan = state | dict(failed=str(e)), None
    state['cpu_s'][str(step)] = state['cpu_s'][str(state['step'])]+time.process_time()-start
    state['step'] = step
    if gan:
        state['rows'] = [r | dict(cpu_s=state['cpu_s'].get(str(r['step']))) for r in gan.health]
        grid(trial, gan.grids[step], step, data)
    save_json(state, folder/'state.json')
    if state.get('failed') or step >= trial.steps: save_text(table(trial, state, len(data), len(judge.valid)).to_csv(index=False, float_format='%.6g'), ROWS/f'{trial.name}.csv')
    r = state['rows'][-1] if state['rows'] else {}
    return f"{trial.name} step {step}/{trial.steps} {state['cpu_s'][str(step)]:.0f} s "+', '.join(f'{k} {r[k]:.4g}' for k in ('kid', 'spread', 'g_loss', 'd_loss') if k in r)+state.get('failed', '')


def grid(trial, images, step, train): # uint8 (16,h,w), from the same noise at every step; Images that it was trained on
    "Save a picture of the generated images, without those that look like a copy of a patient's."
    path, near = OUT/f'{trial.name}.png', near_pairs(fingerprints(images), fingerprints(train.images)).i.unique()
    path.unlink(missing_ok=True)
    if len(near) == len(images): return
    use_style()
    left_out = f', {len(near)} of {len(images)} left out, too near a patient' if len(near) else ''
    fig = show_images(np.delete(images, near, 0), ncol=8, scale=.55, title=f'generated: {trial.name}, step {step}{left_out}')
    save_figure(fig, path)
    plt.close(fig)


def table(trial, state, n_train, n_valid):
    "One row for each snapshot, in the order of COLUMNS; a trial that diverged has a last row without numbers."
    r = find_recipe(trial.gan, **trial.changes)
    rows = [*state['rows'], *([dict(step=state['step'], cpu_s=state['cpu_s'][str(state['step'])])] if state.get('failed') else [])]
    fixed = dict(trial=trial.trial, gan=trial.gan, images=trial.images, augment=r.augment or 'none', lr=r.lr, optimiser=r.optimiser, seed=trial.seed, n_train=n_train, n_valid=n_valid)
    extra = dict(bs=trial.bs, gamma=r.gamma, failed=state.get('failed', ''))
    return pd.DataFrame([fixed | extra | row for row in rows]).reindex(columns=[*COLUMNS, *extra, 'p', 'cpu_s', 'kid_small', 'kid_small_low', 'kid_small_high'])


def finish(done, parts, judge):
    "All tables as one, and where they come from."
    tables = [pd.read_csv(ROWS/f'{t.name}.csv') for t in done]
    save_text(pd.concat(tables).to_csv(index=False), OUT/'trials.csv')
    cost = {t.name: dict(steps=int(d.step.max()), batch=t.bs, seeds=1, cpu_ms_a_step=round(float(1000*d.cpu_s.max()/d.step.max()), 1)) for t, d in zip(done, tables)}
    save_json(dict(data='PneumoniaMNIST 28x28, pneumonia images, patients on one side of the split only', split=parts.manifest['hash'], counts=parts.manifest['counts'], extractor=judge.extractor.name,
                   floor=dict(zip(('kid', 'low', 'high'), judge.floor), images=[len(judge.valid)]*2, what='validation images against training images that no trial of fewer than 2,000 images saw'),
                   small=dict(zip(('kid', 'low', 'high'), judge.small_floor), what='KID of thumbnails of 7x7 means, same images'),
                   interval='95 %, jackknife over blocks of images: of this generator, not of another seed', drawn=len(judge.valid), spread='of pixels over images, drawn / validation', losses='mean of the last 50 steps',
                   processor='cpu_s: processor seconds of training and looking, one thread', trials=cost, environment=environment(torch.device('cpu'))), OUT/'provenance.json')


if __name__ == '__main__':
    ask = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ask.add_argument('--seconds', type=float, default=90.)
    ask.add_argument('--data', type=Path, default=SHARED/'pneumoniamnist')
    ask, began = ask.parse_args(), time.monotonic()
    torch.set_num_threads(1)
    parts = split(load(f'medmnist:{ask.data}', 28))
    sick, end = parts.train.positives, began+ask.seconds
    judge, slowest = Judge(sick, parts.valid.positives, len(parts.valid.positives)), 0.
    todo = [t for t in trials() if not t.is_done]
    while todo and time.monotonic()+slowest < end:
        start = time.monotonic()
        print(piece(todo[0], as_many(sick, todo[0].images), judge), flush=True)
        slowest = max(slowest, time.monotonic()-start)
        todo = [t for t in todo if not t.is_done]
    done = [t for t in trials() if t.is_done]
    if done: finish(done, parts, judge)
    print(f'{len(todo)} trials left' if todo else 'nothing left')
