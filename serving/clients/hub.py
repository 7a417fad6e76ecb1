"""The Hugging Face hub through its own client: revisions, listings, access, and where the bytes are.

The token is passed explicitly, or none is: what the machine itself is logged in with never counts. `HF_ENDPOINT` is
honoured as the library honours it. Transient refusals (429 with its Retry-After or RateLimit, 5xx, broken connections)
are tried again inside.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from serving.clients.digest import ServedFile
from serving.clients.patience import Interrupted, Patience
from serving.clients.source import Source
from serving.clients.wire import retry_after
from serving.errors import AccessError, InconclusiveError, PipelineError, RequestError

if TYPE_CHECKING:
    from serving.settings import Settings

Result = TypeVar("Result")

_COMMIT = re.compile(r"[0-9a-f]{40}")
_PAGE_SECONDS = 30


def is_commit(revision: str) -> bool:
    """Whether a revision is a whole commit sha, which no push can move."""
    return _COMMIT.fullmatch(revision) is not None


def of(settings: Settings) -> Hub:
    """The hub as the settings' token sees it; the token comes out of Secret Manager."""
    from serving.clients import google

    secret = settings.hub.token_secret
    return Hub(google.secret(secret) if secret else None, token_secret=secret, endpoint=settings.hub.endpoint)


class MissingEndpointError(RequestError):
    """What is asked is no hub, or a mirror without a part of the hub's API."""


