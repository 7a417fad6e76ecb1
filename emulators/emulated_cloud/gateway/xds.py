"""From a Site to Envoy's configuration: listeners, routes, clusters and endpoints, a file each.

Shapes: Envoy's v3 API (https://www.envoyproxy.io/docs/envoy/latest/api-v3/api), as JSON. What is chosen where: one
listener a port; of a rule, weighted clusters; of an InferencePool, a cluster that obeys its picker (`override_host`)
and for each share of it the picker to ask (`ExtProcPerRoute`), since two pools of one rule have two pickers. Only
routes change when weights do, so connections stay.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emulated_cloud.gateway.resources import Address, Backend, Check, Listener, Object, Picker, Rule, Site

NO_PICKER = "no-picker"
_PICKER_FILTER = "envoy.filters.http.ext_proc"
_TYPES = "type.googleapis.com/envoy."
PICKER_SILENCE_SECONDS = 5
"""How often a picker is asked for a sign of life, and how long for. One that gives none would hold requests for ever: a
`message_timeout` does not count where bodies stream both ways (seen with Envoy 1.40)."""
_DESTINATION = "x-gateway-destination-endpoint"
"""Header, and key of the dynamic metadata `envoy.lb`, in which a picker says where a request is to go."""
_NOT_FOUND = "fault filter abort"
"""What a Google load balancer says where no rule leads anywhere."""
_KEEP_ALIVE = "600s"


@dataclass(frozen=True)
class Files:
    """Configuration by the name of its file. Endpoints first, then clusters, then routes, then listeners: each is made
    of what was there before."""

    endpoints: dict[str, Object]
    clusters: dict[str, Object]
    """By name, for clusters.json."""
    routes: dict[str, Object]
    listeners: Object


def bootstrap(folder: Path, name: str) -> Object:
    """What one Envoy starts with: an admin port, and where the rest is."""
    return {
        "node": {"id": name, "cluster": name},
        "admin": {"address": _socket(Address("127.0.0.1", 0))},
        "dynamic_resources": {
            "lds_config": _from_file(folder / "listeners.json"),
            "cds_config": _from_file(folder / "clusters.json"),
        },
        "static_resources": {"clusters": [{"name": NO_PICKER, "type": "STATIC"}]},
    }


def files(
    site: Site, folder: Path, address: str, ports: Mapping[int, int], certificates: list[tuple[Path, Path]]
) -> Files:
    """A Site's configuration. `ports` are those that a Gateway's ports are opened as; `certificates` are files for
    HTTPS, of a chain and its key."""
    endpoints, clusters = {}, {}
    for backend in site.backends.values():
        found = [(backend.cluster, backend.endpoints, backend.check.port, _backend_cluster(backend))]
        if picker := backend.picker:
            found.append((picker.cluster, picker.endpoints, 0, _picker_cluster(picker)))
        for name, addresses, check_port, cluster in found:
            file = f"endpoints-{name}.json"
            endpoints[file] = _resources(_endpoints(name, addresses, check_port))
            clusters[name] = {**cluster, "name": name, "eds_cluster_config": {"eds_config": _from_file(folder / file)}}
    usable = [each for each in site.listeners if all(v.holds for v in each.verdicts if v.type != "Conflicted")]
    by_port: dict[int, list[Listener]] = {}
    for listener in usable:
        by_port.setdefault(listener.port, []).append(listener)
    return Files(
        endpoints,
        clusters,
        {f"routes-{port}.json": _resources(_routes(port, found)) for port, found in by_port.items()},
        _resources(
            *(
                _listener(port, found[0].secure, Address(address, ports[port]), folder, certificates)
                for port, found in by_port.items()
            )
        ),
    )


def text(content: Object) -> str:
    return json.dumps(content, sort_keys=True)


def clusters_file(clusters: Iterable[Object]) -> Object:
    return _resources(*clusters)


def _resources(*found: Object) -> Object:
    version = hashlib.sha256(text({"resources": found}).encode()).hexdigest()[:12]
    return {"version_info": version, "resources": list(found)}


# -- listeners and routes -------------------------------------------------------------------------------------------


def _listener(port: int, secure: bool, address: Address, folder: Path, certificates: list[tuple[Path, Path]]) -> Object:
    manager = {
        "@type": _TYPES + "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": f"port-{port}",
        "rds": {"route_config_name": str(port), "config_source": _from_file(folder / f"routes-{port}.json")},
        # A backend's timeout ends a request; silence before that does not.
        "stream_idle_timeout": "0s",
        "common_http_protocol_options": {"idle_timeout": _KEEP_ALIVE},
        "use_remote_address": True,
        "http_filters": [
            {"name": _PICKER_FILTER, "typed_config": _picker_filter()},
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": _TYPES + "extensions.filters.http.router.v3.Router"},
            },
        ],
    }
    chain: Object = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    if secure:
        pairs = [
            {"certificate_chain": {"filename": str(chain_file)}, "private_key": {"filename": str(key)}}
            for chain_file, key in certificates
        ]
        common = {"alpn_protocols": ["h2", "http/1.1"], "tls_certificates": pairs}
        chain["transport_socket"] = _tls("DownstreamTlsContext", common)
    return {
        "@type": _TYPES + "config.listener.v3.Listener",
        "name": f"port-{port}",
        "address": _socket(address),
        "filter_chains": [chain],
    }


def _picker_filter() -> Object:
    """Asks the picker that the share of a request names. Bodies stream both ways as they come."""
    return {
        "@type": _TYPES + "extensions.filters.http.ext_proc.v3.ExternalProcessor",
        "grpc_service": {"envoy_grpc": {"cluster_name": NO_PICKER}},
        "processing_mode": {
            "request_header_mode": "SEND",
            "response_header_mode": "SEND",
            "request_body_mode": "FULL_DUPLEX_STREAMED",
            "response_body_mode": "FULL_DUPLEX_STREAMED",
            "request_trailer_mode": "SEND",
            "response_trailer_mode": "SEND",
        },
        "metadata_options": {"receiving_namespaces": {"untyped": ["envoy.lb"]}},
    }


def _per_route(picker: Picker | None) -> Object:
    of_picker: Object = {"@type": _TYPES + "extensions.filters.http.ext_proc.v3.ExtProcPerRoute"}
    if picker is None:
        of_picker["disabled"] = True
    else:
        of_picker["overrides"] = {
            "grpc_service": {"envoy_grpc": {"cluster_name": picker.cluster}},
            "failure_mode_allow": picker.fail_open,
        }
    return {_PICKER_FILTER: of_picker}


def _routes(port: int, listeners: list[Listener]) -> Object:
    hosts: dict[str, list[Rule]] = {"*": []}
    for listener in listeners:
        for host, rules in listener.hosts.items():
            hosts.setdefault(host, []).extend(rules)
    nothing = {
        "match": {"prefix": "/"},
        "direct_response": {"status": 404, "body": {"inline_string": _NOT_FOUND}},
        "typed_per_filter_config": _per_route(None),
    }
    return {
        "@type": _TYPES + "config.route.v3.RouteConfiguration",
        "name": str(port),
        "ignore_port_in_host_matching": True,
        "virtual_hosts": [
            {
                "name": host,
                "domains": [host],
                "routes": [*map(_route, sorted(rules, key=_precedence)), nothing],
            }
            for host, rules in hosts.items()
        ],
    }


def _precedence(rule: Rule) -> tuple[bool, int, bool, int, int]:
    """Sorts rules as the Gateway API has it: exact paths, longer prefixes, methods, more headers, more parameters."""
    path = rule.match.get("path") or {}
    return (
        path.get("type") != "Exact",
        -len(path.get("value", "/")),
        "method" not in rule.match,
        -len(rule.match.get("headers") or []),
        -len(rule.match.get("queryParams") or []),
    )


def _route(rule: Rule) -> Object:
    weighed = [backend for backend in rule.backends if backend.weight]
    route: Object = {"name": rule.name, "match": _match(rule.match)}
    if not any(backend.problem is None for backend in weighed):
        # Nobody may have it.
        return {**route, "direct_response": {"status": 500}, "typed_per_filter_config": _per_route(None)}
    # A route has one timeout: the shortest of those whose share it serves.
    timeout = min(backend.timeout for backend in weighed if backend.problem is None)
    route["route"] = {
        "weighted_clusters": {
            "clusters": [
                {
                    "name": backend.cluster,
                    "weight": backend.weight,
                    "typed_per_filter_config": _per_route(backend.picker),
                }
                for backend in weighed
            ]
        },
        "timeout": f"{timeout}s",
        # The share of a backend that is not right.
        "cluster_not_found_response_code": "INTERNAL_SERVER_ERROR",
        # What was never sent may be sent elsewhere.
        "retry_policy": {"retry_on": "connect-failure", "num_retries": 2},
    }
    return route


def _match(match: Object) -> Object:
    path = match.get("path") or {}
    value = path.get("value", "/")
    found: Object = {"prefix": "/"}
    if path.get("type") == "Exact":
        found = {"path": value}
    elif value.rstrip("/"):
        found = {"path_separated_prefix": value.rstrip("/")}
    headers = [
        {"name": entry["name"].lower(), "string_match": {"exact": entry["value"]}}
        for entry in match.get("headers") or []
    ]
    if "method" in match:
        headers.append({"name": ":method", "string_match": {"exact": match["method"]}})
    if headers:
        found["headers"] = headers
    if match.get("queryParams"):
        found["query_parameters"] = [
            {"name": entry["name"], "string_match": {"exact": entry["value"]}} for entry in match["queryParams"]
        ]
    return found


# -- clusters -------------------------------------------------------------------------------------------------------


def _backend_cluster(backend: Backend) -> Object:
    cluster = _cluster({"http_protocol_options": {}})
    cluster["health_checks"] = [_health_check(backend.check)]
    if backend.picker:
        cluster["load_balancing_policy"] = _policies(
            "override_host.v3.OverrideHost",
            override_host_sources=[
                {"metadata": {"key": "envoy.lb", "path": [{"key": _DESTINATION}]}},
                {"header": _DESTINATION},
            ],
            fallback_policy=_policies("round_robin.v3.RoundRobin"),
        )
    return cluster


def _picker_cluster(picker: Picker) -> Object:
    silence = f"{PICKER_SILENCE_SECONDS}s"
    keepalive = {"interval": silence, "timeout": silence}
    cluster = _cluster({"http2_protocol_options": {"connection_keepalive": keepalive}})
    if not picker.plaintext:
        # A certificate that the picker made for itself: nobody vouches for it, and nobody asks.
        cluster["transport_socket"] = _tls("UpstreamTlsContext", {"alpn_protocols": ["h2"]})
    return cluster


def _cluster(protocol: Object) -> Object:
    return {
        "@type": _TYPES + "config.cluster.v3.Cluster",
        "type": "EDS",
        # With the handshake: a picker that has just started takes its time for the first.
        "connect_timeout": "5s",
        # Where no endpoint is healthy nobody is asked.
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        "ignore_health_on_host_removal": True,
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": _TYPES + "extensions.upstreams.http.v3.HttpProtocolOptions",
                "common_http_protocol_options": {"idle_timeout": _KEEP_ALIVE},
                "explicit_http_config": protocol,
            }
        },
    }


def _health_check(check: Check) -> Object:
    found: Object = {
        "interval": f"{check.interval}s",
        "no_traffic_interval": f"{check.interval}s",
        # Google probes from several places: what was unhealthy is looked at again sooner than one would.
        "unhealthy_interval": f"{min(check.interval, 1)}s",
        "no_traffic_healthy_interval": f"{check.interval}s",
        "timeout": f"{check.timeout}s",
        "healthy_threshold": check.healthy,
        "unhealthy_threshold": check.unhealthy,
        "reuse_connection": False,
    }
    match check.type:
        case "TCP" | "HTTPS":
            found["tcp_health_check"] = {}
        case "GRPC":
            found["grpc_health_check"] = {"service_name": check.service} if check.service else {}
        case "HTTP2":
            found["http_health_check"] = {"path": check.path, "host": check.host, "codec_client_type": "HTTP2"}
        case _:
            found["http_health_check"] = {"path": check.path, "host": check.host}
    return found


def _endpoints(name: str, addresses: Iterable[Address], check_port: int) -> Object:
    checked = {"health_check_config": {"port_value": check_port}} if check_port else {}
    return {
        "@type": _TYPES + "config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": name,
        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _socket(each), **checked}} for each in addresses]}],
    }


# -- parts ----------------------------------------------------------------------------------------------------------


def _policies(name: str, **fields: Any) -> Object:
    short = re.sub(r"\.v\d+\..*", "", name)
    policy = {"@type": f"{_TYPES}extensions.load_balancing_policies.{name}", **fields}
    extension = {"name": f"envoy.load_balancing_policies.{short}", "typed_config": policy}
    return {"policies": [{"typed_extension_config": extension}]}


def _tls(context: str, common: Object) -> Object:
    config = {"@type": f"{_TYPES}extensions.transport_sockets.tls.v3.{context}", "common_tls_context": common}
    return {"name": "envoy.transport_sockets.tls", "typed_config": config}


def _socket(address: Address) -> Object:
    return {"socket_address": {"address": address.host, "port_value": address.port}}


def _from_file(path: Path) -> Object:
    return {"path_config_source": {"path": str(path)}, "resource_api_version": "V3"}
