"""Coupons of any issuer: reserved under a lock, issued under a key that never changes, never more than the budget.

reserved -> unknown (a call is being made) -> issued -> redeemed | expired; released = never given, or taken back unseen. A
platform that recognises a repeated request is asked again until it says which of the two it is; one that does not is never
asked twice, and a person decides. Codes of our own need no call: they are bound in one transaction.
"""

import asyncio
import logging
from collections.abc import Sequence
from datetime import datetime

import psycopg

from nightmarket import dates
from nightmarket.campaigns import codes
from nightmarket.campaigns.audience import RunRefused, audit, lock_run
from nightmarket.campaigns.config import CODE_ISSUERS, Stock, load_channels
from nightmarket.campaigns.issuers import ISSUERS, open_issuer
from nightmarket.campaigns.issuers.base import Busy, InDoubt, Issuer, IssuerError, Refused, Seen, Stopped
from nightmarket.campaigns.stocks import (
    free_count,
    lock_stock,
    receiver_parameters,
    require_approved,
    shown,
    stock_of,
    sync_stock,
    valid_until,
)
from nightmarket.warehouse import Row, connect, run_sql

__all__ = [
    "CouponsExhausted", "CouponsInDoubt", "collect_redemptions", "coupon_counts", "free_count", "grant", "issue",
    "receiver_parameters", "release", "reserve", "resolve", "shown", "stock_of", "sync_stock", "valid_until",
]  # fmt: skip
log = logging.getLogger(__name__)
STEP = "send"
GROUP = 50  # coupons marked as being called at a time: what a crash leaves in doubt
TRIES = 5
FIRST_WAIT_SECONDS = 0.5
CONNECTIONS = 16
SILENT_ISSUERS = [*CODE_ISSUERS, *(name for name, kind in ISSUERS.items() if not kind.tells_use)]


class CouponsExhausted(RunRefused):
    """The stock has fewer coupons left than the run needs; none was reserved."""


class CouponsInDoubt(RuntimeError):
    """Some coupons are still unknown after all tries; the sentence says whether repeating the step helps or a person decides."""


def reserve(run_id: str) -> int:
    """Set one coupon aside for every targeted member who can have one; returns how many the run has. All or none.

    The stock's row is locked, so that any number of runs at once never reserve more than its budget. Points are taken here.
    Raises CouponsExhausted, RunRefused.
    """
    with connect(application_name="nightmarket-coupons") as connection:
        run = lock_run(connection, run_id)
        stock_id = stock_of(run)
        if stock_id is None:
            return 0
        if run["state"] not in ("approved", "sending", "sent"):
            raise RunRefused(f"run {run_id} is {run['state']}, not approved; no coupon is reserved.")
        stock = lock_stock(connection, stock_id)
        require_approved(connection, run)
        receivers = receiver_parameters(run)
        if receivers["points_price"]:
            _lock_purses(connection, run_id)
        parameters = {
            "run_id": run_id,
            "key_prefix": request_key_prefix(run),
            "step": STEP,
            "now_at": dates.now(),
            **receivers,
        }
        needed = run_sql(connection, "push/coupons_needed.sql", parameters)[0]["needed_count"]
        free = free_count(connection, stock)
        if needed > free:
            raise CouponsExhausted(
                f"coupon stock {stock_id} has {free:,} free coupons, run {run_id} needs {needed:,}; nothing was reserved."
            )
        run_sql(connection, "push/coupons_reserve.sql", parameters)
        row = connection.execute(
            "SELECT count(*) AS n FROM push.coupons WHERE run_id = %s AND state <> 'released'", (run_id,)
        ).fetchone()
        assert row is not None
        if needed:
            audit(connection, "coupons", "reserve", run_id, {"stock": stock_id, "coupons": needed})
        return int(row["n"])


def _lock_purses(connection: psycopg.Connection[Row], run_id: str) -> None:
    """Nobody else spends these members' points until we are done; in one order, so that two runs never wait for each other."""
    connection.execute(
        "SELECT FROM core.members WHERE member_id IN (SELECT coalesce(m.absorbed_by, m.member_id) FROM push.audiences AS a"
        " JOIN core.members AS m ON m.member_id = a.member_id WHERE a.run_id = %s AND a.state = 'targeted')"
        " ORDER BY member_id FOR UPDATE",
        (run_id,),
    )


