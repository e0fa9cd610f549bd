"Losses without labels: oracles, invariances and gradients beyond those on the page."
import math

import pytest
import torch
from torch.nn import functional as F

from mask_match.contrast import alignment, alpha_req, barlow_twins, dense_info_nce, effective_rank, nt_xent, uniformity, vicreg


def pair(seed, b=8, d=6):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(b, d, generator=generator), torch.randn(b, d, generator=generator)


@pytest.mark.parametrize('n', [1, 2, 7, 64])
@pytest.mark.parametrize('temperature', [0.05, 0.2, 1.])
def test_nt_xent_of_identical_embeddings(n, temperature):
    z = torch.full((n, 5), 0.3)
    torch.testing.assert_close(nt_xent(z, z, temperature), torch.tensor(math.log(2*n - 1)))


def test_nt_xent_brute_force():
    z1, z2 = pair(0)
    z = F.normalize(torch.cat([z1, z2]).double(), dim=1)
    expected = 0.
    for i in range(16):
        others = torch.tensor([j for j in range(16) if j != i])
        expected += torch.logsumexp(z[others] @ z[i] / 0.2, 0) - z[(i + 8) % 16] @ z[i] / 0.2
    torch.testing.assert_close(nt_xent(z1, z2, 0.2).double(), expected / 16, atol=1e-5, rtol=1e-5)


def test_self_similarity_is_no_candidate():
    "A loss whose self-similarity were 0 instead of -inf would be log(1 + 2 ...) here, never 0."
    z = torch.tensor([[1., 0.]])
    assert nt_xent(z, z, 0.1) == 0


@pytest.mark.parametrize('loss', [nt_xent, barlow_twins, vicreg])
def test_views_can_be_swapped_and_expressions_reordered(loss):
    z1, z2 = pair(1)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(loss(z1, z2), loss(z2, z1))
    torch.testing.assert_close(loss(z1, z2), loss(z1[order], z2[order]))
    assert not torch.isclose(loss(z1, z2), loss(z1, z2[order]))


@pytest.mark.parametrize('loss', [nt_xent, barlow_twins, vicreg])
@pytest.mark.parametrize('b', [1, 2, 8])
def test_gradients_are_finite_even_when_collapsed(loss, b):
    for z in (torch.zeros(b, 4), torch.ones(b, 4), torch.randn(b, 4)):
        z1, z2 = z.clone().requires_grad_(), z.clone().requires_grad_()
        loss(z1, z2).backward()
        assert torch.isfinite(z1.grad).all() and torch.isfinite(z2.grad).all()


@pytest.mark.parametrize('loss', [nt_xent, barlow_twins, vicreg, alignment, lambda a, b: uniformity(a),
                                  lambda a, b: dense_info_nce(a, b, torch.zeros(len(a), dtype=torch.long))])
def test_float32_inside_autocast(loss):
    z1, z2 = pair(3)
    plain = loss(z1, z2)
    with torch.autocast('cpu', torch.bfloat16): inside = loss(z1, z2)
    assert inside.dtype == torch.float32 and torch.equal(plain, inside)
    assert loss(z1.bfloat16(), z2.bfloat16()).dtype == torch.float32


def test_barlow_against_loops():
    z1, z2 = pair(4)
    u1, u2 = ((z - z.mean(0)) / z.std(0, correction=0) for z in (z1, z2))
    expected = 0.
    for i in range(6):
        for j in range(6):
            c = (u1[:, i] * u2[:, j]).mean()
            expected += (1 - c)**2 if i == j else 0.01 * c**2
    torch.testing.assert_close(barlow_twins(z1, z2, 0.01), expected, atol=1e-4, rtol=1e-4)


def test_vicreg_against_numpy_style_loops():
    z1, z2 = pair(5)
    expected = 25 * ((z1 - z2)**2).sum() / 48
    for z in (z1, z2):
        cov = torch.cov(z.T)
        expected = expected + sum(max(0., 1 - math.sqrt(cov[j, j] + 1e-4)) for j in range(6)) / 6 * 12.5
        expected = expected + sum(cov[i, j]**2 for i in range(6) for j in range(6) if i != j) / 6
    torch.testing.assert_close(vicreg(z1, z2), expected)


def test_dense_leaves_out_only_doubles():
    c1, c2 = pair(6, 5)
    expression, place = torch.tensor([0, 0, 1, 1, 2]), torch.tensor([4, 4, 4, 5, 4])    # rows 0 and 1 are doubles; the same place elsewhere is a rival
    similarity = F.normalize(torch.cat([c1, c2]), dim=1) @ F.normalize(torch.cat([c1, c2]), dim=1).T / 0.2
    losses = []
    for i in range(10):
        left_out = {i} | {j for j in range(10) if {i % 5, j % 5} == {0, 1}}
        rivals = [j for j in range(10) if j not in left_out]
        losses.append(torch.logsumexp(similarity[i, rivals], 0) - similarity[i, (i + 5) % 10])
    torch.testing.assert_close(dense_info_nce(c1, c2, expression, 0.2, place), torch.stack(losses).mean(), atol=1e-5, rtol=1e-5)


def test_dense_of_identical_cells():
    c, zero = torch.ones(6, 3), torch.zeros(6, dtype=torch.long)
    torch.testing.assert_close(dense_info_nce(c, c, zero, 0.1), torch.tensor(math.log(11.)))
    torch.testing.assert_close(dense_info_nce(c, c, zero, 0.1, torch.zeros(6)), torch.tensor(0.))    # all doubles: only the partner is left


def test_dense_without_matches_has_a_gradient():
    c = torch.zeros(0, 3, requires_grad=True)
    loss = dense_info_nce(c, c, torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss == 0 and c.grad.shape == (0, 3)


def test_health_of_extremes():
    assert effective_rank(torch.zeros(10, 4)) == 1
    torch.testing.assert_close(effective_rank(torch.cat([torch.eye(4), -torch.eye(4)])), torch.tensor(4.))
    torch.testing.assert_close(uniformity(torch.ones(1, 3)), torch.tensor(0.))


@pytest.mark.parametrize('shape', [(30, 200), (200, 30)])
def test_effective_rank_from_either_gram_matrix(shape):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(7))
    p = torch.linalg.svdvals(x - x.mean(0))
    p = p / p.sum()
    torch.testing.assert_close(effective_rank(x), torch.exp(-(p * p.clamp(min=1e-12).log()).sum()), atol=1e-2, rtol=1e-3)


def test_alpha_is_free_of_scale_and_rotation():
    generator = torch.Generator().manual_seed(8)
    x = torch.randn(500, 40, generator=generator, dtype=torch.double) * torch.arange(1, 41)**-0.7
    turn = torch.linalg.qr(torch.randn(40, 40, generator=generator, dtype=torch.double))[0]
    torch.testing.assert_close(alpha_req(x, (2, 30)), alpha_req(5 * x @ turn + 3, (2, 30)), atol=1e-4, rtol=1e-4)


def test_alpha_says_what_is_wrong():
    with pytest.raises(ValueError, match='give more features'): alpha_req(torch.randn(3, 10), (3, 50))
