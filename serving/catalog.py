"""What the project knows about models, accelerators and engine images: `manifests/catalog.yaml`, read and reasoned on.

The catalog answers two questions before anything is spent. Can this image serve this architecture? Can this model start
on these cards, with which flags and how large a pod? The second by a memory model that measured rows overrule.
"""

from __future__ import annotations

import difflib
import functools
import importlib.resources
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from serving.errors import RequestError

AS_PUBLISHED = "as_published"
_KIB_PER_GIB = 1024 * 1024


@dataclass(frozen=True)
class Sizing:
    """How a model runs on an accelerator: what its pods ask for and what its engine is told."""

    model: str
    """The catalog entry."""
    accelerator: str
    count: int
    cpu: str
    memory: str
    ephemeral_storage: str
    """Kubernetes quantities, of one pod."""
    max_model_len: int
    """Tokens."""
    gpu_memory_utilization: float
    kv_gib: float | None
    """What is left for the KV cache of one card; None where the catalog cannot tell: an unknown quantization."""
    kv_tokens: int | None
    """How many tokens the KV cache of all cards holds; None where nobody has measured what one takes."""

    @property
    def starts(self) -> bool:
        """Whether the engine finds memory for one request of the whole context length; True where nobody knows."""
        if self.kv_gib is None:
            return True
        return self.kv_gib > 0 and (self.kv_tokens is None or self.kv_tokens >= self.max_model_len)


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
    return {name: list(known["counts"]) for name, known in _catalog()["accelerators"].items()}


def node_selector(accelerator: str) -> dict[str, str]:
    """The labels of GKE's nodes that have the accelerator."""
    return dict(_catalog()["accelerators"][accelerator]["node_selector"])


def architectures(model: str) -> list[str]:
    """What the model's config.json says. Raises RequestError for a model that is not in the catalog."""
    return list(_model(model)["architectures"])


def speculative_tokens(model: str) -> int | None:
    """How many tokens the model's assistant drafts at a time; None where nobody has said. Raises RequestError for a
    model that is not in the catalog."""
    drafted: int | None = _model(model).get("speculative_tokens")
    return drafted


def engine_image() -> str:
    """The pinned image of the engine."""
    return _catalog()["engine"]["image"]


def supported_architectures(image: str) -> frozenset[str] | None:
    """The architectures of the catalog that an engine image can serve.

    None when the image does not tell its vLLM version: a digest, or a tag of somebody's own. Then only the engine
    itself can say.
    """
    engine = _catalog()["engine"]
    name, _, tag = image.partition("@")[0].rpartition("/")[2].partition(":")
    version = re.match(r"v(\d+)\.(\d+)\.(\d+)", tag)
    if name not in engine["versioned"] or not version:
        return None
    has = tuple(map(int, version.groups()))
    return frozenset(
        architecture
        for architecture, since in engine["architectures"].items()
        if has >= tuple(map(int, since.split(".")))
    )


def first_version(architecture: str) -> str | None:
    """The first vLLM version that serves an architecture; None for one that the catalog does not know."""
    version: str | None = _catalog()["engine"]["architectures"].get(architecture)
    return version


def entry(
    model: str,
    accelerator: str,
    count: int,
    quantization: str | None = None,
    *,
    max_model_len: int | None = None,
    gpu_memory_utilization: float | None = None,
) -> Sizing:
    """How `model` runs on `count` cards of `accelerator`; the last two replace what the catalog says.

    Raises RequestError for a model or an accelerator that the catalog does not know (with the closest it does), for a
    count that GKE does not offer, and for a combination that cannot start (with those that can).
    """
    known = _model(model)
    _accelerator(accelerator, count)
    heads = known["attention_heads"]
    if heads and heads % count:
        raise RequestError(f"accelerator.count: the {heads} attention heads of {model} do not split over {count} cards")
    sizing = _size(model, accelerator, count, quantization, max_model_len, gpu_memory_utilization)
    if sizing.max_model_len > known["context"]:
        raise RequestError(
            f"engine.max_model_len: {model} was made for {known['context']} tokens of context, not {max_model_len}"
        )
    if not sizing.starts:
        raise RequestError(_cannot_start(sizing, quantization))
    return sizing


