"""The statistics of luck against purgedcv, statsmodels, arch, a plain loop over all halves, and the papers' own figures."""
from itertools import combinations
from math import comb

import numpy as np
import purgedcv
import pytest
from arch.covariance.kernel import Bartlett
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.sandwich_covariance import S_hac_simple

from mltrader import luck, regimes
from mltrader.core import ConfigError, DataError

SEEDS = st.integers(0, 100_000)


def returns(seed: int, n: int, mean: float = 0.0005, tail: float = 4.0) -> np.ndarray:
    return mean + 0.01 * np.random.default_rng(seed).standard_t(tail, n)


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(30, 1500), st.floats(-0.2, 0.2), st.integers(1, 500), st.floats(0, 0.1))
def test_equal_to_purgedcv_on_the_same_moments(seed, n, benchmark, trials, spread):
    """purgedcv takes the ratio with n and unbiased higher moments; on these the formulas are the same to 1e-12."""
    net = returns(seed, n, tail=6.0)
    ratio, skew, kurtosis = net.mean() / net.std(), stats.skew(net, bias=False), stats.kurtosis(net, bias=False, fisher=False)
    track = luck.Track.from_moments(ratio, skew, kurtosis, n)
    if not track.variance > 0:
        return
    assert track.probability(benchmark) == pytest.approx(purgedcv.probabilistic_sharpe_ratio(net, benchmark), abs=1e-12)
    full = purgedcv.deflated_sharpe_ratio_full(net, trials, spread**2)
    assert luck.expected_maximum(trials, spread) == pytest.approx(max(full.sr_star, 0), abs=1e-12)
    assert track.probability(luck.expected_maximum(trials, spread)) == pytest.approx(full.dsr, abs=1e-12)
    if ratio - 0.01 > 1e-3:
        theirs = purgedcv.min_track_record_length(ratio, 0.01, 0.05, skew, kurtosis)
        assert abs(track.sessions_needed(0.01) - theirs) <= 1 + 1e-9 * theirs             # they round up to whole sessions


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(10, 900), st.integers(0, 60))
def test_long_run_variance_equals_statsmodels_and_arch(seed, n, lags):
    draw = np.random.default_rng(seed)
    x = np.convolve(draw.normal(size=n + 9), np.ones(10), "valid")                        # moving sums: dependent over ten
    lags = min(lags, n - 1)
    theirs = S_hac_simple((x - x.mean())[:, None], nlags=lags)[0, 0] / n
    assert luck.long_run_variance(x, lags) == pytest.approx(max(theirs, x.var()), rel=1e-9)
    if lags:
        arch = Bartlett(x, bandwidth=lags, df_adjust=0, center=True).cov.long_run.item()
        assert luck.long_run_variance(x, lags) == pytest.approx(max(arch, x.var()), rel=1e-9)


def test_lags_zero_is_the_published_formula():
    net = returns(3, 700)
    z, ratio = (net - net.mean()) / net.std(), net.mean() / net.std(ddof=1)
    plain = luck.Track.from_moments(ratio, (z**3).mean(), (z**4).mean(), 700)
    own = luck.Track.of(net)
    assert own.variance == pytest.approx(plain.variance, rel=1e-12) and own.ratio == ratio
    assert own.error == pytest.approx(plain.error, rel=1e-12)


def test_one_definition_with_the_regimes():
    """12_regimes takes the annual ratios of all trials; the spread and the number come from them."""
    net, trials = returns(4, 2520), np.array([0.3, 0.5, 0.9, 0.1])
    assert regimes.deflated_sharpe(net, trials) == luck.deflated_sharpe(net, 4, float(np.std(trials, ddof=1)) / np.sqrt(252))
    assert regimes.deflated_sharpe(net, np.zeros(1)) == luck.Track.of(net).probability()


