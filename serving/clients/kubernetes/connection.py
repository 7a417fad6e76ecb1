"""Requests to one API server: tried again while it is away or busy, or answered by a stream."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from serving.clients.kubernetes import errors
from serving.clients.kubernetes.kinds import Object
from serving.errors import InconclusiveError, PipelineError, RequestError

if TYPE_CHECKING:
    from kubernetes.client import ApiClient
    from kubernetes.client.exceptions import ApiException


class Connection:
    """The way to the API server of `cluster`, its name for people.

    grant: the command by which an administrator gives the pipeline the rights that it lacks.
    """

    def __init__(self, api_client: ApiClient, cluster: str, grant: str):
        self._api, self._cluster, self._grant = api_client, cluster, grant

    def call(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, str] | None = None,
        body: Object | None = None,
        content_type: str = "application/json",
        raw: bool = False,
    ) -> Any:
        """One request, tried again for half a minute while the API server is away or busy: the document that answers
        it, or the text when it is `raw`. Raises what errors.py makes of a refusal."""
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        give_up = time.monotonic() + 30
        pause = 0.2
        while True:
            try:
                response = self._send(method, path, query, body, content_type, timeout=30)
                return response.data.decode() if raw else json.loads(response.data)
            except ApiException as error:
                if error.status not in (429, 500, 502, 503, 504) or time.monotonic() > give_up:
                    raise self.refusal(method, path, error) from error
            except HTTPError as error:
                cause = getattr(error, "reason", error)
                # TLS that breaks off is a server that goes, which is another thing.
                if isinstance(cause.args[0] if cause.args else None, ssl.SSLCertVerificationError):
                    raise RequestError(
                        f"{self._cluster} shows a certificate that its endpoint should not have ({cause}). See "
                        "`endpoint` in the settings, and whether a proxy opens TLS on the way"
                    ) from error
                if time.monotonic() > give_up:
                    raise InconclusiveError(f"the API server of {self._cluster} does not answer: {cause}") from error
            time.sleep(pause)  # Nothing to watch: the server itself is away.
            pause = min(pause * 2, 5)

    def stream(self, path: str, query: dict[str, str]) -> Any:
        """The response of a watch or of a log that is followed: see `lines` and `wake`. Nothing is tried again: raises
        what the official client does."""
        return self._send("GET", path, query, None, "application/json", timeout=330)

    def refusal(self, method: str, path: str, error: ApiException) -> PipelineError:
        return errors.refusal(error, f"{method} {path}", self._cluster, self._grant)

    def _send(
        self,
        method: str,
        path: str,
        query: dict[str, str] | None,
        body: Object | None,
        content_type: str,
        *,
        timeout: float,
    ) -> Any:
        return self._api.call_api(
            path,
            method,
            query_params=[(key, value) for key, value in (query or {}).items() if value],
            header_params={"Accept": "application/json, */*", "Content-Type": content_type},
            body=body,
            auth_settings=["BearerToken"],
            _preload_content=False,
            _return_http_data_only=True,
            _request_timeout=(5, timeout),
        )


def lines(response: Any) -> Iterator[bytes]:
    """The lines of a stream as they arrive."""
    rest = b""
    for data in response.stream(amt=None, decode_content=False):
        *whole, rest = (rest + data).split(b"\n")
        yield from (line for line in whole if line)


def wake(response: Any) -> None:
    """Ends a read that another thread waits in: only closing its socket does."""
    connection = getattr(response, "_connection", None)
    sock = getattr(connection, "sock", None)
    if sock is not None:
        try:
            sock.shutdown(2)
        except OSError:
            pass
