"""Images with all that a layer can have in it."""

from __future__ import annotations

import random
import tarfile
from collections.abc import Callable

from .archive import Blob, Layer

BITS = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
"""security.capability of a ping: cap_net_raw=ep."""
CAPABILITY = {"security.capability": BITS}


def everything() -> list[Blob]:
    return [
        base().blob("gzip"),
        changes().blob("zstd"),
        again().blob("plain"),
        # The same blob upon other layers is another layer.
        twice(),
        twice(),
        old_format().blob("members"),
    ]


def base() -> Layer:
    layer = Layer()
    layer.folder("./", mode=0o700, uid=7)  # The root itself is nobody's business.
    layer.folder("etc").file("etc/passwd", b"root:x:0:0\n").file("etc/shadow", b"secret", mode=0o640, gid=42)
    layer.folder("usr").folder("usr/bin").symlink("bin", "usr/bin")
    layer.file("bin/sh", b"#!shell", mode=0o755).file("usr/bin/su", b"su", mode=0o4755)
    layer.file("usr/bin/wall", b"wall", mode=0o2755, gid=5)
    layer.file("usr/bin/ping", b"ping", mode=0o755, xattrs=CAPABILITY)
    for number in range(7):
        layer.file("opt/group/first", b"x" * 5000) if not number else layer.link(
            f"opt/group/link-{number}", "opt/group/first"
        )
    layer.symlink("opt/group/soft", "first").link("opt/group/soft too", "opt/group/soft")
    layer.folder("srv", mode=0o2750, uid=33, gid=33, xattrs={"user.kept": "yes", "trusted.lost": "no"})
    layer.folder("srv/deep", mode=0o1777, uid=34, gid=35, xattrs={"user.deep": "yes"})
    layer.file("srv/attributed", b"1", xattrs={"user.one": "1", "user.binary": "a\x00b\nc=d", "user.empty": ""})
    layer.folder("dev").entry("dev/null", tarfile.CHRTYPE, mode=0o666, devmajor=1, devminor=3)
    layer.entry("dev/loop", tarfile.BLKTYPE, mode=0o660, gid=6, devmajor=7, devminor=300)
    layer.entry("dev/pipe", tarfile.FIFOTYPE, mode=0o600)
    layer.file("data/caf\udce9-\udcff", b"latin").file("data/한글 ünïcode", b"utf8").file("data/new\nline", b"")
    layer.file("data/" + "long/" * 60 + "n" * 250, b"deep")
    layer.file("data/exact", b"", pax={"mtime": "1234567890.123456789", "atime": "1234567891.5"})
    layer.file("data/before 1970", b"", pax={"mtime": "-5.5"}).file("data/far", b"", mtime=1 << 34)
    layer.file("data/big ids", b"", uid=3_000_000, gid=2**31)
    layer.file("data/a/../sideways", b"up").file("/absolute/file", b"abs").file("../../above", b"clamped")
    layer.symlink("away", "/etc").symlink("nowhere", "/not/there").file("nowhere/made", b"through a dangling link")
    layer.symlink("upwards", "../../../../usr").file("upwards/from above", b"stays")
    layer.file("twice", b"first").file("twice", b"second").folder("twice too", mode=0o700).folder(
        "twice too", mode=0o711
    )
    layer.file("was file", b"").folder("was file").file("was file/inside", b"")
    layer.folder("was folder").file("was folder/inside", b"").file("was folder", b"now a file")
    layer.entry("pax_global_header", tarfile.XGLTYPE)
    # What the lowest layer takes away, it takes from itself.
    layer.file("taken/file", b"").whiteout("taken/file").whiteout("taken/never there")
    layer.folder("emptied").folder("emptied/kept").file("emptied/kept/file", b"").file("emptied/implied/file", b"")
    layer.opaque("emptied")
    layer.folder("opt/replace").file("opt/replace/a", b"a").file("opt/replace/b", b"b")
    layer.file("opt/replace/deep/c", b"c").folder("opt/gone").file("opt/gone/file", b"").file("opt/removed", b"")
    layer.file("opt/file to folder", b"").folder("opt/folder to file").file("opt/folder to file/x", b"")
    layer.symlink("opt/link to folder", "group").folder("opt/folder to link").file("opt/folder to link/x", b"")
    return layer


