"""Forecasts and live stream: what a backtest left, and a recording played through the model that it exported.

The page reads folders of results and runs bundles with onnxruntime; it knows no model and trains nothing. `main`
chooses and calls, `load_*` return frames, `draw_*` draw one thing.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import streamlit as st

from dashboards import FOLDER, charts
from dashboards.replay import Replay
from data.frame import show_time
from forecasting.bundle import CARD, BundleError
from forecasting.results import BUNDLE, FORECASTS, HISTORY, LATEST, RUN, Result, ResultError, find_results
from forecasting.runtime import LoadedBundle, load_bundle
from forecasting.task import Task

TICK_S = 0.25  # how often the live panel is drawn
WATCH_S = 10.0  # how often an open page looks for newer results
UNSTATED_RATE_HZ = 10.0  # of a recording that is counted in frames, or was made too slowly to be watched
SLOWEST_S = 1.0  # between two frames that are waited for
WINDOW = 60  # frames of the live chart
WINDOW_S = 10.0  # and at least so many seconds
SPEEDS = (1, 2, 5)
PAST = {"short": 3, "long": 10, "all": None}  # horizons of history beside the forecast
LEAST_HORIZON = 20  # steps, what counts as one there where the horizon is shorter
SIGNIFICANT = 0.05
UNREADABLE = (OSError, ValueError, KeyError, TypeError)  # whatever a damaged file provokes
SHARE, PERCENT = "share", "percent"
NOTHING = "-"
KEYS = ("unique_id", "ds", "model")


class Measure(NamedTuple):
    """A column of the leaderboard as it is shown; SHARE is stored as 0 to 1 and shown in per cent."""

    column: str
    title: str
    format: str
    help: str


MEASURES = (
    Measure("mase", "MASE", "%.3f", "Mean absolute error over the in-sample error of the seasonal naive forecast."),
    Measure("smape", "sMAPE", PERCENT, "Symmetric mean absolute percentage error, 0 to 200 %."),
    Measure("mae", "MAE", "%.4g", "Mean absolute error, in the target's unit."),
    Measure("rmse", "RMSE", "%.4g", "Root mean squared error, in the target's unit."),
    Measure("mape", "MAPE", PERCENT, "Mean absolute percentage error."),
    Measure("pinball", "Pinball", "%.4g", "Mean loss over the quantiles, in the target's unit."),
    Measure("coverage_80", "80 % covers", SHARE, "Share of the truth inside the 80 % interval; 80 % is right."),
    Measure("accuracy", "Accuracy", SHARE, "Share of series that were labelled right."),
    Measure("macro_f1", "Macro F1", "%.3f", "Mean over the classes of the F1 score."),
    Measure("earliness", "Earliness", SHARE, "Share of a series that was seen before the decision; less is earlier."),
    Measure("skill_vs_naive", "Skill vs naive", SHARE, "Share of the naive forecast's loss that is saved."),
    Measure(
        "dm_p_value", "p-value", "%.2g", "Diebold-Mariano: how likely is so large a difference from naive by chance."
    ),
    Measure("fit_seconds", "Fit", "%.2f s", "Seconds of training."),
    Measure("predict_seconds", "Predict", "%.2f s", "Seconds of predicting the whole test."),
)
RANKED_BY = {"forecast": ("mase", "mae"), "classify": ("accuracy",), "regress": ("mae",)}
LARGER_IS_BETTER = ("accuracy",)
KINDS = {"forecast": "forecast", "classify": "classification", "regress": "regression"}


class Chosen(NamedTuple):
    result: Result
    version: str
    task: Task
    board: pd.DataFrame  # the leaderboard, best first
    models: list[str]  # those of the leaderboard, then those that forecast and were not judged
    series: str
    forecasts: pd.DataFrame  # of the series
    history: pd.DataFrame  # of the series


def main() -> None:
    folder = Path(os.environ.get(FOLDER, "out"))
    seen = standing(folder)
    show(folder)
    st.fragment(lambda: watch(folder, seen), run_every=WATCH_S)()


def show(folder: Path) -> None:
    """The chosen result, or why there is none."""
    broken: list[str] = []
    try:
        results = find_results(folder, broken)
    except OSError as error:
        st.error(f"The results in {folder} cannot be read: {error}")
        return
    for said in broken:
        st.error(said)
    if not results:
        if not broken:
            draw_empty(folder)
        return
    with st.sidebar:
        result = choose_result(results)
    try:
        task, place, version = result.task, str(result.folder), modified(result)
        board = rank(load_leaderboard(place, version), task)
        names, models, left_out = load_names(place, version, task)
        with st.sidebar:
            series = st.selectbox("Series", names, key=f"series of {result.folder}")
        if series is None or board.empty:
            st.info(
                f"The result in {result.folder} holds no predictions; `mnemo backtest` with a longer test makes some."
            )
            return
        models = list(dict.fromkeys([*board["model"], *models]))
        chosen = Chosen(result, version, task, board, models, series, *load_series(place, version, task, series))
    except UNREADABLE as error:
        st.error(
            f"The result in {result.folder} cannot be read: {error}. "
            f"`mnemo backtest ... --out {result.folder}` writes it again."
        )
        return
    if left_out:
        st.warning(
            f"The newest forecast is not shown: {left_out}. `mnemo forecast --bundle ... --data ... --out "
            f"{result.folder / LATEST}` writes it again."
        )
    draw_heading(chosen)
    {"forecast": forecast_view, "classify": class_view, "regress": number_view}[task.kind](chosen)
    draw_leaderboard(chosen)
    draw_notes(chosen)


def forecast_view(chosen: Chosen) -> None:
    draw_best(chosen)
    models = choose_models(chosen)
    cutoffs = list(np.sort(chosen.forecasts["cutoff"].unique()))
    cutoff = cutoffs[-1]
    with st.sidebar:
        shown = st.segmented_control("History", list(PAST), default="short", required=True)
        past = st.toggle("Forecasts of earlier cut-offs", value=True)
    place = st.container()
    if len(cutoffs) > 1:
        cutoff = st.select_slider(
            "Cut-off: what was known when the forecast was made",
            cutoffs,
            value=cutoff,
            format_func=show_time,
            key=f"cut-off of {chosen.result.folder}/{chosen.series} up to {show_time(cutoff)}",  # a newer one is shown
        )
    horizons = PAST[shown or "short"]
    steps = None if horizons is None else horizons * max(LEAST_HORIZON, chosen.task.horizon)
    with place:
        draw_forecast(chosen, cutoff, models, steps, past)
    newest = chosen.result.folder / LATEST
    if not newest.exists():
        st.caption(f"Of the end of the data: `mnemo forecast --bundle ... --data ... --out {newest}` is shown here.")


def standing(folder: Path) -> dict[Path, int]:
    """What a folder's results were last written as: the files that tell of a change, and when that was."""
    found = {}
    for name in (RUN, LATEST, f"{BUNDLE}/{CARD}"):
        for path in (*folder.glob(name), *folder.glob(f"*/{name}")):
            with contextlib.suppress(OSError):  # gone again
                found[path] = path.stat().st_mtime_ns
    return found


