"""The Franka Emika Panda, a seven-axis arm, as its maker publishes it.

Denavit-Hartenberg table, joint limits and speeds: "Robot and interface specifications"
(https://frankaemika.github.io/docs/control_parameters.html). The tool is the point between the fingers' tips of the
maker's hand, 0.1034 m from the flange and turned by -45 degrees.
"""

from __future__ import annotations

from math import pi

from data.frame import Channel
from sensors.robots.kinematics import Arm, Link

LIMITS = (  # rad
    (-2.8973, 2.8973),
    (-1.7628, 1.7628),
    (-2.8973, 2.8973),
    (-3.0718, -0.0698),
    (-2.8973, 2.8973),
    (-0.0175, 3.7525),
    (-2.8973, 2.8973),
)

PANDA = Arm(
    name="panda",
    joints=tuple(Channel(f"panda_joint{number}", "rad", *limits) for number, limits in enumerate(LIMITS, start=1)),
    speeds=(2.175, 2.175, 2.175, 2.175, 2.61, 2.61, 2.61),
    links=(
        Link(alpha=0, a=0, d=0.333),
        Link(alpha=-pi / 2, a=0, d=0),
        Link(alpha=pi / 2, a=0, d=0.316),
        Link(alpha=pi / 2, a=0.0825, d=0),
        Link(alpha=-pi / 2, a=-0.0825, d=0.384),
        Link(alpha=pi / 2, a=0, d=0),
        Link(alpha=pi / 2, a=0.088, d=0),
    ),
    tool_distance=0.107 + 0.1034,
    tool_turn=-pi / 4,
    home=(0, -pi / 4, 0, -3 * pi / 4, 0, pi / 2, pi / 4),
)
