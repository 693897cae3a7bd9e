"""A stream: the states of some series, stepped as observations come in, saved and resumed.

The clock is `forecasting.stream_clock`'s, what is entered `forecasting.stream_inputs`'s; here are the states, the
predictions, their calibration online, and the file that keeps all of it. onnxruntime and numpy only.

Shapes: B series, b of them, T time, C channels, H horizon, F covariates known ahead; a prediction of one series is
(H, Q) for a forecast, (K,) for a classification and (Q,) for a regression.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from forecasting.bundle import STEP, BundleError, read_npz, write_atomic, write_npz
from forecasting.conformal import ONLINE, CalibrationError, OnlineCalibration, chosen, joined
from forecasting.graphs import CPU, Array, Inside, State, as_input
from forecasting.listing import shorten
from forecasting.scans import scan_ragged
from forecasting.stream_clock import StreamClock, Time
from forecasting.stream_inputs import StreamInputs

if TYPE_CHECKING:
    from data.panel import Series
    from forecasting.runtime import LoadedBundle

ANONYMOUS = "stream"  # the series of a stream that was given no names
# While an input stands still, what is forgotten decays for ever, and a step of subnormal numbers takes up to ten times
# as long on processors that leave them to microcode. So now and then what is next to nothing becomes nothing; after a
# prime number of steps, for series that take turns. A local model's state is of its series' own scale, and small.
NEXT_TO_NOTHING = 1e-30
STEPS_BETWEEN = 251


class Stream:
    """The states of some series, stepped as observations come in. Made by `LoadedBundle.stream`.

    A series that is not named in a step keeps its state. Where `at` is given, periods that were skipped since the last
    step are stepped as missing, so that the model's time is the clock's.
    """

    def __init__(
        self,
        bundle: LoadedBundle,
        series: list[str],
        state: State | None = None,
        last: Array | None = None,
        since: Array | None = None,
        predictions: Array | None = None,
        adapt: float | None = None,
        learned: Mapping[str, Array] | None = None,
        future: Array | None = None,
    ) -> None:
        if not series or len(set(series)) < len(series):
            raise BundleError(f"a stream needs at least one series, each named once; got {series}.")
        self.bundle = bundle
        self.series = series
        self._clock = StreamClock(series, bundle.task["freq"], last, since)
        self._inputs = StreamInputs(bundle, series)
        if future is not None:
            self._inputs.future[:] = future
        self.row = self._inputs.row
        shape = (len(series), *bundle.prediction_shape)
        # As the graph gives them, which writes here; `predictions` are what is told.
        self.raw: Array = np.full(shape, np.nan, np.float32) if predictions is None else predictions.copy()
        self._online = self._adapting(adapt, learned)
        state = bundle.initial_state(len(series)) if state is None else state
        # Two copies of the state: each step reads one and writes the other.
        self._states = tuple(
            {name: np.array(state[name], order="C", copy=True) for name in bundle.state_names} for _ in range(2)
        )
        self._now = 0  # which of the two is current
        self._steps = 0
        self._run_bound = bundle.step_session.run_with_iobinding
        self._bindings = self._bind() if bundle.providers[0] == CPU else None

    @property
    def predictions(self) -> Array:
        """(B, ...) the last predictions, calibrated where the bundle or the stream is; NaN before the first."""
        return self.bundle.calibrated(self.raw) if self._online is None else self._online.current

    @property
    def state(self) -> State:
        """A copy of the current states, (B, ...) each."""
        return {name: value.copy() for name, value in self._states[self._now].items()}

    def step(self, values: Mapping[str, Any] | ArrayLike, at: Time | None = None, future: Any = None) -> Any:
        """Take one observation of every named series.

        Args:
            values: for each series a number a channel, in the card's units and order (one channel: the number alone
                will do); NaN or None where missing. Or an array (B, C) for all series in order.
            at: the time of the observation. Periods skipped since the last one are stepped as missing. A bundle with
                calendar features must be told the time of a series' first step; without one it takes the next period.
            future: where the bundle has covariates known ahead, what they will be at the H steps after the observation:
                for each named series (H, F), or (H,) of one covariate; or an array (B, H, F) for all series in order.

        Returns:
            For each named series its prediction: quantiles (H, Q), probabilities (K,) or quantiles (Q,). For an array,
            (B, ...).
        """
        if future is not None or self.bundle.future:
            self._inputs.enter_future(list(values) if isinstance(values, Mapping) else self.series, future)
        if not isinstance(values, Mapping):
            self._inputs.enter_all(values)
            self._step_all(at)
            return np.array(self.predictions)
        if len(values) < len(self.series):
            return self._step_some(values, at)
        self._inputs.enter_each(values)
        self._step_all(at)
        predictions = np.array(self.predictions)
        return {name: predictions[row] for row, name in enumerate(self.series)}

    def look(self, values: Mapping[str, Any] | ArrayLike, at: Time | None = None) -> tuple[Any, Any]:
        """`step`, and a look inside the memory that took it. It costs more than `step`; the two may alternate.

        Returns:
            predictions: as `step` returns them.
            look: for each named series a dictionary, for each name of `LoadedBundle.look_names` a number a head; for an
                array one dictionary of (B, heads). All but the norms are NaN where no channel was observed. Periods
                that were skipped before `at` are stepped without a look.

        Raises:
            BundleError: the bundle has no look inside, or what `step` raises.
        """
        _ = self.bundle.look_session
        if isinstance(values, Mapping):
            rows = self._inputs.enter_some(values)
            if not len(rows):
                return {}, {}
            predictions, look = self._look_rows(rows, at)
            each = [{name: value[place] for name, value in look.items()} for place in range(len(rows))]
            return dict(zip(values, predictions, strict=True)), dict(zip(values, each, strict=True))
        self._inputs.enter_all(values)
        return self._look_rows(np.arange(len(self.series)), at)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the states to a file, whole or not at all; `LoadedBundle.stream(state=path)` goes on from there."""
        write_atomic(path, self.to_bytes())

    def to_bytes(self) -> bytes:
        """What `save` writes and `restored` reads."""
        states = {f"state.{name}": value for name, value in self._states[self._now].items()}
        if self._online is not None:
            states |= {f"adapt.{name}": value for name, value in self._online.state.items()}
        if self.bundle.ahead:
            states["future"] = self._inputs.future
        return write_npz(
            states
            | {
                "step_sha256": np.array(self.bundle.card["sha256"][STEP]),
                "series": np.array(self.series, dtype=np.str_),
                "last": self._clock.last,
                "since": self._clock.since,
                "predictions": self.raw,
            }
        )

    def extended(self, names: list[str]) -> Stream:
        """This stream and further series at the initial state."""
        if not names:
            return self
        fresh = self.bundle.fresh(names, None if self._online is None else self._online.rate)
        return Stream(
            self.bundle,
            self.series + names,
            {name: np.concatenate([value, fresh.state[name]]) for name, value in self.state.items()},
            np.concatenate([self._clock.last, fresh._clock.last]),
            np.concatenate([self._clock.since, fresh._clock.since]),
            np.concatenate([self.raw, fresh.raw]),
            None,
            None if self._online is None else joined(self._online.state, fresh._online.state),  # type: ignore[union-attr]
            np.concatenate([self._inputs.future, fresh._inputs.future]),
        )

    def chosen(self, names: list[str]) -> Stream:
        """A stream of some of these series, in this order, at the states that they have."""
        rows = [self.row[name] for name in names]
        return Stream(
            self.bundle,
            names,
            {name: value[rows] for name, value in self.state.items()},
            self._clock.last[rows],
            self._clock.since[rows],
            self.raw[rows],
            None,
            None if self._online is None else chosen(self._online.state, rows),
            self._inputs.future[rows],
        )

    def time_of(self, name: str) -> Any:
        """The time of the series' last step: datetime64, or a float of cycles or seconds; NaT or NaN if never told."""
        return self._clock.time_of(self.row[name])

    def tell(self, rows: list[int], raw: Array, future: Array) -> None:
        """Set what the model says of some series without a step, and what is ahead of them (b, H, F)."""
        self.raw[rows], self._inputs.future[rows] = raw, future
        if self._online is not None:
            self._online.issue(np.array(rows), self.bundle.calibrated(raw))

    def catch_up(self, panel: Sequence[Series], covariates: Mapping[str, Array]) -> dict[str, str]:
        """Step each series over what lies after its last step, gaps included; older observations are ignored.

        covariates: of a bundle that has some known ahead, theirs for each series, (T + H, F).

        Returns:
            Series that stay where they are -> why: their times do not go on from their last step.
        """
        rows, sequences = [], []
        failures: dict[str, str] = {}
        windows: list[Array] | None = [] if covariates else None
        for series in panel:
            row = self.row[series.unique_id]
            try:
                first, missing = self._clock.news(series, row)
            except BundleError as error:
                failures[series.unique_id] = str(error)
                continue
            if first >= len(series.ds):
                if covariates and (changed := self._changed_ahead(series, covariates[series.unique_id])):
                    failures[series.unique_id] = changed
                continue
            rows.append(row)
            sequences.append(np.concatenate([self._gap(row, missing), series.values[first:]]))
            if windows is not None:
                # Of what precedes the series' own times nothing is known, so a forecast in a gap may have no number.
                known = np.pad(covariates[series.unique_id], [(missing, 0), (0, 0)], constant_values=np.nan)[
                    first + 1 :
                ]
                horizon = self.bundle.prediction_shape[0]
                windows.append(np.lib.stride_tricks.sliding_window_view(known, horizon, 0).swapaxes(1, 2))
            self._clock.set(row, series.ds[-1])
        if rows:
            self._scan_rows(np.array(rows), sequences, windows)
            if windows is not None:
                self._inputs.future[rows] = [window[-1] for window in windows]
        return failures

    def _changed_ahead(self, series: Series, covariates: Array) -> str:
        """What is wrong where nothing is new but what is known ahead: a prediction changes with a step alone."""
        row = self.row[series.unique_id]
        told = self._inputs.future[row]
        if np.isnan(told).any() or self._clock.time_of(row) != series.ds[-1]:
            return ""
        changed = (told != covariates[-len(told) :]).any(0)
        if not changed.any():
            return ""
        names = [name for name, other in zip(self.bundle.ahead, changed, strict=True) if other]
        return (
            f"{series.unique_id}: {shorten(names)} ahead of its last observation is not what it was when the state "
            "was saved. A state takes that in with the next observation; forecast this one from the history, without "
            "the state."
        )

    def run(self) -> None:
        """Run the graph on the inputs as they stand: the bare cost of a step, for measurements."""
        if self._bindings is not None:
            self._run_bound(self._bindings[self._now])
        else:
            inputs = self._inputs
            known = [inputs.future] if self.bundle.ahead else []
            prediction, after = self.bundle.run_step(inputs.x, inputs.mask, self._states[self._now], *known)
            self.raw[:] = prediction
            for name, value in after.items():
                self._states[1 - self._now][name][:] = value
        self._now = 1 - self._now
        self._steps += 1
        if self._steps % STEPS_BETWEEN == 0 and not self.bundle.fitted:
            _drop_next_to_nothing(self._states[self._now])

    def _step_all(self, at: Time | None) -> None:
        if at is None and not self.bundle.calendar:
            self._clock.since += 1
        else:
            self._move_clock(np.arange(len(self.series)), at)
        self._inputs.mark_seen()
        self.run()
        if self._online is not None:
            self._learn(np.arange(len(self.series)), self._inputs.x[:, 0])

    def _step_some(self, values: Mapping[str, Any], at: Time | None) -> dict[str, Array]:
        rows = self._inputs.enter_some(values)
        if not len(rows):
            return {}
        observation = self._begin(rows, at)
        known = [self._inputs.future[rows]] if self.bundle.ahead else []
        prediction, after = self.bundle.run_step(*observation, *known)
        told = self._end(rows, prediction, after, self._inputs.x[rows, 0])
        return dict(zip(values, told, strict=True))

    def _look_rows(self, rows: Array, at: Time | None) -> tuple[Array, Inside]:
        prediction, after, look = self.bundle.run_look(*self._begin(rows, at))
        return self._end(rows, prediction, after, self._inputs.x[rows, 0]), look

    def _begin(self, rows: Array, at: Time | None) -> tuple[Array, Array, State]:
        """Move the clock of some series, and return their x, mask and state."""
        self._move_clock(rows, at)
        state = self._states[self._now]
        return *as_input(self._inputs.x[rows]), {name: value[rows] for name, value in state.items()}

    def _end(self, rows: Array, prediction: Array, after: State, observed: Array) -> Array:
        """Keep the states and predictions of some series, and return what is told; `observed` (b,) came just now."""
        self._steps += 1
        if self._steps % STEPS_BETWEEN == 0 and not self.bundle.fitted:
            _drop_next_to_nothing(after)
        for name, value in after.items():
            self._states[self._now][name][rows] = value
        self.raw[rows] = prediction
        return self.bundle.calibrated(prediction) if self._online is None else self._learn(rows, observed)

    def _move_clock(self, rows: Array, at: Time | None) -> None:
        """Let some series take their next observation now, and write what the calendar says of that time.

        Periods that were skipped before `at` are stepped as missing.
        """
        bundle, clock = self.bundle, self._clock
        if at is not None:
            time, missing = clock.until(rows, at)
            behind = np.flatnonzero(missing)
            if len(behind):
                self._scan_rows(rows[behind], [self._gap(rows[row], int(missing[row])) for row in behind])
            clock.set(rows, time)
        elif not bundle.calendar:
            clock.since[rows] += 1
        elif np.isnan(clock.last[rows]).any():
            name = self.series[rows[np.isnan(clock.last[rows]).argmax()]]
            raise BundleError(
                f"{name}: give `at`, the time of its first observation: the inputs {', '.join(bundle.calendar)} of "
                f"{bundle.name} are computed from it."
            )
        else:
            clock.set(rows, clock.times(rows, 1)[:, 1])
        self._inputs.enter_calendar(rows, clock)

    def _gap(self, row: int, missing: int) -> Array:
        """(missing, C) what enters at the periods after a series' last step of which nothing was observed."""
        values = np.full((missing, self.bundle.width), np.nan)
        if missing and self.bundle.calendar:
            times = self._clock.times(np.array([row]), missing)[0, 1:]
            values[:, len(self.bundle.channels) :] = self.bundle.calendar_at(times)
        return values

    def _scan_rows(self, rows: Array, sequences: list[Array], windows: list[Array] | None = None) -> None:
        """Step some series over (T_b, C) each; `windows` are the covariates (T_b, H, F) known ahead of each step."""
        if windows is None and self.bundle.ahead:  # gaps, whose forecasts nobody is told
            shape = self._inputs.future.shape[1:]
            windows = [np.full((len(values), *shape), np.nan, np.float32) for values in sequences]
        state = self._states[self._now]
        if self._online is not None:  # every step's forecast is told, and judged when its outcome comes
            lengths = np.array([len(values) for values in sequences])
            for t in range(int(lengths.max(initial=0))):
                going = np.flatnonzero(lengths > t)
                values, at = np.stack([sequences[row][t] for row in going]), rows[going]
                known = [] if windows is None else [np.stack([windows[row][t] for row in going])]
                before = {name: value[at] for name, value in state.items()}
                prediction, after = self.bundle.run_step(*as_input(values), before, *known)
                self._end(at, prediction, after, values[:, 0])
            return
        before = {name: value[rows] for name, value in state.items()}
        predictions, after = scan_ragged(self.bundle, sequences, before, windows)
        self._end(rows, predictions, after, np.array([values[-1, 0] for values in sequences]))

    def _adapting(self, rate: float | None, learned: Mapping[str, Array] | None) -> OnlineCalibration | None:
        """The stream's own calibration, at the rate asked for or the one that it was saved with."""
        if rate is None and learned is None:
            return None
        if self.bundle.kind != "forecast":
            raise BundleError(f"{self.bundle.path}: adapts the quantiles of a forecast; this is to {self.bundle.kind}.")
        horizon, levels = self.bundle.prediction_shape[0], self.bundle.quantiles
        if learned is not None and set(learned) != set(ONLINE):
            raise BundleError(
                f"the state's calibration holds {sorted(learned)}, not {sorted(ONLINE)}; start without it."
            )
        if learned is not None and rate is None:
            rate = float(learned["rate"])
        try:
            online = OnlineCalibration(len(self.series), horizon, levels, rate or 0.0, learned)
        except CalibrationError as error:
            raise BundleError(str(error)) from error
        if learned is None and np.isfinite(self.raw).any():  # what a local model says where its fit ends
            online.issue(np.arange(len(self.series)), self.bundle.calibrated(self.raw))
        return online

    def _learn(self, rows: Array, observed: Array) -> Array:
        """Judge what was told by what came, and return the new predictions as they are to be told."""
        assert self._online is not None
        self._online.judge(rows, observed)
        return self._online.issue(rows, self.bundle.calibrated(self.raw[rows]))

    def _bind(self) -> list[Any]:
        """One binding for each direction between the two copies of the state; all memory is ours and stays in place."""
        bindings = []
        for now in range(2):
            binding = self.bundle.step_session.io_binding()
            inputs: dict[str, Array] = {"x": self._inputs.x, "mask": self._inputs.mask}
            inputs |= {"future": self._inputs.future} if self.bundle.ahead else {}
            inputs |= {f"state.{name}": value for name, value in self._states[now].items()}
            outputs = {"prediction": self.raw}
            outputs |= {f"next.{name}": value for name, value in self._states[1 - now].items()}
            for name, array in inputs.items():
                binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
            for name, array in outputs.items():
                binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
            bindings.append(binding)
        return bindings


