"""Review collection: one request, one reminder, then nothing; any review stops it and is rewarded; a bad one opens a case."""

import json
import os
import re
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlglot
from sqlglot import exp

from campaign_world import AS_OF, MORNING, ConfigFolder, People, green_night, write_config
from nightmarket.campaigns import outbox
from nightmarket.campaigns.audience import RunRefused
from nightmarket.campaigns.cases import assign_case, close_case, watch_cases
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


def test_a_subscription_notice_only_to_who_allowed_one(orders: Orders) -> None:
    with orders.config.editing("journeys/followup_reviews.yaml") as data:
        data["channels"] = ["wechat_subscribe", "wechat_template"]
    for openid in ("oALLOWS", "oREFUSES", "oSILENT"):
        orders.signed(orders.buyer(openid=openid))
    template = "SIMSUB000000000000000000000000000000000001"
    for openid, kind, hours in (("oALLOWS", "accept", 2), ("oREFUSES", "accept", 2), ("oREFUSES", "reject", 1)):
        orders.db.execute(
            "INSERT INTO core.subscribe_events (source_id, event_id, openid, template_id, kind, occurred_at)"
            " VALUES ('wechat_official', %s, %s, %s, %s, %s)",
            (f"{openid}/{kind}", openid, template, kind, datetime.fromisoformat(MORNING) - timedelta(hours=hours)),
        )
    assert orders.night(AS_OF)["asked"] == 3
    rows = orders.db.execute("SELECT address, channel FROM push.messages ORDER BY address").fetchall()
    assert {row["address"]: row["channel"] for row in rows} == {
        "oALLOWS": "wechat_subscribe", "oREFUSES": "wechat_template", "oSILENT": "wechat_template",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "family"), [({}, "wechat"), ({"openid": None, "email": "buyer@mail.test"}, "email")]
)
def test_who_left_by_the_link_of_a_request_is_not_reminded(
    orders: Orders, options: dict[str, Any], family: str
) -> None:
    orders.signed(orders.buyer(**options))
    assert orders.night(AS_OF)["asked"] == 1
    orders.sent(AS_OF)
    orders.db.execute(
        "SELECT push.withdraw('own_pages', 'unsubscribe/1', %s, %s, %s)",
        (orders.keys()[0], family, datetime.fromisoformat("2026-03-15T12:00:00+08:00")),
    )
    result = orders.night(later(4))
    assert (result["reminded"], result["excluded"]) == (0, {"no_consent": 1})


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
        "INSERT INTO core.message_events (source_id, event_id, message_key, kind, detail, occurred_at) VALUES ('wechat_official', 'e1', %s, %s, %s, %s)",
        (orders.keys()[0], kind, detail, datetime.fromisoformat(MORNING)),
    )
    counts = collect_receipts()
    assert (counts["delivered"] + counts["failed"], counts["suppressed"]) == (1, suppressed)
    assert orders.db.execute("SELECT state FROM push.messages").fetchone() == {"state": state}
    assert collect_receipts()["delivered"] == collect_receipts()["failed"] == 0
    check_laws(run_id)


def test_receipts_look_back_sixty_days(orders: Orders) -> None:
    """Channels that report nothing leave their messages accepted for ever: old ones are not read again and again."""
    orders.signed(orders.buyer())
    run_id = orders.night(AS_OF)["run_id"]
    orders.sent(AS_OF)
    export_exposures(run_id)
    orders.db.execute(
        "INSERT INTO core.message_events (source_id, event_id, message_key, kind, occurred_at) VALUES ('own_pages', 'late', %s, 'clicked', %s)",
        (orders.keys()[0], datetime.fromisoformat(MORNING) + timedelta(days=61)),
    )
    orders.set_clock("2026-05-16T09:00:00+08:00")  # 62 days later
    assert collect_receipts()["delivered"] == 0
    orders.set_clock("2026-05-13T09:00:00+08:00")  # 59 days
    assert collect_receipts()["delivered"] == 1


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


# ------------------------------------------------------------------------------------------------- thanks and rewards
def allow_rewards(orders: Orders, **platforms: bool) -> None:
    with orders.config.editing("journeys/followup_reviews.yaml") as data:
        data["rewards"] |= platforms


def rewards(orders: Orders) -> list[tuple[Any, ...]]:
    rows = orders.db.execute(
        "SELECT use_id, member_id, kind, points, reason FROM core.point_uses ORDER BY member_id"
    ).fetchall()
    return [tuple(row.values()) for row in rows]


