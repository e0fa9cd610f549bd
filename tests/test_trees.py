"Symbol layout trees: hand-written cases, nothing lost on the way, invalid input, exports that others read."
import random
import xml.etree.ElementTree as ElementTree
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from mask_match.grammar import sample_caption
from mask_match.latex import FIELD_WORDS, MAX_TOKENS, LatexError, canonical, is_valid
from mask_match.metrics import MetricError, score
from mask_match.trees import EDGES, SymbolTree, merged, same_shape, same_tree, symlg, symlg_score, to_caption, to_lg, to_mathml, to_tree, with_limits

NS = '{http://www.w3.org/1998/Math/MathML}'
SYMBOLS = ['x', '2', '+', '-', ',', '<', '(', ')', '|', '.', '!', r'\sum', r'\alpha', r'\sin', r'\lim', r'\{', r'\prime', r'\infty', r'\unheard']

def ways(caption): return symlg(to_tree(caption.split()))

@st.composite
def rows(draw, level=3, brackets=True):
    "A canonical row: symbols, fractions, roots and scripts, nested at most `level` times."
    made = []
    for _ in range(draw(st.integers(0 if level < 3 else 1, 3))):
        kind = draw(st.sampled_from(['symbol', 'frac', 'sqrt', 'root'] if level else ['symbol']))
        inner = lambda: draw(rows(level - 1))
        if kind == 'symbol': made += [draw(st.sampled_from(SYMBOLS + (['[', ']'] if brackets else [])))]
        elif kind == 'frac': made += ['\\frac', '{', *inner(), '}', '{', *inner(), '}']
        elif kind == 'sqrt': made += ['\\sqrt', '{', *inner(), '}']
        else: made += ['\\sqrt', '[', *(draw(rows(level - 1, brackets=False)) or ['n']), ']', '{', *inner(), '}']
        if level and draw(st.booleans()):
            for sign in draw(st.sampled_from(['_', '^', '_^', '^^'])): made += [sign, '{', *(inner() or ['k']), '}']
    return made

@settings(max_examples=80, deadline=None, derandomize=True)
@given(rows())
def test_round_trip(tokens):
    tree = to_tree(tokens)
    assert to_caption(tree) == tokens and to_caption(with_limits(tree)) == tokens
    assert len(symlg(tree)) == len(tree) == len(merged(tree)) and all(parent < i for i, parent in enumerate(tree.parents))
    assert same_tree(tokens, tokens) and same_shape(tokens, tokens)
    ElementTree.fromstring(to_mathml(with_limits(tree)))

@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from([*FIELD_WORDS, '{', '}', '{', '}', '^', '_', '\\frac', '\\sqrt', '[', ']', '<unk>']), max_size=30))
def test_any_token_list_is_read_or_refused(tokens):
    same_tree(tokens, ['x']), same_shape(['x'], tokens)
    try: tree = to_tree(tokens)
    except LatexError as e:
        assert str(e).startswith('token ') and str(e).count('; ') >= 1
        return
    assert to_tree(to_caption(tree)) == to_tree(to_caption(to_tree(to_caption(tree))))  # one trip brings it into order
    assert symlg(to_tree(to_caption(tree))) == symlg(tree)

@settings(max_examples=60, deadline=None, derandomize=True)
@given(rows())
def test_the_canonical_form_has_the_same_tree(tokens):
    if r'\unheard' in tokens or not tokens: return
    made = canonical(' '.join(tokens))
    assert to_caption(to_tree(made)) == made and symlg(to_tree(made)) == symlg(to_tree(tokens))

@pytest.mark.parametrize('split', ['train', 'test2013', 'test2014'])
def test_all_captions_come_back(crohme, split):
    captions = [line.rstrip('\n').split('\t')[1].split() for line in (crohme/f'captions/{split}.txt').open(encoding='utf8')]
    assert len(captions) > 600 and [t for t in captions if to_caption(to_tree(t)) != t] == []

