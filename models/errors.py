"""A linear memory of a forecaster's own errors, which goes on learning where the forecaster runs.

What a forecast made H steps ago got wrong is known now. The memory M is asked for that error with a *key* that
describes the forecast and is told the error; it is read with the key of the forecast that is made now. Titans' memory
(arXiv 2501.00663, Eq. 11-13) takes one gradient step of the inner loss at a token. A linear one can do what that step
aims at: hold the minimiser of the loss of all tokens so far, older ones forgotten and M itself drawn to 0. That is
recursive least squares (as in the mesa layer, arXiv 2309.05858), here with weights that drift: a Kalman filter whose M
returns to N(0, rate I), where errors have the variance 1:

    M' = keep M_{t-1},   K' = keep^2 K_{t-1},   u_t = a_t - K' a_t,   s_t = 1 + rate a_t . u_t
    M_t = M' + (rate / s_t) u_t (r_t - a_t M'),   K_t = K' + (rate / s_t) u_t u_t'

with key a_t and error r_t, both times the root of the token's weight. rate (I - K) is the covariance of M: K is what is
known, and 0 at first. With K = 0 for good it were the delta rule with an implicit step (normalised least mean squares).

`scan` is the dual form. Of n tokens, kept_t the product of keep up to t, the errors that the memory is told have the
covariance 1 + rate (a_i . a_j kept_j / kept_i - kept_i kept_j a_i' K a_j), i <= j, before any of them is known. Its
Cholesky factor turns them into what each adds to those before, and the leading rows of a factor are the factor of the
leading rows: so the answer after every token needs no memory of its own.

Shapes: B series, T time, L lags, D width of a key, H horizon, n tokens of a chunk.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from models.blocks import full_precision
from models.contract import State

LARGEST = 10.0  # of a key or an error, in their usual sizes: what is larger is a spike, and no lesson
LARGEST_RATE, LONGEST_SPAN = 1.0, 1e6  # beyond, what is left to be known falls below the rounding of a float32
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
            "errors.known": self.to_key.new_zeros(batch, keys, keys),
        }

    def step(self, window: Tensor, present: Tensor, weight: Tensor, state: State) -> tuple[Tensor, State]:
        """What is to be added to the forecast that is made now, (B, H).

        window: (B, L + H) the last values, relative to the level and in spreads; present: (B, 1); weight: (L, H) of the
        forecaster.
        """
        with full_precision(window):
            seen = torch.cat([state["errors.present"][:, 1:], present], 1)
            key, error, query, keep = self._tokens(window, weight, present, seen.sum(1, keepdim=True))
            memory, known = keep[..., None] * state["errors.memory"], keep[..., None].square() * state["errors.known"]
            new = key - (known @ key[..., None])[..., 0]
            # The product is positive but for rounding, where all is known.
            gain = self.rate / (1 + self.rate * (key * new).sum(1, keepdim=True).clamp(min=0.0)) * new
            missed = error - (key[:, None] @ memory)[:, 0]
            memory = memory + gain[..., None] * missed[:, None]
            known = known + gain[..., None] * new[:, None]
            answer = (query[:, None] @ memory)[:, 0]
        return answer, {"errors.present": seen, "errors.memory": memory, "errors.known": known}

    def scan(self, window: Tensor, present: Tensor, weight: Tensor, state: State) -> tuple[Tensor, State]:
        """The same for T steps: window (B, T, L + H), present (B, T, 1) give (B, T, H)."""
        size = self.lags + self.horizon
        seen = torch.cat([state["errors.present"], present[..., 0]], 1)  # (B, L + H + T)
        sums = torch.cat([seen.new_zeros(len(seen), 1), seen.cumsum(1)], 1)
        counts = (sums[:, size + 1 :] - sums[:, 1:-size])[..., None]  # (B, T, 1)
        answers, memory, known = [], state["errors.memory"], state["errors.known"]
        with full_precision(window):  # a rounded covariance need not have a factor
            for begin in range(0, window.shape[1], CHUNK):
                part = slice(begin, begin + CHUNK)
                tokens = self._tokens(window[:, part], weight, present[:, part], counts[:, part])
                answer, memory, known = _chunk(*tokens, self.rate, memory, known)
                answers.append(answer)
        after = {"errors.present": seen[:, -size:].contiguous(), "errors.memory": memory, "errors.known": known}
        return torch.cat(answers, 1), after

    def _tokens(
        self, window: Tensor, weight: Tensor, present: Tensor, count: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Key and error of the forecast made H steps ago, weighed, key of the one that is made now, and keep (..., 1).

        count: (..., 1) how many of the window's values were observed. The rest were imputed: a window teaches the less
        the more of it was, and nothing if a tenth was, as before the stream is L + 0.9 H steps old.
        """
        old, now, came = window[..., : self.lags], window[..., -self.lags :], window[..., -self.horizon :]
        parts = (old @ self.to_key, came - old @ weight, now @ self.to_key)
        key, error, query = (part.clamp(-LARGEST, LARGEST) for part in parts)
        root = (present * relu(1 - 10 * (1 - count / (self.lags + self.horizon)))).sqrt()
        return root * key, root * error, query, 1 - present * (1 - self.keep)


def _chunk(
    key: Tensor, error: Tensor, query: Tensor, keep: Tensor, rate: float, memory: Tensor, known: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Answers (B, n, H) to the queries, each after the lesson of its own step, and memory and known after the last.

    key, query: (B, n, D); error: (B, n, H); keep: (B, n, 1); memory: (B, D, H); known: (B, D, D).
    """
    logs = keep.log().cumsum(1)  # (B, n, 1)
    kept = logs.exp()
    left = (logs - logs.transpose(1, 2)).tril().exp().tril()  # [t, j]: what is left at t of lesson j
    keys = key.transpose(1, 2)
    seen = kept * (key @ known)  # (B, n, D)
    covariance = rate * (left * (key @ keys) - seen @ (kept * key).transpose(1, 2))
    covariance.diagonal(dim1=1, dim2=2).add_(1.0)
    factor = torch.linalg.cholesky(covariance)  # which reads the lower half
    asked = rate * (left * (query @ keys) - kept * (query @ seen.transpose(1, 2)))
    last, end = left[:, -1, :, None], kept[:, -1:]
    outside = error - kept * (key @ memory)
    told = torch.cat([outside, asked.transpose(1, 2), rate * (last * key - end * seen)], 2)
    sizes = [error.shape[2], query.shape[1], key.shape[2]]
    fresh, pulls, ends = torch.linalg.solve_triangular(factor, told, upper=False).split(sizes, 2)
    answers = kept * (query @ memory) + pulls.transpose(1, 2).tril() @ fresh
    memory = end * memory + ends.transpose(1, 2) @ fresh
    return answers, memory, end.square() * known + ends.transpose(1, 2) @ ends / rate
