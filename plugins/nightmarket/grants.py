"""What a person decides about a member's tier and points by hand. Each decision is a fact of core and a line of the audit log.

Nothing is changed in the marts here: the next night tells the history with it (`nightmarket marts` does so at once).
"""

from datetime import date, datetime
from typing import Literal

import psycopg
from psycopg.types.json import Jsonb

from nightmarket import dates
from nightmarket.warehouse import Row, connect


def decide_tier(
    member_id: int,
    kind: Literal["grant", "freeze"],
    *,
    tier: str | None = None,
    programme: str | None = None,
    first: date | None = None,
    until: date | None = None,
    reason: str,
    actor: str,
) -> int:
    """Grant at least `tier`, or freeze the tier, from `first` (default today) to before `until`; returns the grant's id.

    Raises ValueError with a sentence when the member, the programme or the tier is not there, or the stretch is empty.
    """
    start = first or dates.today()
    if until is not None and until <= start:
        raise ValueError(f"--until {until} is not after {start}.")
    if not reason.strip():
        raise ValueError("the reason is missing: the audit log needs one.")
    with connect(application_name="nightmarket-grants") as connection:
        member = _member(connection, member_id)
        known = connection.execute(
            "SELECT p.programme, array_agg(r.tier ORDER BY r.rank) AS tiers FROM mart.tier_programmes AS p"
            " JOIN mart.tier_rules AS r USING (programme) GROUP BY p.programme, p.position ORDER BY p.position"
        ).fetchall()
        by_name = {row["programme"]: row["tiers"] for row in known}
        chosen = programme or (known[0]["programme"] if known else "")
        if chosen not in by_name:
            raise ValueError(
                f"there is no programme {chosen!r}; there are {', '.join(by_name) or 'none yet: run a night'}."
            )
        if kind == "grant" and tier not in by_name[chosen]:
            raise ValueError(f"programme {chosen!r} has no tier {tier!r}; it has {', '.join(by_name[chosen])}.")
        row = connection.execute(
            "INSERT INTO core.tier_grants (programme, member_id, kind, tier, valid_from, valid_to, reason, given_by, given_at)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s) RETURNING grant_id",
            (chosen, member, kind, tier if kind == "grant" else None, start, until, reason, actor, dates.now()),
        ).fetchone()
        assert row is not None
        detail = {
            "programme": chosen,
            "tier": tier,
            "from": str(start),
            "until": until and str(until),
            "reason": reason,
        }
        _note(connection, actor, f"tier_{kind}", f"member {member}", detail | {"grant_id": row["grant_id"]})
        return int(row["grant_id"])


def revoke_tier(grant_id: int, *, reason: str, actor: str) -> None:
    """End a grant or a freeze today; what it did until today stays in the history. Raises ValueError when there is none."""
    with connect(application_name="nightmarket-grants") as connection:
        row = connection.execute(
            "UPDATE core.tier_grants SET revoked_at = %s WHERE grant_id = %s AND revoked_at IS NULL RETURNING member_id",
            (dates.now(), grant_id),
        ).fetchone()
        if row is None:
            raise ValueError(f"there is no grant {grant_id} in force.")
        _note(connection, actor, "tier_revoke", f"member {row['member_id']}", {"grant_id": grant_id, "reason": reason})


def use_points(
    member_id: int, points: int, *, kind: Literal["redeem", "adjust"], use_id: str, reason: str, actor: str
) -> int:
    """Spend points, or give (positive) or take (negative) them by hand; returns the balance that is left, as the marts know it.

    `use_id` makes it happen once: the same one again changes nothing. Raises ValueError when more is spent than is there.
    """
    if points == 0 or (kind == "redeem" and points < 0):
        raise ValueError("give a number of points other than 0; what is redeemed is positive.")
    with connect(application_name="nightmarket-grants") as connection:
        member = _member(connection, member_id)
        connection.execute("SELECT FROM core.members WHERE member_id = %s FOR UPDATE", (member,))  # one purse, one hand
        known = connection.execute(
            "SELECT mart.points_balance(%(member)s) AS balance,"
            " EXISTS (SELECT FROM core.point_uses AS u WHERE u.use_id = %(use)s) AS is_done",
            {"member": member, "use": use_id},
        ).fetchone()
        assert known is not None
        balance = int(known["balance"])
        if known["is_done"]:
            return balance
        if kind == "redeem" and points > balance:
            raise ValueError(f"member {member} has {balance:,} points; {points:,} cannot be spent.")
        now: datetime = dates.now()
        connection.execute(
            "INSERT INTO core.point_uses (use_id, member_id, kind, points, reason, used_at) VALUES (%s, %s, %s, %s, %s, %s)",
            (use_id, member, kind, points, reason, now),
        )
        _note(
            connection,
            actor,
            f"points_{kind}",
            f"member {member}",
            {"points": points, "use_id": use_id, "reason": reason},
        )
        return balance - points if kind == "redeem" else balance + points


def _member(connection: psycopg.Connection[Row], member_id: int) -> int:
    row = connection.execute(
        "SELECT coalesce(m.absorbed_by, m.member_id) AS member_id FROM core.members AS m WHERE m.member_id = %s",
        (member_id,),
    ).fetchone()
    if row is None:
        raise ValueError(f"there is no member {member_id}.")
    return int(row["member_id"])


def _note(
    connection: psycopg.Connection[Row], actor: str, action: str, subject: str, detail: dict[str, object]
) -> None:
    connection.execute(
        "INSERT INTO push.audit_log (actor, action, subject, detail) VALUES (%s, %s, %s, %s)",
        (actor, action, subject, Jsonb(detail)),
    )
