"`mask-match` at its smallest size, and a corpus of wrong command lines: exit code 2, one line, no leftovers."
import contextlib, io, json, os, shutil, signal, subprocess, sys, tarfile, time
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from mask_match import cli
from mask_match.config import RenderConfig, smoke
from mask_match.finetune import MaskMatch, save_model
from mask_match.inkml import write_ink
from mask_match.latex import Vocabulary, is_valid
from mask_match.render import render
from mask_match.runs import load_tensors, save_tensors
from mask_match.state import load_checkpoint
from mask_match.synth import sample_inks, synthesise

ROOT = Path(__file__).resolve().parents[1]
TINY = ['--preset', 'smoke', '--set', 'data.n_train=12', 'data.n_validation=4', 'data.n_test=4',
        'pretrain.fit.steps=2', 'attend.fit.steps=2', 'finetune.fit.steps=2']

def call(*argv):
    "Exit code, standard output, standard error of a command run here."
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err): code = cli.main(argv)
    return code, out.getvalue(), err.getvalue()

def ok(*argv):
    code, out, err = call(*argv)
    assert code == 0, err
    return out

@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "A folder with ink, packed ink, weights and runs of all three stages."
    p = tmp_path_factory.mktemp('cli')
    for split in ('train', 'validation'):
        for ink in synthesise(6, 1, 'small', split):
            path = p/'ink'/split/f'{ink.name}.inkml'
            path.parent.mkdir(parents=True, exist_ok=True); path.write_bytes(write_ink(ink))
    (p/'plain').mkdir()
    for ink in synthesise(6, 2, 'small', 'test'): (p/'plain'/f'{ink.name}.inkml').write_bytes(write_ink(ink))
    fraction = next(i for i in sample_inks() if i.name == 'fraction')
    (p/'a.inkml').write_bytes(write_ink(fraction))
    Image.fromarray(255 - render(fraction.traces, RenderConfig(40., 4., 30, 2000, 2000))).save(p/'a.png')
    Image.new('L', (80, 40), 255).save(p/'blank.png')
    (p/'cut.inkml').write_bytes(write_ink(fraction)[:300]); (p/'zero.inkml').write_bytes(b'')
    (p/'notes.txt').write_text('no ink, no weights'); (p/'empty').mkdir()
    (p/'cut.zip').write_bytes(b'PK\x03\x04' + bytes(20))
    (p/'captions.txt').write_text('no tab here\n')
    (p/'others.txt').write_text('nobody\tx + 1\n'); (p/'twice.txt').write_text('a\tx\na\ty\n')
    with tarfile.open(p/'whole.tar.xz', 'w:xz') as archive: archive.add(p/'ink', 'ink')
    (p/'short.tar.xz').write_bytes((p/'whole.tar.xz').read_bytes()[:-400])
    torch.manual_seed(0)
    vocabulary = Vocabulary.field()
    save_model(p/'model.safetensors', MaskMatch(smoke(), len(vocabulary)), smoke(), vocabulary, {})
    save_tensors(p/'other.safetensors', {'encoder.x': torch.zeros(2)})
    ok('pretrain', *TINY, '--out', p/'runs'/'one')
    ok('attend', *TINY, '--from', p/'runs'/'one', '--out', p/'runs'/'two')
    ok('finetune', *TINY, '--from', p/'runs'/'two', '--out', p/'runs'/'three')
    ok('data', p/'ink', '--out', p/'packed')
    (p/'damaged').mkdir(); (p/'damaged'/'config.json').write_text('{"seed": ')
    return p

# --- what works ---

