"""hydrate_volume's own order: what is made and taken away, what is not done twice, and what each failure teaches."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from components.hydrate_volume import populator, step
from components.hydrate_volume.hydration import Hydration
from serving import names
from serving.clients import google
from serving.clients.google import ClusterTraits
from serving.deployment import leftovers
from serving.deployment.record import Record
from serving.errors import InconclusiveError, PipelineError, RequestError, ToldToEnd
from serving.outcome import Outcome
from serving.rendering import render
from serving.settings import Settings, validated
from tests.unit.cluster import MemoryCluster
from tests.unit.deployment import RELEASE

Object = dict[str, Any]
ZONES = ["us-central1-a", "us-central1-b"]
HYDRATED = RELEASE.model_copy(update={"zones": ZONES, "weights_bytes": 8_600_000_000})
CLAIM = names.server(RELEASE.generation)
TEMPORARY = ("VolumeSnapshot", "VolumeSnapshotClass")
RIGHT = {"passed": True, "reasons": [], "files": 9, "bytes": 4_000_000, "seconds": 1.5}
COPIED = {"files": 9, "bytes": 4_000_000, "seconds": 2.5, "kept": 0}
WORKED = (
    ("Warning", "ProvisioningFailed", "Error saving claim: the object has been modified; please apply your changes"),
    *(("Normal", "TransferJobCompleted", f"populateCompleteFn: job for zone {zone} completed") for zone in ZONES),
    ("Normal", "PopulatorFinished", "Populator finished"),
)


class Killed(BaseException):
    """kill -9."""


@pytest.fixture(autouse=True)
def autopilot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(google, "cluster_traits", lambda settings: ClusterTraits("c", True, "1.35", (), tuple(ZONES)))


def settings(**section: Any) -> Settings:
    return validated(
        Settings,
        {
            "scenario": "hyperdisk-ml",
            "project": "demo-project",
            "bucket": "demo-bucket",
            "serving": {"capacity_timeout": "2s"},
            "hyperdisk_ml": {"timeout": "2s", **section},
        },
    )


class Cluster(MemoryCluster):
    """A cluster in memory whose controllers do their work as soon as something is made.

    jobs: the part of a Job (`copy`, or a zone) → its result, or why it fails. events: of a claim that is filled by the
    populator. ready: of snapshots. bound: of claims. snapshot_error: what a snapshot's status says.
    """

    def __init__(self, *objects: Object):
        super().__init__(*objects)
        self.jobs: dict[str, Any] = {"copy": COPIED, **dict.fromkeys(ZONES, RIGHT)}
        self.events: tuple[tuple[str, str, str], ...] = WORKED
        self.ready = self.bound = True
        self.snapshot_error = ""
        self.ran: list[str] = []
        self._logs: dict[str, str] = {}
        self._store({"kind": "ComputeClass", "metadata": {"name": populator.COMPUTE_CLASS}})

    def create(self, body: Object) -> Object:
        made = super().create(body)
        {"Job": self._run, "VolumeSnapshot": self._snapshot, "PersistentVolumeClaim": self._bind}.get(
            body["kind"], lambda made: None
        )(made)
        return made

    def _run(self, job: Object) -> None:
        name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]
        part = next(part for part in self.jobs if f"-{part}-" in name)
        end = self.jobs[part]
        if end is None:
            return  # It waits for a node.
        self.ran.append(part)
        failed = isinstance(end, str)
        pod = f"{name}-abcde"
        self._logs[pod] = end if failed else json.dumps(end)
        state = {"terminated": {"exitCode": 1 if failed else 0}}
        self._store(
            {
                "kind": "Pod",
                "metadata": {
                    "name": pod,
                    "namespace": namespace,
                    "labels": {"batch.kubernetes.io/job-name": name},
                    "ownerReferences": [{"kind": "Job", "uid": job["metadata"]["uid"]}],
                },
                "spec": {**job["spec"]["template"]["spec"], "nodeName": "n1"},
                "status": {"phase": "Succeeded", "containerStatuses": [{"name": "step", "state": state}]},
            }
        )
        kind = "Failed" if failed else "Complete"
        self.set_status(
            "Job", name, namespace, conditions=[{"type": kind, "status": "True", "reason": "", "message": ""}]
        )

    def _snapshot(self, snapshot: Object) -> None:
        status = {"readyToUse": self.ready} | (
            {"error": {"message": self.snapshot_error}} if self.snapshot_error else {}
        )
        self.set_status("VolumeSnapshot", snapshot["metadata"]["name"], snapshot["metadata"]["namespace"], **status)

    def _bind(self, claim: Object) -> None:
        name, namespace, uid = (claim["metadata"][key] for key in ("name", "namespace", "uid"))
        if (claim["spec"].get("dataSourceRef") or {}).get("kind") == "GCPDataSource":
            self.say(claim, *self.events)
        if self.bound:
            there = self.objects["PersistentVolumeClaim", namespace, name]
            self._store({**there, "spec": {**there["spec"], "volumeName": f"pvc-{uid}"}, "status": {"phase": "Bound"}})

    def say(self, claim: Object, *events: tuple[str, str, str]) -> None:
        for number, (kind, reason, message) in enumerate(events):
            about = {key: claim["metadata"][key] for key in ("name", "uid")}
            self._store(
                {
                    "kind": "Event",
                    "metadata": {"name": f"e{number}", "namespace": claim["metadata"]["namespace"]},
                    "involvedObject": {"kind": "PersistentVolumeClaim", **about},
                    "type": kind,
                    "reason": reason,
                    "message": message,
                }
            )

    def log(self, pod: str, namespace: str, *, tail: int = 50) -> str:
        return self._logs.get(pod, "")

    @contextmanager
    def log_followed(self, pod: str, namespace: str, take: Callable[[str], None]) -> Iterator[None]:
        yield

    # -- what a test looks at -------------------------------------------------------------------------------

    @property
    def made(self) -> list[tuple[str, str]]:
        return [(kind, name) for verb, kind, name in self.calls if verb in ("create", "apply")]

    def left(self) -> set[tuple[str, str]]:
        """Everything of the generation."""
        return {
            (kind, name)
            for (kind, _, name), body in self.objects.items()
            if (body["metadata"].get("labels") or {}).get(names.GENERATION) == RELEASE.generation
        }


def hydrate(cluster: Cluster, config: Settings | None = None) -> tuple[list[str], Outcome]:
    outcome = Outcome("hydrate_volume", RELEASE.run_id)
    wrong = step.hydrate(cluster, config or settings(), HYDRATED, outcome)  # type: ignore[arg-type]
    return wrong, outcome


VOLUME = {
    "snapshot": {("PersistentVolumeClaim", CLAIM), ("StorageClass", f"gemma.gemma.{RELEASE.generation}")},
    "populator": {
        ("PersistentVolumeClaim", CLAIM),
        ("StorageClass", f"gemma.gemma.{RELEASE.generation}"),
        ("GCPDataSource", CLAIM),
    },
}
"""What is left of a hydration that went well."""
each_method = pytest.mark.parametrize("method", VOLUME)


def verified(cluster: Cluster) -> Any:
    claim = cluster.get("PersistentVolumeClaim", CLAIM, "gemma")
    assert claim
    return json.loads(claim["metadata"].get("annotations", {}).get(names.VERIFIED, "null"))


# -- how it goes well ---------------------------------------------------------------------------------------


@each_method
def test_a_volume_is_filled_read_back_in_every_zone_and_nothing_else_is_left(method: str):
    cluster = Cluster()
    wrong, outcome = hydrate(cluster, settings(method=method))
    assert (wrong, outcome.status) == ([], "succeeded")
    assert cluster.left() == VOLUME[method]
    assert cluster.ran == [*(["copy"] if method == "snapshot" else []), *ZONES]
    said = verified(cluster)
    assert (said["zones"], said["run"]) == (ZONES, RELEASE.run_id)
    assert outcome.details["read"] == {zone: {"files": 9, "bytes": 4_000_000, "seconds": 1.5} for zone in ZONES}


def test_the_snapshot_is_taken_when_everything_is_copied_and_the_volume_is_made_of_it():
    cluster = Cluster()
    hydrate(cluster)
    kinds = [kind for kind, _ in cluster.made]
    assert kinds == [
        "ServiceAccount",
        "StorageClass",
        "VolumeSnapshotClass",
        "PersistentVolumeClaim",
        "Job",
        "VolumeSnapshot",
        "StorageClass",
        "PersistentVolumeClaim",
        "Job",
        "Job",
    ]


class Holding(Cluster):
    """A machine has the disk that was written to when the Job has ended, and lets go of it when it is asked `looks`
    times."""

    looks = 2

    def _run(self, job: Object) -> None:
        super()._run(job)
        if self.ran[-1:] == ["copy"] and not self.names("VolumeAttachment"):
            volume = self.objects["PersistentVolumeClaim", "gemma", f"{CLAIM}-staging"]["spec"]["volumeName"]
            for name, source in (("csi-1", volume), ("csi-2", "pvc-of-somebody-else")):
                spec = {"nodeName": "n1", "source": {"persistentVolumeName": source}}
                self._store({"kind": "VolumeAttachment", "metadata": {"name": name}, "spec": spec})

    def get(self, kind: str, name: str, namespace: str | None = None) -> Object | None:
        if kind == "VolumeAttachment":
            assert name == "csi-1", "another disk is nobody's business"
            self.looks -= 1
            if self.looks == 0:
                del self.objects["VolumeAttachment", "", "csi-1"]
        return super().get(kind, name, namespace)

    def _snapshot(self, snapshot: Object) -> None:
        assert self.looks == 0, "the file system is still mounted"
        super()._snapshot(snapshot)


def test_no_snapshot_is_taken_of_a_disk_that_a_machine_still_has():
    cluster = Holding()
    assert hydrate(cluster, settings(timeout="1m"))[0] == []
    assert cluster.looks == 0


def test_a_machine_that_does_not_let_go_of_the_disk_is_named():
    cluster = Holding()
    cluster.looks = 1_000_000
    with pytest.raises(InconclusiveError, match=r"-staging is still attached to n1, after .*volumeattachment csi-1"):
        hydrate(cluster)
    assert cluster.names("VolumeSnapshot") == set()
    cluster.looks = 1
    assert hydrate(cluster)[0] == []
    assert cluster.ran.count("copy") == 2


@each_method
def test_the_second_time_nothing_is_done(method: str):
    cluster = Cluster()
    hydrate(cluster, settings(method=method))
    cluster.calls.clear()
    wrong, outcome = hydrate(cluster, settings(method=method))
    assert (wrong, outcome.status) == ([], "skipped")
    assert cluster.calls == []


def test_another_volume_under_the_same_claim_is_read_again():
    cluster = Cluster()
    hydrate(cluster)
    cluster.ran.clear()
    claim = cluster.objects["PersistentVolumeClaim", "gemma", CLAIM]
    cluster._store({**claim, "spec": {**claim["spec"], "volumeName": "pvc-restored"}})
    hydrate(cluster)
    assert cluster.ran == ZONES, "read, and not filled again"
    assert verified(cluster)["volume"] == "pvc-restored"


@each_method
def test_a_run_that_is_killed_between_any_two_calls_is_completed_by_the_next(method: str):
    """And whatever it leaves, another release's run takes away."""
    for survived in itertools.count():
        cluster, left = Cluster(), survived

        def die(verb: str, kind: str, name: str, cluster: Cluster = cluster) -> None:
            nonlocal left
            if left == 0:
                cluster.before_write = lambda *_: None
                raise Killed
            left -= 1

        cluster.before_write = die
        try:
            hydrate(cluster, settings(method=method))
        except Killed:
            abandoned = Cluster(*cluster.objects.values())
            leftovers.remove(abandoned, settings(), Record(live="g1"), "run-9", "g9", lambda line: None)  # type: ignore[arg-type]
            assert abandoned.left() == set()

            wrong, _ = hydrate(cluster, settings(method=method))
            assert wrong == []
            assert cluster.left() == VOLUME[method]
            assert verified(cluster)["zones"] == ZONES
            assert cluster.ran.count("copy") <= 2, "a second one keeps what the first has brought"
            continue
        assert survived > 8
        return


