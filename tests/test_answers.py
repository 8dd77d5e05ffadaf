"The page of a study: what it may claim, where its numbers come from, and that nothing breaks it."
import re
from html.parser import HTMLParser

import pandas as pd
import pytest

from gansynth.answers import checklist, describe, make_study_report, methods
from gansynth.claims import FORMAT, Records, claims, first_words, invented_forest, invented_study
from gansynth.core import UserError, load_json, save_json

VOID = {'meta', 'img', 'br', 'hr'}


class Strict(HTMLParser):
    "Collects attributes and text, and refuses tags that are not closed in order."
    def __init__(self, page):
        super().__init__()
        self.open, self.links, self.ids, self.text, self.images, self.tags = [], [], [], [], [], set()
        self.feed(page); self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        assert len(a) == len(attrs), f'{tag} repeats an attribute'
        self.tags.add(tag); self.links += [a[k] for k in ('src', 'href') if k in a]; self.ids += [a['id']] if 'id' in a else []
        if tag == 'img': self.images.append(a)
        if tag not in VOID: self.open.append(tag)

    def handle_endtag(self, tag): assert self.open.pop() == tag, (tag, self.open[-3:])
    def handle_data(self, data): self.text.append(data)


@pytest.fixture
def folder(tmp_path):
    import matplotlib.pyplot as plt
    d = invented_study(tmp_path/'study')
    plt.close(invented_forest(d))
    return d


def change(folder, name, where=None, **values):
    "Set cells of a table on disk."
    t = pd.read_csv(f := folder/'tables'/f'{name}.csv', keep_default_na=False)
    for k, v in values.items(): t[k] = t[k].astype(object); t.loc[slice(None) if where is None else where, k] = v
    t.to_csv(f, index=False)


def edit(folder, **parts):
    "Change parts of study.json."
    s = load_json(folder/'study.json')
    save_json(s | {k: s.get(k, {}) | v if isinstance(v, dict) else v for k, v in parts.items()}, folder/'study.json')


def page_of(folder): return make_study_report(folder, folder/'report').read_text()
def found(folder, text): return [c for c in claims(folder) if text in c['claim']]
def first_screen(page): return re.sub('src="[^"]*"', '', page[page.index('<section class="first">'):page.index('</section>')])


def test_a_good_study_may_say_that_it_helps(folder):
    assert [c['allowed'] for c in found(folder, 'helps: better than classic_aug')] == [True]
    assert [c['allowed'] for c in found(folder, 'are equivalent')] == [True]


@pytest.mark.parametrize('table, where, values, why', [
    ('sets', 0, dict(verdict='FAIL'), 'privacy audit FAIL in 1 of 6'), ('sets', None, dict(verdict='not auditable'), 'not auditable in 6 of 6'), ('sets', None, dict(generator='other'), 'no privacy audit'), ('sets', 0, dict(collapsed=True), 'collapsed'),
    ('contrasts', None, dict(n_seeds=1), '1 seed and 3 generator seeds'), ('contrasts', None, dict(n_gans=1), 'a claim needs 10 and 3'), ('contrasts', None, dict(n_rarer=9), '9 patients of the rarer class'),
    ('contrasts', 0, dict(low=-.001), 'does not follow'), ('contrasts', 0, dict(p_holm=.2), 'does not follow'), ('results', None, dict(arm='raw'), 'cheaper opponents')])
def test_helps_needs_every_condition(folder, table, where, values, why):
    change(folder, table, where, **values)
    claim, = found(folder, 'helps: better than classic_aug')
    assert not claim['allowed'] and why in claim['why'], claim


