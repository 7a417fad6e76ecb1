"""EndpointPickerConfig, read and judged as llm-d-router's loader does (pkg/epp/config/loader), in its words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

API_VERSION, KIND = "llm-d.ai/v1alpha1", "EndpointPickerConfig"

QUEUE, KV_CACHE, RUNNING = "queue-scorer", "kv-cache-utilization-scorer", "running-requests-size-scorer"
PREFIX, LORA = "prefix-cache-scorer", "lora-affinity-scorer"
SCORERS = (QUEUE, KV_CACHE, RUNNING, PREFIX, LORA)
MAX_SCORE, RANDOM, WEIGHTED_RANDOM = "max-score-picker", "random-picker", "weighted-random-picker"
PICKERS = (MAX_SCORE, RANDOM, WEIGHTED_RANDOM)
DETECTOR, SINGLE_PROFILE = "utilization-detector", "single-profile-handler"
PREFIX_PRODUCER = "approx-prefix-cache-producer"
PARAMETERS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(SCORERS, ()),
    **dict.fromkeys(PICKERS, ("maxNumOfEndpoints",)),
    DETECTOR: ("queueDepthThreshold", "kvCacheUtilThreshold", "metricsStalenessThreshold", "headroom"),
    PREFIX_PRODUCER: (
        *("autoTune", "blockSizeTokens", "maxPrefixBlocksToMatch", "maxPrefixTokensToMatch", "lruCapacityPerServer"),
    ),
    SINGLE_PROFILE: (),
    "openai-parser": (),
    "metrics-data-source": ("scheme", "path", "insecureSkipVerify"),
    "core-metrics-extractor": ("engineLabelKey", "defaultEngine", "engineConfigs"),
}
"""Plugin types that there are here, each with its parameters; v0.10.0 does not start over others."""
# Before there was a producer of its own, the scorer had its parameters; they still count.
PARAMETERS[PREFIX] = PARAMETERS[PREFIX_PRODUCER]
_TOP = {
    *("apiVersion", "kind", "featureGates", "plugins", "schedulingProfiles", "dataLayer", "flowControl"),
    *("requestHandler", "saturationDetector", "parser"),
}
DEFAULT: dict[str, Any] = {
    "plugins": [{"type": QUEUE}, {"type": KV_CACHE}, {"type": PREFIX}],
    "schedulingProfiles": [
        {
            "name": "default",
            "plugins": [
                {"pluginRef": QUEUE, "weight": 2},
                {"pluginRef": KV_CACHE, "weight": 2},
                {"pluginRef": PREFIX, "weight": 3},
            ],
        }
    ],
}
"""What the program uses when it is given none: no adapter affinity."""


class BadConfig(Exception):
    """A configuration that the real program ends over; its words."""


@dataclass(frozen=True)
class Thresholds:
    """When an endpoint is full: waiting requests, share of the KV cache, and how much of both above that it may have
    and still be picked. (`metricsStalenessThreshold` has nothing to say here: metrics are asked for, not kept.)"""

    queue_depth: int = 5
    kv_cache: float = 0.8
    headroom: float = 0.0


@dataclass(frozen=True)
class Prefixes:
    """How prompts are cut for the prefix index: tokens a block, blocks that are looked at, blocks kept a server."""

    auto_tune: bool = True
    block_tokens: int = 16
    max_blocks: int = 256
    capacity: int = 31_250


@dataclass(frozen=True)
class Config:
    """What was configured: scorers with their weights, who picks by them, whether full endpoints are left out."""

    scorers: tuple[tuple[str, float], ...]
    picker: str = MAX_SCORE
    leaves_out_full: bool = False
    thresholds: Thresholds = field(default_factory=Thresholds)
    prefixes: Prefixes = field(default_factory=Prefixes)


def load(text: str) -> Config:
    """Reads a configuration; the default one, if `text` is empty. Raises BadConfig."""
    given = _decoded(text) if text.strip() else DEFAULT
    for gate in given.get("featureGates") or []:
        if not str(gate).endswith("=false"):
            words = f"feature gate '{gate}' is unknown or unregistered"
            raise BadConfig(f"failed to parse config - feature gate validation failed: {words}")
    try:
        return _built(given)
    except BadConfig as error:
        raise BadConfig(f"failed to load the configuration - {error}") from error


def _decoded(text: str) -> dict[str, Any]:
    failed = "failed to parse config - failed to decode configuration JSON/YAML:"
    try:
        given = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise BadConfig(f"{failed} yaml: line {line}: {error.problem}") from error
    if not isinstance(given, dict):
        raise BadConfig(f"{failed} couldn't get version/kind; json parse error: it is not an object")
    # What is not said is taken for the only kind that there is.
    version, kind = given.get("apiVersion", API_VERSION), given.get("kind", KIND)
    if (version, kind) != (API_VERSION, KIND):
        raise BadConfig(f'{failed} no kind "{kind}" is registered for version "{version}"')
    if unknown := sorted(given.keys() - _TOP):
        named = ", ".join(f'unknown field "{name}"' for name in unknown)
        raise BadConfig(f"{failed} strict decoding error: {named}")
    for name in ("plugins", "schedulingProfiles"):
        entries = given.get(name) or []
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise BadConfig(
                f"{failed} json: cannot unmarshal {type(entries).__name__} into Go struct field {KIND}.{name}"
            )
    return given


def _built(given: Mapping[str, Any]) -> Config:
    plugins = _plugins(given.get("plugins") or [])
    profiles = given.get("schedulingProfiles") or [{"name": "default", "plugins": _all_that_choose(plugins)}]
    _check_profiles(profiles, plugins)
    if len(profiles) > 1:
        has_handler = any(plugin["type"] == SINGLE_PROFILE for plugin in plugins.values())
        words = "SingleProfileHandler cannot support multiple scheduling profiles"
        raise BadConfig(f"scheduler config build failed: {words if has_handler else 'no profile handler configured'}")
    _check_references(given, plugins)
    chosen = [(plugins[entry["pluginRef"]]["type"], entry) for entry in profiles[0].get("plugins") or []]
    parameters = {plugin["type"]: plugin.get("parameters") or {} for plugin in plugins.values()}
    return Config(
        tuple((kind, float(entry.get("weight", 1.0))) for kind, entry in chosen if kind in SCORERS),
        next((kind for kind, _ in chosen if kind in PICKERS), MAX_SCORE),
        any(kind == DETECTOR for kind, _ in chosen),
        _thresholds(parameters.get(DETECTOR, {})),
        _prefixes({**parameters.get(PREFIX, {}), **parameters.get(PREFIX_PRODUCER, {})}),
    )


def _plugins(given: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    plugins: dict[str, dict[str, Any]] = {}
    for spec in given:
        kind, name = spec.get("type", ""), spec.get("name") or spec.get("type", "")
        if not kind:
            raise BadConfig(f"plugin instantiation failed: plugin '{name}' is missing a type")
        if name in plugins:
            raise BadConfig(f"plugin instantiation failed: duplicate plugin name '{name}'")
        if kind not in PARAMETERS:
            raise BadConfig(f"plugin instantiation failed: plugin type '{kind}' is not registered")
        if unknown := sorted((spec.get("parameters") or {}).keys() - set(PARAMETERS[kind])):
            raise BadConfig(
                f"plugin instantiation failed: failed to create plugin '{name}' (type: {kind}): "
                f'json: unknown field "{unknown[0]}"'
            )
        plugins[name] = spec
    return plugins


def _all_that_choose(plugins: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    chooses = {*SCORERS, *PICKERS, DETECTOR}
    return [{"pluginRef": name} for name, spec in plugins.items() if spec["type"] in chooses]


def _check_profiles(profiles: list[dict[str, Any]], plugins: Mapping[str, Any]) -> None:
    failed = "configuration validation failed: scheduling profile validation failed:"
    names: set[str] = set()
    for number, profile in enumerate(profiles):
        name = profile.get("name", "")
        if not name:
            raise BadConfig(f"{failed} schedulingProfiles[{number}] is missing a name")
        if name in names:
            raise BadConfig(f"{failed} schedulingProfiles[{number}] has duplicate name '{name}'")
        names.add(name)
        for place, entry in enumerate(profile.get("plugins") or []):
            reference = entry.get("pluginRef", "")
            if not reference:
                raise BadConfig(f"{failed} schedulingProfiles[{name}].plugins[{place}] is missing a 'pluginRef'")
            if reference not in plugins:
                raise BadConfig(f"{failed} schedulingProfiles[{name}] references undefined plugin '{reference}'")


def _check_references(given: Mapping[str, Any], plugins: Mapping[str, Any]) -> None:
    """What else names a plugin: the saturation detector, and where metrics come from."""
    detector = (given.get("saturationDetector") or {}).get("pluginRef", DETECTOR)
    if detector != DETECTOR and detector not in plugins:
        raise BadConfig(
            "configuration validation failed: saturation detector validation failed: "
            f"saturation detector references undefined plugin '{detector}'"
        )
    for source in (given.get("dataLayer") or {}).get("sources") or []:
        if source.get("pluginRef") not in plugins:
            raise BadConfig(
                f"data layer config build failed: the plugin {source.get('pluginRef')} is not a fwkdl.DataSource"
            )


def _thresholds(given: Mapping[str, Any]) -> Thresholds:
    return Thresholds(
        int(given.get("queueDepthThreshold", Thresholds.queue_depth)),
        float(given.get("kvCacheUtilThreshold", Thresholds.kv_cache)),
        float(given.get("headroom", Thresholds.headroom)),
    )


def _prefixes(given: Mapping[str, Any]) -> Prefixes:
    block = int(given.get("blockSizeTokens", Prefixes.block_tokens))
    blocks = int(given.get("maxPrefixBlocksToMatch", Prefixes.max_blocks))
    if tokens := int(given.get("maxPrefixTokensToMatch", 0)):
        blocks = tokens // max(block, 1)
    auto_tune = bool(given.get("autoTune", Prefixes.auto_tune))
    if not auto_tune and block <= 0:
        raise BadConfig(
            "plugin instantiation failed: invalid configuration: BlockSizeTokens must be > 0 when AutoTune is disabled "
            f"(current value: {block})"
        )
    return Prefixes(auto_tune, block, blocks, int(given.get("lruCapacityPerServer", Prefixes.capacity)))
