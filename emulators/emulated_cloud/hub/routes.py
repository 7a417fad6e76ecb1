"""Path → answer: the hub's wire protocol, as huggingface_hub 2.4.0 and the `hf` command speak it, and its CDN.

Files in git come through a relative 307 to `/api/resolve-cache/…`; files in LFS through a 302 to a signed link on
another host. The other host is this same port under loopback's other name (`localhost` for who came by an address,
127.0.0.1 for who came by `localhost`), so that a client drops its Authorization header there as it does between the
real hub and its CDN; when it does not, the CDN refuses with 400, as S3 does. Xet is never offered.
"""

from __future__ import annotations

import hmac
import json
import time
from pathlib import Path
from urllib.parse import parse_qs, quote, urlencode

from emulated_cloud.http import Handler
from emulated_cloud.hub import errors, resources
from emulated_cloud.hub.access import Access
from emulated_cloud.hub.repository import Commit, File, Repository, RepositoryError


def answer(request: Handler, root: Path, access: Access) -> None:
    """Answers a request for what lies below `root`. Raises HubError, HttpError."""
    Exchange(request, root, access).route()


class Exchange:
    """A request and what it is about."""

    def __init__(self, request: Handler, root: Path, access: Access):
        self.request, self.root, self.access = request, root, access

    def route(self) -> None:
        reading = self.request.command in ("GET", "HEAD")
        match self.request.segments():
            case ["cdn", _, _, sha256] if reading:
                return self.cdn(sha256)
            case ["api", "whoami-v2"] if self.request.command == "GET":
                return self.whoami()
            case ["api", "models", org, name, *rest]:
                return self.api(self.repository(org, name), rest)
            case ["api", "resolve-cache", "models", org, name, revision, *path] if reading:
                return self.resolve_cache(self.repository(org, name), revision, "/".join(path))
            case [org, name, "resolve", revision, *path] if path and reading:
                return self.resolve(self.repository(org, name), revision, "/".join(path))
        raise errors.no_such_page()

    def api(self, repository: Repository, rest: list[str]) -> None:
        match self.request.command, rest:
            case "GET", []:
                return self.model_info(repository, "main")
            case "GET", ["revision", revision]:
                return self.model_info(repository, revision)
            case "GET", ["tree", revision, *path]:
                return self.tree(repository, revision, "/".join(path))
            case "GET", ["refs"]:
                return self.request.send_json(resources.refs(repository))
            case "GET", ["auth-check"]:
                self.check_access(repository)
                return self.request.send_json({})
            case "POST", ["paths-info", revision]:
                return self.paths_info(repository, revision)
        raise errors.no_such_page()

    def caller(self) -> dict | None:
        return self.access.entry(self.request.headers.get("Authorization"))

    def repository(self, org: str, name: str) -> Repository:
        """The repository, for whoever may know of it."""
        anonymous = self.caller() is None
        try:
            repository = Repository(self.root, f"{org}/{name}")
        except RepositoryError:
            raise errors.no_such_repository(anonymous=False) from None
        if not repository.exists():
            raise errors.no_such_repository(anonymous)
        return repository

    def check_access(self, repository: Repository) -> None:
        if repository.repo_id not in self.access.gated:
            return
        entry = self.caller()
        if entry is None or repository.repo_id not in entry.get("granted", []):
            raise errors.gated(repository.repo_id, entry is None, self.request.origin)

    @staticmethod
    def commit(repository: Repository, revision: str) -> Commit:
        commit = repository.resolve(revision)
        if commit is None:
            raise errors.no_such_revision(revision)
        return commit

    # -- the API --------------------------------------------------------------------------------------------

    def whoami(self) -> None:
        entry = self.caller()
        if entry is None:
            raise errors.not_logged_in()
        self.request.send_json(resources.user_info(entry["user"]))

    def model_info(self, repository: Repository, revision: str) -> None:
        """Open to everyone even when the repository is gated, as on the hub: only files are behind the gate."""
        commit, gated = self.commit(repository, revision), repository.repo_id in self.access.gated
        self.request.send_json(resources.model_info(repository, commit, gated, with_blobs=self.asks_for("blobs")))

    def tree(self, repository: Repository, revision: str, path: str) -> None:
        commit = self.commit(repository, revision)
        entries = resources.tree_entries(commit)
        if path and entries.get(path, {}).get("type") != "directory":
            raise errors.no_such_folder(path, revision)
        prefix = f"{path}/" if path else ""
        below = [entry for name, entry in entries.items() if name.startswith(prefix)]
        if not self.asks_for("recursive"):
            below = [entry for entry in below if "/" not in entry["path"][len(prefix) :]]
        self.request.send_json(below, headers={"X-Repo-Commit": commit.sha})

    def paths_info(self, repository: Repository, revision: str) -> None:
        entries = resources.tree_entries(self.commit(repository, revision))
        body = self.request.read_body()
        if self.request.headers.get("Content-Type", "").startswith("application/json"):
            paths = json.loads(body)["paths"]
        else:
            paths = parse_qs(body.decode())["paths"]
        self.request.send_json([entries[path] for path in paths if path in entries])

    def asks_for(self, parameter: str) -> bool:
        return self.request.query.get(parameter, "").lower() in ("true", "1")

    # -- files ----------------------------------------------------------------------------------------------

    def file_at(self, repository: Repository, revision: str, path: str) -> tuple[Commit, File]:
        self.check_access(repository)
        commit = self.commit(repository, revision)
        if path not in commit.files:
            raise errors.no_such_file(commit.sha)
        try:
            repository.object_path(commit.files[path])
        except RepositoryError as error:
            raise errors.HubError(500, str(error)) from None
        return commit, commit.files[path]

    def resolve(self, repository: Repository, revision: str, path: str) -> None:
        commit, file = self.file_at(repository, revision, path)
        etag = resources.etag(file)
        headers = {
            "X-Repo-Commit": commit.sha,
            "X-Linked-Size": str(file.size),
            "X-Linked-ETag": etag,
            "Accept-Ranges": "bytes",
        }
        if file.lfs:
            self.request.send(302, "", {**headers, "Location": self.signed_link(repository, file)})
        else:
            query = urlencode({self.request.url_path: "", "etag": etag})
            location = f"/api/resolve-cache/models/{repository.repo_id}/{commit.sha}/{quote(path)}?{query}"
            words = f"Temporary Redirect. Redirecting to {location}"
            self.request.send(307, words, {**headers, "Location": location})

    def resolve_cache(self, repository: Repository, revision: str, path: str) -> None:
        commit, file = self.file_at(repository, revision, path)
        headers = {"X-Repo-Commit": commit.sha, "ETag": resources.etag(file)}
        self.send_content(repository.object_path(file), headers)

    def signed_link(self, repository: Repository, file: File) -> str:
        host, _, port = self.request.headers.get("Host", "").rpartition(":")
        cdn = f"http://{'127.0.0.1' if host == 'localhost' else 'localhost'}:{port}"
        path = f"/cdn/{repository.repo_id}/{file.sha256}"
        expires = int(time.time() + self.access.signature_seconds)
        name = file.path.rpartition("/")[2]
        query = {
            "response-content-disposition": f'inline; filename="{name}";',
            "Expires": expires,
            "Signature": self.access.sign(path, expires),
        }
        return f"{cdn}{path}?{urlencode(query)}"

    def cdn(self, sha256: str) -> None:
        query = self.request.query
        if "Authorization" in self.request.headers:
            words = "Only one auth mechanism allowed; only the Signature query string parameter or the Authorization"
            raise errors.cdn(400, "InvalidArgument", f"{words} header should be specified")
        expires = query.get("Expires", "")
        signature = self.access.sign(self.request.url_path, int(expires)) if expires.isdigit() else ""
        if not hmac.compare_digest(signature, query.get("Signature", "-")):
            raise errors.cdn(403, "SignatureDoesNotMatch", "The request signature does not match")
        if time.time() >= int(expires):
            raise errors.cdn(403, "AccessDenied", "Request has expired")
        self.send_content(
            self.root / "objects" / sha256,
            {"ETag": f'"{sha256}"', "Content-Disposition": query["response-content-disposition"]},
        )

    def send_content(self, path: Path, headers: dict[str, str]) -> None:
        headers = {**headers, "Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
        with open(path, "rb") as file:
            self.request.send_content(file, path.stat().st_size, headers)