def test_a_failed_audit_is_red_and_says_what_it_means(folder):
    assert 'audit' not in first_screen(page_of(folder)) and 'Attack' not in first_screen(page_of(folder))
    change(folder, 'sets', [1, 4], verdict='FAIL', words='3 copies')
    red = re.findall('<li class="failed">([^<]*)</li>', first_screen(page_of(folder)))
    said, = [x for x in red if 'audit' in x]
    assert said.startswith('Privacy audit of the synthetic images: FAIL. 2 of 12 synthetic sets, first dcgan, pneumonia: 3 copies. The answer still compares the arms')
    assert 'may come from repeated patients' in said and 'export and share are closed' in said
    change(folder, 'sets', 0, verdict='not auditable')
    red = re.findall('<li class="failed">([^<]*)</li>', first_screen(page_of(folder)))
    assert said in red and 'Privacy audit: not auditable 1 of 12 synthetic sets.' in red
    assert said in describe(folder)


@pytest.mark.parametrize('verdict, red', [('FAIL', True), ('described', False), ('not audited', False)])
def test_the_discriminator_is_a_finding_of_its_own(folder, verdict, red):
    "It is red only where it fails, and takes no sentence about the images away."
    before = [(c['allowed'], c['claim']) for c in claims(folder)]
    change(folder, 'sets', 0, weights=verdict, weights_words='it knows them')
    page = page_of(folder)
    assert ('<li class="failed">Attack on the weights: FAIL. 1 of 12 synthetic sets, first dcgan, normal: it knows them. ' in first_screen(page)) == red == ('Attack' in first_screen(page))
    assert f'Attack on the weights (scores of the discriminator): PASS 11, {verdict} 1 of 12 synthetic sets.' in page
    assert 'synthetic images: FAIL' not in page and [(c['allowed'], c['claim']) for c in claims(folder)] == before


def test_a_study_of_before_knows_nothing_of_the_weights(folder):
    t = pd.read_csv(f := folder/'tables'/'sets.csv', keep_default_na=False)
    t.drop(columns=['weights', 'weights_words']).to_csv(f, index=False)
    page = page_of(folder)
    assert 'Attack on the weights (scores of the discriminator): not recorded 12 of 12' in page and 'Attack' not in first_screen(page)


def test_helps_needs_equal_steps_real_images_and_an_honest_generator(folder):
    cells = pd.read_csv(folder/'tables'/'cells.csv')
    change(folder, 'cells', cells.arm == 'gan_classic', steps=800)
    edit(folder, provenance=dict(test_reads=[2]))
    why = found(folder, 'helps: better')[0]['why']
    assert 'unequal training: gan_classic[dcgan 1x] took 800 optimiser steps, classic_aug 400' in why and 'more than once' in why
    edit(folder, design=dict(generators=[dict(name='dcgan', kind='replay')]))
    assert 'planted' in found(folder, 'helps: better')[0]['why']


def test_phantoms_are_never_medical(folder):
    edit(folder, provenance=dict(source=dict(kind='phantom', name='phantom', notes=[])))
    said = claims(folder)
    assert not any(c['allowed'] and not c['claim'].startswith(('Measured here', 'No memorisation')) for c in said)
    assert all('never medical evidence' in c['why'] for c in said if c['claim'].startswith('Measured here'))
    assert 'Phantom images: physics for testing, never medical evidence.' in first_screen(page_of(folder))


def test_equivalent_only_where_both_tests_hold(folder):
    for values in (dict(high90=.021), dict(low90=-.021), dict(p_tost=.06)):
        before = (folder/'tables'/'contrasts.csv').read_bytes()
        change(folder, 'contrasts', 1, **values)
        assert [c['allowed'] for c in found(folder, 'are equivalent')] == [False], values
        (folder/'tables'/'contrasts.csv').write_bytes(before)


@pytest.mark.parametrize('word', ['helps', 'hurts', 'equivalent', 'inconclusive', 'no effect', ''])
def test_no_effect_and_private_are_never_allowed(folder, word):
    change(folder, 'contrasts', word=word)
    edit(folder, answer=dict(word=word, by_fraction=[]))
    for c in claims(folder):
        if any(w in c['claim'] for w in ('no effect', 'private', 'care of patients', 'best dose')): assert not c['allowed'], c
    if word in ('inconclusive', 'no effect', ''): assert not any(c['allowed'] for c in claims(folder) if ' helps' in c['claim'] and not c['claim'].startswith('Measured') and 'Synthetic' not in c['claim'])


