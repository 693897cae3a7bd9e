"""Each part has a step that is the definition, checked by hand and against a plain loop, and a scan that must agree.

Shapes: B series, T time, C channels, L lags.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.observation import LagBuffer, RunningNormaliser, fill_forward, linear_recurrence

NAN = math.nan


def series(*values: float) -> tuple[Tensor, Tensor]:
    """x, mask (1, T, 1); NaN is a gap."""
    x = torch.tensor(values, dtype=torch.float64)[None, :, None]
    return x, x.isfinite().double()


def stepped(part, x: Tensor, mask: Tensor):
    """What `part.step` gives for each t, stacked over time, and its last state."""
    state = part.initial_state(len(x))
    views = []
    for t in range(x.shape[1]):
        view, state = part.step(x[:, t], mask[:, t], state)
        views.append(view)
    if isinstance(views[0], Tensor):
        return torch.stack(views, 1), state
    return type(views[0])(*(torch.stack(values, 1) for values in zip(*views, strict=True))), state


def both(part, x: Tensor, mask: Tensor):
    """The steps' answer, once the scan has been seen to give the same."""
    by_step, state = stepped(part, x, mask)
    whole, after = part.scan(x, mask, part.initial_state(len(x)))
    torch.testing.assert_close(whole, by_step, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(after, state, rtol=1e-9, atol=1e-9)
    return by_step


def normaliser(window: int, prior: int = 0) -> RunningNormaliser:
    return RunningNormaliser(1, window, prior).double()


def walks(draw_seed: int, steps: int, missing: float) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(draw_seed)
    x = torch.from_numpy(rng.normal(size=(2, steps, 1)).cumsum(1))
    mask = torch.from_numpy((rng.random(x.shape) >= missing).astype(float))
    return torch.where(mask > 0, x, NAN), mask


# The running normaliser.


def test_level_change_and_scale_of_three_values_by_hand():
    seen = both(normaliser(window=10), *series(2, 4, 6))
    scale = [1e-6, 1.0, math.sqrt(8 / 3)]  # variances of (2), (2, 4), (2, 4, 6); the floor where there is none
    assert seen.scale.flatten().tolist() == pytest.approx(scale)
    assert seen.level.flatten().tolist() == pytest.approx([0, 1 / scale[1], 2 / scale[2]])
    assert seen.change.flatten().tolist() == pytest.approx([0, 2 / scale[1], 2 / scale[2]])
    assert seen.value.flatten().tolist() == [2, 4, 6]


def test_after_the_window_old_values_fade_by_hand():
    seen = both(normaliser(window=2), *series(2, 4, 7))
    # Mean 3 and variance 1 of the first two; then half of what was and half of what came:
    # mean (3 + 7) / 2 = 5, variance (1 + (7 - 3)^2 / 2) / 2 = 4.5.
    assert seen.scale.flatten()[-1].item() == pytest.approx(math.sqrt(4.5))
    assert seen.level.flatten()[-1].item() == pytest.approx((7 - 5) / math.sqrt(4.5))


def test_a_gap_repeats_the_last_value_and_leaves_the_statistics():
    seen = both(normaliser(window=10), *series(NAN, 2, NAN, 4, NAN, NAN))
    assert seen.present.flatten().tolist() == [0, 1, 0, 1, 0, 0]
    assert seen.value.flatten().tolist() == [0, 2, 2, 4, 4, 4]
    assert seen.change.flatten().tolist() == pytest.approx([0, 0, 0, 2, 0, 0])
    assert seen.level.flatten().tolist() == pytest.approx([0, 0, 0, 1, 1, 1])


def test_a_prior_weighs_as_many_observations_as_it_says():
    part = normaliser(window=4, prior=3)
    part.calibrate(torch.tensor([10.0]), torch.tensor([6.0]), torch.tensor([1e-6]))
    seen = both(part, *series(NAN, 14))
    # Three observations of mean 10 and variance 6, and a fourth of 14: mean 11, variance (3 / 4) (6 + 4^2 / 4) = 7.5.
    assert seen.value.flatten().tolist() == [10, 14]
    assert seen.scale.flatten().tolist() == pytest.approx([math.sqrt(6), math.sqrt(7.5)])
    assert seen.level.flatten().tolist() == pytest.approx([0, 3 / math.sqrt(7.5)])
    assert seen.change.flatten().tolist() == pytest.approx([0, 4 / math.sqrt(7.5)])


@given(seed=st.integers(0, 999), steps=st.integers(1, 20))
def test_until_the_window_is_full_mean_and_variance_are_exact(seed, steps):
    x, mask = walks(seed, steps, missing=0.0)
    part = normaliser(window=steps)
    seen = both(part, x, mask)
    for t in range(1, steps):
        known = x[:, : t + 1]
        spread = (known.var(1, unbiased=False) + part.floor**2).sqrt()  # two values may lie as close as the floor
        torch.testing.assert_close(seen.scale[:, t], spread, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(seen.level[:, t], (known[:, -1] - known.mean(1)) / spread, rtol=1e-6, atol=1e-6)


@given(
    seed=st.integers(0, 999),
    steps=st.integers(1, 40),
    missing=st.sampled_from([0.0, 0.3, 0.9]),
    window=st.integers(2, 50),
    prior=st.sampled_from([0, 1, 7]),
)
def test_the_normaliser_is_the_plain_loop_over_mean_and_variance(seed, steps, missing, window, prior):
    x, mask = walks(seed, steps, missing)
    part = normaliser(window, prior)
    part.calibrate(torch.tensor([0.5]), torch.tensor([2.0]), torch.tensor([0.01]))
    seen = both(part, x, mask)
    for b in range(len(x)):
        count = min(prior, window)
        mean, var, last = (0.5, 2.0, 0.5) if prior else (0.0, 0.0, 0.0)
        for t in range(steps):
            before = last
            if mask[b, t, 0]:
                last = float(x[b, t, 0])
                if count == 0:
                    before = mean = last
                count = min(count + 1, window)
                surprise = last - mean
                mean += surprise / count
                var = (1 - 1 / count) * (var + surprise**2 / count)
            scale = math.sqrt(var + 0.01**2)
            expected = (last, (last - mean) / scale, (last - before) / scale, float(mask[b, t, 0]), scale, count)
            found = [float(value[b, t, 0]) for value in seen]
            assert found == pytest.approx(expected, rel=1e-6, abs=1e-6), f"series {b}, step {t}"


@pytest.mark.parametrize("form", ["step", "scan"])
def test_a_level_far_above_the_spread_costs_no_digits(form):
    rng = np.random.default_rng(0)
    small = rng.integers(0, 8, size=(2, 200, 1)).astype(np.float32)
    x = torch.from_numpy(small + np.float32(8_000_000))  # whole numbers up to 2^24 are exact in float32
    part = RunningNormaliser(1, 500)
    seen = stepped(part, x, torch.ones_like(x))[0] if form == "step" else part.scan(
        x, torch.ones_like(x), part.initial_state(2)
    )[0]  # fmt: skip
    exact = small[:, :150].astype(np.float64)
    np.testing.assert_allclose(seen.scale[:, 149], exact.std(1), rtol=1e-5)
    np.testing.assert_allclose(seen.level[:, 149], (exact[:, -1] - exact.mean(1)) / exact.std(1), rtol=1e-4, atol=1e-5)


def test_the_smallest_scale_keeps_a_constant_stretch_from_exploding():
    part = normaliser(window=5)
    part.calibrate(torch.zeros(1), torch.ones(1), torch.tensor([0.25]))
    seen = both(part, *series(7, 7, 7, 7.25))
    assert seen.scale.flatten()[:3].tolist() == [0.25] * 3
    assert 0 < seen.change.flatten()[3].item() <= 1


# Its tools.


@given(data=st.data(), steps=st.integers(1, 40), seed=st.integers(0, 999))
def test_the_doubling_scan_is_the_loop(data, steps, seed):
    rest = data.draw(st.sampled_from([(), (3,), (2, 3)]))
    generator = torch.Generator().manual_seed(seed)
    keep = torch.rand(2, steps, *rest, generator=generator, dtype=torch.float64)
    keep = torch.where(keep < 0.2, 0.0, torch.where(keep > 0.8, 1.0, keep))  # both ends of the range as well
    add = torch.randn(2, steps, *rest, generator=generator, dtype=torch.float64)
    h = initial = torch.randn(2, *rest, generator=generator, dtype=torch.float64)
    expected = []
    for t in range(steps):
        h = keep[:, t] * h + add[:, t]
        expected.append(h)
    torch.testing.assert_close(linear_recurrence(keep, add, initial), torch.stack(expected, 1), rtol=1e-12, atol=1e-12)


def test_the_doubling_scan_passes_gradients_like_the_loop():
    inputs = [torch.rand(1, 5, dtype=torch.float64), torch.rand(1, 5, dtype=torch.float64)]
    inputs = [*(value.requires_grad_() for value in inputs), torch.rand(1, dtype=torch.float64, requires_grad=True)]
    assert torch.autograd.gradcheck(linear_recurrence, inputs)


def test_a_missing_value_becomes_the_last_observed_one():
    x = torch.tensor([[NAN, 1, NAN, NAN, 4, NAN], [5, NAN, NAN, 6, 7, NAN]])
    last = torch.tensor([9.0, 8.0])
    assert fill_forward(x, x.isfinite(), last).tolist() == [[9, 1, 1, 1, 4, 4], [5, 5, 5, 6, 7, 7]]


def test_filling_takes_the_mask_at_its_word():
    x = torch.tensor([[1.0, 2.0, 3.0]])
    seen = torch.tensor([[False, True, False]])
    assert fill_forward(x, seen, torch.tensor([0.0])).tolist() == [[0, 2, 2]]


# The lags.


def test_a_buffer_tells_which_channels_have_spoken():
    x = torch.tensor([[[1.0, NAN], [NAN, NAN], [3.0, 7.0]]], dtype=torch.float64)
    seen = both(LagBuffer(2, 2).double(), x, x.isfinite().double())
    assert seen.started.tolist() == [[[1, 0], [1, 0], [1, 1]]]


def test_the_first_value_fills_the_buffer_and_gaps_repeat():
    windows = both(LagBuffer(1, 3).double(), *series(NAN, 5, 6, NAN, 8)).values
    assert windows.squeeze(-1).tolist() == [[[0, 0, 0], [5, 5, 5], [5, 5, 6], [5, 6, 6], [6, 6, 8]]]


def test_a_buffer_longer_than_the_sequence_keeps_its_first_value():
    windows = both(LagBuffer(1, 5).double(), *series(5, 6)).values
    assert windows.squeeze(-1).tolist() == [[[5, 5, 5, 5, 5], [5, 5, 5, 5, 6]]]


def test_channels_start_each_at_their_own_time():
    x = torch.tensor([[[1.0, NAN], [2.0, NAN], [3.0, 7.0]]], dtype=torch.float64)
    windows = both(LagBuffer(2, 2).double(), x, x.isfinite().double()).values
    assert windows.tolist() == [[[[1, 0], [1, 0]], [[1, 0], [2, 0]], [[2, 7], [3, 7]]]]


@given(seed=st.integers(0, 999), steps=st.integers(1, 20), lags=st.integers(1, 8), cut=st.integers(0, 20))
def test_the_buffer_is_the_last_values_of_the_filled_series(seed, steps, lags, cut):
    x, mask = walks(seed, steps, missing=0.4)
    part = LagBuffer(1, lags).double()
    windows = both(part, x, mask).values
    if 0 < cut < steps:
        head, state = part.scan(x[:, :cut], mask[:, :cut], part.initial_state(2))
        tail, _ = part.scan(x[:, cut:], mask[:, cut:], state)
        assert torch.equal(torch.cat([head.values, tail.values], 1), windows)
    for b in range(2):
        filled: list[float] = []
        for t in range(steps):
            if mask[b, t, 0]:
                filled = [*filled, float(x[b, t, 0])] if filled else [float(x[b, t, 0])] * lags
            elif filled:
                filled = [*filled, filled[-1]]
            assert windows[b, t, :, 0].tolist() == (filled[-lags:] if filled else [0.0] * lags)


@pytest.mark.parametrize("prior", [1, 5])
def test_what_is_known_of_other_series_is_as_if_they_had_been_seen(prior):
    part = RunningNormaliser(2, window=100, prior=prior).double()
    part.calibrate(torch.tensor([1.0, -2.0]), torch.tensor([4.0, 0.5]), torch.full((2,), 1e-6))
    generator = torch.Generator().manual_seed(0)
    x = 3 + 2 * torch.randn(1, 12, 2, generator=generator, dtype=torch.float64)
    _, went_on = part.scan(x[:, :8], torch.ones(1, 8, 2), part.initial_state(1))
    before = x[:, :8]
    known = torch.stack([torch.full((1, 2), 8.0), before.mean(1), before.var(1, correction=0)], 1)
    expected, _ = part.scan(x[:, 8:], torch.ones(1, 4, 2), went_on)
    found, _ = part.scan(x[:, 8:], torch.ones(1, 4, 2), part.after(known))
    torch.testing.assert_close(found.level, expected.level)
    torch.testing.assert_close(found.scale, expected.scale)
    nothing = part.after(torch.zeros(1, 3, 2, dtype=torch.float64))
    torch.testing.assert_close(nothing, part.initial_state(1))
