"Every page keeps its budget and its manners, and runs from top to bottom."
import ast, json, os, re, time, warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import nbformat, pytest
from pages import ROOT, alone, run_page

PAGES = {p.stem: p for p in sorted((ROOT/'nbs').glob('*.ipynb'))}
LESSONS = {n: p for n, p in PAGES.items() if n[0].isdigit()}
EXPERIMENTS = {p.stem: p for p in sorted((ROOT/'nbs'/'experiments').glob('*.ipynb'))}
PAGE_SECONDS = 60                     # the budget on an idle machine
AT_ONCE = 1 if 'PYTEST_XDIST_WORKER' in os.environ else 2  # pages at a time; beside another worker: one
ALL_SECONDS = 600/AT_ONCE             # what all pages may take together on two idle cores; a busy or older machine gets six times that

def cells(path) -> list[dict]:
    return [dict(c, source=''.join(c['source'])) for c in json.loads(path.read_text())['cells']]

def code(path) -> list[str]: return [c['source'] for c in cells(path) if c['cell_type'] == 'code']

def exported(path) -> list[list[str]]:
    "Lines of the cells that go into the module, without directives."
    return [[l for l in s.splitlines() if not l.startswith('#|')] for s in code(path) if re.search(r'^#\|\s*(export|exporti|exports)\b', s, re.M)]

def syntax(source: str) -> ast.Module:
    "The syntax tree of a cell; magics and shell lines count as nothing."
    return ast.parse(re.sub(r'^(\s*)[%!].*$', r'\1pass', source, flags=re.M))

def definitions(path) -> Counter:
    "How often each name is defined at a page's top level: functions and classes anywhere, plain names in exported cells."
    found = Counter()
    for source in code(path):
        is_exported = bool(re.search(r'^#\|\s*export', source, re.M))
        for node in syntax(source).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)): found[node.name] += 1
            elif is_exported and isinstance(node, ast.Assign): found.update({t.id for t in node.targets if isinstance(t, ast.Name)})
    return found

@pytest.mark.parametrize('name', LESSONS)
def test_budget(name):
    blocks = exported(LESSONS[name])
    long = [(len(b), b[0]) for b in blocks if len(b) > 35]
    assert not long, f'exported cells of more than 35 lines: {long}'
    assert sum(map(len, blocks)) <= 250, f'{sum(map(len, blocks))} exported lines'
    wide = [l for s in code(LESSONS[name]) for l in s.splitlines() if len(l) > 160]
    assert not wide, f'lines of more than 160 columns: {wide}'

@pytest.mark.parametrize('name', [*PAGES, *EXPERIMENTS])
def test_size(name):
    path = {**PAGES, **EXPERIMENTS}[name]
    assert path.stat().st_size <= 300 * 1024, f'{path.stat().st_size // 1024} KB: draw smaller pictures'

@pytest.mark.parametrize('name', LESSONS)
def test_no_name_is_bound_twice(name):
    twice = [n for n, k in definitions(LESSONS[name]).items() if k > 1]
    assert not twice, f'defined twice: {twice}'

@pytest.mark.parametrize('name', [*PAGES, *EXPERIMENTS])
def test_no_bare_except_and_no_relative_path(name):
    for source in code({**PAGES, **EXPERIMENTS}[name]):
        for node in ast.walk(syntax(source)):
            assert not (isinstance(node, ast.ExceptHandler) and node.type is None), f'a bare except swallows everything: {source[:80]}'
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.match(r'\.\.?/', node.value):
                assert node.value.rstrip('/').endswith('shared/data/crohme'), f'a relative path depends on where the page runs: {node.value!r}; use project_root()'

@pytest.mark.parametrize('name', [*PAGES, *EXPERIMENTS])
def test_no_place_of_this_machine(name):
    text = {**PAGES, **EXPERIMENTS}[name].read_text()
    found = sorted({m[0] for m in re.finditer(r'/(?:work|home|root|Users)/[\w.-]+', text)})
    assert not found, f'paths of one machine in the page or its outputs: {found}'

@pytest.mark.parametrize('name', LESSONS)
def test_a_page_opens_with_its_claim_and_ends_with_an_exercise(name):
    made = cells(LESSONS[name])
    assert made[0]['cell_type'] == 'markdown' and re.match(r'# \S', made[0]['source']) and re.search(r'^> \S', made[0]['source'], re.M), 'first cell: `# title` and `> claim`'
    assert any(c['cell_type'] == 'markdown' and re.search(r'exercise', c['source'], re.I) for c in made[-3:]), 'the last cells hold an exercise'

