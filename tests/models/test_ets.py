"""Exponential smoothing as a step equals the library that fitted it, and the book where the library does not.

What statsforecast 2.1.1 computes otherwise than Hyndman et al. (2008), found here and stated in `DEVIATIONS`, is
compared with other parts of the library (its simulator, its last step of every horizon) or with the book's formulas.

Shapes: B series, T time, H horizon, Q quantiles, m season.
"""

from functools import cache

import numpy as np
import pytest
import torch
from ets_book import by_the_book
from hypothesis import given
from hypothesis import strategies as st
from m3_cases import m3_monthly, needs_m3
from statsforecast.ets import forecast_ets, forward_ets, simulate_ets
from statsforecast.models import AutoETS

from models.contract import Fits, ModelError, Signature
from models.ets import Ets, EtsConfig, parameters_of, states_of

SEASON, HORIZON, MORE = 6, 15, 40
LEVELS = (0.025, 0.1, 0.5, 0.9, 0.975)
SIGNATURE = Signature("forecast", 1, horizon=HORIZON, season=SEASON, quantiles=LEVELS)
FORMS = [f"{error}{trend}{season}" for error in "AM" for trend in ("N", "A", "Ad") for season in "NAM"]
FORMS = [form for form in FORMS if form[0] + form[-1] != "AM"]  # AutoETS allows none of them: infinite variance
DEVIATIONS = {
    "the damped point forecast": "phi counts twice: phi + phi + phi^2 ... (pegelsfcast_C); simulate_ets is right",
    "seasonal class 1": "hm is the horizon's, not the step's: too wide before one season (_compute_pred_intervals)",
    "class 2, MAA": "alpha * beta where the book has alpha + beta (_compute_pred_intervals)",
    "class 3": "the mean matrix is updated after the loop, not in it (_class3models)",
}


def series(seed: int = 3, length: int = 60, positive: bool = True) -> np.ndarray:
    """A trend, a season of SEASON steps and noise, on a level far enough above 0 for any form."""
    rng = np.random.default_rng(seed)
    t = np.arange(length)
    walk = rng.normal(size=length).cumsum()
    values = 100 + 0.4 * t + 12 * np.sin(2 * np.pi * t / SEASON) + 4 * rng.normal(size=length) + 2 * walk
    return values if positive else values - values.mean()


def settings_of(form: str) -> dict[str, str]:
    damped = "d" in form
    return {"model": form.replace("d", ""), "damped": "yes" if damped else "auto" if form[1] == "N" else "no"}


@cache
def fitted(form: str) -> tuple[Ets, Fits, AutoETS]:
    """Our model and states, and the library's own fit, of the named form on `series()`."""
    model = Ets(SIGNATURE, EtsConfig(**settings_of(form))).double()
    damped = {"yes": True, "no": False, "auto": None}[model.config.damped]
    library = AutoETS(season_length=SEASON, model=model.config.model, damped=damped).fit(series())
    return model, model.fit_series({"a": series()}), library


def quantiles(model: Ets, state: dict[str, torch.Tensor], further: np.ndarray) -> np.ndarray:
    """(H, Q) after the further values."""
    x = torch.from_numpy(further).view(1, -1, 1)
    with torch.no_grad():
        return model.scan(x, torch.ones_like(x), state)[0][0, -1].numpy()


def library_quantiles(found: dict, horizon: int) -> np.ndarray:
    """(H, Q) as the library computes them."""
    out = forecast_ets(found, horizon, level=[80, 95])
    return np.stack([out[name] for name in ("lo-95", "lo-80", "mean", "hi-80", "hi-95")], -1)


def library_after(library: AutoETS, further: np.ndarray) -> dict:
    """The library's model after the further values, with the variance that was fitted: `forward` estimates it anew."""
    found = forward_ets(library.model_, np.concatenate([series(), further]))
    return found | {"sigma2": library.model_["sigma2"]}


def assert_equal(found: np.ndarray, expected: np.ndarray, relative: float = 1e-9) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=relative * np.abs(expected).max())


FURTHER = series(seed=4, length=MORE) + 20


@pytest.mark.parametrize("further", [np.empty(0), FURTHER], ids=["at the fit's end", "40 points later"])
@pytest.mark.parametrize("form", FORMS)
def test_the_point_forecast_is_the_librarys(form, further):
    """For damped trends that of its simulator without errors (`DEVIATIONS`)."""
    model, fits, library = fitted(form)
    with torch.no_grad():
        state = fits.state
        for value in further:
            y = torch.full((1, 1), value, dtype=torch.float64)
            state = state | model.advance(y, y > 0, state)
        mean = model.outlook(state)[0][0].numpy()
    found = library_after(library, further)
    expected = (
        forecast_ets(found, HORIZON)["mean"] if "d" not in form else simulate_ets(found | {"sigma2": 0}, HORIZON, 1)[0]
    )
    assert_equal(mean, expected)