def test_other_hospital_needs_an_external_set(folder):
    assert [c['allowed'] for c in found(folder, 'another hospital')] == [False]
    t = pd.read_csv(folder/'tables'/'contrasts.csv')
    pd.concat([t, t[:1].assign(family='external')]).to_csv(folder/'tables'/'contrasts.csv', index=False)
    assert not found(folder, 'another hospital') and [c['allowed'] for c in found(folder, 'On the external set too')] == [True]
    change(folder, 'contrasts', 3, word='inconclusive')
    assert [c['allowed'] for c in found(folder, 'On the external set too')] == [False]


def test_over_all_splits(folder):
    t = pd.read_csv(folder/'tables'/'contrasts.csv')
    pd.concat([t, t[:1].assign(split='all')]).to_csv(folder/'tables'/'contrasts.csv', index=False)
    change(folder, 'sets', 0, verdict='FAIL')
    r = Records(folder)
    assert sorted(c.split for c in r.family('primary')) == ['0', 'all']
    assert 'FAIL in 1 of 6' in found(folder, 'helps: better')[0]['why']


@pytest.mark.parametrize('column, value, shown', [('difference', .123, '+0.123'), ('low', .0179, '+0.018'), ('high', .077, '+0.077'), ('word', 'hurts', 'hurts'), ('p_holm', .0123, '0.0123'), ('n_patients', 777, '777'), ('n_seeds', 17, '17 seeds')])
def test_numbers_of_the_first_screen_come_from_the_tables(folder, column, value, shown):
    before = first_screen(page_of(folder))
    assert shown not in before and 'does not agree' not in before
    change(folder, 'contrasts', 0, **{column: value})
    after = first_screen(page_of(folder))
    assert shown in after
    if column in ('difference', 'low', 'high', 'word'): assert 'The recorded answer does not agree with the tables' in after


def test_every_table_is_on_the_page(folder):
    change(folder, 'sets', 0, kid=.04321); change(folder, 'cells', 0, threshold=.98765); change(folder, 'doses', 0, value=.54321); change(folder, 'results', 0, value=.65432); change(folder, 'worth', 0, n0=8765)
    page = page_of(folder)
    for shown in ('0.0432', '0.9877', '0.543', '0.654', '8765'): assert shown in page, shown


def test_the_page_is_whole_and_alone(folder):
    page = page_of(folder)
    p = Strict(page)
    assert all(x.startswith(('data:image/png;base64,', '#')) for x in p.links) and not p.tags & {'script', 'link', 'iframe', 'form'}
    assert {x[1:] for x in p.links if x.startswith('#')} <= set(p.ids) and len(p.ids) == len(set(p.ids))
    assert len(p.images) == 1 and 'AUROC' in p.images[0]['alt'] and str(folder) not in page and 'url(' not in page
    assert page == page_of(folder)


def test_names_are_escaped_everywhere(tmp_path):
    nasty = '<b>&"\'`</script>{x}%s'
    d = invented_study(tmp_path/'nasty', name=nasty, question=nasty)
    for table, column in (('sets', 'class'), ('contrasts', 'label'), ('contrasts', 'classifier'), ('results', 'label'), ('failed', 'error'), ('worth', 'sentence'), ('sets', 'words')):
        if table == 'failed': pd.DataFrame([dict(key='k', kind='cell', name=nasty, error=nasty)]).to_csv(d/'tables'/'failed.csv', index=False)
        else: change(d, table, 0, **{column: nasty})
    s = load_json(d/'study.json')
    s['manifests'] = [m | dict(classes=[nasty, 'b'], counts={p: {nasty: dict(images=1, patients=1)} for p in ('train', 'valid', 'test')}) for m in s['manifests']]
    s['provenance'] |= dict(substitution=nasty, commit=nasty); s['plan'] |= dict(left_out=[nasty]); s['design'] |= dict(generators=[dict(name=nasty)], classifiers=[dict(name=nasty)], arms=[nasty])
    s['answer'] |= dict(sentence=nasty, certainty=nasty)
    save_json(s, d/'study.json')
    page = page_of(d)
    p = Strict(page)
    assert '</script>' not in page and '<b>&' not in page and 'script' not in p.tags and nasty.replace('`', '') in ''.join(p.text).replace('`', '')


