"""The hub's wire protocol, as huggingface_hub 2.4.0 and the `hf` command speak it, and the CDN behind it.

Files in git come through a relative 307 to `/api/resolve-cache/…`; files in LFS through a 302 to a signed link on
another host. The other host is this same port under loopback's other name (`localhost` for who came by an address,
127.0.0.1 for who came by `localhost`), so that a client drops its Authorization header there as it does between the
real hub and its CDN; when it does not, the CDN refuses with 400, as S3 does. Xet is never offered.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlencode

from emulated_cloud.http import EmulatorServer, Handler, HttpError
from emulated_cloud.hub.repository import Commit, File, Repository, RepositoryError

SIGNATURE_SECONDS = 3600


class HubServer(EmulatorServer):
    """Serves the repositories below `root`.

    gated: repository ids that only users with a grant may read the files of.
    tokens: a JSON file `{token: {"user": name, "granted": [repo ids]}}`, read at each request; without it no token is
    valid. signature_seconds: how long a link to the CDN lives.
    """

    def __init__(
        self,
        address: tuple[str, int],
        root: Path | str,
        *,
        gated: Iterable[str] = (),
        tokens: Path | None = None,
        signature_seconds: float = SIGNATURE_SECONDS,
        request_log: Path | None = None,
    ):
        self.root, self.gated, self.tokens = Path(root), set(gated), tokens
        self.signature_seconds = signature_seconds
        self.key = secrets.token_bytes(32)
        super().__init__(address, HubHandler, request_log)

    def sign(self, path: str, expires: int) -> str:
        return hmac.new(self.key, f"{path}\n{expires}".encode(), hashlib.sha256).hexdigest()


class HubHandler(Handler):
    """One connection to the hub or to its CDN."""

    server: HubServer

    # -- who asks -------------------------------------------------------------------------------------------

    def _token_entry(self) -> dict[str, Any] | None:
        """What is known of the caller's token; None for an anonymous caller. Raises HttpError 401 for a bad token."""
        header = self.headers.get("Authorization")
        if not header:
            return None
        token = header.removeprefix("Bearer ").strip()
        tokens = json.loads(self.server.tokens.read_bytes()) if self.server.tokens else {}
        if token not in tokens:
            raise self._error(401, "Invalid credentials in Authorization header")
        return tokens[token]

    def user(self) -> str:
        try:
            entry = self._token_entry()
        except HttpError:
            return "invalid"
        return entry["user"] if entry else "anonymous"

    def logged_path(self) -> str:
        """Without the signature: whoever has it may read the file."""
        return re.sub(r"(?<=[?&]Signature=)[^&]*", "…", self.path)

    # -- routes ---------------------------------------------------------------------------------------------

    def route(self, method: str) -> None:
        match self.segments():
            case ["cdn", _, _, sha256] if method in ("GET", "HEAD"):
                return self._cdn(sha256)
            case ["api", "whoami-v2"] if method == "GET":
                return self._whoami()
            case ["api", "models", org, name, *rest]:
                return self._api(method, self._repository(org, name), rest)
            case ["api", "resolve-cache", "models", org, name, revision, *path] if method in ("GET", "HEAD"):
                return self._resolve_cache(self._repository(org, name), revision, "/".join(path))
            case [org, name, "resolve", revision, *path] if path and method in ("GET", "HEAD"):
                return self._resolve(self._repository(org, name), revision, "/".join(path))
        raise self._error(404, "Sorry, we can't find the page you are looking for.")

    def _api(self, method: str, repository: Repository, rest: list[str]) -> None:
        match method, rest:
            case "GET", []:
                return self._model_info(repository, "main")
            case "GET", ["revision", revision]:
                return self._model_info(repository, revision)
            case "GET", ["tree", revision, *path]:
                return self._tree(repository, revision, "/".join(path))
            case "GET", ["refs"]:
                return self._refs(repository)
            case "GET", ["auth-check"]:
                self._check_access(repository)
                return self.send_json({})
            case "POST", ["paths-info", revision]:
                return self._paths_info(repository, revision)
        raise self._error(404, "Sorry, we can't find the page you are looking for.")

    def _repository(self, org: str, name: str) -> Repository:
        """The repository, for whoever may know of it. An anonymous caller is not told whether it exists."""
        entry = self._token_entry()
        try:
            repository = Repository(self.server.root, f"{org}/{name}")
        except RepositoryError:
            raise self._error(404, "Repository not found", "RepoNotFound") from None
        if repository.exists():
            return repository
        if entry is None:
            raise self._error(401, "Invalid username or password.", "RepoNotFound")
        raise self._error(404, "Repository not found", "RepoNotFound")

    def _check_access(self, repository: Repository) -> None:
        if repository.repo_id not in self.server.gated:
            return
        entry = self._token_entry()
        restricted = f"Access to model {repository.repo_id} is restricted"
        if entry is None:
            words = "You must have access to it and be authenticated to access it. Please log in."
            raise self._error(401, f"{restricted}. {words}", "GatedRepo")
        if repository.repo_id not in entry.get("granted", []):
            words = f"Visit {self._origin()}/{repository.repo_id} to ask for access."
            raise self._error(403, f"{restricted} and you are not in the authorized list. {words}", "GatedRepo")

    def _commit(self, repository: Repository, revision: str) -> Commit:
        commit = repository.resolve(revision)
        if commit is None:
            raise self._error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    # -- the API --------------------------------------------------------------------------------------------

    def _error(self, status: int, message: str, code: str = "", headers: dict[str, str] | None = None) -> HttpError:
        """An error as the hub words it: JSON from the API, plain text elsewhere, and both in headers."""
        headers = {"X-Error-Message": message, **(headers or {})}
        if code:
            headers["X-Error-Code"] = code
        if status == 401:
            headers["WWW-Authenticate"] = 'Bearer realm="Authentication required", charset="UTF-8"'
        return HttpError(status, {"error": message} if self.url_path.startswith("/api/") else message, headers)

    def _whoami(self) -> None:
        entry = self._token_entry()
        if entry is None:
            raise self._error(401, "Invalid username or password.")
        token = {"type": "access_token", "accessToken": {"displayName": "emulated", "role": "read"}}
        self.send_json({"type": "user", "id": entry["user"], "name": entry["user"], "orgs": [], "auth": token})

    def _model_info(self, repository: Repository, revision: str) -> None:
        """Open to everyone even when the repository is gated, as on the hub: only files are behind the gate."""
        commit = self._commit(repository, revision)
        with_blobs = self.query.get("blobs", "").lower() in ("true", "1")
        card = _card(repository, commit)
        licenses = [f"license:{card['license']}"] if card.get("license") else []
        self.send_json(
            {
                "_id": hashlib.sha256(repository.repo_id.encode()).hexdigest()[:24],
                "id": repository.repo_id,
                "modelId": repository.repo_id,
                "author": repository.repo_id.split("/")[0],
                "sha": commit.sha,
                "private": False,
                "gated": "manual" if repository.repo_id in self.server.gated else False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "library_name": card.get("library_name"),
                "pipeline_tag": card.get("pipeline_tag"),
                "tags": [*card.get("tags", []), *licenses],
                "cardData": card,
                "siblings": [_sibling(file, with_blobs) for file in commit.files.values()],
            }
        )

    def _tree(self, repository: Repository, revision: str, path: str) -> None:
        commit = self._commit(repository, revision)
        entries = _tree_entries(commit)
        if path and entries.get(path, {}).get("type") != "directory":
            raise self._error(404, f"{path} does not exist on {revision!r}", "EntryNotFound")
        prefix = f"{path}/" if path else ""
        below = [entry for name, entry in entries.items() if name.startswith(prefix)]
        if self.query.get("recursive", "").lower() not in ("true", "1"):
            below = [entry for entry in below if "/" not in entry["path"][len(prefix) :]]
        self.send_json(below, headers={"X-Repo-Commit": commit.sha})

    def _paths_info(self, repository: Repository, revision: str) -> None:
        entries = _tree_entries(self._commit(repository, revision))
        body = self.read_body()
        if self.headers.get("Content-Type", "").startswith("application/json"):
            paths = json.loads(body)["paths"]
        else:
            paths = parse_qs(body.decode())["paths"]
        self.send_json([entries[path] for path in paths if path in entries])

    def _refs(self, repository: Repository) -> None:
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha}
            for name, sha in sorted(repository.branches().items())
        ]
        self.send_json({"branches": branches, "converts": [], "tags": [], "pullRequests": []})

    # -- files ----------------------------------------------------------------------------------------------

    def _file_at(self, repository: Repository, revision: str, path: str) -> tuple[Commit, File]:
        self._check_access(repository)
        commit = self._commit(repository, revision)
        if path not in commit.files:
            raise self._error(404, "Entry not found", "EntryNotFound", {"X-Repo-Commit": commit.sha})
        try:
            repository.object_path(commit.files[path])
        except RepositoryError as error:
            raise self._error(500, str(error)) from None
        return commit, commit.files[path]

    def _resolve(self, repository: Repository, revision: str, path: str) -> None:
        commit, file = self._file_at(repository, revision, path)
        etag = _etag(file)
        headers = {
            "X-Repo-Commit": commit.sha,
            "X-Linked-Size": str(file.size),
            "X-Linked-ETag": etag,
            "Accept-Ranges": "bytes",
        }
        if file.lfs:
            self.send(302, "", {**headers, "Location": self._signed_link(repository, file)})
        else:
            query = urlencode({self.url_path: "", "etag": etag})
            location = f"/api/resolve-cache/models/{repository.repo_id}/{commit.sha}/{quote(path)}?{query}"
            self.send(307, f"Temporary Redirect. Redirecting to {location}", {**headers, "Location": location})

    def _resolve_cache(self, repository: Repository, revision: str, path: str) -> None:
        commit, file = self._file_at(repository, revision, path)
        headers = {"X-Repo-Commit": commit.sha, "ETag": _etag(file)}
        self._send_content(repository.object_path(file), headers)

    def _origin(self) -> str:
        return f"http://{self.headers.get('Host')}"

    def _signed_link(self, repository: Repository, file: File) -> str:
        host, _, port = self.headers.get("Host", "").rpartition(":")
        cdn = f"http://{'127.0.0.1' if host == 'localhost' else 'localhost'}:{port}"
        path = f"/cdn/{repository.repo_id}/{file.sha256}"
        expires = int(time.time() + self.server.signature_seconds)
        name = file.path.rpartition("/")[2]
        query = {
            "response-content-disposition": f'inline; filename="{name}";',
            "Expires": expires,
            "Signature": self.server.sign(path, expires),
        }
        return f"{cdn}{path}?{urlencode(query)}"

    def _cdn(self, sha256: str) -> None:
        if "Authorization" in self.headers:
            words = "Only one auth mechanism allowed; only the Signature query string parameter or the Authorization"
            raise _xml_error(400, "InvalidArgument", f"{words} header should be specified")
        expires = self.query.get("Expires", "")
        signature = self.server.sign(self.url_path, int(expires)) if expires.isdigit() else ""
        if not hmac.compare_digest(signature, self.query.get("Signature", "-")):
            raise _xml_error(403, "SignatureDoesNotMatch", "The request signature does not match")
        if time.time() >= int(expires):
            raise _xml_error(403, "AccessDenied", "Request has expired")
        self._send_content(
            self.server.root / "objects" / sha256,
            {"ETag": f'"{sha256}"', "Content-Disposition": self.query["response-content-disposition"]},
        )

    def _send_content(self, path: Path, headers: dict[str, str]) -> None:
        """A file, whole or the one range that was asked for, by sendfile."""
        with open(path, "rb") as file:
            size = path.stat().st_size
            first, last = 0, size - 1
            headers = {**headers, "Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
            status = 200
            if wanted := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
                start, end = wanted.groups()
                if start:
                    first, last = int(start), min(int(end or last), last)
                elif end:
                    first = max(size - int(end), 0)
                if first > last:
                    raise HttpError(416, "", {"Content-Range": f"bytes */{size}"})
                status = 206
                headers["Content-Range"] = f"bytes {first}-{last}/{size}"
            self.start(status, {**headers, "Content-Length": str(last - first + 1)})
            self.send_file(file, first, last - first + 1)


def _xml_error(status: int, code: str, message: str) -> HttpError:
    """An error as object stores and their CDNs give it."""
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>'
    return HttpError(status, body, {"Content-Type": "application/xml"})


def _etag(file: File) -> str:
    return f'"{file.sha256 if file.lfs else file.blob_id}"'


def _sibling(file: File, with_blobs: bool) -> dict[str, Any]:
    """A file in a model's info; `blobs` adds what `files_metadata=True` asks for."""
    sibling: dict[str, Any] = {"rfilename": file.path}
    if with_blobs:
        sibling |= {"blobId": file.blob_id, "size": file.size}
        if file.lfs:
            sibling["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": file.pointer_size}
    return sibling


def _tree_entries(commit: Commit) -> dict[str, dict[str, Any]]:
    """Files and folders of a commit as the tree API lists them, by path."""
    entries: dict[str, dict[str, Any]] = {}
    for file in commit.files.values():
        parts = file.path.split("/")
        for depth in range(1, len(parts)):
            folder = "/".join(parts[:depth])
            oid = hashlib.sha1(f"{commit.sha} {folder}".encode(), usedforsecurity=False).hexdigest()
            entries.setdefault(folder, {"type": "directory", "oid": oid, "size": 0, "path": folder})
        entries[file.path] = {"type": "file", "oid": file.blob_id, "size": file.size, "path": file.path}
        if file.lfs:
            entries[file.path]["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": file.pointer_size}
    return entries


def _card(repository: Repository, commit: Commit) -> dict[str, Any]:
    """The YAML at the top of README.md: the model card's data."""
    import yaml

    if "README.md" not in commit.files:
        return {}
    text = repository.object_path(commit.files["README.md"]).read_text()
    front_matter = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    return (yaml.safe_load(front_matter[1]) or {}) if front_matter else {}
