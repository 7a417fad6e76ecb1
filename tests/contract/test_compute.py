"""Compute Engine with its real clients over REST, held against its discovery document.

What a machine does is in test_compute_machines.py; here the machines say given lines, so that nothing wants root.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
import requests
from google.api_core import exceptions
from google.cloud import compute_v1

from tests.contract.compute_service import TOKEN, ZONE, ZONES, Compute, compute, machine, new_compute, new_id, until
from tests.contract.discovery import Conformance

__all__ = ["compute", "new_compute"]

INSTANCES = f"/zones/{ZONE}/instances$"


def disk(name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "size_gb": 1, "type_": f"projects/demo/zones/{ZONE}/diskTypes/pd-ssd", **fields}


def image(name: str, source: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "source_disk": f"projects/demo/zones/{ZONE}/disks/{source}", **fields}


def make_disk(compute: Compute, name: str, **fields: Any) -> None:
    compute.do(compute.disks.insert_unary(project="demo", zone=ZONE, disk_resource=disk(name, **fields)))


# -- what there is ------------------------------------------------------------------------------------------------


def test_the_region_and_the_project(compute):
    region = compute.client(compute_v1.RegionsClient).get(project="demo", region="us-central1")
    assert [zone.rpartition("/")[2] for zone in region.zones] == ZONES
    limits = {quota.metric: (quota.limit, quota.usage) for quota in region.quotas}
    assert limits["CPUS"][0] > 0
    assert limits["SSD_TOTAL_GB"][0] > 0
    project = compute.client(compute_v1.ProjectsClient).get(project="demo")
    assert {"CPUS_ALL_REGIONS", "IMAGES"} <= {quota.metric for quota in project.quotas}
    assert [zone.name for zone in compute.client(compute_v1.ZonesClient).list(project="demo")] == ZONES
    with pytest.raises(exceptions.NotFound, match="regions/asia-east1"):
        compute.client(compute_v1.RegionsClient).get(project="demo", region="asia-east1")
    with pytest.raises(exceptions.NotFound, match="zones/us-central1-x"):
        compute.disks.get(project="demo", zone="us-central1-x", disk="any")


def test_machine_types(compute):
    types = compute.client(compute_v1.MachineTypesClient)
    found = types.get(project="demo", zone=ZONE, machine_type="n2-standard-8")
    assert (found.guest_cpus, found.memory_mb, found.architecture) == (8, 32 << 10, "X86_64")
    listed = list(types.list({"project": "demo", "zone": ZONE, "filter": "guestCpus>=32 AND architecture=ARM64"}))
    assert listed
    assert {each.architecture for each in listed} == {"ARM64"}
    with pytest.raises(exceptions.NotFound, match="machineTypes/n2-none-1"):
        types.get(project="demo", zone=ZONE, machine_type="n2-none-1")


def test_images_that_anybody_may_start_from(compute):
    family = compute.images.get_from_family(project="debian-cloud", family="debian-13")
    assert (family.status, family.family, family.architecture) == ("READY", "debian-13", "X86_64")
    assert compute.images.get(project="debian-cloud", image=family.name) == family
    with pytest.raises(exceptions.NotFound, match="family/debian-1"):
        compute.images.get_from_family(project="debian-cloud", family="debian-1")


def test_who_may_not(compute):
    with pytest.raises(exceptions.Forbidden, match=r"Required 'compute\.images\.get' permission for 'projects/demo/gl"):
        compute.images.get(project="demo", image="kept-back")
    with pytest.raises(exceptions.Forbidden, match=r"compute\.instances\.list"):
        list(compute.instances.list(project="other", zone=ZONE))
    with pytest.raises(exceptions.Forbidden, match=r"compute\.instances\.create"):
        compute.instances.insert_unary(project="other", zone=ZONE, instance_resource=machine("x"))
    assert requests.get(f"{compute.process.url}/compute/v1/projects/demo", timeout=60).status_code == 401


# -- disks --------------------------------------------------------------------------------------------------------


def test_a_disk(compute):
    key = {"kms_key_name": "projects/demo/locations/us-central1/keyRings/r/cryptoKeys/k"}
    make_disk(compute, "plain", labels={"run": "r1"}, description="mine", disk_encryption_key=key)
    there = {"project": "demo", "zone": ZONE, "disk": "plain"}
    found = compute.disks.get(**there)
    assert (found.status, found.size_gb, dict(found.labels), found.description) == ("READY", 1, {"run": "r1"}, "mine")
    assert found.type_.endswith(f"/zones/{ZONE}/diskTypes/pd-ssd")
    assert found.disk_encryption_key.kms_key_name == f"{key['kms_key_name']}/cryptoKeyVersions/1"
    with pytest.raises(exceptions.Conflict, match=f"'projects/demo/zones/{ZONE}/disks/plain' already exists"):
        make_disk(compute, "plain")

    labels = {"labels": {"run": "r2"}, "label_fingerprint": found.label_fingerprint}
    named = {"project": "demo", "zone": ZONE, "resource": "plain"}
    compute.do(compute.disks.set_labels_unary({**named, "zone_set_labels_request_resource": labels}))
    assert dict(compute.disks.get(**there).labels) == {"run": "r2"}
    with pytest.raises(exceptions.PreconditionFailed, match="Labels fingerprint"):
        compute.disks.set_labels_unary({**named, "zone_set_labels_request_resource": labels})

    compute.do(compute.disks.delete_unary(**there))
    with pytest.raises(exceptions.NotFound, match=f"'projects/demo/zones/{ZONE}/disks/plain' was not found"):
        compute.disks.get(**there)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": "Upper"}, r"Invalid value for field 'resource\.name'"),
        ({"type_": f"zones/{ZONE}/diskTypes/floppy"}, "diskTypes/floppy' was not found"),
        ({"type_": "pd-ssd"}, "The URL is malformed"),
        ({"type_": f"zones/{ZONES[1]}/diskTypes/pd-ssd"}, "of another zone"),
        ({"labels": {"Run": "x"}}, r"resource\.labels"),
        ({"size_gb": 1 << 20}, "between 1 GB and 65536 GB"),
        ({"source_image": "projects/debian-cloud/global/images/family/debian-13"}, "smaller than the image size"),
    ],
)
def test_a_disk_that_cannot_be(compute, fields, words):
    with pytest.raises(exceptions.ClientError, match=words):
        make_disk(compute, "cannot", **fields) if "name" not in fields else make_disk(compute, **fields)


# -- images -------------------------------------------------------------------------------------------------------


def test_an_image(compute):
    make_disk(compute, "origin")
    fields = {
        "labels": {"layout": "1"},
        "family": "nodes",
        "description": '{"digests": []}',
        "storage_locations": ["us"],
    }
    compute.do(compute.images.insert_unary(project="demo", image_resource=image("nodes-1", "origin", **fields)))
    found = compute.images.get(project="demo", image="nodes-1")
    assert (found.status, found.disk_size_gb, dict(found.labels)) == ("READY", 1, {"layout": "1"})
    assert found.source_disk.endswith("/disks/origin")
    compute.do(compute.images.insert_unary(project="demo", image_resource=image("nodes-2", "origin", family="nodes")))
    assert compute.images.get_from_family(project="demo", family="nodes").name == "nodes-2"
    listed = compute.images.list({"project": "demo", "filter": "labels.layout=1 AND family=nodes"})
    assert [each.name for each in listed] == ["nodes-1"]

    labels = {"labels": {"layout": "2"}, "label_fingerprint": found.label_fingerprint}
    asked = {"project": "demo", "resource": "nodes-1", "global_set_labels_request_resource": labels}
    compute.do(compute.images.set_labels_unary(asked))
    assert dict(compute.images.get(project="demo", image="nodes-1").labels) == {"layout": "2"}
    make_disk(compute, "from-image", source_image="global/images/nodes-1")
    for name in ("nodes-1", "nodes-2"):
        compute.do(compute.images.delete_unary(project="demo", image=name))
    with pytest.raises(exceptions.NotFound):
        compute.images.get(project="demo", image="nodes-1")


def test_an_image_takes_its_time(compute):
    make_disk(compute, "slow")
    compute.script(("POST", "/global/images$", {"hold": True}))
    begun = compute.images.insert_unary(project="demo", image_resource=image("slow-1", "slow"))
    assert compute.images.get(project="demo", image="slow-1").status == "PENDING"
    with pytest.raises(exceptions.BadRequest, match="is not ready"):
        make_disk(compute, "too-early", source_image="global/images/slow-1")
    with pytest.raises(exceptions.BadRequest, match=r"disks/slow' is already being used by '.*/images/slow-1'"):
        compute.disks.delete_unary(project="demo", zone=ZONE, disk="slow")
    assert compute.consumed() == [1]
    compute.script()
    compute.do(begun)
    assert compute.images.get(project="demo", image="slow-1").status == "READY"


def test_an_image_that_fails(compute):
    make_disk(compute, "bad")
    compute.script(("POST", "/global/images$", {"error": {"code": "INTERNAL_ERROR"}}))
    ended = compute.done(compute.images.insert_unary(project="demo", image_resource=image("bad-1", "bad")))
    assert [error.code for error in ended.error.errors] == ["INTERNAL_ERROR"]
    assert ended.http_error_status_code == 500
    assert compute.consumed() == [1]
    assert compute.images.get(project="demo", image="bad-1").status == "FAILED"
    with pytest.raises(exceptions.Conflict):
        compute.images.insert_unary(project="demo", image_resource=image("bad-1", "bad"))
    compute.do(compute.images.delete_unary(project="demo", image="bad-1"))


# -- machines -----------------------------------------------------------------------------------------------------


def test_a_machine(compute):
    compute.script(("POST", INSTANCES, {"machine": {"output": ["one", "two"]}}))
    compute.do(compute.insert("talker", script="#!/bin/sh\n", labels={"run": "r1"}, tags={"items": ["builder"]}))
    there = {"project": "demo", "zone": ZONE, "instance": "talker"}
    found = compute.instances.get(**there)
    assert (found.status, dict(found.labels), list(found.tags.items)) == ("RUNNING", {"run": "r1"}, ["builder"])
    boot, data = found.disks
    assert (boot.boot, boot.auto_delete, data.device_name, data.disk_size_gb) == (True, True, "data", 1)
    assert not found.network_interfaces[0].access_configs
    assert [user.rpartition("/")[2] for user in compute.disks.get(project="demo", zone=ZONE, disk="talker").users]

    said = compute.wait_for_serial("talker", "Finished running startup scripts.")
    assert "startup-script: one\r\n" in said
    first = compute.serial("talker")
    assert (first.start, first.next_) == (0, len(first.contents.encode()))
    rest = compute.serial("talker", start=first.next_ - 5)
    assert (rest.start, rest.contents) == (first.next_ - 5, first.contents[-5:])
    assert compute.serial("talker", start=first.next_).contents == ""

    with pytest.raises(
        exceptions.BadRequest, match=r"disks/talker-data' is already being used by '.*instances/talker'"
    ):
        compute.disks.delete_unary(project="demo", zone=ZONE, disk="talker-data")
    compute.do(compute.instances.set_disk_auto_delete_unary({**there, "device_name": "data", "auto_delete": False}))
    with pytest.raises(exceptions.BadRequest, match="device name 'absent'"):
        compute.instances.set_disk_auto_delete_unary({**there, "device_name": "absent", "auto_delete": False})
    compute.do(compute.instances.delete_unary(**there))
    assert {each for each in compute.there() if "talker" in each} == {"disks/talker-data"}
    assert not compute.disks.get(project="demo", zone=ZONE, disk="talker-data").users
    assert compute.consumed() == [1]


def test_lists_over_all_zones(compute):
    for name, zone, run in (("lister-a", ZONES[0], "r7"), ("lister-b", ZONES[1], "r7"), ("lister-c", ZONES[2], "r8")):
        compute.do(compute.insert(name, zone, labels={"run": run, "made-by": "lister"}))

    def listed(text: str, **more: Any) -> dict[str, list[str]]:
        found = compute.instances.aggregated_list({"project": "demo", "filter": text, **more})
        return {scope: [each.name for each in part.instances] for scope, part in found if part.instances}

    assert listed("labels.made-by=lister AND labels.run=r7") == {
        f"zones/{ZONES[0]}": ["lister-a"],
        f"zones/{ZONES[1]}": ["lister-b"],
    }
    assert listed('(labels.made-by = "lister") (labels.run != r7)') == {f"zones/{ZONES[2]}": ["lister-c"]}
    assert listed("labels.nobody:*") == {}
    assert len(listed("labels.made-by:*", max_results=1)) == 3, "the client turns the pages"
    with pytest.raises(exceptions.BadRequest, match="Invalid list filter expression"):
        listed("labels.run=")
    disks = compute.disks.aggregated_list({"project": "demo", "filter": "name=lister-b-data"})
    assert [each.name for _, scope in disks for each in scope.disks] == ["lister-b-data"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"machine_type": f"zones/{ZONE}/machineTypes/none-1"}, "Machine type with name 'none-1' does not exist"),
        ({"network_interfaces": []}, "At least one network interface"),
        ({"disks": []}, "Exactly one boot disk"),
        ({"scheduling": {"max_run_duration": {"seconds": 5}}}, "at least 30 seconds"),
        ({"scheduling": {"max_run_duration": {"seconds": 60}}}, "Instance termination action"),
        ({"machine_type": f"zones/{ZONE}/machineTypes/c4a-standard-8"}, "not compatible with machine type architect"),
        (
            {"machine_type": f"zones/{ZONE}/machineTypes/c4-standard-8"},
            r"\[pd-standard\] features and \[c4-standard-8\]",
        ),
    ],
)
def test_a_machine_that_cannot_be(compute, change, words):
    before = compute.there()
    with pytest.raises(exceptions.BadRequest, match=words):
        compute.instances.insert_unary(project="demo", zone=ZONE, instance_resource=machine("cannot") | change)
    assert compute.there() == before


def test_no_capacity_in_a_zone(compute):
    compute.script(("POST", INSTANCES, {"error": {"code": "ZONE_RESOURCE_POOL_EXHAUSTED"}}))
    ended = compute.done(compute.insert("nowhere"))
    (error,) = ended.error.errors
    assert error.code == "ZONE_RESOURCE_POOL_EXHAUSTED"
    assert error.message.startswith(f"The zone 'projects/demo/zones/{ZONE}' does not have enough resources available")
    assert (ended.http_error_status_code, ended.http_error_message) == (503, "SERVICE UNAVAILABLE")
    assert not {each for each in compute.there() if "nowhere" in each}
    compute.do(compute.insert("nowhere", ZONES[1]))
    assert compute.consumed() == [1]


def test_what_is_deleted_before_it_was_made(compute):
    """As by whoever cleans up after a run that was killed in the middle of its request."""
    make_disk(compute, "early")
    compute.script(("POST", INSTANCES, {"hold": True}), ("POST", "/global/images$", {"hold": True}))
    begun = [
        compute.insert("early-bird"),
        compute.images.insert_unary(project="demo", image_resource=image("early-image", "early")),
    ]
    compute.do(compute.instances.delete_unary(project="demo", zone=ZONE, instance="early-bird"))
    compute.do(compute.images.delete_unary(project="demo", image="early-image"))
    assert compute.consumed() == [1, 1]
    compute.script()
    for operation in begun:
        compute.do(operation)
    assert {each for each in compute.there() if "early" in each} == {"disks/early"}
    assert [file.name for file in compute.folder.rglob("early*.raw")] == ["early.raw"]


def test_machines_where_no_script_can_run(new_compute):
    compute = new_compute(run_scripts=False, script_output=["begun", "all done"])
    compute.do(compute.insert("quiet", script="#!/bin/sh\necho not me"))
    said = compute.wait_for_serial("quiet", "Finished running startup scripts.")
    assert "startup-script: all done\r\n" in said
    assert "not me" not in said


def test_too_much_for_the_quota(new_compute):
    compute = new_compute(quotas={"CPUS": 2, "SSD_TOTAL_GB": 1})
    compute.do(compute.insert("first"))
    for name, change in (("cpus", {}), ("disks", {"machine_type": f"zones/{ZONE}/machineTypes/n2-standard-2"})):
        ended = compute.done(compute.insert(name, **change))
        (error,) = ended.error.errors
        metric = {"cpus": "CPUS", "disks": "SSD_TOTAL_GB"}[name]
        assert (error.code, ended.http_error_status_code) == ("QUOTA_EXCEEDED", 403)
        assert error.message.startswith(
            f"Quota '{metric}' exceeded.  Limit: {2.0 if name == 'cpus' else 1.0} in region"
        )
        assert error.error_details[0].quota_info.limit_name == f"{metric.replace('_', '-')}-per-project-region"
    assert compute.there() == {"instances/first", "disks/first", "disks/first-data"}
    region = compute.client(compute_v1.RegionsClient).get(project="demo", region="us-central1")
    used = {quota.metric: (quota.limit, quota.usage) for quota in region.quotas}
    assert (used["CPUS"], used["SSD_TOTAL_GB"]) == ((2, 2), (1, 1))


def test_a_machine_whose_time_is_up_is_deleted(compute):
    compute.script(("POST", INSTANCES, {"expires": 0.2}))
    limit = {"max_run_duration": {"seconds": 3600}, "instance_termination_action": "DELETE"}
    compute.do(compute.insert("brief", scheduling=limit))
    until(lambda: not {each for each in compute.there() if "brief" in each})
    assert compute.consumed() == [1]


# -- operations ---------------------------------------------------------------------------------------------------


def test_an_operation(compute):
    compute.script(("DELETE", "/disks/op$", {"hold": True}))
    make_disk(compute, "op")
    begun = compute.disks.delete_unary(project="demo", zone=ZONE, disk="op")
    assert (begun.status.name, begun.operation_type) == ("RUNNING", "delete")
    assert begun.target_link.endswith(f"/projects/demo/zones/{ZONE}/disks/op")
    operations = compute.client(compute_v1.ZoneOperationsClient)
    there = {"project": "demo", "zone": ZONE, "operation": begun.name}
    assert operations.get(**there).status.name == "RUNNING"
    ended: list[Any] = []
    waiting = threading.Thread(target=lambda: ended.append(compute.done(begun)))
    waiting.start()
    compute.script()
    waiting.join(10)
    assert [each.progress for each in ended] == [100]
    assert operations.get(**there).end_time
    assert begun.name in [each.name for each in operations.list(project="demo", zone=ZONE)]
    with pytest.raises(exceptions.NotFound, match="operations/absent"):
        operations.get(project="demo", zone=ZONE, operation="absent")


def test_a_request_that_is_sent_again_is_the_same_operation(compute):
    request = {"project": "demo", "zone": ZONE, "disk_resource": disk("again"), "request_id": new_id()}
    first = compute.disks.insert_unary(request)
    assert compute.disks.insert_unary(request).name == first.name
    compute.do(first)
    assert compute.disks.insert_unary(request).name == first.name, "done it is the same, too"
    with pytest.raises(exceptions.Conflict):
        compute.disks.insert_unary({**request, "request_id": new_id()})
    with pytest.raises(exceptions.BadRequest, match="already been used for a different request"):
        compute.images.insert_unary(
            {"project": "demo", "image_resource": image("x", "again"), "request_id": request["request_id"]}
        )
    for wrong in ("no-uuid", "00000000-0000-0000-0000-000000000000"):
        with pytest.raises(exceptions.BadRequest, match="must be a valid UUID"):
            compute.disks.insert_unary({**request, "request_id": wrong})


# -- the folder ---------------------------------------------------------------------------------------------------


def test_what_outlives_the_emulator(new_compute: Callable[..., Compute]) -> None:
    compute = new_compute()
    make_disk(compute, "stays")
    compute.do(compute.images.insert_unary(project="demo", image_resource=image("kept", "stays")))
    compute.do(compute.insert("ran"))
    compute.script(("POST", "/global/images$", {"hold": True}), ("DELETE", "/disks/", {"hold": True}))
    make_disk(compute, "going")
    compute.images.insert_unary(project="demo", image_resource=image("pending", "stays"))
    compute.disks.delete_unary(project="demo", zone=ZONE, disk="going")
    assert compute.consumed() == [1, 1]
    before = compute.images.get(project="demo", image="kept")

    compute.process.popen.kill()
    compute.process.stop()
    compute.start()
    assert compute.images.get(project="demo", image="kept") == before
    assert compute.images.get(project="demo", image="pending").status == "READY", "Compute Engine goes on by itself"
    assert compute.there() == {
        *("images/kept", "images/pending"),
        *("disks/stays", "disks/ran", "disks/ran-data", "instances/ran"),
    }
    assert compute.instances.get(project="demo", zone=ZONE, instance="ran").status == "TERMINATED"
    with pytest.raises(exceptions.BadRequest, match="is not ready"):
        compute.serial("ran")


# -- logging ------------------------------------------------------------------------------------------------------


def test_entries_of_the_log(new_compute):
    compute = new_compute()
    session = requests.Session()
    Conformance("logging", "v2").watch(session)

    def listed(**asked: Any) -> Any:
        body = {"resourceNames": ["projects/demo"], **asked}
        url, headers = f"{compute.process.url}/v2/entries:list", {"Authorization": f"Bearer {TOKEN}"}
        return session.post(url, json=body, headers=headers, timeout=60)

    assert listed().json() == {}
    with open(compute.folder / "logging.jsonl", "a") as file:
        for number in range(5):
            entry = {
                "logName": f"projects/demo/logs/{'gcfs-snapshotter' if number % 2 else 'kubelet'}",
                "resource": {"type": "k8s_node", "labels": {"cluster_name": "gemma", "node_name": f"n{number}"}},
                "timestamp": f"2026-11-29T10:00:0{number}.000000001Z",
                "jsonPayload": {"MESSAGE": f'Image "vllm/vllm-openai:v{number}" is backed by 100.0%'},
            }
            file.write(json.dumps(entry) + "\n")
        file.write('{"half a li')

    def nodes(answer: Any) -> list[str]:
        return [entry["resource"]["labels"]["node_name"] for entry in answer.json().get("entries", [])]

    assert nodes(listed()) == ["n0", "n1", "n2", "n3", "n4"]
    assert nodes(listed(orderBy="timestamp desc", pageSize=2)) == ["n4", "n3"]
    text = (
        'logName="projects/demo/logs/gcfs-snapshotter" AND resource.type="k8s_node" AND '
        'resource.labels.cluster_name="gemma" AND jsonPayload.MESSAGE:"VLLM/vllm-openai" AND '
        'timestamp>="2026-11-29T10:00:02Z"'
    )
    assert nodes(listed(filter=text)) == ["n3"]
    assert nodes(listed(filter='jsonPayload.MESSAGE:":v1\\" is" OR resource.labels.node_name="n0"')) == ["n0", "n1"]
    page = listed(pageSize=3)
    assert nodes(listed(pageSize=3, pageToken=page.json()["nextPageToken"])) == ["n3", "n4"]
    for wrong, status in (
        ({"filter": "timestamp>="}, 400),
        ({"orderBy": "severity"}, 400),
        ({"resourceNames": []}, 400),
        ({"resourceNames": ["projects/other"]}, 403),
    ):
        assert listed(**wrong).status_code == status


# -- subnetworks --------------------------------------------------------------------------------------------------


def test_the_proxies_of_load_balancers_have_a_subnetwork_of_their_own(compute):
    subnetworks = compute.client(compute_v1.SubnetworksClient)
    where = {"project": "demo", "region": "us-central1"}
    assert [(each.name, each.purpose) for each in subnetworks.list(**where)] == [("default", "PRIVATE")]
    network = "projects/demo/global/networks/default"
    body = {"name": "proxies", "network": network, "purpose": "REGIONAL_MANAGED_PROXY", "role": "ACTIVE"}

    def insert(**fields: Any) -> Any:
        return subnetworks.insert_unary(
            **where, subnetwork_resource={**body, "ip_cidr_range": "10.129.0.0/23", **fields}
        )

    for fields, words in (
        ({"ip_cidr_range": "10.128.8.0/23"}, "conflicts with existing subnetwork 'default'"),
        ({"ip_cidr_range": "10.129.0.0/27"}, "must be /26 or larger"),
        ({"ip_cidr_range": "anything"}, "Must be a CIDR address range"),
        ({"role": None}, "Role is required"),
    ):
        with pytest.raises(exceptions.BadRequest, match=words):
            insert(**fields)
    operation = insert()
    regional = compute.client(compute_v1.RegionOperationsClient)
    assert regional.wait(**where, operation=operation.name).status.name == "DONE"
    asked = {**where, "filter": "purpose=REGIONAL_MANAGED_PROXY"}
    (found,) = subnetworks.list(asked)
    assert (found.name, found.ip_cidr_range, found.role, found.state) == ("proxies", "10.129.0.0/23", "ACTIVE", "READY")
    assert found.network.endswith(network)
    assert subnetworks.get(**where, subnetwork="proxies").id == found.id
    with pytest.raises(exceptions.BadRequest, match="an active subnetwork"):
        insert(name="more", ip_cidr_range="10.130.0.0/23")
    with pytest.raises(exceptions.Conflict):
        insert()
    with pytest.raises(exceptions.NotFound, match="regions/asia-east1"):
        subnetworks.get(project="demo", region="asia-east1", subnetwork="default")
