"""Work that goes on until it is done, its time is up, or somebody ends it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Coroutine
from typing import Any


async def until_told(work: Coroutine[Any, Any, None], seconds: float | None = None) -> None:
    """Let it run until it ends, for so many seconds, or until SIGINT or SIGTERM; what it raises is raised."""
    loop, told = asyncio.get_running_loop(), (signal.SIGINT, signal.SIGTERM)
    running = asyncio.ensure_future(work)
    for each in told:
        loop.add_signal_handler(each, running.cancel)
    try:
        await asyncio.wait({running}, timeout=seconds)
    finally:
        for each in told:
            loop.remove_signal_handler(each)
        running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
