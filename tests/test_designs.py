"Designs: every kind of mistake is refused with its line, and whatever happens to a file, nothing but a sentence comes back."
import pickle, random, re, subprocess, sys
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from gansynth.catalogue import STUDIES
from gansynth.core import UserError
from gansynth.designs import DESIGNS, Cell, Classifier, Design, Generator, SetId, as_yaml, cells, check_counts, find_design, list_keys, needs_images, parse_design, sets
from gansynth.regimes import ARMS, NO_GAN
from gansynth.sheets import seconds

GOOD = '''name: mine
question: Does it help?
data:
  source: phantom:n_patients=60
  size: 28
arms: [raw, class_weights, gan_aug, warm_start]
ratios: [0.5, 1]
generators:
  dcgan:
    gan: dcgan
    steps: 40
    bs: 16
classifiers:
  small:
    network: fracture_cnn
    steps: 40
    epochs: 4
seeds: [0, 1]
budget: 2h
'''
NO_IMAGES = GOOD.replace(', gan_aug, warm_start', '').replace('ratios: [0.5, 1]\n', '').replace('generators:\n  dcgan:\n    gan: dcgan\n    steps: 40\n    bs: 16\n', '')


def refusal(text, **changes):
    with pytest.raises(UserError) as e: parse_design(text, 'my.yaml', **changes)
    assert len(str(e.value).splitlines()) <= 10
    return str(e.value)


def change(old, new, text=GOOD):
    "(the text with one change, the number of its line)"
    assert text.count(old) == 1, old
    return text.replace(old, new), text[:text.index(old)].count('\n')+1


def test_the_good_ones_are_good():
    assert parse_design(GOOD).generators == (Generator('dcgan', steps=40, bs=16),)
    assert parse_design(NO_IMAGES).arms == ('raw', 'class_weights')


