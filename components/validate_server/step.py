"""The step that has a new generation judged by a Job in the cluster, and reads the verdict."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from components.validate_server import checks, gates, page, shedding
from components.validate_server.checks import Live, Plan
from components.validate_server.shedding import Objective, Shedding
from components.validate_server.through import Through
from serving import names
from serving.clients.kubernetes import Cluster, Object
from serving.deployment import gateway, objects, pods, record
from serving.deployment.job import argument, run_job
from serving.errors import InconclusiveError, ReleaseError, RequestError
from serving.log import Say
from serving.rendering import engine, render
from serving.settings import Settings, in_seconds
from serving.step import opened
from serving.weights.release import Release

ONE_CORE = {"cpu": "1", "memory": "512Mi"}
"""What the load generator needs: on Autopilot a request is a limit too."""
GENERATION_HEADER = "x-gemma-generation"
"""By which a generation's own route knows its requests (manifests/gateway/temporary)."""
_NOT_PUBLIC = ("/invocations", "/tokenize", "/metrics", "/health")
"""What an engine answers anybody, key or not: behind a public load balancer nobody may reach it."""
_STATES = ("state", "lastState")
_OBJECTIVE = "InferenceObjective"


def run(
    settings: dict[str, Any], release: dict[str, Any], passed: bool, reasons: list[str]
) -> tuple[bool, list[str], dict[str, float], str]:
    """Validates the release's generation through its own Service.

    Returns the verdict so far, its reasons, numbers for KFP's Metrics, and a page for a reader. When the release has
    failed already, nothing is asked.
    """
    with opened("validate_server", settings, release) as step:
        outcome, config, target = step.outcome, step.settings, step.release
        if not passed:
            outcome.skipped("nothing is asked: the release has failed already")
            return False, reasons, {}, page.render(config, target, {"passed": False, "reasons": reasons})
        with step.cluster() as cluster:
            step.bring_up_again(cluster)
            verdict = judge(cluster, config, target, outcome.say)
            outcome.details |= {key: verdict[key] for key in ("passed", "reasons", "warnings", "answer", "figures")}
            outcome.details["through"] = verdict.get("through")
            outcome.details["gates"] = verdict.get("gates", [])
            outcome.details["measured"] = checks.measured(config.validation, verdict["figures"]["load"])
            if verdict["passed"]:
                outcome.succeeded(summary(verdict))
            else:
                outcome.failed(ReleaseError("; ".join(verdict["reasons"])))
        return verdict["passed"], verdict["reasons"], numbers(verdict), page.render(config, target, verdict)


def judge(cluster: Cluster, settings: Settings, release: Release, say: Say) -> dict[str, Any]:
    """The Job's verdict (checks.verdict), and where it is a yes that of the gates, as `gates` (gates.judge).

    Raises InconclusiveError when the Job brings none, or when a pod that was asked did not live to the end of the
    questions: what it then failed to answer is not the release's fault. Raises RequestError for settings under which
    the release could not show what they ask of it.
    """
    with way_through(cluster, settings, release, say) as through:
        verdict = _judged(cluster, settings, release, through, say)
        if verdict["passed"] and (problems := (verdict.get("through") or {}).get("problems")):
            told = gateway.problems(cluster, settings, [release.generation])
            if release.generation != release.live:
                told += gateway.of_route(cluster, settings, names.validation(release.generation))
            raise InconclusiveError(
                f"{release.generation} answers well, but not through the Gateway {settings.name}: "
                f"{'; '.join([*problems, *told])}. Nothing was learnt against the release. See `kubectl -n "
                f"{settings.namespace} describe gateway,httproute`, then run again"
            )
    return verdict


