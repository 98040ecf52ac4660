"""Consent and suppression: two logs, one rule each. The order of arrival does not matter, the latest word is right, an import never turns
a no into a yes, the opt-outs of all sources add up, people who merge combine, and every answer is for an instant."""

import itertools
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from campaign_world import AS_OF, MORNING, ConfigFolder, People, audience, green_night, write_config
from nightmarket import dates
from nightmarket.campaigns import outbox
from nightmarket.campaigns.audience import build_run
from nightmarket.cli import app
from nightmarket.privacy import Tokenizer
from nightmarket.suppressions import lift, take_list
from nightmarket.warehouse import Row, run_sql

LAW = settings(max_examples=30, database=None)
START = datetime(2026, 3, 1, tzinfo=UTC)
runner = CliRunner()


@dataclass(frozen=True)
class Word:
    """One thing that one of a member's identities said, or a list said about it."""

    identity: int
    channel: str
    is_granted: bool
    origin: str
    hour: int


words = st.lists(
    st.builds(
        Word,
        st.integers(0, 3),
        st.sampled_from(["wechat", "email"]),
        st.booleans(),
        st.sampled_from(["person", "platform", "import"]),
        st.integers(0, 6),
    ),
    max_size=12,
)


def verdict(said: list[Word]) -> bool | None:
    """The rule, naively: the latest word but for a yes of an import, which counts when there is nothing else."""
    own = [word for word in said if not (word.origin == "import" and word.is_granted)]
    if own:
        latest = max(word.hour for word in own)
        return all(word.is_granted for word in own if word.hour == latest)
    return True if said else None


def people(db: psycopg.Connection[Row], members: list[int]) -> list[int]:
    """One identity per entry, of the member with that number; returns the identities."""
    for table in ("consents", "member_identities", "members", "identities"):
        db.execute(f"DELETE FROM core.{table}")  # type: ignore[arg-type]
    for member in sorted(set(members)):
        db.execute(
            "INSERT INTO core.members (member_id, first_seen_at) OVERRIDING SYSTEM VALUE VALUES (%s, '2026-01-01')",
            (member,),
        )
    found = []
    for number, member in enumerate(members):
        row = db.execute(
            "INSERT INTO core.identities (kind, value, source_id, first_seen_at) VALUES ('mall_id', %s, 's', '2026-01-01') RETURNING identity_id",
            (f"m{number}",),
        ).fetchone()
        assert row is not None
        db.execute("INSERT INTO core.member_identities VALUES (%s, %s, '2026-01-01')", (row["identity_id"], member))
        found.append(row["identity_id"])
    return found


def say(db: psycopg.Connection[Row], identity: int, word: Word, number: int) -> None:
    db.execute(
        "INSERT INTO core.consents (source_id, event_id, identity_id, channel, purpose, is_granted, evidence, occurred_at, origin)"
        " VALUES ('s', %s, %s, %s, 'marketing', %s, 'said so', %s, %s)",
        (str(number), identity, word.channel, word.is_granted, START + timedelta(hours=word.hour), word.origin),
    )


def answers(db: psycopg.Connection[Row], hour: int) -> dict[tuple[int, str], bool]:
    rows = db.execute("SELECT * FROM core.consents_as_of(%s)", (START + timedelta(hours=hour),))
    return {(row["member_id"], row["channel"]): row["is_granted"] for row in rows}


@LAW
@given(said=words, data=st.data())
def test_the_rule_holds_for_any_words_in_any_order_at_any_instant(
    db: psycopg.Connection[Row], said: list[Word], data: Any
) -> None:
    members = [1, 1, 2, 2]
    identities = people(db, members)
    for number, word in enumerate(data.draw(st.permutations(said), label="order of arrival")):
        say(db, identities[word.identity], word, number)
    for hour in range(8):
        expected = {}
        for member, channel in itertools.product((1, 2), ("wechat", "email")):
            heard = [w for w in said if members[w.identity] == member and w.channel == channel and w.hour < hour]
            if (granted := verdict(heard)) is not None:
                expected[member, channel] = granted
        assert answers(db, hour) == expected
    now = {(r["member_id"], r["channel"]): r["is_granted"] for r in db.execute("SELECT * FROM core.member_consents")}
    assert now == answers(db, 99)
    # merged, the two are one person whose words all count
    db.execute("UPDATE core.member_identities SET member_id = 1")
    together = {
        ("wechat"): verdict([w for w in said if w.channel == "wechat"]),
        "email": verdict([w for w in said if w.channel == "email"]),
    }
    assert answers(db, 99) == {(1, channel): granted for channel, granted in together.items() if granted is not None}


