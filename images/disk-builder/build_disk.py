#!/usr/bin/python3
"""Unpacks container images onto an empty disk, as a GKE node reads them from a secondary boot disk.

The startup script of the VM that bakes a disk image (components/bake_disk_image): one file, the standard library,
mkfs.ext4 and e2fsck (zstd where a layer is compressed by it), no packages. It runs as root. What to do is the VM's
metadata item `gemma-pipelines-bake`, one JSON object:

    device              the empty disk, a path below /dev/disk/by-id
    heartbeat_seconds   how often it says that it lives (default 10)
    checksums           a third column in snapshots.metadata (default true)
    attempts            tries of a request without a byte further (default 6)
    patience            seconds that a disk is waited for which is not there yet, or is somebody's still (default 30)
    images              [{name, registry, repository, digest, auth: "anonymous" | "google"}]

It says on stdout, which Compute Engine shows on serial port 1:

    GP-BAKE heartbeat SECONDS
    GP-BAKE progress PERCENT WORDS
    GP-BAKE done SHA256        of snapshots.metadata, after a clean check of the unmounted disk
    GP-BAKE failed WHY         and exit code 1

The disk: `snapshots/N/fs` is layer N; `snapshots.metadata` has a line a layer, `CHAIN_ID snapshots/N/fs MD5`, the md5
being that of the sorted md5s of all regular files; `images.metadata` is the table that `ctr images ls` prints.

Two processes a layer: one downloads, checks the digest and decompresses into a pipe; the other reads the pipe, checks
the diffID and writes the files by the rules of containerd's own unpacking, so that a node finds what it would have
unpacked itself. The second lives in the layer's own folder (chroot): what a hostile archive names, it names in there.
The disk is mounted in a mount namespace of this script's, which ends with its last process, and all of them end with
the first: a kill leaves nothing behind, and the next run begins with an empty file system.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import http.client
import io
import json
import multiprocessing
import multiprocessing.connection
import os
import posixpath
import re
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fcntl import F_SETPIPE_SZ, fcntl
from typing import Any

ITEM = "gemma-pipelines-bake"
MOUNT = "/mnt"
"""A folder that is everywhere; in this script's mount namespace it is the disk."""
CHUNK = 1 << 20
SILENCE_SECONDS = 60
"""A connection that says nothing for so long is opened again."""
MAX_ENTRIES = 2_000_000
"""Of one layer. The largest of an engine image has some 100,000."""
MAX_MEMORY = 2 << 30
"""Address space of a process that reads what somebody else wrote."""

OPAQUE, WHITEOUT = b".wh..wh..opq", b".wh."
XATTR = "SCHILY.xattr."
ODD = re.compile(rb"[\\\n\r]")
INDEXES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
MANIFESTS = ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")

libc = ctypes.CDLL(None, use_errno=True)
processes = multiprocessing.get_context("fork")


class BakeError(Exception):
    """Why the disk cannot be made, in words for the person who asked for it."""


class CutError(BakeError):
    """What came ended early, or was not what it should be: whoever sent it may know better why."""


# -- what is said -------------------------------------------------------------------------------------------


class Teller:
    """Says that the script lives, and how far it is."""

    def __init__(self) -> None:
        self.interval = 10.0
        self.started = time.monotonic()
        self.due = self.started
        self.look: Callable[[], tuple[int, str]] = lambda: (0, "starting")

    def every(self, seconds: float) -> None:
        self.interval, self.due = seconds, min(self.due, time.monotonic() + seconds)

    def stage(self, percent: int, words: str) -> None:
        self.look = lambda: (percent, words)
        self.progress()

    def progress(self) -> None:
        percent, words = self.look()
        say(f"progress {percent} {words}")

    def beat(self) -> None:
        """To be called at least every second or so."""
        now = time.monotonic()
        if now >= self.due:
            self.due = now + self.interval
            say(f"heartbeat {int(now - self.started)}")
            self.progress()

    def pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.beat()
            time.sleep(min(left, 0.5))


def say(words: str) -> None:
    print("GP-BAKE", " ".join(words.split()), flush=True)


def size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


# -- the metadata server and the registry -------------------------------------------------------------------


def metadata(path: str) -> bytes:
    """What the VM's metadata server has at `path`; it is asked without a proxy."""
    host = os.environ.get("GCE_METADATA_HOST", "metadata.google.internal")
    url = f"http://{host}/computeMetadata/v1/instance/{path}"
    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=10) as answer:
        return bytes(answer.read())


