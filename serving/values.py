"""What settings are made of: the base of their sections, and the types of values with what each one's error says.

Durations, quantities, names and secret references are texts in the file and stay texts; a check only looks at them.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
import ssl
import warnings
import zoneinfo
from collections.abc import Callable
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict

from serving import scenarios
from serving.errors import RequestError


class Section(BaseModel):
    """A part of a settings file: strict, and no key that it does not know. The text under a field documents it."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


_LONGEST_SECONDS = 30 * 24 * 3600

OURS = "gemma-pipelines/"
"""Prefix of the labels and annotations by which the project finds its objects again."""


def _matching(pattern: str, what: str, longest: int | None = None) -> Callable[[str], str]:
    """A check that a text is a `what`; the error says so, and counts when it is only too long."""
    expression = re.compile(pattern)

    def check(value: str) -> str:
        if longest and len(value) > longest:
            raise ValueError(f"{value!r} has {len(value)} characters; {what} has at most {longest}")
        if not expression.fullmatch(value):
            raise ValueError(f"{value!r} is not {what}")
        return value

    return check


def _duration(value: str) -> str:
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,3})?[smh]", value):
        raise ValueError(f"{value!r} is not a duration: write a number and s, m or h, like 90s or 30m")
    if in_seconds(value) > _LONGEST_SECONDS:
        raise ValueError(f"{value!r} is longer than 30 days")
    return value


def _some_time(value: str) -> str:
    if not in_seconds(value):
        raise ValueError(f"{value!r} is no time at all")
    return value


def in_seconds(duration: str) -> float:
    """The seconds of a checked duration."""
    return float(duration[:-1]) * {"s": 1, "m": 60, "h": 3600}[duration[-1]]


_UNITS = {
    "": 1.0, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40,
}  # fmt: skip
"""What a unit of a Kubernetes quantity stands for."""


def _quantity(value: str) -> str:
    if not re.fullmatch(r"[0-9]{1,15}(\.[0-9]{1,9})?(m|k|M|G|T|Ki|Mi|Gi|Ti)?", value):
        raise ValueError(f"{value!r} is not a Kubernetes quantity: write it like 500m, 4 or 32Gi")
    if not re.search("[1-9]", value):
        raise ValueError(f"{value!r} is nothing, and no pod runs on that")
    return value


def in_bytes(quantity: str) -> int:
    """The bytes of a checked quantity of memory."""
    return int(in_units(quantity))


def in_units(quantity: str) -> float:
    """What a checked quantity is of: bytes, processors."""
    number = quantity.rstrip("mkKMGTi")
    return float(number) * _UNITS[quantity.removeprefix(number)]


def _secret_version(value: str) -> str:
    # What was written here by mistake may be the secret itself: the message does not repeat it.
    if not re.fullmatch(r"projects/[^/]+/secrets/[^/]+/versions/[^/]+", value):
        raise ValueError(
            "is the name of a Secret Manager version, projects/P/secrets/S/versions/latest; a secret's value never "
            "stands in settings"
        )
    return value


def _bucket(value: str) -> str:
    what = "a bucket's name: lower-case letters, digits, -, _ and ., 3 to 63 characters, without gs://"
    _matching(r"[a-z0-9][-_.a-z0-9]{1,61}[a-z0-9]", what, longest=63)(value)
    if ".." in value or value.startswith("goog") or "google" in value or re.fullmatch(r"[\d.]+", value):
        raise ValueError(f"{value!r} is a name that Cloud Storage gives to nobody")
    return value


def _folder(value: str) -> str:
    """Or nothing, where there is a usual one."""
    bucket, slash, path = value.removeprefix("gs://").partition("/")
    if value and not value.startswith("gs://"):
        raise ValueError(f"{value!r} is not a folder of a bucket, gs://BUCKET/FOLDER")
    if slash and (not path.isprintable() or not all(part.strip(".") for part in path.split("/"))):
        raise ValueError(
            f"{value!r} has a part without a name: write gs://BUCKET/FOLDER, no // in it and no / at its end"
        )
    if value:
        _bucket(bucket)
    return value


def _source_folder(value: str) -> str:
    if "/" not in _folder(value).removeprefix("gs://"):
        raise ValueError(f"{value!r} is not a folder of a bucket, gs://BUCKET/FOLDER")
    return value


