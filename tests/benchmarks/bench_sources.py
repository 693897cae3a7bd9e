"""How long a frame is on its way into this process, through each source, at 200 and 1,000 Hz over loopback.

A sender in a process of its own stamps each frame of 28 channels as it sends it, on the clock that both share.
`received` is when a source stamps the frame, `taken` when the consumer in the event loop has it. The peers' rows read
the same streams as their libraries' examples do: aiomqtt's `async for message in client.messages`, pylsl's
`pull_sample` in a plain loop without an event loop, each without any check.

The second table is what `Aligner.push` takes for a frame; the target is 50 us.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import subprocess
import sys
import tempfile
import time
import tty
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from figures import machine, percentiles_us, table

sys.path.insert(0, str(Path(__file__).parents[2]))

from data.frame import Channel
from sensors.align import AlignConfig, Aligner
from sensors.recording import Recording
from sensors.sources.payload import encode_binary, encode_json
from sensors.sources.replay import ReplayConfig, ReplaySource
from sensors.sources.serial import SerialConfig, SerialSource, encode_packet
from sensors.stream import Source, StreamInfo
from tests.sensors.broker import Broker, free_port

CHANNELS, SECONDS, REPEATS, WARM = 28, 5.0, 3, 50
ALIGNED = 20_000
VALUES = np.arange(CHANNELS, dtype=np.float32)
TOPIC = "bench/glove"


def info(rate: float) -> StreamInfo:
    return StreamInfo("bench", tuple(Channel(f"c{index}", "") for index in range(CHANNELS)), rate)


def paced(send: Callable[[int], None], rate: float) -> None:
    """In the sender: until stdin closes."""
    print("ready", flush=True)
    sys.stdin.readline()
    start = time.monotonic()
    for index in range(int(rate * SECONDS) + WARM):
        wait = start + index / rate - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        send(index)
    sys.stdin.readline()


def sender(kind: str, address: str, rate: float) -> None:
    if kind.startswith("mqtt"):
        import paho.mqtt.client as paho

        client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        client.connect("127.0.0.1", int(address))
        client.loop_start()
        encode = encode_json if kind == "mqtt json" else encode_binary
        paced(lambda _: client.publish(TOPIC, encode(time.monotonic(), VALUES)) and None, rate)
    elif kind == "lsl":
        import pylsl

        outlet = pylsl.StreamOutlet(pylsl.StreamInfo(address, "bench", CHANNELS, rate, "float32", address), 1)
        paced(lambda _: outlet.push_sample(VALUES, time.monotonic()), rate)
    elif kind == "websocket":
        from websockets.sync.client import connect

        connection = None
        while connection is None:
            with contextlib.suppress(OSError):  # until we listen
                connection = connect(f"ws://127.0.0.1:{address}", compression=None)
        paced(lambda _: connection.send(encode_binary(time.monotonic(), VALUES)), rate)
    else:
        line = int(address)
        paced(lambda index: os.write(line, encode_packet(index, int(time.monotonic() * 1e6), VALUES)) and None, rate)


@contextlib.contextmanager
def sending(kind: str, address: str, rate: float, lines: tuple[int, ...] = ()) -> Iterator[Callable[[], None]]:
    """A sender that waits to be told to start."""
    command = [sys.executable, __file__, "send", kind, address, str(rate)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, pass_fds=lines
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def start() -> None:
        assert process.stdout.readline() == b"ready\n"
        process.stdin.write(b"go\n")
        process.stdin.flush()

    try:
        yield start
    finally:
        process.kill()
        process.communicate()


@dataclass
class Run:
    """(N,) each, s."""

    sent: list[float] = field(default_factory=list)
    received: list[float] = field(default_factory=list)
    taken: list[float] = field(default_factory=list)


async def gather(source: Source, rate: float, start: Callable[[], None] | None = None) -> Run:
    run, count = Run(), int(rate * SECONDS) + WARM
    async with source:
        if start is not None:
            await asyncio.to_thread(start)
        with contextlib.suppress(TimeoutError):  # what is lost on the way never comes
            async with asyncio.timeout(SECONDS + 5):
                async for frame in source:
                    run.taken.append(time.monotonic())
                    run.sent.append(frame.time)
                    run.received.append(frame.received)
                    if len(run.sent) + source.dropped >= count:
                        break
    return run


def mqtt(kind: str, rate: float) -> Run:
    from sensors.sources.mqtt import MqttConfig, MqttSource

    with tempfile.TemporaryDirectory() as folder, Broker(Path(folder), "allow_anonymous true") as broker:
        config = MqttConfig("127.0.0.1", broker.port, topic=TOPIC, payload=kind.split()[1])
        with sending(kind, str(broker.port), rate) as start:
            return asyncio.run(gather(MqttSource(config, info(rate)), rate, start))


def lsl(rate: float) -> Run:
    from sensors.sources.lsl import LslConfig, LslSource

    name = f"bench {os.getpid()}"
    with sending("lsl", name, rate) as start:
        return asyncio.run(gather(LslSource(LslConfig(name, resolve_s=10), info(rate)), rate, start))


def serial_line(rate: float) -> Run:
    device, ours = pty.openpty()
    tty.setraw(ours)
    with sending("serial", str(device), rate, (device,)) as start:
        source = SerialSource(SerialConfig(os.ttyname(ours)), info(rate))
        run = asyncio.run(gather(source, rate, start))
    os.close(ours)
    os.close(device)
    return run


def websocket(rate: float) -> Run:
    from sensors.sources.websocket import WebsocketServerConfig, WebsocketServerSource

    port = free_port()
    with sending("websocket", str(port), rate) as start:
        return asyncio.run(gather(WebsocketServerSource(WebsocketServerConfig(port), info(rate)), rate, start))


def replay(rate: float) -> Run:
    pace = np.arange(int(rate * SECONDS) + WARM) / rate
    recording = Recording(info(rate), pace, pace, np.tile(VALUES, (len(pace), 1)))
    run = asyncio.run(gather(ReplaySource(recording, ReplayConfig("bench")), rate))
    early = min(received - due for received, due in zip(run.received, run.sent, strict=True))
    run.sent = [due + early for due in run.sent]  # when it was due, by the frame that was least late
    return run


def aiomqtt_alone(rate: float) -> Run:
    import aiomqtt

    async def read(port: int, start: Callable[[], None]) -> Run:
        run = Run()
        async with aiomqtt.Client("127.0.0.1", port, protocol=aiomqtt.ProtocolVersion.V5) as client:
            await client.subscribe(TOPIC)
            await asyncio.to_thread(start)
            async for message in client.messages:
                fields = json.loads(message.payload)
                np.array(fields["v"], np.float32)
                run.taken.append(time.monotonic())
                run.sent.append(fields["t"])
                if len(run.sent) == int(rate * SECONDS) + WARM:
                    break
        run.received = run.taken
        return run

    with (
        tempfile.TemporaryDirectory() as folder,
        Broker(Path(folder), "allow_anonymous true") as broker,
        sending("mqtt json", str(broker.port), rate) as start,
    ):
        return asyncio.run(read(broker.port, start))


def pylsl_alone(rate: float) -> Run:
    import pylsl

    name, run = f"bench alone {os.getpid()}", Run()
    with sending("lsl", name, rate) as start:
        inlet = pylsl.StreamInlet(pylsl.resolve_byprop("name", name, 1, 10)[0], 1)
        inlet.open_stream(5)
        start()
        while len(run.sent) < int(rate * SECONDS) + WARM:
            sample, stamp = inlet.pull_sample(2)
            if sample is None:
                break
            np.array(sample, np.float32)
            run.taken.append(time.monotonic())
            run.sent.append(stamp)
        run.received = run.taken
    return run


RUNS: dict[str, Callable[[float], Run]] = {
    "replay": replay,
    "mqtt json": lambda rate: mqtt("mqtt json", rate),
    "mqtt binary": lambda rate: mqtt("mqtt binary", rate),
    "  aiomqtt alone, json": aiomqtt_alone,
    "lsl": lsl,
    "  pylsl alone": pylsl_alone,
    "serial (pseudo-terminal)": serial_line,
    "websocket, binary": websocket,
}


def align(source_hz: float, model_hz: float, kind: str) -> tuple[float, float, float]:
    """Microseconds a frame: median, 99th percentile, longest."""
    described, rng = info(source_hz), np.random.default_rng(0)
    aligner = Aligner(described, AlignConfig(model_hz, kind))
    frames = [
        described.frame(index / source_hz, 1000 + index / source_hz + delay, rng.normal(size=CHANNELS))
        for index, delay in enumerate(rng.exponential(0.001, ALIGNED + 500))
    ]
    feed = iter(frames)
    return percentiles_us(lambda: aligner.push(next(feed)), ALIGNED)


def main() -> None:
    print(machine())
    rows = [
        [name, f"{source:g}", f"{model:g}", *(f"{x:.1f}" for x in np.median(runs, 0))]
        for name, source, model, kind in (
            ("at the model's rate", 200.0, 200.0, "linear"),
            ("linear, fewer", 1000.0, 200.0, "linear"),
            ("linear, more", 100.0, 200.0, "linear"),
            ("cubic, more", 100.0, 200.0, "cubic"),
        )
        for runs in [[align(source, model, kind) for _ in range(REPEATS)]]
    ]
    table(["align", "source Hz", "model Hz", "p50 us", "p99 us", "max us"], rows)
    print(f"medians over {REPEATS} runs of {ALIGNED} frames of {CHANNELS} channels\n")
    rows = []
    for name, run in RUNS.items():
        for rate in (200.0, 1000.0):
            figures = []
            for _ in range(REPEATS):
                got = run(rate)
                sent, received, taken = (np.array(part)[WARM:] for part in (got.sent, got.received, got.taken))
                share = len(sent) / int(rate * SECONDS)
                pace = len(taken) / (taken[-1] - taken[0])
                delays = [np.percentile(1e3 * (late - sent), [50, 99]) for late in (received, taken)]
                figures.append([100 * share, pace, *delays[0], *delays[1], 1e3 * (taken - sent).max()])
            median = np.median(figures, 0)
            rows.append([name, f"{rate:g}", f"{median[0]:.1f}", f"{median[1]:.0f}", *(f"{x:.2f}" for x in median[2:])])
    head = ["source", "Hz", "came %", "frames/s", "received p50", "p99", "taken p50", "p99", "max ms"]
    table(head, rows)
    print(f"medians over {REPEATS} runs of {SECONDS:g} s; delays since sending, ms")


if __name__ == "__main__":
    if sys.argv[1:2] == ["send"]:
        sender(sys.argv[2], sys.argv[3], float(sys.argv[4]))
    else:
        main()