@pytest.mark.parametrize(("trials", "skew", "kurtosis", "expected"), [(100, -3, 10, 0.9004), (46, -3, 10, 0.9505), (88, 0, 3, 0.9505)])
def test_deflated_sharpe_of_the_paper(trials, skew, kurtosis, expected):
    """Bailey & López de Prado 2014, numerical example."""
    track = luck.Track.from_moments(2.5 / np.sqrt(250), skew, kurtosis, 1250)
    assert track.probability(luck.expected_maximum(trials, np.sqrt(0.5 / 250))) == pytest.approx(expected, abs=5e-4)


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(40, 600), st.integers(1, 400), st.integers(1, 400), st.floats(1e-4, 0.1), st.integers(0, 30))
def test_more_trials_and_more_spread_never_help(seed, n, few, more, spread, lags):
    net = returns(seed, n)
    few, many = sorted((few, few + more))
    one, other = (luck.deflated_sharpe(net, k, spread, lags) for k in (few, many))
    assert 0 <= other <= one <= luck.Track.of(net, lags).probability() <= 1
    assert luck.deflated_sharpe(net, many, 2 * spread, lags) <= other
    assert luck.deflated_sharpe(net, 1, spread, lags) == luck.Track.of(net, lags).probability()


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.floats(1e-3, 1e3), st.integers(0, 40))
def test_scale_does_not_matter_and_lags_never_narrow(seed, scale, lags):
    net = returns(seed, 300)
    plain, scaled = luck.Track.of(net, lags), luck.Track.of(scale * net, lags)
    assert scaled.ratio == pytest.approx(plain.ratio, rel=1e-9) and scaled.variance == pytest.approx(plain.variance, rel=1e-9)
    assert luck.Track.of(net, lags).error >= luck.Track.of(net).error * (1 - 1e-12)
    assert luck.Track.of(-net).probability() == pytest.approx(1 - luck.Track.of(net).probability(), abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.floats(0.001, 0.02), st.integers(0, 30))
def test_the_minimum_track_record_is_where_the_probability_arrives(seed, mean, lags):
    track = luck.Track.of(returns(seed, 800, mean), lags)
    needed = track.sessions_needed(0.0, 0.05)
    if track.ratio <= 0:
        assert needed == np.inf
    else:
        at_last = luck.Track(track.ratio, track.variance, needed)
        assert at_last.probability() == pytest.approx(0.95, abs=1e-9)
        assert (needed <= 800) == (track.probability() >= 0.95)


def test_coverage_with_dependent_returns():
    """Red team: the formula for independent returns is too sure of moving averages; with lags the error is about right."""
    draw = np.random.default_rng(5)
    shocks = draw.normal(0, 0.01, (600, 1000 + 13))
    net = np.array([np.convolve(x, np.ones(14) / 14, "valid") for x in shocks])           # what overlapping positions do
    hits = {lags: np.mean([0.05 < luck.Track.of(x, lags).probability() < 0.95 for x in net]) for lags in (0, 28)}
    assert hits[0] < 0.6 and 0.84 < hits[28] < 0.93


