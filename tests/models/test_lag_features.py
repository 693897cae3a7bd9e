import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.contract import ModelError, Signature
from models.lag_features import GRID, LagFeatures


def read(features: LagFeatures, x: list[float] | torch.Tensor):
    """The past after the last of the values of one series."""
    values = torch.as_tensor(x, dtype=torch.float32).reshape(1, -1, features.buffer.channels)
    windows, _ = features.scan(values, values.isfinite().float(), features.initial_state(1))
    return windows.past((slice(None), -1))


def forecast(horizon: int, season: int, channels: int = 1) -> Signature:
    return Signature("forecast", channels=channels, horizon=horizon, season=season)


def test_the_features_of_a_short_series_by_hand():
    features = LagFeatures(forecast(horizon=3, season=2), lags=4, phase=False, rounded=True)
    past = read(features, [1.0, 2.0, 4.0, 8.0])  # season differences 3 and 6
    assert past.last.item() == 8
    assert past.scale.item() == 4.5
    assert features.references(past).tolist() == [[-4.0, 0.0, -4.0]]  # 4, 8 and 4 again
    recent = [7, 6, 4]  # how far the last value is above those before it, oldest first
    differences = [3, 6]
    rolling = [
        -0.5 * 8, 2, 0, -4,  # two steps: mean, mean absolute deviation, largest, smallest, less the last value
        -4.25, 2.25, 0, -7,  # four steps: season, shortest window and buffer are two lengths here
    ]  # fmt: skip
    change = [6 - 1.5]
    one = [-4, (4 - 1), 8 - 4, 4 - 2, 1 * 4.5]  # of lead 1: less last, than a season before, neighbours; the lead
    expected = torch.tensor([recent + differences + [-2.0, *rolling[1:]] + change + one]) / 4.5
    found = features(past)[0, :1].float()
    assert found.shape == (1, features.features)
    torch.testing.assert_close(found, (expected * GRID).round() / GRID)


@settings(max_examples=20)
@given(level=st.integers(-(10**6), 10**6), factor=st.sampled_from([0.25, 1.0, 64.0]), seed=st.integers(0, 1000))
def test_features_know_neither_the_level_nor_the_unit(level, factor, seed):
    features = LagFeatures(forecast(horizon=5, season=3), lags=8, phase=False, rounded=True)
    values = torch.from_numpy(np.random.default_rng(seed).integers(-50, 50, 12).astype(np.float32))
    there, here = read(features, factor * (values + level)), read(features, values)
    torch.testing.assert_close(features(there), features(here), rtol=0, atol=1.5 / GRID)


def test_the_phase_goes_on_from_a_state_and_repeats_after_a_season():
    features = LagFeatures(forecast(horizon=4, season=4), lags=8, phase=True, rounded=False)
    x = torch.arange(6.0)[None, :, None]
    _, state = features.scan(x, torch.ones_like(x), features.initial_state(1))
    past, _ = features.step(x[:, 0], torch.ones(1, 1), state)
    assert past.position.item() == 7 % 4
    sine = features(past)[0, :, -2]
    expected = [math.sin(2 * math.pi * (7 + lead) / 4) for lead in range(1, 5)]
    torch.testing.assert_close(sine, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)


def test_a_covariate_is_standardised_and_one_never_seen_is_at_its_mean():
    features = LagFeatures(forecast(horizon=1, season=2, channels=3), lags=4, phase=False, rounded=False)
    features.calibrate(torch.tensor([10.0, 5.0]), torch.tensor([2.0, 1.0]))
    x = torch.tensor([[1.0, 10, math.nan], [2, 12, math.nan], [3, 16, math.nan]])
    past = read(features, x)
    assert past.covariates.tolist() == [[3.0, 0.0, 3.0, 0.0]]  # values 16 and none; 16 is 6 above a season ago


@pytest.mark.parametrize(("recursive", "changes"), [(False, [2.0, -3.0, 0.0]), (True, [2.0, -3.0, -2.0])])
def test_what_is_known_ahead_is_a_feature_of_its_lead_beside_its_change_since_the_reference(recursive, changes):
    """Standardised it was 0, 1, 2, 3 and will be 4, 0, 2; a season is two steps, and the third lead is two of them
    ahead: of the last value but one where it is forecast at once, of the first forecast in a recursion."""
    signature = Signature("forecast", channels=2, horizon=3, season=2, future=1)
    features = LagFeatures(signature, lags=4, phase=False, rounded=True, recursive=recursive)
    features.calibrate(torch.tensor([10.0]), torch.tensor([2.0]))
    x = torch.tensor([[[1.0, 10], [2, 12], [4, 14], [8, 16]]])
    _, state = features.scan(x, torch.ones_like(x), features.initial_state(1))
    past = features.after(state, torch.tensor([[[18.0], [10], [14]]]))
    assert past.covariates.shape == (1, 0)
    found = features(past)[0]
    assert found.shape == (3, features.features)
    assert found[:, -2:].T.tolist() == [[4.0, 0.0, 2.0], changes]
    later = features.extended(past, torch.tensor([[1.0]], dtype=torch.float64))
    assert features(later)[0, 0, -2:].tolist() == [0.0, -3.0]  # the second lead is now the next
    with pytest.raises(ModelError, match="takes 1 covariates known ahead, and none were given"):
        features.after(state)


@pytest.mark.parametrize("season", [1, 2, 7])
def test_a_stream_that_does_not_move_has_features_of_zero(season):
    features = LagFeatures(forecast(horizon=3, season=season), lags=9, phase=False, rounded=True)
    found = features(read(features, [1e6 + 0.125] * 12))
    assert bool((found[..., :-1] == 0).all())
