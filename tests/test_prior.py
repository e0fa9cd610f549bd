"The n-gram model against its formula and against sums; who is shown whose ink; what a decoder without eyes can know."
import math, random
from fractions import Fraction
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from mask_match.config import smoke
from mask_match.data import load_packed, pack
from mask_match.finetune import make_model
from mask_match.latex import EOS, PAD, SOS, UNK, Vocabulary
from mask_match.prior import (CONDITIONS, fit_ngram, forced, guess_row, guesses, language_bins, language_share, look, ngram_rows, next_word, partners,
                              read_shown, shown)
from mask_match.synth import synthesise

FIELD = Vocabulary.field()
LINES = st.lists(st.lists(st.integers(UNK, 8), max_size=6), min_size=1, max_size=8)

@settings(max_examples=150, deadline=None, derandomize=True)
@given(LINES, st.integers(1, 4), st.lists(st.integers(UNK, 9), max_size=5))
def test_probabilities_sum_to_one(lines, order, before):
    p = next_word(fit_ngram(lines, 10, order), [SOS, *before])
    assert math.isclose(p.sum(), 1, rel_tol=1e-12) and p[[PAD, SOS]].sum() == 0 and (np.delete(p, [PAD, SOS]) > 0).all()

def slow(lines, k, order, discounts, w, h):
    "Interpolated Kneser-Ney, word for word, in fractions."
    padded = [(SOS, *line, EOS) for line in lines]
    def count(gram):
        found = [(line, i) for line in padded for i in range(len(line) - len(gram) + 1) if line[i:i + len(gram)] == gram]
        return len(found) if len(gram) == order or gram[0] == SOS else len({line[i - 1] for line, i in found})
    lower = slow(lines, k, order, discounts, w, h[1:]) if h else Fraction(1, k - 2)
    after = {v: count((*h, v)) for v in range(EOS, k)}
    total, D = sum(after.values()), discounts[len(h)]
    return Fraction(max(after[w] - D, 0))/total + D*sum(n > 0 for n in after.values())/Fraction(total)*lower if total else lower

@settings(max_examples=40, deadline=None, derandomize=True)
@given(LINES, st.integers(1, 3), st.integers(EOS, 9), st.lists(st.integers(UNK, 9), max_size=3))
def test_the_formula(lines, order, w, before):
    model = fit_ngram(lines, 10, order)
    h = tuple([SOS, *before][max(0, len(before) + 2 - order):])
    wanted = slow(lines, 10, order, [Fraction(d).limit_denominator(10**6) for d in model.discounts], w, h)
    assert math.isclose(next_word(model, [SOS, *before])[w], wanted, rel_tol=1e-6)

def test_discounts_are_those_of_chen_and_goodman():
    model = fit_ngram([[4, 4, 5], [4, 5]], 6, 2)          # pairs: SOS-4, 4-5 and 5-EOS twice, 4-4 once; left neighbours: 4 has two, 5 and EOS one
    assert model.discounts == (2/4, 1/7)
    for wrong in ([], 0):
        with pytest.raises(ValueError, match='needs captions'): fit_ngram(wrong or [], 6, 2) if wrong == [] else fit_ngram([[4]], 6, 0)

def test_known_text_is_less_surprising_than_foreign_text(tmp_path):
    inks = list(synthesise(40, seed=3, grammar='small', split='test'))
    pack(inks, tmp_path/'test.safetensors', 'test')
    packed = load_packed(tmp_path, 'test')
    own, foreign = ([FIELD.encode(line) for line in lines] for lines in ([packed.caption(i) for i in range(len(packed))], [['x']]))
    near, far = (guesses(ngram_rows(fit_ngram(lines, len(FIELD), 3), FIELD, packed)) for lines in (own, foreign))
    assert near['perplexity'] < 5 < far['perplexity'] and near['tokens'] == far['tokens'] == sum(len(line) + 1 for line in own)
    assert near['symbol_accuracy'] > far['symbol_accuracy']

def test_guesses_in_closed_form():
    rows = [guess_row(str(i), [5, 6, EOS], [5, 5, EOS], [-math.log(16)]*3, FIELD) for i in range(10)]
    told = guesses(rows)
    assert math.isclose(told['perplexity'], 16) and math.isclose(told['bits'], 4) and told['token_accuracy'] == 2/3 and (told['n'], told['tokens']) == (10, 30)
    assert all(math.isclose(end, told[key]) for key, ends in told['ci95'].items() for end in ends), 'where nothing varies nothing is uncertain'
    brace, x = FIELD.encode(['{', 'x'])
    assert guess_row('a', [brace, x, EOS], [brace, brace, EOS], [0.]*3, FIELD) == dict(name='a', n=3, right=2, nll=0., symbols=1, symbols_right=0)

@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from('abcdef'), min_size=1, max_size=30), st.integers(0, 5))
def test_partners(words, seed):
    captions = [[w] for w in words]
    if 2*max(map(words.count, words)) > len(words):
        with pytest.raises(ValueError, match='more different ones'): partners(captions, seed)
        return
    found = partners(captions, seed)
    assert sorted(found) == list(range(len(words))) and all(words[i] != words[j] for i, j in enumerate(found)) and found == partners(captions, seed)

