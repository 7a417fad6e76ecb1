"""One server for all of Google's APIs but storage."""

from __future__ import annotations

import re
from pathlib import Path

from emulated_cloud.google import container, metadata, resourcemanager, secretmanager
from emulated_cloud.google.call import Api, Call, error_info, refusal
from emulated_cloud.google.config import Config
from emulated_cloud.http import EmulatorServer, Handler, HttpError

APIS: tuple[Api, ...] = (container.answer, secretmanager.answer, resourcemanager.answer)
_EXPECTED = "Expected OAuth 2 access token, login cookie or other valid authentication credential."
_SEE = "See https://developers.google.com/identity/sign-in/web/devconsole-project."


class GoogleServer(EmulatorServer):
    """The APIs on the wire."""

    def __init__(self, address: tuple[str, int], config: Config, request_log: Path | None = None):
        self.config = config
        super().__init__(address, GoogleHandler, request_log)


class GoogleHandler(Handler):
    server: GoogleServer

    def user(self) -> str:
        """The service account, for who has its token."""
        kind, _, token = self.headers.get("Authorization", "").partition(" ")
        known = kind.lower() == "bearer" and token.strip() == self.server.config.token
        return self.server.config.service_account if known else "anonymous"

    def route(self, method: str) -> None:
        if self.url_path == "/" or self.url_path.startswith("/computeMetadata/"):
            return self._metadata()
        version, *path = self.segments()
        if not re.fullmatch(r"v\d\w*", version) or not path:
            raise refusal("NOT_FOUND", "Method not found.")
        self._authenticate()
        path[-1], _, verb = path[-1].partition(":")
        call = Call(method, version, path, verb, self.query, self.server.config)
        for api in APIS:
            if (found := api(call)) is not None:
                return self.send_json(found)
        raise refusal("NOT_FOUND", "Method not found.")

    def _metadata(self) -> None:
        config, flavor = self.server.config, self.headers.get("Metadata-Flavor")
        status, kind, body = metadata.answer(config, self.url_path, self.query, flavor)
        headers = {"Content-Type": kind, "Metadata-Flavor": "Google", "Server": "Metadata Server for VM"}
        self.send(status, body, headers)

    def _authenticate(self) -> None:
        """Raises HttpError 401 without the service account's token."""
        if self.user() == self.server.config.service_account:
            return
        if "Authorization" in self.headers:
            reason, said = "ACCESS_TOKEN_TYPE_UNSUPPORTED", "Request had invalid authentication credentials."
        else:
            reason, said = "CREDENTIALS_MISSING", "Request is missing required authentication credential."
        error = refusal("UNAUTHENTICATED", f"{said} {_EXPECTED} {_SEE}", [error_info(reason)])
        raise HttpError(401, error.body, {"WWW-Authenticate": 'Bearer realm="https://accounts.google.com/"'})
