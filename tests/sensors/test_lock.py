import os
import subprocess
import sys

import pytest

from sensors.lock import RobotLock
from sensors.robot import RobotError

ARM, OTHER = f"sim://arm/{os.getpid()}", f"sim://other/{os.getpid()}"  # of this test process alone


@pytest.mark.parametrize("elsewhere", ["XDG_RUNTIME_DIR", "TMPDIR"])
def test_a_second_bridge_on_a_robot_is_refused_and_told_which_process_has_it(elsewhere, tmp_path):
    with RobotLock(ARM):
        other = f"from sensors.lock import RobotLock; RobotLock('{ARM}').acquire()"
        environment = os.environ | {elsewhere: str(tmp_path)}  # as in another session of the same machine
        result = subprocess.run(
            [sys.executable, "-c", other], capture_output=True, text=True, check=False, env=environment
        )
        assert result.returncode == 1
        assert f"driven by another bridge, process {os.getpid()}" in result.stderr
        with pytest.raises(RobotError, match="stop that one first"):
            RobotLock(ARM).acquire()
        with RobotLock(OTHER):
            pass
    with RobotLock(ARM):
        pass


def test_a_bridge_that_dies_leaves_the_robot_free():
    dies = f"import os; from sensors.lock import RobotLock; RobotLock('{ARM}').acquire(); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", dies], check=False).returncode == -9
    with RobotLock(ARM):
        pass
