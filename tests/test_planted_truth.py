"Generators whose truth is known go through the whole system: design, plan, workers, audit, classifiers, contrasts, verdict, page."
import re, subprocess
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT, gansynth, snapshot

from gansynth.core import load_json
from gansynth.designs import cells, find_design

pytestmark = pytest.mark.slow


def study(folder, *args):
    "Run it from the command line; returns (finished process, folder of the study)."
    done = gansynth('study', *args, '--runs', folder/'runs', '--cache', folder/'shelf')
    found = list((folder/'runs'/'study').iterdir())
    return done, max(found, key=lambda p: (p/'study.json').stat().st_mtime)


@pytest.fixture(scope='module')
def planted(tmp_path_factory):
    folder = tmp_path_factory.mktemp('planted')
    done, place = study(folder, ROOT/'tests'/'planted.yaml')
    assert done.returncode == 0, done.stderr
    return folder, place, done


@pytest.fixture(scope='module')
def words(planted):
    c = pd.read_csv(planted[1]/'tables'/'contrasts.csv')
    return c[c.family == 'primary'].assign(generator=lambda t: t.label.str.extract(r'\[(\w+)')[0]).set_index('generator').word


def test_fresh_patients_help(words): assert words['fresh'] == 'helps'
def test_replayed_images_show_no_benefit(words): assert words['replay'] in ('equivalent', 'inconclusive', 'hurts')
def test_swapped_classes_hurt(words): assert words['swapped'] == 'hurts'


def test_only_the_replay_fails_the_audit(planted):
    verdicts = pd.read_csv(planted[1]/'tables'/'sets.csv').groupby('generator').verdict.agg(set)
    assert verdicts['replay'] == {'FAIL'} and 'FAIL' not in verdicts['fresh']


def test_the_page_says_so_and_no_more(planted):
    _, place, done = planted
    page = (place/'report'/'index.html').read_text()
    assert 'never medical evidence' in page and 'IT DEPENDS' in done.stdout and 'FAIL' in page
    assert load_json(place/'study.json')['answer']['word'] != 'helps'          # not of all three


def test_a_tiny_test_part_is_inconclusive(tmp_path):
    done, place = study(tmp_path, ROOT/'tests'/'planted.yaml', '--data', 'phantom:n_patients=90,prevalence=.4,difficulty=.5', '--fractions', '1', '--seeds', '0,1')
    assert done.returncode == 0, done.stderr
    c = pd.read_csv(place/'tables'/'contrasts.csv')
    assert set(c[c.family == 'primary'].word) == {'inconclusive'} and 'fewer than 10' in done.stdout


def test_a_second_call_does_nothing(planted):
    folder, place, _ = planted
    before = snapshot(place)
    done, again = study(folder, ROOT/'tests'/'planted.yaml')
    assert again == place and 'complete already' in done.stderr and snapshot(place) == before
