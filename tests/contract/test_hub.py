"""The hub emulator, driven by the real huggingface_hub client and `hf` over the wire.

The tests that only read also run against a real hub when HF_CONTRACT_ENDPOINT (its address) and HF_CONTRACT_REPO (a
public model repository with LFS and small files, config.json among them; the smaller, the better) are set.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import huggingface_hub
import pytest
from emulated_cloud import process
from emulated_cloud.hub import HubServer, Repository, serving
from huggingface_hub import HfApi, errors, get_hf_file_metadata, hf_hub_url

OPEN, GATED = "google/tiny-open", "google/tiny-gated"
SHARD = "model-00001-of-00001.safetensors"
GRANTED, UNGRANTED, BAD = "hf_granted", "hf_ungranted", "hf_unknown"
WEIGHTS = bytes(range(256)) * 12_000  # 3,072,000 bytes: three reads of the server


@pytest.fixture(autouse=True)
def no_ambient_hub(monkeypatch, tmp_path):
    """What a developer's machine knows of the hub (token, cache, proxies) stays out of these tests."""
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_STORED_TOKENS_PATH", str(tmp_path / "no-tokens"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def release(tmp_path) -> Path:
    folder = tmp_path / "release"
    (folder / "extra").mkdir(parents=True)
    (folder / SHARD).write_bytes(WEIGHTS)
    (folder / "tokenizer.json").write_text('{"model": {}}')
    (folder / "config.json").write_text('{"architectures": ["Gemma3ForCausalLM"]}')
    (folder / "README.md").write_text("---\nlicense: gemma\nlibrary_name: transformers\ntags:\n- tiny\n---\n\n# Tiny\n")
    (folder / "extra/한글 이름 #1.txt").write_text("안녕\n")
    return folder


@pytest.fixture
def tokens(tmp_path) -> Path:
    path = tmp_path / "tokens.json"
    users = {GRANTED: {"user": "ada", "granted": [GATED]}, UNGRANTED: {"user": "bob", "granted": []}}
    path.write_text(json.dumps(users))
    return path


@pytest.fixture
def hub(tmp_path, release, tokens) -> Iterator[HubServer]:
    for repo_id in (OPEN, GATED):
        Repository(tmp_path / "hub", repo_id).commit(release)
    with serving(tmp_path / "hub", gated=[GATED], tokens=tokens) as server:
        yield server


@dataclass
class Target:
    """A hub and a public repository on it."""

    api: HfApi
    repo_id: str

    def url(self, path: str, revision: str = "main") -> str:
        return hf_hub_url(self.repo_id, path, revision=revision, endpoint=self.api.endpoint)


@pytest.fixture
def target(request) -> Target:
    endpoint, repo_id = os.environ.get("HF_CONTRACT_ENDPOINT"), os.environ.get("HF_CONTRACT_REPO")
    if endpoint and repo_id:
        return Target(HfApi(endpoint=endpoint, token=False), repo_id)
    return Target(HfApi(endpoint=request.getfixturevalue("hub").url, token=False), OPEN)


def api_of(hub: HubServer, token: str | bool = False) -> HfApi:
    return HfApi(endpoint=hub.url, token=token)


