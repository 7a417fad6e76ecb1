"""Building an image in Cloud Build, and the component image in particular.

The source goes to the bucket under its digest, the build is found again by it: whoever is killed meanwhile, or builds
the same at the same time, waits for the one build. The source goes when the build has ended.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from serving import names
from serving.clients import artifact_registry, storage
from serving.clients.cloud_build import ENDED, Build, CloudBuild
from serving.clients.storage import StoredObject
from serving.errors import InconclusiveError, PipelineError
from serving.image import VERSION, published
from serving.installation import context, roles
from serving.progress import duration
from serving.rendering.engine import mirrored

if TYPE_CHECKING:
    from serving.log import Say
    from serving.settings import Settings

BUILDER_IMAGE = "gcr.io/cloud-builders/docker"
TIMEOUT_SECONDS = 1800
SETTLING = ("FETCH_SOURCE_FAILED", "LOGGING_FAILURE", "PUSH_NOT_AUTHORIZED")
"""How a build fails whose account has got its roles a moment ago: they take minutes to be known everywhere."""
_LAST_LINES = 15
_LOG_COMES_LATE_SECONDS = 10.0
"""So much later than it was printed a line may be in Cloud Logging."""


class NotYetAllowed(InconclusiveError):
    """The build's account lacks a role, as far as Cloud Build knows yet."""


@dataclass(frozen=True)
class Pace:
    """How often is looked, in seconds: nobody tells us when a build is done."""

    look: float = 4.0
    log: float = _LOG_COMES_LATE_SECONDS


PACE = Pace()


@dataclass(frozen=True)
class Source:
    """What is built: a context, and what its image is called."""

    content: Callable[[], bytes]
    digest: str
    """Names it: the same source is built once."""
    dockerfile: str
    arguments: dict[str, str]
    image: str
    """Without a tag, in Artifact Registry."""
    tag: str

    @property
    def source_tag(self) -> str:
        """The tag that says what an image was built of."""
        return f"source-{self.digest}"


def components(settings: Settings) -> Source:
    """The component image of the distribution that is installed."""
    base = context.base_image()
    from_mirror = mirrored(settings, base if "/" in base else f"library/{base}")
    return Source(
        context.packed,
        context.digest(),
        context.DOCKERFILE,
        {"PYTHON": from_mirror} if settings.images.registry else {},
        published(settings.project, names.region(settings.location)),
        VERSION,
    )


def there(source: Source) -> tuple[str, bool]:
    """The digest of the image at its tag, empty without one, and whether it was built of this very source.

    Raises AccessError, RequestError, InconclusiveError, as everything here.
    """
    found = artifact_registry.digest_of(source.image, source.tag)
    return found, bool(found) and found == artifact_registry.digest_of(source.image, source.source_tag)


def build(settings: Settings, source: Source, say: Say, pace: Pace = PACE) -> str:
    """The digest of the image, which is built now.

    Raises PipelineError with the log's last lines when the build fails, NotYetAllowed when that may be for the newness
    of its account's roles. Who is interrupted leaves no build behind.
    """
    builds = CloudBuild(settings.project, names.region(settings.location))
    uri = f"gs://{settings.bucket}/builds/{source.digest}.tgz"
    began = builds.under_way(source.source_tag)
    ours = began is None
    try:
        if began is None:
            stored = storage.write_bytes(uri, source.content(), content_type="application/gzip")
            began = builds.begin(_request(settings, source, stored), source.source_tag)
        say(f"{'building' if ours else 'waiting for'} {source.image}:{source.tag}: {began.get('logUrl', began['id'])}")
        ended = _followed(builds, began["id"], say, pace)
    except (KeyboardInterrupt, SystemExit):
        if ours and (running := builds.under_way(source.source_tag)):
            builds.cancel(running["id"])
        raise
    finally:
        # What cannot be deleted now is written over by the next build of the same.
        with contextlib.suppress(PipelineError):
            storage.delete(uri)
    if ended["status"] != "SUCCESS":
        raise _failure(builds, ended, pace)
    for image in ended.get("results", {}).get("images", []):
        if image["name"] == f"{source.image}:{source.tag}":
            return str(image["digest"])
    raise PipelineError(f"build {ended['id']} has succeeded without the image {source.image}:{source.tag}")


def request_for(settings: Settings, source: Source) -> Build:
    """The build without its source: for a person who brings that along."""
    tags = [f"{source.image}:{tag}" for tag in (source.tag, source.source_tag)]
    arguments = [item for name, value in source.arguments.items() for item in ("--build-arg", f"{name}={value}")]
    return {
        "steps": [
            {
                "name": BUILDER_IMAGE,
                "args": [
                    *("build", "--file", source.dockerfile),
                    *arguments,
                    *(item for tag in tags for item in ("--tag", tag)),
                    ".",
                ],
            }
        ],
        "images": tags,
        "tags": ["gemma-pipelines", source.source_tag],
        "timeout": f"{TIMEOUT_SECONDS}s",
        "serviceAccount": f"projects/{settings.project}/serviceAccounts/{roles.builder(settings)}",
        # With an account of its own a build has no bucket for logs; Cloud Logging asks for the least.
        "options": {"logging": "CLOUD_LOGGING_ONLY"},
    }


def _request(settings: Settings, source: Source, stored: StoredObject) -> Build:
    bucket, name = storage.parse_uri(stored.uri)
    where = {"bucket": bucket, "object": name, "generation": str(stored.generation)}
    return {**request_for(settings, source), "source": {"storageSource": where}}


def _followed(builds: CloudBuild, build_id: str, say: Say, pace: Pace) -> Build:
    """The build when it has ended; `say` hears how far it is."""
    began, told = time.monotonic(), ""
    while True:
        found = builds.get(build_id)
        if found["status"] in ENDED:
            return found
        said = builds.said(build_id)
        line = said[-1].strip() if said else found["status"].lower()
        if line != told:
            told = line
            say(f"build {duration(time.monotonic() - began)}: {line[:160]}")
        time.sleep(pace.look)


def _failure(builds: CloudBuild, ended: Build, pace: Pace) -> PipelineError:
    """What there is to say of a build that did not succeed."""
    why = ended.get("failureInfo", {})
    detail = why.get("detail") or ended.get("statusDetail") or ""
    words = f"build {ended['id']} ended as {ended['status']}{f': {detail}' if detail else ''}"
    if why.get("type") in SETTLING:
        return NotYetAllowed(f"{words}. Grant what `gemma-pipelines bootstrap --print` names, or run again later")
    lines = _last_lines(builds, ended["id"], pace) if ended.get("startTime") else []
    log = "".join(f"\n    {line}" for line in lines)
    see = f"The whole log: {ended.get('logUrl', '')}" if ended.get("logUrl") else ""
    text = f"{words}. Its last lines:{log}\n{see}" if lines else f"{words}. {see}"
    return PipelineError(text) if ended["status"] == "FAILURE" else InconclusiveError(f"{text}. Run again")


def _last_lines(builds: CloudBuild, build_id: str, pace: Pace) -> list[str]:
    """The end of its log, which comes a little later than the build's."""
    said, deadline = builds.said(build_id), time.monotonic() + pace.log
    while time.monotonic() < deadline:
        time.sleep(min(pace.look, pace.log))
        before, said = said, builds.said(build_id)
        if said and said == before:
            break
    return said[-_LAST_LINES:]
