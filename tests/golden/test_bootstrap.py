"""The commands that `bootstrap --print` prints, compared with golden files. `make golden` writes them again."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from serving.installation import bootstrap
from serving.settings import Settings

GOLDEN = Path(__file__).parent / "bootstrap"
BASE: dict[str, Any] = {
    "scenario": "gcs-fuse",
    "project": "demo-project",
    "bucket": "demo-bucket",
    "hub": {"token_secret": "projects/demo-project/secrets/hf-token/versions/latest"},
}
CASES: dict[str, dict[str, Any]] = {
    "gcs-fuse": {},
    "inference-gateway": {"scenario": "inference-gateway", "gateway": {"proxy_subnet_range": "10.129.0.0/23"}},
    "everything": {
        "location": "europe-west4-a",
        "features": ["secondary-boot-disk"],
        "engine": {"api_key_secret": "projects/demo-project/secrets/api-key/versions/latest"},
        "gcs_fuse": {"profile": "manual", "rapid_cache": True},
        "images": {"registry": "europe-west4-docker.pkg.dev/demo-project/mirror"},
        "pipeline_service_account": "runner@another-project.iam.gserviceaccount.com",
        "pipeline_root": "gs://runs-of-all/gemma",
        "source": "gs://fine-tunes/gemma",
        "secondary_boot_disk": {"service_account": "bake@demo-project.iam.gserviceaccount.com"},
    },
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_printed_is_what_was_reviewed(case: str, update_golden: bool):
    settings = Settings.model_validate({**BASE, **CASES[case]})
    text = "\n".join(bootstrap.commands(settings, "gemma.yaml")) + "\n"
    # The digest of this very source changes with every line of it.
    text = re.sub(r"source-[0-9a-f]{16}", "source-DIGEST", text)
    file = GOLDEN / f"{case}.sh"
    if update_golden:
        GOLDEN.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8"), "reviewed and meant? then: make golden"