@pytest.mark.parametrize('old, new, says', [
    # keys
    ('budget: 2h', 'budgte: 2h', "unknown key 'budgte': did you mean 'budget'?"),
    ('  size: 28', '  sise: 28', "unknown key 'sise' in data: did you mean 'size'?"),
    ('    steps: 40\n    bs', '    stesp: 40\n    bs', "unknown key 'stesp' in generators.dcgan: did you mean 'steps'?"),
    ('    epochs: 4', '    epoch: 4', "unknown key 'epoch' in classifiers.small: did you mean 'epochs'?"),
    ('budget: 2h', 'size: 28', 'size belongs below data:'),
    ('  size: 28', '  size: 28\n  seeds: [0]', 'seeds does not belong below data: move it to the margin'),
    ('name: mine\n', '', 'name is missing'),
    ('question: Does it help?', 'question:', 'question is empty'),
    ('    epochs: 4', '    steps: 80', 'classifiers.small.steps stands here again, after line 16'),
    ('budget: 2h', 'name: other', 'name stands here again, after line 1'),
    # types
    ('  size: 28', '  size: true', "data.size = 'true' is not a whole number"),
    ('  size: 28', '  size: 28.5', "data.size = '28.5' is not a whole number"),
    ('  size: 28', '  size: "28"', "data.size = '28' is not a whole number"),
    ('  size: 28', '  size:', 'data.size is empty'),
    ('  size: 28', '  size: [28]', "data.size = ['28'] is not a whole number"),
    ('  size: 28', '  size: {a: 1}', 'is not a whole number'),
    ('  size: 28', '  official_split: 1', "data.official_split = '1' is not true or false"),
    ('budget: 2h', 'margin: .nan', "margin = '.nan' is not a number"),
    ('budget: 2h', 'strength: .inf', "strength = '.inf' is not a number"),
    ('budget: 2h', 'strength: 1e999', 'is not a number'),
    ('name: mine', 'name: [mine]', "name = ['mine'] is not text"),
    ('seeds: [0, 1]', 'seeds: 3', "seeds = '3' is no list"),
    ('arms: [raw, class_weights, gan_aug, warm_start]', 'arms: raw', "arms = 'raw' is no list"),
    ('  size: 28', '  size: !!python/object/apply:os.getcwd []', 'has the tag'),
    ('  size: 28', '  size: !mine 28', 'has the tag'),
    # ranges and lists
    ('  size: 28', '  size: 8', 'data.size = 8 is outside 16 to 512'),
    ('    bs: 16', '    bs: 1', 'generators.dcgan.bs = 1 is outside 2'),
    ('    steps: 40\n    bs', '    steps: 0\n    bs', 'generators.dcgan.steps = 0 is outside 1'),
    ('budget: 2h', 'fractions: [0.5, 1.5]', 'fractions = 1.5 is outside'),
    ('budget: 2h', 'fractions: [0]', 'fractions = 0.0 is outside'),
    ('ratios: [0.5, 1]', 'ratios: [0, 1]', 'ratios = 0.0 is outside'),
    ('ratios: [0.5, 1]', 'ratios: [-1]', 'ratios = -1.0 is outside'),
    ('seeds: [0, 1]', 'seeds: [0, -1]', 'seeds = -1 is outside'),
    ('seeds: [0, 1]', 'seeds: [0, 1, 0]', 'seeds = 0 stands twice'),
    ('seeds: [0, 1]', 'seeds: [0, 1.0]', "seeds = '1.0' is not a whole number"),
    ('seeds: [0, 1]', 'seeds: []', 'seeds is an empty list'),
    ('ratios: [0.5, 1]', 'ratios: [1, 1.0]', 'ratios = 1.0 stands twice'),
    ('budget: 2h', 'n_boot: 10', 'n_boot = 10 is outside 100'),
    ('budget: 2h', 'budget: two hours', "budget = 'two hours' is no time"),
    ('budget: 2h', 'budget: 90', "budget = '90' is no time"),
    # names
    ('gan_aug', 'gan_agu', "arms = 'gan_agu': did you mean 'gan_aug'?"),
    ('class_weights, gan_aug', 'gan_aug, gan_aug', "arms = 'gan_aug' stands twice"),
    ('    gan: dcgan', '    gan: dcgna', "generators.dcgan.gan = 'dcgna': did you mean 'dcgan'?"),
    ('    gan: dcgan', '    kind: frsh', "did you mean 'fresh'?"),
    ('    gan: dcgan', '    augment: sometimes', 'generators.dcgan.augment'),
    ('network: fracture_cnn', 'network: fracture_cn', "did you mean 'fracture_cnn'?"),
    ('    epochs: 4', '    plan: one_cycl', "classifiers.small.plan = 'one_cycl': did you mean 'one_cycle'?"),
    ('    epochs: 4', '    head: simpel', "did you mean 'simple'?"),
    ('budget: 2h', 'augment: chets', "augment = 'chets': did you mean 'chest'?"),
    ('budget: 2h', 'device: gpu', "device = 'gpu'"),
    ('budget: 2h', 'precision: float16', "precision = 'float16': did you mean"),
    ('name: mine', 'name: a/b', 'is no name for name'),
    ('  dcgan:', '  ../dcgan:', 'is no name for generators'),
    ('  dcgan:', '  DCGAN: {steps: 5}\n  dcgan:', 'generators.dcgan is alike generators.DCGAN: give it another name'),
    ('  small:', '  other: {network: fracture_cnn, steps: 40, epochs: 4}\n  small:', 'classifiers.small is alike classifiers.other: leave one out'),
    # what does not go together
    ('arms: [raw, class_weights, gan_aug, warm_start]', 'arms: [gan_aug, warm_start]', 'nothing to compare with'),
    ('arms: [raw, class_weights, gan_aug, warm_start]', 'arms: []', 'arms is an empty list'),
    ('network: fracture_cnn', 'network: covid_cnn', 'covid_cnn needs images of at least 32 pixels, and data.size is 28; choose 32'),
    ('network: fracture_cnn', 'network: deit_tiny', 'in multiples of 16, and data.size is 28; choose 32'),
    ('    gan: dcgan', '    gan: bone_fracture', 'bone_fracture cannot draw data.size = 28; choose 32, 64, 128'),
    ('    epochs: 4', '    epochs: 7', 'classifiers.small.steps = 40 does not divide into 7 epochs: 35 or 42 would'),
    ('    epochs: 4', '    epochs: 1', 'warm_start trains in two stages'),
    ('    epochs: 4', '    head: simple', 'fracture_cnn has a head of its own'),
    ('    epochs: 4', '    weights: imagenet', 'no ImageNet weights of fracture_cnn'),
    ('    epochs: 4', '    weights: mine.safetensors', 'a .safetensors file that is there'),
    ('    gan: dcgan', '    kind: replay', 'generators.dcgan.steps: kind replay trains nothing'),
    ('    gan: dcgan', '    path: a', 'generators.dcgan.path: only kind set reads images'),
    ('  source: phantom:n_patients=60', '  source: phantm:n_patients=60', "did you mean 'phantom'?"),
    ('  source: phantom:n_patients=60', '  source: phantom:patients=60', "phantom has no option 'patients'"),
    ('  source: phantom:n_patients=60', '  source: phantom:n_patients=many', 'is not a number'),
    ('  source: phantom:n_patients=60', '  source: folder', 'say where, as in folder:PATH'),
    ('  source: phantom:n_patients=60', '  source: synthetic:x', 'a study needs real images'),
    ('  size: 28', '  size: 28\n  external: phantm', "data.external = 'phantm'"),
    ('  size: 28', '  size: 28\n  official_split: true', 'data.official_split: the phantom'),
    ('  size: 28', '  size: 28\n  classes: a,b', 'data.classes: the phantom'),
    ('  source: phantom:n_patients=60', '  source: folder:x\n  classes: a', 'name two or more'),
    ('  source: phantom:n_patients=60', '  source: folder:x\n  classes: a,a', 'each once'),
    ('  source: phantom:n_patients=60', '  source: folder:x\n  classes: ill,well\n  positive: il', "data.positive = 'il' is not among data.classes: did you mean 'ill'?"),
])
def test_refused_with_its_line(old, new, says):
    text, line = change(old, new)
    said = refusal(text)
    assert says in said
    if says.endswith('is missing'): return
    rows = said.splitlines()
    row, = [r for r in rows if says in r]
    told = int(re.search(r'line (\d+): ', row)[1])
    assert told == line+{'    epochs: 7': -1, '    kind: replay': 1}.get(new, new.count('\n')-old.count('\n')), row      # the steps do not divide; replay needs no steps


