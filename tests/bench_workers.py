"""What it costs to hand out tasks: 40 tasks of one second on two processes against the ideal 20 s, and 2,000 empty ones.

A row is {case, variant, reference, ratio, target, limit, rounds}, as in bench_gan.py; ratio = measured / ideal, so that 1 is perfect and 1.25 the limit; other rows hold milliseconds a task."""
import os, sys, tempfile, time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent))
os.environ['PYTHONPATH'] = os.pathsep.join([*sys.path[:2], os.environ.get('PYTHONPATH', '')])

import tasks_for_workers as t
from gansynth.core import environment, root, save_json
from gansynth.shelf import Shelf
from gansynth.workers import Task, run_all


def seconds(n, nap, backend='loky'):
    "Time of n tasks on two workers, with the start of the workers and the end."
    with tempfile.TemporaryDirectory() as d:
        tasks = [Task(f'k{i}', 'cell', f'cell {i}', args=dict(nap=nap)) for i in range(n)]
        start = time.time()
        assert {o.status for o in run_all(tasks, t.do, Shelf(d), 2, backend)} == {'done'}
        return time.time()-start


def measured(rounds=3):
    times = [seconds(40, 1) for _ in range(rounds)]
    yield dict(case='40 tasks of 1 s on 2 processes', variant='loky', reference='ideal (20 s)', ratio=round(median(times)/20, 3), target=None, limit=1.25, rounds=rounds)
    yield dict(case='2,000 empty tasks on 2 processes', variant='loky', reference='ms a task', ratio=round(1000*seconds(2000, 0)/2000, 2), target=None, limit=None, rounds=1)


def main():
    "Measure, print and write; a contended machine is marked."
    before = os.getloadavg()[0]
    rows = list(measured())
    for r in rows: print(r)
    machine = environment() | dict(load_before=round(before, 2), contended=before > .7)
    save_json(dict(machine=machine, rows=rows), root()/'results'/'bench_workers.json')


if __name__ == '__main__': main()
