"""Real gcsfuse under our CSI driver: what a pod reads at /model, and what gcsfuse says of options."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from emulated_cloud.cloud import Cloud, wait_for
from emulated_cloud.kubernetes.gke.gcsfuse import Mount
from emulated_cloud.real.gcsfuse import command_line
from emulated_cloud.real.namespace import Namespace

from .kube import PYTHON, USER, bucket_volume, deployment, kubectl, mounts, namespace, upload

READ = """
import hashlib, json, os, time
found = {}
for folder, _, names in os.walk("/model"):
    for name in names:
        path = os.path.join(folder, name)
        found[os.path.relpath(path, "/model")] = hashlib.sha256(open(path, "rb").read()).hexdigest()
try:
    open("/model/new", "w")
except OSError as error:
    found["written"] = error.strerror
found["mount"] = next(line.split(" - ")[1].split()[0] for line in open("/proc/self/mountinfo") if " /model " in line)
print(json.dumps(found), flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def bucket(cloud: Cloud, tiny_gemma3: Path) -> str:
    """The prefix of the tiny Gemma 3 in the bucket."""
    kubectl(cloud, "apply", "-f", "-", objects=[namespace("reader")])
    upload(cloud, tiny_gemma3, "models/reader", ["reader"])
    return "models/reader"


def reader(name: str, options: list[str]) -> list[dict[str, object]]:
    mount = {"name": "model", "mountPath": "/model", "readOnly": True}
    volume = {"name": "model", "persistentVolumeClaim": {"claimName": name, "readOnly": True}}
    container = {"image": PYTHON, "command": ["python", "-c", READ], "volumeMounts": [mount]}
    made = deployment(name, container, [volume], **{"gke-gcsfuse/volumes": "true"})
    made["metadata"]["namespace"] = "reader"
    return [*bucket_volume(name, "reader", options), made]


def test_a_pod_reads_the_model_bit_for_bit(cloud: Cloud, bucket: str, tiny_gemma3: Path) -> None:
    options = ["implicit-dirs", f"only-dir:{bucket}", "file-cache:max-size-mb:-1", "read_ahead_kb=1024"]
    kubectl(cloud, "apply", "-f", "-", objects=reader("whole", options))
    kubectl(cloud, "-n", "reader", "rollout", "status", "deployment/whole", "--timeout=120s")

    def log() -> str:
        return kubectl(cloud, "-n", "reader", "logs", "deployment/whole")

    assert wait_for(lambda: bool(log()), 120)
    found = json.loads(log())
    assert (found.pop("mount"), found.pop("written")) == ("fuse.gcsfuse", "Read-only file system")
    files = [path for path in tiny_gemma3.rglob("*") if path.is_file()]
    assert found == {
        str(path.relative_to(tiny_gemma3)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }
    # The mount is the cluster's own: this machine does not see it.
    assert mounts() == []


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("no-such-flag=3", "gcsfuse failed with error: unknown flag: --no-such-flag"),
        ("file-cache:no-such-key:3", "'file-cache' has invalid keys: no-such-key"),
        ("metadata-cache:ttl-secs:soon", "'metadata-cache.ttl-secs' cannot parse value as 'int64'"),
        ("profile:fastest", 'Unknown profile: "fastest"'),
    ],
)
def test_an_option_that_gcsfuse_does_not_take_fails_in_its_words(
    cloud: Cloud, bucket: str, option: str, words: str
) -> None:
    name = f"bad-{abs(hash(option)) % 10**6}"
    kubectl(cloud, "apply", "-f", "-", objects=reader(name, ["implicit-dirs", option]))

    def events() -> str:
        selector, path = "--field-selector=reason=FailedMount", "jsonpath={.items[*].message}"
        return kubectl(cloud, "-n", "reader", "get", "events", selector, "-o", path)

    assert wait_for(lambda: words in events(), 120), events()
    kubectl(cloud, "-n", "reader", "delete", "deployment", name)


def test_options_become_what_the_drivers_sidecar_makes_of_them() -> None:
    options = [
        "implicit-dirs", "only-dir:a/b", "file-cache:max-size-mb:-1", "metadata-cache:ttl-secs:60",
        "log-file=/etc/passwd", "read_ahead_kb=1024", "file-cache:enable-parallel-downloads:true", "uid=7",
    ]  # fmt: skip
    argv, file = command_line(Mount("b", "a/b", options, True, Path("/t")), "http://127.0.0.1:1", Path("/cache"))
    assert {"--implicit-dirs", "--uid=7", "--foreground", "--custom-endpoint=http://127.0.0.1:1/storage/v1/"} <= set(
        argv
    )
    assert argv[-4:] == ["-o", "allow_other", "-o", "ro"]
    assert not [word for word in argv if "log-file" in word or "read_ahead" in word]
    assert file == {
        "cache-dir": "/cache",
        "only-dir": "a/b",
        "file-cache": {"max-size-mb": -1, "enable-parallel-downloads": True},
        "metadata-cache": {"ttl-secs": 60},
    }


def test_the_users_uid_is_of_no_account() -> None:
    assert f":{USER}:" not in Path("/etc/passwd").read_text()


def test_the_storage_contract_holds_through_a_mount(parts: None, tmp_path: Path) -> None:
    """mount.py, where mounts are nobody else's. gcsfuse tries again for ever, so everything has a limit here."""
    machine = Namespace.start(tmp_path / "namespace.log")
    limits = ["timeout", "-k", "5", "900"]
    tests = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "",
        "--timeout",
        "300",
        str(Path(__file__).parent / "mount.py"),
    ]
    try:
        done = subprocess.run([*limits, *machine.prefix, *tests], capture_output=True, text=True)
    finally:
        machine.stop()
    assert done.returncode == 0, done.stdout[-4000:]
    assert "skipped" not in done.stdout
    assert mounts() == []
