"""A deployment behind a Gateway, small: two pools of servers with a picker each, and how it is looked at."""

from __future__ import annotations

import json
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml
from emulated_cloud.cloud import Cloud
from emulated_cloud.kubernetes.resources import (
    BUILT_IN,
    GATEWAYS,
    HTTP_ROUTES,
    INFERENCE_POOLS,
    Resource,
)

Object = dict[str, Any]
NAMESPACE = "llm"
GATEWAY = "gateway"
CLASS = "gke-l7-rilb"
PICKER_IMAGE = "ghcr.io/llm-d/llm-d-router-endpoint-picker:v0.10.0"
INFERENCE = "inference.networking.k8s.io"
OBJECTIVES = Resource("inferenceobjectives", "InferenceObjective", "llm-d.ai", "v1alpha2")
SERVED = [*BUILT_IN, GATEWAYS, HTTP_ROUTES, INFERENCE_POOLS, OBJECTIVES]

SERVER = """
import http.server, json, os, time
WAITING = [0]
METRICS = '''# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{model_name="base"} %d
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{model_name="base"} 0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{model_name="base"} 0
# TYPE vllm:lora_requests_info gauge
vllm:lora_requests_info{max_lora="2",running_lora_adapters="",waiting_lora_adapters=""} 1
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="16",num_gpu_blocks="100"} 1
'''
class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def say(self, status, text):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())
    def do_GET(self):
        self.say(200, METRICS % WAITING[0] if self.path == "/metrics" else json.dumps({"pool": os.environ["POOL"]}))
    def body(self):
        if "Content-Length" in self.headers:
            return self.rfile.read(int(self.headers["Content-Length"]))
        # What a picker has seen comes in pieces.
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found
    def do_POST(self):
        asked = json.loads(self.body())
        WAITING[0] = asked.get("waiting", WAITING[0])
        if asked["model"] not in ("base", "ko"):
            return self.say(404, json.dumps({"error": {"message": "no such model"}}))
        if not asked.get("stream"):
            return self.say(200, json.dumps({"pool": os.environ["POOL"], "pod": os.environ["POD"]}))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for word in [*["data: {}"] * 4, "data: [DONE]"]:
            text = word.replace("{}", os.environ["POOL"]) + "\\n\\n"
            self.wfile.write(b"%x\\r\\n%s\\r\\n" % (len(text), text.encode()))
            self.wfile.flush()
            time.sleep(0.3)
        self.wfile.write(b"0\\r\\n\\r\\n")
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer((os.environ["ADDRESS"], 8000), Answer).serve_forever()
"""

CONFIG = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
  - type: queue-scorer
  - type: kv-cache-utilization-scorer
  - type: prefix-cache-scorer
  - type: lora-affinity-scorer
schedulingProfiles:
  - name: default
    plugins:
      - pluginRef: queue-scorer
        weight: 2
      - pluginRef: kv-cache-utilization-scorer
        weight: 2
      - pluginRef: prefix-cache-scorer
        weight: 3
      - pluginRef: lora-affinity-scorer
        weight: 2
"""


@dataclass
class Cluster:
    """An administrator's way to a cluster."""

    client: httpx.Client

    @classmethod
    def of(cls, cloud: Cloud) -> Cluster:
        config = yaml.safe_load(cloud.kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        tls = ssl.create_default_context(cafile=str(Path(cluster["certificate-authority"]).absolute()))
        headers = {"Authorization": f"Bearer {user['token']}"}
        return cls(httpx.Client(base_url=cluster["server"], verify=tls, headers=headers, trust_env=False, timeout=60))

    def apply(self, *objects: Object) -> None:
        for item in objects:
            answer = self.try_apply(item)
            assert answer.is_success, answer.text

    def try_apply(self, item: Object) -> httpx.Response:
        path = self._path(item["apiVersion"], item["kind"], item["metadata"])
        headers = {"Content-Type": "application/apply-patch+yaml"}
        return self.client.patch(
            path, params={"fieldManager": "test", "force": "true"}, content=json.dumps(item), headers=headers
        )

    def get(self, resource: Resource, name: str) -> Object:
        found: Object = self.client.get(resource.path(NAMESPACE, name)).json()
        return found

    def list(self, resource: Resource) -> list[Object]:
        found: list[Object] = self.client.get(resource.path(NAMESPACE)).json()["items"]
        return found

    def delete(self, resource: Resource, name: str) -> None:
        assert self.client.delete(resource.path(NAMESPACE, name)).is_success

    @staticmethod
    def _path(version: str, kind: str, meta: Object) -> str:
        resource = next(each for each in SERVED if (each.api_version, each.kind) == (version, kind))
        return resource.path(NAMESPACE if resource.namespaced else "", meta["name"])


def _object(version: str, kind: str, name: str, **body: Any) -> Object:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name}, **body}


