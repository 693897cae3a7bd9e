"""From a bundle to predictions: onnxruntime and numpy, so that it runs where nothing else of ours is installed.

`Stream` takes one observation at a time and holds the states; `LoadedBundle.forecast` takes a long frame and scans it.
Only the latter knows pandas, and imports it when called. Torch is never needed.

Shapes: B series, T time, C channels, H horizon, F covariates known ahead, Q quantiles, K classes; a prediction of one
series is (H, Q) for a forecast, (K,) for a classification and (Q,) for a regression.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
from numpy.typing import ArrayLike, NDArray

from forecasting.bundle import (
    CARD,
    LOOK,
    REFIT,
    SCAN,
    STEP,
    Bundle,
    BundleError,
    read_bundle,
    read_npz,
    write_atomic,
    write_npz,
)
from forecasting.conformal import ONLINE, Calibration, CalibrationError, OnlineCalibration, chosen, joined

if TYPE_CHECKING:
    import pandas as pd

    from data.frame import Dataset
    from data.panel import Series

Array = NDArray[Any]
State = dict[str, Array]
Inside = dict[str, Array]
Time = str | int | float | datetime | np.datetime64

CPU = "CPUExecutionProvider"
SHORT_NAMES = {"cpu": CPU, "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
SCAN_STEPS = 512  # steps in one run of a long scan
SCAN_ROWS = 1024  # series in one run
SCAN_NUMBERS = 2**23  # numbers in the predictions of one run, 32 MB
MOST_MISSING = 100_000  # periods that `at` may skip; more is taken for a wrong unit of time
ANONYMOUS = "stream"  # the series of a stream that was given no names

# Pandas aliases of a fixed length, in ns; other steps (B, MS, W-SUN) follow a calendar and need pandas.
FIXED_NS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "min": 60 * 10**9, "h": 3600 * 10**9, "D": 86400 * 10**9}
NUMPY_TYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}


def load_bundle(
    path: str | os.PathLike[str], *, providers: Sequence[str] | None = None, threads: int = 1
) -> LoadedBundle:
    """Verify a bundle and make it ready to run; one that is fitted when it forecasts needs more than is named above.

    Args:
        path: the bundle's directory.
        providers: onnxruntime's execution providers in order of preference, such as "cuda" and "cpu"; default "cpu".
            One that is not on this machine is an error, never replaced in silence.
        threads: for one operation. One is the fastest for small models.

    Raises:
        BundleError: a file is missing, changed, unreadable or of a newer version, or a provider is not here.
    """
    bundle = read_bundle(path)
    if bundle.card.get("kind") != REFIT:
        return LoadedBundle(bundle, providers=providers, threads=threads)
    try:
        from forecasting.refit_bundle import RefitBundle

        return RefitBundle(bundle, providers=providers)
    except ImportError as error:
        raise BundleError(
            f"{path}: {bundle.card['name']} is fitted when it forecasts, and what fits it is not installed here "
            f"({error}). Forecast where sktime, pandas and torch are; on the edge take a model that exports a graph."
        ) from error


class LoadedBundle:
    """A verified bundle; `run_step`, `run_scan` and `run_look` are its graphs, the rest is built on them."""

    # What the graphs take ahead of an observation, the last channels: first what a caller has to say, `future`, then
    # what is computed from the calendar. A model that takes none has them as any channel.
    ahead: tuple[str, ...] = ()

    def __init__(self, bundle: Bundle, *, providers: Sequence[str] | None = None, threads: int = 1) -> None:
        self._describe(bundle)
        self.has_look = LOOK in bundle.files
        self._files = bundle.files
        self._initial = bundle.state
        # Of a local model: series -> row of its state, with what else the bundle keeps of it.
        self.fitted: dict[str, int] = {}
        self._fitted_last, self._fitted_predictions, self._effects = (
            self._initial.pop(name, None) for name in ("last", "predictions", "effects")
        )
        if "series" in self._initial:
            self.fitted = {name: row for row, name in enumerate(self._initial.pop("series").tolist())}
        self.threads = threads
        self._asked = check_providers(providers)
        self._session = self.step_session if self.streams else self.scan_session
        self.providers: list[str] = self._session.get_providers()  # what runs, the first that can take a node takes it
        if "future" in self._names():
            self.ahead = tuple(self.task["future"])
        self.state_names = tuple(name.removeprefix("state.") for name in self._names() if name.startswith("state."))
        if set(self.state_names) != set(self._initial):
            raise BundleError(
                f"{self.path}: state.npz holds {sorted(self._initial)}, the graph wants {sorted(self.state_names)}."
            )

    def _describe(self, bundle: Bundle) -> None:
        """What the card says, whatever runs behind it."""
        self.path = bundle.path
        self.card = bundle.card
        self.name: str = bundle.card["name"]
        self.task: dict[str, Any] = bundle.card["task"]
        self.kind: str = self.task["kind"]
        self.calendar: tuple[str, ...] = tuple(self.task.get("calendar", ()))
        self.computed = self._count_computed()  # of the channels, the last: from the calendar
        self.width = len(self.task["channels"])  # of what enters the graphs
        self.channels: list[dict[str, Any]] = self.task["channels"][: self.width - self.computed]
        self.labels: tuple[str, ...] = tuple(self.task["labels"])
        self.quantiles: tuple[float, ...] = tuple(self.task["quantiles"])
        self._known_ahead: int = len(self.task.get("future", ()))
        self.streams: bool = bundle.card["streams"]
        self.calibration = self._read_calibration()
        self.notes: tuple[str, ...] = ()  # remarks on the last forecast
        self.failures: dict[str, str] = {}  # series that the last forecast has left out -> why
        # Series that a local model could not be fitted to -> what forecasts them in its place, and why.
        self.substitutes: dict[str, dict[str, str]] = {
            name: one if isinstance(one, dict) else {"substitute": one, "reason": one}  # before it was written apart
            for name, one in bundle.card.get("training", {}).get("substitutes", {}).items()
        }

    @cached_property
    def step_session(self) -> onnxruntime.InferenceSession:
        if not self.streams:
            raise BundleError(
                f"{self.path}: {self.name} does not stream: it labels complete sequences, because every position sees "
                "the end of its sequence. Use `forecast`, or a model that streams, such as gru."
            )
        return self._load(STEP)

    @cached_property
    def scan_session(self) -> onnxruntime.InferenceSession:
        return self._load(SCAN)

    @cached_property
    def look_session(self) -> onnxruntime.InferenceSession:
        if not self.has_look:
            raise BundleError(
                f"{self.path}: {self.name} has no look inside: the bundle holds no {LOOK}. Models with a test-time "
                "memory, such as titans-lmm and yaad, export one; use `step` for the prediction alone."
            )
        return self._load(LOOK)

    @cached_property
    def look_names(self) -> tuple[str, ...]:
        """What `run_look` gives, such as block0.surprise; the model's documentation says what each is."""
        outputs = [node.name for node in self.look_session.get_outputs()]
        return tuple(name.removeprefix("look.") for name in outputs if name.startswith("look."))

    @property
    def future(self) -> tuple[str, ...]:
        """The covariates of which a step has to be told what they will be."""
        return self.ahead[: len(self.ahead) - self.computed] if self.ahead else ()

    @property
    def prediction_shape(self) -> tuple[int, ...]:
        """Of one series at one time."""
        if self.kind == "forecast":
            return (int(self.task["horizon"]), len(self.quantiles))
        return (len(self.labels),) if self.kind == "classify" else (len(self.quantiles),)

    def initial_state(self, batch: int) -> State:
        """The state before the first observation, for `batch` series.

        A local model has none for series that it was not fitted to: these are the states of its own, over and over,
        for measurements of the graphs. A stream takes each series' own.
        """
        rows = np.arange(batch) % max(1, len(self.fitted))
        return {name: self._initial[name][rows] for name in self.state_names}

    def fresh(self, names: list[str], adapt: float | None = None) -> Stream:
        """A stream of the named series where the bundle leaves them: before their first observation, or, of a local
        model, after the last that each was fitted to.

        Raises:
            BundleError: a series that a local model was not fitted to.
        """
        if not self.fitted:
            return Stream(self, names, adapt=adapt)
        unknown = [name for name in names if name not in self.fitted]
        if unknown:
            raise BundleError(
                f"{self.path}: {self.name} is fitted per series, and not to {_shorten(unknown)}; it knows the "
                f"{len(self.fitted)} series {_shorten(list(self.fitted))}. Train it with them, or take a model that is "
                "shared over the series, such as ridge."
            )
        assert self._fitted_last is not None
        assert self._fitted_predictions is not None
        rows = [self.fitted[name] for name in names]
        state = {name: self._initial[name][rows] for name in self.state_names}
        told = None if self.ahead else self._fitted_predictions[rows]  # what is ahead of a fit is not known before
        return Stream(self, names, state, self._fitted_last[rows], None, told, adapt)

    def calendar_at(self, times: Array) -> Array:
        """(..., K) the computed channels at times (...)."""
        from data.calendar import calendar_values

        return calendar_values(times, self.calendar)

    def _count_computed(self) -> int:
        if not self.calendar:
            return 0
        from data.calendar import CalendarError, calendar_channels

        try:
            return len(calendar_channels(self.calendar))
        except CalendarError as error:
            raise BundleError(f"{self.path / CARD}: {error} Is it of a newer version?") from error

    def calibrated(self, predictions: Array) -> Array:
        """What the graphs predict, (..., H, Q), with the quantiles calibrated as the card says; else unchanged."""
        return predictions if self.calibration is None else self.calibration.apply(predictions)

    def _read_calibration(self) -> Calibration | None:
        if self.card.get("calibration") is None:
            return None
        try:
            calibration = Calibration.from_json(self.card["calibration"])
        except CalibrationError as error:
            raise BundleError(f"{self.path / CARD}: {error} Write the bundle again.") from error
        if self.kind != "forecast" or calibration.factors.shape != self.prediction_shape:
            raise BundleError(
                f"{self.path / CARD}: the calibration is of shape {calibration.factors.shape}, the predictions are "
                f"{self.prediction_shape} to {self.kind}. Write the bundle again."
            )
        return calibration

    def run_step(self, x: ArrayLike, mask: ArrayLike, state: State, *future: ArrayLike) -> tuple[Array, State]:
        """One observation of B series: x, mask (B, C) give predictions (B, ...) and the next state.

        future: (B, H, F) where the bundle has covariates known ahead, nothing else.
        """
        return self._run(self.step_session, x, mask, state, *future)

    def run_scan(self, x: ArrayLike, mask: ArrayLike, state: State, *future: ArrayLike) -> tuple[Array, State]:
        """T observations of B series: x, mask (B, T, C), future (B, T, H, F) give predictions (B, T, ...) and the next
        state."""
        return self._run(self.scan_session, x, mask, state, *future)

    def run_look(self, x: ArrayLike, mask: ArrayLike, state: State) -> tuple[Array, State, Inside]:
        """`run_step` with a look inside: for each name of `look_names` (B, heads)."""
        feeds, wanted = self._feeds(x, mask, state)
        wanted += [f"look.{name}" for name in self.look_names]
        prediction, *rest = self.look_session.run(wanted, feeds)
        after, look = rest[: len(self.state_names)], rest[len(self.state_names) :]
        return (
            prediction,
            dict(zip(self.state_names, after, strict=True)),
            dict(zip(self.look_names, look, strict=True)),
        )

    def stream(
        self,
        series: Iterable[str] | None = None,
        state: str | os.PathLike[str] | bytes | None = None,
        adapt: float | None = None,
    ) -> Stream:
        """A stream of the named series, each at the initial state or at the one it had when `state` was saved.

        Without names it holds the series of the state, those that a local model was fitted to, or one without a name.
        `adapt` is the rate at which a forecast's quantiles go on being calibrated as outcomes arrive, such as 0.05 (see
        `forecasting.conformal.OnlineCalibration`); what was learned is part of the state, and a state that was saved
        adapting goes on so at its own rate where none is given.
        """
        _ = self.step_session
        if series is not None and not isinstance(series, str):
            names: list[str] | None = [str(name) for name in series]
        else:
            names = None if series is None else [series]
        if state is None:
            return self.fresh(names or list(self.fitted) or [ANONYMOUS], adapt)
        return self._restore(state, names, adapt)

    def forecast(
        self,
        frame: pd.DataFrame | Dataset,
        *,
        state: str | os.PathLike[str] | bytes | None = None,
        save_state: str | os.PathLike[str] | None = None,
        adapt: float | None = None,
    ) -> pd.DataFrame:
        """Predict from the end of every series of a long frame.

        Args:
            frame: unique_id, ds and the channels of the card, but for those that the calendar gives. A series may have
                gaps. Where covariates are known ahead they go on for at least the horizon after a series' last value,
                in rows without one. A series whose times cannot be stepped over, for they are of another step, is left
                out, and `failures` says why; where none is left, that is raised.
            state: what `save_state` or `Stream.save` wrote: only observations after it are stepped, so the cost is
                that of the new data. A series unknown to it starts from the initial state. A local model's series
                start from the states that they were fitted to, and it refuses others.
            save_state: a file for the state after the last observation.
            adapt: as `stream` takes it; the frame is then stepped one observation after the other.

        Returns:
            forecast: unique_id, cutoff, ds, model, mean, q0.1 ..., substitute: one row for each step of the horizon.
                The mean is that of the model's own quantiles, which the card's calibration moves; the last names what
                forecasts in the model's place, and is empty where that is the model itself.
            classify: unique_id, ds, model, label, p_<label> ... : one row for each series, at its last time.
            regress: unique_id, ds, model, mean, q0.1 ... : the same.
        """
        panel = self._panel(frame)
        ahead: dict[str, Array] = {}
        if self._known_ahead:
            panel, ahead = self._split_future(panel, adapt is not None)
        ids = [series.unique_id for series in panel]
        if not self.streams:
            if state is not None or save_state is not None or adapt is not None:
                raise BundleError(f"{self.path}: {self.name} labels complete sequences, so it has no state to keep.")
            predictions = self._complete([series.values for series in panel])
            return self._tabulate(ids, [series.ds[-1] for series in panel], predictions, predictions)
        if state is None:
            stream = self.stream(ids, adapt=adapt)
        else:
            stream = self._restore(state, None, adapt)
            known = set(stream.series)
            stream = stream.extended([name for name in ids if name not in known])
        self.failures |= stream.catch_up(panel, ahead)
        if not set(ids) - set(self.failures):
            raise BundleError(next(iter(self.failures.values())))
        panel = [series for series in panel if series.unique_id not in self.failures]
        ids = [series.unique_id for series in panel]
        if self.ahead:
            self._look_ahead(stream, ids, ahead)
        if save_state is not None:
            stream.save(save_state)
        times = [np.asarray(stream.time_of(series.unique_id)).astype(series.ds.dtype)[()] for series in panel]
        rows = [stream.row[name] for name in ids]
        return self._tabulate(ids, times, stream.predictions[rows], stream.raw[rows])

    def check_channels(self, channels: Iterable[Any]) -> None:
        """Raise BundleError unless the channels have the card's names, units and order; an unknown unit ("") passes.

        channels: objects or mappings with `name` and `unit`.
        """
        found = [(c["name"], c["unit"]) if isinstance(c, Mapping) else (c.name, c.unit) for c in channels]
        wanted = [(c["name"], c["unit"]) for c in self.channels]
        same = len(found) == len(wanted) and all(
            a == b and (not u or not v or u == v) for (a, u), (b, v) in zip(found, wanted, strict=True)
        )
        if not same:
            raise BundleError(
                f"{self.path}: expects the channels {_list_channels(wanted)} in this order; "
                f"got {_list_channels(found)}."
            )

    def _load(self, name: str) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors; what matters is raised
        try:
            session = onnxruntime.InferenceSession(self._files[name], options, providers=self._asked)
        except Exception as error:  # onnxruntime's own exceptions share no base
            raise BundleError(f"{self.path / name}: onnxruntime cannot load the graph ({error}).") from error
        if session.get_providers()[0] != self._asked[0]:
            raise BundleError(
                f"{self.path / name}: {self._asked[0]} was asked for and did not start; "
                f"{session.get_providers()[0]} would run. Check its driver and libraries, or ask for 'cpu'."
            )
        return session

    def _names(self) -> list[str]:
        return [node.name for node in self._session.get_inputs()]

    def _run(
        self, session: onnxruntime.InferenceSession, x: ArrayLike, mask: ArrayLike, state: State, *future: ArrayLike
    ) -> tuple[Array, State]:
        feeds, wanted = self._feeds(x, mask, state, *future)
        prediction, *after = session.run(wanted, feeds)
        return prediction, dict(zip(self.state_names, after, strict=True))

    def _feeds(
        self, x: ArrayLike, mask: ArrayLike, state: State, *future: ArrayLike
    ) -> tuple[dict[str, Array], list[str]]:
        """What enters a graph, and the names of the prediction and the next state."""
        feeds = {"x": np.asarray(x, np.float32), "mask": np.asarray(mask, np.float32)}
        if future:
            feeds["future"] = np.asarray(future[0], np.float32)
        feeds |= {f"state.{name}": state[name] for name in self.state_names}
        return feeds, ["prediction", *(f"next.{name}" for name in self.state_names)]

    def _restore(
        self, source: str | os.PathLike[str] | bytes, names: list[str] | None, adapt: float | None = None
    ) -> Stream:
        where = "state" if isinstance(source, bytes) else str(source)
        try:
            content = source if isinstance(source, bytes) else Path(source).read_bytes()
        except OSError as error:
            raise BundleError(f"{where}: the state cannot be read ({error.strerror}).") from error
        arrays = read_npz(content, where)
        wanted = {"step_sha256", "series", "last", "since", "predictions", *(f"state.{n}" for n in self.state_names)}
        if "step_sha256" not in arrays:
            raise BundleError(f"{where}: is not the state of a stream.")
        if str(arrays["step_sha256"]) != self.card["sha256"][STEP]:
            raise BundleError(
                f"{where}: the state belongs to another bundle than {self.path} (its step.onnx differs). "
                "Start without a state: a state has meaning only for the weights that made it."
            )
        learned = {name: arrays.pop(f"adapt.{name}", None) for name in ONLINE}
        rows = len(arrays["series"]) if "series" in arrays else 0
        if set(arrays) != wanted or any(len(arrays[name]) != rows for name in wanted - {"step_sha256"}):
            raise BundleError(f"{where}: the state is not complete; start without it.")
        saved = Stream(
            self,
            arrays["series"].tolist(),
            {name: arrays[f"state.{name}"] for name in self.state_names},
            arrays["last"],
            arrays["since"],
            arrays["predictions"],
            adapt,
            {name: array for name, array in learned.items() if array is not None} or None,
        )
        if names is None or names == saved.series:
            return saved
        return saved.extended([name for name in names if name not in saved.row]).chosen(names)

    def _panel(self, frame: pd.DataFrame | Dataset) -> list[Series]:
        from data.frame import TARGETS, Channel, Dataset, FrameError, Splits, check_frame
        from data.panel import to_panel

        channels = tuple(Channel.from_json(channel) for channel in self.channels)
        if isinstance(frame, Dataset):
            self.check_channels(frame.channels)
            source, table = frame.name, frame.frame
        else:
            source, table = "frame", frame
        missing = [channel.name for channel in channels if channel.name not in table]
        if missing:
            raise BundleError(f"{self.path}: {source} has no column for the channels {', '.join(missing)} of the card.")
        target = TARGETS[self.kind]
        if target not in {channel.name for channel in channels}:
            table = table.drop(columns=target, errors="ignore")  # what is to be predicted may be wrong or unknown
        checked, self.notes = check_frame(
            table,
            source=source,
            task=self.kind,  # type: ignore[arg-type]
            channels=channels,
            target_required=False,
            leave_out_empty=True,
        )
        dataset = Dataset(
            name=source,
            frame=checked,
            task=self.kind,  # type: ignore[arg-type]
            channels=channels,
            freq=self.task["freq"],
            season=self.task["season"],
            horizon=self.task["horizon"],
            splits=Splits(),
            target=target,
            calendar=self.calendar,
        )
        self.failures = {}
        try:
            panel = to_panel(dataset, labels=self.labels)
        except FrameError as error:
            panel = self._one_by_one(dataset, error)
            checked = checked[~checked["unique_id"].isin(self.failures)]
        self._refuse_coarser_steps(source, checked, panel)
        return panel

    def _one_by_one(self, dataset: Dataset, error: ValueError) -> list[Series]:
        """Those series that can be put on the grid, and in `failures` why the others cannot; if none can, the error."""
        from data.frame import FrameError
        from data.panel import to_panel

        panel = []
        for name, rows in dataset.frame.groupby("unique_id", sort=False):
            alone = replace(dataset, frame=rows.reset_index(drop=True))
            try:
                panel += to_panel(alone, labels=self.labels)
            except FrameError as reason:
                self.failures[str(name)] = self._off_grid(alone, reason)
        if not panel:
            raise error
        return panel

    def _off_grid(self, alone: Dataset, reason: ValueError) -> str:
        """What is wrong with the one series of a data set, whose times are not on the card's grid."""
        from data.frame import FrameError, infer_freq

        wanted = f"{self.name} was made for data every {alone.freq!r}"
        try:
            own: Any = infer_freq(alone.frame, alone.name)
        except FrameError:
            own = alone.freq  # it has no step of its own that could be named
        if own == alone.freq:
            return f"{reason} {wanted}."
        name = alone.frame["unique_id"].iloc[0]
        remedy = "Resample it to that, or train a model for its step."
        return f"{alone.name}: series {name} is every {own!r}, but {wanted}. {remedy}"

    def _refuse_coarser_steps(self, source: str, frame: pd.DataFrame, panel: list[Series]) -> None:
        """Months given to a model of days would be days of which most are missing: that is a mistake, not a gap.

        Seconds are left alone, for a device may drop every other frame.
        """
        step = self.task["freq"]
        if step is None or isinstance(step, float):
            return
        times = frame["ds"].to_numpy()
        counts = frame["unique_id"].value_counts(sort=False)
        ends = np.cumsum(counts.to_numpy())
        apart = [
            int(np.diff(np.searchsorted(series.ds, times[end - count : end])).min())
            for series, count, end in zip(panel, counts, ends, strict=True)
            if count > 2
        ]
        if apart and min(apart) > 1:
            raise BundleError(
                f"{self.path}: no two rows of a series in {source} are less than {min(apart)} steps of {step!r} apart, "
                f"but {self.name} was made for data every {step!r}. Give it such data, with rows without a value where "
                "nothing was observed, or train a model for this step."
            )

    def _split_future(self, panel: list[Series], every: bool) -> tuple[list[Series], dict[str, Array]]:
        """Each series up to its last observation of what is not known ahead; and, where the graphs take them, the
        covariates (T + H, F), float32, that are.

        every: whether forecasts of the past are told too, which then need what was ahead of them.

        Raises:
            BundleError: a series with a covariate missing ahead of its end.
        """
        count, horizon = self._known_ahead, int(self.task["horizon"])
        split, ahead, lacking = [], {}, []
        for series in panel:
            seen = np.flatnonzero(np.isfinite(series.values[:, :-count]).any(1))
            end = int(seen[-1]) + 1
            split.append(replace(series, ds=series.ds[:end], values=series.values[:end]))
            if not self.ahead:
                continue
            covariates = _as_float32(series.values[: end + horizon, -count:])
            covariates = np.pad(covariates, [(0, end + horizon - len(covariates)), (0, 0)], constant_values=np.nan)
            if self.calendar:
                covariates[:, -self.computed :] = self.calendar_at(self._through_the_horizon(series, end))
            gaps = ~np.isfinite(covariates[1 if every else end :])
            if gaps.any():
                lacking.append((series, end, gaps))
            ahead[series.unique_id] = covariates
        if lacking:
            raise BundleError(self._lacking(*lacking[0], [series.unique_id for series, _, _ in lacking]))
        return split, ahead

    def _through_the_horizon(self, series: Series, end: int) -> Array:
        """(end + H,) the times of a series' first `end` steps and of the horizon after them."""
        from data.panel import future_ds

        ahead = future_ds(series.ds[end - 1], self.task["freq"], int(self.task["horizon"]))
        return np.concatenate([series.ds[:end], ahead])

    def _lacking(self, series: Series, end: int, gaps: Array, everyone: list[str]) -> str:
        """Which covariate is missing when, of the first series that lacks one."""
        from data.frame import show_time

        horizon = int(self.task["horizon"])
        times = self._through_the_horizon(series, end)[-len(gaps) :]
        said = []
        for name, missing in zip(self.ahead, gaps.T, strict=True):
            dates = [show_time(times[at]) for at in np.flatnonzero(missing)]
            if dates:
                said.append(f"{name} at {_shorten(dates)}")
        more = f" (and {len(everyone) - 1} more series)" if len(everyone) > 1 else ""
        return (
            f"{series.unique_id}: to forecast {horizon} steps after {show_time(series.ds[end - 1])} needs "
            f"{' and '.join(said)}{more}. Give rows with what is known ahead, and no value, for the whole horizon."
        )

    def _look_ahead(self, stream: Stream, ids: list[str], ahead: Mapping[str, Array]) -> None:
        """Tell what series say that have taken no step since their fit: linear in what is ahead of them."""
        fresh = [name for name in ids if np.isnan(stream.raw[stream.row[name]]).any()]
        if not fresh:
            return
        assert self._effects is not None
        assert self._fitted_predictions is not None
        rows, own = [stream.row[name] for name in fresh], [self.fitted[name] for name in fresh]
        future = np.stack([ahead[name][-int(self.task["horizon"]) :] for name in fresh])  # (n, H, F)
        stream.tell(rows, self._fitted_predictions[own] + (future * self._effects[own][:, None]).sum(-1)[..., None])

    def _complete(self, sequences: list[Array]) -> Array:
        """The prediction at the end of complete sequences, those of equal length together."""
        lengths = np.array([len(values) for values in sequences])
        predictions = np.empty((len(sequences), *self.prediction_shape), np.float32)
        for length in np.unique(lengths):
            rows = np.flatnonzero(lengths == length)
            most = max(1, min(SCAN_ROWS, SCAN_NUMBERS // (int(length) * math.prod(self.prediction_shape))))
            for part in np.split(rows, range(most, len(rows), most)):
                x, mask = _as_input(np.stack([sequences[row] for row in part]))
                predictions[part] = self.run_scan(x, mask, self.initial_state(len(part)))[0][:, -1]
        return predictions

    def _scan_ragged(
        self, sequences: list[Array], state: State, ahead: list[Array] | None = None
    ) -> tuple[Array, State]:
        """The prediction after the last step of sequences (T_b, C) of any lengths >= 1, and the states then.

        `ahead` are the covariates (T_b, H, F) that are known ahead of each step, where the bundle takes them.

        Runs end where a sequence ends, and the rest goes on without it: padding would change the states.
        """
        after = {name: value.copy() for name, value in state.items()}
        predictions = np.empty((len(sequences), *self.prediction_shape), np.float32)
        lengths = np.array([len(values) for values in sequences])
        longest_first = np.argsort(-lengths, kind="stable")
        for block in np.split(longest_first, range(SCAN_ROWS, len(sequences), SCAN_ROWS)):
            t = 0
            while len(block):
                most = max(1, SCAN_NUMBERS // (len(block) * self._numbers_a_step))
                end = min(int(lengths[block[-1]]), t + min(SCAN_STEPS, most))
                x, mask = _as_input(np.stack([sequences[row][t:end] for row in block]))
                known = [] if ahead is None else [np.stack([ahead[row][t:end] for row in block])]
                carried = {name: value[block] for name, value in after.items()}
                prediction, carried = self.run_scan(x, mask, carried, *known)
                for name, value in carried.items():
                    after[name][block] = value
                ended = lengths[block] == end
                predictions[block[ended]] = prediction[ended, -1]
                block, t = block[~ended], end
        return predictions, after

    @property
    def _numbers_a_step(self) -> int:
        """The larger of what enters and leaves a graph beside the observation and the state."""
        return max(math.prod(self.prediction_shape), self.prediction_shape[0] * len(self.ahead))

    def _tabulate(
        self, ids: list[str], times: list[Any], predictions: Array, raw: Array, points: Array | None = None
    ) -> pd.DataFrame:
        """`raw` is what the model gave: the mean is that of its own quantiles, where it has no `points` (B, H)."""
        import pandas as pd

        from forecasting.metrics import mean_of_quantiles

        if self.kind == "classify":
            best = [self.labels[index] for index in predictions.argmax(-1)]
            table = {"unique_id": ids, "ds": np.array(times), "model": self.name, "label": best}
            probabilities = {f"p_{label}": predictions[:, k].astype(float) for k, label in enumerate(self.labels)}
            return pd.DataFrame(table | probabilities)
        steps = self.prediction_shape[0] if self.kind == "forecast" else 1
        flat = predictions.reshape(-1, len(self.quantiles)).astype(float)  # (B * H, Q)
        own = raw.reshape(-1, len(self.quantiles)).astype(float)
        numbers = {"mean": mean_of_quantiles(own, np.array(self.quantiles)) if points is None else points.ravel()}
        numbers |= {f"q{level:g}": flat[:, k] for k, level in enumerate(self.quantiles)}
        table = {"unique_id": np.repeat(np.array(ids, dtype=object), steps)}
        if self.kind == "forecast":
            from data.panel import future_ds

            ahead = {time: future_ds(time, self.task["freq"], steps) for time in dict.fromkeys(times)}
            table["cutoff"] = np.repeat(np.array(times), steps)
            table["ds"] = np.concatenate([ahead[time] for time in times])
            instead = [self.substitutes[name]["substitute"] if name in self.substitutes else "" for name in ids]
            numbers["substitute"] = np.repeat(np.array(instead, object), steps)
        else:
            table["ds"] = np.array(times)
        return pd.DataFrame(table | {"model": self.name} | numbers)


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
    ) -> None:
        if not series or len(set(series)) < len(series):
            raise BundleError(f"a stream needs at least one series, each named once; got {series}.")
        batch, freq = len(series), bundle.task["freq"]
        self.bundle = bundle
        self.series = series
        self.row = {name: row for row, name in enumerate(series)}
        self._freq = freq
        unknown = np.datetime64("NaT", "ns") if isinstance(freq, str) else np.nan
        # The last time that a series was given, NaT or NaN before, and the steps that it has taken since.
        self._last: Array = np.full(batch, unknown) if last is None else last.copy()
        self._since: Array = np.zeros(batch, np.int64) if since is None else since.copy()
        shape = (batch, *bundle.prediction_shape)
        # As the graph gives them, which writes here; `predictions` are what is told.
        self.raw: Array = np.full(shape, np.nan, np.float32) if predictions is None else predictions.copy()
        self._online = self._adapting(adapt, learned)
        self._x = np.zeros((batch, bundle.width), np.float32)
        self._mask = np.zeros_like(self._x)
        self._seen = np.zeros(self._x.shape, np.bool_)
        self._future = np.zeros((batch, bundle.prediction_shape[0], len(bundle.ahead)), np.float32)
        # The parts of them that callers give; the calendar gives the rest.
        self._given, self._given_ahead = self._x[:, : len(bundle.channels)], self._future[..., : len(bundle.future)]
        state = bundle.initial_state(batch) if state is None else state
        # Two copies of the state: each step reads one and writes the other.
        self._states = tuple(
            {name: np.array(state[name], order="C", copy=True) for name in bundle.state_names} for _ in range(2)
        )
        self._now = 0  # which of the two is current
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
            self._enter_future(list(values) if isinstance(values, Mapping) else self.series, future)
        if not isinstance(values, Mapping):
            self._enter_all(values)
            self._step_all(at)
            return np.array(self.predictions)
        if len(values) < len(self.series):
            return self._step_some(values, at)
        for row, name in enumerate(self.series):
            if name not in values:
                raise self._unknown(values)
            self._enter(row, values[name])
        if len(values) > len(self.series):
            raise self._unknown(values)
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
            rows = self._enter_some(values)
            if not len(rows):
                return {}, {}
            predictions, look = self._look_rows(rows, at)
            each = [{name: value[place] for name, value in look.items()} for place in range(len(rows))]
            return dict(zip(values, predictions, strict=True)), dict(zip(values, each, strict=True))
        self._enter_all(values)
        return self._look_rows(np.arange(len(self.series)), at)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the states to a file, whole or not at all; `LoadedBundle.stream(state=path)` goes on from there."""
        write_atomic(path, self.to_bytes())

    def to_bytes(self) -> bytes:
        """What `save` writes."""
        states = {f"state.{name}": value for name, value in self._states[self._now].items()}
        if self._online is not None:
            states |= {f"adapt.{name}": value for name, value in self._online.state.items()}
        return write_npz(
            states
            | {
                "step_sha256": np.array(self.bundle.card["sha256"][STEP]),
                "series": np.array(self.series, dtype=np.str_),
                "last": self._last,
                "since": self._since,
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
            np.concatenate([self._last, fresh._last]),
            np.concatenate([self._since, fresh._since]),
            np.concatenate([self.raw, fresh.raw]),
            None,
            None if self._online is None else joined(self._online.state, fresh._online.state),  # type: ignore[union-attr]
        )

    def chosen(self, names: list[str]) -> Stream:
        """A stream of some of these series, in this order, at the states that they have."""
        rows = [self.row[name] for name in names]
        return Stream(
            self.bundle,
            names,
            {name: value[rows] for name, value in self.state.items()},
            self._last[rows],
            self._since[rows],
            self.raw[rows],
            None,
            None if self._online is None else chosen(self._online.state, rows),
        )

    def time_of(self, name: str) -> Any:
        """The time of the series' last step: datetime64, or a float of cycles or seconds; NaT or NaN if never told."""
        row = self.row[name]
        if self._since[row] == 0 or np.isnan(self._last[row]):
            return self._last[row]
        return self._times(np.array([row]), 0)[0, 0]

    def tell(self, rows: list[int], raw: Array) -> None:
        """Set what the model says of some series without a step."""
        self.raw[rows] = raw
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
                first, missing = self._news(series)
            except BundleError as error:
                failures[series.unique_id] = str(error)
                continue
            if first >= len(series.ds):
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
            self._last[row] = series.ds[-1]
            self._since[row] = 0
        if rows:
            self._scan_rows(np.array(rows), sequences, windows)
        return failures

    def _news(self, series: Series) -> tuple[int, int]:
        """The place of a series' first time that is new here, and how many periods are missing before it.

        Raises:
            BundleError: its times do not go on from its last step, or so late that the step is in doubt.
        """
        from data.frame import FrameError

        name, row = series.unique_id, self.row[series.unique_id]
        if np.isnan(self._last[row]):
            if self._since[row]:
                raise BundleError(
                    f"{name}: the state was stepped without times, so it is not known which rows are new. Give `at` "
                    "when stepping, or start without a state."
                )
            return 0, 0
        try:
            ahead = int(self._periods(self._last[row : row + 1], self._time(series.ds[0]))[0] - self._since[row])
        except (BundleError, FrameError) as error:
            raise BundleError(f"{name}: does not go on from its last step at {self.time_of(name)}: {error}") from error
        self._refuse_long_gap(name, ahead - 1)
        return max(0, 1 - ahead), max(0, ahead - 1)

    def _step_all(self, at: Time | None) -> None:
        if at is None and not self.bundle.calendar:
            self._since += 1
        else:
            self._move_clock(np.arange(len(self.series)), at)
        np.isfinite(self._x, out=self._seen)
        np.copyto(self._mask, self._seen)
        self.run()
        if self._online is not None:
            self._learn(np.arange(len(self.series)), self._x[:, 0])

    def run(self) -> None:
        """Run the graph on the inputs as they stand: the bare cost of a step, for measurements."""
        if self._bindings is not None:
            self._run_bound(self._bindings[self._now])
        else:
            known = [self._future] if self.bundle.ahead else []
            prediction, after = self.bundle.run_step(self._x, self._mask, self._states[self._now], *known)
            self.raw[:] = prediction
            for name, value in after.items():
                self._states[1 - self._now][name][:] = value
        self._now = 1 - self._now

    def _step_some(self, values: Mapping[str, Any], at: Time | None) -> dict[str, Array]:
        rows = self._enter_some(values)
        if not len(rows):
            return {}
        observation = self._begin(rows, at)
        known = [self._future[rows]] if self.bundle.ahead else []
        prediction, after = self.bundle.run_step(*observation, *known)
        told = self._end(rows, prediction, after, self._x[rows, 0])
        return dict(zip(values, told, strict=True))

    def _look_rows(self, rows: Array, at: Time | None) -> tuple[Array, Inside]:
        prediction, after, look = self.bundle.run_look(*self._begin(rows, at))
        return self._end(rows, prediction, after, self._x[rows, 0]), look

    def _enter_some(self, values: Mapping[str, Any]) -> Array:
        """Write the named series' values into the input, and return their rows in that order."""
        for name, value in values.items():
            if name not in self.row:
                raise self._unknown(values)
            self._enter(self.row[name], value)
        return np.array([self.row[name] for name in values], np.int64)

    def _begin(self, rows: Array, at: Time | None) -> tuple[Array, Array, State]:
        """Move the clock of some series, and return their x, mask and state."""
        self._move_clock(rows, at)
        state = self._states[self._now]
        return *_as_input(self._x[rows]), {name: value[rows] for name, value in state.items()}

    def _end(self, rows: Array, prediction: Array, after: State, observed: Array) -> Array:
        """Keep the states and predictions of some series, and return what is told; `observed` (b,) came just now."""
        for name, value in after.items():
            self._states[self._now][name][rows] = value
        self.raw[rows] = prediction
        return self.bundle.calibrated(prediction) if self._online is None else self._learn(rows, observed)

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

    def _scan_rows(self, rows: Array, sequences: list[Array], windows: list[Array] | None = None) -> None:
        """Step some series over (T_b, C) each; `windows` are the covariates (T_b, H, F) known ahead of each step."""
        if windows is None and self.bundle.ahead:  # gaps, whose forecasts nobody is told
            shape = self._future.shape[1:]
            windows = [np.full((len(values), *shape), np.nan, np.float32) for values in sequences]
        state = self._states[self._now]
        if self._online is not None:  # every step's forecast is told, and judged when its outcome comes
            lengths = np.array([len(values) for values in sequences])
            for t in range(int(lengths.max(initial=0))):
                going = np.flatnonzero(lengths > t)
                values, at = np.stack([sequences[row][t] for row in going]), rows[going]
                known = [] if windows is None else [np.stack([windows[row][t] for row in going])]
                before = {name: value[at] for name, value in state.items()}
                prediction, after = self.bundle.run_step(*_as_input(values), before, *known)
                self._end(at, prediction, after, values[:, 0])
            return
        before = {name: value[rows] for name, value in state.items()}
        predictions, after = self.bundle._scan_ragged(sequences, before, windows)
        self._end(rows, predictions, after, np.array([values[-1, 0] for values in sequences]))

    def _bind(self) -> list[Any]:
        """One binding for each direction between the two copies of the state; all memory is ours and stays in place."""
        bindings = []
        for now in range(2):
            binding = self.bundle.step_session.io_binding()
            inputs: dict[str, Array] = {"x": self._x, "mask": self._mask}
            inputs |= {"future": self._future} if self.bundle.ahead else {}
            inputs |= {f"state.{name}": value for name, value in self._states[now].items()}
            outputs = {"prediction": self.raw}
            outputs |= {f"next.{name}": value for name, value in self._states[1 - now].items()}
            for name, array in inputs.items():
                binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
            for name, array in outputs.items():
                binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
            bindings.append(binding)
        return bindings

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
            numbers = _as_float32(numbers)
        self._given[row] = numbers

    def _enter_future(self, names: list[str], future: Any) -> None:
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

    def _enter_all(self, values: ArrayLike) -> None:
        numbers = np.asarray(values)
        if numbers.dtype.kind not in "fiu":
            numbers = self._numbers("values", values)
        if numbers.shape != self._given.shape:
            raise BundleError(
                f"got an array of shape {numbers.shape}, expected {self._given.shape}: {len(self.series)} series and "
                f"the channels {self._channel_names()}."
            )
        self._given[:] = _as_float32(numbers)

    def _numbers(self, name: str, value: Any) -> Array:
        """Numbers with None for a missing one, which numpy takes for objects; text is refused, digits or not."""
        items = np.asarray(value, dtype=object)
        if not all(item is None or isinstance(item, int | float | np.number | np.bool_) for item in items.flat):
            raise BundleError(
                f"{name}: got {value!r}, expected numbers for {self._channel_names()}; NaN or None where missing."
            )
        return items.astype(np.float64)

    def _channel_names(self) -> str:
        return _list_channels([(channel["name"], channel["unit"]) for channel in self.bundle.channels])

    def _unknown(self, values: Mapping[str, Any]) -> BundleError:
        strange = [name for name in values if name not in self.row]
        return BundleError(f"this stream has no series {_shorten(strange)}; it has {_shorten(self.series)}.")

    def _move_clock(self, rows: Array, at: Time | None) -> None:
        """Let some series take their next observation now, and write what the calendar says of that time."""
        bundle = self.bundle
        if at is not None:
            self._advance(rows, at)
        elif not bundle.calendar:
            self._since[rows] += 1
        elif np.isnan(self._last[rows]).any():
            name = self.series[rows[np.isnan(self._last[rows]).argmax()]]
            raise BundleError(
                f"{name}: give `at`, the time of its first observation: the inputs {', '.join(bundle.calendar)} of "
                f"{bundle.name} are computed from it."
            )
        else:
            self._last[rows], self._since[rows] = self._times(rows, 1)[:, 1], 0
        if bundle.calendar:
            self._x[rows, len(bundle.channels) :] = bundle.calendar_at(self._last[rows])
        if bundle.calendar and bundle.ahead:
            times = self._times(rows, self._future.shape[1])[:, 1:]
            self._future[rows, :, len(bundle.future) :] = bundle.calendar_at(times)

    def _times(self, rows: Array, steps: int) -> Array:
        """(b, 1 + steps) when some series took their last step, which must be known, and of so many periods after."""
        last, since = self._last[rows], self._since[rows]
        if self._period is not None:
            return last[:, None] + (since[:, None] + np.arange(1 + steps)) * self._period
        from data.panel import future_ds

        distinct = dict.fromkeys(zip(last, since.tolist(), strict=True))
        known = {
            (time, count): np.append(time, future_ds(time, self._freq, count + steps))[count:]
            for time, count in distinct
        }
        return np.stack([known[key] for key in zip(last, since.tolist(), strict=True)])

    def _gap(self, row: int, missing: int) -> Array:
        """(missing, C) what enters at the periods after a series' last step of which nothing was observed."""
        values = np.full((missing, self.bundle.width), np.nan)
        if missing and self.bundle.calendar:
            times = self._times(np.array([row]), missing)[0, 1:]
            values[:, len(self.bundle.channels) :] = self.bundle.calendar_at(times)
        return values

    def _advance(self, rows: Array, at: Time) -> None:
        """Move the clock of some series to `at`, with a masked step for each period skipped."""
        time = self._time(at)
        last = self._last[rows]
        told = ~np.isnan(last)
        if told.any():
            periods = np.ones(len(rows), np.int64)
            periods[told] = self._periods(last[told], time) - self._since[rows[told]]
            # Clocks jitter: less than half a period later is still the next step.
            periods[told & (periods == 0) & (time > last) & (self._since[rows] == 0)] = 1
            if (periods < 1).any():
                early = int((periods < 1).argmax())
                name = self.series[rows[early]]
                raise BundleError(
                    f"{name}: at={at} is not later than its last step at {self.time_of(name)}. Time only runs "
                    "forward: drop what comes late, or reorder it before."
                )
            missing = periods - 1
            if missing.any():
                self._refuse_long_gap(self.series[rows[missing.argmax()]], int(missing.max()))
                behind = np.flatnonzero(missing)
                self._scan_rows(rows[behind], [self._gap(rows[row], int(missing[row])) for row in behind])
        self._last[rows] = time
        self._since[rows] = 0

    def _refuse_long_gap(self, name: str, missing: int) -> None:
        if missing > MOST_MISSING:
            raise BundleError(
                f"{name}: {missing} periods of {self._freq!r} lie between its last step and this one, more than "
                f"{MOST_MISSING}. Check the unit of the time, or start without a state."
            )

    def _time(self, at: Any) -> Any:
        """`at` as this stream keeps time: datetime64[ns] without zone (UTC), or float."""
        if not isinstance(self._freq, str):
            number = None if isinstance(at, str | bool | datetime | np.datetime64) else at
            try:
                time = float(number)  # type: ignore[arg-type]
            except (TypeError, ValueError):
                time = math.nan
            if not math.isfinite(time):
                raise BundleError(f"at={at!r}: expected a number, as the card's step is {self._freq!r}.")
            return time
        try:
            if isinstance(at, str) and at[10:]:
                at = datetime.fromisoformat(at)  # numpy knows no time zones
            if isinstance(at, datetime) and at.tzinfo is not None:
                at = at.astimezone(UTC).replace(tzinfo=None)
            if not isinstance(at, str | datetime | np.datetime64):
                raise ValueError("not a time stamp")
            stamp = np.datetime64(at).astype("datetime64[ns]")
        except ValueError:
            stamp = np.datetime64("NaT")
        if np.isnat(stamp):
            raise BundleError(
                f"at={at!r}: expected a time stamp such as 2024-01-31T12:00:00, as the card's step is {self._freq!r}."
            )
        return stamp

    @cached_property
    def _period(self) -> Any:
        """The step as a number or a timedelta64; None where it follows a calendar."""
        if not isinstance(self._freq, str):
            return float(self._freq)
        match = re.fullmatch(r"(\d*)(\w+)", self._freq)
        if match is None or match[2] not in FIXED_NS:
            return None
        return np.timedelta64(int(match[1] or 1) * FIXED_NS[match[2]], "ns")

    def _periods(self, last: Array, time: Any) -> Array:
        """How many steps `time` lies after each of `last`."""
        if self._period is None:
            from data.panel import periods_between

            unique, where = np.unique(last, return_inverse=True)
            return np.array([periods_between(a, time, self._freq) for a in unique], np.int64)[where]
        ratio = (time - last) / self._period
        periods = np.rint(ratio)
        seconds = isinstance(self._freq, float) or (isinstance(self._freq, int) and time % 1 != 0)
        if not seconds and (periods != ratio).any():
            raise BundleError(
                f"at={time}: is not a whole number of steps of {self._freq!r} after "
                f"{last[(periods != ratio).argmax()]}."
            )
        return periods.astype(np.int64)


def _as_float32(numbers: Array) -> Array:
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and so a missing value
        return numbers.astype(np.float32, copy=False)


def _as_input(values: Array) -> tuple[Array, Array]:
    """Values with NaN where missing as x and mask."""
    x = _as_float32(values)
    return x, np.isfinite(x).astype(np.float32)


def check_providers(asked: Sequence[str] | None) -> list[str]:
    """The full names of the providers asked for; those of a build without the device do not count as here."""
    wanted = [asked] if isinstance(asked, str) else list(asked or [CPU])
    names = [SHORT_NAMES.get(name.lower(), name) for name in wanted]
    here = {device.ep_name for device in onnxruntime.get_ep_devices()} | {CPU}
    absent = [name for name in names if name not in here]
    if absent:
        raise BundleError(
            f"the execution provider {', '.join(absent)} is not on this machine; here: {', '.join(sorted(here))}. "
            "For an NVIDIA GPU install the extra `gpu` instead of `cpu`."
        )
    return names


def _list_channels(channels: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"{name} [{unit}]" if unit else name for name, unit in channels)


def _shorten(names: Sequence[str]) -> str:
    return ", ".join(map(str, names[:10])) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