def _endpoint(value: str) -> str:
    parts = urlsplit(value)
    try:
        _ = parts.port
    except ValueError as error:
        raise ValueError(f"is not the address of a hub: {error}") from error
    if parts.username or parts.password:
        raise ValueError("holds a user or a password: those never stand in settings; hub.token_secret names the token")
    if not re.fullmatch(r"https?://[^\s/?#]+[^\s?#]*", value):
        raise ValueError(f"{value!r} is not the address of a hub, like https://hub.example.com (no ? and no #)")
    return value.rstrip("/")


def _regular_expression(value: str) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # What will mean something else in a Python to come.
            re.compile(value)
    except (re.error, RecursionError, OverflowError, Warning) as error:
        raise ValueError(f"{value[:80]!r} is not a regular expression: {error}") from error
    return value


_CRON_PART = r"(\*|(\d{1,2}|[A-Za-z]{3})(-(\d{1,2}|[A-Za-z]{3}))?)(/\d{1,2})?"


def _cron(value: str) -> str:
    from cronsim import CronSim, CronSimError

    fields = value.split()
    if "TZ=" in value:
        raise ValueError(f"{value!r} has a time zone in it: that stands in schedule.timezone")
    if len(fields) != 5 or not all(re.fullmatch(rf"{_CRON_PART}(,{_CRON_PART})*", field) for field in fields):
        raise ValueError(
            f"{value!r} is not a cron expression of five fields (minute, hour, day, month, weekday), like 0 3 * * *"
        )
    try:
        CronSim(value, datetime.datetime.now(datetime.UTC))
    except CronSimError as error:
        raise ValueError(f"{value!r} is not a cron expression: {str(error).lower()}") from error
    return " ".join(fields)


def _time_zone(value: str) -> str:
    try:
        zoneinfo.ZoneInfo(value)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        if not zoneinfo.available_timezones():
            raise ValueError(f"{value!r}: this machine knows no time zones: `pip install tzdata`") from error
        raise ValueError(f"{value!r} is not a time zone, like Asia/Seoul or UTC") from error
    return value


def _instant(value: str) -> str:
    try:
        found = datetime.datetime.fromisoformat(value)
    except ValueError as error:
        raise ValueError(f"{value!r} is not a time, like 2027-01-31T03:00:00+09:00") from error
    if found.tzinfo is None:
        raise ValueError(f"{value!r} does not say how far from UTC: write Z or +09:00 behind it")
    return value


def _own_vertex_label(key: str) -> str:
    _matching(r"[a-z][-_a-z0-9]*", "the key of a label in Google Cloud: lower-case letters, digits, - and _", 63)(key)
    if key.startswith(("gemma-", "goog-", "vertex-ai-")):
        raise ValueError(f"{key!r}: keys that begin with gemma-, goog- or vertex-ai- are not yours to set")
    return key


def _ip_range(value: str) -> str:
    try:
        found = ipaddress.IPv4Network(value)
    except ValueError as error:
        raise ValueError(f"{value!r} is not a range of addresses, like 10.129.0.0/23 ({error})") from error
    if not 8 <= found.prefixlen <= 29:
        raise ValueError(f"{value!r} is no range of a subnet: those are /8 to /29")
    return str(found)


_LONGEST_CERTIFICATES = 16_384


def _certificates(value: str) -> str:
    if "PRIVATE KEY" in value:
        # The message does not repeat it.
        raise ValueError("holds a private key, which never stands in settings: certificates alone are meant")
    if len(value) > _LONGEST_CERTIFICATES:
        # They travel in a pipeline's parameters and a Job's argument.
        raise ValueError(f"has more than {_LONGEST_CERTIFICATES} characters: the authority's own certificate is enough")
    try:
        ssl.create_default_context(cadata=value)
    except (ssl.SSLError, ValueError) as error:
        raise ValueError("is not certificates as PEM: -----BEGIN CERTIFICATE-----, and so on") from error
    return value


_QUALIFIED = r"([a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?"


def _own_key(key: str) -> str:
    _matching(_QUALIFIED, "a key of Kubernetes metadata, like team or example.com/team")(key)
    if key.startswith(OURS):
        raise ValueError(f"{key!r}: keys under {OURS} are how the project finds its own objects")
    return key


def _adapter_name(value: str) -> str:
    if value in ("base", "assistant"):
        raise ValueError(
            f"{value!r} is what the record calls another part of the weights: give the adapter another name"
        )
    return value


