"""The memory of errors against its equations in numpy, and against streams whose errors repeat.

Shapes: B series, T time, L lags, D width of a key, H horizon.
"""

import math

import numpy as np
import pytest
import torch

from models.catalog import build
from models.contract import Batch, ModelError, Signature
from models.errors import LARGEST, LARGEST_RATE, LONGEST_SPAN, ErrorMemory

LAGS, HORIZON, KEYS = 4, 3, 2
SIZE = LAGS + HORIZON


def memory(rate: float = 0.1, span: float = 50.0) -> ErrorMemory:
    torch.manual_seed(0)
    made = ErrorMemory(LAGS, HORIZON, KEYS, rate, span).double()
    made.to_key.copy_(torch.randn(LAGS, KEYS))
    return made


def run(made: ErrorMemory, windows: torch.Tensor, present: torch.Tensor, weight: torch.Tensor):
    return made.scan(windows, present, weight, made.initial_state(len(windows)))


def test_it_holds_the_minimiser_of_all_losses_so_far():
    """Without forgetting: of sum_i w_i |e_i - k_i M|^2 + |M|^2 / rate, solved anew at every step."""
    made, weight = memory(span=1e15), torch.randn(LAGS, HORIZON, dtype=torch.float64)
    windows = torch.randn(1, 150 + SIZE, dtype=torch.float64).unfold(1, SIZE, 1)  # (1, T, L + H)
    steps = windows.shape[1]
    answers, _ = run(made, windows, torch.ones(1, steps, 1, dtype=torch.float64), weight)
    to_key, gram, cross = made.to_key.numpy(), np.eye(KEYS) / 0.1, np.zeros((KEYS, HORIZON))
    for t in range(steps):
        window = windows[0, t].numpy()
        key, error = window[:LAGS] @ to_key, window[-HORIZON:] - window[:LAGS] @ weight.numpy()
        weighed = max(0.0, 1 - 10 * (1 - min(t + 1, SIZE) / SIZE))  # the stream fills the window first
        gram, cross = gram + weighed * np.outer(key, key), cross + weighed * np.outer(key, error)
        expected = (window[-LAGS:] @ to_key) @ np.linalg.solve(gram, cross)
        np.testing.assert_allclose(answers[0, t].numpy(), expected, atol=1e-9)


def test_it_is_a_kalman_filter_whose_memory_returns_to_its_prior():
    made, weight = memory(), torch.randn(LAGS, HORIZON, dtype=torch.float64)
    windows = torch.randn(1, 200, SIZE, dtype=torch.float64)
    steps = windows.shape[1]
    answers, end = run(made, windows, torch.ones(1, steps, 1, dtype=torch.float64), weight)
    learned, covariance, keep = np.zeros((KEYS, HORIZON)), 0.1 * np.eye(KEYS), math.exp(-1 / 50)
    for t in range(steps):
        window = windows[0, t].numpy()
        key, error = window[:LAGS] @ made.to_key.numpy(), window[-HORIZON:] - window[:LAGS] @ weight.numpy()
        learned, covariance = keep * learned, keep**2 * covariance + (1 - keep**2) * 0.1 * np.eye(KEYS)
        weighed = max(0.0, 1 - 10 * (1 - min(t + 1, SIZE) / SIZE))
        gain = weighed * covariance @ key / (1 + weighed * key @ covariance @ key)
        learned, covariance = (
            learned + np.outer(gain, error - key @ learned),
            covariance - np.outer(gain, key) @ covariance,
        )
        expected = (window[-LAGS:] @ made.to_key.numpy()) @ learned
        np.testing.assert_allclose(answers[0, t].numpy(), expected, atol=1e-10)
    np.testing.assert_allclose(0.1 * (np.eye(KEYS) - end["errors.known"][0].numpy()), covariance, atol=1e-12)


