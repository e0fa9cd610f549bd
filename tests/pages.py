"A notebook runs in a process of its own: a copy of one that has imported what is heavy and nothing of ours, for that anew costs more than most pages do."
import multiprocessing, os, re, time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from execnb.nbio import read_nb
from execnb.shell import CaptureShell
from fastcore.xtras import working_directory

ROOT = Path(__file__).resolve().parents[1]
CELL_SECONDS = 1200  # what one cell gets on a busy machine
HEAVY = ['torch', 'lightning_fabric', 'seaborn', 'lxml.etree', 'execnb.shell', 'papermill']

def is_skipped(cell) -> bool:
    "Whether nbdev would leave this cell out: `#| eval: false`, or a flag of settings.ini's tst_flags as directive."
    return bool(re.search(r'^#\|\s*(eval:\s*false|slow\b|notest\b)', cell.source, re.M | re.I))

def run_page(path: Path, folder: Path | None = None, cell_seconds: int = CELL_SECONDS) -> tuple[float, str]:
    "Execute a notebook in this process, in `folder` (its own), and throw the outputs away: seconds, and the error or ''."
    os.environ['PYTHONPATH'] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])])  # this tree's modules, whatever is installed
    multiprocessing.set_start_method(None, force=True)  # processes that the page starts begin as they would elsewhere
    start, shell = time.monotonic(), CaptureShell(ROOT, mpl_format='png', timeout=cell_seconds)
    try:
        with working_directory(folder or path.parent): shell.run_all(read_nb(path), exc_stop=True, preproc=is_skipped)
    except BaseException: return time.monotonic() - start, shell.prettytb(path)[-3000:]
    return time.monotonic() - start, ''

def fresh_processes(at_once: int = 1) -> ProcessPoolExecutor:
    "Runs `at_once` notebooks at a time, each in a process that nobody has used."
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(HEAVY)
    return ProcessPoolExecutor(at_once, mp_context=context, max_tasks_per_child=1)
