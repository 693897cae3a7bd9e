import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pandas as pd
import pytest
import torch

from data.frame import Channel, Dataset, FrameError, Splits
from forecasting import scans
from forecasting.bundle import BundleError
from forecasting.export import export_bundle
from forecasting.runtime import load_bundle
from forecasting.task import Task
from models.catalog import build

CHANNELS = (Channel("y", "USD"), Channel("volume", "1"))
DAILY = Task("forecast", "y", CHANNELS, "B", horizon=3, season=5)
GESTURE = Task("classify", "label", (Channel("ax", "m/s2"),), 0.02, labels=("left", "right"))
CYCLE = Task("regress", "y", (Channel("voltage", "V"),), 1, quantiles=(0.1, 0.5, 0.9))


def bundle_of(name, task, place, **config):
    torch.manual_seed(0)
    model = build(name, task.signature, **config)
    export_bundle(model, task, place / "b", name=name, config=config, training={}, metrics=[])
    return load_bundle(place / "b")


@pytest.fixture(scope="module")
def daily(tmp_path_factory):
    return bundle_of("gru", DAILY, tmp_path_factory.mktemp("daily"), hidden=8)


@pytest.fixture(scope="module")
def gesture(tmp_path_factory):
    return bundle_of("bigru", GESTURE, tmp_path_factory.mktemp("gesture"), hidden=4)


@pytest.fixture(scope="module")
def cycle(tmp_path_factory):
    return bundle_of("rnn", CYCLE, tmp_path_factory.mktemp("cycle"), hidden=4)


def walk(rows: int, length: int, channels: int = 2) -> np.ndarray:
    return np.random.default_rng(rows).normal(size=(rows, length, channels)).cumsum(1) + 100


def frame_of(lengths: dict[str, int], start: str = "2024-01-01") -> pd.DataFrame:
    """Business days from `start`; every series has other values."""
    parts = []
    for row, (name, length) in enumerate(lengths.items()):
        values = walk(row + 1, length)[0]
        ds = pd.date_range(start, periods=length, freq="B")
        parts.append(pd.DataFrame({"unique_id": name, "ds": ds, "y": values[:, 0], "volume": values[:, 1]}))
    return pd.concat(parts, ignore_index=True)


def rows_of(frame: pd.DataFrame, name: str) -> np.ndarray:
    return frame[frame["unique_id"] == name].filter(like="q0").to_numpy()


