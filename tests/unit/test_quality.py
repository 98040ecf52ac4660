"""Gates: what each kind of check sees, what is kept, what stops the night. On a real database."""

import shutil
import uuid
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from typer.testing import CliRunner

from nightmarket import settings as settings_module
from nightmarket.categories import load_categories
from nightmarket.cli import app
from nightmarket.marts import load_kpis, load_marts, sync_config
from nightmarket.quality import GateFailed, GateReport, judge, load_tables, run_gate
from nightmarket.settings import ConfigError
from nightmarket.warehouse import Row, connect

DAY = date(2026, 3, 14)
TABLE: dict[str, Any] = {
    "table": "core.products",
    "owner": "test",
    "description": "Products. One row per source and product.",
    "grain": ["source_id", "product_id"],
    "columns": {
        name: {"unit": "words", "description": "a column"}
        for name in ("source_id", "product_id", "title", "outer_id", "seen_at")
    },
}


@pytest.fixture(scope="module")
def shared_database(pg: Any) -> Iterator[str]:
    """One database for all tests of this file; each begins with empty tables."""
    name = f"gates_{uuid.uuid4().hex[:12]}"
    pg.create_database(name)
    yield pg.dsn(name)
    pg.server.drop_database(name)


@pytest.fixture
def connection(shared_database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[psycopg.Connection[Row]]:
    monkeypatch.setenv("NIGHTMARKET_WAREHOUSE_DSN", shared_database)
    settings_module.get_settings.cache_clear()
    with connect(autocommit=True, application_name="test") as connection:
        tables = connection.execute(
            "SELECT string_agg(format('%I.%I', schemaname, tablename), ', ') AS names FROM pg_tables"
            " WHERE (schemaname IN ('core', 'mart') AND tablename <> 'portrait_rules') OR tablename = 'gate_results'"
        ).fetchone()
        assert tables
        connection.execute(f"TRUNCATE {tables['names']}")
        yield connection
    settings_module.get_settings.cache_clear()


@pytest.fixture
def gate(
    connection: psycopg.Connection[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., GateReport]:
    """Run the core gate with one table.yaml of core.products and nothing else; `rows` are (product_id, title, outer_id, day)."""
    folder = tmp_path / "sql"
    (folder / "core" / "tables").mkdir(parents=True)
    (folder / "checks" / "core").mkdir(parents=True)
    monkeypatch.setenv("NIGHTMARKET_SQL_DIR", str(folder))
    settings_module.get_settings.cache_clear()

    def run(
        *checks: dict[str, Any], rows: list[tuple[str, str, str | None, str]], sql: str | None = None,
        run_id: str = "run", day: date | str = DAY, full: bool = False, **changes: Any,
    ) -> GateReport:  # fmt: skip
        (folder / "core" / "tables" / "products.yaml").write_text(
            yaml.safe_dump(TABLE | {"checks": list(checks)} | changes)
        )
        if sql:
            (folder / "checks" / "core" / "titles.sql").write_text(sql)
        connection.execute("TRUNCATE core.products")
        for product, title, outer, seen in rows:
            connection.execute(
                "INSERT INTO core.products VALUES ('shop', %s, %s, %s, %s)", (product, title, outer, seen)
            )
        return run_gate("core", day, run_id, full=full)

    return run


NOON = "2026-03-14 12:00:00"
ROW = ("p1", "a mug", "m-1", NOON)


@pytest.mark.parametrize(
    ("check", "good", "bad", "observed"),
    [
        ({"kind": "not_null", "column": "outer_id"}, [ROW], [ROW, ("p2", "b", None, NOON)], "1 rows"),
        ({"kind": "unique", "columns": ["title"]}, [ROW, ("p2", "b", None, NOON)], [ROW, ("p2", "a mug", None, NOON)],
         "1 keys more than once"),
        ({"kind": "unique", "columns": ["outer_id"], "where": "product_id <> 'p3'"},
         [ROW, ("p3", "c", "m-1", NOON)], [("p1", "a", None, NOON), ("p2", "b", None, NOON)], "1 keys more than once"),
        ({"kind": "accepted_values", "column": "outer_id", "values": ["m-1", "it's 100%"]},
         [ROW, ("p2", "b", None, NOON), ("p3", "c", "it's 100%", NOON)], [("p2", "b", "x", NOON)], "1 rows"),
        ({"kind": "expression", "id": "titles_are_short", "holds": "length(title) < 6"}, [ROW], [("p1", "a mug!", None, NOON)], "1 rows"),
        ({"kind": "expression", "id": "percent", "holds": "title NOT LIKE '%%x%%'"}, [ROW], [("p1", "a x b", None, NOON)], "1 rows"),
        ({"kind": "expression", "id": "seen_by_now", "holds": "seen_at < (%(business_date)s::date + 1)::timestamptz"},
         [ROW], [("p1", "a", None, "2026-03-15 00:00:00")], "1 rows"),
        ({"kind": "freshness", "column": "seen_at", "max_age_days": 1},
         [("p1", "a", None, "2026-03-13 00:00:00")], [("p1", "a", None, "2026-03-12 23:59:59")], "newest is of 2026-03-12"),
        ({"kind": "freshness", "column": "seen_at", "max_age_days": 1}, [ROW], [("p1", "a", None, "2026-03-15 00:00:00")], "no rows"),
        ({"kind": "row_count", "column": "seen_at", "days": 3, "min_history": 2, "min_ratio": 0.5, "max_ratio": 1.5},
         [("a", "", None, "2026-03-12 10:00:00"), ("b", "", None, "2026-03-13 10:00:00"), ROW],
         [("a", "", None, "2026-03-12 10:00:00"), ("b", "", None, "2026-03-13 10:00:00")], "0 rows, usual 1.0"),
        ({"kind": "row_count", "column": "seen_at", "days": 3, "min_history": 1, "min_ratio": 0, "max_ratio": 1.5},
         [("a", "", None, "2026-03-10 23:59:59"), ROW, ("p2", "", None, NOON)],
         [("a", "", None, "2026-03-11 00:00:00"), ROW, ("p2", "", None, NOON)], "2 rows, usual 1.0"),
    ],
)  # fmt: skip
def test_each_kind_of_check_passes_and_fails(
    gate: Callable[..., GateReport], check: dict[str, Any], good: list[Any], bad: list[Any], observed: str
) -> None:
    assert gate({**check, "severity": "fail"}, rows=good).failed == []
    with pytest.raises(GateFailed) as caught:
        gate({**check, "severity": "fail"}, rows=bad)
    assert "core.products" in str(caught.value)
    assert observed in str(caught.value)
    assert "\n" not in str(caught.value)
    report = gate({**check, "severity": "warn"}, rows=bad)
    assert [result.observed for result in report.warned] == [observed]
    assert observed in str(report)


def test_little_history_is_said_not_judged(gate: Callable[..., GateReport]) -> None:
    check = {"kind": "row_count", "column": "seen_at", "min_ratio": 0.9, "max_ratio": 1.1, "severity": "fail"}
    report = gate(check, rows=[ROW])
    assert report.results[0].observed == "1 rows, usual unknown (only 0 days of history)"


NOT_NULL = {"kind": "not_null", "column": "outer_id", "severity": "fail"}
HEADER = "-- Titles are short.\n-- Table: core.products. Severity: warn.\n"


def test_results_are_kept_once_per_run(gate: Callable[..., GateReport], connection: psycopg.Connection[Row]) -> None:
    def kept() -> list[tuple[Any, ...]]:
        rows = connection.execute(
            "SELECT run_id, check_name, severity, is_passed, observed FROM ops.gate_results ORDER BY 1, 2"
        )
        return [tuple(row.values()) for row in rows]

    titles = HEADER + "SELECT TRUE AS is_passed, 'all' AS observed"
    with pytest.raises(GateFailed, match=r"gate core of 2026-03-14 is red: core\.products: not_null outer_id: 1 rows;"):
        gate(NOT_NULL, rows=[("p1", "a", None, NOON)], sql=titles)
    assert kept() == [
        ("run", "not_null outer_id", "fail", False, "1 rows"),
        ("run", "titles", "warn", True, "all"),
    ]
    assert str(gate(NOT_NULL, rows=[ROW], day="2026-03-14")) == "gate core of 2026-03-14 is green: 2 checks passed."
    assert [row[3] for row in kept()] == [True, True], "the same run again replaces what it wrote"
    gate(NOT_NULL, rows=[ROW], run_id="another")
    assert [row[0] for row in kept()] == ["another", "another", "run", "run"]


def test_several_failures_are_one_sentence(gate: Callable[..., GateReport]) -> None:
    more = {"kind": "not_null", "column": "outer_id", "where": "TRUE", "severity": "fail"}
    with pytest.raises(GateFailed, match=r"and 1 more check failed; nobody is messaged until a later run passes\.$"):
        gate(NOT_NULL, more, rows=[("p1", "a", None, NOON)])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"checks": [{**NOT_NULL, "column": "colour"}]}, r"products\.yaml:\d+: checks\.0: column 'colour' is not described"),
        ({"checks": [NOT_NULL, NOT_NULL]}, r"products\.yaml:\d+: checks\.1: the check 'not_null outer_id' stands twice"),
        ({"checks": [{**NOT_NULL, "severity": "maybe"}]}, r"products\.yaml:\d+: checks\.0\.not_null\.severity: Input should be"),
        ({"checks": [{"kind": "nothing", "severity": "fail"}]}, r"products\.yaml:\d+: checks\.0"),
        ({"description": "Products."}, r"products\.yaml:\d+: description: String should match pattern"),
        ({"grain": ["colour"]}, r"products\.yaml:\d+: grain\.0: column 'colour' is not described"),
        ({"table": "core.orders"}, r"products\.yaml: table: this file describes core\.products, not core\.orders"),
        ({"checks": [{**NOT_NULL, "where": "colour = 1"}]}, r'core\.products: check .* cannot run: column "colour" does not exist'),
        ({"checks": [{**NOT_NULL, "where": "title = "}]}, r"core\.products: check .* cannot run: syntax error"),
    ],
)  # fmt: skip
def test_a_wrong_table_yaml_is_one_sentence(
    gate: Callable[..., GateReport], changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        gate(rows=[ROW], **changes)


@pytest.mark.parametrize(
    ("sql", "sentence"),
    [
        ("SELECT TRUE AS is_passed, '' AS observed", r"checks/core/titles\.sql: the header needs `Table: schema\.table\.`"),
        (HEADER + "SELECT TRUE AS is_passed", r"checks/core/titles\.sql: a check gives one row of is_passed and observed"),
        (HEADER + "SELECT TRUE AS is_passed, '' AS observed WHERE FALSE", r"a check gives one row"),
        (HEADER + "SELECT colour FROM core.products", r'titles\.sql cannot run: column "colour" does not exist'),
    ],
)  # fmt: skip
def test_a_wrong_sql_check_is_one_sentence(gate: Callable[..., GateReport], sql: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        gate(rows=[ROW], sql=sql)


def test_an_unknown_gate_is_refused(connection: psycopg.Connection[Row]) -> None:
    with pytest.raises(ValueError, match="there is no gate 'stage'; the gates are core and mart"):
        run_gate("stage", DAY, "run")


class Source:
    """What sources.yaml says of a source."""

    def __init__(self, source_id: str, kind: str = "shop", name: str = "夜市") -> None:
        self.source_id, self.kind, self.name, self.platform, self.currency_code = source_id, kind, name, "taobao", "CNY"
        self.streams, self.is_store = {"trades": None}, False


def test_sync_config_brings_rules_and_accounts(connection: psycopg.Connection[Row]) -> None:
    categories = len(load_categories().categories) + 1  # and what is left
    counts = {"tier_rules": 4, "category_rules": categories, "kpi_definitions": len(load_kpis().kpis)}
    assert sync_config(connection, [Source("a"), Source("b")]) == counts | {"accounts": 2}
    assert sync_config(connection, [Source("a", name="新名")]) == counts | {"accounts": 1}
    rows = connection.execute("SELECT source_id, name, is_active FROM core.accounts ORDER BY source_id").fetchall()
    assert [tuple(row.values()) for row in rows] == [("a", "新名", True), ("b", "夜市", False)]
    sync_config(connection, [Source("a"), Source("b")])
    assert connection.execute("SELECT count(*) AS n FROM core.accounts WHERE is_active").fetchone() == {"n": 2}
    ranks = connection.execute(
        "SELECT tier, rank, enter_value, keep_value FROM mart.tier_rules ORDER BY rank"
    ).fetchall()
    assert [row["tier"] for row in ranks] == ["bronze", "silver", "gold", "diamond"]
    assert [(row["enter_value"], row["keep_value"]) for row in ranks[:2]] == [(0, 0), (700, 500)]
    (programme,) = connection.execute("SELECT programme, position, window_days FROM mart.tier_programmes").fetchall()
    assert programme == {"programme": "main", "position": 1, "window_days": 365}
    assert connection.execute("SELECT programme, expire_days FROM mart.point_rules").fetchall() == [
        {"programme": "main", "expire_days": 730}
    ]


def test_wrong_tiers_change_nothing(
    connection: psycopg.Connection[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    sync_config(connection, [])
    shutil.copytree(settings_module.get_settings().config_dir, tmp_path / "config")
    tiers = tmp_path / "config" / "tiers.yaml"
    tiers.write_text(tiers.read_text(encoding="utf-8").replace("enter: 2000, keep: 1500", "enter: 600, keep: 550"))
    monkeypatch.setenv("NIGHTMARKET_CONFIG_DIR", str(tmp_path / "config"))
    settings_module.get_settings.cache_clear()
    with pytest.raises(ConfigError, match=r"tiers\.yaml:\d+: programmes\.0\.tiers\.2\.enter: 600 is not above 700"):
        sync_config(connection, [])
    assert connection.execute("SELECT count(*) AS n FROM mart.tier_rules").fetchone() == {"n": 4}


def test_the_stored_gates_judge_a_small_night(connection: psycopg.Connection[Row]) -> None:
    """An order, its member, the marts: the mart gate is green; money that appears in a mart alone turns it red."""
    sync_config(connection, [Source("shop")])
    connection.execute(
        "INSERT INTO core.identities (identity_id, kind, value, source_id, first_seen_at) OVERRIDING SYSTEM VALUE VALUES (1, 'mall_id', 'x', 'shop', %s)",
        (NOON,),
    )
    connection.execute(
        "INSERT INTO core.members (member_id, first_seen_at) OVERRIDING SYSTEM VALUE VALUES (1, %s)", (NOON,)
    )
    connection.execute("INSERT INTO core.member_identities VALUES (1, 1, %s)", (NOON,))
    connection.execute(
        "INSERT INTO core.orders (source_id, order_id, identity_id, status, status_original, is_paid, currency_code, goods_amount,"
        " paid_amount, line_count, unit_count, created_at, paid_at, modified_at, batch_id, loaded_at)"
        " VALUES ('shop', 'A', 1, 'paid', 'paid', TRUE, 'CNY', 100, 100, 1, 1, %(t)s, %(t)s, %(t)s, 1, %(t)s)",
        {"t": NOON},
    )
    with connection.transaction():
        load_marts(connection, DAY)
    report = run_gate("mart", DAY, "night")
    assert len(report.results) > 20
    assert report.failed == report.warned == []
    with pytest.raises(
        GateFailed, match=r"core\.order_lines: lines_add_up_to_orders: 1 orders differ from their lines, by 100"
    ):
        run_gate("core", DAY, "night")
    connection.execute("UPDATE mart.member_days SET gross_amount = 101, net_amount = 101")
    with pytest.raises(
        GateFailed, match=r"member_days_equal_core: 1 of 1 members differ.*; paid in core 100, in the mart 101"
    ):
        run_gate("mart", DAY, "night")


def test_a_night_looks_at_what_it_can_have_moved_a_full_gate_at_all(gate: Callable[..., GateReport]) -> None:
    recent = {"recent": "seen_at >= (%(business_date)s::date - 7)::timestamptz"}
    rows = [("p1", "old", None, "2026-03-06 23:59:59"), ("p2", "new", "x", NOON)]
    assert gate(NOT_NULL, rows=rows, **recent).failed == []
    with pytest.raises(GateFailed, match="not_null outer_id: 1 rows"):
        gate(NOT_NULL, rows=rows, full=True, **recent)


def test_the_command_prints_what_did_not_pass(
    gate: Callable[..., GateReport], connection: psycopg.Connection[Row]
) -> None:
    gate(rows=[("p1", "a mug", None, NOON)])  # writes the folder of checks
    folder = settings_module.get_settings().sql_dir
    titles = folder / "checks" / "core" / "titles.sql"
    titles.write_text(HEADER + "SELECT FALSE AS is_passed, 'one is long' AS observed")
    found = CliRunner().invoke(app, ["gate", "core", "--day", "2026-03-14"])
    assert found.exit_code == 0, found.output  # a warning stops nothing
    assert "warn" in found.output
    assert "one is long" in found.output
    titles.write_text(HEADER.replace("warn", "fail") + "SELECT FALSE AS is_passed, %(is_full)s::text AS observed")
    found = CliRunner().invoke(app, ["gate", "core", "--day", "2026-03-14", "--full"])
    assert found.exit_code == 1
    assert "gate core of 2026-03-14 is red: core.products: titles: true" in found.output
    kept = connection.execute(
        "SELECT DISTINCT run_id LIKE 'cli/%%' AS by_hand FROM ops.gate_results WHERE run_id <> 'run'"
    )
    assert [row["by_hand"] for row in kept] == [True]
    assert CliRunner().invoke(app, ["gate", "stage"]).exit_code == 1


def test_after_a_first_night_everything_is_judged_later_what_moved(connection: psycopg.Connection[Row]) -> None:
    """A member of the past without a day in the mart: seen by the first night's gate, by a later one when touched or full."""
    with connection.transaction():
        load_marts(connection, DAY)
    connection.execute("INSERT INTO mart.member_days VALUES (15, '2025-06-01', 1, 5, 0, 5)")  # not 2026-03-14's turn

    def seen(run_id: str, **options: Any) -> str:
        report = judge("mart", DAY, run_id, **options)
        return next(result.observed for result in report.results if result.check == "member_days_equal_core")

    differs = "1 of 1 members differ, first on 2025-06-01; paid in core 0, in the mart 5"
    assert seen("nothing tells what moved") == differs
    connection.execute("INSERT INTO mart.touched_days VALUES (1, 'shop', '2026-03-14')")
    assert seen("a night") == "0 of 0 members differ; paid in core 0, in the mart 0"
    assert seen("by hand", full=True) == differs
    connection.execute("INSERT INTO mart.touched_members VALUES (1, 15, '2025-06-01')")
    assert seen("a night that touched them") == differs


def test_every_table_yaml_can_be_read(connection: psycopg.Connection[Row]) -> None:
    assert {doc.table.split(".")[0] for gate in ("core", "mart") for doc in load_tables(gate)} >= {"mart"}
