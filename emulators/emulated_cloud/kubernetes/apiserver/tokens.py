"""Who asks: static tokens of people and pipelines, and the tokens that service accounts are given."""

from __future__ import annotations

import csv
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from emulated_cloud.kubernetes.apiserver.store import Store
from emulated_cloud.kubernetes.tls import write_private

ISSUER = "https://kubernetes.default.svc.cluster.local"


@dataclass(frozen=True)
class User:
    """An authenticated caller."""

    name: str
    uid: str = ""
    groups: tuple[str, ...] = ()

    def as_info(self) -> dict[str, Any]:
        info: dict[str, Any] = {"username": self.name, "groups": [*self.groups, "system:authenticated"]}
        return {**info, "uid": self.uid} if self.uid else info


def read_token_file(path: Path) -> dict[str, User]:
    """Users by token, from kube-apiserver's `--token-auth-file` format: `token,user,uid,"group1,group2"`.

    Raises ValueError for a line with fewer than three columns.
    """
    users = {}
    with open(path, encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.reader(file), 1):
            if not row or row[0].lstrip().startswith("#"):
                continue
            if len(row) < 3:
                raise ValueError(
                    f"{path}:{number}: a token file needs token, user name and uid, found {len(row)} columns"
                )
            groups = tuple(group.strip() for group in row[3].split(",") if group.strip()) if len(row) > 3 else ()
            users[row[0].strip()] = User(row[1].strip(), row[2].strip(), groups)
    return users


def signing_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The key of service-account tokens, made on first start and kept in the one form in which the real server reads an
    EC key."""
    if not path.exists():
        made = ec.generate_private_key(ec.SECP256R1())
        write_private(path, made.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()))
    key = load_pem_private_key(path.read_bytes(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


class Tokens:
    """Authenticates bearer tokens and issues those of service accounts (JWT, ES256, the key kept in `key_file`)."""

    def __init__(self, static: dict[str, User], key_file: Path, store: Store):
        self._static, self._store = static, store
        self._key = signing_key(key_file)

    def authenticate(self, token: str) -> User | None:
        """The caller; None when nobody has this token, or not any longer."""
        return self._static.get(token) or self._service_account(token)

    def issue(self, account: dict[str, Any], request: dict[str, Any]) -> tuple[str, float]:
        """A token for a ServiceAccount as a TokenRequest's `spec` asks for it, and when it runs out (Unix time)."""
        metadata, now = account["metadata"], int(time.time())
        expires = now + max(600, int(request.get("expirationSeconds") or 3600))
        bound: dict[str, Any] = {
            "namespace": metadata["namespace"],
            "serviceaccount": {"name": metadata["name"], "uid": metadata["uid"]},
        }
        reference = request.get("boundObjectRef") or {}
        if reference.get("kind") in ("Pod", "Secret", "Node"):
            bound[reference["kind"].lower()] = {"name": reference.get("name"), "uid": reference.get("uid")}
        claims = {
            "aud": request.get("audiences") or [ISSUER],
            "exp": expires,
            "iat": now,
            "nbf": now,
            "iss": ISSUER,
            "jti": str(uuid.uuid4()),
            "kubernetes.io": bound,
            "sub": f"system:serviceaccount:{metadata['namespace']}:{metadata['name']}",
        }
        return jwt.encode(claims, self._key, "ES256"), expires

    def _service_account(self, token: str) -> User | None:
        # A token dies with its time, with its account, and with the pod that it is bound to.
        try:
            claims = jwt.decode(token, self._key.public_key(), ["ES256"], audience=ISSUER, issuer=ISSUER)
        except jwt.InvalidTokenError:
            return None
        bound = claims["kubernetes.io"]
        namespace, named = bound["namespace"], bound["serviceaccount"]
        account = self._store.get(("", "serviceaccounts"), namespace, named["name"])
        if account is None or account["metadata"]["uid"] != named["uid"]:
            return None
        if "pod" in bound:
            pod = self._store.get(("", "pods"), namespace, bound["pod"]["name"])
            if pod is None or pod["metadata"]["uid"] != bound["pod"]["uid"]:
                return None
        groups = ("system:serviceaccounts", f"system:serviceaccounts:{namespace}")
        return User(claims["sub"], named["uid"], groups)
