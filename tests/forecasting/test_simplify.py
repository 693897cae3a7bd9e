"""A simplified graph has fewer nodes and computes the same."""

import warnings
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize, softplus

from forecasting.simplify import simplified

WIDE, NARROW, SQUARE, BIAS = (
    torch.randn(*shape, generator=torch.Generator().manual_seed(2)) for shape in ((16, 8), (2, 16), (8, 8), (16,))
)


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor):
        return self.function(x)


def standardise(x: Tensor, dim: int = -1) -> tuple[Tensor, Tensor]:
    centred = x - x.mean(dim, keepdim=True)
    inverse = torch.rsqrt(centred.square().mean(dim, keepdim=True) + 1e-3)
    return centred * inverse, inverse + 1


def exported(function, x: Tensor) -> torch.onnx.ONNXProgram:
    dynamic = ({0: torch.export.Dim.AUTO},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's remarks on its own internals
        program = torch.onnx.export(
            Function(function).eval(), (x,), dynamo=True, dynamic_shapes=dynamic, opset_version=20, verbose=False
        )
    assert program is not None
    return program


def graphs(function, x: Tensor):
    """The function as torch exports it and simplified: node types, and what onnxruntime computes."""
    program = exported(function, x)
    found = []
    for change in (lambda model: model, simplified):
        program.model = change(program.model)
        proto = program.model_proto
        session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        outputs = session.run(None, {proto.graph.input[0].name: x.numpy()})
        found.append((Counter(node.op_type for node in proto.graph.node), outputs))
    return found


@pytest.mark.parametrize(
    ("function", "gone", "left"),
    [
        (lambda x: standardise(x), {"ReduceMean", "Pow", "Sqrt", "Reciprocal"}, {"LayerNormalization": 1}),
        (lambda x: x * torch.rsqrt(x.square() + 1), {"Reciprocal"}, {"Div": 1}),
        (lambda x: 2.0 / (x.square() + 1), {"Reciprocal"}, {"Div": 1}),
        (lambda x: softplus(x), {"Where", "Greater"}, {"Softplus": 1}),
        (lambda x: normalize(x, dim=-1), {"Expand"}, {"Div": 1}),
    ],
    ids=["layer normalisation", "division", "of a constant", "softplus", "expansion"],
)
def test_a_pattern_becomes_one_node_with_the_same_numbers(function, gone, left):
    x = 30 * torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
    (before, expected), (after, actual) = graphs(function, x)
    assert gone <= set(before)
    assert not gone & set(after)
    assert left.items() <= after.items()
    assert after.total() < before.total()
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "function",
    [lambda x: standardise(x, dim=1), lambda x: softplus(x, threshold=2.0)],
    ids=["over another dimension", "with a low threshold"],
)
def test_what_only_looks_like_a_pattern_stays(function):
    x = 3 * torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0))
    (_, expected), (after, actual) = graphs(function, x)
    assert "LayerNormalization" not in after
    assert "Where" in after or "ReduceMean" in after
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("function", "once"),
    [
        (lambda x: 0.5 * x * 3.0, {"Mul": 2}),
        (lambda x: x.amax(1, keepdim=True).squeeze(1)[:, None].exp(), {"Squeeze": 1, "Unsqueeze": 1}),
        (lambda x: x.amax(1, keepdim=True).squeeze(1)[:, None, :, None], {"Squeeze": 1}),
        (lambda x: linear(linear(x[:, 0], WIDE, BIAS), NARROW, BIAS[:2]), {"Gemm": 2}),
        (lambda x: x[:, 1] + linear(x[:, 0], SQUARE), {"Add": 1}),
    ],
    ids=["numbers", "out and back", "out and back before another", "linear twice", "linear and a sum"],
)
def test_two_operations_become_one_or_none_with_the_same_numbers(function, once):
    x = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
    (before, expected), (after, actual) = graphs(function, x)
    assert once.items() <= before.items()
    assert all(after[name] < count for name, count in once.items())
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("function", "left"),
    [
        (lambda x: linear(linear(x[:, 0], SQUARE[:1], BIAS[:1]), WIDE[:, :1], BIAS), {"Gemm": 2}),
        (lambda x: x[:, :5] + linear(x[:, 0], SQUARE)[:, None], {"Gemm": 1, "Add": 1}),
    ],
    ids=["through a narrow place", "and a sum of another shape"],
)
def test_linear_maps_stay_apart_where_one_would_not_do_or_cost_more(function, left):
    (_, (expected,)), (after, (actual,)) = graphs(function, torch.randn(3, 5, 8))
    assert left.items() <= after.items()
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_onnxruntime_makes_one_node_of_rows_over_their_root_mean_square_whatever_gain_follows(tmp_path):
    gain = torch.rand(5, 8, generator=torch.Generator().manual_seed(1))
    x = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
    program = exported(lambda x: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * gain, x)
    program.model = simplified(program.model)
    proto = program.model_proto
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3  # it warns that the file is for this machine
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {proto.graph.input[0].name: x.numpy()})
    np.testing.assert_allclose(found, (x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * gain).numpy(), rtol=1e-5)
    types = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert types == ["SimplifiedLayerNormalization", "Mul"]
