"""What the project knows about models, accelerators and engine images: `manifests/catalog.yaml`, read.

What follows from it, which model starts where, is for serving/sizing/. Here is what no file of a model tells.
"""

from __future__ import annotations

import difflib
import functools
import importlib.resources
import re
from dataclasses import dataclass, field
from typing import Any

from serving.errors import RequestError


@dataclass(frozen=True)
class Batch:
    """What the engine takes at once, and what that costs a card beside weights and KV cache."""

    name: str
    tokens: int
    requests: int
    base_gib: float
    gib_per_thousand_hidden: float
    more_cards_gib: float

    def overhead_gib(self, hidden: int, cards: int) -> float:
        """GiB of each card, for a model of that hidden size on that many cards."""
        own = self.base_gib + self.gib_per_thousand_hidden * hidden / 1000
        return own + (self.more_cards_gib if cards > 1 else 0.0)


@dataclass(frozen=True)
class Kind:
    """What pods of one kind of accelerators have in common."""

    name: str
    """The feature of deployments that have such accelerators."""
    resource: str
    """What a pod asks of its node; the nodes have a taint of that key."""
    image: str
    """The engine's."""
    ready_timeout: str
    """How long a server that has its node may take to become ready: a duration of the settings."""
    node_selector: dict[str, str] = field(default_factory=dict)
    topology_label: str = ""
    """The label of nodes that says how their chips are wired; empty where they are not."""
    project_quota: str = ""
    """The quota of Compute Engine that they count against in all regions together; empty without."""
    architecture_flags: dict[str, list[str]] = field(default_factory=dict)
    """Flags of `vllm serve` by the model's architecture."""
    context: int | None = None
    """Tokens: --max-model-len where nobody knows better; None: the engine finds out."""
    shared_memory_gib: int = 0
    """Shared memory of a pod, at least."""


@dataclass(frozen=True)
class Machine:
    """A machine type with accelerators."""

    name: str
    count: int
    """Its accelerators."""
    cpu: int
    memory_gib: int

    @property
    def cpu_of_pods(self) -> float:
        """The processors that GKE leaves to pods
        (https://cloud.google.com/kubernetes-engine/docs/concepts/plan-node-sizes), those of GKE's own included."""
        return self.cpu - _reserved(self.cpu, [(1, 0.06), (1, 0.01), (2, 0.005)], 0.0025)

    @property
    def memory_of_pods(self) -> float:
        """The GiB that GKE leaves to pods (the same source): 100 MiB are for eviction."""
        return self.memory_gib - _reserved(self.memory_gib, [(4, 0.25), (4, 0.2), (8, 0.1), (112, 0.06)], 0.02) - 0.1


def _reserved(amount: float, tiers: list[tuple[float, float]], rest: float) -> float:
    """What is kept of an amount: a share of each tier, (size, share), and of the rest."""
    kept = 0.0
    for size, share in tiers:
        kept += min(amount, size) * share
        amount = max(0.0, amount - size)
    return kept + amount * rest


@dataclass(frozen=True)
class Card:
    """An accelerator: a row of the catalog."""

    kind: Kind
    memory_gib: float
    """Of each core."""
    machines: list[Machine]
    """The machines that have it."""
    machine_family: str
    node_selector: dict[str, str]
    """The label of GKE's nodes that have it, with what GKE calls it."""
    batch: str | None = None
    """Which of the engine's batches is its own here, by name; None where nobody has measured the overhead."""
    cores: int = 1
    """Devices that the engine sees in one: it splits the model over them all."""
    topologies: dict[int, str] = field(default_factory=dict)
    """How the chips of a node are wired, by their number."""
    quota: str = ""
    """The quota of Compute Engine that it counts against; empty where Compute Engine shows none."""
    quota_ids: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The quota of the Cloud Quotas API, `{id, dimensions}`, where that alone has it, by how nodes are paid for:
    on-demand, spot."""

    def nodes_with(self, count: int) -> dict[str, str]:
        """The labels of GKE's nodes that have so many of it."""
        wired = {self.kind.topology_label: self.topologies[count]} if self.topologies else {}
        return {**self.node_selector, **self.kind.node_selector, **wired}

    @property
    def counts(self) -> list[int]:
        """How many of them GKE puts on a node."""
        return sorted({machine.count for machine in self.machines})

    def machines_with(self, count: int) -> list[Machine]:
        """The machines that have so many; a TPU's is one."""
        return [machine for machine in self.machines if machine.count == count]

    @property
    def gke_name(self) -> str:
        """What GKE calls it."""
        return next(iter(self.node_selector.values()))


@dataclass(frozen=True)
class Host:
    """A pod's part of its machine, as Kubernetes quantities."""

    cpu: str
    memory: str
    ephemeral_storage: str


@functools.cache
def _catalog() -> dict[str, Any]:
    import yaml

    text = importlib.resources.files("manifests").joinpath("catalog.yaml").read_text(encoding="utf-8")
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 (both are safe)


def models() -> list[str]:
    """The models that the catalog knows, by their hub names."""
    return list(_catalog()["models"])


def accelerators() -> dict[str, list[int]]:
    """The accelerators that the catalog knows, with how many of each GKE puts on a node."""
    return {name: card(name).counts for name in _catalog()["accelerators"]}


def kind(name: str) -> Kind:
    """A kind of accelerators, by the feature of deployments that have them."""
    return Kind(name, **_catalog()["kinds"][name])


def attaching_hyperdisk_ml() -> list[str]:
    """The machine families that attach a Hyperdisk ML volume."""
    return list(_catalog()["hyperdisk_ml"]["machine_families"])


