import importlib.metadata
import json
import sys
from functools import cache

import onnxruntime
import pytest
import torch
from typer.testing import CliRunner

from data.store import Store
from forecasting import doctor
from forecasting.cli import app

VERSION = doctor._version
BRIDGE = cache(doctor._bridge)


@pytest.fixture
def one_bridge(monkeypatch):
    """The bridge's room is asked, in a process of its own, once for the tests that are about something else."""
    monkeypatch.setattr(doctor, "_bridge", BRIDGE)


def row(what: str) -> dict:
    return next(row for row in doctor.examine() if row["what"] == what)


def installed(monkeypatch, **changes: str | None) -> None:
    """Packages as they are, but for these: a version, or None for not installed; underscores stand for hyphens."""
    other = {name.replace("_", "-"): version for name, version in changes.items()}
    monkeypatch.setattr(doctor, "_version", lambda package: other[package] if package in other else VERSION(package))


def test_everything_that_is_needed_works_here_and_is_named_with_its_version():
    rows = {row["what"]: row for row in doctor.examine()}
    assert {row["works"] for row in rows.values()} <= {"yes", "absent"}
    assert rows["torch"]["found"] == importlib.metadata.version("torch")
    assert rows["python"]["found"].startswith(".".join(map(str, sys.version_info[:3])))
    assert onnxruntime.__version__ in rows["inference"]["found"]
    assert "CPUExecutionProvider: CPU" in rows["inference"]["found"]
    assert rows["training on GPU"]["works"] == ("yes" if torch.cuda.is_available() else "absent")


def test_a_package_that_is_missing_is_said_with_a_remedy_and_exit_code_1(one_bridge, monkeypatch):
    installed(monkeypatch, statsmodels=None)
    assert row("statsmodels") == {
        "what": "statsmodels",
        "works": "no",
        "found": "not installed",
        "remedy": "make install",
    }
    said = CliRunner().invoke(app, ["doctor"])
    assert said.exit_code == 1
    assert "make install" in said.stdout
    assert said.stderr == ""
    assert json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)


def test_two_packages_in_one_folder_are_a_fault_and_so_is_none(one_bridge, monkeypatch):
    installed(monkeypatch, onnxruntime="1.23.0", onnxruntime_gpu="1.23.0")
    assert row("onnxruntime")["works"] == "no"
    assert row("onnxruntime")["remedy"] == "uninstall one: onnxruntime and onnxruntime-gpu share a folder"
    installed(monkeypatch, onnxruntime=None, onnxruntime_gpu="1.23.0")
    assert row("onnxruntime")["works"] == "yes"
    installed(monkeypatch, onnxruntime=None, onnxruntime_gpu=None)
    assert row("onnxruntime") == {"what": "onnxruntime", "works": "no", "found": "", "remedy": "make install"}


@pytest.mark.parametrize(("module", "what"), [("torch", "training"), ("onnxruntime", "inference")])
def test_a_library_that_does_not_load_is_a_row_not_a_traceback(one_bridge, monkeypatch, module, what):
    monkeypatch.setitem(sys.modules, module, None)
    found = row(what)
    assert found["works"] == "no"
    assert module in found["found"]
    assert found["remedy"] == "make install"


def test_a_gpu_is_named_only_where_a_device_is_seen(one_bridge, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert row("training on GPU") == {
        "what": "training on GPU",
        "works": "yes",
        "found": "NVIDIA H200",
        "remedy": "",
    }
    monkeypatch.setattr(onnxruntime, "get_ep_devices", list)  # the provider may be compiled in all the same
    assert row("inference on GPU")["works"] == "absent"


def test_data_sets_that_are_missing_are_no_fault_but_said(one_bridge, monkeypatch):
    monkeypatch.delenv("MNEMO_DATA_DIR", raising=False)
    found = row("data sets")
    assert found["works"] == "yes"
    assert "set MNEMO_DATA_DIR" in found["remedy"]
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert row("browser for the dashboard's tests")["works"] == "absent"


def test_the_store_is_opened_where_there_is_one_and_never_made(one_bridge, monkeypatch, tmp_path):
    monkeypatch.setenv("MNEMO_STORE", f"sqlite:///{tmp_path / 'store.db'}")
    assert row("store of observations and runs")["works"] == "absent"
    assert list(tmp_path.iterdir()) == []
    Store().close()
    assert row("store of observations and runs")["found"].endswith("store.db: no runs yet")
    (tmp_path / "store.db").write_text("no database, but long enough to be read as one " * 20)
    found = row("store of observations and runs")
    assert (found["works"], "not a database" in found["found"]) == ("no", True)


def test_the_bridges_parts_are_tried_in_their_own_process():
    rows = {row["what"]: row for row in doctor.examine()}
    assert rows["simulated robot"]["works"] == "yes"
    assert "7 joints" in rows["simulated robot"]["found"]
    assert rows["MQTT"]["works"] == "yes"


def test_a_bridge_that_does_not_start_is_a_row_that_says_why(monkeypatch):
    monkeypatch.setattr(doctor.sys, "executable", "/bin/false")
    row = next(row for row in doctor.examine() if row["what"] == "gesture bridge")
    assert row["works"] == "no"
    assert "exit code 1" in row["found"]
