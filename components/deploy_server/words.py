"""What an engine's log says about its end: the line that names the cause, not the last one."""

from __future__ import annotations

import re

_PREFIX = re.compile(
    r"^(\([^)]*pid=\d+[^)]*\)\s*)*((DEBUG|INFO|WARNING|ERROR|CRITICAL)\s+\d\d-\d\d \d\d:\d\d:\d\d\s+)?(\[[^\]]*\]\s?)?"
)
"""vLLM's `(EngineCore pid=7) ERROR 11-24 03:42:19 [core.py:936] `, in all the forms that it takes."""
_CAUSE = re.compile(r"^([A-Za-z_][\w.]*(Error|Exception|Interrupt)\b: .+|[\w. -]+: error: .+)$")
"""The last line of a traceback, or argparse's word on a flag."""
_NOT_THE_CAUSE = re.compile(
    r"Engine core initialization failed|Engine process failed to start|EngineDeadError|WorkerProc init"
)
"""What the front end says when the engine has said it already."""


def cause(log: str) -> str:
    """The line of an engine's log that names why it ended; without one, its last lines; empty for an empty log."""
    lines = [line for line in (_PREFIX.sub("", raw).rstrip() for raw in log.splitlines()) if line.strip()]
    named = [number for number, line in enumerate(lines) if _CAUSE.match(line.strip())]
    causes = [number for number in named if not _NOT_THE_CAUSE.search(lines[number])]
    if not named:
        return "\n".join(lines[-3:])
    number = (causes or named)[-1]
    # pydantic counts its errors in the first line and tells them in those that follow.
    told = lines[number : number + (3 if "validation error" in lines[number] else 1)]
    return " ".join(line.strip() for line in told)
