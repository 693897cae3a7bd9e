"""Motions: closed loops from where the robot is measured to be."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from sensors.motions import Grip, Motion, Pace, Pose, Reach, Thing, Wish, grip, home, pick, pour, tool
from sensors.robot import Command, RobotState
from sensors.robots.simulated import SimulatedArm, Simulation

PACE = Pace()
FRAME_S = 0.02
JUG = Thing("jug", (0, 0, 0.09), (0, 1, 0), rim=(0.158, 0.032))


@pytest.fixture
def arm() -> Iterator[SimulatedArm]:
    with SimulatedArm(Simulation(), real_time=False) as stepped:
        yield stepped


def follow(arm: SimulatedArm, motion: Motion, watch: Callable[[RobotState], None] = lambda state: None) -> float:
    """Seconds that it took."""
    start = arm.clock()
    while (wish := motion.wish(arm.state(), arm.clock())) is not None:
        now = arm.clock()
        arm.send(Command(arm.executed + 1, now, now + 2 * FRAME_S, wish.twist, wish.gripper))
        arm.advance(FRAME_S)
        watch(arm.state())
        assert arm.clock() - start < 60, "it does not end"
    return arm.clock() - start


def state(
    position: tuple[float, float, float] = (0.4, 0, 0.4), gripper: float = 1.0, time: float = 0.0, turn: float = 0.0
) -> RobotState:
    orientation = Rotation.from_rotvec([0, 0, turn]).as_quat(scalar_first=True)
    return RobotState(time, np.zeros(7), np.zeros(7), np.array(position), orientation, gripper, 0.2)


def test_a_tool_is_brought_to_a_pose_and_stands_there(arm):
    turned = tool(arm.state()).rotation @ Rotation.from_rotvec([0.5, 0, 0.8]).as_matrix()
    goal = Pose(np.array([0.45, 0.2, 0.3]), turned)
    follow(arm, Motion("there", [lambda _: Reach(goal, PACE)], PACE))
    arm.advance(0.1)
    there = tool(arm.state())
    assert there.position == pytest.approx(goal.position, abs=2 * PACE.near)
    assert Rotation.from_matrix(there.rotation.T @ goal.rotation).magnitude() < 2 * PACE.aligned


def test_velocities_keep_the_pace_however_far_the_goal_is():
    goal = Pose(np.array([5.0, 1, 0]), Rotation.from_rotvec([0, 3.0, 0]).as_matrix())
    wish = Reach(goal, PACE).wish(state())
    assert np.linalg.norm(wish.twist[:3]) == pytest.approx(PACE.speed)
    assert np.linalg.norm(wish.twist[3:]) == pytest.approx(PACE.turn)


def test_a_velocity_points_from_where_the_robot_is_measured_to_be_not_from_where_it_should_be():
    reach = Reach(Pose(np.array([0.4, 0, 0.2]), np.eye(3)), PACE)
    assert reach.wish(state((0.4, 0, 0.4))).twist[:3] == pytest.approx([0, 0, -PACE.speed])
    assert reach.wish(state((0.6, 0, 0.2))).twist[:3] == pytest.approx([-PACE.speed, 0, 0])  # somebody moved it
    assert reach.wish(state((0.4, 0, 0.201))) is None


def test_a_point_of_the_tool_goes_straight_while_the_tool_turns():
    lever = np.array([0.1, 0, 0])
    reach = Reach(Pose(np.array([0.5, 0, 0.4]), Rotation.from_rotvec([0, 0, 1.0]).as_matrix()), PACE, lever=lever)
    twist = reach.wish(state((0.4, 0, 0.4))).twist  # the point is where it shall be
    assert twist[3:] == pytest.approx([0, 0, PACE.turn])
    assert twist[:3] + np.cross(twist[3:], lever) == pytest.approx([0, 0, 0])


def test_a_motion_that_gets_no_further_gives_up_and_says_so():
    motion = home(Pose(np.array([0.4, 0.3, 0.4]), np.eye(3)), PACE)
    for now in np.arange(0, PACE.stall_s, 0.1):
        assert motion.wish(state(), now) is not None
    assert motion.wish(state(), PACE.stall_s) is None
    assert motion.failure == "home: no further for 5 s; something is in the way"


def test_a_motion_that_gets_nearer_slowly_does_not_give_up():
    motion = home(Pose(np.array([0.4, 0.3, 0.4]), np.eye(3)), PACE)
    for now in np.arange(0, 10 * PACE.stall_s, 0.5):
        assert motion.wish(state((0.4, 0.002 * now, 0.4)), now) is not None


def gripping(openings: list[float]) -> list[Wish | None]:
    """What closing wants, a tenth of a second apart, at these measured openings."""
    stage = Grip(0.0, state(gripper=openings[0]))
    return [stage.wish(state(gripper=opening, time=0.1 * count)) for count, opening in enumerate(openings)]


def test_a_gripper_is_closed_when_the_fingers_stand_at_what_is_between_them():
    wishes = gripping([1.0, 0.9, 0.8, 0.8, 0.8])
    assert [wish is None for wish in wishes] == [False, False, False, False, True]
    assert wishes[0].gripper == 0.0
    assert not wishes[0].twist.any()


def test_a_gripper_that_has_not_begun_to_close_is_not_closed():
    assert None not in gripping([1.0] * 20)


def test_a_gripper_is_closed_when_there_is_nothing_between_the_fingers():
    assert gripping([1.0, 0.5, 0.01])[-1] is None


def test_a_thing_is_taken_from_the_side_with_the_tool_upright():
    held = JUG.held(Pose(np.array([0.4, -0.1, 0]), np.eye(3)))
    assert held.position == pytest.approx([0.4, -0.1, 0.09])
    assert held.rotation[:, 2] == pytest.approx([0, 1, 0])
    assert held.rotation[:, 0] == pytest.approx([0, 0, 1])
    assert np.linalg.det(held.rotation) == pytest.approx(1)


@pytest.mark.parametrize("turn", [0.4, 0.4 + np.pi])
def test_fingers_turn_with_a_thing_by_the_shorter_way(turn):
    bread = Thing("bread", (0.01, 0, 0.02), (0, 0, -1), follows=True)
    rotation = Rotation.from_rotvec([0, 0, turn]).as_matrix()
    held = bread.held(Pose(np.array([0.4, 0, 0]), rotation))
    assert held.rotation[:, 2] == pytest.approx([0, 0, -1])
    assert held.rotation[:, 0] == pytest.approx([np.cos(0.4), np.sin(0.4), 0])
    assert held.position == pytest.approx(np.array([0.4, 0, 0]) + rotation @ [0.01, 0, 0.02])


def test_picking_goes_over_the_table_approaches_along_the_tool_and_lifts(arm):
    where = Pose(np.array([0.45, -0.05, 0]), np.eye(3))
    held = JUG.held(where).position
    way: list[RobotState] = []
    motion = pick(JUG, where, PACE)
    follow(arm, motion, way.append)
    assert not motion.failure
    positions = np.array([each.position for each in way])
    there = int((np.linalg.norm(positions - held, axis=1) < PACE.near).argmax())
    assert there > 0
    low = positions[:there][positions[:there, 2] < 0.15]
    assert np.abs(low[:, 0] - held[0]).max() < 0.02  # from behind, not across the table
    assert low[:, 1].min() < held[1] - 0.9 * PACE.clearance_m
    assert way[there].gripper > 0.9
    assert way[-1].gripper < 0.05  # there was nothing between the fingers
    assert positions[-1, 2] > PACE.travel_m - 2 * PACE.near


def test_the_rim_stays_where_it_pours_while_the_vessel_is_tilted(arm):
    mouth, tilt = np.array([0.55, 0.15, 0.12]), 2.0
    follow(arm, home(Pose(np.array([0.45, 0.05, 0.35]), JUG.held(Pose(np.zeros(3), np.eye(3))).rotation), PACE))
    lever = np.array([JUG.rim[0] - JUG.grasp[2], JUG.rim[1], 0])
    rims, ups = [], []

    def watch(measured: RobotState) -> None:
        rotation = tool(measured).rotation
        rims.append(measured.position + rotation @ lever)
        ups.append(rotation[2, 0])  # the height that the vessel's axis has

    motion = pour(JUG, JUG.rim, mouth, tilt, 0.5, PACE)
    follow(arm, motion, watch)
    assert not motion.failure
    tilted = np.array(ups) < np.cos(1.3)
    assert min(ups) == pytest.approx(np.cos(tilt), abs=0.05)
    assert np.linalg.norm(np.array(rims)[tilted] - mouth, axis=1).max() < 0.02
    assert ups[-1] > 0.99  # upright again


def test_gripping_moves_the_gripper_alone(arm):
    before = arm.state().position
    follow(arm, grip(0.4, PACE))
    assert arm.state().gripper == pytest.approx(0.4, abs=0.03)
    assert arm.state().position == pytest.approx(before, abs=1e-3)
