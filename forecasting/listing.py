"""How messages name channels and many things, shortly enough to be read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

MOST_NAMED = 10


def list_channels(channels: Iterable[tuple[str, str]]) -> str:
    """Pairs of name and unit as `y [USD], volume [1]`; an unknown unit ("") is left out."""
    return ", ".join(f"{name} [{unit}]" if unit else name for name, unit in channels)


def shorten(names: Sequence[str]) -> str:
    """The first ten names, and how many more there are."""
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(map(str, names[:MOST_NAMED])) + more
