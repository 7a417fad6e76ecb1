"""The Job that validates a server: `python -m components.validate_server PLAN`.

Its last line is the verdict (checks.verdict). A server that fails is a verdict, exit code 0.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os

from components.validate_server.checks import Plan, verdict
from serving import names


def main() -> None:
    parser = argparse.ArgumentParser(description="Judge a server that should serve one model.")
    parser.add_argument("plan", type=Plan.model_validate_json, help="what to ask, as JSON (checks.Plan)")
    options = parser.parse_args()

    def say(line: str) -> None:
        print(line, flush=True)

    result = asyncio.run(verdict(options.plan, os.environ.get(names.API_KEY_VARIABLE), say))
    # ASCII: many a reader of logs takes U+2028 for a line's end.
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
