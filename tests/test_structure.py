"The rules of the house that notebooks cannot check about themselves."
import ast, json, re, shutil, subprocess, sys, zipfile
from pathlib import Path

import pytest
from conftest import ROOT

NOTEBOOKS = sorted(p for p in [*ROOT.glob('nbs/*.ipynb'), *ROOT.glob('nbs/studies/*.ipynb'), ROOT/'index.ipynb'] if not p.is_symlink())
MODULES = sorted(p for p in (ROOT/'gansynth').glob('*.py') if not p.stem.startswith('_'))


def imports(path):
    "Modules of ours that a module imports, and whether each is imported at the top level."
    tree = ast.parse(path.read_text())
    found = {}
    for node in ast.walk(tree):
        names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module == 'gansynth': names = [f'gansynth.{a.name}' for a in node.names]
        for n in names:
            if n.startswith('gansynth.'): found[n.split('.')[1]] = found.get(n.split('.')[1], False) or node in tree.body
    return found


def table():
    "{module: imports} of the front page, in its order."
    rows = re.findall(r'^\| \[[^|]+\| (\w+) \|[^|]+\| ([^|]+) \|$', (ROOT/'README.md').read_text(), re.M)
    return {m: set() if i.strip() == '-' else set(re.findall(r'\w+', i)) for m, i in rows}


def test_import_table():
    t = table()
    assert set(t) == {p.stem for p in MODULES}
    order = list(t)
    for p in MODULES:
        ours = imports(p)
        assert all(order.index(m) < order.index(p.stem) for m in ours), f'{p.stem} imports from below'
        assert p.stem == 'cli' or set(ours) == t[p.stem], p.stem


@pytest.mark.parametrize('module', ['core', 'data', 'studies', 'report', 'cli'])
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
    assert max(len(c['source']) for c in nb['cells'] if c['cell_type'] == 'code') <= 26
    assert path.stat().st_size < 600_000


def test_every_chapter_was_rendered():
    for path in NOTEBOOKS:
        if path.stem in ('70_studies', '90_cli', 'index'): continue
        assert any(o.get('data', {}).get('image/png') for c in json.loads(path.read_text())['cells'] for o in c.get('outputs', [])), f'{path.name} has no figure: make render'


def test_f10_nothing_unpickles():
    for p in [*MODULES, *NOTEBOOKS]:
        hits = re.findall(r'load_learner|pickle\.load|weights_only *= *False|allow_pickle *= *True|yaml\.load\(', p.read_text())
        assert not hits, (p.name, hits)


def test_sync(tmp_path):
    "Export, clean and README regeneration leave the tree unchanged."
    files = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard'], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split('\n')
    for f in filter(None, files):
        if not (ROOT/f).exists(): continue
        (tmp_path/f).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT/f, tmp_path/f, follow_symlinks=False)
    (tmp_path/'.venv').mkdir()
    shutil.copy(ROOT/'.venv'/'ready', tmp_path/'.venv'/'ready')
    done = subprocess.run(['make', '--no-print-directory', 'export', 'readme'], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for f in filter(None, files):
        if (ROOT/f).is_file(): assert (tmp_path/f).read_bytes() == (ROOT/f).read_bytes(), f'{f} changed: run make export readme'


def test_notebooks_travel_with_the_package(tmp_path):
    "An installed gansynth finds its study notebooks without a checkout."
    subprocess.run([sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w', tmp_path, ROOT], check=True, cwd=tmp_path, capture_output=True)
    wheel, = tmp_path.glob('*.whl')
    names = zipfile.ZipFile(wheel).namelist()
    assert 'gansynth/notebooks/nih_pneumonia.ipynb' in names and 'gansynth/core.py' in names
