"The exploratory analysis against pandas as a witness, on both engines, and the published table on the real metadata."
import gzip, importlib.util, json, os, shutil, subprocess, sys

import ibis
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, SHARED
from pandas.testing import assert_frame_equal

from gansynth import eda
from gansynth.core import UserError

NIH = SHARED/'nih_chestxray14'
needs_nih = pytest.mark.skipif(not NIH.is_dir(), reason='no NIH metadata beside the checkout (../shared/data/nih_chestxray14)')
HAS_SPARK = bool(shutil.which('java') and importlib.util.find_spec('pyspark'))
needs_spark = pytest.mark.skipif(not HAS_SPARK, reason='needs java and pyspark')
ENGINES = [pytest.param(e, marks=pytest.mark.slow) if e == 'spark' else e for e in eda.ENGINES] # Java takes its time to start
LISTS = [NIH/n for n in eda.LISTS]


@pytest.fixture(scope='session')
def engines():
    "{name: connection}, each made once."
    made = {}
    def get(name):
        if name == 'spark' and not HAS_SPARK: pytest.skip('needs java and pyspark')
        if name not in made: made[name] = eda.connect(name)
        return made[name]
    return get


@pytest.fixture(scope='session')
def made_csv(tmp_path_factory):
    "Invented metadata in a folder whose name has a space and an umlaut."
    return eda.write_made(tmp_path_factory.mktemp('made für')/'a b.csv', 6000, seed=3, chunk=2500)


def witness(path):
    "The file by pandas alone: all text, nothing null."
    d = pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False)
    d = d.rename(columns=eda.NAMES)[list(eda.NAMES.values())]
    number = d.age_text.str.extract(r'^(\d+)')[0].astype(float)
    d['age_dropped'], d['age'] = number, number/d.age_text.str[-1].map({'M': 12., 'D': 365.}).fillna(1.)
    return d.assign(follow_up=d.follow_up.astype(int), patient_id=d.patient_id.astype(int))


def check_all(t, d):
    "Every aggregate of `t` equals what pandas counts in `d`."
    ours = eda.table1(t)
    for c in eda.COLUMNS:
        want = d[c].describe()
        assert ours[c][['count', 'min', 'max']].tolist() == want[['count', 'min', 'max']].tolist(), c
        assert ours[c][['25 %', '50 %', '75 %']].tolist() == want[['25%', '50%', '75%']].tolist(), c
        np.testing.assert_allclose(ours[c][['mean', 'std']], want[['mean', 'std']], rtol=1e-12, err_msg=c)
    long = d.assign(label=d.labels.str.split('|', regex=False)).explode('label')
    n = eda.label_counts(t)
    assert n.images.to_dict() == long.label.value_counts().to_dict() and n.images.is_monotonic_decreasing
    assert np.allclose(n.share, n.images/len(d), rtol=1e-15)
    hot = d.labels.str.get_dummies('|')[list(n.index)]
    assert (eda.cooccurrence(t).to_numpy() == hot.T.to_numpy() @ hot.to_numpy()).all()
    for by in ('sex', 'view'):
        got, want = eda.per_label(t, by), pd.crosstab(long.label, long[by]).loc[n.index]
        assert (got.iloc[:-1].to_numpy() == want.to_numpy()).all() and list(got.columns) == list(want.columns)
        assert got.loc['all images'].to_dict() == d[by].value_counts().to_dict()
    per = d.groupby('patient_id').size()
    assert eda.follow_ups(t).patients.to_dict() == per.value_counts().to_dict()
    assert eda.age_histogram(t).images.to_dict() == np.floor(d.age).astype(int).value_counts().to_dict()
    odd = eda.impossible_ages(t)
    assert odd['count'] == (d.age > 100).sum() and set(odd['rows'].image) == set(d.image[d.age > 100])
    assert eda.totals(t)['count'].to_dict() == dict(images=len(d), names=d.image.nunique(), patients=len(per), label_texts=d.labels.nunique())
    sizes = eda.image_sizes(t)
    assert sizes.images.sum() == len(d)
    assert sizes.images.drop('other').to_dict().items() <= (d.width + ' x ' + d.height).value_counts().to_dict().items()