@pytest.mark.parametrize('text, line, says', [
    (NO_IMAGES.replace('class_weights', 'gan_aug'), 6, 'arms: gan_aug needs synthetic images and generators is empty'),
    (NO_IMAGES+'ratios: [1]\n', 14, 'ratios: no arm trains on synthetic images'),
    (NO_IMAGES+'generators: {a: {}}\n', 14, 'generators: no arm uses them'),
    (NO_IMAGES+'generators:\n', 14, 'generators is empty'),
    (NO_IMAGES.replace('classifiers:\n  small:\n    network: fracture_cnn\n    steps: 40\n    epochs: 4\n', ''), 1, 'classifiers is missing'),
    (GOOD.replace('    gan: dcgan\n    steps: 40\n    bs: 16\n', '    kind: set\n'), 9, 'kind set needs path'),
    (GOOD.replace('    gan: dcgan\n    steps: 40\n    bs: 16\n', '    kind: set\n    path: nowhere\n'), 11, "'nowhere' holds no card.json"),
    (GOOD.replace('    gan: dcgan\n    steps: 40\n    bs: 16\n', '    kind: set\n    path: nowhere\n    seeds: [0, 1]\n'), 12, 'one seed is all there is'),
    (GOOD.replace('gan: dcgan\n    steps: 40\n    bs: 16\n', 'kind: fresh\n').replace('phantom:n_patients=60', 'folder:x'), 10, 'kind fresh draws phantom patients'),
    (GOOD.replace('gan: dcgan\n    steps: 40\n    bs: 16\n', 'kind: swapped\n').replace('phantom:n_patients=60', 'folder:x'), 10, 'kind swapped draws phantom patients'),
    (GOOD.replace('gan: dcgan\n    steps: 40\n    bs: 16\n', 'kind: replay\n').replace('warm_start', 'untrained_classic'), 6, 'untrained_classic draws with untrained networks, and dcgan is kind replay'),
    (GOOD.replace('  dcgan:\n    gan: dcgan\n    steps: 40\n    bs: 16\n', '  - dcgan\n'), 8, "generators = ['dcgan']: write NAME:"),
    (GOOD.replace('  dcgan:\n    gan: dcgan\n    steps: 40\n    bs: 16\n', '  dcgan: 40\n'), 9, 'write its settings below it'),
    (GOOD.replace('data:\n  source: phantom:n_patients=60\n  size: 28\n', 'data: phantom\n'), 3, "data = 'phantom': write its keys below it"),
])
def test_refused_as_a_whole(text, line, says):
    row, = [r for r in refusal(text).splitlines() if says in r]
    assert f'line {line}: ' in row


