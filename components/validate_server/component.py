"""KFP interface of validate_server; step.py says what it does."""

from typing import NamedTuple

from kfp import dsl

from serving.component import component


@component
def validate_server(
    settings: dict,
    release: dict,
    passed: bool,
    reasons: list,
    metrics: dsl.Output[dsl.Metrics],
    page: dsl.Output[dsl.HTML],
) -> NamedTuple("Outputs", [("passed", bool), ("reasons", list)]):
    """Asks the new generation, from inside the cluster, whether it serves what it should as fast as it should.

    Args:
        settings: the whole settings, as resolve_model returns them.
        release: what resolve_model found.
        passed: the verdict so far; when it is False already, nothing is asked.
        reasons: why, in words.
        metrics: throughput and latencies.
        page: the same for a reader, with an answer.

    Returns:
        passed, reasons: the verdict and its reasons after this step.
    """
    from components.validate_server.step import run

    passed, reasons, figures, html = run(settings, release, passed, reasons)
    for name, value in figures.items():
        metrics.log_metric(name, value)
    with open(page.path, "w", encoding="utf-8") as file:
        file.write(html)
    return passed, reasons
