"""Complex exponential smoothing as a step equals the library that fitted it; its spread is the model's own.

The library's intervals come of one error in every number of the state and of none on the way; ours are compared with
the matrices of the model and with simulated paths.

Shapes: B series, T time, H horizon, m season.
"""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from m3_cases import m3_monthly, needs_m3
from statsforecast.ces import cescalc, forecast_ces, switch_ces
from statsforecast.models import AutoCES

from data.frame import Channel
from forecasting.export import export_bundle
from forecasting.runtime import load_bundle
from forecasting.task import Task
from models.ces import FORMS, Ces, CesConfig, fit_ces, largest_root, states_of
from models.contract import LARGEST, Fits, ModelError, Signature, State

SEASON, HORIZON, MORE = 6, 15, 40
LEVELS = (0.025, 0.1, 0.5, 0.9, 0.975)
SIGNATURE = Signature("forecast", 1, horizon=HORIZON, season=SEASON, quantiles=LEVELS)


def series(seed: int = 3, length: int = 60) -> np.ndarray:
    """A trend, a season of SEASON steps and noise."""
    rng = np.random.default_rng(seed)
    t = np.arange(length)
    walk = rng.normal(size=length).cumsum()
    return 100 + 0.4 * t + 12 * np.sin(2 * np.pi * t / SEASON) + 4 * rng.normal(size=length) + 2 * walk


@cache
def fitted(form: str) -> tuple[Ces, Fits, AutoCES]:
    """Our model and states, and the library's own fit, of the named form on `series()`."""
    model = Ces(SIGNATURE, CesConfig(form=form)).double()
    return model, model.fit_series({"a": series()}), AutoCES(season_length=SEASON, model=form).fit(series())


def library_mean(found: dict, history: np.ndarray) -> np.ndarray:
    """(H,) after the history, by the fitted parameters from the fitted start: `forward` would look for a new start."""
    rows, count = found["m"], len(history)
    states = np.zeros((count + 2 * rows, found["states"].shape[1]))
    states[:rows] = found["states"][:rows]
    order = ("alpha_0", "alpha_1", "beta_0", "beta_1")
    parameters = [found["par"][name] for name in order]
    cescalc(history, states, rows, switch_ces(found["seasontype"]), *parameters, np.zeros(count), np.zeros(3), 3, 0)
    return forecast_ces(found | {"states": states, "n": count}, HORIZON)["mean"]


def assert_equal(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9 * np.abs(expected).max())


def mean_after(model: Ces, state: State, further: np.ndarray) -> np.ndarray:
    return model.outlook(model.passed(torch.from_numpy(further)[None], state))[0][0].numpy()


@pytest.mark.parametrize("form", FORMS)
def test_the_point_forecast_is_the_librarys(form):
    model, fits, library = fitted(form)
    assert library.model_["seasontype"] == form
    assert_equal(mean_after(model, fits.state, np.empty(0)), library.predict(HORIZON)["mean"])


@pytest.mark.parametrize("points", [1, MORE])
@pytest.mark.parametrize("form", FORMS)
def test_the_point_forecast_after_further_points_is_the_librarys(form, points):
    model, fits, library = fitted(form)
    further = series(seed=4, length=MORE)[:points] + 20
    expected = library_mean(library.model_, np.concatenate([series(), further]))
    assert_equal(mean_after(model, fits.state, further), expected)


def by_the_book(form: str, parameters: tuple[float, ...], m: int, horizon: int) -> np.ndarray:
    """(H,) v_h / sigma2 by the state space of the paper, all m seasons written out in one dense matrix."""
    a0, a1, b0, b1 = parameters
    plain = ([[1, -(1 - a1)], [1, 1 - a0]], [a0 - a1, a0 + a1])
    seasonal = {"S": plain, "P": ([[1]], [b0]), "F": ([[1, -(1 - b1)], [1, 1 - b0]], [b0 - b1, b0 + b1])}
    blocks = ([] if form == "S" else [(*plain, 1)]) + ([] if form == "N" else [(*seasonal[form], m)])
    size = sum(len(gain) * lag for _, gain, lag in blocks)
    f, g, w, at = np.zeros((size, size)), np.zeros(size), np.zeros(size), 0
    for matrix, gain, lag in blocks:
        width = len(gain)
        last = at + width * (lag - 1)
        f[at : at + width, last : last + width] = matrix  # what is oldest comes back as the newest
        f[at + width : last + width, at:last] = np.eye(last - at)
        g[at : at + width], w[last] = gain, 1
        at = last + width
    response = [w @ np.linalg.matrix_power(f, j) @ g for j in range(horizon - 1)]
    return 1 + np.concatenate([[0], np.cumsum(np.square(response))])


