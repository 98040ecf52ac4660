"""Money as received is money in core, for every kind of shop; a line that a mapping loses is seen, and seen where."""

import shutil
from pathlib import Path
from typing import Any

import malls
import psycopg
import pytest
from test_shopify import SOURCES as SHOPIFY
from test_weidian import BLOCK as WEIDIAN

from nightmarket import dates, settings, sources
from nightmarket.marts import sync_config
from nightmarket.quality import gate_parameters
from nightmarket.warehouse import Row, run_sql

SHOPS = {  # source -> whose sources.yaml has it; Taobao is the whole history: tests/sql/test_gates_on_real_input.py
    "jd_pop": None, "youzan_mall": None, "wechat_store": None, "woo_mall": None, "pos_stores": None,
    "weidian_shop": WEIDIAN, "shopify_mall": SHOPIFY,
}  # fmt: skip
LOSS = """
DELETE FROM new_lines AS l
USING (
    SELECT x.record_id, max(x.line_id) AS line_id
    FROM new_lines AS x
    JOIN new_rows AS r ON r.record_id = x.record_id
    WHERE r.is_paid
    GROUP BY x.record_id
    HAVING count(*) > 1
    ORDER BY x.record_id DESC
    LIMIT 1
) AS d
WHERE l.record_id = d.record_id AND l.line_id = d.line_id;
"""


@pytest.mark.slow
@pytest.mark.parametrize("is_lost", [False, True], ids=["whole", "a line is lost"])
@pytest.mark.parametrize("source_id", SHOPS)
def test_a_line_that_a_mapping_loses_is_named_by_source_and_day(
    source_id: str, is_lost: bool, db: psycopg.Connection[Row], sandbox: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:  # fmt: skip
    if SHOPS[source_id]:
        malls.use_sources(monkeypatch, tmp_path, SHOPS[source_id] or "")
    if is_lost:
        shutil.copytree(settings.get_settings().sql_dir, tmp_path / "sql")
        platform = sources.source(source_id).platform
        mapping = tmp_path / "sql" / "core" / ("declared" if platform == "files" else platform) / "orders.sql"
        mapping.write_text(mapping.read_text(encoding="utf-8") + LOSS, encoding="utf-8")
        monkeypatch.setenv("NIGHTMARKET_SQL_DIR", str(tmp_path / "sql"))
        settings.get_settings.cache_clear()
    malls.night(source_id, "first")
    sync_config(db, sources.load_sources().values())
    parameters = gate_parameters(dates.business_date(), False)

    def seen(check: str) -> Row:
        return run_sql(db, f"checks/core/{check}.sql", parameters)[0]

    money = seen("money_raw_equals_core")
    assert not money["observed"].startswith("0 of 0 ")
    assert money["is_passed"] is not is_lost, money["observed"]
    assert seen("lines_add_up_to_orders")["is_passed"], "core agrees with itself: only raw knows better"
    if is_lost:
        assert f" orders differ; first {source_id} 20" in money["observed"]
