"""The dual form of a memory whose weights are linear in its gradients: matrix products, forward and backward.

`core` defines the rule; here whole chunks run at once and nothing per token is as large as a weight matrix. With a_i
the input and u_i the error of a layer at row i, so that its gradient is a_i u_i', and q_t the input of the read,

    y_t = beta_t q_t W + start_t q_t S - sum_i C[t,i] (q_t . a_i) u_i,

whose weights beta, start and C `coefficients` makes of the gates. The backward pass is written out as well: autograd
would keep and walk some hundred small tensors a chunk, and training would spend its time on them instead of on the
products.

Shapes: N series times heads, T tokens, m tokens of a chunk, c window, R = m + c - 1 rows of a chunk, F, V widths of
keys and values, I, O widths of a layer; k = 2 with momentum, 1 without: a memory is, per layer, k matrices, W and S.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models.memory.coefficients import (
    GATES,
    ROWS,
    Coefficients,
    Streams,
    Weights,
    chunk_weights,
    coefficients,
    gates_backward,
)
from models.memory.core import Rule, bias_gradient, into_ball, normalise
from models.memory.dispatch import can_be_compiled

GROUP = 2**18  # numbers of the coefficients that are made at once: a megabyte in single precision


class Read(NamedTuple):
    output: Tensor  # (N, T, V) of the last layer, before norm and residual
    memories: list[list[Tensor]]  # per layer k of (N, I, O)
    anchors: list[Tensor]  # per layer (N, I, O): the weights that the last chunk began with
    fade: Tensor  # the streams' after the last token
    surprise: Tensor  # (N, T), or nothing
    squares: Tensor  # (N, T) sum of all squared weights after the token, or nothing


def dual_read(
    rule: Rule, streams: Streams, memories: list[list[Tensor]], anchors: list[Tensor] | None, look: bool = False
) -> Read:
    """T tokens in chunks of m, the last of them maybe shorter.

    anchors: of a chunk that has begun; T is then at most what is left of it. None where a chunk begins.
    """
    flat = [matrix for memory in memories for matrix in memory]
    if _can_be_compiled(rule, streams, flat, anchors, look):
        from models.memory.compiled_functions import CompiledDual  # its compiler takes half a second to import

        rows = (streams.key, streams.value, streams.residual, streams.query)
        gates = (streams.keep, streams.momentum, streams.rate, streams.importance, streams.present)
        output, *rest = CompiledDual.apply(rule, *rows, *gates, *flat)
        nothing = output.new_empty(0)
        return Read(output, _by_layer(rule, rest[: len(flat)]), rest[len(flat) :], streams.fade, nothing, nothing)
    found = _Dual.apply(rule, look, len(flat), anchors is not None, *streams, *flat, *(anchors or ()))
    output, fade, surprise, squares, *rest = found
    return Read(output, _by_layer(rule, rest[: len(flat)]), rest[len(flat) :], fade, surprise, squares)


def _can_be_compiled(
    rule: Rule, streams: Streams, flat: list[Tensor], anchors: list[Tensor] | None, look: bool
) -> bool:
    return (
        not (look or anchors or rule.decay_first)
        and rule.bias == "l2"
        and rule.window == 1
        and can_be_compiled(*streams, *flat)
    )


def _by_layer(rule: Rule, matrices: Sequence[Tensor]) -> list[list[Tensor]]:
    count = 1 + rule.has_momentum
    return [list(matrices[first : first + count]) for first in range(0, len(matrices), count)]


class _Dual(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rule: Rule, look: bool, count: int, begun: bool, *tensors: Tensor) -> tuple[Tensor, ...]:
        streams = Streams(*tensors[: len(Streams._fields)])
        memories = _by_layer(rule, tensors[len(Streams._fields) :][:count])
        anchors = list(tensors[len(Streams._fields) + count :])
        wanted = any(ctx.needs_input_grad)
        kept: list[_KeptGroup] = []
        output, first = torch.empty_like(streams.value[:, rule.window - 1 :]), 0
        surprises, squares = [], []
        for pieces in _groups(rule, streams):
            c = coefficients(rule, _gates(pieces))
            together = chunk_weights(c)
            kept.append(_KeptGroup(c, together, []))
            for piece, weights in zip(pieces, _apart(together, len(pieces)), strict=True):
                done = _forward(rule, piece, weights, memories, anchors if begun and not first else None, look)
                last = first + piece.query.shape[1]
                output[:, first:last], first = done.output, last
                memories, anchors, fade = done.memories, done.kept.anchors, done.fade
                if look:
                    surprises.append(done.surprise)
                    squares.append(done.squares)
                if wanted:
                    kept[-1].chunks.append(done.kept)
            if not wanted:
                kept.clear()
        saved: list[Tensor] = []

        def place(tensor: Tensor) -> int:
            saved.append(tensor)
            return len(saved) - 1

        # By autograd, which lets go of what is saved once the gradient has passed, though the answers live on.
        ctx.places = _mapped((streams, kept), place)
        ctx.save_for_backward(*saved)
        ctx.rule, ctx.begun, ctx.count = rule, begun, count
        ctx.residual_is_key = streams.residual is streams.key  # mostly: one gradient is one copy less than two
        nothing = streams.query.new_empty(0)
        inside = [torch.cat(parts, 1) if look else nothing.clone() for parts in (surprises, squares)]
        ctx.mark_non_differentiable(*inside)
        ctx.set_materialize_grads(False)
        # Clones: what is kept must not hold an output, nor an output be what came in.
        flat = chain.from_iterable(memories)
        return output, fade.clone(), *inside, *flat, *(anchor.clone() for anchor in anchors)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rule, count = ctx.rule, ctx.count
        streams, kept = _mapped(ctx.places, ctx.saved_tensors.__getitem__)
        needed = dict(zip(Streams._fields, ctx.needs_input_grad[4:], strict=False))
        needed["residual"] &= not ctx.residual_is_key
        output, fade, _, _, *rest = grads
        last = streams.query.shape[1]
        output = streams.value.new_zeros(len(streams.value), last, streams.value.shape[2]) if output is None else output
        fade = torch.zeros_like(streams.fade) if fade is None else fade
        ends = list(chain.from_iterable(kept[-1].chunks[-1].memories)) + kept[-1].chunks[-1].anchors
        memories: list[list[Tensor]] | None = None  # mostly nobody asks for the gradient of the state at the end
        anchors: list[Tensor] = []
        if any(grad is not None for grad in rest):
            rest = [torch.zeros_like(end) if grad is None else grad for grad, end in zip(rest, ends, strict=True)]
            memories, anchors = _by_layer(rule, rest[:count]), rest[count:]
        make = torch.empty_like if rule.window == 1 else torch.zeros_like
        whole = {name: make(getattr(streams, name)) for name in Streams._fields[:-1] if needed[name]}
        with torch.autocast(output.device.type, enabled=False):
            for pieces, group in zip(reversed(_groups(rule, streams)), reversed(kept), strict=True):
                weighed: list[Weights] = []
                each = zip(pieces, _apart(group.weights, len(pieces)), group.chunks, strict=True)
                for piece, weights, chunk in reversed(list(each)):
                    first = last - piece.query.shape[1]
                    part, d_weights, memories, before = _backward(
                        rule, piece, weights, chunk, ctx.begun and not first, output[:, first:last], fade, memories,
                        anchors,
                    )  # fmt: skip
                    if ctx.residual_is_key:
                        part["key"].add_(part["residual"])
                    _write(rule, whole, first, part)
                    weighed.insert(0, d_weights)
                    # Only the last chunk's anchors and fade are outputs.
                    last, anchors, fade = first, [], torch.zeros_like(fade)
                joined = Weights(*map(torch.cat, zip(*weighed, strict=True)))
                gates = _apart(gates_backward(rule, _gates(pieces), group.coefficients, joined), len(pieces))
                for place, gate in reversed(list(enumerate(gates))):
                    _write(rule, whole, last + place * rule.chunk, gate._asdict())
        assert memories is not None  # of the first chunk
        whole["fade"] = part["fade"]  # later chunks fade from their own beginning
        found = [whole[name] if needed[name] else None for name in Streams._fields]
        return None, None, None, None, *found, *chain.from_iterable(memories), *(before if ctx.begun else ())


def _mapped(part: Any, change: Callable[[Any], Any]) -> Any:
    """Nested lists and named tuples with everything in them changed but None."""
    if isinstance(part, (list, tuple)):
        parts = [_mapped(inner, change) for inner in part]
        return type(part)(*parts) if hasattr(part, "_fields") else type(part)(parts)
    return None if part is None else change(part)


def _groups(rule: Rule, streams: Streams) -> list[list[Streams]]:
    """The chunks in order, neighbours of one length together: their coefficients are made at once.

    As many as leave an operand in a core's cache; each of some dozen small operations costs as much to begin as to do.
    """
    series, total = streams.query.shape[:2]
    most = max(1, GROUP // max(1, series * rule.chunk * (rule.chunk + rule.window - 1)))
    firsts = range(0, total, rule.chunk)
    parts = []
    for name, part in zip(Streams._fields[:-1], streams[:-1], strict=True):
        more = rule.chunk + (rule.window - 1 if name in ROWS else 0)
        alike = part.shape[1] == total  # a view each costs as much as a small product
        parts.append(part.split(rule.chunk, 1) if alike else [part[:, first : first + more] for first in firsts])
    fades = [streams.fade] + [torch.ones_like(streams.fade)] * (len(firsts) - 1)
    pieces = [Streams(*each) for each in zip(*parts, fades, strict=True)]
    whole = total // rule.chunk
    ends = [*range(0, whole, most), whole] + [len(firsts)] * (whole < len(firsts))
    return [pieces[first:last] for first, last in pairwise(ends)]


def _gates(pieces: list[Streams]) -> Streams:
    """What the coefficients of G chunks are made of, (G N, ...); the rest is of the first."""
    if len(pieces) == 1:
        return pieces[0]
    return pieces[0]._replace(**{name: torch.cat([getattr(piece, name) for piece in pieces]) for name in GATES})


def _apart(parts: Any, count: int) -> list[Any]:
    """A named tuple of (G N, ...) as G named tuples of (N, ...)."""
    return [type(parts)(*each) for each in zip(*(part.chunk(count) for part in parts), strict=True)]


def _write(rule: Rule, whole: Mapping[str, Tensor], first: int, parts: Mapping[str, Tensor]) -> None:
    """A chunk's gradients, of tokens from `first` on, into those of the streams: while they are in the cache.

    From the last chunk to the first: the rows that it shares with the one after it are there already, and are added to.
    """
    for name in whole.keys() & parts.keys():
        piece = parts[name]
        target = whole[name][:, first : first + piece.shape[1]]
        if name in ROWS and rule.window > 1 and piece.shape[1]:
            own = piece.shape[1] - rule.window + 1
            target[:, own:] += piece[:, own:]
            target, piece = target[:, :own], piece[:, :own]
        target.copy_(piece)


# --- the parts of a memory, and their gradients -----------------------------------------------------------------


def through_norm(grad: Tensor, normed: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient by z of a loss with the gradient `grad` by normed = normalise(z), and how far `grad` lies along it."""
    along = (grad * normed).mean(-1, keepdim=True)
    return torch.addcmul(grad - grad.mean(-1, keepdim=True), normed, along, value=-1).mul_(inverse), along


