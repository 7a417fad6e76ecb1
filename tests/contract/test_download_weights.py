"""The transfer hub → bucket with the real clients: what arrives, what is left out, what a second run does."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path

import pytest

from components.download_weights.verification import verify
from serving import names
from serving.clients import storage
from serving.errors import AccessError, InconclusiveError, ReleaseError, RequestError
from serving.settings import Settings
from serving.weights import manifest
from serving.weights.release import Release
from tests.contract.transfer_site import (
    GATED,
    MIB,
    SERVED,
    SHARD,
    TOKEN,
    Site,
    _site,
    content,
    folder,
    model,
    site,
    write_release,
    write_shard,
)

__all__ = ["_site", "folder", "model", "site"]

SHARDS = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}


def assert_whole(weights_uri: str, folder: Path, shards: set[str] = SHARDS) -> None:
    """Every object byte for byte, its metadata and the manifest."""
    there = manifest.listing(weights_uri)
    assert set(there) == SERVED | shards
    known, _ = manifest.read(weights_uri)
    assert known is not None
    by_path = {file.path: file for file in known.files}
    assert set(by_path) == set(there)
    for path, stored in there.items():
        expected = (folder / path).read_bytes()
        assert content(stored.uri) == expected, path
        sha256 = hashlib.sha256(expected).hexdigest()
        assert stored.metadata["hf-sha256"] == by_path[path].sha256 == sha256
        assert (stored.size, stored.crc32c, stored.generation) == (
            by_path[path].size,
            by_path[path].crc32c,
            by_path[path].generation,
        )
    assert verify(weights_uri).differences == []


def test_what_is_served_arrives_whole_and_the_rest_stays_behind(site: Site, model: str, folder: Path):
    commit = site.commit(model, folder)
    settings = site.settings(model)
    release = site.release(settings)
    sent = site.bring(settings, release)
    assert_whole(release.weights_uri, folder)
    assert sent == sum((folder / path).stat().st_size for path in SERVED | SHARDS)
    known, _ = manifest.read(release.weights_uri)
    assert known is not None
    assert known.repositories == [manifest.Repository(role="base", model=model, commit=commit)]
    assert storage.read_json(names.weights_in_use(settings)) == {"weights_keys": [release.weights_key]}
    assert storage.list_uris(f"{settings.pipeline_root}/transfers/{settings.cluster}/gemma/{settings.name}/") == []


def test_a_second_run_moves_nothing_writes_nothing_and_does_not_ask_the_hub(site: Site, model: str, folder: Path):
    site.commit(model, folder)
    settings = site.settings(model)
    release = site.release(settings)
    site.bring(settings, release)
    asked = {emulator: len(site.requests(emulator)) for emulator in ("hub", "storage")}
    assert site.bring(settings, release) == 0
    assert len(site.requests("hub")) == asked["hub"]
    assert {entry["method"] for entry in site.requests("storage")[asked["storage"] :]} == {"GET"}


def test_weights_in_use_is_named_before_the_first_byte_and_keeps_other_keys(site: Site, model: str, folder: Path):
    site.commit(model, folder)
    settings = site.settings(model)
    release = site.release(settings)
    storage.write_json(names.weights_in_use(settings), {"weights_keys": ["f" * 16]})
    before = len(site.requests("storage"))
    site.bring(settings, release)
    assert storage.read_json(names.weights_in_use(settings)) == {
        "weights_keys": sorted(["f" * 16, release.weights_key])
    }
    writes = [e["path"] for e in site.requests("storage")[before:] if e["method"] in ("POST", "PUT")]
    assert writes
    assert "uploadType=multipart" in writes[0]  # The document; shards go by resumable sessions.
    first = next(e for e in site.requests("storage")[before:] if "models%2F" in e["path"] and e["method"] == "GET")
    named = next(e for e in site.requests("storage")[before:] if e["method"] == "POST")
    assert named["time"] <= first["time"]


def test_a_readme_makes_no_new_weights_and_a_licence_none_either(site: Site, model: str, folder: Path):
    site.commit(model, folder)
    settings = site.settings(model)
    before = site.release(settings)
    (folder / "README.md").write_text("# Other words\n")
    (folder / "LICENSE").write_text("other terms")
    site.commit(model, folder)
    after = site.release(settings)
    assert after.commit != before.commit
    assert after.weights_key == before.weights_key


def test_a_branch_that_moves_during_the_run_does_not_matter(site: Site, model: str, folder: Path, tmp_path: Path):
    site.commit(model, folder)
    settings = site.settings(model)
    release = site.release(settings)
    write_release(tmp_path / "next", seed=2)
    site.commit(model, tmp_path / "next")
    site.bring(settings, release)
    assert_whole(release.weights_uri, folder)


def test_a_run_that_died_between_files_moves_the_others_only(site: Site, model: str, folder: Path):
    site.commit(model, folder)
    settings = site.settings(model)
    release = site.release(settings)
    site.bring(settings, release)
    storage.delete(manifest.uri(release.weights_uri))
    gone = f"{release.weights_uri}/model-00002-of-00002.safetensors"
    storage.delete(gone)
    assert site.bring(settings, release) == (folder / "model-00002-of-00002.safetensors").stat().st_size
    assert_whole(release.weights_uri, folder)


def test_damage_is_named_and_repaired(site: Site, model: str, folder: Path):
    site.commit(model, folder)
    settings = site.settings(model)
    release = site.release(settings)
    site.bring(settings, release)
    shard = f"{release.weights_uri}/model-00001-of-00002.safetensors"
    size = (folder / "model-00001-of-00002.safetensors").stat().st_size
    metadata = {"hf-sha256": hashlib.sha256((folder / "model-00001-of-00002.safetensors").read_bytes()).hexdigest()}
    storage.write_bytes(shard, bytes(size), content_type="application/octet-stream", metadata=metadata)
    storage.delete(f"{release.weights_uri}/config.json")
    storage.write_bytes(f"{release.weights_uri}/consolidated.safetensors", b"stray", content_type="text/plain")
    found = verify(release.weights_uri + "/").differences
    assert len(found) == 3
    assert "config.json is missing" in found
    assert any("model-00001-of-00002.safetensors has other content" in line for line in found)
    assert "consolidated.safetensors is not in the manifest" in found

    storage.delete(f"{release.weights_uri}/consolidated.safetensors")
    assert site.bring(settings, release) == size + (folder / "config.json").stat().st_size
    assert_whole(release.weights_uri, folder)
    assert any("has other content" in line for line in site.lines)


def test_verify_without_a_manifest_says_so(site: Site, model: str):
    with pytest.raises(RequestError, match="no complete weights"):
        verify(f"gs://demo-bucket/models/{model}/0123456789abcdef")


def test_an_object_of_other_content_in_a_shards_place_gives_way(site: Site, model: str, folder: Path):
    site.commit(model, folder)
    settings = site.settings(model)
    release = site.release(settings)
    for path in ("model-00001-of-00002.safetensors", "config.json"):
        storage.write_bytes(f"{release.weights_uri}/{path}", b"{}", content_type="application/json")
    site.bring(settings, release)
    assert_whole(release.weights_uri, folder)


@pytest.mark.parametrize("same_deployment", [True, False])
def test_two_runs_at_once_make_one_set_of_objects(site: Site, model: str, folder: Path, same_deployment: bool):
    site.commit(model, folder)
    first = site.settings(model)
    second = first if same_deployment else site.settings(model, name="other" + first.name[:8])
    release = site.release(first)
    # The first is held in the middle of a shard until the second has gone by.
    site.script(
        "storage", {"action": "stall", "method": "PUT", "path": "upload_id", "after_bytes": 2 << 20, "seconds": 2}
    )
    errors: list[BaseException] = []

    def run(settings: object, stall_seconds: float) -> None:
        from components.download_weights.transfer import Limits

        try:
            site.bring(settings, release, Limits(threads=4, stall_seconds=stall_seconds, attempts=6))  # type: ignore[arg-type]
        except BaseException as error:  # noqa: BLE001 (a thread's errors are the test's)
            errors.append(error)

    threads = [threading.Thread(target=run, args=(settings, 5)) for settings in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert site.consumed("storage") == [1]
    assert_whole(release.weights_uri, folder)


# -- manifests that are there -------------------------------------------------------------------------------


def put_manifest_in_the_way(site: Site, uri: str, change: int) -> None:
    """When ours is written, another run's is there: the truth, with `change` added to a generation."""
    prefix = uri.rpartition("/")[0]
    real = manifest.write

    def slower(weights_uri: str, made: manifest.Manifest) -> None:
        files = [file.model_copy(update={"generation": file.generation + change}) for file in made.files]
        storage.write_json(f"{prefix}/{manifest.NAME}", made.model_copy(update={"files": files}).model_dump())
        real(weights_uri, made)

    manifest.write = slower  # type: ignore[assignment]


