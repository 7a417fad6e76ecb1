"""All of Google's APIs but storage on the wire: a connection, and who is at its other end."""

from __future__ import annotations

from pathlib import Path

from emulated_cloud.google import metadata, routes
from emulated_cloud.google.artifactregistry import ArtifactRegistry
from emulated_cloud.google.compute import Compute
from emulated_cloud.google.config import Config
from emulated_cloud.google.errors import unauthenticated
from emulated_cloud.http import EmulatorServer, Handler


class GoogleServer(EmulatorServer):
    """The APIs on the wire."""

    def __init__(self, address: tuple[str, int], config: Config, request_log: Path | None = None):
        self.config = config
        super().__init__(address, GoogleHandler, request_log)
        self.compute = Compute(config, config.compute, self.faults) if config.compute else None
        self.apis = (
            *routes.APIS,
            ArtifactRegistry(self.faults).answer,
            *([self.compute.answer] if self.compute else []),
        )

    def server_close(self) -> None:
        super().server_close()
        if self.compute:
            self.compute.close()


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
            status, kind, body = metadata.answer(metadata.tree(config), self.url_path, self.query, flavor)
            return self.send(status, body, {**metadata.HEADERS, "Content-Type": kind})
        call = routes.call_of(self, config)
        if self.user() != config.service_account:
            raise unauthenticated(with_credentials="Authorization" in self.headers)
        return self.send_json(routes.answer(call, self.server.apis))
