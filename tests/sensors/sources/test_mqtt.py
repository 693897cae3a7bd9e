"""Frames through a real broker."""

import asyncio
import gc
import json
import shutil
import ssl
import subprocess
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("aiomqtt")

import aiomqtt

from data.frame import Channel
from sensors.sources.mqtt import MqttConfig, MqttSource
from sensors.sources.payload import encode_binary, encode_json
from sensors.stream import SensorError, SourceLost, StreamInfo
from tests.sensors.broker import Broker, free_port, mosquitto

INFO = StreamInfo("glove", (Channel("bend", "deg"), Channel("twist", "deg")), rate_hz=100.0)
TOPIC = "lab/glove"


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    with Broker(tmp_path_factory.mktemp("broker"), "allow_anonymous true") as running:
        yield running


def config(broker: Broker, **settings) -> MqttConfig:
    return MqttConfig("127.0.0.1", broker.port, topic=TOPIC, **settings)


def publisher(broker: Broker, **settings) -> aiomqtt.Client:
    return aiomqtt.Client("127.0.0.1", broker.port, protocol=aiomqtt.ProtocolVersion.V5, **settings)


def within(seconds: float, work: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), seconds))


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("payload", ["json", "binary"])
def test_frames_come_as_they_are_published(broker, payload, qos):
    encode = {"json": encode_json, "binary": encode_binary}[payload]

    async def work() -> None:
        before = time.monotonic()
        async with MqttSource(config(broker, payload=payload, qos=qos), INFO) as source, publisher(broker) as sender:
            assert source.connected
            await sender.publish(TOPIC, encode(1.5, np.float32([10, np.nan])), qos=qos)
            await sender.publish(TOPIC, encode(1.51, np.float32([11, -2.5])), qos=qos)
            first, second = await anext(source), await anext(source)
            assert (first.time, second.time) == (1.5, 1.51)
            assert first.mask.tolist() == [True, False]
            assert second.values.tolist() == [11, -2.5]
            assert before < first.received <= second.received <= time.monotonic()
        assert not source.connected

    within(10, work)


def test_what_is_no_frame_is_dropped_and_counted(broker):
    bad = ["bend", '{"t": 1, "v": [1]}', '{"t": 1, "v": [1, "2"]}', '{"t": "now", "v": [1, 2]}', "[1, 2]", b"\xff\xfe"]

    async def work() -> None:
        async with MqttSource(config(broker), INFO) as source, publisher(broker) as sender:
            for message in bad:
                await sender.publish(TOPIC, message)
            await sender.publish(TOPIC, encode_json(2.0, np.float32([1, 2])))
            assert (await anext(source)).time == 2.0
            assert source.dropped == len(bad)
            assert source.last_drop.startswith("glove: not JSON")

    within(10, work)


def test_retained_messages_are_not_frames(broker):
    async def work() -> None:
        async with publisher(broker) as sender:
            await sender.publish(TOPIC, encode_json(1.0, np.float32([1, 2])), retain=True)
            async with MqttSource(config(broker), INFO) as source:
                await sender.publish(TOPIC, encode_json(2.0, np.float32([1, 2])))
                assert (await anext(source)).time == 2.0
                assert (source.dropped, source.last_drop) == (1, "glove: a retained message, which may be of any time.")
            await sender.publish(TOPIC, b"", retain=True)

    within(10, work)


def test_a_consumer_that_is_slow_gets_the_newest(broker):
    async def work() -> None:
        async with MqttSource(config(broker), INFO) as source, publisher(broker) as sender:
            for index in range(100):
                await sender.publish(TOPIC, encode_json(float(index), np.float32([1, 2])), qos=1)
            assert (await anext(source)).time >= 100 - 32
            assert source.dropped >= 60
            assert "too slow" in source.last_drop

    within(10, work)