@pytest.mark.parametrize('text, says', [
    ('', 'my.yaml is empty'), ('# a comment\n', 'my.yaml is empty'), ('- a\n- b\n', 'my.yaml is no design'), ('hello', 'my.yaml is no design'), ('42', 'my.yaml is no design'),
    ('name: a\n\tquestion: b\n', 'my.yaml, line 2: a tab: indent with spaces'), ('name: a\ndata: {size: 28\nseeds: [1]\n', 'my.yaml, line 3: no YAML'), ('a: 1\n b: 2\n', 'my.yaml, line 2: no YAML'),
    ('name: "a\n', 'my.yaml, line 2: no YAML'), ('a: &x 1\nb: *x\n', 'my.yaml, line 1: & and *'), ('a: 1\n---\nb: 2\n', 'my.yaml, line 2: no YAML'), ('a: "\\UFFFFFFFF"\n', 'cannot be read as YAML'),
    ('a: \x00\n', 'my.yaml, line 1: a character'), ('['*50_000, 'my.yaml, line 1: lists within lists'), ('- '*50_000, 'my.yaml, line 1: lists within lists'), ('!!python/object/apply:os.system ["true"]\n', 'has the tag'), ('%YAML 3.0\n---\na: 1\n', 'my.yaml, line 1'), ('<<: {a: 1}\n', "unknown key '<<'"), ('[1]: 2\n', 'unknown key'),
])
def test_no_design_at_all(text, says): assert says in refusal(text)


def test_all_mistakes_at_once_and_no_more_than_ten_lines():
    text = GOOD.replace('size: 28', 'size: 4').replace('gan_aug', 'gan_agu').replace('steps: 40', 'steps: -1').replace('seeds: [0, 1]', 'seeds: [1, 1]').replace('2h', 'soon')
    said = refusal(text).splitlines()
    assert said[0] == 'my.yaml: 6 mistakes' and [int(r.split(':')[0].split()[1]) for r in said[1:]] == [5, 6, 11, 16, 18, 19]
    said = refusal(text+''.join(f'key{i}: 1\n' for i in range(20))).splitlines()
    assert said[0] == 'my.yaml: 26 mistakes' and len(said) == 10 and said[-1] == '  and 18 more'


def test_one_slip_is_told_once():
    for old, new in (('gan_aug, warm_start', 'gan_agu'), ('  size: 28', '  size: x'), ('gan: dcgan', 'gan: x'), ('seeds: [0, 1]', 'seeds: x'), ('network: fracture_cnn', 'network: x'), ('  small:', '  "": {}\n  small:')):
        said = refusal(change(old, new)[0])
        assert len(said.splitlines()) == 1, said


def test_types_belong_to_keys():
    d = parse_design(GOOD.replace('phantom:n_patients=60', 'folder:x\n  classes: yes,no\n  positive: no').replace('    bs: 16', '    bs: 16\n    lr: 1e-3'))
    assert d.positive == 'no' and d.generators[0].lr == 1e-3
    assert parse_design(GOOD.replace('name: mine', 'name: 2024-01-01')).name == '2024-01-01'
    assert parse_design(GOOD.replace('  size: 28', '  size: 28\n  positive: ~')).positive == ''


