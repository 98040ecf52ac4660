"""Arms are a function of salt and member; what so many members can show and what variants showed comes from the library."""

import math
import subprocess
import sys
from decimal import Decimal

import numpy as np
import psycopg
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, norm

from nightmarket.campaigns.experiment import (
    Arm,
    arm,
    change_of_uplift,
    compare_variants,
    minimum_detectable_uplift,
    sample_ratio,
    thresholds,
    unit,
)
from nightmarket.settings import ROOT
from nightmarket.warehouse import Row

HALVES = [("a", Decimal("0.5")), ("b", Decimal("0.5"))]
EQUAL = dict(HALVES)


def arms(most: int = 5000) -> st.SearchStrategy[Arm]:
    """Any arm: so many members, so many buyers, who paid about 120 each."""
    return st.integers(2, most).flatmap(
        lambda n: st.integers(0, n).map(lambda x: Arm(n, x, x * 120.0, x * 120.0**2 * 1.5))
    )


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
    drawn = [arm("salt-1", member, Decimal("0.2"), HALVES) for member in range(20_000)]
    held_out = sum(name == "holdout" for name, _ in drawn)
    first = sum(variant == "a" for _, variant in drawn)
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


def test_the_library_is_loaded_only_where_something_is_computed() -> None:
    code = (
        "import sys, nightmarket.campaigns.results, nightmarket.campaigns.outbox, nightmarket.retrospective\n"
        "print([name for name in ('statsmodels', 'scipy', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT / "plugins"
    )
    assert done.stdout.strip() == "[]"


# -------------------------------------------------------------------------------------------------------- the split
@pytest.mark.parametrize(
    ("held_out", "variants", "cut", "is_suspicious"),
    [
        (200, {"a": 400, "b": 400}, 0, False),
        (170, {"a": 420, "b": 410}, 0, False),
        (100, {"a": 450, "b": 450}, 0, True),  # half of the hold-out is gone
        (200, {"a": 480, "b": 320}, 0, True),  # an arm lost members, the hold-out is as it should be
        (200, {"a": 50, "b": 50}, 700, False),  # cut by the size limit after the draw
        (200, {"a": 50, "b": 50}, 300, True),
    ],
)
def test_a_lost_arm_is_noticed(held_out: int, variants: dict[str, int], cut: int, is_suspicious: bool) -> None:
    p = sample_ratio(held_out, variants, Decimal("0.2"), EQUAL, cut)
    assert p is not None
    assert (p < 0.001) is is_suspicious


def test_the_split_is_a_chi_square_over_all_arms() -> None:
    found = sample_ratio(230, {"a": 380, "b": 390}, Decimal("0.2"), EQUAL)
    assert found == pytest.approx(
        chisquare([230, 380, 390], [200, 400, 400]).pvalue, rel=0.05
    )  # the same to first order


def test_too_few_members_say_nothing_about_the_split() -> None:
    assert sample_ratio(0, {"a": 3, "b": 4}, Decimal("0.2"), EQUAL) is None
    assert sample_ratio(0, {"a": 0}, Decimal("0.2"), {"a": Decimal(1)}) is None
    assert sample_ratio(0, {"a": 5000}, Decimal(0), {"a": Decimal(1)}) is None, "nobody is held out, nothing was drawn"


def test_chance_alone_is_seldom_suspicious() -> None:
    random = np.random.default_rng(11)
    p_values = []
    for _ in range(2000):
        held, first, second = random.multinomial(900, [0.2, 0.4, 0.4])
        p_values.append(sample_ratio(int(held), {"a": int(first), "b": int(second)}, Decimal("0.2"), EQUAL))
    below = sum(p is not None and p < 0.05 for p in p_values)
    assert 60 <= below <= 145  # 5 % of 2,000, and four times the spread of a binomial


# ------------------------------------------------------------------------------------------------- what can be shown
def test_more_members_show_smaller_effects() -> None:
    few, many = minimum_detectable_uplift(400, 100, 0.03), minimum_detectable_uplift(40_000, 10_000, 0.03)
    assert few is not None
    assert many is not None
    assert many < few / 8
    assert minimum_detectable_uplift(400, 1, 0.03) is None
    assert minimum_detectable_uplift(4, 4, 0.9) is None, "not even everybody would be enough"


def test_several_variants_need_a_larger_effect() -> None:
    alone, one_of_three = minimum_detectable_uplift(1000, 500, 0.05), minimum_detectable_uplift(1000, 500, 0.05, 3)
    assert alone is not None
    assert one_of_three is not None
    assert alone < one_of_three


@pytest.mark.parametrize(("treated", "held_out", "base"), [(2000, 500, 0.05), (800, 800, 0.2), (5000, 1200, 0.01)])
def test_four_of_five_experiments_show_the_detectable_effect(treated: int, held_out: int, base: float) -> None:
    rise = minimum_detectable_uplift(treated, held_out, base)
    assert rise is not None
    random = np.random.default_rng(3)
    bought = random.binomial(treated, base + rise, 4000) / treated
    anyway = random.binomial(held_out, base, 4000) / held_out
    spread = np.sqrt(bought * (1 - bought) / treated + anyway * (1 - anyway) / held_out)
    shown = np.mean((bought - anyway) / np.maximum(spread, 1e-9) > norm.ppf(0.975))
    assert 0.75 <= shown <= 0.9


