"Bad pictures: every one is refused with an ImageError that says what is wrong and what to do, and never with anything else."
import io, os, struct, zlib
import numpy as np
import pytest
from PIL import Image
from mask_match.config import RenderConfig
from mask_match.photo import ImageError, image_to_ink_image, load_image
from mask_match.render import render

INK = [np.array(t, np.float32) for t in ([(0, 0), (20, 30)], [(20, 0), (0, 30)], [(30, 15), (45, 15)], [(38, 7), (38, 23)], [(60, 0), (60, 30)])]


def drawing(mode='L', ink=20, paper=235):
    "A good picture of x + 1."
    strokes = render(INK, RenderConfig(60., 7., 40, 2000, 4000))/255
    return Image.fromarray((paper + (ink - paper)*strokes).astype(np.uint8)).convert(mode)

def encoded(image, kind, **options):
    out = io.BytesIO(); image.save(out, kind, **options); return out.getvalue()

def png_header(width, height):
    "A PNG that claims a size and holds almost nothing."
    chunk = lambda name, data: struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)) + chunk(b'IDAT', zlib.compress(b'\0'*100)) + chunk(b'IEND', b'')

def noise(seed=0, spread=2.): return Image.fromarray((200 + spread*np.random.default_rng(seed).standard_normal((90, 200))).clip(0, 255).astype(np.uint8))
def holed(bad):
    a = np.asarray(drawing(), np.float32).copy(); a[3, 4] = bad
    return Image.fromarray(a)
def corrupt(data, at, n=200): return data[:at] + b'\xa5'*n + data[at + n:]