def read_config(teller: Teller) -> dict[str, Any]:
    for attempt in range(30):
        try:
            found = json.loads(metadata(f"attributes/{ITEM}"))
            break
        except urllib.error.HTTPError as error:
            if error.code == 404:
                raise BakeError(f"the VM has no metadata item {ITEM}") from error
            problem: Exception = error
        except OSError as error:
            problem = error
        except ValueError as error:
            raise BakeError(f"the metadata item {ITEM} is not JSON: {error}") from error
        # The network of a VM that boots may come a little later than this script.
        teller.pause(min(attempt + 1, 5))
    else:
        raise BakeError(f"the metadata server does not answer: {problem}")
    lacks = {"device", "images"} - found.keys()
    lacks |= {
        f"images.{key}" for key in ("name", "registry", "repository", "digest") for i in found["images"] if key not in i
    }
    if lacks or not found["images"]:
        raise BakeError(f"the metadata item {ITEM} lacks {', '.join(sorted(lacks)) or 'images'}")
    return dict(found)


@dataclass(frozen=True)
class Registry:
    """A repository of a registry, and how one is let in."""

    url: str
    repository: str
    auth: str
    attempts: int

    def open(self, path: str, start: int = 0, accept: str = "*/*") -> http.client.HTTPResponse:
        """One GET, with a token where one is asked for. A redirect to another host does not get the token."""
        request = urllib.request.Request(f"{self.url.rstrip('/')}/v2/{self.repository}/{path}")
        request.add_header("Accept", accept)
        if start:
            request.add_header("Range", f"bytes={start}-")
        if self.auth == "google":
            token = json.loads(metadata("service-accounts/default/token"))["access_token"]
            request.add_unredirected_header("Authorization", f"Bearer {token}")
        try:
            return urllib.request.urlopen(request, timeout=SILENCE_SECONDS)
        except urllib.error.HTTPError as error:
            if error.code != 401 or self.auth == "google":
                raise
            token = anonymous_token(error.headers.get("WWW-Authenticate", ""))
            if not token:
                raise
            request.add_unredirected_header("Authorization", f"Bearer {token}")
            return urllib.request.urlopen(request, timeout=SILENCE_SECONDS)

    def refused(self, error: urllib.error.HTTPError, what: str) -> BakeError:
        cure = ""
        if error.code in (401, 403):
            cure = (
                ": the VM's service account needs roles/artifactregistry.reader on the repository"
                if self.auth == "google"
                else ": only public images are read from a registry that is not Google's"
            )
        return BakeError(f"{self.url} answered {error.code} {error.reason} for {self.repository}, {what}{cure}")

    def chunks(
        self, digest: str, length: int, path: str = "", wait: Callable[[float], None] = time.sleep
    ) -> Iterator[bytes]:
        """The bytes of a blob. A connection that breaks is opened again where it broke."""
        path = path or f"blobs/{digest}"
        got, tried = 0, 0
        problem: Any = "nothing came"
        while True:
            try:
                with self.open(path, got, ", ".join(INDEXES + MANIFESTS) if "manifests/" in path else "*/*") as answer:
                    # Who does not know ranges begins at the first byte.
                    skip = got if answer.status != 206 else 0
                    while chunk := answer.read1(CHUNK):
                        chunk, skip = chunk[skip:], max(0, skip - len(chunk))
                        if chunk:
                            got, tried = got + len(chunk), 0
                            yield chunk
                    problem = f"it ended after {got} of {length} bytes"
            except urllib.error.HTTPError as error:
                problem = error
                if error.code == 416:
                    raise BakeError(f"{self.repository}: blob {digest} has {got} bytes, not {length}") from error
                if error.code < 500 and error.code not in (408, 429):
                    raise self.refused(error, path) from error
            except (OSError, http.client.HTTPException) as error:
                problem = error
            if got >= length:
                return
            tried += 1
            if tried >= self.attempts:
                raise BakeError(f"{self.url}, {self.repository}, {path}: {problem}, {tried} times")
            wait(min(2 ** (tried - 1), 30))


def anonymous_token(challenge: str) -> str:
    """The token that a registry gives to anybody, by its `WWW-Authenticate: Bearer realm=…,service=…,scope=…`."""
    scheme, _, rest = challenge.partition(" ")
    said = dict(re.findall(r'(\w+)="([^"]*)"', rest))
    if scheme.lower() != "bearer" or not said.get("realm", "").startswith(("https://", "http://")):
        return ""
    query = urllib.parse.urlencode({key: said[key] for key in ("service", "scope") if key in said})
    realm = said["realm"]
    with urllib.request.urlopen(f"{realm}{'&' if '?' in realm else '?'}{query}", timeout=SILENCE_SECONDS) as answer:
        found = json.loads(answer.read())
    return str(found.get("token") or found.get("access_token") or "")


