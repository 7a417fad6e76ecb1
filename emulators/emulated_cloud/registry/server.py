"""The registry on the wire: a connection, and who is at its other end."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from emulated_cloud.http import EmulatorServer, Handler
from emulated_cloud.registry import routes
from emulated_cloud.registry.access import TOKEN_SECONDS, Access
from emulated_cloud.registry.images import Images


class RegistryServer(EmulatorServer):
    """Serves every image, to whom Access lets it be read."""

    def __init__(
        self,
        address: tuple[str, int],
        root: Path,
        *,
        token: str = "",
        private: Iterable[str] = (),
        absent: Iterable[str] = (),
        own: Iterable[str] = (),
        token_seconds: float = TOKEN_SECONDS,
        layers: int = 3,
        request_log: Path | None = None,
    ):
        self.images, self.access = Images(root, layers), Access(token, private, token_seconds)
        self._absent, self._own = list(absent), list(own)
        super().__init__(address, RegistryHandler, request_log)

    def is_absent(self, name: str) -> bool:
        """Whether an image is not there: somebody said so, or it is of a repository that has what was pushed alone, and
        this was not."""
        if any(re.fullmatch(pattern, name) for pattern in self._absent):
            return True
        repository, _, tag = name.partition(":")
        if not any(re.fullmatch(pattern, repository) for pattern in self._own):
            return False
        pushed = self.images.tags(repository)
        return tag not in pushed if tag else not pushed


class RegistryHandler(Handler):
    """One connection to the registry, to its tokens or to its blobs' host."""

    server: RegistryServer

    def user(self) -> str:
        return self.server.access.user(self.headers.get("Authorization"))

    def logged_path(self) -> str:
        """Without the signature: whoever has it may read the blob."""
        return re.sub(r"(?<=[?&]Signature=)[^&]*", "…", self.path)

    def route(self, method: str) -> None:
        routes.answer(self, self.server)
