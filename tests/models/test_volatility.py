"""GARCH and EGARCH: `arch`'s own variances and forecasts on the same parameters, plain loops, and bad input.

Shapes: B series, T time, H horizon, Q quantiles.
"""

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from data.catalog import load
from data.panel import to_panel
from forecasting.task import Task
from forecasting.training import fit_model
from forecasting.windows import split
from models.catalog import build
from models.contract import Batch, ModelError, Signature, State
from models.volatility import MEAN_ABSOLUTE, Volatility, innovation_quantiles

NAN = math.nan
MODELS = ("garch", "egarch")
INNOVATIONS = ("normal", "t")
LEVELS = (0.025, 0.1, 0.25, 0.5, 0.75, 0.9, 0.975)
SIGNATURE = Signature("forecast", channels=1, horizon=5, quantiles=LEVELS)
# Like those that arch finds for the S&P 500, in units of its size.
PARAMETERS = {
    "garch": {"mu": 0.05, "omega": 0.008, "alpha[1]": 0.088, "beta[1]": 0.9, "nu": 8.0},
    "egarch": {"mu": 0.02, "omega": -0.008, "alpha[1]": 0.1, "gamma[1]": -0.145, "beta[1]": 0.985, "nu": 8.0},
}


def model_of(name: str, parameters: dict[str, float], signature: Signature = SIGNATURE, **fields: Any) -> Volatility:
    model = build(name, signature, **({"paths": 1024} | fields)).double()
    assert isinstance(model, Volatility)
    model.set_parameters(parameters)
    return model


@cache
def prices() -> np.ndarray:
    """Of the S&P 500, every trading day of 1999 to 2018."""
    return load("sp500").frame["y"].to_numpy()


def arch_model(name: str, innovations: str, returns: np.ndarray) -> Any:
    from arch.univariate import EGARCH, GARCH, ConstantMean, Normal, StudentsT

    process = GARCH(p=1, o=0, q=1) if name == "garch" else EGARCH(p=1, o=1, q=1)
    distribution = Normal() if innovations == "normal" else StudentsT()
    return ConstantMean(returns, volatility=process, distribution=distribution, rescale=False)


def values_of(name: str, innovations: str) -> list[float]:
    """The parameters in arch's order."""
    return [value for field, value in PARAMETERS[name].items() if field != "nu" or innovations == "t"]


def stream(model: Volatility, prices: np.ndarray, state: State) -> tuple[Tensor, State]:
    x = torch.from_numpy(prices)[None, :, None]
    return model.scan(x, x.isfinite().double(), state)


def deviation(forecast: Tensor, innovations: str) -> Tensor:
    """Of the next return, from the fan of the next price (..., H, Q)."""
    low, high = (forecast[..., 0, place].log() for place in (0, -1))
    freedom = 8.0 if innovations == "t" else math.inf
    return (high - low) / (2 * innovation_quantiles(np.array(LEVELS[-1:]), freedom)[0])


def check_against_arch(name: str, innovations: str, prices: np.ndarray) -> None:
    """Conditional deviations after every price, and the variance of the return over 1 to 5 steps at the end."""
    returns = np.diff(np.log(prices))
    unit = math.sqrt(np.mean(returns**2))
    fixed = arch_model(name, innovations, returns / unit).fix(values_of(name, innovations))
    model = model_of(name, PARAMETERS[name], innovations=innovations, size="shared")
    model.typical.fill_(unit**2)
    state = model.initial_state(1)
    # arch starts from a mean of the first squares to come; a stream does not know them.
    state["volatility.variance"] = torch.full_like(
        state["volatility.variance"], (fixed.conditional_volatility[0] * unit) ** 2
    )
    forecasts, state = stream(model, prices, state)
    found = deviation(forecasts[0], innovations)[:-1].numpy()  # after price t: of the return to price t + 1
    np.testing.assert_allclose(found, fixed.conditional_volatility * unit, rtol=1e-6)
    steps = 5 if name == "garch" else 1  # further ahead EGARCH has no closed form
    theirs = fixed.forecast(horizon=steps, method="analytic").variance.to_numpy()[-1]
    if len(prices) > 1000:  # arch starts its forecasts from another mean of squares, which short series remember
        assert state["volatility.variance"].item() == pytest.approx(theirs[0] * unit**2, rel=1e-6)
    start = torch.tensor([theirs[0]], dtype=torch.float64)
    ahead = model.variance_ahead(start, torch.ones_like(start)).numpy()
    np.testing.assert_allclose(ahead[: len(theirs)], theirs.cumsum(), rtol=1e-6)