def test_invented_metadata_against_pandas(engines, made_csv):
    check_all(eda.read_entries(engines('duckdb'), made_csv), witness(made_csv))


@needs_nih
@pytest.mark.parametrize('name, engine', [('Data_Entry_2017.csv.gz', 'duckdb'), pytest.param('Data_Entry_2017.csv.gz', 'spark', marks=pytest.mark.slow), ('Data_Entry_2017_v2020.csv.gz', 'duckdb')])
def test_real_metadata_against_pandas(engines, name, engine):
    check_all(eda.read_entries(engines(engine), NIH/name), witness(NIH/name))


def assert_same(a, b):
    "Counts and quantiles exactly, means and standard deviations to 1e-12."
    assert set(a) == set(b)
    for k in a:
        if k != 'table1': assert_frame_equal(a[k], b[k], check_exact=True, obj=k)
    loose = ['mean', 'std']
    assert_frame_equal(a['table1'].drop(loose), b['table1'].drop(loose), check_exact=True)
    assert_frame_equal(a['table1'].loc[loose], b['table1'].loc[loose], rtol=1e-12, atol=0)


@pytest.mark.slow
def test_engines_agree(engines, made_csv, tmp_path):
    names = witness(made_csv).image
    parquet = eda.write_made(tmp_path/'made.parquet', 6000, seed=3, chunk=2500)
    tables = {(e, p.suffix): eda.summaries(eda.read_entries(engines(e), p), (names[::2], names[1::2])) for e, p in (('duckdb', made_csv), ('duckdb', parquet), ('spark', parquet))}
    first, *others = tables.values()
    for other in others: assert_same(first, other)


@pytest.mark.slow
def test_why_the_engine_never_splits(engines, made_csv):
    "The obvious split is right on DuckDB and tears labels into letters on Spark, without an error."
    want = witness(made_csv).labels.str.count('[|]').add(1).sum()
    naive = {e: (t := eda.read_entries(engines(e), made_csv)).labels.split('|').length().sum().execute() for e in eda.ENGINES}
    assert naive['duckdb'] == want and naive['spark'] > 5*want
    assert eda.label_counts(t).images.sum() == want     # ours, on Spark


@needs_nih
def test_published_table(engines):
    t = eda.read_entries(engines('duckdb'), NIH)
    table = eda.table1(t)
    assert (table.loc['count'] == 112_120).all()
    want = dict(follow_up=(8.573751, 15.406320), patient_id=(14346.381743, 8403.876972), age_dropped=(46.901463, 16.839923))
    for c, pair in want.items(): assert tuple(table[c][['mean', 'std']].round(6)) == pair
    assert round(table.age['mean'], 6) == 46.897979
    assert table.loc[['25 %', '50 %']].T.values.tolist() == [[0, 3], [7310.75, 13993], [35, 49], [35, 49]]
    assert table.age_dropped['max'] == 414 and eda.impossible_ages(t)['count'] == 16
    assert eda.totals(t)['count'][['images', 'names', 'patients']].tolist() == [112_120, 112_120, 30_805]
    agrees = eda.beside_published(table).xs('agrees', axis=1, level=1)
    assert not agrees.loc['count'].any() and agrees.drop(['count', '75 %']).all(axis=None)
    off = table.assign(age_dropped=table.age)           # the other reading is noticed
    assert not eda.beside_published(off)['age_dropped'].agrees['mean']


@needs_nih
def test_edition_of_2020(engines):
    old, new = (eda.read_entries(engines('duckdb'), p) for p in (NIH, NIH/'Data_Entry_2017_v2020.csv.gz'))
    table = eda.table1(new)
    assert round(table.age['mean'], 6) == 46.626365 and table.age['max'] == 95 and eda.impossible_ages(new)['count'] == 0
    a, b = (t.select('image', 'patient_id', 'sex', 'view').execute().sort_values('image', ignore_index=True) for t in (old, new))
    assert_frame_equal(a, b)                            # 00000001 in one, 1 in the other: the same patient
    assert a.patient_id[0] == 1


