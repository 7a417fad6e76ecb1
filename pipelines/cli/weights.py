"""`verify-weights`: a bucket against its manifest."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.operate import of_state, say

if TYPE_CHECKING:
    from serving.log import Say


def verify_weights(
    weights: Annotated[str, typer.Argument(metavar="gs://BUCKET/models/ORG/NAME/KEY", help="What a report names.")],
    read: Annotated[bool, typer.Option("--read", help="Read every byte again and compare sha256 too.")] = False,
    state: Annotated[
        Path | None, typer.Option("--state", metavar="DIR", help="In the bucket of a run on this machine.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Compare weights in a bucket with their manifest; name what differs, a line each, with exit code 1."""
    from components.download_weights.verification import verify
    from serving.clients import storage

    storage.parse_uri(weights)  # Before anything is started for it.
    with of_state(state) if state else nullcontext(), _progress() as (tell, seconds):
        verdict = verify(weights, read=read, say=tell, report_seconds=seconds)
    if as_json:
        status = "different" if verdict.differences else "verified"
        print(json.dumps({"status": status, "read": read, **vars(verdict)}, ensure_ascii=False))
    elif verdict.differences:
        print("\n".join(verdict.differences))
    else:
        every = ", every byte read" if read else ""
        print(f"{verdict.files} files, {verdict.bytes} bytes, as the manifest says{every}")
    if verdict.differences:
        raise typer.Exit(1)


@contextmanager
def _progress() -> Iterator[tuple[Say, float]]:
    """What shows progress on stderr, and how often it wants some: in place in a terminal, else as lines of a log."""
    if not sys.stderr.isatty():
        started = time.monotonic()
        yield lambda line: say(f"{time.monotonic() - started:6.1f} s  {line}"), 3.0
        return
    from rich.console import Console

    with Console(stderr=True).status("listing", spinner="dots") as status:
        yield status.update, 0.25