@pytest.mark.parametrize("innovations", INNOVATIONS)
@pytest.mark.parametrize("name", MODELS)
def test_variances_are_those_of_arch_on_the_sp500(name, innovations):
    check_against_arch(name, innovations, prices())


@settings(max_examples=10)
@given(seed=st.integers(0, 999), size=st.floats(1e-4, 0.1), steps=st.integers(50, 200))
@pytest.mark.parametrize("name", MODELS)
def test_variances_are_those_of_arch_on_any_prices(name, seed, size, steps):
    rng = np.random.default_rng(seed)
    check_against_arch(name, "normal", 20 * np.exp(size * rng.standard_t(5, steps).cumsum()))


@pytest.mark.parametrize("name", MODELS)
def test_the_mean_variance_over_five_steps_is_that_of_archs_simulation(name):
    returns = np.diff(np.log(prices()))[-1500:]
    unit = math.sqrt(np.mean(returns**2))
    fixed = arch_model(name, "normal", returns / unit).fix(values_of(name, "normal"))
    rng = np.random.default_rng(0)
    theirs = fixed.forecast(horizon=5, method="simulation", simulations=20_000, rng=lambda size: rng.normal(size=size))
    model = model_of(name, PARAMETERS[name], innovations="normal", paths=2**14)
    start = torch.tensor([theirs.variance.to_numpy()[-1, 0]], dtype=torch.float64)
    found = model.variance_ahead(start, torch.ones_like(start)).numpy()
    np.testing.assert_allclose(found, theirs.variance.to_numpy()[-1].cumsum(), rtol=0.01)


def simulated(name: str, innovations: str, variance: float, paths: int) -> np.ndarray:
    """(H, paths) returns over h steps, as the equations say, from plain pseudo-random numbers; size 1, mean 0."""
    p, rng = PARAMETERS[name], np.random.default_rng(1)
    freedom = p["nu"]
    sums, total, now = [], np.zeros(paths), np.full(paths, variance)
    for _ in range(SIGNATURE.horizon):
        z = rng.normal(size=paths)
        if innovations == "t":
            z = rng.standard_t(freedom, size=paths) * math.sqrt((freedom - 2) / freedom)
        total = total + np.sqrt(now) * z
        sums.append(total)
        if name == "garch":
            now = p["omega"] + p["alpha[1]"] * now * z**2 + p["beta[1]"] * now
        else:
            news = p["alpha[1]"] * (np.abs(z) - MEAN_ABSOLUTE) + p["gamma[1]"] * z
            now = np.exp(p["omega"] + news + p["beta[1]"] * np.log(now))
    return np.stack(sums)


@pytest.mark.parametrize("innovations", INNOVATIONS)
@pytest.mark.parametrize("name", MODELS)
def test_the_quantiles_are_those_of_a_simulation(name, innovations):
    """Within 0.02 deviations, as the module says, at relative variances on and between the rows of the table."""
    parameters = PARAMETERS[name] | {"mu": 0.0}
    model = build(name, SIGNATURE, innovations=innovations, returns="difference").double()
    model.set_parameters(parameters)
    for variance in (0.1, 1.0, 1.28, 4.0):
        returns = simulated(name, innovations, variance, 2**18)
        state = model.initial_state(1) | {"volatility.variance": torch.full((1, 1), variance, dtype=torch.float64)}
        forecasts, _ = stream(model, np.array([7.0]), state)
        expected = 7 + np.quantile(returns, LEVELS, axis=1).T
        missed = np.abs(forecasts[0, 0].numpy() - expected) / returns.std(1)[:, None]
        assert missed.max() < 0.02, (variance, missed.round(4))


