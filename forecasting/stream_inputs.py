"""What enters a stream's step: observations and what is known ahead, checked, in memory that stays in place.

Shapes: B series, b of them, C channels, H horizon, F covariates known ahead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from forecasting.bundle import BundleError
from forecasting.graphs import Array, as_float32
from forecasting.listing import list_channels, shorten
from forecasting.stream_clock import StreamClock

if TYPE_CHECKING:
    from forecasting.runtime import LoadedBundle


class StreamInputs:
    """x, mask (B, C) and future (B, H, F) of the next step; callers give a part of them, the calendar the rest."""

    def __init__(self, bundle: LoadedBundle, series: list[str]) -> None:
        batch = len(series)
        self.bundle = bundle
        self.series = series
        self.row = {name: row for row, name in enumerate(series)}
        self.x = np.zeros((batch, bundle.width), np.float32)
        self.mask = np.zeros_like(self.x)
        self.future = np.full((batch, bundle.prediction_shape[0], len(bundle.ahead)), np.nan, np.float32)
        self._seen = np.zeros(self.x.shape, np.bool_)
        self._given, self._given_ahead = self.x[:, : len(bundle.channels)], self.future[..., : len(bundle.future)]

    def enter_all(self, values: ArrayLike) -> None:
        """Write an array (B, C) of all series in order."""
        numbers = np.asarray(values)
        if numbers.dtype.kind not in "fiu":
            numbers = self._numbers("values", values)
        if numbers.shape != self._given.shape:
            raise BundleError(
                f"got an array of shape {numbers.shape}, expected {self._given.shape}: {len(self.series)} series and "
                f"the channels {self._channel_names()}."
            )
        self._given[:] = as_float32(numbers)

    def enter_each(self, values: Mapping[str, Any]) -> None:
        """Write the values of every series, by its name."""
        for row, name in enumerate(self.series):
            if name not in values:
                raise self._unknown(values)
            self._enter(row, values[name])
        if len(values) > len(self.series):
            raise self._unknown(values)

    def enter_some(self, values: Mapping[str, Any]) -> Array:
        """Write the named series' values, and return their rows (b,) in that order."""
        for name, value in values.items():
            if name not in self.row:
                raise self._unknown(values)
            self._enter(self.row[name], value)
        return np.array([self.row[name] for name in values], np.int64)

    def enter_future(self, names: list[str], future: Any) -> None:
        """Write what is known ahead of the named series; nothing is stepped if it is refused."""
        covariates, (horizon, count) = self.bundle.future, self._given_ahead.shape[1:]
        if not count:
            raise BundleError(
                f"{self.bundle.path}: {self.bundle.name} takes no covariates known ahead; leave out future."
            )
        if future is None:
            raise BundleError(
                f"{self.bundle.path}: give `future`, what {', '.join(covariates)} will be at the {horizon} steps ahead."
            )
        given = future if isinstance(future, Mapping) else dict(zip(self.series, np.asarray(future), strict=False))
        for name in names:
            if name not in self.row:
                raise self._unknown(dict.fromkeys(names))
            numbers = np.asarray(given[name] if name in given else np.empty(0), np.float32)
            numbers = numbers[:, None] if count == 1 and numbers.ndim == 1 else numbers
            if numbers.shape != (horizon, count) or not np.isfinite(numbers).all():
                found = "nothing" if name not in given else f"shape {numbers.shape}"
                raise BundleError(
                    f"{name}: future is ({horizon}, {count}) known numbers, for {', '.join(covariates)}; got {found}"
                    f"{' with missing ones' if numbers.shape == (horizon, count) else ''}."
                )
            self._given_ahead[self.row[name]] = numbers

    def enter_calendar(self, rows: Array, clock: StreamClock) -> None:
        """Write what the calendar says of some series' last steps, and of those ahead of them."""
        bundle = self.bundle
        if not bundle.calendar:
            return
        self.x[rows, len(bundle.channels) :] = bundle.calendar_at(clock.last[rows])
        if bundle.ahead:
            times = clock.times(rows, self.future.shape[1])[:, 1:]
            self.future[rows, :, len(bundle.future) :] = bundle.calendar_at(times)

    def mark_seen(self) -> None:
        """Set the mask to what is a number in x."""
        np.isfinite(self.x, out=self._seen)
        np.copyto(self.mask, self._seen)

    def _enter(self, row: int, value: Any) -> None:
        """Write one series' values into the input; nothing else has changed if they are refused."""
        numbers = np.asarray(value)
        if numbers.dtype.kind not in "fiu":
            numbers = self._numbers(self.series[row], value)
        if numbers.ndim == 0:
            numbers = numbers.reshape(1)
        if numbers.shape != self._given.shape[1:]:
            raise BundleError(
                f"{self.series[row]}: got values of shape {numbers.shape}, expected {self._given.shape[1]}: "
                f"{self._channel_names()}."
            )
        if numbers.dtype != np.float32:
            numbers = as_float32(numbers)
        self._given[row] = numbers

    def _numbers(self, name: str, value: Any) -> Array:
        """Numbers with None for a missing one, which numpy takes for objects; text is refused, digits or not."""
        items = np.asarray(value, dtype=object)
        if not all(item is None or isinstance(item, int | float | np.number | np.bool_) for item in items.flat):
            raise BundleError(
                f"{name}: got {value!r}, expected numbers for {self._channel_names()}; NaN or None where missing."
            )
        return items.astype(np.float64)

    def _channel_names(self) -> str:
        return list_channels([(channel["name"], channel["unit"]) for channel in self.bundle.channels])

    def _unknown(self, values: Mapping[str, Any]) -> BundleError:
        strange = [name for name in values if name not in self.row]
        return BundleError(f"this stream has no series {shorten(strange)}; it has {shorten(self.series)}.")
