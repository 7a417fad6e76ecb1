"""Artifact Registry, version 1: repositories, the tags and images in them, images that are kept warm for nodes that
stream them.

A repository is shown when it was made here; what is in it, registry/ has pushed or built (the configuration's
`registry` is its folder). Any other repository of our project has every image all the same, for who pulls or streams
it. What is to be kept warm is so at once, for its days, unless a test scripts what becomes of the request (faults.py,
`outcome`): `hold` until the script is replaced, or an `error`, a google.rpc.Status.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from emulated_cloud.faults import Fault, Faults
from emulated_cloud.google.access import allow
from emulated_cloud.google.call import Call
from emulated_cloud.google.config import Config
from emulated_cloud.google.errors import permission_denied, refusal
from emulated_cloud.google.store import Store
from emulated_cloud.registry.images import Images

DAYS = 3
"""How long an image stays warm unless the caller says otherwise."""
_V1 = "type.googleapis.com/google.devtools.artifactregistry.v1"
_ANSWER = f"{_V1}.PrewarmArtifactResponse"
_ARTIFACT = re.compile(r"(?P<parent>projects/.+)/packages/(?P<package>[^/]+)/(?P<kind>versions|tags)/(?P<name>[^/]+)")


@dataclass(frozen=True)
class _Warm:
    """An image that is kept warm, as it is shown but for its state, and what a test makes of it."""

    shown: dict[str, Any]
    fault: Fault | None

    @property
    def error(self) -> dict[str, Any]:
        return self.fault.outcome.get("error", {}) if self.fault else {}


class ArtifactRegistry:
    """Repositories, what is warm, by its repository and address, and the operations that made it so."""

    def __init__(self, config: Config, faults: Faults) -> None:
        self._config, self._faults = config, faults
        self._images = Images(Path(config.registry)) if config.registry else None
        self._repositories = Store(config.folder, "repositories")
        self._made: dict[str, dict[str, Any]] = {}
        self._warm: dict[str, dict[str, _Warm]] = {}
        self._operations: dict[str, _Warm] = {}

    def answer(self, call: Call) -> dict[str, Any] | None:
        if call.version != "v1":
            return None
        match call.method, call.path, call.verb:
            case "POST", ["projects", _, "locations", _, "repositories", _], "prewarmArtifact":
                return self._prewarm(call)
            case "POST", ["projects", _, "locations", _, "repositories", _], "checkPrewarmedArtifact":
                return self._check(call)
            case "GET", ["projects", _, "locations", _, "repositories", _, "prewarmedArtifacts"], "":
                _allow(call, "artifactregistry.prewarmedArtifacts.list")
                found = self._warm.get(call.resource.rpartition("/")[0], {})
                return {"prewarmedArtifacts": [self._artifact(warm) for warm in found.values()]} if found else {}
            case "GET", ["projects", _, "locations", _, "operations", _], "":
                if call.resource in self._made:
                    return {**self._made[call.resource], "done": True}
                if call.resource in self._operations:
                    return self._operation(call.resource)
                raise refusal("NOT_FOUND", f"Operation {call.resource} not found.")
            case "POST", ["projects", project, "locations", _, "repositories"], "":
                allow(call, "artifactregistry.repositories.create", call.resource.rpartition("/")[0], project)
                return self._create(call)
            case "GET", ["projects", project, "locations", _, "repositories"], "":
                allow(call, "artifactregistry.repositories.list", call.resource.rpartition("/")[0], project)
                there = self._repositories.below(self._ours(call))
                return {"repositories": there} if there else {}
            case "GET", ["projects", project, "locations", _, "repositories", _], "":
                allow(call, "artifactregistry.repositories.get", call.resource, project)
                return self._repository(call)
            case "GET", ["projects", project, "locations", _, "repositories", _, "packages", _, "tags", *_], "":
                allow(call, "artifactregistry.tags.get", "/".join(call.path[:6]), project)
                return self._tags(call)
            case "GET", ["projects", project, "locations", _, "repositories", _, "dockerImages"], "":
                allow(call, "artifactregistry.dockerimages.list", "/".join(call.path[:6]), project)
                images = self._docker_images(call)
                return {"dockerImages": images} if images else {}
        return None

    def exists(self, repository: str) -> bool:
        return self._repositories.get(repository) is not None

    def _ours(self, call: Call) -> str:
        """The name that is asked about, with the project's id."""
        return "/".join(["projects", self._config.project_id, *call.path[2:6]])

    def _create(self, call: Call) -> dict[str, Any]:
        repository_id, asked = call.query.get("repositoryId", ""), call.body
        if not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", repository_id):
            raise refusal("INVALID_ARGUMENT", f"Invalid repository ID {repository_id!r}.")
        if asked.get("format") not in ("DOCKER", "PYTHON", "GENERIC"):
            raise refusal("INVALID_ARGUMENT", f"Unsupported format: {asked.get('format')!r}.")
        name, now = f"{self._ours(call)}/{repository_id}", _time(datetime.now(UTC))
        with self._repositories.lock:
            if self.exists(name):
                raise refusal("ALREADY_EXISTS", "the repository already exists")
            location = call.path[3]
            uri = f"{location}-docker.pkg.dev/{self._config.project_id}/{repository_id}"
            more = {"name": name, "createTime": now, "updateTime": now, "registryUri": uri}
            self._repositories.put(name, {"mode": "STANDARD_REPOSITORY", **asked, **more})
        operation = f"projects/{self._config.project_id}/locations/{location}/operations/{uuid.uuid4()}"
        response = {"@type": f"{_V1}.Repository", **(self._repositories.get(name) or {})}
        self._made[operation] = {"name": operation, "response": response}
        return {"name": operation, "metadata": {"@type": f"{_V1}.OperationMetadata"}}

    def _repository(self, call: Call) -> dict[str, Any]:
        if not (found := self._repositories.get(self._ours(call))):
            raise refusal("NOT_FOUND", "Requested entity was not found.")
        return found

    def _path(self, call: Call, package: str) -> str:
        """A package's repository in the registry."""
        return f"{self._config.project_id}/{call.path[5]}/{package}"

    def _tags(self, call: Call) -> dict[str, Any]:
        """Those of a package, or one of them."""
        self._repository(call)
        package = call.path[7]
        parent = f"{self._ours(call)}/packages/{quote(package, safe='')}"
        there = self._images.tags(self._path(call, package)) if self._images else {}
        shown = {
            tag: {"name": f"{parent}/tags/{tag}", "version": f"{parent}/versions/{digest}"}
            for tag, digest in there.items()
        }
        if len(call.path) == 9:
            return {"tags": list(shown.values())} if shown else {}
        if call.path[9] not in shown:
            raise refusal("NOT_FOUND", "Requested entity was not found.")
        return shown[call.path[9]]

    def _docker_images(self, call: Call) -> list[dict[str, Any]]:
        repository = self._repository(call)
        found: dict[str, dict[str, Any]] = {}
        for package in self._images.below(self._path(call, "").rstrip("/")) if self._images else ():
            for tag, digest in self._images.tags(self._path(call, package)).items() if self._images else ():
                name = f"{quote(package, safe='')}@{digest}"
                image = found.setdefault(
                    name,
                    {
                        "name": f"{repository['name']}/dockerImages/{name}",
                        "uri": f"{repository['registryUri']}/{package}@{digest}",
                        "tags": [],
                        "mediaType": "application/vnd.oci.image.manifest.v1+json",
                    },
                )
                image["tags"].append(tag)
        return list(found.values())

    def _prewarm(self, call: Call) -> dict[str, Any]:
        _allow(call, "artifactregistry.prewarmedArtifacts.create")
        uri, now = _uri(call), datetime.now(UTC)
        shown = {
            "uri": uri,
            "location": call.body.get("streamLocation") or call.path[3],
            "createTime": _time(now),
            "expirationTime": _time(now + timedelta(days=int(call.body.get("retentionDays") or DAYS))),
        }
        warm = _Warm(shown, self._faults.take_outcome(call.method, f"/v1/{call.resource}:{call.verb}"))
        if warm.fault:
            self._faults.consume(warm.fault)
        name = f"projects/{call.path[1]}/locations/{call.path[3]}/operations/{uuid.uuid4()}"
        self._warm.setdefault(call.resource, {})[uri] = self._operations[name] = warm
        return self._operation(name)

    def _check(self, call: Call) -> dict[str, Any]:
        _allow(call, "artifactregistry.prewarmedArtifacts.get")
        uri = _uri(call)
        found = self._warm.get(call.resource, {}).get(uri)
        if not found:
            raise refusal("NOT_FOUND", f"Prewarmed artifact {uri} not found.")
        return {"prewarmedArtifact": self._artifact(found)}

    def _operation(self, name: str) -> dict[str, Any]:
        """As a long-running operation is shown: https://cloud.google.com/artifact-registry/docs/reference/rest"""
        artifact = self._artifact(warm := self._operations[name])
        match artifact["state"]:
            case "CACHING":
                return {"name": name}
            case "FAILED":
                return {"name": name, "done": True, "error": warm.error}
        return {"name": name, "done": True, "response": {"@type": _ANSWER, "prewarmedArtifact": artifact}}

    def _artifact(self, warm: _Warm) -> dict[str, Any]:
        if warm.fault and warm.fault.outcome.get("hold") and self._faults.is_scripted(warm.fault):
            return {**warm.shown, "state": "CACHING"}
        if warm.error:
            return {**warm.shown, "state": "FAILED", "errorMessage": warm.error["message"]}
        return {**warm.shown, "state": "ACTIVE"}


def _allow(call: Call, permission: str) -> None:
    repository = "/".join(call.path[:6])
    if not call.config.is_project(call.path[1]) or call.config.is_denied(repository):
        raise permission_denied(permission, repository)


def _uri(call: Call) -> str:
    """The address of the image that is asked about, by its `version` (a digest) or its `tag`."""
    given = call.body.get("version") or call.body.get("tag") or ""
    found = _ARTIFACT.fullmatch(given)
    if not found or found["parent"] != call.resource or (found["kind"] == "versions") != bool(call.body.get("version")):
        raise refusal("INVALID_ARGUMENT", f"Invalid version or tag of {call.resource}: {given!r}")
    separator = "@" if found["kind"] == "versions" else ":"
    place = f"{call.path[3]}-docker.pkg.dev/{call.path[1]}/{call.path[5]}"
    return f"{place}/{unquote(found['package'])}{separator}{found['name']}"


def _time(moment: datetime) -> str:
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
