"""Files that the bucket has already, in other weights of the same model: copied inside GCS instead of moved again.

A new adapter, or a release that changes one shard of many, then costs what is new in it. What is copied has been
verified before: it is in a complete manifest, and is still what that says.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from components.download_weights.sessions import Sessions
from components.download_weights.transfer import SMALL, content_type, holds
from serving import progress
from serving.clients import storage
from serving.clients.digest import ServedFile
from serving.clients.storage import PreconditionError, StoredObject
from serving.log import Say
from serving.weights import manifest


def reuse(
    weights_uri: str, files: Iterable[ServedFile], there: Mapping[str, StoredObject], sessions: Sessions, say: Say
) -> dict[str, StoredObject]:
    """Copies the large ones of `files` that are not `there` yet from other complete weights. Returns them by path."""
    wanted = [file for file in files if file.size > SMALL and file.path not in there and file.path not in sessions]
    copied: dict[str, StoredObject] = {}
    if not wanted:
        return copied
    for source in _complete_weights(weights_uri):
        for file in wanted:
            found = next((stored for stored in source if holds(stored, file)), None)
            if found and file.path not in copied and (made := _copy(found, f"{weights_uri}/{file.path}", file)):
                copied[file.path] = made
        if len(copied) == len(wanted):
            break
    if copied:
        size = progress.size(sum(stored.size for stored in copied.values()))
        say(f"{len(copied)} files ({size}) are in the bucket already, in other weights of this model: copied")
    return copied


def _complete_weights(but: str) -> Iterable[list[StoredObject]]:
    """The objects of every other set of weights of the model that are what their manifest says."""
    for weights_uri in manifest.complete_below(but.rpartition("/")[0]):
        if weights_uri == but:
            continue
        known, _ = manifest.read(weights_uri)
        if known:
            there = manifest.listing(weights_uri)
            yield [there[file.path] for file in known.files if not manifest.wrong(file, there.get(file.path))]


def _copy(source: StoredObject, uri: str, file: ServedFile) -> StoredObject | None:
    try:
        return storage.copy(source, uri, content_type=content_type(file.path))
    except PreconditionError:
        return None  # Either side has changed since it was listed: the mover looks at what there is.
