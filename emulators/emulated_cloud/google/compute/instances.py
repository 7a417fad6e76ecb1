"""Machines (the API calls them instances): disks that are put together, and a startup script that runs."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from emulated_cloud.google.call import Call
from emulated_cloud.google.compute import catalog, disks, errors, resources
from emulated_cloud.google.compute.machine import Machine

if TYPE_CHECKING:
    from emulated_cloud.google.compute.service import Compute

LEAST_SECONDS = 30
"""The shortest maxRunDuration there may be."""


# -- insert -------------------------------------------------------------------------------------------------------


def insert(compute: Compute, call: Call, zone: str) -> dict[str, Any]:
    body = call.body
    path = f"zones/{zone}/instances/{resources.check_name(body)}"
    compute.check_new(path)
    machine_type = _machine_type(compute, zone, body)
    if not body.get("networkInterfaces"):
        raise errors.invalid("resource.networkInterfaces", "", "At least one network interface is required.")
    _check_scheduling(body.get("scheduling") or {})
    attached, new_disks = _disks(compute, zone, path, body)
    for disk in new_disks.values():
        if disk.get("architecture", machine_type["architecture"]) != machine_type["architecture"]:
            why = f"Requested boot disk architecture ({disk['architecture']}) is not compatible with machine type "
            raise errors.refusal(400, "invalid", f"{why}architecture ({machine_type['architecture']}).")
        disk_type = disk["type"].rpartition("/")[2]
        if catalog.has_hyperdisks_alone(machine_type["name"]) and not disk_type.startswith("hyperdisk-"):
            why = "are not compatible for creating instance."
            raise errors.refusal(400, "badRequest", f"[{disk_type}] features and [{machine_type['name']}] {why}")
    fields = {
        "zone": resources.link(compute.project, f"zones/{zone}"),
        "machineType": machine_type["selfLink"],
        "status": "PROVISIONING",
        "disks": attached,
        "networkInterfaces": [
            _interface(compute, number, given) for number, given in enumerate(body["networkInterfaces"])
        ],
        "metadata": {**_with_fingerprint(body.get("metadata")), "kind": "compute#metadata"},
        "tags": _with_fingerprint(body.get("tags")),
        "scheduling": _scheduling(body.get("scheduling") or {}),
        "startRestricted": False,
        "deletionProtection": bool(body.get("deletionProtection")),
        "cpuPlatform": "Unknown CPU Platform",
    }
    instance = resources.new(compute.project, path, "instance", body, **fields)
    for disk_path, disk in new_disks.items():
        compute.store.put(disk_path, disk)
    _use(compute, path, instance)
    compute.store.put(path, instance)

    def undo(_: errors.OperationFailed) -> None:
        with compute.lock:
            _let_go(compute, path)
            compute.store.remove(path)
            for disk_path in new_disks:
                compute.store.remove(disk_path)

    return compute.operations.begin(
        call, "insert", path, instance["id"], lambda outcome: _start(compute, path, list(new_disks), outcome), undo
    )


def _machine_type(compute: Compute, zone: str, body: dict[str, Any]) -> dict[str, Any]:
    given = body.get("machineType", "")
    name = given.rpartition("/")[2]
    for found in catalog.machine_types(compute.project, zone):
        if found["name"] == name:
            if f"zones/{zone}/machineTypes/" not in given:
                why = "The URL is malformed or of another zone."
                raise errors.invalid("resource.machineType", given, why)
            return found
    raise errors.invalid(
        "resource.machineType", given, f"Machine type with name '{name}' does not exist in zone '{zone}'."
    )


def _check_scheduling(scheduling: dict[str, Any]) -> None:
    if "maxRunDuration" not in scheduling:
        return
    seconds = int((scheduling["maxRunDuration"] or {}).get("seconds", 0))
    if seconds < LEAST_SECONDS:
        why = f"Max run duration must be at least {LEAST_SECONDS} seconds."
        raise errors.invalid("resource.scheduling.maxRunDuration", seconds, why)
    if scheduling.get("instanceTerminationAction") not in ("DELETE", "STOP"):
        why = "Instance termination action must be specified with a max run duration."
        raise errors.invalid("resource.scheduling.instanceTerminationAction", "", why)


def _scheduling(given: dict[str, Any]) -> dict[str, Any]:
    scheduling = {"automaticRestart": True, "onHostMaintenance": "MIGRATE", "provisioningModel": "STANDARD", **given}
    if duration := scheduling.get("maxRunDuration"):
        scheduling["maxRunDuration"] = {**duration, "seconds": str(duration["seconds"])}
    return scheduling


def _interface(compute: Compute, number: int, given: dict[str, Any]) -> dict[str, Any]:
    network = given.get("network") or ("" if given.get("subnetwork") else "global/networks/default")
    shown = {
        **given,
        "kind": "compute#networkInterface",
        "name": f"nic{number}",
        "networkIP": given.get("networkIP", "10.128.0.2"),
        "fingerprint": resources.fingerprint(given),
        "stackType": given.get("stackType", "IPV4_ONLY"),
    }
    for key, value in {"network": network, "subnetwork": given.get("subnetwork")}.items():
        if value:
            project, path = resources.path_of(value, compute.project)
            shown[key] = resources.link(project, path)
    if given.get("accessConfigs"):
        ours = {"kind": "compute#accessConfig", "natIP": "203.0.113.7"}
        shown["accessConfigs"] = [{**config, **ours} for config in given["accessConfigs"]]
    return shown


def _with_fingerprint(given: dict[str, Any] | None) -> dict[str, Any]:
    return {**(given or {}), "fingerprint": resources.fingerprint(given or {})}


def _disks(
    compute: Compute, zone: str, instance: str, body: dict[str, Any]
) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """The disks as the machine shows them, and those that are to be made for it, by path. Raises HttpError."""
    attached, new = [], {}
    given = body.get("disks") or []
    if sum(bool(disk.get("boot")) for disk in given) != 1 or not given[0].get("boot"):
        raise errors.invalid("resource.disks", "", "Exactly one boot disk is wanted, and it comes first.")
    for number, disk in enumerate(given):
        if (wanted := disk.get("initializeParams")) is not None:
            name = wanted.get("diskName") or (body["name"] if disk.get("boot") else f"{body['name']}-{number}")
            path = f"zones/{zone}/disks/{resources.check_name({'name': name})}"
            if path in new:
                raise errors.already_exists(compute.name(path))
            compute.check_new(path)
            new[path] = disks.described(compute, zone, path, _disk_asked_for(wanted, disk)) | {"status": "CREATING"}
            size = new[path]["sizeGb"]
        else:
            path = resources.path_of(disk.get("source", ""), compute.project)[1]
            there = compute.existing(path)
            if there.get("users") and disk.get("mode") != "READ_ONLY":
                user = resources.path_of(there["users"][0], compute.project)[1]
                raise errors.in_use("disk", compute.name(path), compute.name(user))
            size = there["sizeGb"]
        shown = {
            "kind": "compute#attachedDisk",
            "type": "PERSISTENT",
            "mode": disk.get("mode", "READ_WRITE"),
            "source": resources.link(compute.project, path),
            "deviceName": disk.get("deviceName") or f"persistent-disk-{number}",
            "index": number,
            "boot": bool(disk.get("boot")),
            "autoDelete": bool(disk.get("autoDelete")),
            "interface": disk.get("interface", "SCSI"),
            "diskSizeGb": size,
        }
        if key := resources.encryption_key(disk.get("diskEncryptionKey")):
            shown["diskEncryptionKey"] = key
        attached.append(shown)
    names = [disk["deviceName"] for disk in attached]
    if len(set(names)) != len(names):
        raise errors.invalid("resource.disks", names, "Device names must differ.")
    return attached, new


def _disk_asked_for(wanted: dict[str, Any], attached: dict[str, Any]) -> dict[str, Any]:
    """`initializeParams` in the words of disks.insert."""
    words = {"diskType": "type", "diskSizeGb": "sizeGb"}
    others = ("diskName", "onUpdateAction", "resourceManagerTags")
    body = {words.get(key, key): value for key, value in wanted.items() if key not in others}
    if attached.get("diskEncryptionKey"):
        body["diskEncryptionKey"] = attached["diskEncryptionKey"]
    return body


# -- running ------------------------------------------------------------------------------------------------------


def _is_to_start(compute: Compute, path: str) -> bool:
    """Whether nobody has deleted or stopped it before it ran."""
    instance = compute.store.get(path)
    return instance is not None and instance["status"] == "PROVISIONING"


def _start(compute: Compute, path: str, new_disks: list[str], outcome: dict[str, Any]) -> None:
    with compute.lock:
        if not _is_to_start(compute, path):
            return
        compute.check_quotas()
    for disk in new_disks:
        disks.make(compute, disk)
    with compute.lock:
        if not _is_to_start(compute, path):
            return
        compute.store.change(path, status="RUNNING", lastStartTimestamp=resources.now())
        instance = compute.existing(path)
        files = {
            disk["deviceName"]: compute.store.data(resources.path_of(disk["source"], compute.project)[1])
            for disk in instance["disks"]
            if not disk["boot"]
        }
        machine = Machine(compute.config, compute.compute, instance, files, outcome.get("machine", {}))
        compute.machines[path] = machine
        machine.start()
        if duration := instance["scheduling"].get("maxRunDuration"):
            timer = threading.Timer(float(outcome.get("expires", duration["seconds"])), _expire, (compute, path))
            timer.daemon = True
            compute.timers[path] = timer
            timer.start()


def _is_over(instance: dict[str, Any]) -> bool:
    """Whether its maxRunDuration is."""
    duration = instance["scheduling"].get("maxRunDuration")
    if not duration:
        return False
    began = datetime.fromisoformat(instance["lastStartTimestamp"])
    return (datetime.now(UTC) - began).total_seconds() >= int(duration["seconds"])


def _expire(compute: Compute, path: str) -> None:
    """Compute Engine itself ends a machine whose time is up."""
    instance = compute.store.get(path)
    if instance is None:
        return
    if instance["scheduling"]["instanceTerminationAction"] == "DELETE":
        _delete(compute, path)
    else:
        _stop(compute, path)


def _switch_off(compute: Compute, path: str) -> None:
    """Its processes are gone and its disks are nobody's, when this returns."""
    with compute.lock:
        if timer := compute.timers.pop(path, None):
            timer.cancel()
        machine = compute.machines.pop(path, None)
    if machine:
        machine.stop()