# Imports


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("forecasting", ["torch", "pandas", "onnxruntime", "onnx"]),
        ("forecasting.runtime", ["torch", "pandas", "onnx", "models", "data"]),
        ("forecasting.certificate", ["torch", "pandas", "onnx", "models", "data"]),
        ("forecasting.bundle", ["torch", "pandas", "onnxruntime", "onnx", "models", "data"]),
    ],
)
def test_what_runs_on_the_edge_imports_neither_torch_nor_pandas(module, absent):
    code = f"import sys, {module}; print([name for name in {absent} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_streaming_with_a_gap_needs_no_pandas_where_the_step_has_a_fixed_length(cycle):
    code = (
        "import sys\n"
        "from forecasting import load_bundle, BundleError\n"
        f"stream = load_bundle({str(cycle.path)!r}).stream(['a'])\n"
        "stream.step({'a': 1.0}, at=3); stream.step({'a': 1.0}, at=9)\n"
        "print('pandas' in sys.modules, 'torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False False"


# Loading


def test_a_provider_that_is_not_here_is_an_error_that_lists_those_that_are(daily):
    with pytest.raises(BundleError, match=r"ROCMExecutionProvider is not on this machine; here: .*CPUExecution"):
        load_bundle(daily.path, providers=["ROCMExecutionProvider", "cpu"])


def test_what_runs_is_reported(daily):
    assert daily.providers == ["CPUExecutionProvider"]
    assert load_bundle(daily.path, providers=["cpu"], threads=2).providers == ["CPUExecutionProvider"]


def test_a_bundle_tells_what_it_is(daily, gesture):
    assert (daily.name, daily.kind, daily.prediction_shape) == ("gru", "forecast", (3, 9))
    assert daily.quantiles == DAILY.quantiles
    assert gesture.labels == ("left", "right")


# Streams


def test_a_stream_gives_what_a_scan_gives(daily):
    values = walk(2, 30)
    values[1, 4:9] = np.nan
    expected, _ = daily.run_scan(np.nan_to_num(values), np.isfinite(values), daily.initial_state(2))
    named, unnamed = daily.stream(["a", "b"]), daily.stream(["a", "b"])
    for t in range(30):
        prediction = named.step({"b": values[1, t].tolist(), "a": values[0, t]})
        np.testing.assert_allclose(prediction["a"], expected[0, t], rtol=1e-6)
        np.testing.assert_allclose(prediction["b"], expected[1, t], rtol=1e-6)
        np.testing.assert_array_equal(unnamed.step(values[:, t]), np.stack([prediction["a"], prediction["b"]]))


@pytest.mark.parametrize("series", [["a"], ["a", "b"]], ids=["every series", "some"])
def test_an_input_that_stands_still_leaves_no_subnormal_numbers_which_would_slow_every_step(daily, series):
    stream = daily.stream(series)
    for value in walk(1, 50)[0].tolist():
        stream.step({"a": value})
    for _ in range(16_000):
        stream.step({"a": value})
    sizes = np.abs(np.concatenate([value[0].ravel() for value in stream.state.values()]))
    assert not ((sizes > 0) & (sizes < np.finfo(np.float32).tiny)).any()


def test_a_stream_on_another_provider_gives_the_same(daily):
    elsewhere = load_bundle(daily.path)
    elsewhere.providers = ["AcceleratorExecutionProvider"]  # memory is then not bound, as it lies elsewhere
    bound, unbound = daily.stream(["a"]), elsewhere.stream(["a"])
    for values in walk(1, 10)[0]:
        np.testing.assert_array_equal(unbound.step({"a": values})["a"], bound.step({"a": values})["a"])


def test_a_prediction_is_not_overwritten_by_the_next(daily):
    stream = daily.stream(["a"])
    first = stream.step({"a": [100, 1]})["a"]
    kept = first.copy()
    stream.step({"a": [200, 1]})
    np.testing.assert_array_equal(first, kept)


def test_series_that_are_not_named_keep_their_state(daily):
    values = walk(3, 10)
    stream, alone = daily.stream(["a", "b", "c"]), daily.stream(["c"])
    for t in range(10):
        names = ("a", "b", "c") if t % 2 else ("c", "a")
        found = stream.step({name: values["abc".index(name), t] for name in names})
        assert list(found) == list(names)
        np.testing.assert_allclose(found["c"], alone.step({"c": values[2, t]})["c"], rtol=1e-6)
    other = daily.stream(["b"])
    for t in range(1, 10, 2):
        expected = other.step({"b": values[1, t]})["b"]
    np.testing.assert_allclose(found["b"], expected, rtol=1e-6)


def test_stepping_nothing_changes_nothing(daily):
    stream = daily.stream(["a", "b"])
    before = stream.state
    assert stream.step({}) == {}
    assert all((stream.state[name] == before[name]).all() for name in before)


@pytest.mark.parametrize("missing", [np.nan, None, float("inf"), 1e300])
def test_a_missing_value_is_a_masked_step(daily, missing):
    stream = daily.stream(["a"])
    stream.step({"a": [100.0, 5.0]})
    expected, _ = daily.run_step([[101.0, 0.0]], [[1, 0]], stream.state)
    np.testing.assert_array_equal(stream.step({"a": [101.0, missing]})["a"], expected[0])


def test_one_channel_takes_a_bare_number(cycle):
    assert cycle.stream(["a"]).step({"a": 3})["a"].shape == (3,)
    assert cycle.stream().step([[3.0]]).shape == (1, 3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"a": [1.0]}, r"a: got values of shape \(1,\), expected 2: y \[USD\], volume \[1\]"),
        ({"a": 1.0}, r"a: got values of shape \(1,\), expected 2"),
        ({"a": [1.0, 2.0, 3.0]}, r"a: got values of shape \(3,\)"),
        ({"a": ["1", "2"]}, r"a: got \['1', '2'\], expected numbers for y \[USD\], volume \[1\]"),
        ({"a": "12"}, "a: got '12', expected numbers"),
        ({"a": [1.0, "2"]}, "expected numbers"),
        ({"b": [1.0, 2.0]}, "no series b; it has a"),
        ({"a": [1.0, 2.0], "b": [1.0, 2.0]}, "no series b; it has a"),
        ([[1.0]], r"got an array of shape \(1, 1\), expected \(1, 2\): 1 series and the channels y \[USD\]"),
        ([["1", "2"]], "expected numbers"),
    ],
)
def test_values_that_do_not_fit_are_refused_and_leave_the_stream_as_it_was(daily, values, message):
    stream, other = daily.stream(["a"]), daily.stream(["a"])
    for each in (stream, other):
        each.step({"a": [100.0, 1.0]})
    with pytest.raises(BundleError, match=message):
        stream.step(values)
    np.testing.assert_array_equal(stream.step({"a": [101.0, 1.0]})["a"], other.step({"a": [101.0, 1.0]})["a"])


