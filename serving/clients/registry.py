"""Container registries over the OCI distribution protocol: what an image's name means now, and what it is made of.

https://github.com/opencontainers/distribution-spec/blob/main/spec.md. Artifact Registry is asked with the caller's own
Google credentials, any other registry without credentials, as its own challenge says.
`GEMMA_PIPELINES_REGISTRY_ENDPOINT` (scheme and host of a pull-through mirror) stands for every registry.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import urllib.request
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from serving.clients import google
from serving.clients.patience import Interrupted, Patience
from serving.clients.wire import retry_after
from serving.errors import AccessError, RequestError

REGISTRY_ENDPOINT = "GEMMA_PIPELINES_REGISTRY_ENDPOINT"
READER_ROLE = "roles/artifactregistry.reader"

_DOCKER_HUB = "docker.io"
_HOSTS = {_DOCKER_HUB: "registry-1.docker.io"}
"""Registries that answer under another name than the one that images call them by."""
_GOOGLE = re.compile(r"(.+-docker\.)?pkg\.dev|(.+\.)?gcr\.io")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")

_MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_LARGEST_DOCUMENT = 8 << 20
"""Bytes. Registries refuse manifests of more than 4 MiB."""
_SILENCE_SECONDS = 30.0
_WRAPS_AT = 1 << 32
"""gzip says how long its content is modulo this."""
_LIKELY_RATIO = 8
"""Layers are hardly ever packed better than this."""


@dataclass(frozen=True)
class Reference:
    """An image's name, read as docker reads it: `repository` on the registry `host`, at a tag or a digest."""

    host: str
    repository: str
    version: str
    """The tag, or the digest where the name has one."""


@dataclass(frozen=True)
class Layer:
    """A layer as it is stored. `size` in bytes, packed."""

    digest: str
    size: int
    media_type: str


@dataclass(frozen=True)
class ResolvedImage:
    """An image for one platform. Nothing about it can change."""

    name: str
    """HOST/REPOSITORY@DIGEST, the digest of the platform's own manifest."""
    registry_url: str
    """Scheme and host that were asked."""
    repository: str
    digest: str
    diff_ids: tuple[str, ...]
    """Digests of the unpacked layers, the lowest first."""
    layers: tuple[Layer, ...]
    auth: Literal["anonymous", "google"]
    """How the registry lets a reader in: with a Google token, or with whatever it gives to anybody."""

    @property
    def chain_ids(self) -> tuple[str, ...]:
        return chain_ids(self.diff_ids)


def chain_ids(diff_ids: Iterable[str]) -> tuple[str, ...]:
    """What containerd calls layers in their places: a digest over a layer and all that lie below it.

    https://github.com/opencontainers/image-spec/blob/main/config.md#layer-chainid
    """
    chain: list[str] = []
    for diff_id in diff_ids:
        chain.append("sha256:" + hashlib.sha256(f"{chain[-1]} {diff_id}".encode()).hexdigest() if chain else diff_id)
    return tuple(chain)


def parse(image: str) -> Reference:
    """The parts of an image's name. Raises RequestError for one that is no name."""
    rest, _, digest = image.partition("@")
    host, slash, path = rest.partition("/")
    if not slash or not ("." in host or ":" in host or host == "localhost"):
        host, path = _DOCKER_HUB, rest
    repository, _, tag = path.partition(":")
    if host == _DOCKER_HUB and "/" not in repository:
        repository = f"library/{repository}"
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*(/[a-z0-9][a-z0-9._-]*)*", repository) or (
        digest and not _DIGEST.fullmatch(digest)
    ):
        raise RequestError(f"{image!r} is no image's name: write it like REGISTRY/PATH:TAG or REGISTRY/PATH@sha256:…")
    return Reference(host, repository, digest or tag or "latest")


