"The grammar automaton against the parser, against an independent enumeration, and inside the searches."
import itertools
from collections import defaultdict
from functools import cache
import numpy as np
import pytest, torch
from matplotlib.mathtext import MathTextParser
from mask_match.automaton import FORBIDDEN, LEVELS, Automaton, accepts, begin, follow, is_forbidden, random_captions
from mask_match.config import DecoderConfig
from mask_match.decoder import Decoder
from mask_match.grammar import GRAMMARS, sample_caption
from mask_match.latex import EOS, PAD, SOS, SYMBOLS, UNK, LatexError, Vocabulary, is_valid, parse, to_latex, unparse
from mask_match.search import beam_search, greedy

DIRECTIONS = pytest.mark.parametrize('reverse', [False, True])
STRUCTURE = ('{', '}', '^', '_', '\\frac', '\\sqrt')
EVERY = Vocabulary((*SYMBOLS, *STRUCTURE, "'", '\\limits'))

@pytest.fixture(scope='module')
def every() -> Automaton: return Automaton.of(EVERY)

def is_caption(tokens) -> bool:
    "The oracle, from the parser: canonical, no row empty, no base missing, no script double."
    def fine(tree): return len({r for r, _ in tree.parts}) == len(tree.parts) and all(row and all(t.symbol and fine(t) for t in row) for _, row in tree.parts)
    try: tree = parse(tokens)
    except LatexError: return False
    return fine(tree) and unparse(tree) == list(tokens)

@DIRECTIONS
@pytest.mark.parametrize('name', GRAMMARS)
def test_synthesised_captions_pass(every, name, reverse):
    rng = np.random.default_rng(7)
    captions = [sample_caption(name, rng) for _ in range(2000)]
    assert accepts(every, [EVERY.encode(t) for t in captions], reverse).all()

# the only captions of CROHME that are refused, and why
ODD = {'MfrDB3088': 'no tokens: a file of zero bytes', '103_em_8': 'two superscripts on one base', 'rit_4275_4': '\\vtop is no symbol'}

@DIRECTIONS
@pytest.mark.parametrize('split', ['train', 'test2013', 'test2014'])
def test_captions_of_crohme_pass(every, crohme, split, reverse):
    lines = [line.split('\t') for line in (crohme/'captions'/f'{split}.txt').read_text(encoding='utf-8').splitlines()]
    passes = accepts(every, [EVERY.encode(text.split()) for _, text in lines], reverse).tolist()
    refused = {key for (key, _), fine in zip(lines, passes) if not fine}
    assert len(lines) > 600 and refused == {key for key, text in lines if not is_caption(text.split())} and refused <= set(ODD)

@DIRECTIONS
@pytest.mark.parametrize('text', ['', '{ x }', 'x }', '{ x', '^ { 2 }', '_ { 2 } x', 'x ^ 2', 'x ^ { }', 'x ^ { 2 } ^ { 3 }', 'x _ { 2 } _ { 3 }', 'x ^ { 2 } _ { 1 }',
                                  '\\frac { 1 }', '\\frac { 1 } { }', '\\frac { } { 1 }', '\\frac 1 2', '\\sqrt x', '\\sqrt { }', '\\sqrt [ ] { x }', '\\sqrt [ 3 ] x',
                                  '\\sqrt [ ] ] { x }', '\\sqrt [ [ ] { x }', 'x \\limits', "x '", 'l o g', 'a l i m', '( x _ { l o g } )', 'x <unk>'])
def test_no_caption_is_refused(every, text, reverse):
    assert not accepts(every, [EVERY.encode(text.split())], reverse).any() and not is_caption(text.split())

@DIRECTIONS
@pytest.mark.parametrize('text', ['x', '( x ]', ') (', '[ x', '] x [', '\\{ x', 'x _ { 1 } ^ { 2 }', '\\frac { 1 } { 2 } _ { x }', '\\sqrt { x } _ { 1 } ^ { 2 }',
                                  '\\sqrt [ [ ] ] { x }', '\\sqrt [ [ ^ { ] } ] ] { x }', '\\sqrt [ \\sqrt [ 3 ] { x } ] { y }', '\\sqrt [ x ^ { [ } ] { y }',
                                  'l o \\log', 'l ^ { o } g', 'l o _ { 1 } g', 'l o l o', 'l i n', '\\log _ { 2 } x', 'x ^ { \\prime }', 'l l o'])
