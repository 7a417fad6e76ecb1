"""Google Cloud Storage through its own client: JSON documents, listings, IAM bindings, and what a transfer needs.

Objects are named by `gs://BUCKET/NAME` everywhere. `STORAGE_EMULATOR_HOST` is honoured by the library itself. The
library retries what is transient for as long as this process has patience; what is left becomes one of our errors here.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPResponse
from typing import Any
from urllib.parse import quote

from serving.clients import google
from serving.clients.patience import Interrupted, Patience
from serving.clients.wire import PIECE, Wire, pieces, retry_after
from serving.errors import AccessError, InconclusiveError, PipelineError, RequestError

_ENDPOINT = "https://storage.googleapis.com"
OBJECTS_ROLE = "roles/storage.objectUser"
READER_ROLE = "roles/storage.objectViewer"
POLICY_ROLE = "roles/storage.admin"
BUCKET_ROLE = "roles/storage.bucketViewer"
"""A role with storage.buckets.get."""


class PreconditionError(PipelineError):
    """The object is not at the generation that was expected: somebody else wrote it (412)."""


@dataclass(frozen=True)
class StoredObject:
    """An object as the bucket lists it. `size` in bytes, `crc32c` and `md5` base64 as GCS writes them; an object
    that was composed of others has no `md5`."""

    uri: str
    size: int
    crc32c: str
    generation: int
    metadata: dict[str, str] = field(default_factory=dict)
    md5: str | None = None
    encoding: str | None = None
    """How the bytes are to be decoded by whoever reads them: `gzip`, or nothing."""
    metageneration: int | None = None
    """Counts the changes of what it says of itself; None where nobody has said."""


def parse_uri(uri: str) -> tuple[str, str]:
    """(bucket, object name) of `gs://BUCKET/NAME`; the name may be empty. Raises RequestError."""
    scheme, _, rest = uri.partition("://")
    bucket, _, name = rest.partition("/")
    if scheme != "gs" or not bucket:
        raise RequestError(f"{uri!r} is not a gs://BUCKET/NAME address")
    return bucket, name


# -- documents ----------------------------------------------------------------------------------------------


def write_json(uri: str, value: Any, *, if_generation_match: int | None = None) -> int:
    """Writes `value` as JSON and returns the object's generation. `if_generation_match=0`: only when there is none.

    Raises PreconditionError when the object is at another generation.
    """
    text = json.dumps(value, ensure_ascii=False, indent=2) + "\n"
    return write_text(uri, text, content_type="application/json", if_generation_match=if_generation_match)


def write_json_if_changed(uri: str, value: Any) -> bool:
    """Writes `value` unless the object holds it already: returns whether it wrote."""
    if read_json(uri) == value:
        return False
    write_json(uri, value)
    return True


def write_text(uri: str, text: str, *, content_type: str, if_generation_match: int | None = None) -> int:
    """Writes a text in UTF-8 and returns the object's generation. Raises PreconditionError as `write_json`."""
    # What is no Unicode (a lone surrogate in something's name) is escaped as JSON escapes it.
    return write_bytes(
        uri, text.encode(errors="backslashreplace"), content_type=content_type, if_generation_match=if_generation_match
    ).generation


def write_bytes(
    uri: str,
    data: bytes,
    *,
    content_type: str,
    metadata: dict[str, str] | None = None,
    if_generation_match: int | None = None,
) -> StoredObject:
    """Writes an object in one request; GCS refuses it when the bytes do not arrive as they were sent (crc32c)."""
    blob = _blob(uri)
    if metadata:
        blob.metadata = metadata  # Setting none would send a null, which is something else than nothing.
    with _errors(uri):
        blob.upload_from_string(
            data,
            content_type=content_type,
            checksum="crc32c",
            if_generation_match=if_generation_match,
            retry=_retry(uri),
        )
    return _stored(blob)


def read_json(uri: str) -> Any | None:
    """The object's value; None when there is no such object."""
    return read_json_with_generation(uri)[0]