def resolve(image: str, platform: str = "linux/amd64") -> ResolvedImage:
    """What an image's name means now on a platform (`OS/ARCHITECTURE`).

    Raises RequestError when there is no such image or it is not for that platform, AccessError when the registry does
    not let us read it, InconclusiveError when it does not answer.
    """
    reference = parse(image)
    with closing(_Registry(reference, image)) as registry:
        try:
            digest, manifest = registry.manifest(reference.version)
            if "manifests" in manifest:
                digest, manifest = registry.manifest(_of_platform(manifest, platform, image))
            config = registry.document(manifest["config"]["digest"])
            layers = tuple(Layer(each["digest"], each["size"], each["mediaType"]) for each in manifest["layers"])
            diff_ids = tuple(config["rootfs"]["diff_ids"])
            built_for = f"{config['os']}/{config['architecture']}"
        except (KeyError, TypeError) as error:
            raise RequestError(f"{image} is no image of layers (its manifest or config lacks {error})") from error
    if built_for != platform:
        raise RequestError(f"{image} is for {built_for}, and {platform} is needed: name an image that is built for it")
    if len(layers) != len(diff_ids) or not layers:
        raise RequestError(f"{image} is damaged: {len(layers)} layers, and digests of {len(diff_ids)}")
    return ResolvedImage(
        f"{reference.host}/{reference.repository}@{digest}",
        registry.url,
        reference.repository,
        digest,
        diff_ids,
        layers,
        registry.auth,
    )


def unpacked_bytes(image: ResolvedImage) -> dict[str, int]:
    """How much room the image's layers take unpacked, by chain ID: at least that, where a layer is so large that gzip's
    own word on its length may be short of a few times 4 GiB.

    Raises what `resolve` raises.
    """
    with closing(_Registry(parse(image.name), image.name)) as registry:
        return {
            chain_id: _room(layer, registry.last_bytes(layer, 4) if _is_gzip(layer) else b"")
            for chain_id, layer in zip(image.chain_ids, image.layers, strict=True)
        }


def _is_gzip(layer: Layer) -> bool:
    return layer.media_type.endswith(("+gzip", ".gzip"))


def _room(layer: Layer, last: bytes) -> int:
    """`last`: the last four bytes of what is packed with gzip, its length modulo 4 GiB (RFC 1952, ISIZE)."""
    if layer.media_type.endswith(".tar"):
        return layer.size
    if len(last) != 4:
        # zstd, or a registry that gives no parts of blobs.
        return layer.size * _LIKELY_RATIO // 2
    room = int.from_bytes(last, "little")
    while room < layer.size:
        room += _WRAPS_AT
    could_be = room + _WRAPS_AT
    return could_be if could_be <= layer.size * _LIKELY_RATIO else room


def _of_platform(index: dict[str, Any], platform: str, image: str) -> str:
    """The digest of the platform's manifest."""
    found: dict[str, str] = {}
    for each in index["manifests"]:
        its = each.get("platform", {})
        # An image may be there in variants of one architecture: the first is the plain one.
        found.setdefault(f"{its.get('os')}/{its.get('architecture')}", each["digest"])
    if platform not in found:
        there = ", ".join(sorted(name for name in found if "unknown" not in name)) or "none"
        raise RequestError(f"{image} is not for {platform}; it is for {there}")
    return found[platform]


