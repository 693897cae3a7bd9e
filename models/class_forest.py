"""A random forest that says a class at every step, from the past of all channels (`models.path_features`).

The reference of gesture recognition: Simão, Gibaru and Neto (2019, arXiv 2304.06777) read gestures with a forest of
their resampled frames. As one forest answers at any time, it learns from all positions of its windows.

Shapes: B series, T time, C channels, N buffer, F features, K classes, n rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.contract import Batch, Fitted, ModelError, Signature, State, StepModel, observed
from models.observation import NUMBERS_AT_ONCE, channel_statistics, unit_where_still
from models.path_features import KINDS, PathFeatures, Window
from models.trees import ClassForestConfig, TreeEnsemble, fit_class_forest


@dataclass(frozen=True)
class PathConfig:
    lags: int = 100  # the last frames that features are made of; four at least are kept
    features: str = "statistics"  # statistics or path
    rows: int = 20_000  # that a forest learns from at most

    def __post_init__(self) -> None:
        if self.lags < 1 or self.rows < 1 or self.features not in KINDS:
            raise ModelError(
                f"class-forest needs at least 1 lag, at least 1 row and features that are {' or '.join(KINDS)}, "
                f"got lags={self.lags}, rows={self.rows} and features='{self.features}'."
            )


class ClassForest(StepModel, Fitted):
    """Probabilities of the classes: the shares of the training rows in the leaves, averaged over the trees."""

    tasks = ("classify",)
    library = "sklearn"

    def __init__(self, signature: Signature, config: PathConfig, forest: ClassForestConfig) -> None:
        super().__init__(signature)
        self.config, self.forest = config, forest
        self.features = PathFeatures(signature.channels, config.lags, config.features)
        self.trees = TreeEnsemble(signature.classes)

    def initial_state(self, batch: int) -> State:
        return self.features.initial_state(batch)

    def step(self, x: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State]:
        window, after = self.features.step(x, mask, state)
        return self._read(window), after

    def scan(self, x: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State]:
        windows, after = self.features.scan(x, mask, state)
        at_once = max(1, NUMBERS_AT_ONCE // (x.shape[0] * self._width()))
        pieces = range(0, x.shape[1], at_once)
        return torch.cat([self._read(windows.at((slice(None), slice(i, i + at_once)))) for i in pieces], 1), after

    def last(self, x: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State]:
        windows, after = self.features.scan(x, mask, state)
        return self._read(windows.at((slice(None), -1))), after

    def _width(self) -> int:
        """Numbers in memory for one series at one time."""
        return 3 * self.features.length * self.signature.channels + self.features.features

    def _read(self, window: Window) -> Tensor:
        features = self.features(window)
        shares = self.trees(features.flatten(0, -2).float()).unflatten(0, features.shape[:-1])
        return shares.clamp(max=1.0)  # the rounding of their sum; scores refuse what is above

    def fit(self, batches: Iterable[Batch], validation: Iterable[Batch] = ()) -> None:
        """Fit the forest to positions of the training windows, drawn evenly.

        Raises:
            ModelError: no label, or labels of one class alone.
        """
        mean, variance, _ = channel_statistics(batches, 0.0)
        self.features.calibrate(mean, unit_where_still(variance.sqrt(), mean))
        seed = torch.initial_seed() % 2**32
        features, labels = [], []
        for batch, places in drawn(batches, self.config.rows, seed, "class-forest"):
            windows, _ = self.features.scan(batch.x, batch.mask, self.initial_state(len(batch.x)))
            for some in places.split(max(1, NUMBERS_AT_ONCE // self._width())):
                at = tuple(some.T)
                features.append(self.features(windows.at(at)).float())
                labels.append(batch.target[at])
        rows = torch.cat(features).numpy(), torch.cat(labels).numpy().astype(np.int64)
        fit_class_forest(self.trees, self.forest, rows, seed)


def drawn(batches: Iterable[Batch], rows: int, seed: int, name: str) -> Iterator[tuple[Batch, Tensor]]:
    """Each batch and those of its positions (n, 2) to learn from: `rows` of all that have a label and a past, or all.

    Raises:
        ModelError: there is none; `name` is the model's.
    """
    total = sum(int(keep.sum()) for _, keep in _positions(batches))
    if not total:
        raise ModelError(f"{name} found no position with a label in the training data.")
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(total, min(rows, total), replace=False, shuffle=False))
    seen = 0
    for batch, keep in _positions(batches):
        count = int(keep.sum())
        here = torch.from_numpy(chosen[(chosen >= seen) & (chosen < seen + count)] - seen)
        seen += count
        yield batch, keep.nonzero()[here]


def _positions(batches: Iterable[Batch]) -> Iterator[tuple[Batch, Tensor]]:
    """Each batch and the positions (B, T) that have a label and a past."""
    for batch in batches:
        began = observed(batch.x, batch.mask).any(-1).cummax(1).values
        yield batch, (batch.target >= 0) & began
