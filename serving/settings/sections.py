"""The sections of a settings file: what each part of a deployment may say, key by key, with its default.

The text under a field is its documentation, the comment in `init`'s file and the line of the reference.
"""

from __future__ import annotations

import datetime
from itertools import pairwise
from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, Field, field_validator, model_validator

from serving.settings import extra_args
from serving.values import (
    Cron,
    DnsDomain,
    DnsLabel,
    Duration,
    Endpoint,
    Image,
    Instant,
    KmsKey,
    MaybeNoTime,
    Model,
    Network,
    NetworkAttachment,
    Project,
    Quantity,
    Region,
    Registry,
    RegularExpression,
    Revision,
    SecretVersion,
    Section,
    SourceFolder,
    TimeZone,
    VertexLabel,
    VertexLabelValue,
    Word,
)

MAIN = "main"
"""The branch that is followed when nobody says which."""


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
    revision: Revision = MAIN
    """A branch, tag or commit of it."""
    source: SourceFolder | None = None
    """gs://BUCKET/FOLDER that its files come from instead of the hub; `model` is then only the name it goes by."""

    @model_validator(mode="after")
    def _one_source(self) -> _Repository:
        check_source(self.source, self.revision)
        return self


class Adapter(_Repository):
    """A LoRA adapter."""


class Assistant(_Repository):
    """A draft model."""

    num_speculative_tokens: int | None = Field(None, ge=1, le=32)
    """Tokens that it drafts at a time; null takes the catalog's figure for the model."""


def check_source(source: str | None, revision: str) -> None:
    """Raises ValueError for a revision of what comes from a folder."""
    if source and revision != MAIN:
        raise ValueError(f"revision {revision!r} means nothing for {source}, which has no commits: leave it out")


class Accelerator(Section):
    """The machine of one serving pod. What is null comes from the catalog, by the model's size."""

    type: str = ""
    """An accelerator of the catalog (manifests/catalog.yaml); empty takes the usual one of the feature."""
    count: int = Field(1, ge=1)
    """Cards or chips in a pod: the engine splits the model over them."""
    cpu: Quantity | None = None
    """Processors of a pod."""
    memory: Quantity | None = None
    """Memory of a pod."""
    ephemeral_storage: Quantity | None = None
    """Local disk of a pod."""


class Reservation(Section):
    """The reservation of Compute Engine that nodes come out of, with capacity: reservation."""

    name: Word | Literal[""] = ""
    """Its name, a specific reservation; empty takes any that matches, which a Standard cluster can."""
    project: Project | Literal[""] = ""
    """The project that it is in and shared from; empty is the cluster's."""


class Engine(Section):
    """The server. What it needs of its cards follows from the model's own files (`gemma-pipelines fits`)."""

    image: Image | None = None
    """The vLLM image, if not the catalog's; a digest is welcome."""
    max_model_len: int | Literal["auto"] = "auto"
    """Tokens of a request and its answer together; auto is the longest context that concurrent_requests find room
    with."""
    concurrent_requests: int = Field(4, ge=1, le=1024)
    """Requests of the whole context that max_model_len: auto makes room for."""
    text_only: bool = False
    """Leave the encoders for images and sound out: memory for KV cache, and on Hopper several times the speed of Gemma
    3 4B and 12B."""
    gpu_memory_utilization: float | None = Field(None, gt=0, le=1)
    """Share of a card's memory that the engine may take; null takes vLLM's own, 0.92."""
    quantization: Word | None = None
    """Quantization on loading: fp8 halves linear layers, int8_per_channel_weight_only experts."""
    extra_args: list[str] = Field([])
    """Further flags of `vllm serve`, as they are, such as [--max-num-seqs, "64"]."""
    api_key_secret: SecretVersion | None = None
    """The Secret Manager version that holds the key which clients of the server must show; null asks for none."""

    @field_validator("max_model_len", mode="before")
    @classmethod
    def _tokens_or_auto(cls, value: Any) -> Any:
        if value is None:
            return "auto"  # What files of earlier versions say.
        if value != "auto" and (type(value) is not int or value < 128):
            raise ValueError(f"write a number of tokens, 128 or more, or auto, not {value!r}")
        return value

    @field_validator("extra_args")
    @classmethod
    def _flags_are_free(cls, flags: list[str]) -> list[str]:
        extra_args.check(flags)
        return flags

    def flag(self, name: str) -> str | None:
        """What extra_args give a flag that sizing reads, the last time; None when they do not."""
        return extra_args.value(self.extra_args, name)

    def number(self, name: str) -> int | None:
        """The number that extra_args give a flag; None when they do not."""
        return extra_args.number(self.extra_args, name)


