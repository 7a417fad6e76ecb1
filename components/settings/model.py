"""The model of a settings file: its sections and keys, their defaults, and what cannot go together.

The text under a field is its documentation, the comment in `init`'s file and the line of the reference.
"""

from __future__ import annotations

from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from components.errors import RequestError
from components.settings.values import (
    AdapterName,
    Bucket,
    ClusterName,
    DeploymentName,
    DnsLabel,
    Duration,
    Endpoint,
    Folder,
    LabelValue,
    Location,
    Model,
    OwnKey,
    Project,
    Quantity,
    Registry,
    RegularExpression,
    Scenario,
    SecretVersion,
    ServiceAccount,
    SourceFolder,
)

MAIN = "main"
"""The branch that is followed when nobody says which."""

EXPLICIT = ("project", "location", "cluster", "namespace", "bucket", "model", "revision")
"""The fields that are pipeline parameters of their own."""


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


# -- sections -----------------------------------------------------------------------------------------------


class Hub(Section):
    """Where the weights come from."""

    endpoint: Endpoint | None = None
    """A mirror of the hub, like https://hub.example.com; null is the hub itself (or HF_ENDPOINT). The token goes there
    and nowhere else."""
    token_secret: SecretVersion | None = None
    """The Secret Manager version that holds the Hugging Face token (projects/P/secrets/S/versions/latest); null for a
    model without a gate."""
    allow_pickles: bool = False
    """Take *.bin or *.pt where there are no safetensors (beside safetensors: never). A pickle is a program, which may
    do anything when it is loaded: only from makers whom you trust like your own code."""


class _Repository(Section):
    """Something that is served beside the model, pinned to a commit of its own."""

    model: Model
    """Its name on the hub."""
    revision: str = Field(MAIN, min_length=1)
    """A branch, tag or commit of it."""
    source: SourceFolder | None = None
    """gs://BUCKET/FOLDER that its files come from instead of the hub; `model` is then only the name it goes by."""

    @model_validator(mode="after")
    def _one_source(self) -> _Repository:
        _check_source(self.source, self.revision)
        return self


class Adapter(_Repository):
    """A LoRA adapter."""


class Assistant(_Repository):
    """A draft model."""

    num_speculative_tokens: int | None = Field(None, ge=1, le=32)
    """Tokens that it drafts at a time; null takes the catalog's figure for the model."""


def _check_source(source: str | None, revision: str) -> None:
    if source and revision != MAIN:
        raise ValueError(f"revision {revision!r} means nothing for {source}, which has no commits: leave it out")


class Accelerator(Section):
    """The machine of one serving pod. What is null comes from the catalog entry of the model."""

    type: str = "nvidia-l4"
    """A card of the catalog, such as nvidia-l4, nvidia-a100-40gb, nvidia-a100-80gb or nvidia-h100-80gb."""
    count: int = Field(1, ge=1, le=16)
    """Cards in a pod: the engine splits the model over them."""
    spot: bool = False
    """Spot nodes: cheaper, and taken away at half a minute's notice."""
    cpu: Quantity | None = None
    """Processors of a pod."""
    memory: Quantity | None = None
    """Memory of a pod."""
    ephemeral_storage: Quantity | None = None
    """Local disk of a pod."""


class Engine(Section):
    """The server. What is null comes from the catalog entry of the model and its accelerator."""

    image: str | None = Field(None, min_length=1)
    """The vLLM image, if not the catalog's; a digest is welcome."""
    sizing_like: Model | None = None
    """For a model that is not in the catalog, a fine-tune say: the catalog's model that it is made like."""
    max_model_len: int | None = Field(None, ge=128)
    """Tokens of a request and its answer together."""
    gpu_memory_utilization: float | None = Field(None, gt=0, le=1)
    """Share of a card's memory that the engine may take."""
    quantization: str | None = Field(None, min_length=1)
    """Quantization on loading: fp8 halves the weights."""
    extra_args: list[str] = []
    """Further flags of `vllm serve`, as they are, such as [--max-num-seqs, "64"]."""
    api_key_secret: SecretVersion | None = None
    """The Secret Manager version that holds the key which clients of the server must show; null asks for none."""

    @field_validator("extra_args")
    @classmethod
    def _flags_are_free(cls, flags: list[str]) -> list[str]:
        for flag in flags:
            name = flag.partition("=")[0]
            if name in _TAKEN_FLAGS:
                raise ValueError(f"{name} is not for extra_args: {_TAKEN_FLAGS[name]}")
        return flags


