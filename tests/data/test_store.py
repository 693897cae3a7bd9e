import multiprocessing
import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import numpy as np
import pandas as pd
import pytest

from data import store as stores
from data.store import Left, Store, StoreError

ANSWER = pd.DataFrame({
    "unique_id": ["a", "a", "ü'; drop"],
    "cutoff": pd.to_datetime(["2024-01-01"] * 3),
    "ds": pd.to_datetime(["2024-01-02", "2024-01-03 04:05:06.789", "2024-01-02"], format="ISO8601"),
    "model": "ets",
    "mean": [1 / 3, np.nan, -1e300],
    "q0.5": np.array([0.1, 2.0, np.inf]),
    "substitute": ["", "naive", ""],
})  # fmt: skip


def left(content):
    return Left(content, "a bundle")


def begin(store, *jobs):
    return store.begin("nightly", {"some": "plan"}, jobs or ("shops",))


def test_nothing_of_a_run_is_seen_before_it_is_published_and_then_all_of_it_to_the_digit(store):
    hold = begin(store, "shops", "gestures")
    store.keep(hold, "shops", ANSWER, left(b"state"), {"series": 2})
    gestures = pd.DataFrame({"unique_id": ["r1"], "ds": [0.25], "model": "gru", "label": ["left"], "p_left": [0.75]})
    store.keep(hold, "gestures", gestures, None, {"series": 1})
    with pytest.raises(StoreError, match="has published nothing of a job shops"):
        store.forecasts(hold.run, "shops")
    assert store.latest("nightly", "shops") is None
    assert store.state("nightly", "shops") is None
    assert store.run(hold.run).status == "running"

    published = store.publish(hold)
    assert published.status == "done"
    assert [(job.name, job.published) for job in published.jobs] == [("shops", True), ("gestures", True)]
    pd.testing.assert_frame_equal(store.forecasts(hold.run, "shops"), ANSWER)
    pd.testing.assert_frame_equal(store.latest("nightly", "gestures"), gestures)
    assert store.state("nightly", "shops") == left(b"state")
    assert store.state("nightly", "gestures") is None


@pytest.mark.parametrize("times", [[3, 4], [0.1, 1 / 3]], ids=["cycles", "seconds"])
def test_times_that_are_no_dates_come_back_as_they_were(store, times):
    hold = begin(store)
    answer = pd.DataFrame({"unique_id": ["b", "b"], "cutoff": [times[0]] * 2, "ds": times, "mean": [1.0, 2.0]})
    store.keep(hold, "shops", answer, None, {})
    store.publish(hold)
    pd.testing.assert_frame_equal(store.latest("nightly", "shops"), answer)


def test_what_failed_is_partial_is_not_published_and_takes_nothing_with_it(store):
    hold = begin(store, "shops", "lost")
    store.keep(hold, "shops", ANSWER, None, {})
    store.fail(hold, "lost", "no such file")
    run = store.publish(hold)
    assert run.status == "partial"
    assert run.jobs[1].summary["reason"] == "no such file"
    assert len(store.forecasts(hold.run, "shops")) == 3
    again = store.take_over(hold.run)
    store.keep(again, "lost", ANSWER[:1], None, {})
    assert store.latest("nightly", "lost") is None
    assert store.publish(again).status == "done"
    assert len(store.latest("nightly", "lost")) == 1


def test_the_newest_published_run_is_the_latest_and_leaves_the_only_state(store):
    for number in (1, 2):
        hold = begin(store)
        store.keep(hold, "shops", ANSWER.assign(mean=float(number)), left(f"state {number}".encode()), {})
        store.publish(hold)
    unseen = begin(store)
    store.keep(unseen, "shops", ANSWER.assign(mean=3.0), left(b"state 3"), {})
    assert set(store.latest("nightly", "shops")["mean"]) == {2.0}
    assert store.state("nightly", "shops") == left(b"state 2")
    with store.asking() as connection:
        assert connection.execute(stores.sql.select(stores.sql.func.count()).select_from(stores._STATES)).scalar() == 2
    assert store.runs("nightly")[0].id == unseen.run
    assert len(store.runs(last=2)) == 2
    assert store.runs("another") == []


def test_a_run_that_a_newer_one_has_overtaken_is_not_gone_on_with(store):
    old = begin(store)
    store.interrupt(old)
    new = begin(store)
    store.keep(new, "shops", ANSWER, None, {})
    store.publish(new)
    with pytest.raises(StoreError, match=f"{old.run}: is out of date, for {new.run} came after it"):
        store.take_over(old.run)
    store.publish(store.take_over(new.run))


def test_forecasts_of_older_runs_go_where_so_many_are_kept_and_what_became_of_them_stays(store):
    runs = []
    for number in range(4):
        hold = begin(store)
        store.keep(hold, "shops", ANSWER, left(b"state"), {"series": number})
        runs.append(store.publish(hold, keep=2).id)
    for run in runs[:2]:
        with pytest.raises(StoreError, match="has published nothing"):
            store.forecasts(run, "shops")
    assert all(len(store.forecasts(run, "shops")) == 3 for run in runs[2:])
    assert [run.jobs[0].summary["series"] for run in store.runs()] == [3, 2, 1, 0]
    assert store.state("nightly", "shops") == left(b"state")


