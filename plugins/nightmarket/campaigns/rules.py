"""What a campaign's filters, exclusions and caps say, as rows: who of the segment is left out, by which rule, on which fact.

The rules are applied as of the run's date (include/sql/push/audience_rules.sql); a test send has none.
"""

import hashlib
from collections.abc import Mapping
from datetime import date
from typing import Any

import psycopg

from nightmarket.campaigns.config import Campaign
from nightmarket.warehouse import Row, read_sql, run_sql, split_statements

RULES_SQL = "push/audience_rules.sql"


def fill_rules(
    connection: psycopg.Connection[Row], campaign: Campaign, as_of: date, parameters: Mapping[str, Any]
) -> None:
    """Fill the temporary table audience_rules for the members of audience_segment. `parameters`: as of push/audience.sql."""
    filters, exclusions, caps = campaign.filters, campaign.exclusions, campaign.caps
    if has_rules(campaign):
        run_sql(
            connection,
            RULES_SQL,
            {
                **{name: parameters[name] for name in ("as_of", "as_of_at", "campaign", "account", "default_language")},
                "filter_tiers": _list(filters.tiers),
                "filter_stages": _list(filters.stages),
                "filter_rfm_segments": _list(filters.rfm_segments),
                "filter_cities": _list(filters.cities),
                "filter_languages": _list(filters.languages),
                "min_points": filters.min_points,
                "exclude_tiers": _list(exclusions.tiers),
                "exclude_stages": _list(exclusions.stages),
                "exclude_campaigns": [use.campaign for use in exclusions.campaigns],
                "exclude_days": [use.days for use in exclusions.campaigns],
                "exclude_service_case": exclusions.open_service_case,
                "exclude_refund": exclusions.open_refund,
                "cap_messages": caps.messages if caps else None,
                "cap_days": caps.days if caps else None,
            },
        )
    for use in exclusions.segments:
        values = {**use.parameters, "business_date": as_of, "as_of_at": parameters["as_of_at"]}
        *before, query = split_statements(read_sql(f"segments/{use.segment}.sql"))
        for statement in before:
            connection.execute(statement, values)  # type: ignore[arg-type]
        connection.execute(
            f"INSERT INTO audience_rules SELECT x.member_id, 'exclusions.segments: {use.segment}' FROM (\n{query}\n) AS x"  # type: ignore[arg-type]
            " JOIN audience_segment AS s ON s.member_id = x.member_id",
            values,
        )
    connection.execute("ANALYZE audience_rules")


def has_rules(campaign: Campaign) -> bool:
    """Whether the rules' SQL has anything to look for; excluded segments are their own SQL."""
    exclusions = campaign.exclusions.model_dump(exclude={"segments"}, exclude_defaults=True)
    return bool(campaign.filters.model_dump(exclude_none=True) or exclusions or campaign.caps)


def rules_hash(campaign: Campaign) -> str:
    """One hash over the SQL behind the rules: frozen with a run, as the segment's own."""
    names = [RULES_SQL, *(f"segments/{use.segment}.sql" for use in campaign.exclusions.segments)]
    return hashlib.sha256("\n".join(read_sql(name) for name in names).encode()).hexdigest()


def _list(names: tuple[str, ...] | None) -> list[str] | None:
    return list(names) if names is not None else None
