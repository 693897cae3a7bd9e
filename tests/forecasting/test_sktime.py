import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sktime.forecasting.base import ForecastingHorizon
from sktime.utils._testing.hierarchical import _make_hierarchical
from sktime.utils.estimator_checks import check_estimator

from data.frame import FrameError
from forecasting.metrics import mean_of_quantiles
from forecasting.sktime import LEVELS, MnemoClassifier, MnemoForecaster
from forecasting.task import TaskError
from models.contract import ModelError, StepModel

TINY = {"hidden": 4, "max_epochs": 1, "batch_size": 256}
TINY_MEMORY = {"width": 8, "heads": 2, "blocks": 1, "chunk": 4, "max_epochs": 1, "batch_size": 256}


def walk(length, seed=0, start="2020-01-01", freq="D"):
    values = np.random.default_rng(seed).normal(size=length).cumsum() + 50
    return pd.Series(values, pd.date_range(start, periods=length, freq=freq), name="level")


def panel(*series, names="abcdefgh"):
    return pd.concat({name: one.to_frame() for name, one in zip(names, series, strict=False)}, names=["shop", "day"])


def said(forecaster, values):
    """The mean forecast after the last of the values, by one scan of the fitted model from its initial state."""
    model: StepModel = forecaster.trained_.model
    x = torch.from_numpy(np.asarray(values, np.float32)).reshape(1, -1, model.signature.channels)
    with torch.no_grad():
        predictions, _ = model.scan(x, x.isfinite().float(), model.initial_state(1))
    return mean_of_quantiles(predictions[0, -1].double().numpy(), np.array(LEVELS))


# --- sktime's own conformance checks --------------------------------------------------------------------------------

# What a network goes through of them here; tests/benchmarks/bench_sktime.py runs all of them over the whole catalog.
STREAMING = ["test_update_predict_single", "test_persistence_via_pickle"]
NETWORK = [*STREAMING, "test_predict_quantiles", "test_hierarchical_with_exogenous", "test_fit_idempotent"]
CLASSIFYING = [
    "test_classifier_output", "test_fit_idempotent", "test_persistence_via_pickle",
    "test_non_state_changing_method_contract",
]  # fmt: skip
# Two thirds of the time of all checks, most of it in sktime itself: one forecaster goes through it, the ridge.
LONG = ["test_update_predict_predicted_index"]


@pytest.mark.filterwarnings("ignore")  # the checks use what sktime itself deprecates
@pytest.mark.parametrize(
    ("estimator", "checks"),
    [
        (MnemoForecaster("naive"), {"tests_to_exclude": LONG}),
        (MnemoForecaster("ridge", horizon=5, settings={"penalty": 0.1}), {}),
        (MnemoForecaster("gru", settings=TINY), {"tests_to_run": NETWORK}),
        (MnemoForecaster("titans-lmm", settings=TINY_MEMORY), {"tests_to_run": STREAMING}),
        # Too little for it, so the substitute goes through them.
        (MnemoForecaster("garch"), {"tests_to_run": STREAMING}),
        (MnemoForecaster("ridge", calibrate=True), {"tests_to_run": STREAMING}),
        (MnemoClassifier("naive"), {}),
        (MnemoClassifier("gru", settings=TINY), {"tests_to_run": CLASSIFYING}),
    ],
    ids=lambda value: f"{type(value).__name__}-{value.model}" if hasattr(value, "model") else "",
)
def test_sktimes_own_checks_pass(estimator, checks):
    results = check_estimator(estimator, verbose=False, **checks)
    asked = checks.get("tests_to_run", [])
    assert {name.split("[")[0] for name in results} >= set(asked)
    assert len(results) >= (10 if asked else 100)
    assert {name: result for name, result in results.items() if result != "PASSED"} == {}


# --- forecasts ------------------------------------------------------------------------------------------------------


def test_a_forecast_is_what_the_model_says_after_the_last_observation():
    y = walk(60)
    forecaster = MnemoForecaster("ridge").fit(y, fh=[1, 2, 3])
    predicted = forecaster.predict()
    np.testing.assert_allclose(predicted, said(forecaster, y), rtol=1e-6)
    assert predicted.name == "level"
    assert list(predicted.index) == list(pd.date_range("2020-03-01", periods=3))


