"""Heads, loss and constants of a network, on numbers computed apart from it.

Shapes: B series, T time, C channels, H horizon, Q quantiles, K classes.
"""

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from torch import Tensor

from models.catalog import build
from models.contract import DECILES, Batch, ModelError, Signature
from models.lagged import Lags
from models.network import Network, NetworkConfig, Quantiles
from models.recurrent import Bidirectional, RecurrentConfig

HORIZON = 3
FORECAST = Signature("forecast", channels=2, horizon=HORIZON)
CLASSIFY = Signature("classify", channels=2, classes=3)
REGRESS = Signature("regress", channels=2)
SMALL = {"hidden": 6, "embed": 4}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def batch_for(signature: Signature, rows: int = 4, steps: int = 15) -> Batch:
    """Noise around 50, with gaps, and with some answers unknown."""
    x = 50 + 3 * torch.randn(rows, steps, signature.channels)
    mask = (torch.rand_like(x) > 0.2).float()
    if signature.task == "classify":
        target = torch.randint(-1, signature.classes, (rows, steps))
    else:
        target = 50 + 3 * torch.randn(rows, steps, *([signature.horizon] if signature.task == "forecast" else []))
        target[torch.rand_like(target) < 0.3] = math.nan
    return Batch(torch.where(mask > 0, x, math.nan), mask, target, 1 + torch.arange(rows).float())


def network(signature: Signature, **settings) -> Network:
    model = build("gru", signature, **(SMALL | settings))
    model.prepare([batch_for(signature), batch_for(signature)])
    return outspoken(model)


def outspoken(model: Network) -> Network:
    """With a head that says something: at the start it says nothing, and shuts off what lies before it."""
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def predict(model: Network, batch: Batch) -> Tensor:
    return model.scan(batch.x, batch.mask, model.initial_state(len(batch.x)))[0]


def pinball(error: Tensor) -> float:
    """error: (n, Q), target less quantile."""
    losses = [max(q * e, (q - 1) * e) for row in error.tolist() for q, e in zip(DECILES, row, strict=True)]
    return sum(losses) / len(losses)


# The head.


def test_at_the_start_the_quantiles_are_a_standard_normal_s():
    levels = Quantiles(5, HORIZON, DECILES)(torch.zeros(2, 5))
    expected = [NormalDist().inv_cdf(q) for q in DECILES]
    np.testing.assert_allclose(levels.detach(), np.tile(expected, (2, HORIZON, 1)), atol=1e-6)


@pytest.mark.parametrize("levels", [(0.9,), (0.1, 0.9), (0.05, 0.2, 0.3, 0.99)])
def test_the_middle_level_need_not_be_the_median(levels):
    start = Quantiles(3, 2, levels)(torch.randn(5, 3))
    expected = torch.tensor([NormalDist().inv_cdf(level) for level in levels])
    torch.testing.assert_close(start, expected.expand(5, 2, len(levels)), rtol=0, atol=1e-5)


def test_nothing_is_asked_before_a_series_has_a_value():
    model = network(FORECAST)
    torch.manual_seed(0)
    x = torch.randn(4, 30, FORECAST.channels) + 1e4
    target = torch.randn(4, 30, FORECAST.horizon) + 1e4
    mask = torch.ones_like(x)
    whole = model.loss(Batch(x, mask, target, torch.ones(4)))
    mask[0, :5, 0] = 0
    late = model.loss(Batch(x, mask, target, torch.ones(4)))
    torch.testing.assert_close(late, whole, rtol=0.5, atol=0)


@pytest.mark.parametrize("quantiles", [DECILES, (0.1, 0.9), (0.5,), (0.01, 0.02, 0.5, 0.99)])
def test_quantiles_never_cross_and_every_level_is_its_own(quantiles):
    head = Quantiles(5, HORIZON, quantiles).double()
    features = 100 * torch.randn(200, 5, dtype=torch.float64)
    levels = head(features)
    assert levels.shape == (200, HORIZON, len(quantiles))
    assert (levels.diff(dim=-1) >= 0).all()
    # Each output of the linear layer moves a level that no other one moves alone: the map is of full rank.
    assert torch.linalg.matrix_rank(head.sums) == len(quantiles)


