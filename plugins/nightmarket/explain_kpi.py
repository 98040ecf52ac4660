"""Where a KPI's figure comes from: its parts, what it is compared with, the SQL that makes it, and the same again from core."""

import re
from collections.abc import Iterator
from datetime import date, timedelta
from decimal import Decimal
from typing import Literal, get_args

import psycopg

from nightmarket.console.queries import reader
from nightmarket.kpis import LINE, VALUES_FILE, computed_kpis
from nightmarket.marts import mart_parameters
from nightmarket.warehouse import Row, read_sql

Grain = Literal["day", "week", "month"]


def explain_kpi(kpi: str, day: date, source_id: str = "", grain: str = "day") -> str:
    """A page of text about the figure of the period that holds `day`; source '' = all sources together.

    Raises ValueError for a KPI, grain or source that there is not.
    """
    if kpi not in computed_kpis():
        raise ValueError(f"there is no KPI {kpi!r}; the KPIs are {', '.join(sorted(computed_kpis()))}.")
    if grain not in get_args(Grain):
        raise ValueError(f"there is no grain {grain!r}; give day, week or month.")
    first, last = period_of(day, grain)
    with reader() as read:
        asked = {"kpi": kpi, "source_id": source_id}
        figure = read.row("kpi_value", **asked, grain=grain, period_start=first)
        if figure is None or figure["known_to"] is None:
            raise ValueError("the KPIs were not computed yet; a run of build_marts does it.")
        parameters = mart_parameters(figure["known_to"]) | {
            "source_id": source_id, "from_day": first, "until_day": min(last, figure["known_to"]),
        }  # fmt: skip
        file = f"explain/kpis/{kpi}.sql"
        again = read.run(file, **parameters)
        changes = read.rows("kpi_restatements", **asked, from_day=first, until_day=last)
        lines = [
            *_heading(figure, source_id, grain, first, last),
            *_comparison(figure),
            *_again(figure, again, file, parameters),
            *(
                f"  corrected in the night of {row['business_date']}: {row['day']} was {row['before']}, is {row['after']}"
                for row in changes
            ),
        ]
    return "\n".join(lines)


def period_of(day: date, grain: str) -> tuple[date, date]:
    """First and last day of the day, ISO week (from Monday) or month that holds `day`."""
    if grain == "week":
        first = day - timedelta(days=day.weekday())
        return first, first + timedelta(days=6)
    if grain == "month":
        first = day.replace(day=1)
        return first, (first + timedelta(days=31)).replace(day=1) - timedelta(days=1)
    return day, day


def table_of(kpi: str) -> str:
    """The mart whose columns the KPI's line in kpi_values/load.sql takes: what stands in the FROM above it."""
    text = read_sql(VALUES_FILE)
    line = next(found for found in LINE.finditer(text) if found[1] == kpi)
    return re.findall(r"FROM mart\.([a-z_]+) AS", text[: line.start()])[-1]


def _number(value: Decimal | None) -> str:
    return "unknown" if value is None else f"{Decimal(value).normalize():f}"


def _heading(figure: Row, source_id: str, grain: str, first: date, last: date) -> Iterator[str]:
    when = {"day": str(first), "week": f"the week {first} to {last}", "month": f"{first:%Y-%m}"}[grain]
    yield f"{figure['name_en']} {figure['name_zh']} ({figure['kpi']}), {source_id or 'all sources'}, {when}"
    if figure["value"] is None and figure["numerator"] is None:
        yield "  no figure: nothing is known of this period and source"
    elif figure["denominator"] is None:
        yield f"  value {figure['value_text'] or 'unknown'}"
    else:
        parts = f"{_number(figure['numerator'])} / {_number(figure['denominator'])}"
        yield f"  value {figure['value_text'] or 'unknown'} = {parts}"
    if first <= figure["known_to"] < last:
        yield f"  the period is not over: figures to the end of {figure['known_to']}"
    elif figure["known_to"] < last + timedelta(days=figure["ripens_days"]):
        yield f"  it still moves by itself until {figure['ripens_days']} days after the period"


def _comparison(figure: Row) -> Iterator[str]:
    if figure["target_text"] is None:
        yield "  no target in kpis.yaml"
    else:
        wanted = "at least" if figure["direction"] == "up" else "at most"
        yield f"  target {wanted} {figure['target_text']}, amber to {figure['margin_text']} off: {figure['light']}"
    yield f"  before ({figure['previous_start']}): {figure['previous_text'] or 'unknown'}"
    yield f"  a year before ({figure['last_year_start']}): {figure['last_year_text'] or 'unknown'}"


def _again(figure: Row, again: Row, file: str, parameters: dict[str, object]) -> Iterator[str]:
    yield f"  computed by include/sql/mart/{table_of(figure['kpi'])}/load.sql, then include/sql/{VALUES_FILE}"
    parts = [_number(again["numerator"]), *([] if again["denominator"] is None else [_number(again["denominator"])])]
    yield f"  the same from core, now (include/sql/{file}): {' / '.join(parts)}"
    yield from ("    " + line for line in _runnable(file, parameters).splitlines())


def _runnable(file: str, parameters: dict[str, object]) -> str:
    """The file's query with its parameters filled in, to paste into psql; without its header."""
    text = "\n".join(line for line in read_sql(file).splitlines() if not line.startswith("--"))
    filled = re.sub(r"%\((\w+)\)s", lambda found: _literal(parameters[found[1]]), text).replace("%%", "%")
    return filled.strip()


def _literal(value: object) -> str:
    return psycopg.sql.Literal(value if isinstance(value, int) else str(value)).as_string()
