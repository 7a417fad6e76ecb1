"""The step that finds out what is asked for, by reading alone, and whether there is anything to do.

It reads the hub's listing and config.json, the record, the live objects and the manifest, and for a feature the
registry. It writes its outcome, and nothing else: a run that changes nothing is seen to have changed nothing.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from components.resolve_model.decision import Situation, decide
from serving import catalog, features, names, sizing
from serving.clients import google, hub, kubernetes, proxies, storage
from serving.clients.bucket_source import Folder
from serving.clients.digest import ServedFile
from serving.clients.kubernetes import Cluster
from serving.deployment import (
    adapters,
    autoscaling,
    caches,
    canary,
    entrance,
    gateway,
    lease,
    leftovers,
    record,
    replacement,
    replicas,
)
from serving.deployment.record import Record
from serving.errors import PipelineError, ReleaseError, RequestError
from serving.features import live_adapters
from serving.rendering import engine, generation, render
from serving.scenarios import find
from serving.settings import Settings, from_parameters
from serving.sizing import Model, Sizing
from serving.step import opened_with_parameters
from serving.weights import adapter, checkpoint, manifest, repositories, weighing
from serving.weights.release import Release
from serving.weights.weighing import Head


@dataclass(frozen=True)
class Found:
    """What a revision is."""

    commit: str
    weights_key: str
    architecture: str
    commits: dict[str, str] = field(default_factory=dict)
    """Those of adapters and assistant, by role."""
    adapters_key: str = ""
    """The weights key of adapters that are a set of their own (serving/weights/release.py)."""
    max_lora_rank: int = 0
    model: Model | None = None
    """What it needs; None for an architecture that nobody has measured."""
    assistant_bytes: int = 0
    """Weights of the assistant."""
    warnings: tuple[str, ...] = ()
    weights_bytes: int = 0
    """Of all files that are served."""


def run(
    rest: dict[str, Any], job: str, compiled: dict[str, Any], **explicit: str
) -> tuple[bool, dict[str, Any], dict[str, Any]]:
    """Resolves: (whether the run goes on, the whole settings, the release).

    rest, explicit: the settings as pipeline parameters (from_parameters). job: what the orchestrator calls
    the run. compiled: what the pipeline was compiled for (pipelines/compile.py).
    """
    with opened_with_parameters("resolve_model", rest, job, explicit) as outcome:
        outcome.details["compiled"] = compiled
        settings = from_parameters(rest, **explicit)
        outcome.details["deployment"] = names.place(settings)
        check_compiled(settings, compiled)
        settings = with_image(settings, compiled["image"])
        found = look_up(settings)
        outcome.details.update(commit=found.commit, commits=found.commits, source=settings.source or "")
        outcome.details.update(model=settings.model, engine_image=engine.named_image(settings))
        check_weights(settings, found)
        for warning in found.warnings:
            outcome.say(warning)
        check_architecture(settings, found.architecture)
        sized, on_another = sizes(settings, found)
        outcome.details["sizing"] = sized.model_dump()
        outcome.say(f"{settings.accelerator.count} × {settings.accelerator.type}: {sized.in_words}")
        if (other := settings.beside) and on_another:
            outcome.details["beside"] = on_another.model_dump()
            outcome.say(f"{other.accelerator.count} × {other.accelerator.type}: {on_another.in_words}")
        for own in filter(None, (settings, settings.beside)):
            if warning := sizing.warning(own.model, own.wish()):
                outcome.say(f"warning: {warning}")
        cluster = kubernetes.connect(settings)
        known = record.read(cluster, settings)
        # Whatever becomes of this run, its exit task brings that one back.
        outcome.details["down"] = known.down.generation if known.down else ""
        left = canary.going_on(cluster, settings)
        outcome.details["canary"] = left.candidate if left else ""
        release = name_release(
            settings,
            outcome.run_id,
            found,
            live=known.live,
            key_version=key_version(settings),
            zones=zones(settings),
            proxy_ranges=proxies.ranges(settings),
        )
        outcome.details.update(
            generation=release.generation,
            weights_key=release.weights_key,
            weights_uri=release.weights_uri,
            adapters_uri=release.adapters_uri,
            architecture=release.architecture,
        )
        asked = settings.source or f"{settings.model} {settings.revision}"
        outcome.say(f"{asked} is {found.commit}, generation {release.generation}")
        if release.image_digest:
            outcome.details.update(image_digest=release.image_digest, disk_image=release.disk_image)
            outcome.say(f"{engine.engine_image(settings)} is {release.image_digest}{_on(release.disk_image)}")
        situation = look_around(cluster, settings, release, known)
        digest = render.render(settings, release).digest
        decision = decide(settings, release, known, situation, digest)
        outcome.details.update(decision=decision.verdict, reason=decision.reason)
        if decision.leaves_another:
            # What the run reports is what it leaves in service, not what it did not deploy.
            outcome.details["serves"] = known.what_serves()
        if decision.proceed:
            if settings.rollout == "replace" and known.live not in ("", release.generation):
                outcome.say(replacement.announcement(known, release.generation))
            outcome.succeeded(decision.reason)
        else:
            outcome.skipped(f"{decision.verdict}: {decision.reason}")
    return decision.proceed, settings.as_struct(), release.as_struct()


def check_compiled(settings: Settings, compiled: dict[str, Any]) -> None:
    """Raises RequestError when the pipeline was compiled for another scenario, or other features, than the settings
    ask for: its steps would not be theirs."""
    wanted = find(settings.scenario)
    features = settings.chosen_features
    if (compiled["scenario"], tuple(compiled["features"])) != (wanted.name, features):
        raise RequestError(
            f"this pipeline was compiled for {_deployed(compiled['scenario'], compiled['features'])}, and its settings "
            f"ask for {_deployed(wanted.name, features)}. Compile it for them: `gemma-pipelines compile {wanted.name} "
            "-f FILE`"
        )


def check_weights(settings: Settings, found: Found) -> None:
    """Raises RequestError when the settings take other weights than were found."""
    if settings.weights_key not in ("", found.weights_key):
        raise RequestError(
            f"{settings.source or settings.model} at {found.commit[:12]} has the weights {found.weights_key}, and the "
            f"settings take {settings.weights_key} alone. Name the commits that have those, or leave weights_key out"
        )


def _on(disk_image: str) -> str:
    return f", to be on the disk image {disk_image}" if disk_image else ""


def _deployed(scenario: str, features: Iterable[str]) -> str:
    return f"the scenario {scenario} with {', '.join(features)}"


def with_image(settings: Settings, image: str) -> Settings:
    """The settings with the component image that the pipeline was compiled with, unless they name one themselves."""
    if settings.images.components:
        return settings
    return settings.model_copy(update={"images": settings.images.model_copy(update={"components": image})})


def release_of(settings: Settings, run_id: str) -> Release:
    """The release of the settings' revision, for a reader: no cluster is asked, so none is live, nor is Secret Manager,
    since who may read manifests need not be able to read the server's key."""
    found = look_up(settings)
    check_architecture(settings, found.architecture)
    where = named_zones(settings) or zones(settings)
    return name_release(settings, run_id, found, live="", zones=where, proxy_ranges=proxies.ranges(settings))