def changes() -> Layer:
    layer = Layer()
    layer.whiteout("opt/removed", uid=12, gid=13).whiteout("opt/gone").whiteout("away")
    layer.folder("opt").folder("opt/replace", mode=0o770).opaque("opt/replace").file("opt/replace/new", b"new")
    layer.opaque("opt/made opaque")
    layer.folder("opt/file to folder").file("opt/file to folder/x", b"")
    layer.file("opt/folder to file", b"file").folder("opt/link to folder").file("opt/link to folder/y", b"")
    layer.symlink("opt/folder to link", "/etc")
    # Parents that no entry describes are as they are below, wherever a link leads there.
    layer.file("srv/deep/new/newer/file", b"").file("bin/tool", b"through a link").file("upwards/local/x", b"")
    layer.file("etc/conf.d/late", b"").folder("etc", mode=0o711)
    # A header that links sets owner and mode again, which takes the capability away unless it repeats it.
    layer.file("usr/bin/caps", b"c", mode=0o755, xattrs=CAPABILITY).link(
        "usr/bin/caps lost", "usr/bin/caps", mode=0o700
    )
    layer.file("usr/bin/caps 2", b"c", xattrs=CAPABILITY).link("usr/bin/kept", "usr/bin/caps 2", xattrs=CAPABILITY)
    return layer


def again() -> Layer:
    layer = Layer()
    layer.folder("opt/gone", mode=0o700).file("opt/gone/other", b"back").file("opt/removed", b"back, too")
    layer.folder("away").folder("away/is").file("away/is/file", b"").whiteout("opt/replace/new").file(
        "opt/replace/newest/file", b""
    )
    layer.file("srv/deep/new/third", b"").whiteout("srv/attributed")
    layer.whiteout("undone").file("undone", b"here after all")
    return layer


def twice() -> Blob:
    layer = Layer()
    layer.whiteout("srv/deep/new/third").file("var/log/twice", b"twice").folder("opt/replace").opaque("opt/replace")
    return layer.blob()


def old_format() -> Layer:
    layer = Layer(tarfile.GNU_FORMAT)
    layer.folder("old/", uid=1, gid=2).file("old/caf\udce9", b"raw").file("old/" + "n" * 200, b"long name")
    layer.symlink("old/long", "t" * 300).file("old/large ids", b"", uid=0o10000001, gid=2**30)
    layer.file("old/before 1970", b"", mtime=-100)
    return layer


def many_layers(count: int = 130) -> list[Blob]:
    layers = []
    for number in range(count):
        layer = Layer().file(f"layer/{number:03}", str(number).encode(), mode=0o600 + number % 64)
        if not number:
            layer.folder("layer", mode=0o2755, gid=99)
        elif number % 10 == 0:
            layer.whiteout(f"layer/{number - 1:03}")
        layers.append(layer.blob())
    return layers


def large(mib: int = 300) -> list[Blob]:
    """One file of that many MiB, an eighth of which cannot be compressed."""
    block = random.Random(mib).randbytes(1 << 17) + bytes(7 << 17)
    return [Layer().file("model/large.bin", block * mib).blob()]


# How an archive may try to reach a file "victim" outside; `path` is its folder's, without the first slash.
HOSTILE: dict[str, Callable[[Layer, str], Layer]] = {
    "dots": lambda layer, path: layer.file(f"../../../../../../{path}/victim", b"escaped"),
    "dots in the middle": lambda layer, path: layer.file(f"a/b/../../../../../../{path}/victim", b"escaped"),
    "absolute": lambda layer, path: layer.file(f"/{path}/victim", b"escaped"),
    "a link to a file": lambda layer, path: layer.symlink("x", f"/{path}/victim").file("x", b"escaped"),
    "a link to a folder": lambda layer, path: layer.symlink("x", f"/{path}").file("x/victim", b"escaped"),
    "a link upwards": lambda layer, path: layer.symlink("x", f"../../../../../../{path}").file("x/victim", b"escaped"),
    "links in a row": lambda layer, path: (
        layer.symlink("a", "/").symlink("b", "a/../..").file(f"b/{path}/victim", b"escaped")
    ),
    "a replaced folder": lambda layer, path: (
        layer.folder("d").file("d/f").symlink("d", f"/{path}").file("d/victim", b"escaped")
    ),
    "a hard link": lambda layer, path: layer.link("x", f"/{path}/victim", mode=0o777, uid=99),
    "a hard link upwards": lambda layer, path: layer.link("x", f"../../../../../../{path}/victim", mode=0o777, uid=99),
    "a hard link by a link": lambda layer, path: layer.symlink("d", f"/{path}").link(
        "x", "d/victim", mode=0o777, uid=99
    ),
    "a whiteout upwards": lambda layer, path: layer.file(f"{path}/.wh..."),
    "a whiteout of its own folder": lambda layer, path: layer.file(f"{path}/.wh.."),
    "a whiteout by a link": lambda layer, path: layer.symlink("d", f"/{path}").whiteout("d/victim"),
    "opaque by a link": lambda layer, path: layer.symlink("d", f"/{path}").opaque("d"),
    "a folder by a link": lambda layer, path: layer.symlink("d", "/").folder(f"d/{path}", mode=0o777, uid=99),
    "attributes of a folder below a link": lambda layer, path: layer.symlink("d", f"/{path}").file(
        "d/other/file", b"escaped"
    ),
    "links in a ring": lambda layer, path: layer.symlink("a", "b").symlink("b", "a").file("a/file"),
}
