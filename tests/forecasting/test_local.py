"""Local models through the whole house: fitted per series, judged in one pass, bundled with their series."""

import io
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from data.frame import Channel, Dataset, Splits
from data.panel import to_panel
from forecasting.backtest import backtest, compare
from forecasting.bundle import BundleError
from forecasting.cli import app
from forecasting.conformal import calibrate
from forecasting.export import ExportError, FittedSeries, export_bundle
from forecasting.passes import cutoff_positions, local_pass
from forecasting.pipeline import select, train_bundle
from forecasting.results import find_results, write_report
from forecasting.runtime import load_bundle
from forecasting.task import Task, TaskError
from forecasting.training import fit_local, fit_model
from forecasting.windows import Parts, split
from models.catalog import build, entry

LENGTH, TEST, HORIZON, SEASON = 60, 12, 4, 4
FAST = {"max_p": 1, "max_q": 1, "max_seasonal_p": 0, "max_seasonal_q": 1}


def frame(length: int = LENGTH, bad: bool = True) -> pd.DataFrame:
    """Two series of different forms and, with `bad`, one that no ETS model can be fitted to: it begins too late."""
    rng = np.random.default_rng(11)
    t = np.arange(LENGTH)
    season = 100 + t + 10 * np.sin(2 * np.pi * t / SEASON) + rng.normal(size=LENGTH)
    walk = 50 + rng.normal(size=LENGTH).cumsum()
    late = np.where(t < LENGTH - TEST - 3, np.nan, walk)
    values = {"season": season, "walk": walk} | ({"late": late} if bad else {})
    times = pd.date_range("2020-01-31", periods=LENGTH, freq="ME")[:length]
    parts = [pd.DataFrame({"unique_id": name, "ds": times, "y": y[:length]}) for name, y in values.items()]
    return pd.concat(parts, ignore_index=True).sort_values(["unique_id", "ds"], ignore_index=True)


def dataset(**more) -> Dataset:
    from data.frame import Channel

    table = frame(**more)
    return Dataset(
        "panel", table, "forecast", (Channel("y", ""),), "ME", SEASON, HORIZON, Splits(test_size=TEST), "y", ()
    )


@pytest.fixture(scope="module")
def task() -> Task:
    return Task("forecast", "y", dataset().channels, "ME", horizon=HORIZON, season=SEASON)


@pytest.fixture(scope="module")
def parts(task) -> Parts:
    return split(dataset(), to_panel(dataset()), task)


def settings_of(name: str) -> dict[str, int]:
    return FAST if name == "arima" else {}


@pytest.mark.parametrize("name", ["ets", "arima"])
def test_every_cutoff_is_what_a_state_stepped_up_to_there_predicts(name, task, parts):
    trained = fit_model(name, task, parts, settings=settings_of(name))
    positions = [cutoff_positions(span, HORIZON) for span in parts.test]
    rows = local_pass(trained, parts.test, positions)
    for row in rows:
        series = row.span.series
        state = trained.states.fits.state_of([series.unique_id])
        end = trained.states.ends[series.unique_id]
        assert end == row.span.begin == LENGTH - TEST
        with torch.no_grad():
            np.testing.assert_array_equal(row.values[0], trained.model.predict(state)[0])
            for at, position in enumerate(row.positions[1:], 1):
                x = torch.tensor(series.values[end : position + 1, 0]).float()[None]
                stepped = trained.model.passed(x, state)
                np.testing.assert_allclose(row.values[at], trained.model.predict(stepped)[0], rtol=1e-5)


def test_the_test_is_not_fitted_to(task, parts):
    other = [replace(span, series=replace(span.series, values=span.series.values.copy())) for span in parts.test]
    for span in other:
        span.series.values[span.begin :] *= 3
    shown = {span.series.unique_id: span.series for span in other}
    train = [replace(span, series=shown[span.series.unique_id]) for span in parts.train]
    validation = [replace(span, series=shown[span.series.unique_id]) for span in parts.validation]
    one = fit_model("ets", task, parts)
    two = fit_model("ets", task, Parts(train, validation, other))
    for name, value in one.states.fits.state.items():
        assert torch.equal(value, two.states.fits.state[name]), name


def test_what_is_judged_on_validation_is_fitted_to_the_training_part_alone(task, parts):
    trained = fit_model("ets", task, Parts(parts.train, parts.validation, parts.validation))
    begins = {span.series.unique_id: span.begin for span in parts.validation}
    assert {name: trained.states.ends[name] for name in begins} == begins


