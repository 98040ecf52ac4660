"""Every mart, on a generated world with late orders, refunds, new people: nights = a rebuild, row by row; what-if touches nothing."""

import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from nightmarket.mart_graph import MART_GRAPH
from nightmarket.marts import MODEL_TABLES
from nightmarket.rebuild import BOOKS, backfill, days_of, empty_marts, run_night
from nightmarket.settings import get_settings
from nightmarket.tiers import load_tiers
from nightmarket.warehouse import Row, connect
from nightmarket.what_if import in_words, what_if

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from marts_data import World, add_night, load

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("rebuild")]
NIGHTS = 3
# The night that found a figure is no property of the figure, and when a mark moved even less (docs/decisions/0022-ripening-figures.md).
VOLATILE = "{business_date,computed_at}"
TABLES = sorted({*MART_GRAPH, *MODEL_TABLES} - set(BOOKS))


@pytest.fixture
def world(environment: str, pg: Any) -> Iterator[tuple[psycopg.Connection[Row], World]]:
    """Core of 250 members over three years; the connection is the loading role's."""
    made = World(250, seed=5)
    with connect(pg.server.dsn(environment), autocommit=True) as owner:
        load(owner, made)
    with connect(autocommit=True, application_name="test") as connection:
        yield connection, made


def rows(connection: psycopg.Connection[Row], tables: list[str] = TABLES) -> dict[str, list[str]]:
    """Every mart as sorted text."""
    found = {}
    for table in tables:
        # a snapshot keeps its date: it is the key
        keyed = connection.execute(
            "SELECT EXISTS (SELECT FROM information_schema.key_column_usage WHERE table_schema = 'mart' AND table_name = %s"
            " AND column_name = 'business_date') AS is_keyed",
            (table,),
        ).fetchone()
        assert keyed
        hidden = "{computed_at}" if keyed["is_keyed"] else VOLATILE
        query = sql.SQL("SELECT (to_jsonb(t) - {}::text[])::text AS r FROM {} AS t").format(
            sql.Literal(hidden), sql.Identifier("mart", table)
        )
        found[table] = sorted(row["r"] for row in connection.execute(query))
    return found


def difference(left: dict[str, list[str]], right: dict[str, list[str]]) -> dict[str, tuple[list[str], list[str]]]:
    """What stands on one side only, the first few rows of each table."""
    return {
        table: (sorted(set(left[table]) - set(right[table]))[:3], sorted(set(right[table]) - set(left[table]))[:3])
        for table in left
        if left[table] != right[table]
    }


def test_nights_give_what_a_rebuild_gives(world: tuple[psycopg.Connection[Row], World]) -> None:
    connection, made = world
    first = made.last_day
    backfill(first, first, from_empty=True)
    for number in range(1, NIGHTS + 1):
        add_night(connection, made, number, share=0.02)
        run_night(first + timedelta(days=number))
    last = first + timedelta(days=NIGHTS)
    by_night = rows(connection)
    assert all(
        by_night[table] for table in ("member_tiers", "points_ledger", "member_stages", "kpi_values", "product_days")
    )

    again = dict(by_night)
    run_night(last)
    assert difference(again, rows(connection)) == {}, "the last night once more moves nothing"
    run_night(first + timedelta(days=1))
    older = difference(again, rows(connection))
    assert set(older) <= SNAPSHOTS, "an older night takes nothing back; its own snapshot knows the late orders now"

    empty_marts()
    assert not any(rows(connection).values())
    run_night(last)
    at_once = rows(connection)
    exact = [table for table in TABLES if table not in SNAPSHOTS | KNOWN_BY_NIGHT]
    assert len(exact) >= 20
    assert difference({t: by_night[t] for t in exact}, {t: at_once[t] for t in exact}) == {}
    open_rfm = (
        "SELECT to_jsonb(r) - 'valid_from' AS r FROM mart.member_rfm AS r WHERE r.valid_to IS NULL ORDER BY r.member_id"
    )
    assert len(connection.execute(open_rfm).fetchall()) > 100


# Of a business date, or of what a night knew; an older night that is a Sunday also fits the week's model again.
SNAPSHOTS = {
    "member_predictions",
    "asset_cube_daily",
    "kpi_signals",
    "member_rfm",
    "product_roles",
    "product_pairs",
    "prediction_fits",
}
KNOWN_BY_NIGHT = {"stage_transitions"}  # its RFM part follows member_rfm; compared in test_histories.py


def test_a_stretch_run_again_gives_the_same_snapshots(world: tuple[psycopg.Connection[Row], World]) -> None:
    connection, made = world
    first, last = made.last_day - timedelta(days=2), made.last_day
    backfill(first, last, from_empty=True)
    # signals of a past date say what is known now (docs/decisions/0066-kpi-signals.md): figures have ripened meanwhile
    settled = [table for table in TABLES if table != "kpi_signals"]
    once = rows(connection, settled)
    backfill(first, last)
    assert difference(once, rows(connection, settled)) == {}
    again = rows(connection)
    backfill(first, last)
    assert difference(again, rows(connection)) == {}
    with pytest.raises(ValueError, match="ends"):
        list(days_of(last, first))


def test_what_if_tells_and_touches_nothing(world: tuple[psycopg.Connection[Row], World], tmp_path: Path) -> None:
    connection, made = world
    backfill(made.last_day, made.last_day, from_empty=True)
    before = rows(connection)
    text = (get_settings().config_dir / "tiers.yaml").read_text(encoding="utf-8")
    same = what_if(load_tiers(), made.last_day)
    assert same.differing == []
    assert same.members > 100
    assert {row["figure"]: row["now_value"] for row in same.costs} == {
        row["figure"]: row["proposed_value"] for row in same.costs
    }

    path = tmp_path / "tiers.yaml"
    path.write_text(text.replace("enter: 2000, keep: 1500", "enter: 1200, keep: 900"), encoding="utf-8")
    lower = what_if(load_tiers(path), made.last_day)
    assert lower.differing
    assert all(row["direction"] == "up" for row in lower.differing)
    risen = [row for row in lower.differing if row["tier_proposed"] == "gold"]
    assert any("1,200.00" in row["reason"] for row in risen)
    assert all(row["since"] <= made.last_day for row in risen)
    costs = {row["figure"]: row for row in lower.costs}
    coupons = costs["coupons for these rises, face value"]
    assert coupons["proposed_value"] > coupons["now_value"]
    assert "would stand higher" in in_words(lower)
    assert sum(row["risen_count"] + row["fallen_count"] for row in lower.dates) == len(lower.differing)
    lines = lower.write_csv(tmp_path / "who.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(lower.differing) + 1
    assert difference(before, rows(connection)) == {}
