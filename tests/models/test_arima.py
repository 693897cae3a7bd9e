"""Seasonal ARIMA as a step equals the library that fitted it, at the fit's end and as the stream goes on.

Shapes: B series, T time, H horizon, Q quantiles.
"""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from m3_cases import m3_monthly, needs_m3
from statsforecast.models import ARIMA, AutoARIMA

from models.arima import Arima, ArimaConfig, states_of
from models.contract import Fits, ModelError, Signature, State

SEASON, HORIZON = 4, 11
LEVELS = (0.025, 0.1, 0.5, 0.9, 0.975)
SIGNATURE = Signature("forecast", 1, horizon=HORIZON, season=SEASON, quantiles=LEVELS)
KINDS = ("walk", "twice", "season", "stationary", "seasonal average")


def series(kind: str, seed: int = 5, length: int = 80) -> np.ndarray:
    """Whose forms AutoARIMA finds to differ: with one, two and no differences, drift, intercept and seasonal terms."""
    rng = np.random.default_rng(seed)
    noise, t = rng.normal(size=length), np.arange(length)
    if kind == "walk":
        return 50 + noise.cumsum()
    if kind == "twice":
        return 50 + (0.3 * noise.cumsum()).cumsum() + 2 * rng.normal(size=length)
    if kind == "season":
        return 100 + 0.5 * t + 10 * np.sin(2 * np.pi * t / SEASON) + noise
    smooth = np.zeros(length)
    for index in range(1, length):
        smooth[index] = 0.7 * smooth[index - 1] + noise[index]
    if kind == "stationary":
        return 20 + smooth
    return 100 + 8 * rng.normal(size=SEASON)[t % SEASON] + 0.3 * noise.cumsum() + noise


@cache
def fitted(kind: str) -> tuple[Arima, Fits, AutoARIMA]:
    model = Arima(SIGNATURE).double()
    return model, model.fit_series({"a": series(kind)}), AutoARIMA(season_length=SEASON).fit(series(kind))


def after(model: Arima, state: State, further: np.ndarray) -> np.ndarray:
    """(H, Q) after the further values, NaN where missing."""
    x = torch.from_numpy(further).view(1, -1, 1)
    with torch.no_grad():
        return model.scan(x, x.isfinite().double(), state)[0][0, -1].numpy()


def of(out: dict) -> np.ndarray:
    return np.stack([out[name] for name in ("lo-95", "lo-80", "mean", "hi-80", "hi-95")], -1)


def assert_equal(found: np.ndarray, expected: np.ndarray, relative: float = 1e-9) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=relative * np.abs(expected).max())


def test_the_kinds_differ():
    forms = [fitted(kind)[2].model_ for kind in KINDS]
    assert len({(found["arma"], *found["coef"]) for found in forms}) == len(KINDS)
    names = {name for found in forms for name in found["coef"]}
    assert {"drift", "intercept", "ar1", "ma1", "sar1", "sma1"} <= names


@pytest.mark.parametrize("kind", KINDS)
def test_forecasts_at_the_fits_end_are_the_librarys(kind):
    model, fits, library = fitted(kind)
    with torch.no_grad():
        found = model.predict(fits.state)[0].numpy()
    assert_equal(found, of(library.predict(HORIZON, level=[80, 95])))