def request_key_prefix(run: Row) -> str:
    """Derived, never random: the same grant has the same key in every attempt. Letters, digits and _ only."""
    base = f"{run['campaign']}_{run['as_of']:%Y%m%d}"
    return base if run["mode"] == "live" else base + "_t" + run["run_id"].partition("#")[2]


def issue(run_id: str) -> dict[str, int]:
    """Give out the run's reserved coupons; counts by state of the run's coupons.

    May be called again at any time, also by two workers at once: one coupon per request key. Raises RunRefused when nobody
    can have one (budget, codes, signature, stock), CouponsInDoubt when some are still unknown.
    """
    with connect(autocommit=True, application_name="nightmarket-coupons") as connection:
        run = connection.execute("SELECT * FROM push.campaign_runs WHERE run_id = %s", (run_id,)).fetchone()
        if run is None:
            raise RunRefused(f"there is no run {run_id!r}.")
        if run["state"] not in ("approved", "sending", "sent"):
            raise RunRefused(f"run {run_id} is {run['state']}; no coupon is issued.")
        stock_id = stock_of(run)
        if stock_id is not None:
            rows = connection.execute(
                "SELECT request_key FROM push.coupons WHERE run_id = %s AND state IN ('reserved', 'unknown')", (run_id,)
            ).fetchall()
            try:
                _issue_keys(connection, stock_id, [row["request_key"] for row in rows])
            except Stopped as error:
                raise RunRefused(f"run {run_id}: {error}") from None
        counts = coupon_counts(connection, run_id)
    log.info("run %s: coupons %s", run_id, ", ".join(f"{n:,} {state}" for state, n in counts.items()) or "none")
    if counts.get("unknown"):
        raise CouponsInDoubt(f"run {run_id}: {_doubt(run, counts['unknown'])}")
    if counts.get("reserved"):
        raise CouponsInDoubt(
            f"run {run_id}: {counts['reserved']} coupons could not be asked for yet; repeat this step."
        )
    return counts


def _doubt(run: Row, count: int) -> str:
    stock = Stock.model_validate(run["config"]["stocks"][stock_of(run)])
    if ISSUERS[stock.issuer].is_repeatable:
        return f"{count} coupons are in doubt; repeat this step."
    return (
        f"{count} coupons are in doubt and {stock.issuer} cannot be asked: look there whether they were given, "
        "then `nightmarket coupons resolve`."
    )


def grant(stock_id: str, member_id: int, request_key: str, *, by: str, reason: str) -> str:
    """Give one member one coupon outside of any run (a reward, points spent at a desk); returns its state, `issued` or `unknown`.

    The same request key again gives the same coupon. A test stock is refused. Raises CouponsExhausted, RunRefused (also for a
    person the issuer refuses), CouponsInDoubt.
    """
    with connect(application_name="nightmarket-coupons") as connection:
        stock = lock_stock(connection, sync_stock(connection, stock_id)["stock_id"])
        wanted = load_channels().coupon_stocks[stock_id]
        known = connection.execute("SELECT * FROM push.coupons WHERE request_key = %s", (request_key,)).fetchone()
        if known is None:
            _reserve_one(connection, stock, wanted, member_id, request_key)
            audit(
                connection,
                by,
                "coupon_grant",
                f"member {member_id}",
                {"stock": stock_id, "key": request_key, "reason": reason},
            )
    with connect(autocommit=True, application_name="nightmarket-coupons") as connection:
        try:
            _issue_keys(connection, stock_id, [request_key])
        except Stopped as error:
            raise RunRefused(f"coupon {request_key}: {error}") from None
        row = connection.execute("SELECT * FROM push.coupons WHERE request_key = %s", (request_key,)).fetchone()
        assert row is not None
        if row["state"] == "released":
            raise RunRefused(f"coupon {request_key} is not given: {row['last_error']}")
        if row["state"] in ("unknown", "reserved"):
            raise CouponsInDoubt(f"coupon {request_key} is {row['state']}: {row['last_error']}")
        connection.execute(
            """
            INSERT INTO core.coupon_events (issuer, platform_coupon_id, kind, coupon_request, member_id, face_amount, occurred_at)
            SELECT s.issuer, c.platform_coupon_id, 'issued', c.request_key, c.member_id, s.face_amount, c.issued_at
            FROM push.coupons AS c JOIN push.coupon_stocks AS s ON s.stock_id = c.stock_id
            WHERE c.request_key = %s AND c.issued_at IS NOT NULL AND NOT s.is_test
            ON CONFLICT (issuer, platform_coupon_id, kind) DO NOTHING
            """,
            (request_key,),
        )
    return str(row["state"])


