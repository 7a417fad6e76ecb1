"""Who may read what: tokens, gates, and the signatures of links to the CDN."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from emulated_cloud.hub import errors

SIGNATURE_SECONDS = 3600


class Access:
    """gated: repository ids whose files only users with a grant may read. tokens: a JSON file `{token: {"user": name,
    "granted": [repo ids]}}`, read at each request; without it no token is valid. signature_seconds: how long a link
    to the CDN lives."""

    def __init__(self, gated: Iterable[str], tokens: Path | None, signature_seconds: float):
        self.gated, self.signature_seconds = set(gated), signature_seconds
        self._tokens, self._key = tokens, secrets.token_bytes(32)

    def entry(self, authorization: str | None) -> dict[str, Any] | None:
        """What is known of a caller by the Authorization header; None: anonymous. Raises HubError 401."""
        if not authorization:
            return None
        tokens = json.loads(self._tokens.read_bytes()) if self._tokens else {}
        try:
            return tokens[authorization.removeprefix("Bearer ").strip()]
        except KeyError:
            raise errors.bad_token() from None

    def sign(self, path: str, expires: int) -> str:
        return hmac.new(self._key, f"{path}\n{expires}".encode(), hashlib.sha256).hexdigest()
