import pytest
from result_folders import write_forecast_result, write_gesture_result, write_regress_result


@pytest.fixture(scope="session")
def results(tmp_path_factory):
    """A folder with the results `gesture`, `life` and `stock`; tests that change one copy it."""
    root = tmp_path_factory.mktemp("out")
    write_gesture_result(root / "gesture")
    write_regress_result(root / "life")
    write_forecast_result(root / "stock")
    return root