@given(
    seed=st.integers(0, 999), returns=st.sampled_from(["log", "difference"]), size=st.sampled_from(["own", "shared"])
)
@pytest.mark.parametrize("name", MODELS)
def test_a_stream_is_the_plain_loop(name, seed, returns, size):
    """With gaps and, under logarithms, prices that have none: both leave everything as it is."""
    rng = np.random.default_rng(seed)
    y = 5 * np.exp(0.05 * rng.normal(size=40).cumsum())
    y[rng.random(40) < 0.2] = NAN
    y[rng.random(40) < 0.1] = -1.0 if returns == "log" else 3.0
    model = model_of(name, PARAMETERS[name], innovations="normal", prior=10, returns=returns, size=size)
    unit = 0.04 if returns == "log" else 0.4
    model.typical.fill_(unit**2)
    forecasts, _ = stream(model, y, model.initial_state(1))
    p, last, squares, count, variance = PARAMETERS[name], None, 10 * unit**2, 10, unit**2
    for t, price in enumerate(y):
        if price > 0:
            if last is not None:
                r = math.log(price / last) if returns == "log" else price - last
                surprise = r - p["mu"] * math.sqrt(squares / count)
                if size == "own":
                    squares, count = squares + r * r, count + 1
                u2 = squares / count
                if name == "garch":
                    variance = p["omega"] * u2 + p["alpha[1]"] * surprise**2 + p["beta[1]"] * variance
                else:
                    e = surprise / math.sqrt(variance)
                    news = p["alpha[1]"] * (abs(e) - MEAN_ABSOLUTE) + p["gamma[1]"] * e
                    variance = u2 * math.exp(p["omega"] + news + p["beta[1]"] * math.log(variance / u2))
            last = price
        found = forecasts[0, t, 0]
        if last is None:
            assert found.tolist() == [0.0] * len(LEVELS)
            continue
        moved = p["mu"] * math.sqrt(squares / count) + math.sqrt(variance) * innovation_quantiles(
            np.array(LEVELS), math.inf
        )
        expected = last * np.exp(moved) if returns == "log" else last + moved
        np.testing.assert_allclose(found, expected, rtol=1e-6)


# The fit.


def windows(series: list[np.ndarray], length: int) -> list[Batch]:
    """A batch a window, series after series, as training gives them to a closed form."""
    batches = []
    for prices in series:
        x = torch.from_numpy(prices)
        for begin in range(0, len(x), length):
            part = x[begin : begin + length]
            target = torch.cat([x[begin + 1 : begin + length + 1], x.new_full((1,), NAN)])[: len(part), None]
            before = torch.tensor([[float(x[:begin].isfinite().sum()), 0.0, 0.0]])
            mask = part.isfinite().double()
            batches.append(Batch(part[None, :, None], mask[None, :, None], target[None], torch.ones(1), before))
    return batches


ONE_STEP = Signature("forecast", channels=1)


@pytest.mark.parametrize("innovations", INNOVATIONS)
@pytest.mark.parametrize("name", MODELS)
def test_the_fit_of_one_series_in_windows_is_archs_of_the_whole(name, innovations):
    with_gaps = prices()[-1500:].copy()
    with_gaps[100:103] = NAN
    returns = np.diff(np.log(with_gaps[np.isfinite(with_gaps)]))
    unit = math.sqrt(np.mean(returns**2))
    expected = arch_model(name, innovations, returns / unit).fit(disp="off").params
    model = build(name, ONE_STEP, innovations=innovations, paths=64).double()
    model.fit(windows([with_gaps], 400))
    found = {"mu": model.mean, "omega": model.omega, "alpha[1]": model.alpha, "beta[1]": model.beta}
    if name == "egarch":
        found["gamma[1]"] = model.gamma
    for field, value in found.items():
        assert value.item() == pytest.approx(expected[field], rel=1e-3), field
    assert model.typical.item() == pytest.approx(unit**2)


def test_the_windows_of_training_give_every_return_once():
    """Overlapping last windows, targets that reach ahead, holidays: none of it loses or repeats a return."""
    dataset = load("sp500")
    task = Task.of(dataset, horizon=3)
    parts = split(dataset, to_panel(dataset), task)
    found = fit_model("garch", task, parts, settings={"paths": 64}).model
    (span,) = parts.train
    closes = span.series.values[: span.end, 0]
    returns = np.diff(np.log(closes[np.isfinite(closes)]))
    assert found.typical.item() == pytest.approx(np.mean(returns**2), rel=1e-5)  # of float32 prices
    expected = arch_model("garch", "t", returns / np.sqrt(np.mean(returns**2))).fit(disp="off").params
    for field, value in {"omega": found.omega, "alpha[1]": found.alpha, "beta[1]": found.beta}.items():
        assert value.item() == pytest.approx(expected[field], rel=1e-3), field


