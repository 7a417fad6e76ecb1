"""What goes wrong while a disk is made: one clear word, nothing left behind, and the next run makes it whole."""

from __future__ import annotations

import base64
import datetime
import gzip
import hashlib
import json
import os
import re
import signal
import subprocess
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from . import images
from .archive import Blob, Layer, blob, compress
from .disk import MIB, Disk
from .registry import Image, Registry


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with Disk(tmp_path, mib=256) as made:
        yield made


def small(*more: Blob) -> list[Blob]:
    return [Layer().folder("etc").file("etc/passwd", b"root").blob(), *more]


def failed(said: str) -> str:
    """Why it failed."""
    last = said.splitlines()[-1]
    assert last.startswith("GP-BAKE failed "), said
    return last.removeprefix("GP-BAKE failed ")


def whole(disk: Disk, said: str, layers: int) -> None:
    assert said.splitlines()[-1].startswith("GP-BAKE done "), said
    disk.check()
    with disk.mounted() as root:
        assert len((root / "snapshots.metadata").read_text().splitlines()) == layers
        assert (root / "snapshots/1/fs/etc/passwd").read_bytes() == b"root"
        assert sorted(path.name for path in root.iterdir()) == [
            "images.metadata", "lost+found", "snapshots", "snapshots.metadata",
        ]  # fmt: skip


def test_a_second_run_makes_the_same_disk(registry: Registry, disk: Disk) -> None:
    image = registry.push("again/same", small())
    first = disk.bake(image.wanted())
    with disk.mounted() as root:
        table = (root / "snapshots.metadata").read_bytes()
    second = disk.bake(image.wanted())
    assert first.splitlines()[-1] == second.splitlines()[-1]
    whole(disk, second, 1)
    with disk.mounted() as root:
        assert (root / "snapshots.metadata").read_bytes() == table


def test_without_checksums_there_are_two_columns(registry: Registry, disk: Disk) -> None:
    whole(disk, disk.bake(registry.push("two/columns", small()).wanted(), checksums=False), 1)
    with disk.mounted() as root:
        assert re.fullmatch(r"sha256:[0-9a-f]{64} snapshots/1/fs\n", (root / "snapshots.metadata").read_text())


# -- the registry -------------------------------------------------------------------------------------------


