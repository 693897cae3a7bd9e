import pytest
from result_folders import write_forecast_result, write_gesture_result, write_memory_result, write_regress_result


@pytest.fixture(scope="session")
def results(tmp_path_factory):
    """A folder with the results `gesture`, `life` and `stock`; tests that change one copy it."""
    root = tmp_path_factory.mktemp("out")
    write_gesture_result(root / "gesture")
    write_regress_result(root / "life")
    write_forecast_result(root / "stock")
    return root


@pytest.fixture(scope="session")
def memory_results(results, tmp_path_factory):
    """A folder with the result `gesture` whose bundle has a memory to look into."""
    root = tmp_path_factory.mktemp("memory")
    write_memory_result(root / "gesture", results / "gesture")
    return root
