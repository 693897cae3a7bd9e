"""What all tests share: threads, the profile of the property-based tests, and which tests one process runs together."""

import os

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
