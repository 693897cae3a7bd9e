import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import t as student
from sklearn.metrics import f1_score

from forecasting import metrics

no_deadline = settings(deadline=None)  # a busy machine is not a wrong answer
LEVELS = np.arange(1, 10) / 10
numbers = st.floats(-1e6, 1e6)
pairs = st.integers(1, 30).flatmap(
    lambda n: st.tuples(arrays(float, n, elements=numbers), arrays(float, n, elements=numbers))
)


def test_the_module_starts_with_numpy_alone():
    code = (
        "import sys, forecasting.metrics; "
        "print({'torch', 'pandas', 'scipy', 'statsmodels', 'matplotlib'} & {m.split('.')[0] for m in sys.modules})"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


# Point forecasts


def test_point_measures_on_numbers_worked_out_by_hand():
    y, forecast = [1.0, 2.0, np.nan, 4.0], [2.0, 2.0, 7.0, 1.0]  # errors -1, 0, unknown, 3
    assert metrics.mae(y, forecast) == pytest.approx(4 / 3)
    assert metrics.mse(y, forecast) == pytest.approx(10 / 3)
    assert metrics.rmse(y, forecast) == pytest.approx((10 / 3) ** 0.5)
    assert metrics.mape(y, forecast) == pytest.approx((100 + 0 + 75) / 3)
    assert metrics.smape(y, forecast) == pytest.approx((200 / 3 + 0 + 600 / 5) / 3)


def test_zero_forecast_as_zero_is_perfect_for_smape_and_left_out_of_mape():
    assert metrics.smape([0.0, 1.0], [0.0, -1.0]) == 100.0  # 0 and 200
    assert metrics.mape([0.0, 2.0], [5.0, 1.0]) == 50.0
    assert np.isnan(metrics.mape([0.0], [5.0]))


@pytest.mark.parametrize("measure", [metrics.mae, metrics.mse, metrics.rmse, metrics.mape, metrics.smape])
def test_every_point_measure_takes_nan_as_unknown_in_y_and_as_failure_in_the_forecast(measure):
    assert measure([1.0, np.nan], [2.0, np.nan]) == measure([1.0], [2.0])
    assert np.isnan(measure([1.0, 2.0], [1.0, np.nan]))
    assert np.isnan(measure([np.nan], [1.0]))
    assert not np.isfinite(measure([1.0, 2.0], [np.inf, 2.0]))
    with pytest.raises(ValueError, match=r"y has shape \(2,\), its forecast \(2, 1\)"):
        measure([1.0, 2.0], [[1.0], [2.0]])


@no_deadline
@given(pairs)
def test_point_measures_are_zero_for_the_truth_and_ordered(pair):
    y, forecast = pair
    assert metrics.mae(y, y) == metrics.rmse(y, y) == metrics.smape(y, y) == 0
    assert metrics.mae(y, forecast) <= metrics.rmse(y, forecast) * (1 + 1e-9) + 1e-150  # squares of less vanish
    assert 0 <= metrics.smape(y, forecast) <= 200 * (1 + 1e-9)
    assert metrics.smape(y, forecast) == metrics.smape(forecast, y)


def test_the_scale_is_the_mean_seasonal_change_over_known_pairs():
    assert metrics.seasonal_scale([1.0, 2.0, 4.0, 8.0], season=1) == pytest.approx(7 / 3)
    assert metrics.seasonal_scale([1.0, 2.0, 4.0, 8.0], season=2) == 4.5
    assert metrics.seasonal_scale([1.0, np.nan, 4.0, 8.0], season=1) == 4.0
    assert metrics.seasonal_scale([1.0, np.nan, 4.0, 8.0], season=2) == 3.0


@pytest.mark.parametrize(("history", "season"), [([3.0] * 5, 1), ([1.0, 2.0], 2), ([], 1), ([1.0, np.nan, 2.0], 1)])
def test_a_constant_or_too_short_history_has_no_scale(history, season):
    assert np.isnan(metrics.seasonal_scale(history, season))


@no_deadline
@given(arrays(float, 30, elements=st.integers(-1000, 1000).map(float)), st.integers(1, 8), st.integers(0, 29))
def test_the_seasonal_naive_forecast_has_a_mase_of_one_in_sample(history, season, gap):
    history[gap] = np.nan
    scale = metrics.seasonal_scale(history, season)
    y, naive = history[season:], history[:-season]
    known = ~np.isnan(naive)
    result = metrics.mase(y[known], naive[known], scale)
    if np.isnan(scale):
        assert (result.n_rows, result.n_excluded) == (0, 1)
        assert np.isnan(result.value)
    else:
        assert result.value == pytest.approx(1)


def test_mase_excludes_rows_without_a_scale_and_counts_them():
    y = [[1.0, 2.0], [5.0, np.nan], [9.0, 9.0], [9.0, 9.0]]
    forecast = [[2.0, 2.0], [2.0, 2.0], [0.0, 0.0], [0.0, 0.0]]
    result = metrics.mase(y, forecast, [2.0, 3.0, np.nan, 0.0])  # 1/2, 0/2, 3/3
    assert result == metrics.MASEResult(value=0.5, n_rows=2, n_excluded=2)
    with pytest.raises(ValueError, match="scale has shape"):
        metrics.mase(y, forecast, 2.0)


def test_skill_is_the_part_of_the_reference_loss_that_is_saved():
    assert metrics.skill(3.0, 4.0) == 0.25
    assert metrics.skill(5.0, 4.0) == -0.25
    assert np.isnan(metrics.skill(1.0, 0.0))


# Quantile forecasts


def test_the_mean_of_quantiles_weighs_each_by_half_the_way_to_its_neighbours():
    assert metrics.mean_of_quantiles([[0.0, 1.0, 4.0]], [0.1, 0.5, 0.8]) == pytest.approx([0.35 + 4 * 0.35])
    assert metrics.mean_of_quantiles([7.0], [0.3]) == 7.0


@no_deadline
@given(arrays(float, 9, elements=numbers).map(np.sort))
def test_the_mean_of_quantiles_is_the_area_under_the_flat_ended_quantile_function(quantiles):
    u = (np.arange(20_000) + 0.5) / 20_000
    area = np.interp(u, LEVELS, quantiles).mean()
    assert metrics.mean_of_quantiles(quantiles, LEVELS) == pytest.approx(area, rel=1e-6, abs=1e-2)


@no_deadline
@given(numbers, arrays(float, 4, elements=st.floats(0, 1e3)).map(np.sort))
def test_the_mean_of_symmetric_quantiles_is_their_centre(centre, offsets):
    quantiles = centre + np.concatenate([-offsets[::-1], [0], offsets])
    assert metrics.mean_of_quantiles(quantiles, LEVELS) == pytest.approx(centre, rel=1e-9, abs=1e-6)


@pytest.mark.parametrize("levels", [[0.5, 0.1], [0.0, 0.5], [0.5, 1.0], [0.1, 0.1], [np.nan, 0.5], []])
def test_levels_out_of_order_or_range_are_refused(levels):
    with pytest.raises(ValueError, match="expected increasing numbers between 0 and 1"):
        metrics.mean_of_quantiles(np.zeros(len(levels)), levels)


def test_pinball_charges_each_side_by_its_level():
    # y = 10: under by 4 at level 0.1, exact at 0.5, over by 2 at 0.9
    assert metrics.pinball([10.0], [[6.0, 10.0, 12.0]], [0.1, 0.5, 0.9]) == pytest.approx((0.4 + 0 + 0.2) / 3)
    losses = metrics.pinball_losses([10.0, np.nan], [[6.0], [6.0]], [0.1])
    np.testing.assert_allclose(losses, [0.4, np.nan])
    assert metrics.pinball([10.0, np.nan], [[6.0], [np.nan]], [0.1]) == pytest.approx(0.4)
    assert np.isnan(metrics.pinball([10.0], [[np.nan]], [0.1]))
    with pytest.raises(ValueError, match=r"expected \(2, 1\)"):
        metrics.pinball([10.0, 11.0], [[6.0]], [0.1])


@no_deadline
@given(pairs)
def test_pinball_at_the_median_is_half_the_mae(pair):
    y, forecast = pair
    assert metrics.pinball(y, forecast[:, None], [0.5]) == pytest.approx(metrics.mae(y, forecast) / 2)


@no_deadline
@given(st.floats(0.05, 0.95), arrays(float, 20, elements=numbers))
def test_no_constant_has_less_pinball_than_the_quantile_of_the_sample(level, y):
    def loss(constant):
        return metrics.pinball(y, np.full((20, 1), constant), [level])

    best = loss(np.quantile(y, level, method="inverted_cdf"))
    assert all(best <= loss(other) + 1e-6 for other in y)


def test_coverage_counts_the_bounds_and_fails_on_a_missing_one():
    y = [1.0, 2.0, 3.0, 4.0, np.nan]
    low, high = np.full(5, 2.0), np.full(5, 3.0)
    assert metrics.coverage(y, low, high) == 0.5
    low[0] = np.nan
    assert np.isnan(metrics.coverage(y, low, high))


@no_deadline
@given(arrays(float, (25, 2), elements=numbers), arrays(float, 25, elements=numbers), st.floats(0, 1e6))
def test_a_wider_interval_never_covers_less(bounds, y, more):
    low, high = bounds.min(axis=1), bounds.max(axis=1)
    assert 0 <= metrics.coverage(y, low, high) <= metrics.coverage(y, low - more, high + more) <= 1


# Classification


def test_class_measures_on_numbers_worked_out_by_hand():
    labels, predicted = [0, 0, 1, 1], [0, 1, 1, 1]
    assert metrics.accuracy(labels, predicted) == 0.75
    f1 = (2 / 3 + 4 / 5) / 2  # class 2 is nowhere, so it is left out
    assert metrics.macro_f1(labels, predicted, n_classes=3) == pytest.approx(f1)
    assert metrics.macro_f1([0, 0], [0, 2], n_classes=3) == pytest.approx((2 / 3 + 0) / 2)  # class 2 was only guessed
    assert metrics.log_loss([1, 0], [[0.5, 0.5], [0.25, 0.75]]) == pytest.approx((np.log(2) + np.log(4)) / 2)
    assert metrics.log_loss([0], [[0.0, 1.0]]) == pytest.approx(15 * np.log(10))


def test_an_unknown_label_is_left_out_and_an_impossible_one_refused():
    assert metrics.accuracy([0.0, np.nan], [0, 1]) == 1
    assert metrics.macro_f1([0.0, np.nan], [0, 1], n_classes=2) == 1
    assert metrics.log_loss([np.nan, 1.0], [[1.0, 0.0], [0.0, 1.0]]) == 0
    assert np.isnan(metrics.accuracy([], []))
    assert np.isnan(metrics.log_loss([0], [[np.nan, 0.5]]))
    with pytest.raises(ValueError, match="labels run from 0 to 2, expected class indices from 0 to 1"):
        metrics.macro_f1([0, 2], [0, 1], n_classes=2)
    with pytest.raises(ValueError, match="labels run from -1 to 0"):
        metrics.log_loss([-1, 0], [[0.5, 0.5], [0.5, 0.5]])
    with pytest.raises(ValueError, match="predicted is NaN in 1 of 2 cases"):
        metrics.accuracy([0, 1], [0, np.nan])


@no_deadline
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1))
def test_macro_f1_agrees_with_scikit_learn(cases):
    labels, predicted = np.array(cases).T
    expected = f1_score(labels, predicted, average="macro", zero_division=0)
    assert metrics.macro_f1(labels, predicted, n_classes=5) == pytest.approx(expected)