@contextmanager
def way_through(cluster: Cluster, settings: Settings, release: Release, say: Say) -> Iterator[Through | None]:
    """How the generation is asked through the load balancer, where there is one: as clients do where it serves already,
    else by a route of its own, which is there as long as the block runs.

    Raises InconclusiveError for a load balancer that is not made.
    """
    if not settings.has_gateway:
        yield None
        return
    serves = release.generation == release.live
    gateway.wait_until_well(cluster, settings, [release.generation] if serves else (), say)
    url, section = gateway.address(cluster, settings), settings.section("gateway")
    own = [] if serves else _own(settings, release)
    shown, not_shown = _priorities(cluster, settings, release)
    through = Through(
        url=url,
        host=section.host,
        authority=section.authority,
        headers={} if serves else {GENERATION_HEADER: release.generation},
        trusted=bool(section.host) or not url.startswith("https:"),
        closed=list(_NOT_PUBLIC) if settings.serving.exposure == "public" else [],
        shedding=shown,
        not_shown=not_shown,
        reach_seconds=in_seconds(section.timeout),
    )
    try:
        for item in own:
            objects.put(cluster, item, say)
        yield through
    finally:
        for item in own:
            name = item["metadata"]["name"]
            for there in cluster.list(item["kind"], settings.namespace, fields=f"metadata.name={name}"):
                cluster.delete(there)


def _own(settings: Settings, release: Release) -> list[Object]:
    """The generation's own route, and objectives of its own pool: those of the deployment are the live one's."""
    return [item for item in render.temporary(settings, release) if item["kind"] in ("HTTPRoute", _OBJECTIVE)]


def _priorities(cluster: Cluster, settings: Settings, release: Release) -> tuple[Shedding | None, str]:
    """What is to be seen of priorities, or why nothing is."""
    if not gateway.has_picker(settings):
        return None, "there is no endpoint picker, which knows priorities"
    priorities: dict[str, int] = settings.section("inference-gateway").objectives
    if not any(priority < 0 for priority in priorities.values()):
        return None, "no objective has a priority below 0, and nothing else is refused"
    if release.generation == release.live:
        return None, "it serves already, and no queue is made for its users to wait in"
    prefix = names.validation(release.generation)
    objectives = [
        Objective(name=name, header=f"{prefix}-{name}", priority=priority) for name, priority in priorities.items()
    ]
    ready = pods.ready(cluster, settings, release.generation)
    return Shedding(objectives=objectives, pods=[pod["status"]["podIP"] for pod in ready]), ""


def _judged(
    cluster: Cluster, settings: Settings, release: Release, through: Through | None, say: Say
) -> dict[str, Any]:
    url = names.server_url(settings, release.generation)
    live, nothing_to_compare = of_live(cluster, settings, release)
    plan = Plan(
        url=url,
        model=settings.model,
        adapters=sorted(settings.adapters),
        # Settings that change in place bring the live generation here.
        in_service=release.generation == release.live,
        request_seconds=in_seconds(settings.serving.request_timeout),
        validation=settings.validation,
        live=live,
        through=through,
    )
    before = server_pods(cluster, settings, release)
    verdict = run_job(
        cluster,
        settings,
        step="validate-server",
        run_id=release.run_id,
        generation=release.generation,
        args=["-m", "components.validate_server", argument(plan)],
        image=engine.component_image(settings),
        # The Job's pod may have to wait for a node of its own.
        timeout=in_seconds(settings.validation.timeout)
        + in_seconds(settings.serving.capacity_timeout)
        + (through.reach_seconds if through else 0)
        + (shedding.LONGEST_SECONDS if through and through.shedding else 0),
        say=say,
        env=engine.api_key(settings),
        resources=ONE_CORE,
    )
    if verdict["passed"] and settings.validation.jobs and not plan.in_service:
        verdict["gates"] = gates.judge(cluster, settings, release, url, engine.api_key(settings), say)
        verdict["reasons"] = [reason for gate in verdict["gates"] for reason in gate["reasons"]]
        verdict["passed"] = not verdict["reasons"]
    if not verdict["passed"] and (cause := taken_away(before, server_pods(cluster, settings, release))):
        raise InconclusiveError(
            f"{cause} while {release.generation} was validated, which then failed ({'; '.join(verdict['reasons'])}). "
            "Nothing was learnt about the release; run again"
        )
    if verdict["undecided"] and not verdict["reasons"]:
        raise RequestError("; ".join(verdict["undecided"]))
    if nothing_to_compare:
        verdict["warnings"].append(nothing_to_compare)
        say(f"warning: {nothing_to_compare}")
    return verdict


