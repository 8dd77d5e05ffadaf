"""What a privacy budget costs on real images: `python tests/private_gans.py [folder of PneumoniaMNIST]` (about five minutes on one core) writes results/private_training/.

Aggregates only. Can be stopped and called again; PneumoniaMNIST is read from ../shared/data unless a folder is named. The chapter Private training shows the table."""
import sys

import pandas as pd
import torch
from conftest import SHARED

from gansynth.core import environment, root, save_json, save_text
from gansynth.data import load, split
from gansynth.features import random_conv
from gansynth.fidelity import compare
from gansynth.recipes import Training
from gansynth.gans import Gan, sample
from gansynth.private_training import train_private
from gansynth.synthesis import as_many

STEPS, SETTINGS = 150, dict(gan='lung_adam', lr=3e-4, beta1=.5, clip=1., bs=8, seed=0, secret=None, snapshots=1) # public images: nothing to keep secret


def row(gan, data, valid, steps, sigma):
    "KID of 400 drawings to the validation part, beside what was spent."
    kid = compare(valid.images, sample(gan, 400, 1), random_conv(), patients=valid.patients).iloc[0]
    spent = gan.lineage.get('privacy', {})
    return dict(patients=len(set(data.patients)), images=len(data), sigma=sigma, steps=steps, epsilon=spent.get('epsilon'), delta=spent.get('delta'), KID=kid.value, low=kid.low, high=kid.high, floor=kid.floor, seed=SETTINGS['seed'])


if __name__ == '__main__':
    torch.set_num_threads(1)
    parts = split(load(f'medmnist:{(sys.argv[1:] or [SHARED/"pneumoniamnist"])[0]}', 28))
    sick, valid, out, runs = parts.train.positives, parts.valid.positives, root()/'results'/'private_training', root()/'runs'/'private_training'
    done = pd.read_csv(out/'gans.csv').to_dict('records') if (out/'gans.csv').is_file() else []
    for n, sigma, steps in [(n, sigma, STEPS) for sigma in (0., 1., .5, 2., .1) for n in (3000, 300)]+[(300, 0., 0)]:
        data = as_many(sick, n)
        if any((r['images'], r['sigma'], r['steps']) == (n, sigma, steps) for r in done): continue
        gan = train_private(data, max(1, steps), sigma=sigma, folder=runs/f'{n}-{sigma:g}-{steps}', save_every=20, **SETTINGS)
        if not steps: gan = Gan(Training(gan.lineage['config'], 'cpu').G.eval(), gan.lineage) # as it was before its first step
        done.append(row(gan, data, valid, steps, sigma))
        save_text(pd.DataFrame(done).to_csv(index=False), out/'gans.csv')
    save_text(pd.DataFrame(sorted(done, key=lambda r: (-r['images'], -r['steps'], r['sigma']))).to_csv(index=False), out/'gans.csv')
    save_json(dict(data='PneumoniaMNIST (pneumonia images, training part), 28x28', settings=SETTINGS, networks='study 4', synthetic=400, compared_with='validation part, pneumonia', extractor=random_conv().name,
                   split=parts.manifest['hash'], images=parts.manifest['counts'], environment=environment(torch.device('cpu'))), out/'provenance.json')
    print(pd.DataFrame(done).round(4))