def test_a_series_named_twice_is_refused(daily):
    with pytest.raises(BundleError, match="each named once"):
        daily.stream(["a", "a"])


def test_channels_must_agree_in_name_unit_and_order(daily):
    daily.check_channels(CHANNELS)
    daily.check_channels([{"name": "y", "unit": ""}, {"name": "volume", "unit": "1"}])
    for wrong in (CHANNELS[::-1], CHANNELS[:1], (Channel("y", "EUR"), CHANNELS[1]), (Channel("z", "USD"), CHANNELS[1])):
        with pytest.raises(BundleError, match=r"expects the channels y \[USD\], volume \[1\] in this order; got"):
            daily.check_channels(wrong)


def test_a_model_of_complete_sequences_refuses_to_stream_and_says_why(gesture, tmp_path):
    with pytest.raises(BundleError, match=r"does not stream: it labels complete sequences.*such as gru"):
        gesture.stream(["a"])
    with pytest.raises(BundleError, match="no state to keep"):
        gesture.forecast(gesture_frame({"a": 5}), save_state=tmp_path / "state.npz")


# Time


def masked_then(bundle, before, missing: int, value):
    """What a stream without a clock gives that is told of every missing period."""
    stream = bundle.stream(["a"])
    for each in before:
        stream.step({"a": each})
    for _ in range(missing):
        stream.step({"a": np.full(len(bundle.channels), np.nan)})
    return stream.step({"a": value})["a"]


def test_skipped_business_days_are_stepped_as_missing(daily):
    stream = daily.stream(["a"])
    stream.step({"a": [100.0, 1.0]}, at="2024-05-02")  # a Thursday
    stream.step({"a": [101.0, 1.0]}, at="2024-05-03")
    found = stream.step({"a": [105.0, 2.0]}, at="2024-05-09")  # Monday to Wednesday are missing
    expected = masked_then(daily, [[100.0, 1.0], [101.0, 1.0]], 3, [105.0, 2.0])
    np.testing.assert_allclose(found["a"], expected, rtol=1e-6)


@pytest.mark.parametrize("missing", [0, 1, 700])
def test_skipped_cycles_are_stepped_as_missing(cycle, missing):
    stream = cycle.stream(["a"])
    stream.step({"a": 3.0}, at=10)
    found = stream.step({"a": 4.0}, at=11 + missing)
    np.testing.assert_allclose(found["a"], masked_then(cycle, [[3.0]], missing, [4.0]), rtol=1e-5)


