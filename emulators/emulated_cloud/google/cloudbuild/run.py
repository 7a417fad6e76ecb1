"""One build, from its source to its images."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
import tempfile
import threading
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from emulated_cloud.faults import Fault
from emulated_cloud.google.cloudbuild import dockerfile
from emulated_cloud.registry.images import Images

if TYPE_CHECKING:
    from emulated_cloud.google.cloudbuild.service import CloudBuild

ENDED = ("SUCCESS", "FAILURE", "INTERNAL_ERROR", "TIMEOUT", "CANCELLED", "EXPIRED")
_READERS = (
    "roles/storage.objectViewer",
    "roles/storage.objectUser",
    "roles/storage.objectAdmin",
    "roles/storage.admin",
)
_WRITERS = ("roles/artifactregistry.writer", "roles/artifactregistry.repoAdmin", "roles/artifactregistry.admin")
_LOGGERS = ("roles/logging.logWriter", "roles/logging.admin")


class _Failed(Exception):
    """The build fails: the kind of failure, and what is said of it."""

    def __init__(self, kind: str, detail: str):
        super().__init__(detail)
        self.kind = kind


class Run:
    """A build at work. `fault`: what a test has scripted to come of it."""

    def __init__(self, service: CloudBuild, build: dict[str, Any], fault: Fault | None):
        self._service, self._build, self._fault = service, build, fault
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._member = f"serviceAccount:{build['serviceAccount'].rpartition('/')[2]}"
        self._cancelled = threading.Event()

    def work(self) -> None:
        """The whole of it; a thread's."""
        folder = Path(tempfile.mkdtemp(prefix="build-"))
        try:
            self._change(status="WORKING", startTime=_now())
            self._demand_log()
            source = self._fetched()
            with tarfile.open(fileobj=io.BytesIO(source), mode="r:*") as tar:
                tar.extractall(folder, filter="data")
            self._act_out()
            for number, step in enumerate(self._build["steps"]):
                self._step(number, step, folder)
            self._command(folder)
            images = [self._pushed(name, source) for name in self._build.get("images", [])]
            self._end("SUCCESS", results={"images": images})
        except _Failed as failure:
            self._print(f"ERROR: {failure}")
            self._end("FAILURE", failureInfo={"type": failure.kind, "detail": str(failure)})
        except (OSError, tarfile.TarError) as error:
            self._end("INTERNAL_ERROR", statusDetail=str(error))
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def cancel(self) -> None:
        self._cancelled.set()
        self._end("CANCELLED")
        self.stop()

    def stop(self) -> None:
        """Ends what it runs."""
        if self._process and self._process.poll() is None:
            self._process.kill()

    # -- its parts --------------------------------------------------------------------------------------------

    def _demand_log(self) -> None:
        project = f"projects/{self._service.config.project_id}"
        if not any(self._service.policies.gives(project, role, self._member) for role in _LOGGERS):
            raise _Failed("LOGGING_FAILURE", f"{self._member} does not have logging.logEntries.create on {project}")

    def _fetched(self) -> bytes:
        source = self._build["source"]["storageSource"]
        bucket = f"{self._service.cloudbuild.storage}/storage/v1/b/{source['bucket']}"
        try:
            policy = json.loads(self._read(f"{bucket}/iam"))
            given = {each["role"] for each in policy.get("bindings", []) if self._member in each["members"]}
            if not given.intersection(_READERS):
                words = f"{self._member} does not have storage.objects.get access to the Google Cloud Storage object."
                raise _Failed("FETCH_SOURCE_FAILED", words)
            generation = f"&generation={source['generation']}" if source.get("generation") else ""
            return self._read(f"{bucket}/o/{quote(source['object'], safe='')}?alt=media{generation}")
        except urllib.error.HTTPError as error:
            words = f"could not fetch gs://{source['bucket']}/{source['object']}: {error}"
            raise _Failed("FETCH_SOURCE_FAILED", words) from None

    def _read(self, url: str) -> bytes:
        headers = {"Authorization": f"Bearer {self._service.config.token}"}
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as answer:  # noqa: S310
            found: bytes = answer.read()
            return found

    def _act_out(self) -> None:
        """What a test has scripted."""
        if not self._fault:
            return
        faults, outcome = self._service.faults, self._fault.outcome
        for line in outcome.get("log", []):
            self._print(line, "Step #0")
        faults.consume(self._fault)
        if outcome.get("hold"):
            faults.wait_until_replaced(self._fault)
        if outcome.get("status"):
            raise _Failed(outcome.get("type", "USER_BUILD_STEP"), outcome.get("detail", "build step 0 failed"))

    def _step(self, number: int, step: dict[str, Any], folder: Path) -> None:
        label = f"Step #{number}"
        self._print(f"Starting {label}", label)
        args = step.get("args", [])
        if args[:1] == ["build"] and "docker" in step["name"]:
            try:
                for line in dockerfile.checked(args[1:], folder / step.get("dir", "")):
                    self._print(line, label)
            except dockerfile.CannotBuild as error:
                self._print(str(error), label)
                words = f'build step {number} "{step["name"]}" failed: step exited with non-zero status: 1'
                raise _Failed("USER_BUILD_STEP", words) from None
        else:
            self._print(f"(not run here: {step['name']} {' '.join(args)})", label)
        self._print(f"Finished {label}", label)

    def _command(self, folder: Path) -> None:
        """What the configuration has in the place of the steps."""
        wanted = self._service.cloudbuild
        if not wanted.command:
            return
        self._process = subprocess.Popen(
            wanted.command,
            cwd=folder,
            env=wanted.environment or None,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        )
        assert self._process.stdout
        for line in self._process.stdout:
            self._print(line.rstrip("\n"), "Step #0")
        if code := self._process.wait():
            name = self._build["steps"][0]["name"]
            words = f'build step 0 "{name}" failed: step exited with non-zero status: {code}'
            raise _Failed("USER_BUILD_STEP", words)

    def _pushed(self, name: str, source: bytes) -> dict[str, Any]:
        """The image, in Artifact Registry."""
        config = self._service.config
        image, _, tag = name.partition(":")
        host, project, repository, *path = image.split("/")
        location = host.removesuffix("-docker.pkg.dev")
        resource = f"projects/{config.project_id}/locations/{location}/repositories/{repository}"
        if project != config.project_id or not self._service.policies.has(resource):
            raise _Failed(
                "PUSH_IMAGE_NOT_FOUND", f'failed to push {name}: name unknown: Repository "{repository}" not found'
            )
        if not any(self._service.policies.gives(resource, role, self._member) for role in _WRITERS):
            permission = "artifactregistry.repositories.uploadArtifacts"
            raise _Failed("PUSH_NOT_AUTHORIZED", f"failed to push {name}: denied: Permission '{permission}' denied")
        if self._cancelled.is_set():
            raise _Failed("USER_BUILD_STEP", "cancelled")
        pushed = "/".join((project, repository, *path))
        digest = Images(Path(config.registry)).push(pushed, [tag or "latest"], _unpacked(source))
        self._print(f"{tag or 'latest'}: digest: {digest} size: 1")
        return {"name": name, "digest": digest}

    # -- what is seen of it -----------------------------------------------------------------------------------

    def _change(self, **fields: Any) -> None:
        with self._lock:
            if self._build["status"] not in ENDED:
                self._build = {**self._build, **fields}
                self._service.store.put(self._build["name"], self._build)

    def _end(self, status: str, **fields: Any) -> None:
        self._change(status=status, finishTime=_now(), **fields)

    def _print(self, line: str, step: str = "MAIN") -> None:
        """A line in Cloud Logging."""
        config = self._service.config
        if not config.logs or self._build.get("options", {}).get("logging") == "NONE":
            return
        labels = {"build_id": self._build["id"], "project_id": config.project_id, "build_trigger_id": ""}
        entry = {
            "logName": f"projects/{config.project_id}/logs/cloudbuild",
            "resource": {"type": "build", "labels": labels},
            "timestamp": _now(),
            "severity": "INFO",
            "labels": {"build_step": step},
            "textPayload": line if step == "MAIN" else f"{step}: {line}",
        }
        with open(config.logs, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def _unpacked(source: bytes) -> bytes:
    """The tar in the source, however it is packed."""
    import gzip

    return gzip.decompress(source) if source[:2] == b"\x1f\x8b" else source


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
