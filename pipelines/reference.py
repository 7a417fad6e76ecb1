"""docs/reference.md (scenarios, features, settings) and docs/fits.md (what fits where), made from the code. `make
golden` writes them again."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from pipelines import combinations
from serving import catalog, features, sizing
from serving.installation import roles
from serving.rendering import manifests
from serving.scenarios import COLUMNS, REQUIRED, SCENARIOS
from serving.settings import Settings
from serving.settings.sections import entry_of, section_of


def text() -> str:
    """The whole page, Markdown."""
    lines = [
        "# Reference",
        "",
        "Made from the code by `make golden`; a change belongs there.",
        "",
        "## Scenarios",
        "",
        "A scenario is a preset of features, one a column at most. `features: [NAME, -NAME]` in the settings puts "
        "another into its column, or takes one away.",
        "",
        *_table(
            ["", "scenario", *COLUMNS, ""],
            [[s.number, f"`{s.name}`", *(getattr(s, column) for column in COLUMNS), s.title] for s in SCENARIOS],
        ),
        "",
        "## Features",
        "",
        *(line for column, words in COLUMNS.items() for word in words for line in _feature(column, word)),
        "## What goes together",
        "",
        *_combinations(),
        "",
        "## Settings",
        "",
        *_settings(),
        "",
        "## Roles",
        "",
        "What `bootstrap` gives in Google Cloud, and `bootstrap --print` prints: the least that does. The pipeline's "
        "rights in the cluster are `render --access`; what serving pods need on the bucket `ensure_access` gives.",
        "",
        *_table(["account", "role", "on", "for", "when"], list(_roles())),
        "",
        "Roles of the project's own, where none of Google's is as little:",
        "",
        *(
            line
            for role in roles.OWN_ROLES
            for line in (f"* `{role.id}`: {', '.join(f'`{permission}`' for permission in role.permissions)}",)
        ),
    ]
    return "\n".join(lines) + "\n"


def _combinations() -> list[str]:
    """How many deployments can be put together, and what is refused, with the reason."""
    every = list(combinations.every())
    refused = {each.refused: each for each in reversed(every) if each.refused}
    return [
        f"Features of different columns go together, in {len(every)} ways with their variants and the words of their "
        f"sections (pipelines/combinations.py). A test renders {sum(not each.refused for each in every)} of them, and "
        "has the schemas of Kubernetes and of Google's kinds judge each. The others are refused:",
        "",
        *_table(
            ["features", "settings", "why"],
            [
                [", ".join(each.features), ", ".join(f"`{word}`" for word in _said(each.chosen)), reason]
                for reason, each in reversed(refused.items())
            ],
        ),
    ]


def _said(chosen: dict[str, Any], path: str = "") -> Iterator[str]:
    for key, value in chosen.items():
        if isinstance(value, dict):
            yield from _said(value, f"{path}{key}.")
        else:
            yield f"{path}{key}: {json.dumps(value).strip(chr(34))}"


def _roles() -> Iterator[list[str]]:
    """Every role that some deployment's accounts need, with the settings for which they do."""
    secret, project = "projects/PROJECT/secrets/NAME", "demo-project"
    disk = {"features": ["secondary-boot-disk"]}
    image = {"engine": {"image": "us-docker.pkg.dev/demo-project/mirror/vllm/vllm-openai:v0.33.0"}}
    account = {"service_account": "bake@demo-project.iam.gserviceaccount.com"}
    cases: dict[str, dict[str, Any]] = {
        "always": {"access": "check"},
        "`access: manage`": {},
        "a token or an API key is named": {"hub": {"token_secret": f"{secret}/versions/latest"}},
        "`gcs_fuse.rapid_cache`": {"gcs_fuse": {"profile": "manual", "rapid_cache": True}},
        "`pipeline_root` elsewhere": {"pipeline_root": "gs://another/pipelines"},
        "a `source` is named": {"source": "gs://somewhere/model"},
        "gpu-or-tpu, `nodes: create`": {"features": ["gpu-or-tpu"], "gpu_or_tpu": {"nodes": "create"}},
        "… `node_service_account`": {
            "features": ["gpu-or-tpu"],
            "gpu_or_tpu": {"nodes": "create", "node_service_account": "nodes@demo-project.iam.gserviceaccount.com"},
        },
        "secondary-boot-disk": disk,
        "… `service_account`": {**disk, "secondary_boot_disk": account},
        "… the engine's image is in Artifact Registry": {**disk, **image},
        "… `image: streaming`": {**disk, **image, "secondary_boot_disk": {"image": "streaming"}},
        "queue-hpa, `adapter: stackdriver`": {"features": ["queue-hpa"]},
        "gateway, without `proxy_ranges`": {"features": ["gateway"], "access": "check"},
        "… `proxy_subnet_range`, `access: manage`": {
            "features": ["gateway"],
            "gateway": {"proxy_subnet_range": "10.129.0.0/23"},
        },
    }
    told: set[tuple[str, str, str, str]] = set()
    base = {"scenario": "gcs-fuse", "project": project, "bucket": "demo-bucket"}
    for when, changes in cases.items():
        for grant in roles.grants(Settings.model_validate({**base, **changes})):
            key = (grant.kind, grant.role, grant.account, grant.why)
            if key not in told:
                told.add(key)
                yield [
                    grant.account.partition("@")[0],
                    f"`{grant.role.rpartition('roles/')[2] if grant.role.startswith('projects/') else grant.role}`",
                    {"account": "that account"}.get(grant.kind, f"the {grant.kind}"),
                    grant.why,
                    when,
                ]


