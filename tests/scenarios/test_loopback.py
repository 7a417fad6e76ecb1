"""A run on this machine talks to loopback and to nobody else, whatever the environment that it is started in says."""

from __future__ import annotations

import os
from pathlib import Path

from tests.scenarios.command import Run

ELSEWHERE = {
    "GOOGLE_API_USE_MTLS_ENDPOINT": "always",
    "GOOGLE_API_USE_CLIENT_CERTIFICATE": "true",
    "GOOGLE_CLOUD_UNIVERSE_DOMAIN": "example.com",
    "GOOGLE_CLOUD_QUOTA_PROJECT": "another-project",
    "GOOGLE_CLOUD_PROJECT": "another-project",
    "GOOGLE_APPLICATION_CREDENTIALS": "/nowhere/key.json",
    "NO_GCE_CHECK": "true",
    "GCE_METADATA_ROOT": "metadata.google.internal",
    "GCE_METADATA_HOST": "metadata.google.internal",
    "STORAGE_EMULATOR_HOST": "https://storage.googleapis.com",
    "CLOUDSDK_CONFIG": "/nowhere",
    "KUBECONFIG": "/nowhere/config",
    "HF_ENDPOINT": "https://huggingface.co",
    "HF_TOKEN": "hf_somebodys_own",
    "HF_HUB_OFFLINE": "1",
    "ALL_PROXY": "http://192.0.2.1:3128",
    "HTTPS_PROXY": "http://192.0.2.1:3128",
    "https_proxy": "http://192.0.2.1:3128",
    "REQUESTS_CA_BUNDLE": "/nowhere/ca.pem",
    "SSL_CERT_FILE": "/nowhere/ca.pem",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "http://192.0.2.1:4317",
}
NO_WAY_OUT = (
    *("timeout", "--kill-after=5", "900"),
    *("unshare", "--net", *(() if os.geteuid() == 0 else ("--map-root-user",))),
    *("sh", "-c", 'ip link set lo up && test -z "$(ip route show table all | grep -v "dev lo")" && exec "$@"', "sh"),
)


def test_a_run_and_a_promotion_succeed_where_there_is_no_way_out(folder: Path) -> None:
    def start(*arguments: str, command: tuple[str, ...] = ()) -> Run:
        given = ("--state", str(folder / "state"), *arguments)
        return Run(*given, folder=folder, command=command, within=NO_WAY_OUT, variables=ELSEWHERE)

    result = start("--set", "promotion=manual").finish()
    assert result["status"] == "succeeded"
    assert result["generation"] in start(command=("promote",)).finish_with_text()
