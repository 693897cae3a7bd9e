"""One associative memory that learns while it reads, in three forms that agree exactly.

A memory is a small network M whose weights change with every token: it is asked to answer key k with value v, takes the
gradient of what it got wrong, forgets a little, and is then read at query q. Four parts are exchangeable (Miras,
arXiv 2504.13173): the *memory* (a matrix, or an MLP of depth 1 to 4 with residual and norm), the *bias* (the inner
loss), the *retention* (how old weights are kept) and the *optimiser* (descent, momentum, a window of tokens, Muon).

With accumulator A, momentum S, weights W = map(A), gates keep, momentum, rate of token t, and g_i the gradient of the
loss of token i at the *anchor*, the weights at the start of the chunk of b tokens that t lies in:

    G_t = sum over the window of c tokens ending at t of  importance_i g_i
    S_t = momentum_t S_{t-1} - rate_t G_t         A_t = keep_t A_{t-1} + S_t         y_t = M(q_t; map(A_t))
    Muon:  S_t = momentum_t S_{t-1} + G_t         A_t = keep_t A_{t-1} - rate_t min(1, |S_t|) NewtonSchulz(S_t)

b = 1 is Titans' rule token by token (arXiv 2501.00663, Eq. 12-14), c > 1 the Omega rule (arXiv 2505.23735, Eq. 9). A
token that is not present changes neither A nor S. At the start of every chunk A and S are scaled back into a ball, so
that no input can make them overflow.

`step` is the definition, one token at a time; `sequential` is that in a loop; `chunks.chunked` gives the same numbers a
chunk at a time. Every g_i is an outer product a_i u_i' of a layer's input and its error, so where map is the identity
the read needs no weights per token (`dual`). Gradients are written out: the same formulas train, step and export.

Shapes: B series, P heads, T tokens, D width of keys and queries, F width of the features of a key, V width of values,
b chunk, c window. All tensors here start with (B, P).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, sigmoid

from models.contract import Inside, ModelError, State

LOG_FLOOR = -30.0  # a gate of 0 in log space: what it multiplies is gone in float32
# Added to the variance of a memory's answer: its norm never amplifies. With the usual 1e-3 it makes up for whatever the
# memory forgets, and so curves the loss without bound: the memory becomes chaotic, and float32's rounding its answer.
NORM_EPS = 1.0
LONG = 2048  # numbers of which a product with themselves is faster than to square and to sum them
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


@dataclass(frozen=True)
class Rule:
    """The four parts of a memory, and how often its anchor moves."""

    depth: int = 2  # layers of the memory's MLP; 0 is a matrix without residual and norm
    expansion: int = 4  # width of the MLP's hidden layers, in widths of a head
    bias: Literal["l2", "lp", "huber", "kl", "dot"] = "l2"
    power: float = 3.0  # p of the lp bias
    retention: Literal["decay", "lq", "lq as printed", "softmax", "elastic"] = "decay"
    dual_power: float = 4.0  # of the lq retentions: 4 is Moneta's
    threshold: float = 0.01  # of the elastic retention: an accumulated weight up to it is none
    mass: float = 1.0  # sum of every slice of weights, those into one output, under softmax retention
    optimiser: Literal["descent", "momentum", "muon"] = "momentum"
    window: int = 1  # c of the Omega rule
    chunk: int = 16  # b
    decay_first: bool = False  # Gated DeltaNet: the gradient is taken at the decayed memory
    radius: float = 100.0  # largest norm of a weight matrix at the start of a chunk

    def __post_init__(self) -> None:
        if self.chunk < 1 or self.window < 1:
            raise ModelError(f"chunk and window are at least 1 token, got {self.chunk} and {self.window}.")
        if not 0 <= self.depth <= 4 or self.expansion < 1:
            raise ModelError(
                f"a memory has 0 (a matrix) to 4 layers and an expansion from 1, got {self.depth}, {self.expansion}."
            )
        if self.decay_first and (
            self.depth or self.optimiser != "descent" or self.window > 1 or self.retention != "decay"
        ):
            raise ModelError(
                "decay_first is defined for a matrix that decays, under plain descent, with a window of 1."
            )
        numbers = (self.power, self.dual_power, self.mass, self.radius, self.threshold)
        if not (
            all(map(math.isfinite, numbers))
            and (self.power >= 1 and self.dual_power > 1 and self.mass > 0 and self.radius > 0 and self.threshold >= 0)
        ):
            raise ModelError(
                "power is at least 1, dual_power above 1, mass and radius above 0, threshold 0 or more and all of them "
                f"finite; got {', '.join(f'{number:g}' for number in numbers)}."
            )
        for name, known in (
            ("bias", ("l2", "lp", "huber", "kl", "dot")),
            ("retention", ("decay", "lq", "lq as printed", "softmax", "elastic")),
            ("optimiser", ("descent", "momentum", "muon")),
        ):
            if getattr(self, name) not in known:
                raise ModelError(f"{name} is one of {', '.join(known)}, not '{getattr(self, name)}'.")

    @property
    def linear(self) -> bool:
        """Whether the weights are linear in the gradients, so that no weights per token are needed."""
        return self.retention == "decay" and self.optimiser != "muon"

    @property
    def has_momentum(self) -> bool:
        return self.optimiser != "descent"

    def shapes(self, features: int, values: int) -> list[tuple[int, int]]:
        """(in, out) of every weight matrix."""
        if self.depth <= 1:
            return [(features, values)]
        hidden = self.expansion * values
        return [(features, hidden), *[(hidden, hidden)] * (self.depth - 2), (hidden, values)]


class Tokens(NamedTuple):
    """T tokens, or one with T left out. Gates lie in their natural ranges, not in log space."""

    key: Tensor  # (B, P, T, F) features of the key
    value: Tensor  # (B, P, T, V)
    query: Tensor  # (B, P, T, F)
    keep: Tensor  # (B, P, T) share of the memory that stays, in [0, 1]
    momentum: Tensor  # (B, P, T) in [0, 1]
    rate: Tensor  # (B, P, T) step size, >= 0
    importance: Tensor  # (B, P, T) weight of the token in its window; (B, 1, T) will do in a window of 1
    clip: Tensor  # (B, P, T) norm of the residual above which the Huber bias grows linearly
    present: Tensor  # (B, P, T) or (B, 1, T): 1, or 0 where the token shall leave no trace
    key_residual: Tensor | None = None  # (B, P, T, V) what an MLP memory adds to its answer: the plain key
    query_residual: Tensor | None = None


class Look(NamedTuple):
    """What the memory did at every token, each (B, P, T)."""

    surprise: Tensor  # norm of the error of the memory's answer at the anchor
    norm: Tensor  # norm of all weights after the token


# --- the memory as a network --------------------------------------------------------------------------------


def normalise(z: Tensor) -> tuple[Tensor, Tensor]:
    """z with mean 0 and variance 1 over its last dimension, and 1 / its standard deviation."""
    centred = z - z.mean(-1, keepdim=True)
    inverse = torch.rsqrt(centred.square().mean(-1, keepdim=True) + NORM_EPS)
    return centred * inverse, inverse


def memory_answer(rule: Rule, z: Tensor, residual: Tensor | None) -> Tensor:
    """What the memory says, from its last layer's output."""
    if rule.depth == 0:
        return z
    normed = layer_norm(z, z.shape[-1:], eps=NORM_EPS)
    return normed if residual is None else residual + normed


