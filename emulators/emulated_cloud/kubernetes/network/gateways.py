"""Where a Gateway is: its address by its status, whoever wrote that, and the port behind each of its ports here."""

from __future__ import annotations

from emulated_cloud.kubernetes.client import Informer, Object
from emulated_cloud.kubernetes.network.services import NoEndpoint


class GatewayTable:
    """Gateways as their status has them. Empty until the kind is served (`gateways`)."""

    def __init__(self) -> None:
        self.gateways: Informer | None = None
        self.routes: Informer | None = None
        self.opened: dict[tuple[str, int], int] = {}
        """Ports that had to be opened as others: this user may not have them, or somebody else has."""

    def endpoint(self, namespace: str, name: str, port: int) -> tuple[str, int]:
        """Address and port that a Gateway's port is reached by on this machine. Raises NoEndpoint."""
        gateway = self.gateways.items.get(f"{namespace}/{name}") if self.gateways else None
        addresses = ((gateway or {}).get("status") or {}).get("addresses") or []
        if not addresses:
            raise NoEndpoint(f"connection refused: Gateway {namespace}/{name} has no address")
        address = addresses[0]["value"]
        return address, self.opened.get((address, port), port)

    def scheme(self, namespace: str, name: str, port: int) -> str:
        """`https` if the Gateway's listener on the port is one."""
        gateway: Object = (self.gateways.items.get(f"{namespace}/{name}") if self.gateways else None) or {"spec": {}}
        listeners = gateway["spec"].get("listeners") or []
        return "https" if any((each["port"], each["protocol"]) == (port, "HTTPS") for each in listeners) else "http"

    def way_in(self, namespace: str, name: str) -> tuple[str, str]:
        """The host, if it matters, and the path that lead to a backend: of the first route to the Gateway; no path if
        there is none."""
        for route in self.routes.items.values() if self.routes else ():
            own = route["metadata"]["namespace"]
            for ref in route["spec"].get("parentRefs") or []:
                if (ref.get("namespace", own), ref["name"]) == (namespace, name):
                    rules = route["spec"].get("rules") or [{}]
                    matches = rules[0].get("matches") or [{}]
                    host = next(iter(route["spec"].get("hostnames") or []), "")
                    return host, (matches[0].get("path") or {}).get("value") or "/"
        return "", ""
