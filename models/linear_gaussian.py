"""Local models: one fit a series, all series of a batch in one tensor step.

A local model has parameters of its own for every series. They are tensors of the state, beside the filter's mean, so
that one graph serves all series and new points need no refit. What is here is shared by the families (`models.ets`):
the normal quantiles around an exact mean and variance, the scan, and how series are fitted one by one by a library,
with what went wrong kept per series.

Shapes: B series, T time, H horizon, Q quantiles.
"""

from __future__ import annotations

import multiprocessing
import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.contract import LARGEST, Fits, Local, ModelError, Signature, State, StepModel, observed

Values = NDArray[np.float64]
Fit = dict[str, Any]  # what a library found for one series: plain numbers, text and arrays

STATSMODELS = (0.1, 1e4)  # deviations of a series beyond which its optimiser stops far from the maximum
TOGETHER = 16  # steps of a scan whose states are kept, to predict from them at once
POOL_FROM = 32  # series: fewer are fitted in this process, for starting others takes longer than that


class LinearGaussian(StepModel, Local):
    """Normal quantiles around a mean and a variance h steps ahead, both functions of the state alone.

    A subclass says what fits one series (`fitting`), what a series is that nobody fitted (`unfitted`) and what state
    they have (`states`), how one observation changes the state (`advance`) and what the state expects (`outlook`). Its
    scan predicts from a few states together: those of a whole scan, a covariance each, would fill the memory.
    """

    tasks = ("forecast",)
    normal: Tensor

    def __init__(self, signature: Signature) -> None:
        super().__init__(signature)
        self.register_buffer("normal", _normal_quantiles(signature).to(self.zeros()), persistent=False)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """A change of type or device, after which the quantiles have all digits of the new type."""
        super()._apply(fn, recurse)
        self.normal = _normal_quantiles(self.signature).to(self.normal)
        return self

    def passed(self, y: Tensor, state: State) -> State:
        with torch.no_grad():
            for x in (y if y.dim() == 3 else y[..., None]).unbind(1):
                state = state | self.advance(*self.target(x, torch.ones_like(x), state), state)
        return state

    @abstractmethod
    def fitting(self) -> Callable[[Values], Fit]:
        """What fits one series, as `fit_each` takes it.

        Of a Fit are read here its `note`, empty where all was done as asked, and its `history`, where it has one:
        values that the library was not shown as they are, and that its state has yet to step over.
        """

    @abstractmethod
    def unfitted(self) -> Fit:
        """What a series is that nobody fitted, before its first value."""

    @abstractmethod
    def states(self, fits: Sequence[Fit]) -> State:
        """The state of a series each, float64."""

    def initial_state(self, batch: int) -> State:
        state = self.states([self.unfitted()])
        return {name: value.to(self.zeros()).repeat(batch, *[1] * (value.dim() - 1)) for name, value in state.items()}

    def fit_series(self, series: Mapping[str, Values], processes: int | None = None) -> Fits:
        fits, failures = fit_each(self.fitting(), series, processes)
        notes = {name: found["note"] for name, found in fits.items() if found["note"]}
        state = self.states(list(fits.values())) if fits else {}
        for index, found in enumerate(fits.values()):
            if (history := found.get("history")) is not None:
                row = {name: value[index : index + 1] for name, value in state.items()}
                for name, value in self.passed(torch.from_numpy(history)[None], row).items():
                    state[name][index] = value[0]
        return Fits(tuple(fits), state, notes, failures)

    def target(self, x: Tensor, mask: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """What `advance` takes of an observation (B, C): channel 0, 0 where it was not seen, and where it was."""
        y = x[..., :1]
        seen = observed(y, mask[..., :1])
        return torch.where(seen, y, torch.zeros_like(y)), seen

    @abstractmethod
    def advance(self, y: Tensor, seen: Tensor, state: State) -> State:
        """What one observation changes in the state; y, seen: (B, 1), y anything finite where it was not seen."""

    @abstractmethod
    def outlook(self, state: State) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the next H values, (B, H) each."""

    def explained(self, future: Tensor, state: State) -> Tensor:
        """(B, H) what covariates known ahead, (B, H, F), add to the mean."""
        raise ModelError(f"{type(self).__name__} takes no covariates that are known ahead.")

    def step(self, x: Tensor, mask: Tensor, state: State, future: Tensor | None = None) -> tuple[Tensor, State]:
        after = state | self.advance(*self.target(x, mask, state), state)
        return self.predict(after, future), after

    def scan(self, x: Tensor, mask: Tensor, state: State, future: Tensor | None = None) -> tuple[Tensor, State]:
        predictions = []
        for begin in range(0, x.shape[1], TOGETHER):
            part, states = slice(begin, begin + TOGETHER), []
            for value, known in zip(x[:, part].unbind(1), mask[:, part].unbind(1), strict=True):
                state = state | self.advance(*self.target(value, known, state), state)
                states.append(state)
            joined = {name: torch.cat([each[name] for each in states]) for name in state}  # step after step
            ahead = None if future is None else future[:, part].transpose(0, 1).flatten(0, 1)
            predictions.append(self.predict(joined, ahead).unflatten(0, (len(states), len(x))).transpose(0, 1))
        return torch.cat(predictions, 1), state

    def last(self, x: Tensor, mask: Tensor, state: State, future: Tensor | None = None) -> tuple[Tensor, State]:
        for t in range(x.shape[1]):
            state = state | self.advance(*self.target(x[:, t], mask[:, t], state), state)
        return self.predict(state, future), state

    def predict(self, state: State, future: Tensor | None = None) -> Tensor:
        if (future is None) == bool(self.signature.future):
            given = "none" if future is None else "some"
            raise ModelError(
                f"this model takes {self.signature.future} covariates known ahead, and {given} were given."
            )
        mean, deviation = self.outlook(state)
        if future is not None:
            mean = mean + self.explained(future, state)
        # Levels come first until the end: over a last axis of five both runtimes are ten times slower.
        levels = self.normal.reshape(-1, *[1] * mean.dim())
        return (mean + deviation * levels).movedim(0, -1)


def _normal_quantiles(signature: Signature) -> Tensor:
    return torch.tensor([NormalDist().inv_cdf(q) for q in signature.quantiles], dtype=torch.float64)


def fit_each(
    fit: Callable[[Values], Fit], series: Mapping[str, Values], processes: int | None = None
) -> tuple[dict[str, Fit], dict[str, str]]:
    """Fit every series by itself, on all cores that this process may use: the fits, and why the others have none.

    `fit` is a function of a module, or a `partial` of one; it raises ModelError where a series cannot be fitted, and
    whatever else a library raises counts as that series' failure too.

    Raises:
        ModelError: the system ended one of the processes.
    """
    from joblib import cpu_count  # which knows of affinity and of a container's share

    names = list(series)
    workers = min(processes or cpu_count(), max(1, len(names) // (POOL_FROM // 2)))
    guarded = partial(_guarded, fit)
    if workers == 1 or len(names) < POOL_FROM or "fork" not in multiprocessing.get_all_start_methods():
        results = list(map(guarded, series.values()))
    else:
        # Forked, as the library does it itself: a new interpreter would import for seconds what this one has loaded.
        with warnings.catch_warnings(), ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as pool:
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads; the children run none
            try:
                results = list(pool.map(guarded, series.values(), chunksize=max(1, len(names) // (8 * workers))))
            except BrokenProcessPool as error:
                raise ModelError(
                    f"one of {workers} processes that fit {len(names)} series was ended by the system, probably for "
                    "want of memory; nothing was kept. Give it more, or bind mnemo to fewer cores (taskset -c 0 mnemo "
                    "...), which starts fewer processes."
                ) from error
    fits = {name: result for name, result in zip(names, results, strict=True) if isinstance(result, dict)}
    failures = {name: result for name, result in zip(names, results, strict=True) if isinstance(result, str)}
    return fits, failures


def _guarded(fit: Callable[[Values], Fit], values: Values) -> Fit | str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of single optimisation steps; what comes of them is checked
            return fit(values)
    except ModelError as error:
        return str(error).rstrip(".")
    except Exception as error:  # a library's own errors share no base
        return f"the fit failed ({type(error).__name__}: {str(error).strip() or 'no message'})"


def known_part(values: Values) -> Values:
    """The values from the first observed one on, as float64, infinities and values beyond LARGEST as missing.

    Raises:
        ModelError: nothing was observed.
    """
    y = np.asarray(values, dtype=np.float64).copy()
    y[~(np.abs(y) <= LARGEST)] = np.nan
    known = np.flatnonzero(np.isfinite(y))
    if not len(known):
        raise ModelError(f"all of its {len(y)} values are missing; give the series at least one value.")
    return y[known[0] :]


def filled(values: Values, how: str = "closed by straight lines for the fit") -> tuple[Values, list[str]]:
    """What libraries take that take no gaps: the values up to the last known one, with the gaps between closed by
    straight lines; and what to say of it, `how` of those between."""
    known = np.flatnonzero(np.isfinite(values))
    complete = np.interp(np.arange(known[-1] + 1), known, values[known])
    notes = []
    if len(complete) > len(known):
        notes.append(f"{len(complete) - len(known)} of {len(values)} values are missing: {how}")
    if len(values) > len(complete):
        notes.append(f"the last {len(values) - len(complete)} of {len(values)} values are missing: no part of the fit")
    return complete, notes


def unit_of(values: Values, low: float, high: float) -> float:
    """What to divide a series by before a library's optimiser sees it, which is at home between deviations of `low` and
    `high`: 1 there, and elsewhere the power of two nearest the deviation, so that no digit is lost on the way.
    """
    reach = np.nanmax(values) - np.nanmin(values)
    if not reach:
        return 1.0
    deviation = np.nanstd(values / reach) * reach  # the squares of the smallest values would be 0
    return 1.0 if low <= deviation <= high else float(2.0 ** np.round(np.log2(deviation)))


def in_units(fit: Fit, unit: float) -> Fit:
    """The fit of a Kalman filter to a series that was divided by `unit`, as one of the series itself."""
    sized = {name: fit[name] * unit for name in ("mean", "intercept", "drift", "effects") if name in fit}
    return fit | sized | {"sigma2": fit["sigma2"] * unit**2}
