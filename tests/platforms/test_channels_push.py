"""JPush against the sandbox: one push per message whatever happens on the way, because its cid is kept before it is used."""

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import orjson
import psycopg
import pytest
import requests

from nightmarket import dates, landing, mapping, sources
from nightmarket.campaigns import push_receipts
from nightmarket.channels.base import Call, Content, Outcome
from nightmarket.channels.jpush import CID_LIFE, JPush
from nightmarket.dates import Window
from nightmarket.platforms import own_pages
from nightmarket.platforms.base import Slice
from nightmarket.settings import ConfigError, Credentials, credentials
from nightmarket.warehouse import Row

NOON = "2026-03-15T12:00:00+08:00"


def call(key: str, alias: str, text: str = "新品到店，来看看") -> Call:
    link = f"https://m.nightmarket.test/r/{key.replace('/', '%2F')}?s=x"
    return Call(key, (alias,), Content(text=text, subject="夜市"), link, link.replace("/r/", "/u/"))


def send(*calls: Call, account: Credentials | None = None, timeout: float = 5, together: bool = False) -> list[Outcome]:
    async def run() -> list[Outcome]:
        async with JPush(account or credentials("jpush"), connections=8, timeout_seconds=timeout) as channel:
            if together:
                return list(await asyncio.gather(*(channel.send(each) for each in calls)))
            return [await channel.send(each) for each in calls]

    return asyncio.run(run())


@pytest.fixture
def aliases(sandbox: Any) -> list[str]:
    found: list[str] = sandbox.access["jpush"]["aliases"]
    return found


@pytest.fixture
def fault(sandbox: Any) -> Callable[..., None]:
    def set_faults(*kinds: str, method: str = "v3/push", times: int = 1) -> None:
        body = [{"platform": "jpush", "method": method, "kind": kind, "times": times, "seconds": 0.6} for kind in kinds]
        sandbox.control("POST", "/faults", {"faults": body})

    return set_faults


def pushes(sandbox: Any) -> list[dict[str, Any]]:
    return [message for message in sandbox.control("GET", "/messages")["messages"] if message["channel"] == "jpush"]


def kept(db: psycopg.Connection[Row]) -> dict[str, str]:
    rows = db.execute("SELECT message_key, platform_key FROM push.platform_keys").fetchall()
    return {row["message_key"]: row["platform_key"] for row in rows}


def test_the_published_authorization_vector() -> None:
    account = Credentials("jpush", login="7d431e42dfa6a6d693ac2d04", password="5e987ac6d2e04d95a9d8f0d1")
    header = JPush(account, connections=1, timeout_seconds=1)._headers["Authorization"]
    assert header == "Basic N2Q0MzFlNDJkZmE2YTZkNjkzYWMyZDA0OjVlOTg3YWM2ZDJlMDRkOTVhOWQ4ZjBkMQ=="


def test_a_push_arrives_once_with_the_cid_that_was_kept(
    sandbox: Any, db: psycopg.Connection[Row], aliases: list[str]
) -> None:
    (outcome,) = send(call("a/1", aliases[0]))
    assert outcome.kind == "accepted"
    (push,) = pushes(sandbox)
    assert push["msg_id"] == outcome.platform_message_id
    assert push["cid"] == kept(db)["a/1"]
    assert push["link_key"] == "a/1"
    assert push["content"].startswith("夜市\n新品到店，来看看")


def test_the_identical_call_is_repeated_with_the_identical_cid(
    sandbox: Any, db: psycopg.Connection[Row], aliases: list[str], fault: Callable[..., None]
) -> None:
    """What the outbox does after a doubt: another worker makes the same call again."""
    fault("timeout_after")
    (first,) = send(call("a/1", aliases[0]), timeout=0.3)
    assert first.kind == "unknown"
    cid = kept(db)["a/1"]
    (second,) = send(call("a/1", aliases[0]))
    assert second.kind == "accepted"
    assert kept(db) == {"a/1": cid}
    (push,) = pushes(sandbox)
    assert push["msg_id"] == second.platform_message_id


