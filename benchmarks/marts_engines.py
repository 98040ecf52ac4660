"""RFM and tier days of the same core rows in DuckDB and in pandas, for benchmarks/marts.py: the honest comparison.

Both read three Parquet files (orders, refunds, who is who), as an analyst would, and end with tables in memory. Reading is part
of the time, writing the files is not. They compute, with the night's own thresholds: what each member did on each day; recency,
frequency, money, scores and segment at the business date; the 365-day net amount after each day on which something came in or
left, and the first day on which it reached each tier. They do not walk reviews and grace, write reasons, compare with what is
stored, nor make anything durable; the SQL of the marts does. Amounts are whole fen here, which is kinder to both.
"""

import json
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

EXPORTS = {
    "orders": "SELECT o.source_id, o.order_id, o.identity_id, o.is_paid, o.paid_at::timestamp AS paid_at,"
    " (o.goods_amount * 100)::bigint AS amount FROM core.orders AS o",
    "refunds": "SELECT r.source_id, r.order_id, r.identity_id, r.is_money, r.settled_at::timestamp AS settled_at,"
    " (r.refund_amount * 100)::bigint AS amount FROM core.refunds AS r",
    "member_identities": "SELECT i.identity_id, i.member_id FROM core.member_identities AS i",
}
COMPUTED = ("member_days", "member_rfm", "member_tiers")  # the marts that do the same, and more


def export(connection: Any, folder: Path) -> None:
    """Core tables as Parquet, streamed: COPY to a file of CSV, from there in batches."""
    import pyarrow as pa
    from pyarrow import csv, parquet

    text = folder / "rows.csv"
    types = {
        name: pa.string()
        if name in ("source_id", "order_id")
        else pa.timestamp("s")
        if name.endswith("_at")
        else pa.int64()
        for name in ("source_id", "order_id", "identity_id", "member_id", "paid_at", "settled_at", "amount")
    } | {"is_paid": pa.bool_(), "is_money": pa.bool_()}
    options = csv.ConvertOptions(
        column_types=types, true_values=["t"], false_values=["f"], timestamp_parsers=["%Y-%m-%d %H:%M:%S"]
    )
    for name, query in EXPORTS.items():
        with (
            text.open("wb") as file,
            connection.cursor().copy(f"COPY ({query}) TO STDOUT (FORMAT csv, HEADER)") as copy,
        ):
            for block in copy:
                file.write(block)
        with (
            csv.open_csv(text, convert_options=options) as reader,
            parquet.ParquetWriter(folder / f"{name}.parquet", reader.schema) as writer,
        ):
            for batch in reader:
                writer.write_batch(batch)
        text.unlink()


def ours(connection: Any, enter: Sequence[tuple[str, int]]) -> dict[str, Any]:
    """What the marts say, in the words of `result`."""
    row = connection.execute(
        "SELECT count(*) AS member_days, (sum(d.net_amount) * 100)::bigint AS net, sum(d.order_count) AS orders FROM mart.member_days AS d"
    ).fetchone()
    rfm = connection.execute(
        "SELECT count(*) AS members, (sum(m.monetary_amount) * 100)::bigint AS money, sum(m.frequency_count) AS orders,"
        " sum(m.last_order_date - date '2000-01-01') AS days, sum(m.r_score) AS r, sum(m.f_score) AS f, sum(m.m_score) AS m,"
        " sum((m.r_score * 100 + m.f_score * 10 + m.m_score) * (m.member_id % 1009)) AS mixed"
        " FROM mart.member_rfm AS m WHERE m.valid_to IS NULL"
    ).fetchone()
    tiers = {}
    for tier, _ in enter:
        reached = connection.execute(
            "SELECT count(*) AS members, coalesce(sum(f.day - date '2000-01-01'), 0) AS days FROM (SELECT t.member_id, min(t.valid_from) AS day"
            " FROM mart.member_tiers AS t JOIN mart.tier_rules AS r ON r.programme = t.programme AND r.tier = t.tier"
            " JOIN mart.tier_programmes AS p ON p.programme = t.programme AND p.position = 1"
            " WHERE r.rank >= (SELECT x.rank FROM mart.tier_rules AS x WHERE x.programme = t.programme AND x.tier = %s)"
            " GROUP BY t.member_id) AS f",
            (tier,),
        ).fetchone()
        tiers[tier] = {name: int(value) for name, value in reached.items()}
    return {
        "days": {name: int(value) for name, value in row.items()},
        "rfm": {name: int(value) for name, value in rfm.items()},
        "tiers": tiers,
    }


