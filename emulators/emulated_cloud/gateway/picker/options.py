"""The flags of the endpoint picker, parsed as pflag does: a boolean's value comes after `=` or not at all.

Names and defaults: llm-d-router v0.10.0, pkg/epp/server/options.go.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any


class BadOptions(Exception):
    """Flags that the real program ends over; its words and its exit code (2: pflag could not read them)."""

    def __init__(self, words: str, code: int = 2):
        self.code = code
        super().__init__(words)


@dataclass
class Options:
    """Flags by name (`grpc_port` is `--grpc-port`); durations in seconds."""

    grpc_port: int = 9002
    grpc_health_port: int = 9003
    metrics_port: int = 9090
    pool_name: str = ""
    pool_namespace: str = ""
    pool_group: str = "inference.networking.k8s.io"
    config_file: str = ""
    config_text: str = ""
    metrics_endpoint_auth: bool = True
    secure_serving: bool = True
    cert_path: str = ""
    drain_timeout: float = 30.0
    refresh_metrics_interval: float = 0.05
    disable_endpoint_subset_filter: bool = False
    v: int = 2
    # Known and without an effect here.
    refresh_prometheus_metrics_interval: float = 5.0
    metrics_staleness_threshold: float = 2.0
    tracing: bool = True
    health_checking: bool = False
    enable_pprof: bool = True
    enable_cert_reload: bool = False
    enable_grpc_stream_metrics: bool = False
    allow_experimental_plugins: bool = False
    grpc_max_recv_msg_size: str = ""
    grpc_max_send_msg_size: str = ""
    zap_devel: bool = True
    zap_encoder: str = ""
    zap_log_level: str = ""


NO_LONGER = {
    "total-queued-requests-metric",
    "total-running-requests-metric",
    "kv-cache-usage-percentage-metric",
    "lora-info-metric",
    "cache-info-metric",
}
"""Deprecated flags that the program knows and ends over."""
NOT_HERE = {
    "endpoint-selector",
    "endpoint-target-ports",
    "ha-enable-leader-election",
    "metrics-cert-dir",
    "metrics-client-ca-file",
}
"""Flags whose work this emulated picker does not do."""
_KINDS = {f"{field.name.replace('_', '-')}": (field.name, type(field.default)) for field in fields(Options)}
_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}


def parse(argv: Sequence[str]) -> Options:
    """Raises BadOptions."""
    given: dict[str, Any] = {}
    rest = list(argv)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("-") or argument == "-":
            continue  # An argument that is no flag: the real program does not look at it either.
        if argument == "--":
            break
        flag, has_value, value = argument.lstrip("-").partition("=")
        if flag in NO_LONGER:
            raise BadOptions(
                f'flag "{flag}" is deprecated and cannot be used; configure metrics via engineConfigs in '
                "EndpointPickerConfig instead",
                1,
            )
        if flag in NOT_HERE and value != "false":
            raise BadOptions(f"--{flag}: the real endpoint picker has this flag, the emulated one does not", 1)
        if flag in NOT_HERE:
            continue
        is_short = not argument.startswith("--")
        if flag not in _KINDS or (is_short and flag != "v"):
            raise BadOptions(
                f"unknown shorthand flag: {flag[:1]!r} in {argument}" if is_short else f"unknown flag: --{flag}"
            )
        name, kind = _KINDS[flag]
        if not has_value:
            if kind is bool:
                value = "true"
            elif rest:
                value = rest.pop(0)
            else:
                raise BadOptions(f"flag needs an argument: {'--' + flag if flag != 'v' else repr(flag) + ' in -v'}")
        given[name] = _value(flag, kind, value)
    options = Options(**given)
    if not options.pool_name:
        raise BadOptions("either pool-name or endpoint-selector must be set", 1)
    if options.config_text and options.config_file:
        raise BadOptions('both the "configText" and "configFile" flags can not be set at the same time', 1)
    return options


def _value(flag: str, kind: type, text: str) -> Any:
    called = "-v, --v" if flag == "v" else f"--{flag}"
    try:
        if kind is bool:
            return {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}[text.lower()]
        if kind is float:
            return seconds(text)
        return kind(text)
    except KeyError:
        why = f'strconv.ParseBool: parsing "{text}": invalid syntax'
    except ValueError as error:
        why = str(error) if kind is float else f'strconv.ParseInt: parsing "{text}": invalid syntax'
    raise BadOptions(f'invalid argument "{text}" for "{called}" flag: {why}')


def seconds(text: str) -> float:
    """Go's durations: `200ms`, `1m30s`, `0`. Raises ValueError."""
    if text == "0":
        return 0.0
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|us|µs|ns|h|m|s)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        missing = "missing unit in" if text.isdigit() else "invalid"
        raise ValueError(f'time: {missing} duration "{text}"')
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)
