"""Training samples and splits that cannot leak.

A part of the data is, per series, the span of positions whose targets belong to it. A window may look back before its
span, for the past is known, but nothing in it lies after: a training window ends where training ends, and a target
beyond the span counts as unknown. Statistics for training come from training windows alone.

Shapes: B windows, T time, C channels, H horizon.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from data.frame import Dataset as SeriesDataset
from data.panel import Series
from forecasting.listing import shorten
from forecasting.task import Task, TaskError
from models.contract import LARGEST, Batch

VALIDATION_SHARE = 0.2  # of what precedes the test, where the data set has no validation part of its own


@dataclass(frozen=True)
class Span:
    """The positions [begin, end) of one series whose targets belong to a part."""

    series: Series
    begin: int
    end: int
    known: np.ndarray | None = None  # (3, C) what the series' owner showed before it, see `known_before`


@dataclass(frozen=True)
class Parts:
    train: list[Span]
    validation: list[Span]
    test: list[Span]
    notes: tuple[str, ...] = ()

    def until_test(self) -> Parts:
        """What may be learned from once a model is chosen: training and validation together."""
        whole = {span.series.unique_id: span for span in self.train}
        for span in self.validation:
            known = whole.get(span.series.unique_id)
            whole[span.series.unique_id] = replace(span, begin=known.begin if known else span.begin)
        return replace(self, train=list(whole.values()), validation=[])

    def before_judgement(self) -> Parts:
        """`until_test`, or the training part alone where the validation part is also what is judged."""
        return replace(self, validation=[]) if self.judges_validation else self.until_test()

    @property
    def judges_validation(self) -> bool:
        judged = {(span.series.unique_id, span.begin, span.end) for span in self.test}
        return any((span.series.unique_id, span.begin, span.end) in judged for span in self.validation)


def split(
    dataset: SeriesDataset,
    panel: Sequence[Series],
    task: Task,
    *,
    test_size: int | None = None,
    cutoff: Any = None,
    hold_out: bool = True,
    known_owner: bool = False,
) -> Parts:
    """Cut every series, or the set of series, into training, validation and test.

    Args:
        test_size: the last so many positions of every series are the test; instead of the data set's own split.
        cutoff: the last `ds` before the test; instead of the data set's own split.
        hold_out: whether to keep a fifth for the test where nothing else says where it begins.
        known_owner: whether each series begins with what its owner has shown before it, see `known_before`.

    Raises:
        TaskError: a part would be empty, no series is longer than the horizon allows, or nothing of an owner can be
            known before a series.
    """
    if task.future:
        panel = [without_what_is_ahead(series, len(task.future)) for series in panel]
    splits, whole = dataset.splits, test_size is None and cutoff is None
    everyone, owners = panel, splits.group or {}
    nobodys = any(series.unique_id not in owners for series in panel)
    if known_owner and (nobodys or splits.entity is None or not whole):
        # Cut in time, some of what an owner's other series show would lie after the cut-off.
        raise TaskError(
            f"{dataset.name}: known_owner takes data whose parts are whole series and that say whose each is, such as "
            "the gestures of several people; leave it out here."
        )
    panel, notes = _with_answers(dataset, panel) if task.kind != "forecast" else (panel, ())
    if splits.entity is not None and whole:
        parts = _by_entity(dataset, panel, splits.entity)
        parts = _acquainted(parts, known_before(everyone, owners)) if known_owner else parts
    elif task.kind != "forecast" and whole and splits.train_until is None:
        parts = _by_entity(dataset, panel, _random_entities(panel))
    else:
        parts = _by_time(dataset, panel, task, test_size, cutoff, hold_out)
    notes = (*notes, *parts.notes, *_never_taught(dataset, task, parts))
    return replace(parts, notes=notes)


def is_known(target: np.ndarray) -> np.ndarray:
    """Where there is an answer: a class that is not below 0, or a number."""
    return target >= 0 if target.dtype.kind in "iu" else np.isfinite(target)


def _with_answers(dataset: SeriesDataset, panel: Sequence[Series]) -> tuple[list[Series], tuple[str, ...]]:
    """The series that have an answer somewhere; the others can neither teach nor be judged, in any part."""
    answered = [series for series in panel if is_known(np.asarray(series.target)).any()]
    kept = {series.unique_id for series in answered}
    lacking = [series.unique_id for series in panel if series.unique_id not in kept]
    if not lacking:
        return answered, ()
    return answered, (
        f"{dataset.name}: {dataset.target} is missing in all rows of {len(lacking)} of {len(panel)} series: "
        f"{shorten(lacking)}. They are left out, for they neither teach nor can be judged.",
    )


def _never_taught(dataset: SeriesDataset, task: Task, parts: Parts) -> tuple[str, ...]:
    """A sentence on the classes that no training series shows, where there are any."""
    if task.kind != "classify":
        return ()
    shown: set[int] = set()
    for span in parts.train:
        shown.update(np.asarray(span.series.target)[span.begin : span.end].tolist())
    strange = [label for place, label in enumerate(task.labels) if place not in shown]
    if not strange:
        return ()
    return (
        f"{dataset.name}: {len(strange)} of {len(task.labels)} labels occur in no series of the training part, so no "
        f"model can learn them: {shorten(strange)}. Give more series of each.",
    )


def _acquainted(parts: Parts, known: Mapping[str, np.ndarray]) -> Parts:
    """The parts with what is known of each series' owner."""

    def begun(spans: Sequence[Span]) -> list[Span]:
        return [replace(span, known=known[span.series.unique_id]) for span in spans]

    return replace(parts, train=begun(parts.train), validation=begun(parts.validation), test=begun(parts.test))


