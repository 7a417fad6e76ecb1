"""The model of a settings file as a whole: its own keys, the sections that it holds, and what cannot go together.

The text under a field is its documentation, the comment in `init`'s file and the line of the reference.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    create_model,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from serving import features, scenarios
from serving.clients import patience
from serving.errors import RequestError
from serving.settings.sections import (
    MAIN,
    Accelerator,
    Adapter,
    Assistant,
    Canary,
    Engine,
    Hub,
    Images,
    Lease,
    Reservation,
    Schedule,
    Serving,
    Validation,
    Vertex,
    check_source,
)
from serving.values import (
    AdapterName,
    Bucket,
    ClusterName,
    DeploymentName,
    Duration,
    Folder,
    LabelValue,
    Location,
    Model,
    Namespace,
    OwnKey,
    Project,
    Revision,
    Scenario,
    Section,
    ServiceAccount,
    SourceFolder,
    WeightsKey,
    in_seconds,
)

EXPLICIT = ("project", "location", "cluster", "namespace", "bucket", "model", "revision")
"""The fields that are pipeline parameters of their own."""

AROUND_A_RUN = ("vertex", "schedule")
"""The sections that say how runs come about: the command line reads them, and what a run is given has them not, so that
another hour is not another run."""

_ADAPTERS_AT_ONCE = 8

if TYPE_CHECKING:
    from serving.sizing import Wish

    _FeatureSections = Section
else:
    _FeatureSections = create_model(
        "_FeatureSections", __base__=Section, **{key: (own, own()) for key, own in features.sections().items()}
    )


class Settings(_FeatureSections):
    """One deployment. Features have sections of their own, which only a deployment that has them may set."""

    scenario: Scenario
    """The way in which the model is served: a preset of features."""
    features: list[str] = Field([])
    """Features other than the scenario's own: one takes the place of another of its column, -NAME takes one away.
    `gemma-pipelines list` shows them."""
    project: Project
    """The Google Cloud project's id."""
    location: Location = "us-central1"
    """The cluster's region, or its zone."""
    cluster: ClusterName = "gemma"
    """The GKE cluster."""
    namespace: Namespace = "gemma"
    """The namespace in it, made if it is not there."""
    bucket: Bucket
    """The bucket for weights, reports and records; in the cluster's region, with uniform access."""
    model: Model = "google/gemma-3-4b-it"
    """The model's name on the hub. Gemma 4 is one line away: google/gemma-4-E4B-it runs on the same card."""
    revision: Revision = MAIN
    """A branch, tag or commit of it. A schedule follows a branch."""
    source: SourceFolder | None = None
    """gs://BUCKET/FOLDER that the model's files come from instead of the hub, a fine-tune say; `model` is then only the
    name it goes by, and `revision` means nothing."""
    weights_key: WeightsKey = ""
    """Serve these weights and no others, what staging validated, say: a run whose revision has other files stops. Empty
    takes what the revision has."""
    adapters: dict[AdapterName, Adapter] = Field({}, max_length=32)
    """LoRA adapters, each a model that clients ask for by its NAME: {NAME: {model: org/name, revision: main, source:
    null}}. One of them with other weights makes a new generation, unless the feature live-adapters changes them in
    place."""
    assistant: Assistant | None = None
    """A draft model that makes answers come faster and no different (speculative decoding): {model:
    google/gemma-4-E4B-it-assistant, revision: main, source: null, num_speculative_tokens: null}."""
    name: DeploymentName = "gemma"
    """The name of the Service that clients call; the record and the Lease carry it too."""
    endpoint: Literal["dns", "ip", "private"] = "dns"
    """Which of the cluster's API endpoints the pipeline uses."""
    hub: Hub = Hub()
    accelerator: Accelerator = Accelerator()
    capacity: Literal["on-demand", "spot", "reservation"] = "on-demand"
    """How the nodes are paid for. spot: cheaper, and taken away at half a minute's notice; reservation: they come out
    of one."""
    reservation: Reservation = Reservation()
    engine: Engine = Engine()
    serving: Serving = Serving()
    validation: Validation = Validation()
    canary: Canary = Canary()
    images: Images = Images()
    lease: Lease = Lease()
    vertex: Vertex = Vertex()
    schedule: Schedule = Schedule()
    patience: Duration = patience.DEFAULT
    """How long the cluster's API server, the hub, the bucket and Google's APIs are waited for while one of them is away
    or busy: longer than the upgrade of a zonal cluster's control plane."""
    promotion: Literal["automatic", "manual"] = "automatic"
    """manual: a validated generation waits for `gemma-pipelines promote`."""
    rollout: Literal["beside", "replace"] = "beside"
    """beside: a new generation comes up and is validated while the live one serves, which takes accelerators for both.
    replace: where there are accelerators for one alone, a reservation say, the live one is taken down first. Nothing
    serves then until the new one has passed, or has not and the old one is back."""
    keep_previous: int = Field(1, ge=0, le=10)
    """Generations that stay at zero replicas for `gemma-pipelines rollback`."""
    keep_runs: int = Field(100, ge=1, le=100_000)
    """Runs of this deployment whose folders stay below pipeline_root, the newest; those that the record names stay too.
    What is older goes after a promotion."""
    retry: bool = False
    """Try a release again that was rejected before, or go against a pin."""
    access: Literal["manage", "check"] = "manage"
    """check: IAM belongs to somebody else, Terraform say, and is only looked at."""
    labels: dict[OwnKey, LabelValue] = Field({})
    """Further labels on every object and its pods."""
    annotations: dict[OwnKey, str] = Field({})
    """Further annotations on every object and its pods."""
    patches: list[dict[str, Any]] = Field([])
    """Strategic merge patches: each is applied to the rendered object of its kind, and of its name if it gives one.
    Such as [{kind: Deployment, spec: {template: {spec: {priorityClassName: high}}}}]."""
    pipeline_root: Folder = ""
    """Where runs leave their steps and reports; empty is gs://BUCKET/pipelines."""
    pipeline_service_account: ServiceAccount = ""
    """The Google service account that runs the pipeline, to which `render --access` gives its rights in the cluster;
    empty is gemma-pipelines@PROJECT.iam.gserviceaccount.com."""

    @model_validator(mode="before")
    @classmethod
    def _sections_belong_to_features(cls, values: Any) -> Any:
        values = _opened(values)
        chosen = _chosen(values) if isinstance(values, dict) else None
        for key in features.sections() if chosen is not None else ():
            if key in values and key not in map(features.section_name, chosen or ()):
                has = f"this deployment has no feature {key.replace('_', '-')}, it has {', '.join(chosen or ())}"
                raise PydanticCustomError("at_path", "{words}", {"path": (key,), "words": has})
        return values

    @model_validator(mode="after")
    def _features_go_together(self) -> Settings:
        try:
            self.chosen_features  # noqa: B018 (asked for its error)
        except RequestError as error:
            raise ValueError(f"features: {error}") from error
        return self

    @model_validator(mode="before")
    @classmethod
    def _whole_numbers_are_integers(cls, values: Any) -> Any:
        # The pipeline language knows floats alone: a struct's 3 comes back as 3.0, in patches too.
        return _integral(values)

    @field_validator("patches", mode="before")
    @classmethod
    def _deletions_have_no_null(cls, patches: Any) -> Any:
        # A struct of the pipeline language cannot hold null.
        return _without_null(patches)

    @field_validator("patches")
    @classmethod
    def _patches_are_patches(cls, patches: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for path, value in _leaves(patches):
            if value is not None and not isinstance(value, (str, int, float, bool)):
                words = f"is a {type(value).__name__} to YAML, which no object of Kubernetes holds: put it in quotes"
                raise PydanticCustomError("at_path", "{words}", {"path": ("patches", *path), "words": words})
        for number, patch in enumerate(patches, 1):
            if not isinstance(patch.get("kind"), str):
                raise ValueError(  # noqa: TRY004 (pydantic takes a ValueError)
                    f"patch {number} needs the `kind` of the object that it is for"
                )
            metadata = patch.get("metadata", {})
            if not isinstance(metadata, dict) or not isinstance(metadata.get("name", ""), str):
                raise ValueError(  # noqa: TRY004
                    f"patch {number}: metadata is a mapping, and its name a text"
                )
            if not patch.keys() - {"kind", "apiVersion"} or (
                patch.keys() <= {"kind", "apiVersion", "metadata"} and not metadata.keys() - {"name"}
            ):
                raise ValueError(f"patch {number} ({patch['kind']}) changes nothing")
        return patches

    @model_validator(mode="after")
    def _one_source(self) -> Settings:
        check_source(self.source, self.revision)
        return self

    @model_validator(mode="after")
    def _drafts_are_counted(self) -> Settings:
        from serving import catalog

        asked = self.assistant
        if asked and not asked.num_speculative_tokens and not catalog.speculative_tokens(self.model):
            raise ValueError(
                f"assistant.num_speculative_tokens is needed: the catalog knows none for {self.model}; 4 is a start"
            )
        return self

    @model_validator(mode="after")
    def _nobody_is_waited_for_while_nothing_serves(self) -> Settings:
        if self.rollout == "replace" and self.promotion == "manual":
            raise ValueError(
                "rollout: replace and promotion: manual do not go together: the generation that waits for a person has "
                "the accelerators of the live one, and nothing would serve meanwhile. Keep promotion: automatic, or "
                "have accelerators for two and rollout: beside"
            )
        return self

    @model_validator(mode="after")
    def _a_canary_has_two_generations_behind_a_gateway(self) -> Settings:
        if not self.has_gateway and self.canary != Canary():
            raise ValueError(
                "canary: a Service sends all requests to one generation, so they move at once. Shares of them are for "
                "a gateway: set features: [gateway] or [inference-gateway], or leave canary out"
            )
        if self.has_gateway and self.rollout == "replace" and self.canary.steps:
            raise ValueError(
                "rollout: replace and canary.steps do not go together: where one generation makes room for the other, "
                "no two of them can share the requests. Set canary.steps: [], or have accelerators for two and "
                "rollout: beside"
            )
        return self

    @model_validator(mode="after")
    def _runs_are_not_among_weights(self) -> Settings:
        for taken in ("models", "deployments"):
            if f"{self.pipeline_root}/".startswith(f"gs://{self.bucket}/{taken}/"):
                raise ValueError(
                    f"pipeline_root: gs://{self.bucket}/{taken} is where the {taken} are; name another folder"
                )
        return self

    @model_validator(mode="after")
    def _vertex_is_in_one_region(self) -> Settings:
        for key in ("network_attachment", "kms_key"):
            parts = getattr(self.vertex, key).split("/")
            if len(parts) > 3 and parts[3] != self.vertex_location:
                raise ValueError(
                    f"vertex.{key} is in {parts[3]}, and runs are in {self.vertex_location}: name one that is there, "
                    "or set vertex.location"
                )
        return self

    @model_validator(mode="after")
    def _runs_have_an_account_of_their_own(self) -> Settings:
        if self.pipeline_service_account.endswith("@developer.gserviceaccount.com"):
            raise ValueError(
                f"pipeline_service_account: {self.pipeline_service_account} is Compute Engine's default, which may do "
                "nearly anything: name an account of the pipeline's own"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _texts_reach_the_steps_as_they_are(cls, values: Any) -> Any:
        for path, value in _leaves(values):
            words = ""
            if isinstance(value, float) and not math.isfinite(value):
                words = f"must be a finite number, not {value}"
            elif isinstance(value, str) and "{{$" in value:
                words = "holds {{$, which Kubeflow Pipelines would replace on the way to a step: leave it out"
            elif isinstance(value, str) and re.search("[\0\ud800-\udfff]", value):
                words = "holds a character that no text has (NUL, or half of a pair)"
            if words:
                raise PydanticCustomError("at_path", "{words}", {"path": path, "words": words})
        return values

    @model_validator(mode="after")
    def _an_accelerator_is_named(self) -> Settings:
        if not self.accelerator.type:
            usual = next(
                kind for own in self.chosen_features if (kind := getattr(features.module(own), "DEFAULT_TYPE", ""))
            )
            object.__setattr__(self, "accelerator", self.accelerator.model_copy(update={"type": usual}))
        return self

    @model_validator(mode="after")
    def _a_reservation_is_meant(self) -> Settings:
        if self.capacity != "reservation" and self.reservation != Reservation():
            raise ValueError(f"reservation: capacity is {self.capacity}, which takes none: set capacity: reservation")
        if self.reservation.project and not self.reservation.name:
            raise ValueError("reservation.project: name the reservation in it, too (reservation.name)")
        return self

    @model_validator(mode="after")
    def _the_engine_can_start(self) -> Settings:
        from serving import catalog, sizing

        longest = []
        try:
            for own in filter(None, (self, self.beside)):
                card = catalog.card(own.accelerator.type, own.accelerator.count)
                longest.append(card.kind.ready_timeout)
                # What the catalog does not know, resolve_model looks at before anything is spent.
                if self.model in catalog.models() and not self.source:
                    sizing.judged(sizing.of_catalog(self.model), own.wish())
        except RequestError as error:
            raise ValueError(str(error)) from error
        if not self.serving.ready_timeout:
            serving = self.serving.model_copy(update={"ready_timeout": max(longest, key=in_seconds)})
            object.__setattr__(self, "serving", serving)
        return self

    @model_validator(mode="after")
    def _features_can_serve_it(self) -> Settings:
        try:
            for _ in features.answers(self, "check"):
                pass
        except RequestError as error:
            raise ValueError(str(error)) from error
        return self

    @model_validator(mode="after")
    def _its_machines_have_room(self) -> Settings:
        from serving import catalog
        from serving.features import nodes

        if self.model in catalog.models():  # Of another, resolve_model finds out how large it is.
            try:
                features.demand(self, "holds", nodes.host(self))
            except RequestError as error:
                raise ValueError(str(error)) from error
        return self

    def model_post_init(self, _context: Any) -> None:
        if not self.pipeline_root:
            object.__setattr__(self, "pipeline_root", f"gs://{self.bucket}/pipelines")
        if not self.pipeline_service_account:
            account = f"gemma-pipelines@{self.project}.iam.gserviceaccount.com"
            object.__setattr__(self, "pipeline_service_account", account)

    @property
    def chosen_features(self) -> tuple[str, ...]:
        """The deployment's features, in the order of their columns."""
        return scenarios.features_of(scenarios.find(self.scenario), self.features)

    @property
    def has_gateway(self) -> bool:
        """Whether clients come in by a Gateway, whose route gives each generation its share of the requests."""
        return "gateway" in self.chosen_features

    def section(self, feature: str) -> Any:
        """The section of a feature."""
        return getattr(self, features.section_name(feature))

    @property
    def beside(self) -> Settings | None:
        """The same on the accelerator that the pods may find in place of theirs; None where there is no choice."""
        if not (other := features.beside(self)):
            return None
        accelerator = self.accelerator.model_copy(update={"type": other.type, "count": other.count})
        return self.model_copy(
            update={"accelerator": accelerator, "engine": self.engine.model_copy(update={"image": other.image})}
        )

    @property
    def has_live_adapters(self) -> bool:
        """Whether adapters change in place."""
        return "live-adapters" in self.chosen_features

    @property
    def adapters_at_once(self) -> int:
        """Adapters that one batch may mix: each takes its own part of a card's memory."""
        at_once: int = min(len(self.adapters), _ADAPTERS_AT_ONCE)
        if self.has_live_adapters:
            at_once = self.section("live-adapters").at_once
        return self.engine.number("--max-loras") or at_once

    def wish(self, adapter_rank: int = 0, assistant_bytes: int = 0) -> Wish:
        """What the model is to run on, and how. The arguments are what resolve_model finds out."""
        from serving.sizing import Wish

        asked = self.engine
        return Wish(
            accelerator=self.accelerator.type,
            count=self.accelerator.count,
            quantization=asked.quantization,
            max_model_len=None if asked.max_model_len == "auto" else asked.max_model_len,
            requests=asked.concurrent_requests,
            share=asked.gpu_memory_utilization,
            text_only=asked.text_only,
            batch_tokens=asked.number("--max-num-batched-tokens"),
            batch_requests=asked.number("--max-num-seqs"),
            narrow_kv=(asked.flag("--kv-cache-dtype") or "").startswith("fp8"),
            adapter_rank=adapter_rank,
            adapters_at_once=self.adapters_at_once,
            assistant_bytes=assistant_bytes,
        )

    @property
    def vertex_location(self) -> str:
        """The region of Vertex AI that runs are sent to."""
        return self.vertex.location or self.region

    @property
    def region(self) -> str:
        """The cluster's region."""
        return re.sub("-[a-z]$", "", self.location)

    def as_parameters(self) -> dict[str, Any]:
        """What a run is given: the pipeline's parameters."""
        values = self.as_struct()
        rest = {key: value for key, value in values.items() if key not in (*EXPLICIT, *AROUND_A_RUN)}
        return {**{key: values[key] for key in EXPLICIT}, "settings": rest}

    def as_struct(self) -> dict[str, Any]:
        """The settings as a pipeline parameter: plain values; a struct of kfp cannot hold null, which is left out."""
        return self.model_dump(mode="json", exclude_none=True)

    @model_serializer(mode="wrap")
    def _without_sections_of_others(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # What is written out is read in again, and a section of a feature that the deployment has not is refused.
        written: dict[str, Any] = handler(self)
        chosen = map(features.section_name, self.chosen_features)
        others = features.sections().keys() - set(chosen) | (set() if self.has_gateway else {"canary"})
        return {key: value for key, value in written.items() if key not in others}


def _chosen(values: dict[str, Any]) -> tuple[str, ...] | None:
    """The features that plain values name; None where those are not right, which their own checks say better."""
    try:
        return scenarios.features_of(scenarios.find(values["scenario"]), values.get("features") or [])
    except (RequestError, KeyError, AttributeError, TypeError):
        return None


def _opened(values: Any) -> Any:
    """The values with a Gateway as the entry where they are public: nothing else lets /v1 alone through."""
    if not isinstance(values, dict) or not (chosen := _chosen(values)) or "service" not in chosen:
        return values
    serving = values.get("serving")
    exposure = serving.get("exposure") if isinstance(serving, dict) else getattr(serving, "exposure", None)
    if exposure != "public":
        return values
    return {**values, "features": [*(word for word in values.get("features") or [] if word != "service"), "gateway"]}


def _leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Every value that holds no others, keys included, with its path."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(key, path)
            yield from _leaves(item, (*path, key))
    elif isinstance(value, list):
        for position, item in enumerate(value):
            yield from _leaves(item, (*path, position))
    else:
        yield path, value


def _without_null(value: Any) -> Any:
    """The patch with its nulls as the directive that means the same."""
    if isinstance(value, dict):
        return {key: {"$patch": "delete"} if item is None else _without_null(item) for key, item in value.items()}
    return [_without_null(item) for item in value] if isinstance(value, list) else value


def _integral(value: Any) -> Any:
    """The value with its whole floats as integers."""
    if isinstance(value, dict):
        return {key: _integral(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_integral(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
