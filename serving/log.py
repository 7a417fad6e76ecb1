"""What a step says while it works: one JSON object a line, which Cloud Logging reads as structured entries.

`{"severity": "INFO", "message": …, "step": …, "run_id": …}`; a step's last word also carries its `status`. The command
line turns the lines into its live table.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from typing import Any

Say = Callable[[str], None]
"""Something that takes one line of progress for a reader."""


def entry(message: str, *, step: str, run_id: str, severity: str = "INFO", **fields: Any) -> None:
    """Writes one log entry to stdout."""
    line = {"severity": severity, "message": message, "step": step, "run_id": run_id, **fields}
    sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def silence_libraries() -> None:
    """Lets libraries speak in this process only of what went wrong, whatever level anybody has set.

    Below that they tell of requests and answers, and with them what must not reach a log: httpcore shows the headers of
    every answer of the hub, which hold signed links; Google's clients show payloads.
    """
    logging.disable(logging.INFO)