@pytest.fixture(scope='module')
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp('ink')
    pack(synthesise(20, seed=5, grammar='small', split='test'), folder/'test.safetensors', 'test')
    return load_packed(folder, 'test')

@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    return make_model(smoke(), FIELD).eval()

def test_conditions_show_what_they_say(packed):
    images = {name: image[:, :h, :w] for b in shown(packed, FIELD, smoke()) for name, image, (h, w) in zip(b.names, b.image, b.sizes.tolist())}
    other = partners([packed.caption(i) for i in range(len(packed))], 7)
    for condition in CONDITIONS:
        seen = set()
        for batch in shown(packed, FIELD, smoke(), condition, 7):
            for name, image, (h, w), tokens, n in zip(batch.names, batch.image, batch.sizes.tolist(), batch.tokens, batch.lengths):
                i = packed.names.index(name); seen.add(name)
                assert FIELD.decode(tokens[:n]) == packed.caption(i)
                if condition == 'blank': assert not image.any() and (h, w) == images[name].shape[1:]
                else: assert torch.equal(image[:, :h, :w], images[name if condition == 'true' else packed.names[other[i]]])
        assert seen == set(packed.names)
    with pytest.raises(ValueError, match='true, shuffled, blank'): next(shown(packed, FIELD, smoke(), 'dark'))

def test_shut_eyes_make_all_conditions_one(packed, model):
    torch.manual_seed(1)
    shut = make_model(smoke(), FIELD).eval()
    for layer in shut.decoder.layers: torch.nn.init.zeros_(layer.image.out.weight); torch.nn.init.zeros_(layer.image.out.bias)
    for blind, open_eyes in ((shut, False), (model, True)):
        rows = [forced(blind, FIELD, smoke(), packed, condition) for condition in CONDITIONS]
        assert [r['name'] for r in rows[0]] == packed.names and [r['n'] for r in rows[1]] == [len(packed.caption(i)) + 1 for i in range(len(packed))]
        same = [np.allclose([r['nll'] for r in rows[0]], [r['nll'] for r in other], atol=1e-3) for other in rows[1:]]
        assert same == [not open_eyes]*2

def test_a_blank_page_tells_its_size_and_nothing_else(packed, model):
    from mask_match.data import Batch
    def seen(height, width):
        sizes = torch.tensor([[33, 60]])
        with torch.no_grad(): features, maps, is_blank = look(model, Batch(torch.zeros(1, 1, height, width), sizes, torch.zeros(1, 0).long(), torch.zeros(1).long(), ['x'], []))
        return features[..., :5, :8], maps[..., :5, :8], is_blank
    (f, m, small), (g, n, large) = seen(40, 64), seen(96, 320)
    assert torch.allclose(f, g, atol=1e-5) and torch.allclose(m, n, atol=1e-5) and f.std((2, 3)).max() < 1e-5
    assert not small.any() and large.sum() == large.numel() - 5*8

def test_readings_are_scored_against_their_own_caption(packed, model):
    for condition in CONDITIONS:
        records = read_shown(model, FIELD, smoke(), packed, condition)
        assert [(r['name'], r['truth']) for r in records] == [(name, packed.caption(i)) for i, name in enumerate(packed.names)]
        assert all(r['prediction'] is not None and len(r['prediction']) <= smoke().decoder.max_tokens for r in records)

def test_share_of_language():
    k, row = 64, lambda bits: [dict(name=str(i), nll=10*bits*math.log(2), n=10) for i in range(5)]
    for language, reader, share in ((6, 0, 0), (3, 0, 1/2), (0, 0, 1), (5, 2, 1/4)):
        told = language_share(row(language), row(reader), k)
        assert math.isclose(told['rate'], share, abs_tol=1e-12) and np.allclose(told['ci95'], share) and told['n'] == 5
    assert language_share(row(3), row(6), k)['rate'] is None
    with pytest.raises(ValueError, match='different expressions'): language_share(row(1)[1:], row(1), k)

def test_bins_of_language():
    dice = random.Random(0)
    rows = [dict(name=str(i), nll=dice.random()*9, n=1 + i % 5) for i in range(41)]
    records = [dict(name=r['name'], truth=['x'], prediction=None if i == 3 else [dice.choice('xy')]) for i, r in enumerate(rows)] + [dict(name='gone', truth=['?'], prediction=None)]
    made = language_bins(rows, records)
    assert sum(b['n'] for b in made) == 41 and max(b['n'] for b in made) - min(b['n'] for b in made) <= 1
    assert round(sum(b['n']*b['rate'] for b in made)) == sum(r['prediction'] == r['truth'] for r in records)
    assert all(a['bits'][1] <= b['bits'][0] for a, b in zip(made, made[1:])) and all(b['ci95'][0] <= b['rate'] <= b['ci95'][1] for b in made)
