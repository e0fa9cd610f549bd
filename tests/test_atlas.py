"Alignments against brute force, fates that lose nothing, honest intervals, and a page of cases that nothing gets out of."
import itertools, json, random, re, shutil, subprocess
import xml.etree.ElementTree as ElementTree
from collections import Counter
from html.parser import HTMLParser
from operator import attrgetter, itemgetter
import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from mask_match.alignment import EDIT, KINDS_OF_ERROR, Fate, align, align_tokens, align_trees, fates, kind_of_error, kind_of_token, read_tree, roles
from mask_match.atlas import (Case, atlas_html, by_expression, by_symbol, case_html, confusions, dissect, error_split, ink_svg, length_bin, make_cases, marked,
                              moves, source_of, write_atlas)
from mask_match.data import load_packed, pack
from mask_match.grammar import sample_caption
from mask_match.latex import LatexError, to_latex
from mask_match.metrics import MetricError, errors, score, wilson
from mask_match.synth import sample_inks
from mask_match.trees import merged, same_shape, same_tree, symlg, to_tree

TOKENS = ['x', '2', '+', '{', '}', '^', '_', '\\frac', '\\sqrt', '(', '|', '<unk>']

def ways(m, n):
    "Every monotone matching of two rows."
    for k in range(min(m, n) + 1):
        for i, j in itertools.product(itertools.combinations(range(m), k), itertools.combinations(range(n), k)): yield list(zip(i, j))

@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(0, 4), st.integers(0, 4), st.randoms(use_true_random=False))
def test_align_is_the_cheapest_of_all_alignments(m, n, draw):
    costs = [[draw.randint(0, 6) for _ in range(n)] for _ in range(m)]
    gone, extra = [draw.randint(0, 5) for _ in range(m)], [draw.randint(0, 5) for _ in range(n)]
    total, pairs = align(costs, gone, extra)
    spent = sum(gone[i] if j is None else extra[j] if i is None else costs[i][j] for i, j in pairs)
    assert total == spent == min(sum(costs[i][j] - gone[i] - extra[j] for i, j in way) + sum(gone) + sum(extra) for way in ways(m, n))
    assert [i for i, _ in pairs if i is not None] == list(range(m)) and [j for _, j in pairs if j is not None] == list(range(n))

@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(TOKENS), max_size=25), st.lists(st.sampled_from(TOKENS), max_size=25))
def test_token_alignment_has_the_edit_distance(a, b):
    total, pairs = align_tokens(a, b)
    assert total//EDIT == errors(a, b) and total % EDIT <= errors(a, b) == align_tokens(b, a)[0]//EDIT
    assert sum(i is None or j is None or a[i] != b[j] for i, j in pairs) == errors(a, b)

def test_like_stands_beside_like():
    assert align_tokens(['a', '7'], ['8'])[1] == [(0, None), (1, 0)] and align_tokens(['7', 'a'], ['8'])[1] == [(0, 0), (1, None)]
    assert [kind_of_token(t) for t in ('{', '\\frac', '\\sqrt', '-', '7', 'a')] == ['structure', 'fraction_bar', 'radical', 'operator', 'digit', 'letter']

def slow_trees(a, b):
    "Selkow's distance by its definition: all matchings of the rows, whole families where a symbol stands alone."
    hang = [[dict(pairs) for pairs in merged(t).children()] for t in (a, b)]
    def row(side, head): return [] if head is None else [head, *row(side, hang[side][head].get('Right'))]
    def size(side, i): return 1 + sum(size(side, k) for relation, head in hang[side][i].items() if relation != 'Right' for k in row(side, head))
    def rows(one, other):
        first, second = row(0, one), row(1, other)
        alone = [EDIT*size(0, x) for x in first], [EDIT*size(1, y) for y in second]
        return min(sum(both(first[i], second[j]) - alone[0][i] - alone[1][j] for i, j in way) + sum(alone[0]) + sum(alone[1]) for way in ways(len(first), len(second)))
    def both(x, y):
        la, lb = a.labels[x], b.labels[y]
        inner = sum(rows(hang[0][x].get(r), hang[1][y].get(r)) for r in ('Sub', 'Sup', 'Above', 'Below', 'Inside'))
        return inner + (la != lb)*(EDIT + (kind_of_token(la) != kind_of_token(lb)))
    return rows(0 if len(a) else None, 0 if len(b) else None)