def test_series_of_any_size_share_the_parameters():
    calm = prices()[-1000:]
    wild = 30 * (calm / calm[0]) ** 5  # the same returns, five times as large
    alone, both = (build("garch", ONE_STEP, paths=64).double() for _ in range(2))
    alone.fit(windows([calm], 400))
    both.fit(windows([calm, wild, np.full(300, 8.0)], 400))  # and one that does not move, which says nothing
    assert alone.remarks == ()
    assert both.remarks == ("1 of 3 training series are constant or grow evenly: left out.",)
    assert both.alpha.item() == pytest.approx(alone.alpha.item(), abs=0.01)
    assert both.beta.item() == pytest.approx(alone.beta.item(), abs=0.02)
    u2 = np.mean(np.diff(np.log(calm)) ** 2)
    assert both.typical.item() == pytest.approx((u2**0.5 * 3) ** 2)  # between once and five times


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("series", "message"),
    [
        ([np.full(300, 5.0)], r"constant, or grow evenly, in 1 of 1 training series.*Leave such series out"),
        ([1.01 ** np.arange(300.0)], r"constant, or grow evenly, in 1 of 1 training series"),
        ([np.full(300, 5.0), np.array([1.0, 2.0, 3.0])], r"the others have 2 returns, fewer than 100"),
        ([np.arange(1.0, 61.0)], r"needs at least 100 returns.*found 59 in 1 series"),
        ([np.full(300, NAN)], r"needs at least 100 returns.*found 0 in 1 series"),
        ([np.linspace(-2.0, 300.0, 303)], r"not positive: .*the smallest -2.*set returns=difference"),
    ],
    ids=["constant", "growing evenly", "nearly all constant", "short", "missing", "not positive"],
)
def test_what_cannot_be_fitted_says_why(name, series, message):
    with pytest.raises(ModelError, match=message):
        build(name, ONE_STEP).double().fit(windows(series, 400))


@pytest.mark.parametrize(
    ("values", "returns", "reason"),
    [
        ([1.0, 2.0, -3.0, 0.0], "log", "2 of 4 values are not above 0, the lowest -3: they have no logarithm"),
        ([1.0, 2.0, -3.0, 0.0], "difference", None),
        ([NAN] * 9 + [5.0, 6.0], "log", "2 values are too few for a variance of returns"),
        ([5.0, 5.0, NAN, 5.0], "log", "it is constant, or grows evenly: there is no variance to learn"),
        ([1.0, 2.0, 4.0, 8.0], "log", "it is constant, or grows evenly: there is no variance to learn"),
        ([1.0, 2.0, 4.0, 8.0], "difference", None),
    ],
)
def test_a_series_of_which_nothing_can_be_learned_is_told_from_the_others(values, returns, reason):
    found = build("garch", ONE_STEP, returns=returns).unfit(np.array(values))
    assert found is None if reason is None else found is not None and found.startswith(reason)


@pytest.mark.parametrize("seed", range(3))
def test_returns_that_no_egarch_describes_are_an_error(seed):
    """Nearly all are zero: the search ends without a maximum, or far from anything that moves like a price."""
    rng = np.random.default_rng(seed)
    seldom = np.exp((rng.normal(size=300) * (rng.random(300) < 0.03)).cumsum())
    with pytest.raises(ModelError, match=r"no maximum of the likelihood in 299 returns of 1 series \(.*seldom move"):
        build("egarch", ONE_STEP, paths=64).double().fit(windows([seldom], 400))


def test_differences_may_have_any_sign():
    values = np.random.default_rng(0).normal(size=400).cumsum()
    model = build("garch", ONE_STEP, returns="difference", paths=64).double()
    model.fit(windows([values], 400))
    forecasts, _ = stream(model, values, model.initial_state(1))
    inside = (forecasts[0, :-1, 0, 0] < torch.from_numpy(values[1:])) & (
        torch.from_numpy(values[1:]) < forecasts[0, :-1, 0, -1]
    )
    assert 0.7 < inside.double().mean() < 0.9  # of the 80 % interval


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"returns": "ratio"}, "returns is one of log, difference, not 'ratio'"),
        ({"innovations": "cauchy"}, "innovations is one of normal, t"),
        ({"size": "none"}, "size is one of own, shared"),
        ({"prior": 0}, "prior of at least 1 return, got 0"),
        ({"paths": 1000}, "power of 2 and at least 64, got 1000"),
    ],
)
def test_a_setting_out_of_range_is_refused(fields, message):
    with pytest.raises(ModelError, match=message):
        build("garch", ONE_STEP, **fields)