def test_a_report_says_what_a_fit_left_out():
    t = pd.date_range("2024-01-01", periods=90, freq="D")
    rng = np.random.default_rng(0)
    frame = pd.concat(
        pd.DataFrame({"unique_id": name, "ds": t, "y": values})
        for name, values in (("flat", np.full(90, 2.0)), ("walk", rng.normal(size=90).cumsum()))
    )
    dataset = Dataset("two", frame, "forecast", (Channel("y", ""),), "D", 7, 1, Splits(), "y")
    report = backtest(dataset, ["quantile-regression"], Task.of(dataset, horizon=2), settings={"lags": 14})
    (note,) = [note for note in report.notes if note.startswith("quantile-regression:")]
    assert "drawn positions do not move: left out" in note


def test_a_report_names_the_substitute_and_judges_all_series(task, parts):
    report = compare(parts, ["ets"], task)
    assert sorted(report.forecasts[report.forecasts["model"] == "ets"]["unique_id"].unique()) == [
        "late",
        "season",
        "walk",
    ]
    assert report.forecasts[report.forecasts["model"] == "ets"]["mean"].notna().all()
    fits, forecasts = (note for note in report.notes if note.startswith("ets:"))
    assert "1 of 3 series have a substitute: late: simple exponential smoothing from the first value, for " in fits
    assert "values are too few" in fits
    assert "ets: 9 of 27 forecasts, of 1 of 3 series, are those of simple exponential smoothing" in forecasts
    board = report.leaderboard.set_index("model")
    assert board.loc["ets", "mase"] < board.loc["naive", "mase"]


SMOOTHING = "simple exponential smoothing from the first value"


def test_every_row_says_whose_forecast_it_is_and_the_summary_counts_them(task, parts, tmp_path):
    report = compare(parts, ["ets"], task)
    rows = report.forecasts
    instead = rows["model"].eq("ets") & rows["unique_id"].eq("late")
    assert list(rows.columns)[-1] == "substitute"
    assert (rows.loc[instead, "substitute"] == SMOOTHING).all()
    assert (rows.loc[~instead, "substitute"] == "").all()
    cutoffs = instead.sum() // HORIZON
    assert len(report.substitutes) == cutoffs == report.leaderboard.set_index("model")["n_substituted"]["ets"]
    assert report.leaderboard.set_index("model")["n_substituted"]["naive"] == 0
    assert report.substitutes["reason"].str.contains("too few").all()
    write_report(report, tmp_path / "run", dataset="panel", seed=0, settings={})
    (result,) = find_results(tmp_path)
    assert result.run["substituted"] == {"ets": {"series": 1, "forecasts": cutoffs}}
    pd.testing.assert_series_equal(result.forecasts()["substitute"], rows["substitute"])


def test_a_shared_model_names_the_series_of_which_it_could_learn_nothing(tmp_path):
    """And learns of the others what it learns of them alone."""
    rng = np.random.default_rng(2)
    walks = {name: 100 * np.exp(0.02 * rng.normal(size=130).cumsum()) for name in ("calm", "falls")}
    values = walks | {"falls": walks["falls"] - 200, "flat": np.full(130, 7.0)}
    times = pd.date_range("2024-01-01", periods=130, freq="D")
    table = pd.concat(pd.DataFrame({"unique_id": n, "ds": times, "y": y}) for n, y in values.items())
    both = Dataset("walks", table, "forecast", (Channel("y", ""),), "D", 1, 2, Splits(test_size=4), "y")
    task = Task.of(both, horizon=2)
    parts = split(both, to_panel(both), task)
    report = compare(parts, ["garch"], task, settings={"paths": 64})
    instead = report.substitutes.drop_duplicates("unique_id").set_index("unique_id")
    assert instead["substitute"].unique() == ["a random walk whose size begins as the training data's"]
    assert "values are not above 0, the lowest -" in instead["reason"]["falls"]
    assert instead["reason"]["flat"] == "it is constant, or grows evenly: there is no variance to learn"
    rows = report.forecasts[report.forecasts["model"] == "garch"]
    assert set(rows.loc[rows["substitute"] != "", "unique_id"]) == {"falls", "flat"}
    assert any(note.startswith("garch: 2 of 3 series have a substitute: falls: ") for note in report.notes)
    only = replace(both, frame=table[table["unique_id"] == "calm"])
    alone = fit_model("garch", task, split(only, to_panel(only), task), settings={"paths": 64}).model
    assert torch.equal(alone.alpha, report.models["garch"].model.alpha)
    bad = replace(both, frame=table[table["unique_id"] != "calm"])
    with pytest.raises(
        TaskError, match=r"garch could be fitted to none of 2 series: falls: 1\d\d of 1\d\d values are not"
    ):
        fit_model("garch", task, split(bad, to_panel(bad), task))
    train_bundle(both, "garch", task, tmp_path / "garch", settings={"paths": 64})
    assert set(load_bundle(tmp_path / "garch").substitutes) == {"falls", "flat"}


