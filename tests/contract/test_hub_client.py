"""serving/clients/hub.py against a hub: what it finds, and what it says when it is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from serving.clients import patience
from serving.clients.digest import ServedFile
from serving.clients.hub import Hub, is_commit
from serving.clients.patience import Patience
from serving.clients.wire import Wire
from serving.errors import AccessError, InconclusiveError, RequestError
from tests.contract.transfer_site import GATED, TOKEN, UNGRANTED, Site, _site, folder, model, site

__all__ = ["_site", "folder", "model", "site"]

SECRET = "projects/demo-project/secrets/hf-token/versions/latest"


def test_a_branch_is_resolved_to_its_commit_and_a_commit_to_itself(site: Site, model: str, folder: Path):
    sha = site.commit(model, folder)
    assert Hub().commit(model, "main") == sha
    assert Hub().commit(model, sha) == sha
    assert is_commit(sha)
    assert not is_commit("main")


def test_files_are_listed_with_what_git_or_lfs_names_them_by(site: Site, model: str, folder: Path):
    sha = site.commit(model, folder)
    files = {file.path: file for file in Hub().tree(model, sha)}
    assert set(files) == {path.name for path in folder.iterdir()}
    shard, config = files["model-00001-of-00002.safetensors"], files["config.json"]
    assert shard.sha256 == hashlib.sha256((folder / shard.path).read_bytes()).hexdigest()
    content = (folder / "config.json").read_bytes()
    assert config.sha256 is None
    assert config.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    assert config.size == len(content)


def test_small_files_are_read_as_listed_and_the_head_of_large_ones(site: Site, model: str, folder: Path):
    snapshot = Hub().at(model, site.commit(model, folder))
    files = {file.path: file for file in snapshot.files()}
    wire = Wire()
    assert snapshot.content(wire, files["config.json"]) == (folder / "config.json").read_bytes()
    shard = files["model-00001-of-00002.safetensors"]
    assert snapshot.head(wire, shard, 100, Patience()) == (folder / shard.path).read_bytes()[:100]
    assert snapshot.head(wire, files["config.json"], 10_000, Patience()) == (folder / "config.json").read_bytes()
    wire.close()


def test_content_that_never_is_what_the_listing_says_is_an_error(site: Site, model: str, folder: Path):
    snapshot = Hub().at(model, site.commit(model, folder))
    wrong = ServedFile("config.json", (folder / "config.json").stat().st_size, None, "0" * 40)
    wire = Wire()
    with pytest.raises(InconclusiveError, match="not those that are listed"):
        snapshot.content(wire, wrong, Patience(0.5))
    wire.close()


@pytest.mark.parametrize("token", [None, TOKEN])
def test_an_unknown_model_is_named(site: Site, token: str | None):
    with pytest.raises(RequestError, match=r"test/nowhere is not on http.*private model") as error:
        Hub(token).commit("test/nowhere", "main")
    assert ("needs hub.token_secret" in str(error.value)) == (token is None)


def test_an_unknown_revision_is_named(site: Site, model: str, folder: Path):
    site.commit(model, folder)
    with pytest.raises(RequestError, match=f"{model} has no revision 'nope'.*/commits"):
        Hub().commit(model, "nope")


def test_a_name_that_is_none_is_refused(site: Site):
    with pytest.raises(RequestError, match="not a name that the hub allows"):
        Hub().commit("a/b/c", "main")


def test_a_gated_model_without_a_token_says_where_to_ask(site: Site, folder: Path):
    site.commit(GATED, folder)
    with pytest.raises(
        AccessError, match=f"{GATED} is gated and no token.*{site.url('hub')}/{GATED}.*hub.token_secret"
    ):
        Hub().check_access(GATED)


def test_a_gated_model_without_a_grant_names_the_secret_and_not_the_token(site: Site, folder: Path):
    site.commit(GATED, folder)
    with pytest.raises(
        AccessError, match=f"{GATED} is gated.*{SECRET} has no grant.*{site.url('hub')}/{GATED}"
    ) as error:
        Hub(UNGRANTED, token_secret=SECRET).check_access(GATED)
    assert UNGRANTED not in str(error.value)
    Hub(TOKEN, token_secret=SECRET).check_access(GATED)


def test_a_bad_token_names_the_secret_and_not_the_token(site: Site, model: str, folder: Path):
    site.commit(model, folder)
    with pytest.raises(
        AccessError, match=f"refused the token in {SECRET}.*gcloud secrets versions add hf-token"
    ) as error:
        Hub("hf_wrong_token", token_secret=SECRET).commit(model, "main")
    assert "hf_wrong_token" not in str(error.value)


def test_the_machines_own_token_is_never_used(site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch):
    site.commit(GATED, folder)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(AccessError, match="no token"):
        Hub().check_access(GATED)


def test_retry_after_is_honoured(site: Site, model: str, folder: Path):
    sha = site.commit(model, folder)
    site.script("hub", {"action": "status", "status": 429, "headers": {"Retry-After": "1"}, "path": "/api/models/"})
    before = len(site.requests("hub"))
    assert Hub().commit(model, "main") == sha
    asked = site.requests("hub")[before:]
    assert [entry["status"] for entry in asked] == [429, 200]
    assert asked[1]["time"] - asked[0]["time"] >= 1
    assert site.consumed("hub") == [1]


def test_a_spent_rate_limit_is_waited_for(site: Site, model: str, folder: Path):
    """As the hub refuses whoever shares an address with many: no Retry-After."""
    sha = site.commit(model, folder)
    headers = {"RateLimit": '"api";r=0;t=1', "RateLimit-Policy": '"fixed window";"api";q=500;w=300'}
    site.script("hub", {"action": "status", "status": 429, "headers": headers, "path": "/api/models/"})
    before = len(site.requests("hub"))
    assert Hub().commit(model, "main") == sha
    asked = site.requests("hub")[before:]
    assert [entry["status"] for entry in asked] == [429, 200]
    assert asked[1]["time"] - asked[0]["time"] >= 1
    assert site.consumed("hub") == [1]


def test_a_spent_rate_limit_of_files_is_waited_for(site: Site, model: str, folder: Path):
    snapshot = Hub().at(model, site.commit(model, folder))
    config = next(file for file in snapshot.files() if file.path == "config.json")
    headers = {"RateLimit": '"resolvers";r=0;t=1'}
    site.script("hub", {"action": "status", "status": 429, "headers": headers, "path": "/resolve", "method": "GET"})
    before = len(site.requests("hub"))
    wire = Wire()
    assert snapshot.content(wire, config) == (folder / "config.json").read_bytes()
    wire.close()
    refused = next(entry for entry in site.requests("hub")[before:] if entry["status"] == 429)
    assert site.requests("hub")[-1]["time"] - refused["time"] >= 1
    assert site.consumed("hub") == [1]


@pytest.mark.parametrize("status", [404, 405, 501])
def test_a_mirror_that_cannot_be_asked_about_access_is_gone_on_with(site: Site, model: str, folder: Path, status: int):
    site.commit(model, folder)
    site.script("hub", {"action": "status", "status": status, "path": "/auth-check"})
    Hub().check_access(model)
    assert site.consumed("hub") == [1]


def test_a_mirror_without_listings_is_told_which_endpoint_it_lacks(site: Site, model: str, folder: Path):
    sha = site.commit(model, folder)
    site.script("hub", {"action": "status", "status": 404, "body": "Not Found", "path": "/tree/"})
    with pytest.raises(RequestError, match=rf"{site.url('hub')} has no /api/models/{model}/tree/{sha} \(404\).*mirror"):
        Hub().tree(model, sha)
    assert site.consumed("hub") == [1]


@pytest.mark.parametrize("body", ["<html>a page</html>", '{"error": "x"}', "[1]", '[{"type": "file"}]', "null"])
@pytest.mark.parametrize("asked", ["tree", "revision"])
def test_what_answers_otherwise_than_a_hub_is_named(site: Site, model: str, folder: Path, asked: str, body: str):
    sha = site.commit(model, folder)
    site.script("hub", {"action": "status", "status": 200, "body": body, "path": f"/{asked}/"})
    with pytest.raises(RequestError, match=f"{site.url('hub')} answers as no hub does when it is asked about {model}"):
        Hub().tree(model, sha) if asked == "tree" else Hub().commit(model, "main")
    assert site.consumed("hub") == [1]


def test_a_wait_of_hours_is_not_waited_for(site: Site, model: str, folder: Path):
    site.commit(model, folder)
    site.script("hub", {"action": "status", "status": 429, "headers": {"Retry-After": "7200"}, "path": "/api/models/"})
    with pytest.raises(InconclusiveError, match="asks for 7200 s"):
        Hub().commit(model, "main")
    assert site.consumed("hub") == [1]


@pytest.mark.parametrize("status", [500, 503])
def test_a_hub_that_stays_down_is_inconclusive(site: Site, model: str, folder: Path, status: int):
    site.commit(model, folder)
    site.script("hub", {"action": "status", "status": status, "path": "/api/models/", "times": 9})
    with patience.lasting(1), pytest.raises(InconclusiveError, match=f"the hub answered {status}"):
        Hub().commit(model, "main")
    assert site.consumed("hub")[0] > 1


def test_a_hub_that_is_not_there_is_inconclusive():
    with patience.lasting(0), pytest.raises(InconclusiveError, match=r"the hub does not answer \(ConnectError\)"):
        Hub(endpoint="http://127.0.0.1:9").commit("a/b", "main")