def git_blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def fetch(url: str, headers: dict[str, str] | None = None) -> tuple[int, dict[str, str], bytes]:
    """One request, no redirect followed, nothing retried."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.netloc, timeout=60)
    try:
        connection.request("GET", url[url.index(parts.netloc) + len(parts.netloc) :], headers=headers or {})
        response = connection.getresponse()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
    finally:
        connection.close()


def script(hub: HubServer, *faults: dict) -> None:
    request = urllib.request.Request(f"{hub.url}/_emulator/faults", json.dumps(faults).encode(), method="POST")
    urllib.request.urlopen(request).close()


def consumed(hub: HubServer) -> list[int]:
    with urllib.request.urlopen(f"{hub.url}/_emulator/faults") as response:
        return [fault["consumed"] for fault in json.load(response)]


def seen(hub: HubServer, pattern: str = "", method: str = "") -> list[dict]:
    return [
        entry for entry in hub.requests_seen if re.search(pattern, entry["path"]) and entry["method"].startswith(method)
    ]


# -- what also holds for the real hub -----------------------------------------------------------------------


def smallest(target: Target, lfs: bool) -> huggingface_hub.hf_api.RepoSibling:
    siblings = target.api.model_info(target.repo_id, files_metadata=True).siblings or []
    return min((sibling for sibling in siblings if bool(sibling.lfs) == lfs), key=lambda sibling: sibling.size or 0)


def test_the_listings_agree(target):
    info = target.api.model_info(target.repo_id, files_metadata=True)
    assert re.fullmatch("[0-9a-f]{40}", info.sha)
    assert info.id == target.repo_id
    assert info.gated is False
    tree = {
        entry.path: entry
        for entry in target.api.list_repo_tree(target.repo_id, recursive=True, revision=info.sha)
        if isinstance(entry, huggingface_hub.hf_api.RepoFile)
    }
    assert set(tree) == {sibling.rfilename for sibling in info.siblings}
    paths_info = {entry.path: entry for entry in target.api.get_paths_info(target.repo_id, list(tree))}
    for sibling in info.siblings:
        entry = tree[sibling.rfilename]
        assert (entry.size, entry.blob_id, entry.lfs) == (sibling.size, sibling.blob_id, sibling.lfs)
        assert paths_info[sibling.rfilename].blob_id == sibling.blob_id
    assert target.api.model_info(target.repo_id, revision=info.sha).sha == info.sha
    assert target.api.model_info(target.repo_id, revision="main").sha == info.sha
    refs = target.api.list_repo_refs(target.repo_id)
    assert {ref.name: ref.target_commit for ref in refs.branches}["main"] == info.sha
    target.api.auth_check(target.repo_id)


def test_without_files_metadata_there_are_names_alone(target):
    info = target.api.model_info(target.repo_id)
    assert all(sibling.size is None and sibling.blob_id is None for sibling in info.siblings)


def test_a_small_file_comes_through_the_hub_and_is_a_git_blob(target):
    sibling = smallest(target, lfs=False)
    metadata = get_hf_file_metadata(target.url(sibling.rfilename), token=False)
    assert metadata.etag == sibling.blob_id
    assert metadata.size == sibling.size
    assert metadata.commit_hash == target.api.model_info(target.repo_id).sha
    assert urlsplit(metadata.location).netloc == urlsplit(target.api.endpoint).netloc
    status, headers, body = fetch(metadata.location, {"Accept-Encoding": "identity"})
    assert (status, git_blob_id(body)) == (200, sibling.blob_id)
    assert headers["etag"].strip('W/"') == sibling.blob_id


def test_a_large_file_is_on_another_host_behind_a_signature(target):
    sibling = smallest(target, lfs=True)
    metadata = get_hf_file_metadata(target.url(sibling.rfilename), token=False)
    assert (metadata.etag, metadata.size) == (sibling.lfs.sha256, sibling.size)
    assert urlsplit(metadata.location).netloc != urlsplit(target.api.endpoint).netloc
    status, headers, body = fetch(metadata.location)
    assert (status, hashlib.sha256(body).hexdigest()) == (200, sibling.lfs.sha256)
    assert (headers["accept-ranges"], int(headers["content-length"])) == ("bytes", sibling.size)
    status, _, _ = fetch(re.sub(r"Signature=[^&]{4}", "Signature=0000", metadata.location))
    assert status == 403


def test_ranges_of_a_large_file(target):
    sibling = smallest(target, lfs=True)
    size = sibling.size
    location = get_hf_file_metadata(target.url(sibling.rfilename), token=False).location
    whole = fetch(location)[2]
    for asked, first, last in (
        ("0-0", 0, 0),
        ("5-", 5, size - 1),
        ("-3", size - 3, size - 1),
        (f"2-{size * 9}", 2, size - 1),
    ):
        status, headers, body = fetch(location, {"Range": f"bytes={asked}"})
        assert (status, body) == (206, whole[first : last + 1])
        assert headers["content-range"] == f"bytes {first}-{last}/{size}"
    status, headers, _ = fetch(location, {"Range": f"bytes={size}-"})
    assert (status, headers["content-range"]) == (416, f"bytes */{size}")


def test_a_download_gives_every_file_as_listed(target, tmp_path):
    folder = Path(target.api.snapshot_download(target.repo_id, local_dir=tmp_path / "copy"))
    for sibling in target.api.model_info(target.repo_id, files_metadata=True).siblings:
        data = (folder / sibling.rfilename).read_bytes()
        if sibling.lfs:
            assert hashlib.sha256(data).hexdigest() == sibling.lfs.sha256
        else:
            assert git_blob_id(data) == sibling.blob_id


def test_what_is_not_there_is_named(target):
    with pytest.raises(errors.RevisionNotFoundError):
        target.api.model_info(target.repo_id, revision="no-such-revision")
    with pytest.raises(errors.RevisionNotFoundError):
        target.api.model_info(target.repo_id, revision="0" * 40)
    with pytest.raises(errors.RemoteEntryNotFoundError):
        get_hf_file_metadata(target.url("no/such/file"), token=False)
    with pytest.raises(errors.RevisionNotFoundError):
        get_hf_file_metadata(target.url("config.json", revision="no/such"), token=False)
    assert target.api.get_paths_info(target.repo_id, ["no/such/file"]) == []
    assert target.api.file_exists(target.repo_id, "no/such/file") is False
    assert target.api.revision_exists(target.repo_id, "no-such-revision") is False


def test_an_anonymous_caller_is_not_told_whether_a_repository_exists(target):
    with pytest.raises(errors.RepositoryNotFoundError) as raised:
        target.api.model_info("google/no-such-model-at-all")
    assert raised.value.response.status_code == 401


def test_a_bad_token_is_refused_even_where_none_is_needed(target):
    with pytest.raises(errors.HfHubHTTPError) as raised:
        HfApi(endpoint=target.api.endpoint, token=BAD).model_info(target.repo_id)
    assert raised.value.response.status_code == 401
    assert not isinstance(raised.value, errors.RepositoryNotFoundError)
    with pytest.raises(errors.HfHubHTTPError, match="Invalid user token"):
        HfApi(endpoint=target.api.endpoint, token=BAD).whoami()


def test_xet_is_not_needed(target, monkeypatch, tmp_path):
    """A client without xet gets everything; the emulator does not even offer it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    sibling = smallest(target, lfs=True)
    path = target.api.hf_hub_download(target.repo_id, sibling.rfilename, local_dir=tmp_path / "copy")
    assert hashlib.sha256(Path(path).read_bytes()).hexdigest() == sibling.lfs.sha256
    if "HF_CONTRACT_ENDPOINT" not in os.environ:
        _, headers, _ = fetch(target.url(sibling.rfilename))
        assert not [name for name in headers if "xet" in name]


