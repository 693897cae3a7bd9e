"""The simulated arm: what is sent moves it, until it expires."""

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from sensors.robot import Command, RobotError
from sensors.robots.simulated import PERIOD_S, SimulatedArm, Simulation

STANDS = 0.01  # rad/s of the fastest joint


@pytest.fixture
def arm() -> Iterator[SimulatedArm]:
    """Stepped by hand."""
    with SimulatedArm(Simulation(), real_time=False) as stepped:
        yield stepped


def command(arm: SimulatedArm, twist: list[float], for_s: float = 0.1, gripper: float | None = None) -> Command:
    now = arm.clock()
    return Command(arm.executed + 1, now, now + for_s, np.array(twist, float), gripper)


def drive(arm: SimulatedArm, twist: list[float], seconds: float, gripper: float | None = None) -> None:
    for _ in range(round(seconds / PERIOD_S)):
        arm.send(command(arm, twist, gripper=gripper))
        arm.advance(PERIOD_S)


def speed(arm: SimulatedArm) -> float:
    return float(np.abs(arm.state().velocities).max())


def test_a_twist_moves_the_tool_at_that_velocity(arm):
    drive(arm, [0, 0.1, -0.05, 0, 0, 0.3], 0.5)  # it has got up to speed
    before = arm.state()
    drive(arm, [0, 0.1, -0.05, 0, 0, 0.3], 1)
    after = arm.state()
    assert after.position - before.position == pytest.approx([0, 0.1, -0.05], abs=0.002)
    assert abs(float(after.orientation @ before.orientation)) == pytest.approx(np.cos(0.15), abs=0.002)  # 0.3 rad


def test_without_commands_it_stands_still_in_spite_of_gravity(arm):
    before = arm.state()
    arm.advance(20)
    assert arm.state().joints == pytest.approx(before.joints, abs=1e-4)


def test_when_a_command_expires_it_stands_within_four_hundredths_of_a_second(arm):
    drive(arm, [0, 0.25, 0, 0, 0, 0], 0.5)
    arm.send(command(arm, [0, 0.25, 0, 0, 0, 0], for_s=0.04))
    arm.advance(0.04)
    assert speed(arm) > 0.2
    arm.advance(0.04)
    assert speed(arm) < STANDS


def test_stop_makes_it_stand_and_forgets_what_was_sent(arm):
    drive(arm, [0, 0.25, 0, 0, 0, 0], 0.5)
    arm.send(command(arm, [0, 0.25, 0, 0, 0, 0], for_s=10))
    arm.advance(0.1)
    arm.stop()
    arm.advance(0.04)
    assert speed(arm) < STANDS
    there = arm.state().position
    arm.advance(1)
    assert arm.state().position == pytest.approx(there, abs=1e-3)


def test_an_expired_command_is_refused_by_the_arms_own_clock(arm):
    late = command(arm, [0, 0.1, 0, 0, 0, 0], for_s=0.1)
    arm.advance(0.2)
    with pytest.raises(RobotError, match=r"command 1 expired 0\.1\d\d s ago"):
        arm.send(late)
    before = arm.state().position
    arm.advance(0.2)
    assert arm.state().position == pytest.approx(before, abs=1e-5)


@pytest.mark.parametrize("twist", [[np.nan, 0, 0, 0, 0, 0], [0, 0, np.inf, 0, 0, 0], [0, 0, 0]])
def test_a_twist_that_is_not_six_numbers_is_refused(arm, twist):
    with pytest.raises(RobotError, match="expected six numbers"):
        arm.send(command(arm, twist))


@pytest.mark.parametrize("gripper", [-0.1, 1.1, np.nan])
def test_a_gripper_that_is_not_within_0_and_1_is_refused(arm, gripper):
    with pytest.raises(RobotError, match="expected 0 to 1"):
        arm.send(command(arm, [0, 0, 0, 0, 0, 0], gripper=gripper))


def test_the_gripper_closes_as_told_and_stops_where_a_command_expires(arm):
    drive(arm, [0] * 6, 1, gripper=0.5)
    assert arm.state().gripper == pytest.approx(0.5, abs=0.02)
    arm.send(command(arm, [0] * 6, for_s=2 * PERIOD_S, gripper=0.0))
    arm.advance(0.5)
    assert 0.1 < arm.state().gripper < 0.5


def test_it_pushes_against_nothing_for_long_and_starts_again_from_where_it_is(arm):
    drive(arm, [0, 0, -0.3, 0, 0, 0], 6)  # out of reach, below
    there = arm.state()
    arm.advance(0.5)
    assert arm.state().joints == pytest.approx(there.joints, abs=0.01)
    drive(arm, [0, 0, 0.1, 0, 0, 0], 0.1)
    assert np.abs(arm.state().joints - there.joints).max() < 0.05


def test_joint_limits_hold_in_the_simulation_too(arm):
    low, high = arm.simulation.arm.low, arm.simulation.arm.high
    for twist in ([0.3, 0, 0, 0, 0, 1], [0, 0, -0.3, 1, 0, 0], [-0.3, 0.3, 0, 0, 1, 0]):
        for _ in range(150):
            drive(arm, twist, PERIOD_S)
            assert (arm.state().joints >= low - 0.005).all()
            assert (arm.state().joints <= high + 0.005).all()


def test_in_real_time_it_moves_while_commands_come_and_stands_when_the_last_has_expired():
    with SimulatedArm(Simulation()) as arm:
        first = arm.state()
        end = time.monotonic() + 5
        while arm.state().position[1] < first.position[1] + 0.01:
            assert time.monotonic() < end, "it did not move within 5 s"
            last = arm.send(command(arm, [0, 0.1, 0, 0, 0, 0], for_s=1.0))
            time.sleep(0.005)
        assert arm.state().time > first.time
        while speed(arm) > STANDS:
            assert time.monotonic() < end, "it did not stand within 5 s"
            time.sleep(0.005)
        assert arm.executed == last.sequence


def test_closed_it_takes_nothing_and_says_so():
    arm = SimulatedArm(Simulation(), real_time=False)
    with pytest.raises(RobotError, match="is not connected"):
        arm.state()
    arm.connect()
    with pytest.raises(RobotError, match="connected already"):
        arm.connect()
    arm.close()
    arm.close()
    with pytest.raises(RobotError, match="is not connected"):
        arm.send(command(arm, [0] * 6))


def test_an_arm_in_real_time_is_not_stepped_by_hand():
    with pytest.raises(RobotError, match="runs in real time"):
        SimulatedArm(Simulation()).advance(0.1)


def test_a_scene_and_a_body_that_do_not_exist_are_refused_by_name():
    with pytest.raises(RobotError, match="no scene 'kitchen'; expected one of panda"):
        Simulation("kitchen")
    with pytest.raises(RobotError, match="no body 'spoon'; it has link0"):
        Simulation().body("spoon")


def test_an_arm_whose_thread_could_not_start_can_be_connected_later(monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    arm = SimulatedArm(Simulation())
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        arm.connect()
    monkeypatch.undo()
    arm.close()
    with arm:
        assert arm.state().joints.shape == (7,)
