"""Titans' three ways to join attention and a memory: as context, as gate, as layer (arXiv 2501.00663).

Attention is exact and short, the memory long and lossy; persistent tokens p, learned and the same for every input, hold
what is known of the task (Eq. 19). With M the memory, x the input of a layer and "norm" an RMS norm with a learned gain
for every feature, the output o is

    MAC, memory as context (section 4.1), by segments of C tokens:
        h_t = M_start(x_t)                           read only; M_start is the memory at the start of the segment
        y_t = norm(x_t + attention of x_t to p, h and x of the segment, up to t)
        M learns y_t                                 o_t = sigmoid(y_t) * norm(M_t(y_t))
    MAG, memory as gate (section 4.2):
        y = norm(sliding-window attention to p and x)
        M learns p, then x                           o = sigmoid(y) * norm(M(x))
    MAL, memory as layer (section 4.3):
        M learns p, then x                           o = sliding-window attention to p and norm(M(x))

The paper leaves open how two branches are joined but for "learnable vector weights" and a non-linearity; the products
above are this project's reading. So is x_t in y_t: attention alone makes the tokens of a segment nearly the same, and a
memory that is told one thing b times at one anchor overshoots, and amplifies rounding with every segment.

A segment of MAC is a chunk of its memory, C = b: M_start is the chunk's anchor, at which the segment's gradients are
taken as well, and no token of a segment is in what the segment retrieves. In MAL p stays visible to the attention too,
where the paper's window leaves it behind.

A token that is not present leaves the memory as it was, and passes through attention like any other.

Shapes: B series, T time, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from models.attention import SlidingWindowAttention, check_window
from models.blocks import part, prefixed
from models.contract import Form, Inside, ModelError, State
from models.memory.backbone import CausalConvolution, Inner, MemoryBackbone, MemoryConfig, MemoryLayer
from models.memory.core import apart
from models.memory.titans import LMM

Mixed = tuple[Tensor, State, Inside]
"""What a mixer of `blocks` returns."""


@dataclass(frozen=True)
class ContextConfig(MemoryConfig):
    """MAC. `chunk` is the length of a segment too, `heads` are those of the memory and of the attention."""

    persistent: int = 4  # learned tokens that every token sees

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.persistent < 0:
            raise ModelError(f"persistent is 0 or more tokens, not {self.persistent}.")


@dataclass(frozen=True)
class WindowConfig(ContextConfig):
    """MAG and MAL. `heads` are those of the memory and of the attention."""

    window: int = 64  # tokens that a token's attention sees, itself among them

    def __post_init__(self) -> None:
        super().__post_init__()
        check_window("window", self.window)


class MemoryAsContext(nn.Module):
    """MAC: (B, T, D) -> (B, T, D)."""

    def __init__(self, config: ContextConfig, inner: Inner) -> None:
        super().__init__()
        if config.memory != "learns":
            raise ModelError(
                f"MAC cannot do with memory={config.memory}: it attends to what its memory has learned, a segment at a "
                "time. Ablate titans-mag, titans-mal or titans-lmm."
            )
        self.segment = config.chunk
        self.to_query = nn.Linear(config.width, config.width, bias=False)
        self.convolution = CausalConvolution(config.width, config.kernel)
        self.memory = MemoryLayer(config, inner)
        # Within a segment the window reaches to its start: the places of the buffer count as filled from there on.
        self.attention = SlidingWindowAttention(
            config.width, config.heads, config.chunk, persistent=config.persistent, rows=2
        )
        self.norm, self.answer_norm = nn.RMSNorm(config.width), nn.RMSNorm(config.width)

    def initial_state(self, batch: int) -> State:
        buffer = self.attention.initial_state(batch)
        buffer.pop("filled", None)  # is the memory's position
        return (
            prefixed("memory", self.memory.initial_state(batch))
            | prefixed("query", self.convolution.initial_state(batch))
            | prefixed("attention", buffer)
        )

    def step(self, x: Tensor, present: Tensor, state: State, look: bool = False) -> Mixed:
        """x: (B, D); present: (B,)."""
        query, past = self.convolution.step(self.to_query(x), part("query", state))
        out, after, inside = self._read_then_learn("step", x, query, present, state, look)
        return out, after | prefixed("query", past), inside

    def scan(self, x: Tensor, present: Tensor, state: State, look: bool = False) -> Mixed:
        """x: (B, T, D); present: (B, T). A segment at a time; series at different places of a segment run apart."""
        offset = 0
        if self.segment > 1:
            position = state["memory.position"][:, 0]
            if bool((position != position[:1]).any()):
                return apart(
                    position,
                    lambda rows: self.scan(x[rows], present[rows], {n: part[rows] for n, part in state.items()}, look),
                )
            offset = int(position[0].item()) if len(position) else 0
        query, past = self.convolution.scan(self.to_query(x), part("query", state))
        first, steps = self.segment - offset, x.shape[1]
        ends = [*range(first, steps, self.segment), steps]
        sizes = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
        outs, insides = [], []
        for piece in zip(x.split(sizes, 1), query.split(sizes, 1), present.split(sizes, 1), strict=True):
            out, state, inside = self._read_then_learn("scan", *piece, state, look)
            outs.append(out)
            insides.append(inside)
        seen = {name: torch.cat([one[name] for one in insides], 1) for name in insides[0]}
        return torch.cat(outs, 1), state | prefixed("query", past), seen

    def _read_then_learn(
        self, form: Form, x: Tensor, query: Tensor, present: Tensor, state: State, look: bool = False
    ) -> Mixed:
        """One token, or tokens of one segment: the memory is asked, then attention, and then the memory learns."""
        memory, buffer = part("memory", state), part("attention", state)
        if self.segment > 1:
            buffer["filled"] = memory["position"]
        rows = torch.stack([self.memory.retrieve(x, query, memory), x], -2)
        out, buffer = getattr(self.attention, form)(rows, buffer)
        buffer.pop("filled", None)
        y = self.norm(x + out)
        answer, memory, inside = getattr(self.memory, form)(y, present, memory, look)
        after = state | prefixed("memory", memory) | prefixed("attention", buffer)
        return y.sigmoid() * self.answer_norm(answer.to(x.dtype)), after, inside


class _BesideWindow(nn.Module, ABC):
    """A memory and a sliding window, both of which know the persistent tokens: the memory's stream begins with them."""

    def __init__(self, config: WindowConfig, inner: Inner) -> None:
        super().__init__()
        self.memory = MemoryLayer(config, inner)
        self.attention = SlidingWindowAttention(config.width, config.heads, config.window, persistent=config.persistent)
        self.norm = nn.RMSNorm(config.width)

    def initial_state(self, batch: int) -> State:
        memory = self.memory.initial_state(1)
        tokens = self.attention.persistent
        if tokens is not None:
            _, memory, _ = self.memory.scan(tokens[None], torch.ones_like(tokens[None, :, 0]), memory)
        state = prefixed("memory", memory) | prefixed("attention", self.attention.initial_state(1))
        return {name: value.expand(batch, *value.shape[1:]).clone() for name, value in state.items()}

    def step(self, x: Tensor, present: Tensor, state: State, look: bool = False) -> Mixed:
        """x: (B, D); present: (B,)."""
        return self._run("step", x, present, state, look)

    def scan(self, x: Tensor, present: Tensor, state: State, look: bool = False) -> Mixed:
        """x: (B, T, D); present: (B, T)."""
        return self._run("scan", x, present, state, look)

    @abstractmethod
    def _run(self, form: Form, x: Tensor, present: Tensor, state: State, look: bool = False) -> Mixed:
        """The named form of both parts."""


