"""`python -m emulated_cloud.kubernetes.controllers --kubeconfig FILE`: all controllers, one process."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from emulated_cloud.kubernetes.client import Client, Informers
from emulated_cloud.kubernetes.controllers.attachments import AttachmentController
from emulated_cloud.kubernetes.controllers.autoscaling import AutoscalerController
from emulated_cloud.kubernetes.controllers.deployment import DeploymentController
from emulated_cloud.kubernetes.controllers.disruption import DisruptionController
from emulated_cloud.kubernetes.controllers.endpoints import EndpointsController
from emulated_cloud.kubernetes.controllers.garbage import GarbageCollector
from emulated_cloud.kubernetes.controllers.job import JobController
from emulated_cloud.kubernetes.controllers.namespace import NamespaceController
from emulated_cloud.kubernetes.controllers.replicaset import ReplicaSetController
from emulated_cloud.kubernetes.controllers.scheduler import Scheduler
from emulated_cloud.kubernetes.controllers.snapshots import SnapshotController
from emulated_cloud.kubernetes.controllers.volumes import VolumeController
from emulated_cloud.kubernetes.running import run_until_told


async def start(client: Client, job_backoff_seconds: float, autoscaler_seconds: float) -> None:
    """Starts everything; returns when all caches are filled."""
    informers = Informers(client)
    controllers = [
        NamespaceController(client, informers),
        DeploymentController(client, informers),
        ReplicaSetController(client, informers),
        JobController(client, informers, job_backoff_seconds),
        EndpointsController(client, informers),
        VolumeController(client, informers),
        AttachmentController(client, informers),
        SnapshotController(client, informers),
        DisruptionController(client, informers),
        AutoscalerController(client, informers, autoscaler_seconds),
        Scheduler(client, informers),
        GarbageCollector(client, informers),
    ]
    await informers.synced()
    _running.extend(controllers)


# The event loop holds tasks weakly: what is started must be held here.
_running: list[object] = []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument(
        "--job-backoff-seconds", type=float, default=1.0, help="wait after a Job's first failed pod (GKE: 10)"
    )
    parser.add_argument(
        "--autoscaler-seconds", type=float, default=15.0, help="from one look at an autoscaler to the next"
    )
    args = parser.parse_args()

    async def run() -> None:
        async with Client.from_kubeconfig(args.kubeconfig, "kube-controller-manager") as client:
            await run_until_told(client.server, start(client, args.job_backoff_seconds, args.autoscaler_seconds))

    asyncio.run(run())


if __name__ == "__main__":
    main()
