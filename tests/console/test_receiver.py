"""The webhook archive over real HTTP with a real PostgreSQL: signed pushes are stored first, everything else is refused."""

import base64
import contextlib
import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlencode

import psycopg
import pytest
import requests
import uvicorn
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from nightmarket import dates, settings
from nightmarket.console.app import create_app
from nightmarket.console.receiver import BODY_BYTES
from nightmarket.dates import Window
from nightmarket.landing import Loader
from nightmarket.platforms import own_pages, wechat_push, youzan
from nightmarket.platforms.base import PushRequest
from nightmarket.settings import ConfigError, Credentials
from nightmarket.sources import source

TOKEN, APPID = "push-token-of-the-test", "wxsim0000000000001"
AES_KEY = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG"
FOLLOW = (
    "<xml><ToUserName><![CDATA[gh_sim000001]]></ToUserName><FromUserName><![CDATA[oSIM0001]]></FromUserName>"
    "<CreateTime>1700000000</CreateTime><MsgType><![CDATA[event]]></MsgType><Event><![CDATA[subscribe]]></Event>"
    "<EventKey><![CDATA[qrscene_store07]]></EventKey></xml>"
)
PAGES_SECRET = "a secret of our own pages"


@dataclass
class Console:
    url: str

    def push(self, source_id: str, body: bytes | str, query: dict[str, str] | None = None, **headers: str) -> Any:
        data = body.encode() if isinstance(body, str) else body
        return requests.post(
            f"{self.url}/webhooks/{source_id}",
            params=query,
            data=data,
            headers=headers,
            timeout=10,
            allow_redirects=False,
        )

    def wechat(self, text: str, nonce: str = "nonce1", token: str = TOKEN) -> Any:
        return self.push("wechat_official", text, signed(nonce, token))

    def sealed(self, text: str, *, appid: str = APPID, key: str = AES_KEY, signature: str | None = None) -> Any:
        inside = seal(text, appid, key)
        query = signed() | {"encrypt_type": "aes"}
        query["msg_signature"] = signature or sha1(TOKEN, query["timestamp"], query["nonce"], inside)
        body = f"<xml><ToUserName><![CDATA[gh_sim000001]]></ToUserName><Encrypt><![CDATA[{inside}]]></Encrypt></xml>"
        return self.push("wechat_official", body, query)


def sha1(*parts: str) -> str:
    return hashlib.sha1("".join(sorted(parts)).encode()).hexdigest()


def signed(nonce: str = "nonce1", token: str = TOKEN) -> dict[str, str]:
    timestamp = "1700000000"
    return {"signature": sha1(token, timestamp, nonce), "timestamp": timestamp, "nonce": nonce}


def seal(text: str, appid: str, key: str) -> str:
    """WeChat's side of AES mode."""
    secret, message = base64.b64decode(key + "="), text.encode()
    clear = b"0123456789abcdef" + len(message).to_bytes(4, "big") + message + appid.encode()
    padding = 32 - len(clear) % 32
    cipher = Cipher(algorithms.AES(secret), modes.CBC(secret[:16])).encryptor()
    return base64.b64encode(cipher.update(clear + bytes([padding]) * padding) + cipher.finalize()).decode()