def test_a_decision_falls_at_the_end_of_the_first_long_enough_run():
    p = np.array([[0.9, 0.1], [0.1, 0.9], [0.2, 0.8], [0.5, 0.5], [0.1, 0.9], [0.1, 0.9], [0.1, 0.9], [0.9, 0.1]])
    assert metrics.earliness(p, threshold=0.8, dwell=1) == 1 / 8
    assert metrics.earliness(p, threshold=0.8, dwell=2) == 3 / 8  # a run of another class does not count
    assert metrics.earliness(p, threshold=0.8, dwell=3) == 7 / 8  # a frame below the threshold starts anew
    assert metrics.earliness(p, threshold=0.8, dwell=4) == 1.0
    p[1] = np.nan
    assert metrics.earliness(p, threshold=0.8, dwell=2) == 6 / 8
    with pytest.raises(ValueError, match=r"expected \(T, K\)"):
        metrics.earliness(np.empty((0, 2)), threshold=0.8, dwell=1)


@no_deadline
@given(arrays(float, (12, 3), elements=st.floats(0, 1)), st.floats(0, 1), st.floats(0, 1), st.integers(1, 4))
def test_a_stricter_rule_never_decides_earlier(p, one, other, dwell):
    assert metrics.earliness(p, min(one, other), dwell) <= metrics.earliness(p, max(one, other), dwell)
    assert metrics.earliness(p, one, dwell) <= metrics.earliness(p, one, dwell + 1)


