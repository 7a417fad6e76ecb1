"""The emulators for a deployment's settings: what they hold, which parts are real, and the tiny models they serve."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.local import state
from serving import names
from serving.errors import PipelineError, RequestError

if TYPE_CHECKING:
    from emulated_cloud.cloud import Cloud

    from serving.clients.kubernetes import Cluster
    from serving.settings import Settings

SHOWN = [Path(__file__).parents[2] / name for name in ("components", "images", "manifests", "pipelines", "serving")]
"""What the component image carries, for containers that run on real parts."""
_BAKED = (
    "GP-BAKE heartbeat 1",
    "GP-BAKE progress 50 nothing is unpacked: this user may not have loop devices",
    f"GP-BAKE done {'0' * 64}",
)
"""What the machine that bakes says where its script cannot run."""
_SCALING: dict[str, Any] = {
    "scrape_seconds": 1.0,
    "autoscaler_seconds": 1.0,
    "engine_environment": {"EMULATED_ENGINE_SEQUENCES": "8", "EMULATED_ENGINE_TOKENS_PER_SECOND": "100"},
}
"""For a deployment that is to scale: how often pods are scraped and autoscalers look, and engines that are as slow as
ones that have a queue."""
_COMES_BACK_SECONDS = {False: 180, True: 600}
"""How long a live generation may take, by whether its engine is vLLM itself, where the machine is busy."""
_ANSWERS_SECONDS = 120
"""From a promotion to an entry that answers."""


def real_parts(text: str | None, folder: Path | None) -> list[str]:
    """The parts that `--real PART,…` names, each built and fit to run here; without the option, those of the state.

    Raises RequestError with the command that mends it, also when there are no emulators at all.
    """
    if importlib.util.find_spec("emulated_cloud") is None:
        raise RequestError(
            "a run on this machine needs the emulators: `pip install ./emulators` in a checkout of gemma-gke-pipelines"
        )
    from emulated_cloud.real.parts import RealPartError, require

    names = state.parts(folder) if text is None else [name.strip() for name in text.split(",")]
    try:
        require(names, SHOWN)
    except RealPartError as error:
        raise RequestError(str(error)) from error
    return names


def programs(settings: Settings, given: list[str] | None) -> dict[str, Path]:
    """What stands for images that others built, IMAGE=FILE each: no image is pulled here.

    Raises RequestError for what is no program, and for a gate (`validation.jobs`) for whose image nothing stands.
    """
    found = {}
    for each in given or []:
        image, _, file = each.partition("=")
        path = Path(file).absolute()
        if not image or not path.is_file() or not os.access(path, os.X_OK):
            raise RequestError(f"--program {each}: wanted is IMAGE=FILE, with a file that can be executed (`chmod +x`)")
        found[image] = path
    for gate in settings.validation.jobs:
        if gate.image not in found:
            raise RequestError(
                f"validation.jobs: no image is pulled on this machine, and nothing stands for {gate.image}. Name a "
                f"program that does what its entrypoint does, `--program {gate.image}=FILE`, or leave the gates out, "
                "`--set 'validation.jobs=[]'`"
            )
    return found


@contextmanager
def up(
    settings: Settings,
    folder: Path,
    weights: Path | None,
    real: Collection[str],
    say: Callable[[str], None],
    stand_ins: Mapping[str, Path],
) -> Iterator[Cloud]:
    """The emulators of a state folder, and the parts that are real, up while the block runs; a live generation is ready
    again when it begins. `stand_ins`: `programs`."""
    from emulated_cloud.cloud import Cloud, EmulatorFailed, wait_for

    from serving.clients.google import API_ENDPOINT
    from serving.clients.registry import REGISTRY_ENDPOINT
    from serving.image import published
    from serving.rendering.engine import component_image, mirrored
    from serving.rendering.render import admin, as_yaml

    if "control-plane" in real and "gpu-or-tpu" in settings.chosen_features:
        raise RequestError(
            "gpu-or-tpu does not run with --real control-plane: its pods mount files of their node, which containers "
            "with a root of their own have no place for here. Run it without, or another scenario"
        )
    if "gateway" in real and settings.has_gateway and settings.section("gateway").certificate:
        raise RequestError(
            "a Gateway with gateway.certificate does not answer with --real gateway: its controller knows no "
            "certificate of Compute Engine. Run it without, or with --set gateway.certificate= "
            "--set gateway.plain_http=true"
        )
    endpoint, live = folder / "endpoint", folder / "live"
    built = published(settings.project, names.region(settings.location))
    served_before = live.exists() or endpoint.exists()
    endpoint.unlink(missing_ok=True)
    model = weights.absolute() if weights else _tiny_model(settings, folder)
    access = folder / "pipeline-access.yaml"
    access.write_text(as_yaml(admin(settings)), encoding="utf-8")
    emulated = Cloud(
        folder,
        project=settings.project,
        location=settings.location,
        cluster=settings.cluster,
        buckets=_buckets(settings),
        repositories=_repositories(settings, model, folder),
        gated=[settings.model] if settings.hub.token_secret else [],
        secrets=_secrets(settings),
        service_account=settings.pipeline_service_account,
        images=[
            *(
                {"match": re.escape(mirrored(settings, name)), "entrypoint": [str(file)]}
                for name, file in stand_ins.items()
            ),
            *(
                {"match": image, "argv0": {"python": [sys.executable]}}
                # As `run` compiles it in, and as `submit` does.
                for image in (re.escape(component_image(settings)), r"(.*/)?python-components[:@].*")
            ),
        ],
        own_images=[re.escape(built.partition("/")[2])],
        endpoints={API_ENDPOINT: "google", REGISTRY_ENDPOINT: "registry"},
        autopilot=_is_autopilot(settings),
        pools=_node_pools(settings),
        accelerators=_accelerators(settings),
        **(_SCALING if "queue-hpa" in settings.chosen_features else {}),
        startup_output=_BAKED,
        real=real,
        # As an administrator does it before the first run on GKE. (The emulated API server enforces no roles.)
        objects=[access],
        show=[*SHOWN, *{file.parent for file in stand_ins.values()}],
        expose=[
            {
                "namespace": settings.namespace,
                **_entry(settings),
                "address": "127.0.0.1:0",
                "file": str(endpoint),
            }
        ],
        say=say,
    )
    try:
        with emulated:
            state.write_session(folder, emulated.environment)
            seconds = _COMES_BACK_SECONDS["vllm" in real]
            if served_before and (words := nothing_comes_back(administered(emulated), settings)):
                say(words)
            elif served_before and not wait_for(lambda: endpoint.exists() or bool(emulated.loss), seconds):
                say(f"the live generation of this state did not come back within {seconds} s; going on without it")
            try:
                yield emulated
            finally:
                if endpoint.exists():
                    live.touch()
                    endpoint.unlink()  # Nobody answers there any more.
    except EmulatorFailed as error:
        raise PipelineError(f"the emulators did not start: {error}. {state.about_logs(folder)}") from error


def nothing_comes_back(cluster: Cluster, settings: Settings) -> str:
    """Why nothing will serve in a cluster that has just come back before somebody does something, in words; empty where
    the live generation is to have pods, or nobody can tell."""
    from serving.deployment import record, replicas

    try:
        known = record.read(cluster, settings)
        server = cluster.get("Deployment", names.server(known.live), settings.namespace) if known.live else None
    except PipelineError:
        return ""
    if not known.live:
        return "no generation is live in this state"
    if server and replicas.wanted(server):
        return ""
    if known.down:
        return (
            f"{known.live} is down: the run {known.down.run_id} had it make room for {known.down.candidate}, and ended"
        )
    return f"{known.live} is live, and {'has no pods to come back' if server else 'its Deployment is gone'}"


def administered(emulated: Cloud) -> Cluster:
    """The cluster by its administrator's kubeconfig: this process has no environment that leads there."""
    from serving.clients.kubernetes import Cluster
    from serving.clients.kubernetes.gke import official

    api_client, configuration_of = official()
    found = json.loads(emulated.kubeconfig.read_text(encoding="utf-8"))
    server = found["clusters"][0]["cluster"]
    configuration = configuration_of(host=server["server"])
    configuration.ssl_ca_cert = server["certificate-authority"]
    configuration.api_key["authorization"] = f"Bearer {found['users'][0]['user']['token']}"
    return Cluster(api_client(configuration)).impatient()


