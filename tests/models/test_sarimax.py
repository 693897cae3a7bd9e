"""statsmodels' SARIMAX as a step: equal to the library at the fit's end and after 100 further points."""

from dataclasses import replace

import numpy as np
import pytest
from statsmodels.tsa.statespace.sarimax import SARIMAX
from statsmodels_cases import (
    LENGTH,
    NONE,
    SEASON,
    SIGNATURE,
    after,
    appended,
    assert_equal,
    at_the_end,
    forecast,
    series,
)

from models.arima import states_of
from models.contract import ModelError
from models.sarimax import Sarimax, SarimaxConfig, converted, estimate

# What a library warns of while it optimises; `fit_each` keeps it from users.
pytestmark = pytest.mark.filterwarnings("ignore::statsmodels.tools.sm_exceptions.ModelWarning")

# order, seasonal order, trend, parameters: the constant, AR, MA, seasonal AR, seasonal MA, the variance.
FORMS = {
    "mean": ((0, 0, 0), (0, 0, 0, 0), "c", [100.0, 9.0]),
    "constant": ((2, 0, 1), (1, 0, 1, SEASON), "c", [4.0, 0.5, 0.2, 0.4, 0.6, 0.3, 2.0]),
    "drift": ((1, 1, 1), (1, 0, 0, SEASON), "c", [0.1, 0.4, -0.6, 0.7, 2.0]),
    "drift over seasons": ((1, 0, 0), (0, 1, 1, SEASON), "c", [0.5, 0.5, -0.6, 2.0]),
    "airline": ((0, 1, 1), (0, 1, 1, SEASON), "n", [-0.5, -0.7, 2.0]),
    "two differences": ((1, 2, 2), (0, 1, 0, SEASON), "n", [0.3, -1.2, 0.4, 2.0]),
    "two seasonal differences": ((0, 1, 1), (1, 2, 0, SEASON), "n", [-0.8, -0.5, 2.0]),
    "differences alone": ((0, 2, 0), (0, 1, 0, SEASON), "n", [2.0]),
}


@pytest.mark.parametrize("gaps", [False, True], ids=["whole", "gaps"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_forecasts_as_the_library_filters_it(form, gaps):
    order, seasonal_order, trend, parameters = FORMS[form]
    past, further = series(gaps=gaps)
    library = SARIMAX(past, order=order, seasonal_order=seasonal_order, trend=trend, use_exact_diffuse=True)
    results = library.filter(parameters)
    fit = converted(results, NONE)
    model = Sarimax(SIGNATURE).double()
    model.places, model.lags = len(fit["mean"]) - len(fit["delta"]), max(1, len(fit["delta"]))
    state = states_of([fit], SIGNATURE, model.places, model.lags)
    assert_equal(at_the_end(model, state), forecast(results))
    assert_equal(after(model, state, further), forecast(appended(results, further)))


@pytest.mark.parametrize("gaps", [False, True], ids=["whole", "gaps"])
def test_a_fit_is_the_librarys_own_maximum(gaps):
    past, further = series(gaps=gaps)
    config = SarimaxConfig(order="0,1,1", seasonal_order="0,1,1", trend="none")
    model = Sarimax(SIGNATURE, config).double()
    fits = model.fit_series({"a": past})
    ours = estimate(past, SEASON, config, np.empty((LENGTH, 0)))[0]
    library = SARIMAX(past, order=(0, 1, 1), seasonal_order=(0, 1, 1, SEASON), use_exact_diffuse=True)
    theirs = library.fit(disp=0, cov_type="none")
    assert ours.llf >= theirs.llf - 1e-3
    np.testing.assert_allclose(ours.params, theirs.params, rtol=0.02)
    assert_equal(at_the_end(model, fits.state), forecast(ours))
    assert_equal(after(model, fits.state, further), forecast(appended(ours, further)))
    assert bool(fits.notes) == gaps


def test_orders_are_chosen_by_aicc_and_what_is_fixed_is_kept():
    past, _ = series()
    chosen = estimate(past, SEASON, SarimaxConfig(), np.empty((LENGTH, 0)))[0]
    assert (chosen.model.k_diff, chosen.model.k_seasonal_diff) == (0, 1)
    worse = estimate(past, SEASON, SarimaxConfig(order="0,0,0", seasonal_order="0,1,0"), np.empty((LENGTH, 0)))[0]
    assert chosen.llf > worse.llf
    assert worse.model.order == (0, 0, 0)
    assert worse.model.seasonal_order == (0, 1, 0, SEASON)
    half = estimate(past, SEASON, SarimaxConfig(seasonal_order="0,1,1", trend="none"), np.empty((LENGTH, 0)))[0]
    assert half.model.seasonal_order == (0, 1, 1, SEASON)
    assert "intercept" not in half.model.param_names


def test_what_is_wrong_with_one_series_is_no_matter_to_the_others():
    everyone = {
        "good": series()[0], "missing": np.full(30, np.nan), "short": np.array([1.0, np.nan, 2.0]),
        "constant": np.full(30, 7.0), "no season": series()[0][:12], "late": np.r_[np.full(20, np.nan), series()[0]],
    }  # fmt: skip
    model = Sarimax(replace(SIGNATURE, season=12), SarimaxConfig("0,1,1", "0,0,0")).double()
    fits = model.fit_series(everyone)
    assert "all of its 30 values are missing" in fits.failures["missing"]
    assert fits.failures["short"] == "2 values are too few for an ARIMA model"
    assert fits.notes["constant"] == "constant: a mean with no spread"
    assert fits.notes["no season"] == "fitted without a season: 12 values are no more than one season of 12"
    assert set(at_the_end(model, fits.state_of(["constant"])).ravel()) == {7.0}
    good, late = (at_the_end(model, fits.state_of([name])) for name in ("good", "late"))
    assert_equal(late, good)


def test_orders_that_the_series_is_too_short_for_are_named():
    model = Sarimax(SIGNATURE, SarimaxConfig(order="3,1,3", seasonal_order="1,1,1"))
    fits = model.fit_series({"a": series()[0][:10]})
    assert fits.failures["a"] == (
        "10 values are too few for an ARIMA model of order (3, 1, 3), seasonal order (1, 1, 1) and season 4"
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"order": "1,1"}, "order is auto or three whole numbers such as 1,1,1, not '1,1'"),
        ({"seasonal_order": "1,-1,0"}, "seasonal_order is auto or three whole numbers"),
        ({"trend": "linear"}, "trend is one of auto, none, constant, not 'linear'"),
    ],
)
def test_settings_out_of_range_are_named(fields, message):
    with pytest.raises(ModelError, match=message):
        SarimaxConfig(**fields)