@pytest.mark.parametrize('name', LESSONS)
def test_imports_stand_alone(name):
    "nbdev's documentation step runs every cell that holds an import."
    for source in code(LESSONS[name]):
        if not re.search(r'^#\|\s*export', source, re.M): continue
        kinds = {isinstance(n, (ast.Import, ast.ImportFrom)) for n in syntax(source).body}
        assert kinds != {True, False} or name == '03_compat', f'imports and code in one exported cell: {source[:80]}'

@pytest.mark.parametrize('name', LESSONS)
def test_a_page_shows_what_it_found(name):
    "Pages are kept as they were executed: a cell that prints has printed."
    prints = lambda source: any(isinstance(n, ast.Expr) and isinstance(n.value, ast.Call) and getattr(n.value.func, 'id', '') == 'print' for n in syntax(source).body)
    silent = [c['source'][:80] for c in cells(LESSONS[name]) if c['cell_type'] == 'code' and '#| eval: false' not in c['source'] and prints(c['source']) and not c['outputs']]
    assert not silent, f'execute the page and keep its outputs; nothing came of: {silent}'

@pytest.mark.parametrize('name', EXPERIMENTS)
def test_experiments_are_calls(name):
    from mask_match.reproduce import signature
    for source in code(EXPERIMENTS[name]):
        assert not re.search(r'^#\|\s*(export|default_exp)', source, re.M), 'an experiment exports nothing'
        assert not any(isinstance(n, (ast.FunctionDef, ast.ClassDef, ast.Lambda)) for n in ast.walk(syntax(source))), 'an experiment defines nothing'
    known = set(signature(EXPERIMENTS[name]))  # one tagged cell, literals only
    assert {'preset', 'seed', 'data_dir', 'runs_dir', 'figures_dir', 'overrides'} <= known

@pytest.mark.parametrize('name', EXPERIMENTS)
def test_every_picture_and_table_has_a_sidecar_of_its_own(name):
    names = re.findall(r"figures,\s*(f'[^']+')", '\n'.join(code(EXPERIMENTS[name])))
    assert names and len(names) == len(set(names)), f'written twice, the second over the sidecar of the first: {Counter(names).most_common(1)}'

# --- every page runs ---

@pytest.fixture(scope='module')
def executed(request):
    "All selected pages, `AT_ONCE` at a time; a test waits for its own."
    chosen = sorted({i.callspec.params['page'] for i in request.session.items if 'page' in getattr(getattr(i, 'callspec', None), 'params', {})})
    with ThreadPoolExecutor(AT_ONCE) as pool: yield {p: pool.submit(alone, run_page, PAGES[p]) for p in chosen}, time.monotonic()

@pytest.mark.slow
@pytest.mark.parametrize('page', PAGES)
def test_page_runs(page, executed):
    seconds, error = executed[0][page].result()
    assert not error, error
    if seconds > PAGE_SECONDS: warnings.warn(f'{page} took {seconds:.0f} s; the budget is {PAGE_SECONDS} s')

def test_a_failing_page_is_noticed(tmp_path):
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell('#| eval: false\n1/0'), nbformat.v4.new_code_cell('assert 1 == 2, "told you"')])
    nbformat.write(nb, tmp_path/'bad.ipynb')
    _, error = alone(run_page, tmp_path/'bad.ipynb')
    assert 'told you' in error and 'ZeroDivision' not in error

def test_a_page_that_hangs_is_noticed(tmp_path):
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell('import time; time.sleep(600)')]), tmp_path/'slow.ipynb')
    seconds, error = alone(run_page, tmp_path/'slow.ipynb', None, 1)
    assert 'TimeoutError' in error and seconds < 60

def test_a_page_that_dies_is_noticed(tmp_path):
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell('import os; os._exit(3)')]), tmp_path/'dead.ipynb')
    with pytest.raises(RuntimeError, match='dead.ipynb.*exit code 3'): alone(run_page, tmp_path/'dead.ipynb')

@pytest.mark.slow
def test_all_pages_keep_the_budget(executed):
    pages, start = executed
    for p in pages.values(): p.result()
    seconds = time.monotonic() - start
    if seconds > ALL_SECONDS: warnings.warn(f'{len(pages)} pages took {seconds:.0f} s; the budget is {ALL_SECONDS:.0f} s, {AT_ONCE} at a time on two idle cores')
    assert seconds < 6*ALL_SECONDS, f'{len(pages)} pages took {seconds:.0f} s'
