"What the attention finds and what the features know: measures against brute force, choices that must not leak, controls that must not drift."
import itertools, math
from dataclasses import replace
import numpy as np
import pytest, torch
from torch.nn import functional as F
from mask_match.config import override, smoke
from mask_match.data import Epoch, Packed, pack
from mask_match.discover import (by_chance, contingency, discover, fit_probe, health, jackknife, kmeans, nmi, pixel_windows, prepare, purity, rate, read_probe,
                                 samples_of)
from mask_match.localise import (MEASURES, average_precision, first_half, interval, mass, measure, mutual_information, pointing, resample, score_roles,
                                 specialisation, stacked, standing, verdict)
from mask_match.runs import RunError
from mask_match.stages import attend, finetune, pretrain
from mask_match.survey import GROUPS, box_cells, laid_on, load_networks, memberships, owners, survey, symbol_boxes, with_moved
from mask_match.synth import synthesise

# --- where symbols are ---

@pytest.mark.parametrize('seed', range(5))
def test_cells_of_a_box_are_those_that_hold_one_of_its_points(seed):
    rng, h, w, stride = np.random.default_rng(seed), 5, 7, 8
    low = rng.uniform(0, [w*stride - 1, h*stride - 1], (6, 2))
    boxes = np.concatenate([low, np.minimum(low + rng.uniform(0, 25, (6, 2)), [w*stride - .01, h*stride - .01])], 1).astype(np.float32)
    cells = box_cells(torch.tensor(boxes), h, w, stride)
    for (x0, y0, x1, y1), made in zip(boxes, cells):
        for i, j in itertools.product(range(h), range(w)):
            is_touched = x0 < (j + 1)*stride and x1 >= j*stride and y0 < (i + 1)*stride and y1 >= i*stride
            assert bool(made[i, j]) == is_touched

def test_the_smallest_box_owns_a_cell_whatever_the_order():
    boxes = torch.tensor([[0., 0., 39., 39.], [8., 8., 23., 23.], [16., 16., 17., 17.]])
    for order in itertools.permutations(range(3)):
        made = owners(boxes[list(order)], box_cells(boxes[list(order)], 5, 5, 8))
        assert [order[i] for i in (made[0, 0], made[1, 1], made[2, 2])] == [0, 1, 2]
    assert (owners(boxes[:0], box_cells(boxes[:0], 5, 5, 8)) == -1).all()

def test_traces_that_are_not_there_are_an_error():
    for traces in ([], [4]):
        with pytest.raises(ValueError, match='same ink'): symbol_boxes([dict(label='x', traces=traces)], [np.zeros((1, 2), np.float32)])

# --- three measures ---

def brute(a, r):
    "Mass, pointing and average precision of one map and one region by their definitions."
    cells = list(itertools.product(*map(range, a.shape)))
    top = [c for c in cells if a[c] == a.max()]
    found = [sum(bool(r[d]) for d in cells if a[d] >= a[c])/sum(bool(a[d] >= a[c]) for d in cells) for c in cells if r[c]]
    return sum(float(a[c]) for c in cells if r[c]), sum(bool(r[c]) for c in top)/len(top), sum(found)/len(found) if found else math.nan

@pytest.mark.parametrize('seed', range(6))
@pytest.mark.parametrize('levels', [1, 3, 10**6])
def test_measures_against_brute_force(seed, levels):
    g = torch.Generator().manual_seed(seed)
    maps = torch.randint(0, levels, (4, 3, 5), generator=g).float() + .5
    maps, where = maps/maps.sum((1, 2), keepdim=True), torch.rand(3, 3, 5, generator=g) < (.3 if seed else 0.)  # seed 0: regions without a cell
    wanted = torch.tensor([[brute(a, r) for r in where] for a in maps])
    for k, f in enumerate((mass, pointing, average_precision)):
        torch.testing.assert_close(f(maps, where), wanted[..., k].float(), equal_nan=True, atol=1e-5, rtol=1e-5)

def test_ranks_decide_precision_and_pointing_and_the_order_of_cells_does_not():
    g = torch.Generator().manual_seed(1)
    maps, where, order = torch.rand(3, 4, 6, generator=g), torch.rand(2, 4, 6, generator=g) < .4, torch.randperm(24, generator=g)
    mixed = lambda x: x.flatten(1)[:, order].view_as(x)
    for f in (average_precision, pointing):
        torch.testing.assert_close(f(maps, where), f(maps**3, where))
        torch.testing.assert_close(f(maps, where), f(mixed(maps), mixed(where)))
    assert not torch.equal(average_precision(maps, where), average_precision(1 - maps, where))

# --- over a split ---

