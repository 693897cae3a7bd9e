"""Ensembles: several models' forecasts of the same series combined into one, quantile by quantile.

The quantile at a level is the mean, or the median, of the members' quantiles at that level (Vincent 1912; Ratcliff,
Psychological Bulletin 86, 446-461, 1979; Lichtendahl et al., Management Science 59, 1594-1611, 2013). Unlike a mixture
of the distributions it stays as narrow as its members are on average, and members in order give an ensemble in order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from forecasting.predictions import Rows, Substitute
from forecasting.task import TaskError

COMBINE: dict[str, Callable[..., Any]] = {"mean": np.mean, "median": np.median}


def ensemble_name(how: str, members: Sequence[str]) -> str:
    """As the leaderboard and forecasts.parquet call it: mean(ets,theta)."""
    return f"{how}({','.join(members)})"


def check_ensembles(asked: Sequence[str], members: Sequence[str], kind: str) -> None:
    """
    Raises:
        TaskError: an unknown way to combine, fewer than two members, or a task that is no forecast.
    """
    unknown = [how for how in asked if how not in COMBINE]
    if unknown:
        raise TaskError(f"no ensemble is called '{unknown[0]}'; known: {', '.join(COMBINE)}.")
    if asked and kind != "forecast":
        raise TaskError(f"ensembles combine forecasts, and this task is to {kind}; leave out the ensemble.")
    if asked and len(set(members)) < 2:
        raise TaskError(f"an ensemble needs at least two models, got {', '.join(members) or 'none'}; name more.")


def combined(how: str, members: Sequence[Sequence[Rows]], levels: np.ndarray) -> list[Rows]:
    """The ensemble's forecasts at the cut-offs of its members, which are the same of all.

    Where a substitute stands in for a member, it is named for the ensemble too.

    Args:
        members: per model its forecasts, a `Rows` a series in the same order. A member that forecasts points only
            leaves the ensemble without quantiles too.
    """
    combine = COMBINE[how]
    return [
        Rows(
            rows[0].span,
            rows[0].positions,
            combine([row.values for row in rows], axis=0),
            combine([row.mean(levels) for row in rows], axis=0),
            _instead(rows),
        )
        for rows in zip(*members, strict=True)
    ]


def _instead(rows: Sequence[Rows]) -> dict[int, Substitute]:
    """Per position the substitutes of the members that have one there: what they say is a part of the ensemble's."""
    positions = sorted(set().union(*(row.instead for row in rows)))
    found = {at: [row.instead[at] for row in rows if at in row.instead] for at in positions}
    return {
        at: Substitute("; ".join(one.name for one in those), "; ".join(one.reason for one in those))
        for at, those in found.items()
    }