def test_from_python():
    good = parse_design(GOOD)
    assert find_design(good) == good == find_design(asdict_tree(good)) and pickle.loads(pickle.dumps(good)) == good
    assert find_design(good, seeds=(np.int64(4),), size=np.int64(32), budget='90s') == replace(good, seeds=(4,), size=32, budget='90s')
    assert find_design(good, source='phantom', fractions='0.5,1', seeds=None) == replace(good, source='phantom', fractions=(.5, 1.))
    for changes, says in ((dict(size=True), 'size = True is not a whole'), (dict(margin=float('nan')), 'margin = nan is not a number'), (dict(sise=3), "did you mean 'size'?"), (dict(arms=('gan_aug',)), 'nothing to compare'), (dict(name=''), "'' is no name for name"),
                          (dict(generators=(Generator('a'), Generator('a', steps=5))), 'generators.a is alike generators.a'), (dict(classifiers=()), 'classifiers is empty'), (dict(generators=3), 'generators = 3'), (dict(seeds=()), 'seeds is an empty list'), (dict(size=30), 'dcgan cannot draw')):
        with pytest.raises(UserError, match=re.escape(says)) as e: find_design(good, **changes)
        assert 'line ' not in str(e.value)
    with pytest.raises(UserError, match='ratios: no arm'): find_design(parse_design(NO_IMAGES), ratios='1,2')
    for what in (dict(), dict(name=3), dict(name='a', question='b', arms=[1, None]), {1: 2}, dict(data=[]), dict(generators={1: 2})):
        with pytest.raises(UserError): find_design(what)


def asdict_tree(d):
    "A design as a dict of plain lists."
    from gansynth.designs import layout, plain
    return plain(layout(d))


def test_an_option_is_not_blamed_on_a_line(tmp_path):
    f = tmp_path/'a.yaml'; f.write_text(GOOD)
    assert find_design(f, size=32).size == 32 and find_design(str(f), seeds='7').seeds == (7,)
    with pytest.raises(UserError) as e: find_design(f, size=4)
    assert str(e.value) == f'{f}: data.size = 4 is outside 16 to 512'
    f.write_text(GOOD.replace('  size: 28', '  size: x'))
    assert find_design(f, size=28).size == 28             # an option mends what the file had wrong


def test_files_that_are_none(tmp_path):
    for name, data in (('a.yaml', b'\xff\xfe\x00'), ('b.yaml', b'a'*300_000), ('c.yaml', None)):
        if data: (tmp_path/name).write_bytes(data)
        with pytest.raises(UserError, match=name): find_design(tmp_path/name)
    with pytest.raises(UserError, match=r'd\.yaml'): (tmp_path/'d.yaml').mkdir(); find_design(tmp_path/'d.yaml')
    with pytest.raises(UserError, match="did you mean 'smoke'"): find_design('smok')
    (tmp_path/'e.yaml').write_text('\ufeff'+GOOD, encoding='utf-8')
    assert find_design(tmp_path/'e.yaml') == parse_design(GOOD)


def test_a_set_needs_its_folders(tmp_path):
    for c in 'ab': (tmp_path/c).mkdir(); (tmp_path/c/'card.json').write_text('{}')
    text = GOOD.replace('    gan: dcgan\n    steps: 40\n    bs: 16\n', f'    kind: set\n    path: {tmp_path/"a"}, {tmp_path/"b"}\n')
    assert parse_design(text).generators[0].kind == 'set'
    assert 'holds no card.json' in refusal(text.replace('/b\n', '/c\n'))


SHIPPED = sorted(DESIGNS.glob('*.yaml'))


@pytest.mark.parametrize('path', SHIPPED, ids=lambda p: p.stem)
def test_shipped(path):
    d = find_design(path.stem)
    assert d.name == path.stem and path.read_text().startswith('# ')
    assert parse_design(as_yaml(d)) == d == find_design(d) == find_design(path)
    fed = needs_images(d.arms)
    n = len(d.split_seeds)*len(d.fractions)
    listed = cells(d)
    assert len(listed) == len(set(listed)) == n*len(d.classifiers)*len(d.seeds)*(len(d.arms)-len(fed)+len(fed)*len(d.generators)*len(d.ratios))
    assert len(sets(d)) == n*sum(len(g.seeds) for g in d.generators)
    assert len({(c.split, c.fraction, c.classifier, c.run, c.label) for c in listed}) == len(listed)