def watch(folder: Path, seen: dict[Path, int]) -> None:
    """Draw the page anew where a result was written, as by a nightly forecast, or went, or came back."""
    if standing(folder) != seen:
        st.rerun()


def class_view(chosen: Chosen) -> None:
    views = ["Live stream", "Whole series"] if chosen.result.bundle else ["Whole series"]
    view = st.segmented_control("View", views, default=views[0], required=True, label_visibility="collapsed")
    if view == "Live stream" and chosen.result.bundle:
        live_view(chosen, chosen.result.bundle)
        return
    if not chosen.result.bundle:
        beside = chosen.result.folder / BUNDLE
        st.caption(f"Live: `mnemo train --data ... --model ... --out {beside}` puts a model there that plays.")
    with st.sidebar:
        model = st.selectbox("Model", list(chosen.board["model"]))
    draw_best(chosen)
    draw_classes(chosen, model)


def number_view(chosen: Chosen) -> None:
    models = choose_models(chosen)
    if not models:
        st.info("Choose a model in the side bar.")
        return
    draw_best(chosen)
    draw_truth(chosen, load_judged(str(chosen.result.folder), chosen.version, chosen.task), models)
    if chosen.forecasts["ds"].nunique() > 1:
        draw_estimates(chosen, models)


def live_view(chosen: Chosen, path: Path) -> None:
    """A recording of the test played through the bundle's step; the page is drawn anew while it plays."""
    try:
        bundle = load_live_bundle(str(path), (path / CARD).stat().st_mtime_ns if (path / CARD).exists() else 0)
        if bundle.kind != chosen.task.kind:
            raise BundleError(
                f"{path}: its task is to {bundle.kind}; `mnemo train --task {chosen.task.kind}` makes one that plays"
            )
        bundle.check_channels(chosen.task.channels)
        replay = hold_replay(chosen, bundle)
    except BundleError as error:
        st.error(f"The model cannot run live: {error}")
        return
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        if replay.playing:
            st.button("Pause", icon=":material/pause:", width=130, on_click=replay.pause)
        else:
            st.button("Play", icon=":material/play_arrow:", type="primary", width=130, on_click=replay.play)
        st.button("Reset", icon=":material/replay:", width=130, on_click=replay.reset)
        speed = st.segmented_control(
            "Speed",
            SPEEDS,
            default=1,
            required=True,
            format_func=lambda times: f"\u00d7{times}",
            label_visibility="collapsed",
        )

    def tick() -> None:
        was_playing = replay.playing
        replay.tick(time.monotonic(), float(speed or 1))
        draw_live(chosen, bundle, replay)
        if was_playing and not replay.playing:
            st.rerun()  # at the end: the button says Play again, and the timer stops

    st.fragment(tick, run_every=TICK_S if replay.playing else None)()


