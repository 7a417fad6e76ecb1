"""Weights in Cloud Storage, as vLLM reads them with the Run:ai Model Streamer (`--load-format runai_streamer`).

Small files are pulled into a folder first, by the library's Python half: it looks at the bucket, lists it, and fails
with the words of Google's client. Tensors then come in ranges by its C++ half, which asks for no generation, compares
no checksum of a range, tries again what is busy, and says of all else "File access error".

Cloud Storage is where STORAGE_EMULATOR_HOST says. Facts: runai-model-streamer 0.17.1 and vLLM 0.33.0, run.
"""

from __future__ import annotations

import fnmatch
import hashlib
import io
import json
import os
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from emulated_cloud.engine.checkpoint import FILE_ACCESS, BadModel, BadWeights

SCHEME = "gs://"
READ = 8 << 20
"""Bytes of a range."""
ATTEMPTS = 4
_CONFIGS = ("*.model", "*.py", "*.json")
_WEIGHTS = ("*.pt", "*.safetensors", "*.bin", "*.tensors", "*.pth")
_KINDS = {401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 429: "TooManyRequests"}


def is_streamed(model: str) -> bool:
    return model.lower().startswith(SCHEME)


def check_format(load_format: str, model: str) -> None:
    """Raises BadModel for a format that does not stream (`auto` becomes one that does)."""
    if load_format not in ("auto", "runai_streamer", "runai_streamer_sharded", "modelexpress"):
        raise BadModel(
            "ValidationError",
            "To load a model from object storage (S3/GCS/Azure), 'load_format' must be 'modelexpress', "
            f"'runai_streamer' or 'runai_streamer_sharded', but got '{load_format}'. Model: {model}",
            "VllmConfig",
        )


def memory_limit(given: str | None) -> int | None:
    """Of `--model-loader-extra-config`, as the loader takes it: bytes that the streamer may hold. Raises BadWeights."""
    try:
        extra = json.loads(given or "{}")
    except ValueError as error:
        raise BadWeights("json.decoder.JSONDecodeError", str(error)) from error
    if unexpected := set(extra) - {"distributed", "concurrency", "memory_limit"}:
        raise BadWeights("ValueError", f"Unexpected extra config keys for runai_streamer: {unexpected}")
    distributed, concurrency, limit = (extra.get(key) for key in ("distributed", "concurrency", "memory_limit"))
    if distributed is not None and not isinstance(distributed, bool):
        raise BadWeights("ValueError", f"distributed must be a bool, got {distributed!r}")
    if concurrency is not None and (type(concurrency) is not int or concurrency <= 0):
        raise BadWeights("ValueError", f"concurrency must be a positive integer, got {concurrency!r}")
    if limit is not None and (type(limit) is not int or limit < -1):
        raise BadWeights("ValueError", f"memory_limit must be an integer >= -1, got {limit!r}")
    return limit


def pull(model: str, tokenizer: str) -> Path:
    """The folder with the model's small files; the tokenizer's too, where it is not elsewhere. Raises BadModel."""
    root = os.environ.get("VLLM_ASSETS_CACHE") or Path.home() / ".cache" / "vllm" / "assets"
    folder = Path(root) / "model_streamer" / hashlib.sha256(model.encode()).hexdigest()[:8]
    folder.mkdir(parents=True, exist_ok=True)
    prefix = _prefix(model)
    for blob in list_objects(model, recursive=True):
        fits = any(fnmatch.fnmatch(blob.name, pattern) for pattern in _CONFIGS)
        if tokenizer == model:
            fits |= not any(fnmatch.fnmatch(blob.name, pattern) for pattern in _WEIGHTS)
        if fits and not blob.name.endswith("/"):
            place = folder / blob.name.removeprefix(prefix)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(_ask(_media(blob.bucket, blob.name)))
    return folder


def shards(model: str) -> list[Blob]:
    """What is streamed: every safetensors at the top of the folder, whatever an index says. Raises BadWeights."""
    found = [blob for blob in list_objects(model, recursive=False) if blob.name.endswith(".safetensors")]
    if not found:
        raise BadWeights("RuntimeError", f"Cannot find any safetensors model weights with `{model}`")
    return found


