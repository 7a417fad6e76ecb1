"""Packages that are not read before somebody needs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PACKAGES = ("big", "big.inner", "big.inner.models")


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """A package in the way of generated clients: each `__init__` imports all that is below it."""
    inner = tmp_path / "big" / "inner"
    (inner / "models").mkdir(parents=True)
    (tmp_path / "big" / "__init__.py").write_text("print('big')\nfrom big import inner\n")
    (inner / "__init__.py").write_text(
        "print('inner')\nfrom big.inner.models import Pod\nfrom big.inner.api import Api\n"
    )
    (inner / "api.py").write_text("import big.inner.models\nfrom big.inner import wire\nclass Api: pass\n")
    (inner / "wire.py").write_text("")
    (inner / "models" / "__init__.py").write_text("print('models')\nfrom big.inner.models.pod import Pod\n")
    (inner / "models" / "pod.py").write_text("class Pod: pass\n")
    return tmp_path


def said(folder: Path, code: str) -> list[str]:
    """What ran, in order, and what the code said, in a process of its own."""
    code = f"import sys; sys.path.insert(0, {str(folder)!r})\nfrom serving.clients.deferred import defer\n{code}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_a_module_of_a_deferred_package_comes_alone(big: Path):
    assert said(big, f"defer(*{PACKAGES})\nfrom big.inner.api import Api\nprint(Api.__name__)") == ["Api"]


def test_a_name_of_the_package_s_own_is_had_by_letting_it_run_once(big: Path):
    code = (
        f"defer(*{PACKAGES})\nfrom big.inner import Pod, Api\nimport big\nprint(Pod.__name__, big.inner.api.Api is Api)"
    )
    assert said(big, code) == ["inner", "models", "Pod", "True"]


def test_a_name_that_it_has_not_is_missing_as_of_any_module(big: Path):
    code = f"defer(*{PACKAGES})\nimport big.inner\nprint(hasattr(big.inner, 'nothing'), hasattr(big.inner, 'nothing'))"
    assert said(big, code) == ["inner", "models", "False", "False"]


def test_what_is_imported_already_stays_and_what_does_not_exist_is_said(big: Path):
    code = (
        f"import big\ndefer(*{PACKAGES})\nprint(type(big).__name__)\n"
        "try: defer('no_such_package')\nexcept ModuleNotFoundError as error: print(error.name)"
    )
    assert said(big, code) == ["big", "inner", "models", "module", "no_such_package"]


def test_connecting_to_a_cluster_needs_none_of_the_official_client_s_models():
    code = (
        "from serving.clients.kubernetes import gke\n"
        "from serving.clients.google import ClusterAddress\n"
        "gke.google.cluster_address = lambda *_: ClusterAddress('https://cluster', None, '', '1.35')\n"
        "gke.google.credentials = gke.google.cluster_address\n"
        "from serving.settings import Settings\n"
        "gke.connect(Settings(project='demo-project', bucket='demo-bucket', scenario='gcs-fuse'))\n"
        "print(any(name.startswith('kubernetes.client.models.') for name in sys.modules))\n"
        "from kubernetes import client, config\n"
        "print(client.V1Pod.__name__, config.load_kube_config.__name__)"
    )
    assert said(Path(), code) == ["False", "V1Pod", "load_kube_config"]