def _reserve_one(
    connection: psycopg.Connection[Row], stock: Row, wanted: Stock, member_id: int, request_key: str
) -> None:
    price = wanted.points_price or 0
    person = connection.execute(
        """
        SELECT p.member_id,
            (SELECT i.value FROM core.member_identities AS mi JOIN core.identities AS i ON i.identity_id = mi.identity_id
             WHERE mi.member_id = p.member_id AND i.kind = %(kind)s ORDER BY i.identity_id DESC LIMIT 1) AS receiver,
            (SELECT count(*) FROM push.coupons AS c JOIN core.members AS f ON f.member_id = c.member_id
             WHERE c.stock_id = %(stock)s AND c.state <> 'released' AND coalesce(f.absorbed_by, f.member_id) = p.member_id) AS held
        FROM core.members AS m JOIN core.members AS p ON p.member_id = coalesce(m.absorbed_by, m.member_id)
        WHERE m.member_id = %(member)s FOR UPDATE OF p
        """,
        {"kind": wanted.receiver_kind, "stock": stock["stock_id"], "member": member_id},
    ).fetchone()
    if person is None:
        raise RunRefused(f"there is no member {member_id}.")
    if wanted.receiver_kind and person["receiver"] is None:
        raise RunRefused(f"member {member_id} has no {wanted.receiver_kind}: {wanted.issuer} does not know them.")
    if person["held"] >= stock["per_member_limit"]:
        raise RunRefused(
            f"member {member_id} has had {person['held']} of stock {stock['stock_id']}, as many as one may have."
        )
    if free_count(connection, stock) < 1:
        raise CouponsExhausted(f"coupon stock {stock['stock_id']} has 0 free coupons; nothing was reserved.")
    member, now = person["member_id"], dates.now()
    if price:  # after the lock of the member: nobody spends these points meanwhile
        purse = connection.execute("SELECT mart.points_balance(%s) AS points", (member,)).fetchone()
        if purse is None or purse["points"] < price:
            raise RunRefused(
                f"member {member} has {purse['points'] if purse else 0:,} points; {price:,} cannot be spent."
            )
        connection.execute(
            "INSERT INTO core.point_uses (use_id, member_id, kind, points, reason, used_at) VALUES (%s, %s, 'redeem', %s, %s, %s)",
            (f"coupon/{request_key}", member, price, f"coupon of stock {stock['stock_id']}", now),
        )
    connection.execute(
        """
        INSERT INTO push.coupons (request_key, stock_id, member_id, receiver, state, points_paid, reserved_at, updated_at)
        VALUES (%s, %s, %s, %s, 'reserved', %s, %s, %s)
        """,
        (request_key, stock["stock_id"], member, person["receiver"], price, now, now),
    )


def coupon_counts(connection: psycopg.Connection[Row], run_id: str) -> dict[str, int]:
    rows = connection.execute(
        "SELECT state, count(*) AS n FROM push.coupons WHERE run_id = %s GROUP BY state ORDER BY state", (run_id,)
    )
    return {row["state"]: row["n"] for row in rows}


