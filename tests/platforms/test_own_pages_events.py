"""What people did on our pages and what WeChat pushed to us, mapped: clicks, withdrawals, receipts, forms, messages."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import count
from typing import Any

import psycopg
import pytest
from nights import everything, one

from nightmarket import landing, mapping, sources
from nightmarket.dates import Window
from nightmarket.platforms import own_pages
from nightmarket.platforms.base import Slice
from nightmarket.privacy import Tokenizer
from nightmarket.warehouse import Row

AT = datetime.fromisoformat("2026-03-15T10:00:00+08:00")
EPOCH = int(AT.timestamp())
numbers = count(1)


@pytest.fixture(autouse=True)
def _clock(environment: str, set_clock: Any) -> None:
    set_clock("2026-03-16T02:30:00+08:00")


def event(kind: str, minutes: int = 0, **data: Any) -> dict[str, Any]:
    return {
        "event_id": f"e{next(numbers)}",
        "kind": kind,
        "received_at": (AT + timedelta(minutes=minutes)).isoformat(),
        "data": data,
    }


def push(openid: str, minutes: int = 0, **fields: Any) -> dict[str, Any]:
    fields = {"FromUserName": openid, "CreateTime": str(EPOCH + minutes * 60)} | {k: str(v) for k, v in fields.items()}
    return event("wechat.event", minutes, appid="wx1", xml="<xml/>", fields=fields)


def arrive(db: psycopg.Connection[Row], *events: dict[str, Any]) -> None:
    """Land the events and map them, as a night does."""
    loader = landing.Loader(db, sources.source("own_pages"), own_pages.STREAM, "test", False)

    def pages() -> Iterator[list[dict[str, Any]]]:
        yield list(events)

    loader.read(Slice("received", Window(AT, AT + timedelta(days=1)), pages), None)
    mapping.map_source("own_pages", run_id="test")


def follow(db: psycopg.Connection[Row], *openids: str) -> None:
    arrive(db, *(push(openid, -60, MsgType="event", Event="subscribe", EventKey="") for openid in openids))
    mapping.resolve_members(run_id="test")


def member_of(db: psycopg.Connection[Row], kind: str, value: str) -> int:
    return int(
        one(
            db,
            "SELECT member_id FROM core.member_identities JOIN core.identities USING (identity_id) WHERE kind = %s AND value = %s",
            (kind, value),
        )
    )


def expose(
    db: psycopg.Connection[Row], member: int, key: str, channel: str = "wechat_service", group: str | None = None
) -> None:
    db.execute(
        """
        INSERT INTO core.exposures (run_id, member_id, step, campaign, arm, channel, purpose, message_key, group_key, as_of,
                                    exposed_at, attribution_until)
        VALUES ('spring@2026-03-14', %s, 'offer', 'spring', 'treatment', %s, 'marketing', %s, %s, '2026-03-14',
                '2026-03-15 09:00', '2026-03-22')
        """,
        (member, channel, key, group),
    )


def accept(db: psycopg.Connection[Row], platform_id: str, key: str) -> None:
    db.execute(
        "INSERT INTO core.message_events VALUES ('wechat_official', %s, %s, 'accepted', NULL, '2026-03-15 09:00')",
        (platform_id, key),
    )


def answers(db: psycopg.Connection[Row]) -> list[tuple[str, str]]:
    rows = db.execute("SELECT message_key, kind FROM core.message_events WHERE kind <> 'accepted' ORDER BY 1, 2")
    return [(row["message_key"], row["kind"]) for row in rows]


def open_rejects(db: psycopg.Connection[Row]) -> list[str]:
    return [row["reason"] for row in db.execute("SELECT reason FROM raw.rejects WHERE resolved_at IS NULL ORDER BY 1")]


def test_a_click_names_message_and_person(db: psycopg.Connection[Row]) -> None:
    follow(db, "oA")
    expose(db, member_of(db, "wechat_openid", "oA"), "spring/2026-03-14/1/offer")
    arrive(db, event("click", key="spring/2026-03-14/1/offer", openid="oA"))
    assert answers(db) == [("spring/2026-03-14/1/offer", "clicked")]
    row = db.execute(
        "SELECT c.kind, c.message_key, i.value FROM core.interactions AS c JOIN core.identities AS i USING (identity_id)"
    ).fetchone()
    assert row == {"kind": "click", "message_key": "spring/2026-03-14/1/offer", "value": "oA"}


def test_a_click_from_an_email_is_the_persons_the_message_went_to(db: psycopg.Connection[Row]) -> None:
    arrive(
        db,
        event(
            "binding", openid=None, phone="10000000001", email="a@mail.test", name="王芳", language="zh", consents=[]
        ),
    )
    mapping.resolve_members(run_id="test")
    email = one(db, "SELECT value FROM core.identities WHERE kind = 'email'")
    expose(db, member_of(db, "email", email), "spring/2026-03-14/7/offer", "email")
    arrive(db, event("click", key="spring/2026-03-14/7/offer", openid=None))
    row = db.execute(
        "SELECT i.kind, c.message_key FROM core.interactions AS c JOIN core.identities AS i USING (identity_id)"
    ).fetchone()
    assert row == {"kind": "email", "message_key": "spring/2026-03-14/7/offer"}


def test_a_click_on_a_mass_message_is_the_message_of_the_openid(db: psycopg.Connection[Row]) -> None:
    follow(db, "oA", "oB", "oFriend")
    for number, openid in enumerate(("oA", "oB")):
        expose(db, member_of(db, "wechat_openid", openid), f"k{number}", "wechat_mass", "mass-1")
    arrive(
        db,
        event("click", key="mass-1", openid="oB"),
        event("click", key="mass-1", openid="oFriend"),  # the link was passed on
        event("click", key="mass-1", openid=None),
    )
    assert answers(db) == [("k1", "clicked"), ("mass-1", "clicked"), ("mass-1", "clicked")]
    clicks = db.execute(
        "SELECT i.value, c.message_key FROM core.interactions AS c JOIN core.identities AS i USING (identity_id) ORDER BY 1"
    ).fetchall()
    assert clicks == [{"value": "oB", "message_key": "k1"}, {"value": "oFriend", "message_key": "mass-1"}]


def test_a_click_after_a_merge_still_finds_its_message(db: psycopg.Connection[Row]) -> None:
    follow(db, "oA", "oB")
    expose(db, max(member_of(db, "wechat_openid", v) for v in ("oA", "oB")), "k1", "wechat_mass", "mass-1")
    later = "oA" if member_of(db, "wechat_openid", "oA") > member_of(db, "wechat_openid", "oB") else "oB"
    forms = [
        event("binding", openid=o, phone="10000000001", email=None, name="王芳", language="zh", consents=[])
        for o in ("oA", "oB")
    ]
    arrive(db, *forms)
    mapping.resolve_members(run_id="test")
    assert one(db, "SELECT count(*) FROM core.member_merges") == 1
    arrive(db, event("click", key="mass-1", openid=later))
    assert answers(db) == [("k1", "clicked")]


def test_an_event_waits_for_its_message(db: psycopg.Connection[Row]) -> None:
    follow(db, "oA")
    arrive(
        db,
        event("click", key="spring/2026-03-14/1/offer", openid="oA"),
        push("oA", MsgType="event", Event="TEMPLATESENDJOBFINISH", MsgID=200163836, Status="success"),
    )
    assert answers(db) == []
    assert open_rejects(db) == ["core.message_events: waiting for the message it belongs to"] * 2
    before = everything(db)
    mapping.map_source("own_pages", run_id="again")
    assert everything(db) == before
    expose(db, member_of(db, "wechat_openid", "oA"), "spring/2026-03-14/1/offer")
    accept(db, "200163836", "review/taobao_flagship/1/ask")
    mapping.map_source("own_pages", run_id="later")
    assert answers(db) == [("review/taobao_flagship/1/ask", "delivered"), ("spring/2026-03-14/1/offer", "clicked")]
    assert open_rejects(db) == []
    assert one(db, "SELECT message_key FROM core.interactions WHERE kind = 'click'") == "spring/2026-03-14/1/offer"


@pytest.mark.parametrize(
    ("status", "kind"),
    [("success", "delivered"), ("failed:user block", "failed"), ("failed: system failed", "failed")],
)
def test_a_template_receipt(db: psycopg.Connection[Row], status: str, kind: str) -> None:
    accept(db, "1", "review/s/1/ask")
    receipt = {"MsgType": "event", "Event": "TEMPLATESENDJOBFINISH", "MsgID": 1, "Status": status}
    arrive(db, push("oA", **receipt), push("oA", **receipt))  # WeChat may push twice
    assert answers(db) == [("review/s/1/ask", kind)]
    assert one(db, "SELECT detail FROM core.message_events WHERE kind <> 'accepted'") == status


@pytest.mark.parametrize(
    ("total", "sent", "status", "expected"),
    [(2, 2, "send success", ["delivered"]), (3, 2, "send success", []), (2, 0, "err(10001)", ["failed"])],
)
def test_a_mass_receipt_counts_only_when_it_says_who(
    db: psycopg.Connection[Row], total: int, sent: int, status: str, expected: list[str]
) -> None:
    accept(db, "34182", "mass-1")
    arrive(
        db,
        push("oA", MsgType="event", Event="MASSSENDJOBFINISH", MsgID=34182, Status=status, TotalCount=total, FilterCount=sent,
             SentCount=sent, ErrorCount=0),
    )  # fmt: skip
    assert [kind for _, kind in answers(db)] == expected
    assert open_rejects(db) == []


def test_following_and_leaving_are_consent_and_withdrawal(db: psycopg.Connection[Row]) -> None:
    leave = push("oA", 5, MsgType="event", Event="unsubscribe", EventKey="")
    arrive(
        db,
        push("oA", 0, MsgType="event", Event="subscribe", EventKey="qrscene_store01"),
        leave,
        leave | {"event_id": "copy"},
    )
    events = db.execute("SELECT source_id, kind FROM core.follow_events ORDER BY occurred_at").fetchall()
    assert events == [
        {"source_id": "wechat_official", "kind": "follow"},
        {"source_id": "wechat_official", "kind": "unfollow"},
    ]
    consents = db.execute("SELECT purpose, is_granted FROM core.consents ORDER BY occurred_at, purpose").fetchall()
    assert [(row["purpose"], row["is_granted"]) for row in consents] == [
        ("marketing", True), ("service", True), ("marketing", False), ("service", False)]  # fmt: skip
    assert one(db, "SELECT kind FROM core.interactions") == "scan"


def test_a_form_binds_and_consents(db: psycopg.Connection[Row]) -> None:
    ticked = [
        {"channel": "email", "purpose": "marketing", "granted": True, "text_version": "v3"},
        {"channel": "wechat", "purpose": "marketing", "granted": False, "text_version": "v3"},
        {"channel": "sms", "purpose": "marketing", "granted": True, "text_version": "v3"},
        {"channel": "carrier pigeon", "purpose": "marketing", "granted": True},
    ]
    form = {"openid": "oA", "phone": "100 0000 0001", "email": "Fang@Mail.test", "name": "王芳", "language": "en"}
    arrive(db, event("binding", **form, consents=ticked))
    found = db.execute(
        "SELECT channel, i.kind, is_granted, evidence FROM core.consents JOIN core.identities AS i USING (identity_id) ORDER BY 1"
    ).fetchall()
    assert [(row["channel"], row["kind"], row["is_granted"]) for row in found] == [
        ("email", "email", True), ("sms", "phone", True), ("wechat", "wechat_openid", False)]  # fmt: skip
    assert found[0]["evidence"] == "form on our page, text v3"
    mapping.resolve_members(run_id="test")
    assert one(db, "SELECT count(DISTINCT member_id) FROM core.member_identities") == 1
    profile = db.execute("SELECT name LIKE 'name:%' AS is_token, language FROM core.profiles LIMIT 1").fetchone()
    assert profile == {"is_token": True, "language": "en"}
    # the same number written differently is the same person
    arrive(db, event("binding", **form | {"openid": "oB", "phone": "+86 10000000001", "email": None}, consents=[]))
    mapping.resolve_members(run_id="test")
    assert one(db, "SELECT count(DISTINCT member_id) FROM core.member_identities") == 1


def test_consent_for_an_address_that_is_not_known_yet_stays_with_the_person(db: psycopg.Connection[Row]) -> None:
    tick = {"channel": "email", "purpose": "marketing", "granted": True, "text_version": "v1"}
    arrive(
        db, event("binding", openid=None, phone="10000000001", email=None, name="王芳", language="zh", consents=[tick])
    )
    assert one(db, "SELECT i.kind FROM core.consents JOIN core.identities AS i USING (identity_id)") == "phone"


def test_an_unsubscribe_withdraws_marketing_on_its_channel_only(db: psycopg.Connection[Row]) -> None:
    arrive(
        db,
        event(
            "binding", openid="oA", phone="10000000001", email="a@mail.test", name="王芳", language="zh", consents=[]
        ),
    )
    mapping.resolve_members(run_id="test")
    email = one(db, "SELECT value FROM core.identities WHERE kind = 'email'")
    expose(db, member_of(db, "email", email), "k1", "email")
    arrive(db, event("unsubscribe", key="k1", channel="email", openid=None, email="A@mail.test"))
    row = db.execute(
        "SELECT c.channel, c.purpose, c.is_granted, i.kind FROM core.consents AS c JOIN core.identities AS i USING (identity_id)"
    ).fetchone()
    assert row == {"channel": "email", "purpose": "marketing", "is_granted": False, "kind": "email"}
    assert answers(db) == [("k1", "unsubscribed")]
    event_ids = [one(db, f"SELECT max(event_id) FROM core.{table}") for table in ("consents", "message_events")]
    assert event_ids[0] == event_ids[1], "marts join the two on it"


def test_a_withdrawal_that_names_only_the_message_finds_the_person(db: psycopg.Connection[Row]) -> None:
    follow(db, "oA")
    arrive(db, event("unsubscribe", key="k1", channel="wechat_service", openid=None, email=None))
    assert "core.consents: waiting for the person it is about" in open_rejects(db)
    expose(db, member_of(db, "wechat_openid", "oA"), "k1")
    mapping.map_source("own_pages", run_id="later")
    row = db.execute("SELECT channel, is_granted FROM core.consents WHERE evidence LIKE 'unsubscribed%'").fetchone()
    assert row == {"channel": "wechat", "is_granted": False}
    assert open_rejects(db) == []


@pytest.mark.parametrize(("purpose", "ended"), [("service", ["marketing", "service"]), ("marketing", ["marketing"])])
def test_leaving_a_service_message_withdraws_both(db: psycopg.Connection[Row], purpose: str, ended: list[str]) -> None:
    follow(db, "oA")
    expose(db, member_of(db, "wechat_openid", "oA"), "k1")
    arrive(db, event("unsubscribe", key="k1", channel="wechat_template", openid="oA", purpose=purpose))
    rows = db.execute("SELECT purpose FROM core.consents WHERE NOT is_granted ORDER BY purpose").fetchall()
    assert [row["purpose"] for row in rows] == ended


def test_an_answer_to_a_survey_is_kept_once_without_numbers_in_it(db: psycopg.Connection[Row]) -> None:
    said = event("survey", key="review/shop/1/thanks", score=2, comment="slow, call 10012345678")
    arrive(db, said)
    arrive(db, said)
    row = db.execute("SELECT event_id, message_key, score, comment FROM core.survey_answers").fetchone()
    assert row is not None
    assert (row["event_id"], row["message_key"], row["score"]) == (said["event_id"], "review/shop/1/thanks", 2)
    assert row["comment"].startswith("slow, call phone:")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"score": 4}, "data has no key"),
        ({"key": "k", "score": 6}, "score is not one of 1 to 5"),
        ({"key": "k"}, "score is not one of 1 to 5"),
        ({"key": "k", "score": "good"}, "score is not one of 1 to 5"),
    ],
)
def test_an_answer_that_is_none_waits_for_a_person(
    db: psycopg.Connection[Row], data: dict[str, Any], sentence: str
) -> None:
    arrive(db, event("survey", **data))
    assert any(sentence in reason for reason in open_rejects(db))
    assert one(db, "SELECT count(*) FROM core.survey_answers") == 0


def test_messages_menus_and_scans_are_interactions_once_each(db: psycopg.Connection[Row]) -> None:
    wrote = push(
        "oA", 1, MsgType="text", Content="在吗？我的电话10012345678，邮箱 a.b@mail.test", MsgId=24000000000000001
    )
    arrive(
        db,
        wrote,
        wrote | {"event_id": "pushed-again"},
        push("oA", 2, MsgType="event", Event="CLICK", EventKey="ORDERS"),
        push("oA", 3, MsgType="event", Event="SCAN", EventKey="store01"),
        push("oA", 4, MsgType="event", Event="LOCATION"),
    )
    kinds = [row["kind"] for row in db.execute("SELECT kind FROM core.interactions ORDER BY occurred_at")]
    scenes = [row["scene"] for row in db.execute("SELECT scene FROM core.interactions WHERE kind = 'scan' ORDER BY 1")]
    assert scenes == ["store01"]
    assert kinds == ["message", "menu", "scan"]
    stored = one(db, "SELECT string_agg(payload::text, ' ') FROM raw.records")
    assert "10012345678" not in stored
    assert "a.b@mail.test" not in stored
    assert one(db, "SELECT count(*) FROM vault.secrets") == 2


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"kind": "surprise"}, "kind is missing or unknown"),
        ({"received_at": "yesterday"}, "received_at is missing or not a time"),
        ({"data": {"openid": None}}, "data has neither openid nor phone nor email"),
    ],
)
def test_what_nobody_can_read_is_kept_with_its_reason(
    db: psycopg.Connection[Row], broken: dict[str, Any], reason: str
) -> None:
    form = event("binding", openid="oA", phone="10000000001", email=None, name="王芳", language="zh", consents=[])
    arrive(db, form | broken)
    assert open_rejects(db) == [f"core.interactions: {reason}"]
    assert one(db, "SELECT record_key FROM raw.rejects") == form["event_id"]
    assert one(db, "SELECT count(*) FROM core.identities") == 0
    arrive(db, form)
    assert open_rejects(db) == []
    assert one(db, "SELECT count(*) FROM core.identities") == 2


def test_a_page_tells_that_a_code_was_used(db: psycopg.Connection[Row]) -> None:
    code = {"code": "3M7K-AATW", "source_id": "woo_mall", "order_id": "77", "discount": "20.00"}
    arrive(db, event("redemption", **code), event("redemption", 5, code="9999"), event("redemption", 6))
    rows = db.execute(
        "SELECT code_token, order_source_id, order_id, discount_amount FROM core.coupon_uses ORDER BY used_at"
    )
    token = Tokenizer.from_settings().token
    assert [tuple(row.values()) for row in rows] == [
        (token("coupon", "3m7kaatw"), "woo_mall", "77", 20),
        (token("coupon", "9999"), None, None, None),
    ]
    assert open_rejects(db) == ["core.interactions: data has no code"]