def test_every_review_is_thanked_for_and_rewarded_the_same_whatever_it_says(orders: Orders) -> None:
    allow_rewards(orders, taobao=True)
    given = {}
    for rating in range(1, 6):
        member = orders.buyer()
        order = orders.signed(member)
        orders.reviewed(order, DAY_SIGNED + timedelta(days=1), rating)
        given[member] = order
    result = orders.night(AS_OF)
    assert (result["rewarded"], result["thanked"], result["asked"]) == (5, 5, 0)
    assert rewards(orders) == [
        (f"review/taobao_flagship/{order}/reward", member, "adjust", 20, "a review, whatever it says")
        for member, order in given.items()
    ]
    rows = orders.db.execute(
        "SELECT template, step, purpose, variables -> 'reward' AS reward, variables #>> '{order,date}' AS day FROM push.messages"
    ).fetchall()
    assert [tuple(row.values()) for row in rows] == [
        ("review_thanks", "thanks", "service", {"points": 20}, "2026-03-11")
    ] * 5
    check_laws(result["run_id"])


def test_thanks_and_reward_come_once_and_a_missed_night_is_caught_up(orders: Orders) -> None:
    allow_rewards(orders, taobao=True)
    order = orders.signed(orders.buyer())
    orders.reviewed(order, DAY_SIGNED + timedelta(days=1), 1)
    nights = [orders.night(later(day)) for day in (2, 3, 4)]  # the night of the 14th never was
    assert [(night["rewarded"], night["thanked"]) for night in nights] == [(1, 1), (0, 0), (0, 0)]
    orders.db.execute(  # a second review of another line, days later
        "INSERT INTO core.reviews (source_id, review_id, order_id, rating, rating_original, created_at, batch_id)"
        " VALUES ('taobao_flagship', 'second', %s, 5, 'x', %s, 1)",
        (order, DAY_SIGNED + timedelta(days=7)),
    )
    assert (orders.night(later(5))["rewarded"], len(rewards(orders)), len(orders.keys())) == (0, 1, 1)


def test_where_the_platform_forbids_it_there_is_thanks_and_no_reward(orders: Orders) -> None:
    orders.reviewed(orders.signed(orders.buyer()), DAY_SIGNED + timedelta(days=1), 5)
    result = orders.night(AS_OF)  # taobao: false in the file of the house
    assert (result["rewarded"], result["thanked"]) == (0, 1)
    assert rewards(orders) == []
    row = orders.db.execute("SELECT variables -> 'reward' AS reward FROM push.messages").fetchone()
    assert row == {"reward": None}


def test_a_platform_that_is_not_named_gets_no_reward(orders: Orders) -> None:
    with orders.config.editing("journeys/followup_reviews.yaml") as data:
        del data["rewards"]["taobao"]
    orders.reviewed(orders.signed(orders.buyer()), DAY_SIGNED + timedelta(days=1), 5)
    assert orders.night(AS_OF)["rewarded"] == 0


def test_who_may_not_be_written_to_is_rewarded_all_the_same(orders: Orders) -> None:
    allow_rewards(orders, taobao=True)
    nobody = orders.buyer(openid=None)
    orders.reviewed(orders.signed(nobody), DAY_SIGNED + timedelta(days=1), 2)
    result = orders.night(AS_OF)
    assert (result["rewarded"], result["thanked"], result["excluded"]) == (1, 0, {"no_address": 1})


def test_thanks_stand_before_a_request_and_the_request_comes_later(orders: Orders) -> None:
    buyer = orders.buyer()
    reviewed, silent = orders.signed(buyer), orders.signed(buyer)
    orders.reviewed(reviewed, DAY_SIGNED + timedelta(days=1))
    assert orders.night(AS_OF)["thanked"] == 1
    orders.sent(AS_OF)
    nights = [orders.night(later(day))["asked"] for day in (1, 2, 3)]
    assert nights == [0, 0, 1]  # gap_days after the thanks
    assert orders.keys()[-1] == f"review/taobao_flagship/{silent}/ask"


