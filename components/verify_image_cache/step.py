"""The step that reads what nodes said of the engine's image: how much of it they found in their cache.

A node says so in Cloud Logging once for each image that it pulls, whoever's pod asked for it; of a pull that was long
ago the line is older than the pod. The pod's own event tells how long its pull took: a second witness, without a
verdict.
"""

from __future__ import annotations

import datetime
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from serving import names
from serving.clients import logging, registry, storage
from serving.clients.kubernetes import Cluster, Object
from serving.errors import InconclusiveError, PipelineError, ReleaseError
from serving.log import Say
from serving.outcome import Outcome
from serving.rendering import engine
from serving.settings import Settings, in_seconds
from serving.step import opened
from serving.weights.release import Release

POLL_SECONDS = 5.0
"""Cloud Logging takes about sixty such questions a minute of a whole project."""
_KEPT_DAYS = 30
"""How long Cloud Logging keeps entries, unless somebody has changed it."""
_LINE = re.compile(
    r"Image \S+ is backed by secondary boot disk caching by [\d.]+% \((?P<disk>\d+)/(?P<layers>\d+) layers\), "
    r"by image streaming by [\d.]+% \((?P<streamed>\d+)/\d+ layers\)"
)
_PULL = re.compile(r"Successfully pulled image \"(?P<image>[^\"]+)\" in (?P<took>\S+)")


@dataclass(frozen=True)
class Cached:
    """What a node said of an image: how many of its layers it found on the disk, and could stream."""

    node: str
    layers: int
    disk: int
    streamed: int
    said_at: str

    def share(self, *, streaming: bool) -> float:
        """Percent of the layers that were not pulled as a whole."""
        return 100.0 * (self.disk + (self.streamed if streaming else 0)) / max(1, self.layers)


def run(settings: dict[str, Any], release: dict[str, Any], passed: bool, reasons: list[str]) -> tuple[bool, list[str]]:
    """Judges the cache of the nodes that serve the release's generation. Returns the verdict so far and its reasons."""
    with opened("verify_image_cache", settings, release) as step:
        outcome, config, target = step.outcome, step.settings, step.release
        if not passed:
            outcome.skipped("nothing is looked at: the release has failed already")
            return False, reasons
        with step.cluster() as cluster:
            step.bring_up_again(cluster)
            reasons = verify(cluster, config, target, outcome)
            if reasons:
                outcome.failed(ReleaseError("; ".join(reasons)))
    return not reasons, reasons


def verify(
    cluster: Cluster, settings: Settings, release: Release, outcome: Outcome, pause: float = POLL_SECONDS
) -> list[str]:
    """Why the nodes' cache is not what it has to be; nothing when it is.

    Raises InconclusiveError when the generation has no pods with nodes, or a node says nothing of the image in time:
    that says nothing about the cache, so a release is not held guilty. One that serves already is then left alone.
    """
    pods = cluster.list("Pod", settings.namespace, labels=names.selector(settings, release.generation))
    nodes = sorted({pod["spec"]["nodeName"] for pod in pods if _serves(pod)})
    if not nodes:
        raise InconclusiveError(f"no pod of {release.generation} has a node. Run again")
    pulls = pulls_of(cluster.list("Event", settings.namespace), pods, release.image_digest)
    outcome.details["pulls"] = pulls
    for node, took in pulls.items():
        outcome.say(f"{node} pulled the engine's image in {took}")
    section = settings.section("secondary-boot-disk")
    # A node of the live generation may have pulled the image longer ago than anybody remembers, and whether nodes speak
    # of what they stream nobody knows.
    has_to_speak = release.generation != release.live and section.image == "disk"
    said = wait_for_lines(
        lambda: lines(settings.project, release.image_digest),
        nodes,
        in_seconds(section.verify_timeout) if has_to_speak else 0.0,
        pause,
        outcome.say,
    )
    outcome.details["nodes"] = [vars(said[node]) for node in sorted(said)]
    silent = [node for node in nodes if node not in said]
    if silent and has_to_speak:
        raise InconclusiveError(_silence(settings, release, silent, pulls))
    found = judge(settings, release, said.values())
    if not found:
        outcome.succeeded(_summary(said, silent, pulls))
    return found


def _serves(pod: Object) -> bool:
    """Whether a pod has a node and stays there: one that was evicted, or that goes, may have outlived its node."""
    ended = (pod.get("status") or {}).get("phase") in ("Failed", "Succeeded")
    return bool(pod["spec"].get("nodeName")) and not ended and not pod["metadata"].get("deletionTimestamp")


def lines(project: str, digest: str) -> list[Cached]:
    """All that nodes of the project have said of an image, the newest first."""
    since = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=_KEPT_DAYS)
    found = logging.entries(
        project,
        # A node writes the image's name as it was pulled: with the registry or without it, but with the digest.
        f'logName="projects/{project}/logs/gcfs-snapshotter" AND jsonPayload.MESSAGE:"{digest}" AND '
        f'jsonPayload.MESSAGE:"is backed by secondary boot disk caching" AND timestamp>="{since:%Y-%m-%dT%H:%M:%SZ}"',
    )
    return [line for entry in found if (line := line_of(entry))]


