"""A linear memory of a forecaster's own errors, which goes on learning where the forecaster runs.

What a forecast made H steps ago got wrong is known now. The memory is asked for that error with a *key* that describes
the forecast, takes what it missed, and corrects itself by the delta rule with forgetting:

    e_t = r_t - k_t M_{t-1},   M_t = keep_t M_{t-1} + rate_t k_t' e_t,   rate_t = weight_t rate / (1 + rate |k_t|^2)

It is read with the key of the forecast that is made now. This is Titans' recurrence (arXiv 2501.00663, Eq. 11-13) for a
matrix without momentum and with constant gates; the denominator makes the step implicit, so that no rate diverges
(normalised least mean squares). `scan` is the dual form: the e_t of a chunk solve a unit lower triangular system, so no
memory per token is needed.

Shapes: B series, T time, L lags, D width of a key, H horizon, n tokens of a chunk.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from models.contract import State

LARGEST = 10.0  # of a key or an error, in their usual sizes: what is larger is a spike, and no lesson
CHUNK = 64


class ErrorMemory(nn.Module):
    """Learns at every step from the L lags of H steps ago and the H values that came after them."""

    to_key: Tensor

    def __init__(self, lags: int, horizon: int, keys: int, rate: float, span: float) -> None:
        super().__init__()
        self.lags, self.horizon, self.rate = lags, horizon, rate
        self.keep = math.exp(-1 / span)
        self.register_buffer("to_key", torch.zeros(lags, keys))

    def initial_state(self, batch: int) -> State:
        keys = self.to_key.shape[1]
        return {
            "errors.present": self.to_key.new_zeros(batch, self.lags + self.horizon),
            "errors.memory": self.to_key.new_zeros(batch, keys, self.horizon),
        }

    def step(self, window: Tensor, present: Tensor, weight: Tensor, state: State) -> tuple[Tensor, State]:
        """What is to be added to the forecast that is made now, (B, H).

        window: (B, L + H) the last values, relative to the level and in spreads; present: (B, 1); weight: (L, H) of the
        forecaster.
        """
        seen = torch.cat([state["errors.present"][:, 1:], present], 1)
        key, error, query = self._tokens(window, weight)
        rate, keep = self._gates(key, present, seen.sum(1, keepdim=True))
        missed = error - (key[:, None] @ state["errors.memory"])[:, 0]
        memory = keep[..., None] * state["errors.memory"] + (rate * key)[..., None] * missed[:, None]
        return (query[:, None] @ memory)[:, 0], {"errors.present": seen, "errors.memory": memory}

    def scan(self, window: Tensor, present: Tensor, weight: Tensor, state: State) -> tuple[Tensor, State]:
        """The same for T steps: window (B, T, L + H), present (B, T, 1) give (B, T, H)."""
        size = self.lags + self.horizon
        seen = torch.cat([state["errors.present"], present[..., 0]], 1)  # (B, L + H + T)
        sums = torch.cat([seen.new_zeros(len(seen), 1), seen.cumsum(1)], 1)
        counts = (sums[:, size + 1 :] - sums[:, 1:-size])[..., None]  # (B, T, 1)
        answers, memory = [], state["errors.memory"]
        for begin in range(0, window.shape[1], CHUNK):
            part = slice(begin, begin + CHUNK)
            key, error, query = self._tokens(window[:, part], weight)
            rate, keep = self._gates(key, present[:, part], counts[:, part])
            answer, memory = _chunk(key, error, query, rate, keep, memory)
            answers.append(answer)
        return torch.cat(answers, 1), {"errors.present": seen[:, -size:].contiguous(), "errors.memory": memory}

    def _tokens(self, window: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Key and error of the forecast made H steps ago, and key of the one that is made now; within bounds."""
        old, now, came = window[..., : self.lags], window[..., -self.lags :], window[..., -self.horizon :]
        parts = (old @ self.to_key, came - old @ weight, now @ self.to_key)
        key, error, query = (part.clamp(-LARGEST, LARGEST) for part in parts)
        return key, error, query

    def _gates(self, key: Tensor, present: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """Rate and keep, each (..., 1). count: how many of the window's values were observed.

        The rest were imputed: a window teaches the less the more of it was, and nothing if a tenth was, as before the
        stream is L + 0.9 H steps old.
        """
        share = count / (self.lags + self.horizon)
        weight = present * relu(1 - 10 * (1 - share))
        rate = weight * self.rate / (1 + self.rate * key.square().sum(-1, keepdim=True))
        return rate, 1 - present * (1 - self.keep)


def _chunk(
    key: Tensor, error: Tensor, query: Tensor, rate: Tensor, keep: Tensor, memory: Tensor
) -> tuple[Tensor, Tensor]:
    """Answers (B, n, H) to the queries, each after the lesson of its own step, and the memory after the last.

    key, query: (B, n, D); error: (B, n, H); rate, keep: (B, n, 1); memory: (B, D, H).
    """
    kept = keep[..., 0].log().cumsum(1)  # (B, n): log of what is left of `memory`
    before = torch.cat([torch.zeros_like(kept[:, :1]), kept[:, :-1]], 1)
    left = (kept[:, :, None] - kept[:, None, :]).tril().exp()  # [t, j]: what is left of lesson j after t
    left_before = (before[:, :, None] - kept[:, None, :]).tril(-1).exp()
    lessons = rate * key
    inside = (key @ lessons.transpose(1, 2) * left_before).tril(-1)
    outside = error - before.exp()[..., None] * (key @ memory)
    missed = torch.linalg.solve_triangular(inside, outside, upper=False, unitriangular=True)
    answers = kept.exp()[..., None] * (query @ memory) + (query @ lessons.transpose(1, 2) * left).tril() @ missed
    memory = kept[:, -1].exp()[:, None, None] * memory
    return answers, memory + (left[:, -1, :, None] * lessons).transpose(1, 2) @ missed
