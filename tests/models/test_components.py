"""statsmodels' UnobservedComponents as a step: equal to the library at the fit's end and after 100 further points."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from statsmodels.tsa.statespace.structural import UnobservedComponents
from statsmodels_cases import (
    HORIZON,
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

from models.components import FORMS, Components, ComponentsConfig, converted, estimate, states_of
from models.contract import ModelError

# What a library warns of while it optimises; `fit_each` keeps it from users.
pytestmark = pytest.mark.filterwarnings("ignore::statsmodels.tools.sm_exceptions.ModelWarning")

VARIANCES = {"sigma2.irregular": 1.0, "sigma2.level": 0.4, "sigma2.trend": 0.01, "sigma2.seasonal": 0.05}


@pytest.mark.parametrize("gaps", [False, True], ids=["whole", "gaps"])
@pytest.mark.parametrize("season", ["stochastic", "fixed", "none"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_forecasts_as_the_library_filters_it(form, season, gaps):
    past, further = series(gaps=gaps)
    library = UnobservedComponents(
        past, level=FORMS[form], seasonal=None if season == "none" else SEASON,
        stochastic_seasonal=season == "stochastic", use_exact_diffuse=True,
    )  # fmt: skip
    results = library.filter([VARIANCES[name] for name in library.param_names])
    model = Components(SIGNATURE).double()
    state = states_of([converted(results, model.places, NONE, "")])
    assert_equal(at_the_end(model, state), forecast(results))
    assert_equal(after(model, state, further), forecast(appended(results, further)))


@pytest.mark.parametrize("season", [2, 3, 7, 24])
def test_seasons_longer_and_shorter_than_the_horizon(season):
    past, further = series()
    results = UnobservedComponents(past, level="lltrend", seasonal=season, use_exact_diffuse=True).filter(
        [1.0, 0.4, 0.01, 0.05]
    )
    model = Components(replace(SIGNATURE, season=season)).double()
    state = states_of([converted(results, model.places, NONE, "")])
    assert_equal(at_the_end(model, state), forecast(results))
    assert_equal(after(model, state, further), forecast(appended(results, further)))


@pytest.mark.parametrize("gaps", [False, True], ids=["whole", "gaps"])
def test_a_fit_is_the_librarys_own_maximum(gaps):
    past, further = series(gaps=gaps)
    config = ComponentsConfig("local-level", "stochastic")
    model = Components(SIGNATURE, config).double()
    fits = model.fit_series({"a": past})
    ours = estimate(past, SEASON, config)
    library = UnobservedComponents(past, level="llevel", seasonal=SEASON, use_exact_diffuse=True, loglikelihood_burn=5)
    assert ours.llf >= library.fit(disp=0, cov_type="none").llf - 1e-3
    assert_equal(at_the_end(model, fits.state), forecast(ours))
    assert_equal(after(model, fits.state, further), forecast(appended(ours, further)))


def test_components_are_chosen_by_aicc_and_what_is_fixed_is_kept():
    past, _ = series()
    chosen = estimate(past, SEASON, ComponentsConfig())
    others = [estimate(past, SEASON, ComponentsConfig(form, "stochastic")) for form in FORMS]
    assert chosen.aicc <= min(other.aicc for other in others)
    assert chosen.model.seasonal
    assert [other.model.trend_specification for other in others] == list(FORMS.values())
    plain = estimate(past, SEASON, ComponentsConfig("drift", "none"))
    assert not plain.model.seasonal
    fixed = estimate(past, SEASON, ComponentsConfig("drift", "fixed"))
    assert "sigma2.seasonal" not in fixed.model.param_names


def test_series_of_all_forms_share_a_batch():
    past, further = series()
    one = Components(SIGNATURE).double()
    forms = [ComponentsConfig("local-level", "none"), ComponentsConfig("drift", "fixed")]
    states = [Components(SIGNATURE, form).double().fit_series({"a": past}).state for form in forms]
    together = {name: torch.cat([state[name] for state in states]) for name in states[0]}
    x = torch.from_numpy(further).view(1, -1, 1).repeat(2, 1, 1)
    with torch.no_grad():
        found = one.scan(x, torch.ones_like(x), together)[0][:, -1].numpy()
    for row, state in zip(found, states, strict=True):
        assert_equal(row, after(one, state, further))


def test_a_series_that_was_not_fitted_walks_from_its_first_value():
    model = Components(SIGNATURE).double()
    x = torch.tensor([[[float("nan")], [4.0], [8.0], [float("nan")], [10.0]]], dtype=torch.float64)
    prediction, state = model.scan(x, x.isfinite().double(), model.initial_state(1))
    assert prediction[0, :, HORIZON - 1, 2].tolist() == [0, 4, 8, 8, 10]
    # errors 4 over one step and 2 over two, whose variance is twice as large
    assert state["components.sigma2"].item() == pytest.approx((16 + 4 / 2) / 2)


def test_what_is_wrong_with_one_series_is_no_matter_to_the_others():
    everyone = {
        "good": series()[0], "missing": np.full(30, np.nan), "short": np.array([1.0, np.nan, 2.0]),
        "constant": np.full(30, 7.0), "no season": series()[0][:12], "gap": series(gaps=True)[0],
    }  # fmt: skip
    model = Components(replace(SIGNATURE, season=12), ComponentsConfig("local-level")).double()
    fits = model.fit_series(everyone)
    assert "all of its 30 values are missing" in fits.failures["missing"]
    assert fits.failures["short"] == "2 values are too few for components"
    assert fits.notes["constant"] == "constant: a level with no spread"
    constant = fits.state_of(["constant"])
    assert set(at_the_end(model, constant).ravel()) == {7.0}
    assert set(after(model, constant, np.array([7.0, np.nan, 9.0, 7.0])).ravel()) == {7.0}
    assert fits.notes["no season"] == "fitted without a season: 12 values are no more than one season of 12"
    missing = int(np.isnan(everyone["gap"]).sum())
    assert fits.notes["gap"] == f"{missing} of 80 values are missing: skipped"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"form": "cubic"}, "form is auto or one of local-level, local-trend, smooth-trend, drift, not 'cubic'"),
        ({"seasonal": "yes"}, "seasonal is one of auto, stochastic, fixed, none, not 'yes'"),
    ],
)
def test_settings_out_of_range_are_named(fields, message):
    with pytest.raises(ModelError, match=message):
        ComponentsConfig(**fields)


@pytest.mark.parametrize("size", [1e-9, 1e-3, 1e7], ids=["tiny", "small", "large"])
def test_a_series_of_any_size_is_forecast_like_any_other(size):
    past, _ = series()
    usual, resized = Components(SIGNATURE).double(), Components(SIGNATURE).double()
    expected = at_the_end(usual, usual.fit_series({"a": past}).state)
    found = at_the_end(resized, resized.fit_series({"a": past * size}).state) / size
    assert np.abs(found - expected).max() < 0.02 * (expected[:, -1] - expected[:, 0]).min()
