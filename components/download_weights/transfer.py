"""The mover: bytes go from their source through this process into the bucket, hashed on the way, touching no disk.

A thread a file: one GET, one resumable upload. The last 256 KiB are held back until the whole has the digest that its
source lists, so an object with wrong content never appears. Either side may break at any byte and is opened again
alone; bytes that GCS has persisted are not sent again, in this process or (components/download_weights/sessions.py) in
the next.
"""

from __future__ import annotations

import concurrent.futures
import http.client
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from components.download_weights.sessions import Sessions
from serving import progress
from serving.clients import digest, storage
from serving.clients.digest import Digest, ServedFile
from serving.clients.patience import Interrupted, Patience, Stopped
from serving.clients.source import Source
from serving.clients.storage import PreconditionError, StoredObject
from serving.clients.upload import SessionGone, Upload, WrongBytes
from serving.clients.wire import PIECE, Wire, pieces
from serving.errors import InconclusiveError
from serving.log import Say
from serving.weights.manifest import File

SMALL = 4 << 20
"""Bytes: up to here a file is moved in one piece. Files that the hub keeps in git (10 MB at most) always are."""


SMALLEST_PIECE = 32 << 10
"""Bytes read at a time from a connection that keeps breaking."""


@dataclass(frozen=True)
class Limits:
    """How much at once, how long a connection may be silent, and how often to speak."""

    threads: int = 8
    stall_seconds: float = 30.0
    """A connection that is silent for so long is broken off and opened again."""
    slow_seconds: float = 120.0
    """So is one that does not bring a single mebibyte in that time."""
    report_seconds: float = 5.0
    """At most, between two lines of progress."""


class Lane:
    """One thread's connections, and how much went over them."""

    def __init__(self, limits: Limits):
        self.down, self.up = Wire(limits.stall_seconds), Wire(limits.stall_seconds)
        self.sent = 0
        """Bytes of content sent to the bucket, those sent twice counted twice."""
        self.last_piece = time.monotonic()

    def abort(self) -> None:
        self.down.abort()
        self.up.abort()

    def close(self) -> None:
        self.down.close()
        self.up.close()


class Transfer:
    """Moves files of one source to one prefix of a bucket."""

    def __init__(self, source: Source, weights_uri: str, sessions: Sessions, say: Say, limits: Limits):
        self.source, self.weights_uri, self.sessions, self._say = source, weights_uri, sessions, say
        self.limits = limits
        self.stop = threading.Event()
        self._lanes: list[Lane] = []
        self._own = threading.local()

    @property
    def sent(self) -> int:
        """Bytes of content sent to the bucket."""
        return sum(lane.sent for lane in self._lanes)

    def move(self, files: Iterable[ServedFile], there: Mapping[str, StoredObject]) -> list[File]:
        """Brings every file that is not in the bucket yet (`there`: path → object), and returns all of them.

        Raises InconclusiveError when one side does not answer for too long, AccessError when one refuses.
        """
        files = list(files)
        moved = [_as_file(file, there[file.path]) for file in files if self._is_there(file, there)]
        known = {file.path for file in moved}
        # The largest first: the last thread to end then has least left to do.
        todo = sorted((file for file in files if file.path not in known), key=lambda file: -file.size)
        return moved + (self._move_all([FileMove(self, file) for file in todo]) if todo else [])

    def _is_there(self, file: ServedFile, there: Mapping[str, StoredObject]) -> bool:
        # What a dead run's resumed upload brought nobody has hashed yet: its session is still remembered then.
        return file.path in there and holds(there[file.path], file) and file.path not in self.sessions

    def _move_all(self, moves: list[FileMove]) -> list[File]:
        started = time.monotonic()
        total = sum(move.file.size for move in moves)
        with concurrent.futures.ThreadPoolExecutor(self.limits.threads, "move") as pool:
            running = [pool.submit(move.run) for move in moves]
            try:
                pending = set(running)
                while pending:
                    # Often at first, for somebody who watches; an hour's transfer is a log of hundreds of lines.
                    pause = min(self.limits.report_seconds, max(0.5, (time.monotonic() - started) / 10))
                    done, pending = concurrent.futures.wait(pending, pause, concurrent.futures.FIRST_EXCEPTION)
                    for future in done:
                        future.result()
                    self._break_off_slow_lanes()
                    there = sum(move.position for move in moves)
                    seconds = time.monotonic() - started
                    self._say(progress.line(len(moves) - len(pending), len(moves), there, total, self.sent, seconds))
                return [future.result() for future in running]
            except BaseException:
                self.stop.set()
                for future in running:
                    future.cancel()
                for lane in self._lanes:
                    lane.abort()
                raise
            finally:
                pool.shutdown(wait=True)
                for lane in self._lanes:
                    lane.close()

    def lane(self) -> Lane:
        """The calling thread's."""
        if not hasattr(self._own, "lane"):
            self._own.lane = Lane(self.limits)
            self._lanes.append(self._own.lane)
        return self._own.lane

    def _break_off_slow_lanes(self) -> None:
        """A connection that trickles is never silent, so only this ends it; the mover then opens it again."""
        for lane in self._lanes:
            if time.monotonic() - lane.last_piece > self.limits.slow_seconds:
                lane.last_piece = time.monotonic()
                lane.abort()