def test_a_constant_after_two_differences_is_refused():
    model = Sarimax(SIGNATURE, SarimaxConfig(order="0,1,1", seasonal_order="0,1,0", trend="constant"))
    assert "a trend that bends without end; take trend=none" in model.fit_series({"a": series()[0]}).failures["a"]


# Series of 12 values of whose ARMA(2, 2) the likelihood is largest on the unit circle.
ON_THE_CIRCLE = {
    "doubled": [900, 1100, 1400, 1700, 2000, 2000, 1900, 1900, 1700, 2300, 2200, 2600],
    "bent": [1200, 1300, 1500, 1700, 1800, 2400, 2500, 2800, 3200, 4100, 4900, 6200],
    "slow": [900, 900, 1200, 1100, 1600, 1300, 1500, 1800, 2000, 2100, 2300, 2700],
    "uneven": [1100, 1100, 1200, 1100, 1000, 1500, 1600, 1800, 2000, 2400, 2600, 2300],
}


@pytest.mark.parametrize("gaps", [(), (4,)], ids=["whole", "gap"])
@pytest.mark.parametrize("name", ON_THE_CIRCLE)
def test_a_short_series_does_not_get_a_root_on_the_unit_circle_with_forecasts_of_any_size(name, gaps):
    past = np.array(ON_THE_CIRCLE[name], float)
    past[list(gaps)] = np.nan
    model = Sarimax(replace(SIGNATURE, season=1)).double()
    fits = model.fit_series({"a": past})
    assert not fits.failures
    middle = at_the_end(model, fits.state)[:, 2]
    assert np.abs(middle - past[-1]).max() < 3 * np.ptp(past[np.isfinite(past)])


def test_asked_for_orders_with_an_ar_root_on_the_unit_circle_are_refused():
    model = Sarimax(replace(SIGNATURE, season=1), SarimaxConfig(order="2,1,2", trend="constant"))
    fits = model.fit_series({"a": np.array(ON_THE_CIRCLE["uneven"], float)})
    assert fits.failures["a"] == (
        "an AR root of order (2, 1, 2), seasonal order (0, 0, 0) is on the unit circle, where forecasts are of any "
        "size; take more differences or fewer AR terms"
    )


@pytest.mark.parametrize("size", [1e-9, 1e-3, 1e7], ids=["tiny", "small", "large"])
def test_a_series_of_any_size_is_forecast_like_any_other(size):
    past, _ = series()
    airline = SarimaxConfig(order="0,1,1", seasonal_order="0,1,1", trend="none")
    usual, resized = Sarimax(SIGNATURE, airline).double(), Sarimax(SIGNATURE, airline).double()
    expected = at_the_end(usual, usual.fit_series({"a": past}).state)
    found = at_the_end(resized, resized.fit_series({"a": past * size}).state) / size
    assert np.abs(found - expected).max() < 0.02 * (expected[:, -1] - expected[:, 0]).min()
