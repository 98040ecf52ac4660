"""The intervals of mart.campaign_results against statsmodels."""

from decimal import Decimal
from typing import Any

import numpy as np
import psycopg
import pytest
from given import DEFAULTS, insert
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.proportion import confint_proportions_2indep
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from nightmarket.warehouse import Row, run_sql

many = settings(max_examples=60, derandomize=True)
arms = st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


def result(connection: psycopg.Connection[Row], **arm_rows: dict[str, Any]) -> Row:
    with connection.transaction(force_rollback=True):
        for arm, given_row in arm_rows.items():
            insert(connection, "mart.campaign_funnels", [{"arm": arm, **given_row}])
        run_sql(connection, "mart/campaign_results/load.sql", DEFAULTS["parameters"] | {"business_date": "2026-03-14"})
        row = connection.execute("SELECT * FROM mart.campaign_results").fetchone()
        assert row is not None
        return row


@many
@given(treated=arms, held_out=arms)
def test_conversion_interval_is_agresti_caffo(
    warehouse: psycopg.Connection[Row], treated: tuple[int, int], held_out: tuple[int, int]
) -> None:
    found = result(
        warehouse,
        treatment={"buyer_count": treated[0], "member_count": treated[1]},
        holdout={"buyer_count": held_out[0], "member_count": held_out[1]},
    )
    low, high = confint_proportions_2indep(*treated, *held_out, compare="diff", method="agresti-caffo")
    assert float(found["uplift_low_rate"]) == pytest.approx(low, abs=1e-9)
    assert float(found["uplift_high_rate"]) == pytest.approx(high, abs=1e-9)
    small = min(treated[1], held_out[1]) < 30 or treated[0] + held_out[0] < 5
    expected = "not enough data" if small else "positive" if low > 0 else "negative" if high < 0 else "no effect shown"
    assert found["verdict"] == expected


@many
@given(treated=arms, held_out=arms)
def test_swapping_the_arms_turns_the_effect_round(
    warehouse: psycopg.Connection[Row], treated: tuple[int, int], held_out: tuple[int, int]
) -> None:
    def of(own: tuple[int, int], other: tuple[int, int]) -> Row:
        return result(
            warehouse,
            treatment={"buyer_count": own[0], "member_count": own[1]},
            holdout={"buyer_count": other[0], "member_count": other[1]},
        )

    there, back = of(treated, held_out), of(held_out, treated)
    assert there["uplift_rate"] == -back["uplift_rate"]
    assert float(there["uplift_low_rate"]) == pytest.approx(-float(back["uplift_high_rate"]), abs=1e-12)
    opposite = {"positive": "negative", "negative": "positive"}
    assert there["verdict"] == opposite.get(back["verdict"], back["verdict"])


@many
@given(rates=st.tuples(st.integers(1, 99), st.integers(1, 99)), times=st.integers(2, 50))
def test_fewer_members_with_the_same_rates_know_less(
    warehouse: psycopg.Connection[Row], rates: tuple[int, int], times: int
) -> None:
    def width(scale: int) -> Decimal:
        found = result(
            warehouse,
            treatment={"buyer_count": rates[0] * scale, "member_count": 100 * scale},
            holdout={"buyer_count": rates[1] * scale, "member_count": 100 * scale},
        )
        return Decimal(found["uplift_high_rate"] - found["uplift_low_rate"])

    assert width(times) < width(1)


@pytest.mark.parametrize("seed", range(5))
def test_revenue_interval_is_welch(warehouse: psycopg.Connection[Row], seed: int) -> None:
    random = np.random.default_rng(seed)

    def spend(size: int, rate: float) -> list[Decimal]:
        buys = random.random(size) < rate
        return [Decimal(f"{amount:.2f}") if bought else Decimal(0)
                for bought, amount in zip(buys, random.lognormal(5, 1, size), strict=True)]  # fmt: skip

    samples = {"treatment": spend(400, 0.1), "holdout": spend(80, 0.05)}
    found = result(
        warehouse,
        **{
            arm: {
                "member_count": len(values), "buyer_count": sum(value > 0 for value in values),
                "revenue_amount": sum(values) + 100, "refund_amount": 100,
                "net_revenue_square_sum": sum(value * value for value in values),
            }
            for arm, values in samples.items()
        },
    )  # fmt: skip
    means = CompareMeans(*(DescrStatsW(np.array(values, dtype=float)) for values in samples.values()))
    low, high = means.zconfint_diff(usevar="unequal")
    scale = len(samples["treatment"])
    assert float(found["incremental_revenue_low_amount"]) == pytest.approx(low * scale, rel=1e-9)
    assert float(found["incremental_revenue_high_amount"]) == pytest.approx(high * scale, rel=1e-9)
    middle = (found["incremental_revenue_low_amount"] + found["incremental_revenue_high_amount"]) / 2
    assert found["incremental_revenue_amount"] == pytest.approx(middle)


def test_one_member_has_no_spread(warehouse: psycopg.Connection[Row]) -> None:
    found = result(
        warehouse,
        treatment={"buyer_count": 1, "member_count": 1, "revenue_amount": 10, "net_revenue_square_sum": 100},
        holdout={"buyer_count": 0, "member_count": 40},
    )
    assert found["incremental_revenue_amount"] == 10
    assert found["incremental_revenue_low_amount"] is None
