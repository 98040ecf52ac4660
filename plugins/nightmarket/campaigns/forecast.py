"""What an experiment can show, before anything is sent: the base rate of its segment, the smallest effect, the split."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Any

import psycopg

from nightmarket import dates
from nightmarket.campaigns.config import Campaign
from nightmarket.campaigns.experiment import minimum_detectable_uplift, sample_ratio
from nightmarket.marts import load_kpis
from nightmarket.settings import get_settings
from nightmarket.warehouse import Row, read_sql, run_sql, split_statements

ASSUMED_RATE = 0.03  # conversion of a segment that has no history


def experiment_part(connection: psycopg.Connection[Row], run: Row, rows: Sequence[Row]) -> dict[str, Any]:
    """The experiment of a dry-run report; `rows` are those of push/audience_counts.sql. JSON-able.

    base_rate and where it is from (base_from: 'segment' or 'assumed', base_member_count, base_buyer_count, base_days);
    detectable_rate of the whole run and per variant, None where members are too few; sample_ratio_p_value.
    """
    campaign = run["config"]["campaign"]
    shares = {variant["name"]: Decimal(str(variant["share"])) for variant in campaign["variants"]}

    def count(**wanted: Any) -> int:
        return sum(row["member_count"] for row in rows if all(row[key] == value for key, value in wanted.items()))

    held_out = count(state="holdout")
    variants = {name: count(state="targeted", variant=name) for name in shares}
    base = segment_history(connection, run)
    rate = base["base_rate"]
    return {
        **base,
        "detectable_rate": minimum_detectable_uplift(sum(variants.values()), held_out, rate),
        "variants": {
            name: minimum_detectable_uplift(members, held_out, rate, len(shares)) for name, members in variants.items()
        },
        "sample_ratio_p_value": sample_ratio(
            held_out, variants, Decimal(str(campaign["holdout_share"])), shares, count(reason="over_size_limit")
        ),
    }


def segment_history(connection: psycopg.Connection[Row], run: Row) -> Mapping[str, Any]:
    """How many of the members whom the same segment gave one attribution window ago bought within that window."""
    campaign = run["config"]["campaign"]
    days = int(campaign["attribution_days"])
    past = run["as_of"] - timedelta(days=days)
    since = dates.day_end(past, get_settings().zone)
    *before, query = split_statements(read_sql(f"segments/{campaign['segment']}.sql"))
    with connection.transaction():
        given = Campaign.model_validate(campaign).segment_parameters
        parameters = {**given, "business_date": past, "as_of_at": since}
        for statement in before:
            connection.execute(statement, parameters)  # type: ignore[arg-type]
        connection.execute("DROP TABLE IF EXISTS pg_temp.past_segment")
        connection.execute(
            "CREATE TEMPORARY TABLE past_segment (member_id bigint NOT NULL, facts jsonb) ON COMMIT DROP"
        )
        connection.execute(f"INSERT INTO past_segment (member_id, facts)\n{query}", parameters)  # type: ignore[arg-type]
        connection.execute("ANALYZE past_segment")
        until = dates.day_end(run["as_of"], get_settings().zone)
        found = run_sql(connection, "push/base_rate.sql", {"since": since, "until": until})[0]
    members, buyers = found["member_count"], found["buyer_count"]
    is_known = members >= load_kpis().experiment.min_arm_members
    return {
        "base_rate": buyers / members if is_known else ASSUMED_RATE,
        "base_from": "segment" if is_known else "assumed",
        "base_member_count": members,
        "base_buyer_count": buyers,
        "base_days": days,
    }
