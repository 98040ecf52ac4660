"""The rules of include/config/tiers.yaml: tier programmes and points, checked, and written where the SQL reads them.

include/sql/mart/member_tiers/load.sql says how a history is told from them, points_ledger/load.sql how points are.
"""

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

import psycopg
from psycopg import sql
from pydantic import Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from nightmarket.settings import StrictModel, get_settings, load_yaml
from nightmarket.warehouse import Row, copy_rows

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
Words = Annotated[str, Field(min_length=1)]
Amount = Annotated[Decimal, Field(ge=0, decimal_places=2)]  # two places, because reasons are printed with two
Days = Annotated[int, Field(ge=1, le=3660)]
LONGEST_GRACE = 366


class Tier(StrictModel):
    """One tier: the measure that brings a member here, and the one a review wants to see (default: the same)."""

    tier: Name
    name_zh: Words
    name_en: Words
    enter: Amount
    keep: Amount
    points_multiplier: Annotated[Decimal, Field(gt=0)] = Decimal(1)
    upgrade_coupon_amount: Amount = Decimal(0)

    @model_validator(mode="before")
    @classmethod
    def _keep_is_enter(cls, data: Any) -> Any:
        if isinstance(data, dict) and "keep" not in data and "enter" in data:
            return {**data, "keep": data["enter"]}
        return data


class Programme(StrictModel):
    """One ladder of tiers over one measure. `window_days` null: since the first order; `review_days` null: never lost."""

    programme: Name
    name_zh: Words
    name_en: Words
    measure: Literal["net_amount", "order_count", "points"] = "net_amount"
    window_days: Days | None
    review_days: Annotated[int, Field(ge=0, le=3660)] | None = 0
    grace_days: Annotated[int, Field(ge=0, le=LONGEST_GRACE)] = 0
    downgrade: Literal["one_step", "by_balance"] = "by_balance"
    tiers: Annotated[list[Tier], Field(min_length=1, max_length=20)]


class Points(StrictModel):
    """How points are earned on a day's paid line value, and when they end. Amounts in the shops' currency."""

    programme: Name
    points_per_unit: Annotated[Decimal, Field(gt=0)]
    rounding: Literal["floor", "half_up", "ceil"] = "floor"
    expire_days: Days | None
    point_amount: Annotated[Decimal, Field(ge=0)] = Decimal(0)


class Tiers(StrictModel):
    """include/config/tiers.yaml as a whole."""

    programmes: Annotated[list[Programme], Field(min_length=1, max_length=9)]
    points: Points

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> "Tiers":
        """Also refuses ladders that are none, repeated names and unknown programmes, each with the place of the field."""
        model = super().model_validate(obj, **options)
        for place, message in _mistakes(model):
            error = PydanticCustomError("tiers", "{message}", {"message": message})
            raise ValidationError.from_exception_data("Tiers", [InitErrorDetails(type=error, loc=place, input=None)])
        return model


def _mistakes(tiers: Tiers) -> Iterator[tuple[tuple[int | str, ...], str]]:
    known: list[str] = []
    for number, programme in enumerate(tiers.programmes):
        place = ("programmes", number)
        if programme.programme in known:
            yield (*place, "programme"), f"programme {programme.programme!r} stands twice"
        known.append(programme.programme)
        if programme.review_days == 0 and programme.downgrade == "one_step":
            yield (
                (*place, "downgrade"),
                "looked at every day (review_days: 0) a member falls to where the measure is: write by_balance",
            )
        if programme.window_days and programme.review_days and programme.grace_days >= programme.review_days:
            yield (
                (*place, "grace_days"),
                f"a grace of {programme.grace_days} days outlasts the review every {programme.review_days}",
            )
        yield from _ladder_mistakes(programme, place)
    if tiers.points.programme not in known:
        yield ("points", "programme"), f"there is no programme {tiers.points.programme!r}; there are {', '.join(known)}"


def _ladder_mistakes(programme: Programme, place: tuple[int | str, ...]) -> Iterator[tuple[tuple[int | str, ...], str]]:
    ladder = programme.tiers
    if ladder[0].enter != 0 or ladder[0].keep != 0:
        yield (*place, "tiers", 0, "enter"), "the lowest tier must start at 0, so that every buyer has a tier"
    for index, tier in enumerate(ladder):
        here = (*place, "tiers", index)
        if tier.tier in {other.tier for other in ladder[:index]}:
            yield (*here, "tier"), f"tier {tier.tier!r} stands twice"
        if tier.keep > tier.enter:
            yield (*here, "keep"), f"keeping it asks for more ({tier.keep}) than reaching it ({tier.enter})"
        if index and tier.enter <= ladder[index - 1].enter:
            yield (
                (*here, "enter"),
                f"{tier.enter} is not above {ladder[index - 1].enter} of {ladder[index - 1].tier!r}; lowest first",
            )
        if index and tier.keep <= ladder[index - 1].keep:
            yield (*here, "keep"), f"{tier.keep} is not above {ladder[index - 1].keep} of {ladder[index - 1].tier!r}"


def load_tiers(path: Path | None = None) -> Tiers:
    """The rules of include/config/tiers.yaml. Raises ConfigError with file, line and field."""
    return load_yaml(path or get_settings().config_dir / "tiers.yaml", Tiers)


PROGRAMME_COLUMNS = (
    "programme", "position", "name_zh", "name_en", "measure", "window_days", "review_days", "grace_days", "downgrade",
)  # fmt: skip
RULE_COLUMNS = (
    "programme", "tier", "rank", "name_zh", "name_en", "enter_value", "keep_value", "points_multiplier", "upgrade_coupon_amount",
)  # fmt: skip
POINT_COLUMNS = ("programme", "points_per_unit", "rounding", "expire_days", "point_amount")


def sync_tiers(connection: psycopg.Connection[Row], tiers: Tiers, schema: str = "mart") -> int:
    """Replace the rules that the SQL reads by these; returns how many tiers there are."""
    programmes = [
        (p.programme, n, p.name_zh, p.name_en, p.measure, p.window_days, p.review_days, p.grace_days, p.downgrade)
        for n, p in enumerate(tiers.programmes, start=1)
    ]
    rules = [
        (p.programme, t.tier, n, t.name_zh, t.name_en, t.enter, t.keep, t.points_multiplier, t.upgrade_coupon_amount)
        for p in tiers.programmes
        for n, t in enumerate(p.tiers, start=1)
    ]
    tables = (
        ("tier_programmes", PROGRAMME_COLUMNS, programmes),
        ("tier_rules", RULE_COLUMNS, rules),
        ("point_rules", POINT_COLUMNS, [tuple(getattr(tiers.points, name) for name in POINT_COLUMNS)]),
    )
    for table, _, _ in reversed(tables):  # the others refer to the first; ranks are unique, so all go before any comes
        connection.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(schema, table)))
    for table, columns, rows in tables:
        copy_rows(connection, f"{schema}.{table}", columns, rows)
    return len(rules)
