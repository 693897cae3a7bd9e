"""The robot's process in the tests of MQTT: a simulated arm behind a broker, whose clock is far ahead of ours.

`python -m tests.sensors.robots.mqtt_peer PORT TOPIC`; for every line of its input it prints how many commands have been
executed and not, in all, and how fast the arm has been since the last one; it ends when its input does. Nothing is set
back, for commands come while it prints.
"""

import json
import sys
import threading
import time

import numpy as np

from sensors.mqtt_broker import MqttBroker
from sensors.robots.mqtt_host import MqttHost
from sensors.robots.simulated import SimulatedArm, Simulation

AHEAD_S = 5000.0


class Witness(SimulatedArm):
    """Notes how fast the arm is."""

    def __init__(self) -> None:
        super().__init__(Simulation(), clock=lambda: time.monotonic() + AHEAD_S)
        self.speeds: list[tuple[float, float]] = []  # s, of this machine; rad/s of the fastest joint

    def _step(self) -> None:
        super()._step()
        self.speeds.append((time.monotonic(), float(np.abs(self.state().velocities).max())))


def main(port: int, topic: str) -> None:
    arm, ending = Witness(), threading.Event()
    with MqttHost(arm, MqttBroker("127.0.0.1", port), topic, arm.clock) as host:
        reports = threading.Thread(target=host.run, args=[ending])
        reports.start()
        _say("ready")
        told = 0
        for _ in sys.stdin:
            speeds = arm.speeds[told:]
            told += len(speeds)
            _say(json.dumps({"counts": dict(host.counts), "refusal": host.last_refusal, "speeds": speeds}))
        ending.set()
        reports.join()


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
