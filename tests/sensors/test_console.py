"""What the operator types arrives, from a terminal and from a pipe; the panel shows every reading."""

import io
import os
import pty
import select
import termios
import threading
import time
from collections.abc import Callable

import pytest
from rich.console import Console

from sensors.console import KEYS, Operator, Panel, panel
from sensors.telemetry import Reading

READINGS = [
    Reading("frames_total", "frames", "counter", 1200),
    Reading("latency_p50_seconds", "latency, median", "gauge", 0.00042, "s"),
    Reading("safety_state", "state", "text", "DISARMED"),
]


def listen(file: int, write: Callable[[], None], expected: int) -> tuple[list[str], list[str]]:
    """What an operator at `file` is heard to say after `write`, once `expected` things were heard."""
    heard: list[str] = []
    odd: list[str] = []
    enough = threading.Event()

    def hear(into: list[str]) -> Callable[[str], None]:
        def add(word: str) -> None:
            into.append(word)
            if len(heard) + len(odd) >= expected:
                enough.set()

        return add

    with os.fdopen(file, closefd=False) as source, Operator(hear(heard), hear(odd), source):
        write()
        assert enough.wait(10)
    return heard, odd


def test_every_key_of_a_terminal_is_a_command_at_once_and_the_terminal_is_left_as_it_was() -> None:
    ours, theirs = pty.openpty()
    try:
        before = termios.tcgetattr(theirs)
        heard, _ = listen(theirs, lambda: os.write(ours, "".join(KEYS).encode()) and None, len(KEYS))
        assert termios.tcgetattr(theirs) == before
    finally:
        os.close(ours)
        os.close(theirs)
    assert heard == list(KEYS.values())


def test_arrows_and_function_keys_are_no_commands_and_escape_takes_no_key_away() -> None:
    ours, theirs = pty.openpty()
    arrows = [f"\x1b{kind}{key}" for kind in ("[", "O", "[1;5") for key in "ABCD"]  # up would arm, right would clear
    functions = ["\x1bOP", "\x1b[15~", "\x1b[[A", "\x1b[[D"]

    def press() -> None:
        for piece in (*arrows, *functions, "\x1b", "[", "1;5", "C", "\x1b", "e", "q"):  # one comes in pieces
            os.write(ours, piece.encode())
            while select.select([theirs], [], [], 0)[0]:  # until the operator has read it
                time.sleep(0.001)

    try:
        heard, _ = listen(theirs, press, 2)
    finally:
        os.close(ours)
        os.close(theirs)
    assert heard == ["estop", "quit"]


def test_a_thread_that_cannot_start_leaves_the_terminal_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    ours, theirs = pty.openpty()
    try:
        before = termios.tcgetattr(theirs)
        monkeypatch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            listen(theirs, lambda: None, 0)
        assert termios.tcgetattr(theirs) == before
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_terminal_that_is_gone_quits() -> None:
    ours, theirs = pty.openpty()
    try:
        heard, _ = listen(theirs, lambda: os.close(ours), 1)
    finally:
        os.close(theirs)
    assert heard == ["quit"]


def test_lines_of_a_pipe_are_commands_unknown_ones_are_told_and_its_end_quits() -> None:
    read, write = os.pipe()

    def send() -> None:
        os.write(write, b"arm\nestop\nhold\nfly\ncle")
        os.write(write, b"ar\n")
        os.close(write)

    heard, odd = listen(read, send, 6)
    os.close(read)
    assert heard == ["arm", "estop", "clear", "quit"]
    assert odd == ["hold", "fly"]


def test_the_panel_shows_every_reading_in_its_unit_and_every_key() -> None:
    out = io.StringIO()
    Console(file=out, width=120).print(panel("arm", READINGS))
    text = out.getvalue()
    for piece in ("1,200", "0.42 ms", "DISARMED", "latency, median", *(word for word in KEYS.values())):
        assert piece in text


def test_the_panel_is_silent_where_there_is_no_terminal() -> None:
    out = io.StringIO()
    with Panel("arm", lambda: READINGS, out):
        pass
    assert out.getvalue() == ""
