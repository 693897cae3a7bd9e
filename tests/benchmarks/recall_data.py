"""Trials that only a memory can answer: recall of pairs, needles, selective copies, lists, and patterns that return.

Trials of tokens share one vocabulary, and every task fills whatever length it is asked for, so neither a token nor the
length tells which task it is or how much it holds. What is asked and when is in the trial itself; the answer is due at
the token that asks, and everything else is left out of the loss. Recall in order is by chaining: the answers so far are
given, so that one mistake does not spoil the next (serial recall after WorM, arXiv 2307.10768; associative recall after
arXiv 2312.04927; selective copying after arXiv 2312.00752).

Shapes: B trials, T tokens, n pairs or items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

BLANK, RECALL = 0, 1
SYMBOLS = 32  # keys, and as many values
KEYS = slice(2, 2 + SYMBOLS)
VALUES = slice(2 + SYMBOLS, 2 + 2 * SYMBOLS)
VOCABULARY = 2 + 2 * SYMBOLS
UNASKED = -100  # target where nothing is asked; cross_entropy's ignore_index
CHANCE = 1 / SYMBOLS  # for one that knows that an answer is a value


class Trials(NamedTuple):
    tokens: Tensor  # (B, T) long
    targets: Tensor  # (B, T) long; UNASKED where nothing is asked
    item: Tensor  # (B, T) long; which pair or item is asked, in the order in which they came; -1 where nothing is


def asked(logits: Tensor, trials: Trials) -> tuple[Tensor, Tensor, Tensor]:
    """(n, VOCABULARY) logits, (n,) targets and items where something is asked: all that a loss or a score may see.

    logits: (B, T, VOCABULARY).
    """
    there = trials.targets != UNASKED
    return logits[there], trials.targets[there], trials.item[there]


def _distinct(symbols: slice, trials: int, count: int, random: torch.Generator) -> Tensor:
    """(trials, count) different symbols each."""
    order = torch.rand(trials, symbols.stop - symbols.start, generator=random).argsort(-1)
    return symbols.start + order[:, :count]


def _any(symbols: slice, shape: tuple[int, ...], random: torch.Generator) -> Tensor:
    return torch.randint(symbols.start, symbols.stop, shape, generator=random)


def _places(slots: int, trials: int, count: int, random: torch.Generator) -> Tensor:
    """(trials, count) different places out of `slots`, rising."""
    return torch.rand(trials, slots, generator=random).argsort(-1)[:, :count].sort(-1).values


def _blank(trials: int, length: int) -> Trials:
    tokens = torch.full((trials, length), BLANK)
    return Trials(tokens, torch.full_like(tokens, UNASKED), torch.full_like(tokens, -1))


def _ask(trial: Trials, places: Tensor, questions: Tensor, answers: Tensor, items: Tensor) -> None:
    trial.tokens.scatter_(1, places, questions)
    trial.targets.scatter_(1, places, answers)
    trial.item.scatter_(1, places, items)


def _check(task: str, length: int, least: int, why: str) -> None:
    if length < least:
        raise ValueError(f"{task} of {why} needs a length of at least {least} tokens, got {length}.")


@dataclass(frozen=True)
class AssociativeRecall:
    """Pairs of a key and a value in the first half; in the second, every key once, in any order, between blanks.

    A quarter as many pairs as tokens unless `pairs` says how many; then blanks stand between the pairs too.
    """

    name: ClassVar[str] = "associative recall"
    pairs: int | None = None

    def __call__(self, length: int, trials: int, random: torch.Generator) -> Trials:
        pairs = length // 4 if self.pairs is None else self.pairs
        if not 1 <= pairs <= SYMBOLS:
            raise ValueError(f"there are {SYMBOLS} keys, so 1 to {SYMBOLS} pairs; a length of {length} has {pairs}.")
        _check(self.name, length, 4 * pairs, f"{pairs} pairs")
        half = length // 2
        trial = _blank(trials, length)
        keys, values = _distinct(KEYS, trials, pairs, random), _any(VALUES, (trials, pairs), random)
        # A pair is two tokens: choose among places of which every pair leaves out one.
        stored = _places(half - pairs, trials, pairs, random) + torch.arange(pairs)
        trial.tokens.scatter_(1, stored, keys)
        trial.tokens.scatter_(1, stored + 1, values)
        order = torch.rand(trials, pairs, generator=random).argsort(-1)
        places = half + _places(length - half, trials, pairs, random)
        _ask(trial, places, keys.gather(1, order), values.gather(1, order), order)
        return trial


@dataclass(frozen=True)
class Needle:
    """A few pairs lost in a stream of other values; their keys are asked at the very end."""

    name: ClassVar[str] = "needle"
    pairs: int = 4

    def __call__(self, length: int, trials: int, random: torch.Generator) -> Trials:
        _check(self.name, length, 3 * self.pairs, f"{self.pairs} pairs")
        trial = _blank(trials, length)
        trial.tokens.copy_(_any(VALUES, (trials, length), random))
        keys, values = _distinct(KEYS, trials, self.pairs, random), _any(VALUES, (trials, self.pairs), random)
        stored = _places(length - 2 * self.pairs, trials, self.pairs, random) + torch.arange(self.pairs)
        trial.tokens.scatter_(1, stored, keys)
        trial.tokens.scatter_(1, stored + 1, values)
        order = torch.rand(trials, self.pairs, generator=random).argsort(-1)
        places = (length - self.pairs + torch.arange(self.pairs)).expand(trials, -1)
        _ask(trial, places, keys.gather(1, order), values.gather(1, order), order)
        return trial


def _recall_in_order(trial: Trials, items: Tensor, begin: int) -> None:
    """From `begin` on: RECALL asks for the first item, and every item for the one after it."""
    trials, count = items.shape
    cues = torch.cat([torch.full((trials, 1), RECALL), items[:, :-1]], 1)
    places = (begin + torch.arange(count)).expand(trials, -1)
    _ask(trial, places, cues, items, torch.arange(count).expand(trials, -1))


@dataclass(frozen=True)
class SelectiveCopy:
    """Items scattered over blanks; then all of them in order."""

    name: ClassVar[str] = "selective copy"
    items: int = 8

    def __call__(self, length: int, trials: int, random: torch.Generator) -> Trials:
        _check(self.name, length, 2 * self.items, f"{self.items} items")
        trial = _blank(trials, length)
        items = _distinct(VALUES, trials, self.items, random)
        trial.tokens.scatter_(1, _places(length - self.items, trials, self.items, random), items)
        _recall_in_order(trial, items, length - self.items)
        return trial


@dataclass(frozen=True)
class SerialRecall:
    """A list of items, a pause, and all of them in order. What the list and the pause leave of the length comes before.

    `items` None draws one length of list for all trials, 2 to `most`.
    """

    name: ClassVar[str] = "serial recall"
    items: int | None = None
    most: int = 16
    pause: int = 4

    def __call__(self, length: int, trials: int, random: torch.Generator) -> Trials:
        count = self.items
        if count is None:
            count = int(torch.randint(2, self.most + 1, (), generator=random))
        _check(self.name, length, 2 * count + self.pause + 1, f"{count} items and a pause of {self.pause}")
        trial = _blank(trials, length)
        items = _distinct(VALUES, trials, count, random)
        begin = length - count
        trial.tokens[:, begin - self.pause - count : begin - self.pause] = items
        _recall_in_order(trial, items, begin)
        return trial


class Recurring(NamedTuple):
    """A numeric series in which patterns return, in units of its own standard deviation."""

    values: Tensor  # (B, T + 1): T inputs, and the value after each
    occurrence: Tensor  # (B, T) long; how often the next value's pattern had been complete before, 0 the first time
    phase: Tensor  # (B, T) long; place of the next value within its pattern


@dataclass(frozen=True)
class Regimes:
    """All patterns in random order, then all of them again in another order, and so on: each a stretch of an AR(1).

    The patterns of a series are its own, so what returns can be known from that series alone.
    """

    name: ClassVar[str] = "recurring regimes"
    patterns: int = 2
    duration: int = 8  # steps of a pattern
    persistence: float = 0.5  # correlation of neighbouring values within a pattern
    noise: float = 0.05  # standard deviation of what is added to every value anew

    def __call__(self, length: int, trials: int, random: torch.Generator) -> Recurring:
        rounds = -(-(length + 1) // (self.patterns * self.duration))
        shocks = torch.randn(trials, self.patterns, self.duration, generator=random)
        library = [shocks[..., 0]]
        for step in range(1, self.duration):
            fresh = (1 - self.persistence**2) ** 0.5 * shocks[..., step]
            library.append(self.persistence * library[-1] + fresh)
        patterns = torch.stack(library, -1)  # (B, patterns, duration)
        order = torch.rand(trials, rounds, self.patterns, generator=random).argsort(-1).flatten(1)
        clean = patterns.gather(1, order[..., None].expand(-1, -1, self.duration)).flatten(1)[:, : length + 1]
        values = clean + self.noise * torch.randn(clean.shape, generator=random)
        steps = torch.arange(1, length + 1)
        occurrence = (steps // (self.patterns * self.duration)).expand(trials, -1)
        return Recurring(values, occurrence, (steps % self.duration).expand(trials, -1))
