"""What a bundle takes from a long frame, and how its predictions are told in one.

Of the runtime this alone knows pandas, and it is imported when a frame is to be forecast.

Shapes: B series, T time, H horizon, F covariates known ahead, Q quantiles, K classes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from data.frame import TARGETS, Channel, Dataset, FrameError, Splits, check_frame, infer_freq, show_time
from data.panel import Series, future_ds, own_step, steps_apart, to_panel
from forecasting.bundle import BundleError
from forecasting.graphs import Array, as_float32
from forecasting.listing import shorten
from forecasting.metrics import mean_of_quantiles, quantile_column

if TYPE_CHECKING:
    from forecasting.runtime import LoadedBundle


class ReadFrame(NamedTuple):
    """The series of a frame that can be stepped over."""

    panel: list[Series]
    notes: tuple[str, ...]  # remarks on what was mended
    failures: dict[str, str]  # series that are left out -> why


def read_frame(bundle: LoadedBundle, frame: pd.DataFrame | Dataset) -> ReadFrame:
    """The series of a frame or data set, on the grid of the card's step.

    Raises:
        BundleError: a channel of the card is missing or another, or the steps of every series are coarser than the
            card's.
        FrameError: the frame is broken, or no series can be put on the grid.
    """
    channels = tuple(Channel.from_json(channel) for channel in bundle.channels)
    if isinstance(frame, Dataset):
        bundle.check_channels(frame.channels)
        source, table = frame.name, frame.frame
    else:
        source, table = "frame", frame
    missing = [channel.name for channel in channels if channel.name not in table]
    if missing:
        raise BundleError(f"{bundle.path}: {source} has no column for the channels {', '.join(missing)} of the card.")
    target = TARGETS[bundle.kind]
    if target not in {channel.name for channel in channels}:
        table = table.drop(columns=target, errors="ignore")  # what is to be predicted may be wrong or unknown
    checked, notes = check_frame(
        table,
        source=source,
        task=bundle.kind,  # type: ignore[arg-type]
        channels=channels,
        target_required=False,
        leave_out_empty=True,
        freq=bundle.task["freq"],
    )
    dataset = Dataset(
        name=source,
        frame=checked,
        task=bundle.kind,  # type: ignore[arg-type]
        channels=channels,
        freq=bundle.task["freq"],
        season=bundle.task["season"],
        horizon=bundle.task["horizon"],
        splits=Splits(),
        target=target,
        calendar=bundle.calendar,
    )
    failures: dict[str, str] = {}
    try:
        panel = to_panel(dataset, labels=bundle.labels)
    except FrameError as error:
        panel, failures = _one_by_one(bundle, dataset)
        if not panel:
            raise error
        checked = checked[~checked["unique_id"].isin(failures)]
    dataset = replace(dataset, frame=checked)
    coarser = _coarser(bundle, dataset, panel)
    panel = [series for series in panel if series.unique_id not in coarser]
    return ReadFrame(panel, (*notes, *_slow_frames(bundle, dataset, panel)), failures | coarser)


def split_future(
    bundle: LoadedBundle, panel: list[Series], every: bool
) -> tuple[list[Series], dict[str, Array], dict[str, str]]:
    """Each series up to its last observation of what is not known ahead; where the graphs take them, the covariates
    (T + H, F), float32, that are; and which series lack one ahead of their end, and are left out -> what they lack.

    every: whether forecasts of the past are told too, which then need what was ahead of them.
    """
    count, horizon = bundle.known_ahead, int(bundle.task["horizon"])
    split, ahead, failures = [], {}, {}
    for series in panel:
        seen = np.flatnonzero(np.isfinite(series.values[:, :-count]).any(1))
        end = int(seen[-1]) + 1
        until = replace(series, ds=series.ds[:end], values=series.values[:end])
        if not bundle.ahead:
            split.append(until)
            continue
        covariates = as_float32(series.values[: end + horizon, -count:])
        covariates = np.pad(covariates, [(0, end + horizon - len(covariates)), (0, 0)], constant_values=np.nan)
        if bundle.calendar:
            covariates[:, -bundle.computed :] = bundle.calendar_at(_through_the_horizon(bundle, series, end))
        gaps = ~np.isfinite(covariates[1 if every else end :])
        if gaps.any():
            failures[series.unique_id] = _lacking(bundle, series, end, gaps)
            continue
        split.append(until)
        ahead[series.unique_id] = covariates
    return split, ahead, failures


def beyond_the_last_value(bundle: LoadedBundle, panel: list[Series]) -> tuple[str, ...]:
    """A sentence on series whose rows go on after their last value, where there are any: the forecast begins later."""
    late = []
    for series in panel:
        seen = np.flatnonzero(np.isfinite(series.values[:, 0]))
        if len(seen) and seen[-1] + 1 < len(series.ds):
            late.append((series.unique_id, series.ds[seen[-1]], series.ds[-1]))
    if not late:
        return ()
    name, last, end = late[0]
    known = ", or leave empty in them what is not known ahead" if bundle.known_ahead else ""
    return (
        f"{len(late)} of {len(panel)} series have rows after their last {bundle.channels[0]['name']}, first {name}: "
        f"none after {show_time(last)}, rows until {show_time(end)}. These count as missing values, and the forecast "
        f"begins after them. To forecast from the last value, leave them out{known}.",
    )


def tabulate(
    bundle: LoadedBundle,
    ids: list[str],
    times: list[Any],
    predictions: Array,
    raw: Array,
    points: Array | None = None,
) -> pd.DataFrame:
    """The frame of predictions, one for each series (B, ...), as `LoadedBundle.forecast` returns it.

    `raw` is what the model gave: the mean is that of its own quantiles, where it has no `points` (B, H).
    """
    if bundle.kind == "classify":
        best = [bundle.labels[index] for index in predictions.argmax(-1)]
        table = {"unique_id": ids, "ds": np.array(times), "model": bundle.name, "label": best}
        probabilities = {f"p_{label}": predictions[:, k].astype(float) for k, label in enumerate(bundle.labels)}
        return pd.DataFrame(table | probabilities)
    steps = bundle.prediction_shape[0] if bundle.kind == "forecast" else 1
    flat = predictions.reshape(-1, len(bundle.quantiles)).astype(float)  # (B * H, Q)
    own = raw.reshape(-1, len(bundle.quantiles)).astype(float)
    numbers = {"mean": mean_of_quantiles(own, np.array(bundle.quantiles)) if points is None else points.ravel()}
    numbers |= {quantile_column(level): flat[:, k] for k, level in enumerate(bundle.quantiles)}
    table = {"unique_id": np.repeat(np.array(ids, dtype=object), steps)}
    if bundle.kind == "forecast":
        ahead = {time: future_ds(time, bundle.task["freq"], steps) for time in dict.fromkeys(times)}
        table["cutoff"] = np.repeat(np.array(times), steps)
        table["ds"] = np.concatenate([ahead[time] for time in times])
        instead = [bundle.substitutes[name]["substitute"] if name in bundle.substitutes else "" for name in ids]
        numbers["substitute"] = np.repeat(np.array(instead, object), steps)
    else:
        table["ds"] = np.array(times)
    return pd.DataFrame(table | {"model": bundle.name} | numbers)


def _one_by_one(bundle: LoadedBundle, dataset: Dataset) -> tuple[list[Series], dict[str, str]]:
    """Those series that can be put on the grid, and why the others cannot."""
    panel: list[Series] = []
    failures: dict[str, str] = {}
    for name, rows in dataset.frame.groupby("unique_id", sort=False):
        alone = replace(dataset, frame=rows.reset_index(drop=True))
        try:
            panel += to_panel(alone, labels=bundle.labels)
        except FrameError as reason:
            failures[str(name)] = _off_grid(bundle, alone, reason)
    return panel, failures


def _off_grid(bundle: LoadedBundle, alone: Dataset, reason: ValueError) -> str:
    """What is wrong with the one series of a data set, whose times are not on the card's grid."""
    wanted = f"{bundle.name} was made for data every {alone.freq!r}"
    try:
        own: Any = infer_freq(alone.frame, alone.name)
    except FrameError:
        own = alone.freq  # it has no step of its own that could be named
    if own == alone.freq:
        return f"{reason} {wanted}."
    name = alone.frame["unique_id"].iloc[0]
    remedy = "Resample it to that, or train a model for its step."
    return f"{alone.name}: series {name} is every {own!r}, but {wanted}. {remedy}"