def test_a_step_without_a_time_is_one_period(cycle):
    timed, counted = cycle.stream(["a"]), cycle.stream(["a"])
    for value, at in ((1.0, 5), (2.0, 6), (3.0, 7)):
        timed.step({"a": value}, at=at)
        counted.step({"a": value}, at=5 if at == 5 else None)
    assert counted.time_of("a") == 7
    np.testing.assert_array_equal(timed.step({"a": 1.0}, at=9)["a"], counted.step({"a": 1.0}, at=9)["a"])
    with pytest.raises(BundleError, match="not later"):
        counted.step({"a": 1.0}, at=9)


def test_every_series_has_its_own_clock(cycle):
    stream = cycle.stream(["a", "b"])
    stream.step({"a": 1.0, "b": 2.0}, at=1)
    stream.step({"a": 1.0}, at=2)
    stream.step({"a": 1.0}, at=3)
    found = stream.step({"a": 1.5, "b": 2.5}, at=4)
    np.testing.assert_allclose(found["b"], masked_then(cycle, [[2.0]], 2, [2.5]), rtol=1e-6)
    np.testing.assert_allclose(found["a"], masked_then(cycle, [[1.0]] * 3, 0, [1.5]), rtol=1e-6)


def test_steps_without_a_time_count_for_those_that_took_them_and_are_saved(cycle):
    stream = cycle.stream(["a", "b"])
    stream.step({"a": 1.0, "b": 1.0}, at=1)
    stream.step({"a": 1.0})
    stream.step({"a": 1.0})
    resumed = cycle.stream(["c", "b", "a"], state=stream.to_bytes())
    assert (resumed.time_of("a"), resumed.time_of("b")) == (3, 1)
    assert np.isnan(resumed.time_of("c"))
    found = resumed.step({"a": 2.0, "b": 2.0, "c": 2.0}, at=4)
    np.testing.assert_allclose(found["a"], masked_then(cycle, [[1.0]] * 3, 0, [2.0]), rtol=1e-6)
    np.testing.assert_allclose(found["b"], masked_then(cycle, [[1.0]], 2, [2.0]), rtol=1e-6)
    np.testing.assert_allclose(found["c"], masked_then(cycle, [], 0, [2.0]), rtol=1e-6)


@pytest.mark.parametrize("at", ["2024-05-02", "2024-05-01"])
def test_time_only_runs_forward(daily, at):
    stream = daily.stream(["a"])
    stream.step({"a": [100.0, 1.0]}, at="2024-05-02")
    before = stream.state
    with pytest.raises(BundleError, match=r"a: at=2024-05-0\d is not later than its last step at 2024-05-02"):
        stream.step({"a": [101.0, 1.0]}, at=at)
    assert all((stream.state[name] == before[name]).all() for name in before)


@pytest.mark.parametrize("at", ["yesterday", 5, None, np.datetime64("NaT"), "20240502", datetime(9999, 5, 2)])
def test_a_time_of_another_kind_is_refused(daily, at):
    stream = daily.stream(["a"])
    if at is None:
        stream.step({"a": [100.0, 1.0]}, at=at)  # no time is fine
        return
    with pytest.raises(BundleError, match="expected a time stamp"):
        stream.step({"a": [100.0, 1.0]}, at=at)


@pytest.mark.parametrize("at", ["2024-05-02", float("nan"), np.datetime64("2024-05-02"), True])
def test_a_time_stamp_is_no_cycle(cycle, at):
    with pytest.raises(BundleError, match="expected a number"):
        cycle.stream(["a"]).step({"a": 1.0}, at=at)


def test_times_with_a_zone_are_taken_as_utc(daily):
    stream = daily.stream(["a"])
    east = timezone(timedelta(hours=2))
    for at, expected in (
        ("2024-05-02T00:00:00Z", "2024-05-02"),
        (datetime(2024, 5, 3, 2, tzinfo=east), "2024-05-03"),
        (pd.Timestamp("2024-05-06", tz="UTC"), "2024-05-06"),
        (datetime(2024, 5, 7, tzinfo=UTC).replace(tzinfo=None), "2024-05-07"),
        (np.datetime64("2024-05-08"), "2024-05-08"),
    ):
        stream.step({"a": [100.0, 1.0]}, at=at)
        assert stream.time_of("a") == np.datetime64(expected)