def stream(blob: Blob, limit: int | None = None) -> None:
    """Reads all of an object, of which no tensor may be larger than the limit (of 1 byte or more: 0 and -1 are other
    ways to hold them). Raises BadWeights."""
    with blob.open() as file:
        if limit and limit > 0 and (largest := _largest(file)) > limit:
            raise BadWeights(
                "runai_model_streamer.file_streamer.requests_iterator.RunaiStreamerMemoryLimitException",
                f"Memory limit supplied: {limit} cannot be smaller than: {largest}",
            )
        while file.read(READ):
            pass


def _largest(file: io.BufferedReader) -> int:
    """Bytes of the largest tensor of a shard, by its header; 0 where that is none, which is told when it is loaded."""
    try:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        return max(entry["data_offsets"][1] - entry["data_offsets"][0] for entry in header.values() if "dtype" in entry)
    except (ValueError, AttributeError, KeyError, TypeError, IndexError, OverflowError, MemoryError):
        return 0


@dataclass(frozen=True)
class Blob:
    """An object, opened and measured as a file of a checkpoint is."""

    bucket: str
    name: str
    size: int

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.name}"

    def open(self) -> io.BufferedReader:
        return io.BufferedReader(_Ranges(self), READ)


class _Ranges(io.RawIOBase):
    """An object's bytes, in ranges."""

    def __init__(self, blob: Blob):
        self._blob, self._position = blob, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._blob.size}[whence]
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        end = min(self._position + len(buffer), self._blob.size)
        if end <= self._position:
            return 0
        data = _range(self._blob, self._position, end)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def _range(blob: Blob, start: int, end: int) -> bytes:
    for attempt in range(ATTEMPTS):
        headers = {"Range": f"bytes={start}-{end - 1}"}
        request = urllib.request.Request(_media(blob.bucket, blob.name), headers=headers)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
                data: bytes = answer.read()
            if len(data) == end - start:
                return data
        except urllib.error.HTTPError as error:
            error.close()
            if error.code < 500 and error.code not in (408, 429):
                break
        except OSError:
            pass
        time.sleep(0.1 * 2**attempt)
    raise BadWeights("ValueError", FILE_ACCESS)


def list_objects(model: str, *, recursive: bool) -> list[Blob]:
    """What lies below a folder. Raises BadModel in the words of google-cloud-storage."""
    bucket = model[len(SCHEME) :].partition("/")[0]
    _ask(f"{_endpoint()}/storage/v1/b/{bucket}?projection=noAcl&prettyPrint=false")
    query = {"projection": "noAcl", "prefix": _prefix(model), **({} if recursive else {"delimiter": "/"})}
    found: list[Blob] = []
    while True:
        page = json.loads(_ask(f"{_endpoint()}/storage/v1/b/{bucket}/o?{urlencode(query)}&prettyPrint=false"))
        found += [Blob(bucket, item["name"], int(item["size"])) for item in page.get("items", [])]
        if not (token := page.get("nextPageToken")):
            return found
        query["pageToken"] = token


def _ask(url: str) -> bytes:
    """A whole answer, as Google's client gets it: what is busy is asked again."""
    for attempt in range(ATTEMPTS):
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:  # noqa: S310
                body: bytes = answer.read()
            return body
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            if error.code < 500 and error.code not in (408, 429):
                kind = _KINDS.get(error.code, "ClientError")
                words = f"{error.code} GET {url}: {_message(text)}"
                raise BadModel(f"google.api_core.exceptions.{kind}", words) from error
            last = f"{error.code} GET {url}: {_message(text)}"
        except OSError as error:
            last = str(error)
        time.sleep(0.1 * 2**attempt)
    raise BadModel("google.api_core.exceptions.RetryError", f"Timeout of 120.0s exceeded, last exception: {last}")


def _message(text: str) -> str:
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return text or "unknown error"


def _media(bucket: str, name: str) -> str:
    return f"{_endpoint()}/storage/v1/b/{bucket}/o/{quote(name, safe='')}?alt=media"


def _endpoint() -> str:
    return os.environ.get("STORAGE_EMULATOR_HOST", "https://storage.googleapis.com").rstrip("/")


def _prefix(model: str) -> str:
    """The names of a folder's objects begin so."""
    path = model[len(SCHEME) :].partition("/")[2].rstrip("/")
    return f"{path}/" if path else ""
