"""Ridge against the closed form of another library, and against processes whose best forecast is known.

Shapes: B series, T time, C channels, L lags, H horizon, Q quantiles, K classes.
"""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import Ridge

from models.catalog import build
from models.contract import Batch, ModelError, Signature
from models.lagged import Lags, RidgeForecaster, RidgeReader, _NormalEquations

LAGS, HORIZON = 6, 3
FORECAST = Signature("forecast", channels=1, horizon=HORIZON)
MOMENTUM = 0.6  # each difference is so much of the one before, and noise: an AR(2) of coefficients 1.6 and -0.6


def batch_of(values: np.ndarray, horizon: int = HORIZON, scale: np.ndarray | None = None) -> Batch:
    """values (B, T + H): T inputs, each with the H values after it as its target."""
    y = torch.from_numpy(values.astype(np.float32))
    x = y[:, :-horizon, None]
    typical = torch.ones(len(y)) if scale is None else torch.from_numpy(scale.astype(np.float32))
    return Batch(x, x.isfinite().float(), y[:, 1:].unfold(1, horizon, 1), typical)


def with_momentum(seed: int, rows: int, steps: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(rows, steps))
    differences = np.zeros_like(noise)
    for t in range(1, steps):
        differences[:, t] = MOMENTUM * differences[:, t - 1] + noise[:, t]
    return differences.cumsum(1)


def fitted(batches: list[Batch], signature: Signature = FORECAST, **settings) -> RidgeForecaster | RidgeReader:
    model = build("ridge", signature, **({"lags": LAGS} | settings)).eval()
    model.fit(batches)
    return model


def forecast(model: RidgeForecaster, batch: Batch) -> torch.Tensor:
    prediction, _ = model.scan(batch.x, batch.mask, model.initial_state(len(batch.x)))
    return prediction


# Forecasts.


