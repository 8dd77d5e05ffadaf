"The documentation site, built once: nothing broken, nothing from elsewhere, everything there. And the files for those who take part."
import ast, importlib.util, json, re, shutil, subprocess, sys, threading
from configparser import ConfigParser
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from conftest import LIMIT, ROOT

yaml = pytest.importorskip('yaml')
pytestmark = [pytest.mark.site, pytest.mark.slow]
OUTSIDE = {'arxiv.org', 'doi.org', 'github.com', 'ibis-project.org', 'physionet.org', 'medmnist.com', 'huggingface.co', 'nihcc.app.box.com', 'data.mendeley.com', 'www.kaggle.com', 'keepachangelog.com', 'yaml.org', 'filesystem-spec.readthedocs.io'}     # a reader may be sent there by a click
LOADED = {'img': ('src', 'srcset'), 'script': ('src',), 'link': ('href',), 'iframe': ('src',), 'source': ('src', 'srcset'), 'video': ('src',), 'audio': ('src',), 'object': ('data',), 'embed': ('src',), 'input': ('src',), 'use': ('href',)}
MACHINE = re.compile(r'(?<![\w.:/])/(home|root|work|Users|tmp)/\w')
CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)


class Page(HTMLParser):
    "What a page offers (ids), what it loads by itself, where its links lead, and its words."
    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.ids, self.loads, self.links, self.words, self.alone, self.style = set(), [], [], [], 0, False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        a = {k: v or '' for k, v in attrs}
        self.ids |= {a[k] for k in ('id', 'name') if k in a}
        if tag == 'a' and 'href' in a: self.links.append(a['href'])
        elif a.get('rel') not in ('canonical',): self.loads += [a[k] for k in LOADED.get(tag, ()) if a.get(k)]
        self.loads += re.findall(r'url\(["\']?([^"\')]+)', a.get('style', ''))
        if tag == 'img' and not a.get('alt', '').strip(): self.alone += 1
        self.style = tag == 'style'

    def handle_data(self, text):
        self.words.append(text)
        if self.style: self.loads += re.findall(r'(?:url\(|@import )["\']?([^"\')]+)', text)


