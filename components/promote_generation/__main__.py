"""The Jobs of a promotion, each of whose last line is its result, one JSON object.

`python -m components.promote_generation drain SECONDS SETTLE ADDRESS…` watches a generation finish what it still runs:
`{"running": requests still running or queued, "seconds": time it took}`.

`python -m components.promote_generation compare PLAN` compares two generations that both serve (compare.py).
"""

from __future__ import annotations

import argparse
import json
import math
import time

from components.promote_generation.compare import compare
from components.promote_generation.plan import Plan
from serving.clients import engine

_QUIET_LOOKS = 4
"""Looks in a row that must find nothing: a Service's change takes a moment to reach every node."""
_SAY_EVERY_SECONDS = 5.0


def drain(addresses: list[str], seconds: float, *, settle: float = 0, look_every: float = 0.5) -> dict[str, float]:
    """Looks until nothing has run for a while, or `seconds` have passed; `settle`: seconds in which a load balancer may
    still send requests. Raises SystemExit, with why, when it cannot see by then."""
    started, running, blind = time.monotonic(), 0, ""
    quiet_since, quiet_looks, said_at = started, 0, -math.inf
    with engine.direct() as client:
        while (now := time.monotonic()) - started < seconds:
            if quiet_looks >= _QUIET_LOOKS and now - quiet_since >= settle:
                break
            try:
                running, blind = sum(engine.unfinished(client, address) for address in addresses), ""
            except engine.BadAnswer as error:
                blind = str(error)
            quiet_looks = 0 if running or blind else quiet_looks + 1
            if running or blind:
                quiet_since = time.monotonic()
                if quiet_since - said_at >= _SAY_EVERY_SECONDS:
                    print(blind or f"{running} requests still running", flush=True)
                    said_at = quiet_since
            time.sleep(look_every)  # vLLM's metrics can only be asked, not watched.
    if blind:
        raise SystemExit(blind)
    return {"running": running, "seconds": round(time.monotonic() - started, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Watch the generations of a promotion.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    draining = verbs.add_parser("drain", help="until servers run no request")
    draining.add_argument("seconds", type=float, help="how long at most")
    draining.add_argument("settle", type=float, help="seconds in which a load balancer may still send requests")
    draining.add_argument("addresses", nargs="+", help="pod addresses")
    comparing = verbs.add_parser("compare", help="until a step of a canary is over")
    comparing.add_argument("plan", help="JSON, see compare.py")
    options = parser.parse_args()
    if options.verb == "drain":
        result = drain(options.addresses, options.seconds, settle=options.settle)
    else:
        result = compare(Plan.model_validate_json(options.plan), say=lambda line: print(line, flush=True))
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