def look_up(settings: Settings) -> Found:
    """What the revisions are. Whole commit shas whose weights are complete in the bucket are known without the hub.

    Raises RequestError for a repository or revision that is not there or cannot be served, AccessError without a grant.
    """
    wanted = repositories.of(settings)
    pinned = all(hub.is_commit(repository.revision) and not repository.source for repository in wanted)
    if pinned and (known := in_bucket(settings)):
        return known
    parts = repositories.find(settings)
    configs = {}
    for part in parts:
        where = f"{part.source.name}'s {part.repository.config}"
        configs[part.repository.role] = where, checkpoint.parse_json(where, part.config())
    commits = {part.repository.role: part.commit for part in parts}
    weights = {part.repository.role: part.chosen.shards + part.chosen.pickles for part in parts}
    heads = {part.repository.role: functools.cache(weighing.head_of(part.source)) for part in parts}
    own, changing = repositories.sets(settings, parts)
    found = _found(settings, repositories.weights_key(own), commits, configs, weights, heads)
    return replace(
        found,
        adapters_key=repositories.weights_key(changing) if changing else "",
        weights_bytes=sum(file.size for file in repositories.Together(parts).files()),
    )


def in_bucket(settings: Settings) -> Found | None:
    """What pinned commits are by the manifest of their weights; None when no complete weights are those."""
    wanted = repositories.of(settings)
    pinned = {manifest.Repository(role=each.role, model=each.model, commit=each.revision) for each in wanted}
    for weights_uri in manifest.complete_below(f"gs://{settings.bucket}/models/{settings.model}"):
        known, _ = manifest.read(weights_uri)
        if not known or set(known.repositories) != pinned or _has_forbidden_pickles(settings, known):
            continue
        there = manifest.listing(weights_uri)
        if not manifest.differences(known, there):
            places = {each.role: f"{weights_uri}/{each.folder}{each.config}" for each in wanted}
            configs = {role: (place, storage.read_json(place) or {}) for role, place in places.items()}
            commits = {each.role: each.revision for each in wanted}
            weights = {each.role: _weights_below(each.folder, known) for each in wanted}
            head = functools.cache(weighing.head_of(Folder(weights_uri, known.weights_key, there)))
            heads = dict.fromkeys(weights, head)
            found = _found(settings, known.weights_key, commits, configs, weights, heads)
            return replace(found, weights_bytes=sum(file.size for file in known.files))
    return None


