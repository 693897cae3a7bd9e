"""`mnemo store`, and what other commands make of what the store knows, through the command as users run it."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from data.store import Store
from tests.forecasting.test_cli import done, mnemo

SMALL = ("--horizon", 3, "--no-calibrate")


def shops(length: int, names: str = "ab") -> pd.DataFrame:
    parts = []
    for row, name in enumerate(names):
        y = 100 + np.random.default_rng(row).normal(size=60).cumsum()[:length]
        parts.append(pd.DataFrame({"unique_id": name, "ds": pd.date_range("2024-01-01", periods=length), "y": y}))
    return pd.concat(parts, ignore_index=True)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to work in, with a file of shops and a store of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MNEMO_STORE", f"sqlite:///{tmp_path / 'store.db'}")
    monkeypatch.delenv("MNEMO_DATA_DIR", raising=False)
    shops(40).assign(visits=7).to_csv("shops.csv", index=False)
    return tmp_path


@pytest.mark.parametrize("command", ["init", "ingest", "as-of", "vacuum"])
def test_each_command_has_help_with_an_example(command):
    assert f"Example: mnemo store {command}" in done("store", command, "--help").out


def test_a_store_is_made_where_there_is_none_and_kept_where_there_is_one(place):
    for _ in range(2):
        assert re.search(r"sqlite:///.*store\.db: is there\.", done("store", "init").out)
    assert (place / "store.db").is_file()


def test_what_was_ingested_is_known_from_then_on_and_a_correction_from_its_own_time(place):
    said = done("store", "ingest", "shops.csv", "--known-at", "2024-03-01T02:00+02:00")
    assert "2 series; 80 observations are new, 0 corrected, 0 were known." in said.out
    file = pd.read_csv("shops.csv")
    file.loc[3, "y"] = -5.0
    file.to_csv("shops.csv", index=False)
    said = done("store", "ingest", "shops.csv", "--known-at", "2024-03-02", "--json")
    assert json.loads(said.out) | {"store": ""} == {
        "store": "", "series": 2, "new": 0, "corrected": 1, "unchanged": 79,
    }  # fmt: skip
    done("store", "as-of", "2024-03-01", "--out", "known.parquet")  # midnight in UTC, when it became known
    known = pd.read_parquet("known.parquet")
    pd.testing.assert_frame_equal(known[["unique_id", "ds", "y"]], shops(40), check_exact=False)
    assert set(known["visits"]) == {7.0}
    rows = json.loads(done("store", "as-of", "now", "--series", "a", "--json").out)
    assert len(rows) == 40
    assert rows[3]["y"] == -5.0


def test_tables_of_other_forms_are_ingested_as_other_commands_read_them(place):
    shops(20).pivot(index="ds", columns="unique_id", values="y").to_csv("wide.csv")
    done("store", "ingest", "wide.csv", "--wide")
    renamed = shops(20, "c").rename(columns={"unique_id": "shop", "ds": "day", "y": "sold"}).assign(a=1, b=2)
    renamed.to_csv("renamed.csv", index=False)
    done("store", "ingest", "renamed.csv", "--id", "shop", "--time", "day", "--target", "sold", "--covariates", "a")
    done("store", "as-of", "now", "--out", "all.csv")
    known = pd.read_csv("all.csv", parse_dates=["ds"])
    assert list(known) == ["unique_id", "ds", "y", "a"]
    pd.testing.assert_frame_equal(known[["unique_id", "ds", "y"]], shops(20, "abc")[:40].pipe(
        lambda two: pd.concat([two, shops(20, "c")], ignore_index=True)
    ))  # fmt: skip


def test_recordings_with_labels_are_known_with_them(place):
    done("store", "ingest", "gestures_demo")
    rows = json.loads(done("store", "as-of", "now", "--json").out)
    assert {row["label"] for row in rows} > {"rest"}
    said = done(
        "backtest",
        "--data",
        "store:",
        "--task",
        "classify",
        "--model",
        "naive",
        "--set",
        "max_epochs=1",
        "--freq",
        0.01,
    )
    assert "naive" in said.out


def test_a_past_forecast_is_made_again_exactly_of_what_was_known_then(place):
    done("store", "ingest", "shops.csv", "--known-at", "2024-03-01")
    done("train", "--data", "store:", "--model", "ridge", "--out", "bundle", *SMALL)
    done("forecast", "--bundle", "bundle", "--data", "store:", "--out", "then.csv")
    pd.read_csv("shops.csv").assign(y=lambda file: file["y"] + 10).to_csv("shops.csv", index=False)
    done("store", "ingest", "shops.csv")
    done("forecast", "--bundle", "bundle", "--data", "store:", "--out", "now.csv")
    assert not pd.read_csv("now.csv").equals(pd.read_csv("then.csv"))
    done("store", "as-of", "2024-03-01", "--out", "known.parquet")
    done("forecast", "--bundle", "bundle", "--data", "known.parquet", "--out", "again.csv")
    pd.testing.assert_frame_equal(pd.read_csv("again.csv"), pd.read_csv("then.csv"), check_exact=True)


def test_a_plan_reads_from_the_store_of_its_runs_and_steps_what_is_new(place):
    url = f"sqlite:///{place / 'other.db'}"
    done("train", "--data", "shops.csv", "--model", "ridge", "--out", "bundle", *SMALL)
    (place / "nightly.toml").write_text('[[job]]\nname = "shops"\ndata = "store:"\nbundle = "bundle"\n')
    assert re.search("store:.*nothing is known", mnemo("batch", "run", "nightly.toml", "--store", url).err)
    for days in (38, 40):
        shops(days).assign(visits=7).to_csv("shops.csv", index=False)
        done("store", "ingest", "shops.csv", "--store", url)
        done("batch", "run", "nightly.toml", "--store", url)
    store = Store(url)
    newest = store.runs(last=1)[0]
    assert newest.jobs[0].summary["from"] == "from the state of the run before"
    done("forecast", "--bundle", "bundle", "--data", "shops.csv", "--out", "whole.csv")
    whole, stepped = pd.read_csv("whole.csv"), store.latest("nightly", "shops")
    store.close()
    np.testing.assert_allclose(stepped["mean"], whole["mean"], rtol=1e-6)


def test_a_vacuum_makes_the_file_smaller_and_says_what_it_dropped(place):
    store = Store()
    for number in (1, 2):  # the first is cut off, with what it had
        hold = store.begin("nightly", {}, ["shops"])
        answer = pd.DataFrame({"unique_id": "a", "ds": range(5000), "mean": 1.0})
        store.keep(hold, "shops", answer, None, {})
        store.publish(hold) if number == 2 else store.interrupt(hold)
    store.close()
    done("store", "ingest", "shops.csv", "--known-at", "2024-03-01")
    pd.read_csv("shops.csv").assign(y=1.0).to_csv("shops.csv", index=False)
    done("store", "ingest", "shops.csv", "--known-at", "2024-03-02")
    before = (place / "store.db").stat().st_size
    said = json.loads(done("store", "vacuum", "--before", "2024-03-02", "--json").out)
    assert (said["corrected"], said["of_runs"]) == (80, 5000)
    assert (place / "store.db").stat().st_size < 0.7 * before
    assert "was forgotten by a vacuum" in mnemo("store", "as-of", "2024-03-01").err
    assert json.loads(done("store", "vacuum", "--json").out)["of_runs"] == 0
    assert len(Store().latest("nightly", "shops")) == 5000


BAD = {
    "store ingest nope.csv": r"nope\.csv: no such file",
    "store ingest shops.csv --known-at soon": r"soon: is no time; expected now, or as 2026-03-01T02:30",
    "store ingest shops.csv --known-at 2999-01-01": r"2999-01-01.*is to come",
    "store ingest shops.csv --target sold": r"shops\.csv: no column sold; found",
    "store as-of 2999-01-01": r"is to come; give a time until now",
    "store as-of now": r"nothing is known of such series in .*it holds none\. `mnemo store ingest`",
    "store as-of now --out known.txt": r"known\.txt: --out takes a \.parquet or \.csv file",
    "store vacuum --before 2999-01-01": r"is to come",
    "store init --store nothing": r"nothing: is no URL of a store",
    "backtest --data store:x* --model naive": r"store:x\*: nothing is known of such series",
    "train --data store: --id shop --model ridge --out b": r"store:: id is an option for files",
}


@pytest.mark.parametrize("command", BAD)
def test_what_cannot_be_done_is_said_and_nothing_is_left(place, command):
    said = mnemo(*command.split())
    assert said.code == 2
    assert re.search(BAD[command], said.err), said.err
    assert sorted(path.name for path in place.iterdir() if not path.name.startswith("store.db")) == ["shops.csv"]
    if "ingest" in command:
        assert "it holds none" in mnemo("store", "as-of", "now").err
