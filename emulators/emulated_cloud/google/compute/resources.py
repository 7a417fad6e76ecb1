"""The shapes of what Compute Engine shows."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
from datetime import UTC, datetime
from typing import Any

from emulated_cloud.google.compute import errors

ROOT = "https://www.googleapis.com/compute/v1/"
NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
LABEL = re.compile(r"[a-z][-_a-z0-9]{0,62}"), re.compile(r"[-_a-z0-9]{0,63}")


def link(project: str, path: str) -> str:
    return f"{ROOT}projects/{project}/{path}" if path else f"{ROOT}projects/{project}"


def path_of(reference: str, project: str) -> tuple[str, str]:
    """Project and path of a resource that is named by its whole link, without the host, or below our project."""
    below = re.sub(r"^https?://[^/]+/compute/v1/", "", reference)
    found = re.fullmatch(r"projects/([^/]+)/(.+)", below)
    return (found[1], found[2]) if found else (project, below)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def new_id() -> str:
    return str(random.getrandbits(63))


def fingerprint(value: Any) -> str:
    return base64.b64encode(hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()[:8]).decode()


def check_name(body: dict[str, Any]) -> str:
    """Raises HttpError for a name that is none."""
    name = body.get("name", "")
    if not NAME.fullmatch(name):
        why = f"Must be a match of regex '(?:{NAME.pattern})'"
        raise errors.invalid("resource.name", name, why)
    return name


def check_labels(labels: dict[str, str]) -> None:
    for key, value in labels.items():
        if not LABEL[0].fullmatch(key):
            raise errors.invalid("resource.labels", key, "Label keys: lowercase letters, numbers, _ and -, at most 63")
        if not LABEL[1].fullmatch(value):
            raise errors.invalid("resource.labels", value, "Label values: lowercase letters, numbers, _ and -")


def new(project: str, path: str, kind: str, body: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A resource as it was asked for, with what every new one has."""
    check_labels(body.get("labels") or {})
    given = {key: value for key, value in body.items() if value is not None}
    return {
        **given,
        "kind": f"compute#{kind}",
        "id": new_id(),
        "creationTimestamp": now(),
        "name": path.rpartition("/")[2],
        "selfLink": link(project, path),
        "labelFingerprint": fingerprint(body.get("labels") or {}),
        **fields,
    }


def encryption_key(given: dict[str, Any] | None) -> dict[str, Any] | None:
    """A key as it is shown: of a Cloud KMS key, the version that was used."""
    if not given or "kmsKeyName" not in given:
        return given
    name = given["kmsKeyName"]
    return {**given, "kmsKeyName": name if "/cryptoKeyVersions/" in name else f"{name}/cryptoKeyVersions/1"}


def listed(kind: str, project: str, path: str, items: list[dict[str, Any]], token: str = "") -> dict[str, Any]:
    answer: dict[str, Any] = {
        "kind": f"compute#{kind}List",
        "id": f"projects/{project}/{path}",
        "selfLink": link(project, path),
    }
    return answer | ({"items": items} if items else {}) | ({"nextPageToken": token} if token else {})


def aggregated(
    kind: str, project: str, collection: str, scopes: list[str], items: list[tuple[str, dict[str, Any]]], token: str
) -> dict[str, Any]:
    """Lists of all zones in one: of a zone that has nothing on this page, a warning."""
    by_scope: dict[str, Any] = {}
    for scope in scopes:
        found = [resource for path, resource in items if path.startswith(f"{scope}/")]
        by_scope[scope] = {collection: found} if found else {"warning": _nothing(scope)}
    answer = {
        "kind": f"compute#{kind}AggregatedList",
        "id": f"projects/{project}/aggregated/{collection}",
        "items": by_scope,
        "selfLink": link(project, f"aggregated/{collection}"),
    }
    return answer | ({"nextPageToken": token} if token else {})


def _nothing(scope: str) -> dict[str, Any]:
    return {
        "code": "NO_RESULTS_ON_PAGE",
        "message": f"There are no results for scope '{scope}' on this page.",
        "data": [{"key": "scope", "value": scope}],
    }