def test_help_is_fast_and_heavy_rooms_wait():
    script = "import sys; from mask_match.cli import main; code = main(['--help']); assert 'torch' not in sys.modules and 'numpy' not in sys.modules; sys.exit(code)"
    start = time.monotonic()
    done = subprocess.run([sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and all(name in done.stdout for name in cli.COMMANDS), done.stderr
    assert time.monotonic() - start < 20  # 0.2 s on an idle machine

@pytest.mark.parametrize('command', cli.COMMANDS)
def test_every_command_explains_itself(command):
    out = ok(command, '--help')
    assert out.startswith('usage: mask-match') and '--debug' in out

def test_version():
    import mask_match
    assert ok('--version').strip() == f'mask-match {mask_match.__version__}'

def test_synth_is_the_same_twice(tmp_path):
    for name in 'ab': ok('synth', '--n', 5, '--seed', 9, '--out', tmp_path/name, '--grammar', 'small', '--split', 'validation')
    read = lambda name: {p.name: p.read_bytes() for p in (tmp_path/name).iterdir()}
    assert read('a') == read('b') and len(read('a')) == 5
    ok('synth', '--n', 5, '--seed', 10, '--out', tmp_path/'c', '--grammar', 'small', '--split', 'validation')
    assert set(read('c').values()).isdisjoint(read('a').values())

def test_data_by_folders_by_name_and_with_captions(place, tmp_path):
    out = ok('data', place/'ink', '--out', tmp_path/'p')
    assert sorted(f.stem for f in (tmp_path/'p').iterdir()) == ['train', 'validation'] and 'train: 6 inks, 6 packed, 0 rejected' in out
    ok('data', place/'plain', '--out', tmp_path/'p', '--split', 'mine')                          # joins the folder
    assert sorted(f.stem for f in (tmp_path/'p').iterdir()) == ['mine', 'train', 'validation']
    name = next((place/'plain').iterdir()).stem
    (tmp_path/'captions.txt').write_text(f'{name}\tx ^ {{ 2 }}\n')
    ok('data', place/'plain', '--out', tmp_path/'q', '--captions', tmp_path/'captions.txt')
    from mask_match.data import load_packed
    packed = load_packed(tmp_path/'q', 'train')
    assert packed.caption(packed.names.index(name)) == 'x ^ { 2 }'.split()

def test_data_tells_what_it_rejects(place, tmp_path):
    code, out, err = call('data', place/'plain', place/'cut.inkml', place/'zero.inkml', '--out', tmp_path/'p', '--split', 'test')
    assert code == 0 and '8 inks, 6 packed, 2 rejected' in out and 'cut.inkml' in err and 'zero.inkml' in err

def test_the_three_stages_hand_over(place):
    one, two, three = (load_tensors(place/'runs'/n/'weights.safetensors')[0] for n in ('one', 'two', 'three'))
    assert all(k.startswith('encoder.') for k in one) and {k.split('.')[0] for k in two} == {k.split('.')[0] for k in three} == {'encoder', 'attention'}
    assert (place/'runs'/'three'/'model.safetensors').exists()
    assert len([p for p in (place/'runs').iterdir() if p.name.startswith('ink-')]) == 1, 'the three share their ink'

def test_a_finished_run_answers_at_once(place):
    before = {p: p.stat().st_mtime_ns for p in (place/'runs'/'three').iterdir()}
    assert 'model.safetensors' in ok('finetune', *TINY, '--from', place/'runs'/'two', '--out', place/'runs'/'three')
    assert before == {p: p.stat().st_mtime_ns for p in (place/'runs'/'three').iterdir()}

def test_training_on_given_ink(place, tmp_path):
    for name, data in (('a', 'packed'), ('b', 'ink')): ok('finetune', *TINY, 'finetune.cutout_share=0.5', '--data', place/data, '--out', tmp_path/name)
    a, b = (load_tensors(tmp_path/n/'weights.safetensors')[0] for n in 'ab')
    assert all(torch.equal(a[k], b[k]) for k in a), 'packed before, or packed on the way: the same run'

@pytest.mark.parametrize('stage', ['pretrain', 'attend', 'finetune'])
def test_three_slices_are_one_run(stage, place, tmp_path, monkeypatch):
    "`--deadline-s` stops with exit code 3 at a checkpoint; here the time is always over, so every slice is one step."
    told = [stage, *TINY, f'{stage}.fit.steps=3', f'{stage}.fit.checkpoint_every=1', '--data', place/'packed', '--out']
    ok(*told, tmp_path/'whole')
    assert call(*told, tmp_path/'ample', '--deadline-s', 900)[0] == 0
    monkeypatch.setattr('mask_match.fit._Watch.is_over', lambda self, is_kept: self.until < float('inf'))
    codes, said, _ = zip(*(call(*told, tmp_path/'cut', '--deadline-s', 900) for _ in range(3)))
    assert codes == (3, 3, 0) and '1 of 3 steps' in said[0] and '2 of 3 steps' in said[1]
    for name in ('weights.safetensors', '', *['model.safetensors']*(stage == 'finetune')):
        whole, ample, cut = ((load_tensors if name else load_checkpoint)(tmp_path/folder/name)[0] for folder in ('whole', 'ample', 'cut'))
        assert all(torch.equal(whole[k], cut[k]) and torch.equal(whole[k], ample[k]) for k in whole), name

def test_evaluate_writes_metrics_and_predictions(place, tmp_path):
    out = ok('evaluate', '--data', place/'packed', '--split', 'validation', '--weights', place/'runs'/'three', '--beam', 2, '--json', tmp_path/'m.json', '--predictions', tmp_path/'p.jsonl')
    made = json.loads((tmp_path/'m.json').read_text())
    assert {'split', 'n', 'n_rejected', 'exprate', 'leq1', 'leq2', 'leq3', 'token_error_rate', 'ci95', 'beam', 'weights_sha256', 'seconds'} <= made.keys()
    assert (made['n'], made['beam'], made['split']) == (6, 2, 'validation') and all(0 <= made[k] <= 1 for k in ('exprate', 'leq1', 'leq2', 'leq3'))
    assert len((tmp_path/'p.jsonl').read_text().splitlines()) == 6 and f"exprate           {made['exprate']:.4f}" in out
    ok('evaluate', '--data', place/'ink', '--split', 'validation', '--weights', place/'runs'/'three', '--beam', 2, '--json', tmp_path/'n.json')  # InkML: the same numbers
    again = json.loads((tmp_path/'n.json').read_text())
    assert {k: v for k, v in made.items() if k != 'seconds'} == {k: v for k, v in again.items() if k != 'seconds'}

def test_valid_latex_unless_unbound(place, tmp_path):
    "A model of random weights, fond of braces, writes nonsense; bound to the grammar it is LaTeX."
    vocabulary, said = Vocabulary.field(), {}
    model = MaskMatch(smoke(), len(vocabulary))
    with torch.no_grad(): model.decoder.head.bias[vocabulary.encode('{ } ^ _ \\frac'.split())] += 2
    save_model(tmp_path/'model.safetensors', model, smoke(), vocabulary, {})
    for name, more in (('bound', []), ('unbound', ['--unbound'])):
        ok('evaluate', '--data', place/'packed', '--split', 'validation', '--weights', tmp_path/'model.safetensors', '--beam', 2,
           '--json', tmp_path/f'{name}.json', '--predictions', tmp_path/f'{name}.jsonl', *more)
        made = json.loads((tmp_path/f'{name}.json').read_text())
        assert made['valid_only'] is (name == 'bound') and made['exprate_symlg'] >= made['exprate']
        said[name] = [is_valid(json.loads(line)['prediction']) for line in (tmp_path/f'{name}.jsonl').read_text().splitlines()]
    assert all(said['bound']) and not all(said['unbound'])

def test_bench(place):
    made = json.loads(ok('bench', 'train', '--preset', 'smoke', '--set', 'threads=1', '--data', place/'packed', '--json'))
    assert made['expressions'] > 0 and set(made['expressions_per_second']) == {'data', 'model', 'both'} and made['both_over_model'] > 0 and 0 <= made['padding'] < 1
    made = json.loads(ok('bench', 'decode', '--preset', 'smoke', '--set', 'threads=1', '--json'))
    assert [row['tokens'] for row in made['lengths']] == [20, 50, 100, 150] and made['beam'] == 10 and made['peak_memory_mb'] > 50
    assert all(row['ratio'] > 0 and row['recomputing_ms'] > 0 for row in made['lengths'][:2])

def test_recognize(place, tmp_path):
    lines = ok('recognize', place/'a.inkml', place/'a.png', '--weights', place/'model.safetensors', '--overlay', tmp_path/'looks').splitlines()
    assert [l.split('\t')[0] for l in lines] == [str(place/'a.inkml'), str(place/'a.png')] and all(0 <= float(l.split('\t')[1]) <= 1 for l in lines)
    assert sorted(p.name for p in (tmp_path/'looks').iterdir()) == ['a~1.png', 'a~2.png']
    made = json.loads(ok('recognize', place/'a.inkml', '--weights', place/'model.safetensors', '--json', '--beam', 1))
    assert made[0]['file'] == str(place/'a.inkml') and len(made[0]['hypotheses']) == 1 and made[0]['mathml'].startswith('<math')

def test_export_and_use_of_the_graphs(place, tmp_path):
    said = ok('export', '--onnx', tmp_path/'graphs', '--weights', place/'model.safetensors', '--int8')
    assert 'int8' in said and sorted(p.name for p in (tmp_path/'graphs').iterdir()) == ['decoder.onnx', 'encoder.onnx', 'memory.onnx', 'model.json']
    made = json.loads(ok('recognize', place/'a.inkml', place/'a.png', '--weights', tmp_path/'graphs', '--json'))
    assert all(is_valid(m['tokens']) and 0 <= m['confidence'] <= 1 for m in made)
    ok('evaluate', '--data', place/'packed', '--split', 'validation', '--weights', tmp_path/'graphs', '--beam', 2, '--json', tmp_path/'m.json')
    assert json.loads((tmp_path/'m.json').read_text())['n'] > 0
    code, _, err = call('export', '--onnx', tmp_path/'graphs', '--weights', place/'model.safetensors')
    assert code == 2 and 'is not empty' in err and '--onnx' in err
    (tmp_path/'graphs'/'decoder.onnx').write_bytes(b'cut')
    code, _, err = call('recognize', place/'a.png', '--weights', tmp_path/'graphs')
    assert code == 2 and 'decoder.onnx' in err and 'mask-match export' in err

def test_recognize_goes_on_after_a_bad_file(place):
    code, out, err = call('recognize', place/'cut.inkml', place/'a.inkml', place/'blank.png', '--weights', place/'model.safetensors', '--beam', 1)
    complaints = [l for l in err.splitlines() if l.startswith('mask-match')]
    assert code == 2 and len(out.splitlines()) == 1 and len(complaints) == 2 and 'cut.inkml' in complaints[0] and 'blank.png' in complaints[1]
    code, out, _ = call('recognize', place/'cut.inkml', place/'a.inkml', '--weights', place/'model.safetensors', '--json')
    assert code == 2 and [set(m) & {'error', 'latex'} for m in json.loads(out)] == [{'error'}, {'latex'}]

def test_info():
    out = ok('info')
    assert 'torch' in out and 'CROHME ink' in out and 'weights' in out

def test_reproduce_passes_everything_on(monkeypatch):
    from mask_match import reproduce
    seen = []
    monkeypatch.setattr(reproduce, 'reproduce', lambda *args: seen.append(args) or [dict(name='e0_data', seconds=1.5, figures={'a.png': 'x'})])
    assert ok('reproduce', '--preset', 'smoke', '--set', 'seed=3', '--force').strip() == 'e0_data  1.5 s  a.png'
    assert seen[0][:7] == ('smoke', None, None, None, True, None, ['seed=3'])

# --- what does not ---

BAD = {  # name -> (arguments, {place} and {new} filled in; words of the answer)
    'no command': ('', ['no command', 'recognize']),
    'misspelt command': ('finetun', ["'finetun'", "'finetune'"]),
    'unknown command': ('zzz', ["'zzz'", 'there are: synth']),
    'misspelt option': ('finetune --presett smoke', ["'--presett'", "'--preset'"]),
    'abbreviated option': ('recognize {place}/a.png --wei x', ["'--wei'", '--weights']),
    'option of another command': ('info --beam 3', ["'--beam'", 'info']),
    'option without value': ('finetune --preset', ['--preset', 'expected one argument', '--help']),
    'missing option': ('synth --n 3', ['--out', 'required', '--help']),
    'missing file': ('recognize', ['FILE', 'required']),
    'an argument too many': ('info more', ['more']),
    'misspelt preset': ('finetune --preset smok', ["'smok'", "'smoke'"]),
    'misspelt preset of reproduce': ('reproduce --preset quik', ["'quik'", "'quick'"]),
    'misspelt setting': ('finetune --preset smoke --set finetune.fit.stepz=3', ["'stepz'", "'steps'"]),
    'setting without value': ('finetune --preset smoke --set seed', ['key=value', "'seed'"]),
    'setting of the wrong type': ('finetune --preset smoke --set seed=many', ["'seed'", 'int', "'many'"]),
    'setting out of the choices': ('pretrain --preset smoke --set pretrain.global_loss=xent', ["'xent'", 'ntxent']),
    'a group for a setting': ('pretrain --preset smoke --set pretrain.fit=3', ["'fit' is a group"]),
    'no steps': ('pretrain --preset smoke --set pretrain.fit.steps=0 --out {new}', ['pretrain.fit.steps', 'more than 0', '0']),
    'beam of zero in the config': ('finetune --preset smoke --set beam=0 --out {new}', ["'beam'", 'more than 0']),
    'a fraction above one': ('finetune --preset smoke --set finetune.label_smoothing=2 --out {new}', ["'finetune.label_smoothing'", '0 to 1', '2']),
    'a negative seed in the config': ('finetune --preset smoke --set seed=-1 --out {new}', ["'seed'", '0 or more', '-1']),
    'a learning rate that is none': ('finetune --preset smoke --set finetune.fit.lr=nan --out {new}', ["'finetune.fit.lr'", 'nan', '--set']),
    'ink in a folder of no split': ('data {place}/ink {place}/plain --out {new}', ['no known split', 'plain', '--split']),
    'width that no head divides': ('finetune --preset smoke --set encoder.width=30 --out {new}', ['30', 'multiple']),
    'unknown encoder': ('pretrain --preset smoke --set encoder.name=vgg --out {new}', ["vgg", 'compact']),
    'crohme preset without ink': ('finetune --preset cpu --out {new}', ["'cpu'", '--data', 'MASK_MATCH_CROHME']),
    'training data that is not there': ('finetune --preset smoke --data {place}/inc --out {new}', ['inc', "ink'"]),
    'training data without ink': ('finetune --preset smoke --data {place}/empty --out {new}', ['no ink']),
    'training data that is a text': ('finetune --preset smoke --data {place}/notes.txt --out {new}', ['notes.txt']),
    'packed folder without train': ('finetune --preset smoke --data {place}/runs/one --out {new}', ["'train'", 'there are']),
    'start that is not there': ('attend --preset smoke --from {place}/runs/on --out {new}', ['runs/on', "one'"]),
    'start that is no run': ('attend --preset smoke --from {place}/empty --out {new}', ['empty', 'weights.safetensors']),
    'start that is no weights file': ('attend --preset smoke --from {place}/notes.txt --out {new}', ['notes.txt', 'safetensors']),
    'start of another shape': ('finetune --preset smoke --set encoder.width=32 --from {place}/runs/two --out {new}', ['runs/two', 'do not fit']),
    'start with other tensors': ('attend --preset smoke --from {place}/other.safetensors --out {new}', ['other.safetensors', 'do not fit']),
    'out holds another run': ('pretrain --preset smoke --set pretrain.fit.steps=3 --out {place}/runs/one', ['runs/one', 'another config', '--out']),
    'out holds something else': ('pretrain --preset smoke --out {place}/plain', ['plain', 'no run', '--out']),
    'out holds a damaged run': ('pretrain --preset smoke --out {place}/damaged', ['damaged', '--out']),
    'out is a file': ('pretrain --preset smoke --out {place}/notes.txt', ['notes.txt', 'is a file', 'folder was expected']),
    'out lies under a file': ('synth --n 2 --out {place}/notes.txt/deep/er', ['notes.txt', 'not a folder']),
    'out that may not be written': ('synth --n 2 --out /proc/mask_match/ink', ['/proc/mask_match']),
    'negative n': ('synth --n -3 --out {new}', ['--n', 'at least 1', "'-3'"]),
    'n that is no number': ('synth --n ten --out {new}', ['--n', "'ten'"]),
    'negative seed': ('synth --n 3 --seed -1 --out {new}', ['--seed', 'at least 0']),
    'misspelt grammar': ('synth --n 3 --grammar ful --out {new}', ["'ful'", "'full'"]),
    'misspelt writers': ('synth --n 3 --split trian --out {new}', ["'trian'", "'train'"]),
    'synth into a full folder': ('synth --n 3 --out {place}/plain', ['plain', 'not empty', '--out']),
    'source that is not there': ('data {place}/plan --out {new}', ['plan', "plain'"]),
    'one of two sources is not there': ('data {place}/plain {place}/nothing --out {new}', ['nothing', 'check the path']),
    'empty source': ('data {place}/empty --out {new}', ['no ink']),
    'only broken ink': ('data {place}/cut.inkml {place}/zero.inkml --out {new}', ['none of 2 files', 'cut.inkml']),
    'broken archive': ('data {place}/cut.zip --out {new}', ['archive']),
    'captions that are none': ('data {place}/plain --captions {place}/captions.txt --out {new}', ['captions.txt', 'line 1', 'tab']),
    'captions that are a picture': ('data {place}/plain --captions {place}/a.png --out {new}', ['a.png', 'captions']),
    'a benchmark that is none': ('bench trian', ["'trian'", "'train'"]),
    'captions of other ink': ('data {place}/plain --captions {place}/others.txt --out {new}', ['name none of the inks', "'nobody'"]),
    'captions that are not there': ('data {place}/plain --captions {place}/capt.txt --out {new}', ['capt.txt', "captions.txt'"]),
    'split with a slash': ('data {place}/plain --split a/b --out {new}', ["'a/b'", 'letters']),
    'split in no folder': ('data {place}/ink --split trian --out {new}', ["'trian'", "'train'"]),
    'evaluate a misspelt split': ('evaluate --data {place}/packed --split vaildation --weights {place}/model.safetensors', ["'vaildation'", "'validation'"]),
    'evaluate a misspelt split of InkML': ('evaluate --data {place}/ink --split vaildation --weights {place}/model.safetensors', ["'vaildation'", "'validation'"]),
    'evaluate data that is not there': ('evaluate --data {place}/pack --split train --weights {place}/model.safetensors', ['pack', "packed'"]),
    'evaluate a text': ('evaluate --data {place}/notes.txt --split train --weights {place}/model.safetensors', ['notes.txt']),
    'weights that are not there': ('evaluate --data {place}/packed --split train --weights {place}/modell.safetensors', ['modell.safetensors', 'expected']),
    'weights that are a text': ('recognize {place}/a.png --weights {place}/notes.txt', ['notes.txt', 'safetensors']),
    'weights that are another thing': ('recognize {place}/a.png --weights {place}/other.safetensors', ['other.safetensors', 'no model']),
    'weights of a pretrain run': ('recognize {place}/a.png --weights {place}/runs/one', ['runs/one', 'model.safetensors']),
    'beam of zero': ('recognize {place}/a.png --weights {place}/model.safetensors --beam 0', ['--beam', 'at least 1', "'0'"]),
    'metrics onto a folder': ('evaluate --data {place}/packed --split train --weights {place}/model.safetensors --json {place}/empty', ['empty', 'is a folder']),
    'predictions under a file': ('evaluate --data {place}/packed --split train --weights {place}/model.safetensors --predictions {place}/notes.txt/p', ['notes.txt', 'not a folder']),
    'a picture that is not there': ('recognize {place}/b.png --weights {place}/model.safetensors', ['b.png', 'check the path']),
    'a blank picture': ('recognize {place}/blank.png --weights {place}/model.safetensors --overlay {new}', ['blank.png', 'no ink']),
    'a text for a picture': ('recognize {place}/notes.txt --weights {place}/model.safetensors --overlay {new}', ['notes.txt', 'not a picture']),
    'truncated ink': ('recognize {place}/cut.inkml --weights {place}/model.safetensors', ['cut.inkml', 'cut off']),
    'a folder for a picture': ('recognize {place}/empty --weights {place}/model.safetensors', ['empty', 'is a folder']),
    'pictures onto a file': ('recognize {place}/a.png --weights {place}/model.safetensors --overlay {place}/notes.txt', ['notes.txt', 'is a file']),
    'pictures onto the picture that is read': ('recognize {place}/a.png --weights {place}/model.safetensors --overlay {place}', ['a.png', 'to be read', '--overlay']),
    'data onto packed data': ('data {place}/ink --out {place}/packed', ['train.safetensors', 'there already', '--out']),
    'an archive cut short': ('data {place}/short.tar.xz --out {new}', ['short.tar.xz', 'unreadable archive', 'download']),
    'training on an archive cut short': ('pretrain --preset smoke --data {place}/short.tar.xz --out {new}', ['short.tar.xz', 'unreadable archive']),
    'metrics and predictions in one file, spelt in two ways': ('evaluate --data {place}/packed --split train --json {new} --predictions {new}/../new', ['two files']),
    'metrics and predictions in one file': ('evaluate --data {place}/packed --split train --json {new} --predictions {new}', ['--json', '--predictions', 'two files']),
    'captions without a caption': ('data {place}/plain --captions {place}/zero.inkml --out {new}', ['zero.inkml', 'no caption']),
    'two captions for one ink': ('data {place}/plain --captions {place}/twice.txt --out {new}', ['twice.txt', "two captions for 'a'"]),
    'more beams than make sense': ('recognize {place}/a.png --beam 100000', ['--beam', 'at most 1000']),
    'no passes': ('pretrain --preset smoke --set pretrain.fit.passes=0 --out {new}', ['pretrain.fit.passes', 'more than 0']),
    'threads without end': ('pretrain --preset smoke --set threads=100000 --out {new}', ["'threads'", 'at most 1024']),
    'scales upside down': ('pretrain --preset smoke --set augment.scale_low=3 --out {new}', ['scale_low', 'scale_high']),
    'reproduce data that is not there': ('reproduce --preset smoke --data {place}/inc', ['inc', "ink'"]),
    'reproduce a misspelt setting': ('reproduce --preset smoke --set sead=1', ["'sead'", "'seed'"]),
}

def tree(folder): return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(Path(folder).rglob('*'))}

@pytest.mark.parametrize('name', BAD)
def test_bad_input(name, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('MASK_MATCH_CROHME', raising=False)
    line, words = BAD[name]
    before = tree(place)
    code, out, err = call(*(a.format(place=place, new=tmp_path/'made'/'new') for a in line.split()))
    assert code == 2, (code, err)
    assert err.count('\n') == 1 and err.startswith('mask-match') and 'Traceback' not in err, err
    assert all(w in err for w in words), (err, words)
    assert out == ''
    assert tree(place) == before and not list(tmp_path.iterdir()), 'something was left behind'

def test_an_empty_argument_is_no_path(place):
    for argv in (('recognize', ''), ('pretrain', '--preset', 'smoke', '--data', ''), ('evaluate', '--data', '', '--split', 'train')):
        code, _, err = call(*argv)
        assert code == 2 and 'is empty' in err and err.count('\n') == 1

def test_every_picture_gets_an_overlay_of_its_own(place, tmp_path):
    for name in ('x/p.png', 'y/p.png', 'y/p~1.png'):
        (tmp_path/name).parent.mkdir(exist_ok=True); shutil.copy(place/'a.png', tmp_path/name)
    ok('recognize', *(tmp_path/n for n in ('x/p.png', 'y/p.png', 'y/p~1.png')), '--weights', place/'model.safetensors', '--beam', 1, '--overlay', tmp_path/'o')
    assert len(list((tmp_path/'o').iterdir())) == 3

def test_an_overlay_takes_no_picture_that_is_there(place, tmp_path):
    shutil.copy(place/'a.png', tmp_path/'a.png'); shutil.copy(place/'a.png', tmp_path/'other.png'); (tmp_path/'other.png').rename(tmp_path/'a.jpg')
    code, _, err = call('recognize', tmp_path/'a.jpg', '--weights', place/'model.safetensors', '--beam', 1, '--overlay', tmp_path)
    assert code == 2 and 'there already' in err and (tmp_path/'a.png').read_bytes() == (place/'a.png').read_bytes()

def test_metrics_follow_a_link_and_spare_a_device(place, tmp_path):
    (tmp_path/'real.json').write_text('old'); (tmp_path/'link.json').symlink_to(tmp_path/'real.json')
    os.mkfifo(tmp_path/'pipe')
    reader = subprocess.Popen(['cat', tmp_path/'pipe'], stdout=subprocess.PIPE)
    ok('evaluate', '--data', place/'packed', '--split', 'train', '--weights', place/'model.safetensors', '--beam', 1, '--json', tmp_path/'link.json', '--predictions', tmp_path/'pipe')
    assert (tmp_path/'link.json').is_symlink() and json.loads((tmp_path/'real.json').read_text())['n'] == 6
    assert (tmp_path/'pipe').is_fifo() and len(reader.communicate(timeout=60)[0].splitlines()) == 6

def test_packed_ink_may_be_read_by_others(place):
    umask = os.umask(0o22); os.umask(umask)
    assert (place/'packed'/'train.safetensors').stat().st_mode & 0o777 == 0o666 & ~umask

def test_training_tells_what_it_left_out(place, tmp_path):
    shutil.copytree(place/'plain', tmp_path/'ink'); shutil.copy(place/'cut.inkml', tmp_path/'ink')
    code, _, err = call('pretrain', *TINY, '--data', tmp_path/'ink', '--out', tmp_path/'runs'/'one')
    assert code == 0 and 'train: 6 of 7 inks, 1 rejected, the first' in err and 'cut off' in err

def test_debug_shows_the_traceback(place):
    for argv in (['--debug', 'finetun'], ['recognize', place/'a.png', '--weights', place/'notes.txt', '--debug']):
        code, _, err = call(*argv)
        assert code == 2 and 'Traceback' in err

def test_a_mistake_of_ours_is_owned_up_to(monkeypatch):
    def broken(args): raise KeyError('nothing')
    monkeypatch.setitem(cli.COMMANDS, 'info', (broken, ''))
    code, _, err = call('info')
    assert code == 1 and err.count('\n') == 1 and 'KeyError' in err and '--debug' in err

def test_an_error_while_training_keeps_nothing_half_made(tmp_path, monkeypatch):
    "A stage that fails before its first step leaves no run; one that fails later keeps its log and checkpoints."
    from mask_match import stages
    def fails_early(config, packed, folder, *args, **options): Path(folder).mkdir(parents=True); raise OSError(28, 'No space left on device', str(folder))
    monkeypatch.setattr(stages, 'finetune', fails_early)
    code, _, err = call('finetune', *TINY, '--out', tmp_path/'a')
    assert code == 2 and 'no space left' in err.splitlines()[-1] and not (tmp_path/'a').exists()
    def fails_late(config, packed, folder, *args, **options):
        Path(folder).mkdir(parents=True); (Path(folder)/'log.jsonl').write_text('{"step": 1}\n')
        raise OSError(28, 'No space left on device', str(folder))
    monkeypatch.setattr(stages, 'finetune', fails_late)
    assert call('finetune', *TINY, '--out', tmp_path/'b')[0] == 2 and (tmp_path/'b'/'log.jsonl').exists()

def test_interrupted_synth_leaves_nothing(tmp_path, monkeypatch):
    from mask_match import inkml
    def stop(ink): raise KeyboardInterrupt
    monkeypatch.setattr(inkml, 'write_ink', stop)
    code, _, err = call('synth', '--n', 3, '--out', tmp_path/'a'/'b')
    assert code == 130 and err.count('\n') == 1 and 'interrupted' in err and 'again' in err and not list(tmp_path.iterdir())

@pytest.mark.slow
@pytest.mark.parametrize('end', [signal.SIGINT, signal.SIGTERM])
def test_ended_training_goes_on(end, tmp_path):
    "Ctrl-C or `kill` to a real process: exit code 130, one line that says how to go on, nothing half-written, and going on works."
    argv = ['finetune', *TINY[:-1], 'finetune.fit.steps=12', 'finetune.fit.checkpoint_every=3', '--out', str(tmp_path/'run')]
    env = dict(os.environ, PYTHONPATH=str(ROOT))
    process = subprocess.Popen([sys.executable, '-m', 'mask_match.cli', *argv], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # a job in the background would not hear it
    log = tmp_path/'run'/'log.jsonl'
    while process.poll() is None and not (log.exists() and log.read_text().count('\n') >= 4): time.sleep(0.02)
    process.send_signal(end)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130 and 'continues' in err.splitlines()[-1] and 'Traceback' not in err, err
    assert not list(tmp_path.rglob('*.tmp'))
    ok(*argv)
    assert (tmp_path/'run'/'model.safetensors').exists()

def test_names_after_two_dashes():
    assert cli.parse_command(['recognize', '--beam', '2', '--', '-odd.png', '--json']).files == ['-odd.png', '--json']
    with pytest.raises(cli.CliError, match='--jsn'): cli.parse_command(['recognize', '--jsn', '--', '-odd.png'])
