"""`python -m emulated_cloud.hub --root DIR [--repo ORG/NAME=FOLDER]… [--gated ORG/NAME]… [--tokens FILE]`."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

from emulated_cloud.hub.access import SIGNATURE_SECONDS
from emulated_cloud.hub.repository import Repository, RepositoryError
from emulated_cloud.hub.server import HubServer
from emulated_cloud.process import arguments, serve, tell_progress, when_told_to_end

# The CDN is the same port under loopback's other name, so nothing but loopback (or everything) can be bound.
HOSTS = ("127.0.0.1", "localhost", "0.0.0.0")
TELL_SECONDS = 3.0


def main() -> None:
    parser = arguments("Serves folders as model repositories of a Hugging Face hub.")
    parser.add_argument("--root", type=Path, required=True, help="where commits, branches and objects are kept")
    parser.add_argument(
        "--repo",
        type=_repo,
        action="append",
        default=[],
        metavar="ORG/NAME=FOLDER",
        help="commit FOLDER to the repository's main before serving",
    )
    parser.add_argument("--gated", action="append", default=[], metavar="ORG/NAME", help="files only with a grant")
    parser.add_argument("--tokens", type=Path, help='{token: {"user": name, "granted": [repo ids]}}; none: none valid')
    parser.add_argument(
        "--signature-seconds",
        type=float,
        default=SIGNATURE_SECONDS,
        help="how long a link to the CDN lives (%(default)s)",
    )
    options = parser.parse_args()
    if options.host not in HOSTS:
        parser.error(f"--host must be one of {', '.join(HOSTS)}")
    # A release of many gigabytes takes minutes to hash, and nobody may wait for that who has gone.
    when_told_to_end(lambda: os._exit(1))
    try:
        for repo_id, folder in options.repo:
            Repository(options.root, repo_id).commit(folder, hashed=_telling(repo_id))
        server = HubServer(
            (options.host, options.port),
            options.root,
            gated=options.gated,
            tokens=options.tokens,
            signature_seconds=options.signature_seconds,
            request_log=options.request_log,
        )
    except (RepositoryError, OSError) as error:
        parser.exit(2, f"{error}\n")
    serve(server)


def _telling(repo_id: str) -> Callable[[int, int], None]:
    """Tells every few seconds how much of a folder has been hashed."""
    began = told = time.monotonic()

    def hashed(done: int, total: int) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told >= TELL_SECONDS:
            told = now
            left = (total - done) * (now - began) / done
            tell_progress(f"{repo_id}: hashed {done / 1e9:.1f} of {total / 1e9:.1f} GB, {left:.0f} s left")

    return hashed


def _repo(text: str) -> tuple[str, Path]:
    repo_id, separator, folder = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"not ORG/NAME=FOLDER: {text!r}")
    return repo_id, Path(folder)


if __name__ == "__main__":
    main()
