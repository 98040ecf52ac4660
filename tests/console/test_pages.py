"""The pages behind our links over real HTTP: clicks, withdrawals, surveys; what is not signed by us does not exist."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import requests
import uvicorn

from campaign_world import AS_OF, MORNING, People, green_night, sandbox_openids, start_run
from nightmarket import dates, landing, mapping, settings
from nightmarket.campaigns.delivery import deliver
from nightmarket.campaigns.journeys import run_reviews
from nightmarket.campaigns.rendering import link_key, signed_link
from nightmarket.campaigns.results import check_laws, export_exposures
from nightmarket.console.app import create_app
from nightmarket.dates import Window
from nightmarket.platforms import own_pages
from nightmarket.platforms.base import Slice
from nightmarket.settings import ConfigError
from nightmarket.sources import source
from nightmarket.warehouse import Row

PERSON = {"User-Agent": "Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) MicroMessenger/8.0.50"}
ONE_CLICK = {"List-Unsubscribe": "One-Click"}
LANDING = "https://shop.nightmarket.test/spring?from=wechat"


@dataclass
class Site:
    """Our pages as a server of their own, whose login may read no table; and the people behind the links."""

    url: str
    db: psycopg.Connection[Row]
    people: People

    def link(self, kind: str, key: str) -> str:
        return signed_link(self.url, kind, key)

    def get(self, url: str, **options: Any) -> requests.Response:
        return requests.request(
            options.pop("method", "GET"), url, headers=PERSON | options.pop("headers", {}), timeout=10, allow_redirects=False, **options
        )  # fmt: skip

    def post(self, url: str, data: Any = None, **headers: str) -> requests.Response:
        return requests.post(url, data=data, headers=PERSON | headers, timeout=10, allow_redirects=False)

    def events(self) -> list[dict[str, Any]]:
        """What was kept, opened as the night opens it."""
        now = dates.now()
        with landing.connect() as connection:
            loader = landing.Loader(connection, source("own_pages"), own_pages.STREAM, "test", False)
            pages = loader._pushes(Window(now - timedelta(days=1), now + timedelta(days=1)))
            return [push["body"] for page in pages for push in page]

    def land(self) -> None:
        """The night takes the events in, as with `events_from: pushes`."""
        events, now = self.events(), dates.now()

        def pages() -> Iterator[list[dict[str, Any]]]:
            yield events

        loader = landing.Loader(self.db, source("own_pages"), own_pages.STREAM, "test", False)
        loader.read(Slice("pushed", Window(now - timedelta(days=1), now + timedelta(days=1)), pages), None)
        mapping.map_source("own_pages", run_id="test")

    def message(
        self, number: int = 1, *, language: str = "zh", channel: str = "email", group: str | None = None
    ) -> str:
        """The key of one marketing message that a run sent to a new member."""
        address = f"reader{number}@mail.test" if channel == "email" else f"oREADER{number}"
        member = self.people.add(**{"email" if channel == "email" else "openid": address})
        at, config = (
            dates.now(),
            {"campaign": {"landing_url": LANDING}, "home_url": "https://shop.nightmarket.test/old"},
        )
        self.db.execute(
            "INSERT INTO push.campaign_runs (run_id, campaign, mode, as_of, as_of_at, config, config_hash, state, created_by, created_at,"
            " expires_at) VALUES ('spring@2026-03-14', 'spring', 'live', %s, %s, %s, 'x', 'sending', 'test', %s, %s)"
            " ON CONFLICT DO NOTHING", (AS_OF, at, json.dumps(config), at, at + timedelta(days=2)),
        )  # fmt: skip
        key = f"spring/{AS_OF}/{member}/send"
        token = self.people.tokens.token("email", address) if channel == "email" else address
        self.db.execute(
            "INSERT INTO push.messages (message_key, run_id, member_id, step, channel, account, purpose, address, template, language,"
            " variables, group_key, state, not_before, expires_at, queued_at, accepted_at, updated_at) VALUES (%s, 'spring@2026-03-14',"
            " %s, 'send', %s, %s, 'marketing', %s, 't', %s, '{}', %s, 'accepted', %s, %s, %s, %s, %s)",
            (key, member, channel, channel, token, language, group, at, at, at, at, at),
        )  # fmt: skip
        self.db.execute(
            "INSERT INTO core.exposures (run_id, member_id, step, campaign, arm, channel, purpose, message_key, group_key, as_of, exposed_at,"
            " attribution_until) VALUES ('spring@2026-03-14', %s, 'send', 'spring', 'treatment', %s, 'marketing', %s, %s, %s, %s, %s)",
            (member, channel, key, group, AS_OF, at, at + timedelta(days=7)),
        )  # fmt: skip
        return group or key

    def survey(self, key: str, language: str = "zh", days: int = 14) -> int:
        row = self.db.execute(
            "INSERT INTO push.surveys (message_key, language, created_at, expires_at) VALUES (%s, %s, %s, %s) RETURNING survey_id",
            (key, language, dates.now(), dates.now() + timedelta(days=days)),
        ).fetchone()
        assert row is not None
        return int(row["survey_id"])


@pytest.fixture
def site(
    pg: Any, environment: str, db: psycopg.Connection[Row], monkeypatch: pytest.MonkeyPatch, set_clock: Any
) -> Iterator[Site]:
    pg.server.grant_logins({"nightmarket_receiver": pg.password})
    monkeypatch.setenv("NIGHTMARKET_RECEIVER_DSN", pg.dsn(environment, "nightmarket_receiver"))
    settings.get_settings.cache_clear()
    set_clock(MORNING)
    green_night(db)
    server = uvicorn.Server(uvicorn.Config(create_app(), port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 90
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield Site(f"http://127.0.0.1:{port}", db, People(db))
    server.should_exit = True
    thread.join(10)


# -------------------------------------------------------------------------------------------------------------- links
def test_a_click_is_kept_once_and_leads_where_the_run_says(site: Site) -> None:
    key = site.message()
    link = site.link("r", key)
    for _ in range(3):
        answer = site.get(link)
        assert (answer.status_code, answer.headers["location"]) == (302, LANDING)
        assert answer.headers["cache-control"] == "no-store"
    (event,) = site.events()
    assert (event["kind"], event["data"]) == ("click", {"key": key})


def test_without_a_landing_url_it_leads_home(site: Site) -> None:
    key = site.message()
    site.db.execute("UPDATE push.campaign_runs SET config = config #- '{campaign,landing_url}'")
    assert site.get(site.link("r", key)).headers["location"] == "https://shop.nightmarket.test/old"
    site.db.execute("UPDATE push.campaign_runs SET config = config - 'home_url'")  # a run from before there was one
    assert site.get(site.link("r", key)).headers["location"] == "https://shop.nightmarket.test/"
    assert site.get(site.link("r", "gone/1/send")).headers["location"] == "https://shop.nightmarket.test/"


def test_nobody_can_make_it_lead_elsewhere(site: Site) -> None:
    key = site.message()
    link = site.link("r", key)
    evil = "https://evil.test/"
    for address in (
        f"{link}&url={evil}", f"{link}&next={evil}", f"{link}&to={evil}#{evil}", f"{site.url}/r/{evil}?s={link.split('s=')[1]}",
        f"{site.url}/r//evil.test?s={link.split('s=')[1]}", site.link("r", evil), site.link("r", "//evil.test/%0d%0aLocation:x"),
    ):  # fmt: skip
        answer = site.get(address, headers={"Host": "evil.test", "X-Forwarded-Host": "evil.test"})
        assert "evil" not in answer.headers.get("location", "")
        assert answer.status_code in (302, 404)


@pytest.mark.parametrize("kind", ["r", "u", "s"])
def test_what_we_did_not_sign_does_not_exist_and_is_not_echoed(site: Site, kind: str) -> None:
    key = site.message()
    good = site.link(kind, key)
    for address in (
        good[:-1] + ("A" if good[-1] != "A" else "B"), good.replace("?s=", "?x="), f"{site.url}/{kind}/%3Cscript%3Ealert(1)%3C/script%3E?s=x",
        f"{site.url}/{kind}/{key}?s=%E5%A5%BD", f"{site.url}/{kind}/?s=", good.replace(f"/{kind}/", "/r/" if kind != "r" else "/u/"),
    ):  # fmt: skip
        for answer in (site.get(address), site.post(address, ONE_CLICK)):
            assert answer.status_code in (404, 405)
            assert "script>alert" not in answer.text
            assert key not in answer.text
    assert site.events() == []


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("HEAD", {}),
        ("GET", {"User-Agent": "Mozilla/5.0 (compatible; Googlebot/2.1)"}),
        ("GET", {"User-Agent": "python-requests/2.32"}),
        ("GET", {"User-Agent": ""}),
        ("GET", {"Purpose": "prefetch"}),
        ("GET", {"Sec-Purpose": "prefetch;prerender"}),
    ],
)
def test_programs_are_led_on_and_not_counted(site: Site, method: str, headers: dict[str, str]) -> None:
    key = site.message()
    assert site.get(site.link("r", key), method=method, headers=headers).status_code == 302
    assert site.events() == []


def test_a_click_becomes_a_fact_of_the_message(site: Site) -> None:
    key = site.message()
    site.get(site.link("r", key))
    site.land()
    rows = site.db.execute("SELECT message_key, kind FROM core.message_events WHERE kind = 'clicked'").fetchall()
    assert [tuple(row.values()) for row in rows] == [(key, "clicked")]
    site.land()
    assert site.db.execute("SELECT count(*) AS n FROM core.message_events WHERE kind = 'clicked'").fetchone() == {
        "n": 1
    }


def test_without_a_database_a_click_is_lost_and_the_person_is_not(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    key = site.message()
    monkeypatch.setenv("NIGHTMARKET_RECEIVER_DSN", "postgresql://somebody:pw@127.0.0.1:1/nowhere")
    settings.get_settings.cache_clear()
    answer = site.get(site.link("r", key))
    assert (answer.status_code, answer.headers["location"]) == (302, "https://shop.nightmarket.test/")
    left = site.post(site.link("u", key), ONE_CLICK)
    assert left.status_code == 503
    assert "somebody" not in left.text


# ------------------------------------------------------------------------------------------------------- withdrawals
def consents(site: Site) -> list[tuple[Any, ...]]:
    rows = site.db.execute(
        "SELECT channel, purpose, is_granted, origin FROM core.consents WHERE NOT is_granted ORDER BY channel, purpose"
    ).fetchall()
    return [tuple(row.values()) for row in rows]


def test_opening_the_page_changes_nothing_the_button_does(site: Site) -> None:
    key = site.message(language="en")
    link = site.link("u", key)
    for method in ("GET", "HEAD"):
        assert site.get(link, method=method).status_code == 200
    page = site.get(link)
    assert "Unsubscribe" in page.text
    assert "reader1" not in page.text
    assert key not in page.text
    assert consents(site) == []
    assert site.events() == []
    assert "You are unsubscribed" in site.post(link, ONE_CLICK).text
    assert consents(site) == [("email", "marketing", False, "person")]


def test_one_click_of_a_mail_program_is_at_once_and_again_the_same(site: Site) -> None:
    key = site.message()
    link = site.link("u", key)
    for body in (b"List-Unsubscribe=One-Click", b"List-Unsubscribe=One-Click", b""):
        answer = requests.post(link, data=body, timeout=10, allow_redirects=False)  # no cookie, no browser
        assert answer.status_code == 200
    assert consents(site) == [("email", "marketing", False, "person")]
    (event,) = site.events()
    assert event["data"] == {"key": key, "channel": "email", "purpose": "marketing"}
    site.land()
    assert consents(site) == [("email", "marketing", False, "person")]  # the night writes the same row


def test_a_message_that_waits_is_not_sent_after_a_withdrawal(site: Site, sandbox: Any, set_clock: Any) -> None:
    set_clock(MORNING)
    sandbox.control("POST", "/clock", {"now": MORNING})
    gone, stays = (site.people.add(email=f"reader{number}@mail.test") for number in (1, 2))
    run_id = start_run()
    key = site.db.execute("SELECT message_key FROM push.messages WHERE member_id = %s", (gone,)).fetchone()[
        "message_key"
    ]  # type: ignore[index]
    assert site.post(site.link("u", key), ONE_CLICK).status_code == 200
    deliver(run_id, "test", 30)
    rows = site.db.execute("SELECT member_id, state FROM push.messages").fetchall()
    assert {row["member_id"]: row["state"] for row in rows} == {gone: "suppressed", stays: "accepted"}


def test_leaving_a_service_message_ends_service_messages_too(site: Site) -> None:
    key = site.message()
    site.db.execute("UPDATE push.messages SET purpose = 'service'")
    site.post(site.link("u", key), ONE_CLICK)
    expected = [("email", "marketing", False, "person"), ("email", "service", False, "person")]
    assert consents(site) == expected
    site.db.execute("DELETE FROM core.consents WHERE NOT is_granted")
    site.land()  # and so says the event alone, when the warehouse is mapped again
    assert consents(site) == expected


def test_the_link_of_a_mass_send_names_nobody_and_says_what_to_do(site: Site) -> None:
    for number in (1, 2):
        key = site.message(number, channel="wechat_mass", group="spring@2026-03-14/wechat_mass/1")
    for answer in (site.get(site.link("u", key)), site.post(site.link("u", key), ONE_CLICK)):
        assert answer.status_code == 200
        assert "公众号" in answer.text or "account" in answer.text
    assert consents(site) == []
    for _ in range(3):  # many people, one link: every click counts
        assert site.get(site.link("r", key)).status_code == 302
    assert len(site.events()) == 3


# ------------------------------------------------------------------------------------------------------------ surveys
def test_a_survey_is_answered_once(site: Site) -> None:
    key = site.message()
    number = site.survey(key, "en")
    leads_to = site.get(site.link("r", key)).headers["location"]
    path = leads_to.removeprefix("https://m.nightmarket.test")
    assert link_key(path.split("?")[0], path.split("?s=")[1]) == str(number)
    link = site.url + path
    page = site.get(link)
    assert "How was it with us?" in page.text
    assert "reader1" not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert site.post(link, {"score": "6"}).status_code == 400
    assert site.post(link, {"comment": "no score"}).status_code == 400
    comment = "慢\x00 <b>但好</b>, call 19900000001 or mail a@mail.test"
    assert "Thank you" in site.post(link, {"score": "4", "comment": comment}).text
    for answer in (site.get(link), site.post(link, {"score": "1", "comment": "again"})):
        assert answer.status_code == 200
        assert "Thank you" in answer.text
        assert "但好" not in answer.text
    site.land()
    (row,) = site.db.execute(
        "SELECT source_id, event_id, message_key, score, comment FROM core.survey_answers"
    ).fetchall()
    assert (row["source_id"], row["event_id"], row["message_key"], row["score"]) == (
        "own_pages",
        f"survey/{number}",
        key,
        4,
    )
    assert row["comment"].startswith("慢 <b>但好</b>, call phone:")
    assert "19900000001" not in row["comment"]
    assert "a@mail.test" not in row["comment"]


def test_from_a_review_to_an_answered_survey(site: Site, sandbox: Any, set_clock: Any) -> None:
    """The night thanks for a review over WeChat; the link that arrived leads to a survey, in production as here."""
    member = site.people.add(openid=sandbox_openids(sandbox)[0])
    at = datetime.fromisoformat("2026-03-12T12:00:00+08:00")
    site.db.execute(
        "INSERT INTO core.orders (source_id, order_id, identity_id, status, status_original, is_paid, currency_code, goods_amount,"
        " paid_amount, line_count, unit_count, created_at, signed_at, modified_at, batch_id, loaded_at) VALUES ('youzan_mall', 'E1', %s,"
        " 'finished', 'x', true, 'CNY', 10, 10, 1, 1, %s, %s, %s, 1, %s)",
        (site.people.identity_of(member, "taobao_open_uid"), at, at, at, at),
    )
    site.db.execute(
        "INSERT INTO core.order_lines (source_id, order_id, line_id, product_id, title, unit_price_amount, quantity, line_amount,"
        " paid_amount, status, batch_id) VALUES ('youzan_mall', 'E1', '1', 'p', 'LANTERN', 10, 1, 10, 10, 'x', 1)"
    )
    site.db.execute(
        "INSERT INTO core.reviews (source_id, review_id, order_id, rating, rating_original, created_at, batch_id)"
        " VALUES ('youzan_mall', 'r1', 'E1', 1, 'x', %s, 1)",
        (at,),
    )
    set_clock(MORNING)
    sandbox.control("POST", "/clock", {"now": MORNING})
    result = run_reviews(AS_OF)
    assert (result["thanked"], result["rewarded"]) == (1, 1)
    assert deliver(result["run_id"], "test", 30)["accepted"] == 1
    (sent,) = [
        m for m in sandbox.control("GET", "/messages")["messages"] if m["link_key"] == "review/youzan_mall/E1/thanks"
    ]
    assert "谢谢！任何评价都送20积分" in sent["content"]
    leads_to = site.get(site.link("r", sent["link_key"])).headers["location"]
    survey = site.url + leads_to.removeprefix("https://m.nightmarket.test")
    assert "这次服务怎么样" in site.get(survey).text
    assert "谢谢您" in site.post(survey, {"score": "2", "comment": "慢"}).text
    check_laws(result["run_id"])
    export_exposures(result["run_id"])
    site.land()
    row = site.db.execute(
        "SELECT a.score, x.member_id FROM core.survey_answers AS a JOIN core.exposures AS x ON x.message_key = a.message_key"
    ).fetchone()
    assert row == {"score": 2, "member_id": member}
    assert [event["kind"] for event in site.events()] == ["click", "survey"]


def test_many_at_once_are_one_answer(site: Site) -> None:
    number = site.survey(site.message())
    link = site.link("s", str(number))
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda score: site.post(link, {"score": str(score % 5 + 1)}), range(16)))
    assert {answer.status_code for answer in answers} == {200}
    assert len([event for event in site.events() if event["kind"] == "survey"]) == 1


def test_an_expired_survey_says_so(site: Site, set_clock: Any) -> None:
    link = site.link("s", str(site.survey(site.message(), "zh", days=14)))
    set_clock("2026-03-29T10:00:01+08:00")
    for answer in (site.get(link), site.post(link, {"score": "5"})):
        assert "问卷已过期" in answer.text
    assert site.events() == []
    assert site.get(site.link("s", "999999")).status_code == 404


def test_too_much_is_not_read(site: Site) -> None:
    key = site.message()
    link = site.link("s", str(site.survey(key)))
    assert site.post(link, {"score": "5", "comment": "x" * 17_000}).status_code == 413
    assert site.post(site.link("u", key), b"x" * 17_000).status_code == 413
    assert site.post(link, "&".join(f"a{n}=1" for n in range(50)) + "&score=5").status_code == 400
    assert site.events() == []


def test_the_login_of_the_pages_reads_no_table(site: Site, pg: Any, environment: str) -> None:
    with psycopg.connect(pg.dsn(environment, "nightmarket_receiver"), autocommit=True) as connection:
        for table in (
            "push.messages",
            "push.surveys",
            "push.campaign_runs",
            "core.consents",
            "core.survey_answers",
            "vault.secrets",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(f"SELECT 1 FROM {table}")


def test_without_own_pages_in_sources_nothing_is_lost_silently(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nightmarket.console import pages

    monkeypatch.setattr(pages, "load_sources", dict)
    with pytest.raises(ConfigError, match="no source of platform own_pages"):
        pages.pages_source()