@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(31, 59), max_size=4))
def test_updates_at_any_cuts_say_what_one_scan_says_and_refit_nothing(cuts):
    y = walk(60)
    forecaster = MnemoForecaster("ridge").fit(y[:30], fh=[1, 2])
    trained = forecaster.trained_
    for begin, end in zip([30, *sorted(cuts)], [*sorted(cuts), 60], strict=True):
        if end > begin:
            forecaster.update(y[begin:end])
    assert forecaster.trained_ is trained
    np.testing.assert_allclose(forecaster.predict(), said(forecaster, y), rtol=1e-4)


def test_an_update_reads_the_new_values_alone(monkeypatch):
    y = walk(60)
    forecaster = MnemoForecaster("gru", settings=TINY).fit(y[:58], fh=1)
    model, lengths = forecaster.trained_.model, []
    last = model.last
    monkeypatch.setattr(model, "last", lambda x, *rest: lengths.append(x.shape[1]) or last(x, *rest))
    forecaster.update(y[58:])
    assert lengths == [2]


def test_a_missing_time_is_a_masked_step():
    y = walk(60)
    gap = y.copy()
    gap.iloc[52:55] = np.nan
    one = MnemoForecaster("gru", settings=TINY).fit(y[:50], fh=[1, 2]).update(gap[50:])
    other = MnemoForecaster("gru", settings=TINY).fit(y[:50], fh=[1, 2]).update(gap[50:].dropna())
    later = MnemoForecaster("gru", settings=TINY).fit(y[:50], fh=[1, 2]).update(y[50:52]).update(y[55:])
    np.testing.assert_allclose(one.predict(), said(one, gap), rtol=1e-5)
    pd.testing.assert_series_equal(other.predict(), one.predict())
    np.testing.assert_allclose(later.predict(), one.predict(), rtol=1e-5)


def test_what_was_seen_already_is_skipped():
    y = walk(60)
    forecaster = MnemoForecaster("ridge").fit(y[:50], fh=[1, 2])
    expected = forecaster.clone().fit(y[:50], fh=[1, 2]).update(y[50:]).predict()
    pd.testing.assert_series_equal(forecaster.update(y[40:]).predict(), expected)


def test_a_cutoff_before_the_state_is_refused():
    y = walk(60)
    forecaster = MnemoForecaster("naive").fit(y, fh=1).update(y[:30])
    with pytest.raises(TaskError, match=r"has seen all up to 2020-02-29.*cannot go back to a cutoff of 2020-01-30"):
        forecaster.predict()


@pytest.mark.parametrize(
    "index",
    [
        pd.RangeIndex(7, 48),
        pd.period_range("2001-01", periods=41, freq="M"),
        pd.period_range("2001-01", periods=41, freq="2Q"),
        pd.date_range("2001-01-01", periods=41, freq="MS"),
        pd.date_range("2001-01-01", periods=41, freq="h", tz="Europe/Berlin"),
    ],
    ids=["range", "months", "half years", "month starts", "hours with a zone"],
)
def test_times_come_back_as_they_are(index):
    y = pd.Series(np.arange(41.0), index)
    forecaster = MnemoForecaster("naive", season=1).fit(y[:30], fh=[1, 3]).update(y[30:38])
    predicted = forecaster.predict()
    assert predicted.index.dtype == index.dtype
    assert list(predicted.index) == [index[38], index[40]]
    np.testing.assert_allclose(predicted, 37, rtol=1e-6)


def test_the_season_is_what_is_usual_for_the_index():
    y = pd.Series(np.tile(np.arange(12.0), 4), pd.period_range("2001-01", periods=48, freq="M"))
    np.testing.assert_allclose(MnemoForecaster("naive").fit(y, fh=[1, 2, 3]).predict(), [0, 1, 2], atol=1e-6)