_TAKEN_FLAGS = {
    "--model": "the model is always at /model",
    "--host": "the server listens where its Service looks for it",
    "--port": "the server listens where its Service looks for it",
    "--served-model-name": "the server goes by the hub's name of its model",
    "--api-key": "an argument can be read by everybody; set engine.api_key_secret",
    "--max-model-len": "set engine.max_model_len",
    "--gpu-memory-utilization": "set engine.gpu_memory_utilization",
    "--quantization": "set engine.quantization",
    "-q": "set engine.quantization",
    "--tensor-parallel-size": "it follows accelerator.count",
    "-tp": "it follows accelerator.count",
    "--enable-lora": "it follows `adapters`",
    "--lora-modules": "set `adapters`",
    "--max-lora-rank": "it follows the ranks of `adapters`",
    "--speculative-config": "set `assistant`",
    "-sc": "set `assistant`",
    "--shutdown-timeout": "set serving.request_timeout",
    # vLLM has dropped these, and refuses to start with them.
    "--swap-space": "vLLM has dropped it",
    "--num-scheduler-steps": "vLLM has dropped it",
    "--disable-log-requests": "vLLM has dropped it; it is --no-enable-log-requests now",
    "--device": "vLLM has dropped it",
    "--task": "vLLM has dropped it",
    "--use-v2-block-manager": "vLLM has dropped it",
}


class Volume(Section):
    """How the bucket is mounted."""

    profile: Literal["serving", "manual"] = "serving"
    """serving: GKE's StorageClass gcsfusecsi-serving, which tunes itself (GKE 1.35.1-gke.1616000 or newer); manual:
    mount options for older clusters."""


class Serving(Section):
    """How the model is offered."""

    replicas: int = Field(1, ge=1, le=1000)
    """Pods of the live generation."""
    exposure: Literal["internal", "gateway", "public"] = "internal"
    """internal: an address in the cluster; public: a load balancer's, and then engine.api_key_secret is needed."""
    client_namespaces: list[DnsLabel] = []
    """Namespaces whose pods may call the server, beside its own."""
    service_account: DnsLabel = "gemma-server"
    """The Kubernetes service account of the serving pods, which may read the bucket."""
    capacity_timeout: Duration = "30m"
    """How long a pod may wait for a node before the run ends without a verdict."""
    ready_timeout: Duration = "30m"
    """How long a server that has its node may take to become ready before it has failed."""
    request_timeout: Duration = "2m"
    """The slowest request: what a pod that is being stopped waits for."""
    drain_seconds: int = Field(120, ge=0)
    """After a promotion, how long the old generation may finish the requests that it still runs."""


class Prompt(Section):
    """A question that the server is asked before it is promoted."""

    content: str = Field(min_length=1)
    pattern: RegularExpression | None = None
    """A regular expression that the answer must contain; null judges the answer by structure alone."""


class Thresholds(Section):
    """Limits on the load's figures, at the highest concurrency; null does not judge."""

    min_tokens_per_second: float | None = Field(None, gt=0)
    """Tokens a second that all streams together must bring."""
    max_p95_time_to_first_token_ms: float | None = Field(None, gt=0)
    """How long 95 in 100 requests may wait for their first token."""
    max_p95_inter_token_latency_ms: float | None = Field(None, gt=0)
    """How long 95 in 100 tokens may wait for the next."""
    max_error_rate: float = Field(0.0, ge=0, le=1)
    """Share of requests that may fail."""


class Validation(Section):
    """What a new generation has to show before it is promoted."""

    prompts: list[Prompt] = Field(
        [
            Prompt(content="What is a Kubernetes pod? Answer in one sentence."),
            Prompt(content="대한민국의 수도에 대해 한 문장으로 설명해 주세요."),
        ],
        min_length=1,
    )
    """Questions: content, and a pattern that the answer must contain (a regular expression; null judges its structure
    alone)."""
    max_tokens: int = Field(64, ge=1)
    """Longest answer to a question, tokens."""
    concurrencies: list[Annotated[int, Field(ge=1)]] = Field([1, 4, 16], min_length=1)
    """Streams at once, one round of load after the other."""
    requests_per_concurrency: int = Field(16, ge=1)
    """Requests of a round."""
    load_max_tokens: int = Field(64, ge=1)
    """Longest answer under load, tokens."""
    thresholds: Thresholds = Thresholds()
    timeout: Duration = "15m"
    """How long the whole may take."""


class Images(Section):
    """Where images come from."""

    registry: Registry | None = None
    """A mirror: every image is pulled as REGISTRY/<path of the image>."""
    components: str | None = Field(None, min_length=1)
    """The image that steps and Jobs run; null takes the one that the pipeline was compiled with."""


class Lease(Section):
    """One run at a time."""

    duration: Duration = "15m"
    """How long a run may be silent before another may take the deployment over. Longer than Vertex takes to start a
    step."""
    wait: Duration = "0s"
    """How long to wait for another run's Lease before giving up."""


# -- the whole ----------------------------------------------------------------------------------------------


