"""`python -m sensors COMMAND`: parse, call, print; `mnemo bridge` is one of them.

Commands import what they need, so that `--help` needs nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

BRIDGE = """examples:
  mnemo bridge --example > bridge.toml          a simulated hand and arm, every field explained
  mnemo bridge --config bridge.toml --dry-run   show what would be sent
  mnemo bridge --config bridge.toml --record recordings --metrics 9464
keys: a arm, d disarm, space hold, e emergency stop, c clear it, q quit; or as words, one a line, through a pipe
"""
STREAM = """examples:
  mnemo stream --bundle bundles/gestures --from 'replay:gestures_demo?series=person_9/1&speed=inf'
  mnemo stream --bundle bundles/gestures --from mqtt://broker.lab/glove --to mqtt://broker.lab/gestures
sources: replay:, mqtt(s)://, lsl:, serial:, ws(s)://, ws-listen://, their settings as a query (sensors/sources/open.py)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 done, 1 some of it failed, 2 bad input."""
    parser = argparse.ArgumentParser(prog="python -m sensors", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    task = commands.add_parser("breakfast", help="a simulated arm makes breakfast from gestures of a simulated hand")
    task.add_argument(
        "--out", type=Path, required=True, help="folder for breakfast.png, .mp4, .json, and commands.jsonl"
    )
    task.add_argument(
        "--bundle", type=Path, help="that knows the gestures of gestures_demo; trained, as OUT/gestures, if left out"
    )
    task.add_argument("--scripted", action="store_true", help="take gestures as they are shown, without recognition")
    task.add_argument("--runs", type=int, default=1, help="how often, each with other places and another pace (1)")
    task.add_argument("--seed", type=int, default=0, help="of the first run; each further one has the next (0)")
    task.add_argument("--speed-up", type=float, default=5.0, help="how much faster than life the film is (5)")

    robot = commands.add_parser("robot", help="a simulated arm behind an MQTT broker, until interrupted")
    robot.add_argument("--host", default="localhost", help="of the broker (localhost)")
    robot.add_argument("--port", type=int, default=0, help="of the broker (1883, or 8883 with TLS)")
    robot.add_argument("--topic", default="robots/arm", help="the robot's (robots/arm)")
    robot.add_argument("--scene", default="breakfast", help="panda or breakfast (breakfast)")
    robot.add_argument("--user", default="", help="at the broker")
    robot.add_argument("--password-env", default="", help="environment variable that holds the password")
    robot.add_argument("--tls", action="store_true", help="encrypt")
    robot.add_argument("--ca-file", default="", help="of the broker's certificate, if not one of the system's")

    bridge = commands.add_parser(
        "bridge",
        prog="mnemo bridge",
        help="a live stream of gestures drives a robot",
        epilog=BRIDGE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    bridge.add_argument("--config", type=Path, metavar="FILE", help="the bridge's TOML")
    bridge.add_argument("--dry-run", action="store_true", help="show what would be sent; the robot is not moved")
    bridge.add_argument("--record", type=Path, metavar="DIR", help="keep the stream as it comes, as Parquet")
    bridge.add_argument("--metrics", type=int, metavar="PORT", help="answer Prometheus on this port")
    bridge.add_argument("--example", action="store_true", help="print a configuration that runs as it is")

    live = commands.add_parser(
        "stream",
        prog="mnemo stream",
        help="a live stream through a bundle: a prediction a step, a line of JSON each",
        epilog=STREAM,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    live.add_argument("--bundle", type=Path, required=True, help="that streams")
    live.add_argument("--from", dest="source", metavar="URI", required=True, help="where frames come from")
    live.add_argument("--to", metavar="URI", default="-", help="where lines go: -, a new file, or mqtt:// (-)")

    keep = commands.add_parser("record", help="a live stream, kept as Parquet: to train on, to teach from, to replay")
    keep.add_argument(
        "--config", type=Path, metavar="FILE", required=True, help="TOML with a [source]; a bridge's has one"
    )
    keep.add_argument("--out", type=Path, metavar="FILE", required=True, help="the recording, a .parquet")
    keep.add_argument("--seconds", type=float, help="how long; else until the stream ends, or Ctrl+C")

    rules = commands.add_parser("calibrate", help="when a gesture is decided: as early as a wanted precision allows")
    judged = rules.add_mutually_exclusive_group(required=True)
    judged.add_argument("--bundle", type=Path, help="that classifies the stream; decisions are judged as they are made")
    judged.add_argument(
        "--config", type=Path, metavar="FILE",
        help="a bridge's TOML, with its bundle, memory, no-gesture classes and rules to begin with; decisions are "
        "judged as they pass its map",
    )  # fmt: skip
    rules.add_argument("--data", required=True, help="labelled recordings: a name of `mnemo datasets`, or files")
    rules.add_argument(
        "--none", nargs="*", default=[], metavar="CLASS", help="classes that mean no gesture, of a --bundle"
    )
    rules.add_argument(
        "--unknown", nargs="*", default=[], type=Path, metavar="FILE",
        help="recordings of other movements, for which any decision is wrong",
    )  # fmt: skip
    rules.add_argument("--precision", type=float, default=0.95, help="of the decisions (0.95)")
    rules.add_argument("--part", default="validation", help="of the data, that chooses the rules (validation)")
    rules.add_argument("--judge", default="test", help="part that the chosen rules are then judged on (test)")
    rules.add_argument("--lag", type=float, default=0.0, help="s by which hands may be behind their labels (0)")

    lesson = commands.add_parser("teach", help="a new gesture from a few recordings of it")
    lesson.add_argument("--bundle", type=Path, required=True, help="whose network stays as it is")
    lesson.add_argument(
        "--memory", type=Path, required=True, help="MEMORY.npz and .json; made where they are not there"
    )
    lesson.add_argument("--data", help="labelled recordings of the known gestures; needed where the memory is new")
    lesson.add_argument("--name", required=True, help="of the gesture")
    lesson.add_argument("recordings", nargs="*", type=Path, help="each of one performance; none forgets the gesture")

    commands.add_parser("doctor", help="what of the bridge works on this machine, as JSON")

    given = parser.parse_args(arguments)
    from data.frame import FrameError
    from forecasting.bundle import BundleError
    from sensors.stream import SensorError

    try:
        return COMMANDS[given.command](given)
    except (SensorError, FrameError, BundleError) as error:
        return _refused(" ".join(str(error).split()))
    except BrokenPipeError:  # whoever read our output has gone; say nothing more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # what is no fault of the input's content: a file in a folder's place, a full disk
        return _refused(f"{error.filename}: {error.strerror}." if error.filename else str(error))
    except KeyboardInterrupt:
        print("interrupted.", file=sys.stderr)  # noqa: T201
        return 1


def _breakfast(given: argparse.Namespace) -> int:
    from forecasting.bundle import write_atomic
    from forecasting.runtime import load_bundle
    from sensors.breakfast import Filming, hand_recogniser, run
    from sensors.command_log import CommandLog
    from sensors.stream import SensorError

    if given.runs < 1:
        raise SensorError(f"--runs is {given.runs}, expected 1 or more.")
    given.out.mkdir(parents=True, exist_ok=True)
    bundle = None if given.scripted else load_bundle(given.bundle or _gestures(given.out / "gestures"))
    outcomes = []
    with CommandLog(given.out / "commands.jsonl") as log:
        for seed in range(given.seed, given.seed + given.runs):
            recogniser = None if bundle is None else hand_recogniser(bundle)
            if seed == given.seed:
                with Filming(given.out, given.speed_up) as filming:
                    outcome = run(seed, log, filming, recogniser)
            else:
                outcome = run(seed, log, recogniser=recogniser)
            outcomes.append({"seed": seed, "success": outcome.success, **outcome.__dict__})
            _say(
                f"run {seed}: {'success' if outcome.success else 'failed: ' + '; '.join(outcome.wrong)} "
                f"({outcome.poured:.0%} of the juice poured, {outcome.seconds:.0f} s simulated)"
            )
    succeeded = sum(bool(outcome["success"]) for outcome in outcomes)
    write_atomic(given.out / "breakfast.json", (json.dumps(outcomes, indent=1) + "\n").encode())
    _say(f"{succeeded} of {given.runs} runs succeeded; {given.out}/breakfast.png, .mp4, .json")
    return 0 if succeeded == given.runs else 1


def _gestures(place: Path) -> Path:
    """A bundle for the simulated hand, trained if it is not there."""
    if not place.exists():
        from data.gesture import gestures_demo
        from data.simulated_hand import RATE_HZ
        from forecasting.pipeline import train_bundle
        from forecasting.task import Task

        # Many people, a minute of each: six, as the data set has of its own, hold too few of the wrists that there are.
        dataset = gestures_demo(people=150, recordings=1)
        _say(f"training {place} on 120 simulated people")
        # Windows of ten seconds: a network that has seen no longer past than a gesture loses its way in a long rest.
        # Lags are those of the ridge beside which the report shows the network; with ten seconds of 16 channels it
        # would take minutes.
        settings = {
            "lookback": 10 * RATE_HZ, "stride": 10 * RATE_HZ, "lags": 10,
            "batch_size": 16, "max_epochs": 40, "learning_rate": 4e-3,
        }  # fmt: skip
        train_bundle(dataset, "gru", Task.of(dataset), place, settings=settings)
    return place


def _robot(given: argparse.Namespace) -> int:
    from sensors.mqtt_broker import MqttBroker
    from sensors.robots.mqtt_host import MqttHost
    from sensors.robots.simulated import SimulatedArm, Simulation

    broker = MqttBroker(
        given.host,
        given.port,
        user=given.user,
        password_env=given.password_env,
        tls=given.tls,
        ca_file=given.ca_file,
    )
    arm = SimulatedArm(Simulation(given.scene))
    with MqttHost(arm, broker, given.topic, arm.clock) as host:
        _say(f"{arm.info.name} at {broker.uri}/{given.topic}; Ctrl+C ends it")
        try:
            host.run(threading.Event())
        except KeyboardInterrupt:
            _say(json.dumps(host.counts))
    return 0


def _bridge(given: argparse.Namespace) -> int:
    from sensors.config import EXAMPLE, read_config
    from sensors.run import run_bridge
    from sensors.stream import SensorError, SourceLost

    if given.example:
        print(EXAMPLE, end="")  # noqa: T201
        return 0
    if given.config is None:
        raise SensorError("--config is missing: `mnemo bridge --example > bridge.toml` writes one to begin with.")
    config = read_config(given.config)
    try:
        asyncio.run(run_bridge(config, dry_run=given.dry_run, record=given.record, metrics=given.metrics))
    except SourceLost as error:
        print(f"stopped: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def _stream(given: argparse.Namespace) -> int:
    from forecasting.runtime import load_bundle
    from sensors.ending import until_told
    from sensors.predictions import open_predictions
    from sensors.sinks import open_sink
    from sensors.stream import SourceLost

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)  # noqa: T201

    predictions, sink = open_predictions(load_bundle(given.bundle), given.source, tell), open_sink(given.to)

    async def run() -> None:
        async with predictions.source, sink:
            await until_told(predictions.run(sink))

    try:
        asyncio.run(run())
    except SourceLost as error:
        tell(f"{predictions.summary()}; stopped: {error}")
        return 1
    tell(predictions.summary())
    return 0


def _record(given: argparse.Namespace) -> int:
    from sensors.config import read_source
    from sensors.recording import record
    from sensors.stream import SensorError, SourceLost

    if given.seconds is not None and not given.seconds > 0:
        raise SensorError(f"--seconds is {given.seconds:g}, expected seconds above 0.")
    source = read_source(given.config)
    try:
        frames = asyncio.run(record(source, given.out, given.seconds))
    except SourceLost as error:
        print(f"stopped, {given.out} has what came: {error}", file=sys.stderr)  # noqa: T201
        return 1
    dropped = f"; {source.dropped} dropped, the last: {source.last_drop}" if source.dropped else ""
    _say(f"{given.out}: {frames} frames of {source.info.stream_id}{dropped}")
    return 0


def _doctor(given: argparse.Namespace) -> int:
    from sensors.doctor import examine

    _say(json.dumps([row._asdict() for row in examine()]))
    return 0


def _calibrate(given: argparse.Namespace) -> int:
    from data.catalog import load
    from forecasting.runtime import load_bundle
    from sensors.calibrate import calibrate, judge
    from sensors.config import read_config
    from sensors.lessons import (
        RULES_ALONE,
        as_toml,
        check_unlearned,
        labelled,
        series_of,
        strangers,
        told,
    )
    from sensors.model_input import channels_of
    from sensors.stream import SensorError

    if not 0 < given.precision < 1:
        raise SensorError(f"--precision is {given.precision:g}, expected a share between 0 and 1.")
    rules = command_map = memory = None
    none, how = given.none, RULES_ALONE
    if given.config is None:
        bundle = load_bundle(given.bundle)
        labels = bundle.labels
    else:
        if none:
            raise SensorError(f"--none: {given.config} says which classes mean no gesture; leave it out.")
        config = read_config(given.config)
        bundle, memory = config.recogniser.bundle, config.recogniser.memory
        labels, none, rules = config.recogniser.labels, config.recogniser.none, config.recogniser.rules
        command_map, how = config.command_map, f"as decisions pass the map of {given.config}; other gestures do nothing"
    dataset = load(given.data, task="classify", channels=channels_of(bundle))
    for part in (given.part, given.judge):
        check_unlearned(bundle, dataset, part)
    freq = bundle.task["freq"]
    if not isinstance(freq, float):
        raise SensorError(f"{bundle.path}: was trained on rows without a rate, so nothing is early or late.")
    chosen = list(labelled(bundle, series_of(bundle, dataset, given.part, labels), memory))
    strange = list(strangers(bundle, given.unknown, memory))
    lag = round(given.lag / freq)
    found = calibrate(
        [*chosen, *strange], labels, none, 1 / freq, target=given.precision, rules=rules, lag=lag,
        command_map=command_map,
    )  # fmt: skip
    _say(as_toml(found, given.precision, how))
    if dataset.splits.entity is not None and given.judge != given.part:
        judged = list(labelled(bundle, series_of(bundle, dataset, given.judge, labels), memory))
        figures = judge(judged, labels, none, found.rules, 1 / freq, lag, command_map)
        _say(f"# on {given.judge}: {told(figures)}")
    if strange:
        wrong = judge(strange, labels, none, found.rules, 1 / freq, lag, command_map).decisions
        _say(f"# {wrong} decisions on {len(strange)} recordings of other movements")
    return 0 if found.reached else 1


def _teach(given: argparse.Namespace) -> int:
    from data.catalog import load
    from forecasting.runtime import load_bundle
    from sensors.lessons import demonstrations, series_of
    from sensors.model_input import channels_of
    from sensors.stream import SensorError
    from sensors.teach import GestureMemory

    bundle = load_bundle(given.bundle)
    if Path(f"{given.memory}.npz").exists():
        memory = GestureMemory.load(given.memory, bundle)
    elif given.data is None:
        raise SensorError(f"{given.memory}.npz is not there yet, so --data with the known gestures is needed.")
    else:
        known = series_of(bundle, load(given.data, task="classify", channels=channels_of(bundle)), "train")
        memory = GestureMemory.of(bundle, [(s.values, s.target) for s in known if s.target is not None])
    if given.recordings:
        memory = memory.taught(bundle, given.name, demonstrations(bundle, given.recordings))
    else:
        memory = memory.without(given.name)
    memory.save(given.memory)
    taught = ", ".join(memory.labels[memory.known :]) or "none"
    _say(f"{given.memory}: {memory.known} gestures of {bundle.name}; taught: {taught}")
    return 0


COMMANDS = {
    "breakfast": _breakfast,
    "robot": _robot,
    "bridge": _bridge,
    "stream": _stream,
    "record": _record,
    "calibrate": _calibrate,
    "teach": _teach,
    "doctor": _doctor,
}


def _refused(why: str) -> int:
    print(f"error: {why}", file=sys.stderr)  # noqa: T201
    return 2


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
