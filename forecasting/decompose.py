"""What torch's exporter decomposes, node by node: it traces the whole model twice more for a handful of operations.

For that, `torch.onnx.export` asks the exported program to `run_decompositions`. Of a step nearly every node is one that
ONNX knows; each of the others is traced alone here and put in its place. The graph has the same operations, in half
the time. A program with anything else in it, a loop or an operation that writes, is decomposed as usual.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

try:  # torch's own rule of what it takes apart; it is no public part of torch
    from torch._export.utils import _check_valid_to_preserve, _is_cia_op
except ImportError:
    KNOWN = False
else:
    KNOWN = True
_usual = ExportedProgram.run_decompositions


@contextlib.contextmanager
def node_by_node() -> Iterator[None]:
    """Meanwhile programs are decomposed so; as usual where this torch does not say what it takes apart."""
    if not KNOWN:
        yield
        return
    ExportedProgram.run_decompositions = _run_decompositions  # type: ignore[method-assign]
    try:
        yield
    finally:
        ExportedProgram.run_decompositions = _usual  # type: ignore[method-assign]


def _run_decompositions(
    program: ExportedProgram, table: Mapping[Any, Callable[..., Any]] | None = None, **others: Any
) -> ExportedProgram:
    graph = program.graph_module.graph
    calls = [node for node in graph.nodes if node.op == "call_function"]
    mode = next((node.meta["val"].fake_mode for node in calls if isinstance(node.meta.get("val"), Tensor)), None)
    if mode is not None and table is not None and not others and all(_is_plain(node) for node in calls):
        composed = [node for node in calls if _is_composed(node.target, table)]
        simple = {op: function for op, function in table.items() if not _writes(op) and not _is_composite(op)}
        with mode:
            parts = [(node, _traced(node, simple)) for node in composed]
        if all(_is_plain(inner) for _, part in parts for inner in part.graph.nodes):
            for node, part in parts:
                _replace(program, node, part)
            return program
    return _usual(program, table, **others)


def _is_composite(op: Any) -> bool:
    return isinstance(op, torch._ops.OpOverload) and _is_cia_op(op)


def _is_composed(op: Any, table: Mapping[Any, Any]) -> bool:
    """Whether the usual way takes it apart: what it is told to, and what may return its input itself."""
    return op in table or (_is_composite(op) and op.namespace == "aten" and not _check_valid_to_preserve(op))


def _writes(op: Any) -> bool:
    return isinstance(op, torch._ops.OpOverload) and op._schema.is_mutable


def _is_plain(node: fx.Node) -> bool:
    if node.op == "call_function":
        return not isinstance(node.target, torch._ops.HigherOrderOperator) and not _writes(node.target)
    return node.op in ("placeholder", "output")


def _traced(node: fx.Node, table: Mapping[Any, Any]) -> fx.GraphModule:
    """The operation alone, of what enters it in the graph."""
    given, form = pytree.tree_flatten((node.args, node.kwargs))
    target: Any = node.target

    def call(*values: Any) -> Any:
        rest = iter(values)
        args, kwargs = pytree.tree_unflatten([next(rest) if isinstance(x, fx.Node) else x for x in given], form)
        return target(*args, **kwargs)

    entering = [x.meta["val"] for x in given if isinstance(x, fx.Node)]
    part = make_fx(call, decomposition_table=dict(table), _allow_non_fake_inputs=True)(*entering)
    if any(_writes(inner.target) for inner in part.graph.nodes):  # into a value of its own
        part = make_fx(torch.func.functionalize(part, remove="mutations"), _allow_non_fake_inputs=True)(*entering)
    return part


def _replace(program: ExportedProgram, node: fx.Node, part: fx.GraphModule) -> None:
    graph = program.graph_module.graph
    entering = [x for x in pytree.tree_leaves((node.args, node.kwargs)) if isinstance(x, fx.Node)]
    here: dict[fx.Node, fx.Node] = dict(zip(part.graph.find_nodes(op="placeholder"), entering, strict=True))
    leaving: Any = None
    with graph.inserting_before(node):
        for inner in part.graph.nodes:
            if inner.op == "call_function":
                here[inner] = graph.node_copy(inner, lambda value: here[value])
            elif inner.op == "output":
                leaving = fx.map_arg(inner.args[0], lambda value: here[value])
    replaced = [(node, leaving)]
    if isinstance(leaving, (list, tuple)):
        picks: list[Any] = list(node.users)
        assert all(pick.target is operator.getitem for pick in picks)
        replaced = [(pick, leaving[pick.args[1]]) for pick in picks]
    for old, new in replaced:
        program.graph_signature.replace_all_uses(old.name, new.name)
        old.replace_all_uses_with(new)
        graph.erase_node(old)
    if isinstance(leaving, (list, tuple)):
        graph.erase_node(node)
