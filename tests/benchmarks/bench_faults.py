"""Faults of every kind, injected into a running gesture bridge: how soon the robot stands, and what it does afterwards.

A real MQTT broker, a sender, a network proxy and a robot, each a process of its own (`fault_rig`). Each fault comes
while the robot moves, at a random moment. The operator goes on pointing all the time, through the fault and after it is
over; only then a person arms again. Target: the robot stands within 100 ms and one control period (10 ms) of the fault,
no command is executed after its expiry, nothing moves before it is armed again.

    bench_faults.py [--count 1000] [--rigs 2] [--kinds "broker killed,network cut"]
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing as mp
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from fault_rig import CONFIG, CORRUPT, DUPLICATE, GOOD, NOT_A_NUMBER, REORDER, Rig, Stopped
from figures import machine, table

BOUND_S = CONFIG.watchdog_s + CONFIG.period_s
WATCH_S = 0.13  # that a fault lasts, at least

Pair = tuple[Callable[[], None], Callable[[], None]]
"""Inject, heal."""


class Share(NamedTuple):
    """What one rig found of a kind."""

    kind: str
    stopped: list[Stopped]
    expired: int
    overdue: int
    void: int


def kinds(rig: Rig) -> dict[str, Pair]:
    switches, bridge = rig.switches, rig.bridge
    robot = bridge.robot

    def mode(number: int) -> Pair:
        return lambda: setattr(switches, "mode", number), lambda: setattr(switches, "mode", GOOD)

    def jump(where: object, field: str) -> Pair:
        """Clocks stay where they jumped to; the next jump is another one."""

        def inject() -> None:
            step = float(np.random.default_rng().uniform(2, 100))
            setattr(where, field, getattr(where, field) - step if getattr(where, field) > 0 else step)

        return inject, lambda: None

    def model(do: Callable[[threading.Event], None], restart: bool = False) -> Pair:
        """From the next frame on."""
        over: list[threading.Event] = []

        def inject() -> None:
            over.append(threading.Event())
            bridge.rule.poison = lambda event=over[-1]: do(event)  # type: ignore[misc]

        def heal() -> None:
            bridge.rule.poison = lambda: None
            over.pop().set()
            if restart:
                bridge.start()

        return inject, heal

    def leave(_: threading.Event) -> None:
        raise SystemExit

    def raise_error(_: threading.Event) -> None:
        raise ValueError("the model failed")

    def hang(over: threading.Event) -> None:
        over.wait()

    def ail(what: str) -> Pair:
        def inject() -> None:
            robot.well.clear()
            robot.ails = what

        def heal() -> None:
            robot.ails = ""
            robot.well.set()

        return inject, heal

    return {
        "source killed": (rig.kill_sender, rig.start_sender),
        "broker killed": (rig.kill_broker, rig.start_broker),
        "network cut": (lambda: setattr(switches, "cut", 1), lambda: setattr(switches, "cut", 0)),
        "stream frozen": (
            lambda: os.kill(rig.sender, signal.SIGSTOP),
            lambda: os.kill(rig.sender, signal.SIGCONT),
        ),
        "frames duplicated": mode(DUPLICATE),
        "frames reordered": mode(REORDER),
        "frames corrupt": mode(CORRUPT),
        "not a number": mode(NOT_A_NUMBER),
        "source's clock jumps": jump(switches, "offset"),
        "bridge's clock jumps": jump(bridge, "skew"),
        "recogniser killed": model(leave, restart=True),
        "recogniser hangs": model(hang),
        "model error": model(raise_error),
        "driver hangs": ail("hang"),
        "driver hangs sending": ail("hang sending"),
        "driver mute": ail("mute"),
        "driver error": ail("error"),
    }


def run(number: int, count: int, wanted: list[str], results: mp.Queue[Share]) -> None:
    """One rig: all kinds, one after the other."""
    sys.setswitchinterval(0.0005)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is ended
    logging.disable(logging.ERROR)  # that a broker is gone is no news here
    with tempfile.TemporaryDirectory(prefix=f"faults-{number}-") as folder:
        Path(folder).chmod(0o755)  # mosquitto reads its configuration as a user of its own
        with Rig(Path(folder)) as rig:
            known = kinds(rig)
            for kind in wanted:
                expired, overdue = rig.switches.expired, rig.switches.overdue
                stopped: list[Stopped] = []
                void = 0
                while len(stopped) < count:
                    one = rig.fault(*known[kind], WATCH_S)
                    if one is None:
                        void += 1
                    else:
                        stopped.append(one)
                switches = rig.switches
                results.put(Share(kind, stopped, switches.expired - expired, switches.overdue - overdue, void))


NAMES = [
    *("source killed", "broker killed", "network cut", "stream frozen"),
    *("frames duplicated", "frames reordered", "frames corrupt", "not a number"),
    *("source's clock jumps", "bridge's clock jumps", "recogniser killed", "recogniser hangs", "model error"),
    *("driver hangs", "driver hangs sending", "driver mute", "driver error"),
]


HEAD = ["fault", "count", "late", "p50 ms", "p99 ms", "max ms", "came expired", "overdue", "moved", "no fault", "void"]


def row(shares: list[Share]) -> list[str]:
    stopped = [one for share in shares for one in share.stopped]
    after_ms = np.array([one.after_s for one in stopped]) * 1000
    spread = [f"{value:.1f}" for value in (*np.percentile(after_ms, (50, 99)), after_ms.max())]
    counts = (
        sum(share.expired for share in shares),
        sum(share.overdue for share in shares),
        sum(one.motions for one in stopped),
        sum(one.state != "fault" for one in stopped),
        sum(share.void for share in shares),
    )
    late = int((after_ms > BOUND_S * 1000).sum())
    return [shares[0].kind, str(len(stopped)), str(late), *spread, *map(str, counts)]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--count", type=int, default=1000, help="faults of each kind")
    options.add_argument("--rigs", type=int, default=2, help="bridges that run at the same time")
    options.add_argument("--kinds", default=",".join(NAMES))
    given = options.parse_args()
    wanted = given.kinds.split(",")
    if unknown := set(wanted) - set(NAMES):
        options.error(f"no such kinds: {sorted(unknown)}; known are {', '.join(NAMES)}")
    os.environ["PATH"] += ":/usr/sbin:/usr/local/sbin"
    if shutil.which("mosquitto") is None:
        options.error("mosquitto is not installed; it is the broker that is killed")
    print(machine())
    began = time.monotonic()
    context = mp.get_context("spawn")
    results: mp.Queue[Share] = context.Queue()
    rigs = min(given.rigs, given.count)
    counts = [given.count // rigs + (number < given.count % rigs) for number in range(rigs)]
    processes = [context.Process(target=run, args=(n, count, wanted, results)) for n, count in enumerate(counts)]
    for process in processes:
        process.start()
    found: dict[str, list[Share]] = {kind: [] for kind in wanted}
    rows = []
    while any(len(parts) < rigs for parts in found.values()):
        if any(process.exitcode for process in processes):
            for process in processes:
                process.terminate()
            sys.exit("a rig failed; see its error above")
        if results.empty():
            time.sleep(0.2)
            continue
        share = results.get()
        shares = found[share.kind]
        shares.append(share)
        if len(shares) == rigs:
            rows.append(row(shares))
            print(f"  {', '.join(rows[-1])}", file=sys.stderr, flush=True)
    for process in processes:
        process.join()
    table(HEAD, rows)
    print(
        f"late: stood more than {BOUND_S * 1000:g} ms after the fault. came expired: reached the robot after its "
        "expiry, of which it executes none. overdue: executed more than 1 ms longer than it may, the robot's timer "
        "included. moved: motions before it was armed again. no fault: the bridge did not say so when frames came "
        "again. void: the robot stood before the fault, on a machine that was too busy; repeated, not counted."
    )
    print(f"rigs at the same time: {rigs}, {time.monotonic() - began:.0f} s; load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