@LAW
@given(said=words)
def test_an_import_never_turns_a_no_into_a_yes(db: psycopg.Connection[Row], said: list[Word]) -> None:
    identities = people(db, [1, 1, 1, 1])
    for number, word in enumerate(said):
        say(db, identities[word.identity], word, number)
    before = answers(db, 99)
    for number, hour in enumerate((0, 3, 90)):
        say(db, identities[0], Word(0, "wechat", True, "import", hour), 100 + number)
    after = answers(db, 99)
    assert after.pop((1, "wechat")) == before.pop((1, "wechat"), True)
    assert after == before


# ---------------------------------------------------------------------------------------------------------- campaigns
@pytest.fixture
def config(
    db: psycopg.Connection[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, set_clock: Any
) -> ConfigFolder:
    config = write_config(tmp_path / "house", monkeypatch)
    one = [{"name": "gift", "share": 1, "template": "winback_gift"}]
    config.campaign(coupon=None, holdout_share=0, approval={"above": 1000}, variants=one)
    with config.editing("channels.yaml") as data:
        data["global_holdout"]["share"] = 0
    set_clock(MORNING)
    green_night(db)
    return config


@pytest.fixture
def members(db: psycopg.Connection[Row], config: ConfigFolder) -> People:
    return People(db)


def states(db: psycopg.Connection[Row]) -> dict[int, str]:
    return audience(db, build_run("winback_gold", AS_OF, "dry_run", "tester"))


def add_consent(
    db: psycopg.Connection[Row], identity: int, channel: str, granted: bool, origin: str, at: datetime
) -> None:
    db.execute(
        "INSERT INTO core.consents (source_id, event_id, identity_id, channel, purpose, is_granted, evidence, occurred_at, origin)"
        " VALUES ('list', %s, %s, %s, 'marketing', %s, 'a list', %s, %s)",
        (f"{identity}/{at.isoformat()}", identity, channel, granted, at, origin),
    )


def test_a_campaign_hears_an_import_only_where_nobody_spoke(db: psycopg.Connection[Row], members: People) -> None:
    refused, silent, followed = (
        members.add(email="no@mail.test", email_consent=False),
        members.add(email="silent@mail.test"),
        members.add(openid="oREFUSED", wechat_consent=False),
    )
    members.add(openid="oPARTNER")
    db.execute("DELETE FROM core.consents WHERE identity_id = %s", (members.identity_of(silent, "email"),))
    assert states(db)[silent] == "no_consent"
    late = dates.day_end(AS_OF) - timedelta(hours=1)
    for member, kind, channel in (
        (refused, "email", "email"),
        (silent, "email", "email"),
        (followed, "wechat_openid", "wechat"),
    ):
        add_consent(db, members.identity_of(member, kind), channel, True, "import", late)
    found = states(db)
    assert (found[refused], found[silent], found[followed]) == ("no_consent", "targeted", "no_consent")
    add_consent(db, members.identity_of(silent, "email"), "email", False, "import", late + timedelta(minutes=1))
    assert states(db)[silent] == "no_consent"


def listed(tmp_path: Path, text: str, name: str = "list.csv", encoding: str = "utf-8") -> Path:
    path = tmp_path / name
    path.write_bytes(text.encode(encoding))
    return path


def take(db: psycopg.Connection[Row], path: Path) -> Any:
    with db.transaction():
        return take_list(db, path, source_id="hotline", run_id="test")


def phone_of(db: psycopg.Connection[Row], members: People, member: int, number: str) -> None:
    members._identity(member, "phone", Tokenizer.from_settings().token("phone", number))


def test_a_phone_on_a_list_keeps_the_person_out_on_every_channel(
    db: psycopg.Connection[Row], members: People, tmp_path: Path, set_clock: Any
) -> None:
    listed_one, other = members.add(openid="oLISTED"), members.add(openid="oOTHER")
    members.add(openid="oPARTNER")
    phone_of(db, members, listed_one, "13800000001")
    path = listed(
        tmp_path,
        "手机号,渠道,原因,日期\n+86 138 0000 0001,,电话要求,2026-03-01\n１３８００００００９９,微信,,\n",
        encoding="gb18030",
    )
    taken = take(db, path)
    assert (taken.lines, taken.added, taken.known, taken.mistakes) == (2, 5, 0, [])
    found = states(db)
    assert (found[listed_one], found[other]) == ("suppressed", "targeted")
    rows = db.execute("SELECT channel, reason, source FROM push.suppressions WHERE address = 'oLISTED'").fetchall()
    assert [tuple(row.values()) for row in rows] == [("wechat", "电话要求", "hotline")]
    again = take(db, path)
    assert (again.added, again.known) == (0, 5), "what stands is not written again"
    text = json.dumps(db.execute("SELECT * FROM core.suppression_events").fetchall(), default=str)
    assert "0000001" not in text, "no number in clear"
    # somebody whose other identity is on the list, and who turns out to be the same person later
    db.execute("UPDATE core.member_identities SET member_id = %s WHERE member_id = %s", (listed_one, other))
    assert states(db)[listed_one] == "suppressed"
    addresses = db.execute(
        "SELECT address FROM push.suppressions WHERE channel = 'wechat' AND address LIKE 'o%' ORDER BY 1"
    ).fetchall()
    assert [row["address"] for row in addresses] == ["oLISTED", "oOTHER"]


def test_bad_lines_are_told_and_kept_apart_without_what_is_in_them(
    db: psycopg.Connection[Row], members: People, tmp_path: Path
) -> None:
    lines = ["phone,email,channel,date,reason", "13800000001,,,,", "138,,,,", ",nobody,,,", "13800000002,,fax,,", "13800000003,,,soon,",
             "13800000004,,,2031-01-01,", "138****0005,,,,", ",,sms,,", "13800000006,,,,call 13800000006", "13800000007,,,,,x"]  # fmt: skip
    answer = runner.invoke(app, ["suppress", "--file", str(listed(tmp_path, "\n".join(lines))), "--source", "hotline"])
    assert answer.exit_code == 1
    for sentence in (
        "list.csv:3: phone: does not look like one (11 digits, beginning with 1)",
        "list.csv:4: email: does not look like one",
        "list.csv:5: channel: unknown channel; write one of wechat, email, sms, push or all",
        "list.csv:6: date: not a date; write YYYY-MM-DD",
        "list.csv:7: date: lies in the future",
        "list.csv:8: phone: ",
        "list.csv:9: phone, email and openid are empty",
        "list.csv:10: reason: longer than 200 characters, or holds a number or an address",
        "list.csv:11: more fields than the header has",
        "10 lines: 4 suppressions are new, 0 stood already, 9 lines could not be used",
    ):
        assert sentence in answer.output, answer.output
    kept = db.execute(
        "SELECT record_key, reason, payload FROM raw.rejects WHERE resolved_at IS NULL ORDER BY reject_id"
    ).fetchall()
    assert len(kept) == 9
    assert kept[0]["record_key"] == "list.csv:3"
    assert "13800000006" not in json.dumps(kept, default=str)
    rows = run_sql(db, "checks/core/few_rejects.sql", {})
    assert rows[0]["is_passed"], "a bad list does not stop a night"
    corrected = listed(tmp_path, "phone\n13800000001\n13800000002\n")
    assert runner.invoke(app, ["suppress", "--file", str(corrected), "--source", "hotline"]).exit_code == 0
    assert db.execute("SELECT 1 FROM raw.rejects WHERE resolved_at IS NULL").fetchall() == []


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name\nx\n", "list.csv:1: the header names none of phone, email, openid"),
        ("", "list.csv:1: the header names none"),
    ],
)
def test_a_file_that_is_no_list_is_one_sentence(
    db: psycopg.Connection[Row], tmp_path: Path, text: str, sentence: str
) -> None:
    answer = runner.invoke(app, ["suppress", "--file", str(listed(tmp_path, text))])
    assert answer.exit_code == 1
    assert sentence in answer.output
    assert "Traceback" not in answer.output
    missing = runner.invoke(app, ["suppress", "--file", str(tmp_path / "nothing.csv")])
    assert "cannot be read" in missing.output