def of_live(cluster: Cluster, settings: Settings, release: Release) -> tuple[Live | None, str]:
    """What relative thresholds are relative to, and why there is nothing, in words.

    It is what the live generation's own validation measured, not what it does now: then as now the server was asked by
    nobody else, while one that serves users looks slower than it is, and load beside theirs would make it so.
    """
    if not settings.validation.thresholds.relative or release.live in ("", release.generation):
        return None, ""
    origin = record.read(cluster, settings).generations.get(release.live)
    if origin is None or origin.measured is None:
        why = "has no figures in the record"
    elif origin.measured.load != checks.load_of(settings.validation):
        why = "was measured under another load than validation asks for now"
    else:
        return Live(generation=release.live, **origin.measured.model_dump()), ""
    return None, f"{release.live}, which is live, {why}: thresholds relative to it do not judge {release.generation}"


def server_pods(cluster: Cluster, settings: Settings, release: Release) -> list[Object]:
    return cluster.list("Pod", settings.namespace, labels=names.selector(settings, release.generation))


def taken_away(before: list[Object], after: list[Object]) -> str:
    """Which of a server's pods somebody took away between two looks, or none of them was ready to begin with; empty
    when all of them were there throughout. An engine that ended by itself is no excuse: its pod stays."""
    there = {pod["metadata"]["uid"]: pod for pod in after}
    ready = [pod for pod in before if pods.is_ready(pod)]
    for pod in ready:
        name, now = pod["metadata"]["name"], there.get(pod["metadata"]["uid"])
        if now is None or now["metadata"].get("deletionTimestamp"):
            return f"the pod {name} was deleted"
        disruption = _condition(now, "DisruptionTarget") or {}
        if reason := disruption.get("reason") or now["status"].get("reason"):
            return f"the pod {name} was taken away ({reason})"
        for end in _ends(now):
            if end not in _ends(pod) and (end.get("reason") == "OOMKilled" or end.get("exitCode", 0) > 128):
                return f"the engine of {name} was killed ({end.get('reason')}, exit code {end.get('exitCode')})"
    if not ready and not any(_restarts(pod) for pod in after):
        return "the server had no ready pod"
    return ""


def _condition(pod: Object, kind: str) -> Object | None:
    for condition in pod["status"].get("conditions") or []:
        if condition["type"] == kind and condition["status"] == "True":
            found: Object = condition
            return found
    return None


def _ends(pod: Object) -> list[Object]:
    """How the pod's containers ended, as far as it still tells."""
    states = [status.get(key) or {} for status in pod["status"].get("containerStatuses") or [] for key in _STATES]
    return [state["terminated"] for state in states if "terminated" in state]


def _restarts(pod: Object) -> int:
    return sum(status.get("restartCount", 0) for status in pod["status"].get("containerStatuses") or [])


def numbers(verdict: dict[str, Any]) -> dict[str, float]:
    """The figures as KFP's Metrics take them: flat, `tokens_per_second_16` for 16 streams at once."""
    found: dict[str, float] = {"passed": float(verdict["passed"])}
    for row in verdict["figures"]["load"]:
        found |= {
            f"tokens_per_second_{row['concurrency']}": row["tokens_per_second"],
            f"p95_time_to_first_token_ms_{row['concurrency']}": row["ttft_ms"]["p95"],
            f"p95_inter_token_latency_ms_{row['concurrency']}": row["itl_ms"]["p95"],
            f"error_rate_{row['concurrency']}": row["errors"] / row["requests"],
        }
    return found


def summary(verdict: dict[str, Any]) -> str:
    """The verdict of a server that passed, in one line."""
    also = f"; gates: {len(verdict['gates'])}" if verdict.get("gates") else ""
    also += _by_the_way(verdict.get("through") or {})
    also += f"; warnings: {len(verdict['warnings'])}" if verdict["warnings"] else ""
    if not verdict["figures"]["load"]:
        return f"passed: it answers; as it serves already, nothing loaded it{also}"
    row = max(verdict["figures"]["load"], key=lambda row: row["concurrency"])
    return (
        f"passed: {row['tokens_per_second']:.0f} tokens/s with {row['concurrency']} at once, first token "
        f"{row['ttft_ms']['p95']:.0f} ms, next {row['itl_ms']['p95']:.1f} ms (p95){also}"
    )


def _by_the_way(through: dict[str, Any]) -> str:
    """What was seen through the load balancer, to go on with."""
    if not through.get("asked"):
        return ""
    refused, waiting = through["shed"].get("refused"), through["shed"].get("waiting")
    shed = f", {', '.join(refused)} refused (429) while {waiting} waited" if refused else ""
    return f"; through the load balancer: {', '.join(through['asked'])}{shed}"