def test_a_caption_passes(every, text, reverse):
    ids = EVERY.encode(text.split())
    assert is_caption(text.split()) and accepts(every, [ids], reverse).all() and accepts(every, [ids], reverse, len(ids)).all()
    if len(ids) > 1: assert not accepts(every, [ids], reverse, len(ids) - 1).any()

@pytest.mark.parametrize('text,most', [('x { } ^ _ \\frac \\sqrt [ ]', 5), ('x { } \\frac', 8), ('x { } ^ _', 6), ('[ ] { } \\sqrt x', 6), ('l o g i m \\log', 5)])
def test_all_short_strings(text, most):
    words = text.split()
    small = Vocabulary(tuple(words))
    machine = Automaton.of(small)
    for n in range(most + 1):
        strings = list(itertools.product(words, repeat=n))
        truth = torch.tensor([is_caption(s) for s in strings])
        for reverse in (False, True): assert (accepts(machine, [small.encode(s) for s in strings], reverse) == truth).all()

def all_captions(symbols, owners, most) -> set:
    "All captions up to a length over these symbols and owners of groups, by recursion: a second grammar that knows no states."
    def joined(*parts): return {sum(pieces, ()) for pieces in itertools.product(*parts)}
    def sizes(total, parts): return [s for s in itertools.product(range(1, total), repeat=parts) if sum(s) == total]
    def pairs(row):
        depth = level = 0
        for token in row:
            depth += (token == '{') - (token == '}')
            level += 0 if depth else (token == '[') - (token == ']')
            if level < 0: return False
        return level == 0
    @cache
    def group(n): return {('{', *row, '}') for row in rows(n - 2)}
    @cache
    def base(n):
        made = {(s,) for s in symbols} if n == 1 else {('\\sqrt', *g) for g in group(n - 1) if '\\sqrt' in owners}
        for a, c in sizes(n - 1, 2):
            if '\\frac' in owners: made |= joined([('\\frac',)], group(a), group(c))
            if '\\sqrt' in owners and '[' in symbols: made |= joined([('\\sqrt',)], {('[', *row, ']') for row in rows(a - 2) if pairs(row)}, group(c))
        return made
    @cache
    def scripted(n):
        made = set(base(n))
        for mark in set('_^') & set(owners): made |= set().union(*(joined(base(a), [(mark,)], group(c)) for a, c in sizes(n - 1, 2)))
        if {'_', '^'} <= set(owners): made |= set().union(*(joined(base(a), [('_',)], group(c), [('^',)], group(d)) for a, c, d in sizes(n - 2, 3)))
        return made
    @cache
    def rows(n): return set(scripted(n)).union(*(joined(scripted(a), rows(c)) for a, c in sizes(n, 2))) if n > 0 else set()
    spelled = lambda row: any(row[i:i + 3] in (tuple('log'), tuple('lim')) for i in range(len(row)))
    return {row for n in range(1, most + 1) for row in rows(n) if not spelled(row)}

@DIRECTIONS
@pytest.mark.parametrize('symbols,owners,most', [('x', '^ _ \\frac \\sqrt', 11), ('x[]', '^ _ \\frac \\sqrt', 8), ('log', '^ \\sqrt', 7),
                                                 ('x', '^ \\frac', 12), ('x', '_ ^', 12), ('x', '^', 12), ('x', '\\frac', 16), ('x[]', '\\sqrt', 8), ('x[]', '\\sqrt _', 8)])
def test_masks_are_exact_for_any_room(symbols, owners, most, reverse):
    "A word is allowed if and only if some caption goes on with it and fits; also where the vocabulary lacks some structure."
    small = Vocabulary((*symbols, '{', '}', *owners.split()))
    machine, start, end = Automaton.of(small), *((EOS, SOS) if reverse else (SOS, EOS))
    shortest = defaultdict(lambda: [10**6]*len(small))
    for row in all_captions(symbols, owners.split(), most):
        assert is_caption(row)
        ids = [*small.encode(row[::-1] if reverse else row), end]
        for i, word in enumerate(ids): shortest[tuple(ids[:i])][word] = min(shortest[tuple(ids[:i])][word], len(row))
    for n in range(most + 1):
        heads = [head for head in shortest if len(head) == n]
        place = begin(machine, torch.full((len(heads),), start), most)
        for last in torch.tensor(heads).view(len(heads), n).unbind(1): place = follow(machine, place, last)
        truth = torch.tensor([shortest[head] for head in heads])
        assert (place[:, 2] == truth.amin(1) - n).all()                 # the fewest tokens that are still to come
        for room in range(most - n + 1):
            assert (is_forbidden(machine, place, room) == (truth > n + room))[place[:, 2] <= room].all()