@pytest.mark.parametrize("change", [0, 1])
def test_another_runs_manifest_is_success_when_it_is_true(
    site: Site, model: str, folder: Path, change: int, monkeypatch: pytest.MonkeyPatch
):
    site.commit(model, folder)
    settings = site.settings(model)
    release = site.release(settings)
    monkeypatch.setattr(manifest, "write", manifest.write)
    put_manifest_in_the_way(site, manifest.uri(release.weights_uri), change)
    if change:
        with pytest.raises(InconclusiveError, match="was written again"):
            site.bring(settings, release)
    else:
        site.bring(settings, release)
        assert_whole(release.weights_uri, folder)


# -- releases that are no whole model -----------------------------------------------------------------------


def cut_a_shard(folder: Path) -> None:
    shard = folder / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])


def cut_a_header(folder: Path) -> None:
    shard = folder / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:20])


def empty_a_shard(folder: Path) -> None:
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"")


def lose_a_shard(folder: Path) -> None:
    (folder / "model-00002-of-00002.safetensors").unlink()


def lose_a_tensor(folder: Path) -> None:
    write_shard(folder / "model-00002-of-00002.safetensors", "another", SHARD, 5)


def break_the_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("{")


def lose_a_numbered_shard(folder: Path) -> None:
    (folder / "model.safetensors.index.json").unlink()
    (folder / "consolidated.safetensors").unlink()
    (folder / "model-00001-of-00002.safetensors").unlink()


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (cut_a_shard, "model-00002-of-00002.safetensors is cut short"),
        (cut_a_header, "model-00002-of-00002.safetensors is cut short"),
        (empty_a_shard, "model-00002-of-00002.safetensors is cut short"),
        (lose_a_shard, "model-00002-of-00002.safetensors missing: model.safetensors.index.json"),
        (lose_a_tensor, "tensor tensor.2 missing"),
        (break_the_index, "model.safetensors.index.json is not JSON"),
        (lose_a_numbered_shard, "model-00001-of-00002.safetensors missing: the numbering"),
    ],
)
def test_a_broken_release_ends_before_a_shard_has_moved(site: Site, model: str, folder: Path, break_it, words: str):
    break_it(folder)
    if break_it is break_the_index:
        (folder / "consolidated.safetensors").unlink()
    site.commit(model, folder)
    settings = site.settings(model)
    release = site.release(settings)
    with pytest.raises(ReleaseError, match=words):
        site.bring(settings, release)
    assert manifest.listing(release.weights_uri) == {}


