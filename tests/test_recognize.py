"Recognition from every kind of source: the same ink, the same reading; bad sources keep their place in a list."
import builtins, dataclasses, socket, sys
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from mask_match import recognize as room
from mask_match.calibration import probability
from mask_match.config import RenderConfig, no_augment, smoke
from mask_match.finetune import MaskMatch, save_model
from mask_match.inkml import Ink, write_ink
from mask_match.latex import Vocabulary, tokenize
from mask_match.photo import ImageError
from mask_match.recognize import Failure, Recognition, Recognizer, find_weights, overlay, to_image, to_picture
from mask_match.render import render
from mask_match.runs import RunError, save_tensors
from mask_match.search import Hypothesis
from mask_match.sources import InkError
from mask_match.strokes import Writer
from mask_match.synth import sample_inks, write

INKS = {ink.name: ink for ink in sample_inks()}

@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    "A model with random weights, saved as fp16."
    path, vocabulary = tmp_path_factory.mktemp('weights')/'model.safetensors', Vocabulary.field()
    torch.manual_seed(3)
    save_model(path, MaskMatch(smoke(), len(vocabulary)), smoke(), vocabulary, dict(data='none'))
    return path

@pytest.fixture(scope='module')
def reader(weights): return Recognizer.load(weights, device='cpu')

@pytest.fixture(scope='module')
def files(tmp_path_factory):
    "The same expression as InkML, png, jpg and bmp."
    folder, ink = tmp_path_factory.mktemp('files'), INKS['fraction']
    (folder/'a.inkml').write_bytes(write_ink(ink))
    page = Image.fromarray(255 - render(ink.traces, RenderConfig(40., 4., 30, 2000, 2000)))
    for end in ('png', 'jpg', 'bmp'): page.save(folder/f'a.{end}')
    return folder

# --- sources ---

def test_ink_goes_through_the_render_of_training(files):
    image = to_image(INKS['fraction'], RenderConfig())
    assert np.array_equal(image, render(INKS['fraction'].traces, RenderConfig()))
    for source in (files/'a.inkml', str(files/'a.inkml')): assert np.array_equal(image, to_image(source, RenderConfig()))

def test_the_model_sees_what_evaluation_shows_it(files, reader, tmp_path):
    "Packed, batched and drawn for evaluation: the very same pixels."
    from mask_match.data import Epoch, Packed, pack
    pack([INKS['fraction']], tmp_path/'a.safetensors', 'a')
    batch = Epoch(Packed(tmp_path/'a.safetensors'), reader.vocabulary, reader.config, reader.config.finetune.fit, is_training=False)[0]
    H, W = batch.sizes[0].tolist()
    assert np.array_equal((batch.image[0, 0, :H, :W].numpy()*255).round().astype(np.uint8), to_image(files/'a.inkml', reader.config.render))

def test_inkml_is_told_by_content_not_by_name(files, tmp_path):
    (tmp_path/'ink.png').write_bytes((files/'a.inkml').read_bytes())
    (tmp_path/'picture.inkml').write_bytes((files/'a.png').read_bytes())
    assert np.array_equal(to_image(tmp_path/'ink.png', RenderConfig()), to_image(files/'a.inkml', RenderConfig()))
    with pytest.raises(InkError): to_image(tmp_path/'picture.inkml', RenderConfig())

def test_pictures_give_one_image_whatever_their_form(files):
    page = Image.open(files/'a.png')
    made = to_image(files/'a.png', RenderConfig())
    grey = np.asarray(page)
    for source in (files/'a.bmp', page, grey, grey[..., None], np.stack([grey]*3, -1), np.stack([grey]*3 + [np.full_like(grey, 255)], -1), (grey/255).astype(np.float32), grey.astype(np.int64)):
        assert np.array_equal(made, to_image(source, RenderConfig()))
    assert abs(to_image(files/'a.jpg', RenderConfig()).shape[1] - made.shape[1]) <= 4
    mask = to_image((grey > 128).astype(np.uint8)*255, RenderConfig())
    for source in (grey > 128, (grey > 128).astype(np.uint8), (grey > 128).astype(int), (grey > 128).astype(np.int8), (grey > 128)*1.04 - 0.02): assert np.array_equal(to_image(source, RenderConfig()), mask)
    deep = grey.astype(np.uint16)*257
    for source in (deep, deep.astype('>u2'), np.stack([deep]*3, -1), grey.astype(np.uint16)): assert np.array_equal(made, to_image(source, RenderConfig()))

@pytest.mark.parametrize('array, word', [(np.zeros(5), 'shape'), (np.zeros((2, 3, 7)), 'shape'), (np.zeros((0, 4)), 'shape'), (np.full((9, 9), np.nan), 'finite'),
                                         (np.full((9, 9), 300), 'scale'), (np.full((9, 9), -1), 'scale'), (np.full((9, 9), 'x'), 'pixels'), (np.zeros((9, 9), complex), 'pixels')])
def test_arrays_that_are_no_pictures(array, word):
    with pytest.raises(ImageError, match=word): to_picture(array)

