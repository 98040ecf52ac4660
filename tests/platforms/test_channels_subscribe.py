"""Subscription notices: one consent, one notice. WeChat refuses the second, and our own count of consents says so before."""

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import orjson
import psycopg
import pytest
from psycopg.types.json import Jsonb
from sandbox_client import RawClient

from campaign_world import People, sandbox_openids
from nightmarket import dates, landing, mapping, sources
from nightmarket.campaigns import outbox
from nightmarket.campaigns.config import Channel, load_channels
from nightmarket.channels.base import Call, Content, Outcome
from nightmarket.channels.wechat_subscribe import WeChatSubscribe
from nightmarket.dates import Window
from nightmarket.platforms import own_pages
from nightmarket.platforms.base import Slice
from nightmarket.platforms.wechat_push import push_key, to_fields
from nightmarket.settings import credentials
from nightmarket.warehouse import Row

TEMPLATE = "SIMSUB000000000000000000000000000000000001"
OTHER = "SIMSUB000000000000000000000000000000000002"


def notice(key: str, openid: str, template_id: str = TEMPLATE, link: str | None = None, **changes: str) -> Call:
    fields = {"thing1": "白色爱心烛台", "time2": "2026-03-10", "thing3": "想听听您的真实评价", **changes}
    link = f"https://m.nightmarket.test/r/{key.replace('/', '%2F')}?s=x" if link is None else link
    return Call(key, (openid,), Content(fields=fields, template_id=template_id), link)


def send(*calls: Call, timeout: float = 5) -> list[Outcome]:
    async def run() -> list[Outcome]:
        async with WeChatSubscribe(credentials("wechat_official"), connections=4, timeout_seconds=timeout) as channel:
            return [await channel.send(each) for each in calls]

    return asyncio.run(run())


@pytest.fixture
def answers(sandbox: Any) -> Callable[..., int]:
    def answer(openid: str, word: str = "accept", template_id: str = TEMPLATE) -> int:
        body = {"openid": openid, "template_id": template_id, "answer": word}
        return int(sandbox.control("POST", "/subscribe", body)["balance"])

    return answer


def notices(sandbox: Any) -> list[dict[str, Any]]:
    return [one for one in sandbox.control("GET", "/messages")["messages"] if one["channel"] == "wechat_subscribe"]


# ---------------------------------------------------------------------------------------------------------------- the channel


def test_one_consent_is_one_notice(sandbox: Any, answers: Callable[..., int]) -> None:
    openid = sandbox_openids(sandbox)[0]
    answers(openid)
    first, second = send(notice("a/1", openid), notice("a/2", openid))
    assert first.kind == "accepted"
    assert (second.kind, second.code, second.suppress) == ("refused", "43101", "")
    (arrived,) = notices(sandbox)
    assert (arrived["receiver"], arrived["link_key"], str(arrived["msgid"])) == (
        openid,
        "a/1",
        first.platform_message_id,
    )


def test_consents_are_for_one_template(sandbox: Any, answers: Callable[..., int]) -> None:
    openid = sandbox_openids(sandbox)[0]
    assert answers(openid, template_id=OTHER) == 1
    (outcome,) = send(notice("a/1", openid))
    assert outcome.code == "43101"
    assert answers(openid, "stop", OTHER) == 0


@pytest.mark.parametrize(
    ("changes", "kind", "code", "suppress"),
    [
        ({"openid": "oNOBODY"}, "refused", "40003", "invalid openid"),
        ({"template_id": "SIMWRONG"}, "pause", "40037", ""),
        ({"thing1": "长" * 21}, "pause", "47003", ""),
        ({"link": "ftp://x"}, "pause", "41030", ""),
    ],
)
def test_what_a_refusal_means(
    sandbox: Any, answers: Callable[..., int], changes: dict[str, str], kind: str, code: str, suppress: str
) -> None:
    known = sandbox_openids(sandbox)[0]
    answers(known)
    (outcome,) = send(notice("a/1", changes.pop("openid", known), **changes))
    assert (outcome.kind, outcome.code, outcome.suppress) == (kind, code, suppress)
    assert notices(sandbox) == []


def test_a_lost_answer_stays_unknown(sandbox: Any, answers: Callable[..., int]) -> None:
    openid = sandbox_openids(sandbox)[0]
    answers(openid)
    fault = {"platform": "wechat_official", "method": "bizsend", "kind": "timeout_after", "seconds": 0.6}
    sandbox.control("POST", "/faults", {"faults": [fault]})
    (outcome,) = send(notice("a/1", openid), timeout=0.3)
    assert outcome.kind == "unknown"
    assert len(notices(sandbox)) == 1


def test_an_answer_without_a_msgid_is_accepted(sandbox: Any, answers: Callable[..., int]) -> None:
    sandbox.control("POST", "/settings", {"subscribe_msgid": False})
    openid = sandbox_openids(sandbox)[0]
    answers(openid)
    (outcome,) = send(notice("a/1", openid))
    assert (outcome.kind, outcome.platform_message_id) == ("accepted", "")
    sandbox.control("POST", "/settings", {"subscribe_msgid": True})