class Serving(Section):
    """How the model is offered."""

    replicas: int = Field(1, ge=1, le=1000)
    """Pods of the live generation; with queue-hpa, the least of them."""
    exposure: Literal["internal", "public"] = "internal"
    """internal: an address in the cluster, or with a Gateway one of the VPC. public: an address of the internet, always
    a Gateway's (`gateway` takes the place of `service`), which lets /v1 through and nothing else; it needs
    engine.api_key_secret and gateway.certificate."""
    client_namespaces: list[DnsLabel] = Field([])
    """Namespaces whose pods may call the server, beside its own."""
    service_account: DnsLabel = "gemma-server"
    """The Kubernetes service account of the serving pods, which may read the bucket."""
    capacity_timeout: Duration = "30m"
    """How long a pod may wait for a node before the run ends without a verdict."""
    ready_timeout: Duration = ""
    """How long a server that has its node may take to become ready before it has failed. Left out it is the catalog's:
    30m, and 1h for TPUs, where XLA compiles first."""
    request_timeout: Duration = "2m"
    """The slowest request: what a pod that is being stopped waits for."""
    drain_seconds: int = Field(120, ge=0, le=86_400)
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
    min_tokens_per_second_ratio: float | None = Field(None, gt=0)
    """The same relative to the live generation, as its own validation measured it: 0.9 lets a tenth go."""
    max_p95_time_to_first_token_ratio: float | None = Field(None, gt=0)
    """The same relative to the live generation: 1.2 lets the first token come a fifth later."""
    max_p95_inter_token_latency_ratio: float | None = Field(None, gt=0)
    """The same relative to the live generation."""
    max_error_rate: float = Field(0.0, ge=0, le=1)
    """Share of requests that may fail."""

    @property
    def relative(self) -> bool:
        """Whether any of them is relative to the live generation."""
        return any(getattr(self, name) is not None for name in type(self).model_fields if name.endswith("_ratio"))


class Gate(Section):
    """A check of a team's own: a Job in the cluster."""

    image: Image
    """Its image, of which the entrypoint is started."""
    args: list[str] = Field([])
    """Its arguments, in which Kubernetes fills in $(GEMMA_PIPELINES_URL). No secret belongs there."""
    timeout: Duration = "15m"
    """How long it may take."""
    cpu: Quantity = "1"
    """Processors of its pod."""
    memory: Quantity = "1Gi"
    """Memory of its pod."""


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
    max_tokens: int = Field(64, ge=1, le=131_072)
    """Longest answer to a question, tokens."""
    concurrencies: list[Annotated[int, Field(ge=1, le=1024)]] = Field([1, 4, 16], min_length=1, max_length=16)
    """Streams at once, one round of load after the other."""
    requests_per_concurrency: int = Field(16, ge=1, le=10_000)
    """Requests of a round."""
    load_max_tokens: int = Field(64, ge=1, le=131_072)
    """Longest answer under load, tokens."""
    thresholds: Thresholds = Thresholds()
    jobs: list[Gate] = Field([], max_length=16)
    """Gates of your own, each a Job against a new generation that has passed so far: [{image: …, args: [], timeout:
    15m, cpu: "1", memory: 1Gi}]. The log's last line is {"passed": true or false, "reasons": [words]}."""
    timeout: Duration = "15m"
    """How long all but the gates may take."""


class Images(Section):
    """Where images come from."""

    registry: Registry | None = None
    """A mirror: every image is pulled as REGISTRY/<path of the image>."""
    components: Image | None = None
    """The image that steps and Jobs run; null takes the one that the pipeline was compiled with."""


