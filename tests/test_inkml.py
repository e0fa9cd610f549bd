"""Reading and writing ink: layouts, archives, counts, round trips, speed of the fast number reader; real CROHME where it is at hand."""
import io, tarfile, zipfile
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from lxml import etree

from mask_match.splits import find_crohme
from mask_match.inkml import KINDS, ROLES, Ink, InkError, Node, Symbol, parse_ink, read_inks, read_points, read_sources, read_traces, simplify, with_roles, write_ink

MATH = 'xmlns="http://www.w3.org/1998/Math/MathML"'

def square(x=0., y=0., label='x'):
    "A one-symbol expression."
    trace = np.array([[x, y], [x + 9, y], [x + 9, y + 9]], np.float32)
    return Ink('square', (trace,), with_roles([Symbol(label, (0,))], Node('mi', label, 0)), f'${label}$', Node('mi', label, 0), 'me', 'here')

def random_tree(rng, depth, leaves):
    "A layout tree with a symbol at every leaf, bar and radical."
    def new(tag, text, children=()):
        leaves.append(text)
        return Node(tag, text if not children else '', len(leaves) - 1, tuple(children))
    if depth == 0: return new('mi', 'abcxyz'[rng.integers(6)])
    inner = lambda: random_tree(rng, depth - 1, leaves)
    kind = rng.integers(6)
    if kind == 0: return Node('mrow', children=tuple(inner() for _ in range(rng.integers(1, 4))))
    if kind == 1: return Node('msup', children=(inner(), inner()))
    if kind == 2: return Node('munderover', children=(new('mo', r'\sum'), inner(), inner()))
    if kind == 3: return new('mfrac', '-', (inner(), inner()))
    if kind == 4: return new('msqrt', r'\sqrt', (inner(),))
    return Node('mstyle', children=(Node('mrow', children=(inner(), inner())),))

@pytest.mark.parametrize('seed', range(30))
def test_write_and_read_back_equal(seed):
    rng = np.random.default_rng(seed)
    labels = []
    layout = simplify(random_tree(rng, int(rng.integers(0, 5)), labels))
    scale = 10. ** rng.integers(-3, 6)
    traces = tuple((rng.normal(0, scale, (rng.integers(1, 20), 2))).astype(np.float32) for _ in range(2 * len(labels) + 1))
    symbols = with_roles([Symbol(label, (2 * i, 2 * i + 1)) for i, label in enumerate(labels)], layout)
    ink = Ink(f'random.{seed}', traces, symbols, 'a < b & "c" é ∫', layout, 'writer <1>', 'source')
    data = write_ink(ink)
    etree.fromstring(data)
    assert parse_ink(data, ink.name) == ink
    assert {s.role for s in symbols} <= set(ROLES) and {s.kind for s in symbols} <= set(KINDS)
    assert simplify(layout) == layout

@pytest.mark.parametrize('change', [dict(name='other'), dict(truth='y'), dict(writer=''), dict(layout=None), dict(symbols=()), dict(traces=())])
def test_inequality_is_noticed(change): assert replace(square(), **change) != square()

def test_control_characters_do_not_break_the_file():
    assert parse_ink(write_ink(replace(square(), truth='a\0\x0bb')), 'square').truth == 'ab'

@pytest.mark.parametrize('digits', range(9))
@pytest.mark.parametrize('width', [2, 3, 5])
def test_fast_numbers_equal_naive_numbers(digits, width):
    rng = np.random.default_rng(digits)
    numbers = [rng.normal(0, 10. ** rng.integers(0, 5), (rng.integers(1, 40), width)) for _ in range(6)]
    texts = ['\n' + ', '.join(' '.join(f'{v:.{digits}f}' for v in p) for p in t) + '\n' for t in numbers]
    columns = tuple(rng.permutation(width)[:2])
    for fast, text in zip(read_traces(texts, columns, 'x', 'abcdef'), texts):
        naive = read_points(text, columns, 'x', '0').astype(np.float32)
        assert np.array_equal(fast, naive[np.r_[True, (naive[1:] != naive[:-1]).any(1)]])

@pytest.mark.parametrize('text, points', [
    ('1e1 2, 3 4', [(10, 2), (3, 4)]), ('+1 2, 3 4', [(1, 2), (3, 4)]), ('1 2, 3 4,', [(1, 2), (3, 4)]), ('1 2,, 3 4', [(1, 2), (3, 4)]), (' 1\t2 ,\n3 4', [(1, 2), (3, 4)]),
    ('1 2 9, 3 4', [(1, 2), (3, 4)]), ('1\n2, 3\n4', [(1, 2), (3, 4)]), ('.5 -.5, 5. -5.', [(.5, -.5), (5, -5)]), ('1 2, 1 2, 1 2, 3 4, 1 2', [(1, 2), (3, 4), (1, 2)]),
    ('123456789012345.5 0, 123456789012346.5 1', [(0, 0), (1, 1)]), ('2000000000 0, 2000000001 1', [(0, 0), (1, 1)])])
def test_numbers_as_people_write_them(text, points):
    assert np.array_equal(read_traces([text], (0, 1), 'x', ['0'])[0], np.array(points, np.float32))