def test_a_gap_of_a_wrong_unit_is_refused(cycle):
    stream = cycle.stream(["a"])
    stream.step({"a": 1.0}, at=1)
    with pytest.raises(BundleError, match=r"periods of 1 lie between .* Check the unit of the time"):
        stream.step({"a": 1.0}, at=1_700_000_000)


def test_a_cycle_between_two_is_no_cycle_but_seconds_go_to_the_nearest_step(tmp_path):
    stepped = bundle_of("naive", Task("regress", "y", (Channel("v", "V"),), 5), tmp_path / "cycles")
    stream = stepped.stream(["a"])
    stream.step({"a": 1.0}, at=10)
    with pytest.raises(BundleError, match="not a whole number of steps of 5"):
        stream.step({"a": 1.0}, at=17)
    timed = bundle_of("naive", Task("regress", "y", (Channel("v", "V"),), 0.1), tmp_path / "seconds")
    stream = timed.stream(["a"])
    for at in (0.0, 0.104, 0.148, 0.31):
        stream.step({"a": 1.0}, at=at)
    assert stream.time_of("a") == 0.31


# States


def test_a_saved_stream_goes_on_exactly(daily, tmp_path):
    values = walk(2, 20)
    stream = daily.stream(["a", "b"])
    for t in range(10):
        stream.step(values[:, t], at=np.busday_offset("2024-01-01", t))
    stream.save(tmp_path / "state.npz")
    resumed, held = daily.stream(state=tmp_path / "state.npz"), daily.stream(state=stream.to_bytes())
    assert resumed.series == ["a", "b"]
    for t in range(10, 20):
        at = np.busday_offset("2024-01-01", t + 2 * (t > 15))
        expected = stream.step(values[:, t], at=at)
        np.testing.assert_array_equal(resumed.step(values[:, t], at=at), expected)
        np.testing.assert_array_equal(held.step(values[:, t], at=at), expected)


def test_a_state_can_be_resumed_for_other_series(daily, tmp_path):
    stream = daily.stream(["a", "b"])
    stream.step({"a": [100.0, 1.0], "b": [50.0, 1.0]})
    stream.save(tmp_path / "state.npz")
    resumed = daily.stream(["c", "b"], state=tmp_path / "state.npz")
    found = resumed.step({"b": [51.0, 1.0], "c": [7.0, 1.0]})
    np.testing.assert_array_equal(found["b"], stream.step({"b": [51.0, 1.0]})["b"])
    np.testing.assert_array_equal(found["c"], daily.stream(["c"]).step({"c": [7.0, 1.0]})["c"])


def test_a_state_of_another_bundle_is_refused(daily, cycle, tmp_path):
    cycle.stream(["a"]).save(tmp_path / "state.npz")
    with pytest.raises(BundleError, match="belongs to another bundle"):
        daily.stream(state=tmp_path / "state.npz")


def test_a_file_that_is_no_state_is_refused(daily, tmp_path):
    with pytest.raises(BundleError, match="cannot be read"):
        daily.stream(state=tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(BundleError, match=r"not a readable \.npz"):
        daily.stream(state=tmp_path / "text.npz")
    with pytest.raises(BundleError, match="not the state of a stream"):
        daily.stream(state=daily.path / "state.npz")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("state.norm.count", lambda a: a[:, :1], r"the state norm.count is \(2, 1\), expected \(2, 2\)"),
        ("state.norm.count", lambda a: a.astype(np.float64), "norm.count of the state holds other numbers"),
        ("state.norm.count", lambda a: a * np.nan, "norm.count of the state holds other numbers"),
        ("predictions", lambda a: a[:, :1], "predictions of the state holds other numbers"),
        ("last", lambda a: np.zeros(len(a)), "last of the state holds other numbers"),
        ("since", lambda a: a + 0.5, "since of the state holds other numbers"),
    ],
)
def test_a_state_that_holds_what_no_stream_saves_is_refused(daily, tmp_path, name, change, message):
    stream = daily.stream(["a", "b"])
    stream.step(np.ones((2, 2), np.float32))
    stream.save(tmp_path / "state.npz")
    arrays = dict(np.load(tmp_path / "state.npz"))
    np.savez(tmp_path / "other.npz", **(arrays | {name: change(arrays[name])}))
    with pytest.raises(BundleError, match=message):
        daily.stream(state=tmp_path / "other.npz")