# -- tokens and gates ---------------------------------------------------------------------------------------


def test_whoami(hub):
    assert api_of(hub, GRANTED).whoami()["name"] == "ada"
    status, _, body = fetch(f"{hub.url}/api/whoami-v2")
    assert (status, json.loads(body)) == (401, {"error": "Invalid username or password."})


def test_a_gate_lets_everybody_list_and_the_granted_read(hub, tmp_path):
    info = api_of(hub).model_info(GATED, files_metadata=True)
    assert info.gated == "manual"
    assert info.card_data.license == "gemma"
    assert "license:gemma" in info.tags
    for token, status in ((False, 401), (UNGRANTED, 403)):
        api = api_of(hub, token)
        assert api.model_info(GATED).sha == info.sha
        for read in (
            lambda api=api: api.auth_check(GATED),
            lambda api=api: api.hf_hub_download(GATED, "config.json", cache_dir=tmp_path / "none"),
            lambda api=api: api.hf_hub_download(GATED, SHARD, cache_dir=tmp_path / "none"),
        ):
            with pytest.raises(errors.GatedRepoError) as raised:
                read()
            assert raised.value.response.status_code == status
            assert f"Access to model {GATED} is restricted" in str(raised.value)
    assert seen(hub, "^/cdn/") == []
    granted = api_of(hub, GRANTED)
    granted.auth_check(GATED)
    assert Path(granted.hf_hub_download(GATED, SHARD, cache_dir=tmp_path / "cache")).read_bytes() == WEIGHTS