@DIRECTIONS
@pytest.mark.parametrize('room', [1, 2, 7, 15, 40])
@pytest.mark.parametrize('structured', [False, True])
def test_random_walks_are_captions(every, room, structured, reverse):
    weights = torch.ones(len(EVERY))
    if structured: weights[EVERY.encode((*STRUCTURE, '[', ']'))] = 25.; weights[[SOS, EOS]] = 3.
    made = random_captions(every, 400, room, torch.Generator().manual_seed(room), reverse, weights)
    assert all(1 <= len(ids) <= room for ids in made) and accepts(every, made, not reverse, room).all()
    for ids in made[::8]: assert all(accepts(every, [ids], r, len(ids)).all() for r in (False, True))   # no more room is needed than they take
    drawn = MathTextParser('path')
    for i, tokens in enumerate(map(EVERY.decode, made)):
        assert is_valid(tokens) and is_caption(tokens)
        if i % 4 == 0: drawn.parse('$' + to_latex(tokens).replace('\\#', '\\# ') + '$')   # an outside reader; it only wants `\#` apart from a letter

@DIRECTIONS
def test_brackets_in_indices_need_no_more_room_than_they_take(every, reverse):
    "Walks over few words, most of them inside an index: whatever one direction writes, the other accepts in exactly that room."
    weights = torch.full((len(EVERY),), 1e-9)
    weights[EVERY.encode(('x', *STRUCTURE, '[', ']', '\\sqrt'))] = 1.
    weights[EVERY.encode(('[', ']'))] = 4.
    weights[[SOS, EOS]] = .02
    made = random_captions(every, 600, 24, torch.Generator().manual_seed(5), reverse, weights)
    assert sum(t.count('[') > 2 for t in map(EVERY.decode, made)) > 100
    for ids in made: assert is_caption(EVERY.decode(ids)) and all(accepts(every, [ids], r, len(ids)).all() for r in (False, True))

@pytest.mark.parametrize('word', sorted(SYMBOLS))
def test_every_symbol_may_stand_alone(every, word):
    for reverse in (False, True): assert accepts(every, [EVERY.encode([word])], reverse, 1).all()

@DIRECTIONS
@pytest.mark.parametrize('opening,closing', [('x ^ {', '}'), ('x _ {', '}'), ('\\sqrt {', '}'), ('\\frac {', '} { x }'), ('\\frac { x } {', '}'), ('\\sqrt [', '] { x }'), ('\\sqrt [ [', '] ] { x }')])
def test_depth_is_bounded_and_never_a_dead_end(every, opening, closing, reverse):
    deep = lambda n: EVERY.encode(opening.split()*n + ['x'] + closing.split()*n)
    n = LEVELS//2 if opening.count('[') == 2 else LEVELS
    assert accepts(every, [deep(n)], reverse).all() and not accepts(every, [deep(n + 1)], reverse).any()
    greedy_opener = torch.full((len(EVERY),), 1e-6)                     # walks that open whatever they may
    greedy_opener[EVERY.encode((*STRUCTURE, '[', ']'))] = 1.
    for ids in random_captions(every, 50, 150, torch.Generator().manual_seed(0), reverse, greedy_opener): assert is_caption(EVERY.decode(ids))

def test_words_without_a_place_are_never_written(every):
    place = begin(every, torch.tensor([SOS, EOS]), 9)
    never = [PAD, UNK, *EVERY.encode(["'", '\\limits'])]
    for word in ('x', '^', '{', '2', '}'):
        assert is_forbidden(every, place, 9)[:, never].all() and is_forbidden(every, place, 9)[[0, 1], [SOS, EOS]].all()
        place = follow(every, place, torch.tensor([EVERY.ids[word]]*2))

