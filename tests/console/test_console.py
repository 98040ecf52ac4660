"""The console: who may see it, what it shows, what it never shows, and what it does with nonsense."""

import re
from datetime import timedelta
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from fastapi.testclient import TestClient

import night_world as world
from nightmarket import settings
from nightmarket.console.app import create_app
from nightmarket.console.queries import reader

PAGES = ["", "checks", "runs", f"run?id={quote(world.RUN_ID)}", "sources", f"?night={world.DAY_ONE}", "?lang=en"]


def client(*, sender: bool = False, language: str = "zh") -> TestClient:
    app = create_app(require_user=lambda: "ulla", may_send=lambda: sender)
    return TestClient(app, headers={"accept-language": language})


@pytest.fixture
def nights(db: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    world.seed_shop(db)
    world.seed_campaign(db)
    world.seed_second_night(db)
    return db


@pytest.mark.parametrize("page", PAGES)
def test_without_a_sign_in_every_page_is_refused(page: str) -> None:
    answer = TestClient(create_app()).get(f"/{page}")
    assert answer.status_code == 401
    assert world.RUN_ID not in answer.text


def test_every_route_with_data_asks_who_is_there() -> None:
    def nobody() -> str:
        raise AssertionError("asked")

    app = create_app(require_user=nobody)
    # what is signed by a platform, or by us: test_receiver.py and test_pages.py have these
    signed = {"/webhooks/{source_id}", "/r/{key:path}", "/u/{key:path}", "/s/{number}"}
    routes = {route.path for route in app.routes if route.path != "/static"}
    assert signed < routes
    paths = sorted(routes - signed)
    assert paths == [
        "/",
        "/cases",
        "/checks",
        "/member",
        "/retrospective",
        "/run",
        "/runs",
        "/sources",
    ]
    for path in paths:
        with pytest.raises(AssertionError, match="asked"):
            TestClient(app).get(path, params={"id": world.RUN_ID})


def test_only_reading_is_possible(nights: psycopg.Connection[Any]) -> None:
    for page in ("/", "/cases", "/checks", "/run", "/runs", "/sources"):
        assert client().post(page).status_code == 405
    with reader() as read, pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        read._connection.execute("DELETE FROM push.audit_log")


def test_the_overview_shows_the_last_night_and_older_ones(nights: psycopg.Connection[Any]) -> None:
    page = client(language="en").get("/").text
    assert f"The night of {world.DAY_TWO}" in page
    assert "core.followers: freshness: 25 hours" in page
    assert "unique_key" not in page  # the second try turned that gate green
    assert "2 messages with an unknown outcome" in page
    first = client(language="en").get("/", params={"night": str(world.DAY_ONE)}).text
    assert f"The night of {world.DAY_ONE}" in first
    assert "freshness" not in first
    assert "19,180" in first  # records of the first load


def test_figures_are_those_of_the_tables(nights: psycopg.Connection[Any]) -> None:
    row = nights.execute(
        "SELECT count(*) AS n, sum(goods_amount) AS amount FROM core.orders WHERE is_paid AND paid_at < %s",
        (world.at(world.DAY_TWO + timedelta(days=1), 0),),
    ).fetchone()
    assert row
    page = client(language="en").get("/").text
    assert f"{row['n']:,} paid orders, ¥{row['amount']:,.2f} before refunds" in page


def test_a_run_shows_partition_funnel_and_verdict(nights: psycopg.Connection[Any]) -> None:
    page = client(language="en").get("/run", params={"id": world.RUN_ID}).text
    partition = page[: page.index("Why this member")]
    counts = [
        int(n.replace(",", ""))
        for n in re.findall(r'</td><td class="n [a-z]*">([\d,]+)</td><td class="n">[\d.]+ %', partition)
    ]
    assert len(counts) == 9
    assert sum(counts) == 240  # the partition law, as a person would check it
    assert "excluded: no consent" in page
    assert "No effect shown" in page
    assert "12.3 points (95 % interval −2.1 to +24.9)" in page
    assert "4,870 / 5,000" in page


@pytest.mark.parametrize(
    ("member", "expected"),
    [
        ("220", "excluded: no consent"),
        (" 97 ", "message: unknown"),
        ("140", "held out"),
        ("399", "is not in this run&#39;s segment"),
        ("9" * 18, "is not in this run&#39;s segment"),
    ],
)
def test_why_this_member(nights: psycopg.Connection[Any], member: str, expected: str) -> None:
    page = client(language="en").get("/run", params={"id": world.RUN_ID, "member": member})
    assert page.status_code == 200
    assert expected in page.text


def test_a_member_is_explained_and_a_stranger_is_not(nights: psycopg.Connection[Any]) -> None:
    page = client().get(f"/member?member=1&as_of={world.DAY_TWO}")
    assert page.status_code == 200
    assert "member 1, at the end of" in page.text
    assert "orders and refunds" in page.text
    assert "没有会员 999999" in client().get("/member?member=999999").text
    assert "nightmarket explain member" not in client().get("/member").text


def test_checks_show_their_last_nights(nights: psycopg.Connection[Any]) -> None:
    overview = client(language="en").get("/").text
    assert "freshness" in overview
    assert "25 hours" in overview
    assert f"checks?night={world.DAY_TWO}" in overview
    page = client(language="en").get("/checks").text
    assert page.index("freshness") < page.index("unique_key")  # what is open comes first
    assert f'light red" title="{world.DAY_TWO}: red"' in page
    assert f'light green" title="{world.DAY_TWO}: passed"' in page  # the second try of that night
    assert f'light green" title="{world.DAY_ONE}: passed"' in page
    assert str(world.DAY_TWO) not in client().get(f"/checks?night={world.DAY_ONE}").text.split("<tbody>")[1]


def test_no_address_is_shown_anywhere(nights: psycopg.Connection[Any]) -> None:
    for page in [*PAGES, f"run?id={quote(world.RUN_ID)}&member=97"]:
        text = client().get(f"/{page}").text
        assert "secret" not in text, page
    assert "has_openid = True" in client().get("/run", params={"id": world.RUN_ID, "member": "97"}).text


def test_markup_in_data_stays_text(nights: psycopg.Connection[Any]) -> None:
    for page in [*PAGES, f"run?id={quote(world.RUN_ID)}&member=99", f"sources?source={quote(world.HOSTILE)}"]:
        text = client().get(f"/{page}").text
        assert "<script>alert" not in text, page
    assert "&lt;script&gt;alert" in client().get("/").text
    assert "<script>alert" not in client().get("/run", params={"id": world.HOSTILE}).text


@pytest.mark.parametrize(
    ("address", "status", "sentence"),
    [
        ("/run?id=nothing@2026-01-01", 404, "There is no run nothing@2026-01-01."),
        ("/run?id=x&member=abc", 400, "A member id is a number; abc is not."),
        ("/run?id=x&member=-1", 400, "A member id is a number"),
        ("/?night=2026-02-30", 400, "is not a date of the form YYYY-MM-DD"),
        ("/run?id=%00", 400, "The address holds a value that makes no sense."),
        ("/run", 422, "id"),
    ],
)
def test_nonsense_gets_one_sentence(nights: psycopg.Connection[Any], address: str, status: int, sentence: str) -> None:
    answer = client(language="en").get(address)
    assert (answer.status_code, sentence in answer.text) == (status, True), answer.text[-300:]


def test_an_empty_house_says_so(db: psycopg.Connection[Any]) -> None:
    visitor = client(language="en")
    assert "No night has run yet." in visitor.get("/").text
    assert "No campaign has run yet." in visitor.get("/runs").text
    assert "No source has ever been read." in visitor.get("/sources").text


def test_a_warehouse_that_is_down_is_one_sentence_without_its_address(
    environment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTMARKET_WAREHOUSE_DSN", "postgresql://somebody:pw@127.0.0.1:1/nowhere")
    settings.get_settings.cache_clear()
    answer = client(language="en").get("/")
    assert answer.status_code == 503
    assert "The warehouse cannot be reached right now." in answer.text
    assert "somebody" not in answer.text


def test_the_reading_role_is_enough(pg: Any, nights: Any, environment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTMARKET_READER_DSN", pg.dsn(environment, "nightmarket_reader"))
    settings.get_settings.cache_clear()
    for page in [*PAGES, f"run?id={quote(world.RUN_ID)}&member=97"]:
        assert client().get(f"/{page}").status_code == 200, page


def test_language_is_kept_once_chosen() -> None:
    def page_language(visitor: TestClient, address: str = "/run?id=x&member=y", **headers: str) -> str:
        found = re.search(r'<html lang="([^"]+)">', visitor.get(address, headers=headers).text)
        assert found
        return found.group(1)

    visitor = TestClient(create_app(require_user=lambda: "ulla"), headers={"accept-language": "de"})
    assert page_language(visitor) == "zh-Hans"
    assert page_language(visitor, **{"accept-language": "en-GB,en;q=0.9"}) == "en"
    assert page_language(visitor, "/run?id=x&member=y&lang=en") == "en"
    assert page_language(visitor) == "en"  # the cookie
    assert page_language(visitor, "/run?id=x&member=y&lang=zh") == "zh-Hans"
    assert page_language(visitor, "/run?id=x&member=y&lang=xx") == "zh-Hans"


def test_only_who_may_send_is_offered_to(nights: psycopg.Connection[Any]) -> None:
    assert "../dags/push_campaign" in client(sender=True).get("/").text
    assert "push_campaign" not in client(sender=False).get("/").text


def test_pages_work_in_a_sandboxed_frame(nights: psycopg.Connection[Any]) -> None:
    for page in PAGES:
        answer = client(sender=True).get(f"/{page}")
        policy = answer.headers["content-security-policy"]
        assert "frame-ancestors 'self'" in policy
        assert "script-src" not in policy  # falls back to default-src 'self': no inline script runs
        assert re.findall(r"<script(?! src=\"static/console.js\" defer)", answer.text) == []
        assert re.findall(r'\son[a-z]+="', answer.text) == []
        targets = re.findall(r'(?:href|src|action)="([^"]+)"', answer.text)
        assert targets
        assert [target for target in targets if target.startswith(("/", "http"))] == []
        assert "target=" not in answer.text
    for name in ("console.css", "console.js"):
        assert client().get(f"/static/{name}").status_code == 200


def test_failed_tasks_and_paused_channels_are_things_to_look_at(
    nights: psycopg.Connection[Any], set_clock: Any
) -> None:
    night = world.at(world.DAY_TWO + timedelta(days=1), 2, 40)
    set_clock(night.isoformat())
    nights.execute(
        "INSERT INTO push.audit_log (occurred_at, actor, action, subject, detail)"
        " VALUES (%s, 'airflow', 'task_failed', 'extract_taobao_flagship/run1/land_trades', %s)",
        (night, '{"sentence": "taobao: the session has expired"}'),
    )
    nights.execute(
        "INSERT INTO push.pace (account, rate_per_second, next_at, paused_until, pause_reason)"
        " VALUES ('email:email', 1, %s, %s, '20 refusals in a row'), ('wechat_mass:x', 1, %s, %s, 'over')",
        (night, night + timedelta(minutes=5), night, night - timedelta(minutes=5)),
    )
    page = client(language="en").get("/").text
    assert "extract_taobao_flagship · land_trades (2026-03-14 02:40). taobao: the session has expired" in page
    assert "Channel email:email is paused until 2026-03-14 02:45: 20 refusals in a row" in page
    assert "wechat_mass:x" not in page
    assert "land_trades" not in client().get("/", params={"night": str(world.DAY_ONE)}).text