def test_the_small_files_of_a_gated_repository_have_no_back_door(hub):
    location = get_hf_file_metadata(
        hf_hub_url(GATED, "config.json", endpoint=hub.url), token=GRANTED, endpoint=hub.url
    ).location
    assert fetch(location)[0] == 401
    assert fetch(location, {"Authorization": f"Bearer {UNGRANTED}"})[0] == 403
    assert fetch(location, {"Authorization": f"Bearer {GRANTED}"})[0] == 200


def test_a_grant_counts_at_once(hub, tokens):
    with pytest.raises(errors.GatedRepoError):
        api_of(hub, UNGRANTED).auth_check(GATED)
    tokens.write_text(json.dumps({UNGRANTED: {"user": "bob", "granted": [GATED]}}))
    api_of(hub, UNGRANTED).auth_check(GATED)


def test_a_repository_that_does_not_exist_is_404_to_a_user(hub):
    with pytest.raises(errors.RepositoryNotFoundError) as raised:
        api_of(hub, GRANTED).auth_check("google/nope")
    assert raised.value.response.status_code == 404


def test_the_log_names_users_and_never_a_token_or_a_signature(hub, tmp_path):
    api_of(hub, GRANTED).hf_hub_download(GATED, SHARD, cache_dir=tmp_path / "cache")
    with pytest.raises(errors.HfHubHTTPError):
        api_of(hub, BAD).model_info(OPEN)
    api_of(hub).model_info(OPEN)
    assert {entry["user"] for entry in seen(hub, "^/google/")} == {"ada"}
    assert [entry["user"] for entry in seen(hub, "^/api/models/")] == ["invalid", "anonymous"]
    text = json.dumps(hub.requests_seen)
    assert GRANTED not in text
    assert BAD not in text
    assert re.findall(r"Signature=[^&\"]*", text) == ["Signature=\\u2026"] * len(seen(hub, "^/cdn/"))


# -- the CDN ------------------------------------------------------------------------------------------------


def test_no_authorization_follows_to_the_cdn(hub, tmp_path):
    api_of(hub, GRANTED).snapshot_download(GATED, cache_dir=tmp_path / "cache")
    on_cdn = seen(hub, "^/cdn/")
    assert {entry["status"] for entry in on_cdn} == {200}
    assert {entry["user"] for entry in on_cdn} == {"anonymous"}


def test_the_cdn_refuses_a_token_and_the_log_shows_it(hub):
    location = get_hf_file_metadata(hf_hub_url(OPEN, SHARD, endpoint=hub.url), token=GRANTED).location
    status, headers, body = fetch(location, {"Authorization": f"Bearer {GRANTED}"})
    assert (status, headers["content-type"]) == (400, "application/xml")
    assert b"Only one auth mechanism allowed" in body
    assert [(entry["status"], entry["user"]) for entry in seen(hub, "^/cdn/")] == [(400, "ada")]