def test_jobs_run_where_the_disk_can_be_attached_and_read_in_their_own_zone():
    cluster = Cluster()
    bodies: dict[str, Object] = {}
    create = cluster.create

    def remember(body: Object) -> Object:
        bodies[body["metadata"]["name"]] = body
        return create(body)

    cluster.create = remember  # type: ignore[method-assign]
    hydrate(cluster)
    for part, zone in {"copy": None, **dict(zip(ZONES, ZONES, strict=True))}.items():
        job = bodies[names.job("hydrate-volume", RELEASE.run_id, part)]
        pod = job["spec"]["template"]["spec"]
        assert pod["nodeSelector"]["cloud.google.com/machine-family"] == "c3"
        assert pod["nodeSelector"]["cloud.google.com/compute-class"] == "Performance"
        assert pod["nodeSelector"].get("topology.kubernetes.io/zone") == zone
        assert (pod["serviceAccountName"], pod["automountServiceAccountToken"]) == ("gemma-server", False)
        assert pod["securityContext"]["fsGroup"] == pod["securityContext"]["runAsUser"]
        assert pod["securityContext"]["runAsNonRoot"]
        (container,) = pod["containers"]
        volume = next(volume for volume in pod["volumes"] if volume["name"] == "weights")
        mount = next(mount for mount in container["volumeMounts"] if mount["name"] == "weights")
        assert volume["persistentVolumeClaim"]["claimName"] == (CLAIM if zone else f"{CLAIM}-staging")
        assert volume["persistentVolumeClaim"]["readOnly"] == mount["readOnly"] == bool(zone)
        assert not pod.get("tolerations"), "no accelerator is asked for"
        plan = json.loads(container["args"][-1])
        assert (plan["weights_uri"], plan["folder"]) == (RELEASE.weights_uri, mount["mountPath"])


