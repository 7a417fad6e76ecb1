"""What the hub answers when it refuses, in its own words, and what the CDN behind it says."""

from __future__ import annotations

from emulated_cloud.http import HttpError


class HubError(Exception):
    """A refusal of the hub. `code` is what huggingface_hub tells one from another by."""

    def __init__(self, status: int, message: str, code: str = "", headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status, self.message, self.code, self.headers = status, message, code, headers or {}

    def answer(self, as_json: bool) -> HttpError:
        """The API says it in JSON, the other pages in plain text, and both say it in headers."""
        headers = {"X-Error-Message": self.message, **self.headers}
        if self.code:
            headers["X-Error-Code"] = self.code
        if self.status == 401:
            headers["WWW-Authenticate"] = 'Bearer realm="Authentication required", charset="UTF-8"'
        return HttpError(self.status, {"error": self.message} if as_json else self.message, headers)


def no_such_page() -> HubError:
    return HubError(404, "Sorry, we can't find the page you are looking for.")


def no_such_repository(anonymous: bool) -> HubError:
    """An anonymous caller is not told whether it exists."""
    if anonymous:
        return HubError(401, "Invalid username or password.", "RepoNotFound")
    return HubError(404, "Repository not found", "RepoNotFound")


def no_such_revision(revision: str) -> HubError:
    return HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")


def no_such_folder(path: str, revision: str) -> HubError:
    return HubError(404, f"{path} does not exist on {revision!r}", "EntryNotFound")


def no_such_file(commit: str) -> HubError:
    return HubError(404, "Entry not found", "EntryNotFound", {"X-Repo-Commit": commit})


def not_logged_in() -> HubError:
    return HubError(401, "Invalid username or password.")


def bad_token() -> HubError:
    return HubError(401, "Invalid credentials in Authorization header")


def gated(repo_id: str, anonymous: bool, origin: str) -> HubError:
    restricted = f"Access to model {repo_id} is restricted"
    if anonymous:
        words = "You must have access to it and be authenticated to access it. Please log in."
        return HubError(401, f"{restricted}. {words}", "GatedRepo")
    words = f"Visit {origin}/{repo_id} to ask for access."
    return HubError(403, f"{restricted} and you are not in the authorized list. {words}", "GatedRepo")


def cdn(status: int, code: str, message: str) -> HttpError:
    """A refusal as object stores and their CDNs word it."""
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>'
    return HttpError(status, body, {"Content-Type": "application/xml"})
