"""Marts: which tables a night computes, in which order, with which parameters; the configuration behind them.

Everything a mart needs travels as a bound parameter or stands in mart.tier_rules, so each include/sql/mart/<table>/load.sql
can be run by itself: by an Airflow operator, by `nightmarket.warehouse.run_sql`, by a person in psql.
"""

from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Protocol

import psycopg
from pydantic import Field, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from nightmarket.categories import sync_categories
from nightmarket.kpis import KpiDefinition, kpi_mistakes, sync_kpis
from nightmarket.mart_graph import MART_GRAPH
from nightmarket.settings import StrictModel, get_settings, load_yaml
from nightmarket.tiers import load_tiers, sync_tiers
from nightmarket.warehouse import Row, run_sql

MART_TABLES = tuple(MART_GRAPH)  # in an order in which every table comes after those it reads
MODEL_TABLES = ("prediction_fits", "member_predictions")  # computed by nightmarket.predictions, after member_days


class RfmSettings(StrictModel):
    window_days: Annotated[int, Field(ge=1, le=3660)]
    high_from_score: Annotated[int, Field(ge=2, le=5)]


class FulfilmentSettings(StrictModel):
    promised_shipping_hours: Annotated[int, Field(ge=1, le=24 * 60)]
    promised_delivery_days: Annotated[int, Field(ge=1, le=90)]


class ServiceSettings(StrictModel):
    negative_to_rating: Annotated[int, Field(ge=1, le=4)]
    reply_hours: Annotated[int, Field(ge=1, le=24 * 30)]


class ContentSettings(StrictModel):
    brand_pattern: Annotated[str, Field(min_length=1)]


class SignalSettings(StrictModel):
    usual_periods: Annotated[int, Field(ge=3, le=52)]
    usual_min_periods: Annotated[int, Field(ge=3, le=52)]
    anomaly_z: Annotated[float, Field(gt=0, le=20)]
    min_spread: Annotated[float, Field(ge=0, le=1)]


class StageSettings(StrictModel):
    loyal_order_days: Annotated[int, Field(ge=2, le=100)]
    loyal_window_days: Annotated[int, Field(ge=1, le=3660)]
    advocate_review_count: Annotated[int, Field(ge=1, le=100)]


class PortraitSettings(StrictModel):
    window_days: Annotated[int, Field(ge=1, le=3660)]
    active_days: Annotated[int, Field(ge=1, le=3660)]
    sleeping_days: Annotated[int, Field(ge=1, le=3660)]


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


class PredictionSettings(StrictModel):
    """Expected orders and value of members (nightmarket.predictions)."""

    horizon_days: Annotated[int, Field(ge=7, le=3660)]
    min_repeaters: Annotated[int, Field(ge=2)]
    fit_members: Annotated[int, Field(ge=1000)]
    max_error_rate: Annotated[float, Field(gt=0)]


class IdentitySettings(StrictModel):
    max_sharers: Annotated[int, Field(ge=1, le=10_000)]


class Kpis(StrictModel):
    """include/config/kpis.yaml: thresholds of the KPIs."""

    identity: IdentitySettings
    rfm: RfmSettings
    fulfilment: FulfilmentSettings
    reviews: ReviewSettings
    service: ServiceSettings
    content: ContentSettings
    signals: SignalSettings
    stages: StageSettings
    portrait: PortraitSettings
    experiment: ExperimentSettings
    products: ProductSettings
    attribution: AttributionSettings
    predictions: PredictionSettings
    kpis: dict[str, KpiDefinition]  # what each KPI is called and what is wanted of it; in the order of reports

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> "Kpis":
        """Also refuses KPIs that nothing computes, with the place of the mistake."""
        model = super().model_validate(obj, **options)
        for place, message in kpi_mistakes(model.kpis):
            mistake = InitErrorDetails(
                type=PydanticCustomError("kpi", "{message}", {"message": message}), loc=place, input=None
            )
            raise ValidationError.from_exception_data("Kpis", [mistake])
        return model


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
        "promised_delivery_days": kpis.fulfilment.promised_delivery_days,
        "positive_from_rating": kpis.reviews.positive_from_rating,
        **kpis.service.model_dump(),
        "content_brand_pattern": kpis.content.brand_pattern,
        "kpi_usual_periods": kpis.signals.usual_periods,
        "kpi_usual_min_periods": kpis.signals.usual_min_periods,
        "kpi_anomaly_z": kpis.signals.anomaly_z,
        "kpi_min_spread": kpis.signals.min_spread,
        "min_arm_members": kpis.experiment.min_arm_members,
        "min_buyers": kpis.experiment.min_buyers,
        **kpis.stages.model_dump(),
        "portrait_window_days": kpis.portrait.window_days,
        **kpis.products.model_dump(),
        **{f"attribution_{name}": value for name, value in kpis.attribution.model_dump().items()},
    }


def load_marts(connection: psycopg.Connection[Row], business_date: date | str) -> None:
    """Compute every mart for a business date, in order, in the caller's transaction."""
    parameters = mart_parameters(business_date)
    for table in MART_TABLES:
        run_sql(connection, load_path(table), parameters)


def sync_config(connection: psycopg.Connection[Row], accounts: Iterable[Account]) -> dict[str, int]:
    """Bring tier rules, category rules, KPI definitions and core.accounts to what the configuration says; returns how many rows each has now.

    `accounts` are the sources of sources.yaml. A source that is no longer there stays, as not active: its history counts.
    Raises ConfigError when tiers.yaml, categories.yaml or kpis.yaml is wrong; then nothing is changed.
    """
    tier_count = sync_tiers(connection, load_tiers())
    categories = sync_categories(connection)
    connection.execute(
        "UPDATE core.identity_rules SET max_sharers = %(max_sharers)s WHERE max_sharers <> %(max_sharers)s",
        load_kpis().identity.model_dump(),
    )
    portrait = load_kpis().portrait
    connection.execute(
        "UPDATE mart.portrait_rules SET active_days = %(active_days)s, sleeping_days = %(sleeping_days)s"
        " WHERE (active_days, sleeping_days) IS DISTINCT FROM (%(active_days)s, %(sleeping_days)s)",
        portrait.model_dump(),
    )
    known = list(accounts)
    kpi_count = sync_kpis(connection, load_kpis().kpis, {account.source_id for account in known})
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
    return {
        "tier_rules": tier_count,
        "category_rules": categories,
        "kpi_definitions": kpi_count,
        "accounts": len(known),
    }
