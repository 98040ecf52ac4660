"""A WeChat official account: tags, daily figures and pushes, from the wire to core."""

import base64
import contextlib
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import uvicorn
from fastapi.testclient import TestClient
from nights import one
from sandbox_client import RawClient

from nightmarket import dates, landing, mapping, quality, settings, sources
from nightmarket.console.app import create_app
from nightmarket.dates import Window
from nightmarket.landing import Loader
from nightmarket.local.database import free_port
from nightmarket.platforms import own_pages, wechat_official
from nightmarket.platforms.base import BadPayload, PlatformError, RateLimited, Slice, Transport
from nightmarket.platforms.wechat_official import FIGURES, Options
from nightmarket.warehouse import Row
from sandbox_process import start_sandbox

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "include"))
EVERYTHING = ("followers", "tags", "events", *FIGURES)


@pytest.fixture
def account(environment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """sources.yaml as an account reads it that has no pages of its own to keep its pushes."""
    write_sources(tmp_path, monkeypatch, EVERYTHING)


def write_sources(folder: Path, monkeypatch: pytest.MonkeyPatch, streams: tuple[str, ...]) -> None:
    config = folder / "config"
    config.mkdir(exist_ok=True)
    block = {
        "platform": "wechat_official", "kind": "social", "name": "夜市公众号", "conn_id": "wechat_official", "history_days": 40,
        "streams": {name: {} for name in streams},
        "options": {"scenes": {"store01": "外滩店", "poster_spring": "春季海报"}},
    }  # fmt: skip
    pages = {"platform": "own_pages", "kind": "pages", "name": "活动页", "conn_id": "own_pages", "account": "wechat_official",
             "streams": {"events": {}}}  # fmt: skip
    text = json.dumps({"sources": {"wechat_official": block, "own_pages": pages}}, ensure_ascii=False)
    (config / "sources.yaml").write_text(text)
    monkeypatch.setenv("NIGHTMARKET_CONFIG_DIR", str(config))
    settings.get_settings.cache_clear()


def at(sandbox: Any, set_clock: Callable[[str], None], moment: str) -> None:
    """Both clocks."""
    set_clock(moment)
    sandbox.control("POST", "/clock", {"now": moment})


def fault(sandbox: Any, kind: str, method: str = "*", **more: Any) -> None:
    entry = {"platform": "wechat_official", "kind": kind, "method": method, **more}
    sandbox.control("POST", "/faults", {"faults": [entry]})


def read(stream: str, **options: Any) -> landing.LandingSummary:
    return landing.land("wechat_official", stream, run_id="test", until=options.pop("until", dates.now()), **options)


def client() -> Any:
    transport = Transport("wechat_official", sleep=lambda seconds: None)
    return wechat_official.connect(settings.credentials("wechat_official"), transport, options=Options())


def stats(db: psycopg.Connection[Row], report: str) -> dict[tuple[str, str, str], int]:
    rows = db.execute("SELECT * FROM core.social_stats_daily WHERE report = %s", (report,)).fetchall()
    return {(str(row["stat_date"]), row["dimension"], row["metric"]): row["value"] for row in rows}


def followers_by_day(raw: RawClient, until: date) -> dict[date, tuple[int, int]]:
    """New and gone per day, counted from the pushes as our pages' archive shows them: the second opinion."""
    days: dict[date, list[int]] = {}
    for event in raw.all_events(raw.now() - timedelta(days=800)):
        name = event["data"].get("fields", {}).get("Event") if event["kind"] == "wechat.event" else None
        if name in ("subscribe", "unsubscribe"):
            day = date.fromisoformat(event["received_at"][:10])
            if day < until:
                days.setdefault(day, [0, 0])[name == "unsubscribe"] += 1
    return {day: (new, gone) for day, (new, gone) in days.items()}


# ----------------------------------------------------------------------------------------------------------- datacube
def test_figures_agree_with_what_happened(
    account: None, sandbox: Any, db: psycopg.Connection[Row], set_clock: Callable[[str], None]
) -> None:
    at(sandbox, set_clock, "2026-03-15T09:00:00+08:00")
    for stream in FIGURES:
        assert read(stream).seen > 0 or stream == "user_share", stream  # in a world of 70 followers nobody shares
    mapping.map_source("wechat_official", run_id="test")
    assert one(db, "SELECT count(*) FROM raw.rejects") == 0
    raw = RawClient(sandbox.access)
    happened = followers_by_day(raw, date(2026, 3, 15))
    summary, total = stats(db, "user_summary"), stats(db, "user_cumulate")
    first = date(2026, 3, 15) - timedelta(days=40)
    new = {day: sum(v for (d, _, m), v in summary.items() if d == str(day) and m == "new_user") for day in happened}
    gone = {day: sum(v for (d, _, m), v in summary.items() if d == str(day) and m == "cancel_user") for day in happened}
    assert {day: (new[day], gone[day]) for day in happened if day >= first} == {
        day: counts for day, counts in happened.items() if day >= first
    }
    followers = sum(new - gone for new, gone in happened.values())
    assert total["2026-03-14", "", "cumulate_user"] == followers
    assert set(dict.fromkeys(d for d, _, _ in total)) == {str(first + timedelta(days=n)) for n in range(40)}
    assert any(dimension == "user_source=30" for _, dimension, _ in summary)
    messages = stats(db, "upstream_messages")
    wrote = {event["data"]["fields"]["FromUserName"] for event in raw.all_events(raw.now() - timedelta(hours=33))
             if event["data"].get("fields", {}).get("MsgType") == "text" and event["received_at"] < "2026-03-15"}  # fmt: skip
    assert messages["2026-03-14", "msg_type=1", "msg_user"] == len(wrote) > 0


def test_yesterday_is_left_for_the_next_run_before_eight(
    account: None, sandbox: Any, db: psycopg.Connection[Row], set_clock: Callable[[str], None]
) -> None:
    early = read("user_cumulate")  # 02:30
    assert "2026-03-14 is not final before 08:00 and is left for the next run" in early.sentence()
    assert early.last_window == "2026-03-10T00:00:00+08:00/2026-03-14T00:00:00+08:00"
    marks = db.execute("SELECT stream, watermark FROM raw.cursors ORDER BY 1").fetchall()
    assert [row["stream"] for row in marks] == ["user_cumulate", "user_cumulate:final"]
    assert marks[0]["watermark"] == dates.now().replace(microsecond=0) or marks[0]["watermark"] < dates.now()
    assert str(marks[1]["watermark"]) == "2026-03-14 00:00:00+08:00"
    at(sandbox, set_clock, "2026-03-15T08:01:00+08:00")
    later = read("user_cumulate")
    assert later.note is None
    assert later.windows == 1  # the three days before the mark, and the new one, in one call
    assert later.changed == 1
    assert read("user_cumulate").changed == 0


def test_the_gate_does_not_wait_for_figures_that_nobody_has_yet(
    account: None, sandbox: Any, db: psycopg.Connection[Row]
) -> None:
    for stream in FIGURES:
        read(stream)
    (check,) = [check for check in quality.load_sql_checks("core") if check.name == "streams_read_to_the_end"]
    row = db.execute((ROOT / "include/sql" / check.file).read_text(), {"business_date": "2026-03-14"}).fetchone()
    assert row
    assert row["is_passed"], row["observed"]


def test_an_article_grows_for_a_week(
    account: None, sandbox: Any, db: psycopg.Connection[Row], set_clock: Callable[[str], None]
) -> None:
    at(sandbox, set_clock, "2026-03-18T09:00:00+08:00")  # an article was sent on Tuesday the 17th
    read("article_total")
    first = article(db, "2026-03-17")
    assert [detail["stat_date"] for detail in first["details"]] == ["2026-03-17"]
    at(sandbox, set_clock, "2026-03-20T09:00:00+08:00")
    read("article_total")
    grown = article(db, "2026-03-17")
    assert [detail["stat_date"] for detail in grown["details"]] == ["2026-03-17", "2026-03-18", "2026-03-19"]
    reads = [detail["int_page_read_user"] for detail in grown["details"]]
    assert reads == sorted(reads)
    assert grown["details"][0] == first["details"][0]
    windows = db.execute(
        "SELECT max(window_end - window_start) AS span, min(window_start) AS first FROM raw.batches WHERE loaded_at > '2026-03-19'"
    ).fetchone()
    assert windows
    assert windows["span"] == timedelta(days=1)
    assert str(windows["first"]) == "2026-03-10 00:00:00+08:00"  # eight days before the mark: article_days, and one
    mapping.map_source("wechat_official", run_id="test")
    post = db.execute("SELECT * FROM core.social_posts WHERE post_id = %s", (grown["msgid"],)).fetchone()
    assert post
    assert (post["kind"], post["content"], str(post["published_at"])) == (
        "article",
        grown["title"],
        "2026-03-17 00:00:00+08:00",
    )
    seen = db.execute(
        "SELECT stat_date::text AS day, value FROM core.social_post_stats WHERE post_id = %s AND metric = 'int_page_read_user' ORDER BY 1",
        (grown["msgid"],),
    ).fetchall()
    assert [(row["day"], row["value"]) for row in seen] == list(
        zip(("2026-03-17", "2026-03-18", "2026-03-19"), reads, strict=True)
    )


def article(db: psycopg.Connection[Row], day: str) -> dict[str, Any]:
    payload = one(
        db,
        "SELECT payload FROM raw.records WHERE stream = 'article_total' AND payload ->> 'ref_date' = %s ORDER BY record_id DESC LIMIT 1",
        (day,),
    )
    assert isinstance(payload, dict)
    return payload


def test_a_past_range_is_read_again(account: None, sandbox: Any, db: psycopg.Connection[Row]) -> None:
    read("user_summary")
    before = db.execute("SELECT * FROM raw.cursors ORDER BY 1, 2").fetchall()
    start = dates.now() - timedelta(days=200)
    again = read("user_summary", window=Window(start, start + timedelta(days=30)))
    assert again.windows == 5  # 31 days of China, seven in a call
    assert again.changed > 0
    assert db.execute("SELECT * FROM raw.cursors ORDER BY 1, 2").fetchall() == before


def test_spans_and_todays_figures_are_refused(sandbox: Any) -> None:
    raw = RawClient(sandbox.access)

    def ask(name: str, first: str, last: str) -> Any:
        token = raw.wechat_token()["access_token"]
        url = f"{raw.access['base_url']}/datacube/{name}?access_token={token}"
        return raw.http.post(url, json={"begin_date": first, "end_date": last}, timeout=10).json()

    for name, span in (("getusersummary", 7), ("getarticletotal", 1), ("getuserread", 3), ("getinterfacesummary", 30)):
        last = date(2026, 3, 13)
        assert "list" in ask(name, str(last - timedelta(days=span - 1)), str(last))
        assert ask(name, str(last - timedelta(days=span)), str(last))["errcode"] == 61501
    assert ask("getusersummary", "2026-03-15", "2026-03-15")["errcode"] == 61501  # today
    assert ask("getusersummary", "13.3.2026", "2026-03-13")["errcode"] == 61500
    assert ask("getusercumulate", "2026-03-14", "2026-03-14") == {"list": []}  # 02:30: not made yet
    sandbox.control("POST", "/clock", {"now": "2026-03-15T08:00:00+08:00"})
    assert ask("getusercumulate", "2026-03-14", "2026-03-14")["list"][0]["cumulate_user"] > 0


def test_a_spent_quota_ends_the_run_and_the_next_one_goes_on(
    account: None, sandbox: Any, db: psycopg.Connection[Row], set_clock: Callable[[str], None]
) -> None:
    sandbox.control("POST", "/settings", {"wechat_datacube_calls": 25})
    with pytest.raises(RateLimited, match="daily quota"):
        read("article_total")
    assert one(db, "SELECT count(*) FROM raw.batches") == 25
    assert one(db, "SELECT count(*) FROM raw.cursors WHERE stream = 'article_total'") == 0  # not read to its end yet
    at(sandbox, set_clock, "2026-03-16T02:30:00+08:00")
    read("article_total")
    assert one(db, "SELECT count(*) FROM raw.cursors WHERE stream = 'article_total'") == 1
    assert one(db, "SELECT count(DISTINCT window_start) FROM raw.batches") == 40


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["duplicate_page", "ids_as_numbers", "null_fields", "missing_fields", "empty_last_page", "emoji", "wrong_clock",
             "expired_token", "platform_busy", "truncated_json", "http_500", "cut", "garbage", "http_429"],
)  # fmt: skip
def test_figures_survive_faults(
    account: None, sandbox: Any, db: psycopg.Connection[Row], set_clock: Callable[[str], None], kind: str
) -> None:
    at(sandbox, set_clock, "2026-03-15T09:00:00+08:00")
    streams = ("user_summary", "user_cumulate", "tags")
    for stream in streams:
        read(stream)
    mapping.map_source("wechat_official", run_id="good")
    expected = {report: stats(db, report) for report in streams}
    for table in ("raw.records", "raw.heads", "raw.rejects", "raw.cursors", "raw.mappings", "core.social_stats_daily"):
        with psycopg.connect(settings.get_settings().admin_dsn.get_secret_value()) as owner:  # type: ignore[union-attr]
            owner.execute(f"DELETE FROM {table}")
    for path in ("datacube/getusersummary", "datacube/getusercumulate", "cgi-bin/tags/get"):
        fault(sandbox, kind, path, times=1, seconds=1)
        stream = {"datacube/getusersummary": "user_summary", "datacube/getusercumulate": "user_cumulate"}.get(
            path, "tags"
        )
        with contextlib.suppress(PlatformError):
            read(stream)
    mapping.map_source("wechat_official", run_id="bad")
    sandbox.control("POST", "/faults", {"faults": []})
    # the figures of the first windows are older than what a night reads again: a person asks for them
    for stream in streams:
        read(stream)
        if stream != "tags":
            read(stream, window=Window(dates.now() - timedelta(days=40), dates.now()))
    mapping.map_source("wechat_official", run_id="later")
    assert {report: stats(db, report) for report in streams} == expected
    assert one(db, "SELECT count(*) FROM raw.rejects WHERE resolved_at IS NULL AND stage = 'mapping'") == 0


