import copy, math
from types import SimpleNamespace
import numpy as np, pytest, torch
from torch import nn
import mask_match.attend as attend
from mask_match.attend import (Attender, Predictor, blank_loss, diversity_loss, hidden_cells, ink_mass, match_loss, predict_loss, retained_features,
                               sharpness_loss, standardise, step)
from mask_match.attention import AttentionNet
from mask_match.config import AttendConfig

TERMS = ('match', 'predict', 'diversity', 'sharpness', 'blank')


def generator(seed=0): return torch.Generator().manual_seed(seed)

class Tiny(nn.Sequential):
    stride, width = 8, 16
    def __init__(self): super().__init__(nn.Conv2d(1, 16, 8, 8), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout2d(0.2), nn.Conv2d(16, 16, 3, padding=1))

def make(**changes):
    torch.manual_seed(0)
    return Attender(Tiny(), AttentionNet(16, 3), AttendConfig(slots=3, **changes))

@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    image, traces = torch.zeros(4, 1, 32, 64), []
    for b in range(4):
        ys, xs = rng.integers(3, 28, 5), rng.integers(2, 40, 5)
        for y, x in zip(ys, xs): image[b, 0, y:y + 2, x:x + 12] = 1
        traces.append([np.stack([np.linspace(x, x + 12, 8), np.full(8, y + 1.)], 1).astype(np.float32) for y, x in zip(ys, xs)])
    return SimpleNamespace(image=image, sizes=torch.tensor([[32, 60], [30, 64], [32, 64], [32, 56]]), traces=traces, names=list('abcd'),
                           groups=[np.array([0, 0, 2, 2, 4])]*4)


def test_match_loss_known_values():
    z = torch.randn(6, 3, 12, generator=generator())
    assert match_loss(z - z.mean(0), z) < 1e-6 and abs(match_loss(-z + z.mean(0), z) - 2) < 1e-5
    assert abs(match_loss(torch.ones(6, 3, 12), torch.ones(6, 3, 12)) - 1) < 1e-6          # collapse earns nothing
    assert abs(match_loss(torch.ones(6, 3, 12), torch.ones(6, 3, 12), kind='infonce') - math.log(18)) < 1e-5
    with pytest.raises(ValueError, match='cosine, infonce'): match_loss(z, z, kind='l2')

def test_infonce_by_brute_force():
    a, b = torch.randn(3, 2, 5, generator=generator(1)), torch.randn(3, 2, 5, generator=generator(2))
    u, v = (x.reshape(6, 5) / x.reshape(6, 5).norm(dim=1, keepdim=True) for x in (a, b))
    slow = sum(-math.log(math.exp(u[i] @ v[i]/0.3) / sum(math.exp(u[i] @ v[j]/0.3) for j in range(6))) for i in range(6))/6
    assert match_loss(a, b, kind='infonce', temperature=0.3).item() == pytest.approx(slow, abs=1e-4)

def test_predict_loss_known_values():
    features, is_ink = torch.randn(2, 5, 4, 6, generator=generator()), torch.rand(2, 4, 6, generator=generator()) < 0.6
    target = standardise(features, is_ink)
    assert predict_loss(3*target, target, is_ink) < 1e-6 and abs(predict_loss(-target, target, is_ink) - 2) < 1e-5
    assert predict_loss(target, target, torch.zeros_like(is_ink)) == 0
    assert abs(predict_loss(features, standardise(torch.full_like(features, 7.), is_ink), is_ink) - 1) < 1e-6
    assert torch.allclose(standardise(5*features + 3, is_ink), target, atol=1e-3)

def test_diversity_by_brute_force():
    maps = torch.rand(2, 4, 3, 5, generator=generator())
    slow = np.mean([torch.cosine_similarity(maps[b, i].flatten(), maps[b, j].flatten(), dim=0).item() for b in range(2) for i in range(4) for j in range(4) if i != j])
    assert diversity_loss(maps).item() == pytest.approx(slow, abs=1e-5) and abs(diversity_loss(maps[:, :1])) < 1e-6