def made_up(n=60, slots=8, seed=0, better=None):
    "Records of expressions in which every number is noise; slot `better` is 0.3 higher for operators."
    rng, records = np.random.default_rng(seed), []
    for i in range(n):
        for looker in ('uniform on ink', 'learnt'):
            s = 1 if looker == 'uniform on ink' else slots
            table = {m: {'operator': rng.uniform(.2, .4, s + 1).tolist()} for m in MEASURES}
            if better is not None and s > 1:
                for m in MEASURES: table[m]['operator'][better] += .3
            records.append(dict(name=f'e{i:03}', looker=looker, blank=[0.]*(s + 1), **table))
    return records

def operator_row(rows, kind='best slot'): return next(r for r in rows if (r['looker'], r['map'], r['role']) == ('learnt', kind, 'operator'))

def test_a_slot_is_chosen_on_one_half_and_scored_on_the_other():
    records = made_up(better=5)
    first = first_half([r['name'] for r in records])
    changed = [r if r['name'] in first else dict(r, mass={'operator': [0.]*len(r['blank'])}) for r in records]
    row, other = (operator_row(score_roles(rs, ('uniform on ink',))) for rs in (records, changed))
    assert row['mass']['slots'] == other['mass']['slots'] == [5]                # what happens on the scored half changes no choice ...
    assert other['mass']['value'] == 0 and row['mass']['value'] > .5            # ... and only the scored half is scored
    assert row['mass']['n'] == len({r['name'] for r in records}) - len(first)
    assert standing(row['mass']) == 'above' and verdict(score_roles(records, ('uniform on ink',)), 'learnt')[0].startswith('operators: confirmed (')

def test_noise_with_many_slots_finds_nothing():
    found = [operator_row(score_roles(made_up(200, 64, seed), ('uniform on ink',), draws=200))['mass'] for seed in range(5)]
    leaky = [np.nanmean(stacked(made_up(200, 64, seed), 'mass')['learnt'][:, :-1, 0], 0).max() for seed in range(5)]
    assert abs(np.mean([f['value'] for f in found]) - .3) < .004 < np.mean(leaky) - .3  # chosen where it is scored, the best of 64 looks better than it is
    assert sum(standing(f) != 'not told apart' for f in found) <= 1

def test_untrained_seeds_are_averaged():
    records = made_up(40)
    learnt = lambda rs, name: [dict(r, looker=name) for r in rs if r['looker'] == 'learnt']
    chance = [r for r in records if r['looker'] != 'learnt']
    rows = score_roles(chance + learnt(records, 'learnt #1') + learnt(made_up(40, seed=9), 'learnt #2'), ('uniform on ink',))
    alone = [operator_row(score_roles(made_up(40, seed=s), ('uniform on ink',)), 'mean map')['mass']['value'] for s in (0, 9)]
    assert {r['looker'] for r in rows} == {'uniform on ink', 'learnt'}
    assert operator_row(rows, 'mean map')['mass']['value'] == pytest.approx(np.mean(alone)) and len(operator_row(rows)['mass']['slots']) == 2

def test_few_expressions_confirm_nothing():
    rows = score_roles(made_up(12, better=1), ('uniform on ink',))
    assert standing(operator_row(rows)['mass']) == 'too few' and verdict(rows, 'learnt')[0].startswith('operators: not confirmed')
    assert next(r for r in rows if r['role'] == 'limits')['mass']['value'] is None

def test_intervals_cover_what_they_promise():
    rng = np.random.default_rng(0)
    spans = [interval(rng.exponential(1., (50, 1)), resample(50, 400, seed))[0]['ci95'] for seed in range(300)]
    assert .88 < np.mean([low <= 1 <= high for low, high in spans]) < .98

def test_the_order_of_the_records_does_not_matter():
    rows = [score_roles(records, ('uniform on ink',)) for records in (made_up(), made_up()[::-1])]
    assert sorted(rows[0], key=str) == sorted(rows[1], key=str)

# --- slots and roles ---

def test_mutual_information_by_brute_force():
    joint = np.random.default_rng(0).random((4, 5))
    p = joint/joint.sum()
    wanted = sum(p[i, j]*math.log2(p[i, j]/p[i].sum()/p[:, j].sum()) for i in range(4) for j in range(5))
    assert mutual_information(joint) == pytest.approx(wanted) and mutual_information(joint.T) == pytest.approx(wanted)
    assert mutual_information(np.zeros((2, 2))) == 0

def test_exchangeable_slots_are_no_specialists():
    "Under the null hypothesis p is uniform: seldom small; with a slot of its own for a role it is always small."
    rng = np.random.default_rng(0)
    chance = [specialisation(rng.dirichlet([.3]*4, (30, 3)), 60, seed)['p'] for seed in range(40)]
    assert np.mean([p < .1 for p in chance]) < .25 and np.mean(chance) > .35
    planted = rng.dirichlet([.3]*4, (30, 3)); planted[:, 0, 0] += 1
    told = specialisation(planted, 60)
    assert told['p'] < .03 and told['bits'] > told['permuted'] and told['ci95'][0] <= told['bits'] <= told['ci95'][1] + .05