def _drop_next_to_nothing(state: State) -> None:
    for value in state.values():
        if value.dtype == np.float32:
            value[np.abs(value) < NEXT_TO_NOTHING] = 0.0


def restored(
    bundle: LoadedBundle, source: str | os.PathLike[str] | bytes, names: list[str] | None, adapt: float | None = None
) -> Stream:
    """The stream that was saved: all its series, or the named ones, of which those unknown to it start anew.

    Raises:
        BundleError: there is no such file, or it is not the whole state of a stream of this bundle.
    """
    where = "state" if isinstance(source, bytes) else str(source)
    try:
        content = source if isinstance(source, bytes) else Path(source).read_bytes()
    except OSError as error:
        raise BundleError(f"{where}: the state cannot be read ({error.strerror}).") from error
    arrays = read_npz(content, where)
    wanted = {"step_sha256", "series", "last", "since", "predictions", *(f"state.{n}" for n in bundle.state_names)}
    wanted |= {"future"} if bundle.ahead else set()
    if "step_sha256" not in arrays:
        raise BundleError(f"{where}: is not the state of a stream.")
    if str(arrays["step_sha256"]) != bundle.card["sha256"][STEP]:
        raise BundleError(
            f"{where}: the state belongs to another bundle than {bundle.path} (its step.onnx differs). "
            "Start without a state: a state has meaning only for the weights that made it."
        )
    learned = {name: arrays.pop(f"adapt.{name}", None) for name in ONLINE}
    rows = len(arrays["series"]) if "series" in arrays else 0
    if set(arrays) != wanted or any(len(arrays[name]) != rows for name in wanted - {"step_sha256"}):
        raise BundleError(f"{where}: the state is not complete; start without it.")
    _check_numbers(bundle, arrays, rows, where)
    saved = Stream(
        bundle,
        arrays["series"].tolist(),
        {name: arrays[f"state.{name}"] for name in bundle.state_names},
        arrays["last"],
        arrays["since"],
        arrays["predictions"],
        adapt,
        {name: array for name, array in learned.items() if array is not None} or None,
        arrays.get("future"),
    )
    if names is None or names == saved.series:
        return saved
    return saved.extended([name for name in names if name not in saved.row]).chosen(names)


