"""Speed of the exploratory analysis, from a Parquet file of invented metadata to its tables, as ratios of variants that take turns.

A round runs every variant once; the ratio, time of the reference / time of the variant, is taken within a round, and its median is reported."""
import importlib.util, json, os, shutil, subprocess, sys, tempfile, time
from pathlib import Path
from statistics import median

import pandas as pd

from gansynth import eda

SIZES, ROUNDS = (112_120, 1_000_000, 10_000_000), {112_120: 5, 1_000_000: 3, 10_000_000: 3}


def ours(con, path):
    "Read, check, and count: table1, label_counts, sex per label."
    t = eda.read_entries(con, path)
    return eda.table1(t), eda.label_counts(t), eda.per_label(t, 'sex')


def by_pandas(path):
    "The same tables by pandas, which holds the columns in memory; the labels are grouped as texts, too."
    h = eda.HEADER
    d = pd.read_parquet(path, columns=h[1:6])
    number, unit = pd.to_numeric(d[h[4]].str.replace('[YMD]$', '', regex=True)), d[h[4]].str[-1]
    n = pd.DataFrame(dict(follow_up=pd.to_numeric(d[h[2]]), patient_id=pd.to_numeric(d[h[3]]), age_dropped=number, age=number/unit.map({'M': 12., 'D': 365.}).fillna(1.)))
    g = d.groupby([h[1], h[5]]).size().rename('images').reset_index()
    long = g.assign(label=g[h[1]].str.split('|', regex=False)).explode('label')
    return n.describe(), long.groupby('label').images.sum().sort_values(ascending=False), long.pivot_table(values='images', index='label', columns=h[5], aggfunc='sum')


def peak(variant, path):
    "Largest resident memory, in MB, of a process that does it once; None where the system does not tell."
    if not Path('/proc/self/status').is_file(): return None
    code = f'import bench_eda as b; b.once({variant!r}, {str(path)!r})'
    env = os.environ | {'PYTHONPATH': os.pathsep.join([str(Path(__file__).parent), str(Path(eda.__file__).parents[1])])}
    return int(subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True, check=True).stdout)


def once(variant, path):
    by_pandas(path) if variant == 'pandas' else ours(eda.connect('duckdb'), path)
    status = dict(line.split(':') for line in Path('/proc/self/status').read_text().splitlines())
    print(int(status['VmHWM'].split()[0])//1024)   # of this process alone; ru_maxrss would carry over that of the parent


def alternate(jobs, rounds): # {name: function without arguments}
    "Seconds of each job, {name: [one a round]}, after a run that is not counted."
    for f in jobs.values(): f()
    seconds = {k: [] for k in jobs}
    for _ in range(rounds):
        for k, f in jobs.items():
            t = time.perf_counter()
            f()
            seconds[k].append(time.perf_counter() - t)
    return seconds


def row(case, variant, reference, s, target, limit, **more):
    ratios = [b/a for a, b in zip(s[variant], s[reference])]
    return dict(case=case, variant=variant, reference=reference, ratio=median(ratios), target=target, limit=limit, rounds=len(ratios),
                lowest=min(ratios), highest=max(ratios), seconds=median(s[variant]), reference_seconds=median(s[reference]), **more)


def rows(sizes=SIZES):
    "One dict for each comparison. Linear growth of time from the smallest size is a ratio of smallest/size: the target; half of it is the limit."
    found, least = [], sizes[0]
    with tempfile.TemporaryDirectory() as folder:
        paths = {n: eda.write_made(Path(folder)/f'{n}.parquet', n) for n in sizes}
        con = eda.connect('duckdb')
        for n in sizes:
            jobs = {f'duckdb {least:,}': lambda: ours(con, paths[least])} | {f'duckdb {n:,}': lambda: ours(con, paths[n])}
            if n <= 1_000_000: jobs['pandas'] = lambda: by_pandas(paths[n])
            if n == least and shutil.which('java') and importlib.util.find_spec('pyspark'):
                spark = eda.connect('spark')
                jobs['spark local'] = lambda: ours(spark, paths[n])
            s, us = alternate(jobs, ROUNDS.get(n, 3)), f'duckdb {n:,}'
            memory = {'peak_mb': peak('duckdb', paths[n])} | ({'reference_peak_mb': peak('pandas', paths[n])} if 'pandas' in jobs else {})
            if n > least: found.append(row(f'EDA, growth to {n:,} rows', us, f'duckdb {least:,}', s, least/n, least/n/2, peak_mb=memory['peak_mb']))
            if 'pandas' in jobs: found.append(row(f'EDA of {n:,} rows', us, 'pandas', s, 1., .5, **memory))
            if 'spark local' in jobs: found.append(row(f'EDA of {n:,} rows', us, 'spark local', s, 1., 1.))
    return found


if __name__ == '__main__':
    for r in rows(tuple(int(a) for a in sys.argv[1:]) or SIZES):
        print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in r.items()}), flush=True)
