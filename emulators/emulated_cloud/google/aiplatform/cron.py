"""Cron expressions of five fields, in a time zone: `TZ=Asia/Seoul 0 3 * * *`, `CRON_TZ=…`, or in UTC.

Of a local time that comes twice when clocks go back both are ticks; one that is skipped when they go forward is none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_FAR = timedelta(days=9 * 366)
"""Beyond it nothing comes that has not come before: there are 8 years between two leap days at most."""


class BadCron(ValueError):
    """An expression that is none: what is wrong with it."""


@dataclass(frozen=True)
class Cron:
    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    either_day: bool
    """Both days of the month and of the week are restricted: a day is one of the ones or of the others."""
    zone: ZoneInfo

    def after(self, time: datetime) -> datetime | None:
        """The first tick after a time; None when there is none."""
        day = time.astimezone(self.zone).date()
        last = day + _FAR
        while day <= last:
            if self._has(day):
                ticks = sorted(tick for tick in self._ticks(day) if tick > time)
                if ticks:
                    return ticks[0]
            day += timedelta(days=1)
        return None

    def _has(self, day: date) -> bool:
        if day.month not in self.months:
            return False
        of_month, of_week = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        return of_month or of_week if self.either_day else of_month and of_week

    def _ticks(self, day: date) -> Iterator[datetime]:
        for hour in self.hours:
            for minute in self.minutes:
                for fold in (0, 1):
                    local = datetime(day.year, day.month, day.day, hour, minute, tzinfo=self.zone, fold=fold)
                    tick = local.astimezone(UTC)
                    # Not one that is skipped, nor one that comes once for the second time.
                    if tick.astimezone(self.zone).replace(fold=0) == local.replace(fold=0) and (
                        not fold or local.utcoffset() != local.replace(fold=0).utcoffset()
                    ):
                        yield tick


def parse(text: str) -> Cron:
    """Raises BadCron."""
    found = re.fullmatch(r"(?:(?:CRON_)?TZ=(\S+)\s+)?(.*)", text.strip())
    assert found
    fields = found[2].split()
    if len(fields) != 5:
        raise BadCron(f"it has {len(fields)} fields, not 5")
    try:
        zone = ZoneInfo(found[1] or "UTC")
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise BadCron(f"there is no time zone {found[1]}") from None
    minutes, hours, days, months, weekdays = fields
    cron = Cron(
        minutes=_numbers(minutes, 0, 59),
        hours=_numbers(hours, 0, 23),
        days=_numbers(days, 1, 31),
        months=_numbers(months, 1, 12, _MONTHS),
        weekdays=frozenset(number % 7 for number in _numbers(weekdays, 0, 7, _WEEKDAYS)),
        either_day=not days.startswith("*") and not weekdays.startswith("*"),
        zone=zone,
    )
    if cron.after(datetime.now(UTC)) is None:
        raise BadCron("there is no such day")
    return cron


def _numbers(field: str, least: int, most: int, names: tuple[str, ...] = ()) -> frozenset[int]:
    found: set[int] = set()
    for part in field.split(","):
        whole, _, step = part.partition("/")
        first, _, last = whole.partition("-")
        if whole == "*":
            low, high = least, most
        else:
            low = _number(first, least, names)
            high = _number(last, least, names) if last else most if step else low
        if not (least <= low <= high <= most) or (step and not step.isdecimal()) or ("/" in part and not step):
            raise BadCron(f"{part!r} is not within {least} to {most}")
        if step and not int(step):
            raise BadCron(f"{part!r} steps by 0")
        found |= set(range(low, high + 1, int(step or 1)))
    return frozenset(found)


def _number(text: str, least: int, names: tuple[str, ...]) -> int:
    if text.lower() in names:
        return names.index(text.lower()) + least
    if not text.isdecimal():
        raise BadCron(f"{text!r} is no number")
    return int(text)
