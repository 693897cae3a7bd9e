"""Frames through a websocket, in both directions."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import numpy as np
import pytest

pytest.importorskip("websockets")

from websockets.asyncio.client import connect
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed, InvalidStatus

from data.frame import Channel
from sensors.sources.hand import hand_channels
from sensors.sources.payload import encode_binary, encode_json
from sensors.sources.websocket import WebsocketConfig, WebsocketServerConfig, WebsocketServerSource, WebsocketSource
from sensors.stream import SensorError, SourceLost, StreamInfo
from tests.sensors.broker import free_port

INFO = StreamInfo("tracker", (Channel("bend", "deg"), Channel("twist", "deg")), rate_hz=30.0)
VALUES = np.float32([1.5, np.nan])


def within(seconds: float, work: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), seconds))


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def test_text_and_binary_frames_come_from_a_tracker_that_connects():
    async def work() -> None:
        async with WebsocketServerSource(WebsocketServerConfig(0), INFO) as source:
            assert not source.connected
            async with connect(f"ws://127.0.0.1:{source.port}") as tracker:
                before = time.monotonic()
                await tracker.send(encode_json(1.0, VALUES))
                await tracker.send(encode_binary(2.0, VALUES))
                first, second = await anext(source), await anext(source)
                assert source.connected
                assert (first.time, second.time) == (1.0, 2.0)
                assert first.mask.tolist() == second.mask.tolist() == [True, False]
                assert before < first.received <= second.received <= time.monotonic()
            await until(lambda: not source.connected)
            async with connect(f"ws://127.0.0.1:{source.port}") as tracker:  # it may come back
                await tracker.send(encode_json(3.0, VALUES))
                assert (await anext(source)).time == 3.0

    within(5, work)


def test_a_hand_is_63_channels():
    points = [[index / 10, 0.5, -1.0] for index in range(21)]

    async def work() -> None:
        info = StreamInfo("camera", hand_channels(), rate_hz=30.0)
        async with (
            WebsocketServerSource(WebsocketServerConfig(0, text="hand"), info) as source,
            connect(f"ws://127.0.0.1:{source.port}") as tracker,
        ):
            await tracker.send(f'{{"t": 1.0, "hand": {points}}}')
            await tracker.send('{"t": 1.1, "hand": null}')
            seen, unseen = await anext(source), await anext(source)
            assert seen.values.reshape(21, 3) == pytest.approx(np.float32(points))
            assert seen.mask.all()
            assert not unseen.mask.any()

    within(5, work)


def test_what_is_no_frame_is_dropped_and_the_connection_stays():
    async def work() -> None:
        async with (
            WebsocketServerSource(WebsocketServerConfig(0), INFO) as source,
            connect(f"ws://127.0.0.1:{source.port}") as tracker,
        ):
            for message in ("{", encode_json(1.0, np.float32([1, 2, 3])), b"short"):
                await tracker.send(message)
            await tracker.send(encode_json(2.0, VALUES))
            assert (await anext(source)).time == 2.0
            assert source.dropped == 3
            assert source.last_drop == (
                "tracker: a binary frame of 5 bytes, expected 16 bytes: the time and 2 channels."
            )

    within(5, work)


def test_a_second_tracker_is_sent_away():
    async def work() -> None:
        async with WebsocketServerSource(WebsocketServerConfig(0), INFO) as source:
            uri = f"ws://127.0.0.1:{source.port}"
            async with connect(uri) as tracker:
                await until(lambda: source.connected)
                async with connect(uri) as other:
                    with pytest.raises(ConnectionClosed, match="another tracker is connected"):
                        await other.recv()
                await tracker.send(encode_json(2.0, VALUES))
                assert (await anext(source)).time == 2.0

    within(5, work)


def test_a_token_is_asked_for_and_browsers_are_refused(monkeypatch):
    monkeypatch.setenv("TRACKER_TOKEN", "right")

    async def refused(uri: str, **settings) -> int:
        with pytest.raises(InvalidStatus) as refusal:
            async with connect(uri, **settings):
                pass
        return refusal.value.response.status_code

    async def work() -> None:
        config = WebsocketServerConfig(0, token_env="TRACKER_TOKEN")
        async with WebsocketServerSource(config, INFO) as source:
            uri = f"ws://127.0.0.1:{source.port}"
            right = {"Authorization": "Bearer right"}
            assert await refused(uri) == 401
            assert await refused(uri, additional_headers={"Authorization": "Bearer wrong"}) == 401
            assert await refused(uri, additional_headers=right, origin="https://elsewhere.example") == 403
            client = WebsocketSource(WebsocketConfig(uri, token_env="TRACKER_TOKEN"), INFO)
            async with client:
                await until(lambda: source.connected)
            monkeypatch.setenv("TRACKER_TOKEN", "changed")
            with pytest.raises(SensorError, match=r"refuses us \(HTTP 401\). Check the token"):
                await client.connect()

    within(5, work)


def test_a_page_whose_origin_is_named_may_connect():
    async def work() -> None:
        page = "https://tracker.example"
        async with (
            WebsocketServerSource(WebsocketServerConfig(0, origin=page), INFO) as source,
            connect(f"ws://127.0.0.1:{source.port}", origin=page),
        ):
            await until(lambda: source.connected)

    within(5, work)


def test_a_tracker_that_never_comes_is_given_up():
    async def work() -> None:
        async with WebsocketServerSource(WebsocketServerConfig(0, give_up_after_s=0.05), INFO) as source:
            with pytest.raises(SourceLost, match=r"no tracker .* ws-listen://127.0.0.1:0 for 0.05 s, given up"):
                await anext(source)

    within(5, work)


def test_a_port_that_is_taken_is_named():
    async def work() -> None:
        async with WebsocketServerSource(WebsocketServerConfig(0), INFO) as source:
            with pytest.raises(SensorError, match=f"127.0.0.1:{source.port}: cannot listen there .*another port"):
                await WebsocketServerSource(WebsocketServerConfig(source.port), INFO).connect()

    within(5, work)


def test_as_a_client_frames_come_and_a_server_that_dies_is_found_again():
    async def send(connection) -> None:
        await connection.send(encode_json(1.0, VALUES))
        await connection.send(encode_binary(2.0, VALUES))
        await connection.wait_closed()

    async def work() -> None:
        port = free_port()
        server = await serve(send, "127.0.0.1", port)
        async with WebsocketSource(WebsocketConfig(f"ws://127.0.0.1:{port}/frames"), INFO) as source:
            assert [(await anext(source)).time, (await anext(source)).time] == [1.0, 2.0]
            server.close()
            await server.wait_closed()
            await until(lambda: not source.connected)
            async with serve(send, "127.0.0.1", port):
                assert (await anext(source)).time == 1.0
                assert source.connected

    within(5, work)


def test_a_server_that_is_not_there_is_named():
    async def work() -> None:
        port = free_port()
        with pytest.raises(SensorError, match=f":{port}: no websocket server answers .*Start the tracker"):
            await WebsocketSource(WebsocketConfig(f"ws://127.0.0.1:{port}"), INFO).connect()

    within(5, work)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (WebsocketConfig, {"uri": "http://there"}, "uri is 'http://there', expected ws:// or wss://"),
        (WebsocketConfig, {"uri": "ws://there", "text": "xml"}, "text is 'xml', expected json or hand"),
        (WebsocketConfig, {"uri": "ws://there", "ca_file": "ca.pem"}, "this is no TLS"),
        (WebsocketServerConfig, {"port": 70000}, "port is 70000"),
        (WebsocketServerConfig, {"port": 1, "host": "0.0.0.0"}, "anybody who reaches 0.0.0.0 could send gestures"),
        (WebsocketServerConfig, {"port": 1, "host": "::"}, "could send gestures"),
        (WebsocketServerConfig, {"port": 1, "cert_file": "a.pem"}, "belong together"),
    ],
)
def test_settings_that_cannot_be_are_refused(kind, settings, message):
    with pytest.raises(SensorError, match=message):
        kind(**settings)


def test_certificates_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "a.pem").write_text("no certificate")
    files = {"cert_file": str(tmp_path / "a.pem"), "key_file": str(tmp_path / "b.pem")}

    server = WebsocketServerSource(WebsocketServerConfig(0, **files), INFO)
    client = WebsocketConfig("wss://127.0.0.1:9", ca_file=files["cert_file"])

    async def work() -> None:
        with pytest.raises(SensorError, match=r"a\.pem.*cannot be read as certificates"):
            await server.connect()
        with pytest.raises(SensorError, match=r"a\.pem cannot be read as a certificate"):
            await WebsocketSource(client, INFO).connect()

    within(5, work)
