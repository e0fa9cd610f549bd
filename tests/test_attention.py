import pytest, torch
from mask_match.attention import AttentionNet, compete, pool


def no_pad(b, h, w): return torch.zeros(b, h, w, dtype=torch.bool)


@pytest.mark.parametrize('slots', [1, 3, 8])
@pytest.mark.parametrize('shape', [(1, 1), (3, 17), (14, 56)])
def test_maps_are_distributions_over_valid_cells(slots, shape):
    torch.manual_seed(0)
    is_pad = torch.rand(4, *shape) < 0.4; is_pad[:, 0, 0] = False
    maps = AttentionNet(12, slots)(50*torch.randn(4, 12, *shape), is_pad)
    assert maps.shape == (4, slots, *shape) and (maps >= 0).all()
    assert torch.allclose(maps.sum((2, 3)), torch.ones(4, slots), atol=1e-5)
    assert not maps.masked_select(is_pad[:, None]).any()


def test_an_expression_without_valid_cells_gives_zeros_and_finite_gradients():
    features = torch.randn(2, 6, 3, 3, requires_grad=True)
    is_pad = no_pad(2, 3, 3); is_pad[1] = True
    net = AttentionNet(6, 2)
    maps = net(features, is_pad)
    assert not maps[1].any()
    net.pool(features, maps).square().sum().backward()
    assert features.grad.isfinite().all() and all(p.grad.isfinite().all() for p in net.parameters())


def test_padding_does_not_leak():
    torch.manual_seed(1)
    net, features = AttentionNet(6, 4), torch.randn(1, 6, 5, 7)
    large = 1e3*torch.randn(1, 6, 9, 11); large[:, :, :5, :7] = features
    is_pad = torch.ones(1, 9, 11, dtype=torch.bool); is_pad[:, :5, :7] = False
    assert torch.allclose(net(large, is_pad)[..., :5, :7], net(features, no_pad(1, 5, 7)), atol=1e-6)


def test_expressions_of_a_batch_do_not_see_each_other():
    net, features = AttentionNet(6, 4), torch.randn(3, 6, 5, 7)
    together = net(features, no_pad(3, 5, 7))
    assert torch.allclose(together[1:2], net(features[1:2], no_pad(1, 5, 7)), atol=1e-6)


def test_competition_never_brings_slots_closer_on_the_contested_cell():
    a = torch.zeros(1, 2, 1, 3); a[0, 0, 0, 0], a[0, 1, 0, 0], a[0, 1, 0, 1] = 3., 2., 2.
    maps, plain = compete(a, no_pad(1, 1, 3)), a.flatten(2).softmax(-1)
    assert maps[0, 1, 0, 0] < plain[0, 1, 0] and maps[0, 1, 0, 1] > plain[0, 1, 1]


def test_bfloat16_autocast_gives_float32_maps():
    with torch.autocast('cpu', torch.bfloat16):
        maps = AttentionNet(32, 4)(torch.randn(2, 32, 8, 32).bfloat16(), no_pad(2, 8, 32))
        vectors = pool(torch.randn(2, 32, 8, 32).bfloat16(), maps)
    assert maps.dtype == vectors.dtype == torch.float32
    assert torch.allclose(maps.sum((2, 3)), torch.ones(2, 4), atol=1e-5)


def test_pool_by_brute_force():
    features, maps = torch.randn(2, 5, 3, 4), torch.rand(2, 3, 3, 4)
    slow = torch.stack([torch.stack([sum(maps[b, s, i, j]*features[b, :, i, j] for i in range(3) for j in range(4)) for s in range(3)]) for b in range(2)])
    assert torch.allclose(pool(features, maps), slow, atol=1e-5)


def test_wrong_shapes_name_the_cure():
    with pytest.raises(ValueError, match='AttentionNet\\(width=5'): AttentionNet(4, 2)(torch.zeros(1, 5, 2, 2), no_pad(1, 2, 2))
    with pytest.raises(ValueError, match='cell_pad'): AttentionNet(4, 2)(torch.zeros(1, 4, 2, 2), no_pad(1, 2, 3))