def test_a_graph_is_given_what_it_takes_or_says_what_that_is(daily):
    x = np.ones((3, 2), np.float32)
    for rows in (1, 2):
        with pytest.raises(BundleError, match=rf"norm.count is \({rows}, 2\), expected \(3, 2\): a row for each of 3"):
            daily.run_step(x, x, daily.initial_state(rows))
    with pytest.raises(BundleError, match=r"norm.count is absent"):
        daily.run_step(x, x, {})
    for wrong in (np.ones((3, 1)), np.ones(3), np.ones((3, 4, 2))):
        with pytest.raises(BundleError, match=r"x and mask are \(B, 2\), with the channels"):
            daily.run_step(wrong, wrong, daily.initial_state(3))
    with pytest.raises(BundleError, match=r"x and mask are \(B, T, 2\), with the channels"):
        daily.run_scan(x, x, daily.initial_state(3))


def test_a_scan_over_no_steps_or_no_series_is_nothing_and_ends_no_process(daily):
    state = daily.initial_state(3)
    none = np.zeros((3, 0, 2), np.float32)
    prediction, after = daily.run_scan(none, none, state)
    assert prediction.shape == (3, 0, *daily.prediction_shape)
    assert all(np.array_equal(after[name], state[name]) for name in state)
    none = np.zeros((0, 4, 2), np.float32)
    assert daily.run_scan(none, none, daily.initial_state(0))[0].shape == (0, 4, *daily.prediction_shape)


def test_a_stream_of_no_series_is_refused(daily):
    with pytest.raises(BundleError, match="a stream needs at least one series"):
        daily.stream([])


def test_a_state_that_cannot_be_written_leaves_the_old_one(daily, tmp_path, monkeypatch):
    stream = daily.stream(["a"])
    stream.save(tmp_path / "state.npz")
    before = (tmp_path / "state.npz").read_bytes()
    stream.step({"a": [1.0, 1.0]})

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("forecasting.writing.sync", full)
    with pytest.raises(BundleError, match="No space left"):
        stream.save(tmp_path / "state.npz")
    assert (tmp_path / "state.npz").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


# Frames


def test_a_frame_gives_the_forecast_of_each_series_from_its_end(daily):
    frame = frame_of({"long": 40, "short": 12, "alike": 12})
    found = daily.forecast(frame)
    quantiles = [f"q0.{k}" for k in range(1, 10)]
    assert list(found.columns) == ["unique_id", "cutoff", "ds", "model", "mean", *quantiles, "substitute"]
    assert (found["substitute"] == "").all()
    assert len(found) == 9
    for name, part in frame.groupby("unique_id"):
        stream = daily.stream([name])
        for values in part[["y", "volume"]].to_numpy():
            expected = stream.step({name: values})[name]
        np.testing.assert_allclose(rows_of(found, name), expected, rtol=1e-6)
        mine = found[found["unique_id"] == name]
        assert (mine["cutoff"] == part["ds"].max()).all()
        ahead = pd.date_range(part["ds"].max(), periods=4, freq="B")[1:]
        assert mine["ds"].tolist() == ahead.tolist()
        assert mine["mean"].between(mine["q0.1"], mine["q0.9"]).all()
    assert set(found["model"]) == {"gru"}