# --- series that are left out ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["ridge", "ets"])
def test_a_series_without_a_value_is_left_out_and_the_others_are_as_without_it(model):
    one, two = walk(40), walk(40, seed=1)
    forecaster = MnemoForecaster(model, horizon=3)
    with pytest.warns(UserWarning, match=r"left out 1 series: b: all of its values are missing\."):
        forecaster.fit(panel(one[:30], np.nan * one[:30], two[:30]))
    alone = MnemoForecaster(model, horizon=3).fit(panel(one[:30], two[:30], names="ac"))
    predicted = forecaster.predict(fh=[1, 3])
    assert predicted.loc["b"].isna().all().all()
    assert list(predicted.loc["b"].index) == list(predicted.loc["a"].index)
    pd.testing.assert_frame_equal(predicted.loc[["a", "c"]], alone.predict(fh=[1, 3]))
    assert forecaster.predict_interval(fh=[1], coverage=0.8).loc["a"].notna().all().all()
    with pytest.raises(FrameError, match="y is missing in all rows of 1 of 1 series"):
        MnemoForecaster(model, horizon=3).fit(np.nan * one)
    later = panel(one[30:], two[30:], two[30:])
    if model == "ets":  # which knows nothing of a series that it was not fitted to
        with pytest.warns(UserWarning, match="left out 1 series: b: it has no fit"):
            forecaster.update(later)
        assert list(forecaster.failures_) == ["b"]
        assert forecaster.predict(fh=[1]).loc["b"].isna().all().all()
    else:
        forecaster.update(later)
        assert not forecaster.failures_
        assert forecaster.predict(fh=[1]).loc["b"].notna().all().all()
    expected = alone.update(panel(one[30:], two[30:], names="ac")).predict(fh=[1])
    pd.testing.assert_frame_equal(forecaster.predict(fh=[1]).loc[["a", "c"]], expected)


def test_an_update_of_another_frequency_is_named_and_the_others_are_stepped():
    one, two = walk(40), walk(40, seed=1)
    forecaster = MnemoForecaster("theta", horizon=2).fit(panel(one[:30], two[:30]))
    before = forecaster.predict(fh=[1]).loc["b"]
    off = two[30:].set_axis(two.index[30:] + pd.Timedelta("7h"))
    with pytest.warns(UserWarning, match=r"left out 1 series: b: 10 of 11 observations are off the grid of 'D'"):
        forecaster.update(panel(one[30:], off))
    predicted = forecaster.predict(fh=[1])
    pd.testing.assert_frame_equal(predicted.loc["b"], before)
    alone = MnemoForecaster("theta", horizon=2).fit(panel(one[:30])).update(panel(one[30:]))
    pd.testing.assert_frame_equal(predicted.loc[["a"]], alone.predict(fh=[1]))
    with pytest.raises(TaskError, match=r"b: 10 of 11 observations are off the grid of 'D'"):
        forecaster.update(panel(off, names="b"))


def test_a_series_of_which_nothing_is_known_ahead_is_named_and_the_others_are_forecast():
    promotions = (np.random.default_rng(3).random(44) < 0.4).astype(float)
    X = panel(*2 * [pd.Series(promotions, pd.date_range("2020-01-01", periods=44), name="promotion")])
    y = panel(walk(40), walk(40, seed=1))
    level = {"form": "local-level", "seasonal": "none"}
    forecaster = MnemoForecaster("components", horizon=2, season=1, settings=level).fit(y, X=X.loc[y.index])
    known = X.drop(y.index)
    gap = known.copy()
    gap.loc[("b", "2020-02-11"), "promotion"] = np.nan
    expected = forecaster.predict(fh=[1, 2], X=known)
    with pytest.warns(UserWarning, match="left out 1 series: b: X of predict lacks promotion of b at 2020-02-11"):
        predicted = forecaster.predict(fh=[1, 2], X=gap)
    pd.testing.assert_frame_equal(predicted.loc["a"], expected.loc["a"])
    assert predicted.loc["b"].isna().all().all()
    assert list(forecaster.failures_) == ["b"]


# --- panels ---------------------------------------------------------------------------------------------------------


def test_each_series_of_a_panel_is_forecast_from_its_own_end():
    long, short, other = walk(60, 1), walk(45, 2), walk(60, 3)
    y = panel(long, short, other, names=["z", "b", "a"])
    forecaster = MnemoForecaster("ridge").fit(y, fh=[1, 2])
    predicted = forecaster.predict()
    assert list(predicted.index.get_level_values("shop")) == ["z", "z", "b", "b", "a", "a"]  # as they came
    for name, one in (("z", long), ("b", short), ("a", other)):
        np.testing.assert_allclose(predicted.loc[name, "level"], said(forecaster, one), rtol=1e-6)
        assert predicted.loc[name].index[0] == one.index[-1] + pd.Timedelta("1D")


