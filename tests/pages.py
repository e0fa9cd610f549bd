"A notebook or command runs in a process of its own: a copy of one that has imported what is heavy and nothing of ours, for that anew costs more than most pages do."
import multiprocessing, os, re, sys, time
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

def _use_this_tree():
    "Processes that this one starts find this tree's modules, whatever is installed."
    os.environ['PYTHONPATH'] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])])

def run_page(path: Path, folder: Path | None = None, cell_seconds: int = CELL_SECONDS) -> tuple[float, str]:
    "Execute a notebook in this process, in `folder` (its own), and throw the outputs away: seconds, and the error or ''."
    _use_this_tree()
    multiprocessing.set_start_method(None, force=True)  # processes that the page starts begin as they would elsewhere
    start, shell = time.monotonic(), CaptureShell(ROOT, mpl_format='png', timeout=cell_seconds)
    try:
        with working_directory(folder or path.parent): shell.run_all(read_nb(path), exc_stop=True, preproc=is_skipped)
    except BaseException: return time.monotonic() - start, shell.prettytb(path)[-3000:]
    return time.monotonic() - start, ''

def fresh(target, *args) -> multiprocessing.Process:
    "A process that nobody has used, begun."
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(HEAVY)
    process = context.Process(target=target, args=args)
    process.start()
    return process

def _answer(pipe, function, args): pipe.send(function(*args))

def alone(function, *args):
    "What a function returns in a process of its own; RuntimeError where that dies without an answer."
    here, there = multiprocessing.Pipe(duplex=False)
    process = fresh(_answer, there, function, args)
    there.close()
    try: return here.recv()
    except EOFError: pass
    finally: process.join()
    raise RuntimeError(f'{function.__name__}{args}: its process died with exit code {process.exitcode}')

def run_command(argv: list, said: Path):
    "`mask-match` with these arguments in this process, the first of a group of its own; what it says goes to a file."
    _use_this_tree()
    os.setsid()
    sys.argv = [str(Path(sys.executable).with_name('mask-match')), *argv]  # so begins a second process of a training
    with open(said, 'w') as file: os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
    from mask_match.cli import main
    sys.exit(main(argv))

def started(argv: list, said: Path) -> multiprocessing.Process:
    "A command that runs."
    return fresh(run_command, argv, said)
