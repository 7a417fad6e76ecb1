"""`python -m emulated_cloud.kubernetes.apiserver --data DIR --tokens FILE`: the emulated kube-apiserver as a process.

DIR holds the cluster (`cluster.db`), `tls/` (`ca.crt` is what clients trust) and the key of service-account tokens.
FILE is kube-apiserver's token file: `token,user,uid,"group1,group2"`.
"""

from __future__ import annotations

import argparse
import asyncio
import ssl
import sys
from pathlib import Path

from aiohttp import web

from emulated_cloud.kubernetes import tls
from emulated_cloud.kubernetes.apiserver import cluster
from emulated_cloud.kubernetes.apiserver.resources import Resources
from emulated_cloud.kubernetes.apiserver.routes import Routes
from emulated_cloud.kubernetes.apiserver.server import Server
from emulated_cloud.kubernetes.apiserver.storage import Storage
from emulated_cloud.kubernetes.apiserver.store import Store
from emulated_cloud.kubernetes.apiserver.tokens import Tokens, read_token_file
from emulated_cloud.process import announce, arguments, when_told_to_end

CRDS = Path(__file__).parent.parent / "crds"


def main() -> None:
    parser = arguments("An emulated kube-apiserver.")
    parser.add_argument("--data", type=Path, required=True, help="folder that the cluster is kept in")
    parser.add_argument("--tokens", type=Path, required=True, help='token,user,uid,"group1,group2" a line')
    parser.add_argument("--crds", type=Path, default=CRDS, help="folder of definitions to install at start")
    parser.add_argument(
        "--absent", action="append", default=[], metavar="PLURAL.GROUP", help="a definition that is not installed"
    )
    parser.add_argument(
        "--objects", type=Path, action="append", default=[], help="YAML of what somebody applied before"
    )
    options = parser.parse_args()
    try:
        users = read_token_file(options.tokens)
    except (OSError, ValueError) as error:
        sys.exit(f"cannot read the token file: {error}")
    options.data.mkdir(parents=True, exist_ok=True)
    context = tls.ensure(options.data / "tls")
    store = Store(options.data / "cluster.db")
    storage = Storage(store, Resources())
    cluster.start(storage, options.crds, options.absent)
    for path in options.objects:
        cluster.apply(storage, path)
    tokens = Tokens(users, options.data / "service-account.key", store)
    asyncio.run(_serve(storage, tokens, context, options))
    store.close()


async def _serve(storage: Storage, tokens: Tokens, context: ssl.SSLContext, options: argparse.Namespace) -> None:
    ended = asyncio.Event()
    server = Server(Routes(storage, tokens), tokens, options.request_log)
    runner = web.AppRunner(server.app(), access_log=None, shutdown_timeout=2.0)
    await runner.setup()
    site = web.TCPSite(runner, options.host, options.port, ssl_context=context, backlog=512)
    await site.start()
    loop = asyncio.get_running_loop()

    def end() -> None:
        loop.call_soon_threadsafe(ended.set)

    when_told_to_end(end)
    host, port = runner.addresses[0][:2]
    announce(f"https://{host}:{port}")
    await ended.wait()
    await runner.cleanup()


if __name__ == "__main__":
    main()
