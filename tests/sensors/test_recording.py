"""Streams that are kept, whatever becomes of the process."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pyarrow.parquet as pq
import pytest

from data.catalog import load
from data.frame import Channel
from sensors.__main__ import main as command
from sensors.recording import Recorder, main, merge_segments, read_recording, segments_folder
from sensors.stream import SensorError, StreamInfo

INFO = StreamInfo("glove", (Channel("bend", "deg", 0.0, 90.0), Channel("twist", "")), rate_hz=100.0)
CHILD = """
import sys, time
from pathlib import Path
from sensors.recording import Recorder
from tests.sensors.test_recording import INFO
with Recorder(Path(sys.argv[1]), INFO) as recorder:
    for index in range(10**6):
        recorder.append(INFO.frame(index / 100, time.monotonic(), [index % 90, -index]))
        time.sleep(0.002)
"""


def test_both_clocks_values_masks_and_channels_come_back(tmp_path):
    path = tmp_path / "new" / "take.parquet"
    with Recorder(path, INFO) as recorder:
        recorder.append(INFO.frame(3.0, 100.0, [10, 1.5]))
        recorder.append(INFO.frame(float("nan"), 100.25, [91, 2.5]))
        recorder.append(INFO.frame(3.5, 100.5, [np.nan, 3.5]))
    assert os.listdir(path.parent) == ["take.parquet"]
    back = read_recording(path)
    assert back.info == INFO
    assert np.array_equal(back.times, [3.0, np.nan, 3.5], equal_nan=True)
    assert back.pace.tolist() == [0, 0.25, 0.5]
    assert np.array_equal(back.values, [[10, 1.5], [np.nan, 2.5], [np.nan, 3.5]], equal_nan=True)
    assert pq.read_table(path)["received"].to_pylist() == [100.0, 100.25, 100.5]


def test_a_recording_is_a_table_of_the_long_format(tmp_path):
    with Recorder(tmp_path / "take.parquet", INFO) as recorder:
        for index in range(5):
            recorder.append(INFO.frame(index / 100, index, [index, index]))
    frame = load(str(tmp_path / "take.parquet"), target="twist").frame
    assert frame["unique_id"].unique().tolist() == ["glove"]
    assert frame["y"].tolist() == [0, 1, 2, 3, 4]


def test_what_a_killed_process_recorded_is_there_but_for_its_last_second(tmp_path):
    path = tmp_path / "take.parquet"
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(path)])
    try:
        end = time.monotonic() + 20
        while not list(segments_folder(path).glob("*.parquet")):
            assert time.monotonic() < end, "no segment within 20 s"
            time.sleep(0.005)
        time.sleep(1.2)
    finally:
        child.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        child.wait()
    assert not path.exists()
    broken = read_recording(path)
    received = pq.read_table(sorted(segments_folder(path).glob("*.parquet"))[-1])["received"].to_numpy()
    assert killed - received[-1] < 1.0
    assert np.array_equal(broken.values[:, 1], -np.arange(len(broken.values)))  # and nothing else is missing
    (segments_folder(path) / "00000099.part").write_bytes(b"half of a segment")
    with pytest.raises(SensorError, match="merge it"):
        Recorder(path, INFO).start()
    merge_segments(path)
    assert os.listdir(tmp_path) == ["take.parquet"]
    whole = read_recording(path)
    assert np.array_equal(whole.values, broken.values)
    assert whole.info == INFO


def test_segments_are_merged_by_the_command(tmp_path, capsys):
    path = tmp_path / "take.parquet"
    recorder = Recorder(path, INFO)
    recorder.start()
    recorder.append(INFO.frame(0.0, 1.0, [1, 2]))
    end = time.monotonic() + 10
    while not list(segments_folder(path).glob("*.parquet")):
        assert time.monotonic() < end
        time.sleep(0.01)
    with pytest.raises(SystemExit, match=r"take\.parquet: is being recorded or merged; wait"):
        main([str(path)])
    with pytest.raises(SensorError, match=r"take\.parquet: is being recorded or merged; wait"):
        Recorder(path, INFO).start()
    broken = tmp_path / "broken.parquet"  # as a crash leaves it
    shutil.copytree(segments_folder(path), segments_folder(broken))
    main([str(broken)])
    assert capsys.readouterr().out == f"wrote {broken}\n"
    recorder.append(INFO.frame(0.01, 1.01, [1, 2]))
    recorder.finish()
    assert len(read_recording(broken).times) == 1
    assert len(read_recording(path).times) == 2
    with pytest.raises(SystemExit, match=r"take\.parquet: is whole, for no segments of it are left"):
        main([str(path)])
    with pytest.raises(SystemExit, match="no recording of this name"):
        main([str(tmp_path / "other.parquet")])


def config(folder, source):
    path = folder / "source.toml"
    path.write_text("[source]\n" + source)
    return str(path)


def replayed(folder, frames, loop=False):
    """A configuration whose source is a recording of so many frames, at its own pace."""
    with Recorder(folder / "first.parquet", INFO) as recorder:
        for t in range(frames):
            recorder.append(INFO.frame(t / INFO.rate_hz, t / INFO.rate_hz, [t, 2]))
    return config(folder, f'uri = "replay:first.parquet"\nloop = {str(loop).lower()}\n')


def test_a_source_is_recorded_by_the_command_until_it_ends(tmp_path, capsys):
    path = replayed(tmp_path, 5)
    assert command(["record", "--config", path, "--out", str(tmp_path / "take.parquet")]) == 0
    assert "take.parquet: 5 frames of" in capsys.readouterr().out
    np.testing.assert_array_equal(read_recording(tmp_path / "take.parquet").values[:, 0], range(5))


def test_a_source_without_end_is_recorded_for_a_time_or_until_a_signal(tmp_path, capsys):
    path = replayed(tmp_path, 5, loop=True)
    assert command(["record", "--config", path, "--out", str(tmp_path / "take.parquet"), "--seconds", "0.3"]) == 0
    assert len(read_recording(tmp_path / "take.parquet").values) > 5
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    assert command(["record", "--config", path, "--out", str(tmp_path / "other.parquet")]) == 0
    assert len(read_recording(tmp_path / "other.parquet").values) > 5


@pytest.mark.parametrize(
    ("source", "more", "message"),
    [
        ('uri = "mqtt://127.0.0.1:9/glove"\nrate_hz = 50', [], "source.toml: mqtt://127.0.0.1:9/glove: lacks channels"),
        ('uri = "replay:nothing"', [], "source.toml: "),
        ('uri = "replay:gestures_demo"', ["--seconds", "-1"], "--seconds is -1"),
        ('uri = "serial:/dev/nothing"\nrate_hz = 9\nchannels = [{name = "a", unit = ""}]', [], "cannot be opened at"),
    ],
)
def test_a_source_that_cannot_be_recorded_is_refused(tmp_path, capsys, source, more, message):
    assert command(["record", "--config", config(tmp_path, source), "--out", str(tmp_path / "x.parquet"), *more]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x.parquet").exists()


def test_a_disk_that_takes_no_more_is_told_to_whoever_appends(tmp_path):
    path = tmp_path / "take.parquet"
    recorder = Recorder(path, INFO)
    recorder.start()
    segments_folder(path).rmdir()

    def until_refused() -> None:
        end = time.monotonic() + 10
        while time.monotonic() < end:
            recorder.append(INFO.frame(0.0, 1.0, [1, 2]))
            time.sleep(0.01)

    with pytest.raises(SensorError, match="cannot be written any more"):
        until_refused()
    with pytest.raises(SensorError, match="could not be written"):
        recorder.finish()


def test_a_recording_without_frames_is_whole_and_says_so(tmp_path):
    with Recorder(tmp_path / "take.parquet", INFO):
        pass
    with pytest.raises(SensorError, match="holds no frame"):
        read_recording(tmp_path / "take.parquet")


def test_a_recording_that_broke_off_before_its_first_segment_is_in_nobodys_way(tmp_path):
    segments_folder(tmp_path / "take.parquet").mkdir()
    with Recorder(tmp_path / "take.parquet", INFO) as recorder:
        recorder.append(INFO.frame(0.0, 1.0, [1, 2]))
    assert len(read_recording(tmp_path / "take.parquet").times) == 1


def test_nothing_is_written_over(tmp_path):
    (tmp_path / "take.parquet").write_text("precious")
    with pytest.raises(SensorError, match="is there already"):
        Recorder(tmp_path / "take.parquet", INFO).start()
    with pytest.raises(SensorError, match=r"ends with \.parquet"):
        Recorder(tmp_path / "take.csv", INFO).start()
    with pytest.raises(SensorError, match="two columns would have the name received"):
        Recorder(tmp_path / "other.parquet", StreamInfo("a", (Channel("received", ""),), 1.0)).start()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SensorError, match=r"take.parquet.*cannot be written here"):
        Recorder(tmp_path / "file" / "take.parquet", INFO).start()


def test_another_file_is_no_recording(tmp_path):
    pq.write_table(pq.read_table(_ordinary(tmp_path)), tmp_path / "table.parquet")
    with pytest.raises(SensorError, match="metadata are not those of a recording"):
        read_recording(tmp_path / "table.parquet")


def _ordinary(folder):
    import pandas as pd

    pd.DataFrame({"received": [1.0]}).to_parquet(folder / "ordinary.parquet")
    return folder / "ordinary.parquet"
