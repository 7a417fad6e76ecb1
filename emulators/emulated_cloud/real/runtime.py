"""Containers with a root and a user of their own: the kubelet's seam (kubelet/runtime.py) to container.py."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from emulated_cloud.kubernetes.client import Object
from emulated_cloud.kubernetes.kubelet.environment import Rewriter
from emulated_cloud.real.parts import interpreters

LAUNCHER = Path(__file__).with_name("container.py")


class PrivateRoot:
    """`show`: folders of the machine that every container sees, read-only, beside what the interpreters need."""

    def __init__(self, show: Iterable[Path] = ()):
        self._show = [str(path) for path in dict.fromkeys([*interpreters(), *show])]

    def rewriter(self, mounts: dict[str, Path], pod_ip: str) -> Rewriter:
        # Volumes are where the manifest says.
        return Rewriter({}, pod_ip)

    def command(
        self, folder: Path, pod: Object, container: Object, mounts: dict[str, Path], argv: list[str]
    ) -> list[str]:
        name, user = container["name"], _user(pod, container)
        work = folder / "work" / name
        work.mkdir(parents=True, exist_ok=True)
        read_only = {mount["mountPath"] for mount in container.get("volumeMounts") or [] if mount.get("readOnly")}
        bound = {path: {"from": str(source), "read_only": path in read_only} for path, source in mounts.items()}
        own = {str(work): {"from": str(work), "read_only": False}}
        spec = {
            **user,
            "root": str(folder / "root" / name),
            "mounts": {**own, **bound},
            "show": self._show,
            "read_only": bool((container.get("securityContext") or {}).get("readOnlyRootFilesystem")),
            "cwd": container.get("workingDir") or str(work),
            # What a container runtime hands to its user.
            "own": [str(work), *(str(path) for path in mounts.values() if path.suffix == ".termination-log")],
        }
        file = folder / "work" / f"{name}.json"
        file.write_text(json.dumps(spec), encoding="utf-8")
        return [os.path.realpath(sys.executable), "-I", str(LAUNCHER), str(file), *argv]


def _user(pod: Object, container: Object) -> dict[str, Any]:
    of_pod, own = pod["spec"].get("securityContext") or {}, container.get("securityContext") or {}
    user = own.get("runAsUser", of_pod.get("runAsUser", 0))
    group = own.get("runAsGroup", of_pod.get("runAsGroup", 0))
    groups = [*(of_pod.get("supplementalGroups") or []), *([of_pod["fsGroup"]] if "fsGroup" in of_pod else [])]
    return {"user": user, "group": group, "groups": groups}
