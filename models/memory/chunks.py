"""A memory over a stream, whole chunks at a time: the numbers of `core.sequential`, several hundred times faster.

Where the weights are linear in the gradients the dual form does it (`dual`). Where they are not, because of Muon or of
weights that are a map of what is accumulated, the read needs the weights of every token; they are made a chunk at a
time, and in training made again when the gradient passes, so that those of one chunk at most are in memory.

Shapes: N series times heads, T tokens, m tokens of a chunk, R rows of a chunk with its window's, I, O widths of
a layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from models.contract import Inside, State
from models.memory.coefficients import ROWS, Streams, band, coefficients, cut, decays
from models.memory.core import (
    Look,
    Rule,
    Tokens,
    accumulators_of,
    activate,
    apart,
    chunk_border,
    effective,
    layer_errors,
    map_tokens,
    memory_answer,
    muon_step,
    nothing,
    refuse_longer_chunk,
    weights_of,
)
from models.memory.dual import Read, dual_read


def chunked(rule: Rule, tokens: Tokens, state: State, look: bool = False) -> tuple[Tensor, State, Look | None]:
    """The same as `sequential`; the look inside only if asked for, and without gradients.

    Series that stand at different positions of a chunk run apart.
    """
    if tokens.key.shape[2] == 0:
        return nothing(tokens, state)
    offset = 0
    if rule.chunk > 1 and len(state["position"]):
        position = state["position"][:, 0]
        if bool((position != position[0]).any()):

            def rows_alone(rows: Tensor) -> tuple[Tensor, State, Inside]:
                chosen = map_tokens(tokens, lambda part: part[rows])
                answer, after, seen = chunked(rule, chosen, {name: part[rows] for name, part in state.items()}, look)
                return answer, after, {} if seen is None else seen._asdict()

            answer, after, seen = apart(position, rows_alone)
            return answer, after, Look(**seen) if look else None
        offset = int(position[0].item())
        refuse_longer_chunk(rule, offset)
    complete = bool((tokens.present > 0.5).all())
    streams = _streams(rule, tokens if complete else effective(tokens), state)
    layers = len(accumulators_of(state))
    kinds = ("memory", "momentum") if rule.has_momentum else ("memory",)
    memories = [[state[f"{kind}{layer}"].flatten(0, 1) for kind in kinds] for layer in range(layers)]
    anchors = [state[f"anchor{layer}"].flatten(0, 1) for layer in range(layers)] if offset else None
    steps = tokens.keep.shape[2]
    # What is left of a chunk that has begun; then whole ones and the beginning of another.
    rest = min(steps, rule.chunk - offset) if offset else 0
    pieces, fade = [], streams.fade
    for first, last in ((0, rest), (rest, steps)):
        if first < last:
            begins = last > rest
            piece = cut(rule, streams, first, last)
            piece = piece._replace(fade=torch.ones_like(fade) if begins else fade)
            read = (dual_read if rule.linear else _unrolled)(rule, piece, memories, None if begins else anchors, look)
            memories, fade = read.memories, read.fade
            pieces.append(read)
    after = _state(rule, streams, pieces[-1])
    after = {name: after[name].unflatten(0, tokens.keep.shape[:2]) for name in state if name != "position"}
    if rule.chunk > 1:
        after["position"] = torch.full_like(state["position"], (offset + steps) % rule.chunk)

    def joined(part: str) -> Tensor:
        parts = [getattr(piece, part) for piece in pieces]
        return (torch.cat(parts, 1) if len(parts) > 1 else parts[0]).unflatten(0, tokens.keep.shape[:2])

    inside = Look(joined("surprise"), joined("squares").clamp(min=0).sqrt()) if look else None
    return memory_answer(rule, joined("output"), tokens.query_residual), {name: after[name] for name in state}, inside


def _streams(rule: Rule, tokens: Tokens, state: State) -> Streams:
    """Effective tokens (B, P, T, ...) as (N, T, ...), their rows with the window's before them.

    Contiguous, whether or not all are present: other strides are other roundings in the products that follow, and then
    what is missing later would show in the last bits of what came before.
    """

    def rows(name: str, part: Tensor) -> Tensor:
        return flat(torch.cat([state[f"past.{name}"], part], 2) if rule.window > 1 else part)

    def flat(part: Tensor) -> Tensor:
        return part.flatten(0, 1).contiguous()

    nothing = tokens.keep.new_empty(tokens.keep.shape[:2].numel(), 0)
    key, residual = rows("key", tokens.key), nothing
    if tokens.key_residual is not None:
        residual = key if tokens.key_residual is tokens.key else rows("residual", tokens.key_residual)
    fade = state.get("fade", tokens.keep.new_ones(tokens.keep.shape[:2]))  # with a chunk of 1 there is no other
    return Streams(
        key=key,
        value=rows("value", tokens.value),
        residual=residual,
        importance=rows("importance", tokens.importance.expand_as(tokens.keep)),
        clip=rows("clip", tokens.clip),
        query=flat(tokens.query),
        keep=flat(tokens.keep),
        momentum=flat(tokens.momentum),
        rate=flat(tokens.rate),
        present=flat(tokens.present.expand_as(tokens.keep)),
        fade=fade.flatten(0, 1)[:, None] if rule.decay_first else nothing,
    )


def _state(rule: Rule, streams: Streams, read: Read) -> State:
    """What follows from the last token: (N, ...) each."""
    after: State = {"fade": read.fade.flatten()}
    for layer, memory in enumerate(read.memories):
        after |= dict(zip((f"memory{layer}", f"momentum{layer}"), memory, strict=False))
        after[f"anchor{layer}"] = read.anchors[layer]
    if rule.window > 1:
        for name in ROWS:
            after[f"past.{name}"] = getattr(streams, name)[:, 1 - rule.window :]
    return after


# --- weights of every token, where the weights are not linear in the gradients ----------------------------------


class _End(NamedTuple):
    output: Tensor
    memories: list[list[Tensor]]
    anchors: list[Tensor]
    surprise: Tensor
    squares: Tensor


def _unrolled(
    rule: Rule, streams: Streams, memories: list[list[Tensor]], anchors: list[Tensor] | None, look: bool = False
) -> Read:
    """`dual_read` for any rule; m weight matrices a layer are in memory at a time."""
    steps = streams.query.shape[1]
    ends: list[_End] = []
    for first in range(0, steps, rule.chunk):
        piece = cut(rule, streams, first, min(first + rule.chunk, steps))
        if torch.is_grad_enabled() and steps > rule.chunk:
            end = checkpoint(
                _unrolled_chunk, rule, piece, memories, anchors, use_reentrant=False, preserve_rng_state=False
            )
        else:
            end = _unrolled_chunk(rule, piece, memories, anchors)
        memories, anchors = end.memories, None
        ends.append(end)
    output, surprise, squares = (
        torch.cat([getattr(end, part) for end in ends], 1) for part in ("output", "surprise", "squares")
    )
    return Read(output, memories, ends[-1].anchors, streams.fade, surprise.detach(), squares.detach())


def _unrolled_chunk(rule: Rule, piece: Streams, memories: list[list[Tensor]], anchors: list[Tensor] | None) -> _End:
    accumulators, momenta = [memory[0] for memory in memories], [memory[1] for memory in memories if len(memory) > 1]
    if anchors is None:
        accumulators, momenta = chunk_border(rule, accumulators, momenta)
        anchors = [weights_of(rule, accumulator) for accumulator in accumulators]
    residual = piece.residual if piece.residual.shape[1] else None
    inputs, errors, missed = layer_errors(rule, anchors, piece.key, piece.value, piece.clip, residual, None)
    z, squares, ends = piece.query, torch.zeros_like(piece.keep), []
    made = _muon(rule, piece) if rule.optimiser == "muon" else _descent(rule, piece)
    for layer, (accumulator, a, u) in enumerate(zip(accumulators, inputs, errors, strict=True)):
        every, momentum = made(accumulator, momenta[layer] if momenta else None, a, u)
        weights = weights_of(rule, every)  # (N, m, I, O)
        z = (z[..., None, :] @ weights)[..., 0, :]
        squares = squares + weights.square().sum((-2, -1))
        ends.append([every[:, -1]] if momentum is None else [every[:, -1], momentum])
        if layer < len(accumulators) - 1:
            z, _ = activate(z)
    surprise = torch.linalg.vector_norm(missed[:, rule.window - 1 :], dim=-1)
    return _End(z, ends, anchors, surprise, squares)


Maker = Callable[[Tensor, Tensor | None, Tensor, Tensor], tuple[Tensor, Tensor | None]]
"""(A (N, I, O), S or None, inputs (N, R, I), errors (N, R, O)) -> every A_t (N, m, I, O), and the last S."""


def _combined(weights: Tensor, a: Tensor, u: Tensor) -> Tensor:
    """sum_i weights[t,i] a_i u_i' for every t: (N, m, R) -> (N, m, I, O)."""
    return (weights[:, :, None] * a.transpose(1, 2)[:, None]) @ u[:, None]