class TokenService(ThreadingHTTPServer):
    """Who signs tokens for a registry: for anybody by its address, and for the VM by `token`."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tokens")])
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder(name, name, self.key.public_key(), x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .sign(self.key, hashes.SHA256())
        )
        self.bundle = folder / "tokens.pem"
        self.bundle.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        der = certificate.public_bytes(serialization.Encoding.DER)
        self.chain = [base64.b64encode(der).decode()]
        self.given: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                (scope,) = parse_qs(urlsplit(self.path).query)["scope"]
                outer.given.append(scope)
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps({"token": outer.token(scope.split(":")[1])}).encode())

            def log_message(self, *_: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)

    def token(self, repository: str) -> str:
        now = int(time.time())
        access = [{"type": "repository", "name": repository, "actions": ["pull"]}]
        claims = {"iss": "tokens", "aud": "registry", "iat": now, "nbf": now - 60, "exp": now + 600, "access": access}
        return jwt.encode(claims, self.key, algorithm="ES256", headers={"x5c": self.chain})

    def auth(self) -> dict[str, Any]:
        realm = f"http://127.0.0.1:{self.server_address[1]}/token"
        said = {"realm": realm, "service": "registry", "issuer": "tokens", "rootcertbundle": str(self.bundle)}
        return {"token": said}


@pytest.fixture
def guarded(registry: Registry, tmp_path: Path) -> Iterator[tuple[Registry, TokenService]]:
    """A registry that wants tokens, of the same images."""
    service = TokenService(tmp_path)
    threading.Thread(target=service.serve_forever, daemon=True).start()
    (tmp_path / "guarded").mkdir()
    with Registry(tmp_path / "guarded", auth=service.auth(), storage=registry.storage) as started:
        yield started, service
    service.shutdown()
    service.server_close()


def test_a_registry_gives_anybody_a_token(
    registry: Registry, guarded: tuple[Registry, TokenService], disk: Disk
) -> None:
    image = registry.push("token/anonymous", small(Layer().file("a").blob("zstd")))
    where, service = guarded
    whole(disk, disk.bake(image.wanted(registry=f"http://{where.host}")), 2)
    # The manifest, the configuration, and each layer by a token of its own.
    assert service.given == ["repository:token/anonymous:pull"] * 4


def test_the_vms_own_token_opens_googles_registry(
    registry: Registry, guarded: tuple[Registry, TokenService], disk: Disk
) -> None:
    image = registry.push("token/google", small())
    where, service = guarded
    wanted = image.wanted(registry=f"http://{where.host}", auth="google")
    whole(disk, disk.bake(wanted, token=service.token("token/google")), 1)
    assert service.given == []
    said = disk.bake(wanted, token=service.token("another/repository"))
    assert "answered 401" in failed(said)
    assert "roles/artifactregistry.reader" in failed(said)
    assert service.token("another/repository")[:30] not in said


def test_what_is_not_there_is_named(registry: Registry, disk: Disk) -> None:
    image = registry.push("not/there", small())
    said = failed(disk.bake(image.wanted(digest=f"sha256:{'0' * 64}")))
    assert f"answered 404 Not Found for not/there, manifests/sha256:{'0' * 64}" in said


def test_an_index_is_not_one_image(registry: Registry, disk: Disk) -> None:
    media_type = "application/vnd.oci.image.index.v1+json"
    image = registry.push("an/index", small())
    content = json.dumps({
        "schemaVersion": 2, "mediaType": media_type,
        "manifests": [{"digest": image.digest, "size": 1, "mediaType": media_type}],
    }).encode()  # fmt: skip
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    url = f"/v2/an/index/manifests/{digest}"
    registry.client.put(url, content=content, headers={"Content-Type": media_type}).raise_for_status()
    assert "the digest of one platform's manifest is needed" in failed(disk.bake(image.wanted(digest=digest)))


def test_a_registry_that_is_away_is_tried_again(registry: Registry, disk: Disk) -> None:
    image = registry.push("is/away", small())
    said = failed(disk.bake(image.wanted(registry="http://127.0.0.1:9")))
    assert "Connection refused" in said
    assert "2 times. Does the VM's network lead there?" in said


# -- bytes that are not what they should be -----------------------------------------------------------------


def noise(count: int = 3 * MIB) -> Layer:
    return Layer().file("noise", images.random.Random(1).randbytes(count))


def spoiled(registry: Registry, image: Image, change: Callable[[bytes], bytes]) -> Callable[[], None]:
    """Changes the last layer where the registry keeps it; returns what puts it right."""
    path = registry.file(image.layers[-1].digest)
    right = path.read_bytes()
    path.write_bytes(change(right))
    return lambda: (path.write_bytes(right), None)[1]


@pytest.mark.parametrize("compression", ["gzip", "zstd", "plain"])
@pytest.mark.parametrize("where", [0.02, 0.5, 0.9999])
def test_a_corrupt_blob_is_told_by_its_digest(registry: Registry, disk: Disk, compression: str, where: float) -> None:
    image = registry.push("is/corrupt", small(noise().blob(compression)))

    def flip(data: bytes) -> bytes:
        at = int(len(data) * where)
        return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]

    restore = spoiled(registry, image, flip)
    try:
        said = failed(disk.bake(image.wanted()))
    finally:
        restore()
    assert re.search(rf"layer 2 .*is/corrupt@{image.layers[1].digest}\): the digest of what came is sha256:", said)


def test_a_cut_blob_is_told_by_its_length(registry: Registry, disk: Disk) -> None:
    image = registry.push("is/cut", small(noise().blob()))
    restore = spoiled(registry, image, lambda data: data[: len(data) // 2])
    try:
        said = failed(disk.bake(image.wanted()))
    finally:
        restore()
    size = len(image.layers[1].content)
    assert f"has {size // 2} bytes, not {size}" in said
    whole(disk, disk.bake(image.wanted()), 2)


def test_a_wrong_diff_id_is_told(registry: Registry, disk: Disk) -> None:
    right = noise().blob()
    wrong = Blob(right.content, f"sha256:{'1' * 64}", right.media_type)
    said = failed(disk.bake(registry.push("wrong/diff", small(wrong)).wanted()))
    assert f"its diffID is {wrong.diff_id}, but what came out is {right.diff_id}" in said


WRONG: dict[str, tuple[Callable[[bytes], Blob], str]] = {
    "a gzip that ends in the middle": (
        lambda data: Blob(compress(data)[:-2000], blob(data).diff_id, "x+gzip"),
        "(its gzip ends in the middle|its archive ends in 'noise')",
    ),
    "a gzip without its sum": (
        lambda data: Blob(gzip.compress(data)[:-4], blob(data).diff_id, "x+gzip"), "its gzip ends in the middle",
    ),
    "a gzip with a tail": (
        lambda data: Blob(compress(data) + b"tail", blob(data).diff_id, "x+gzip"), "it is not gzip",
    ),
    "a zstd that ends in the middle": (
        lambda data: Blob(blob(data, "zstd").content[:-2000], blob(data).diff_id, "x+zstd"),
        "(zstd: .*premature|its archive ends in 'noise')",
    ),
    "an archive that ends in the middle": (lambda data: blob(data[: len(data) // 2]), "its archive ends in 'noise'"),
    "an archive with a damaged header": (
        lambda data: blob(Layer().file("a").archive()[:512] + b"\x01" * 512 + data), "its archive is damaged at byte",
    ),
    "no archive": (lambda data: blob(b"x" * 5000), "its archive is cut or damaged at byte 512"),
    "a header of a gigabyte": (
        lambda data: blob(Layer().entry("x", b"x", size=1 << 30).archive()), "a header of 1073741824 bytes",
    ),
    "a type that nobody knows": (lambda data: blob(Layer().entry("x", b"V").archive()), "an entry of type b'V'"),
    "a hard link to nothing": (lambda data: blob(Layer().link("x", "not/there").archive()), "'x': No such file"),
    "a whiteout of what the layer has": (
        lambda data: blob(Layer().file("x").whiteout("x").archive()), "'.wh.x': File exists",
    ),
    "a file under a file": (lambda data: blob(Layer().file("x").file("x/y").archive()), "'x/y': File exists"),
    "a negative size": (
        lambda data: blob(Layer().entry("x", b"0", size=-4096).file("y").archive()), "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", list(WRONG))
def test_a_layer_that_is_no_layer_is_refused(registry: Registry, disk: Disk, what: str) -> None:
    make, words = WRONG[what]
    said = failed(disk.bake(registry.push("no/layer", small(make(noise().archive()))).wanted()))
    assert said.startswith("layer 2 (no/layer@sha256:")
    assert re.search(words, said), said
    assert "Traceback" not in said


# -- bombs --------------------------------------------------------------------------------------------------


def zeros(count: int) -> Blob:
    """A layer of one file of so many zeros, which is a thousandth as large."""
    archive = Layer().entry("zeros", b"0", size=count).archive()[:512]
    stream = zlib.compressobj(9, wbits=31)
    digest, parts = hashlib.sha256(archive), [stream.compress(archive)]
    for _ in range(count // MIB):
        digest.update(bytes(MIB))
        parts.append(stream.compress(bytes(MIB)))
    end = bytes(1024)
    digest.update(end)
    parts += [stream.compress(end), stream.flush()]
    return Blob(b"".join(parts), f"sha256:{digest.hexdigest()}", "application/vnd.oci.image.layer.v1.tar+gzip")


def test_a_full_disk_is_named_with_what_it_would_take(registry: Registry, tmp_path: Path) -> None:
    image = registry.push("too/large", small(zeros(300 * MIB)))
    with Disk(tmp_path, mib=200) as disk:
        said = failed(disk.bake(image.wanted()))
    assert re.search(r"layer 2 .*the disk is full: it holds 1\d\d.\d MB", said), said
    assert re.search(r"about \d+\.\d (MB|GB) are needed: set disk_size_gb", said), said


def test_a_disk_without_inodes_is_named(registry: Registry, tmp_path: Path) -> None:
    layer = Layer()
    for number in range(5000):
        layer.file(f"f{number}")
    image = registry.push("too/many", small(layer.blob()))
    with Disk(tmp_path, mib=16) as disk:
        said = failed(disk.bake(image.wanted()))
    assert re.search(r"the disk is full: all its \d+ inodes are taken", said), said


# -- hostile layers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", list(images.HOSTILE))
def test_a_hostile_layer_stays_in_its_folder(registry: Registry, disk: Disk, tmp_path: Path, how: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    victim = outside / "victim"
    victim.write_bytes(b"untouched")
    before = [(path.stat(), os.listxattr(path), sorted(path.parent.iterdir())) for path in (victim, outside)]
    path = str(outside).lstrip("/")
    # Upon another layer, too: what is below is looked at in its own folder.
    layers = small(images.HOSTILE[how](Layer(), path).blob(), images.HOSTILE[how](Layer(), path).blob())
    said = disk.bake(registry.push("is/hostile", layers).wanted())
    after = [(path.stat(), os.listxattr(path), sorted(path.parent.iterdir())) for path in (victim, outside)]
    assert after == before, said
    assert victim.read_bytes() == b"untouched"
    if "GP-BAKE done" in said:
        whole(disk, said, 3)
    else:
        assert failed(said).startswith("layer ")
        assert "Traceback" not in said


def test_a_device_of_the_disk_itself_is_a_name_and_no_more(registry: Registry, disk: Disk) -> None:
    about = os.stat(disk.device).st_rdev
    numbers = {"devmajor": os.major(about), "devminor": os.minor(about)}
    layer = Layer().entry("disk", b"4", mode=0o666, **numbers).file("through", b"").link("also", "disk")
    layers = small(layer.file("also", b"x" * 5000).blob())
    whole(disk, disk.bake(registry.push("has/device", layers).wanted()), 2)
    with disk.mounted() as root:
        assert (root / "snapshots/2/fs/also").read_bytes() == b"x" * 5000
        assert (root / "snapshots/2/fs/disk").is_block_device()


# -- ended in the middle ------------------------------------------------------------------------------------


@contextmanager
def stalling(registry: Registry, after: int) -> Iterator[tuple[str, threading.Event]]:
    """The registry, by an address that stops in a blob after so many bytes until it is told to go on."""
    reached, go_on = threading.Event(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = registry.client.get(self.path, headers={"Accept": self.headers["Accept"]})
            self.send_response(answer.status_code)
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content[:after])
            if len(answer.content) > after:
                reached.set()
                go_on.wait(60)
            try:
                self.wfile.write(answer.content[after:])
            except OSError:
                pass

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", reached
    finally:
        go_on.set()
        server.shutdown()
        server.server_close()


def processes_of(disk: Disk) -> list[int]:
    """Who has the disk open or mounted, in any namespace."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if f"{disk.device} " in (folder / "mounts").read_text():
                    found.append(int(folder.name))
            except OSError:
                continue
    return found


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_ended_in_the_middle_it_leaves_nothing_and_the_next_run_makes_the_disk(
    registry: Registry, disk: Disk, how: signal.Signals
) -> None:
    image = registry.push("is/ended", small(noise().blob()))
    with (
        stalling(registry, after=2 * MIB) as (address, reached),
        disk.baking(image.wanted(registry=address)) as process,
    ):
        assert reached.wait(60)
        assert len(processes_of(disk)) >= 2
        process.send_signal(how)
        said, _ = process.communicate(timeout=120)
    if how == signal.SIGTERM:
        assert failed(said) == "told to end"
    # The same moment: the next run waits until the disk is free.
    whole(disk, disk.bake(image.wanted()), 2)
    assert processes_of(disk) == []
    assert disk.device not in subprocess.run(["mount"], capture_output=True, text=True, check=True).stdout