def faults(site): # folder
    "Everything wrong with the pages, a sentence each."
    pages = {p: Page(p.read_text(encoding='utf-8')) for p in sorted(site.rglob('*.html')) if '_static' not in p.relative_to(site).parts}
    out = []
    for p, page in pages.items():
        here = p.relative_to(site)
        for url in page.loads+page.links:
            u = urlsplit(url)
            if u.scheme == 'data' or url.startswith(('mailto:', '#') if url in page.loads else 'mailto:'): continue
            if u.scheme or u.netloc:
                if url in page.loads: out.append(f'{here} loads {url}')
                elif u.hostname not in OUTSIDE: out.append(f'{here} leads to {url}')
                continue
            target = (p.parent/unquote(u.path)).resolve() if u.path else p
            if target.is_dir(): target /= 'index.html'
            if not target.is_file() or not target.is_relative_to(site.resolve()): out.append(f'{here}: no {url}')
            elif u.fragment and target in pages and unquote(u.fragment) not in pages[target].ids: out.append(f'{here}: no place {url}')
        if page.alone: out.append(f'{here}: {page.alone} images without a description')
        if m := MACHINE.search(' '.join(page.words)): out.append(f'{here} names a folder of a machine: {m[0]}')
    for f in site.rglob('*.css'):
        out += [f'{f.relative_to(site)} loads {u}' for u in re.findall(r'(?:url\(|@import )["\']?((?:https?:)?//[^"\')]+)', f.read_text(encoding='utf-8'))]
    return out


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "The site, built as `make site` does; a warning is an error."
    out = tmp_path_factory.mktemp('documentation')/'site'
    done = subprocess.run([sys.executable, ROOT/'site'/'build.py', out], capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stdout+done.stderr
    assert [p.name for p in out.parent.iterdir()] == ['site'], 'left something beside the site'
    return out.resolve()


def test_no_fault(site):
    assert faults(site) == []


@pytest.mark.parametrize('wrong, said', [('<a href="gone.html">x</a>', 'no gone.html'), ('<a href="b.html#gone">x</a>', 'no place b.html#gone'), ('<a href="#gone">x</a>', 'no place #gone'),
    ('<script src="https://cdn.example.org/x.js"></script>', 'loads https'), ('<link rel="stylesheet" href="//fonts.example.org/f.css">', 'loads //'), ('<img src="gone.png" alt="a">', 'no gone.png'),
    ('<style>@import "https://a.example/x.css";</style>', 'loads https'), ('<p>written to /home/anna/runs</p>', 'folder of a machine'), ('<a href="https://example.org">x</a>', 'leads to'), ('<img src="data:image/png;base64,AA">', 'without a description')])
def test_the_crawl_finds_faults(tmp_path, wrong, said):
    (tmp_path/'b.html').write_text('<p id="here">b</p>')
    (tmp_path/'a.html').write_text('<a href="b.html#here">b</a>')
    assert faults(tmp_path) == []
    (tmp_path/'a.html').write_text(wrong)
    assert any(said in f for f in faults(tmp_path)), faults(tmp_path)


def test_everything_is_there(site):
    "Each chapter, module, command and committed result has its page, and the front page leads to it."
    front = {urlsplit(l).path for l in Page((site/'index.html').read_text()).links}
    notebooks = [p for p in [*ROOT.glob('nbs/*.ipynb'), *ROOT.glob('nbs/studies/*.ipynb')] if p.stem != 'index']
    assert len(notebooks) > 40
    for p in notebooks: assert f"{p.relative_to(ROOT).with_suffix('.html').as_posix()}" in front
    for p in (ROOT/'gansynth').glob('[!_]*.py'):
        page = Page((site/'api'/f'{p.stem}.html').read_text())
        exported = [n for n in re.findall(r"'(\w+)'", re.search(r'__all__ = \[(.*?)\]', p.read_text(), re.S)[1]) if not n.startswith('_')]
        assert not [n for n in exported if f'gansynth.{p.stem}.{n}' not in page.ids]
    words = ' '.join(Page((site/'commands.html').read_text()).words)
    for command in ('run', 'report', 'collect', 'list', 'data check', 'audit', 'export'): assert f'usage: gansynth {command}' in words
    for r in ROOT.glob('results/*/contrast.json'): assert (site/'reports'/f'{r.parent.name}.html').is_file()


def test_figures_and_formulas_are_shown(site):
    "As committed: the saved figures, MathML, no directive of nbdev, no cell that asks to be hidden."
    html = (site/'nbs'/'30_fidelity.html').read_text()
    saved = sum('image/png' in o.get('data', {}) for c in json.loads((ROOT/'nbs'/'30_fidelity.ipynb').read_text())['cells'] for o in c.get('outputs', []))
    assert saved and html.count('<img') >= saved and '<math' in html and '$$' not in html
    assert not [p.name for p in site.glob('nbs/*.html') if '#| export' in p.read_text()]


def test_arguments_are_told():
    "Comments reach the argument they stand beside, one for each or divided by semicolons."
    spec = importlib.util.spec_from_file_location('reference', ROOT/'site'/'reference.py')
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    def told(text): return reference.documented(ast.parse(text).body[0], reference.comments(text))
    assert told('def f(a, b=1): # first; second\n  return a') == [('a', '', 'first'), ('b', '1', 'second')]
    assert told('def f(a, # (n,); any\n      b,\n      *c): # both\n  return a') == [('a', '', '(n,); any'), ('b, *c', '', 'both')]
    assert told('def f(self, a, **k):\n  x = 1 # not an argument') == [('a', '', ''), ('**k', '', '')]
    assert reference.table([('a', '"`|"', 'x|`y|z`')]).splitlines()[2] == r'| `a` | `` "`\|" `` | x\|`y\|z` |'
    assert reference.plain('a*b `a*b` <c>') == r'a\*b `a*b` \<c\>'


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_): pass


@pytest.fixture
def browser():
    play = pytest.importorskip('playwright.sync_api')
    if not CHROMIUM: pytest.skip('no Chromium on this machine')
    with play.sync_playwright() as p:
        b = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox', '--proxy-server=127.0.0.1:9'])     # nobody listens there: no network
        yield b
        b.close()


def contrast_of(page, selector): # a page; CSS selector
    "Contrast ratio of text against what lies behind it (WCAG 2), the least over the elements found."
    return page.evaluate('''selector => {
      const rgb = c => c.match(/[\\d.]+/g).map(Number), lum = c => { const v = c.slice(0, 3).map(x => (x /= 255) <= .03928 ? x/12.92 : ((x+.055)/1.055)**2.4); return .2126*v[0]+.7152*v[1]+.0722*v[2] }
      const behind = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > .5) return c } return [255, 255, 255] }
      return Math.min(...[...document.querySelectorAll(selector)].filter(e => e.textContent.trim()).map(e => { const a = lum(rgb(getComputedStyle(e).color)), b = lum(behind(e)); return (Math.max(a, b)+.05)/(Math.min(a, b)+.05) })) }''', selector)


