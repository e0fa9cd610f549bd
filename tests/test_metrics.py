"Scoring rules: oracles, rejected counts as wrong, intervals, paired comparisons."
import math, random
import pytest
from mask_match.latex import canonical
from mask_match.metrics import MetricError, errors, exact, mcnemar, paired_bootstrap, same_structure, score, wilson

def record(name, truth, prediction): return dict(name=name, truth=truth, prediction=prediction, reason='' if prediction is not None else 'broken file')

def slow_errors(a, b):
    "Edit distance by dynamic programming."
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row = row, [i]
        for j, y in enumerate(b, 1): row.append(min(last[j] + 1, row[-1] + 1, last[j - 1] + (x != y)))
    return row[-1]

def test_errors_against_dynamic_programming():
    rng = random.Random(0)
    for _ in range(500):
        a, b = (rng.choices(['x', '\\frac', '{', '}', '-1', '-2'], k=rng.randint(0, 15)) for _ in range(2))
        assert errors(a, b) == slow_errors(a, b) == errors(b, a) and exact(a, b) == (a == b)

@pytest.mark.parametrize('wrong', ['x + 1', [1], [-1, -2], [None], [b'x']])
def test_only_token_strings_are_compared(wrong):
    with pytest.raises(MetricError): errors(wrong, ['x'])
    with pytest.raises(MetricError): score([record('a', ['x'], wrong)])

def test_rejected_is_wrong_everywhere():
    truth = canonical('x^2')
    result = score([record('a', truth, truth), record('b', truth, None)], 'two')
    assert result['n'] == 2 and result['n_rejected'] == 1 and result['split'] == 'two'
    assert all(result[k] == .5 for k in ('exprate', 'leq1', 'leq2', 'leq3', 'structure_rate', 'token_error_rate'))
    one = score([record('a', ['x'], None)])  # a single token: rejected is still wrong, also for <= 1
    assert one['leq3'] == 0 and one['token_error_rate'] == 1

def test_keys_and_ranges():
    result = score([record(str(i), ['x', 'y'], ['x', 'y'][:i % 3]) for i in range(30)])
    assert set(result) == {'split', 'n', 'n_rejected', 'exprate', 'leq1', 'leq2', 'leq3', 'structure_rate', 'token_error_rate', 'ci95'}
    assert set(result['ci95']) == {'exprate', 'leq1', 'leq2', 'leq3', 'structure_rate', 'token_error_rate'}
    assert all(low <= result[k] <= high for k, (low, high) in result['ci95'].items())
    assert result['exprate'] <= result['leq1'] <= result['leq2'] <= result['leq3']

def test_nothing_to_score():
    result = score([], 'empty')
    assert result['n'] == 0 and result['exprate'] is None and result['ci95']['exprate'] == [0., 1.]

@pytest.mark.parametrize('broken', [[dict(name='a', truth=['x'])], [dict(name='a', truth=None, prediction=[])], [dict(name='a', truth=[], prediction=[])], [record('a', ['x'], ['x'])] * 2])
def test_broken_records_are_refused(broken):
    with pytest.raises(MetricError): score(broken)

def test_structure():
    assert same_structure(canonical('x^2'), canonical('y^3')) and not same_structure(canonical('x^2'), canonical('x_2'))
    assert not same_structure(['{'], ['{', 'x', '}']) and not same_structure([], ['x'])
    assert score([record('a', canonical('x^2'), canonical('y^3'))])['structure_rate'] == 1
    assert score([record('a', canonical('x^2'), ['x', '^', '{'])])['structure_rate'] == 0

def test_wilson_solves_its_equation():
    for k, n in ((1, 7), (3, 10), (500, 986), (986 - 3, 986)):
        for p in wilson(k, n): assert math.isclose((k / n - p) ** 2, 1.959963984540054 ** 2 * p * (1 - p) / n, rel_tol=1e-6)
    assert wilson(0, 5)[0] == 0 and wilson(5, 5)[1] == 1
    for k, n in ((-1, 5), (6, 5)):
        with pytest.raises(MetricError): wilson(k, n)

def test_reproducible_and_order_free():
    rng = random.Random(3)
    records = [record(str(i), rng.choices('abc', k=6), rng.choices('abc', k=rng.randint(0, 8))) for i in range(80)]
    result = score(records)
    assert score(records) == result
    rng.shuffle(records)
    again = score(records)
    assert all(again[k] == result[k] for k in result if k != 'ci95') and again['ci95']['exprate'] == result['ci95']['exprate']

def test_mcnemar_and_bootstrap():
    right, wrong = ['x'], ['y']
    first = [record(str(i), ['x'], right if i < 50 else wrong) for i in range(100)]
    second = [record(str(i), ['x'], right if 5 <= i < 70 else wrong) for i in range(100)][::-1]  # the order does not matter
    test = mcnemar(first, second)
    assert (test['only_first'], test['only_second'], test['n']) == (5, 20, 100)
    assert math.isclose(test['p'], 2 * sum(math.comb(25, i) for i in range(6)) / 2 ** 25)
    gain = paired_bootstrap(first, second)
    assert gain['exprate']['difference'] == .15 and gain == paired_bootstrap(first, second)
    assert gain['exprate']['ci95'][0] < .15 < gain['exprate']['ci95'][1] and math.isclose(gain['token_error_rate']['difference'], -.15)
    assert mcnemar(first, first)['p'] == 1 and paired_bootstrap(first, first)['exprate']['ci95'] == [0, 0]
    with pytest.raises(MetricError): mcnemar(first, second[1:])
    with pytest.raises(MetricError): paired_bootstrap([], [])
    rejected = [dict(r, prediction=None) for r in second]
    assert mcnemar(first, rejected)['only_second'] == 0

def test_pairs_are_of_one_name_and_one_truth():
    made = [dict(name=n, truth=['x'], prediction=['x']) for n in 'ab']
    for other in (made*2, [dict(made[0], truth=['y']), made[1]]):
        for compare in (mcnemar, paired_bootstrap):
            with pytest.raises(MetricError, match='each expression|two truths'): compare(made, other)
