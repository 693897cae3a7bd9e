"""The arm's kinematics, against its model in MuJoCo and against what a twist means."""

import mujoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensors.robots.kinematics import BRAKE_PER_S, SINGULAR, Kinematics
from sensors.robots.panda import PANDA
from sensors.robots.simulated import Simulation

ARM = Kinematics(PANDA)
SPEEDS = np.array(PANDA.speeds)
FLANGE_AT_ZERO = (0.088, 0.0, 0.333 + 0.316 + 0.384 - 0.107)  # read off the maker's drawing: all joints at zero


def joints(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(PANDA.low, PANDA.high)


def twist(seed: int, speed: float = 0.2) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=6) * speed


def regular(seed: int) -> np.ndarray:
    """Joints away from singularities, and from limits by more than a twist moves them."""
    drawn = np.random.default_rng(seed)
    while True:
        q = drawn.uniform(PANDA.low + 0.4, PANDA.high - 0.4)
        if ARM.manipulability(q) > SINGULAR:
            return q


SEEDS = st.integers(0, 2**32 - 1)


def test_with_all_joints_at_zero_the_tool_is_where_the_drawing_has_it():
    position, rotation = ARM.forward(np.zeros(7))
    assert position == pytest.approx((FLANGE_AT_ZERO[0], FLANGE_AT_ZERO[1], FLANGE_AT_ZERO[2] - 0.1034))
    assert rotation[:, 2] == pytest.approx((0, 0, -1))  # it points down


def test_the_simulated_arm_has_the_published_kinematics():
    simulation = Simulation()
    model, data = simulation.model, mujoco.MjData(simulation.model)
    worst = 0.0
    for seed in range(200):
        q = joints(seed)
        data.qpos[:7] = q
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        position, rotation = ARM.forward(q)
        jacobian = np.zeros((6, model.nv))
        mujoco.mj_jacSite(model, data, jacobian[:3], jacobian[3:], model.site("tool").id)
        for ours, theirs in (
            (position, data.site("tool").xpos),
            (rotation.ravel(), data.site("tool").xmat),
            (ARM.jacobian(q), jacobian[:, :7]),
        ):
            worst = max(worst, float(np.abs(ours - theirs).max()))
    assert worst < 1e-9


def test_the_simulated_arm_has_the_published_limits():
    model = Simulation().model
    for joint in PANDA.joints:
        assert model.joint(joint.name).range.tolist() == [joint.low, joint.high]


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_away_from_singularities_and_limits_a_twist_is_followed_exactly(seed):
    q, wanted = regular(seed), twist(seed)
    reached = ARM.jacobian(q) @ ARM.velocities(q, wanted)
    share = float(reached @ wanted / (wanted @ wanted))  # what is too fast is slowed down as a whole
    assert 0 < share <= 1 + 1e-9
    np.testing.assert_allclose(reached, share * wanted, atol=1e-9)
    assert share == pytest.approx(1) or np.abs(ARM.velocities(q, wanted) / SPEEDS).max() == pytest.approx(1)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.floats(0, 20))
def test_no_joint_is_asked_for_more_than_its_speed_wherever_the_arm_is(seed, speed):
    velocities = ARM.velocities(joints(seed), twist(seed, speed))
    assert (np.abs(velocities) <= SPEEDS * (1 + 1e-12)).all()


@settings(max_examples=10, deadline=None)
@given(SEEDS, st.floats(1 / 1000, 1 / BRAKE_PER_S))
def test_joint_limits_are_never_passed_however_long_a_twist_pushes(seed, dt):
    q = joints(seed)
    for part in range(40):
        wanted = twist(seed + part // 20, 2.0)
        q = q + dt * ARM.velocities(q, wanted)
        assert (q >= PANDA.low - 1e-12).all()
        assert (q <= PANDA.high + 1e-12).all()


def test_a_joint_at_its_limit_leaves_its_part_to_the_others():
    q = np.array(PANDA.home)
    q[0] = PANDA.high[0]
    wanted = np.array([-0.05, -0.1, 0, 0, 0, 0])
    alone = np.linalg.pinv(ARM.jacobian(q)) @ wanted
    assert alone[0] > 0.01  # which the limit forbids
    velocities = ARM.velocities(q, wanted)
    assert velocities[0] <= 0
    np.testing.assert_allclose(ARM.jacobian(q) @ velocities, wanted, atol=1e-9)


def test_at_a_singularity_joints_stay_slow():
    q = np.array([0, 0, 0, -0.0698, 0, 1.6, 0.2])  # the elbow stretched
    left, singular, _ = np.linalg.svd(ARM.jacobian(q))
    assert singular[-1] < SINGULAR
    lost = left[:, -1]  # the direction in which the tool can hardly move
    exact = 0.1 / singular[-1]
    assert np.linalg.norm(ARM.velocities(q, 0.1 * lost)) < exact / 2


@settings(max_examples=10, deadline=None)
@given(SEEDS)
def test_a_twist_of_zero_moves_nothing(seed):
    assert not ARM.velocities(joints(seed), np.zeros(6)).any()


def test_what_a_redundant_arm_has_left_turns_its_joints_away_from_their_limits():
    q = np.array(PANDA.home)
    q[2] = 2.0
    velocities = ARM.velocities(q, np.array([0, 0, 0.1, 0, 0, 0]))
    plain = np.linalg.pinv(ARM.jacobian(q)) @ np.array([0, 0, 0.1, 0, 0, 0])
    away = (PANDA.low + PANDA.high) / 2 - q
    assert (velocities - plain) @ away > 0