def test_in_a_browser_without_a_network(site, browser):
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    home, wrong, asked = f'http://127.0.0.1:{server.server_address[1]}', [], []
    try:
        for scheme in ('light', 'dark'):
            context = browser.new_context(color_scheme=scheme)
            context.set_default_timeout(1000*LIMIT)
            page = context.new_page()
            page.on('requestfailed', lambda r: wrong.append(f'failed: {r.url}'))
            page.on('response', lambda r: wrong.append(f'{r.status}: {r.url}') if r.status >= 400 else None)
            page.on('console', lambda m: wrong.append(m.text) if m.type == 'error' else None)
            page.on('pageerror', lambda e: wrong.append(str(e)))
            page.on('request', lambda r: asked.append(r.url))
            for path in ('index.html', 'nbs/30_fidelity.html', 'api/gans.html', 'results.html'):
                page.goto(f'{home}/{path}', wait_until='networkidle')         # what is left half loaded counts as failed
                page.wait_for_selector(f'html[data-theme={scheme}]', state='attached')
                for what in ('article p', 'article td', 'article pre span', 'article a code'):
                    if page.locator(what).count(): assert contrast_of(page, what) >= 4.5, (path, scheme, what)
            page.goto(f'{home}/search.html?q=bootstrap', wait_until='load')
            page.wait_for_selector('#search-results li a[href*="60_evaluation"]')        # the results come one by one
            page.wait_for_load_state('networkidle')
            context.close()
    finally: server.shutdown()
    assert wrong == [] and not [u for u in asked if not u.startswith((home, 'data:'))]


def test_the_site_opens_as_a_file(site, browser):
    "Pages, scripts and search index from a folder, without a server."
    page, wrong = browser.new_page(), []
    page.set_default_timeout(1000*LIMIT)
    page.on('pageerror', lambda e: wrong.append(str(e)))
    page.goto((site/'index.html').as_uri(), wait_until='load')
    assert page.locator('article h1').inner_text().startswith('gansynth') and wrong == []


def load_yaml(path): return yaml.safe_load((ROOT/path).read_text(encoding='utf-8'))


def test_workflow_and_templates():
    flow = load_yaml('.github/workflows/test.yml')
    job = flow['jobs']['test']
    assert job['strategy']['matrix']['python'] == ['3.11', '3.12'] and '.ci/run' in [s.get('run') for s in job['steps']]
    assert any(s.get('with', {}).get('cache') == 'pip' for s in job['steps']) and flow[True]      # YAML reads the key `on` as true
    for name in ('bug', 'result', 'idea'):
        form = load_yaml(f'.github/ISSUE_TEMPLATE/{name}.yml')
        assert {'name', 'description', 'body'} <= set(form)
        assert all(part['type'] in ('markdown', 'input', 'textarea', 'dropdown', 'checkboxes') for part in form['body'])
        named = [part['id'] for part in form['body'] if part['type'] != 'markdown']
        assert named and len(named) == len(set(named)) and all(part['attributes'].get('label') for part in form['body'] if part['type'] != 'markdown')
    assert {'data', 'n', 'seeds', 'verdict'} <= {part.get('id') for part in load_yaml('.github/ISSUE_TEMPLATE/result.yml')['body']}


def test_citation_and_changelog_agree_with_the_version():
    settings = ConfigParser(delimiters=['='], interpolation=None)
    settings.read(ROOT/'settings.ini', encoding='utf-8')
    version, cited = settings['DEFAULT']['version'], load_yaml('CITATION.cff')
    assert cited['cff-version'] == '1.2.0' and {'message', 'title', 'authors', 'type', 'license'} <= set(cited)
    assert cited['version'] == version and cited['license'] == 'Apache-2.0' and all('name' in a or 'family-names' in a for a in cited['authors'])
    assert f'## [{version}]' in (ROOT/'CHANGELOG.md').read_text(encoding='utf-8')


def test_contributing_names_every_target():
    targets = re.findall(r'^([a-z-]+): .*##', (ROOT/'Makefile').read_text(), re.M)
    told = (ROOT/'CONTRIBUTING.md').read_text(encoding='utf-8')
    assert targets and not [t for t in targets if f'make {t}`' not in told and t != 'help']