# ---------------------------------------------------------------------------------------------------------------- the events


def test_pushes_become_consents_and_receipts(
    sandbox: Any, db: psycopg.Connection[Row], answers: Callable[..., int]
) -> None:
    """As our pages keep them, through raw into core."""
    one, two, three = sandbox_openids(sandbox)[:3]
    answers(one)
    answers(two)
    answers(three, "reject", OTHER)
    (outcome,) = send(notice("a/1", one))
    sandbox.control("POST", "/clock", {"now": (dates.now() + timedelta(minutes=1)).isoformat()})
    answers(two, "stop")
    db.execute(
        "INSERT INTO core.message_events (source_id, event_id, message_key, kind, occurred_at)"
        " VALUES ('wechat_official', %s, 'a/1', 'accepted', %s)",
        (outcome.platform_message_id, dates.now()),
    )
    arrive(db, [event for event in RawClient(sandbox.access).all_events() if "subscribe_msg_" in str(event)])
    rows = db.execute("SELECT source_id, openid, template_id, kind FROM core.subscribe_events").fetchall()
    assert {row["source_id"] for row in rows} == {"wechat_official"}
    assert {(row["openid"], row["template_id"], row["kind"]) for row in rows} == {
        (one, TEMPLATE, "accept"), (two, TEMPLATE, "accept"), (two, TEMPLATE, "reject"), (three, OTHER, "reject"),
    }  # fmt: skip
    (receipt,) = db.execute(
        "SELECT message_key, kind, detail FROM core.message_events WHERE kind <> 'accepted'"
    ).fetchall()
    assert receipt == {"message_key": "a/1", "kind": "delivered", "detail": "success"}
    assert [balance(db, openid) for openid in (one, two)] == [1, 0]


def test_every_form_of_the_push_is_read(db: psycopg.Connection[Row], set_clock: Any) -> None:
    """XML with one template or several, JSON with an object or an array."""
    set_clock("2026-03-16T02:30:00+08:00")
    head = "<FromUserName>o1</FromUserName><CreateTime>{}</CreateTime><MsgType>event</MsgType><Event>subscribe_msg_popup_event</Event>"
    listed = "<List><TemplateId>{}</TemplateId><SubscribeStatusString>accept</SubscribeStatusString></List>"
    xml = "<xml>" + head + "<SubscribeMsgPopupEvent>{}</SubscribeMsgPopupEvent></xml>"
    as_json = {"FromUserName": "o1", "MsgType": "event", "Event": "subscribe_msg_popup_event"}
    said = {"SubscribeStatusString": "accept"}
    texts = [
        xml.format(EPOCH, listed.format("T1")),
        xml.format(EPOCH, listed.format("T2") + listed.format("T3")),
        orjson.dumps({**as_json, "CreateTime": str(EPOCH), "List": {**said, "TemplateId": "T4"}}).decode(),
        orjson.dumps({**as_json, "CreateTime": str(EPOCH), "List": [{**said, "TemplateId": "T5"}]}).decode(),
    ]
    fields = [to_fields(text) for text in texts]
    names = [push_key(field, text) for field, text in zip(fields, texts, strict=True)]
    assert len(set(names)) == 4, "two pushes of one second are two"
    arrive(db, [push(name, field) for name, field in zip(names, fields, strict=True)])
    rows = db.execute("SELECT template_id FROM core.subscribe_events ORDER BY template_id").fetchall()
    assert [row["template_id"] for row in rows] == ["T1", "T2", "T3", "T4", "T5"]


# ---------------------------------------------------------------------------------------------------------------- the balance


@pytest.mark.parametrize(
    ("story", "left"),
    [
        ("", 0),
        ("accept", 1),
        ("accept accept", 2),
        ("accept call", 0),
        ("accept accept call", 1),
        ("accept doubt", 0),
        ("accept open", 0),
        ("accept retry", 1),
        ("accept reject", 0),
        ("accept reject accept", 1),
        ("accept accept 43101", 0),
        ("accept 43101 accept", 1),
        ("call call accept", 0),
        ("accept call accept call accept", 1),
    ],
)
def test_accepted_less_called_since_the_last_refusal(db: psycopg.Connection[Row], story: str, left: int) -> None:
    run(db)
    outcomes = {"call": ("accepted", "0"), "doubt": ("unknown", "network"), "open": (None, None), "retry": ("retry", "-1"),
                "43101": ("refused", "43101")}  # fmt: skip
    for minute, what in enumerate(story.split()):
        at = AT + timedelta(minutes=minute)
        if what in outcomes:
            message_id = message(db, minute + 1, "o1", state="queued")
            outcome, code = outcomes[what]
            db.execute(
                "INSERT INTO push.attempts (message_id, attempt_number, worker, started_at, finished_at, outcome, platform_code, channel)"
                " VALUES (%s, 1, 'w', %s, %s, %s, %s, 'wechat_subscribe')",
                (message_id, at, at if outcome else None, outcome, code),
            )
        else:
            say(db, "o1", what, at)
    assert balance(db, "o1", AT + timedelta(days=1)) == left
    assert balance(db, "o1", AT - timedelta(seconds=1)) == 0, "as of a day before there was nothing"
    assert balance(db, "o2", AT + timedelta(days=1)) == 0


