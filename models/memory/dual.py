"""The dual form of a memory whose weights are linear in its gradients: matrix products, forward and backward.

`core` defines the rule; here whole chunks run at once and nothing per token is as large as a weight matrix. With a_i
the input and u_i the error of a layer at row i, so that its gradient is a_i u_i', and q_t the input of the read,

    y_t = beta_t q_t W + start_t q_t S - sum_i C[t,i] (q_t . a_i) u_i,   C = J into,
    J[t,j] = present_j prod_{l=j+1..t} keep_l,   into[j,i] = importance_i sum_s rate_s prod_{l=s+1..j} momentum_l

over the s whose window holds i (arXiv 2501.00663, section 3.2; arXiv 2505.23735, Eq. 16). The backward pass is written
out as well: autograd would keep and walk some hundred small tensors a chunk, and training would spend its time on them
instead of on the products. W and S of a layer stand in one matrix, W above S, so that both are read by one product.

Shapes: N series times heads, T tokens, m tokens of a chunk, c window, R = m + c - 1 rows of a chunk, F, V widths of
keys and values, I, O widths of a layer, k = 2 with momentum and 1 without.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models.memory.core import LOG_FLOOR, Rule, bias_gradient, into_ball, normalise


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


class Read(NamedTuple):
    output: Tensor  # (N, T, V) of the last layer, before norm and residual
    memories: list[Tensor]  # per layer (N, k I, O): W, above S where there is momentum
    anchors: list[Tensor]  # per layer (N, I, O): the weights that the last chunk began with
    fade: Tensor  # the streams' after the last token
    surprise: Tensor  # (N, T), or nothing
    squares: Tensor  # (N, T) sum of all squared weights after the token, or nothing


def cut(rule: Rule, streams: Streams, first: int, last: int) -> Streams:
    """Tokens [first, last), and the rows that they see."""
    ends = {name: last + rule.window - 1 if name in ROWS else last for name in Streams._fields[:-1]}
    return streams._replace(**{name: getattr(streams, name)[:, first:end] for name, end in ends.items()})


def dual_read(
    rule: Rule, streams: Streams, memories: list[Tensor], anchors: list[Tensor] | None, look: bool = False
) -> Read:
    """T tokens in chunks of m, the last of them maybe shorter.

    anchors: of a chunk that has begun; T is then at most what is left of it. None where a chunk begins.
    """
    found = _Dual.apply(rule, look, len(memories), anchors is not None, *streams, *memories, *(anchors or ()))
    output, fade, surprise, squares, *rest = found
    return Read(output, rest[: len(memories)], rest[len(memories) :], fade, surprise, squares)


class _Dual(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rule: Rule, look: bool, layers: int, begun: bool, *tensors: Tensor) -> tuple[Tensor, ...]:
        streams = Streams(*tensors[: len(Streams._fields)])
        memories = list(tensors[len(Streams._fields) :][:layers])
        anchors = list(tensors[len(Streams._fields) + layers :])
        wanted = any(ctx.needs_input_grad)
        total = streams.query.shape[1]
        kept: list[_Kept] = []
        outputs, surprises, squares = [], [], []
        for first in range(0, total, rule.chunk):
            piece = cut(rule, streams, first, min(first + rule.chunk, total))
            if first:
                piece = piece._replace(fade=torch.ones_like(piece.fade))
            done = _forward(rule, piece, memories, anchors if begun and not first else None, look)
            outputs.append(done.output)
            memories, anchors, fade = done.memories, done.kept.anchors, done.fade
            if look:
                surprises.append(done.surprise)
                squares.append(done.squares)
            if wanted:
                kept.append(done.kept)
        saved: list[Tensor] = []

        def place(tensor: Tensor) -> int:
            saved.append(tensor)
            return len(saved) - 1

        # By autograd, which lets go of what is saved once the gradient has passed, though the answers live on.
        ctx.places = _mapped((streams, kept), place)
        ctx.save_for_backward(*saved)
        ctx.rule, ctx.begun, ctx.layers = rule, begun, layers
        nothing = streams.query.new_empty(0)
        inside = [torch.cat(parts, 1) if look else nothing.clone() for parts in (surprises, squares)]
        ctx.mark_non_differentiable(*inside)
        # Clones: what is kept must not hold an output, nor an output be what came in.
        return torch.cat(outputs, 1), fade.clone(), *inside, *memories, *(anchor.clone() for anchor in anchors)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rule, layers = ctx.rule, ctx.layers
        streams, kept = _mapped(ctx.places, ctx.saved_tensors.__getitem__)
        needed = Streams(*ctx.needs_input_grad[4 : 4 + len(Streams._fields)])
        output, fade, _, _, *rest = grads
        memories, anchors = list(rest[:layers]), list(rest[layers:])
        total = streams.query.shape[1]
        parts: list[Streams] = []
        with torch.autocast(output.device.type, enabled=False):
            for index in reversed(range(len(kept))):
                first = index * rule.chunk
                last = min(first + rule.chunk, total)
                piece = cut(rule, streams, first, last)
                if index:
                    piece = piece._replace(fade=torch.ones_like(piece.fade))
                begun = ctx.begun and not index
                part, memories, before = _backward(
                    rule, piece, kept[index], begun, output[:, first:last], fade, memories, anchors
                )
                parts.insert(0, part)
                # Only the last chunk's anchors and fade are outputs.
                anchors, fade = [], torch.zeros_like(fade)
        whole = [_joined(rule, name, parts, streams) if getattr(needed, name) else None for name in Streams._fields]
        return None, None, None, None, *whole, *memories, *(before if ctx.begun else ())


def _mapped(part: Any, change: Callable[[Any], Any]) -> Any:
    """Nested lists and named tuples with everything in them changed but None."""
    if isinstance(part, list | tuple):
        parts = [_mapped(inner, change) for inner in part]
        return type(part)(*parts) if hasattr(part, "_fields") else type(part)(parts)
    return None if part is None else change(part)


def _joined(rule: Rule, name: str, parts: list[Streams], streams: Streams) -> Tensor:
    """The gradient of one part of the streams from those of the chunks, whose rows overlap by the window."""
    pieces = [getattr(part, name) for part in parts]
    if name == "fade" or not pieces[0].shape[1]:
        return pieces[0]  # later chunks fade from their own beginning
    if name not in ROWS or rule.window == 1:
        return torch.cat(pieces, 1)
    whole = torch.zeros_like(getattr(streams, name))
    for index, piece in enumerate(pieces):
        whole[:, index * rule.chunk :][:, : piece.shape[1]] += piece
    return whole


# --- the coefficients of a chunk ------------------------------------------------------------------------------


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


def _coefficients_backward(
    rule: Rule, piece: Streams, c: Coefficients, gradients: Tensor, read: Tensor, into: Tensor, carried: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of keep, momentum, rate and importance from those of the coefficients.

    into: (N, R), carried: (N,): of the last token alone.
    """
    through = read[..., 0] * c.read[..., 0]
    if rule.has_momentum:
        start = read[..., 1:]
        keeps = torch.baddbmm(start * c.carried[:, None], gradients, c.into.transpose(1, 2))
        keep = _decays_backward(piece.keep, through, keeps.mul_(c.keeps))
        each = torch.bmm(c.keeps.transpose(1, 2), gradients)
        each[:, -1] += into
        through = (c.keeps * start).sum(1)
        through[:, -1] += carried
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
        return keep, _decays_backward(piece.momentum, through, between), rate, importance
    return _decays_backward(piece.keep, through, between), torch.zeros_like(piece.momentum), rate, importance