def test_trees_against_the_definition():
    rng, seen = np.random.default_rng(0), 0
    captions = [c for c in (sample_caption('small', rng) for _ in range(300)) if len(c) <= 9] + [[], ['x']]
    for a, b in zip(captions, captions[7:] + captions[:7]):
        total, pairs = align_trees(to_tree(a), to_tree(b))
        assert total == slow_trees(to_tree(a), to_tree(b)) == align_trees(to_tree(b), to_tree(a))[0]
        assert sorted(i for i, _ in pairs if i is not None) == list(range(len(to_tree(a)))) and (total == 0) == (a == b)
        seen += total > 2*EDIT
    assert seen > 50

def test_new_labels_in_one_shape_are_confusions():
    rng, wrong = np.random.default_rng(1), 0
    for _ in range(40):
        a = sample_caption('full', rng)
        b = ['Q' if t == 'x' else t for t in a]
        found = [f for f in fates(a, b) if f.kind != 'right']
        assert same_shape(a, b) and all((f.truth, f.read, f.kind) == ('x', 'Q', 'confused') for f in found) and len(found) == a.count('x')
        assert align_trees(to_tree(a), to_tree(b))[0] == EDIT*len(found)
        wrong += len(found)
    assert wrong > 10

@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.lists(st.sampled_from(TOKENS), max_size=20))
def test_no_symbol_is_lost_or_invented(seed, read):
    truth = sample_caption('small', np.random.default_rng(seed))
    found, kind, tree = fates(truth, read), kind_of_error(truth, read), read_tree(read)
    labels = [t for t in read if t not in '{}^_'] if tree is None else [label for label in tree.labels if label]
    assert Counter(f.truth for f in found if f.truth) == Counter(label for label in to_tree(truth).labels if label)
    assert Counter(f.read for f in found if f.read) == Counter(labels)
    assert kind in KINDS_OF_ERROR and (kind == 'no LaTeX') == (tree is None) and (kind in ('right', 'spelling')) == same_tree(read, truth)
    assert (kind == 'symbols') == (same_shape(read, truth) and not same_tree(read, truth))
    if tree is not None: assert all(f.kind == 'right' for f in found) == (symlg(tree) == symlg(to_tree(truth)))

def test_very_deep_readings_are_aligned_too():
    deep = ['x'] + ['^', '{', 'x']*300 + ['}']*300
    assert Counter(f.kind for f in fates(['x', '+', 'x'], deep))['surplus'] == 298 and kind_of_error(['x'], deep) == 'both'

def test_fates_and_roles_by_hand():
    truth = r'\sum _ { i } ^ { n } \frac { a } { b } \sqrt [ 3 ] { c _ { d } }'.split()
    assert roles(to_tree(truth)) == [('baseline', 0), ('below', 1), ('above', 1), ('baseline', 0), ('numerator', 1), ('denominator', 1), ('baseline', 0),
                                     ('index', 1), ('radicand', 1), ('subscript', 2)]
    assert fates('x ^ { 2 }'.split(), 'x 2'.split()) == [Fate('x', 'x', 'baseline', 0), Fate('2', '2', 'superscript', 1, 'baseline')]
    assert [f.kind for f in fates(['x', 'y'], ['x'])] == ['right', 'lost'] and [f.kind for f in fates(['x'], ['x', 'y'])] == ['right', 'surplus']
    with pytest.raises(MetricError, match='write it with latex.canonical'): fates(['}'], ['x'])

def record(name, truth, read, **more): return dict(name=name, truth=truth.split(), prediction=read if read is None else read.split(), **more)

@pytest.fixture
def lines():
    return [record('1_em_1', 'x + y', 'x + y'), record('2_em_1', 'x + y', 'X + y'), record('RIT_1', 'x ^ { 2 }', 'x 2'), record('RIT_2', 'x ^ { 2 }', 'X 3'),
            record('RIT_3', 'x', 'x ^ {'), record('RIT_4', '?', None, reason='empty file')]

