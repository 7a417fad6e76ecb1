"""What the controller makes of the objects: a Gateway with listeners, rules and backends, each with its verdicts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Object = dict[str, Any]

CONTROLLER = "networking.gke.io/gateway"
GATEWAY_API = "gateway.networking.k8s.io"
INFERENCE = "inference.networking.k8s.io"
CLASSES = ("gke-l7-rilb", "gke-l7-regional-external-managed")
DEFAULT_TIMEOUT_SECONDS = 30
"""A backend service's, without a GCPBackendPolicy: it cuts what takes longer, streams included."""


@dataclass(frozen=True)
class Verdict:
    """One condition of a status."""

    type: str
    holds: bool
    reason: str
    message: str


@dataclass(frozen=True)
class Address:
    host: str
    port: int


@dataclass(frozen=True)
class Picker:
    """An InferencePool's endpoint picker: where its Service's pods are, and how it is spoken to."""

    cluster: str
    endpoints: tuple[Address, ...]
    plaintext: bool
    fail_open: bool


@dataclass(frozen=True)
class Check:
    """How endpoints are probed; the defaults are a Google load balancer's. `port` 0: the endpoint's own."""

    type: str = "HTTP"
    path: str = "/"
    host: str = ""
    port: int = 0
    service: str = ""
    interval: int = 15
    timeout: int = 15
    healthy: int = 1
    unhealthy: int = 2


@dataclass(frozen=True)
class Backend:
    """One backendRef of a rule. One that is not right (`problem`) keeps its share of the traffic, which gets 500."""

    cluster: str
    weight: int
    endpoints: tuple[Address, ...] = ()
    picker: Picker | None = None
    check: Check = Check()
    timeout: int = DEFAULT_TIMEOUT_SECONDS
    problem: Verdict | None = None


@dataclass(frozen=True)
class Rule:
    """One match of a rule of an HTTPRoute, and where it leads."""

    name: str
    match: Object
    backends: tuple[Backend, ...]


@dataclass
class Listener:
    """A listener of a Gateway; `hosts` maps a hostname to the rules for it."""

    name: str
    port: int
    secure: bool
    verdicts: list[Verdict]
    hosts: dict[str, list[Rule]] = field(default_factory=dict)
    attached: int = 0


@dataclass
class Parent:
    """What is said of a route, or of a pool, as far as this Gateway is concerned."""

    ref: Object
    verdicts: list[Verdict]


@dataclass
class Site:
    """A Gateway as it is to be."""

    verdicts: list[Verdict]
    listeners: list[Listener]
    routes: dict[str, list[Parent]] = field(default_factory=dict)
    pools: dict[str, Parent] = field(default_factory=dict)

    @property
    def backends(self) -> dict[str, Backend]:
        """By the name of its cluster, every backend that can be had."""
        return {
            backend.cluster: backend
            for listener in self.listeners
            for rules in listener.hosts.values()
            for rule in rules
            for backend in rule.backends
            if backend.problem is None
        }