def run_duckdb(
    folder: Path, day: date, window: int, tier_window: int, enter: Sequence[tuple[str, int]]
) -> dict[str, Any]:
    import duckdb

    started = time.perf_counter()
    db = duckdb.connect()
    for name in EXPORTS:
        db.execute(f"CREATE TABLE {name} AS SELECT * FROM read_parquet('{folder / name}.parquet')")
    read = time.perf_counter()
    db.execute(f"""
        CREATE TABLE member_days AS
        SELECT f.member_id, f.day, sum(f.order_count) AS order_count, sum(f.gross) AS gross, sum(f.gross) - sum(f.refund) AS net
        FROM (
            SELECT i.member_id, o.paid_at::DATE AS day, 1 AS order_count, o.amount AS gross, 0 AS refund
            FROM orders AS o JOIN member_identities AS i ON i.identity_id = o.identity_id
            WHERE o.is_paid AND o.paid_at < DATE '{day}' + 1
            UNION ALL
            SELECT i.member_id, r.settled_at::DATE, 0, 0, r.amount
            FROM refunds AS r
            LEFT JOIN orders AS o ON r.identity_id IS NULL AND o.source_id = r.source_id AND o.order_id = r.order_id
            JOIN member_identities AS i ON i.identity_id = coalesce(r.identity_id, o.identity_id)
            WHERE r.is_money AND r.settled_at < DATE '{day}' + 1
        ) AS f
        GROUP BY f.member_id, f.day
    """)
    high = ", ".join(
        f"quantile_disc({name}, [0.2, 0.4, 0.6, 0.8]) AS {name}_cuts" for name in ("last_day", "orders", "money")
    )
    score = {
        name: "1 + " + " + ".join(f"(c.{name}_cuts[{cut}] < b.{name})::INTEGER" for cut in (1, 2, 3, 4))
        for name in ("last_day", "orders", "money")
    }
    db.execute(f"""
        CREATE TABLE member_rfm AS
        WITH behaviour AS (
            SELECT member_id, max(day) AS last_day, sum(order_count) AS orders, sum(gross) AS money
            FROM member_days WHERE order_count > 0 AND day > DATE '{day}' - {window} GROUP BY member_id
        ),
        cuts AS (SELECT {high} FROM behaviour)
        SELECT b.*, {score["last_day"]} AS r, {score["orders"]} AS f, {score["money"]} AS m
        FROM behaviour AS b CROSS JOIN cuts AS c
    """)
    reached = ", ".join(f"min(day) FILTER (WHERE value >= {amount}) AS day_{tier}" for tier, amount in enter)
    db.execute(f"""
        CREATE TABLE reached AS
        WITH movements AS (
            SELECT member_id, day, net, order_count FROM member_days
            UNION ALL
            SELECT member_id, day + {tier_window}, -net, 0 FROM member_days WHERE day + {tier_window} <= DATE '{day}'
        ),
        measured AS (
            SELECT member_id, day, greatest(sum(net) OVER w, 0) AS value, sum(order_count) OVER w > 0 AS has_ordered
            FROM movements WINDOW w AS (PARTITION BY member_id ORDER BY day)
        )
        SELECT member_id, {reached} FROM measured WHERE has_ordered GROUP BY member_id
    """)
    done = time.perf_counter()

    def one(query: str) -> list[int]:
        return [int(value or 0) for value in db.execute(query).fetchone() or ()]

    days = one("SELECT count(*), sum(net), sum(order_count) FROM member_days")
    rfm = one(
        "SELECT count(*), sum(money), sum(orders), sum(last_day - DATE '2000-01-01'), sum(r), sum(f), sum(m),"
        " sum((r * 100 + f * 10 + m) * (member_id % 1009)) FROM member_rfm"
    )
    tiers = {
        tier: one(f"SELECT count(day_{tier}), sum(day_{tier} - DATE '2000-01-01') FROM reached") for tier, _ in enter
    }
    return result(days, rfm, tiers) | {"seconds": done - started, "read": read - started}


