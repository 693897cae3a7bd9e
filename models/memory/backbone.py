"""A memory as a layer, and layers as a backbone for any head.

Projections, a short causal convolution and unit keys and queries feed the recurrence of `core`; its gates depend on the
input (Titans, arXiv 2501.00663, section 4.4). What `core` does with a token that is not present holds here too: an
observation that is missing leaves the memory as it was, while the convolution goes on.

Shapes: B series, T time, D width of the network, P heads, W = D / P width of a head, F features of a key, K kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from itertools import combinations_with_replacement
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, normalize, silu, softplus

from models.attention import MOST_TOKENS
from models.blocks import Blocks, PatchEmbedding, full_precision, numbers, part, prefixed
from models.contract import Form, Inside, ModelError, State
from models.memory.chunks import chunked
from models.memory.core import Look, Rule, Tokens, anchor_weights, effective, frozen, initial_state, learn, read
from models.memory.dispatch import can_be_compiled
from models.memory.pointwise import gated_norm, unit_directions
from models.memory.projections import linear_maps

MEMORY = ("learns", "frozen", "off")
LARGEST_RATE, LARGEST_RADIUS = 1e6, 1e9


@dataclass(frozen=True)
class MemoryConfig:
    """A stack of memory layers. Fields that a named model fixes are not among those that --set takes."""

    width: int = 64  # D
    heads: int = 4  # P
    blocks: int = 2
    kernel: int = 4  # K of the causal convolution on queries, keys and values; 1 leaves it out
    feed_forward: int = 2  # width of the feed-forward layer in D; 0 leaves it out
    dropout: float = 0.0
    chunk: int = 16  # b: tokens that share an anchor; 1 is the token-by-token rule
    rate: float = 0.5  # largest inner step of a whole chunk, see MemoryLayer; above 1 a repeated key may diverge
    radius: float = 100.0  # largest norm of a weight matrix of the memory
    # "learns", or an ablation of the same parameters. "frozen": the memory stays as it starts, whatever comes. "off":
    # no memory; the convolved value takes the place of its answer, and what is left is a gated causal convolution.
    memory: str = "learns"

    def __post_init__(self) -> None:
        for name in ("width", "heads", "blocks", "kernel", "chunk"):
            if getattr(self, name) < 1:
                raise ModelError(f"{name} is at least 1, not {getattr(self, name)}.")
        if self.memory not in MEMORY:
            raise ModelError(f"memory is one of {', '.join(MEMORY)}, not '{self.memory}'.")
        if self.width % self.heads:
            raise ModelError(f"heads must divide the width: {self.heads} does not divide {self.width}.")
        if self.feed_forward < 0 or not 0 <= self.dropout < 1:
            raise ModelError(
                f"feed_forward is 0 or more and dropout in [0, 1), not {self.feed_forward} and {self.dropout}."
            )
        if not 0 < self.rate < math.inf or not 0 < self.radius < math.inf:
            raise ModelError(f"rate and radius are finite and above 0, not {self.rate} and {self.radius}.")
        if self.rate > LARGEST_RATE or not 1 / LARGEST_RADIUS <= self.radius <= LARGEST_RADIUS:
            raise ModelError(
                f"rate is at most {LARGEST_RATE:g}, and radius lies between {1 / LARGEST_RADIUS:g} and "
                f"{LARGEST_RADIUS:g}, whose squares float32 can hold; got {self.rate} and {self.radius}."
            )
        for name in ("kernel", "chunk"):  # a chunk's coefficients are as many as the square of its tokens
            if getattr(self, name) > MOST_TOKENS:
                raise ModelError(f"{name} is at most {MOST_TOKENS} tokens, not {getattr(self, name)}.")


class CausalConvolution(nn.Module):
    """Each channel over its last K values; the first K - 1 before a stream are 0. With K = 1 it is not there."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel
        if kernel == 1:
            return
        weight = torch.zeros(channels, kernel)
        weight[:, -1] = 1.0  # at the start the present value passes as it is
        self.weight = nn.Parameter(weight + 0.1 * torch.randn(channels, kernel) / math.sqrt(kernel))

    def initial_state(self, batch: int) -> State:
        if self.kernel == 1:
            return {}
        return {"past": self.weight.new_zeros(batch, self.kernel - 1, self.weight.shape[0])}

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """x: (B, channels)."""
        if self.kernel == 1:
            return x, {}
        window = torch.cat([state["past"], x[:, None]], 1)
        return (window * self.weight.T).sum(1), {"past": window[:, 1:]}

    def scan(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """x: (B, T, channels)."""
        if self.kernel == 1:
            return x, {}
        window = torch.cat([state["past"], x], 1)
        return self._convolved(window), {"past": window[:, -(self.kernel - 1) :]}

    def _convolved(self, window: Tensor) -> Tensor:
        if can_be_compiled(window, self.weight):
            from models.memory.compiled_functions import CompiledConvolution

            return CompiledConvolution.apply(window, self.weight)
        return conv1d(window.transpose(1, 2), self.weight[:, None], groups=self.weight.shape[0]).transpose(1, 2)


class Polynomial(nn.Module):
    """All monomials of a vector up to a degree, weighted so that phi(q) . phi(k) = sum_i a_i (q . k)^i.

    a_i start at 1 / i! and are learned; they stand on the query's side alone, for a learned one may turn negative
    (ATLAS, arXiv 2505.23735, Eq. 5). C(W + degree, degree) features.
    """

    weights: Tensor

    def __init__(self, width: int, degree: int) -> None:
        super().__init__()
        self.width, self.degree = width, degree
        self.features = math.comb(width + degree, degree)
        if self.features > MOST_TOKENS:
            raise ModelError(
                f"degree {degree} makes {self.features:,} features of a head of {width}; the most are {MOST_TOKENS:,}: "
                "take a lower degree or more heads."
            )
        roots = []
        for order in range(degree + 1):
            if order:
                index = torch.tensor(list(combinations_with_replacement(range(width), order)))
                self.register_buffer(f"index{order}", index, persistent=False)
            for monomial in combinations_with_replacement(range(width), order):
                repeats = math.prod(math.factorial(monomial.count(i)) for i in set(monomial))
                roots.append(math.sqrt(math.factorial(order) / repeats))
        self.register_buffer("weights", torch.tensor(roots), persistent=False)
        self.coefficients = nn.Parameter(torch.tensor([1 / math.factorial(order) for order in range(degree + 1)]))
        self.counts = [math.comb(width + order - 1, order) for order in range(degree + 1)]

    def forward(self, x: Tensor) -> Tensor:
        """(..., W) -> (..., F), for keys."""
        parts = [torch.ones_like(x[..., :1])]
        for order in range(1, self.degree + 1):
            index = getattr(self, f"index{order}")
            product = x[..., index[:, 0]]
            for place in range(1, order):
                product = product * x[..., index[:, place]]
            parts.append(product)
        return torch.cat(parts, -1) * self.weights

    def query(self, x: Tensor) -> Tensor:
        """(..., W) -> (..., F), for queries: with the learned coefficients."""
        each = torch.cat([self.coefficients[i].expand(count) for i, count in enumerate(self.counts)])
        return self(x) * each


@dataclass(frozen=True)
class Inner:
    """The parts of a memory, after Miras: what a named model fixes and `memory` leaves open; see `core.Rule`."""

    depth: int = 2  # layers of its MLP, 1 to 4; 0 is a matrix without residual and norm
    expansion: int = 2  # width of the hidden layers, in widths of a head
    bias: str = "l2"  # the inner loss: l2, lp, huber, kl or dot
    power: float = 3.0  # p of lp
    retention: str = "decay"  # decay, lq, softmax or elastic
    dual_power: float = 4.0  # of lq
    threshold: float = 0.01  # of elastic
    mass: float = 1.0  # of softmax
    optimiser: str = "momentum"  # descent, momentum or muon
    window: int = 1  # tokens that each gradient is taken over; more than 1 is the Omega rule
    decay_first: bool = False  # forget before the error is taken: a matrix under descent
    forgets: bool = True  # whether it has a forgetting gate at all
    degree: int = 1  # of the polynomial features of its keys; 1 is the key itself

    def rule(self, config: MemoryConfig) -> Rule:
        of_layer = ("forgets", "degree")
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in of_layer}
        return Rule(**own, chunk=config.chunk, radius=config.radius)