def line_of(entry: dict[str, Any]) -> Cached | None:
    """What an entry of the log says; None for one that says something else."""
    payload = entry.get("jsonPayload") or {}
    match = _LINE.search(str(payload.get("MESSAGE", "")))
    # Which of them names the node is not documented.
    node = ((entry.get("resource") or {}).get("labels") or {}).get("node_name") or payload.get("_HOSTNAME") or ""
    if not match or not node:
        return None
    return Cached(
        node=str(node).partition(".")[0],
        layers=int(match["layers"]),
        disk=int(match["disk"]),
        streamed=int(match["streamed"]),
        said_at=str(entry.get("timestamp", "")),
    )


def wait_for_lines(
    ask: Callable[[], Iterable[Cached]], nodes: list[str], seconds: float, pause: float, say: Say
) -> dict[str, Cached]:
    """The newest word of each node, waited for until all have spoken or the time is over."""
    deadline = time.monotonic() + seconds
    told = False
    while True:
        newest: dict[str, Cached] = {}
        for line in ask():
            if line.node in nodes:
                newest.setdefault(line.node, line)
        if len(newest) == len(nodes) or time.monotonic() + pause > deadline:
            return newest
        if not told:
            say(f"waiting for {_nodes(len(nodes) - len(newest))} to say in Cloud Logging what was found")
            told = True
        time.sleep(pause)


def pulls_of(events: list[Object], pods: list[Object], digest: str) -> dict[str, str]:
    """Node → how long its pull of the image took, as pods' events tell it."""
    node_of = {pod["metadata"]["uid"]: pod["spec"].get("nodeName") for pod in pods}
    found = {}
    for event in events:
        match = _PULL.search(event.get("message") or "")
        node = node_of.get((event.get("involvedObject") or {}).get("uid"))
        if event.get("reason") == "Pulled" and node and match and digest in match["image"]:
            found[node] = match["took"]
    return found


def judge(settings: Settings, release: Release, said: Iterable[Cached]) -> list[str]:
    """Which nodes found less than the threshold, and what of the image they missed."""
    section = settings.section("secondary-boot-disk")
    streaming = section.image == "streaming"
    short = [line for line in said if line.share(streaming=streaming) < section.threshold]
    if not short:
        return []
    found = [
        f"{line.node} found {line.disk} of {line.layers} layers of the engine's image on its disk"
        f"{f', and could stream {line.streamed}' if streaming else ''}: "
        f"{line.share(streaming=streaming):.1f}%, below secondary_boot_disk.threshold ({section.threshold:g}%)"
        for line in short
    ]
    return [*found, _what_is_missing(settings, release)] if not streaming else found


def _what_is_missing(settings: Settings, release: Release) -> str:
    """Which layers the disk image has not, by what was noted when it was baked."""
    uri = names.disk_image_record(settings, release.disk_image)
    remove = (
        f"Have it baked again: `gcloud compute images delete {release.disk_image} --project {settings.project}`, then "
        "run with --retry"
    )
    try:
        baked = set((storage.read_json(uri) or {})["chain_ids"])
        platform = f"linux/{settings.section('secondary-boot-disk').architecture}"
        wanted = registry.resolve(engine.pod_image(settings, release), platform).chain_ids
    except (PipelineError, KeyError, TypeError) as error:
        return f"which layers the disk image {release.disk_image} has is not known ({error}). {remove}"
    missing = [chain_id for chain_id in wanted if chain_id not in baked]
    if missing:
        return f"the disk image {release.disk_image} lacks the layers {', '.join(missing)}. {remove}"
    return (
        f"the disk image {release.disk_image} has all {len(wanted)} layers, so the node did not read them: see whether "
        f"its disk is of that image and image streaming is on. {remove}"
    )


def _silence(settings: Settings, release: Release, silent: list[str], pulls: dict[str, str]) -> str:
    witness = "; ".join(f"{node} pulled it in {took}" for node, took in pulls.items() if node in silent)
    waited = settings.section("secondary-boot-disk").verify_timeout
    return (
        f"{', '.join(silent)} said nothing of the engine's image ({release.image_digest[:19]}…) in Cloud Logging "
        f"within {waited}{f' ({witness})' if witness else ''}. See whether the cluster sends its nodes' logs there "
        f"(`gcloud container clusters describe {settings.cluster} --location {settings.location} "
        "--format=value(loggingConfig)`) and image streaming is on; `gcloud logging read 'logName:gcfs-snapshotter' "
        f"--project {settings.project}` shows what nodes say"
    )


def _summary(said: dict[str, Cached], silent: list[str], pulls: dict[str, str]) -> str:
    """The verdict on a cache that is as it has to be, in one line."""
    parts = []
    if said:
        least = min(said.values(), key=lambda line: line.disk + line.streamed)
        parts.append(
            f"{_nodes(len(said))} found {least.disk} of {least.layers} layers on their disk"
            f"{f' and could stream {least.streamed}' if least.streamed else ''}"
        )
    if silent:
        parts.append(f"{_nodes(len(silent))} said nothing in Cloud Logging")
    if pulls:
        parts.append(f"pulled in {', '.join(sorted(set(pulls.values())))}")
    return "; ".join(parts)


def _nodes(count: int) -> str:
    return f"{count} node{'' if count == 1 else 's'}"