@pytest.mark.parametrize("further", [FURTHER[:1], FURTHER], ids=["one point later", "40 points later"])
@pytest.mark.parametrize("form", [form for form in FORMS if "d" not in form and form[-1] != "M" and form != "MAA"])
def test_the_intervals_are_the_librarys(form, further):
    """Of every step the last of its own horizon, where the library counts the seasons as the book does."""
    model, fits, library = fitted(form)
    found = library_after(library, further)
    expected = np.stack([library_quantiles(found, step + 1)[step] for step in range(HORIZON)])
    assert_equal(quantiles(model, fits.state, further), expected)


@pytest.mark.parametrize("form", ["AAdN", "AAdA"])
def test_the_spread_of_a_damped_trend_is_the_librarys(form):
    model, fits, library = fitted(form)
    expected = np.stack([library_quantiles(library.model_, step + 1)[step] for step in range(HORIZON)])
    mean, deviation = model.outlook(fits.state)
    assert_equal(
        (mean[0] + 1.959963984540054 * deviation[0]).numpy() - mean[0].numpy(), expected[:, 4] - expected[:, 2]
    )


def test_the_library_still_deviates_as_stated():
    """A new release that computes what the book says makes the tests above simpler."""
    model, fits, library = fitted("ANA")
    assert not np.allclose(library_quantiles(library.model_, HORIZON)[0], library_quantiles(library.model_, 1)[0])
    model, fits, library = fitted("AAdN")
    mean = model.outlook(fits.state)[0][0].numpy()
    assert not np.allclose(forecast_ets(library.model_, HORIZON)["mean"], mean, rtol=1e-9)
    for form in ("MAA", "MNM"):
        model, fits, library = fitted(form)
        deviation = model.outlook(fits.state)[1][0].numpy()
        found = library_quantiles(library.model_, HORIZON)
        assert not np.allclose((found[:, 4] - found[:, 2]) / 1.959963984540054, deviation, rtol=1e-9)


parameters = st.fixed_dictionaries({
    "alpha": st.floats(0.01, 0.99), "beta": st.floats(0.0, 0.5), "gamma": st.floats(0.0, 0.5),
    "phi": st.floats(0.8, 1.0), "sigma2": st.floats(1e-4, 0.1),
})  # fmt: skip


@given(
    p=parameters, form=st.sampled_from(FORMS), m=st.integers(1, 7), horizon=st.integers(1, 16), seed=st.integers(0, 99)
)
def test_the_variance_is_the_books(p, form, m, horizon, seed):
    rng = np.random.default_rng(seed)
    if form[1] == "N":
        p = p | {"beta": 0.0, "phi": 1.0}
    if form[-1] == "N" or m == 1:
        p = p | {"gamma": 0.0}
    season = rng.normal(1, 0.2, m) if form[-1] == "M" else rng.normal(0, 5, m) * (form[-1] == "A")
    trend = 0.0 if form[1] == "N" else rng.normal()
    signature = Signature("forecast", 1, horizon=horizon, season=m)
    fit = p | {"form": form, "level": 50.0, "trend": trend, "season": season, "started": 1.0, "errors": -1.0}
    _, deviation = Ets(signature).double().outlook(states_of([fit], signature))
    expected = by_the_book(form, p, 50.0, trend, season, horizon)
    np.testing.assert_allclose(deviation[0].numpy() ** 2, expected, rtol=1e-9)


@pytest.mark.parametrize("form", ["MAdM", "MNM", "MAA"])
def test_simulated_paths_have_the_variance(form):
    """What neither the library's formula nor the book's is asked for: the recursion itself, with errors drawn."""
    model, fits, _ = fitted(form)
    paths = 40_000
    generator = torch.Generator().manual_seed(1)
    state = {name: value.expand(paths, *value.shape[1:]) for name, value in fits.state.items()}
    sigma = fits.state["ets.sigma2"].sqrt()
    drawn = []
    with torch.no_grad():
        deviation = model.outlook(fits.state)[1]
        for _ in range(HORIZON):
            expected = model.outlook(state)[0][:, :1]
            y = expected * (1 + sigma * torch.randn(paths, 1, generator=generator, dtype=torch.float64))
            drawn.append(y)
            state = state | model.advance(y, torch.ones_like(y) > 0, state)
    ratio = torch.cat(drawn, 1).std(0) / deviation[0]
    assert bool(((ratio - 1).abs() < 5 / np.sqrt(2 * paths)).all()), ratio  # 5 standard errors of a deviation


