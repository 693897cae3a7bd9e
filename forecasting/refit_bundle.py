"""The bundle of a refit model: what has to be known to fit it, which happens when it forecasts.

    card.json         class and parameters, its library's version, the task, how it did beside naive and ridge
    recordings.npz    of a classifier the labelled recordings that it is fitted on; a forecaster is fitted on the
                      history of each series that it is to forecast, so its bundle holds no data

There is no graph, so there is nothing to stream, to certify or to run on the edge. A forecast that the model cannot
make is the seasonal naive one of the same frame, by that name and counted. Nothing is pickled: parameters are JSON.

Shapes: N recordings or series, T time, C channels, H horizon, Q quantiles, K classes.
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from data.panel import Series
from forecasting.bundle import RECORDINGS, REFIT, Bundle, BundleError, read_npz, seal, write_bundle, write_npz
from forecasting.conformal import Calibration
from forecasting.export import limits_of, use_of
from forecasting.frames import beyond_the_last_value, tabulate
from forecasting.graphs import CPU, check_providers
from forecasting.passes import trained_pass
from forecasting.predictions import Rows, substituted
from forecasting.refit import PREFIX, SUBSTITUTE, RefitModel
from forecasting.runtime import LoadedBundle
from forecasting.task import Task, TaskError
from forecasting.training import fit_model
from forecasting.windows import Parts, Span

if TYPE_CHECKING:
    import pandas as pd

    from data.frame import Dataset


def export_refit(
    model: RefitModel,
    path: str | os.PathLike[str],
    *,
    training: dict[str, Any],
    metrics: list[dict[str, Any]],
    calibration: Calibration | None = None,
    recordings: Sequence[Span] = (),
) -> dict[str, Any]:
    """Write a refit model's bundle, and return its card; arguments as of `forecasting.export.export_bundle`.

    Args:
        recordings: of a classifier, what it is fitted on; series without a label are left out.

    Raises:
        TaskError: a parameter that JSON cannot hold, such as another forecaster.
        BundleError: the bundle cannot be written; what was there is untouched.
    """
    for parameter, value in model.parameters.items():
        if not _is_json(value):
            raise TaskError(
                f"{model.name}: {parameter}={value!r} cannot be kept in a bundle, whose spec is JSON; numbers, text, "
                "true, false, null and lists of them can. Judge it with a backtest."
            )
    task = model.task
    if task.kind == "forecast":
        # It is fitted on the target alone, so that is all a frame must hold.
        task = Task.from_json(task.to_json() | {"channels": [task.channels[0].to_json()], "future": [], "calendar": []})
    card: dict[str, Any] = {
        "name": model.name,
        "kind": REFIT,
        "config": model.config,
        "task": task.to_json(),
        "streams": False,
        "training": training | {"libraries": libraries(model)},
        "metrics": metrics,
        "calibration": None if calibration is None else calibration.to_json(),
        "intended_use": use_of(task),
        "limits": limits_of(training),
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    files = {RECORDINGS: _pack(model, recordings)} if task.kind == "classify" else {}
    write_bundle(path, files, card)
    return seal(files, card)


def libraries(model: RefitModel) -> dict[str, str]:
    """Versions of what fits the model: sktime, and what its class says that it needs."""
    needed = model.found.get_class_tag("python_dependencies") or []
    texts = [needed] if isinstance(needed, str) else [text for text in needed if isinstance(text, str)]
    packages = [match[0] for text in texts if (match := re.match(r"[A-Za-z0-9._-]+", text))]
    found = {package: version(package) for package in ("sktime", *packages)}
    return found | {"python": platform.python_version(), "numpy": np.__version__}


class RefitBundle(LoadedBundle):
    """A verified bundle without graphs: `forecast` fits and predicts; what needs a graph says that there is none.

    `substitutes` and `notes` are those of the last forecast.
    """

    def __init__(self, bundle: Bundle, *, providers: Sequence[str] | None = None) -> None:
        """
        Raises:
            BundleError: the class is not here, does not take the parameters, or a provider other than the CPU.
        """
        self._describe(bundle)
        self.has_look = False
        self.fitted = {}
        if check_providers(providers) != [CPU]:
            raise BundleError(f"{self.path}: {self.name} is fitted on the CPU, not by an execution provider.")
        self.providers = []
        try:
            spec = bundle.card["config"]
            self._model = RefitModel(PREFIX + spec["class"], Task.from_json(self.task), spec["parameters"])
        except (KeyError, TypeError) as error:
            raise BundleError(f"{self.path}: the card does not say what is to be fitted ({error!r}).") from error
        except TaskError as error:
            raise BundleError(f"{self.path}: {error}") from error
        self._model.name = self.name
        self._training = _unpack(bundle) if self.kind == "classify" else []

    @cached_property
    def step_session(self) -> NoReturn:
        raise self._no_graph()

    @cached_property
    def scan_session(self) -> NoReturn:
        raise self._no_graph()

    @cached_property
    def look_session(self) -> NoReturn:
        raise self._no_graph()

    def initial_state(self, batch: int) -> NoReturn:
        raise self._no_graph()

    def _no_graph(self) -> BundleError:
        return BundleError(
            f"{self.path}: {self.name} has no step: it is fitted anew whenever it forecasts, so it can neither be "
            "streamed nor certified. Use `forecast`, or a model that streams, such as ets or ridge."
        )

    def forecast(
        self,
        frame: pd.DataFrame | Dataset,
        *,
        state: str | os.PathLike[str] | bytes | None = None,
        save_state: str | os.PathLike[str] | None = None,
        adapt: float | None = None,
    ) -> pd.DataFrame:
        """Fit and predict from the end of every series of a long frame; the columns are those of `LoadedBundle`.

        Args:
            frame: of a forecaster the whole history of each series, up to where it is to forecast from.
            state, save_state, adapt: refused, for there is no state.

        Raises:
            BundleError: a state is asked for.
            TaskError: every series failed, or the classifier refuses the series.
        """
        if state is not None or save_state is not None or adapt is not None:
            raise BundleError(
                f"{self.path}: {self.name} is fitted anew on the whole history, so it has no state to start from, to "
                "keep or to adapt."
            )
        panel = self._read(frame)
        spans = [Span(series, 0, len(series.ds)) for series in panel]
        ids, times = [series.unique_id for series in panel], [series.ds[-1] for series in panel]
        if self.kind == "classify":
            answer = self._model.classify(self._training, spans)
            self._remember(answer.rows, answer.notes)
            probabilities = np.stack([row.values[-1] for row in answer.rows])
            return tabulate(self, ids, times, probabilities, probabilities)
        self.notes += beyond_the_last_value(self, panel)
        ends = [np.array([span.end - 1]) for span in spans]
        answer = self._model.forecast(spans, ends, lambda: self._naive(spans, ends))
        self._remember(answer.rows, answer.notes)
        values = np.stack([row.values[0] for row in answer.rows])  # (N, H, Q)
        points = np.stack([row.mean(np.array(self.quantiles))[0] for row in answer.rows])  # (N, H)
        return tabulate(self, ids, times, self.calibrated(values), values, points)

    def _naive(self, spans: list[Span], ends: list[np.ndarray]) -> list[Rows]:
        """The seasonal naive forecasts, with the quantiles of what that was wrong by in the frame itself."""
        trained = fit_model(SUBSTITUTE, Task.from_json(self.task), Parts(spans, [], []))
        return trained_pass(trained, spans, ends)

    def _remember(self, rows: Sequence[Rows], notes: Sequence[str]) -> None:
        wrote, here = self.card["config"].get("sktime"), self._model.config["sktime"]
        older = [f"{self.name}: written with sktime {wrote}, fitted with {here}."] if wrote != here else []
        self.notes = (*self.notes, *older, *notes)  # behind what was mended in the frame
        self.substitutes = {
            series: {"substitute": one.name, "reason": one.reason} for series, _, one in substituted(rows)
        }


def _is_json(value: Any) -> bool:
    try:
        return json.loads(json.dumps(value, allow_nan=False)) == value
    except (TypeError, ValueError):
        return False


def _pack(model: RefitModel, recordings: Sequence[Span]) -> bytes:
    """Labelled recordings as arrays: values (sum of T, C) behind one another, lengths (N,), class indices (N,)."""
    known = [(span, label) for span in recordings if (label := model.label_of(span)) >= 0]
    return write_npz({
        "values": np.concatenate([span.series.values[: span.end] for span, _ in known]),
        "lengths": np.array([span.end for span, _ in known], np.int64),
        "labels": np.array([label for _, label in known], np.int64),
    })  # fmt: skip


def _unpack(bundle: Bundle) -> list[Span]:
    where = bundle.path / RECORDINGS
    arrays = read_npz(bundle.files[RECORDINGS], where)
    if set(arrays) != {"values", "lengths", "labels"} or arrays["lengths"].sum() != len(arrays["values"]):
        raise BundleError(f"{where}: does not hold recordings; write the bundle again.")
    spans = []
    parts = np.split(arrays["values"], np.cumsum(arrays["lengths"])[:-1])
    for place, (values, label) in enumerate(zip(parts, arrays["labels"], strict=True)):
        series = Series(str(place), np.arange(len(values)), values, np.full(len(values), label))
        spans.append(Span(series, 0, len(values)))
    return spans