# ------------------------------------------------------------------------------------------------------ tags, profiles
def test_tags_are_counted_once_a_day(
    account: None, sandbox: Any, db: psycopg.Connection[Row], set_clock: Callable[[str], None]
) -> None:
    read("tags")
    read("tags")
    read("followers")
    mapping.map_source("wechat_official", run_id="test")
    found = stats(db, "tags")
    assert {key[0] for key in found} == {"2026-03-15"}
    assert {key[1] for key in found} == {"tag=2", "tag=134", "tag=135", "tag=136"}
    carried = one(
        db, "SELECT count(*) FROM raw.records WHERE stream = 'followers' AND payload -> 'tagid_list' @> '[135]'"
    )
    assert found["2026-03-15", "tag=135", "follower_count"] == carried > 0
    tags = {row["tag_id"]: (row["name"], row["follower_count"]) for row in db.execute("SELECT * FROM core.social_tags")}
    assert tags["135"] == ("新客", carried)
    at(sandbox, set_clock, "2026-03-17T02:30:00+08:00")
    read("tags", until=dates.day_start(date(2026, 3, 17)))
    mapping.map_source("wechat_official", run_id="test")
    assert {key[0] for key in stats(db, "tags")} == {"2026-03-15", "2026-03-16"}


def test_fewer_profiles_than_asked_are_no_answer(account: None, sandbox: Any) -> None:
    fault(sandbox, "empty_last_page", "user/info/batchget", times=-1)
    with pytest.raises(BadPayload, match="0 profiles came for"):
        read("followers")
    fault(sandbox, "empty_last_page", "user/get", times=1)
    assert read("followers").seen > 0  # the platform's own count says that there are more


