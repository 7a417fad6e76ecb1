"""Secret Manager: making secrets. Reading them is serving/clients/google.py's, in every step that needs one.

https://cloud.google.com/secret-manager/docs/reference/rest
"""

from __future__ import annotations

import base64

from serving.clients import google


def ensure(secret: str) -> bool:
    """Makes a secret without a value, `projects/P/secrets/S`, unless it is there: returns whether it did.

    Raises AccessError, RequestError, InconclusiveError, as everything here.
    """
    from google.api_core.exceptions import Conflict, NotFound

    parent, _, name = secret.rpartition("/")
    with google.refusals(secret):
        try:
            google.call("secretmanager", "GET", f"v1/{secret}")
        except NotFound:
            pass
        else:
            return False
        try:
            google.call("secretmanager", "POST", f"v1/{parent}?secretId={name}", {"replication": {"automatic": {}}})
        except Conflict:
            return False
        return True


def has_value(secret: str) -> bool:
    """Whether it has a version that can be read, without reading one."""
    with google.refusals(secret):
        page = google.call("secretmanager", "GET", f"v1/{secret}/versions?filter=state:ENABLED&pageSize=1")
    return bool(page.get("versions"))


def add_value(secret: str, value: str) -> None:
    """Makes the value the secret's newest version."""
    data = base64.b64encode(value.encode()).decode()
    with google.refusals(secret):
        google.call("secretmanager", "POST", f"v1/{secret}:addVersion", {"payload": {"data": data}})
