"""A cloud for steps whose Jobs run: its nodes have the component image."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from emulated_cloud.cloud import Cloud


@contextmanager
def up(folder: Path, model: Path, **options: Any) -> Iterator[Cloud]:
    """Of `model`, a checkpoint's folder, the hub has one release; `options` are Cloud's."""
    images = [{"match": r"(.*/)?python-components[:@].*", "argv0": {"python": [sys.executable]}}]
    with Cloud(folder, repositories={"google/gemma-3-4b-it": model}, images=images, **options) as cloud:
        yield cloud
