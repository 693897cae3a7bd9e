import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.frame import Channel, Dataset, Splits
from data.panel import Series, to_panel
from forecasting import backtest as engine
from forecasting import metrics, passes
from forecasting.backtest import backtest, compare
from forecasting.conformal import calibrate
from forecasting.passes import cutoff_positions, one_pass, rewindowed
from forecasting.scores import LEADERBOARD
from forecasting.task import Task, TaskError
from forecasting.training import Trained, fit_model
from forecasting.windows import Parts, Span, known_before, split
from models.contract import ModelError

VALUE = Channel("y", "1")
SMALL = {"device": "cpu", "hidden": 8, "embed": 4, "lookback": 12, "stride": 6, "max_epochs": 1, "learning_rate": 0.05}
NO_SPLITS = Splits()


def noise(length, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=length)


def walk(length, seed=0) -> np.ndarray:
    return 50 + noise(length, seed).cumsum()


def dataset(*series, horizon=3, season=1, starts=None, splits=NO_SPLITS) -> Dataset:
    starts = starts or [0] * len(series)
    frames = [
        pd.DataFrame({"unique_id": chr(ord("a") + index), "ds": start + np.arange(len(values)), "y": values})
        for index, (values, start) in enumerate(zip(series, starts, strict=True))
    ]
    frame = pd.concat(frames, ignore_index=True).astype({"y": float})
    return Dataset("toy", frame, "forecast", (VALUE,), 1, season, horizon, splits, "y")


def parts_of(data, **how) -> tuple[Task, Parts]:
    task = Task.of(data)
    return task, split(data, to_panel(data), task, **how)


def board_of(report) -> pd.DataFrame:
    return report.leaderboard.set_index("model")


# One pass


@pytest.fixture(scope="module")
def trained():
    """One model of each kind, for a horizon of 3."""
    task, parts = parts_of(dataset(walk(80), walk(60, seed=1)))
    return {name: fit_model(name, task, parts, settings=SMALL if name == "gru" else {"lookback": 12}).model
            for name in ("naive", "ridge", "gru")}  # fmt: skip


@st.composite
def ragged(draw):
    """Series of different lengths with gaps, a span in each, and cut-offs at some of its positions."""
    spans, positions = [], []
    for index in range(draw(st.integers(1, 4))):
        length = draw(st.integers(5, 60))
        values = walk(length, seed=draw(st.integers(0, 99)))
        values[noise(length, seed=index + 7) > 1.2] = np.nan
        begin = draw(st.integers(0, length - 4))
        span = Span(Series(f"s{index}", np.arange(length), values[:, None], None), begin, length)
        spans.append(span)
        positions.append(cutoff_positions(span, 3, draw(st.integers(1, 4))))
    return spans, positions


@pytest.mark.parametrize("name", ["naive", "ridge", "gru"])
@given(case=ragged(), piece=st.sampled_from([1, 300, 8_000_000]))
def test_one_pass_gives_what_a_new_window_at_every_cutoff_gives(trained, name, case, piece):
    spans, positions = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "VALUES_AT_ONCE", piece)  # so that long series run in pieces
        quick = one_pass(trained[name], spans, positions)
    for span, at, row in zip(spans, positions, quick, strict=True):
        assert row.span is span
        assert row.values.shape == (len(at), 3, 9)
        if len(at):
            slow = rewindowed(trained[name], span, at)
            np.testing.assert_allclose(row.values, slow.values, rtol=1e-5, atol=1e-4)


def test_a_window_as_long_as_its_lags_is_all_that_ridge_looks_at(trained):
    span = Span(Series("a", np.arange(60), walk(60)[:, None], None), 30, 60)
    at = cutoff_positions(span, 3)
    short, long = rewindowed(trained["ridge"], span, at, lookback=12, batch=7), rewindowed(trained["ridge"], span, at)
    np.testing.assert_allclose(short.values[:, :, 4], long.values[:, :, 4], rtol=1e-2)
    alone = rewindowed(trained["ridge"], span, at[5:6], lookback=12)
    np.testing.assert_allclose(alone.values, short.values[5:6], rtol=1e-6)


@given(st.integers(1, 60), st.integers(0, 60), st.integers(1, 6), st.integers(1, 5))
def test_every_cutoff_has_its_targets_inside_the_test(length, begin, horizon, stride):
    span = Span(Series("a", np.arange(length), np.zeros((length, 1)), None), min(begin, length), length)
    at = cutoff_positions(span, horizon, stride)
    assert (at >= max(span.begin - 1, 0)).all()
    assert (at + horizon < span.end).all()
    assert (np.diff(at) == stride).all()
    if span.begin and span.end - span.begin >= horizon:
        assert at[0] == span.begin - 1
        assert at[-1] + horizon + stride >= span.end