@pytest.mark.parametrize(
    ("traits", "section", "compute_class"),
    [
        (ClusterTraits("c", False, "1.35"), {}, None),
        (ClusterTraits("c", True, "1.35"), {"compute_class": "mine"}, "mine"),
        (ClusterTraits("c", True, "1.35"), {"compute_class": ""}, None),
    ],
)
def test_a_compute_class_is_asked_for_where_it_takes_one(
    traits: ClusterTraits, section: dict[str, Any], compute_class: str | None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(google, "cluster_traits", lambda settings: traits)
    hydration = Hydration(Cluster(), settings(**section), HYDRATED, print)  # type: ignore[arg-type]
    selector = hydration.pod(CLAIM, read_only=True)["nodeSelector"]
    assert selector.get("cloud.google.com/compute-class") == compute_class


# -- what the volume holds ----------------------------------------------------------------------------------

WRONG = {**RIGHT, "passed": False, "reasons": ["model.safetensors reads otherwise"]}


def test_bytes_that_changed_on_the_way_to_one_disk_are_a_verdict_that_names_the_zone():
    cluster = Cluster()
    cluster.jobs[ZONES[1]] = WRONG
    wrong, _ = hydrate(cluster)
    assert wrong == [f"{ZONES[1]}: model.safetensors reads otherwise"]
    assert verified(cluster) is None


def test_wrong_bytes_are_a_verdict_whatever_became_of_the_other_zones():
    cluster = Cluster()
    cluster.jobs |= {ZONES[0]: None, ZONES[1]: WRONG}
    assert hydrate(cluster)[0] == [f"{ZONES[1]}: model.safetensors reads otherwise"]


def test_a_zone_without_machines_is_no_verdict_and_the_volume_stays_for_another_attempt():
    cluster = Cluster()
    cluster.jobs[ZONES[0]] = None
    with pytest.raises(InconclusiveError, match=f"could not be read in {ZONES[0]}: .*got no node"):
        hydrate(cluster)
    assert verified(cluster) is None
    assert cluster.left() == VOLUME["snapshot"], "and no Job is left that waits for a machine"
    cluster.jobs[ZONES[0]] = RIGHT
    cluster.ran.clear()
    assert hydrate(cluster)[0] == []
    assert "copy" not in cluster.ran


# -- what does not come -------------------------------------------------------------------------------------


def test_a_copy_that_crashes_is_no_verdict_and_no_snapshot_is_taken_of_it():
    cluster = Cluster()
    cluster.jobs["copy"] = "the volume at /volume is too small"
    with pytest.raises(InconclusiveError, match=r"crashed with exit code 1.*\n.*too small"):
        hydrate(cluster)
    assert cluster.names("VolumeSnapshot") == set()
    cluster.jobs["copy"] = COPIED
    assert hydrate(cluster)[0] == []


def test_a_snapshot_that_is_never_ready_ends_in_its_controllers_words_and_is_not_copied_for_again():
    cluster = Cluster()
    cluster.ready, cluster.snapshot_error = False, "quota of images exceeded"
    with pytest.raises(InconclusiveError, match=f"VolumeSnapshot/{CLAIM} is not ready: quota of images exceeded"):
        hydrate(cluster)
    cluster.set_status("VolumeSnapshot", CLAIM, "gemma", readyToUse=True)
    assert hydrate(cluster)[0] == []
    assert cluster.ran.count("copy") == 1


def test_a_zone_without_disks_is_told_in_the_drivers_words():
    cluster = Cluster()
    cluster.bound = False
    exhausted = "failed to provision volume: ZONE_RESOURCE_POOL_EXHAUSTED in us-central1-b"
    create = cluster._bind

    def bind(claim: Object) -> None:
        cluster.bound = claim["metadata"]["name"] != CLAIM
        create(claim)
        if not cluster.bound:
            cluster.say(claim, ("Warning", "ProvisioningFailed", exhausted))

    cluster._bind = bind  # type: ignore[method-assign]
    with pytest.raises(InconclusiveError, match=r"last warning: .*EXHAUSTED in us-central1-b.*hyperdisk_ml\.zones"):
        hydrate(cluster)


def test_what_a_driver_will_never_make_ends_at_once():
    cluster = Cluster()
    cluster.bound = False
    cluster.events = (("Warning", "ProvisioningFailed", "rpc error: code = InvalidArgument desc = too small"),)
    with pytest.raises(RequestError, match=r"can have no such volume: .*too small"):
        hydrate(cluster, settings(method="populator", timeout="1h"))


# -- the populator ------------------------------------------------------------------------------------------


def test_a_zone_that_the_populator_does_not_finish_is_named():
    cluster = Cluster()
    cluster.bound = False
    cluster.events = (
        WORKED[0],
        WORKED[1],
        (
            "Warning",
            "PopulateOperationFailed",
            f"failed: For PVC c, transfer job in zone {ZONES[1]} failed: no machines",
        ),
    )
    with pytest.raises(InconclusiveError) as caught:
        hydrate(cluster, settings(method="populator"))
    message = str(caught.value)
    assert f"the transfer to {ZONES[1]} (failed: no machines)" in message
    assert ZONES[0] not in message
    assert "object has been modified" not in message, "harmless"


def test_a_volume_that_is_bound_is_not_taken_for_filled():
    cluster = Cluster()
    cluster.events = WORKED[:-1]
    with pytest.raises(InconclusiveError, match="waits for the populator to finish"):
        hydrate(cluster, settings(method="populator"))
    assert cluster.ran == []


def test_of_a_populator_that_was_done_before_the_events_were_forgotten_the_reading_tells():
    cluster = Cluster()
    cluster.events = ()
    hydration = Hydration(cluster, settings(method="populator"), HYDRATED, print)  # type: ignore[arg-type]
    assert populator.fill(hydration, quiet_seconds=0.05)["metadata"]["name"] == CLAIM


def test_without_its_compute_class_the_populator_is_not_asked():
    cluster = Cluster()
    del cluster.objects["ComputeClass", "", populator.COMPUTE_CLASS]
    with pytest.raises(RequestError, match=r"no ComputeClass gcs-to-hdml-compute-class.*--access \| kubectl apply"):
        hydrate(cluster, settings(method="populator"))
    assert cluster.names("PersistentVolumeClaim") == set()


# -- told to end --------------------------------------------------------------------------------------------


@each_method
def test_a_step_that_is_told_to_end_leaves_no_disk(method: str):
    cluster = Cluster()

    def end(verb: str, kind: str, name: str) -> None:
        if kind == "Job" and verb == "create" and ZONES[0] in name:
            cluster.before_write = lambda *_: None
            raise ToldToEnd

    cluster.before_write = end
    with pytest.raises(ToldToEnd):
        hydrate(cluster, settings(method=method))
    assert {kind for kind, _ in cluster.left()} <= {"StorageClass", "GCPDataSource"}
    assert cluster.names("PersistentVolumeClaim") == set()
    assert cluster.names("Job") == set()


def test_the_volume_of_a_generation_that_serves_is_left_alone_though_nothing_says_that_it_was_read_back():
    cluster = Cluster()
    hydrate(cluster)
    del cluster.objects["PersistentVolumeClaim", "gemma", CLAIM]["metadata"]["annotations"]
    Record(live=RELEASE.generation).write(cluster, settings())  # type: ignore[arg-type]

    def end(verb: str, kind: str, name: str) -> None:
        if kind == "Job":
            raise ToldToEnd

    cluster.before_write = end
    with pytest.raises(ToldToEnd):
        hydrate(cluster)
    assert cluster.names("PersistentVolumeClaim") == {CLAIM}


def test_a_claim_that_was_read_back_outlives_a_step_that_is_told_to_end():
    cluster = Cluster()
    hydrate(cluster)
    cluster.before_write = lambda *_: pytest.fail("nothing is written")
    assert hydrate(cluster)[1].status == "skipped"


# -- the step -----------------------------------------------------------------------------------------------


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """A cluster to which the step connects."""
    cluster = Cluster()
    monkeypatch.setattr("serving.clients.storage.read_json", lambda uri: None)
    monkeypatch.setattr("serving.clients.storage.write_json", lambda uri, value: None)
    monkeypatch.setattr("serving.clients.kubernetes.connect", lambda settings: cluster)
    from serving.deployment import lease

    lease.take(cluster, settings(), RELEASE.run_id, print)  # type: ignore[arg-type]
    return cluster


def test_the_verdict_is_handed_on(opened: Cluster):
    config, release = settings().as_struct(), HYDRATED.model_dump()
    assert step.run(config, release, False, ["no good"]) == (False, ["no good"])
    assert opened.names("PersistentVolumeClaim") == set()
    opened.jobs[ZONES[0]] = WRONG
    assert step.run(config, release, True, []) == (False, [f"{ZONES[0]}: model.safetensors reads otherwise"])


def test_what_is_there_while_a_volume_is_made_is_not_rendered_for_the_server():
    kinds = {item["kind"] for item in render.render(settings(), HYDRATED).generation}
    assert not kinds & set(TEMPORARY)


def test_what_cannot_be_taken_away_is_said_and_hides_nothing(capsys: pytest.CaptureFixture[str]):
    cluster = Cluster()

    def refuse(verb: str, kind: str, name: str) -> None:
        if verb == "create" and kind == "Job" and "copy" not in name:
            raise ToldToEnd
        if verb == "delete" and kind == "PersistentVolumeClaim" and name == CLAIM:
            raise PipelineError("the cluster is away")

    cluster.before_write = refuse
    with pytest.raises(ToldToEnd):
        hydrate(cluster)
    assert "could not take vllm-g2 away (the cluster is away); the next run does" in capsys.readouterr().out
