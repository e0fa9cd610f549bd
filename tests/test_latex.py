"Canonical captions: stable on random expressions, never anything but LatexError on bad input, equal to the published captions where CROHME is at hand."
import html, os, random, re
from pathlib import Path
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from mask_match.config import project_root
from mask_match.latex import (EOS, FIELD_WORDS, PAD, SOS, SYMBOLS, UNK, LatexError, Tree, Vocabulary, canonical, depth, is_valid, parse, structure, to_latex,
                              tokenize, unparse)

SYMBOL = st.sampled_from(sorted(SYMBOLS))
QUICK = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)

def _row(children): return st.lists(children, min_size=1, max_size=4).map(tuple)

def _grow(children):
    row = _row(children)
    script = st.tuples(st.sampled_from(['subscript', 'superscript']), row)
    scripts = st.lists(script, max_size=3).map(lambda found: tuple(sorted(found, key=lambda p: p[0])))
    plain = st.builds(Tree, SYMBOL, scripts)
    fraction = st.builds(lambda a, b, s: Tree('\\frac', (('numerator', a), ('denominator', b)) + s), row, row, scripts)
    root = st.builds(lambda a, s: Tree('\\sqrt', (('radicand', a),) + s), row, scripts)
    indexed = st.builds(lambda n, a: Tree('\\sqrt', (('index', (Tree(n),)), ('radicand', a))), SYMBOL.filter(lambda s: s not in '[]'), row)
    return plain | fraction | root | indexed

EXPRESSION = _row(st.recursive(SYMBOL.map(Tree), _grow, max_leaves=12)).map(lambda row: unparse(Tree('', (('inside', row),))))

@QUICK
@given(EXPRESSION)
def test_canonical_is_stable(tokens):
    once = canonical(' '.join(tokens))  # joins l o g
    assert canonical(to_latex(once)) == once == canonical(' '.join(once)) == unparse(parse(once))
    assert tokenize(' '.join(once)) == once
    assert depth(once) >= 0 and len(structure(once)) == len(once) and structure(structure(once)) == structure(once)

@QUICK
@given(st.text(alphabet=r'ab1^_{}[]\ ' + "'&$<ltfracsqN", max_size=60))
def test_any_text_gives_a_caption_or_a_latex_error(text):
    try: once = canonical(text)
    except LatexError as e: assert len(str(e)) < 600
    else: assert canonical(to_latex(once)) == once and is_valid(once)

@QUICK
@given(st.lists(st.sampled_from(FIELD_WORDS + ('<unk>', '<sos>')), max_size=30))
def test_any_prediction_can_be_spelled_and_judged(tokens):
    text = to_latex(tokens)
    assert isinstance(text, str)
    if is_valid(tokens): assert unparse(parse(unparse(parse(tokens)))) == unparse(parse(tokens))

@pytest.mark.parametrize('bad', ['', ' ', '$$', '{}', 'x^', 'x_', '^', '_', '{x', 'x}', 'x}{', r'\frac', r'\frac1', r'\frac{1}', r'\sqrt', r'\sqrt[3', r'\sqrt[3]', r'\sqrt[{]}]{x}', 'x^^2', 'x^_2',
                                 r'\vec{x}', r'\begin{matrix}1\end{matrix}', 'a&b', 'a\\\\b', '∮', '漢', '\x00', '\\vtop{x}', 'ABOVE {x}', 'x ABOVE {n}', r'\sqrt {x} ABOVE {n} ABOVE {m}', '#', '%', '&nosuch;'])
def test_bad_latex_names_input_and_cure(bad):
    with pytest.raises(LatexError) as caught: canonical(bad)
    said = str(caught.value)
    assert said.count(';') >= 1 and len(said) > 20
    if bad.strip(): assert said.startswith(("'", '"'))

@pytest.mark.parametrize('bomb', ['{' * 10_000, '{' * 9_999 + '}' * 9_999, 'x^{' * 3000 + 'x' + '}' * 3000, r'\sqrt' * 3000 + 'x', r'\frac' * 3500, r'\sqrt[' * 2000, 'x^' + '{' * 5000, '(' * 100_000,
                                  'x' * 10_000, '[' * 9000, r'\frac1{' * 2000, "'" * 9000, '_' * 9000, '&amp;' * 3000])
def test_bombs_are_latex_errors(bomb):
    for read in (canonical, lambda text: parse(text.split() if ' ' in text else re.findall(r'\\[a-z]+|.', text))):
        with pytest.raises(LatexError): read(bomb)

def test_a_deep_tree_cannot_be_written():
    tree = Tree('x')
    for _ in range(10_000): tree = Tree('x', (('superscript', (tree,)),))
    with pytest.raises(LatexError): unparse(Tree('', (('inside', (tree,)),)))

def test_only_text_is_latex():
    for wrong in (None, 3, b'x', ['x']):
        with pytest.raises(LatexError): canonical(wrong)

