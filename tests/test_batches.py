"Batches: everything once, nothing outside its box, few boxes."
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from mask_match.batches import batch_size, grid_ceil, plan_batches, shape_ceil, snug, stack_images
from mask_match.config import FitConfig, cpu

SIZES = st.lists(st.tuples(st.floats(13, 224), st.floats(13, 896), st.integers(1, 150)), min_size=1, max_size=300)

@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(20_000, 600_000), st.integers(1, 80), st.floats(0, 0.3), st.integers(0, 9))
def test_every_sample_once_and_inside_its_box(sizes, pixels, most, give, seed):
    sizes, fit = np.array(sizes, float), FitConfig(batch_pixels=pixels, batch_max=most)
    plan = plan_batches(sizes, fit, np.random.default_rng(seed), give)
    assert sorted(np.concatenate([which for which, _ in plan]).tolist()) == list(range(len(sizes)))
    for which, shape in plan:
        assert 1 <= len(which) <= batch_size(shape, fit) and (np.ceil(sizes[which, :2]*np.exp(-give)) <= shape).all()
        assert len(which) == 1 or len(which)*shape[0]*shape[1] <= pixels

@settings(max_examples=20, deadline=None)
@given(SIZES, st.integers(0, 9))
def test_the_same_seed_makes_the_same_plan(sizes, seed):
    first, again = (plan_batches(np.array(sizes, float), cpu().finetune.fit, np.random.default_rng(seed), 0.1) for _ in range(2))
    assert [(w.tolist(), s) for w, s in first] == [(w.tolist(), s) for w, s in again]

def test_shapes_are_few_and_batches_mostly_full():
    rng, fit = np.random.default_rng(0), cpu().finetune.fit
    seen = set()
    for epoch in range(3):
        sizes = np.stack([rng.lognormal(4, .4, 4000), rng.lognormal(4.8, .7, 4000), rng.integers(1, 60, 4000)], 1).clip(13, [224, 896, 150])
        plan = plan_batches(sizes, fit, rng, 0.1)
        seen |= {(len(which), shape) for which, shape in plan}
    assert sum(len(which) == batch_size(shape, fit) for which, shape in plan) > 0.7*len(plan) and len(seen) < 200

def test_members_of_a_batch_are_of_like_length():
    sizes = np.stack([np.full(400, 40.), np.full(400, 100.), np.random.default_rng(0).permutation(400)], 1)
    plan = plan_batches(sizes, FitConfig(batch_max=40), np.random.default_rng(0))
    assert len(plan) == 10 and all(np.ptp(sizes[which, 2]) == 39 for which, _ in plan)

@pytest.mark.parametrize('n', [1, 24, 25, 33, 41, 65, 100, 129, 224, 896, 1793])
def test_both_grids_round_up_and_stay(n):
    for ceil in (grid_ceil, shape_ceil):
        assert ceil(n) >= n and ceil(n) % 8 == 0 and ceil(ceil(n)) == ceil(n)
    assert shape_ceil(n) <= max(24, 4/3*n + 8)

def test_a_picture_that_does_not_fit_gets_a_larger_box():
    picture = lambda h, w: np.full((h, w), 255, np.uint8)
    assert stack_images([picture(30, 50)], (32, 64))[0].shape == (1, 1, 32, 64)
    image, sizes = stack_images([picture(30, 70), picture(20, 20)], (32, 64))
    assert image.shape == (2, 1, 32, 80) and sizes.tolist() == [[30, 70], [20, 20]] and image[1, 0, 20:].sum() == 0

def test_snug_members_fill_the_box_no_further_than_allowed():
    square = lambda n: ([np.array([[6, 6], [n - 6, n - 6]], np.float32)], (n, n), 2.)
    sizes = [size for _, size, _ in snug([square(n) for n in (50, 60, 70, 90)], (64, 64), 6, 0.2)]
    assert sizes[:3] == [(round(38*np.exp(0.2)) + 12,)*2 if 38*np.exp(0.2) < 52 else (64, 64), (64, 64), (64, 64)] and sizes[3][0] == round(78*np.exp(-0.2)) + 12
