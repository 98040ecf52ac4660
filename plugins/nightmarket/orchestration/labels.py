"""The allowed DAG tags. Somebody woken at night reads from them what a failure means (tests/dags holds every DAG to them)."""

from enum import StrEnum


class Layer(StrEnum):
    """Which layer of the warehouse a DAG writes."""

    CORE = "layer:core"
    MART = "layer:mart"
    PUSH = "layer:push"
    REPORT = "layer:report"
    VAULT = "layer:vault"


class Domain(StrEnum):
    """Which part of the business a DAG is about."""

    SOURCES = "domain:sources"
    MEMBERS = "domain:members"
    CAMPAIGNS = "domain:campaigns"
    REVIEWS = "domain:reviews"
    PRIVACY = "domain:privacy"


class Impact(StrEnum):
    """What a failure means: tier 1 wakes somebody, tier 2 waits for the morning, tier 3 is seen by whoever started it."""

    TIER_1 = "impact:tier_1"
    TIER_2 = "impact:tier_2"
    TIER_3 = "impact:tier_3"
