import time
from datetime import datetime, timedelta

import pytest

from forecasting.plan import PlanError, of_spec
from forecasting.schedule import check_times, keep_to, next_due

JOB = {"name": "a", "data": "a.csv", "bundle": "b"}


@pytest.fixture(autouse=True)
def berlin(monkeypatch):
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def plan(name="p", **when):
    return of_spec({"plan": {"name": name, "job": [JOB]} | when, "path": "/x/plan.toml"})


def local(*parts):
    return datetime(*parts).astimezone()


@pytest.mark.parametrize(
    ("when", "after", "due"),
    [
        ({"at": "02:30"}, (2026, 1, 5, 1), (2026, 1, 5, 2, 30)),
        ({"at": "02:30"}, (2026, 1, 5, 2, 30), (2026, 1, 6, 2, 30)),
        ({"at": ["14:00", "02:30"]}, (2026, 1, 5, 3), (2026, 1, 5, 14)),
        ({"at": ["14:00", "02:30"]}, (2026, 1, 31, 15), (2026, 2, 1, 2, 30)),
        ({"every": "6h"}, (2026, 1, 5, 6), (2026, 1, 5, 12)),
        ({"every": "15min"}, (2026, 1, 5, 23, 50), (2026, 1, 6)),
        ({"every": "1d"}, (2026, 1, 5, 1), (2026, 1, 6)),
        # The clocks go forward over 02:30 on 29 March, and back over it on 25 October 2026.
        ({"at": "02:30"}, (2026, 3, 29, 1), (2026, 3, 29, 3, 30)),
        ({"at": "02:30"}, (2026, 3, 29, 3, 30), (2026, 3, 30, 2, 30)),
        ({"at": "02:30"}, (2026, 10, 25, 1), (2026, 10, 25, 2, 30)),
        ({"at": "02:30"}, (2026, 10, 25, 2, 30), (2026, 10, 26, 2, 30)),
    ],
)
def test_when_a_plan_is_due_next(when, after, due):
    assert next_due(plan(**when), local(*after)) == local(*due)


def test_in_the_second_of_two_hours_of_one_name_a_step_is_not_due_at_once_again_and_again():
    second = datetime(2026, 10, 25, 2, 10, fold=1).astimezone()
    assert next_due(plan(every="15min"), second) == local(2026, 10, 25, 3)


class Clock:
    """Whose time passes only while somebody sleeps or works."""

    def __init__(self, *parts):
        self.now, self.ran = local(*parts), []

    def sleep(self, seconds):
        assert 0 < seconds <= 30
        self.now += timedelta(seconds=seconds)

    def keep_to(self, plans, times, takes=timedelta(0)):
        def run(plan):
            self.ran.append((plan.name, f"{self.now:%d %H:%M}"))
            self.now += takes

        keep_to(plans, run, now=lambda: self.now, sleep=self.sleep, times=times)
        return self.ran


def test_plans_run_in_the_order_in_which_they_are_due():
    plans = [plan("night", at="02:30"), plan("often", every="1h")]
    assert Clock(2026, 1, 5, 1, 30).keep_to(plans, 4) == [
        ("often", "05 02:00"), ("night", "05 02:30"), ("often", "05 03:00"), ("often", "05 04:00"),
    ]  # fmt: skip


def test_what_became_due_meanwhile_runs_next_and_once():
    plans = [plan("night", at="02:30"), plan("often", every="1h")]
    ran = Clock(2026, 1, 5, 2, 15).keep_to(plans, 3, timedelta(hours=3))
    assert ran == [("night", "05 02:30"), ("often", "05 05:30"), ("often", "05 09:00")]


def test_plans_without_a_time_and_of_one_name_are_refused():
    with pytest.raises(PlanError, match=r"/x/plan.toml: does not say when it is due: at = .*`mnemo batch run` runs"):
        check_times([plan()])
    with pytest.raises(PlanError, match="two plans have the name p"):
        check_times([plan(at="02:00"), plan(at="03:00")])
