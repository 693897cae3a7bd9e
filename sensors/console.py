"""The operator at the terminal: what is typed, and a panel of what happens.

Commands are single keys on a terminal and words, one a line, from anything else. A key that is held down repeats, and
so can be the hold-to-run; a line cannot.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import sys
import termios
import threading
import tty
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sensors.telemetry import Reading

KEYS = {"a": "arm", "d": "disarm", "e": "estop", "c": "clear", "q": "quit", " ": "hold"}
WORDS = tuple(word for word in KEYS.values() if word != "hold")
# What a terminal sends for an arrow or a function key. Its last letter is no command: that of an arrow is A, C or D.
SEQUENCE = re.compile(r"\x1b(?:\[\[?|O)[0-?]*[ -/]*[@-Z\\-~]")
BEGUN = re.compile(r"\x1b(?:(?:\[\[?|O)[0-?]*[ -/]*)?\Z")  # one whose end has not been read yet
REFRESH = 2.0  # a second: drawing takes some ms of the interpreter that the loop needs too


class Operator:
    """Calls `command(word)` from its own thread for everything typed; `quit` when the input ends.

    Args:
        unknown: is told of a line that is no command.
    """

    def __init__(self, command: Callable[[str], None], unknown: Callable[[str], None], source: TextIO) -> None:
        self._command, self._unknown = command, unknown
        self._file = source.fileno()
        self._wake_read, self._wake_write = os.pipe()
        self._terminal = os.isatty(self._file)
        self._before = termios.tcgetattr(self._file) if self._terminal else None
        self._thread = threading.Thread(target=self._listen, name="operator", daemon=True)

    def __enter__(self) -> Self:
        try:
            if self._terminal:
                tty.setcbreak(self._file)
            self._thread.start()
        except BaseException:
            self._let_go()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.write(self._wake_write, b"x")
        self._thread.join()
        self._let_go()

    def _let_go(self) -> None:
        """Of the terminal, as it was."""
        if self._before is not None:
            with contextlib.suppress(termios.error):  # of a terminal that is gone
                termios.tcsetattr(self._file, termios.TCSADRAIN, self._before)
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _listen(self) -> None:
        buffer = ""
        while True:
            ready, _, _ = select.select([self._file, self._wake_read], [], [])
            if self._wake_read in ready:
                return
            try:
                text = os.read(self._file, 4096).decode(errors="replace")
            except OSError:  # the terminal is gone
                text = ""
            if not text:
                self._command("quit")
                return
            text = buffer + text
            if self._terminal:
                text = SEQUENCE.sub("", text)
                begun = BEGUN.search(text)
                buffer = begun[0] if begun else ""
                for key in text.removesuffix(buffer).lower():
                    if key in KEYS:
                        self._command(KEYS[key])
                continue
            *lines, buffer = text.split("\n")
            for word in filter(None, (line.strip().lower() for line in lines)):
                if word in WORDS:
                    self._command(word)
                else:
                    self._unknown(word)


def shown(reading: Reading) -> str:
    """A reading's value as a person reads it."""
    if isinstance(reading.value, str):
        return reading.value
    if reading.unit == "s":
        return f"{1000 * reading.value:.2f} ms"
    number = f"{reading.value:,.0f}" if reading.kind == "counter" else f"{reading.value:.4g}"
    return f"{number} {reading.unit}".rstrip()


def panel(title: str, readings: Iterable[Reading]) -> Table:
    """All readings, one a row, and the keys."""
    table = Table(title=Text(title), show_header=False, min_width=60)
    for reading in readings:
        table.add_row(Text(reading.title), Text(shown(reading), style="bold"))
    keys = ", ".join(f"{'space' if key == ' ' else key} {word}" for key, word in KEYS.items())
    table.caption = Text(keys)
    return table


class Panel:
    """Draws on a terminal from a thread of its own; on anything else it stays silent."""

    def __init__(self, title: str, read: Callable[[], Iterable[Reading]], out: TextIO = sys.stderr) -> None:
        self._draw = lambda: panel(title, read())
        self._console = Console(file=out)
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(
                console=self._console, refresh_per_second=REFRESH, get_renderable=self._draw, transient=False
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