def test_a_broker_that_dies_is_noticed_at_once_and_found_again(tmp_path):
    async def work() -> None:
        with Broker(tmp_path, "allow_anonymous true") as broker:
            async with MqttSource(config(broker), INFO) as source:
                broker.kill()
                killed = time.monotonic()
                await until(lambda: not source.connected)
                assert time.monotonic() - killed < 0.1
                broker.start()
                await until(lambda: source.connected)
                async with publisher(broker) as sender:
                    await sender.publish(TOPIC, encode_json(5.0, np.float32([1, 2])))
                    assert (await anext(source)).time == 5.0

    within(20, work)


def test_a_broker_that_is_frozen_holds_nobody_up(tmp_path):
    async def work() -> None:
        with Broker(tmp_path, "allow_anonymous true") as broker:
            source = MqttSource(config(broker), INFO)
            await source.connect()
            broker.pause()
            began = time.monotonic()
            await source.close()
            assert time.monotonic() - began < 2
            broker.go_on()
            await asyncio.sleep(0.1)  # the farewell is heard, and the connection ends

    within(10, work)


def test_a_broker_that_does_not_come_back_is_given_up(tmp_path):
    async def work() -> None:
        with Broker(tmp_path, "allow_anonymous true") as broker:
            async with MqttSource(config(broker, give_up_after_s=0.3), INFO) as source:
                broker.kill()
                with pytest.raises(SourceLost, match=r"given up. .*no MQTT 5 broker answers at 127.0.0.1, port"):
                    await anext(source)

    within(10, work)


