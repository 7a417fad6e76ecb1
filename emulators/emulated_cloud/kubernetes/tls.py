"""Certificates of the cluster's servers, made on first start and kept with the server's state."""

from __future__ import annotations

import os
import ssl
from collections.abc import Sequence
from pathlib import Path

import trustme

API_SERVER = (
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
    "127.0.0.1",
    "10.96.0.1",
)
"""What an API server is reached by."""


def ensure(folder: Path, names: Sequence[str] = API_SERVER) -> ssl.SSLContext:
    """The context of a server of these names and addresses; `folder` then holds ca.crt, which clients trust, with its
    key, and tls.crt and tls.key."""
    certificate, key = folder / "tls.crt", folder / "tls.key"
    if not certificate.exists():
        folder.mkdir(parents=True, exist_ok=True)
        authority = trustme.CA(organization_name="emulated_cloud")
        made = authority.issue_cert(*names)
        write_private(key, made.private_key_pem.bytes())
        write_private(folder / "ca.key", authority.private_key_pem.bytes())
        authority.cert_pem.write_to_path(folder / "ca.crt")
        # Last, because it is what tells that the others are there.
        made.cert_chain_pems[0].write_to_path(certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


def issue(authority: Path, names: Sequence[str], certificate: Path, key: Path) -> None:
    """Writes another certificate by the authority of a folder (`ensure`), and its key; where there is none, by one that
    nobody trusts."""
    if (authority / "ca.key").exists():
        signer = trustme.CA.from_pem((authority / "ca.crt").read_bytes(), (authority / "ca.key").read_bytes())
    else:
        signer = trustme.CA(organization_name="emulated_cloud")
    made = signer.issue_cert(*names)
    write_private(key, made.private_key_pem.bytes())
    made.cert_chain_pems[0].write_to_path(certificate)


def write_private(path: Path, data: bytes) -> None:
    """Writes a file that only its owner may read."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
