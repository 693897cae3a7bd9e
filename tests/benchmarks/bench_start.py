"""How long the command takes to start, and what an import brings in. Targets: 0.5 s; neither torch nor pandas."""

from __future__ import annotations

import subprocess
import sys

from figures import machine, median_s

WATCHED = ("torch", "pandas", "onnxruntime", "numpy", "pytorch_lightning", "sktime", "streamlit")


def imported(statement: str) -> list[str]:
    code = f"{statement}\nimport sys\nprint(*[name for name in {WATCHED!r} if name in sys.modules])"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def main() -> None:
    print(machine())
    for command in (["--help"], ["backtest", "--help"]):
        whole = [sys.executable, "-m", "forecasting.cli", *command]
        seconds = median_s(lambda whole=whole: subprocess.run(whole, capture_output=True, check=True), 15)  # type: ignore[misc]
        print(f"mnemo {' '.join(command)}: {seconds:.3f} s, median of 15")
    for statement in ("import forecasting", "from forecasting import load_bundle"):
        print(f"{statement}: brings in {', '.join(imported(statement)) or 'none of ' + ', '.join(WATCHED)}")


if __name__ == "__main__":
    main()