class MemoryLayer(nn.Module):
    """(B, T, D) -> (B, T, D) through P memories.

    The b tokens of a chunk take their gradients at the same anchor, each over the c tokens of its window, and the
    features of a unit key have a squared norm of degree + 1. Where all keys are the same these gradients add up, and a
    matrix diverges once the sum of their steps exceeds 2 (Titans' stability limit, for a chunk of b). So `rate` is the
    largest step of them all together, `largest_step` = rate / (b c (degree + 1)) that of one token; with b = c = 1 on
    plain keys it is rate itself. Muon's step does not depend on its gradient's size: b alone counts. A matrix under the
    dot bias does not look at its error, cannot diverge and takes the rate as it is.
    """

    shut: Tensor

    def __init__(self, config: MemoryConfig, inner: Inner) -> None:
        super().__init__()
        self.config, self.inner, self.rule = config, inner, inner.rule(config)
        if inner.degree < 1:
            raise ModelError(f"degree is at least 1, not {inner.degree}.")
        if inner.window > MOST_TOKENS:
            raise ModelError(f"window is at most {MOST_TOKENS} tokens, not {inner.window}.")
        width, heads = config.width, config.heads
        self.head = width // heads
        self.to_qkv = nn.Linear(width, 3 * width, bias=False)
        self.convolution = CausalConvolution(3 * width, config.kernel)
        self.features = Polynomial(self.head, inner.degree) if inner.degree > 1 else None
        self.inputs = self.features.features if self.features else self.head
        self.residual = self.rule.depth > 0
        if self.residual and self.head == 1:
            raise ModelError(
                f"{heads} heads of a width of {width} leave one value to a head, whose norm is 0 whatever it is: this "
                "memory would never learn. Take fewer heads or a larger width."
            )
        if self.rule.optimiser == "muon":
            together = float(self.rule.chunk)
        elif self.rule.depth == 0 and self.rule.bias == "dot":
            together = 1.0
        else:
            together = float(self.rule.chunk * self.rule.window * (inner.degree + 1 if self.features else 1))
        self.largest_step = config.rate / together
        # keep, momentum, rate, importance and clip of every head
        self.to_gates = nn.Linear(width, 5 * heads)
        with torch.no_grad():
            self.to_gates.weight.mul_(0.1)
            # It forgets a tenth as fast as it learns, at any length of a chunk: an MLP that forgets faster comes to
            # rest at 0 for good, for there it has no gradient.
            keep, momentum, whole_step = 1 - 0.01 / together, 0.9, 0.1
            # Momentum takes every step 1 / (1 - momentum) times.
            step = whole_step * (1 - momentum) if self.rule.has_momentum else whole_step
            starts = (keep, momentum, min(step / config.rate, 0.9), 0.9, 1.0)
            bias = [math.log(s / (1 - s)) if s < 1 else 0.5413 for s in starts]  # softplus(0.5413) = 1
            self.to_gates.bias.copy_(torch.tensor(bias).repeat_interleave(heads))
        self.memory = nn.ParameterList(
            nn.Parameter(torch.randn(heads, rows, columns) / math.sqrt(rows))
            for rows, columns in self.rule.shapes(self.inputs, self.head)
        )
        if self.rule.depth == 0:
            nn.init.zeros_(self.memory[0])
        # What a token that is not present has for its gates: it keeps all and adds nothing.
        self.register_buffer(
            "shut", torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0]).repeat_interleave(heads)[:, None, None], persistent=False
        )
        self.gain = nn.Parameter(torch.ones(heads, self.head))
        exists = {
            "keep": inner.forgets,
            "momentum": self.rule.has_momentum,
            "rate": True,
            "importance": self.rule.window > 1,
            "clip": self.rule.bias == "huber",
        }
        self.gates = [name for name in exists if exists[name]]
        self.to_output_gate = nn.Linear(width, width)
        self.to_output = nn.Linear(width, width, bias=False)

    def initial_state(self, batch: int) -> State:
        conv = prefixed("conv", self.convolution.initial_state(batch))
        if self.config.memory == "off":
            return conv
        return conv | initial_state(self.rule, list(self.memory), batch, self.inputs, self.head, self.residual)

    def step(self, x: Tensor, present: Tensor, state: State, look: bool = False) -> tuple[Tensor, State, Inside]:
        """x: (B, D); present: (B,). The look inside is empty unless asked for."""
        with full_precision(x):
            x = x.to(self.gain.dtype)
            mixed, gates, opened = self._projected(x)
            mixed, conv = self.convolution.step(mixed, part("conv", state))
            memory = {name: value for name, value in state.items() if not name.startswith("conv.")}
            tokens = self._tokens(mixed, gates, present)
            answer, after, inside = self._learn(_learn_one, tokens, memory)
        seen = self._inside(tokens, inside if look else None)
        out = self._output(opened, answer)
        return out, prefixed("conv", conv) | after, {name: value[:, 0] for name, value in seen.items()}

    def scan(self, x: Tensor, present: Tensor, state: State, look: bool = False) -> tuple[Tensor, State, Inside]:
        """x: (B, T, D); present: (B, T). The look inside is empty unless asked for."""
        with full_precision(x):
            x = x.to(self.gain.dtype)
            mixed, gates, opened = self._projected(x)
            mixed, conv = self.convolution.scan(mixed, part("conv", state))
            memory = {name: value for name, value in state.items() if not name.startswith("conv.")}
            tokens = self._tokens(mixed, gates, present)
            answer, after, inside = self._learn(chunked, tokens, memory, (look,))
        return self._output(opened, answer), prefixed("conv", conv) | after, self._inside(tokens, inside)

    def retrieve(self, x: Tensor, query: Tensor, state: State) -> Tensor:
        """What the memory as it was at the start of the chunk answers, (B, [T,] D) each; it learns nothing.

        query: before its activation and norm, as `to_qkv` and the convolution leave one; x: what gates the answer.
        """
        with full_precision(x):
            x, query = x.to(self.gain.dtype), query.to(self.gain.dtype)
            rows = normalize(silu(query).unflatten(-1, (self.config.heads, self.head)).movedim(-2, 1), dim=-1)
            if x.dim() == 2:
                rows = rows[:, :, None]
            asked = rows if self.features is None else self.features.query(rows)
            answer = read(self.rule, anchor_weights(self.rule, state), asked, rows if self.residual else None)
            opened = self.to_output_gate(x)
        return self._output(opened, answer)

    def _learn(
        self, form: Callable[..., Any], tokens: Tokens, state: State, look: tuple[bool, ...] = ()
    ) -> tuple[Tensor, State, Any]:
        """What `learn` or `chunked` gives, which takes `look`, or the ablation in its place: that leaves the state."""
        if self.config.memory == "learns":
            return form(self.rule, tokens, state, *look)
        if self.config.memory == "frozen":
            answer, inside = frozen(self.rule, tokens, state)
        else:  # to have no memory is to answer 0, and so to miss the whole value
            answer = tokens.value
            inside = Look(torch.linalg.vector_norm(tokens.value, dim=-1), torch.zeros_like(tokens.keep))
        return answer, state, inside if all(look) else None

    def _projected(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, [T,] D) -> queries, keys and values (B, [T,] 3 D), gates (B, [T,] 5 P) and output gate (B, [T,] D)."""
        maps = (self.to_qkv, self.to_gates, self.to_output_gate)
        return linear_maps(x, *((map.weight, map.bias) for map in maps))

    def _tokens(self, mixed: Tensor, gates: Tensor, present: Tensor) -> Tokens:
        """Convolved projections and gates -> tokens (B, P, T, ...).

        A single token, T = 1, is `core.effective` already in a window of 1: where it is not present its gates are shut,
        all at once while they are one tensor, and what else it holds (only numbers: see `Blocks`) counts for nothing.
        """
        heads = self.config.heads
        query, key, value = unit_directions(mixed, heads)
        gates, there = gates.movedim(-1, 1), present[:, None]  # (B, 5 P, [T]) and (B, 1, [T])
        clip, gates = gates[:, 4 * heads :], gates.sigmoid()
        single = mixed.dim() == 2
        if single:
            query, key, value = (part[:, :, None] for part in (query, key, value))
            there, clip, gates = there[..., None, None], clip[..., None], gates[..., None, None]
            if self.rule.window == 1:
                gates = (gates - self.shut) * there + self.shut
        keep, momentum, rate, importance, _ = gates.split(heads, 1)
        rate = self.largest_step * rate
        if single:
            parts = (keep, momentum, rate, importance, there)
            keep, momentum, rate, importance, there = (gate.squeeze(3) for gate in parts)
        return Tokens(
            key=key if self.features is None else self.features(key),
            value=value,
            query=query if self.features is None else self.features.query(query),
            keep=keep if self.inner.forgets else torch.ones_like(keep),
            momentum=momentum,
            rate=rate,
            importance=importance if self.rule.window > 1 else there,
            clip=softplus(clip),
            present=there,
            key_residual=key if self.residual else None,
            query_residual=query if self.residual else None,
        )

    def _inside(self, tokens: Tokens, look: Look | None) -> Inside:
        """surprise, norm and the gates that this memory has, (B, T, P) each.

        Where nothing was observed the memory was not asked and nothing was written, so all but the norm are NaN there:
        a 0 would pass for a value that was foreseen, and pull down every mean of the surprise.
        """
        if look is None:
            return {}
        there = tokens.present > 0.5
        known = {"surprise": look.surprise, **{name: getattr(tokens, name) for name in self.gates}}
        inside = {name: torch.where(there, value, math.nan) for name, value in known.items()}
        return {name: value.movedim(1, -1) for name, value in (inside | {"norm": look.norm}).items()}

    def _output(self, opened: Tensor, answer: Tensor) -> Tensor:
        """opened: (B, [T,] D) the output gate; answer: (B, P, T, W)."""
        return linear_maps(gated_norm(answer, self.gain, opened), (self.to_output.weight, None))[0]


def _learn_one(rule: Rule, tokens: Tokens, state: State) -> tuple[Tensor, State, Look]:
    return learn(rule, tokens if rule.window == 1 else effective(tokens), state)


class MemoryBackbone(Blocks):
    """Blocks whose mixer is a memory, alone or beside an attention."""

    layer: ClassVar[type[nn.Module]] = MemoryLayer

    def __init__(self, width: int, config: MemoryConfig, inner: Inner) -> None:
        layers = [self.layer(config, inner) for _ in range(config.blocks)]
        enter = PatchEmbedding(width, config.width, 1)
        super().__init__(enter, layers, config.width, config.feed_forward, config.dropout)
        self.config = config

    def look(self, form: Form, e: Tensor, state: State, present: Tensor | None = None) -> tuple[Tensor, State, Inside]:
        """What the named form returns, and of every block and head what the memory did, (B, [T,] P) each.

        block<i>.surprise: norm of what the memory's answer missed, at the anchor.
        block<i>.norm: of all the memory's weights, after the token.
        block<i>.<gate>: the gates that the memory has of keep, momentum, rate, importance and clip; see `core.Tokens`.
        All but the norm are NaN where nothing was observed.
        """
        return self.run(form, numbers(e, present), state, present, look=True)