def without_what_is_ahead(series: Series, covariates: int) -> Series:
    """The series up to its last observation of something that is not known ahead: what follows is to be forecast."""
    seen = np.flatnonzero(np.isfinite(series.values[:, :-covariates]).any(1))
    end = int(seen[-1]) + 1 if len(seen) else len(series.ds)
    target = None if series.target is None else series.target[:end]
    return replace(series, ds=series.ds[:end], values=series.values[:end], target=target)


def _by_entity(dataset: SeriesDataset, panel: Sequence[Series], entity: Any) -> Parts:
    members: dict[str, list[Span]] = {"train": [], "validation": [], "test": []}
    for series in panel:
        part = entity.get(series.unique_id)
        if part not in members:
            raise TaskError(f"{dataset.name}: series {series.unique_id} is in none of train, validation and test.")
        members[part].append(Span(series, 0, len(series.ds)))
    if not members["train"]:
        raise TaskError(f"{dataset.name}: no series is left to train on.")
    notes: tuple[str, ...] = ()
    if not members["validation"]:
        every = max(2, round(1 / VALIDATION_SHARE))
        members["validation"] = members["train"][every - 1 :: every] or members["train"][-1:]
        kept = {id(span) for span in members["validation"]}
        members["train"] = [span for span in members["train"] if id(span) not in kept] or members["validation"]
        if members["train"] is members["validation"]:
            notes = (f"{dataset.name}: there is one series to learn from; it is validated on what it was trained on.",)
    return Parts(members["train"], members["validation"], members["test"], notes)


def _random_entities(panel: Sequence[Series]) -> dict[str, str]:
    """Three of five series to train on, one to validate, one to test: drawn once, the same for every run.

    Where each series has one class, the series of each class are dealt so: one to train on, then one to test, then one
    to validate, then the others, so that what is judged was taught.
    """
    drawn = [panel[index] for index in np.random.default_rng(0).permutation(len(panel))]
    answers = [np.unique(np.asarray(series.target)[is_known(np.asarray(series.target))]) for series in drawn]
    classes = all(len(answer) == 1 and answer.dtype.kind in "iu" for answer in answers)
    names = ("train", "test", "validation", "train", "train")
    dealt: Counter[int] = Counter()
    parts = {}
    for series, answer in zip(drawn, answers, strict=True):
        deck = int(answer[0]) if classes else 0
        parts[series.unique_id] = names[dealt[deck] % 5]
        dealt[deck] += 1
    return parts


