"""What a cluster says on the way to a ready server, in its own texts, and what is made of it. No clock runs here."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest

from components.deploy_server.diagnosis import Diagnosis, Patience, Problem
from serving import features
from serving.errors import AccessError, InconclusiveError, ReleaseError, RequestError
from serving.settings import Settings, validated
from tests.unit.deployment import SETTINGS

PATIENCE = Patience(capacity=1800, ready=1800)
NAME = "vllm-g0123456789"
IMAGE = "vllm/vllm-openai:v0.33.0"


class Cluster:
    """Tells a Diagnosis what happens, at times of our choosing."""

    def __init__(self, patience: Patience = PATIENCE, settings: Settings = SETTINGS):
        self.now = 0.0
        self.diagnosis = Diagnosis(NAME, "gemma", patience, self.now, functools.partial(features.explain, settings))
        self.pods: dict[str, dict[str, Any]] = {}
        self.events = 0

    def after(self, seconds: float) -> Cluster:
        self.now += seconds
        return self

    def show(self, item: dict[str, Any], change: str = "MODIFIED") -> None:
        self.diagnosis.observe(change, copy.deepcopy(item), self.now)

    def pod(self, uid: str = "u1", **status: Any) -> dict[str, Any]:
        """Changes a pod's status, and says so."""
        pod = self.pods.setdefault(
            uid,
            {
                "kind": "Pod",
                "metadata": {"name": f"{NAME}-{uid}", "uid": uid},
                "spec": {"serviceAccountName": "gemma-server"},
                "status": {"phase": "Pending", "conditions": []},
            },
        )
        if "node" in status:
            pod["spec"]["nodeName"] = status.pop("node")
        pod["status"].update(status)
        self.show(pod)
        return pod

    def unschedulable(self, reason: str = "Unschedulable", message: str = "0/3 nodes are available") -> None:
        self.pod(conditions=[{"type": "PodScheduled", "status": "False", "reason": reason, "message": message}])

    def container(self, name: str = "vllm", *, uid: str = "u1", **status: Any) -> None:
        self.pod(uid, node="n1", containerStatuses=[{"name": name, "image": IMAGE, "restartCount": 0, **status}])

    def event(self, reason: str, message: str, *, uid: str = "u1", kind: str = "Pod", at: str = "") -> None:
        self.events += 1
        self.show(
            {
                "kind": "Event",
                "metadata": {"name": f"e{self.events}", "uid": f"e{self.events}"},
                "involvedObject": {"kind": kind, "uid": uid},
                "reason": reason,
                "message": message,
                "lastTimestamp": at or f"2026-11-24T00:{int(self.now) // 60 % 60:02}:{int(self.now) % 60:02}Z",
            },
            "ADDED",
        )

    @property
    def problem(self) -> Problem | None:
        return self.diagnosis.problem(self.now)

    @property
    def progress(self) -> str:
        return self.diagnosis.progress(self.now)


