"""Run plans at their times, in the foreground, one after the other: what a service manager keeps alive."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from forecasting.plan import Plan, PlanError

LONGEST_SLEEP_S = 30.0  # then the clock is read again, for it may have been set


def next_due(plan: Plan, after: datetime) -> datetime:
    """When a plan is due first after a moment of the machine's time zone; a step counts from the midnight before.

    A time that a clock set forward skips is due as much later; one that a clock set back has twice is due once.
    """
    midnight = after.replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
    if plan.every is not None:
        due = midnight + ((after.replace(tzinfo=None) - midnight) // plan.every + 1) * plan.every
        while _local(due) <= after:  # in the second of two hours that are called the same
            due += plan.every
        return _local(due)
    days = (midnight + timedelta(days=ahead) for ahead in (0, 1, 2))
    moments = (_local(datetime.combine(day, at)) for day in days for at in sorted(plan.at))
    return next(moment for moment in moments if moment > after)


def _local(naive: datetime) -> datetime:
    first, second = (naive.replace(fold=fold).astimezone() for fold in (0, 1))
    return first if first.replace(tzinfo=None) == naive else max(first, second)


def check_times(plans: Sequence[Plan]) -> None:
    """
    Raises:
        PlanError: a plan does not say when it is due, or two have one name.
    """
    for plan in plans:
        if not plan.at and plan.every is None:
            raise PlanError(
                f'{plan.spec["path"]}: does not say when it is due: at = ["02:30"] or every = "1h". '
                "`mnemo batch run` runs it now."
            )
    names = [plan.name for plan in plans]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise PlanError(f"two plans have the name {twice[0]}; the store tells them apart by it.")


def keep_to(
    plans: Sequence[Plan],
    run: Callable[[Plan], object],
    *,
    now: Callable[[], datetime] = lambda: datetime.now().astimezone(),
    sleep: Callable[[float], object] = time.sleep,
    say: Callable[[str], object] = lambda text: None,
    times: int | None = None,
) -> None:
    """Run each plan when it is due. What became due while another ran is run next, once.

    Args:
        run: carries one out; what it raises ends this.
        times: how many runs, after which to return; None: for ever.
    """
    due = {plan.name: next_due(plan, now()) for plan in plans}
    for plan in plans:
        say(f"{plan.name}: next at {due[plan.name]:%Y-%m-%d %H:%M:%S}")
    while times is None or times > 0:
        plan = min(plans, key=lambda plan: due[plan.name])
        while (left := (due[plan.name] - now()).total_seconds()) > 0:
            sleep(min(left, LONGEST_SLEEP_S))
        run(plan)
        times = None if times is None else times - 1
        due[plan.name] = next_due(plan, now())
        say(f"{plan.name}: next at {due[plan.name]:%Y-%m-%d %H:%M:%S}")
