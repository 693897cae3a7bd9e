"""From a bundle to predictions: onnxruntime and numpy, so that it runs where nothing else of ours is installed.

`LoadedBundle` runs the graphs. `LoadedBundle.stream` gives a `forecasting.stream.Stream`, which takes one observation
at a time and holds the states; `LoadedBundle.forecast` takes a long frame and scans it (`forecasting.frames`). Only the
latter knows pandas, and is imported when called. Torch is never needed.

Shapes: B series, T time, C channels, H horizon, F covariates known ahead, Q quantiles, K classes; a prediction of one
series is (H, Q) for a forecast, (K,) for a classification and (Q,) for a regression.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
from numpy.typing import ArrayLike

from forecasting.bundle import CARD, LOOK, REFIT, SCAN, STEP, Bundle, BundleError, read_bundle
from forecasting.conformal import Calibration, CalibrationError
from forecasting.graphs import Array, Inside, State, check_providers, open_graph
from forecasting.listing import list_channels, shorten
from forecasting.scans import scan_complete
from forecasting.stream import ANONYMOUS, Stream, restored

if TYPE_CHECKING:
    import pandas as pd

    from data.frame import Dataset
    from data.panel import Series


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
        self.known_ahead: int = len(self.task.get("future", ()))  # covariates, of what a frame holds the last
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
        return self._open(STEP)

    @cached_property
    def scan_session(self) -> onnxruntime.InferenceSession:
        return self._open(SCAN)

    @cached_property
    def look_session(self) -> onnxruntime.InferenceSession:
        if not self.has_look:
            raise BundleError(
                f"{self.path}: {self.name} has no look inside: the bundle holds no {LOOK}. Models with a test-time "
                "memory, such as titans-lmm and yaad, export one; use `step` for the prediction alone."
            )
        return self._open(LOOK)

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
            raise BundleError(self._unknown(unknown))
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
        return self._run(self.step_session, 2, x, mask, state, *future)

    def run_scan(self, x: ArrayLike, mask: ArrayLike, state: State, *future: ArrayLike) -> tuple[Array, State]:
        """T observations of B series: x, mask (B, T, C), future (B, T, H, F) give predictions (B, T, ...) and the next
        state."""
        x = np.asarray(x, np.float32)
        if x.ndim == 3 and 0 in x.shape[:2]:  # onnxruntime would divide by the number of steps, and end the process
            self._feeds(3, x, mask, state, *future)
            return np.empty((*x.shape[:2], *self.prediction_shape), np.float32), {n: state[n] for n in self.state_names}
        return self._run(self.scan_session, 3, x, mask, state, *future)

    def run_look(self, x: ArrayLike, mask: ArrayLike, state: State) -> tuple[Array, State, Inside]:
        """`run_step` with a look inside: for each name of `look_names` (B, heads)."""
        feeds, wanted = self._feeds(2, x, mask, state)
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
            return self.fresh((list(self.fitted) or [ANONYMOUS]) if names is None else names, adapt)
        return restored(self, state, names, adapt)

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
                in rows without one. A series that cannot be forecast is left out, and `failures` says why: its times
                are of another step, it lacks what is known ahead, or a local model was not fitted to it. Where none is
                left, that is raised.
            state: what `save_state` or `Stream.save` wrote: only observations after it are stepped, so the cost is
                that of the new data. A series unknown to it starts from the initial state, or of a local model from
                the state that it was fitted to.
            save_state: a file for the state after the last observation.
            adapt: as `stream` takes it; the frame is then stepped one observation after the other.

        Returns:
            forecast: unique_id, cutoff, ds, model, mean, q0.1 ..., substitute: one row for each step of the horizon.
                The mean is that of the model's own quantiles, which the card's calibration moves; the last names what
                forecasts in the model's place, and is empty where that is the model itself.
            classify: unique_id, ds, model, label, p_<label> ... : one row for each series, at its last time.
            regress: unique_id, ds, model, mean, q0.1 ... : the same.
        """
        from forecasting.frames import beyond_the_last_value, split_future, tabulate

        panel = self._read(frame)
        ahead: dict[str, Array] = {}
        if self.known_ahead:
            panel, ahead, lacking = split_future(self, panel, adapt is not None)
            self.failures |= lacking
        if self.fitted:
            self.failures |= {name: self._unknown([name]) for name in _ids(panel) if name not in self.fitted}
        panel = self._kept(panel)
        if self.kind == "forecast":
            self.notes += beyond_the_last_value(self, panel)
        ids = _ids(panel)
        if not self.streams:
            if state is not None or save_state is not None or adapt is not None:
                raise BundleError(f"{self.path}: {self.name} labels complete sequences, so it has no state to keep.")
            predictions = scan_complete(self, [series.values for series in panel])
            return tabulate(self, ids, [series.ds[-1] for series in panel], predictions, predictions)
        if state is None:
            stream = self.stream(ids, adapt=adapt)
        else:
            stream = restored(self, state, None, adapt)
            known = set(stream.series)
            fresh = [name for name in ids if name not in known]
            if fresh:
                self.notes += (_started_anew(fresh, stream.series, bool(self.fitted)),)
            stream = stream.extended(fresh)
        self.failures |= stream.catch_up(panel, ahead)
        panel = self._kept(panel)
        ids = _ids(panel)
        if self.ahead:
            self._look_ahead(stream, ids, ahead)
        if save_state is not None:
            stream.save(save_state)
        times = [np.asarray(stream.time_of(series.unique_id)).astype(series.ds.dtype)[()] for series in panel]
        rows = [stream.row[name] for name in ids]
        return tabulate(self, ids, times, stream.predictions[rows], stream.raw[rows])

    def _unknown(self, names: list[str]) -> str:
        """What is wrong with series that a local model was not fitted to."""
        return (
            f"{self.path}: {self.name} is fitted per series, and not to {shorten(names)}; it knows the "
            f"{len(self.fitted)} series {shorten(list(self.fitted))}. Train it with them, or take a model that is "
            "shared over the series, such as ridge."
        )

    def _kept(self, panel: list[Series]) -> list[Series]:
        """The series without a failure.

        Raises:
            BundleError: there is none.
        """
        kept = [series for series in panel if series.unique_id not in self.failures]
        if not kept:
            raise BundleError(next(iter(self.failures.values())))
        return kept

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
                f"{self.path}: expects the channels {list_channels(wanted)} in this order; got {list_channels(found)}."
            )

    def _read(self, frame: pd.DataFrame | Dataset) -> list[Series]:
        """The series to predict from; `notes` and `failures` are from now on those of this frame."""
        from forecasting.frames import read_frame

        self.notes, self.failures = (), {}
        panel, self.notes, self.failures = read_frame(self, frame)
        return panel

    def check_state(self, state: Mapping[str, Array], rows: int, where: object = None) -> None:
        """Raise BundleError unless a state is that of so many series of this bundle; `where` is what it came from."""
        for name in self.state_names:
            wanted = (rows, *self._initial[name].shape[1:])
            found = state[name].shape if name in state else "absent"
            if found != wanted:
                raise BundleError(
                    f"{where or self.path}: the state {name} is {found}, expected {wanted}: a row for each of {rows} "
                    "series. Take it from initial_state of as many series, or from the step before."
                )

    def _channel_names(self) -> list[str]:
        return [channel["name"] for channel in self.task["channels"]]

    def _open(self, name: str) -> onnxruntime.InferenceSession:
        return open_graph(self._files[name], self.path / name, self._asked, self.threads)

    def _names(self) -> list[str]:
        return [node.name for node in self._session.get_inputs()]

    def _run(
        self,
        session: onnxruntime.InferenceSession,
        dims: int,
        x: ArrayLike,
        mask: ArrayLike,
        state: State,
        *future: ArrayLike,
    ) -> tuple[Array, State]:
        feeds, wanted = self._feeds(dims, x, mask, state, *future)
        prediction, *after = session.run(wanted, feeds)
        return prediction, dict(zip(self.state_names, after, strict=True))

    def _feeds(
        self, dims: int, x: ArrayLike, mask: ArrayLike, state: State, *future: ArrayLike
    ) -> tuple[dict[str, Array], list[str]]:
        """What enters a graph whose x has so many dimensions, and the names of the prediction and the next state.

        Raises:
            BundleError: x, mask or the state is of another shape than the graph takes.
        """
        feeds = {"x": np.asarray(x, np.float32), "mask": np.asarray(mask, np.float32)}
        shape = feeds["x"].shape
        if len(shape) != dims or shape[-1] != self.width or feeds["mask"].shape != shape:
            wanted = f"({'B, T' if dims == 3 else 'B'}, {self.width})"
            raise BundleError(
                f"{self.path}: x and mask are {wanted}, with the channels {', '.join(self._channel_names())}; got "
                f"{shape} and {feeds['mask'].shape}."
            )
        self.check_state(state, shape[0])
        if future:
            feeds["future"] = np.asarray(future[0], np.float32)
        feeds |= {f"state.{name}": state[name] for name in self.state_names}
        return feeds, ["prediction", *(f"next.{name}" for name in self.state_names)]

    def _look_ahead(self, stream: Stream, ids: list[str], ahead: Mapping[str, Array]) -> None:
        """Tell what series say that have taken no step since their fit: linear in what is ahead of them."""
        fresh = [name for name in ids if np.isnan(stream.raw[stream.row[name]]).any()]
        if not fresh:
            return
        assert self._effects is not None
        assert self._fitted_predictions is not None
        rows, own = [stream.row[name] for name in fresh], [self.fitted[name] for name in fresh]
        future = np.stack([ahead[name][-int(self.task["horizon"]) :] for name in fresh])  # (n, H, F)
        effect = (future * self._effects[own][:, None]).sum(-1)[..., None]
        stream.tell(rows, self._fitted_predictions[own] + effect, future)


def _started_anew(fresh: list[str], known: list[str], fitted: bool) -> str:
    """What is to be known of series that a state does not hold: a file's own name, say, where it names no series."""
    where = "after the fit" if fitted else "from these rows alone, as if nothing had been seen before them"
    return (
        f"the state knows the {len(known)} series {shorten(known)}, and not {shorten(fresh)}: forecast {where}. A file "
        "without a column of ids is a series named after the file."
    )


def _ids(panel: Iterable[Series]) -> list[str]:
    return [series.unique_id for series in panel]
