"""The hub on the wire: a connection, who is at its other end, and how it is refused."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from emulated_cloud.http import EmulatorServer, Handler
from emulated_cloud.hub import routes
from emulated_cloud.hub.access import SIGNATURE_SECONDS, Access
from emulated_cloud.hub.errors import HubError


class HubServer(EmulatorServer):
    """Serves the repositories below `root`, to whom access.Access lets them be read."""

    def __init__(
        self,
        address: tuple[str, int],
        root: Path | str,
        *,
        gated: Iterable[str] = (),
        tokens: Path | None = None,
        signature_seconds: float = SIGNATURE_SECONDS,
        request_log: Path | None = None,
    ):
        self.root, self.access = Path(root), Access(gated, tokens, signature_seconds)
        super().__init__(address, HubHandler, request_log)


class HubHandler(Handler):
    """One connection to the hub or to its CDN."""

    server: HubServer

    def user(self) -> str:
        try:
            entry = self.server.access.entry(self.headers.get("Authorization"))
        except HubError:
            return "invalid"
        return entry["user"] if entry else "anonymous"

    def logged_path(self) -> str:
        """Without the signature: whoever has it may read the file."""
        return re.sub(r"(?<=[?&]Signature=)[^&]*", "…", self.path)

    def route(self, method: str) -> None:
        try:
            routes.answer(self, self.server.root, self.server.access)
        except HubError as error:
            raise error.answer(as_json=self.url_path.startswith("/api/")) from None
