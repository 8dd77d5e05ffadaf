"Pages of the reference, read from the source text: nothing is imported but the command line's parser."
import argparse, ast, io, os, re, sys, tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARTS = {'Foundation': 4, 'Data': 18, 'Generators': 26, 'Evidence': 49, 'Classifiers': 69, 'Running and reporting': 99}   # last chapter number of each


def part_of(stem): # of a notebook
    "Name of the part that a chapter belongs to; chapters without a number are looked up, not read."
    number = re.match(r'(\d+)_', stem)
    return next(p for p, last in PARTS.items() if int(number[1]) <= last) if number and 'glossary' not in stem else 'To look up'


def chapter_of(path): # of a module
    "Name of the notebook that a module was exported from."
    return re.search(r'File to edit: \.\./nbs/(.+)\.ipynb', path.read_text(encoding='utf-8'))[1]


def modules(root=ROOT): # of the checkout
    "{module: its file}, in the order of the chapters that export them."
    found = [p for p in (root/'gansynth').glob('*.py') if not p.stem.startswith('_')]
    return {p.stem: p for p in sorted(found, key=chapter_of)}


def comments(text): # source of a module
    "{line: comment}"
    return {t.start[0]: t.string.lstrip('# ').rstrip() for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type == tokenize.COMMENT}


def arguments(f): # a FunctionDef
    "[(name, default or '', its last line)] without self."
    a = f.args
    given = [None]*(len(a.posonlyargs+a.args)-len(a.defaults))+a.defaults
    rows = [('', n, d) for n, d in zip(a.posonlyargs+a.args, given)]+[('*', n, None) for n in [a.vararg] if n]
    rows += [('', n, d) for n, d in zip(a.kwonlyargs, a.kw_defaults)]+[('**', n, None) for n in [a.kwarg] if n]
    return [(star+n.arg, ast.unparse(d) if d else '', (d or n).end_lineno) for star, n, d in rows if n.arg not in ('self', 'cls')]


def documented(f, said): # a FunctionDef; {line: comment}
    "[(names, default, comment)]: a row an argument, or one for several where a comment does not divide by its semicolons."
    out, waiting, args = [], [], arguments(f)
    for line in range(f.lineno, max(f.body[0].lineno-1, f.lineno)+1):
        waiting += [a for a in args if a[2] == line]
        if line not in said or not waiting: continue
        words = said[line].split('; ') if len(waiting) > 1 else [said[line]]
        if len(words) == len(waiting): out += [(n, d, c) for (n, d, _), c in zip(waiting, words)]
        else: out.append((', '.join(n for n, *_ in waiting), ', '.join(f'{n}={d}' for n, d, _ in waiting if d), said[line]))
        waiting = []
    return out+[(n, d, '') for n, d, _ in waiting]


def plain(text): # of a docstring or a comment
    "Markdown that shows the text as it is, but keeps what stands between backticks."
    return ''.join(s if i%2 else re.sub(r'([\\*_<>\[\]$~#{}])', r'\\\1', s) for i, s in enumerate(re.split(r'(`[^`\n]+`)', text or '')))


def cell(text): # of a docstring or a comment
    "The same in a cell of a table."
    return ' '.join(plain(text).replace('|', '\\|').split())


def code(text): # an expression, or ''
    "It as inline code in a table's cell."
    ticks, text = ('`` ', text) if '`' in text else ('`', text)
    return ticks+text.replace('|', '\\|')+ticks[::-1] if text else ''


def table(rows, first='argument'): # (name, default, comment)
    "A Markdown table of arguments or fields, or nothing."
    if not any(d or c for _, d, c in rows): return ''
    lines = [f"| {code(n)} | {code(d)} | {cell(c)} |" for n, d, c in rows]
    return '\n'.join([f'| {first} | default | meaning |', '| --- | --- | --- |', *lines, ''])


def fenced(kind, head, body, options='', ticks=4): # directive; its argument; Markdown; ':a: b' lines
    "A directive of Sphinx' Python domain."
    return f"{'~'*ticks}{{py:{kind}}} {head}\n{options}\n\n{body}\n{'~'*ticks}\n"


def signature(f): # a FunctionDef
    "Its arguments, without self."
    text = ast.unparse(f.args)
    return f"({re.sub(r'^(self|cls)(, |$)', '', text)})"


def function_page(f, said, kind='function', ticks=4): # a FunctionDef; {line: comment}
    "Markdown of a function or method."
    is_property = any(ast.unparse(d) in ('property', 'cached_property', 'functools.cached_property') for d in f.decorator_list)
    head = f.name if is_property else f.name+signature(f)
    return fenced('property' if is_property else kind, head, f"{plain(ast.get_docstring(f))}\n\n{table(documented(f, said))}", ticks=ticks)


def field(value, comment): # what a dataclass's field is set to, or None; the comment beside it
    "(default, meaning): `field(default_factory=dict)` reads dict(), `entry(1, 'what it is')` reads 1."
    text = re.sub(r'^field\(default_factory=(\w+)\)$', r'\1()', ast.unparse(value)) if value else ''
    if not text.startswith('entry('): return text, comment
    default, *about = value.args
    return ast.unparse(default).replace('MISSING', ''), comment or next((a.value for a in about if isinstance(a, ast.Constant) and isinstance(a.value, str)), '')


