"""Repositories on disk: what a commit's sha depends on, and what a commit survives."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from emulated_cloud.cloud import wait_for
from emulated_cloud.hub import Repository, RepositoryError, serving
from emulated_cloud.hub import repository as module

REPO = "google/gemma"


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "folder"
    (folder / "nested").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "nested/empty.txt").write_text("")
    (folder / "model.safetensors").write_bytes(b"weights" * 1000)
    return folder


@pytest.fixture
def small_is_linked(monkeypatch):
    """Files of 1000 bytes and more count as large: linked and not copied."""
    monkeypatch.setattr(module, "COPY_BELOW", 1000)


def content(repository: Repository, revision: str, path: str) -> bytes:
    commit = repository.resolve(revision)
    assert commit is not None
    return repository.object_path(commit.files[path]).read_bytes()


def test_the_sha_depends_on_contents_and_message_alone(tmp_path, folder):
    first = Repository(tmp_path / "a", REPO).commit(folder)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    for path in copy.rglob("*"):
        os.utime(path, (1, 1))
    repository = Repository(tmp_path / "b", "other/name")
    assert repository.commit(copy, branch="dev") == first
    assert repository.commit(copy) == first
    assert repository.commit(copy, "Another message") != first
    (copy / "config.json").rename(copy / "renamed.json")
    renamed = repository.commit(copy)
    (copy / "renamed.json").write_text("{ }")
    assert len({first, renamed, repository.commit(copy)}) == 3
    assert len(first) == 40


def test_another_process_gives_the_same_sha(tmp_path, folder):
    code = (
        "import sys; from emulated_cloud.hub import Repository as R; print(R(sys.argv[1], 'a/b').commit(*sys.argv[2:]))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "other"), str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == Repository(tmp_path / "mine", REPO).commit(folder)


def test_commits_survive_later_changes_of_the_folder(tmp_path, folder):
    repository = Repository(tmp_path / "root", REPO)
    first = repository.commit(folder)
    (folder / "model.safetensors").write_bytes(b"WEIGHTS" * 1000)
    (folder / "config.json").unlink()
    second = repository.commit(folder, "Release 2")
    assert content(repository, first, "model.safetensors") == b"weights" * 1000
    assert content(repository, "main", "model.safetensors") == b"WEIGHTS" * 1000
    assert content(repository, first, "config.json") == b"{}"
    assert "config.json" not in repository.resolve(second).files
    repository.set_branch("main", first)
    assert repository.resolve("main").sha == repository.resolve("refs/heads/main").sha == first
    assert repository.resolve(second).message == "Release 2"
    shutil.rmtree(folder)
    assert content(repository, "main", "nested/empty.txt") == b""


def test_ids_are_gits_and_lfs_files_are_known_by_their_pointer(tmp_path, folder):
    repository = Repository(tmp_path / "root", REPO)
    repository.commit(folder)
    files = repository.resolve("main").files
    assert [file.path for file in files.values() if file.lfs] == ["model.safetensors"]
    assert files["config.json"].blob_id == "9e26dfeeb6e641a33dae4961196235bdb965b21b"
    assert files["nested/empty.txt"].blob_id == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
    weights = files["model.safetensors"]
    assert weights.sha256 == hashlib.sha256(b"weights" * 1000).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{weights.sha256}\nsize 7000\n".encode()
    assert weights.pointer_size == len(pointer)
    assert weights.blob_id == hashlib.sha1(b"blob %d\0" % len(pointer) + pointer).hexdigest()


def test_a_large_file_is_linked_hashed_once_and_outlives_its_name(tmp_path, folder, small_is_linked, monkeypatch):
    repository = Repository(tmp_path / "root", REPO)
    first = repository.commit(folder)
    weights = repository.resolve("main").files["model.safetensors"]
    assert repository.object_path(weights).samefile(folder / "model.safetensors")

    def hash_again(path: Path) -> None:
        raise AssertionError(f"{path} was read again")

    monkeypatch.setattr(
        module, "_digests", lambda path, *_: hash_again(path) if path.stat().st_size > 1000 else ("0", "0")
    )
    repository.commit(folder)
    monkeypatch.undo()
    monkeypatch.setattr(module, "COPY_BELOW", 1000)
    shutil.rmtree(folder)
    assert content(repository, first, "model.safetensors") == b"weights" * 1000


def test_a_copy_with_another_mtime_leaves_earlier_commits_good(tmp_path, folder, small_is_linked):
    repository = Repository(tmp_path / "root", REPO)
    first = repository.commit(folder)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, copy_function=shutil.copyfile)
    assert repository.commit(copy) == first
    assert content(repository, first, "model.safetensors") == b"weights" * 1000


def test_a_large_file_rewritten_in_place_is_told_and_not_served(tmp_path, folder, small_is_linked):
    repository = Repository(tmp_path / "root", REPO)
    first = repository.commit(folder)
    (folder / "model.safetensors").write_bytes(b"changed" * 999)
    with pytest.raises(RepositoryError, match="was deleted or rewritten after it was committed"):
        content(repository, first, "model.safetensors")
    with serving(tmp_path / "root") as hub:
        with pytest.raises(urllib.error.HTTPError, match="500") as raised:
            urllib.request.urlopen(f"{hub.url}/{REPO}/resolve/main/model.safetensors")
        assert b"rewritten after it was committed" in raised.value.read()
        raised.value.close()
    second = repository.commit(folder)
    assert content(repository, second, "model.safetensors") == b"changed" * 999


def test_across_file_systems_a_symbolic_link_does(tmp_path, folder, small_is_linked, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(module.os, "link", refuse)
    repository = Repository(tmp_path / "root", REPO)
    first = repository.commit(folder)
    assert content(repository, first, "model.safetensors") == b"weights" * 1000
    (folder / "model.safetensors").unlink()
    with pytest.raises(RepositoryError, match="was deleted or rewritten"):
        content(repository, first, "model.safetensors")


def test_a_hub_cache_is_committed_through_its_links_and_without_leftovers(tmp_path, folder):
    snapshot = tmp_path / "snapshots/abc"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to(folder / "model.safetensors")
    (snapshot / ".cache/huggingface").mkdir(parents=True)
    (snapshot / ".cache/huggingface/x.lock").write_text("")
    (snapshot / ".git").mkdir()
    (snapshot / ".git/HEAD").write_text("ref")
    (snapshot / ".gitattributes").write_text("")
    repository = Repository(tmp_path / "root", REPO)
    repository.commit(snapshot)
    assert list(repository.resolve("main").files) == [".gitattributes", "model.safetensors"]


def test_commits_of_many_processes_all_count(tmp_path, folder):
    code = (
        "import sys; from emulated_cloud.hub import Repository\n"
        "for n in range(5): Repository(sys.argv[1], 'a/b').commit(sys.argv[2], branch=f'{sys.argv[3]}-{n}')"
    )
    root = tmp_path / "root"
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(root), str(folder), str(writer)]) for writer in range(3)
    ]
    assert [process.wait(120) for process in running] == [0, 0, 0]
    assert len(Repository(root, "a/b").branches()) == 15


@pytest.mark.parametrize("repo_id", ["", "gemma", "a/b/c", "../x", "a/..", "a b/c", "a/b\n"])
def test_an_impossible_name_is_refused(tmp_path, repo_id):
    with pytest.raises(RepositoryError, match="not a repository id"):
        Repository(tmp_path, repo_id)


def test_what_cannot_be_committed_or_found(tmp_path, folder):
    repository = Repository(tmp_path / "root", REPO)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(RepositoryError, match="nothing to commit"):
        repository.commit(tmp_path / "nothing")
    with pytest.raises(RepositoryError, match="not a folder"):
        repository.commit(folder / "config.json")
    with pytest.raises(RepositoryError, match="has no commit"):
        repository.set_branch("main", "0" * 40)
    assert not repository.exists()
    repository.commit(folder)
    for revision in ("dev", "0" * 40, "../../refs", ""):
        assert repository.resolve(revision) is None


def test_an_empty_file_is_served_whole_and_has_no_range(tmp_path, folder):
    Repository(tmp_path / "root", REPO).commit(folder)
    with serving(tmp_path / "root") as hub:
        url = f"{hub.url}/{REPO}/resolve/main/nested/empty.txt"
        with urllib.request.urlopen(url) as response:
            assert (response.status, response.read()) == (200, b"")
        with pytest.raises(urllib.error.HTTPError, match="416") as raised:
            urllib.request.urlopen(urllib.request.Request(url, headers={"Range": "bytes=0-"}))
        raised.value.close()


def test_faults_and_the_log_are_asked_over_the_wire(tmp_path, folder):
    Repository(tmp_path / "root", REPO).commit(folder)
    log = tmp_path / "log.jsonl"
    with serving(tmp_path / "root", request_log=log) as hub:
        with urllib.request.urlopen(f"{hub.url}/api/models/{REPO}") as response:
            assert json.load(response)["id"] == REPO
        with urllib.request.urlopen(f"{hub.url}/_emulator/requests") as response:
            assert [entry["path"] for entry in json.load(response)] == [f"/api/models/{REPO}"]
        # The line is written when the answer has gone, by the thread that served it.
        assert wait_for(lambda: bool(log.read_text()), 120)
    assert json.loads(log.read_text())["user"] == "anonymous"