def shared() -> list[Object]:
    """What all pools share: the Gateway, and what a picker may."""
    watch = ["get", "list", "watch"]
    rules = [
        {"apiGroups": [""], "resources": ["pods"], "verbs": watch},
        {"apiGroups": [INFERENCE], "resources": ["inferencepools"], "verbs": watch},
        {"apiGroups": ["llm-d.ai"], "resources": ["inferenceobjectives", "inferencemodelrewrites"], "verbs": watch},
    ]
    rbac = "rbac.authorization.k8s.io"
    return [
        _object("v1", "Namespace", NAMESPACE),
        _object("v1", "ServiceAccount", "picker"),
        _object(f"{rbac}/v1", "Role", "picker", rules=rules),
        _object(
            f"{rbac}/v1",
            "RoleBinding",
            "picker",
            roleRef={"apiGroup": rbac, "kind": "Role", "name": "picker"},
            subjects=[{"kind": "ServiceAccount", "name": "picker", "namespace": NAMESPACE}],
        ),
        _object(
            "gateway.networking.k8s.io/v1",
            "Gateway",
            GATEWAY,
            spec={"gatewayClassName": CLASS, "listeners": [{"name": "http", "port": 80, "protocol": "HTTP"}]},
        ),
        _object("v1", "ConfigMap", "picker", data={"config.yaml": CONFIG}),
    ]


def pool(name: str, picker: str = "") -> Object:
    """An InferencePool of the servers that are called like it."""
    return _object(
        f"{INFERENCE}/v1",
        "InferencePool",
        name,
        spec={
            "selector": {"matchLabels": {"app": name}},
            "targetPorts": [{"number": 8000}],
            "endpointPickerRef": {
                "name": picker or f"epp-{name}",
                "port": {"number": 9002},
                "failureMode": "FailClose",
            },
        },
    )


def serving(name: str, replicas: int) -> list[Object]:
    """A pool with its servers and its picker."""
    fields = {"ADDRESS": "status.podIP", "POD": "metadata.name"}
    server = {
        "name": "server",
        "image": "example.com/python:1",
        "command": ["python", "-c", SERVER],
        "env": [
            {"name": "POOL", "value": name},
            *({"name": key, "valueFrom": {"fieldRef": {"fieldPath": path}}} for key, path in fields.items()),
        ],
        "ports": [{"containerPort": 8000}],
        "readinessProbe": {"httpGet": {"path": "/health", "port": 8000}, "periodSeconds": 1, "timeoutSeconds": 10},
    }
    picker = {
        "name": "epp",
        "image": PICKER_IMAGE,
        "args": [
            f"--pool-name={name}",
            f"--pool-namespace={NAMESPACE}",
            f"--pool-group={INFERENCE}",
            "--config-file=/etc/picker/config.yaml",
            "--grpc-health-port",
            "9003",
            "--drain-timeout=10s",
            "--tracing=false",
            "--metrics-endpoint-auth=false",
        ],
        "ports": [{"name": "grpc", "containerPort": 9002}, {"name": "grpc-health", "containerPort": 9003}],
        "volumeMounts": [{"name": "config", "mountPath": "/etc/picker"}],
        "readinessProbe": {"grpc": {"port": 9003, "service": "readiness"}, "periodSeconds": 1, "timeoutSeconds": 10},
    }
    config = {"name": "config", "configMap": {"name": "picker"}}
    service = {"selector": {"app": f"epp-{name}"}, "ports": [{"name": "grpc-ext-proc", "port": 9002}]}
    return [
        pool(name),
        _deployment(name, replicas, {"containers": [server], "terminationGracePeriodSeconds": 2}),
        _deployment(f"epp-{name}", 1, {"serviceAccountName": "picker", "containers": [picker], "volumes": [config]}),
        _object("v1", "Service", f"epp-{name}", spec=service),
    ]


def _deployment(name: str, replicas: int, spec: Object) -> Object:
    labels = {"app": name}
    return _object(
        "apps/v1",
        "Deployment",
        name,
        spec={
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    )


def route(name: str, weights: dict[str, int], path: str = "/", **changes: Any) -> Object:
    """An HTTPRoute over pools; `changes` are those of every backendRef, but `gateway`, which is the parent's name."""
    parent = changes.pop("gateway", GATEWAY)
    backends = [
        {"group": INFERENCE, "kind": "InferencePool", "name": pool, "weight": weight, **changes}
        for pool, weight in weights.items()
    ]
    return _object(
        "gateway.networking.k8s.io/v1",
        "HTTPRoute",
        name,
        spec={
            "parentRefs": [{"name": parent}],
            "rules": [
                {
                    "matches": [{"path": {"type": "PathPrefix", "value": path}}],
                    "backendRefs": [{k: v for k, v in each.items() if v is not None} for each in backends],
                }
            ],
        },
    )


def objective(name: str, pool: str, priority: int) -> Object:
    spec = {"priority": priority, "poolRef": {"group": INFERENCE, "name": pool}}
    return _object("llm-d.ai/v1alpha2", "InferenceObjective", name, spec=spec)


def conditions(of: Object) -> dict[str, str]:
    """Type → "True", or the reason why not, of a Gateway, or of a route or pool with one parent."""
    status = of.get("status") or {}
    if "parents" in status:
        status = status["parents"][0] if status["parents"] else {}
    return {
        each["type"]: each["status"] if each["status"] == "True" else each["reason"]
        for each in status.get("conditions") or []
    }