class FileMove:
    """One file on its way."""

    def __init__(self, transfer: Transfer, file: ServedFile):
        self.file = file
        self.position = 0
        """Bytes that are in the bucket, or on their way there."""
        self._transfer, self._sessions, self._source = transfer, transfer.sessions, transfer.source
        self._uri = f"{transfer.weights_uri}/{file.path}"
        self._source_patience = Patience(stop=transfer.stop)
        self._bucket_patience = Patience(stop=transfer.stop)
        self._session: str | None = None
        self._inherited = False
        """Whether a process before this one left a session: what it made, nobody may have verified yet."""
        self._resumed = False
        """Whether the open session holds bytes that this process has not seen."""
        self._furthest = 0
        self._wrong = 0
        self._digest = Digest(file)
        self._answer: http.client.HTTPResponse | None = None
        self._answer_at = 0
        """The source's open answer, and the position that it has come to."""

    def run(self) -> File:
        """Moves the file, in as many attempts as it takes."""
        if self._transfer.stop.is_set():
            raise Stopped
        self._lane = self._transfer.lane()
        self._lane.last_piece = time.monotonic()
        in_one_piece = self.file.digest.startswith("git:") or self.file.size <= SMALL
        if not in_one_piece and (session := self._sessions.take_over(self.file.path)):
            self._session, self._inherited = session, True
        while True:
            try:
                found = self._move_in_one_piece() if in_one_piece else self._move()
                self.position = self.file.size
                return found
            except SessionGone as error:
                self._start_over()
                self._bucket_patience.wait(self._uri, error)
            except WrongBytes as error:
                self._count_wrong(error)
            except Interrupted as error:
                self._lane.up.close()
                self._bucket_patience.wait(self._uri, error)
                if self.file.path in self._sessions and not self._sessions.is_ours(self.file.path):
                    self._session = None  # Another process has taken it over; two writers would only hinder each other.

    # -- small files ----------------------------------------------------------------------------------------

    def _move_in_one_piece(self) -> File:
        content = self._source.content(self._lane.down, self.file, self._source_patience)
        self._digest = digest.of(self.file, content)
        try:
            stored = storage.write_bytes(
                self._uri,
                content,
                content_type=content_type(self.file.path),
                metadata={**_metadata(self.file), "hf-sha256": self._digest.sha256},
                if_generation_match=0,
            )
        except PreconditionError:
            return self._made_by_another()
        self._lane.sent += len(content)
        return self._verified(stored)

    # -- large files ----------------------------------------------------------------------------------------

    def _move(self) -> File:
        """One upload session, from where it stands to the end."""
        try:
            held: int | StoredObject = 0
            if self._session is None:
                self._open_session()
                upload = self._upload()
            else:
                upload = self._upload()
                held = upload.persisted()
            while not isinstance(held, StoredObject):
                if held > self._furthest:
                    self._furthest = held
                    self._bucket_patience.progress()
                further = self._send_rest(upload, held)
                if not isinstance(further, StoredObject) and further <= held:
                    raise Interrupted("GCS took bytes and kept none of them")
                held = further
        except PreconditionError:
            return self._made_by_another()
        finally:
            self._close_answer()
        return self._verified(held)

    def _open_session(self) -> None:
        self._session = storage.open_upload(
            self._uri, self.file.size, content_type=content_type(self.file.path), metadata=_metadata(self.file)
        )
        self._sessions.remember(self.file.path, self._session)

    def _upload(self) -> Upload:
        return Upload(self._lane.up, self._uri, self._session or "", self.file.size)

    def _send_rest(self, upload: Upload, first: int) -> int | StoredObject:
        """Sends from `first` on. Returns how far it came, or the object."""
        self._resumed = first > self._digest.size
        if first < upload.last_part:
            held = upload.send(first, upload.last_part, self._bytes(first, upload.last_part))
            if held != upload.last_part:
                return held
        tail = b"".join(self._bytes(max(first, upload.last_part), self.file.size))
        if not self._resumed and not self._digest.is_right():
            raise WrongBytes(f"{self._source.name} sent other bytes than it lists ({self.file.digest})")
        return upload.finish(max(first, upload.last_part), tail, None if self._resumed else self._digest.crc32c)

    def _bytes(self, first: int, last: int) -> Iterator[bytes]:
        """The file's bytes, hashed as they pass, over as many answers as it takes."""
        self.position = first
        while self.position < last:
            try:
                answer = self._open_answer(self.position)
                # A piece that breaks off is lost: smaller ones still get on where whole ones do not.
                size = max(SMALLEST_PIECE, PIECE >> 2 * self._source_patience.failures)
                for piece in pieces(self._lane.down, answer, last - self.position, size):
                    if self._transfer.stop.is_set():
                        raise Stopped
                    self._source_patience.progress()
                    if not self._resumed and self.position + len(piece) > self._digest.size:
                        self._digest.update(piece[self._digest.size - self.position :])
                    self.position += len(piece)
                    self._answer_at = self.position
                    self._lane.last_piece = time.monotonic()
                    yield piece
                    self._lane.sent += len(piece)
            except Interrupted as error:
                self._close_answer()
                self._source_patience.wait(f"{self.file.path} from {self._source.name}", error)

    def _open_answer(self, position: int) -> http.client.HTTPResponse:
        if self._answer is None or self._answer_at != position:
            self._close_answer()
            self._answer = self._source.open(self._lane.down, self.file, position)
            self._answer_at = position
        return self._answer

    def _close_answer(self) -> None:
        if self._answer and self._answer_at != self.file.size:
            self._lane.down.close()
        self._answer = None

    # -- verdicts -------------------------------------------------------------------------------------------

    def _verified(self, stored: StoredObject, *, read_back: bool = False) -> File:
        """The object in the bucket, shown to be what the source lists; one that is not goes."""
        if read_back or self._resumed or self._digest.size != self.file.size:
            self._digest = Digest(self.file)
            storage.read_through(self._uri, stored.generation, self._read_back)
        if not self._digest.is_right() or self._digest.crc32c != stored.crc32c:
            storage.delete(self._uri, stored.generation)
            raise WrongBytes(f"what arrived is not what is listed ({self.file.digest})")
        if "hf-sha256" not in stored.metadata:
            # A bucket lists no sha256: only now is it known, and a later run is to know it without reading.
            try:
                storage.add_metadata(stored, {"hf-sha256": self._digest.sha256})
            except PreconditionError as error:
                raise SessionGone("another run took the object away") from error
        self._sessions.forget(self.file.path)
        return File(
            path=self.file.path,
            size=stored.size,
            sha256=self._digest.sha256,
            crc32c=stored.crc32c,
            generation=stored.generation,
        )

    def _read_back(self, piece: bytes) -> None:
        if self._transfer.stop.is_set():
            raise Stopped
        self._lane.last_piece = time.monotonic()
        self._digest.update(piece)

    def _made_by_another(self) -> File:
        """The object was there before ours could be: equal is as good as done."""
        there = storage.stat(self._uri)
        if there is None:
            raise SessionGone("another run made the object and took it away again")
        if self._inherited or (_claims(there, self.file) and not holds(there, self.file)):
            return self._verified(there, read_back=True)
        if not holds(there, self.file):
            storage.delete(self._uri, there.generation)
            raise SessionGone("an object with other content was in its place")
        if self._session:
            self._upload().cancel()
        self._sessions.forget(self.file.path)
        return _as_file(self.file, there)

    def _count_wrong(self, error: WrongBytes) -> None:
        self._wrong += 1
        if self._wrong == 3:
            raise InconclusiveError(f"{self._uri}: {error}, three times over. Run again later") from error
        if self._session:
            self._upload().cancel()
        self._start_over()

    def _start_over(self) -> None:
        """From the first byte, in a new session. The old one stays remembered until there is another to remember: what
        it may have made is not verified."""
        self._session, self._digest = None, Digest(self.file)


def _metadata(file: ServedFile) -> dict[str, str]:
    """What the object says of itself: by it a later run knows the content without reading it."""
    if file.sha256:
        return {"hf-sha256": file.sha256}
    return {"hf-blob-id": file.blob_id} if file.blob_id else {"source-digest": file.digest}


def _claims(there: StoredObject, file: ServedFile) -> bool:
    """Whether an object says to be the file."""
    return there.size == file.size and _metadata(file).items() <= there.metadata.items()


def holds(there: StoredObject, file: ServedFile) -> bool:
    """Whether an object says to be the file, and somebody has seen that it is."""
    return _claims(there, file) and "hf-sha256" in there.metadata


def _as_file(file: ServedFile, there: StoredObject) -> File:
    return File(
        path=file.path,
        size=there.size,
        sha256=there.metadata["hf-sha256"],
        crc32c=there.crc32c,
        generation=there.generation,
    )


def content_type(path: str) -> str:
    return "application/json" if path.endswith(".json") else "application/octet-stream"