def test_a_reason_is_lifted_by_itself_and_the_past_stays_as_it_was(
    db: psycopg.Connection[Row], members: People
) -> None:
    member = members.add(openid="oTWICE")
    members.add(openid="oPARTNER")
    begin = dates.day_end(AS_OF) - timedelta(days=9)
    for reason in ("black list", "asked by phone"):
        db.execute("INSERT INTO push.suppressions VALUES ('wechat', 'oTWICE', %s, 'test', %s)", (reason, begin))
    moment = dates.day_end(AS_OF) - timedelta(days=3)
    assert lift(db, "wechat", "oTWICE", "black list", actor="tester", why="a mistake", now=moment) == 1
    assert states(db)[member] == "suppressed", "the other reason stands"
    assert lift(db, "wechat", "oTWICE", "asked by phone", actor="tester", why="asked again", now=moment) == 1
    assert states(db)[member] == "targeted"
    assert lift(db, "wechat", "oTWICE", "asked by phone", actor="tester", why="again") == 0
    earlier = "SELECT count(*) AS n FROM push.suppressions WHERE since < %(at)s AND (until IS NULL OR until >= %(at)s)"
    row = db.execute(earlier, {"at": moment - timedelta(hours=1)}).fetchone()
    assert row == {"n": 2}, "as of the days before both stood"
    db.execute(
        "INSERT INTO push.suppressions VALUES ('wechat', 'oTWICE', 'black list', 'test', %s)",
        (moment + timedelta(days=1),),
    )
    assert states(db)[member] == "suppressed", "the latest event is right"
    assert runner.invoke(app, ["lift", "fax", "oX", "r", "--why", "w"]).exit_code == 1


