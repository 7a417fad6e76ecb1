"""The Job that watches a generation drain: `python -m components.promote_generation SECONDS ADDRESS…`.

Its last line is `{"running": requests still running or queued, "seconds": time it took}`.
"""

from __future__ import annotations

import argparse
import json
import time

from serving.clients import engine

_QUIET_LOOKS = 4
"""Looks in a row that must find nothing: a Service's change takes a moment to reach every node."""


def drain(addresses: list[str], seconds: float, *, look_every: float = 0.5) -> dict[str, float]:
    """Looks until nothing runs or `seconds` have passed. Raises SystemExit, with why, when it cannot see by then."""
    started, quiet, running, blind = time.monotonic(), 0, 0, ""
    with engine.direct() as client:
        while quiet < _QUIET_LOOKS and time.monotonic() - started < seconds:
            try:
                running, blind = sum(engine.unfinished(client, address) for address in addresses), ""
            except engine.BadAnswer as error:
                blind = str(error)
            quiet = 0 if running or blind else quiet + 1
            if running or blind:
                print(blind or f"{running} requests still running", flush=True)
            time.sleep(look_every)  # vLLM's metrics can only be asked, not watched.
    if blind:
        raise SystemExit(blind)
    return {"running": running, "seconds": round(time.monotonic() - started, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Watch servers until they run no request.")
    parser.add_argument("seconds", type=float, help="how long at most")
    parser.add_argument("addresses", nargs="+", help="pod addresses")
    options = parser.parse_args()
    print(json.dumps(drain(options.addresses, options.seconds)), flush=True)


if __name__ == "__main__":
    main()
