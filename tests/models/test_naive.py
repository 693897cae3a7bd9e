"""The floor of every leaderboard, on numbers worked out by hand.

Shapes: B series, T time, H horizon, Q quantiles, K classes.
"""

import math

import numpy as np
import pytest
import torch
from hand_cases import middle_and_sigma, run, signature
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.catalog import build
from models.contract import Batch, ModelError, Signature

NAN = math.nan


def test_the_forecast_is_the_value_of_one_season_ago():
    forecasts = run("naive", signature(horizon=5, season=3), 10, 20, 30, 13, 21, 34)
    middle, sigma = middle_and_sigma(forecasts[-1])
    assert middle == pytest.approx([13, 21, 34, 13, 21])
    # The buffer was full of 10 at the start, so the differences are 10, 20, 3, 1, 4: their mean square is 105.2.
    one = math.sqrt((10**2 + 20**2 + 3**2 + 1**2 + 4**2) / 5)
    assert sigma == pytest.approx([one, one, one, one * math.sqrt(2), one * math.sqrt(2)])


def test_the_random_walk_fans_out_with_the_square_root_of_the_step():
    middle, sigma = middle_and_sigma(run("naive", signature(horizon=4, season=1), 1, 2, 4)[-1])
    assert middle == pytest.approx([4] * 4)
    assert sigma == pytest.approx([math.sqrt(2.5 * k) for k in (1, 2, 3, 4)])  # differences 1 and 2


def test_a_missing_value_is_taken_from_one_season_before():
    forecasts = run("naive", signature(horizon=2, season=2), 1, 5, 2, NAN, NAN, 8)
    # Even steps: 1, 2, then 2 again; odd steps: 5, 5 again, then 8. Differences of what came: 4, 1, and 8 - 5.
    middle, sigma = middle_and_sigma(forecasts[-1])
    assert middle == pytest.approx([2, 8])
    assert sigma == pytest.approx([math.sqrt((4**2 + 1**2 + 3**2) / 3)] * 2)
    assert middle_and_sigma(forecasts[3])[0] == pytest.approx([2, 5])


def test_a_gap_adds_nothing_to_what_is_known_of_the_spread():
    known = run("naive", signature(horizon=1, season=1), 1, 2, 4)[-1]
    torch.testing.assert_close(run("naive", signature(horizon=1, season=1), 1, 2, 4, NAN, NAN)[-1], known)


def test_before_the_first_value_nothing_is_known_and_none_shows_early():
    forecasts = run("naive", signature(horizon=2, season=3), NAN, NAN, 7)
    assert forecasts[:2].abs().max() == 0
    assert forecasts[2].flatten().tolist() == [7] * 6


def test_only_channel_0_counts():
    model = build("naive", Signature("forecast", channels=2))
    x = torch.tensor([[[1.0, 9.0], [3.0, NAN]]])
    forecast, _ = model.scan(x, torch.ones_like(x), model.initial_state(1))
    assert forecast[0, -1, 0, 4].item() == 3.0


@given(seed=st.integers(0, 999), season=st.integers(1, 6), horizon=st.integers(1, 14), steps=st.integers(1, 30))
def test_the_naive_forecast_is_the_plain_loop(seed, season, horizon, steps):
    rng = np.random.default_rng(seed)
    values = np.where(rng.random(steps) < 0.3, NAN, rng.normal(size=steps))
    forecasts = run("naive", signature(horizon, season), *values)
    filled: list[float] = []  # what is known, the first value standing for the season before it
    squares: list[float] = []
    for t, value in enumerate(values):
        if not filled:
            if not math.isnan(value):
                filled = [float(value)] * season
        elif math.isnan(value):
            filled.append(filled[-season])
        else:
            squares.append(float(value - filled[-season]) ** 2)
            filled.append(float(value))
        recent = filled[-season:] if filled else [0.0] * season
        sigma = math.sqrt(np.mean(squares)) if squares else 0.0
        middle, spread = middle_and_sigma(forecasts[t])
        assert middle == pytest.approx([recent[h % season] for h in range(horizon)])
        expected = [sigma * math.sqrt(h // season + 1) for h in range(horizon)]
        assert spread == pytest.approx(expected, rel=1e-6, abs=1e-9)


def labelled(target: Tensor) -> list[Batch]:
    x = torch.zeros(*target.shape, 1)
    return [Batch(x, torch.ones_like(x), target, torch.ones(len(target)))] * 2


def test_the_prior_says_the_class_frequencies_of_the_training_data():
    model = build("naive", Signature("classify", channels=1, classes=4))
    model.fit(labelled(torch.tensor([[0, 0, 2, -1], [0, 1, -1, -1]])))
    prediction, state = model.step(torch.zeros(3, 1), torch.ones(3, 1), model.initial_state(3))
    assert state == {}
    assert prediction.tolist() == [pytest.approx([0.6, 0.2, 0.2, 0.0])] * 3


def test_the_prior_says_the_quantiles_of_the_training_data():
    model = build("naive", Signature("regress", channels=1, quantiles=(0.25, 0.5)))
    model.fit(labelled(torch.tensor([[0.0, 4.0, NAN], [1.0, 2.0, 3.0]])))
    prediction, _ = model.scan(torch.zeros(1, 2, 1), torch.ones(1, 2, 1), model.initial_state(1))
    assert prediction.tolist() == [[[1.0, 2.0], [1.0, 2.0]]]


@pytest.mark.parametrize(
    ("task", "target", "message"), [("classify", -1, "no label"), ("regress", NAN, "no target value")]
)
def test_training_data_without_an_answer_is_an_error(task, target, message):
    model = build("naive", Signature(task, channels=1, classes=2))
    with pytest.raises(ModelError, match=message):
        model.fit(labelled(torch.full((1, 3), target)))


@pytest.mark.parametrize("name", ["naive", "seasonal-drift"])
def test_a_scan_does_not_hold_a_season_for_every_step(name):
    """Two million seasons of two million values would fill 16 TB."""
    x = torch.arange(2e6)[None, :, None]
    model = build(name, signature(horizon=1, season=x.shape[1]))
    forecasts, _ = model.scan(x, torch.ones_like(x), model.initial_state(1))
    assert forecasts[0, -1, 0, 1] == 0
