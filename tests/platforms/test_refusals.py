"""What a platform refuses or fails to do becomes one sentence, and what can pass is tried again. Over HTTP."""

import json
import os
from typing import Any

import pytest

from nightmarket import dates, landing, sources
from nightmarket.platforms import base
from nightmarket.platforms.base import AuthError, BadPayload, PlatformDown, RateLimited

STREAMS = [("taobao_flagship", "rates"), ("wechat_official", "followers"), ("own_pages", "events")]
PLATFORM = {"taobao_flagship": "taobao", "wechat_official": "wechat_official", "own_pages": "own_pages"}


def fault(sandbox: Any, platform: str, kind: str, **more: Any) -> None:
    sandbox.control("POST", "/faults", {"faults": [{"platform": platform, "kind": kind, **more}]})


def land(source: str, stream: str) -> landing.LandingSummary:
    return landing.land(source, stream, run_id="r", until=dates.now())


def change_connection(monkeypatch: pytest.MonkeyPatch, source: str, **changes: Any) -> None:
    variable = f"AIRFLOW_CONN_{source.upper()}"
    connection = json.loads(os.environ[variable])
    extra = changes.pop("extra", {})
    connection |= changes
    if extra:
        connection["extra"] = connection.get("extra", {}) | extra
    monkeypatch.setenv(variable, json.dumps(connection))


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses between tries are noted, not waited for."""
    waits: list[float] = []
    monkeypatch.setattr(base.time, "sleep", waits.append)
    original = base.Transport.__init__

    def quick(self: base.Transport, platform: str, **options: Any) -> None:
        original(self, platform, **(options | {"sleep": waits.append}))

    monkeypatch.setattr(base.Transport, "__init__", quick)
    return waits


@pytest.mark.parametrize(
    ("source", "stream", "changes", "words"),
    [
        ("taobao_flagship", "rates", {"password": "n0t-it"}, "check the application secret"),
        ("taobao_flagship", "rates", {"login": "1"}, "not known to TOP"),
        ("taobao_flagship", "rates", {"extra": {"session_token": "s0ld-out"}}, "let the shop's owner authorise the application again"),
        ("wechat_official", "followers", {"password": "n0t-it"}, "the app secret is wrong"),
        ("wechat_official", "followers", {"login": "wx0"}, "the appid is not known"),
        ("own_pages", "events", {"password": "n0t-it"}, "the signature is refused"),
    ],
)  # fmt: skip
def test_wrong_credentials_say_what_to_do_and_show_none(
    db: Any,
    sandbox: Any,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    stream: str,
    changes: dict[str, Any],
    words: str,
) -> None:
    secrets = [json.loads(os.environ[f"AIRFLOW_CONN_{source.upper()}"])["password"], "n0t-it", "s0ld-out"]
    change_connection(monkeypatch, source, **changes)
    with pytest.raises(AuthError) as caught:
        land(source, stream)
    sentence = str(caught.value)
    assert words in sentence
    assert sentence.startswith(f"{PLATFORM[source]}, ")
    assert not any(secret in sentence for secret in secrets)


@pytest.mark.parametrize("sign_method", ["md5", "hmac", "hmac-sha256"])
def test_every_signature_is_accepted(
    environment: str, sandbox: Any, monkeypatch: pytest.MonkeyPatch, sign_method: str
) -> None:
    change_connection(monkeypatch, "taobao_flagship", extra={"sign_method": sign_method})
    assert "works for shop" in landing.check_source("taobao_flagship")


def test_a_session_that_ends_in_mid_run_keeps_what_was_read(db: Any, sandbox: Any) -> None:
    fault(sandbox, "taobao", "expired_session", after=30, times=-1)
    with pytest.raises(AuthError, match="session is not valid any more"):
        land("taobao_flagship", "trades")
    read = db.execute("SELECT count(*) AS n FROM raw.records").fetchone()["n"]
    assert read > 0
    sandbox.control("POST", "/faults", {"faults": []})
    summary = land("taobao_flagship", "trades")
    total = db.execute("SELECT count(*) AS n FROM raw.heads").fetchone()["n"]
    assert summary.changed == total - read, "what was in raw already was written again"
    assert total == sandbox.control("GET", "/truth")["trades"]


def test_an_expired_wechat_token_is_fetched_once_more(db: Any, sandbox: Any) -> None:
    fault(sandbox, "wechat_official", "expired_session", method="cgi-bin/user/info/batchget", times=1)
    summary = land("wechat_official", "followers")
    assert summary.changed == sandbox.control("GET", "/truth")["followers"]


def test_a_wechat_token_that_is_always_refused_ends_the_run(db: Any, sandbox: Any) -> None:
    fault(sandbox, "wechat_official", "expired_session", method="cgi-bin/user/get", times=-1)
    with pytest.raises(AuthError, match="access token has expired"):
        land("wechat_official", "followers")
    asked = sandbox.control("GET", "/counters")["requests"]["wechat_official"]
    assert asked["cgi-bin/stable_token"] == 2


@pytest.mark.parametrize(("source", "stream"), STREAMS)
@pytest.mark.parametrize("kind", ["http_429", "http_502", "cut", "cut_before", "http_500_after"])
def test_what_passes_is_tried_again(
    db: Any, sandbox: Any, no_pauses: list[float], source: str, stream: str, kind: str
) -> None:
    fault(sandbox, PLATFORM[source], kind, times=2, after=1, seconds=2)
    summary = land(source, stream)
    assert summary.changed > 0
    assert len(no_pauses) == 2
    if kind == "http_429":
        assert all(2 <= wait <= 3 for wait in no_pauses), "Retry-After is obeyed"


@pytest.mark.parametrize(("source", "stream"), STREAMS)
@pytest.mark.parametrize("kind", ["timeout_before", "timeout_after"])
def test_a_request_is_bounded_in_time(
    db: Any, sandbox: Any, no_pauses: list[float], monkeypatch: pytest.MonkeyPatch, source: str, stream: str, kind: str
) -> None:
    monkeypatch.setattr(base, "READ_SECONDS", 0.3)
    fault(sandbox, PLATFORM[source], kind, times=1, after=1, seconds=1)
    assert land(source, stream).changed > 0
    fault(sandbox, PLATFORM[source], kind, times=-1, seconds=1)
    with pytest.raises(PlatformDown, match="no answer within"):
        land(source, stream)


def test_a_call_limit_is_waited_for_when_it_is_short(db: Any, sandbox: Any, no_pauses: list[float]) -> None:
    fault(sandbox, "taobao", "call_limit", times=1, after=2, seconds=3)
    assert land("taobao_flagship", "rates").changed > 0
    assert [3 <= wait <= 4.5 for wait in no_pauses] == [True]


@pytest.mark.parametrize(
    ("source", "stream", "at_least"), [("taobao_flagship", "rates", 5000), ("wechat_official", "followers", 80_000)]
)
def test_a_long_ban_ends_the_run_and_names_the_time(
    db: Any, sandbox: Any, no_pauses: list[float], source: str, stream: str, at_least: int
) -> None:
    fault(sandbox, PLATFORM[source], "call_limit", times=-1, after=1, seconds=5000)
    with pytest.raises(RateLimited) as caught:
        land(source, stream)
    assert caught.value.retry_after >= at_least
    assert no_pauses == []


@pytest.mark.parametrize(("source", "stream"), STREAMS)
@pytest.mark.parametrize("kind", ["truncated_json", "garbage", "empty"])
def test_broken_json_makes_the_run_red_and_the_next_one_repairs_it(
    db: Any, sandbox: Any, source: str, stream: str, kind: str
) -> None:
    fault(sandbox, PLATFORM[source], kind, times=1, after=2)
    with pytest.raises(BadPayload) as caught:
        land(source, stream)
    sentence = str(caught.value)
    assert sentence.startswith(f"{PLATFORM[source]}, ")
    assert "is not readable JSON" in sentence
    repaired = land(source, stream)
    truth = sandbox.control("GET", "/truth")
    expected = {"rates": truth["reviews_readable"], "followers": truth["followers"], "events": truth["events"]}
    assert db.execute("SELECT count(*) AS n FROM raw.heads").fetchone()["n"] == expected[stream]
    assert repaired.watermark is not None


def test_the_page_of_broken_json_is_named(db: Any, sandbox: Any) -> None:
    fault(sandbox, "taobao", "truncated_json", method="taobao.refunds.receive.get", times=1, after=25)
    with pytest.raises(BadPayload, match=r"taobao\.refunds\.receive\.get: page \d+ is not readable JSON"):
        landing.land("taobao_flagship", "refunds", run_id="r", until=dates.now(), page_sizes={"*": 5})


def test_a_platform_that_is_down_says_so(
    db: Any, sandbox: Any, no_pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    change_connection(monkeypatch, "taobao_flagship", host="http://127.0.0.1:9/router/rest")
    with pytest.raises(PlatformDown) as caught:
        land("taobao_flagship", "trades")
    assert "cannot be reached" in str(caught.value)
    assert "127.0.0.1" not in str(caught.value)
    assert len(no_pauses) == base.MAX_ATTEMPTS - 1


def test_a_busy_service_is_tried_again(db: Any, sandbox: Any, no_pauses: list[float]) -> None:
    for source, stream in (("taobao_flagship", "rates"), ("wechat_official", "followers")):
        fault(sandbox, PLATFORM[source], "platform_busy", times=2, after=1)
        assert land(source, stream).changed > 0
    assert len(no_pauses) == 4


def test_a_run_is_bounded_in_requests_and_goes_on_next_time(
    db: Any, sandbox: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounded = sources.source("taobao_flagship").model_copy(update={"max_requests": 12})
    with monkeypatch.context() as patch:
        patch.setattr(landing, "source", lambda _: bounded)
        with pytest.raises(landing.LandingError, match=r"stopped after 12 requests \(max_requests in sources\.yaml\)"):
            land("taobao_flagship", "refunds")
        before = db.execute("SELECT watermark FROM raw.cursors").fetchone()["watermark"]
        with pytest.raises(landing.LandingError):
            land("taobao_flagship", "refunds")
        assert db.execute("SELECT watermark FROM raw.cursors").fetchone()["watermark"] > before
    land("taobao_flagship", "refunds")
    assert (
        db.execute("SELECT count(*) AS n FROM raw.heads").fetchone()["n"] == sandbox.control("GET", "/truth")["refunds"]
    )


def test_our_own_clock_may_not_be_far_off(db: Any, sandbox: Any, set_clock: Any) -> None:
    set_clock("2026-03-15T03:30:00+08:00")
    with pytest.raises(base.Refused, match="clock is off by more than 10 minutes"):
        land("taobao_flagship", "rates")
    with pytest.raises(AuthError, match="this machine's clock"):
        land("own_pages", "events")