# -- refusals -----------------------------------------------------------------------------------------------


def test_a_missing_bucket_is_named_with_the_command_that_makes_it(site: Site, model: str, folder: Path):
    site.commit(model, folder)
    settings = site.settings(model, bucket="no-such-bucket")
    with pytest.raises(RequestError, match=r"gs://no-such-bucket does not exist.*gcloud storage buckets create"):
        site.bring(settings, site.release(settings))


def test_a_forbidden_bucket_names_the_role(site: Site, model: str, folder: Path):
    site.commit(model, folder)
    settings = site.settings(model)
    release = site.release(settings)
    body = json.dumps({"error": {"code": 403, "message": "caller lacks storage.objects.create"}})
    fault = {
        "action": "status",
        "status": 403,
        "body": body,
        "method": "POST",
        "path": "uploadType=resumable",
        "times": 9,
    }
    site.script("storage", fault)
    with pytest.raises(AccessError, match=r"lacks storage.objects.create.*roles/storage.objectUser"):
        site.bring(settings, release)
    assert site.consumed("storage")[0] >= 1


def test_the_token_stays_with_the_hub(site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch):
    """The emulated CDN refuses whoever brings an Authorization header, and the gated hub whoever brings none."""
    site.commit(GATED, folder)
    secret = "projects/demo-project/secrets/hf-token/versions/latest"
    monkeypatch.setattr("serving.clients.google.secret", lambda name: TOKEN)
    settings = site.settings(GATED, hub={"token_secret": secret})
    release = site.release(settings, token=TOKEN)
    site.bring(settings, release)
    assert_whole(release.weights_uri, folder)
    cdn = [entry for entry in site.requests("hub") if entry["path"].startswith(f"/cdn/{GATED}")]
    assert cdn
    assert {entry["user"] for entry in cdn} == {"anonymous"}
    resolved = [entry for entry in site.requests("hub") if f"/{GATED}/resolve/" in entry["path"]]
    assert {entry["user"] for entry in resolved} == {"ada"}