def test_absolute_times_reach_as_far_as_the_shortest_series_needs():
    y = panel(walk(60, 1), walk(58, 2))
    fh = ForecastingHorizon(pd.date_range("2020-03-01", periods=2), is_relative=False, freq="D")
    forecaster = MnemoForecaster("ridge").fit(y, fh=fh)
    assert forecaster.trained_.model.signature.horizon == 4
    predicted = forecaster.predict()
    np.testing.assert_allclose(predicted.loc["b", "level"], said(forecaster, walk(58, 2))[2:], rtol=1e-6)


def test_one_series_of_a_panel_may_be_updated_and_a_new_one_may_join():
    first, second, late = walk(60, 1), walk(60, 2), walk(25, 3)
    forecaster = MnemoForecaster("ridge").fit(panel(first[:50], second[:50]), fh=[1])
    forecaster.update(panel(second[50:], late, names="bc"))
    predicted = forecaster.predict()
    for name, one in (("a", first[:50]), ("b", second), ("c", late)):
        np.testing.assert_allclose(predicted.loc[name, "level"], said(forecaster, one)[:1], rtol=1e-5)


def test_a_model_fitted_to_each_series_goes_on_from_its_fits():
    from statsforecast.models import AutoETS

    both = panel(walk(60, seed=1), walk(80, seed=2))
    forecaster = MnemoForecaster("ets").fit(both, fh=[1, 3])
    found = forecaster.predict()
    for name, series in (("a", walk(60, seed=1)), ("b", walk(80, seed=2))):
        theirs = AutoETS(season_length=7).fit(series.to_numpy()).predict(3)["mean"][[0, 2]]
        np.testing.assert_allclose(found.loc[name].to_numpy()[:, 0], theirs, rtol=1e-5)
    more = walk(90, seed=2)[80:].to_frame().set_axis(both.columns, axis=1)
    forecaster.update(pd.concat({"b": more}, names=["shop", "day"]))
    assert np.abs(forecaster.predict().loc["b"].to_numpy() - found.loc["b"].to_numpy()).max() > 0
    with pytest.raises(TaskError, match=r"c: it has no fit, and this model is fitted to each series: fit again"):
        forecaster.update(panel(walk(9, start="2021-01-01"), names="c"))


def test_a_hierarchy_keeps_its_levels():
    y = _make_hierarchical(hierarchy_levels=(2, 3), min_timepoints=20, max_timepoints=20, random_state=0)
    predicted = MnemoForecaster("ridge").fit(y, fh=[1, 2]).predict()
    assert predicted.index.names == y.index.names
    assert predicted.index.droplevel(-1).unique().equals(y.index.droplevel(-1).unique())


# --- quantiles, horizons, covariates --------------------------------------------------------------------------------


def test_quantiles_are_the_models_own_and_linear_between():
    y = walk(80)
    forecaster = MnemoForecaster("ridge").fit(y, fh=[1, 2, 3])
    table = forecaster.predict_quantiles(alpha=[0.2, 0.25, 0.3])["level"]
    own = forecaster.streams_.prediction[0].numpy()
    np.testing.assert_allclose(table[0.2], own[:, LEVELS.index(0.2)], rtol=1e-6)
    np.testing.assert_allclose(table[0.25], (table[0.2] + table[0.3]) / 2)
    interval = forecaster.predict_interval(coverage=0.9)["level"][0.9]
    np.testing.assert_allclose(interval["upper"], own[:, LEVELS.index(0.95)], rtol=1e-6)


def test_quantiles_outside_the_levels_are_refused():
    forecaster = MnemoForecaster("ridge", quantiles=(0.1, 0.5, 0.9)).fit(walk(40), fh=1)
    with pytest.raises(TaskError, match=r"from 0.1 to 0.9, asked for 0.05, 0.95. Give wider quantiles"):
        forecaster.predict_interval(coverage=0.9)


def test_a_step_beyond_the_horizon_is_refused_and_named():
    forecaster = MnemoForecaster("ridge", horizon=4).fit(walk(40))
    assert len(forecaster.predict(fh=[1, 4])) == 2
    with pytest.raises(TaskError, match=r"steps 2 to 6 .* fitted for a horizon of 4.* horizon=6 or more"):
        forecaster.predict(fh=[2, 6])


