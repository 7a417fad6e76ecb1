"""Who may pull what: tokens of the registry's own, the access token of a service account, signed links."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass

TOKEN_SECONDS = 300
ANONYMOUS, SERVICE_ACCOUNT = "anonymous", "service account"


@dataclass(frozen=True)
class _Given:
    """A token of the registry's: whose it is, what it is for, and until when (monotonic)."""

    user: str
    repository: str
    until: float


class Access:
    """`token` is the service account's; a repository that one of `private` matches is for it alone. A token to pull
    with lives for `seconds`."""

    def __init__(self, token: str, private: Iterable[str], seconds: float = TOKEN_SECONDS):
        self._token, self._private, self.seconds = token, list(private), seconds
        self._key = secrets.token_bytes(32)
        self._given: dict[str, _Given] = {}
        self._lock = threading.Lock()

    def give(self, authorization: str | None, repository: str) -> str:
        """A token to pull from a repository, whoever asks; what it opens depends on who did."""
        token = secrets.token_urlsafe(24)
        given = _Given(self.user(authorization) or ANONYMOUS, repository, time.monotonic() + self.seconds)
        with self._lock:
            self._given[token] = given
        return token

    def user(self, authorization: str | None) -> str:
        """`service account`, `anonymous` with a token of the registry's, or nobody (empty)."""
        kind, _, value = (authorization or "").partition(" ")
        if kind.lower() == "basic":
            name, _, value = base64.b64decode(value).decode(errors="replace").partition(":")
            return SERVICE_ACCOUNT if self._is_ours(value) and name == "oauth2accesstoken" else ""
        if kind.lower() != "bearer":
            return ""
        if self._is_ours(value):
            return SERVICE_ACCOUNT
        given = self._given.get(value)
        return given.user if given and time.monotonic() < given.until else ""

    def may_pull(self, authorization: str | None, repository: str) -> bool:
        user = self.user(authorization)
        given = self._given.get((authorization or "").partition(" ")[2])
        if given and given.repository != repository:
            return False
        return user == SERVICE_ACCOUNT or (user == ANONYMOUS and not self.is_private(repository))

    def is_private(self, repository: str) -> bool:
        return any(re.fullmatch(pattern, repository) for pattern in self._private)

    def sign(self, path: str) -> str:
        return hmac.new(self._key, path.encode(), hashlib.sha256).hexdigest()

    def _is_ours(self, value: str) -> bool:
        return bool(self._token) and hmac.compare_digest(value.encode(), self._token.encode())