# --- symbols without labels ---

def test_kmeans_finds_the_best_of_all_groupings():
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(3))
    cost = lambda label: sum(float((x[label == c] - x[label == c].mean(0)).square().sum()) for c in label.unique())
    best = min(cost(torch.tensor(l)) for l in itertools.product(range(2), repeat=8))
    assert cost(kmeans(x, 2, torch.Generator().manual_seed(0), tries=20)) == pytest.approx(best, rel=1e-4)
    assert torch.equal(*(kmeans(x, 3, torch.Generator().manual_seed(5)) for _ in range(2)))
    for k in (0, 9):
        with pytest.raises(ValueError, match='clusters of 8 rows'): kmeans(x, k, torch.Generator())

def test_agreement_measures_know_no_names():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 5, 300), rng.integers(0, 4, 300)
    table, renamed = contingency(a, b), contingency(rng.permutation(5)[a], rng.permutation(4)[b])
    assert table.sum() == 300 and nmi(table) == pytest.approx(nmi(renamed)) == pytest.approx(nmi(table.T)) and purity(table) == purity(renamed)
    assert purity(table) == pytest.approx(sum(np.bincount(b[a == c]).max() for c in range(5))/300)
    assert abs(by_chance(nmi, a, b) - nmi(table)) < .02 and nmi(contingency(a, a)) == pytest.approx(1) and nmi(np.array([[7.]])) == 1

def test_an_expression_is_left_out_as_a_whole():
    "Symbols of one expression that go together count once: the error grows by the square root of their number."
    hits = np.random.default_rng(0).integers(0, 2, 40)
    error = lambda times: jackknife(lambda t: t[1].sum()/t.sum(), hits.repeat(times), np.zeros(40*times, int), np.arange(40).repeat(times))
    assert error(1) == pytest.approx(hits.std(ddof=1)/40**.5) == pytest.approx(error(7))
    assert rate(hits > 0, np.arange(40))['value'] == hits.mean()

def test_ridge_is_least_squares_with_rows_of_penalty():
    g = torch.Generator().manual_seed(0)
    x, y = prepare(torch.randn(50, 4, generator=g)), torch.randint(0, 3, (50,), generator=g)
    columns = torch.cat([x.double()*2, torch.ones(50, 1)], 1)
    wanted = torch.linalg.lstsq(torch.cat([columns, (50*.1)**.5*torch.eye(5).double()]), torch.cat([F.one_hot(y, 3), torch.zeros(5, 3)]).double()).solution
    torch.testing.assert_close(fit_probe(x, y, 3, .1), wanted)
    assert torch.equal(read_probe(wanted, x), (columns @ wanted).argmax(1))

