"""What the tests of the memories share: random tokens and how close two runs are.

Shapes: B series, P heads, T tokens, F features of a key, V width of values.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from models.contract import State, take
from models.memory.backbone import MemoryBackbone
from models.memory.core import Rule, Tokens, initial_state

BATCH, HEADS = 2, 2


def random_tokens(
    rule: Rule,
    steps: int,
    features: int = 4,
    values: int = 3,
    batch: int = BATCH,
    gaps: float = 0.0,
    dtype: torch.dtype = torch.float64,
) -> Tokens:
    """Unit keys and queries, gates over their whole range; a share `gaps` of the tokens is absent."""

    def normal(*width: int) -> Tensor:
        return torch.randn(batch, HEADS, steps, *width, dtype=dtype)

    residual = rule.depth > 0
    return Tokens(
        key=normalize(normal(features), dim=-1),
        value=normal(values),
        query=normalize(normal(features), dim=-1),
        keep=(2 + normal()).sigmoid(),
        momentum=normal().sigmoid(),
        rate=0.2 * normal().sigmoid(),
        importance=normal().sigmoid(),
        clip=normal().exp(),
        present=(torch.rand(batch, HEADS, steps) >= gaps).to(dtype),
        key_residual=normal(values) if residual else None,
        query_residual=normal(values) if residual else None,
    )


def random_memory(rule: Rule, features: int = 4, values: int = 3, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    shapes = rule.shapes(features, values)
    return [torch.randn(HEADS, rows, columns, dtype=dtype) / rows**0.5 for rows, columns in shapes]


def start(rule: Rule, memory: list[Tensor], batch: int = BATCH, values: int = 3) -> State:
    return initial_state(rule, memory, batch, memory[0].shape[1], values, rule.depth > 0)


def one(**parts: object) -> Tokens:
    """A stream of one series and one head from nested lists (T, ...); what is left out stays out of the way."""
    given = {name: torch.tensor(part, dtype=torch.float64)[None, None] for name, part in parts.items()}
    ones = torch.ones_like(given["key"][..., 0])
    plain = {"query": given["key"], "keep": ones, "momentum": 0 * ones, "rate": 0.5 * ones, "importance": ones}
    return Tokens(**(plain | {"clip": ones, "present": ones} | given))  # type: ignore[arg-type]


def distance(actual: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected value or to 1 if that is more."""
    if expected.numel() == 0:
        return 0.0
    return ((actual - expected).abs().max() / expected.abs().max().clamp(min=1)).item()


def states_apart(actual: State, expected: State) -> float:
    assert list(actual) == list(expected)
    return max(distance(actual[name], expected[name]) for name in expected)


def assert_no_series_sees_another(net: MemoryBackbone, e: Tensor, present: Tensor) -> None:
    """A series alone gives what it gives in a batch, whatever another holds; e: (3, T, C), present: (3, T)."""
    with torch.no_grad():
        whole, after = net.scan(e, net.initial_state(3), present)
        other = e.clone()
        other[0] = torch.randn_like(e[0])
        assert torch.equal(net.scan(other, net.initial_state(3), present)[0][1:], whole[1:])
        for row in range(3):
            alone, state = net.scan(e[row : row + 1], net.initial_state(1), present[row : row + 1])
            assert distance(alone, whole[row : row + 1]) < 1e-10
            assert states_apart(state, take(after, torch.tensor([row]))) < 1e-10
