"""sktime's forecasters and classifiers beside our models: refit models, which are fitted when they forecast.

A name such as `sktime:ThetaForecaster`, or `sktime:` and an import path, stands wherever a backtest or `mnemo train`
takes a model. What it names has no step, so it is fitted anew at every cut-off, on the series up to there and nothing
after; a bundle of it (`forecasting.refit_bundle`) is what has to be known to fit it again. A forecast
that it cannot make is the seasonal naive one instead, and every such forecast is kept by name, with its reason.

What is made of other estimators takes them as parameters, each as JSON that names its class and its parameters:

    --model sktime:TransformedTargetForecaster
    --set 'steps=[["trend", {"class": "Detrender"}], ["rest", {"class": "NaiveForecaster", "strategy": "mean"}]]'

Shapes: N cut-offs of one series, T time, C channels, H horizon, Q quantiles, K classes.
"""

from __future__ import annotations

import difflib
import importlib
import json
import re
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from data.frame import Freq
from data.panel import Series
from forecasting.predictions import Rows, Substitute, substituted
from forecasting.task import Task, TaskError
from forecasting.windows import Span

PREFIX = "sktime:"
SUBSTITUTE = "naive"
KINDS = {"forecast": "forecaster", "classify": "classifier"}  # of our tasks, as sktime calls them


@dataclass
class Answer:
    """What a refit model gave for the test series, and what it did not."""

    rows: list[Rows]
    fit_seconds: float = 0.0
    predict_seconds: float = 0.0
    notes: list[str] = field(default_factory=list)


def is_refit(name: str) -> bool:
    return name.startswith(PREFIX)


def find(name: str, task: Task) -> type[Any]:
    """The class that `name` stands for: one that sktime ships, or any installed one by its import path.

    Raises:
        TaskError: there is none, or it does not do the task.
    """
    from sktime.classification.base import BaseClassifier
    from sktime.forecasting.base import BaseForecaster

    kind = KINDS.get(task.kind)
    if kind is None:
        raise TaskError(f"{name}: sktime models can forecast and classify here, not {task.kind}.")
    found = _named(name.removeprefix(PREFIX), kind, name)
    base = BaseForecaster if kind == "forecaster" else BaseClassifier
    if not (isinstance(found, type) and issubclass(found, base)):
        raise TaskError(f"{name}: is no sktime {kind}, which this task to {task.kind} needs.")
    return found


def _named(path: str, kind: str | None, name: str) -> Any:
    """What sktime ships under this name, of one kind or of any, or what an import path leads to.

    Raises:
        TaskError: there is none; `name` is what the error calls it.
    """
    module, _, short = path.rpartition(".")
    if module:
        try:
            return getattr(importlib.import_module(module), short)
        except (ImportError, AttributeError, ValueError) as error:
            raise TaskError(
                f"{name}: cannot be imported ({error}). Is the path right, and the package here?"
            ) from error
    with _quiet():
        from sktime.registry import all_estimators

        known = dict(all_estimators(kind, return_names=True))
    if short not in known:
        near = difflib.get_close_matches(short, known, n=3, cutoff=0.5)
        hint = f" Similar: {', '.join(near)}." if near else ""
        raise TaskError(
            f"{name}: sktime has no {kind or 'estimator'} of this name.{hint} Others go by their import path."
        )
    return known[short]


def _made(value: Any) -> Any:
    """A parameter with every {"class": ..., parameter: ...} in it made, however deep.

    Raises:
        TaskError: a class that is not here, or is no estimator.
    """
    if isinstance(value, list):
        items = [_made(item) for item in value]
        # Steps are pairs of a name and an estimator, and sktime insists on tuples.
        pair = len(items) == 2 and isinstance(items[0], str) and hasattr(items[1], "get_params")
        return tuple(items) if pair else items
    if not isinstance(value, dict):
        return value
    parts = {key: _made(part) for key, part in value.items()}
    if "class" not in parts:
        return parts
    path = str(parts.pop("class"))
    found = _named(path, None, path)
    if not (isinstance(found, type) and hasattr(found, "get_params")):
        raise TaskError(f"{path}: is no estimator of sktime's or scikit-learn's.")
    return found(**parts)


