"""The pointwise work around a memory gives the numbers and gradients of its plain formulas, whatever the blocks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_cases import distance
from torch import Tensor
from torch.nn.functional import silu

from models.memory import pointwise
from models.memory.pointwise import gated_norm, unit_directions

SHAPES = {
    "batch": st.integers(1, 3),
    "steps": st.integers(0, 9),
    "heads": st.integers(1, 3),
    "width": st.integers(1, 4),
}


def plain_directions(mixed: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    rows = silu(mixed).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    units = rows[:2] / torch.linalg.vector_norm(rows[:2], dim=-1, keepdim=True).clamp(min=1e-12)
    return units[0], units[1], rows[2]


def plain_norm(answer: Tensor, gain: Tensor, gate: Tensor) -> Tensor:
    rows = answer.transpose(1, 2)
    return (rows / (rows.square().mean(-1, keepdim=True) + 1e-6).sqrt() * gain).flatten(2) * torch.sigmoid(gate)


def assert_same(function, plain, leaves: tuple[Tensor, ...]) -> None:
    """In numbers, and in the gradients of a random projection."""
    found, expected = function(*leaves), plain(*leaves)
    pairs = list(zip(found, expected, strict=True)) if isinstance(found, tuple) else [(found, expected)]
    weights = [torch.randn_like(part) for part, _ in pairs]
    gradients = []
    for side in zip(*pairs, strict=True):
        total = torch.stack([(part * weight).sum() for part, weight in zip(side, weights, strict=True)]).sum()
        gradients.append(torch.autograd.grad(total, leaves))
    for actual, wanted in [*pairs, *zip(*gradients, strict=True)]:
        assert actual.shape == wanted.shape
        assert distance(actual, wanted) < 1e-10


@pytest.mark.parametrize("block", [1, 20, 2**18])
@settings(max_examples=25)
@given(data=st.data())
def test_blocks_give_the_plain_formulas(block, data):
    batch, steps, heads, width = (data.draw(shape) for shape in SHAPES.values())
    torch.manual_seed(data.draw(st.integers(0, 1000)))

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64).requires_grad_()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pointwise, "BLOCK", block)
        mixed = leaf(batch, steps, 3 * heads * width)
        assert_same(lambda x: unit_directions(x, heads), lambda x: plain_directions(x, heads), (mixed,))
        parts = leaf(batch, heads, steps, width), leaf(heads, width), leaf(batch, steps, heads * width)
        assert_same(gated_norm, plain_norm, parts)


@pytest.mark.parametrize("value", [0.0, 1e-13, -800.0])
def test_a_direction_of_hardly_any_length_is_divided_by_no_less_than_the_shortest(value):
    mixed = torch.full((1, 2, 12), value, dtype=torch.float64)
    assert_same(lambda x: unit_directions(x, 2), lambda x: plain_directions(x, 2), (mixed.requires_grad_(),))
    assert unit_directions(mixed, 2)[0].isfinite().all()


def test_a_gate_in_half_precision_leaves_the_answer_and_its_gradient_in_single():
    torch.manual_seed(0)
    answer, gain = torch.randn(2, 2, 5, 4).requires_grad_(), torch.randn(2, 4).requires_grad_()
    gate = torch.randn(2, 5, 8).bfloat16().requires_grad_()
    found, expected = gated_norm(answer, gain, gate), plain_norm(answer, gain, gate)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    pairs = [torch.autograd.grad((side * weights).sum(), (answer, gain)) for side in (found, expected)]
    for actual, wanted in zip(*pairs, strict=True):
        torch.testing.assert_close(actual, wanted)


def test_a_token_alone_is_a_token_of_a_sequence():
    torch.manual_seed(0)
    mixed, gain, gate = torch.randn(2, 5, 24), torch.randn(2, 4), torch.randn(2, 5, 8)
    answer = torch.randn(2, 2, 5, 4)
    whole, normed = unit_directions(mixed, 2), gated_norm(answer, gain, gate)
    for at in range(5):
        for part, alone in zip(whole, unit_directions(mixed[:, at], 2), strict=True):
            torch.testing.assert_close(alone, part[:, :, at])
        torch.testing.assert_close(gated_norm(answer[:, :, at], gain, gate[:, at]), normed[:, at])


def test_a_transposed_view_of_a_convolution_is_taken_as_it_lies():
    torch.manual_seed(0)
    mixed = torch.randn(2, 12, 7, dtype=torch.float64).requires_grad_()
    assert_same(lambda x: unit_directions(x.mT, 2), lambda x: plain_directions(x.mT, 2), (mixed,))
