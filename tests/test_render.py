"Ink to image: bytes, invariances, geometry and speed, on hand-made ink and on CROHME where it is there."
import time
import numpy as np
import pytest
from PIL import Image
from mask_match.config import AugmentConfig, RenderConfig, no_augment
from mask_match.inkml import read_inks
from mask_match.photo import JOINED, components, image_to_ink_image, otsu, to_grey
from mask_match.render import augment, draw, ink_unit, normalise, render

RNG = np.random.default_rng
INK = [np.array(t, np.float32) for t in ([(0, 0), (8, 9), (14, 20)], [(17, 0), (1, 21)], [(22, -12), (28, -15), (22, -4), (30, -4)], [(36, 9), (50, 9)], [(43, 2), (43, 17)], [(60, 20)])]


def random_ink(seed):
    "A few random walks."
    rng = RNG(seed)
    return [(np.cumsum(rng.normal(0, 2, (rng.integers(1, 60), 2)), 0) + (25*k, rng.normal(0, 10))).astype(np.float32) for k in range(rng.integers(1, 12))]

def exact(traces, size, pen):
    "Distance of every pixel centre to every piece."
    y, x = np.mgrid[:size[0], :size[1]] + 0.5
    near = np.full(size, np.inf)
    for t in traces:
        for a, b in zip(t, t[1:] if len(t) > 1 else t):
            d = b - a
            s = np.clip(((x - a[0])*d[0] + (y - a[1])*d[1])/max(float((d**2).sum()), 1e-12), 0, 1)
            near = np.minimum(near, np.hypot(x - a[0] - s*d[0], y - a[1] - s*d[1]))
    return np.clip(pen/2 + 0.5 - near, 0, 1)*255


@pytest.mark.parametrize('seed', range(20))
@pytest.mark.parametrize('pen', [0.6, 1.8, 3., 7.5])
def test_lines_are_exact(seed, pen):
    "Straight traces, also across the border of the page: the fast drawing is the definition within the rounding to 1/64 pixel."
    traces = [RNG(seed).uniform(-10, 50, (2, 2)) for _ in range(1)] + [RNG(seed + 99).uniform(0, 30, (1, 2))]
    fast, slow = draw(traces, (30, 40), pen).astype(float), exact(traces, (30, 40), pen)
    assert fast.shape == (30, 40) and np.abs(fast - slow).max() <= 5

@pytest.mark.parametrize('seed', range(10))
def test_curves_are_close(seed):
    traces, size, _ = normalise(random_ink(seed), RenderConfig())
    fast, slow = draw(traces, size, 1.8).astype(float), exact(traces, size, 1.8)
    assert np.abs(fast - slow)[slow > 0].mean() < 25   # random walks are nothing but corners

@pytest.mark.parametrize('seed', range(20))
def test_bytes_scale_and_place(seed):
    ink, picture = random_ink(seed), render(random_ink(seed))
    assert picture.tobytes() == render(ink).tobytes() and picture.dtype == np.uint8 and picture.flags.c_contiguous
    assert (render([t*2048 for t in ink]) == picture).all() and (render([t/512 for t in ink]) == picture).all()
    far = render([t.astype(np.float64)*1000 - 12345.6 for t in ink]).astype(int)
    assert far.shape == picture.shape and (np.abs(far - picture) > 8).mean() < 1e-3

@pytest.mark.parametrize('seed', range(30))
def test_page(seed):
    "Size, margin and the cap; every point lies on ink."
    for config in (RenderConfig(), RenderConfig(28., 3., 13, 448, 1792), RenderConfig(14., 1.8, 6, 40, 50)):
        traces, (H, W), affine = normalise(random_ink(seed), config)
        assert H <= config.max_height and W <= config.max_width
        points = np.concatenate(traces)
        assert points.min() > config.margin - 0.6 and (points < (W - config.margin + 0.6, H - config.margin + 0.6)).all()
        assert np.abs(np.concatenate(random_ink(seed)) @ affine[:, :2].T + affine[:, 2] - points).max() < 1e-3
        x, y = np.floor(points).astype(int).T
        assert (draw(traces, (H, W), config.pen_width)[y, x] > 60).mean() > 0.98

