"""Arms are a function of salt and member: stable, in the promised shares, the same in Python and in SQL."""

from decimal import Decimal

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightmarket.campaigns.experiment import arm, is_ratio_plausible, minimum_detectable_uplift, thresholds, unit
from nightmarket.warehouse import Row

HALVES = [("a", Decimal("0.5")), ("b", Decimal("0.5"))]


@given(st.text(min_size=1, max_size=20), st.integers(1, 2**40))
def test_the_same_member_is_always_in_the_same_arm(salt: str, member: int) -> None:
    assert 0 <= unit(salt, member) < 1
    assert arm(salt, member, Decimal("0.2"), HALVES) == arm(salt, member, Decimal("0.2"), HALVES)


def test_known_values_never_change() -> None:
    # a change here would move members between arms of running campaigns
    assert [round(unit("winback_gold-2026:holdout", member), 6) for member in (1, 2, 3)] == [
        0.482937,
        0.366504,
        0.958625,
    ]


def test_shares_come_out() -> None:
    arms = [arm("salt-1", member, Decimal("0.2"), HALVES) for member in range(20_000)]
    held_out = sum(name == "holdout" for name, _ in arms)
    first = sum(variant == "a" for _, variant in arms)
    assert abs(held_out - 4_000) < 4 * (20_000 * 0.2 * 0.8) ** 0.5
    assert abs(first - 8_000) < 4 * (16_000 * 0.25) ** 0.5


def test_a_growing_holdout_keeps_its_members() -> None:
    small = {member for member in range(5_000) if arm("s", member, Decimal("0.1"), HALVES)[0] == "holdout"}
    large = {member for member in range(5_000) if arm("s", member, Decimal("0.2"), HALVES)[0] == "holdout"}
    assert small < large


def test_the_variant_does_not_depend_on_the_holdout_draw() -> None:
    variants = [arm("s", member, Decimal("0.5"), HALVES)[1] for member in range(20_000)]
    treated = [variant for variant in variants if variant]
    assert abs(treated.count("a") / len(treated) - 0.5) < 0.02


def test_thresholds_are_the_bounds_between_variants() -> None:
    assert thresholds([Decimal("0.2"), Decimal("0.3"), Decimal("0.5")]) == [0.2, 0.5]
    assert thresholds([Decimal(1)]) == []


def test_sql_draws_the_same_number(db: psycopg.Connection[Row]) -> None:
    rows = db.execute(
        "SELECT m, ('x' || left(encode(sha256(convert_to(%s::text || ':' || m, 'UTF8')), 'hex'), 12))::bit(48)::bigint"
        " / 281474976710656.0::double precision AS draw FROM generate_series(1, 500) AS m",
        ("盐 salt:variant",),
    ).fetchall()
    assert [row["draw"] for row in rows] == [unit("盐 salt:variant", row["m"]) for row in rows]


@pytest.mark.parametrize(
    ("treated", "held_out", "plausible"),
    [(800, 200, True), (830, 170, True), (900, 100, False), (1, 0, True), (0, 0, True)],
)
def test_a_lost_arm_is_noticed(treated: int, held_out: int, plausible: bool) -> None:
    assert is_ratio_plausible(treated, held_out, Decimal("0.2")) is plausible


def test_more_members_show_smaller_effects() -> None:
    few, many = minimum_detectable_uplift(400, 100, 0.03), minimum_detectable_uplift(40_000, 10_000, 0.03)
    assert few is not None
    assert many is not None
    assert few == pytest.approx(10 * many)
    assert few == pytest.approx(0.0534, abs=0.0005)
    assert minimum_detectable_uplift(400, 1, 0.03) is None
