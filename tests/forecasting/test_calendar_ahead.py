"""Calendar features through the whole house: judged, bundled, streamed, by command and by sktime, from `ds` alone."""

import io
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from data.calendar import calendar_channels, calendar_values
from data.frame import Channel, Dataset, FrameError, Splits
from forecasting.backtest import backtest
from forecasting.bundle import Bundle, BundleError
from forecasting.certificate import certify
from forecasting.cli import app
from forecasting.pipeline import train_bundle
from forecasting.runtime import LoadedBundle, load_bundle
from forecasting.sktime import MnemoForecaster
from forecasting.task import Task, TaskError

HOURS, HORIZON = 14 * 24, 6
CALENDAR = ("hour", "is_month_end")
UNTIL = "2024-02-02T23:00:00"  # of fourteen days from 25 January the ninth
LEVEL = {"form": "local-level", "seasonal": "none"}
OWN = {"components": LEVEL, "xgboost": {"trees": 5, "lags": 12}}


def table() -> pd.DataFrame:
    """Two series with a daily course, and a jump on the last day of January that only the calendar foretells."""
    ds = pd.date_range("2024-01-25", periods=HOURS, freq="h")
    rng = np.random.default_rng(5)
    course = np.sin(2 * np.pi * ds.hour / 24) + 2 * ds.is_month_end
    parts = [
        pd.DataFrame({"unique_id": name, "ds": ds, "y": level * (10 + course + 0.1 * rng.normal(size=HOURS))})
        for name, level in (("a", 5.0), ("b", 1.0))
    ]
    return pd.concat(parts, ignore_index=True)


def dataset(calendar: tuple[str, ...] = CALENDAR, frame: pd.DataFrame | None = None, **columns) -> Dataset:
    frame = table().assign(**columns) if frame is None else frame
    channels = tuple(Channel(name, "") for name in frame.columns[2:])
    splits = Splits(train_until=pd.Timestamp(UNTIL))
    return Dataset("shop", frame, "forecast", channels, "h", 1, HORIZON, splits, "y", calendar=calendar)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> dict[str, LoadedBundle]:
    """Trained by the command: fitted per series, and shared by them."""
    place = tmp_path_factory.mktemp("calendar")
    table().to_csv(place / "shop.csv", index=False)
    for name, fields in OWN.items():
        settings = [part for field, value in fields.items() for part in ("--set", f"{field}={value}")]
        asked = ["--data", str(place / "shop.csv"), "--model", name, "--calendar", ",".join(CALENDAR), "--season", "1"]
        asked += ["--horizon", str(HORIZON), "--until", UNTIL, "--no-calibrate", "--out", str(place / name)]
        said = CliRunner().invoke(app, ["train", *asked, *settings])
        assert said.exit_code == 0, said.output
    return {name: load_bundle(place / name) for name in OWN}


def test_a_task_has_them_as_its_last_channels_known_ahead():
    task = Task.of(dataset(warm=1.0, promotion=0.0), future=("promotion",))
    assert [channel.name for channel in task.channels] == ["y", "warm", "promotion", *calendar_channels(CALENDAR)]
    assert task.future == ("promotion", "hour_sin", "hour_cos", "is_month_end")
    assert (task.calendar, task.signature.channels, task.signature.future) == (CALENDAR, 6, 4)
    assert Task.from_json(task.to_json()) == task
    with pytest.raises(TaskError, match="the last covariates of a forecast, in order; got warm"):
        Task.of(dataset(warm=1.0, promotion=0.0), future=("warm",))


def test_a_backtest_is_that_of_the_same_columns_given_as_covariates_known_ahead():
    columns = calendar_channels(CALENDAR)
    given = table()
    given[list(columns)] = calendar_values(given["ds"].to_numpy(), CALENDAR)
    models = ["components", "xgboost", "ets"]
    computed = dataset()
    one = backtest(computed, models, Task.of(computed), settings=LEVEL | OWN["xgboost"], stride=7)
    by_hand = dataset(frame=given, calendar=())
    two = backtest(by_hand, models, Task.of(by_hand, future=columns), settings=LEVEL | OWN["xgboost"], stride=7)
    pd.testing.assert_frame_equal(one.forecasts, two.forecasts)
    pd.testing.assert_frame_equal(one.history, two.history)


def test_they_tell_what_the_past_does_not():
    without = dataset(calendar=())
    frames = [backtest(one, ["components"], Task.of(one), settings=LEVEL) for one in (dataset(), without)]
    errors = [report.leaderboard.set_index("model")["mae"] for report in frames]
    assert errors[0]["components"] < 0.3 * errors[1]["components"]
    assert errors[0]["naive"] == errors[1]["naive"]  # which takes none


