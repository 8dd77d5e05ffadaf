"""JupyterLab in a real browser: the front page opens, a chapter runs to its end, and every control of every widget changes its picture.

GANSYNTH_SHOTS=folder keeps the screenshots. GANSYNTH_ABLATE='old=>new' changes the chapter on widgets and its module in the copy first, to see that these tests can fail."""
import json, os, re, shutil, socket, subprocess, sys, time, urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 300_000 # milliseconds after which a test gives up waiting: an emergency brake, never a measurement
CHROMIUM = next((p for p in map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome')) if p), None)
sync_api = pytest.importorskip('playwright.sync_api', reason='the Python package playwright is not installed')
expect = sync_api.expect
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CHROMIUM, reason='no Chromium on this machine')]

SETTINGS = {'apputils-extension/notification': dict(fetchNews='false', checkForUpdates=False, doNotDisturbMode=True),   # nothing is asked for outside
            'notebook-extension/tracker': dict(windowingMode='none'), 'docmanager-extension/plugin': dict(autosave=False)}


def copy_checkout(to):
    "The files that git knows or would add."
    listed = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard'], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    for f in listed:
        if not (ROOT/f).exists() or f.split('/')[0] in ('results', 'tests'): continue
        (to/f).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT/f, to/f, follow_symlinks=False)
    old, _, new = os.environ.get('GANSYNTH_ABLATE', '').partition('=>')
    for p in (to/'gansynth'/'widgets.py', to/'nbs'/'75_widgets.ipynb'):
        assert old in p.read_text(), 'GANSYNTH_ABLATE: no such code'
        if old: p.write_text(p.read_text().replace(old, new))
    return to


