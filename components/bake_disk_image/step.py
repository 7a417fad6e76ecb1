"""The step that makes the disk image that nodes start with.

One machine unpacks the images onto a second disk of its own, is stopped, and the image is made of that disk: Compute
Engine takes it from a machine that is off. So at every moment there is one thing to take away, the machine, and its
disks go with it. Whatever a dead run left is found by its labels, and a machine of this very run is gone on with.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from components.bake_disk_image import bodies, room
from components.bake_disk_image.bodies import Bake
from components.bake_disk_image.serial import Serial
from serving import names
from serving.clients import artifact_registry, registry, storage
from serving.clients.compute import (
    Compute,
    GoneError,
    Image,
    Machine,
    NotOfferedError,
    StockOutError,
    TakenError,
    carry_out,
)
from serving.clients.registry import ResolvedImage
from serving.deployment import disk_images
from serving.errors import InconclusiveError, PipelineError, RequestError, ToldToEnd
from serving.features import secondary_boot_disk
from serving.log import Say
from serving.rendering import engine
from serving.settings import Settings
from serving.step import opened
from serving.values import in_seconds
from serving.weights.release import Release

_RUNS = ("PROVISIONING", "STAGING", "RUNNING")
_PASSES = ("PENDING", "DELETING")
"""What an image is for a while."""


@dataclass(frozen=True)
class Pace:
    """Seconds."""

    look: float = 10.0
    """Between two looks at what goes on, in the long run."""
    start: float = 600.0
    """How long Compute Engine may take to begin, or to end, one thing."""
    silence: float = 180.0
    """How long the machine may say nothing, its start included."""
    heartbeat: int = 10
    """Between two signs of life that it is asked for."""


def run(settings: dict[str, Any], release: dict[str, Any]) -> None:
    """Makes the release's disk image unless it is there; where nodes stream images, has the engine's kept warm."""
    with opened("bake_disk_image", settings, release) as step:
        outcome, config, target = step.outcome, step.settings, step.release
        if not secondary_boot_disk.has_disk(config):
            outcome.succeeded(prewarm(config, target))
            return
        outcome.details["disk_image"] = target.disk_image
        with step.cluster():
            made = Baking(Compute(config.project), config, target, outcome.say).bake()
        if made:
            outcome.succeeded(f"baked {target.disk_image}")
        else:
            outcome.skipped(f"{target.disk_image} is there")


def prewarm(settings: Settings, release: Release) -> str:
    """Has the engine's image kept warm for nodes that stream it. Returns what became of that."""
    section, region = settings.section("secondary-boot-disk"), "-".join(settings.location.split("-")[:2])
    image, digest = engine.engine_image(settings), release.image_digest
    until = artifact_registry.prewarm(image, digest, region, section.architecture, section.retention_days)
    return f"Artifact Registry keeps {image} warm in {region}{f' until {until}' if until else ''}"


