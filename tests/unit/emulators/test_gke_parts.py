"""GKE's own parts without a cluster: configuration, machines, the GCS FUSE driver's checks."""

from __future__ import annotations

import asyncio
import json

import pytest
from aiohttp import web
from emulated_cloud.kubernetes.gke.autoscaler import started
from emulated_cloud.kubernetes.gke.config import ConfigError, Project, load
from emulated_cloud.kubernetes.gke.gcsfuse import GcsFuseDriver, LinkMounter
from emulated_cloud.kubernetes.gke.machines import MACHINE_TYPES, node_template, reserve
from emulated_cloud.kubernetes.kubelet.csi import CsiError, PublishRequest
from emulated_cloud.kubernetes.quantity import parse_quantity

CONFIG = {"zones": ["us-central1-a"], "project": {"id": "p", "number": "1"}, "pods": "/tmp/pods"}


def _write(tmp_path, **changes):
    path = tmp_path / "gke.json"
    path.write_text(json.dumps({**CONFIG, **changes}))
    return path


def test_a_configuration_is_read_with_its_defaults(tmp_path):
    image = {"match": ".*vllm.*", "argv0": {"vllm": ["python", "-m", "engine"]}}
    config = load(_write(tmp_path, images=[image], decline={"nvidia-l4": "GCE out of resources"}))
    assert config.region == "us-central1"
    assert config.image("vllm/vllm-openai:v0.33.0").argv0["vllm"] == ["python", "-m", "engine"]
    assert config.image("busybox") is None
    assert config.declined("nvidia-l4") == "GCE out of resources"
    _write(tmp_path)
    assert config.declined("nvidia-l4") == "", "read again each time"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "Expecting"),
        (json.dumps({**CONFIG, "zone": []}), "zone"),
        (json.dumps({key: value for key, value in CONFIG.items() if key != "project"}), "project is missing"),
    ],
)
def test_a_broken_configuration_names_file_and_key(tmp_path, text, words):
    path = tmp_path / "gke.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words) as caught:
        load(path)
    assert str(path) in str(caught.value)
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "absent.json")


def _machine(name):
    return next(machine for machine in MACHINE_TYPES if machine.name == name)


def test_a_gpu_node_looks_as_gke_makes_it():
    node = node_template(_machine("g2-standard-8"), "us-central1-a", "c", "p", True, "latest", "gk3-x")
    labels = node["metadata"]["labels"]
    assert labels["cloud.google.com/gke-accelerator"] == "nvidia-l4"
    assert labels["cloud.google.com/gke-gpu-driver-version"] == "latest"
    assert labels["cloud.google.com/gke-spot"] == "true"
    assert labels["topology.kubernetes.io/zone"] == labels["topology.gke.io/zone"] == "us-central1-a"
    assert labels["topology.kubernetes.io/region"] == "us-central1"
    assert {taint["key"] for taint in node["spec"]["taints"]} == {"nvidia.com/gpu", "cloud.google.com/gke-spot"}
    assert node["status"]["allocatable"]["nvidia.com/gpu"] == "1"


def test_a_tpu_node_has_its_topology():
    node = node_template(_machine("ct6e-standard-4t"), "us-east5-b", "c", "p", False, "", "gk3-t")
    labels = node["metadata"]["labels"]
    assert labels["cloud.google.com/gke-tpu-accelerator"] == "tpu-v6e-slice"
    assert labels["cloud.google.com/gke-tpu-topology"] == "2x2"
    assert node["status"]["capacity"]["google.com/tpu"] == "4"
    assert [taint["key"] for taint in node["spec"]["taints"]] == ["google.com/tpu"]


@pytest.mark.parametrize("spot", [False, True])
def test_a_node_out_of_a_reservation_has_its_labels_unless_it_is_spot(spot):
    node = node_template(_machine("tpu7x-standard-1t"), "us-east5-b", "c", "p", spot, "", "gk3-t")
    ours = {"cloud.google.com/reservation-name": "ours", "cloud.google.com/reservation-affinity": "specific"}
    reserve(node, {"spec": {"nodeSelector": {**ours, "else": "where"}}})
    assert (ours.items() <= node["metadata"]["labels"].items()) != spot
    assert "else" not in node["metadata"]["labels"]


@pytest.mark.parametrize(
    ("name", "cpu", "memory_gib"),
    # "Plan GKE node sizes": reservations by tiers, and 100 MiB for eviction.
    [("e2-standard-4", "3.92", 13.3), ("e2-standard-8", "7.91", 28.3), ("g2-standard-4", "3.92", 13.3)],
)
def test_allocatable_is_what_gke_leaves(name, cpu, memory_gib):
    allocatable = node_template(_machine(name), "us-central1-a", "c", "p", False, "")["status"]["allocatable"]
    assert parse_quantity(allocatable["cpu"]) == parse_quantity(cpu)
    assert float(parse_quantity(allocatable["memory"])) / 2**30 == pytest.approx(memory_gib, abs=0.2)