@pytest.mark.parametrize("penalty", [1e-5, 0.1])
def test_the_map_is_the_ridge_of_another_library_on_the_same_windows(penalty):
    scale = np.array([1.0, 20.0])
    values = with_momentum(0, rows=2, steps=60) * scale[:, None] + np.array([[5.0], [-300.0]])
    batches = [batch_of(values[:1], scale=scale[:1]), batch_of(values[1:], scale=scale[1:])]
    model = fitted(batches, penalty=penalty)
    features, targets = [], []
    for row, size in zip(values.astype(np.float32).astype(np.float64), scale, strict=True):
        for t in range(LAGS - 1, len(row) - HORIZON):
            features.append((row[t - LAGS + 1 : t + 1] - row[t]) / size)
            targets.append((row[t + 1 : t + 1 + HORIZON] - row[t]) / size)
    x, y = np.array(features), np.array(targets)
    expected = (
        Ridge(alpha=penalty * np.mean(np.sum(x * x, 0)), fit_intercept=False, solver="cholesky").fit(x, y).coef_.T
    )
    np.testing.assert_allclose(model.weight, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(("lags", "period", "recent"), [(6, 2, 1), (7, 3, 0), (5, 4, 5)])
def test_lags_that_share_coefficients_are_the_ridge_on_the_means_of_their_phases_and_the_newest(lags, period, recent):
    values = with_momentum(0, rows=2, steps=60)
    model = fitted([batch_of(values)], lags=lags, period=period, recent=recent, penalty=0.1)
    features, targets = [], []
    for row in values.astype(np.float32).astype(np.float64):
        for t in range(lags - 1, len(row) - HORIZON):
            past = row[t - lags + 1 : t + 1] - row[t]
            phases = [past[::-1][phase::period].mean() for phase in range(period)]
            features.append([*phases, *past[lags - recent :]])
            targets.append(row[t + 1 : t + 1 + HORIZON] - row[t])
    x, y = np.array(features), np.array(targets)
    alpha = 0.1 * np.mean(np.sum(x * x, 0))
    expected = Ridge(alpha=alpha, fit_intercept=False, solver="cholesky").fit(x, y).predict(x)
    batch = batch_of(values)
    window = model.buffer.scan(batch.x, batch.mask, model.initial_state(2))[0].values.squeeze(-1)[:, lags - 1 :]
    found = model.deviation(Lags(window, torch.zeros(1), None))
    np.testing.assert_allclose(found.flatten(0, 1), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_a_season_needs_fewer_rows_where_its_lags_share_coefficients():
    rng = np.random.default_rng(0)
    season = rng.normal(size=(40, 12))
    series = np.tile(season, (1, 9)) + 0.5 * rng.normal(size=(40, 108))
    train, test = batch_of(series[:2]), batch_of(series[2:])

    def error(**settings) -> float:
        model = fitted([train], lags=48, **settings)
        return float((forecast(model, test)[:, 48:, :, 4] - test.target[:, 48:]).square().mean())

    assert error(period=12, recent=2) < 0.8 * error()


def test_a_noiseless_wave_goes_on_at_any_level():
    t = np.arange(80)
    values = np.stack([100 + np.sin(0.7 * t + phase) for phase in (0.0, 1.0, 2.0)])
    batch = batch_of(values)
    model = fitted([batch], penalty=1e-9)
    median = forecast(model, batch)[:, LAGS:, :, 4]
    np.testing.assert_allclose(median, batch.target[:, LAGS:], atol=0.02)


def test_the_forecast_of_a_known_process_is_recovered():
    train, test = batch_of(with_momentum(1, rows=20, steps=400)), batch_of(with_momentum(2, rows=5, steps=200))
    model = fitted([train])
    window = model.buffer.scan(test.x, test.mask, model.initial_state(5))[0].values.squeeze(-1)
    mean = (window[..., -1:] + model.deviation(Lags(window, torch.zeros(1), None)))[:, 10:]
    last, difference = test.x[:, 10:], test.x[:, 10:] - test.x[:, 9:-1]
    ahead = torch.tensor([sum(MOMENTUM**k for k in range(1, h + 1)) for h in range(1, HORIZON + 1)])
    error = (mean - (last + difference * ahead)).square().mean().sqrt()
    noise = 1.0  # of one step, which no forecast can know
    assert error < 0.1 * noise


@pytest.mark.parametrize("lags", [6, 24])
def test_quantiles_are_calibrated_on_series_that_were_not_trained_on(lags):
    # Half of them thousand times as large: the fan's width is the running size of each series' own steps.
    sizes = np.where(np.arange(40) % 2, 1.0, 1000.0)
    train = with_momentum(3, rows=40, steps=300) * sizes[:, None]
    test = with_momentum(4, rows=40, steps=300) * sizes[:, None]
    model = fitted([batch_of(train, scale=sizes)], lags=lags)
    batch = batch_of(test)
    below = (batch.target[..., None] <= forecast(model, batch))[:, 60:].float()
    for group in (below[::2], below[1::2]):
        shares = group.mean((0, 1))  # (H, Q)
        np.testing.assert_allclose(shares, np.tile(np.arange(1, 10) / 10, (HORIZON, 1)), atol=0.04)


@pytest.mark.parametrize("steps", [60, 100])  # 35 and 75 rows: its own residuals cover 38 and 60 % of what comes
def test_intervals_of_a_fit_to_few_rows_have_the_width_of_its_errors_not_of_its_residuals(steps):
    covered = []
    for seed in range(12):
        model = fitted([batch_of(with_momentum(seed, rows=1, steps=steps))], lags=24)
        new = batch_of(with_momentum(200 + seed, rows=40, steps=80))
        found, actual = forecast(model, new)[:, 24:-HORIZON], new.target[:, 24:-HORIZON]
        covered.append(((actual >= found[..., 0]) & (actual <= found[..., -1])).float().mean())
    assert 0.72 < np.mean(covered) < 0.88  # of 80 %


def test_what_a_row_would_miss_by_if_it_were_left_out_is_that_of_a_fit_without_it():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 6)), rng.normal(size=(8, 2))
    equations = _NormalEquations()
    equations.add(torch.from_numpy(x), torch.from_numpy(y))
    found = equations.left_out(torch.from_numpy(x), torch.from_numpy(y), 1e-3)
    strength = 1e-3 * np.mean(np.sum(x * x, 0))
    for row in range(8):
        rest = np.arange(8) != row
        weight = np.linalg.solve(x[rest].T @ x[rest] + strength * np.eye(6), x[rest].T @ y[rest])
        np.testing.assert_allclose(found[row], y[row] - x[row] @ weight, rtol=1e-9)