@needs_nih
def test_official_lists(engines):
    t = eda.read_entries(engines('duckdb'), NIH)
    n = eda.patients_shared(t, *LISTS)['count']
    assert n.tolist() == [86_524, 25_596, 0, 0, 28_008, 2_797, 0]
    names = witness(NIH/'Data_Entry_2017.csv.gz').image.tolist()
    leaky = eda.patients_shared(t, names[::2], names[1::2] + ['nobody.png', names[0]])['count']
    assert leaky.patients_shared > 10_000 and leaky.images_unknown == 1 and leaky.images_shared == 1


HEAD = 'Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]'
ROW = '{0:08d}_000.png,Mass|Edema,000,{0:08d},058Y,M,PA,2682,2749,0.143,0.143'


def small(path, rows, head=HEAD + ',', end='\r\n'):
    (gzip.open if path.suffix == '.gz' else open)(path, 'wt', encoding='utf-8', newline='').write(end.join([head, *rows]) + end)
    return path


@pytest.mark.parametrize('engine', ENGINES)
@pytest.mark.parametrize('head, row, end', [(HEAD + ',', ROW, '\r\n'), (HEAD + ',', ROW + ',', '\n'), (HEAD, ROW, '\n'), ('\ufeff' + HEAD, ROW, '\n\n')],
                         ids=['unnamed last column', 'also in the rows', 'no unnamed column', 'mark of order, blank lines'])
def test_forms_of_the_header(engines, tmp_path, engine, head, row, end):
    p = small(tmp_path/'a.csv.gz', [row.format(i) for i in (1, 2, 3)], head, end)
    d = eda.read_entries(engines(engine), p).order_by('image').execute()
    assert d.patient_id.tolist() == [1, 2, 3] and set(d.age) == {58} and set(d.height) == {2749}


@pytest.mark.parametrize('engine', ENGINES)
def test_texts_that_look_null(engines, tmp_path, engine):
    texts = ['NA', 'None', 'null', 'NaN', 'NA|None']
    p = small(tmp_path/'a.csv', [ROW.format(i).replace('Mass|Edema', s).replace(',M,', ',NA,' if i else ',,') for i, s in enumerate(texts)])
    t = eda.read_entries(engines(engine), p)
    assert eda.label_counts(t).images.to_dict() == {'NA': 2, 'None': 2, 'NaN': 1, 'null': 1}
    assert eda.per_label(t, 'sex').loc['all images'].to_dict() == {'NA': 4, 'unknown': 1}
    eda.save_tables(p, tmp_path/'out', engine)
    assert eda.load_tables(tmp_path/'out')['label_counts'].images.to_dict() == {'NA': 2, 'None': 2, 'NaN': 1, 'null': 1}


FAULTS = [('058Y', 'fifty', "line 4: Patient Age 'fifty'"), ('058Y', '', "line 4: Patient Age ''"), ('058Y', '58W', "'58W'"), (',000,', ',1.5,', "Follow-up # '1.5'"),
          ('00000002,', 'two,', "Patient ID 'two'"), ('Mass|Edema', '', "Finding Labels ''"), (',2749', ',tall', "Height] 'tall'"),
          ('058Y,M,PA,2682,2749,0.143,0.143', '058Y', "Height] ''"),
          ('0.143,0.143', '0.143,0.143,7', "beyond the last column '7'"), ('0.143,0.143', '0.143,0.143,1,2,3,4', "beyond the last column")]


@pytest.mark.parametrize('engine, old, new, what', [('duckdb', *f) for f in FAULTS] + [pytest.param('spark', *f, marks=pytest.mark.slow) for f in FAULTS[3:4] + FAULTS[-3:]])
def test_a_bad_row_is_named(engines, tmp_path, engine, old, new, what):
    p = small(tmp_path/'a.csv', [ROW.format(i).replace(old, new) if i == 2 else ROW.format(i) for i in range(6)], HEAD)
    with pytest.raises(UserError) as e: eda.read_entries(engines(engine), p)
    assert what in str(e.value) and 'line 4' in str(e.value) and str(p) in str(e.value) and 'mend' in str(e.value)


def test_why_the_rows_are_judged_as_text(engines):
    "DuckDB's own cast rounds a follow-up of 1.5 without a word."
    assert ibis.literal('1.5').cast('int64').name('x').as_table().execute().x[0] == 2


