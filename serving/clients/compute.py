"""Compute Engine through its own client: images, machines that make them, their disks, and what room there is.

Bodies are Compute Engine's own JSON. Whatever changes something is an operation, which goes on whoever waits, and has
the caller's request id: asked again with the same id, it is the same operation.
https://cloud.google.com/compute/docs/reference/rest/v1
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from serving import names
from serving.clients import google
from serving.clients.patience import Interrupted, Patience
from serving.errors import AccessError, InconclusiveError, PipelineError, RequestError

ROLE = "roles/compute.instanceAdmin.v1"
_CALL_SECONDS = 30.0
_LONGEST_WAIT_SECONDS = 130.0
"""Compute Engine answers who waits for an operation after two minutes at the latest."""
_STOCK_OUT = re.compile(r"ZONE_RESOURCE_POOL_EXHAUSTED|STOCKOUT|does not have enough resources available")
_NOT_OFFERED = re.compile(r"(machine|disk) ?types?\b.*(does not exist|not found)", re.IGNORECASE)
_QUOTA = re.compile(r"quota", re.IGNORECASE)
_ATTEMPTS = 10
_BUSY = re.compile(r"resourceNotReady|resourceInUse|RESOURCE_NOT_READY|RESOURCE_IN_USE|operationInProgress")
"""What is refused with 400, and will not be when what is going on has ended."""


class StockOutError(InconclusiveError):
    """A zone has no machine of the kind to give now. Another zone may have."""


class NotOfferedError(RequestError):
    """A zone never has machines, or disks, of the kind. Another zone may."""


class QuotaError(InconclusiveError):
    """The project may not have so much."""

    final = True  # It takes a person.


class GoneError(InconclusiveError):
    """What is asked about is not there (any more)."""


class BusyError(InconclusiveError):
    """Something else is going on with it, or somebody uses it."""


class TakenError(InconclusiveError):
    """Something of that name is there already."""


@dataclass(frozen=True)
class Image:
    """An image. `status`: PENDING, READY, FAILED or DELETING."""

    name: str
    id: str
    status: str
    self_link: str
    architecture: str
    disk_size_gb: int
    labels: dict[str, str]


@dataclass(frozen=True)
class Machine:
    """A virtual machine. `status`: PROVISIONING, STAGING, RUNNING, STOPPING, TERMINATED, …"""

    name: str
    zone: str
    id: str
    status: str
    labels: dict[str, str]


@dataclass(frozen=True)
class Disk:
    """A disk. `in_use`: some machine has it."""

    name: str
    zone: str
    id: str
    labels: dict[str, str]
    in_use: bool


@dataclass(frozen=True)
class Room:
    """What is left of a quota."""

    limit: float
    left: float


@dataclass(frozen=True)
class ProxySubnet:
    """A subnet whose addresses are those of load balancers' proxies."""

    name: str
    range: str


class Operation:
    """Something that Compute Engine does, and goes on doing whether or not anybody waits."""

    def __init__(self, what: str, found: Any, look: Callable[[Any, float], Any]):
        self.what, self._found, self._look = what, found, look
        self.was_over = self._status() == "DONE"
        """It was so when it was asked for: an attempt before has begun it, with the same request id."""

    def wait(self, seconds: float) -> None:
        """Returns when it has succeeded.

        Raises StockOutError, QuotaError, AccessError, RequestError or InconclusiveError by why it did not, or when it
        is not done in so many seconds.
        """
        ends = time.monotonic() + seconds
        while self._status() != "DONE":
            left = ends - time.monotonic()
            if left <= 0:
                raise InconclusiveError(f"{self.what} goes on, and is not done after {seconds:.0f} s. Run again")
            self._found = self._look(self._found, min(left, _LONGEST_WAIT_SECONDS))
        if self._found.error.errors:
            raise self._failure()

    def _status(self) -> str:
        status = self._found.status
        return str(getattr(status, "name", status))

    def _failure(self) -> PipelineError:
        error = self._found.error.errors[0]
        return _failure(self.what, error.code, error.message, self._found.http_error_status_code)


