"""Predictions on a real PostgreSQL: nights equal a rebuild, a rerun moves nothing, no model is no failure; the real shop."""

from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import psycopg
import pytest
from given import table_rows

from nightmarket.predictions import predict_values
from nightmarket.warehouse import Row, copy_rows

DATA = Path(__file__).resolve().parents[2] / "include" / "data" / "online_retail.csv.gz"
START, SUNDAY = date(2024, 9, 1), date(2026, 3, 8)
TABLES = ("mart.member_predictions", "mart.prediction_fits")


def fill(connection: psycopg.Connection[Row], members: int = 400) -> None:
    """Order days of invented members up to ten days after SUNDAY; some days bring nothing but a refund."""
    chance = np.random.default_rng(5)
    rows = []
    for member in range(1, members + 1):
        day = START + timedelta(days=int(chance.integers(0, 400)))
        rate, mean = chance.gamma(1.2, 1 / 40), 400 / chance.gamma(4)
        while day <= SUNDAY + timedelta(days=10):
            amount = round(chance.gamma(3, mean / 3), 2)
            rows.append((member, day, 1, amount, 0, amount))
            day += timedelta(days=int(chance.exponential(1 / max(rate, 1e-4))) + 1)
            if chance.random() < 0.15:
                break
    copy_rows(connection, "mart.member_days", COLUMNS, rows)


COLUMNS = ("member_id", "day", "order_count", "gross_amount", "refund_amount", "net_amount")


def order(connection: psycopg.Connection[Row], member: int, day: date, batch: int, amount: int = 100) -> None:
    """A late order day of a member, as member_days and the night's list of touched members tell of it."""
    connection.execute(
        "INSERT INTO mart.member_days (member_id, day, order_count, gross_amount, refund_amount, net_amount)"
        " VALUES (%s, %s, 1, %s, 0, %s) ON CONFLICT (member_id, day) DO UPDATE SET gross_amount = excluded.gross_amount",
        (member, day, amount, amount),
    )
    connection.execute(
        "INSERT INTO mart.touched_members (batch_id, member_id, day) VALUES (%s, %s, %s)", (batch, member, day)
    )


def contents(connection: psycopg.Connection[Row]) -> list[Row]:
    return connection.execute("SELECT * FROM mart.member_predictions AS p ORDER BY p.member_id").fetchall()


def test_nights_are_what_a_rebuild_gives(db: psycopg.Connection[Row]) -> None:
    fill(db)
    first = predict_values(SUNDAY)
    assert first.is_usable
    assert first.written == first.looked_at > 300
    before = {table: table_rows(db, table) for table in TABLES}
    again = predict_values(SUNDAY)  # fitted again
    assert (again.looked_at, again.written, again.deleted) == (0, 0, 0)
    assert {table: table_rows(db, table) for table in TABLES} == before, "the second run moved rows"

    order(db, 7, SUNDAY - timedelta(days=20), batch=1)
    order(db, 401, SUNDAY + timedelta(days=1), batch=1)
    second = predict_values(SUNDAY + timedelta(days=1))
    assert 0 < second.looked_at < 60, "who ordered or was touched"
    db.execute("DELETE FROM mart.member_days WHERE member_id = 9")  # found to be somebody else
    db.execute("INSERT INTO mart.touched_members (batch_id, member_id, day) VALUES (2, 9, '-infinity')")
    third = predict_values(SUNDAY + timedelta(days=4))
    assert third.deleted == 1
    nights = contents(db)
    by_member = {row["member_id"]: row for row in nights}
    assert by_member[401]["as_of_date"] == SUNDAY + timedelta(days=1)
    assert {row["as_of_date"] for row in nights} <= {SUNDAY + timedelta(days=n) for n in range(5)}

    db.execute("DELETE FROM mart.marks")
    db.execute("TRUNCATE mart.member_predictions")
    predict_values(SUNDAY + timedelta(days=4))
    assert contents(db) == nights, "the model of the week is the same, so are its predictions"


