"Two views: which cell is which, against plain numpy, in padded batches, at every stride."
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mask_match.config import AugmentConfig, RenderConfig, no_augment
from mask_match.views import between, blur, cell_centres, cell_pad, ink_cells, match_cells, photometric, two_views

RNG = np.random.default_rng
WILD = AugmentConfig(scale_low=0.5, scale_high=2., stretch=0.5, slant=0.7, rotation=1.5, trace_shift=0., trace_scale=0., elastic=0.)

def random_ink(seed, unit=1.):
    rng = RNG(seed)
    return [((np.cumsum(rng.normal(0, 2, (rng.integers(1, 40), 2)), 0) + (20*k, 0))*unit + 3e4*(unit > 1)).astype(np.float32) for k in range(rng.integers(1, 8))]

def batch(views, stride, extra=0):
    h, w = (-(-max(i.shape[k] for i, _ in views)//stride) + extra for k in (0, 1))
    image = torch.stack([F.pad(torch.from_numpy(i).float()/255, (0, stride*w - i.shape[1], 0, stride*h - i.shape[0])) for i, _ in views])[:, None]
    return image, torch.from_numpy(np.stack([a for _, a in views])), torch.tensor([i.shape for i, _ in views])

@pytest.mark.parametrize('stride', [4, 8, 16])
@pytest.mark.parametrize('extra', [0, 3])
@pytest.mark.parametrize('unit', [1., 500.])
def test_match_against_numpy(stride, extra, unit):
    pairs = [two_views(random_ink(k, unit), RenderConfig(), WILD, RNG(k)) for k in range(8)]
    image, affine, _ = batch([v for p in pairs for v in p], stride, extra)
    is_ink = ink_cells(image, stride)
    h, w = is_ink.shape[1:]
    got = match_cells(affine[::2], affine[1::2], (h, w), stride, is_ink[::2], is_ink[1::2])
    assert got.dtype == torch.int64 and got.shape[1] == 3
    for e, ((i1, a1), (i2, a2)) in enumerate(pairs):
        back = np.linalg.inv(np.vstack([a1, [0, 0, 1]]).astype(float))
        expected = set()
        for y, x in np.ndindex(h, w):
            px, py = a2.astype(float) @ back @ [stride*(x + 0.5), stride*(y + 0.5), 1]
            x2, y2 = int(np.floor(px/stride)), int(np.floor(py/stride))
            inked = lambda image, y, x: bool((image[stride*y:stride*(y + 1), stride*x:stride*(x + 1)] > 76.5).any())
            if min(x2, y2) >= 0 and inked(i1, y, x) and inked(i2, y2, x2): expected.add((y*w + x, y2*w + x2))
        assert expected == {(a, b) for k, a, b in got.tolist() if k == e}

@pytest.mark.parametrize('seed', range(10))
def test_marked_point(seed):
    "Every point of the ink: its cell in view 1 is matched to a cell near its place in view 2, as near as half a cell of view 1 looks there."
    ink = random_ink(seed)
    (i1, a1), (i2, a2) = two_views(ink, RenderConfig(), WILD, RNG(seed))
    size = [-(-max(n)//8) for n in zip(i1.shape, i2.shape)]
    everywhere = torch.ones(1, *size, dtype=torch.bool)
    match = dict(match_cells(torch.from_numpy(a1)[None], torch.from_numpy(a2)[None], size, 8, everywhere, everywhere)[:, 1:].tolist())
    larger = np.linalg.norm(a2[:, :2] @ np.linalg.inv(a1[:, :2]), 2)
    found = 0
    for p in np.concatenate(ink):
        (x1, y1), place = a1[:, :2] @ p + a1[:, 2], a2[:, :2] @ p + a2[:, 2]
        cell = match.get(int(y1//8)*size[1] + int(x1//8))
        if cell is None: continue                     # its centre falls off the page of view 2
        found += 1
        y2, x2 = divmod(cell, size[1])
        assert np.hypot(8*x2 + 4 - place[0], 8*y2 + 4 - place[1]) <= 4*2**0.5*(1 + larger) + 1e-3
    assert found > 0.7*len(np.concatenate(ink))

def test_maps_compose():
    a1, a2 = (torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    points = torch.randn(5, 7, 2, dtype=torch.float64)
    there = lambda a: points @ a[:, :, :2].double().mT + a[:, None, :, 2].double()
    move = between(a1, a2)
    assert torch.allclose(there(a1) @ move[:, :, :2].mT + move[:, None, :, 2], there(a2), atol=1e-8)

def test_blank_never_matches():
    affine = torch.eye(3)[None, :2].repeat(2, 1, 1)
    blank = torch.zeros(2, 4, 5, dtype=torch.bool)
    assert match_cells(affine, affine, (4, 5), 8, blank, ~blank).shape == (0, 3) and match_cells(affine, affine, (4, 5), 8, ~blank, blank).shape == (0, 3)
    assert len(match_cells(affine, affine, (4, 5), 8, ~blank, ~blank)) == 40

@pytest.mark.parametrize('stride', [1, 4, 8, 16])
def test_cells(stride):
    generator = torch.Generator().manual_seed(stride)
    sizes = torch.randint(1, 60, (6, 2), generator=generator)
    h, w = -(-60//stride), -(-60//stride)
    is_pad, centres = cell_pad(sizes, h, w, stride), cell_centres(h, w, stride)
    for e, (H, W) in enumerate(sizes.tolist()):
        pixels = torch.zeros(stride*h, stride*w); pixels[:H, :W] = 1
        assert (is_pad[e] == (F.max_pool2d(pixels[None, None], stride)[0, 0] == 0)).all()
    assert centres[0, 0].tolist() == [stride/2]*2 and centres[h - 1, 0].tolist() == [stride/2, stride*h - stride/2]
    image = (torch.rand(3, 1, stride*5 + 1, stride*4, generator=generator) > 0.99).float()
    is_ink = ink_cells(image, stride)
    assert is_ink.shape == (3, 6 if stride > 1 else 6, 4) and is_ink.any() == image.bool().any()

def test_views_are_seeded_and_differ():
    ink = random_ink(3)
    one, two = (two_views(ink, RenderConfig(), AugmentConfig(), RNG(5)) for _ in range(2))
    assert all((a[0] == b[0]).all() and (a[1] == b[1]).all() for a, b in zip(one, two)) and (one[0][1] != one[1][1]).any()
    still = two_views(ink, RenderConfig(), no_augment(), RNG(5))
    assert (still[0][0] == still[1][0]).all()

def test_photometric():
    image = torch.rand(4, 1, 16, 24, generator=torch.Generator().manual_seed(0))
    assert (photometric(image, sigma=0, noise=0, contrast=0) == image).all()
    one, two = (photometric(image, torch.Generator().manual_seed(7)) for _ in range(2))
    assert (one == two).all() and one.shape == image.shape and 0 <= one.min() and one.max() <= 1 and (one != image).any()
    only = photometric(image, torch.Generator().manual_seed(7), sigma=0, noise=0, contrast=0.4)/image
    assert all(torch.allclose(o, o[0, 0, 0].expand_as(o), atol=1e-5) and 0.6 <= o[0, 0, 0] <= 1 for o in only)
    assert torch.allclose(blur(image, torch.full((4, 1, 1, 1), 1e-6)), image)