def test_at_most_20_faults_are_shown(engines, tmp_path):
    p = small(tmp_path/'a.csv', [ROW.format(i).replace('058Y', 'x') for i in range(25)])
    with pytest.raises(UserError) as e: eda.read_entries(engines('duckdb'), p)
    assert ': 25;' in str(e.value) and str(e.value).count('line ') == 20 and 'line 21:' in str(e.value) and 'line 22:' not in str(e.value)


def test_a_bad_parquet_row_is_named(engines, tmp_path):
    p = tmp_path/'a.parquet'
    eda.made_entries(50).assign(**{'Patient Age': ['058Y']*7 + ['x'] + ['058Y']*42}).to_parquet(p)
    with pytest.raises(UserError, match="line 9: Patient Age 'x'"): eda.read_entries(engines('duckdb'), p)


@pytest.mark.parametrize('content, what', [(HEAD.replace(',', ';').encode(), "separated by ';'"), (HEAD.replace('Patient Age,', '').encode(), 'lacks Patient Age'),
                                           (b'', 'found: nothing'), (HEAD.encode() + b'\n', 'no rows'), (b'\x89PNG\r\n\x1a\n\xff\xfe', 'not a CSV file'), (None, 'no such file')],
                         ids=['semicolons', 'a column less', 'empty', 'header only', 'an image', 'absent'])
@pytest.mark.parametrize('engine', ENGINES)
def test_other_files_are_refused(engines, tmp_path, engine, content, what):
    if content is not None: (tmp_path/'a.csv').write_bytes(content)
    with pytest.raises(UserError) as e: eda.read_entries(engines(engine), tmp_path/'a.csv')
    assert what in str(e.value) and 'a.csv' in str(e.value)


def test_not_gzip(engines, tmp_path):
    (tmp_path/'a.csv.gz').write_text(HEAD)
    with pytest.raises(UserError, match='not a CSV file'): eda.read_entries(engines('duckdb'), tmp_path/'a.csv.gz')
    with pytest.raises(UserError, match='Data_Entry_2017.csv'): eda.read_entries(engines('duckdb'), tmp_path)
    with pytest.raises(UserError, match='no such list'): eda._list(tmp_path/'list.txt')
    with pytest.raises(UserError, match='holds no tables'): eda.load_tables(tmp_path)


def test_spark_missing_is_named(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="did you mean 'spark'"): eda.connect('pyspark')
    with monkeypatch.context() as m:
        m.setitem(sys.modules, 'pyspark', None)
        with pytest.raises(UserError, match=r'pip install gansynth\[spark\]'): eda.connect('spark')
    if not importlib.util.find_spec('pyspark'): return
    import pyspark
    monkeypatch.setattr(pyspark.SparkContext, '_active_spark_context', None)
    monkeypatch.delenv('JAVA_HOME', raising=False)
    monkeypatch.setenv('PATH', '/nowhere')
    with pytest.raises(UserError, match='install Java 17'): eda.connect('spark')
    monkeypatch.undo()
    monkeypatch.setattr(pyspark.SparkContext, '_active_spark_context', None)
    (tmp_path/'bin').mkdir()
    (tmp_path/'bin'/'java').write_text('#!/bin/sh\nexit 1\n')
    (tmp_path/'bin'/'java').chmod(0o755)
    monkeypatch.setenv('JAVA_HOME', str(tmp_path))
    with pytest.raises(UserError, match='did not start.*Java 17'): eda.connect('spark')


@needs_spark
@pytest.mark.slow
def test_spark_is_quiet_and_leaves_nothing(made_csv, tmp_path):
    code = f'from gansynth.eda import *; print(len(label_counts(read_entries(connect("spark"), {str(made_csv)!r}))))'
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, env=os.environ | {'PYTHONPATH': str(ROOT)}, timeout=120)
    assert (done.stdout, done.stderr) == ('15\n', '') and not list(tmp_path.iterdir())


