"""The sandbox's clock: set through the control API, then running on with the machine. Instants are Unix seconds."""

import time
from datetime import UTC, date, datetime, timedelta, timezone
from functools import lru_cache

SHANGHAI = timezone(timedelta(hours=8), "Asia/Shanghai")  # China has had no summer time since 1991
MINUTE, HOUR, DAY = 60, 3600, 86400
OFFSET = 8 * HOUR
BACKWARD_TOLERANCE = 10 * MINUTE


class ClockError(ValueError):
    """The clock cannot be set like that; str() is the sentence for the caller."""


class Clock:
    def __init__(self, now: float) -> None:
        self.set(now)

    def now(self) -> float:
        return self._base + time.monotonic() - self._started

    def set(self, now: float) -> None:
        self._base, self._started = now, time.monotonic()

    def move(self, now: float) -> None:
        """Set the clock forward. A few minutes back are allowed, because two clocks never agree to the second."""
        if now < self.now() - BACKWARD_TOLERANCE:
            raise ClockError(
                f"the clock stands at {iso(self.now())} and only moves forward; POST /control/reset starts over"
            )
        self.set(now)


def iso(at: float) -> str:
    """2026-03-15T02:30:00+08:00"""
    return datetime.fromtimestamp(int(at), SHANGHAI).isoformat()


def parse_iso(text: str) -> float:
    """An ISO 8601 instant with offset. Raises ClockError."""
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError) as error:
        raise ClockError(f"{text!r} is not an instant like 2026-03-15T02:30:00+08:00") from error
    if moment.tzinfo is None:
        raise ClockError(f"{text!r} has no offset; write it like 2026-03-15T02:30:00+08:00")
    return moment.timestamp()


@lru_cache(1 << 16)
def shop_time(at: int) -> str:
    """`yyyy-MM-dd HH:mm:ss` in China time, as TOP writes it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at + OFFSET))


def parse_shop_time(text: str) -> int:
    """The instant of a TOP time. Raises ValueError."""
    moment = datetime.strptime(text, "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
    return int(moment.timestamp()) - OFFSET


def day_start(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=SHANGHAI).timestamp())


def day_of(at: float) -> date:
    return datetime.fromtimestamp(at, SHANGHAI).date()


def months_before(at: float, months: int) -> int:
    """Midnight of the calendar day `months` before the day of `at` (the last day of a shorter month)."""
    day = day_of(at)
    index = day.year * 12 + day.month - 1 - months
    year, month = divmod(index, 12)
    for last in (day.day, 30, 29, 28):
        try:
            return day_start(date(year, month + 1, last))
        except ValueError:
            continue
    raise AssertionError("every month has 28 days")