def test_rows_after_the_last_value_are_said_for_the_forecast_begins_after_them(daily):
    frame = frame_of({"a": 20, "b": 20})
    daily.forecast(frame)
    assert not daily.notes
    last = frame.loc[17, "ds"]
    frame.loc[18:19, "y"] = np.nan
    found = daily.forecast(frame)
    assert (found["cutoff"] == frame.loc[19, "ds"]).all()
    assert daily.notes == (
        f"1 of 2 series have rows after their last y, first a: none after {last:%Y-%m-%d}, rows until "
        f"{frame.loc[19, 'ds']:%Y-%m-%d}. These count as missing values, and the forecast begins after them. To "
        "forecast from the last value, leave them out.",
    )


def test_long_series_are_scanned_in_pieces(daily, monkeypatch):
    frame = frame_of({"a": 50, "b": 33, "c": 50})
    whole = daily.forecast(frame)
    monkeypatch.setattr(scans, "SCAN_STEPS", 7)
    monkeypatch.setattr(scans, "SCAN_ROWS", 2)
    pd.testing.assert_frame_equal(daily.forecast(frame), whole, rtol=1e-5)


def test_an_update_steps_only_what_is_new(daily, tmp_path):
    frame = frame_of({"a": 40, "b": 30})
    early = frame[frame["ds"] < "2024-01-30"]
    daily.forecast(early, save_state=tmp_path / "state.npz")
    expected = daily.forecast(frame)
    overlapping = daily.forecast(frame, state=tmp_path / "state.npz")
    pd.testing.assert_frame_equal(overlapping, expected, rtol=1e-5)
    new = frame[frame["ds"] >= "2024-01-30"]
    pd.testing.assert_frame_equal(daily.forecast(new, state=tmp_path / "state.npz"), expected, rtol=1e-5)


def test_a_gap_between_the_state_and_the_new_rows_is_stepped_as_missing(daily, tmp_path):
    frame = frame_of({"a": 26})  # one row after the gap: a few more, and the gates have forgotten it
    holed = frame.drop(index=range(20, 25))
    daily.forecast(frame[:20], save_state=tmp_path / "state.npz")
    found = daily.forecast(frame[25:], state=tmp_path / "state.npz")
    pd.testing.assert_frame_equal(found, daily.forecast(holed), rtol=1e-5)


def test_an_update_without_new_rows_repeats_the_forecast(daily, tmp_path):
    frame = frame_of({"a": 20, "b": 15})
    first = daily.forecast(frame, save_state=tmp_path / "state.npz")
    again = daily.forecast(frame, state=tmp_path / "state.npz", save_state=tmp_path / "state.npz")
    pd.testing.assert_frame_equal(again, first)


def test_a_saved_state_keeps_series_that_are_not_in_the_frame(daily, tmp_path):
    frame = frame_of({"a": 20, "b": 20, "c": 20})
    first = frame[(frame["ds"] < "2024-01-15") & (frame["unique_id"] != "c")]
    daily.forecast(first, save_state=tmp_path / "state.npz")
    only_c = frame[frame["unique_id"] == "c"]
    daily.forecast(only_c, state=tmp_path / "state.npz", save_state=tmp_path / "state.npz")
    found = daily.forecast(frame, state=tmp_path / "state.npz")
    pd.testing.assert_frame_equal(found, daily.forecast(frame), rtol=1e-5)


def test_a_state_without_times_does_not_guess_which_rows_are_new(daily, tmp_path):
    stream = daily.stream(["a"])
    stream.step({"a": [1.0, 1.0]})
    with pytest.raises(BundleError, match="stepped without times"):
        daily.forecast(frame_of({"a": 5}), state=stream.to_bytes())


def test_a_frame_without_a_channel_is_refused(daily):
    with pytest.raises(BundleError, match="no column for the channels volume"):
        daily.forecast(frame_of({"a": 5}).drop(columns="volume"))


