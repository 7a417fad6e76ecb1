"""The storage emulator as a process."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from emulated_cloud import process
from emulated_cloud.storage.server import StorageServer
from emulated_cloud.storage.store import Damaged, RootInUse, Store


def main() -> None:
    parser = process.arguments("Google Cloud Storage, file-backed.")
    parser.add_argument("--root", type=Path, required=True, help="where the buckets lie")
    parser.add_argument("--bucket", action="append", default=[], help="a bucket to make if it is not there")
    parser.add_argument("--tokens", type=Path, help="JSON {bearer token: email}: who is who in the request log")
    arguments = parser.parse_args()
    try:
        store = Store(arguments.root)
    except (RootInUse, Damaged) as error:
        sys.exit(str(error))
    for bucket in arguments.bucket:
        store.ensure_bucket(bucket)
    users = json.loads(arguments.tokens.read_text(encoding="utf-8")) if arguments.tokens else {}
    process.serve(StorageServer((arguments.host, arguments.port), store, users, arguments.request_log))


if __name__ == "__main__":
    main()