@pytest.mark.parametrize("name", ["review_rewards.sql", "review_requests.sql"])
def test_what_a_review_says_is_not_reachable_where_people_are_chosen(name: str) -> None:
    """Parsed, not searched: no column of core.reviews but who, when and which order; no table that has the others."""
    text = (ROOT / "include" / "sql" / "push" / name).read_text()
    tree = sqlglot.parse_one(re.sub(r"%\((\w+)\)s", r":\1", text).replace("%%", "%"), read="postgres")
    tables = {f"{table.db}.{table.name}" for table in tree.find_all(exp.Table) if table.db}
    assert "core.written_reviews" in tables
    assert tables.isdisjoint({"core.reviews", "mart.member_facts", "mart.member_stages", "mart.service_kpis_daily"})
    words = {column.name for column in tree.find_all(exp.Column)}
    assert words.isdisjoint({"rating", "rating_original", "content", "reply", "last_rating"})


def test_the_view_of_reviews_has_neither_rating_nor_text(db: psycopg.Connection[Row]) -> None:
    rows = db.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = 'core.written_reviews'::regclass AND attnum > 0"
    ).fetchall()
    assert {row["attname"] for row in rows} == {"source_id", "review_id", "order_id", "created_at"}


def test_too_many_rewards_stop_the_night(orders: Orders) -> None:
    allow_rewards(orders, taobao=True)
    with orders.config.editing("journeys/followup_reviews.yaml") as data:
        data["max_messages"] = 2
    for _ in range(3):
        orders.reviewed(orders.signed(orders.buyer()), DAY_SIGNED + timedelta(days=1))
    with pytest.raises(RunRefused, match="3 reviews are due for a reward, more than the guard of 2"):
        orders.night(AS_OF)
    assert rewards(orders) == []


# ------------------------------------------------------------------------------------------------------ service cases
def cases_of(orders: Orders) -> list[Row]:
    return orders.db.execute(
        "SELECT case_id, state, is_in_time, deadline_at, assigned_to, close_reason FROM push.service_cases ORDER BY case_id"
    ).fetchall()


def alerts(orders: Orders) -> list[str]:
    rows = orders.db.execute(
        "SELECT subject FROM push.audit_log WHERE actor = 'cases' AND action = 'alert' ORDER BY audit_id"
    ).fetchall()
    return [row["subject"].split(" ", 1)[1] for row in rows]


def reply(orders: Orders, order_id: str, at: datetime | None) -> None:
    orders.db.execute(
        "UPDATE core.reviews SET reply = 'sorry', replied_at = %s WHERE order_id = %s AND source_id = 'taobao_flagship'",
        (at, order_id),
    )


WRITTEN = datetime.fromisoformat("2026-03-14T20:00:00+08:00")


def bad_review(orders: Orders, rating: int = 1) -> str:
    order = orders.signed(orders.buyer())
    orders.reviewed(order, WRITTEN, rating)
    return order


def test_a_bad_review_opens_one_case_and_the_team_is_told_once(orders: Orders) -> None:
    for rating in range(1, 6):
        bad_review(orders, rating)
    orders.set_clock("2026-03-15T03:00:00+08:00")
    assert watch_cases() == {"opened": 2, "answered": 0, "overdue": 0, "told": 2}
    assert watch_cases() == {"opened": 0, "answered": 0, "overdue": 0, "told": 0}
    found = cases_of(orders)
    assert [row["state"] for row in found] == ["open", "open"]
    assert found[0]["deadline_at"] == WRITTEN + timedelta(hours=24)  # on the clock, from when it was written
    assert alerts(orders) == ["Bad reviews to answer: 2"]


def test_an_alert_names_neither_person_nor_order(orders: Orders) -> None:
    order = bad_review(orders)
    orders.set_clock("2026-03-15T03:00:00+08:00")
    watch_cases()
    row = orders.db.execute("SELECT detail FROM push.audit_log WHERE action = 'alert'").fetchone()
    assert row is not None
    (line,) = row["detail"]["lines"]
    assert order not in line
    assert f"…{order[-4:]}" in line
    assert "03-15 20:00" in line