def _issue_keys(connection: psycopg.Connection[Row], stock_id: str, keys: Sequence[str]) -> None:
    """Issue these coupons of one stock; what was issued before stays as it is. Raises Stopped, RunRefused."""
    stock = connection.execute("SELECT * FROM push.coupon_stocks WHERE stock_id = %s", (stock_id,)).fetchone()
    if stock is None or not keys:
        return
    if stock["has_codes"]:
        with connection.transaction():
            codes.bind(connection, lock_stock(connection, stock_id), list(keys))
        return
    # the file says which account and which call; the row, which stock was approved and compared with the issuer
    wanted = (
        load_channels().coupon_stocks[stock_id].model_copy(update={"platform_stock_id": stock["platform_stock_id"]})
    )
    asyncio.run(_issue_all(connection, wanted, sorted(keys)))


async def _issue_all(connection: psycopg.Connection[Row], stock: Stock, keys: Sequence[str]) -> None:
    async with open_issuer(stock, connections=CONNECTIONS) as issuer:
        states = ["reserved", "unknown"] if issuer.is_repeatable else ["reserved"]
        for start in range(0, len(keys), GROUP):
            group = connection.execute(
                """
                UPDATE push.coupons AS c SET state = 'unknown', updated_at = %(now)s
                WHERE c.request_key IN (
                    SELECT request_key FROM push.coupons
                    WHERE request_key = ANY(%(keys)s) AND state = ANY(%(states)s)
                    ORDER BY request_key FOR UPDATE
                ) AND c.state = ANY(%(states)s)
                RETURNING c.request_key, c.receiver
                """,
                {"now": dates.now(), "keys": list(keys[start : start + GROUP]), "states": states},
            ).fetchall()
            results = await asyncio.gather(*(_issue_one(issuer, row) for row in group))
            stopped = _record(connection, list(zip(group, results, strict=True)))
            if stopped:
                raise stopped


async def _issue_one(issuer: Issuer, row: Row) -> str | IssuerError:
    """The platform's coupon id, or what stood in the way. A request in doubt is repeated only where that is safe."""
    for attempt in range(TRIES):
        try:
            return await issuer.issue(row["receiver"], row["request_key"])
        except Busy as error:
            if attempt == TRIES - 1 or (isinstance(error, InDoubt) and not issuer.is_repeatable):
                return error
            await asyncio.sleep(max(error.retry_after, FIRST_WAIT_SECONDS * 2**attempt))
        except IssuerError as error:
            return error
    raise AssertionError("unreachable")


def _state_after(result: str | IssuerError) -> str:
    if isinstance(result, str):
        return "issued"
    if isinstance(result, Refused):
        return "released"
    return "unknown" if isinstance(result, InDoubt) else "reserved"  # stopped or busy: nothing was given


def _record(connection: psycopg.Connection[Row], results: Sequence[tuple[Row, str | IssuerError]]) -> Stopped | None:
    """Write down what came of each call; returns the reason to stop, if there is one."""
    connection.execute(
        """
        UPDATE push.coupons AS c
        SET state = u.state, platform_coupon_id = coalesce(u.id, c.platform_coupon_id), last_error = u.error, updated_at = %(now)s,
            issued_at = CASE WHEN u.state = 'issued' THEN coalesce(c.issued_at, %(now)s) END
        FROM unnest(%(keys)s::text[], %(states)s::text[], %(ids)s::text[], %(errors)s::text[]) AS u (key, state, id, error)
        WHERE c.request_key = u.key AND c.state = 'unknown'
        """,
        {
            "now": dates.now(),
            "keys": [row["request_key"] for row, _result in results],
            "states": [_state_after(result) for _row, result in results],
            "ids": [result if isinstance(result, str) else None for _row, result in results],
            "errors": [None if isinstance(result, str) else str(result) for _row, result in results],
        },
    )
    for _row, result in results:
        if isinstance(result, Stopped):
            return result
    return None


