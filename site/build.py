"Builds the documentation: python site/build.py [FOLDER]. Nothing is run and nothing is fetched; the notebooks' saved outputs are shown."
import json, os, re, shutil, sys, tempfile
from pathlib import Path

from reference import PARTS, ROOT, command_page, index_page, module_page, modules, part_of

HERE = Path(__file__).resolve().parent
BACK = '<nav class="small"><a style="color:inherit" href="../results.html">gansynth: all results</a></nav>'
ICON = '<link rel="icon" href="../_static/favicon.svg">'
WIDE = '---\nhtml_theme.sidebar_secondary.remove: true\n---\n'        # a page with a wide table


def first_words(text, n=220): # Markdown
    "What a figure shows, from the sentences below it: plain text, cut between words."
    text = re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', re.sub(r'[`*$#]', '', text))
    text = ' '.join(text.split())
    return text if len(text) <= n else text[:text.rfind(' ', 0, n)]+' ...'


def describe_figures(cells): # of a notebook, changed in place
    "Give each figure an alternative text: its own, or the prose that comments on it, or the heading above."
    heading = ''
    for i, c in enumerate(cells):
        if c['cell_type'] == 'markdown': heading = (re.findall(r'^#+ (.+)', ''.join(c['source']), re.M) or [heading])[-1]
        said = [o.get('metadata', {}).get('image/png', {}).get('alt') for o in c.get('outputs', []) if 'image/png' in o.get('data', {})]
        if not said: continue
        below = next((''.join(n['source']) for n in cells[i+1:i+3] if n['cell_type'] == 'markdown'), '')
        c['metadata'].setdefault('mystnb', {})['image'] = {'alt': first_words(next(filter(None, said), None) or (f'Figure: {heading}' if not below or below.startswith('#') else below))}


def relinked(text, source, copied): # Markdown; file it stands in; set of files that the site must hold, added to
    "Links to files and folders of the checkout, as links that the site can follow."
    def new(m):
        target, _, anchor = m[2].partition('#')
        path = (ROOT/source).parent/target
        if not target or ':' in target or not path.exists(): return m[0]
        inside = Path(os.path.relpath(path.resolve(), ROOT))
        up = '../'*(len(Path(source).parts)-1)
        if inside.parts[0] == '..': return m[0]
        if path.is_dir(): return f"{m[1]}({up}{'results.md' if inside.parts[0] == 'results' else 'api/index.md' if inside.parts[0] == 'gansynth' else 'index.md'})"
        if inside in (Path('README.md'), Path('index.ipynb')): return f'{m[1]}({up}index.md)'
        if inside.parts[0] == 'gansynth' and inside.stem in modules(): return f'{m[1]}({up}api/{inside.stem}.md)'
        if inside.suffix not in ('.ipynb', '.md'): copied.add(inside)
        return m[0]
    return re.sub(r'(\[(?:[^\]\[]|\[[^\]]*\])*\])\(([^)\s]+)\)', new, text)


def staged(source, copied): # a notebook, relative to the checkout; see relinked
    "The notebook as the site shows it: no hidden cells, no directives of nbdev, the module named, figures described."
    nb, cells = json.loads((ROOT/source).read_text(encoding='utf-8')), []
    for c in nb['cells']:
        text, tags = ''.join(c['source']), c['metadata'].get('tags', [])
        module = re.search(r'^#\| *default_exp (\w+)', text, re.M)
        if 'hide' in tags or re.search(r'^#\| *hide *$', text, re.M): continue
        if c['cell_type'] == 'markdown': text = relinked(text, source, copied)
        else: text = re.sub(r'^#\|.*\n?', '', text, flags=re.M).lstrip('\n')
        if 'hide_input' in tags: c['metadata'] = {'tags': ['remove-input']}
        if text.strip(): cells.append(c | dict(source=text))
        if module: cells.append(dict(cell_type='markdown', metadata={}, source=f'Module: [`gansynth.{module[1]}`](../api/{module[1]}.md)'))
    describe_figures(cells)
    return nb | dict(cells=cells, nbformat_minor=4, metadata=dict(kernelspec=nb['metadata'].get('kernelspec', {}), language_info=dict(name='python')))


def toctree(pages, caption=None, depth=1): # names of pages
    "A hidden table of contents."
    return '\n'.join(['```{toctree}', ':hidden:', f':maxdepth: {depth}', *([f':caption: {caption}'] if caption else []), '', *pages, '```', ''])


def contents(notebooks): # names of chapters below nbs/
    "All parts of the book, for the front page."
    parts = {p: [f'nbs/{n}' for n in notebooks if '/' not in n and part_of(n) == p] for p in [*PARTS, 'To look up']}
    parts['Studies'] = [f'nbs/{n}' for n in notebooks if n.startswith('studies/')]+['results']
    parts['To look up'] = [*parts.pop('To look up'), 'commands', 'api/index', *(p for p in ('CONTRIBUTING', 'CHANGELOG') if (ROOT/f'{p}.md').exists())]
    return '\n'.join(toctree(pages, caption) for caption, pages in parts.items() if pages)


def results_page(folder): # to write the reports to
    "Markdown: what came out, and the report of each study that results/ holds."
    from gansynth.catalogue import STUDIES
    from gansynth.report import front_table, make_report
    rows = []
    for name in sorted(STUDIES):
        if not (ROOT/'results'/name/'contrast.json').is_file(): continue
        page = make_report(ROOT/'results'/name, folder/f'{name}.html')
        Path(page).write_text(Path(page).read_text(encoding='utf-8').replace('<body>', f'<body>{BACK}', 1).replace('<style>', f'{ICON}<style>', 1), encoding='utf-8')
        rows.append(f"| [{STUDIES[name]['title']}](nbs/studies/{name}.ipynb) | <a href=\"reports/{name}.html\">report of {name}</a> |")
    return '\n'.join(['# Results', '', 'What is committed in `results/`, and nothing else. A report answers its question first; every number in it is read from a file.', '', front_table(), '', '## Reports', '',
                      '| study | page |', '| --- | --- |', *rows, ''])


def stage(folder): # empty
    "Everything that Sphinx reads; returns the folder of finished pages."
    copied = set()
    def write(name, text): (folder/name).parent.mkdir(parents=True, exist_ok=True); (folder/name).write_text(text, encoding='utf-8')
    found = sorted(p.relative_to(ROOT/'nbs').with_suffix('').as_posix() for p in [*ROOT.glob('nbs/*.ipynb'), *ROOT.glob('nbs/studies/*.ipynb')] if p.stem != 'index')
    for n in found: write(f'nbs/{n}.ipynb', json.dumps(staged(f'nbs/{n}.ipynb', copied)))
    write('index.md', WIDE+relinked((ROOT/'README.md').read_text(encoding='utf-8'), 'README.md', copied)+'\n'+contents(found))     # what the front page shows now
    for m, path in modules().items(): write(f'api/{m}.md', module_page(m, path))
    write('api/index.md', index_page())
    write('commands.md', command_page())
    write('results.md', WIDE+results_page(folder/'extra'/'reports'))
    for p in ('CONTRIBUTING.md', 'CHANGELOG.md'):
        if (ROOT/p).exists(): write(p, relinked((ROOT/p).read_text(encoding='utf-8'), p, copied))
    for f in copied: (folder/f).parent.mkdir(parents=True, exist_ok=True); shutil.copy(ROOT/f, folder/f)


def main(out): # folder of the site
    "Build it anew; returns Sphinx' exit code. A warning is an error, and leaves an earlier site as it was."
    from sphinx.cmd.build import main as sphinx
    with tempfile.TemporaryDirectory() as tmp:
        source = Path(tmp)/'source'
        source.mkdir()
        stage(source)
        code = sphinx(['-q', '-W', '--keep-going', '-j', '2', '-c', str(HERE), '-d', f'{tmp}/doctrees', '-b', 'html', str(source), f'{tmp}/pages/html'])
        if code == 0: shutil.rmtree(out, ignore_errors=True); shutil.move(f'{tmp}/pages/html', out)
        return code


if __name__ == '__main__':
    sys.path.insert(0, str(ROOT))
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT/'_site').resolve()))
