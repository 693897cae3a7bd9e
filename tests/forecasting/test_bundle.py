import ctypes
import errno
import io
import json
import os
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest

from forecasting import bundle as bundles
from forecasting.bundle import BundleError, read_bundle, write_bundle, write_npz

CARD = {"name": "gru", "task": {"kind": "forecast"}, "streams": True}


def files_of(version: int, size: int = 1000) -> dict[str, bytes]:
    return {
        "step.onnx": bytes([version]) * size,
        "scan.onnx": bytes([version]) * size,
        "state.npz": write_npz({"h": np.full((1, 4), version, np.float32)}),
    }


def write(path: Path, version: int = 1, size: int = 1000) -> None:
    write_bundle(path, files_of(version, size), {**CARD, "version": version})


def version_of(path: Path) -> int:
    found = read_bundle(path)
    assert found.files["step.onnx"][0] == found.state["h"][0, 0] == found.card["version"]
    return found.card["version"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write(tmp_path / "aapl")
    return tmp_path / "aapl"


def only_the_bundle_is_left(place: Path) -> bool:
    return [entry.name for entry in place.parent.iterdir()] == [place.name]


def test_what_was_written_is_read(place):
    found = read_bundle(place)
    assert found.files == files_of(1)
    assert found.card["schema_version"] == 1
    assert found.state["h"].tolist() == [[1, 1, 1, 1]]


def test_a_card_keeps_plain_values_and_says_null_where_a_number_is_not_finite(tmp_path):
    metrics = [{"mase": np.float32(0.5), "dm_p_value": float("nan"), "n": np.int64(3), "q": (0.1, 0.9)}]
    write_bundle(tmp_path / "b", files_of(1), {**CARD, "metrics": metrics})
    assert read_bundle(tmp_path / "b").card["metrics"] == [{"mase": 0.5, "dm_p_value": None, "n": 3, "q": [0.1, 0.9]}]


@pytest.mark.parametrize("name", ["step.onnx", "scan.onnx", "state.npz"])
def test_a_changed_byte_is_refused_and_its_file_named(place, name):
    content = bytearray((place / name).read_bytes())
    content[len(content) // 2] ^= 1
    (place / name).write_bytes(content)
    with pytest.raises(BundleError, match=rf"{name}: the file was changed .* export it again"):
        read_bundle(place)


def test_a_changed_card_is_refused(place):
    text = (place / "card.json").read_text()
    (place / "card.json").write_text(text.replace('"gru"', '"lstm"'))
    with pytest.raises(BundleError, match=r"card\.json: the card was changed"):
        read_bundle(place)


def test_a_card_that_was_only_laid_out_anew_is_accepted(place):
    card = json.loads((place / "card.json").read_text())
    (place / "card.json").write_text(json.dumps(card, sort_keys=True))
    assert version_of(place) == 1


@pytest.mark.parametrize("name", ["step.onnx", "scan.onnx", "state.npz", "card.json"])
def test_a_missing_file_is_named(place, name):
    (place / name).unlink()
    with pytest.raises(BundleError, match=rf"{name}: the file is missing"):
        read_bundle(place)


def test_a_newer_schema_says_what_this_program_reads(place):
    card = json.loads((place / "card.json").read_text())
    (place / "card.json").write_text(json.dumps(card | {"schema_version": 7}))
    with pytest.raises(BundleError, match=r"schema version 7; this program reads up to version 1\. Upgrade"):
        read_bundle(place)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"schema_version": "1"}', "\x00"])
def test_an_unreadable_card_is_an_error_of_the_bundle(place, text):
    (place / "card.json").write_text(text)
    with pytest.raises(BundleError, match=r"card\.json"):
        read_bundle(place)


def test_no_directory_is_an_error_that_says_what_a_bundle_is(tmp_path):
    with pytest.raises(BundleError, match="no such directory"):
        read_bundle(tmp_path / "none")


def test_a_state_of_pickled_objects_is_refused(tmp_path):
    pickled = io.BytesIO()
    np.savez(pickled, h=np.array([{"a": 1}], dtype=object), allow_pickle=True)
    write_bundle(tmp_path / "b", {**files_of(1), "state.npz": pickled.getvalue()}, CARD)
    with pytest.raises(BundleError, match=r"state\.npz: not a readable \.npz"):
        _ = read_bundle(tmp_path / "b").state


def test_a_bundle_is_replaced_and_nothing_is_left_beside_it(place):
    write(place, 2)
    assert version_of(place) == 2
    assert only_the_bundle_is_left(place)


def test_a_link_to_a_bundle_stays_a_link(place, tmp_path):
    (tmp_path / "champion").symlink_to(place)
    write(tmp_path / "champion", 2)
    assert (tmp_path / "champion").is_symlink()
    assert version_of(place) == 2


def test_an_empty_directory_may_become_a_bundle(tmp_path):
    (tmp_path / "b").mkdir()
    write(tmp_path / "b")
    assert version_of(tmp_path / "b") == 1


def test_a_directory_that_is_no_bundle_is_not_replaced(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("years of work")
    with pytest.raises(BundleError, match="not a bundle, so it is not replaced"):
        write(tmp_path / "notes")
    assert (tmp_path / "notes" / "thesis.txt").read_text() == "years of work"


def test_a_file_is_not_replaced(tmp_path):
    (tmp_path / "b").write_text("")
    with pytest.raises(BundleError, match="is a file"):
        write(tmp_path / "b")


def failing(monkeypatch, error: BaseException, after: int) -> None:
    """Let the write after so many files fail half-way."""
    real, done = bundles._write_synced, []

    def write_some(path: Path, content: bytes) -> None:
        if len(done) == after:
            path.write_bytes(content[: len(content) // 2])
            raise error
        done.append(path)
        real(path, content)

    monkeypatch.setattr(bundles, "_write_synced", write_some)


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_full_disk_leaves_the_old_bundle_and_says_how_much_was_needed(place, monkeypatch, after):
    failing(monkeypatch, OSError(errno.ENOSPC, "No space left on device"), after)
    with pytest.raises(BundleError, match=r"the disk is full; the bundle needs \d+\.\d MB and .* free"):
        write(place, 2, size=1_000_000)
    assert version_of(place) == 1
    assert only_the_bundle_is_left(place)


@pytest.mark.parametrize("after", [0, 1, 3])
def test_an_interruption_leaves_the_old_bundle(place, monkeypatch, after):
    failing(monkeypatch, KeyboardInterrupt(), after)
    with pytest.raises(KeyboardInterrupt):
        write(place, 2)
    assert version_of(place) == 1
    assert only_the_bundle_is_left(place)


def test_a_failure_without_an_old_bundle_leaves_nothing(tmp_path, monkeypatch):
    failing(monkeypatch, OSError(errno.EIO, "Input/output error"), 2)
    with pytest.raises(BundleError, match="Input/output error"):
        write(tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_really_full_leaves_the_old_bundle(tmp_path):
    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"mounting is not permitted here: {mounted.stderr.decode().strip()}")
    try:
        write(disk / "b", 1)
        with pytest.raises(BundleError, match="the disk is full"):
            write(disk / "b", 2, size=1_000_000)
        assert version_of(disk / "b") == 1
        assert only_the_bundle_is_left(disk / "b")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture
def without_exchange(monkeypatch):
    monkeypatch.setattr(bundles, "_exchange", lambda a, b: False)


def test_without_exchange_a_bundle_is_replaced_too(place, without_exchange):
    write(place, 2)
    assert version_of(place) == 2
    assert only_the_bundle_is_left(place)


def test_without_exchange_the_old_bundle_is_put_back_if_the_new_cannot_take_its_place(
    place, without_exchange, monkeypatch
):
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.suffix == ".new":
            raise OSError(errno.EIO, "Input/output error")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(BundleError, match="nothing was changed"):
        write(place, 2)
    assert version_of(place) == 1
    assert only_the_bundle_is_left(place)


def test_a_reader_always_finds_one_whole_bundle_while_it_is_being_replaced(place):
    if not hasattr(ctypes.CDLL(None), "renameat2"):
        pytest.skip("this system cannot exchange two directories in one step")
    stop, errors = threading.Event(), []

    def replace() -> None:
        version = 1
        while not stop.is_set():
            version = 3 - version
            try:
                write(place, version)
            except Exception as error:
                errors.append(error)
                return

    writer = threading.Thread(target=replace)
    writer.start()
    try:
        seen = {version_of(place) for _ in range(300)}
    finally:
        stop.set()
        writer.join()
    assert not errors
    assert seen <= {1, 2}


def test_a_copied_bundle_is_still_whole(place, tmp_path):
    shutil.copytree(place, tmp_path / "copy")
    assert version_of(tmp_path / "copy") == 1
