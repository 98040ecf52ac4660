"""All date arithmetic: the clock, the business date, extraction windows, send windows.

A *business date* is a calendar day of the configured zone (default Asia/Shanghai). A night run of business date D
works on everything that happened before midnight at the end of D, whenever the run really starts.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

DEFAULT_ZONE = ZoneInfo("Asia/Shanghai")


def now() -> datetime:
    """The current instant (UTC, aware). The only clock of the product.

    The demo and the tests move it: when NIGHTMARKET_CLOCK_FILE names a file, that file holds an offset in seconds
    that is added to the machine's clock (docs/decisions/0003-one-clock.md). In production the variable is unset.
    """
    real = datetime.now(UTC)  # noqa: TID251 - the one place
    clock_file = os.environ.get("NIGHTMARKET_CLOCK_FILE")
    if not clock_file:
        return real
    try:
        offset = float(Path(clock_file).read_text().strip() or 0)
    except FileNotFoundError:
        return real
    return real + timedelta(seconds=offset)


def today(zone: ZoneInfo = DEFAULT_ZONE) -> date:
    """The calendar day it is now in `zone`."""
    return now().astimezone(zone).date()


def business_date(value: str | date | None = None, zone: ZoneInfo = DEFAULT_ZONE) -> date:
    """The business date a run is for: the given one, or yesterday in `zone`.

    Raises ValueError with a sentence when the text is not a date or lies in the future.
    """
    if value is None or value == "":
        return today(zone) - timedelta(days=1)
    if isinstance(value, str):
        try:
            value = date.fromisoformat(value)
        except ValueError as error:
            raise ValueError(f"business date {value!r} is not a date of the form YYYY-MM-DD") from error
    if value > today(zone):
        raise ValueError(f"business date {value} lies in the future (today is {today(zone)} in {zone.key})")
    return value


def day_start(day: date, zone: ZoneInfo = DEFAULT_ZONE) -> datetime:
    """The first instant of `day` in `zone`."""
    return datetime.combine(day, time.min, tzinfo=zone)


def day_end(day: date, zone: ZoneInfo = DEFAULT_ZONE) -> datetime:
    """The first instant after `day` in `zone`: [day_start, day_end) is the day."""
    return day_start(day + timedelta(days=1), zone)


@dataclass(frozen=True)
class Window:
    """A half-open stretch of time, [start, end)."""

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        if self.end <= self.start:
            raise ValueError(f"window ends ({self.end}) before it starts ({self.start})")

    def split(self) -> tuple["Window", "Window"]:
        """Two halves, for a platform that refuses more rows than a window may hold."""
        middle = self.start + (self.end - self.start) / 2
        return Window(self.start, middle), Window(middle, self.end)


def windows(start: datetime, end: datetime, size: timedelta) -> Iterator[Window]:
    """Consecutive windows of at most `size` that cover [start, end) without gap or overlap; nothing when start >= end."""
    while start < end:
        stop = min(start + size, end)
        yield Window(start, stop)
        start = stop


def send_window(instant: datetime, opens: time, closes: time, zone: ZoneInfo = DEFAULT_ZONE) -> datetime:
    """The first instant >= `instant` at which sending is allowed.

    Allowed is [opens, closes) on the receiver's clock; a window may go over midnight (opens > closes).
    opens == closes means always. A message that falls outside waits; it is never sent early or late.
    """
    local = instant.astimezone(zone)
    clock = local.time().replace(tzinfo=None)
    if opens == closes:
        return instant
    inside = opens <= clock < closes if opens < closes else clock >= opens or clock < closes
    if inside:
        return instant
    opening = datetime.combine(local.date(), opens, tzinfo=zone)
    if opening <= local:
        opening = datetime.combine(local.date() + timedelta(days=1), opens, tzinfo=zone)
    return opening
