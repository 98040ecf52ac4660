"""Data in, end to end over HTTP: core holds what the platforms hold, exactly, however often and in whatever steps it was read."""

from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest
from nights import SOURCES, assert_truth, business, everything, land_all, map_all, night, one

from nightmarket import dates, landing, mapping, settings, sources
from nightmarket.platforms.base import NoOptions, Transport
from nightmarket.privacy import Keyring, open_secrets
from nightmarket.warehouse import Row, connect, connect_vault

SMALL_PAGES = {"*": 7}


def requests_by_method(sandbox: Any) -> dict[str, int]:
    found: dict[str, int] = sandbox.control("GET", "/counters")["requests"]["taobao"]
    return found


def empty_warehouse() -> None:
    admin = settings.get_settings().admin_dsn
    assert admin is not None
    with connect(admin.get_secret_value()) as connection:
        names = connection.execute(
            "SELECT string_agg(format('%I.%I', schemaname, tablename), ', ') AS names FROM pg_tables"
            " WHERE schemaname IN ('raw', 'core', 'vault')"
        ).fetchone()
        assert names is not None
        connection.execute(f"TRUNCATE {names['names']} RESTART IDENTITY CASCADE")  # type: ignore[arg-type]


def move(sandbox: Any, set_clock: Any, moment: str) -> None:
    set_clock(moment)
    sandbox.control("POST", "/clock", {"now": moment})


def test_the_first_night_equals_the_truth_and_a_second_reading_changes_nothing(
    db: psycopg.Connection[Row], sandbox: Any
) -> None:
    summaries = night("first")
    assert_truth(db, sandbox.control("GET", "/truth"))
    assert one(db, "SELECT count(*) FROM raw.rejects") == 0
    for summary in summaries.values():
        assert summary.seen == summary.changed > 0
        assert f"wrote {summary.changed:,} new or changed versions" in summary.sentence()
    before = everything(db)
    again = night("again")
    assert {name: summary.changed for name, summary in again.items()} == dict.fromkeys(again, 0)
    assert again["taobao_flagship/trades"].seen > 0, "the overlap was not read again"
    assert everything(db) == before


def test_everybody_who_bound_a_phone_is_one_person(db: psycopg.Connection[Row], sandbox: Any) -> None:
    night("first")
    split = one(
        db,
        """
        SELECT count(*) FROM core.identity_links AS l
        JOIN core.member_identities AS a ON a.identity_id = l.identity_a
        JOIN core.member_identities AS b ON b.identity_id = l.identity_b
        WHERE a.member_id <> b.member_id
        """,
    )
    assert split == 0
    bought_and_follows = one(
        db,
        """
        SELECT count(*) FROM (
            SELECT mi.member_id FROM core.member_identities AS mi JOIN core.identities AS i USING (identity_id)
            GROUP BY mi.member_id HAVING array_agg(DISTINCT i.kind) @> '{taobao_open_uid,wechat_openid}') AS m
        """,
    )
    assert bought_and_follows > 10
    assert one(db, "SELECT count(*) FROM core.identities") == one(db, "SELECT count(*) FROM core.member_identities")


def test_small_pages_and_split_windows_give_the_same_rows(db: psycopg.Connection[Row], sandbox: Any) -> None:
    night("whole")
    whole = business(db)
    assert len(whole["core.orders"]) > 500
    empty_warehouse()
    small = night("small", page_sizes=SMALL_PAGES)
    assert small["taobao_flagship/trades"].requests > 100
    assert business(db) == whole
    empty_warehouse()
    # the first load ends days ago, the rest comes as increments, window by window
    for days in (9, 4, 3, 0):
        land_all(f"split-{days}", dates.now() - timedelta(days=days))
    map_all("split")
    assert business(db) == whole


def test_a_full_remap_from_raw_gives_the_same_rows(db: psycopg.Connection[Row], sandbox: Any) -> None:
    night("first")
    before = everything(db)
    for source in SOURCES:
        assert mapping.reset_mappings(db, source) > 0
    map_all("remap")
    assert everything(db) == before