good = {kind: encoded(drawing(), kind) for kind in ('PNG', 'JPEG', 'BMP', 'GIF', 'TIFF', 'WEBP', 'PPM')}
FILES = {  # name -> (bytes, a word of the message)
    'zero_bytes.png': (b'', 'empty'),
    'one_byte.png': (b'\x89', 'not a picture'),
    'truncated.png': (good['PNG'][:len(good['PNG'])//2], 'cut short'),
    'truncated.jpg': (good['JPEG'][:len(good['JPEG'])//2], 'cut short'),
    'truncated.bmp': (good['BMP'][:len(good['BMP'])//2], 'cut short'),
    'truncated.gif': (good['GIF'][:len(good['GIF'])//3], 'cut short'),
    'truncated.tif': (good['TIFF'][:len(good['TIFF'])//2], ''),
    'truncated.webp': (good['WEBP'][:len(good['WEBP'])//2], ''),
    'truncated.ppm': (good['PPM'][:len(good['PPM'])//2], 'cut short'),
    'signature_only.png': (good['PNG'][:8], ''),
    'header_only.jpg': (good['JPEG'][:20], ''),
    'broken_data.png': (corrupt(good['PNG'], 300), 'damaged'),
    'text.png': (b'This is a letter and not a picture.\n'*20, 'not a picture'),
    'page.jpg': (b'<!DOCTYPE html><html><body>404</body></html>', 'not a picture'),
    'drawing.svg': (b'<svg xmlns="http://www.w3.org/2000/svg"><path d="M0 0"/></svg>', 'not a picture'),
    'paper.pdf': (b'%PDF-1.4\n1 0 obj\n<<>>\nendobj\n', 'not a picture'),
    'script.eps': (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n', 'not a picture'),
    'archive.png': (b'PK\x03\x04' + b'\0'*200, 'not a picture'),
    'random.png': (np.random.default_rng(1).bytes(5000), 'not a picture'),
    'ink.inkml': (b'<ink xmlns="http://www.w3.org/2003/InkML"><trace>1 2, 3 4</trace></ink>', 'not a picture'),
    'bomb.png': (png_header(60_000, 60_000), 'scale it down'),
    'large.png': (png_header(12_000, 9_000), 'scale it down'),
    'huge_side.png': (png_header(2**31 - 1, 2), ''),
    'zero_width.png': (png_header(0, 10), ''),
}
IMAGES = {
    'white': (Image.new('L', (200, 80), 255), 'no ink'), 'black': (Image.new('L', (200, 80), 0), 'no ink'), 'grey': (Image.new('RGB', (200, 80), (128, 128, 128)), 'no ink'),
    'one_pixel': (Image.new('L', (1, 1), 0), 'no ink'), 'one_row': (Image.new('L', (300, 1), 255), 'no ink'), 'one_column': (Image.new('L', (1, 300), 255), 'no ink'),
    'transparent': (Image.new('RGBA', (100, 50), (0, 0, 0, 0)), 'no ink'), 'opaque_alpha': (Image.new('LA', (100, 50), (255, 255)), 'no ink'),
    'faint_noise': (noise(), 'no ink'), 'strong_noise': (noise(1, 12.), 'no ink'), 'ramp': (Image.fromarray(np.tile(np.linspace(60, 200, 400), (90, 1)).astype(np.uint8)), 'no ink'),
    'white_bits': (Image.new('1', (100, 50), 1), 'no ink'), 'white_palette': (Image.new('P', (100, 50), 0), 'no ink'), 'white_cmyk': (Image.new('CMYK', (100, 50), (0, 0, 0, 0)), 'no ink'),
    'white_16_bits': (Image.fromarray(np.full((50, 100), 65535, np.uint16)), 'no ink'), 'black_float': (Image.new('F', (100, 50), 0.), 'no ink'),
    'nan': (holed(np.nan), 'not finite'), 'inf': (holed(np.inf), 'not finite'), 'all_nan': (Image.fromarray(np.full((50, 100), np.nan, np.float32)), 'not finite'),
    'no_pixels': (Image.new('L', (0, 0)), 'no pixels'), 'no_width': (Image.new('L', (0, 40)), 'no pixels'),
    'claims_too_much': (Image.new('1', (10_000, 9_000)), 'scale it down'),
}


@pytest.mark.parametrize('name', FILES)
def test_bad_file(tmp_path, name):
    data, said = FILES[name]
    path = tmp_path/name; path.write_bytes(data)
    for source in (path, str(path), io.BytesIO(data)):
        with pytest.raises(ImageError) as caught: image_to_ink_image(load_image(source))
        message = str(caught.value)
        assert (said in message or not isinstance(source, (str, os.PathLike))) and ';' in message, message   # what is wrong; what to do
        if not isinstance(source, io.BytesIO): assert name in message

@pytest.mark.parametrize('name', IMAGES)
def test_bad_image(name):
    image, said = IMAGES[name]
    with pytest.raises(ImageError) as caught: image_to_ink_image(image)
    assert said in str(caught.value) and ';' in str(caught.value), caught.value

def test_nan_tiff(tmp_path):
    holed(np.nan).save(tmp_path/'nan.tif')
    with pytest.raises(ImageError, match='not finite'): image_to_ink_image(load_image(tmp_path/'nan.tif'))

def test_folder_and_missing(tmp_path):
    with pytest.raises(ImageError, match='is a folder'): load_image(tmp_path)
    with pytest.raises(ImageError, match='no such file'): load_image(tmp_path/'none.png')
    with pytest.raises(ImageError, match='no such file'): load_image('bad\0name.png')
    (tmp_path/'gone.png').symlink_to(tmp_path/'nowhere.png')
    with pytest.raises(ImageError, match='no such file'): load_image(tmp_path/'gone.png')

@pytest.mark.parametrize('source', [None, 7, 2.5, [], np.zeros((4, 4))])
def test_no_source(source):
    with pytest.raises(ImageError, match='path'): load_image(source)

@pytest.mark.parametrize('n', range(0, len(good['PNG']), max(1, len(good['PNG'])//40)))
def test_any_cut(n):
    "Wherever a PNG is cut: an ImageError, or the whole picture."
    try: out = image_to_ink_image(load_image(io.BytesIO(good['PNG'][:n])))
    except ImageError: return
    assert out.max() > 150

@pytest.mark.parametrize('seed', range(40))
def test_any_damage(seed):
    "Random bytes overwritten in files of every kind: an ImageError or some image, never anything else."
    rng = np.random.default_rng(seed)
    for kind, data in good.items():
        broken = bytearray(data)
        for at in rng.integers(0, len(data), 1 + seed % 8): broken[at] = rng.integers(256)
        try: out = image_to_ink_image(load_image(io.BytesIO(bytes(broken))))
        except ImageError: continue
        assert out.dtype == np.uint8 and out.ndim == 2

@pytest.mark.parametrize('kind', good)
def test_good_file(tmp_path, kind):
    "The same picture is fine in every format."
    path = tmp_path/f'good.{kind.lower()}'; path.write_bytes(good[kind])
    out, reference = image_to_ink_image(load_image(path)), image_to_ink_image(drawing())
    assert abs(out.shape[1] - reference.shape[1]) <= 2 and out.max() > 200

@pytest.mark.parametrize('kind', ['TIFF', 'GIF'])
def test_pages_are_not_dropped(kind, tmp_path):
    path = tmp_path/f'pages.{kind.lower()}'
    drawing().save(path, save_all=True, append_images=[drawing(ink=90)])
    for source in (path, io.BytesIO(path.read_bytes())):
        with pytest.raises(ImageError, match='several pages'): load_image(source)
    with Image.open(path) as chosen: assert load_image(chosen).size == drawing().size           # whoever opened it has chosen a page

def test_a_pipe_is_not_called_empty(tmp_path):
    os.mkfifo(tmp_path/'pipe')
    with pytest.raises(ImageError, match='pipe'): load_image(tmp_path/'pipe')