def read_json_with_generation(uri: str) -> tuple[Any | None, int]:
    """The object's value and its generation; (None, 0) when there is no such object."""
    data, generation = _read(uri)
    if data is None:
        return None, 0
    try:
        return json.loads(data), generation
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{uri} is not JSON ({error}). If nobody needs it: `gcloud storage rm {uri}`") from error


def read_text(uri: str) -> str | None:
    """The object's text; None when there is no such object."""
    data = read_bytes(uri)
    return None if data is None else data.decode()


def read_bytes(uri: str) -> bytes | None:
    """A small object's bytes; None when there is no such object."""
    return _read(uri)[0]


def _read(uri: str) -> tuple[bytes | None, int]:
    """An object's bytes and its generation; (None, 0) when there is no such object."""
    from google.api_core.exceptions import NotFound

    blob = _blob(uri)
    with _errors(uri):
        try:
            data = blob.download_as_bytes(retry=_retry(uri))
        except NotFound as error:
            if _bucket_is_missing(error):
                raise
            return None, 0
    return data, int(blob.generation)


# -- objects ------------------------------------------------------------------------------------------------


def list_objects(prefix_uri: str, *, setting: str = "bucket") -> list[StoredObject]:
    """The objects whose address starts with `prefix_uri`, in the order of their names. `setting` named the bucket."""
    bucket, prefix = parse_uri(prefix_uri)
    with _errors(prefix_uri, role=OBJECTS_ROLE if setting == "bucket" else READER_ROLE, setting=setting):
        fields = (
            "items(bucket,name,size,crc32c,md5Hash,generation,metageneration,metadata,contentEncoding),nextPageToken"
        )
        wait, found = Patience(), list[StoredObject]()
        for blob in client().list_blobs(_bucket(bucket), prefix=prefix, fields=fields, retry=_retry(prefix_uri, wait)):
            wait.progress()
            found.append(_stored(blob))
        return found


def list_uris(prefix_uri: str) -> list[str]:
    """The addresses of the objects whose address starts with `prefix_uri`."""
    return [found.uri for found in list_objects(prefix_uri)]


def stat(uri: str) -> StoredObject | None:
    """What the bucket says of an object; None when there is none."""
    from google.api_core.exceptions import NotFound

    blob = _blob(uri)
    with _errors(uri):
        try:
            blob.reload(retry=_retry(uri))
        except NotFound as error:
            if _bucket_is_missing(error):
                raise
            return None
    return _stored(blob)


def add_metadata(stored: StoredObject, metadata: dict[str, str]) -> None:
    """Adds to what an object says of itself. Raises PreconditionError when it is another by now."""
    from google.api_core.exceptions import NotFound

    blob = _blob(stored.uri)
    blob.metadata = {**stored.metadata, **metadata}
    with _errors(stored.uri):
        try:
            blob.patch(if_generation_match=stored.generation, retry=_retry(stored.uri))
        except NotFound as error:
            if _bucket_is_missing(error):
                raise
            raise PreconditionError(f"{stored.uri} was deleted since it was written") from error


def copy(source: StoredObject, uri: str, *, content_type: str) -> StoredObject:
    """Makes a new object of another's bytes and metadata, inside GCS. Raises PreconditionError when there is one at
    `uri`, or the source is not what it was."""
    from google.api_core.exceptions import NotFound

    blob = _blob(uri)
    # The library sends what it knows of the new object, which replaces all that is known of the source.
    blob.content_type = content_type
    if source.metadata:
        blob.metadata = source.metadata
    token: str | None = ""
    with _errors(uri):
        try:
            while token is not None:
                # Large objects may take several calls.
                token, _, _ = blob.rewrite(
                    _blob(source.uri),
                    token=token or None,
                    if_generation_match=0,
                    if_source_generation_match=source.generation,
                    retry=_retry(uri),
                )
        except NotFound as error:
            if _bucket_is_missing(error):
                raise
            raise PreconditionError(f"{source.uri} was deleted since it was listed") from error
    return _stored(blob)


