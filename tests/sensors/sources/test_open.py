"""Sources by their URIs and tables."""

import asyncio
import math
import tomllib

import pytest

pytest.importorskip("aiomqtt")
pytest.importorskip("pylsl")
pytest.importorskip("serial")
pytest.importorskip("websockets")

from data.frame import Channel
from sensors.recording import Recorder
from sensors.robots.open import open_robot
from sensors.sources.lsl import LslSource
from sensors.sources.mqtt import MqttSource
from sensors.sources.open import open_source
from sensors.sources.replay import ReplaySource
from sensors.sources.serial import SerialSource
from sensors.sources.websocket import WebsocketServerSource, WebsocketSource
from sensors.stream import SensorError, StreamInfo

CHANNELS = (Channel("bend", "deg", 0, 90), Channel("twist", "deg"))


def test_a_table_of_a_configuration_is_a_source():
    source = open_source(
        tomllib.loads("""
        uri = "mqtts://robot@broker.lab/hands/glove"
        password_env = "GLOVE_PASSWORD"
        qos = 1
        rate_hz = 200
        stream_id = "left"
        channels = [{name = "bend", unit = "deg", low = 0, high = 90}, {name = "twist", unit = "deg"}]
        """)
    )
    assert isinstance(source, MqttSource)
    assert source.info == StreamInfo("left", CHANNELS, 200.0)
    config = source.config
    assert (config.host, config.port, config.topic, config.tls) == ("broker.lab", 8883, "hands/glove", True)
    assert (config.user, config.password_env, config.qos) == ("robot", "GLOVE_PASSWORD", 1)


@pytest.mark.parametrize(
    ("uri", "kind", "settings"),
    [
        ("mqtt://h:1884//a/b?payload=binary&qos=2", MqttSource, {"port": 1884, "topic": "/a/b", "payload": "binary"}),
        ("lsl:my%20glove?resolve_s=1.5", LslSource, {"name": "my glove", "resolve_s": 1.5}),
        ("serial:/dev/ttyUSB0?baud=921600", SerialSource, {"port": "/dev/ttyUSB0", "baud": 921600}),
        ("ws://h:1/p?key=1#give_up_after_s=3", WebsocketSource, {"uri": "ws://h:1/p?key=1", "give_up_after_s": 3.0}),
        ("ws-listen://127.0.0.1:8765", WebsocketServerSource, {"host": "127.0.0.1", "port": 8765}),
    ],
)
def test_a_uri_alone_is_a_source_with_its_settings(uri, kind, settings):
    source = open_source(uri, channels=CHANNELS, rate_hz=100.0)
    assert isinstance(source, kind)
    assert source.info.channels == CHANNELS
    assert source.info.rate_hz == 100.0
    assert {name: getattr(source.config, name) for name in settings} == settings


def test_a_recording_is_replayed_in_the_wanted_channels(tmp_path):
    path = tmp_path / "take.parquet"
    with Recorder(path, StreamInfo("glove", CHANNELS, 200.0)) as recorder:
        recorder.append(recorder.info.frame(0.0, 1.0, [1.0, 2.0]))
    source = open_source(f"replay:{path}?speed=inf", channels=CHANNELS[::-1])
    assert isinstance(source, ReplaySource)
    assert source.speed == math.inf

    async def first() -> list[float]:
        async with source:
            return (await anext(aiter(source))).values.tolist()

    assert asyncio.run(first()) == [2.0, 1.0]


def test_a_hand_needs_no_channels():
    source = open_source("ws-listen://127.0.0.1:8765?text=hand&rate_hz=30")
    assert len(source.info.channels) == 63
    assert open_source({"uri": "lsl:hand", "rate_hz": 30, "channels": "hand"}).info.channels == source.info.channels


