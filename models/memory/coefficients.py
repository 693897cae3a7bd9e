"""The coefficients of a chunk in the dual form: what products of gates weigh its gradients with, forward and backward.

With keep, momentum, rate and importance of a chunk's tokens (`core`), a layer's matrices W and S at its beginning and
the gradients g_i of its rows,

    A_t = beta_t W + start_t S - sum_i C[t,i] g_i,   S_t = carried_t S - sum_i into[t,i] g_i,   C = J into,
    J[t,j] = present_j prod_{l=j+1..t} keep_l,   into[j,i] = importance_i sum_s rate_s prod_{l=s+1..j} momentum_l

over the s whose window holds i (arXiv 2501.00663, section 3.2; arXiv 2505.23735, Eq. 16). Nothing here is as large as
a weight matrix, and neighbouring chunks are done together (`dual`).

Shapes: N series times heads, T tokens, m tokens of a chunk, c window, R = m + c - 1 rows of a chunk, F, V widths of
keys and values; k = 2 with momentum, 1 without.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from models.memory.core import LOG_FLOOR, Rule


class Streams(NamedTuple):
    """Effective tokens (`core.Tokens`) of N streams; what a gradient is made of has c - 1 older rows before it."""

    key: Tensor  # (N, c - 1 + T, F)
    value: Tensor  # (N, c - 1 + T, V)
    residual: Tensor  # (N, c - 1 + T, V) added to the answer; (N, 0) where there is none
    importance: Tensor  # (N, c - 1 + T)
    clip: Tensor  # (N, c - 1 + T)
    query: Tensor  # (N, T, F)
    keep: Tensor  # (N, T)
    momentum: Tensor  # (N, T)
    rate: Tensor  # (N, T)
    present: Tensor  # (N, T)
    fade: Tensor  # (N, 1) product of the gates since the chunk began, of `decay_first`; (N, 0) without


ROWS = Streams._fields[:5]
GATES = ("keep", "momentum", "rate", "present", "importance")


def cut(rule: Rule, streams: Streams, first: int, last: int) -> Streams:
    """Tokens [first, last), and the rows that they see."""
    ends = {name: last + rule.window - 1 if name in ROWS else last for name in Streams._fields[:-1]}
    piece = streams._replace(**{name: getattr(streams, name)[:, first:end] for name, end in ends.items()})
    return piece._replace(residual=piece.key) if streams.residual is streams.key else piece


class Coefficients(NamedTuple):
    """A_t = beta_t W + start_t S - sum_i gradients[t,i] g_i and S_t = carried_t S - sum_i into[t,i] g_i."""

    gradients: Tensor  # C (N, m, R)
    read: Tensor  # (N, m, k) beta, start
    into: Tensor  # (N, m, R)
    carried: Tensor  # (N, m); (N, 0) without momentum
    keeps: Tensor  # J (N, m, m)
    moves: Tensor  # (N, m, m) the products of momentum, or without it of keep, that the rates are multiplied with


def decays(gate: Tensor, present: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Products of gates (N, m): from the start through t (N, m), from after j <= t through t (N, m, m).

    In log space, so that a long product neither underflows to 0 nor is divided by it. present: (N, m), 0 at the j whose
    products shall be 0.
    """
    logs = gate.log().clamp(min=LOG_FLOOR).cumsum(-1)
    since = logs if present is None else logs - present.log()
    # Above the diagonal the difference is positive, and its exponential might overflow before it is cut off.
    return logs.exp(), (logs[:, :, None] - since[:, None]).clamp_(max=0.0).exp().tril()


def _decays_backward(gate: Tensor, through: Tensor, between: Tensor) -> Tensor:
    """Gradient of a gate; through: gradient times value of the products from the start, between: of the others."""
    logs = through + between.sum(-1) - between.sum(-2)
    each = logs.flip(-1).cumsum(-1).flip(-1)
    return torch.where(gate.log() > LOG_FLOOR, each / gate, torch.zeros_like(each))


def band(window: int, like: Tensor) -> Tensor:
    """(m, R), m of `like` (N, m): 1 where row i lies in the window that ends at token t."""
    steps = like.shape[1]
    rows = torch.arange(steps + window - 1, device=like.device) - torch.arange(steps, device=like.device)[:, None]
    return ((rows >= 0) & (rows < window)).to(like.dtype)


def coefficients(rule: Rule, piece: Streams) -> Coefficients:
    if not rule.has_momentum:
        beta, moves = decays(piece.keep)
        into = _into(rule, piece, moves)
        return Coefficients(into, beta[..., None], into, beta[:, :0], moves, moves)
    beta, keeps = decays(piece.keep, piece.present)
    carried, moves = decays(piece.momentum)
    into = _into(rule, piece, moves)
    start = (keeps * carried[:, None]).sum(-1)
    return Coefficients(torch.bmm(keeps, into), torch.stack([beta, start], 2), into, carried, keeps, moves)


def _into(rule: Rule, piece: Streams, moves: Tensor) -> Tensor:
    if rule.window == 1:
        return moves * (piece.rate * piece.importance)[:, None]
    return (moves * piece.rate[:, None]) @ band(rule.window, piece.rate) * piece.importance[:, None]


class Weights(NamedTuple):
    """What the products of a chunk are weighed with."""

    gradients: Tensor  # (N, m, R)
    read: Tensor  # (N, m, k): of W and S in the read, and at the last token in W at the end
    carried: Tensor  # (N, 1): of S in S at the end; (N, 0) without momentum
    ends: Tensor  # (N, R, k): of the rows' gradients in W and S at the end


def chunk_weights(c: Coefficients) -> Weights:
    ends = [c.gradients[:, -1], c.into[:, -1]][: c.read.shape[2]]
    return Weights(c.gradients, c.read, c.carried[:, -1:], torch.stack(ends, 2))


class Gates(NamedTuple):
    keep: Tensor  # (N, m)
    momentum: Tensor  # (N, m)
    rate: Tensor  # (N, m)
    importance: Tensor  # (N, R)


def gates_backward(rule: Rule, piece: Streams, c: Coefficients, found: Weights) -> Gates:
    """Gradients of the gates from those of the weights, which are written over."""
    gradients, read = found.gradients, found.read
    gradients[:, -1] += found.ends[..., 0]
    through = read[..., 0] * c.read[..., 0]
    if rule.has_momentum:
        start = read[..., 1:]
        keeps = torch.baddbmm(start * c.carried[:, None], gradients, c.into.transpose(1, 2))
        keep = _decays_backward(piece.keep, through, keeps.mul_(c.keeps))
        each = torch.bmm(c.keeps.transpose(1, 2), gradients)
        each[:, -1] += found.ends[..., 1]
        through = (c.keeps * start).sum(1)
        through[:, -1:] += found.carried
        through *= c.carried
    else:
        each = gradients
    if rule.window == 1:
        both = (each * c.moves).sum(1)
        rate, importance = both * piece.importance, both * piece.rate
        between = each.mul_(c.into)
    else:
        inside = band(rule.window, piece.rate)
        moved = c.moves * piece.rate[:, None]
        importance = (each * (moved @ inside)).sum(1)
        each = (each * piece.importance[:, None]) @ inside.T
        rate = (each * c.moves).sum(1)
        between = each.mul_(moved)
    if rule.has_momentum:
        return Gates(keep, _decays_backward(piece.momentum, through, between), rate, importance)
    keep = _decays_backward(piece.keep, through, between)
    return Gates(keep, torch.zeros_like(piece.momentum), rate, importance)
