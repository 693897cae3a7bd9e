"""Random convolution kernels, how often they fire averaged over time, read by a small network: MiniRocket as a step.

MiniRocket (Dempster, Schmidt & Webb, KDD 2021, arXiv 2012.08791) convolves a series with 84 fixed kernels at several
dilations and keeps, for each of several thresholds, the proportion of values above it. Here every proportion (from -1
for none to 1 for all) is a running mean over a short and a long window and part of the state, so that there is a
prediction at every step for the cost of one step; and the head is trained at all lengths of the past together, told how
much of it there was. Further from the paper: the threshold is soft, so that rounding cannot flip a value; kernels see
rectified channels too, for signals that carry their meaning in their power, such as EMG; because the kernels sum to 0,
thresholds on the channels themselves keep the level; and how often a channel was missing counts too. Kernels are drawn,
thresholds are set from the training data, and neither is learned.

A kernel that meets the beginning of a past sees the step from nothing to the level of the channels there, and levels
such as a heading drift. With `moving` a second eye looks beside the first: only at channels that do not stand, over the
long window alone, and counting only once a kernel has its whole past. Each has a head and a loss of its own; their
logits are averaged.

Shapes: B series, T time, C channels, V views of them (2 C), K thresholds of a dilation, R running means of each.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, cross_entropy, dropout, gelu

from models.contract import Batch, ModelError, Signature, State, StepModel, Trainable, first_state
from models.observation import REACH, RunningNormaliser, channel_statistics

TAPS = 9  # of a kernel
KERNELS = 84  # all ways to choose three of nine taps
LARGEST_LEVEL = 8.0  # in training standard deviations; a spike beyond it says no more than one at it
SOFTNESS = 0.2  # half of the width of a threshold, in standard deviations of what it cuts
AGES = 8  # how many functions of the length of the past the head sees
SAMPLE = 100_000  # values at most from which one threshold is set
SAMPLE_WINDOWS = 2  # of each batch, from which thresholds and statistics are set
LEAST_DEVIATION = 0.02  # of a share
NEVER_CHANGES = 1e-4  # a share that deviates less in training says nothing, whatever it does later
IGNORED = 1e6  # deviation that such a share is given
STANDS = 0.25  # share of a channel's variance that is between windows, from which on it stands rather than moves


@dataclass(frozen=True)
class RocketConfig:
    dilations: int = 6  # 1, 2, 4 ...; a kernel sees 8 * 2**(dilations - 1) + 1 steps
    thresholds: int = 6  # of each kernel
    levels: int = 24  # thresholds of each channel itself
    short: int = 32  # steps of the short running mean
    long: int = 512  # steps of the long one; both are plain means until then
    hidden: int = 256
    dropout: float = 0.5
    positions: int = 12  # of a window that the head learns from at a time; 0 for all
    smoothing: float = 0.05  # of the labels
    prior: int = 100_000  # observations that the training statistics weigh against a stream's
    moving: bool = False  # a second eye, which sees no levels: they may drift

    def __post_init__(self) -> None:
        least = {"dilations": 1, "thresholds": 1, "levels": 1, "short": 1, "long": 1, "hidden": 1, "positions": 0}
        wrong = [name for name, low in least.items() if getattr(self, name) < low]
        if wrong or not 0 <= self.dropout < 1 or not 0 <= self.smoothing < 1 or self.prior < 1:
            raise ModelError(
                "dilations, thresholds, levels, short, long, hidden and prior are at least 1, positions at least 0, "
                "dropout and smoothing from 0 to below 1; got "
                + ", ".join(f"{name}={value}" for name, value in vars(self).items())
            )


class Eye(nn.Module):
    """Kernels, what they cut, and a head that reads it; a `patient` one waits until a kernel has its whole past."""

    def __init__(self, signature: Signature, config: RocketConfig, patient: bool) -> None:
        super().__init__()
        self.config = config
        self.dilations = [2**power for power in range(config.dilations)]
        self.waits = [(TAPS - 1) * dilation if patient else 0 for dilation in self.dilations]
        self.windows = (config.long,) if patient else (config.short, config.long)
        channels = signature.channels
        for index in range(config.dilations):
            kernels = torch.zeros(KERNELS, 2 * channels, TAPS) if patient else random_kernels(2 * channels)
            self.register_buffer(f"kernels{index}", kernels)
            self.register_buffer(f"cuts{index}", torch.zeros(KERNELS, config.thresholds))
            self.register_buffer(f"softness{index}", torch.ones(KERNELS, 1))
        self.sizes = [KERNELS * config.thresholds] * config.dilations
        if not patient:
            self.register_buffer("level_cuts", torch.linspace(-2, 2, config.levels).repeat(channels, 1))
            self.sizes.append(channels * (config.levels + 1))
            self.waits.append(0)
        for index, size in enumerate(self.sizes):
            self.register_buffer(f"mean{index}", torch.zeros(self.means_of(size)))
            self.register_buffer(f"std{index}", torch.ones(self.means_of(size)))
        self.read = nn.ModuleList(nn.Linear(self.means_of(size), config.hidden) for size in self.sizes)
        self.gate = nn.Linear(AGES, config.hidden)
        self.shift = nn.Linear(AGES, config.hidden)
        nn.init.zeros_(self.gate.weight)
        nn.init.ones_(self.gate.bias)
        self.head = nn.Linear(config.hidden, signature.classes)

    def means_of(self, size: int) -> int:
        """How many running means of `size` kernels and thresholds there are."""
        return len(self.windows) * size

    def look_at(self, channels: Tensor) -> None:
        """Draw the kernels over the chosen channels (C,) alone, and their sizes."""
        views = torch.cat([channels, channels]).nonzero()[:, 0]
        for index in range(len(self.dilations)):
            kernels = self.get_buffer(f"kernels{index}")
            kernels.zero_()[:, views] = random_kernels(len(views))

    def set_cuts(self, views: list[Tensor]) -> None:
        """Evenly spaced quantiles of what each kernel makes of the views (B, past + T, V)."""
        even = torch.linspace(0, 1, self.config.thresholds + 2)[1:-1]
        for index in range(len(self.dilations)):
            convolved = [self._convolved(index, part).transpose(0, 1).flatten(1) for part in views]
            found = thinned(torch.cat(convolved, 1))  # (84, n)
            # Each kernel cuts at quantiles of its own, a little beside the next one's, as in the paper.
            moved = (even + (torch.rand(KERNELS, 1) - 0.5) * even[0]).clamp(0.01, 0.99)
            place = (moved * (found.shape[1] - 1)).long()
            self.get_buffer(f"cuts{index}").copy_(found.sort(1).values.gather(1, place))
            self.get_buffer(f"softness{index}").copy_((SOFTNESS * found.std(1, keepdim=True)).clamp(min=1e-3))

    def set_level_cuts(self, levels: Tensor) -> None:
        """levels: (C, n)."""
        cuts = torch.quantile(levels, torch.linspace(0, 1, self.config.levels + 2)[1:-1], dim=1).T
        self.get_buffer("level_cuts").copy_(cuts)

    def standardise(self, moments: list[Tensor], count: int) -> None:
        """So that the head meets shares of mean 0 and deviation 1; moments: (2, R K), sums of shares and squares."""
        for index, total in enumerate(moments):
            mean, square = total / count
            self.get_buffer(f"mean{index}").copy_(mean)
            deviation = (square - mean**2).clamp(min=0).sqrt()
            std = torch.where(deviation > NEVER_CHANGES, deviation + LEAST_DEVIATION, IGNORED)
            self.get_buffer(f"std{index}").copy_(std)

    def forward(self, shares: list[Tensor], near: Tensor) -> Tensor:
        """Logits (B, T, classes) from shares (B, T, R K) and functions of how much past they are of (B, T, AGES)."""
        hidden: Tensor | float = 0.0
        for index, share in enumerate(shares):
            z = (share - self.get_buffer(f"mean{index}")) / self.get_buffer(f"std{index}")
            hidden = hidden + self.read[index](dropout(z, self.config.dropout, self.training))
        hidden = gelu(hidden * self.gate(near) + self.shift(near))
        return self.head(dropout(hidden, self.config.dropout / 2, self.training))

    def above(self, index: int, views: Tensor, level: Tensor, present: Tensor) -> Tensor:
        """(B, K, T) where each value lies, -1 below each threshold to 1 above; beside the levels, what was observed."""
        if index == len(self.dilations):
            cuts = self.get_buffer("level_cuts")
            above = softly_above(clamped(level).transpose(1, 2), cuts, torch.full((1, 1), SOFTNESS))
            return torch.cat([above, 2 * present.transpose(1, 2) - 1], 1)
        found = self._convolved(index, views)
        return softly_above(found, self.get_buffer(f"cuts{index}"), self.get_buffer(f"softness{index}"))

    def _convolved(self, index: int, views: Tensor) -> Tensor:
        """views (B, past + T, V) -> (B, 84, T)."""
        dilation = self.dilations[index]
        start = (TAPS - 1) * (self.dilations[-1] - dilation)
        return conv1d(views[:, start:].transpose(1, 2), self.get_buffer(f"kernels{index}"), dilation=dilation)


class Rocket(StepModel, Trainable):
    """Normalise, convolve, cut, average over time, read."""

    tasks = ("classify",)
    ages: Tensor

    def __init__(self, signature: Signature, config: RocketConfig) -> None:
        super().__init__(signature)
        self.config = config
        self.normaliser = RunningNormaliser(signature.channels, max(config.prior, REACH), config.prior)
        self.past = (TAPS - 1) * 2 ** (config.dilations - 1)  # steps before the present one that a kernel sees
        self.register_buffer("ages", torch.linspace(0, math.log(1 + config.long), AGES))
        self.eyes = nn.ModuleList(Eye(signature, config, patient) for patient in (False, True)[: 1 + config.moving])

    @property
    def _eyes(self) -> list[tuple[str, Eye]]:
        """Each with the name of its part of the state."""
        return list(zip(("shares", "moving"), self.eyes, strict=False))  # type: ignore[arg-type]

    def initial_state(self, batch: int) -> State:
        shares = {
            f"{name}{index}": self.zeros(batch, eye.means_of(size))
            for name, eye in self._eyes
            for index, size in enumerate(eye.sizes)
        }
        return self.normaliser.initial_state(batch) | {
            "age": self.zeros(batch, 1),
            "past": self.zeros(batch, self.past, 2 * self.signature.channels),
            **shares,
        }

    def state_of_known(self, known: Tensor) -> State:
        return self.initial_state(len(known)) | self.normaliser.after(known)

    def step(self, x: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State]:
        seen, after = self.normaliser.step(x, mask, state)
        logits, rest = self._told(seen.level[:, None], seen.present[:, None], state)
        return logits[:, 0].softmax(-1), after | rest

    def scan(self, x: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State]:
        seen, after = self.normaliser.scan(x, mask, state)
        logits, rest = self._told(seen.level, seen.present, state)
        return logits.softmax(-1), after | rest

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Statistics of the channels; then the thresholds, quantiles of what they cut; then those of the shares."""
        self.normaliser.calibrate(*channel_statistics(batches, share=1e-2))
        seen = [self._seen(some_windows(batch)) for batch in batches]
        views = [self._views(level, self.initial_state(len(level))) for level, _ in seen]
        for name, eye in self._eyes:
            if name == "moving":
                eye.look_at(moving_channels([level for level, _ in seen]))
            eye.set_cuts(views)
        self._eyes[0][1].set_level_cuts(thinned(torch.cat([clamped(level).flatten(0, 1) for level, _ in seen]).T))
        self._standardise(seen)

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy at some positions of the windows, the mean of the eyes' own.

        In training at other ones each time, else evenly spaced.
        """
        known = (batch.target >= 0).any(0).nonzero()[:, 0]  # positions at which some window has a label
        if not len(known):  # as of a few windows of a long recording in which little was labelled
            return 0.0 * torch.stack([eye.head.bias.sum() for _, eye in self._eyes]).sum()
        chosen = self.config.positions
        if chosen and len(known) > chosen:
            within = torch.rand(chosen) if self.training else torch.full((chosen,), 0.5)
            known = known[((torch.arange(chosen) + within) * len(known) / chosen).long()]
        each, age = self._shares_at(*self._seen(batch), known)
        near, target = self._near(age), batch.target[:, known].flatten()
        losses = [
            cross_entropy(
                eye(shares, near).flatten(0, 1), target, ignore_index=-1, label_smoothing=self.config.smoothing
            )
            for (_, eye), shares in zip(self._eyes, each, strict=True)
        ]
        return torch.stack(losses).mean()

    def _told(self, level: Tensor, present: Tensor, state: State) -> tuple[Tensor, State]:
        """Logits (B, T, classes) and the state after."""
        age = self._age(present, state["age"])
        views = self._views(level, state)
        after = {"age": age[:, -1], "past": views[:, views.shape[1] - self.past :]}
        near, logits = self._near(age), []
        for name, eye in self._eyes:
            shares = []
            for index, wait in enumerate(eye.waits):
                above = eye.above(index, views, level, present).transpose(1, 2).contiguous()
                rates = rates_of(present, age, wait, eye.windows)
                found, after[f"{name}{index}"] = running_means(above, rates, state[f"{name}{index}"])
                shares.append(found)
            logits.append(eye(shares, near))
        return torch.stack(logits).mean(0), after

    @torch.no_grad()
    def _shares_at(self, level: Tensor, present: Tensor, positions: Tensor) -> tuple[list[list[Tensor]], Tensor]:
        """Each eye's shares (B, P, R K), and how much past there was, of windows with nothing before, at the positions.

        The means are linear in what they are of, so their weights serve for all of it: no walk through its time.
        """
        state = self.initial_state(len(level))
        age = self._age(present, state["age"])
        views = self._views(level, state)
        weights = {
            key: mean_weights(rates_of(present, age, *key), positions).flatten(1, 2)  # (B, P R, T)
            for key in {(wait, eye.windows) for _, eye in self._eyes for wait in eye.waits}
        }
        each = []
        for _, eye in self._eyes:
            found = [
                weights[wait, eye.windows] @ eye.above(index, views, level, present).transpose(1, 2)  # (B, P R, K)
                for index, wait in enumerate(eye.waits)
            ]
            each.append([share.unflatten(1, (len(positions), -1)).flatten(2) for share in found])
        return each, age[:, positions]

    def _near(self, age: Tensor) -> Tensor:
        return torch.exp(-((torch.log1p(age) - self.ages) ** 2))  # (B, T, AGES)

    @staticmethod
    def _age(present: Tensor, age: Tensor) -> Tensor:
        """How much past there is (B, T, 1)."""
        return age[:, None] + present.amax(-1, keepdim=True).cumsum(1)

    @staticmethod
    def _views(level: Tensor, state: State) -> Tensor:
        """(B, past + T, V): the channels and their sizes, behind those that the state keeps."""
        level = clamped(level)
        return torch.cat([state["past"], torch.cat([level, level.abs()], -1)], 1)

    @torch.no_grad()
    def _seen(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Levels and what of them was observed, (B, T, C) each, of windows with nothing before."""
        seen, _ = self.normaliser.scan(batch.x, batch.mask, first_state(self, batch))
        return seen.level, seen.present

    @torch.no_grad()
    def _standardise(self, windows: list[tuple[Tensor, Tensor]]) -> None:
        totals = [
            [torch.zeros(2, eye.means_of(size), dtype=torch.float64) for size in eye.sizes] for _, eye in self._eyes
        ]
        count = 0
        for level, present in windows:
            positions = torch.arange(0, level.shape[1], max(1, level.shape[1] // 16))
            each, _ = self._shares_at(level, present, positions)
            for sums, shares in zip(totals, each, strict=True):
                for total, share in zip(sums, shares, strict=True):
                    flat = share.flatten(0, 1).double()
                    total += torch.stack([flat.sum(0), flat.square().sum(0)])
            count += len(level) * len(positions)
        for (_, eye), sums in zip(self._eyes, totals, strict=True):
            eye.standardise(sums, count)


def moving_channels(levels: list[Tensor]) -> Tensor:
    """(C,) of which channels the windows (B, T, C) in `levels` differ little in their means; all, where of none."""
    means = torch.cat([level.mean(1) for level in levels])
    total = torch.cat([level.flatten(0, 1) for level in levels]).var(0)
    moves = means.var(0) <= STANDS * total
    return moves if bool(moves.any()) else torch.ones_like(moves)


def softly_above(found: Tensor, cuts: Tensor, softness: Tensor) -> Tensor:
    """(B, n, T) of n rows, cuts (n, k) of each, of a softness (n, 1) -> (B, n k, T)."""
    return torch.tanh((found / softness)[:, :, None] - (cuts / softness)[..., None]).flatten(1, 2)


def clamped(level: Tensor) -> Tensor:
    return level.clamp(-LARGEST_LEVEL, LARGEST_LEVEL)


def thinned(values: Tensor) -> Tensor:
    """(..., n) with about SAMPLE of the n left at most, evenly."""
    return values[..., :: max(1, values.shape[-1] // SAMPLE)]


def some_windows(batch: Batch) -> Batch:
    rows = torch.randperm(len(batch.x))[:SAMPLE_WINDOWS]
    return Batch(*(None if part is None else part[rows] for part in batch))  # type: ignore[arg-type]


def random_kernels(views: int) -> Tensor:
    """(84, V, 9): the paper's kernels, two thirds of their weights -1 and the others 2, each on a few of the views."""
    weights = torch.zeros(KERNELS, views, TAPS)
    for row, taps in enumerate(combinations(range(TAPS), 3)):
        kernel = torch.full((TAPS,), -1.0)
        kernel[list(taps)] = 2.0
        seen = int(2 ** (float(torch.rand(())) * math.log2(min(views, TAPS) + 1)))
        weights[row, torch.randperm(views)[:seen]] = kernel
    return weights


def rates_of(present: Tensor, age: Tensor, wait: int, windows: tuple[int, ...]) -> list[Tensor]:
    """The rates (B, T, 1) of running means over such windows, which begin after `wait` observations."""
    there = present.amax(-1, keepdim=True)
    if wait:
        age = age - wait
        there = there * age.clamp(0.0, 1.0)
    return [there / age.clamp(1.0, float(window)) for window in windows]


def running_means(values: Tensor, rates: list[Tensor], before: Tensor) -> tuple[Tensor, Tensor]:
    """m_t = m_{t-1} + rate_t (value_t - m_{t-1}) for each rate; at all times, and at the last.

    values: (B, T, K); rates: (B, T, 1) each, R of them; before: (B, R K). Returns (B, T, R K) and (B, R K).
    """
    found = []
    means = list(before.chunk(len(rates), -1))
    for t in range(values.shape[1]):
        means = [mean + rate[:, t] * (values[:, t] - mean) for mean, rate in zip(means, rates, strict=True)]
        found.append(torch.cat(means, -1))
    return torch.stack(found, 1), found[-1]


def mean_weights(rates: list[Tensor], positions: Tensor) -> Tensor:
    """(B, P, R, T): how much each value weighs in the running means at the P positions, with nothing before.

    rates: (B, T, 1) each, R of them.
    """
    wanted = positions.tolist()
    weights = []
    for rate in rates:
        found, mean = {}, torch.zeros_like(rate[..., 0])  # (B, T)
        for t in range(max(wanted) + 1):
            mean = mean * (1 - rate[:, t])
            mean[:, t] = rate[:, t, 0]
            if t in wanted:
                found[t] = mean
        weights.append(torch.stack([found[t] for t in wanted], 1))
    return torch.stack(weights, 2)
