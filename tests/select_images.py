"""Does choosing synthetic images by a rule beat taking as many at random? `python tests/select_images.py [minutes] [folder of the data]` writes results/selection/.

PneumoniaMNIST at 32 pixels, few pneumonia patients; aggregates only. It stops after so many minutes and goes on where it stopped (runs/selection/) when called again;
the test part is opened once, when all networks are trained. The chapter Synthesis shows the table. What follows was fixed before the test part was opened."""
import sys, time
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import cross_entropy

from gansynth.calibration import by_gan, contrasts
from gansynth.classifier_training import Stage, predict
from gansynth.core import atomic, environment, hash_of, load_json, root, save_json, save_text, set_seed
from gansynth.data import count, index_batches, load, split
from gansynth.evaluation import align, auroc, constant_predictor, drawn_means, interval, patient_resamples
from gansynth.features import random_conv
from gansynth.gan_training import train_gan
from gansynth.gans import to_unit
from gansynth.regimes import make_arm, real_stage
from gansynth.synthesis import at_random, compose, discriminator_score, diverse, export_set, label_agreement, load_set, no_near_copies, realism, synthesise, top

DESIGN = dict(size=32, imbalance_ratio=5, fraction=.25, pool=2000, chosen=250, gan=dict(steps=600, batch=16), classifier=dict(steps=400, batch=64, epochs=8, lr=2e-3), gans=3, classifiers=5, margin=.02, resamples=2000)


# --- networks ------------------------------------------------------------------------------------------------------------
def small_cnn():
    "Four blocks of strided convolution, BatchNorm and ReLU: (b,1,h,w) -> logits (b,2)."
    blocks = [nn.Sequential(nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU(True)) for a, b in zip((1, 8, 16, 32), (8, 16, 32, 64))]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2)).to(memory_format=torch.channels_last)