def test_at_the_start_a_network_repeats_the_last_value():
    model = build("gru", FORECAST, **SMALL)
    model.prepare([batch_for(FORECAST)])
    x = torch.tensor([[[100.0, 0.0], [104.0, 0.0], [102.0, 0.0]]])
    forecast = predict(model, Batch(x, torch.ones_like(x), x, torch.ones(1)))[0, -1].detach()
    scale = math.sqrt(8 / 3)  # standard deviation of 100, 104, 102
    expected = [102 + scale * NormalDist().inv_cdf(q) for q in DECILES]
    np.testing.assert_allclose(forecast, np.tile(expected, (HORIZON, 1)), rtol=1e-5)


def test_at_the_start_a_network_repeats_its_ridge():
    t = torch.arange(60.0)
    series = 20 + torch.sin(0.7 * t + torch.arange(4.0)[:, None])
    x = torch.stack([series, torch.zeros_like(series)], -1)[:, :-HORIZON]
    batch = Batch(x, torch.ones_like(x), series[:, 1:].unfold(1, HORIZON, 1), torch.ones(4))
    model = build("gru", FORECAST, skip_lags=5, **SMALL)
    model.prepare([batch])
    median = predict(model, batch)[:, 10:, :, 4].detach()
    ridge = build("ridge", Signature("forecast", channels=1, horizon=HORIZON), lags=5)
    ridge.fit([batch])
    window = ridge.buffer.scan(batch.x[..., :1], batch.mask[..., :1], ridge.initial_state(4))[0].values.squeeze(-1)
    expected = (window[..., -1:] + ridge.deviation(Lags(window, torch.zeros(1), None)))[:, 10:]
    torch.testing.assert_close(median, expected, rtol=1e-5, atol=1e-5)
    assert (median - batch.target[:, 10:]).abs().max() < 0.1, "the wave should go on"


def test_the_weights_of_the_loss_are_of_the_pinball_loss_and_of_the_squared_error_of_the_middle():
    losses = {}
    for weights in ((1.0, 0.0), (0.0, 1.0), (0.5, 2.0)):
        torch.manual_seed(0)
        model = build("gru", FORECAST, quantile_weight=weights[0], median_weight=weights[1], **SMALL)
        batch = batch_for(FORECAST)
        losses[weights] = float(model.loss(batch).detach())
    known = batch.target.isfinite()
    middle = (predict(model, batch)[..., 4] - batch.target) / batch.scale[:, None, None]
    seen = (batch.mask[..., :1] > 0.5).cummax(1).values
    np.testing.assert_allclose(losses[0.0, 1.0], float(middle[known & seen].square().mean().detach()), rtol=1e-5)
    np.testing.assert_allclose(losses[0.5, 2.0], 0.5 * losses[1.0, 0.0] + 2 * losses[0.0, 1.0], rtol=1e-5)
    with pytest.raises(ModelError, match="not both weights 0"):
        NetworkConfig(quantile_weight=0.0)


@pytest.mark.parametrize("signature", [FORECAST, CLASSIFY])
def test_the_last_prediction_alone_is_the_scans(signature):
    model = build("gru", signature, skip_lags=5, **SMALL)
    batch = batch_for(signature)
    state = model.initial_state(len(batch.x))
    every, after = model.scan(batch.x, batch.mask, state)
    last, left = model.last(batch.x, batch.mask, state)
    torch.testing.assert_close(last, every[:, -1])
    torch.testing.assert_close(left, after)


def test_a_bidirectional_backbone_cannot_forecast():
    with pytest.raises(ModelError, match="Bidirectional sees the end of its sequence and cannot forecast"):
        Network(FORECAST, NetworkConfig(), lambda width: Bidirectional(width, "gru", RecurrentConfig(4)))


# The loss.


@pytest.mark.parametrize("skip_lags", [0, 4])
def test_the_loss_of_a_forecast_is_the_scaled_pinball_of_what_it_says(skip_lags):
    model, batch = network(FORECAST, skip_lags=skip_lags), batch_for(FORECAST)
    error = (batch.target[..., None] - predict(model, batch)) / batch.scale[:, None, None, None]
    known = batch.target.isfinite()
    assert model.loss(batch).item() == pytest.approx(pinball(error[known]), rel=1e-4)


def test_the_loss_of_a_number_is_the_pinball_in_units_of_the_target():
    model, batch = network(REGRESS), batch_for(REGRESS)
    error = (batch.target[..., None] - predict(model, batch)) / model.target_std
    assert model.loss(batch).item() == pytest.approx(pinball(error[batch.target.isfinite()]), rel=1e-4)


