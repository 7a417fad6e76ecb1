"""What HTTPS listeners show: the certificates of Secrets, or for names of certificates in Google's cloud one that the
cluster's own authority signs."""

from __future__ import annotations

import base64
import binascii
import hashlib
from pathlib import Path

from emulated_cloud.gateway.resources import Object
from emulated_cloud.kubernetes import tls
from emulated_cloud.kubernetes.client import ApiError, Client
from emulated_cloud.kubernetes.resources import SECRETS


async def problems(gateway: Object, client: Client) -> tuple[dict[str, str], dict[str, Object]]:
    """What is wrong with the Secrets that a Gateway's listeners name, and those that are right; by `namespace/name`."""
    namespace = gateway["metadata"]["namespace"]
    bad: dict[str, str] = {}
    good: dict[str, Object] = {}
    for listener in gateway["spec"]["listeners"]:
        for ref in (listener.get("tls") or {}).get("certificateRefs") or []:
            key = f"{namespace}/{ref['name']}"
            try:
                secret = await client.get(SECRETS, ref["name"], namespace)
                _pair(secret)
            except ApiError as error:
                if error.status != 404:
                    raise
                bad[key] = f"invalid certificate reference: secret {key} not found"
            except (KeyError, binascii.Error):
                bad[key] = f"invalid certificate reference: secret {key} has no tls.crt and tls.key"
            else:
                good[key] = secret
    return bad, good


def write(
    secrets: dict[str, Object], folder: Path, authority: Path | None, names: list[str]
) -> list[tuple[Path, Path]]:
    """The files of a Gateway's certificates, of each the chain and its key: those of Secrets, or else one for `names`
    that the authority in the folder signs (or one of its own, if there is none)."""
    if not secrets:
        of_names = hashlib.sha256(" ".join(names).encode()).hexdigest()[:12]
        chain, key = folder / f"{of_names}.pem", folder / f"{of_names}.key"
        if not chain.exists():
            tls.issue(authority or folder / "authority", names, chain, key)
        return [(chain, key)]
    found = []
    for secret in secrets.values():
        chain_data, key_data = _pair(secret)
        name = hashlib.sha256(chain_data + key_data).hexdigest()[:12]
        chain, key = folder / f"{name}.pem", folder / f"{name}.key"
        chain.write_bytes(chain_data)
        tls.write_private(key, key_data)
        found.append((chain, key))
    return found


def _pair(secret: Object) -> tuple[bytes, bytes]:
    """Raises KeyError, binascii.Error."""
    data = secret.get("data") or {}
    return base64.b64decode(data["tls.crt"], validate=True), base64.b64decode(data["tls.key"], validate=True)
