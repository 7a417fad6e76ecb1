"""The cron expressions of the emulated Vertex AI: their ticks, in their zone."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from emulated_cloud.google.aiplatform import cron


def ticks(text: str, since: str, count: int = 4) -> list[str]:
    found, time = [], datetime.fromisoformat(since).replace(tzinfo=UTC)
    for _ in range(count):
        tick = cron.parse(text).after(time)
        assert tick
        time = tick
        found.append(f"{tick:%Y-%m-%d %H:%M}")
    return found


@pytest.mark.parametrize(
    ("text", "since", "expected"),
    [
        ("*/20 * * * *", "2027-01-01T00:05", ["2027-01-01 00:20", "2027-01-01 00:40", "2027-01-01 01:00"]),
        ("0 3 * * *", "2027-01-01T03:00", ["2027-01-02 03:00", "2027-01-03 03:00", "2027-01-04 03:00"]),
        ("0 3 1,15 * *", "2027-01-01T04:00", ["2027-01-15 03:00", "2027-02-01 03:00", "2027-02-15 03:00"]),
        ("0 3 * * mon-fri", "2027-01-01T04:00", ["2027-01-04 03:00", "2027-01-05 03:00", "2027-01-06 03:00"]),
        ("0 3 * * 7", "2027-01-01T04:00", ["2027-01-03 03:00", "2027-01-10 03:00", "2027-01-17 03:00"]),
        # Restricted in both ways, a day is one of either.
        ("0 3 13 * FRI", "2027-01-07T04:00", ["2027-01-08 03:00", "2027-01-13 03:00", "2027-01-15 03:00"]),
        ("0 0 29 2 *", "2027-01-01T04:00", ["2028-02-29 00:00", "2032-02-29 00:00", "2036-02-29 00:00"]),
        ("0 0 1 jan,jul *", "2027-01-01T04:00", ["2027-07-01 00:00", "2028-01-01 00:00", "2028-07-01 00:00"]),
        ("TZ=Asia/Seoul 0 3 * * *", "2027-01-01T00:00", ["2027-01-01 18:00", "2027-01-02 18:00", "2027-01-03 18:00"]),
        ("CRON_TZ=Asia/Kolkata 0 3 * * *", "2027-01-01T00:00", ["2027-01-01 21:30", "2027-01-02 21:30"]),
        # Berlin's clocks go forward on 28 March at 02:00, and back on 31 October at 03:00.
        ("TZ=Europe/Berlin 30 2 * * *", "2027-03-26T12:00", ["2027-03-27 01:30", "2027-03-29 00:30"]),
        (
            "TZ=Europe/Berlin 30 2 * * *",
            "2027-10-30T12:00",
            ["2027-10-31 00:30", "2027-10-31 01:30", "2027-11-01 01:30"],
        ),
        ("TZ=Europe/Berlin 0 * * * *", "2027-03-28T00:00", ["2027-03-28 01:00", "2027-03-28 02:00"]),
    ],
)
def test_ticks(text: str, since: str, expected: list[str]) -> None:
    assert ticks(text, since, len(expected)) == expected


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "* * * *",
            "* * * * * *",
            "60 * * * *",
            "* 24 * * *",
            "* * 0 * *",
            "* * * 13 *",
            "* * * * 8",
            "a * * * *",
        ),
        *("*/0 * * * *", "5-1 * * * *", "1-2-3 * * * *", "*/ * * * *", "-1 * * * *", "0 0 31 2 *", "@daily"),
        *("TZ=Nowhere 0 0 * * *", "TZ= 0 0 * * *", "TZ=/etc/passwd 0 0 * * *"),
    ],
)
def test_what_is_none(text: str) -> None:
    with pytest.raises(cron.BadCron):
        cron.parse(text)