def class_page(c, said): # a ClassDef; {line: comment}
    "Markdown of a class: its fields or arguments, and the public methods that say what they do."
    methods = [f for f in c.body if isinstance(f, ast.FunctionDef)]
    fields = [(ast.unparse(a.target), *field(a.value, said.get(a.end_lineno, ''))) for a in c.body if isinstance(a, ast.AnnAssign)]
    init = next((f for f in methods if f.name == '__init__'), None)
    made_by = signature(init) if init else f"({', '.join(n+f'={d}'*bool(d) for n, d, _ in fields)})" if fields else ''
    body = [plain(ast.get_docstring(c)), f"Based on {', '.join(code(ast.unparse(b)) for b in c.bases)}." if c.bases else '', table(documented(init, said)) if init else '', table(fields, 'field')]
    body += [function_page(f, said, 'method') for f in methods if not f.name.startswith('_') and (ast.get_docstring(f) or table(documented(f, said)))]
    return fenced('class', c.name+made_by, '\n\n'.join(b for b in body if b), ticks=5)


def data_page(name, node, said): # of a constant; its assignment or None
    "Markdown of a constant: its value where that is short."
    value = ast.unparse(node.value) if node is not None and isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) else ''
    about, keys = plain(said.get(node.end_lineno, '')) if node is not None else '', [k.value for k in getattr(node.value, 'keys', []) if isinstance(k, ast.Constant)] if value else []
    if len(value) > 90 and keys: about += f"\n\nKeys: {', '.join(code(str(k)) for k in keys)}."
    return fenced('data', name, about, f':value: {value}' if 0 < len(value) <= 90 else '')


def assigned(tree): # of a module
    "{name: statement} of what a module binds at its top."
    return {n.id: a for a in tree.body if isinstance(a, (ast.Assign, ast.AnnAssign)) for t in (a.targets if isinstance(a, ast.Assign) else [a.target]) for n in ast.walk(t) if isinstance(n, ast.Name)}


def public(tree): # of a module
    "The names that it exports, in order; private ones are not told."
    a = assigned(tree).get('__all__')
    return [n for n in ast.literal_eval(a.value) if not n.startswith('_')] if a else []


def module_page(name, path): # of a module; its file
    "Markdown of a module."
    text, stem = path.read_text(encoding='utf-8'), chapter_of(path)
    tree, said = ast.parse(text), comments(text)
    values, defined = assigned(tree), {d.name: d for d in tree.body if isinstance(d, (ast.FunctionDef, ast.ClassDef))}
    out = [f'# {name}\n', f'{plain(ast.get_docstring(tree))}\n', f'Explained and tested in the chapter [](../nbs/{stem}.ipynb).\n', f'```{{py:module}} gansynth.{name}\n```\n']
    for n in public(tree):
        d = defined.get(n)
        out.append(data_page(n, values.get(n), said) if d is None else class_page(d, said) if isinstance(d, ast.ClassDef) else function_page(d, said))
    return '\n'.join(out)


def symbols(root=ROOT): # of the checkout
    "{name, module.name or module: (module, anchor)} of everything public that only one module exports."
    found = {}
    for m, path in modules(root).items():
        for n in public(ast.parse(path.read_text(encoding='utf-8'))): found.setdefault(n, []).append(m); found[f'{m}.{n}'] = [m]
    return {n: (ms[0], f"gansynth.{ms[0]}.{n.split('.')[-1]}") for n, ms in found.items() if len(ms) == 1}


def index_page(root=ROOT): # of the checkout
    "Markdown of the list of modules."
    listed, out = modules(root), ['# API reference\n', 'Every public name, with what its source says about each argument. Shapes stand in round brackets, ranges in square ones. A module is explained, checked and shown in its chapter.\n']
    for part in [*PARTS, 'To look up']:
        rows = [f'| [{m}]({m}.md) | {cell(ast.get_docstring(ast.parse(p.read_text(encoding="utf-8"))))} |' for m, p in listed.items() if part_of(chapter_of(p)) == part]
        if rows: out += [f'## {part}\n', '| module | what it is about |', '| --- | --- |', *rows, '']
    return '\n'.join([*out, '```{toctree}\n:hidden:\n:maxdepth: 1\n', *listed, '```\n'])


def commands(p, words=('gansynth',)): # an argument parser
    "[(words, parser, what it does)] of every command that does something, in order."
    subs = [a for a in p._actions if isinstance(a, argparse._SubParsersAction)]
    return [c for a in subs for name, q in a.choices.items() for c in commands(q, (*words, name))] or [(words, p)]


def command_page(root=ROOT): # of the checkout
    "Markdown of the command line: every command with its example and what --help prints."
    os.environ |= {'COLUMNS': '84', 'NO_COLOR': '1'}
    sys.path.insert(0, str(root))
    from gansynth.cli import parser
    found = commands(parser())
    rows = [f"| [`{' '.join(w)}`](#{'-'.join(w)}) | {cell(q.description)} |" for w, q in found]
    out = ['# Commands\n', plain(parser().description)+'\n', 'A command that cannot do what it was asked says so in one sentence and returns 1; one that was stopped returns 130 or 143, and the same command goes on where it was.\n', '| command | what it does |', '| --- | --- |', *rows, '']
    for w, q in found:
        example, q.epilog = (q.epilog or '').removeprefix('example: '), None
        out += [f"({'-'.join(w)})=\n## {' '.join(w)}\n", plain(q.description)+'\n', *([f'```sh\n{example}\n```\n'] if example else []), f"```text\n{q.format_help()}```\n"]
    return '\n'.join(out)