def _scenario(value: str) -> str:
    try:
        return scenarios.find(value).name
    except RequestError as error:
        raise ValueError(str(error)) from error


def _namespace(value: str) -> str:
    if value == "default" or value.startswith(("kube-", "gke-", "gmp-")) or value.endswith("-system"):
        raise ValueError(f"{value!r} belongs to Kubernetes, to GKE or to what runs the cluster: name one of your own")
    return value


def _nothing_or(check: Callable[[str], str]) -> Callable[[str], str]:
    return lambda value: check(value) if value else value


def _name(what: str, longest: int) -> AfterValidator:
    what = f"{what}: lower-case letters, digits and -, a letter first"
    return AfterValidator(_matching(r"[a-z]([-a-z0-9]*[a-z0-9])?", what, longest))


MaybeNoTime = Annotated[str, AfterValidator(_duration)]
Duration = Annotated[MaybeNoTime, AfterValidator(_some_time)]
Quantity = Annotated[str, AfterValidator(_quantity)]
SecretVersion = Annotated[str, AfterValidator(_secret_version)]
RegularExpression = Annotated[str, AfterValidator(_regular_expression)]
Bucket = Annotated[str, AfterValidator(_bucket)]
OwnKey = Annotated[str, AfterValidator(_own_key)]
LabelValue = Annotated[
    str, AfterValidator(_matching(r"([A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?)?", "a label's value", longest=63))
]
DnsLabel = Annotated[str, _name("a Kubernetes name", longest=63)]
"""A DNS-1035 label: what Kubernetes allows as the name of a Service."""
NodePoolName = Annotated[str, _name("a node pool's name", longest=40)]
Namespace = Annotated[DnsLabel, AfterValidator(_namespace)]
AdapterName = Annotated[DnsLabel, AfterValidator(_adapter_name)]
DeploymentName = Annotated[str, _name("a deployment's name", longest=40)]
ClusterName = Annotated[str, _name("a cluster's name", longest=40)]
Scenario = Annotated[str, AfterValidator(_scenario)]
Project = Annotated[
    str,
    AfterValidator(
        _matching(
            r"[a-z][-a-z0-9]{4,28}[a-z0-9]",
            "a project id: 6 to 30 lower-case letters, digits and -, a letter first",
            longest=30,
        )
    ),
]
Location = Annotated[str, AfterValidator(_matching(r"[a-z]+-[a-z]+\d+(-[a-z])?", "a region or zone, like us-central1"))]
Region = Annotated[str, AfterValidator(_nothing_or(_matching(r"[a-z]+-[a-z]+\d+", "a region, like us-central1")))]
Zone = Annotated[str, AfterValidator(_matching(r"[a-z]+-[a-z]+\d+-[a-z]", "a zone, like us-central1-a"))]
Model = Annotated[
    str, AfterValidator(_matching(r"\w[\w.-]*/\w[\w.-]*", "a model of the hub, like google/gemma-3-4b-it", longest=200))
]
ServiceAccount = Annotated[
    str,
    AfterValidator(
        _nothing_or(
            _matching(
                r"[a-z0-9][-a-z0-9]*@([-a-z0-9]+\.)+gserviceaccount\.com",
                "a Google service account, like gemma-pipelines@PROJECT.iam.gserviceaccount.com",
            )
        )
    ),
]
_COMPUTE = r"(https://[-.a-z]+\.googleapis\.com/compute/v1/)?"
Network = Annotated[
    str,
    AfterValidator(
        _nothing_or(
            _matching(
                _COMPUTE + r"projects/[^/\s]+/global/networks/[-a-z0-9]+",
                "a network, like projects/PROJECT/global/networks/NAME",
            )
        )
    ),
]
Subnetwork = Annotated[
    str,
    AfterValidator(
        _nothing_or(
            _matching(
                _COMPUTE + r"projects/[^/\s]+/regions/[-a-z0-9]+/subnetworks/[-a-z0-9]+",
                "a subnetwork, like projects/PROJECT/regions/REGION/subnetworks/NAME",
            )
        )
    ),
]
KmsKey = Annotated[
    str,
    AfterValidator(
        _nothing_or(
            _matching(
                r"projects/[^/\s]+/locations/[^/\s]+/keyRings/[^/\s]+/cryptoKeys/[^/\s]+",
                "a Cloud KMS key, like projects/P/locations/L/keyRings/R/cryptoKeys/K",
            )
        )
    ),
]
MaybeResourceName = Annotated[
    str,
    AfterValidator(
        _nothing_or(
            _matching(
                r"[a-z]([-a-z0-9]*[a-z0-9])?",
                "the name of something in Compute Engine: lower-case letters, digits and -, a letter first",
                longest=63,
            )
        )
    ),
]
MaybeHost = Annotated[
    str,
    AfterValidator(
        _nothing_or(
            _matching(
                r"([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\.)+[a-z]([-a-z0-9]{0,61}[a-z0-9])?",
                "the name of a host, like gemma.example.com, in lower case",
                longest=253,
            )
        )
    ),
]
"""Or none. No address: certificates are for names."""
MaybeCertificates = Annotated[str, AfterValidator(_nothing_or(_certificates))]
"""Or none."""
IpRange = Annotated[str, AfterValidator(_ip_range)]
MaybeIpRange = Annotated[str, AfterValidator(_nothing_or(_ip_range))]
MachineType = Annotated[
    str, AfterValidator(_matching(r"[a-z]\w*(-\w+)+", "a machine type, like n2-standard-8", longest=63))
]
NetworkAttachment = Annotated[
    str,
    AfterValidator(
        _nothing_or(
            _matching(
                r"projects/[^/\s]+/regions/[-a-z0-9]+/networkAttachments/[-a-z0-9]+",
                "a network attachment, like projects/PROJECT/regions/REGION/networkAttachments/NAME",
            )
        )
    ),
]
DnsDomain = Annotated[
    str, AfterValidator(_matching(r"([-_a-z0-9]+\.)+", "a domain with a dot at its end, like corp.internal."))
]
VertexLabel = Annotated[str, AfterValidator(_own_vertex_label)]
VertexLabelValue = Annotated[
    str,
    AfterValidator(
        _matching(r"[-_a-z0-9]*", "a label's value in Google Cloud: lower-case letters, digits, - and _", longest=63)
    ),
]
Cron = Annotated[str, AfterValidator(_nothing_or(_cron))]
TimeZone = Annotated[str, AfterValidator(_time_zone)]
Instant = Annotated[str, AfterValidator(_nothing_or(_instant))]
NetworkTag = Annotated[
    str, AfterValidator(_matching(r"[a-z]([-a-z0-9]*[a-z0-9])?", "a network tag, like bake", longest=63))
]
_image = _matching(
    r"[a-z0-9][-.a-z0-9]*(:\d+)?(/[a-z0-9][-._a-z0-9]*)*(:[\w][-.\w]{0,127})?(@sha256:[0-9a-f]{64})?",
    "an image's name, like us-docker.pkg.dev/PROJECT/REPOSITORY/IMAGE:TAG or …@sha256:…",
)
Image = Annotated[str, AfterValidator(_image)]
Registry = Annotated[
    str,
    AfterValidator(
        _matching(
            r"[a-z0-9][-a-z0-9.]*(:\d+)?(/[a-z0-9][-a-z0-9._]*)*",
            "a registry, like us-docker.pkg.dev/P/mirror (no https://)",
        )
    ),
]
Endpoint = Annotated[str, AfterValidator(_endpoint)]
SourceFolder = Annotated[str, AfterValidator(_source_folder)]
Folder = Annotated[str, AfterValidator(_folder)]
Revision = Annotated[
    str,
    AfterValidator(
        # What git lets nobody call a branch cannot name one, and in an address it would lead elsewhere.
        _matching(r"(?![/-])(?!.*(\.\.|@\{|//))[^\s~^:?*\[\\\x00-\x1f\x7f]+", "a branch, tag or commit", longest=200)
    ),
]
WeightsKey = Annotated[
    str,
    AfterValidator(
        _nothing_or(_matching(r"[0-9a-f]{16}", "a weights key, the 16 hex digits at the end of models/ORG/NAME/KEY"))
    ),
]
Word = Annotated[str, AfterValidator(_matching(r"\w[\w.-]*", "one word", longest=100))]
"""The value of a flag, which never looks like another flag."""


def checked_image(name: str) -> str:
    """The name of an image that does not stand in settings. Raises RequestError for what is none."""
    try:
        return _image(name)
    except ValueError as error:
        raise RequestError(str(error)) from error