# -- images and their layers --------------------------------------------------------------------------------


@dataclass
class Layer:
    """A layer on the disk, by its chain ID: the same blob upon other layers is another one."""

    number: int
    chain_id: str
    diff_id: str
    digest: str
    size: int
    registry: Registry
    below: list[Layer]
    """The layers that it lies on, the nearest first."""
    unpacked: Any = field(default_factory=processes.Event)
    checksum: str = ""

    @property
    def folder(self) -> str:
        return f"snapshots/{self.number}/fs"

    def __str__(self) -> str:
        return f"layer {self.number} ({self.registry.repository}@{self.digest})"


@dataclass(frozen=True)
class Image:
    """What images.metadata says of an image."""

    name: str
    media_type: str
    digest: str
    size: int
    platform: str


def whole(registry: Registry, digest: str, length: int, path: str, teller: Teller) -> bytes:
    """A small document, of the digest that it was asked for by."""
    content = b""
    for chunk in registry.chunks(digest, length, path, teller.pause):
        content += chunk
        if len(content) > 16 * CHUNK:
            raise BakeError(f"{registry.repository}, {path}: no document is as long as this")
    found = f"sha256:{hashlib.sha256(content).hexdigest()}"
    if found != digest:
        raise BakeError(f"{registry.repository}, {path}: its digest is {found}")
    return content


def read_image(wanted: dict[str, Any], attempts: int, layers: dict[str, Layer], teller: Teller) -> Image:
    """An image, whose layers join those that are known already."""
    registry = Registry(wanted["registry"], wanted["repository"], wanted.get("auth", "anonymous"), attempts)
    digest = wanted["digest"]
    content = whole(registry, digest, 1, f"manifests/{digest}", teller)
    manifest = json.loads(content)
    media_type = manifest.get("mediaType") or MANIFESTS[0]
    if media_type not in MANIFESTS or "layers" not in manifest:
        raise BakeError(f"{wanted['name']}: {digest} is {media_type}; the digest of one platform's manifest is needed")
    about = manifest["config"]
    config = json.loads(whole(registry, about["digest"], about["size"], f"blobs/{about['digest']}", teller))
    diff_ids = config["rootfs"]["diff_ids"]
    if len(diff_ids) != len(manifest["layers"]):
        raise BakeError(f"{wanted['name']}: {len(manifest['layers'])} layers, but {len(diff_ids)} diffIDs")

    below: list[Layer] = []
    for described, diff_id in zip(manifest["layers"], diff_ids, strict=True):
        chain_id = diff_id
        if below:
            chain_id = f"sha256:{hashlib.sha256(f'{below[0].chain_id} {diff_id}'.encode()).hexdigest()}"
        if chain_id not in layers:
            number = len(layers) + 1
            layers[chain_id] = Layer(
                number, chain_id, diff_id, described["digest"], described["size"], registry, list(below)
            )
        below.insert(0, layers[chain_id])
    total = len(content) + about["size"] + sum(described["size"] for described in manifest["layers"])
    variant = config.get("variant", "")
    parts = [config["os"], config["architecture"]] + ([variant] if variant and variant != "v8" else [])
    return Image(wanted["name"], media_type, digest, total, "/".join(parts))


def images_table(images: list[Image]) -> str:
    """As `ctr images ls` prints it."""
    rows = [["REF", "TYPE", "DIGEST", "SIZE", "PLATFORMS", "LABELS"]]
    for image in sorted(images, key=lambda image: image.name):
        amount, unit = float(image.size), 0
        while amount >= 1024 and unit < 4:
            amount, unit = amount / 1024, unit + 1
        shown = f"{amount:.1f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[unit]}"
        rows.append([image.name, image.media_type, image.digest, shown, image.platform, "-"])
    widths = [max(map(len, column)) + 1 for column in zip(*rows, strict=True)]
    return "".join("".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + "\n" for row in rows)


# -- downloading a layer, in a process of its own -----------------------------------------------------------