@pytest.fixture(scope='session')
def lab(tmp_path_factory):
    "(address, token) of a JupyterLab on a copy of the checkout."
    home, copy = tmp_path_factory.mktemp('home'), copy_checkout(tmp_path_factory.mktemp('copy'))
    for name, value in SETTINGS.items():
        p = home/'settings'/'@jupyterlab'/f'{name}.jupyterlab-settings'
        p.parent.mkdir(parents=True, exist_ok=True); p.write_text(json.dumps(value))
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    env = os.environ | {'PYTHONPATH': str(copy), 'OMP_NUM_THREADS': '1', 'PYTHONWARNINGS': 'ignore', 'GANSYNTH_CACHE': str(home/'cache'), 'JUPYTERLAB_SETTINGS_DIR': str(home/'settings'),
                        'JUPYTERLAB_WORKSPACES_DIR': str(home/'workspaces'), 'JUPYTER_CONFIG_DIR': str(home/'config'), 'JUPYTER_RUNTIME_DIR': str(home/'run'), 'JUPYTER_PREFER_ENV_PATH': '1', 'PYDEVD_DISABLE_FILE_VALIDATION': '1'}
    env.pop('GANSYNTH_PROGRESS', None)
    with open(home/'log', 'w') as log:
        server = subprocess.Popen([sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', f'--ServerApp.port={port}', '--ServerApp.port_retries=0', '--ServerApp.ip=127.0.0.1', '--IdentityProvider.token=reader',
                                   '--LabApp.news_url=', '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate', '--LabApp.extension_manager=readonly', f'--ServerApp.root_dir={copy}'], cwd=copy, env=env, stdout=log, stderr=log)
    address = f'http://127.0.0.1:{port}'
    for _ in range(LIMIT//250):
        try: urllib.request.urlopen(f'{address}/api?token=reader'); break
        except OSError: time.sleep(.25)
        assert server.poll() is None, (home/'log').read_text()[-2000:]
    yield address
    server.terminate(); server.wait(LIMIT/1000)


@pytest.fixture(scope='session')
def page(lab):
    "One window of a browser that may not leave this machine."
    outside = []
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        page = browser.new_page(viewport=dict(width=1280, height=1000))
        page.on('request', lambda r: outside.append(r.url) if not r.url.startswith((lab, 'data:', 'blob:')) else None)
        page.set_default_timeout(LIMIT)
        yield page
        browser.close()
    assert not outside, f'asked for outside: {outside[:3]}'


@pytest.fixture
def shot(page, tmp_path):
    "Function that keeps a screenshot under a name."
    folder = Path(os.environ.get('GANSYNTH_SHOTS') or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return lambda name, of=None: (of or page).screenshot(path=folder/f'{name}.png')


def open_notebook(lab, page, path):
    page.goto(f'{lab}/doc/tree/{path}?token=reader&reset')
    page.wait_for_selector('.jp-Notebook .jp-MarkdownOutput h1')
    return page.locator('.jp-Notebook')


def run_all(page):
    "Run all cells from the menu; returns when the last one has its number. Fails where a cell raised."
    prompts, wrong = '[...document.querySelectorAll(".jp-CodeCell .jp-InputPrompt")].map(x=>x.textContent)', page.locator('.jp-OutputArea-output[data-mime-type*=error], .jp-OutputArea-output[data-mime-type*=stderr]')
    page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status=idle]')
    for _ in range(3):      # on a busy machine a click may come before the menu is ready
        page.get_by_role('menuitem', name='Run', exact=True).click()
        page.get_by_role('menuitem', name='Run All Cells', exact=True).click()
        try: page.wait_for_function(f'{prompts}.some(x=>/[*0-9]/.test(x))', timeout=30_000); break
        except sync_api.TimeoutError: page.keyboard.press('Escape')
    page.wait_for_function(f'!{prompts}.includes("[*]:")', timeout=2*LIMIT)
    assert not wrong.count(), wrong.first.inner_text()[-800:]
    left, folded = [x for x in page.evaluate(prompts) if not re.fullmatch(r'\[\d+\]:', x)], page.locator('.jp-InputPlaceholder').count()
    assert left == ['']*folded, f'{len(left)-folded} cells were not run'          # the folded solution of an exercise shows no number


def picture(box): return box.locator('.widget-html-content img')


def settled(page, box):
    "The picture's address, as soon as the kernel is idle and the picture stays: a redraw that is under way must not pass for the next one."
    src, since = None, time.monotonic()
    for _ in range(LIMIT//50):
        page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status=idle]')
        if (now := picture(box).get_attribute('src')) != src: src, since = now, time.monotonic()
        if time.monotonic()-since > .3: return src
        page.wait_for_timeout(50)
    raise AssertionError('the picture never comes to rest')


def changes(page, box, act, what):
    "Do something; fails unless the picture in the box becomes another one."
    before = settled(page, box)
    act()
    for _ in range(LIMIT//50):
        if picture(box).get_attribute('src') != before: return
        page.wait_for_timeout(50)
    raise AssertionError(f'{what}: the picture stays as it was')


def says(box, pattern): expect(picture(box)).to_have_attribute('alt', re.compile(pattern), timeout=LIMIT)


def control(box, name): return box.locator('.widget-inline-hbox, .widget-hslider', has=box.page.locator('.widget-label', has_text=re.compile(f'^{re.escape(name)}$')))


def nudge(page, box, name, key='ArrowRight', times=1):
    "Move a slider with the keyboard."
    handle = control(box, name).locator('.noUi-handle, input[type=range]')
    def act():
        handle.focus()
        for _ in range(times): page.keyboard.press(key)
    return changes(page, box, act, name)


def drag(page, box, name, to):
    "Drag a slider to a share of its length."
    def act():
        page.mouse.move(handle['x']+handle['width']/2, handle['y']+handle['height']/2); page.mouse.down()
        page.mouse.move(bar['x']+to*bar['width'], bar['y']+bar['height']/2, steps=4); page.mouse.up()
    control(box, name).scroll_into_view_if_needed()
    handle, bar = control(box, name).locator('.noUi-handle').bounding_box(), control(box, name).locator('.noUi-target').bounding_box()
    return changes(page, box, act, name)


def choose(page, box, name, label): return changes(page, box, lambda: control(box, name).locator('select').select_option(label), name)
def press(page, box, name): return changes(page, box, lambda: box.get_by_role('button', name=name, exact=True).click(), name)


def boxes(page, n):
    "The n widgets of the notebook, each with its controls and its picture."
    found = page.locator('.jp-OutputArea-output > .jupyter-widgets.widget-vbox, .jp-OutputArea-output .lm-Panel > .jupyter-widgets.widget-vbox')
    expect(found).to_have_count(n, timeout=LIMIT)
    return [found.nth(i) for i in range(n)]


def fits(page, box):
    "Nothing sticks out of the cell, and the picture has words for those who cannot see it."
    room, inside = box.bounding_box(), picture(box).bounding_box()
    assert inside['x']+inside['width'] <= room['x']+room['width']+1 and inside['width'] > 200
    assert box.evaluate('e=>e.scrollWidth<=e.clientWidth+1'), 'scrolls sideways'
    assert len(picture(box).get_attribute('alt')) > 15


def test_front_page(lab, page, shot):
    nb = open_notebook(lab, page, 'index.ipynb')
    assert 'synthetic' in nb.inner_text().lower() and not page.locator('.jp-Dialog').count()
    shot('front_page')


def test_a_chapter_runs_to_its_end(lab, page, shot):
    open_notebook(lab, page, 'nbs/02_processes.ipynb')
    run_all(page)
    shot('chapter')


def test_widgets(lab, page, shot):
    open_notebook(lab, page, 'nbs/75_widgets.ipynb')
    run_all(page)
    toy, line, dose = boxes(page, 3)
    for name, box in dict(toy=toy, line=line, dose=dose).items(): fits(page, box); shot(f'{name}_before', box)
    nudge(page, toy, 'frequency')
    nudge(page, line, 'threshold', times=5); drag(page, line, 'threshold', .8); drag(page, line, 'prevalence', .2)
    choose(page, line, 'part', 'validation'); says(line, 'validation part'); choose(page, line, 'arm', 'gan_aug, seed 0'); says(line, 'gan_aug')
    drag(page, line, 'threshold', .3); press(page, line, 'Threshold of validation')
    nudge(page, dose, 'ratio', 'ArrowLeft'); says(dose, 'ratio 2'); choose(page, dose, 'generator', 'r3gan'); choose(page, dose, 'fraction', '1.0')
    for name, box in dict(toy=toy, line=line, dose=dose).items(): shot(f'{name}_after', box)


def test_inside_a_gan(lab, page, shot):
    open_notebook(lab, page, 'nbs/76_explorers.ipynb')
    run_all(page)
    monitor, walk = boxes(page, 2)
    for name, box in dict(monitor=monitor, walk=walk).items(): fits(page, box); shot(f'{name}_before', box)
    nudge(page, monitor, 'look', 'ArrowLeft'); nudge(page, monitor, 'smoothing', 'Home')
    drag(page, walk, 'position', .5); nudge(page, walk, 'seed a'); nudge(page, walk, 'seed b'); choose(page, walk, 'class', 'pneumonia'); says(walk, r'pneumonia: at 0\.5')
    for name, box in dict(monitor=monitor, walk=walk).items(): shot(f'{name}_after', box)


def test_blind_reader(lab, page, shot):
    open_notebook(lab, page, 'nbs/77_readers.ipynb')
    run_all(page)
    reader, anna = boxes(page, 2)
    fits(page, reader); fits(page, anna); shot('reader_before', reader); shot('reader_truth', anna)
    field = reader.locator('input[type=text]')
    press(page, reader, 'Real')
    field.focus()
    def typed(key): page.keyboard.press(key); page.wait_for_function('e=>e.value===""', arg=field.element_handle())
    while 'images' not in picture(reader).get_attribute('alt') and 'right' not in picture(reader).get_attribute('alt'): changes(page, reader, lambda: typed('g'), 'r or g')
    says(reader, r'\d+ of 16 right')
    expect(field).to_be_disabled(timeout=LIMIT)          # a message of its own: the picture may come first
    shot('reader_after', reader)


def test_dark_theme(lab, page, shot):
    page.get_by_role('menuitem', name='Settings', exact=True).click()
    page.locator('.lm-Menu-itemLabel', has_text=re.compile('^Theme$')).click()
    page.locator('.lm-Menu-itemLabel', has_text=re.compile('^JupyterLab Dark$')).click()
    page.wait_for_function('document.body.dataset.jpThemeLight==="false"')
    box = boxes(page, 2)[-1]
    light = 'e=>getComputedStyle(e).color.match(/[0-9]+/g).slice(0,3).reduce((a,b)=>a+ +b,0)/3 > 150'
    page.wait_for_function(light, arg=box.locator('p').element_handle())
    shot('dark', box)
