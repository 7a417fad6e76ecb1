"""Where weights come from, if not from the hub's main address: a mirror of it, or a folder of a bucket."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from emulated_cloud import process
from emulated_cloud.hub import Repository

from components.download_weights import inspection
from components.resolve_model.step import look_up, name_release
from serving.clients import bucket_source, hub, storage
from serving.clients.wire import Wire
from serving.errors import AccessError, InconclusiveError, RequestError
from serving.settings import Settings
from serving.weights import manifest, repositories
from serving.weights.release import Release
from tests.contract.test_download_adapters import write_adapter
from tests.contract.test_download_weights import assert_whole
from tests.contract.transfer_site import MIB, TOKEN, Site, _site, folder, model, site, write_release

__all__ = ["_site", "folder", "model", "site"]

SECRET = "projects/demo-project/secrets/hf-token/versions/latest"


def resolved(settings: Settings) -> Release:
    return name_release(settings, "run-1", look_up(settings), live="")


# -- a folder of a bucket -----------------------------------------------------------------------------------


@pytest.fixture
def bucket(site: Site) -> str:
    """A bucket of the test's own."""
    name = f"tunes-{uuid.uuid4().hex[:12]}"
    storage.client().create_bucket(name)
    return name


def upload(folder: Path, uri: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            put(f"{uri}/{path.relative_to(folder)}", path.read_bytes())


def put(uri: str, data: bytes) -> None:
    storage.write_bytes(uri, data, content_type="application/octet-stream")


@pytest.fixture
def tune(site: Site, model: str, bucket: str, folder: Path) -> Settings:
    """Settings whose weights are in the folder `ko` of the bucket."""
    upload(folder, f"gs://{bucket}/ko")
    return site.settings(model, source=f"gs://{bucket}/ko")


def shard(tune: Settings) -> str:
    return f"{tune.source}/model-00002-of-00002.safetensors"


def test_a_folder_arrives_whole_and_the_hub_is_not_asked(site: Site, tune: Settings, folder: Path):
    asked = len(site.requests("hub"))
    release = resolved(tune)
    assert hub.is_commit(release.commit)
    sent = site.bring(tune, release)
    assert_whole(release.weights_uri, folder)
    known, _ = manifest.read(release.weights_uri)
    assert known is not None
    assert known.repositories == [
        manifest.Repository(role="base", model=tune.model, commit=release.commit, source=tune.source)
    ]
    assert sent == sum(file.size for file in known.files)
    assert site.bring(tune, release) == 0
    assert len(site.requests("hub")) == asked


def test_an_object_without_md5_is_verified_by_its_crc32c(site: Site, model: str, bucket: str, tmp_path: Path):
    write_release(tmp_path / "large", size=9 * MIB)
    upload(tmp_path / "large", f"gs://{bucket}/ko")
    settings = site.settings(model, source=f"gs://{bucket}/ko")
    kinds = {file.path: file.digest.partition(":")[0] for file in bucket_source.at(f"gs://{bucket}/ko", "s").files()}
    assert (kinds["model-00001-of-00002.safetensors"], kinds["config.json"]) == ("crc32c", "md5")
    release = resolved(settings)
    site.bring(settings, release)
    assert_whole(release.weights_uri, tmp_path / "large")


def test_a_commit_is_what_the_folder_holds_and_the_key_what_is_served(site: Site, tune: Settings):
    before = look_up(tune)
    assert look_up(tune) == before
    put(f"{tune.source}/README.md", b"# Other words\n")
    readme = look_up(tune)
    assert readme.commit != before.commit
    assert readme.weights_key == before.weights_key
    put(f"{tune.source}/tokenizer.json", b'{"other": 1}')
    assert look_up(tune).weights_key != before.weights_key


def test_bytes_that_break_off_and_flip_are_fetched_again(site: Site, tune: Settings, folder: Path):
    release = resolved(tune)
    download = {"method": "GET", "path": "^/download/storage/v1/.*ko%2Fmodel-.*generation=", "after_bytes": 2 * MIB}
    site.script("storage", {"action": "reset", **download}, {"action": "corrupt", **download})
    site.bring(tune, release)
    assert site.consumed("storage") == [1, 1]
    assert_whole(release.weights_uri, folder)


def test_a_folder_that_changed_since_it_was_resolved_is_not_mixed(site: Site, tune: Settings):
    release = resolved(tune)
    put(f"{tune.source}/README.md", b"# Still being written\n")
    with pytest.raises(
        InconclusiveError, match=f"{tune.source} has changed since this run began. Run again when nobody"
    ):
        site.bring(tune, release)
    assert manifest.listing(release.weights_uri) == {}


def test_an_object_that_changes_while_the_folder_is_read_is_noticed(
    site: Site, tune: Settings, monkeypatch: pytest.MonkeyPatch
):
    release = resolved(tune)
    check = inspection.check

    def then_somebody_writes(*args: Any, **options: Any) -> None:
        check(*args, **options)
        put(shard(tune), b"\0" * 6 * MIB)

    monkeypatch.setattr(inspection, "check", then_somebody_writes)
    with pytest.raises(InconclusiveError, match=f"{shard(tune)} changed while it was read. Run again when nobody"):
        site.bring(tune, release)
    assert manifest.read(release.weights_uri) == (None, 0)
    assert "model-00002-of-00002.safetensors" not in manifest.listing(release.weights_uri)


def test_a_run_that_died_between_files_moves_the_others_only(site: Site, tune: Settings, folder: Path):
    release = resolved(tune)
    site.bring(tune, release)
    storage.delete(manifest.uri(release.weights_uri))
    gone = "model-00002-of-00002.safetensors"
    storage.delete(f"{release.weights_uri}/{gone}")
    assert site.bring(tune, release) == (folder / gone).stat().st_size
    assert_whole(release.weights_uri, folder)


def test_an_object_that_nobody_noted_the_sha256_of_is_read_and_not_sent_again(site: Site, tune: Settings, folder: Path):
    """A run that dies after an object's last byte and before its own word on it."""
    release = resolved(tune)
    site.bring(tune, release)
    storage.delete(manifest.uri(release.weights_uri))
    blob = (
        storage.client()
        .bucket(tune.bucket)
        .get_blob(f"{storage.parse_uri(release.weights_uri)[1]}/model-00001-of-00002.safetensors")
    )
    blob.metadata = {**blob.metadata, "hf-sha256": None}
    blob.patch()
    assert site.bring(tune, release) == 0
    assert storage.stat(f"{release.weights_uri}/{Path(blob.name).name}").generation == blob.generation
    assert_whole(release.weights_uri, folder)


def refused(settings: Settings) -> str:
    with pytest.raises(RequestError) as error:
        look_up(settings)
    return str(error.value)


def test_a_bucket_that_is_not_there(site: Site, model: str):
    said = refused(site.settings(model, source="gs://no-such-bucket/ko"))
    assert said == (
        "gs://no-such-bucket does not exist. `gcloud storage buckets list` shows those that do; correct `source`"
    )


def test_a_folder_that_is_not_there_or_empty(site: Site, model: str, bucket: str):
    settings = site.settings(model, source=f"gs://{bucket}/ko")
    missing = refused(settings)
    assert f"gs://{bucket}/ko does not exist, or is empty. `gcloud storage ls gs://{bucket}/` shows" in missing
    put(f"gs://{bucket}/ko/", b"")
    put(f"gs://{bucket}/kok/config.json", b"{}")
    assert refused(settings) == missing


def test_a_folder_that_is_no_model(site: Site, model: str, bucket: str):
    put(f"gs://{bucket}/ko/model.safetensors", b"x")
    said = refused(site.settings(model, source=f"gs://{bucket}/ko"))
    assert f"gs://{bucket}/ko has no config.json" in said
    assert f"`gcloud storage ls gs://{bucket}/ko/` shows what is there" in said


def test_a_folder_packed_in_gzip(site: Site, tune: Settings):
    blob = storage.client().bucket(storage.parse_uri(tune.source)[0]).blob("ko/config.json")
    blob.content_encoding = "gzip"
    blob.upload_from_string(b"\x1f\x8b", content_type="application/json")
    assert f"{tune.source}/config.json is stored in gzip" in refused(tune)


FORBIDDEN = {
    "action": "status",
    "status": 403,
    "body": json.dumps({"error": {"code": 403, "message": "does not have storage.objects.list access"}}),
    "method": "GET",
}


def test_a_folder_that_may_not_be_listed(site: Site, tune: Settings):
    bucket = storage.parse_uri(tune.source)[0]
    site.script("storage", {**FORBIDDEN, "path": f"/b/{bucket}/o"})
    with pytest.raises(AccessError, match=r"storage\.objects\.list") as error:
        look_up(tune)
    assert site.consumed("storage") == [1]
    assert f"gcloud storage buckets add-iam-policy-binding gs://{bucket} --member=" in str(error.value)
    assert "roles/storage.objectViewer" in str(error.value)


def test_objects_that_may_not_be_read(site: Site, tune: Settings):
    site.script("storage", {**FORBIDDEN, "path": "^/download/.*config.json"})
    with pytest.raises(AccessError, match=r"config.json may not be read \(GCS answered 403\). Grant .*objectViewer"):
        look_up(tune)
    assert site.consumed("storage") == [1]


def test_names_that_need_quoting_are_read(site: Site, model: str, bucket: str):
    put(f"gs://{bucket}/a b/100% é?#.json", b'{"a": 1}')
    source = bucket_source.at(f"gs://{bucket}/a b", "source")
    (file,) = source.files()
    wire = Wire()
    assert source.content(wire, file) == b'{"a": 1}'
    wire.close()


def test_an_adapter_from_a_folder_beside_a_model_from_the_hub(site: Site, model: str, folder: Path, bucket: str):
    base = site.commit(model, folder)
    write_adapter(folder.parent / "lora")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        put(f"gs://{bucket}/lora/{name}", (folder.parent / "lora" / name).read_bytes())
    settings = site.settings(model, adapters={"ko": {"model": "me/ko", "source": f"gs://{bucket}/lora"}})
    release = resolved(settings)
    assert (release.commit, release.max_lora_rank) == (base, 8)
    site.bring(settings, release)
    known, _ = manifest.read(release.weights_uri)
    assert known is not None
    assert [(each.role, each.source) for each in known.repositories] == [("base", None), ("ko", f"gs://{bucket}/lora")]
    assert {"adapters/ko/adapter_config.json", "adapters/ko/adapter_model.safetensors"} <= {f.path for f in known.files}


# -- a mirror -----------------------------------------------------------------------------------------------


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[process.Process]:
    """Another hub than HF_ENDPOINT's, which asks for a token."""
    (tmp_path / "tokens.json").write_text(json.dumps({TOKEN: {"user": "ada", "granted": ["test/mirrored"]}}))
    arguments = ("--root", str(tmp_path / "mirror"), "--tokens", str(tmp_path / "tokens.json"))
    running = process.start("emulated_cloud.hub", *arguments, "--gated", "test/mirrored", log=tmp_path / "mirror.log")
    try:
        yield running
    finally:
        running.stop()


def test_a_mirror_is_asked_instead_and_alone_gets_the_token(
    site: Site, mirror: process.Process, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    Repository(tmp_path / "mirror", "test/mirrored").commit(folder, "Upload folder")
    monkeypatch.setattr("serving.clients.google.secret", lambda name: TOKEN)
    settings = site.settings("test/mirrored", hub={"token_secret": SECRET, "endpoint": mirror.url})
    asked = len(site.requests("hub"))
    release = resolved(settings)
    site.bring(settings, release)
    assert_whole(release.weights_uri, folder)
    assert len(site.requests("hub")) == asked
    log = requests.get(f"{mirror.url}/_emulator/requests", timeout=60).json()
    # The mirror's CDN is another host than the mirror.
    told = {(entry["path"].startswith("/cdn/"), entry["user"]) for entry in log}
    assert told == {(False, "ada"), (True, "anonymous")}


@contextmanager
def answering(answers: dict[str, tuple[dict[str, str], Any]]) -> Iterator[tuple[str, list[str | None]]]:
    """A server of a few answers by path, and the Authorization headers that it saw."""
    seen: list[str | None] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers["Authorization"])
            headers, body = answers.get(self.path.partition("?")[0], ({}, []))
            data = json.dumps(body).encode()
            self.send_response(200)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()


def entry(path: str) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": 3, "oid": hashlib.sha1(path.encode()).hexdigest()}


def test_a_listing_of_several_pages_is_followed_on_the_same_hub(site: Site):
    answers: dict[str, tuple[dict[str, str], Any]] = {"/more": ({}, [entry("b.json"), {"type": "directory"}])}
    with answering(answers) as (url, seen):
        answers[f"/api/models/a/b/tree/{'c' * 40}"] = (
            {"Link": f'<{url}/more?cursor=x>; rel="next"'},
            [entry("a.json")],
        )
        assert [file.path for file in hub.Hub(TOKEN, endpoint=url).tree("a/b", "c" * 40)] == ["a.json", "b.json"]
    assert seen == [f"Bearer {TOKEN}"] * 2


def test_a_listing_that_goes_on_elsewhere_does_not_take_the_token_there(site: Site):
    """As of a mirror that passes the hub's own Link headers on."""
    with answering({}) as (elsewhere, seen_there):
        page = {f"/api/models/a/b/tree/{'c' * 40}": ({"Link": f'<{elsewhere}/more>; rel="next"'}, [entry("a.json")])}
        with answering(page) as (url, _), pytest.raises(RequestError, match=r"the rest of its listing is on 127\."):
            hub.Hub(TOKEN, endpoint=url).tree("a/b", "c" * 40)
    assert seen_there == []


def test_the_token_is_not_read_when_nothing_comes_from_the_hub(
    site: Site, tune: Settings, monkeypatch: pytest.MonkeyPatch
):
    def never(name: str) -> str:
        raise AssertionError(name)

    monkeypatch.setattr("serving.clients.google.secret", never)
    settings = tune.model_copy(update={"hub": tune.hub.model_copy(update={"token_secret": SECRET})})
    (part,) = repositories.find(settings)
    assert part.source.name == tune.source
