"""What of the bridge works on this machine: each part is tried, not looked up."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Row(NamedTuple):
    """As `mnemo doctor` prints it."""

    what: str
    works: str  # yes, no, or absent: not needed here
    found: str
    remedy: str = ""


def examine() -> list[Row]:
    """One row a part."""
    return [
        _tried("simulated robot", _simulated),
        _tried("MQTT", _mqtt),
        _tried("Lab Streaming Layer", _lsl),
        _tried("serial ports", _serial),
        _tried("websockets", _websockets),
        _tried("ROS 2 (DDS)", _dds),
        _tried("rosbridge", _rosbridge),
        _tried("film", _film),
    ]


def _tried(what: str, look: Callable[[], str]) -> Row:
    try:
        return Row(what, "yes", look())
    except ImportError as error:
        return Row(what, "no", f"{error.name or error} is not installed", "pip install 'mnemosyne-forecast[robot]'")
    except Exception as error:  # whatever a foreign library throws where it does not work
        return Row(what, "no", f"{type(error).__name__}: {error}", "pip install 'mnemosyne-forecast[robot]'")


def _simulated() -> str:
    import mujoco

    from sensors.robots.simulated import Simulation

    simulation = Simulation()
    simulation.step(None)
    return f"mujoco {mujoco.__version__}, {simulation.arm.name}, {len(simulation.arm.joints)} joints"


def _mqtt() -> str:
    import aiomqtt
    import paho.mqtt

    assert aiomqtt.Client is not None
    return f"paho-mqtt {paho.mqtt.__version__}; a broker is tried when a bridge names one"


def _lsl() -> str:
    import pylsl

    version = pylsl.library_version()
    return f"liblsl {version // 100}.{version % 100}"


def _serial() -> str:
    from serial.tools import list_ports

    ports = sorted(port.device for port in list_ports.comports())
    return ", ".join(ports) or "none is plugged in"


def _websockets() -> str:
    import websockets

    return f"websockets {websockets.__version__}"


def _dds() -> str:
    from cyclonedds.domain import DomainParticipant

    participant = DomainParticipant(0)
    del participant
    return "a participant can be made in domain 0"


def _rosbridge() -> str:
    import roslibpy

    return f"roslibpy {roslibpy.__version__}; a server is tried when a bridge names one"


def _film() -> str:
    import av

    av.codec.Codec("libx264", "w")
    return f"av {av.__version__}, H.264"
