"""A source of a URI, or of a configuration's table.

    replay:PATH or replay:DATA_SET          series, speed, loop
    mqtt://[USER@]HOST[:PORT]/TOPIC         payload, qos, password_env or password_file, ...; mqtts:// with TLS
    lsl:NAME                                source_id, resolve_s, give_up_after_s
    serial:DEVICE                           baud
    ws://HOST[:PORT]/PATH, wss://...        text, token_env or token_file, ca_file, give_up_after_s
    ws-listen://HOST:PORT                   text, token_env or token_file, origin, cert_file, key_file, ...

A table has the URI as `uri`, and beside it the settings of that kind (the fields of its config), and of any kind:
`stream_id`, `rate_hz` and `channels`, a list of tables with name, unit and optionally low and high, or "hand". In a URI
alone the settings follow as a query, `?speed=2&loop=true`; for ws:// and wss://, whose query is their server's, after
`#`.

    [source]
    uri = "mqtts://robot@broker.lab/glove"
    password_env = "GLOVE_PASSWORD"
    rate_hz = 200
    channels = [{name = "bend", unit = "deg", low = 0, high = 90}]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from data.frame import Channel, FrameError
from sensors.sources.hand import hand_channels
from sensors.sources.replay import ReplayConfig, ReplaySource, load_recording
from sensors.sources.settings import parse_settings, shown
from sensors.stream import SensorError, Source, StreamInfo

Settings = dict[str, Any]
SECRETS = ("password", "token")
CHANNEL_FIELDS = ("name", "unit", "low", "high")


def open_source(
    settings: str | Mapping[str, Any],
    channels: Sequence[Channel] | None = None,
    rate_hz: float | None = None,
) -> Source:
    """The source, not connected yet.

    Args:
        settings: a URI, or a table.
        channels: those that the frames shall have, a bundle's for example. A replay gives them in this order; of other
            sources they are what is on the wire, and must be the configured ones where these are given too.
        rate_hz: nominal, where the settings do not say.

    Raises:
        SensorError: an unknown kind or setting, one that is missing or cannot be, or a secret in the settings.
    """
    table = {"uri": settings} if isinstance(settings, str) else dict(settings)
    uri = table.pop("uri", None)
    if not isinstance(uri, str):
        raise SensorError(f"source: uri is {uri!r}, expected one of {', '.join(_KINDS)} with an address.")
    scheme, colon, _ = uri.partition(":")
    if not colon or scheme not in _KINDS:
        raise SensorError(f"{shown(uri)}: no source of kind '{scheme}'; expected one of {', '.join(_KINDS)}.")
    address, query = split_uri(uri, "#" if scheme in ("ws", "wss") else "?")
    given = query | table
    refuse_secrets(given, address)
    twice = query.keys() & table.keys()
    if twice:
        raise SensorError(f"{address}: {', '.join(sorted(twice))} in the URI and in the table; give one.")
    wanted = _Wanted(
        address,
        None if channels is None else tuple(channels),
        given.pop("channels", None),
        given.pop("rate_hz", None),
        rate_hz,
        given.pop("stream_id", None),
    )
    try:
        return _KINDS[scheme](address, given, wanted)
    except ImportError as error:
        raise SensorError(f"{address}: {error.name} is not installed; install mnemosyne-forecast[robot].") from error


@dataclass(frozen=True)
class _Wanted:
    """What makes a stream's description."""

    address: str
    expected: tuple[Channel, ...] | None
    channels: Any
    given_rate: Any
    default_rate: float | None
    given_id: Any

    def own_channels(self) -> tuple[Channel, ...] | None:
        if self.channels is None:
            return None
        if self.channels == "hand":
            return hand_channels()
        if not isinstance(self.channels, list) or not all(isinstance(channel, Mapping) for channel in self.channels):
            raise SensorError(f'{self.address}: channels is {self.channels!r}, expected a list of tables, or "hand".')
        return tuple(self._channel(channel) for channel in self.channels)

    def _channel(self, fields: Mapping[str, Any]) -> Channel:
        unknown = [name for name in fields if name not in CHANNEL_FIELDS]
        if unknown:
            raise SensorError(
                f"{self.address}: a channel has no {', '.join(unknown)}; expected {', '.join(CHANNEL_FIELDS)}."
            )
        try:
            return Channel.from_json(fields)
        except FrameError as error:
            raise SensorError(f"{self.address}: {error}") from error

    def rate(self) -> float | None:
        if self.given_rate is None:
            return self.default_rate
        try:
            rate = float(self.given_rate)
        except (TypeError, ValueError):
            rate = -1.0
        if isinstance(self.given_rate, bool) or not 0 <= rate < float("inf"):
            raise SensorError(
                f"{self.address}: rate_hz is {self.given_rate!r}, expected a number, 0 for no fixed rate."
            )
        return rate

    def stream_id(self) -> str:
        if self.given_id is not None and not isinstance(self.given_id, str):
            raise SensorError(f"{self.address}: stream_id is {self.given_id!r}, expected text.")
        return self.given_id or self.address

    def live(self, hand: bool = False) -> StreamInfo:
        """Of a source that does not know itself what it gives."""
        own, expected = self.own_channels(), self.expected
        if own is None and expected is None and hand:
            own = hand_channels()
        channels = own or expected
        if channels is None:
            raise SensorError(
                f"{self.address}: lacks channels: list name and unit of each, in the order they are sent."
            )
        names = [channel.name for channel in channels]
        if own and expected and names != [channel.name for channel in expected]:
            wanted = ", ".join(channel.name for channel in expected)
            raise SensorError(f"{self.address}: its channels are {', '.join(names)}, but {wanted} are expected.")
        for mine, other in zip(own or (), expected or (), strict=False):
            if mine.unit and other.unit and mine.unit != other.unit:
                raise SensorError(f"{self.address}: channel {mine.name} is in {mine.unit}, expected {other.unit}.")
        if hand and len(channels) != len(hand_channels()):
            raise SensorError(f"{self.address}: a hand has {len(hand_channels())} channels, here are {len(channels)}.")
        rate = self.rate()
        if rate is None:
            raise SensorError(
                f"{self.address}: lacks rate_hz, the frames a second; 0 where they come at no fixed rate."
            )
        return StreamInfo(self.stream_id(), channels, rate)


