"""The past of all channels as features: by hand, and beside UC2017's own on whole gestures."""

import numpy as np
import pytest
import torch
from torch import Tensor

from data.uc2017 import principal_axis, resampled
from models.lag_features import GRID
from models.path_features import FRAMES, PARTS, PathFeatures

LAGS, CHANNELS = 40, 3
HALF = 0.5 / GRID + 1e-12  # what rounding to the grid takes


def after(values: np.ndarray, kind: str, lags: int = LAGS, mask: np.ndarray | None = None) -> np.ndarray:
    """(T, C) -> features after the last frame, in the data's units."""
    reader = PathFeatures(values.shape[1], lags, kind)
    x = torch.from_numpy(values)[None].float()
    seen = torch.ones_like(x) if mask is None else torch.from_numpy(mask)[None].float()
    windows, _ = reader.scan(x, seen, reader.initial_state(1))
    return reader(windows.at((0, -1))).numpy()


def walk(steps: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(steps, CHANNELS)).cumsum(0) / 4


@pytest.mark.parametrize("steps", [1, 7, LAGS, 70])
def test_statistics_are_those_of_the_past_that_there_is(steps):
    values = walk(steps)
    past = values[-LAGS:].astype(np.float32).astype(float)
    ends = [(min(len(past) * i // PARTS, len(past) - 1), len(past) * (i + 1) // PARTS) for i in range(PARTS)]
    parts = [past[low : max(high, low + 1)] for low, high in ends]
    tenths = np.concatenate([np.concatenate([part.mean(0), np.abs(part).mean(0)]) for part in parts])
    expected = np.concatenate([tenths, past.mean(0), past.std(0), past.min(0), past.max(0)])
    np.testing.assert_allclose(after(values, "statistics"), expected, atol=HALF)


@pytest.mark.parametrize("steps", [4, 11, LAGS])
def test_a_cubic_path_is_resampled_exactly(steps):
    t = np.linspace(-1, 1, steps)[:, None]
    values = np.concatenate([t**3 - t, 2 * t**2, np.ones_like(t)], 1)
    found = after(values, "path")[: FRAMES * CHANNELS].reshape(FRAMES, CHANNELS)
    np.testing.assert_allclose(found, resampled(values, FRAMES), atol=HALF + 1e-6)


@pytest.mark.parametrize("steps", [3, 12, LAGS, 55])
def test_the_axis_is_that_of_a_singular_value_decomposition(steps):
    values = walk(steps) @ np.diag([3.0, 1.0, 0.3])
    found = after(values, "path")[FRAMES * CHANNELS :]
    np.testing.assert_allclose(found, principal_axis(values[-LAGS:]), atol=HALF + 1e-4)


def test_less_than_three_frames_and_a_hand_that_rests_have_no_axis():
    assert not after(walk(2), "path")[FRAMES * CHANNELS :].any()
    assert not after(np.full((30, CHANNELS), 2.0), "path")[FRAMES * CHANNELS :].any()


@pytest.mark.parametrize("kind", ["statistics", "path"])
def test_what_came_before_the_last_frames_is_forgotten(kind):
    values = walk(3 * LAGS)
    changed = values.copy()
    changed[: 2 * LAGS] += 5.0
    assert np.array_equal(after(values, kind), after(changed, kind))


@pytest.mark.parametrize("kind", ["statistics", "path"])
def test_a_channel_that_never_spoke_is_at_its_mean(kind):
    values = walk(20)
    mask = np.ones_like(values)
    mask[:, 1] = 0
    zero = values.copy()
    zero[:, 1] = 0.0
    np.testing.assert_array_equal(after(values, kind, mask=mask), after(zero, kind))


def test_the_units_of_the_channels_do_not_matter():
    def read(unit: float, offset: float) -> Tensor:
        reader = PathFeatures(CHANNELS, LAGS, "path")
        reader.calibrate(torch.full((CHANNELS,), offset), torch.full((CHANNELS,), unit))
        x = offset + unit * torch.from_numpy(walk(30))[None].float()
        windows, _ = reader.scan(x, torch.ones_like(x), reader.initial_state(1))
        return reader(windows.at((0, -1)))

    np.testing.assert_allclose(read(1.0, 0.0), read(1024.0, 4096.0), atol=2 / GRID)
