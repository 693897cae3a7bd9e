"""What a regression on the past sees of a stream: lags, season differences, rolling statistics, phase and covariates.

All of it comes from a ring buffer in the state, so that a step, a scan and a graph compute it from the same numbers.
A tree jumps where a feature crosses a threshold: two forms of one computation that differ in the last digit must not
fall on two sides of it. Features are therefore computed in float64 relative to the last value, whatever the model's
type, and for trees rounded to 1 / GRID of a scale; thresholds lie between two multiples of that (`models.trees`).

Shapes: B series, T time, C channels, N buffer, H horizon, S season, F features, A covariates known ahead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models.contract import LARGEST, ModelError, Signature, State
from models.observation import LagBuffer

GRID = 256  # features are multiples of 1 / GRID
LIMIT = 4096.0  # of a feature, in scales: LIMIT * GRID is a whole number that float32 holds exactly
SMALLEST = 1e-30  # of a scale, in the data's unit
RECENT = 24  # lags that are features by themselves
DIFFERENCES = 12  # season differences that are
SHORT = 4  # steps of the shortest rolling window
SPREAD_SHARE = 0.01  # of the mean absolute deviation: the scale's floor in a stream that repeats itself exactly


class Past(NamedTuple):
    """What is known of each stream at one time; leading dimensions as of the call."""

    last: Tensor  # (..., 1) last value, in the data's unit, float64
    values: Tensor  # (..., N) the last values less the last one, oldest first, float64
    scale: Tensor  # (..., 1) in the data's unit, float64
    covariates: Tensor  # (..., K) standardised
    position: Tensor  # (..., 1) steps since the stream began, modulo the season; 0 where phases are no features
    # (..., H, 2 A) what is known ahead, standardised: at each lead, and since one season before; NaN where it is not
    # known after all, None without any
    ahead: Tensor | None = None

    def at(self, index: Any) -> Past:
        return Past._make(None if part is None else part[index] for part in self)

    @classmethod
    def joined(cls, parts: Sequence[Past]) -> Past:
        """One behind the other along the first dimension."""
        return cls._make(None if own[0] is None else torch.cat(own) for own in zip(*parts, strict=True))


class LagFeatures(nn.Module):
    """The features of each lead, from the last N = max(lags, 2 S) values of the target and of the covariates.

    Everything of the target is relative to its last value and in units of its scale, the mean absolute season
    difference in the buffer (what a seasonal naive forecast errs by), so that series of any size share a model. Of the
    lead h: the value one season before t + h, which the forecast is relative to, that of two seasons before, their
    neighbours and the lead itself; common to all leads: the last values, the last season differences, mean, mean
    absolute deviation, maximum and minimum of rolling windows, and the change from the season before. Covariates are
    standardised by the training data. Of one that is known ahead, a feature of the lead h is its value at t + h and
    the difference from what it was where the forecast is relative to; of another, which all leads have in common, the
    last value and its difference from a season ago.

    Calendar features of a time stamp enter as covariates known ahead: a step is not told its time. What it can count is
    the `phase`, steps modulo the season since the stream began; it means the same for all series only if all begin
    alike. With `recursive` a forecast of a lead is relative to one season before it, which may be a forecast itself.
    """

    centre: Tensor
    spread: Tensor
    reference: Tensor
    before: Tensor
    wave: Tensor

    def __init__(self, signature: Signature, lags: int, phase: bool, rounded: bool, recursive: bool = False) -> None:
        super().__init__()
        season, horizon = signature.season, signature.horizon
        self.season, self.horizon, self.phase, self.rounded = season, horizon, phase, rounded
        self.length = max(lags, 2 * season)  # N
        self.recent = min(self.length - 1, RECENT)
        self.differences = min(self.length - season, DIFFERENCES)
        self.windows = sorted({min(SHORT, self.length), season, 2 * season, self.length} - {1})
        self.buffer = LagBuffer(signature.channels, self.length)
        self.register_buffer("centre", torch.zeros(signature.channels - 1))
        self.register_buffer("spread", torch.ones(signature.channels - 1))
        leads = torch.arange(1, horizon + 1)
        self.register_buffer("reference", self.length - 1 + leads - -(-leads // season) * season, persistent=False)
        self.known_ahead = signature.future  # A
        # In the buffer and what is known ahead behind it.
        before = self.length - 1 + leads - season if recursive else self.reference.clone()
        self.register_buffer("before", before, persistent=False)
        angles = 2 * math.pi * torch.arange(season, dtype=torch.float64) / season
        self.register_buffer("wave", torch.stack([angles.sin(), angles.cos()], 1).float(), persistent=False)

    @property
    def features(self) -> int:
        """F."""
        common = self.recent + self.differences + 4 * len(self.windows) + 1 + 2 * self.centre.shape[0]
        return common + 5 + (2 if self.phase else 0)  # each covariate gives two, in common or to a lead

    def calibrate(self, centre: Tensor, spread: Tensor) -> None:
        """Mean and standard deviation of the covariates in the training data, each (C - 1,)."""
        self.centre.copy_(centre)
        self.spread.copy_(spread)

    def initial_state(self, batch: int) -> State:
        state = self.buffer.initial_state(batch)
        return {"phase.position": torch.zeros_like(state["lags.started"][:, :1])} | state if self.phase else state

    def step(self, x: Tensor, mask: Tensor, state: State, future: Tensor | None = None) -> tuple[Past, State]:
        """x, mask: (B, C); future: (B, H, A)."""
        lags, after = self.buffer.step(x, mask, state)
        position = torch.zeros_like(x[:, :1])
        if self.phase:
            position = torch.remainder(state["phase.position"] + 1, self.season)
            after = {"phase.position": position} | after
        return self._past(*lags, position, future), after

    def after(self, state: State, future: Tensor | None = None) -> Past:
        """What was known after the observation that gave the state; future: (B, H, A)."""
        started = state["lags.started"]
        position = state["phase.position"] if self.phase else torch.zeros_like(started[:, :1])
        return self._past(state["lags.values"], started, position, future)

    def scan(self, x: Tensor, mask: Tensor, state: State, future: Tensor | None = None) -> tuple[_Windows, State]:
        """x, mask: (B, T, C), future: (B, T, H, A); what was seen is read off with `_Windows.past`, for as many times
        as memory allows."""
        lags, after = self.buffer.scan(x, mask, state)
        position = torch.zeros_like(x[..., :1])
        if self.phase:
            steps = torch.arange(1, x.shape[1] + 1, device=x.device, dtype=x.dtype)[:, None]
            position = torch.remainder(state["phase.position"][:, None] + steps, self.season)
            after = {"phase.position": position[:, -1]} | after
        return _Windows(self, *lags, position, future), after

    def _past(self, window: Tensor, started: Tensor, position: Tensor, future: Tensor | None) -> Past:
        """window: (..., N, C), started: (..., C), position: (..., 1), future: (..., H, A)."""
        target = window[..., 0].double()
        values = target - target[..., -1:]
        difference = (values[..., self.season :] - values[..., : -self.season]).abs().mean(-1, keepdim=True)
        deviation = (values - values.mean(-1, keepdim=True)).abs().mean(-1, keepdim=True)
        scale = torch.maximum(difference, SPREAD_SHARE * deviation).clamp(min=SMALLEST)
        others = (window[..., 1:].double() - self.centre.double()) / self.spread.double()
        others = others * started[..., None, 1:].double()  # a channel that never spoke is at its mean
        ahead = None
        if self.known_ahead:
            if future is None:
                raise ModelError(f"this model takes {self.known_ahead} covariates known ahead, and none were given.")
            ahead = self._ahead(others[..., -self.known_ahead :], future)
            others = others[..., : -self.known_ahead]
        changes = others[..., -1, :] - others[..., -1 - self.season, :]
        return Past(target[..., -1:], values, scale, torch.cat([others[..., -1, :], changes], -1), position, ahead)

    def _ahead(self, window: Tensor, future: Tensor) -> Tensor:
        """(..., H, 2 A) of the standardised past (..., N, A) of what is known ahead, and of what it will be."""
        centre, spread = self.centre[-self.known_ahead :].double(), self.spread[-self.known_ahead :].double()
        values = (torch.where(future.abs() <= LARGEST, future, torch.nan).double() - centre) / spread
        return torch.cat([values, values - torch.cat([window, values], -2)[..., self.before, :]], -1)

    def nothing(self) -> Past:
        """Of no stream at all."""
        return self._past(
            self.centre.new_zeros(0, self.length, 1 + len(self.centre)),
            self.centre.new_zeros(0, 1 + len(self.centre)),
            self.centre.new_zeros(0, 1),
            self.centre.new_zeros(0, self.horizon, self.known_ahead),
        )

    def references(self, past: Past) -> Tensor:
        """(..., H) what the forecast of each lead is relative to: one season before it, less the last value."""
        return past.values[..., self.reference]

    def forward(self, past: Past, leads: slice = slice(None)) -> Tensor:
        """(..., h, F) of the chosen leads, in scales, as float64; multiples of 1 / GRID where `rounded`."""
        values, season = past.values, self.season
        common = [
            -values[..., -1 - self.recent : -1],
            values[..., -self.differences :] - values[..., -self.differences - season : self.length - season],
        ]
        for length in self.windows:
            window = values[..., -length:]
            mean = window.mean(-1, keepdim=True)
            common += [mean, (window - mean).abs().mean(-1, keepdim=True)]
            common += [window.amax(-1, keepdim=True), window.amin(-1, keepdim=True)]
        two = values[..., -2 * season :]
        common.append(two[..., season:].mean(-1, keepdim=True) - two[..., :season].mean(-1, keepdim=True))
        scaled = torch.cat(common, -1) / past.scale
        shared = torch.cat([scaled, past.covariates], -1)[..., None, :]
        at = self.reference[leads]
        one = values[..., at]
        own = [
            one,
            one - values[..., at - season],
            values[..., (at + 1).clamp(max=self.length - 1)] - one,
            one - values[..., at - 1],
        ]
        lead = torch.arange(1, self.horizon + 1, device=values.device, dtype=values.dtype)[leads]
        parts = [
            shared.expand(*shared.shape[:-2], len(at), shared.shape[-1]),
            torch.stack(own, -1) / past.scale[..., None],
            lead[:, None].expand(*one.shape, 1),
        ]
        if past.ahead is not None:
            parts.append(past.ahead[..., leads, :].nan_to_num(0.0))
        if self.phase:
            ahead = torch.remainder(past.position.double() + lead, season).long()
            parts.append(self.wave.double()[ahead])
        features = torch.cat(parts, -1).clamp(-LIMIT, LIMIT)
        return (features * GRID).round() / GRID if self.rounded else features

    def extended(self, past: Past, value: Tensor) -> Past:
        """The past after one more step; value: (..., 1) in the data's unit, relative to the last one. Same scale."""
        values = torch.cat([past.values[..., 1:], value], -1) - value
        position = torch.remainder(past.position + 1, self.season) if self.phase else past.position
        ahead = past.ahead if past.ahead is None else past.ahead.roll(-1, -2)  # nobody asks beyond the horizon
        return past._replace(last=past.last + value, values=values, position=position, ahead=ahead)


class _Windows(NamedTuple):
    """The buffers of a scan, (B, T, ...), not yet read: their features take many times their memory."""

    reader: LagFeatures
    values: Tensor
    started: Tensor
    position: Tensor
    future: Tensor | None

    def past(self, index: Any) -> Past:
        """Of the chosen series and times."""
        future = None if self.future is None else self.future[index]
        return self.reader._past(self.values[index], self.started[index], self.position[index], future)
