"Sphinx: what the documentation looks like. It asks nobody for anything: formulas are MathML, fonts and scripts lie beside the pages."
import re, sys
from configparser import ConfigParser
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

sys.path.insert(0, str(Path(__file__).parent))
from reference import ROOT, symbols

settings = ConfigParser(delimiters=['='], interpolation=None)
settings.read(ROOT/'settings.ini', encoding='utf-8')

project, author, release = 'gansynth', settings['DEFAULT']['author'], settings['DEFAULT']['version']
copyright = settings['DEFAULT']['copyright']
extensions = ['myst_nb']
nb_execution_mode = 'off'
nb_render_markdown_format = 'myst'
nb_ipywidgets_js = {}                       # no script of a widget from elsewhere; notebooks hold static figures instead
nb_merge_streams = True
myst_enable_extensions = ['dollarmath']
myst_heading_anchors = 3
add_module_names = False
python_maximum_signature_line_length = 100
toc_object_entries_show_parents = 'hide'
pygments_style, highlight_language = 'default', 'python'

html_theme = 'sphinx_book_theme'
html_title = 'gansynth'
html_favicon = 'static/favicon.svg'
html_context = dict(default_mode='auto')    # light or dark, as the reader's system has it
html_static_path = ['static']
html_css_files = ['gansynth.css']
html_extra_path = []                        # set below, where the reports are known
html_show_sphinx = False
html_copy_source = True
html_sourcelink_suffix = ''
html_theme_options = dict(collapse_navigation=True, navigation_depth=2, navbar_persistent=[], use_download_button=True, use_fullscreen_button=False, show_toc_level=2, show_navbar_depth=1, home_page_in_toc=True, use_source_button=False,
                          search_bar_text='Search', pygments_light_style='a11y-high-contrast-light', pygments_dark_style='a11y-high-contrast-dark')


def mathml(self, node):
    "A formula as MathML, which browsers draw by themselves."
    block = isinstance(node, nodes.math_block)
    self.body.append(tex2mathml(node.astext(), as_block=block))
    raise nodes.SkipNode


def link_names(app, doctree, docname):
    "Names in prose that only one module exports lead to the reference."
    known = app.config.gansynth_symbols
    for n in list(doctree.findall(nodes.literal)):
        name = re.sub(r'\(.*\)$', '', n.astext()).removeprefix('gansynth.')
        plain_word = name.islower() and name.isalpha() and '(' not in n.astext()
        if name not in known or plain_word or isinstance(n.parent, nodes.reference) or n.next_node(nodes.reference): continue
        if any(isinstance(p, (nodes.title, nodes.reference)) for p in ancestors(n)): continue
        module, anchor = known[name]
        if docname == f'api/{module}' and any(anchor in p.get('ids', []) for s in ancestors(n) if s.tagname == 'desc' for p in s.children[:1]): continue
        n.replace_self(nodes.reference('', '', n.deepcopy(), internal=True, refuri=f"{app.builder.get_relative_uri(docname, f'api/{module}')}#{anchor}", classes=['api']))


def ancestors(node):
    "Parents, nearest first."
    while node.parent is not None: node = node.parent; yield node


def setup(app):
    app.add_config_value('gansynth_symbols', symbols(), 'env')
    app.add_node(nodes.math, override=True, html=(mathml, None))
    app.add_node(nodes.math_block, override=True, html=(mathml, None))
    app.connect('doctree-resolved', link_names)
    app.connect('config-inited', lambda app, config: config.html_extra_path.append(str(Path(app.srcdir)/'extra')))
    return dict(parallel_read_safe=True, parallel_write_safe=True)
