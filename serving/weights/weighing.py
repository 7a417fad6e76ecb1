"""What a checkpoint weighs: its config.json and the headers of its shards, read before a byte of tensors has moved.

The shards are on the hub, in a bucket or in a folder of this machine: `Head` reads the first bytes of one.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from serving import catalog, sizing
from serving.clients.digest import ServedFile
from serving.clients.hub import Hub
from serving.clients.patience import Patience
from serving.clients.source import Source
from serving.clients.wire import Wire
from serving.errors import ReleaseError, RequestError
from serving.sizing import Model, Tensor
from serving.weights import checkpoint
from serving.weights.checkpoint import Chosen

Head = Callable[[ServedFile, int], bytes]
"""(a shard, how many bytes) → so many of its first bytes, or all of a shorter one."""

_GUESS = 256 << 10
"""Bytes: holds the header of most shards."""


def weigh(name: str, where: str, config: dict[str, Any], files: Iterable[ServedFile], head: Head) -> Model | None:
    """A model by its config.json (`where` it is) and the files of its weights; None for an architecture that nobody has
    measured. Pickles, which have no header, count as large as their files.

    Raises ReleaseError for a config.json that does not say what a model is made of and for a shard whose header does
    not describe tensors, RequestError for a config.json that names no architecture.
    """
    if not catalog.first_version(sizing.named(where, config)):
        return None
    made, files = sizing.of_config(where, config), list(files)
    shards = [file for file in files if not checkpoint.is_pickle(file.path)]
    weights = sizing.of_tensors(itertools.chain.from_iterable(_tensors(shards, head).values()), made)
    pickled = sum(file.size for file in files if checkpoint.is_pickle(file.path))
    return Model(name, made, dataclasses.replace(weights, fixed=weights.fixed + pickled))


def tensors(files: list[ServedFile], head: Head) -> set[str]:
    """The names of the tensors in safetensors files, by their headers. Raises ReleaseError as `weigh`."""
    return {tensor.name for found in _tensors(files, head).values() for tensor in found}


def head_of(source: Source) -> Head:
    """Reads shards where a source has them."""

    def head(file: ServedFile, length: int) -> bytes:
        wire = Wire()
        try:
            return source.head(wire, file, length, Patience())
        finally:
            wire.close()

    return head


def in_folder(folder: Path) -> Model:
    """The model in a folder of this machine. Raises RequestError for what is none, and for one that nobody has measured
    the like of."""
    folder = folder.absolute()

    def there(path: str) -> ServedFile | None:
        return ServedFile(path, (folder / path).stat().st_size) if (folder / path).is_file() else None

    def content(path: str) -> bytes:
        _check_length(str(folder / path), (folder / path).stat().st_size)
        return (folder / path).read_bytes()

    def head(file: ServedFile, length: int) -> bytes:
        with (folder / file.path).open("rb") as opened:
            return opened.read(length)

    index = content(checkpoint.INDEX) if there(checkpoint.INDEX) else None
    # An index may name shards in folders.
    paths = {path.name for path in folder.iterdir()} | set(checkpoint.in_index(index).values())
    chosen = checkpoint.choose(str(folder), filter(None, map(there, sorted(paths))), index)
    return _whole(str(folder), str(folder / checkpoint.CONFIG), content(checkpoint.CONFIG), chosen, head)


def on_hub(hub: Hub, name: str) -> Model:
    """The model on the hub, at its main branch. Raises as `hub.commit` does, and as `in_folder`."""
    source = hub.at(name, hub.commit(name, "main"))
    chosen = checkpoint.select(source)
    where = f"{name}'s {checkpoint.CONFIG}"
    file = next(file for file in chosen.served if file.path == checkpoint.CONFIG)
    _check_length(where, file.size)
    wire = Wire()
    try:
        content = source.content(wire, file)
    finally:
        wire.close()
    return _whole(name, where, content, chosen, head_of(source))


def _whole(name: str, where: str, content: bytes, chosen: Chosen, head: Head) -> Model:
    """A whole model, for somebody who asks what it needs: what cannot be told is an error, which is theirs to mend."""
    with _to_be_mended():
        config = checkpoint.parse_json(where, content)
        if not catalog.first_version(kind := sizing.named(where, config)):
            known = ", ".join(sorted(catalog.architectures()))
            raise RequestError(
                f"{where} names {kind}: what nobody has measured only the engine can tell. Known: {known}"
            )
        made = sizing.of_config(where, config)
    with _to_be_mended(f"{name}: ", ". Copy it anew from where it was made"):
        tensors = _tensors(chosen.shards, head)
        checkpoint.check_shards(chosen, {path: {tensor.name for tensor in found} for path, found in tensors.items()})
    return Model(name, made, sizing.of_tensors(itertools.chain.from_iterable(tensors.values()), made))


@contextmanager
def _to_be_mended(before: str = "", cure: str = "") -> Iterator[None]:
    try:
        yield
    except ReleaseError as error:
        raise RequestError(f"{before}{error}{cure}") from error


def _check_length(where: str, size: int) -> None:
    if size > checkpoint.LONGEST_HEADER:
        raise RequestError(f"{where} has {size} bytes: none that describes a model is so large")


def _tensors(files: list[ServedFile], head: Head) -> dict[str, list[Tensor]]:
    """The tensors of each shard, by its path. Raises ReleaseError for a header that does not describe any."""

    def read(file: ServedFile) -> list[Tensor]:
        first = head(file, _GUESS)
        length = checkpoint.header_length(file, first)
        return checkpoint.described(file, (first if length <= len(first) else head(file, length))[8:length])

    with concurrent.futures.ThreadPoolExecutor(8, "weigh") as pool:
        return dict(zip((file.path for file in files), pool.map(read, files), strict=True))