def choose_result(results: Sequence[Result]) -> Result:
    names = [result.name for result in results]
    labels = [
        name if names.count(name) == 1 else str(result.folder) for name, result in zip(names, results, strict=True)
    ]
    return results[labels.index(st.selectbox("Result", labels) or labels[0])]


def choose_models(chosen: Chosen) -> list[str]:
    """Of the chosen models the best first; the leaderboard shows all of them whatever is chosen."""
    ranked = chosen.models
    newest = chosen.forecasts
    if "cutoff" in newest:
        newest = newest[newest["cutoff"] == newest["cutoff"].max()]
    trained = [name for name in ranked if name not in charts.REFERENCES][:1]
    trained += [name for name in ranked if name in set(newest["model"])][:1]
    with st.sidebar:
        picked = st.pills(
            "Models",
            ranked,
            selection_mode="multi",
            default=[name for name in ranked if name in (*charts.REFERENCES, *trained)],
            help="The best of the chosen models is drawn with its intervals, the others as a line.",
            key=f"models of {chosen.result.folder}: {', '.join(ranked)}",
        )
    return [model for model in ranked if model in picked]


def modified(result: Result) -> str:
    """When the result was written: run.json comes last, so one time stands for all of its files, but for the latest
    forecast, which is put there when there is a new one."""
    latest = result.folder / LATEST
    return f"{(result.folder / RUN).stat().st_mtime_ns}, {latest.stat().st_mtime_ns if latest.exists() else None}"


@st.cache_data(max_entries=16, show_spinner=False)
def load_leaderboard(folder: str, version: str) -> pd.DataFrame:
    """A row a model; measures that the file does not have are unknown."""
    board = Result(Path(folder), {}).leaderboard()
    needed = ["model", "n_series"]
    return board[needed].join(board.reindex(columns=[measure.column for measure in MEASURES]))


