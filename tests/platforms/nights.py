"""Reading and mapping all sources, and looking at what came of it. Shared by the tests of data in."""

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

import psycopg

from nightmarket import dates, landing, mapping
from nightmarket.warehouse import Row

SOURCES = {
    "taobao_flagship": ("trades", "refunds", "rates"),
    "wechat_official": ("followers",),
    "own_pages": ("events",),
}
# What the platforms said, without the numbers we gave it: the same after any way of reading it.
BUSINESS = {
    "core.orders": "source_id, order_id, i.kind, i.value, status, status_original, is_paid, goods_amount, paid_amount, postage_amount,"
    " line_count, unit_count, city, created_at, paid_at, shipped_at, signed_at, modified_at",
    "core.order_lines": "source_id, order_id, line_id, product_id, outer_id, title, unit_price_amount, quantity, line_amount,"
    " paid_amount, status",
    "core.refunds": "source_id, refund_id, order_id, line_id, i.kind, i.value, status, is_money, refund_amount, quantity, reason,"
    " created_at, settled_at, modified_at",
    "core.reviews": "source_id, review_id, order_id, line_id, product_id, i.kind, i.value, rating, content, reply, created_at",
    "core.shipments": "source_id, order_id, shipment_id, carrier, shipped_at, signed_at",
    "core.products": "source_id, product_id, title, outer_id, seen_at",
    "core.followers": "source_id, openid, i.kind, i.value, is_following, followed_at, scene, language",
    "core.follow_events": "source_id, event_id, i.kind, i.value, t.kind, occurred_at",
    "core.consents": "source_id, event_id, i.kind, i.value, channel, purpose, is_granted, evidence, occurred_at",
    "core.interactions": "source_id, event_id, i.kind, i.value, t.kind, message_key, occurred_at",
    "core.message_events": "source_id, event_id, message_key, kind, detail, occurred_at",
    "core.profiles": "source_id, i.kind, i.value, name, language, observed_at",
    "core.identities": "kind, value, first_seen_at",
}


def land_all(run_id: str, until: datetime | None = None, **options: Any) -> dict[str, landing.LandingSummary]:
    return {
        f"{source}/{stream}": landing.land(source, stream, run_id=run_id, until=until or dates.now(), **options)
        for source, streams in SOURCES.items()
        for stream in streams
    }


def map_all(run_id: str) -> None:
    for source in SOURCES:
        mapping.map_source(source, run_id=run_id)
    mapping.resolve_members(run_id=run_id)


def night(run_id: str, **options: Any) -> dict[str, landing.LandingSummary]:
    summaries = land_all(run_id, **options)
    map_all(run_id)
    return summaries


def one(db: psycopg.Connection[Row], query: str, parameters: Any = None) -> Any:
    row = db.execute(query, parameters).fetchone()  # type: ignore[arg-type]
    assert row is not None
    return next(iter(row.values()))


def business(db: psycopg.Connection[Row]) -> dict[str, list[tuple[Any, ...]]]:
    """The rows of every core table without ids and batches of ours, and who is one person."""
    found = {}
    for table, columns in BUSINESS.items():
        named = ", ".join(c if "." in c else f"t.{c}" for c in columns.split(", "))
        joined = f"{table} AS t" + (
            " LEFT JOIN core.identities AS i USING (identity_id)" if "i.kind" in columns else ""
        )
        found[table] = sorted(tuple(map(str, row.values())) for row in _rows(db, f"SELECT {named} FROM {joined}"))
    groups = _rows(
        db,
        "SELECT array_agg(i.kind || '=' || i.value ORDER BY i.kind, i.value) AS who"
        " FROM core.member_identities AS mi JOIN core.identities AS i USING (identity_id) GROUP BY mi.member_id",
    )
    found["people"] = sorted(tuple(row["who"]) for row in groups)
    return found


def everything(db: psycopg.Connection[Row]) -> dict[str, str]:
    """A checksum of every table of raw and core, our own numbers included; what only notes when we looked is left out."""
    tables = _rows(db, "SELECT table_schema || '.' || table_name AS name FROM information_schema.tables"
                       " WHERE table_schema IN ('raw', 'core') ORDER BY 1")  # fmt: skip
    looked = {"raw.batches", "raw.cursors", "raw.mappings"}
    return {
        row["name"]: one(
            db,
            f"SELECT count(*) || ' ' || coalesce(md5(string_agg(md5(t::text), '' ORDER BY md5(t::text))), '') FROM {row['name']} AS t",
        )
        for row in tables
        if row["name"] not in looked
    }


def _rows(db: psycopg.Connection[Row], query: str) -> list[Row]:
    return db.execute(query).fetchall()  # type: ignore[arg-type]


def assert_truth(db: psycopg.Connection[Row], truth: Mapping[str, Any]) -> None:
    """core holds exactly what the platforms hold as of the clock."""
    figures = {
        "trades": "SELECT count(*) FROM core.orders",
        "paid_orders": "SELECT count(*) FROM core.orders WHERE is_paid",
        "unpaid_orders": "SELECT count(*) FROM core.orders WHERE NOT is_paid",
        "buyers": "SELECT count(DISTINCT identity_id) FROM core.orders WHERE is_paid",
        "lines": "SELECT count(*) FROM core.order_lines",
        "refunds": "SELECT count(*) FROM core.refunds WHERE is_money",
        "refunds_open": "SELECT count(*) FROM core.refunds WHERE NOT is_money",
        # TOP shows the reviews of the last 180 days; older ones that we read in time stay
        "reviews_readable": "SELECT count(*) FROM core.reviews WHERE created_at >= %(now)s::timestamptz - interval '180 days'",
        "followers": "SELECT count(*) FROM core.followers WHERE is_following",
        "events": "SELECT count(*) FROM raw.heads WHERE stream = 'events'",
        "bound_phones": "SELECT count(DISTINCT payload #>> '{data,phone}') FROM raw.records WHERE payload ->> 'kind' = 'binding'",
    }
    found = {name: one(db, query, {"now": truth["now"]}) for name, query in figures.items()}
    assert {name: (found[name], truth[name]) for name in figures if found[name] != truth[name]} == {}
    assert one(db, "SELECT sum(goods_amount) FROM core.orders WHERE is_paid") == Decimal(truth["paid_line_value"])
    assert one(db, "SELECT sum(refund_amount) FROM core.refunds WHERE is_money") == Decimal(truth["refund_fee"])
    statuses = _rows(db, "SELECT status_original, count(*) AS n FROM core.orders GROUP BY 1")
    assert {row["status_original"]: row["n"] for row in statuses} == truth["trades_by_status"]
    days = _rows(db, "SELECT paid_at::date::text AS day, count(*) AS n FROM core.orders WHERE is_paid GROUP BY 1")
    assert {row["day"]: row["n"] for row in days} == truth["paid_orders_by_day"]
