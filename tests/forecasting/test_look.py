"""A look inside by onnxruntime alone: what the model sees, beside what the step predicts, on the same states."""

import shutil

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from data.frame import Channel
from forecasting.bundle import BundleError, read_bundle, write_bundle
from forecasting.certificate import certify, explain
from forecasting.export import export_bundle
from forecasting.runtime import load_bundle
from forecasting.task import Task
from models.catalog import build
from models.memory.backbone import MemoryBackbone, MemoryConfig
from models.memory.titans import LMM
from models.network import Network, NetworkConfig

TASK = Task("forecast", "y", (Channel("y", "V"), Channel("z", "A")), "h", horizon=3, season=24)
HEADS, STEPS = 2, 60
NAMES = ["block0.surprise", "block0.keep", "block0.momentum", "block0.rate", "block0.norm"]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = MemoryConfig(width=16, heads=HEADS, blocks=1, chunk=4, rate=0.2)
    network = Network(TASK.signature, NetworkConfig(embed=8), lambda width: MemoryBackbone(width, config, LMM))
    with torch.no_grad():  # as after training: what the memory says and what its gates see matters
        network.head.linear.weight.normal_(0, 0.3)
        network.backbone.layers[0].to_gates.weight.mul_(10)
    return network.eval()


@pytest.fixture(scope="module")
def path(model, tmp_path_factory):
    place = tmp_path_factory.mktemp("look") / "b"
    export_bundle(model, TASK, place, name="titans-lmm", config={}, training={}, metrics=[])
    return place


@pytest.fixture(scope="module")
def bundle(path):
    return load_bundle(path)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    place = tmp_path_factory.mktemp("plain") / "b"
    model = build("naive", TASK.signature)
    export_bundle(model, TASK, place, name="naive", config={}, training={}, metrics=[])
    return load_bundle(place)


def walk(rows: int = 2) -> np.ndarray:
    values = 50 + np.random.default_rng(rows).normal(size=(rows, STEPS, 2)).cumsum(1)
    values[0, 7] = np.nan
    values[1, 20:24, 0] = np.nan
    return values.astype(np.float32)


def test_the_look_of_the_graph_is_that_of_the_models_scan_and_steps(model, bundle):
    values = walk()
    x = torch.from_numpy(values)
    with torch.no_grad():
        expected, _, scanned = model.look("scan", x, x.isfinite().float(), model.initial_state(2))
    stream = bundle.stream(["a", "b"])
    for t in range(STEPS):
        prediction, look = stream.look(values[:, t])
        np.testing.assert_allclose(prediction, expected[:, t], rtol=1e-4)
        assert list(look) == list(bundle.look_names) == NAMES
        for name, value in look.items():
            assert value.shape == (2, HEADS)
            np.testing.assert_allclose(value, scanned[name][:, t], rtol=1e-4, atol=1e-5, err_msg=f"{name} at {t}")


def test_a_step_with_nothing_observed_has_no_surprise_and_no_gates(bundle):
    values = walk()
    stream = bundle.stream(["a", "b"])
    looks = [stream.look(values[:, t])[1] for t in range(STEPS)]
    for name in NAMES:
        missing = np.stack([np.isnan(look[name]).any(1) for look in looks], 1)
        expected = np.zeros((2, STEPS), bool)
        expected[0, 7] = name != "block0.norm"  # of the second series one channel is always there
        np.testing.assert_array_equal(missing, expected)
    np.testing.assert_allclose(looks[7]["block0.norm"][0], looks[6]["block0.norm"][0], rtol=1e-5)


def test_a_stream_may_look_at_some_steps_and_is_none_the_worse(bundle):
    values = walk()
    looking, stepping = bundle.stream(["a", "b"]), bundle.stream(["a", "b"])
    for t in range(STEPS):
        expected = stepping.step(values[:, t])
        found = looking.look(values[:, t])[0] if t % 3 else looking.step(values[:, t])
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        np.testing.assert_allclose(looking.predictions, expected, rtol=1e-5)


def test_a_state_saved_after_a_look_goes_on_with_steps_and_the_other_way_round(bundle, tmp_path):
    values = walk()
    whole = bundle.stream(["a", "b"])
    expected = [whole.look(values[:, t])[1]["block0.norm"] for t in range(20)]
    stream = bundle.stream(["a", "b"])
    for t in range(20):
        if t % 2:
            stream.step(values[:, t])
        else:
            _, look = stream.look(values[:, t])
            np.testing.assert_allclose(look["block0.norm"], expected[t], rtol=1e-5)
        stream.save(tmp_path / "state")
        stream = bundle.stream(state=tmp_path / "state")