def test_tables_by_hand(lines):
    rows = dissect(lines)
    assert [r['kind'] for r in rows] == ['right', 'symbols', 'structure', 'both', 'no LaTeX', 'rejected'] and [r['errors'] for r in rows] == [0, 1, 3, 5, 2, 1]
    assert [(g['group'], g['n']) for g in error_split(rows)] == [(k, 1) for k in ('right', 'symbols', 'structure', 'both', 'no LaTeX', 'rejected')]
    assert all(tuple(g['ci95']) == wilson(1, 6) and g['rate'] == 1/6 for g in error_split(rows))
    groups = by_expression(rows, itemgetter('source'))
    assert [(g['group'], g['n'], g['rate'], tuple(g['ci95'])) for g in groups] == [('em', 2, .5, wilson(1, 2)), ('rit', 4, 0., wilson(0, 4))]
    assert sum(g['n']*g['rate'] for g in groups) == 6*score(lines)['exprate'] and groups[0]['token_error_rate'] == 1/6
    assert [(g['group'], g['n']) for g in by_expression(rows, length_bin, least=5)] == [('1 to 5', 6)]
    assert [(g['group'], g['n']) for g in by_expression(rows, itemgetter('name'), least=2)] == [('other', 6)]
    named = by_expression([dict(r, source='other' if r['source'] == 'rit' else 'em') for r in rows], itemgetter('source'), least=3)
    assert [(g['group'], g['n']) for g in named] == [('other', 6)]                          # a group of that very name is not lost
    table = {(c['truth'], c['read']): (c['n'], c['expressions'], c['alone']) for c in confusions(rows)}
    assert table == {('x', 'X'): (2, 2, 1), ('2', ''): (1, 1, 0), ('', '3'): (1, 1, 0), ('?', ''): (1, 1, 1)}
    assert moves(rows) == [dict(role='superscript', moved='baseline', n=1, expressions=1)]
    found = {g['group']: (g['n'], g['expressions'], g['rate']) for g in by_symbol(rows, attrgetter('truth'))}
    assert found == {'x': (5, 5, 2/5), '+': (2, 2, 0.), 'y': (2, 2, 0.), '2': (2, 2, 1.), '?': (1, 1, 1.)}
    assert {g['group'] for g in by_symbol(rows, attrgetter('family'), least=2)} == {'letter', 'operator', 'digit'}

def test_symbol_intervals_count_expressions():
    once, often = (dissect([record(str(i), ' '.join(['x']*k), ' '.join(['xy'[i % 2]]*k)) for i in range(80)]) for k in (1, 20))
    for rows in (once, often):
        g, = by_symbol(rows, attrgetter('truth'), draws=1000)
        assert np.allclose(g['ci95'], wilson(40, 80), atol=.03)
    assert wilson(800, 1600)[1] < g['ci95'][1] - .05

def test_broken_records_are_refused(lines):
    for broken in (lines[:1]*2, [dict(name='a', truth=['x'])], [dict(name='a', truth=[], prediction=[])]):
        with pytest.raises(MetricError): dissect(broken)

# --- the page ---

TRAP = '<script>alert("&\'")</script>\x00\u202e'

class Seen(HTMLParser):
    "What a browser's parser meets."
    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.scripts, self.attributes, self.inside = Counter(), [], [], False
        self.feed(text); self.close()
    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1; self.attributes += attrs; self.inside = tag == 'script'
    def handle_startendtag(self, tag, attrs): self.tags[tag] += 1; self.attributes += attrs
    def handle_endtag(self, tag): self.inside = False
    def handle_data(self, data): self.scripts += [data] if self.inside else []

@pytest.fixture
def cases(tmp_path):
    inks = sample_inks()[:8]
    pack(inks, tmp_path/'test.safetensors', 'test')
    packed = load_packed(tmp_path, 'test')
    made = [dict(name=n, truth=packed.caption(i), prediction=[['x'], [TRAP, '<', '&'], [], packed.caption(i)[:-1]][i % 4], confidence=i/10) for i, n in enumerate(packed.names)]
    rows = dissect(made + [dict(name='gone', truth=['?'], prediction=None, reason='x')], packed)
    return [Case(dict(c.row, name=f'{TRAP}{i}', writer=TRAP), c.traces, c.size, c.readings, np.eye(3), 8) for i, c in enumerate(make_cases(rows, packed))]

