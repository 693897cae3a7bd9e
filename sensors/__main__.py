"""`python -m sensors`: what `mnemo bridge` runs, and the breakfast task in simulation."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from sensors.stream import SensorError

BRIDGE = """examples:
  mnemo bridge --example > bridge.toml          a simulated hand and arm, every field explained
  mnemo bridge --config bridge.toml --dry-run   show what would be sent
  mnemo bridge --config bridge.toml --record recordings --metrics 9464
keys: a arm, d disarm, space hold, e emergency stop, c clear it, q quit; or as words, one a line, through a pipe
"""


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0 done, 1 it was going and then failed, 2 bad input."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except SensorError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)  # noqa: T201
        return 2
    except KeyboardInterrupt:
        print("interrupted.", file=sys.stderr)  # noqa: T201
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sensors", description=__doc__)
    kinds = parser.add_subparsers(required=True, metavar="COMMAND")
    bridge = kinds.add_parser(
        "bridge",
        prog="mnemo bridge",
        help="let a live stream of gestures drive a robot",
        epilog=BRIDGE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    bridge.add_argument("--config", type=Path, metavar="FILE", help="the bridge's TOML")
    bridge.add_argument("--dry-run", action="store_true", help="show what would be sent; the robot is not moved")
    bridge.add_argument("--record", type=Path, metavar="DIR", help="keep the stream as it comes, as Parquet")
    bridge.add_argument("--metrics", type=int, metavar="PORT", help="answer Prometheus on this port")
    bridge.add_argument("--example", action="store_true", help="print a configuration that runs as it is")
    bridge.set_defaults(run=_bridge)
    return parser


def _bridge(options: argparse.Namespace) -> int:
    from sensors.config import EXAMPLE, read_config
    from sensors.run import run_bridge
    from sensors.stream import SourceLost

    if options.example:
        print(EXAMPLE, end="")  # noqa: T201
        return 0
    if options.config is None:
        raise SensorError("--config is missing: `mnemo bridge --example > bridge.toml` writes one to begin with.")
    config = read_config(options.config)
    try:
        asyncio.run(run_bridge(config, dry_run=options.dry_run, record=options.record, metrics=options.metrics))
    except SourceLost as error:
        print(f"stopped: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