def _replay(address: str, given: Settings, wanted: _Wanted) -> Source:
    config = parse_settings(ReplayConfig, {"source": _rest(address)} | given, address)
    channels = wanted.own_channels() or wanted.expected
    recording = load_recording(config.source, config.series or None, wanted.rate(), channels)
    return ReplaySource(recording, config)


def _mqtt(address: str, given: Settings, wanted: _Wanted) -> Source:
    from sensors.sources.mqtt import MqttConfig, MqttSource

    config = parse_settings(MqttConfig, mqtt_address(address) | given, address)
    return MqttSource(config, wanted.live(config.payload == "hand"))


def mqtt_address(address: str) -> Settings:
    """What mqtt://[USER@]HOST[:PORT]/TOPIC says."""
    place, wildcard, rest = address.partition("#")  # which begins a fragment in other URIs, and is refused in a topic
    parts = urlsplit(place)
    topic = unquote(parts.path[1:]) + wildcard + rest
    found: Settings = {"host": parts.hostname or "", "topic": topic, "port": _port(parts) or 0}
    if parts.username:
        found["user"] = unquote(parts.username)
    return found | {"tls": parts.scheme == "mqtts"}


def _lsl(address: str, given: Settings, wanted: _Wanted) -> Source:
    from sensors.sources.lsl import LslConfig, LslSource

    return LslSource(parse_settings(LslConfig, {"name": _rest(address)} | given, address), wanted.live())


def _serial(address: str, given: Settings, wanted: _Wanted) -> Source:
    from sensors.sources.serial import SerialConfig, SerialSource

    return SerialSource(parse_settings(SerialConfig, {"port": _rest(address)} | given, address), wanted.live())


def _websocket(address: str, given: Settings, wanted: _Wanted) -> Source:
    from sensors.sources.websocket import WebsocketConfig, WebsocketSource

    config = parse_settings(WebsocketConfig, {"uri": address} | given, address)
    return WebsocketSource(config, wanted.live(config.text == "hand"))


def _listen(address: str, given: Settings, wanted: _Wanted) -> Source:
    from sensors.sources.websocket import WebsocketServerConfig, WebsocketServerSource

    parts = urlsplit(address)
    port = _port(parts)
    if port is None or not parts.hostname:
        raise SensorError(f"{address}: lacks a host or a port, as in ws-listen://127.0.0.1:8765.")
    config = parse_settings(WebsocketServerConfig, {"host": parts.hostname, "port": port} | given, address)
    return WebsocketServerSource(config, wanted.live(config.text == "hand"))


_KINDS: dict[str, Callable[[str, Settings, _Wanted], Source]] = {
    "replay": _replay,
    "mqtt": _mqtt,
    "mqtts": _mqtt,
    "lsl": _lsl,
    "serial": _serial,
    "ws": _websocket,
    "wss": _websocket,
    "ws-listen": _listen,
}


def split_uri(uri: str, mark: str) -> tuple[str, Settings]:
    address, found, query = uri.rpartition(mark)
    if not found or "=" not in query:  # a pattern of files may have a question mark
        return uri, {}
    pairs = parse_qsl(query, keep_blank_values=True)
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise SensorError(f"{address}: a setting is given twice in {query}.")
    return address, dict(pairs)


def _rest(address: str) -> str:
    return unquote(address.partition(":")[2])


def _port(parts: SplitResult) -> int | None:
    try:
        return parts.port
    except ValueError as error:
        raise SensorError(f"{parts.geturl()}: {error}.") from error


def refuse_secrets(given: Settings, address: str) -> None:
    """Not even shown: neither the setting nor the address."""
    named = [name for name in SECRETS if name in given]
    try:
        parts = urlsplit(address) if "//" in address else None
    except ValueError as error:
        raise SensorError(shown(f"{address}: {error}.")) from error
    if named or (parts is not None and parts.password is not None):
        raise SensorError(
            f"{address.partition(':')[0]}: a {named[0] if named else 'password'} is in the settings, which others may "
            "read. Name the environment variable that holds it (password_env, token_env) or its file (password_file, "
            "token_file)."
        )