def test_an_import_cannot_lift(db: psycopg.Connection[Row]) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        db.execute(
            "INSERT INTO core.suppression_events (source_id, event_id, channel, kind, address, is_suppressed, reason, origin, evidence, occurred_at)"
            " VALUES ('l', '1', 'email', 'email', 'email:x', FALSE, 'r', 'import', 'e', now())"
        )


def test_a_refused_address_rests_for_some_days(db: psycopg.Connection[Row]) -> None:
    outbox.suppress(db, "email", "email:x", "hard bounce", "delivery", 30)
    row = db.execute("SELECT until - since AS days FROM push.suppressions").fetchone()
    assert row == {"days": timedelta(days=30)}


@LAW
@given(
    events=st.lists(
        st.tuples(
            st.sampled_from(["a", "b"]), st.booleans(), st.integers(0, 5), st.one_of(st.none(), st.integers(1, 3))
        ),
        max_size=10,
    ),
    data=st.data(),
)
def test_suppressions_are_the_log_at_any_instant(db: psycopg.Connection[Row], events: list[Any], data: Any) -> None:
    """Whatever order events arrive in: a reason stands from when it is said until it ends or is lifted; reasons add up."""
    db.execute("DELETE FROM core.suppression_events")
    for number, (reason, is_suppressed, hour, hours) in enumerate(
        data.draw(st.permutations(events), label="order of arrival")
    ):
        db.execute(
            "INSERT INTO core.suppression_events (source_id, event_id, channel, kind, address, is_suppressed, reason, origin, evidence,"
            " occurred_at, until) VALUES ('s', %s, 'email', 'email', 'email:x', %s, %s, 'person', 'e', %s, %s)",
            (
                str(number),
                is_suppressed,
                reason,
                START + timedelta(hours=hour),
                START + timedelta(hours=hour + hours) if hours else None,
            ),
        )
    for half in range(20):
        at = half / 2 - 0.25
        stands = any(
            is_suppressed and hour < at and (hours is None or hour + hours > at)
            and not any(not s and r == reason and hour < h < at for r, s, h, _ in events)
            for reason, is_suppressed, hour, hours in events
        )  # fmt: skip
        row = db.execute(
            "SELECT count(*) > 0 AS stands FROM push.suppressions WHERE channel = 'email' AND address = 'email:x' AND since < %(at)s"
            " AND (until IS NULL OR until >= %(at)s)",
            {"at": START + timedelta(hours=at)},
        ).fetchone()
        assert row == {"stands": stands}