class Baking:
    """The disk image of one release, while it is being made. The caller holds the Lease."""

    def __init__(self, compute: Compute, settings: Settings, release: Release, say: Say, pace: Pace = Pace()):
        self._compute, self._settings, self._say, self._pace = compute, settings, say, pace
        self._release, self._name, self._run_id = release, release.disk_image, release.run_id
        self._section = settings.section("secondary-boot-disk")
        self._ends = time.monotonic() + in_seconds(self._section.timeout)

    def bake(self) -> bool:
        """Makes the disk image unless it is there: returns whether it had to.

        Nothing else stays in Compute Engine, whatever happens. Raises QuotaError, RequestError or AccessError for what
        a person has to change, InconclusiveError for the rest: how an image is baked says nothing about a release.
        """
        with self._nothing_left():
            disk_images.clear(self._compute, self._settings, self._run_id, self._say, own=False)
            there = self._settled()
            if there and there.status == "READY":
                if storage.stat(names.disk_image_record(self._settings, self._name)) is None:
                    disk_images.remember(self._settings, self._name, self._images())
                return False
            images = self._images()
            # From here on a collector knows that there is something to look for.
            disk_images.remember(self._settings, self._name, images)
            if there:
                disk_images.delete_image(self._compute, there, self._run_id, self._say)
            self._make(self._plan(images))
        return True

    def planned(self) -> Bake:
        """What would be made. Raises RequestError for what cannot be."""
        return self._plan(self._images())

    @contextmanager
    def _nothing_left(self) -> Iterator[None]:
        """However the block ends: no machine and no disk stays, nor an image that is not whole."""

        def clear() -> None:
            try:
                # First: its making reads the disk.
                image = self._compute.image(self._name)
                if image and image.status in ("PENDING", "FAILED"):
                    disk_images.delete_image(self._compute, image, self._run_id, self._say)
            finally:
                disk_images.clear(self._compute, self._settings, self._run_id, self._say)

        try:
            yield
        except BaseException:
            try:
                _undisturbed(clear)
            except PipelineError as error:
                self._say(f"could not clean up ({error}). The next run does, and Compute Engine when the time is up")
            raise
        _undisturbed(clear)

    def _images(self) -> list[ResolvedImage]:
        """The images that the disk is to have, as they were when the release was resolved. Raises InconclusiveError
        when a tag has moved since."""
        wanted = [engine.pod_image(self._settings, self._release), *self._section.further_images]
        found = [registry.resolve(image, f"linux/{self._section.architecture}") for image in wanted]
        name = names.disk_image_name(
            self._settings,
            [image.name for image in found],
            architecture=self._section.architecture,
            kms_key=self._section.kms_key,
        )
        if name != self._name:
            raise InconclusiveError(
                f"one of {', '.join(self._section.further_images) or wanted[0]} is another image than when this run "
                "began. Run again, or name them by digest"
            )
        return found

    def _settled(self) -> Image | None:
        """The image when it is neither being made nor being deleted; None when there is none."""
        told = ""
        while (image := self._compute.image(self._name)) and image.status in _PASSES:
            if image.status != told:
                told = image.status
                self._say(f"disk image {self._name} is {told}: waiting for it")
            if time.monotonic() > self._ends:
                raise InconclusiveError(
                    f"disk image {self._name} is still {image.status}. Look at it: `gcloud compute images describe "
                    f"{self._name} --project {self._compute.project}`"
                )
            time.sleep(self._pace.look)
        return image

    # -- making ---------------------------------------------------------------------------------------------

    def _plan(self, images: list[ResolvedImage]) -> Bake:
        """What is to be made. Raises RequestError for what cannot be."""
        section = self._section
        private = [image.name for image in images if image.auth == "google"]
        if private and not section.service_account:
            raise RequestError(
                f"{private[0]} is read with the token of a service account, and the machine that bakes has none: set "
                f"secondary_boot_disk.service_account to one with {registry.READER_ROLE}"
            )
        boot_image = self._compute.newest_of_family(section.boot_image_family, section.boot_image_project)
        architecture = bodies.ARCHITECTURES[section.architecture]
        if boot_image.architecture not in ("", "ARCHITECTURE_UNSPECIFIED", architecture):
            raise RequestError(
                f"secondary_boot_disk.boot_image_family {section.boot_image_family} is for {boot_image.architecture}, "
                f"and {section.machine_type} is {architecture}: name another, like debian-13-arm64"
            )
        unpacked = {chain: size for image in images for chain, size in registry.unpacked_bytes(image).items()}
        disk_gb = section.disk_size_gb or room.size_gb(unpacked)
        return Bake(self._settings, self._run_id, self._name, images, disk_gb, boot_image, self._pace.heartbeat)

    def _make(self, wanted: Bake) -> None:
        """Has a machine unpack the images onto its disk, and makes the image of that."""
        machine = self._machine()
        if machine:
            self._say(f"machine {machine.name} in {machine.zone} is at work already: going on with it")
        else:
            # One that is off may have been stopped by anybody.
            disk_images.clear(self._compute, self._settings, self._run_id, self._say)
            machine = self._started(wanted)
        self._follow(machine, wanted)
        stop = partial(self._compute.stop_machine, machine)
        carry_out(stop, self._run_id, "stop", machine.id, seconds=self._pace.start)
        self._say(f"making disk image {self._name} of {wanted.disk_gb} GB")
        make = partial(self._compute.make_image, bodies.image(wanted, machine.zone))
        left = max(self._pace.look, self._ends - time.monotonic())
        carry_out(make, self._run_id, "image", machine.id, seconds=left)

    def _machine(self) -> Machine | None:
        """The machine that this run has started, if it runs."""
        mine = {names.RUN_OF_COMPUTE: self._run_id, names.BAKE: self._name}
        for machine in self._compute.machines(names.PLACE, names.place_label(self._settings)):
            if machine.status in _RUNS and mine.items() <= machine.labels.items():
                return machine
        return None

    def _started(self, wanted: Bake) -> Machine:
        """A new machine, in the first zone that has one. Raises InconclusiveError when none has one now, RequestError
        when none ever has."""
        kind = self._section.machine_type
        zones = room.zones(self._compute, self._section, self._settings.location, wanted.disk_gb)
        another_day = False
        for zone in zones:
            try:
                machine = self._started_in(zone, wanted)
            except (StockOutError, NotOfferedError) as error:
                self._say(f"{error}. Trying the next zone")
                another_day |= isinstance(error, StockOutError)
                continue
            self._say(f"machine {machine.name} ({kind}, a disk of {wanted.disk_gb} GB) started in {zone}")
            return machine
        if not another_day:
            raise RequestError(
                f"there is no {kind} in {', '.join(zones)}: see `gcloud compute machine-types list --project "
                f"{self._compute.project}`, and set secondary_boot_disk.machine_type or zones"
            )
        raise InconclusiveError(
            f"no zone has a {kind} to give now ({', '.join(zones)}). Run again later, or set "
            "secondary_boot_disk.machine_type or zones"
        )

    def _started_in(self, zone: str, wanted: Bake) -> Machine:
        make = partial(self._compute.make_machine, zone, bodies.machine(wanted, zone))
        try:
            machine: Machine = carry_out(
                make, self._run_id, "machine", zone, seconds=self._pace.start, found=self._machine
            )
        except GoneError as error:
            raise RequestError(
                f"{error}. See secondary_boot_disk.network in the settings (without it a machine is in the project's "
                "default one, which many projects have not), subnetwork, service_account and kms_key"
            ) from error
        except TakenError as error:
            raise RequestError(
                f"{error}. Nothing of this deployment is called so: see whose it is (`gcloud compute instances list "
                f"--filter=name~{self._name} --project {self._compute.project}`), and delete it"
            ) from error
        return machine

    def _follow(self, machine: Machine, wanted: Bake) -> None:
        """Returns when the machine's script has said that the disk is done.

        Raises InconclusiveError when the script gives up, when it says nothing for too long, and when the time is up.
        """
        serial, position, heard, told, refusal = Serial(), 0, time.monotonic(), "", ""
        where, pause = f"machine {machine.name} in {machine.zone}", min(1.0, self._pace.look)
        while True:
            heartbeats = serial.heartbeats
            try:
                text, position = self._compute.serial_output(machine, position)
                serial.take(text)
            except GoneError as error:
                raise InconclusiveError(
                    f"{where} is gone before it was done: somebody deleted it, or Compute Engine did when "
                    f"secondary_boot_disk.timeout was over. Run again. Its last lines:\n{serial.tail}"
                ) from error
            except InconclusiveError as error:
                refusal = f" ({error})"  # It is not on yet, or not any more.
            if serial.done:
                return
            if serial.failed:
                raise InconclusiveError(f"{where} could not bake {self._name}: {_why(serial, wanted.disk_gb)}")
            if serial.words and (line := f"{serial.percent} %: {serial.words}") != told:
                self._say(line)
                told = line
            now = time.monotonic()
            if serial.heartbeats > heartbeats:
                heard = now
            if now - heard > self._pace.silence:
                raise InconclusiveError(
                    f"{where} has said nothing for {self._pace.silence:.0f} s{refusal}: it did not start, hangs, or "
                    "has no python3. Run again, or look at secondary_boot_disk.boot_image_family. Its last lines:\n"
                    f"{serial.tail}"
                )
            if now > self._ends:
                raise InconclusiveError(
                    f"{where} is not done after secondary_boot_disk.timeout ({self._section.timeout}): raise it, or "
                    f"set a machine_type with more processors. Its last lines:\n{serial.tail}"
                )
            time.sleep(pause)
            pause = min(2 * pause, self._pace.look)  # What is small is done soon.


def _why(serial: Serial, disk_gb: int) -> str:
    is_full = "disk is full" in serial.failed
    cure = f" (it has {disk_gb} GB: set secondary_boot_disk.disk_size_gb)" if is_full else ""
    return f"{serial.failed}{cure}. Its last lines:\n{serial.tail}"


def _undisturbed(work: Callable[[], None]) -> None:
    """A process is told to end once: what that interrupts is done again."""
    try:
        work()
    except ToldToEnd:
        work()
        raise