def test_an_ensemble_with_a_substitute_in_it_says_so(task, parts):
    report = compare(parts, ["ets", "drift"], task, ensembles=["mean"])
    rows = report.forecasts[report.forecasts["model"] == "mean(ets,drift)"]
    assert set(rows.loc[rows["substitute"] == SMOOTHING, "unique_id"]) == {"late"}
    assert (rows.loc[rows["unique_id"] != "late", "substitute"] == "").all()
    assert report.leaderboard.set_index("model")["n_substituted"]["mean(ets,drift)"] == 9


def test_a_series_that_a_later_fit_can_be_made_of_has_a_substitute_until_then(task, parts):
    rows = compare(parts, ["ets"], task, refit=4).forecasts
    late = rows[rows["model"].eq("ets") & rows["unique_id"].eq("late")].drop_duplicates("cutoff")
    assert late["substitute"].ne("").sum() == 4
    assert late["substitute"].iloc[:4].ne("").all()


def test_a_refit_fits_to_what_is_known_by_then(task, parts):
    once = compare(parts, ["ets"], task).forecasts
    again = compare(parts, ["ets"], task, refit=4).forecasts
    both = [table[table["model"] == "ets"].set_index(["unique_id", "cutoff", "ds"])["mean"] for table in (once, again)]
    cutoffs = both[0].loc["season"].index.get_level_values("cutoff").unique()
    pd.testing.assert_series_equal(both[0].loc["season"].loc[: cutoffs[3]], both[1].loc["season"].loc[: cutoffs[3]])
    assert not np.allclose(both[0].loc["season"].loc[cutoffs[4] :], both[1].loc["season"].loc[cutoffs[4] :])


def test_series_without_a_past_are_refused(task):
    table = dataset(bad=False)
    by_series = replace(table, splits=Splits(entity={"season": "train", "walk": "test"}))
    parts = split(by_series, to_panel(by_series), task)
    with pytest.raises(
        TaskError, match=r"ets is fitted per series: series walk has no past of its own before the test"
    ):
        compare(parts, ["ets"], task)


def test_auto_leaves_local_models_out_where_series_are_new(task, monkeypatch):
    table = dataset(bad=False)
    by_series = replace(table, splits=Splits(entity={"season": "train", "walk": "validation"}))
    monkeypatch.setattr("forecasting.pipeline.MODELS", {n: entry(n) for n in ("naive", "ridge", "ets")})
    _, note = select(split(by_series, to_panel(by_series), task), task, seed=0, settings=None, progress=False)
    assert "ets" not in note


def test_none_that_can_be_fitted_is_an_error(task):
    panel = to_panel(dataset())
    empty = [replace(series, values=np.full_like(series.values, np.nan)) for series in panel]
    parts = split(dataset(), empty, task)
    with pytest.raises(
        TaskError, match=r"ets could be fitted to none of 3 series: late: all of its 48 values are missing"
    ):
        fit_local("ets", task, parts, {})


def test_there_is_nothing_to_resume(task, parts, tmp_path):
    with pytest.raises(TaskError, match="nothing to resume"):
        fit_model("ets", task, parts, resume=tmp_path / "last.ckpt")


@pytest.mark.parametrize("count", [99, 100])
def test_among_many_series_a_fit_is_calibrated_on_what_follows_it_at_once(count):
    rng = np.random.default_rng(3)
    values = rng.normal(size=(count, 29)).cumsum(1)
    pieces = [pd.DataFrame({"unique_id": f"s{row:03}", "ds": np.arange(29), "y": y}) for row, y in enumerate(values)]
    channels = (Channel("y", ""),)
    data = Dataset("many", pd.concat(pieces), "forecast", channels, 1, 1, 2, Splits(test_size=2), "y", ())
    task, panel = Task.of(data), to_panel(data)
    parts = split(data, panel, task)  # validation is 22 to 26, test 27 and 28
    found = compare(parts, ["theta"], task).calibrations["theta"]
    if count < 100:  # the parameters of 22 values for two horizons of each
        fitted, chosen = fit_local("theta", task, replace(parts, validation=[]), {}), [22, 24]
    else:  # those of 25 for the last
        late = replace(parts, train=[replace(span, end=25) for span in parts.train], validation=[])
        fitted, chosen = fit_local("theta", task, late, {}), [24]
    rows = local_pass(fitted, parts.validation, [np.array(chosen)] * count)
    actual = [row.span.series.values[row.positions[:, None] + [1, 2], 0] for row in rows]
    expected = calibrate(np.concatenate(actual), np.concatenate([row.values for row in rows]), task.quantiles)
    assert found.scores == count * 2 * len(chosen)
    np.testing.assert_allclose(found.factors, expected.factors)


