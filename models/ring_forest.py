"""Forests and a memory for a ring of muscle sensors, such as an armband: is the hand at work, and at what.

The first forest tells a gesture from none. It sees how strong the channels are over several pasts, mostly sorted by
size, so that it does not matter which sensor lies over which muscle: another person wears the ring turned, or has
stronger hands. The others tell the gestures apart: two from the statistics of class-forest, two from the powers of
sums and differences of any two sensors, which hold what one muscle does under both. One of each two learns from every
gesture as it was, the other also from what it would have been with the ring turned by `turn` sensors either way.

While the hand is at work, what is said of the gesture adds up, and fades when it rests. With `memory` it fades only
after so many steps, rest or not: who has just made one gesture probably makes it again. That suits exercises and
recordings of one gesture at a time, and is wrong where gestures follow each other in any order. Nothing is learned of
how long a gesture or a rest lasts.

The class that is no gesture is the most frequent one of the training data. Channels are of one kind, in the order of
the ring, the last beside the first.

Shapes: B series, T time, C channels, N buffer, K classes, F features.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from models.class_forest import drawn
from models.contract import Batch, Fitted, ModelError, Signature, State, StepModel
from models.lag_features import GRID, LIMIT
from models.observation import NUMBERS_AT_ONCE, channel_statistics, linear_recurrence, unit_where_still
from models.path_features import PathFeatures, Window
from models.trees import ForestConfig, TreeEnsemble, fit_class_forest

PARTS = 5  # of the window, whose powers are seen one by one
LONGER = (2, 4)  # windows of which the power is seen too
PAIRED = 2  # windows over which pairs of sensors are seen
FLOOR = 3e-3  # of a power, in the variance of all channels; below it a channel is silent
DOUBT = 0.01  # of every gesture, whatever the forest says
PAIR_LEAF, PAIR_SHARE = 5, 0.12  # leaf_rows and column_share of the forests of pairs, whatever those of the others
NEVER = -1e4  # logit of a class that is no gesture, or was never shown


@dataclass(frozen=True)
class RingConfig:
    window: int = 100  # steps of the past that a gesture is told by; power is seen over up to four times as many
    rows: int = 12_000  # that the forests learn from at most, without the turned ones
    turn: int = 2  # sensors by which the ring may sit turned, either way; 0 for one that never is
    memory: int = 0  # steps after which what was said before has faded to a third; 0 for as soon as the hand rests

    def __post_init__(self) -> None:
        if self.window < PARTS or self.rows < 1 or self.turn < 0 or self.memory < 0:
            raise ModelError(
                f"ring-forest needs a window of at least {PARTS} steps, at least 1 row, and turn and memory of 0 or "
                "more; got " + ", ".join(f"{name}={value}" for name, value in vars(self).items())
            )


@dataclass(frozen=True)
class RingForestConfig(ForestConfig):
    """Of each forest; deeper and purer than one that forecasts. Those of pairs have `PAIR_LEAF` and `PAIR_SHARE`."""

    trees: int = 100
    depth: int = 16
    leaf_rows: int = 2
    column_share: float = 0.08


class RingForest(StepModel, Fitted):
    """Probabilities: none from the first forest, the others' shares of the rest from the others and from the memory."""

    tasks = ("classify",)
    library = "sklearn"
    none: Tensor  # (K,) one-hot, the class that is no gesture
    shares: Tensor  # (K,) of the gestures in the training data; 0 where there was none

    def __init__(self, signature: Signature, config: RingConfig, forest: RingForestConfig) -> None:
        super().__init__(signature)
        self.config, self.forest = config, forest
        self.context = LONGER[-1] * config.window
        self.past = PathFeatures(signature.channels, self.context, "statistics")  # whose buffer serves both
        self.statistics = PathFeatures(signature.channels, config.window, "statistics")
        self.work = TreeEnsemble(2)
        self.upright, self.turned = TreeEnsemble(signature.classes), TreeEnsemble(signature.classes)
        self.upright_pairs, self.turned_pairs = TreeEnsemble(signature.classes), TreeEnsemble(signature.classes)
        self.register_buffer("none", torch.zeros(signature.classes))
        self.register_buffer("shares", torch.zeros(signature.classes))
        ends = [part * config.window // PARTS for part in range(1, PARTS + 1)]
        self.ends = (*ends, *(times * config.window for times in LONGER))  # of stretches of the past, newest first

    def initial_state(self, batch: int) -> State:
        return self.past.initial_state(batch) | {"said": self.zeros(batch, self.signature.classes)}

    def step(self, x: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State]:
        window, after = self.past.step(x, mask, state)
        working, logits = self._seen(window)
        said = self._kept(working) * state["said"]
        prediction = self._answer(working, logits, said)
        return prediction, after | {"said": said + self._evidence(working, logits, window.age)}

    def scan(self, x: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State]:
        windows, after = self.past.scan(x, mask, state)
        at_once = max(1, NUMBERS_AT_ONCE // (x.shape[0] * self._width()))
        pieces = range(0, x.shape[1], at_once)
        seen = [self._seen(windows.at((slice(None), slice(i, i + at_once)))) for i in pieces]
        working, logits = (torch.cat(part, 1) for part in zip(*seen, strict=True))
        kept, evidence = self._kept(working), self._evidence(working, logits, windows.age)
        said = linear_recurrence(kept, evidence, state["said"])
        before = torch.cat([state["said"][:, None], said[:, :-1]], 1)
        return self._answer(working, logits, kept * before), after | {"said": said[:, -1]}

    def _kept(self, working: Tensor) -> Tensor:
        """(..., 1) the share of what was said that one step leaves."""
        if self.config.memory:
            return torch.full_like(working, 1 - 1 / self.config.memory)
        return (2 * working).clamp(max=1.0) ** (1 / self.config.window)

    def _width(self) -> int:
        """Numbers in memory for one series at one time."""
        return 4 * self.context * self.signature.channels + self.statistics.features

    def _seen(self, window: Window) -> tuple[Tensor, Tensor]:
        """How surely the hand is at work (..., 1), and log-probabilities of the gestures (..., K) if it is."""
        shape = window.age.shape[:-1]
        working = self.work(self._strength(window).flatten(0, -2).float())[:, 1:].clamp(0.0, 1.0)  # sums of shares
        statistics = self.statistics(self._short(window)).flatten(0, -2).float()
        pairs = self._pairs(window).flatten(0, -2).float()
        found = (
            self.upright(statistics) + self.turned(statistics) + self.upright_pairs(pairs) + self.turned_pairs(pairs)
        )
        found = found / found.sum(-1, keepdim=True).clamp(min=1e-30) + DOUBT * self.shares
        found = found / found.sum(-1, keepdim=True).clamp(min=1e-30)
        logits = torch.where(self.shares > 0, found.clamp(min=1e-30).log(), NEVER)
        return working.unflatten(0, shape), logits.unflatten(0, shape)

    def _evidence(self, working: Tensor, logits: Tensor, age: Tensor) -> Tensor:
        """(..., K) what one step adds to the memory: for each gesture how much likelier than it was beforehand."""
        ratio = torch.where(self.shares > 0, logits - self.shares.clamp(min=1e-30).log(), 0.0)
        sure = (2 * working - 1).clamp(min=0.0) * age.clamp(max=1.0)
        return sure * ratio / self.config.window

    def _answer(self, working: Tensor, logits: Tensor, said: Tensor) -> Tensor:
        return (1 - working) * self.none + working * (logits + said).softmax(-1)

    def _short(self, window: Window) -> Window:
        """The last `window` steps of it."""
        length = self.statistics.length
        return Window(window.values[..., -length:, :], window.started, window.age.clamp(max=length))

    def _values(self, window: Window) -> Tensor:
        """(..., N, C) in spreads; 0 before the first value."""
        values = (window.values.double() - self.statistics.centre.double()) / self.statistics.spread.double()
        age = window.age.double()
        place = torch.arange(self.context - 1, -1, -1, dtype=age.dtype, device=age.device)  # steps ago
        return values * window.started[..., None, :].double() * (place < age)[..., None].to(values.dtype)

    def _pairs(self, window: Window) -> Tensor:
        """(..., F) logarithms of power: of each sensor, as it is and against their mean, and against that mean of its
        difference from and its sum with the next one, the one after that, and so on.
        """
        length = PAIRED * self.config.window
        values = self._values(window)[..., -length:, :]
        product = values.transpose(-1, -2) @ values / window.age.double().clamp(min=1.0, max=length)[..., None]
        power = product.diagonal(dim1=-2, dim2=-1)
        single = (power + FLOOR).log()
        level = single.mean(-1, keepdim=True)
        found = [single, single - level]
        for by in range(1, self.signature.channels // 2 + 1):
            both = power + power.roll(-by, -1)
            shared = 2 * product.roll(-by, -1).diagonal(dim1=-2, dim2=-1)
            found += [((both + sign * shared).clamp(min=0.0) + FLOOR).log() - level for sign in (-1, 1)]
        return (torch.cat(found, -1).clamp(-LIMIT, LIMIT) * GRID).round() / GRID

    def _powers(self, window: Window) -> Tensor:
        """(..., PARTS + 3, C) logarithms: of the parts of the window, newest first, of all of it, of longer pasts."""
        age = window.age.double()
        squares = self._values(window).square()
        sums, counts, begin = [], [], 0
        for end in self.ends:
            stretch = squares[..., self.context - end : self.context - begin, :]
            sums.append(stretch.sum(-2))
            counts.append((age - begin).clamp(min=0.0, max=end - begin))
            begin = end
        for longer in range(PARTS, len(self.ends) + 1):  # all so far, after each stretch from the whole window on
            sums.append(torch.stack(sums[:longer]).sum(0))
            counts.append(torch.stack(counts[:longer]).sum(0))
        chosen = [*range(PARTS), *range(len(self.ends), len(sums))]
        return torch.stack([(sums[i] / counts[i].clamp(min=1.0) + FLOOR).log() for i in chosen], -2)

    def _strength(self, window: Window) -> Tensor:
        """(..., F) what tells work from rest, all but the last C of it whichever way the ring sits."""
        powers = self._powers(window)
        parts, whole, longer = powers[..., :PARTS, :], powers[..., PARTS, :], powers[..., PARTS + 1 :, :]
        level = longer[..., -1, :].mean(-1, keepdim=True)
        sizes = [each.sort(-1).values for each in (whole, parts[..., 0, :], whole - longer[..., -1, :])]
        means = parts.mean(-1)
        found = [means, parts.amax(-1), means - level, longer.mean(-1), longer.amax(-1), *sizes, whole]
        return (torch.cat(found, -1).clamp(-LIMIT, LIMIT) * GRID).round() / GRID

    def _turned(self, features: Tensor, by: int) -> Tensor:
        """(n, F) as if every sensor sat where the one `by` further on does."""
        return features.unflatten(-1, (-1, self.signature.channels)).roll(by, -1).flatten(-2)

    def fit(self, batches: Iterable[Batch], validation: Iterable[Batch] = ()) -> None:
        """Fit the forests to positions of the training windows, drawn evenly.

        Raises:
            ModelError: no label, or labels of one class alone.
        """
        mean, variance, _ = channel_statistics(batches, 0.0)
        spread = unit_where_still(variance.mean().sqrt(), mean.abs().max())  # one for all, or turning would change it
        self.statistics.calibrate(mean, spread.expand_as(mean))
        seed = torch.initial_seed() % 2**32
        strengths, statistics, pairs, labels = [], [], [], []
        for batch, places in drawn(batches, self.config.rows, seed, "ring-forest"):
            windows, _ = self.past.scan(batch.x, batch.mask, self.past.initial_state(len(batch.x)))
            for some in places.split(max(1, NUMBERS_AT_ONCE // self._width())):
                at = tuple(some.T)
                strengths.append(self._strength(windows.at(at)).float())
                statistics.append(self.statistics(self._short(windows.at(at))).float())
                pairs.append(self._pairs(windows.at(at)).float())
                labels.append(batch.target[at])
        label = torch.cat(labels)
        counts = torch.bincount(label, minlength=self.signature.classes)
        none = int(counts.argmax())
        self.none.copy_(one_hot(counts.argmax(), self.signature.classes))
        gestures = counts * (1 - self.none)
        self.shares.copy_(gestures / gestures.sum().clamp(min=1.0))
        working = label != none
        fit_class_forest(self.work, self.forest, (torch.cat(strengths).numpy(), working.long().numpy()), seed)
        if int((gestures > 0).sum()) < 2:
            return
        made = label[working].numpy().astype(np.int64)
        channels = self.signature.channels
        turns = sorted({0, self.config.turn % channels, -self.config.turn % channels})
        of_pairs = replace(self.forest, leaf_rows=PAIR_LEAF, column_share=PAIR_SHARE)
        for features, upright, turned, forest, extra in (
            (statistics, self.upright, self.turned, self.forest, False),
            (pairs, self.upright_pairs, self.turned_pairs, of_pairs, True),
        ):
            seen = torch.cat(features)[working]
            fit_class_forest(upright, forest, (seen.numpy(), made), seed, extra=extra)
            if len(turns) > 1:
                rows = torch.cat([self._turned(seen, by) for by in turns]).numpy()
                fit_class_forest(turned, forest, (rows, np.tile(made, len(turns))), seed, extra=extra)
