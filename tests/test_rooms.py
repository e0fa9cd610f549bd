"Who imports whom: the plan of the house, held against the code."
import ast, json, re, sys
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = [
    {'config', 'compat', 'show', 'runs'},
    {'layout', 'sources', 'strokes', 'grammar', 'inkml', 'latex', 'masking', 'contrast', 'metrics', 'pen', 'trees', 'alignment'},
    {'render', 'photo', 'synth', 'subexpressions', 'exchange', 'views', 'encoder', 'attention', 'automaton', 'coverage', 'decoder', 'search'},
    {'batches', 'data', 'splits', 'stream'},
    {'state'},
    {'fit'},
    {'pretrain', 'restore', 'attend', 'finetune'},
    {'stages'},
    {'atlas', 'bench', 'calibration', 'campaign', 'cost', 'degrade', 'deploy', 'discover', 'evaluate', 'figures', 'grid', 'judges', 'localise', 'occlusion', 'prepare', 'prior', 'pseudo', 'ranking', 'recognize', 'report', 'survey', 'terminal', 'worth'},
    {'reproduce'},
    {'cli'},
]
NARROW = {  # rooms that may see less than their layer allows
    'config': set(), 'compat': set(), 'show': {'config'}, 'runs': {'config'}, 'state': {'runs'}, 'fit': {'batches', 'config', 'compat', 'runs', 'state'},
    'figures': {'config', 'runs', 'metrics', 'show'},
}
MODELS = {'encoder', 'attention', 'coverage', 'decoder', 'search'}  # the automaton is made of a vocabulary once; a search gets its tables
LOSSES = {'contrast'}
RUNTIME = {'torch', 'numpy', 'PIL', 'lightning_fabric', 'safetensors', 'filelock', 'lxml', 'editdistance', 'seaborn', 'matplotlib', 'HersheyFonts', 'mask_match'}
EXTRA = {'show': {'IPython'}, 'compat': {'torchvision'}, 'deploy': {'onnxruntime'}, 'report': {'nbconvert'}, 'reproduce': {'papermill'}, 'cli': {'papermill'}}

def modules() -> dict[str, Path]:
    return {p.stem: p for p in sorted((ROOT/'mask_match').glob('*.py')) if not p.stem.startswith('_')}

def pages() -> dict[str, Path]:
    "Module name -> notebook, from `default_exp`."
    found = {}
    for path in sorted((ROOT/'nbs').glob('[0-9]*.ipynb')):
        sources = [''.join(c['source']) for c in json.loads(path.read_text())['cells'] if c['cell_type'] == 'code']
        for name in [m[1] for s in sources for m in re.finditer(r'^#\|\s*default_exp\s+(\w+)', s, re.M)]: found[name] = path
    return found

def imported(path: Path) -> tuple[set, set]:
    "Rooms of our own and packages of others that a module imports anywhere, functions included."
    ours, others = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for a in node.names: (ours.add(a.name.split('.')[1]) if a.name.startswith('mask_match.') else others.add(a.name.split('.')[0]))
        elif isinstance(node, ast.ImportFrom):
            parts = (node.module or '').split('.') if node.module else []
            if node.level == 0 and parts[0] != 'mask_match': others.add(parts[0]); continue
            parts = parts if node.level else parts[1:]
            ours |= {parts[0]} if parts else {a.name for a in node.names}
    return ours, others

def layer(room: str) -> int:
    return next((i for i, rooms in enumerate(LAYERS) if room in rooms), -1)

def may_import(room: str, other: str, number) -> bool:
    "Whether the plan lets `room` import `other`; inside a layer only rooms that come earlier in the reading order."
    if room in NARROW: return other in NARROW[room]
    if other == 'show': return False  # pages and figures only
    if other == 'runs' and layer(room) < layer('data'): return False  # only rooms that read and write files know a run
    if other == 'figures' and room not in ('report', 'reproduce', 'cli'): return False
    mine, theirs = layer(room), layer(other)
    return theirs < mine or theirs == mine and number(other) < number(room)

def number(room: str) -> str: return pages()[room].name

def test_every_room_has_its_place():
    unknown = set(modules()) - set().union(*LAYERS)
    assert not unknown, f'not in the plan of the house (LAYERS in this file): {unknown}'

def test_modules_are_the_pages():
    assert set(modules()) == set(pages()), 'a module without a page, or a page that was not exported'

def test_a_page_bears_its_modules_name():
    assert [p.stem for r, p in pages().items() if p.stem.split('_', 1)[1] != r] == []

@pytest.mark.parametrize('room', modules())
def test_imports_follow_the_plan(room):
    ours, _ = imported(modules()[room])
    wrong = sorted(o for o in ours if o in modules() and not may_import(room, o, number))
    missing = sorted(o for o in ours if o not in modules() and o not in ('__version__', '_modidx'))
    assert not wrong, f'{room} may not import {wrong}'
    assert not missing, f'{room} imports rooms that do not exist: {missing}'

@pytest.mark.parametrize('room', sorted(MODELS & set(modules())))
def test_models_know_no_text_and_no_path(room):
    ours, others = imported(modules()[room])
    assert not ours & {'inkml', 'data', 'runs', 'show'} and not others & {'pathlib', 'os', 'io', 'json'}
    froms = [n for n in ast.walk(ast.parse(modules()[room].read_text())) if isinstance(n, ast.ImportFrom)]
    names = {a.name for n in froms for a in n.names if (n.module or '').split('.')[-1] == 'latex'} | ({'latex'} if 'latex' in ours and not any(n.module for n in froms) else set())
    assert names <= {'PAD', 'SOS', 'EOS', 'UNK'}, 'of the vocabulary a model knows the four special ids, never a text'
    assert not re.search(r'\.cuda\(|to\(.cuda|torch\.device\(', modules()[room].read_text()), 'a model knows no device'

@pytest.mark.parametrize('room', sorted(LOSSES & set(modules())))
def test_losses_take_tensors_only(room):
    ours, others = imported(modules()[room])
    assert not ours and not others - {'torch', 'math', 'functools'}

@pytest.mark.parametrize('room', modules())
def test_packages_of_others(room):
    _, others = imported(modules()[room])
    wrong = others - RUNTIME - EXTRA.get(room, set()) - set(sys.stdlib_module_names)
    assert not wrong, f'{room} imports {wrong}; torchvision comes from mask_match.compat, and the rest is not a runtime requirement'

@pytest.mark.parametrize('room', sorted({'reproduce', 'cli'} & set(modules())))
def test_papermill_is_imported_late(room):
    top = [n for n in ast.parse(modules()[room].read_text()).body if isinstance(n, (ast.Import, ast.ImportFrom))]
    assert not any('papermill' in ast.unparse(n) for n in top)

def test_the_rules_can_fail():
    order = {'inkml': '10', 'latex': '12', 'data': '14', 'views': '20', 'decoder': '40', 'search': '41'}.get
    assert may_import('data', 'views', order) and not may_import('views', 'data', order)
    assert may_import('search', 'decoder', order) and not may_import('decoder', 'search', order)
    assert may_import('data', 'runs', order) and not may_import('decoder', 'runs', order)
    assert not may_import('figures', 'encoder', order) and not may_import('fit', 'encoder', order) and not may_import('inkml', 'render', order)
