"""deploy_server's own order: what is applied, what is left alone, and whose words end up in an error."""

from __future__ import annotations

import copy
import dataclasses
import sys
import types
from typing import Any

import pytest

from components.deploy_server import step
from components.deploy_server.diagnosis import Patience
from serving import names, scenarios
from serving.clients.kubernetes import ApiError
from serving.deployment import replicas
from serving.errors import InconclusiveError, PipelineError, ReleaseError, RequestError
from serving.outcome import Outcome
from serving.rendering import render
from serving.settings import Settings
from tests.unit.cluster import MemoryCluster
from tests.unit.deployment import RELEASE, quick

NAME = names.server(RELEASE.generation)
KEY = ("Deployment", "gemma", NAME)


class Cluster(MemoryCluster):
    """Brings a Deployment up as soon as it is wanted, or has its pod end as a test says."""

    def __init__(self, *objects: dict[str, Any], pod: dict[str, Any] | None = None, monitoring: bool = True):
        self.pod, self.monitoring = pod, monitoring
        super().__init__(*objects)
        self.logs = {False: "", True: ""}
        self.refuses: str = ""
        self.of = names.SERVER_CONTAINER

    def apply(self, body: dict[str, Any], *, force: bool = True) -> dict[str, Any]:
        if body["kind"] == self.refuses:
            raise ApiError(f'{body["kind"]}.apps "{NAME}" is invalid: spec.selector: field is immutable', 422, "", {})
        applied = super().apply(body, force=force)
        if body["kind"] == "Deployment" and self.pod is not None:
            self._store(copy.deepcopy(self.pod))
        return applied

    def _store(self, body: dict[str, Any]) -> dict[str, Any]:
        if body["kind"] == "Deployment" and self.pod is None:
            wanted = body["spec"].get("replicas", 1)
            counts = {"replicas": wanted, "updatedReplicas": wanted, "readyReplicas": wanted}
            body["status"] = {"observedGeneration": 1, **counts}
        return super()._store(body)

    def serves(self, api_version: str) -> bool:
        return self.monitoring

    def log(self, pod: str, namespace: str, *, container: str = "", tail: int = 50, previous: bool = False) -> str:
        assert (pod, container) == ("p1", self.of)
        return self.logs[previous]


def pod(**state: Any) -> dict[str, Any]:
    labels = {names.DEPLOYMENT: "gemma", names.GENERATION: RELEASE.generation}
    container = {"name": "vllm", "image": "i", "restartCount": 0, "state": {}, **state}
    return {
        "kind": "Pod",
        "metadata": {"name": "p1", "namespace": "gemma", "labels": labels},
        "spec": {"nodeName": "n1"},
        "status": {"phase": "Pending", "containerStatuses": [container]},
    }


def deploy(cluster: MemoryCluster, settings: Settings | None = None, patience: Patience | None = None) -> Outcome:
    outcome = Outcome("deploy_server", RELEASE.run_id)
    step.deploy(cluster, settings or quick(), RELEASE, outcome, patience)  # type: ignore[arg-type]
    return outcome


def test_everything_is_applied_once_and_the_second_time_nothing_is():
    cluster = Cluster()
    assert deploy(cluster).status == "succeeded"
    rendered = render.render(quick(), RELEASE)
    assert [call[1:] for call in cluster.calls] == [
        (item["kind"], item["metadata"]["name"]) for item in [*rendered.shared, *rendered.generation]
    ] + [("Deployment", NAME)]
    assert cluster.calls[-1] == ("scale", "Deployment", NAME)
    cluster.calls.clear()
    assert deploy(cluster).status == "skipped"
    assert cluster.calls == []


def test_changed_settings_are_applied_to_the_same_generation():
    cluster = Cluster()
    deploy(cluster)
    cluster.calls.clear()
    assert deploy(cluster, quick(serving={"request_timeout": "3m"})).status == "succeeded"
    assert ("apply", "Deployment", NAME) in cluster.calls


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (3, 5)])
def test_replicas_change_in_place_and_leave_the_pods_as_they_are(before: int, after: int):
    cluster = Cluster()
    deploy(cluster, quick(serving={"replicas": before}))
    template = cluster.objects[KEY]["spec"]["template"]
    assert deploy(cluster, quick(serving={"replicas": after})).status == "succeeded"
    assert cluster.objects[KEY]["spec"]["replicas"] == after
    assert cluster.objects[KEY]["spec"]["template"] == template
    assert deploy(cluster, quick(serving={"replicas": after})).status == "skipped"


