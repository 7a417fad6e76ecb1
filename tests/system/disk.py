"""A disk as a VM has it, the script run on it, and what lies on it then."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parents[2] / "images/disk-builder/build_disk.py"
MIB = 1 << 20


class MetadataServer(ThreadingHTTPServer):
    """The VM's metadata server: the script's item, and an access token."""

    daemon_threads = True

    def __init__(self, item: dict[str, Any], token: str = "") -> None:
        answers = {
            "/computeMetadata/v1/instance/attributes/gemma-pipelines-bake": json.dumps(item),
            "/computeMetadata/v1/instance/service-accounts/default/token": json.dumps({"access_token": token}),
        }

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                found = answers.get(self.path)
                ok = found is not None and self.headers.get("Metadata-Flavor") == "Google"
                self.send_response(200 if ok else 404)
                self.end_headers()
                self.wfile.write((found or "").encode())

            def log_message(self, *_: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> MetadataServer:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class Disk:
    """A sparse file behind a loop device."""

    def __init__(self, folder: Path, mib: int = 2048) -> None:
        self.file = folder / "disk.raw"
        with self.file.open("wb") as file:
            file.truncate(mib * MIB)
        self.mounts = folder / "mounted"
        self.mounts.mkdir()

    def __enter__(self) -> Disk:
        argv = ["losetup", "--find", "--show", str(self.file)]
        self.device = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["losetup", "--detach", self.device], check=True)

    def item(self, *images: dict[str, Any], **options: Any) -> dict[str, Any]:
        usual = {"device": self.device, "images": list(images), "attempts": 2, "heartbeat_seconds": 1}
        return {**usual, **options}

    @contextmanager
    def baking(self, *images: dict[str, Any], token: str = "", **options: Any) -> Iterator[subprocess.Popen[str]]:
        """The script, running."""
        with MetadataServer(self.item(*images, **options), token) as server:
            process = subprocess.Popen(
                [sys.executable, str(SCRIPT)],
                env={"PATH": os.environ["PATH"], "GCE_METADATA_HOST": server.host, "LC_ALL": "C"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            try:
                yield process
            finally:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                process.wait()
                if process.stdout:
                    process.stdout.close()

    def bake(self, *images: dict[str, Any], token: str = "", **options: Any) -> str:
        """What the script says, whole."""
        with self.baking(*images, token=token, **options) as process:
            said, _ = process.communicate(timeout=120)
        last = said.splitlines()[-1]
        assert last.startswith(("GP-BAKE done ", "GP-BAKE failed ")), said
        assert process.returncode == (0 if "GP-BAKE done" in last else 1)
        return said

    @contextmanager
    def mounted(self) -> Iterator[Path]:
        """What lies on it, to be read."""
        subprocess.run(["mount", "-o", "ro", self.device, str(self.mounts)], check=True)
        try:
            yield self.mounts
        finally:
            subprocess.run(["umount", str(self.mounts)], check=True)

    def check(self) -> None:
        """What the file system's own checker thinks of it."""
        done = subprocess.run(["e2fsck", "-fn", self.device], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def tree(root: Path, now: float) -> dict[bytes, dict[str, Any]]:
    """Every file below a folder, with all that can be known of it; a time since `now` is any time since then."""
    found: dict[bytes, dict[str, Any]] = {}
    links: dict[int, list[bytes]] = {}
    top = os.fsencode(root)
    for folder, folders, files in os.walk(top):
        for path in [folder] if folder == top else []:
            found[b"."] = described(path, now)
        for name in folders + files:
            path = os.path.join(folder, name)
            short = os.path.relpath(path, top)
            found[short] = described(path, now)
            about = os.lstat(path)
            if not stat.S_ISDIR(about.st_mode):
                links.setdefault(about.st_ino, []).append(short)
    for names in links.values():
        for name in names:
            found[name]["links"] = sorted(names)
    return found


def described(path: bytes, now: float) -> dict[str, Any]:
    about = os.lstat(path)
    told: dict[str, Any] = {
        "mode": stat.filemode(about.st_mode),
        "owner": (about.st_uid, about.st_gid),
        "time": "now" if about.st_mtime >= now else about.st_mtime_ns,
        "xattrs": {
            name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)
        },
    }
    if stat.S_ISREG(about.st_mode):
        with open(path, "rb") as file:
            told["content"] = hashlib.file_digest(file, "sha256").hexdigest()
    elif stat.S_ISLNK(about.st_mode):
        told["content"] = os.readlink(path)
    elif not stat.S_ISDIR(about.st_mode):
        told["content"] = about.st_rdev
    return told


def differences(ours: dict[bytes, dict[str, Any]], theirs: dict[bytes, dict[str, Any]]) -> list[str]:
    """One line for every attribute of every file in which two trees differ."""
    lines = []
    for name in sorted(ours.keys() | theirs.keys()):
        if name not in ours or name not in theirs:
            lines.append(f"{name!r} is {'missing' if name not in ours else 'too many'}")
            continue
        for key in sorted(ours[name].keys() | theirs[name].keys()):
            if ours[name].get(key) != theirs[name].get(key):
                lines.append(f"{name!r}: {key} is {ours[name].get(key)}, not {theirs[name].get(key)}")
    return lines
