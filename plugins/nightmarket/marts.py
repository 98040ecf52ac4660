"""Marts: which tables a night computes, in which order, with which parameters; the configuration behind them.

Everything a mart needs travels as a bound parameter or stands in mart.tier_rules, so each include/sql/mart/<table>/load.sql
can be run by itself: by an Airflow operator, by `nightmarket.warehouse.run_sql`, by a person in psql.
"""

from collections.abc import Iterable, Mapping
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Protocol

import psycopg
from pydantic import Field, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from nightmarket.categories import sync_categories
from nightmarket.settings import StrictModel, get_settings, load_yaml
from nightmarket.warehouse import Row, run_sql

# In this order: a table reads core and the tables before it, never one behind it.
MART_TABLES = (
    "member_days",
    "member_rfm",
    "member_tiers",
    "shop_kpis_daily",
    "fulfilment_kpis_daily",
    "review_kpis_daily",
    "campaign_funnels",
    "campaign_results",
)

Amount = Annotated[Decimal, Field(ge=0, decimal_places=2)]  # two places, because reasons are printed with two


class Tier(StrictModel):
    """One band [min_net_amount, max_net_amount) of net spend, in the shops' currency."""

    tier: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    name_zh: Annotated[str, Field(min_length=1)]
    name_en: Annotated[str, Field(min_length=1)]
    min_net_amount: Amount
    max_net_amount: Amount | None
    points_multiplier: Annotated[Decimal, Field(gt=0)] = Decimal(1)


class Tiers(StrictModel):
    """include/config/tiers.yaml: bands that cover every amount from 0 exactly once, lowest first."""

    window_days: Annotated[int, Field(ge=1, le=3660)]
    tiers: Annotated[list[Tier], Field(min_length=1)]

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> "Tiers":
        """Also refuses gaps, overlaps and repeated names, each with the place of the field that is wrong."""
        model = super().model_validate(obj, **options)
        for place, message in _band_mistakes(model.tiers):
            mistake = InitErrorDetails(
                type=PydanticCustomError("tier_band", "{message}", {"message": message}),
                loc=("tiers", *place),
                input=None,
            )
            raise ValidationError.from_exception_data("Tiers", [mistake])
        return model


def _band_mistakes(tiers: list[Tier]) -> Iterable[tuple[tuple[int, str], str]]:
    if tiers[0].min_net_amount != 0:
        yield (0, "min_net_amount"), "the lowest tier must start at 0, so that every member has a tier"
    for index, tier in enumerate(tiers):
        if tier.tier in {other.tier for other in tiers[:index]}:
            yield (index, "tier"), f"tier {tier.tier!r} stands twice"
        end, is_last = tier.max_net_amount, index == len(tiers) - 1
        if is_last and end is not None:
            yield (index, "max_net_amount"), "the highest tier has no upper limit; write null"
        if end is None and not is_last:
            yield (index, "max_net_amount"), "only the highest tier has no upper limit; tiers stand lowest first"
        if end is not None and end <= tier.min_net_amount:
            yield (index, "max_net_amount"), f"the band is empty: {end} is not above {tier.min_net_amount}"
        if index and tiers[index - 1].max_net_amount != tier.min_net_amount:
            before = tiers[index - 1]
            kind = "a gap" if (before.max_net_amount or 0) < tier.min_net_amount else "an overlap"
            yield (
                (index, "min_net_amount"),
                f"{kind}: {before.tier!r} ends at {before.max_net_amount}, {tier.tier!r} starts at {tier.min_net_amount}",
            )


class RfmSettings(StrictModel):
    window_days: Annotated[int, Field(ge=1, le=3660)]
    high_from_score: Annotated[int, Field(ge=2, le=5)]


class FulfilmentSettings(StrictModel):
    promised_shipping_hours: Annotated[int, Field(ge=1, le=24 * 60)]


class ReviewSettings(StrictModel):
    positive_from_rating: Annotated[int, Field(ge=1, le=5)]


class ExperimentSettings(StrictModel):
    min_arm_members: Annotated[int, Field(ge=1)]
    min_buyers: Annotated[int, Field(ge=0)]


Share = Annotated[float, Field(gt=0, le=1)]


class ProductSettings(StrictModel):
    """Product roles and products bought together."""

    role_window_days: Annotated[int, Field(ge=1, le=3660)]
    profit_share: Share
    traffic_share: Share
    growth_change: Annotated[float, Field(gt=0)]
    pair_window_days: Annotated[int, Field(ge=1, le=3660)]
    pair_max_products: Annotated[int, Field(ge=2, le=100)]
    pair_min_orders: Annotated[int, Field(ge=2)]
    pairs_per_source: Annotated[int, Field(ge=1, le=10_000)]
    pair_keep_weeks: Annotated[int, Field(ge=1)]