@pytest.mark.parametrize("points", [1, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_forecasts_after_further_points_are_the_librarys(kind, points):
    model, fits, library = fitted(kind)
    further = series(kind, seed=6, length=120)[80 : 80 + points]
    expected = library.forward(np.concatenate([series(kind), further]), HORIZON, level=[80, 95])
    assert_equal(after(model, fits.state, further), of(expected))


@pytest.mark.parametrize("kind", ["season", "seasonal average"])
def test_a_tiny_series_is_forecast_like_any_other(kind):
    model, fits, _ = fitted(kind)
    tiny = Arima(SIGNATURE).double()
    unseen = np.full(1, np.nan)
    expected = after(model, fits.state, unseen)
    found = after(tiny, tiny.fit_series({"a": series(kind) * 1e-9}).state, unseen) * 1e9
    assert_equal(found, expected, relative=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_missing_points_are_skipped_as_the_library_skips_them(kind):
    model, fits, library = fitted(kind)
    further = series(kind, seed=6, length=120)[80:].copy()
    further[[0, 1, 7, 20, 39]] = np.nan
    expected = library.forward(np.concatenate([series(kind), further]), HORIZON, level=[80, 95])
    assert_equal(after(model, fits.state, further), of(expected))


def test_series_of_all_orders_share_a_batch():
    model = Arima(SIGNATURE).double()
    fits = model.fit_series({kind: series(kind) for kind in KINDS})
    further = torch.from_numpy(np.stack([series(kind, seed=6, length=120)[80:] for kind in KINDS]))[..., None]
    together, _ = model.scan(further, torch.ones_like(further), fits.state)
    for row, kind in enumerate(KINDS):
        assert fits.series[row] == kind
        alone, one, _ = fitted(kind)
        assert_equal(together[row, -1].numpy(), after(alone, one.state, further[row, :, 0].numpy()))


@pytest.mark.parametrize("kind", KINDS)
def test_a_covariance_that_has_settled_is_0_until_a_gap_raises_it(kind):
    """And what comes of the gap is the library's, which knows of no settling."""
    model, fits, library = fitted(kind)
    further = series(kind, seed=6, length=520)[80:]
    settled = model.passed(torch.from_numpy(further[None, :430]), fits.state)
    assert not settled["arima.covariance"].any()
    expected = library.forward(np.concatenate([series(kind), further[:430]]), HORIZON, level=[80, 95])
    assert_equal(model.predict(settled)[0].numpy(), of(expected))
    further[[431, 432, 434]] = np.nan
    raised = model.passed(torch.from_numpy(further[None, 430:436]), settled)
    assert raised["arima.covariance"].abs().max() > 0.01
    expected = library.forward(np.concatenate([series(kind), further[:436]]), HORIZON, level=[80, 95])
    assert_equal(model.predict(raised)[0].numpy(), of(expected))


def test_series_whose_covariance_has_settled_share_a_batch_with_others_in_32_bits():
    fits = fitted("season")[1]
    further = torch.from_numpy(series("season", seed=6, length=280)[80:]).float().repeat(3, 1)
    further[1, -2:] = torch.nan  # so that each of the three ends otherwise: settled, in a gap, and after one
    further[2, -4:-2] = torch.nan
    model = Arima(SIGNATURE)
    model.places, model.lags = fitted("season")[0].places, fitted("season")[0].lags
    state = {name: value.float().repeat(3, *[1] * (value.dim() - 1)) for name, value in fits.state.items()}
    after = model.passed(further, state)
    assert after["arima.covariance"].flatten(1).any(1).tolist() == [False, True, True]
    for row in range(3):
        alone = model.passed(further[row : row + 1], {name: value[:1] for name, value in state.items()})
        torch.testing.assert_close(model.predict(alone), model.predict(after)[row : row + 1], rtol=1e-5, atol=0)
    exact = fitted("season")[0].passed(further.double(), {name: value.double() for name, value in state.items()})
    wide = fitted("season")[0].predict(exact)
    torch.testing.assert_close(model.predict(after).double(), wide, rtol=0, atol=1e-5 * wide.abs().max().item())


def test_a_random_walk_by_hand():
    signature = Signature("forecast", 1, horizon=2, quantiles=(0.5, 0.975))
    walk = {
        "phi": np.zeros(0), "theta": np.zeros(0), "delta": np.ones(1), "mean": np.array([0.0, 7.0]),
        "covariance": np.zeros((2, 2)), "time": 3, "started": 1, "errors": -1, "sigma2": 4.0,
        "intercept": 1.0, "drift": 0.5,
    }  # fmt: skip
    model = Arima(signature).double()
    x = torch.tensor([[12.0]], dtype=torch.float64)
    prediction, state = model.step(x, torch.ones_like(x), states_of([walk], signature, 1, 1))
    # z = 12 - 1 - 0.5 * 4 = 9, which is the last value of the walk: 10 + 0.5 (4 + h)
    assert state["arima.time"].item() == 4
    np.testing.assert_allclose(prediction[0, :, 0], [12.5, 13.0])
    np.testing.assert_allclose(prediction[0, :, 1] - prediction[0, :, 0], 1.959963984540054 * 2 * np.sqrt([1, 2]))


def test_a_series_that_was_not_fitted_walks_from_its_first_value():
    model = Arima(Signature("forecast", 1, horizon=2, quantiles=(0.5, 0.975))).double()
    x = torch.tensor([[[float("nan")], [4.0], [8.0], [float("nan")], [10.0]]], dtype=torch.float64)
    prediction, state = model.scan(x, x.isfinite().double(), model.initial_state(1))
    assert prediction[0, :, 0, 0].tolist() == [0, 4, 8, 8, 10]
    # errors 4 over one step and 2 over two, whose variance is twice as large
    assert state["arima.sigma2"].item() == pytest.approx((16 + 4 / 2) / 2)


def test_what_is_wrong_with_one_series_is_no_matter_to_the_others():
    gap = series("season")
    gap[[20, 21, 60]] = np.nan
    everyone = {
        "good": series("season"), "gap": gap, "missing": np.full(30, np.nan), "short": np.array([1.0, 2.0]),
        "constant": np.full(30, 7.0), "no season": series("walk", length=4),
    }  # fmt: skip
    model = Arima(SIGNATURE).double()
    fits = model.fit_series(everyone)
    assert "all of its 30 values are missing" in fits.failures["missing"]
    assert fits.failures["short"] == "2 values are too few for an ARIMA model"
    assert fits.notes["gap"] == "3 of 80 values are missing: closed by straight lines for the fit"
    assert fits.notes["constant"] == "constant: a mean with no spread"
    assert fits.notes["no season"] == "fitted without a season: 4 values are no more than one season of 4"
    with torch.no_grad():
        constant = model.predict(fits.state_of(["constant"]))
    assert constant.unique().tolist() == [7.0]
    whole = np.interp(np.arange(80), np.flatnonzero(np.isfinite(gap)), gap[np.isfinite(gap)])
    library = AutoARIMA(season_length=SEASON).fit(whole)
    with torch.no_grad():
        found = model.predict(fits.state_of(["gap"]))[0].numpy()
    assert_equal(found, of(library.forward(gap, HORIZON, level=[80, 95])))


def test_the_largest_orders_are_kept():
    model = Arima(SIGNATURE, ArimaConfig(max_p=0, max_q=1, max_seasonal_p=0, max_seasonal_q=0)).double()
    fits = model.fit_series({kind: series(kind) for kind in KINDS})
    assert not fits.failures
    assert model.places <= 2
    assert not fits.state["arima.phi"].any()
    with pytest.raises(ModelError, match="max_p is 0 or more, not -1"):
        ArimaConfig(max_p=-1)


@pytest.mark.filterwarnings("ignore:possible convergence problem")
@pytest.mark.parametrize(
    ("search", "length", "approximate"),
    [("auto", 150, False), ("auto", 151, True), ("exact", 151, False), ("approximate", 150, True)],
)
def test_long_series_are_searched_by_an_approximation(search, length, approximate):
    """Of this walk it finds other orders, and so another forecast."""
    walk = series("walk", seed=3, length=length)
    model = Arima(SIGNATURE, ArimaConfig(search=search)).double()
    with torch.no_grad():
        found = model.predict(model.fit_series({"a": walk}).state)[0].numpy()
    each = [AutoARIMA(season_length=SEASON, approximation=way).fit(walk) for way in (approximate, not approximate)]
    expected, other = (of(library.predict(HORIZON, level=[80, 95])) for library in each)
    assert_equal(found, expected)
    assert np.abs(found - other).max() > 1e-3


def test_long_seasons_are_searched_by_an_approximation():
    assert ArimaConfig().approximates(100, 13)
    assert not ArimaConfig().approximates(100, 12)
    with pytest.raises(ModelError, match="search is one of auto, exact, approximate, not 'fast'"):
        ArimaConfig(search="fast")


def test_a_seasonal_root_near_one_that_has_not_converged_is_carried_on():
    """What a filter without a covariance would get wrong."""
    values = series("seasonal average", length=28)
    library = ARIMA(
        order=(0, 1, 1), seasonal_order=(0, 1, 1), season_length=SEASON, fixed={"ma1": -0.6, "sma1": -0.95}
    ).fit(values)
    space = library.model_["model"]
    assert np.abs(space["P"]).max() > 0.01
    fit = {
        "phi": space["phi"], "theta": space["theta"], "delta": space["delta"],
        "mean": space["a"], "covariance": space["P"], "sigma2": library.model_["sigma2"],
        "time": 28, "started": 1, "errors": -1, "intercept": 0.0, "drift": 0.0,
    }  # fmt: skip
    model = Arima(SIGNATURE).double()
    model.places, model.lags = len(space["theta"]) + 1, len(space["delta"])
    state = states_of([fit], SIGNATURE, model.places, model.lags)
    further = series("seasonal average", length=40)[28:]
    expected = library.forward(np.concatenate([values, further]), HORIZON, level=[80, 95])
    assert_equal(after(model, state, further), of(expected))
    steady = state | {"arima.covariance": torch.zeros_like(state["arima.covariance"])}
    assert np.abs(after(model, steady, further) - of(expected)).max() > 1e-3


def test_float32_holds_what_a_gap_leaves_of_a_long_season():
    """Of an hourly series whose covariance forgets slowly; were it worked out in float32 it would be off by 2e-3."""
    season, length = 24, 320
    signature = replace(SIGNATURE, season=season)
    moving = np.convolve([1.0, -0.5, 0.2], [1.0, *np.zeros(season - 1), -0.9])[1:]
    values = 50 + 10 * np.sin(2 * np.pi * np.arange(length) / season)
    values += np.random.default_rng(3).normal(size=length).cumsum()
    model = Arima(signature).double()
    model.places, model.lags = len(moving) + 1, season
    size = model.places + season
    fit = {
        "phi": np.array([1.7, -0.72]), "theta": moving, "delta": np.eye(season)[-1],
        "mean": np.concatenate([np.zeros(model.places), values[season - 1 :: -1]]),
        "covariance": np.zeros((size, size)), "sigma2": 1.0, "time": season, "started": 1, "errors": -1,
        "intercept": 0.0, "drift": 0.0,
    }  # fmt: skip
    state = states_of([fit], signature, model.places, model.lags)
    further = torch.from_numpy(values[season:]).view(1, -1, 1)
    further[:, 60:110] = torch.nan
    mask = further.isfinite()
    single = {name: value.float() for name, value in state.items()}
    with torch.no_grad():
        expected = model.scan(further, mask.double(), state)[0].numpy()
        found = model.float().scan(further.float(), mask.float(), single)[0].numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)


@needs_m3
def test_m3_monthly_forecasts_are_the_librarys():
    """Every 180th series; all of them are in bench_local.py."""
    table = list(m3_monthly(180))
    signature = Signature("forecast", 1, horizon=18, season=12, quantiles=LEVELS)
    model = Arima(signature).double()
    fits = model.fit_series({name: values for name, values, _ in table})
    assert not fits.failures
    for name, values, test in table:
        library = AutoARIMA(season_length=12).fit(values)
        expected = library.forward(np.concatenate([values, test]), 18, level=[80, 95])
        assert_equal(after(model, fits.state_of([name]), test), of(expected), 1e-6)