def test_check_names_the_stream_that_may_not_be_read(account: None, sandbox: Any) -> None:
    assert wechat_official.check(client(), EVERYTHING).problems == {}
    sentence = landing.check_source("wechat_official")
    assert "works for account wx" in sentence
    fault(sandbox, "revoked_token", "datacube/getuserread", times=-1)
    problems = wechat_official.check(client(), EVERYTHING).problems
    assert list(problems) == ["user_read"]
    assert "access token is refused" in problems["user_read"]


def test_qr_codes(sandbox: Any) -> None:
    raw = RawClient(sandbox.access)

    def create(**body: Any) -> Any:
        token = raw.wechat_token()["access_token"]
        return raw.http.post(
            f"{raw.access['base_url']}/cgi-bin/qrcode/create?access_token={token}", json=body, timeout=10
        ).json()

    def scene(**value: Any) -> dict[str, Any]:
        return {"scene": value}

    good = create(action_name="QR_STR_SCENE", expire_seconds=604800, action_info=scene(scene_str="store07"))
    assert good["expire_seconds"] == 604800
    assert len(good["ticket"]) == 96
    assert "expire_seconds" not in create(action_name="QR_LIMIT_SCENE", action_info=scene(scene_id=100_000))
    assert create(action_name="QR_LIMIT_SCENE", action_info=scene(scene_id=100_001))["errcode"] == 40053
    assert create(action_name="QR_STR_SCENE", action_info=scene(scene_str="x" * 65))["errcode"] == 40053
    assert create(action_name="QR_SCENE", expire_seconds=2_592_001, action_info=scene(scene_id=1))["errcode"] == 40052
    assert create(action_name="QR_CODE", action_info=scene(scene_id=1))["errcode"] == 40053


