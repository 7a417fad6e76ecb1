"""A machine's serial port keeps its newest megabyte."""

from __future__ import annotations

from emulated_cloud.google.compute.machine import KEPT_BYTES, SerialPort


def test_what_is_too_old_is_gone_and_counts_on():
    port = SerialPort()
    for number in range(2 * KEPT_BYTES // 100):
        port.write(f"{number:098d}")
    contents, start, following = port.read(0)
    assert (start, following) == (following - len(contents), 100 * (2 * KEPT_BYTES // 100))
    assert len(contents) == KEPT_BYTES
    assert contents.endswith(f"{2 * KEPT_BYTES // 100 - 1:098d}\r\n".encode())
    assert port.read(following - 3) == (contents[-3:], following - 3, following)
    assert port.read(following + 3) == (b"", following, following)