def test_the_forecast_moves_and_grows_with_the_series():
    model = fitted([batch_of(with_momentum(5, rows=4, steps=100))]).double()
    batch = batch_of(with_momentum(6, rows=3, steps=50))
    x, mask = batch.x.double(), batch.mask.double()
    plain, _ = model.scan(x, mask, model.initial_state(3))
    moved, _ = model.scan(250 * x - 4e4, mask, model.initial_state(3))
    torch.testing.assert_close(moved, 250 * plain - 4e4, rtol=1e-9, atol=1e-6)


def test_unknown_targets_and_gaps_are_not_learned_from():
    values = with_momentum(7, rows=3, steps=120)
    model = fitted([batch_of(values)])
    unknown = batch_of(values)._replace(target=torch.full((3, 120 - HORIZON, HORIZON), math.nan))
    torch.testing.assert_close(fitted([batch_of(values), unknown]).weight, model.weight)
    gaps = values.copy()
    gaps[:, 50:] = np.nan
    torch.testing.assert_close(fitted([batch_of(gaps)]).weight, fitted([batch_of(values[:, :50])]).weight)


def test_each_step_is_learned_from_the_rows_that_know_it_where_none_know_all():
    values = with_momentum(5, rows=2, steps=400)
    values[:, ::HORIZON] = np.nan  # one target of every window, as of a shop that is closed on Sundays
    model = fitted([batch_of(values)])
    filled = pd.DataFrame(values.astype(np.float32).astype(np.float64)).ffill(axis=1).to_numpy()
    for h in range(HORIZON):
        x, y = [], []
        for row, full in zip(values, filled, strict=True):
            for t in range(LAGS - 1, len(row) - HORIZON):
                if np.isfinite(row[t]) and np.isfinite(row[t + 1 + h]) and np.isfinite(full[t - LAGS + 1]):
                    x.append(full[t - LAGS + 1 : t + 1] - full[t])
                    y.append(row[t + 1 + h] - full[t])
        x, y = np.array(x), np.array(y)
        alpha = 1e-5 * np.mean(np.sum(x * x, 0))
        expected = Ridge(alpha=alpha, fit_intercept=False, solver="cholesky").fit(x, y).coef_
        np.testing.assert_allclose(model.weight[:, h], expected, rtol=1e-2, atol=1e-2)
    assert (model.spread[:, -1] > model.spread[:, 0]).all()
    unknown = np.where(np.arange(400) % 2, with_momentum(5, rows=2, steps=400), np.nan)
    model = fitted([batch_of(unknown)])  # a step that no row knows goes on at the last value
    assert model.weight[:, 0].tolist() == [0.0] * LAGS
    assert model.spread.isfinite().all()


def test_a_training_set_without_a_known_target_is_an_error():
    with pytest.raises(ModelError, match="no training window has a known target"):
        fitted([batch_of(np.full((2, 40), np.nan))])


@pytest.mark.parametrize("penalty", [1e-5, 0.0])
def test_constant_series_go_on_as_they_are(penalty):
    batch = batch_of(np.full((2, 40), 7.0))
    assert (forecast(fitted([batch], penalty=penalty), batch) == 7.0).all()


# Classes and numbers.