def test_an_autoscalers_number_is_left_alone_and_a_generation_at_rest_is_not(monkeypatch: pytest.MonkeyPatch):
    row = dataclasses.replace(scenarios.find("gcs-fuse"), scaling="demo-scaling")
    monkeypatch.setattr(scenarios, "SCENARIOS", (row,))
    monkeypatch.setitem(scenarios.COLUMNS, "scaling", ("demo-scaling",))
    monkeypatch.setitem(sys.modules, "serving.features.demo_scaling", types.ModuleType("demo_scaling"))
    cluster = Cluster()
    deploy(cluster, quick(serving={"replicas": 2}))
    assert cluster.objects[KEY]["spec"]["replicas"] == 2
    cluster.objects[KEY]["spec"]["replicas"] = 5
    cluster._store(cluster.objects[KEY])
    assert deploy(cluster, quick(serving={"replicas": 2})).status == "skipped"
    deploy(cluster, quick(serving={"replicas": 2, "request_timeout": "3m"}))
    assert cluster.objects[KEY]["spec"]["replicas"] == 5
    replicas.scale(cluster, quick(), RELEASE.generation, 0)  # type: ignore[arg-type]
    deploy(cluster, quick(serving={"replicas": 2}))
    assert cluster.objects[KEY]["spec"]["replicas"] == 2


def test_a_kept_generation_that_rests_is_brought_up_again():
    cluster = Cluster()
    deploy(cluster)
    replicas.scale(cluster, quick(), RELEASE.generation, 0)  # type: ignore[arg-type]
    assert deploy(cluster).status == "succeeded"
    assert cluster.objects["Deployment", "gemma", NAME]["spec"]["replicas"] == 1


def test_a_cluster_without_managed_prometheus_gets_no_pod_monitoring(capsys: pytest.CaptureFixture[str]):
    cluster = Cluster(monitoring=False)
    deploy(cluster)
    assert cluster.names("PodMonitoring") == set()
    assert "left out PodMonitoring/gemma" in capsys.readouterr().out


def test_a_volume_is_made_once_and_never_changed():
    cluster = Cluster()
    deploy(cluster)
    cluster.calls.clear()
    deploy(cluster, quick(labels={"team": "another"}))
    touched = {(verb, kind) for verb, kind, _ in cluster.calls if kind.startswith("PersistentVolume")}
    assert touched == {("create", "PersistentVolume"), ("create", "PersistentVolumeClaim")}, "there already: left alone"


def test_a_volume_whose_claim_is_gone_makes_room_and_one_that_goes_is_waited_for():
    cluster = Cluster()
    deploy(cluster)
    (name,) = cluster.names("PersistentVolume")
    cluster.set_status("PersistentVolume", name, "", phase="Released")
    changed = quick(labels={"team": "another"})
    with pytest.raises(InconclusiveError, match=f"PersistentVolume/{name} of an earlier attempt is being deleted"):
        deploy(cluster, changed)
    assert cluster.names("PersistentVolume") == set()
    assert deploy(cluster, changed).status == "succeeded"

    cluster.objects["PersistentVolume", "", name]["metadata"]["deletionTimestamp"] = "2026-11-29T00:00:00Z"
    with pytest.raises(InconclusiveError, match=r"kubectl get persistentvolume .* \(finalizers\)"):
        deploy(cluster, quick(labels={"team": "third"}))


def test_what_the_api_server_refuses_is_told_in_its_words():
    cluster = Cluster()
    cluster.refuses = "Deployment"
    with pytest.raises(RequestError, match=rf"the cluster refuses Deployment/{NAME}: .*field is immutable"):
        deploy(cluster)


def test_the_generation_of_another_deployment_is_left_alone():
    theirs = {
        "kind": "Deployment",
        "metadata": {"name": NAME, "namespace": "gemma", "labels": {names.DEPLOYMENT: "other"}},
        "spec": {},
    }
    cluster = Cluster(theirs)
    with pytest.raises(RequestError, match="the deployment other in namespace gemma serves the same generation"):
        deploy(cluster)
    assert cluster.calls == []


ENDED = {"terminated": {"exitCode": 1, "reason": "Error"}}