@pytest.mark.parametrize('grammar', ['small', 'full'])
def test_invented_captions_come_back(grammar):
    for k in range(500):
        tokens = sample_caption(grammar, np.random.default_rng([3, k]))
        tree = to_tree(tokens)
        assert to_caption(tree) == tokens
        assert len(tree) == sum(t not in ('{', '}', '^', '_') for t in tokens) - 2 * sum(a == '\\sqrt' and b == '[' for a, b in zip(tokens, tokens[1:]))

CASES = {'': {}, 'x': {'O': 'x'}, 'F _ { z } x': {'O': 'F', 'OSub': 'z', 'OR': 'x'},
         r'\frac { a } { b } + c': {'O': '-', 'OAbove': 'a', 'OBelow': 'b', 'OR': '+', 'ORR': 'c'},
         r'\frac { a + 1 } { b } ^ { 2 }': {'O': '-', 'OAbove': 'a', 'OAboveR': '+', 'OAboveRR': '1', 'OBelow': 'b', 'OSup': '2'},
         r'\sqrt [ n ] { x y }': {'O': r'\sqrt', 'OAbove': 'n', 'OInside': 'x', 'OInsideR': 'y'},
         r'\sum _ { n = 1 } ^ { k } n': {'O': r'\sum', 'OSub': 'n', 'OSubR': '=', 'OSubRR': '1', 'OSup': 'k', 'OR': 'n'},
         r'\lim _ { x \rightarrow 0 }': {'O': r'\lim', 'OSub': 'x', 'OSubR': r'\rightarrow', 'OSubRR': '0'},
         '( a ) ^ { 2 }': {'O': '(', 'OR': 'a', 'ORR': ')', 'ORRSup': '2'}, 'x ^ { 2 ^ { 3 } }': {'O': 'x', 'OSup': '2', 'OSupSup': '3'},
         r'a , b < c > d': {'O': 'a', 'OR': 'COMMA', 'ORR': 'b', 'ORRR': r'\lt', 'ORRRR': 'c', 'ORRRRR': r'\gt', 'ORRRRRR': 'd'},
         r'y ^ { \prime } ^ { 2 }': {'O': 'y', 'OSup': r'\prime', 'OSupR': '2'}, '^ { 2 } x': {'O': '_', 'OSup': '2', 'OR': 'x'}}

@pytest.mark.parametrize('caption', CASES)
def test_by_hand(caption):
    assert ways(caption) == CASES[caption] and to_caption(to_tree(caption.split())) == caption.split()

@pytest.mark.parametrize('caption, place, word', [
    ('x ^ 2', 2, "'^'"), (r'\frac { a }', 4, r"'\frac'"), (r'\frac a b', 1, r"'\frac'"), ('x } y', 1, 'never opened'), ('{ x }', 0, 'no argument'),
    (r'\sqrt [ n { x }', 3, "']'"), (r'\sqrt [ n', 1, 'never closed'), ('x ^ { 2', 2, 'never closed'), ('x _', 2, "'_'"), ("f '", 1, 'canonical'),
    (r'\sum \limits _ { n }', 1, 'canonical'), ('x <eos>', 1, 'canonical'), (r'\sqrt }', 1, r"'\sqrt'"), ('x ^ ^ { 2 }', 2, "'^'")])
def test_a_refusal_names_place_and_cure(caption, place, word):
    with pytest.raises(ValueError) as e: to_tree(caption.split())
    assert str(e.value).startswith(f'token {place} ') and word in str(e.value) and ';' in str(e.value)

@pytest.mark.parametrize('wrong', ['x + 1', ['x', 2], ['x', None], ['x y'], [''], ['x\n'], ['\x00'], ['x'] * (MAX_TOKENS + 1)], ids=str)
def test_what_is_no_token_list_is_refused(wrong):
    with pytest.raises(LatexError): to_tree(wrong)

