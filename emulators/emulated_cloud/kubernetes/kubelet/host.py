"""A node's own files, as far as pods may look at them (`hostPath`): a folder a node, with its devices in /dev.

HOSTS/<node>/dev/   nvidia0, … of cards, vfio/0, … of TPU chips: ordinary files, which are there and no more
"""

from __future__ import annotations

from pathlib import Path

from emulated_cloud.kubernetes.client import Object
from emulated_cloud.kubernetes.quantity import parse_quantity

_MUST_EXIST = {"Directory": "is not a directory", "File": "is not a file"}


def find(hosts: Path, node: Object, source: Object) -> Path:
    """What a `hostPath` is on the node. Raises LookupError in the kubelet's words."""
    if ".." in Path(source["path"]).parts:
        raise LookupError("path must not contain '..'")  # Of a real API server's words: there it never comes so far.
    root = hosts / node["metadata"]["name"]
    _make_devices(root / "dev", node)
    path, kind = root / source["path"].strip("/"), source.get("type") or ""
    if kind in ("", "DirectoryOrCreate"):
        path.mkdir(parents=True, exist_ok=True)
    elif kind not in _MUST_EXIST or not (path.is_dir() if kind == "Directory" else path.is_file()):
        words = _MUST_EXIST.get(kind, f"is not a {kind}")
        raise LookupError(f"hostPath type check failed: {source['path']} {words}")
    return path


def _make_devices(folder: Path, node: Object) -> None:
    capacity = (node.get("status") or {}).get("capacity") or {}
    cards = int(parse_quantity(capacity.get("nvidia.com/gpu", "0")))
    chips = int(parse_quantity(capacity.get("google.com/tpu", "0")))
    names = [f"nvidia{number}" for number in range(cards)] + (["nvidiactl", "nvidia-uvm"] if cards else [])
    names += [f"vfio/{number}" for number in range(chips)] + (["vfio/vfio"] if chips else [])
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