def slow_pbo(net: np.ndarray, n_blocks: int, gap: int) -> float:
    """Every half in a loop, with numpy's own standard deviation and scipy's ranks."""
    blocks, below = [b[gap:] for b in np.array_split(np.arange(net.shape[1]), n_blocks)], []
    for past in combinations(range(n_blocks), n_blocks // 2):
        seen = np.concatenate([blocks[b] for b in past])
        unseen = np.concatenate([blocks[b] for b in range(n_blocks) if b not in past])
        before, after = (net[:, rows].mean(axis=1) / net[:, rows].std(axis=1, ddof=1) for rows in (seen, unseen))
        below.append(stats.rankdata(after)[before.argmax()] / (len(net) + 1) < 0.5)
    return float(np.mean(below))


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(2, 12), st.sampled_from([2, 4, 6, 8]), st.integers(64, 300), st.integers(0, 5))
def test_pbo_equals_purgedcv_and_a_plain_loop(seed, configurations, n_blocks, n, gap):
    net = np.random.default_rng(seed).normal(0.0003, 0.01, (configurations, n))
    found = luck.backtest_overfitting(net, n_blocks, gap)
    assert found.pbo == slow_pbo(net, n_blocks, gap)
    assert len(found.logits) == comb(n_blocks, n_blocks // 2)
    if gap == 0:
        theirs = purgedcv.probability_of_backtest_overfitting(net, n_splits=n_blocks)
        assert found.pbo == theirs.pbo
        order = np.lexsort(found.logits[None]), np.lexsort(theirs.logits[None])
        assert np.abs(found.logits[order[0]] - theirs.logits[order[1]]).max() < 1e-9
        assert np.abs(np.sort(found.inside) - np.sort(theirs.is_oos_performance[:, 0])).max() < 1e-9


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_pbo_of_a_dominating_configuration_is_zero(seed):
    draw = np.random.default_rng(seed)
    net = draw.normal(0, 0.01, (20, 480))
    net[draw.integers(20)] += 0.006
    found = luck.backtest_overfitting(net, 8)
    assert found.pbo == 0 and found.loss == 0 and (found.outside > 0).all()


def test_pbo_of_noise_is_one_half():
    draw = np.random.default_rng(6)
    for configurations, expected in ((40, 0.5), (2, 0.5)):
        found = [luck.backtest_overfitting(draw.normal(0, 0.01, (configurations, 400)), 8).pbo for _ in range(120)]
        assert abs(np.mean(found) - expected) < 4 * np.std(found) / np.sqrt(120)


def test_pbo_sees_a_family_that_was_fitted():
    """Red team: configurations that shine where they were fitted and pay for it elsewhere have a PBO near 1."""
    draw = np.random.default_rng(7)
    net = draw.normal(0, 0.01, (16, 800))
    blocks = np.array_split(np.arange(800), 16)
    for j, block in enumerate(blocks):
        net[j] -= 0.0005
        net[j, block] += 0.02                                                             # good in one block only
    assert luck.backtest_overfitting(net, 16).pbo > 0.9


def test_correlated_trials_are_fewer():
    draw = np.random.default_rng(8)
    common, own = draw.normal(size=(1, 4000)), draw.normal(size=(50, 4000))
    for rho in (0.0, 0.3, 0.9):
        alike = np.sqrt(rho) * common + np.sqrt(1 - rho) * own
        assert luck.effective_trials(alike) == pytest.approx(rho + (1 - rho) * 50, rel=0.05)
    assert luck.effective_trials(np.vstack([own, np.zeros((3, 4000))])) == pytest.approx(50, rel=0.02)
    assert luck.effective_trials(own[:1]) == 1 and luck.effective_trials(-own[:2] * [[1], [-1]]) <= 2
    assert luck.effective_trials(np.zeros((4, 10))) == 1


def test_sixteen_blocks_are_cheap():
    """All 12,870 halves are one product: the whole is a matter of a moment, so that every run can afford it."""
    found = luck.backtest_overfitting(np.random.default_rng(9).normal(0, 0.01, (48, 5800)), 16, 14)
    assert len(found.logits) == 12_870 and 0 <= found.pbo <= 1


@pytest.mark.parametrize(("call", "error", "words"), [
    (lambda: luck.Track.of(np.array([0.1, np.nan, 0.2])), DataError, "1 missing"),
    (lambda: luck.Track.of(np.zeros((3, 3))), DataError, "one series"),
    (lambda: luck.Track.of(np.arange(9.0)).sessions_needed(0, 0.7), ConfigError, "`level`=0.7"),
    (lambda: luck.long_run_variance(np.arange(9.0), -1), ConfigError, "`lags`=-1"),
    (lambda: luck.expected_maximum(0, 0.1), ConfigError, "`n_trials`=0"),
    (lambda: luck.expected_maximum(3, float("nan")), ConfigError, "`spread`=nan"),
    (lambda: luck.backtest_overfitting(np.zeros((3, 90)), 5), ConfigError, "`n_blocks`=5"),
    (lambda: luck.backtest_overfitting(np.zeros((3, 20)), 16), DataError, "fewer blocks"),
    (lambda: luck.backtest_overfitting(np.full((3, 90), np.nan), 4), DataError, "without missing"),
])
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_what_cannot_be_known_is_nan():
    for net in (np.zeros(50), np.full(50, 0.01), np.array([0.1, 0.2])):
        track = luck.Track.of(net)
        assert np.isnan(track.probability()) and np.isnan(track.sessions_needed()) and np.isnan(track.error)
    assert np.isnan(luck.Track.of(returns(1, 90)).probability(float("nan")))
    assert np.isnan(luck.backtest_overfitting(np.ones((1, 90))).pbo)
