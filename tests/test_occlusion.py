"What is hidden, how much of it, and what stays visible."
import numpy as np
import pytest, torch
from mask_match.config import smoke
from mask_match.data import Packed, pack
from mask_match.latex import Vocabulary
from mask_match.masking import hidden_share, hide_traces
from mask_match.occlusion import WAYS, holes, mean_of, occlude, steadiness, symbol_of, visible_cells
from mask_match.encoder import make_encoder
from mask_match.synth import synthesise

@pytest.fixture(scope='module')
def packed(tmp_path_factory):
    path = tmp_path_factory.mktemp('occlusion')/'ink.safetensors'
    pack(list(synthesise(24, 3, 'full', 'validation')), path, 'validation')
    return Packed(path)

def all_holes(packed, way, share, seed=0): return list(holes(packed, Vocabulary.field(), smoke(), way, share, seed))

@pytest.mark.parametrize('way', WAYS)
def test_about_the_asked_share_is_hidden_and_the_rest_is_as_it_was(packed, way):
    for share in (0.2, 0.5):
        got = []
        for batch, image, is_hidden in all_holes(packed, way, share):
            assert torch.equal(image[~is_hidden[:, None]], batch.image[~is_hidden[:, None]]) and not image[is_hidden[:, None]].any()
            got += hidden_share(batch.image, is_hidden).tolist()
        assert len(got) == 24 and np.mean(got) == pytest.approx(share, abs=0.12 if way == 'symbol' else 0.08) and max(got) < 1

@pytest.mark.parametrize('way', WAYS)
def test_nothing_is_hidden_at_no_share_and_the_same_at_the_same_seed(packed, way):
    for batch, image, _ in all_holes(packed, way, 0.): assert torch.equal(image, batch.image)
    one, again, other = (torch.cat([h[2].flatten() for h in all_holes(packed, way, 0.4, seed)]) for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)

def test_every_trace_has_the_symbol_that_names_it(packed):
    for i in range(len(packed)):
        owners = symbol_of(packed, i)
        assert len(owners) == len(packed.traces(i))
        for s in packed.symbols(i): assert {owners[t] for t in s['traces']} == {min(s['traces'])}

def test_groups_are_hidden_together():
    traces = [[np.array([[4., 4], [12, 4]], np.float32), np.array([[4., 12], [12, 12]], np.float32), np.array([[30., 4], [30, 12]], np.float32)]]
    image = torch.zeros(1, 1, 20, 40)
    image[0, 0, 4, 4:13] = image[0, 0, 12, 4:13] = 1.; image[0, 0, 4:13, 30] = 1.
    for seed in range(8):
        is_hidden = hide_traces(image, traces, 0.5, torch.Generator().manual_seed(seed), groups=[[0, 0, 1]])[1][0]
        assert bool(is_hidden[4, 8]) == bool(is_hidden[12, 8]) and bool(is_hidden[4, 8]) != bool(is_hidden[8, 30])

def test_a_cell_beside_a_hole_is_not_visible():
    image, is_hidden = torch.ones(1, 1, 16, 24), torch.zeros(1, 16, 24, dtype=torch.bool)
    is_hidden[0, 3, 9] = True
    made = visible_cells(image.masked_fill(is_hidden[:, None], 0), is_hidden, 8)
    assert made.tolist() == [[[True, False, True], [True, True, True]]]

def test_steadiness_falls_as_more_is_hidden(packed):
    torch.manual_seed(0)
    encoder = make_encoder(smoke().encoder).eval()
    cells = [mean_of(steadiness(encoder, None, packed, Vocabulary.field(), smoke(), 'block', share)['cells'])['value'] for share in (0., 0.2, 0.6)]
    assert cells[0] == pytest.approx(1, abs=1e-5) and 1 > cells[1] > cells[2]

def test_a_misspelt_way_is_named(packed):
    with pytest.raises(ValueError, match='strokes'): all_holes(packed, 'strokes', 0.2)

def test_the_mean_has_the_textbook_interval():
    made = mean_of([1., 2, 3, 4])
    assert made['value'] == 2.5 and made['ci95'][1] - 2.5 == pytest.approx(1.96*np.std([1, 2, 3, 4], ddof=1)/2)
