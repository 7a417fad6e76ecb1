"""What runs in the cluster: `python -m components.deploy_server read PLAN`, a Job that reads weights into the Rapid
Cache of its zone, `… bring PLAN`, the init container of pods that stream their weights, and `… adapt PLAN`, which runs
beside an engine whose adapters change in place.

The last line is the result (reading.read, bringing.bring); adapting.py says what `adapt` writes. Other bytes than the
manifest's end it with exit code 1, as does a bucket that is not open.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys

from components.deploy_server import adapting, bringing, reading
from serving.clients import patience
from serving.errors import PipelineError


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Read a model from its bucket, or bring what is not streamed of it, or see to adapters."
    )
    tasks = parser.add_subparsers(required=True)
    for name, plan, work in (
        ("read", reading.Plan, reading.read),
        ("bring", bringing.Plan, bringing.bring),
        ("adapt", adapting.Plan, adapting.adapt),
    ):
        task = tasks.add_parser(name)
        task.add_argument("plan", type=plan.model_validate_json, help="what to do, as JSON (Plan)")
        task.set_defaults(work=work)
    options = parser.parse_args()
    # A container's first process ends by no signal that it does not handle.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))

    def say(line: str) -> None:
        print(line, flush=True)

    try:
        with patience.lasting(options.plan.patience_seconds):
            result = options.work(options.plan, say)
    except (PipelineError, OSError) as error:
        sys.exit(str(error))
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