def delete_as_listed(stored: StoredObject) -> bool:
    """Deletes the object if nobody has written it since it was listed, nor changed what it says of itself
    (add_metadata): returns whether it did."""
    return delete(stored.uri, stored.generation, stored.metageneration)


def delete(uri: str, generation: int | None = None, metageneration: int | None = None) -> bool:
    """Deletes the object, only at that generation if one is given: returns whether it was there."""
    from google.api_core.exceptions import NotFound, PreconditionFailed

    with _errors(uri):
        try:
            _blob(uri).delete(if_generation_match=generation, if_metageneration_match=metageneration, retry=_retry(uri))
        except PreconditionFailed:
            return False
        except NotFound as error:
            if _bucket_is_missing(error):
                raise
            return False
    return True


def open_upload(uri: str, size: int, *, content_type: str, metadata: dict[str, str]) -> str:
    """Opens a resumable session that makes a new object of `size` bytes, and returns the session's address.

    Whoever has the address may write: it must never be shown. Raises PreconditionError when the object is there.
    """
    blob = _blob(uri)
    blob.metadata = metadata
    with _errors(uri):
        return blob.create_resumable_upload_session(
            content_type=content_type, size=size, if_generation_match=0, checksum=None, retry=_retry(uri)
        )


def locate(uri: str, generation: int | None) -> tuple[str, dict[str, str]]:
    """Where the bytes of an object are, at a generation or (None) as it is now, and the headers to ask for them with.

    https://cloud.google.com/storage/docs/json_api#encoding: the name is one segment of the path.
    """
    from google.auth.exceptions import GoogleAuthError

    bucket, name = parse_uri(uri)
    emulator = _emulator()
    url = f"{emulator or _ENDPOINT}/download/storage/v1/b/{quote(bucket, safe='')}/o/{quote(name, safe='')}"
    headers: dict[str, str] = {}
    try:
        _credentials(emulator).before_request(_auth_request(), "GET", url, headers)
    except GoogleAuthError as error:
        raise Interrupted(f"no token for GCS ({type(error).__name__})") from error
    return f"{url}?alt=media" + (f"&generation={generation}" if generation else ""), headers


@functools.cache
def _auth_request() -> Any:
    from google.auth.transport.requests import Request

    return Request()


def read_through(uri: str, generation: int | None, sink: Callable[[bytes], object], piece: int = PIECE) -> None:
    """Gives an object's bytes to `sink`, `piece` at a time, over as many connections as it takes. All of them are of
    one generation: the one that is given, else (None) the one that there is now.

    Raises PreconditionError when there is no such object, or it is another by now. It needs the credentials, and not
    the client, which weighs more than all the rest of a small process.
    """
    wire, wait, position, size = Wire(), Patience(), 0, -1
    try:
        while position != size:
            try:
                answer = _open(wire, uri, generation, position)
                if answer.length is None:
                    raise Interrupted("GCS does not say how much it sends")
                size = position + answer.length
                generation = generation or int(answer.headers["X-Goog-Generation"])
                for data in pieces(wire, answer, size - position, piece):
                    sink(data)
                    position += len(data)
                    wait.progress()
            except Interrupted as error:
                wire.close()
                wait.wait(uri, error)
    finally:
        wire.close()


def _open(wire: Wire, uri: str, generation: int | None, position: int) -> HTTPResponse:
    """An object's bytes from a position on, as they are stored. Raises Interrupted for what may heal."""
    url, headers = locate(uri, generation)
    if position:
        headers["Range"] = f"bytes={position}-"
    answer = wire.send("GET", url, {**headers, "Accept-Encoding": "gzip"})
    if answer.status == (206 if position else 200):
        return answer
    said = wire.read(answer, 300).decode(errors="replace").strip()
    wire.close()
    if answer.status in (408, 429) or answer.status >= 500:
        raise Interrupted(f"GCS answered {answer.status}", retry_after(answer.headers))
    if answer.status == 404 and "bucket does not exist" not in said:
        raise PreconditionError(f"{uri} was deleted or written again since it was listed")
    from google.api_core.exceptions import from_http_status  # Weighs something, too.

    with _errors(uri):
        raise from_http_status(answer.status, said)


