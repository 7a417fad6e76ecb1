"""Rendered manifests: compared with golden files both ways, and judged by the API's own schemas.

`make golden` writes them again.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any
from unittest import mock

import emulated_cloud
import jsonschema
import kubernetes_validate.utils
import pytest
import yaml

from serving import sizing
from serving.rendering import render
from serving.scenarios import SCENARIOS
from serving.settings import Settings, validated
from serving.weights.release import Release

GOLDEN = Path(__file__).parent / "manifests"
CRDS = Path(emulated_cloud.__file__).parent / "kubernetes" / "crds"
KUBERNETES = ("1.33", "1.35")
"""The oldest and the newest version whose schema every object has to pass."""

RENDERED: dict[str, dict[str, Any]] = {
    **{scenario.name: {"scenario": scenario.name} for scenario in SCENARIOS},
    "streamed": {
        "features": ["streamed"],
        "model": "google/gemma-4-E4B-it",
        "accelerator": {"count": 2},
        "adapters": {"korean": {"model": "someone/gemma-4-ko-lora"}},
        "assistant": {"model": "google/gemma-4-E4B-it-assistant"},
    },
    "hyperdisk-ml-populator": {"scenario": "hyperdisk-ml", "hyperdisk_ml": {"method": "populator"}},
    "secondary-boot-disk-compute-class": {
        "scenario": "secondary-boot-disk",
        "capacity": "spot",
        "secondary_boot_disk": {"form": "compute-class"},
    },
    "tpu-gemma-4-reservation": {
        "scenario": "tpu",
        "model": "google/gemma-4-26B-A4B-it",
        "accelerator": {"type": "tpu7x", "count": 4},
        "capacity": "reservation",
        "reservation": {"name": "ironwood", "project": "shared-chips"},
    },
    "queue-hpa-autoscaling-metric": {
        "features": ["queue-hpa"],
        "serving": {"replicas": 2},
        "queue_hpa": {"adapter": "autoscaling-metric", "max_replicas": 8, "scale_down_window": "10m"},
    },
    "inference-gateway-house-rules": {
        "scenario": "inference-gateway",
        "model": "google/gemma-4-E4B-it",
        "name": "chat",
        "namespace": "serving",
        "adapters": {"korean": {"model": "someone/gemma-4-ko-lora"}},
        "engine": {"api_key_secret": "projects/demo-project/secrets/key/versions/latest"},
        "serving": {"replicas": 3, "exposure": "public", "client_namespaces": ["web"], "request_timeout": "5m"},
        "gateway": {"certificate": "chat-example-com", "address": "chat"},
        "inference_gateway": {"objectives": {"batch": -1, "chat": 10}, "failure_mode": "FailClose"},
        "images": {"registry": "eu-docker.pkg.dev/demo-project/mirror"},
        "labels": {"team": "assistants"},
        "annotations": {"example.com/owner": "assistants@example.com"},
        "patches": [
            {"kind": "Deployment", "spec": {"template": {"spec": {"priorityClassName": "high"}}}},
            {
                "kind": "Deployment",
                "metadata": {"name": "epp"},
                "spec": {"template": {"spec": {"priorityClassName": "higher"}}},
            },
        ],
    },
    "gcs-fuse-public": {
        "engine": {"api_key_secret": "projects/demo-project/secrets/key/versions/latest"},
        "serving": {"exposure": "public"},
        "gateway": {"certificate": "gemma-example-com"},
    },
    "gateway-internal": {"features": ["gateway"]},
    "gcs-fuse-manual-volume": {"gcs_fuse": {"profile": "manual"}},
    "gcs-fuse-gemma-4": {
        "model": "google/gemma-4-31B-it",
        "accelerator": {"count": 4},
        "engine": {"extra_args": ["--reasoning-parser", "gemma4"]},
    },
    "gcs-fuse-adapters": {
        "model": "google/gemma-4-E4B-it",
        "adapters": {
            "legal": {"model": "someone/gemma-4-legal-lora", "revision": "v2"},
            "korean": {"model": "someone/gemma-4-ko-lora", "source": "gs://tunes/korean"},
        },
        "assistant": {"model": "google/gemma-4-E4B-it-assistant"},
    },
    "gcs-fuse-house-rules": {
        "model": "google/gemma-3-12b-it",
        "name": "chat",
        "namespace": "serving",
        "accelerator": {"memory": "40Gi"},
        "capacity": "spot",
        "engine": {"quantization": "fp8", "api_key_secret": "projects/demo-project/secrets/key/versions/latest"},
        "serving": {"replicas": 3, "client_namespaces": ["web"], "request_timeout": "5m"},
        "images": {"registry": "eu-docker.pkg.dev/demo-project/mirror"},
        "labels": {"team": "assistants"},
        "annotations": {"example.com/owner": "assistants@example.com"},
        "patches": [
            {
                "kind": "Deployment",
                "spec": {
                    "template": {
                        "spec": {
                            "priorityClassName": "high",
                            "containers": [{"name": "vllm", "env": [{"name": "VLLM_LOGGING_LEVEL", "value": "DEBUG"}]}],
                        }
                    }
                },
            },
            {
                "kind": "Service",
                "metadata": {
                    "name": "chat",
                    "annotations": {"networking.gke.io/load-balancer-type": "Internal"},
                },
            },
        ],
    },
}

PRIVILEGED = ["fungibility"]
"""Cases whose pods are."""

CUSTOM = {
    "PodMonitoring": "monitoring.googleapis.com_podmonitorings",
    "AutoscalingMetric": "autoscaling.gke.io_autoscalingmetrics",
    "GCPResourceAllowlist": "node.gke.io_gcpresourceallowlists",
    "ComputeClass": "cloud.google.com_computeclasses",
    "GCPDataSource": "datalayer.gke.io_gcpdatasources",
    "VolumeSnapshot": "snapshot.storage.k8s.io_volumesnapshots",
    "Gateway": "gateway.networking.k8s.io_gateways",
    "HTTPRoute": "gateway.networking.k8s.io_httproutes",
    "InferencePool": "inference.networking.k8s.io_inferencepools",
    "InferenceObjective": "llm-d.ai_inferenceobjectives",
    "HealthCheckPolicy": "networking.gke.io_healthcheckpolicies",
    "GCPBackendPolicy": "networking.gke.io_gcpbackendpolicies",
    "VolumeSnapshotClass": "snapshot.storage.k8s.io_volumesnapshotclasses",
}
"""Kinds whose schema is not Kubernetes' own, with the files of their definitions."""

