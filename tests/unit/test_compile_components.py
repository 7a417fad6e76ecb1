"""The steps as components of their own: other people's pipelines are made of them."""

from pathlib import Path

import pytest
import yaml
from kfp import compiler, dsl
from kfp import components as kfp_components

from pipelines.compile import compile_components

ROOT = Path(__file__).parents[2]
IMAGE = "europe-docker.pkg.dev/p/r/python-components@sha256:" + "0" * 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("components")
    compile_components(folder, IMAGE)
    return folder


def test_there_is_one_for_every_step(folder: Path) -> None:
    steps = {path.parent.name for path in (ROOT / "components").glob("*/component.py")}
    assert {path.stem for path in folder.iterdir()} == steps


def test_each_runs_the_image_that_was_named_and_is_its_first_process(folder: Path) -> None:
    for path in folder.iterdir():
        (executor,) = yaml.safe_load(path.read_text())["deploymentSpec"]["executors"].values()
        assert executor["container"]["image"] == IMAGE
        assert "exec env _KFP_RUNTIME=true python3 -m" in executor["container"]["command"][2], path.name


def test_a_pipeline_is_made_of_them(folder: Path, tmp_path: Path) -> None:
    steps = {path.stem: kfp_components.load_component_from_file(str(path)) for path in folder.iterdir()}
    place = {"project": "p-project", "location": "us-central1", "cluster": "gemma", "namespace": "gemma"}
    wanted = {**place, "bucket": "b-bucket", "model": "google/gemma-3-4b-it", "revision": "main"}

    @dsl.pipeline(name="ours")
    def ours(settings: dict):
        asked = {**wanted, "settings": settings, "job": dsl.PIPELINE_JOB_NAME_PLACEHOLDER}
        with dsl.ExitHandler(steps["write_report"](**asked)):
            compiled = {"scenario": "gcs-fuse", "features": ["gcs-fuse"], "image": IMAGE, "version": "1"}
            resolved = steps["resolve_model"](**asked, compiled=compiled)
            found = {"settings": resolved.outputs["merged"], "release": resolved.outputs["release"]}
            brought = steps["download_weights"](**found)
            verdict = {"passed": brought.outputs["passed"], "reasons": brought.outputs["reasons"]}
            steps["deploy_server"](**found, **verdict)

    compiler.Compiler().compile(ours, str(tmp_path / "ours.yaml"))
    executors = yaml.safe_load((tmp_path / "ours.yaml").read_text())["deploymentSpec"]["executors"].values()
    assert [executor["container"]["image"] for executor in executors] == [IMAGE] * 4
