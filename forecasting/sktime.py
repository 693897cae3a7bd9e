"""Every model of the catalog as an sktime forecaster or classifier.

sktime refits, or reads its history again, when a fitted forecaster is to go on; ours keeps a state per series. `fit`
trains one model over all series of the data and reads them once; `update` steps the states over what is new, whose
cost does not grow with the history; `predict` looks at what the model said after the last step.

Letters: N series, T time, C channels, F steps of a forecasting horizon, H horizon, Q quantiles, K classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from sktime.classification.base import BaseClassifier
from sktime.forecasting.base import BaseForecaster, ForecastingHorizon

from data.calendar import CalendarError, calendar_channels, calendar_values
from data.frame import ID, TIME, Channel, Dataset, FrameError, Freq, Splits, check_frame, infer_freq
from data.panel import Series, auto_calendar, future_ds, periods_between, to_panel
from data.readers import default_season
from forecasting.backtest import calibration_of, validated
from forecasting.conformal import Calibration
from forecasting.metrics import mean_of_quantiles
from forecasting.panel_states import Streams, advance
from forecasting.predictions import Substitute
from forecasting.sktime_index import Clock, instances_of
from forecasting.task import Task, TaskError
from forecasting.training import Trained, fit_model, parse_settings
from forecasting.windows import Parts, Span, split
from models.catalog import build, entry
from models.contract import Local, ModelError

# Beside the deciles the edges of the intervals that are asked for most: 80, 90, 95 and 98 %.
LEVELS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.975, 0.99)
TARGET, LABEL = "y", "label"
MISSING = "all of its values are missing"
OURS = {"authors": "The Mnemosyne authors", "maintainers": "The Mnemosyne authors"}  # tags of sktime's
TINY = {"hidden": 4, "max_epochs": 1, "batch_size": 256}  # the smallest network that learns


def parts_to_learn_from(dataset: Dataset, panel: Sequence[Series], task: Task, model: str) -> Parts:
    """All there is for a closed form; else a last part of each series validates, where one is long enough for that."""
    whole = Parts([Span(series, 0, len(series.ds)) for series in panel], [], [])
    if entry(model).learns in ("closed form", "per series"):
        return whole
    longest = max(len(series.ds) for series in panel)
    if task.kind == "forecast" and longest <= task.horizon:
        raise TaskError(
            f"{dataset.name}: no series is longer than the horizon: {longest} steps and a horizon of {task.horizon}. "
            "Fit on longer series, or ask for less."
        )
    if task.kind == "forecast" and longest <= 2 * task.horizon:  # nothing can be held out
        return whole
    return split(dataset, panel, task, hold_out=False)


class MnemoForecaster(BaseForecaster):
    """A model of Mnemosyne's catalog as an sktime forecaster.

    One model is fitted over all series of a panel or hierarchy, which stay in memory as states, not as data. `update`
    steps those states over the new observations and leaves the model's weights alone, whatever `update_params` says:
    the state is what a step changes. A missing time or NaN is a masked step; what lies at or before a series' last
    step is skipped, for a state cannot unsee; a series that `fit` never saw is read from its beginning.

    A series that cannot be read, for it has no value, is off the grid or was not fitted, or of which X lacks what is
    known ahead, is left out with a warning, and `failures_` keeps why; its forecast is NaN, and the others go on.

    A relative `fh` counts from each series' own end, as if sktime had fitted them one by one. X holds past covariates:
    it enters with y in `fit` and `update`, as wide as it was in `fit`, and the X of `predict` is not read, but by the
    models that take what is known ahead (`sarimax`, `components`), which need it for every step asked for. A model
    without covariates says so by the tag "capability:exogenous", and X is then left out. What the calendar gives is
    computed from the index, here and ahead.

    Parameters
    ----------
    model : str
        A name from `mnemo models` that forecasts.
    horizon : int, optional
        Steps ahead that the model is fitted for. None takes the furthest step of the `fh` that `fit` is given, and
        then requires one; with a number `fh` may wait for `predict` and ask for any step up to it.
    season : int, optional
        Steps of a season, 1 for none; None takes what is usual for the step of the index, such as 12 for months.
    quantiles : tuple of float
        The levels that the model is fitted for, rising. `predict` gives the mean over them; `predict_quantiles` and
        `predict_interval` interpolate linearly between them and refuse what lies outside.
    settings : dict, optional
        Fields of the model and of its training, as `mnemo models` lists them: {"hidden": 32, "max_epochs": 10}.
    random_state : int
        Seed of everything random.
    substitute : str, optional
        The model that forecasts where `model` cannot be fitted to these data: too few of them for what it is, values
        that are not positive. A warning says so, and `substitutes_` keeps what stands in for which series and why.
        None raises what the model says.
    calibrate : bool
        Whether quantiles are calibrated, as `mnemo backtest` and `mnemo train` do it: by their errors on the last part
        of each series, of a model that was fitted to what comes before. Without it the quantiles are the model's own,
        which are often too narrow; with it a model that does not learn by gradient descent is fitted twice. Where that
        part is too short to calibrate on, a warning says so. `predict` stays the mean of the model's own quantiles.
    calendar : str or tuple of str, optional
        Features of the index that enter beside X, known ahead: "auto" for those that its step moves through, or names
        of pandas' such as ("hour", "dayofweek"). Of an index in a time zone they are those of UTC.

    Raises
    ------
    ModelError, TaskError, FrameError
        All are ValueErrors: a name, field, level or step that is not known, data that cannot be learned from.

    Examples
    --------
    >>> from sktime.datasets import load_airline
    >>> from forecasting.sktime import MnemoForecaster
    >>> y = load_airline()
    >>> forecaster = MnemoForecaster("ridge").fit(y[:-24], fh=[1, 2, 3])
    >>> forecaster.predict_interval(coverage=0.8).shape
    (3, 2)
    >>> forecaster.update(y[-24:-12]).predict().index[0]
    Period('1960-01', 'M')
    """

    _tags = {  # noqa: RUF012  (sktime's own way)
        **OURS,
        "y_inner_mtype": ["pd.DataFrame", "pd-multiindex", "pd_multiindex_hier"],
        "X_inner_mtype": ["pd.DataFrame", "pd-multiindex", "pd_multiindex_hier"],
        "capability:multivariate": False,
        "capability:exogenous": True,
        "capability:categorical_in_X": False,
        "capability:insample": False,
        "capability:pred_int": True,
        "capability:pred_int:insample": False,
        "capability:missing_values": True,
        "capability:update": True,
        "capability:random_state": True,
        "property:randomness": "derandomized",
        "requires-fh-in-fit": True,
    }
    _config = {"remember_data": False}  # noqa: RUF012

    def __init__(
        self,
        model: str = "ridge",
        horizon: int | None = None,
        season: int | None = None,
        quantiles: tuple[float, ...] = LEVELS,
        settings: Mapping[str, Any] | None = None,
        random_state: int = 0,
        substitute: str | None = "naive",
        calibrate: bool = False,
        calendar: str | tuple[str, ...] | None = None,
    ) -> None:
        self.model = model
        self.horizon = horizon
        self.season = season
        self.quantiles = quantiles
        self.settings = settings
        self.random_state = random_state
        self.substitute = substitute
        self.calibrate = calibrate
        self.calendar = calendar
        super().__init__()

    def __post_init__(self) -> None:
        self._y = self._X = None  # kept by sktime where a user sets the config remember_data; not read here
        self.set_tags(**{
            "capability:exogenous": bool(entry(self.model).covariates),
            "requires-fh-in-fit": self.horizon is None,
        })  # fmt: skip

    def _fit(self, y: pd.DataFrame, X: pd.DataFrame | None, fh: Any) -> MnemoForecaster:
        self._clock = Clock.of(y.index.get_level_values(-1))
        self._covariates = [] if X is None else list(X.columns)
        self._instances = instances_of(y.index)
        self.failures_: dict[str, str] = {}
        frame = self._frame(y, X)
        channels = tuple(Channel(str(name), "") for name in frame.columns[2:])
        whole = frame
        frame, _ = check_frame(frame, source=self._source, task="forecast", channels=channels, leave_out_empty=True)
        read = set(frame[ID].unique())
        empty = [name for name in self._names() if name not in read]
        self._unread = _last_times(whole[whole[ID].isin(empty)]) if empty else {}
        self._leave_out(dict.fromkeys(self._unread, MISSING))
        step = self._clock.step or infer_freq(frame, self._source)
        season = self.season or (self._clock.season if self._clock.step else default_season(step))
        if self.calendar == "auto":
            self._calendar = auto_calendar(self._clock.named_step or step)
        else:
            self._calendar = (self.calendar,) if isinstance(self.calendar, str) else tuple(self.calendar or ())
        dataset = Dataset(
            self._source, frame, "forecast", channels, step, season, 1, Splits(), TARGET, calendar=self._calendar
        )
        self._form = replace(dataset, frame=frame[:0])
        panel = self._panel(dataset)
        horizon = self.horizon
        if horizon is None and fh.is_relative:
            horizon = int(fh.to_pandas().max())
        elif horizon is None:
            ends = np.array([series.ds[-1] for series in panel])
            horizon = int(self._ahead(fh, ends)[0].max())
        # X counts as known ahead for a model that takes nothing else; for others it is the past.
        ahead = tuple(c.name for c in channels[1:]) if entry(self.model).covariates == ("future",) else ()
        task = Task.of(dataset, horizon=horizon, quantiles=tuple(self.quantiles), future=ahead)
        self.substitutes_: dict[str, Substitute] = {}
        self.trained_ = self._learn(dataset, panel, task)
        self.streams_ = Streams.of(self.trained_, panel)
        self.substitutes_ |= self.trained_.substitutes
        self.calibration_ = self._calibration(dataset, panel, task) if self.calibrate else None
        for note in self.trained_.notes():
            warnings.warn(note, stacklevel=2)
        return self

    def _learn(self, dataset: Dataset, panel: Sequence[Series], task: Task) -> Trained:
        """The model fitted to the panel, or, where it cannot be and there is one, its substitute."""
        settings = self.settings or {}
        # What is wrong with a setting is no matter of the data, and is not made up for.
        build(self.model, task.signature, **parse_settings(self.model, settings)[0])
        parts = parts_to_learn_from(dataset, panel, task, self.model)
        for note in parts.notes:
            warnings.warn(note, stacklevel=2)
        try:
            return fit_model(self.model, task, parts, settings=settings, seed=self.random_state)
        except (ModelError, TaskError) as error:
            if self.substitute is None:
                raise
            warnings.warn(f"{self._source}: {self.substitute} forecasts in its place: {error}", stacklevel=2)
            instead = Substitute(self.substitute, str(error))
        self.substitutes_ = {series.unique_id: instead for series in panel}
        parts = parts_to_learn_from(dataset, panel, task, self.substitute)
        return fit_model(self.substitute, task, parts, seed=self.random_state)

    def _calibration(self, dataset: Dataset, panel: Sequence[Series], task: Task) -> Calibration | None:
        """Of what one says of each series' last part that has not learned from it, where that part is long enough."""
        trained = self.trained_
        try:
            parts = split(dataset, panel, task, hold_out=False)
            if entry(trained.name).learns != "gradient":  # a network has chosen by that part, but not learned from it
                settings = (self.settings or {}) if trained.name == self.model else {}
                before = replace(parts, validation=[])
                trained = fit_model(trained.name, task, before, settings=settings, seed=self.random_state)
            return calibration_of(task, validated(trained, task, parts))
        except (ModelError, TaskError) as error:
            warnings.warn(f"{self._source}: is not calibrated: {error}", stacklevel=2)
            return None

    def _update(self, y: pd.DataFrame, X: pd.DataFrame | None = None, update_params: bool = True) -> MnemoForecaster:
        columns = [] if X is None else list(X.columns)
        if columns != self._covariates:
            wanted, found = (", ".join(map(str, names)) or "none" for names in (self._covariates, columns))
            raise TaskError(f"{self._source}: update needs the X of fit, with the columns {wanted}; found {found}.")
        frame = self._frame(y, X)
        valued = frame[frame[TARGET].notna()]
        if len(valued):
            check_frame(valued, source=self._source, task="forecast", channels=self._form.channels)
        streams = self.streams_
        ends = dict(zip(streams.rows, streams.ends, strict=True))
        known = frame[ID].isin(ends)
        frame = frame[~known | (frame[TIME] > frame[ID].map(ends).fillna(frame[TIME]))]
        if not len(frame):
            return self
        whole, failures = frame, self._unreadable(frame, ends)
        frame = frame[~frame[ID].isin(failures)]
        # The grid of what is new begins at a series' last step, so that a gap after it becomes masked steps.
        names = [name for name in frame[ID].unique() if name in ends]
        last = pd.DataFrame({ID: names, TIME: np.array([ends[name] for name in names], streams.ends.dtype)})
        frame = pd.concat([last, frame]).sort_values([ID, TIME], ignore_index=True)
        panel = []
        for series, why in self._each_panel(frame):
            if series is None:
                failures |= why
            elif series.unique_id in ends:
                panel.append(replace(series, ds=series.ds[1:], values=series.values[1:]))
            else:
                panel.append(series)
        if not panel:
            raise TaskError(f"{self._source}: {next(f'{name}: {why}' for name, why in failures.items())}.")
        streams.update(panel)
        self._leave_out(failures)
        if failures or self._unread:
            now = _last_times(whole)
            left = {name: now.get(name, self._unread.get(name)) for name in self._unread | failures}
            self._unread = {name: end for name, end in left.items() if name not in streams.rows}
        new = instances_of(y.index)
        if self._instances is not None and new is not None:
            self._instances = self._instances.append(new).unique()
        return self

    def _unreadable(self, frame: pd.DataFrame, ends: Mapping[str, Any]) -> dict[str, str]:
        """Series that are new in an update and cannot be read -> why."""
        values = frame[~frame[ID].isin(ends)].groupby(ID)[TARGET].count()
        if isinstance(self.streams_.model, Local):
            why = "it has no fit, and this model is fitted to each series: fit again with it"
            return dict.fromkeys(map(str, values.index), why)
        return dict.fromkeys(map(str, values.index[values == 0]), MISSING)

    def _each_panel(self, frame: pd.DataFrame) -> Iterator[tuple[Series | None, dict[str, str]]]:
        """The series of a frame on their grid, and those whose times are off it -> why."""
        if not len(frame):
            return
        try:
            yield from ((series, {}) for series in self._panel(replace(self._form, frame=frame)))
        except FrameError:
            for name, rows in frame.groupby(ID, sort=False):
                try:
                    (series,) = self._panel(replace(self._form, frame=rows.reset_index(drop=True)))
                    yield series, {}
                except FrameError as error:
                    yield None, {str(name): str(error).removeprefix(f"{self._source}: ").rstrip(".")}

    def _leave_out(self, failures: Mapping[str, str]) -> None:
        """Keep and say which series are left out of a fit, an update or a forecast, and why."""
        self.failures_ = dict(failures)
        if failures:
            shown = "; ".join(f"{name}: {why}" for name, why in list(failures.items())[:3])
            more = f"; and {len(failures) - 3} more" if len(failures) > 3 else ""
            warnings.warn(f"{self._source}: left out {len(failures)} series: {shown}{more}.", stacklevel=3)

    def _predict(self, fh: ForecastingHorizon, X: pd.DataFrame | None) -> pd.DataFrame:
        quantiles, index = self._forecast(fh, X, None)
        mean = mean_of_quantiles(quantiles, np.array(self.quantiles))
        return pd.DataFrame(mean[:, None], index=index, columns=self._get_columns(method="predict"))

    def _predict_quantiles(self, fh: ForecastingHorizon, X: pd.DataFrame | None, alpha: list[float]) -> pd.DataFrame:
        levels = np.array(self.quantiles)
        outside = [level for level in alpha if not levels[0] <= level <= levels[-1]]
        if outside:
            raise TaskError(
                f"{self._source}: fitted for quantiles from {levels[0]:g} to {levels[-1]:g}, asked for "
                f"{', '.join(f'{level:g}' for level in outside)}. Give wider quantiles to the forecaster."
            )
        quantiles, index = self._forecast(fh, X, self.calibration_)
        # Between two levels the quantile function is taken as linear: one row of weights for each level asked for.
        weights = np.stack([np.interp(alpha, levels, unit) for unit in np.eye(len(levels))])  # (Q, alphas)
        columns = self._get_columns(method="predict_quantiles", alpha=alpha)
        return pd.DataFrame(quantiles @ weights, index=index, columns=columns)

    def _forecast(
        self, fh: ForecastingHorizon, X: pd.DataFrame | None, calibration: Calibration | None
    ) -> tuple[np.ndarray, pd.Index]:
        """Quantiles (N * F, Q) and their index, series after series as `fit` saw them."""
        streams = self.streams_
        horizon = streams.model.signature.horizon
        names = self._names()
        read = np.array([name in streams.rows for name in names])
        rows = np.array([streams.rows[name] for name in names if name in streams.rows])
        ends = np.empty(len(names), streams.ends.dtype)
        ends[read] = streams.ends[rows]
        ends[~read] = [self._unread[name] for name in names if name not in streams.rows]
        steps, times = self._ahead(fh, ends)
        outside = read & ((steps < 1) | (steps > horizon)).any(1)
        if outside.any():
            worst = int(outside.argmax())
            raise TaskError(
                f"{self._source}: fh asks for the steps {steps[worst].min()} to {steps[worst].max()} after the end of "
                f"{names[worst]}; the model was fitted for a horizon of {horizon}. Fit it with this fh, or with "
                f"horizon={max(horizon, steps.max())} or more."
            )
        if streams.model.signature.future:
            own = [name for name in names if name in streams.rows]
            known, failures = self._known_ahead(X, own, ends[read], steps[read])
            said = streams.look_ahead(rows, known)
            said[[place for place, name in enumerate(own) if name in failures]] = torch.nan
            self._leave_out(failures)
        else:
            said = streams.prediction[torch.from_numpy(rows)]
        told = np.full((len(names), *said.shape[1:]), np.nan)
        told[read] = said.numpy()
        if calibration is not None:
            told = calibration.apply(told)
        values = told[np.arange(len(names))[:, None], steps.clip(1, horizon) - 1]
        index = self._clock.index(times.ravel())
        if self._instances is not None:
            which = np.repeat(np.arange(len(names)), steps.shape[1])
            levels = [self._instances.get_level_values(level)[which] for level in range(self._instances.nlevels)]
            index = pd.MultiIndex.from_arrays([*levels, index], names=[*self._instances.names, index.name])
        return values.reshape(-1, values.shape[-1]), index

    def _known_ahead(
        self, X: pd.DataFrame | None, names: list[str], ends: np.ndarray, steps: np.ndarray
    ) -> tuple[np.ndarray, dict[str, str]]:
        """(N, H, F) what is known ahead of each series' end: the X of `predict` at the steps (N, any) asked for, 0 at
        others, for nobody asks; behind it what the calendar says. And the series of which X lacks a time -> what.

        Raises:
            TaskError: X is not there, or lacks a column, or a time of every series.
        """
        computed = len(calendar_channels(self._calendar))
        columns = [f"X[{name}]" for name in self._covariates]
        if self.streams_.model.signature.future == computed:
            columns = []  # what X will be is not asked for
        result = np.zeros((len(names), self.streams_.model.signature.horizon, self.streams_.model.signature.future))
        if self._calendar:
            for row, end in enumerate(ends):
                times = future_ds(end, cast(Freq, self._form.freq), result.shape[1])
                result[row, :, len(columns) :] = self._of_calendar(times)
        failures: dict[str, str] = {}
        if not columns:
            return result, failures
        if X is None or not set(self._covariates) <= set(X.columns):
            wanted, found = (", ".join(map(str, those)) for those in (self._covariates, [] if X is None else X.columns))
            raise TaskError(
                f"{self._source}: predict needs X, known ahead, with the columns {wanted}; found {found or 'none'}."
            )
        table = self._frame(pd.DataFrame({TARGET: np.nan}, index=X.index), X[self._covariates])
        known = table.set_index([ID, TIME])[columns]
        for row, (name, end) in enumerate(zip(names, ends, strict=True)):
            asked = np.unique(steps[row])
            times = future_ds(end, cast(Freq, self._form.freq), int(asked[-1]))[asked - 1]
            values = known.reindex(pd.MultiIndex.from_product([[name], times])).to_numpy()
            missing = ~np.isfinite(values)
            if missing.any():
                lacking = self._covariates[int(missing.any(0).argmax())]
                dates = ", ".join(map(str, self._clock.index(times[missing.any(1)][:5])))
                failures[name] = (
                    f"X of predict lacks {lacking} of {name} at {dates}; it needs every column at each step that is "
                    "asked for"
                )
                continue
            result[row, asked - 1, : len(columns)] = values
        if len(failures) == len(names):
            raise TaskError(f"{self._source}: {failures[names[0]]}.")
        return result, failures

    def _panel(self, dataset: Dataset) -> list[Series]:
        """The series on their grid, with the calendar of what their times stand for: periods are counted."""
        panel = to_panel(replace(dataset, calendar=()))
        if not self._calendar:
            return panel
        return [replace(one, values=np.hstack([one.values, self._of_calendar(one.ds)])) for one in panel]

    def _of_calendar(self, times: np.ndarray) -> np.ndarray:
        """(T, K)."""
        try:
            return calendar_values(self._clock.stamps(times), self._calendar)
        except CalendarError as error:
            raise TaskError(f"{self._source}: {error}") from error

    def _ahead(self, fh: ForecastingHorizon, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The steps after each series' end that are asked for, and their times; (N, F) each.

        A relative horizon counts from each series' own end.
        """
        cutoff, step, asked = self._clock.times(self.cutoff)[0], self._form.freq, fh.to_pandas()
        assert step is not None
        if (ends > cutoff).any():
            raise TaskError(
                f"{self._source}: it has seen all up to {self._clock.index(ends[ends > cutoff])[0]}; it cannot go back "
                f"to a cutoff of {self.cutoff[0]}. Fit it on the data up to there."
            )
        steps = np.empty((len(ends), len(asked)), np.int64)
        times = np.empty(steps.shape, ends.dtype)
        distinct, place = np.unique(ends, return_inverse=True)
        for number, end in enumerate(distinct):
            mine = place == number
            if fh.is_relative:
                steps[mine] = asked
                times[mine] = future_ds(end, step, int(asked.max()))[asked.to_numpy(dtype="int64") - 1]
            else:
                times[mine] = self._clock.times(asked)
                steps[mine] = [periods_between(end, time, step) for time in self._clock.times(asked)]
        return steps, times

    def _frame(self, y: pd.DataFrame, X: pd.DataFrame | None) -> pd.DataFrame:
        """The long frame of sktime's data: unique_id, ds, y and the columns of X."""
        columns: dict[str, Any] = {ID: self._name(())}
        if isinstance(y.index, pd.MultiIndex):
            # A panel's index holds its instances as codes already; only a hierarchy's must be looked for.
            panel = (y.index.codes[0], y.index.levels[0]) if y.index.nlevels == 2 else None
            codes, instances = panel or pd.factorize(y.index.droplevel(-1))
            columns[ID] = np.array([self._name(instance) for instance in instances], object)[codes]
        columns[TIME] = self._clock.times(y.index.get_level_values(-1))
        columns[TARGET] = y.iloc[:, 0].to_numpy(dtype="float64")
        if X is not None:
            known = X if X.index.equals(y.index) else X.reindex(y.index)
            columns |= {f"X[{name}]": known[name].to_numpy(dtype="float64") for name in X.columns}
        return pd.DataFrame(columns)

    def _names(self) -> list[str]:
        """The unique_id of every series, in the order of a forecast."""
        return [self._name(instance) for instance in ([()] if self._instances is None else self._instances)]

    def _name(self, instance: Any) -> str:
        """The unique_id of an instance: the levels of its index, joined; () is a single series."""
        if isinstance(instance, tuple):
            return "/".join(map(str, instance)) or "y"
        return str(instance)

    @property
    def _source(self) -> str:
        return f"MnemoForecaster({self.model})"

    @classmethod
    def get_test_params(cls, parameter_set: str = "default") -> list[dict[str, Any]]:
        """Closed forms, with and without a horizon of their own, and the smallest network that learns."""
        return [
            {"model": "naive"},
            {"model": "ridge", "horizon": 5, "settings": {"penalty": 0.1}},
            {"model": "gru", "settings": TINY, "calibrate": True},
        ]


def _last_times(frame: pd.DataFrame) -> dict[str, Any]:
    return {str(name): time for name, time in frame.groupby(ID)[TIME].max().items()}


class MnemoClassifier(BaseClassifier):
    """A model of Mnemosyne's catalog as an sktime classifier: it reads a series to its end and says what it was.

    Series may be of different lengths and have several channels; NaN is a masked step. Rows count as they stand, the
    time index is not looked at. A fifth of the series chooses the epoch of a model that learns by gradient descent.

    Parameters
    ----------
    model : str
        A name from `mnemo models` that classifies.
    settings : dict, optional
        Fields of the model and of its training, as `mnemo models` lists them: {"hidden": 32, "max_epochs": 10}.
    random_state : int
        Seed of everything random.

    Raises
    ------
    ModelError, TaskError, FrameError
        All are ValueErrors: a name or field that is not known, data that cannot be learned from.

    Examples
    --------
    >>> from sktime.datasets import load_unit_test
    >>> from forecasting.sktime import MnemoClassifier
    >>> X, y = load_unit_test(split="train", return_X_y=True)
    >>> classifier = MnemoClassifier("ridge", settings={"lags": 24}).fit(X, y)
    >>> classifier.predict_proba(X).shape
    (20, 2)
    """

    _tags = {  # noqa: RUF012
        **OURS,
        "X_inner_mtype": "df-list",
        "capability:multivariate": True,
        "capability:unequal_length": True,
        "capability:missing_values": True,
        "capability:categorical_in_X": False,
        "capability:predict_proba": True,
        "capability:random_state": True,
        "property:randomness": "derandomized",
    }

    def __init__(self, model: str = "ridge", settings: Mapping[str, Any] | None = None, random_state: int = 0) -> None:
        self.model = model
        self.settings = settings
        self.random_state = random_state
        super().__init__()

    def _fit(self, X: list[pd.DataFrame], y: np.ndarray) -> MnemoClassifier:
        self._columns = list(X[0].columns)
        labels = tuple(map(str, self.classes_))
        dataset = self._dataset(X, np.array([str(label) for label in y], object))
        panel = to_panel(dataset, labels)
        task = replace(Task.of(dataset), labels=labels)
        parts = parts_to_learn_from(dataset, panel, task, self.model)
        for note in parts.notes:
            warnings.warn(note, stacklevel=2)
        self.trained_ = fit_model(self.model, task, parts, settings=self.settings, seed=self.random_state)
        return self

    def _predict_proba(self, X: list[pd.DataFrame]) -> np.ndarray:
        if len(X[0].columns) != len(self._columns):
            raise TaskError(f"{self._source}: fitted on {len(self._columns)} channels, got {len(X[0].columns)}.")
        panel = to_panel(self._dataset(X, np.full(len(X), None)), ())
        model = self.trained_.model
        probabilities, _ = advance(model, model.initial_state(len(panel)), [series.values for series in panel])
        return probabilities.numpy().astype(np.float64)

    def _dataset(self, X: list[pd.DataFrame], labels: np.ndarray) -> Dataset:
        """The series of a panel as a checked long frame, named by their places, in order."""
        lengths = [len(series) for series in X]
        names = [f"{place:0{len(str(len(X)))}d}" for place in range(len(X))]
        channels = tuple(Channel(f"X[{name}]", "") for name in self._columns)
        values = np.concatenate([series.to_numpy(dtype="float64") for series in X])
        frame = pd.DataFrame({
            ID: np.repeat(np.array(names, object), lengths),
            TIME: np.concatenate([np.arange(length) for length in lengths]),
            LABEL: np.repeat(labels, lengths),
            **{channel.name: values[:, column] for column, channel in enumerate(channels)},
        })  # fmt: skip
        frame, _ = check_frame(
            frame, source=self._source, task="classify", channels=channels, target_required=labels[0] is not None
        )
        splits = Splits(entity=dict.fromkeys(names, "train"))
        return Dataset(self._source, frame, "classify", channels, None, 1, 1, splits, LABEL)

    @property
    def _source(self) -> str:
        return f"MnemoClassifier({self.model})"

    @classmethod
    def get_test_params(cls, parameter_set: str = "default") -> list[dict[str, Any]]:
        """Closed forms and the smallest network that learns."""
        return [{"model": "naive"}, {"model": "ridge"}, {"model": "gru", "settings": TINY}]