def _weights_below(folder: str, known: manifest.Manifest) -> list[ServedFile]:
    """The files of weights that lie in a folder of a prefix itself."""
    files = (file for file in known.files if file.path.rpartition("/")[0] == folder.rstrip("/"))
    return [
        ServedFile(file.path, file.size)
        for file in files
        if file.path.endswith(".safetensors") or checkpoint.is_pickle(file.path)
    ]


def _has_forbidden_pickles(settings: Settings, known: manifest.Manifest) -> bool:
    return not settings.hub.allow_pickles and any(checkpoint.is_pickle(file.path) for file in known.files)


def _found(
    settings: Settings,
    weights_key: str,
    commits: dict[str, str],
    configs: dict[str, tuple[str, dict[str, Any]]],
    weights: dict[str, list[ServedFile]],
    heads: Mapping[str, Head],
) -> Found:
    """What commits (by role) are, by their config.json and adapter_config.json: (where it is, what it says), and by the
    files of their weights, which `heads` read."""
    of_adapters = [configs[name] for name in settings.adapters]
    if settings.assistant:
        check_assistant(*configs[repositories.ASSISTANT])
    warnings = [adapter.another_base(where, config, settings.model) for where, config in of_adapters]
    model = None
    try:
        base = weights[repositories.BASE], heads[repositories.BASE]
        model = weighing.weigh(settings.model, *configs[repositories.BASE], *base)
    except ReleaseError as error:
        # Whether such a model is one, the engine says: this is no verdict on the release.
        warnings.append(f"warning: nobody can tell what the model needs: {error}")
    rank = adapter.max_lora_rank(adapter.rank(where, config) for where, config in of_adapters)
    architecture = sizing.named(*configs[repositories.BASE])
    check_adapters(settings, architecture, weights, heads)
    return Found(
        commits[repositories.BASE],
        weights_key,
        architecture,
        {role: commit for role, commit in commits.items() if role != repositories.BASE},
        "",
        live_adapters.room(settings, rank) if settings.has_live_adapters else rank,
        model,
        sum(file.size for file in weights.get(repositories.ASSISTANT, [])),
        tuple(filter(None, warnings)),
    )


def check_adapters(
    settings: Settings, architecture: str, weights: dict[str, list[ServedFile]], heads: Mapping[str, Head]
) -> None:
    """Raises RequestError for an adapter that would do nothing, by the names of its tensors and of the model's: the
    headers of their files say them.

    Pickles have none; files that are broken, and what the engine would not load, download_weights judges.
    """
    base: set[str] | None = None
    for each in repositories.of(settings):
        files = weights.get(each.role, [])
        if not each.is_adapter or any(checkpoint.is_pickle(file.path) for file in files):
            continue
        if base is None:
            base = _tensors_of_base(weights[repositories.BASE], heads[repositories.BASE])
        with contextlib.suppress(ReleaseError):
            try:
                adapter.check_tensors(weighing.tensors(files, heads[each.role]), base, architecture)
            except adapter.InertError as error:
                raise RequestError(
                    f"{each.called}{error}, so it would do nothing. Name another revision of it "
                    f"(adapters.{each.role}.revision), or take it out of `adapters`"
                ) from error


