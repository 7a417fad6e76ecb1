"""Disk images in Compute Engine, and what baking them leaves there: found by labels, and taken away again.

What is on an image is remembered beside the weights (names.disk_image_record). That is written before anything is made,
so a deployment without such a record has nothing in Compute Engine, and nobody asks there for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from serving import names
from serving.clients import patience, storage
from serving.clients.compute import Compute, Disk, GoneError, Image, Machine, Operation, carry_out
from serving.clients.registry import ResolvedImage
from serving.deployment.record import Record
from serving.errors import InconclusiveError, PipelineError
from serving.log import Say
from serving.settings import Settings


def remember(settings: Settings, disk_image: str, images: Iterable[ResolvedImage]) -> None:
    """Writes down what is, or is to be, on a disk image: `{"image", "place", "digests": [NAME@DIGEST], "chain_ids",
    "layers": [{"image", "chain_id", "digest", "size"}]}`, sizes in bytes, packed."""
    found = list(images)
    layers = {
        chain_id: {"image": image.name, "chain_id": chain_id, "digest": layer.digest, "size": layer.size}
        for image in found
        for chain_id, layer in zip(image.chain_ids, image.layers, strict=True)
    }
    value = {
        "image": disk_image,
        "place": names.place(settings),
        "digests": [image.name for image in found],
        "chain_ids": list(layers),
        "layers": list(layers.values()),
    }
    storage.write_json_if_changed(names.disk_image_record(settings, disk_image), value)


def remembered(settings: Settings) -> dict[str, str]:
    """The deployment's disk images, each with the address of what is remembered of it."""
    found = {}
    for uri in storage.list_uris(names.disk_image_records(settings)):
        value: dict[str, Any] = storage.read_json(uri) or {}
        if value.get("place") == names.place(settings):
            found[str(value["image"])] = uri
    return found


def collect(settings: Settings, generations: Record, run_id: str, say: Say) -> list[str]:
    """Deletes the deployment's disk images that no generation in the cluster starts from, and all that baking left.
    Returns the images' names. The caller is the run `run_id`, which holds the Lease and bakes nothing any more.
    """
    known, in_use = remembered(settings), generations.disk_images_in_use
    if not known or generations.of_unknown_origin:
        return []
    compute = Compute(settings.project)
    clear(compute, settings, run_id, say)
    gone = [image for image in compute.images(*_label(settings)) if image.name not in in_use]
    for image in gone:
        delete_image(compute, image, run_id, say)
    for name in known.keys() - in_use:
        storage.delete(known[name])
    return [image.name for image in gone]


def present(settings: Settings) -> list[str]:
    """What the deployment has in Compute Engine, and what is remembered of it, in words. Reads only."""
    known = remembered(settings)
    if not known:
        return []
    compute, label = Compute(settings.project), _label(settings)
    found = [f"instance {machine.name} in {machine.zone}" for machine in compute.machines(*label)]
    found += [f"disk {disk.name} in {disk.zone}" for disk in compute.disks(*label)]
    images = {image.name for image in compute.images(*label)}
    return found + [f"disk image {name}" for name in sorted(images | known.keys())]


def remove_all(settings: Settings, run_id: str, say: Say) -> list[str]:
    """Deletes all that the deployment has in Compute Engine, whatever starts from it, and what is remembered of it.
    Returns the images' names. The caller is as above."""
    return collect(settings, Record(), run_id, say)


def sweep(settings: Settings, run_id: str, say: Say) -> None:
    """Takes away all that baking left, whatever features the deployment has now. The caller is as above."""
    if remembered(settings):
        clear(Compute(settings.project), settings, run_id, say)


def delete_image(compute: Compute, image: Image, run_id: str, say: Say) -> None:
    """Deletes a disk image, if it is still there."""
    try:
        carry_out(partial(compute.delete_image, image), run_id, "delete", image.id, seconds=patience.left())
    except GoneError:
        return
    say(f"deleted disk image {image.name}")


def clear(compute: Compute, settings: Settings, run_id: str, say: Say, *, own: bool = True) -> None:
    """Deletes the machines and disks that bake, or baked, for this deployment: those of dead runs, and unless told
    otherwise its `own`. The caller is the run `run_id`, which holds the Lease.

    Raises InconclusiveError for what is still there in the end.
    """

    def is_wanted(found: Machine | Disk) -> bool:
        return not own and found.labels.get(names.RUN_OF_COMPUTE) == run_id

    def delete(kind: str, found: Machine | Disk, send: Callable[[str], Operation]) -> None:
        try:
            carry_out(send, run_id, "delete", found.id, seconds=patience.left())
            say(f"deleted {kind} {found.name} in {found.zone}")
        except GoneError:
            pass
        except PipelineError as error:
            command = f"gcloud compute {kind}s delete {found.name} --zone {found.zone} --project {compute.project}"
            failures.append(f"{error}. If it stays: `{command}`")

    failures: list[str] = []
    for machine in compute.machines(*_label(settings)):
        if not is_wanted(machine):
            delete("instance", machine, partial(compute.delete_machine, machine))
    for disk in compute.disks(*_label(settings)):
        # A machine's disks go with it.
        if not disk.in_use and not is_wanted(disk):
            delete("disk", disk, partial(compute.delete_disk, disk))
    if failures:
        raise InconclusiveError("; ".join(failures))


def _label(settings: Settings) -> tuple[str, str]:
    return names.PLACE, names.place_label(settings)
