"""Artifact Registry, version 1: images that are kept warm for nodes that stream them.

Every repository of our project is there, with every image (registry/ has their bytes); what is asked for is warm at
once, for its days, unless a test scripts what becomes of the request (faults.py, `outcome`): `hold` until the script is
replaced, or an `error`, a google.rpc.Status.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import unquote

from emulated_cloud.faults import Fault, Faults
from emulated_cloud.google.call import Call
from emulated_cloud.google.errors import permission_denied, refusal

DAYS = 3
"""How long an image stays warm unless the caller says otherwise."""
_ANSWER = "type.googleapis.com/google.devtools.artifactregistry.v1.PrewarmArtifactResponse"
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
    """What is warm, by its repository and address, and the operations that made it so."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
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
                if call.resource in self._operations:
                    return self._operation(call.resource)
                raise refusal("NOT_FOUND", f"Operation {call.resource} not found.")
        return None

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