def _stop(compute: Compute, path: str) -> None:
    _switch_off(compute, path)
    with compute.lock:
        if compute.store.get(path):
            compute.store.change(path, status="TERMINATED", lastStopTimestamp=resources.now())


def _delete(compute: Compute, path: str) -> None:
    _switch_off(compute, path)
    with compute.lock:
        instance = compute.store.get(path)
        if instance is None:
            return
        _let_go(compute, path)
        compute.store.remove(path)
        for disk in instance["disks"]:
            if disk["autoDelete"]:
                compute.store.remove(resources.path_of(disk["source"], compute.project)[1])


def _use(compute: Compute, path: str, instance: dict[str, Any]) -> None:
    for disk in instance["disks"]:
        disk_path = resources.path_of(disk["source"], compute.project)[1]
        users = compute.existing(disk_path).get("users", [])
        now = {"lastAttachTimestamp": resources.now()}
        compute.store.change(disk_path, users=[*users, resources.link(compute.project, path)], **now)


def _let_go(compute: Compute, path: str) -> None:
    """Its disks are no longer used by it."""
    ours = resources.link(compute.project, path)
    for disk_path, disk in list(compute.store.of_kind("disks")):
        if ours in disk.get("users", []):
            left = [user for user in disk["users"] if user != ours]
            shown = {key: value for key, value in disk.items() if key != "users"} | ({"users": left} if left else {})
            compute.store.put(disk_path, {**shown, "lastDetachTimestamp": resources.now()})