each_case = pytest.mark.parametrize("case", RENDERED)


def config_of(case: str) -> Settings:
    return settings(**RENDERED[case])


def settings(**values: Any) -> Settings:
    return validated(Settings, {"scenario": "gcs-fuse", "project": "demo-project", "bucket": "demo-bucket", **values})


def release_of(config: Settings) -> Release:
    rank = 16 if config.adapters else 0
    return Release(
        run_id="run-1",
        model=config.model,
        commit="c" * 40,
        weights_key="0123456789abcdef",
        weights_uri=f"gs://demo-bucket/models/{config.model}/0123456789abcdef",
        adapters_key="fedcba9876543210" if config.adapters and config.has_live_adapters else "",
        generation="g0123456789",
        max_lora_rank=rank,
        architecture=sizing.of_catalog(config.model).architecture.name,
        weights_bytes=20_000_000_000,
        zones=["us-central1-a", "us-central1-b"] if "hyperdisk-ml" in config.chosen_features else [],
        proxy_ranges=["10.129.0.0/23"] if config.has_gateway else [],
        image_digest=f"sha256:{'d' * 64}" if "secondary-boot-disk" in config.chosen_features else "",
        disk_image="gp-0123456789abcdef" if "secondary-boot-disk" in config.chosen_features else "",
        sizing=sizing.judged(sizing.of_catalog(config.model), config.wish(rank)),
        beside=sizing.judged(sizing.of_catalog(config.model), config.beside.wish(rank)) if config.beside else None,
    )