def test_covariates_enter_in_fit_and_update():
    y, X = walk(60), pd.DataFrame({"price": walk(60, 1), 2: walk(60, 2)})
    forecaster = MnemoForecaster("gru", settings=TINY).fit(y[:50], X=X[:50], fh=1)
    assert forecaster.trained_.model.signature.channels == 3
    forecaster.update(y[50:], X=X[50:])
    everything = np.column_stack([y, X["price"], X[2]])
    np.testing.assert_allclose(forecaster.predict(), said(forecaster, everything), rtol=1e-5)
    other = forecaster.clone().fit(y[:50], X=X[:50], fh=1).update(y[50:], X=X[50:] + 1).predict()
    assert abs(other.iloc[0] - forecaster.predict().iloc[0]) > 1e-4
    with pytest.raises(TaskError, match=r"update needs the X of fit, with the columns price, 2; found none"):
        forecaster.update(walk(61)[60:])


def test_a_model_without_covariates_says_so():
    assert not MnemoForecaster("naive").get_tag("capability:exogenous")
    assert MnemoForecaster("gru").get_tag("capability:exogenous")


# --- what can go wrong ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["ridge", "gru"])
def test_short_series_are_learned_from_as_far_as_they_go(model):
    forecaster = MnemoForecaster(model, settings=TINY if model == "gru" else None).fit(walk(6), fh=[1, 2, 3])
    assert np.isfinite(forecaster.predict()).all()


@pytest.mark.parametrize("model", ["ridge", "gru"])
def test_a_series_no_longer_than_the_horizon_teaches_nothing(model):
    with pytest.raises((TaskError, ModelError), match=r"no training window|longer than the horizon"):
        MnemoForecaster(model, substitute=None).fit(walk(3), fh=[1, 2, 3])


def test_what_cannot_be_fitted_is_forecast_by_a_substitute_that_is_named_for_every_series():
    y = panel(walk(30, 1), walk(30, 2))
    with pytest.warns(UserWarning, match=r"\(garch\): naive forecasts in its place: garch needs at least"):
        forecaster = MnemoForecaster("garch").fit(y, fh=[1, 2, 3])
    assert {name: one.name for name, one in forecaster.substitutes_.items()} == {"a": "naive", "b": "naive"}
    assert "at least 100 returns" in forecaster.substitutes_["b"].reason
    pd.testing.assert_frame_equal(forecaster.predict(), MnemoForecaster("naive").fit(y, fh=[1, 2, 3]).predict())
    forecaster.update(panel(walk(33, 1)[30:], walk(33, 2)[30:]))
    with pytest.raises(ModelError, match="at least 100 returns"):
        MnemoForecaster("garch", substitute=None).fit(y, fh=[1, 2, 3])
    with pytest.raises(ModelError, match="shrinkage above 0"):  # a setting is no matter of the data
        MnemoForecaster("xgboost", settings={"shrinkage": 0.0}).fit(y, fh=1)


# --- calibration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["ridge", "theta"])
def test_calibrated_quantiles_are_stretched_by_errors_of_a_model_that_did_not_see_their_outcomes(model):
    y = walk(120)
    plain = MnemoForecaster(model).fit(y, fh=[1, 2, 3])
    forecaster = MnemoForecaster(model, calibrate=True).fit(y, fh=[1, 2, 3])
    pd.testing.assert_series_equal(forecaster.predict(), plain.predict())
    raw = forecaster.streams_.prediction.double().numpy()[0]
    np.testing.assert_allclose(plain.predict_quantiles(alpha=list(LEVELS)), raw)
    np.testing.assert_allclose(
        forecaster.predict_quantiles(alpha=list(LEVELS)), forecaster.calibration_.apply(raw), rtol=1e-6
    )
    assert (forecaster.calibration_.factors != 1).any()
    assert forecaster.calibration_.scores == 3 * 22  # cut-offs of the last fifth, 24 steps, three ahead
    outlier = y.copy()
    outlier.iloc[-1] += 1000  # moves the model and its forecast, but what was learned before it is judged by it
    shaken = MnemoForecaster(model, calibrate=True).fit(outlier, fh=[1, 2, 3])
    assert (shaken.calibration_.factors >= forecaster.calibration_.factors).all()