def _by_time(
    dataset: SeriesDataset,
    panel: Sequence[Series],
    task: Task,
    test_size: int | None,
    cutoff: Any,
    hold_out: bool,
) -> Parts:
    splits, horizon = dataset.splits, task.horizon
    if test_size is not None and test_size < horizon:
        raise TaskError(
            f"a test of {test_size} steps is shorter than the horizon of {horizon}; give at least {horizon}."
        )
    train, validation, test, short, before = [], [], [], [], 0
    for series in panel:
        length = len(series.ds)
        end, validation_begin = length, None
        if cutoff is not None:
            test_begin = _after(series, cutoff, dataset.name)
        elif test_size is not None:
            test_begin = length - test_size
        elif splits.train_until is not None:
            validation_begin = _after(series, splits.train_until, dataset.name)
            through = splits.validation_until if splits.validation_until is not None else splits.train_until
            test_begin = _after(series, through, dataset.name)
            if validation_begin == test_begin:
                validation_begin = None
            if splits.test_until is not None:
                end = _after(series, splits.test_until, dataset.name)
        elif splits.test_size is not None:
            test_begin = length - max(splits.test_size, horizon)
        else:
            test_begin = length - max(horizon, round(0.2 * length)) if hold_out else length
        before = max(before, test_begin)
        if validation_begin is None:
            # A fifth of the past, and never so much that training is left with less than two horizons.
            validation_begin = test_begin - max(horizon, round(VALIDATION_SHARE * test_begin))
            if validation_begin < 2 * horizon:
                validation_begin = test_begin - horizon
        if validation_begin < horizon + 1:
            short.append(series)
            continue
        train.append(Span(series, 0, validation_begin))
        if test_begin - validation_begin >= horizon:
            validation.append(Span(series, validation_begin, test_begin))
        if end - test_begin >= horizon:
            test.append(Span(series, test_begin, end))
    if not train:
        longest = max((len(series.ds) for series in panel), default=0)
        if longest > 3 * horizon:
            raise TaskError(
                f"{dataset.name}: at most {max(before, 0)} steps of a series come before the test; training and "
                f"validation with a horizon of {horizon} need {2 * horizon + 1}. Let the test begin later."
            )
        raise TaskError(
            f"{dataset.name}: no series is long enough: the longest has {longest} steps, and training, validation and "
            f"test with a horizon of {horizon} need at least {3 * horizon + 1}. Shorten --horizon or --test-size."
        )
    notes: tuple[str, ...] = ()
    if short:
        notes = (
            f"{dataset.name}: {len(short)} of {len(panel)} series are too short for a horizon of {horizon} and are "
            f"left out: {', '.join(series.unique_id for series in short[:5])}{' ...' if len(short) > 5 else ''}.",
        )
    return Parts(train, validation, test, notes)


def _after(series: Series, last: Any, source: str) -> int:
    """The position after the inclusive end `last`."""
    end = _as_ds(last, series, source)
    if series.ds.dtype.kind == "f":  # the third step of 0.1 s is at 0.30000000000000004 s, and no later than 0.3
        end += 1e-3 * float(np.diff(series.ds[:2]).sum())
    return int(np.searchsorted(series.ds, end, side="right"))


def _as_ds(value: Any, series: Series, source: str) -> Any:
    """A cut-off, given as text or as a value, as one of the series' own times."""
    kind = series.ds.dtype.kind
    try:
        if kind == "M":
            if isinstance(value, int | float):
                raise TypeError("a number is no time stamp")
            stamp = pd.to_datetime(value, format="ISO8601", utc=True)
            if stamp is pd.NaT:
                raise ValueError("not a time")
            return stamp.tz_localize(None).as_unit("ns").to_datetime64()
        if not math.isfinite(float(value)):
            raise ValueError("not finite")
        return int(value) if kind in "iu" else float(value)
    except (TypeError, ValueError) as error:
        wanted = {"M": "a time stamp such as 2015-06-30", "i": "an integer", "u": "an integer"}.get(kind, "seconds")
        raise TaskError(f"{source}: '{value}' is not a cut-off of this data, whose ds is {wanted}.") from error


def spread(span: Span) -> float:
    """Standard deviation of channel 0 up to the end of the span; 1 where it does not move.

    The unit in which a series' errors are weighed against those of other series, as if each had been standardised.
    """
    values = span.series.values[: span.end, 0]
    known = values[np.isfinite(values)]
    scale = float(known.std()) if len(known) else 0.0
    return scale if scale > 0 and np.isfinite(scale) else 1.0


