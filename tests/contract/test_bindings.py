"""Roles on a bucket: what runs gave goes with the last deployment that needs it, what a person gave stays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from emulated_cloud.process import start

from serving import names
from serving.clients import storage
from serving.deployment import bindings
from serving.errors import AccessError
from serving.features import Binding
from serving.settings import Settings
from tests.unit.deployment import quick

BUCKET = "demo-bucket"
ONE, OTHER = quick(), quick(cluster="gemma-2")
"""Deployments of one name in two clusters of a project: to IAM, their pods are one."""
PODS = Binding("roles/storage.objectViewer", "principal://iam.googleapis.com/p.svc.id.goog/subject/ns/gemma/sa/server")


@pytest.fixture(autouse=True)
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    process = start("emulated_cloud.storage", "--root", str(tmp_path), "--bucket", BUCKET, log=tmp_path / "storage.log")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", process.url)
    yield
    process.stop()


def is_given() -> bool:
    return storage.has_bucket_binding(BUCKET, PODS.role, PODS.member)


def left(settings: Settings) -> list[str]:
    """What leaving took."""
    return [known.role for known in bindings.leave_all(settings, print)]


def notes() -> list[str]:
    return list(storage.list_uris(f"gs://{BUCKET}/"))


def test_what_a_run_gave_is_given_once_and_taken_once():
    assert bindings.give(ONE, PODS)
    assert not bindings.give(ONE, PODS)
    assert [known.needed_by for known in bindings.present(ONE)] == [[names.place(ONE)]]
    assert left(ONE) == [PODS.role]
    assert (is_given(), notes(), left(ONE)) == (False, [], [])


def test_what_a_person_gave_is_used_and_stays():
    storage.ensure_bucket_binding(BUCKET, PODS.role, PODS.member)
    assert not bindings.give(ONE, PODS)
    assert (bindings.present(ONE), left(ONE), is_given(), notes()) == ([], [], True, [])


@pytest.mark.parametrize("first", [ONE, OTHER])
def test_a_role_of_two_goes_with_the_last_of_them(first: Settings):
    last = OTHER if first is ONE else ONE
    assert [bindings.give(each, PODS) for each in (ONE, OTHER)] == [True, False]
    assert (left(first), is_given()) == ([], True)
    assert bindings.present(first) == []
    assert (left(last), is_given(), notes()) == ([PODS.role], False, [])


def test_what_may_not_be_given_is_then_given_by_hand_and_stays(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: str) -> bool:
        raise AccessError("no storage.buckets.setIamPolicy")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "ensure_bucket_binding", refuse)
        with pytest.raises(AccessError):
            bindings.give(ONE, PODS)
    storage.ensure_bucket_binding(BUCKET, PODS.role, PODS.member)
    assert not bindings.give(ONE, PODS)
    assert (left(ONE), is_given()) == ([], True)


@pytest.mark.parametrize("dies_in", ["remove_bucket_binding", "delete"])
def test_whoever_dies_in_the_middle_begins_anew(dies_in: str, monkeypatch: pytest.MonkeyPatch):
    bindings.give(ONE, PODS)

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(storage, dies_in, die)
        with pytest.raises(KeyboardInterrupt):
            left(ONE)
    left(ONE)
    assert (is_given(), notes()) == (False, [])


def test_whoever_dies_while_it_gives_one_is_no_person(monkeypatch: pytest.MonkeyPatch):
    give = storage.ensure_bucket_binding

    def die(*where: str) -> None:
        give(*where)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(storage, "ensure_bucket_binding", die)
        with pytest.raises(KeyboardInterrupt):
            bindings.give(ONE, PODS)
    assert not bindings.give(ONE, PODS)
    assert (left(ONE), is_given(), notes()) == ([PODS.role], False, [])


def test_who_comes_to_need_it_while_it_is_taken_has_it(monkeypatch: pytest.MonkeyPatch):
    bindings.give(ONE, PODS)
    take, met = storage.remove_bucket_binding, list[bool]()

    def take_as_another_comes(*where: str) -> bool:
        met.append(bindings.give(OTHER, PODS))
        return take(*where)

    monkeypatch.setattr(storage, "remove_bucket_binding", take_as_another_comes)
    assert left(ONE) == []
    assert met == [False], "it found the role there"
    assert is_given()
    assert [known.needed_by for known in bindings.present(OTHER)] == [[names.place(OTHER)]]