TABLE = {"uri": "mqtt://h/t", "rate_hz": 200, "channels": [{"name": "bend", "unit": "deg"}]}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            "kafka://h/t",
            "no source of kind 'kafka'; expected one of replay, mqtt, mqtts, lsl, serial, ws",
        ),
        ("glove.csv", "no source of kind"),
        ({"rate_hz": 1}, "uri is None, expected one of replay"),
        (TABLE | {"speed": 2}, "mqtt://h/t: does not know speed; expected host, port"),
        (TABLE | {"qos": "high"}, "qos is 'high', expected a whole number"),
        (TABLE | {"tls": 1}, "tls is 1, expected true or false"),
        (TABLE | {"uri": "mqtt://h/t?qos=1", "qos": 2}, "qos in the URI and in the table"),
        (TABLE | {"uri": "mqtt://h/t?qos=1&qos=2"}, "given twice"),
        (TABLE | {"uri": "mqtt://h"}, "topic is ''"),
        (TABLE | {"uri": "mqtt://h/a/#"}, "topic is 'a/#'"),
        (TABLE | {"uri": "mqtt://h:port/t"}, "mqtt://h:port/t: Port could not be cast"),
        (TABLE | {"uri": "mqtt://[::1/t"}, r"mqtt://\[::1/t: Invalid IPv6 URL"),
        (TABLE | {"uri": "mqtt://a..b/t"}, "host is 'a..b', expected a name or an address"),
        (TABLE | {"user": "robot"}, "user robot without a password: name the environment variable"),
        (TABLE | {"rate_hz": "fast"}, "rate_hz is 'fast', expected a number"),
        (TABLE | {"rate_hz": -1}, "rate_hz is -1"),
        (TABLE | {"stream_id": 7}, "stream_id is 7, expected text"),
        (TABLE | {"channels": "bend"}, "channels is 'bend', expected a list of tables"),
        (TABLE | {"channels": [{"name": "bend"}]}, "expected the fields name, unit"),
        (TABLE | {"channels": [{"name": "bend", "unit": "deg", "max": 3}]}, "a channel has no max; expected name"),
        (TABLE | {"channels": [{"name": "bend", "unit": "deg", "low": "much"}]}, "could not convert"),
        (TABLE | {"payload": "hand"}, "a hand has 63 channels, here are 1"),
        ({"uri": "mqtt://h/t", "rate_hz": 200}, "lacks channels"),
        ({"uri": "mqtt://h/t", "channels": TABLE["channels"]}, "lacks rate_hz"),
        ("ws-listen://127.0.0.1", "lacks a host or a port"),
        ("replay:no_such_set", "no data set and no file of this name"),
        ("replay:battery_simulated?series=sim_01&rate_hz=1&speed=0", "speed is 0.0, expected a number above 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(SensorError, match=message):
        open_source(settings)


@pytest.mark.parametrize("uri", ["ws://a..b/p", "ws-listen://a..b:8765?token_env=HOME"])
def test_a_host_that_is_none_is_refused_by_the_address(uri):
    async def connect() -> None:
        async with open_source(TABLE | {"uri": uri}):
            pass

    with pytest.raises(SensorError, match=r"a\.\.b"):
        asyncio.run(connect())


@pytest.mark.parametrize(
    "settings",
    [
        TABLE | {"password": "hunter2"},
        TABLE | {"uri": "mqtt://robot:hunter2@h/t"},
        "ws://h/p#token=hunter2",
        "ws://robot:hunter2@h/p",
    ],
)
def test_secrets_in_settings_are_refused_and_not_shown(settings):
    with pytest.raises(SensorError, match="Name the environment variable that holds it") as refusal:
        open_source(settings)
    assert "hunter2" not in str(refusal.value)


@pytest.mark.parametrize("opening", [open_source, lambda uri: open_robot({"uri": uri, "arm": "panda"})])
@pytest.mark.parametrize(
    "address", ["mqtt://robot:hunter2@[h/t", "mqtt://robot:hunter2@\u2100/t", "kafka://robot:hunter2@h/t"]
)
def test_an_address_that_cannot_be_read_is_told_without_its_password(opening, address):
    with pytest.raises(SensorError, match=r"robot:\.\.\.@") as refusal:
        opening(address)
    assert "hunter2" not in str(refusal.value)


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        ((Channel("twist", "deg"),), "its channels are bend, but twist are expected"),
        ((Channel("bend", "rad"),), "channel bend is in deg, expected rad"),
    ],
)
def test_a_stream_of_other_channels_than_the_model_takes_is_refused(channels, message):
    with pytest.raises(SensorError, match=message):
        open_source(TABLE, channels=channels)
