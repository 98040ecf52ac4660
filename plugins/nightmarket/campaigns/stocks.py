"""Coupon stocks: what channels.yaml and the issuer say of one, and how many of its coupons nobody has yet."""

import asyncio
from collections.abc import Mapping
from datetime import date, datetime, timedelta
from typing import Any

import psycopg

from nightmarket import dates
from nightmarket.campaigns.audience import ApprovalVoid, RunRefused
from nightmarket.campaigns.config import Stock, load_channels
from nightmarket.campaigns.issuers import open_issuer
from nightmarket.campaigns.issuers.base import IssuerError, StockFacts
from nightmarket.settings import get_settings
from nightmarket.warehouse import Row, run_sql

AT_ONCE = date(2000, 1, 1)  # first day of a stock that names none
MASKED_CODE = "****-****-****-****-****"  # as long as one of ours


def stock_of(run: Row) -> str | None:
    """The stock a run gives coupons from, or None."""
    coupon = run["config"]["campaign"].get("coupon")
    if not coupon:
        return None
    return str(coupon["test_stock"] if run["mode"] == "test" else coupon["stock"])


def receiver_parameters(run: Row) -> dict[str, Any]:
    """Who can have a coupon of a run, as push.coupon_receivers asks for it; of no stock when the run gives none."""
    stock_id = stock_of(run)
    if stock_id is None:
        return {"stock_id": None, "receiver_kind": None, "points_price": 0, "member_limit": 0}
    stock = Stock.model_validate(run["config"]["stocks"][stock_id])
    return {
        "stock_id": stock_id,
        "receiver_kind": stock.receiver_kind,
        "points_price": stock.points_price or 0,
        "member_limit": stock.per_member_limit,
    }


def sync_stock(connection: psycopg.Connection[Row], stock_id: str) -> Row:
    """Compare a stock of channels.yaml with what its issuer knows, store it, and return its row.

    Raises RunRefused when there is no such stock, when amounts differ, the stock is not running or its issuer cannot be asked.
    """
    stocks = load_channels().coupon_stocks
    if stock_id not in stocks:
        raise RunRefused(
            f"there is no coupon stock {stock_id!r} in channels.yaml; it has {', '.join(stocks) or 'none'}."
        )
    wanted = stocks[stock_id]
    found = _facts(wanted, stock_id)
    name = wanted.issuer if wanted.issuer != "wechat_pay" else "WeChat Pay"
    amounts = (found.face_amount, found.minimum_amount)
    if found.face_amount is not None and amounts != (wanted.face_amount, wanted.minimum_amount):
        raise RunRefused(
            f"coupon stock {stock_id}: channels.yaml says {wanted.face_amount} off {wanted.minimum_amount}, "
            f"{name} says {found.face_amount} off {found.minimum_amount}."
        )
    if not found.is_running:
        raise RunRefused(f"coupon stock {stock_id} ({wanted.platform_stock_id}) is {found.status} at {name}.")
    row = connection.execute(
        """
        INSERT INTO push.coupon_stocks (stock_id, issuer, platform_stock_id, name, face_amount, minimum_amount, budget_count,
            budget_amount, per_member_limit, valid_from, valid_to, valid_days, points_price, has_codes, is_test)
        VALUES (%(stock_id)s, %(issuer)s, %(platform_stock_id)s, %(name)s, %(face_amount)s, %(minimum_amount)s, %(budget_count)s,
            %(budget_amount)s, %(per_member_limit)s, %(valid_from)s, %(valid_to)s, %(valid_days)s, %(points_price)s, %(has_codes)s,
            %(is_test)s)
        ON CONFLICT (stock_id) DO UPDATE SET issuer = excluded.issuer, platform_stock_id = excluded.platform_stock_id,
            name = excluded.name, face_amount = excluded.face_amount, minimum_amount = excluded.minimum_amount,
            budget_count = excluded.budget_count, budget_amount = excluded.budget_amount,
            per_member_limit = excluded.per_member_limit, valid_from = excluded.valid_from, valid_to = excluded.valid_to,
            valid_days = excluded.valid_days, points_price = excluded.points_price, has_codes = excluded.has_codes,
            is_test = excluded.is_test
        RETURNING *
        """,
        {
            **wanted.model_dump(include={"issuer", "platform_stock_id", "name", "face_amount", "minimum_amount", "budget_amount",
                                         "per_member_limit", "valid_days", "is_test"}),
            "stock_id": stock_id,
            "budget_count": min(wanted.budget_count, found.max_coupons or wanted.budget_count),
            "valid_from": found.valid_from,
            "valid_to": found.valid_to,
            "points_price": wanted.points_price or 0,
            "has_codes": wanted.has_codes,
        },
    ).fetchone()  # fmt: skip
    assert row is not None
    return row


