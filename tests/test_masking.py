import dataclasses, time
import numpy as np, pytest, torch
from mask_match.config import AttendConfig
from mask_match.masking import INK_LEVEL, Bricks, choose_blocks, hidden_share, hide_blocks, hide_traces, list_ink, mask_ratio, own_pixels


def generator(seed=0): return torch.Generator().manual_seed(seed)

def strokes(seed, n=12):
    rng = np.random.default_rng(seed)
    start, angle, length = rng.uniform((10, 10), (200, 54), (n, 2)), rng.uniform(0, np.pi, n), rng.uniform(8, 30, n)
    end = start + length[:, None]*np.stack([np.cos(angle), np.sin(angle)], 1)
    return [np.linspace(a, b, 12).clip(2, (240, 60)).astype(np.float32) for a, b in zip(start, end)]

def draw(traces, size=(64, 256), pen=1.):
    y, x = np.mgrid[:size[0], :size[1]] + 0.5
    page = np.zeros(size, np.float32)
    for t in traces:
        for a, b in zip(t, t[1:]):
            d = b - a
            along = np.clip(((x - a[0])*d[0] + (y - a[1])*d[1])/max((d**2).sum(), 1e-9), 0, 1)
            page = np.maximum(page, np.clip(pen + 0.5 - np.hypot(x - a[0] - along*d[0], y - a[1] - along*d[1]), 0, 1))
    return torch.from_numpy(page)[None]

@pytest.fixture(scope='module')
def batch():
    traces = [strokes(s) for s in range(6)]
    return torch.stack([draw(t) for t in traces]), torch.tensor([[64, 250]]*6), traces


@pytest.mark.parametrize('ends', [(0.1, 0.6, 0.7, 2.5), (0., 1., 1., 1.), (0.5, 0.2, 3., 0.5)])
def test_the_three_arms_spend_the_same(ends):
    base = AttendConfig(ratio_start=ends[0], ratio_end=ends[1], block_start=ends[2], block_end=ends[3])
    at = np.linspace(0, 1, 201)
    means = [np.mean([mask_ratio(p, dataclasses.replace(base, schedule=s), 20.) for p in at], 0) for s in ('progressive', 'constant', 'reversed')]
    assert np.allclose(means[0], means[1]) and np.allclose(means[0], means[2])
    assert np.allclose(means[0], [(ends[0] + ends[1])/2, 20*(ends[2] + ends[3])/2])

def test_progressive_rises_and_reversed_is_its_mirror():
    c = AttendConfig()
    ratios = [mask_ratio(p, c)[0] for p in np.linspace(0, 1, 11)]
    assert ratios == sorted(ratios) and ratios[0] == c.ratio_start and abs(ratios[-1] - c.ratio_end) < 1e-9
    assert mask_ratio(0., dataclasses.replace(c, schedule='reversed'))[0] == pytest.approx(c.ratio_end)

@pytest.mark.parametrize('progress', [-0.01, 1.01])
def test_progress_outside_0_1_is_refused(progress):
    with pytest.raises(ValueError, match='progress'): mask_ratio(progress, AttendConfig())

@pytest.mark.parametrize('ratio', [0., 0.1, 0.35, 0.6, 0.9, 1.])
@pytest.mark.parametrize('block', [1, 9.8, 22.4, 35, 500])
@pytest.mark.parametrize('guided', [False, True])
def test_the_asked_share_of_ink_is_hidden(batch, ratio, block, guided):
    image, sizes, _ = batch
    student, is_hidden = hide_blocks(image, sizes, ratio, block, torch.rand(6, 8, 32, generator=generator()) if guided else None, generator(1))
    share = hidden_share(image, is_hidden)
    assert ((share - ratio).abs() < 0.04).all() and (share >= ratio - 2e-3).all()
    assert torch.equal(student, image*~is_hidden[:, None])
    assert not is_hidden[:, :, 250:].any()

def test_every_ink_pixel_can_be_hidden_and_at_like_rates(batch):
    image, sizes, _ = batch
    rate = torch.stack([hide_blocks(image, sizes, 0.4, 14, None, generator(s))[1].float() for s in range(100)]).mean(0)[image[:, 0] > INK_LEVEL]
    assert rate.min() > 0.1 and rate.max() < 0.7 and abs(rate.mean() - 0.4) < 0.02

def test_where_attention_is_higher_more_is_hidden(batch):
    image, sizes, _ = batch
    attention = torch.linspace(0, 1, 256).expand(6, 64, 256)
    hidden = torch.stack([hide_blocks(image, sizes, 0.3, 10, attention, generator(s))[1] for s in range(30)]).float().mean(0)
    ink = (image[:, 0] > INK_LEVEL).float()
    left, right = ((hidden*ink)[..., part].sum() / ink[..., part].sum() for part in (slice(0, 80), slice(160, 256)))
    assert right > 2*left

def test_pixel_maps_and_cell_grids_say_the_same(batch):
    image, sizes, _ = batch
    cells = torch.rand(6, 8, 32, generator=generator())
    pixels = cells.repeat_interleave(8, 1).repeat_interleave(8, 2)
    a, b = (hide_blocks(image, sizes, 0.3, 12, m, generator(2))[1] for m in (cells, pixels))
    assert torch.equal(a, b)

def test_equal_generators_hide_equally_and_others_do_not(batch):
    image, sizes, _ = batch
    a, b, c = (hide_blocks(image, sizes, 0.3, 12, None, generator(s))[1] for s in (3, 3, 4))
    assert torch.equal(a, b) and not torch.equal(a, c)