def test_the_next_night_reads_increments_only_and_equals_the_truth(
    db: psycopg.Connection[Row], sandbox: Any, set_clock: Any
) -> None:
    night("one")
    before = requests_by_method(sandbox)
    sandbox.control("POST", "/settings", {"purchase_base": 0.2, "refund_live": 0.3, "write_daily": 0.2})
    for day in ("2026-03-16", "2026-03-17", "2026-03-18", "2026-03-19"):
        move(sandbox, set_clock, f"{day}T02:30:00+08:00")
        summaries = night(day)
        assert 0 < summaries["taobao_flagship/trades"].changed < 200
        assert_truth(db, sandbox.control("GET", "/truth"))
    after = requests_by_method(sandbox)
    for method in ("taobao.trades.sold.get", "taobao.trades.sold.history.get"):
        assert after[method] == before[method], f"{method} was called again"
    assert after["taobao.trade.fullinfo.get"] > 0
    assert one(db, "SELECT count(*) FROM core.interactions WHERE kind = 'message'") > 10
    signed = one(db, "SELECT count(*) FROM core.shipments WHERE signed_at > '2026-03-15 02:30'")
    assert signed > 0
    # a change of an order reaches its lines: every line has the status of its order, or is refunded
    assert one(db, "SELECT count(*) FROM core.order_lines AS l JOIN core.orders AS o USING (source_id, order_id)"
                   " WHERE l.batch_id <> o.batch_id OR l.status NOT IN (o.status, 'refunded')") == 0  # fmt: skip


def test_a_night_that_was_missed_is_caught_up(db: psycopg.Connection[Row], sandbox: Any, set_clock: Any) -> None:
    night("one")
    move(sandbox, set_clock, "2026-03-21T02:30:00+08:00")
    summary = night("late")["taobao_flagship/trades"]
    assert summary.windows >= 6, "an increment may not ask for more than a day"
    assert_truth(db, sandbox.control("GET", "/truth"))


def test_leaving_is_a_state_and_withdraws_consent(db: psycopg.Connection[Row], sandbox: Any, set_clock: Any) -> None:
    night("one")
    followed = one(db, "SELECT count(*) FROM core.followers")
    sandbox.control("POST", "/settings", {"unfollow_daily": 0.3, "follow_daily": 0.05})
    for day in ("2026-03-16", "2026-03-18"):
        move(sandbox, set_clock, f"{day}T02:30:00+08:00")
        night(day)
    assert_truth(db, sandbox.control("GET", "/truth"))
    gone = one(db, "SELECT count(*) FROM core.followers WHERE NOT is_following")
    assert gone > 3
    assert one(db, "SELECT count(*) FROM core.followers") > followed
    assert one(db, "SELECT count(*) FROM core.followers WHERE is_following = (unfollowed_at IS NOT NULL)") == 0
    assert one(db, "SELECT count(*) FROM core.followers WHERE followed_at IS NULL") == 0
    # the push tells the exact time, and it lies before the snapshot that missed the person
    unexplained = one(
        db,
        """
        SELECT count(*) FROM core.followers AS f WHERE NOT f.is_following AND NOT EXISTS (
            SELECT FROM core.follow_events AS e
            WHERE e.identity_id = f.identity_id AND e.source_id = f.source_id AND e.kind = 'unfollow' AND e.occurred_at <= f.unfollowed_at)
        """,
    )
    assert unexplained == 0
    latest = db.execute(
        """
        SELECT DISTINCT ON (f.openid) f.is_following, c.is_granted
        FROM core.followers AS f JOIN core.consents AS c USING (identity_id)
        WHERE c.channel = 'wechat' AND c.purpose = 'service'
        ORDER BY f.openid, c.occurred_at DESC, c.is_granted
        """
    ).fetchall()
    assert all(row["is_following"] == row["is_granted"] for row in latest)


def test_a_limit_stops_early_and_the_next_run_reads_the_rest(db: psycopg.Connection[Row], sandbox: Any) -> None:
    summary = landing.land("taobao_flagship", "trades", run_id="a", until=dates.now(), limit=20, page_sizes=SMALL_PAGES)
    assert 20 <= summary.seen < 30
    assert summary.is_limited
    assert "stopped at the limit" in summary.sentence()
    assert summary.watermark is None
    assert one(db, "SELECT count(*) FROM raw.records") == summary.changed
    night("b")
    assert_truth(db, sandbox.control("GET", "/truth"))


def test_a_dry_run_counts_and_writes_nothing(db: psycopg.Connection[Row], sandbox: Any) -> None:
    before = everything(db)
    dry = landing.land("taobao_flagship", "refunds", run_id="dry", until=dates.now(), dry_run=True)
    assert everything(db) == before
    assert one(db, "SELECT count(*) FROM raw.batches") + one(db, "SELECT count(*) FROM vault.secrets") == 0
    wet = landing.land("taobao_flagship", "refunds", run_id="wet", until=dates.now())
    assert dry.changed == wet.changed > 0
    assert "would write" in dry.sentence()