POOL = "projects/1/locations/global/workloadIdentityPools/p.svc.id.goog"
PRINCIPAL = f"principal://iam.googleapis.com/{POOL}/subject/ns/serving/sa/reader"


def _publish(
    tmp_path, role="roles/storage.objectViewer", member=PRINCIPAL, annotated=True, bucket="weights", **request
):
    """Publishes one volume against a storage API that knows one bucket; the folder's path."""

    async def scenario():
        async def iam(asked):
            if asked.match_info["bucket"] != "weights":
                return web.json_response({"error": {"code": 404}}, status=404)
            return web.json_response({"bindings": [{"role": role, "members": [member]}]})

        app = web.Application()
        app.router.add_get("/storage/v1/b/{bucket}/iam", iam)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        endpoint = f"http://127.0.0.1:{runner.addresses[0][1]}"
        driver = GcsFuseDriver(endpoint, Project("p", "1"), LinkMounter(tmp_path / "buckets"))
        pod = {
            "metadata": {"namespace": "serving", "annotations": {"gke-gcsfuse/volumes": "true"} if annotated else {}},
            "spec": {"serviceAccountName": "reader"},
        }
        target = tmp_path / "volume"
        values = {"volume_id": bucket, "attributes": {}, "mount_options": [], "read_only": True, "ephemeral": False}
        try:
            await driver.publish(PublishRequest(**{**values, **request}, pod=pod, target=target))
            content = sorted(entry.name for entry in target.iterdir())
            await driver.unpublish(target)
            assert not target.exists()
            return content
        finally:
            await runner.cleanup()

    folder = tmp_path / "buckets" / "weights" / "objects"
    (folder / "models" / "key").mkdir(parents=True, exist_ok=True)
    (folder / "models" / "key" / "config.json").write_text("{}")
    return asyncio.run(scenario())


def test_a_bucket_is_a_folder_and_stays_whole(tmp_path):
    assert _publish(tmp_path) == ["models"]
    assert (tmp_path / "buckets/weights/objects/models/key/config.json").exists()


@pytest.mark.parametrize("option", ["only-dir=models/key", "only-dir:models/key/"])
def test_one_prefix_of_a_bucket_under_a_handle_of_its_own(tmp_path, option):
    options = ["implicit-dirs", option, "metadata-cache:ttl-secs:-1", "read_ahead_kb=1024", "profile:aiml-serving"]
    assert _publish(tmp_path, bucket="weights:g0123456789", mount_options=options) == ["config.json"]


def test_a_prefix_without_objects_is_empty(tmp_path):
    assert _publish(tmp_path, mount_options=["only-dir=models/none"]) == []


def test_an_inline_volume_names_its_bucket(tmp_path):
    attributes = {"bucketName": "weights", "mountOptions": "implicit-dirs,only-dir=models"}
    assert _publish(tmp_path, volume_id="", ephemeral=True, attributes=attributes) == ["key"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"role": "roles/storage.objectCreator"}, "failed to get GCS bucket .weights.: .* Error 403"),
        ({"member": PRINCIPAL + "2"}, "code = PermissionDenied"),
        ({"bucket": "other"}, "code = NotFound desc = failed to get GCS bucket .other.: storage: bucket doesn't exist"),
        ({"annotated": False}, "FailedPrecondition desc = failed to find the sidecar container in Pod spec"),
        ({"mount_options": ["no-such-flag"]}, "code = InvalidArgument .* flag provided but not defined: -no-such-flag"),
        ({"mount_options": ["no-section:x:1"]}, "flag provided but not defined: -no-section"),
        ({"attributes": {"skipCSIBucketAccessCheck": "maybe"}}, "only accepts a valid bool value"),
        ({"attributes": {"skipCSIBucketAccessCheck": "true"}, "role": "roles/viewer"}, "gcsfuse failed with error"),
        ({"attributes": {"nonsense": "1"}}, "invalid volume attribute"),
        ({"ephemeral": True}, "must be provided for ephemeral storage"),
    ],
)  # fmt: skip
def test_what_the_driver_refuses(tmp_path, changes, words):
    with pytest.raises(CsiError, match=words):
        _publish(tmp_path, **changes)


def test_a_node_that_is_not_ready_yet_is_counted_on():
    card = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
    new = {"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}
    node = {"metadata": {"name": "n"}, "spec": {"providerID": "gce://n", "taints": [new, card]}}
    assert started(node) == {"metadata": {"name": "n"}, "spec": {"providerID": "gce://n", "taints": [card]}}
    assert node["spec"]["taints"] == [new, card]