def fetch(layer: Layer, pipe: int, counted: Any) -> None:
    """Sends the archive of a layer into the pipe. Raises BakeError when the blob is not what its digest says."""
    digest = hashlib.sha256()
    decoder: Plain | None = None
    broken: Exception | None = None
    for chunk in layer.registry.chunks(layer.digest, layer.size):
        digest.update(chunk)
        counted[layer.number - 1] += len(chunk)
        try:
            if not broken:
                decoder = decoder or decoder_of(chunk)(pipe)
                decoder.write(chunk)
        except (CutError, BrokenPipeError) as error:
            # Read to its end: other bytes than were asked for are the better reason.
            broken = error
    found = f"sha256:{digest.hexdigest()}"
    if found != layer.digest:
        raise BakeError(f"the digest of what came is {found}")
    if broken:
        raise broken
    if decoder:
        decoder.close()


def decoder_of(beginning: bytes) -> type[Plain]:
    """By how the blob begins, as containerd tells it: media types have been wrong."""
    if beginning.startswith(b"\x1f\x8b\x08"):
        return Gunzip
    if beginning.startswith(b"\x28\xb5\x2f\xfd"):
        return Unzstd
    return Plain


class Plain:
    """An archive that is not compressed."""

    def __init__(self, pipe: int) -> None:
        self.pipe = pipe

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self.pipe, view) :]

    def close(self) -> None:
        """Raises CutError when the blob ends in the middle."""


class Gunzip(Plain):
    """One or several members of gzip, a mebibyte at a time: a bomb of any size needs no memory."""

    stream: Any = None

    def write(self, data: bytes) -> None:
        try:
            while data:
                self.stream = self.stream or zlib.decompressobj(wbits=31)
                super().write(self.stream.decompress(data, CHUNK))
                if self.stream.eof:
                    data, self.stream = self.stream.unused_data, None
                else:
                    data = self.stream.unconsumed_tail
        except zlib.error as error:
            raise CutError(f"it is not gzip: {error}") from error

    def close(self) -> None:
        if self.stream:
            super().write(self.stream.flush())
            if not self.stream.eof:
                raise CutError("its gzip ends in the middle")


class Unzstd(Plain):
    """By the command, which writes into the pipe itself."""

    def __init__(self, pipe: int) -> None:
        super().__init__(pipe)
        if not shutil.which("zstd"):
            raise BakeError("it is compressed by zstd, which this boot image lacks; choose another family")
        self.process = subprocess.Popen(
            ["zstd", "-dcq"],
            stdin=subprocess.PIPE,
            stdout=pipe,
            stderr=subprocess.PIPE,
            preexec_fn=end_with_parent,
        )

    def write(self, data: bytes) -> None:
        assert self.process.stdin
        try:
            self.process.stdin.write(data)
        except BrokenPipeError:
            self.close()
            raise

    def close(self) -> None:
        _, said = self.process.communicate()
        if self.process.returncode:
            raise CutError(f"zstd: {said.decode(errors='replace')}")


# -- unpacking a layer, in a process of its own and in its own folder ---------------------------------------


class Archive:
    """What comes out of the pipe: hashed as it passes, and forward only."""

    def __init__(self, pipe: int) -> None:
        self.source = io.BufferedReader(io.FileIO(pipe), CHUNK)
        self.digest = hashlib.sha256()
        self.position = 0
        self.last = b""

    def read(self, count: int) -> bytes:
        if not 0 <= count <= CHUNK:
            raise BakeError(f"a header of {count} bytes, which no archive of files has")
        self.last = self.source.read(count)
        self.digest.update(self.last)
        self.position += len(self.last)
        return self.last

    def tell(self) -> int:
        return self.position

    def seek(self, position: int) -> None:
        while position > self.position and self.read(min(CHUNK, position - self.position)):
            pass

    def drain(self) -> None:
        while self.read(CHUNK):
            pass


class Tar(tarfile.TarFile):
    """Without headers that are meant for all files that follow: containerd ignores them."""

    @property
    def pax_headers(self) -> Mapping[str, str]:
        return {}

    @pax_headers.setter
    def pax_headers(self, found: Mapping[str, str]) -> None:
        pass


def members(archive: Archive) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """The entries. tarfile takes a damaged header for the end; here it is one."""
    try:
        tar = Tar(fileobj=archive, encoding="utf-8", errors="surrogateescape")  # type: ignore[arg-type]
        member = tar.next()
        while member is not None:
            yield tar, member
            # It keeps every member, for looking them up.
            tar.members.clear()  # type: ignore[attr-defined]
            member = tar.next()
    except tarfile.ReadError as error:
        if archive.position:
            raise CutError(f"its archive is cut or damaged at byte {archive.position}: {error}") from error
    if archive.last.strip(b"\0"):
        raise CutError(f"its archive is damaged at byte {archive.position}")