# Diebold-Mariano


def test_diebold_mariano_at_one_step_is_the_t_test_of_the_mean_difference():
    model, reference = np.array([1.0, 2.0, 0.0, 1.0]), np.array([2.0, 2.0, 3.0, 2.0])
    # differences -1, 0, -3, -1: mean -1.25, variance (1/4) sum of squares = 1.1875, correction 3/4
    result = metrics.diebold_mariano(model, reference, horizon=1)
    statistic = -1.25 / np.sqrt(1.1875 / 4) * np.sqrt(3 / 4)
    assert result.statistic == pytest.approx(statistic)
    assert result.p_value == pytest.approx(2 * student.cdf(statistic, 3))
    assert result.n == 4


def test_diebold_mariano_adds_the_autocovariances_below_the_horizon():
    difference = np.array([1.0, 2.0, 3.0, 2.0, 1.0, 3.0])
    d = difference - 2  # -1 0 1 0 -1 1: gamma_0 = 4/6, gamma_1 = -1/6, all divided by n = 6
    variance = (4 / 6 + 2 * (-1 / 6)) / 6
    assert d @ d == 4
    assert d[1:] @ d[:-1] == -1
    result = metrics.diebold_mariano(difference, np.zeros(6), horizon=2)
    assert result.statistic == pytest.approx(2 / np.sqrt(variance) * np.sqrt((6 + 1 - 4 + 2 / 6) / 6))


