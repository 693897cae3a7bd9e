"""Arithmetic without subnormal numbers: what a model forgets decays below 1e-38, where an operation may take ten times
as long (on processors of Intel's a memory whose gates forget trains at half its speed or less).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def without_subnormals() -> Iterator[None]:
    """In this thread, and in those that torch starts from it meanwhile, such numbers count as 0; also a decorator.

    Afterwards it is as before. Where the processor cannot do so, nothing changes.
    """
    before = not bool(torch.tensor(1e-39) * 1.0)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
