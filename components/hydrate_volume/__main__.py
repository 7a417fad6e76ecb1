"""The Jobs of a volume: `python -m components.hydrate_volume copy PLAN` writes it, `… verify PLAN` reads it.

The last line is the result (copying.copy, reading.verify). Wrong bytes on a disk are a verdict, exit code 0; what
stands in the way (no access, no room, a disk that fails) ends with exit code 1 and says what to do.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys

from components.hydrate_volume import volume
from components.hydrate_volume.copying import copy
from components.hydrate_volume.reading import verify
from components.hydrate_volume.volume import Plan
from serving.clients import patience
from serving.errors import PipelineError


def main() -> None:
    parser = argparse.ArgumentParser(description="Copy a model onto a volume, or read it there.")
    tasks = parser.add_subparsers(required=True)
    for name, work in (("copy", copy), ("verify", verify)):
        task = tasks.add_parser(name)
        task.add_argument("plan", type=Plan.model_validate_json, help="what to do, as JSON (volume.Plan)")
        task.set_defaults(work=work)
    options = parser.parse_args()

    # A container's first process ends by no signal that it does not handle. Nothing has to be put in order first: what
    # is on the disk at any moment can be gone on with.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))

    def say(line: str) -> None:
        # Names on a disk may be no text.
        print(line.encode(errors="backslashreplace").decode(), flush=True)

    try:
        with patience.lasting(options.plan.patience_seconds):
            result = options.work(options.plan, say)
    except PipelineError as error:
        sys.exit(str(error))
    except OSError as error:
        sys.exit(str(volume.told(error, options.plan.folder)))
    # ASCII: many a reader of logs takes U+2028 for a line's end.
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
