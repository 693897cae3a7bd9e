"""Series on a regular grid: from the long frame to arrays that models step through.

Letters: T time steps of one series, C channels.

A row that is missing from the grid becomes a step of NaN; an observation between two grid points is an error, never
moved or dropped. Only seconds (float) go to the nearest step, because device clocks jitter. This file trusts the
frame (see `frame`) and knows nothing of files.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from pandas.tseries.offsets import BaseOffset, BusinessDay, Tick

from data.calendar import CalendarError, calendar_values
from data.frame import ID, TIME, Dataset, FrameError, Freq, infer_freq, show_time

# A grid this many times longer than its observations means a wrong step, and would fill the memory with NaN.
MOST_STEPS_PER_ROW = 1000
MOST_EMPTY_STEPS = 5_000_000
ROUNDING = 1e-6  # of a step: a time of seconds that is nearer to its place on the grid is that place, in other digits


@dataclass(frozen=True)
class Series:
    """One series on its complete grid."""

    unique_id: str
    ds: np.ndarray  # (T,) datetime64[ns], int64, or float64 seconds; without gaps
    values: np.ndarray  # (T, C) float64 in the units of `Dataset.inputs`, NaN where missing
    target: np.ndarray | None  # (T,) float64 for regress, int64 class index for classify (-1 unknown), else None


def to_panel(dataset: Dataset, labels: Sequence[str] | None = None) -> list[Series]:
    """Put every series of a data set on its grid, in the order of the frame.

    Args:
        dataset: its `freq` is the step; None keeps the rows as they are.
        labels: the classes in the order of a model's output; None takes `labels_of(dataset)`.

    Raises:
        FrameError: an observation off the grid, two in one step, a step that does not suit the times, calendar
            features of times that are numbers, or a label that is not among `labels`.
    """
    frame = dataset.frame
    names = [channel.name for channel in dataset.channels]
    ids = frame[ID].to_numpy()
    times = frame[TIME].to_numpy()
    starts = np.flatnonzero(np.r_[True, ids[1:] != ids[:-1]])
    counts = np.diff(np.r_[starts, len(ids)])
    if dataset.freq is None:
        slots = np.arange(len(ids)) - np.repeat(starts, counts)
        grid: _Grid | None = None
    else:
        grid = _Grid.of(dataset.freq, times, dataset.name)
        slots, on = grid.slots(times, np.repeat(times[starts], counts))
        _refuse_off_grid(dataset, ids, times, on)
        _refuse_shared_steps(dataset, ids, times, slots)
    lengths = slots[starts + counts - 1] + 1
    _refuse_empty_grid(dataset, ids, starts, counts, lengths)

    ends = np.cumsum(lengths)
    rows = np.repeat(ends - lengths, counts) + slots
    values = np.full((int(ends[-1]), len(names)), np.nan)
    values[rows] = frame[names].to_numpy(dtype="float64")
    target = _targets(dataset, labels, rows, int(ends[-1]))
    everyone = [
        times[first : first + count] if grid is None else grid.times(times[first], int(length))
        for first, length, count in zip(starts, lengths, counts, strict=True)
    ]
    if grid is not None and isinstance(grid.step, float):
        for ds, first, count in zip(everyone, starts, counts, strict=True):  # keep the digits by which rows are known
            own, at = times[first : first + count], slots[first : first + count]
            ds[at] = np.where(np.abs(ds[at] - own) < ROUNDING * grid.step, own, ds[at])
    if dataset.calendar:
        try:
            values = np.hstack([values, calendar_values(np.concatenate(everyone), dataset.calendar)])
        except CalendarError as error:
            raise FrameError(f"{dataset.name}: {error}") from error

    panel = []
    for first, end, ds in zip(starts, ends, everyone, strict=True):
        part = slice(int(end) - len(ds), int(end))
        panel.append(Series(ids[first], ds, values[part], None if target is None else target[part]))
    return panel


def labels_of(dataset: Dataset) -> tuple[str, ...]:
    """The classes of a classification data set, sorted; unknown labels are left out."""
    if dataset.task != "classify":
        raise FrameError(f"{dataset.name}: a {dataset.task} data set has no labels.")
    return tuple(sorted(dataset.frame[dataset.target].dropna().unique()))


def future_ds(last: Any, freq: Freq, horizon: int) -> np.ndarray:
    """The next `horizon` times after `last`, (horizon,).

    Args:
        last: a time stamp (for an alias), an integer or a number of seconds; on the grid.
        freq: pandas alias, integer step or seconds.

    Raises:
        FrameError: `last` is not on the grid of `freq`, such as a Saturday for "B", or of another kind.
    """
    start = _one_time(last, freq)
    grid = _Grid.of(freq, start, "forecast times", steps_after=horizon)
    _, on = grid.slots(start, start)
    if not on[0]:
        raise FrameError(f"forecast times: {show_time(start[0])} is not on the grid of {freq!r}. {_remedy(freq)}")
    return grid.times(start[0], horizon + 1)[1:]


def periods_between(a: Any, b: Any, freq: Freq) -> int:
    """The number of steps from `a` to `b`, negative when `b` is earlier; seconds go to the nearest step.

    Raises:
        FrameError: `b` is not on the grid that starts at `a`, or the kinds differ.
    """
    start, end = _one_time(a, freq), _one_time(b, freq)
    if end[0] < start[0]:
        return -periods_between(b, a, freq)
    both = np.concatenate([start, end])
    slots, on = _Grid.of(freq, both, "steps").slots(both, np.repeat(start, 2))
    if not on.all():
        off = both[int((~on).argmax())]
        raise FrameError(
            f"steps: {show_time(off)} is not on the grid of {freq!r} from {show_time(start[0])}. {_remedy(freq)}"
        )
    return int(slots[1])


def canonical(freq: Freq, source: str) -> Freq:
    """The one name of a step: "d", "1D" and "24h" are "D", an old "H" is "h"; numbers are as they are.

    Raises:
        FrameError: an alias that is no step.
    """
    if not isinstance(freq, str):
        return freq
    offset = _offset(freq, source)
    if isinstance(offset, Tick) and offset.nanos > 0:
        return str(pd.tseries.frequencies.to_offset(pd.Timedelta(offset.nanos, "ns")).freqstr)
    return freq if isinstance(offset, Tick) else str(offset.freqstr)


def steps_apart(dataset: Dataset, panel: Sequence[Series]) -> dict[str, int]:
    """For each series of three rows or more, how many steps its nearest two rows lie apart."""
    times = dataset.frame[TIME].to_numpy()
    counts = dataset.frame[ID].value_counts(sort=False).to_numpy()
    ends = np.cumsum(counts)
    return {
        series.unique_id: int(np.diff(np.searchsorted(series.ds, times[end - count : end])).min())
        for series, count, end in zip(panel, counts, ends, strict=True)
        if count > 2
    }


def own_step(alone: Dataset) -> Freq | None:
    """The step of the grid on which all rows of the one series of a data set lie without a gap; None without one."""
    try:
        own = infer_freq(alone.frame, alone.name)
        (series,) = to_panel(replace(alone, freq=own, calendar=()))
    except FrameError:
        return None
    return own if len(series.ds) == len(alone.frame) else None


def auto_calendar(freq: Freq | None) -> tuple[str, ...]:
    """The calendar features that change with a step of this size, and so often that an ordinary history shows them.

    The hour and the day of an hourly series, the month of a monthly one. Of steps of a year, of cycles and of seconds
    there are none. Below a day the year is left out: within the one year that there often is, its place is the time.

    Raises:
        FrameError: an alias that is no step.
    """
    if not isinstance(freq, str):
        return ()
    times = pd.date_range("2001-01-01", periods=8, freq=_offset(freq, "calendar")).to_numpy()
    step = np.median(np.diff(times)) / np.timedelta64(1, "h")
    if step < 24:
        return (*(("minute",) if step % 1 else ()), "hour", "dayofweek")
    days = step / 24
    return ("dayofweek", "month") if days < 7 else ("week",) if days < 28 else ("month",) if days < 360 else ()


@dataclass(frozen=True)
class _Grid:
    """Either a fixed step (in the times' own unit), or a calendar of days on which an observation may fall."""

    step: Any = None  # np.timedelta64[ns], int or float seconds
    calendar: np.ndarray | None = None  # (days,) datetime64[D], covering all times asked for

    @staticmethod
    def of(freq: Freq, times: np.ndarray, source: str, steps_after: int = 0) -> _Grid:
        kind = times.dtype.kind
        if kind == "M" and isinstance(freq, str):
            offset = _offset(freq, source)
            if isinstance(offset, Tick):
                if offset.nanos <= 0:
                    raise FrameError(f"{source}: the step {freq!r} must be positive.")
                return _Grid(step=np.timedelta64(offset.nanos, "ns"))
            if offset.n <= 0:
                raise FrameError(f"{source}: the step {freq!r} must be positive.")
            return _Grid(calendar=_calendar(offset, times.min(), times.max(), steps_after))
        is_number = isinstance(freq, int | float | np.number) and not isinstance(freq, bool)
        if is_number and kind in "iuf" and not (kind in "iu" and float(freq) % 1):
            if not float(freq) > 0:
                raise FrameError(f"{source}: the step {freq!r} must be positive.")
            return _Grid(step=int(freq) if kind in "iu" else float(freq))
        kinds = {"M": "time stamps need a pandas alias", "i": "integers need an integer", "f": "seconds need a number"}
        raise FrameError(f"{source}: the step {freq!r} does not suit its times: {kinds.get(kind, 'unknown times')}.")

    def slots(self, times: np.ndarray, origins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How many steps each time lies after its origin, int64 (N,), and whether it lies on the grid, bool (N,)."""
        if self.calendar is not None:
            days, phases = _split_days(times)
            first_days, first_phases = _split_days(origins)
            places = np.searchsorted(self.calendar, days)
            first_places = np.searchsorted(self.calendar, first_days)
            found = self.calendar[np.minimum(places, len(self.calendar) - 1)] == days if len(self.calendar) else False
            return (places - first_places).astype("int64"), found & (phases == first_phases)
        if isinstance(self.step, float):
            slots = np.rint((times - origins) / self.step).astype("int64")
            return slots, np.ones(len(times), dtype=bool)
        gap = times - origins
        slots = gap // self.step
        return slots.astype("int64"), slots * self.step == gap

    def times(self, origin: Any, length: int) -> np.ndarray:
        """The first `length` times of the grid from `origin`, (length,)."""
        if self.calendar is None:
            return origin + np.arange(length) * self.step
        days, phases = _split_days(np.array([origin]))
        place = int(np.searchsorted(self.calendar, days[0]))
        return self.calendar[place : place + length].astype("datetime64[ns]") + phases[0]


def _offset(freq: str, source: str) -> BaseOffset:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # old aliases such as H still mean the same
            return pd.tseries.frequencies.to_offset(freq)
    except ValueError as error:
        raise FrameError(
            f"{source}: {freq!r} is no step; expected a pandas alias such as D, B, h, 15min, W-SUN or MS."
        ) from error


def _calendar(offset: BaseOffset, first: np.datetime64, last: np.datetime64, steps_after: int) -> np.ndarray:
    """The days of a calendar step from `first` to at least `steps_after` steps past `last`, datetime64[D]."""
    start, end = first.astype("datetime64[D]"), last.astype("datetime64[D]")
    if type(offset) is BusinessDay and offset.n == 1:
        # Seven days hold five business days; two more cover a start in a weekend.
        days = np.arange(start, end + np.timedelta64(steps_after * 7 // 5 + 4, "D"))
        return days[np.is_busday(days)]
    steps = pd.date_range(pd.Timestamp(start), pd.Timestamp(end), freq=offset)
    if steps_after:
        steps = steps.union(pd.date_range(pd.Timestamp(end), periods=steps_after + 2, freq=offset))
    return steps.to_numpy().astype("datetime64[D]")


def _split_days(times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    days = times.astype("datetime64[D]")
    return days, times - days


def _one_time(time: Any, freq: Freq) -> np.ndarray:
    """A single time as an array (1,) of the dtype that frames have."""
    if isinstance(freq, str):
        stamp = pd.Timestamp(time)
        if stamp.tzinfo is not None:
            stamp = stamp.tz_convert("UTC").tz_localize(None)
        return np.array([stamp.to_datetime64()], dtype="datetime64[ns]")
    if isinstance(time, str | pd.Timestamp | np.datetime64):
        raise FrameError(f"the step {freq!r} does not suit the time {time}: time stamps need a pandas alias.")
    if isinstance(time, int | np.integer) and isinstance(freq, int | np.integer):
        return np.array([time], dtype="int64")
    return np.array([time], dtype="float64")


def _refuse_off_grid(dataset: Dataset, ids: np.ndarray, times: np.ndarray, on: np.ndarray) -> None:
    if not on.all():
        row = int((~on).argmax())
        raise FrameError(
            f"{dataset.name}: {(~on).sum()} of {len(on)} observations are off the grid of {dataset.freq!r}, first "
            f"{show_time(times[row])} of series {ids[row]}. {_remedy(dataset.freq, times[row])}"
        )


def _refuse_shared_steps(dataset: Dataset, ids: np.ndarray, times: np.ndarray, slots: np.ndarray) -> None:
    shared = (slots[1:] == slots[:-1]) & (ids[1:] == ids[:-1])
    if shared.any():
        row = int(shared.argmax())
        raise FrameError(
            f"{dataset.name}: {shared.sum()} observations share their step of {dataset.freq!r} s with the one before, "
            f"first {times[row]:.6g} and {times[row + 1]:.6g} s of series {ids[row]}. "
            "Give a shorter step with --freq, or resample the series."
        )


def _refuse_empty_grid(
    dataset: Dataset, ids: np.ndarray, starts: np.ndarray, counts: np.ndarray, lengths: np.ndarray
) -> None:
    if lengths.sum() - counts.sum() > MOST_EMPTY_STEPS and (lengths > MOST_STEPS_PER_ROW * counts).any():
        worst = int((lengths / counts).argmax())
        raise FrameError(
            f"{dataset.name}: series {ids[starts[worst]]} has {counts[worst]} observations on {lengths[worst]} steps "
            f"of {dataset.freq!r}. Give the real step with --freq."
        )


def _remedy(freq: Freq | None, time: Any = None) -> str:
    if freq == "B":
        weekend = isinstance(time, np.datetime64) and pd.Timestamp(time).dayofweek >= 5
        return f"{'This is a weekend: for' if weekend else 'For'} series that have weekends, give --freq D."
    return "Correct the time, resample the series, or give another step with --freq."


def _targets(dataset: Dataset, labels: Sequence[str] | None, rows: np.ndarray, length: int) -> np.ndarray | None:
    """The targets of all series behind one another, (length,); see `Series.target`."""
    if dataset.task == "forecast":
        return None
    column = dataset.frame[dataset.target]
    if dataset.task == "regress":
        target = np.full(length, np.nan)
        target[rows] = column.to_numpy(dtype="float64")
        return target
    classes = list(labels_of(dataset) if labels is None else labels)
    codes = pd.Categorical(column, categories=classes).codes
    strange = (codes < 0) & column.notna().to_numpy()
    if strange.any():
        row = int(strange.argmax())
        raise FrameError(
            f"{dataset.name}: label {column.iloc[row]!r} of series {dataset.frame[ID].iloc[row]} is not among the "
            f"classes {classes}."
        )
    index = np.full(length, -1, dtype="int64")
    index[rows] = codes
    return index