def test_two_steps_by_hand():
    """Level 10, trend 1, season (2, 0.5), all gains 1/2: mu = 11 * 2 = 22."""
    signature = Signature("forecast", 1, horizon=2, season=2, quantiles=(0.5,))
    parameters = {"alpha": 0.5, "beta": 0.5, "gamma": 0.5, "phi": 1.0, "sigma2": 0.0}
    moving = {"level": [[10.0]], "trend": [[1.0]], "season": [[2.0, 0.5]], "started": [[1.0]], "errors": [[-1.0]]}
    state = {f"ets.{name}": torch.tensor(value) for name, value in moving.items()}
    state |= parameters_of({name: torch.tensor([v]) for name, v in parameters.items()}, torch.ones(1, 2), signature)
    model = Ets(signature)
    prediction, state = model.step(torch.tensor([[33.0]]), torch.ones(1, 1), state)
    # p = 33 / 2 = 16.5, error 5.5; r = 33 / 11 = 3
    assert state["ets.level"].item() == 11 + 2.75
    assert state["ets.trend"].item() == 1 + 2.75
    assert state["ets.season"].tolist() == [[0.5, 2 + 0.5]]
    assert prediction[0, :, 0].tolist() == [17.5 * 0.5, 21.25 * 2.5]
    prediction, state = model.step(torch.tensor([[float("nan")]]), torch.ones(1, 1), state)
    assert state["ets.level"].item() == 17.5
    assert state["ets.season"].tolist() == [[2.5, 0.5]]
    assert prediction[0, :, 0].tolist() == [21.25 * 2.5, 25 * 0.5]


def test_series_of_all_forms_share_a_batch():
    fits = [fitted(form)[1] for form in FORMS]
    together = {name: torch.cat([one.state[name] for one in fits]) for name in fits[0].state}
    model = Ets(SIGNATURE).double()
    x = torch.from_numpy(FURTHER).view(1, -1, 1).expand(len(FORMS), -1, -1)
    mask = (torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) > 0.2).double()
    everyone, _ = model.scan(x, mask, together)
    for row, one in enumerate(fits):
        alone, _ = model.scan(x[row : row + 1], mask[row : row + 1], one.state)
        torch.testing.assert_close(everyone[row : row + 1], alone, rtol=1e-12, atol=0)


def test_a_series_that_was_not_fitted_is_smoothed_from_its_first_value():
    model = Ets(
        Signature("forecast", 1, horizon=2, season=SEASON, quantiles=(0.5, 0.975)), EtsConfig(unfitted_alpha=0.5)
    ).double()
    x = torch.tensor([[[4.0], [8.0], [6.0]]], dtype=torch.float64)
    prediction, state = model.scan(x, torch.ones_like(x), model.initial_state(1))
    assert prediction[0, :, 0, 0].tolist() == [4, 6, 6]
    assert state["ets.sigma2"].item() == 8  # errors 4 and 0
    np.testing.assert_allclose(prediction[0, 2, :, 1], 6 + 1.959963984540054 * np.sqrt(8 * np.array([1, 1.25])))


# What cannot be fitted.


def test_what_is_wrong_with_one_series_is_no_matter_to_the_others():
    gap = series()
    gap[[20, 21, 40]] = np.nan
    everyone = {
        "good": series(), "gap": gap, "late": np.concatenate([[np.nan] * 7, series()]), "missing": np.full(30, np.nan),
        "short": series(length=4), "less than a season": series(length=SEASON), "constant": np.full(40, 7.0),
        "negative": series(positive=False), "one": np.array([3.0]),
    }  # fmt: skip
    fits = Ets(SIGNATURE).double().fit_series(everyone)
    assert fits.series == ("good", "gap", "late", "constant", "negative")
    assert "all of its 30 values are missing" in fits.failures["missing"]
    assert "4 values are too few" in fits.failures["short"]
    assert "too few" in fits.failures["less than a season"]
    assert fits.failures["one"] == "1 values are too few for an ETS model of the form ZZN"
    assert fits.notes["constant"] == "constant: simple exponential smoothing with no spread"
    assert fits.notes["gap"] == "3 of 60 values are missing: closed by straight lines for the fit"
    assert set(fits.notes) == {"constant", "gap"}
    late, good = fits.state_of(["late"]), fits.state_of(["good"])
    assert all(torch.equal(late[name], good[name]) for name in good)
    assert fits.state_of(["negative"])["ets.kind"].tolist() == [[0, 0]]
    with pytest.raises(ModelError, match="series missing has no state: all of its 30 values are missing"):
        fits.state_of(["good", "missing"])
    with pytest.raises(ModelError, match="series x has no state: it is none of the 5 fitted series"):
        fits.state_of(["x"])


