"""What fits where: a model on every accelerator that GKE has, and what to take instead of what does not start."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from serving import catalog
from serving.catalog import Host
from serving.errors import RequestError
from serving.sizing.architecture import of_config
from serving.sizing.rule import GIB, Model, Sizing, Wish, loaded_bytes, size, warning
from serving.sizing.weights import Weights


@dataclass(frozen=True)
class Fit:
    """A model on some cards. GiB are those of one card."""

    model: str
    accelerator: str
    count: int
    quantization: str | None
    starts: bool | None
    """None where nobody knows: the overhead on such cards was not measured."""
    max_model_len: int | None
    """The longest context that 4 requests at once find room with, or where nobody knows it the one that is served; None
    where it does not start."""
    requests_at_once: float | None
    weights_gib: float | None
    kv_gib: float | None
    measured: bool
    """Whether a real engine has been seen to start, or not to, like this (manifests/catalog.yaml)."""
    longest: int
    """The longest context of which one request alone finds room."""
    warning: str = ""
    """That nobody is known to serve it like this, where nobody knows whether it starts."""

    def as_json(self) -> dict[str, Any]:
        """The object that `fits --json` prints."""
        return {key: value for key, value in asdict(self).items() if key != "longest"}


def of_catalog(name: str) -> Model:
    """A model that the catalog knows. Raises RequestError for another, with the closest."""
    known = catalog.model(name)
    return Model(name, of_config(f"the catalog's {name}", known["config"]), Weights(**known["weights"]))


def host(name: str, weights_gib: float | None) -> Host:
    """The host's part for a model whose weights take so much of all cards together: the catalog's, or that of the
    catalog's next larger model; where nobody knows how large it is, the largest's."""
    if name in catalog.models():
        return catalog.host(name)
    sizes = {known: loaded_bytes(of_catalog(known)) / GIB for known in catalog.models()}
    larger = [known for known in sizes if weights_gib is not None and sizes[known] >= weights_gib - 0.01]
    return catalog.host(min(larger, key=sizes.__getitem__) if larger else max(sizes, key=sizes.__getitem__))


def everywhere(model: Model, accelerator: str | None = None, wish: Wish | None = None) -> Iterator[Fit]:
    """The model on every accelerator (or the one), with each count and each quantization on loading that suit it.

    `wish`: all else. Raises RequestError for an accelerator that the catalog does not know.
    """
    if accelerator:
        catalog.card(accelerator)
    seen = {
        (row["model"], row["accelerator"], row["count"], row["quantization"], row["kv_tokens"] > 0)
        for row in catalog.measured()
    }
    for name, counts in catalog.accelerators().items():
        for count in counts if accelerator in (None, name) else ():
            for quantization in _quantizations(model):
                wished = replace(wish or Wish(name), accelerator=name, count=count, quantization=quantization)
                try:
                    found = size(model, wished)
                except RequestError:
                    continue  # Its heads do not split over so many cards.
                if found.starts is None and found.weights_gib is None:
                    continue  # Nobody knows anything.
                yield Fit(
                    model.name,
                    name,
                    count,
                    quantization,
                    found.starts,
                    None if found.starts is False else found.max_model_len,
                    found.requests_at_once if found.starts else None,
                    found.weights_gib,
                    found.kv_gib,
                    # With vLLM's own batches, that is: nobody has seen ours.
                    not found.max_num_batched_tokens and (model.name, name, count, quantization, found.starts) in seen,
                    found.longest or 0,
                    warning(model.name, wished) if found.starts is None else "",
                )


def replayed(row: dict[str, Any]) -> Sizing:
    """What the rule says to a start that was seen, a row of catalog.measured()."""
    model, own = of_catalog(row["model"]), catalog.card(row["accelerator"]).batch
    tokens = next(batch.tokens for batch in catalog.batches() if batch.name == own)
    return size(
        model,
        Wish(
            row["accelerator"],
            row["count"],
            row["quantization"],
            row["max_model_len"],
            share=row["gpu_memory_utilization"],
            # As the engine chose by itself.
            batch_tokens=max(tokens, catalog.video_tokens()) if model.architecture.whole_videos else tokens,
        ),
    )


def fewest_cards(rows: Iterable[Fit]) -> list[list[str]]:
    """A table of what starts: a line for each model and quantization, a column for each accelerator, with the fewest
    cards and the context that they hold; its head first. A question mark: it is served so, and nobody has measured."""
    there = list(rows)
    accelerators = [name for name in catalog.accelerators() if any(fit.accelerator == name for fit in there)]
    table = [["model", "quantization", *accelerators]]
    for model, quantization in dict.fromkeys((fit.model, fit.quantization) for fit in there):
        own = [fit for fit in there if (fit.model, fit.quantization) == (model, quantization) and may_start(fit)]
        cells = []
        for accelerator in accelerators:
            least = min((fit for fit in own if fit.accelerator == accelerator), key=lambda fit: fit.count, default=None)
            unsure = "?" if least and least.starts is None else ""
            cells.append(f"{least.count} × {least.max_model_len}{unsure}" if least else "–")
        table.append([model, quantization or "", *cells])
    return table


def may_start(fit: Fit) -> bool:
    """Whether the model starts like this, or is known to be served like this although nobody has measured it."""
    return fit.starts is not False and not fit.warning


def judged(model: Model, wish: Wish) -> Sizing:
    """How the model runs as it is wished. Raises RequestError when it is known not to start, with what does."""
    found = size(model, wish)
    if found.starts is False:
        raise RequestError(_refusal(model, wish, found))
    return found.model_copy(update={"largest_tensor": model.weights.largest})


def _quantizations(model: Model) -> list[str | None]:
    if model.architecture.quantization:
        return [None]
    halves = [
        name for name, kinds in catalog.quantizations().items() if any(getattr(model.weights, kind) for kind in kinds)
    ]
    return [None, *halves]


def _refusal(model: Model, wish: Wish, found: Sizing) -> str:
    """Begins with the setting that it is most about."""
    how = f" with quantization {wish.quantization}" if wish.quantization else ""
    about = "accelerator"
    if found.kv_gib is not None and found.kv_gib <= 0:
        why = (
            f"its weights take {found.weights_gib:.1f} GiB a card, and it lacks {-found.kv_gib:.1f} GiB a card at "
            f"gpu_memory_utilization {found.gpu_memory_utilization}"
        )
    elif found.lacks_while_building_gib:
        why = (
            f"its weights take {found.weights_gib:.1f} GiB a card, and while it is built it lacks "
            f"{found.lacks_while_building_gib:.1f} GiB for its output layer"
        )
    else:
        about = "engine.max_model_len" if wish.max_model_len else about
        why = (
            f"{found.kv_gib:.1f} GiB of KV cache a card hold one request of {found.longest:,} tokens at most, and "
            f"max_model_len is {found.max_model_len:,}"
        )
    there = "; ".join(_what_starts(model, wish))
    return f"{about}: {model.name}{how} on {wish.count} × {wish.accelerator} cannot start: {why}. " + (
        f"What can: {there}" if there else "Nothing that the catalog knows can"
    )


def _what_starts(model: Model, wish: Wish) -> Iterator[str]:
    """What can start: the same cards with the context that they hold, or without what the settings ask for beside; the
    fewest of each accelerator as they are, and quantizations that need fewer still."""
    same = f"{wish.count} × {wish.accelerator}"
    if wish.max_model_len:
        own = size(model, replace(wish, max_model_len=None))
        if own.starts:
            yield (
                f"{same} with engine.max_model_len: {own.longest} "
                f"(auto: {own.max_model_len}, {own.requests_at_once:.1f} requests at once)"
            )
    without = {
        "engine.gpu_memory_utilization": replace(wish, share=None),
        "--max-num-batched-tokens and --max-num-seqs in engine.extra_args": replace(
            wish, batch_tokens=None, batch_requests=None
        ),
    }
    for what, less in without.items():
        if less != wish and size(model, less).starts:
            yield f"{same} without {what}"
    fewest: dict[str, int] = {}
    rows = [fit for fit in everywhere(model, wish=wish) if may_start(fit)]
    kind = catalog.card(wish.accelerator).kind
    for accelerator in catalog.accelerators():
        if catalog.card(accelerator).kind != kind:
            continue  # Of another feature.
        for quantization in _quantizations(model):
            counts = [fit.count for fit in rows if (fit.accelerator, fit.quantization) == (accelerator, quantization)]
            count = min(counts, default=1 << 30)
            if count < fewest.get(accelerator, 1 << 30):
                fewest[accelerator] = count
                how = f" with engine.quantization: {quantization}" if quantization else ""
                yield f"{count} × {accelerator}{how}"
