from collections import Counter

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from forecasting.decompose import node_by_node

pytestmark = pytest.mark.filterwarnings("ignore")  # the exporter's remarks on its own internals


class Composed(nn.Module):
    """Operations that ONNX does not know: of one result and of several, one that writes within, one that returns x."""

    def forward(self, x, mask):
        seen = (mask > 0) & x.isfinite()
        first, second = torch.where(seen, x, torch.zeros_like(x)).to(x.dtype).chunk(2, -1)
        return nn.functional.rms_norm(first, [2]).movedim(0, -1), second.square().flatten(0, 1), x.to(x.dtype)


class Writing(nn.Module):
    def forward(self, x, mask):
        y = x.clone()
        y[:, 0] = 7.0
        return (y * mask,)


def exported(model, arguments):
    batch = {0: torch.export.Dim.AUTO}
    return torch.onnx.export(model, arguments, dynamo=True, dynamic_shapes=(batch, batch), verbose=False).model_proto


@pytest.mark.parametrize("model", [Composed(), Writing()], ids=lambda model: type(model).__name__)
def test_what_is_decomposed_node_by_node_is_what_the_exporter_makes_of_it(model):
    arguments = (torch.randn(3, 2, 4), torch.ones(3, 2, 4))
    usual = exported(model, arguments)
    with node_by_node():
        found = exported(model, arguments)
    assert Counter(node.op_type for node in found.graph.node) == Counter(node.op_type for node in usual.graph.node)
    x, mask = torch.randn(5, 2, 4), torch.tensor([1.0, 0.0, 1.0, 1.0]).expand(5, 2, 4).contiguous()
    x[1, 0] = float("nan")
    names = [value.name for value in found.graph.input]
    session = onnxruntime.InferenceSession(found.SerializeToString(), providers=["CPUExecutionProvider"])
    results = session.run(None, {names[0]: x.numpy(), names[1]: mask.numpy()})
    for result, expected in zip(results, model(x, mask), strict=True):
        np.testing.assert_allclose(result, expected.numpy(), rtol=1e-6)


def test_the_whole_is_traced_again_only_where_something_writes(monkeypatch):
    again = []
    usual = torch.export.exported_program._decompose_exported_program
    monkeypatch.setattr(
        torch.export.exported_program,
        "_decompose_exported_program",
        lambda *args, **kwargs: again.append(args) or usual(*args, **kwargs),
    )
    arguments = (torch.randn(3, 2, 4), torch.ones(3, 2, 4))
    with node_by_node():
        exported(Composed(), arguments)
        assert again == []
        exported(Writing(), arguments)
        assert len(again) == 1