def carry_out(
    send: Callable[[str], Operation], *parts: str, seconds: float, found: Callable[[], Any] = lambda: True
) -> Any:
    """Has one thing done, within so many seconds, and returns what is `found` then. `parts` say which thing it is.

    `send` begins it, given a request id. What an attempt before has begun is waited for; where that failed, or what it
    made is gone again, it is begun anew. Raises what Operation.wait raises.
    """
    failure: PipelineError | None = None
    for attempt in range(_ATTEMPTS):
        operation = _begun(send, names.request_id(*parts, str(attempt)))
        try:
            operation.wait(seconds)
        except PipelineError as error:
            if not operation.was_over:
                raise
            failure = error
            continue
        if value := found():
            return value
    raise failure or InconclusiveError(f"{operation.what} has no effect, however often it is asked for. Run again")


def _begun(send: Callable[[str], Operation], request_id: str) -> Operation:
    """What `send` begins, as soon as nothing else is going on."""

    def attempt() -> Operation:
        try:
            return send(request_id)
        except BusyError as error:
            raise Interrupted(str(error)) from error

    operation: Operation = Patience().until_it_works("Compute Engine is busy", attempt)
    return operation


class Compute:
    """Compute Engine in one project."""

    def __init__(self, project: str):
        self.project = project
        self._clients: dict[str, Any] = {}

    # -- images -----------------------------------------------------------------------------------------------

    def image(self, name: str) -> Image | None:
        """None when there is no such image."""
        try:
            return _image(self._ask(f"image {name}", self._client("Images").get, image=name))
        except GoneError:
            return None

    def newest_of_family(self, family: str, project: str) -> Image:
        """The image that a family stands for now. Raises RequestError for a family that is none."""
        what = f"image family {family} of {project}"
        try:
            return _image(self._ask(what, self._client("Images").get_from_family, project=project, family=family))
        except GoneError as error:
            raise RequestError(
                f"{what} does not exist. See `gcloud compute images list --project {project}`, and set "
                "secondary_boot_disk.boot_image_family"
            ) from error

    def images(self, label: str, value: str) -> list[Image]:
        """The project's images with a label."""
        return [_image(found) for found in self._all(self._client("Images").list, "images", label, value)]

    def make_image(self, body: dict[str, Any], request_id: str) -> Operation:
        from google.cloud import compute_v1

        what = f"image {body['name']}"
        image = compute_v1.Image.from_json(json.dumps(body))
        return self._global(what, self._client("Images").insert_unary, image_resource=image, request_id=request_id)

    def delete_image(self, image: Image, request_id: str) -> Operation:
        delete = self._client("Images").delete_unary
        return self._global(f"deletion of image {image.name}", delete, image=image.name, request_id=request_id)

    # -- machines and disks -----------------------------------------------------------------------------------

    def machines(self, label: str, value: str) -> list[Machine]:
        """The project's machines with a label, in all zones."""
        found = self._all(self._client("Instances").aggregated_list, "machines", label, value)
        return [
            Machine(each.name, _last(each.zone), str(each.id), _name(each.status), dict(each.labels))
            for _, scope in found
            for each in scope.instances
        ]

    def disks(self, label: str, value: str) -> list[Disk]:
        """The project's disks with a label, in all zones."""
        found = self._all(self._client("Disks").aggregated_list, "disks", label, value)
        return [
            Disk(each.name, _last(each.zone), str(each.id), dict(each.labels), bool(each.users))
            for _, scope in found
            for each in scope.disks
        ]

    def make_machine(self, zone: str, body: dict[str, Any], request_id: str) -> Operation:
        """A machine, with the disks that its body describes."""
        from google.cloud import compute_v1

        what = f"machine {body['name']} in {zone}"
        instance = compute_v1.Instance.from_json(json.dumps(body))
        insert = self._client("Instances").insert_unary
        return self._zonal(what, insert, zone, instance_resource=instance, request_id=request_id)

    def stop_machine(self, machine: Machine, request_id: str) -> Operation:
        what = f"stop of machine {machine.name} in {machine.zone}"
        stop = self._client("Instances").stop_unary
        return self._zonal(what, stop, machine.zone, instance=machine.name, request_id=request_id)

    def delete_machine(self, machine: Machine, request_id: str) -> Operation:
        """With its disks, as far as they are `autoDelete`."""
        what = f"deletion of machine {machine.name} in {machine.zone}"
        delete = self._client("Instances").delete_unary
        return self._zonal(what, delete, machine.zone, instance=machine.name, request_id=request_id)

    def delete_disk(self, disk: Disk, request_id: str) -> Operation:
        what = f"deletion of disk {disk.name} in {disk.zone}"
        return self._zonal(what, self._client("Disks").delete_unary, disk.zone, disk=disk.name, request_id=request_id)

    def serial_output(self, machine: Machine, start: int) -> tuple[str, int]:
        """What the machine has said on its first serial port since `start`, and where to go on. Raises GoneError when
        the machine is not there, InconclusiveError when it does not run."""
        what = f"serial port of machine {machine.name} in {machine.zone}"
        read = self._client("Instances").get_serial_port_output
        found = self._ask(what, read, zone=machine.zone, instance=machine.name, port=1, start=start)
        return found.contents, int(found.next_)

    # -- networks ---------------------------------------------------------------------------------------------

    def proxy_subnets(self, region: str, network: str) -> list[ProxySubnet]:
        """The proxy-only subnets of a network (`projects/P/global/networks/N`) that are in use in a region: one, or
        none. https://cloud.google.com/load-balancing/docs/proxy-only-subnets"""
        list_all = self._client("Subnetworks").list
        found = self._ask(
            f"subnets of {self.project} in {region}",
            lambda request, **options: list(list_all(request, **options)),
            region=region,
            filter="purpose=REGIONAL_MANAGED_PROXY",
        )
        return [
            ProxySubnet(each.name, each.ip_cidr_range)
            for each in found
            if _name(each.purpose) == "REGIONAL_MANAGED_PROXY"
            and _name(each.role) == "ACTIVE"
            and each.network.endswith(f"/{network}")
        ]

    def make_proxy_subnet(self, region: str, network: str, subnet: ProxySubnet, request_id: str) -> Operation:
        """A proxy-only subnet of a network in a region."""
        from google.cloud import compute_v1

        what = f"proxy-only subnet {subnet.name} in {region}"
        body = compute_v1.Subnetwork(
            name=subnet.name,
            ip_cidr_range=subnet.range,
            network=network,
            purpose="REGIONAL_MANAGED_PROXY",
            role="ACTIVE",
        )
        insert = self._client("Subnetworks").insert_unary
        found = self._ask(what, insert, region=region, subnetwork_resource=body, request_id=request_id)
        return Operation(what, found, functools.partial(self._looked_at, what, "RegionOperations", region=region))

    # -- room -------------------------------------------------------------------------------------------------

    def region(self, name: str) -> tuple[list[str], dict[str, Room]]:
        """A region's zones, and what is left of its quotas by their metrics."""
        found = self._ask(f"region {name} of {self.project}", self._client("Regions").get, region=name)
        return sorted(map(_last, found.zones)), _rooms(found.quotas)

    def project_quotas(self) -> dict[str, Room]:
        """What is left of the whole project's quotas, by their metrics."""
        return _rooms(self._ask(f"project {self.project}", self._client("Projects").get).quotas)

    def zones_with(self, accelerator: str) -> list[str]:
        """The zones, of all regions, that have an accelerator: `nvidia-l4`."""
        list_all = self._client("AcceleratorTypes").aggregated_list
        found = self._ask(
            f"accelerators of {self.project}",
            lambda request, **options: list(list_all(request, **options)),
            filter=f"name={accelerator}",
        )
        return sorted(_last(each.zone) for _, scope in found for each in scope.accelerator_types)

    # -- asking -----------------------------------------------------------------------------------------------

    def _ask(self, what: str, call: Callable[..., Any], **fields: Any) -> Any:
        request = {"project": self.project, **fields}
        with _errors(what):
            return google.asked(what, lambda: call(request, retry=None, timeout=_CALL_SECONDS))

    def _all(self, call: Callable[..., Any], kinds: str, label: str, value: str) -> list[Any]:
        """All that a list has of what has the label, page by page."""
        return list(
            self._ask(
                f"{kinds} of {self.project}",
                lambda request, **options: list(call(request, **options)),
                filter=f"labels.{label}={value}",
            )
        )

    def _zonal(self, what: str, call: Callable[..., Any], zone: str, **fields: Any) -> Operation:
        found = self._ask(what, call, zone=zone, **fields)
        return Operation(what, found, functools.partial(self._looked_at, what, "ZoneOperations", zone=zone))

    def _global(self, what: str, call: Callable[..., Any], **fields: Any) -> Operation:
        found = self._ask(what, call, **fields)
        return Operation(what, found, functools.partial(self._looked_at, what, "GlobalOperations"))

    def _looked_at(self, what: str, service: str, operation: Any, seconds: float, **where: str) -> Any:
        """The operation when it is done, or when so many seconds have passed."""
        import requests

        request = {"project": self.project, "operation": operation.name, **where}

        def ask() -> Any:
            try:
                return self._client(service).wait(request, retry=None, timeout=seconds)
            except requests.Timeout:
                return operation

        with _errors(what):
            return google.asked(what, ask)

    def _client(self, service: str) -> Any:
        """The client of one of Compute Engine's services, which keeps its connections."""
        from google.cloud import compute_v1

        if service not in self._clients:
            self._clients[service] = google.client_of(getattr(compute_v1, f"{service}Client"))
        return self._clients[service]


