"""Broken pictures and ink, made by chance but not by accident: case i of a seed is always the same file.

    python tests/fuzz.py --n 100000 --seed 1 --state fuzz.json      stops and goes on as often as you like

Each case must give an ink image within the bounds of the config, or an `ImageError` or `InkError` with a reason, in time and in bounded memory;
of each hundred that give an image one is read, and the reading must be valid LaTeX. Exit code 1 where one case did not."""
import argparse, io, json, resource, signal, sys, tempfile, time, traceback, warnings
from pathlib import Path
import numpy as np
from PIL import Image
from mask_match.config import RenderConfig
from mask_match.inkml import write_ink
from mask_match.latex import is_valid
from mask_match.photo import ImageError
from mask_match.recognize import to_image
from mask_match.render import render
from mask_match.runs import write_json
from mask_match.sources import InkError
from mask_match.synth import sample_inks

CONFIG, LIMIT_S, LIMIT_MB = RenderConfig(), 20, 1500   # memory on top of what was there at the start
FORMATS = dict(png={}, jpeg={}, bmp={}, gif={}, tiff={}, webp={}, ppm={})
EXTREMES = (b'\x00', b'\xff', b'\x00\x00\x00\x00', b'\xff\xff\xff\xff', b'\x7f\xff\xff\xff', b'\x80\x00\x00\x00', b'\x01\x00\x00\x00')
WORDS = b'nan inf -inf 1e308 -1e308 1e-320 0 , ; " <trace> </trace> <traceGroup> </ink> &amp; &x; <!-- \xff\xfe \x00 99999999999999999999 x1y2'.split()

class Hang(Exception): "A case took too long."

def seeds() -> dict:
    "Good files to break: name -> bytes."
    made = {}
    for k, ink in enumerate(sample_inks()[:8]):
        made[f'{k}.inkml'] = write_ink(ink)
        page = Image.fromarray(255 - render(ink.traces, RenderConfig(30., 3., 20, 300, 600)))
        for kind in FORMATS:
            out = io.BytesIO(); (page if k % 2 else page.convert('RGB')).save(out, kind); made[f'{k}.{kind}'] = out.getvalue()
    return made

def broken(data: bytes, rng, others: list, is_text: bool) -> bytes:
    "One to four changes."
    for _ in range(rng.integers(1, 5)):
        n, at = len(data), int(rng.integers(0, max(1, len(data)))) if rng.random() < 0.6 else int(rng.integers(0, max(1, min(64, len(data)))))
        change = rng.integers(0, 8)
        if change == 0: data = data[:at]                                                                  # cut short
        elif change == 1: data = data[:at] + bytes(rng.integers(0, 256, rng.integers(1, 9), dtype=np.uint8)) + data[at + 8:]
        elif change == 2: data = data[:at] + data[at + int(rng.integers(1, 50)):]                         # something is missing
        elif change == 3: end = at + int(rng.integers(1, 400)); data = data[:end] + data[at:end] + data[end:]  # said twice
        elif change == 4: word = EXTREMES[rng.integers(len(EXTREMES))]; data = data[:at] + word + data[at + len(word):]
        elif change == 5: other = others[rng.integers(len(others))]; data = data[:at] + other[int(rng.integers(0, len(other))):][:int(rng.integers(1, 500))] + data[at:]
        elif change == 6 and n: data = data[:at] + bytes([data[at] ^ 1 << int(rng.integers(8))]) + data[at + 1:]
        elif is_text: data = data[:at] + WORDS[rng.integers(len(WORDS))] + data[at:]
    return data

def drawn(rng):
    "A picture that no file holds: any mode, any shape, any values."
    H, W = (int(n) for n in rng.choice([1, 2, 3, 7, 20, 61, 200, 900], 2))
    pixels = [lambda s: rng.integers(0, 256, s), lambda s: np.full(s, rng.integers(0, 256)), lambda s: rng.integers(0, 2, s)*255,
              lambda s: np.broadcast_to(np.linspace(0, 255, s[1])[None, :, *[None]*(len(s) - 2)], s)][rng.integers(4)]
    mode = rng.choice(['L', 'RGB', 'RGBA', 'CMYK', 'LA', 'I;16', 'F', '1', 'P', 'float', 'int'])
    channels = dict(RGB=3, RGBA=4, CMYK=4, LA=2).get(str(mode))
    a = pixels((H, W, channels) if channels else (H, W))
    if mode == 'float': return np.where(rng.random((H, W)) < 0.001, np.nan, a/255.) if rng.random() < 0.3 else a/255.
    if mode == 'int': return a.astype(rng.choice(['int64', 'uint16', 'int8', 'bool']))
    if mode == 'I;16': return Image.fromarray((a*257).astype(np.uint16))
    if mode in ('F', '1', 'P'): return Image.fromarray(a.astype(np.uint8)).convert(str(mode))
    return Image.fromarray(a.astype(np.uint8), str(mode)) if mode in ('CMYK', 'LA') else Image.fromarray(a.astype(np.uint8))