def test_the_loss_of_a_class_is_the_log_of_its_probability():
    model, batch = network(CLASSIFY), batch_for(CLASSIFY)
    known = batch.target >= 0
    chosen = predict(model, batch)[known].gather(1, batch.target[known][:, None])
    assert model.loss(batch).item() == pytest.approx(-chosen.log().mean().item(), rel=1e-4)


def test_the_middle_quantile_s_squared_error_is_added_with_its_weight():
    plain, batch = network(REGRESS), batch_for(REGRESS)
    weighted = network(REGRESS, median_weight=2.0)
    weighted.load_state_dict(plain.state_dict())
    error = ((batch.target - predict(plain, batch)[..., 4]) / plain.target_std)[batch.target.isfinite()]
    expected = plain.loss(batch) + 2 * error.square().mean()
    torch.testing.assert_close(weighted.loss(batch), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("signature", [FORECAST, CLASSIFY, REGRESS], ids=lambda signature: signature.task)
def test_positions_without_an_answer_do_not_count(signature):
    model, batch = network(signature), batch_for(signature)
    unknown = -1 if signature.task == "classify" else math.nan
    last = batch.target.clone()
    last[:, 10:] = unknown
    begun = Batch(batch.x[:, :10], batch.mask[:, :10], batch.target[:, :10], batch.scale)
    torch.testing.assert_close(model.loss(batch._replace(target=last)), model.loss(begun), rtol=1e-5, atol=1e-6)
    nothing = model.loss(batch._replace(target=torch.full_like(batch.target, unknown)))
    nothing.backward()
    assert nothing.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("signature", [FORECAST, CLASSIFY, REGRESS], ids=lambda signature: signature.task)
def test_every_parameter_learns_and_no_gradient_is_broken_by_a_gap(signature):
    model = network(signature)
    model.loss(batch_for(signature)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        assert parameter.grad.isfinite().all(), f"{name} has a broken gradient"
        assert parameter.grad.any(), f"{name} does not learn"


@pytest.mark.parametrize("skip_lags", [0, 4])
def test_a_large_level_costs_the_loss_no_digits(skip_lags):
    # Whole numbers up to 2^24 are exact in float32, so the same series at both levels must cost the same.
    steps = torch.randint(0, 5, (3, 40 + HORIZON)).float().cumsum(1)
    losses = []
    for level in (0.0, 8_000_000.0):
        torch.manual_seed(1)
        model = outspoken(
            build("gru", Signature("forecast", channels=1, horizon=HORIZON), skip_lags=skip_lags, **SMALL)
        )
        if skip_lags:
            model.skip.weight.copy_(torch.randn_like(model.skip.weight))
        x = (steps + level)[:, :-HORIZON, None]
        losses.append(
            model.loss(Batch(x, torch.ones_like(x), (steps + level)[:, 1:].unfold(1, HORIZON, 1), torch.ones(3)))
        )
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=0)


# Constants.


def test_constants_are_those_of_the_observed_training_data():
    batches = [batch_for(REGRESS), batch_for(REGRESS)]
    model = build("gru", REGRESS, **SMALL)
    model.prepare(batches)
    x = torch.cat([batch.x for batch in batches]).flatten(0, 1).double().numpy()
    target = torch.cat([batch.target for batch in batches]).double().numpy()
    np.testing.assert_allclose(model.normaliser.prior_mean, np.nanmean(x, 0), rtol=1e-5)
    np.testing.assert_allclose(model.normaliser.prior_var, np.nanvar(x, 0), rtol=1e-5)
    assert model.target_mean.item() == pytest.approx(np.nanmean(target), rel=1e-5)
    assert model.target_std.item() == pytest.approx(np.nanstd(target), rel=1e-5)


@pytest.mark.parametrize("size", [1e-2, 1e-8])
def test_a_series_far_smaller_than_the_others_keeps_its_own_scale(size):
    sizes = torch.tensor([6e4, size])
    x = sizes[:, None, None] * torch.tensor([4.0, 5.0, 3.0, 4.0])[:, None].expand(2, 4, 1)
    model = build("gru", Signature("forecast", channels=1, horizon=HORIZON), **SMALL)
    target = torch.full((2, 4, HORIZON), math.nan)
    model.prepare([Batch(x, torch.ones_like(x), target, sizes * math.sqrt(0.5))])
    prediction = predict(model, Batch(x, torch.ones_like(x), target, sizes)).detach() / sizes[:, None, None, None]
    torch.testing.assert_close(prediction[1, 1:], prediction[0, 1:], rtol=1e-4, atol=1e-4)


def test_training_data_too_small_to_be_squared_leave_no_nan():
    x = 1e-24 * torch.randn(2, 9, 1)
    batch = Batch(x, torch.ones_like(x), torch.full((2, 9, HORIZON), math.nan), torch.full((2,), 1e-24))
    model = build("gru", Signature("forecast", channels=1, horizon=HORIZON), **SMALL)
    model.prepare([batch])
    assert predict(model, batch).isfinite().all()


def test_a_channel_that_stands_still_at_any_height_has_a_floor_of_its_own():
    x = torch.full((3, 5000, 1), 16777213 / 7)  # whose squares do not add up to as many times one of them
    batch = Batch(x, torch.ones_like(x), torch.zeros(3, 5000, dtype=torch.long), torch.ones(3))
    model = build("gru", Signature("classify", channels=1, classes=2), **SMALL)
    model.prepare([batch] * 3)
    assert model.normaliser.floor.tolist() == pytest.approx([0.01])


def test_no_training_windows_is_an_error():
    with pytest.raises(ModelError, match="no training windows"):
        build("gru", FORECAST).prepare([])


# It learns.


def train(model: Network, batch: Batch, steps: int) -> float:
    model.prepare([batch])
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(steps):
        optimiser.zero_grad()
        loss = model.loss(batch)
        loss.backward()
        optimiser.step()
    return loss.item()


def test_it_learns_by_heart_what_has_no_rule():
    x = torch.randn(32, 4, 2)
    target = torch.full((32, 4), -1)
    target[:, -1] = torch.randint(0, 3, (32,))
    batch = Batch(x, torch.ones_like(x), target, torch.ones(32))
    model = build("gru", CLASSIFY, hidden=24, embed=16)
    train(model, batch, 120)
    assert (predict(model, batch)[:, -1].argmax(-1) == target[:, -1]).all()


def test_it_learns_a_wave_that_the_naive_forecast_cannot():
    series = 10 + torch.sin(0.5 * torch.arange(60.0) + torch.arange(8.0)[:, None])
    x = series[:, :-HORIZON, None]
    batch = Batch(x, torch.ones_like(x), series[:, 1:].unfold(1, HORIZON, 1), torch.ones(8))
    model = build("lstm", Signature("forecast", channels=1, horizon=HORIZON), hidden=16, embed=8)
    train(model, batch, 100)
    error = (predict(model, batch)[:, 20:, :, 4] - batch.target[:, 20:]).abs().mean()
    naive = (x[:, 20:] - batch.target[:, 20:]).abs().mean()
    assert error < 0.2 * naive


@pytest.mark.parametrize("name", ["gru", "titans-lmm", "patch-transformer"])
@pytest.mark.parametrize("form", ["step", "scan"])
def test_a_state_of_other_series_or_of_another_network_is_refused(name, form):
    model, x = build(name, Signature("forecast", channels=1, horizon=2)).eval(), torch.zeros(3, 4, 1)
    x = x[:, 0] if form == "step" else x
    for rows in (1, 2):
        with pytest.raises(ModelError, match=f"the state is that of {rows} series, the observations are of 3"):
            getattr(model, form)(x, torch.ones_like(x), model.initial_state(rows))
    with pytest.raises(ModelError, match=r"of another configuration: norm.count is absent, not \(1,\)"):
        getattr(model, form)(x, torch.ones_like(x), {})
    other = build(name, Signature("forecast", channels=2, horizon=2)).initial_state(3)
    with pytest.raises(ModelError, match=r"of another configuration: norm.count is \(2,\), not \(1,\)"):
        getattr(model, form)(x, torch.ones_like(x), other)


@pytest.mark.parametrize("task", ["forecast", "classify", "regress"])
def test_a_scan_over_nothing_predicts_nothing_and_leaves_the_state(task):
    signature = Signature(task, channels=2, horizon=3 if task == "forecast" else 1, classes=3)
    model = build("titans-lmm", signature, width=8, heads=2, chunk=4).eval()
    _, state = model.scan(torch.randn(2, 5, 2), torch.ones(2, 5, 2), model.initial_state(2))
    prediction, after = model.scan(torch.zeros(2, 0, 2), torch.zeros(2, 0, 2), state)
    assert prediction.shape == (2, 0, *signature.prediction_shape)
    assert all(torch.equal(after[name], state[name]) for name in state)
