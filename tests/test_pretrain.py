"Stage 1: switches, empty images, precision, determinism, and that geometry decides the pairs."
import dataclasses
from types import SimpleNamespace

import pytest
import torch

from mask_match.config import smoke
from mask_match.encoder import make_encoder
from mask_match.pretrain import Pretrainer, pool_ink, sample_matches, step

CONFIG = smoke().pretrain


def make(**changes):
    torch.manual_seed(0)
    return Pretrainer(make_encoder(smoke().encoder), dataclasses.replace(CONFIG, **changes))


def views(b=3, height=32, width=96, shift=0., share=0.05):
    "Random dots; view 2 is view 1 moved right by `shift` pixels."
    generator = torch.Generator().manual_seed(5)
    first = (torch.rand(b, 1, height, width, generator=generator) < share).float()
    second = torch.roll(first, int(shift), -1)
    affine = torch.tensor([[[1., 0, 0], [0, 1, 0]], [[1., 0, shift], [0, 1, 0]]]).repeat(b, 1, 1, 1)
    return SimpleNamespace(image=torch.stack([first, second], 1), sizes=torch.tensor([[[height, width]] * 2] * b), affine=affine, names=['x'] * b)


def seeded(): return torch.Generator().manual_seed(1)


@pytest.mark.parametrize('local_weight', [0., 0.3, 1.])
@pytest.mark.parametrize('global_loss', ['ntxent', 'barlow', 'vicreg'])
def test_every_parameter_learns(local_weight, global_loss):
    "Every parameter has a gradient: data-parallel training waits forever for one that has none."
    model = make(local_weight=local_weight, global_loss=global_loss)
    with torch.autocast('cpu', torch.bfloat16): loss, logs = step(model, views(), 0.5, seeded())
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert loss.dtype == torch.float32 and not any(torch.is_tensor(v) and v.requires_grad for v in logs.values())
    assert ('global' in logs) == (local_weight < 1) and ('local' in logs) == (local_weight > 0)


@pytest.mark.parametrize('local_weight', [0.6, 1.])
def test_blank_images_do_not_break_it(local_weight):
    batch = views(b=2)
    batch.image.zero_()
    model = make(local_weight=local_weight)
    loss, logs = step(model, batch, 0., seeded())
    loss.backward()
    assert torch.isfinite(loss) and logs['matched_cells'] == 0
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_one_expression():
    loss, _ = step(make(), views(b=1), 0., seeded())
    loss.backward()
    assert torch.isfinite(loss)


def test_same_generator_same_loss():
    def once():
        torch.manual_seed(3)
        return step(make(), views(), 0., seeded())[0]
    assert torch.equal(once(), once())


def test_evaluation_changes_nothing_about_the_look():
    model, batch = make(local_cells=10_000).eval(), views()
    assert torch.equal(step(model, batch)[0], step(model, batch)[0])


def test_geometry_decides_the_pairs():
    "A view moved by whole cells: matched cells have equal features, so the right map gives a smaller local loss than a wrong one."
    model, batch = make(local_weight=1., local_cells=10_000).eval(), views(shift=16., width=160)
    right = step(model, batch)[0]
    batch.affine[:, 1, 0, 2] = 32.
    assert right < step(model, batch)[0] - 0.1


def test_local_cells_bounds_the_work():
    model = make(local_weight=1., local_cells=7)
    seen = []
    model.local_head.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    logs = step(model, views(), 0., seeded())[1]
    assert seen == [14] and logs['matched_cells'] > 7


def test_sampling_is_uniform():
    matches, counts, generator = torch.arange(10)[:, None].expand(10, 3), torch.zeros(10), torch.Generator().manual_seed(0)
    for _ in range(2000): counts[sample_matches(matches, 3, generator)[:, 0]] += 1
    assert (counts/2000 - 0.3).abs().max() < 0.05


def test_pooling_ignores_padding_and_paper():
    features = torch.randn(2, 4, 3, 5)
    is_ink, is_pad = torch.zeros(2, 3, 5, dtype=torch.bool), torch.zeros(2, 3, 5, dtype=torch.bool)
    is_ink[0, 1, 2] = is_ink[0, 2, 4] = True
    is_pad[:, :, 4] = True
    torch.testing.assert_close(pool_ink(features, is_ink, is_pad)[0], features[0, :, 1, 2])
    torch.testing.assert_close(pool_ink(features, is_ink, is_pad)[1], features[1, :, :, :4].mean((1, 2)))


def test_a_weight_outside_its_range():
    with pytest.raises(ValueError, match='0 .global only. to 1'): make(local_weight=1.5)


def test_an_unknown_global_loss():
    with pytest.raises(ValueError, match="got 'simclr'"): step(make(global_loss='simclr'), views(), 0., seeded())
