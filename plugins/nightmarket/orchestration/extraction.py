"""What an extraction run lands: the night's own work, or a past stretch that a person named in the form; and what it says of it.

A long stretch becomes several pieces, so that the UI shows how far it is, a failed piece is retried alone, and no task runs
for hours.
"""

from collections.abc import Iterable, Mapping
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any

from nightmarket import dates
from nightmarket.dates import Window

if TYPE_CHECKING:
    from nightmarket.landing import LandingSummary

SUMMARY = ("stream", "seen", "changed", "rejected", "requests", "windows", "watermark", "new_fields")
MAX_PIECES = 24  # per stream; a process per piece costs a second


def pieces_of(params: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One piece per stream, or per stream and part of the stretch. Raises ValueError with a sentence."""
    first, last = params.get("backfill_from"), params.get("backfill_to")
    streams = params["streams"]
    if not first and not last:
        return [{"stream": stream} for stream in streams]
    if not first or not last:
        raise ValueError("a backfill needs both dates, from and to; leave both empty for the night's own work")
    start, end = date.fromisoformat(first), date.fromisoformat(last)
    if end < start:
        raise ValueError(f"the backfill ends ({end}) before it begins ({start})")
    if start > dates.today():
        raise ValueError(f"the backfill begins in the future ({start}; today is {dates.today()})")
    step = timedelta(days=-(-((end - start).days + 1) // MAX_PIECES))
    pieces = []
    day = start
    while day <= end:
        last_day = min(day + step - timedelta(days=1), end)
        pieces += [{"stream": stream, "from": day.isoformat(), "to": last_day.isoformat()} for stream in streams]
        day = last_day + timedelta(days=1)
    return pieces


def window_of(piece: Mapping[str, Any]) -> Window | None:
    """The stretch of a piece, whole days of the business zone; None: from where the last run stopped."""
    if "from" not in piece:
        return None
    return Window(
        dates.day_start(date.fromisoformat(piece["from"])),
        min(dates.day_end(date.fromisoformat(piece["to"])), dates.now()),
    )


def land_piece(
    source_id: str, piece: Mapping[str, Any], *, run_id: str, limit: int | None, dry_run: bool
) -> "LandingSummary":
    """Land one piece; what a long one brings is mapped while it is still being read."""
    from nightmarket.landing import land
    from nightmarket.mapping import Alongside

    until = datetime.fromisoformat(piece["until"])
    with Alongside(source_id, piece["stream"], run_id=run_id, as_of_at=until) as mapped:
        return land(
            source_id,
            piece["stream"],
            run_id=run_id,
            until=until,
            limit=limit,
            dry_run=dry_run,
            window=window_of(piece),
            committed=mapped.landed,
        )


def map_landed(source_id: str, piece: Mapping[str, Any], *, run_id: str) -> None:
    """Everything new of a source from raw into core. The instant of the plan stamps it: a cleared task decides the same."""
    from nightmarket.mapping import map_source

    map_source(source_id, run_id=run_id, as_of_at=datetime.fromisoformat(piece["until"]))


def name_of(piece: Mapping[str, Any]) -> str:
    """What the UI calls a mapped task."""
    return f"{piece['stream']} {piece['from']} to {piece['to']}" if "from" in piece else str(piece["stream"])


def totals_by_stream(landed: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """The counts of all pieces of a run, added up by stream."""
    totals: dict[str, dict[str, int]] = {}
    for row in landed:
        counts = totals.setdefault(row["stream"], {"seen": 0, "changed": 0, "rejected": 0})
        for name in counts:
            counts[name] += row[name]
    return totals


def describe(source: Any, words: str) -> str:
    """The DAG's page: what this source is, where a person looks into the platform itself, then `words`."""
    console = f" · [the platform's console]({source.console_url})" if source.console_url else ""
    limits = [f"{source.calls_per_second:g} calls/s"] if source.calls_per_second else []
    limits += [f"{source.calls_per_day:,} calls/day"] if source.calls_per_day else []
    heading = f"**{source.name}**: platform `{source.platform}`, connection `{source.conn_id}`{console}"
    limit_words = f" Limits: {', '.join(limits)}." if limits else ""
    return f"{heading}\n\nStreams: {', '.join(source.streams)}.{limit_words}\n\n{words}"