@pytest.mark.parametrize('size', [(16, 24), (13, 30)])
def test_pixel_windows_are_the_picture(size):
    image = torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(0))
    made = pixel_windows(image, 8)
    padded = F.pad(image, (8, 40, 8, 40))
    assert made.shape == (2, 24*24, -(-size[0]//8), -(-size[1]//8))
    for i, j in itertools.product(range(made.shape[2]), range(made.shape[3])):
        torch.testing.assert_close(made[:, :, i, j].view(2, 24, 24), padded[:, 0, 8*i:8*i + 24, 8*j:8*j + 24])

# --- a small chain, from its runs to the rows ---

@pytest.fixture(scope='module')
def chain(tmp_path_factory):
    folder = tmp_path_factory.mktemp('chain')
    pack(list(synthesise(14, 5, 'small', 'validation')), folder/'ink.safetensors', 'validation')
    packed = Packed(folder/'ink.safetensors')
    config = override(smoke(), {f'{stage}.fit.steps': 1 for stage in ('pretrain', 'attend', 'finetune')} | {'threads': 1})
    pretrain(config, packed, folder/'one'); attend(config, packed, folder/'two', folder/'one'); finetune(config, packed, folder/'three', folder/'two')
    return folder, packed

@pytest.mark.slow
def test_every_look_is_a_map_of_the_same_cells(chain):
    folder, packed = chain
    networks = load_networks(folder/'one', folder/'two', folder/'three', seeds=(1, 2))
    views = list(survey(networks, packed))
    assert sorted(v.name for v in views) == sorted(packed.names) and len(list(survey(networks, packed, 3))) == 3
    for v in views:
        assert {m.shape[1:] for m in v.maps.values()} == {f.shape[1:] for f in v.features.values()} == {v.is_ink.shape}
        for m in v.maps.values(): torch.testing.assert_close(m.sum((1, 2)), torch.ones(len(m)), atol=2e-3, rtol=0)
        inside = box_cells(v.boxes, *v.is_ink.shape, v.stride).any(0)
        assert not (v.is_ink & ~F.max_pool2d(inside[None].float(), 3, 1, 1)[0].bool()).any()       # all ink lies in boxes, but for the width of the pen
    assert not any(p.requires_grad and p.grad is not None for p in networks.model.parameters())

@pytest.mark.slow
def test_rows_from_a_chain(chain):
    folder, packed = chain
    networks = load_networks(folder/'one', folder/'two', folder/'three', seeds=(1, 2))
    views = list(survey(networks, packed))
    records, samples = [r for v in views for r in measure(v)], [samples_of(v) for v in views]
    assert len(records) == len(views)*(4 + 1 + 4)                                                  # four trained, uniform, two seeds of two controls
    rows = score_roles(records, ('uniform on ink', 'untrained slots', 'stage 1 saliency'))
    assert {r['looker'].rpartition(', ')[2] for r in rows} == {'uniform on ink', 'untrained slots', 'stage 1 saliency', 'stage 2 slots', 'stage 3 slots',
                                                               'stage 3 cross-attention'}
    assert {r['role'] for r in rows} == set(GROUPS)
    assert len(verdict(rows)) == 3
    row = discover(samples, 'stage 2', draws=50)
    epoch = Epoch(packed, networks.vocabulary, networks.config, networks.config.pretrain.fit, with_views=True)
    signs = health(networks.encoders['stage 2'], [epoch[i] for i in range(len(epoch))], views[0].stride, (1, 5))
    assert signs['n'] == len(packed) and 1 <= signs['effective_rank'] <= len(packed) - 1 and signs['fit_range'] == [1, 5]
    assert row['n'] == sum(len(v.symbols) for v in views) and 0 <= row['nmi']['value'] <= 1

@pytest.mark.slow
def test_runs_in_the_wrong_place_say_so(chain, tmp_path):
    folder, packed = chain
    with pytest.raises(RunError, match='no attention network'): load_networks(folder/'one', folder/'one', folder/'three')
    wide = override(smoke(), {'encoder.width': 32, 'pretrain.fit.steps': 1, 'threads': 1})
    pretrain(wide, packed, tmp_path/'wide')
    with pytest.raises(RunError, match='another way'): load_networks(tmp_path/'wide', folder/'two', folder/'three')

# --- knowing places, without looking ---

def test_a_map_laid_on_other_ink_keeps_its_place_and_leaves_the_paper():
    maps, is_ink = torch.zeros(2, 2, 4), torch.ones(4, 8, dtype=torch.bool)
    maps[0, 0, 0], maps[1, 1, 3] = 1., 1.
    is_ink[:, 4] = False
    made = laid_on(maps, is_ink)
    assert made[0, :2, :2].sum() > 0.7 and made[1, 2:, 6:].sum() > 0.7 and made[:, :, 4].sum() == 0
    assert made.sum((1, 2)) == pytest.approx([1, 1])
    off = laid_on(maps[:1], torch.zeros(4, 8, dtype=torch.bool).index_fill_(1, torch.tensor([7]), True))    # all of its mass lies beside the ink
    assert off[0, :, 7] == pytest.approx([.25]*4)

def test_a_look_that_knows_only_a_place_is_not_told_from_its_moved_self(chain):
    folder, packed = chain
    views = list(survey(load_networks(folder/'one', folder/'two', folder/'three', seeds=()), packed))
    def placed(view):
        h, w = view.is_ink.shape
        ramp = (torch.arange(w)/w + 1 - torch.arange(h)[:, None]/h)[None]*view.is_ink    # towards the upper right corner
        return replace(view, maps={'stage 2 slots': ramp/ramp.sum()})
    def oracle(view):
        there = box_cells(view.boxes, *view.is_ink.shape, view.stride)[memberships(view.symbols)[:, list(GROUPS).index('letter')]].any(0)
        there = there if there.any() else view.is_ink
        return replace(view, maps={'stage 2 slots': (there/there.sum())[None]})
    gains = {}
    for name, look in (('placed', placed), ('oracle', oracle)):
        rows = score_roles([r for v in with_moved(map(look, views)) for r in measure(v)], ('stage 2 slots, moved',))
        gains[name] = {r['role']: r['mass']['gains']['stage 2 slots, moved']['value'] for r in rows if r['looker'] == 'stage 2 slots' and r['mass']['n'] > 2}
    assert abs(np.mean(list(gains['placed'].values()))) < 0.05 and gains['oracle']['letter'] > 0.2, gains

def test_no_standing_without_controls():
    with pytest.raises(ValueError, match='controls'): standing(dict(n=20, gains={}))