def test_blank_paper_is_left_alone(batch):
    image, sizes, traces = batch
    mixed = torch.cat([image[:1], torch.zeros_like(image[:1])])
    _, is_hidden = hide_blocks(mixed, sizes[:2], 0.5, 12, None, generator())
    assert is_hidden[0].any() and not is_hidden[1].any()
    assert not hide_blocks(torch.zeros(2, 1, 8, 8), torch.full((2, 2), 8), 0.5, 4, None, generator())[1].any()

def test_hide_blocks_refuses_nonsense(batch):
    image, sizes, _ = batch
    with pytest.raises(ValueError, match='ratio'): hide_blocks(image, sizes, 1.2, 10, None, generator())
    with pytest.raises(ValueError, match='Generator'): hide_blocks(image, sizes, 0.2, 10)

def test_blocks_are_squares_of_the_asked_edge():
    image = torch.zeros(1, 1, 130, 130); image[..., 20::30, 20::30] = 1                   # 16 dots, each in a block of its own
    student, is_hidden = hide_blocks(image, torch.tensor([[130, 130]]), 0.5, 12, None, generator(5))
    assert student.sum() == 8 and is_hidden.sum() == 8*144

def test_bricks_cover_every_pixel_once():
    wall = Bricks(3, (31, 47), 7.3, generator())
    y, x = (g.reshape(-1) for g in torch.meshgrid(torch.arange(31), torch.arange(47), indexing='ij'))
    everything = wall.paint(torch.ones(3, wall.rows, wall.columns, dtype=torch.bool), torch.tensor([[31, 47], [20, 47], [31, 5]]))
    assert everything.sum((1, 2)).tolist() == [31*47, 20*47, 31*5]
    row, column = wall.find(torch.zeros_like(y), y, x)
    assert row.min() >= 0 and column.min() >= 0 and row.max() < wall.rows and column.max() < wall.columns

def test_choose_blocks_by_brute_force():
    rng = generator(7)
    for _ in range(50):
        count = torch.randint(0, 6, (1, 9), generator=rng); keys = torch.randn(1, 9, generator=rng).masked_fill(count == 0, -torch.inf)
        quota = torch.randint(0, int(count.sum()) + 1, (1,), generator=rng)
        is_whole, last, need = choose_blocks(count, keys, quota)
        left, expected = int(quota), set()
        for k in sorted((k for k in range(9) if count[0, k]), key=lambda k: -keys[0, k]):
            if count[0, k] > left: break
            expected.add(k); left -= int(count[0, k])
        assert set(is_whole[0].nonzero().flatten().tolist()) == expected and need.item() == left
        assert left == 0 or count[0, last] > left

def test_list_ink_by_brute_force(batch):
    image = batch[0][:2, :, :20, :50]
    slow = [(b, y, x) for b in range(2) for y in range(20) for x in range(50) if image[b, 0, y, x] > INK_LEVEL]
    assert list(zip(*(v.tolist() for v in list_ink(image)))) == slow

def test_a_batch_of_48_costs_milliseconds(batch):
    image, sizes = batch[0].repeat(8, 1, 1, 1), batch[1].repeat(8, 1)
    def once():
        start = time.thread_time(); hide_blocks(image, sizes, 0.35, 22, None, generator()); return time.thread_time() - start
    assert min(once() for _ in range(8)) < 0.05  # 10 ms where nobody else is at work


def test_pixels_belong_to_the_nearest_trace(batch):
    image, _, traces = batch
    owned = own_pixels(traces, (64, 256))
    assert (owned[image[:, 0] > INK_LEVEL] >= 0).all()
    alone = torch.stack([draw([t])[0] for t in traces[0]])
    single = (alone > INK_LEVEL).sum(0) == 1
    assert (owned[0][single] == alone.argmax(0)[single]).float().mean() > 0.98

def test_whole_traces_vanish_and_one_stays(batch):
    image, _, traces = batch
    owned, ink = own_pixels(traces, (64, 256)), image[:, 0] > INK_LEVEL
    for ratio in (0.1, 0.5, 1.):
        student, is_hidden = hide_traces(image, traces, ratio, generator(3))
        for i, ts in enumerate(traces):
            kept = [k for k in range(len(ts)) if not is_hidden[i][(owned[i] == k) & ink[i]].any()]
            assert kept and all(is_hidden[i][(owned[i] == k) & ink[i]].all() for k in range(len(ts)) if k not in kept)
        assert torch.equal(student[:, 0], image[:, 0]*~is_hidden)

def test_hidden_traces_reach_the_share_on_average(batch):
    image, _, traces = batch
    for ratio in (0.2, 0.6):
        share = torch.stack([hidden_share(image, hide_traces(image, traces, ratio, generator(s))[1]) for s in range(25)]).mean()
        assert abs(share - ratio) < 0.05

def test_dots_and_empty_expressions_are_survived():
    dot = np.array([[8., 8.]], np.float32)
    image = torch.zeros(2, 1, 16, 16); image[0, 0, 7:9, 7:9] = 1
    assert own_pixels([[dot], []], (16, 16))[0, 8, 8] == 0
    student, is_hidden = hide_traces(image, [[dot], []], 0.9, generator())
    assert not is_hidden.any() and torch.equal(student, image)
    with pytest.raises(ValueError, match='batch.traces'): hide_traces(image, [[dot]], 0.5, generator())