parameters = st.tuples(*(st.floats(0.01, 1.9) for _ in range(4)))


@settings(max_examples=40)
@given(form=st.sampled_from(FORMS), p=parameters, m=st.integers(1, 7), horizon=st.integers(1, 16))
def test_the_variance_is_the_models(form, p, m, horizon):
    signature = Signature("forecast", 1, horizon=horizon, season=m)
    fit = {"form": form, "parameters": p, "season": np.ones((m, 2)), "pair": np.ones(2)}
    state = states_of([fit | {"sigma2": 4.0, "started": 1, "errors": -1}], signature)
    _, deviation = Ces(signature).double().outlook(state)
    np.testing.assert_allclose(deviation[0].numpy() ** 2, 4 * by_the_book(form, p, m, horizon), rtol=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_simulated_paths_have_the_mean_and_the_spread(form):
    model, fits, _ = fitted(form)
    paths = 40_000
    generator = torch.Generator().manual_seed(1)
    state = {name: value.expand(paths, *value.shape[1:]) for name, value in fits.state.items()}
    sigma, drawn = fits.state["ces.sigma2"].sqrt(), []
    mean, deviation = model.outlook(fits.state)
    for _ in range(HORIZON):
        noise = sigma * torch.randn(paths, 1, generator=generator, dtype=torch.float64)
        y = model.outlook(state)[0][:, :1] + noise
        drawn.append(y)
        state = state | model.advance(y, torch.ones_like(y) > 0, state)
    found = torch.cat(drawn, 1)
    assert bool(((found.std(0) / deviation[0] - 1).abs() < 5 / np.sqrt(2 * paths)).all())  # 5 standard errors
    assert bool(((found.mean(0) - mean[0]).abs() < 5 * deviation[0] / np.sqrt(paths)).all())


@pytest.mark.parametrize(("form", "errors"), [("N", 1), ("S", 1), ("P", 2), ("F", 2)])
def test_the_librarys_intervals_are_those_of_errors_in_the_state_at_once(form, errors):
    """Which is why they are not ours. Its 5,000 paths give the ends of its 80 % to some 3 %."""
    model, fits, library = fitted(form)
    found = library.predict(HORIZON, level=[80])
    width = (found["hi-80"] - found["lo-80"]) / (2 * 1.2815515655446004)
    sigma = np.sqrt(library.model_["sigma2"])
    np.testing.assert_allclose(width[0], np.sqrt(errors) * sigma, rtol=0.06)
    ours = model.outlook(fits.state)[1][0].numpy()
    assert ours[0] == pytest.approx(sigma)
    assert width[-1] / width[0] + 0.04 < ours[-1] / ours[0]


def test_two_steps_by_hand():
    """F with a0 = b0 = 1, a1 = b1 = 1/2, pairs (10, 4) and (2, 1), (-2, 0): T = [[1, -1/2], [1, 0]], g = (1/2, 3/2)."""
    signature = Signature("forecast", 1, horizon=2, season=2, quantiles=(0.5,))
    fit = {"form": "F", "parameters": (1, 0.5, 1, 0.5), "sigma2": 1.0, "started": 1, "errors": -1}
    fit |= {"pair": np.array([10.0, 4.0]), "season": np.array([[2.0, 1.0], [-2.0, 0.0]])}
    state, model = states_of([fit], signature), Ces(signature).double()
    y, seen = torch.tensor([[16.0]], dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    prediction, state = model.step(y, seen, state)  # an error of 16 - 12 = 4
    assert state["ces.pair"].tolist() == [[10 - 2 + 2, 10 + 6]]
    assert state["ces.season"].tolist() == [[[-2, 0], [2 - 0.5 + 2, 2 + 6]]]
    assert prediction[0, :, 0].tolist() == [10 - 2, (10 - 8) + 3.5]
    assert model.outlook(state)[1].tolist() == [[1, np.sqrt(1 + 0.5**2)]]
    prediction, state = model.step(y * torch.nan, seen, state)
    assert state["ces.pair"].tolist() == [[2, 10]]
    assert state["ces.season"].tolist() == [[[3.5, 8], [-2, -2]]]


@pytest.mark.parametrize("form", FORMS)
def test_missing_values_are_steps_ahead(form):
    model, fits, library = fitted(form)
    expected = library.predict(HORIZON + 8)["mean"]
    assert_equal(mean_after(model, fits.state, np.full(8, np.nan)), expected[8:])


def test_gaps_are_skipped_by_the_filter_as_a_stream_skips_them():
    values = series()
    values[[30, 41]] = np.nan
    model, whole = Ces(SIGNATURE, CesConfig(form="P")).double(), values.copy()
    whole[[30, 41]] = np.interp([30, 41], np.flatnonzero(np.isfinite(values)), values[np.isfinite(values)])
    fits = model.fit_series({"a": values, "whole": whole})
    begin = AutoCES(season_length=SEASON, model="P").fit(whole).model_["states"][:SEASON]
    start = fits.state_of(["whole"]) | {"ces.pair": torch.from_numpy(begin[-1:, :2])}
    start["ces.season"] = torch.from_numpy(np.stack([begin[:, 2], np.zeros(SEASON)], -1))[None]
    after = model.passed(torch.from_numpy(values)[None], start)
    for name, value in fits.state_of(["a"]).items():
        torch.testing.assert_close(value, after[name], rtol=1e-12, atol=1e-12)
    assert not torch.equal(after["ces.pair"], fits.state_of(["whole"])["ces.pair"])


def test_series_of_all_forms_share_a_graph(tmp_path: Path):
    fits = [fitted(form)[1] for form in FORMS]
    together = {name: torch.cat([one.state[name] for one in fits]) for name in fits[0].state}
    x = torch.from_numpy(series(seed=4, length=MORE) + 20).view(1, -1, 1).expand(len(FORMS), -1, -1)
    mask = (torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) > 0.2).double()
    everyone, _ = Ces(SIGNATURE).double().scan(x, mask, together)
    for row, one in enumerate(fits):
        alone, _ = Ces(SIGNATURE).double().scan(x[row : row + 1], mask[row : row + 1], one.state)
        torch.testing.assert_close(everyone[row : row + 1], alone, rtol=1e-12, atol=0)
    task = Task("forecast", "y", (Channel("y", ""),), 1, horizon=HORIZON, season=SEASON, quantiles=LEVELS)
    export_bundle(Ces(SIGNATURE), task, tmp_path / "ces", name="ces", config={}, training={}, metrics=[])
    state = {name: value.float().numpy() for name, value in together.items()}
    found, _ = load_bundle(tmp_path / "ces").run_scan(x.float().numpy(), mask.float().numpy(), state)
    np.testing.assert_allclose(found, everyone.numpy(), rtol=0, atol=1e-5 * everyone.abs().max().item())


def test_a_series_that_was_not_fitted_is_smoothed_from_its_first_value():
    model = Ces(
        Signature("forecast", 1, horizon=2, season=SEASON, quantiles=(0.5, 0.975)), CesConfig(unfitted_alpha=0.5)
    ).double()
    x = torch.tensor([[[4.0], [8.0], [6.0]]], dtype=torch.float64)
    prediction, state = model.scan(x, torch.ones_like(x), model.initial_state(1))
    assert prediction[0, :, 0, 0].tolist() == [4, 6, 6]
    assert state["ces.sigma2"].item() == 8  # errors 4 and 0
    np.testing.assert_allclose(prediction[0, 2, :, 1], 6 + 1.959963984540054 * np.sqrt(8 * np.array([1, 1.25])))


# A filter that does not forget.


@pytest.mark.parametrize(
    ("form", "parameters"),
    [("N", (0.6, 1.3, 0, 0)), ("S", (0.6, 1.3, 0, 0)), ("P", (1, 1.06, 0.05, 0)), ("F", (1, 1.02, 1, 1.05))],
)
def test_the_largest_root_is_the_rate_at_which_two_filters_part(form, parameters):
    """Of two states that differ at first, along the same values."""
    signature, season = Signature("forecast", 1, season=3), 3
    fit = {"form": form, "parameters": parameters, "sigma2": 1.0, "started": 1, "errors": -1}
    same = {"pair": np.zeros(2), "season": np.zeros((season, 2))}
    pair, seasonal = np.full(2, form != "S"), np.tile([form != "N", form in "SF"], (season, 1))
    state = states_of([fit | same, fit | {"pair": 1e-9 * pair, "season": 1e-9 * seasonal}], signature)
    model, sizes = Ces(signature).double(), []
    for count in (120, 30):
        state = model.passed(torch.zeros(2, count, dtype=torch.float64), state)
        sizes.append(torch.cat([state[name].flatten(1) for name in ("ces.pair", "ces.season")], 1)[1].norm().item())
    root = largest_root(form, parameters, 1 if form == "N" else season)
    assert root > 1
    assert (sizes[1] / sizes[0]) ** (1 / 30) == pytest.approx(root, rel=1e-3)


def test_a_state_that_runs_away_stays_finite_and_a_fit_that_may_says_so():
    signature = Signature("forecast", 1, horizon=2)
    fit = {"form": "N", "parameters": (1.3, 1.5, 0, 0), "sigma2": 1.0, "started": 1, "errors": -1}
    state = states_of([fit | {"pair": np.array([9.0, 3.0]), "season": np.zeros((1, 2))}], signature)
    model = Ces(signature)
    state = {name: value.float() for name, value in state.items()}
    after = model.passed(torch.full((1, 1000), torch.nan), state)
    assert after["ces.pair"].abs().max().item() == np.float32(LARGEST)
    assert bool(model.predict(after).isfinite().all())
    t, rng = np.arange(48), np.random.default_rng(4)
    found = fit_ces(1e3 - 15 * t + 200 * np.sin(np.pi / 6 * t) + 40 * rng.normal(size=48), 12, "F")
    doubles = np.log(2) / np.log(largest_root("F", found["parameters"], 12))
    assert doubles > 0
    assert f"does not forget: what is wrong in its state doubles in {doubles:,.0f} steps" in found["note"]


# What cannot be fitted.


def test_what_is_wrong_with_one_series_is_no_matter_to_the_others():
    gap = series()
    gap[[20, 21, 40]] = np.nan
    everyone = {
        "good": series(), "gap": gap, "late": np.concatenate([[np.nan] * 7, series()]), "missing": np.full(30, np.nan),
        "short": series(length=4), "one season": series(length=2 * SEASON - 1), "constant": np.full(40, 7.0),
        "constant with a gap": np.array([7.0] * 20 + [np.nan] + [7.0] * 20), "negative": series() - 1000,
    }  # fmt: skip
    fits = Ces(SIGNATURE).double().fit_series(everyone)
    assert fits.series == ("good", "gap", "late", "one season", "negative")
    assert "all of its 30 values are missing" in fits.failures["missing"]
    assert fits.failures["short"] == "4 values are too few for complex exponential smoothing, which takes 5 or more"
    assert fits.failures["constant"] == fits.failures["constant with a gap"] == "it is constant, and has nothing to fit"
    assert fits.notes["gap"].startswith("3 of 60 values are missing: closed by straight lines for the fit")
    assert fits.notes["one season"].startswith("fitted without a season: 11 values are fewer than two seasons of 6")
    late, good = fits.state_of(["late"]), fits.state_of(["good"])
    assert all(torch.equal(late[name], good[name]) for name in good)


def test_a_series_of_which_the_library_can_fit_no_form_says_so():
    fits = Ces(Signature("forecast", 1, season=4)).fit_series({"alternating": np.arange(40) % 2 * 1.0})
    assert fits.failures["alternating"].startswith("AutoCES could fit none of its forms to its 40 values")


def test_a_seasonal_form_without_two_seasons_is_refused():
    fits = Ces(SIGNATURE, CesConfig(form="F")).fit_series({"short": series(length=11), "good": series()})
    assert fits.series == ("good",)
    assert fits.failures["short"] == "its 11 values are fewer than two seasons of 6; take no season (N)"


@pytest.mark.parametrize(("field", "value"), [("form", "Z"), ("unfitted_alpha", 0)])
def test_settings_out_of_range_name_what_is_known(field, value):
    with pytest.raises(ModelError, match=r"auto or one of N, S, P, F|above 0 and at most 1"):
        CesConfig(**{field: value})


# Real data.


@needs_m3
def test_m3_monthly_point_forecasts_are_the_librarys():
    """Every 90th series, the form chosen by AICc; all of them are in bench_local.py."""
    signature = Signature("forecast", 1, horizon=HORIZON, season=12, quantiles=LEVELS)
    model, table = Ces(signature).double(), list(m3_monthly(90))
    fits = model.fit_series({name: values for name, values, _ in table})
    assert not fits.failures
    for name, values, test in table:
        found = AutoCES(season_length=12).fit(values).model_
        state = fits.state_of([name])
        assert_equal(mean_after(model, state, np.empty(0)), forecast_ces(found, HORIZON)["mean"])
        assert_equal(mean_after(model, state, test), library_mean(found, np.concatenate([values, test])))
