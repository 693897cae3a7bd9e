"""Where the files of the named data sets lie.

Embedded sets lie inside installed packages. The shared ones are not ours to redistribute: the environment variable
MNEMO_DATA_DIR names the folder that holds them.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from data.frame import FrameError

DATA_DIR = "MNEMO_DATA_DIR"


def shared_folder() -> Path | None:
    """The folder of MNEMO_DATA_DIR, None when it is not set."""
    value = os.environ.get(DATA_DIR, "").strip()
    return Path(value).expanduser() if value else None


def shared_file(relative: str, origin: str) -> Path:
    """The path of one shared file.

    Args:
        relative: path below the folder, such as "ltsf/ETTh1.csv.gz".
        origin: where the data come from and how to cite them, for the message.

    Raises:
        FrameError: the variable is not set, or the file is not there.
    """
    folder = shared_folder()
    if folder is None:
        raise FrameError(
            f"{relative}: the environment variable {DATA_DIR} is not set. "
            f"Set it to the folder that holds {relative}. Origin: {origin}"
        )
    path = folder / relative
    if not path.is_file():
        raise FrameError(f"{relative}: no file {path} ({DATA_DIR} is {folder}). Put it there. Origin: {origin}")
    return path


def package_file(relative: str) -> Path | None:
    """The path of a file inside an installed package, such as "arch/data/sp500/sp500.csv.gz"; None without the package.

    The package is found, not imported: importing some of them takes seconds.
    """
    package, _, inside = relative.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / inside