# ------------------------------------------------------------------------------------------------------------- pushes
@pytest.fixture
def console(environment: str) -> Iterator[str]:
    """The receiver, as a server of its own."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(create_app(), port=port, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 90
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}/webhooks/wechat_official"
    server.should_exit = True
    thread.join(10)


@pytest.mark.parametrize("mode", ["plain", "compatible", "aes"])
def test_a_world_that_pushes_gives_the_same_core_as_its_archive(
    account: None, console: str, db: psycopg.Connection[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    set_clock: Callable[[str], None], mode: str,
) -> None:  # fmt: skip
    """Two days of a sandbox that pushes to our receiver, one push of them twice; then the pages' archive of the same days."""
    arguments = (
        "--customers",
        "400",
        "--seed",
        "7",
        "--anchor",
        "2026-03-14",
        "--webhook",
        console,
        "--webhook-mode",
        mode,
    )
    process, sandbox = start_sandbox(tmp_path, *arguments)
    try:
        for variable, value in sandbox.connections().items():
            monkeypatch.setenv(variable, value)
        official = sandbox.access["wechat_official"]
        extra = {"push_token": official["push_token"]} | (
            {"encoding_aes_secret": official["encoding_aes_key"]} if mode != "plain" else {}
        )
        connection = json.loads(sandbox.connections()["AIRFLOW_CONN_WECHAT_OFFICIAL"]) | {"extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_WECHAT_OFFICIAL", json.dumps(connection))
        sandbox.control("POST", "/settings", {"write_daily": 0.5, "follow_daily": 0.2, "unfollow_daily": 0.1})
        fault(sandbox, "push_twice", "push", times=1)
        end = "2026-03-17T02:30:00+08:00"
        at(sandbox, set_clock, end)
        expected = sandbox.control("GET", "/truth")
        assert expected
        since = dates.day_start(date(2026, 3, 15))
        raw = RawClient(sandbox.access)
        kept = [event for event in raw.all_events(since) if event["kind"] == "wechat.event"]
        assert len(kept) > 20
        wait_for(db, len(kept))
        set_clock("2026-03-17T02:31:00+08:00")
        assert read("events").seen == len(kept)
        mapping.map_source("wechat_official", run_id="pushed")
        mine = facts(db)
        assert mine["follow_events"]
        assert mine["interactions"]
        assert {row[0] for rows in mine.values() for row in rows} == {"wechat_official"}
        # the same events once more, by the other way: not one fact more
        landing.land("own_pages", "events", run_id="pages", until=dates.now(), window=None)
        mapping.map_source("own_pages", run_id="pages")
        both = facts(db)
        for table, rows in mine.items():
            days = [row for row in both[table] if row[-1] >= "2026-03-15"]
            assert sorted(days) == sorted(row for row in rows if row[-1] >= "2026-03-15"), table
    finally:
        process.terminate()
        process.wait(10)


