"""A whole small cloud in one folder: every emulator, started together, wired to each other, ended together.

`Cloud(folder, …)` is what a laptop run and the test fixtures use. `environment` points the customary variables of the
unchanged client libraries at it; `kubeconfig` is for kubectl. What must outlive it lies in `folder` (buckets, the
cluster's objects, disks and images of Compute Engine, container images, jobs and schedules of Vertex AI); what must
not lies in `folder/tmp`.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emulated_cloud.process import EmulatorFailed, Process, launch, machine_environment

if TYPE_CHECKING:
    from emulated_cloud.real.namespace import Namespace

ACCELERATORS = {
    "nvidia-l4": 16,
    "nvidia-tesla-a100": 8,
    "nvidia-a100-80gb": 8,
    "nvidia-h100-80gb": 8,
    "nvidia-rtx-pro-6000": 8,
    "tpu-v6e-slice": 16,
    "tpu7x": 8,
}
"""How many of each accelerator, cards or chips, the project's quota allows unless said otherwise."""


PROXY_ONLY_SUBNETWORK: Mapping[str, Any] = {
    "name": "proxies",
    "ipCidrRange": "10.129.0.0/23",
    "purpose": "REGIONAL_MANAGED_PROXY",
    "role": "ACTIVE",
}
"""Where the proxies of regional load balancers are: without one of the region and network no Gateway works."""


