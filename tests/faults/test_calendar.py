"""Limits at the end of a month, in a leap year: what went out on 29 February counts for February, and seven days are seven days."""

from datetime import date, datetime, timedelta
from typing import Any

import pytest
from psycopg.types.json import Jsonb

from campaign_world import approve, green_night, sandbox_openids
from nightmarket import dates
from nightmarket.campaigns import outbox
from nightmarket.campaigns.audience import build_run
from nightmarket.campaigns.config import load_channels
from nightmarket.campaigns.results import dry_run_report
from nightmarket.warehouse import connect

AS_OF = date(2028, 2, 28)


@pytest.fixture
def members(stage: Any) -> list[int]:
    """Three followers of the mass account, in the run of 28 February, which is sent on the 29th."""
    stage._set_clock("2028-02-29T08:30:00+08:00")  # ours only: nothing is called here
    green_night(stage.db, AS_OF)
    stage.config.campaign(
        channels=["wechat_mass"],
        parameters={"min_days": 60, "max_days": 2000, "min_net_amount": 300},
        send_window={"opens": "08:00", "closes": "22:00"},
    )
    return [stage.people.add(openid=openid) for openid in sandbox_openids(stage.sandbox)[:3]]


def run(stage: Any) -> str:
    run_id = build_run("winback_gold", AS_OF, "live", "tester")
    approve(run_id, dry_run_report(run_id))
    outbox.enqueue(run_id)
    return run_id


def received(
    stage: Any, member_id: int, count: int, at: str, channel: str = "wechat_mass", purpose: str = "marketing"
) -> None:
    """Messages of earlier campaigns, accepted at one moment."""
    for number in range(count):
        name = f"earlier {number}"
        stage.db.execute(
            "INSERT INTO push.campaign_runs (run_id, campaign, mode, as_of, as_of_at, config, config_hash, state, created_by, created_at,"
            " expires_at) VALUES (%(name)s, %(name)s, 'live', %(day)s, %(at)s, %(config)s, 'x', 'sent', 'test', %(at)s, %(at)s)"
            " ON CONFLICT DO NOTHING",
            {"name": name, "day": AS_OF - timedelta(days=9), "at": at, "config": Jsonb({})},
        )
        stage.db.execute(
            "INSERT INTO push.messages (message_key, run_id, member_id, step, channel, account, purpose, address, template, language,"
            " variables, state, not_before, expires_at, queued_at, accepted_at, updated_at)"
            " VALUES (%(key)s, %(name)s, %(member)s, 'send', %(channel)s, 'x', %(purpose)s, 'x', 't', 'zh', '{}', 'accepted', %(at)s, %(at)s,"
            " %(at)s, %(at)s, %(at)s)",
            {
                "key": f"{name}/{member_id}",
                "name": name,
                "member": member_id,
                "channel": channel,
                "purpose": purpose,
                "at": at,
            },
        )


def claim(stage: Any, run_id: str, moment: str) -> set[int]:
    """Whom a worker would send to at this moment."""
    stage._set_clock(moment)
    (row,) = stage.db.execute("SELECT * FROM push.campaign_runs WHERE run_id = %s", (run_id,)).fetchall()
    lane = outbox.Lane(row, "wechat_mass", load_channels().channels["wechat_mass"], "w", timedelta(seconds=120))
    with connect(autocommit=True) as connection, connection.transaction():
        claimed = {message["message_id"] for message in lane.claim(connection, 100)}
    rows = stage.db.execute("SELECT message_id, member_id FROM push.messages WHERE run_id = %s", (run_id,)).fetchall()
    return {message["member_id"] for message in rows if message["message_id"] in claimed}


def test_what_came_on_29_february_counts_for_february(stage: Any, members: list[int]) -> None:
    """Four mass messages on the 29th, for other purposes than marketing: a fifth one only from the first of March on."""
    run_id = run(stage)
    received(stage, members[0], 4, "2028-02-29T08:31:00+08:00", purpose="service")
    assert claim(stage, run_id, "2028-02-29T21:59:30+08:00") == set(members[1:])
    states = stage.db.execute("SELECT state, last_error FROM push.messages WHERE run_id = %s AND member_id = %s",
                              (run_id, members[0])).fetchall()  # fmt: skip
    assert states == [{"state": "suppressed", "last_error": "channel_limit"}]


def test_on_the_first_of_march_a_new_month_begins(stage: Any, members: list[int]) -> None:
    run_id = run(stage)
    received(stage, members[0], 4, "2028-02-29T23:59:59+08:00", purpose="service")
    assert claim(stage, run_id, "2028-03-01T08:00:01+08:00") == set(members)


def test_the_month_is_that_of_the_house(stage: Any, members: list[int]) -> None:
    """00:30 in Shanghai on the first of March is still February in UTC."""
    run_id = run(stage)
    received(stage, members[0], 4, "2028-02-29T16:30:00+00:00", purpose="service")
    assert claim(stage, run_id, "2028-03-01T08:00:01+08:00") == set(members[1:])


@pytest.mark.parametrize(("seconds", "is_capped"), [(30, True), (-30, False)])
def test_seven_days_over_29_february(stage: Any, members: list[int], seconds: int, is_capped: bool) -> None:
    """The cap looks back seven times twenty-four hours, leap day or not."""
    run_id = run(stage)
    moment = datetime.fromisoformat("2028-03-01T10:00:00+08:00")
    received(stage, members[0], 2, (moment - timedelta(days=7) + timedelta(seconds=seconds)).isoformat(), "email")
    assert claim(stage, run_id, moment.isoformat()) == set(members[1:] if is_capped else members)


def test_a_run_lives_over_29_february(stage: Any, members: list[int]) -> None:
    """Sent from the 29th on and for forty-eight hours: until the second of March."""
    run_id = run(stage)
    row = stage.db.execute("SELECT expires_at FROM push.campaign_runs WHERE run_id = %s", (run_id,)).fetchone()
    assert row == {"expires_at": datetime.fromisoformat("2028-03-02T08:00:00+08:00")}
    assert claim(stage, run_id, "2028-03-02T08:00:01+08:00") == set()
    assert outbox.recover() == {}
    assert dates.now() > row["expires_at"]