@pytest.fixture(autouse=True)
def _bucket_is_near(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.clients.storage.region_of", lambda bucket: "us-central1")


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def found(cluster: Cluster) -> Problem:
    problem = cluster.problem
    assert problem is not None, f"nothing found while {cluster.progress}"
    return problem


# -- nodes --------------------------------------------------------------------------------------------------


TRIGGERED = "pod triggered scale-up: [{https://www.googleapis.com/compute/v1/…/nap-g2-standard-8-grp 0->1 (max: 1000)}]"
NOT_TRIGGERED = "pod didn't trigger scale-up: 1 max node group size reached, 2 node(s) didn't match Pod's node affinity"
FAILED = (
    "Node scale up in zones us-central1-a associated with this pod failed: GCE out of resources. Pod is at risk of not "
    "being scheduled."
)


def test_a_node_that_is_coming_is_waited_for(cluster: Cluster):
    cluster.unschedulable()
    cluster.event("TriggeredScaleUp", TRIGGERED)
    cluster.after(1700)
    assert cluster.problem is None
    assert cluster.progress == "waiting for a node (scale-up announced)"


def test_capacity_that_does_not_come_in_time_ends_without_a_verdict_in_the_schedulers_words(cluster: Cluster):
    cluster.unschedulable(message="0/3 nodes are available: 3 Insufficient nvidia.com/gpu.")
    cluster.after(1801)
    problem = found(cluster)
    assert problem.error is InconclusiveError
    assert "3 Insufficient nvidia.com/gpu" in problem.message
    assert "serving.capacity_timeout" in problem.message


def test_a_scale_up_that_stays_declined_is_no_capacity_in_the_autoscalers_words(cluster: Cluster):
    cluster.unschedulable()
    cluster.event("NotTriggerScaleUp", NOT_TRIGGERED)
    assert cluster.problem is None
    assert NOT_TRIGGERED in cluster.progress
    cluster.after(PATIENCE.declined + 1)
    problem = found(cluster)
    assert problem.error is InconclusiveError
    assert "max node group size reached" in problem.message


def test_a_scale_up_that_was_declined_and_then_announced_is_coming(cluster: Cluster):
    cluster.unschedulable()
    cluster.event("NotTriggerScaleUp", NOT_TRIGGERED)
    assert cluster.problem is None
    cluster.after(60).event("TriggeredScaleUp", TRIGGERED)
    assert cluster.problem is None
    cluster.after(PATIENCE.declined + 1)
    assert cluster.problem is None


def test_events_may_be_listed_in_any_order(cluster: Cluster):
    cluster.unschedulable()
    cluster.event("TriggeredScaleUp", TRIGGERED, at="2026-11-24T00:00:09Z")
    cluster.event("NotTriggerScaleUp", NOT_TRIGGERED, at="2026-11-24T00:00:03Z")
    assert cluster.problem is None
    cluster.after(PATIENCE.declined + 1)
    assert cluster.problem is None


def test_a_failed_scale_up_is_told_unless_another_zone_is_tried(cluster: Cluster):
    cluster.unschedulable()
    cluster.event("TriggeredScaleUp", TRIGGERED)
    cluster.after(10).event("FailedScaleUp", FAILED)
    assert cluster.problem is None
    cluster.after(10).event("TriggeredScaleUp", TRIGGERED)
    assert cluster.problem is None
    cluster.after(200).event("FailedScaleUp", FAILED)
    assert cluster.problem is None
    cluster.after(PATIENCE.failed + 1)
    assert "GCE out of resources" in found(cluster).message


def test_an_event_that_is_older_than_its_pod_is_not_lost(cluster: Cluster):
    cluster.event("TriggeredScaleUp", TRIGGERED)
    cluster.unschedulable()
    assert cluster.progress == "waiting for a node (scale-up announced)"


def test_a_bucket_that_gke_cannot_look_at_names_the_binding(cluster: Cluster):
    cluster.unschedulable("SchedulingGated", "Scheduling is blocked due to non-empty scheduling gates")
    assert cluster.problem is None
    assert cluster.progress == "held back by a scheduling gate"
    cluster.after(PATIENCE.mount + 1)
    problem = found(cluster)
    assert problem.error is AccessError
    assert "gcs-fuse-csi-controller-sa" in problem.message
    assert "gcs_fuse.profile: manual" in problem.message


def test_no_pod_at_all_is_told_in_the_end(cluster: Cluster):
    assert cluster.progress == "waiting for the pods"
    cluster.after(1801)
    assert "no pod of vllm-g0123456789 appeared" in found(cluster).message


# -- images -------------------------------------------------------------------------------------------------


NOT_FOUND = (
    'Failed to pull image "vllm/vllm-openai:v0.33.0": rpc error: code = NotFound desc = failed to pull and unpack '
    'image "docker.io/vllm/vllm-openai:v0.33.0": failed to resolve reference: not found'
)
UNAUTHORIZED = (
    'Failed to pull image "eu-docker.pkg.dev/p/r/i:1": failed to authorize: failed to fetch oauth token: unexpected '
    "status from GET request: 403 Forbidden"
)
TIMEOUT = (
    'Failed to pull image "vllm/vllm-openai:v0.33.0": failed to do request: Head "https://registry-1.docker.io/v2/": '
    "dial tcp 52.1.2.3:443: i/o timeout"
)


def pulling(cluster: Cluster, words: str) -> None:
    cluster.container(state={"waiting": {"reason": "ErrImagePull", "message": words}})
    cluster.event("Failed", words)
    cluster.after(5)
    cluster.container(state={"waiting": {"reason": "ImagePullBackOff", "message": f'Back-off pulling image "{IMAGE}"'}})


def test_an_image_that_does_not_exist_is_a_wrong_request_at_once(cluster: Cluster):
    pulling(cluster, NOT_FOUND)
    problem = found(cluster)
    assert problem.error is RequestError
    assert f"the image {IMAGE} does not exist" in problem.message


def test_an_image_that_the_nodes_may_not_pull_names_the_role(cluster: Cluster):
    pulling(cluster, UNAUTHORIZED)
    assert cluster.problem is None
    cluster.after(PATIENCE.pull + 1)
    problem = found(cluster)
    assert problem.error is AccessError
    assert "roles/artifactregistry.reader" in problem.message


def test_a_registry_that_stumbles_is_waited_for_and_teaches_nothing(cluster: Cluster):
    pulling(cluster, TIMEOUT)
    assert cluster.problem is None
    cluster.after(PATIENCE.pull + 1)
    problem = found(cluster)
    assert problem.error is InconclusiveError
    assert "i/o timeout" in problem.message


def test_a_pull_that_recovers_is_forgotten(cluster: Cluster):
    pulling(cluster, TIMEOUT)
    assert cluster.problem is None
    cluster.after(60).container(state={"waiting": {"reason": "ContainerCreating"}})
    assert cluster.problem is None
    pulling(cluster.after(60), TIMEOUT)
    assert cluster.problem is None
    cluster.after(PATIENCE.pull - 10)
    assert cluster.problem is None


def test_a_name_that_no_image_can_have_is_a_wrong_request(cluster: Cluster):
    words = 'Failed to apply default image tag "A:B:C": couldn\'t parse image name'
    cluster.container(image="A:B:C", state={"waiting": {"reason": "InvalidImageName", "message": words}})
    assert found(cluster).error is RequestError


def test_a_long_pull_is_shown(cluster: Cluster):
    cluster.container(state={"waiting": {"reason": "ContainerCreating"}})
    cluster.event("Pulling", f'Pulling image "{IMAGE}"')
    cluster.after(120)
    assert cluster.problem is None
    assert cluster.progress == "pulling the image, 120 s"
    cluster.event("Pulled", f'Successfully pulled image "{IMAGE}" in 2m0s')
    assert cluster.progress == "the image is there, the container is about to start"


# -- volumes ------------------------------------------------------------------------------------------------


DENIED = (
    'MountVolume.SetUp failed for volume "gemma-vllm-g0123456789" : rpc error: code = PermissionDenied desc = failed '
    'to get GCS bucket "demo-bucket": googleapi: Error 403: Caller does not have storage.objects.list access to the '
    "Google Cloud Storage bucket. Permission 'storage.objects.list' denied on resource (or it may not exist)., "
    "forbidden"
)
NO_BUCKET = (
    'MountVolume.SetUp failed for volume "gemma-vllm-g0123456789" : rpc error: code = NotFound desc = failed to get '
    'GCS bucket "demo-bucket": storage: bucket doesn\'t exist'
)
NO_DRIVER = (
    'MountVolume.SetUp failed for volume "x" : kubernetes.io/csi: mounter.SetUpAt failed to get CSI client: driver '
    "name gcsfuse.csi.storage.gke.io not found in the list of registered CSI drivers"
)


def mounting(cluster: Cluster, words: str) -> None:
    cluster.container(state={"waiting": {"reason": "ContainerCreating"}})
    cluster.event("FailedMount", words)


def test_a_binding_that_needs_a_moment_is_given_it_and_then_named(cluster: Cluster):
    mounting(cluster, DENIED)
    assert cluster.problem is None
    cluster.after(PATIENCE.mount + 1)
    problem = found(cluster)
    assert problem.error is AccessError
    assert "roles/storage.objectViewer" in problem.message
    assert "/subject/ns/gemma/sa/gemma-server" in problem.message


def test_a_bucket_that_does_not_exist_is_a_wrong_request_at_once(cluster: Cluster):
    mounting(cluster, NO_BUCKET)
    assert found(cluster).error is RequestError


def test_a_cluster_without_the_driver_is_told_how_to_get_it(cluster: Cluster):
    mounting(cluster, NO_DRIVER)
    assert cluster.problem is None
    cluster.after(PATIENCE.mount + 1)
    assert "GcsFuseCsiDriver=ENABLED" in found(cluster).message


def test_a_mount_that_succeeded_after_all_is_forgotten(cluster: Cluster):
    mounting(cluster, DENIED)
    assert cluster.problem is None
    cluster.after(100).container(state={"running": {}})
    cluster.after(PATIENCE.mount + 1)
    assert cluster.problem is None
    assert cluster.progress.startswith("loading the model")


# -- containers ---------------------------------------------------------------------------------------------


def test_loading_is_waited_for_and_counted(cluster: Cluster):
    cluster.container(state={"running": {}})
    assert cluster.progress == "loading the model, 0 s"
    cluster.after(34)
    assert cluster.progress == "loading the model, 34 s"
    assert cluster.problem is None


STREAMED = {"scenario": "gcs-fuse", "features": ["streamed"], "project": "demo-project", "bucket": "demo-bucket"}


@pytest.fixture
def streaming() -> Cluster:
    """The same of a deployment whose pods have an init container that ends before the engine starts."""
    made = Cluster(settings=validated(Settings, STREAMED))
    made.pod()["spec"]["initContainers"] = [{"name": "weights"}, {"name": "sidecar", "restartPolicy": "Always"}]
    return made


def init(cluster: Cluster, name: str = "weights", **status: Any) -> None:
    cluster.pod(node="n1", initContainerStatuses=[{"name": name, "image": IMAGE, "restartCount": 0, **status}])


def test_an_init_container_is_waited_for_by_its_name(streaming: Cluster):
    init(streaming, state={"running": {}})
    assert streaming.progress == "container weights prepares the engine's start"
    init(streaming, state={"terminated": {"exitCode": 0, "reason": "Completed"}})
    streaming.event("Pulled", "Successfully pulled image")
    assert streaming.progress == "the image is there, the container is about to start"
    assert streaming.problem is None
    init(streaming, "sidecar", state={"running": {}})
    assert streaming.progress == "the image is there, the container is about to start"


@pytest.mark.parametrize(
    ("said", "error", "words"),
    [
        ("gs://b/models/o/n/k is not what its manifest says: a is missing", InconclusiveError, "a is missing"),
        ("403: the pod does not have storage.buckets.get access", AccessError, "roles/storage.bucketViewer"),
        ("", InconclusiveError, "exit code 1"),
    ],
)
def test_an_init_container_that_keeps_ending_accuses_no_release(
    streaming: Cluster, said: str, error: type[Exception], words: str
):
    ended = {"terminated": {"exitCode": 1, "reason": "Error", "message": said}}
    init(streaming, state=ended)
    assert streaming.problem is None, "once is an accident"
    init(streaming, state={"waiting": {"reason": "CrashLoopBackOff"}}, lastState=ended, restartCount=1)
    problem = found(streaming)
    assert problem.error is error
    assert words in problem.message
    assert problem.container == "weights", "its log has the words"


def test_an_init_container_whose_image_is_not_there_is_no_matter_of_the_engines(streaming: Cluster):
    waiting = {"waiting": {"reason": "ErrImagePull", "message": "python-components:9: not found"}}
    init(streaming, state=waiting)
    assert "Set images.components, or images.registry" in found(streaming).message


def test_an_engine_that_ends_once_is_started_again_and_twice_is_for_its_log_to_explain(cluster: Cluster):
    ended = {"terminated": {"exitCode": 1, "reason": "Error"}}
    cluster.container(state=ended)
    assert cluster.problem is None
    assert cluster.progress == "the engine has ended; Kubernetes starts it once more"
    cluster.container(state={"running": {}}, lastState=ended, restartCount=1)
    assert cluster.problem is None
    cluster.container(state={"waiting": {"reason": "CrashLoopBackOff"}}, lastState=ended, restartCount=1)
    problem = found(cluster)
    assert problem.error is ReleaseError
    assert problem.pod == f"{NAME}-u1", "its log has the engine's words"
    assert "exit code 1" in problem.message


def test_of_two_engines_the_one_that_ends_is_the_one_whose_log_explains(cluster: Cluster):
    ended = {"terminated": {"exitCode": 1, "reason": "Error"}}
    failing = {"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": ended, "restartCount": 1}
    idle = {"name": "vllm", "image": IMAGE, "restartCount": 0, "state": {"running": {}}}
    cluster.pod(node="n1", containerStatuses=[idle, {"name": "vllm-tpu", "image": IMAGE, **failing}])
    problem = found(cluster)
    assert (problem.error, problem.container) == (ReleaseError, "vllm-tpu")


def limited(cluster: Cluster, container: str, memory: str) -> None:
    """The pod's container has a limit."""
    limit = {"name": container, "resources": {"limits": {"memory": memory}}}
    cluster.pod()["spec"]["containers"] = [{"name": "first"}, limit]


@pytest.mark.parametrize(
    ("container", "setting"), [("vllm", "accelerator.memory"), ("gke-gcsfuse-sidecar", "gke-gcsfuse/memory-limit")]
)
def test_want_of_memory_is_told_at_once_with_the_limit_and_what_sets_it(cluster: Cluster, container: str, setting: str):
    """How large a pod is, the settings say: the release is not held guilty of it."""
    limited(cluster, container, "10Gi")
    killed = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
    cluster.container(container, state={"running": {}}, lastState=killed, restartCount=1)
    problem = found(cluster)
    assert problem.error is InconclusiveError
    assert f"container {container} of {NAME}-u1 was killed for want of memory (OOMKilled)" in problem.message
    assert "its limit is 10Gi" in problem.message
    assert setting in problem.message


def test_an_engine_that_is_killed_from_outside_says_nothing_about_the_release(cluster: Cluster):
    limited(cluster, "vllm", "10Gi")
    killed = {"terminated": {"exitCode": 137, "reason": "Error"}}
    cluster.container(state=killed)
    assert cluster.problem is None
    cluster.container(state={"waiting": {"reason": "CrashLoopBackOff"}}, lastState=killed, restartCount=1)
    problem = found(cluster)
    assert problem.error is InconclusiveError
    assert "exit code 137): SIGKILL, though not at its limit of 10Gi" in problem.message
    assert "`kubectl describe node n1`" in problem.message


def test_a_mount_that_is_lost_is_told_at_once_and_held_against_nobody(cluster: Cluster):
    """The engine has ended once for want of its files; containerd cannot make the container again."""
    path = "/var/lib/kubelet/pods/u1/volumes/kubernetes.io~csi/gemma/mount"
    words = f'spec: failed to generate spec: failed to stat "{path}": stat {path}: transport endpoint is not connected'
    ended = {"terminated": {"exitCode": 1, "reason": "Error"}}
    cluster.container(state={"waiting": {"reason": "CreateContainerError", "message": words}}, lastState=ended)
    problem = found(cluster)
    assert problem.error is InconclusiveError
    assert "has lost its gcsfuse" in problem.message
    assert words in problem.message
    assert problem.pod == f"{NAME}-u1"


def test_a_sidecar_that_keeps_ending_says_nothing_about_the_release(cluster: Cluster):
    killed = {"terminated": {"exitCode": 1, "reason": "Error", "message": "gcsfuse: bad flag"}}
    status = {"name": "gke-gcsfuse-sidecar", "image": "s", "restartCount": 2, "state": killed, "lastState": killed}
    cluster.pod(node="n1", initContainerStatuses=[status])
    problem = found(cluster)
    assert problem.error is InconclusiveError
    assert "gcsfuse: bad flag" in problem.message


def test_a_secret_that_is_not_there_is_a_wrong_request_when_it_lasts(cluster: Cluster):
    words = 'secret "gemma-api-key" not found'
    cluster.container(state={"waiting": {"reason": "CreateContainerConfigError", "message": words}})
    assert cluster.problem is None
    cluster.after(PATIENCE.create + 1)
    problem = found(cluster)
    assert problem.error is RequestError
    assert words in problem.message


@pytest.mark.parametrize(
    "words",
    [
        'exec: "vllm": executable file not found in $PATH: unknown',
        'runc create failed: unable to start container process: error during container init: exec: "vllm": stat '
        "/opt/vllm: no such file or directory: unknown",
        'unable to start container process: exec: "/usr/bin/vllm": permission denied: unknown',
        "exec /usr/bin/vllm: exec format error",
    ],
)
def test_a_command_that_the_image_does_not_have_is_told_at_once(cluster: Cluster, words: str):
    cluster.container(state={"terminated": {"exitCode": 128, "reason": "StartError", "message": words}})
    problem = found(cluster)
    assert problem.error is ReleaseError
    assert words in problem.message


CANCELED = "failed to create containerd task: context canceled: unknown"
MISMATCH = (
    "failed to create containerd task: failed to create shim task: OCI runtime create failed: runc create failed: "
    "unable to start container process: error during container init: error running prestart hook #0: exit status 1, "
    "stdout: , stderr: nvidia-container-cli: initialization error: nvml error: driver/library version mismatch: unknown"
)
START_ERRORS = [CANCELED, MISMATCH, 'failed to create shim task: exec: "runc": executable file not found in $PATH']


def not_started(words: str) -> dict[str, Any]:
    return {"terminated": {"exitCode": 128, "reason": "StartError", "message": words}}


@pytest.mark.parametrize("where", ["initContainerStatuses", "containerStatuses"])
@pytest.mark.parametrize("words", START_ERRORS)
def test_a_start_that_failed_once_is_tried_again_and_forgotten(cluster: Cluster, where: str, words: str):
    name = "vllm" if where == "containerStatuses" else "gke-gcsfuse-sidecar"
    status = {"name": name, "image": "s", "restartCount": 0}
    cluster.pod(node="n1", **{where: [{**status, "state": not_started(words)}]})
    assert cluster.problem is None
    running = {**status, "state": {"running": {}}, "lastState": not_started(words), "restartCount": 1}
    cluster.pod(node="n1", **{where: [running]})
    assert cluster.problem is None
    done = {**status, "state": {"terminated": {"exitCode": 0}}, "lastState": not_started(words), "restartCount": 1}
    cluster.pod(node="n1", **{where: [done]})
    assert cluster.problem is None


@pytest.mark.parametrize("name", ["vllm", "gke-gcsfuse-sidecar"])
@pytest.mark.parametrize("words", START_ERRORS)
@pytest.mark.parametrize("waits", [False, True])
def test_a_start_that_fails_again_is_the_nodes_doing(cluster: Cluster, name: str, words: str, waits: bool):
    again = {"waiting": {"reason": "CrashLoopBackOff"}} if waits else not_started(words)
    cluster.container(name, state=again, lastState=not_started(words), restartCount=1)
    problem = found(cluster)
    assert problem.error is InconclusiveError
    assert f"container {name} of {NAME}-u1 cannot be started: {words}" in problem.message
    assert (words == MISMATCH) is ("the NVIDIA driver" in problem.message)


@pytest.mark.parametrize("reason", ["CreateContainerError", "RunContainerError"])
@pytest.mark.parametrize("words", [*START_ERRORS, "failed to reserve container name", "context deadline exceeded"])
def test_a_container_that_the_runtime_does_not_make_is_the_nodes_doing_when_it_lasts(
    cluster: Cluster, reason: str, words: str
):
    cluster.container(state={"waiting": {"reason": reason, "message": words}})
    assert cluster.problem is None
    cluster.after(PATIENCE.create + 1)
    problem = found(cluster)
    assert problem.error is InconclusiveError
    assert words in problem.message


def test_an_engine_that_runs_for_ever_without_being_ready_is_for_its_log_to_explain(cluster: Cluster):
    cluster.container(state={"running": {}})
    cluster.after(1801)
    problem = found(cluster)
    assert problem.error is ReleaseError
    assert "serving.ready_timeout" in problem.message
    assert problem.pod


def test_a_pod_that_never_got_to_its_engine_teaches_nothing(cluster: Cluster):
    cluster.container(state={"waiting": {"reason": "ContainerCreating"}})
    cluster.after(1801)
    assert found(cluster).error is InconclusiveError


def test_the_time_without_a_node_does_not_count_against_the_engine(cluster: Cluster):
    cluster.unschedulable()
    cluster.event("TriggeredScaleUp", TRIGGERED)
    cluster.after(1700).container(state={"running": {}})
    cluster.after(1700)
    assert cluster.problem is None


# -- taken away, or never let in ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "status",
    [
        {
            "conditions": [
                {
                    "type": "DisruptionTarget",
                    "status": "True",
                    "reason": "TerminationByKubelet",
                    "message": "Pod was terminated in response to imminent node shutdown.",
                }
            ]
        },
        {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: ephemeral-storage."},
    ],
)
def test_a_pod_that_was_taken_away_teaches_nothing(cluster: Cluster, status: dict[str, Any]):
    cluster.container(state={"running": {}})
    assert cluster.problem is None
    cluster.pod(**status)
    problem = found(cluster)
    assert problem.error is InconclusiveError
    assert "was taken away" in problem.message


def test_a_pod_that_was_evicted_before_anybody_looked_is_not_counted(cluster: Cluster):
    cluster.pod("old", phase="Failed", reason="Evicted", message="The node was low on resource: memory.", node="n0")
    cluster.container(uid="new", state={"running": {}})
    assert cluster.problem is None
    assert cluster.progress.startswith("loading the model")


def refused(words: str) -> dict[str, Any]:
    condition = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": words}
    return {"kind": "ReplicaSet", "metadata": {"name": f"{NAME}-1", "uid": "rs"}, "status": {"conditions": [condition]}}


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (
            'pods "vllm-g0123456789-1-" is forbidden: exceeded quota: team, requested: requests.nvidia.com/gpu=1, '
            "used: requests.nvidia.com/gpu=4, limited: requests.nvidia.com/gpu=4",
            InconclusiveError,
        ),
        (
            'pods "x" is forbidden: violates PodSecurity "restricted:latest": hostPath volumes',
            RequestError,
        ),
        ('admission webhook "validation.gatekeeper.sh" denied the request: [labels] needs label owner', RequestError),
        ('Internal error occurred: failed calling webhook "x": connect: connection refused', InconclusiveError),
    ],
)
def test_pods_that_the_cluster_does_not_let_in_are_told_in_its_words(cluster: Cluster, words: str, error: type):
    cluster.show(refused(words))
    assert cluster.problem is None
    assert words in cluster.progress
    cluster.after(PATIENCE.create + 1)
    problem = found(cluster)
    assert problem.error is error
    assert words in problem.message


