"""Titans' toy (PAPERS 1.8-i): store 16 random pairs, query them after 200 distractors.

The outer loop learns the memory's start and one setting of its gates for each kind of token; keys have half as many
dimensions as there are pairs. A deeper memory recalls more. The toy's other claim, that learned forgetting beats none,
is not here: with a norm that does not amplify (`core.NORM_EPS`) both recall the same.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, normalize

from models.memory.chunks import chunked
from models.memory.core import Rule, Tokens, initial_state

WIDTH, PAIRS, DISTRACTORS, SERIES, STEPS = 8, 16, 200, 8, 24
STORE, DISTRACT, ASK = 0, 1, 2  # kinds of token


def round_of(presentations: int, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values (B, T, WIDTH) and kinds (T,); the value of a query is what should be answered."""
    count = PAIRS + DISTRACTORS
    key = normalize(torch.randn(SERIES, count, WIDTH, generator=random), dim=-1)
    value = key + layer_norm(torch.randn(SERIES, count, WIDTH, generator=random), (WIDTH,))
    parts = [slice(0, PAIRS)] * presentations + [slice(PAIRS, count), slice(0, PAIRS)]
    kinds = [STORE] * (PAIRS * presentations) + [DISTRACT] * DISTRACTORS + [ASK] * PAIRS
    return torch.cat([key[:, p] for p in parts], 1), torch.cat([value[:, p] for p in parts], 1), torch.tensor(kinds)


def left_after_training(depth: int, presentations: int, chunk: int) -> float:
    """Squared error of the answers on fresh pairs; 2 where the memory says nothing of the value."""
    torch.manual_seed(0)
    random = torch.Generator().manual_seed(0)
    rule = Rule(depth=depth, expansion=4, chunk=chunk)
    memory = [nn.Parameter(torch.randn(1, *s) / math.sqrt(s[0])) for s in rule.shapes(WIDTH, WIDTH)]
    # keep, momentum and rate of every kind, before the sigmoid: at the start mostly the pairs write
    gates = nn.Parameter(torch.tensor([[5.0, -1.0, -3.0], [5.0, -1.0, -6.0], [5.0, -1.0, -6.0]]))
    optimiser = torch.optim.Adam([{"params": [gates], "lr": 0.2}, {"params": memory, "lr": 0.01}])

    def error() -> Tensor:
        key, value, kind = round_of(presentations, random)
        key, value = key[:, None], value[:, None]
        keep, momentum, rate = gates[kind].sigmoid().expand(SERIES, 1, -1, -1).unbind(-1)
        asks = kind == ASK
        ones = torch.ones_like(keep)
        tokens = Tokens(
            key=key,
            value=torch.where(asks[:, None], torch.zeros(()), value),  # a query does not tell
            query=key,
            keep=keep,
            momentum=momentum,
            rate=0.5 * rate,
            importance=ones,
            clip=ones,
            present=ones,
            key_residual=key,
            query_residual=key,
        )
        answer, _, _ = chunked(rule, tokens, initial_state(rule, memory, SERIES, WIDTH, WIDTH, True))
        return (answer - value)[:, :, asks].square().mean()

    for _ in range(STEPS):
        optimiser.zero_grad()
        error().backward()
        optimiser.step()
    with torch.no_grad():
        return torch.stack([error() for _ in range(8)]).mean().item()


def test_a_deeper_memory_recalls_more_after_distractors():
    shallow, deep = (left_after_training(depth, presentations=6, chunk=16) for depth in (1, 2))
    assert shallow < 1  # it learned something: half of what an empty memory leaves
    assert deep < 0.92 * shallow, (shallow, deep)