def entry_of(folder: Path, emulated: Cloud) -> str | None:
    """The address that is written to the state folder when the entry first answers, waited for a little."""
    from emulated_cloud.cloud import wait_for

    path = folder / "endpoint"
    wait_for(lambda: path.exists() or bool(emulated.loss), _ANSWERS_SECONDS)
    return path.read_text(encoding="utf-8").strip() if path.exists() else None


def _entry(settings: Settings) -> dict[str, Any]:
    """What requests come in by: the stable Service, or a Gateway's listener."""
    if "gateway" in settings.chosen_features:
        return {"gateway": settings.name, "port": 443 if settings.section("gateway").certificate else 80}
    return {"service": settings.name, "port": 8000}


def _secrets(settings: Settings) -> dict[str, str]:
    """The secrets that the settings name, with what they hold here: of the cloud on this machine, no secret at all."""
    named = {settings.hub.token_secret: "hf_demo", settings.engine.api_key_secret: "demo-key"}
    return {name.split("/")[3]: value for name, value in named.items() if name}


def _is_autopilot(settings: Settings) -> bool:
    """Node pools of one's own are a Standard cluster's, and nodes out of whatever reservation matches."""
    if settings.capacity == "reservation" and not settings.reservation.name:
        return False
    disk, chosen = "secondary-boot-disk", settings.chosen_features
    return "gpu-or-tpu" not in chosen and (disk not in chosen or settings.section(disk).form != "node-pool")