@pytest.mark.parametrize(
    "kind", ["timeout_after", "http_500_after", "cut", "truncated_json", "garbage", "empty", "http_503"]
)
def test_every_doubt_ends_in_exactly_one_push(
    sandbox: Any, db: psycopg.Connection[Row], aliases: list[str], fault: Callable[..., None], kind: str
) -> None:
    fault(kind)
    outcomes = [send(call("a/1", aliases[0]), timeout=seconds)[0] for seconds in (0.3, 10, 10)]
    assert [outcome.kind for outcome in outcomes] == ["unknown", "accepted", "accepted"]
    assert len({outcome.platform_message_id for outcome in outcomes[1:]}) == 1
    assert len(pushes(sandbox)) == 1


def test_a_cid_of_yesterday_protects_nobody(
    sandbox: Any, db: psycopg.Connection[Row], aliases: list[str], fault: Callable[..., None], set_clock: Any
) -> None:
    fault("timeout_after")
    send(call("a/1", aliases[0]), timeout=0.3)
    later = dates.now() + CID_LIFE + timedelta(minutes=1)
    set_clock(later.isoformat())
    sandbox.control("POST", "/clock", {"now": (later + timedelta(hours=2)).isoformat()})
    (outcome,) = send(call("a/1", aliases[0]))
    assert (outcome.kind, outcome.code, outcome.is_final) == ("unknown", "cid_expired", True)
    assert len(pushes(sandbox)) == 1, "JPush would have pushed again"


def test_the_sandbox_forgets_a_cid_after_a_day(sandbox: Any, aliases: list[str]) -> None:
    access = sandbox.access["jpush"]
    auth = (access["app_key"], access["master_secret"])
    cid = requests.get(f"{access['base_url']}/v3/push/cid?count=1&type=push", auth=auth, timeout=10).json()["cidlist"][
        0
    ]
    body = {"cid": cid, "platform": "all", "audience": {"alias": aliases[:1]}, "notification": {"alert": "x"}}

    def push() -> str:
        answer = requests.post(f"{access['base_url']}/v3/push", json=body, auth=auth, timeout=10)
        return str(answer.json()["msg_id"])

    first = push()
    assert push() == first
    sandbox.control("POST", "/clock", {"now": "2026-03-16T03:00:00+08:00"})
    assert push() != first


def test_a_call_that_left_nothing_behind_may_be_a_first_one_again(
    sandbox: Any, db: psycopg.Connection[Row], aliases: list[str], fault: Callable[..., None], set_clock: Any
) -> None:
    fault("call_limit")
    (limited,) = send(call("a/1", aliases[0]))
    assert (limited.kind, limited.code, limited.retry_after) == ("retry", "429", 60)  # X-Rate-Limit-Reset
    assert kept(db) == {}
    set_clock((dates.now() + timedelta(days=2)).isoformat())
    sandbox.control("POST", "/clock", {"now": dates.now().isoformat()})
    (outcome,) = send(call("a/1", aliases[0]))
    assert outcome.kind == "accepted"


def test_a_refused_repeat_of_a_doubted_call_keeps_its_cid(
    sandbox: Any, db: psycopg.Connection[Row], aliases: list[str], fault: Callable[..., None]
) -> None:
    fault("timeout_after", "call_limit")
    first, second = [send(call("a/1", aliases[0]), timeout=seconds)[0] for seconds in (0.3, 10)]
    assert (first.kind, second.kind) == ("unknown", "retry")
    assert list(kept(db)) == ["a/1"]
    (third,) = send(call("a/1", aliases[0]))
    assert third.kind == "accepted"
    assert len(pushes(sandbox)) == 1


def test_many_messages_share_looks_into_the_database_and_cids(
    sandbox: Any, db: psycopg.Connection[Row], aliases: list[str]
) -> None:
    outcomes = send(*(call(f"a/{alias}", alias) for alias in aliases[:60]), together=True)
    assert {outcome.kind for outcome in outcomes} == {"accepted"}
    assert len(set(kept(db).values())) == 60
    assert sandbox.control("GET", "/counters")["requests"]["jpush"]["v3/push/cid"] == 1


