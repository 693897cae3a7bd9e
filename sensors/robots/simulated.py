"""A simulated arm with a gripper, in MuJoCo: the robot that is always there.

`Simulation` is the physics: the joints follow the inverse kinematics of a twist, in position servos of limited torque.
`SimulatedArm` is the driver: it gives the simulation what was sent until it expires, either in real time in a thread of
its own, or stepped by hand on the simulation's own clock, as fast as the machine can.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import mujoco
import numpy as np
from numpy.typing import NDArray

from data.frame import Channel
from sensors.robot import Command, Robot, RobotError, RobotInfo, RobotState
from sensors.robots.kinematics import Kinematics, smallest
from sensors.robots.panda import PANDA
from sensors.stream import Clock

Array = NDArray[np.float64]

SCENES = {name: Path(__file__).with_name(f"{name}.xml") for name in ("panda", "breakfast")}
PERIOD_S = 0.004  # of the joints' control
LEAD_RAD = 0.02  # the most that a joint's servo is asked to be ahead of it, as when something is in the way
STILL_RAD = 0.005  # the same of an arm that stands, so that what was in the way is not pressed on
STANDING = 0.02  # rad/s of a joint, up to which it counts as standing
MOVING = 0.002  # m/s of a finger, from which the gripper counts as moving
LATE_S = 0.1  # what real time may be ahead of the simulation before it is let go


class Simulation:
    """A scene with the arm in it. Nothing here knows of clocks or threads."""

    def __init__(self, scene: str = "panda") -> None:
        """
        Raises:
            RobotError: there is no such scene.
        """
        if scene not in SCENES:
            raise RobotError(f"simulation: there is no scene '{scene}'; expected one of {', '.join(SCENES)}.")
        self.scene = scene
        self.arm = PANDA
        self.kinematics = Kinematics(PANDA)
        self.model = mujoco.MjModel.from_xml_path(str(SCENES[scene]))
        self.data = mujoco.MjData(self.model)
        names = [joint.name for joint in self.arm.joints]
        self._positions = [self.model.joint(name).qposadr[0] for name in names]
        self._velocities = [self.model.joint(name).dofadr[0] for name in names]
        self._servos = [self.model.actuator(name).id for name in names]
        self._grip = self.model.actuator("gripper").id
        self._finger = self.model.joint("left_finger")
        self._stroke = float(self._finger.range[1])  # m
        # A servo's force is kp (wanted - position) - kv velocity: kv / kp of a velocity more cancels its lag.
        self._lag = -self.model.actuator_biasprm[self._servos, 2] / self.model.actuator_gainprm[self._servos, 0]  # s
        self._substeps = round(PERIOD_S / self.model.opt.timestep)
        self.reset()

    def reset(self) -> None:
        """The arm at home with an open gripper, everything where the scene has it."""
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[self._positions] = self.arm.home
        for finger in ("left_finger", "right_finger"):
            self.data.joint(finger).qpos[0] = self._stroke
        self._wanted = np.array(self.arm.home)  # rad, what the servos hold
        self._opening = 1.0
        self._apply(np.zeros(len(self._wanted)))
        mujoco.mj_forward(self.model, self.data)

    @property
    def time(self) -> float:
        """s, simulated."""
        return float(self.data.time)

    def step(self, twist: Array | None, gripper: float | None = None) -> None:
        """PERIOD_S further, with a twist (6,) of the tool; None holds still, and a gripper that moves stops."""
        joints = self.data.qpos[self._positions]
        if twist is None:
            rates, lead = np.zeros(len(joints)), STILL_RAD
            braking = np.abs(self.data.qvel[self._velocities]) > STANDING
            self._wanted = np.where(braking, joints, self._wanted)  # it stays where it comes to stand
            if abs(float(self.data.joint("left_finger").qvel[0])) > MOVING:
                self._opening = self.gripper()
        else:
            rates, lead = self.kinematics.velocities(self._wanted, twist), LEAD_RAD
            if gripper is not None:
                self._opening = gripper
        self._wanted = np.clip(self._wanted + PERIOD_S * rates, joints - lead, joints + lead)
        self._apply(rates)
        mujoco.mj_step(self.model, self.data, self._substeps)

    def gripper(self) -> float:
        """How far it is open, 0 to 1, as measured."""
        return float(np.clip(self.data.joint("left_finger").qpos[0] / self._stroke, 0, 1))

    def measure(self, now: float) -> RobotState:
        """The state, measured at `now`."""
        joints = self.data.qpos[self._positions]
        frames = self.kinematics.frames(joints)
        orientation = np.empty(4)
        mujoco.mju_mat2Quat(orientation, frames[-1, :3, :3].ravel())
        return RobotState(
            now,
            joints,
            self.data.qvel[self._velocities],
            frames[-1, :3, 3].copy(),
            orientation,
            self.gripper(),
            smallest(self.kinematics.jacobian_of(frames)),
        )

    @property
    def bodies(self) -> tuple[str, ...]:
        """The names of all things in the scene, links of the arm too."""
        return tuple(name for index in range(1, self.model.nbody) if (name := self.model.body(index).name))

    def body(self, name: str) -> tuple[Array, Array]:
        """A body's position (3,) in m and rotation (3, 3), as a camera above the table would measure them.

        Raises:
            RobotError: the scene has no such body.
        """
        try:
            body = self.data.body(name)
        except KeyError as error:
            raise RobotError(
                f"simulation: {self.scene} has no body '{name}'; it has {', '.join(self.bodies)}."
            ) from error
        return body.xpos.copy(), body.xmat.reshape(3, 3).copy()

    def move(self, name: str, by: Array, turn: float = 0.0) -> None:
        """Put a loose body elsewhere.

        Args:
            by: (3,) m.
            turn: rad, about the vertical.
        """
        start = self.model.joint(self.model.body(name).jntadr[0]).qposadr[0]
        self.data.qpos[start : start + 3] += by
        quaternion, half = self.data.qpos[start + 3 : start + 7].copy(), turn / 2
        mujoco.mju_mulQuat(
            self.data.qpos[start + 3 : start + 7], np.array([np.cos(half), 0, 0, np.sin(half)]), quaternion
        )
        mujoco.mj_forward(self.model, self.data)

    def _apply(self, rates: Array) -> None:
        self.data.ctrl[self._servos] = self._wanted + self._lag * rates
        self.data.ctrl[self._grip] = self._opening * self._stroke


class SimulatedArm(Robot):
    """Gives a simulation what was sent, until it expires.

    In real time a machine that is too slow slows the simulation, not the clock that
    commands expire on. Stepped, `clock` is the simulation's, and it stands while nobody calls `advance`.
    """

    def __init__(self, simulation: Simulation, real_time: bool = True, clock: Clock = time.monotonic) -> None:
        """clock: of real time."""
        self.simulation = simulation
        self.real_time = real_time
        self.clock: Clock = clock if real_time else lambda: simulation.time
        joints: tuple[Channel, ...] = simulation.arm.joints
        self.info = RobotInfo(
            name=f"simulated {simulation.arm.name}",
            uri=f"simulated:{simulation.scene}:{os.getpid()}-{id(simulation):x}",
            joints=joints,
            has_gripper=True,
        )
        self.slipped_s = 0.0  # of real time that was not simulated, because the machine was too slow
        self.executed = 0  # sequence number of the last command that moved the arm
        self._command: Command | None = None
        self._state: RobotState | None = None
        self._failure: Exception | None = None
        self._busy = threading.Lock()  # held while the simulation changes
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    def connect(self) -> None:
        if self._state is not None:
            raise RobotError(f"{self.info.uri}: is connected already.")
        self._failure = None
        self._state = self.simulation.measure(self.clock())
        if self.real_time:
            self._ending.clear()
            thread = threading.Thread(target=self._run, name="simulated arm", daemon=True)
            try:
                thread.start()
            except BaseException:
                self._state = None
                raise
            self._thread = thread

    def close(self) -> None:
        self.stop()
        self._ending.set()
        if self._thread is not None:
            self._thread.join()
        self._thread, self._state = None, None

    def state(self) -> RobotState:
        state = self._state
        if state is None:
            raise RobotError(f"{self.info.uri}: is not connected.")
        return state

    def send(self, command: Command) -> Command:
        if self._state is None:
            raise RobotError(f"{self.info.uri}: is not connected.")
        if self._failure is not None:
            raise RobotError(f"{self.info.uri}: the simulation ended: {self._failure}") from self._failure
        late = self.clock() - command.expires
        if not late < 0:
            raise RobotError(f"{self.info.uri}: command {command.sequence} expired {late:.3f} s ago; not sent.")
        if not (np.shape(command.twist) == (6,) and np.isfinite(command.twist).all()):
            raise RobotError(
                f"{self.info.uri}: command {command.sequence} wants {command.twist}, expected six numbers."
            )
        if command.gripper is not None and not 0 <= command.gripper <= 1:
            raise RobotError(
                f"{self.info.uri}: command {command.sequence} wants the gripper at {command.gripper}, expected 0 to 1."
            )
        self._command = command
        return command

    def stop(self) -> None:
        self._command = None

    def advance(self, dt: float) -> None:
        """Simulate so many seconds, in whole periods of the control, of an arm that is stepped by hand."""
        if self.real_time:
            raise RobotError(f"{self.info.uri}: runs in real time by itself.")
        for _ in range(max(1, round(dt / PERIOD_S))):
            self._step()
        self._measure()

    def place(self, name: str) -> tuple[Array, Array]:
        """Where a body is now: position (3,) in m and rotation (3, 3)."""
        with self._busy:
            return self.simulation.body(name)

    def _step(self) -> None:
        command = self._command
        with self._busy:
            if command is not None and self.clock() < command.expires:
                self.simulation.step(command.twist, command.gripper)
                self.executed = command.sequence
            else:
                self.simulation.step(None)

    def _measure(self) -> None:
        self._state = self.simulation.measure(self.clock())

    def _run(self) -> None:
        due = self.clock()
        try:
            while not self._ending.is_set():
                self._step()
                self._measure()
                due += PERIOD_S
                ahead = due - self.clock()
                if ahead > 0:
                    self._ending.wait(ahead)
                elif -ahead > LATE_S:
                    self.slipped_s -= ahead
                    due = self.clock()
        except Exception as error:  # told to whoever sends next; the state grows old
            self._failure = error