def test_sharpness_and_blank_known_values():
    is_pad = torch.zeros(1, 2, 8, dtype=torch.bool); is_pad[..., 4:] = True
    uniform = (~is_pad)[:, None] / 8.
    hot = torch.zeros(1, 1, 2, 8); hot[..., 0, 0] = 1
    assert abs(sharpness_loss(uniform, is_pad) - 1) < 1e-5 and abs(sharpness_loss(hot, is_pad)) < 1e-6
    is_ink = torch.zeros(1, 2, 8, dtype=torch.bool); is_ink[:, 0, :4] = True
    assert abs(blank_loss(uniform, is_ink) - math.log(2)) < 1e-6 and abs(blank_loss(hot, is_ink)) < 1e-6 and ink_mass(uniform, is_ink).item() == 0.5

@pytest.mark.parametrize('loss', [lambda m: diversity_loss(m), lambda m: sharpness_loss(m, torch.zeros(2, 4, 5, dtype=torch.bool)), lambda m: blank_loss(m, torch.ones(2, 4, 5, dtype=torch.bool))])
def test_losses_have_finite_gradients_at_zeros_and_stay_float32_in_autocast(loss):
    maps = torch.zeros(2, 3, 4, 5); maps[..., 0, 0] = 1; maps.requires_grad_()
    with torch.autocast('cpu', torch.bfloat16): value = loss(maps)
    assert value.dtype == torch.float32 and torch.autograd.grad(value, maps)[0].isfinite().all()

def test_retained_features_is_1_for_equal_and_small_for_unrelated():
    a, b, cells = torch.randn(2, 30, 6, 6, generator=generator()), torch.randn(2, 30, 6, 6, generator=generator(1)), torch.ones(2, 6, 6, dtype=torch.bool)
    assert retained_features(a, a, cells, cells) == 1
    assert retained_features(a, b, cells, cells) == pytest.approx(0.16, abs=0.06)          # P(N(0,1) > 1)

def test_hidden_cells_need_half_their_ink_hidden():
    image = torch.zeros(1, 1, 8, 32); image[..., 2:4, :] = 1
    is_hidden = torch.zeros(1, 8, 32, dtype=torch.bool); is_hidden[..., 5:20] = True
    assert hidden_cells(image, is_hidden, 8).tolist() == [[[False, True, True, False]]]

def test_predictor_cannot_peek():
    torch.manual_seed(0)
    net, x, is_hidden = Predictor(16), torch.randn(2, 16, 5, 9), torch.rand(2, 5, 9) < 0.4
    assert torch.equal(net(x, is_hidden), net(x + 9*is_hidden[:, None], is_hidden))


@pytest.mark.parametrize('where', ['attention', 'random', 'stroke', 'symbol'])
@pytest.mark.parametrize('match', ['cosine', 'infonce'])
def test_a_step_trains_the_student_only(batch, where, match):
    model = make(where=where, match=match)
    loss, logs = step(model, batch, 0.5, generator())
    loss.backward()
    assert loss.isfinite() and set(TERMS) <= set(logs) and {'ratio', 'hidden', 'mass_on_ink', 'overlap', 'cosine', 'retained', 'spread'} <= set(logs)
    for name, p in model.named_parameters():
        if name.startswith('teacher'): assert p.grad is None and not p.requires_grad, name
        else: assert p.grad is not None and p.grad.isfinite().all(), name
    assert model.encoder[0].weight.grad.abs().sum() > 0 and model.attention.query.grad.abs().sum() > 0

@pytest.mark.parametrize('name', TERMS)
def test_weight_0_switches_a_term_off_without_computing_it(batch, name, monkeypatch):
    model = make(**{f'{name}_weight': 0.})
    monkeypatch.setattr(attend, 'health', lambda *a: {})                                     # the health log uses some of the losses, too
    def forbidden(*a, **k): raise AssertionError(f'{name} was computed')
    monkeypatch.setattr(attend, f'{name}_loss', forbidden)
    _, logs = step(model, batch, 0.5, generator())
    assert name not in logs and set(TERMS) - {name} <= set(logs)

def test_the_loss_is_the_weighted_sum(batch):
    weights = dict(match_weight=0.5, predict_weight=2., diversity_weight=0.3, sharpness_weight=0.1, blank_weight=0.7)
    loss, logs = step(make(**weights), batch, 0.3, generator())
    assert loss.item() == pytest.approx(sum(weights[f'{n}_weight']*logs[n].item() for n in TERMS), abs=1e-5)

def test_equal_generators_give_equal_losses(batch):
    model = make(); model.eval()
    a, b, c = (step(model, batch, 0.5, generator(s))[0].item() for s in (1, 1, 2))
    assert a == b and a != c

