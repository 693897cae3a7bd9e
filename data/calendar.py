"""Calendar features: what a time stamp alone says, as channels that are known for every step ahead.

A feature is a field of a time stamp, by pandas' name for it. One that goes round becomes two channels, the sine and the
cosine of its place in its cycle, and a flag becomes one, 1 or 0. That one form serves every model: a linear map and a
network find midnight beside 23 o'clock, where a plain number lays a cliff between them, and learn a smooth daily course
from two weights; a tree cuts any stretch out of a circle by thresholds on the two, as it would out of a number by two;
and no feature needs a scale. A cycle is as long as it is at the time: of `day` 28 to 31 days, so that the last day of
every month is next to the first.

Times are those of a frame: without zone, and in UTC where the source named one. Hours are then those of UTC, and a
place that puts its clocks forward shifts by one of them; give local times without a zone where its hours matter.

Knows numpy alone, so that a bundle computes on the edge what its model was trained with.

Shapes: F features, K channels of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

THURSDAY = 3  # the weekday of 1970-01-01, from Monday = 0


class CalendarError(ValueError):
    """A calendar feature that is not known, or that times do not have; the message says which there are."""


def _date(times: Array, unit: str) -> Array:
    """The times rounded down, to "Y", "M", "D" or "h"."""
    return times.astype(f"datetime64[{unit}]")


def _days(times: Array, unit: str) -> tuple[Array, Array]:
    """The day in its month or year, from 0, and how many days that has."""
    start = _date(times, unit)
    first, after = _date(start, "D"), _date(start + 1, "D")
    return (_date(times, "D") - first).astype(np.int64), (after - first).astype(np.int64)


def _weekday(days: Array) -> Array:
    return (days.astype(np.int64) + THURSDAY) % 7


def _week(times: Array) -> tuple[Array, Array]:
    """The week of ISO 8601 in its year, from 0: a week belongs to the year of its Thursday."""
    days = _date(times, "D")
    year = _date(days - _weekday(days) + THURSDAY, "Y")
    last = _date(year + 1, "D") - 4  # 28 December is always in the last week
    ends = last - _weekday(last) + THURSDAY
    place, count = (
        (thursday - _date(year, "D")).astype(np.int64) // 7 for thursday in (days - _weekday(days) + THURSDAY, ends)
    )
    return place, count + 1


def _of_year(times: Array, months: int) -> Array:
    """The stretch of so many months in its year, from 0."""
    return _date(times, "M").astype(np.int64) % 12 // months


# Feature -> the place in its cycle, from 0, and the cycle's length.
CYCLES: dict[str, Callable[[Array], tuple[Array, Array | int]]] = {
    "minute": lambda times: ((times - _date(times, "h")) // np.timedelta64(1, "m"), 60),
    "hour": lambda times: ((times - _date(times, "D")) // np.timedelta64(1, "h"), 24),
    "dayofweek": lambda times: (_weekday(_date(times, "D")), 7),
    "day": lambda times: _days(times, "M"),
    "dayofyear": lambda times: _days(times, "Y"),
    "week": _week,
    "month": lambda times: (_of_year(times, 1), 12),
    "quarter": lambda times: (_of_year(times, 3), 4),
}
# Flag -> whether a day is the first or the last of so many months.
FLAGS = {
    f"is_{name}_{edge}": (months, edge == "end")
    for name, months in (("month", 1), ("quarter", 3), ("year", 12))
    for edge in ("start", "end")
}
FEATURES = (*CYCLES, *FLAGS)


def calendar_channels(features: Sequence[str]) -> tuple[str, ...]:
    """The names of the K channels of these features, in order: hour_sin, hour_cos, is_month_end ...

    Raises:
        CalendarError: a feature that is not known, or named twice.
    """
    unknown = [name for name in features if name not in FEATURES]
    if unknown:
        raise CalendarError(f"no calendar feature {', '.join(unknown)}; known: {', '.join(FEATURES)}.")
    if len(set(features)) < len(features):
        raise CalendarError(f"calendar features are named once each, got {', '.join(features)}.")
    return tuple(
        channel for name in features for channel in ((f"{name}_sin", f"{name}_cos") if name in CYCLES else (name,))
    )


def calendar_values(times: Array, features: Sequence[str]) -> NDArray[np.float64]:
    """(..., K) the channels of these features at times (...), from -1 to 1.

    Raises:
        CalendarError: the times are numbers, which no calendar has, or a feature that is not known.
    """
    _ = calendar_channels(features)
    if times.dtype.kind != "M":
        raise CalendarError(
            f"the calendar features {', '.join(features)} need time stamps, but ds holds numbers. Write it as ISO "
            "8601, such as 2024-01-31, or leave them out."
        )
    columns: list[Array] = []
    for name in features:
        if name in CYCLES:
            place, length = CYCLES[name](times)
            angle = 2 * np.pi * place / length
            columns += [np.sin(angle), np.cos(angle)]
        else:
            columns.append(_edge(times, *FLAGS[name]))
    return np.stack(columns, -1)


def _edge(times: Array, months: int, end: bool) -> Array:
    days = _date(times, "D") + int(end)  # the last day is the one before a first
    return ((days == _date(_date(days, "M"), "D")) & (_date(days, "M").astype(np.int64) % months == 0)).astype(float)
