"What has to pass before a change lands: the commands, and the look at the page of `make report`."
import subprocess
import sys

import pytest
from conftest import ROOT

SENTENCE = 'gan_aug against {base}: inconclusive. AUROC {d} (95 % interval -0.019 to +0.037) over 1 seed and 100 patients.'
PAGE = """<body><p class='answer'><span class='word'>{word}</span> {sentence}</p><ul><li>Health of the generator: healthy.</li></ul>
<h2>Questions and answers</h2><table><tr><td>gan_aug against the best of raw, oversample</td><td>no benefit shown: inconclusive</td><td>{base}</td></tr></table>"""


def report(folder, word='inconclusive', base='raw', d='+0.011', low=.9):
    "A page and its table of results as `gansynth report` writes them."
    (folder/'results').mkdir(parents=True)
    page = PAGE.format(word=word, base=base, sentence=SENTENCE.format(base=base, d=d))
    (folder/'index.html').write_text(page)
    arms = ['raw', 'class_weights', 'oversample', 'classic_aug', 'gan_aug']
    rows = [f'{arm},mean,auroc,.95,{low if arm == "oversample" else .3 if arm == "gan_aug" else .9},.99' for arm in arms]
    (folder/'results'/'results.csv').write_text('\n'.join(['arm,seed,metric,value,low,high', *rows]))
    return folder


def check(*args):
    command = [sys.executable, str(ROOT/'.ci'/'check_report'), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_page_with_an_answer_passes(tmp_path):
    done = check(report(tmp_path/'a'))
    assert done.returncode == 0 and 'inconclusive. gan_aug against raw' in done.stdout, done.stderr


@pytest.mark.parametrize('change, words', [(dict(word=''), 'holds no answer'), (dict(word='splendid'), 'holds no answer'), (dict(low=.49), 'oversample was not trained')])
def test_a_page_without_one_fails(tmp_path, change, words):
    done = check(report(tmp_path/'a', **change))
    assert done.returncode == 1 and words in done.stderr


def test_a_missing_page_or_arm_fails(tmp_path):
    assert 'was not written' in check(tmp_path/'none').stderr
    folder = report(tmp_path/'a')
    table = folder/'results'/'results.csv'
    table.write_text('\n'.join(line for line in table.read_text().splitlines() if not line.startswith('classic_aug')))
    assert 'no AUROC of classic_aug' in check(folder).stderr


def test_words_leave_numbers_and_the_chosen_opponent_out(tmp_path):
    a, b = (check(report(tmp_path/k, **change), '--words').stdout for k, change in dict(a={}, b=dict(base='oversample', d='-0.02')).items())
    assert a == b and 'healthy' in a and 'the best of raw, oversample' in a
    assert check(report(tmp_path/'c', word='helps'), '--words').stdout != a


def test_ci_runs_what_the_readme_promises():
    lines = (ROOT/'.ci'/'run').read_text().splitlines()
    assert lines[-4:] == ['make report', '.venv/bin/python .ci/check_report report', 'make test', 'make test-slow']