class Settings(Section):
    """One deployment."""

    scenario: Scenario
    """The way in which the model is served."""
    project: Project
    """The Google Cloud project's id."""
    location: Location = "us-central1"
    """The cluster's region, or its zone."""
    cluster: ClusterName = "gemma"
    """The GKE cluster."""
    namespace: DnsLabel = "gemma"
    """The namespace in it, made if it is not there."""
    bucket: Bucket
    """The bucket for weights, reports and records; in the cluster's region, with uniform access."""
    model: Model = "google/gemma-3-4b-it"
    """The model's name on the hub. Gemma 4 is one line away: google/gemma-4-E4B-it runs on the same card."""
    revision: str = Field(MAIN, min_length=1)
    """A branch, tag or commit of it. A schedule follows a branch."""
    source: SourceFolder | None = None
    """gs://BUCKET/FOLDER that the model's files come from instead of the hub, a fine-tune say; `model` is then only the
    name it goes by, and `revision` means nothing."""
    adapters: dict[AdapterName, Adapter] = Field({}, max_length=32)
    """LoRA adapters, each a model that clients ask for by its NAME: {NAME: {model: org/name, revision: main, source:
    null}}. One of them with other weights makes a new generation."""
    assistant: Assistant | None = None
    """A draft model that makes answers come faster and no different (speculative decoding): {model:
    google/gemma-4-E4B-it-assistant, revision: main, source: null, num_speculative_tokens: null}."""
    name: DeploymentName = "gemma"
    """The name of the Service that clients call; the record and the Lease carry it too."""
    endpoint: Literal["dns", "ip", "private"] = "dns"
    """Which of the cluster's API endpoints the pipeline uses."""
    hub: Hub = Hub()
    accelerator: Accelerator = Accelerator()
    engine: Engine = Engine()
    volume: Volume = Volume()
    serving: Serving = Serving()
    validation: Validation = Validation()
    images: Images = Images()
    lease: Lease = Lease()
    promotion: Literal["automatic", "manual"] = "automatic"
    """manual: a validated generation waits for `gemma-pipelines promote`."""
    keep_previous: int = Field(1, ge=0, le=10)
    """Generations that stay at zero replicas for `gemma-pipelines rollback`."""
    retry: bool = False
    """Try a release again that was rejected before, or go against a pin."""
    access: Literal["manage", "check"] = "manage"
    """check: IAM belongs to somebody else, Terraform say, and is only looked at."""
    labels: dict[OwnKey, LabelValue] = {}
    """Further labels on every object and its pods."""
    annotations: dict[OwnKey, str] = {}
    """Further annotations on every object and its pods."""
    patches: list[dict[str, Any]] = []
    """Strategic merge patches: each is applied to the rendered object of its kind, and of its name if it gives one.
    Such as [{kind: Deployment, spec: {template: {spec: {priorityClassName: high}}}}]."""
    pipeline_root: Folder = ""
    """Where runs leave their steps and reports; empty is gs://BUCKET/pipelines."""
    pipeline_service_account: ServiceAccount | Literal[""] = ""
    """The Google service account that runs the pipeline, to which `render --access` gives its rights in the cluster;
    empty is gemma-pipelines@PROJECT.iam.gserviceaccount.com."""

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
        _check_source(self.source, self.revision)
        return self

    @model_validator(mode="after")
    def _drafts_are_counted(self) -> Settings:
        from components import catalog

        asked = self.assistant
        if asked and not asked.num_speculative_tokens and not catalog.speculative_tokens(self.sized_like):
            raise ValueError(
                f"assistant.num_speculative_tokens is needed: the catalog knows none for {self.sized_like}; 4 is a "
                "start"
            )
        return self

    @model_validator(mode="after")
    def _exposure_is_safe(self) -> Settings:
        if self.serving.exposure == "public" and not self.engine.api_key_secret:
            raise ValueError(
                "serving.exposure public needs engine.api_key_secret: without a key anybody could use the server"
            )
        if self.serving.exposure == "gateway":
            raise ValueError(
                f"serving.exposure gateway is not built for the scenario {self.scenario}: write internal or public"
            )
        return self

    @model_validator(mode="after")
    def _the_engine_can_start(self) -> Settings:
        from components import catalog

        try:
            catalog.entry(
                self.sized_like,
                self.accelerator.type,
                self.accelerator.count,
                self.engine.quantization,
                max_model_len=self.engine.max_model_len,
                gpu_memory_utilization=self.engine.gpu_memory_utilization,
            )
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
    def sized_like(self) -> str:
        """The catalog's model that this one is sized like: itself, but for a fine-tune."""
        return self.engine.sizing_like or self.model

    def as_struct(self) -> dict[str, Any]:
        """The settings as a pipeline parameter: plain values; a struct of kfp cannot hold null, which is left out."""
        return self.model_dump(mode="json", exclude_none=True)

    @classmethod
    def from_parameters(cls, rest: dict[str, Any], **explicit: Any) -> Settings:
        """Settings from pipeline parameters: the struct `rest` and the explicit fields. Raises RequestError."""
        from components.settings.reading import validated

        return validated(cls, {**rest, **explicit})


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


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a field of this type holds, if it holds one; it may be null."""
    for kind in (annotation, *(get_args(annotation) if get_origin(annotation) is UnionType else ())):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def entry_of(annotation: Any) -> type[BaseModel] | None:
    """The section of each entry of a field of this type, if it is a mapping of names to sections."""
    return section_of(get_args(annotation)[1]) if get_origin(annotation) is dict else None
