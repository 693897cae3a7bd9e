"""From a frame's reception to its command's send, through the whole bridge: MQTT and LSL, 200 and 1,000 Hz, loopback.

A sender in a process of its own publishes frames of 23 channels at absolute times, with the time at which sensors would
have sampled them. The bridge is `mnemo bridge`'s own parts: source, alignment, a GRU(64) in onnxruntime, decision,
command map (the hand drives), safety with its limits and its log, the simulated arm in real time. Each frame leads to a
command, because rules and model are such that one gesture goes on for ever. Two cores: frames on one, safety on the
other; the sender and the broker get what is left.

Latency is `safety`'s: from `Frame.received` to the moment after the driver took the command; of the first command for a
frame. `frames lost`: sent but not received; `dropped`: by the source or the alignment; `superseded`: intents that a
newer one replaced before a command was made of them. Targets: p50 1 ms, p99 5 ms at 200 Hz, no drops at 1,000 Hz.

Options: --frames 60000, --quick for a twentieth, --sleepy as where the process may not keep the cores awake.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from figures import machine, table

sys.path.insert(0, str(Path(__file__).parents[2]))

from data.frame import Channel
from forecasting.export import export_bundle
from forecasting.runtime import LoadedBundle, load_bundle
from forecasting.task import Task
from models.catalog import build
from sensors.align import AlignConfig, Aligner
from sensors.bridge import Bridge
from sensors.command_log import CommandLog
from sensors.command_map import parse_command_map
from sensors.limits import Limits
from sensors.mapping import Mapper
from sensors.realtime import awake, default_cores, pin, steady
from sensors.recognise import Rules
from sensors.recogniser import Recogniser
from sensors.robots.simulated import SimulatedArm, Simulation
from sensors.safety import Safety
from sensors.safety_checks import SafetyConfig
from sensors.safety_states import LIVE
from sensors.sources.lsl import LslConfig, LslSource
from sensors.sources.mqtt import MqttConfig, MqttSource
from sensors.sources.payload import encode_binary
from sensors.stream import Source, StreamInfo
from tests.sensors.broker import Broker

CHANNELS = (Channel("pitch", "deg"), *(Channel(f"g{i:02d}", "") for i in range(1, 23)))
LABELS = tuple(f"shape_{i:02d}" for i in range(1, 26))
ANY = Rules(threshold=0.0, dwell=1, margin=0.0, release=0.0)
LIMITS = Limits(0.25, 1, 10, 1, 4, 40, 3, 1, 0.05, 0.2, (0.1, -0.7, 0.05), (0.9, 0.7, 0.9))
WARM_S = 2.0
STREAM, TOPIC = "bench-bridge", "bench/glove"


def sender(kind: str, address: str, rate: float, seconds: float) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(0, 0.01, (4096, len(CHANNELS))).astype(np.float32)
    if kind == "mqtt":
        import paho.mqtt.client as paho

        client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        client.connect("127.0.0.1", int(address))
        client.loop_start()

        def send(row: np.ndarray, sampled: float) -> None:
            client.publish(TOPIC, encode_binary(sampled, row))
    else:
        import pylsl

        described = pylsl.StreamInfo(STREAM, "bench", len(CHANNELS), rate, "float32", STREAM)
        outlet = pylsl.StreamOutlet(described, 1)

        def send(row: np.ndarray, sampled: float) -> None:
            outlet.push_sample(row, sampled + pylsl.local_clock() - time.monotonic())

    print("ready", flush=True)
    sys.stdin.readline()
    start = time.monotonic()
    for index in range(int(rate * seconds)):
        wait = start + index / rate - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        send(values[index % len(values)], start + index / rate)
    sys.stdin.readline()


def gru(folder: Path, rate: float) -> LoadedBundle:
    task = Task("classify", "label", CHANNELS, 1 / rate, labels=LABELS)
    torch.manual_seed(0)
    model = build("gru", task.signature, hidden=64).eval()
    place = folder / f"gru{rate:g}"
    export_bundle(model, task, place, name="gru", config={}, training={}, metrics=[])
    return load_bundle(place)


def drive() -> Mapper:
    """Whatever is shown, the hand drives."""
    axes = [{"axis": "y", "channel": "pitch", "dead": 0.0, "scale": 1.0, "most": 0.05}]
    jogs = {name: {"gesture": name, "confidence": 0.0, "frame": "base", "axes": axes} for name in LABELS}
    return Mapper(parse_command_map({"jogs": jogs}), CHANNELS)


async def measure(
    kind: str, source: Source, bundle: LoadedBundle, seconds: float, start: subprocess.Popen[str], sleepy: bool
) -> list[str]:
    rate = source.info.rate_hz
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        log = stack.enter_context(CommandLog(Path(folder) / "log.jsonl"))
        arm = SimulatedArm(Simulation("panda"))
        safety = stack.enter_context(Safety(arm, SafetyConfig(LIMITS, confidence=0.001), log))
        bridge = Bridge(
            source,
            Aligner(source.info, AlignConfig(rate)),
            Recogniser(bundle, source.info, rules=ANY),
            drive(),
            safety,
        )
        pauses = stack.enter_context(steady())
        if not sleepy and not stack.enter_context(awake()):
            print("    cores may sleep: this process may not keep them awake", flush=True)
        frames_core, robot_core = default_cores()
        pin(frames_core)
        for thread in safety.thread_ids.values():
            pin(robot_core, thread)
        running = asyncio.ensure_future(bridge.run())
        while not source.connected:
            await asyncio.sleep(0.01)
        assert start.stdin is not None
        start.stdin.write("\n")
        start.stdin.flush()
        while not bridge.frames:
            await asyncio.sleep(0.001)
        end = time.monotonic() + seconds
        arms, warm = 0, 0
        while time.monotonic() < end:
            if safety.snapshot.state not in LIVE:
                answer = await asyncio.wrap_future(safety.arm("bench"))
                arms += answer.accepted
                await asyncio.sleep(0.01)
                continue
            safety.hold(time.monotonic())
            await asyncio.sleep(0.02)
            if not warm and time.monotonic() > end - seconds + WARM_S:
                warm = len(safety.latencies())
        counts, slowest = safety.snapshot.counts, safety.snapshot.slowest
        latencies = np.array(safety.latencies())[warm:]
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    p50, p99 = np.quantile(latencies, (0.5, 0.99))
    lost = int(rate * seconds) - bridge.frames
    aligned = bridge.aligner.counts
    dropped = source.dropped + aligned.late + aligned.extra + aligned.old
    return [
        f"{kind} {rate:g} Hz", f"{len(latencies):,}", f"{1e3 * p50:.2f}", f"{1e3 * p99:.2f}",
        f"{1e3 * slowest:.1f}", f"{1e3 * bridge.steps.quantile(0.5):.3f}", f"{1e3 * bridge.steps.quantile(0.99):.2f}",
        str(max(lost, 0)), str(dropped), str(counts["superseded"]), str(arms - 1), str(pauses.count),
        f"{1e3 * pauses.longest:.2f}",
    ]  # fmt: skip


def run(kind: str, rate: float, frames: int, folder: Path, port: int, sleepy: bool) -> list[str]:
    info = StreamInfo(STREAM, CHANNELS, rate)
    source: Source
    if kind == "mqtt":
        source = MqttSource(MqttConfig("127.0.0.1", topic=TOPIC, port=port, payload="binary"), info)
    else:
        source = LslSource(LslConfig(STREAM), info)
    seconds = frames / rate + WARM_S
    command = [sys.executable, __file__, "--sender", kind, str(port), str(rate), str(seconds)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        child.stdout.readline()
        try:
            return asyncio.run(measure(kind, source, gru(folder, rate), seconds, child, sleepy))
        finally:
            child.kill()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--frames", type=int, default=60_000, help="timed, of each row")
    options.add_argument("--quick", action="store_true")
    options.add_argument("--sleepy", action="store_true")
    options.add_argument("--sources", default="mqtt,lsl")
    options.add_argument("--rates", default="200,1000")
    options.add_argument("--sender", nargs=4, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.sender:
        kind, address, rate, seconds = given.sender
        sender(kind, address, float(rate), float(seconds))
        return
    print(machine(), flush=True)
    torch.set_num_threads(1)
    frames = given.frames // 20 if given.quick else given.frames
    rows = []
    with tempfile.TemporaryDirectory() as folder, Broker(Path(folder), "allow_anonymous true") as broker:
        for kind in given.sources.split(","):
            for rate in given.rates.split(","):
                rows.append(run(kind, float(rate), frames, Path(folder), broker.port, given.sleepy))
                print("   ", *rows[-1], flush=True)
    table(
        ["", "commands timed", "p50 ms", "p99 ms", "max ms", "frame's work p50 ms", "p99 ms", "lost", "dropped",
         "superseded", "faults", "collections", "longest ms"],
        rows,
    )  # fmt: skip


if __name__ == "__main__":
    main()