def train_classifier(t, valid, seed, steps, batch, epochs, lr): # Stage; Images; seed; optimiser steps; images in each; how often the validation part is looked at
    "(network with the weights of its best epoch, its AUROC on the validation part, optimiser steps that were made)."
    set_seed(seed)
    net, made, best = small_cnn(), 0, (-1, None)
    opt = torch.optim.AdamW(net.parameters(), lr, weight_decay=.01, fused=True)
    rate = torch.optim.lr_scheduler.OneCycleLR(opt, lr, total_steps=steps)
    x, y = torch.from_numpy(np.ascontiguousarray(t.images)), torch.from_numpy(t.labels)
    for idx in islice(index_batches(len(y), batch, seed), steps):
        net.train(); opt.zero_grad()
        cross_entropy(net(to_unit(x[idx]).contiguous(memory_format=torch.channels_last)), y[idx]).backward()
        opt.step(); rate.step(); made += 1
        if made % (steps//epochs) == 0:
            value = float(auroc(valid.labels, predict(net, valid.images)))
            if value > best[0]: best = value, {k: v.clone() for k, v in net.state_dict().items()}
    net.load_state_dict(best[1])
    return net.eval(), best[0], made


@torch.no_grad()
def logits_of(D, images): # discriminator in evaluation mode; uint8 (n,h,w)
    "Its logits, (n,)."
    return torch.cat([D(to_unit(x)) for x in torch.from_numpy(images).split(256)]).numpy()


# --- arms ----------------------------------------------------------------------------------------------------------------
def rules(n, seed, train, features): # images to choose; seed of the random choice; uint8 images that the generator saw; function: images -> (n,d)
    "{name: rule} on a pool with scores; all of them, and nothing that they are fitted on, come from the training part."
    return {'random': at_random(n, seed), 'discriminator': top(n, 'discriminator'), 'agreement': top(n, 'agreement'), 'realism': top(n, 'realism'), 'no near copies': compose(no_near_copies(train), at_random(n, seed)),
            'diverse': diverse(n, features), 'by taste': compose(no_near_copies(train), top(4*n, 'agreement'), top(n, 'realism'))} # what study 2's authors may have looked for: of its class, and real


RULES = tuple(rules(1, 0, None, None))[1:]
SCALE = ('raw', 'duplicates', 'more real')


def added(train, images): # Images; uint8 (n,h,w) of the positive class
    "The `Stage` of the training part and further positive images."
    return Stage(np.concatenate([train.images, images]), np.r_[train.labels, np.ones(len(images), train.labels.dtype)], np.zeros(len(train)+len(images), bool))


def arms(train, spare, pool, n, seed, features): # Images; positive Images of other patients; a scored Synthetic; images to add; seed of what is random
    "{name: (Stage, the chosen Synthetic or None)}"
    rng, sick = np.random.default_rng([seed, 9]), train.positives
    chosen = {k: r(pool) for k, r in rules(n, seed, sick.images, features).items()}
    real = {'raw': real_stage(train), 'duplicates': added(train, sick.images[np.resize(rng.permutation(len(sick)), n)]), 'more real': added(train, spare.images[rng.permutation(len(spare))[:n]])}
    return {k: (make_arm('gan_aug', train, [s]).stages[0], s) for k, s in chosen.items()} | {k: (t, None) for k, t in real.items()}


def few(data, imbalance_ratio, fraction): # Images
    "(Split with few positive patients, the positive training images of the patients that it leaves out)."
    parts, whole = split(data, imbalance_ratio=imbalance_ratio, fraction=fraction), split(data).train.positives
    return parts, whole.take(~np.isin(whole.patients, parts.train.patients))


def make_pool(parts, g, out, features): # Split; number of the GAN; folder
    "The scored pool of GAN `g`, from `out` where it lies already. The judge of label agreement is a classifier of the training part with a seed of its own."
    if not (out/'card.json').exists():
        gan = train_gan(parts.train.positives, DESIGN['gan']['steps'], bs=DESIGN['gan']['batch'], seed=g, split_hash=parts.manifest['hash'])
        judge, _, _ = train_classifier(real_stage(parts.train), parts.valid, 1000+g, **DESIGN['classifier'])
        score = compose(discriminator_score(partial(logits_of, gan.discriminator)), label_agreement(partial(predict, judge)), realism(features, parts.train.positives.images))
        export_set(score(synthesise(gan, DESIGN['pool'], seed=g)), out, data=parts.manifest['source'], allow_failed_audit=True)
    return load_set(out)


# --- runs ----------------------------------------------------------------------------------------------------------------
def cells(): return [(g, 100*g+c) for g in range(DESIGN['gans']) for c in range(DESIGN['classifiers'])]


def train_all(parts, spare, runs, until): # folder; time at which no further cell is begun
    "One file of weights and one row a cell; True when all are there."
    features = random_conv()
    for g, seed in cells():
        if time.time() > until: return False
        pool, made = make_pool(parts, g, runs/f'pool{g}', features), None
        for arm in (*SCALE, 'random', *RULES):
            if (file := runs/f'{arm} {seed}.json').exists(): continue
            if time.time() > until: return False
            made = made or arms(parts.train, spare, pool, DESIGN['chosen'], seed, features)
            t, s = made[arm]
            net, valid, steps = train_classifier(t, parts.valid, seed, **DESIGN['classifier'])
            with atomic(file.with_suffix('.safetensors')) as tmp: save_file({k: v.contiguous() for k, v in net.state_dict().items()}, tmp)
            about = {} if s is None else dict(rule=s.rule, agreement=float(s.scores['agreement'].mean()), near_copies=len(s)-len(no_near_copies(parts.train.positives.images)(s)), generator=s.generator)
            save_json(dict(arm=arm, seed=seed, gan=g, n_train=len(t.labels), n_added=len(t.labels)-len(parts.train), steps=steps, valid_auroc=valid) | about, file)
    return True


def tested(parts, runs):
    "Predictions of all cells on the test part, which is opened here and nowhere else."
    if not (file := runs/'test.parquet').exists():
        test, net, rows = parts.test.open('selection rules: final evaluation'), small_cnn(), []
        for arm in (*SCALE, 'random', *RULES):
            for _, seed in cells():
                net.load_state_dict(load_file(runs/f'{arm} {seed}.safetensors'))
                rows.append(pd.DataFrame(dict(image_id=test.ids, patient_id=test.patients, label=test.labels, probability=predict(net, test.images), arm=arm, seed=seed)))
        with atomic(file) as tmp: pd.concat(rows).to_parquet(tmp)
    return pd.read_parquet(file)


def levels(preds, gan_of, B): # predictions; {seed: GAN}
    "A row for each arm: AUROC, mean over seeds, with its 95 % interval; and the constant predictor's."
    y, patients, scores = align(preds)
    w, rows = patient_resamples(patients, y, B), [dict(arm='constant', auroc=constant_predictor(y)['auroc'])]
    for arm in preds.arm.unique():
        runs = {s: np.r_[auroc(y, p), auroc(y, p, w)] for (a, s), p in scores.items() if a == arm}
        units = by_gan(np.stack(list(runs.values())), [gan_of[s] for s in runs])
        rows.append(dict(arm=arm, auroc=units[:, 0].mean(), **dict(zip(('auroc_low', 'auroc_high'), interval(drawn_means(units[:, 0], units[:, 1:], (0, 1)))))))
    return pd.DataFrame(rows)


def judged(preds, gan_of, margin, B): # predictions
    "Contrasts with the random choice: the rules are one family (Holm), the arms that give the scale another."
    families = {'rule': RULES, 'scale': SCALE}
    return pd.concat([contrasts(preds[preds.arm.isin(['random', *f])], 'random', B=B, margin=margin, gan_of=gan_of).assign(family=k, n_gans=DESIGN['gans']) for k, f in families.items()])


def write(parts, spare, runs, out, name): # Split; Images; folder of the cells, all of which are there; folder of the results; of the data
    "rules.csv, a row an arm, and provenance.json; returns the table."
    gan_of, margin, B = {s: g if DESIGN['gans'] > 1 else s for g, s in cells()}, DESIGN['margin'], DESIGN['resamples'] # of one GAN only the classifiers' seeds can be resampled
    preds, about = tested(parts, runs), pd.DataFrame([load_json(runs/f'{arm} {seed}.json') for arm in (*SCALE, 'random', *RULES) for _, seed in cells()])
    first, mean = ({c: (c, how) for c in cols} for how, cols in (('first', ('n_train', 'n_added', 'rule', 'steps')), ('mean', ('valid_auroc', 'agreement', 'near_copies'))))
    if (about.groupby('arm')[['n_train', 'n_added', 'steps']].nunique() > 1).any(axis=None): raise ValueError('the cells of an arm differ in count or steps')
    table = levels(preds, gan_of, B).merge(about.groupby('arm').agg(**first, **mean).reset_index(), how='left').merge(judged(preds, gan_of, margin, B), how='left', on='arm')
    save_text(table.to_csv(index=False, float_format='%.5f'), out/'rules.csv')
    save_json(dict(data=f'{name}, {DESIGN["size"]}x{DESIGN["size"]}', classes=list(spare.classes), design=DESIGN, split=parts.manifest['hash'], images=parts.manifest['counts'], generator='DCGAN of study 1, trained on the positive images of the training part', generators=sorted(about.generator.dropna().unique()),
                   seeds=sorted(gan_of), features=random_conv().name, spare=count(spare)[spare.classes[1]], fixed_beforehand='arms, steps, seeds, margin and families; the share of patients was chosen on the validation part, by the room between raw and more real; the third GAN was added after a first look at the results of two',
                   environment=environment(torch.device('cpu'))), out/'provenance.json')
    return table


if __name__ == '__main__':
    torch.set_num_threads(1)
    minutes, folder = float((sys.argv[1:] or [60])[0]), Path((sys.argv[2:] or [root().parent/'shared'/'data'])[0])
    runs = root()/'runs'/'selection'/hash_of({k: v for k, v in DESIGN.items() if k != 'gans'})[:10]
    parts, spare = few(load(f'medmnist:{folder}/pneumoniamnist', DESIGN['size']), DESIGN['imbalance_ratio'], DESIGN['fraction'])
    if not train_all(parts, spare, runs, time.time()+60*minutes): sys.exit('not done yet: call again')
    print(write(parts, spare, runs, root()/'results'/'selection', 'PneumoniaMNIST').to_string())
