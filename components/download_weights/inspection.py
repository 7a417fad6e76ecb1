"""Whether the release's weights can be a whole model, found out by reading a few hundred kilobytes of each shard.

Done before the bytes are moved: a shard that was cut or forgotten costs seconds then, and no accelerator.
"""

from __future__ import annotations

import concurrent.futures

from serving.clients.digest import ServedFile
from serving.clients.patience import Patience
from serving.clients.source import Source
from serving.clients.wire import Wire
from serving.errors import ReleaseError
from serving.weights import checkpoint
from serving.weights.checkpoint import Chosen

# Holds the header of most shards: one request instead of two.
_GUESS = 256 << 10


def check(source: Source, chosen: Chosen) -> None:
    """Checks the header of every shard, and the index against all of them. Raises ReleaseError."""
    with concurrent.futures.ThreadPoolExecutor(8, "inspect") as pool:
        held = dict(
            zip(
                [shard.path for shard in chosen.shards],
                pool.map(lambda shard: _tensors(source, shard), chosen.shards),
                strict=True,
            )
        )
    held |= {file.path: set() for file in chosen.pickles}
    checkpoint.check_shards(chosen, held)


def _tensors(source: Source, shard: ServedFile) -> set[str]:
    try:
        return _read_tensors(source, shard)
    except ReleaseError:
        # These bytes have no digest of their own: only what is wrong twice is the release's fault.
        return _read_tensors(source, shard)


def _read_tensors(source: Source, shard: ServedFile) -> set[str]:
    wire, patience = Wire(), Patience()
    try:
        head = source.head(wire, shard, _GUESS, patience)
        length = checkpoint.header_length(shard, head)
        if length > len(head):
            head = source.head(wire, shard, length, patience)
        return checkpoint.tensors(shard, head[8:length])
    finally:
        wire.close()