@pytest.mark.parametrize("cut", [1, 63, 64, 100])
def test_a_scan_cut_in_two_and_single_steps_give_the_same(cut):
    made, weight = memory(), torch.randn(LAGS, HORIZON, dtype=torch.float64)
    windows = torch.randn(2, 150, SIZE, dtype=torch.float64)
    present = (torch.rand(2, 150, 1, dtype=torch.float64) > 0.02).double()
    whole, end = run(made, windows, present, weight)
    first, state = run(made, windows[:, :cut], present[:, :cut], weight)
    second, state = made.scan(windows[:, cut:], present[:, cut:], weight, state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(state, end, rtol=1e-9, atol=1e-9)
    state = made.initial_state(2)
    for t in range(150):
        answer, state = made.step(windows[:, t], present[:, t], weight, state)
        torch.testing.assert_close(answer, whole[:, t], rtol=1e-9, atol=1e-9)
    assert end["errors.memory"].abs().max() > 0.01


def test_a_missing_observation_leaves_the_memory_and_a_window_of_imputed_values_teaches_nothing():
    made, weight = memory(), torch.zeros(LAGS, HORIZON, dtype=torch.float64)
    windows = torch.randn(1, 40, SIZE, dtype=torch.float64)
    present = torch.ones(1, 40, 1, dtype=torch.float64)
    _, before = run(made, windows[:, :30], present[:, :30], weight)
    assert before["errors.memory"].abs().max() > 0
    gap = torch.zeros(1, 1, 1, dtype=torch.float64)
    _, after = made.scan(windows[:, 30:31], gap, weight, before)
    assert torch.equal(after["errors.memory"], before["errors.memory"])
    _, later = made.scan(windows[:, 31:32], gap + 1, weight, after)  # observed, behind a window with a gap
    torch.testing.assert_close(later["errors.memory"], math.exp(-1 / 50) * before["errors.memory"])


@pytest.mark.parametrize("kind", ["constant", "sine", "noise", "spikes", "walk"])
def test_its_float32_stays_bounded_and_what_is_known_a_share_at_the_largest_rate_and_span(kind):
    made = memory(LARGEST_RATE, LONGEST_SPAN).float()
    t = torch.arange(20_000.0)
    series = {
        "constant": torch.full_like(t, 3.0),
        "sine": torch.sin(t / 7),
        "noise": torch.randn(len(t)),
        "spikes": torch.where(torch.rand(len(t)) < 0.01, 1e15 * torch.randn(len(t)), torch.randn(len(t))),
        "walk": torch.randn(len(t)).cumsum(0) / 30,
    }[kind]
    windows = series.unfold(0, SIZE, 1)[None]
    answers, state = run(made, windows, torch.ones(1, windows.shape[1], 1), torch.randn(LAGS, HORIZON))
    assert answers.isfinite().all()
    assert answers.abs().max() <= 4 * LARGEST
    shares = torch.linalg.eigvalsh(state["errors.known"].double())
    assert shares.min() > -1e-3
    assert shares.max() < 1 + 1e-3


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_under_autocast_it_is_the_one_in_single_precision_to_the_last_bit(half):
    made, weight = memory(LARGEST_RATE, LONGEST_SPAN).float(), torch.randn(LAGS, HORIZON)
    windows, present = (10 * torch.sin(torch.arange(300.0) / 7)).unfold(0, SIZE, 1)[None], torch.ones(1, 294, 1)
    exact, end = run(made, windows, present, weight)
    with torch.autocast("cpu", dtype=half):
        found, after = run(made, windows, present, weight)
        stepped, then = made.step(windows[:, -1], present[:, -1], weight, after)
    assert torch.equal(found, exact)
    expected, last = made.step(windows[:, -1], present[:, -1], weight, end)
    assert torch.equal(stepped, expected)
    assert all(torch.equal(then[name], last[name]) for name in last)


def sines(period: float, rows: int = 4, steps: int = 400) -> torch.Tensor:
    t = torch.arange(steps) + 3.0 * torch.arange(rows)[:, None]
    return 5 + torch.sin(2 * math.pi * t / period)


def batch_of(values: torch.Tensor, level: bool = True) -> Batch:
    x = values[:, :-HORIZON, None]
    target = values[:, 1:].unfold(1, HORIZON, 1)
    rows = len(values)
    return Batch(x, torch.ones_like(x), target, torch.ones(rows), torch.zeros(rows, 3) if level else None)


def test_a_ridge_learns_the_errors_of_a_stream_that_moves_otherwise_than_its_training():
    signature = Signature("forecast", channels=1, horizon=HORIZON, quantiles=(0.5,))
    stream = batch_of(sines(period=9, steps=1000))
    found = {}
    for rate in (0.0, 0.3):
        model = build("ridge", signature, lags=8, level_window=100, error_rate=rate, error_span=1e4, error_keys=8)
        model.fit([batch_of(sines(period=12))])
        values, _ = model.scan(stream.x, stream.mask, model.initial_state(4))
        found[rate] = (values[..., 0] - stream.target)[:, -200:].square().mean()
    assert found[0.3] < 0.2 * found[0.0]


def test_a_level_wants_to_be_known_and_errors_want_a_level():
    signature = Signature("forecast", channels=1, horizon=HORIZON)
    with pytest.raises(ModelError, match="know what came before"):
        build("ridge", signature, lags=8, level_window=100).fit([batch_of(sines(9), level=False)])
    with pytest.raises(ModelError, match="needs a level_window"):
        build("ridge", signature, lags=8, error_rate=0.1)


def test_a_series_far_smaller_than_the_others_learns_its_errors_as_they_do():
    rng = np.random.default_rng(3)
    values = torch.from_numpy(rng.normal(size=(1, 400)).cumsum(1)).float()
    sizes = torch.tensor([[1e6], [1.0]])
    x = (sizes * values)[..., None]
    target = x[:, 1:, 0].unfold(1, 2, 1)
    x = x[:, : target.shape[1]]
    signature = Signature("forecast", channels=1, horizon=2)
    model = build("ridge", signature, lags=4, level_window=50, error_rate=0.1, error_keys=4)
    model.fit([Batch(x, torch.ones_like(x), target, sizes[:, 0] * values.std(), torch.zeros(2, 3))])
    found, _ = model.scan(x, torch.ones_like(x), model.initial_state(2))
    torch.testing.assert_close(
        found[1, 60:] - x[1, 60:, None], (found[0, 60:] - x[0, 60:, None]) / 1e6, rtol=1e-2, atol=1e-2
    )
