"""`fits`: which model starts on which accelerators, and how long a context it holds there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.output import Output, columns

if TYPE_CHECKING:
    from serving.sizing import Fit, Model


def fits(
    out: Output,
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="One of the catalog, any ORG/NAME of the hub, or a folder; none: all."),
    ] = None,
    accelerator: Annotated[str | None, typer.Option(metavar="TYPE", help="On this accelerator alone.")] = None,
) -> None:
    """What starts where: context, requests at once, weights and KV cache. Reads config.json and the shards' headers."""
    from serving import catalog, sizing

    wanted = [found(model)] if model else [sizing.of_catalog(name) for name in catalog.models()]
    rows = [fit for each in wanted for fit in sizing.everywhere(each, accelerator)]
    out.result([fit.as_json() for fit in rows], _one(rows) if model else _all(rows))
    out.hint(
        "context: the longest that 4 requests at once find room with (engine.max_model_len: auto); one alone: the "
        "longest that can be asked for; weights and KV cache: GiB of one card"
    )


def found(model: str) -> Model:
    """A folder of this machine, a model of the catalog, or one of the hub. Raises RequestError for none of them, or
    one that nobody has measured the like of."""
    from serving import catalog, sizing
    from serving.clients.hub import Hub
    from serving.errors import RequestError
    from serving.weights import weighing

    if Path(model).is_dir():
        weighed = weighing.in_folder(Path(model))
    elif model in catalog.models():
        return sizing.of_catalog(model)
    elif model.count("/") == 1 and not model.startswith((".", "/")):
        weighed = weighing.on_hub(Hub(os.environ.get("HF_TOKEN"), token_secret="HF_TOKEN"), model)  # noqa: S106 (its name)
    else:
        raise RequestError(f"{model} is no folder, and no model of the hub, which are called ORG/NAME")
    if weighed is None:
        raise RequestError(f"{model} is of an architecture that nobody has measured: only the engine can tell")
    return weighed


def _one(rows: list[Fit]) -> str:
    """A line for each way of running a model."""
    head = ("accelerator", "quantization", "context", "at once", "one alone", "weights", "KV cache", "measured")
    return columns([head, *(_line(fit) for fit in rows)])


def _line(fit: Fit) -> tuple[str, ...]:
    held = ("does not start", "", "")
    if fit.starts:
        held = (f"{fit.max_model_len}", f"{fit.requests_at_once:.1f}", f"{fit.longest}")
    return (
        f"{fit.count} × {fit.accelerator}",
        fit.quantization or "",
        *held,
        f"{fit.weights_gib:.1f}",
        f"{fit.kv_gib:.1f}" if fit.starts else "",
        "yes" if fit.measured else "",
    )


def _all(rows: list[Fit]) -> str:
    from serving.sizing import fewest_cards

    return columns(fewest_cards(rows))
