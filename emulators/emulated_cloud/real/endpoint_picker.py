"""GAIE's endpoint picker (v1.5.0) as it stands for its successor's image, llm-d-router's: the program of a container.

    python -m emulated_cloud.real.endpoint_picker BINARY FLAG…

It is run with the flags, the configuration and the rights that a manifest gives llm-d-router v0.10. Three things are
said again in its own words, and nothing else is changed:

* its configuration has the successor's group, and every field as it is;
* objectives and rewrites are read of the successor's group: the way to the API server goes through this process, which
  calls that group by the old name. Requests have the pod's own token, so that its roles count;
* flags that came after v1.5.0 are left out.

The binary listens on all addresses of a machine, and the pods of a cluster share one here: it has free ports on it, and
its pod's address leads to them, at the ports that it was told.

What a container of GKE finds by name is in its environment: EMULATED_HOST (its pod's address), EMULATED_SERVICE_ACCOUNT
(the folder of its token).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import secrets
import signal
import socket
import ssl
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path

import aiohttp
from aiohttp import web

from emulated_cloud.kubernetes.network.relay import listen
from emulated_cloud.process import dies_with_its_parent

GROUP, OLD_GROUP = b"llm-d.ai", b"inference.networking.x-k8s.io"
API_VERSION, OLD_API_VERSION = "llm-d.ai/v1alpha1", "inference.networking.x-k8s.io/v1alpha1"
LATER_FLAGS = ("drain-timeout",)
PORTS = {"grpc-port": 9002, "grpc-health-port": 9003, "metrics-port": 9090}
"""The flags of what it listens on, and what they are by default."""
_OLD_PATH = f"/apis/{OLD_GROUP.decode()}"
_KEPT_HEADERS = ("Accept", "User-Agent", "Content-Type")


class Refused(Exception):
    """What llm-d-router would not start with, in a sentence."""


# -- what it is told ----------------------------------------------------------------------------------------------


def without_later_flags(given: Sequence[str]) -> list[str]:
    """The flags that v1.5.0 knows of those that v0.10 knows: `--name=value` or `--name value`."""
    kept: list[str] = []
    words = iter(given)
    for word in words:
        name, separate, _ = word.lstrip("-").partition("=")
        if name not in LATER_FLAGS:
            kept.append(word)
        elif not separate:
            next(words, None)
    return kept


def adapted_config(text: str) -> str:
    """The same configuration in the old group. Raises Refused for one that is not llm-d-router's."""
    pattern = re.compile(rf"^apiVersion:[ ]*[\"']?{re.escape(API_VERSION)}[\"']?[ ]*$", re.MULTILINE)
    adapted, found = pattern.subn(f"apiVersion: {OLD_API_VERSION}", text)
    if not found:
        raise Refused(f"the configuration has no apiVersion {API_VERSION}, the one that llm-d-router v0.10 reads")
    return adapted


def _told(given: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-file", type=Path)
    for flag, port in PORTS.items():
        parser.add_argument(f"--{flag}", type=int, default=port)
    return parser.parse_known_args(given)[0]


# -- the way to the API server ------------------------------------------------------------------------------------


class ApiServer:
    """The API server as the old picker sees it: GROUP has its old name, all else is as it is."""

    def __init__(self, server: str, token: Path, session: aiohttp.ClientSession):
        self._server, self._token, self._session = server, token, session
        # Whoever is on this network could use the pod's token; client-go sends none where there is no TLS.
        self._secret = f"/{secrets.token_urlsafe(24)}"

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        """Its address, which is a secret, while the block runs."""
        app = web.Application()
        app.router.add_route("*", self._secret + "/{path:.*}", self._answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}{self._secret}"
        finally:
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path = request.raw_path.removeprefix(self._secret)
        old = path.startswith(_OLD_PATH)
        # Discovery names groups too.
        renamed = old or path.partition("?")[0] == "/apis"
        if old:
            path = path.replace(OLD_GROUP.decode(), GROUP.decode(), 1)
        headers = {name: value for name, value in request.headers.items() if name.title() in _KEPT_HEADERS}
        # Read each time: a kubelet renews it.
        headers["Authorization"] = f"Bearer {self._token.read_text(encoding='utf-8').strip()}"
        body = await request.read()
        url = self._server + path
        try:
            async with self._session.request(request.method, url, headers=headers, data=body or None) as found:
                answer = web.StreamResponse(
                    status=found.status, headers={"Content-Type": found.headers["Content-Type"]}
                )
                await answer.prepare(request)
                if renamed and "watch" not in request.query:
                    await answer.write((await found.read()).replace(GROUP, OLD_GROUP))
                async for part in _lines(found.content) if renamed else found.content.iter_any():
                    await answer.write(part.replace(GROUP, OLD_GROUP) if renamed else part)
                await answer.write_eof()
                return answer
        except aiohttp.ClientError as error:
            return web.Response(status=502, text=str(error))


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Events of a watch, whole, however long: a name must not be cut in two."""
    pending = b""
    async for chunk in content.iter_any():
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            yield line + b"\n"


def _kubeconfig(server: str) -> str:
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "pod",
            "clusters": [{"name": "pod", "cluster": {"server": server}}],
            "users": [{"name": "pod", "user": {}}],
            "contexts": [{"name": "pod", "context": {"cluster": "pod", "user": "pod"}}],
        }
    )


# -- the process --------------------------------------------------------------------------------------------------


async def run(binary: str, given: Sequence[str]) -> int:
    """Runs it to its end; the exit code that a shell would give. Raises Refused."""
    told, flags = _told(given), without_later_flags(given)
    host, account = os.environ["EMULATED_HOST"], Path(os.environ["EMULATED_SERVICE_ACCOUNT"])
    server = f"https://{os.environ['KUBERNETES_SERVICE_HOST']}:{os.environ['KUBERNETES_SERVICE_PORT']}"
    tls = ssl.create_default_context(cafile=str(account / "ca.crt"))
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=tls), timeout=aiohttp.ClientTimeout(total=None, sock_connect=10)
    )
    async with session, ApiServer(server, account / "token", session).serve() as address:
        with tempfile.TemporaryDirectory() as folder:
            if told.config_file:
                config = Path(folder, "config.yaml")
                config.write_text(adapted_config(told.config_file.read_text(encoding="utf-8")), encoding="utf-8")
                flags.append(f"--config-file={config}")
            kubeconfig = Path(folder, "kubeconfig")
            kubeconfig.write_text(_kubeconfig(address), encoding="utf-8")
            for flag in PORTS:
                port = _free_port()
                await listen(host, getattr(told, flag.replace("-", "_")), partial(_here, port))
                flags.append(f"--{flag}={port}")
            # Of several flags of a name the last counts. The proxy of pods is for names of Services: it asks for none.
            environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
            process = await asyncio.create_subprocess_exec(
                binary,
                *flags,
                env={**environment, "KUBECONFIG": str(kubeconfig)},
                preexec_fn=dies_with_its_parent,
            )
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, process.send_signal, number)
            code = await process.wait()
    return code if code >= 0 else 128 - code


def _here(port: int) -> tuple[str, int]:
    return "127.0.0.1", port


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])


def main() -> None:
    try:
        sys.exit(asyncio.run(run(sys.argv[1], sys.argv[2:])))
    except (Refused, OSError) as error:
        sys.exit(f"endpoint picker: {error}")


if __name__ == "__main__":
    main()
