"""Service cases: a bad review that somebody has to answer, by when, and who was told of it.

What is bad and how many hours there are is said once, in kpis.yaml (`service`). The hours run on the clock from when the review
was written, nights and Sundays included, as mart.service_kpis_daily counts them (docs/decisions/0078-reviews-in-full.md).
"""

import logging
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta

import psycopg

from nightmarket import dates, robots
from nightmarket.campaigns.audience import audit
from nightmarket.campaigns.config import load_journey
from nightmarket.campaigns.journeys import REVIEWS
from nightmarket.marts import load_kpis
from nightmarket.settings import get_settings
from nightmarket.sources import load_sources
from nightmarket.warehouse import Row, connect, run_sql

log = logging.getLogger(__name__)
LINES_TOLD = 20  # of one kind in one alert; the console lists the rest


def watch_cases() -> dict[str, int]:
    """Open, answer and time out cases by what the shops say now, and tell the team; counts of opened, answered, overdue, told.

    Reviews older than the journey's case_within_days open no case. Safe to repeat at any time; each case is told of once when
    it is opened and once when its deadline has passed, again only when the robot could not be reached.
    """
    service, within_days, now = load_kpis().service, load_journey(REVIEWS).case_within_days, dates.now()
    with connect(application_name="nightmarket-cases") as connection:
        changes = run_sql(
            connection,
            "push/review_cases.sql",
            {
                "now_at": now,
                "written_from": now - timedelta(days=within_days),
                "negative_to_rating": service.negative_to_rating,
                "reply_hours": service.reply_hours,
            },
        )
        counts = Counter(row["change"] for row in changes)
    told = _tell_team(now)
    log.info("service cases: %s opened, %s answered, %s overdue, %s told", counts["opened"], counts["answered"], counts["overdue"], told)  # fmt: skip
    return {"opened": counts["opened"], "answered": counts["answered"], "overdue": counts["overdue"], "told": told}


def close_case(case_id: int, *, by: str, reason: str) -> None:
    """Settle a case without a reply in the shop, e.g. by a call. Raises ValueError with a sentence."""
    if not reason.strip():
        raise ValueError("the reason is missing: the audit log needs one.")
    with connect(application_name="nightmarket-cases") as connection:
        row = connection.execute(
            "UPDATE push.service_cases SET state = 'closed', closed_at = %s, closed_by = %s, close_reason = %s"
            " WHERE case_id = %s AND state IN ('open', 'overdue') RETURNING source_id",
            (dates.now(), by, reason.strip(), case_id),
        ).fetchone()
        if row is None:
            raise ValueError(f"there is no open case {case_id}.")
        audit(connection, by, "close_case", f"case {case_id}", {"reason": reason.strip()})


def assign_case(case_id: int, *, to: str, by: str) -> None:
    """Say who looks after a case. Raises ValueError when it is not open."""
    with connect(application_name="nightmarket-cases") as connection:
        row = connection.execute(
            "UPDATE push.service_cases SET assigned_to = %s WHERE case_id = %s AND state IN ('open', 'overdue') RETURNING case_id",
            (to, case_id),
        ).fetchone()
        if row is None:
            raise ValueError(f"there is no open case {case_id}.")
        audit(connection, by, "assign_case", f"case {case_id}", {"to": to})


def _tell_team(now: datetime) -> int:
    """One alert for what is new, one for what is late; written down as told only when it was."""
    told = 0
    for column, state, subject in (
        ("overdue_told_at", "overdue", "差评逾期未回复 Reviews not answered in time"),
        ("opening_told_at", "open", "新的差评待回复 Bad reviews to answer"),
    ):
        with connect(application_name="nightmarket-cases") as connection:
            rows = connection.execute(
                "SELECT case_id, source_id, order_id, review_id, deadline_at, assigned_to FROM push.service_cases"
                f" WHERE state = %s AND {column} IS NULL ORDER BY deadline_at, case_id FOR UPDATE SKIP LOCKED",
                (state,),
            ).fetchall()
            if not rows:
                continue
            if not _tell(connection, f"{subject}: {len(rows)}", [_line(row) for row in rows[:LINES_TOLD]]):
                continue
            connection.execute(
                f"UPDATE push.service_cases SET {column} = %s WHERE case_id = ANY(%s)",
                (now, [row["case_id"] for row in rows]),
            )
            told += len(rows)
    return told


def _line(row: Row) -> str:
    """A robot's group is outside our house: the shop, the end of the order number (or of the review's), and the deadline are enough to find a case."""
    shop = load_sources()[row["source_id"]].name if row["source_id"] in load_sources() else row["source_id"]
    due = row["deadline_at"].astimezone(get_settings().zone)
    who = f" @{row['assigned_to']}" if row["assigned_to"] else ""
    return f"#{row['case_id']} {shop} …{(row['order_id'] or row['review_id'])[-4:]} 截止 due {due:%m-%d %H:%M}{who}"


def _tell(connection: psycopg.Connection[Row], subject: str, lines: Sequence[str]) -> bool:
    """To the team's robots, and always to the log and the audit log; False when there are robots and none could be reached."""
    log.warning("ALERT %s | %s", subject, " | ".join(lines))
    audit(connection, "cases", "alert", subject, {"lines": list(lines)})
    came = robots.tell(subject, lines, quiet=timedelta(0))
    return not came or set(came.values()) != {"failed"}
