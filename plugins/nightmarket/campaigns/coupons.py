"""Coupons through WeChat Pay: reserved under a lock, issued under a key that never changes, never more than the budget.

reserved -> unknown (a call is being made) -> issued -> redeemed | expired; released = never given. A coupon that is
`unknown` is called again with the identical request until the platform says which of the two it is.
"""

import asyncio
import logging
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import psycopg

from nightmarket import dates
from nightmarket.campaigns.audience import RunRefused, audit, lock_run
from nightmarket.campaigns.config import Stock, load_channels
from nightmarket.channels.wechat_pay import PayError, PayInDoubt, PayRefused, PayStopped, WeChatPay
from nightmarket.settings import credentials
from nightmarket.warehouse import Row, connect, run_sql

log = logging.getLogger(__name__)
STEP = "send"
GROUP = 50  # coupons marked as being called at a time: what a crash leaves in doubt
TRIES = 5
FIRST_WAIT_SECONDS = 0.5
CONNECTIONS = 16


class CouponsExhausted(RunRefused):
    """The stock has fewer coupons left than the run needs; none was reserved."""


class CouponsInDoubt(RuntimeError):
    """Some coupons are still unknown after all tries: run the step again, the same requests are repeated."""


def stock_of(run: Row) -> str | None:
    """The stock a run gives coupons from, or None."""
    coupon = run["config"]["campaign"].get("coupon")
    if not coupon:
        return None
    return str(coupon["test_stock"] if run["mode"] == "test" else coupon["stock"])


def sync_stock(connection: psycopg.Connection[Row], stock_id: str) -> Row:
    """Compare a stock of channels.yaml with what WeChat Pay knows, store it, and return its row.

    Raises RunRefused when amounts differ or the stock is not running, PayError when the platform cannot be asked.
    """
    wanted: Stock = load_channels().coupon_stocks[stock_id]

    async def ask() -> Any:
        async with WeChatPay(credentials(wanted.issuer), connections=1) as pay:
            return await pay.stock(wanted.platform_stock_id)

    found = asyncio.run(ask())
    if (found.face_amount, found.minimum_amount) != (wanted.face_amount, wanted.minimum_amount):
        raise RunRefused(
            f"coupon stock {stock_id}: channels.yaml says {wanted.face_amount} off {wanted.minimum_amount}, "
            f"WeChat Pay says {found.face_amount} off {found.minimum_amount}."
        )
    if found.status != "running":
        raise RunRefused(f"coupon stock {stock_id} ({wanted.platform_stock_id}) is {found.status} at WeChat Pay.")
    row = connection.execute(
        """
        INSERT INTO push.coupon_stocks (stock_id, issuer, platform_stock_id, name, face_amount, minimum_amount, budget_count,
            per_member_limit, valid_from, valid_to, is_test)
        VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
        ON CONFLICT (stock_id) DO UPDATE SET platform_stock_id = excluded.platform_stock_id, name = excluded.name,
            face_amount = excluded.face_amount, minimum_amount = excluded.minimum_amount,
            budget_count = excluded.budget_count, per_member_limit = excluded.per_member_limit,
            valid_from = excluded.valid_from, valid_to = excluded.valid_to, is_test = excluded.is_test
        RETURNING *
        """,
        (stock_id, wanted.issuer, wanted.platform_stock_id, wanted.name, wanted.face_amount, wanted.minimum_amount,
         min(wanted.budget_count, found.max_coupons), wanted.per_member_limit, found.valid_from, found.valid_to,
         wanted.is_test),
    ).fetchone()  # fmt: skip
    assert row is not None
    return row


def free_count(connection: psycopg.Connection[Row], stock: Row) -> int:
    """Coupons of the stock nobody has and nobody is promised."""
    used = connection.execute(
        "SELECT count(*) AS n FROM push.coupons WHERE stock_id = %s AND state <> 'released'", (stock["stock_id"],)
    ).fetchone()
    assert used is not None
    return max(0, stock["budget_count"] - used["n"])


