import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensors.limits import Limiter, Limits, gripper_step
from sensors.robot import RobotState
from sensors.stream import SensorError

LIMITS = Limits(0.25, 1.0, 10.0, 1.0, 4.0, 40.0, 3.0, 2.0, 0.05, 0.1, (-0.2, -0.2, -0.2), (0.2, 0.2, 0.2))
LEAVES = 0.25 * 0.02  # m: the travel of one step at the highest speed


def at(position=(0.0, 0.0, 0.0), manipulability=1.0):
    return RobotState(0.0, np.zeros(6), np.zeros(6), np.array(position, float), np.eye(4)[0], 0.5, manipulability)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.lists(st.floats(-5, 5), min_size=6, max_size=6), st.floats(1e-4, 0.02)), max_size=150))
def test_whatever_is_wanted_no_limit_is_passed_and_the_box_is_kept(steps):
    limiter, position = Limiter(LIMITS), np.zeros(3)
    velocity, acceleration = np.zeros(6), np.zeros(6)
    for wanted, dt in steps:
        for _ in range(4):
            twist = limiter.step(np.array(wanted), at(position), dt)
            now = (twist - velocity) / dt
            jerk = (now - acceleration) / dt
            for part, kind in ((slice(0, 3), "linear"), (slice(3, 6), "angular")):
                assert np.linalg.norm(twist[part]) <= getattr(LIMITS, f"{kind}_velocity") * (1 + 1e-6)
                assert np.linalg.norm(now[part]) <= getattr(LIMITS, f"{kind}_acceleration") * (1 + 1e-6)
                assert np.linalg.norm(jerk[part]) <= getattr(LIMITS, f"{kind}_jerk") * (1 + 1e-3)
            velocity, acceleration, position = twist, now, position + twist[:3] * dt
            assert (np.abs(position) <= 0.2 + LEAVES).all()


def test_outside_the_box_only_the_way_in_is_open():
    outside = at((0.3, 0.0, 0.0))
    out, back = Limiter(LIMITS), Limiter(LIMITS)
    assert all(out.step(np.eye(6)[0], outside, 0.01)[0] <= 1e-9 for _ in range(50))
    assert [back.step(-np.eye(6)[0], outside, 0.01)[0] for _ in range(50)][-1] < -0.1


@pytest.mark.parametrize("manipulability", [0.0, math.nan, -1.0])
def test_at_a_singularity_or_where_it_is_not_known_motion_creeps(manipulability):
    limiter = Limiter(LIMITS)
    speeds = [limiter.step(np.eye(6)[3] * 9, at(manipulability=manipulability), 0.01)[3] for _ in range(200)]
    assert speeds[-1] == pytest.approx(0.1 / math.sqrt(3), rel=1e-3)


@pytest.mark.parametrize("name", asdict(LIMITS))
def test_a_limit_that_is_missing_is_refused_by_name(name):
    given_limits = {key: value for key, value in asdict(LIMITS).items() if key != name}
    with pytest.raises(SensorError, match=f"lacks {name}"):
        Limits.parse(given_limits)


@pytest.mark.parametrize("value", [math.nan, 0, -1, math.inf, "fast", None, True])
@pytest.mark.parametrize("name", [name for name in asdict(LIMITS) if not name.startswith("box")])
def test_a_limit_that_is_no_positive_number_is_refused(name, value):
    with pytest.raises(SensorError, match=f"{name} is"):
        Limits.parse({**asdict(LIMITS), name: value})


@pytest.mark.parametrize("box", [[0.0, math.nan, 0.0], [-math.inf, 0.0, 0.0], [0.0, 0.0], "abc", [0.3, 0.0, 0.0]])
def test_a_box_that_is_none_is_refused(box):
    with pytest.raises(SensorError, match="box_low"):
        Limits.parse({**asdict(LIMITS), "box_low": box})


def test_the_gripper_moves_no_faster_than_its_speed():
    assert gripper_step(0.5, 1.0, speed=2.0, dt=0.01) == pytest.approx(0.52)
    assert gripper_step(0.5, 0.51, speed=2.0, dt=0.01) == pytest.approx(0.51)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_number_that_is_not_finite_is_refused_and_leaves_the_limiter_as_it_was(bad):
    limiter, wanted = Limiter(LIMITS), np.ones(6)
    before = limiter.step(wanted, at(), 0.01)
    for twist, position, dt in ((wanted * bad, 0.0, 0.01), (wanted, bad, 0.01), (wanted, 0.0, bad), (wanted, 0.0, 0.0)):
        with pytest.raises(SensorError, match="expected finite"):
            limiter.step(twist, at((position, 0.0, 0.0)), dt)
    np.testing.assert_array_equal(limiter.velocity, before)


@pytest.mark.parametrize(("now", "wanted", "dt"), [(math.nan, 0.5, 0.1), (0.5, math.nan, 0.1), (0.5, 1, math.nan)])
def test_a_gripper_whose_opening_is_not_known_is_not_moved(now, wanted, dt):
    with pytest.raises(SensorError, match="gripper from"):
        gripper_step(now, wanted, speed=2.0, dt=dt)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(1e-3, 0.02), min_size=150, max_size=150))
def test_a_velocity_is_reached_and_not_passed_whatever_the_time_steps(times):
    limiter = Limiter(LIMITS)
    speeds = [limiter.step(np.eye(6)[3] * 0.5, at(), dt)[3] for dt in [*times, *[0.02] * 200]]
    assert max(speeds) <= 0.5 * (1 + 1e-9)
    assert speeds[-1] == pytest.approx(0.5, rel=1e-3)
