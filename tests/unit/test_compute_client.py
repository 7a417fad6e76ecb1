"""Our client of Compute Engine: what a refusal means, and how often one thing is asked for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from serving.clients import compute
from serving.clients.compute import BusyError, NotOfferedError, Operation, QuotaError, StockOutError, carry_out
from serving.errors import AccessError, InconclusiveError, PipelineError, RequestError


@pytest.mark.parametrize(
    ("code", "words", "status", "error"),
    [
        ("ZONE_RESOURCE_POOL_EXHAUSTED", "", 503, StockOutError),
        ("ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS", "", 503, StockOutError),
        ("UNSUPPORTED_OPERATION", "The zone does not have enough resources available to", 400, StockOutError),
        ("invalid", "Machine type with name 'x1-y-2' does not exist in zone 'us-central1-a'.", 400, NotOfferedError),
        ("RESOURCE_NOT_FOUND", "The resource 'projects/p/zones/z/diskTypes/t' was not found", 404, NotOfferedError),
        ("QUOTA_EXCEEDED", "", 403, QuotaError),
        ("quotaExceeded", "", 403, QuotaError),
        ("forbidden", "Required permission", 403, AccessError),
        ("SERVICE_ACCOUNT_ACCESS_DENIED", "", 403, AccessError),
        ("invalid", "Invalid value for field", 400, RequestError),
        ("resourceNotReady", "", 400, BusyError),
        ("resourceInUseByAnotherResource", "", 400, BusyError),
        ("RESOURCE_IN_USE_BY_ANOTHER_RESOURCE", "", 400, BusyError),
        ("INTERNAL_ERROR", "Internal error.", 500, InconclusiveError),
        ("SOMETHING_NEW", "", None, InconclusiveError),
    ],
)
def test_a_refusal_is_what_a_person_can_do_about_it(code: str, words: str, status: int | None, error: type):
    raised = compute._failure("machine m", code, words, status)
    assert type(raised) is error
    assert str(raised).startswith(f"machine m: {words.rstrip('.') or code}")
    assert ".." not in str(raised)


OK, BAD = (), ("INTERNAL_ERROR",)


def operation(*errors: str, was_over: bool = False) -> Operation:
    found = [SimpleNamespace(code=code, message="") for code in errors]
    ended = SimpleNamespace(status="DONE", error=SimpleNamespace(errors=found), http_error_status_code=500)
    begun = ended if was_over else SimpleNamespace(status="RUNNING")
    return Operation("machine m", begun, lambda *_: ended)


class Engine:
    """Answers each request in turn, a repeated one with what came of it."""

    def __init__(self, *answers: Any):
        self._answers = list(answers)
        self.asked: list[str] = []

    def send(self, request_id: str) -> Operation:
        self.asked.append(request_id)
        answer = self._answers.pop(0)
        if isinstance(answer, PipelineError):
            raise answer
        return cast(Operation, answer)


def carried_out(engine: Engine, **options: Any) -> Any:
    return carry_out(engine.send, "run-1", "machine", "zone-a", seconds=5, **options)


def test_one_thing_is_asked_for_once():
    engine = Engine(operation())
    assert carried_out(engine) is True
    again = Engine(operation(was_over=True))
    assert carried_out(again) is True
    assert engine.asked == again.asked, "by another attempt of the run it is the same request"


def test_what_failed_now_is_told():
    engine = Engine(operation(*BAD))
    with pytest.raises(InconclusiveError, match="INTERNAL_ERROR"):
        carried_out(engine)
    assert len(engine.asked) == 1


def test_what_failed_for_an_attempt_before_is_begun_anew():
    engine = Engine(operation(*BAD, was_over=True), operation())
    carried_out(engine)
    assert len(set(engine.asked)) == 2


def test_what_an_attempt_before_made_and_is_gone_is_begun_anew():
    engine, found = Engine(operation(was_over=True), operation()), iter([None, "it"])
    assert carried_out(engine, found=lambda: next(found)) == "it"
    assert len(set(engine.asked)) == 2


def test_what_fails_at_once_however_often_is_told_why():
    engine = Engine(*(operation(*BAD, was_over=True) for _ in range(20)))
    with pytest.raises(InconclusiveError, match="INTERNAL_ERROR"):
        carried_out(engine)
    assert len(engine.asked) == compute._ATTEMPTS


def test_what_is_busy_is_asked_again_by_the_same_request():
    engine = Engine(BusyError("not ready"), operation())
    carried_out(engine)
    assert len(set(engine.asked)) == 1
    assert len(engine.asked) == 2