def test_a_broker_that_is_not_there_is_named_with_what_to_do():
    async def work() -> None:
        port = free_port()
        source = MqttSource(MqttConfig("127.0.0.1", port, topic=TOPIC), INFO)
        with pytest.raises(SensorError, match=f"127.0.0.1, port {port} .*Start it"):
            await source.connect()
        with pytest.raises(SourceLost, match="was closed"):
            await anext(source)

    within(10, work)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A broker with TLS, one user, and an access list; its authority's file."""
    mosquitto()
    folder = tmp_path_factory.mktemp("guarded")
    openssl, passwords = shutil.which("openssl"), shutil.which("mosquitto_passwd")
    assert openssl, "openssl is needed to make the broker's certificate"
    assert passwords, "mosquitto_passwd comes with mosquitto"
    for command in (
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -keyout ca.key -out ca.pem -subj "
        "/CN=authority",
        "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout server.key -out server.csr -subj "
        "/CN=localhost",
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -days 2 -out server.pem -extfile names",
    ):
        (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        subprocess.run([openssl, *command.split()], cwd=folder, check=True, capture_output=True)
    subprocess.run([passwords, "-c", "-b", "passwords", "robot", "right"], cwd=folder, check=True, capture_output=True)
    (folder / "access").write_text(f"user robot\ntopic readwrite {TOPIC}\n")
    readable(*folder.iterdir())
    lines = [
        f"cafile {folder}/ca.pem", f"certfile {folder}/server.pem", f"keyfile {folder}/server.key",
        f"password_file {folder}/passwords", f"acl_file {folder}/access", "allow_anonymous false",
    ]  # fmt: skip
    with Broker(folder, *lines) as running:
        yield running, folder / "ca.pem"


def readable(*files: Path) -> None:
    """For mosquitto, which gives up root before it reads them; pytest's folders are closed to others."""
    for file in files:
        file.chmod(0o644)
        for folder in file.parents[:3]:
            if folder.stat().st_mode & 0o005 != 0o005:
                folder.chmod(folder.stat().st_mode | 0o005)


def secure(guarded, **settings) -> MqttConfig:
    broker, authority = guarded
    given = {"tls": True, "ca_file": str(authority), "user": "robot", "password_env": "GLOVE_PASSWORD"}
    return config(broker, **given | settings)


def test_tls_with_a_user_and_a_password_from_the_environment(guarded, monkeypatch):
    monkeypatch.setenv("GLOVE_PASSWORD", "right")
    broker, authority = guarded

    async def work() -> None:
        context = ssl.create_default_context(cafile=str(authority))
        async with (
            MqttSource(secure(guarded), INFO) as source,
            publisher(broker, username="robot", password="right", tls_context=context) as sender,
        ):
            await sender.publish(TOPIC, encode_json(1.0, np.float32([1, 2])))
            assert (await anext(source)).time == 1.0

    within(10, work)


@pytest.mark.filterwarnings("ignore:unclosed <ssl:ResourceWarning")
@pytest.mark.parametrize(
    ("settings", "password", "message"),
    [
        ({}, "wrong", "the broker refuses user robot .*Check user and password"),
        ({"user": "", "password_env": ""}, "", "the broker refuses a client without a user"),
        ({"ca_file": ""}, "right", "certificate is not trusted"),
        ({}, "", "environment variable GLOVE_PASSWORD, named as password_env, is not set"),
        ({"password_env": "", "password_file": "/nowhere/password"}, "", "password_file, cannot be read"),
        ({"ca_file": "/nowhere/ca.pem"}, "right", "/nowhere/ca.pem cannot be read as certificates"),
    ],
)
def test_credentials_that_are_missing_or_wrong_are_told_apart(guarded, monkeypatch, settings, password, message):
    monkeypatch.setenv("GLOVE_PASSWORD", password)

    async def work() -> None:
        source = MqttSource(replace(secure(guarded), **settings), INFO)
        with pytest.raises(SensorError, match=message):
            await source.connect()

    within(10, work)
    gc.collect()  # paho leaves the socket of a handshake that failed to the collector, which warns of it


def test_a_topic_that_the_broker_keeps_from_us_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("GLOVE_PASSWORD", "right")
    mosquitto()
    control, plugin = shutil.which("mosquitto_ctrl"), next(Path("/usr/lib").rglob("mosquitto_dynamic_security.so"))
    assert control, "mosquitto_ctrl comes with mosquitto"
    rules = tmp_path / "rules.json"
    subprocess.run([control, "dynsec", "init", str(rules), "robot", "right"], check=True, capture_output=True)
    described = json.loads(rules.read_text())
    for role in described["roles"]:
        role["acls"] = []
    rules.write_text(json.dumps(described))
    readable(rules)

    async def work() -> None:
        with Broker(tmp_path, f"plugin {plugin}", f"plugin_opt_config_file {rules}") as broker:
            source = MqttSource(config(broker, user="robot", password_env="GLOVE_PASSWORD"), INFO)
            with pytest.raises(SensorError, match="does not let robot subscribe to lab/glove"):
                await source.connect()

    within(10, work)


def test_a_password_that_is_wrong_after_a_return_is_not_tried_again(guarded, monkeypatch):
    """The broker is there, so waiting would not help."""
    monkeypatch.setenv("GLOVE_PASSWORD", "right")
    broker, _ = guarded

    async def work() -> None:
        async with MqttSource(secure(guarded), INFO) as source:
            broker.kill()
            monkeypatch.setenv("GLOVE_PASSWORD", "changed")
            broker.start()
            with pytest.raises(SourceLost, match="refuses user robot"):
                await anext(source)

    within(10, work)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"host": ""}, "host is '', expected a name"),
        ({"topic": "lab/+"}, "without the wildcards"),
        ({"qos": 3}, "qos is 3, expected 0, 1 or 2"),
        ({"payload": "xml"}, "payload is 'xml', expected json or hand or binary"),
        ({"user": "robot"}, "user robot without a password"),
        ({"password_env": "X"}, "a password without a user"),
        ({"ca_file": "ca.pem"}, "tls is off"),
        ({"tls": True, "cert_file": "a.pem"}, "belong together"),
        ({"give_up_after_s": float("nan")}, "give_up_after_s is nan"),
        ({"port": 99999}, "port is 99999"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(SensorError, match=message):
        MqttConfig(**{"host": "localhost", "topic": TOPIC} | settings)


def test_json_of_any_sender_is_understood(broker):
    async def work() -> None:
        async with MqttSource(config(broker), INFO) as source, publisher(broker) as sender:
            await sender.publish(TOPIC, json.dumps({"v": [1, 2.5], "battery": 80}))
            frame = await anext(source)
            assert np.isnan(frame.time)
            assert frame.values.tolist() == [1, 2.5]

    within(10, work)