def test_a_claim_gives_out_only_what_is_allowed(db: psycopg.Connection[Row], environment: str, set_clock: Any) -> None:
    set_clock(AT.isoformat())
    people = People(db)
    members = {openid: people.add(openid=openid) for openid in ("o1", "o2", "o3")}
    run(db)
    say(db, "o1", "accept", AT - timedelta(hours=1))
    say(db, "o2", "accept", AT - timedelta(hours=2))
    say(db, "o2", "reject", AT - timedelta(hours=1))
    for openid, member in members.items():
        message(db, member, openid, state="queued")
    row = db.execute("SELECT * FROM push.campaign_runs").fetchone()
    assert row is not None
    channel = Channel.model_validate(row["config"]["channels"]["wechat_subscribe"])
    lane = outbox.Lane(row, "wechat_subscribe", channel, "w1", timedelta(minutes=2))
    assert [claimed["address"] for claimed in lane.claim(db, 10)] == ["o1"]
    states = db.execute("SELECT address, state, last_error FROM push.messages ORDER BY address").fetchall()
    assert [(state["state"], state["last_error"]) for state in states] == [
        ("sending", None), ("suppressed", "no_subscription"), ("suppressed", "no_subscription"),
    ]  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------- helpers

AT = datetime.fromisoformat("2026-03-15T10:00:00+08:00")
EPOCH = int(AT.timestamp())


def arrive(db: psycopg.Connection[Row], events: list[dict[str, Any]]) -> None:
    loader = landing.Loader(db, sources.source("own_pages"), own_pages.STREAM, "test", False)
    day = Window(AT - timedelta(days=2), AT + timedelta(days=1))
    loader.read(Slice("received", day, lambda: iter([events])), None)
    mapping.map_source("own_pages", run_id="test")


def push(name: str, fields: dict[str, Any]) -> dict[str, Any]:
    data = {"appid": "wx1", "xml": "<xml/>", "fields": fields}
    return {"event_id": name, "kind": "wechat.event", "received_at": AT.isoformat(), "data": data}


def run(db: psycopg.Connection[Row]) -> None:
    channels = load_channels()
    config = {
        "campaign": {"campaign": "c", "send_window": {"opens": "08:00", "closes": "22:00"}, "caps": None},
        "frequency": channels.frequency.model_dump(mode="json"),
        "channels": {"wechat_subscribe": channels.channels["wechat_subscribe"].model_dump(mode="json")},
        "templates": {"wechat_subscribe/review_ask": {"template_id": TEMPLATE}},
    }
    db.execute(
        "INSERT INTO push.campaign_runs (run_id, campaign, mode, as_of, as_of_at, config, config_hash, state, created_by, created_at,"
        " expires_at) VALUES ('run-1', 'c', 'live', '2026-03-14', %(now)s, %(config)s, '', 'sending', 'test', %(now)s, %(later)s)",
        {"now": AT, "later": AT + timedelta(days=2), "config": Jsonb(config)},
    )


def message(db: psycopg.Connection[Row], member: int, openid: str, state: str) -> int:
    row = db.execute(
        "INSERT INTO push.messages (message_key, run_id, member_id, step, channel, account, purpose, address, template, language,"
        " variables, state, not_before, expires_at, queued_at, updated_at)"
        " VALUES (%(key)s, 'run-1', %(member)s, 'send', 'wechat_subscribe', 'wechat_official', 'service', %(openid)s, 'review_ask', 'zh',"
        " '{}', %(state)s, %(now)s, %(later)s, %(now)s, %(now)s) RETURNING message_id",
        {
            "key": f"k/{member}",
            "member": member,
            "openid": openid,
            "state": state,
            "now": AT,
            "later": AT + timedelta(days=1),
        },
    ).fetchone()
    assert row is not None
    return int(row["message_id"])


def say(db: psycopg.Connection[Row], openid: str, kind: str, at: datetime) -> None:
    db.execute(
        "INSERT INTO core.subscribe_events (source_id, event_id, openid, template_id, kind, occurred_at)"
        " VALUES ('wechat_official', %s, %s, %s, %s, %s)",
        (f"{openid}/{at.timestamp()}/{kind}", openid, TEMPLATE, kind, at),
    )


def balance(db: psycopg.Connection[Row], openid: str, at: datetime | None = None) -> int:
    row = db.execute(
        "SELECT push.subscribe_balance('wechat_official', %s, %s, %s) AS left_over", (openid, TEMPLATE, at or AT)
    ).fetchone()
    assert row is not None
    return int(row["left_over"])
