"Tasks of tests/test_workers.py, in a module that workers of any kind can import; run as a program it is a run in a process of its own."
import json, os, signal, sys, time

import numpy as np


def do(task, shelf):
    "Sleep or wait, perhaps fail, then write numbers that depend on the seed and on what the task needs."
    from gansynth.core import UserError
    a = task.args
    if a.get('log'):
        with open(a['log'], 'a') as f: f.write(task.key+'\n')
    time.sleep(a.get('nap', .02))
    while a.get('wait') and not os.path.exists(a['wait']): time.sleep(.02)
    match a.get('fault'):
        case 'raise': raise UserError('no images of class B: add some')
        case 'error': return {}['absent']
        case 'exit': os._exit(3)
        case 'kill': os.kill(os.getpid(), signal.SIGKILL)
        case 'quit': sys.exit(4)
        case 'terminated once' if not os.path.exists(a['marker']):
            open(a['marker'], 'w').close()
            os.kill(os.getpid(), signal.SIGTERM)
        case 'nothing': return
    x = np.random.default_rng(a.get('seed', 0)).normal(size=(40, 40))
    for n in task.needs: x = x@shelf.read(n, ['x'])[1]['x']
    shelf.write(task.key, {'name': task.name, 'sum': float(x.sum())}, {'x': x})


def slow_to_stop(task, shelf):
    "As training: the signal becomes a note, and the state is saved, which takes `saving` seconds."
    from gansynth.processes import end_on, stoppable
    saved = task.args['saved']
    with stoppable() as stop:
        open(f'{saved}.begun', 'w').close()
        while not stop(): time.sleep(.1)
        open(f'{saved}.told', 'w').close()
        time.sleep(task.args['saving'])
        with open(saved, 'w') as f: f.write('checkpoint')
        end_on(stop(), 'stopped')


def big(task, shelf):
    "Writes eight megabytes where the file system allows less."
    shelf.write(task.key, {}, {'x': np.zeros(task.args['n'])})


def grid(n=6, nap=.02, cells={}, **more): # further arguments of the cells; of all
    "Two sets, and n cells that need one or the other, or none."
    from gansynth.workers import Task
    sets = [Task(f'set{i}', 'set', f'set {i}', args=dict(seed=100+i, nap=nap) | more) for i in range(2)]
    return [*(Task(f'cell{i}', 'cell', f'cell {i}', (sets[i % 3].key,) if i % 3 < 2 else (), dict(seed=i, nap=nap) | more | cells) for i in range(n)), *sets]


if __name__ == '__main__':
    from gansynth.processes import Terminated
    from gansynth.shelf import Shelf
    from gansynth.workers import run_all
    folder, args = sys.argv[1], json.loads(sys.argv[2])
    try: out = run_all(grid(**args), do, Shelf(folder), 2)
    except Terminated as e: # which Python ends without a word
        print(e, file=sys.stderr)
        raise
    print(*[o.status for o in out])