def readings(seed: int, rows: int, task: str, distance: float = 1.0) -> Batch:
    """Two channels at far levels; the number is read off the last two values of the second.

    Class 1 moves the first channel and class 2 the second: least squares on one-hot targets cannot see a class that
    lies between two others.
    """
    rng = np.random.default_rng(seed)
    steps = 12
    label = rng.integers(0, 3, rows)
    x = rng.normal(size=(rows, steps, 2)) * [1.0, 50.0] + [-20.0, 3000.0]
    if task == "classify":
        x[:, :, 0] += distance * (label == 1)[:, None]
        x[:, :, 1] += 50.0 * distance * (label == 2)[:, None]
        target = torch.from_numpy(np.repeat(label[:, None], steps, 1))
        target[:, : LAGS - 1] = -1
    else:
        number = 7.0 + 0.02 * x[:, 1:, 1] - 0.01 * x[:, :-1, 1]
        target = torch.from_numpy(np.concatenate([np.full((rows, 1), np.nan), number], 1).astype(np.float32))
    x = torch.from_numpy(x.astype(np.float32))
    return Batch(x, torch.ones_like(x), target, torch.ones(rows))


def read(model: RidgeReader, batch: Batch) -> torch.Tensor:
    return model.scan(batch.x, batch.mask, model.initial_state(len(batch.x)))[0]


CLASSES = Signature("classify", channels=2, classes=3)
NUMBER = Signature("regress", channels=2)


def test_easy_classes_are_told_apart():
    model = fitted([readings(0, 100, "classify", distance=5.0), readings(1, 100, "classify", distance=5.0)], CLASSES)
    test = readings(2, 200, "classify", distance=5.0)
    found = read(model, test)[:, -1]
    assert (found.argmax(-1) == test.target[:, -1]).float().mean() > 0.97
    assert found.amax(-1).mean() > 0.8


def test_probabilities_mean_what_they_say_where_classes_overlap():
    model = fitted([readings(0, 600, "classify", distance=0.7)], CLASSES)
    test = readings(1, 1000, "classify", distance=0.7)
    found, label = read(model, test)[:, -1], test.target[:, -1]
    sure, best = found.max(-1)
    right = (best == label).float()
    assert 0.4 < right.mean() < 0.9, "the classes were to overlap"
    assert abs(sure.mean() - right.mean()) < 0.08
    for low, high in ((0.4, 0.6), (0.6, 0.8)):
        inside = (sure >= low) & (sure < high)
        assert abs(sure[inside].mean() - right[inside].mean()) < 0.12


def test_a_linear_map_of_the_last_values_is_recovered():
    model = fitted([readings(0, 200, "regress")], NUMBER, penalty=1e-6)
    test = readings(1, 50, "regress")
    error = read(model, test)[:, LAGS:, 4] - test.target[:, LAGS:]
    assert error.abs().max() < 0.02 * test.target[:, LAGS:].std()


def test_the_map_of_a_number_is_the_ridge_of_another_library_with_its_intercept():
    batch = readings(0, 60, "regress")
    x, target = batch.x.clone(), batch.target.clone()
    x[30:] += torch.tensor([3.0, 90.0])
    target[:30] = math.nan  # so that what is learned from is not centred where all readings are
    model = fitted([batch._replace(x=x, target=target)], NUMBER, penalty=0.1)
    standard = ((x - model.centre) / model.spread)[30:].double()
    windows = torch.cat([standard[:, :1].expand(-1, LAGS - 1, -1), standard], 1).unfold(1, LAGS, 1)[:, 1:]
    features = windows.transpose(2, 3).flatten(2).flatten(0, 1).numpy()
    alpha = 0.1 * np.mean(np.sum((features - features.mean(0)) ** 2, 0))
    expected = Ridge(alpha=alpha, solver="cholesky").fit(features, target[30:, 1:].flatten().double().numpy())
    np.testing.assert_allclose(model.weight[:, 0], expected.coef_, rtol=1e-3, atol=1e-3 * np.abs(expected.coef_).max())
    assert model.bias.item() == pytest.approx(expected.intercept_, rel=1e-3)