def _size(
    model: str,
    accelerator: str,
    count: int,
    quantization: str | None = None,
    max_model_len: int | None = None,
    gpu_memory_utilization: float | None = None,
) -> Sizing:
    known = _catalog()["models"][model]
    row = known.get("settings", {}).get(accelerator, {}).get(count, known["defaults"])
    share = gpu_memory_utilization or row["gpu_memory_utilization"]
    kv_gib = _kv_cache(model, accelerator, count, quantization, share)
    per_token = known["kv_kib_per_token"]
    return Sizing(
        model=model,
        accelerator=accelerator,
        count=count,
        **known["host"],
        max_model_len=max_model_len or row["max_model_len"],
        gpu_memory_utilization=share,
        kv_gib=kv_gib,
        kv_tokens=int(kv_gib * _KIB_PER_GIB / per_token * count) if kv_gib is not None and per_token else None,
    )


def _kv_cache(model: str, accelerator: str, count: int, quantization: str | None, share: float) -> float | None:
    """GiB left for the KV cache of one card; None when the catalog cannot tell."""
    known, memory = _catalog()["models"][model], _catalog()["accelerators"][accelerator]["memory_gib"]
    encoders = known.get("encoders_gib", 0) / count
    subject = (model, accelerator, count, quantization)
    for row in _catalog()["measured"]:
        if (row["model"], row["accelerator"], row["count"], row.get("quantization")) == subject:
            # The rows were measured without encoders, and a larger share goes to the KV cache whole.
            return row["kv_gib"] + memory * (share - row["gpu_memory_utilization"]) - encoders
    weights = known["weights_gib"].get(quantization or AS_PUBLISHED)
    return memory * share - weights / count - encoders - known["overhead_gib"] if weights else None


def _model(model: str) -> dict[str, Any]:
    known = _catalog()["models"]
    if model not in known:
        close = difflib.get_close_matches(model, known, n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(close)}?" if close else f" It knows {', '.join(known)}."
        raise RequestError(
            f"{model} is not in the catalog.{hint} For a model of your own, a fine-tune say, set engine.sizing_like to "
            f"the catalog's model that it is made like, such as {close[0] if close else next(iter(known))}"
        )
    return known[model]


def _accelerator(accelerator: str, count: int) -> dict[str, Any]:
    known = _catalog()["accelerators"]
    if accelerator not in known:
        close = difflib.get_close_matches(accelerator, known, n=1)
        hint = f": did you mean {close[0]}?" if close else ""
        raise RequestError(f"accelerator.type: {accelerator} is not one of {', '.join(known)}{hint}")
    if count not in known[accelerator]["counts"]:
        offered = ", ".join(map(str, known[accelerator]["counts"]))
        raise RequestError(f"accelerator.count: GKE puts {offered} of {accelerator} on a node, not {count}")
    return known[accelerator]


def _starting(model: str) -> Iterator[str]:
    """What can start: the smallest count of each accelerator, and quantizations that need fewer cards still."""
    known = _model(model)
    heads, quantizations = known["attention_heads"], [name for name in known["weights_gib"] if name != AS_PUBLISHED]
    for accelerator, counts in accelerators().items():
        fewest = counts[-1] + 1
        for quantization in [None, *quantizations]:
            for count in counts:
                splits = not heads or heads % count == 0
                if count < fewest and splits and _size(model, accelerator, count, quantization).starts:
                    fewest = count
                    how = f" with engine.quantization: {quantization}" if quantization else ""
                    yield f"{count} × {accelerator}{how}"


def _cannot_start(sizing: Sizing, quantization: str | None) -> str:
    known = _model(sizing.model)
    how = f" with quantization {quantization}" if quantization else ""
    kv_gib = sizing.kv_gib or 0.0
    if kv_gib <= 0:
        why = f"it lacks {-kv_gib:.1f} GiB a card at gpu_memory_utilization {sizing.gpu_memory_utilization}"
        if weights := known["weights_gib"].get(quantization or AS_PUBLISHED):
            why = f"its weights take {weights / sizing.count:.1f} GiB a card, and {why}"
    else:
        why = (
            f"{kv_gib:.1f} GiB of KV cache a card hold {sizing.kv_tokens} tokens, fewer than max_model_len "
            f"{sizing.max_model_len}"
        )
    return (
        f"{sizing.model}{how} on {sizing.count} × {sizing.accelerator} cannot start: {why}. What can: "
        f"{'; '.join(_starting(sizing.model))}"
    )
