import json
import warnings
from importlib.metadata import version

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

from data.frame import Channel
from forecasting.bundle import BundleError, read_bundle
from forecasting.export import ExportError, export_bundle
from forecasting.runtime import load_bundle
from forecasting.task import Task
from models.catalog import build
from models.contract import Signature, State, StepModel
from models.memory.backbone import MemoryBackbone, MemoryConfig
from models.memory.titans import LMM
from models.network import Network, NetworkConfig

VOLT, AMPERE = Channel("y", "V"), Channel("current", "A")
FORECAST = Task("forecast", "y", (VOLT, AMPERE), "h", horizon=6, season=24)
ONE = Task("forecast", "y", (VOLT,), "h", horizon=6)
GESTURE = Task(
    "classify", "label", (Channel("ax", "m/s2"), Channel("ay", "m/s2")), 0.02, labels=("left", "right", "up")
)
TRAINING = {"data_set": "ours", "n_series": 3, "typical": {"level": [400.0, -3.0], "scale": [5.0, 0.5]}}


def export(model: StepModel, task: Task, path, **more):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing that the exporter says reaches the user
        return export_bundle(model, task, path, name="m", config={"a": 1}, training=TRAINING, metrics=[], **more)


@pytest.fixture(scope="module")
def forecaster():
    torch.manual_seed(0)
    return build("gru", FORECAST.signature, hidden=8, skip_lags=12)


@pytest.fixture(scope="module")
def recogniser():
    torch.manual_seed(0)
    return build("bilstm", GESTURE.signature, hidden=8, layers=2)


@pytest.fixture(scope="module")
def forecaster_path(forecaster, tmp_path_factory):
    path = tmp_path_factory.mktemp("forecaster") / "b"
    export(forecaster, FORECAST, path)
    return path


@pytest.fixture(scope="module")
def recogniser_path(recogniser, tmp_path_factory):
    path = tmp_path_factory.mktemp("recogniser") / "b"
    export(recogniser, GESTURE, path)
    return path


class Passing(StepModel):
    """Counts: looks at neither x nor mask, hands two states through, and its prediction is also its next state."""

    def initial_state(self, batch: int) -> State:
        return {"kept.a": self.zeros(batch, 2) + 3, "count": self.zeros(batch, 1, 9), "unused": self.zeros(batch, 1)}

    def step(self, x: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State]:
        count = state["count"] + 1
        return count, {"kept.a": state["kept.a"], "count": count, "unused": state["unused"]}


class Peeking(StepModel):
    """Its scan does not do what its step does."""

    def initial_state(self, batch: int) -> State:
        return {}

    def step(self, x: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State]:
        value = torch.where(mask > 0.5, x, torch.zeros_like(x))
        return value[:, :1, None].expand(-1, 1, 9) * 1.0, state

    def scan(self, x: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State]:
        prediction, state = super().scan(x, mask, state)
        return prediction.roll(-1, 1), state


def random_input(rows: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(rows * 100 + length)
    mask = (rng.random((rows, length, 2)) > 0.2).astype(np.float32)
    return np.where(mask > 0, rng.normal(400, 5, mask.shape), np.nan).astype(np.float32), mask


@pytest.mark.parametrize(("rows", "length"), [(1, 1), (2, 33), (5, 7), (1, 400)])
def test_the_scan_graph_does_what_the_model_does_at_any_batch_and_length(forecaster, forecaster_path, rows, length):
    loaded = load_bundle(forecaster_path)
    x, mask = random_input(rows, length)
    with torch.no_grad():
        expected, after = forecaster.eval().scan(
            torch.from_numpy(x), torch.from_numpy(mask), forecaster.initial_state(rows)
        )
    found, state = loaded.run_scan(x, mask, loaded.initial_state(rows))
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5)
    assert list(state) == list(after)
    for name, value in after.items():
        np.testing.assert_allclose(state[name], value.numpy(), rtol=1e-4, atol=1e-4)


def test_the_tests_export_what_users_do(as_users_export, forecaster, forecaster_path, tmp_path, monkeypatch):
    """Their exporter is patched to be quick (tests/conftest.py)."""
    for owner, name, function in as_users_export:
        monkeypatch.setattr(owner, name, function)
    export(forecaster, FORECAST, tmp_path / "b")
    for graph in ("step.onnx", "scan.onnx"):
        assert (tmp_path / "b" / graph).read_bytes() == (forecaster_path / graph).read_bytes()


