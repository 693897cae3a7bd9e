"""Drift and averages: on numbers worked out by hand, against plain loops, and against statsforecast.

Shapes: B series, T time, H horizon, Q quantiles.
"""

import math

import numpy as np
import pytest
from hand_cases import middle_and_sigma, run, signature
from hypothesis import given
from hypothesis import strategies as st

from models.catalog import build
from models.contract import ModelError

NAN = math.nan


def test_drift_is_the_line_from_the_first_value_to_the_last():
    middle, sigma = middle_and_sigma(run("drift", signature(3), 1, 4, 4, 10)[-1])
    assert middle == pytest.approx([13, 16, 19])
    # Changes 3, 0, 6 around their mean of 3: 18 / 2 = 9; of 3 changes the drift is known to sigma^2 / 3.
    assert sigma == pytest.approx([math.sqrt(9 * (h + h * h / 3)) for h in (1, 2, 3)])


def test_a_gap_is_so_many_steps_of_drift():
    middle, sigma = middle_and_sigma(run("drift", signature(2), 1, NAN, NAN, 7, 10, NAN)[-1])
    # 6 in 3 steps and 3 in 1: 9 in 4. Deviations a step: 3 (2 - 2.25)^2 + (3 - 2.25)^2, of 2 changes.
    assert middle == pytest.approx([10 + 2 * 2.25, 10 + 3 * 2.25])
    each = 3 * 0.25**2 + 0.75**2
    assert sigma == pytest.approx([math.sqrt(each * (h + h * h / 4)) for h in (2, 3)])


def test_seasonal_drift_adds_the_mean_change_of_a_season():
    middle, sigma = middle_and_sigma(run("seasonal-drift", signature(5, season=2), 0, 10, 2, 11, 4, 15)[-1])
    change = (2 + 1 + 2 + 4) / 4
    assert middle == pytest.approx([4 + change, 15 + change, 4 + 2 * change, 15 + 2 * change, 4 + 3 * change])
    each = np.var([2, 1, 2, 4], ddof=1)
    assert sigma == pytest.approx([math.sqrt(each * (k + k * k / 4)) for k in (1, 1, 2, 2, 3)])


def test_a_phase_that_was_never_observed_takes_the_first_value_and_teaches_no_drift():
    middle, sigma = middle_and_sigma(run("seasonal-drift", signature(2, season=2), 5, NAN, 9, 100)[-1])
    assert middle == pytest.approx([9 + 4, 100 + 4])  # 5 -> 9 is the only change: 100 is the first of its phase
    assert sigma == [0, 0]
    assert run("seasonal-drift", signature(2, season=2), 5, NAN)[-1][:, 1].tolist() == [5, 5]


@given(seed=st.integers(0, 999), season=st.integers(1, 5), horizon=st.integers(1, 12), steps=st.integers(1, 30))
def test_seasonal_drift_is_the_plain_loop(seed, season, horizon, steps):
    rng = np.random.default_rng(seed)
    values = np.where(rng.random(steps) < 0.3, NAN, rng.normal(size=steps))
    forecasts = run("seasonal-drift", signature(horizon, season), *values)
    for t in range(steps):
        seen = [i for i in range(t + 1) if not math.isnan(values[i])]
        pairs = []  # changes, and how many seasons each took
        for i in seen:
            earlier = [j for j in seen if j < i and (i - j) % season == 0]
            if earlier:
                pairs.append((values[i] - values[earlier[-1]], (i - earlier[-1]) // season))
        total = sum(m for _, m in pairs)
        drift = sum(d for d, _ in pairs) / total if pairs else 0.0
        each = sum(m * (d / m - drift) ** 2 for d, m in pairs) / max(len(pairs) - 1, 1)
        middle, sigma = [], []
        for h in range(1, horizon + 1):
            same = [i for i in seen if (t + h - i) % season == 0]
            origin = values[same[-1]] if same else (values[seen[0]] if seen else 0.0)
            k = (t + h - same[-1]) // season if same else (h - 1) // season + 1
            middle.append(origin + k * drift)
            sigma.append(math.sqrt(each * (k + k * k / max(total, 1))))
        found = middle_and_sigma(forecasts[t])
        assert found[0] == pytest.approx(middle, abs=1e-9)
        assert found[1] == pytest.approx(sigma, rel=1e-6, abs=1e-7)


@given(seed=st.integers(0, 999), window=st.integers(1, 6), steps=st.integers(1, 30))
def test_window_average_is_the_plain_loop_over_observed_values(seed, window, steps):
    rng = np.random.default_rng(seed)
    values = np.where(rng.random(steps) < 0.3, NAN, 100 + rng.normal(size=steps))
    forecasts = run("window-average", signature(2), *values, window=window)
    for t in range(steps):
        seen = values[: t + 1][np.isfinite(values[: t + 1])]
        mean = seen[-window:].mean() if len(seen) else 0.0
        judged = []
        for i in range(1, len(seen)):
            past = seen[max(0, i - window) : i]
            judged.append((seen[i] - past.mean()) ** 2 / (1 + 1 / len(past)))
        each = np.mean(judged) if judged else 0.0
        middle, sigma = middle_and_sigma(forecasts[t])
        assert middle == pytest.approx([mean] * 2)
        expected = math.sqrt(each * (1 + 1 / max(1, min(len(seen), window))))
        assert sigma == pytest.approx([expected] * 2, rel=1e-6, abs=1e-7)


@given(seed=st.integers(0, 999), steps=st.integers(1, 30))
def test_historic_average_is_the_mean_and_deviation_of_observed_values(seed, steps):
    rng = np.random.default_rng(seed)
    values = np.where(rng.random(steps) < 0.3, NAN, 100 + rng.normal(size=steps))
    forecasts = run("historic-average", signature(2), *values)
    for t in range(steps):
        seen = values[: t + 1][np.isfinite(values[: t + 1])]
        middle, sigma = middle_and_sigma(forecasts[t])
        assert middle == pytest.approx([seen.mean() if len(seen) else 0.0] * 2)
        deviation = seen.std(ddof=1) * math.sqrt(1 + 1 / len(seen)) if len(seen) > 1 else 0.0
        assert sigma == pytest.approx([deviation] * 2, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("name", ["drift", "window-average", "historic-average"])
def test_forecasts_are_those_of_statsforecast(name):
    """Intervals too, where it has them without simulation or conformal residuals."""
    from statsforecast import models as peer

    theirs = {
        "drift": peer.RandomWalkWithDrift(),
        "window-average": peer.WindowAverage(window_size=7),
        "historic-average": peer.HistoricAverage(),
    }[name]
    values = 50 + np.random.default_rng(3).normal(0.2, 1.0, 80).cumsum()
    settings = {"window": 7} if name == "window-average" else {}
    found = run(name, signature(6), *values, **settings)[-1].numpy()
    if name == "window-average":
        expected = theirs.forecast(values, h=6)
    else:
        expected = theirs.forecast(values, h=6, level=[80])
        width = expected["hi-80"] - expected["lo-80"]
        if name == "drift":  # it divides the squares by all 79 changes; the book takes one off for the drift
            width = width * math.sqrt(79 / 78)
        np.testing.assert_allclose(found[:, 2] - found[:, 0], width, rtol=1e-6)
    np.testing.assert_allclose(found[:, 1], expected["mean"], rtol=1e-9)


def test_a_window_of_nothing_is_refused():
    with pytest.raises(ModelError, match="window of at least 1 value, got 0"):
        build("window-average", signature(1), window=0)