@pytest.mark.parametrize("where", [False, True], ids=["log of this container", "log of the one before"])
def test_a_crash_is_told_in_the_engines_words(where: bool):
    cluster = Cluster(pod=pod(state={"waiting": {"reason": "CrashLoopBackOff"}}, lastState=ENDED, restartCount=1))
    cluster.logs[where] = "(EngineCore pid=7) ERROR 11-24 03:42:19 [core.py:936] ValueError: no such layer\n"
    outcome = Outcome("deploy_server", RELEASE.run_id)
    with pytest.raises(ReleaseError) as caught:
        step.deploy(cluster, quick(), RELEASE, outcome)  # type: ignore[arg-type]
    assert "the engine ends with exit code 1: ValueError: no such layer" in str(caught.value)
    assert outcome.details["log"] == cluster.logs[where].splitlines()
    assert "The run's report has the end of its log" in str(caught.value)
    assert "kubectl" not in str(caught.value), "the pod is deleted with its generation"


def ends(log: str, exit_code: int = 1) -> PipelineError:
    """What becomes of a deployment whose engine has ended twice, with this log."""
    last = {"terminated": {"exitCode": exit_code, "reason": "Error"}}
    cluster = Cluster(pod=pod(state={"waiting": {"reason": "CrashLoopBackOff"}}, lastState=last, restartCount=1))
    cluster.logs[True] = log
    with pytest.raises(PipelineError) as caught:
        deploy(cluster)
    return caught.value


FRONT_END = "(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above.\n"
CORE = "(EngineCore pid=7) ERROR 11-24 03:42:19 [core.py:936] "
TOO_OLD = "The NVIDIA driver on your system is too old (found version 12020)."
INNOCENT = [
    # What the node, the driver, the mount and the disk did, and a word of the cure.
    (f"RuntimeError: {TOO_OLD} Please update your GPU driver", "engine.image is to be one for older drivers"),
    (
        f"/x/torch/cuda/__init__.py:174: UserWarning: CUDA initialization: {TOO_OLD}\n"
        "RuntimeError: Failed to infer device type, please set the environment variable `VLLM_LOGGING_LEVEL=DEBUG`",
        "engine.image is to be one for older drivers",
    ),
    (
        "RuntimeError: Unexpected error from cudaGetDeviceCount(). Error 803: system has unsupported display driver / "
        "cuda driver combination",
        "does not go with engine.image",
    ),
    ("RuntimeError: Failed to infer device type", "sees no NVIDIA card on its node"),
    (f"{CORE}RuntimeError: No CUDA GPUs are available\n{FRONT_END}", "sees no NVIDIA card on its node"),
    ("ImportError: libcuda.so.1: cannot open shared object file: No such file or directory", "sees no NVIDIA card"),
    (f"{CORE}RuntimeError: CUDA error: unspecified launch failure\n{FRONT_END}", "a card of p1"),
    (f"{CORE}torch.distributed.DistBackendError: NCCL error in: /x/NCCLUtils.hpp:268, unhandled system error", "link"),
    (
        f"{CORE}ValueError: Free memory on device (1.2/22.0 GiB) on startup is less than desired GPU memory utilization"
        f" (0.9, 19.8 GiB).\n{FRONT_END}",
        "something else holds memory of the card",
    ),
    ("OSError: [Errno 5] Input/output error: '/model/model-00001-of-00002.safetensors'", "a disk or a mount failed"),
    (
        f"{CORE}OSError: [Errno 5] Input/output error: '/model/config.json'\n"
        "The above exception was the direct cause of the following exception:\n"
        f"{CORE}ValueError: cannot read the config\n{FRONT_END}",
        "a disk or a mount failed",
    ),
    ("safetensors_rust.SafetensorError: Error while deserializing: I/O error (os error 5)", "does not say"),
    ("PermissionError: [Errno 13] Permission denied: '/model/config.json'", "access: check"),
    ("OSError: [Errno 116] Stale file handle: '/model/model.safetensors'", "See who writes to gs://"),
    ("OSError: [Errno 107] Transport endpoint is not connected: '/model/config.json'", "delete pod p1"),
    ("OSError: [Errno 28] No space left on device: '/cache/torch_compile'", "larger disks"),
    ("RuntimeError: can't start new thread", "accelerator.memory"),
    # What nobody has a word for.
    ("OSError: [Errno 24] Too many open files: '/model/tokenizer.json'", "does not say that the release is why"),
    ("ConnectionRefusedError: [Errno 111] Connection refused", "does not say that the release is why"),
    ("TimeoutError: Timed out waiting for engine core processes to start", "does not say that the release is why"),
    (FRONT_END, "does not say that the release is why"),
    ("free(): invalid pointer\n", "does not say that the release is why"),
    ("", "does not say that the release is why"),
]