@pytest.mark.parametrize("signature", [CLASSES, NUMBER], ids=lambda signature: signature.task)
def test_the_map_is_the_ridge_of_another_library_whatever_is_missing(signature):
    """Gaps, a channel that begins late, rows of unknown target in between: windows that do not move on by a step."""
    rng = np.random.default_rng(3)
    batches = []
    for seed in range(2):
        batch = readings(seed, 20, signature.task)
        mask = torch.from_numpy(rng.random(batch.x.shape) < 0.7).float()
        mask[::2, :7, 1] = 0
        target = batch.target.masked_fill(
            torch.from_numpy(rng.random(batch.target.shape) < 0.3), -1 if signature.task == "classify" else math.nan
        )
        batches.append(batch._replace(mask=mask, target=target))
    model = fitted(batches, signature, penalty=0.1)
    features, targets = [], []
    for batch in batches:
        lags, _ = model.buffer.scan(batch.x, batch.mask, model.initial_state(len(batch.x)))
        standard = ((lags.values - model.centre) / model.spread * lags.started[..., None, :]).flatten(2)
        known = batch.target >= 0 if signature.task == "classify" else batch.target.isfinite()
        features.append(standard[known].double().numpy())
        targets.append(np.eye(3)[batch.target[known]] if signature.task == "classify" else batch.target[known].numpy())
    x, y = np.concatenate(features), np.concatenate(targets).reshape(len(np.concatenate(features)), -1)
    alpha = 0.1 * np.mean(np.sum((x - x.mean(0)) ** 2, 0))
    expected = Ridge(alpha=alpha, solver="cholesky").fit(x, y)
    coefficients = expected.coef_.reshape(y.shape[1], -1).T
    np.testing.assert_allclose(model.weight, coefficients, rtol=1e-4, atol=1e-4 * np.abs(coefficients).max())
    np.testing.assert_allclose(model.bias, np.ravel(expected.intercept_), rtol=1e-4, atol=1e-5)


def test_the_intercept_is_not_penalised():
    batch = readings(0, 200, "regress")
    model = fitted([batch], NUMBER, penalty=1e6)  # nothing is left of the slope
    known = batch.target[batch.target.isfinite()]
    assert model.weight.abs().max() < 1e-3
    assert read(model, batch)[0, -1, 4].item() == pytest.approx(known.median().item(), abs=0.05)


def test_quantiles_of_a_noisy_number_are_calibrated():
    def noisy(seed: int) -> Batch:
        batch = readings(seed, 400, "regress")
        return batch._replace(
            target=batch.target + torch.from_numpy(np.random.default_rng(seed).gumbel(size=(400, 12))).float()
        )

    model = fitted([noisy(0)], NUMBER)
    test = noisy(1)
    below = (test.target[..., None] <= read(model, test))[:, LAGS:].float().mean((0, 1))
    np.testing.assert_allclose(below, np.arange(1, 10) / 10, atol=0.03)


def test_a_channel_that_never_speaks_is_at_its_mean():
    model = fitted([readings(0, 200, "classify")], CLASSES)  # whose classes move both channels
    test = readings(1, 3, "classify")
    mask = test.mask.clone()
    mask[..., 0] = 0
    at_mean = test.x.clone()
    at_mean[..., 0] = model.centre[0]
    torch.testing.assert_close(read(model, test._replace(mask=mask)), read(model, test._replace(x=at_mean)))


@pytest.mark.parametrize("signature", [CLASSES, NUMBER], ids=lambda signature: signature.task)
def test_a_training_set_without_an_answer_or_a_row_is_an_error(signature):
    batch = readings(0, 5, signature.task)
    unknown = torch.full_like(batch.target, -1 if signature.task == "classify" else math.nan)
    with pytest.raises(ModelError, match="no position with a known target"):
        fitted([batch._replace(target=unknown)], signature)
    with pytest.raises(ModelError, match="no value in the training data"):
        fitted([batch._replace(mask=torch.zeros_like(batch.mask))], signature)


@pytest.mark.parametrize("signature", [CLASSES, NUMBER], ids=lambda signature: signature.task)
def test_channels_that_are_never_measured_together_are_learned_from(signature):
    """One at even rows, the other at odd ones; what was seen last stands for what is missing."""
    batch = readings(0, 200, signature.task)
    mask = batch.mask.clone()
    mask[:, ::2, 0] = 0
    mask[:, 1::2, 1] = 0
    model = fitted([batch._replace(mask=mask)], signature)
    assert model.weight.abs().unflatten(0, (-1, signature.channels)).amax((0, 2)).min() > 0