class Unpacker:
    """Writes the entries of a layer into its folder, which is this process's root, as containerd does."""

    def __init__(self, folder: str, below: list[tuple[Any, str]]) -> None:
        """`below`: for each layer under this one, the nearest first, its event "unpacked" and its folder."""
        self.below = [(ready, os.open(path, os.O_RDONLY | os.O_DIRECTORY)) for ready, path in below]
        self.root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        self.known: dict[bytes, bytes] = {}
        """Folders as entries name them, and where they really are."""
        self.directories: list[tuple[bytes, tarfile.TarInfo]] = []
        self.written: set[bytes] = set()
        self.hashes: dict[int, str] = {}
        self.bytes = 0
        enter(self.root)
        os.umask(0)

    def unpack(self, archive: Archive, checksums: bool) -> str:
        """Returns the md5 of the md5s of all regular files, sorted, a line each."""
        for count, (tar, member) in enumerate(members(archive)):
            if count >= MAX_ENTRIES:
                raise BakeError(f"more than {MAX_ENTRIES} entries, which no image has")
            try:
                self.entry(tar, member, checksums)
            except OSError as error:
                raise self.explained(error, member) from error
        for path, member in self.directories:
            try:
                os.utime(path, ns=times(member), follow_symlinks=False)
            except FileNotFoundError:
                pass  # A later entry removed it.
        archive.drain()
        return self.checksum() if checksums else ""

    def explained(self, error: OSError, member: tarfile.TarInfo) -> BakeError:
        if error.errno == errno.ENOSPC:
            disk = os.statvfs("/")
            if not disk.f_ffree:
                return BakeError(f"the disk is full: all its {disk.f_files} inodes are taken")
            return BakeError(f"the disk is full: it holds {size(disk.f_blocks * disk.f_frsize)}")
        return BakeError(f"{member.name!r}: {error.strerror}")

    def entry(self, tar: tarfile.TarFile, member: tarfile.TarInfo, checksums: bool) -> None:
        name = posixpath.normpath(b"/" + encoded(member.name).lstrip(b"/"))
        if name == b"/":
            return None
        folder, base = posixpath.split(name)
        folder = self.real(folder)
        path = posixpath.join(folder, base)
        if base.startswith(WHITEOUT):
            return self.whiteout(folder, base, member)
        if not self.below:
            self.written.add(path)

        if member.isdir():
            if not is_directory(path):
                self.instead(path, lambda: os.mkdir(path, 0o700))
            self.attributes(path, member)
            self.directories.append((path, member))
        elif member.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
            self.file(path, tar, member, checksums)
        elif member.issym():
            self.instead(path, lambda: os.symlink(encoded(member.linkname), path))
            self.attributes(path, member, symlink=True)
        elif member.islnk():
            above, target = posixpath.split(b"/" + encoded(member.linkname))
            target = posixpath.join(os.path.realpath(above), target)
            self.instead(path, lambda: os.link(target, path, follow_symlinks=False))
            self.attributes(path, member, symlink=os.path.islink(path))
        elif member.ischr() or member.isblk() or member.isfifo():
            kind = stat.S_IFCHR if member.ischr() else stat.S_IFBLK if member.isblk() else stat.S_IFIFO
            device = os.makedev(member.devmajor, member.devminor)
            self.instead(path, lambda: os.mknod(path, kind | 0o600, device))
            self.attributes(path, member)
        else:
            raise BakeError(f"{member.name!r} is an entry of type {member.type!r}, which containerd refuses too")
        return None

    def file(self, path: bytes, tar: tarfile.TarFile, member: tarfile.TarInfo, checksums: bool) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        handle = self.instead(path, lambda: os.open(path, flags, 0o600))
        try:
            md5 = hashlib.md5(usedforsecurity=False)
            source = tar.extractfile(member) if member.issparse() else tar.fileobj
            left = member.size
            while left:
                data = source.read(min(CHUNK, left))  # type: ignore[union-attr]
                if not data:
                    raise CutError(f"its archive ends in {member.name!r}")
                left -= len(data)
                if checksums:
                    md5.update(data)
                while data:
                    data = data[os.write(handle, data) :]
            self.hashes[os.fstat(handle).st_ino] = md5.hexdigest()
            self.attributes(handle, member)
        finally:
            os.close(handle)

    def attributes(self, where: bytes | int, member: tarfile.TarInfo, symlink: bool = False) -> None:
        """Owner, extended attributes, mode, times, in the order in which none undoes another."""
        nofollow: dict[str, Any] = {} if isinstance(where, int) else {"follow_symlinks": False}
        os.chown(where, member.uid, member.gid, **nofollow)
        for key, value in member.pax_headers.items():
            if key.startswith(XATTR) and not key.startswith(f"{XATTR}trusted."):
                try:
                    os.setxattr(where, encoded(key[len(XATTR) :]), encoded(value), **nofollow)
                except OSError as error:
                    # Only files and folders have attributes of users'.
                    if error.errno not in (errno.ENOTSUP, errno.EPERM) or member.isfile() or member.isdir():
                        raise
        if not symlink:
            os.chmod(where, member.mode & 0o7777)
        os.utime(where, ns=times(member), **nofollow)

    def instead(self, path: bytes, make: Callable[[], Any]) -> Any:
        """Makes what stands at `path` from now on, whatever stood there."""
        try:
            return make()
        except FileExistsError:
            self.remove(path)
            return make()

    def remove(self, path: bytes) -> None:
        self.known.clear()
        if is_directory(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)

    # Folders

    def real(self, folder: bytes) -> bytes:
        """Where a folder is, links followed inside the layer; made if it is not there."""
        if folder not in self.known:
            found = os.path.realpath(folder)
            self.make(found)
            self.known[folder] = found
        return self.known[folder]

    def make(self, folder: bytes) -> None:
        if is_directory(folder):
            return
        self.make(posixpath.dirname(folder))
        os.mkdir(folder, 0o755)
        os.chmod(folder, 0o755)
        self.inherit(folder)

    def inherit(self, folder: bytes) -> None:
        """A folder that no entry describes is as it is in the nearest layer below, which has to be complete first."""
        for ready, below in self.below:
            ready.wait()
            try:
                with inside(below, self.root):
                    there = os.path.realpath(folder)
                    found = os.lstat(there)
                    if not stat.S_ISDIR(found.st_mode):
                        return
                    names = [name for name in os.listxattr(there) if not name.startswith("trusted.")]
                    extended = [(name, os.getxattr(there, name)) for name in names]
            except FileNotFoundError:
                continue
            except NotADirectoryError:
                return
            os.chown(folder, found.st_uid, found.st_gid)
            os.chmod(folder, stat.S_IMODE(found.st_mode))
            os.utime(folder, ns=(found.st_atime_ns, found.st_mtime_ns))
            for name, value in extended:
                try:
                    os.setxattr(folder, name, value, os.XATTR_CREATE)
                except OSError as error:
                    if error.errno not in (errno.EEXIST, errno.ENOTSUP):
                        raise
            return

    # What a layer takes away

    def whiteout(self, folder: bytes, base: bytes, member: tarfile.TarInfo) -> None:
        """As overlayfs has it; in the lowest layer, where there is nothing to hide, what this layer itself brought."""
        hidden = base[len(WHITEOUT) :]
        if base == OPAQUE:
            if self.below:
                os.setxattr(folder, "trusted.overlay.opaque", b"y")
            else:
                self.empty(folder)
        elif hidden in (b"", b".", b".."):
            raise BakeError(f"{member.name!r} hides what is not in its folder")
        elif self.below:
            path = posixpath.join(folder, hidden)
            os.mknod(path, stat.S_IFCHR, 0)
            os.chown(path, member.uid, member.gid)
        elif os.path.lexists(path := posixpath.join(folder, hidden)):
            self.remove(path)

    def empty(self, folder: bytes) -> None:
        for name in os.listdir(folder):
            path = posixpath.join(folder, name)
            if path not in self.written:
                self.remove(path)
            elif is_directory(path):
                self.empty(path)

    def checksum(self) -> str:
        found, folders = [], [b"/"]
        while folders:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    elif entry.is_file(follow_symlinks=False):
                        # md5sum marks a line whose name it had to write in another way.
                        mark = "\\" if ODD.search(entry.path) else ""
                        found.append(f"{mark}{self.hashes[entry.inode()]}\n")
        return hashlib.md5("".join(sorted(found)).encode(), usedforsecurity=False).hexdigest()


