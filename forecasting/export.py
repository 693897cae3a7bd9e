"""Any model -> bundle: its step as a graph, the same step as the body of a Scan, and proof that they agree.

The scan graph of a streaming model is generic: an ONNX `Scan` node over time whose body is the step graph, so the two
cannot differ in what they compute. A model that labels complete sequences has no step; what it does at every
observation becomes a Scan, and what reads the whole sequence follows it as it is.

A model with a memory to look into has a third graph, its step with the look beside the prediction: to compute that
takes time, which a plain step shall not pay.

Names in the graphs: x, mask, future where covariates are known ahead, state.<name> in; prediction, next.<name> and
look.<name> out.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import io
import json
import logging
import math
import os
import platform
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnx.inliner
import torch
from numpy.typing import NDArray
from onnx import helper
from torch import Tensor, nn

from forecasting.bundle import LOOK, SCAN, STATE, STEP, Bundle, BundleError, seal, write_bundle, write_npz
from forecasting.certificate import certify, explain, relative_difference, sample_future, sample_input
from forecasting.conformal import Calibration
from forecasting.decompose import node_by_node
from forecasting.runtime import LoadedBundle
from forecasting.simplify import simplified
from forecasting.task import Task
from models.contract import GraphPart, Inside, Local, State, StepModel

Array = NDArray[Any]

OPSET = 20
EXAMPLE_ROWS, EXAMPLE_STEPS = 3, 7  # neither is 1, which exporters take for a constant


class ExportError(BundleError):
    """A model that cannot be a graph, or whose graph does not do what the model does."""


@dataclass(frozen=True)
class FittedSeries:
    """The series of a local model, with the states that a bundle keeps of them."""

    series: tuple[str, ...]
    state: State  # (N, ...) each
    last: Array  # (N,) `ds` of the last observation that each state has seen


def export_bundle(
    model: StepModel,
    task: Task,
    path: str | os.PathLike[str],
    *,
    name: str,
    config: dict[str, Any],
    training: dict[str, Any],
    metrics: list[dict[str, Any]],
    fitted: FittedSeries | None = None,
    calibration: Calibration | None = None,
) -> dict[str, Any]:
    """Write the model as a bundle, certified on this machine, and return its card.

    Args:
        name: of the model in the catalog.
        config: every field of the model's configuration.
        training: data_set, fingerprint (sha256 of the training frame), period, n_series, seed; and
            `typical`, {"level": [C], "scale": [C]}, if the certificate shall use data like the training data.
        metrics: rows of the backtest, the naive forecast's and the ridge's among them.
        calibration: what the runtime does to the graph's quantiles; the graphs and their certificate are without it.
        fitted: of a local model; the bundle then knows these series and refuses others.

    Raises:
        ExportError: the graphs differ from the model or from one another; nothing is written.
        BundleError: the bundle cannot be written; what was there is untouched.
    """
    model = copy.deepcopy(model).cpu().float().eval()
    if fitted is not None and task.freq is None:
        raise ExportError(f"{name}: its states are as of a time, so the data need a frequency; give --freq.")
    files = {STATE: write_npz(_initial_state(model) if fitted is None else _fitted_state(model, fitted))}
    graphs = {}
    if model.streams:
        if model.has_look:
            graphs[LOOK] = _step_graph(model, _look(model), _look_names(model))
            step = _without_look(graphs[LOOK])
        else:
            step = _step_graph(model)
        graphs[STEP], graphs[SCAN] = step, scan_graph(step)
    else:
        graphs[SCAN] = _whole_graph(model)
    for file, graph in graphs.items():
        _describe(graph, task, name)
        onnx.checker.check_model(graph, full_check=True)
        files[file] = graph.SerializeToString()
    card: dict[str, Any] = {
        "name": name,
        "config": config,
        "task": task.to_json(),
        "streams": model.streams,
        "graphs": {file: _interface(graph) for file, graph in graphs.items()},
        "opset": OPSET,
        "training": {
            key: training.get(key) for key in ("data_set", "fingerprint", "period", "n_series", "seed", "typical")
        }
        | training
        | {"libraries": libraries(model)},
        "metrics": metrics,
        "calibration": None if calibration is None else calibration.to_json(),
        "intended_use": use_of(task),
        "limits": limits_of(training),
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    loaded = LoadedBundle(Bundle(Path(path), seal(files, card), files))
    card["certificate"] = certify(loaded, torch_difference=_torch_difference(model, loaded))
    if not card["certificate"]["passed"]:
        raise ExportError(f"{name}: not exported: {explain(card['certificate'])}. Nothing was written to {path}.")
    write_bundle(path, files, card)
    return seal(files, card)


def scan_graph(step: onnx.ModelProto) -> onnx.ModelProto:
    """The same computation over (B, T, C): a Scan over axis 1 whose body is the step graph.

    The weights stay in the body: there onnxruntime folds and packs them as it does in the step, and it is faster by a
    fifth than with weights of the outer graph.
    """
    body = onnx.GraphProto()
    body.CopyFrom(step.graph)
    body.name = "step"
    states = [value for value in step.graph.input if value.name.startswith("state.")]
    values = [value for value in step.graph.input if not value.name.startswith("state.")]
    prediction, after = step.graph.output[0], step.graph.output[1:]
    inner = {value.name: f"step/{value.name}" for value in [*values, *states, prediction, *after]}
    _rename(body, inner)  # the names of a body must not shadow those around it
    inputs, outputs = list(body.input), list(body.output)
    del body.input[:], body.output[:]
    body.input.extend([*inputs[len(values) :], *inputs[: len(values)]])
    body.output.extend([*outputs[1:], outputs[0]])
    node = helper.make_node(
        "Scan",
        [value.name for value in [*states, *values]],
        [value.name for value in [*after, prediction]],
        name="scan",
        body=body,
        num_scan_inputs=len(values),
        scan_input_axes=[1] * len(values),
        scan_output_axes=[1],
    )
    graph = helper.make_graph([node], "scan", [*map(_over_time, values), *states], [_over_time(prediction), *after])
    return helper.make_model(graph, opset_imports=list(step.opset_import), ir_version=step.ir_version)


class _Flat(nn.Module):
    """A function of (x, mask, state) with the tensors of the state, and of a look, as arguments and results.

    With `known` a third argument is what is known ahead, which the function takes after the state.
    """

    def __init__(self, model: nn.Module, names: list[str], function: Any, known: bool = False) -> None:
        super().__init__()
        self.known = int(known)
        self.model = model  # so that its weights become the graph's
        self.names = names
        self.function = function

    def forward(self, x: Tensor, mask: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        future, state = others[: self.known], others[self.known :]
        prediction, after, *looks = self.function(x, mask, dict(zip(self.names, state, strict=True)), *future)
        return (
            prediction,
            *(after[name] for name in self.names),
            *(tensor for look in looks for tensor in look.values()),
        )


def _look(model: StepModel) -> Callable[[Tensor, Tensor, State], tuple[Tensor, State, Inside]]:
    def look(x: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State, Inside]:
        return model.look("step", x, mask, state)

    return look


def _look_names(model: StepModel) -> list[str]:
    x = torch.zeros(1, model.signature.channels)
    with torch.no_grad():
        return list(model.look("step", x, x, model.initial_state(1))[2])


def _step_graph(model: StepModel, function: Any = None, looks: Sequence[str] = ()) -> onnx.ModelProto:
    """The graph of `model.step`, or of another function of one observation and the state that may give a look too."""
    state = model.initial_state(EXAMPLE_ROWS)
    signature = model.signature
    channels = signature.channels
    flat = _Flat(model, list(state), function or model.step, bool(signature.future))
    batch = {0: torch.export.Dim.AUTO}
    ahead = [torch.randn(EXAMPLE_ROWS, signature.horizon, signature.future)] if signature.future else []
    others = (*ahead, *state.values())
    arguments = (torch.randn(EXAMPLE_ROWS, channels), torch.ones(EXAMPLE_ROWS, channels), *others)
    shapes: tuple[Any, ...] = (batch, batch, tuple(batch for _ in others)) if others else (batch, batch)
    try:
        with _quiet(), torch.no_grad(), node_by_node(), _named_parts(model) as parts:
            program = torch.onnx.export(
                flat, arguments, dynamo=True, dynamic_shapes=shapes, opset_version=OPSET, verbose=False
            )
            assert program is not None
            program.model = simplified(program.model)
            exported = program.model_proto
    except Exception as error:  # the exporter's own errors share no base
        raise ExportError(
            f"{type(model).__name__}: its step is no graph ({_first_line(error)}). "
            "A step must be plain tensor operations of fixed shapes but for the first dimension."
        ) from error
    inputs = ["x", "mask", *(["future"] if ahead else [])]
    return _named_graph(_composed(exported, parts), inputs, ["prediction"], list(state), {0: "batch"}, looks)


@contextlib.contextmanager
def _named_parts(model: nn.Module) -> Iterator[dict[str, GraphPart]]:
    """The parts of the model that bring their own graphs, named meanwhile so that the traced graph can call them."""
    parts = {f"part{n}": part for n, part in enumerate(m for m in model.modules() if isinstance(m, GraphPart))}
    for name, part in parts.items():
        part.part_name = name
    try:
        yield parts
    finally:
        for part in parts.values():
            part.part_name = ""


def _composed(model: onnx.ModelProto, parts: dict[str, GraphPart]) -> onnx.ModelProto:
    """The graph with each part's own graph in the place of every call of it."""
    if not parts and not model.functions:
        return model
    nodes = [*_nodes(model.graph), *(node for function in model.functions for node in function.node)]
    called = {node.op_type for node in nodes if node.domain == GraphPart.DOMAIN}
    traced = [type(part).__name__ for name, part in parts.items() if name not in called]
    if traced:  # by the exporter's second attempt, which unrolls what the first one keeps whole
        raise ExportError(f"the exporter could not take {', '.join(sorted(set(traced)))} as a part of the graph.")
    imports = {entry.domain: entry for entry in model.opset_import if entry.domain != GraphPart.DOMAIN}
    for name, part in parts.items():
        inner = part.graph()
        (entering,), (leaving,) = inner.graph.input, inner.graph.output
        for entry in inner.opset_import:
            if imports.setdefault(entry.domain, entry).version != entry.version:
                raise ExportError(f"{type(part).__name__}: its graph is of another opset than the model's.")
        model.functions.append(
            helper.make_function(
                GraphPart.DOMAIN, name, [entering.name], [leaving.name], inner.graph.node, list(inner.opset_import)
            )
        )
    del model.opset_import[:]
    model.opset_import.extend([*imports.values(), helper.make_opsetid(GraphPart.DOMAIN, 1)])
    whole = onnx.inliner.inline_local_functions(model)
    del whole.opset_import[:]
    whole.opset_import.extend(imports.values())
    return whole


