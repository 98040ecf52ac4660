"""What SMS vendors push: taken only with the secret, kept sealed, mapped to deliveries, dead numbers and withdrawals."""

import json
from collections.abc import Callable, Mapping
from dataclasses import astuple
from datetime import datetime, timedelta
from itertools import count
from typing import Any

import psycopg
import pytest
from nights import one

from nightmarket import dates, landing, mapping, sources
from nightmarket.campaigns.results import collect_receipts
from nightmarket.console.receiver import Receiver
from nightmarket.platforms.base import PushAnswer, PushRequest
from nightmarket.privacy import Tokenizer, erase
from nightmarket.settings import ConfigError
from nightmarket.warehouse import Row, connect_vault

AT = "2026-03-15T10:00:00+08:00"
SECRET = "a-secret-in-the-address"
PHONE = "10012345678"
VENDORS = ("sms_aliyun", "sms_tencent")


@pytest.fixture(autouse=True)
def _house(environment: str, set_clock: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    set_clock(AT)
    for name in VENDORS:
        connection = {"login": "id", "password": "key", "extra": {"push_secret": SECRET, "sdk_app_id": "1400000000"}}
        monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", json.dumps(connection))


def push(vendor: str, body: Any, key: str = SECRET, method: str = "POST") -> PushAnswer:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    receiver = Receiver()
    try:
        return receiver.take(vendor, PushRequest(method, f"/webhooks/{vendor}", {"secret": key}, {}, data))
    finally:
        receiver.close()


@pytest.fixture
def night(set_clock: Callable[[str], None]) -> Callable[[str], None]:
    """What the source's DAG does, a minute after the last time."""
    minutes = count(1)

    def run(vendor: str) -> None:
        set_clock((datetime.fromisoformat(AT) + timedelta(minutes=next(minutes))).isoformat())
        landing.land(vendor, "events", run_id="test", until=dates.now())
        mapping.map_source(vendor, run_id="test")

    return run


def report(vendor: str, key: str, code: str = "", **changes: Any) -> dict[str, Any]:
    """A receipt as each vendor writes it; without a code it arrived."""
    serial = f"serial of {key}"
    if vendor == "sms_aliyun":
        row = {"phone_number": PHONE, "send_time": "2026-03-15 09:59:50", "report_time": "2026-03-15 09:59:58",
               "success": not code, "err_code": code or "DELIVERED", "err_msg": "", "sms_size": "1", "biz_id": serial, "out_id": key}  # fmt: skip
    else:
        row = {"user_receive_time": "2026-03-15 09:59:58", "nationcode": "86", "mobile": PHONE, "sid": serial,
               "report_status": "FAIL" if code else "SUCCESS", "errmsg": code or "DELIVRD", "description": ""}  # fmt: skip
    return row | changes


def reply(vendor: str, text: str, phone: str = PHONE) -> Any:
    if vendor == "sms_aliyun":
        return [
            {
                "phone_number": phone,
                "content": text,
                "send_time": "2026-03-15 09:59:00",
                "dest_code": "1069",
                "sequence_id": 7,
            }
        ]
    return {"extend": "", "mobile": phone, "nationcode": "86", "sign": "夜市", "text": text, "time": 1773539940}


def sent(db: psycopg.Connection[Row], vendor: str, *keys: str, state: str = "accepted") -> None:
    """Messages of a live run as delivery and the export leave them."""
    token = Tokenizer.from_settings().token("phone", PHONE)
    db.execute(
        "INSERT INTO push.campaign_runs (run_id, campaign, mode, as_of, as_of_at, config, config_hash, state, needs_approval, created_by,"
        " created_at, expires_at) VALUES ('r', 'r', 'live', '2026-03-14', %(at)s, '{}', 'x', 'sent', FALSE, 'test', %(at)s, %(at)s)"
        " ON CONFLICT DO NOTHING",
        {"at": AT},
    )
    for key in keys:
        is_known = state == "accepted"
        values = {
            "key": key,
            "vendor": vendor,
            "token": token,
            "state": state,
            "at": AT,
            "accepted": AT if is_known else None,
        }
        values["serial"] = f"serial of {key}" if is_known else None
        db.execute(
            "INSERT INTO push.messages (run_id, member_id, step, message_key, purpose, channel, account, address, template, language,"
            " variables, state, not_before, expires_at, queued_at, updated_at, accepted_at, platform_message_id) VALUES ('r', 1, %(key)s,"
            " %(key)s, 'marketing', %(vendor)s, %(vendor)s, %(token)s, 'gift', 'zh', '{}', %(state)s, %(at)s, %(at)s, %(at)s, %(at)s,"
            " %(accepted)s, %(serial)s)",
            values,
        )
        if is_known:
            db.execute(
                "INSERT INTO core.message_events (source_id, event_id, message_key, kind, occurred_at) VALUES (%s, %s, %s, 'accepted', %s)",
                (vendor, f"serial of {key}", key, AT),
            )


def rows(db: psycopg.Connection[Row], query: str) -> list[Row]:
    return db.execute(query).fetchall()  # type: ignore[arg-type]


def told(db: psycopg.Connection[Row]) -> list[tuple[str, str, str | None]]:
    found = rows(db, "SELECT message_key, kind, detail FROM core.message_events WHERE kind <> 'accepted' ORDER BY 1, 2")
    return [(row["message_key"], row["kind"], row["detail"]) for row in found]


# --------------------------------------------------------------------------------------------------------- receiving
@pytest.mark.parametrize(
    ("vendor", "answer"), [("sms_aliyun", {"code": 0, "msg": "ok"}), ("sms_tencent", {"result": 0, "errmsg": "OK"})]
)
def test_only_who_knows_the_secret_is_taken(db: psycopg.Connection[Row], vendor: str, answer: dict[str, Any]) -> None:
    body = [report(vendor, "k1"), report(vendor, "k2")]
    for key in ("", "wrong", SECRET.upper()):
        assert push(vendor, body, key).status == 403
    assert push(vendor, body, method="GET").status == 403
    assert one(db, "SELECT count(*) FROM raw.pushes") == 0
    assert one(db, "SELECT sum(refused_count) FROM raw.push_refusals") > 0
    taken = push(vendor, body)
    assert (taken.status, json.loads(taken.body), taken.content_type) == (200, answer, "application/json")
    assert one(db, "SELECT count(*) FROM raw.pushes") == 2
    push(vendor, body[::-1])  # repeated, in another order
    assert one(db, "SELECT count(*) FROM raw.pushes") == 2


@pytest.mark.parametrize("vendor", VENDORS)
def test_what_is_no_list_of_objects_is_told(vendor: str) -> None:
    assert push(vendor, b"<xml/>").status == 400
    assert push(vendor, ["text"]).status == 400


def test_a_connection_without_the_secret_stores_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_SMS_ALIYUN", json.dumps({"login": "id", "password": "key"}))
    with pytest.raises(ConfigError, match="push_secret is missing in extra"):
        push("sms_aliyun", [], key="")


@pytest.mark.parametrize("vendor", VENDORS)
def test_no_number_is_kept_in_clear(db: psycopg.Connection[Row], night: Callable[[str], None], vendor: str) -> None:
    push(vendor, [report(vendor, "k1")])
    push(vendor, reply(vendor, f"请打 {PHONE}"))
    night(vendor)
    kept = json.dumps(rows(db, "SELECT payload FROM raw.records"), default=str)
    kept += json.dumps(rows(db, "SELECT push_key FROM raw.pushes"))
    kept += json.dumps(rows(db, "SELECT payload FROM raw.rejects"), default=str)
    assert PHONE not in kept
    assert PHONE.encode() not in b"".join(bytes(row["body"]) for row in rows(db, "SELECT body FROM raw.pushes"))


@pytest.mark.parametrize("vendor", VENDORS)
def test_an_erasure_reaches_what_was_pushed(
    db: psycopg.Connection[Row], night: Callable[[str], None], vendor: str
) -> None:
    """The number as a field and inside somebody else's text; never before it was read, because it may be a withdrawal."""
    other = "10087654321"
    push(vendor, reply(vendor, "R"))
    push(vendor, reply(vendor, f"订单 12\n{PHONE}", phone=other))
    push(vendor, reply(vendor, "谢谢", phone=other))
    wanted = Tokenizer.from_settings().token("phone", PHONE)

    def erased() -> tuple[int, int, int]:
        with connect_vault() as vault:
            return astuple(erase(vault, [wanted], actor="test", reason="asked"))

    assert erased() == (0, 0, 2)
    assert one(db, "SELECT count(*) FROM raw.pushes") == 3
    night(vendor)
    assert one(db, "SELECT count(*) FROM core.consents WHERE NOT is_granted") > 0
    assert erased() == (1, 2, 0)
    assert one(db, "SELECT count(*) FROM raw.pushes") == 1
    assert erased() == (0, 0, 0)
    detail = one(db, "SELECT detail - 'reason' FROM push.audit_log WHERE detail ->> 'pushes' = '2'")
    assert detail == {"deleted": 1, "pushes": 2, "unread_pushes": 0}
    night(vendor)  # what is gone is missed by nobody
    assert one(db, "SELECT count(*) FROM raw.rejects WHERE resolved_at IS NULL") == 0


# ------------------------------------------------------------------------------------------------------------ receipts
@pytest.mark.parametrize(("vendor", "dead"), [("sms_aliyun", "MOBILE_NOT_ON_SERVICE"), ("sms_tencent", "BLACK")])
def test_receipts_settle_messages(
    db: psycopg.Connection[Row], night: Callable[[str], None], vendor: str, dead: str
) -> None:
    sent(db, vendor, "a", "b", "c", "d")
    push(vendor, [report(vendor, "a"), report(vendor, "b", "SP_UNKNOWN"), report(vendor, "c", dead)])
    night(vendor)
    assert told(db) == [
        ("a", "delivered", "success"),
        ("b", "failed", "SP_UNKNOWN"),
        ("c", "bounced", f"dead number: {dead}"),
    ]
    counts = collect_receipts()
    assert (counts["delivered"], counts["failed"], counts["suppressed"]) == (1, 2, 1)
    states = {row["message_key"]: row["state"] for row in rows(db, "SELECT message_key, state FROM push.messages")}
    assert states == {"a": "delivered", "b": "failed", "c": "failed", "d": "accepted"}
    (gone,) = rows(db, "SELECT channel, kind, address, reason FROM core.suppression_events")
    assert gone == {
        "channel": "sms",
        "kind": "phone",
        "reason": "bounced",
        "address": Tokenizer.from_settings().token("phone", PHONE),
    }
    night(vendor)  # read again by the overlap: nothing new
    collect_receipts()
    assert len(told(db)) == 3


def expose(db: psycopg.Connection[Row], vendor: str, key: str) -> None:
    db.execute(
        "INSERT INTO core.exposures (run_id, member_id, step, campaign, arm, channel, purpose, message_key, as_of, exposed_at,"
        " attribution_until) VALUES ('r', 1, %s, 'r', 'treatment', %s, 'marketing', %s, '2026-03-14', %s, '2026-03-22')",
        (key, vendor, key, AT),
    )


@pytest.mark.parametrize(("code", "state"), [("", "delivered"), ("SP_UNKNOWN", "failed")])
def test_a_receipt_clears_up_a_lost_answer(
    db: psycopg.Connection[Row], night: Callable[[str], None], code: str, state: str
) -> None:
    """Aliyun's receipt carries our key, so it finds a message whose answer never came."""
    sent(db, "sms_aliyun", "a", state="unknown")
    push("sms_aliyun", [report("sms_aliyun", "a", code)])
    night("sms_aliyun")
    assert told(db) == []  # the night has not exported the message yet
    expose(db, "sms_aliyun", "a")
    night("sms_aliyun")
    collect_receipts()
    assert one(db, "SELECT state FROM push.messages") == state
    assert one(db, "SELECT count(*) FROM raw.rejects WHERE resolved_at IS NULL") == 0


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_receipt_of_nobodys_message_waits(
    db: psycopg.Connection[Row], night: Callable[[str], None], vendor: str
) -> None:
    push(vendor, [report(vendor, "somebody else's")])
    night(vendor)
    (reject,) = rows(db, "SELECT reason FROM raw.rejects WHERE resolved_at IS NULL")
    assert reject["reason"] == "core.message_events: waiting for the message it belongs to"


@pytest.mark.parametrize("vendor", VENDORS)
def test_what_nobody_understands_is_kept_with_its_reason(
    db: psycopg.Connection[Row], night: Callable[[str], None], vendor: str
) -> None:
    push(vendor, [{"template_code": "SMS_1", "template_status": "approved"}])
    night(vendor)
    (reject,) = rows(db, "SELECT reason FROM raw.rejects WHERE resolved_at IS NULL")
    assert reject["reason"] == "core.message_events: neither a receipt nor a reply"


# ------------------------------------------------------------------------------------------------------------- replies
@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize(
    ("text", "refuses"),
    [("R", True), (" td。", True), ("t", True), ("退订", True), ("谢谢", False), ("Really?", False)],
)
def test_a_reply_that_refuses_ends_marketing(
    db: psycopg.Connection[Row], night: Callable[[str], None], vendor: str, text: str, refuses: bool
) -> None:
    push(vendor, reply(vendor, text))
    night(vendor)
    mapping.resolve_members(run_id="test")
    words = rows(
        db,
        "SELECT c.channel, c.purpose, c.is_granted, c.origin, i.kind, i.value FROM core.consents AS c JOIN core.identities AS i"
        " USING (identity_id)",
    )
    token = Tokenizer.from_settings().token("phone", PHONE)
    said: Mapping[str, Any] = {
        "channel": "sms",
        "purpose": "marketing",
        "is_granted": False,
        "origin": "person",
        "kind": "phone",
        "value": token,
    }
    assert words == ([said] if refuses else [])
    listed = rows(db, "SELECT channel, address, reason, until FROM push.suppressions")
    assert listed == (
        [{"channel": "sms", "address": token, "reason": "refused by reply", "until": None}] if refuses else []
    )
    assert one(db, "SELECT count(*) FROM raw.rejects") == 0


def test_the_words_of_refusal_can_be_changed() -> None:
    config = sources.source("sms_aliyun")
    options = config.module.Options.model_validate({"opt_out_words": ["N"], "dead_codes": ["X"]})
    assert options.is_refusal("n")  # type: ignore[attr-defined]
    assert not options.is_refusal("R")  # type: ignore[attr-defined]