def test_a_new_week_has_a_new_model_and_an_older_date_takes_nothing_back(db: psycopg.Connection[Row]) -> None:
    fill(db)
    predict_values(SUNDAY)
    later = predict_values(SUNDAY + timedelta(days=7))
    assert later.model_date == SUNDAY + timedelta(days=7)
    assert later.looked_at > 300, "everybody is seen from the new Sunday"
    nights = contents(db)
    assert min(row["as_of_date"] for row in nights) == SUNDAY + timedelta(days=7)
    older = predict_values(SUNDAY + timedelta(days=2))
    assert (older.model_date, older.written) == (SUNDAY + timedelta(days=7), 0)
    assert contents(db) == nights


def test_a_first_night_in_the_week_is_fitted_to_its_sunday(db: psycopg.Connection[Row]) -> None:
    fill(db)
    wednesday = predict_values(SUNDAY + timedelta(days=3))
    assert wednesday.model_date == SUNDAY
    nights = contents(db)
    fit = db.execute("SELECT * FROM mart.prediction_fits").fetchall()
    db.execute("TRUNCATE mart.member_predictions, mart.prediction_fits, mart.marks")
    for day in range(4):
        predict_values(SUNDAY + timedelta(days=day))
    assert contents(db) == nights
    assert db.execute("SELECT * FROM mart.prediction_fits").fetchall() == fit


def test_few_members_give_no_model_and_no_failure(db: psycopg.Connection[Row]) -> None:
    assert not predict_values(SUNDAY).is_usable, "nobody at all"
    fill(db, 60)
    db.execute("INSERT INTO mart.member_predictions VALUES (1, '2026-03-01', 180, 1, 1, 1, 1, 1)")  # of better days
    night = predict_values(SUNDAY)
    assert "members came back, 100 are needed" in night.reason
    assert str(night).endswith("Nothing is predicted.")
    assert contents(db) == []
    row = db.execute("SELECT is_usable, reason, frequency_r FROM mart.prediction_fits").fetchone()
    assert row == {"is_usable": False, "reason": night.reason, "frequency_r": None}


def test_a_trial_that_is_far_off_predicts_nothing(db: psycopg.Connection[Row]) -> None:
    fill(db)
    # everybody stays away in the last third of the history
    db.execute("DELETE FROM mart.member_days WHERE day > %s AND mod(member_id, 7) > 0", (SUNDAY - timedelta(days=175),))
    night = predict_values(SUNDAY)
    assert not night.is_usable
    assert "off: nothing is predicted" in night.reason
    assert contents(db) == []


@pytest.mark.slow
def test_the_real_shop(db: psycopg.Connection[Row]) -> None:
    """Online Retail: fitted on the first two thirds of its history, the last third is expected within a fifth.

    It is the pre-Christmas quarter of a gift shop, of which the model has seen none: it expects too little, as it should.
    """
    lines = pd.read_csv(DATA, dtype=str)
    lines = lines[lines.CustomerID.notna() & ~lines.InvoiceNo.str.startswith("C")]
    lines["amount"] = lines.Quantity.astype(float) * lines.UnitPrice.astype(float)
    lines = lines[lines.amount > 0]
    lines["day"] = lines.InvoiceDate.str[:10]
    days = (
        lines.groupby(["CustomerID", "day"])
        .agg(orders=("InvoiceNo", "nunique"), amount=("amount", "sum"))
        .reset_index()
    )
    amounts = [Decimal(f"{amount:.2f}") for amount in days.amount]
    rows = zip(
        days.CustomerID.astype(float).astype(int), days.day, days.orders, amounts, [0] * len(days), amounts, strict=True
    )
    copy_rows(db, "mart.member_days", COLUMNS, rows)

    predict_values(date(2011, 12, 9))
    fit = db.execute("SELECT * FROM mart.prediction_fits").fetchone()
    assert fit is not None
    assert (fit["business_date"], fit["member_count"], fit["repeater_count"]) == (date(2011, 12, 4), 4312, 2741)
    assert fit["is_usable"]
    assert abs(fit["holdout_error_rate"]) < Decimal("0.2")
    totals = db.execute(
        "SELECT count(*) AS members, sum(p.expected_order_count) AS orders, sum(p.expected_amount) AS amount FROM mart.member_predictions AS p"
    ).fetchone()
    assert totals is not None
    assert totals["members"] == 4338
