"Cut-outs: true captions, exact traces, readable files, the same every time."
import os
from pathlib import Path
import numpy as np
import pytest
from mask_match.config import project_root
from mask_match.inkml import SLOTS, Ink, Node, Symbol, parse_ink, read_sources, write_ink
from mask_match.latex import LatexError, canonical, is_valid, parse, to_latex
from mask_match.subexpressions import MOST, cut_ink, cutouts, layout_tokens, matched_pieces
from mask_match.synth import synthesise

INKS = list(synthesise(120, seed=11, grammar='full'))

def ink_of(layout, labels, truth, traces=None):
    lines = tuple(np.array([[20 * k, 0], [20 * k + 5, 10]], np.float32) for k in range(len(labels)))
    return Ink('hand', lines, tuple(Symbol(label, (k,) if traces is None else traces[k]) for k, label in enumerate(labels)), truth, layout)

def leaf(k, text='', tag='mi'): return Node(tag, text, k)

def labels_of(tokens):
    "What a caption draws; a fraction bar is '-', dots are one kind."
    def walk(tree): return ([tree.symbol] if tree.symbol else []) + [s for _, row in tree.parts for child in row for s in walk(child)]
    return sorted({'\\frac': '-', '\\cdots': '\\ldots', '\\cdot': '.'}.get(s, s) for s in walk(parse(tokens)))

@pytest.mark.parametrize('ink', INKS[:60], ids=lambda ink: ink.name)
def test_a_cutout_is_an_expression(ink):
    tokens = canonical(ink.truth)
    for k, (caption, traces) in enumerate(cutouts(ink, tokens)):
        cut = parse_ink(write_ink(cut_ink(ink, caption, traces, f'cut{k}')), f'cut{k}.inkml')
        assert canonical(cut.truth) == caption and 1 <= len(caption) <= 12 and caption != tokens
        assert traces == tuple(sorted(set(traces))) and all(np.allclose(a, ink.traces[t]) for a, t in zip(cut.traces, traces))
        assert {t for s in cut.symbols for t in s.traces} == set(range(len(traces)))
        drawn = sorted('\\ldots' if s.label in ('\\cdots', '\\ldots') else '.' if s.label == '\\cdot' else s.label if s.label == '\\sqrt' else canonical(s.label)[0] for s in cut.symbols)
        assert drawn == labels_of(caption)

def test_bounded_deterministic_and_within_limits():
    for ink in INKS:
        tokens = canonical(ink.truth)
        cuts = cutouts(ink, tokens)
        assert len(cuts) <= MOST and cuts == cutouts(ink, tokens) and len({(tuple(c), t) for c, t in cuts}) == len(cuts)
        assert all(3 <= len(c) <= 6 for c, _ in cutouts(ink, tokens, 3, 6))
    assert sum(len(cutouts(i, canonical(i.truth))) for i in INKS) > 5 * len(INKS)

def test_synthesised_layouts_give_their_captions():
    assert sum(bool(matched_pieces(ink, canonical(ink.truth))) for ink in INKS) >= .98 * len(INKS)

def test_nothing_is_cut_where_tree_and_caption_differ():
    row = Node('mrow', children=(leaf(0), leaf(1)))
    ink = ink_of(row, ['a', 'b'], 'ab')
    assert len(cutouts(ink, ['a', 'b'])) == 2 and cutouts(ink, ['b', 'a']) == [] and cutouts(ink, []) == []
    assert cutouts(ink_of(None, ['a', 'b'], 'ab'), ['a', 'b']) == []

def test_what_was_not_written_is_not_cut():
    row = Node('mrow', children=(leaf(0), leaf(-1, '+', 'mo'), leaf(1)))
    ink = ink_of(row, ['a', 'b'], 'a+b')
    assert {' '.join(c) for c, _ in cutouts(ink, ['a', '+', 'b'])} == {'a', 'b'}

def test_shared_traces_are_not_cut():
    row = Node('mrow', children=(leaf(0), leaf(1), leaf(2)))
    ink = ink_of(row, ['a', 'b', 'c'], 'abc', traces=[(0,), (0, 1), (2,)])
    assert {' '.join(c) for c, _ in cutouts(ink, ['a', 'b', 'c'])} == {'c'}

def test_brackets_stay_paired():
    labels = list('(a+b)c')
    row = Node('mrow', children=tuple(leaf(k) for k in range(6)))
    cuts = {' '.join(c) for c, _ in cutouts(ink_of(row, labels, '(a+b)c'), labels)}
    assert '( a + b )' in cuts and 'a + b' in cuts and '( a' not in cuts and 'b )' not in cuts and ') c' not in cuts

def test_scripts_can_fall_off():
    node = Node('msubsup', children=(leaf(0), leaf(1), leaf(2)))
    ink = ink_of(Node('mrow', children=(node, leaf(3))), ['x', 'i', '2', 'y'], 'x_i^2y')
    cuts = dict((' '.join(c), t) for c, t in cutouts(ink, canonical('x_i^2y')))
    assert cuts['x'] == (0,) and cuts['x _ { i }'] == (0, 1) and cuts['x ^ { 2 }'] == (0, 2) and cuts['x _ { i } ^ { 2 }'] == (0, 1, 2)

@pytest.mark.parametrize('tag', sorted(SLOTS))
def test_every_tag(tag):
    truth = dict(msup='a^b', msub='a_b', msubsup='a_b^c', mfrac=r'\frac{a}{b}', msqrt=r'\sqrt{a}', mroot=r'\sqrt[b]{a}', munder='a_b', mover='a^b', munderover='a_b^c')[tag]
    own = len(SLOTS[tag]) if SLOTS[tag][0] is not None else -1
    node = Node(tag, '', own, tuple(leaf(k) for k in range(len(SLOTS[tag]))))
    ink = ink_of(node, list('abc')[:len(SLOTS[tag])] + (['-'] if own >= 0 else []), truth)
    assert layout_tokens(ink.layout, ink.symbols) == canonical(truth) and {'a'} <= {' '.join(c) for c, _ in cutouts(ink, canonical(truth))}

def test_a_deep_layout_is_refused():
    node = leaf(0)
    for _ in range(500): node = Node('mrow', children=(node,))
    with pytest.raises(LatexError): layout_tokens(node, (Symbol('a', (0,)),))
    assert cutouts(ink_of(node, ['a'], 'a'), ['a']) == []

def _crohme():
    places = [os.environ.get('MASK_MATCH_CROHME'), project_root()/'shared/data/crohme', project_root().parent/'shared/data/crohme']
    found = (f for p in places if p and Path(p).is_dir() for f in sorted(Path(p).iterdir()) if '.tar' in f.name or f.name == 'TrainINKML')
    return next(found, None)

@pytest.mark.skipif(_crohme() is None, reason='CROHME ink is not here (set MASK_MATCH_CROHME)')
def test_real_layouts_give_their_captions():
    picked = [item for item in read_sources(_crohme()) if 'Train' in item[0] and item[1].strip()][::20]
    inks = [parse_ink(data, name) for name, data in picked]
    share = np.mean([bool(matched_pieces(ink, canonical(ink.truth))) for ink in inks])
    assert len(inks) > 400 and share >= .97
    for ink in inks[::7]:
        for caption, traces in cutouts(ink, canonical(ink.truth)):
            assert is_valid(caption) and canonical(to_latex(caption)) == caption
            assert labels_of(caption) or traces