def test_bounces_and_complaints_come_in_from_what_was_reported(db: psycopg.Connection[Row], members: People) -> None:
    now = dates.day_end(AS_OF)
    token = Tokenizer.from_settings().token
    db.execute(
        "INSERT INTO push.campaign_runs (run_id, campaign, mode, as_of, as_of_at, config, config_hash, state, created_by, created_at, expires_at)"
        " VALUES ('r', 'c', 'live', %s, %s, '{}', 'x', 'sent', 'test', %s, %s)", (AS_OF, now, now, now + timedelta(days=2)),
    )  # fmt: skip
    reports = {
        "bounced": ("bounced", "5.1.1"),
        "complained": ("complained", None),
        "late": ("bounced", None),
        "fine": ("delivered", None),
    }
    for number, (key, (kind, detail)) in enumerate(reports.items()):
        db.execute(
            "INSERT INTO push.messages (message_key, run_id, member_id, step, channel, account, purpose, address, template, language,"
            " variables, state, not_before, expires_at, queued_at, accepted_at, updated_at)"
            " VALUES (%s, 'r', %s, 'send', 'email', 'email', 'marketing', %s, 't', 'zh', '{}', 'accepted', %s, %s, %s, %s, %s)",
            (key, number, token("email", f"{key}@mail.test"), now, now + timedelta(days=2), now, now, now),
        )
        db.execute(
            "INSERT INTO core.message_events VALUES ('email', %s, %s, %s, %s, %s)",
            (f"e{number}", key, kind, detail, now),
        )
    for key in ("complained", "late"):  # who complained has received it; a bounce after an opening is not one
        db.execute(
            "INSERT INTO core.message_events VALUES ('email', %s, %s, 'opened', NULL, %s)", (f"o/{key}", key, now)
        )
    for _ in range(2):
        run_sql(db, "push/receipts.sql", {"now_at": now + timedelta(hours=9), "accepted_since": now, **outbox.FAMILIES})
        rows = db.execute(
            "SELECT address, reason, since, origin FROM push.suppressions JOIN core.suppression_events USING (address, reason) ORDER BY reason"
        )
        assert [tuple(row.values()) for row in rows] == [
            (token("email", "bounced@mail.test"), "bounced", now, "platform"),
            (token("email", "complained@mail.test"), "complained", now, "person"),
        ]


def test_reach_counts_members_by_channel_as_of_a_date(
    db: psycopg.Connection[Row], members: People, tmp_path: Path
) -> None:
    follower = members.add(openid="oA")
    members.add(email="a@mail.test")
    members.add(openid="oB", email="b@mail.test")
    members.add(openid="oGONE", following=False)
    members.add(openid="oNO", wechat_consent=False)
    phone_of(db, members, follower, "13800000001")
    add_consent(db, members.identity_of(follower, "phone"), "sms", True, "import", START)

    def reach(day: Any) -> dict[str, tuple[Any, ...]]:
        rows = run_sql(db, "console/reachable.sql", {"business_date": day, "purpose": "marketing"})
        return {
            row["channel"]: tuple(
                row[name] for name in ("address_count", "no_consent_count", "suppressed_count", "reachable_count")
            )
            for row in rows
        }

    assert reach(AS_OF) == {
        "wechat": (3, 1, 0, 2),
        "sms": (1, 0, 0, 1),
        "email": (2, 0, 0, 2),
        "push": (0, 0, 0, 0),
        "any": (4, 1, 0, 3),
    }
    db.execute(
        "INSERT INTO push.suppressions VALUES ('email', %s, 'bounced', 'test', %s)",
        (Tokenizer.from_settings().token("email", "b@mail.test"), dates.day_end(AS_OF) - timedelta(hours=1)),
    )
    assert reach(AS_OF)["email"] == (2, 0, 1, 1)
    assert reach(AS_OF - timedelta(days=1))["email"] == (2, 0, 0, 2), "the day before it was not known"
    answer = runner.invoke(
        app, ["figure", "reachable", f"business_date={AS_OF}", "purpose=marketing"], env={"COLUMNS": "160"}
    )
    assert answer.exit_code == 0, answer.output
    kinds = run_sql(db, "console/identities.sql", {"business_date": AS_OF})
    assert {(row["kinds"], row["identity_count"]): row["member_count"] for row in kinds} == {
        ("taobao_open_uid + wechat_openid", 2): 2, ("email + taobao_open_uid", 2): 1,
        ("email + taobao_open_uid + wechat_openid", 3): 1, ("phone + taobao_open_uid + wechat_openid", 3): 1,
    }  # fmt: skip
    assert sum(row["member_rate"] for row in kinds) == 1
