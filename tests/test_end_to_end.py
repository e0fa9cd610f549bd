"The real chain of experiments at its smallest size: by papermill, once more when nothing has changed, and notebook by notebook."
import json, os, subprocess, sys
from pathlib import Path
import nbformat, pytest
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from mask_match.finetune import load_model
from mask_match.reproduce import EXPERIMENTS, graph
from pages import ROOT, alone, run_page

TIMES = {'expressions_per_second', 'seconds'}  # of one machine at one moment
FIGURES = ['data', 'training_ink', 'pretrain', 'masking_curriculum', 'attend', 'learning_curve', 'attention_maps', 'results', 'examples', 'fixtures', 'report']

def start(folder) -> subprocess.Popen:
    command = [sys.executable, '-m', 'mask_match.cli', 'reproduce', '--preset', 'smoke', '--runs', str(folder/'runs'), '--figures', str(folder/'figures'),
               '--set', 'threads=1']  # two chains share the cores
    return subprocess.Popen(command, cwd=ROOT, env=dict(os.environ, PYTHONPATH=str(ROOT)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

def timeless(data):
    "Plain data without what a clock says."
    if isinstance(data, dict): return {k: timeless(v) for k, v in data.items() if k not in TIMES}
    return [timeless(v) for v in data] if isinstance(data, list) else data

def numbers(folder) -> dict:
    return {p.stem: timeless(json.loads(p.read_text())['numbers']) for p in sorted((folder/'figures').glob('*.json'))}

def by_hand(notebook, given, folder):
    "Execute a notebook with parameters, in a process of its own."
    nbformat.write(parameterize_notebook(load_notebook_node(str(notebook)), given), folder/'given.ipynb')
    error = alone(run_page, folder/'given.ipynb', Path(notebook).parent)[1]
    assert not error, error

@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "Two runs of the chain in two folders, side by side: as `mask-match reproduce` does it, and one notebook after the other by hand, without the report of the records."
    first, second = (tmp_path_factory.mktemp(name) for name in ('first', 'second'))
    with start(first) as process:
        for task in graph('smoke', runs=second/'runs', figures=second/'figures', overrides=['threads=1'])[:-1]: by_hand(task.notebook, task.parameters, second)
        said = process.communicate(timeout=900)[0]
    assert process.returncode == 0, said[-3000:]
    assert 'nable to parse' not in said and 'unknown parameter' not in said, said
    return first, second

@pytest.mark.slow
def test_every_picture_and_table_is_there(made):
    names = {p.name for p in (made[0]/'figures').iterdir()}
    for name in FIGURES: assert f'smoke_{name}.json' in names and names & {f'smoke_{name}.png', f'smoke_{name}.md'}, (name, sorted(names))
    assert {p.name for p in (made[0]/'runs').glob('e*.ipynb')} == {f'{name}.ipynb' for name in EXPERIMENTS}

@pytest.mark.slow
def test_the_same_seed_gives_the_same_numbers(made):
    first, second = map(numbers, made)
    assert first.keys() - second.keys() == {'smoke_report'} and {k: first[k] for k in second} == second
    assert first['smoke_learning_curve'] and len(first['smoke_results']) == 2

@pytest.mark.slow
def test_nothing_runs_again(made):
    before = {p: p.stat().st_mtime_ns for p in (made[0]/'figures').iterdir()}
    process = start(made[0])
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0 and said.count('is current') == 6, said
    assert before == {p: p.stat().st_mtime_ns for p in (made[0]/'figures').iterdir()}

def test_what_is_compared_can_differ():
    assert timeless([dict(loss=1, seconds=2)]) == timeless([dict(loss=1, seconds=3)]) != timeless([dict(loss=2, seconds=2)])

@pytest.mark.slow
@pytest.mark.parametrize('name, figure', [('x3_restart', 'restart'), ('x4_calibration', 'calibration'), ('x5_reading_size', 'reading_size'), ('x6_photos', 'photos'),
    ('x7_mix', 'mix'), ('x8_onnx', 'onnx'), ('x9_judges', 'judges'), ('x10_scale', 'scale'), ('x11_rare', 'rare'), ('x12_cells', 'cells'), ('x13_batch', 'batch'), ('x14_lines', 'lines'),
    ('x15_trainings', 'localisation_trainings'), ('e7_attention_localisation', 'localisation'), ('e10_prior', 'prior'), ('e11_atlas', 'atlas'), ('e5_grid', 'baselines'), ('e5_grid', 'labels'), ('e6_health', 'health'), ('e8_occlusion', 'occlusion')])
def test_experiments_beside_the_chain(made, name, figure, tmp_path):
    "They begin where a finished chain has ended."
    notebook = ROOT/'nbs'/'experiments'/f'{name}.ipynb'
    given = dict(preset='smoke', overrides=['threads=1'], runs_dir=str(made[0]/'runs'), figures_dir=str(tmp_path))
    if name == 'e5_grid': given |= dict(seeds=[1], study=figure, only=dict(baselines=3, labels=6)[figure])
    if name == 'e6_health': given |= dict(seeds=[1], every=2)   # beside the arms of e5
    if name == 'x14_lines': given |= dict(n=1)
    if name == 'x7_mix': given |= dict(third=str(made[0]/'runs'/'e3_finetune'/'model.safetensors'), keep=0.5, runs_dir=str(made[1]/'runs'))
    if name == 'x6_photos': given |= dict(n=4, kinds=['jpeg', 'pen 3'])
    by_hand(notebook, given, tmp_path)
    told = json.loads((tmp_path/f'smoke_{figure}.json').read_text())
    assert told['preset'] == 'smoke' and told['numbers']
    if name == 'x7_mix': assert load_model(made[1]/'runs'/'x7_mix'/'model.safetensors')[3]['share'] == 0.5
    if name == 'e5_grid': assert list((tmp_path/'arms').glob('*.json')) and list((tmp_path/'arms').glob('*/validation.jsonl.xz'))
