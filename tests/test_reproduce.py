"The chain of notebooks under bad weather: misspelt parameters, lost tags, failures, interruptions, changed code."
import json, os, signal, subprocess, sys, textwrap, time
from pathlib import Path
import nbformat, pytest
from mask_match import reproduce as room
from mask_match.runs import RunError
from mask_match.reproduce import ReproduceError, Task, graph, ordered, run_tasks, signature

ROOT = Path(__file__).resolve().parents[1]

def write(path, *cells):
    "Write a notebook; a tuple is (source, tag)."
    made = [nbformat.v4.new_code_cell(c if isinstance(c, str) else c[0], id=f'c{i}', metadata={} if isinstance(c, str) else {'tags': [c[1]]}) for i, c in enumerate(cells)]
    nbformat.write(nbformat.v4.new_notebook(cells=made, metadata={'kernelspec': {'name': 'python3', 'display_name': 'python3', 'language': 'python'}}), path)
    return path

@pytest.fixture
def toy(tmp_path):
    "Two notebooks, the second reads what the first wrote, and a function that runs them."
    class Toy:
        runs, figures, lines = tmp_path/'runs', tmp_path/'figures', []
        first = write(tmp_path/'first.ipynb', ("number = 1\nruns_dir = ''", 'parameters'), 'from pathlib import Path\n_ = Path(runs_dir, "a.txt").write_text(str(number))')
        second = write(tmp_path/'second.ipynb', ("runs_dir = ''\nfigures_dir = ''\nfail = False", 'parameters'), 'from pathlib import Path\nif fail: raise ValueError("no such luck")',
                       '_ = Path(figures_dir, "b.txt").write_text(Path(runs_dir, "a.txt").read_text())')
        def tasks(self, number=1, **more):
            where = dict(runs_dir=str(self.runs))
            return [Task(self.first, dict(where, number=number), outputs=('a.txt',)), Task(self.second, dict(where, figures_dir=str(self.figures), **more), needs=('first',))]
        def go(self, number=1, force=False, data=None, **more):
            "Run both; the names of those that ran."
            self.lines.clear()
            run_tasks(self.tasks(number, **more), self.runs, self.figures, data=data, force=force, say=self.lines.append)
            return [l.split()[0] for l in self.lines if ' runs (' in l]
    return Toy()

def test_runs_skips_and_tells_why(toy):
    assert toy.go() == ['first', 'second']
    assert toy.go() == [] and 'is current' in toy.lines[0]
    assert toy.go(number=2) == ['first', 'second'] and 'parameters changed: number' in toy.lines[0] and 'needs changed: first' in toy.lines[2]
    assert (toy.figures/'b.txt').read_text() == '2'
    assert toy.go(number=2, force=True) == ['first', 'second']
    (toy.figures/'b.txt').unlink()
    assert toy.go(number=2) == ['second'] and 'b.txt' in toy.lines[1]
    record = json.loads((toy.runs/'second.json').read_text())
    assert record['figures'].keys() == {'b.txt'} and {'commit', 'versions', 'changed_files'} <= record['provenance'].keys() and record['seconds'] > 0

def test_executed_copy_holds_the_injected_parameters(toy):
    toy.go(number=7)
    tags = [c['metadata'].get('tags', []) for c in json.loads((toy.runs/'first.ipynb').read_text())['cells']]
    assert tags[:2] == [['parameters'], ['injected-parameters']]

def test_changed_notebook_runs_again_but_a_comment_does_not(toy):
    toy.go()
    text = toy.second.read_text()
    toy.second.write_text(text.replace('from pathlib import Path\\n', 'from pathlib import Path  # paths\\n'))
    assert toy.go() == []
    toy.second.write_text(text.replace('read_text())', "read_text() + '!')"))
    assert toy.go() == ['second'] and (toy.figures/'b.txt').read_text() == '1!'

def test_changed_data_is_noticed(toy, tmp_path):
    data = tmp_path/'ink'
    data.mkdir(); (data/'x.inkml').write_text('<ink/>')
    assert toy.go(data=data) == ['first', 'second'] and toy.go(data=data) == []
    (data/'x.inkml').write_text('<ink></ink>')
    assert toy.go(data=data)[0] == 'first' and 'data changed' in toy.lines[0]

