"A slice of the fuzz run (`python tests/fuzz.py` does the long one), and that it would notice."
import json, subprocess, sys, time
from pathlib import Path
import fuzz, numpy as np
from mask_match.photo import ImageError

def test_a_slice():
    made = fuzz.run(range(120), seed=7)
    assert made['failures'] == [] and made['image'] + made['refused'] == 120 and min(made['image'], made['refused']) > 10

def test_a_case_is_always_the_same(tmp_path):
    good = fuzz.seeds()
    def content(number):
        source = fuzz.case(number, 7, good, tmp_path)
        return source.read_bytes() if isinstance(source, Path) else np.asarray(source).tobytes()
    made = [content(n) for n in range(40)]
    assert made == [content(n) for n in range(40)] and len(set(made)) > 30

def test_it_notices(monkeypatch):
    def refuse_without_a_word(): raise ImageError('no')
    ways = [lambda: np.ones((9, 9), np.uint8)]*3 + [lambda: 1/0, lambda: np.ones((3, 9999), np.uint8), lambda: np.ones((9, 9)), refuse_without_a_word, lambda: time.sleep(9)]
    turn = iter(ways)
    monkeypatch.setattr(fuzz, 'LIMIT_S', 1)
    monkeypatch.setattr(fuzz, 'to_image', lambda source, config: next(turn)())
    made = fuzz.run(range(6), seed=7)                                             # two more are judged before the clock starts
    assert made['image'] == 1 and [f['case'] for f in made['failures']] == [1, 2, 3, 4, 5]
    assert [f['error'].split(':')[0] for f in made['failures']] == ['ZeroDivisionError', *['AssertionError']*3, 'Hang']

def test_the_long_run_goes_on_where_it_stopped(tmp_path):
    def call(n, seed=3): return subprocess.run([sys.executable, fuzz.__file__, '--n', str(n), '--seed', str(seed), '--state', tmp_path/'s.json'], capture_output=True, text=True)
    assert call(20).returncode == 0 and call(30).returncode == 0
    state = json.loads((tmp_path/'s.json').read_text())
    whole = fuzz.run(range(30), seed=3)
    assert state['done'] == 30 and state['refused'] == whole['refused'] and state['image'] + state['read'] == whole['image']
    assert 'belongs to seed 3' in call(40, seed=4).stderr