def _descent(rule: Rule, piece: Streams) -> Maker:
    c = coefficients(rule, piece)

    def made(memory: Tensor, momentum: Tensor | None, a: Tensor, u: Tensor) -> tuple[Tensor, Tensor | None]:
        every = c.read[..., 0, None, None] * memory[:, None] - _combined(c.gradients, a, u)
        if momentum is None:
            return every, None
        every = every + c.read[..., 1, None, None] * momentum[:, None]
        impulse = (a * c.into[:, -1, :, None]).transpose(1, 2) @ u
        return every, c.carried[:, -1, None, None] * momentum - impulse

    return made


def _muon(rule: Rule, piece: Streams) -> Maker:
    """S_t = carried_t S_0 + sum_i into[t,i] g_i, A_t = beta_t A_0 - sum_j moves[t,j] muon_step(S_j)."""
    beta, keeps = decays(piece.keep)
    carried, into = decays(piece.momentum)
    into = into * piece.present[:, None] @ band(rule.window, piece.rate) * piece.importance[:, None]
    moves = keeps * piece.rate[:, None]

    def made(memory: Tensor, momentum: Tensor | None, a: Tensor, u: Tensor) -> tuple[Tensor, Tensor | None]:
        assert momentum is not None
        impulses = carried[..., None, None] * momentum[:, None] + _combined(into, a, u)
        changes = muon_step(impulses)
        moved = (moves @ changes.flatten(2)).unflatten(2, changes.shape[2:])
        return beta[..., None, None] * memory[:, None] - moved, impulses[:, -1]

    return made