def test_unit_of_the_whole():
    "A part that was cut out keeps the scale of the whole when it is given."
    whole = ink_unit(*(np.array([f(t, 0) for t in INK]) for f in (np.min, np.max)))
    part = INK[3:4]
    assert np.isclose(normalise(part, RenderConfig(), unit=whole)[2][0, 0], normalise(INK, RenderConfig())[2][0, 0])
    assert (render(INK, RenderConfig(), unit=whole) == render(INK)).all() and render(part, unit=np.float32(whole)).shape[1] < render(part).shape[1]

@pytest.mark.parametrize('ink', [[(0, 0)], [(0, 0), (50, 0)], [(0, 0), (0, 50)], [(7, 7), (7, 7)], [(0, 0), (1e6, 1)], [(1e-9, 0), (2e-9, 1e-9)], [(1e7, 1e7), (1e7 + 8, 1e7 + 4)]])
def test_sane_size(ink):
    image = render([np.array(ink, np.float64)])
    assert 13 <= min(image.shape) and max(image.shape) < 80 and image.max() > 150

@pytest.mark.parametrize('ink', [[], [np.zeros((0, 2))], [np.zeros((3, 3))], [np.array([[0, np.nan]])], [np.array([[np.inf, 0], [-np.inf, 1]])]])
def test_refused(ink):
    for f in (render, lambda i: augment(i, RenderConfig(), AugmentConfig(), RNG(0))):
        with pytest.raises(ValueError, match=';'): f(ink)

def test_a_trace_without_points_is_left_out(): assert (render(INK + [np.zeros((0, 2), np.float32)]) == render(INK)).all()

@pytest.mark.parametrize('seed', range(20))
def test_augment(seed):
    ink, config = random_ink(seed), RenderConfig()
    first, again = (augment(ink, config, AugmentConfig(), RNG(seed)) for _ in range(2))
    assert all((a == b).all() for a, b in zip(first[0], again[0])) and first[1:3] == again[1:3]
    traces, size, pen, affine = augment(ink, config, no_augment(), RNG(seed))
    assert (draw(traces, size, pen) == render(ink, config)).all()
    assert first[1][0] <= config.max_height and first[1][1] <= config.max_width
    for known in (first[3], affine): assert known.shape == (2, 3) and known.dtype == np.float32 and np.isfinite(known).all()
    unit = 14/np.sqrt(abs(np.linalg.det(affine[:, :2].astype(float))))
    half, _, _, small = augment(ink, RenderConfig(max_height=4000, max_width=4000), no_augment(), RNG(0), unit=2*unit)
    whole = augment(ink, RenderConfig(max_height=4000, max_width=4000), no_augment(), RNG(0), unit=unit)[3]
    assert np.isclose(2*small[0, 0], whole[0, 0], rtol=1e-4)

def test_augment_ranges():
    "Over many draws the settings' limits are reached and kept."
    setting = AugmentConfig()
    drawn = [augment(INK, RenderConfig(), setting, RNG(k))[2:] for k in range(400)]
    pens = np.array([p for p, _ in drawn])/1.8
    scales = np.array([np.sqrt(np.linalg.det(a[:, :2].astype(float))) for _, a in drawn])/normalise(INK, RenderConfig())[2][0, 0]
    assert setting.pen_low <= pens.min() < 0.78 and 1.45 < pens.max() <= setting.pen_high
    assert setting.scale_low*0.999 <= scales.min() < 0.78 and 1.3 < scales.max() <= setting.scale_high*1.001

@pytest.mark.parametrize('seed', range(12))
def test_components(seed):
    "Against flood fill."
    is_ink = RNG(seed).random((23, 31)) < (0.1, 0.3, 0.45, 0.6)[seed % 4]
    label, (row, start, end) = components(is_ink)
    fast = np.full(is_ink.shape, -1)
    for l, r, a, b in zip(label, row, start, end): fast[r, a:b] = l
    slow, n = np.full(is_ink.shape, -1), 0
    for seed_point in zip(*np.nonzero(is_ink)):
        if slow[seed_point] >= 0: continue
        stack = [seed_point]; slow[seed_point] = n
        while stack:
            y, x = stack.pop()
            for j in range(max(y - 1, 0), min(y + 2, 23)):
                for i in range(max(x - 1, 0), min(x + 2, 31)):
                    if is_ink[j, i] and slow[j, i] < 0: slow[j, i] = n; stack.append((j, i))
        n += 1
    assert label.max() + 1 == n and len(set(zip(fast[is_ink], slow[is_ink]))) == n and ((fast >= 0) == is_ink).all()