class AttributionSettings(StrictModel):
    """How long a touch may claim an order."""

    click_days: Annotated[int, Field(ge=1, le=365)]
    message_days: Annotated[int, Field(ge=1, le=365)]
    coupon_before_minutes: Annotated[int, Field(ge=0, le=24 * 60)]
    coupon_after_minutes: Annotated[int, Field(ge=1, le=30 * 24 * 60)]
    scene_days: Annotated[int, Field(ge=1, le=365)]


class Kpis(StrictModel):
    """include/config/kpis.yaml: thresholds of the KPIs."""

    rfm: RfmSettings
    fulfilment: FulfilmentSettings
    reviews: ReviewSettings
    experiment: ExperimentSettings
    products: ProductSettings
    attribution: AttributionSettings


class Account(Protocol):
    """A source as core.accounts knows it."""

    @property
    def source_id(self) -> str: ...
    @property
    def platform(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def currency_code(self) -> str: ...
    @property
    def streams(self) -> Mapping[str, Any]: ...
    @property
    def is_store(self) -> bool: ...


def load_tiers(path: Path | None = None) -> Tiers:
    """The tier rules of include/config/tiers.yaml. Raises ConfigError with file, line and field."""
    return load_yaml(path or get_settings().config_dir / "tiers.yaml", Tiers)


def load_kpis(path: Path | None = None) -> Kpis:
    """The KPI thresholds of include/config/kpis.yaml. Raises ConfigError with file, line and field."""
    return load_yaml(path or get_settings().config_dir / "kpis.yaml", Kpis)


def load_path(table: str) -> str:
    """Where the SQL of a mart table stands, below include/sql."""
    return f"mart/{table}/load.sql"


def mart_parameters(business_date: date | str) -> dict[str, Any]:
    """Bound parameters of every mart's load.sql: the business date and the thresholds of kpis.yaml; JSON-able."""
    kpis = load_kpis()
    return {
        "business_date": str(business_date),
        "rfm_window_days": kpis.rfm.window_days,
        "rfm_high_from_score": kpis.rfm.high_from_score,
        "promised_shipping_hours": kpis.fulfilment.promised_shipping_hours,
        "positive_from_rating": kpis.reviews.positive_from_rating,
        "min_arm_members": kpis.experiment.min_arm_members,
        "min_buyers": kpis.experiment.min_buyers,
        **kpis.products.model_dump(),
        **{f"attribution_{name}": value for name, value in kpis.attribution.model_dump().items()},
    }


def load_marts(connection: psycopg.Connection[Row], business_date: date | str) -> None:
    """Compute every mart for a business date, in order, in the caller's transaction."""
    parameters = mart_parameters(business_date)
    for table in MART_TABLES:
        run_sql(connection, load_path(table), parameters)


def sync_config(connection: psycopg.Connection[Row], accounts: Iterable[Account]) -> dict[str, int]:
    """Bring tier rules, category rules and core.accounts to what the configuration says; returns how many rows each has now.

    `accounts` are the sources of sources.yaml. A source that is no longer there stays, as not active: its history counts.
    Raises ConfigError when tiers.yaml or categories.yaml is wrong; then nothing is changed.
    """
    tiers = load_tiers()
    connection.execute("DELETE FROM mart.tier_rules")  # ranks are unique: replacing is simpler than reordering
    for rank, tier in enumerate(tiers.tiers, start=1):
        connection.execute(
            "INSERT INTO mart.tier_rules (tier, rank, name_zh, name_en, window_days, min_net_amount, max_net_amount,"
            " points_multiplier) VALUES (%(tier)s, %(rank)s, %(name_zh)s, %(name_en)s, %(window_days)s,"
            " %(min_net_amount)s, %(max_net_amount)s, %(points_multiplier)s)",
            tier.model_dump() | {"rank": rank, "window_days": tiers.window_days},
        )
    categories = sync_categories(connection)
    known = list(accounts)
    for account in known:
        connection.execute(
            "INSERT INTO core.accounts (source_id, platform, kind, name, currency_code, streams, is_store)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s)"
            " ON CONFLICT (source_id) DO UPDATE SET platform = excluded.platform, kind = excluded.kind,"
            " name = excluded.name, currency_code = excluded.currency_code, streams = excluded.streams,"
            " is_store = excluded.is_store, is_active = TRUE",
            (
                account.source_id,
                account.platform,
                account.kind,
                account.name,
                account.currency_code,
                list(account.streams),
                account.is_store,
            ),
        )
    connection.execute(
        "UPDATE core.accounts SET is_active = FALSE WHERE source_id <> ALL(%s::text[])",
        ([account.source_id for account in known],),
    )
    return {"tier_rules": len(tiers.tiers), "category_rules": categories, "accounts": len(known)}