def encoded(text: str) -> bytes:
    """As it stands in the archive: names need not be UTF-8."""
    return text.encode("utf-8", "surrogateescape")


def is_directory(path: bytes) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False


def times(member: tarfile.TarInfo) -> tuple[int, int]:
    """Access and modification in nanoseconds; tarfile makes floating-point numbers of them."""

    def nanoseconds(said: str) -> int:
        seconds, _, part = said.partition(".")
        found = int(seconds) * 10**9 + int(part[:9].ljust(9, "0"))
        return found if 0 <= found < 1 << 63 and not said.startswith("-") else 0

    pax = member.pax_headers
    modified = nanoseconds(pax.get("mtime") or str(int(member.mtime)))
    return max(nanoseconds(pax["atime"]) if pax.get("atime") else 0, modified), modified


def enter(folder: int) -> None:
    """Makes an open folder this process's root."""
    os.fchdir(folder)
    os.chroot(".")


@contextmanager
def inside(folder: int, back: int) -> Iterator[None]:
    """Another layer's folder is the root meanwhile: its links, too, lead nowhere else."""
    enter(folder)
    try:
        yield
    finally:
        enter(back)


def unpack(layer: Layer, pipe: int, checksums: bool) -> str:
    unpacker = Unpacker(
        f"{MOUNT}/{layer.folder}", [(lower.unpacked, f"{MOUNT}/{lower.folder}") for lower in layer.below]
    )
    archive = Archive(pipe)
    checksum = unpacker.unpack(archive, checksums)
    found = f"sha256:{archive.digest.hexdigest()}"
    if found != layer.diff_id:
        raise CutError(f"its diffID is {layer.diff_id}, but what came out is {found}")
    return checksum