def test_a_refusal_that_passes_is_forgotten(cluster: Cluster):
    cluster.show(refused("failed calling webhook"))
    cluster.after(20).show({"kind": "ReplicaSet", "metadata": {"name": "x", "uid": "rs"}, "status": {}})
    cluster.after(PATIENCE.create + 1)
    assert cluster.problem is None


# -- ready --------------------------------------------------------------------------------------------------


def deployment(wanted: int = 2, **status: int) -> dict[str, Any]:
    return {
        "kind": "Deployment",
        "metadata": {"name": NAME, "uid": "d", "generation": 3},
        "spec": {"replicas": wanted},
        "status": {"observedGeneration": 3, **status},
    }


@pytest.mark.parametrize(
    ("state", "ready"),
    [
        ({"status": {"observedGeneration": 3, "replicas": 2, "updatedReplicas": 1, "readyReplicas": 2}}, False),
        ({"status": {"observedGeneration": 3, "replicas": 2, "updatedReplicas": 2, "readyReplicas": 2}}, True),
        ({"status": {"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "readyReplicas": 2}}, False),
        ({"status": {"observedGeneration": 3, "replicas": 2, "updatedReplicas": 2, "readyReplicas": 1}}, False),
        ({"status": {"observedGeneration": 3, "replicas": 3, "updatedReplicas": 2, "readyReplicas": 3}}, False),
        ({"status": {"observedGeneration": 3, "replicas": 0}, "spec": {"replicas": 0}}, False),
        ({"status": None}, False),
    ],
)
def test_ready_is_all_replicas_of_the_present_template(cluster: Cluster, state: dict[str, Any], ready: bool):
    cluster.show({**deployment(), **state})
    assert cluster.diagnosis.ready is ready


def test_a_deployment_that_was_deleted_is_not_ready(cluster: Cluster):
    done = deployment(1, replicas=1, updatedReplicas=1, readyReplicas=1)
    cluster.show(done)
    assert cluster.diagnosis.ready
    cluster.show(done, "DELETED")
    assert not cluster.diagnosis.ready


def test_ready_pods_and_pods_that_go_are_not_looked_at(cluster: Cluster):
    crash = {"terminated": {"exitCode": 1, "reason": "Error"}}
    cluster.container(uid="ready", state={"running": {}}, lastState=crash, restartCount=5)
    cluster.pod("ready", conditions=[{"type": "Ready", "status": "True"}])
    cluster.container(uid="going", state={"waiting": {"reason": "CrashLoopBackOff"}}, lastState=crash, restartCount=5)
    cluster.pods["going"]["metadata"]["deletionTimestamp"] = "2026-11-24T00:00:00Z"
    cluster.pod("going")
    assert cluster.problem is None
    assert cluster.progress == "the pods are ready"


def test_several_pods_show_the_one_that_is_furthest_behind(cluster: Cluster):
    cluster.container(uid="a", state={"running": {}})
    cluster.pod("b", conditions=[{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}])
    assert cluster.progress == "waiting for a node (2 pods are coming)"
