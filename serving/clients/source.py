"""Where weights come from: a repository at one commit, in the hub or in a folder of a bucket, alike to whoever reads.

A source does not change under its reader: its bytes are those that its listing names, or they are not to be had.
"""

from __future__ import annotations

import abc
import http.client
from urllib.parse import urlsplit

from serving.clients import digest
from serving.clients.digest import ServedFile
from serving.clients.patience import Interrupted, Patience
from serving.clients.wire import Wire, retry_after
from serving.errors import PipelineError, RequestError


class Source(abc.ABC):
    """Files at one commit: what there is, and the bytes."""

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """What errors call it: the hub's name of a model, or gs://BUCKET/FOLDER."""

    @abc.abstractmethod
    def files(self) -> list[ServedFile]:
        """Every file, with its size and digest."""

    @abc.abstractmethod
    def locate(self, file: ServedFile) -> tuple[str, dict[str, str]]:
        """Where a file's bytes are now, and the headers to ask for them with. Raises Interrupted for what may heal."""

    def refused(self, file: ServedFile, status: int) -> PipelineError | None:
        """Our error for a status that asking again cannot change; None when it can."""
        return None

    def content(self, wire: Wire, file: ServedFile, patience: Patience | None = None) -> bytes:
        """A small file's content, as the listing has it: bytes that are not are asked for again."""

        def attempt() -> bytes:
            content = wire.read(self.open(wire, file))
            if not digest.of(file, content).is_right():
                raise Interrupted(f"its bytes are not those that are listed ({file.digest})")
            return content

        return (patience or Patience()).until_it_works(f"{self.name}/{file.path}", attempt)

    def head(self, wire: Wire, file: ServedFile, length: int, patience: Patience) -> bytes:
        """The first `length` bytes of a file, or all of a shorter one."""
        last = min(length, file.size) - 1
        return patience.until_it_works(
            f"{self.name}/{file.path}", lambda: wire.read(self.open(wire, file, 0, last)) if last >= 0 else b""
        )

    def open(self, wire: Wire, file: ServedFile, first: int = 0, last: int | None = None) -> http.client.HTTPResponse:
        """Opens a file's bytes from `first` to `last` (inclusive; None: its end). The address is asked for anew each
        time, since a signed link runs out.

        Raises Interrupted for what may heal, AccessError, InconclusiveError or RequestError for what does not.
        """
        url, headers = self.locate(file)
        host = urlsplit(url).netloc  # All that may be said of a signed link.
        wanted = (file.size if last is None else last + 1) - first
        if wanted != file.size:
            headers["Range"] = f"bytes={first}-{'' if last is None else last}"
        response = wire.send("GET", url, headers)
        if response.status == 206 or (response.status == 200 and "Range" not in headers):
            if response.length in (wanted, None):  # None: sent in chunks, and counted as it comes.
                return response
            wire.close()
            raise Interrupted(f"{host} offers {response.length} bytes instead of {wanted}")
        wire.close()
        if response.status == 200:
            raise RequestError(f"{host} does not serve parts of files, which a transfer that may break off needs")
        if error := self.refused(file, response.status):
            raise error
        # 403 of the hub: the signed link has run out, or the grant is gone; asking for the link again tells which.
        raise Interrupted(f"{host} answered {response.status}", retry_after(response.headers))
