"""`fits`: which model starts on which accelerators, and how long a context it holds there."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.output import Output, columns

if TYPE_CHECKING:
    from serving.sizing import Fit, Model

_PATIENCE_SECONDS = 20.0
"""With a hub that is away: somebody waits for the answer."""


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

    if accelerator:
        _check_accelerator(accelerator)  # Before anybody is asked about the model.
    wanted = [found(out, model)] if model else [sizing.of_catalog(name) for name in catalog.models()]
    rows = [fit for each in wanted for fit in sizing.everywhere(each, accelerator)]
    if not rows:
        # One model on one accelerator, which GKE puts on a node in other numbers.
        counts = ", ".join(map(str, catalog.accelerators()[accelerator or ""]))
        out.hint(f"nothing: the heads of {model} do not split over {counts} × {accelerator}, which is what a node has")
    out.result([fit.as_json() for fit in rows], (_one(rows) if model else _all(rows)) if rows else "")
    if rows:
        out.hint(
            "context: the longest that 4 requests at once find room with (engine.max_model_len: auto); one alone: the "
            "longest that can be asked for; weights and KV cache: GiB of one card; with a question mark: what is "
            "served, or the catalog's careful guess, where nobody has measured"
        )


def _check_accelerator(name: str) -> None:
    """Raises RequestError for one that the catalog does not know."""
    from serving import catalog
    from serving.errors import RequestError

    try:
        catalog.card(name)
    except RequestError as error:
        raise RequestError(str(error).replace("accelerator.type:", "--accelerator:", 1)) from error


def found(out: Output, model: str) -> Model:
    """A folder of this machine, a model of the catalog, or one of the hub. Raises RequestError for none of them, or
    one that nobody has measured the like of."""
    from pydantic import TypeAdapter, ValidationError

    from serving import catalog, sizing, values
    from serving.clients import patience
    from serving.clients.hub import Hub
    from serving.errors import RequestError
    from serving.weights import weighing

    if Path(model).is_dir():
        return weighing.in_folder(Path(model))
    if model in catalog.models():
        return sizing.of_catalog(model)
    try:
        TypeAdapter(values.Model).validate_python(model)
    except ValidationError as error:
        raise RequestError(f"{model} is no folder, and no model of the hub{_close(model)}") from error
    hub = Hub(os.environ.get("HF_TOKEN"), token_secret="HF_TOKEN")  # noqa: S106 (its name)
    with patience.lasting(_PATIENCE_SECONDS), out.progress(f"asking the hub about {model}"):
        return weighing.on_hub(hub, model)


def _close(model: str) -> str:
    """What to write instead, for somebody who has left the organization out."""
    from serving import catalog

    known = {name.partition("/")[2]: name for name in catalog.models()}
    close = difflib.get_close_matches(model.rpartition("/")[2], known, n=1, cutoff=0.8)
    return f": did you mean {known[close[0]]}?" if close else ", which are called ORG/NAME"


def _one(rows: list[Fit]) -> str:
    """A line for each way of running a model."""
    head = ("accelerator", "quantization", "context", "at once", "one alone", "weights", "KV cache", "measured")
    return columns([head, *(_line(fit) for fit in rows)])


def _line(fit: Fit) -> tuple[str, ...]:
    held = ("does not start", "", "")
    if fit.starts:
        held = (f"{fit.max_model_len}", f"{fit.requests_at_once:.1f}", f"{fit.longest}")
    elif fit.starts is None:
        held = (f"{fit.max_model_len}?", "", "")
    seen = "yes" if fit.measured else "nobody serves it so" if fit.warning else "no" if fit.starts is None else ""
    return (
        f"{fit.count} × {fit.accelerator}",
        fit.quantization or "",
        *held,
        f"{fit.weights_gib:.1f}",
        f"{fit.kv_gib:.1f}" if fit.starts else "",
        seen,
    )


def _all(rows: list[Fit]) -> str:
    from serving.sizing import fewest_cards

    return columns(fewest_cards(rows))