def activate(z: Tensor) -> tuple[Tensor, Tensor]:
    """SiLU and its derivative."""
    gate = sigmoid(z)
    active = z * gate
    return active, gate + active * (1 - gate)


def bias_gradient(rule: Rule, answer: Tensor, value: Tensor, clip: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    """Gradient of weight times the inner loss with respect to the answer; clip: (..., T), weight: (..., T, 1)."""
    error = answer - value
    if rule.bias == "l2":
        return 2 * weight * error
    if rule.bias == "huber":  # the norm of the residual, clipped: continuous at the threshold
        # Not by adding as little: the exporter takes an addend below 1e-8 for none, and a window begins with rows of 0.
        norm = error.square().sum(-1, keepdim=True).clamp(min=1e-12).sqrt()
        return 2 * weight * error * (clip[..., None] / norm).clamp(max=1.0)
    if rule.bias == "lp":  # |e| smoothed by sqrt(e^2 + 1e-6), so that p < 2 has a gradient at 0
        return rule.power * weight * error * (error.square() + 1e-6) ** ((rule.power - 2) / 2)
    if rule.bias == "kl":
        return weight * (answer.softmax(-1) - value.softmax(-1))
    return -weight * value  # dot: the loss is -<M(k), v>


def layer_errors(
    rule: Rule,
    weights: list[Tensor],
    key: Tensor,
    value: Tensor,
    clip: Tensor,
    residual: Tensor | None,
    fade: Tensor | None,
    weight: Tensor | float = 1.0,
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Inputs a (..., T, in) and errors u (..., T, out) of every layer, and what the answer missed (..., T, V).

    The gradient of token i for a layer is the outer product a_i u_i'. fade: (..., T), of `decay_first`; weight:
    (..., T, 1) of every token's loss, and so of all its errors.
    """
    inputs, slopes, z = [key], [], key
    for layer, matrix in enumerate(weights):
        z = inputs[-1] @ matrix
        if layer < len(weights) - 1:
            active, slope = activate(z)
            inputs.append(active)
            slopes.append(slope)
    if fade is not None:
        z = z * fade[..., None]
    if rule.depth == 0:
        answer = z
        error = bias_gradient(rule, answer, value, clip, weight)
    else:
        normed, inverse = normalise(z)
        answer = normed if residual is None else residual + normed
        outer = bias_gradient(rule, answer, value, clip, weight)
        along = (outer * normed).mean(-1, keepdim=True)
        error = (outer - outer.mean(-1, keepdim=True) - normed * along) * inverse
    errors = [error]
    for layer in range(len(weights) - 1, 0, -1):
        error = (error @ weights[layer].transpose(-1, -2)) * slopes[layer - 1]
        errors.insert(0, error)
    return inputs, errors, answer - value


# --- retention and optimiser --------------------------------------------------------------------------------


def weights_of(rule: Rule, accumulator: Tensor) -> Tensor:
    """map(A): the weights that an accumulator (..., in, out) stands for."""
    if rule.retention == "decay":
        return accumulator
    if rule.retention == "softmax":
        return rule.mass * accumulator.softmax(-2)
    if rule.retention == "elastic":  # argmin 1/2 |W|^2 + threshold |W|_1 - <A, W>: exact zeros
        return accumulator.sign() * (accumulator.abs() - rule.threshold).clamp(min=0.0)
    if rule.retention == "lq as printed":
        # Miras' print, A / |A|_p^(p-2), is no minimiser but for p = 2 and grows as A falls: only the ball bounds it.
        norm = accumulator.abs().clamp(min=1e-9).pow(rule.dual_power).sum((-2, -1), keepdim=True)
        return into_ball(accumulator / norm.pow((rule.dual_power - 2) / rule.dual_power).clamp(min=1e-12), rule.radius)
    # The exact minimiser of the lq stability: sign(A) |A|^(p-1) / |A|_p^(p-2), of degree 1 in A.
    # `largest` cancels, so no gradient flows through it; the sum is 1 or more unless A is 0, where W is 0 as well.
    largest = accumulator.detach().abs().amax((-2, -1), keepdim=True).clamp(min=1e-20)
    unit = accumulator / largest
    size = unit.abs().clamp(min=1e-20)  # at 0 a power below 1 has no slope; W is 0 there by its sign
    norm = size.pow(rule.dual_power).sum((-2, -1), keepdim=True).clamp(min=1.0).pow(1 / rule.dual_power)
    return largest * unit.sign() * size.pow(rule.dual_power - 1) / norm.pow(rule.dual_power - 2)


def into_ball(tensor: Tensor, radius: float) -> Tensor:
    norm = torch.linalg.vector_norm(tensor, dim=(-2, -1), keepdim=True)
    return tensor * (radius / norm.clamp(min=radius))


def _square_norm(tensor: Tensor) -> Tensor:
    """(B, P, 1, 1) of (B, P, in, out)."""
    if tensor.shape[-2] * tensor.shape[-1] < LONG:
        return (tensor * tensor).sum((-2, -1), keepdim=True)
    row = tensor.reshape(-1, tensor.shape[1], 1, tensor.shape[-2] * tensor.shape[-1])
    return row @ row.transpose(-1, -2)


def chunk_border(rule: Rule, accumulators: list[Tensor], momenta: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """What happens to A and S where a chunk begins: nothing, unless they left the ball."""
    if rule.retention == "softmax":  # only differences count: make the weights' sum explicit, and no weight zero
        accumulators = [a.log_softmax(-2).clamp(min=LOG_FLOOR) for a in accumulators]
    else:
        accumulators = [into_ball(a, rule.radius) for a in accumulators]
    return accumulators, [into_ball(s, rule.radius) for s in momenta]


def newton_schulz(gradient: Tensor, steps: int = 5) -> Tensor:
    """Roughly U V' of a gradient U D V' (Muon): singular values of 0.01 and more of its norm end in [0.68, 1.13]."""
    tall = gradient.shape[-2] > gradient.shape[-1]
    x = gradient.transpose(-1, -2) if tall else gradient
    x = x / (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) + 1e-7)
    first, second, third = NEWTON_SCHULZ
    for _ in range(steps):
        square = x @ x.transpose(-1, -2)
        x = first * x + (second * square + third * square @ square) @ x
    return x.transpose(-1, -2) if tall else x


def muon_step(momentum: Tensor) -> Tensor:
    """min(1, |S|) NewtonSchulz(S).

    Of an S below 1 Newton-Schulz alone would make a step of 1 as well: a memory that has learned its stream would never
    rest, and rounding would say where it goes.
    """
    norm = (momentum * momentum).sum((-2, -1), keepdim=True).clamp(min=1e-30).sqrt()
    return newton_schulz(momentum) * norm.clamp(max=1.0)


def effective(tokens: Tokens) -> Tokens:
    """A token that is not present keeps everything, adds nothing and stays out of every window, whatever it holds.

    Replaced rather than multiplied by 0, which would let NaN through; its query is left, for its own answer alone.
    """
    rows = tokens.present[..., None] > 0.5
    there = rows.squeeze(-1)
    key, residual = torch.where(rows, tokens.key, 0.0), tokens.key_residual
    importance = tokens.importance
    if residual is not None:
        residual = key if residual is tokens.key else torch.where(rows, residual, 0.0)
    if importance is not tokens.present:  # which is 0 there already
        importance = torch.where(there, importance, 0.0)
    return tokens._replace(
        key=key,
        value=torch.where(rows, tokens.value, 0.0),
        key_residual=residual,
        keep=torch.where(there, tokens.keep, 1.0),
        momentum=torch.where(there, tokens.momentum, 1.0),
        rate=torch.where(there, tokens.rate, 0.0),
        importance=importance,
        clip=torch.where(there, tokens.clip, 1.0),
    )


# --- the three forms ----------------------------------------------------------------------------------------


def initial_state(
    rule: Rule, accumulators: list[Tensor], batch: int, features: int, values: int, residual: bool
) -> State:
    """The state before the first token; accumulators: per layer (P, in, out), learned by the outer loop."""
    heads = accumulators[0].shape[0]
    zeros = accumulators[0].new_zeros
    state: State = {}
    for layer, accumulator in enumerate(accumulators):
        state[f"memory{layer}"] = accumulator.expand(batch, *accumulator.shape).clone()  # every series its own
        if rule.has_momentum:
            state[f"momentum{layer}"] = zeros(batch, *accumulator.shape)
        if rule.chunk > 1:
            state[f"anchor{layer}"] = zeros(batch, *accumulator.shape)
    if rule.chunk > 1:
        state["position"] = zeros(batch, 1)
    if rule.decay_first and rule.chunk > 1:
        state["fade"] = zeros(batch, heads) + 1
    if rule.window > 1:
        past = (batch, heads, rule.window - 1)
        state |= {"past.key": zeros(*past, features), "past.value": zeros(*past, values)}
        state |= {"past.importance": zeros(*past), "past.clip": zeros(*past)}
        if residual:
            state["past.residual"] = zeros(*past, values)
    return state


def accumulators_of(state: State) -> list[Tensor]:
    """A of every layer, by its number: a state may come in any order."""
    return [state[f"memory{layer}"] for layer in range(sum(name.startswith("memory") for name in state))]


def anchor_weights(rule: Rule, state: State) -> list[Tensor]:
    """The weights at which the next token's gradient is taken: those at the start of the chunk that it lies in."""
    accumulators, _ = chunk_border(rule, accumulators_of(state), [])
    weights = [weights_of(rule, a) for a in accumulators]
    if rule.chunk == 1:
        return weights
    begins = _begins(state["position"])
    return [torch.where(begins, weight, state[f"anchor{layer}"]) for layer, weight in enumerate(weights)]


def read(rule: Rule, weights: list[Tensor], query: Tensor, residual: Tensor | None) -> Tensor:
    """M(q) for queries (B, P, T, F) -> (B, P, T, V); nothing is learned."""
    z = query
    for layer, weight in enumerate(weights):
        z = z @ weight
        if layer < len(weights) - 1:
            z, _ = activate(z)
    return memory_answer(rule, z, residual)


def frozen(rule: Rule, tokens: Tokens, state: State) -> tuple[Tensor, Look]:
    """What `chunked` answers where every rate is 0 and every keep 1: A never changes."""
    tokens = effective(tokens)
    accumulators, _ = chunk_border(rule, accumulators_of(state), [])
    weights = [weights_of(rule, a) for a in accumulators]
    missed = read(rule, weights, tokens.key, tokens.key_residual) - tokens.value
    squares = torch.stack([weight.square().sum((-2, -1)) for weight in weights]).sum(0)
    look = Look(torch.linalg.vector_norm(missed, dim=-1), squares.sqrt()[..., None].expand_as(tokens.keep))
    return read(rule, weights, tokens.query, tokens.query_residual), look


def refuse_longer_chunk(rule: Rule, position: float) -> None:
    """Raise ModelError where a state stands at a place that this memory's chunks do not have."""
    if position >= rule.chunk:
        raise ModelError(
            f"the state stands at token {position:g} of a chunk, the chunks of this memory have {rule.chunk}: "
            "it comes from a memory with longer chunks; start from initial_state, or set chunk as it was."
        )


def step(rule: Rule, tokens: Tokens, state: State) -> tuple[Tensor, State, Look]:
    """One token: the definition. Tokens without T; returns the answer (B, P, V), the next state, and a look inside."""
    answer, after, look = learn(rule, effective(map_tokens(tokens, lambda part: part[:, :, None])), state)
    return answer[:, :, 0], after, Look(*(part[:, :, 0] for part in look))


def learn(rule: Rule, tokens: Tokens, state: State) -> tuple[Tensor, State, Look]:
    """`step` of `effective` tokens with T = 1, and so is what it returns.

    Where a single series is stepped, what costs is the number of operations and of passes over the weights: scalars are
    multiplied before matrices, and the rate goes into the gradients' errors.
    """
    if rule.chunk > 1 and len(state["position"]) and not torch.compiler.is_compiling():
        refuse_longer_chunk(rule, state["position"].max().item())
    accumulators = accumulators_of(state)
    layers = len(accumulators)
    momenta = [state[f"momentum{layer}"] for layer in range(layers)] if rule.has_momentum else []
    begins = _begins(state["position"]) if rule.chunk > 1 else None
    accumulators, calming = _enter(rule, accumulators, momenta, state.get("position"))
    anchors = [weights_of(rule, a) for a in accumulators]
    after: State = {}
    fade = tokens.keep if rule.decay_first else None
    if begins is not None:
        anchors = [torch.where(begins, a, state[f"anchor{layer}"]) for layer, a in enumerate(anchors)]
        if fade is not None:
            fade = fade * torch.where(begins[..., 0], 1.0, state["fade"][..., None])
            after["fade"] = fade[..., 0]
        after["position"] = torch.fmod(state["position"] + 1, rule.chunk)
    rows = _with_past(rule, tokens, state)
    muon = rule.optimiser == "muon"
    keep, momentum, rate, present = (
        gate[..., None] for gate in (tokens.keep, tokens.momentum, tokens.rate, tokens.present)
    )
    weight = present if muon else rate
    if rows.importance is not tokens.present:  # else it says of a window of 1 what rate and present say already
        weight = weight * rows.importance[..., None]  # (B, P, c, 1)
    inputs, errors, missed = layer_errors(
        rule, anchors, rows.key, rows.value, rows.clip, rows.key_residual, fade, weight
    )
    weights, total = [], torch.zeros_like(tokens.keep)
    for layer in range(layers):
        moved = inputs[layer].transpose(-1, -2) @ errors[layer]
        if rule.has_momentum:
            kept = (momentum * calming[layer]) * momenta[layer]
            momenta[layer] = kept + moved if muon else kept - moved
            after[f"momentum{layer}"] = momenta[layer]
        if muon:
            change = -rate * muon_step(momenta[layer])
        elif rule.has_momentum:
            change = present * momenta[layer]
        else:
            change = -moved
        accumulators[layer] = keep * accumulators[layer] + change
        weights.append(weights_of(rule, accumulators[layer]))
        after[f"memory{layer}"] = accumulators[layer]
        if rule.chunk > 1:
            after[f"anchor{layer}"] = anchors[layer]
        total = total + weights[layer].square().sum((-2, -1))[..., None]
    answer = read(rule, weights, tokens.query, tokens.query_residual)
    after |= _past(rule, rows)
    return (
        answer,
        {name: after[name] for name in state},
        Look(torch.linalg.vector_norm(missed[..., -1:, :], dim=-1), total.sqrt()),
    )


def _enter(
    rule: Rule, accumulators: list[Tensor], momenta: list[Tensor], position: Tensor | None
) -> tuple[list[Tensor], list[Tensor]]:
    """`chunk_border` where position (B, 1) is 0, or everywhere if None: A, and what S is multiplied by."""

    def scales(tensors: list[Tensor]) -> list[Tensor]:
        squares = torch.cat([_square_norm(part) for part in tensors], -1)
        shrink = (rule.radius**2 / squares.clamp(min=rule.radius**2)).sqrt()
        if position is not None:  # later in a chunk it is 1
            shrink = torch.maximum(shrink, position[:, :, None, None].clamp(max=1.0))
        return list(shrink.split(1, -1))

    if rule.retention != "softmax":
        each = scales([*accumulators, *momenta])
        return [a * scale for a, scale in zip(accumulators, each, strict=False)], each[len(accumulators) :]
    bounded, _ = chunk_border(rule, accumulators, [])
    if position is not None:
        begins = _begins(position)
        bounded = [torch.where(begins, b, a) for b, a in zip(bounded, accumulators, strict=True)]
    return bounded, scales(momenta) if momenta else []


def _begins(position: Tensor) -> Tensor:
    """(B, 1, 1, 1) whether a chunk begins, of the place in it (B, 1)."""
    return position[:, :, None, None] < 0.5


ROWS = ("key", "value", "importance", "clip", "key_residual")


def _with_past(rule: Rule, tokens: Tokens, state: State) -> Tokens:
    """The tokens with the c - 1 before them, whose gradients count at this chunk's anchor too."""
    if rule.window == 1:
        return tokens
    names = [name for name in ROWS if getattr(tokens, name) is not None]
    rows = {name: torch.cat([state["past." + name.removeprefix("key_")], getattr(tokens, name)], 2) for name in names}
    return tokens._replace(**rows)


def _past(rule: Rule, rows: Tokens) -> State:
    if rule.window == 1:
        return {}
    kept = rule.window - 1
    names = [name for name in ROWS if getattr(rows, name) is not None]
    return {"past." + name.removeprefix("key_"): getattr(rows, name)[:, :, -kept:] for name in names}


def map_tokens(tokens: Tokens, change: Callable[[Tensor], Tensor]) -> Tokens:
    return Tokens(*(None if part is None else change(part) for part in tokens))  # type: ignore[arg-type]


def tokens_at(tokens: Tokens, place: int | slice) -> Tokens:
    return map_tokens(tokens, lambda part: part[:, :, place])


def nothing(tokens: Tokens, state: State) -> tuple[Tensor, State, Look]:
    """What no tokens give: no answers, and the state as it was."""
    return tokens.value.clone(), dict(state), Look(tokens.keep.clone(), tokens.keep.clone())


def apart(position: Tensor, run: Callable[[Tensor], tuple[Tensor, State, Inside]]) -> tuple[Tensor, State, Inside]:
    """What `run` gives of the rows that it is told, which stand at one place of a chunk each; position: (B,)."""
    groups = [(position == value).nonzero()[:, 0] for value in position.unique()]
    outs, states, insides = zip(*map(run, groups), strict=True)
    back = torch.cat(groups).argsort()
    after, seen = (
        {name: torch.cat([one[name] for one in several])[back] for name in several[0]} for several in (states, insides)
    )
    return torch.cat(outs)[back], after, seen


def sequential(rule: Rule, tokens: Tokens, state: State) -> tuple[Tensor, State, Look]:
    """`step` in a loop: answers (B, P, T, V)."""
    if tokens.key.shape[2] == 0:
        return nothing(tokens, state)
    answers, looks = [], []
    for t in range(tokens.key.shape[2]):
        answer, state, look = step(rule, tokens_at(tokens, t), state)
        answers.append(answer)
        looks.append(look)
    return torch.stack(answers, 2), state, Look(*(torch.stack(parts, 2) for parts in zip(*looks, strict=True)))