@pytest.mark.parametrize(("log", "words"), INNOCENT)
def test_what_the_node_the_driver_the_mount_or_the_disk_did_is_not_held_against_the_release(log: str, words: str):
    error = ends(log)
    assert type(error) is InconclusiveError
    assert words in str(error)


@pytest.mark.parametrize(
    ("exit_code", "words"),
    [
        (135, "exit code 135): SIGBUS, a bus error: its shared memory was full"),
        (143, "exit code 143): SIGTERM, which a probe sends"),
        (139, "exit code 139): SIGSEGV, which says nothing about the release"),
        (134, "exit code 134): SIGABRT, which says nothing about the release"),
    ],
)
def test_an_engine_that_a_signal_ended_is_not_held_guilty(exit_code: int, words: str):
    error = ends("Loading safetensors checkpoint shards: 50%\r", exit_code)
    assert type(error) is InconclusiveError
    assert words in str(error)


@pytest.mark.parametrize(
    ("log", "words"),
    [
        (f"{CORE}RuntimeError: The size of tensor a (256) must match the size of tensor b (128)\n{FRONT_END}", "(256)"),
        (f"{CORE}AssertionError\n{FRONT_END}", "AssertionError"),
        (f"{CORE}KeyError: 'layers.0.mlp.up_proj.weight'\n{FRONT_END}", "up_proj"),
        (f"{CORE}torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n{FRONT_END}", "2.00 GiB"),
        (f"{CORE}ValueError: No available memory for the cache blocks.\n{FRONT_END}", "cache blocks"),
        ("vllm serve: error: unrecognized arguments: --swap-space 4", "--swap-space"),
        ("OSError: It looks like the config file at '/model/config.json' is not a valid JSON file.", "valid JSON"),
        (
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n  Value error, Model "
            "architectures ['Gemma9ForCausalLM'] are not supported for now.",
            "Gemma9ForCausalLM",
        ),
    ],
)
def test_what_the_release_brought_is(log: str, words: str):
    error = ends(log)
    assert type(error) is ReleaseError
    assert words in str(error)


def test_an_engine_that_is_never_ready_is_held_guilty_only_by_its_log(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("serving.clients.storage.region_of", lambda bucket: "us-central1")
    slow = pod(state={"running": {}})
    cluster = Cluster(pod=slow)
    cluster.logs[False] = "(EngineCore pid=7) INFO 11-24 03:42:19 [x.py:1] Loading weights\n"
    with pytest.raises(InconclusiveError, match=r"not become ready within serving\.ready_timeout .*Loading weights"):
        deploy(cluster, patience=Patience(capacity=0.2, ready=0.2))


def test_a_sidecar_that_keeps_ending_is_told_in_its_own_words():
    cluster = Cluster(pod=pod(name="gke-gcsfuse-sidecar", state=ENDED, restartCount=2))
    cluster.of = "gke-gcsfuse-sidecar"
    cluster.logs[False] = "Error: mount: bucket unreachable\n"
    with pytest.raises(InconclusiveError, match=r"gke-gcsfuse-sidecar of p1 keeps ending: .*bucket unreachable"):
        deploy(cluster)


def test_waiting_ends_by_the_clock_and_says_on_the_way_what_it_waits_for(capsys: pytest.CaptureFixture[str]):
    cluster = Cluster(pod=pod(state={"waiting": {"reason": "ContainerCreating"}}))
    with pytest.raises(InconclusiveError, match="did not start its engine within serving"):
        deploy(cluster, patience=Patience(capacity=0.2, ready=0.2))
    assert "the pod has a node" in capsys.readouterr().out


@pytest.mark.parametrize(("rollout", "seconds"), [("beside", 90), ("replace", 900)])
def test_who_waits_for_nodes_to_go_is_patient_with_scale_ups_that_fail(rollout: str, seconds: float):
    assert step.patience_of(quick(rollout=rollout)).failed == seconds