def case(number: int, seed: int, good: dict, folder: Path):
    "The source of a case: a picture in memory, or a broken file (its name may lie about what it is)."
    rng = np.random.default_rng([seed, number])
    if rng.random() < 0.15: return drawn(rng)
    names = sorted(good)
    name = names[rng.integers(len(names))]
    data = broken(good[name], rng, list(good.values()), name.endswith('inkml'))
    end = names[rng.integers(len(names))] if rng.random() < 0.1 else name
    path = folder/f'case{end[1:]}'
    path.write_bytes(data)
    return path

def judge(source, reader=None) -> str:
    "'image', 'read' or 'refused'; anything else is an exception."
    try: image = to_image(source, CONFIG)
    except (ImageError, InkError) as e:
        if len(str(e)) < 15: raise AssertionError(f'a refusal without a reason: {e}') from e
        return 'refused'
    assert image.dtype == np.uint8 and image.ndim == 2 and 0 < image.shape[0] <= CONFIG.max_height + 8 and 0 < image.shape[1] <= CONFIG.max_width + 8, (image.dtype, image.shape)
    if reader is None: return 'image'
    from mask_match.recognize import read_image
    assert is_valid(read_image(reader, image).tokens)
    return 'read'

def memory() -> float: return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024  # peak (MB)

def run(numbers, seed: int, reader=None, say=lambda state: None) -> dict:
    "Judge cases; returns counts, the slowest case and the failures."
    def too_long(*_): raise Hang(f'more than {LIMIT_S} s')
    state = dict(image=0, read=0, refused=0, slowest_s=0., slowest=None, failures=[], done=0)
    good, before = seeds(), signal.signal(signal.SIGALRM, too_long)
    for n in range(2): judge(case(n, seed, good, Path(tempfile.gettempdir())))      # what is loaded once is no leak
    floor = memory()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter('ignore')                                             # decoders grumble over every broken file
        for number in numbers:
            begun = time.perf_counter()
            signal.alarm(LIMIT_S)
            try: state[judge(case(number, seed, good, Path(folder)), reader if number % 100 == 0 else None)] += 1
            except (Exception, Hang) as e:
                state['failures'].append(dict(case=number, seed=seed, error=f'{type(e).__name__}: {e}', at=traceback.format_exc().splitlines()[-4:]))
            finally: signal.alarm(0)
            if (spent := time.perf_counter() - begun) > state['slowest_s']: state.update(slowest_s=round(spent, 3), slowest=number)
            state.update(done=number + 1, grown_mb=round(memory() - floor, 1))
            if number % 200 == 199: say(state)
    signal.signal(signal.SIGALRM, before)
    if state.get('grown_mb', 0) > LIMIT_MB: state['failures'].append(dict(error=f"memory grew by {state['grown_mb']} MB"))
    return state

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default, kind in (('--n', 100_000, int), ('--seed', 1, int), ('--state', 'fuzz.json', Path)): parser.add_argument(name, default=default, type=kind)
    args = parser.parse_args()
    from mask_match.recognize import Recognizer
    old = json.loads(args.state.read_text()) if args.state.exists() else None
    if old and old['seed'] != args.seed: sys.exit(f"{args.state} belongs to seed {old['seed']}; give another --state or --seed {old['seed']}")
    def joined(new):
        if not old: return dict(new, seed=args.seed)
        most = max((old, new), key=lambda s: s['slowest_s'])
        return dict(new, seed=args.seed, **{k: old[k] + new[k] for k in ('image', 'read', 'refused', 'failures')}, slowest_s=most['slowest_s'], slowest=most['slowest'],
                    grown_mb=max(old['grown_mb'], new['grown_mb']))
    keep = lambda state: write_json(args.state, joined(state))
    numbers = range(old['done'] if old else 0, args.n)
    if numbers: keep(run(numbers, args.seed, Recognizer.load(beam=1), keep))
    state = json.loads(args.state.read_text())
    print(json.dumps({k: v for k, v in state.items() if k != 'failures'}), f"{len(state['failures'])} failures")
    for failure in state['failures'][:10]: print(json.dumps(failure))
    sys.exit(bool(state['failures']))

if __name__ == '__main__': main()