def test_a_frame_of_a_coarser_step_is_refused_and_one_with_gaps_is_not(daily):
    frame = frame_of({"a": 50, "b": 50})
    mondays = frame[frame["ds"].dt.dayofweek == 0]
    with pytest.raises(BundleError, match=r"less than 5 steps of 'B' apart, but gru was made for data every 'B'"):
        daily.forecast(mondays)
    assert set(daily.forecast(pd.concat([mondays, frame[1:2]]))["unique_id"]) == {"a"}  # which was seen on a Tuesday
    assert "series b is every 'W-MON', but gru was made for data every 'B'" in daily.failures["b"]
    given = frame.assign(y=frame["y"].where(frame["ds"].dt.dayofweek == 0))  # the rows are there, a value is not
    assert len(daily.forecast(given)) == 6


def test_frames_that_never_come_as_often_as_the_cards_are_remarked_on_and_dropped_ones_are_not(gesture):
    frame = pd.DataFrame({"unique_id": "r", "ds": np.arange(40) * 0.02, "ax": np.sin(np.arange(40))})
    gesture.forecast(frame.drop(index=[3, 4, 9]))
    assert not gesture.notes
    gesture.forecast(frame[::2])
    assert gesture.notes[-1].startswith("frame: no two frames of r are less than 2 steps of 0.02 s apart; ")


def test_a_broken_frame_is_an_error_of_the_frame(daily):
    frame = frame_of({"a": 5})
    with pytest.raises(FrameError):
        daily.forecast(pd.concat([frame, frame]))


def dataset_of(frame: pd.DataFrame, channels) -> Dataset:
    return Dataset("ours", frame, "forecast", channels, "B", 5, 3, Splits(), "y")


def test_a_data_set_must_have_the_cards_channels(daily):
    frame = frame_of({"a": 12})
    found = daily.forecast(dataset_of(frame, CHANNELS))
    pd.testing.assert_frame_equal(found, daily.forecast(frame))
    with pytest.raises(BundleError, match=r"expects the channels .* got y \[EUR\]"):
        daily.forecast(dataset_of(frame, (Channel("y", "EUR"), CHANNELS[1])))


def gesture_frame(lengths: dict[str, int]) -> pd.DataFrame:
    parts = [
        pd.DataFrame({"unique_id": name, "ds": np.arange(length) * 0.02, "ax": walk(row + 1, length, 1)[0, :, 0]})
        for row, (name, length) in enumerate(lengths.items())
    ]
    return pd.concat(parts, ignore_index=True)


def test_complete_sequences_are_labelled_each_at_its_end(gesture):
    frame = gesture_frame({"a": 20, "b": 33, "c": 20})
    found = gesture.forecast(frame)
    assert list(found.columns) == ["unique_id", "ds", "model", "label", "p_left", "p_right"]
    assert found["ds"].tolist() == pytest.approx([0.38, 0.64, 0.38])
    for row, name in enumerate("abc"):
        x = frame.loc[frame["unique_id"] == name, ["ax"]].to_numpy()[None]
        expected = gesture.run_scan(x, np.ones_like(x), gesture.initial_state(1))[0][0, -1]
        np.testing.assert_allclose(found[["p_left", "p_right"]].to_numpy()[row], expected, atol=1e-6)
        assert found["label"][row] == ("left", "right")[int(expected.argmax())]


def test_a_regression_gives_one_row_for_each_series_whatever_its_target_column_holds(cycle):
    frame = pd.DataFrame(
        {"unique_id": ["a"] * 4 + ["b"] * 3, "ds": [1, 2, 3, 4, 1, 2, 3], "voltage": np.linspace(4, 3, 7), "y": np.nan}
    )
    found = cycle.forecast(frame)
    assert list(found.columns) == ["unique_id", "ds", "model", "mean", "q0.1", "q0.5", "q0.9"]
    assert found["ds"].tolist() == [4, 3]
    assert found["ds"].dtype == np.int64
    pd.testing.assert_frame_equal(found, cycle.forecast(frame.drop(columns="y")))


# Speed


def test_a_step_of_a_stream_costs_little_more_than_the_graph(daily):
    measured = daily.card["certificate"]["latency"]
    assert measured["stream_step_us"]["p50"] < measured["step_us"]["p50"] + 100