@pytest.mark.parametrize("refit", [None, 5])
def test_what_comes_after_a_cutoff_changes_no_forecast_up_to_it(refit):
    series = [walk(70), walk(90, seed=1)]
    last = 19  # cut-offs before the end
    changed = [values.copy() for values in series]
    for values in changed:
        values[-last:] = 1e3 * noise(last)
        values[-last // 2] = np.nan
    before, after = (
        backtest(data, ["gru"], Task.of(data), test_size=30, refit=refit, settings=SMALL, stride=2).forecasts
        for data in (dataset(*series), dataset(*changed))
    )
    known = before["cutoff"] < before["unique_id"].map({"a": 70, "b": 90}) - last
    assert known.groupby([before["model"], before["unique_id"]]).sum().min() == 18  # 6 cut-offs of 3 steps
    columns = ["mean", *(column for column in before if column.startswith("q"))]
    np.testing.assert_array_equal(before.loc[known, columns], after.loc[known, columns])
    assert not np.allclose(before.loc[~known, columns], after.loc[~known, columns])


# Scores


def test_the_leaderboard_of_a_tiny_series_is_what_pencil_and_paper_give():
    data = dataset([1, 3, 2, 4, 3, 5, 4, 6, 5, 8, 6], horizon=2)
    report = backtest(data, ["naive"], Task.of(data), test_size=3)
    # Forecasts 6, 6 of 5, 8 and 5, 5 of 8, 6; the standard deviations are sqrt(19 / 7), sqrt(2.5), and those * sqrt(2).
    naive = board_of(report).loc["naive"]
    assert naive["mae"] == pytest.approx(7 / 4)
    assert naive["mse"] == pytest.approx(15 / 4)
    assert naive["rmse"] == pytest.approx((15 / 4) ** 0.5)
    assert naive["mase"] == pytest.approx(7 / 4 / (11 / 7))  # in-sample steps: 2 1 2 1 2 1 2
    assert naive["smape"] == pytest.approx(50 * (1 / 11 + 2 / 14 + 3 / 13 + 1 / 11))
    assert naive["coverage_80"] == 3 / 4  # 8 lies 3 above 5, and 1.28 * sqrt(2.5) is 2.03
    assert (naive["n_series"], naive["n_cutoffs"], naive["skill_vs_naive"]) == (1, 2, 0)


def with_gaps(values) -> np.ndarray:
    values = values.copy()
    values[::9] = np.nan
    return values


@pytest.fixture(scope="module")
def report():
    data = dataset(walk(80), with_gaps(walk(100, seed=1)), 10 + noise(90, seed=2), horizon=4, season=2)
    return backtest(data, ["gru"], Task.of(data), test_size=25, settings=SMALL)


def scales_of(report, test_size) -> pd.Series:
    history = report.history.groupby("unique_id")["y"]
    return history.apply(lambda y: metrics.seasonal_scale(y.to_numpy()[:-test_size], report.task.season))


def test_the_leaderboard_can_be_recomputed_from_the_forecasts(report):
    scale = scales_of(report, 25)
    for model, rows in report.forecasts.dropna(subset="y").groupby("model"):
        board = board_of(report).loc[model]
        error = (rows["y"] - rows["mean"]).abs()
        assert board["mae"] == pytest.approx(error.mean())
        assert board["rmse"] == pytest.approx((error**2).mean() ** 0.5)
        assert board["mase"] == pytest.approx((error / rows["unique_id"].map(scale)).mean())
        assert board["smape"] == pytest.approx((200 * error / (rows["y"].abs() + rows["mean"].abs())).mean())
        assert board["coverage_80"] == pytest.approx(rows["y"].between(rows["q0.1"], rows["q0.9"]).mean())
        losses = [(level * (rows["y"] - q)).where(rows["y"] >= q, (level - 1) * (rows["y"] - q)).mean()
                  for level in report.task.quantiles for q in [rows[f"q{level:g}"]]]  # fmt: skip
        assert board["pinball"] == pytest.approx(np.mean(losses), rel=1e-5)
        assert board["skill_vs_naive"] == pytest.approx(1 - board["mase"] / board_of(report)["mase"]["naive"])
        assert (board["n_series"], board["n_cutoffs"]) == (3, 22)


def test_skill_is_above_0_exactly_for_models_that_beat_the_naive_forecast(report):
    board = board_of(report)
    others = board.drop("naive")
    assert ((others["skill_vs_naive"] > 0) == (others["mase"] < board["mase"]["naive"])).all()
    assert board["skill_vs_naive"]["naive"] == 0
    assert np.isnan(board["dm_p_value"]["naive"])


def test_the_leaderboard_is_sorted_and_complete(report):
    assert list(report.leaderboard.columns) == list(LEADERBOARD)
    assert report.leaderboard["mase"].is_monotonic_increasing
    assert (report.leaderboard["fit_seconds"] >= 0).all()
    assert (report.leaderboard["predict_seconds"] > 0).all()
    assert report.leaderboard[["mape", "accuracy", "macro_f1", "earliness"]].isna().all(axis=None)


def losses_by_cutoff(report, model, scale) -> np.ndarray:
    rows = report.forecasts[report.forecasts["model"] == model]
    error = (rows["y"] - rows["mean"]).abs() / rows["unique_id"].map(scale)
    each = error.groupby([rows["unique_id"], rows["cutoff"]]).mean().unstack(0)
    aligned = [each[name].dropna(how="all").to_numpy() for name in each]  # the n-th cut-off of every series
    return np.nanmean(np.stack(aligned), axis=0)


@pytest.mark.parametrize(("count", "test_size", "stride"), [(1, 30, 1), (1, 40, 2), (5, 7, 1)])
def test_the_p_value_is_that_of_the_losses_per_cutoff_whose_targets_overlap(count, test_size, stride):
    """With 5 series and 5 cut-offs too: the cut-offs follow each other, and their errors are correlated."""
    data = dataset(*[walk(80, seed) for seed in range(count)])
    report = backtest(data, [], Task.of(data), test_size=test_size, stride=stride)
    scale = scales_of(report, test_size)
    loss, reference = (losses_by_cutoff(report, name, scale) for name in ("ridge", "naive"))
    overlap = -(-3 // stride)
    expected = metrics.diebold_mariano(loss, reference, overlap)
    p_value = board_of(report)["dm_p_value"]["ridge"]
    assert p_value == pytest.approx(expected.p_value, rel=1e-4)
    assert 0 < p_value <= 1
    swapped = metrics.diebold_mariano(reference, loss, overlap)
    assert (swapped.p_value, swapped.statistic) == (pytest.approx(expected.p_value), -expected.statistic)


def test_many_series_with_few_cutoffs_are_compared_by_series():
    data = dataset(*[walk(60, seed) for seed in range(12)])
    report = backtest(data, [], Task.of(data), test_size=4)  # 2 cut-offs
    rows = report.forecasts.assign(error=(report.forecasts["y"] - report.forecasts["mean"]).abs())
    rows["error"] /= rows["unique_id"].map(scales_of(report, 4))
    loss = rows.groupby(["model", "unique_id"])["error"].mean().unstack(0)
    expected = metrics.diebold_mariano(loss["ridge"], loss["naive"], 1).p_value
    assert board_of(report)["dm_p_value"]["ridge"] == pytest.approx(expected, rel=1e-4)


@settings(max_examples=5)
@given(st.floats(0.01, 100), st.integers(0, 99))
def test_mase_is_in_units_of_what_came_before_the_test(factor, seed):
    values = walk(80)
    other = np.r_[values[:60], factor * walk(20, seed)]
    boards = [board_of(backtest(d, [], Task.of(d), test_size=20)) for d in (dataset(values), dataset(other))]
    units = [board["mae"] / board["mase"] for board in boards]
    np.testing.assert_allclose(units[0], np.abs(np.diff(values[:60])).mean())
    np.testing.assert_allclose(units[1], units[0])


def test_a_constant_series_is_left_out_of_mase_and_not_of_the_other_measures():
    data = dataset(walk(60), np.full(60, 5.0))
    board = board_of(backtest(data, [], Task.of(data), test_size=10))
    alone = board_of(backtest(dataset(walk(60)), [], Task.of(data), test_size=10))
    assert board["mase"]["naive"] == pytest.approx(alone["mase"]["naive"])
    assert board["mae"]["naive"] == pytest.approx(alone["mae"]["naive"] / 2)


# Which models, with which settings


@pytest.mark.parametrize("asked", [[], ["naive"], ["gru"], ["ridge", "gru", "gru"]])
def test_naive_and_ridge_stand_beside_whatever_was_asked(asked):
    data = dataset(walk(60))
    report = backtest(data, asked, Task.of(data), test_size=9, settings=SMALL if "gru" in asked else {})
    expected = {"naive", "ridge", *asked}
    assert sorted(report.leaderboard["model"]) == sorted(report.models) == sorted(expected)
    assert set(report.forecasts["model"]) == expected


def test_a_ridge_that_nobody_asked_for_and_that_has_nothing_to_learn_from_stops_nobody():
    data = dataset(walk(4), horizon=1)
    report = backtest(data, ["naive"], Task.of(data), test_size=1)
    assert list(report.leaderboard["model"]) == ["naive"]
    assert any(note.startswith("ridge is left out: ridge found nothing to learn from") for note in report.notes)
    with pytest.raises(ModelError, match="ridge found nothing to learn from"):
        backtest(data, ["ridge"], Task.of(data), test_size=1)


@pytest.mark.parametrize(
    ("levels", "lacking"), [((0.9,), "0.1"), ((0.1, 0.5, 0.8), "0.9, 0.2"), ((0.3, 0.5, 0.7), None)]
)
def test_a_mean_of_quantiles_on_one_side_is_remarked_on(levels, lacking):
    data = dataset(walk(60))
    notes = backtest(data, [], replace(Task.of(data), quantiles=levels), test_size=9, calibrated=False).notes
    said = [note for note in notes if note.startswith("the mean is that of the quantiles at ")]
    assert [note.partition("add the levels ")[2] for note in said] == (
        [] if lacking is None else [f"{lacking} or go by pinball."]
    )


def test_a_setting_goes_to_the_models_that_have_it():
    data = dataset(walk(60))
    given = {"hidden": "8", "embed": "4", "max_epochs": "1", "penalty": "0.5", "lookback": "10"}
    models = backtest(data, ["gru", "rnn"], Task.of(data), test_size=9, settings=given).models
    assert models["gru"].config["hidden"] == models["rnn"].config["hidden"] == 8
    assert "hidden" not in models["ridge"].config
    assert models["ridge"].config["penalty"] == 0.5
    assert models["naive"].config["lookback"] == models["gru"].config["lookback"] == 10


@pytest.mark.parametrize(
    ("models", "given", "error", "message"),
    [
        (
            ["gru"],
            {"hiden": 8},
            TaskError,
            "no model here has a field 'hiden'; known: .*hidden.*learning_rate.*penalty",
        ),
        (["naive"], {"hidden": 8}, TaskError, "no model here has a field 'hidden'; known: batch_size"),
        (["gru"], {"hidden": "wide"}, TaskError, "hidden takes a value of type int, not 'wide'"),
        (["gru"], {"dropout": 2}, ModelError, r"dropout lies in \[0, 1\)"),
        (["gru"], {"patience": 0}, TaskError, "patience is at least 1"),
        (["gru", "oracle"], {}, ModelError, "unknown model 'oracle'; known: naive, ridge"),
        (["bigru"], {}, ModelError, "bigru does not forecast; these do: naive, ridge"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_trained(monkeypatch, models, given, error, message):
    monkeypatch.setattr(engine, "fit_model", lambda *_, **__: pytest.fail("trained"))
    data = dataset(walk(60))
    with pytest.raises(error, match=message):
        backtest(data, models, Task.of(data), test_size=9, settings=given)


@pytest.mark.parametrize("numbers", [{"stride": 0}, {"refit": 0}, {"refit": -3}])
def test_strides_and_refits_are_counted_from_1(numbers):
    data = dataset(walk(60))
    with pytest.raises(TaskError, match="the stride and the refit interval are at least 1 cut-off, got"):
        backtest(data, [], Task.of(data), test_size=9, **numbers)


def test_a_test_must_be_there():
    data = dataset(walk(60))
    with pytest.raises(TaskError, match="toy: no series has a test part of at least 3 steps"):
        backtest(data, [], Task.of(data), cutoff=100)


# Refits


class Spy:
    """Fits as ever and remembers on what."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Parts]] = []

    def __call__(self, name, task, parts, **options):
        self.calls.append((name, parts))
        return fit_model(name, task, parts, **options)

    def of(self, name) -> list[Parts]:
        return [parts for called, parts in self.calls if called == name]


@pytest.fixture
def spy(monkeypatch) -> Spy:
    watcher = Spy()
    monkeypatch.setattr(engine, "fit_model", watcher)
    return watcher


def test_forecasts_before_the_first_refit_are_those_of_a_single_fit_and_later_ones_are_not():
    task, parts = parts_of(dataset(walk(80), walk(90, seed=1)), test_size=20)
    never, anew = (compare(parts, ["gru"], task, settings=SMALL, refit=refit).forecasts for refit in (None, 6))
    place = never.groupby(["model", "unique_id"])["cutoff"].transform(lambda at: at - at.min())
    first = place < 6
    columns = ["mean", *(column for column in never if column.startswith("q"))]
    np.testing.assert_allclose(never.loc[first, columns], anew.loc[first, columns], rtol=1e-6)
    for model in ("ridge", "gru"):
        rows = ~first & (never["model"] == model)
        assert not np.allclose(never.loc[rows, columns], anew.loc[rows, columns], rtol=1e-4)
    rest = never["model"] == "naive"  # nothing to fit
    np.testing.assert_allclose(never.loc[rest, columns], anew.loc[rest, columns], rtol=1e-6)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_refit_learns_from_all_that_is_known_at_its_cutoff_and_from_nothing_after(spy, stride):
    """Series end at different times; the shorter ones have no cut-off left at the later refits."""
    data = dataset(walk(80), walk(67, seed=1), walk(40, seed=2), starts=[0, 0, 20])
    task, parts = parts_of(data, cutoff=49)
    compare(parts, [], task, refit=6, stride=stride)
    cutoffs = {span.series.unique_id: cutoff_positions(span, 3, stride) for span in parts.test}
    fits = spy.of("ridge")
    assert len(fits) == -(-max(map(len, cutoffs.values())) // 6)
    for number, known in enumerate(fits):
        for span in known.train:
            name, first = span.series.unique_id, number * 6
            validation = next(other for other in known.validation if other.series.unique_id == name)
            assert span.begin == 0
            assert span.end <= validation.begin
            assert validation.end <= len(span.series.ds)
            if first < len(cutoffs[name]):
                assert validation.end == cutoffs[name][first] + 1


def test_a_refit_per_series_does_not_depend_on_another_series_that_has_ended():
    """The shorter one's validation part, moved on at the second refit, is where its test was."""
    splits = Splits(train_until=89, validation_until=99)
    both = dataset(walk(120), walk(110, seed=1), horizon=1, splits=splits)
    alone = dataset(walk(120), horizon=1, splits=splits)
    tables = [backtest(data, ["theta"], Task.of(data), refit=10, calibrated=False).forecasts for data in (both, alone)]
    found, expected = (
        table[table["model"].eq("theta") & table["unique_id"].eq("a")].reset_index(drop=True) for table in tables
    )
    pd.testing.assert_frame_equal(found, expected)


def test_a_data_set_that_is_split_by_series_has_nothing_newer_to_refit_on():
    data = recordings()
    with pytest.raises(TaskError, match="split by series, not by time: there is nothing newer to refit on"):
        backtest(data, [], Task.of(data), refit=3)


# Frames


def test_a_stride_takes_every_so_manieth_cutoff():
    data = dataset(walk(60))
    every, third = (backtest(data, [], Task.of(data), test_size=14, stride=stride).forecasts for stride in (1, 3))
    assert sorted(set(every["cutoff"])) == list(range(45, 57))
    assert sorted(set(third["cutoff"])) == [45, 48, 51, 54]
    kept = every[every["cutoff"].isin(third["cutoff"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, third)


@pytest.mark.parametrize("freq", ["B", "h", 2, 0.5])
def test_a_forecast_stands_at_the_time_it_is_for_beside_the_value_that_came(freq):
    if isinstance(freq, str):
        ds = pd.date_range("2024-01-05", periods=50, freq=freq)
    else:
        ds = 4 + freq * np.arange(50)
    frame = pd.DataFrame({"unique_id": "a", "ds": ds, "y": walk(50)})
    frame = frame.drop(index=[20, 43]).reset_index(drop=True)  # a missing row is a step like any other
    data = Dataset("toy", frame, "forecast", (VALUE,), freq, 1, 3, NO_SPLITS, "y")
    forecasts = backtest(data, [], Task.of(data, quantiles=(0.25, 0.5)), test_size=10).forecasts
    assert list(forecasts) == ["unique_id", "cutoff", "ds", "model", "mean", "q0.25", "q0.5", "y", "substitute"]
    assert len(forecasts) == 2 * 8 * 3
    steps = forecasts.groupby(["model", "cutoff"])["ds"].apply(list)
    place = {time: index for index, time in enumerate(ds)}
    for (_, cutoff), times in steps.items():
        assert [place[time] - place[cutoff] for time in times] == [1, 2, 3]
    known = forecasts.merge(frame, on=["unique_id", "ds"], how="left", suffixes=("", "_frame"))
    pd.testing.assert_series_equal(known["y"], known["y_frame"], check_names=False)
    assert known.loc[known["ds"] == ds[43], "y"].isna().all()


def test_quantiles_are_calibrated_on_whole_horizons_before_the_test_so_that_each_outcome_counts_once():
    task, parts = parts_of(dataset(walk(105), walk(60, 1)), test_size=20)
    report = compare(parts, ["naive"], task)
    model = report.models["naive"].model
    positions = [
        np.array([69, 72, 75, 78, 81]),
        np.array([33, 36]),
    ]  # the tests begin at 85 and 40, validation at 68, 32
    rows = one_pass(model, parts.validation, positions)
    actual = [row.span.series.values[row.positions[:, None] + [1, 2, 3], 0] for row in rows]
    expected = calibrate(np.concatenate(actual), np.concatenate([row.values for row in rows]), task.quantiles)
    np.testing.assert_allclose(report.calibrations["naive"].factors, expected.factors)
    assert report.calibrations["naive"].scores == 3 * (5 + 2)


def test_the_history_is_what_entered_the_models_up_to_the_end_of_the_test():
    splits = Splits(train_until=30, validation_until=39, test_until=49)
    data = dataset(walk(60), splits=splits)
    report = backtest(data, [], Task.of(data))
    pd.testing.assert_frame_equal(report.history, data.frame.iloc[:50])
    assert report.forecasts["ds"].max() == 49


def test_a_series_that_is_new_with_the_test_is_judged_after_one_horizon_of_its_past():
    splits = Splits(entity={"a": "train", "b": "train", "c": "test"})
    data = dataset(walk(60), walk(60, seed=1), walk(30, seed=2), splits=splits)
    report = backtest(data, [], Task.of(data))
    assert set(report.forecasts["unique_id"]) == {"c"}
    assert report.forecasts["cutoff"].min() == 2
    assert report.leaderboard["mase"].notna().all()


def test_a_series_that_is_too_short_to_be_judged_is_named_and_costs_the_others_nothing():
    splits = Splits(entity={"a": "train", "b": "validation", "c": "test", "d": "test"})
    data = dataset(walk(60), walk(60, seed=1), walk(30, seed=2), walk(5, seed=3), splits=splits)
    report = backtest(data, [], Task.of(data))
    board = board_of(report)
    assert (board["n_series"] == 1).all()
    assert board[["pinball", "coverage_80"]].notna().all(axis=None)
    said = r"1 of 2 test series are too short to be judged and are left out: d\. One .* needs 6 steps"
    assert any(re.match(said, note) for note in report.notes)
    with pytest.raises(TaskError, match="2 of 2 test series are too short to be judged"):
        backtest(data, [], Task.of(data, horizon=16))


def test_a_test_without_a_value_is_said_to_judge_nothing():
    data = dataset(np.r_[walk(60), np.full(10, np.nan)])
    said = "no y is known after any cut-off of the test, so nothing is judged. Begin it earlier."
    assert said in backtest(data, [], Task.of(data), test_size=10).notes
    assert said not in backtest(data, [], Task.of(data), test_size=13).notes


# Classes and numbers


def recordings(count=15, length=14, labels="series") -> Dataset:
    """Three kinds of movement; 'series': one label each, 'frames': the label changes on the way."""
    frames = []
    for index in range(count):
        kind = np.full(length, index % 3)
        if labels == "frames":
            kind[length // 2 :] = (index + 1) % 3
        x = 3.0 * kind + 0.1 * noise(length, seed=index)
        name = [("rest", "wave", "turn")[number] for number in kind]
        frames.append(pd.DataFrame({"unique_id": f"m{index:02}", "ds": np.arange(length), "x": x, "label": name}))
    frame = pd.concat(frames, ignore_index=True)
    frame.loc[frame["ds"] == 0, "label"] = None
    return Dataset("moves", frame, "classify", (Channel("x", "g"),), 1, 1, 1, NO_SPLITS, "label")


def test_recordings_with_one_label_are_judged_by_their_last_frame():
    data = recordings()
    report = backtest(data, ["gru", "bigru"], Task.of(data), settings=SMALL | {"max_epochs": 2})
    rows = report.forecasts
    shown = [f"p_{label}" for label in ("rest", "turn", "wave")]
    assert list(rows) == ["unique_id", "ds", "model", "label", *shown, "y"]
    np.testing.assert_allclose(rows[shown].sum(axis=1), 1, rtol=1e-5)
    assert (rows["label"] == rows[shown].idxmax(axis=1).str.removeprefix("p_")).all()
    assert rows.loc[rows["ds"] == 0, "y"].isna().all()
    last = rows[rows["ds"] == 13]
    board = board_of(report)
    for model, frames in last.groupby("model"):
        assert board["accuracy"][model] == pytest.approx((frames["label"] == frames["y"]).mean())
        assert board["n_cutoffs"][model] == len(frames) == 3
    error = 1 - board["accuracy"]
    np.testing.assert_allclose(board["skill_vs_naive"], 1 - error / error["naive"])
    assert report.leaderboard["accuracy"].is_monotonic_decreasing
    assert 0 < board["earliness"]["gru"] <= 1
    assert np.isnan(board["earliness"]["bigru"])  # it answers when all is over
    assert board[["mase", "mae", "pinball"]].isna().all(axis=None)


def test_labels_that_change_on_the_way_are_judged_at_every_frame():
    data = recordings(labels="frames")
    report = backtest(data, [], Task.of(data))
    known = report.forecasts.dropna(subset="y")
    for model, frames in known.groupby("model"):
        board = board_of(report).loc[model]
        assert board["n_cutoffs"] == len(frames) == 3 * 13
        assert board["accuracy"] == pytest.approx((frames["label"] == frames["y"]).mean())
        assert np.isnan(board["earliness"])


def test_a_stray_label_among_recordings_of_one_label_each_is_said():
    data = recordings()
    plain = backtest(data, [], Task.of(data))
    stray = plain.forecasts["unique_id"].iloc[-1]
    frame = data.frame.copy()
    frame.loc[(frame["unique_id"] == stray) & (frame["ds"] == 5), "label"] = "turn"
    frame.loc[(frame["unique_id"] == stray) & (frame["ds"] == 6), "label"] = "rest"
    report = backtest(replace(data, frame=frame), [], Task.of(data))
    assert board_of(report)["n_cutoffs"]["naive"] == 3 * 13
    expected = f"1 of 3 test series have more than one label: {stray}; so all are judged at every row"
    assert [expected in note for note in report.notes].count(True) == 1
    for judged in (plain, backtest(recordings(labels="frames"), [], Task.of(data))):
        assert not any("more than one label" in note for note in judged.notes)


@pytest.mark.parametrize("constant", [True, False])
def test_lives_are_judged_by_their_error_and_quantiles(constant):
    frames = []
    for index in range(15):
        life = 10.0 + index if constant else np.arange(30.0, 18.0, -1.0)
        x = 0.1 * np.asarray(life) + 0.01 * noise(12, seed=index)
        frames.append(pd.DataFrame({"unique_id": f"c{index:02}", "ds": np.arange(12), "x": x, "y": life}))
    frame = pd.concat(frames, ignore_index=True)
    data = Dataset("cells", frame, "regress", (Channel("x", "V"),), 1, 1, 1, NO_SPLITS, "y")
    report = backtest(data, ["gru"], Task.of(data, quantiles=(0.1, 0.5, 0.9)), settings=SMALL)
    rows = report.forecasts
    assert list(rows) == ["unique_id", "ds", "model", "mean", "q0.1", "q0.5", "q0.9", "y"]
    assert (rows["q0.1"] <= rows["q0.5"]).all()
    assert (rows["q0.5"] <= rows["q0.9"]).all()
    judged = rows[rows["ds"] == 11] if constant else rows
    board = board_of(report)
    for model, some in judged.groupby("model"):
        error = (some["y"] - some["mean"]).abs()
        assert board["mae"][model] == pytest.approx(error.mean())
        assert board["mape"][model] == pytest.approx((100 * error / some["y"]).mean())
        assert board["n_cutoffs"][model] == len(some)
    assert board["mae"]["ridge"] < 0.5 * board["mae"]["naive"]
    assert board["skill_vs_naive"]["ridge"] > 0.5
    assert report.leaderboard["mae"].is_monotonic_increasing


def test_a_model_that_does_not_stream_sees_the_whole_recording():
    data = recordings()
    task, parts = parts_of(data)
    model = fit_model("bigru", task, parts, settings=SMALL).model
    span = parts.test[0]
    (row,) = one_pass(model, [span], [np.array([3])])
    x = torch.from_numpy(span.series.values[None].astype(np.float32))
    whole, _ = model.scan(x, torch.ones_like(x), model.initial_state(1))
    np.testing.assert_allclose(row.values, whole[0, 3:4].detach(), rtol=1e-6)
    cut_short = replace(span, series=replace(span.series, values=span.series.values[:4], ds=span.series.ds[:4]))
    assert not np.allclose(one_pass(model, [cut_short], [np.array([3])])[0].values, row.values)


@pytest.mark.parametrize("name", ["gru", "rocket"])
def test_a_series_of_a_known_person_is_seen_as_by_a_stream_that_went_on(name):
    """Of the stream's state the statistics go on, and the rest begins anew."""
    data = recordings()
    task, parts = parts_of(data)
    small = SMALL if name == "gru" else {"dilations": 1, "thresholds": 1, "levels": 4, "hidden": 8, "max_epochs": 1}
    model = fit_model(name, task, parts, settings=small | {"prior": 4}).model
    span = parts.test[0]
    half = len(span.series.ds) // 2
    earlier, later = (
        replace(span.series, unique_id=part, ds=span.series.ds[at], values=span.series.values[at])
        for part, at in (("earlier", slice(0, half)), ("later", slice(half, None)))
    )
    known = known_before([earlier, later], {"earlier": "one", "later": "one"})
    spans = [Span(each, 0, len(each.ds), known[each.unique_id]) for each in (earlier, later)]
    positions = [np.arange(len(each.ds)) for each in (earlier, later)]
    found = one_pass(model, spans, positions)[1].values
    x = torch.from_numpy(earlier.values[None].astype(np.float32))
    _, state = model.scan(x, torch.ones_like(x), model.initial_state(1))
    begun = model.initial_state(1) | {key: value for key, value in state.items() if key.startswith("norm.")}
    mean = begun["norm.last"] - begun["norm.offset"]
    begun |= {"norm.last": mean, "norm.offset": torch.zeros_like(mean)}
    x = torch.from_numpy(later.values[None].astype(np.float32))
    expected, _ = model.scan(x, torch.ones_like(x), begun)
    np.testing.assert_allclose(found, expected[0].detach(), rtol=1e-4, atol=1e-6)
    stranger, _ = model.scan(x, torch.ones_like(x), model.initial_state(1))
    assert not np.allclose(found, stranger[0].detach(), rtol=1e-3)


def test_known_owner_is_what_models_learn_and_are_judged_with():
    names = [f"{person}/{number}" for person in ("ana", "bo", "cy") for number in range(1, 5)]
    splits = Splits(
        entity={name: {"a": "train", "b": "validation", "c": "test"}[name[0]] for name in names},
        group={name: name.split("/")[0] for name in names},
    )
    # Whether a series is up shows beside its person's level alone.
    rng = np.random.default_rng(0)
    levels = np.array([{"a": -50.0, "b": 0.0, "c": 50.0}[name[0]] for name in names])
    up = np.tile([0, 1, 1, 0], 3)
    frame = pd.DataFrame({"unique_id": np.repeat(names, 14), "ds": np.tile(np.arange(14), len(names))})
    frame["x"] = np.repeat(levels + 4.0 * up, 14) + rng.normal(size=len(frame))
    frame["label"] = np.repeat(np.where(up, "up", "down"), 14)
    people = Dataset("people", frame, "classify", (Channel("x", "g"),), 1, 1, 1, splits, "label")
    given = SMALL | {"known_owner": "true"}
    report = backtest(people, ["gru", "class-forest"], Task.of(people), settings=given)
    unknown = backtest(people, ["gru"], Task.of(people), settings=SMALL)
    judged, alone = (one.forecasts[one.forecasts["model"] == "gru"].reset_index() for one in (report, unknown))
    moved = (judged["p_up"] - alone["p_up"]).abs()
    assert moved[judged["unique_id"] != "cy/1"].min() > 0
    model = report.models["gru"]
    assert isinstance(model, Trained)
    assert model.config["known_owner"] is True
    said = [note for note in report.notes if "known_owner" in note]
    assert said == ["class-forest: keeps no statistics of an owner, so known_owner changes nothing."]


def test_known_owner_without_owners_is_refused_by_the_fit():
    data = dataset(walk(60))
    parts = split(data, to_panel(data), Task.of(data))
    with pytest.raises(TaskError, match="do not say what their owners have shown"):
        fit_model("gru", Task.of(data), parts, settings=SMALL | {"known_owner": True})


def test_recordings_too_few_for_a_test_are_told_how_many_it_takes():
    frame = pd.DataFrame({"unique_id": np.repeat(["a", "b"], 3), "ds": [0, 1, 2] * 2, "x": 1.0})
    frame["label"] = frame["unique_id"]
    data = Dataset("moves", frame, "classify", (Channel("x", "g"),), 1, 1, 1, NO_SPLITS, "label")
    with pytest.raises(TaskError, match=r"moves: no series is left to test on\. .*give at least three of each"):
        backtest(data, [], Task.of(data))
    with pytest.raises(TaskError, match="moves: no series has a test part of at least 1 steps"):
        backtest(data, [], Task.of(data), cutoff=100)


def test_a_channel_without_a_value_to_learn_from_is_named_with_what_to_do():
    frame = pd.DataFrame({"unique_id": np.repeat(list("abcdefgh"), 3), "ds": [0, 1, 2] * 8, "x": 1.0, "y": 2.0})
    frame["label"] = np.where(frame["unique_id"] < "e", "up", "down")
    frame["dead"] = np.nan
    channels = (Channel("x", "g"), Channel("dead", "g"), Channel("y", "g"))
    data = Dataset("moves", frame, "classify", channels, 1, 1, 1, NO_SPLITS, "label")
    with pytest.raises(TaskError, match=r"dead is missing in all rows of the training part.*: --covariates x,y\."):
        backtest(data, ["class-forest"], Task.of(data))
