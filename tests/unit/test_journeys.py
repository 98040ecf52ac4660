"""Review collection: one request, one reminder, then nothing; a review stops it; nobody is chosen by a rating."""

from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from campaign_world import AS_OF, MORNING, ConfigFolder, People, green_night, write_config
from nightmarket.campaigns import outbox
from nightmarket.campaigns.audience import RunRefused
from nightmarket.campaigns.journeys import run_reviews
from nightmarket.campaigns.results import check_laws, collect_receipts, export_exposures
from nightmarket.settings import ROOT
from nightmarket.warehouse import Row

DAY_SIGNED = datetime.fromisoformat(
    "2026-03-11T15:00:00+08:00"
)  # three days before the end of the 14th: due that night


class Orders:
    """Signed orders of members who follow the account."""

    def __init__(self, db: psycopg.Connection[Row], people: People, config: ConfigFolder, set_clock: Any) -> None:
        self.db, self.people, self.config, self.set_clock = db, people, config, set_clock
        self.number = 0

    def buyer(self, **options: Any) -> int:
        self.number += 1
        return self.people.add(**({"openid": f"oBUYER{self.number}"} | options))

    def signed(
        self, member: int, at: datetime = DAY_SIGNED, *, status: str = "finished", title: str = "WHITE LANTERN"
    ) -> str:
        """One signed order of a member; returns its id."""
        self.number += 1
        order_id = f"70000{self.number:04d}"
        self.db.execute(
            "INSERT INTO core.orders (source_id, order_id, identity_id, status, status_original, is_paid, currency_code, goods_amount,"
            " paid_amount, line_count, unit_count, created_at, paid_at, shipped_at, signed_at, modified_at, batch_id, loaded_at)"
            " VALUES ('taobao_flagship', %s, %s, %s, 'x', true, 'CNY', 10, 10, 1, 1, %s, %s, %s, %s, %s, 1, %s)",
            (order_id, self.people.identity_of(member, "taobao_open_uid"), status, at - timedelta(days=4), at - timedelta(days=4),
             at - timedelta(days=3), at, at, at),
        )  # fmt: skip
        self.db.execute(
            "INSERT INTO core.order_lines (source_id, order_id, line_id, product_id, title, unit_price_amount, quantity, line_amount,"
            " paid_amount, status, batch_id) VALUES ('taobao_flagship', %s, '1', 'p', %s, 10, 1, 10, 10, 'x', 1)",
            (order_id, title),
        )
        return order_id

    def reviewed(self, order_id: str, at: datetime, rating: int = 5) -> None:
        self.db.execute(
            "INSERT INTO core.reviews (source_id, review_id, order_id, rating, rating_original, created_at, batch_id)"
            " VALUES ('taobao_flagship', %s, %s, %s, 'x', %s, 1)",
            (f"r{order_id}", order_id, rating, at),
        )

    def night(self, day: date) -> dict[str, Any]:
        """The journey of one night, at half past two of the next morning."""
        green_night(self.db, day)
        self.set_clock(f"{day + timedelta(days=1)}T02:30:00+08:00")
        return run_reviews(day)

    def sent(self, day: date) -> None:
        """Everything queued is accepted at ten in the morning after a night."""
        at = datetime.fromisoformat(f"{day + timedelta(days=1)}T10:00:00+08:00")
        self.set_clock(at.isoformat())
        self.db.execute("UPDATE push.messages SET state = 'accepted', accepted_at = %s WHERE state = 'queued'", (at,))

    def keys(self) -> list[str]:
        return [
            row["message_key"]
            for row in self.db.execute("SELECT message_key FROM push.messages ORDER BY message_id").fetchall()
        ]