def test_changed_library_code_is_noticed(tmp_path):
    (tmp_path/'alpha.py').write_text('from .beta import b\n')
    (tmp_path/'beta.py').write_text('b = 1\n')
    (tmp_path/'gamma.py').write_text('c = 1\n')
    cells = ['from mask_match.alpha import x']
    before = room.used_code(cells, tmp_path)
    assert list(before) == ['alpha', 'beta']
    (tmp_path/'gamma.py').write_text('c = 2\n'); (tmp_path/'beta.py').write_text('b = 1  # one\n')
    assert room.used_code(cells, tmp_path) == before
    (tmp_path/'beta.py').write_text('b = 2\n')
    assert room.used_code(cells, tmp_path) != before

def test_unknown_parameter_names_the_nearest(toy):
    with pytest.raises(ReproduceError, match="unknown parameter 'nubmer'; did you mean 'number'"): ordered([Task(toy.first, dict(nubmer=1))])
    assert not toy.runs.exists()

def test_missing_tag_is_an_error_even_after_nbdev_clean(tmp_path):
    lost = write(tmp_path/'lost.ipynb', 'number = 1')
    with pytest.raises(ReproduceError, match='0 cells are tagged'): ordered([Task(lost, dict(number=2))])
    settings = (ROOT/'settings.ini').read_text()
    assert 'allowed_cell_metadata_keys = tags' in settings, 'without this nbdev_clean deletes the tag'

@pytest.mark.parametrize('bad', ['a = 1\nb = 2*a', 'import os', 'a = [x for x in (1, 2)]', 'print(1)', 'a, b = 1, 2'])
def test_only_literals(tmp_path, bad):
    with pytest.raises(ReproduceError, match='literals only'): signature(write(tmp_path/'n.ipynb', (bad, 'parameters')))

def test_literals_of_every_kind(tmp_path):
    cell = "# what\npreset: str = 'quick'  # which\nseed = -1\nrate = 1e-3\noverrides = ['a.b=1', 'c=2']\nnothing = None\nis_on = True"
    path = write(tmp_path/'n.ipynb', (cell, 'parameters'))
    assert signature(path) == dict(preset='quick', seed=-1, rate=1e-3, overrides=['a.b=1', 'c=2'], nothing=None, is_on=True)
    assert room.problems(Task(path, dict(overrides=['x=1']))) == []

def test_all_problems_come_at_once(toy, tmp_path):
    with pytest.raises(ReproduceError) as e: ordered([Task(tmp_path/'gone.ipynb'), Task(toy.first, dict(seed=1, number=Path('.')), needs=('nowhere',))])
    assert all(s in str(e.value) for s in ('no such notebook', "unknown parameter 'seed'", 'not a literal', "needs 'nowhere'"))

def test_failure_keeps_what_was_done(toy):
    with pytest.raises(ReproduceError, match='no such luck'): toy.go(fail=True)
    assert (toy.runs/'second.failed.ipynb').exists() and not (toy.runs/'second.ipynb').exists() and not (toy.runs/'second.json').exists()
    assert toy.go() == ['second'] and not (toy.runs/'second.failed.ipynb').exists()

def test_a_failure_after_success_is_not_current(toy):
    toy.go()
    with pytest.raises(ReproduceError): toy.go(fail=True)
    assert toy.go() == ['second']

def test_missing_output_is_a_failure(toy):
    with pytest.raises(ReproduceError, match='left no result.csv'): run_tasks([Task(toy.first, dict(runs_dir=str(toy.runs)), outputs=('a.txt', 'result.csv'))], toy.runs, toy.figures, say=str)

def test_a_second_process_is_kept_out(toy):
    toy.runs.mkdir()
    with room.alone_in(toy.runs), pytest.raises(RunError, match='another process'): toy.go()

