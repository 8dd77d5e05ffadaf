"""Which rule tells a copy from another person? Measures it on real images beside the checkout and writes results/duplicates/rule.csv:
    python tests/rule_duplicates.py
Only counts leave it. All pairs are compared, without the search of gansynth.duplicates."""
import csv, io, zipfile

import numpy as np
import pandas as pd
from PIL import Image

from conftest import ROOT, SHARED
from gansynth.duplicates import fingerprints, mirror, shrink

SEEDS, COPIES = (0, 1, 2), 300 # images drawn with each seed


def jpeg(x, rng, quality=50):
    f = io.BytesIO()
    Image.fromarray(x).save(f, 'JPEG', quality=quality)
    return np.asarray(Image.open(f))


def resized(x, w, h, box=None): return np.asarray(Image.fromarray(x).resize((w, h), Image.BICUBIC, box=box))


def half(x, rng): return resized(resized(x, x.shape[1]//2, x.shape[0]//2), *x.shape[::-1])


def crop(share):
    "Cut `share` of the width and height from each edge, and stretch what is left to the old size."
    return lambda x, rng: resized(x, *x.shape[::-1], box=(share*x.shape[1], share*x.shape[0], (1-share)*x.shape[1], (1-share)*x.shape[0]))


def marker(x, rng):
    "A white box of 1/12 of the height and 1/6 of the width in a corner."
    x = x.copy()
    x[:x.shape[0]//12, :x.shape[1]//6] = 255
    return x


def scaled(f): return lambda x, rng: np.clip(np.rint(f(x.astype(float))), 0, 255).astype('uint8')


CHANGES = {'jpeg 50': jpeg, 'half size': half, 'mirrored': lambda x, rng: x[:, ::-1], 'brightness +5 %': scaled(lambda x: 1.05*x),
           'brightness -5 %': scaled(lambda x: .95*x), 'gamma 1.5': scaled(lambda x: 255*(x/255)**1.5), 'noise sd 5': lambda x, rng: scaled(lambda y: y+rng.normal(0, 5, y.shape))(x, rng),
           'mirrored, half, jpeg': lambda x, rng: jpeg(half(x[:, ::-1], rng), rng), 'crop 1 %': crop(.01), 'crop 2 %': crop(.02), 'marker': marker}

RULES = {'bits <= 4': lambda s: s['bits'] <= 4, 'ncc > .98': lambda s: s['ncc'] > .98, 'bits <= 4 or ncc > .98': lambda s: (s['bits'] <= 4) | (s['ncc'] > .98),
         'bits <= 4 and ncc > .98': lambda s: (s['bits'] <= 4) & (s['ncc'] > .98), 'ncc > .99': lambda s: s['ncc'] > .99, 'ncc > .995': lambda s: s['ncc'] > .995,
         'ncc of 32x32 > .98': lambda s: s['ncc32'] > .98, 'ncc of 32x32 > .99': lambda s: s['ncc32'] > .99, 'ncc of 32x32 > .995': lambda s: s['ncc32'] > .995,
         'detail >= .85': lambda s: s['detail'] >= .85, 'ncc > .98 or bits <= 4 and detail >= .85': lambda s: (s['ncc'] > .98) | (s['bits'] <= 4) & (s['detail'] >= .85),
         'ncc >= .98 or detail >= .80': lambda s: (s['ncc'] >= .98) | (s['detail'] >= .8), 'ncc >= .98 or detail >= .85': lambda s: (s['ncc'] >= .98) | (s['detail'] >= .85),
         'ncc >= .98 or detail >= .90': lambda s: (s['ncc'] >= .98) | (s['detail'] >= .9)}


def pneumoniamnist():
    folder = SHARED/'pneumoniamnist'
    who = {(r['split'], r['index']): (r['kaggle_split'] == 'test', r['group_id']) for r in csv.DictReader(open(folder/'pneumoniamnist_patient_map.csv'))}
    with np.load(folder/'pneumoniamnist.npz') as z:
        found = [(x, who.get((p, str(i)))) for p in ('train', 'val', 'test') for i, x in enumerate(z[f'{p}_images'])]
    found = [(x, w) for x, w in found if w and w[1]]
    return np.stack([x for x, _ in found]), [str(w) for _, w in found]


def kermany():
    folder = SHARED/'kermany_cxr_224'
    with zipfile.ZipFile(folder/'kermany_cxr_224.zip') as z:
        names = {n.rsplit('/')[-1]: n for n in z.namelist()}
        rows = list(csv.DictReader(open(folder/'kermany_index.csv')))
        return np.stack([np.asarray(Image.open(io.BytesIO(z.read(names[r['file']]))).convert('L')) for r in rows]), [f"{r['kaggle_split'] == 'test'} {r['group_id']}" for r in rows]


def covid_ct(size=224):
    folder, who = SHARED/'covid_ct', {}
    for name, file, person in (('COVID', 'File name', 'Patient ID'), ('NonCOVID', 'image name', 'patient id')):
        for r in csv.DictReader(open(folder/f'{name}-CT-MetaInfo.csv', encoding='utf-8-sig')): who[r[file]] = f'{name} {r[person]}'
    files = [(f, who.get(f.name) or who.get(f.name.replace('%', '_'))) for f in sorted(folder.glob('Images/*/*'))]
    files = [(f, w) for f, w in files if w]
    return np.stack([resized(np.asarray(Image.open(f).convert('RGB').convert('L')), size, size) for f, _ in files]), [w for _, w in files]


def prints(x):
    "What the rules look at: fingerprints, and the correlation's 32x32 thumbnail."
    t = np.concatenate([shrink(x[s:s+1000], 32, 32) for s in range(0, len(x), 1000)])
    flat = [v.reshape(len(x), -1)-v.mean((1, 2), dtype='float64').astype('float32')[:, None] for v in (t, t[:, :, ::-1])]
    return fingerprints(x), *(v/np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-6) for v in flat)


def scores(a, b, dots, apart):
    "Scores of rows against rows: `dots` and `apart` say how vectors and hashes meet."
    (p, t, _), (q, u, um) = a, b
    both = lambda x, y, ym: np.maximum(dots(x, y), dots(x, ym))
    d, e = p.details.astype('float32'), q.details.astype('float32')
    return dict(bits=np.minimum(apart(p.bits, q.bits), apart(p.bits, q.mirrored_bits)), ncc=both(p.thumbs, q.thumbs, mirror(q.thumbs)),
                detail=both(d, e, mirror(e)), ncc32=both(t, u, um))


def measure(name, x, people, block=500):
    "One row for each rule: pairs of strangers flagged, and the share of planted copies found."
    people, whole = np.asarray(people), prints(x)
    flagged, strangers = dict.fromkeys(RULES, 0), 0
    for s in range(0, len(x), block):
        rows = slice(s, s+block)
        part = whole[0].take(rows), whole[1][rows], whole[2][rows]
        sc = scores(part, whole, lambda a, b: a @ b.T, lambda a, b: np.bitwise_count(a[:, None] ^ b))
        other = (people[rows, None] != people) & (np.arange(s, s+len(part[0]))[:, None] < np.arange(len(x)))
        strangers += int(other.sum())
        for r, f in RULES.items(): flagged[r] += int((f(sc) & other).sum())
    found = {r: {c: [] for c in CHANGES} for r in RULES}
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        drawn = rng.choice(len(x), min(COPIES, len(x)), replace=False)
        original = whole[0].take(drawn), whole[1][drawn], whole[2][drawn]
        for c, change in CHANGES.items():
            sc = scores(prints(np.stack([change(x[i], rng) for i in drawn])), original, lambda a, b: (a*b).sum(1), lambda a, b: np.bitwise_count(a ^ b))
            for r, f in RULES.items(): found[r][c].append(f(sc).mean())
    about = dict(data=name, native_size=x.shape[1], n_images=len(x), n_people=len(set(people)), pairs_of_strangers=strangers, copies_per_change=len(drawn)*len(SEEDS), seeds=' '.join(map(str, SEEDS)))
    return [about | dict(rule=r, flagged=flagged[r]) | {c: round(float(np.mean(v)), 4) for c, v in found[r].items()} for r in RULES]


if __name__ == '__main__':
    rows = [r for name, load in (('PneumoniaMNIST', pneumoniamnist), ('Kermany', kermany), ('COVID-CT', covid_ct)) for r in measure(name, *load())]
    out = ROOT/'results'/'duplicates'/'rule.csv'
    out.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(out, index=False)
    print(pd.DataFrame(rows).to_string())
