"""The metadata server of a machine that runs as the service account.

Facts: cloud.google.com/compute/docs/metadata/querying-metadata (the header, directory listings, `recursive`), and
google.auth.compute_engine._metadata for what is asked.
"""

from __future__ import annotations

import json
import re
from typing import Any

from emulated_cloud.google.config import Config

SCOPES = ["https://www.googleapis.com/auth/cloud-platform"]
TOKEN_SECONDS = 3599

HEADERS = {"Metadata-Flavor": "Google", "Server": "Metadata Server for VM"}

# (status, content type, body)
Reply = tuple[int, str, str]


def answer(machine: dict[str, Any], path: str, query: dict[str, str], flavor: str | None) -> Reply:
    """The answer to a request for `/` or below `/computeMetadata/v1/` on the machine that the tree is of; `flavor` is
    its Metadata-Flavor header."""
    if path == "/":
        return _text("computeMetadata/\n")
    if flavor != "Google":
        return 403, "text/html; charset=UTF-8", "Missing Metadata-Flavor:Google header."
    below = path.removeprefix("/computeMetadata/v1").strip("/")
    value: Any = machine
    for segment in below.split("/") if below else []:
        if not isinstance(value, dict) or segment not in value:
            return 404, "text/html; charset=UTF-8", "The requested URL was not found on this server."
        value = value[segment]
    if below.endswith("/token"):
        return 200, "application/json", json.dumps(value)
    if query.get("recursive", "").lower() == "true" and query.get("alt") != "text":
        return 200, "application/json", json.dumps(recursive(value))
    if isinstance(value, dict):
        return _text("".join(f"{key}/\n" if isinstance(inner, dict) else f"{key}\n" for key, inner in value.items()))
    return _text("\n".join(value) if isinstance(value, list) else value)


def tree(config: Config, service_account: str | None = None) -> dict[str, Any]:
    """What there is to know on a machine that runs as `service_account`, the caller's own unless said otherwise; as
    none with ""."""
    email = config.service_account if service_account is None else service_account
    account = {
        "aliases": ["default"],
        "email": email,
        "scopes": SCOPES,
        "token": {"access_token": config.token, "expires_in": TOKEN_SECONDS, "token_type": "Bearer"},
    }
    return {
        "instance": {
            "attributes": _attributes(config),
            "service-accounts": {"default": account, email: account} if email else {},
        },
        "project": {"numeric-project-id": config.project_number, "project-id": config.project_id},
        "universe": {"universe-domain": "googleapis.com"},
    }


def _attributes(config: Config) -> dict[str, Any]:
    """What GKE says on a node of the cluster."""
    return {
        name: value
        for cluster in config.clusters[:1]
        for name, value in (("cluster-location", cluster.location), ("cluster-name", cluster.name))
    }


def recursive(value: Any) -> Any:
    """A directory as one JSON document: keys in camel case, the project's number a number, and no token."""
    if not isinstance(value, dict):
        return value
    return {
        re.sub(r"-(\w)", lambda found: found[1].upper(), key) if "@" not in key else key: (
            int(inner) if key == "numeric-project-id" else recursive(inner)
        )
        for key, inner in value.items()
        if key != "token"
    }


def _text(body: str) -> Reply:
    return 200, "application/text", body
