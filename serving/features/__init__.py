"""The features that deployments are put together from, a plain module each, named after its word in scenarios.py.

A module has, as it needs them:

    Section                              its section of the settings (serving/values.py), under the feature's name
    values(settings, release)            what its manifests' placeholders stand for; without a release, those of the
                                         objects that are no generation's
    entered(settings, generation)        of a feature that is the entry: what its manifests' placeholders stand for
                                         when a generation is live
    each(settings)                       kind → what further placeholders stand for, of each object that a manifest of
                                         that kind is made into: as many as the settings name
    flags(settings, release)             flags of `vllm serve`
    scaled(settings, server)             of a feature that scales: what its manifests' placeholders stand for beside a
                                         server's name, whatever is served
    identity(settings)                   what makes its servers different servers, beyond flags, accelerator and
                                         the objects that are created once: plain JSON
    bindings(settings, principal)        IAM roles on the bucket that it needs
    rights(settings)                     kind → what its steps do with objects of it in the cluster, beyond making and
                                         deleting those that it owns: verbs
    variant(settings)                    the folder in its scopes that such a deployment has beside their own manifests
    check(settings)                      raises RequestError for settings that it cannot serve
    holds(settings, host)                raises RequestError for a pod that asks for more of a host (serving/catalog.py)
                                         than its machines have
    caching(settings)                    the Rapid Cache that the bucket is to have for it (Caching), or None
    zones(settings)                      that the release is to know the zones: those that the settings name
    resolved(settings, image)            fields of the release that follow from what the engine's image is now
    beside(settings)                     the accelerator that its pods may find in place of the settings' own (Beside)
    COPIES                               containers of the server's pods → copies of them, which its patch changes
    houses(settings, namespace, others)  raises RequestError for a namespace (an object, or None) that its pods cannot
                                         live in; `others` lists the other deployments that are there
    suits(settings, look)                raises RequestError for a cluster that it cannot run on, before anything is
                                         spent; `look` asks what the cluster is (serving/clients/google.py)
    served(settings, has_group)          raises RequestError for a cluster that lacks a group of the API that it needs,
                                         before anything is spent; `has_group` asks for one
    prepared(settings, release, look)    raises RequestError for what the cluster lacks when the server is to be
                                         deployed, and a person has to make
    arrived(settings, release)           raises InconclusiveError when pods that are ready may have read other weights
                                         than the release's
    missing(settings, release)           what a generation that is deployed needs outside of the cluster and has not,
                                         in words; empty when it has all
    RENAMED                              keys of earlier versions of the settings → what is there in their place
    explain(settings, symptom)           why a pod does not start, where the feature knows more than Kubernetes says

Its manifests are in `manifests/<feature>/<scope>/`, and `manifests/<feature>/<scope>/<variant>/`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from serving import names, scenarios
from serving.clients import storage
from serving.errors import InconclusiveError, PipelineError
from serving.values import Section

if TYPE_CHECKING:
    from serving.settings import Settings

Principal = Callable[[str, str], str]
"""(namespace, service account) of the cluster → the IAM member that it is."""


@dataclass(frozen=True)
class Binding:
    """A role on the deployment's bucket for a service account of the cluster."""

    role: str
    member: str
    make_role: str = ""
    """The command that makes the role, where it is not one of Google's own."""


@dataclass(frozen=True)
class Caching:
    """Rapid Cache of the deployment's bucket."""

    zones: list[str]
    """Where; empty for every zone of the cluster."""
    ttl_seconds: float
    """How long what nobody reads is kept."""
    timeout_seconds: float
    """How long it may take to make a cache, or to read weights into it."""


@dataclass(frozen=True)
class Beside:
    """Another accelerator that a deployment's pods run on, in the catalog's words."""

    type: str
    count: int
    image: str | None = None
    """The engine's, if not the catalog's."""


@dataclass(frozen=True)
class Symptom:
    """What is seen of a pod that does not start."""

    kind: Literal["refused", "gated", "no-node", "mount", "out-of-memory", "slow", "words"]
    """refused: the API server does not let pods of the Deployment `pod` be made; gated: not let to the scheduler;
    no-node: the autoscaler's words on why none comes; mount: a volume's event; out-of-memory: `container` was killed at
    its limit; slow: the engine runs and does not become ready in time; words: what the container runtime or a
    container's log said."""
    pod: str
    words: str = ""
    container: str = ""
    service_account: str = ""


@dataclass(frozen=True)
class Explanation:
    """What a symptom means, in words that name the cure."""

    error: type[PipelineError]
    message: str
    at_once: bool = False
    """Waiting cannot help."""


def module(feature: str) -> ModuleType:
    """The module of a feature."""
    return import_module(f"{__name__}.{section_name(feature)}")


def section_name(feature: str) -> str:
    """The key of a feature's section in the settings."""
    return feature.replace("-", "_")


def variant(settings: Settings, feature: str) -> str:
    """The feature's folder in its scopes that the settings have beside their own manifests; empty without one."""
    choose = getattr(module(feature), "variant", None)
    return str(choose(settings)) if choose else ""


def sections() -> dict[str, type[Section]]:
    """The sections of all features that have one, by their keys."""
    found = {section_name(feature): getattr(module(feature), "Section", None) for feature in scenarios.all_features()}
    return {key: section for key, section in found.items() if section is not None and section is not Section}


def renamed() -> dict[str, str]:
    """Keys of earlier versions of the settings, and what is there in their place."""
    modules = map(module, scenarios.all_features())
    return {old: new for own in modules for old, new in getattr(own, "RENAMED", {}).items()}


def answers(settings: Settings, question: str, *arguments: Any) -> Iterator[tuple[str, Any]]:
    """(feature, answer) of the deployment's features whose modules have a function `question`, in their order."""
    for feature in settings.chosen_features:
        if function := getattr(module(feature), question, None):
            yield feature, function(settings, *arguments)


def demand(settings: Settings, question: str, *arguments: Any) -> None:
    """Asks the features something that they answer by raising, or not."""
    for _ in answers(settings, question, *arguments):
        pass


def far_from_bucket(settings: Settings) -> Explanation | None:
    """Why pods that read the bucket start slowly, where it is in another region than they are."""
    try:
        there = storage.region_of(settings.bucket)
    except PipelineError:
        return None  # Who may not look at it learns nothing here.
    here = names.region(settings.location)
    if there in ("", here):
        return None
    return Explanation(
        InconclusiveError,
        f"the bucket {settings.bucket} is in {there} and the pods are in {here}, so weights come slowly (and "
        f"their traffic is paid for). Take a bucket in {here}, or give them more time (serving.ready_timeout)",
    )


def beside(settings: Settings) -> Beside | None:
    """The accelerator that the pods may find in place of the settings' own; None where there is no choice."""
    return next((found for _, found in answers(settings, "beside")), None)


def explain(settings: Settings, symptom: Symptom) -> Explanation | None:
    """The first feature's word on a symptom; None when none knows it."""
    return next((answer for _, answer in answers(settings, "explain", symptom) if answer), None)