def hydrating_hyperdisk_ml() -> list[str]:
    """The machine families that can copy to such a volume, and read it, in a Job."""
    return list(_catalog()["hyperdisk_ml"]["of_jobs"])


def model(name: str) -> dict[str, Any]:
    """What the catalog has of a model: `config`, `weights`, `host`. Raises RequestError for another, with the closest
    that it knows."""
    known = _catalog()["models"]
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"Did you mean {' or '.join(close)}?" if close else f"It knows {', '.join(known)}."
        raise RequestError(f"{name} is not in the catalog. {hint}")
    return dict(known[name])


def host(name: str) -> Host:
    """The host's part for a model of the catalog."""
    return Host(**model(name)["host"])


def known_contexts(name: str, accelerator: str) -> dict[int, int | None]:
    """The contexts that somebody serves the model with on an accelerator whose overhead nobody has measured, by count;
    None where they say no more than that it is served."""
    found: dict[int, int | None] = _catalog()["models"].get(name, {}).get("contexts", {}).get(accelerator, {})
    return found


def card(accelerator: str, count: int | None = None) -> Card:
    """An accelerator. Raises RequestError for one that the catalog does not know, with the closest, and for a `count`
    that GKE does not put on a node."""
    known = _catalog()["accelerators"]
    if accelerator not in known:
        close = difflib.get_close_matches(accelerator, known, n=1)
        hint = f": did you mean {close[0]}?" if close else ""
        raise RequestError(f"accelerator.type: {accelerator} is not one of {', '.join(known)}{hint}")
    row = known[accelerator]
    machines = [Machine(name, **size) for name, size in row["machines"].items()]
    found = Card(**{**row, "kind": kind(row["kind"]), "machines": machines})
    if count is not None and count not in found.counts:
        raise RequestError(f"accelerator.count: {_not_on_a_node(accelerator, found, count)}")
    return found


def _not_on_a_node(accelerator: str, found: Card, count: int) -> str:
    wired = {each: f" ({topology})" for each, topology in found.topologies.items()}
    offered = ", ".join(f"{each}{wired.get(each, '')}" for each in found.counts)
    words = f"GKE puts {offered} of {accelerator} on a node, not {count}"
    if not wired or count < max(found.counts):
        return words
    return (
        f"{words}. A slice of several nodes is one server in several pods, which come and go together: that is not to "
        "be had here. Take more replicas (serving.replicas), or a smaller model"
    )


def batches() -> list[Batch]:
    """The sizes of batches whose overhead was measured, the largest first."""
    found = (Batch(name, **known) for name, known in _catalog()["engine"]["batches"].items())
    return sorted(found, key=lambda batch: -batch.tokens)


def video_tokens() -> int:
    """Tokens of the longest video, which some models take whole."""
    tokens: int = _catalog()["engine"]["video_tokens"]
    return tokens


def memory_share() -> float:
    """The share of a card's memory that the engine takes when nobody says otherwise."""
    share: float = _catalog()["engine"]["gpu_memory_utilization"]
    return share


def quantizations() -> dict[str, tuple[str, ...]]:
    """What can be quantized to 8 bits on loading, by what it is called: `linear` layers, `experts`."""
    return {name: tuple(halved) for name, halved in _catalog()["engine"]["quantizations"].items()}


def current_name(quantization: str | None) -> str | None:
    """What the pinned vLLM calls a quantization."""
    return _renamed().get(quantization or "", {}).get("to", quantization)


def quantization_flag(name: str, image: str) -> str:
    """What the vLLM of an image calls a quantization. One that does not tell its version is asked by the old name."""
    renamed = _renamed().get(name)
    version = _version(image)
    return renamed["to"] if renamed and version and version >= _numbers(renamed["since"]) else name


def _renamed() -> dict[str, dict[str, str]]:
    renamed: dict[str, dict[str, str]] = _catalog()["engine"]["renamed_quantizations"]
    return renamed


def measured() -> list[dict[str, Any]]:
    """The starts of a real engine that were seen: `model`, `accelerator`, `count`, `quantization` (null: as published),
    `gpu_memory_utilization`, `max_model_len`, `kv_gib` of a card (null: none was logged), `kv_tokens` (0: it did not
    start)."""
    return [{**row, "quantization": current_name(row.get("quantization"))} for row in _catalog()["measured"]]


def speculative_tokens(model: str) -> int | None:
    """How many tokens the model's assistant drafts at a time; None where nobody has said."""
    drafted: int | None = _catalog()["models"].get(model, {}).get("speculative_tokens")
    return drafted


def supported_architectures(image: str) -> frozenset[str] | None:
    """The architectures of the catalog that an engine image can serve.

    None when the image does not tell its vLLM version: a digest, or a tag of somebody's own. Then only the engine
    itself can say.
    """
    has = _version(image)
    if has is None:
        return None
    since = _catalog()["engine"]["architectures"]
    return frozenset(architecture for architecture, first in since.items() if has >= _numbers(first))


def _version(image: str) -> tuple[int, ...] | None:
    """The vLLM version of an image; None when its name does not tell."""
    name, _, tag = image.partition("@")[0].rpartition("/")[2].partition(":")
    found = re.match(r"v(\d+\.\d+\.\d+)", tag)
    return _numbers(found[1]) if found and name in _catalog()["engine"]["versioned"] else None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def architectures() -> list[str]:
    """The architectures that the catalog knows."""
    return list(_catalog()["engine"]["architectures"])


def first_version(architecture: str) -> str | None:
    """The first vLLM version that serves an architecture; None for one that the catalog does not know."""
    version: str | None = _catalog()["engine"]["architectures"].get(architecture)
    return version
