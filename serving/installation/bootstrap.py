"""What a project needs once, one thing after the other: each is made unless it is there, and has the command that a
person would make it with.

The list is the order that works: an API before what is made with it, an account before its roles. Whoever may not make
one of them is told the command, and the others are made all the same.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Literal

from serving import names
from serving.clients import artifact_registry, google, iam, proxies, secrets, service_usage, storage
from serving.clients.patience import Interrupted, Patience
from serving.errors import RequestError
from serving.image import VERSION
from serving.installation import building, roles
from serving.installation.building import NotYetAllowed, Pace, Source

if TYPE_CHECKING:
    from serving.log import Say
    from serving.settings import Settings

CONTEXT_FILE = "gemma-pipelines.tgz"
"""Where the printed commands put the build context."""


@dataclass(frozen=True)
class Item:
    """One thing that the project needs."""

    what: str
    command: str
    """Makes it, typed by a person."""
    ensure: Callable[[], bool]
    """Makes it unless it is there: returns whether it did. Raises PipelineError."""
    others_need_it: bool = True


@dataclass(frozen=True)
class Done:
    """What became of it."""

    what: str
    state: Literal["there", "made", "left"]
    why: str = ""
    """Of one that is left: why it could not be made."""
    command: str = ""
    """Of one that is left: what makes it."""


@dataclass
class Report:
    """All that was looked at, in order. `image`: the component image by its digest, once there is one."""

    done: list[Done] = field(default_factory=list)
    image: str = ""
    is_blocked: bool = False
    """Something is left without which what follows cannot be made."""

    @property
    def is_ready(self) -> bool:
        return not any(each.state == "left" for each in self.done)


def bootstrap(
    settings: Settings, say: Say, *, token: str = "", rebuild: bool = False, pace: Pace = building.PACE
) -> Report:
    """Makes what the project lacks. `token`: the value of the hub's token secret; `rebuild`: build the component image
    of this distribution although another of its version is there.

    Raises AccessError without credentials, InconclusiveError while an API does not answer, PipelineError when the build
    fails; what this caller may not do is left, with the reason.
    """
    google.check_credentials()
    report = Report()
    for item in items(settings, token):
        _settle(item, report, say)
    source = building.components(settings)
    what = f"image {source.image}:{source.tag}"
    if report.is_blocked:
        why = "its build needs what is left above: run again when that is there"
        report.done.append(Done(what, "left", why, _again()))
        return report
    image = _Image(settings, source, rebuild, say, pace)
    _settle(Item(what, _again(), image.ensure), report, say)
    report.image = f"{source.image}@{image.digest}" if image.digest else ""
    return report


def commands(settings: Settings, file: str) -> list[str]:
    """All of it as commands for a person, in the order that works. `file`: the settings, as the person names them."""
    source = building.components(settings)
    build = json.dumps(building.request_for(settings, source), indent=1)
    return [
        *(item.command for item in items(settings, "")),
        f"gemma-pipelines bootstrap -f {shlex.quote(file)} --context {CONTEXT_FILE}",
        f"cat > build.json <<'EOF'\n{build}\nEOF",
        f"gcloud builds submit {CONTEXT_FILE} --project={settings.project} --region={names.region(settings.location)} "
        f"--config=build.json --gcs-source-staging-dir=gs://{settings.bucket}/builds --suppress-logs",
    ]


def apis(settings: Settings) -> list[str]:
    """The APIs that pipelines and this tool call."""
    wanted = ["aiplatform", "artifactregistry", "cloudbuild", "cloudresourcemanager", "compute", "container", "iam"]
    wanted += ["logging", *(["secretmanager"] if roles.secrets(settings) else [])]
    wanted += ["networkservices"] if settings.has_gateway else []
    wanted += ["monitoring"] if "queue-hpa" in settings.chosen_features else []
    return [f"{name}.googleapis.com" for name in (*wanted, "storage")]


def items(settings: Settings, token: str) -> Iterator[Item]:
    """What the project needs but for the image, in the order that works."""
    project, region = settings.project, names.region(settings.location)
    wanted = apis(settings)
    yield Item(
        f"{len(wanted)} APIs",
        f"gcloud services enable {' '.join(wanted)} --project={project}",
        partial(_apis, project, wanted),
    )
    yield Item(
        f"bucket gs://{settings.bucket}",
        f"gcloud storage buckets create gs://{settings.bucket} --project={project} --location={region} "
        "--uniform-bucket-level-access",
        partial(_bucket, settings.bucket),
    )
    if settings.has_gateway and settings.section("gateway").proxy_subnet_range:
        subnet = f"proxy-only subnet in {region}"
        # It is in the cluster's network, and the cluster may not be there yet.
        yield Item(subnet, proxies.command(settings), partial(_proxy_subnet, settings), others_need_it=False)
    repository = roles.repository(settings)
    yield Item(
        f"repository {repository}",
        f"gcloud artifacts repositories create {repository.rpartition('/')[2]} --project={project} "
        f"--location={region} --repository-format=docker",
        partial(artifact_registry.ensure_repository, repository),
    )
    yield _account(settings, settings.pipeline_service_account, "Gemma pipelines")
    yield _account(settings, roles.builder(settings), "Gemma pipelines: builds the component image")
    for role in roles.own_roles(settings):
        ensure = partial(iam.ensure_role, project, role.id, role.title, role.permissions, only=not role.is_shared)
        yield Item(f"role {role.in_project(project)}", role.command(project), ensure)
    for secret in roles.secrets(settings):
        _, owner, _, name = secret.split("/")
        command = f"gcloud secrets create {name} --project={owner} --replication-policy=automatic"
        yield Item(f"secret {secret}", command, partial(secrets.ensure, secret))
    for grant in roles.grants(settings):
        yield Item(grant.words, grant.command, grant.give)
    yield from _values(settings, token)


# -- one thing each -----------------------------------------------------------------------------------------


def _apis(project: str, wanted: list[str]) -> bool:
    missing = sorted(set(wanted) - service_usage.enabled(project))
    service_usage.enable(project, missing)
    return bool(missing)


def _bucket(bucket: str) -> bool:
    """Looks whether it is there: a bucket of a misspelt name is nobody's wish, and where its bytes are is for good."""
    storage.list_uris(f"gs://{bucket}/builds/")
    return False


