"""A file's tests run in one process: else every one of them makes the fixtures of the file anew, and nobody notices."""

import os

import pytest


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="pytest-xdist is not running these tests")
def test_a_files_tests_stay_together(request):
    assert request.node.nodeid.endswith("@test_processes.py")
