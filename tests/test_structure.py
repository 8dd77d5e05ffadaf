"The rules of the house that notebooks cannot check about themselves."
import ast, json, os, re, shutil, subprocess, sys, zipfile
from pathlib import Path

import pytest
from conftest import ROOT

NOTEBOOKS = sorted(p for p in [*ROOT.glob('nbs/*.ipynb'), *ROOT.glob('nbs/studies/*.ipynb'), ROOT/'index.ipynb'] if not p.is_symlink())
MODULES = sorted(p for p in (ROOT/'gansynth').glob('*.py') if not p.stem.startswith('_'))


def imports(path):
    "Modules of ours that a module imports, at its top or inside a function; nbdev writes them as relative imports."
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level: found |= {node.module} if node.module else {a.name for a in node.names}
    return found


def table():
    "{module: imports} of the front page, in its order."
    rows = re.findall(r'^\| \[[^|]+\| (\w+) \|[^|]+\| ([^|]+) \|$', (ROOT/'README.md').read_text(), re.M)
    return {m: set() if i.strip() == '-' else set(re.findall(r'\w+', i)) for m, i in rows}


def test_import_table():
    t = table()
    assert set(t) == {p.stem for p in MODULES}
    order = list(t)
    assert imports(ROOT/'gansynth'/'studies.py')        # the parser finds something
    for p in MODULES:
        ours = imports(p)
        assert all(order.index(m) < order.index(p.stem) for m in ours), f'{p.stem} imports from below'
        assert p.stem == 'cli' or ours == t[p.stem], p.stem


@pytest.mark.parametrize('module', ['core', 'decoding', 'sources', 'store', 'data', 'datasheet', 'eda', 'catalogue', 'studies', 'collection', 'tables', 'sheets', 'designs', 'shelf', 'pools', 'workers', 'planning', 'findings', 'answers', 'report', 'cli'])
def test_runner_never_imports_torch(module):
    code = f'import sys, gansynth.{module}; sys.exit("torch" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_clean(path):
    nb = json.loads(path.read_text())
    tags = [t for c in nb['cells'] for t in c['metadata'].get('tags', [])]
    assert 'injected-parameters' not in tags and 'papermill' not in nb['metadata'], 'an executed copy'
    assert tags.count('parameters') == (1 if path.parent.name == 'studies' else tags.count('parameters')) <= 1
    text = path.read_text()
    assert not re.search(r'(?<![\w.:/])/(home|root|work|Users|tmp)/', text), 'an absolute path'
    assert not any(o.get('output_type') == 'error' or o.get('name') == 'stderr' for c in nb['cells'] for o in c.get('outputs', []))
    assert len(nb['cells']) <= (20 if path.stem == 'index' else 80)
    for c in nb['cells']:
        if c['cell_type'] == 'code': assert len(c['source']) <= (40 if 'parameters' in c['metadata'].get('tags', []) else 26), c['source'][0] # parameters are a table, a line each
    assert path.stat().st_size < 600_000


def test_every_chapter_was_rendered():
    for path in NOTEBOOKS:
        if path.stem in ('02_processes', '70_studies', '78_tables', '80_report', '90_cli', '98_glossary', 'index'): continue
        assert any(o.get('data', {}).get('image/png') for c in json.loads(path.read_text())['cells'] for o in c.get('outputs', [])), f'{path.name} has no figure: make render'


def test_f10_nothing_unpickles():
    for p in [*MODULES, *NOTEBOOKS]:
        hits = re.findall(r'load_learner|pickle\.load|weights_only *= *False|allow_pickle *= *True|yaml\.load\(', p.read_text())
        assert not hits, (p.name, hits)


@pytest.fixture
def checkout(tmp_path):
    "A copy of the files that git knows or would add, with our .venv counted as made."
    listed = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard'], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    for f in listed:
        if not (ROOT/f).exists(): continue
        (tmp_path/f).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT/f, tmp_path/f, follow_symlinks=False)
    (tmp_path/'.venv').mkdir()
    shutil.copy(ROOT/'.venv'/'ready', tmp_path/'.venv'/'ready')
    return tmp_path


def test_sync(checkout):
    "Export, clean and README regeneration leave the tree unchanged."
    done = subprocess.run(['make', '--no-print-directory', 'export', 'readme'], cwd=checkout, capture_output=True, text=True,
                          env=os.environ | {'PATH': f"{Path(sys.executable).parent}:{os.environ['PATH']}"})
    assert done.returncode == 0, done.stderr
    for p in checkout.rglob('*'):
        f = p.relative_to(checkout)
        if p.is_file() and f.parts[0] != '.venv' and '__pycache__' not in f.parts: assert (ROOT/f).is_file() and p.read_bytes() == (ROOT/f).read_bytes(), f'{f} changed: run make export readme'


def test_notebooks_travel_with_the_package(checkout, tmp_path_factory):
    "An installed gansynth finds its study notebooks and designs without a checkout."
    out = tmp_path_factory.mktemp('wheel')
    subprocess.run([sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w', out, checkout], check=True, capture_output=True)
    wheel, = out.glob('*.whl')
    names = zipfile.ZipFile(wheel).namelist()
    assert {'gansynth/notebooks/nih_pneumonia.ipynb', 'gansynth/notebooks/designs/does_it_help.yaml', 'gansynth/notebooks/designs/smoke.yaml'} <= {*names} and 'gansynth/core.py' in names and not [n for n in names if n.startswith('tests')]
