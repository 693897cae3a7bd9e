"""The on-disk format of a trained model: a directory of graphs, an initial state and a card, whole or not there at all.

    step.onnx  scan.onnx     the graphs; no step.onnx where the model labels complete sequences only
    look.onnx                the step with a look inside beside the prediction; of models with a memory to look into
    state.npz                the initial state of one series; of a local model the states of the series it was fitted to
    card.json                what the model is, was trained on and was measured to do; sha256 of every file, its own too

A card of the kind `refit` (`forecasting.refit_bundle`) has no graphs and no state: it says what is to be fitted when it
forecasts. A classifier's recordings lie beside it in recordings.npz.

A bundle is written beside its place and renamed into it, and read only if every hash matches. This file knows no
graphs and runs nothing; it needs numpy and the standard library.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import io
import json
import math
import os
import shutil
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forecasting.writing import replacing, sync

SCHEMA_VERSION = 1
CARD = "card.json"
STEP, SCAN, LOOK, STATE = "step.onnx", "scan.onnx", "look.onnx", "state.npz"
RECORDINGS = "recordings.npz"
GRAPHS, REFIT = "graphs", "refit"  # the kinds of bundles; a card that names none is of the first
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


class BundleError(ValueError):
    """A bundle, or what is asked of one, is wrong; the message says which file, what is wrong and what to do."""


@dataclass(frozen=True)
class Bundle:
    """A bundle as read and verified; `files` holds everything but the card."""

    path: Path
    card: dict[str, Any]
    files: dict[str, bytes]

    @property
    def state(self) -> dict[str, NDArray[Any]]:
        """The initial state of one series, (1, ...) each.

        Of a local model those of its N fitted series, (N, ...) each, and three arrays more: `series` (N,) names them,
        `last` (N,) is the time of the last observation that each has seen, `predictions` (N, ...) what it then said.
        """
        return read_npz(self.files[STATE], self.path / STATE)


def write_bundle(path: str | os.PathLike[str], files: Mapping[str, bytes], card: dict[str, Any]) -> None:
    """Publish a bundle: afterwards `path` holds all of it, or, on any failure, what it held before.

    `schema_version` and `sha256` of the card are filled in here. A bundle that is already there is replaced; another
    directory is not, unless it is empty.
    """
    target = Path(os.path.realpath(path))
    check_replaceable(target)
    complete = seal(files, card)
    contents = {**files, CARD: json.dumps(complete, indent=2, ensure_ascii=False, allow_nan=False).encode()}
    needed = sum(map(len, contents.values()))
    beside = target.parent / f".{target.name}.{uuid.uuid4().hex}.new"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        beside.mkdir()
        for name, content in contents.items():  # the card is last
            _write_synced(beside / name, content)
        sync(beside)
        _publish(beside, target)
    except OSError as error:
        if error.errno in FULL_DISK:
            raise BundleError(
                f"{target}: the disk is full; the bundle needs {_size(needed)} and {_free(target.parent)} free. "
                "Nothing was changed; make room or write elsewhere."
            ) from error
        raise BundleError(f"{target}: cannot be written ({error.strerror or error}); nothing was changed.") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)  # the half-written new one, or the old one that was replaced


def read_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Read a bundle whole and verify it: schema version, every file, every hash."""
    place = Path(path)
    for attempt in range(3):
        before = _identity(place)
        try:
            return _read(place)
        except BundleError:
            if attempt == 2 or _identity(place) == before:
                raise  # it is wrong; otherwise it was replaced while being read
    raise AssertionError("unreachable")


def seal(files: Mapping[str, bytes], card: dict[str, Any]) -> dict[str, Any]:
    """The card with its schema version and the hash of every file, the card itself included."""
    for name in files:
        if name == CARD or name != os.path.basename(name) or name.startswith("."):
            raise BundleError(f"'{name}' cannot be a file of a bundle.")
    complete = plain(card) | {"schema_version": SCHEMA_VERSION}
    complete["sha256"] = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    complete["sha256"][CARD] = _card_hash(complete)
    return complete


def plain(value: Any) -> Any:
    """The value as JSON can hold it; numbers that are not finite become null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    return str(value)


def write_npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Arrays as the bytes of an .npz file; nothing is pickled."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **dict(arrays))
    return buffer.getvalue()


def read_npz(content: bytes, name: object) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file; `name` is what an error calls it."""
    if not content.startswith(b"PK"):  # np.load would take it for a pickle, and say how to open it unsafely
        raise BundleError(f"{name}: not a readable .npz file.")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except Exception as error:  # zipfile, zlib, struct, tokenize and more: whatever a damaged file provokes
        raise BundleError(f"{name}: not a readable .npz file of plain arrays ({error}).") from error


