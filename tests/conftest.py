"""What all tests share: threads, the profile of the property-based tests, and which tests one process runs together."""

import gc
import os
from collections.abc import Iterator
from functools import cache, partial
from typing import Any

# Before torch or numpy is imported: with two test processes on two cores, more threads only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

# CI draws the same examples every time, so that a red build is a change in the code; at home each run draws anew.
settings.register_profile("mnemosyne", deadline=None, max_examples=20, derandomize=bool(os.environ.get("CI")))
settings.load_profile("mnemosyne")


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in this very hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file's tests share what its fixtures made, so they stay together; the contract suite shares it by model."""
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        case = parameters.get("case", parameters.get("exported"))
        model = f" {case.name}" if item.path.name == "test_contract.py" and case is not None else ""
        item.add_marker(pytest.mark.xdist_group(item.path.name + model))


def pytest_collection_finish() -> None:
    """What is imported by now lives to the end: the collector of garbage need not look through it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def as_users_export() -> Iterator[list[tuple[Any, str, Any]]]:
    """What is patched of the exporter, with what stood there: to export as users do.

    Some hundred bundles are exported, and 200 steps are enough for what the tests ask of the latency on their cards.

    What the exporter knows of torch's operations is the same at every export; to read it anew takes as long as a small
    graph. And two of its passes do at every node what matters at few; without that the graphs are the same to the byte.
    """
    from onnxscript.rewriter import RewriteRule
    from torch.onnx._internal.exporter._registration import ONNXRegistry
    from torch.onnx._internal.fx.passes import type_promotion

    from forecasting import export
    from forecasting.certificate import certify

    rewrite = RewriteRule.try_rewrite
    interpreter = type_promotion._TypePromotionInterpreter
    run = interpreter.run_node

    def rewrite_if_alike(self: Any, model: Any, graph: Any, node: Any, **options: Any) -> Any:
        """A pattern of another operation does not match; the matcher finds that out in a hundred lines."""
        known = self._target_pattern.output_nodes[0].op_identifier()
        return rewrite(self, model, graph, node, **options) if known is None or known[1] == node.op_type else None

    def promote_alone(self: Any, node: Any) -> Any:
        """What a node gives is known from before, or from its being promoted: it need not be computed once more."""
        if node.op != "call_function" or "val" not in node.meta:
            return run(self, node)
        with self._set_current_node(node):
            if rule := type_promotion.get_type_promotion_rule(node, self.type_promotion_table):
                self._maybe_promote_node(node, rule)
        return node.meta["val"]

    quick = [
        (ONNXRegistry, "from_torchlib", staticmethod(cache(ONNXRegistry.from_torchlib))),
        (RewriteRule, "try_rewrite", rewrite_if_alike),
        (interpreter, "run_node", promote_alone),
    ]
    usual = [(owner, name, vars(owner).get(name, getattr(owner, name))) for owner, name, _ in quick]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "certify", partial(certify, steps=200))
        for owner, name, function in quick:
            patch.setattr(owner, name, function)
        yield usual
