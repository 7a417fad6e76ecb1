"""What a step leaves of itself, however it ended, and what another attempt makes of it."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest

from serving.clients import storage
from serving.errors import InconclusiveError, LeaseHeldError, ReleaseError, RequestError
from serving.outcome import recorded

ROOT = "gs://demo-bucket/pipelines"
URI = f"{ROOT}/run-1/steps/deploy_server.json"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A bucket in memory."""
    objects: dict[str, Any] = {}
    monkeypatch.setattr(storage, "read_json", objects.get)
    monkeypatch.setattr(storage, "write_json", objects.__setitem__)
    return objects


def ended(error: BaseException) -> int:
    """The exit code of a step that ends with an error."""
    with pytest.raises(SystemExit) as exit_code, recorded("deploy_server", ROOT, "run-1"):
        raise error
    assert isinstance(exit_code.value.code, int)
    return exit_code.value.code


@pytest.mark.parametrize(
    ("error", "status", "final"),
    [
        (RequestError("no such model"), "failed", True),
        (ReleaseError("a shard is cut short"), "failed", True),
        (LeaseHeldError("run-0 holds it", "run-0"), "inconclusive", True),
        (InconclusiveError("no capacity"), "inconclusive", False),
    ],
)
def test_an_error_of_ours_ends_the_step_with_its_words_alone(bucket, error, status, final):
    assert ended(error) == 1
    assert (bucket[URI]["status"], bucket[URI]["message"]) == (status, str(error))
    assert bucket[URI]["error"] == {"type": type(error).__name__, "message": str(error), "final": final}


def test_after_a_final_error_another_attempt_does_nothing_and_the_outcome_stays_the_first_one_s(bucket, capsys):
    ended(RequestError("no such model"))
    first = bucket[URI]
    with pytest.raises(SystemExit) as exit_code, recorded("deploy_server", ROOT, "run-1"):
        pytest.fail("the step's work was done again")
    assert exit_code.value.code == 1
    assert bucket[URI] is first
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (last["message"], last["status"]) == ("not tried again: no such model", "failed")


def test_after_any_other_error_the_work_is_done_again(bucket):
    ended(InconclusiveError("no capacity"))
    with recorded("deploy_server", ROOT, "run-1") as outcome:
        assert not outcome.was_told_to_end
        outcome.succeeded("ready")
    assert bucket[URI]["status"] == "succeeded"


def test_a_verdict_that_was_handed_on_is_come_to_again_by_an_attempt_whose_machine_went_away(bucket):
    """It ended here as a crash, and the release was never recorded as rejected."""
    for _ in range(2):
        with recorded("deploy_server", ROOT, "run-1") as outcome:
            outcome.failed(ReleaseError("out of memory"))
        assert (bucket[URI]["status"], bucket[URI]["error"]["final"]) == ("failed", False)


def test_a_defect_leaves_an_outcome_and_keeps_its_traceback(bucket):
    with pytest.raises(KeyError), recorded("deploy_server", ROOT, "run-1"):
        raise KeyError("oops")
    assert bucket[URI]["error"]["type"] == "KeyError"


def told_to_end(giving_back: Callable[[], None] = lambda: None) -> int:
    """The exit code of a step that is told to end."""
    with pytest.raises(SystemExit) as exit_code, recorded("deploy_server", ROOT, "run-1"):
        _work_until_told(giving_back)
    assert isinstance(exit_code.value.code, int)
    return exit_code.value.code


def _work_until_told(giving_back: Callable[[], None]) -> None:
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("went on")
    except Exception:  # noqa: BLE001 (what a library might do)
        pytest.fail("it was taken for a failure to go on after")
    finally:
        giving_back()


def test_a_step_that_is_told_to_end_is_inconclusive_and_the_next_attempt_knows(bucket):
    before = signal.getsignal(signal.SIGTERM)
    assert told_to_end() == 143
    assert (bucket[URI]["status"], bucket[URI]["error"]["type"]) == ("inconclusive", "ToldToEnd")
    assert "told to end" in bucket[URI]["message"]
    assert signal.getsignal(signal.SIGTERM) is before
    with recorded("deploy_server", ROOT, "run-1") as outcome:
        assert outcome.was_told_to_end


def test_giving_back_is_not_interrupted_by_being_told_again(bucket):
    given_back = []

    def give_back() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        given_back.append("Lease")

    told_to_end(give_back)
    assert given_back == ["Lease"]
    assert bucket[URI]["status"] == "inconclusive"


def test_a_step_in_a_thread_works_too(bucket):
    def work() -> None:
        with recorded("deploy_server", ROOT, "run-1") as outcome:
            outcome.succeeded("ready")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert bucket[URI]["status"] == "succeeded"
