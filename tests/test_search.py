"Searches against slower ones: brute force over all readings, one image at a time, and the edge cases."
import itertools, math
import pytest, torch
from mask_match.config import DecoderConfig
from mask_match.decoder import Decoder
from mask_match.search import beam_search, greedy, score_readings

def make(k=7, seed=0, b=3, sharpness=4., **settings):
    torch.manual_seed(seed)
    decoder = Decoder(DecoderConfig(**{**dict(heads=2, layers=2, feedforward=32), **settings}), k, 16, 2).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            if not parameter.any(): torch.nn.init.normal_(parameter, std=.3)
        decoder.head.weight.mul_(sharpness)
    is_pad = torch.zeros(b, 2, 4, dtype=torch.bool)
    is_pad[-1, :, 3:] = True
    maps = torch.rand(b, 2, 2, 4)*~is_pad[:, None]
    return decoder, (torch.randn(b, 16, 2, 4), maps/maps.sum((2, 3), keepdim=True), is_pad)

@torch.no_grad()
def likelihoods(decoder, images, i, readings, reverse):
    "Log-probabilities of complete readings of one length, from `forward` alone."
    start, rows = (2, [ids[::-1] for ids in readings]) if reverse else (1, readings)
    logp = decoder(*(x[i:i + 1] for x in images), torch.tensor([[start, *ids] for ids in rows])).log_softmax(-1)
    return logp.gather(2, torch.tensor([[*ids, 3 - start] for ids in rows])[..., None]).sum((1, 2)).tolist()

def likelihood(decoder, images, i, ids, reverse): return likelihoods(decoder, images, i, [ids], reverse)[0]

@pytest.mark.parametrize('coverage', [True, False])
@pytest.mark.parametrize('length_penalty', [0., 1.])
def test_wide_beam_finds_the_best_of_all_readings(coverage, length_penalty):
    decoder, images = make(coverage=coverage, seed=int(length_penalty))
    for i, hypotheses in enumerate(beam_search(decoder, *images, beam=128, max_tokens=4, length_penalty=length_penalty)):
        truth = {}
        for n in range(4):
            readings = list(itertools.product((4, 5, 6), repeat=n))
            both = zip(*(likelihoods(decoder, images, i, readings, reverse) for reverse in (False, True)))
            truth.update((ids, sum(values)/(n + 1)**length_penalty) for ids, values in zip(readings, both))
        short = [h for h in hypotheses if len(h.ids) < 4]
        assert {tuple(h.ids) for h in short} == set(truth)
        assert max(abs(h.score - truth[tuple(h.ids)]) for h in short) < 1e-4
        assert tuple(short[0].ids) == max(truth, key=truth.get)

@pytest.mark.parametrize('seed', range(3))
def test_narrow_beam_tells_the_truth_about_what_it_returns(seed):
    decoder, images = make(k=12, seed=seed, sharpness=8.)
    for i, hypotheses in enumerate(beam_search(decoder, *images, beam=3, max_tokens=7)):
        assert len({tuple(h.ids) for h in hypotheses}) == len(hypotheses) > 0
        order = [(h.finished, h.score) for h in hypotheses]
        assert order == sorted(order, reverse=True)
        for h in hypotheses:
            assert not set(h.ids) & {0, 1, 2, 3} and len(h.ids) <= 7
            assert abs(h.other - likelihood(decoder, images, i, h.ids, not h.reverse)) < 1e-4
            if h.finished: assert abs(h.log_probability - likelihood(decoder, images, i, h.ids, h.reverse)) < 1e-4
            else: assert len(h.ids) == 7 and h.log_probability > likelihood(decoder, images, i, h.ids, h.reverse)

@pytest.mark.parametrize('both', [True, False])
def test_an_image_does_not_depend_on_its_batch(both):
    decoder, images = make(k=12, seed=5, b=6, sharpness=8.)
    together = beam_search(decoder, *images, beam=3, max_tokens=9, both_directions=both)
    for i in range(6):
        alone, = beam_search(decoder, *(x[i:i + 1] for x in images), beam=3, max_tokens=9, both_directions=both)
        assert [h.ids for h in alone] == [h.ids for h in together[i]]
        assert max(abs(a.score - c.score) for a, c in zip(alone, together[i])) < 1e-4

def test_greedy_is_a_beam_of_one_and_repeats_itself():
    decoder, images = make(k=12, seed=1, b=6, sharpness=8.)
    quick, beams = greedy(decoder, *images, max_tokens=9), beam_search(decoder, *images, beam=1, max_tokens=9, both_directions=False)
    assert quick == greedy(decoder, *images, max_tokens=9)
    for a, (c,) in zip(quick, beams): assert a.ids == c.ids and a.finished == c.finished and abs(a.score - c.score) < 1e-4 and c.other is None

def always(decoder, word):
    "Make the decoder want one word, whatever it sees."
    with torch.no_grad(): decoder.head.weight.zero_(); decoder.head.bias.zero_(); decoder.head.bias[word] = 9.
    return decoder

def test_no_end_before_max_tokens_is_flagged():
    decoder, images = make()
    for h in greedy(always(decoder, 5), *images, max_tokens=4): assert h.ids == [5]*4 and not h.finished
    best = beam_search(decoder, *images, beam=1, max_tokens=4)[0][0]
    assert best.ids == [5]*4 and not best.finished

def test_an_end_right_after_max_tokens_counts():
    checked = 0
    for seed in range(4):
        decoder, images = make(k=12, seed=seed, sharpness=8.)
        for i, free in enumerate(greedy(decoder, *images, max_tokens=12)):
            if not free.finished or not free.ids: continue
            exact = greedy(decoder, *images, max_tokens=len(free.ids))[i]
            assert exact.finished and exact.ids == free.ids and abs(exact.score - free.score) < 1e-4
            checked += 1
    assert checked

def test_an_empty_reading_is_possible():
    decoder, images = make()
    assert all(h.ids == [] and h.finished for h in greedy(always(decoder, 2), *images, max_tokens=4))
    assert all(h[0].ids == [] and math.isfinite(h[0].score) for h in beam_search(decoder, *images, beam=2, max_tokens=4))

def test_score_readings_in_pieces():
    decoder, images = make(k=12, b=4)
    readings = [[[4, 5, 6], [7]], [], [[]], [[8]*9, [4, 5], [11]]]
    memory = decoder.memory(*images)
    for reverse in (False, True):
        whole = score_readings(decoder, memory, readings, reverse)
        for a, c in zip(whole, score_readings(decoder, memory, readings, reverse, cells=1)): assert a == pytest.approx(c, abs=1e-4)
        for i, row in enumerate(readings): assert whole[i] == pytest.approx([likelihood(decoder, images, i, ids, reverse) for ids in row], abs=1e-4)

def test_wider_than_the_vocabulary_and_without_maps():
    decoder, (features, _, is_pad) = make()
    hypotheses = beam_search(decoder, features, None, is_pad, beam=20, max_tokens=2)
    assert all(math.isfinite(h.score) for image in hypotheses for h in image)