def wait_for(db: psycopg.Connection[Row], count: int) -> None:
    deadline = time.monotonic() + 90
    while (found := one(db, "SELECT count(*) FROM raw.pushes")) < count:
        assert time.monotonic() < deadline, f"{found} of {count} pushes came"
        time.sleep(0.1)
    assert found == count


def facts(db: psycopg.Connection[Row]) -> dict[str, list[tuple[str, ...]]]:
    """What the account's pushes say in core; the instant last."""
    queries = {
        "follow_events": "SELECT source_id, event_id, kind, scene, occurred_at::text FROM core.follow_events",
        "interactions": "SELECT source_id, event_id, kind, occurred_at::text FROM core.interactions WHERE source_id = 'wechat_official'",
        "consents": "SELECT source_id, event_id, purpose, is_granted::text, occurred_at::text FROM core.consents"
        " WHERE source_id = 'wechat_official'",
    }
    return {name: [tuple(row.values()) for row in db.execute(query)] for name, query in queries.items()}  # type: ignore[call-overload]


def test_a_scene_is_told_by_the_push_and_by_the_profile(
    account: None, sandbox: Any, db: psycopg.Connection[Row]
) -> None:
    read("followers")
    landing.land("own_pages", "events", run_id="test", until=dates.now())
    mapping.map_source("wechat_official", run_id="test")
    mapping.map_source("own_pages", run_id="test")
    scenes = db.execute(
        "SELECT f.qr_scene, e.scene, count(*) AS n FROM core.followers AS f JOIN core.follow_events AS e USING (source_id, identity_id)"
        " WHERE f.is_following AND e.kind = 'follow' AND e.occurred_at = f.followed_at GROUP BY 1, 2"
    ).fetchall()
    assert {row["scene"] for row in scenes} == {None, "store01", "store02", "poster_spring"}
    assert all(row["scene"] == row["qr_scene"] for row in scenes)
    mapping.resolve_members(run_id="test")
    page = TestClient(create_app(require_user=lambda: "ulla"), headers={"accept-language": "en"}).get("/sources").text
    assert "Which store or poster brought whom" in page
    for name, scene in (("外滩店", "store01"), ("春季海报", "poster_spring"), ("store02", "store02")):
        count = one(db, "SELECT count(DISTINCT identity_id) FROM core.follow_events WHERE scene = %s", (scene,))
        assert re.search(
            rf"<td>{name} <span class=\"mute\">[a-z0-9_]*</span></td><td class=\"n\">{count}</td>", page
        ), name


