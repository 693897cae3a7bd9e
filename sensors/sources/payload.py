"""How one frame is written in one message of MQTT or a websocket.

    json    {"t": 12.345, "v": [0.1, null, 3.0]}
            t: seconds of the source's own clock; null or absent where it has none
            v: a number for each channel, in order; null where it was not observed
    hand    {"t": 12.345, "hand": [[x, y, z], ...]}
            hand: 21 landmarks in the order of `hand.LANDMARKS`; null where no hand is seen
    binary  little-endian: t as float64 (NaN for no clock), then a float32 for each channel (NaN: not observed)

Fields that a message has besides are left. Whoever sends runs a clock of any origin that does not jump.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from sensors.sources.hand import LANDMARKS
from sensors.stream import SensorError

Numbers = NDArray[np.float32]
Decode = Callable[[bytes | str, int], tuple[float, Numbers]]
"""(message, C) -> (time in s or NaN, values (C,)); raises SensorError for what is no frame."""

TIME = struct.Struct("<d")
NUMBERS = (float, int, type(None))
SHOWN = 60  # characters of a bad message


def decode_json(message: bytes | str, channels: int) -> tuple[float, Numbers]:
    fields = _object(message)
    return _time(fields), _numbers(fields.get("v"), channels, "v")


def decode_hand(message: bytes | str, channels: int) -> tuple[float, Numbers]:
    fields = _object(message)
    if "hand" not in fields:
        raise SensorError(f"no field hand in {_shown(message)}: expected 21 landmarks, or null where no hand is seen.")
    points = fields["hand"]
    if points is None:
        return _time(fields), np.full(channels, np.nan, np.float32)
    if not isinstance(points, list) or not all(isinstance(point, list) and len(point) == 3 for point in points):
        raise SensorError(f"hand is {_shown(points)}, expected {len(LANDMARKS)} landmarks [x, y, z].")
    return _time(fields), _numbers([number for point in points for number in point], channels, "hand")


def decode_binary(message: bytes | str, channels: int) -> tuple[float, Numbers]:
    if isinstance(message, str) or len(message) != TIME.size + 4 * channels:
        what = "text" if isinstance(message, str) else f"{len(message)} bytes"
        raise SensorError(
            f"a binary frame of {what}, expected {TIME.size + 4 * channels} bytes: the time and {channels} channels."
        )
    (time,) = TIME.unpack_from(message)
    if math.isinf(time):
        raise SensorError(f"t is {time}, expected seconds.")
    return time, np.frombuffer(message, "<f4", offset=TIME.size)


DECODERS: dict[str, Decode] = {"json": decode_json, "hand": decode_hand, "binary": decode_binary}


def encode_json(time: float, values: Numbers) -> str:
    return json.dumps({"t": time, "v": [number if math.isfinite(number) else None for number in values.tolist()]})


def encode_binary(time: float, values: Numbers) -> bytes:
    return TIME.pack(time) + values.astype("<f4").tobytes()


def _object(message: bytes | str) -> dict[str, Any]:
    try:
        fields = json.loads(message, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:  # a UnicodeDecodeError is a ValueError
        raise SensorError(f'not JSON: {_shown(message)} ({error}). Expected {{"t": seconds, "v": [...]}}.') from error
    if not isinstance(fields, dict):
        raise SensorError(f'not a JSON object: {_shown(message)}. Expected {{"t": seconds, "v": [...]}}.')
    return fields


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON; a value that was not observed is null")


def _time(fields: dict[str, Any]) -> float:
    time = fields.get("t")
    if time is None:
        return math.nan
    if type(time) not in (float, int) or not abs(time) < 1e300:
        raise SensorError(f"t is {_shown(time)}, expected seconds or null.")
    return float(time)


def _numbers(values: Any, channels: int, name: str) -> Numbers:
    if not isinstance(values, list) or len(values) != channels:
        what = f"{len(values)} values" if isinstance(values, list) else _shown(values)
        raise SensorError(f"{name} is {what}, expected {channels} numbers.")
    for index, value in enumerate(values):
        if type(value) not in NUMBERS:  # a bool is no number, and numpy would take text for one
            raise SensorError(f"{name}[{index}] is {_shown(value)}, expected a number or null.")
    try:
        with np.errstate(over="ignore"):  # what does not fit is infinite, and so missing
            return np.array(values, np.float64).astype(np.float32)
    except OverflowError as error:
        raise SensorError(f"{name} holds an integer that is no number of a sensor ({error}).") from error


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."