def resolve(request_key: str, coupon_id: str | None, *, by: str, reason: str) -> str:
    """A person decides about an unknown coupon: it was given as `coupon_id`, or (None) it was not; returns its new state.

    Not given means reserved again: the next issue gives it. Raises RunRefused when it is not unknown.
    """
    with connect(application_name="nightmarket-coupons") as connection:
        now = dates.now()
        row = connection.execute(
            """
            UPDATE push.coupons SET state = CASE WHEN %(id)s::text IS NULL THEN 'reserved' ELSE 'issued' END,
                platform_coupon_id = %(id)s, issued_at = CASE WHEN %(id)s::text IS NOT NULL THEN updated_at END,
                last_error = CASE WHEN %(id)s::text IS NULL THEN 'not given, a person says' END, updated_at = %(now)s
            WHERE request_key = %(key)s AND state = 'unknown' RETURNING state
            """,
            {"id": coupon_id, "key": request_key, "now": now},
        ).fetchone()
        if row is None:
            raise RunRefused(f"coupon {request_key!r} is not in state unknown (or does not exist).")
        audit(connection, by, "coupon_resolve", request_key, {"coupon_id": coupon_id, "reason": reason})
    return str(row["state"])


def release(connection: psycopg.Connection[Row], run_id: str | None = None) -> int:
    """Take back what nobody got, of one run or of all (docs/decisions/0076-coupon-issuers.md); returns how many coupons."""
    row = run_sql(connection, "push/coupons_release.sql", {"run_id": run_id, "now_at": dates.now()})[0]
    return int(row["released"])


def collect_redemptions(connection: psycopg.Connection[Row]) -> dict[str, int]:
    """What became of open coupons: ask platforms that tell it, match the codes that shops told, let the others expire.

    Redeemed and expired ones become events in core. Returns counts: asked, redeemed, expired, unanswered, released, and of codes
    unknown, not_given and more_than_once. A platform that does not answer leaves the rest for next time.
    """
    released = release(connection)
    settled = codes.settle(connection)
    rows = connection.execute(
        """
        SELECT c.request_key, c.receiver, c.platform_coupon_id, c.stock_id, s.valid_to FROM push.coupons AS c
        JOIN push.coupon_stocks AS s ON s.stock_id = c.stock_id
        WHERE c.state = 'issued' AND s.issuer <> ALL(%s) ORDER BY c.stock_id, c.request_key
        """,
        (SILENT_ISSUERS,),
    ).fetchall()
    stocks = load_channels().coupon_stocks
    asked = [row for row in rows if row["stock_id"] in stocks]  # a stock that left the file: nobody says whom to ask
    found = asyncio.run(_ask_all(stocks, asked)) if asked else []
    changed = [(key, seen.state, at) for key, seen, at in found if seen.state != "open"]
    counts = run_sql(
        connection,
        "push/redemptions.sql",
        {
            "now_at": dates.now(),
            "keys": [key for key, _state, _at in changed],
            "states": [state for _key, state, _at in changed],
            "instants": [at for _key, _state, at in changed],
            "silent_issuers": SILENT_ISSUERS,
        },
    )[0]
    return {
        "asked": len(rows),
        "redeemed": counts["redeemed"] + settled["redeemed"],
        "expired": counts["expired"],
        "unanswered": len(rows) - len(found),
        "released": released,
        "codes_unknown": settled["unknown"],
        "codes_not_given": settled["not_given"],
        "codes_more_than_once": settled["more_than_once"],
    }


async def _ask_all(stocks: dict[str, Stock], rows: Sequence[Row]) -> list[tuple[str, Seen, datetime]]:
    """(request key, what was seen, since when) of every coupon its platform answered for."""
    found: list[tuple[str, Seen, datetime]] = []
    limit = asyncio.Semaphore(CONNECTIONS)

    async def ask(issuer: Issuer, row: Row) -> None:
        async with limit:
            for attempt in range(TRIES):
                try:
                    seen = await issuer.seen(row["receiver"], row["platform_coupon_id"])
                except Busy as error:
                    await asyncio.sleep(max(error.retry_after, FIRST_WAIT_SECONDS * 2**attempt))
                except IssuerError as error:
                    log.warning("coupon %s: %s", row["request_key"], error)
                    return
                else:
                    at = seen.at or (row["valid_to"] if seen.state == "expired" else dates.now())
                    found.append((row["request_key"], seen, at))
                    return

    for stock_id in sorted({row["stock_id"] for row in rows}):
        async with open_issuer(stocks[stock_id], connections=CONNECTIONS) as issuer:
            await asyncio.gather(*(ask(issuer, row) for row in rows if row["stock_id"] == stock_id))
    return found
