"""`verify-weights`: a bucket against its manifest."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.output import Output


def verify_weights(
    out: Output,
    weights: Annotated[str, typer.Argument(metavar="gs://BUCKET/models/ORG/NAME/KEY", help="What a report names.")],
    read: Annotated[bool, typer.Option("--read", help="Read every byte again and compare sha256 too.")] = False,
    state: Annotated[
        Path | None, typer.Option("--state", metavar="DIR", help="In the bucket of a run on this machine.")
    ] = None,
) -> None:
    """Compare weights in a bucket with their manifest; name what differs, a line each, with exit code 1."""
    from components.download_weights.verification import verify
    from serving.clients import storage

    storage.parse_uri(weights)  # Before anything is started for it.
    with _buckets_of(out, state) if state else nullcontext(), out.progress("listing") as (tell, seconds):
        verdict = verify(weights, read=read, say=tell, report_seconds=seconds)
    status = "different" if verdict.differences else "verified"
    every = ", every byte read" if read else ""
    said = f"{verdict.files} files, {verdict.bytes} bytes, as the manifest says{every}"
    out.result({"status": status, "read": read, **vars(verdict)}, "\n".join(verdict.differences) or said)
    if verdict.differences:
        raise typer.Exit(1)


@contextmanager
def _buckets_of(out: Output, state: Path) -> Iterator[None]:
    """Lets this process reach the buckets of a run on this machine while the block runs."""
    from pipelines import local

    with local.buckets(state, out.say) as environment:
        os.environ.update(environment)
        yield