@pytest.mark.parametrize('spellings', [[r'\frac12', r'$\frac {1} {2}$', r'{ \frac { \mbox { 1 } } { 2 } }', r'\dfrac1{2}\!'], ['x_i^2', 'x^2_i', '{x_i}^2', '{{x}_{i}}^{2}'], [r'\left|x\right|', '|x|', r'\vert x \vert'],
                                       ['a<b', r'a\lt b', r'a\ltb', 'a&lt;b'], [r'\lim_{x\to0}', r'lim_{x \rightarrow 0}', r'\lim\limits_{x \to 0}'], ["f'", r'f^\prime', r'f^{\prime}', "f^{'}"],
                                       [r'\sqrt[3]{x}', r'\sqrt {x} ABOVE {3}', r'\sqrt[3]x'], ['x≤y', r'x\le y', r'x \leq y'], [r'\operatorname*{lim}_x', r'\lim_x'],
                                       ['x′', "x'", 'x^{′}'], ['90°', r'90^\circ', '90^{°}', '90^∘', '9 0 ^ °', '9 0 ^ { ° }'],
                                       ['x^{2′}', "x^{2'}"], ['x_{2}°', r'x_2^\circ']])
def test_spellings_of_one_ink_agree(spellings):
    assert len({tuple(canonical(s)) for s in spellings}) == 1

def test_repair_drops_only_surplus_braces():
    assert canonical(r'\lim _ {z \to 1}} (z)', repair=True) == r'\lim _ { z \rightarrow 1 } ( z )'.split()
    with pytest.raises(LatexError): canonical('{x', repair=True)

def test_depth_and_structure():
    assert [depth(canonical(s)) for s in ('x', 'x^2', 'x^{2^2}', r'\frac{\sqrt{x_1}}{2}', r'\sqrt[n]{x}')] == [0, 1, 2, 3, 1]
    assert structure(canonical('[x]^2')) == 'x x x ^ { x }'.split() and structure(canonical(r'\sqrt[n]{[a]}')) == r'\sqrt [ x ] { x x x }'.split()
    with pytest.raises(LatexError): structure(['{'])

def test_vocabulary():
    v = Vocabulary.field()
    assert (PAD, SOS, EOS, UNK) == (0, 1, 2, 3) and len(v) == 114 and list(v.words[4:]) == sorted(FIELD_WORDS)
    assert v == Vocabulary(tuple(random.Random(1).sample(FIELD_WORDS, 110))) == Vocabulary(v.words)
    for _ in range(50):
        tokens = random.Random(_).choices(FIELD_WORDS, k=12)
        assert v.decode(v.encode(tokens)) == tokens == v.decode([SOS, *v.encode(tokens), PAD, EOS, 9999])
    assert v.encode(['\\psi', 'x']) == [UNK, v.ids['x']] and v.decode([UNK]) == ['<unk>']
    for wrong in ([114], [-1]):
        with pytest.raises(LatexError): v.decode(wrong)
    for wrong in (('a b',), ('',), (3,)):
        with pytest.raises(LatexError): Vocabulary(wrong)
    assert Vocabulary.from_captions([['x', '2'], ['x']]).words == ('<pad>', '<sos>', '<eos>', '<unk>', '2', 'x')

def _crohme():
    places = [os.environ.get('MASK_MATCH_CROHME'), project_root()/'shared/data/crohme', project_root().parent/'shared/data/crohme']
    return next((Path(p) for p in places if p and (Path(p)/'captions').is_dir()), None)

@pytest.mark.skipif(_crohme() is None, reason='CROHME captions are not here (set MASK_MATCH_CROHME)')
@pytest.mark.parametrize('split', ['train', 'test2013', 'test2014'])
def test_published_captions_are_stable(split):
    for line in (_crohme()/f'captions/{split}.txt').open(encoding='utf8'):
        name, caption = line.rstrip('\n').split('\t')
        tokens = caption.split()
        if not tokens or '\\vtop' in tokens: continue  # an empty file, and TeX box code
        assert unparse(parse(tokens)) == tokens == canonical(to_latex(tokens)), name
        assert Vocabulary.field().decode(Vocabulary.field().encode(tokens)) == tokens, name

@pytest.mark.skipif(_crohme() is None, reason='CROHME is not here (set MASK_MATCH_CROHME)')
def test_truths_become_the_published_captions():
    from mask_match.inkml import read_sources
    sources = sorted(p for p in _crohme().iterdir() if '.tar' in p.name or (p.is_dir() and p.name != 'captions'))
    if not sources: pytest.skip('CROHME ink is not here')
    truth, pattern = {}, re.compile(rb'<annotation\s+type="truth"[^>]*>(.*?)</annotation>', re.S)
    for name, data in read_sources(*sources):
        found = pattern.search(data)
        if found: truth[Path(name).stem] = html.unescape(found[1].decode('utf8', 'replace'))
    different, n = {}, 0
    for split in ('train', 'test2013', 'test2014'):
        for line in (_crohme()/f'captions/{split}.txt').open(encoding='utf8'):
            name, caption = line.rstrip('\n').split('\t')
            if name not in truth: continue
            n += 1
            try: ours = canonical(truth[name], repair=True)
            except LatexError: ours = None
            if ours != caption.split(): different[name] = ours
    assert n > 10_000 and set(different) == {'rit_4275_4'}  # TeX box code, no mathematics
