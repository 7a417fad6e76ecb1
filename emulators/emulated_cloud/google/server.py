"""All of Google's APIs but storage on the wire: a connection, and who is at its other end."""

from __future__ import annotations

from pathlib import Path

from emulated_cloud.google import metadata, routes
from emulated_cloud.google.aiplatform import AiPlatform
from emulated_cloud.google.aiplatform.resources import time_of, timestamp
from emulated_cloud.google.artifactregistry import ArtifactRegistry
from emulated_cloud.google.cloudbuild import CloudBuild
from emulated_cloud.google.compute import Compute
from emulated_cloud.google.config import Config
from emulated_cloud.google.container import Container
from emulated_cloud.google.errors import unauthenticated
from emulated_cloud.google.iam import Iam
from emulated_cloud.google.policies import Policies
from emulated_cloud.google.secretmanager import SecretManager
from emulated_cloud.google.serviceusage import ServiceUsage
from emulated_cloud.http import EmulatorServer, Handler


class GoogleServer(EmulatorServer):
    """The APIs on the wire."""

    def __init__(self, address: tuple[str, int], config: Config, request_log: Path | None = None):
        self.config = config
        super().__init__(address, GoogleHandler, request_log)
        self.compute = Compute(config, config.compute, self.faults) if config.compute else None
        self.usage, iam, secrets = ServiceUsage(config), Iam(config), SecretManager(config)
        self.aiplatform: AiPlatform | None = None
        if config.aiplatform:
            self.aiplatform = AiPlatform(config, config.aiplatform, self.faults, iam, self.url.removeprefix("http://"))
        repositories = ArtifactRegistry(config, self.faults)
        policies = Policies(config, iam, secrets, repositories)
        self.cloudbuild = (
            CloudBuild(config, config.cloudbuild, self.faults, iam, policies) if config.cloudbuild else None
        )
        # Vertex AI and GKE let through what they do not know of the operations of a location, which others have, too.
        gke = Container(config, self.faults)
        services = (
            self.aiplatform,
            gke,
            self.cloudbuild,
            policies,
            self.usage,
            iam,
            secrets,
            repositories,
            self.compute,
        )
        self.apis = (*routes.APIS, *(service.answer for service in services if service))

    def server_close(self) -> None:
        super().server_close()
        if self.aiplatform:
            self.aiplatform.close()
        if self.cloudbuild:
            self.cloudbuild.close()
        if self.compute:
            self.compute.close()


class GoogleHandler(Handler):
    server: GoogleServer

    def user(self) -> str:
        """The service account, for who has its token."""
        config = self.server.config
        return config.service_account if self.bearer_token() == config.token else "anonymous"

    def admin(self) -> None:
        """`/_emulator/clock`: the time that Vertex AI's schedules see (aiplatform/__init__.py)."""
        if self.url_path != "/_emulator/clock" or not (service := self.server.aiplatform):
            return super().admin()
        if self.command == "POST":
            service.ticking.move_to(time_of(self.read_json().get("time"), "time"))
        return self.send_json({"time": timestamp(service.clock.now())})

    def route(self, method: str) -> None:
        config = self.server.config
        if routes.is_metadata(self.url_path):
            flavor = self.headers.get("Metadata-Flavor")
            status, kind, body = metadata.answer(metadata.tree(config), self.url_path, self.query, flavor)
            return self.send(status, body, {**metadata.HEADERS, "Content-Type": kind})
        call = routes.call_of(self, config)
        if self.user() != config.service_account:
            raise unauthenticated(with_credentials="Authorization" in self.headers)
        self.server.usage.check(call)
        return self.send_json(routes.answer(call, self.server.apis))
