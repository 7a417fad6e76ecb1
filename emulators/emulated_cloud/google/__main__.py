"""The emulator of Google's APIs as a process."""

from __future__ import annotations

import sys
from pathlib import Path

from emulated_cloud import process
from emulated_cloud.google.config import BadConfig, Config
from emulated_cloud.google.server import GoogleServer


def main() -> None:
    parser = process.arguments("Google's APIs other than storage: emulated_cloud/google/__init__.py lists them.")
    parser.add_argument("--config", type=Path, required=True, help="JSON: see the docstring of emulated_cloud.google")
    arguments = parser.parse_args()
    try:
        config = Config.load(arguments.config)
    except (BadConfig, OSError) as error:
        sys.exit(f"{arguments.config}: {error}")
    process.serve(GoogleServer((arguments.host, arguments.port), config, arguments.request_log))


if __name__ == "__main__":
    main()