def test_a_vocabulary_without_structure_writes_plain_rows():
    for words in (('x', 'y'), ('x', 'y', '{', '^', '_'), ('x', '}', '\\frac', '\\sqrt', '[', ']')):
        plain = Vocabulary(words)
        machine, symbols = Automaton.of(plain), set(words) & SYMBOLS
        for reverse in (False, True):
            walks = random_captions(machine, 200, 6, torch.Generator().manual_seed(0), reverse)
            assert {plain.words[i] for ids in walks for i in ids} == symbols

def test_bad_input_is_named():
    with pytest.raises(ValueError, match='no word of this vocabulary is a symbol'): Automaton.of(Vocabulary(('{', '}', '\\frac')))
    with pytest.raises(ValueError, match='at least one token'): begin(Automaton.of(EVERY), torch.tensor([SOS]), 0)
    assert FORBIDDEN < 2**15 - 200 and len(EVERY) > 200

# --- inside the searches ---

def make(k, seed, b=3, sharpness=4.):
    "A decoder with random weights, and images of noise."
    torch.manual_seed(seed)
    decoder = Decoder(DecoderConfig(heads=2, layers=2, feedforward=32), k, 16, 2).eval()
    with torch.no_grad(): decoder.head.weight.mul_(sharpness)
    return decoder, (torch.randn(b, 16, 2, 4), None, torch.zeros(b, 2, 4, dtype=torch.bool))

@pytest.mark.parametrize('max_tokens', [1, 3, 8, 30])
@pytest.mark.parametrize('seed', range(4))
def test_searches_write_captions_only(every, seed, max_tokens):
    decoder, images = make(len(EVERY), seed, sharpness=1 + 3*seed)
    if seed == 3:                                                       # a decoder that only wants to open groups
        with torch.no_grad(): decoder.head.bias[EVERY.encode(STRUCTURE)] += 20.
    for both, length_penalty in ((True, 1.), (False, 0.)):
        found = beam_search(decoder, *images, beam=3, max_tokens=max_tokens, length_penalty=length_penalty, both_directions=both, grammar=every)
        for image in [*found, greedy(decoder, *images, max_tokens=max_tokens, grammar=every)]:
            assert image and all(h.finished and len(h.ids) <= max_tokens and is_caption(EVERY.decode(h.ids)) for h in image)

def test_a_wide_beam_finds_exactly_the_captions():
    small = Vocabulary(('x', 'y', '{', '}', '^'))
    decoder, images = make(len(small), 1)
    truth = {tuple(ids) for n in range(1, 6) for ids in itertools.product(range(4, 9), repeat=n) if is_caption(small.decode(ids))}
    for image in beam_search(decoder, *images, beam=400, max_tokens=5, grammar=Automaton.of(small)):
        assert {tuple(h.ids) for h in image} == truth and all(h.finished for h in image)
    free = beam_search(decoder, *images, beam=400, max_tokens=5)[0]     # and the scores are those of the free search
    scores = {tuple(h.ids): h.score for h in beam_search(decoder, *images, beam=400, max_tokens=5, grammar=Automaton.of(small))[0]}
    common = [h for h in free if tuple(h.ids) in scores and h.finished]
    assert common and max(abs(h.score - scores[tuple(h.ids)]) for h in common) < 1e-4

def test_one_beam_is_greedy_under_the_grammar(every):
    decoder, images = make(len(EVERY), 2, b=6, sharpness=8.)
    beams = beam_search(decoder, *images, beam=1, max_tokens=12, both_directions=False, grammar=every)
    for quick, (alone,) in zip(greedy(decoder, *images, max_tokens=12, grammar=every), beams): assert quick.ids == alone.ids

def test_an_image_does_not_depend_on_its_batch(every):
    decoder, images = make(len(EVERY), 5, b=6, sharpness=8.)
    together = beam_search(decoder, *images, beam=3, max_tokens=14, grammar=every)
    for i in range(6):
        alone, = beam_search(decoder, images[0][i:i + 1], None, images[2][i:i + 1], beam=3, max_tokens=14, grammar=every)
        assert [h.ids for h in alone] == [h.ids for h in together[i]]
