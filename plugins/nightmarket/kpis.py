"""KPIs as data: the `kpis:` of include/config/kpis.yaml, judged, and as rows of mart.kpi_definitions.

What a KPI is computed from is one line of include/sql/mart/kpi_values/load.sql; here is what it is called, how it adds up and what
is wanted of it.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from decimal import Decimal
from typing import Annotated, Literal

import psycopg
from psycopg.types.json import Jsonb
from pydantic import Field

from nightmarket.settings import ConfigError, StrictModel, get_settings
from nightmarket.warehouse import Row, read_sql

VALUES_FILE = "mart/kpi_values/load.sql"
LINE = re.compile(r"^ *\('([a-z][a-z0-9_]*)', .*\b[mb]\.", re.MULTILINE)  # a KPI's line in VALUES_FILE
Text = Annotated[str, Field(min_length=1)]


class KpiDefinition(StrictModel):
    """One KPI. Rates and targets of rates are 0..1.

    kind: sum (added up over days and sources), rate (numerator and denominator are), level (of the last day of a period), growth
    (change over the level at the beginning of a period), people (counted per period, never added up).
    """

    name_zh: Text
    name_en: Text
    unit: Literal["count", "amount", "rate", "hours"]
    kind: Literal["sum", "rate", "level", "growth", "people"]
    direction: Literal["up", "down"]
    ripens_days: Annotated[int, Field(ge=0, le=180)] = 0  # so long a day's figure still moves by itself
    target: Decimal | None = None
    target_grains: list[Literal["day", "week", "month"]] = Field(default=["day", "week", "month"], min_length=1)
    amber_margin: Annotated[Decimal, Field(ge=0)] = Decimal(0)  # missed by at most so much: amber, else red
    source_targets: dict[str, Decimal] = Field(default_factory=dict)


def computed_kpis() -> frozenset[str]:
    """The KPIs that include/sql/mart/kpi_values/load.sql has a line for."""
    return frozenset(LINE.findall(read_sql(VALUES_FILE)))


def kpi_mistakes(kpis: Mapping[str, KpiDefinition]) -> Iterable[tuple[tuple[str, ...], str]]:
    """(place in kpis.yaml, what is wrong) of definitions that nothing computes, and of amber without a target."""
    known = computed_kpis()
    for name, kpi in kpis.items():
        if name not in known:
            yield (
                ("kpis", name),
                f"nothing computes the KPI {name!r}; include/sql/{VALUES_FILE} knows {', '.join(sorted(known))}",
            )
        if kpi.amber_margin and kpi.target is None and not kpi.source_targets:
            yield ("kpis", name, "amber_margin"), "a margin needs a target"


def sync_kpis(
    connection: psycopg.Connection[Row], kpis: Mapping[str, KpiDefinition], source_ids: Collection[str]
) -> int:
    """Bring mart.kpi_definitions to what kpis.yaml says; returns how many KPIs there are. Rows that say the same stay as they are.

    Raises ConfigError when a target is set for a source that sources.yaml does not have; KPIs of messages have channels.
    """
    for name, kpi in kpis.items():
        unknown = sorted(set(kpi.source_targets) - set(source_ids))
        if unknown and not name.startswith("message"):
            file = get_settings().config_dir / "kpis.yaml"
            raise ConfigError(
                f"{file.name}: kpis.{name}.source_targets: there is no source {unknown[0]!r} in sources.yaml;"
                f" the sources are {', '.join(sorted(source_ids))}."
            )
    connection.execute("DELETE FROM mart.kpi_definitions WHERE kpi <> ALL(%s::text[])", (list(kpis),))
    for position, (name, kpi) in enumerate(kpis.items(), start=1):
        connection.execute(
            "INSERT INTO mart.kpi_definitions AS d (kpi, position, name_zh, name_en, unit, kind, direction, ripens_days, target,"
            " target_grains, amber_margin, source_targets) VALUES (%(kpi)s, %(position)s, %(name_zh)s, %(name_en)s, %(unit)s, %(kind)s,"
            " %(direction)s, %(ripens_days)s, %(target)s, %(target_grains)s, %(amber_margin)s, %(targets)s) ON CONFLICT (kpi) DO UPDATE SET"
            " position = excluded.position, name_zh = excluded.name_zh, name_en = excluded.name_en, unit = excluded.unit,"
            " kind = excluded.kind, direction = excluded.direction, ripens_days = excluded.ripens_days,"
            " target = excluded.target, target_grains = excluded.target_grains, amber_margin = excluded.amber_margin, source_targets = excluded.source_targets"
            " WHERE d.* IS DISTINCT FROM excluded.*",
            kpi.model_dump()
            | {
                "kpi": name,
                "position": position,
                "targets": Jsonb({source: float(target) for source, target in kpi.source_targets.items()}),
            },
        )
    return len(kpis)
