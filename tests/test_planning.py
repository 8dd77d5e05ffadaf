"What a study costs and can show: counts in closed form, budgets, a calibration on a tiny phantom."
import json
from collections import Counter
from dataclasses import replace

import pytest
from gansynth import planning
from gansynth.core import UserError
from gansynth.data import load, split
from gansynth.designs import Cell, Classifier, Design, Generator, SetId, cells, sets
from gansynth.planning import Prices, calibrate, chain, detectable, fit_budget, parse_duration, plan, plan_text, seconds_for, set_of, spoken, typed, warnings_for
from gansynth.statistics import detectable_difference

ARMS = ('raw', 'oversample', 'gan_classic', 'gan_aug', 'warm_start', 'synth_finetune', 'real_warm_start', 'synth_only', 'untrained_classic')
FULL = Design('full', 'Does it help?', size=32, fractions=(.2, 1.), split_seeds=(0, 1), generators=(Generator('a', steps=500, seeds=(0, 1)), Generator('b', kind='fresh')), arms=ARMS, ratios=(.5, 1., 3.),
              classifiers=(Classifier('small', steps=200, epochs=5), Classifier('large', 'resnet34', plan='transfer', steps=200, epochs=5)), seeds=(5, 6, 7), device='cpu')


def manifest(pos=60, neg=60, train=200, valid=40):
    def part(p, n): return {'no': dict(images=n, patients=n), 'yes': dict(images=p, patients=p)}
    return dict(classes=['no', 'yes'], counts=dict(train=part(train, train), valid=part(valid, valid), test=part(pos, neg)))


def manifests(d, **sizes): return {(s, f): manifest(**sizes) for s in d.split_seeds for f in d.fractions}


def measured(d):
    return dict(start=4., examination=dict(seconds=1., pairs=8000), generators={g.name: dict(step=.1*(g.kind == 'gan'), look=.2*(g.kind == 'gan'), image=.001, trainings=2*(g.kind == 'gan'), checkpoint=5000, busy=1.) for g in d.generators},
                classifiers={c.name: dict(fixed=1., step=.02, augment=.005, image=.001, lr_steps=40*(c.plan == 'one_cycle'), busy=1.) for c in d.classifiers})


def made(d, **kw): return plan(d, manifests(d), measured=measured(d), **kw)


def test_durations():
    assert [parse_duration(t) for t in ('2h', '90m', '45s', '1h30m', '3600', ' 1H 30m ', '0.5h', '1h5s')] == [7200, 5400, 45, 5400, 3600, 5400, 1800, 3605]
    for wrong in ('', '0', '0h', '1h30', 'h', '-5m', 'nan', '1e3', '2d', None):
        with pytest.raises(UserError, match='no duration'): parse_duration(wrong)
    assert all(s <= parse_duration(typed(s)) for s in (.01, 1, 99.99, 100, 3601, 86400.5))
    assert [spoken(s) for s in (0, .2, 59, 3600, 9000)] == ['0 s', 'less than 1 s', '59 s', '60 min', '2 h 30 min']


