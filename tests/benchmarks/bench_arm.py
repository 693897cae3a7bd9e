"""The simulated arm: how exactly it follows, how fast it stands, and what it costs.

`python tests/benchmarks/bench_arm.py`. Beside ours, what an undamped inverse (the pseudoinverse) asks of the joints.
"""

from __future__ import annotations

import time
from statistics import median

import numpy as np
from figures import machine, percentiles_us

from sensors.robot import Command
from sensors.robots.kinematics import Kinematics
from sensors.robots.panda import PANDA
from sensors.robots.simulated import PERIOD_S, SimulatedArm, Simulation

STANDING = 0.01  # rad/s
DRAWS = 200


def send(arm: SimulatedArm, twist: np.ndarray, for_s: float = 2 * PERIOD_S) -> None:
    arm.send(Command(arm.executed + 1, arm.clock(), arm.clock() + for_s, twist))


def stopping() -> None:
    """From a speed of 0.25 m/s and 0.5 rad/s in random directions, until the fastest joint stands."""
    drawn = np.random.default_rng(0)
    times, ways = [], []
    for _ in range(20):
        direction = drawn.normal(size=6)
        twist = np.concatenate(
            [0.25 * direction[:3] / np.linalg.norm(direction[:3]), 0.5 * direction[3:] / np.linalg.norm(direction[3:])]
        )
        with SimulatedArm(Simulation(), real_time=False) as arm:
            for _ in range(75):
                send(arm, twist)
                arm.advance(PERIOD_S)
            arm.stop()
            start, here = arm.clock(), arm.state().position
            while np.abs(arm.state().velocities).max() > STANDING:
                arm.advance(PERIOD_S)
            times.append(arm.clock() - start)
            ways.append(float(np.linalg.norm(arm.state().position - here)))
    print(f"stands after a stop: median {median(times) * 1000:.0f} ms, worst {max(times) * 1000:.0f} ms (simulated)")
    print(f"way after a stop: median {median(ways) * 1000:.1f} mm, worst {max(ways) * 1000:.1f} mm")


def following() -> None:
    with SimulatedArm(Simulation(), real_time=False) as arm:
        twist = np.array([0.1, 0.1, -0.05, 0.1, -0.1, 0.2])
        for _ in range(50):
            send(arm, twist)
            arm.advance(PERIOD_S)
        before, start = arm.state().position, arm.clock()
        for _ in range(250):
            send(arm, twist)
            arm.advance(PERIOD_S)
        off = arm.state().position - before - twist[:3] * (arm.clock() - start)
    print(f"one second of a twist ends {np.linalg.norm(off) * 1000:.2f} mm off")


def joints() -> None:
    """The fastest joint that a tool's velocity of 0.1 m/s asks for, over random poses."""
    kinematics, drawn = Kinematics(PANDA), np.random.default_rng(1)
    ours, plain = [], []
    for _ in range(DRAWS):
        q, direction = drawn.uniform(PANDA.low, PANDA.high), drawn.normal(size=3)
        twist = np.concatenate([0.1 * direction / np.linalg.norm(direction), np.zeros(3)])
        ours.append(np.abs(kinematics.velocities(q, twist)).max())
        plain.append(np.abs(np.linalg.pinv(kinematics.jacobian(q)) @ twist).max())
    print(
        f"fastest joint for 0.1 m/s over {DRAWS} poses: ours median {median(ours):.2f}, most {max(ours):.2f} rad/s; "
        f"pseudoinverse median {median(plain):.2f}, most {max(plain):.2f} rad/s"
    )


def cost() -> None:
    kinematics, q, twist = Kinematics(PANDA), np.array(PANDA.home), np.full(6, 0.1)
    middle, high, _ = percentiles_us(lambda: kinematics.velocities(q, twist), 1000)
    print(f"inverse kinematics: median {middle:.0f} us, p99 {high:.0f} us")
    for scene in ("panda", "breakfast"):
        times = []
        with SimulatedArm(Simulation(scene), real_time=False) as arm:
            for _ in range(500):
                send(arm, np.array([0, 0.02, 0, 0, 0, 0]))
                start = time.perf_counter()
                arm.advance(PERIOD_S)
                times.append(time.perf_counter() - start)
        print(f"a period of {PERIOD_S * 1000:.0f} ms in the scene {scene}: median {median(times) * 1e6:.0f} us")
    with SimulatedArm(Simulation("breakfast")) as arm:
        used = time.process_time()
        time.sleep(5)
        used = time.process_time() - used
        print(f"in real time: {used / 5:.0%} of a core, {arm.slipped_s:.3f} s of 5 s slipped")


if __name__ == "__main__":
    print(machine())
    following()
    stopping()
    joints()
    cost()
