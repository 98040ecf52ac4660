"""KPIs as data: what kpis.yaml may say, what reaches the warehouse, and `nightmarket explain kpi`."""

import re
from datetime import date
from pathlib import Path
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner

import night_world as world
from nightmarket import settings as settings_module
from nightmarket.cli import app
from nightmarket.explain_kpi import explain_kpi, period_of, table_of
from nightmarket.kpis import KpiDefinition, computed_kpis, sync_kpis
from nightmarket.marts import load_kpis, load_path, mart_parameters, sync_config
from nightmarket.settings import ConfigError
from nightmarket.warehouse import Row, run_sql

runner = CliRunner()
NIGHT = (
    "touched_members", "touched_facts", "member_days", "buyer_firsts", "buyer_periods", "shop_kpis_daily", "fulfilment_kpis_daily",
    "review_kpis_daily", "service_kpis_daily", "content_kpis", "social_kpis_daily", "channel_kpis_daily", "kpi_values", "kpi_signals",
)  # fmt: skip


def changed(tmp_path: Path, pattern: str, by: str) -> Path:
    """kpis.yaml with one thing changed."""
    stored = (settings_module.get_settings().config_dir / "kpis.yaml").read_text(encoding="utf-8")
    text, count = re.subn(pattern, by, stored, count=1)
    assert count == 1
    path = tmp_path / "kpis.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("pattern", "by", "sentence"),
    [
        (
            r"  paid_orders:",
            "  payed_orders:",
            r"kpis\.yaml:\d+: kpis\.payed_orders: nothing computes the KPI 'payed_orders'",
        ),
        (r"unit: count", "unit: pieces", r"kpis\.yaml:\d+: kpis\.paid_orders\.unit: "),
        (r"kind: sum, direction: up", "kind: sum, direction: sideways", r"kpis\.paid_orders\.direction: "),
        (
            r"kind: sum, direction: up",
            "kind: sum, direction: up, amber_margin: 2",
            r"amber_margin: a margin needs a target",
        ),
        (r"kind: sum, direction: up", "kind: sum, direction: up, ripens_days: -1", r"kpis\.paid_orders\.ripens_days: "),
        (
            r"kind: sum, direction: up",
            "kind: sum, direction: up, goal: 3",
            r"goal: unknown key\. Known keys here: .*target",
        ),
        (r"reply_hours: 24", "reply_hours: soon", r"kpis\.yaml:\d+: service\.reply_hours: "),
    ],
)
def test_a_mistake_is_one_sentence(environment: str, tmp_path: Path, pattern: str, by: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load_kpis(changed(tmp_path, pattern, by))


def test_a_target_of_a_source_that_is_not_there_is_refused(db: psycopg.Connection[Row]) -> None:
    kpis = load_kpis().kpis
    wrong = kpis["paid_orders"].model_copy(update={"source_targets": {"taobau": 10}})
    with pytest.raises(ConfigError, match=r"kpis\.paid_orders\.source_targets: there is no source 'taobau'"):
        sync_kpis(db, kpis | {"paid_orders": wrong}, ["taobao_flagship"])


def test_definitions_follow_the_file_and_rest_when_it_does(db: psycopg.Connection[Row]) -> None:
    kpis = load_kpis().kpis
    query = "SELECT ctid::text, kpi, target, source_targets ->> 'mall' AS mall FROM mart.kpi_definitions ORDER BY kpi"
    assert sync_kpis(db, kpis, ["mall"]) == len(kpis)
    before = db.execute(query).fetchall()
    sync_kpis(db, kpis, ["mall"])
    assert db.execute(query).fetchall() == before
    aimed = kpis["refund_rate"].model_copy(update={"source_targets": {"mall": "0.3"}})
    less: dict[str, KpiDefinition] = {"refund_rate": aimed}
    assert sync_kpis(db, less, ["mall"]) == 1
    (row,) = db.execute(query).fetchall()
    assert (row["kpi"], float(row["mall"])) == ("refund_rate", 0.3)


def test_periods() -> None:
    assert period_of(date(2028, 2, 29), "day") == (date(2028, 2, 29), date(2028, 2, 29))
    assert period_of(date(2027, 1, 3), "week") == (date(2026, 12, 28), date(2027, 1, 3))
    assert period_of(date(2028, 2, 29), "month") == (date(2028, 2, 1), date(2028, 2, 29))
    assert period_of(date(2028, 12, 31), "month") == (date(2028, 12, 1), date(2028, 12, 31))


def test_figures_and_lights_as_people_read_them(db: psycopg.Connection[Row]) -> None:
    row = db.execute(
        "SELECT mart.kpi_text(NULL, 'rate') AS unknown, mart.kpi_text(12345, 'count') AS pieces, mart.kpi_text(0.1235, 'rate') AS rate,"
        " mart.kpi_light(NULL, 1, 0, 'up') AS nothing, mart.kpi_light(2, NULL, 0, 'up') AS unwanted,"
        " mart.kpi_light(1, 1, 0, 'down') AS met, mart.kpi_light(0.9, 1, 0.1, 'up') AS near, mart.kpi_light(1.2, 1, 0.1, 'down') AS missed"
    ).fetchone()
    assert row == {
        "unknown": None, "pieces": "12,345", "rate": "12.4 %",
        "nothing": "none", "unwanted": "none", "met": "green", "near": "amber", "missed": "red",
    }  # fmt: skip


def test_every_kpi_names_its_table_and_has_its_query(environment: str) -> None:
    folder = settings_module.get_settings().sql_dir
    assert {path.stem for path in (folder / "explain" / "kpis").glob("*.sql")} == computed_kpis()
    assert {table_of(kpi) for kpi in computed_kpis()} == {
        "shop_kpis_daily", "fulfilment_kpis_daily", "review_kpis_daily", "service_kpis_daily", "social_kpis_daily",
        "channel_kpis_daily", "buyer_periods",
    }  # fmt: skip
    assert (table_of("paid_orders"), table_of("buyers"), table_of("messages")) == (
        "shop_kpis_daily", "buyer_periods", "channel_kpis_daily",
    )  # fmt: skip


@pytest.fixture
def night(db: psycopg.Connection[Row]) -> psycopg.Connection[Row]:
    world.seed_shop(db)
    sync_config(db, [])
    for table in NIGHT:
        with db.transaction():
            run_sql(db, load_path(table), mart_parameters(world.DAY_ONE))
    return db


def test_explain_gives_parts_and_the_same_from_core(night: Any) -> None:
    answer = runner.invoke(
        app, ["explain", "kpi", "average_order_value", "--date", str(world.DAY_ONE), "--grain", "month"]
    )
    assert answer.exit_code == 0, answer.output
    (row,) = night.execute(
        "SELECT numerator, denominator, value FROM mart.kpi_values WHERE kpi = 'average_order_value' AND source_id = ''"
        " AND grain = 'month' AND period_start = date_trunc('month', %s::date)", (world.DAY_ONE,),
    ).fetchall()  # fmt: skip
    parts = f"{row['numerator'].normalize():f} / {row['denominator'].normalize():f}"
    assert f"value {row['value']:,.2f} = {parts}" in answer.output
    assert f"the same from core, now (include/sql/explain/kpis/average_order_value.sql): {parts}" in answer.output
    assert "include/sql/mart/shop_kpis_daily/load.sql, then include/sql/mart/kpi_values/load.sql" in answer.output
    query = "\n".join(line for line in answer.output.splitlines() if line.startswith("    "))
    (pasted,) = night.execute(query).fetchall()  # what is printed runs as it stands
    assert (pasted["numerator"], pasted["denominator"]) == (row["numerator"], row["denominator"])


def test_explain_says_what_is_not_known_yet(night: Any) -> None:
    page = explain_kpi("order_success_rate", world.DAY_ONE)
    assert "it still moves by itself until 21 days after the period" in page
    assert "target at least 75.0 %" in page
    assert "no figure: nothing is known" in explain_kpi("paid_orders", date(2001, 1, 1))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["payed_orders"], "there is no KPI 'payed_orders'; the KPIs are average_order_value, "),
        (["paid_orders", "--grain", "year"], "there is no grain 'year'; give day, week or month."),
        (["paid_orders"], "the KPIs were not computed yet"),
    ],
)
def test_a_wrong_question_is_one_sentence(environment: str, arguments: list[str], sentence: str) -> None:
    answer = runner.invoke(app, ["explain", "kpi", *arguments, "--date", "2026-03-12"])
    assert answer.exit_code == 1
    assert sentence in " ".join(answer.output.split())
    assert "Traceback" not in answer.output