def test_one_run_of_a_plan_goes_on_at_a_time(store):
    hold = begin(store)
    with pytest.raises(StoreError, match=rf"nightly: its run {hold.run} goes on, on .* as process {os.getpid()}"):
        begin(store)
    with pytest.raises(StoreError, match="goes on"):
        store.take_over(hold.run)
    store.begin("weekly", {}, ["shops"])
    store.publish(hold)
    begin(store)


def test_of_many_that_begin_at_once_one_does(store):
    def attempt(_: int) -> bool:
        try:
            begin(store)
        except StoreError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(8))) == 1


def test_of_many_that_open_a_new_store_at_once_all_do(store):
    with store.writing() as connection:
        stores._TABLES.drop_all(connection)
    url = store._url.render_as_string(hide_password=False)
    with ThreadPoolExecutor(8) as pool:
        for opened in pool.map(lambda _: Store(url), range(8)):
            opened.close()
    begin(store)


def test_a_name_of_the_greatest_length_is_kept(store):
    name = "n" * 100
    hold = store.begin(name, {}, [name])
    store.keep(hold, name, ANSWER, left(b"state"), {})
    store.publish(hold)
    assert len(store.latest(name, name)) == 3


def _begin_and_die(url: str) -> None:
    hold = Store(url).begin("nightly", {}, ["shops"])
    Store(url).keep(hold, "shops", ANSWER, left(b"half"), {})
    os._exit(9)


def test_a_run_whose_process_died_is_interrupted_unseen_and_can_be_gone_on_with(store):
    process = multiprocessing.get_context("spawn").Process(
        target=_begin_and_die, args=(store._url.render_as_string(hide_password=False),)
    )
    process.start()
    process.join(60)
    assert process.exitcode == 9
    (dead,) = store.runs()
    assert dead.status == "running"
    assert store.latest("nightly", "shops") is None
    fresh = begin(store)
    assert store.run(dead.id).status == "interrupted"
    store.publish(fresh)
    again = store.take_over(dead.id)
    assert [job.status for job in store.run(dead.id).jobs] == ["done"]
    store.publish(again)
    pd.testing.assert_frame_equal(store.forecasts(dead.id, "shops"), ANSWER)


def test_who_gives_no_sign_of_life_is_taken_over_and_can_write_no_more(store, monkeypatch):
    hold = begin(store)
    monkeypatch.setattr(stores, "QUIET", timedelta(0))
    other = store.take_over(hold.run)
    for write in (
        lambda: store.keep(hold, "shops", ANSWER, None, {}),
        lambda: store.fail(hold, "shops", "why"),
        lambda: store.beat(hold),
        lambda: store.publish(hold),
        lambda: store.interrupt(hold),
    ):
        with pytest.raises(StoreError, match="counts as dead, or was taken over"):
            write()
    store.keep(other, "shops", ANSWER[:1], None, {})
    assert store.run(hold.run).jobs[0].summary["rows"] == 1


def test_a_job_that_is_kept_again_takes_the_place_of_what_it_gave_before(store):
    hold = begin(store)
    store.keep(hold, "shops", ANSWER, left(b"old"), {})
    store.keep(hold, "shops", ANSWER[:1], left(b"new"), {})
    store.publish(hold)
    assert len(store.latest("nightly", "shops")) == 1
    assert store.state("nightly", "shops") == left(b"new")


def test_an_unknown_run_is_refused(store):
    with pytest.raises(StoreError, match=r"x: no run of this name in .*`mnemo batch status` lists them"):
        store.run("x")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "nonsense: is no URL of a store, such as sqlite:///runs.db"),
        ("sqlite:////proc/here/store.db", "cannot be opened.*Is its folder there, and may this user write"),
        ("postgresql://nobody:secret@127.0.0.1:1/x", "Is the server up, and is psycopg here"),
        ("mystery://host/x", "cannot be opened|is no URL"),
    ],
)
def test_a_store_that_cannot_be_opened_says_why_and_keeps_the_password(url, message):
    with pytest.raises(StoreError, match=message) as refused:
        Store(url)
    assert "secret" not in str(refused.value)


def test_a_file_that_is_no_database_and_one_of_another_version_are_refused_and_left_alone(tmp_path):
    place = tmp_path / "notes.txt"
    place.write_text("These are notes, and nothing else. " * 100)
    with pytest.raises(StoreError, match="not a database"):
        Store(f"sqlite:///{place}")
    assert place.read_text().startswith("These are notes")
    older = tmp_path / "older.db"
    Store(f"sqlite:///{older}").close()
    with sqlite3.connect(older) as connection:
        connection.execute("UPDATE about SET version = 0")
    with pytest.raises(StoreError, match="is of version 0, this is 1"):
        Store(f"sqlite:///{older}")


def test_the_store_of_a_user_is_a_file_of_theirs(tmp_path, monkeypatch):
    monkeypatch.delenv("MNEMO_STORE", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    Store().close()
    assert (tmp_path / "data" / "mnemo" / "store.db").is_file()