# ------------------------------------------------------------------------------------------------- what variants showed
@settings(max_examples=150)
@given(arms(), arms())
def test_swapping_the_arms_turns_the_effect_round(own: Arm, other: Arm) -> None:
    (there,), (back,) = compare_variants({"a": own}, other, 30, 10), compare_variants({"a": other}, own, 30, 10)
    assert there.uplift_rate == -back.uplift_rate
    assert (there.uplift_low_rate, there.uplift_high_rate) == pytest.approx(
        (-back.uplift_high_rate, -back.uplift_low_rate), abs=1e-12
    )
    assert there.p_value == pytest.approx(back.p_value, abs=1e-12)
    assert there.revenue_difference == -back.revenue_difference
    assert there.revenue_low == pytest.approx(-(back.revenue_high or 0), abs=1e-9)
    opposite = {"positive": "negative", "negative": "positive"}
    assert there.verdict == opposite.get(back.verdict, back.verdict)


@settings(max_examples=100)
@given(arms(500), arms(500), st.integers(2, 40))
def test_intervals_widen_when_there_are_fewer_members(own: Arm, other: Arm, times: int) -> None:
    assume(0 < own.buyers < own.members)

    def larger(side: Arm) -> Arm:
        return Arm(
            side.members * times, side.buyers * times, side.net_revenue * times, side.square_sum * times
        )  # the same rates, more people

    (small,), (large,) = (
        compare_variants({"a": own}, other, 30, 10),
        compare_variants({"a": larger(own)}, larger(other), 30, 10),
    )
    assert large.uplift_high_rate - large.uplift_low_rate < small.uplift_high_rate - small.uplift_low_rate
    assert large.revenue_difference == pytest.approx(small.revenue_difference)
    assert small.revenue_high is not None
    assert small.revenue_low is not None
    assert large.revenue_high is not None
    assert large.revenue_low is not None
    assert large.revenue_high - large.revenue_low <= small.revenue_high - small.revenue_low + 1e-9


def test_the_same_noise_on_both_sides_widens_the_interval_and_moves_nothing() -> None:
    quiet, other = Arm(1000, 100, 12_000, 1_500_000), Arm(400, 30, 3_600, 450_000)

    def noisy(side: Arm) -> Arm:
        """Everybody gets +50 or -50, half and half."""
        return Arm(side.members, side.buyers, side.net_revenue, side.square_sum + side.members * 2500)

    (before,), (after,) = (
        compare_variants({"a": quiet}, other, 30, 10),
        compare_variants({"a": noisy(quiet)}, noisy(other), 30, 10),
    )
    assert after.revenue_difference == before.revenue_difference
    assert None not in (before.revenue_low, before.revenue_high, after.revenue_low, after.revenue_high)
    assert after.revenue_low < before.revenue_low  # type: ignore[operator]
    assert after.revenue_high > before.revenue_high  # type: ignore[operator]


def test_three_looks_are_corrected() -> None:
    held_out = Arm(500, 40, 4800, 576_000)
    winner, dud = Arm(500, 60, 7200, 864_000), Arm(500, 41, 4920, 590_400)
    (alone,) = compare_variants({"a": winner}, held_out, 30, 10)
    three = compare_variants({"a": winner, "b": dud, "c": dud}, held_out, 30, 10)
    assert alone.p_value < 0.05
    assert alone.verdict == "positive"
    assert three[0].p_value == alone.p_value
    assert three[0].adjusted_p_value == pytest.approx(3 * alone.p_value)
    assert [found.verdict for found in three] == ["no effect shown"] * 3
    assert (three[0].uplift_low_rate, three[0].uplift_high_rate) == (alone.uplift_low_rate, alone.uplift_high_rate)


def test_a_variant_that_hurts_says_so_and_a_small_one_says_it_is_small() -> None:
    held_out = Arm(1000, 200, 24_000, 2_880_000)
    found = compare_variants(
        {"a": Arm(1000, 100, 12_000, 1_440_000), "b": Arm(29, 20, 2400, 288_000)}, held_out, 30, 10
    )
    assert [one.verdict for one in found] == ["negative", "not enough data"]


def test_a_few_large_orders_count_as_few_buyers() -> None:
    assert Arm(100, 20, 20 * 50.0, 20 * 50.0**2).weighty_buyers == 20
    assert Arm(100, 20, 19 * 50.0 + 9050, 19 * 50.0**2 + 9050.0**2).weighty_buyers == pytest.approx(1.2, abs=0.05)
    assert Arm(100, 0, 0, 0).weighty_buyers == 0


def test_nobody_on_a_side_is_no_comparison() -> None:
    some, nobody = Arm(50, 5, 600, 72_000), Arm(0, 0, 0, 0)
    assert compare_variants({"a": some}, nobody, 30, 10) == []
    assert compare_variants({"a": nobody}, some, 30, 10) == []
    (single,) = compare_variants({"a": Arm(1, 1, 120, 14_400)}, some, 30, 10)
    assert single.verdict == "not enough data"
    assert single.revenue_low is None


def test_two_runs_differ_by_both_their_errors() -> None:
    now = {"uplift_rate": 0.05, "uplift_low_rate": 0.02, "uplift_high_rate": 0.08}
    then = {"uplift_rate": 0.01, "uplift_low_rate": -0.03, "uplift_high_rate": 0.05}
    difference, low, high = change_of_uplift(now, then)
    assert difference == pytest.approx(0.04)
    assert (low, high) == pytest.approx((0.04 - math.hypot(0.03, 0.04), 0.04 + math.hypot(0.03, 0.04)))