class _Registry:
    """One repository of a registry, as this caller may read it."""

    def __init__(self, reference: Reference, image: str):
        import requests

        self.auth: Literal["anonymous", "google"] = "google" if _GOOGLE.fullmatch(reference.host) else "anonymous"
        host = _HOSTS.get(reference.host, reference.host)
        self.url = os.environ.get(REGISTRY_ENDPOINT, f"https://{host}").rstrip("/")
        self._image, self._host, self._repository = image, reference.host, reference.repository
        self._credentials = google.credentials() if self.auth == "google" else None
        self._token = ""
        self._session = requests.Session()
        # A netrc may know the host, and would speak first.
        self._session.auth = self._authorize

    def close(self) -> None:
        self._session.close()

    def manifest(self, version: str) -> tuple[str, dict[str, Any]]:
        """A manifest or an index at a tag or digest, with its digest."""
        headers = {"Accept": ", ".join((*_MANIFESTS, *_INDEXES))}
        content = self._read(f"manifests/{version}", headers, version if _DIGEST.fullmatch(version) else "")
        return "sha256:" + hashlib.sha256(content).hexdigest(), self._parsed(content)

    def document(self, digest: str) -> dict[str, Any]:
        """A blob that is JSON."""
        return self._parsed(self._read(f"blobs/{digest}", {}, digest))

    def last_bytes(self, layer: Layer, count: int) -> bytes:
        """The end of a blob; empty where the registry gives no parts of blobs."""
        first = max(0, layer.size - count)
        return self._read(f"blobs/{layer.digest}", {"Range": f"bytes={first}-{layer.size - 1}"}, "")

    def _parsed(self, content: bytes) -> dict[str, Any]:
        try:
            return dict(json.loads(content))
        except (ValueError, TypeError) as error:
            raise RequestError(f"{self._image}: {self.url} answered something that is no manifest ({error})") from error

    def _read(self, path: str, headers: dict[str, str], digest: str) -> bytes:
        """A small answer's bytes, which are those of `digest` if one is given."""

        def attempt() -> bytes:
            content = self._get(path, headers)
            if digest and "sha256:" + hashlib.sha256(content).hexdigest() != digest:
                raise Interrupted(f"{path} came with other bytes than its digest says")
            return content

        return bytes(Patience().until_it_works(f"{self._image}: {self.url}", attempt))

    def _get(self, path: str, headers: dict[str, str]) -> bytes:
        import requests

        url = f"{self.url}/v2/{self._repository}/{path}"
        try:
            answer = self._ask(url, headers)
            if answer.status_code == 401 and self.auth == "anonymous":
                # The first time, or the token has run out.
                answer.close()
                self._token = self._token_of(answer.headers.get("WWW-Authenticate", ""))
                answer = self._ask(url, headers)
            with answer:
                if "Range" in headers and answer.status_code == 200:
                    return b""
                if answer.status_code not in (200, 206):
                    raise self._refused(answer)
                return b"".join(_limited(answer.iter_content(1 << 16), self._image))
        except requests.RequestException as error:
            raise Interrupted(f"no answer ({type(error).__name__})") from error

    def _ask(self, url: str, headers: dict[str, str]) -> Any:
        return self._session.get(url, headers=headers, stream=True, timeout=_SILENCE_SECONDS)

    def _authorize(self, request: Any) -> Any:
        token = google.refreshed(self._credentials) if self._credentials else self._token
        if token:
            request.headers["Authorization"] = f"Bearer {token}"
        return request

    def _token_of(self, challenge: str) -> str:
        """The token that the registry's own challenge says anybody may have.

        https://distribution.github.io/distribution/spec/auth/token/
        """
        scheme, _, rest = challenge.partition(" ")
        said = urllib.request.parse_keqv_list(urllib.request.parse_http_list(rest)) if scheme == "Bearer" else {}
        realm = said.pop("realm", "")
        if urlsplit(realm).scheme not in ("http", "https"):
            raise AccessError(f"{self._image} may not be read without a login. {self._cure()}")
        said.setdefault("scope", f"repository:{self._repository}:pull")
        wanted = {key: said[key] for key in ("service", "scope") if key in said}
        answer = self._session.get(realm, params=wanted, auth=_nobody, timeout=_SILENCE_SECONDS)
        if answer.status_code != 200:
            raise self._refused(answer)
        given = self._parsed(answer.content)
        return str(given.get("token") or given.get("access_token") or "")

    def _refused(self, answer: Any) -> Exception:
        status = answer.status_code
        if status in (401, 403):
            return AccessError(f"{self._image} may not be read ({self.url} answered {status}). {self._cure()}")
        if status == 404:
            return RequestError(f"{self._image} does not exist ({self.url} answered 404). Correct its name or tag")
        if status in (408, 429) or status >= 500:
            return Interrupted(f"it answered {status}", retry_after(answer.headers))
        return RequestError(f"{self._image}: {self.url} refused the request ({status})")

    def _cure(self) -> str:
        if self.auth == "google":
            return (
                f"Grant the pipeline's service account {READER_ROLE}: `gcloud artifacts repositories "
                f"add-iam-policy-binding REPOSITORY --member=serviceAccount:… --role={READER_ROLE}`"
            )
        return (
            f"Nobody logs in to {self._host} here: set images.registry to a repository of Artifact Registry that "
            "mirrors it"
        )


def _nobody(request: Any) -> Any:
    return request


def _limited(pieces: Iterable[bytes], image: str) -> Iterable[bytes]:
    left = _LARGEST_DOCUMENT
    for piece in pieces:
        left -= len(piece)
        if left < 0:
            raise RequestError(f"{image}: its manifest or config is larger than {_LARGEST_DOCUMENT >> 20} MiB")
        yield piece
