"""Path → answer: Docker's registry protocol as a client speaks it that pulls.

A blob comes by a redirect to another host, which is this same port under loopback's other name (`localhost` for who
came by an address, 127.0.0.1 for who came by `localhost`): a client has to leave its Authorization header behind there.
"""

from __future__ import annotations

import hmac
import re
from typing import TYPE_CHECKING
from urllib.parse import quote

from emulated_cloud.registry import errors, resources

if TYPE_CHECKING:
    from emulated_cloud.registry.server import RegistryHandler, RegistryServer

VERSION = {"Docker-Distribution-Api-Version": "registry/2.0"}
_REPOSITORY = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*"
_TAG = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_DIGEST = r"sha256:[0-9a-f]{64}"


def answer(request: RegistryHandler, server: RegistryServer) -> None:
    """Raises HttpError."""
    path = request.url_path
    if request.command not in ("GET", "HEAD"):
        raise errors.unsupported()
    if path == "/token":
        return _token(request, server)
    if path in ("/v2", "/v2/"):
        if not request.user():
            raise errors.unauthorized(request.origin, "")
        return request.send_json({}, headers=VERSION)
    if found := re.fullmatch(rf"/v2/({_REPOSITORY})/manifests/({_TAG}|{_DIGEST})", path):
        _check(request, server, found[1])
        return _manifest(request, server, found[1], found[2])
    if found := re.fullmatch(rf"/v2/({_REPOSITORY})/blobs/({_DIGEST})", path):
        _check(request, server, found[1])
        return _blob(request, server, found[2])
    if found := re.fullmatch(rf"/blobs/({_DIGEST})", path):
        return _bytes(request, server, found[1])
    raise errors.not_found()


def _token(request: RegistryHandler, server: RegistryServer) -> None:
    scope = request.query.get("scope", "")
    kind, _, rest = scope.partition(":")
    repository, _, _ = rest.rpartition(":")
    if scope and kind != "repository":
        raise errors.denied()
    given = server.access.give(request.headers.get("Authorization"), repository)
    request.send_json(resources.token(given, server.access.seconds))


def _check(request: RegistryHandler, server: RegistryServer, repository: str) -> None:
    authorization = request.headers.get("Authorization")
    if not server.access.may_pull(authorization, repository):
        raise errors.unauthorized(request.origin, repository)
    if server.is_absent(repository):
        raise errors.name_unknown(repository)


def _manifest(request: RegistryHandler, server: RegistryServer, repository: str, reference: str) -> None:
    is_digest = reference.startswith("sha256:")
    if not is_digest and server.is_absent(f"{repository}:{reference}"):
        raise errors.manifest_unknown(reference)
    digest = reference if is_digest else server.images.make(repository, reference)
    content = server.images.manifest(repository, digest)
    if content is None:
        raise errors.manifest_unknown(reference)
    headers = {**VERSION, "Content-Type": resources.media_type(content), "Docker-Content-Digest": digest}
    request.send(200, content, headers)


def _blob(request: RegistryHandler, server: RegistryServer, digest: str) -> None:
    if not server.images.blob(digest).exists():
        raise errors.blob_unknown(digest)
    host, _, port = request.headers.get("Host", "").rpartition(":")
    path = f"/blobs/{digest}"
    other = "127.0.0.1" if host == "localhost" else "localhost"
    link = f"http://{other}:{port}{quote(path, safe='/:')}?Signature={server.access.sign(path)}"
    request.send(307, "", {**VERSION, "Location": link, "Docker-Content-Digest": digest})


def _bytes(request: RegistryHandler, server: RegistryServer, digest: str) -> None:
    if "Authorization" in request.headers:
        words = "Only one auth mechanism allowed; only the Signature query string parameter or the Authorization"
        raise errors.blob_host(400, "InvalidArgument", f"{words} header should be specified")
    if not hmac.compare_digest(server.access.sign(f"/blobs/{digest}"), request.query.get("Signature", "")):
        raise errors.blob_host(403, "SignatureDoesNotMatch", "The request signature does not match")
    path = server.images.blob(digest)
    headers = {"Content-Type": "application/octet-stream", "ETag": f'"{digest}"', "Accept-Ranges": "bytes"}
    with open(path, "rb") as file:
        request.send_content(file, path.stat().st_size, headers)
