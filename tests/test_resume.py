"A run that is killed goes on to the very same weights; two processes train as one with the double batch."
import json, os, signal, subprocess, sys, textwrap, time
from functools import cache
from pathlib import Path
import pytest, torch
from mask_match.runs import load_tensors
from mask_match.state import load_checkpoint
from pages import ROOT, started

def environment(): return dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]), OMP_NUM_THREADS='1')

def train(stage, out, *more):
    "A training of a few steps that has begun, and the file with what it says."
    sizes = ['threads=1', 'data.n_train=24', 'data.n_validation=4', 'data.n_test=4', f'{stage}.fit.steps=12', f'{stage}.fit.checkpoint_every=3']
    return started([stage, '--preset', 'smoke', '--out', str(out), '--set', *sizes, *more], said := Path(f'{out}.txt')), said

def finish(*which):
    process, said = train(*which)
    process.join(900)
    if process.is_alive(): os.killpg(process.pid, signal.SIGKILL)  # it and the processes it started
    assert process.exitcode == 0, said.read_text()
    return said.read_text()

def kill_after(records, stage, out, *more):
    "Start a run and kill it with SIGKILL as soon as its log has `records` lines; the number it had when it died."
    log = out/'log.jsonl'
    lines = lambda: log.read_text().count('\n') if log.exists() else 0
    process, said = train(stage, out, *more)
    while lines() < records:
        assert process.is_alive(), f'it ended before it could be killed: {said.read_text()}'
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)  # it and the processes it started
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (out/'done.json').exists(), 'it was too fast to be killed: give it more steps'
    return lines()

def same(a, b):
    "Whether two weights files, or the checkpoints of two runs, hold bitwise equal tensors."
    a, b = ((load_tensors if Path(x).suffix else load_checkpoint)(x)[0] for x in (a, b))
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)

def curve(run): return [(r['step'], r['loss']) for r in map(json.loads, (run/'log.jsonl').read_text().splitlines()) if 'loss' in r]

@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "The run of a stage that nobody disturbed, trained once."
    folder = tmp_path_factory.mktemp('whole')
    @cache
    def run(stage):
        finish(stage, folder/stage)
        return folder/stage
    return run

@pytest.mark.slow
@pytest.mark.parametrize('stage', ['finetune', 'pretrain', 'attend'])
def test_a_killed_run_ends_with_the_same_weights(stage, whole, tmp_path):
    died = kill_after(5, stage, tmp_path/'cut')
    finish(stage, tmp_path/'cut')
    assert 5 <= died < 12 + (stage == 'finetune'), 'killed on the way, not at the end'  # finetune logs one evaluation
    assert same(whole(stage)/'weights.safetensors', tmp_path/'cut'/'weights.safetensors')
    assert same(whole(stage), tmp_path/'cut'), 'optimiser and averages too'
    if stage == 'finetune': assert same(whole(stage)/'model.safetensors', tmp_path/'cut'/'model.safetensors')
    assert curve(whole(stage)) == curve(tmp_path/'cut') and len(curve(tmp_path/'cut')) == 12

@pytest.mark.slow
@pytest.mark.parametrize('precision', ['bf16-mixed', '32-true'])
def test_two_batches_a_step_end_with_the_same_weights(precision, whole, tmp_path):
    more = 'finetune.fit.accumulate=2', f'finetune.fit.precision={precision}', 'threads=2'
    kill_after(5, 'finetune', tmp_path/'cut', *more)
    for run in ('cut', 'whole'): finish('finetune', tmp_path/run, *more)
    assert same(tmp_path/'whole'/'weights.safetensors', tmp_path/'cut'/'weights.safetensors')
    assert not same(whole('finetune')/'weights.safetensors', tmp_path/'cut'/'weights.safetensors'), 'two batches a step are not one'

@pytest.mark.slow
def test_killed_twice(whole, tmp_path):
    kill_after(2, 'finetune', tmp_path/'cut')  # before the first checkpoint
    kill_after(8, 'finetune', tmp_path/'cut')
    finish('finetune', tmp_path/'cut')
    assert same(whole('finetune')/'model.safetensors', tmp_path/'cut'/'model.safetensors')
    assert curve(whole('finetune')) == curve(tmp_path/'cut'), 'no record twice'

@pytest.mark.slow
def test_two_processes_killed_together_go_on_to_the_same_weights(tmp_path):
    "Each process has random numbers of its own; both must find theirs again."
    assert finish('finetune', tmp_path/'whole', 'devices=2').count('run: ') == 1, 'only the first process speaks'
    kill_after(5, 'finetune', tmp_path/'cut', 'devices=2')
    finish('finetune', tmp_path/'cut', 'devices=2')
    assert same(tmp_path/'whole', tmp_path/'cut') and len(curve(tmp_path/'whole')) == 12
    assert load_tensors(tmp_path/'whole'/'model.safetensors')[0]

