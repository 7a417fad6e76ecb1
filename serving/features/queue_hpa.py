"""As many pods as the queue of each asks for: an autoscaler a generation, on what vLLM says of its waiting requests.

verify_autoscaling puts a new generation under load, and sees pods come and go.
Source: https://cloud.google.com/kubernetes-engine/docs/how-to/machine-learning/inference/autoscaling
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from serving.errors import RequestError
from serving.image import mirrored
from serving.values import Duration, Image, MaybeNoTime, in_seconds
from serving.values import Section as BaseSection

if TYPE_CHECKING:
    from serving.clients.google import ClusterTraits
    from serving.settings import Settings
    from serving.weights.release import Release

METRIC = "vllm:num_requests_waiting"
"""What vLLM calls its queue."""
_OF_GKE = "queue"
"""What the AutoscalingMetric calls it: a name with a colon is not legal there."""
_SINCE = "1.35.1-gke.1396000"
"""The first GKE version with AutoscalingMetric."""
_API = {"stackdriver": "custom.metrics.k8s.io", "autoscaling-metric": "autoscaling.gke.io"}
"""Adapter → the API group that a cluster with it has."""
ADAPTER = ("custom-metrics", "custom-metrics-stackdriver-adapter")
"""Namespace and service account of the Stackdriver adapter, which needs roles/monitoring.viewer on the project."""
_LONGEST_WINDOW, _LONGEST_PERIOD = 3600, 1800
"""Seconds that Kubernetes takes."""


class Section(BaseSection):
    """How many pods serve: at least serving.replicas, and more as requests wait. All of it changes in place."""

    adapter: Literal["stackdriver", "autoscaling-metric"] = "stackdriver"
    """Who brings the metric to the autoscaler. stackdriver: Google's adapter over Cloud Monitoring, any GKE;
    autoscaling-metric: GKE itself (Preview, Rapid channel, 1.35.1-gke.1396000), at most 20 metrics a cluster. Changing
    it replaces the pods, one by one."""
    install_adapter: bool = True
    """Whether `render --access` has the Stackdriver adapter; false where the cluster has one already."""
    adapter_image: Image = "gcr.io/gke-release/custom-metrics-stackdriver-adapter:v0.16.9-gke.0"
    """The adapter's image."""
    max_replicas: int = Field(4, ge=1, le=1000)
    """Pods at most."""
    target: int = Field(10, ge=1, le=100_000)
    """Waiting requests for each pod, above which there are to be more pods."""
    scale_up_window: MaybeNoTime = "0s"
    """How long more pods must have been wanted before they come."""
    scale_up_pods: int = Field(4, ge=1, le=1000)
    """Pods that may come within scale_up_period, or as many as there are, whichever is more."""
    scale_up_period: Duration = "15s"
    """The time that scale_up_pods are for."""
    scale_down_window: MaybeNoTime = "5m"
    """How long fewer pods must have been wanted before one goes."""
    scale_down_pods: int = Field(1, ge=1, le=1000)
    """Pods that may go within scale_down_period."""
    scale_down_period: Duration = "1m"
    """The time that scale_down_pods are for."""
    verify: bool = True
    """Put a new generation under load before it serves, and see pods come and go."""
    verify_requests: int = Field(2048, ge=1, le=16_384)
    """Requests at once, at most, until some have to wait: more than the engine runs at once (max_num_seqs)."""
    metric_timeout: Duration = "10m"
    """How long the metric may be unknown to the autoscaler. After a first pod that can take ten minutes."""
    growth_timeout: Duration = "5m"
    """How long the autoscaler may take, under load, to ask for another pod."""

    @field_validator("scale_up_window", "scale_down_window", "scale_up_period", "scale_down_period")
    @classmethod
    def _kubernetes_takes_it(cls, value: str, info: Any) -> str:
        longest = _LONGEST_WINDOW if info.field_name.endswith("window") else _LONGEST_PERIOD
        seconds = in_seconds(value)
        if seconds != int(seconds) or seconds > longest:
            raise ValueError(f"{value!r} is not whole seconds, at most {longest}, which is what Kubernetes takes")
        return value