def documents(case: str) -> list[dict[str, Any]]:
    """All that is ever applied for a case: what an administrator does first (the namespace is in it), what render
    shows, what is there while a generation is made, and the entry that promote writes."""
    return all_objects(config_of(case))


def all_objects(config: Settings) -> list[dict[str, Any]]:
    shown = yaml.safe_load_all(render.rendered_for(config, release_of(config)))
    return [
        *render.admin(config),
        *(item for item in shown if item["kind"] != "Namespace"),
        *render.temporary(config, release_of(config)),
        *render.entry_objects(config, "g0123456789"),
    ]


@each_case
def test_what_is_rendered_is_the_golden_file(case: str, update_golden: bool):
    text = yaml.safe_dump_all(documents(case), allow_unicode=True, sort_keys=False, width=120)
    golden = GOLDEN / f"{case}.yaml"
    if update_golden:
        golden.write_text(text)
    assert golden.exists(), "no golden file: make golden"
    assert text == golden.read_text(), "reviewed and meant? then: make golden"


def test_there_is_no_golden_file_that_nothing_renders():
    assert {path.name for path in GOLDEN.iterdir()} == {f"{case}.yaml" for case in RENDERED}


@each_case
@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_own_schema_takes_every_object(case: str, version: str):
    judged = [item for item in documents(case) if item["kind"] not in CUSTOM]
    assert len(judged) >= 8
    for item in judged:
        judge(item, version)


@each_case
def test_the_schemas_of_google_s_own_kinds_take_their_objects(case: str):
    judged = [item for item in documents(case) if item["kind"] in CUSTOM]
    assert "PodMonitoring" in {item["kind"] for item in judged}
    for item in judged:
        judge_custom(item)


def judge_custom(item: dict[str, Any]) -> None:
    """Raises ValidationError for what the definition of its kind does not take."""
    validator = validator_of(item["kind"], item["apiVersion"].rpartition("/")[2])
    if error := jsonschema.exceptions.best_match(validator.iter_errors(item)):
        raise error


def judge(item: dict[str, Any], version: str = KUBERNETES[-1]) -> None:
    """Raises ValidationError for what Kubernetes does not take."""
    with mock.patch.object(kubernetes_validate.utils, "schema_contents", _schema_contents):
        kubernetes_validate.validate(item, version, strict=True)


# The library reads all of a version's definitions, megabytes of them, for every object.
_schema_contents = functools.cache(kubernetes_validate.utils.schema_contents)


@functools.cache
def validator_of(kind: str, version: str) -> Any:
    schema = schema_of(kind, version)
    judge_by = jsonschema.validators.validator_for(schema)
    judge_by.check_schema(schema)
    return judge_by(schema)


@functools.cache
def schema_of(kind: str, version: str) -> Any:
    text = (CRDS / f"{CUSTOM[kind]}.yaml").read_text()
    definition = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    found = next(each for each in definition["spec"]["versions"] if each["name"] == version)
    return strict(found["schema"]["openAPIV3Schema"])


def server_of(case: str) -> dict[str, Any]:
    """The Deployment of the generation: an administrator may have installed another."""
    found = (item for item in documents(case) if item["kind"] == "Deployment")
    (server,) = (item for item in found if item["metadata"]["name"] == "vllm-g0123456789")
    return server


