"""What a checkpoint weighs: its config.json and the headers of its shards, read before a byte of tensors has moved.

The shards are on the hub, in a bucket or in a folder of this machine: `Head` reads the first bytes of one.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from serving import catalog, sizing
from serving.clients.digest import ServedFile
from serving.clients.hub import Hub
from serving.clients.patience import Patience
from serving.clients.source import Source
from serving.clients.wire import Wire
from serving.errors import ReleaseError, RequestError
from serving.sizing import Model, Tensor, Weights
from serving.weights import checkpoint

Head = Callable[[ServedFile, int], bytes]
"""(a shard, how many bytes) → so many of its first bytes, or all of a shorter one."""

_GUESS = 256 << 10
"""Bytes: holds the header of most shards."""


def weigh(name: str, where: str, config: dict[str, Any], files: Iterable[ServedFile], head: Head) -> Model | None:
    """A model by its config.json (`where` it is) and the files of its weights; None for an architecture that nobody has
    measured. Weights whose headers cannot be read count as large as their files: whether they are a whole model is for
    the download to judge.

    Raises ReleaseError for a config.json that does not say what a model is made of, RequestError for one that names no
    architecture.
    """
    if not catalog.first_version(sizing.named(where, config)):
        return None
    made, files = sizing.of_config(where, config), list(files)
    try:
        weights = sizing.of_tensors(_tensors(files, head), made)
    except ReleaseError:
        weights = Weights(fixed=sum(file.size for file in files))
    return Model(name, made, weights)


def head_of(source: Source) -> Head:
    """Reads shards where a source has them."""

    def head(file: ServedFile, length: int) -> bytes:
        wire = Wire()
        try:
            return source.head(wire, file, length, Patience())
        finally:
            wire.close()

    return head


def in_folder(folder: Path) -> Model | None:
    """The model in a folder of this machine. Raises RequestError as `choose` and `weigh`."""
    folder = folder.absolute()
    files = [ServedFile(path.name, path.stat().st_size) for path in folder.iterdir() if path.is_file()]
    index = folder / checkpoint.INDEX
    chosen = checkpoint.choose(str(folder), files, index.read_bytes() if index.is_file() else None)
    config = _config(folder / checkpoint.CONFIG, (folder / checkpoint.CONFIG).read_bytes())

    def head(file: ServedFile, length: int) -> bytes:
        with (folder / file.path).open("rb") as opened:
            return opened.read(length)

    return weigh(str(folder), str(folder / checkpoint.CONFIG), config, chosen.shards, head)


def on_hub(hub: Hub, name: str) -> Model | None:
    """The model on the hub, at its main branch. Raises as `hub.commit` and `choose`, and as `weigh`."""
    source = hub.at(name, hub.commit(name, "main"))
    chosen = checkpoint.select(source)
    wire = Wire()
    try:
        content = source.content(wire, next(file for file in chosen.served if file.path == checkpoint.CONFIG))
    finally:
        wire.close()
    where = f"{name}'s {checkpoint.CONFIG}"
    return weigh(name, where, _config(where, content), chosen.shards, head_of(source))


def _config(where: str | Path, content: bytes) -> dict[str, Any]:
    try:
        return checkpoint.parse_json(str(where), content)
    except ReleaseError as error:
        raise RequestError(str(error)) from error


def _tensors(files: list[ServedFile], head: Head) -> list[Tensor]:
    """The tensors of all shards. Raises ReleaseError for a header that does not describe any."""

    def read(file: ServedFile) -> list[Tensor]:
        if checkpoint.is_pickle(file.path):
            raise ReleaseError(f"{file.path} has no header")
        first = head(file, _GUESS)
        length = checkpoint.header_length(file, first)
        return checkpoint.described(file, (first if length <= len(first) else head(file, length))[8:length])

    with concurrent.futures.ThreadPoolExecutor(8, "weigh") as pool:
        return [tensor for tensors in pool.map(read, files) for tensor in tensors]
