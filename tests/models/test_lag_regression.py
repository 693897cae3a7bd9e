import math

import numpy as np
import pytest
import torch

from models.catalog import build
from models.contract import Batch, ModelError, Signature
from models.lag_regression import QuantileConfig, QuantileRegression, Sample

NAMES = ("quantile-regression", "random-forest", "xgboost")
FAST = {
    "quantile-regression": {},
    "random-forest": {"trees": 15},
    "xgboost": {"trees": 60, "depth": 3, "early_stopping": 5},
}
SIGNATURE = Signature("forecast", channels=1, horizon=4, season=4)
NOISE = 0.5


def series(rows: int, steps: int, seed: int, unit: float = 1.0) -> torch.Tensor:
    """(rows, steps): a season that swaps its sign every season, each series of its own level; in `unit`s."""
    rng = np.random.default_rng(seed)
    t = np.arange(steps) + rng.integers(0, 8, (rows, 1))
    wave = 3 * np.sin(np.pi / 2 * t) * (-1.0) ** (t // 4)
    return torch.from_numpy(unit * (wave + 100 * rng.normal(size=(rows, 1)) + NOISE * rng.normal(size=t.shape))).float()


def batch(values: torch.Tensor, signature: Signature = SIGNATURE) -> Batch:
    """All positions of complete series, with every target that is there."""
    horizon = signature.horizon
    ahead = torch.nn.functional.pad(values[:, 1:], (0, horizon), value=math.nan).unfold(1, horizon, 1)
    x = values[..., None]
    return Batch(x, x.isfinite().float(), ahead[:, : values.shape[1]], torch.ones(len(values)))


def fitted(name: str, **settings):
    torch.manual_seed(0)
    model = build(name, SIGNATURE, lags=12, rows=2000, **FAST[name], **settings)
    model.fit([batch(series(12, 80, 0))], [batch(series(12, 60, 1))])
    return model


@pytest.mark.parametrize("strategy", ["direct", "recursive"])
@pytest.mark.parametrize("name", NAMES)
def test_what_a_seasonal_naive_forecast_gets_wrong_is_learned_at_any_unit(name, strategy):
    model = fitted(name, strategy=strategy)
    values = series(60, 84, 2, unit=1e-3)
    x = values[:, :-4, None]
    found, _ = model.last(x, torch.ones_like(x), model.initial_state(len(x)))
    actual = values[:, -4:]
    error = (found[..., 4] - actual).abs().mean()
    naive = (values[:, -8:-4] - actual).abs().mean()
    assert error < 0.45 * naive
    inside = ((actual >= found[..., 0]) & (actual <= found[..., -1])).float().mean()
    assert 0.66 < inside < 0.92  # of 80 %, over 240 values


@pytest.mark.parametrize("validated", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_a_gap_in_every_season_leaves_what_is_known_to_learn_from(name, validated):
    values = [series(12, 80, 0), series(12, 60, 1), series(60, 84, 2)]
    for one in values:
        one[:, 1::4] = math.nan  # as of a shop that is closed on Sundays: no window of a week is whole
    learned, checked, new = values
    torch.manual_seed(0)
    model = build(name, SIGNATURE, lags=12, rows=2000, **FAST[name])
    model.fit([batch(learned)], [batch(checked)] if validated else [])
    x = new[:, :-4, None]
    found, _ = model.last(x, x.isfinite().float(), model.initial_state(len(x)))
    assert found.isfinite().all()
    known = new[:, -4:].isfinite()
    error = (found[..., 4] - new[:, -4:]).abs()[known].mean()
    assert error < 0.45 * (new[:, -8:-4] - new[:, -4:]).abs()[known].mean()


@pytest.mark.parametrize("penalty", [0.0, 0.05])
def test_the_penalty_of_quantile_regression_is_that_of_the_linear_programme(penalty):
    from sklearn.linear_model import QuantileRegressor

    rng = np.random.default_rng(0)
    x = 5 + rng.normal(size=(400, 4)) * [1, 10, 0.1, 1]
    y = x @ [1, 0.1, 0.5, 0] + 0.3 * rng.standard_t(4, 400)
    rows, levels = Sample(x.astype(np.float32), y.astype(np.float32)), (0.2, 0.5)
    learner = QuantileRegression(QuantileConfig(penalty))
    part = learner.part(4, 2)
    learner.fit(part, rows, rows, levels, 0)
    for output, level in enumerate(levels):
        expected = QuantileRegressor(quantile=level, alpha=penalty).fit((x - x.mean(0)) / x.std(0), y)
        weight = part.weight[:, output].double().numpy()
        np.testing.assert_allclose(weight * x.std(0), expected.coef_, atol=0.01)
        assert part.bias[output].item() + x.mean(0) @ weight == pytest.approx(expected.intercept_, abs=0.01)


def test_each_lead_can_have_models_of_its_own():
    shared, own = fitted("xgboost"), fitted("xgboost", leads=1)
    assert (len(shared.parts), len(own.parts)) == (1, 4)
    assert {part.outputs for part in own.parts} == {9}  # one model per level and lead


def test_the_same_seed_gives_the_same_model():
    first, second = fitted("random-forest"), fitted("random-forest")
    assert all(torch.equal(a, b) for a, b in zip(first.buffers(), second.buffers(), strict=True))


def test_without_validation_windows_the_end_of_the_training_windows_is_held_out():
    model = build("xgboost", SIGNATURE, lags=12, **FAST["xgboost"])
    values = series(12, 80, 0)
    values[:, 66:] *= 5  # errors of the last fifth are what the intervals must cover
    calm = build("xgboost", SIGNATURE, lags=12, **FAST["xgboost"])
    model.fit([batch(values)])
    calm.fit([batch(series(12, 80, 0))])
    width = [float((m.shift[:, -1] - m.shift[:, 0]).mean()) for m in (model, calm)]
    assert width[0] > 2 * width[1]


@pytest.mark.parametrize("name", NAMES)
def test_a_constant_series_is_forecast_to_stay_and_not_learned_from(name):
    model = fitted(name)
    x = torch.full((1, 30, 1), 1234.5)
    found, _ = model.scan(x, torch.ones_like(x), model.initial_state(1))
    assert bool((found == 1234.5).all())
    assert model.remarks == ()
    moving = series(12, 80, 0)
    model.fit([batch(torch.cat([moving, torch.full((2, 80), 3.0)]))], [batch(series(12, 60, 1))])
    assert len(model.remarks) == 1
    assert "positions do not move: left out" in model.remarks[0]
    with pytest.raises(ModelError, match=rf"{name} found 0 rows to learn from and 0 to check by, of series that move"):
        build(name, SIGNATURE, lags=12).fit([batch(x[..., 0].expand(5, -1))])


@pytest.mark.parametrize("name", NAMES)
def test_too_few_rows_are_refused_with_their_number(name):
    with pytest.raises(ModelError, match=r"found \d\d? rows to learn from .* it needs 50 and 1\. Give it more or"):
        build(name, SIGNATURE, lags=12).fit([batch(series(1, 24, 0))])


def test_a_covariate_without_a_value_is_named():
    values = batch(series(12, 80, 0))
    x = torch.cat([values.x, torch.full_like(values.x, math.nan)], -1)
    wide = values._replace(x=x, mask=x.isfinite().float())
    with pytest.raises(ModelError, match="channel 1, a covariate, has no value in the training data"):
        build("xgboost", Signature("forecast", channels=2, horizon=4, season=4), lags=12).fit([wide])


def test_a_covariate_that_says_what_comes_is_used():
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    signal = torch.from_numpy(rng.choice([-1.0, 1.0], (12, 90))).float()
    values = torch.cat([torch.zeros(12, 1), 3 * signal[:, :-1]], 1) + 0.1 * torch.randn(12, 90)
    one_ahead = Signature("forecast", channels=2, horizon=1)
    plain = batch(values, one_ahead)
    x = torch.stack([values, signal], -1)
    model = build("xgboost", one_ahead, lags=6, **FAST["xgboost"])
    model.fit([plain._replace(x=x, mask=torch.ones_like(x))])
    found, _ = model.scan(x, torch.ones_like(x), model.initial_state(12))
    assert (found[:, 20:-1, 0, 4] - values[:, 21:]).abs().mean() < 0.6


@pytest.mark.parametrize("strategy", ["direct", "recursive"])
@pytest.mark.parametrize("name", NAMES)
def test_a_covariate_that_is_known_ahead_is_used_at_the_step_that_it_moves(name, strategy):
    """Noise and a jump of 5 in three of ten steps, which nothing in the past foretells: the best without it errs by
    1.5. Each form of the step says the same."""
    torch.manual_seed(0)
    signature = Signature("forecast", channels=2, horizon=4, season=4, future=1)
    jumps = torch.from_numpy(np.random.default_rng(0).random((12, 104)) < 0.3).float()
    values = 5 * jumps + 0.1 * torch.randn(12, 104)
    whole = batch(values[:, :100], signature)
    x = torch.stack([values, jumps], -1)[:, :100]
    learned = whole._replace(x=x, mask=torch.ones_like(x), after=jumps[:, 100:, None])
    model = build(name, signature, lags=12, rows=2000, strategy=strategy, **FAST[name]).eval()
    model.fit(
        [learned._replace(**{key: getattr(learned, key)[:8] for key in ("x", "mask", "target", "after", "scale")})]
    )
    tested = [part[8:] for part in (learned.x, learned.mask)]
    start, ahead = model.initial_state(4), learned.future[8:]
    assert torch.equal(ahead[:, 10, :, 0], jumps[8:, 11:15])
    assert torch.equal(ahead[:, 99, :, 0], jumps[8:, 100:])
    found, after = model.scan(*tested, start, ahead)
    assert (found[:, 99, :, 4] - values[8:, 100:]).abs().mean() < 0.75
    torch.testing.assert_close(found[:, 99], model.last(*tested, start, ahead[:, 99])[0])
    torch.testing.assert_close(found[:, 99], model.predict(model.passed(tested[0], start), ahead[:, 99]))
    unknown = ahead[:, 99].index_fill(1, torch.tensor([1]), math.nan)
    lacking = model.predict(after, unknown)[..., 4].isnan()[0].tolist()
    assert lacking == ([False, True, True, True] if strategy == "recursive" else [False, True, False, False])
    _, before = model.scan(*(part[:, :99] for part in tested), start, ahead[:, :99])
    stepped, state = model.step(*(part[:, 99] for part in tested), before, ahead[:, 99])
    torch.testing.assert_close(found[:, 99], stepped)
    assert all(torch.equal(value, after[key]) for key, value in state.items())


@pytest.mark.parametrize(("settings", "match"), [
    ({"strategy": "both"}, "direct or recursive, not 'both'"), ({"lags": 1}, "lags=1"), ({"rows": 3}, "rows=3"),
])  # fmt: skip
def test_fields_out_of_range_are_named(settings, match):
    with pytest.raises(ModelError, match=match):
        build("xgboost", SIGNATURE, **settings)
