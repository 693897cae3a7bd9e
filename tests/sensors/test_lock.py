import os
import subprocess
import sys

import pytest

from sensors.lock import RobotLock
from sensors.robot import RobotError


@pytest.fixture(autouse=True)
def _runtime(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


def test_a_second_bridge_on_a_robot_is_refused_and_told_which_process_has_it():
    with RobotLock("sim://arm"):
        other = "from sensors.lock import RobotLock; RobotLock('sim://arm').acquire()"
        result = subprocess.run([sys.executable, "-c", other], capture_output=True, text=True, check=False)
        assert result.returncode == 1
        assert f"driven by another bridge, process {os.getpid()}" in result.stderr
        with pytest.raises(RobotError, match="stop that one first"):
            RobotLock("sim://arm").acquire()
        with RobotLock("sim://other"):
            pass
    with RobotLock("sim://arm"):
        pass
