"""Weibo: the client's rules, what the simulator refuses, reading over HTTP, and core against the world's truth."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import requests

from nightmarket import dates
from nightmarket.dates import Window
from nightmarket.platforms import base, weibo
from nightmarket.platforms.base import AuthError, BadPayload, NotFound, PlatformDown, RateLimited, Refused, Transport
from nightmarket.settings import ConfigError, Credentials
from nightmarket.warehouse import Row

STREAMS = ("posts", "post_stats", "comments", "mentions", "followers", "account")


def keys(sandbox: Any, **changes: str) -> Credentials:
    account = sandbox.access["weibo"]
    given = {"uid": account["uid"], "token": account["access_token"]} | changes
    return Credentials("weibo_brand", account["base_url"], given["uid"], given["token"])


def client(sandbox: Any, page: int = 1000, **options: Any) -> weibo.Client:
    transport = Transport("weibo", sleep=lambda _: None)
    return weibo.connect(keys(sandbox), transport, options=weibo.Options(**options), page_sizes={"*": page})


def read(account: weibo.Client, stream: str, said: list[str] | None = None, **changes: Any) -> list[dict[str, Any]]:
    definition = weibo.STREAMS[stream]
    given: dict[str, Any] = {
        "until": dates.now().replace(microsecond=0),
        "cursors": {},
        "overlap": definition.overlap,
        "window": definition.window,
        "history": timedelta(days=700),
        "say": (said if said is not None else []).append,
    }
    slices = definition.slices(account, base.Plan(**(given | changes)))
    return [record for piece in slices for page in piece.pages() for record in page]


def fault(sandbox: Any, kind: str, method: str = "*", times: int = 1, after: int = 0) -> None:
    entry = {"platform": "weibo", "method": method, "kind": kind, "times": times, "after": after}
    sandbox.control("POST", "/faults", {"faults": [entry]})


class Raw:
    """Calls as any program would make them, without our client."""

    def __init__(self, sandbox: Any) -> None:
        self.access = sandbox.access["weibo"]

    def get(self, path: str, verb: str = "GET", token: str | None = None, **query: Any) -> tuple[int, Any]:
        sent = {"access_token": self.access["access_token"] if token is None else token, **query}
        answer = requests.request(verb, f"{self.access['base_url']}/{path}", params=sent, timeout=10)
        return answer.status_code, answer.json()

    def code(self, path: str, **query: Any) -> int:
        status, answer = self.get(path, **query)
        assert status in (400, 403, 404, 405)
        assert answer["request"] == f"/{path}"
        return int(answer["error_code"])


@pytest.fixture
def raw(sandbox: Any) -> Raw:
    return Raw(sandbox)


# ------------------------------------------------------------------------------------------------- the client alone


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (21327, AuthError, "has expired; let the account's owner authorise the application again"),
        (21332, AuthError, "not valid"),
        (21319, AuthError, "taken back"),
        (21335, AuthError, "belongs to another account"),
        (10014, AuthError, "lacks the permission"),
        (10001, PlatformDown, "not available right now"),
        (20101, NotFound, "does not exist"),
        (10017, Refused, "refused (error 10017)"),
    ],
)
def test_error_codes_become_types_and_sentences(code: int, kind: type[Exception], words: str) -> None:
    error = weibo.to_error("/2/statuses/count.json", code)
    assert type(error) is kind
    assert words in str(error)
    assert str(error).startswith("weibo, /2/statuses/count.json: ")


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("Tue May 31 17:46:55 +0800 2011", datetime(2011, 5, 31, 9, 46, 55, tzinfo=UTC)),
        ("Fri Mar 01 10:00:00 +0800 2024", datetime(2024, 3, 1, 2, 0, tzinfo=UTC)),
        ("Wed Feb 29 10:00:00 +0000 2024", datetime(2024, 2, 29, 10, 0, tzinfo=UTC)),
        ("Wed Feb 30 10:00:00 +0800 2024", None),
        ("Mi Mai 31 17:46:55 +0800 2011", None),
        ("2011-05-31 17:46:55", None),
        ("", None),
        (None, None),
    ],
)
def test_times_are_read_in_english_whatever_the_machine_speaks(text: Any, moment: datetime | None) -> None:
    assert weibo.to_time(text) == moment


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"uid": ""}, r"login \(the account's numeric uid\) is missing"),
        ({"uid": "夜市"}, "login is not a uid"),
        ({"token": ""}, r"password \(access token\) is missing"),
    ],
)
def test_a_connection_names_what_is_missing(sandbox: Any, changes: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=rf"connection 'weibo_brand': {words}"):
        weibo.connect(keys(sandbox, **changes), Transport("weibo"), options=weibo.Options())


def test_counts_are_written_for_the_day_that_is_over() -> None:
    def day(until: datetime) -> str:
        return weibo.observed_on(base.Plan(until, {}, timedelta(0), timedelta(1), timedelta(1)))

    midnight = dates.day_start(dates.today())
    yesterday = (dates.today() - timedelta(days=1)).isoformat()
    assert day(midnight) == yesterday
    if dates.now() - midnight > timedelta(minutes=1):
        assert day(dates.now()) == dates.today().isoformat()
    assert day(midnight - timedelta(days=40)) >= yesterday, "the platform does not tell what was 40 days ago"


# ------------------------------------------------------------------------------------------- what the simulator refuses


@pytest.mark.parametrize(
    ("path", "query", "code"),
    [
        ("2/statuses/user_timeline.json", {"uid": "6000000020"}, 21335),
        ("2/friendships/followers.json", {"uid": "1"}, 21335),
        ("2/statuses/user_timeline.json", {"token": ""}, 10006),
        ("2/statuses/user_timeline.json", {"token": "2.00other"}, 21332),
        ("2/statuses/user_timeline.json", {"count": "many"}, 10017),
        ("2/statuses/user_timeline.json", {"verb": "POST"}, 10021),
        ("2/statuses/count.json", {}, 10016),
        ("2/statuses/count.json", {"ids": ",".join("1" for _ in range(101))}, 10017),
        ("2/statuses/show.json", {"id": "17"}, 20101),
        ("2/users/show.json", {"uid": "17"}, 20003),
        ("2/no/such.json", {}, 10020),
    ],
)
def test_refusals(raw: Raw, path: str, query: dict[str, Any], code: int) -> None:
    assert raw.code(path, **query) == code


def test_a_token_ends_and_cannot_be_renewed(sandbox: Any, raw: Raw) -> None:
    _, info = raw.get("oauth2/get_token_info", verb="POST")
    assert str(info["uid"]) == raw.access["uid"]
    assert info["expire_in"] > 86_400 * 1000
    sandbox.control("POST", "/settings", {"weibo_token_days": 20})
    assert raw.code("2/users/counts.json", uids=raw.access["uid"]) == 21327
    with pytest.raises(AuthError, match="let the account's owner authorise the application again"):
        read(client(sandbox), "account")


def test_the_limit_of_an_hour(sandbox: Any, raw: Raw) -> None:
    sandbox.control("POST", "/settings", {"weibo_hour_calls": 2})
    counts = {"uids": raw.access["uid"]}
    assert [raw.get("2/users/counts.json", **counts)[0] for _ in range(2)] == [200, 200]
    assert raw.code("2/users/counts.json", **counts) == 10023
    account = client(sandbox)
    with pytest.raises(RateLimited, match="the hour's limit of this account is used up") as caught:
        read(account, "account")
    assert 1700 < caught.value.retry_after <= 1800, "it is 02:30: the platform tells how long the hour still lasts"
    assert caught.value.of_account
    sandbox.control("POST", "/settings", {"weibo_hour_calls": 5000})
    fault(sandbox, "call_limit", "2/users/counts.json")
    with pytest.raises(RateLimited, match="of this interface") as caught:
        read(account, "account")
    assert not caught.value.of_account


def test_pages_of_followers_hold_five_and_end_at_the_sample(sandbox: Any, raw: Raw) -> None:
    truth = sandbox.control("GET", "/truth")["weibo"]
    _, first = raw.get("2/friendships/followers.json", uid=raw.access["uid"], count=200)
    assert len(first["users"]) == min(5, truth["sample"])
    assert first["total_number"] == truth["followers"] > truth["sample"]
    assert truth["sample"] <= truth["followers"] * 0.3


def test_count_leaves_unknown_ids_out_without_a_word(raw: Raw) -> None:
    _, timeline = raw.get("2/statuses/user_timeline.json", count=2)
    known = [row["id"] for row in timeline["statuses"]]
    assert all(number > 2**53 and int(float(number)) != number for number in known), "a float would change them"
    _, counts = raw.get("2/statuses/count.json", ids=f"{known[0]},17,{known[1]}")
    assert [row["id"] for row in counts] == known


# ------------------------------------------------------------------------------------------------------ over HTTP


@pytest.mark.parametrize("page", [7, 1000])
def test_what_is_read_is_the_worlds(sandbox: Any, page: int) -> None:
    account = client(sandbox, page, stats_days=700)
    truth = sandbox.control("GET", "/truth")["weibo"]
    for stream in ("posts", "comments", "mentions"):
        found = [record["id"] for record in read(account, stream)]
        assert len(found) == len(set(found)) == truth[stream] > 50, stream
    stats = read(account, "post_stats")
    totals = {name: sum(row[name] for row in stats) for name in ("reposts", "comments", "attitudes")}
    expected = truth["post_stats"]
    assert totals == {"reposts": expected["reposts"], "comments": expected["comments"], "attitudes": expected["likes"]}
    assert {row["observed_on"] for row in stats} == {"2026-03-15"}
    said: list[str] = []
    assert len(read(account, "followers", said)) == truth["sample"]
    assert said == [f"a sample of {truth['sample']} of {truth['followers']} followers: the free API shows no more"]
    (figures,) = read(account, "account")
    assert (figures["followers_count"], figures["statuses_count"]) == (truth["followers"], truth["posts"])


def test_long_posts_are_read_whole(sandbox: Any) -> None:
    found = read(client(sandbox), "posts")
    long = [record for record in found if record["isLongText"]]
    assert len(long) > 10
    assert all(len(record["longText"]["longTextContent"]) > 140 for record in long)
    assert all(record["text"].endswith("...全文") for record in long)
    cut = [record for record in read(client(sandbox, long_texts=False), "posts") if record["isLongText"]]
    assert len(cut) == len(long)
    assert not any("longText" in record for record in cut)


def test_a_later_run_walks_back_only_as_far_as_it_must(sandbox: Any) -> None:
    account = client(sandbox, 20, long_texts=False)
    everything = {record["id"] for record in read(account, "posts")}
    calls = account.transport.requests
    mark = dates.now() - timedelta(days=30)
    recent = {record["id"] for record in read(account, "posts", cursors={"": mark})}
    assert account.transport.requests - calls <= 3
    assert recent < everything
    wanted = {record["id"] for record in read(account, "posts") if weibo.to_time(record["created_at"]) >= mark}  # type: ignore[operator]
    assert wanted <= recent


def test_a_list_that_ends_too_soon_is_told_unless_the_application_sees_no_more(sandbox: Any) -> None:
    sandbox.control("POST", "/settings", {"weibo_timeline_rows": 5})
    with pytest.raises(PlatformDown, match=r"the list ended after 5 of \d+ rows; .* options\.timeline to newest"):
        read(client(sandbox), "posts")
    said: list[str] = []
    assert len(read(client(sandbox, timeline="newest"), "posts", said)) == 5
    total = sandbox.control("GET", "/truth")["weibo"]["posts"]
    assert said == [f"the newest 5 of {total} rows: this application is shown no more"]


@pytest.mark.parametrize("stream", ["posts", "comments", "mentions", "followers"])
def test_faults_of_lists_lose_nothing(sandbox: Any, stream: str) -> None:
    account = client(sandbox, 20 if stream != "followers" else 2, long_texts=False)
    key = weibo.STREAMS[stream].record_key
    expected = {key(record) for record in read(account, stream)}
    path = {"posts": "statuses/user_timeline.json", "comments": "comments/to_me.json", "mentions": "statuses/mentions.json", "followers": "friendships/followers.json"}[stream]  # fmt: skip
    for kind in ("empty_last_page", "duplicate_page", "platform_busy", "http_500"):
        fault(sandbox, kind, path, times=1, after=1)
        assert {key(record) for record in read(account, stream)} == expected, kind
    fault(sandbox, "ids_as_numbers", path, times=-1)
    assert {key(record) for record in read(account, stream)} == expected
    fault(sandbox, "missing_fields", path, times=1)
    keys = [key(record) for record in read(account, stream)]
    assert keys.count(None) == 1
    assert len(set(keys) - {None}) == len(expected) - 1


def test_missing_counts_are_asked_for_again(sandbox: Any) -> None:
    account = client(sandbox, stats_days=700)
    expected = {row["id"]: row for row in read(account, "post_stats")}
    fault(sandbox, "missing_fields", "statuses/count.json")  # one row comes without its id
    found = [row for row in read(account, "post_stats") if "id" in row]
    assert {row["id"]: row for row in found} == expected


def test_shapes_that_are_none(sandbox: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    account = client(sandbox)
    monkeypatch.setattr(account.transport, "fetch", lambda *a, **k: (200, b'{"statuses": {}}'))
    with pytest.raises(BadPayload, match="page 1 has no list of statuses"):
        read(account, "posts")
    with pytest.raises(BadPayload, match="not a list of counts"):
        weibo._counts(account, [1])
    with pytest.raises(BadPayload, match="no counts of the account"):
        read(account, "account")
    monkeypatch.setattr(account.transport, "fetch", lambda *a, **k: (404, b"{}"))
    with pytest.raises(Refused, match="HTTP 404; check the address"):
        read(account, "posts")


def test_check_names_the_account_and_warns_before_the_token_ends(sandbox: Any) -> None:
    followers = sandbox.control("GET", "/truth")["weibo"]["followers"]
    sentence = weibo.check(client(sandbox), STREAMS).sentence()
    assert sentence == f"works for account 夜市官方微博 with {followers} followers; clocks agree"
    sandbox.control("POST", "/settings", {"weibo_token_days": 40})
    found = weibo.check(client(sandbox), STREAMS)
    assert found.problems["token"].startswith("it ends in 9 days and cannot be renewed by a program; let the account's")
    fault(sandbox, "revoked_token", "statuses/mentions.json", times=-1)
    assert set(weibo.check(client(sandbox), STREAMS).problems) == {"mentions", "token"}
    other = weibo.connect(keys(sandbox, uid="6000000020"), Transport("weibo"), options=weibo.Options(), page_sizes={})
    with pytest.raises(AuthError, match="belongs to another account"):
        weibo.check(other, STREAMS)


# -------------------------------------------------------------------------------------------------------- into core


def night(run_id: str) -> dict[str, Any]:
    from nightmarket import landing, mapping

    until = dates.now()
    done = {stream: landing.land("weibo_brand", stream, run_id=run_id, until=until) for stream in STREAMS}
    mapping.map_source("weibo_brand", run_id=run_id)
    return done


def one(db: psycopg.Connection[Row], query: str) -> Any:
    row = db.execute(query).fetchone()  # type: ignore[arg-type]
    assert row is not None
    return next(iter(row.values()))


def assert_truth(db: psycopg.Connection[Row], truth: dict[str, Any], day: str) -> None:
    figures = {
        "posts": "SELECT count(*) FROM core.social_posts",
        "comments": "SELECT count(*) FROM core.social_comments WHERE kind = 'comment' AND post_id IS NOT NULL",
        "mentions": "SELECT count(*) FROM core.social_comments WHERE kind = 'mention' AND post_id IS NULL",
        "followers": f"SELECT value FROM core.social_stats_daily WHERE metric = 'followers_count' AND stat_date = '{day}'",
    }
    found = {name: one(db, query) for name, query in figures.items()}
    assert {name: (value, truth[name]) for name, value in found.items() if value != truth[name]} == {}
    assert one(db, "SELECT count(*) FROM raw.rejects WHERE resolved_at IS NULL") == 0


def test_core_is_the_worlds_truth_and_stays_so(
    db: psycopg.Connection[Row], sandbox: Any, set_clock: Callable[[str], None]
) -> None:
    done = night("one")
    truth = sandbox.control("GET", "/truth")["weibo"]
    assert_truth(db, truth, "2026-03-15")
    sample = f"a sample of {truth['sample']} of {truth['followers']} followers"
    assert sample in done["followers"].sentence(), "the run's summary says how much of it this is"
    first = {row["openid"] for row in db.execute("SELECT openid FROM core.followers")}
    assert len(first) == truth["sample"]
    for day in ("2026-03-20", "2026-04-20"):
        moment = f"{day}T02:30:00+08:00"
        set_clock(moment)
        sandbox.control("POST", "/clock", {"now": moment})
        night(day)
        assert_truth(db, sandbox.control("GET", "/truth")["weibo"], day)
    later = sandbox.control("GET", "/truth")["weibo"]
    assert later["posts"] > truth["posts"]
    # the sample moved on: nobody is taken for gone because of that
    assert first < {row["openid"] for row in db.execute("SELECT openid FROM core.followers WHERE is_following")}
    assert one(db, "SELECT count(*) FROM core.followers WHERE NOT is_following OR unfollowed_at IS NOT NULL") == 0
    assert one(db, "SELECT count(*) FROM core.consents") == 0, "being seen in a sample is no consent"
    totals = (Path(__file__).resolve().parents[2] / "include/sql/console/totals_people.sql").read_text(encoding="utf-8")
    row = db.execute(totals, {"business_date": "2026-04-19"}).fetchone()  # type: ignore[arg-type]
    assert row is not None
    assert row["follower_count"] == 0, "a sample is not counted as if it were everybody"
    # counts: one value per day, cumulative
    days = [
        row["stat_date"].isoformat()
        for row in db.execute("SELECT DISTINCT stat_date FROM core.social_post_stats ORDER BY 1")
    ]
    assert days == ["2026-03-15", "2026-03-20", "2026-04-20"]
    shrinking = one(
        db,
        "SELECT count(*) FROM (SELECT value - lag(value) OVER (PARTITION BY post_id, metric ORDER BY stat_date) AS grown"
        " FROM core.social_post_stats) AS g WHERE g.grown < 0",
    )
    assert shrinking == 0
    recent = one(db, "SELECT count(*) FROM core.social_posts WHERE published_at > '2026-01-20T02:30:00+08:00'")
    assert (
        one(db, "SELECT count(DISTINCT post_id) FROM core.social_post_stats WHERE stat_date = '2026-04-20'") >= recent
    )


def test_people_and_texts_in_core(db: psycopg.Connection[Row], sandbox: Any) -> None:
    night("one")
    assert one(db, "SELECT count(*) FROM core.social_comments WHERE identity_id IS NULL") == 0
    kinds = {row["kind"] for row in db.execute("SELECT DISTINCT kind FROM core.identities")}
    assert kinds == {"weibo_uid"}
    commented = one(db, "SELECT count(DISTINCT payload #>> '{user,id}') FROM raw.records WHERE stream = 'comments'")
    assert one(db, "SELECT count(DISTINCT identity_id) FROM core.social_comments WHERE kind = 'comment'") == commented
    # a phone somebody wrote into a comment is a token, and so are the names people gave themselves
    assert (
        one(db, r"SELECT count(*) FROM raw.records WHERE payload::text ~ '\m100[0-9]{8}\M' AND stream = 'comments'")
        == 0
    )
    assert one(db, "SELECT count(*) FROM core.social_comments WHERE content LIKE '%phone:%'") > 0
    names = [person["name"] for person in sandbox.control("GET", "/people")["people"]]
    texts = " ".join(
        row["t"] for row in db.execute("SELECT payload::text AS t FROM raw.records WHERE stream <> 'posts'")
    )
    assert [name for name in names if len(name) > 2 and name in texts] == []
    longest = one(db, "SELECT max(length(content)) FROM core.social_posts")
    assert longest > 200
    assert one(db, "SELECT count(*) FROM core.social_posts WHERE kind = 'repost'") > 5
    assert one(db, "SELECT count(*) FROM core.social_posts WHERE url NOT LIKE 'https://weibo.com/1404376560/%'") == 0


def test_reading_and_mapping_again_changes_nothing(db: psycopg.Connection[Row], sandbox: Any) -> None:
    from nightmarket import mapping

    night("one")
    tables = ("social_posts", "social_post_stats", "social_comments", "followers", "social_stats_daily", "identities")

    def marks() -> dict[str, str]:
        query = "SELECT md5(string_agg(t::text, '' ORDER BY t::text)) FROM core.{} AS t"
        return {table: one(db, query.format(table)) for table in tables}

    before = marks()
    second = night("two")
    assert {stream: summary.changed for stream, summary in second.items()} == dict.fromkeys(STREAMS, 0)
    mapping.reset_mappings(db, "weibo_brand")
    mapping.map_source("weibo_brand", run_id="three")
    assert marks() == before


def test_a_row_without_an_id_comes_in_with_the_next_run(db: psycopg.Connection[Row], sandbox: Any) -> None:
    fault(sandbox, "missing_fields", "comments/to_me.json")
    first = night("one")
    assert first["comments"].rejected == 1
    truth = sandbox.control("GET", "/truth")["weibo"]
    assert one(db, "SELECT count(*) FROM core.social_comments WHERE kind = 'comment'") == truth["comments"] - 1
    night("two")
    assert_truth(db, sandbox.control("GET", "/truth")["weibo"], "2026-03-15")


def test_a_past_window_can_be_read_again(sandbox: Any) -> None:
    definition = weibo.STREAMS["comments"]
    assert definition.backfill is not None
    account = client(sandbox)
    window = Window(datetime(2025, 10, 1, tzinfo=UTC), datetime(2025, 10, 11, tzinfo=UTC))
    plan = base.Plan(dates.now(), {}, timedelta(0), timedelta(days=3650), timedelta(days=700))
    pages = [page for piece in definition.backfill(account, plan, window) for page in piece.pages()]
    times = [weibo.to_time(record["created_at"]) for page in pages for record in page]
    known = [weibo.to_time(record["created_at"]) for record in read(account, "comments")]
    inside = [at for at in known if at is not None and window.start <= at < window.end]
    assert inside
    assert [at for at in times if at is not None and window.start <= at < window.end] == inside
