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


def outcomes(function, leaves: tuple[Tensor, ...]) -> list[Tensor]:
    """What it gives, and the gradients of a random projection of that."""
    found = function(*leaves)
    parts = list(found) if isinstance(found, tuple) else [found]
    torch.manual_seed(3)
    total = torch.stack([(part * torch.randn(part.shape, dtype=torch.float64).to(part.dtype)).sum() for part in parts])
    return [*parts, *torch.autograd.grad(total.sum(), leaves)]


def assert_same(function, plain, leaves: tuple[Tensor, ...], most: float = 1e-10) -> None:
    """What is plain in double precision. In single precision torch's own loss, fivefold, is allowed if it is more."""
    expected = outcomes(plain, tuple(leaf.detach().double().requires_grad_() for leaf in leaves))
    others = outcomes(plain, leaves)
    for actual, other, wanted in zip(outcomes(function, leaves), others, expected, strict=True):
        assert actual.shape == wanted.shape
        lost = 5 * distance(other.double(), wanted) if actual.dtype == torch.float32 else 0.0
        assert distance(actual.double(), wanted) < max(most, lost)


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


@settings(max_examples=40)
@given(data=st.data())
def test_compiled_loops_give_the_plain_formulas(data):
    batch, steps, heads, _ = (data.draw(shape) for shape in SHAPES.values())
    width = data.draw(st.integers(2, 40))  # of one number the direction has no gradient, only the rounding of one
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    scale = data.draw(st.sampled_from([0.01, 1.0, 10.0]))

    def leaf(*shape: int) -> Tensor:
        return (scale * torch.randn(*shape)).requires_grad_()

    mixed = leaf(batch, steps, 3 * heads * width)
    found = unit_directions(mixed, heads)
    assert all(part.grad_fn is None or "Compiled" in type(part.grad_fn).__name__ for part in found)
    assert_same(lambda x: unit_directions(x, heads), lambda x: plain_directions(x, heads), (mixed,), 2e-5)
    parts = leaf(batch, heads, steps, width), leaf(heads, width), leaf(batch, steps, heads * width)
    assert_same(gated_norm, plain_norm, parts, 2e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("value", [0.0, 1e-13, -800.0])
def test_a_direction_of_hardly_any_length_is_divided_by_no_less_than_the_shortest(value, dtype):
    mixed = torch.full((1, 2, 12), value, dtype=dtype)
    most = 1e-10 if dtype == torch.float64 else 1e-6
    assert_same(lambda x: unit_directions(x, 2), lambda x: plain_directions(x, 2), (mixed.requires_grad_(),), most)
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