def test_a_bundle_says_them_and_needs_no_column(bundles):
    for loaded in bundles.values():
        assert loaded.card["task"]["calendar"] == list(CALENDAR)
        assert [channel["name"] for channel in loaded.card["task"]["channels"]] == ["y", *calendar_channels(CALENDAR)]
        assert [channel["name"] for channel in loaded.channels] == ["y"]
        assert loaded.future == ()
        inputs = {entry["name"]: entry["shape"] for entry in loaded.card["graphs"]["step.onnx"]["inputs"]}
        assert inputs["future"] == ["batch", HORIZON, 3]


@pytest.mark.parametrize("name", OWN)
def test_a_bundle_forecasts_what_the_model_did_in_process(bundles, name):
    data = dataset()
    report = backtest(data, [name], Task.of(data), settings=OWN[name], calibrated=False)
    cutoff = report.forecasts["cutoff"].max()
    told = report.forecasts[report.forecasts["model"].eq(name) & report.forecasts["cutoff"].eq(cutoff)]
    frame = table()
    found = bundles[name].forecast(frame[frame["ds"] <= cutoff])
    pd.testing.assert_frame_equal(
        found.filter(regex="^(unique_id|ds|q.*)$"),
        told.filter(regex="^(unique_id|ds|q.*)$").reset_index(drop=True),
        rtol=1e-4,
        check_dtype=False,
    )


@pytest.mark.parametrize("name", OWN)
def test_a_stream_with_gaps_says_what_a_frame_says(bundles, name, tmp_path):
    loaded, frame = bundles[name], table()
    late = frame["ds"] > UNTIL
    frame = frame[~late | frame["ds"].dt.hour.isin([0, 1, 2, 9, 10, 11, 22])]
    whole = loaded.forecast(frame, save_state=tmp_path / "state.npz")
    stream = loaded.stream(["a", "b"])
    values = frame.set_index(["ds", "unique_id"])["y"]
    begins = pd.Timestamp(UNTIL) if loaded.fitted else pd.Timestamp(0)
    for time in frame["ds"].drop_duplicates():
        if time > begins:
            told = stream.step({uid: values[time, uid] for uid in ("b", "a")}, at=time.to_pydatetime())
    for uid, rows in whole.groupby("unique_id"):
        np.testing.assert_allclose(rows.filter(regex="^q").to_numpy(), told[uid], rtol=1e-5)
    for key, value in loaded.stream(["a", "b"], state=tmp_path / "state.npz").state.items():
        np.testing.assert_allclose(stream.state[key], value, rtol=1e-4, atol=1e-5, err_msg=key)
    pd.testing.assert_frame_equal(loaded.forecast(frame, state=tmp_path / "state.npz"), whole)
    later = frame[frame["ds"] > frame["ds"].max() - pd.Timedelta("1D")]
    before = frame[frame["ds"] <= frame["ds"].max() - pd.Timedelta("1D")]
    loaded.forecast(before, save_state=tmp_path / "before.npz")
    pd.testing.assert_frame_equal(loaded.forecast(later, state=tmp_path / "before.npz"), whole, rtol=1e-5)
    adapting = loaded.forecast(frame, adapt=0.05)
    np.testing.assert_allclose(adapting["mean"], whole["mean"], rtol=1e-5)


def test_a_stream_without_a_time_takes_the_next_period_and_some_series_alone(bundles):
    loaded = bundles["xgboost"]
    one, two = loaded.stream(["a", "b"]), loaded.stream(["a", "b"])
    start = pd.Timestamp("2024-01-30T21:00")
    for step in range(6):
        at = (start + pd.Timedelta(hours=step)).to_pydatetime()
        told = one.step({"a": 50.0 + step, "b": 10.0}, at=at)
        alone = two.step({"b": 10.0}, at=None if step else at) | two.step({"a": 50.0 + step}, at=None if step else at)
    assert one.time_of("a") == two.time_of("a") == np.datetime64("2024-01-31T02:00")
    for uid in ("a", "b"):
        np.testing.assert_array_equal(told[uid], alone[uid])
    np.testing.assert_array_equal(one.step(np.array([[50.0], [10.0]])), two.step(np.array([[50.0], [10.0]])))


def test_from_the_end_of_the_fit_the_calendar_is_known_ahead(bundles):
    frame = table()
    found = bundles["components"].forecast(frame[frame["ds"] <= UNTIL])
    assert (found["cutoff"] == pd.Timestamp(UNTIL)).all()
    course = np.sin(2 * np.pi * found["ds"].dt.hour / 24)
    level = np.where(found["unique_id"] == "a", 5.0, 1.0)
    np.testing.assert_allclose(found["mean"] / level, 10 + course, atol=0.3)


