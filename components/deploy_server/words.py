"""What an engine's last words mean: the line of its log that names the cause, and whose fault that is.

The release is guilty only where the log says so. What a node, a disk or a mount did has a row in `_MEANINGS` (what an
accelerator or a kind of volume did, its feature explains), and what nobody knows is nobody's fault.
"""

from __future__ import annotations

import re
import signal

from serving.errors import InconclusiveError
from serving.features import Explanation, Symptom

_PREFIX = re.compile(
    r"^(\([^)]*pid=\d+[^)]*\)\s*)*((DEBUG|INFO|WARNING|ERROR|CRITICAL)\s+\d\d-\d\d \d\d:\d\d:\d\d\s+)?(\[[^\]]*\]\s?)?"
)
"""vLLM's `(EngineCore pid=7) ERROR 11-24 03:42:19 [core.py:936] `, in all the forms that it takes."""
_CAUSE = re.compile(r"^([A-Za-z_][\w.]*(Error|Exception|Interrupt)(: .+)?|[\w. -]+: error: .+)$")
"""The last line of a traceback, or argparse's word on a flag."""
_NOT_THE_CAUSE = re.compile(
    r"Engine core initialization failed|Engine process failed to start|EngineDeadError|WorkerProc init"
)
"""What the front end says when the engine has said it already."""
_OF_THE_SYSTEM = re.compile(
    r"\[Errno -?\d+\]|\(os error \d+\)"
    r"|^([\w.]+\.)?(Connection\w*Error|\w*TimeoutError|BrokenPipeError|KeyboardInterrupt|DistNetworkError)\b"
)
"""An errno, or an exception that only the world around an engine raises. (An OSError without an errno is a library's
word on the model's files.)"""
_SHARED_MEMORY = (
    "its shared memory was full, or a file of a volume could not be read where it is mapped. Run again; `patches` in "
    "the settings can enlarge the volume shared-memory, and accelerator.memory the pod"
)
_MEANINGS = (
    (r"Input/output error", "a disk or a mount failed under {pod}. Run again: another node has other disks"),
    (
        r"Permission denied",
        "{pod} may not read or write its files. Run again with access: check, which says what its service account "
        "lacks on the bucket; a volume of `patches` must let the user 65534 in",
    ),
    (
        r"No space left on device|Disk quota exceeded",
        "a disk of {pod} is full: what the engine writes (/cache, /tmp) is on its node's boot disk. Give the node pool "
        "larger disks, or have `patches` in the settings request ephemeral-storage",
    ),
    (r"Bus error", "{pod}: " + _SHARED_MEMORY),
    (
        r"can't start new thread|Cannot allocate memory|std::bad_alloc|^MemoryError",
        "{pod} or its node has too little memory for the engine, or too many threads. See accelerator.memory",
    ),
)
"""Pattern of a line that names a cause → what it means, and the cure."""
_SIGNALS = {
    signal.SIGKILL: "though not at its limit of {limit} of memory: {node} may be short of memory (`kubectl describe "
    "node {node}`), or a probe gave it up",
    signal.SIGTERM: "which a probe sends that has given it up (serving.ready_timeout is how long a start may take), or "
    "{node} when it goes away. Run again",
    signal.SIGBUS: "a bus error: " + _SHARED_MEMORY,
}


def lines(log: str) -> list[str]:
    """The lines of a log; a progress bar's returns separate lines too."""
    return [line for line in re.split(r"[\r\n]+", log) if line.strip()]


def cause(log: str) -> str:
    """The line of an engine's log that names why it ended; without one, its last lines; empty for an empty log."""
    said = _said(log)
    named = _named(said)
    if not named:
        return "\n".join(said[-3:])
    number = ([number for number in named if not _NOT_THE_CAUSE.search(said[number])] or named)[-1]
    # pydantic counts its errors in the first line and tells them in those that follow.
    told = said[number : number + (3 if "validation error" in said[number] else 1)]
    return " ".join(line.strip() for line in told)


def accuse(log: str) -> bool:
    """Whether an engine's log names a cause that is the release's own: its files, its flags, its size."""
    said = cause(log)
    return bool(_CAUSE.match(said)) and not _NOT_THE_CAUSE.search(said) and not _OF_THE_SYSTEM.search(said)


def explain(symptom: Symptom) -> Explanation | None:
    """What everybody's node, disk or mount may do to an engine (of what a feature knows, see its module)."""
    if symptom.kind != "words":
        return None
    said = _said(symptom.words)
    causes = [said[number].strip() for number in _named(said)] or said[-3:]
    for pattern, meaning in _MEANINGS:
        if any(re.search(pattern, line) for line in causes):
            return Explanation(InconclusiveError, meaning.format(pod=symptom.pod))
    return None


def killed(exit_code: int, *, limit: str, node: str) -> str:
    """The signal that ended a container, and what it may mean; empty for a container that ended by itself.

    limit: the container's of memory."""
    try:
        number = signal.Signals(exit_code - 128)
    except ValueError:
        return ""
    meaning = _SIGNALS.get(number, "which says nothing about the release. Run again")
    return f"{number.name}, {meaning.format(limit=limit, node=node)}"


def _said(log: str) -> list[str]:
    """A log's lines without what vLLM writes before each."""
    return [line for line in (_PREFIX.sub("", raw).rstrip() for raw in lines(log)) if line.strip()]


def _named(said: list[str]) -> list[int]:
    """The numbers of the lines that name a cause."""
    return [number for number, line in enumerate(said) if _CAUSE.match(line.strip())]
