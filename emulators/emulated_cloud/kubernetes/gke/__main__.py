"""`python -m emulated_cloud.kubernetes.gke --kubeconfig FILE --config FILE`: nodes, kubelet, CSI and network."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from emulated_cloud.gateway.controller import GatewayController
from emulated_cloud.kubernetes.client import Client, Informers, Object
from emulated_cloud.kubernetes.gke import addons, pd
from emulated_cloud.kubernetes.gke.admission import Admission
from emulated_cloud.kubernetes.gke.attacher import Attacher
from emulated_cloud.kubernetes.gke.autoscaler import Autoscaler
from emulated_cloud.kubernetes.gke.config import Config, ConfigError, load
from emulated_cloud.kubernetes.gke.disk_faults import DiskFaults, ScriptedFaults
from emulated_cloud.kubernetes.gke.disks import Disks
from emulated_cloud.kubernetes.gke.gcsfuse import DRIVER, GcsFuseDriver, LinkMounter, Mounter
from emulated_cloud.kubernetes.gke.image_cache import ImageCache
from emulated_cloud.kubernetes.gke.nodes import NodeKeeper
from emulated_cloud.kubernetes.gke.populator import Populator
from emulated_cloud.kubernetes.gke.preemption import Preemption
from emulated_cloud.kubernetes.gke.prometheus import ManagedPrometheus
from emulated_cloud.kubernetes.gke.provisioner import Provisioner
from emulated_cloud.kubernetes.gke.snapshotter import Snapshotter
from emulated_cloud.kubernetes.kubelet.csi import NodeDriver
from emulated_cloud.kubernetes.kubelet.environment import service_variables
from emulated_cloud.kubernetes.kubelet.kubelet import Kubelet
from emulated_cloud.kubernetes.kubelet.runtime import Runtime, SharedRoot
from emulated_cloud.kubernetes.kubelet.server import KubeletServer
from emulated_cloud.kubernetes.network import proxy
from emulated_cloud.kubernetes.network.addresses import claim
from emulated_cloud.kubernetes.network.expose import Expose
from emulated_cloud.kubernetes.network.gateways import GatewayTable
from emulated_cloud.kubernetes.network.loadbalancer import LoadBalancers
from emulated_cloud.kubernetes.network.services import ServiceTable
from emulated_cloud.kubernetes.resources import ENDPOINT_SLICES, SERVICES, STORAGE_CLASSES
from emulated_cloud.kubernetes.running import run_until_told


class Gke:
    """All parts, wired."""

    def __init__(self, client: Client, config: Config, mounter: pd.Mounter):
        self._client, self._config = client, config
        self._informers = Informers(client)
        self._faults = DiskFaults(config.path)
        self._disks = Disks(config.disks, self._faults) if config.disks else None
        self._services = ServiceTable(self._informers)
        self._nodes = NodeKeeper(client, self._informers, config.node_address)
        cache = ImageCache(self._informers, config)
        self._kubelet = Kubelet(
            client,
            self._informers,
            config.pods,
            config.image,
            self._variables_for,
            self._drivers(mounter),
            config.pod_network,
            config.node_address,
            config.crash_backoff_seconds,
            self._runtime(),
            cache.pull,
        )
        self._server = KubeletServer(self._kubelet, config.node_address, config.pods.with_name("kubelet"))
        self._disk_parts = self._start_disk_parts()
        self._autoscaler = Autoscaler(client, self._informers, config, self._nodes, cache)
        self._admission = Admission(client, self._informers)
        self._preemption = Preemption(client, self._informers, self._nodes)
        gateways = GatewayTable()
        self._expose = Expose(self._informers, self._services, gateways, config.expose)
        self._balancers = LoadBalancers(client, self._informers, self._services, config.load_balancer_network)
        self._gateways = GatewayController(
            client,
            self._informers,
            self._services,
            gateways,
            ScriptedFaults(config.path, "gateway_faults", "gateways-consumed"),
            config.pods.with_name("gateways"),
            config.load_balancer_network,
            config.tls,
            config.gateway,
        )
        self._prometheus = ManagedPrometheus(self._informers, config, config.metrics) if config.metrics else None
        self._proxy: asyncio.Server | None = None
        self._proxy_address = ""
        self._leases: asyncio.Task[None] | None = None

    def _drivers(self, disk_mounter: pd.Mounter) -> dict[str, NodeDriver]:
        drivers: dict[str, NodeDriver] = {}
        self._disk_driver: pd.PersistentDiskDriver | None = None
        if self._disks:
            self._disk_driver = pd.PersistentDiskDriver(
                self._config.project, self._disks, self._faults, disk_mounter, self._informers
            )
            drivers[pd.DRIVER] = self._disk_driver
        storage = self._config.storage
        if storage is None:
            return drivers
        mounter: Mounter = LinkMounter(storage.root)
        if storage.gcsfuse:
            from emulated_cloud.real.gcsfuse import GcsFuseMounter

            mounter = GcsFuseMounter(storage.endpoint, self._config.pods.with_name("gcsfuse"))
        classes = self._informers.of(STORAGE_CLASSES)
        drivers[DRIVER] = GcsFuseDriver(
            storage.endpoint,
            self._config.project,
            mounter,
            lambda name: classes.items.get(name, {}).get("mountOptions") or [],
        )
        return drivers

    def _start_disk_parts(self) -> list[Attacher | Populator | Provisioner | Snapshotter]:
        """The sidecars of the persistent disk driver, and the populator of its volumes."""
        if not self._disks or not self._disk_driver:
            return []
        own = (self._client, self._informers, self._disk_driver)
        parts: list[Attacher | Populator | Provisioner | Snapshotter] = [
            Attacher(*own),
            Snapshotter(*own),
            Provisioner(*own, self._config.zones),
        ]
        if storage := self._config.storage:
            parts.append(
                Populator(
                    self._client,
                    self._informers,
                    self._disks,
                    self._faults,
                    self._config.project,
                    storage.endpoint,
                    storage.root,
                )
            )
        return parts

    def _runtime(self) -> Runtime:
        if not self._config.private_roots:
            return SharedRoot()
        from emulated_cloud.real.runtime import PrivateRoot

        trusted = [self._config.tls / "ca.crt"] if self._config.tls else []
        return PrivateRoot([*self._config.show, *trusted])

    async def start(self) -> None:
        """Returns when nodes, Services and listeners are up."""
        self._informers.of(SERVICES)
        self._informers.of(ENDPOINT_SLICES)
        await addons.install(self._client)
        await self._informers.synced()
        self._proxy, self._proxy_address = await proxy.serve(self._services, self._config.node_address)
        self._nodes.kubelet_port = await self._server.start()
        await self._nodes.adopt()
        self._leases = asyncio.create_task(self._nodes.run())
        await self._kubelet.start()
        await self._expose.start()
        self._balancers.start()
        self._gateways.start()
        if self._prometheus:
            self._prometheus.start()

    async def stop(self) -> None:
        """The pods' processes first, while the rest still serves them."""
        await self._autoscaler.stop()
        if self._prometheus:
            await self._prometheus.stop()
        await self._admission.queue.stop()
        await self._preemption.queue.stop()
        for part in self._disk_parts:
            await part.stop()
        await self._gateways.stop()
        await self._kubelet.stop()
        await self._balancers.stop()
        await self._expose.stop()
        await self._server.stop()
        if self._proxy:
            self._proxy.close()
        if self._leases:
            self._leases.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._leases
        await self._informers.stop()

    def _variables_for(self, pod: Object) -> dict[str, str]:
        """The way to the API server, to Services and Gateways: what a pod's environment gets from the node."""
        namespace = pod["metadata"]["namespace"]
        server = urlsplit(self._client.server)
        port = str(server.port or 443)
        variables = {
            "KUBERNETES_SERVICE_HOST": server.hostname or "",
            "KUBERNETES_SERVICE_PORT": port,
            "KUBERNETES_SERVICE_PORT_HTTPS": port,
        }
        url = proxy.proxy_url(self._proxy_address, namespace)
        direct = ",".join(dict.fromkeys(["127.0.0.1", "localhost", "::1", server.hostname or ""]))
        for name, value in {"http_proxy": url, "https_proxy": url, "no_proxy": direct}.items():
            variables |= {name: value, name.upper(): value}
        if self._config.tls:
            # Whom everybody trusts here: what a container of a real cluster finds in its image.
            variables["SSL_CERT_FILE"] = str(self._config.tls / "ca.crt")
        if pod["spec"].get("enableServiceLinks", True):
            services = self._informers.of(SERVICES).in_namespace(namespace)
            variables |= service_variables(services)
        return variables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--config", type=Path, required=True, help="JSON; its keys are in gke/config.py")
    args = parser.parse_args()
    try:
        config = load(args.config)
        claimed = None if config.pod_network else claim()
    except (ConfigError, OSError) as error:
        sys.exit(str(error))
    if claimed:
        config = replace(config, pod_network=claimed.pod_network, load_balancer_network=claimed.load_balancer_network)

    # Before there is a second thread, which would stay outside.
    mounter = pd.mounter()

    async def run() -> None:
        async with Client.from_kubeconfig(args.kubeconfig, "gke") as client:
            gke = Gke(client, config, mounter)
            try:
                await run_until_told(client.server, gke.start())
            finally:
                await gke.stop()

    try:
        asyncio.run(run())
    except OSError as error:
        # A port that is taken, a folder that cannot be written.
        sys.exit(f"{args.config}: {error}")
    finally:
        if claimed:
            claimed.release()


if __name__ == "__main__":
    main()