def _node_pools(settings: Settings) -> list[dict[str, Any]]:
    """Those that a run looks for and does not make: as somebody made them before."""
    if "gpu-or-tpu" not in settings.chosen_features or settings.section("gpu-or-tpu").nodes == "create":
        return []
    from components.ensure_cluster.step import wanted

    return [wanted(settings, pool) for pool in settings.section("gpu-or-tpu").pools]


def _accelerators(settings: Settings) -> dict[str, int]:
    """The project's accelerators: plenty, or where generations replace each other as many as one has."""
    from emulated_cloud.cloud import ACCELERATORS

    from serving import catalog

    if settings.rollout == "beside":
        return ACCELERATORS
    scaled = settings.section("queue-hpa").max_replicas if "queue-hpa" in settings.chosen_features else 0
    pods = max(settings.serving.replicas, scaled)
    return {catalog.card(settings.accelerator.type).gke_name: settings.accelerator.count * pods}


def runs_startup_scripts() -> bool:
    """Whether machines run their startup scripts here."""
    from emulated_cloud.google.compute import boot

    return boot.is_possible()


def whole_environment(variables: dict[str, str]) -> dict[str, str]:
    """What a program is given that reaches a cloud by these variables, and no other."""
    from emulated_cloud.process import machine_environment

    return {**machine_environment(), **variables}


def leading_to(emulated: Cloud) -> dict[str, str]:
    """The variables that lead a program to a cloud, without what it needs of this machine."""
    from emulated_cloud.process import machine_environment

    of_the_machine = {*machine_environment(), "TMPDIR"}
    return {name: value for name, value in emulated.environment.items() if name not in of_the_machine}


@contextmanager
def buckets_up(settings: Settings, folder: Path) -> Iterator[dict[str, str]]:
    """The emulated Cloud Storage of a state folder alone, up while the block runs: the environment that reaches it."""
    from emulated_cloud.cloud import Cloud, EmulatorFailed

    emulated = Cloud(folder, project=settings.project, buckets=_buckets(settings))
    try:
        with emulated.storage():
            yield emulated.environment
    except EmulatorFailed as error:
        raise PipelineError(f"the storage emulator did not start: {error}. {state.about_logs(folder)}") from error


def _buckets(settings: Settings) -> list[str]:
    """The buckets that the settings name: their own, the pipeline root's, and those that something comes from."""
    from serving.weights import repositories

    sources = [repository.source for repository in repositories.of(settings) if repository.source]
    return sorted({settings.bucket, *(url.split("/")[2] for url in (settings.pipeline_root, *sources))})


def _repositories(settings: Settings, model: Path, folder: Path) -> dict[str, Path]:
    """What the hub has: `model`, and beside it tiny adapters of it and a tiny assistant, as the settings name them."""
    from serving.weights import repositories

    found: dict[str, Path] = {}
    for wanted in repositories.of(settings):
        if wanted.source:
            continue
        if wanted.role == repositories.BASE:
            found[wanted.model] = model
        elif wanted.is_adapter:
            found[wanted.model] = _tiny_adapter(settings, wanted.model, model, folder)
        else:
            found[wanted.model] = _made(folder / "models" / "assistant", "gemma4-assistant")
    return found


def _tiny_model(settings: Settings, folder: Path) -> Path:
    """A checkpoint of the settings' family, made on the spot: deterministic, 4 MB, in seconds."""
    kind = "gemma4" if "gemma-4" in settings.model else "gemma3"
    return _made(folder / "models" / kind, kind)


def _tiny_adapter(settings: Settings, name: str, base: Path, folder: Path) -> Path:
    """A LoRA adapter of the model in `base`, as deterministic; another name is another adapter."""
    seed = str(zlib.crc32(name.encode()))
    options = ("--base", str(base), "--base-name", settings.model, "--seed", seed)
    return _made(folder / "models" / "adapters" / name, "lora", *options)


def _made(folder: Path, kind: str, *options: str) -> Path:
    """The folder with what emulated_cloud.hub.models makes of the kind; one that is there stays as it is."""
    if not (folder / "README.md").exists():  # It comes last.
        command = [sys.executable, "-m", "emulated_cloud.hub.models", kind, str(folder), *options]
        # A session of its own: Ctrl-C is for whoever started it, who then ends it without a word of its own.
        made = subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env=whole_environment({}),
            start_new_session=True,
        )
        if made.returncode:
            why = made.stderr.strip().splitlines()[-1:] or [f"exit code {made.returncode}"]
            raise PipelineError(f"cannot make the tiny model {folder}: {why[0]}")
    return folder
