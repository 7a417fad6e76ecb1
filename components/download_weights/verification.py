"""Whether what lies in a bucket is what its manifest says; with every byte read again, if that is asked for."""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass

from components.download_weights import progress
from serving.clients import storage
from serving.clients.digest import Digest, ServedFile
from serving.clients.storage import PreconditionError
from serving.errors import RequestError
from serving.log import Say
from serving.weights import manifest
from serving.weights.manifest import File, Manifest

THREADS = 4


@dataclass(frozen=True)
class Verdict:
    """What the manifest names, and what differs: a line each."""

    weights_uri: str
    files: int
    bytes: int
    differences: list[str]


def verify(weights_uri: str, *, read: bool = False, say: Say | None = None, report_seconds: float = 3.0) -> Verdict:
    """Compares what lies at `gs://BUCKET/models/ORG/NAME/KEY` with its manifest.

    GCS keeps a crc32c of every object, so nothing is read unless `read` is set: then every byte is, and the sha256 is
    compared as well; `say` hears of it every `report_seconds`. Raises RequestError when there is no manifest, naming
    complete weights nearby.
    """
    weights_uri = weights_uri.rstrip("/").removesuffix(f"/{manifest.NAME}")
    _, path = storage.parse_uri(weights_uri)
    text = storage.read_bytes(manifest.uri(weights_uri)) if path else None
    if text is None:
        raise RequestError(f"no complete weights at {weights_uri}: there is no {manifest.NAME}. {_nearby(weights_uri)}")
    try:
        known = Manifest.model_validate_json(text)
    except ValueError:
        return Verdict(weights_uri, 0, 0, [f"{manifest.NAME} is damaged: it is no manifest of ours"])
    there = manifest.listing(weights_uri)
    differences = _of_another_key(known, weights_uri) + manifest.differences(known, there)
    if read:
        sound = [file for file in known.files if not manifest.wrong(file, there.get(file.path))]
        differences += _Reading(weights_uri, sound).run(say or (lambda _: None), report_seconds)
    differences += manifest.strays(known, there)
    return Verdict(weights_uri, len(known.files), sum(file.size for file in known.files), differences)


def _of_another_key(known: Manifest, weights_uri: str) -> list[str]:
    key = weights_uri.rpartition("/")[2]
    return [] if known.weights_key == key else [f"{manifest.NAME} is that of other weights: {known.weights_key}"]


def _nearby(weights_uri: str) -> str:
    """Which complete weights there are below an address, else beside it, in words."""
    bucket, path = storage.parse_uri(weights_uri)
    parent = f"gs://{bucket}/{path.rpartition('/')[0]}".rstrip("/")
    for folder in dict.fromkeys((weights_uri, parent)):
        found = manifest.complete_below(folder)
        if found:
            return f"Complete are: {', '.join(found[:20])}{', …' if len(found) > 20 else ''}"
    return f"Nothing below {parent} is complete; a run of the pipeline goes on with what is there"


class _Reading:
    """Reads files of a bucket again. Its threads are daemons: one that waits for a silent server holds up no Ctrl-C."""

    def __init__(self, weights_uri: str, files: list[File]):
        self._weights_uri, self._files = weights_uri, files
        self._todo: queue.SimpleQueue[File] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[str | Exception] = queue.SimpleQueue()
        self._read = [0] * THREADS
        """Bytes, by thread."""

    def run(self, say: Say, report_seconds: float) -> list[str]:
        """What differs, a line each. Raises what stood in the way."""
        started = reported = time.monotonic()
        total, found, done = sum(file.size for file in self._files), [], 0
        for file in sorted(self._files, key=lambda file: -file.size):
            self._todo.put(file)
        for number in range(THREADS):
            threading.Thread(target=self._work, args=(number,), daemon=True).start()
        while done < len(self._files):
            try:
                result = self._done.get(timeout=report_seconds)
            except queue.Empty:
                pass
            else:
                if isinstance(result, Exception):
                    raise result
                done += 1
                found += [result] if result else []
            if time.monotonic() - reported >= report_seconds:
                reported, read = time.monotonic(), sum(self._read)
                say(progress.line(done, len(self._files), read, total, read, reported - started))
        return found

    def _work(self, number: int) -> None:
        while True:
            try:
                file = self._todo.get_nowait()
            except queue.Empty:
                return
            try:
                self._done.put(self._difference(number, file))
            except Exception as error:  # noqa: BLE001 (it is raised again where it can be told)
                self._done.put(error)
                return

    def _difference(self, number: int, file: File) -> str:
        """In what the bytes are not what the manifest says; empty when they are."""
        digest = Digest(ServedFile(file.path, file.size, sha256=file.sha256))

        def take(piece: bytes) -> None:
            digest.update(piece)
            self._read[number] += len(piece)

        try:
            storage.read_through(f"{self._weights_uri}/{file.path}", file.generation, take)
        except PreconditionError:
            return f"{file.path} changed while it was read"
        if digest.is_right():
            return ""
        return f"{file.path} reads otherwise: sha256 {digest.sha256} instead of {file.sha256}"