def test_a_short_series_without_a_season_says_so():
    fits = Ets(Signature("forecast", 1, season=24)).double().fit_series({"short": series(length=20)})
    assert fits.notes["short"] == "fitted without a season: 20 values are no more than one season of 24"
    fits = Ets(Signature("forecast", 1, season=24), EtsConfig(model="ANA")).fit_series({"short": series(length=20)})
    assert fits.failures["short"] == "its 20 values are no more than one season of 24; take no season (N)"


def test_multiplicative_forms_refuse_what_is_not_positive():
    fits = Ets(SIGNATURE, EtsConfig(model="MAM")).fit_series({"a": series(positive=False), "b": series()})
    assert fits.series == ("b",)
    assert "MAM takes values above 0 only, the lowest is -" in fits.failures["a"]


def test_gaps_are_skipped_by_the_filter_as_a_stream_skips_them():
    values = series()
    values[[30, 41]] = np.nan
    model = Ets(SIGNATURE).double()
    found = model.fit_series({"a": values}).state
    whole = values.copy()
    whole[[30, 41]] = np.interp([30, 41], np.flatnonzero(np.isfinite(values)), values[np.isfinite(values)])
    library = AutoETS(season_length=SEASON).fit(whole).model_
    begin = library["states"][0]
    assert found["ets.alpha"].item() == library["par"][0]
    assert not torch.equal(found["ets.level"], torch.tensor([[library["states"][-1][0]]], dtype=torch.float64))
    trends = int(library["components"][1] != "N")
    state = found | {
        "ets.level": torch.tensor([[begin[0]]], dtype=torch.float64),
        "ets.trend": torch.tensor([[begin[1] * trends]], dtype=torch.float64),
    }
    if library["components"][2] != "N":
        state["ets.season"] = torch.from_numpy(begin[1 + trends :][::-1].copy())[None]
    x = torch.from_numpy(values).view(1, -1, 1)
    after = model.scan(x, x.isfinite().double(), state)[1]
    for name in ("ets.level", "ets.trend", "ets.season"):
        torch.testing.assert_close(found[name], after[name], rtol=1e-12, atol=1e-12)


def test_many_series_are_fitted_by_several_processes_as_by_one():
    everyone = {str(seed): series(seed, length=20 + seed) for seed in range(40)} | {"bad": np.full(5, np.nan)}
    model = Ets(SIGNATURE, EtsConfig(model="ANN"))
    several, one = model.fit_series(everyone, processes=2), model.fit_series(everyone, processes=1)
    assert several.series == one.series
    assert several.failures == one.failures
    assert all(torch.equal(several.state[name], value) for name, value in one.state.items())


@pytest.mark.parametrize(
    ("field", "value"), [("model", "AM"), ("model", "AMN"), ("damped", "maybe"), ("unfitted_alpha", 0)]
)
def test_settings_out_of_range_name_what_is_known(field, value):
    with pytest.raises(ModelError, match=r"multiplicative trend|auto, yes or no|above 0"):
        EtsConfig(**{field: value})


# Real data.


@needs_m3
def test_m3_monthly_point_forecasts_and_first_steps_are_the_librarys():
    """Every 90th series, the form chosen by AICc; all of them, and the intervals, are in bench_local.py."""
    table = list(m3_monthly(90))
    signature = Signature("forecast", 1, horizon=12, season=12, quantiles=LEVELS)
    model = Ets(signature).double()
    fits = model.fit_series({name: values for name, values, _ in table})
    assert not fits.failures
    for name, values, test in table:
        library = AutoETS(season_length=12).fit(values)
        found = forward_ets(library.model_, np.concatenate([values, test])) | {"sigma2": library.model_["sigma2"]}
        after = quantiles(model, fits.state_of([name]), test)
        expected = library_quantiles(found, 12)
        rows = slice(None) if found["components"][3] == "N" and found["components"][2] != "M" else slice(1)
        if found["components"][2] == "M" and found["components"][3] == "N":
            assert_equal(after[:, 2], expected[:, 2])
        if found["components"] != "MAAN":
            assert_equal(after[rows], expected[rows])
