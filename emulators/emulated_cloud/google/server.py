"""All of Google's APIs but storage on the wire: a connection, and who is at its other end."""

from __future__ import annotations

from pathlib import Path

from emulated_cloud.google import metadata, routes
from emulated_cloud.google.config import Config
from emulated_cloud.google.errors import unauthenticated
from emulated_cloud.http import EmulatorServer, Handler


class GoogleServer(EmulatorServer):
    """The APIs on the wire."""

    def __init__(self, address: tuple[str, int], config: Config, request_log: Path | None = None):
        self.config = config
        super().__init__(address, GoogleHandler, request_log)


class GoogleHandler(Handler):
    server: GoogleServer

    def user(self) -> str:
        """The service account, for who has its token."""
        config = self.server.config
        return config.service_account if self.bearer_token() == config.token else "anonymous"

    def route(self, method: str) -> None:
        config = self.server.config
        if routes.is_metadata(self.url_path):
            flavor = self.headers.get("Metadata-Flavor")
            status, kind, body = metadata.answer(config, self.url_path, self.query, flavor)
            headers = {"Content-Type": kind, "Metadata-Flavor": "Google", "Server": "Metadata Server for VM"}
            return self.send(status, body, headers)
        call = routes.call_of(method, self.segments(), self.query, config)
        if self.user() != config.service_account:
            raise unauthenticated(with_credentials="Authorization" in self.headers)
        return self.send_json(routes.answer(call))
