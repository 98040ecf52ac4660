"""Times as Chinese platforms write them: the wall clock of China, without an offset."""

from datetime import datetime

from nightmarket.dates import DEFAULT_ZONE as ZONE

TIME_FORMAT = "%Y-%m-%d %H:%M:%S"


def to_time(text: object) -> datetime | None:
    """An instant from a China-time text; None when it is not one."""
    try:
        return datetime.fromisoformat(str(text)).replace(tzinfo=ZONE)
    except ValueError:
        return None


def to_text(instant: datetime) -> str:
    """The text of an instant, cut to the second."""
    return instant.astimezone(ZONE).strftime(TIME_FORMAT)
