"""The storage server on the wire: a connection, who is at its other end, and how it is refused."""

from __future__ import annotations

import re
from pathlib import Path

from emulated_cloud.http import EmulatorServer, Handler
from emulated_cloud.storage import routes
from emulated_cloud.storage.errors import GcsError
from emulated_cloud.storage.operations import Operations
from emulated_cloud.storage.store import Store
from emulated_cloud.storage.uploads import Uploads


class StorageServer(EmulatorServer):
    """A store on the wire. `users` maps bearer tokens to who they are in the request log."""

    def __init__(
        self,
        address: tuple[str, int],
        store: Store,
        users: dict[str, str] | None = None,
        request_log: Path | None = None,
    ):
        self.uploads, self.users = Uploads(store), users or {}
        super().__init__(address, StorageHandler, request_log)
        self.operations = Operations(self.faults)


class StorageHandler(Handler):
    server: StorageServer

    def user(self) -> str:
        return self.server.users.get(self.bearer_token() or "", "anonymous")

    def logged_path(self) -> str:
        """Who has a session's URI can write to it: its id stays out of the log."""
        return re.sub(r"(upload_id=)[^&]*", r"\1REDACTED", self.path)

    def route(self, method: str) -> None:
        try:
            routes.answer(self, self.server.uploads, self.server.operations)
        except GcsError as error:
            self._drain()
            if error.status == 304:
                self.send(304)
            elif error.plain:
                self.send(error.status, error.message)
            elif routes.is_xml(self.url_path):
                self.send(error.status, error.as_xml(), {"Content-Type": "application/xml; charset=UTF-8"})
            else:
                self.send_json(error.as_json(), error.status)