def test_what_ships():
    names = {p.stem for p in SHIPPED}
    assert names == {*STUDIES, 'does_it_help', 'smoke', 'full_protocol', 'pneumoniamnist'}
    d = find_design('full_protocol')
    assert {*d.arms} == {*ARMS} and len(d.seeds) == 10 and all(len(g.seeds) == 3 for g in d.generators) and d.fractions == (.05, .1, .2, .5, 1.) and max(d.ratios) == 3
    d = find_design('does_it_help')
    assert d.ratios == (.5, 1., 2.) and d.seeds == (0, 1, 2, 3, 4) and d.generators[0].seeds == (0, 1, 2) and seconds(d.budget) == 7200 and d.margin == .02
    assert find_design('does_it_help', source='folder:my_images').source == 'folder:my_images'


def test_cells_by_hand():
    d = Design('a', 'b', split_seeds=(3, 4), fractions=(.5, 1.), arms=('raw', 'gan_aug', 'untrained_classic'), ratios=(1., 2.), seeds=(10, 11, 12, 13),
               generators=(Generator('x', seeds=(0, 1, 2)), Generator('y', kind='fresh', seeds=(5,))), classifiers=(Classifier('c'), Classifier('d')))
    by_hand = set()
    for split, f, c, run in product((3, 4), (.5, 1.), 'cd', range(4)):
        here = dict(split=split, fraction=f, classifier=c, run=run, seed=10+run)
        by_hand.add(Cell(arm='raw', **here))
        for r in (1., 2.): by_hand |= {Cell(arm='gan_aug', generator='x', ratio=r, gan_seed=(0, 1, 2, 0)[run], **here), Cell(arm='untrained_classic', generator='x', ratio=r, gan_seed=(0, 1, 2, 0)[run], **here), Cell(arm='gan_aug', generator='y', ratio=r, gan_seed=5, **here)}
    found = cells(d)
    assert set(found) == by_hand and len(found) == len(by_hand)
    assert [c.run for c in found] == sorted(c.run for c in found) # whoever stops early has whole runs
    assert set(sets(d)) == {SetId(s, f, 'x', g) for s, f, g in product((3, 4), (.5, 1.), range(3))} | {SetId(s, f, 'y', 5) for s, f in product((3, 4), (.5, 1.))}
    assert sets(d, [c for c in found if c.run == 3]) == sets(d, [c for c in found if c.run == 0])
    assert Cell(0, 1., 'c', 'gan_aug', 'x', .5).label == 'gan_aug[x 0.5x]' and Cell(0, 1., 'c', 'raw').label == 'raw'
    assert {c.arm for c in found if not c.generator} <= {*NO_GAN}
    assert len(sets(replace(d, seeds=(10,)))) == 8 # GAN seeds that no run uses are not trained


def manifest(train=(100, 40), patients=9, fraction=1., part='train'):
    def of(a, b, p): return {'normal': dict(images=a, patients=9), 'ill': dict(images=b, patients=p)}
    return dict(split_seed=0, fraction=fraction, counts={k: of(*(train if k == 'train' else (20, 9)), patients if k == part else 9) for k in ('train', 'valid', 'test')})


def test_counts():
    d = parse_design(GOOD.replace('    epochs: 4', '    epochs: 4\n    bs: 16'))
    check_counts(d, manifest())
    for m, says in ((manifest((100, 15)), r"generators\.dcgan\.bs = 16 is more than the 15 images of 'ill' to train on: choose at most 15"), (manifest(patients=1, fraction=.1), r"train has 1 patient of class 'ill', and needs 2: leave 0\.1 out of fractions, 0\.2 may do"),
                    (manifest(patients=1, part='test'), 'test has 1 patient .* add patients'), (manifest(patients=0, part='valid'), 'valid has 0 patients'), (manifest((9, 6)), 'more than the 15 real images')):
        with pytest.raises(UserError, match=says): check_counts(d, m)
    with pytest.raises(UserError, match='bs = 16 .times 5 for wgan_gp. is more than the 40 .*: choose at most 8'): check_counts(replace(d, generators=(Generator('w', gan='wgan_gp', bs=16),)), manifest())
    check_counts(replace(d, generators=(Generator('c', gan='conditional', bs=130),)), manifest())
    with pytest.raises(UserError, match='more than the 140 images to train'): check_counts(replace(d, generators=(Generator('c', gan='conditional', bs=150),)), manifest())
    with pytest.raises(UserError, match='less than one image'): check_counts(replace(d, ratios=(.01,)), manifest((100, 40)))
    with pytest.raises(UserError, match='synthetic images of warm_start at ratio 0.1: choose at most 14'): check_counts(replace(d, ratios=(.1,)), manifest())
    with pytest.raises(UserError) as e: check_counts(d, manifest((9, 6), patients=1))
    assert str(e.value).startswith('design mine, split 0, fraction 1: 3 mistakes')