def test_counts_of_the_full_design():
    p, n = made(FULL), 3*2*2*2         # runs, splits, fractions, classifiers
    without, fed = 3, 5                # raw, oversample, real_warm_start; all others but untrained_classic, which only a GAN has
    assert p['n_cells'] == n*(without+fed*2*3+1*3) and p['n_sets'] == 2*2*(2+1) and p['n_runs'] == 3   # generator a has two seeds
    assert Counter(c['arm'] for c in p['cells'])['gan_classic'] == n*2*3
    assert {(r['kind'], r['name']): r['count'] for r in p['table']} == {('set', 'a'): 8, ('set', 'b'): 4, ('classifier', 'small'): p['n_cells']//2, ('classifier', 'large'): p['n_cells']//2}
    assert p['shared'] == f'12 synthetic sets of 2 generators serve {n*(fed*6+3)} of {p["n_cells"]} classifiers'
    assert [Cell(**c) for c in p['cells']] == cells(FULL) and {*map(set_of, cells(FULL))}-{None} == {*sets(FULL)}
    assert json.loads(json.dumps(p, allow_nan=False)) == p


def test_prices_by_hand():
    price = Prices(FULL, measured(FULL), manifests(FULL), n_external=50)
    def cell(arm, classifier='small'): return next(c for c in cells(FULL) if c.arm == arm and c.classifier == classifier)
    seen = (6*80+120+50)*.001                                                            # six passes over validation, then test and external
    assert price(cell('raw')) == pytest.approx(1+240*.02+seen)                           # 40 steps of the finder
    assert price(cell('raw', 'large')) == pytest.approx(1+200*.02+seen)                  # its plan names a rate
    assert price(cell('warm_start')) == pytest.approx(1+280*.02+seen)                    # the finder in both stages
    assert price(cell('gan_classic')) == pytest.approx(1+240*.025+seen)
    assert price(SetId(0, .2, 'a', 1)) == pytest.approx(2*(500*.1+5*.2)+2*600*.001+2*600*40/8000)
    assert price(SetId(0, .2, 'b', 0)) == pytest.approx(1.2+6)
    disk = made(FULL)['disk']
    assert disk == dict(predictions=made(FULL)['n_cells']*(8*200+4096), images=12*1200*32**2, checkpoints=8*2*5000)


def test_time_of_a_schedule():
    one, many = made(FULL), made(FULL, jobs=10_000)
    total, price = sum(r['seconds'] for r in one['table']), Prices(FULL, measured(FULL), manifests(FULL))
    assert one['seconds_estimated'] == pytest.approx(4+total) and made(FULL, jobs=4)['seconds_estimated'] == pytest.approx(4+total/4)
    assert many['seconds_estimated'] == pytest.approx(4+max(price(c)+(price(set_of(c)) if c.generator else 0) for c in cells(FULL)))   # a set and the cell that waits for it


def test_what_is_found_costs_nothing():
    price = Prices(FULL, measured(FULL), manifests(FULL))
    assert made(FULL, found=lambda item: True)['seconds_estimated'] == 0
    a_set = SetId(0, .2, 'a', 0)
    assert made(FULL)['seconds_estimated']-made(FULL, found=lambda i: i == a_set)['seconds_estimated'] == pytest.approx(price(a_set))
    users = {c for c in cells(FULL) if set_of(c) == a_set}
    p = made(FULL, found=lambda i: i in users)                                           # the cells are done, so nobody asks for their set
    assert made(FULL)['seconds_estimated']-p['seconds_estimated'] == pytest.approx(price(a_set)+sum(map(price, users)))
    rows = {(r['kind'], r['name']): r for r in p['table']}
    assert rows['set', 'a']['found'] == 1 and rows['classifier', 'small']['found']+rows['classifier', 'large']['found'] == len(users)
    asked = Counter()
    made(replace(FULL, budget='9h'), found=lambda i: asked.update([i]))
    assert set(asked.values()) == {1}                                                    # a shelf far away is asked once for each


def test_chain_holds_everything_once_and_in_order():
    links = chain(FULL, cells(FULL))
    assert set(links[-1][1]) == set(cells(FULL)) and all({*a} < {*b} for (_, a), (_, b) in zip(links, links[1:]))
    words = [w.removeprefix('the ') for w, _ in links]
    assert words == [*(f'run {r} of 3 of the main question' for r in (1, 2, 3)), 'fraction 1 of the patients', 'dose 0.5x', 'dose 3x', 'generator b', 'arm gan_aug', 'arm warm_start', 'arm synth_finetune', 'arm real_warm_start',
                     'arm synth_only', 'arm untrained_classic', 'classifier large', 'split 1']
    first = links[0][1]
    assert {c.arm for c in first} == {'raw', 'oversample', 'gan_classic'} and {(c.generator, c.ratio) for c in first} == {('', 0.), ('a', 1.)} and {(c.fraction, c.run) for c in first} == {(.2, 0)}


@pytest.mark.parametrize('changes', [dict(arms=('raw', 'classic_aug'), generators=()), dict(arms=('synth_only',)), dict(arms=('raw', 'gan_aug', 'untrained_classic')), dict(seeds=(0,)),
                                     dict(generators=FULL.generators[::-1]), dict(arms=('real_warm_start', 'warm_start'))], ids=str)
def test_chain_of_odd_designs(changes):
    d = replace(FULL, **changes)
    links = chain(d, cells(d))
    assert set(links[-1][1]) == set(cells(d)) and links[0][1]
    assert made(replace(d, budget='1000h'))['n_cells'] == len(cells(d)) and made(replace(d, budget='1000h'))['left_out'] == []


@pytest.mark.parametrize('jobs', [1, 2, 7])
def test_budget(jobs):
    "A larger budget keeps a superset; no budget is exceeded; all arms have the same runs; what is left out adds up."
    price, grid = Prices(FULL, measured(FULL), manifests(FULL)), cells(FULL)
    whole, before = seconds_for(grid, price, jobs), set()
    with pytest.raises(UserError, match='give at least --budget') as e: fit_budget(FULL, grid, price, 5, jobs)
    least = parse_duration(str(e.value).split('--budget ')[1].split(',')[0])
    assert len({c.run for c in fit_budget(FULL, grid, price, least, jobs)[0]}) >= 2
    with pytest.raises(UserError): fit_budget(FULL, grid, price, least*.9-1, jobs)
    for budget in [least+(whole-least)*i/60 for i in range(61)]:
        kept, left = fit_budget(FULL, grid, price, budget, jobs)
        assert before <= set(kept) and seconds_for(kept, price, jobs) <= budget
        runs = {(c.split, c.fraction, c.classifier, c.label): set() for c in kept}
        for c in kept: runs[c.split, c.fraction, c.classifier, c.label].add((c.run, c.seed))
        assert len({frozenset(r) for r in runs.values()}) == 1
        assert (len(kept) == len(grid)) == (not left)
        assert sum(int(s.split(': ')[1].split()[0]) for s in left) == len(grid)-len(kept)
        before = set(kept)
    assert before == set(grid)


def test_a_budget_in_a_plan():
    p = made(replace(FULL, budget='10m'))
    assert p['seconds_estimated'] <= 600 < p['seconds_whole'] and p['left_out'] and p['n_cells'] < len(cells(FULL))
    with pytest.raises(UserError, match='too short'): made(replace(FULL, budget='5s'))


def test_detectable_difference():
    rows = detectable({(0, .2): manifest(80, 120), (1, .2): manifest(7, 90), (2, 1.): manifest(1, 4)})
    assert rows[0]['smallest'] == {str(b): detectable_difference(b, 80, 120) for b in (.8, .9)}
    assert rows[2]['smallest'] == {'0.8': None, '0.9': None}
    said = warnings_for(rows+rows)
    assert len(said) == len(set(said)) and not any('split 0 ' in w for w in said[1:])
    assert any('split 1' in w and 'fewer than 10' in w for w in said) and any('split 2' in w and 'perfect' in w for w in said)
    assert any('can only show differences in AUROC above' in w for w in warnings_for(detectable({(0, 1.): manifest(25, 25)})))
    assert warnings_for(detectable({(0, 1.): manifest(400, 400)})) == []


def test_text_fits_a_terminal():
    for d in (FULL, replace(FULL, budget='10m'), replace(FULL, budget='3m', split_seeds=tuple(range(9)))):
        p = plan(d, manifests(d, pos=6), measured=measured(d), jobs=2)
        text = plan_text(json.loads(json.dumps(p)))
        assert len(text.splitlines()) <= 25 and 'synthetic sets of' in text and 'inconclusive' in text and ('left out' in text) == bool(d.budget)


@pytest.mark.slow
def test_calibration(monkeypatch, tmp_path):
    "Real steps on a tiny phantom; the second call measures nothing, a changed generator itself only."
    monkeypatch.setenv('GANSYNTH_CACHE', str(tmp_path))
    parts = split(load('phantom:n_patients=80', 28))
    d = Design('tiny', '?', size=28, generators=(Generator('a', bs=8), Generator('both', gan='conditional', bs=8), Generator('b', kind='fresh')), arms=('raw', 'gan_aug'), device='cpu',
               classifiers=(Classifier('c', bs=8), Classifier('d', 'fracture_cnn', plan='fracture', bs=8)))
    m = calibrate(d, parts)
    assert m['start'] > 0 and m['examination']['seconds'] > 0 and all(g['image'] > 0 for g in m['generators'].values()) and all(c[k] > 0 for c in m['classifiers'].values() for k in ('fixed', 'step', 'augment', 'image'))
    assert m['generators']['a']['step'] > 0 and [g['trainings'] for g in m['generators'].values()] == [2, 1, 0] and [c['lr_steps'] for c in m['classifiers'].values()] == [40, 0]
    measured_now = []
    for name in ('time_gan', 'time_other', 'time_classifier', 'time_examination', 'time_start'):
        def spy(*a, f=getattr(planning, name)): measured_now.append(f.__name__); return f(*a) if a else 1.   # the start was measured above
        spy.__name__ = name
        monkeypatch.setattr(planning, name, spy)
    longer = replace(d, generators=(replace(d.generators[0], steps=9, name='z', seeds=(3,)), *d.generators[1:]), seeds=(9,))
    assert list(calibrate(longer, parts)['generators'].values()) == list(m['generators'].values()) and measured_now == []
    changed = calibrate(replace(d, generators=(replace(d.generators[0], bs=4), *d.generators[1:])), parts)
    assert measured_now == ['time_gan'] and changed['classifiers'] == m['classifiers']
    place, = (tmp_path/'calibration').glob('*.json')
    place.write_text('{"broken')
    assert calibrate(replace(d, generators=d.generators[2:], classifiers=()), parts)['start'] > 0 and measured_now[1:] == ['time_other', 'time_start', 'time_examination']
    p = plan(replace(d, ratios=(1., 2.)), {(0, 1.): parts}, jobs=1)
    assert p['seconds_estimated'] > 0 and p['detectable'][0]['n_pos'] == parts.manifest['counts']['test'][parts.manifest['classes'][1]]['patients']


def test_a_busy_machine_is_said_so():
    m = measured(FULL)
    assert not any('other programs' in w for w in made(FULL)['warnings'])
    m['classifiers']['small']['busy'] = 3.2
    assert any('3.2 times' in w for w in plan(FULL, manifests(FULL), measured=m)['warnings'])


def test_calibration_leaves_the_process_as_it_was(monkeypatch, tmp_path):
    import os, torch
    monkeypatch.setenv('GANSYNTH_PROGRESS', 'off'); before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), planning.one_thread():
        assert torch.get_num_threads() == 1
        1/0
    assert torch.get_num_threads() == before and os.environ['GANSYNTH_PROGRESS'] == 'off'
    monkeypatch.delenv('GANSYNTH_PROGRESS')
    with planning.one_thread(): pass
    assert 'GANSYNTH_PROGRESS' not in os.environ