def default_images(
    real: Collection[str] = (), engine_environment: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """What runs for which image: vLLM is the emulated engine or the real one, any `python` this interpreter, and the
    custom-metrics adapter and the endpoint picker emulated ones."""
    engine: dict[str, Any] = {
        "argv0": {"vllm": [sys.executable, "-m", "emulated_cloud.engine"]},
        "env": dict(engine_environment or {}),
    }
    if "vllm" in real:
        from emulated_cloud.real import engine as real_engine
        from emulated_cloud.real.parts import PARTS

        python = str(PARTS["vllm"].folder / "bin" / "python")
        engine = {"argv0": {"vllm": [python, "-P", real_engine.__file__]}, "env": real_engine.ENVIRONMENT}
    return [
        *(_gateway_images() if "gateway" in real else []),
        {"match": r"(.*/)?vllm-openai[:@].*", **engine},
        {"match": r"(.*/)?vllm-tpu[:@].*", **engine, "env": {**engine.get("env", {}), "PJRT_DEVICE": "TPU"}},
        {"match": r"(.*/)?python[:@].*", "argv0": {"python": [sys.executable]}},
        {
            "match": r"(.*/)?custom-metrics-stackdriver-adapter[:@].*",
            "argv0": {"adapter": [sys.executable, "-P", "-m", "emulated_cloud.kubernetes.metrics_adapter"]},
            "env": {"EMULATED_HOST": "$(POD_IP)", "EMULATED_SERVICE_ACCOUNT": "$(SERVICE_ACCOUNT)"},
        },
        {
            "match": r"(.*/)?llm-d-router-endpoint-picker[:@].*",
            "entrypoint": [sys.executable, "-P", "-m", "emulated_cloud.gateway.picker"],
            "argv0": {"epp": [sys.executable, "-P", "-m", "emulated_cloud.gateway.picker"]},
            "env": {"EMULATED_HOST": "$(POD_IP)", "EMULATED_SERVICE_ACCOUNT": "$(SERVICE_ACCOUNT)"},
        },
    ]


def _gateway_images() -> list[dict[str, Any]]:
    """The real endpoint picker, and the Envoy of Istio's Gateways."""
    from emulated_cloud.gateway import envoy
    from emulated_cloud.real.parts import PARTS

    picker = [sys.executable, "-P", "-m", "emulated_cloud.real.endpoint_picker", str(PARTS["gateway"].folder / "epp")]
    return [
        {
            "match": r"(.*/)?llm-d-router-endpoint-picker[:@].*",
            "entrypoint": picker,
            "argv0": {"epp": picker},
            "env": {"EMULATED_HOST": "$(POD_IP)", "EMULATED_SERVICE_ACCOUNT": "$(SERVICE_ACCOUNT)"},
        },
        {"match": r"(.*/)?envoyproxy/envoy[:@].*", "argv0": {"envoy": [envoy.binary()]}},
    ]


@dataclass
class Cloud:
    """The emulators of one folder.

    `repositories` are hub repositories (`org/name` → folder); those in `gated` need a grant, which the token in
    `secrets["hf-token"]` has. `secrets` are Secret Manager secrets by id. `images` says which commands stand for the
    caller's own container images, as kubernetes/gke/config.py describes; default_images() has the rest. `expose` lists
    Services that get a loopback port, `{"namespace", "service", "port", "address", "file"}`, and with `"gateway"` in
    the place of `"service"` Gateways. `service_account` is the
    identity of whoever uses `environment`; `endpoints` are variables that it has beside the customary ones, for
    programs of the caller's own: `{"MY_API_ENDPOINT": "google"}`. Startup scripts of machines run unless
    `run_startup_scripts` is false, or this user is not root: then `startup_output` is what they print. `quotas` are
    limits of Compute Engine that differ from google/compute/catalog.py. The registry has every image but those that
    `absent_images` match, and shows those that `private_images` match to the service account alone; repositories that
    `own_images` match have what was built for them alone. `services` are the APIs that are on (all, if None), and
    `denied_permissions` what the caller may not do; `build_command` runs in the source of what Cloud Build builds.
    Vertex AI is in the cluster's region and in `vertex_locations`.

    Pods are scraped at least every `scrape_seconds` (as PodMonitoring says, if that is sooner), and autoscalers look
    every `autoscaler_seconds`. Emulated engines have `engine_environment` (engine/__init__.py: how fast they are).

    `subnetworks` are those of the region beside `default`, in the words of Compute Engine's API. `absent_kinds` are
    definitions that the cluster does not have, PLURAL.GROUP each; not on a real control plane.

    `autopilot`: what kind of cluster it is; `node_pools` are those that somebody made, as google/config.py has them,
    and `pools` those that somebody made by the container API, in its words.

    `real` names the parts that are real (real/). Then the cluster is a machine of its own: a private network
    and private mounts, in which containers have roots and users of their own; what is outside reaches the API server
    and what `expose` lists. `objects` are files of what an administrator applied before: the roles that the pipeline's
    identity has, say, which a real control plane enforces. `show` are folders of this machine that containers see,
    read-only, beside what this Python needs. `say` hears what takes long.
    """

    folder: Path
    project: str = "demo-project"
    location: str = "us-central1"
    cluster: str = "gemma"
    buckets: Sequence[str] = ("demo-bucket",)
    repositories: dict[str, Path] = field(default_factory=dict)
    gated: Sequence[str] = ()
    secrets: dict[str, str] = field(default_factory=dict)
    images: Sequence[dict[str, Any]] = ()
    autopilot: bool = True
    node_pools: Sequence[dict[str, Any]] = ()
    pools: Sequence[dict[str, Any]] = ()
    accelerators: dict[str, int] = field(default_factory=lambda: dict(ACCELERATORS))
    expose: list[dict[str, Any]] = field(default_factory=list)
    scale_up_seconds: float = 0.3
    scrape_seconds: float = 60.0
    autoscaler_seconds: float = 15.0
    engine_environment: Mapping[str, str] = field(default_factory=dict)
    service_account: str = "pipeline@demo-project.iam.gserviceaccount.com"
    endpoints: Mapping[str, str] = field(default_factory=dict)
    run_startup_scripts: bool = True
    startup_output: Sequence[str] = ()
    quotas: Mapping[str, float] = field(default_factory=dict)
    private_images: Sequence[str] = ()
    absent_images: Sequence[str] = ()
    vertex_locations: Sequence[str] = ()
    own_images: Sequence[str] = ()
    services: Sequence[str] | None = None
    denied_permissions: Sequence[str] = ()
    build_command: Sequence[str] = ()
    real: Collection[str] = ()
    objects: Sequence[Path] = ()
    absent_kinds: Sequence[str] = ()
    subnetworks: Sequence[Mapping[str, Any]] = (PROXY_ONLY_SUBNETWORK,)
    show: Sequence[Path] = ()
    say: Callable[[str], None] = lambda _: None
    _namespace: Namespace | None = field(default=None, init=False)
    _running: list[Process] = field(default_factory=list, init=False)
    _starting: threading.Lock = field(default_factory=threading.Lock, init=False)
    _stopped: bool = field(default=False, init=False)
    _url: dict[str, str] = field(default_factory=dict, init=False)

    @property
    def kubeconfig(self) -> Path:
        """An administrator's kubeconfig, for kubectl."""
        return self.folder / "kubeconfig"

    def start(self) -> None:
        """Brings everything up. Raises EmulatorFailed, with everything down again, when a part does not come."""
        tokens = self._prepare()
        try:
            if self.real:
                self._start_namespace()
            self._start_together(
                lambda: self._start_storage(tokens),
                self._start_hub,
                self._start_registry,
                lambda: self._start_control_plane(tokens),
            )
            self._start_google(tokens, self._described_region())
            self._start_gke()
            if "gateway" in self.real:
                self._start_gateway(tokens)
        except BaseException:
            self.stop()
            raise

    @contextmanager
    def storage(self) -> Iterator[None]:
        """Cloud Storage alone, and the metadata server that gives its clients a token, up while the block runs."""
        tokens = self._prepare()
        try:
            self._start_together(lambda: self._start_storage(tokens), lambda: self._start_google(tokens, {}))
            yield
        finally:
            self.stop()

    def stop(self) -> None:
        """Takes everything down: the cluster's pods before what they read from. Nothing is left running."""
        with self._starting:
            self._stopped = True
        for process in reversed(self._running):
            process.stop()
        self._running.clear()
        if self._namespace:
            self._namespace.stop()
            self._namespace = None
        shutil.rmtree(self.folder / "tmp", ignore_errors=True)

    @property
    def loss(self) -> str:
        """Which part has ended although nobody told it to, with its last words; empty while all run."""
        ends = [process.end for process in self._running]
        if self._namespace:
            ends.append(self._namespace.end)
        return next(filter(None, ends), "")

    def __enter__(self) -> Cloud:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def environment(self) -> dict[str, str]:
        """All that a program needs that reaches for this cloud and for no other: variables that point Google's and the
        hub's clients here, and what of this process's own a program needs to run on this machine. Nothing else."""
        return self._environment(self._url["google"])

    def _environment(self, google: str) -> dict[str, str]:
        """`environment`, where Google's APIs other than storage have this address."""
        tmp = self.folder.absolute() / "tmp"
        urls = {**self._url, "google": google}
        return {
            **machine_environment(),
            "HF_ENDPOINT": self._url.get("hub", ""),
            "HF_HOME": str(tmp / "huggingface"),
            "STORAGE_EMULATOR_HOST": urls["storage"],
            **{name: urls[emulator] for name, emulator in self.endpoints.items()},
            # google.auth asks the one whether it runs in the cloud, and the other for a token.
            "GCE_METADATA_IP": google.removeprefix("http://"),
            "GCE_METADATA_HOST": google.removeprefix("http://"),
            # GKE's DNS endpoint shows a certificate that everybody trusts.
            **({"SSL_CERT_FILE": str(self._certificate.absolute())} if "apiserver" in self._url else {}),
            # Credentials of the person at this machine must not reach an emulator.
            "CLOUDSDK_CONFIG": str(tmp / "gcloud"),
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
            "TMPDIR": str(tmp),
        }

    def url(self, emulator: str) -> str:
        """Address of `hub`, `registry`, `storage`, `google` or `apiserver`."""
        return self._url[emulator]

    def bucket_folder(self, name: str) -> Path:
        """The folder in which a bucket's objects lie under their names, whether anything serves them or not."""
        return self._buckets / name / "objects"

    @property
    def compute_folder(self) -> Path:
        """The folder in which disks and images of Compute Engine lie (google/compute/store.py)."""
        return self.folder.absolute() / "compute"

    @property
    def aiplatform_folder(self) -> Path:
        """The folder in which jobs and schedules of Vertex AI lie (google/aiplatform/store.py)."""
        return self.folder.absolute() / "aiplatform"

    @property
    def registry_folder(self) -> Path:
        """The folder in which container images lie (registry/images.py)."""
        return self.folder.absolute() / "registry"

    @property
    def logs_file(self) -> Path:
        """The file of all entries of Cloud Logging, a JSON line each; whoever writes an entry appends one."""
        return self.folder.absolute() / "tmp" / "logging.jsonl"

    @property
    def metrics_file(self) -> Path:
        """The file of the last points of all metrics, for Cloud Monitoring."""
        return self.folder.absolute() / "tmp" / "metrics.json"

    def requests(self, emulator: str) -> list[dict[str, Any]]:
        """What an emulator was asked so far, since this Cloud began (emulated_cloud/http.py: request log)."""
        path = self.folder / "tmp" / f"{emulator}.requests"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []

    # -- the parts ------------------------------------------------------------------------------------------

    @property
    def _buckets(self) -> Path:
        return self.folder.absolute() / "buckets"

    @property
    def _certificate(self) -> Path:
        return self._cluster_folder / "tls" / "ca.crt"

    @property
    def _cluster_folder(self) -> Path:
        return self.folder / ("control-plane" if "control-plane" in self.real else "cluster")

    @property
    def _installed(self) -> list[Path]:
        """Files of what is in the cluster from the start."""
        if "gateway" not in self.real:
            return list(self.objects)
        from emulated_cloud.real.gateway import OBJECTS

        return [OBJECTS, *self.objects]

    def _prepare(self) -> dict[str, str]:
        """Folders and tokens of a beginning: the tokens, by who has them."""
        self._stopped = False
        tmp = self.folder / "tmp"
        shutil.rmtree(tmp, ignore_errors=True)
        for folder in (tmp, self.folder / "logs"):
            folder.mkdir(parents=True, exist_ok=True)
        tokens = {name: secrets.token_urlsafe(24) for name in ("pipeline", "controllers", "gke", "gateway", "admin")}
        self._write_secrets(tmp, tokens)
        return tokens

    def _start_together(self, *parts: Callable[[], None]) -> None:
        with ThreadPoolExecutor() as pool:
            try:
                for started in [pool.submit(part) for part in parts]:
                    started.result()
            except BaseException:
                # Before the pool is left, which waits for those that are still coming: Ctrl-C would, too.
                self.stop()
                raise

    def _start_namespace(self) -> None:
        from emulated_cloud.real.namespace import Namespace
        from emulated_cloud.real.parts import require

        require(self.real, self.show)
        self._namespace = Namespace.start(self.folder / "logs" / "namespace.log")

    def _start_in_cluster(self, name: str, module: str, *args: str) -> None:
        self._start(name, module, *args, within=self._namespace.prefix if self._namespace else [])

    def _start(
        self, name: str, module: str, *args: str, env: dict[str, str] | None = None, within: Sequence[str] = ()
    ) -> None:
        log = self.folder / "logs" / f"{name}.log"
        with self._starting:
            if self._stopped:
                return
            env = {"TMPDIR": str(self.folder / "tmp"), **(env or {})}
            process = launch(module, *args, log=log, env=env, within=within)
            self._running.append(process)
        process.wait_for_url(self.say)
        self._url[name] = process.url

    def _request_log(self, name: str) -> tuple[str, str]:
        return "--request-log", str(self.folder / "tmp" / f"{name}.requests")

    def _write_secrets(self, tmp: Path, tokens: dict[str, str]) -> None:
        """Token files, readable by their owner alone, for as long as this Cloud lives."""
        _private(tmp / "storage-tokens.json", json.dumps({tokens["pipeline"]: self.service_account}))
        _private(tmp / "registry-token", tokens["pipeline"])
        token = self.secrets.get("hf-token")
        granted = {token: {"user": "reader", "granted": list(self.gated)}} if token else {}
        _private(tmp / "hub-tokens.json", json.dumps(granted))
        users = {
            "pipeline": (self.service_account, ""),
            "controllers": ("system:kube-controller-manager", "system:masters"),
            # A real API server asks what it may: emulated_cloud/real/config/gke.yaml.
            "gke": ("system:gke", "" if "control-plane" in self.real else "system:masters"),
            # emulated_cloud/real/config/gateway.yaml
            "gateway": ("system:gateway", ""),
            "admin": ("admin", "system:masters"),
        }
        lines = [f'{tokens[key]},{name},{key},"{groups}"' for key, (name, groups) in users.items()]
        _private(tmp / "cluster-tokens.csv", "\n".join(lines) + "\n")

    def _start_storage(self, tokens: dict[str, str]) -> None:
        self._start(
            "storage",
            "emulated_cloud.storage",
            *("--root", str(self._buckets)),
            *("--tokens", str(self.folder / "tmp" / "storage-tokens.json")),
            *(argument for bucket in self.buckets for argument in ("--bucket", bucket)),
            *self._request_log("storage"),
        )

    def _start_hub(self) -> None:
        self._start(
            "hub",
            "emulated_cloud.hub",
            *("--root", str(self.folder / "tmp" / "hub")),
            *("--tokens", str(self.folder / "tmp" / "hub-tokens.json")),
            *(argument for name, path in self.repositories.items() for argument in ("--repo", f"{name}={path}")),
            *(argument for name in self.gated for argument in ("--gated", name)),
            *self._request_log("hub"),
        )

    def _start_registry(self) -> None:
        self._start(
            "registry",
            "emulated_cloud.registry",
            *("--root", str(self.registry_folder)),
            *("--token", str(self.folder / "tmp" / "registry-token")),
            *(argument for pattern in self.private_images for argument in ("--private", pattern)),
            *(argument for pattern in self.absent_images for argument in ("--absent", pattern)),
            *(argument for pattern in self.own_images for argument in ("--own", pattern)),
            *self._request_log("registry"),
        )

    def _start_control_plane(self, tokens: dict[str, str]) -> None:
        real = "control-plane" in self.real
        self._start_in_cluster(
            "apiserver",
            "emulated_cloud.real.control_plane" if real else "emulated_cloud.kubernetes.apiserver",
            # Their data are not each other's; tls/ is at the same place in both.
            *("--data", str(self._cluster_folder)),
            *("--tokens", str(self.folder / "tmp" / "cluster-tokens.csv")),
            *("--port", str(self._namespace.publish() if self._namespace else 0)),
            *(argument for path in self._installed for argument in ("--objects", str(path))),
            *(argument for kind in self.absent_kinds for argument in ("--absent", kind)),
            *self._request_log("apiserver"),
        )
        for user in ("controllers", "gke"):
            self._write_kubeconfig(self.folder / "tmp" / f"{user}.kubeconfig", user, tokens[user])
        self._write_kubeconfig(self.kubeconfig, "admin", tokens["admin"])
        if not real:
            kubeconfig = str(self.folder / "tmp" / "controllers.kubeconfig")
            self._start_in_cluster(
                "controllers",
                "emulated_cloud.kubernetes.controllers",
                *("--kubeconfig", kubeconfig),
                *("--autoscaler-seconds", str(self.autoscaler_seconds)),
            )

    def _write_kubeconfig(self, path: Path, user: str, token: str) -> None:
        # JSON is YAML.
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": self.cluster,
            "clusters": [
                {
                    "name": self.cluster,
                    "cluster": {"server": self._url["apiserver"], "certificate-authority": str(self._certificate)},
                }
            ],
            "users": [{"name": user, "user": {"token": token}}],
            "contexts": [{"name": self.cluster, "context": {"cluster": self.cluster, "user": user}}],
        }
        _private(path, json.dumps(content, indent=2))

    def _described_cluster(self) -> dict[str, Any]:
        """The cluster as the container API describes it."""
        return {
            "name": self.cluster,
            "location": self.location,
            "endpoint": self._url["apiserver"].removeprefix("https://"),
            "dns_endpoint": self._url["apiserver"].removeprefix("https://"),
            "ca_certificate": self._certificate.read_text(encoding="ascii"),
            "version": "1.35.3-gke.1389000",
            "autopilot": self.autopilot,
            "node_pools": list(self.node_pools),
            "pools": list(self.pools),
        }

    @property
    def _region(self) -> str:
        return self.location[:-2] if self.location[-2] == "-" else self.location

    def _described_region(self) -> dict[str, Any]:
        """What there is beside secrets and tokens: the cluster, Compute Engine, Vertex AI, what is logged."""
        return {
            "clusters": [self._described_cluster()],
            "compute": {
                "folder": str(self.compute_folder),
                "zones": [f"{self._region}-{zone}" for zone in "abc"],
                "quotas": dict(self.quotas),
                "run_scripts": self.run_startup_scripts,
                "subnetworks": list(self.subnetworks),
                "script_output": list(self.startup_output),
            },
            "aiplatform": {
                "folder": str(self.aiplatform_folder),
                "locations": sorted({self._region, *self.vertex_locations}),
                # What runs in the cloud has the environment of whoever uses it. The emulator knows its own address.
                "environment": self._environment("http://{self}"),
            },
            "cloudbuild": {
                "storage": self._url["storage"],
                "command": list(self.build_command),
                "environment": machine_environment(),
            },
            "folder": str(self.folder.absolute() / "project"),
            "registry": str(self.registry_folder),
            "services": None if self.services is None else list(self.services),
            "denied_permissions": list(self.denied_permissions),
            "accounts": [self.service_account],
            "logs": str(self.logs_file),
            "metrics": str(self.metrics_file),
        }

    def _start_google(self, tokens: dict[str, str], described: dict[str, Any]) -> None:
        config = {
            "project": {"id": self.project, "number": "123456789012"},
            # As GKE's metadata server names a federated identity. For a service account's own name, google.auth would
            # ask Google itself where it may be used from.
            "service_account": f"{self.project}.svc.id.goog",
            "token": tokens["pipeline"],
            "secrets": {name: {"1": value} for name, value in self.secrets.items()},
            **described,
        }
        path = self.folder / "tmp" / "google.json"
        _private(path, json.dumps(config))
        self._start("google", "emulated_cloud.google", "--config", str(path), *self._request_log("google"))

    def _start_gke(self) -> None:
        config = {
            "zones": [self.location] if self.location[-2] == "-" else [f"{self.location}-{zone}" for zone in "abc"],
            "accelerators": self.accelerators,
            "scale_up_seconds": self.scale_up_seconds,
            "storage": {
                "endpoint": self._url["storage"],
                "root": str(self._buckets),
                "gcsfuse": "gcsfuse" in self.real,
            },
            "disks": str(self.folder.absolute() / "disks"),
            "tls": str(self._cluster_folder.absolute() / "tls"),
            "compute": str(self.compute_folder),
            "logs": str(self.logs_file),
            "metrics": str(self.metrics_file),
            "scrape_seconds": self.scrape_seconds,
            "cluster": self.cluster,
            "location": self.location,
            "registry": self._url["registry"],
            "pools": str(self.folder.absolute() / "project" / "node-pools.json"),
            "node_pools": [
                {"name": pool["name"], "disk_images": pool.get("disk_images", [])} for pool in self.node_pools
            ],
            "project": {"id": self.project, "number": "123456789012"},
            "images": [
                {**image, "env": {**self._in_a_pod, **image.get("env", {})}}
                for image in (*self.images, *default_images(self.real, self.engine_environment))
            ],
            "pods": str(self.folder / "tmp" / "pods"),
            "expose": self.expose,
            "gateway": "gateway" not in self.real,
        }
        if self._namespace:
            config |= self._cluster_network(self._namespace)
        path = self.folder / "tmp" / "gke.json"
        path.write_text(json.dumps(config), encoding="utf-8")
        kubeconfig = str(self.folder / "tmp" / "gke.kubeconfig")
        self._start_in_cluster(
            "gke", "emulated_cloud.kubernetes.gke", "--kubeconfig", kubeconfig, "--config", str(path)
        )

    def _start_gateway(self, tokens: dict[str, str]) -> None:
        kubeconfig = self.folder / "tmp" / "gateway.kubeconfig"
        self._write_kubeconfig(kubeconfig, "gateway", tokens["gateway"])
        logs = str((self.folder / "logs").absolute())
        self._start_in_cluster(
            "gateway", "emulated_cloud.real.gateway", "--kubeconfig", str(kubeconfig), "--logs", logs
        )

    @property
    def _in_a_pod(self) -> dict[str, str]:
        """What stands for names that a pod of GKE resolves: Cloud Storage, and the node's metadata server."""
        of_clients = ("STORAGE_EMULATOR_HOST", "GCE_METADATA_HOST", "GCE_METADATA_IP")
        found = {name: value for name, value in self.environment.items() if name in of_clients}
        # What Google's C++ client calls STORAGE_EMULATOR_HOST.
        found["CLOUD_STORAGE_EMULATOR_ENDPOINT"] = found["STORAGE_EMULATOR_HOST"]
        return {**found, "EMULATED_GOOGLE": self._url["google"]}

    def _cluster_network(self, namespace: Namespace) -> dict[str, Any]:
        """What the cluster's own machine changes for GKE's parts: addresses, mounts, ports that cross."""
        from emulated_cloud.real import namespace as network

        for name in ("storage", "hub", "registry", "google"):
            namespace.reach(int(self._url[name].rpartition(":")[2]))
        exposed = []
        for entry in self.expose:
            port = namespace.publish(int(entry.get("address", ":0").rpartition(":")[2]))
            exposed.append({**entry, "address": f"127.0.0.1:{port}"})
        return {
            "expose": exposed,
            "private_roots": True,
            "show": [str(path) for path in self.show],
            "pod_network": network.POD_NETWORK,
            "node_address": network.NODE_ADDRESS,
            "load_balancer_network": network.LOAD_BALANCER_NETWORK,
        }


def _private(path: Path, text: str) -> None:
    """Writes a file that only its owner may read, from its first byte."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether a condition that nobody announces came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


__all__ = ["ACCELERATORS", "Cloud", "EmulatorFailed", "default_images", "wait_for"]