def _proxy_subnet(settings: Settings) -> bool:
    """Makes it, or with access: check says that it is missing."""
    proxies.ranges(settings)
    return bool(proxies.ensure(settings, lambda line: None))


def _account(settings: Settings, email: str, title: str) -> Item:
    owner = iam.project_of(email)

    def ensure() -> bool:
        if owner == settings.project:
            return iam.ensure_account(email, title)
        if not iam.account_exists(email):
            raise RequestError(f"{email} is not an account of {settings.project}, and is not there")
        return False

    command = f"gcloud iam service-accounts create {email.partition('@')[0]} --project={owner or 'PROJECT'}"
    return Item(f"service account {email}", f"{command} --display-name='{title}'", ensure)


def _values(settings: Settings, token: str) -> Iterator[Item]:
    """The secrets' values, which are nobody's to invent: no argument, log or file of ours has one."""
    for secret, given in ((settings.hub.token_secret, token), (settings.engine.api_key_secret, "")):
        if not secret:
            continue
        resource = "/".join(secret.split("/")[:4])
        _, owner, _, name = resource.split("/")
        make = "openssl rand -hex 32" if secret == settings.engine.api_key_secret else "cat TOKEN_FILE"
        command = f"{make} | tr -d '\\n' | gcloud secrets versions add {name} --project={owner} --data-file=-"
        yield Item(f"value of {resource}", command, partial(_value, resource, given), others_need_it=False)


def _value(secret: str, given: str) -> bool:
    if not given:
        if secrets.has_value(secret):
            return False
        raise RequestError(f"{secret} has no value yet")
    if secrets.has_value(secret) and google.secret(f"{secret}/versions/latest") == given:
        return False
    secrets.add_value(secret, given)
    return True


@dataclass
class _Image:
    """The component image, looked for and built."""

    settings: Settings
    source: Source
    rebuild: bool
    say: Say
    pace: Pace
    digest: str = ""

    def ensure(self) -> bool:
        self.digest, is_this = building.there(self.source)
        if self.digest and (is_this or not self.rebuild):
            if not is_this:
                self.say(
                    f"the image of version {VERSION} there was built of another source than this one, and stays; "
                    "--rebuild replaces it"
                )
            return False
        self.digest = building.build(self.settings, self.source, self.say, self.pace)
        return True


# -- doing it -----------------------------------------------------------------------------------------------


def _settle(item: Item, report: Report, say: Say) -> None:
    """Sees to one thing, and adds what became of it."""
    # Where something is left, this has to be run again anyhow, and what follows may fail for that.
    is_new = not report.is_blocked and any(each.state == "made" for each in report.done)

    def attempt() -> bool:
        try:
            return item.ensure()
        except (RequestError, NotYetAllowed) as error:
            # What was made a moment ago is not known to every server yet.
            if is_new and (isinstance(error, NotYetAllowed) or google.is_settling(error)):
                raise Interrupted(str(error)) from error
            raise

    try:
        made = Patience().until_it_works(item.what, attempt)
    except RequestError as error:
        report.done.append(Done(item.what, "left", str(error), item.command))
        report.is_blocked |= item.others_need_it
        say(f"left: {item.what}")
        return
    report.done.append(Done(item.what, "made" if made else "there"))
    if made:
        say(f"made: {item.what}")


def _again() -> str:
    return "gemma-pipelines bootstrap -f FILE"