def _coarser(bundle: LoadedBundle, dataset: Dataset, panel: list[Series]) -> dict[str, str]:
    """Series of coarser steps than the card's -> what is wrong.

    Months given to a model of days would be days of which most are missing: that is a mistake, not a gap. Beside series
    of the card's step, rows that merely lie apart are gaps, and only those on a grid of their own are a mistake.
    Seconds are left alone (`_slow_frames`), for a device may drop every other frame.

    Raises:
        BundleError: there is no series of the card's step.
    """
    step = bundle.task["freq"]
    if step is None or isinstance(step, float):
        return {}
    apart = steps_apart(dataset, panel)
    remedy = (
        f"but {bundle.name} was made for data every {step!r}. Give it such data, with rows without a value where "
        "nothing was observed, or train a model for this step."
    )
    if apart and min(apart.values()) > 1:
        raise BundleError(
            f"{bundle.path}: no two rows of a series in {dataset.name} are less than {min(apart.values())} steps of "
            f"{step!r} apart, {remedy}"
        )
    found = {}
    for name in (name for name, steps in apart.items() if steps > 1):
        alone = replace(dataset, frame=dataset.frame[dataset.frame["unique_id"] == name])
        if (own := own_step(alone)) is not None:
            found[name] = f"{dataset.name}: series {name} is every {own!r}, {remedy}"
    return found


def _slow_frames(bundle: LoadedBundle, dataset: Dataset, panel: list[Series]) -> tuple[str, ...]:
    """A note where frames in seconds never come as often as the card's."""
    step = bundle.task["freq"]
    if not isinstance(step, float):
        return ()
    slow = {name: steps for name, steps in steps_apart(dataset, panel).items() if steps > 1}
    if not slow:
        return ()
    return (
        f"{dataset.name}: no two frames of {shorten(list(slow))} are less than {min(slow.values())} steps of "
        f"{step:g} s apart; {bundle.name} takes those between as missing. Record at that rate, or train a model "
        "at this one.",
    )


def _through_the_horizon(bundle: LoadedBundle, series: Series, end: int) -> Array:
    """(end + H,) the times of a series' first `end` steps and of the horizon after them."""
    ahead = future_ds(series.ds[end - 1], bundle.task["freq"], int(bundle.task["horizon"]))
    return np.concatenate([series.ds[:end], ahead])


def _lacking(bundle: LoadedBundle, series: Series, end: int, gaps: Array) -> str:
    """Which covariates are missing when."""
    horizon = int(bundle.task["horizon"])
    times = _through_the_horizon(bundle, series, end)[-len(gaps) :]
    said = []
    for name, missing in zip(bundle.ahead, gaps.T, strict=True):
        dates = [show_time(times[at]) for at in np.flatnonzero(missing)]
        if dates:
            said.append(f"{name} at {shorten(dates)}")
    return (
        f"{series.unique_id}: to forecast {horizon} steps after {show_time(series.ds[end - 1])} needs "
        f"{' and '.join(said)}. Give rows with what is known ahead, and no value, for the whole horizon."
    )
