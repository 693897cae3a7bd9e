"""The theta method as a step equals the library that fitted it; intervals, which it samples, equal simulated paths.

Shapes: B series, T time, H horizon, Q quantiles, m season.
"""

from functools import cache

import numpy as np
import pytest
import torch
from statsforecast.models import AutoTheta
from statsforecast.theta import compute_pi_samples

from models.contract import Fits, ModelError, Signature
from models.theta import FORMS, Theta, ThetaConfig

SEASON, HORIZON = 4, 10
SIGNATURE = Signature("forecast", 1, horizon=HORIZON, season=SEASON, quantiles=(0.1, 0.5, 0.9))


def series(seed: int = 5, length: int = 60, season: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    t = np.arange(length)
    return 100 + 0.7 * t + season * np.sin(2 * np.pi * t / SEASON) + 2 * rng.normal(size=length).cumsum()


@cache
def fitted(form: str, season: float = 0.0, decomposition: str = "multiplicative") -> tuple[Theta, Fits, AutoTheta]:
    model = Theta(SIGNATURE, ThetaConfig(form=form, decomposition=decomposition)).double()
    library = AutoTheta(season_length=SEASON, model=form, decomposition_type=decomposition).fit(series(season=season))
    return model, model.fit_series({"a": series(season=season)}), library


def assert_equal(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9 * np.abs(expected).max())


@pytest.mark.parametrize("decomposition", ["multiplicative", "additive"])
@pytest.mark.parametrize("season", [0.0, 20.0], ids=["no season", "season"])
@pytest.mark.parametrize("form", FORMS)
def test_the_point_forecast_at_the_fits_end_is_the_librarys(form, season, decomposition):
    model, fits, library = fitted(form, season, decomposition)
    assert library.model_.get("decompose", False) == (season > 0)
    assert_equal(model.outlook(fits.state)[0][0].numpy(), library.predict(HORIZON)["mean"])


@pytest.mark.parametrize("points", [1, 40])
@pytest.mark.parametrize("form", FORMS)
def test_the_point_forecast_after_further_points_is_the_librarys(form, points):
    """Without a season: the library tests for one anew."""
    model = Theta(Signature("forecast", 1, horizon=HORIZON), ThetaConfig(form=form)).double()
    fits, library = model.fit_series({"a": series()}), AutoTheta(season_length=1, model=form).fit(series())
    further = series(seed=6, length=100)[60 : 60 + points]
    after = model.passed(torch.from_numpy(further)[None], fits.state)
    expected = library.forward(np.concatenate([series(), further]), HORIZON)["mean"]
    assert_equal(model.outlook(after)[0][0].numpy(), expected)


@pytest.mark.parametrize("form", FORMS)
def test_missing_values_are_steps_ahead_and_the_season_goes_round(form):
    """The library works out the season anew from the whole series; ours is kept, so a whole one leaves it in place."""
    model, fits, library = fitted(form, 20.0)
    expected = library.predict(HORIZON)["mean"]
    after = model.passed(torch.full((1, 3), float("nan"), dtype=torch.float64), fits.state)
    assert_equal(model.outlook(after)[0][0, : HORIZON - 3].numpy(), expected[3:])
    rolled = model.passed(torch.full((1, SEASON), float("nan"), dtype=torch.float64), fits.state)
    assert torch.equal(rolled["theta.season"], fits.state["theta.season"])


@pytest.mark.parametrize("form", FORMS)
def test_simulated_paths_have_the_variance(form):
    """Standard models keep their line ahead, so that of their paths the level alone follows the errors."""
    model, fits, _ = fitted(form)
    paths = 20_000
    generator = torch.Generator().manual_seed(2)
    sigma = fits.state["theta.sigma2"].sqrt()
    with torch.no_grad():
        mean, deviation = model.outlook(fits.state)
        state = {name: value.expand(paths, *value.shape[1:]) for name, value in fits.state.items()}
        drawn = []
        for step in range(HORIZON):
            noise = sigma * torch.randn(paths, 1, generator=generator, dtype=torch.float64)
            if form.startswith("D"):
                y = model.outlook(state)[0][:, :1] + noise
                state = state | model.advance(y, torch.ones_like(y) > 0, state)
            else:
                y = mean[:, step : step + 1] + (state["theta.level"] - fits.state["theta.level"]) + noise
                state = state | {"theta.level": state["theta.level"] + state["theta.alpha"] * noise}
            drawn.append(y)
    ratio = torch.cat(drawn, 1).std(0) / deviation[0]
    assert bool(((ratio - 1).abs() < 5 / np.sqrt(2 * paths)).all()), ratio  # 5 standard errors of a deviation


@pytest.mark.parametrize("form", ["DSTM", "DOTM"])
def test_the_spread_is_that_of_many_of_the_librarys_samples(form):
    """It takes 200; here 20,000. Its samples fit the line by the new mean instead of the old: 1 % at 10 steps."""
    model, fits, library = fitted(form)
    found = library.model_
    sigma = np.std(found["residuals"][3:], ddof=1)
    arguments = (found["states"], sigma, found["par"]["alpha"], found["par"]["theta"], found["mean_y"])
    samples = compute_pi_samples(found["n"], HORIZON, *arguments, n_samples=20_000)
    np.testing.assert_allclose(model.outlook(fits.state)[1][0].numpy(), samples.std(1), rtol=0.03)


def test_additive_seasons_are_no_noise():
    """The library adds the season to the residuals from which it draws; those of the adjusted series are meant."""
    _, fits, library = fitted("OTM", 20.0, "additive")
    factors = np.asarray(library.model_["seas_forecast"]["mean"])
    adjusted = series(season=20.0) - np.resize(factors, 60)  # 60 is whole seasons
    same = AutoTheta(season_length=1, model="OTM").fit(adjusted).model_
    assert fits.state["theta.sigma2"].item() == pytest.approx(np.var(same["residuals"][3:], ddof=1))
    assert np.var(library.model_["residuals"][3:], ddof=1) > 2 * fits.state["theta.sigma2"].item()


def test_the_first_value_is_expected_again():
    model = Theta(Signature("forecast", 1, horizon=2, season=3, quantiles=(0.5,))).double()
    x = torch.tensor([[[float("nan")], [8.0], [8.0], [float("nan")], [10.0]]], dtype=torch.float64)
    prediction, state = model.scan(x, x.isfinite().double(), model.initial_state(1))
    assert prediction[0, 0].flatten().tolist() == [0, 0]
    torch.testing.assert_close(prediction[0, 1:4, :, 0], torch.full((3, 2), 8.0, dtype=torch.float64))
    assert state["theta.sigma2"].item() == pytest.approx((0 + 2**2) / 2)
    # The line through 8, 8, 8, 10: mean 8.5, which is .5 above the first value, and slope 0.6
    assert state["theta.origin"].item() == 8
    assert state["theta.line"][0].tolist() == pytest.approx([0.5, 0.6])


def test_what_is_wrong_with_one_series_is_no_matter_to_the_others():
    gap = series()
    gap[[20, 21]] = np.nan
    negative = series(season=20.0) - 110
    everyone = {
        "good": series(), "gap": gap, "missing": np.full(30, np.nan), "short": np.array([1.0, 2.0]),
        "constant": np.full(30, 7.0), "negative": negative,
    }  # fmt: skip
    fits = Theta(SIGNATURE).double().fit_series(everyone)
    assert fits.series == ("good", "gap", "negative")
    assert "all of its 30 values are missing" in fits.failures["missing"]
    assert fits.failures["short"] == "2 values are too few for a theta model"
    assert fits.failures["constant"] == "it is constant, and has neither a season nor a slope to fit"
    assert fits.notes["gap"] == "2 of 60 values are missing: closed by straight lines"
    assert fits.notes["negative"].startswith("its season is removed by subtraction")


@pytest.mark.parametrize(
    ("season", "length", "why"),
    [
        (24, 47, "47 values are fewer than two seasons of 24"),
        (3, 60, "one of 3 steps is shorter than the library removes"),
    ],
)
def test_a_season_that_is_not_looked_for_is_said(season, length, why):
    wave = 100 + 10 * np.sin(2 * np.pi * np.arange(60) / season) + 0.1 * np.arange(60)
    model = Theta(Signature("forecast", 1, season=season)).double()
    fits = model.fit_series({"asked": wave[:length], "whole": np.tile(wave, 2)})
    assert fits.notes["asked"] == f"fitted without a season: {why}"
    assert not fits.state_of(["asked"])["theta.season"].any()
    assert ("whole" in fits.notes) == (season == 3)


@pytest.mark.parametrize(("field", "value"), [("form", "ABC"), ("decomposition", "x"), ("unfitted_smoothing", 1)])
def test_settings_out_of_range_name_what_is_known(field, value):
    with pytest.raises(ModelError, match=r"auto or one of STM|multiplicative or additive|between 0 and 1"):
        ThetaConfig(**{field: value})