class MemoryAsGate(_BesideWindow):
    """MAG: (B, T, D) -> (B, T, D)."""

    def __init__(self, config: WindowConfig, inner: Inner) -> None:
        super().__init__(config, inner)
        self.answer_norm = nn.RMSNorm(config.width)

    def _run(self, form: Form, x: Tensor, present: Tensor, state: State, look: bool = False) -> Mixed:
        answer, memory, inside = getattr(self.memory, form)(x, present, part("memory", state), look)
        out, buffer = getattr(self.attention, form)(x, part("attention", state))
        joined = self.norm(out.to(x.dtype)).sigmoid() * self.answer_norm(answer.to(x.dtype))
        return joined, prefixed("memory", memory) | prefixed("attention", buffer), inside


class MemoryAsLayer(_BesideWindow):
    """MAL: (B, T, D) -> (B, T, D)."""

    def _run(self, form: Form, x: Tensor, present: Tensor, state: State, look: bool = False) -> Mixed:
        answer, memory, inside = getattr(self.memory, form)(x, present, part("memory", state), look)
        out, buffer = getattr(self.attention, form)(self.norm(answer.to(x.dtype)), part("attention", state))
        return out, prefixed("memory", memory) | prefixed("attention", buffer), inside


class MacBackbone(MemoryBackbone):
    """Blocks of MAC."""

    layer: ClassVar[type[nn.Module]] = MemoryAsContext

    def __init__(self, width: int, config: ContextConfig, inner: Inner = LMM) -> None:
        super().__init__(width, config, inner)


class MagBackbone(MemoryBackbone):
    """Blocks of MAG."""

    layer: ClassVar[type[nn.Module]] = MemoryAsGate

    def __init__(self, width: int, config: WindowConfig, inner: Inner = LMM) -> None:
        super().__init__(width, config, inner)


class MalBackbone(MemoryBackbone):
    """Blocks of MAL."""

    layer: ClassVar[type[nn.Module]] = MemoryAsLayer

    def __init__(self, width: int, config: WindowConfig, inner: Inner = LMM) -> None:
        super().__init__(width, config, inner)
