"""Each test of a broken bundle breaks one thing, hashes and all, and asks that the certificate sees that thing."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from data.frame import Channel
from forecasting.bundle import read_bundle, write_bundle
from forecasting.certificate import LENGTH, certify, explain, relative_difference, sample_input
from forecasting.export import export_bundle
from forecasting.task import Task
from models.catalog import build

TASK = Task("forecast", "y", (Channel("y", "V"),), 1, horizon=4, season=12)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    torch.manual_seed(0)
    model = build("gru", TASK.signature, hidden=8, norm_window=24)
    with torch.no_grad():
        model.head.linear.weight.normal_(0, 0.5)  # as after training: what the memory holds matters
    place = tmp_path_factory.mktemp("certificate") / "b"
    export_bundle(model, TASK, place, name="gru", config={}, training={}, metrics=[])
    return place


def broken(path, place, file: str, change: Callable[[onnx.GraphProto], None]):
    """A copy whose graph was changed by someone who also mends the hashes."""
    found = read_bundle(path)
    model = onnx.load_from_string(found.files[file])
    change(model.graph)
    onnx.checker.check_model(model)
    write_bundle(place, {**found.files, file: model.SerializeToString()}, found.card)
    return place


def before_the_graph(graph: onnx.GraphProto, name: str, *nodes: onnx.NodeProto) -> None:
    """Let what reads `name` read what the nodes make of it, 'changed'."""
    for node in graph.node:
        node.input[:] = ["changed" if value == name else value for value in node.input]
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])


def drop_the_memory(graph):
    graph.node[0].output[:] = ["lost" if name == "next.rnn.h0" else name for name in graph.node[0].output]
    graph.node.append(helper.make_node("Identity", ["state.rnn.h0"], ["next.rnn.h0"]))


def look_one_step_ahead(graph):
    for name, value in {"from": [1], "to": [2**62], "last": [-1], "axis": [1]}.items():
        graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    before_the_graph(
        graph,
        "x",
        helper.make_node("Slice", ["x", "from", "to", "axis"], ["later"]),
        helper.make_node("Slice", ["x", "last", "to", "axis"], ["end"]),
        helper.make_node("Concat", ["later", "end"], ["changed"], axis=1),
    )


def mix_the_series(graph):
    graph.initializer.append(numpy_helper.from_array(np.array([0]), "rows"))
    before_the_graph(
        graph,
        "mask",
        helper.make_node("ReduceMin", ["mask", "rows"], ["least"], keepdims=1),
        helper.make_node("Mul", ["mask", "least"], ["changed"]),
    )


def ignore_the_mask(graph):
    before_the_graph(
        graph,
        "mask",
        helper.make_node("Shape", ["mask"], ["shape"]),
        helper.make_node(
            "ConstantOfShape", ["shape"], ["changed"], value=helper.make_tensor("one", onnx.TensorProto.FLOAT, [1], [1])
        ),
    )


def drift(graph):
    for node in graph.node:
        node.output[:] = ["exact" if name == "prediction" else name for name in node.output]
    graph.initializer.append(numpy_helper.from_array(np.array(1.01, np.float32), "factor"))
    graph.node.append(helper.make_node("Mul", ["exact", "factor"], ["prediction"]))


def explode(graph):
    drift(graph)
    graph.initializer[-1].CopyFrom(numpy_helper.from_array(np.array(np.inf, np.float32), "factor"))


def quick(place):
    return certify(place, steps=20)


def test_a_whole_bundle_passes(path):
    certificate = certify(path)
    assert certificate["passed"]
    assert certificate["causality"]["passed"]
    assert all(certificate["parity"][key] <= 1e-4 for key in ("split", "steps", "rows", "missing"))
    assert explain(certificate) == ""


@pytest.mark.parametrize(
    ("file", "change", "measure", "reason"),
    [
        ("scan.onnx", drop_the_memory, "split", "a scan in two parts differs"),
        ("scan.onnx", look_one_step_ahead, "split", "a prediction changes with what comes after it"),
        ("scan.onnx", mix_the_series, "rows", "a series alone differs"),
        ("scan.onnx", ignore_the_mask, "missing", "the value behind a mask changes"),
        ("step.onnx", drift, "steps", "single steps differ"),
        ("scan.onnx", explode, "steps", "is not finite"),
    ],
)
def test_a_broken_bundle_is_caught_for_what_is_broken(path, tmp_path, file, change, measure, reason):
    certificate = quick(broken(path, tmp_path / "b", file, change))
    assert not certificate["passed"]
    assert not certificate["parity"]["passed"]
    assert not certificate["parity"][measure] <= 1e-4
    assert reason in explain(certificate)


def test_only_a_look_ahead_breaks_causality(path, tmp_path):
    assert not quick(broken(path, tmp_path / "a", "scan.onnx", look_one_step_ahead))["causality"]["passed"]
    assert quick(broken(path, tmp_path / "b", "scan.onnx", drop_the_memory))["causality"]["passed"]


def test_latency_is_measured_over_two_thousand_steps_on_a_named_machine(path):
    certificate = certify(path)
    for measured in ("step_us", "stream_step_us"):
        figures = certificate["latency"][measured]
        assert figures["count"] == 2000
        assert 0 < figures["p50"] <= figures["p99"] <= figures["max"]
    assert certificate["latency"]["threads"] == 1
    assert certificate["machine"]["cpu"]
    assert certificate["machine"]["cores"] >= 1
    assert certificate["providers"] == ["CPUExecutionProvider"]


def test_a_slow_model_is_timed_over_fewer_steps(path):
    assert certify(path, budget_s=0.001)["latency"]["step_us"]["count"] < 2000


def test_a_difference_from_the_model_counts_too(path):
    assert quick(path)["passed"]
    certificate = certify(path, steps=20, torch_difference=1e-3)
    assert not certificate["passed"]
    assert "the graph differs from the model by 0.001" in explain(certificate)
    assert not certify(path, steps=20, torch_difference=float("nan"))["passed"]


def test_the_random_data_looks_like_the_training_data_and_has_gaps():
    card = {"task": TASK.to_json(), "training": {"typical": {"level": [400.0], "scale": [2.0]}}}
    x, mask = sample_input(card, seed=3)
    assert abs(np.nanmean(x) - 400) < 4
    assert 1 < np.nanstd(x) < 4
    assert (np.isnan(x) == (mask == 0)).all()
    assert mask[0].all()
    gap = np.diff(np.flatnonzero(np.r_[1, mask[2, :, 0], 1])).max() - 1
    assert gap >= LENGTH // 4


def test_the_random_data_is_standard_normal_like_where_the_card_does_not_know():
    x, _ = sample_input({"task": TASK.to_json(), "training": {"typical": None}})
    assert abs(np.nanmean(x)) < 2
    assert 0.4 < np.nanstd(x) < 2


def test_a_difference_is_relative_to_how_much_the_series_predictions_move():
    expected = np.array([[[0.0], [2.0]], [[100.0], [300.0]]])  # standard deviations 1 and 100
    found = expected + np.array([[[0.0], [0.01]], [[0.0], [0.1]]])
    assert relative_difference(found, expected, "regress") == pytest.approx(0.01)
    flat = np.full((1, 2, 1), 100.0)  # does not move: a tenth of its size, 10
    assert relative_difference(flat + 0.1, flat, "regress") == pytest.approx(0.01)
    assert relative_difference(flat + 0.1, flat, "classify") == pytest.approx(0.1)
    assert relative_difference(flat * np.nan, flat, "regress") == np.inf
