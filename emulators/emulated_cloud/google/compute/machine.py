"""A machine that is switched on: its metadata server, its startup script, its first serial port.

The script runs in boot.py's process, with the machine's disks and a root of its own; the machine stays on when it has
ended. Whoever has no right to that, or is told so, has machines that write given lines to the serial port instead.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from emulated_cloud.google import metadata
from emulated_cloud.google.compute import boot
from emulated_cloud.google.config import ComputeConfig, Config
from emulated_cloud.http import EmulatorServer, Handler

KEPT_BYTES = 1 << 20
"""How much of its newest output a serial port keeps."""
RELEASE_SECONDS = 60.0
MACHINES = "machines"
"""Below the folder of what there is: what machines need while they run."""

_RUNNER = "google_metadata_script_runner"
_BOOT = (
    "[    0.000000] Linux version 6.12.0-cloud-amd64 (emulated)",
    "[    1.000000] systemd[1]: Startup finished in 1s (kernel).",
    f"{_RUNNER}[1]: Starting startup scripts (version emulated).",
    f"{_RUNNER}[1]: Found startup-script in metadata.",
)
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "NO_PROXY": "127.0.0.1,localhost",
    "no_proxy": "127.0.0.1,localhost",
}


class SerialPort:
    """What was written to it; beyond KEPT_BYTES the oldest is gone."""

    def __init__(self) -> None:
        self._start, self._kept = 0, bytearray()
        self._lock = threading.Lock()
        self.silent = False

    def write(self, line: str) -> None:
        if self.silent:
            return
        with self._lock:
            self._kept += line.encode() + b"\r\n"
            gone = max(0, len(self._kept) - KEPT_BYTES)
            del self._kept[:gone]
            self._start += gone

    def read(self, start: int) -> tuple[bytes, int, int]:
        """What is there from `start` on, where that begins, and where the next begins."""
        with self._lock:
            first = min(max(start, self._start), self._start + len(self._kept))
            return bytes(self._kept[first - self._start :]), first, self._start + len(self._kept)


class Machine:
    """An instance that is RUNNING. `disks` are the files behind its disks, by device name; `scripted` is what a test
    wants of it (__init__.py: `machine`)."""

    def __init__(
        self,
        config: Config,
        compute: ComputeConfig,
        instance: dict[str, Any],
        disks: dict[str, Path],
        scripted: dict[str, Any],
    ):
        self.serial = SerialPort()
        self._disks, self._scripted = disks, scripted
        items = {item["key"]: item["value"] for item in instance["metadata"].get("items", [])}
        self._script = scripted.get("script", items.get("startup-script", ""))
        self._output: list[str] | None = scripted.get("output")
        if self._output is None and not (compute.run_scripts and boot.is_possible()):
            self._output = compute.script_output
        self._metadata = MetadataServer(_tree(config, instance, items))
        self._folder = compute.folder / MACHINES / instance["id"]
        self._folder.mkdir(parents=True)
        self._popen: subprocess.Popen[str] | None = None
        self._stopped = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        threading.Thread(target=self._metadata.serve_forever, args=(0.05,), daemon=True).start()
        self._thread.start()

    def stop(self) -> None:
        """Switches it off: what ran is gone, and nothing holds its disks, when this returns."""
        with self._lock:
            self._stopped = True
        self._signal(signal.SIGKILL)
        self._thread.join()
        self._metadata.shutdown()
        self._metadata.server_close()
        for file in self._disks.values():
            _wait_until_released(file)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _signal(self, number: signal.Signals) -> None:
        if self._popen and self._popen.poll() is None:
            try:
                os.killpg(self._popen.pid, number)
            except ProcessLookupError:
                pass

    def _run(self) -> None:
        # The process dies with the thread that started it (boot.py), which is this one, here to the end.
        if not self._scripted.get("boots", True):
            return
        for line in _BOOT if self._script else _BOOT[:-1]:
            self.serial.write(line)
        if self._output is not None:
            for line in self._output:
                self._hear(line)
            self._finished(0)
        elif self._script:
            self._run_script()

    def _run_script(self) -> None:
        script = self._folder / "startup-script"
        script.write_text(self._script, encoding="utf-8")
        script.chmod(0o700)
        spec = self._folder / "machine.json"
        environment = {**_ENVIRONMENT, "GCE_METADATA_HOST": self._metadata.url.removeprefix("http://")}
        description = {
            "root": str(self._folder / "root"),
            "disks": {name: str(file) for name, file in self._disks.items()},
            "script": str(script),
            "environment": environment,
        }
        spec.write_text(json.dumps(description), encoding="utf-8")
        with self._lock:
            if self._stopped:
                return
            self._popen = subprocess.Popen(
                [sys.executable, "-I", boot.__file__, str(spec)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
            )
        assert self._popen.stdout
        for line in self._popen.stdout:
            self._hear(line.rstrip("\r\n"))
        code = self._popen.wait()
        self._popen.stdout.close()
        if not self._stopped:
            self._finished(code)

    def _hear(self, line: str) -> None:
        self.serial.write(f"{_RUNNER}[1]: startup-script: {line}")
        if "after" in self._scripted and re.search(self._scripted["after"], line):
            match self._scripted["then"]:
                case "killed":
                    self._signal(signal.SIGKILL)
                case "hangs":
                    self._signal(signal.SIGSTOP)
                case "silent":
                    self.serial.silent = True

    def _finished(self, code: int) -> None:
        how = f"signal: {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        if code:
            self.serial.write(f'{_RUNNER}[1]: Script "startup-script" failed with error: {how}')
        else:
            self.serial.write(f"{_RUNNER}[1]: startup-script exit status 0")
        self.serial.write(f"{_RUNNER}[1]: Finished running startup scripts.")


class MetadataServer(EmulatorServer):
    """The metadata server as one machine sees it."""

    def __init__(self, tree: dict[str, Any]):
        self.tree = tree
        super().__init__(("127.0.0.1", 0), _MetadataHandler)


class _MetadataHandler(Handler):
    server: MetadataServer

    def route(self, method: str) -> None:
        flavor = self.headers.get("Metadata-Flavor")
        status, kind, body = metadata.answer(self.server.tree, self.url_path, self.query, flavor)
        self.send(status, body, {**metadata.HEADERS, "Content-Type": kind})


def _tree(config: Config, instance: dict[str, Any], items: dict[str, str]) -> dict[str, Any]:
    accounts = instance.get("serviceAccounts") or [{"email": ""}]
    account = accounts[0]["email"]
    if account == "default":
        account = f"{config.project_number}-compute@developer.gserviceaccount.com"
    tree = metadata.tree(config, account)
    zone = instance["zone"].rpartition("/")[2]
    tree["instance"] |= {
        "attributes": items,
        "hostname": f"{instance['name']}.{zone}.c.{config.project_id}.internal",
        "id": instance["id"],
        "machine-type": f"projects/{config.project_number}/machineTypes/{instance['machineType'].rpartition('/')[2]}",
        "name": instance["name"],
        "zone": f"projects/{config.project_number}/zones/{zone}",
    }
    return tree


# -- loop devices ---------------------------------------------------------------------------------------------------


def sweep(folder: Path) -> None:
    """Removes what is left of machines of another time. A loop device goes by itself when its machine ends, in whatever
    way; what still has a file of ours is somebody else's, or stuck."""
    shutil.rmtree(folder / MACHINES, ignore_errors=True)
    for device, file in _attached().items():
        if folder.absolute() in file.parents:
            subprocess.run(["losetup", "--detach", device], check=False, capture_output=True)


def _wait_until_released(file: Path) -> None:
    """The kernel lets go of a disk when the last process of its machine, and with it its mounts, has gone."""
    deadline = time.monotonic() + RELEASE_SECONDS
    while file.absolute() in _attached().values() and time.monotonic() < deadline:
        time.sleep(0.02)


def _attached() -> dict[str, Path]:
    """What file each loop device has."""
    found = {}
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            found[f"/dev/{backing.parts[3]}"] = Path(backing.read_text(encoding="utf-8").strip())
        except OSError:
            pass  # It has just gone.
    return found