def test_without_a_cid_nothing_is_sent(
    sandbox: Any, db: psycopg.Connection[Row], aliases: list[str], fault: Callable[..., None]
) -> None:
    fault("http_500", method="v3/push/cid")
    (outcome,) = send(call("a/1", aliases[0]))
    assert outcome.kind == "retry"
    assert kept(db) == {}
    assert pushes(sandbox) == []


def test_without_the_warehouse_nothing_is_sent(
    sandbox: Any, environment: str, aliases: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nightmarket import settings

    monkeypatch.setenv("NIGHTMARKET_WAREHOUSE_DSN", "postgresql://nobody:none@127.0.0.1:1/none")
    settings.get_settings.cache_clear()
    (outcome,) = send(call("a/1", aliases[0]))
    assert (outcome.kind, outcome.code) == ("retry", "warehouse")
    assert pushes(sandbox) == []


@pytest.mark.parametrize(
    ("alias", "text", "kind", "code", "suppress"),
    [
        ("m999999", "你好", "refused", "1011", "no device"),
        ("王小明 🎉", "你好", "refused", "alias", "invalid alias"),
        ("", "你好", "refused", "alias", "invalid alias"),
        (None, "长" * 2000, "refused", "1005", ""),
        (None, "", "pause", "1003", ""),
    ],
)
def test_what_a_refusal_means(
    sandbox: Any, db: psycopg.Connection[Row], aliases: list[str], alias: str | None, text: str, kind: str, code: str,
    suppress: str,
) -> None:  # fmt: skip
    (outcome,) = send(call("a/1", aliases[0] if alias is None else alias, text))
    assert (outcome.kind, outcome.code, outcome.suppress) == (kind, code, suppress)
    assert pushes(sandbox) == []


def test_a_wrong_secret_pauses_the_channel(sandbox: Any, db: psycopg.Connection[Row], aliases: list[str]) -> None:
    right = credentials("jpush")
    (outcome,) = send(call("a/1", aliases[0]), account=Credentials("jpush", right.host, right.login, "wrong"))
    assert (outcome.kind, outcome.code) == ("pause", "1004")
    assert "Master Secret" in outcome.message


def test_options_of_the_connection_are_sent_and_checked() -> None:
    account = Credentials(
        "jpush", login="k", password="s", extra={"options": '{"classification": 1}', "time_to_live": "60"}
    )
    body = orjson.loads(JPush(account, connections=1, timeout_seconds=1).body(call("a/1", "m1"), "cid-1"))
    assert body["options"] == {"time_to_live": 60, "apns_production": True, "classification": 1}
    with pytest.raises(ConfigError, match=r"extra\.options must be a JSON object"):
        JPush(Credentials("jpush", login="k", password="s", extra={"options": "x"}), connections=1, timeout_seconds=1)
    with pytest.raises(ConfigError, match=r"extra\.time_to_live must be seconds"):
        JPush(
            Credentials("jpush", login="k", password="s", extra={"time_to_live": "1d"}),
            connections=1,
            timeout_seconds=1,
        )
    with pytest.raises(ConfigError, match="Master Secret"):
        JPush(Credentials("jpush", login="k"), connections=1, timeout_seconds=1)


def test_receipts_become_facts(sandbox: Any, db: psycopg.Connection[Row], aliases: list[str], set_clock: Any) -> None:
    outcomes = send(*(call(f"a/{alias}", alias) for alias in aliases), together=True)
    in_the_outbox(
        db, [(f"a/{alias}", alias, o.platform_message_id) for alias, o in zip(aliases, outcomes, strict=False)]
    )
    assert push_receipts.collect(db) == 0, "no phone has answered yet"
    set_clock("2026-03-15T04:00:00+08:00")
    sandbox.control("POST", "/clock", {"now": "2026-03-15T04:00:00+08:00"})
    arrived = push_receipts.collect(db)
    assert 0.7 * len(aliases) < arrived < len(aliases), "a phone that is off does not answer, and that is no failure"
    rows = db.execute("SELECT source_id, kind, event_id, message_key FROM core.message_events").fetchall()
    assert {(row["source_id"], row["kind"]) for row in rows} == {("jpush", "delivered")}
    assert len(rows) == arrived
    assert push_receipts.collect(db) == 0, "asked for again, nothing is counted twice"


def test_a_report_that_does_not_come_is_asked_for_again(
    sandbox: Any, db: psycopg.Connection[Row], aliases: list[str], fault: Callable[..., None]
) -> None:
    (outcome,) = send(call("a/1", aliases[0]))
    in_the_outbox(db, [("a/1", aliases[0], outcome.platform_message_id)])
    fault("http_500", method="v3/received/detail")
    assert push_receipts.collect(db) == 0


def test_a_form_tells_the_alias_and_the_contact_and_what_they_allow(
    db: psycopg.Connection[Row], set_clock: Any
) -> None:
    set_clock(NOON)
    at = datetime.fromisoformat(NOON) - timedelta(hours=1)
    said = [{"channel": name, "purpose": "marketing", "granted": True} for name in ("push", "wecom")]
    form = {"openid": "oBOUND", "mall_id": "m000123", "wecom_external_id": "wmSIM1", "consents": said}
    bad = {"openid": "oOTHER", "mall_id": "no alias 🎉", "wecom_external_id": "no id", "consents": said[:1]}
    events = [
        {"event_id": f"b{number}", "kind": "binding", "received_at": at.isoformat(), "data": data}
        for number, data in enumerate((form, bad))
    ]
    loader = landing.Loader(db, sources.source("own_pages"), own_pages.STREAM, "test", False)
    loader.read(Slice("received", Window(at, at + timedelta(days=1)), lambda: iter([events])), None)
    mapping.map_source("own_pages", run_id="test")
    rows = db.execute(
        "SELECT i.kind, i.value, c.channel FROM core.identities AS i LEFT JOIN core.consents AS c USING (identity_id)"
        " ORDER BY i.kind, i.value, c.channel"
    ).fetchall()
    assert [(row["kind"], row["value"], row["channel"]) for row in rows] == [
        ("mall_id", "m000123", "push"),
        ("wechat_openid", "oBOUND", None),
        ("wechat_openid", "oOTHER", "push"),  # no alias on the form: it is about who filled it in
        ("wecom_external_id", "wmSIM1", "wecom"),
    ]


def in_the_outbox(db: psycopg.Connection[Row], accepted: list[tuple[str, str, str]]) -> None:
    """Messages as the outbox leaves them after their call."""
    now = datetime.fromisoformat(NOON) - timedelta(hours=9, minutes=30)
    db.execute(
        "INSERT INTO push.campaign_runs (run_id, campaign, mode, as_of, as_of_at, config, config_hash, state, created_by, created_at,"
        " expires_at) VALUES ('run-1', 'c', 'live', '2026-03-14', %(now)s, '{}', '', 'sent', 'test', %(now)s, %(now)s)",
        {"now": now},
    )
    for number, (key, alias, msg_id) in enumerate(accepted):
        db.execute(
            "INSERT INTO push.messages (message_key, run_id, member_id, step, channel, account, purpose, address, template, language,"
            " variables, state, not_before, expires_at, platform_message_id, queued_at, accepted_at, updated_at)"
            " VALUES (%(key)s, 'run-1', %(member)s, 'send', 'jpush', 'jpush', 'marketing', %(alias)s, 't', 'zh', '{}', 'accepted',"
            " %(now)s, %(now)s, %(msg_id)s, %(now)s, %(now)s, %(now)s)",
            {"key": key, "member": number + 1, "alias": alias, "msg_id": msg_id, "now": now},
        )
