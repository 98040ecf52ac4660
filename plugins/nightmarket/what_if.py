"""What would other tier rules have done? Proposed rules told over the whole history, beside what stands; nothing live is touched.

The SQL that makes the tiers and the points runs as it is, on temporary copies of the tables it writes and of the rules it
reads: their names are replaced in the text, so a live row cannot be reached by accident.
"""

import csv
import re
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg

from nightmarket.marts import load_path, mart_parameters
from nightmarket.tiers import Tiers, sync_tiers
from nightmarket.warehouse import Row, connect, read_sql, split_statements

SHADOWED = ("tier_programmes", "tier_rules", "point_rules", "member_tiers", "points_ledger", "marks", "restatements")
_NAMES = re.compile(rf"\bmart\.({'|'.join(SHADOWED)})\b")
YEAR = 365


@dataclass(frozen=True)
class WhatIf:
    """What the proposed rules do as of `business_date`. Amounts in the shops' currency; costs of the last 365 days."""

    business_date: date
    programme: str
    members: int
    moves: list[Row]  # tier_now, tier_proposed, direction, member_count
    dates: list[Row]  # month, risen_count, fallen_count: when those who differ came to the tier they would have
    costs: list[Row]  # figure, now_value, proposed_value
    differing: list[Row] = field(repr=False)  # one row per member who stands differently, with the date and the reason

    def write_csv(self, path: Path) -> Path:
        """Every member who would stand differently, one line each."""
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows([row[name] for name in COLUMNS] for row in self.differing)
        return path


COLUMNS = ("member_id", "tier_now", "tier_proposed", "direction", "since", "reason")


def what_if(proposed: Tiers, business_date: date) -> WhatIf:
    """Compare the first proposed programme with the first one in force, as of a business date the marts know."""
    with connect(application_name="nightmarket-what-if") as connection:
        _tell(connection, proposed, business_date)
        query = {"business_date": business_date}
        found: dict[str, list[Row]] = {
            name: _run(connection, f"what_if/{name}.sql", query) for name in ("moves", "dates", "costs", "members")
        }
        connection.rollback()  # the temporary tables go with it
    count = sum(row["member_count"] for row in found["moves"])
    return WhatIf(
        business_date,
        proposed.programmes[0].programme,
        count,
        found["moves"],
        found["dates"],
        found["costs"],
        found["members"],
    )


def _tell(connection: psycopg.Connection[Row], proposed: Tiers, business_date: date) -> None:
    """The proposed history, in temporary tables of the names of the live ones."""
    for table in SHADOWED:
        connection.execute(f"CREATE TEMPORARY TABLE {table} (LIKE mart.{table} INCLUDING ALL) ON COMMIT DROP")  # type: ignore[arg-type]
    sync_tiers(connection, proposed, schema="pg_temp")
    # no mark: everybody's history; of the figures of a past date only what was known by it
    for table in ("member_tiers", "points_ledger"):
        _run(connection, load_path(table), mart_parameters(business_date), shadow=True)


def _run(
    connection: psycopg.Connection[Row], name: str, parameters: dict[str, Any], *, shadow: bool = False
) -> list[Row]:
    text = read_sql(name)
    rows: list[Row] = []
    for statement in split_statements(_NAMES.sub(r"pg_temp.\1", text) if shadow else text):
        cursor = connection.execute(statement, parameters)  # type: ignore[arg-type]
        rows = cursor.fetchall() if cursor.description else []
    return rows


def in_words(result: WhatIf) -> str:
    """The comparison as text for a shell or a task's log."""
    risen = sum(row["member_count"] for row in result.moves if row["direction"] == "up")
    fallen = sum(row["member_count"] for row in result.moves if row["direction"] == "down")
    lines = [
        f"as of {result.business_date}, programme {result.programme!r}: {result.members:,} members, {risen:,} would stand higher, "
        f"{fallen:,} lower, {result.members - risen - fallen:,} as they stand",
        "",
        *(
            f"  {row['tier_now'] or '-':>12} -> {row['tier_proposed'] or '-':<12} {row['member_count']:>9,}"
            for row in result.moves
        ),
        "",
        "since when those would have stood differently (month: higher, lower)",
        *(f"  {row['month']:%Y-%m}: {row['risen_count']:,}, {row['fallen_count']:,}" for row in result.dates),
        "",
        "cost (of the last 365 days where it says so)",
        *(
            f"  {row['figure']:<48} {_number(row['now_value']):>14} -> {_number(row['proposed_value']):>14}"
            for row in result.costs
        ),
    ]
    return "\n".join(lines)


def _number(value: Decimal | int) -> str:
    return f"{value:,.2f}" if isinstance(value, Decimal) and value != value.to_integral_value() else f"{int(value):,}"
