"""`python -m emulated_cloud.real build [PART…]` and `status`: the real parts (control-plane with
its snapshot-controller, gcsfuse, gateway, vllm)."""

from __future__ import annotations

import argparse
import signal
import sys
import time

from emulated_cloud.real.building import Progress, build
from emulated_cloud.real.parts import PARTS, RealPartError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m emulated_cloud.real", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    building = commands.add_parser("build", help="build what is not built")
    building.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all of them if none is given")
    commands.add_parser("status", help="which parts are built, and whether they can run here")
    options = parser.parse_args()
    if options.command == "status":
        return status()
    for name in options.parts:
        if name not in PARTS:
            parser.error(f"there is no real part {name!r}; there are: {', '.join(PARTS)}")
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    return build_all(options.parts or list(PARTS))


def build_all(names: list[str]) -> int:
    """Every part that can be built is; the exit code says whether all were."""
    say, failed, begun = Progress(), False, time.monotonic()
    for name in names:
        try:
            if not build(PARTS[name], say):
                say.line(f"{name}: built already")
        except RealPartError as error:
            say.line(str(error))
            failed = True
        except KeyboardInterrupt:
            say.line(f"{name}: interrupted; nothing half-built is left")
            return 130
    say.line(f"{'failed' if failed else 'done'} after {time.monotonic() - begun:.1f} s")
    return int(failed)


def status() -> int:
    for part in PARTS.values():
        obstacles = "; ".join(part.obstacles())
        print(f"{part.name:20} {part.state:12} {f'cannot run here: {obstacles}' if obstacles else part.what}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