@pytest.mark.slow
def test_kill_in_the_middle_then_resume(tmp_path):
    "A killed run leaves nothing that counts; the next one finds the half-made outputs and finishes."
    work = write(tmp_path/'work.ipynb', ("runs_dir = ''", 'parameters'), textwrap.dedent('''
        import os, time
        from pathlib import Path
        folder = Path(runs_dir, 'work'); folder.mkdir(exist_ok=True)
        resumed = (folder/'half.txt').exists()
        (folder/'half.txt').write_text('half')
        if not resumed: time.sleep(600)
        _ = (folder/'done.txt').write_text('resumed' if resumed else 'fresh')'''))
    runs = tmp_path/'runs'
    script = f'from mask_match.reproduce import *\nrun_tasks([Task({str(work)!r}, dict(runs_dir={str(runs)!r}), outputs=("work",))], {str(runs)!r}, {str(tmp_path/"figures")!r})'
    command = dict(args=[sys.executable, '-c', script], env={**os.environ, 'PYTHONPATH': str(ROOT)}, cwd=tmp_path)
    child = subprocess.Popen(**command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    limit = time.monotonic() + 300
    while not (runs/'work'/'half.txt').exists() and time.monotonic() < limit: time.sleep(0.1)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    assert not (runs/'work.json').exists() and not (runs/'work.ipynb').exists()
    done = subprocess.run(**command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert (runs/'work'/'done.txt').read_text() == 'resumed' and (runs/'work.json').exists() and not (runs/'work.partial.ipynb').exists()

def test_graph_of_the_project(tmp_path, monkeypatch):
    tasks = graph('quick', runs=tmp_path/'r', figures=tmp_path/'f', overrides=['finetune.fit.steps=3'])
    assert [t.name for t in tasks] == ['e0_data', 'e1_pretrain', 'e2_attend', 'e3_finetune', 'e4_evaluate', 'e9_report']
    assert all(set(t.parameters) == {'preset', 'seed', 'data_dir', 'runs_dir', 'figures_dir', 'overrides'} for t in tasks)
    assert Path(tasks[0].parameters['runs_dir']).is_absolute() and tasks[0].parameters['overrides'] == ['finetune.fit.steps=3']
    monkeypatch.delenv('MASK_MATCH_CROHME', raising=False)
    with pytest.raises(ReproduceError, match='--data'): graph('cpu')
    assert graph('quick', data=tmp_path)[0].parameters['overrides'] == ['data.source=crohme']

def test_outside_a_clone_the_message_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ReproduceError, match='not a clone of mask_match'): graph('quick')

def test_without_papermill_the_message_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, 'papermill', None)
    with pytest.raises(ReproduceError, match=r'make install|dev'): room.need_papermill()

def test_the_experiments_take_what_they_are_given():
    missing = [t.notebook.name for t in graph('quick') if not t.notebook.is_file()]
    if missing: pytest.fail(f'experiment notebooks that do not exist: {missing}')
    ordered(graph('quick'))

def test_parameters_in_the_wrong_place_are_a_failure(toy, monkeypatch):
    monkeypatch.setattr(room, 'misplaced', lambda notebook, parameters: 'the defaults may have won')
    with pytest.raises(ReproduceError, match='first failed: the defaults may have won'): toy.go()
    assert (toy.runs/'first.failed.ipynb').exists() and not (toy.runs/'first.json').exists()

def test_where_injected_parameters_stand(tmp_path):
    good = write(tmp_path/'good.ipynb', ('a = 1', 'parameters'), ('a = 2', 'injected-parameters'))
    bad = write(tmp_path/'bad.ipynb', ('a = 2', 'injected-parameters'), 'a = 1')
    assert room.misplaced(good, dict(a=2)) == '' and room.misplaced(bad, {}) == ''
    assert 'do not stand right after' in room.misplaced(bad, dict(a=2))

def test_a_lost_picture_trains_nothing_again(tmp_path):
    notebook = write(tmp_path/'work.ipynb', ("runs_dir = ''\nfigures_dir = ''", 'parameters'), textwrap.dedent('''
        from pathlib import Path
        work, picture = Path(runs_dir, 'work'), Path(figures_dir, 'work.txt')
        is_kept = (work/'done.txt').exists()
        work.mkdir(exist_ok=True); (work/'done.txt').write_text('trained')
        _ = picture.write_text('drawn again' if is_kept else 'first')'''))
    runs, figures = tmp_path/'runs', tmp_path/'figures'
    task = Task(notebook, dict(runs_dir=str(runs), figures_dir=str(figures)), outputs=('work',))
    go = lambda: run_tasks([task], runs, figures, say=lambda line: None)
    go(); assert (figures/'work.txt').read_text() == 'first'
    (figures/'work.txt').unlink(); go()
    assert (figures/'work.txt').read_text() == 'drawn again' and not (runs/'previous').exists()
    (runs/'work'/'done.txt').write_text('spoilt'); go()
    assert (figures/'work.txt').read_text() == 'first' and (runs/'previous'/'work').exists() and (runs/'work'/'done.txt').read_text() == 'trained'
