"""What one run validated, for another deployment: staging hands on exactly the weights and the engine's image.

A run's folder says it: resolve_model's outcome what it was, the others' that it passed and was promoted. The settings
that come of it pin commits, weights key and image; resolve_model holds a run to the key (`weights_key`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from components.write_report import summary
from serving.clients import hub
from serving.errors import RequestError
from serving.rendering import engine
from serving.settings import Settings, validated
from serving.weights import repositories


@dataclass(frozen=True)
class Validated:
    """What a run validated."""

    folder: str
    """The run's, a `gs://` URI."""
    model: str
    commit: str
    commits: dict[str, str]
    """Those of adapters and assistant, by role."""
    source: str
    """The folder that the model came from; empty for the hub."""
    weights_key: str
    engine_image: str
    """As it was named before any mirror; with its digest, where pods pulled it by that."""


def as_in_run(settings: Settings, run: str) -> Settings:
    """The settings with what the run validated in place of what they follow: `submit --from RUN`.

    run: the id of a run below the settings' pipeline_root, or the folder of another deployment's,
    gs://BUCKET/pipelines/RUN. Raises RequestError for a run that validated nothing, or something else than the settings
    are for.
    """
    return applied(settings, read(run if run.startswith("gs://") else f"{settings.pipeline_root}/{run}"))


def read(folder: str) -> Validated:
    """What the run with this folder validated. Raises RequestError when it did not."""
    folder = folder.rstrip("/")
    outcomes = {outcome["name"]: outcome for outcome in summary.read_outcomes(folder)}
    resolved, checked = outcomes.get("resolve_model"), outcomes.get("validate_server", {})
    if resolved is None:
        raise RequestError(
            f"{folder} is not the folder of a run: it has no steps/resolve_model.json. See `gcloud storage ls "
            f"{folder.rpartition('/')[0]}/`"
        )
    for outcome in outcomes.values():
        if outcome["status"] in ("failed", "inconclusive"):
            raise RequestError(f"{folder} did not pass: {outcome['name']} is {outcome['status']}: {outcome['message']}")
    if resolved.get("decision") in summary.DECISIONS_WITHOUT_CHANGE:
        raise RequestError(
            f"{folder} validated nothing ({resolved['decision']}: {resolved.get('reason')}). Name the run that did"
        )
    if "promote_generation" not in outcomes:
        raise RequestError(f"{folder} has not come to its end yet, or was cancelled. Wait for it, or name another run")
    if not checked.get("measured"):
        raise RequestError(
            f"{folder} put nothing under load: its release served already, and settings changed in place, or a version "
            "before ran it. Name the run that validated the release"
        )
    try:
        return _validated(folder, resolved)
    except KeyError as error:
        raise RequestError(f"{folder} does not say its {error.args[0]}: a version before left it") from error


def _validated(folder: str, resolved: dict[str, Any]) -> Validated:
    image, digest = resolved["engine_image"], resolved.get("image_digest")
    return Validated(
        folder=folder,
        model=resolved["model"],
        commit=resolved["commit"],
        commits=resolved["commits"],
        source=resolved["source"],
        weights_key=resolved["weights_key"],
        # The tag stays: it tells the engine's version.
        engine_image=f"{image.partition('@')[0]}@{digest}" if digest else image,
    )


def applied(settings: Settings, found: Validated) -> Settings:
    """The settings that serve exactly what was validated. Raises RequestError where they ask for something else."""
    own = {"model": settings.model, "adapters": sorted(_roles(settings)), "source": bool(settings.source)}
    of_run = {"model": found.model, "adapters": sorted(found.commits), "source": bool(found.source)}
    for key, asked in own.items():
        if asked != of_run[key]:
            raise RequestError(
                f"{found.folder} validated another release: its {key} is {of_run[key]!r}, and the settings' {asked!r}"
            )
    if hub.is_commit(settings.revision) and settings.revision != found.commit:
        raise RequestError(
            f"revision is {settings.revision}, and {found.folder} validated {found.commit}: leave it out"
        )
    image = engine.named_image(settings)
    if settings.engine.image and image not in (found.engine_image, found.engine_image.partition("@")[0]):
        raise RequestError(f"engine.image is {image}, and {found.folder} validated {found.engine_image}: leave it out")
    if settings.weights_key not in ("", found.weights_key):
        raise RequestError(
            f"weights_key is {settings.weights_key}, and {found.folder} validated {found.weights_key}: leave it out"
        )
    values = settings.as_struct()
    values["weights_key"] = found.weights_key
    values["engine"]["image"] = found.engine_image
    for role, part in _parts(values).items():
        if not part.get("source"):
            part["revision"] = found.commits[role] if role else found.commit
    return validated(Settings, values)


def _roles(settings: Settings) -> set[str]:
    return {*settings.adapters, *([repositories.ASSISTANT] if settings.assistant else [])}


def _parts(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What is served, by its role: the model itself has none."""
    assistant = {repositories.ASSISTANT: values["assistant"]} if values.get("assistant") else {}
    return {"": values, **values["adapters"], **assistant}