# -- the processes of all layers ----------------------------------------------------------------------------


def end_with_parent() -> None:
    libc.prctl(1, signal.SIGKILL)


class Worker:
    """A function in a process of its own, and what came of it."""

    def __init__(self, work: Callable[..., Any], *arguments: Any, close: int) -> None:
        self.answer, answer = processes.Pipe(duplex=False)
        parent = os.getpid()

        def run() -> None:
            end_with_parent()
            if os.getppid() != parent:
                return
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
            os.close(close)
            answer.send(outcome(work, *arguments))

        self.process = processes.Process(target=run)
        self.process.start()
        answer.close()

    def ended(self) -> tuple[str, Any]:
        """("done", result), ("cut", why: the other side of the pipe may know better) or ("failed", why)."""
        try:
            found: tuple[str, Any] = self.answer.recv()
        except EOFError:
            self.process.join()
            return "failed", f"its process was ended ({self.process.exitcode})"
        self.process.join()
        return found

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


def outcome(work: Callable[..., Any], *arguments: Any) -> tuple[str, Any]:
    try:
        return "done", work(*arguments)
    except CutError as error:
        return "cut", str(error)
    except BrokenPipeError:
        return "cut", ""
    except BakeError as error:
        return "failed", str(error)
    except MemoryError:
        return "failed", f"it needs more than {size(MAX_MEMORY)} of memory"
    except Exception as error:  # noqa: BLE001 (told by the process that started this one)
        traceback.print_exc()
        return "failed", f"{type(error).__name__}: {error}"


class Bake:
    """All layers, as many at once as there are processors."""

    def __init__(self, layers: list[Layer], checksums: bool, teller: Teller) -> None:
        self.layers, self.checksums, self.teller = layers, checksums, teller
        self.total = sum(layer.size for layer in layers)
        self.counted = processes.RawArray("Q", len(layers))
        self.finished = 0
        self.running: dict[int, tuple[Layer, dict[Any, Worker]]] = {}

    def look(self) -> tuple[int, str]:
        came = sum(self.counted)
        words = f"{self.finished} of {len(self.layers)} layers, {size(came)} of {size(self.total)}"
        return 2 + 90 * came // max(1, self.total), words

    def run(self) -> None:
        self.teller.look = self.look
        self.teller.progress()
        # In their order: a layer may wait for one below, never for one above.
        waiting = list(self.layers)
        at_once = max(2, os.cpu_count() or 2)
        try:
            while waiting or self.running:
                while waiting and len(self.running) < at_once:
                    self.start(waiting.pop(0))
                answers = {answer: layer for layer, workers in self.running.values() for answer in workers}
                self.teller.beat()
                for answer in multiprocessing.connection.wait(answers, timeout=0.5):
                    self.ended(answers[answer], answer)
        finally:
            for _, workers in self.running.values():
                for worker in workers.values():
                    worker.kill()

    def start(self, layer: Layer) -> None:
        out, into = os.pipe()
        fcntl(into, F_SETPIPE_SZ, CHUNK)
        workers = [
            Worker(fetch, layer, into, self.counted, close=out),
            Worker(unpack, layer, out, self.checksums, close=into),
        ]
        os.close(out)
        os.close(into)
        self.running[layer.number] = layer, {worker.answer: worker for worker in workers}

    def ended(self, layer: Layer, answer: Any) -> None:
        workers = self.running[layer.number][1]
        worker = workers.pop(answer)
        how, what = worker.ended()
        if how == "cut":
            for other in workers.values():
                while not other.answer.poll(0.5):
                    self.teller.beat()
                told, why = other.ended()
                what = why if told == "failed" or not what else what
        if how != "done":
            raise BakeError(f"{layer}: {what}")
        layer.checksum = what or layer.checksum
        if not workers:
            del self.running[layer.number]
            layer.unpacked.set()
            self.finished += 1