def bring(site: Site, model: str, folder: Path) -> tuple[Settings, Release]:
    """A release, brought whole."""
    settings = site.settings(model)
    site.commit(model, folder)
    release = site.release(settings)
    site.bring(settings, release)
    return settings, release


def change_one_shard(site: Site, model: str, folder: Path) -> None:
    write_shard(folder / "model-00002-of-00002.safetensors", "tensor.2", SHARD, seed=9)
    site.commit(model, folder)


def copies_asked(site: Site) -> list[str]:
    return [entry["path"] for entry in site.requests("storage") if "/rewriteTo/" in entry["path"]]


def test_what_the_bucket_has_in_other_weights_of_the_model_is_copied_there_and_not_moved(site, model, folder):
    settings, _ = bring(site, model, folder)
    change_one_shard(site, model, folder)
    release, asked = site.release(settings), len(site.requests("hub"))

    sent = site.bring(settings, release)

    assert SHARD < sent < SHARD + MIB
    assert_whole(release.weights_uri, folder)
    assert "1 files (6.3 MB) are in the bucket already, in other weights of this model: copied" in site.lines
    whole = [entry for entry in site.requests("hub")[asked:] if entry["bytes_out"] > MIB]
    assert len(whole) == 1, "the new shard alone came from the hub"
    assert verify(release.weights_uri).differences == []


@pytest.mark.parametrize("damage", ["rewritten", "without a manifest"])
def test_weights_that_are_not_what_their_manifest_says_are_no_source_of_copies(site, model, folder, damage):
    settings, before = bring(site, model, folder)
    shard = f"{before.weights_uri}/model-00001-of-00002.safetensors"
    if damage == "rewritten":
        sha256 = hashlib.sha256((folder / "model-00001-of-00002.safetensors").read_bytes()).hexdigest()
        size = (folder / "model-00001-of-00002.safetensors").stat().st_size
        storage.write_bytes(shard, b"x" * size, content_type="x/y", metadata={"hf-sha256": sha256})
    else:
        storage.delete(manifest.uri(before.weights_uri))
    change_one_shard(site, model, folder)
    release, asked = site.release(settings), len(copies_asked(site))

    assert site.bring(settings, release) > 2 * SHARD

    assert len(copies_asked(site)) == asked
    assert_whole(release.weights_uri, folder)


def test_a_copy_that_cannot_be_made_is_moved(site, model, folder):
    settings, _ = bring(site, model, folder)
    change_one_shard(site, model, folder)
    release = site.release(settings)
    # The weights it would come from are collected at this very moment.
    site.script("storage", {"action": "status", "method": "POST", "path": ".*/rewriteTo/.*", "status": 404})

    assert site.bring(settings, release) > 2 * SHARD

    assert site.consumed("storage") == [1]
    assert_whole(release.weights_uri, folder)
