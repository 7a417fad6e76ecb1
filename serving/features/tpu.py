"""TPU chips of one node: what a pod asks for, and which nodes have them.

A pod has the whole of its node: a slice of one host, whose topology says how its chips are wired. Slices of several
hosts are refused. Sources: https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus and
https://cloud.google.com/kubernetes-engine/docs/how-to/tpus.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from serving.errors import InconclusiveError, ReleaseError
from serving.features import Explanation, Symptom, nodes

if TYPE_CHECKING:
    from serving.catalog import Host
    from serving.clients.google import ClusterTraits
    from serving.settings import Settings
    from serving.weights.release import Release

DEFAULT_TYPE = "tpu-v6e-slice"
"""The accelerator of a deployment whose settings name none."""

_AS_ROOT = (
    "patches: [{kind: Deployment, spec: {template: {spec: {securityContext: {runAsNonRoot: false, runAsUser: 0}}}}}]"
)
_MEANINGS = (
    (
        r"TPU is already in use by process|/dev/(vfio|accel)\S* ?\)?: Device or resource busy|libtpu.*already in use",
        "the chips under {pod} are in use by another process, of a server that has not gone yet. Run again",
    ),
    (
        r"/dev/(vfio|accel)\S* ?\(?\)?:? ?\(?(Permission denied|Operation not permitted)|RLIMIT_MEMLOCK",
        "{pod} may not open its chips, or not lock the memory that they read. It runs as nobody, which has not been "
        f"confirmed for every version of GKE. If it stays, let the server be root, `{_AS_ROOT}`, in a namespace whose "
        "label pod-security.kubernetes.io/enforce is baseline",
    ),
    (
        r"[Ff]ailed to get global TPU topology|[Tt]opology.*mismatch|TPU_CHIPS_PER_HOST_BOUNDS",
        "libtpu does not find the chips under {pod} wired as the node's topology says. See that the labels "
        "cloud.google.com/gke-tpu-accelerator and cloud.google.com/gke-tpu-topology of its node are those of its "
        "machine (`kubectl get nodes --show-labels`), and run again",
    ),
    (
        r"No TPU devices? (was |were )?found|TPU initialization failed|Unable to initialize backend 'tpu'"
        r"|Couldn't open device: /dev/accel",
        "{pod} sees no TPU on its node, whose driver is not ready or has failed. Run again; `kubectl -n kube-system "
        "get pods -o wide` shows tpu-device-plugin there",
    ),
)
"""Pattern in an engine's log, or in the words of the container runtime → what it means, and the cure."""
_COMPILES = re.compile(r"([Pp]recompil|Compiling)[^\n]*\Z")
"""The end of the log of an engine that compiles."""
_TOO_LARGE = re.compile(r"Ran out of memory in memory space hbm|RESOURCE_EXHAUSTED:.*\bhbm\b", re.IGNORECASE)
_OF_THE_CHIPS = re.compile(r"node affinity/selector|google\.com/tpu|topology", re.IGNORECASE)
"""In the autoscaler's words: it may be about chips, and not about capacity."""


def check(settings: Settings) -> None:
    """Raises RequestError for an accelerator that is no TPU."""
    nodes.check(settings, "tpu")


def holds(settings: Settings, asked: Host) -> None:
    """Raises RequestError for a pod that is more than any of their machines."""
    nodes.hold(settings, asked)


def suits(settings: Settings, look: Callable[[], ClusterTraits]) -> None:
    """Raises RequestError for a cluster that has no such nodes."""
    nodes.suits(settings, look)


def values(settings: Settings, release: Release | None) -> dict[str, Any]:
    """Of the pods: chips, nodes and their taints."""
    return nodes.values(settings) if release else {}


def explain(settings: Settings, symptom: Symptom) -> Explanation | None:
    """What nodes, drivers and chips do to an engine: never the release's doing."""
    if reserved := nodes.explain(settings, symptom):
        return reserved
    if symptom.kind == "no-node" and _OF_THE_CHIPS.search(symptom.words):
        asked, found = settings.accelerator, nodes.card(settings)
        machine = found.machines_with(asked.count)[0].name
        return Explanation(
            InconclusiveError,
            f"no node for {symptom.pod}: {symptom.words}. It asks for {asked.count} × {asked.type} in the topology "
            f"{found.topologies[asked.count]}, which is a {machine}: see whether zones of the cluster have it (`gcloud "
            f"compute machine-types list --project {settings.project} --filter name={machine}`), and whether there is "
            f"quota (`gemma-pipelines plan {settings.scenario} -f FILE`)",
        )
    if symptom.kind != "words":
        return None
    if _TOO_LARGE.search(symptom.words):
        return Explanation(
            ReleaseError,
            "it does not fit into the chips' memory with these settings: take more chips (accelerator.count), or a "
            "smaller engine.max_model_len",
        )
    if _COMPILES.search(symptom.words.rstrip()):
        return Explanation(
            InconclusiveError,
            f"XLA still compiled in {symptom.pod} when its time was over: raise serving.ready_timeout",
        )
    for pattern, meaning in _MEANINGS:
        if re.search(pattern, symptom.words):
            return Explanation(InconclusiveError, meaning.replace("{pod}", symptom.pod))
    return None
