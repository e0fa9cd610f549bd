"The decoder's promises that would flood its lesson: every switch, odd grids, gradients, low precision."
import pytest, torch
from torch.nn import functional as F
from mask_match.config import DecoderConfig
from mask_match.coverage import exclusive_cumsum
from mask_match.decoder import Cells, Decoder, both_directions, lift, sequence_loss, sine_2d

def make(seed=0, k=20, d=32, s=3, **settings):
    "A decoder with no parameter at 0, so that every path counts."
    torch.manual_seed(seed)
    decoder = Decoder(DecoderConfig(**{**dict(heads=4, layers=3, feedforward=64, dropout=0.), **settings}), k, d, s).eval()
    for parameter in decoder.parameters():
        if not parameter.any(): torch.nn.init.normal_(parameter, std=.5)
    return decoder

def scene(b=2, d=32, s=3, h=3, w=5):
    is_pad = torch.zeros(b, h, w, dtype=torch.bool)
    if w > 2: is_pad[-1, :, -1] = True
    maps = torch.rand(b, s, h, w)*~is_pad[:, None]
    return torch.randn(b, d, h, w), maps/maps.sum((2, 3), keepdim=True), is_pad

def spell(decoder, images, rows):
    state, logits = decoder.start(*images), []
    for t in range(rows.shape[2]):
        step, state = decoder.step(state, rows[:, :, t])
        logits.append(step)
    return torch.stack(logits, 2)

@pytest.mark.parametrize('coverage', [True, False])
@pytest.mark.parametrize('switches', [{}, dict(use_gain=False), dict(use_bias=False), dict(use_gain=False, use_bias=False), dict(layers=1)])
@pytest.mark.parametrize('grid', [(3, 5), (1, 1), (1, 7)])
@torch.no_grad()
def test_step_by_step_equals_forward(coverage, switches, grid):
    decoder, images = make(coverage=coverage, **switches), scene(h=grid[0], w=grid[1])
    tokens = torch.randint(4, 20, (2, 6)); lengths = torch.tensor([6, 4]); tokens[1, 4:] = 0
    inputs, _ = both_directions(tokens, lengths)                       # both directions
    slow = decoder(*images, inputs).view(2, 2, 7, -1).transpose(0, 1)
    assert (spell(decoder, images, inputs.view(2, 2, 7).transpose(0, 1)) - slow).abs().max() < 1e-4

@torch.no_grad()
def test_step_takes_one_row_without_the_row_axis():
    decoder, images = make(), scene()
    logits, state = decoder.step(decoder.start(*images), torch.tensor([1, 2]))
    assert logits.shape == (2, 20) and torch.allclose(logits, decoder(*images, torch.tensor([[1], [2]]))[:, 0], atol=1e-5)
    assert state.time == 1

@torch.no_grad()
def test_maps_change_nothing_before_training_and_something_after():
    torch.manual_seed(0)
    new, images, tokens = Decoder(DecoderConfig(heads=4, layers=2, feedforward=64), 20, 32, 3).eval(), scene(), torch.randint(4, 20, (2, 5))
    assert torch.equal(new(*images, tokens), new(images[0], None, images[2], tokens))
    old = make()
    assert not torch.allclose(old(*images, tokens), old(images[0], None, images[2], tokens), atol=1e-3)

@torch.no_grad()
def test_untrained_coverage_changes_nothing():
    torch.manual_seed(0)
    covered, images, tokens = Decoder(DecoderConfig(heads=4, layers=3, feedforward=64), 20, 32, 3).eval(), scene(), torch.randint(4, 20, (2, 5))
    plain = Decoder(DecoderConfig(heads=4, layers=3, feedforward=64, coverage=False), 20, 32, 3).eval()
    plain.load_state_dict({k: v for k, v in covered.state_dict().items() if 'coverage' not in k})
    assert torch.equal(covered(*images, tokens), plain(*images, tokens))

@torch.no_grad()
def test_trained_coverage_changes_later_tokens_only():
    decoder, images, tokens = make(), scene(), torch.randint(4, 20, (2, 5))
    logits = decoder(*images, tokens)
    for layer in decoder.layers[1:]: layer.image.coverage.scale.zero_(); layer.image.coverage.conv.bias.zero_()
    changed = (decoder(*images, tokens) - logits).abs().amax((0, 2))
    assert (changed[1:] > 1e-4).all()

@torch.no_grad()
def test_causal_to_the_bit_in_bfloat16():
    decoder, images, tokens = make(), scene(), torch.randint(4, 20, (2, 9))
    other = tokens.clone(); other[:, 6:] = 5
    with torch.autocast('cpu', dtype=torch.bfloat16): a, b = decoder(*images, tokens), decoder(*images, other)
    assert a.dtype == torch.float32 and torch.equal(a[:, :6], b[:, :6]) and not torch.equal(a[:, 6:], b[:, 6:])

@torch.no_grad()
def test_padding_changes_nothing():
    decoder, images, tokens = make(), scene(), torch.randint(4, 20, (4, 5))
    more = [F.pad(x, (0, 3, 0, 2), value=v) for x, v in zip(images, (9., 0., True))]
    assert torch.allclose(decoder(*more, tokens), decoder(*images, tokens), atol=1e-5)

def test_every_parameter_and_the_inputs_get_a_gradient():
    decoder, (features, maps, is_pad) = make().train(), scene()
    features.requires_grad_(); maps.requires_grad_()
    inputs, targets = both_directions(torch.randint(4, 20, (2, 6)), torch.tensor([6, 6]))
    with torch.autocast('cpu', dtype=torch.bfloat16): loss = sequence_loss(decoder(features, maps, is_pad, inputs), targets, .1)
    loss.backward()
    for name, x in [*decoder.named_parameters(), ('features', features), ('maps', maps)]:
        assert x.grad is not None and x.grad.isfinite().all() and x.grad.abs().max() > 0, name

def test_both_directions_against_plain_lists():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(0, 9, (20,), generator=generator)
    rows = [torch.randint(4, 20, (n,), generator=generator).tolist() for n in lengths.tolist()]
    tokens = torch.tensor([r + [0]*(9 - len(r)) for r in rows])
    inputs, targets = (x.tolist() for x in both_directions(tokens, lengths))
    for i, r in enumerate(rows):
        tail = [0]*(9 - len(r))
        assert inputs[i] == [1] + r + tail and targets[i] == r + [2] + tail
        assert inputs[20 + i] == [2] + r[::-1] + tail and targets[20 + i] == r[::-1] + [1] + tail

def test_loss_ignores_what_stands_on_pads():
    logits, targets = torch.randn(2, 4, 9), torch.tensor([[5, 6, 2, 0], [7, 2, 0, 0]])
    other = logits.clone(); other[targets == 0] = 100.
    assert sequence_loss(logits, targets, .1) == sequence_loss(other, targets, .1)

def test_small_parts():
    assert torch.equal(sine_2d(2, 3, 8), sine_2d(5, 9, 8)[:2, :3]) and sine_2d(1, 1, 8).isfinite().all()
    x = torch.randn(2, 5, 3)
    assert torch.allclose(exclusive_cumsum(x, 1), x.cumsum(1) - x, atol=1e-6) and not exclusive_cumsum(x[:, :1], 1).any()
    assert lift(torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, dtype=torch.bool)).abs().max() < 1e-6
    with pytest.raises(ValueError, match='heads'): Decoder(DecoderConfig(heads=5), 20, 32, 3)
    assert Cells(DecoderConfig(use_gain=False, use_bias=False), 8, 2).bias is None