def _tensors_of_base(files: list[ServedFile], head: Head) -> set[str]:
    if any(checkpoint.is_pickle(file.path) for file in files):
        return set()
    try:
        return weighing.tensors(files, head)
    except ReleaseError:
        return set()


def check_assistant(where: str, config: dict[str, Any]) -> None:
    """Raises RequestError for a model of the catalog's kinds: their layers attend in two ways, and of a draft model
    that is no assistant vLLM takes only one ("All drafting layers should belong to the same kv cache group")."""
    if catalog.first_version(kind := sizing.named(where, config)):
        raise RequestError(
            f"{where} says that it is a {kind}, a model of its own, which vLLM cannot draft with. Set assistant.model "
            "to the model's assistant, like google/gemma-4-E4B-it-assistant"
        )


def check_architecture(settings: Settings, architecture: str) -> None:
    """Raises RequestError when the engine's image is known not to serve the architecture, or that of the accelerator
    that a pod may find in place of the settings' own."""
    for own in filter(None, (settings, settings.beside)):
        _check_architecture(own, architecture)


def _check_architecture(settings: Settings, architecture: str) -> None:
    image = engine.engine_image(settings)
    served = catalog.supported_architectures(image)
    if served is None or architecture in served:
        return
    since = catalog.first_version(architecture)
    cure = (
        f"vLLM serves it from {since} on: set engine.image to such a version"
        if since
        else f"the catalog's images serve {', '.join(sorted(served))}; for another, set engine.image to one by digest"
    )
    raise RequestError(f"{settings.model} is a {architecture}, which {image} cannot serve: {cure}")


def key_version(settings: Settings) -> str:
    """The version of the server's API key that running pods are to have; empty without a key."""
    return google.secret_version(settings.engine.api_key_secret) if settings.engine.api_key_secret else ""


def size(settings: Settings, found: Found) -> Sizing:
    """How what was found runs on the settings' cards. Raises RequestError when it would not start, with what would."""
    wish = settings.wish(found.max_lora_rank, found.assistant_bytes)
    return sizing.judged(found.model, wish) if found.model else sizing.unknown(settings.model, wish)


def sizes(settings: Settings, found: Found) -> tuple[Sizing, Sizing | None]:
    """The same, and on the accelerator that a pod may find in their place, where there is a choice: with one context,
    the smaller of both, since clients do not choose which of them answers. Raises RequestError, too, where no machine
    has what a pod asks for beside its accelerators."""
    own, other = size(settings, found), settings.beside
    features.demand(settings, "holds", engine.host(settings, own))
    if other is None:
        return own, None
    contexts = [each.max_model_len for each in (own, size(other, found)) if each.max_model_len]
    if not contexts:
        return own, size(other, found)
    on_both = {"engine": settings.engine.model_copy(update={"max_model_len": min(contexts)})}
    on_other = {"engine": other.engine.model_copy(update={"max_model_len": min(contexts)})}
    return size(settings.model_copy(update=on_both), found), size(other.model_copy(update=on_other), found)


def engine_of(settings: Settings) -> dict[str, Any]:
    """What the features find out about the engine's image, as fields of the release."""
    found: dict[str, Any] = {}
    for _, fields in features.answers(settings, "resolved", engine.engine_image(settings)):
        found |= fields
    return found


def name_release(
    settings: Settings,
    run_id: str,
    found: Found,
    *,
    live: str,
    key_version: str = "",
    zones: Sequence[str] = (),
    proxy_ranges: Sequence[str] = (),
) -> Release:
    """The release, with the generation that it makes under these settings."""
    sized, on_another = sizes(settings, found)
    release = Release(
        run_id=run_id,
        model=settings.model,
        commit=found.commit,
        commits=found.commits,
        max_lora_rank=found.max_lora_rank,
        weights_key=found.weights_key,
        weights_uri=f"gs://{settings.bucket}/models/{settings.model}/{found.weights_key}",
        adapters_key=found.adapters_key,
        generation="",
        live=live,
        api_key_version=key_version,
        architecture=found.architecture,
        weights_bytes=found.weights_bytes,
        zones=list(zones),
        proxy_ranges=list(proxy_ranges),
        sizing=sized,
        beside=on_another,
        **engine_of(settings),
    )
    return release.model_copy(update={"generation": generation.name(settings, release)})