def test_otsu(): assert 0.2 < otsu(np.r_[RNG(0).normal(0.1, 0.02, 900), RNG(1).normal(0.8, 0.05, 100)]) < 0.7

def picture(ink=20, paper=235): return paper + (ink - paper)*(render(INK, RenderConfig(60., 7., 40, 2000, 4000))/255.)

KINDS = {
    'L': lambda a: Image.fromarray(a.astype(np.uint8)), 'RGB': lambda a: Image.fromarray(a.astype(np.uint8)).convert('RGB'), 'P': lambda a: Image.fromarray(a.astype(np.uint8)).convert('P'),
    '1': lambda a: Image.fromarray(a.astype(np.uint8)).convert('1', dither=Image.Dither.NONE), 'CMYK': lambda a: Image.fromarray(a.astype(np.uint8)).convert('CMYK'),
    'RGBA': lambda a: Image.fromarray(a.astype(np.uint8)).convert('RGBA'), 'LA': lambda a: Image.fromarray(a.astype(np.uint8)).convert('LA'), 'HSV': lambda a: Image.fromarray(a.astype(np.uint8)).convert('RGB').convert('HSV'),
    'I;16': lambda a: Image.fromarray((a*257).astype(np.uint16)), 'I': lambda a: Image.fromarray(a.astype(np.int32)), 'I 16 bits': lambda a: Image.fromarray((a*257).astype(np.int32)),
    'F': lambda a: Image.fromarray((a/255).astype(np.float32)), 'F 255': lambda a: Image.fromarray(a.astype(np.float32)), 'negative': lambda a: Image.fromarray((255 - a).astype(np.uint8)),
    'ink in alpha': lambda a: _alpha(a, 0), 'white ink in alpha': lambda a: _alpha(a, 255),
}
def _alpha(a, light):
    rgba = np.full((*a.shape, 4), light, np.uint8); rgba[..., 3] = 255 - a.astype(np.uint8).clip(0, 255)
    rgba[..., 3][a > 200] = 0
    return Image.fromarray(rgba)

@pytest.mark.parametrize('kind', KINDS)
def test_every_kind_of_pixel(kind):
    reference, found = image_to_ink_image(KINDS['L'](picture())), image_to_ink_image(KINDS[kind](picture()))
    assert max(abs(a - b) for a, b in zip(reference.shape, found.shape)) <= 2
    assert found.max() > 200 and abs((found > 128).sum()/(reference > 128).sum() - 1) < 0.25

def test_turned_by_the_camera():
    upright = KINDS['L'](picture())
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6
    assert to_grey(turned).shape == (upright.height, upright.width)
    assert image_to_ink_image(turned).shape == image_to_ink_image(upright).shape

@pytest.mark.parametrize('height', [20, 40, 80, 160])
def test_any_resolution_gives_the_size_of_render(height):
    photo = 230 - 200*(render(INK, RenderConfig(height, height*0.12, height, 3000, 3000))/255.)
    found = image_to_ink_image(Image.fromarray(photo.astype(np.uint8)))
    wanted = render(INK, RenderConfig(JOINED*RenderConfig().stroke_height))  # as if its strokes touched like most
    assert all(abs(a/b - 1) < 0.12 for a, b in zip(found.shape, wanted.shape))


def test_crohme_speed_and_size(crohme):
    inks = [ink.traces for ink in read_inks(crohme, keep=lambda name: 'TestINKMLGT' in name)[0]]
    assert len(inks) > 600
    start = time.process_time(); images = [render(i) for i in inks]; rate = len(inks)/(time.process_time() - start)
    print(f'{len(inks)} expressions, {rate:.0f} images/s')
    assert rate > 500 and all(i.max() > 150 for i in images)  # 3,000 a second on a quiet core; the limit leaves room for a busy machine
    assert np.mean([i.shape[1] < 890 for i in images]) > 0.98