def test_only_unknown_rows_of_a_busy_window_of_reviews_are_split(
    db: psycopg.Connection[Row], sandbox: Any, monkeypatch: Any
) -> None:
    """TOP cuts a list of reviews at 1,500 rows; a window that reaches that is halved until each part is complete."""
    whole = landing.land("taobao_flagship", "rates", run_id="whole", until=dates.now())
    rows = business_reviews(db)
    empty_warehouse()
    from nightmarket.platforms import taobao

    sandbox.control("POST", "/settings", {"top_review_rows": 5})
    monkeypatch.setattr(taobao, "RATE_WINDOW_ROWS", 5)
    split = landing.land("taobao_flagship", "rates", run_id="split", until=dates.now())
    assert split.windows > whole.windows * 2
    assert business_reviews(db) == rows
    assert split.watermark == whole.watermark or datetime.fromisoformat(
        split.watermark or ""
    ) >= datetime.fromisoformat(whole.watermark or "")


def business_reviews(db: psycopg.Connection[Row]) -> list[str]:
    return [row["k"] for row in db.execute("SELECT record_key AS k FROM raw.heads WHERE stream = 'rates' ORDER BY 1")]


def test_no_clear_personal_value_rests_outside_the_vault(db: psycopg.Connection[Row], sandbox: Any) -> None:
    night("first")
    clear = clear_values()
    assert len(clear["phone"]) > 100
    assert len(clear["email"]) > 5
    columns = db.execute(
        """
        SELECT table_schema || '.' || table_name AS name, array_agg(quote_ident(column_name)) AS columns
        FROM information_schema.columns JOIN information_schema.tables USING (table_schema, table_name)
        WHERE table_schema IN ('raw', 'core', 'mart', 'push', 'ops') AND table_type = 'BASE TABLE'
          AND data_type IN ('text', 'jsonb', 'json', 'character varying', 'bytea', 'ARRAY')
        GROUP BY 1
        """
    ).fetchall()
    assert len(columns) > 20
    leaks = []
    for row in columns:
        text = " || ' ' || ".join(f"coalesce({name}::text, '')" for name in row["columns"])
        content = one(db, f"SELECT coalesce(string_agg({text}, ' '), '') FROM {row['name']}")
        leaks += [f"{row['name']}: a {kind}" for kind, values in clear.items() for value in values if value in content]
    assert leaks == []
    # and the values are not lost: delivery can open them
    phones = [row["value"] for row in db.execute("SELECT value FROM core.identities WHERE kind = 'phone'")]
    with connect_vault() as vault:
        assert set(open_secrets(vault, phones, Keyring.from_settings()).values()) == clear["phone"]
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        db.execute("SELECT ciphertext FROM vault.secrets")


def clear_values() -> dict[str, set[str]]:
    """Phones, names and e-mail addresses as the platforms show them to us, asked for directly."""
    found: dict[str, set[str]] = {"phone": set(), "name": set(), "email": set()}
    since, until = dates.now() - timedelta(days=500), dates.now()
    pages = sources.PLATFORMS["own_pages"].connect(
        settings.credentials("own_pages"), Transport("own_pages"), options=NoOptions()
    )
    page, more = 1, True
    while more:
        answer = pages.events(since, until, page)
        for event in answer["events"]:
            if event["kind"] == "binding":
                found["phone"].add(event["data"]["phone"])
                found["name"].add(event["data"]["name"])
                found["email"] |= {event["data"]["email"]} - {None}
        page, more = page + 1, answer["has_more"]
    top = sources.PLATFORMS["taobao"].connect(
        settings.credentials("taobao_flagship"), Transport("taobao"), options=sources.PLATFORMS["taobao"].Options()
    )
    for method in ("taobao.trades.sold.get", "taobao.trades.sold.history.get"):
        for page in range(1, 100):
            answer = top.call(method, page, fields="tid,receiver_name,receiver_mobile,receiver_address", page_size=50)
            trades = answer.get("trades", {}).get("trade", [])
            found["phone"] |= {trade["receiver_mobile"] for trade in trades}
            found["name"] |= {trade["receiver_name"] for trade in trades if len(trade["receiver_name"]) > 2}
            if not trades:
                break
    # names of two characters are also words and parts of addresses; names of three are checked
    found["name"] = {name for name in found["name"] if len(name) > 2}
    return found


@pytest.mark.parametrize(
    ("source_id", "words"),
    [
        ("taobao_flagship", "works for shop 夜市旗舰店; clocks agree"),
        ("wechat_official", "followers; clocks agree"),
        ("own_pages", "events in the last day; clocks agree"),
    ],
)
def test_check_answers_in_a_sentence(environment: str, sandbox: Any, source_id: str, words: str) -> None:
    answer = landing.check_source(source_id)
    assert answer.startswith(f"{source_id}: works for ")
    assert words in answer


def test_check_tells_how_far_the_clock_is_off(environment: str, sandbox: Any, set_clock: Any) -> None:
    set_clock("2026-03-15T02:32:03+08:00")
    assert "clock off by 12" in landing.check_source("taobao_flagship")  # 123 s, give or take the call itself
