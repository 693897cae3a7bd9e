"""What `mnemo stream` says of a live stream: the bundle's own answers, in order, and nothing where nothing is known."""

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import paho.mqtt.client as mqtt
import pytest
import torch
from paho.mqtt.enums import CallbackAPIVersion

from data.frame import Channel
from forecasting.export import export_bundle
from forecasting.runtime import LoadedBundle, load_bundle
from forecasting.task import Task
from models.catalog import build
from sensors.__main__ import main
from sensors.predictions import Predictions, open_predictions
from sensors.sinks import Sink, open_sink
from sensors.stream import SensorError, Source, SourceLost, StreamInfo
from tests.sensors.broker import Broker
from tests.sensors.bundles import CHANNELS, LABELS, RATE_HZ, altered, classifier

LEVELS = (0.1, 0.5, 0.9)


def answering(place, kind: str) -> LoadedBundle:
    """A bundle of another task, over the same channels, not trained."""
    task = Task(kind, "bend", CHANNELS, 1 / RATE_HZ, horizon=4, quantiles=LEVELS)
    torch.manual_seed(0)
    model = build("gru", task.signature, hidden=5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    export_bundle(model, task, place, name="gru", config={"hidden": 5}, training={}, metrics=[])
    return load_bundle(place)


@pytest.fixture(scope="module")
def classifying(tmp_path_factory) -> LoadedBundle:
    return classifier(tmp_path_factory.mktemp("gestures") / "bundle", hidden=6)


@pytest.fixture(scope="module")
def forecasting(tmp_path_factory) -> LoadedBundle:
    return answering(tmp_path_factory.mktemp("forecasts") / "bundle", "forecast")


@pytest.fixture(scope="module")
def regressing(tmp_path_factory) -> LoadedBundle:
    return answering(tmp_path_factory.mktemp("numbers") / "bundle", "regress")


class Given(Source):
    """Frames at hand."""

    real_time = False

    def __init__(self, values: np.ndarray, times: np.ndarray | None = None, **info) -> None:
        super().__init__()
        self.info = StreamInfo(**{"stream_id": "glove", "channels": CHANNELS, "rate_hz": RATE_HZ} | info)
        times = np.arange(len(values)) / RATE_HZ if times is None else times
        self.frames = [self.info.frame(time, 5 + time, row) for time, row in zip(times, values, strict=True)]

    async def connect(self) -> None: ...

    async def close(self) -> None: ...

    async def __aiter__(self):
        for frame in self.frames:
            yield frame


class Kept(Sink):
    def __init__(self) -> None:
        self.lines: list[dict] = []

    async def write(self, line: str) -> None:
        self.lines.append(json.loads(line))


def told(bundle: LoadedBundle, source: Source, tell=print) -> tuple[list[dict], Predictions]:
    predictions, kept = Predictions(bundle, source, tell), Kept()
    asyncio.run(predictions.run(kept))
    assert predictions.steps == len(kept.lines)
    return kept.lines, predictions


def movement(steps: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(steps, 2)).cumsum(0).clip(-3.9, 3.9).astype(np.float32)


@pytest.mark.parametrize("kind", ["classifying", "forecasting", "regressing"])
def test_a_line_a_step_says_what_the_bundle_says(kind, request):
    bundle = request.getfixturevalue(kind)
    values = movement(30)
    values[7, 1], values[8] = np.nan, np.nan
    lines, _ = told(bundle, Given(values))
    stream = bundle.stream(series=["glove"])
    for t, (line, row) in enumerate(zip(lines, values, strict=True)):
        said = stream.step({"glove": row})["glove"]
        assert (line["stream_id"], line["observed"]) == ("glove", t != 8)
        assert line["time"] == pytest.approx(t / RATE_HZ)
        if kind == "classifying":
            found = list(line["probabilities"].values())
            assert list(line["probabilities"]) == list(LABELS)
            assert line["label"] == LABELS[int(said.argmax())]
        else:
            assert list(line["quantiles"]) == ["0.1", "0.5", "0.9"]
            found = np.array(list(line["quantiles"].values())).T  # (H, Q) or (Q,)
        np.testing.assert_allclose(found, said, rtol=1e-6)
    assert len(lines) == 30


def test_frames_that_did_not_come_are_steps_without_an_observation(classifying):
    values, times = movement(10), np.arange(10) / RATE_HZ
    times[5:] += 3 / RATE_HZ
    lines, predictions = told(classifying, Given(values, times))
    assert [line["observed"] for line in lines] == [True] * 5 + [False] * 3 + [True] * 5
    assert predictions.summary() == "13 steps of glove, 3 masked"


def test_frames_that_became_no_step_are_told(classifying):
    source = Given(movement(10))
    source.frames[4:4] = [source.frames[3], source.frames[3]]
    source.drop("a corrupt packet")
    lines, predictions = told(classifying, source)
    assert len(lines) == 10
    assert predictions.summary() == "10 steps of glove, 1 dropped (a corrupt packet), 2 copies"


def test_behind_a_jump_of_the_clock_it_goes_on_and_says_so(classifying):
    class Live(Given):
        real_time = True

    times = np.arange(10) / RATE_HZ
    source = Live(movement(10), times)
    source.frames[6:] = [frame._replace(time=frame.time + 500) for frame in source.frames[6:]]
    notes: list[str] = []
    lines, _ = told(classifying, source, notes.append)
    assert len(notes) == 1
    assert notes[0].startswith("began anew: glove: the source's clock leapt ahead by 500")
    assert len(lines) == 9  # the frame that told of it is lost
    assert lines[-1]["time"] == pytest.approx(times[9] + 500)


def test_rows_in_order_of_a_source_without_a_rate_are_steps(tmp_path):
    task = Task("classify", "label", CHANNELS, 1, labels=LABELS)
    model = build("gru", task.signature, hidden=3)
    export_bundle(model, task, tmp_path / "bundle", name="gru", config={"hidden": 3}, training={}, metrics=[])
    values = movement(5)
    lines, predictions = told(load_bundle(tmp_path / "bundle"), Given(values, np.full(5, np.nan), rate_hz=0.0))
    assert predictions.aligner is None
    assert [line["time"] for line in lines] == [None] * 5


def test_what_does_not_fit_is_refused_before_the_first_frame(classifying, tmp_path):
    other = (Channel("bend", "rad", -180, 180), CHANNELS[1])
    for bundle, source, why in (
        (classifying, Given(movement(2), channels=other), "bend.*rad"),
        (altered(classifying, task=classifying.task | {"freq": "D"}), Given(movement(2)), "'D'.* a calendar's"),
        (altered(classifying, streams=False), Given(movement(2)), "needs the end of a sequence"),
    ):
        with pytest.raises(SensorError, match=why):
            Predictions(bundle, source)
    wide = tmp_path / "wide.csv"
    wide.write_text("unique_id,ds,bend\na,0,1\na,1,2\n")
    with pytest.raises(SensorError, match="no column roll, which the model takes as input"):
        open_predictions(classifying, f"replay:{wide}", print)


# Where lines go.


@pytest.fixture
def recording(tmp_path):
    values = movement(40)
    rows = "".join(f"glove,{t},{a},{b}\n" for t, (a, b) in enumerate(values))
    (tmp_path / "glove.csv").write_text("unique_id,ds,bend,roll\n" + rows)
    return f"replay:{tmp_path / 'glove.csv'}"


def test_lines_of_a_recording_lie_in_a_new_file(classifying, recording, tmp_path, capsys):
    out = tmp_path / "said.jsonl"
    arguments = ["stream", "--bundle", str(classifying.path), "--from", f"{recording}?speed=inf"]
    assert main([*arguments, "--to", f"file:{out}"]) == 0
    assert capsys.readouterr().err == "40 steps of glove\n"
    kept = out.read_text()
    assert [json.loads(line)["observed"] for line in kept.splitlines()] == [True] * 40
    assert main([*arguments, "--to", str(out)]) == 2
    assert "said.jsonl is there already" in capsys.readouterr().err
    assert out.read_text() == kept
    assert main(arguments) == 0
    assert capsys.readouterr().out == kept


@pytest.mark.parametrize(
    ("to", "why"),
    [
        ("ftp://host/said", "nothing is sent to 'ftp'; expected -, a file, mqtt:// or mqtts://"),
        ("mqtt://host/a/#", "topic is 'a/#'"),
        ("mqtt://host/said?qos=7", "qos is 7, expected 0, 1 or 2"),
        ("mqtt://host/said?payload=json", "does not know payload"),
        ("mqtt://me:secret@host/said", "a password is in the settings"),
        ("mqtt://me@host/said", "user me without a password"),
        ("file:", "names no file"),
    ],
)
def test_a_place_that_cannot_be_is_refused(to, why):
    with pytest.raises(SensorError, match=why.replace("?", r"\?")) as refused:
        open_sink(to)
    assert "secret" not in str(refused.value)


def test_an_interrupt_ends_it_with_what_was_said(classifying, recording, tmp_path):
    out = tmp_path / "said.jsonl"
    arguments = ["stream", "--bundle", str(classifying.path), "--from", f"{recording}?loop=true", "--to", str(out)]
    running = subprocess.Popen([sys.executable, "-m", "sensors", *arguments], stderr=subprocess.PIPE, text=True)
    try:
        end = time.monotonic() + 60
        while not out.exists() or out.read_text().count("\n") < 10:
            assert running.poll() is None, running.communicate()[1]
            assert time.monotonic() < end
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        err = running.communicate(timeout=30)[1]
    finally:
        running.kill()
    lines = out.read_text().splitlines()
    assert (running.returncode, err) == (0, f"{len(lines)} steps of glove\n")
    assert all(json.loads(line)["stream_id"] == "glove" for line in lines)


def test_lines_are_published_until_the_broker_is_lost(classifying, tmp_path):
    class Slow(Given):
        async def __aiter__(self):
            for frame in self.frames:
                yield frame
                await asyncio.sleep(0.01)

    came: list[bytes] = []
    with Broker(tmp_path, "allow_anonymous true") as broker:
        ready, enough = threading.Event(), threading.Event()
        listener = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        listener.on_subscribe = lambda *_: ready.set()

        def take(client, data, message) -> None:
            came.append(message.payload)
            if len(came) == 20:
                enough.set()
                broker.kill()

        listener.on_message = take
        listener.connect("127.0.0.1", broker.port)
        listener.subscribe("said")
        listener.loop_start()
        try:
            assert ready.wait(10)
            predictions = Predictions(classifying, Slow(movement(3000)))

            async def run() -> None:
                async with open_sink(f"mqtt://127.0.0.1:{broker.port}/said") as sink:
                    await predictions.run(sink)

            with pytest.raises(SourceLost, match="said: the broker is lost"):
                asyncio.run(run())
            assert enough.is_set()
        finally:
            listener.loop_stop()
    times = [json.loads(line)["time"] for line in came]
    np.testing.assert_allclose(times, np.arange(len(times)) / RATE_HZ, atol=1e-9)


def test_a_broker_that_is_not_there_is_told_before_the_first_frame(classifying):
    async def run() -> None:
        async with open_sink("mqtt://127.0.0.1:1/said"):
            raise AssertionError("it is there")

    with pytest.raises(SensorError, match=r"mqtt://127.0.0.1:1/said: .*Start it \(mosquitto\)"):
        asyncio.run(run())