@pytest.mark.parametrize('opening, middle, closing', [('x ^ {', 'x', '}'), (r'\frac {', 'x', '} { y }'), (r'\sqrt [ 3 ] {', 'x', '}'), ('x _ {', '', '}'), (r'\frac { y } {', 'x', '}')])
def test_nesting_500_deep(opening, middle, closing):
    tokens = opening.split() * 500 + middle.split() + closing.split() * 500
    if len(tokens) > MAX_TOKENS:
        with pytest.raises(LatexError, match='at most'): to_tree(tokens)
        tokens = opening.split() * 400 + middle.split() + closing.split() * 400
    tree = to_tree(tokens)
    assert (to_caption(tree) == tokens) == bool(middle) and tree == to_tree(tokens) and hash(tree) and repr(tree) and same_tree(tokens, tokens)
    assert len(ElementTree.fromstring(to_mathml(tree))) == 1 and to_lg(tree).count('\nR, ') == len(tree) - 1

def test_unbalanced_bombs_are_refused():
    for bomb in (['{'] * 4000, ['}'] * 4000, ['^', '{'] * 2000, ['\\sqrt', '['] * 2000, ['\\frac', '{'] * 2000, ['['] * 4000):
        if bomb[0] == '[': assert to_caption(to_tree(bomb)) == bomb
        else:
            with pytest.raises(LatexError): to_tree(bomb)
        assert not same_tree(bomb, ['x']) and not same_shape(bomb, ['x'])

@pytest.mark.parametrize('truth, prediction, tree, shape', [
    ('x ^ { 2 }', 'x ^ { 3 }', False, True), ('x ^ { 2 }', 'x _ { 2 }', False, False), ('x ^ { 2 }', 'x 2', False, False), ('x ^ { 2 }', 'x ^ { 2 } 1', False, False),
    (r'\frac { a } { b }', r'\frac { b } { a }', False, True), (r'\frac { a } { b }', 'a / b', False, False), (r'\sqrt { x }', r'\sqrt [ 2 ] { x }', False, False),
    ('x _ { i } ^ { 2 }', 'x ^ { 2 } _ { i }', True, True), ('x ^ { 2 }', 'x ^ 2', True, True), ('x ^ { 2 }', '{ x } ^ { 2 }', True, True), ('x', 'x ^ {', False, False),
    ('x', '', False, False), ('x', 'y', False, True), ('x', '<unk>', False, True), ('f ^ { a }', '^ { a }', False, False), ('x', '} x', False, False)])
def test_same_tree_same_shape(truth, prediction, tree, shape):
    assert (same_tree(prediction.split(), truth.split()), same_shape(prediction.split(), truth.split())) == (tree, shape)

def test_score():
    record = lambda k, truth, prediction: dict(name=str(k), truth=truth.split(), prediction=None if prediction is None else prediction.split())
    records = [record(0, 'x ^ { 2 }', 'x ^ { 2 }'), record(1, 'x ^ { 2 }', 'y ^ { 2 }'), record(2, 'x', None), record(3, 'x', 'x ^ {')]
    result = symlg_score(records)
    assert (result['n'], result['exprate_symlg'], result['structure_rate']) == (4, .25, .5)
    assert all(result['ci95'][key][0] < result[key] < result['ci95'][key][1] for key in ('exprate_symlg', 'structure_rate'))
    assert symlg_score([]) == dict(n=0, exprate_symlg=None, structure_rate=None, ci95=dict(exprate_symlg=[0., 1.], structure_rate=[0., 1.]))
    for wrong in (record(4, '{', 'x'), record(4, '', 'x'), dict(name='a', truth='x', prediction=['x']), dict(name='a', truth=['x'], prediction='x')):
        with pytest.raises(MetricError): symlg_score([wrong])

def test_never_below_the_string_rate():
    draw, records = random.Random(5), []
    for k in range(200):
        truth = sample_caption('full', np.random.default_rng([4, k]))
        guess = truth[:]
        if k % 2: guess[draw.randrange(len(guess))] = draw.choice(['x', '2', '}', '^'])
        records.append(dict(name=str(k), truth=truth, prediction=guess))
    strings, symbols = score(records, draws=2), symlg_score(records)
    assert .5 <= strings['exprate'] <= symbols['exprate_symlg'] <= symbols['structure_rate'] < 1