def test_duckdb_is_quiet():
    "Its progress bar, printed to stdout after two seconds, is off; a plain connection may have it on."
    on = lambda con: con.raw_sql("SELECT current_setting('enable_progress_bar')").fetchone()[0]
    plain = ibis.duckdb.connect()
    plain.raw_sql('SET enable_progress_bar = true')
    assert on(plain) and not on(eda.connect('duckdb'))


def test_invented_rows(tmp_path):
    d = eda.made_entries(30_000, seed=1)
    assert len(d) == 30_000 and d['Image Index'].str.startswith('made').all() and d['Image Index'].is_unique
    assert d['Patient Age'].str.fullmatch('[0-9]{3}[YMD]').all() and (d['Patient Age'].str[:3].astype(int) > 100).any() and set(d['Patient Age'].str[-1]) == set('YMD')
    assert d.groupby('Patient ID')['Patient Gender'].nunique().max() == 1 and d['Follow-up #'].astype(int).max() > 20
    assert not d.equals(eda.made_entries(30_000, seed=2))
    p = pd.read_parquet(eda.write_made(tmp_path/'a.parquet', 10_001, chunk=1000))
    assert len(p) == 10_001 and p['Image Index'].is_unique and p['Patient ID'].is_monotonic_increasing


@needs_nih
def test_committed_tables_are_those_of_the_real_metadata(tmp_path):
    kept = ROOT/'results'/'nih_eda'
    eda.save_tables(NIH, tmp_path/'a')
    eda.save_tables(NIH/'Data_Entry_2017_v2020.csv.gz', tmp_path/'a'/'edition_2020')
    names = {p.relative_to(kept) for p in kept.rglob('*.csv')}
    assert names == {p.relative_to(tmp_path/'a') for p in tmp_path.rglob('*.csv')} and len(names) == 20
    for n in names: assert_frame_equal(pd.read_csv(kept/n), pd.read_csv(tmp_path/'a'/n), rtol=1e-12, atol=0)
    for folder in ('.', 'edition_2020'):
        a, b = (json.loads((p/folder/'provenance.json').read_text()) for p in (kept, tmp_path/'a'))
        assert (a['file'], a['sha256'], a['lists']) == (b['file'], b['sha256'], b['lists'])


def test_committed_tables_hold_no_image():
    for p in (ROOT/'results'/'nih_eda').rglob('*'):
        if p.is_file(): assert '.png' not in p.read_text() and len(p.read_text().splitlines()) < 120 and str(SHARED) not in p.read_text()


def test_intensity():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (30, 16, 20), 'uint8'), np.arange(30) % 3
    x[y == 1] //= 2
    t, means = eda.intensity_per_class(x, y, ['a', 'b', 'c', 'nobody']), eda.mean_images(x, y)
    for k in range(3):
        v = x[y == k]
        want = [len(v), v.mean(), v.std(), *np.percentile(v, [1, 50, 99], method='inverted_cdf')]
        np.testing.assert_allclose(t.iloc[k], want, rtol=1e-12)
        np.testing.assert_allclose(means[k], v.astype(float).mean(0))
    assert t.images['nobody'] == 0 and means.shape == (3, 16, 20)


def test_sources():
    rng = np.random.default_rng(0)
    a, b = (rng.normal(120, 20, (80, 32, 32)).clip(0, 255).astype('uint8') for _ in 'ab')
    assert eda.source_differences({'a': a, 'b': b}).gap.max() < 1
    smooth = ((b[:, :-1, :-1].astype(int) + b[:, 1:, 1:])//2).astype('uint8')
    assert eda.source_differences({'a': a, 'smooth': smooth}).gap['sharpness'] > 5
    flat = np.full((5, 8, 8), 7, 'uint8')
    gap = eda.source_differences({'a': flat, 'b': flat + 1}).gap
    assert np.isinf(gap['mean']) and gap['sharpness'] == 0
    for bad in (a[:0], a.astype(float), a[0]):
        with pytest.raises(UserError, match='uint8'): eda.source_differences({'a': bad})


def test_no_torch():
    assert subprocess.run([sys.executable, '-c', 'import sys, gansynth.eda; sys.exit("torch" in sys.modules or "pyspark" in sys.modules)'], env=os.environ | {'PYTHONPATH': str(ROOT)}).returncode == 0
