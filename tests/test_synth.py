"The synthesiser: legible geometry, exact bookkeeping, seeds, splits, and the sample ink that comes with the package."
import itertools, time
import numpy as np, pytest
from mask_match.grammar import GRAMMARS, MAX_TOKENS, sample_caption
from mask_match.inkml import parse_ink, simplify, with_roles, write_ink
from mask_match.latex import LatexError, canonical, parse, unparse
from mask_match.strokes import GLYPHS, LABELS, Habit, Writer, _letter, read_shape
from mask_match.synth import FIXTURES, SPLITS, layout, leaves, make_sample_inks, sample_inks, synthesise, tree, write, write_sample_inks

FIELD = set(r'''\geq \sqrt \leq / \infty ( , 0 \cdot 8 \sigma < \pm \log \pi H L P T X d h \} l p t \tan x | \gamma \{ + \theta \forall 3 7 \int \sin \prime C G \ldots S [ _ c z \cdots g k o s w \cos { \Delta \neq \in \alpha
\times \lim . 2 6 \lambda 4 B F \exists N R V ^ b f j n r v > \frac \rightarrow \div ! \phi ) - 1 5 9 = A E \beta I M Y ] \mu a e i \sum m q u y }'''.split())  # the field's dictionary without \limits, ' and its end token

def captions(grammar, n, seed=0):
    rng = np.random.default_rng(seed)
    return [sample_caption(grammar, rng) for _ in range(n)]

@pytest.mark.parametrize('grammar', GRAMMARS)
def test_captions_are_canonical_and_parse(grammar):
    for c in captions(grammar, 1500):
        assert canonical(' '.join(c)) == c
        assert unparse(parse(c)) == c

def test_full_grammar_covers_the_dictionary():
    found = {t for c in captions('full', 6000) for t in c}
    assert FIELD - found == set() and found <= FIELD
    assert max(map(len, captions('full', 3000))) <= MAX_TOKENS

def test_small_grammar_is_small():
    drawn = captions('small', 4000)
    words = {t for c in drawn for t in c}
    assert max(map(len, drawn)) <= 12 and 38 <= len(words) <= 46
    assert {r'\frac', r'\sqrt', '^', '_', '=', '('} <= words and not {'l', '|', 'o', 'O', r'\times'} & words

@pytest.mark.parametrize('label', GLYPHS)
def test_every_shape_can_be_drawn(label):
    for k in range(len(GLYPHS[label])):
        for habit in (Habit(), Habit(True, False, False, False), Habit(False, True, False, False), Habit(False, False, True, True)):
            g = _letter(label, k, 12, habit)
            assert np.isfinite(g.points).all() and sum(g.lengths) == len(g.points) == len(g.basis) and min(g.lengths) >= 2
            left, bottom, right, top = g.box
            assert -0.2 < left <= right < 1.2 and -0.7 < bottom <= top < 1.5

@pytest.mark.parametrize('grammar', GRAMMARS)
def test_bookkeeping(grammar):
    for ink in synthesise(150, 3, grammar):
        assert sorted(t for s in ink.symbols for t in s.traces) == list(range(len(ink.traces))), 'every trace belongs to one symbol'
        assert all(t.dtype == np.float32 and t.ndim == 2 and len(t) for t in ink.traces)
        assert all((np.diff(t, axis=0) != 0).any(1).all() for t in ink.traces), 'no repeated points'
        assert simplify(ink.layout) == ink.layout and with_roles(ink.symbols, ink.layout) == ink.symbols
        def heads(t): return (t.symbol != '') + sum(heads(c) for _, row in t.parts for c in row)
        assert len(ink.symbols) == heads(parse(canonical(ink.truth))), 'one symbol for every symbol of the truth'
        assert parse_ink(write_ink(ink), ink.name) == ink

def test_same_seed_same_ink():
    a = list(synthesise(25, 8, 'full'))
    assert a == list(synthesise(25, 8, 'full')) and a[15:] == list(synthesise(10, 8, 'full', start=15))
    assert a != list(synthesise(25, 9, 'full'))
    names = [ink.name for split in SPLITS for g in GRAMMARS for seed in (1, 2) for ink in synthesise(5, seed, g, split)]
    assert len(set(names)) == len(names)

