"""Whether the release's weights can be a whole model, found out by reading a few hundred kilobytes of each shard.

Done before the bytes are moved: a shard that was cut or forgotten costs seconds then, and no accelerator.
"""

from __future__ import annotations

import concurrent.futures

from components import checkpoint
from components.checkpoint import Chosen
from components.clients.hub import Snapshot
from components.clients.wire import Patience, Wire
from components.errors import ReleaseError
from components.identity import ServedFile

# Holds the header of most shards: one request instead of two.
_GUESS = 256 << 10


def check(snapshot: Snapshot, chosen: Chosen) -> None:
    """Checks the header of every shard, and the index against all of them. Raises ReleaseError."""
    with concurrent.futures.ThreadPoolExecutor(8, "inspect") as pool:
        held = dict(
            zip(
                [shard.path for shard in chosen.shards],
                pool.map(lambda shard: _tensors(snapshot, shard), chosen.shards),
                strict=True,
            )
        )
    checkpoint.check_shards(chosen, held)


def _tensors(snapshot: Snapshot, shard: ServedFile) -> set[str]:
    try:
        return _read_tensors(snapshot, shard)
    except ReleaseError:
        # These bytes have no digest of their own: only what is wrong twice is the release's fault.
        return _read_tensors(snapshot, shard)


def _read_tensors(snapshot: Snapshot, shard: ServedFile) -> set[str]:
    wire = Wire()
    try:
        head = snapshot.head(wire, shard, _GUESS, Patience())
        length = checkpoint.header_length(shard, head)
        if length > len(head):
            head = snapshot.head(wire, shard, length, Patience())
        return checkpoint.tensors(shard, head[8:length])
    finally:
        wire.close()
