"""What works on this machine and what does not: versions, devices, execution providers, data."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from typing import Any

PACKAGES = (
    "numpy", "pandas", "pyarrow", "torch", "pytorch-lightning", "sktime", "statsmodels", "onnx", "streamlit", "tweepy",
)  # fmt: skip
EITHER = (("onnxruntime", "onnxruntime-gpu"), ("xgboost-cpu", "xgboost"))


def _row(what: str, works: str, found: str, remedy: str = "") -> dict[str, Any]:
    return {"what": what, "works": works, "found": found, "remedy": remedy}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def examine() -> list[dict[str, Any]]:
    """Rows of what, works (yes, no or absent: not needed here), found, remedy."""
    rows = [_row("python", "yes", f"{platform.python_version()} on {platform.platform()}, {os.cpu_count()} cores")]
    for package in PACKAGES:
        version = _version(package)
        rows.append(
            _row(package, "yes" if version else "no", version or "not installed", "" if version else "make install")
        )
    for either in EITHER:
        present = [f"{package} {_version(package)}" for package in either if _version(package)]
        remedy = {0: "make install", 1: ""}.get(len(present), f"uninstall one: {' and '.join(either)} share a folder")
        rows.append(
            _row(either[0].removesuffix("-cpu"), "yes" if len(present) == 1 else "no", ", ".join(present), remedy)
        )
    return [*rows, *_devices(), _data(), _store(), _broker(), *_bridge(), _chromium()]


def _devices() -> list[dict[str, Any]]:
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: one of its shared libraries does not load
        training = _row("training", "no", str(error), "make install")
        return [training, *_inference()]
    if torch.cuda.is_available():
        training = _row("training on GPU", "yes", torch.cuda.get_device_name(0))
    else:
        training = _row("training on GPU", "absent", "no GPU that PyTorch sees; training runs on the CPU")
    return [training, *_inference()]


def _inference() -> list[dict[str, Any]]:
    try:
        import onnxruntime
    except (ImportError, OSError) as error:
        return [_row("inference", "no", str(error), "make install")]
    # What is compiled in is not what is there: only devices count.
    devices = sorted({f"{device.ep_name}: {device.device.type.name}" for device in onnxruntime.get_ep_devices()})
    gpu = any("CUDA" in device for device in devices)
    return [
        _row("inference", "yes", f"onnxruntime {onnxruntime.__version__}: " + ", ".join(devices)),
        _row("inference on GPU", "yes" if gpu else "absent", "CUDA" if gpu else "no CUDA device that onnxruntime sees"),
    ]


def _data() -> dict[str, Any]:
    from data.catalog import entries

    available = sum(entry.available() for entry in entries())
    total = len(entries())
    remedy = "" if available == total else "set MNEMO_DATA_DIR to the folder of the shared data sets"
    return _row("data sets", "yes", f"{available} of {total} can be loaded", remedy)


def _store() -> dict[str, Any]:
    """Whether it opens; one that is not there yet is not made."""
    from data.store import Store, StoreError, file_of, store_url

    file = file_of(store_url())
    if file is not None and not file.exists():
        return _row("store of observations and runs", "absent", f"{file} is made when it is first used")
    try:
        store = Store()
    except StoreError as error:
        return _row("store of observations and runs", "no", str(error), "set MNEMO_STORE to the URL of one that opens")
    last = store.runs(last=1)
    store.close()
    told = f"the last run was {last[0].id}, {last[0].status}" if last else "no runs yet"
    return _row("store of observations and runs", "yes", f"{store.name}: {told}")


def _broker() -> dict[str, Any]:
    path = shutil.which("mosquitto") or shutil.which("/usr/sbin/mosquitto")
    return _row("broker of our own (MQTT)", "yes" if path else "absent", path or "no mosquitto on the PATH")


def _bridge() -> list[dict[str, Any]]:
    """What the bridge's room, which this one may not import, finds in a process of its own."""
    done = subprocess.run([sys.executable, "-m", "sensors", "doctor"], capture_output=True, text=True, check=False)
    try:
        rows: list[dict[str, Any]] = json.loads(done.stdout)
    except ValueError:
        why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return [_row("gesture bridge", "no", why, "pip install 'mnemosyne-forecast[robot]'")]
    return rows


def _chromium() -> dict[str, Any]:
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    return _row("browser for the dashboard's tests", "yes" if path else "absent", path or "no chromium on the PATH")