def test_autocast_gives_nearly_the_same_loss(batch):
    model = make(); model.eval()
    exact, _ = step(model, batch, 0.5, generator())
    with torch.autocast('cpu', torch.bfloat16): rough, logs = step(model, batch, 0.5, generator())
    assert rough.dtype == torch.float32 and rough.item() == pytest.approx(exact.item(), abs=0.05)

def test_ratio_follows_the_curriculum_and_the_hidden_share_follows_the_ratio(batch):
    model = make(where='random')
    for progress in (0., 0.5, 1.):
        _, logs = step(model, batch, progress, generator())
        assert logs['ratio'] == pytest.approx(0.1 + 0.5*progress) and abs(float(logs['hidden']) - logs['ratio']) < 0.06

def test_the_teacher_is_a_moving_average_without_dropout():
    model = make()
    with torch.no_grad():
        for p in (*model.encoder.parameters(), *model.attention.parameters()): p.add_(1.)
    before = copy.deepcopy(model.teacher_encoder[0].weight)
    model.update_teacher(1.); assert torch.equal(model.teacher_encoder[0].weight, before)
    model.update_teacher(0.9); assert torch.allclose(model.teacher_encoder[0].weight, before + 0.1, atol=1e-6)
    model.update_teacher(0.)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(model.teacher_attention.parameters(), model.attention.parameters()))
    model.train(); x = torch.rand(3, 1, 32, 64)
    assert torch.equal(model.teacher_encoder(x), model.teacher_encoder(x))

def test_the_state_survives_saving(batch):
    a, b = make(), make()
    step(a, batch, 0.5, generator())[0].backward()
    a.update_teacher(0.5)
    b.load_state_dict(a.state_dict()); a.eval(); b.eval()
    assert step(a, batch, 0.5, generator())[0] == step(b, batch, 0.5, generator())[0]

def test_one_expression_and_a_blank_one_are_survived(batch):
    one = SimpleNamespace(image=torch.cat([batch.image[:1], torch.zeros(1, 1, 32, 64)]), sizes=batch.sizes[:2], traces=[batch.traces[0], []])
    for b in (one, SimpleNamespace(image=one.image[:1], sizes=one.sizes[:1], traces=one.traces[:1])):
        model = make(); loss, _ = step(model, b, 1., generator()); loss.backward()
        assert loss.isfinite() and all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())

def test_training_puts_attention_on_ink(batch):
    model = make(); optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 3e-3)
    logs = []
    for i in range(24):
        loss, log = step(model, batch, i/24, generator(i))
        optimizer.zero_grad(); loss.backward(); optimizer.step(); model.update_teacher(0.9)
        logs.append(float(log['mass_on_ink']))
    assert logs[-1] > logs[0] + 0.15

def test_guided_hiding_goes_where_the_teacher_looks(batch):
    maps = torch.zeros(4, 3, 4, 8)
    maps[..., :4] = 1/16  # all attention on the left half
    def share(where, columns):
        is_hidden = torch.stack([make(where=where).hide(batch, 0.5, maps, generator(seed))[1].flatten(1) for seed in range(8)]).view(8, 4, *batch.image.shape[-2:])
        ink = (batch.image[:, 0] > 0.5)[..., columns].expand(8, -1, -1, -1)
        return is_hidden[..., columns][ink].float().mean()
    left, right = slice(0, 32), slice(32, 64)
    assert share('attention', left) > 2*share('attention', right)
    assert share('random', left) < 1.5*share('random', right)

def test_symbols_are_hidden_as_wholes():
    image, rows = torch.zeros(1, 1, 32, 64), (3, 10, 17, 24)
    for y in rows: image[0, 0, y:y + 2, 4:44] = 1
    traces = [np.stack([np.linspace(4, 44, 8), np.full(8, y + 1.)], 1).astype(np.float32) for y in rows]
    page = SimpleNamespace(image=image, sizes=torch.tensor([[32, 64]]), traces=[traces], groups=[np.array([0, 0, 2, 2])])
    def gone(where, seed):
        hidden = make(where=where).hide(page, 0.5, None, generator(seed))[1]
        return [bool(hidden[0, y, 10]) for y in rows]
    of_symbols, of_traces = ([gone(where, seed) for seed in range(12)] for where in ('symbol', 'stroke'))
    assert all(a == b != c == d for a, b, c, d in of_symbols)
    assert any(a != b for a, b, *_ in of_traces)                                             # whole traces do come apart
