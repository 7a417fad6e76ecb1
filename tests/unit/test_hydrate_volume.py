"""The parts of a volume's Jobs: work on many files at once, and what a disk's refusals are in our words."""

from __future__ import annotations

import errno
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest

from components.hydrate_volume import volume
from serving import progress


@dataclass
class Sized:
    size: int


def silent(line: str) -> None:
    """Nobody wants to hear it."""


def test_files_are_begun_by_their_size_and_told_in_their_order():
    begun: list[int] = []

    def work(file: Sized, passed: progress.Passed) -> str:
        begun.append(file.size)
        return str(file.size)

    files = [Sized(size) for size in (2, 9, 5)]
    assert progress.of_files(files, work, threads=1, say=silent) == ["2", "9", "5"]
    assert begun == [9, 5, 2]
    assert progress.of_files([], work, threads=3, say=silent) == []


def test_the_first_failure_ends_the_others():
    failed, ended = threading.Event(), threading.Event()

    def work(file: Sized, passed: progress.Passed) -> None:
        if file.size == 2:
            raise OSError(errno.EIO, "Input/output error")
        failed.wait(60)
        try:
            passed(1)
        finally:
            ended.set()

    with pytest.raises(OSError, match="Input/output"):
        progress.of_files([Sized(2), Sized(1)], work, threads=2, say=silent)
    failed.set()
    assert ended.wait(60)


def test_progress_counts_what_has_passed_and_takes_back_what_has_to_pass_again():
    lines: list[str] = []
    told = threading.Event()

    def say(line: str) -> None:
        lines.append(line)
        told.set()

    def work(file: Sized, passed: progress.Passed) -> None:
        passed(600)
        passed(-600)
        passed(400)
        assert told.wait(60)

    progress.of_files([Sized(1000)], work, threads=1, say=say, report_seconds=0.01)
    assert lines[0].startswith("0/1 files, 400 B of 1.0 kB")


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOENT, r"Is the volume mounted at"),
        (errno.EACCES, r"This pod may not use the volume: .*fsGroup"),
        (errno.ENOSPC, r"The volume is too small: \d+ bytes of \d+ are free\. Make a larger one"),
        (errno.EROFS, r"It is mounted for reading, or its disk failed"),
        (errno.EIO, r"The disk failed; delete its claim and run again"),
    ],
)
def test_what_a_disk_refuses_names_the_cure(tmp_path: Path, number: int, words: str):
    error = OSError(number, "the system's words", str(tmp_path / "file"))
    with pytest.raises(Exception, match=rf"^{tmp_path}/file: the system's words\. .*{words}"):
        raise volume.told(error, str(tmp_path))
