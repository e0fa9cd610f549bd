"What all tests share: few threads, and the place of the CROHME ink where there is any."
import os
for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'NUMEXPR_NUM_THREADS'): os.environ.setdefault(name, '1')  # before torch and numpy come in
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')  # threads that wait leave their core to the other worker: half the time where it is busy
os.environ.setdefault('MPLBACKEND', 'agg')
os.environ.setdefault('PYDEVD_DISABLE_FILE_VALIDATION', '1')  # a warning of every kernel

from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parents[1]

def pytest_configure(config):
    config.addinivalue_line('markers', 'slow: takes more than ten seconds (run all the same)')

@pytest.fixture(scope='session')
def root() -> Path: return ROOT

@pytest.fixture(scope='session')
def crohme() -> Path:
    "The folder with CROHME archives and captions; a test that wants it is skipped where there is none."
    asked = os.environ.get('MASK_MATCH_CROHME')
    for place in [asked] if asked else [ROOT/'shared'/'data'/'crohme', ROOT.parent/'shared'/'data'/'crohme']:
        if Path(place).is_dir(): return Path(place)
    pytest.skip('no CROHME ink here: set MASK_MATCH_CROHME to its folder')