def test_counts_of_a_real_split():
    from gansynth.data import load, split
    d = find_design('smoke')
    check_counts(d, split(load(d.source, d.size)).manifest)


@pytest.mark.parametrize('seed', range(4))
def test_fuzz(seed):
    "Random accidents to a file end in a design or a UserError."
    rng, whole = random.Random(seed), (DESIGNS/'does_it_help.yaml').read_text()
    junk = '\t\n :-[]{},"\'&*!#|>%@`?.019aeGn\x00\x85é\u2028\ufeff\U0001f600'
    values = ['', '~', 'true', '-1', '1e400', '.nan', '[]', '{}', '[[]]', '{a: {b: c}}', '"', "''", '!!int x', '!!python/name:os.system', '0x10', '1_000', '12:30', '2024-01-01', '<<', '=', 'null', '|', '>', '9'*30, '1e-9', '[1, [2]]', '? a', '- a']
    refused = 0
    for _ in range(80):
        text = whole
        for _ in range(rng.randint(1, 5)):
            lines = text.split('\n')
            a, i, j = rng.randrange(len(lines)), rng.randrange(len(text)+1), rng.randrange(len(text)+1)
            how = rng.randrange(7)
            if how == 0: text = text[:i]+text[i+1:]
            if how == 1: text = text[:i]+rng.choice(junk)+text[i:]
            if how == 2: text = text[:min(i, j)]+text[max(i, j):]
            if how == 3: text = '\n'.join(lines[:a]+lines[a+1:])
            if how == 4: text = '\n'.join(lines[:a]+[lines[a]]*2+lines[a+1:])
            if how >= 5: text = '\n'.join([*lines[:a], re.sub(r':.*', lambda _: ': '+rng.choice(values), lines[a]), *lines[a+1:]])
        try: d = parse_design(text, 'fuzz')
        except UserError as e: refused += 1; assert str(e).startswith('fuzz') and len(str(e).splitlines()) <= 10; continue
        assert parse_design(as_yaml(d)) == d and cells(d)
    assert refused > 40


def test_fuzz_from_python():
    "The same for what Python can hand over."
    rng, good = random.Random(0), asdict_tree(find_design('does_it_help'))
    odd = [None, True, -1, 0, 1e400, float('nan'), '', 'x', [], {}, [None], [[1]], {'a': None}, {1: 2}, b'x', object(), (), {'a': []}, 10**400, range(3), np.nan, np.arange(2), Generator('x'), [Generator('x'), 1]]
    for _ in range(300):
        d = {k: dict(v) if isinstance(v, dict) else v for k, v in good.items()}
        k = rng.choice([*d, 'new'])
        if k in d and isinstance(d[k], dict) and rng.random() < .6: d[k][rng.choice([*d[k], 'new', 3])] = rng.choice(odd)
        else: d[k] = rng.choice(odd)
        try: find_design(d, **({rng.choice(['size', 'seeds', 'arms', 'generators', 'source']): rng.choice(odd)} if rng.random() < .3 else {}))
        except UserError: pass
    for _ in range(300):
        d = find_design('smoke')
        for k in rng.sample([*asdict(d)], rng.randint(1, 3)): d = replace(d, **{k: rng.choice(odd)})
        try: find_design(d)
        except UserError: pass


def test_reading_designs_needs_no_torch():
    for m in ('sheets', 'designs'): assert subprocess.run([sys.executable, '-c', f'import sys, gansynth.{m}; sys.exit("torch" in sys.modules)']).returncode == 0


def test_keys_are_documented():
    assert all(about and default != '' or about for _, default, *_, about in list_keys())
