"""What all tests share: threads, the profile of the property-based tests, and which tests one process runs together."""

import gc
import os
from collections.abc import Iterator
from functools import cache, partial

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
def _quick_exports() -> Iterator[None]:
    """Some hundred bundles are exported, and 200 steps are enough for what the tests ask of the latency on their cards.

    What the exporter knows of torch's operations is the same at every export; to read it anew takes as long as a small
    graph.
    """
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    from forecasting import export
    from forecasting.certificate import certify

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "certify", partial(certify, steps=200))
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(cache(ONNXRegistry.from_torchlib)))
        yield
