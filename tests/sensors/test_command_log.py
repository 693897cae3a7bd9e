import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from sensors.command_log import CommandLog, read_log
from sensors.stream import SensorError

WRITER = """
import sys, time
from pathlib import Path
from sensors.command_log import CommandLog
with CommandLog(Path(sys.argv[1])) as log:
    for number in range(10**9):
        log.write({"what": "command", "sequence": number, "padding": "x" * 200})
        if number == 200:
            print("go", flush=True)
        time.sleep(0.0005)
"""


def commands(records):
    return [record["sequence"] for record in records if record["what"] == "command"]


def test_a_process_that_is_killed_leaves_a_log_that_can_be_read_and_continued(tmp_path):
    path = tmp_path / "log.jsonl"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"go\n"
        while path.read_bytes().count(b"\n") < 100:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    with path.open("a") as file:
        file.write('{"what": "comm')  # whatever the disk had of the last line
    with CommandLog(path) as log:
        log.write({"what": "command", "sequence": 0, "twist": np.arange(6.0)})
    records = read_log(path)
    assert [record["what"] for record in records].count("open") == 2
    *first, last = commands(records)
    assert len(first) >= 90
    assert first == list(range(len(first)))
    assert last == 0
    assert records[-1]["twist"] == [0, 1, 2, 3, 4, 5]


def test_what_finds_no_room_is_dropped_and_the_log_says_how_much(tmp_path):
    log = CommandLog(tmp_path / "log.jsonl", room=10)
    for number in range(30):
        log.write({"what": "command", "sequence": number})
    assert log.dropped == 20
    log.open()
    log.close()
    records = read_log(log.path)
    assert commands(records) == list(range(10))
    assert [record["count"] for record in records if record["what"] == "dropped"] == [21]  # and its own opening


def test_a_disk_that_fails_is_told_and_what_comes_then_is_counted(tmp_path, monkeypatch):
    def fail(_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", fail)
    log = CommandLog(tmp_path / "log.jsonl")
    log.open()
    log.close()
    log.write({"what": "command"})
    assert "no space left" in log.failure
    assert log.dropped == 1


def test_a_disk_that_is_full_ends_no_bridge_with_a_traceback(tmp_path):
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    with CommandLog(tmp_path / "log.jsonl") as log:
        log.write({"what": "command"})
    assert "No space left" in log.failure


def test_a_record_that_cannot_be_written_is_told_as_a_disk_that_fails_is(tmp_path):
    with CommandLog(tmp_path / "log.jsonl") as log:
        log.write({"what": "command", ("no", "name"): 1})
    assert "keys must be str" in log.failure


def test_a_log_that_cannot_be_written_is_refused_by_name(tmp_path):
    with pytest.raises(SensorError, match=r"folder.*cannot be written"):
        CommandLog(tmp_path / "no" / "folder").open()


def test_a_file_that_is_not_a_log_is_refused_by_its_line(tmp_path):
    path = tmp_path / "other"
    path.write_text(json.dumps({"what": "open"}) + "\nhello\n" + json.dumps({"what": "command"}) + "\n")
    with pytest.raises(SensorError, match="line 2"):
        read_log(path)