# --- the parts of a memory, and their gradients -----------------------------------------------------------------


def through_norm(grad: Tensor, normed: Tensor, inverse: Tensor) -> Tensor:
    """Gradient by z of a loss with the gradient `grad` by normed, z normalised."""
    along = (grad * normed).mean(-1, keepdim=True)
    return torch.addcmul(grad - grad.mean(-1, keepdim=True), normed, along, value=-1).mul_(inverse)


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


def _bound(rule: Rule, memory: Tensor) -> Tensor:
    """W and S each back in the ball; the very same tensor where they never left it, which costs a copy less."""
    parts = memory.unflatten(1, (-1, memory.shape[1] // (1 + rule.has_momentum)))
    if bool((torch.linalg.vector_norm(parts, dim=(2, 3)) <= rule.radius).all()):
        return memory
    return into_ball(parts, rule.radius).flatten(1, 2)


def _bound_backward(rule: Rule, memory: Tensor, grad: Tensor) -> Tensor:
    shape = (-1, memory.shape[1] // (1 + rule.has_momentum))
    parts, grads = memory.unflatten(1, shape), grad.unflatten(1, shape)
    norm = torch.linalg.vector_norm(parts, dim=(2, 3), keepdim=True)
    outer = norm.clamp(min=rule.radius)
    unit = parts / outer
    along = (grads * unit).sum((2, 3), keepdim=True) * (norm > rule.radius)
    return ((rule.radius / outer) * (grads - along * unit)).flatten(1, 2)


def _weighed(x: Tensor, weights: Tensor) -> Tensor:
    """(N, rows, I) and (N, rows, k) -> (N, rows, k I): what meets W above S."""
    return (x[:, :, None] * weights[..., None]).flatten(2)


def _collapsed(x: Tensor, weights: Tensor) -> Tensor:
    """(N, rows, k, I) and (N, rows, k) -> (N, rows, I), their weighted sum."""
    total = x[:, :, 0] * weights[..., :1]
    return total if x.shape[2] == 1 else total.addcmul_(x[:, :, 1], weights[..., 1:])


def _mixing(rule: Rule, c: Coefficients) -> Tensor:
    """(N, k, k): how W and S at the end of a chunk are made of those at its beginning."""
    if not rule.has_momentum:
        return c.read[:, -1:]
    below = torch.stack([torch.zeros_like(c.carried[:, -1]), c.carried[:, -1]], 1)
    return torch.stack([c.read[:, -1], below], 1)


def _ends(rule: Rule, c: Coefficients) -> Tensor:
    """(N, R, k): weights of the rows' gradients in W and S at the end of a chunk."""
    ends = [c.gradients[:, -1], c.into[:, -1]]
    return torch.stack(ends[: 1 + rule.has_momentum], 2)


class _Kept(NamedTuple):
    """What the backward pass needs of a chunk and cannot get cheaper than from memory."""

    coefficients: Coefficients
    entered: list[Tensor | None]  # memories before the ball; None where they never left it
    memories: list[Tensor]
    anchors: list[Tensor]
    keys: list[_Active]  # activations of the hidden layers, at the keys
    queries: list[_Active]  # and at the queries
    scores: list[Tensor]  # (N, m, R) q_t . a_i of every layer
    back: list[Tensor]  # (N, R, hidden) errors before the activations' slopes
    error: Tensor  # (N, R, V) of the last layer
    bare: Tensor | None  # (N, R, V): the last layer's output before it fades
    normed: Tensor
    inverse: Tensor


class _Done(NamedTuple):
    output: Tensor
    memories: list[Tensor]
    fade: Tensor
    surprise: Tensor
    squares: Tensor
    kept: _Kept


def _forward(rule: Rule, piece: Streams, entered: list[Tensor], anchors: list[Tensor] | None, look: bool) -> _Done:
    memories = entered
    if anchors is None:
        memories = [_bound(rule, memory) for memory in entered]
        anchors = [memory[:, : memory.shape[1] // (1 + rule.has_momentum)] for memory in memories]
    c = coefficients(rule, piece)
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
    outer = bias_gradient(rule, answer, piece.value, piece.clip)
    errors = [through_norm(outer, normed, inverse) if rule.depth else outer]
    back: list[Tensor] = []
    for layer in range(len(keys), 0, -1):
        back.insert(0, torch.bmm(errors[0], anchors[layer].transpose(1, 2)))
        errors.insert(0, keys[layer - 1].slope(inputs[layer]).mul_(back[0]))
    # The read, and what is left at the end.
    mixing, ends, queries, scores, after = _mixing(rule, c), _ends(rule, c), [], [], []
    q, squares = piece.query, torch.zeros_like(piece.keep)
    for layer, (memory, a, u) in enumerate(zip(memories, inputs, errors, strict=True)):
        scores.append(torch.bmm(q, a.transpose(1, 2)))
        y = torch.bmm(_weighed(q, c.read), memory).baddbmm_(c.gradients * scores[-1], u, alpha=-1)
        end = torch.bmm(mixing, memory.unflatten(1, (mixing.shape[1], -1)).flatten(2)).view(memory.shape)
        after.append(end.baddbmm_(_weighed(a, ends).transpose(1, 2), u, alpha=-1))
        if look:
            squares = squares + _square_norms(c, memory, a, u)
        if layer < len(memories) - 1:
            queries.append(_Active.of(y))
            q = queries[-1].value()
    surprise = torch.linalg.vector_norm((answer - piece.value)[:, rule.window - 1 :], dim=-1) if look else squares
    left = [None if memory is before else before for before, memory in zip(entered, memories, strict=True)]
    kept = _Kept(c, left, memories, anchors, keys, queries, scores, back, errors[-1], bare, normed, inverse)
    return _Done(y, after, fades[:, -1:] if rule.decay_first else piece.fade, surprise, squares, kept)


def _square_norms(c: Coefficients, memory: Tensor, a: Tensor, u: Tensor) -> Tensor:
    """|A_t|^2 for every t (N, m), from inner products alone."""
    parts = memory.unflatten(1, (c.read.shape[2], -1))  # (N, k, I, O)
    gram = (a @ a.transpose(1, 2)) * (u @ u.transpose(1, 2))  # <g_i, g_j>
    with_parts = ((a[:, None] @ parts) * u[:, None]).sum(-1)  # (N, k, R): <W, g_i>, <S, g_i>
    flat = parts.flatten(2)
    square = ((c.read @ (flat @ flat.transpose(1, 2))) * c.read).sum(-1)
    square = square - 2 * ((c.read @ with_parts) * c.gradients).sum(-1)
    return square + ((c.gradients @ gram) * c.gradients).sum(-1)


def _backward(
    rule: Rule, piece: Streams, kept: _Kept, begun: bool, output: Tensor, fade: Tensor, after: list[Tensor],
    anchors: list[Tensor],
) -> tuple[Streams, list[Tensor], list[Tensor]]:  # fmt: skip
    """Gradients of a chunk's streams, memories and anchors from those of its output, fade, ends and anchors."""
    c, layers = kept.coefficients, len(after)
    inputs = [piece.key, *(active.value() for active in kept.keys)]
    queries = [piece.query, *(active.value() for active in kept.queries)]
    slopes = [active.slope(value) for active, value in zip(kept.keys, inputs[1:], strict=True)]
    errors = [*(slope * back for slope, back in zip(slopes, kept.back, strict=True)), kept.error]
    mixing, ends = _mixing(rule, c), _ends(rule, c)
    d_gradients, d_read = torch.zeros_like(c.gradients), torch.zeros_like(c.read)
    d_mixing, d_ends = torch.zeros_like(mixing), torch.zeros_like(ends)
    d_inputs, d_errors, d_memories = list(inputs), list(inputs), list(inputs)
    d_y = output
    for layer in reversed(range(layers)):
        memory, a, u, q, d_end = kept.memories[layer], inputs[layer], errors[layer], queries[layer], after[layer]
        width, scores = a.shape[2], kept.scores[layer]
        # The end of the chunk.
        flat = (mixing.shape[1], -1)
        d_flat = d_end.unflatten(1, flat).flatten(2)
        d_memory = torch.bmm(mixing.transpose(1, 2), d_flat).view(memory.shape)
        d_mixing.baddbmm_(d_flat, memory.unflatten(1, flat).flatten(2).transpose(1, 2))
        d_u = torch.bmm(_weighed(a, ends), d_end)  # of minus the errors
        d_rows = torch.bmm(u, d_end.transpose(1, 2)).unflatten(2, (-1, width))  # of minus the rows
        d_ends -= (d_rows * a[:, :, None]).sum(-1)
        d_a = _collapsed(d_rows, ends)  # of minus the inputs
        # The read.
        d_u.baddbmm_((c.gradients * scores).transpose(1, 2), d_y)
        d_scores = torch.bmm(d_y, u.transpose(1, 2))  # of minus the weighed scores
        d_gradients.addcmul_(d_scores, scores, value=-1)
        d_scores.mul_(c.gradients)
        d_a.baddbmm_(d_scores.transpose(1, 2), q)
        d_double = torch.bmm(d_y, memory.transpose(1, 2)).unflatten(2, (-1, width))
        d_read += (d_double * q[:, :, None]).sum(-1)
        d_q = _collapsed(d_double, c.read).baddbmm_(d_scores, a, alpha=-1)
        d_memory.baddbmm_(_weighed(q, c.read).transpose(1, 2), d_y)
        d_inputs[layer], d_errors[layer], d_memories[layer] = d_a.neg_(), d_u.neg_(), d_memory
        if layer:
            d_y = kept.queries[layer - 1].slope(q).mul_(d_q)
    # An anchor is the top of the memory that the chunk began with, unless it had begun before.
    d_anchors = [
        torch.zeros_like(anchor) if begun else d_memory[:, : anchor.shape[1]]
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
    d_outer = through_norm(d_error, kept.normed, kept.inverse) if rule.depth else d_error
    answer = _plus(kept.normed, piece.residual)
    d_answer, d_value, d_clip = _bias_backward(rule, answer, piece, d_outer)
    d_z = d_answer
    if rule.depth:
        outer = bias_gradient(rule, answer, piece.value, piece.clip)
        along = (outer * kept.normed).mean(-1, keepdim=True)
        turned = (d_error * kept.normed).mean(-1, keepdim=True)
        d_normed = torch.addcmul(d_answer, kept.inverse, (d_error * along).addcmul_(outer, turned), value=-1)
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
    # The coefficients.
    d_gradients[:, -1] += d_ends[..., 0]
    d_read[:, -1] += d_mixing[:, 0]
    momentum = (d_ends[..., 1], d_mixing[:, 1, 1]) if rule.has_momentum else (d_ends[..., 0], d_mixing[:, 0, 0])
    keep, momentum_gate, rate, importance = _coefficients_backward(rule, piece, c, d_gradients, d_read, *momentum)
    if not begun:
        d_memories = [
            d_memory if before is None else _bound_backward(rule, before, d_memory)
            for before, d_memory in zip(kept.entered, d_memories, strict=True)
        ]
    parts = Streams(
        d_a, d_value, d_answer if piece.residual.shape[1] else piece.residual, importance, d_clip, d_q, keep,
        momentum_gate, rate, torch.zeros_like(piece.present), d_fade,
    )  # fmt: skip
    return parts, d_memories, d_anchors


def _bias_backward(rule: Rule, answer: Tensor, piece: Streams, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of answer, value and clip."""
    if rule.bias == "l2":  # 2 (answer - value): known, and a fifth of the time of what follows
        return 2 * grad, -2 * grad, torch.zeros_like(piece.clip)
    with torch.enable_grad():
        leaves = [part.detach().requires_grad_() for part in (answer, piece.value, piece.clip)]
        found = torch.autograd.grad(bias_gradient(rule, *leaves), leaves, grad, allow_unused=True)
    first, second, third = (
        torch.zeros_like(leaf) if part is None else part for leaf, part in zip(leaves, found, strict=True)
    )
    return first, second, third
