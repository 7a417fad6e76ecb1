"""An emulated API server as a process, and how clients reach it. (kubernetes_api.py is a plugin of pytest's, which
a test may name and not import.)"""

from __future__ import annotations

import base64
from pathlib import Path

import yaml
from emulated_cloud import process


def start_emulator(folder: Path, *options: str) -> process.Process:
    """An emulated API server whose data are in `folder`/data; `admin-token` and `pipeline-token` are known to it."""
    tokens = folder / "tokens.csv"
    tokens.write_text('admin-token,admin,1,"system:masters"\npipeline-token,pipeline,2,"builders"\n')
    data = ("--data", str(folder / "data"), "--tokens", str(tokens))
    return process.start("emulated_cloud.kubernetes.apiserver", *data, *options, log=folder / "log")


def write_kubeconfig(folder: Path, url: str, token: str = "admin-token") -> Path:
    authority = base64.b64encode((folder / "data" / "tls" / "ca.crt").read_bytes()).decode()
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": url, "certificate-authority-data": authority}}],
        "users": [{"name": "u", "user": {"token": token}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    return path