def run_pandas(
    folder: Path, day: date, window: int, tier_window: int, enter: Sequence[tuple[str, int]]
) -> dict[str, Any]:
    import numpy as np
    import pandas as pd

    started = time.perf_counter()
    orders, refunds, who = (pd.read_parquet(folder / f"{name}.parquet") for name in EXPORTS)
    read = time.perf_counter()
    end, zero = pd.Timestamp(day) + pd.Timedelta(days=1), pd.Timestamp("2000-01-01")

    def day_number(instants: Any) -> Any:
        return (instants - zero) // pd.Timedelta(days=1)

    paid = orders[orders.is_paid & (orders.paid_at < end) & orders.identity_id.notna()]
    paid = paid[["identity_id", "paid_at", "amount"]].merge(who, on="identity_id")
    paid = pd.DataFrame(
        {
            "member_id": paid.member_id,
            "day": day_number(paid.paid_at),
            "order_count": 1,
            "gross": paid.amount,
            "refund": 0,
        }
    )
    back = refunds[refunds.is_money & (refunds.settled_at < end)]
    strangers = back[back.identity_id.isna()].drop(columns="identity_id")
    strangers = strangers.merge(orders[["source_id", "order_id", "identity_id"]], on=["source_id", "order_id"])
    back = pd.concat([back[back.identity_id.notna()], strangers[strangers.identity_id.notna()]]).merge(
        who, on="identity_id"
    )
    back = pd.DataFrame(
        {
            "member_id": back.member_id,
            "day": day_number(back.settled_at),
            "order_count": 0,
            "gross": 0,
            "refund": back.amount,
        }
    )
    member_days = pd.concat([paid, back]).groupby(["member_id", "day"], as_index=False).sum()
    member_days["net"] = member_days.gross - member_days.refund

    today = (pd.Timestamp(day) - zero).days
    recent = member_days[(member_days.order_count > 0) & (member_days.day > today - window)]
    rfm = recent.groupby("member_id").agg(
        last_day=("day", "max"), orders=("order_count", "sum"), money=("gross", "sum")
    )
    for name, measure in (("r", "last_day"), ("f", "orders"), ("m", "money")):
        values = np.sort(rfm[measure].to_numpy())
        cuts = values[np.ceil(np.array([0.2, 0.4, 0.6, 0.8]) * len(values)).astype(int) - 1]
        rfm[name] = 1 + (rfm[measure].to_numpy()[:, None] > cuts).sum(axis=1)

    into = member_days[["member_id", "day", "net", "order_count"]]
    out = into.assign(day=into.day + tier_window, net=-into.net, order_count=0)
    moves = pd.concat([into, out[out.day <= today]]).groupby(["member_id", "day"], as_index=False).sum()
    running = moves.groupby("member_id")[["net", "order_count"]].cumsum()
    moves["value"] = running.net.clip(lower=0)
    moves = moves[running.order_count > 0]
    reached = {tier: moves[moves.value >= amount].groupby("member_id").day.min() for tier, amount in enter}
    done = time.perf_counter()
    mixed = ((rfm.r * 100 + rfm.f * 10 + rfm.m) * (rfm.index % 1009)).sum()
    sums = (
        len(rfm),
        rfm.money.sum(),
        rfm.orders.sum(),
        rfm.last_day.sum(),
        rfm.r.sum(),
        rfm.f.sum(),
        rfm.m.sum(),
        mixed,
    )
    return result(
        [len(member_days), int(member_days.net.sum()), int(member_days.order_count.sum())],
        [int(value) for value in sums],
        {tier: [len(days), int(days.sum())] for tier, days in reached.items()},
    ) | {"seconds": done - started, "read": read - started}


def result(days: Sequence[int], rfm: Sequence[int], tiers: dict[str, list[int]]) -> dict[str, Any]:
    return {
        "days": dict(zip(("member_days", "net", "orders"), days, strict=True)),
        "rfm": dict(zip(("members", "money", "orders", "days", "r", "f", "m", "mixed"), rfm, strict=True)),
        "tiers": {tier: dict(zip(("members", "days"), values, strict=True)) for tier, values in tiers.items()},
    }


def main() -> None:
    """python marts_engines.py duckdb|pandas <folder> <business date> <RFM window> <tier window> tier=fen ..."""
    engine, folder, day, window, tier_window, *tiers = sys.argv[1:]
    enter = [(tier, int(amount)) for tier, _, amount in (text.partition("=") for text in tiers)]
    run = {"duckdb": run_duckdb, "pandas": run_pandas}[engine]
    found = run(Path(folder), date.fromisoformat(day), int(window), int(tier_window), enter)
    status = Path("/proc/self/status").read_text()
    print(json.dumps(found | {"peak_mb": int(status.partition("VmHWM:")[2].split()[0]) / 1024}))


if __name__ == "__main__":
    main()