def connect_wechat(monkeypatch: pytest.MonkeyPatch, **extra: str) -> None:
    connection = {"conn_type": "http", "host": "http://127.0.0.1:1", "login": APPID, "password": "x", "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_WECHAT_OFFICIAL", json.dumps(connection))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def console(pg: Any, environment: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Console]:
    """The console as a server of its own, whose receiver may add pushes and nothing else."""
    pg.server.grant_logins({"nightmarket_receiver": pg.password})
    monkeypatch.setenv("NIGHTMARKET_RECEIVER_DSN", pg.dsn(environment, "nightmarket_receiver"))
    settings.get_settings.cache_clear()
    connect_wechat(monkeypatch, push_token=TOKEN)
    pages = {"conn_type": "http", "host": "http://127.0.0.1:1", "login": "pages-key", "password": PAGES_SECRET}
    monkeypatch.setenv("AIRFLOW_CONN_OWN_PAGES", json.dumps(pages))
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(create_app(), port=port, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 90
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield Console(f"http://127.0.0.1:{port}")
    server.should_exit = True
    thread.join(10)


def pushes(db: psycopg.Connection[Any]) -> list[Any]:
    return db.execute("SELECT * FROM raw.pushes ORDER BY push_id").fetchall()


def landed(db: psycopg.Connection[Any], source_id: str) -> list[dict[str, Any]]:
    """What the nightly stream is given."""
    config = source(source_id)
    loader = Loader(db, config, config.all_streams()[next(iter(config.streams))], "test", dry_run=True)
    now = dates.now()
    pages = loader._pushes(Window(now - timedelta(hours=1), now + timedelta(seconds=1)))
    return [record for page in pages for record in page]


# ------------------------------------------------------------------------------------------------------------- wechat
def test_the_published_vectors() -> None:
    assert wechat_push.matches("f21891de399b4e33a1a93c9a7b8a8fffb5a443ff", "test", "1410685589", "test")
    assert wechat_push.matches("1adac743bcd498ba019f541d0378232e187cec7b", "simtoken", "1700000000", "nonce123")
    sealed = (
        "Q3stYC6hdFzMh9T8HCvyDBqIon/HaF+b0Ly71Sp+CMxIIXPHLapws2pJj7zEtmQta8XYEEK+47RR/BjE8nC5dXKyph2Z5fowkhTWWUnDa4mU"
        "+P5825tACwSDCRsDUji9FzNmgzML6lXafa5iN2coifydAkdiLg/frHzDjuyZbCXMpO7vxqDFQI6S+X5oq2C9Ql5uNRuVvUeTvMv5SregpCbscm4W"
        "k0bERO2myC0etEPUMGlGvslhRiIju7P26phFC2KW+rVhGbExoQaUUqULvh985qMy4yCQI4hy4WbZwfpbNwWVvsVLvV9Xe6deWQPDGJzofi+dw0fC"
        "i4u5hI6Edp28DbBy35izaApE3AdxoBx4fvtQm89DggGO9o5NvF+B88cXYq4P3fD+I+4ysG9Q58rVeAtWvuFMPSuIVHsZ5oIKPstq0iTJmYRk5uAt"
        "O6yVK/RhCNmpwW6jqb9iU9injA=="
    )
    request = PushRequest(
        "POST",
        "/webhooks/x",
        {"timestamp": "1700000000", "nonce": "nonce123", "msg_signature": "94fe35aee61308bbb5270805f8f697114a88b313"},
        {},
        f"<xml><ToUserName>gh</ToUserName><Encrypt>{sealed}</Encrypt></xml>".encode(),
    )
    credentials = Credentials("x", login=APPID, extra={"push_token": "simtoken", "encoding_aes_secret": AES_KEY})
    (push,) = wechat_push.receive(credentials, request).pushes
    assert push.key == "oSIM000000000000000000000001/1700000000/TEMPLATESENDJOBFINISH/200163836"
    assert json.loads(push.body)["fields"]["Status"] == "success"


def test_the_address_check_gets_its_echo(console: Console, db: psycopg.Connection[Any]) -> None:
    url = f"{console.url}/webhooks/wechat_official"
    good = requests.get(url, params=signed() | {"echostr": "5837397"}, timeout=10)
    assert (good.status_code, good.text) == (200, "5837397")
    bad = requests.get(url, params=signed(token="another") | {"echostr": "5837397"}, timeout=10)
    assert bad.status_code == 403
    assert "5837397" not in bad.text
    assert pushes(db) == []


def test_a_push_is_stored_encrypted_and_read_by_the_night(console: Console, db: psycopg.Connection[Any]) -> None:
    answer = console.wechat(FOLLOW)
    assert (answer.status_code, answer.text) == (200, "success")
    (row,) = pushes(db)
    assert row["push_key"] == "oSIM0001/1700000000/subscribe/qrscene_store07"
    assert b"oSIM0001" not in bytes(row["body"])
    (record,) = landed(db, "wechat_official")
    assert record["push_key"] == row["push_key"]
    assert datetime.fromisoformat(record["received_at"]) == row["received_at"]
    assert record["body"]["xml"] == FOLLOW
    assert record["body"]["fields"]["EventKey"] == "qrscene_store07"


def test_the_same_push_again_is_one_row(console: Console, db: psycopg.Connection[Any]) -> None:
    assert {console.wechat(FOLLOW, nonce).status_code for nonce in ("a", "b", "c", "c")} == {200}
    assert len(pushes(db)) == 1
    later = FOLLOW.replace("1700000000", "1700000001")
    console.wechat(later)
    assert [row["push_key"].split("/")[1] for row in pushes(db)] == ["1700000000", "1700000001"]


def test_two_messages_of_one_second_are_two(console: Console, db: psycopg.Connection[Any]) -> None:
    text = FOLLOW.replace("<MsgType><![CDATA[event]]>", "<MsgType><![CDATA[text]]>").replace("subscribe", "").replace("qrscene_store07", "")  # fmt: skip
    for number in (23238164547, 23238164548):
        console.wechat(text.replace("</xml>", f"<MsgId>{number}</MsgId></xml>"))
    assert len(pushes(db)) == 2


@pytest.mark.parametrize(
    "query", [signed(token="another"), signed() | {"nonce": "other"}, signed() | {"signature": ""}, {}]
)
def test_a_bad_signature_is_refused_and_counted(
    console: Console, db: psycopg.Connection[Any], query: dict[str, str]
) -> None:
    for _ in range(3):
        assert console.push("wechat_official", FOLLOW, query).status_code == 403
    assert pushes(db) == []
    rows = db.execute("SELECT source_id, refused_count FROM raw.push_refusals").fetchall()
    assert [tuple(row.values()) for row in rows] == [
        ("wechat_official", 1)
    ]  # the other two are written within a minute


def test_aes_mode(console: Console, db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    connect_wechat(monkeypatch, push_token=TOKEN, encoding_aes_secret=AES_KEY)
    assert console.sealed(FOLLOW).status_code == 200
    assert landed(db, "wechat_official")[0]["body"]["xml"] == FOLLOW
    other_key = AES_KEY[::-1]
    for refused in (
        console.sealed(FOLLOW, signature="0" * 40),
        console.sealed(FOLLOW, appid="wxsomebodyelse0001"),
        console.sealed(FOLLOW, key=other_key),
        console.wechat(FOLLOW.replace("1700000000", "1700000009")),  # the plain form, although a key is set
    ):
        assert refused.status_code == 403
    assert len(pushes(db)) == 1


def test_aes_in_compatible_mode_reads_the_sealed_half_only(
    console: Console, db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    connect_wechat(monkeypatch, push_token=TOKEN, encoding_aes_secret=AES_KEY)
    inside = seal(FOLLOW, APPID, AES_KEY)
    query = signed()
    query["msg_signature"] = sha1(TOKEN, query["timestamp"], query["nonce"], inside)
    forged = FOLLOW.replace("oSIM0001", "oFORGED").replace("</xml>", f"<Encrypt>{inside}</Encrypt></xml>")
    assert console.push("wechat_official", forged, query).status_code == 200
    assert [row["push_key"].split("/")[0] for row in pushes(db)] == ["oSIM0001"]


def test_a_changed_secret_is_seen_without_a_restart(
    console: Console, db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert console.wechat(FOLLOW).status_code == 200
    connect_wechat(monkeypatch, push_token="a new token")
    time.sleep(2.1)  # FRESH_SECONDS
    assert console.wechat(FOLLOW, token="a new token").status_code == 200
    assert console.wechat(FOLLOW).status_code == 403


@pytest.mark.parametrize(
    "text",
    [
        "this is no XML",
        "<xml><FromUserName>x</FromUserName>",
        '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><xml><Content>&b;</Content></xml>',
        "[1, 2]",
        "{",
    ],
)
def test_what_is_signed_but_unreadable_is_kept_for_a_person(
    console: Console, db: psycopg.Connection[Any], text: str
) -> None:
    assert console.wechat(text).status_code == 200
    (record,) = landed(db, "wechat_official")
    assert record["push_key"].startswith("text/")
    assert record["body"]["fields"] == {}


def test_a_push_in_json(console: Console, db: psycopg.Connection[Any]) -> None:
    event = {
        "FromUserName": "oSIM0002",
        "CreateTime": 1700000000,
        "MsgType": "event",
        "Event": "subscribe_msg_popup_event",
    }
    console.wechat(json.dumps(event | {"List": [{"TemplateId": "t1", "SubscribeStatusString": "accept"}]}))
    (record,) = landed(db, "wechat_official")
    assert record["body"]["fields"]["CreateTime"] == "1700000000"
    assert record["body"]["fields"]["List"] == [{"TemplateId": "t1", "SubscribeStatusString": "accept"}]


def test_where_somebody_is_is_not_kept(console: Console, db: psycopg.Connection[Any]) -> None:
    assert console.wechat(FOLLOW.replace("subscribe", "LOCATION")).status_code == 200
    assert pushes(db) == []


def test_four_byte_names_and_nul(console: Console, db: psycopg.Connection[Any]) -> None:
    text = FOLLOW.replace("qrscene_store07", "𠮷野家😀")
    assert console.wechat(text).status_code == 200
    assert landed(db, "wechat_official")[0]["body"]["fields"]["EventKey"] == "𠮷野家😀"
    assert console.push("wechat_official", b"{\x00\xff", signed()).status_code == 200


# ---------------------------------------------------------------------------------------------------------- own pages
def own(event: dict[str, Any], secret: str = PAGES_SECRET, shift: int = 0, path: str = "/webhooks/own_pages") -> Any:
    body = json.dumps(event).encode()
    timestamp = str(int(dates.now().timestamp()) + shift)
    return body, {
        "X-Pages-Key": "pages-key",
        "X-Pages-Timestamp": timestamp,
        "X-Pages-Signature": own_pages.sign(secret, "POST", path, timestamp, body),
    }


def test_our_pages_push_too(console: Console, db: psycopg.Connection[Any]) -> None:
    event = {"event_id": "e1", "kind": "click", "received_at": "2026-03-15T01:00:00+08:00", "data": {"key": "k"}}
    body, headers = own({"events": [event, event | {"event_id": "e2"}]})
    assert console.push("own_pages", body, **headers).status_code == 200
    assert console.push("own_pages", body, **headers).status_code == 200
    assert [row["push_key"] for row in pushes(db)] == ["e1", "e2"]
    assert landed(db, "own_pages")[0]["body"] == event
    tampered = body.replace(b'"k"', b'"x"').replace(b"e1", b"e9")
    assert console.push("own_pages", tampered, **headers).status_code == 403
    for wrong in (own(event, secret="another"), own(event, shift=-400), own(event, path="/webhooks/other")):
        assert console.push("own_pages", wrong[0], **wrong[1]).status_code == 403
    without_id, headers = own({"kind": "click"})
    assert console.push("own_pages", without_id, **headers).status_code == 400
    assert len(pushes(db)) == 2


# ------------------------------------------------------------------------------------------------------------- youzan
def test_youzan_signs_with_md5(console: Console, db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    shop = {"conn_type": "http", "host": "http://127.0.0.1:1", "login": "client-id", "password": "client-secret"}
    monkeypatch.setenv("AIRFLOW_CONN_YOUZAN_MALL", json.dumps(shop))
    body = json.dumps({"msg_id": "m-1", "type": "trade_TradePaid", "id": "E20260315", "sendCount": 1}).encode()
    headers = {youzan.PUSH_HEADER: hashlib.md5(b"client-id" + body + b"client-secret").hexdigest()}
    answer = console.push("youzan_mall", body, **headers)
    assert (answer.status_code, answer.json()["code"]) == (200, 0)
    assert console.push("youzan_mall", body, **headers).status_code == 200
    assert console.push("youzan_mall", body.replace(b"E2026", b"E2027"), **headers).status_code == 403
    (record,) = landed(db, "youzan_mall")
    assert (record["push_key"], record["body"]["id"]) == ("m-1", "E20260315")


# -------------------------------------------------------------------------------------------------------------- house
def test_unknown_sources_and_sources_that_take_no_pushes(console: Console) -> None:
    for name in ("nobody", "taobao_flagship", "%00", "x" * 5000):
        assert console.push(name, FOLLOW, signed()).status_code == 404


def test_everything_else_still_asks_who_is_there(console: Console) -> None:
    for page in ("", "runs", "run?id=x", "sources"):
        assert requests.get(f"{console.url}/{page}", timeout=10).status_code == 401
    assert requests.put(f"{console.url}/webhooks/wechat_official", params=signed(), timeout=10).status_code == 405


def test_too_large_a_body_is_not_read(console: Console, db: psycopg.Connection[Any]) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(BODY_BYTES // 65536 + 2):
            yield b"x" * 65536

    assert console.push("wechat_official", b"x" * (BODY_BYTES + 1), signed()).status_code == 413
    url = f"{console.url}/webhooks/wechat_official"
    with contextlib.suppress(requests.ConnectionError):  # without a length: the sender may see a closed connection
        assert requests.post(url, params=signed(), data=chunks(), timeout=10).status_code == 413
    assert pushes(db) == []


def test_a_database_that_is_down_is_503_and_the_retry_comes_in(
    console: Console, db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = os.environ["NIGHTMARKET_RECEIVER_DSN"]
    monkeypatch.setenv("NIGHTMARKET_RECEIVER_DSN", f"postgresql://somebody:pw@127.0.0.1:{free_port()}/nowhere")
    settings.get_settings.cache_clear()
    answer = console.wechat(FOLLOW)
    assert answer.status_code == 503
    assert "somebody" not in answer.text
    monkeypatch.setenv("NIGHTMARKET_RECEIVER_DSN", good)
    settings.get_settings.cache_clear()
    assert console.wechat(FOLLOW).status_code == 200
    assert len(pushes(db)) == 1


def test_a_database_that_does_not_answer_is_503_in_time(
    console: Console, pg: Any, environment: str, db: psycopg.Connection[Any]
) -> None:
    with psycopg.connect(pg.server.dsn(environment)) as owner:
        owner.execute("LOCK TABLE raw.pushes IN ACCESS EXCLUSIVE MODE")
        started = time.monotonic()
        assert console.wechat(FOLLOW).status_code == 503
        assert time.monotonic() - started < 4.5
    assert console.wechat(FOLLOW).status_code == 200
    assert len(pushes(db)) == 1


def test_a_restarted_database_costs_nothing(
    console: Console, pg: Any, environment: str, db: psycopg.Connection[Any]
) -> None:
    console.wechat(FOLLOW)
    with psycopg.connect(pg.server.dsn("postgres"), autocommit=True) as owner:
        owner.execute(
            "SELECT pg_terminate_backend(pid, 2000) FROM pg_stat_activity WHERE application_name = 'nightmarket-receiver'"
        )
    assert console.wechat(FOLLOW.replace("1700000000", "1700000001")).status_code == 200
    assert len(pushes(db)) == 2


def test_a_connection_without_a_token_is_503_not_an_open_door(
    console: Console, db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    connect_wechat(monkeypatch)
    assert console.wechat(FOLLOW, token="").status_code == 503
    connect_wechat(monkeypatch, push_token=TOKEN, encoding_aes_secret="too short")
    assert console.sealed(FOLLOW).status_code == 503
    assert pushes(db) == []
    with pytest.raises(ConfigError, match="43 characters"):
        wechat_push.aes_key("x", "too short")


def test_the_receiver_may_add_a_push_and_nothing_else(console: Console, environment: str) -> None:
    with psycopg.connect(os.environ["NIGHTMARKET_RECEIVER_DSN"], autocommit=True) as connection:
        for statement in (
            "SELECT body FROM raw.pushes", "DELETE FROM raw.pushes", "UPDATE raw.pushes SET source_id = 'x'",
            "SELECT 1 FROM core.orders", "SELECT 1 FROM raw.records", "SELECT token FROM vault.secrets",
            "SELECT 1 FROM ops.tokens",
        ):  # fmt: skip
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)


def test_a_push_cannot_be_moved_to_another_source(console: Console, db: psycopg.Connection[Any]) -> None:
    console.wechat(FOLLOW)
    db.execute("UPDATE raw.pushes SET source_id = 'own_pages'")
    with pytest.raises(ConfigError, match="altered"):
        landed(db, "own_pages")


@dataclass
class Timing:
    milliseconds: list[float] = field(default_factory=list)

    def quantile(self, share: float) -> float:
        ranked = sorted(self.milliseconds)
        return ranked[min(int(len(ranked) * share), len(ranked) - 1)]


def test_a_push_is_answered_fast(console: Console, db: psycopg.Connection[Any]) -> None:
    """300 pushes over one connection and 300 over four at a time; WeChat waits five seconds."""
    alone, together = Timing(), Timing()

    def send(numbers: range, timing: Timing) -> None:
        with requests.Session() as session:
            for number in numbers:
                text = FOLLOW.replace("1700000000", str(1_700_000_000 + number))
                started = time.perf_counter()
                url = f"{console.url}/webhooks/wechat_official?{urlencode(signed())}"
                assert session.post(url, data=text.encode(), timeout=10).status_code == 200
                timing.milliseconds.append((time.perf_counter() - started) * 1000)

    send(range(300), alone)
    parts = [threading.Thread(target=send, args=(range(1000 + 75 * k, 1075 + 75 * k), together)) for k in range(4)]
    for part in parts:
        part.start()
    for part in parts:
        part.join()
    for name, timing in (("one at a time", alone), ("four at a time", together)):
        print(f"{name}: p50 {timing.quantile(0.5):.1f} ms, p99 {timing.quantile(0.99):.1f} ms")  # shown with -s
    assert len(pushes(db)) == 600
    assert max(alone.quantile(0.5), together.quantile(0.5)) < 500
    assert max(alone.quantile(0.99), together.quantile(0.99)) < 4500, (
        "or WeChat has gone; a tenth of it on a quiet machine"
    )


# ---------------------------------------------------------------------------------------------------------------- sms
def test_a_vendor_of_sms_is_known_by_the_secret_in_its_address(
    console: Console, db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    account = {"login": "id", "password": "key", "extra": {"push_secret": "geheim/+&"}}
    monkeypatch.setenv("AIRFLOW_CONN_SMS_ALIYUN", json.dumps(account))
    body = json.dumps(
        [{"phone_number": "10012345678", "success": True, "err_code": "DELIVERED", "biz_id": "1^0", "out_id": "k"}]
    )
    assert console.push("sms_aliyun", body, {"secret": "guess"}).status_code == 403
    assert console.push("sms_aliyun", body).status_code == 403
    answer = console.push("sms_aliyun", body, {"secret": "geheim/+&"})
    assert (answer.status_code, answer.json()) == (200, {"code": 0, "msg": "ok"})
    (row,) = pushes(db)
    assert b"10012345678" not in bytes(row["body"])
    (record,) = landed(db, "sms_aliyun")
    assert record["body"]["out_id"] == "k"
