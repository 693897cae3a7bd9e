"""A source's settings from a configuration's table or a URI's query, and its secrets from where they are kept."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from sensors.stream import SensorError

Settings = TypeVar("Settings")


def shown(text: str) -> str:
    """An address, or what an error says of one, without a password that may be in it."""
    return re.sub(r"((?://|')[^/@:']*):[^/@]*@", r"\1:...@", text)


def parse_settings(kind: type[Settings], given: Mapping[str, Any], where: str, **made: Any) -> Settings:
    """The dataclass `kind` made of `given`; text stands for a number or true/false, as a URI's query writes them.

    made: fields that are ready, and no setting's to give.

    Raises:
        SensorError: a field that is missing, not known, or of the wrong type.
    """
    fields = {field.name: field for field in dataclasses.fields(kind) if field.name not in made}  # type: ignore[arg-type]
    unknown = [name for name in given if name not in fields]
    if unknown:
        raise SensorError(f"{where}: does not know {', '.join(unknown)}; expected {', '.join(fields)}.")
    missing = [name for name, field in fields.items() if name not in given and field.default is dataclasses.MISSING]
    if missing:
        raise SensorError(f"{where}: lacks {', '.join(missing)}.")
    types = get_type_hints(kind)
    return kind(**made, **{name: _typed(value, types[name], f"{where}: {name}") for name, value in given.items()})


def _typed(value: Any, kind: Any, where: str) -> Any:
    if isinstance(kind, UnionType):  # of a type and None, which is what is not given
        kind = get_args(kind)[0]
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        if not isinstance(value, list | tuple) or len(value) != len(kinds):
            raise SensorError(f"{where} is {value!r}, expected a list of {len(kinds)}.")
        return tuple(_typed(each, kinds[index], f"{where}[{index}]") for index, each in enumerate(value))
    expected = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[kind]
    try:
        if kind is bool and value in ("true", "false"):
            return value == "true"
        if kind in (int, float) and isinstance(value, str):
            return kind(value)
    except ValueError:
        pass
    if type(value) is kind or (kind is float and type(value) is int):
        return kind(value)
    raise SensorError(f"{where} is {value!r}, expected {expected}.")


def refuse_unless(fine: bool, where: str, name: str, value: object, expected: str) -> None:
    if not fine:
        raise SensorError(f"{where}: {name} is {value!r}, expected {expected}.")


def refuse_bad_time(where: str, name: str, value: float) -> None:
    refuse_unless(0 < value < math.inf, where, name, value, "seconds above 0")


def secret(where: str, what: str, env: str, file: str) -> str | None:
    """A secret of the environment variable or the file that a configuration names; None if it names neither.

    Raises:
        SensorError: both are named, or what is named is not there or empty.
    """
    if env and file:
        raise SensorError(f"{where}: {what}_env and {what}_file are both given; name one.")
    if env:
        value = os.environ.get(env, "")
        if not value:
            raise SensorError(f"{where}: the environment variable {env}, named as {what}_env, is not set. Set it.")
        return value
    if file:
        try:
            value = Path(file).expanduser().read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SensorError(f"{where}: {file}, named as {what}_file, cannot be read ({error}).") from error
        if not value:
            raise SensorError(f"{where}: {file}, named as {what}_file, is empty.")
        return value
    return None