def test_page_is_well_formed_and_escaped(cases, tmp_path):
    assert len(cases) == 8
    write_atlas(tmp_path/'atlas.html', cases, TRAP, TRAP)
    page = (tmp_path/'atlas.html').read_text(encoding='utf-8')
    root, seen = ElementTree.fromstring(page), Seen(page)
    assert seen.tags['script'] == len(root.findall('.//script')) == len(seen.scripts) == 1 and 'alert' not in seen.scripts[0]
    assert root.find('.//script').text == seen.scripts[0], 'an XML parser and a browser read the same script'
    assert root.find('.//h1').text == TRAP.replace('\x00', '\ufffd').replace('\u202e', '\ufffd')
    assert [a.get('data-name') for a in root.iter('article')] == [f"{root.find('.//h1').text}{i}" for i in range(8)]
    assert not [name for name, _ in seen.attributes if name.startswith('on') or name in ('src', 'href', 'xlink:href', 'action', 'srcset', 'data', 'style')]
    assert not re.search(r'(?i)https?:|//|url\(|@import|javascript:|xmlns', page)
    policy, = (value for name, value in seen.attributes if name == 'content')
    assert "default-src 'none'" in policy

def test_every_stroke_is_drawn_inside_the_picture(cases):
    for case in cases:
        svg = ElementTree.fromstring(ink_svg(case))
        assert svg.get('viewBox') == f'0 0 {case.size[1]} {case.size[0]}' and len(svg.findall('.//polyline')) == len(case.traces) and len(svg.findall('.//rect')) == 3
        for line, trace in zip(svg.iter('polyline'), case.traces):
            points = np.array([p.split(',') for p in line.get('points').split()], float)
            assert len(points) >= 2 and np.allclose([points.min(0), points.max(0)], [trace.min(0), trace.max(0)], atol=.051) and (points <= case.size[::-1]).all()
    assert ink_svg(Case({}, [np.ones((1, 2))], (9, 9), [], None)).count('1.0,1.0') == 2, 'a dot'

def test_marks_and_formulas(cases):
    assert marked(['x', '<'], ['x', '&', '<']) == 'x <ins>&amp;</ins> &lt;' and marked(['x', '2'], ['y']) in ('<del>x</del> <ins>y</ins> <del>2</del>', '<del>x</del> <del>2</del> <ins>y</ins>')
    article = ElementTree.fromstring(case_html(cases[0]))
    assert article.find('.//tr/td[2]/math') is not None and article.find('.//tr/td[3]/code').text == to_latex(cases[0].row['truth'])
    assert '>rejected<' in case_html(Case(dict(cases[0].row, prediction=None), cases[0].traces, cases[0].size, [(None, None)], None))

def test_no_case_is_no_error():
    assert ElementTree.fromstring(atlas_html([])).find('.//main').text is None

FAKE = '''
const cases = JSON.parse(process.argv[1]).map(d => ({dataset: d, hidden: false})), listed = {children: cases, order: [], classes: {}};
listed.append = c => { listed.order = listed.order.filter(x => x !== c).concat([c]); };
listed.classList = {toggle: (name, on) => { listed.classes[name] = on; }};
const parts = {cases: listed, kind: {value: ''}, sort: {value: 'errors'}, maps: {checked: true}, count: {}};
let changed = null;
for (const id of ['kind', 'sort', 'maps']) parts[id].addEventListener = (event, f) => { if (event === 'change') changed = f; };
const told = () => [listed.order.filter(c => !c.hidden).map(c => c.dataset.name), parts.count.textContent, listed.classes.nomaps], all = [];
new Function('document', process.argv[2])({getElementById: id => parts[id]});
all.push(told());
parts.kind.value = 'both'; changed(); all.push(told());
parts.kind.value = ''; parts.sort.value = 'name'; parts.maps.checked = false; changed(); all.push(told());
parts.sort.value = 'sure'; changed(); all.push(told());
console.log(JSON.stringify(all));
'''

def test_sorting_and_filtering(cases):
    node = shutil.which('node')
    if node is None: pytest.skip('no node here: the script of the page is not run')
    script = Seen(atlas_html(cases)).scripts[0]
    data = [dict(name='b', kind='both', errors='2', sure='0.5'), dict(name='a', kind='symbols', errors='10', sure='0.1'), dict(name='c', kind='both', errors='9', sure='0.9')]
    said = subprocess.run([node, '-e', FAKE, json.dumps(data), script], capture_output=True, text=True, timeout=60)
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout) == [[['a', 'c', 'b'], 3, False], [['c', 'b'], 2, False], [['a', 'b', 'c'], 3, True], [['c', 'b', 'a'], 3, True]]