def check(settings: Settings) -> None:
    """Raises RequestError for fewer pods at most than at least, and for a load under which no pod could ever come."""
    section = _section(settings)
    most, least = section.max_replicas, settings.serving.replicas
    if most < least:
        raise RequestError(
            f"queue_hpa.max_replicas is {most}, and serving.replicas, which is the least, {least}. Raise the one, or "
            "lower the other"
        )
    if section.verify and section.verify_requests <= section.target:
        raise RequestError(
            f"queue_hpa.verify_requests is {section.verify_requests}, and more than queue_hpa.target "
            f"({section.target}) have to wait before there are more pods. Raise it, or say `verify: false`"
        )


def variant(settings: Settings) -> str:
    """What else there is: GKE's own object for the metric, or the adapter that an administrator installs."""
    section = _section(settings)
    if section.adapter == "autoscaling-metric":
        return section.adapter
    return "install" if section.install_adapter else ""


def metric_name(settings: Settings, server: str) -> str:
    """What the autoscaler calls the queue of a server's pods."""
    if _section(settings).adapter == "autoscaling-metric":
        return f"autoscaling.gke.io|{server}|{_OF_GKE}"
    return f"prometheus.googleapis.com|{METRIC}|gauge"


def values(settings: Settings, release: Release | None) -> dict[str, Any]:
    """What an administrator installs."""
    return {"adapter_image": mirrored(settings.images.registry, _section(settings).adapter_image)}


def scaled(settings: Settings, server: str) -> dict[str, Any]:
    """A server's autoscaler: its metric, and the settings' bounds, target and behaviour."""
    section = _section(settings)
    return {
        "queue_metric": metric_name(settings, server),
        "queue_metric_of_engine": METRIC,
        "queue_metric_of_gke": _OF_GKE,
        "queue_target": str(section.target),
        "least_replicas": settings.serving.replicas,
        "most_replicas": section.max_replicas,
        "scaling_behavior": {
            "scaleUp": {
                "stabilizationWindowSeconds": int(in_seconds(section.scale_up_window)),
                "selectPolicy": "Max",
                "policies": [
                    _policy("Pods", section.scale_up_pods, section.scale_up_period),
                    _policy("Percent", 100, section.scale_up_period),
                ],
            },
            "scaleDown": {
                "stabilizationWindowSeconds": int(in_seconds(section.scale_down_window)),
                "selectPolicy": "Max",
                "policies": [_policy("Pods", section.scale_down_pods, section.scale_down_period)],
            },
        },
    }


def rights(settings: Settings) -> dict[str, set[str]]:
    """verify_autoscaling watches the autoscaler."""
    return {"HorizontalPodAutoscaler": {"watch"}}


def suits(settings: Settings, look: Callable[[], ClusterTraits]) -> None:
    """Raises RequestError for a cluster that is too old for GKE's own way to the metric."""
    if _section(settings).adapter != "autoscaling-metric":
        return
    cluster = look()
    if not cluster.is_at_least(_SINCE):
        raise RequestError(
            f"{cluster.name} is GKE {cluster.version}; AutoscalingMetric needs {_SINCE}, in the Rapid channel. Set "
            "queue_hpa.adapter to stackdriver, or upgrade the cluster"
        )


def served(settings: Settings, has_group: Callable[[str], bool]) -> None:
    """Raises RequestError for a cluster in which nobody brings the metric to the autoscaler, with what does."""
    section = _section(settings)
    if has_group(_API[section.adapter]):
        return
    if section.adapter == "stackdriver":
        raise RequestError(
            f"the cluster has no adapter that brings {METRIC} from Cloud Monitoring to the autoscaler (no "
            f"{_API[section.adapter]}). An administrator installs it once: `gemma-pipelines render {settings.scenario} "
            "-f FILE --access | kubectl apply --server-side -f -` with queue_hpa.install_adapter: true; "
            "`gemma-pipelines bootstrap -f FILE` gives it roles/monitoring.viewer"
        )
    raise RequestError(
        "the cluster does not serve AutoscalingMetric (autoscaling.gke.io), a Preview of GKE's Rapid channel. Set "
        "queue_hpa.adapter to stackdriver"
    )


def _policy(kind: str, value: int, period: str) -> dict[str, Any]:
    return {"type": kind, "value": value, "periodSeconds": max(1, int(in_seconds(period)))}


def _section(settings: Settings) -> Section:
    section: Section = settings.section("queue-hpa")
    return section
