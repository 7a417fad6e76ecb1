"""What a deployment's YAML file may say, and what it means when it does not say it.

One file describes one deployment. Seven fields are explicit pipeline parameters, since a person edits them in the
console: project, location, cluster, namespace, bucket, model, revision. The rest travels as one struct, and every step
validates the whole again (`Settings.from_parameters`), because the pipeline language turns integers into floats and
cannot take a struct apart.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from components.errors import RequestError

EXPLICIT = ("project", "location", "cluster", "namespace", "bucket", "model", "revision")
"""The fields that are pipeline parameters of their own."""

_DURATION = re.compile(r"\d+(\.\d+)?[smh]")


def seconds(value: str) -> str:
    """Checks a duration like `90s`, `30m` or `1.5h`. Raises ValueError with the units there are."""
    if not _DURATION.fullmatch(value):
        raise ValueError(f"{value!r} is not a duration: write a number and s, m or h, like 90s or 30m")
    return value


def in_seconds(duration: str) -> float:
    """The seconds of a checked duration."""
    return float(duration[:-1]) * {"s": 1, "m": 60, "h": 3600}[duration[-1]]


Duration = Annotated[str, AfterValidator(seconds)]
DnsLabel = Annotated[str, StringConstraints(pattern=r"^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$")]
"""A DNS-1035 label: what Kubernetes allows as the name of a Service."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Hub(Section):
    """Where the weights come from."""

    token_secret: Annotated[str, StringConstraints(pattern=r"^projects/[^/]+/secrets/[^/]+/versions/[^/]+$")] | None = (
        None
    )
    """Secret Manager version that holds the Hugging Face token; null for a model without a gate."""


class Accelerator(Section):
    type: str = "nvidia-l4"
    count: int = Field(1, ge=1, le=16)
    spot: bool = False


class Engine(Section):
    """The server. What is null comes from the catalog entry of the model and its accelerator."""

    image: str | None = None
    max_model_len: int | None = Field(None, ge=128)
    gpu_memory_utilization: float | None = Field(None, gt=0, le=1)
    quantization: str | None = None
    extra_args: list[str] = []
    """Further flags of `vllm serve`, as they are."""
    api_key_secret: str | None = None


class Volume(Section):
    profile: Literal["serving", "manual"] = "serving"
    """`serving`: GKE's gcsfusecsi-serving StorageClass (GKE ≥ 1.35.1-gke.1616000); `manual`: mount options for older
    clusters."""


class Serving(Section):
    replicas: int = Field(1, ge=1, le=1000)
    exposure: Literal["internal", "gateway", "public"] = "internal"
    service_account: DnsLabel = "gemma-server"
    """The Kubernetes service account of the serving pods, bound to the bucket."""
    capacity_timeout: Duration = "30m"
    """How long a pod may wait for a node before the run ends inconclusive."""
    ready_timeout: Duration = "30m"
    """How long the deployment may take to become ready, capacity included twice over, before it has failed."""
    drain_seconds: int = Field(120, ge=0)


class Prompt(Section):
    content: str = Field(min_length=1)
    pattern: str | None = None
    """A regular expression that the answer must contain; null judges the answer by structure alone."""


class Thresholds(Section):
    """Limits on the load's figures, at the highest concurrency; null does not judge."""

    min_tokens_per_second: float | None = Field(None, gt=0)
    max_p95_time_to_first_token_ms: float | None = Field(None, gt=0)
    max_p95_inter_token_latency_ms: float | None = Field(None, gt=0)
    max_error_rate: float = Field(0.0, ge=0, le=1)


class Validation(Section):
    prompts: list[Prompt] = [
        Prompt(content="What is a Kubernetes pod? Answer in one sentence."),
        Prompt(content="대한민국의 수도에 대해 한 문장으로 설명해 주세요."),
    ]
    max_tokens: int = Field(64, ge=1)
    concurrencies: list[int] = [1, 4, 16]
    requests_per_concurrency: int = Field(16, ge=1)
    load_max_tokens: int = Field(64, ge=1)
    thresholds: Thresholds = Thresholds()
    timeout: Duration = "15m"


class Images(Section):
    registry: str | None = None
    """A mirror: every image is pulled as REGISTRY/<path of the image>."""
    components: str | None = None
    """The image that executors and Jobs run; null takes the one that the pipeline was compiled with."""


class Lease(Section):
    duration: Duration = "15m"
    """How long a run may be silent before another may take the deployment over. Longer than Vertex takes to start a
    step."""
    wait: Duration = "0s"
    """How long to wait for another run's Lease before giving up."""


class Settings(Section):
    """One deployment."""

    scenario: str
    project: Annotated[str, StringConstraints(pattern=r"^[a-z][-a-z0-9]{4,28}[a-z0-9]$")]
    location: Annotated[str, StringConstraints(pattern=r"^[a-z]+-[a-z]+\d+(-[a-z])?$")] = "us-central1"
    cluster: Annotated[str, StringConstraints(pattern=r"^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$")] = "gemma"
    namespace: DnsLabel = "gemma"
    bucket: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][-_.a-z0-9]{1,61}[a-z0-9]$")]
    model: Annotated[str, StringConstraints(pattern=r"^[\w.-]+/[\w.-]+$")] = "google/gemma-3-4b-it"
    revision: str = Field("main", min_length=1)
    name: DnsLabel = Field("gemma", max_length=40)
    """Names the stable Service, the record and the Lease."""
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
    keep_previous: int = Field(1, ge=0, le=10)
    retry: bool = False
    """Try a release again that was rejected before, or go against a pin."""
    access: Literal["manage", "check"] = "manage"
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    patches: list[dict[str, Any]] = []
    """Strategic merge patches: each is applied to the rendered object of the same kind (and name, if given)."""
    pipeline_root: str = ""
    """`gs://…`; by default gs://BUCKET/pipelines."""

    def model_post_init(self, _context: Any) -> None:
        if not self.pipeline_root:
            object.__setattr__(self, "pipeline_root", f"gs://{self.bucket}/pipelines")

    @classmethod
    def from_parameters(cls, rest: dict[str, Any], **explicit: Any) -> Settings:
        """Settings from pipeline parameters: the struct `rest` and the explicit fields. Raises RequestError."""
        return validated(cls, {**rest, **explicit})


def validated(cls: type[Settings], values: dict[str, Any]) -> Settings:
    """Builds settings from plain values. Raises RequestError with a line for each thing that is wrong."""
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        lines = [f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in error.errors()]
        raise RequestError("\n".join(lines)) from error


def load(path: Path) -> Settings:
    """Reads a settings file. Raises RequestError naming file and line where possible."""
    import yaml

    return validated(Settings, yaml.safe_load(path.read_text()))