def test_a_link_is_good_for_its_own_file_and_time(tmp_path, release):
    Repository(tmp_path / "hub", OPEN).commit(release)
    with serving(tmp_path / "hub") as hub:
        location = get_hf_file_metadata(hf_hub_url(OPEN, SHARD, endpoint=hub.url), token=False).location
        assert fetch(location, {"Range": "bytes=0-3"})[2] == WEIGHTS[:4]
        other = hashlib.sha256(b'{"model": {}}').hexdigest()
        assert fetch(location.replace(hashlib.sha256(WEIGHTS).hexdigest(), other))[0] == 403
        assert fetch(location.replace("Expires=", "Expires=9"))[0] == 403
        assert fetch(location.split("?")[0])[0] == 403
        lifetime, hub.access.signature_seconds = hub.access.signature_seconds, -1
        expired = get_hf_file_metadata(hf_hub_url(OPEN, SHARD, endpoint=hub.url), token=False).location
        status, _, body = fetch(expired)
        assert (status, b"Request has expired" in body) == (403, True)
        hub.access.signature_seconds = lifetime
        fresh = get_hf_file_metadata(hf_hub_url(OPEN, SHARD, endpoint=hub.url), token=False).location
        assert fetch(fresh)[0] == 200


def test_who_comes_by_localhost_is_sent_to_the_address(hub):
    endpoint = hub.url.replace("127.0.0.1", "localhost")
    location = get_hf_file_metadata(hf_hub_url(OPEN, SHARD, endpoint=endpoint), token=False).location
    assert location.startswith(f"{hub.url}/cdn/")
    assert fetch(location)[2] == WEIGHTS


# -- faults -------------------------------------------------------------------------------------------------


def test_429_with_retry_after_reaches_the_caller(hub):
    words = json.dumps({"error": "We had to rate limit you"})
    fault = {"action": "status", "path": "^/api/models/", "status": 429, "headers": {"Retry-After": "1"}, "body": words}
    script(hub, fault)
    with pytest.raises(errors.HfHubHTTPError) as raised:
        api_of(hub).model_info(OPEN)
    assert raised.value.response.status_code == 429
    assert raised.value.response.headers["Retry-After"] == "1"
    assert api_of(hub).model_info(OPEN).id == OPEN
    assert consumed(hub) == [1]


def test_503_from_the_cdn_is_not_retried_by_the_client(hub, tmp_path):
    script(hub, {"action": "status", "method": "GET", "path": "^/cdn/", "status": 503})
    with pytest.raises(errors.HfHubHTTPError, match="503"):
        api_of(hub).hf_hub_download(OPEN, SHARD, cache_dir=tmp_path / "cache")
    assert consumed(hub) == [1]


def test_a_reset_comes_after_as_many_bytes_as_scripted(hub):
    script(hub, {"action": "reset", "method": "GET", "path": "^/cdn/", "after_bytes": 2_000_000})
    location = get_hf_file_metadata(hf_hub_url(OPEN, SHARD, endpoint=hub.url), token=False).location
    with pytest.raises((ConnectionError, http.client.IncompleteRead)):
        fetch(location)
    assert consumed(hub) == [1]
    assert seen(hub, "^/cdn/")[0]["bytes_out"] == 2_000_000


def test_a_truncated_body_is_resumed_with_a_range(hub, tmp_path, monkeypatch):
    # The client forgets the chunk (10 MB) that it is in.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 500_000)
    script(hub, {"action": "truncate", "method": "GET", "path": "^/cdn/", "after_bytes": 1_500_000})
    path = api_of(hub).hf_hub_download(OPEN, SHARD, cache_dir=tmp_path / "cache")
    assert Path(path).read_bytes() == WEIGHTS
    assert consumed(hub) == [1]
    first, second = seen(hub, "^/cdn/", "GET")
    assert (first["bytes_out"], second["status"], second["bytes_out"]) == (1_500_000, 206, len(WEIGHTS) - 1_500_000)


def test_a_stall_is_resumed_after_the_clients_timeout(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 1)
    script(hub, {"action": "stall", "method": "GET", "path": "^/cdn/", "after_bytes": 1_000_000, "seconds": 3})
    path = api_of(hub).hf_hub_download(OPEN, SHARD, cache_dir=tmp_path / "cache")
    assert Path(path).read_bytes() == WEIGHTS
    assert consumed(hub) == [1]