def known_fields(name: str, task: Task) -> dict[str, Any]:
    """Every parameter of the class, with its default."""
    found = find(name, task)
    return {**dict.fromkeys(found.get_param_names()), **found.get_param_defaults()}


class RefitModel:
    """A class of sktime's with its parameters: all there is to it before it forecasts."""

    def __init__(self, name: str, task: Task, settings: Mapping[str, Any], seed: int = 0) -> None:
        """
        Args:
            settings: parameters of the class; text is read as JSON where it is that: 12, true, null, [1, 2], drift.
                An estimator is {"class": its name or import path, and its own parameters}. The task's season is given
                to a class with a parameter `sp`, and `seed` to one with a parameter `random_state`, where nothing else
                is.

        Raises:
            TaskError: the class is not there, does not do the task, or refuses the parameters.
        """
        self.name, self.task = name, task
        self.found = find(name, task)
        self.parameters = {parameter: _value(value) for parameter, value in settings.items()}
        known = self.found.get_param_names()
        if task.kind == "forecast" and "sp" in known:
            self.parameters.setdefault("sp", task.season)
        if "random_state" in known:
            self.parameters.setdefault("random_state", seed)
        try:
            with _quiet():
                self.build()
        except TaskError as error:
            raise TaskError(f"{name}: {error}") from error
        except Exception as error:
            raise TaskError(f"{name}: cannot be made with {self.parameters}: {_reason(error)}") from error

    def build(self) -> Any:
        return self.found(**{parameter: _made(value) for parameter, value in self.parameters.items()})

    @property
    def config(self) -> dict[str, Any]:
        """The spec: what has to be known to make it again."""
        import sktime

        path = f"{self.found.__module__}.{self.found.__qualname__}"
        return {"class": path, "sktime": sktime.__version__, "parameters": self.parameters}

    # --- forecasts ---

    def forecast(
        self, spans: Sequence[Span], positions: Sequence[np.ndarray], naive: Callable[[], Sequence[Rows]]
    ) -> Answer:
        """At every position of every series, fitted on what was known there.

        Args:
            naive: gives the seasonal naive forecasts of the same positions, which stand in where that fails; called
                only then.

        Raises:
            TaskError: it failed everywhere: then there is nothing of it to report.
        """
        answer, levels = Answer([]), np.array(self.task.quantiles)
        with _quiet() as heard:
            has_quantiles = bool(self.build().get_tag("capability:pred_int"))
            for span, at in zip(spans, positions, strict=True):
                points = np.empty((len(at), self.task.horizon))
                values = np.full((*points.shape, len(levels)), np.nan)
                instead = {}
                for row, position in enumerate(at):
                    try:
                        points[row], values[row] = self._one(span.series, int(position), has_quantiles, answer)
                    except Exception as error:  # whatever a forecaster of others may raise
                        instead[int(position)] = Substitute(SUBSTITUTE, _reason(error))
                answer.rows.append(Rows(span, at, values, points, instead))
        answer.notes += self._notes(answer, sum(map(len, positions)), has_quantiles, heard)
        if any(rows.instead for rows in answer.rows):
            for rows, fallback in zip(answer.rows, naive(), strict=True):
                failed = np.isin(rows.positions, list(rows.instead))
                assert rows.points is not None
                rows.points[failed] = fallback.mean(levels)[failed]
                if has_quantiles:
                    rows.values[failed] = fallback.values[failed]
        return answer

    def _one(
        self, series: Series, position: int, has_quantiles: bool, answer: Answer
    ) -> tuple[np.ndarray, np.ndarray | float]:
        """The points (H,) and quantiles (H, Q) after a position; adds the seconds they took to the answer."""
        horizon, levels = np.arange(1, self.task.horizon + 1), list(self.task.quantiles)
        y = known_until(series, position, self.task.freq)
        model = self.build()
        began = time.perf_counter()
        model.fit(y, fh=horizon)
        fitted = time.perf_counter()
        points = np.asarray(model.predict(), np.float64).ravel()
        values = np.sort(model.predict_quantiles(alpha=levels).to_numpy(np.float64), -1) if has_quantiles else np.nan
        answer.fit_seconds += fitted - began
        answer.predict_seconds += time.perf_counter() - fitted
        if not np.isfinite(points).all() or (has_quantiles and not np.isfinite(values).all()):
            raise ArithmeticError("its forecast is not finite.")
        return points, values

    def _notes(self, answer: Answer, forecasts: int, has_quantiles: bool, heard: Counter[str]) -> Iterator[str]:
        failed = substituted(answer.rows)
        if forecasts and len(failed) == forecasts:
            raise TaskError(f"{self.name}: failed at every cut-off of every series, first with {failed[0][2].reason}")
        if not has_quantiles:
            yield f"{self.name}: forecasts points only, so it has no quantiles, no pinball loss and no coverage."
        if len(self.task.channels) > 1:
            yield f"{self.name}: is fitted on the target alone; past covariates are not what sktime's X is."
        if heard:
            text, _ = heard.most_common(1)[0]
            yield f"{self.name}: warned {heard.total()} times, most often: {text}"

    # --- classes ---

    def classify(self, train: Sequence[Span], test: Sequence[Span]) -> Answer:
        """Fitted on whole series, one label each; the probabilities (1, K) at the last row of every test series.

        Raises:
            TaskError: labels that change along a series, or whatever the classifier refuses.
        """
        known = [(span, label) for span in train if (label := self.label_of(span)) >= 0]
        answer = Answer([])
        with _quiet() as heard:
            try:
                model = self.build()
                began = time.perf_counter()
                model.fit([_recording(span) for span, _ in known], np.array([label for _, label in known]))
                fitted = time.perf_counter()
                given = model.predict_proba([_recording(span) for span in test])
            except Exception as error:
                raise TaskError(f"{self.name}: cannot classify these series: {_reason(error)}") from error
        answer.fit_seconds, answer.predict_seconds = fitted - began, time.perf_counter() - fitted
        probabilities = np.zeros((len(test), len(self.task.labels)))
        probabilities[:, model.classes_] = given
        answer.rows += [
            Rows(span, np.array([span.end - 1]), probability[None])
            for span, probability in zip(test, probabilities, strict=True)
        ]
        if heard:
            answer.notes.append(f"{self.name}: warned {heard.total()} times, most often: {heard.most_common(1)[0][0]}")
        return answer

    def label_of(self, span: Span) -> int:
        labels = np.asarray(span.series.target)[span.begin : span.end]
        known = np.unique(labels[labels >= 0])
        if len(known) > 1:
            raise TaskError(
                f"{self.name}: labels whole series, but series {span.series.unique_id} changes its label; models that "
                "stream can follow that."
            )
        return int(known[0]) if len(known) else -1


