"""Interval calibration: coverage for exchangeable errors, order, what few scores do, and online."""

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forecasting.conformal import (
    Calibration,
    CalibrationError,
    OnlineCalibration,
    calibrate,
    chosen,
    joined,
    median_of,
    scores_needed,
    stretched,
)

DECILES = tuple(level / 10 for level in range(1, 10))
NORMAL = np.array([NormalDist().inv_cdf(level) for level in DECILES])


def forecasts(count, horizon=2, scale=1.0) -> np.ndarray:
    """(N, H, Q) a standard normal's deciles times a scale per forecast."""
    return np.broadcast_to(np.multiply.outer(np.broadcast_to(scale, count), NORMAL)[:, None], (count, horizon, 9))


@pytest.mark.parametrize("spread", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("count", [60, 400])
def test_intervals_cover_exchangeable_errors_as_often_as_they_say(spread, count):
    random = np.random.default_rng(count)
    known, ahead, repeats = [], 500, 40
    for _ in range(repeats):
        scale = random.lognormal(size=count + ahead)  # every series has its own
        # Student's t and not the normal of the forecasts; the same draw for both steps of the horizon.
        y = np.repeat((scale * spread * random.standard_t(4, size=count + ahead))[:, None], 2, 1)
        said = forecasts(count + ahead, scale=scale)
        told = calibrate(y[:count], said[:count], DECILES).apply(said[count:])
        known.append([((told[..., k] <= y[count:]) & (y[count:] <= told[..., -1 - k])).mean() for k in range(4)])
    nominal = np.array([0.8, 0.6, 0.4, 0.2])
    error = np.sqrt(nominal * (1 - nominal) * (1 / count + 1 / ahead) / repeats)
    found = np.mean(known, 0)
    assert (found > nominal - 3 * error).all()
    assert (found < nominal + 1 / count + 3 * error).all()


@st.composite
def quantiles_and_factors(draw):
    levels = tuple(sorted(draw(st.sets(st.sampled_from([0.025, *DECILES, 0.975]), min_size=1, max_size=6))))
    random = np.random.default_rng(draw(st.integers(0, 99)))
    values = np.sort(random.normal(size=(4, 3, len(levels))).round(1), -1)  # rounded, so that some are equal
    factors = random.choice([0.0, 0.5, 1.0, 7.0], size=(3, len(levels)))
    return levels, values.astype(draw(st.sampled_from([np.float32, np.float64]))), factors


@given(quantiles_and_factors())
@settings(max_examples=60)
def test_quantiles_stay_in_order_and_the_median_where_it_is(case):
    levels, values, factors = case
    told = stretched(values, levels, factors)
    assert told.dtype == values.dtype
    assert (np.diff(told, axis=-1) >= 0).all()
    if 0.5 in levels:
        np.testing.assert_array_equal(told[..., levels.index(0.5)], values[..., levels.index(0.5)])
    np.testing.assert_allclose(stretched(values, levels, np.ones_like(factors)), values, atol=1e-6)


@pytest.mark.parametrize(("levels", "median"), [((0.4, 0.6), 2.0), ((0.2, 0.6), 2.5), ((0.9,), 1.0), ((0.1, 0.2), 3.0)])
def test_a_median_that_is_not_among_the_levels_lies_between_its_neighbours(levels, median):
    assert median_of(np.array([1.0, 3.0][: len(levels)]), levels) == pytest.approx(median)


def test_factors_are_what_pencil_and_paper_give():
    levels = (0.1, 0.5, 0.9)
    y = np.array([[1.0], [-3.0], [2.0], [0.5]])
    said = np.broadcast_to([-2.0, 0.0, 1.0], (4, 1, 3))
    # On the outcome's side: 1 / 1, -3 / -2, 2 / 1, 0.5 / 1; the ceil(5 * 0.8) = 4th smallest is 2.
    np.testing.assert_allclose(calibrate(y, said, levels).factors, [[2.0, 1.0, 2.0]])


def test_a_step_with_few_scores_is_drawn_towards_all_steps_together():
    random = np.random.default_rng(1)
    y, said = random.normal(size=(3000, 2)) * [1.0, 3.0], forecasts(3000)
    y[5:, 1] = np.nan
    own = calibrate(y, said, DECILES).factors[:, -1]
    assert own[0] == pytest.approx(1, abs=0.1)
    assert own[1] == pytest.approx(own[0], abs=0.3)  # five scores of a step three times as hard
    y = random.normal(size=(3000, 2)) * [1.0, 3.0]
    assert calibrate(y, said, DECILES).factors[1, -1] == pytest.approx(3, abs=0.3)


def test_what_cannot_be_scored_is_left_alone():
    said = np.zeros((50, 1, 3))  # no width
    unknown = np.full((50, 1), np.nan)
    for y, quantiles in ((np.ones((50, 1)), said), (unknown, said + np.array([-1, 0, 1])), (unknown[:0], said[:0])):
        calibration = calibrate(y, quantiles, (0.1, 0.5, 0.9))
        np.testing.assert_array_equal(calibration.factors, [[1, 1, 1]])
    one_sided = calibrate(np.ones((50, 1)), said[..., :2] + np.array([0, 0.1]), (0.5, 0.9))
    np.testing.assert_array_equal(one_sided.factors, [[1, 1]])


def test_more_scores_are_needed_for_a_wider_interval():
    assert scores_needed((0.1, 0.5, 0.9)) == 4
    assert scores_needed((0.025, 0.975)) == 19
    assert scores_needed((0.5,)) == 1


def test_a_calibration_is_the_same_from_its_json():
    random = np.random.default_rng(2)
    calibration = calibrate(random.normal(size=(40, 2)), forecasts(40), DECILES, on="validation")
    again = Calibration.from_json(calibration.to_json())
    np.testing.assert_array_equal(again.apply(forecasts(3)), calibration.apply(forecasts(3)))
    assert (again.scores, again.on) == (80, "validation")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"factors": [[1.0, 2.0]]}, "expected a row a step of 9 numbers"),
        ({"factors": [[-1.0] * 9]}, "each 0 or more"),
        ({"factors": [[float("nan")] * 9]}, "each 0 or more"),
        ({"factors": "wide"}, "not readable"),
        ({"levels": None}, "not readable"),
    ],
)
def test_a_calibration_that_is_none_is_refused(change, message):
    good = Calibration(DECILES, np.ones((2, 9)), 10).to_json()
    with pytest.raises(CalibrationError, match=message):
        Calibration.from_json(good | change)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(CalibrationError, match=r"expected \(N, H\) and \(N, H, 9\)"):
        calibrate(np.zeros((4, 3)), forecasts(4), DECILES)
    with pytest.raises(CalibrationError, match="2 steps and 9 levels"):
        Calibration(DECILES, np.ones((2, 9)), 10).apply(forecasts(4, horizon=3))


