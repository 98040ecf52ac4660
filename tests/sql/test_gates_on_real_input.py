"""Both gates over a night that came in over HTTP: green as it is, red when money is lost on the way."""

from datetime import date
from typing import Any

import psycopg
import pytest

from nightmarket import dates, landing, mapping, sources
from nightmarket.marts import load_marts, sync_config
from nightmarket.quality import GateFailed, run_gate
from nightmarket.warehouse import Row

DAY = date(2026, 3, 14)


def extract() -> None:
    for source_id, source in sources.load_sources().items():
        for stream in source.streams:
            landing.land(source_id, stream, run_id="night", until=dates.now())
    for source_id in sources.load_sources():
        mapping.map_source(source_id, run_id="night")
    mapping.resolve_members(run_id="night")


@pytest.mark.slow
def test_a_night_from_the_sandbox_is_green_and_lost_money_is_red(db: psycopg.Connection[Row], sandbox: Any) -> None:
    extract()
    sync_config(db, sources.load_sources().values())
    assert run_gate("core", DAY, "night").warned == []
    with db.transaction():
        load_marts(db, DAY)
    mart = run_gate("mart", DAY, "night")
    assert {result.check for result in mart.warned} <= {"most_due_orders_were_shipped"}

    truth = sandbox.control("GET", "/truth")
    assert truth, "the sandbox says what it holds"
    with pytest.raises(GateFailed, match=r"streams_read_to_the_end: .*taobao_flagship trades was read to 2026-03-15"):
        run_gate("core", date(2026, 3, 15), "too early")

    db.execute(
        "UPDATE core.orders SET goods_amount = goods_amount + 1 WHERE order_id = (SELECT min(order_id) FROM core.orders WHERE is_paid)"
    )
    with pytest.raises(GateFailed, match=r"core\.order_lines: lines_add_up_to_orders: 1 orders differ"):
        run_gate("core", DAY, "repaired wrongly")
    failed = db.execute(
        "SELECT check_name FROM ops.gate_results WHERE run_id = 'repaired wrongly' AND NOT is_passed"
    ).fetchall()
    assert {row["check_name"] for row in failed} == {"lines_add_up_to_orders", "money_raw_equals_core"}