def call(bucket: str, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """The answer of what GCS's JSON API has below a bucket, and its client no method for. Done twice, it is to be the
    same.

    Raises google.api_core's NotFound and Conflict (to be looked at), else what everything here raises.
    """
    from google.api_core import exceptions

    uri = f"gs://{bucket}"
    connection = client()._connection  # The client's own way to the API, with its credentials; it offers no other.
    request = functools.partial(connection.api_request, method, f"/b/{quote(bucket, safe='')}/{path}", data=body)
    with _errors(uri, role=POLICY_ROLE):
        try:
            found: dict[str, Any] = _retry(uri)(request)()
        except (exceptions.NotFound, exceptions.Conflict) as error:
            if _bucket_is_missing(error):
                raise
            refused = error
        else:
            return found
    raise refused


def region_of(bucket: str) -> str:
    """The one region of a bucket, as in us-central1; empty for a bucket of several. Raises RequestError when there is
    no such bucket."""
    found = _bucket(bucket)
    with _errors(f"gs://{bucket}", role=BUCKET_ROLE):
        found.reload(retry=_retry(f"gs://{bucket}"))
    return str(found.location).lower() if found.location_type == "region" else ""


# -- the bucket's IAM policy --------------------------------------------------------------------------------


def has_bucket_binding(bucket: str, role: str, member: str) -> bool:
    """Whether the bucket's policy gives the role to the member, without a condition."""
    with _errors(f"gs://{bucket}", role=POLICY_ROLE):
        return _holds(_policy(bucket), role, member)


def ensure_bucket_binding(bucket: str, role: str, member: str) -> bool:
    """Gives the role to the member unless the policy does already: returns whether it changed anything.

    The policy's etag goes with the change, so that no other change of it is lost.
    """
    from google.api_core.exceptions import Conflict, PreconditionFailed

    with _errors(f"gs://{bucket}", role=POLICY_ROLE):
        for _ in range(10):
            policy = _policy(bucket)
            if _holds(policy, role, member):
                return False
            policy.bindings.append({"role": role, "members": {member}})
            try:
                _bucket(bucket).set_iam_policy(policy, retry=_retry(f"gs://{bucket}"))
            except (Conflict, PreconditionFailed):
                continue  # Somebody changed it meanwhile: look again.
            return True
    raise InconclusiveError(f"gs://{bucket}: its IAM policy kept changing while {role} was being added. Run again")


def remove_bucket_binding(bucket: str, role: str, member: str) -> bool:
    """Takes the role from the member, where the policy gives it without a condition: returns whether it did."""
    from google.api_core.exceptions import Conflict, PreconditionFailed

    with _errors(f"gs://{bucket}", role=POLICY_ROLE):
        for _ in range(10):
            policy = _policy(bucket)
            if not _holds(policy, role, member):
                return False
            for binding in policy.bindings:
                if binding["role"] == role and not binding.get("condition"):
                    binding["members"] = set(binding["members"]) - {member}
            policy.bindings = [binding for binding in policy.bindings if binding["members"]]
            try:
                _bucket(bucket).set_iam_policy(policy, retry=_retry(f"gs://{bucket}"))
            except (Conflict, PreconditionFailed):
                continue  # Somebody changed it meanwhile: look again.
            return True
    raise InconclusiveError(f"gs://{bucket}: its IAM policy kept changing while {role} was being taken. Run again")


def _policy(bucket: str) -> Any:
    retry = _retry(f"gs://{bucket}")
    return _bucket(bucket).get_iam_policy(requested_policy_version=3, retry=retry)


def _holds(policy: Any, role: str, member: str) -> bool:
    return any(
        binding["role"] == role and member in binding["members"] and not binding.get("condition")
        for binding in policy.bindings
    )


# -- the client ---------------------------------------------------------------------------------------------


def grant(uri: str, role: str) -> str:
    """What a person does about a refusal, for an error's end."""
    return (
        f"Grant the pipeline's service account {role}: `gcloud storage buckets add-iam-policy-binding "
        f"gs://{parse_uri(uri)[0]} --member=serviceAccount:… --role={role}`"
    )


def client() -> Any:
    """The storage client. Raises AccessError when this machine has no Google credentials."""
    return _client(_emulator())


def _emulator() -> str:
    """The address of another implementation of GCS, where the library's own variable names one."""
    return os.environ.get("STORAGE_EMULATOR_HOST", "")


@functools.lru_cache(maxsize=1)
def _client(emulator: str) -> Any:
    """One client a process (and address): its connections are kept."""
    from google.cloud.storage import Client

    # No call here needs a project: buckets have one name in the world.
    return Client(project=None, credentials=_credentials(emulator))


@functools.lru_cache(maxsize=1)
def _credentials(emulator: str) -> Any:
    """What GCS is asked with: as the library has it, nothing where an emulator is named."""
    from google.auth.credentials import AnonymousCredentials

    return AnonymousCredentials() if emulator else google.credentials()


def _blob(uri: str) -> Any:
    bucket, name = parse_uri(uri)
    return _bucket(bucket).blob(name)


def _bucket(name: str) -> Any:
    try:
        return client().bucket(name)
    except ValueError as error:
        raise RequestError(f"gs://{name} is no bucket: {error}") from error


def _stored(blob: Any) -> StoredObject:
    return StoredObject(
        f"gs://{blob.bucket.name}/{blob.name}",
        blob.size,
        blob.crc32c,
        int(blob.generation),
        dict(blob.metadata or {}),
        blob.md5_hash,
        blob.content_encoding,
        int(blob.metageneration),
    )


def _retry(uri: str, wait: Patience | None = None) -> Any:
    """How the library tries again what may heal: every write here has a precondition, or is the same done twice."""
    from google.api_core.retry import Retry
    from google.cloud.storage.retry import DEFAULT_RETRY

    waiting = wait or Patience()

    def pause(error: Exception) -> None:
        # Here and not in the library, which would sleep on in a process that is told to end.
        waiting.wait(uri, Interrupted(f"GCS did not answer: {error}"))

    predicate = DEFAULT_RETRY._predicate  # What is transient: the library offers no other way to it.
    return Retry(predicate=predicate, initial=0, maximum=0, timeout=None, on_error=pause)


def _bucket_is_missing(error: Exception) -> bool:
    return "bucket does not exist" in str(error)


@contextmanager
def _errors(uri: str, *, role: str = OBJECTS_ROLE, setting: str = "bucket") -> Iterator[None]:
    """Says in our words what the library raises; `role` is the one whose lack a refusal tells of, `setting` the one
    that named the bucket."""
    import requests
    from google.api_core import exceptions
    from google.auth.exceptions import GoogleAuthError
    from google.cloud.storage.exceptions import DataCorruption

    bucket = parse_uri(uri)[0]
    try:
        yield
    except exceptions.NotFound as error:
        if setting != "bucket":
            raise RequestError(
                f"gs://{bucket} does not exist. `gcloud storage buckets list` shows those that do; correct `{setting}`"
            ) from error
        raise RequestError(
            f"gs://{bucket} does not exist. Create it: `gcloud storage buckets create gs://{bucket} "
            "--uniform-bucket-level-access --location=LOCATION`, or set `bucket` in the settings"
        ) from error
    except (exceptions.Forbidden, exceptions.Unauthorized) as error:
        raise AccessError(f"{uri}: {google.said(error)}. {grant(uri, role)}") from error
    except exceptions.PreconditionFailed as error:
        raise PreconditionError(f"{uri} changed since it was read") from error
    except exceptions.ClientError as error:
        raise RequestError(f"{uri}: GCS refused the request: {google.said(error)}") from error
    except (
        exceptions.GoogleAPIError,
        requests.RequestException,
        GoogleAuthError,
        DataCorruption,
        ConnectionError,
    ) as error:
        raise InconclusiveError(f"{uri}: GCS did not answer: {google.said(error)}. Run again") from error