def test_named_series_are_looked_into_each_and_the_others_stay_where_they_are(bundle):
    values = walk()
    stream, alone = bundle.stream(["a", "b"]), bundle.stream(["b"])
    for t in range(5):
        prediction, look = stream.look({"b": values[1, t]})
        expected, expected_look = alone.look({"b": values[1, t]})
        assert list(prediction) == list(look) == ["b"]
        np.testing.assert_allclose(prediction["b"], expected["b"], rtol=1e-5)
        assert look["b"]["block0.surprise"].shape == (HEADS,)
        np.testing.assert_allclose(look["b"]["block0.surprise"], expected_look["b"]["block0.surprise"], rtol=1e-5)
    for name, value in bundle.initial_state(1).items():
        np.testing.assert_array_equal(stream.state[name][:1], value)
    assert stream.look({}) == ({}, {})


def test_periods_that_were_skipped_are_stepped_as_missing_before_a_look(bundle):
    values = walk()
    jumping, stepping = bundle.stream(["a"]), bundle.stream(["a"])
    jumping.look({"a": values[0, 0]}, at="2024-01-01T00")
    _, jumped = jumping.look({"a": values[0, 1]}, at="2024-01-01T04")
    stepping.step({"a": values[0, 0]})
    for _ in range(3):
        stepping.step({"a": [np.nan, np.nan]})
    _, stepped = stepping.look({"a": values[0, 1]})
    for name, value in stepped["a"].items():
        np.testing.assert_allclose(jumped["a"][name], value, rtol=1e-4)
    with pytest.raises(BundleError, match="Time only runs forward"):
        jumping.look({"a": values[0, 2]}, at="2024-01-01T02")


def test_what_a_step_refuses_a_look_refuses(bundle):
    stream = bundle.stream(["a", "b"])
    with pytest.raises(BundleError, match="no series c; it has a, b"):
        stream.look({"c": [1.0, 2.0]})
    with pytest.raises(BundleError, match=r"expected \(2, 2\)"):
        stream.look(np.zeros((3, 2)))


def test_the_card_the_hashes_and_the_certificate_cover_the_look(path):
    card = read_bundle(path).card
    assert {"step.onnx", "scan.onnx", "look.onnx"} <= set(card["sha256"])
    outputs = [value["name"] for value in card["graphs"]["look.onnx"]["outputs"]]
    assert [name for name in outputs if name.startswith("look.")] == [f"look.{name}" for name in NAMES]
    assert card["graphs"]["look.onnx"]["outputs"][-1]["shape"] == ["batch", HEADS]
    assert card["certificate"]["parity"]["look"] <= 1e-6
    assert set(card["certificate"]["latency"]) == {"threads", "step_us", "stream_step_us", "stream_look_us"}


def test_a_step_does_not_pay_for_the_look(path):
    step, look = (onnx.load(path / file).graph for file in ("step.onnx", "look.onnx"))
    assert not [value.name for value in step.output if value.name.startswith("look.")]
    assert len(step.node) < len(look.node)
    used = {name for node in step.node for name in node.input} | {value.name for value in step.output}
    assert all(used & set(node.output) for node in step.node)
    assert {tensor.name for tensor in step.initializer} <= used


@pytest.mark.parametrize("damage", [b"not a graph", None])
def test_a_changed_or_missing_look_is_refused(path, tmp_path, damage):
    place = tmp_path / "b"
    shutil.copytree(path, place)
    (place / "look.onnx").unlink()
    if damage is not None:
        (place / "look.onnx").write_bytes(damage)
    with pytest.raises(BundleError, match=r"look\.onnx: the file (was changed|is missing)"):
        load_bundle(place)


def broken(path, place, output: str, factor: float) -> None:
    """A copy whose look graph multiplies one of its outputs, by someone who also mends the hashes."""
    found = read_bundle(path)
    model = onnx.load_from_string(found.files["look.onnx"])
    for node in model.graph.node:
        node.output[:] = ["before" if name == output else name for name in node.output]
        node.input[:] = ["before" if name == output else name for name in node.input]
    model.graph.initializer.append(numpy_helper.from_array(np.array(factor, np.float32), "factor"))
    model.graph.node.append(helper.make_node("Mul", ["before", "factor"], [output]))
    write_bundle(place, {**found.files, "look.onnx": model.SerializeToString()}, found.card)


@pytest.mark.parametrize(
    ("output", "factor"), [("prediction", 1.01), ("next.block0.memory0", 0.9), ("look.block0.surprise", np.nan)]
)
def test_a_look_that_predicts_or_learns_something_else_is_not_certified(path, tmp_path, output, factor):
    broken(path, tmp_path / "b", output, factor)
    certificate = certify(tmp_path / "b", steps=20)
    assert not certificate["passed"]
    assert "a step with a look predicts something else than a step" in explain(certificate)


def test_a_bundle_without_a_look_says_which_have_one_and_is_as_before(plain):
    assert not plain.has_look
    assert not (plain.path / "look.onnx").exists()
    assert "look" not in plain.card["certificate"]["parity"]
    stream = plain.stream(["a"])
    for look in (lambda: stream.look({"a": [1.0, 2.0]}), lambda: plain.look_names):
        with pytest.raises(BundleError, match=r"naive has no look inside: the bundle holds no look\.onnx"):
            look()
    assert np.isnan(stream.predictions).all()