def test_robots_that_cannot_be_reached_are_told_by_the_next_run(
    orders: Orders, sandbox: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad_review(orders)
    orders.set_clock("2026-03-15T03:00:00+08:00")
    names = ("AIRFLOW_CONN_ROBOT_WECOM", "AIRFLOW_CONN_ROBOT_DINGTALK")
    with monkeypatch.context() as away:
        for name in names:
            away.setenv(name, json.dumps(json.loads(os.environ[name]) | {"host": "http://127.0.0.1:1"}))
        assert watch_cases() == {"opened": 1, "answered": 0, "overdue": 0, "told": 0}
    assert watch_cases()["told"] == 1
    assert watch_cases()["told"] == 0
    told = sandbox.control("GET", "/counters")["alerts"]
    assert {alert["robot"] for alert in told} == {"wecom", "dingtalk"}
    assert all("Bad reviews to answer: 1" in alert["text"] and "03-15 20:00" in alert["text"] for alert in told)


@pytest.mark.parametrize(
    ("replied_at", "in_time"),
    [("2026-03-15T20:00:00+08:00", True), ("2026-03-15T20:00:01+08:00", False), (None, None)],
)
def test_a_reply_in_the_shop_answers_the_case(orders: Orders, replied_at: str | None, in_time: bool | None) -> None:
    order = bad_review(orders)
    orders.set_clock("2026-03-15T03:00:00+08:00")
    watch_cases()
    reply(orders, order, datetime.fromisoformat(replied_at) if replied_at else None)
    orders.set_clock("2026-03-16T03:00:00+08:00")
    assert watch_cases()["answered"] == 1
    (found,) = cases_of(orders)
    assert (found["state"], found["is_in_time"]) == ("answered", in_time)
    assert alerts(orders) == ["Bad reviews to answer: 1"]


def test_a_deadline_that_passes_is_told_once_more(orders: Orders) -> None:
    bad_review(orders)
    orders.set_clock("2026-03-15T03:00:00+08:00")
    watch_cases()
    assign_case(cases_of(orders)[0]["case_id"], to="小李", by="tester")
    orders.set_clock("2026-03-15T19:59:59+08:00")
    assert watch_cases()["overdue"] == 0
    orders.set_clock("2026-03-15T20:00:00+08:00")
    assert watch_cases() == {"opened": 0, "answered": 0, "overdue": 1, "told": 1}
    assert watch_cases()["told"] == 0
    assert alerts(orders) == ["Bad reviews to answer: 1", "Reviews not answered in time: 1"]
    row = orders.db.execute("SELECT detail FROM push.audit_log ORDER BY audit_id DESC LIMIT 1").fetchone()
    assert row is not None
    assert "@小李" in row["detail"]["lines"][0]


def test_a_case_is_closed_by_a_person_with_a_reason(orders: Orders) -> None:
    bad_review(orders)
    orders.set_clock("2026-03-15T03:00:00+08:00")
    watch_cases()
    number = cases_of(orders)[0]["case_id"]
    with pytest.raises(ValueError, match="reason is missing"):
        close_case(number, by="tester", reason=" ")
    close_case(number, by="tester", reason="called, sent a new one")
    with pytest.raises(ValueError, match=f"no open case {number}"):
        close_case(number, by="tester", reason="again")
    orders.set_clock("2026-03-17T03:00:00+08:00")
    assert watch_cases() == {"opened": 0, "answered": 0, "overdue": 0, "told": 0}
    assert cases_of(orders)[0]["state"] == "closed"


def test_old_and_answered_reviews_open_no_case(orders: Orders) -> None:
    order = bad_review(orders)
    reply(orders, order, WRITTEN)
    orders.reviewed(orders.signed(orders.buyer()), WRITTEN - timedelta(days=8), 1)
    orders.set_clock("2026-03-15T03:00:00+08:00")
    assert watch_cases()["opened"] == 0


def test_after_a_case_there_is_a_survey_once(orders: Orders) -> None:
    order = bad_review(orders)
    orders.set_clock("2026-03-15T02:00:00+08:00")
    watch_cases()
    assert orders.night(AS_OF)["thanked"] == 1
    orders.sent(AS_OF)
    orders.set_clock("2026-03-15T12:00:00+08:00")
    close_case(cases_of(orders)[0]["case_id"], by="tester", reason="called")
    nights = [orders.night(later(day)) for day in (1, 2)]
    assert [night["surveyed"] for night in nights] == [1, 0]
    prefix = f"review/taobao_flagship/{order}"
    assert orders.keys() == [f"{prefix}/thanks", f"{prefix}/survey"]
    rows = orders.db.execute("SELECT message_key, language, expires_at FROM push.surveys ORDER BY survey_id").fetchall()
    assert [row["message_key"] for row in rows] == orders.keys()
    assert rows[0]["expires_at"] == datetime.fromisoformat("2026-03-29T09:00:00+08:00")
