"""The Hugging Face hub: repositories on disk, served over the hub's protocol (`python -m emulated_cloud.hub`).

    with serving(root, gated={"google/gemma-3-1b-it"}) as hub:
        HfApi(endpoint=hub.url).model_info("google/gemma-3-1b-it")

serves what `Repository` committed below `root` from a thread of this process, for tests.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from emulated_cloud.hub.repository import Repository, RepositoryError
from emulated_cloud.hub.server import HubServer

__all__ = ["HubServer", "Repository", "RepositoryError", "serving"]


@contextmanager
def serving(root: Path | str, **options: Any) -> Iterator[HubServer]:
    """A hub on a free loopback port, with HubServer's options, until the block ends."""
    with HubServer(("127.0.0.1", 0), root, **options) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
