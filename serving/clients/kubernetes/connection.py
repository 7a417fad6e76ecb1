"""Requests to one API server: tried again while it is away or busy, or answered by a stream."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from serving.clients.kubernetes import errors
from serving.clients.kubernetes.errors import ConflictError
from serving.clients.kubernetes.kinds import Object
from serving.clients.patience import Interrupted, Patience
from serving.clients.wire import retry_after
from serving.errors import PipelineError, RequestError

if TYPE_CHECKING:
    from kubernetes.client import ApiClient
    from kubernetes.client.exceptions import ApiException

CONNECT_SECONDS = 5
ANSWER_SECONDS = 25
"""A request that has no answer by then (both together) is given up: never later than the Lease's margin, so that what
was allowed when it was sent has landed before another run may take the Lease."""


class Connection:
    """The way to the API server of `cluster`, its name for people.

    grant: the command by which an administrator gives the pipeline the rights that it lacks. patience: seconds that a
    request is tried again; None: as long as this process has patience.
    """

    def __init__(self, api_client: ApiClient, cluster: str, grant: str, patience: float | None = None):
        self._api, self._cluster, self._grant, self._patience = api_client, cluster, grant, patience

    def impatient(self) -> Connection:
        """The same one, which tries nothing again."""
        return Connection(self._api, self._cluster, self._grant, patience=0)

    def call(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, str] | None = None,
        body: Object | None = None,
        content_type: str = "application/json",
        raw: bool = False,
        allowed: Callable[[], None] = lambda: None,
    ) -> Any:
        """One request, tried again while the API server is away or busy: the document that answers it, or the text when
        it is `raw`. `allowed` raises what forbids it, before every try. Raises what errors.py makes of a refusal."""
        wait, answer_was_lost = Patience(self._patience), False
        while True:
            allowed()
            try:
                return self._try(method, path, query, body, content_type, raw)
            except Interrupted as error:
                answer_was_lost = True
                wait.wait(f"the API server of {self._cluster} does not answer", error)
            except ConflictError as error:
                error.may_be_own = answer_was_lost
                raise

    def _try(
        self, method: str, path: str, query: dict[str, str] | None, body: Object | None, content_type: str, raw: bool
    ) -> Any:
        """Raises Interrupted for what may heal."""
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        try:
            response = self._send(method, path, query, body, content_type, ANSWER_SECONDS)
            return response.data.decode(errors="replace") if raw else json.loads(response.data)
        except ApiException as error:
            if errors.is_away(error.status):
                after = retry_after(error.headers or {})
                raise Interrupted(errors.words(error, f"{method} {path}"), after) from error
            raise self.refusal(method, path, error) from error
        except HTTPError as error:
            cause = getattr(error, "reason", error)
            # TLS that breaks off is a server that goes, which is another thing.
            if isinstance(cause.args[0] if cause.args else None, ssl.SSLCertVerificationError):
                raise RequestError(
                    f"{self._cluster} shows a certificate that its endpoint should not have ({cause}). See `endpoint` "
                    "in the settings, and whether a proxy opens TLS on the way"
                ) from error
            raise Interrupted(str(cause)) from error
        except ValueError as error:
            raise Interrupted(f"its answer to {method} {path} is not JSON ({error})") from error

    def stream(self, path: str, query: dict[str, str], *, silence: float) -> Any:
        """The response of a watch or of a log that is followed: see `lines` and `wake`. It breaks off after `silence`
        seconds without a byte. Nothing is tried again: raises what the official client does, and Interrupted without a
        token."""
        return self._send("GET", path, query, None, "application/json", silence)

    def refusal(self, method: str, path: str, error: ApiException) -> PipelineError:
        return errors.refusal(error, f"{method} {path}", self._cluster, self._grant)

    def _send(
        self,
        method: str,
        path: str,
        query: dict[str, str] | None,
        body: Object | None,
        content_type: str,
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
            _request_timeout=(CONNECT_SECONDS, timeout),
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
