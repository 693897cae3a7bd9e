"""Linear maps of the same rows give the numbers and gradients of as many linear layers."""

import pytest
import torch
from torch.nn.functional import linear

from models.memory.projections import linear_maps


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["in torch", "compiled"])
@pytest.mark.parametrize("shape", [(3, 5, 4), (2, 300, 4), (3, 4), (2, 0, 4)], ids=str)
@pytest.mark.parametrize("learned", [(True, True), (True, False), (False, True)], ids=str)
@pytest.mark.parametrize("used", [(0, 1, 2), (1,)], ids=str)
def test_they_are_as_many_linear_layers(dtype, shape, learned, used):
    torch.manual_seed(0)
    rows, maps = learned
    most = 1e-7 if dtype == torch.float64 else 2e-5

    def leaf(*size: int, learns: bool) -> torch.Tensor:
        return torch.randn(*size, dtype=dtype).requires_grad_(learns)

    x = leaf(*shape, learns=rows)
    pairs = [(leaf(6, 4, learns=maps), None), (leaf(1, 4, learns=maps), leaf(1, learns=maps))]
    pairs.append((leaf(2, 4, learns=maps), leaf(2, learns=False)))
    leaves = [x, *(part for pair in pairs for part in pair if part is not None)]
    leaves = [part for part in leaves if part.requires_grad]
    sides = linear_maps(x, *pairs), tuple(linear(x, *pair) for pair in pairs)
    weights = [torch.randn_like(part) for part in sides[1]]
    found, expected = (
        torch.autograd.grad(sum((side[at] * weights[at]).sum() for at in used), leaves, materialize_grads=True)
        for side in sides
    )
    for actual, wanted in [*zip(*sides, strict=True), *zip(found, expected, strict=True)]:
        torch.testing.assert_close(actual, wanted, rtol=most, atol=most)