@pytest.fixture
def orders(db: psycopg.Connection[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, set_clock: Any) -> Orders:
    config = write_config(tmp_path / "house", monkeypatch)
    set_clock(MORNING)
    return Orders(db, People(db), config, set_clock)


def later(days: int) -> date:
    return AS_OF + timedelta(days=days)


def test_one_request_one_reminder_then_nothing(orders: Orders) -> None:
    order = orders.signed(orders.buyer())
    asked = []
    for day in range(15):
        result = orders.night(later(day))
        orders.sent(later(day))
        asked.append((result["asked"], result["reminded"]))
    assert asked == [(1, 0), (0, 0), (0, 0), (0, 0), (0, 1), *[(0, 0)] * 10]
    assert orders.keys() == [f"review/taobao_flagship/{order}/ask", f"review/taobao_flagship/{order}/remind"]


@pytest.mark.parametrize("rating", [1, 5])
def test_a_review_stops_it_whatever_it_says(orders: Orders, rating: int) -> None:
    reviewed, silent = orders.signed(orders.buyer()), orders.signed(orders.buyer())
    orders.night(AS_OF)
    orders.sent(AS_OF)
    orders.reviewed(reviewed, DAY_SIGNED + timedelta(days=4), rating)
    assert orders.night(later(4))["reminded"] == 1
    assert orders.keys()[-1] == f"review/taobao_flagship/{silent}/remind"


def test_who_has_reviewed_already_is_not_asked(orders: Orders) -> None:
    order = orders.signed(orders.buyer())
    orders.reviewed(order, DAY_SIGNED + timedelta(days=1))
    assert orders.night(AS_OF)["asked"] == 0


def test_the_rating_is_not_reachable_in_the_query() -> None:
    text = (ROOT / "include" / "sql" / "push" / "review_requests.sql").read_text()
    statement = text[text.index("WITH") :]
    assert "rating" not in statement
    assert "content" not in statement


@pytest.mark.parametrize(
    ("signed", "asked"),
    [
        ("2026-03-12T00:00:00+08:00", 0),  # not three whole days ago
        ("2026-03-11T23:59:59+08:00", 1),
        ("2026-03-08T00:00:00+08:00", 1),
        ("2026-03-07T23:59:59+08:00", 0),  # too long ago: the first night does not ask for the whole year
    ],
)
def test_the_window_is_bounded_on_both_sides(orders: Orders, signed: str, asked: int) -> None:
    orders.signed(orders.buyer(), datetime.fromisoformat(signed))
    assert orders.night(AS_OF)["asked"] == asked


def test_a_missed_night_is_caught_up_once(orders: Orders) -> None:
    orders.signed(orders.buyer())
    assert orders.night(later(2))["asked"] == 1
    assert orders.night(later(3))["asked"] == 0


def test_one_person_is_asked_about_the_newest_order_and_then_left_alone(orders: Orders) -> None:
    buyer = orders.buyer()
    orders.signed(buyer, DAY_SIGNED - timedelta(days=2))
    newest = orders.signed(buyer, DAY_SIGNED)
    assert orders.night(AS_OF)["asked"] == 1
    assert orders.keys() == [f"review/taobao_flagship/{newest}/ask"]
    orders.sent(AS_OF)
    assert orders.night(later(1))["asked"] == 0  # two days between two requests


def test_the_same_night_again_asks_nobody_again(orders: Orders) -> None:
    orders.signed(orders.buyer())
    assert orders.night(AS_OF)["asked"] == 1
    assert orders.night(AS_OF)["asked"] == 0
    orders.signed(orders.buyer())  # an order that was loaded late
    again = orders.night(AS_OF)
    assert (again["run_id"], again["asked"]) == ("followup_reviews@2026-03-14", 1)
    assert len(orders.keys()) == 2
    check_laws(again["run_id"])


def test_a_returned_order_is_not_asked_about(orders: Orders) -> None:
    order = orders.signed(orders.buyer())
    orders.db.execute(
        "INSERT INTO core.refunds (source_id, refund_id, order_id, status, status_original, is_money, currency_code, refund_amount,"
        " created_at, modified_at, batch_id) VALUES ('taobao_flagship', 'f1', %s, 'requested', 'x', false, 'CNY', 10, %s, %s, 1)",
        (order, DAY_SIGNED, DAY_SIGNED),
    )
    orders.signed(orders.buyer(), status="refunded")
    assert orders.night(AS_OF)["asked"] == 0


def test_the_best_allowed_channel_and_who_cannot_be_reached(orders: Orders) -> None:
    follower = orders.buyer()
    mail = orders.buyer(openid=None, email="buyer@mail.test")
    refused = orders.buyer(openid=None, email="no@mail.test", email_consent=False)
    nothing = orders.buyer(openid=None)
    only_ads_refused = orders.buyer(wechat_consent=False)
    orders.people.consent(orders.people.identity_of(only_ads_refused, "wechat_openid"), "wechat", "service", True)
    for member in (follower, mail, refused, nothing, only_ads_refused):
        orders.signed(member)
    result = orders.night(AS_OF)
    assert (result["asked"], result["excluded"]) == (3, {"no_address": 1, "no_consent": 1})
    rows = orders.db.execute("SELECT member_id, channel, template, step, purpose FROM push.messages").fetchall()
    assert {row["member_id"]: row["channel"] for row in rows} == {
        follower: "wechat_template", mail: "email", only_ads_refused: "wechat_template",
    }  # fmt: skip
    assert {(row["template"], row["step"], row["purpose"]) for row in rows} == {("review_ask", "ask", "service")}
    states = orders.db.execute("SELECT member_id, state, reason FROM push.audiences ORDER BY member_id").fetchall()
    assert len(states) == 5
    check_laws(result["run_id"])


def test_far_more_than_usual_stops_the_journey(orders: Orders) -> None:
    with orders.config.editing("journeys/followup_reviews.yaml") as data:
        data["max_messages"] = 2
    for _ in range(3):
        orders.signed(orders.buyer())
    with pytest.raises(RunRefused, match="3 messages about reviews are due, more than the guard of 2"):
        orders.night(AS_OF)
    assert orders.keys() == []
    assert orders.db.execute("SELECT count(*) AS n FROM push.campaign_runs").fetchone() == {"n": 0}


def test_a_red_night_asks_nobody(orders: Orders) -> None:
    orders.signed(orders.buyer())
    orders.set_clock(f"{later(1)}T02:30:00+08:00")
    green_night(orders.db, AS_OF, is_passed=False)
    with pytest.raises(RunRefused, match="is red"):
        run_reviews(AS_OF)
    with pytest.raises(RunRefused, match="has not been checked"):
        run_reviews(AS_OF - timedelta(days=1))


def test_a_night_long_past_asks_nobody_and_is_not_an_error(orders: Orders) -> None:
    orders.signed(orders.buyer())
    green_night(orders.db)
    orders.set_clock("2026-04-14T02:30:00+08:00")
    result = run_reviews(AS_OF)
    assert result["asked"] == 0
    assert "would have had to go out by 2026-03-17 09:00" in result["skipped"]
    check_laws(result["run_id"])


def test_the_night_waits_for_the_morning(orders: Orders) -> None:
    orders.signed(orders.buyer())
    orders.night(AS_OF)
    row = orders.db.execute("SELECT not_before, expires_at FROM push.messages").fetchone()
    assert row == {
        "not_before": datetime.fromisoformat("2026-03-15T09:00:00+08:00"),
        "expires_at": datetime.fromisoformat("2026-03-17T09:00:00+08:00"),
    }
    assert outbox.open_runs() == ["followup_reviews@2026-03-14"]


def test_what_was_asked_becomes_a_fact(orders: Orders) -> None:
    order = orders.signed(orders.buyer())
    run_id = orders.night(AS_OF)["run_id"]
    assert export_exposures(run_id) == 0  # nothing was accepted yet
    orders.sent(AS_OF)
    orders.db.execute("UPDATE push.messages SET platform_message_id = '200163836'")
    assert export_exposures(run_id) == 1
    assert export_exposures(run_id) == 1
    event = orders.db.execute("SELECT source_id, event_id, message_key, kind FROM core.message_events").fetchone()
    key = f"review/taobao_flagship/{order}/ask"
    assert event == {"source_id": "wechat_official", "event_id": "200163836", "message_key": key, "kind": "accepted"}
    exposure = orders.db.execute("SELECT arm, step, purpose, channel, message_key FROM core.exposures").fetchone()
    assert exposure == {
        "arm": "treatment",
        "step": "ask",
        "purpose": "service",
        "channel": "wechat_template",
        "message_key": key,
    }


@pytest.mark.parametrize(
    ("kind", "detail", "state", "suppressed"),
    [
        ("delivered", "success", "delivered", 0),
        ("failed", "failed:user block", "failed", 1),
        ("failed", "failed: system failed", "failed", 0),
        ("clicked", None, "delivered", 0),
    ],
)
def test_receipts_settle_messages(orders: Orders, kind: str, detail: str | None, state: str, suppressed: int) -> None:
    orders.signed(orders.buyer())
    run_id = orders.night(AS_OF)["run_id"]
    orders.sent(AS_OF)
    export_exposures(run_id)
    orders.db.execute(
        "INSERT INTO core.message_events (source_id, event_id, message_key, kind, detail, occurred_at) VALUES ('own_pages', 'e1', %s, %s, %s, %s)",
        (orders.keys()[0], kind, detail, datetime.fromisoformat(MORNING)),
    )
    counts = collect_receipts()
    assert (counts["delivered"] + counts["failed"], counts["suppressed"]) == (1, suppressed)
    assert orders.db.execute("SELECT state FROM push.messages").fetchone() == {"state": state}
    assert collect_receipts()["delivered"] == collect_receipts()["failed"] == 0
    check_laws(run_id)


def test_a_run_is_finished_when_its_window_is_over(orders: Orders) -> None:
    orders.signed(orders.buyer())
    run_id = orders.night(AS_OF)["run_id"]
    orders.sent(AS_OF)
    orders.db.execute("UPDATE push.campaign_runs SET state = 'sent'")
    export_exposures(run_id)
    assert collect_receipts()["runs_finished"] == 0
    orders.set_clock("2026-03-22T10:00:01+08:00")
    assert collect_receipts()["runs_finished"] == 1
    assert outbox.open_runs() == []