class _Active(NamedTuple):
    """SiLU of z, by its gate sigmoid(z), which is the costly part."""

    z: Tensor
    gate: Tensor

    @classmethod
    def of(cls, z: Tensor) -> _Active:
        return cls(z, torch.sigmoid(z))

    def value(self) -> Tensor:
        return self.z * self.gate

    def slope(self, value: Tensor) -> Tensor:
        return torch.addcmul(self.gate + value, self.gate, value, value=-1)

    def bend(self, value: Tensor) -> Tensor:
        """The second derivative."""
        return torch.addcmul(self.gate, self.gate, self.gate, value=-1).mul_((self.z + 2).sub_(value, alpha=2))


def _plus(normed: Tensor, residual: Tensor) -> Tensor:
    return normed + residual if residual.shape[1] else normed


def _bound(rule: Rule, matrix: Tensor) -> Tensor:
    """Back in the ball; the very same tensor where none left it, which costs a copy less."""
    if bool((torch.linalg.vector_norm(matrix, dim=(1, 2)) <= rule.radius).all()):
        return matrix
    return into_ball(matrix, rule.radius)


def _bound_backward(rule: Rule, matrix: Tensor, grad: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(matrix, dim=(1, 2), keepdim=True)
    outer = norm.clamp(min=rule.radius)
    unit = matrix / outer
    along = (grad * unit).sum((1, 2), keepdim=True) * (norm > rule.radius)
    return (rule.radius / outer) * (grad - along * unit)


def _weighed(parts: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """The weighted sum of (N, ...) and broadcasting weights."""
    total = parts[0] * weights[0]
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        total.addcmul_(part, weight)
    return total


def _product(parts: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """The sum of the products (N, ., .) of pairs."""
    total = torch.bmm(parts[0], others[0])
    for part, other in zip(parts[1:], others[1:], strict=True):
        total.baddbmm_(part, other)
    return total


def _columns(weights: Tensor) -> list[Tensor]:
    """(N, rows, k) -> k of (N, rows, 1)."""
    return [weights[..., place : place + 1] for place in range(weights.shape[2])]


class _Kept(NamedTuple):
    """What the backward pass needs of a chunk and cannot get cheaper than from memory."""

    entered: list[list[Tensor | None]]  # memories before the ball; None where they never left it
    memories: list[list[Tensor]]
    anchors: list[Tensor]
    keys: list[_Active]  # activations of the hidden layers, at the keys
    queries: list[_Active]  # and at the queries
    scores: list[Tensor]  # (N, m, R) q_t . a_i of every layer
    back: list[Tensor]  # (N, R, hidden) errors before the activations' slopes
    error: Tensor  # (N, R, V) of the last layer
    bare: Tensor | None  # (N, R, V): the last layer's output before it fades
    normed: Tensor
    inverse: Tensor
    outer: Tensor  # (N, R, V) the bias' gradient by the answer
    along: Tensor  # (N, R, 1) mean of outer times normed


class _KeptGroup(NamedTuple):
    coefficients: Coefficients  # (G N, ...)
    weights: Weights  # (G N, ...)
    chunks: list[_Kept]


class _Done(NamedTuple):
    output: Tensor
    memories: list[list[Tensor]]
    fade: Tensor
    surprise: Tensor
    squares: Tensor
    kept: _Kept


def _forward(
    rule: Rule, piece: Streams, c: Weights, entered: list[list[Tensor]], anchors: list[Tensor] | None, look: bool
) -> _Done:
    memories = entered
    if anchors is None:
        memories = [[_bound(rule, matrix) for matrix in memory] for memory in entered]
        anchors = [memory[0] for memory in memories]
    # What the rows' errors are.
    inputs, keys = [piece.key], []
    for weight in anchors[:-1]:
        keys.append(_Active.of(torch.bmm(inputs[-1], weight)))
        inputs.append(keys[-1].value())
    z, bare = torch.bmm(inputs[-1], anchors[-1]), None
    fades = piece.fade
    if rule.decay_first:
        fades = fades * c.read[..., 0]
        z, bare = z * fades[..., None], z
    normed, inverse = normalise(z) if rule.depth else (z, z[..., :0])
    answer = _plus(normed, piece.residual)
    outer, along = bias_gradient(rule, answer, piece.value, piece.clip), inverse
    errors = [outer]
    if rule.depth:
        errors[0], along = through_norm(outer, normed, inverse)
    back: list[Tensor] = []
    for layer in range(len(keys), 0, -1):
        back.insert(0, torch.bmm(errors[0], anchors[layer].transpose(1, 2)))
        errors.insert(0, keys[layer - 1].slope(inputs[layer]).mul_(back[0]))
    # The read, and what is left at the end.
    queries, scores, after = [], [], []
    read, ends = _columns(c.read), _columns(c.ends)
    q, squares = piece.query, torch.zeros_like(piece.keep)
    for layer, (memory, a, u) in enumerate(zip(memories, inputs, errors, strict=True)):
        scores.append(torch.bmm(q, a.transpose(1, 2)))
        y = _product([q * weight for weight in read], memory).baddbmm_(c.gradients * scores[-1], u, alpha=-1)
        last = [_weighed(memory, _columns(c.read[:, -1:])), *(matrix * c.carried[..., None] for matrix in memory[1:])]
        for end, weight in zip(last, ends, strict=True):
            end.baddbmm_((a * weight).transpose(1, 2), u, alpha=-1)
        after.append(last)
        if look:
            squares = squares + _square_norms(c, memory, a, u)
        if layer < len(memories) - 1:
            queries.append(_Active.of(y))
            q = queries[-1].value()
    surprise = torch.linalg.vector_norm((answer - piece.value)[:, rule.window - 1 :], dim=-1) if look else squares
    left = [
        [None if matrix is before else before for before, matrix in zip(*pair, strict=True)]
        for pair in zip(entered, memories, strict=True)
    ]
    kept = _Kept(left, memories, anchors, keys, queries, scores, back, errors[-1], bare, normed, inverse, outer, along)
    return _Done(y, after, fades[:, -1:] if rule.decay_first else piece.fade, surprise, squares, kept)


def _square_norms(c: Weights, memory: list[Tensor], a: Tensor, u: Tensor) -> Tensor:
    """|A_t|^2 for every t (N, m), from inner products alone."""
    parts = torch.stack(memory, 1)  # (N, k, I, O)
    gram = (a @ a.transpose(1, 2)) * (u @ u.transpose(1, 2))  # <g_i, g_j>
    with_parts = ((a[:, None] @ parts) * u[:, None]).sum(-1)  # (N, k, R): <W, g_i>, <S, g_i>
    flat = parts.flatten(2)
    square = ((c.read @ (flat @ flat.transpose(1, 2))) * c.read).sum(-1)
    square = square - 2 * ((c.read @ with_parts) * c.gradients).sum(-1)
    return square + ((c.gradients @ gram) * c.gradients).sum(-1)


def _backward(
    rule: Rule, piece: Streams, c: Weights, kept: _Kept, begun: bool, output: Tensor, fade: Tensor,
    after: list[list[Tensor]] | None, anchors: list[Tensor],
) -> tuple[dict[str, Tensor], Weights, list[list[Tensor]], list[Tensor]]:  # fmt: skip
    """Gradients of a chunk's streams, weights, memories and anchors from those of its output, fade, ends and anchors.

    Those of the gates are made of those of the weights, by `gates_backward`. after: None where they are zero.
    """
    layers = len(kept.memories)
    inputs = [piece.key, *(active.value() for active in kept.keys)]
    queries = [piece.query, *(active.value() for active in kept.queries)]
    slopes = [active.slope(value) for active, value in zip(kept.keys, inputs[1:], strict=True)]
    errors = [*(slope * back for slope, back in zip(slopes, kept.back, strict=True)), kept.error]
    read, ends, whole = _columns(c.read), _columns(c.ends), _columns(c.read[:, -1:])
    d_gradients, d_read = torch.zeros_like(c.gradients), torch.zeros_like(c.read)
    d_carried, d_ends = torch.zeros_like(c.carried), torch.zeros_like(c.ends)
    d_inputs, d_errors, d_memories = list(inputs), list(inputs), list(kept.memories)
    d_y = output
    for layer in reversed(range(layers)):
        memory, a, u, q, scores = kept.memories[layer], inputs[layer], errors[layer], queries[layer], kept.scores[layer]
        if after is None:
            d_memory = [torch.zeros_like(matrix) for matrix in memory]
            d_u, d_a = torch.zeros_like(u), torch.zeros_like(a)  # of minus the errors and inputs
        else:
            d_last = after[layer]
            d_memory = [d_last[0] * weight for weight in whole]
            for place, matrix in enumerate(memory):
                d_read[:, -1, place] += (d_last[0] * matrix).sum((1, 2))
            if rule.has_momentum:
                d_memory[1].addcmul_(d_last[1], c.carried[..., None])
                d_carried += (d_last[1] * memory[1]).sum((1, 2))[:, None]
            d_u = _product([a * weight for weight in ends], d_last)
            d_rows = [torch.bmm(u, d_end.transpose(1, 2)) for d_end in d_last]
            for place, d_row in enumerate(d_rows):
                d_ends[..., place] -= (d_row * a).sum(-1)
            d_a = _weighed(d_rows, ends)
        # The read.
        d_u.baddbmm_((c.gradients * scores).transpose(1, 2), d_y)
        d_scores = torch.bmm(d_y, u.transpose(1, 2))  # of minus the weighed scores
        d_gradients.addcmul_(d_scores, scores, value=-1)
        d_scores.mul_(c.gradients)
        d_a.baddbmm_(d_scores.transpose(1, 2), q)
        d_rows = [torch.bmm(d_y, matrix.transpose(1, 2)) for matrix in memory]
        for place, d_row in enumerate(d_rows):
            d_read[..., place] += (d_row * q).sum(-1)
        d_q = _weighed(d_rows, read).baddbmm_(d_scores, a, alpha=-1)
        for d_matrix, weight in zip(d_memory, read, strict=True):
            d_matrix.baddbmm_((q * weight).transpose(1, 2), d_y)
        d_inputs[layer], d_errors[layer], d_memories[layer] = d_a.neg_(), d_u.neg_(), d_memory
        if layer:
            d_y = kept.queries[layer - 1].slope(q).mul_(d_q)
    # An anchor is the W that the chunk began with, unless it had begun before.
    d_anchors = [
        torch.zeros_like(anchor) if begun else d_memory[0]
        for anchor, d_memory in zip(kept.anchors, d_memories, strict=True)
    ]
    for into, part in zip(d_anchors, anchors, strict=bool(anchors)):
        into.add_(part)
    # The errors, from the first layer to the last.
    d_hidden: list[Tensor] = []
    for layer in range(1, layers):
        d_e = d_errors[layer - 1]
        d_hidden.append(kept.keys[layer - 1].bend(inputs[layer]).mul_(d_e).mul_(kept.back[layer - 1]))
        d_e = d_e * slopes[layer - 1]
        d_errors[layer].baddbmm_(d_e, kept.anchors[layer])
        d_anchors[layer].baddbmm_(d_e.transpose(1, 2), errors[layer])
    d_error = d_errors[-1]
    d_outer = turned = d_error
    if rule.depth:
        d_outer, turned = through_norm(d_error, kept.normed, kept.inverse)
    d_answer, d_value, d_clip = _bias_backward(rule, kept.normed, piece, d_outer)
    d_z = d_answer
    if rule.depth:
        moved = (d_error * kept.along).addcmul_(kept.outer, turned)
        d_normed = torch.addcmul(d_answer, kept.inverse, moved, value=-1)
        stretch = (d_normed * kept.normed).addcmul_(d_error, kept.error).mean(-1, keepdim=True)
        d_z = torch.addcmul(d_normed - d_normed.mean(-1, keepdim=True), kept.normed, stretch, value=-1)
        d_z = d_z.mul_(kept.inverse)
    d_fade = piece.fade
    if kept.bare is not None:
        d_fades = (d_z * kept.bare).sum(-1)
        d_fades[:, -1:] += fade
        beta = c.read[..., 0]
        d_z = d_z * (piece.fade * beta)[..., None]
        d_read[..., 0] += d_fades * piece.fade
        d_fade = (d_fades * beta).sum(-1, keepdim=True)
    # The inputs, from the last layer to the first.
    for layer in reversed(range(layers)):
        d_a = d_inputs[layer].baddbmm_(d_z, kept.anchors[layer].transpose(1, 2))
        d_anchors[layer].baddbmm_(inputs[layer].transpose(1, 2), d_z)
        if layer:
            d_z = d_hidden[layer - 1].addcmul_(d_a, slopes[layer - 1])
    if not begun:
        d_memories = [
            [
                d_matrix if before is None else _bound_backward(rule, before, d_matrix)
                for before, d_matrix in zip(*pair, strict=True)
            ]
            for pair in zip(kept.entered, d_memories, strict=True)
        ]
    found = {"key": d_a, "value": d_value, "residual": d_answer, "clip": d_clip, "query": d_q, "fade": d_fade}
    found["present"] = torch.zeros_like(piece.present)
    return found, Weights(d_gradients, d_read, d_carried, d_ends), d_memories, d_anchors


def _bias_backward(rule: Rule, normed: Tensor, piece: Streams, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of answer, value and clip."""
    if rule.bias == "l2":  # 2 (answer - value): known, and a fifth of the time of what follows
        d_answer = 2 * grad
        return d_answer, -d_answer, torch.zeros_like(piece.clip)
    with torch.enable_grad():
        answer = _plus(normed, piece.residual)
        leaves = [part.detach().requires_grad_() for part in (answer, piece.value, piece.clip)]
        found = torch.autograd.grad(bias_gradient(rule, *leaves), leaves, grad, allow_unused=True)
    first, second, third = (
        torch.zeros_like(leaf) if part is None else part for leaf, part in zip(leaves, found, strict=True)
    )
    return first, second, third