@st.cache_data(max_entries=16, show_spinner=False)
def load_names(folder: str, version: str, _task: Task) -> tuple[list[str], list[str], str]:
    """The series that have predictions, the models that made them, and why the latest forecast is not among them."""
    forecasts, _, left_out = _load_whole(folder, version, _task)
    return sorted(forecasts["unique_id"].unique()), list(forecasts["model"].unique()), left_out


@st.cache_data(max_entries=64, show_spinner=False)
def load_series(folder: str, version: str, _task: Task, series: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One series' predictions and history."""
    forecasts, history, _ = _load_whole(folder, version, _task)
    return forecasts[forecasts["unique_id"] == series], history[history["unique_id"] == series]


@st.cache_data(max_entries=16, show_spinner=False)
def load_judged(folder: str, version: str, _task: Task) -> pd.DataFrame:
    """The last prediction of each series and model whose truth is known."""
    forecasts, *_ = _load_whole(folder, version, _task)
    known = forecasts[forecasts["y"].notna()].sort_values("ds", kind="stable")
    return known.groupby(["model", "unique_id"], as_index=False, observed=True).tail(1)


# Shared and only read: a copy of a large result for every rerun would cost more than drawing it.
@st.cache_resource(max_entries=4, show_spinner="Reading the result…")
def _load_whole(folder: str, version: str, _task: Task) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    result = Result(Path(folder), {})
    forecasts, history = result.forecasts(), result.history()
    answer = {"forecast": ["cutoff", "mean"], "classify": ["label"], "regress": ["mean"]}[_task.kind]
    answer += [f"p_{label}" for label in _task.labels]
    check_columns(forecasts, [*KEYS, *answer, "y"], FORECASTS)
    check_columns(history, ["unique_id", "ds", *(channel.name for channel in _task.channels)], HISTORY)
    if _task.kind != "forecast":
        return forecasts, history, ""
    try:
        latest = result.latest()
        if latest is None:
            return forecasts, history, ""
        check_columns(latest, [*KEYS, *answer], LATEST)
        return with_latest(forecasts, latest, history), history, ""
    except UNREADABLE as error:
        return forecasts, history, str(error)


def check_columns(frame: pd.DataFrame, needed: Sequence[str], file: str) -> None:
    missing = [name for name in needed if name not in frame]
    if missing:
        raise ResultError(f"{file} has no column {', '.join(missing)}")


def with_latest(forecasts: pd.DataFrame, latest: pd.DataFrame, history: pd.DataFrame) -> pd.DataFrame:
    """A backtest's forecasts, and behind them those from later than each series' last cut-off, and of new series."""
    times = {str(frame[name].dtype) for frame in (forecasts, latest) for name in ("cutoff", "ds")}
    if len(times) > 1:
        raise ResultError(f"{LATEST} is of other data: its times are {latest['ds'].dtype}, not {forecasts['ds'].dtype}")
    latest = latest.assign(unique_id=latest["unique_id"].astype(str))
    last = latest["unique_id"].map(forecasts.groupby("unique_id")["cutoff"].max())
    later = latest[~(latest["cutoff"] <= last)]  # a series that was not judged has no last one
    if later.empty:
        raise ResultError(f"{LATEST} holds none from after the backtest's last cut-offs")
    outcome = later.drop(columns="y", errors="ignore").merge(history[["unique_id", "ds", "y"]], "left")
    return pd.concat([forecasts, outcome], ignore_index=True)


@st.cache_resource(max_entries=4, show_spinner="Loading the model…")
def load_live_bundle(path: str, modified_ns: int) -> LoadedBundle:
    return load_bundle(path)


def hold_replay(chosen: Chosen, bundle: LoadedBundle) -> Replay:
    """This session's playback of the chosen series, at its beginning if another one was held."""
    key = (str(bundle.path), bundle.card["sha256"][CARD], chosen.version, chosen.series)
    if st.session_state.get("replay key") != key:
        history = chosen.history
        first = chosen.forecasts.drop_duplicates("ds").set_index("ds")["y"]  # the truth is the same beside every model
        truth = history["ds"].map(first)
        st.session_state["replay"] = Replay(
            lambda: bundle.stream(series=[chosen.series]),
            history[[channel.name for channel in chosen.task.channels]].to_numpy("float32"),
            [label if isinstance(label, str) else None for label in truth],
            len(bundle.labels),
            period_s(chosen.task),
            bundle.look_names if bundle.has_look else (),
        )
        st.session_state["replay key"] = key
    return st.session_state["replay"]


def rank(board: pd.DataFrame, task: Task) -> pd.DataFrame:
    """Best first, by the first measure that is known for every model."""
    measure = ranking(board, task)
    ascending = measure not in LARGER_IS_BETTER
    return board.sort_values(measure, ascending=ascending, kind="stable", ignore_index=True)


def ranking(board: pd.DataFrame, task: Task) -> str:
    measures = RANKED_BY[task.kind]
    return next((name for name in measures if board[name].notna().all()), measures[-1])


def recorded_s(task: Task) -> float | None:
    """Seconds between two frames as they were recorded; None where the source does not state them."""
    if isinstance(task.freq, str):
        first, second = pd.date_range("2024-01-01", periods=2, freq=task.freq)
        return float((second - first).total_seconds())
    return task.freq if isinstance(task.freq, float) else None


def period_s(task: Task) -> float:
    """Seconds between two frames as a recording is played."""
    recorded = recorded_s(task)
    return 1 / UNSTATED_RATE_HZ if recorded is None or recorded > SLOWEST_S else recorded


def time_label(task: Task) -> str:
    if isinstance(task.freq, str):
        return ""  # dates speak for themselves
    if isinstance(task.freq, float):
        return "time in s"
    return "frame" if task.kind == "classify" else "cycle"


def palette() -> charts.Palette:
    return charts.DARK if st.context.theme.type == "dark" else charts.LIGHT


def colours(chosen: Chosen) -> dict[str, str]:
    return charts.model_colours(chosen.models, palette())


def draw_empty(folder: Path) -> None:
    st.title("No results yet")
    st.info(f"There is no finished result in {folder}. One of these puts some there:", icon=":material/inbox:")
    st.code(
        f"mnemo demo --out {folder}\nmnemo backtest --data sp500 --model gru --horizon 5 --out {folder / 'stock'}",
        language="bash",
    )


def draw_heading(chosen: Chosen) -> None:
    """What was run on what."""
    dataset, task = chosen.result.run["dataset"], chosen.task
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.subheader(literal(dataset), width="content", anchor=False)
        st.badge(KINDS[task.kind], color="blue")
        if "simulated" in dataset.lower():
            st.badge("simulated data", color="orange", icon=":material/science:")
        if task.kind == "forecast":
            st.badge(f"{task.horizon} steps ahead", color="gray")
        if task.kind == "classify":
            st.badge(f"{len(task.labels)} classes", color="gray")
        st.badge(f"{chosen.board['n_series'].max()} test series", color="gray")


def draw_best(chosen: Chosen) -> None:
    best = chosen.board.iloc[0]
    headline = next(measure for measure in MEASURES if measure.column == ranking(chosen.board, chosen.task))
    beside = [m for m in MEASURES if m.column in ("coverage_80", "earliness", "skill_vs_naive", "dm_p_value")]
    with st.container(horizontal=True, gap="small"):
        st.metric("Best model", best["model"], border=True)
        for measure in (headline, *beside):
            if pd.notna(best[measure.column]):
                st.metric(measure.title, show_measure(measure, best[measure.column]), border=True, help=measure.help)


def draw_forecast(chosen: Chosen, cutoff: object, models: Sequence[str], steps: int | None, past: bool) -> None:
    figure = charts.forecast_chart(
        chosen.history,
        chosen.forecasts,
        cutoff,
        models,
        colours(chosen),
        unit=chosen.task.channels[0].unit,
        time_label=time_label(chosen.task),
        steps=steps,
        past=past,
        palette=palette(),
    )
    shown = ", ".join(models) or "no model"
    draw_chart(
        figure, "forecast", f"{chosen.series}: observed up to {show_time(cutoff)}, and the forecasts of {shown}."
    )
    now = chosen.forecasts[chosen.forecasts["cutoff"] == cutoff]
    absent = [model for model in models if model not in set(now["model"])]
    if now["y"].isna().all():
        st.caption("What comes after this cut-off is not known yet.")
    if absent:
        st.caption(f"Made no forecast at this cut-off: {literal(', '.join(absent))}.")
    if chosen.history.empty:
        st.caption("This series was not in the backtest, so its past is not drawn.")
    draw_undrawn(chosen)


def draw_undrawn(chosen: Chosen) -> None:
    if names := charts.undrawn_quantiles(chosen.forecasts):
        st.caption(f"Not drawn: {', '.join(names)}, for no quantile is left on the other side of the median.")


def draw_classes(chosen: Chosen, model: str) -> None:
    rows = chosen.forecasts[chosen.forecasts["model"] == model].sort_values("ds")
    if rows.empty:
        st.info(
            f"{literal(model)} made no prediction for {literal(chosen.series)}; choose another model or series in the "
            "side bar."
        )
        return
    truth = list(rows["y"].dropna().unique())
    figure = charts.class_chart(
        chosen.history,
        rows,
        chosen.task.channels,
        chosen.task.labels,
        truth=truth,
        time_label=time_label(chosen.task),
        palette=palette(),
    )
    st.markdown(
        f"**{literal(chosen.series)}**: truth **{literal(', '.join(truth) or 'unknown')}**, {literal(model)} ends at "
        f"**{literal(rows['label'].iloc[-1])}**."
    )
    draw_chart(figure, "classes", f"{chosen.series}: channels, and the class probabilities of {model} over time.")


def draw_truth(chosen: Chosen, judged: pd.DataFrame, models: Sequence[str]) -> None:
    figure = charts.truth_chart(judged, models, colours(chosen), selected=chosen.series, palette=palette())
    draw_chart(figure, "truth", f"Predictions of {', '.join(models)} against the truth, a point a series.")
    draw_undrawn(chosen)


def draw_estimates(chosen: Chosen, models: Sequence[str]) -> None:
    st.markdown(f"**{literal(chosen.series)}** as it was observed")
    figure = charts.estimate_chart(
        chosen.forecasts, models, colours(chosen), time_label=time_label(chosen.task), palette=palette()
    )
    draw_chart(figure, "estimates", f"{chosen.series}: predictions after each observation, and the truth.")


def draw_live(chosen: Chosen, bundle: LoadedBundle, replay: Replay) -> None:
    """The playback as it stands: counters, bars, and the last seconds of channels and probabilities."""
    position, total = replay.position, len(replay.frames)
    now = replay.probabilities[max(0, position - 1)]
    truth = replay.truth[max(0, position - 1)]
    latency = replay.latency_us
    with st.container(horizontal=True, gap="small"):
        st.metric("Live model", bundle.name, border=True)
        st.metric("Frame", f"{position} / {total}", border=True)
        st.metric("It says", bundle.labels[int(now.argmax())] if position else NOTHING, border=True)
        st.metric("Truth", truth or "unknown", border=True)
        st.metric(
            "Time per step",
            f"{latency[0]:,.0f} µs" if latency else NOTHING,
            border=True,
            help="Median of the last 200 steps on this machine, measured around each call"
            + (", the look inside included." if replay.looks else "."),
        )
    left, right = st.columns([2, 3], gap="medium")
    with left:
        draw_bars(bundle, replay)
        recorded = recorded_s(chosen.task)
        said = "the source does not state a rate" if recorded is None else f"recorded one every {recorded:g} s"
        rate = f"{1 / replay.period_s:g} frames a second"
        stated = rate if recorded == replay.period_s else f"{rate} ({said})"
        spent = f" The 99th percentile of a step is {latency[1]:,.0f} µs here." if latency else ""
        st.caption(f"Recording {literal(chosen.series)}, played at {stated}.{spent}")
    with right:
        draw_recent(chosen, bundle, replay)
    if replay.looks:
        draw_look(chosen, replay)


def draw_bars(bundle: LoadedBundle, replay: Replay) -> None:
    now = replay.probabilities[max(0, replay.position - 1)]
    truth = replay.truth[max(0, replay.position - 1)]
    shades = charts.class_colours(bundle.labels, [label for label in replay.truth if label], palette())
    st.markdown("**Class probabilities now**")
    st.vega_lite_chart(
        charts.bars_frame(bundle.labels, now, truth), charts.live_bars(shades, palette()), key="live bars"
    )


def draw_recent(chosen: Chosen, bundle: LoadedBundle, replay: Replay) -> None:
    """The channels, one chart a unit, above the class probabilities; both for the last seconds."""
    times = chosen.history["ds"]
    start, window = recent_window(replay, times)
    recent = chosen.history.iloc[start : replay.position]
    dates = isinstance(chosen.task.freq, str)
    names = [channel.name for channel in chosen.task.channels]
    shades = charts.channel_colours(names, palette())
    units = list(dict.fromkeys(channel.unit for channel in chosen.task.channels))
    st.markdown("**Sensor channels and class probabilities so far**")
    for unit in units:
        mine = [channel.name for channel in chosen.task.channels if channel.unit == unit]
        limits = float(chosen.history[mine].min().min()), float(chosen.history[mine].max().max())
        spec = charts.live_lines(
            {name: shades[name] for name in mine},
            title=unit or "unit not stated",
            limits=limits,
            dates=dates,
            height=max(150, 230 // len(units)),
        )
        frame = charts.live_frame(recent, {name: name for name in mine}, window)
        st.vega_lite_chart(frame, spec, key=f"live channels {unit}")
    chances = pd.DataFrame(replay.probabilities, columns=[f"p_{label}" for label in bundle.labels])
    chances.insert(0, "ds", times.to_numpy())
    known = charts.class_colours(bundle.labels, [label for label in replay.truth if label], palette())
    spec = charts.live_lines(
        known,
        title="probability",
        limits=(0, 1),
        time_label=time_label(chosen.task),
        dates=dates,
        percent=True,
        height=260,
    )
    frame = charts.live_frame(
        chances.iloc[start : replay.position], {f"p_{label}": label for label in bundle.labels}, window
    )
    st.vega_lite_chart(frame, spec, key="live probabilities")


def draw_look(chosen: Chosen, replay: Replay) -> None:
    """What the memory did for the last seconds: how much it missed, what its gates let through, how large it is."""
    start, window = recent_window(replay, chosen.history["ds"])
    st.markdown("**Inside the memory**")
    lines = charts.look_columns(replay.look_names)
    for place, (title, parts) in zip(st.columns(len(lines), gap="medium"), lines.items(), strict=True):
        means = {line: np.mean([replay.looks[name] for name in names], 0) for line, names in parts.items()}
        rows = pd.DataFrame(means).assign(ds=chosen.history["ds"].to_numpy()).iloc[start : replay.position]
        spec = charts.live_lines(
            charts.channel_colours(list(parts), palette()),
            title=title,
            limits=None,
            time_label=time_label(chosen.task),
            dates=isinstance(chosen.task.freq, str),
        )
        with place:
            st.vega_lite_chart(
                charts.live_frame(rows, {line: line for line in parts}, window), spec, key=f"live {title}"
            )
    st.caption(
        "Surprise: how far the memory's answer lay from what it was then taught. Gates: what it keeps, and how much it "
        "learns. Norm: of all its weights. Means over the heads; no surprise where nothing was observed."
    )


def recent_window(replay: Replay, times: pd.Series) -> tuple[int, tuple[Any, Any]]:
    """The first frame that live charts show, and the times at which they begin and end."""
    width = max(WINDOW, round(WINDOW_S / replay.period_s))
    start = max(0, replay.position - width)
    return start, (times.iloc[start], times.iloc[min(len(times), start + width) - 1])


def draw_leaderboard(chosen: Chosen) -> None:
    """Every model that ran, naive and ridge among them, whatever is chosen for the charts."""
    board, task = chosen.board, chosen.task
    st.markdown("##### Leaderboard")
    used = [m for m in MEASURES if m.column in board and board[m.column].notna().any()]
    table = board[["model", *(measure.column for measure in used)]].copy()
    for measure in used:
        if measure.format == SHARE:
            table[measure.column] *= 100
    table.insert(0, "rank", ["★", *map(str, range(2, len(board) + 1))])
    settings: dict[str, Any] = {
        "rank": st.column_config.TextColumn("", width=40),
        "model": st.column_config.TextColumn("Model"),
    }
    for measure in used:
        shown = "%.1f %%" if measure.format in (SHARE, PERCENT) else measure.format
        settings[measure.column] = st.column_config.NumberColumn(measure.title, format=shown, help=measure.help)
    winner = table.style.apply(
        lambda row: ["font-weight: 600; background-color: rgba(0, 114, 178, 0.13)" if row.name == 0 else ""] * len(row),
        axis=1,
    )
    st.dataframe(
        winner,
        hide_index=True,
        column_config=settings,
        key="leaderboard",
        placeholder=NOTHING,
        alt="Leaderboard of all models",
    )
    st.caption(literal(verdict(board, task)))


def draw_notes(chosen: Chosen) -> None:
    run = chosen.result.run
    for note in run.get("notes", []):
        st.caption(f":material/info: {literal(note)}")
    with st.expander("What ran", icon=":material/receipt_long:"):
        created = (
            datetime.fromisoformat(run["created_at"]).strftime("%Y-%m-%d %H:%M %Z") if "created_at" in run else "?"
        )
        st.markdown(
            f"Data set **{literal(run['dataset'])}**, seed {run.get('seed')}, written {created} in "
            f"`{chosen.result.folder}`."
        )
        st.json({"settings": run.get("settings"), "models": run.get("models")}, expanded=1)


def literal(text: str) -> str:
    """A name as Markdown shows it unchanged: `*a*`, `$5` and `:red[x]` are names here."""
    return re.sub(r"[\\`*\[\]<$~|]|:(?=\w)|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", text)


def draw_chart(figure: Any, key: str, alt: str) -> None:
    st.plotly_chart(figure, key=key, alt=alt, config={"displaylogo": False})


def verdict(board: pd.DataFrame, task: Task) -> str:
    """The ranking in words, and whether chance would do as well."""
    best = board.iloc[0]
    headline = next(measure for measure in MEASURES if measure.column == ranking(board, task))
    said = f"Ranked by {headline.title}. "
    if best["model"] == "naive":
        return said + "No model beats naive."
    if pd.notna(best["skill_vs_naive"]):
        said += f"{best['model']} saves {100 * best['skill_vs_naive']:.0f} % of the naive forecast's loss"
    else:
        said += f"{best['model']} is the best"
    p_value = best["dm_p_value"]
    if pd.isna(p_value):
        return said + "; the test's significance is not known."
    if p_value < SIGNIFICANT:
        return said + f"; chance alone would do that with a probability of {p_value:.2g}."
    return said + f"; with p = {p_value:.2g} this may be chance."


def show_measure(measure: Measure, value: float) -> str:
    if pd.isna(value):
        return NOTHING
    if measure.format == SHARE:
        return f"{100 * value:.0f} %"
    return f"{value:.1f} %" if measure.format == PERCENT else measure.format % value