@pytest.mark.parametrize("memory", ["frozen", "off"])
def test_the_ablations_of_a_memory_step_alike_in_the_graph_through_gaps(memory, tmp_path):
    torch.manual_seed(0)
    config = MemoryConfig(width=8, heads=2, blocks=1, chunk=4, memory=memory)
    model = Network(FORECAST.signature, NetworkConfig(), lambda width: MemoryBackbone(width, config, LMM)).eval()
    export(model, FORECAST, tmp_path / "b")
    bundle = load_bundle(tmp_path / "b")
    x, mask = random_input(3, 40)
    state = bundle.initial_state(3)
    with torch.no_grad():
        expected, after = model.scan(torch.from_numpy(x), torch.from_numpy(mask), model.initial_state(3))
    for t in range(40):
        found, state = bundle.run_step(x[:, t], mask[:, t], state)
        np.testing.assert_allclose(found, expected[:, t].numpy(), rtol=1e-4, atol=1e-4)
    for name, value in after.items():
        np.testing.assert_allclose(state[name], value.detach().numpy(), rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.parametrize(("heads", "chunk", "most"), [(1, 1, 123), (2, 4, 133)])
def test_a_step_of_a_memory_is_so_few_operations(heads, chunk, most, tmp_path):
    config = MemoryConfig(width=8, heads=heads, blocks=1, chunk=chunk)
    model = Network(ONE.signature, NetworkConfig(), lambda width: MemoryBackbone(width, config, LMM)).eval()
    export_bundle(model, ONE, tmp_path / "b", name="m", config={}, training={}, metrics=[])
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3  # it warns that the file is for this machine
    onnxruntime.InferenceSession(tmp_path / "b" / "step.onnx", options, providers=["CPUExecutionProvider"])
    assert len(onnx.load(tmp_path / "optimised.onnx").graph.node) <= most


@pytest.mark.parametrize(("rows", "length"), [(1, 1), (2, 33), (5, 7), (1, 400)])
def test_a_graph_of_complete_sequences_does_what_the_model_does(recogniser, recogniser_path, rows, length):
    loaded = load_bundle(recogniser_path)
    x, mask = random_input(rows, length)
    with torch.no_grad():
        expected, _ = recogniser.eval().scan(
            torch.from_numpy(x), torch.from_numpy(mask), recogniser.initial_state(rows)
        )
    found, _ = loaded.run_scan(x, mask, loaded.initial_state(rows))
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_a_model_that_does_not_stream_has_no_step(recogniser_path):
    assert not (recogniser_path / "step.onnx").exists()
    card = read_bundle(recogniser_path).card
    assert card["streams"] is False
    assert card["certificate"]["causality"] is None


def test_the_graphs_have_the_contracts_names_and_dynamic_batch_and_time(forecaster, forecaster_path):
    card = read_bundle(forecaster_path).card
    states = list(forecaster.initial_state(1))
    for file in ("step.onnx", "scan.onnx"):
        graph = card["graphs"][file]
        assert [value["name"] for value in graph["inputs"]] == ["x", "mask", *(f"state.{name}" for name in states)]
        assert [value["name"] for value in graph["outputs"]] == ["prediction", *(f"next.{name}" for name in states)]
        assert {value["dtype"] for value in graph["inputs"] + graph["outputs"]} == {"float32"}
    assert card["graphs"]["step.onnx"]["inputs"][0]["shape"] == ["batch", 2]
    assert card["graphs"]["scan.onnx"]["inputs"][0]["shape"] == ["batch", "time", 2]
    assert card["graphs"]["scan.onnx"]["outputs"][0]["shape"] == ["batch", "time", 6, 9]


@pytest.mark.parametrize(("name", "ahead"), [("xgboost", 0), ("random-forest", 1)])
def test_a_recursion_over_the_horizon_is_one_loop_around_one_call_of_its_trees(tmp_path, name, ahead):
    """Unrolled, the same graph takes minutes to make, tens of megabytes and many times as long to run."""
    channels = (VOLT, *(Channel(f"known{index}", "") for index in range(ahead)))
    task = Task("forecast", "y", channels, 1, horizon=12, season=4, future=tuple(c.name for c in channels[1:]))
    model = build(name, task.signature, lags=8, strategy="recursive")
    export_bundle(model, task, tmp_path / "b", name=name, config={}, training={}, metrics=[])
    graph = onnx.load(tmp_path / "b" / "step.onnx").graph
    (loop,) = [node for node in graph.node if node.op_type == "Scan"]
    assert not [node for node in graph.node if node.op_type == "TreeEnsembleRegressor"]
    (body,) = [attribute.g for attribute in loop.attribute if attribute.name == "body"]
    assert [node.op_type for node in body.node].count("TreeEnsembleRegressor") == 1


def test_the_card_says_all_that_a_bundle_promises(forecaster_path):
    card = read_bundle(forecaster_path).card
    promised = (
        "schema_version name config task streams graphs opset training metrics calibration certificate intended_use "
        "limits created_at sha256"
    )
    assert set(promised.split()) == set(card)
    assert Task.from_json(card["task"]) == FORECAST
    assert card["calibration"] is None
    assert card["opset"] == 20
    assert set(card["training"]["libraries"]) >= {"torch", "onnx", "onnxruntime", "numpy"}
    assert card["training"]["fingerprint"] is None
    assert card["certificate"]["passed"]
    assert card["certificate"]["parity"]["torch"] < 1e-5


def test_the_card_names_the_library_that_fits_a_model(tmp_path, forecaster_path):
    card = export(build("garch", FORECAST.signature, paths=64), FORECAST, tmp_path / "b")
    assert card["training"]["libraries"]["arch"] == version("arch")
    assert "arch" not in read_bundle(forecaster_path).card["training"]["libraries"]


def test_the_files_tell_their_channels_without_the_card(forecaster_path):
    for file in ("step.onnx", "scan.onnx"):
        session = onnxruntime.InferenceSession(forecaster_path / file, providers=["CPUExecutionProvider"])
        fields = session.get_modelmeta().custom_metadata_map
        assert json.loads(fields["channels"]) == [VOLT.to_json(), AMPERE.to_json()]
        assert (fields["task"], fields["freq"], fields["horizon"]) == ("forecast", "h", "6")
        assert json.loads(fields["quantiles"])[0] == 0.1


def test_the_files_hold_no_paths_of_the_machine_that_made_them(forecaster_path):
    content = (forecaster_path / "step.onnx").read_bytes() + (forecaster_path / "scan.onnx").read_bytes()
    assert b"site-packages" not in content
    assert b".py" not in content


def test_weights_are_in_the_scan_graph_once(forecaster_path):
    step, scan = ((forecaster_path / file).stat().st_size for file in ("step.onnx", "scan.onnx"))
    assert scan < 1.2 * step + 2_000


def test_inputs_that_a_model_ignores_and_states_that_it_hands_through_are_in_the_graph(tmp_path):
    signature = Signature("forecast", 2)
    task = Task("forecast", "y", (VOLT, AMPERE), 1)
    export(Passing(signature), task, tmp_path / "b")
    loaded = load_bundle(tmp_path / "b")
    graph = onnx.load(tmp_path / "b" / "step.onnx").graph
    assert [value.name for value in graph.input] == ["x", "mask", "state.kept.a", "state.count", "state.unused"]
    state = loaded.initial_state(2)
    state["kept.a"] = np.array([[1, 2], [3, 4]], np.float32)
    prediction, after = loaded.run_step([[7, 0], [8, 0]], np.ones((2, 2)), state)
    assert prediction[:, 0, 0].tolist() == after["count"][:, 0, 0].tolist() == [1, 1]
    assert after["kept.a"].tolist() == [[1, 2], [3, 4]]


def test_a_graph_that_differs_from_its_model_is_not_exported(tmp_path):
    with pytest.raises(ExportError, match="the graph differs from the model"):
        export(Peeking(Signature("forecast", 2)), Task("forecast", "y", (VOLT, AMPERE), 1), tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_step_that_is_no_graph_says_so(tmp_path):
    class Branching(Peeking):
        def step(self, x: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State]:
            if float(x.sum()) > 0:
                x = -x
            return super().step(x, mask, state)

    with pytest.raises(ExportError, match="its step is no graph"):
        export(Branching(Signature("forecast", 2)), Task("forecast", "y", (VOLT, AMPERE), 1), tmp_path / "b")


def test_series_that_start_differently_are_refused(tmp_path):
    class Local(Peeking):
        def initial_state(self, batch: int) -> State:
            return {"level": torch.arange(batch, dtype=torch.float32)[:, None]}

    with pytest.raises(ExportError, match="'level' differs between series"):
        export(Local(Signature("forecast", 2)), Task("forecast", "y", (VOLT, AMPERE), 1), tmp_path / "b")


def test_export_leaves_the_model_as_it_was(tmp_path):
    model = Passing(Signature("forecast", 2))
    model.double().train()
    export(model, Task("forecast", "y", (VOLT, AMPERE), 1), tmp_path / "b")
    assert model.training
    assert model.zeros().dtype == torch.float64


def test_an_export_error_is_a_bundle_error():
    assert issubclass(ExportError, BundleError)