def test_repeated_points_never_join_traces():
    a, b, c = read_traces(['1 1, 2 2', '2 2', '2 2, 3 3'], (0, 1), 'x', 'abc')
    assert [t.tolist() for t in (a, b, c)] == [[[1, 1], [2, 2]], [[2, 2]], [[2, 2], [3, 3]]]

def test_channels_in_another_order_and_many():
    head = "<traceFormat><channel name='T'/><channel name='Y'/><channel name='F'/><channel name='X'/></traceFormat>"
    ink = parse_ink(f'<ink>{head}<trace>0 2 .5 1, 7 4 .5 3</trace></ink>'.encode(), 'a')
    assert ink.traces[0].tolist() == [[1, 2], [3, 4]]

@pytest.mark.parametrize('kind', ['truth', 'normalizedTruth', 'normalizedLabel', 'label'])
def test_truth_has_many_names(kind):
    assert parse_ink(f'<ink><annotation type="{kind}"> $x\n ^2$ </annotation><trace>0 0, 1 1</trace></ink>'.encode(), 'a').truth == '$x ^2$'

def test_truth_of_a_symbol_is_not_the_truth_of_the_expression():
    data = b'<ink><traceGroup><annotation type="truth">x</annotation><trace id="0">0 0, 1 1</trace></traceGroup></ink>'
    assert parse_ink(data, 'a').truth == '' and parse_ink(data, 'a').symbols[0].label == 'x'

def test_misspelt_type_and_pen_up_traces():
    ink = parse_ink(b'<ink><annotation typx="truth">x</annotation><trace id="0">0 0, 1 1</trace><trace id="1" type="penUp">1 1, 5 5</trace></ink>', 'a')
    assert ink.truth == 'x' and len(ink.traces) == 1

def test_empty_traces_do_not_shift_symbols():
    data = (b'<ink><trace id="0"> </trace><trace id="1">0 0, 1 1</trace><traceGroup><annotation type="truth">a</annotation><traceView traceDataRef="1"/></traceGroup>'
            b'<traceGroup><annotation type="truth">b</annotation><traceView traceDataRef="0"/></traceGroup></ink>')
    ink = parse_ink(data, 'a')
    assert len(ink.traces) == 1 and [(s.label, s.traces) for s in ink.symbols] == [('a', (0,))]

@pytest.mark.parametrize('math, roles', [
    ('<msup><mi id="0">x</mi><mrow><mn id="1">2</mn></mrow></msup>', ('baseline', 'superscript')), ('<msub><mi id="0">x</mi><mn id="1">2</mn></msub>', ('baseline', 'subscript')),
    ('<mroot id="0"><mi id="1">x</mi><mn>3</mn></mroot>', ('baseline', 'radicand')), ('<mroot id="0"><mi>x</mi><mn id="1">3</mn></mroot>', ('baseline', 'index')),
    ('<munder><mo id="0">s</mo><mi id="1">i</mi></munder>', ('baseline', 'below')), ('<mover><mi id="0">x</mi><mo id="1">^</mo></mover>', ('baseline', 'above')),
    ('<mfrac><mi id="0">x</mi><mi id="1">y</mi></mfrac>', ('numerator', 'denominator')), ('<mfrac id="0"><mi>x</mi><msqrt><mi>a</mi><mi id="1">b</mi></msqrt></mfrac>', ('baseline', 'radicand')),
    ('<msubsup><mi id="0">x</mi><mi>i</mi><mn id="1">2</mn></msubsup>', ('baseline', 'superscript')), ('<mrow><mi id="0">x</mi></mrow><semantics><mi id="1">y</mi></semantics>', ('baseline', 'baseline')),
    ('<msup><mi id="0">x</mi></msup><mi id="1">y</mi>', ('baseline', 'baseline')), ('<apply><ci id="0">x</ci><ci id="1">y</ci></apply>', ('unknown', 'unknown'))])
@pytest.mark.parametrize('namespace', ['', ' ' + MATH])
@pytest.mark.parametrize('xml', ['id', 'xml:id'])
def test_roles(math, roles, namespace, xml):
    groups = ''.join(f'<traceGroup xml:id="g{i}"><annotation type="truth">x</annotation><traceView traceDataRef="t{i}"/><annotationXML href="{i}"/></traceGroup>' for i in '01')
    data = f'<ink><annotationXML><math{namespace}>{math.replace("id=", xml + "=")}</math></annotationXML><trace id="t0">0 0, 1 1</trace><trace id="t1">2 0, 3 1</trace><traceGroup>{groups}</traceGroup></ink>'
    assert tuple(s.role for s in parse_ink(data.encode(), 'a').symbols) == roles

def test_presentation_is_found_behind_content():
    data = b'<ink><annotationXML encoding="Content-MathML"><math><apply><ci>x</ci></apply></math></annotationXML><annotationXML><math><mi>x</mi></math></annotationXML><trace>0 0, 1 1</trace></ink>'
    assert parse_ink(data, 'a').layout == Node('mi', 'x')