# -- the other verbs ----------------------------------------------------------------------------------------------


def stop(compute: Compute, call: Call, path: str) -> dict[str, Any]:
    instance = compute.existing(path)
    if instance["status"] != "TERMINATED":
        compute.store.change(path, status="STOPPING")

    def undo(_: errors.OperationFailed) -> None:
        with compute.lock:
            compute.store.change(path, status="RUNNING")

    return compute.operations.begin(call, "stop", path, instance["id"], lambda _: _stop(compute, path), undo)


def delete(compute: Compute, call: Call, path: str) -> dict[str, Any]:
    instance = compute.existing(path)
    if instance["deletionProtection"]:
        words = "Deletion protection must be disabled first."
        raise errors.invalid("resource.deletionProtection", True, words)
    before = instance["status"]
    compute.store.change(path, status="STOPPING")

    def undo(_: errors.OperationFailed) -> None:
        with compute.lock:
            compute.store.change(path, status=before)

    return compute.operations.begin(call, "delete", path, instance["id"], lambda _: _delete(compute, path), undo)


def set_disk_auto_delete(compute: Compute, call: Call, path: str) -> dict[str, Any]:
    instance = compute.existing(path)
    device, wanted = call.query.get("deviceName", ""), call.query.get("autoDelete") == "true"
    if device not in [disk["deviceName"] for disk in instance["disks"]]:
        raise errors.invalid("deviceName", device, f"No attached disk found with device name '{device}'.")

    def work(_: dict[str, Any]) -> None:
        with compute.lock:
            changed = [
                {**disk, "autoDelete": wanted} if disk["deviceName"] == device else disk
                for disk in compute.existing(path)["disks"]
            ]
            compute.store.change(path, disks=changed)

    return compute.operations.begin(call, "setDiskAutoDelete", path, instance["id"], work)


def serial_port(compute: Compute, call: Call, path: str) -> dict[str, Any]:
    """What a machine that runs has written to its first serial port since `start`; the other ports stay silent."""
    compute.existing(path)
    machine = compute.machines.get(path)
    if machine is None:
        raise errors.not_ready(compute.name(path))
    first = int(call.query.get("start", "0"))
    contents, start, following = machine.serial.read(first) if call.query.get("port", "1") == "1" else (b"", 0, 0)
    return {
        "kind": "compute#serialPortOutput",
        "contents": contents.decode(errors="replace"),
        "start": str(start),
        "next": str(following),
        "selfLink": resources.link(compute.project, f"{path}/serialPort"),
    }


def recover(compute: Compute) -> None:
    """Machines end with the emulator: those whose time is up are deleted, the others are off."""
    for path, instance in list(compute.store.of_kind("instances")):
        if "lastStartTimestamp" not in instance:  # Its insert was not done.
            _let_go(compute, path)
            compute.store.remove(path)
        elif instance["status"] != "TERMINATED":
            end = _expire if _is_over(instance) else _stop
            end(compute, path)