def fits() -> str:
    """The page of what fits where, Markdown."""
    models = [sizing.of_catalog(name) for name in catalog.models()]
    rows = [fit for model in models for fit in sizing.everywhere(model)]
    head, *lines = sizing.fewest_cards(rows)
    page = [
        "# What fits where",
        "",
        "Made from the code by `make golden`, as `gemma-pipelines fits` prints it: the fewest cards that start a "
        "model, × the longest context that 4 requests at once find room with (`engine.max_model_len: auto`). On TPUs "
        "nobody has measured: `?` marks the fewest chips that Google or vLLM's recipes serve the model on, with their "
        "context or a careful one. Other numbers of chips are allowed, with a warning, unless the weights alone are "
        "too much. "
        "`gemma-pipelines fits MODEL` has every count of cards, with weights and KV cache; MODEL may be any fine-tune "
        "of these, on the hub or in a folder.",
        "",
        *_table([head[0], "`engine.quantization`", *head[2:]], [[f"`{line[0]}`", *line[1:]] for line in lines]),
        "",
        "## How it is known",
        "",
        "On each card, memory × share = weights + overhead + KV cache. The weights are those of the shards' headers; "
        "what a request of L tokens takes of the KV cache follows from config.json: `full · L + sliding · min(L, "
        "window − 1 + 2 · B)`, B being `--max-num-batched-tokens`, in whole blocks of vLLM's pool. The overhead is "
        "measured (`manifests/catalog.yaml`, vLLM 0.33.0). Where smaller batches than vLLM's own for the card decide, "
        "they are set. A test holds the rule to every start of a real engine that was seen:",
        "",
        *_table(
            [
                "model",
                "accelerator",
                "`engine.quantization`",
                "context",
                "KV cache, GiB a card: engine",
                "rule",
                "starts",
            ],
            [_replayed(row) for row in catalog.measured()],
        ),
    ]
    return "\n".join(page) + "\n"


def _replayed(row: dict[str, Any]) -> list[str]:
    found = sizing.replayed(row)
    return [
        f"`{row['model']}`",
        f"{row['count']} × {row['accelerator']}",
        row["quantization"] or "",
        str(row["max_model_len"]),
        "–" if row["kv_gib"] is None else f"{row['kv_gib']:.2f}",
        f"{found.kv_gib:.2f}",
        "yes" if found.starts else "no",
    ]


def _feature(column: str, word: str) -> Iterator[str]:
    module = features.module(word)
    yield from (f"### `{word}`", "", f"{(module.__doc__ or '').strip()}", "")
    used = ", ".join(f"`{scenario.number}`" for scenario in SCENARIOS if word in scenario.features)
    yield f"* column {column}{'' if column in REQUIRED else ' (may be empty)'}, in {used or 'no scenario by itself'}"
    for scope in ("admin", "shared", "generation", "temporary", "entry"):
        kinds = sorted({item["kind"] for item in manifests.of_any_variant(word, scope).values()})
        if kinds:
            yield f"* {scope}: {', '.join(kinds)}"
    if patched := sorted(path.rpartition("/")[2].removesuffix(".yaml") for path in manifests.of(word, "patch")):
        yield f"* patches base's {', '.join(patched)}"
    if features.section_name(word) in features.sections():
        yield f"* settings: `{features.section_name(word)}`"
    yield ""


def _settings() -> Iterator[str]:
    own = [key for key in Settings.model_fields if key not in features.sections()]
    yield from _table(
        ["key", "default", ""],
        [row for key in [*own, *features.sections()] for row in _rows(key, Settings.model_fields[key])],
    )


def _rows(key: str, field: Any) -> Iterator[list[str]]:
    inner = section_of(field.annotation) if field.default is not None else None
    if inner:
        for name, below in inner.model_fields.items():
            yield from _rows(f"{key}.{name}", below)
        return
    entry = entry_of(field.annotation)
    name = f"{key}.NAME" if entry else key
    default = "" if field.is_required() else f"`{_shown(field.get_default())}`"
    yield [f"`{name}`", default, " ".join((field.description or "").split())]


def _shown(value: Any) -> str:
    if isinstance(value, list):
        value = [item.model_dump() if isinstance(item, BaseModel) else item for item in value]
    return textwrap.shorten(json.dumps(value, ensure_ascii=False), 60, placeholder="…")


def _table(head: list[str], rows: list[list[str]]) -> Iterator[str]:
    for row in [head, ["---"] * len(head), *rows]:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