def test_a_first_step_without_a_time_is_refused_and_changes_nothing(bundles):
    stream = bundles["xgboost"].stream(["a", "b"])
    before = stream.state
    for values in ({"a": 50.0, "b": 10.0}, {"a": 50.0}, np.array([[50.0], [10.0]])):
        with pytest.raises(BundleError, match=r"a: give `at`, the time of its first observation: the inputs hour, is_"):
            stream.step(values)
    with pytest.raises(BundleError, match="takes no covariates known ahead; leave out future"):
        stream.step({"a": 50.0}, at=pd.Timestamp("2024-02-03").to_pydatetime(), future={"a": np.zeros((HORIZON, 3))})
    for name, value in stream.state.items():
        np.testing.assert_array_equal(value, before[name])
    assert np.isnat(stream.time_of("a"))


def described(loaded: LoadedBundle, **fields) -> LoadedBundle:
    """The same graphs behind a card that says something else of their inputs: to make graphs takes seconds."""
    card = loaded.card | {"task": loaded.card["task"] | fields}
    return LoadedBundle(Bundle(loaded.path, card, loaded._files))


def test_what_a_caller_knows_ahead_stands_before_what_the_calendar_knows(bundles):
    """The hour, now given by a caller, says what it said when it was computed."""
    loaded = described(bundles["components"], calendar=["is_month_end"])
    assert loaded.future == ("hour_sin", "hour_cos")
    frame = table()
    frame[["hour_sin", "hour_cos"]] = calendar_values(frame["ds"].to_numpy(), ("hour",))
    last = frame["ds"].max() - pd.Timedelta(hours=HORIZON)
    whole = loaded.forecast(frame.assign(y=frame["y"].where(frame["ds"] <= last)))
    pd.testing.assert_frame_equal(whole, bundles["components"].forecast(frame[frame["ds"] <= last]))
    one = frame[frame["unique_id"].eq("b")].set_index("ds")
    stream, begin = loaded.stream(["b"]), pd.Timestamp(UNTIL)
    for at in one.index[(one.index > begin) & (one.index <= last)]:
        ahead = one.loc[at + pd.Timedelta("1h") : at + pd.Timedelta(hours=HORIZON), ["hour_sin", "hour_cos"]]
        given = one.loc[at, ["y", "hour_sin", "hour_cos"]].tolist()
        told = stream.step({"b": given}, at=at.to_pydatetime(), future={"b": ahead.to_numpy()})
    np.testing.assert_allclose(whole[whole["unique_id"].eq("b")].filter(regex="^q"), told["b"], rtol=1e-5)
    with pytest.raises(BundleError, match="give `future`, what hour_sin, hour_cos will be at the 6 steps ahead"):
        stream.step({"b": given})
    with pytest.raises(BundleError, match=r"a: to forecast 6 steps after .* needs hour_sin at 2024-02-08"):
        loaded.forecast(frame)


def test_business_days_certify_and_stream(bundles):
    """Two gaps among them; where nothing is missing every other step is told no time."""
    loaded = described(bundles["components"], freq="B", calendar=["dayofweek", "is_month_end"])
    assert certify(loaded, steps=20, budget_s=0.2)["passed"]
    days = pd.date_range("2024-02-02T23:00", periods=30, freq="B")  # where the fit ends
    y = 50 + np.arange(30.0) % 5
    seen = [place for place in range(30) if place not in (9, 10, 17)]
    frame = pd.DataFrame({"unique_id": "a", "ds": days[seen], "y": y[seen]})
    whole = loaded.forecast(frame)
    assert (whole["ds"].dt.dayofweek < 5).all()
    stream = loaded.stream(["a"])
    for place in seen[1:]:
        untold = place - 1 in seen and place % 2
        told = stream.step({"a": y[place]}, at=None if untold else days[place].to_pydatetime())
    np.testing.assert_allclose(whole.filter(regex="^q"), told["a"], rtol=1e-5)
    other = described(bundles["components"], freq="B", calendar=["month", "is_month_end"]).forecast(frame)
    assert np.abs(other["mean"] - whole["mean"]).max() > 0.1


def test_the_commands_forecast_and_judge_with_them(bundles, tmp_path):
    data, run = str(bundles["components"].path.parent / "shop.csv"), CliRunner()
    said = run.invoke(app, ["forecast", "--bundle", str(bundles["components"].path), "--data", data, "--out", "-"])
    assert said.exit_code == 0, said.output
    found = pd.read_csv(io.StringIO(said.stdout), parse_dates=["cutoff", "ds"])
    np.testing.assert_allclose(found["mean"], bundles["components"].forecast(table())["mean"], rtol=1e-6)
    asked = ["backtest", "--data", data, "--model", "naive", "--horizon", "6", "--out", str(tmp_path)]
    said = run.invoke(app, [*asked, "--calendar", "auto"])
    assert "shop.csv: calendar features of a step of h: hour, dayofweek." in said.output
    history = pd.read_parquet(tmp_path / "history.parquet")
    assert list(history.columns[3:]) == ["hour_sin", "hour_cos", "dayofweek_sin", "dayofweek_cos"]


