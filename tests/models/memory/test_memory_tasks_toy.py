"""Titans' toy (PAPERS 1.8-i): store 16 random pairs, query them after 200 distractors.

The outer loop learns the memory's start and one setting of its gates for each kind of token; there are up to twice as
many pairs as keys have dimensions. A deeper memory recalls more. That learned forgetting beats none shows where there
is something to forget: when the game is played again with new pairs and the same memory. Played once, both recall the
same, for a learned rate keeps the distractors out.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, normalize

from models.memory.chunks import chunked
from models.memory.core import Rule, Tokens, initial_state

WIDTH, SERIES, STEPS = 8, 8, 24
STORE, DISTRACT, ASK, BEGIN = 0, 1, 2, 3  # kinds of token; BEGIN is the first to be stored


def round_of(
    pairs: int, presentations: int, distractors: int, random: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values (B, T, WIDTH) and kinds (T,); the value of a query is what should be answered."""
    count = pairs + distractors
    key = normalize(torch.randn(SERIES, count, WIDTH, generator=random), dim=-1)
    value = key + layer_norm(torch.randn(SERIES, count, WIDTH, generator=random), (WIDTH,))
    parts = [slice(0, pairs)] * presentations + [slice(pairs, count), slice(0, pairs)]
    kinds = [BEGIN] + [STORE] * (pairs * presentations - 1) + [DISTRACT] * distractors + [ASK] * pairs
    return torch.cat([key[:, p] for p in parts], 1), torch.cat([value[:, p] for p in parts], 1), torch.tensor(kinds)


def left_after_training(
    *, depth: int, chunk: int, pairs: int, presentations: int, distractors: int, rounds: int = 1, forgets: bool = True
) -> float:
    """Squared error of the last round's answers on fresh pairs; 2 where the memory says nothing of the value."""
    torch.manual_seed(0)
    random = torch.Generator().manual_seed(0)
    rule = Rule(depth=depth, expansion=4, chunk=chunk)
    memory = [nn.Parameter(torch.randn(1, *s) / math.sqrt(s[0])) for s in rule.shapes(WIDTH, WIDTH)]
    # keep, momentum and rate of every kind, before the sigmoid: at the start mostly the pairs write
    gates = nn.Parameter(torch.tensor([[5.0, -1.0, -3.0], [5.0, -1.0, -6.0], [5.0, -1.0, -6.0], [5.0, -1.0, -3.0]]))
    optimiser = torch.optim.Adam([{"params": [gates], "lr": 0.2}, {"params": memory, "lr": 0.01}])

    def error() -> Tensor:
        keys, values, kinds = zip(
            *(round_of(pairs, presentations, distractors, random) for _ in range(rounds)), strict=True
        )
        key, value, kind = torch.cat(keys, 1)[:, None], torch.cat(values, 1)[:, None], torch.cat(kinds)
        keep, momentum, rate = gates[kind].sigmoid().expand(SERIES, 1, -1, -1).unbind(-1)
        asks = kind == ASK
        ones = torch.ones_like(keep)
        tokens = Tokens(
            key=key,
            value=torch.where(asks[:, None], torch.zeros(()), value),  # a query does not tell
            query=key,
            keep=keep if forgets else torch.ones_like(keep),
            momentum=momentum,
            rate=0.5 * rate,
            importance=ones,
            clip=ones,
            present=ones,
            key_residual=key,
            query_residual=key,
        )
        answer, _, _ = chunked(rule, tokens, initial_state(rule, memory, SERIES, WIDTH, WIDTH, True))
        return (answer - value)[:, :, -pairs:].square().mean()

    for _ in range(STEPS):
        optimiser.zero_grad()
        error().backward()
        optimiser.step()
    with torch.no_grad():
        return torch.stack([error() for _ in range(8)]).mean().item()


def test_a_deeper_memory_recalls_more_after_distractors():
    shallow, deep = (
        left_after_training(depth=depth, chunk=16, pairs=16, presentations=6, distractors=200) for depth in (1, 2)
    )
    assert shallow < 1  # it learned something: half of what an empty memory leaves
    assert deep < 0.92 * shallow, (shallow, deep)


def test_a_memory_that_learns_to_forget_recalls_more_than_one_that_never_does():
    forgetting, never = (
        left_after_training(depth=1, chunk=4, pairs=8, presentations=2, distractors=16, rounds=4, forgets=forgets)
        for forgets in (True, False)
    )
    assert forgetting < 0.92 * never, (forgetting, never)
