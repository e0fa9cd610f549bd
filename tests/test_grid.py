"Grids of trainings: what is compared, and what a difference is worth."
import itertools
import numpy as np
import pytest
from mask_match.config import ConfigError, configure, parse_overrides, override
from mask_match.evaluate import write_predictions
from mask_match.grid import STUDIES, Arm, chain, jobs, main, note_of, results, settled
from mask_match.runs import file_hash, write_json
from mask_match.worth import between_seeds, compared, grades

def record(name, truth, prediction): return dict(name=name, truth=truth.split(), prediction=prediction and prediction.split())

def test_grades_by_hand():
    made = grades([record('b', 'x + 1', 'x - 1'), record('a', 'x', 'x'), record('c', 'x y', None)])
    assert made.tolist() == [[1, 0, 0], [0, 1, 2], [1, 3, 2]]

def test_pooled_spread_is_that_of_an_analysis_of_variance():
    arms = [[.1, .2, .3], [.5, .4], [.9]]
    inside = sum((r - np.mean(a))**2 for a in arms for r in a)
    assert between_seeds(arms) == pytest.approx((np.sqrt(inside/3), 3))

def test_the_interval_against_every_resample():
    "Six expressions: all 6^6 resamples can be listed."
    first, second, lengths = np.array([[2., 0, 1, 0, 3, 1]]), np.array([[1., 0, 0, 1, 1, 1]]), np.array([5., 2, 4, 1, 6, 3])
    gain = (second - first)[0]
    every = [gain[list(i)].sum()/lengths[list(i)].sum() for i in itertools.product(range(6), repeat=6)]
    made = compared(first, second, lengths, (0., 0), draws=40000)
    assert made['value'] == pytest.approx(gain.sum()/lengths.sum())
    assert made['ci95'] == pytest.approx(list(np.percentile(every, (2.5, 97.5))), abs=0.02)

def test_spread_between_seeds_widens_by_its_closed_form():
    "With nothing between expressions the interval is Student's: t(4 degrees) = 2.776 times s sqrt(1/3 + 1/3)."
    same = np.full((3, 500), 0.5)
    low, high = compared(same, same, np.ones(500), (0.02, 4), draws=200000)['ci95']
    # a difference of two scaled t is a little wider than one t of the joint variance (Behrens and Fisher)
    plain = 2.776*0.02*np.sqrt(2/3)
    assert high == pytest.approx(-low, rel=0.03) and 0.9*plain < high < 1.25*plain

def test_an_arm_compared_with_itself_is_no_different():
    values = (np.random.default_rng(0).random((3, 200)) < 0.4).astype(float)
    made = compared(values, values, np.ones(200), between_seeds([values.mean(1)]*2))
    assert made['value'] == 0 and made['ci95'][0] < 0 < made['ci95'][1]

def test_the_central_arms_come_first_and_seed_by_seed():
    order = [(arm.name, seed) for arm, seed in jobs(STUDIES['baselines'], [1, 2, 3])]
    assert order[:12] == [(name, seed) for seed in (1, 2, 3) for name in ('from scratch', 'global only', 'global and local', 'full method')]
    assert len(order) == len(set(order)) == 3*len(STUDIES['baselines'])

def test_arms_share_what_they_have_in_common(tmp_path):
    arms = {a.name: a for study in STUDIES.values() for a in study}
    place = lambda name, seed=1: dict(chain(settled(configure('cpu'), arms[name], seed, None), arms[name], tmp_path, 'ink'))
    assert place('full method')['pretrain'] == place('global and local')['pretrain'] == place('progressive')['pretrain'] != place('global only')['pretrain']
    assert place('full method') == place('progressive') == place('all levers') == place('full method, 100%')
    assert place('constant')['pretrain'] == place('progressive')['pretrain'] and place('constant')['finetune'] != place('progressive')['finetune']
    assert place('full method, 10%')['attend'] == place('full method')['attend'] and place('full method, 10%')['finetune'] != place('full method')['finetune']
    own, again = place('full method, again with own readings, 10%'), place('full method, again, 10%')
    assert own['finetune'] == again['finetune'] == place('full method, 10%')['finetune'] and own['again'] != again['again']
    assert not set(place('full method', 2).values()) & set(place('full method').values())

@pytest.mark.parametrize('name', STUDIES)
def test_every_arm_differs_from_the_first_in_its_study(name, tmp_path):
    ends = [chain(settled(configure('cpu'), a, 1, None), a, tmp_path, 'ink')[-1][1] for a in STUDIES[name] if not a.longer]
    assert len(set(ends)) == len(ends)

def test_readings_of_another_beam_are_not_taken_for_these(tmp_path):
    arm, last = STUDIES['baselines'][0], tmp_path/'finetune-0'
    last.mkdir()
    write_predictions(last/'validation.jsonl', [record('a', 'x', 'x')])
    write_json(last/'validation.json', dict(beam=5, valid_only=True, predictions_sha256=file_hash(last/'validation.jsonl')))
    write_json(last/'cost.json', dict(seconds=1., operations=1.))
    found = {}
    for beam in (5, 10):
        config = override(configure('cpu'), dict(beam=beam))
        write_json(note_of(config, arm, 1, tmp_path), dict(steps=1, folders=[last.name]))
        found[beam] = results(config, arm, 1, tmp_path, 'validation')
    assert found[5]['metrics']['beam'] == 5 and found[10] == 'read with other settings'

def test_a_misspelt_arm_is_refused():
    with pytest.raises(ConfigError, match='local_weight'): settled(configure('cpu'), Arm('x', ('pretrain.local_wait=1',)), 1, None)

def test_a_wrong_folder_is_named(tmp_path, capsys):
    assert main(['--study', 'levers', '--preset', 'smoke', '--data', str(tmp_path/'none'), '--out', str(tmp_path/'out')]) == 1
    assert 'none' in capsys.readouterr().err