def _image(found: Any) -> Image:
    return Image(
        found.name,
        str(found.id),
        _name(found.status),
        found.self_link,
        _name(found.architecture),
        int(found.disk_size_gb),
        dict(found.labels),
    )


def _rooms(quotas: Any) -> dict[str, Room]:
    return {_name(quota.metric): Room(quota.limit, quota.limit - quota.usage) for quota in quotas}


def _name(value: Any) -> str:
    """Of an enumeration's value, which the library hands on as a text."""
    return str(getattr(value, "name", value))


def _last(url: str) -> str:
    return url.rpartition("/")[2]


@contextmanager
def _errors(what: str) -> Iterator[None]:
    """Says in our words what Compute Engine refuses."""
    from google.api_core import exceptions

    try:
        yield
    except exceptions.NotFound as error:
        kind = NotOfferedError if _NOT_OFFERED.search(google.said(error)) else GoneError
        raise kind(f"{what}: {google.said(error)}") from error
    except exceptions.Conflict as error:
        raise TakenError(f"{what}: {google.said(error)}") from error
    except exceptions.ClientError as error:
        reasons = " ".join(str(each.get("reason")) for each in error.errors)
        raise _failure(what, reasons, google.said(error), error.code) from error


def _failure(what: str, code: str, words: str, status: int | None) -> PipelineError:
    """Our error for why Compute Engine did not do something: `code` is its own word, `status` the HTTP status."""
    words = words.rstrip(".") or code
    if _STOCK_OUT.search(code) or _STOCK_OUT.search(words):
        return StockOutError(f"{what}: {words}")
    if _NOT_OFFERED.search(words):
        return NotOfferedError(f"{what}: {words}")
    if _QUOTA.search(code):
        return QuotaError(
            f"{what}: {words}. Ask for more at https://console.cloud.google.com/iam-admin/quotas, or free what nobody "
            "needs"
        )
    if status in (401, 403):
        return AccessError(
            f"{what}: {words}. Grant the pipeline's service account {ROLE} (docs/security.md has the permissions one "
            "by one), and roles/iam.serviceAccountUser on a service account that a machine is to run as"
        )
    if _BUSY.search(code):
        return BusyError(f"{what}: {words}. Run again")
    if status == 404:
        return GoneError(f"{what}: {words}")
    if status and 400 <= status < 500 and status not in (408, 409, 429):
        return RequestError(f"{what}: {words}")
    return InconclusiveError(f"{what}: {words}. Run again")