def _without_look(look: onnx.ModelProto) -> onnx.ModelProto:
    """The step alone: the same nodes but for those that only the look needs."""
    step = onnx.ModelProto()
    step.CopyFrom(look)
    graph = step.graph
    outputs = [value for value in graph.output if not value.name.startswith("look.")]
    needed, nodes = {value.name for value in outputs}, []
    for node in reversed(look.graph.node):
        if needed & set(node.output):
            nodes.append(node)
            needed |= set(node.input)
            for attribute in node.attribute:
                for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                    needed |= _names(inner)
    constants = [tensor for tensor in look.graph.initializer if tensor.name in needed]
    del graph.output[:], graph.node[:], graph.initializer[:]
    graph.output.extend(outputs)
    graph.node.extend(reversed(nodes))
    graph.initializer.extend(constants)
    return step


def _whole_graph(model: StepModel) -> onnx.ModelProto:
    """The graph of a model that labels complete sequences."""
    from models.network import Network

    state = model.initial_state(EXAMPLE_ROWS)
    dims = {0: "batch", 1: "time"}
    if not isinstance(model, Network):
        example = torch.randn(EXAMPLE_ROWS, EXAMPLE_STEPS, model.signature.channels)
        flat = _Flat(model, list(state), model.scan)
        traced = _traced(flat, (example, torch.ones_like(example), *state.values()), 1 + len(state))
        return _named_graph(traced, ["x", "mask"], ["prediction"], list(state), dims)
    # The normaliser's scan is a doubling loop, which a trace would freeze at the example's length; its step is not.
    front = scan_graph(_step_graph(model, _enter(model)))
    features = torch.randn(EXAMPLE_ROWS, EXAMPLE_STEPS, model.config.embed)
    back = _named_graph(_traced(_Read(model), (features,), 1), ["features"], ["prediction"], [], dims)
    _rename(back.graph, {name: f"read/{name}" for name in _names(back.graph) - {"features", "prediction"}})
    _rename(front.graph, {"prediction": "features"})
    del front.graph.output[0]
    front.graph.node.extend(back.graph.node)
    front.graph.initializer.extend(back.graph.initializer)
    states = list(front.graph.output)
    del front.graph.output[:]
    front.graph.output.extend([*back.graph.output, *states])
    return front