@pytest.mark.parametrize('source', [None, 7, 3.5, {'a': 1}, object()])
def test_things_that_are_no_source(reader, source):
    with pytest.raises(ImageError, match='picture'): reader(source)

def test_ink_without_traces(reader):
    with pytest.raises(InkError, match='traces'): reader(Ink('empty', ()))

# --- readings ---

def check(r, reader):
    assert isinstance(r, Recognition) and 0 <= r.confidence <= 1 and r.hypotheses[0] == (r.latex, r.confidence)
    h, w = (-(-n//r.stride) for n in r.image.shape)
    assert r.maps.shape == (reader.config.attend.slots, h, w) and r.attention.shape == (len(r.tokens), h, w)
    assert np.allclose(r.maps.sum((1, 2)), 1, atol=1e-4) and np.allclose(r.attention.sum((1, 2)), 1, atol=1e-3)

def test_a_reading_is_complete(reader, files):
    for source in (files/'a.inkml', files/'a.jpg', INKS['series']): check(reader(source), reader)

def test_mathml_of_what_the_search_may_write(reader):
    one = dataclasses.replace(reader(INKS['root']), tokens=['x', '^', '2'])                  # an unbound search writes no braces
    assert one.mathml == dataclasses.replace(one, tokens=tokenize('x ^ { 2 }')).mathml and '<msup>' in one.mathml
    assert dataclasses.replace(one, tokens=['}', '^']).mathml == ''

def test_order_and_company_change_nothing(reader):
    chosen = [INKS[n] for n in ('series', 'fraction', 'nested')]
    alone, together = [reader(i) for i in chosen], reader(tuple(chosen))
    assert [r.name for r in together] == [i.name for i in chosen]
    together += reader(chosen*3)                                             # three of one shape share a batch
    for a, b in zip(alone*4, together, strict=True):
        assert [x for x, _ in a.hypotheses] == [x for x, _ in b.hypotheses] and np.allclose([p for _, p in a.hypotheses], [p for _, p in b.hypotheses], atol=1e-5)
        assert np.allclose(a.maps, b.maps, atol=1e-5) and np.allclose(a.attention, b.attention, atol=1e-4)
    assert reader([]) == [] and reader.read_all([]) == []

@pytest.mark.parametrize('wrong', [dict(beam=0), dict(beam='5'), dict(beam=2.5), dict(cells=0), dict(cells=2.), *([] if torch.cuda.is_available() else [dict(device='cuda')])])
def test_settings_that_cannot_be(weights, wrong):
    with pytest.raises(RunError, match=next(iter(wrong))): Recognizer.load(weights, **{'device': 'cpu'} | wrong)

@pytest.mark.parametrize('source', ['a.png', Path('a.png'), np.zeros((9, 9)), INKS['root']])
def test_one_source_is_no_list(reader, source):
    with pytest.raises(ImageError, match='list'): reader.read_all(source)

def test_beam_one_is_greedy(weights):
    one = Recognizer.load(weights, beam=1, device='cpu')(INKS['root'])
    assert len(one.hypotheses) == 1

def test_read_all_keeps_the_order(reader, files, tmp_path):
    (tmp_path/'cut.png').write_bytes((files/'a.png').read_bytes()[:100])
    (tmp_path/'cut.inkml').write_bytes((files/'a.inkml').read_bytes()[:100])
    broken = Ink('broken', (np.array([[0, 0], [np.nan, 1]], np.float32),))
    sources = [tmp_path/'cut.png', files/'a.png', tmp_path/'none.png', tmp_path, tmp_path/'cut.inkml', INKS['root'], np.zeros(3), None, broken]
    made = reader.read_all(sources)
    assert [isinstance(m, Recognition) for m in made] == [False, True, False, False, False, True, False, False, False] and made[8].name == 'broken'
    assert all(m.reason and (';' in m.reason) for m in made if isinstance(m, Failure))
    assert made[0].name == str(tmp_path/'cut.png') and made[6].name == 'input 7'
    with pytest.raises(ImageError): reader(sources)

def test_doubts_are_said(reader):
    wide = max(t[:, 0].max() for t in INKS['root'].traces)
    long = dataclasses.replace(INKS['root'], traces=tuple(t + np.float32([1.2*wide*k, 0]) for k in range(12) for t in INKS['root'].traces))
    assert any('scaled down' in w for w in reader(long).warnings)
    assert room.doubts(np.zeros((40, 60)), ['x', '^'], False, RenderConfig()) and not room.doubts(np.zeros((40, 60)), ['x'], True, RenderConfig())

def test_words_are_no_formula():
    read, warned = Recognizer.load(device='cpu'), []
    for k, word in enumerate(('homework', 'exercise', 'please', 'answers', 'chapter', 'unknown', 'solution', 'proof')):
        reading = read(write(list(word), Writer(10_000_000 + k), np.random.default_rng(k)))
        warned.append(any('text' in w for w in reading.warnings))
        assert reading.confidence < 0.5 or not warned[-1]
    assert sum(warned) >= 6 and not any('text' in w for ink in INKS.values() for w in read(ink).warnings)

def test_probability():
    assert probability(Hypothesis([4, 5], 0., -1., True, False, -3.), 0., 100) == pytest.approx(np.exp(-2))
    assert probability(Hypothesis([4, 5], 0., -1., True), 0., 100) == pytest.approx(np.exp(-1))
    top = np.log(1 - 0.1 + 0.1/50)
    assert probability(Hypothesis([4, 5], 0., 3*top - 0.7, True), 0.1, 50) == pytest.approx(np.exp(-0.7))
    assert probability(Hypothesis([4, 5], 0., 0., True), 0.1, 50) == 1.  # never above

# --- overlay ---

def test_overlay(reader):
    r = reader(INKS['series'])
    H, W = r.image.shape
    plain, again = overlay(r), overlay(r)
    assert plain.size == (3*W, 3*H) and plain.mode == 'RGB' and np.array_equal(plain, again)
    pixels = np.asarray(overlay(r, zoom=1)).astype(int)
    assert pixels[r.image == 255].max() == 0                                  # ink stays black
    assert (pixels.max(-1) - pixels.min(-1)).max() > 60                       # and there is colour
    with pytest.raises(IndexError, match='tokens'): overlay(r, token=len(r.tokens))

# --- weights ---

def test_shipped_weights_or_a_cure():
    try: path = room.default_weights()
    except RunError as e: assert 'compact.safetensors' in str(e) and '--weights' in str(e)
    else: assert path.name == 'compact.safetensors' and Recognizer.load()(INKS['fraction']).tokens

def test_without_shipped_weights(monkeypatch, tmp_path):
    monkeypatch.setattr(room.importlib.resources, 'files', lambda name: tmp_path)
    with pytest.raises(RunError, match='no trained weights.*--weights'): Recognizer.load()

def test_a_run_folder_will_do(weights):
    assert find_weights(weights.parent) == weights == find_weights(str(weights))
    assert Recognizer.load(weights.parent, device='cpu')(INKS['root']).latex == Recognizer.load(weights, device='cpu')(INKS['root']).latex

@pytest.mark.parametrize('make, word', [
    (lambda p: p.mkdir(), 'without model.safetensors'), (lambda p: None, 'no such'), (lambda p: p.write_bytes(b''), 'not a readable'),
    (lambda p: p.write_bytes(b'PK\x03\x04 pickled'), 'not a readable'), (lambda p: save_tensors(p, {'a': torch.zeros(2)}), 'no model')])
def test_weights_that_are_none(tmp_path, make, word):
    make(tmp_path/'w')
    with pytest.raises(RunError, match=word): Recognizer.load(tmp_path/'w')

def test_pickles_are_never_opened(tmp_path):
    class Bomb:
        def __reduce__(self): return (builtins.print, ('boom',))
    torch.save(Bomb(), tmp_path/'w.safetensors')
    with pytest.raises(RunError, match='not a readable'): Recognizer.load(tmp_path/'w.safetensors')

def test_no_network(weights, files, monkeypatch):
    def forbidden(*args, **options): raise AssertionError('the network was touched')
    monkeypatch.setattr(socket, 'socket', forbidden); monkeypatch.setattr(socket, 'create_connection', forbidden); monkeypatch.setattr(socket, 'getaddrinfo', forbidden)
    reader = Recognizer.load(weights, device='cpu')
    assert reader([files/'a.inkml', files/'a.png'])[0].tokens is not None

def test_onnx_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path/'model.json').write_text('{}')
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    with pytest.raises(RunError, match=r"onnxruntime.*pip install 'mask_match\[onnx\]'"): Recognizer.load(tmp_path)

def test_shipped_weights_have_names():
    assert find_weights() == find_weights('compact')
    with pytest.raises(RunError, match='paper.safetensors'): find_weights('paper')

def test_each_keeps_nothing(reader):
    "Readings come one by one: the second source is not touched before the first reading is out."
    touched = []
    def sources():
        for name in ('fraction', 'root'):
            touched.append(name)
            yield INKS[name]
    readings = reader.each(sources())
    assert isinstance(next(readings), Recognition) and touched == ['fraction']
    assert isinstance(next(readings), Recognition) and next(readings, None) is None
    with pytest.raises(ValueError, match='ahead 0'): next(reader.each(sources(), 0))

@pytest.mark.parametrize('ahead', [2, 3, 50])
def test_looking_ahead_changes_nothing(reader, ahead, tmp_path):
    sources = [INKS[n] for n in ('root', 'fraction', 'root', 'nested', 'root')]
    sources[3:3] = [tmp_path/'none.png', None]
    one, more = list(reader.each(sources)), list(reader.each(sources, ahead))
    assert [m.name for m in more] == [m.name for m in one] and isinstance(more[3], Failure) and more[4].name == 'input 5'
    assert [m.latex for m in more if isinstance(m, Recognition)] == [m.latex for m in one if isinstance(m, Recognition)]
