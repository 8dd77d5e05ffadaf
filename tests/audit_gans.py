"""The audit's figures for two generators on real images: `python tests/audit_gans.py` (about five minutes on two cores) writes results/privacy/.

Aggregates only; PneumoniaMNIST is read from ../shared/data. The chapter Privacy shows the table."""
import sys

import pandas as pd
import torch
from conftest import SHARED

from gansynth.core import environment, root, save_json, save_text
from gansynth.data import load, split
from gansynth.gan_training import train_gan
from gansynth.synthesis import as_many, examine, synthesise


def row(images, parts, steps, n_synthetic=2000):
    "One generator trained on `images`, drawn from, and examined."
    gan = train_gan(images, steps, bs=16, seed=0, split_hash=parts.manifest['hash'])
    found = examine(synthesise(gan, n_synthetic, seed=1), images, parts.valid.positives, parts.train.take(parts.train.labels == 0))
    audit, kid = found['audit'], next(r for r in found['fidelity'] if r['metric'].startswith('KID'))
    checks = {c['name']: None if c['value'] is None else round(c['value'], 4) for c in audit['checks']}
    return dict(generator=f'{len(images)} images of {len(set(images.patients))} patients', steps=steps, batch=16, compared=audit.get('images', {}).get('train'), verdict=audit['verdict'],
                near_copies_of_2000=audit['near_copies']) | checks | {kid['metric']: round(kid['value'], 4), 'floor': round(kid['floor'], 4)}


if __name__ == '__main__':
    torch.set_num_threads(1)
    parts = split(load(f'medmnist:{SHARED}/pneumoniamnist', 32))
    sick, steps = parts.train.positives, int((sys.argv[1:] or [1000])[0])
    table = pd.DataFrame([row(as_many(sick, n), parts, steps) for n in (60, 3000)])
    out = root()/'results'/'privacy'
    save_text(table.to_csv(index=False), out/'gans.csv')
    save_json(dict(data='PneumoniaMNIST (pneumonia images, training part by patient), 32x32', generator='DCGAN of study 1, seed 0', synthetic=2000, hold_out='validation part', features='normal images of the training part',
                   split=parts.manifest['hash'], images=parts.manifest['counts'], environment=environment(torch.device('cpu'))), out/'provenance.json')
    print(table.T)
