"""The step that brings a release's files into the bucket, and judges whether they are a whole model."""

from __future__ import annotations

import re
import time
from typing import Any

from components.download_weights import copies, inspection
from components.download_weights.sessions import Sessions
from components.download_weights.transfer import Limits, Transfer
from serving import names, progress
from serving.clients import storage
from serving.clients.storage import PreconditionError, StoredObject
from serving.errors import InconclusiveError, ReleaseError
from serving.log import Say
from serving.settings import Settings
from serving.step import opened
from serving.weights import manifest, repositories
from serving.weights.manifest import Manifest, Repository
from serving.weights.release import Release

_NO_IMAGES = re.compile(r"--limit[-_]mm")
"""How flags begin with which vLLM needs no image processor."""


def run(settings: dict[str, Any], release: dict[str, Any]) -> tuple[bool, list[str], int]:
    """Brings the release into the bucket: (passed, reasons, bytes that moved)."""
    with opened("download_weights", settings, release) as step:
        outcome = step.outcome
        outcome.details["bytes_transferred"] = 0
        with step.cluster():
            started = time.monotonic()
            try:
                moved = bring(step.settings, step.release, outcome.say)
            except ReleaseError as error:
                outcome.failed(error)
                return False, [str(error)], 0
        outcome.details["bytes_transferred"] = moved
        if moved:
            seconds = time.monotonic() - started
            rate = progress.size(moved / seconds)
            outcome.succeeded(f"moved {progress.size(moved)} in {progress.duration(seconds)} ({rate}/s), verified")
        else:
            outcome.skipped(f"{' and '.join(step.release.weights_uris)} is complete: nothing moved")
        return True, [], moved


def lineage(release: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """The release's weights as KFP's Model: (URI, metadata). Texts alone, `commit_NAME` those of adapters and
    assistant: the console filters by them."""
    found = Release.model_validate(release)
    others = {f"commit_{role}": commit for role, commit in found.commits.items()}
    own = {"model": found.model, "commit": found.commit, "weights_key": found.weights_key}
    return found.weights_uri, {**own, **others, "run": found.run_id}


def bring(settings: Settings, release: Release, say: Say, limits: Limits = Limits()) -> int:  # noqa: B008 (frozen)
    """Makes the weights complete in the bucket, the manifest last. Returns how many bytes of content it sent.

    Where the manifests are there and true, no source is asked at all. Raises ReleaseError when the files cannot be a
    whole model, before any of the large ones has moved.
    """
    return sum(_bring_set(settings, release, uri, say, limits) for uri in release.weights_uris)


def _bring_set(settings: Settings, release: Release, uri: str, say: Say, limits: Limits) -> int:
    """The same of one set of weights: the model's with what goes along, or of adapters that change in place."""
    key = uri.rpartition("/")[2]
    name_weights(settings, key)
    there = manifest.listing(uri)
    known, generation = manifest.read(uri)
    if known:
        wrong = manifest.differences(known, there)
        if not wrong:
            return 0
        say(f"the weights are not what their manifest says ({'; '.join(wrong[:3])}): bringing those files again")
        # The manifest first: from now on the weights do not count as complete.
        storage.delete(manifest.uri(uri), generation)
        for file in known.files:
            if file.path in there and there[file.path].crc32c != file.crc32c:
                storage.delete(there[file.path].uri, there.pop(file.path).generation)
    else:
        there = take_over(there, release.run_id)

    parts = repositories.find(settings, {repositories.BASE: release.commit, **release.commits})
    own = next((found for found in repositories.sets(settings, parts) if repositories.weights_key(found) == key), None)
    if own is None:
        raise InconclusiveError(f"{release.model} at {release.commit} lists other files than it did. Run again")
    text_only = settings.engine.text_only or any(map(_NO_IMAGES.match, settings.engine.extra_args))
    inspection.check(parts, text_only=text_only)
    together = repositories.Together(own)
    sessions = Sessions(settings, key)
    sessions.load()
    transfer = Transfer(together, uri, sessions, say, limits)
    wanted = list(together.files())
    there |= copies.reuse(uri, wanted, there, sessions, say)
    files = transfer.move(wanted, there)
    _complete(
        uri,
        Manifest(
            weights_key=key,
            repositories=[
                Repository(
                    role=part.repository.role,
                    model=part.repository.model,
                    commit=part.commit,
                    source=part.repository.source,
                )
                for part in own
            ],
            files=files,
        ),
    )
    return transfer.sent


def take_over(there: dict[str, StoredObject], run_id: str) -> dict[str, StoredObject]:
    """What lies in a bucket without a manifest, as this run's: those objects that are still there.

    Another deployment's collector may be deleting them, since nobody named them when it looked. It deletes what it has
    listed; an object that says something new of itself is not that any more.
    """
    taken = {}
    for path, stored in there.items():
        try:
            storage.add_metadata(stored, {"taken-over-by": run_id})
        except PreconditionError:
            continue  # Gone already, or written again.
        taken[path] = stored
    return taken


def _complete(weights_uri: str, made: Manifest) -> None:
    """Writes the manifest, when the bucket holds what it says; where another run was quicker, theirs has to be true."""
    if lost := manifest.differences(made, manifest.listing(weights_uri)):
        raise InconclusiveError(
            f"{weights_uri} changed while its files were moved: {'; '.join(lost[:3])}. Somebody deletes there; "
            "run again"
        )
    try:
        manifest.write(weights_uri, made)
    except PreconditionError as error:
        theirs, _ = manifest.read(weights_uri)
        wrong = manifest.differences(theirs, manifest.listing(weights_uri)) if theirs else ["it is gone again"]
        if wrong:
            raise InconclusiveError(
                f"another run wrote {manifest.uri(weights_uri)}, and it is not true: {'; '.join(wrong[:3])}. Run again"
            ) from error


def name_weights(settings: Settings, weights_key: str) -> bool:
    """Tells every other deployment that this one uses these weights, so that none collects them. Returns whether it
    had to be told."""
    uri = names.weights_in_use(settings)
    for _ in range(10):
        value, generation = storage.read_json_with_generation(uri)
        keys = set((value or {}).get("weights_keys", []))
        if weights_key in keys:
            return False
        try:
            storage.write_json(uri, {"weights_keys": sorted({*keys, weights_key})}, if_generation_match=generation)
        except PreconditionError:
            continue  # Another run of this deployment wrote meanwhile: look again.
        return True
    raise InconclusiveError(f"{uri} kept changing while {weights_key} was being added. Run again")