class Canary(Section):
    """How a new generation takes the requests over behind a gateway: in steps, each held while the figures of both
    generations are compared. Worse than this allows: the requests go back to the old one, and the release is rejected.
    Without a gateway they move at once."""

    steps: list[Annotated[int, Field(ge=1, le=99)]] = Field([10, 50], max_length=16)
    """Percent of the requests that the new generation has, rising; after the last step it has all. [] moves them at
    once."""
    hold: Duration = "10m"
    """How long each step lasts. Both generations have their accelerators all that time."""
    settle: MaybeNoTime = "30s"
    """How long the load balancer may take to follow new weights: before that, nothing is drained that has no share."""
    max_error_rate: float = Field(0.02, ge=0, le=1)
    """Share of its requests that the new generation may fail beyond the share that the old one fails."""
    max_p95_first_token_ratio: float = Field(2.0, ge=0)
    """How long 95 in 100 requests may wait for their first token, relative to the old generation meanwhile: 2.0 lets it
    take twice as long. 0 does not judge."""
    min_requests: int = Field(50, ge=1)
    """With fewer requests in a step there is too little traffic to tell. What chance may explain among so many counts
    for neither figure."""
    little_traffic: Literal["go-on", "stop"] = "go-on"
    """What then becomes of the promotion: go-on warns and takes the next step; stop gives the requests back to the old
    generation and ends the run without a verdict."""

    @field_validator("steps")
    @classmethod
    def _steps_rise(cls, steps: list[int]) -> list[int]:
        if any(later <= earlier for earlier, later in pairwise(steps)):
            raise ValueError(f"each step has more than the one before, and {steps} does not rise")
        return steps


class Lease(Section):
    """One run at a time."""

    duration: Duration = "15m"
    """How long a run may be silent before another may take the deployment over. Longer than Vertex takes to start a
    step."""
    wait: MaybeNoTime = "0s"
    """How long to wait for another run's Lease before giving up."""


class DnsPeering(Section):
    """A domain whose names steps look up in a VPC."""

    domain: DnsDomain
    """With a dot at its end: corp.internal."""
    project: Project
    """The project of that VPC."""
    network: DnsLabel
    """The VPC's name."""


class Vertex(Section):
    """Vertex AI Pipelines, to which `submit` and `schedule` send runs. No step of a run reads it."""

    location: Region = ""
    """Its region; empty is the cluster's. The bucket is best there too."""
    network_attachment: NetworkAttachment = ""
    """A network attachment in that region: steps get an address in its VPC (Private Service Connect). For `endpoint:
    private`, say; `endpoint: dns` needs no network."""
    dns_peering: list[DnsPeering] = Field([])
    """Domains that steps look up in a VPC: [{domain: corp.internal., project: HOST, network: NAME}]. Needs a
    network_attachment."""
    network: Network = ""
    """A VPC that is peered with Vertex AI's, projects/NUMBER/global/networks/NAME. It takes a large range of addresses
    and does not lead to a cluster's private endpoint: rather a network_attachment."""
    kms_key: KmsKey = ""
    """The Cloud KMS key, of that region, that what Vertex AI keeps of runs is encrypted with."""
    labels: dict[VertexLabel, VertexLabelValue] = Field({}, max_length=32)
    """Further labels on every run, by which bills and lists are filtered."""

    @model_validator(mode="after")
    def _one_way_into_a_vpc(self) -> Vertex:
        if self.network and self.network_attachment:
            raise ValueError(
                "network and network_attachment are two ways into a VPC, of which Vertex AI takes one: keep "
                "network_attachment"
            )
        if self.dns_peering and not self.network_attachment:
            raise ValueError("dns_peering goes through a network_attachment: name that too")
        return self


class Schedule(Section):
    """A refresh again and again (`gemma-pipelines schedule apply`). No step of a run reads it."""

    cron: Cron = ""
    """Minute, hour, day of the month, month, weekday: "0 3 * * *" is every night at three; empty is no schedule."""
    timezone: TimeZone = "UTC"
    """The time zone of cron, by its name: Asia/Seoul."""
    start: Instant = ""
    """No run before that time, "2027-01-31T03:00:00+09:00"; empty begins at once."""
    end: Instant = ""
    """No run after that time; a schedule that has an end keeps one."""

    @model_validator(mode="after")
    def _it_ends_after_it_starts(self) -> Schedule:
        if self.start and self.end and moment(self.end) <= moment(self.start):
            raise ValueError(f"end {self.end} is not after start {self.start}")
        if (self.start or self.end) and not self.cron:
            raise ValueError("cron is missing: start and end say nothing without it")
        return self


def moment(text: str) -> datetime.datetime:
    """The time that a checked text says."""
    return datetime.datetime.fromisoformat(text)


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a field of this type holds, if it holds one; it may be null."""
    for kind in (annotation, *(get_args(annotation) if get_origin(annotation) is UnionType else ())):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def entry_of(annotation: Any) -> type[BaseModel] | None:
    """The section of each entry of a field of this type, if it is a mapping of names to sections."""
    return section_of(get_args(annotation)[1]) if get_origin(annotation) is dict else None
