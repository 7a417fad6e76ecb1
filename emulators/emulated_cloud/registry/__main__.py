"""The registry emulator as a process."""

from __future__ import annotations

from pathlib import Path

from emulated_cloud import process
from emulated_cloud.registry.access import TOKEN_SECONDS
from emulated_cloud.registry.server import RegistryServer

# Blobs come from the same port under loopback's other name (routes.py).
HOSTS = ("127.0.0.1", "localhost", "0.0.0.0")


def main() -> None:
    parser = process.arguments("A container registry that has every image.")
    parser.add_argument("--root", type=Path, required=True, help="where images are kept that were asked for")
    parser.add_argument("--token", type=Path, help="a file with the access token of a service account")
    parser.add_argument("--private", action="append", default=[], metavar="REGEX", help="repositories that want it")
    parser.add_argument("--absent", action="append", default=[], metavar="REGEX", help="what is not there")
    parser.add_argument(
        "--own", action="append", default=[], metavar="REGEX", help="repositories that have what was pushed alone"
    )
    parser.add_argument(
        "--token-seconds",
        type=float,
        default=TOKEN_SECONDS,
        help="how long a token to pull with lives (%(default)s)",
    )
    parser.add_argument("--layers", type=int, default=3, help="layers of an image (%(default)s)")
    options = parser.parse_args()
    if options.host not in HOSTS:
        parser.error(f"--host must be one of {', '.join(HOSTS)}")
    server = RegistryServer(
        (options.host, options.port),
        options.root,
        token=options.token.read_text(encoding="utf-8").strip() if options.token else "",
        private=options.private,
        absent=options.absent,
        own=options.own,
        token_seconds=options.token_seconds,
        layers=options.layers,
        request_log=options.request_log,
    )
    process.serve(server)


if __name__ == "__main__":
    main()
