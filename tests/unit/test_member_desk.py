"""What a person does about one member: explain, grant, freeze, revoke, points; and what a template may say of it."""

from datetime import date, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner

from nightmarket import cli
from nightmarket.grants import decide_tier, revoke_tier, use_points
from nightmarket.marts import sync_config
from nightmarket.rebuild import run_night
from nightmarket.warehouse import Row

TODAY = date(2026, 3, 15)
LAST_NIGHT = TODAY - timedelta(days=1)
run = CliRunner()


@pytest.fixture
def member(db: psycopg.Connection[Row], set_clock: Any) -> int:
    """Anna: 2,400 spent in winter by three orders, one refund, a bad review; computed as of 14 March 2026."""
    set_clock("2026-03-15T10:00:00+08:00")
    db.execute("INSERT INTO core.members (member_id, first_seen_at) OVERRIDING SYSTEM VALUE VALUES (7, '2025-01-01')")
    db.execute(
        "INSERT INTO core.identities (identity_id, kind, value, source_id, first_seen_at) OVERRIDING SYSTEM VALUE"
        " VALUES (70, 'taobao_open_uid', 'u-7', 'shop', '2025-01-01')"
    )
    db.execute("INSERT INTO core.member_identities (identity_id, member_id, linked_at) VALUES (70, 7, '2025-01-01')")
    for number, (day, amount) in enumerate([("2025-12-01", 1000), ("2026-01-10", 900), ("2026-02-20", 500)]):
        db.execute(
            "INSERT INTO core.orders (source_id, order_id, identity_id, status, status_original, is_paid, currency_code, goods_amount,"
            " paid_amount, line_count, unit_count, city, created_at, paid_at, modified_at, batch_id, loaded_at)"
            " VALUES ('shop', %s, 70, 'finished', 'x', TRUE, 'CNY', %s, %s, 1, 1, '杭州', %s, %s, %s, 1, %s)",
            (f"o{number}", amount, amount, day, day, day, day),
        )
    db.execute(
        "INSERT INTO core.refunds (source_id, refund_id, order_id, identity_id, status, status_original, is_money, currency_code,"
        " refund_amount, created_at, settled_at, modified_at, batch_id)"
        " VALUES ('shop', 'r', 'o1', 70, 'settled', 'x', TRUE, 'CNY', 200, '2026-01-20', '2026-01-20', '2026-01-20', 1)"
    )
    sync_config(db, [])
    run_night(LAST_NIGHT)
    return 7


def tiers(db: psycopg.Connection[Row]) -> list[tuple[Any, ...]]:
    rows = db.execute(
        "SELECT tier, kind, valid_from, valid_to FROM mart.member_tiers WHERE member_id = 7 ORDER BY valid_from"
    )
    return [tuple(row.values()) for row in rows]