def reserve(run_id: str) -> int:
    """Set one coupon aside for every targeted member with an openid; returns how many the run has. All or none.

    The stock's row is locked, so that any number of runs at once never reserve more than its budget.
    Raises CouponsExhausted, RunRefused.
    """
    with connect(application_name="nightmarket-coupons") as connection:
        run = lock_run(connection, run_id)
        stock_id = stock_of(run)
        if stock_id is None:
            return 0
        if run["state"] not in ("approved", "sending", "sent"):
            raise RunRefused(f"run {run_id} is {run['state']}, not approved; no coupon is reserved.")
        stock = connection.execute(
            "SELECT * FROM push.coupon_stocks WHERE stock_id = %s FOR UPDATE", (stock_id,)
        ).fetchone()
        if stock is None:
            raise RunRefused(f"coupon stock {stock_id} was never read from its issuer; make the dry-run report first.")
        parameters = {
            "run_id": run_id,
            "stock_id": stock_id,
            "key_prefix": request_key_prefix(run),
            "step": STEP,
            "now_at": dates.now(),
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


def request_key_prefix(run: Row) -> str:
    """Derived, never random: the same grant has the same key in every attempt. Letters, digits and _ only."""
    base = f"{run['campaign']}_{run['as_of']:%Y%m%d}"
    return base if run["mode"] == "live" else base + "_t" + run["run_id"].partition("#")[2]


def issue(run_id: str) -> dict[str, int]:
    """Give out the run's reserved coupons through WeChat Pay; counts by state of the run's coupons.

    May be called again at any time, also by two workers at once: the platform gives one coupon per request key.
    Raises RunRefused when nobody can have one (budget, signature, stock), CouponsInDoubt when some are still unknown.
    """
    with connect(autocommit=True, application_name="nightmarket-coupons") as connection:
        run = connection.execute("SELECT * FROM push.campaign_runs WHERE run_id = %s", (run_id,)).fetchone()
        if run is None:
            raise RunRefused(f"there is no run {run_id!r}.")
        if run["state"] not in ("approved", "sending", "sent"):
            raise RunRefused(f"run {run_id} is {run['state']}; no coupon is issued.")
        if stock_of(run) is not None:
            try:
                asyncio.run(_issue_all(connection, run_id))
            except PayStopped as error:
                raise RunRefused(f"run {run_id}: {error}") from None
        counts = coupon_counts(connection, run_id)
    log.info("run %s: coupons %s", run_id, ", ".join(f"{n:,} {state}" for state, n in counts.items()) or "none")
    if counts.get("unknown"):
        raise CouponsInDoubt(f"run {run_id}: {counts['unknown']} coupons are in doubt; repeat this step.")
    return counts


def coupon_counts(connection: psycopg.Connection[Row], run_id: str) -> dict[str, int]:
    rows = connection.execute(
        "SELECT state, count(*) AS n FROM push.coupons WHERE run_id = %s GROUP BY state ORDER BY state", (run_id,)
    )
    return {row["state"]: row["n"] for row in rows}


async def _issue_all(connection: psycopg.Connection[Row], run_id: str) -> None:
    async with WeChatPay(credentials("wechat_pay"), connections=CONNECTIONS) as pay:
        last_key = ""
        while True:
            group = connection.execute(
                """
                UPDATE push.coupons AS c SET state = 'unknown', updated_at = %(now)s
                FROM push.coupon_stocks AS s
                WHERE s.stock_id = c.stock_id AND c.request_key IN (
                    SELECT request_key FROM push.coupons
                    WHERE run_id = %(run_id)s AND state IN ('reserved', 'unknown') AND request_key > %(last_key)s
                    ORDER BY request_key LIMIT %(size)s FOR UPDATE
                )
                RETURNING c.request_key, c.openid, s.platform_stock_id
                """,
                {"now": dates.now(), "run_id": run_id, "last_key": last_key, "size": GROUP},
            ).fetchall()
            if not group:
                return
            last_key = max(row["request_key"] for row in group)
            results = await asyncio.gather(*(_issue_one(pay, row) for row in group))
            stopped = _record(connection, list(zip(group, results, strict=True)))
            if stopped:
                raise stopped


async def _issue_one(pay: WeChatPay, row: Row) -> str | PayError:
    """The platform's coupon id, or what stood in the way. The identical request is repeated while it is in doubt."""
    for attempt in range(TRIES):
        try:
            return await pay.issue(row["openid"], row["platform_stock_id"], row["request_key"])
        except PayInDoubt as error:
            if attempt == TRIES - 1:
                return error
            await asyncio.sleep(max(error.retry_after, FIRST_WAIT_SECONDS * 2**attempt))
        except PayError as error:
            return error
    raise AssertionError("unreachable")


def _record(connection: psycopg.Connection[Row], results: Sequence[tuple[Row, str | PayError]]) -> PayStopped | None:
    """Write down what came of each call; returns the reason to stop, if there is one."""
    now, stopped = dates.now(), None
    keys, states, ids, errors = [], [], [], []
    for row, result in results:
        keys.append(row["request_key"])
        ids.append(result if isinstance(result, str) else None)
        errors.append(None if isinstance(result, str) else str(result))
        if isinstance(result, PayStopped):
            stopped = result
        states.append(
            "issued" if isinstance(result, str)
            else "released" if isinstance(result, PayRefused)
            else "reserved" if isinstance(result, PayStopped)
            else "unknown"
        )  # fmt: skip
    connection.execute(
        """
        UPDATE push.coupons AS c
        SET state = u.state, platform_coupon_id = coalesce(u.id, c.platform_coupon_id), last_error = u.error, updated_at = %(now)s,
            issued_at = CASE WHEN u.state = 'issued' THEN coalesce(c.issued_at, %(now)s) END
        FROM unnest(%(keys)s::text[], %(states)s::text[], %(ids)s::text[], %(errors)s::text[]) AS u (key, state, id, error)
        WHERE c.request_key = u.key AND c.state = 'unknown'
        """,
        {"now": now, "keys": keys, "states": states, "ids": ids, "errors": errors},
    )
    return stopped


def collect_redemptions(connection: psycopg.Connection[Row]) -> dict[str, int]:
    """Ask WeChat Pay about every coupon that is still open; redeemed and expired ones become events in core.

    Returns counts: asked, redeemed, expired, unanswered. A platform that does not answer leaves the rest for next time.
    """
    rows = connection.execute(
        """
        SELECT c.request_key, c.openid, c.platform_coupon_id, s.valid_to FROM push.coupons AS c
        JOIN push.coupon_stocks AS s ON s.stock_id = c.stock_id
        WHERE c.state = 'issued' ORDER BY c.request_key
        """
    ).fetchall()
    if not rows:
        return {"asked": 0, "redeemed": 0, "expired": 0, "unanswered": 0}
    found = asyncio.run(_ask_all(rows))
    changed = [(key, status.lower(), at) for key, status, at in found if status in ("USED", "EXPIRED")]
    run_sql(
        connection,
        "push/redemptions.sql",
        {
            "now_at": dates.now(),
            "keys": [key for key, _status, _at in changed],
            "states": ["redeemed" if status == "used" else "expired" for _key, status, _at in changed],
            "instants": [at for _key, _status, at in changed],
        },
    )
    redeemed = sum(status == "used" for _key, status, _at in changed)
    return {
        "asked": len(rows),
        "redeemed": redeemed,
        "expired": len(changed) - redeemed,
        "unanswered": len(rows) - len(found),
    }


async def _ask_all(rows: Sequence[Row]) -> list[tuple[str, str, datetime]]:
    """(request key, status, since when) of every coupon the platform answered for."""
    found: list[tuple[str, str, datetime]] = []
    limit = asyncio.Semaphore(CONNECTIONS)
    async with WeChatPay(credentials("wechat_pay"), connections=CONNECTIONS) as pay:

        async def ask(row: Row) -> None:
            async with limit:
                for attempt in range(TRIES):
                    try:
                        coupon = await pay.coupon(row["openid"], row["platform_coupon_id"])
                    except PayInDoubt as error:
                        await asyncio.sleep(max(error.retry_after, FIRST_WAIT_SECONDS * 2**attempt))
                    except PayError as error:
                        log.warning("coupon %s: %s", row["request_key"], error)
                        return
                    else:
                        at = coupon.used_at or (row["valid_to"] if coupon.status == "EXPIRED" else dates.now())
                        found.append((row["request_key"], coupon.status, at))
                        return

        await asyncio.gather(*(ask(row) for row in rows))
    return found