def test_a_layer_that_takes_long_is_heard_of(registry: Registry, disk: Disk) -> None:
    image = registry.push("takes/long", small(noise().blob()))
    with (
        stalling(registry, after=2 * MIB) as (address, reached),
        disk.baking(image.wanted(registry=address)) as process,
    ):
        assert reached.wait(60)
        assert process.stdout
        told: list[str] = []
        while len([line for line in told if "heartbeat" in line]) < 3:
            told.append(process.stdout.readline())
    beats = [int(line.split()[-1]) for line in told if "heartbeat" in line]
    assert beats == sorted(set(beats))
    assert re.search(r"progress \d+ 1 of 2 layers, 2\.1 MB of 3\.\d MB", "".join(told)), told


def test_a_disk_that_somebody_has_is_not_taken(registry: Registry, disk: Disk) -> None:
    image = registry.push("is/taken", small())
    whole(disk, disk.bake(image.wanted()), 1)
    with disk.mounted():
        assert "Device or resource busy" in failed(disk.bake(image.wanted(), patience=1))
    whole(disk, disk.bake(image.wanted()), 1)


def test_a_disk_that_is_not_there_is_named(registry: Registry, disk: Disk) -> None:
    image = registry.push("no/disk", small())
    said = failed(disk.bake(image.wanted(), device="/dev/disk/by-id/google-none", patience=1))
    assert said == "/dev/disk/by-id/google-none: No such file or directory"


def test_an_item_that_lacks_something_is_told(disk: Disk) -> None:
    assert failed(disk.bake()) == "the metadata item gemma-pipelines-bake lacks images"
    said = failed(disk.bake({"name": "a", "registry": "http://a", "repository": "b"}))
    assert said == "the metadata item gemma-pipelines-bake lacks images.digest"
