"""Data in, end to end: what stands in core is what the platforms hold, exactly, however often and in whatever steps it was read."""

from datetime import datetime
from decimal import Decimal
from typing import Any

import psycopg

from nightmarket import dates, landing
from nightmarket.warehouse import Row

SOURCES = {
    "taobao_flagship": ("trades", "refunds", "rates"),
    "wechat_official": ("followers",),
    "own_pages": ("events",),
}


def land_all(run_id: str, until: datetime | None = None, **options: Any) -> dict[str, landing.LandingSummary]:
    return {
        f"{source}/{stream}": landing.land(source, stream, run_id=run_id, until=until or dates.now(), **options)
        for source, streams in SOURCES.items()
        for stream in streams
    }


def map_all(run_id: str) -> None:
    for source in SOURCES:
        landing.map_source(source, run_id=run_id)
    landing.resolve_members(run_id=run_id)


def one(db: psycopg.Connection[Row], query: str) -> Any:
    row = db.execute(query).fetchone()  # type: ignore[arg-type]
    assert row is not None
    return next(iter(row.values()))


def test_equals_the_truth(db: psycopg.Connection[Row], sandbox: Any) -> None:
    summaries = land_all("first")
    map_all("first")
    for summary in summaries.values():
        print(summary.sentence())
    truth = sandbox.control("GET", "/truth")
    assert one(db, "SELECT count(*) FROM core.orders") == truth["trades"]
    assert one(db, "SELECT count(*) FROM core.orders WHERE is_paid") == truth["paid_orders"]
    assert one(db, "SELECT sum(goods_amount) FROM core.orders WHERE is_paid") == Decimal(truth["paid_line_value"])
    assert one(db, "SELECT count(DISTINCT identity_id) FROM core.orders WHERE is_paid") == truth["buyers"]
    assert one(db, "SELECT count(*) FROM core.order_lines") == truth["lines"]
    assert one(db, "SELECT count(*) FROM core.refunds WHERE is_money") == truth["refunds"]
    assert one(db, "SELECT sum(refund_amount) FROM core.refunds WHERE is_money") == Decimal(truth["refund_fee"])
    assert one(db, "SELECT count(*) FROM core.refunds WHERE NOT is_money") == truth["refunds_open"]
    assert one(db, "SELECT count(*) FROM core.reviews") == truth["reviews_readable"]
    assert one(db, "SELECT count(*) FROM core.followers WHERE is_following") == truth["followers"]
    assert one(db, "SELECT count(*) FROM raw.records WHERE stream = 'events'") == truth["events"]
    assert one(db, "SELECT count(*) FROM raw.rejects") == 0