# Online


def run(online, outcomes, said) -> np.ndarray:
    """Forecast `said` (H, Q) before each outcome (T, B), and return what was issued (T, B, H, Q)."""
    rows, issued = np.arange(outcomes.shape[1]), []
    for y in outcomes:
        issued.append(online.issue(rows, np.broadcast_to(said, (len(rows), *said.shape)).astype(np.float32)))
        online.judge(rows, y)
    return np.array(issued)


@pytest.mark.parametrize("horizon", [1, 3])
def test_online_the_share_of_misses_tends_to_the_tail_although_the_errors_change(horizon):
    random = np.random.default_rng(0)
    steps, levels, rate = 3000, (0.1, 0.5, 0.9), 0.05
    spread = np.where(np.arange(steps) < steps // 2, 1.0, 6.0)
    outcomes = (spread * random.standard_t(4, size=steps))[:, None]
    online = OnlineCalibration(1, horizon, levels, rate)
    issued = run(online, outcomes, np.tile([-1.28, 0.0, 1.28], (horizon, 1)))
    for step in range(horizon):
        came = outcomes[step:, 0]
        told = issued[: steps - step, 0, step]
        missed = np.array([(came < told[:, 0]).mean(), (came > told[:, 2]).mean()])
        moved = online.log_factor[0, step, [0, 2]] / (rate * len(came))  # the identity of the docstring, to the bit
        np.testing.assert_allclose(missed, 0.1 + moved, atol=1e-9)
        assert (np.abs(missed - 0.1) < 0.02).all()


def test_online_a_missing_outcome_or_a_forecast_without_width_changes_nothing():
    online = OnlineCalibration(2, 1, (0.1, 0.5, 0.9), 0.1)
    rows = np.arange(2)
    online.issue(rows, np.array([[[-1, 0, 1]], [[0, 0, 0]]], np.float32))
    online.judge(rows, np.array([np.nan, 5.0]))
    np.testing.assert_array_equal(online.log_factor, 0)
    online.judge(rows[:1], np.array([5.0]))
    np.testing.assert_allclose(online.log_factor[0, 0], [-0.01, 0, 0.09])


def test_online_states_are_cut_and_joined_by_series():
    random = np.random.default_rng(3)
    said = np.tile([-1.0, 0.0, 1.0], (2, 1))
    outcomes = random.normal(size=(30, 3)) * 2
    whole = OnlineCalibration(3, 2, (0.1, 0.5, 0.9), 0.05)
    run(whole, outcomes[:20], said)
    parts = [chosen(whole.state, rows) for rows in ([0], [1, 2])]
    again = OnlineCalibration(3, 2, (0.1, 0.5, 0.9), 0.05, joined(*parts))
    np.testing.assert_array_equal(run(again, outcomes[20:], said), run(whole, outcomes[20:], said))


@pytest.mark.parametrize("rate", [0.0, 1.0, -1.0, float("nan")])
def test_online_a_rate_out_of_range_is_refused(rate):
    with pytest.raises(CalibrationError, match="above 0 and below 1"):
        OnlineCalibration(1, 1, (0.5,), rate)


def test_online_a_state_of_other_series_is_refused():
    state = OnlineCalibration(2, 1, (0.1, 0.9), 0.1).state
    with pytest.raises(CalibrationError, match=r"log_factor has shape \(2, 1, 2\), expected \(1, 1, 2\)"):
        OnlineCalibration(1, 1, (0.1, 0.9), 0.1, state)
