"""The emulated Compute Engine as a process, with its real clients, held against its discovery document."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.api_core.client_options import ClientOptions
from google.cloud import compute_v1
from google.oauth2.credentials import Credentials

from tests.contract.discovery import Conformance
from tests.contract.google_process import TOKEN, GoogleProcess, until

ZONES = [f"us-central1-{letter}" for letter in "abc"]
ZONE = ZONES[0]

CONFORMANCE = Conformance("compute", "v1")
"""Its document is large."""


class Compute(GoogleProcess):
    """An emulated Compute Engine."""

    def config(self) -> dict[str, Any]:
        return {
            "denied": ["projects/demo/global/images/kept-back"],
            "compute": {"folder": str(self.folder / "compute"), "zones": ZONES, **self.options},
        }

    def client(self, kind: Any) -> Any:
        """Its methods that end in `_unary` alone: what the others return asks for the operation at Google's address,
        whatever endpoint the client has."""
        client = kind(credentials=Credentials(TOKEN), client_options=ClientOptions(api_endpoint=self.process.url))
        CONFORMANCE.watch(client.transport._session)
        return client

    @property
    def instances(self) -> Any:
        return self.client(compute_v1.InstancesClient)

    @property
    def disks(self) -> Any:
        return self.client(compute_v1.DisksClient)

    @property
    def images(self) -> Any:
        return self.client(compute_v1.ImagesClient)

    def done(self, operation: Any) -> Any:
        """What became of an operation, by the wait method."""
        name, zone = operation.name, operation.zone.rpartition("/")[2]
        if zone:
            found = self.client(compute_v1.ZoneOperationsClient).wait(project="demo", zone=zone, operation=name)
        else:
            found = self.client(compute_v1.GlobalOperationsClient).wait(project="demo", operation=name)
        assert found.status.name == "DONE"
        return found

    def do(self, operation: Any) -> Any:
        """An operation that is to succeed."""
        done = self.done(operation)
        assert not done.error.errors, done.error
        return done

    def script(self, *outcomes: tuple[str, str, dict[str, Any]]) -> None:
        """What becomes of the next request of a method to a path, each once."""
        faults = [
            {"action": "outcome", "method": method, "path": path, "outcome": what} for method, path, what in outcomes
        ]
        self.set_faults(*faults)

    def serial(self, name: str, start: int = 0, zone: str = ZONE) -> Any:
        asked = compute_v1.GetSerialPortOutputInstanceRequest(project="demo", zone=zone, instance=name, start=start)
        return self.instances.get_serial_port_output(asked)

    def wait_for_serial(self, name: str, words: str, zone: str = ZONE) -> str:
        return until(lambda: (text := self.serial(name, zone=zone).contents) and words in text and text)

    def insert(self, name: str, zone: str = ZONE, **options: Any) -> Any:
        """A machine with a boot disk and a disk for data, both made with it."""
        wanted = {"project": "demo", "zone": zone, "instance_resource": machine(name, zone, **options)}
        return self.instances.insert_unary(wanted)

    def there(self) -> set[str]:
        """Every machine, disk and image that there is, by kind and name."""
        found = set()
        for kind, client in (("instances", self.instances), ("disks", self.disks)):
            for _, scope in client.aggregated_list(project="demo"):
                found |= {f"{kind}/{each.name}" for each in getattr(scope, kind)}
        return found | {f"images/{image.name}" for image in self.images.list(project="demo")}


def machine(
    name: str, zone: str = ZONE, script: str = "", disk: str = "", metadata: dict[str, str] | None = None, **fields: Any
) -> dict[str, Any]:
    """An instance with a boot disk and a disk for data (`NAME-data`, or `disk`, which is there)."""
    items = {**(metadata or {}), **({"startup-script": script} if script else {})}
    data: dict[str, Any] = {"device_name": "data", "auto_delete": True}
    if disk:
        data["source"] = f"projects/demo/zones/{zone}/disks/{disk}"
    else:
        kind = f"projects/demo/zones/{zone}/diskTypes/pd-ssd"
        data["initialize_params"] = {"disk_name": f"{name}-data", "disk_size_gb": 1, "disk_type": kind}
    return {
        "name": name,
        "machine_type": f"zones/{zone}/machineTypes/e2-standard-2",
        "disks": [
            {
                "boot": True,
                "auto_delete": True,
                "initialize_params": {"source_image": "projects/debian-cloud/global/images/family/debian-13"},
            },
            data,
        ],
        "network_interfaces": [{"network": "global/networks/default"}],
        "service_accounts": [{"email": "builder@demo.iam.gserviceaccount.com", "scopes": ["cloud-platform"]}],
        "metadata": {"items": [{"key": key, "value": value} for key, value in items.items()]},
        **fields,
    }


def new_id() -> str:
    return str(uuid.uuid4())


@pytest.fixture
def new_compute(tmp_path: Path) -> Iterator[Callable[..., Compute]]:
    """Starts emulators of a test's own, with options of `compute` in their configuration."""
    made: list[Compute] = []

    def make(**options: Any) -> Compute:
        compute = Compute(tmp_path / f"compute-{len(made)}", options)
        compute.folder.mkdir()
        compute.start()
        made.append(compute)
        return compute

    yield make
    for compute in made:
        compute.stop_in_peace()


@pytest.fixture(scope="module")
def compute(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compute]:
    """One for all tests of a file: each uses names of its own."""
    started = Compute(tmp_path_factory.mktemp("compute"))
    started.start()
    yield started
    started.stop_in_peace()