def test_a_corrupt_body_passes_the_client_unnoticed(hub, tmp_path):
    """Why the project hashes what it moves: huggingface_hub compares sizes only."""
    script(hub, {"action": "corrupt", "method": "GET", "path": "^/cdn/", "after_bytes": 1_234_567})
    path = api_of(hub).hf_hub_download(OPEN, SHARD, cache_dir=tmp_path / "cache")
    data = Path(path).read_bytes()
    assert [i for i in range(len(data)) if data[i] != WEIGHTS[i]] == [1_234_567]
    assert consumed(hub) == [1]


# -- history, and the hub as a process ----------------------------------------------------------------------


def test_a_running_hub_sees_commits_and_moved_branches(hub, release):
    api, repository = api_of(hub), Repository(hub.root, OPEN)
    first = api.model_info(OPEN).sha
    (release / "config.json").write_text('{"architectures": ["Gemma4ForCausalLM"]}')
    second = repository.commit(release, "Release 2")
    assert api.model_info(OPEN).sha == second != first
    read = "\n".join(
        fetch(f"{hub.url}/api/resolve-cache/models/{OPEN}/{revision}/config.json")[2].decode()
        for revision in (first, "main")
    )
    assert read == '{"architectures": ["Gemma3ForCausalLM"]}\n{"architectures": ["Gemma4ForCausalLM"]}'
    repository.set_branch("main", first)
    repository.set_branch("releases/2", second)
    assert api.model_info(OPEN).sha == first
    assert api.model_info(OPEN, revision="releases/2").sha == second
    assert {ref.name for ref in api.list_repo_refs(OPEN).branches} == {"main", "releases/2"}
    path = api.hf_hub_download(OPEN, "config.json", revision="releases/2", local_dir=release.parent / "copy")
    assert "Gemma4" in Path(path).read_text()


def test_the_hf_command_downloads_from_a_hub_of_its_own_process(tmp_path, release, tokens):
    log = tmp_path / "requests.jsonl"
    hub = process.start(
        "emulated_cloud.hub",
        *("--root", str(tmp_path / "hub"), "--repo", f"{GATED}={release}", "--gated", GATED),
        *("--tokens", str(tokens), "--request-log", str(log)),
        log=tmp_path / "hub.log",
    )
    try:
        command = [Path(sys.executable).with_name("hf"), "download", GATED, "--local-dir", tmp_path / "copy"]
        environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "PATH": os.environ["PATH"]}
        run = {"env": environment, "capture_output": True, "text": True, "timeout": 120}
        refused = subprocess.run(command, check=False, **run)
        assert refused.returncode == 1
        assert f"'{GATED}' requires approval" in refused.stderr
        environment["HF_TOKEN"] = GRANTED
        subprocess.run(command, check=True, **run)
    finally:
        hub.stop()
    assert (tmp_path / "copy" / SHARD).read_bytes() == WEIGHTS
    assert (tmp_path / "copy/extra/한글 이름 #1.txt").read_text() == "안녕\n"
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert {"anonymous", "ada"} == {entry["user"] for entry in entries}
    assert GRANTED not in log.read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--repo", "google/x=/no/such/folder"], "not a folder: /no/such/folder"),
        (["--repo", "google/x"], "not ORG/NAME=FOLDER: 'google/x'"),
        (["--repo", "../x=/tmp"], "not a repository id: '../x'"),
        (["--host", "192.0.2.1"], "--host must be one of 127.0.0.1"),
        (["--port", "{busy}"], "Address already in use"),
    ],
)
def test_a_wrong_start_is_one_clear_line(hub, tmp_path, arguments, words):
    arguments = [argument.replace("{busy}", str(hub.server_address[1])) for argument in arguments]
    with pytest.raises(process.EmulatorFailed, match="exit code 2") as raised:
        process.start("emulated_cloud.hub", "--root", str(tmp_path / "other"), *arguments, log=tmp_path / "log")
    assert words in str(raised.value)
