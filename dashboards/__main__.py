"""`python -m dashboards`: serve the dashboard of a folder of results on this machine only."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from pathlib import Path
from typing import NoReturn

from dashboards import FOLDER

APP = Path(__file__).with_name("app.py")
HOST = "localhost"
EXAMPLES = """examples:
  python -m dashboards                        the results in out/
  python -m dashboards --out runs --port 8600
  python -m dashboards --headless             opens no browser; the address is printed
"""


def main(arguments: list[str] | None = None) -> NoReturn:
    """Check that there is something to show, then become Streamlit's server."""
    options = _parse(arguments)
    _check(options.out, options.port)
    os.environ[FOLDER] = str(options.out.resolve())
    os.execv(sys.executable, [sys.executable, "-m", "streamlit", "run", str(APP), *_flags(options)])


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="mnemo dashboard",
        description="Show forecasts, leaderboards and a live stream in the browser.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help="folder of results (default: out)")
    parser.add_argument("--port", type=int, metavar="P", help="default: 8501, or the next one that is free")
    parser.add_argument("--headless", action="store_true", help="do not open a browser")
    return parser.parse_args(arguments)


def _check(folder: Path, port: int | None) -> None:
    from forecasting.results import find_results

    broken: list[str] = []
    if not find_results(folder, broken):
        _refuse(
            "\n".join(broken)
            or f"{folder}: no results. `mnemo demo --out {folder}` or `mnemo backtest ... --out {folder / 'NAME'}` "
            "puts some there."
        )
    for said in broken:
        sys.stderr.write(f"error: {said}\n")
    if port is None:
        return
    if not 1 <= port <= 65535:
        _refuse(f"--port {port}: a port lies between 1 and 65535.")
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, port))
    except OSError as error:
        _refuse(f"--port {port}: cannot be used ({error.strerror or error}); give another one, or none.")


def _refuse(message: str) -> NoReturn:
    sys.stderr.write(f"error: {message}\n")
    raise SystemExit(2)


def _flags(options: argparse.Namespace) -> list[str]:
    flags = {
        "server.address": HOST,
        "server.headless": "true" if options.headless else "false",
        "server.showEmailPrompt": "false",  # the first page of a new machine would wait for an address to be typed
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "minimal",
        "client.showErrorDetails": "none",  # a traceback is for the log, not for the page
        "logger.level": "error",
        "theme.light.primaryColor": "#0072b2",
        "theme.dark.primaryColor": "#56b4e9",
    }
    if options.port is not None:
        flags["server.port"] = str(options.port)
    return [f"--{name}={value}" for name, value in flags.items()]


if __name__ == "__main__":
    main()