def _enter(network: Any) -> Callable[[Tensor, Tensor, State], tuple[Tensor, State]]:
    """What a `Network` does at each observation before its backbone reads the sequence."""

    def enter(x: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State]:
        seen, after = network.normaliser.step(x, mask, state)
        return network.embed(torch.cat([seen.level, seen.change, seen.present], -1)), after

    return enter


class _Read(nn.Module):
    """What a `Network` does from its embedded sequence (B, T, E) on."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, features: Tensor) -> Tensor:
        raw = self.network.head(self.network.backbone.scan(features, {})[0])
        if self.network.signature.task == "classify":
            return raw.softmax(-1)
        return self.network.target_mean + self.network.target_std * raw.squeeze(-2)


def _traced(module: nn.Module, arguments: tuple[Tensor, ...], outputs: int) -> onnx.ModelProto:
    """A graph over (B, T, ...) by tracing, which keeps recurrent kernels whole; the newer exporter froze T in them."""
    buffer = io.BytesIO()
    names_in, names_out = [f"in{i}" for i in range(len(arguments))], [f"out{i}" for i in range(outputs)]
    axes = {
        name: {0: "batch", 1: "time"} if tensor.dim() == 3 else {0: "batch"}
        for name, tensor in zip(names_in, arguments, strict=True)
    }
    try:
        with _quiet(), torch.no_grad():
            torch.onnx.export(
                module,
                arguments,
                buffer,  # type: ignore[arg-type]  # the annotation forgets files in memory
                dynamo=False,
                opset_version=OPSET,
                input_names=names_in,
                output_names=names_out,
                dynamic_axes=axes | {"out0": {0: "batch", 1: "time"}},
            )
    except Exception as error:  # the exporter's own errors share no base
        raise ExportError(f"its scan is no graph ({_first_line(error)}).") from error
    return onnx.load_from_string(buffer.getvalue())


def _named_graph(
    model: onnx.ModelProto,
    inputs: list[str],
    outputs: list[str],
    states: list[str],
    dims: dict[int, str],
    looks: Sequence[str] = (),
) -> onnx.ModelProto:
    """The graph with the bundle's names for what enters and leaves, in order, and none of the exporter's remarks."""
    names_in = inputs + [f"state.{name}" for name in states]
    names_out = [*outputs, *(f"next.{name}" for name in states), *(f"look.{name}" for name in looks)]
    graph = model.graph
    if len(graph.input) != len(names_in) or len(graph.output) != len(names_out):
        raise ExportError(
            f"the exported graph has {len(graph.input)} inputs and {len(graph.output)} outputs, expected "
            f"{', '.join(names_in)} and {', '.join(names_out)}."
        )
    entering, leaving = [value.name for value in graph.input], [value.name for value in graph.output]
    given = {*entering, *(tensor.name for tensor in graph.initializer)}
    renamed = {old: f"graph/{old}" for old in _names(graph) if old}  # clear of the names to come
    renamed |= dict(zip(entering, names_in, strict=True))
    copies = []
    for old, new in zip(leaving, names_out, strict=True):
        if old in given or leaving.count(old) > 1:  # passed through, constant, or two outputs in one
            copies.append(helper.make_node("Identity", [renamed[old]], [new], name=f"copy/{new}"))
        else:
            renamed[old] = new
    _rename(graph, renamed)
    for value, new in zip(graph.output, names_out, strict=True):
        value.name = new
    graph.node.extend(copies)
    for value, original in [*zip(graph.input, names_in, strict=True), *zip(graph.output, names_out, strict=True)]:
        axes = dims if original in {*inputs, *outputs} else {0: "batch"}
        for axis, symbol in axes.items():
            dim = value.type.tensor_type.shape.dim[axis]
            if original in names_in and dim.dim_value:
                raise ExportError(f"the exporter froze the {symbol} of {original} at {dim.dim_value}.")
            dim.dim_param = symbol
    _strip(model)
    return model


def _rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    """Rename values throughout a graph and the graphs within it."""
    for value in [*graph.input, *graph.output, *graph.value_info, *graph.initializer]:
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                _rename(inner, names)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node of a graph and the graphs within it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _nodes(inner)


def _names(graph: onnx.GraphProto) -> set[str]:
    """Every value that a graph and the graphs within it name."""
    names = {value.name for value in [*graph.input, *graph.output, *graph.value_info, *graph.initializer]}
    for node in graph.node:
        names |= {*node.input, *node.output}
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                names |= _names(inner)
    return names - {""}


def _strip(model: onnx.ModelProto) -> None:
    """Remove traces of the source (paths, stack traces) and the exporter's own shape symbols."""
    del model.metadata_props[:], model.graph.value_info[:], model.graph.metadata_props[:]
    for part in [*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.initializer]:
        del part.metadata_props[:]
        part.doc_string = ""