def known_before(panel: Sequence[Series], group: Mapping[str, str]) -> dict[str, np.ndarray]:
    """What the owner of each series has shown in the panel before it: values of each channel, mean, variance (3, C).

    Args:
        panel: in the order of time within each group.
        group: unique_id -> owner, such as the person who moves.
    """
    known: dict[str, np.ndarray] = {}
    after: dict[str, np.ndarray] = {}
    for series in panel:
        owner = group[series.unique_id]
        before = after.setdefault(owner, np.zeros((3, series.values.shape[1])))
        known[series.unique_id] = before
        seen = np.isfinite(series.values) & (np.abs(series.values) <= LARGEST)
        count = seen.sum(0)
        mean = np.where(seen, series.values, 0.0).sum(0) / np.maximum(count, 1)
        var = (np.where(seen, series.values - mean, 0.0) ** 2).sum(0) / np.maximum(count, 1)
        # Pooled moments (Chan, Golub and LeVeque 1979): squares about a common origin would lose the digits.
        total = before[0] + count
        share = count / np.maximum(total, 1)
        away = mean - before[1]
        pooled = (1 - share) * before[2] + share * var + share * (1 - share) * away**2
        after[owner] = np.stack([total, before[1] + share * away, pooled])
    return known


def stacked_known(spans: Sequence[Span]) -> torch.Tensor | None:
    """(B, 3, C) of spans; of one that is somebody's first, nothing. None where nothing is known of any."""
    if all(span.known is None for span in spans):
        return None
    found = [np.zeros((3, span.series.values.shape[1])) if span.known is None else span.known for span in spans]
    return torch.from_numpy(np.stack(found)).float()


def _before(span: Span) -> torch.Tensor:
    """(N, 3): per position how many values of channel 0 came before it, their mean and their standard deviation."""
    values = span.series.values[:, 0].astype(np.float64)
    seen = np.isfinite(values) & (np.abs(values) <= LARGEST)
    centre = values[seen].mean() if seen.any() else 0.0  # about which squares keep their digits
    centred = np.where(seen, values - centre, 0.0)
    count, total, squares = (np.cumsum(part) - part for part in (seen.astype(float), centred, centred**2))
    mean = total / np.maximum(count, 1)
    deviation = np.sqrt(np.maximum(squares / np.maximum(count, 1) - mean**2, 0))
    return torch.from_numpy(np.stack([count, np.where(count > 0, mean + centre, 0.0), deviation], 1)).float()


@dataclass(frozen=True)
class Window:
    """Positions [begin, end) of a span's series, of which those from `supervised` on have a target that counts."""

    span: int
    begin: int
    end: int
    supervised: int
    every: int = 1  # of those positions so many-th only, counted back from the window's end


def plan_windows(spans: Sequence[Span], length: int, stride: int, context: int, every: int = 1) -> list[Window]:
    """Windows of `length` steps that supervise every position of the spans' targets: at least once, where the stride
    is not above `length` - `context`, and exactly once where it is that.

    A window starts `stride` after the one before; its first `context` positions are not supervised, except where the
    series itself begins. A span shorter than a window gives one shorter window. With `every` above 1 only so many-th
    position is supervised: neighbours have nearly the same target, and a long horizon at each is dear.
    """
    windows = []
    for index, span in enumerate(spans):
        begin = max(0, span.begin - 1 - context)  # the position before a span forecasts its first steps
        last = max(span.end - length, begin)
        for planned in range(begin, last + stride, stride):
            # The last window is moved back to the span's end; what the one before it supervised is not so again.
            start = min(planned, last)
            fresh = planned if planned + context < span.end else start
            supervised = fresh + context if start else 0
            windows.append(Window(index, start, min(start + length, span.end), supervised, every))
    return windows