def _facts(wanted: Stock, stock_id: str) -> StockFacts:
    """What the issuer tells of a stock, completed by what channels.yaml says."""
    zone = get_settings().zone
    first = dates.day_start(wanted.valid_from or AT_ONCE, zone)
    last = dates.day_end(wanted.valid_to, zone) - timedelta(seconds=1) if wanted.valid_to else None
    if wanted.has_codes:
        found = StockFacts(True, "ours")
    else:
        try:
            found = asyncio.run(_ask(wanted))
        except IssuerError as error:
            raise RunRefused(f"coupon stock {stock_id}: {error}") from None
    valid_to = found.valid_to or last
    if valid_to is None:
        raise RunRefused(f"coupon stock {stock_id}: neither channels.yaml nor its issuer says until when it is valid.")
    return StockFacts(found.is_running, found.status, found.face_amount, found.minimum_amount, found.max_coupons,
                      found.valid_from or first, valid_to)  # fmt: skip


async def _ask(wanted: Stock) -> StockFacts:
    async with open_issuer(wanted, connections=1) as issuer:
        return await issuer.stock()


def valid_until(stock: Row) -> datetime:
    """Last instant of a coupon that is given now."""
    if stock["valid_days"] is None:
        return stock["valid_to"]  # type: ignore[no-any-return]
    today = dates.day_end(dates.now().astimezone(get_settings().zone).date(), get_settings().zone)
    return min(stock["valid_to"], today - timedelta(seconds=1) + timedelta(days=stock["valid_days"]))


def shown(coupon: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The coupon of a report as a preview's template sees it; a code is shown as a mask, for nobody has it yet."""
    has_codes = Stock.model_validate(config["stocks"][coupon["stock"]]).has_codes
    return {**coupon, "code": MASKED_CODE if has_codes else None}


def lock_stock(connection: psycopg.Connection[Row], stock_id: str) -> Row:
    """The stock's row, locked until the transaction ends: whoever takes from it takes turns. Raises RunRefused."""
    stock = connection.execute(
        "SELECT * FROM push.coupon_stocks WHERE stock_id = %s FOR UPDATE", (stock_id,)
    ).fetchone()
    if stock is None:
        raise RunRefused(f"coupon stock {stock_id} was never read from its issuer; make the dry-run report first.")
    return stock


def require_approved(connection: psycopg.Connection[Row], run: Row) -> None:
    """Raise ApprovalVoid when the run's stock is not what its report showed; it stays so until the transaction ends.

    What messages say of a coupon is read from the stock's row, and every report of any campaign reads that row anew.
    """
    stock_id = stock_of(run)
    if stock_id is None:
        return
    stock = connection.execute(
        "SELECT name, face_amount, minimum_amount, valid_to, valid_days FROM push.coupon_stocks WHERE stock_id = %s FOR SHARE",
        (stock_id,),
    ).fetchone()
    if stock is None:
        raise RunRefused(f"coupon stock {stock_id} was never read from its issuer; make the dry-run report first.")
    approved = Stock.model_validate(run["config"]["stocks"][stock_id])
    until = ((run["report"] or {}).get("coupons") or {}).get("valid_to")
    now = f"{valid_until(stock).astimezone(get_settings().zone):%Y-%m-%d}"
    is_same = (stock["name"], stock["face_amount"], stock["minimum_amount"], stock["valid_days"]) == (
        approved.name, approved.face_amount, approved.minimum_amount, approved.valid_days,
    )  # fmt: skip
    # what is valid for so many days is valid longer when it is given later
    if not is_same or (until is not None and (now < until if stock["valid_days"] else now != until)):
        raise ApprovalVoid(
            f"run {run['run_id']}: coupon stock {stock_id} is now {stock['name']!r}, {stock['face_amount']} off"
            f" {stock['minimum_amount']}, valid until {now}; that is not what was approved. Cancel the run and run it again."
        )


def balance(connection: psycopg.Connection[Row], stock_id: str) -> Row:
    """What a stock has made and given, in pieces and yuan; see include/sql/push/coupons_balance.sql."""
    return run_sql(connection, "push/coupons_balance.sql", {"stock_id": stock_id})[0]


def free_count(connection: psycopg.Connection[Row], stock: Row) -> int:
    """Coupons of the stock nobody has and nobody is promised: within its budget in pieces and in money, and its list of codes."""
    return int(balance(connection, stock["stock_id"])["free_count"])