def test_a_push_that_nobody_can_read_is_a_reject_with_its_reason(
    account: None, sandbox: Any, db: psycopg.Connection[Row], set_clock: Callable[[str], None]
) -> None:
    set_clock("2026-03-15T02:30:00+08:00")
    loader = Loader(db, sources.source("wechat_official"), wechat_official.EVENTS, "test", False)
    body = {"appid": "wx1", "xml": "<xml><Content>电话10012345678</Content>", "fields": {}}
    sealed = loader._keyring.seal("wechat_official/text/abc", json.dumps(body))
    db.execute(
        "INSERT INTO raw.pushes (source_id, push_key, body, received_at) VALUES ('wechat_official', 'text/abc', %s, %s)",
        (sealed, dates.now() - timedelta(hours=1)),
    )
    assert read("events").seen == 1
    mapping.map_source("wechat_official", run_id="test")
    assert one(db, "SELECT reason FROM raw.rejects") == "core.interactions: the push cannot be read or names nobody"
    assert "10012345678" not in one(db, "SELECT string_agg(payload::text, ' ') FROM raw.records")


def test_pushes_are_read_by_when_they_came_each_once(
    account: None, sandbox: Any, db: psycopg.Connection[Row], set_clock: Callable[[str], None]
) -> None:
    set_clock("2026-03-15T02:30:00+08:00")
    loader = Loader(db, sources.source("wechat_official"), wechat_official.EVENTS, "test", False)
    start = dates.now() - timedelta(days=1)
    for number in range(1203):  # three pages, many of one instant
        fields = {"FromUserName": f"o{number}", "CreateTime": "1773500000", "MsgType": "event", "Event": "subscribe"}
        sealed = loader._keyring.seal(f"wechat_official/k{number}", json.dumps({"appid": "wx1", "fields": fields}))
        db.execute(
            "INSERT INTO raw.pushes (source_id, push_key, body, received_at) VALUES ('wechat_official', %s, %s, %s)",
            (f"k{number}", sealed, start + timedelta(seconds=number // 400)),
        )
    first = read("events")
    assert (first.seen, first.changed) == (1203, 1203)
    again = read("events")  # the overlap of ten minutes holds nothing
    assert (again.seen, again.changed) == (0, 0)
    back = read("events", window=Window(start, start + timedelta(seconds=2)))
    assert (back.seen, back.changed) == (800, 0)


def test_a_receipt_is_one_row_whichever_way_it_came(account: None, sandbox: Any, db: psycopg.Connection[Row]) -> None:
    """It comes before its message is known, by both ways; both wait, and both find the one row."""
    at = dates.now() - timedelta(hours=1)
    fields = {"FromUserName": "oA", "CreateTime": str(int(at.timestamp())), "MsgType": "event", "Event": "TEMPLATESENDJOBFINISH",
              "MsgID": "200163836", "Status": "success"}  # fmt: skip
    loader = Loader(db, sources.source("wechat_official"), wechat_official.EVENTS, "test", False)
    sealed = loader._keyring.seal("wechat_official/k1", json.dumps({"appid": "wx1", "xml": "<xml/>", "fields": fields}))
    db.execute(
        "INSERT INTO raw.pushes (source_id, push_key, body, received_at) VALUES ('wechat_official', 'k1', %s, %s)",
        (sealed, at),
    )
    read("events")
    event = {
        "event_id": "e1",
        "kind": "wechat.event",
        "received_at": at.isoformat(),
        "data": {"appid": "wx1", "fields": fields},
    }
    pages = Loader(db, sources.source("own_pages"), own_pages.STREAM, "test", False)
    pages.read(Slice("received", Window(at, at + timedelta(days=1)), lambda: iter([[event]])), None)

    def map_both() -> None:
        for source_id in ("wechat_official", "own_pages"):
            mapping.map_source(source_id, run_id="test")

    map_both()
    waiting = "SELECT count(*) FROM raw.rejects WHERE resolved_at IS NULL AND reason LIKE '%: waiting for %'"
    assert one(db, waiting) == 2
    db.execute(
        "INSERT INTO core.message_events VALUES ('wechat_official', '200163836', 'review/s/1/ask', 'accepted', NULL, %s)",
        (at,),
    )
    map_both()
    assert one(db, waiting) == 0
    found = db.execute(
        "SELECT source_id, message_key, kind FROM core.message_events WHERE kind <> 'accepted'"
    ).fetchall()
    assert found == [{"source_id": "wechat_official", "message_key": "review/s/1/ask", "kind": "delivered"}]


def test_a_key_of_forty_three_characters(sandbox: Any) -> None:
    key = sandbox.access["wechat_official"]["encoding_aes_key"]
    assert len(key) == 43
    assert len(base64.b64decode(key + "=")) == 32