def test_diebold_mariano_falls_back_to_bartlett_when_the_variance_is_not_positive():
    difference = np.array([1.0, -1.0] * 4) + 0.5  # gamma_0 = 1, gamma_1 = -7/8: 1 - 14/8 < 0, Bartlett 1 - 7/8
    result = metrics.diebold_mariano(difference, np.zeros(8), horizon=2)
    assert result.statistic == pytest.approx(0.5 / np.sqrt((1 - 7 / 8) / 8) * np.sqrt((8 + 1 - 4 + 2 / 8) / 8))


def test_diebold_mariano_is_negative_for_the_better_model_and_drops_nan_pairs():
    random = np.random.default_rng(0)
    reference = random.random(60)
    model = reference - 0.2 + 0.1 * random.standard_normal(60)
    better = metrics.diebold_mariano(model, reference, horizon=3)
    worse = metrics.diebold_mariano(reference, model, horizon=3)
    assert better.statistic < -2
    assert better.p_value < 0.01
    assert (worse.statistic, worse.p_value) == (-better.statistic, better.p_value)
    with_gaps = metrics.diebold_mariano([np.nan, 1.0, *model], [1.0, np.nan, *reference], horizon=3)
    assert with_gaps == better


@pytest.mark.parametrize(
    ("model", "reference", "horizon"),
    [
        ([], [], 1),
        ([1.0], [2.0], 1),
        ([1.0, 2.0, 3.0], [2.0, 2.0, 2.0], 3),
        ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], 1),
        ([1.0, 2.0, 3.0], [2.0, 3.0, 4.0], 1),
        ([1.0, np.inf, 3.0], [2.0, np.inf, 4.0], 1),
    ],
)
def test_diebold_mariano_says_nan_where_nothing_can_be_tested(model, reference, horizon):
    result = metrics.diebold_mariano(model, reference, horizon)
    assert np.isnan([result.statistic, result.p_value]).all()
    assert result.n == len(model)


@pytest.mark.parametrize(("n", "horizon"), [(40, 1), (100, 4), (200, 12)])
def test_diebold_mariano_rejects_equal_forecasts_about_one_time_in_twenty(n, horizon):
    random = np.random.default_rng(7)
    repeats, rejected = 500, 0
    for _ in range(repeats):
        noise = random.standard_normal(n + horizon - 1)
        difference = np.convolve(noise, np.ones(horizon), "valid")  # correlated up to lag horizon - 1, mean 0
        rejected += metrics.diebold_mariano(difference, np.zeros(n), horizon).p_value < 0.05
    assert 0.03 <= rejected / repeats <= 0.09