def test_limits():
    tree = with_limits(to_tree(r'\sum _ { n } ^ { k } \int _ { 0 } ^ { 1 } \lim _ { x }'.split()))
    assert tree.relations == ('', 'Below', 'Above', 'Right', 'Sub', 'Sup', 'Right', 'Below')
    assert [e.tag.removeprefix(NS) for e in ElementTree.fromstring(to_mathml(tree))[0]] == ['munderover', 'msubsup', 'munder']

def read_lg(text):
    "Ways and labels of a label graph, from its relations alone."
    found = [line.split(', ') for line in text.splitlines() if line and line[0] in 'ONRE']
    labels, came = {r[1]: r[2] for r in found if r[0] in 'ON'}, {r[2]: (r[1], r[3]) for r in found if r[0] in 'RE'}
    made = {}
    for key in labels:
        way, at = '', key
        while at in came: at, step = came[at][0], EDGES[came[at][1]]; way = step + way
        made['O' + way] = labels[key]
    return made

@settings(max_examples=60, deadline=None, derandomize=True)
@given(rows(), st.sampled_from(['OR', 'NE']))
def test_label_graphs(tokens, form):
    tree = to_tree(tokens)
    lines = to_lg(tree, 'one', form).splitlines()
    assert lines[0] == '# IUD, one' and read_lg('\n'.join(lines)) == symlg(tree)
    assert all(line.count(',') == 4 for line in lines if line[:1] in ('O', 'R', 'E')) and all(line.count(',') == 3 for line in lines if line[:1] == 'N')

def test_label_graph_by_hand():
    assert to_lg(to_tree('F _ { z } x'.split()), 'e').splitlines() == ['# IUD, e', '# Objects(3):', 'O, F_1, F, 1.0, O', 'O, z_1, z, 1.0, OSub', 'O, x_1, x, 1.0, OR', '',
                                                                     '# Relations from SRT:', 'R, F_1, z_1, Sub, 1.0', 'R, F_1, x_1, Right, 1.0']
    assert to_lg(SymbolTree()).splitlines()[1] == '# Objects(0):'
    with pytest.raises(ValueError, match="'OR'"): to_lg(SymbolTree(), form='or')

@pytest.mark.parametrize('caption, inner', [
    ('x ^ { 2 }', '<msup><mi>x</mi><mrow><mn>2</mn></mrow></msup>'), ('x _ { i }', '<msub><mi>x</mi><mrow><mi>i</mi></mrow></msub>'),
    ('x _ { i } ^ { 2 }', '<msubsup><mi>x</mi><mrow><mi>i</mi></mrow><mrow><mn>2</mn></mrow></msubsup>'),
    (r'\frac { a } { b }', '<mfrac><mrow><mi>a</mi></mrow><mrow><mi>b</mi></mrow></mfrac>'), (r'\sqrt { x + 1 }', '<msqrt><mi>x</mi><mo>+</mo><mn>1</mn></msqrt>'),
    (r'\sqrt [ n ] { x }', '<mroot><mrow><mi>x</mi></mrow><mrow><mi>n</mi></mrow></mroot>'), ('a < b', '<mi>a</mi><mo>&lt;</mo><mi>b</mi>'),
    ('^ { 2 }', '<msup><mrow></mrow><mrow><mn>2</mn></mrow></msup>'), (r'\{ \sin \}', '<mo>{</mo><mi>sin</mi><mo>}</mo>'),
    (r'\sqrt { x } ^ { 2 }', '<msup><msqrt><mi>x</mi></msqrt><mrow><mn>2</mn></mrow></msup>'), ('', '')])
def test_mathml(caption, inner):
    assert to_mathml(to_tree(caption.split())) == f'<math xmlns="http://www.w3.org/1998/Math/MathML"><mrow>{inner}</mrow></math>'

def test_arity_of_mathml():
    arity = dict(mfrac=2, msup=2, msub=2, msubsup=3, mroot=2, munder=2, mover=2, munderover=3)
    for k in range(300):
        tokens = sample_caption('full', np.random.default_rng([5, k]))
        for e in ElementTree.fromstring(to_mathml(with_limits(to_tree(tokens)))).iter():
            assert len(e) == arity.get(e.tag.removeprefix(NS), len(e)), tokens
        assert is_valid(tokens)
