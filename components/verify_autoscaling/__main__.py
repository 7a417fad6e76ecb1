"""The Job that lets a server's queue grow: `python -m components.verify_autoscaling PLAN`.

It goes on until it is told to end. It ends by itself when nothing that it may do makes requests wait; then its last
line is what it saw (load.press).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
from typing import Any

from components.verify_autoscaling.load import Plan, press
from serving import names


async def _until_told(plan: Plan) -> dict[str, Any]:
    """What `press` returns; nothing when it was told to end. (A container's first process has to listen for that.)"""
    pressing = asyncio.create_task(
        press(plan, os.environ.get(names.API_KEY_VARIABLE), lambda line: print(line, flush=True))
    )
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, pressing.cancel)
    try:
        return await pressing
    except asyncio.CancelledError:
        return {}


def main() -> None:
    parser = argparse.ArgumentParser(description="Ask a server more than it can run at once.")
    parser.add_argument("plan", type=Plan.model_validate_json, help="what to ask, as JSON (load.Plan)")
    options = parser.parse_args()
    print(json.dumps(asyncio.run(_until_told(options.plan))), flush=True)


if __name__ == "__main__":
    main()