# The bundle.


@pytest.fixture(scope="module")
def bundle(task, tmp_path_factory):
    place = tmp_path_factory.mktemp("local") / "ets"
    report, card = train_bundle(dataset(), "ets", task, place, until="2023-12-31")
    return report.models["ets"], card, load_bundle(place)


def test_a_bundle_knows_its_series_and_forecasts_them_before_any_new_point(bundle):
    trained, card, loaded = bundle
    assert card["certificate"]["passed"]
    assert sorted(loaded.fitted) == ["late", "season", "walk"]
    assert card["training"]["libraries"]["statsforecast"]
    assert card["training"]["substitutes"]["late"]["substitute"] == SMOOTHING
    assert loaded.substitutes == card["training"]["substitutes"]
    stream = loaded.stream()
    with torch.no_grad():
        expected = trained.model.predict(trained.states.fits.state)
    np.testing.assert_allclose(stream.raw, expected, rtol=1e-6)
    factors = np.array(card["calibration"]["factors"])
    assert factors.shape == (HORIZON, 9)
    middle = stream.raw[..., 4:5]
    np.testing.assert_allclose(stream.predictions, middle + factors * (stream.raw - middle), rtol=1e-4)
    assert not np.allclose(stream.predictions, stream.raw, rtol=1e-3)
    assert stream.time_of("walk") == np.datetime64("2023-12-31", "ns")


def test_a_bundle_steps_its_series_over_what_is_new_alone(bundle):
    _, _, loaded = bundle
    whole = loaded.forecast(frame())
    news = loaded.forecast(frame()[lambda table: table["ds"] > "2023-12-31"])
    pd.testing.assert_frame_equal(whole, news)
    assert whole.groupby("unique_id")["substitute"].unique().map(list).to_dict() == {
        "late": [SMOOTHING], "season": [""], "walk": [""],
    }  # fmt: skip
    old = loaded.forecast(frame(length=LENGTH - TEST))
    assert (old["cutoff"] == pd.Timestamp("2023-12-31")).all()
    stream = loaded.stream(["season", "walk"])
    table = frame().set_index(["unique_id", "ds"])["y"]
    for ds in pd.date_range("2024-01-31", periods=TEST, freq="ME"):
        last = stream.step({name: table[name, ds] for name in ("walk", "season")}, at=ds.to_pydatetime())
    for name, values in last.items():
        found = whole[whole["unique_id"] == name].filter(regex=r"^q").to_numpy()
        np.testing.assert_allclose(found, values, rtol=1e-5)


def test_a_command_that_forecasts_says_which_series_have_a_substitute(bundle, tmp_path):
    _, _, loaded = bundle
    frame().to_csv(tmp_path / "new.csv", index=False)
    asked = ["forecast", "--bundle", str(loaded.path), "--data", str(tmp_path / "new.csv"), "--out", "-"]
    said = CliRunner().invoke(app, asked)
    assert said.exit_code == 0
    expected = rf"note: ets: 1 of 3 series are forecast by a substitute, first late by {SMOOTHING}: .* too few"
    assert re.search(expected, said.stderr)
    table = pd.read_csv(io.StringIO(said.stdout))
    assert set(table.loc[table["substitute"].notna(), "unique_id"]) == {"late"}


def test_a_saved_stream_goes_on_and_new_names_are_looked_up(bundle, tmp_path):
    _, _, loaded = bundle
    stream = loaded.stream(["walk"])
    stream.step({"walk": 51.0})
    stream.save(tmp_path / "state.npz")
    resumed = loaded.stream(["season", "walk"], state=tmp_path / "state.npz")
    assert not np.allclose(resumed.predictions[1], loaded.stream(["walk"]).predictions[0])
    np.testing.assert_array_equal(resumed.predictions[0], loaded.stream(["season"]).predictions[0])


