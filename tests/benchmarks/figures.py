"""What the benchmarks share: repeats, medians, and a line that says which machine this is."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np


def machine() -> str:
    name = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            name = line.split(":", 1)[1].strip()
            break
    load = os.getloadavg()[0]
    return f"{name}, {os.cpu_count()} cores, load {load:.1f}, Python {platform.python_version()}"


def percentiles_us(call: Callable[[], object], count: int, warm: int = 500) -> tuple[float, float, float]:
    """Median, 99th percentile and maximum of single calls, in microseconds."""
    for _ in range(warm):
        call()
    spent = np.empty(count)
    for index in range(count):
        began = time.perf_counter_ns()
        call()
        spent[index] = (time.perf_counter_ns() - began) / 1e3
    return float(np.median(spent)), float(np.percentile(spent, 99)), float(spent.max())


def median_s(call: Callable[[], object], repeats: int) -> float:
    """Median of whole calls, in seconds."""
    spent = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        spent.append(time.perf_counter() - began)
    return statistics.median(spent)


def table(head: list[str], rows: list[list[str]]) -> None:
    widths = [max(len(row[index]) for row in [head, *rows]) for index in range(len(head))]
    for row in [head, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
