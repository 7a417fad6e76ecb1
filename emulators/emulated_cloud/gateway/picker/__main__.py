"""`python -m emulated_cloud.gateway.picker --pool-name …`: ends as the real program ends, and serves until told to."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import aiohttp

from emulated_cloud.gateway.picker.config import BadConfig, Config, load
from emulated_cloud.gateway.picker.engines import Engines
from emulated_cloud.gateway.picker.metrics import Metrics
from emulated_cloud.gateway.picker.options import BadOptions, Options, parse
from emulated_cloud.gateway.picker.pool import NotServed, Pool
from emulated_cloud.gateway.picker.prefixes import PrefixIndex
from emulated_cloud.gateway.picker.processing import Picker
from emulated_cloud.gateway.picker.scheduling import Scheduler
from emulated_cloud.gateway.picker.server import Server
from emulated_cloud.kubernetes.client import ApiError, Client
from emulated_cloud.kubernetes.kubelet.environment import SERVICE_ACCOUNT

log = logging.getLogger("emulated_cloud.gateway.picker")  # __name__ is __main__

DEBUG = 3
"""From this `-v` on every request is logged."""


async def serve(options: Options, config: Config) -> None:
    """Until SIGTERM, and its drain. Raises NotServed without the InferencePool CRD."""
    environment = os.environ
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    account = Path(environment.get("EMULATED_SERVICE_ACCOUNT", SERVICE_ACCOUNT))
    namespace = options.pool_namespace or environment.get("NAMESPACE", "default")
    pool = Pool(options.pool_name, namespace, options.pool_group)
    async with (
        Client.in_cluster(account, environment, "epp") as client,
        aiohttp.ClientSession(trust_env=False, connector=aiohttp.TCPConnector(limit=0)) as session,
    ):
        picker = Picker(
            pool,
            Engines(session, options.refresh_metrics_interval),
            Scheduler(config),
            PrefixIndex(config.prefixes),
            Metrics(options.pool_name),
            options.disable_endpoint_subset_filter,
        )
        try:
            await pool.watch(client)
            async with Server(picker, client, options, environment.get("EMULATED_HOST", "0.0.0.0")) as server:
                log.info("serving the pool %s/%s", namespace, options.pool_name)
                await told.wait()
                log.info("told to end: serving on until nobody asks, %s s at most", options.drain_timeout)
                await server.drain()
        finally:
            await pool.stop()


def main(argv: Sequence[str]) -> int:
    """Exit codes: 0 after a drained end, 1 over a configuration or a missing CRD, 2 over flags that are none."""
    try:
        options = parse(argv)
    except BadOptions as error:
        print(error, file=sys.stderr)
        return error.code
    level = logging.DEBUG if options.v >= DEBUG else logging.INFO
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("emulated_cloud").setLevel(level)
    try:
        text = Path(options.config_file).read_text(encoding="utf-8") if options.config_file else options.config_text
        config = load(text)
    except OSError as error:
        words = f"open {options.config_file}: {str(error.strerror).lower()}"
        log.error("failed to load config from a file '%s' - %s", options.config_file, words)
        return 1
    except BadConfig as error:
        log.error("%s", error)
        return 1
    try:
        asyncio.run(serve(options, config))
    except (NotServed, ApiError, aiohttp.ClientError, TimeoutError) as error:
        # Before it serves; afterwards an API server that is away is waited for.
        log.error("failed to start: %s", error or type(error).__name__)
        return 1
    return 0


if __name__ == "__main__":
    # aiohttp's client reads every CA certificate when imported; the API server's comes with the service account.
    os.environ.setdefault("SSL_CERT_FILE", os.devnull)
    sys.exit(main(sys.argv[1:]))