def zones(settings: Settings) -> list[str]:
    """Where the release has to be, for features to which it matters: in the zones that the settings name, else in all
    that the cluster's nodes may be in. Raises RequestError where replicas are to be spread and there is one."""
    if not any(True for _ in features.answers(settings, "zones")):
        return []
    named = named_zones(settings)
    there = google.cluster_traits(settings).zones
    if absent := set(named) - set(there):
        raise RequestError(
            f"the cluster {settings.cluster} has no nodes in {', '.join(sorted(absent))}, only in {', '.join(there)}. "
            "Change the zones in the settings, or the cluster's: `gcloud container clusters update "
            f"{settings.cluster} --node-locations=…`"
        )
    found = named or list(there)
    if settings.serving.replicas > 1 and len(found) < 2:
        raise RequestError(
            f"{settings.serving.replicas} replicas are to be spread over zones, and the cluster {settings.cluster} has "
            f"nodes in {', '.join(found)} alone. Set serving.replicas: 1, or give the cluster more node locations"
        )
    return found


def named_zones(settings: Settings) -> list[str]:
    """The zones that the settings name for features to which they matter."""
    return sorted({zone for _, some in features.answers(settings, "zones") for zone in some})


def look_around(cluster: Cluster, settings: Settings, release: Release, known: Record) -> Situation:
    """What there is of the release's generation, and what is left over."""
    deployment = cluster.get("Deployment", names.server(release.generation), settings.namespace)
    metadata = (deployment or {}).get("metadata", {})
    pods = (deployment or {}).get("spec", {}).get("template", {}).get("metadata", {})
    left = leftovers.find(cluster, settings, known, release.run_id, release.generation)
    left += leftovers.running_though_kept(cluster, settings, known)
    entry = record.entry(cluster, settings)
    held = cluster.get("Lease", settings.name, settings.namespace)
    dead = held is not None and lease.holder(held) not in ("", release.run_id) and lease.free_at(held) <= time.time()
    down = known.down
    return Situation(
        down=f"the run {down.run_id} took it down at {down.since} for {down.candidate}" if down else "",
        canary=_in_words(entrance.note_of(entry)),
        serving=record.serving_generation(entry),
        entry_as_wanted=entrance.is_as_wanted(settings, {release.generation: 100}, entry),
        replicas=replicas.wanted(deployment) if deployment else 0,
        settled=deployment is not None and replicas.settled(settings, deployment),
        autoscaler=autoscaling.amiss(cluster, settings, release.generation) if deployment else "",
        gateway=gateway.amiss(cluster, settings, release.generation) if deployment else "",
        ready=replicas.ready(deployment),
        rolled_out=deployment is not None and replicas.rolled_out(deployment),
        settings_digest=(metadata.get("annotations") or {}).get(names.SETTINGS, ""),
        key_version=(pods.get("annotations") or {}).get(names.KEY_VERSION, ""),
        missing=tuple(words for _, words in features.answers(settings, "missing", release) if words)
        if deployment
        else (),
        leftovers=tuple(f"{item['kind']}/{item['metadata']['name']}" for item in left),
        dead_holder=lease.holder(held) if held and dead else "",
        caches=caches.amiss(settings, release),
        adapters=adapters.amiss(cluster, settings, release, known) if deployment else "",
        damage=tuple(damage(*release.weights_uris)),
    )


def _in_words(canary: entrance.Note | None) -> str:
    """A canary that goes on, or that a dead run left; empty without one."""
    return f"the run {canary.run} gave {canary.candidate} a share of its requests at {canary.since}" if canary else ""


def damage(*weights_uris: str) -> list[str]:
    """In what sets of weights in the bucket are not complete, a line each."""
    return [words for uri in weights_uris for words in _damage(uri)]


def _damage(weights_uri: str) -> list[str]:
    try:
        known, _ = manifest.read(weights_uri)
    except PipelineError as error:
        return [str(error)]
    if known is None:
        return [f"{manifest.uri(weights_uri)} is missing"]
    return manifest.differences(known, manifest.listing(weights_uri))