@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'iso-8859-1'])
def test_encodings(encoding):
    text = f'<?xml version="1.0" encoding="{encoding.replace("-sig", "")}"?><ink><annotation type="writer">Zoë</annotation><trace>0 0, 1 1</trace></ink>'
    assert parse_ink(text.encode(encoding), 'a').writer == 'Zoë'

@pytest.fixture
def files():
    return {f'set/{folder}/{i}.inkml': write_ink(square(i, i, 'abc'[i])) for folder in 'pq' for i in range(3)} | {'set/list.txt': b'1 2 3', 'set/x.lg': b'O, a', 'set/ink_without_name': write_ink(square())}

def wrap(path, files):
    if path.suffix == '.zip':
        with zipfile.ZipFile(path, 'w') as z:
            for name, data in files.items(): z.writestr(name, data)
    elif '.tar' in path.name:
        with tarfile.open(path, 'w:' + path.suffix[1:].replace('tar', '')) as t:
            for name, data in reversed(files.items()):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                t.addfile(info, io.BytesIO(data))
    else:
        for name, data in files.items():
            (path.parent/name).parent.mkdir(parents=True, exist_ok=True)
            (path.parent/name).write_bytes(data)
    return path

@pytest.mark.parametrize('way', ['set', 'set.zip', 'set.tar', 'set.tar.gz', 'set.tar.bz2', 'set.tar.xz'])
@pytest.mark.parametrize('processes', [1, 2])
def test_every_wrapping_gives_the_same(tmp_path, files, way, processes):
    inks, report = read_inks(wrap(tmp_path/way, files), processes=processes)
    assert (report.n_in, report.n_out, report.n_rejected) == (7, 7, 0)
    assert [ink.name for ink in inks] == ['ink_without_name', '0', '1', '2', '0~2', '1~2', '2~2'] and report.renamed['1~2'] == 'set/q/1.inkml'
    assert inks[1] == replace(square(0, 0, 'a'), name='0')

def test_sources_add_up_and_keep_chooses(tmp_path, files):
    a, b = wrap(tmp_path/'set.zip', files), wrap(tmp_path/'set', files)
    assert read_inks([a, b, b/'p'/'1.inkml'])[1].n_out == 15
    inks, report = read_inks(a, keep=lambda path: '/q/' in path)
    assert report.n_in == 3 and {ink.name for ink in inks} == {'0', '1', '2'}

def test_archives_inside_a_folder_are_opened(tmp_path, files):
    wrap(tmp_path/'set.tar.xz', files)
    wrap(tmp_path/'pictures.zip', {'a.png': b'png'})
    assert read_inks(tmp_path)[1].n_out == 7

def test_captions_by_name_and_by_ui(tmp_path):
    ink = write_ink(replace(square(), name='ui_name'))
    (tmp_path/'a.inkml').write_bytes(ink)
    (tmp_path/'b.inkml').write_bytes(ink)
    inks, _ = read_inks(tmp_path, captions={'ui_name': 'from ui', 'b': 'from name'})
    assert [i.truth for i in inks] == ['from ui', 'from name'] and [i.truth for i in read_inks(tmp_path)[0]] == ['$x$', '$x$']

def test_problems_are_raised_where_nobody_collects_them(tmp_path):
    with pytest.raises(InkError, match='no ink in it'): list(read_sources(tmp_path))

# ---- real ink ----
SPLITS = {'TrainINKML': (8836, ['MfrDB3088.inkml']), 'TestINKMLGT': (671, []), 'TestEM2014GT': (986, [])}

@pytest.fixture(scope='module')
def crohme():
    place = find_crohme()
    if place is None: pytest.skip('CROHME is not here: set MASK_MATCH_CROHME to its folder or archive')
    read = {split: read_inks(place, keep=lambda path, split=split: split in path) for split in SPLITS}
    if not all(report.n_in for _, report in read.values()): pytest.skip('the CROHME here has another layout than the one counted in this test')
    return read

@pytest.mark.parametrize('split', SPLITS)
def test_crohme_counts(crohme, split):
    inks, report = crohme[split]
    n_in, rejected = SPLITS[split]
    assert (report.n_in, [r.name.rpartition('/')[2] for r in report.rejected], len(inks)) == (n_in, rejected, n_in - len(rejected)) and not report.renamed
    assert all(ink.truth and ink.symbols for ink in inks)

@pytest.mark.parametrize('split', SPLITS)
def test_crohme_layouts_and_links(crohme, split):
    inks, _ = crohme[split]
    complete = np.mean([sorted(t for s in ink.symbols for t in s.traces) == list(range(len(ink.traces))) for ink in inks])
    roles = Counter(s.role for ink in inks for s in ink.symbols)
    print(split, f'layout {np.mean([ink.layout is not None for ink in inks]):.4f}', f'complete {complete:.4f}', dict(roles))
    assert np.mean([ink.layout is not None for ink in inks]) > .998 and complete > .98
    assert roles['unknown'] / roles.total() < .003
    assert all(roles[role] for role in ROLES)

def test_crohme_reads_back_equal(crohme):
    assert all(parse_ink(write_ink(ink), ink.name) == ink for inks, _ in crohme.values() for ink in inks[::7])
