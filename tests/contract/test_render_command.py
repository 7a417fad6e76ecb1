"""`gemma-pipelines render` needs a hub and no cluster, and with --access neither."""

from __future__ import annotations

import os
import subprocess
import sys

import yaml
from emulated_cloud.process import start


def test_render_prints_what_deploy_would_apply_for_a_revision(tmp_path, tiny_gemma3):
    hub = start(
        "emulated_cloud.hub",
        *("--root", str(tmp_path / "hub")),
        *("--repo", f"google/gemma-3-4b-it={tiny_gemma3}"),
        log=tmp_path / "hub.log",
    )
    settings = tmp_path / "gemma.yaml"
    settings.write_text("scenario: gcs-fuse\nproject: demo-project\nbucket: demo-bucket\n")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "GOOGLE_"))}
    ran = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "render", "03", "-f", str(settings)],
        env={**environment, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "CLOUDSDK_CONFIG": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    hub.stop()
    assert (ran.returncode, ran.stderr) == (0, "")
    documents = list(yaml.safe_load_all(ran.stdout))
    kinds = {document["kind"] for document in documents}
    assert kinds >= {
        "Namespace",
        "ServiceAccount",
        "Deployment",
        "PersistentVolume",
        "PersistentVolumeClaim",
        "Service",
    }
    volume = next(document for document in documents if document["kind"] == "PersistentVolume")
    generation = volume["metadata"]["labels"]["gemma-pipelines/generation"]
    assert volume["spec"]["csi"]["volumeHandle"] == f"demo-bucket:{generation}"
    assert "${" not in ran.stdout


def test_what_an_administrator_applies_names_the_pipelines_account_and_asks_nobody(tmp_path):
    settings = tmp_path / "gemma.yaml"
    settings.write_text("scenario: gcs-fuse\nproject: demo-project\nbucket: demo-bucket\nnamespace: serving\n")
    ran = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "render", "03", "-f", str(settings), "--access"],
        env={**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "CLOUDSDK_CONFIG": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    documents = list(yaml.safe_load_all(ran.stdout))
    # In the order in which kubectl can apply them.
    assert [document["kind"] for document in documents] == [
        "Namespace",
        "Role",
        "RoleBinding",
        "ClusterRole",
        "ClusterRoleBinding",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
    ]
    command = [sys.executable, "-m", "pipelines.cli", "render", "03", "-f", str(settings), "--access"]
    again = subprocess.run([*command, "--existing-namespace"], capture_output=True, text=True, check=True)
    assert list(yaml.safe_load_all(again.stdout)) == documents[1:], "a namespace that is there keeps its labels"
    subjects = [subject for document in documents for subject in document.get("subjects", [])]
    assert {subject["name"] for subject in subjects} == {"gemma-pipelines@demo-project.iam.gserviceaccount.com"}
    assert {document["metadata"].get("namespace", "serving") for document in documents} == {"serving"}