def test_splits_never_share_a_writer():
    ranges = [set(range(a, a + n)) for a, n in SPLITS.values()]
    assert all(not a & b for a, b in itertools.combinations(ranges, 2))
    for split, (a, n) in SPLITS.items():
        assert all(a <= int(ink.writer[5:]) < a + n for ink in synthesise(40, 1, 'small', split))

def test_exclude():
    seen = {' '.join(canonical(ink.truth)) for ink in synthesise(400, 1, 'small')}
    for given in (seen, {tuple(c.split()) for c in seen}):
        assert not seen & {' '.join(canonical(ink.truth)) for ink in synthesise(200, 1, 'small', 'test', exclude=given)}

def test_exclude_everything(monkeypatch):
    monkeypatch.setattr('mask_match.synth.sample_caption', lambda grammar, rng: ['x'])
    with pytest.raises(ValueError, match='exclude fewer'): next(synthesise(1, 1, 'small', exclude=['x']))

def place(text, seed=3):
    node, labels = tree(text.split())
    return {labels[b.symbol]: (x, y, b) for x, y, b in leaves(layout(node, labels, Writer(seed), np.random.default_rng(0)))}

@pytest.mark.parametrize('seed', range(12))
def test_geometry(seed):
    at = place(r'\frac { a + b } { c } x ^ { 2 } y _ { i }', seed)
    assert at['a'][1] > at['-'][1] > at['c'][1] and at['2'][1] > at['x'][1] and at['i'][1] < at['y'][1]
    assert at['2'][2].size < at['x'][2].size and at['a'][0] < at['+'][0] < at['b'][0] < at['x'][0] < at['2'][0] < at['y'][0]
    at = place(r'\sum _ { n } ^ { m } k', seed)
    if not Writer(seed).side_limits: assert at['n'][1] < at[r'\sum'][1] < at['m'][1]

def test_brackets_grow_with_their_content():
    low, high = place('( x )')['('][2], place(r'( \frac { \frac { x } { y } } { z } )')['('][2]
    assert high.scale[1] > 1.8*low.scale[1]

@pytest.mark.parametrize('seed', range(8))
def test_symbols_do_not_pile_up(seed):
    "Neighbours in a row overlap by less than half of the narrower one."
    ink = write('a + b = c - 2'.split(), Writer(seed), np.random.default_rng(seed))
    boxes = [np.concatenate([ink.traces[t] for t in s.traces])[:, 0] for s in ink.symbols]
    for p, q in zip(boxes, boxes[1:]): assert p.max() - q.min() < 0.5*min(np.ptp(p), np.ptp(q)) + 1

@pytest.mark.parametrize('bad', [[], ['\\unknown'], ['x', '^'], ['{', 'x']])
def test_what_cannot_be_written(bad):
    with pytest.raises(LatexError): write(bad, Writer(0), np.random.default_rng(0))

@pytest.mark.parametrize('wrong', [dict(grammar='medium'), dict(split='trial')])
def test_unknown_names(wrong):
    with pytest.raises(ValueError, match='there are'): next(synthesise(1, 0, **wrong))

def test_sample_ink_is_what_the_generator_makes(tmp_path):
    shipped, made = {ink.name: ink for ink in sample_inks()}, {ink.name: ink for ink in make_sample_inks()}
    assert shipped.keys() == made.keys() and len(made) == 36
    for name, ink in made.items():
        have = shipped[name]
        assert (have.symbols, have.truth, have.layout, have.writer, have.source) == (ink.symbols, ink.truth, ink.layout, ink.writer, ink.source), name
        assert [len(t) for t in have.traces] == [len(t) for t in ink.traces], name
        assert all(np.abs(a - b).max() <= 1 for a, b in zip(have.traces, ink.traces)), name  # a tablet unit: another processor may round differently
    assert [ink.name for ink in sample_inks()[:6]] == list(FIXTURES)
    written = write_sample_inks(tmp_path)
    assert {p.stem for p in written} == made.keys() and parse_ink(written[0].read_bytes(), written[0].stem) == made[written[0].stem]

def test_writers_of_sample_ink_are_validation_writers():
    a, n = SPLITS['validation']
    assert all(a <= int(ink.writer[5:]) < a + n for ink in sample_inks())

def test_speed():
    list(synthesise(300, 0, 'small'))
    best = 0.
    for _ in range(3):
        started = time.process_time(); list(synthesise(150, 1, 'small')); best = max(best, 150/(time.process_time() - started))
    assert best > 100, f'{best:.0f} expressions a second'   # several hundred on an idle core