def test_the_adapter_that_an_administrator_installs_has_no_rights_on_its_node():
    (adapter,) = (i for i in documents("basic-gpu") if i["kind"] == "Deployment" and i != server_of("basic-gpu"))
    pod = adapter["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = pod["containers"]
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["ports"][0]["containerPort"] > 1023


def named(case: str, kind: str, name: str) -> dict[str, Any]:
    (found,) = (i for i in documents(case) if (i["kind"], i["metadata"]["name"]) == (kind, name))
    return found


WITH_A_GATEWAY = [case for case in RENDERED if config_of(case).has_gateway]
WITH_A_PICKER = [case for case in RENDERED if "inference-gateway" in config_of(case).chosen_features]


@pytest.mark.parametrize("case", WITH_A_GATEWAY)
def test_the_load_balancer_reaches_pods_through_their_policies(case: str):
    """Its proxies' subnet, and where Google's health checks come from. (Envoy on loopback would hide it.)"""
    ranges = {"10.129.0.0/23", "35.191.0.0/16", "130.211.0.0/22"}
    wanted = [("vllm-g0123456789", "gemma-pipelines/generation", ["http"])]
    if case in WITH_A_PICKER:
        wanted.append(("epp-g0123456789", "gemma-pipelines/picker", ["grpc", "grpc-health"]))
    for name, label, ports in wanted:
        policy = named(case, "NetworkPolicy", name)["spec"]
        assert policy["podSelector"]["matchLabels"][label] == "g0123456789"
        (rule,) = policy["ingress"]
        assert {peer["ipBlock"]["cidr"] for peer in rule["from"]} == ranges
        assert [port["port"] for port in rule["ports"]] == ports
        pods = named(case, "Deployment", name)["spec"]["template"]
        assert policy["podSelector"]["matchLabels"].items() <= pods["metadata"]["labels"].items()
        of_pods = {port["name"] for container in pods["spec"]["containers"] for port in container["ports"]}
        assert set(ports) <= of_pods


@pytest.mark.parametrize("case", WITH_A_GATEWAY)
def test_what_is_public_lets_v1_alone_through_and_is_no_load_balancer_on_the_port(case: str):
    config = config_of(case)
    route, gateway = (named(case, kind, config.name) for kind in ("HTTPRoute", "Gateway"))
    (rule,) = route["spec"]["rules"]
    (match,) = rule["matches"]
    is_public = config.serving.exposure == "public"
    assert match["path"] == {"type": "PathPrefix", "value": "/v1" if is_public else "/"}
    (listener,) = gateway["spec"]["listeners"]
    assert listener["protocol"] == ("HTTPS" if is_public else "HTTP")
    assert listener["allowedRoutes"]["namespaces"]["from"] == "Same"
    assert {i["spec"]["type"] for i in documents(case) if i["kind"] == "Service"} == {"ClusterIP"}
    assert config.name not in {i["metadata"]["name"] for i in documents(case) if i["kind"] == "Service"}
    # The rules of HealthCheckPolicy's definition, which no schema says: a port is a fixed one.
    check = named(case, "HealthCheckPolicy", "vllm-g0123456789")["spec"]["default"]["config"]["httpHealthCheck"]
    assert (check["portSpecification"], check["port"], check["requestPath"]) == ("USE_FIXED_PORT", 8000, "/health")


@pytest.mark.parametrize("case", WITH_A_PICKER)
def test_a_picker_picks_servers_and_has_no_rights_on_its_node(case: str):
    pool, picker = (
        named(case, k, n) for k, n in (("InferencePool", "vllm-g0123456789"), ("Deployment", "epp-g0123456789"))
    )
    picked, pod = pool["spec"]["selector"]["matchLabels"].items(), picker["spec"]["template"]
    assert picked <= server_of(case)["spec"]["template"]["metadata"]["labels"].items()
    assert not picked <= pod["metadata"]["labels"].items(), "it does not pick itself"
    assert "replicas" not in picker["spec"]
    assert pod["spec"]["securityContext"]["runAsNonRoot"]
    assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    grace = server_of(case)["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert pod["spec"]["terminationGracePeriodSeconds"] >= grace
    (container,) = pod["spec"]["containers"]
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    role = named(case, "Role", pod["spec"]["serviceAccountName"])
    assert {verb for rule in role["rules"] for verb in rule["verbs"]} == {"get", "list", "watch"}
    (backend,) = named(case, "HTTPRoute", config_of(case).name)["spec"]["rules"][0]["backendRefs"]
    assert backend["group"] == pool["apiVersion"].partition("/")[0]
    for objective in (i for i in documents(case) if i["kind"] == "InferenceObjective"):
        assert objective["spec"]["poolRef"]["group"] == backend["group"]
        assert objective["spec"]["poolRef"]["name"] == pool["metadata"]["name"]


def strict(schema: Any) -> Any:
    """The schema, refusing fields that it does not know as the API server does (metadata is its own affair)."""
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items() if key != "properties"}
    if "properties" in schema:
        made["properties"] = {
            key: {} if key == "metadata" and not value.get("properties") and "items" not in value else strict(value)
            for key, value in schema["properties"].items()
        }
        made.setdefault("additionalProperties", False)
    return made


@pytest.mark.parametrize("case", [case for case in RENDERED if case not in PRIVILEGED])
def test_every_pod_passes_the_restricted_standard(case: str):
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted, and beyond it."""
    deployment = server_of(case)
    pod = deployment["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["privileged"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
    for container in pod["containers"]:
        written = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
        assert written == {"/cache", "/tmp", "/dev/shm"}
    kinds = {next(iter(volume.keys() - {"name"})) for volume in pod["volumes"]}
    config = config_of(case)
    assert kinds == {"emptyDir"} | (set() if "streamed" in config.chosen_features else {"persistentVolumeClaim"}) | (
        {"configMap"} if config.has_live_adapters else set()
    )


@pytest.mark.parametrize("case", PRIVILEGED)
def test_a_privileged_pod_has_just_the_exceptions_that_are_written_down(case: str):
    """docs/security.md: devices that no container asks for, and where the driver lies."""
    (deployment,) = (item for item in documents(case) if item["kind"] == "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    paths = {volume["hostPath"]["path"] for volume in pod["volumes"] if "hostPath" in volume}
    assert paths == {"/dev", "/home/kubernetes/bin/nvidia"}
    for container in pod["containers"]:
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert not container["resources"]["limits"].keys() & {"nvidia.com/gpu", "google.com/tpu"}
        written = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
        assert written == {"/cache", "/tmp", "/dev/shm"}
    assert [c["securityContext"].get("runAsUser") for c in pod["containers"]] == [None, 0]
    (namespace,) = (item for item in documents(case) if item["kind"] == "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "privileged"
    (term,) = pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["topologyKey"] == "kubernetes.io/hostname"
    assert term["labelSelector"]["matchLabels"] == {"gemma-pipelines/deployment": "gemma"}


@each_case
def test_a_pod_that_goes_has_time_to_finish_its_slowest_request(case: str):
    deployment = server_of(case)
    pod = deployment["spec"]["template"]["spec"]
    for container in pod["containers"]:
        args = container["args"]
        delay = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert pod["terminationGracePeriodSeconds"] > delay + int(args[args.index("--shutdown-timeout") + 1])


@each_case
def test_nothing_names_the_generation_inside_the_pod(case: str):
    """The path of the model is part of the compile cache's key, so it is the same in every generation, where vLLM lets
    it be (serving/features/streamed.py)."""
    streamed = "streamed" in config_of(case).chosen_features
    for container in server_of(case)["spec"]["template"]["spec"]["containers"]:
        inside = {key: container[key] for key in ("command", "args", "env", "volumeMounts")}
        assert "g0123456789" not in yaml.safe_dump(inside)
        assert container["args"][0] == (release_of(config_of(case)).weights_uri if streamed else "/model")


@each_case
def test_nothing_looks_like_a_secret_or_a_placeholder(case: str):
    text = (GOLDEN / f"{case}.yaml").read_text()
    assert not re.search(r"hf_[A-Za-z0-9]{8,}|BEGIN [A-Z ]*PRIVATE KEY|Bearer |--api-key", text)
    assert "${" not in text
    assert ":latest" not in text