def test_empty_and_missing(tmp_path, folder):
    for f in (folder/'tables').iterdir(): f.write_text(pd.read_csv(f, nrows=0).to_csv(index=False) if f.stat().st_size > 2 else '')
    for f in (folder/'figures').iterdir(): f.unlink()
    Strict(page := page_of(folder))
    assert 'NO ANSWER' in describe(folder) and '<img' not in page and not any(c['allowed'] for c in claims(folder))
    (bare := tmp_path/'bare').mkdir()
    save_json(dict(format=FORMAT), bare/'study.json')
    Strict(page_of(bare))
    assert 'not recorded' in dict(methods(bare))['Data'] and len(checklist(bare)) and 'No primary contrast' in describe(bare)


def test_nulls_where_values_are_expected(folder):
    s = load_json(folder/'study.json')
    for part in ('design', 'plan', 'answer', 'outcomes', 'provenance'): s[part] = {k: None for k in s[part]}
    s['manifests'] = [dict(split=0, fraction=1., counts={}, hash=None, near_duplicates=None, classes=None, image_size=None)]
    save_json(s, folder/'study.json')
    Strict(page_of(folder))


def test_what_failed_is_prominent(folder):
    pd.DataFrame([dict(key='k'*32, kind='cell', name='raw', error='no space on the disk')]).to_csv(folder/'tables'/'failed.csv', index=False)
    edit(folder, outcomes={'failed': 1, 'left out': 2})
    page = page_of(folder)
    assert '<li class="failed">1 task failed.</li>' in first_screen(page) and 'no space on the disk' in page and '<li class="failed">Ratio 2 was left out' in page and '2 were left out because of that' in page
    assert '1 task failed.' in describe(folder)


def test_unicode(folder):
    edit(folder, question='Hilft das? Ünïcödé 肺炎 → 🫁')
    change(folder, 'sets', None, **{'class': '肺炎'})
    page = page_of(folder)
    assert 'Ünïcödé 肺炎 → 🫁' in page and describe(folder).startswith('Hilft das?')


def test_three_hundred_cells(tmp_path):
    d = invented_study(tmp_path/'large', n_seeds=40)
    page = page_of(d)
    Strict(page)
    assert '(320 rows)' in page and len(page) < 1_000_000


def test_many_contrasts_keep_the_first_screen_short(folder):
    t = pd.read_csv(folder/'tables'/'contrasts.csv')
    pd.concat([t[:1].assign(classifier=f'net{i}') for i in range(40)]).to_csv(folder/'tables'/'contrasts.csv', index=False)
    edit(folder, answer=dict(sentence='Synthetic images help, in all 40 comparisons: '+'; '.join(f'classifier net{i}: AUROC +0.030' for i in range(40))+'.', by_fraction=[]))
    screen = ''.join(Strict(f'{first_screen(page_of(folder))}</section>').text)
    assert len(screen) < 1400 and '...' in screen


def test_refusals(folder, tmp_path):
    with pytest.raises(UserError, match='study.json'): make_study_report(tmp_path, tmp_path)
    (folder/'tables'/'doses.csv').write_bytes(b'a,b\n"open')
    with pytest.raises(UserError, match='doses.csv is not a table'): page_of(folder)
    edit(folder, format='gansynth study 9')
    with pytest.raises(UserError, match='expected'): Records(folder)


def test_certainty_cannot_be_louder_than_the_seeds(folder):
    change(folder, 'contrasts', n_seeds=2)
    edit(folder, answer=dict(certainty='claim: 10 classifier and 3 generator seeds'))
    word, sentence, sure, warning = first_words(Records(folder))
    assert sure.startswith('indication level: 2 seeds') and 'level claim' in warning
