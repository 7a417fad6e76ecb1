"""Tiny pipelines of the tests of Vertex AI's emulator."""

from typing import NamedTuple

from kfp import dsl

IMAGE = "python:3.11"


def component(function):
    return dsl.component(function, base_image=IMAGE, packages_to_install=[], install_kfp_package=False)


@component
def work(word: str, number: int, options: dict) -> NamedTuple("Outputs", passed=bool, said=str):
    import json
    from collections import namedtuple

    print(json.dumps({"severity": "WARNING", "message": f"working on {word}", "options": options}))
    return namedtuple("Outputs", "passed said")(number > 1, f"{word} {number}")


@component
def say(words: str) -> str:
    print(words)
    return words


@component
def fail(why: str):
    raise SystemExit(why)


@component
def fail_once(folder_variable: str):
    import os
    import pathlib

    marks = pathlib.Path(os.environ[folder_variable]) / "attempts"
    with open(marks, "a") as file:
        file.write("x")
    if len(marks.read_text()) < 2:
        raise SystemExit("not yet")


@component
def wait_to_be_told(patience: float):
    import os
    import pathlib
    import signal
    import time

    folder = pathlib.Path(os.environ["FOLDER"])

    def end(*_):
        (folder / "told").write_text("SIGTERM")
        raise SystemExit(143)

    signal.signal(signal.SIGTERM, end)
    print("waiting", flush=True)
    time.sleep(patience)


@component
def wait_deaf(patience: float):
    import signal
    import time

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("waiting", flush=True)
    time.sleep(patience)


@component
def save(weights: dsl.Output[dsl.Model]):
    weights.uri = "gs://demo-bucket/models/a"
    weights.metadata["commit"] = "c0ffee"


@component
def report(status: dsl.PipelineTaskFinalStatus, job: str, number: str, root: str):
    import json

    fields = {name: getattr(status, name) for name in ("state", "error_code", "error_message", "pipeline_task_name")}
    print(json.dumps({"message": json.dumps(fields), "job": job, "number": number, "root": root}))


def _reporting():
    return report(
        job=dsl.PIPELINE_JOB_NAME_PLACEHOLDER,
        number=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
        root=dsl.PIPELINE_ROOT_PLACEHOLDER,
    )


@dsl.pipeline(name="two-ways")
def two_ways(word: str, number: int = 3, options: dict = {}):  # noqa: B006
    with dsl.ExitHandler(_reporting(), name="all"):
        worked = work(word=word, number=number, options=options)
        with dsl.If(worked.outputs["passed"] == True, name="passed"):  # noqa: E712
            save()
            say(words=worked.outputs["said"])
        with dsl.Else(name="failed"):
            first = fail(why=worked.outputs["said"])
            say(words="never").after(first)


@dsl.pipeline(name="retried")
def retried():
    fail_once(folder_variable="FOLDER").set_retry(num_retries=2, backoff_duration="0s")


@dsl.pipeline(name="always-fails")
def always_fails():
    fail(why="for good").set_retry(num_retries=2, backoff_duration="0s")


@dsl.pipeline(name="waits")
def waits(patience: float = 60.0):
    with dsl.ExitHandler(_reporting(), name="all"):
        waiting = wait_to_be_told(patience=patience).set_retry(num_retries=2, backoff_duration="0s")
        say(words="later").after(waiting)


@dsl.pipeline(name="waits-deaf")
def waits_deaf(patience: float = 60.0):
    wait_deaf(patience=patience)


@dsl.pipeline(name="says")
def says(words: str = "hello"):
    say(words=words)


@dsl.pipeline(name="loops")
def loops(words: list):
    with dsl.ParallelFor(words) as word:
        say(words=word)