def test_too_little_to_calibrate_on_is_said():
    with pytest.warns(UserWarning, match=r"is not calibrated: the validation part gives \d+ outcomes"):
        forecaster = MnemoForecaster("naive", calibrate=True).fit(walk(20), fh=[1, 2])
    assert forecaster.calibration_ is None
    plain = MnemoForecaster("naive").fit(walk(20), fh=[1, 2])
    pd.testing.assert_frame_equal(forecaster.predict_interval(), plain.predict_interval())


def test_a_closed_form_gets_no_more_lags_than_the_data_can_teach():
    assert MnemoForecaster("ridge").fit(walk(60), fh=[1, 2]).trained_.config["lags"] == 14  # 45 rows, 3 a lag
    assert MnemoForecaster("ridge", settings={"lags": 30}).fit(walk(60), fh=1).trained_.config["lags"] == 30
    many = panel(*(walk(120, seed) for seed in range(8)))
    assert MnemoForecaster("ridge").fit(many, fh=1).trained_.config["lags"] == 87  # 264 rows


def test_series_too_short_to_learn_from_are_named_and_still_forecast():
    y = panel(walk(60, 1), walk(7, 2))
    with pytest.warns(UserWarning, match=r"1 of 2 series are too short for a horizon of 5 .*: b"):
        forecaster = MnemoForecaster("gru", settings=TINY).fit(y, fh=range(1, 6))
    assert forecaster.predict().loc["b"].notna().all().all()


def test_bad_input_is_refused_by_name():
    with pytest.raises(ModelError, match="unknown model 'arima2'"):
        MnemoForecaster("arima2")
    with pytest.raises(TaskError, match="gru has no field 'width2'"):
        MnemoForecaster("gru", settings={"width2": 3}).fit(walk(40), fh=1)
    with pytest.raises(ModelError, match="bigru does not forecast"):
        MnemoForecaster("bigru").fit(walk(40), fh=1)
    y = walk(40)
    y.iloc[:] = np.nan
    with pytest.raises(FrameError, match=r"missing in all rows of 2 of 2 series: a, b\. Leave"):
        MnemoForecaster("naive").fit(panel(y, y), fh=1)
    forecaster = MnemoForecaster("naive").fit(walk(40), fh=1)
    with pytest.raises(FrameError, match="infinite"):
        forecaster.update(walk(41)[40:] * np.inf)


def test_a_seed_decides_everything():
    y = walk(60)
    first, again, other = (
        MnemoForecaster("gru", settings=TINY, random_state=seed).fit(y, fh=1).predict().iloc[0] for seed in (1, 1, 2)
    )
    assert first == again != other


# --- classes --------------------------------------------------------------------------------------------------------


def waves(count, seed=0, length=40, channels=2):
    """Slow and fast waves of two channels, with labels whose order as text is not their own."""
    random = np.random.default_rng(seed)
    y = np.array([2, 10] * (count // 2))
    t = np.arange(length)
    X = [
        pd.DataFrame({c: np.sin(t * label / 4 + random.uniform(0, 6)) for c in range(channels)})
        + random.normal(0, 0.1, (length, channels))
        for label in y
    ]
    return X, y


@pytest.mark.parametrize("model", ["gru", "bigru"])
def test_a_classifier_tells_slow_from_fast_waves(model):
    own = {"hidden": 16, "max_epochs": 20, "learning_rate": 0.02}
    classifier = MnemoClassifier(model, settings=own).fit(*waves(60))
    X, y = waves(40, seed=1)
    assert (classifier.predict(X) == y).mean() > 0.9
    probabilities = classifier.predict_proba(X)
    np.testing.assert_array_equal(classifier.classes_[probabilities.argmax(1)], classifier.predict(X))


def test_series_of_other_lengths_are_read_to_their_own_ends():
    X, y = waves(20)
    classifier = MnemoClassifier("gru", settings=TINY).fit(X, y)
    mixed = [one.iloc[: 20 + place] for place, one in enumerate(X)]
    alone = np.concatenate([classifier.predict_proba([one]) for one in mixed])
    np.testing.assert_allclose(classifier.predict_proba(mixed), alone, rtol=1e-5)


def test_a_classifier_refuses_other_channels():
    classifier = MnemoClassifier("naive").fit(*waves(10))
    with pytest.raises(TaskError, match="fitted on 2 channels, got 3"):
        classifier.predict(waves(4, channels=3)[0])
