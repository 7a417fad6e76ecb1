"""A feature is a word in the table, a module and a folder: with no other line changed it is rendered, granted, owned,
deleted and documented."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODULE = '''\
"""Greets every server that comes."""

from serving.values import Section as BaseSection


class Section(BaseSection):
    """How servers are greeted."""

    word: str = "hello"
    """What is said."""


def values(settings, release):
    return {"word": settings.section("demo-greeting").word} if release else {}


def flags(settings, release):
    return ["--greeting"]


def identity(settings):
    return {"word": settings.section("demo-greeting").word}
'''
OWNED = """\
apiVersion: v1
kind: ConfigMap
metadata:
  name: ${server}
  namespace: ${namespace}
data:
  word: ${word}
"""
PATCH = """\
spec:
  template:
    spec:
      containers:
        - name: vllm
          env:
            - name: GREETING
              value: ${word}
"""
CHECKS = """\
from pipelines import reference
from serving.deployment import leftovers
from serving.deployment.record import Record
from serving.rendering import access, generation, render
from serving.settings import Settings, commented_example, validated
from tests.unit.cluster import MemoryCluster
from tests.unit.deployment import RELEASE

BASE = {"scenario": "gcs-fuse", "project": "demo-project", "bucket": "demo-bucket"}
without = validated(Settings, BASE)
greeted = validated(Settings, {**BASE, "features": ["demo-greeting"], "demo_greeting": {"word": "annyeong"}})
assert greeted.chosen_features == ("gcs-fuse", "gpu", "service", "demo-greeting")

objects = {item["kind"]: item for item in render.render(greeted, RELEASE).generation}
assert objects["ConfigMap"]["data"] == {"word": "annyeong"}, "rendered"
container = objects["Deployment"]["spec"]["template"]["spec"]["containers"][0]
assert {"name": "GREETING", "value": "annyeong"} in container["env"], "patched"
assert "--greeting" in container["args"]
assert "ConfigMap" not in {item["kind"] for item in render.render(without, RELEASE).generation}
assert generation.name(greeted, RELEASE) != generation.name(without, RELEASE)

def verbs(settings):
    (role,) = (item for item in render.admin(settings) if item["kind"] == "Role")
    unnamed = [rule for rule in role["rules"] if rule["resources"] == ["configmaps"] and "resourceNames" not in rule]
    return {verb for rule in unnamed for verb in rule["verbs"]}

assert verbs(greeted) >= {"list", "create", "patch", "delete"}, "granted"
assert verbs(without) == {"list", "delete", "create"}, "what a change of features leaves can be taken away"

cluster = MemoryCluster(*objects.values())
removed = leftovers.remove(cluster, without, Record(live="g1"), "run-9", "g9", lambda line: None)
assert f"ConfigMap/vllm-{RELEASE.generation}" in removed, "owned and deleted, whatever features are asked for now"

assert "### `demo-greeting`" in reference.text() and "`demo_greeting.word`" in reference.text(), "documented"
assert "Greets every server that comes." in reference.text()
assert "demo_greeting" not in commented_example("gcs-fuse"), "init shows what the scenario has"

try:
    validated(Settings, {**BASE, "demo_greeting": {"word": "x"}})
except Exception as error:
    assert "demo_greeting: this deployment has no feature demo-greeting" in str(error), error
else:
    raise AssertionError("a section of a feature that the deployment does not have is refused")
print("all seen")
"""


def test_a_feature_is_added_by_a_word_a_module_and_a_folder(tmp_path: Path):
    for package in ("serving", "components", "pipelines", "manifests", "images", "tests"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "golden"))
    table = tmp_path / "serving" / "scenarios.py"
    text = table.read_text(encoding="utf-8")
    assert text.count('"scaling": (') == 1
    table.write_text(text.replace('"scaling": (', '"scaling": ("demo-greeting", '), encoding="utf-8")
    (tmp_path / "serving" / "features" / "demo_greeting.py").write_text(MODULE, encoding="utf-8")
    folder = tmp_path / "manifests" / "demo-greeting"
    for scope, name, manifest in (("generation", "config-map", OWNED), ("patch", "deployment", PATCH)):
        (folder / scope).mkdir(parents=True)
        (folder / scope / f"{name}.yaml").write_text(manifest, encoding="utf-8")
    done = subprocess.run([sys.executable, "-c", CHECKS], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "all seen\n", done.stderr