def known_until(series: Series, position: int, freq: Freq | None) -> pd.Series:
    """The target up to and with a position, from its first value on, on an index that sktime can count.

    Months, quarters and years become periods: of stamps at their beginnings sktime cannot say which comes next.
    """
    values = series.values[: position + 1, 0]
    begin = int(np.isfinite(values).argmax())
    known, ds = values[begin:].copy(), series.ds[begin : position + 1]
    months = re.fullmatch(r"(\d*)B?([YQM])[SE]?(-\w+)?", freq) if isinstance(freq, str) else None
    if months is not None:
        return pd.Series(known, pd.period_range(ds[0], periods=len(ds), freq=months[1] + months[2]))
    if isinstance(freq, str):
        return pd.Series(known, pd.DatetimeIndex(ds, freq=freq))
    return pd.Series(known, pd.RangeIndex(begin, position + 1))


def _recording(span: Span) -> pd.DataFrame:
    return pd.DataFrame(span.series.values[: span.end])


def _value(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


@contextmanager
def _quiet() -> Iterator[Counter[str]]:
    """Counts what is warned of by its text, instead of printing it at every fit; deprecations are not our user's.

    What is printed meanwhile, such as the epochs of a network, goes to stderr: results alone are for stdout.
    """
    heard: Counter[str] = Counter()
    with redirect_stdout(sys.stderr), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield heard
        for warning in caught:
            if not issubclass(warning.category, FutureWarning | DeprecationWarning | PendingDeprecationWarning):
                heard[" ".join(str(warning.message).split())[:200]] += 1