class Hub:
    """One hub, as one token sees it.

    token: None asks anonymously. token_secret: where the token came from, which errors name in its stead. endpoint: an
    address other than HF_ENDPOINT's.
    """

    def __init__(
        self,
        token: str | None = None,
        *,
        token_secret: str | None = None,
        endpoint: str | None = None,
    ):
        from huggingface_hub import HfApi, constants

        self.endpoint = (endpoint or os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
        self._token, self._token_secret = token, token_secret
        # False, not None: None would let the library look for a token of its own.
        self._api = HfApi(endpoint=self.endpoint, token=token or False)

    # -- what there is --------------------------------------------------------------------------------------

    def commit(self, model: str, revision: str) -> str:
        """The commit sha of a branch, tag or (abbreviated) commit. Raises RequestError when there is none."""
        return self._call(model, revision, lambda: str(self._api.model_info(model, revision=revision).sha))

    def check_access(self, model: str) -> None:
        """Raises AccessError when the model is gated and this token has no grant (a listing would not tell). A mirror
        that cannot be asked about a model that it has tells nothing: the download will."""
        try:
            self._call(model, "", lambda: self._api.auth_check(model))
        except MissingEndpointError:
            pass

    def at(self, model: str, commit: str) -> Snapshot:
        """The model at a commit."""
        return Snapshot(self, model, commit)

    def locate(self, model: str, commit: str, path: str) -> tuple[str, dict[str, str]]:
        """Where a file's bytes are now, and the headers to ask for them with: the token goes to the hub alone.

        Raises Interrupted for what may heal.
        """
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        url = hf_hub_url(model, path, revision=commit, endpoint=self.endpoint)
        found = self.once(
            model, commit, lambda: get_hf_file_metadata(url, token=self._token or False, endpoint=self.endpoint)
        )
        ours = self._token and _origin(found.location) == _origin(self.endpoint)
        return found.location, {"Authorization": f"Bearer {self._token}"} if ours else {}

    def tree(self, model: str, commit: str) -> list[ServedFile]:
        """Every file at the commit, with its size and digest."""
        found: list[ServedFile] = []
        page: str | None = f"{self.endpoint}/api/models/{model}/tree/{commit}?recursive=true"
        while page:
            files, page = self._call(model, commit, functools.partial(self._page, page))
            found += files
        return found

    def _page(self, url: str) -> tuple[list[ServedFile], str | None]:
        """A page of a listing, and the address of the next: (files, None at the end).

        The library follows `Link` to wherever it points, and takes the token along.
        """
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        response = get_session().get(url, headers=build_hf_headers(token=self._token or False), timeout=_PAGE_SECONDS)
        hf_raise_for_status(response)
        following = response.links.get("next", {}).get("url")
        if following and _origin(following) != _origin(self.endpoint):
            raise RequestError(
                f"{self.endpoint} says that the rest of its listing is on {urlsplit(following).netloc}, where the "
                "token does not go. A mirror has to rewrite its Link headers: mend it, or set another hub.endpoint"
            )
        files = [
            ServedFile(entry["path"], entry["size"], (entry.get("lfs") or {}).get("oid"), entry["oid"])
            for entry in response.json()
            if entry["type"] == "file"
        ]
        return files, following

    # -- errors ---------------------------------------------------------------------------------------------

    def _call(self, model: str, revision: str, ask: Callable[[], Result]) -> Result:
        """The answer to `ask`, tried again while the hub is busy or away."""
        return Patience().until_it_works(f"{model} on {self.endpoint}", lambda: self.once(model, revision, ask))

    def once(self, model: str, revision: str, ask: Callable[[], Result]) -> Result:
        """The answer to `ask`. Raises Interrupted for what may heal, else one of our errors."""
        import httpx2
        from huggingface_hub import errors

        try:
            return ask()
        except errors.HFValidationError as error:
            raise RequestError(f"model {model!r} is not a name that the hub allows: {error}") from error
        except errors.OfflineModeIsEnabled as error:
            raise InconclusiveError("HF_HUB_OFFLINE is set here: unset it, nothing can be asked of the hub") from error
        except errors.HfHubHTTPError as error:
            raise self._refused(model, revision, error) from error
        except httpx2.HTTPError as error:
            raise Interrupted(f"the hub does not answer ({type(error).__name__})") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:  # A page of HTML, or another API's JSON.
            raise MissingEndpointError(
                f"{self.endpoint} answers as no hub does when it is asked about {model} ({type(error).__name__}). "
                "Check hub.endpoint (HF_ENDPOINT): it names a hub, or a mirror of one"
            ) from error

    def _refused(self, model: str, revision: str, error: Any) -> PipelineError | Interrupted:
        """Our error for what the hub refused."""
        from huggingface_hub import errors

        status = error.response.status_code
        said = (error.server_message or error.response.reason_phrase).rstrip(" .")
        page = f"{self.endpoint}/{model}"
        secret = self._token_secret or "hub.token_secret"
        path = error.response.request.url.path
        # The hub itself says in a header what is not there.
        if status in (404, 405, 501) and "X-Error-Code" not in error.response.headers:
            return MissingEndpointError(
                f"{self.endpoint} has no {path} ({status}) and does not say, as the hub does, what of it is missing: "
                "check `model`, and that the mirror serves this endpoint; else set another hub.endpoint"
            )
        if status in (408, 429) or status >= 500:
            return Interrupted(f"the hub answered {status}", retry_after(error.response.headers))
        if isinstance(error, errors.GatedRepoError):
            if self._token is None:
                return AccessError(
                    f"{model} is gated and no token is given. Ask for access at {page}, put a token of that account "
                    "into Secret Manager and name it in hub.token_secret"
                )
            return AccessError(
                f"{model} is gated, and the account of the token in {secret} has no grant ({said}). Ask for access at "
                f"{page} with that account"
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return RequestError(f"{model} has no revision {revision!r}. See its branches and commits: {page}/commits")
        if isinstance(error, errors.RemoteEntryNotFoundError):
            return RequestError(f"{model} has no such file at {revision}: {said}. See {page}/tree/{revision}")
        if isinstance(error, errors.RepositoryNotFoundError):
            private = "that the account of the token may not see" if self._token else "that needs hub.token_secret"
            return RequestError(f"{model} is not on {self.endpoint}, or is a private model {private}. Check `model`")
        if status == 401:
            return AccessError(
                f"the hub refused the token in {secret}: {said}. Make one at {self.endpoint}/settings/tokens and add "
                f"it: `gcloud secrets versions add {_secret_id(secret)} --data-file=-`"
            )
        if status == 403:
            return AccessError(f"{model}: the hub refused: {said}. See {page} and the rights of the token in {secret}")
        return RequestError(f"{model}: the hub answered {status}: {said}")


@dataclass(frozen=True)
class Snapshot(Source):
    """A model at a commit of the hub."""

    hub: Hub
    model: str
    commit: str

    @property
    def name(self) -> str:
        return self.model

    def files(self) -> list[ServedFile]:
        return self.hub.tree(self.model, self.commit)

    def locate(self, file: ServedFile) -> tuple[str, dict[str, str]]:
        return self.hub.locate(self.model, self.commit, file.path)


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


def _secret_id(name: str) -> str:
    parts = name.split("/")
    return parts[3] if len(parts) > 3 else "SECRET"
