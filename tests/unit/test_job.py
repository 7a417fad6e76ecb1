"""Running a Job in the cluster: what is asked for, what its end means, and what is handed back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import kubernetes_validate
import pytest

from serving import names
from serving.deployment.job import Work, manifest, run_job, run_jobs
from serving.errors import InconclusiveError, PipelineError, RequestError, ToldToEnd
from serving.settings import Settings
from tests.unit.cluster import MemoryCluster
from tests.unit.deployment import quick

Object = dict[str, Any]
SETTINGS = quick(labels={"team": "a"}, annotations={"note": "b"})
NAMESPACE = SETTINGS.namespace


class JobCluster(MemoryCluster):
    """A cluster in memory where `lives` plays the Job controller and the kubelet, once a Job is followed."""

    def __init__(self, lives: Callable[[JobCluster, Object], None] = lambda cluster, job: None):
        super().__init__()
        self.logs: dict[str, str] = {}
        self.lives = lives
        self.heard = threading.Event()

    @contextmanager
    def follow(self, *subjects: Any) -> Iterator[Any]:
        with super().follow(*subjects) as changes:
            jobs = self.list("Job", NAMESPACE)
            if any(subject.kind == "Pod" for subject in subjects):
                threading.Thread(target=self.lives, args=(self, jobs[0])).start()
            yield changes

    def log(self, pod: str, namespace: str, *, tail: int) -> str:
        return "\n".join(self.logs.get(pod, "").removesuffix("\n").split("\n")[-tail:])

    @contextmanager
    def log_followed(self, pod: str, namespace: str, take: Callable[[str], None]) -> Iterator[None]:
        for line in filter(None, self.logs.get(pod, "").split("\n")):
            take(line)
        yield

    # -- what controllers write -----------------------------------------------------------------------------

    def pod(self, job: Object, *, log: str = "", conditions: Any = (), reason: str = "", **state: Any) -> None:
        name = job["metadata"]["name"] + "-abcde"
        self.logs[name] = log
        self._store(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": name,
                    "namespace": NAMESPACE,
                    "labels": {"batch.kubernetes.io/job-name": job["metadata"]["name"]},
                    "ownerReferences": [{"kind": "Job", "uid": job["metadata"]["uid"]}],
                },
                "spec": job["spec"]["template"]["spec"],
                "status": {
                    "phase": "Running",
                    "conditions": list(conditions),
                    "containerStatuses": [{"name": "step", "state": state}] if state else [],
                    **({"reason": reason, "message": f"{reason} happened"} if reason else {}),
                },
            }
        )

    def end(self, job: Object, kind: str, reason: str = "", message: str = "") -> None:
        condition = {"type": kind, "status": "True", "reason": reason, "message": message}
        self.set_status("Job", job["metadata"]["name"], NAMESPACE, conditions=[condition])


def run(cluster: JobCluster, said: list[str] | None = None, **changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "step": "validate-server",
        "run_id": "run-1",
        "generation": "g1",
        "args": ["-m", "components.validate_server", "{}"],
        "image": "registry.example/python-components:1",
        "timeout": 60,
    }
    say = said.append if said is not None else lambda line: None
    return run_job(cluster, SETTINGS, say=say, **{**arguments, **changes})  # type: ignore[arg-type]


def succeeds(log: str) -> Callable[[JobCluster, Object], None]:
    def lives(cluster: JobCluster, job: Object) -> None:
        cluster.pod(job)
        cluster.pod(job, log=log, running={})
        cluster.pod(job, log=log, terminated={"exitCode": 0})
        cluster.end(job, "Complete")

    return lives


def fails(ended: str = "BackoffLimitExceeded", **pod: Any) -> Callable[[JobCluster, Object], None]:
    def lives(cluster: JobCluster, job: Object) -> None:
        cluster.pod(job, **pod)
        cluster.end(job, "Failed", ended, "Job has reached the specified backoff limit")

    return lives


def test_the_last_line_is_the_result_and_the_others_are_progress() -> None:
    cluster, said = JobCluster(succeeds('asking\nasking more\n{"passed": true}\n')), list[str]()
    assert run(cluster, said) == {"passed": True}
    assert said == ["asking", "asking more"]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_a_line_ends_where_a_line_feed_is_and_nowhere_else(separator: str) -> None:
    said = list[str]()
    cluster = JobCluster(succeeds(f'asking{separator}again\n{{"text": "a{separator}b"}}\n'))
    assert run(cluster, said) == {"text": f"a{separator}b"}
    assert len(said) == 1


def test_the_job_is_gone_when_its_result_is_read() -> None:
    cluster = JobCluster(succeeds("{}"))
    run(cluster)
    assert cluster.names("Job") == set()


def test_a_retried_step_takes_its_job_over() -> None:
    cluster = JobCluster()
    body = manifest_of("validate-server", "run-1")
    cluster.create(body)
    cluster.lives = succeeds('{"seconds": 1}')
    assert run(cluster) == {"seconds": 1}
    assert [call for call in cluster.calls if call[0] == "create"] == [("create", "Job", "validate-server-run-1")]


def test_a_job_that_failed_makes_room_for_a_new_attempt() -> None:
    cluster = JobCluster()
    cluster.end(cluster.create(manifest_of("validate-server", "run-1")), "Failed", "BackoffLimitExceeded")
    cluster.lives = succeeds('{"attempt": 2}')
    assert run(cluster) == {"attempt": 2}


class LateToTell(JobCluster):
    """Makes the Job, and is told to end before it can say so."""

    def create(self, body: Object) -> Object:
        super().create(body)
        raise ToldToEnd


def test_a_step_that_is_told_to_end_while_its_job_is_made_leaves_none() -> None:
    cluster = LateToTell()
    with pytest.raises(ToldToEnd):
        run(cluster)
    assert [verb for verb, *_ in cluster.calls] == ["create", "delete"]
    assert cluster.names("Job") == set()


def manifest_of(step: str, run_id: str, settings: Settings = SETTINGS) -> Object:
    return manifest(
        settings,
        Work(["-m", f"components.{step}"]),
        step=step,
        run_id=run_id,
        generation="g1",
        image="registry.example/python-components:1",
        timeout=90.5,
        env=[{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
        resources={"cpu": "1", "memory": "1Gi"},
    )


@pytest.mark.parametrize(
    ("lives", "error", "words"),
    [
        (fails(log="one\nBoom: it broke\n", terminated={"exitCode": 1}), InconclusiveError, "Boom: it broke"),
        (fails(log="", terminated={"exitCode": 3, "message": "last words"}), InconclusiveError, "last words"),
        (fails(terminated={"exitCode": 137, "reason": "OOMKilled"}), InconclusiveError, "256Mi of memory"),
        (fails(reason="Evicted"), InconclusiveError, "Evicted: Evicted happened"),
        (fails(running={}), InconclusiveError, "was deleted while it ran"),
        (
            fails(
                conditions=[
                    {
                        "type": "DisruptionTarget",
                        "status": "True",
                        "reason": "DeletionByTaintManager",
                        "message": "Taint manager: deleting due to NoExecute taint",
                    }
                ],
                terminated={"exitCode": 143},
            ),
            InconclusiveError,
            "DeletionByTaintManager",
        ),
        (succeeds("no document"), InconclusiveError, "left no result; its log ends:\nno document"),
        (succeeds("[1]"), InconclusiveError, "left no result"),
        (succeeds(""), InconclusiveError, "logged nothing"),
    ],
)
def test_the_end_of_a_job_without_a_result_is_told(
    lives: Callable[[JobCluster, Object], None], error: type[PipelineError], words: str
) -> None:
    with pytest.raises(error, match="Job gemma/validate-server-run-1") as raised:
        run(JobCluster(lives))
    assert words in str(raised.value)


@pytest.mark.parametrize("reason", ["ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName"])
def test_an_image_that_cannot_be_pulled_ends_the_wait(reason: str) -> None:
    waiting = {"reason": reason, "message": "not found"}
    with pytest.raises(RequestError, match=r"registry\.example/python-components:1 pushed"):
        run(JobCluster(lambda cluster, job: cluster.pod(job, waiting=waiting)), timeout=600)


def test_a_first_failed_pull_is_waited_through() -> None:
    def lives(cluster: JobCluster, job: Object) -> None:
        cluster.pod(job, waiting={"reason": "ErrImagePull", "message": "timeout"})
        succeeds('{"ok": 1}')(cluster, job)

    assert run(JobCluster(lives)) == {"ok": 1}


def test_a_secret_that_is_not_there_ends_the_wait() -> None:
    waiting = {"reason": "CreateContainerConfigError", "message": 'secret "key" not found'}
    with pytest.raises(RequestError, match='secret "key" not found'):
        run(JobCluster(lambda cluster, job: cluster.pod(job, waiting=waiting)), timeout=600)


def test_a_pod_without_a_node_until_the_deadline_is_no_verdict() -> None:
    said: list[str] = []
    unscheduled = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"}
    cluster = JobCluster(fails("DeadlineExceeded", conditions=[unscheduled]))
    with pytest.raises(InconclusiveError, match=r"ran out of time: its pod still waits for a node \(0/3 nodes"):
        run(cluster, said)
    assert said == ["the pod of Job gemma/validate-server-run-1 waits for a node (0/3 nodes are available)"]


def test_a_job_that_ran_out_of_time_shows_what_it_said_though_its_pod_is_gone() -> None:
    def lives(cluster: JobCluster, job: Object) -> None:
        cluster.pod(job, log="load: 3 of 16 requests\n", running={})
        cluster.heard.wait(60)
        cluster.logs.clear()
        cluster.end(job, "Failed", "DeadlineExceeded")

    cluster = JobCluster(lives)
    with pytest.raises(InconclusiveError, match="3 of 16"):
        run_job(
            cluster,  # type: ignore[arg-type]
            SETTINGS,
            step="s",
            run_id="r",
            generation="g1",
            args=[],
            image="i",
            timeout=60,
            say=lambda line: cluster.heard.set(),
        )


def test_a_pod_that_may_not_be_made_is_told() -> None:
    said: list[str] = []

    def lives(cluster: JobCluster, job: Object) -> None:
        cluster._store(
            {
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {"name": "e", "namespace": NAMESPACE},
                "involvedObject": {key: job["metadata"][key] for key in ("name", "uid")},
                "reason": "FailedCreate",
                "message": "exceeded quota: compute",
            }
        )
        cluster.end(job, "Failed", "DeadlineExceeded")

    with pytest.raises(InconclusiveError, match=r"waits for leave to be made \(exceeded quota: compute"):
        run(JobCluster(lives), said)
    assert len(said) == 1


def test_a_job_that_somebody_deletes_is_no_verdict() -> None:
    class Deleting(JobCluster):
        @contextmanager
        def follow(self, *subjects: Any) -> Iterator[Any]:
            deleted = "DELETED", self.get("Job", "validate-server-run-1", NAMESPACE)
            yield SimpleNamespace(until=lambda deadline: iter([deleted]))

    with pytest.raises(InconclusiveError, match="deleted by somebody else"):
        run(Deleting())


def test_a_job_is_safe_to_run_and_passes_the_api_servers_schema() -> None:
    job = manifest_of("validate-server", "run-1")
    kubernetes_validate.validate(job, "1.35", strict=True)
    pod = job["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert (pod["restartPolicy"], pod["automountServiceAccountToken"], pod["enableServiceLinks"]) == (
        "Never",
        False,
        False,
    )
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert job["spec"]["backoffLimit"] == 0
    assert job["spec"]["activeDeadlineSeconds"] == 91
    assert container["command"] == ["python"]


def test_a_jobs_pod_is_no_endpoint_of_the_server() -> None:
    job = manifest_of("validate-server", "run-1")
    assert (
        job["metadata"]["labels"].items()
        >= {
            names.DEPLOYMENT: SETTINGS.name,
            names.GENERATION: "g1",
            names.RUN: "run-1",
            "team": "a",
        }.items()
    )
    labels = job["spec"]["template"]["metadata"]["labels"]
    assert not labels.keys() & {names.DEPLOYMENT, names.GENERATION}
    assert labels[names.RUN] == "run-1"


def test_house_rules_reach_a_jobs_pod() -> None:
    patch = {"kind": "Job", "spec": {"template": {"spec": {"imagePullSecrets": [{"name": "mirror"}]}}}}
    other = {"kind": "Deployment", "spec": {"paused": True}}
    job = manifest_of("validate-server", "run-1", quick(patches=[patch, other]))
    assert job["spec"]["template"]["spec"]["imagePullSecrets"] == [{"name": "mirror"}]
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"
    assert "paused" not in job["spec"]


def test_names_fit_into_a_label() -> None:
    assert names.job("validate-server", "run-1") == "validate-server-run-1"
    long = [names.job("validate_server", f"gemma-gcs-fuse-20261124-{'x' * 60}{number}") for number in range(2)]
    assert all(len(name) <= 63 for name in long)
    assert long[0] != long[1]
    assert names.job("validate_server", "Run_1") != names.job("validate-server", "run-1")


# -- several at once ----------------------------------------------------------------------------------------


class ManyCluster(JobCluster):
    """Each Job lives as its part does: the result that it logs, or why it fails; None waits for a node for ever."""

    def __init__(self, **parts: str | None):
        super().__init__()
        self.parts = parts

    @contextmanager
    def follow(self, *subjects: Any) -> Iterator[Any]:
        with MemoryCluster.follow(self, *subjects) as changes:
            for part, log in self.parts.items():
                job = self.get("Job", names.job("read", "run-1", part), NAMESPACE)
                assert job
                if log is None:
                    unscheduled = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"}
                    self.pod(job, conditions=[unscheduled])
                elif log.startswith("{"):
                    succeeds(log)(self, job)
                else:
                    fails(log=log, terminated={"exitCode": 1})(self, job)
            yield changes


def run_many(cluster: ManyCluster, **changes: Any) -> list[dict[str, Any] | PipelineError]:
    works = [Work([part], part, {"nodeSelector": {"zone": part}}) for part in cluster.parts]
    arguments: dict[str, Any] = {
        "step": "read",
        "run_id": "run-1",
        "generation": "g1",
        "image": "i",
        "timeout": 60,
        "say": lambda line: None,
    }
    return run_jobs(cluster, SETTINGS, works, **{**arguments, **changes})  # type: ignore[arg-type]


def test_several_jobs_run_at_once_and_each_has_an_end_of_its_own() -> None:
    cluster = ManyCluster(a='{"zone": "a"}', b="Boom: the disk failed", c='{"zone": "c"}')
    first, second, third = run_many(cluster)
    assert (first, third) == ({"zone": "a"}, {"zone": "c"})
    assert isinstance(second, InconclusiveError)
    assert "Job gemma/read-b-run-1 crashed with exit code 1" in str(second)
    created = [name for verb, kind, name in cluster.calls if (verb, kind) == ("create", "Job")]
    assert created == ["read-a-run-1", "read-b-run-1", "read-c-run-1"], "before any has ended"
    assert cluster.names("Job") == {"read-b-run-1"}, "kept for who wants to look"


def test_what_several_jobs_say_is_told_apart() -> None:
    said: list[str] = []
    run_many(ManyCluster(a='reading\n{"x": 1}', b='{"x": 2}'), say=said.append)
    assert said == ["a: reading"]


def test_a_pod_without_a_node_is_waited_for_as_long_as_capacity_says_and_then_is_no_job() -> None:
    cluster = ManyCluster(a=None, b='{"x": 2}')
    waiting, done = run_many(cluster, capacity=0.2)
    assert done == {"x": 2}
    assert isinstance(waiting, InconclusiveError)
    assert "got no node: its pod still waits for a node (0/3 nodes" in str(waiting)
    assert cluster.names("Job") == set()


def test_a_step_that_is_told_to_end_leaves_none_of_several_jobs() -> None:
    class Told(ManyCluster):
        @contextmanager
        def follow(self, *subjects: Any) -> Iterator[Any]:
            raise ToldToEnd
            yield

    cluster = Told(a="{}", b="{}")
    with pytest.raises(ToldToEnd):
        run_many(cluster)
    assert cluster.names("Job") == set()


def test_a_pod_without_its_volume_says_why() -> None:
    said: list[str] = []

    def lives(cluster: JobCluster, job: Object) -> None:
        cluster.pod(job, conditions=[{"type": "PodScheduled", "status": "True"}])
        (pod,) = cluster.list("Pod", NAMESPACE)
        cluster._store(
            {
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {"name": "e", "namespace": NAMESPACE},
                "involvedObject": {"kind": "Pod", "uid": pod["metadata"]["uid"]},
                "reason": "FailedAttachVolume",
                "message": "not a compatible disk type",
            }
        )
        cluster.heard.wait(60)
        cluster.end(job, "Failed", "DeadlineExceeded")

    def say(line: str) -> None:
        said.append(line)
        cluster.heard.set()

    cluster = JobCluster(lives)
    with pytest.raises(InconclusiveError, match=r"still waits for its volume \(not a compatible disk type\)"):
        run_job(cluster, SETTINGS, args=[], **JOB, say=say)  # type: ignore[arg-type]
    assert said == ["the pod of Job gemma/read-run-1 waits for its volume (not a compatible disk type)"]


JOB: dict[str, Any] = {"step": "read", "run_id": "run-1", "generation": "g1", "image": "i", "timeout": 60}


def test_what_a_jobs_pod_needs_is_merged_into_it_and_keeps_it_safe() -> None:
    pod = {
        "nodeSelector": {"zone": "a"},
        "securityContext": {"fsGroup": 65532},
        "containers": [{"name": "step", "volumeMounts": [{"name": "weights", "mountPath": "/volume"}]}],
        "volumes": [{"name": "weights", "persistentVolumeClaim": {"claimName": "c"}}],
    }
    job = manifest(SETTINGS, Work([], "a", pod), **JOB, env=[], resources={"cpu": "1", "memory": "1Gi"})
    kubernetes_validate.validate(job, "1.35", strict=True)
    spec = job["spec"]["template"]["spec"]
    assert job["metadata"]["name"] == "read-a-run-1"
    assert (spec["securityContext"]["fsGroup"], spec["securityContext"]["runAsNonRoot"]) == (65532, True)
    assert [volume["name"] for volume in spec["volumes"]] == ["tmp", "weights"]
    (container,) = spec["containers"]
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/tmp", "/volume"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