def write_atomic(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file whole or not at all."""
    try:
        with replacing(path) as part:
            part.write_bytes(content)
    except OSError as error:
        target = Path(os.path.realpath(path))
        raise BundleError(
            f"{target}: cannot be written ({error.strerror or error}; {_size(len(content))} needed, "
            f"{_free(target.parent)} free)."
        ) from error


def _read(place: Path) -> Bundle:
    if not place.is_dir():
        raise BundleError(f"{place}: there is no such directory; a bundle is the directory that `mnemo train` writes.")
    card = _read_card(place)
    hashes = card["sha256"]
    if card.get("kind") == REFIT:
        required = [RECORDINGS] if card["task"]["kind"] == "classify" else []
    else:
        required = [STATE, SCAN, *([STEP] if card["streams"] else [])]
    files = {}
    for name in dict.fromkeys([*required, *(name for name in hashes if name != CARD)]):
        if name not in hashes:
            raise BundleError(f"{place / CARD}: holds no sha256 of {name}; write the bundle again.")
        if name != os.path.basename(name):
            raise BundleError(f"{place / CARD}: '{name}' is not the name of a file in the bundle.")
        try:
            files[name] = (place / name).read_bytes()
        except FileNotFoundError:
            raise BundleError(f"{place / name}: the file is missing; copy the whole bundle again.") from None
        except OSError as error:
            raise BundleError(f"{place / name}: cannot be read ({error.strerror}).") from error
        found = hashlib.sha256(files[name]).hexdigest()
        if found != hashes[name]:
            raise BundleError(
                f"{place / name}: the file was changed since the bundle was written (sha256 {found[:12]}…, "
                f"the card says {str(hashes[name])[:12]}…). Copy the bundle again or export it again."
            )
    return Bundle(place, card, files)


def _read_card(place: Path) -> dict[str, Any]:
    where = place / CARD
    try:
        card = json.loads(where.read_bytes())
    except FileNotFoundError:
        raise BundleError(f"{where}: the file is missing, so {place} is not a bundle.") from None
    except OSError as error:
        raise BundleError(f"{where}: cannot be read ({error.strerror}).") from error
    except ValueError as error:  # JSON and UTF-8 errors
        raise BundleError(f"{where}: is not readable JSON ({error}). Copy the bundle again.") from error
    version = card.get("schema_version") if isinstance(card, dict) else None
    if not isinstance(version, int) or version < 1:
        raise BundleError(f"{where}: has no schema_version, so it is not the card of a bundle.")
    if version > SCHEMA_VERSION:
        raise BundleError(
            f"{where}: schema version {version}; this program reads up to version {SCHEMA_VERSION}. "
            "Upgrade mnemosyne-forecast to load it."
        )
    if card.get("kind", GRAPHS) not in (GRAPHS, REFIT):
        raise BundleError(
            f"{where}: a bundle of the kind '{card['kind']}'; this program knows {GRAPHS} and {REFIT}. "
            "Upgrade mnemosyne-forecast to load it."
        )
    missing = [key for key in ("name", "task", "streams", "sha256") if key not in card]
    if missing:
        raise BundleError(f"{where}: has no {', '.join(missing)}; write the bundle again.")
    if not isinstance(card["sha256"], dict) or card["sha256"].get(CARD) != _card_hash(card):
        raise BundleError(
            f"{where}: the card was changed since the bundle was written (its sha256 does not match). "
            "Copy the bundle again or export it again."
        )
    return card


def _card_hash(card: dict[str, Any]) -> str:
    """Of everything in the card but this hash, however the JSON is laid out."""
    hashes = {name: value for name, value in card["sha256"].items() if name != CARD}
    text = json.dumps(card | {"sha256": hashes}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def check_replaceable(target: Path) -> None:
    """Raise BundleError where something that is not a bundle would be overwritten."""
    if not target.exists():
        return
    if not target.is_dir():
        raise BundleError(f"{target}: is a file; a bundle is a directory. Choose another name.")
    if not (target / CARD).is_file() and any(target.iterdir()):
        raise BundleError(f"{target}: holds files that are not a bundle, so it is not replaced. Choose another name.")


def _publish(beside: Path, target: Path) -> None:
    """Put `beside` in the place of `target`; what was there is left at `beside`."""
    if not target.exists():
        beside.rename(target)
    elif not _exchange(beside, target):
        old = beside.with_suffix(".old")  # no exchange on this system: the place is empty for a moment
        target.rename(old)
        try:
            beside.rename(target)
        except BaseException:
            old.rename(target)
            raise
        old.rename(beside)
    sync(target.parent)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two directories in one step, so that no reader finds none; False where the system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    return renameat2(AT_FDCWD, os.fsencode(a), AT_FDCWD, os.fsencode(b), RENAME_EXCHANGE) == 0


def _write_synced(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    sync(path)


def _identity(place: Path) -> tuple[int, int] | None:
    with contextlib.suppress(OSError):
        status = place.stat()
        return status.st_dev, status.st_ino
    return None


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def _free(directory: Path) -> str:
    try:
        return _size(shutil.disk_usage(directory).free)
    except OSError:
        return "an unknown amount"
