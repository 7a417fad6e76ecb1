"""The step that keeps a deployment from growing: old generations and runs go, and weights and disk images that nobody
uses any more."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable
from typing import Any

from serving import names
from serving.clients import storage
from serving.clients.kubernetes import Cluster
from serving.clients.storage import PreconditionError, StoredObject
from serving.deployment import caches, disk_images, leftovers, record
from serving.deployment.record import Record
from serving.log import Say
from serving.settings import Settings
from serving.step import opened
from serving.weights import manifest

# gs://BUCKET/models/ORG/NAME/KEY/FILE, as download_weights writes it; anything else in the bucket is somebody else's.
_WEIGHTS = re.compile(r"(gs://[^/]+/models/[^/]+/[^/]+/[0-9a-f]{16})/.+")
# Versions before named weights in CLUSTER/NAMESPACE/NAME.json, which deployments of several projects may have shared.
_SHARED_ENTRY = re.compile(r"gs://[^/]+/deployments/[^/]+/[^/]+/[^/]+\.json")


def run(settings: dict[str, Any], release: dict[str, Any]) -> None:
    """Collects after a promotion."""
    with opened("collect_garbage", settings, release) as step:
        outcome = step.outcome
        with step.cluster() as cluster:
            gone = collect_generations(cluster, step.settings, outcome.say)
            freed = collect_weights(cluster, step.settings, outcome.say)
            known = record.read(cluster, step.settings)
            images = disk_images.collect(step.settings, known, step.release.run_id, outcome.say)
            disabled = caches.leave(step.settings, outcome.say)
            runs = collect_runs(step.settings, known, step.release.run_id, outcome.say)
            hanging = leftovers.hanging(cluster, step.settings)
        outcome.details.update(generations=gone, weights=freed, disk_images=images, caches=disabled, hanging=hanging)
        outcome.details["runs"] = runs
        if gone or freed or images or disabled or runs or hanging:
            also = f", and {len(images)} disk images" if images else ""
            also += f", and the folders of {len(runs)} runs" if runs else ""
            words = f"deleted {len(gone)} generations and {len(freed)} sets of weights{also}"
            ended = [f"disabled the Rapid Cache in {', '.join(disabled)}"] if disabled else []
            outcome.succeeded("; ".join([words, *ended, *hanging]))
        else:
            outcome.skipped("nothing to collect")


def collect_generations(cluster: Cluster, settings: Settings, say: Say) -> list[str]:
    """Deletes the kept generations beyond `keep_previous`, the oldest first. Returns their names."""
    known = record.read(cluster, settings)
    gone = known.kept[settings.keep_previous :][::-1]
    for generation in gone:
        leftovers.remove_generation(cluster, settings, generation, say)
        known.forget(generation)
        known.write(cluster, settings)
    return gone


def collect_weights(cluster: Cluster, settings: Settings, say: Say) -> list[str]:
    """Deletes the weights in the bucket that no record of any deployment names. Returns their prefixes.

    A deployment names its weights before it looks at them, and may do so while this looks. So the manifest goes first
    (from then on the weights count as absent), then the names are read again: weights that somebody named meanwhile get
    their manifest back. Who names them later finds no manifest, and takes over what is there (download_weights): a
    deletion at the listed generation and metageneration leaves that alone.
    """
    known = record.read(cluster, settings)
    if known.of_unknown_origin:
        say(
            f"no weights are collected while nobody knows those of {', '.join(sorted(known.of_unknown_origin))}: a "
            "version before made them, and the record was lost"
        )
        return []
    storage.write_json_if_changed(names.weights_in_use(settings), {"weights_keys": sorted(known.weights_in_use)})
    there, in_use = _stored(settings), weights_in_use(settings)
    keys = {prefix: _key(prefix) for prefix in there}
    for entry in sorted(shared_entries_alone(in_use, keys.values())):
        say(
            f"{entry}, written by a version before, keeps weights that nothing else names. When all deployments that "
            f"are called so have run with this version: `gcloud storage rm {entry}`"
        )
    unused = [prefix for prefix, key in keys.items() if key not in in_use]
    return [prefix for prefix in unused if _free(settings, prefix, there[prefix], weights_in_use, say)]


def own_weights(settings: Settings, known: Record) -> tuple[list[str], list[str]]:
    """The sets of weights in the bucket that this deployment names or has named, by their prefixes: those that no other
    deployment names, and those that another names too."""
    entry = storage.read_json(names.weights_in_use(settings)) or {}
    origins = known.generations.values()
    own = {key for origin in origins for key in (origin.weights_key, origin.adapters_key) if key}
    own |= set(entry.get("weights_keys", []))
    found, others = [prefix for prefix in _stored(settings) if _key(prefix) in own], _named_by_others(settings)
    return [p for p in found if _key(p) not in others], [p for p in found if _key(p) in others]


def free_own_weights(settings: Settings, prefixes: Iterable[str], say: Say) -> list[str]:
    """Deletes these sets of weights of a deployment that is gone, unless another names them meanwhile. Returns the
    prefixes of those that went."""
    there = _stored(settings)
    freed = [
        prefix
        for prefix in prefixes
        if prefix in there and _free(settings, prefix, there[prefix], _named_by_others, say)
    ]
    # Last: whoever is ended before finds here what is left to do.
    storage.delete(names.weights_in_use(settings))
    return freed


def _stored(settings: Settings) -> dict[str, list[StoredObject]]:
    """The sets of weights in the bucket, by their prefixes."""
    there: dict[str, list[StoredObject]] = {}
    for stored in storage.list_objects(f"gs://{settings.bucket}/models/"):
        if match := _WEIGHTS.fullmatch(stored.uri):
            there.setdefault(match[1], []).append(stored)
    return there


def _key(prefix: str) -> str:
    return prefix.rpartition("/")[2]


def _named_by_others(settings: Settings) -> set[str]:
    own = names.weights_in_use(settings)
    return {key for key, entries in weights_in_use(settings).items() if entries - {own}}


def _free(
    settings: Settings,
    prefix: str,
    there: list[StoredObject],
    in_use: Callable[[Settings], Container[str]],
    say: Say,
) -> bool:
    """Deletes one set of weights as it was listed, which nobody was found to use: returns whether it is gone."""
    content, generation = storage.read_json_with_generation(manifest.uri(prefix))
    if content is not None:
        storage.delete(manifest.uri(prefix), generation)
    if _key(prefix) in in_use(settings):
        if content is not None:
            _put_back(prefix, content)
        return False
    files = [stored for stored in there if stored.uri != manifest.uri(prefix)]
    left = [stored for stored in files if not storage.delete_as_listed(stored)]
    if left:
        say(f"{prefix} is being taken over by another deployment: {len(left)} of its files stay")
        return False
    say(f"deleted {prefix}")
    return True


def _put_back(prefix: str, content: Any) -> None:
    try:
        storage.write_json(manifest.uri(prefix), content, if_generation_match=0)
    except PreconditionError:
        return  # Who named the weights was quicker.


def weights_in_use(settings: Settings) -> dict[str, set[str]]:
    """The weights keys that any deployment with weights in this bucket names, each with the objects that name it."""
    found: dict[str, set[str]] = {}
    for uri in storage.list_uris(names.all_weights_in_use(settings)):
        for key in (storage.read_json(uri) or {}).get("weights_keys", []):
            found.setdefault(key, set()).add(uri)
    return found


def shared_entries_alone(in_use: dict[str, set[str]], keys: Iterable[str]) -> set[str]:
    """The entries of versions before without which some of these weights were free. Whose they are, none can tell: they
    count until a person takes them away."""
    naming = [in_use.get(key, set()) for key in keys]
    return set().union(*(uris for uris in naming if all(_SHARED_ENTRY.fullmatch(uri) for uri in uris)))


def collect_runs(settings: Settings, known: Record, run_id: str, say: Say) -> list[str]:
    """Deletes the folders of this deployment's runs beyond `keep_runs`, the oldest first. Returns the runs.

    Those that the record names stay, and `run_id`, which is this one. Deployments may share a pipeline_root: whose a
    run is, the outcome of resolve_model says, without which a folder stays. It goes last, so that a folder of which
    something is left is found again.
    """
    folders: dict[str, list[str]] = {}
    for uri in storage.list_uris(f"{settings.pipeline_root}/"):
        folder = uri.removeprefix(f"{settings.pipeline_root}/").partition("/")[0]
        folders.setdefault(folder, []).append(uri)
    began: dict[str, str] = {}
    for run, uris in folders.items():
        resolved = _resolved(settings, run)
        outcome = storage.read_json(resolved) if resolved in uris else None
        if outcome and outcome.get("deployment") == names.place(settings):
            began[run] = outcome["started_at"]
    oldest_first = sorted(began, key=lambda run: began[run])
    gone = [run for run in oldest_first[: -settings.keep_runs] if run not in known.runs | {run_id}]
    for run in gone:
        for uri in sorted(folders[run], key=_resolved(settings, run).__eq__):
            storage.delete(uri)
        say(f"deleted {settings.pipeline_root}/{run}")
    return gone


def _resolved(settings: Settings, run: str) -> str:
    return f"{settings.pipeline_root}/{run}/steps/resolve_model.json"