def test_a_series_that_was_not_fitted_is_refused(bundle):
    trained, _, loaded = bundle
    message = rf"{trained.name} is fitted per series, and not to new; it knows the 3 series late, season, walk"
    with pytest.raises(BundleError, match=message):
        loaded.stream(["walk", "new"])
    found = loaded.forecast(frame().replace({"unique_id": {"walk": "new"}}))
    assert set(found["unique_id"]) == {"late", "season"}
    assert re.search(message, loaded.failures["new"])
    with pytest.raises(BundleError, match=message):
        loaded.forecast(frame()[lambda table: table["unique_id"] == "walk"].replace({"unique_id": {"walk": "new"}}))


def test_a_series_of_another_frequency_is_named_and_the_others_are_forecast(bundle, tmp_path):
    _, _, loaded = bundle
    days = pd.date_range("2024-01-01", periods=40, freq="D")
    daily = pd.DataFrame({"unique_id": "walk", "ds": days, "y": 50.0})
    month_starts = frame().assign(ds=lambda table: table["ds"] + pd.Timedelta("1D"))
    whole = loaded.forecast(frame())
    for other, own in ((daily, "D"), (month_starts[month_starts["unique_id"] == "walk"], "MS")):
        given = pd.concat([frame()[lambda table: table["unique_id"] != "walk"], other])
        found = loaded.forecast(given, save_state=tmp_path / "state.npz")
        expected = whole[whole["unique_id"] != "walk"].reset_index(drop=True)
        pd.testing.assert_frame_equal(found, expected)
        assert list(loaded.failures) == ["walk"]
        assert f"series walk is every '{own}', but ets was made for data every 'ME'" in loaded.failures["walk"]
        assert loaded.stream(state=tmp_path / "state.npz").series == ["late", "season"]
    given.to_csv(tmp_path / "new.csv", index=False)
    asked = ["forecast", "--bundle", str(loaded.path), "--data", str(tmp_path / "new.csv"), "--out", "-"]
    said = CliRunner().invoke(app, asked)
    assert said.exit_code == 1
    assert "error: new.csv: series walk is every 'MS', but ets was made for data every 'ME'. Resample" in said.stderr
    assert set(pd.read_csv(io.StringIO(said.stdout))["unique_id"]) == {"late", "season"}
    with pytest.raises(ValueError, match="off the grid of 'ME'"):
        loaded.forecast(daily)
    loaded.forecast(frame())
    assert not loaded.failures


def test_a_series_of_a_coarser_frequency_is_named_and_one_with_gaps_is_not(bundle):
    """Quarters stepped as months of which two in three are missing would be a mistake that nobody sees."""
    _, _, loaded = bundle
    whole = loaded.forecast(frame())
    walk = frame()["unique_id"].eq("walk")
    for rows, refused in ((slice(None, None, 3), True), ([0, 2, 5, 30, 50], False)):
        found = loaded.forecast(pd.concat([frame()[~walk], frame()[walk].iloc[rows]]))
        assert list(loaded.failures) == (["walk"] if refused else [])
        expected = whole[whole["unique_id"] != "walk"].reset_index(drop=True)
        pd.testing.assert_frame_equal(found[found["unique_id"] != "walk"].reset_index(drop=True), expected)
        if refused:
            said = loaded.failures["walk"]
            assert "frame: series walk is every 'QE-" in said
            assert "but ets was made for data every 'ME'" in said


def test_a_series_that_does_not_go_on_from_its_fit_is_named_and_the_others_are_forecast(bundle):
    """Month ends again, but of another hour."""
    _, _, loaded = bundle
    given = frame()
    given.loc[given["unique_id"].eq("walk"), "ds"] += pd.Timedelta("6h")
    found = loaded.forecast(given)
    assert set(found["unique_id"]) == {"late", "season"}
    assert "walk: does not go on from its last step at 2023-12-31" in loaded.failures["walk"]
    with pytest.raises(BundleError, match="walk: does not go on from its last step"):
        loaded.forecast(given[given["unique_id"].eq("walk")])


def test_states_need_a_clock(task, tmp_path):
    model = build("ets", task.signature)
    fitted = FittedSeries(("a",), model.initial_state(1), np.array([3]))
    with pytest.raises(ExportError, match="need a frequency"):
        export_bundle(
            model,
            replace(task, freq=None),
            tmp_path / "b",
            name="ets",
            config={},
            training={},
            metrics=[],
            fitted=fitted,
        )