def test_a_checkpoint_says_what_it_belongs_to(whole):
    run = whole('finetune')
    tensors, meta = load_checkpoint(run)
    assert meta['config'] == json.loads((run/'config.json').read_text()) and meta['step'] == 12
    assert len(meta['words']) == len(tensors['model.decoder.embed.weight|24']) and tensors['rng.cpu'].ndim == 2

# --- two processes ---

TOY = '''
import json, sys
import torch
from torch import nn
from mask_match.config import FitConfig
from mask_match.fit import fit
from lightning_fabric import Fabric

class Part:
    "Some rows of a regression problem."
    def __init__(self, x, y): self.x, self.y, self.names = x, y, ['toy']*len(x)
    def to(self, device): return self

def main(devices, accumulate, out):
    torch.set_num_threads(1)
    fabric = Fabric(accelerator='cpu', devices=devices, strategy='ddp' if devices > 1 else 'auto', precision='32-true')
    fabric.launch()
    rank, world = fabric.global_rank, fabric.world_size
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
    x = torch.randn(400, 6, generator=torch.Generator().manual_seed(1)); y = torch.stack([x.sum(1).sin(), x[:, 0]*x[:, 1]], 1)
    def batches(start):
        "Batch k is rows 16k..16k+15; with two processes each gets every other row, with accumulation half of them at a time."
        for k in range(start, 10**6):
            rows = torch.arange(16*(k//accumulate), 16*(k//accumulate) + 16) % 400
            rows = rows[rank::world] if accumulate == 1 else rows[k % accumulate::accumulate]
            yield Part(x[rows], y[rows])
    def step(model, batch, progress, generator):
        loss = (model(batch.x) - batch.y).square().mean()
        return loss, dict(loss=fabric.all_reduce(loss.detach(), reduce_op='mean'))
    weights = []
    after = lambda m: weights.append(torch.cat([p.detach().flatten() for p in m.parameters()]).tolist())
    config = FitConfig(steps=8, lr=0.02, ema=0.9, accumulate=accumulate, log_every=1, clip=0.5, precision='32-true')
    records = list(fit(fabric, model, step, batches, config, seed=3, after_step=after))
    final = torch.cat([p.detach().flatten() for p in model.parameters()]).tolist()
    with open(f'{out}.{rank}', 'w') as f: json.dump(dict(world=world, weights=weights, final=final, losses=[r['loss'] for r in records], norms=[r['grad_norm'] for r in records]), f)
    if devices > 1: fabric.barrier(); torch.distributed.destroy_process_group()  # left to the end of the interpreter, it was seen to abort

for devices, accumulate, out in json.loads(sys.argv[1]): main(devices, accumulate, out)
'''

@pytest.fixture(scope='module')
def toy(tmp_path_factory):
    "Results of the toy training: one process, two processes, one with two half batches a step."
    folder = tmp_path_factory.mktemp('toy')
    (folder/'toy.py').write_text(textwrap.dedent(TOY))
    for runs in ([(1, 1, 'one'), (1, 2, 'halves')], [(2, 1, 'two')]):
        done = subprocess.run([sys.executable, str(folder/'toy.py'), json.dumps(runs)], env=environment(), cwd=folder, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
    return {p.name: json.loads(p.read_text()) for p in folder.iterdir() if p.suffix in ('.0', '.1')}

@pytest.mark.slow
def test_two_processes_are_one_with_the_double_batch(toy):
    one, first, second = toy['one.0'], toy['two.0'], toy['two.1']
    assert (one['world'], first['world'], second['world']) == (1, 2, 2)
    assert first['weights'] == second['weights'] and first['final'] == second['final'], 'the two processes agree to the bit'
    torch.testing.assert_close(torch.tensor(first['weights']), torch.tensor(one['weights']), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.tensor(first['final']), torch.tensor(one['final']), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.tensor(first['losses']), torch.tensor(one['losses']), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(torch.tensor(first['norms']), torch.tensor(one['norms']), rtol=1e-3, atol=1e-6)  # of the gradients
    assert abs(torch.tensor(one['weights'][-1]) - torch.tensor(one['weights'][0])).max() > 0.01, 'and something was learnt'

@pytest.mark.slow
def test_accumulated_halves_are_one_whole_batch(toy):
    torch.testing.assert_close(torch.tensor(toy['halves.0']['weights']), torch.tensor(toy['one.0']['weights']), rtol=1e-4, atol=1e-5)