def test_the_commands_refuse_what_is_no_feature_and_times_that_are_numbers(tmp_path):
    table().to_csv(tmp_path / "shop.csv", index=False)
    table().assign(ds=np.tile(np.arange(HOURS), 2)).to_csv(tmp_path / "cycles.csv", index=False)
    run = CliRunner()
    for command in ("train", "backtest"):
        asked = [command, "--model", "naive", "--out", str(tmp_path / command), "--horizon", "3", "--data"]
        said = run.invoke(app, [*asked, str(tmp_path / "shop.csv"), "--calendar", "hour,weekday"])
        assert isinstance(said.exception, FrameError)
        assert "shop.csv: no calendar feature weekday; known: minute, hour, dayofweek," in str(said.exception)
        said = run.invoke(app, [*asked, str(tmp_path / "cycles.csv"), "--calendar", "hour"])
        assert isinstance(said.exception, FrameError)
        assert "cycles.csv: the calendar features hour need time stamps, but ds holds numbers" in str(said.exception)
        said = run.invoke(app, [*asked, str(tmp_path / "cycles.csv"), "--calendar", "auto"])
        assert said.exit_code == 0, said.output
        assert "calendar features of a step of 1: none, for its steps move through no calendar" in said.output


def test_a_refit_model_is_fitted_on_the_target_alone(tmp_path):
    data = dataset(frame=table().groupby("unique_id").tail(60).reset_index(drop=True))
    data = replace(data, splits=Splits())
    train_bundle(data, "sktime:NaiveForecaster", Task.of(data), tmp_path / "bundle", calibrated=False)
    loaded = load_bundle(tmp_path / "bundle")
    assert loaded.calendar == ()
    assert len(loaded.forecast(table())) == 2 * HORIZON


def test_sktime_computes_them_from_its_index_and_ahead():
    months = pd.period_range("2010-01", periods=84, freq="M")
    rng = np.random.default_rng(2)
    y = pd.Series(
        10 + 3 * (months.month == 12) + np.sin(2 * np.pi * months.month / 12) + 0.05 * rng.normal(size=84), months
    )
    columns = calendar_channels(("month", "quarter"))
    X = pd.DataFrame(calendar_values(months.to_timestamp().to_numpy(), ("month", "quarter")), months, columns)

    def forecast(y: pd.Series, X: pd.DataFrame | None = None, **kwargs) -> np.ndarray:
        model = MnemoForecaster("components", horizon=12, season=1, settings=LEVEL, **kwargs)
        model.fit(y[:60], X=None if X is None else X[:60])
        model.update(y[60:66], X=None if X is None else X[60:66])
        model.update(y[68:72], X=None if X is None else X[68:72])  # a gap of two months
        return model.predict(fh=[1, 5, 12], X=None if X is None else X[72:]).to_numpy().ravel()

    computed = forecast(y, calendar=("month", "quarter"))
    np.testing.assert_allclose(computed, forecast(y.to_timestamp(), calendar=("month", "quarter")), rtol=1e-6)
    np.testing.assert_allclose(computed, y[72:].iloc[[0, 4, 11]], atol=1.5)
    given = X.copy()
    assert np.abs(computed - forecast(y, X=given)).max() < 0.05  # in the gap a column of X is missing, the calendar not
    both = forecast(y, X=given[["quarter_sin", "quarter_cos"]], calendar="month")
    assert np.abs(both - computed).max() < 0.05
    auto = forecast(y, calendar="auto")
    np.testing.assert_array_equal(auto, forecast(y, calendar=("month",)))


def test_sktime_says_what_is_no_calendar():
    y = pd.Series(np.arange(60.0) % 7)
    with pytest.raises(TaskError, match=r"MnemoForecaster\(naive\): the calendar features hour need time stamps"):
        MnemoForecaster("naive", horizon=3, calendar="hour").fit(y)
    with pytest.raises(FrameError, match=r"MnemoForecaster\(naive\): no calendar feature day_of_week; known: minute"):
        MnemoForecaster("naive", horizon=3, calendar=("day_of_week",)).fit(y)
    without = MnemoForecaster("naive", horizon=3, calendar="auto").fit(y)  # integers have none
    np.testing.assert_array_equal(
        without.predict(fh=[1, 2]), MnemoForecaster("naive", horizon=3).fit(y).predict(fh=[1, 2])
    )


def test_a_card_with_a_feature_of_a_later_version_says_so(bundles):
    with pytest.raises(BundleError, match=r"card.json: no calendar feature moon; known: .* Is it of a newer version"):
        described(bundles["xgboost"], calendar=["moon"])