class WindowDataset(Dataset[Batch]):
    """Windows by lists of their indices, a batch each; the windows of one list are of one length."""

    def __init__(self, spans: Sequence[Span], task: Task, windows: Sequence[Window]) -> None:
        self.spans = spans
        self.task = task
        self.windows = list(windows)
        self._scales = [spread(span) if task.kind == "forecast" else 1.0 for span in spans]
        self._before = [_before(span) for span in spans]
        self._values = [torch.from_numpy(np.ascontiguousarray(span.series.values, np.float32)) for span in spans]
        self._targets = [self._target(span) for span in spans]

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, indices: Sequence[int]) -> Batch:
        chosen = [self.windows[index] for index in indices]
        x = torch.stack([self._values[w.span][w.begin : w.end] for w in chosen])
        target = torch.stack([self._window_target(w) for w in chosen])
        scale = torch.tensor([self._scales[w.span] for w in chosen])
        before = torch.stack([self._before[w.span][w.begin] for w in chosen])
        position = torch.tensor([float(w.begin) for w in chosen])
        after = torch.stack([self._after(w) for w in chosen]) if self.task.future else None
        known = stacked_known([self.spans[w.span] for w in chosen])
        return Batch(x, x.isfinite().float(), target, scale, before, position, after, known)

    def _after(self, window: Window) -> torch.Tensor:
        """(H, F) what is known ahead of a window's end; NaN beyond the series."""
        horizon, covariates = self.task.horizon, len(self.task.future)
        values = self._values[window.span][window.end : window.end + horizon, -covariates:]
        beyond = values.new_full((horizon - len(values), covariates), torch.nan)
        return torch.cat([values, beyond])

    def _target(self, span: Span) -> torch.Tensor:
        """Per position of the series; (N, H) forecasts, (N,) else. Unknown outside the span."""
        if self.task.kind == "classify":
            assert span.series.target is not None
            labels = torch.from_numpy(np.asarray(span.series.target, np.int64)).clone()
            labels[: span.begin] = -1
            labels[span.end :] = -1
            return labels
        if self.task.kind == "regress":
            assert span.series.target is not None
            values = torch.from_numpy(np.asarray(span.series.target, np.float32)).clone()
            values[: span.begin] = torch.nan
            values[span.end :] = torch.nan
            return values
        y = torch.from_numpy(np.asarray(span.series.values[:, 0], np.float32)).clone()
        y[: span.begin] = torch.nan
        y[span.end :] = torch.nan
        ahead = torch.cat([y[1:], y.new_full((self.task.horizon,), torch.nan)])
        return ahead.unfold(0, self.task.horizon, 1)[: len(y)]

    def _window_target(self, window: Window) -> torch.Tensor:
        target = self._targets[window.span][window.begin : window.end]
        skipped = max(window.supervised - window.begin, 0)
        if not skipped and window.every == 1:
            return target
        unsupervised = torch.ones(len(target), dtype=torch.bool)
        unsupervised[skipped:] = (torch.arange(len(target), 0, -1) - 1)[skipped:] % window.every != 0
        unknown = -1 if target.dtype == torch.int64 else torch.nan
        return target.masked_fill(unsupervised.view(-1, *[1] * (target.dim() - 1)), unknown)


class LengthBatches(Sampler[list[int]]):
    """Batches of windows of one length, shuffled by seed and epoch alone, so that a resumed run sees the same order."""

    def __init__(self, windows: Sequence[Window], batch_size: int, *, shuffle: bool, seed: int = 0) -> None:
        groups: dict[int, list[int]] = defaultdict(list)
        for index, window in enumerate(windows):
            groups[window.end - window.begin].append(index)
        self.groups = [np.array(group) for _, group in sorted(groups.items())]
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(-(-len(group) // self.batch_size) for group in self.groups)

    def __iter__(self) -> Iterator[list[int]]:
        random = np.random.default_rng((self.seed, self.epoch))
        batches = []
        for group in self.groups:
            order = random.permutation(group) if self.shuffle else group
            batches += [order[i : i + self.batch_size].tolist() for i in range(0, len(order), self.batch_size)]
        for index in random.permutation(len(batches)) if self.shuffle else range(len(batches)):
            yield batches[index]


def window_loader(
    spans: Sequence[Span],
    task: Task,
    *,
    length: int,
    stride: int,
    context: int,
    batch_size: int,
    every: int = 1,
    shuffle: bool = False,
    seed: int = 0,
) -> DataLoader[Batch]:
    """The windows of the spans as batches; iterated again, an unshuffled one gives the same batches again."""
    dataset = WindowDataset(spans, task, plan_windows(spans, length, stride, context, every))
    sampler = LengthBatches(dataset.windows, batch_size, shuffle=shuffle, seed=seed)
    return DataLoader(dataset, sampler=sampler, batch_size=None)
