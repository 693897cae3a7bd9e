"""Frames a second on one core: a GRU(64) that classifies 22 glove sensors and an orientation into 25 shapes.

The graph alone, `stream.step`, the decision alone, and the whole recogniser from a frame to a recognition. Targets:
20,000 frames/s through `stream.step`; 20 us for the decision. Beside: 580 Hz, which Social-Implicit states for its own
model as real time (arXiv 2203.03057).
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from figures import machine, median_s, percentiles_us, table

from data.frame import Channel
from forecasting.export import export_bundle
from forecasting.runtime import load_bundle
from forecasting.task import Task
from models.catalog import build
from sensors.recognise import Decider, Rules
from sensors.recogniser import Recogniser
from sensors.stream import StreamInfo

FRAMES, REPEATS, RATE_HZ = 20_000, 5, 200


def main() -> None:
    print(machine())
    torch.set_num_threads(1)
    channels = (Channel("pitch", "deg"), *(Channel(f"g{i:02d}", "") for i in range(1, 23)))
    labels = ("rest", *(f"shape_{i:02d}" for i in range(1, 25)))
    task = Task("classify", "label", channels, 1 / RATE_HZ, labels=labels)
    torch.manual_seed(0)
    model = build("gru", task.signature, hidden=64).eval()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "bundle"
        export_bundle(model, task, place, name="gru", config={}, training={}, metrics=[])
        bundle = load_bundle(place)
    info = StreamInfo("glove", channels, RATE_HZ)
    rng = np.random.default_rng(0)
    values = rng.normal(size=(FRAMES, len(channels))).cumsum(0).astype(np.float32)
    frames = [info.frame(t / RATE_HZ, t / RATE_HZ, row) for t, row in enumerate(values)]
    rules = Rules(temperature=1.5)
    said = rng.dirichlet(np.full(len(labels), 0.1), FRAMES).astype(np.float32)
    stream, recogniser = bundle.stream(), Recogniser(bundle, info, none=["rest"], rules=rules)
    decider = Decider(labels, ["rest"], rules)

    def graph() -> None:
        for _ in range(FRAMES):
            stream.run()

    def step() -> None:
        for row in values:
            stream.step(row[None])

    def decide() -> None:
        for row in said:
            decider.step(row)

    def whole() -> None:
        for frame in frames:
            recogniser.step(frame)

    rows = []
    kinds = {"onnxruntime, bound memory": graph, "stream.step": step, "decision": decide, "recogniser": whole}
    for kind, call in kinds.items():
        call()
        began = time.process_time()
        seconds = median_s(call, REPEATS)
        spent = (time.process_time() - began) / REPEATS  # of the processor: what a core of its own would take
        rows.append([kind, f"{FRAMES / seconds:,.0f}", f"{FRAMES / spent:,.0f}", f"{1e6 * spent / FRAMES:.1f}"])
    table(["GRU(64), 23 channels, 25 classes", "frames/s", "a s of processor", "us of processor a frame"], rows)
    index = iter(range(10**9))
    p50, p99, longest = percentiles_us(lambda: recogniser.step(frames[next(index) % FRAMES]), 60_000)
    print(f"recogniser, single frames, 60,000: p50 {p50:.1f} us, p99 {p99:.1f} us, max {longest:.0f} us")
    print(f"medians over {REPEATS} runs of {FRAMES} frames; Social-Implicit's own: 580 frames/s")


if __name__ == "__main__":
    main()