def explained(*arguments: str) -> str:
    result = run.invoke(cli.app, ["explain", "member", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_explain_names_the_rule_the_orders_and_what_comes_next(member: int) -> None:
    text = explained("7", "--as-of", "2026-03-14")
    assert "Gold (金卡会员) since 2026-02-20, because 365-day spend 2,200.00 ≥ 2,000.00" in text
    assert "before: Silver 2025-12-01 to 2026-02-20, because 365-day spend 1,000.00 ≥ 700.00" in text
    assert "next review 2026-05-21: keeps with 1,500; today that would do" in text
    assert "diamond from 5,000: 2,800 more" in text
    assert "orders and refunds in the 365 days that end with 2026-03-14: 4, together 2,200" in text
    assert "2026-01-20  refund" in text
    assert "loyal since 2026-02-20" in text
    assert "the next one is expected around 2026-04-" in text


def test_explain_looks_back(member: int) -> None:
    text = explained("7", "--as-of", "2026-01-15")
    assert "Silver" in text
    assert "Gold" not in text
    assert "4, together" not in text
    assert "purchased since 2025-12-01" in text


def test_explain_refuses_nobody_in_a_sentence(member: int) -> None:
    result = run.invoke(cli.app, ["explain", "member", "99"])
    assert result.exit_code == 1
    assert "there is no member 99" in result.output


def test_a_grant_lifts_until_it_ends_and_a_revoked_one_no_longer(
    db: psycopg.Connection[Row], member: int, set_clock: Any
) -> None:
    number = decide_tier(member, "grant", tier="diamond", until=date(2026, 3, 20), reason="complaint 17", actor="ulla")
    set_clock("2026-03-26T10:00:00+08:00")
    run_night(date(2026, 3, 25))
    assert tiers(db)[-2:] == [
        ("diamond", "grant", date(2026, 3, 15), date(2026, 3, 20)),
        ("gold", "grant_end", date(2026, 3, 20), None),
    ]
    reason = db.execute("SELECT reason FROM mart.member_tiers WHERE kind = 'grant'").fetchone()
    assert reason == {"reason": "granted until 2026-03-20: complaint 17"}
    db.execute("UPDATE core.tier_grants SET valid_to = NULL WHERE grant_id = %s", (number,))
    revoke_tier(number, reason="settled", actor="ulla")
    with pytest.raises(ValueError, match="no grant"):
        revoke_tier(number, reason="again", actor="ulla")
    run_night(date(2026, 3, 26))
    assert tiers(db)[-1] == ("gold", "grant_end", date(2026, 3, 26), None)
    told = db.execute("SELECT action, actor FROM push.audit_log ORDER BY audit_id").fetchall()
    assert [row["action"] for row in told] == ["tier_grant", "tier_revoke"]


def test_a_frozen_tier_does_not_rise(db: psycopg.Connection[Row], member: int, set_clock: Any) -> None:
    decide_tier(member, "freeze", until=date(2026, 4, 1), reason="under review", actor="ulla")
    db.execute(
        "UPDATE core.orders SET goods_amount = 9000, paid_at = '2026-03-16 12:00:00+08', modified_at = '2026-03-16' WHERE order_id = 'o2'"
    )
    set_clock("2026-03-31T10:00:00+08:00")
    run_night(date(2026, 3, 30))
    assert [row[0] for row in tiers(db)] == ["silver"]
    set_clock("2026-04-02T10:00:00+08:00")
    run_night(date(2026, 4, 1))
    assert tiers(db)[-1][:3] == ("diamond", "up", date(2026, 4, 1))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({"member_id": 99, "tier": "gold"}, "there is no member 99"),
        ({"member_id": 7, "tier": "platinum"}, "has no tier 'platinum'; it has bronze, silver, gold, diamond"),
        ({"member_id": 7, "tier": "gold", "programme": "vip"}, "there is no programme 'vip'; there are main"),
        ({"member_id": 7, "tier": "gold", "until": date(2026, 3, 1)}, "is not after 2026-03-15"),
        ({"member_id": 7, "tier": "gold", "reason": " "}, "the reason is missing"),
    ],
)
def test_a_wrong_grant_is_refused_in_a_sentence(member: int, words: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        decide_tier(**{"kind": "grant", "reason": "a test", "actor": "ulla", **words})


def test_points_are_spent_once_and_never_more_than_there_are(db: psycopg.Connection[Row], member: int) -> None:
    start = db.execute("SELECT sum(points) AS points FROM mart.points_ledger").fetchone()
    assert start
    balance = int(start["points"])
    assert balance > 2000
    spend = {"kind": "redeem", "use_id": "order 4711", "reason": "coupon", "actor": "till"}
    assert use_points(member, 500, **spend) == balance - 500  # type: ignore[arg-type]
    assert use_points(member, 500, **spend) == balance - 500  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cannot be spent"):
        use_points(member, balance, kind="redeem", use_id="order 4712", reason="too much", actor="till")
    run_night(TODAY)
    after = db.execute("SELECT sum(points) AS points FROM mart.points_ledger").fetchone()
    assert after == {"points": balance - 500}


def test_a_template_may_say_what_the_portrait_knows(db: psycopg.Connection[Row], member: int) -> None:
    row = db.execute("SELECT mart.template_facts(7, 'zh', '2026-03-14') AS facts").fetchone()
    assert row
    assert row["facts"]["last_order_date"] == "2026-02-20"
    assert (row["facts"]["order_count"], row["facts"]["city"]) == (3, "杭州")
    portrait = db.execute("SELECT * FROM mart.member_portraits WHERE member_id = 7").fetchone()
    assert portrait
    assert portrait["points_balance"] == row["facts"]["points"]
    assert (portrait["tier"], portrait["stage"], portrait["activity"]) == ("gold", "loyal", "active")


def test_the_commands_have_help() -> None:
    for command in (
        ["what-if"],
        ["marts"],
        ["points"],
        ["tier", "grant"],
        ["tier", "freeze"],
        ["tier", "revoke"],
        ["explain", "member"],
    ):
        result = run.invoke(cli.app, [*command, "--help"])
        assert result.exit_code == 0
        assert "--help" in result.output
    assert Path(cli.__file__).exists()