# -- the disk -----------------------------------------------------------------------------------------------


def command(teller: Teller, *argv: str) -> None:
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(argv, stdout=output, stderr=output, preexec_fn=end_with_parent)
        except FileNotFoundError as error:
            raise BakeError(f"this boot image has no {argv[0]}; choose another family") from error
        while True:
            try:
                code = process.wait(timeout=0.5)
                break
            except subprocess.TimeoutExpired:
                teller.beat()
        if code:
            output.seek(0)
            said = output.read().decode(errors="replace").strip().splitlines()
            raise BakeError(f"{' '.join(argv)} ended with {code}: {'; '.join(said[-5:])}")


def wait_for_disk(device: str, patience: float, teller: Teller) -> None:
    """Until it is there and nobody else has it: what a killed run had mounted goes a moment after its processes."""
    end = time.monotonic() + patience
    while True:
        try:
            os.close(os.open(device, os.O_RDWR | os.O_EXCL))
        except OSError as error:
            if time.monotonic() > end:
                raise BakeError(f"{device}: {error.strerror}") from error
        else:
            return
        teller.pause(0.2)


def apart() -> None:
    """A mount namespace of this process's own: what it mounts, nobody sees, and nobody has to unmount."""
    new_namespace, recursive, private = 0x20000, 0x4000, 0x40000
    if libc.unshare(new_namespace):
        raise BakeError(f"no mount namespace: {os.strerror(ctypes.get_errno())}; this runs as root")
    # In a chroot the root is no mount, and there is nothing to make private.
    libc.mount(b"none", b"/", None, recursive | private, None)


def build(config: dict[str, Any], teller: Teller) -> str:
    """Makes the disk; the sha256 of its snapshots.metadata."""
    layers: dict[str, Layer] = {}
    teller.stage(0, "reading the images")
    images = [read_image(image, config.get("attempts", 6), layers, teller) for image in config["images"]]

    device = config["device"]
    wait_for_disk(device, config.get("patience", 30), teller)
    teller.stage(1, "making the file system")
    options = "lazy_itable_init=0,lazy_journal_init=0,discard"
    command(teller, "mkfs.ext4", "-q", "-F", "-m", "0", "-E", options, device)
    # No device and no program of an image is anything but bytes here.
    command(teller, "mount", "-t", "ext4", "-o", "noatime,nodev,nosuid,noexec", device, MOUNT)

    ordered = list(layers.values())
    for layer in ordered:
        os.makedirs(f"{MOUNT}/{layer.folder}", mode=0o755)
    bake = Bake(ordered, config.get("checksums", True), teller)
    try:
        bake.run()
    except BakeError as error:
        if "disk is full" in str(error):
            needed = (shutil.disk_usage(MOUNT).used * bake.total) / max(1, sum(bake.counted))
            error = BakeError(f"{error}; by what came so far about {size(needed * 1.1)} are needed: set disk_size_gb")
        raise error
    lines = [" ".join(filter(None, [layer.chain_id, layer.folder, layer.checksum])) for layer in ordered]
    snapshots = "".join(f"{line}\n" for line in lines).encode()
    for name, content in (("snapshots.metadata", snapshots), ("images.metadata", images_table(images).encode())):
        with open(f"{MOUNT}/{name}", "wb") as file:
            file.write(content)

    teller.stage(93, f"writing {size(shutil.disk_usage(MOUNT).used)} to the disk")
    command(teller, "umount", MOUNT)
    teller.stage(97, "checking the file system")
    command(teller, "e2fsck", "-fn", device)
    return hashlib.sha256(snapshots).hexdigest()


def told_to_end(*_: Any) -> None:
    raise BakeError("told to end")


def main() -> int:
    signal.signal(signal.SIGTERM, told_to_end)
    teller = Teller()
    try:
        teller.beat()
        config = read_config(teller)
        teller.every(config.get("heartbeat_seconds", 10))
        apart()
        found = build(config, teller)
    except BakeError as error:
        say(f"failed {error}")
        return 1
    except Exception as error:  # noqa: BLE001 (said where somebody reads it)
        traceback.print_exc()
        say(f"failed {type(error).__name__}: {error}")
        return 1
    say("progress 100 the disk is whole")
    say(f"done {found}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