def _over_time(value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    tensor = value.type.tensor_type
    batch, *rest = [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]
    return helper.make_tensor_value_info(value.name, tensor.elem_type, [batch, "time", *rest])


def _describe(graph: onnx.ModelProto, task: Task, name: str) -> None:
    """Put into the file what a reader needs who has nothing but the file."""
    fields = {
        "model": name,
        "task": task.kind,
        "channels": json.dumps([channel.to_json() for channel in task.channels]),
        "calendar": json.dumps(list(task.calendar)),
        "freq": str(task.freq),
        "horizon": str(task.horizon),
        "labels" if task.kind == "classify" else "quantiles": json.dumps(
            list(task.labels if task.kind == "classify" else task.quantiles)
        ),
    }
    helper.set_model_props(graph, fields)
    graph.producer_name = "mnemosyne"


def _interface(graph: onnx.ModelProto) -> dict[str, list[dict[str, Any]]]:
    def describe(value: onnx.ValueInfoProto) -> dict[str, Any]:
        tensor = value.type.tensor_type
        return {
            "name": value.name,
            "dtype": helper.tensor_dtype_to_np_dtype(tensor.elem_type).name,
            "shape": [dim.dim_param or dim.dim_value for dim in tensor.shape.dim],
        }

    return {
        "inputs": [describe(value) for value in graph.graph.input],
        "outputs": [describe(value) for value in graph.graph.output],
    }


def _initial_state(model: StepModel) -> dict[str, Any]:
    """The state of one series before its first observation; the same for all, as a bundle keeps only one."""
    one, several = model.initial_state(1), model.initial_state(EXAMPLE_ROWS)
    for name, value in one.items():
        if not torch.equal(value.expand_as(several[name]), several[name]):
            raise ExportError(f"the initial state '{name}' differs between series; a bundle keeps one for all.")
    return {name: value.detach().numpy() for name, value in one.items()}


def _fitted_state(model: StepModel, fitted: FittedSeries) -> dict[str, Any]:
    """The states of the fitted series as a stream of them would be saved: with their clock and their last forecast.

    Where covariates are known ahead that forecast is for 0 of each, with what one more of each adds to it.
    """
    state = {name: value.to(model.zeros()) for name, value in fitted.state.items()}
    told = {}
    with torch.no_grad():
        if model.signature.future:
            told["predictions"], told["effects"] = _linear_in_future(model, fitted.state)
        else:
            told["predictions"] = cast(Local, model).predict(state).numpy()
    last = fitted.last if fitted.last.dtype.kind == "M" else fitted.last.astype(np.float64)
    return {name: value.numpy() for name, value in state.items()} | {
        "series": np.array(fitted.series, dtype=np.str_),
        "last": last,
        **told,
    }


def _linear_in_future(model: StepModel, state: State) -> tuple[Array, Array]:
    """What a local model says where every covariate known ahead is 0 (N, H, Q), and what one more adds (N, F)."""
    exact = cast(Local, copy.deepcopy(model).double())  # a small effect beside a high level needs the digits
    own = {name: value.double() for name, value in state.items()}
    rows, signature = len(next(iter(own.values()))), model.signature
    nothing = torch.zeros(rows, signature.horizon, signature.future, dtype=torch.float64)
    base = exact.predict(own, nothing)
    effects = [(exact.predict(own, nothing + unit) - base)[:, 0, 0] for unit in torch.eye(signature.future)]
    return base.float().numpy(), torch.stack(effects, 1).float().numpy()


def _torch_difference(model: StepModel, loaded: LoadedBundle) -> float:
    """Between the model's own scan and the graph's, at several lengths and numbers of series."""
    x, mask = sample_input(loaded.card, seed=1)
    future = sample_future(loaded.card, seed=1)
    differences = []
    for rows, length in ((len(x), x.shape[1]), (1, 33), (2, 1)):
        part, shown = x[:rows, :length], mask[:rows, :length]
        state = loaded.initial_state(rows)
        before = {name: torch.from_numpy(value) for name, value in state.items()}
        ahead = [known[:rows, :length] for known in future]
        with torch.no_grad():
            expected, _ = model.scan(
                torch.from_numpy(part), torch.from_numpy(shown), before, *map(torch.from_numpy, ahead)
            )
        found, _ = loaded.run_scan(part, shown, state, *ahead)
        differences.append(relative_difference(found, expected.numpy(), loaded.kind))
    if loaded.has_look:
        differences.append(_look_difference(model, loaded, x, mask))
    return max(differences)


def _look_difference(model: StepModel, loaded: LoadedBundle, x: Array, mask: Array) -> float:
    """Between the looks of the model's steps and of the graph's, from the same states; inf where only one is NaN."""
    state = loaded.initial_state(len(x))
    expected, found = [], []
    for t in range(x.shape[1]):
        before = {name: torch.from_numpy(value) for name, value in state.items()}
        with torch.no_grad():
            _, _, inside = model.look("step", torch.from_numpy(x[:, t]), torch.from_numpy(mask[:, t]), before)
        _, state, look = loaded.run_look(x[:, t], mask[:, t], state)
        expected.append({name: value.numpy() for name, value in inside.items()})
        found.append(look)
    differences = [0.0]
    for name in expected[0]:
        a, b = (np.stack([look[name] for look in looks], 1) for looks in (found, expected))
        if not np.array_equal(np.isnan(a), np.isnan(b)):
            return math.inf
        differences.append(relative_difference(np.nan_to_num(a), np.nan_to_num(b), "look"))
    return max(differences)


def libraries(model: StepModel) -> dict[str, str]:
    """Versions of what computed a bundle, and of what fitted its model."""
    import onnxruntime

    packages = _packages()[model.library][:1] if model.library else []
    return {package: version(package) for package in packages} | {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
    }


@functools.cache
def _packages() -> Mapping[str, list[str]]:
    """Module -> packages that bring it; to ask reads what every installed package says of itself."""
    return packages_distributions()


def use_of(task: Task) -> str:
    names = ", ".join(f"{channel.name} [{channel.unit}]" if channel.unit else channel.name for channel in task.channels)
    what = {
        "forecast": f"forecasts the next {task.horizon} steps of {task.target}",
        "classify": f"recognises {', '.join(task.labels)}",
        "regress": f"estimates {task.target}",
    }
    return f"A model that {what[task.kind]} from {names}, one observation every {task.freq}."


def limits_of(training: dict[str, Any]) -> str:
    where = f"on {training['data_set']}" if training.get("data_set") else "on its training data"
    return (
        f"Trained and measured {where} only; other sources, units or sampling rates were not tried. "
        "Compare its metrics with the naive forecast's before use."
    )


def _first_line(error: Exception) -> str:
    """The cause beneath the exporter's own report, which runs over many lines."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return str(cause).strip().split("\n")[0][:300] or type(cause).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on its own internals and on packages that are not installed.

    And without the collector of cyclic garbage: the exporter makes millions of objects that live until its end, which
    it would look through again and again, and find nothing.
    """
    logger = logging.getLogger("torch.onnx")
    level, collects = logger.level, gc.isenabled()
    logger.setLevel(logging.ERROR)
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        if collects:
            gc.enable()