def _check_numbers(bundle: LoadedBundle, arrays: Mapping[str, Array], rows: int, where: str) -> None:
    """Raise BundleError unless what a file holds is of the shapes and types of a stream's own: a graph takes no other,
    and one number that is none would stay in a state for good."""
    own = bundle.initial_state(1)
    state = {name: arrays[f"state.{name}"] for name in own}
    bundle.check_state(state, rows, where)
    bad = [name for name, value in state.items() if value.dtype != own[name].dtype]
    bad += [
        n for n, value in state.items() if n not in bad and np.isfinite(own[n]).all() and not np.isfinite(value).all()
    ]
    shape = (rows, *bundle.prediction_shape)
    bad += ["predictions"] if arrays["predictions"].shape != shape or arrays["predictions"].dtype.kind != "f" else []
    if bundle.ahead:
        future = (rows, shape[1], len(bundle.ahead))
        bad += ["future"] if arrays["future"].shape != future or arrays["future"].dtype.kind != "f" else []
    kind = "M" if isinstance(bundle.task["freq"], str) else "f"
    bad += ["last"] if arrays["last"].dtype.kind != kind else []
    bad += ["since"] if arrays["since"].dtype.kind != "i" else []
    if bad:
        raise BundleError(
            f"{where}: {', '.join(bad[:3])} of the state holds other numbers than a stream saves; start without it."
        )
