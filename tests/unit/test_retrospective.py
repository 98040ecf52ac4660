"""What a run achieved, in words and as a page: kept when its window is closed, in both languages, without anything personal."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fastapi.testclient import TestClient
from psycopg.types.json import Jsonb
from test_report import Page, one
from typer.testing import CliRunner

import night_world as world
from nightmarket.cli import app
from nightmarket.console.app import create_app
from nightmarket.console.queries import reader
from nightmarket.retrospective import collect, in_words, learn, report_path, write, write_due

RUN = world.RUN_ID
PLAN = {
    "campaign": {
        "title": {"zh": "唤回金卡会员", "en": "Win back gold members"},
        "owner": "growth",
        "variants": [{"name": "a", "share": "0.5"}, {"name": "b", "share": "0.5"}],
        "holdout_share": "0.2",
        "attribution_days": 7,
        "targets": {
            "uplift_rate": "0.02",
            "clicked_rate": "0.2",
            "redemption_rate": "0.5",
            "cost_per_order_amount": "30",
        },
    }
}


@pytest.fixture
def nights(db: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    """The two nights of the report tests, with a complete plan."""
    world.seed_shop(db)
    world.seed_campaign(db)
    db.execute("UPDATE push.campaign_runs SET config = %s WHERE campaign = 'winback_gold'", (Jsonb(PLAN),))
    return db


@pytest.fixture
def closed(nights: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    """The run's window is over in the marts, and collect_receipts has called it finished."""
    nights.execute("UPDATE push.campaign_runs SET state = 'finished' WHERE run_id = %s", (RUN,))
    nights.execute(
        "UPDATE mart.campaign_results SET is_window_closed = TRUE, business_date = '2026-03-20', verdict = 'positive',"
        " uplift_low_rate = 0.01, uplift_high_rate = 0.24"
    )
    return nights


def facts_of(run_id: str = RUN) -> dict[str, Any]:
    with reader() as read:
        return collect(read, run_id)


def outcomes(facts: dict[str, Any]) -> dict[str, str]:
    return {line["target"]: line["outcome"] for line in facts["targets"]}


def test_a_running_campaign_has_interim_figures_and_no_report(nights: Any) -> None:
    assert write_due() == []
    with pytest.raises(ValueError, match="is not closed in the marts"):
        write(RUN)
    text = in_words(RUN)
    assert "Interim figures" in text
    assert "Verdict: no effect shown" in text
    assert "中间结果" in in_words(RUN, "zh")
    assert one(nights, "SELECT count(*) AS n FROM push.retrospectives")["n"] == 0


def test_the_report_is_made_once_when_the_window_is_closed(closed: Any, tmp_path: Path) -> None:
    assert write_due() == [RUN]
    page = Page(report_path(RUN).read_text(encoding="utf-8"))
    assert page.open == []
    assert page.loads == []
    assert "script" not in page.tags
    assert page.tags.count("svg") == 2
    for words in ("有效", "effect shown", "未达标", "learned", "the split is what chance"):
        assert words.lower() in page.text.lower()
    kept = one(closed, "SELECT business_date, facts, html FROM push.retrospectives")
    assert str(kept["business_date"]) == "2026-03-20"
    assert kept["html"] == report_path(RUN).read_text(encoding="utf-8")
    closed.execute("UPDATE mart.campaign_results SET treated_buyer_count = 99, business_date = '2026-03-25'")
    assert write_due() == [], "it is made once"
    write(RUN)
    assert one(closed, "SELECT facts FROM push.retrospectives")["facts"] == kept["facts"], "and keeps its figures"


def test_nothing_personal_is_in_it(closed: Any) -> None:
    write(RUN)
    row = one(closed, "SELECT facts::text || html AS everything FROM push.retrospectives")
    for secret in ("o-secret-address", "email:secret", "AAH1"):
        assert secret not in row["everything"]
    assert "<script>" not in row["everything"]


def test_targets_pass_fail_or_say_that_data_are_missing(closed: Any) -> None:
    assert outcomes(facts_of()) == {
        "uplift_rate": "pass",
        "clicked_rate": "pass",  # 31 of 130
        "redemption_rate": "fail",  # 20 of 130
        "cost_per_order_amount": "pass",  # 603.90 for 31 orders
    }
    closed.execute("UPDATE mart.campaign_results SET verdict = 'no effect shown'")
    assert outcomes(facts_of())["uplift_rate"] == "not enough data", "above the line, and it may be chance"
    closed.execute("UPDATE mart.campaign_results SET uplift_rate = 0.019")
    assert outcomes(facts_of())["uplift_rate"] == "fail"
    closed.execute("UPDATE mart.campaign_results SET verdict = 'not enough data'")
    closed.execute("UPDATE mart.campaign_funnels SET member_count = 29 WHERE variant = '' AND arm = 'treatment'")
    assert set(outcomes(facts_of()).values()) == {"not enough data"}
    text = in_words(RUN)
    assert "Verdict: not enough data" in text
    assert "too few for a difference" in text
    assert "None" not in text


def test_old_plans_without_targets_and_runs_without_a_result(nights: Any) -> None:
    nights.execute("UPDATE push.campaign_runs SET config = %s", (Jsonb(world.CONFIGS["winback_gold"]),))
    assert facts_of()["targets"] == []
    old = {"campaign": {**world.CONFIGS["winback_gold"]["campaign"], "target_uplift_rate": "0.02"}}
    nights.execute("UPDATE push.campaign_runs SET config = %s", (Jsonb(old),))
    assert outcomes(facts_of()) == {"uplift_rate": "not enough data"}
    assert "Not enough data: this run has no result" in in_words(world.DRY_RUN_ID)
    assert "数据不足" in in_words(world.DRY_RUN_ID, "zh")
    with pytest.raises(ValueError, match="there is no run 'nobody'"):
        in_words("nobody")


def test_variants_are_measured_against_the_holdout(closed: Any) -> None:
    closed.execute(
        "UPDATE mart.campaign_funnels SET buyer_count = member_count * 0.6, order_count = member_count WHERE variant = 'a'"
    )
    first, second = facts_of()["variants"]
    assert (first["variant"], second["variant"]) == ("a", "b")
    assert first["uplift_rate"] == pytest.approx(0.5)
    assert first["verdict"] == "positive"
    assert second["verdict"] == "no effect shown"
    assert first["adjusted_p_value"] == pytest.approx(2 * first["p_value"])
    closed.execute("DELETE FROM mart.campaign_funnels WHERE arm = 'holdout'")
    assert facts_of()["variants"] == []


def test_one_variant_alone_is_the_whole_run(nights: Any) -> None:
    """The library and the mart's own SQL give the same figures: there is one formula, in two places."""
    from nightmarket.marts import mart_parameters
    from nightmarket.warehouse import run_sql

    nights.execute("UPDATE mart.campaign_funnels SET net_revenue_square_sum = 400000, business_date = '2026-03-14'")
    nights.execute("DELETE FROM mart.campaign_funnels WHERE variant = 'b'")
    nights.execute(
        "UPDATE mart.campaign_funnels AS a SET member_count = b.member_count, buyer_count = b.buyer_count, revenue_amount = b.revenue_amount"
        " FROM mart.campaign_funnels AS b WHERE a.variant = 'a' AND b.variant = '' AND b.arm = 'treatment'"
    )
    run_sql(nights, "mart/campaign_results/load.sql", mart_parameters("2026-03-14"))
    facts = facts_of()
    (alone,), whole = facts["variants"], facts["result"]
    for end in ("uplift_rate", "uplift_low_rate", "uplift_high_rate"):
        assert alone[end] == pytest.approx(whole[end], abs=1e-9)
    assert alone["verdict"] == whole["verdict"]
    for mine, theirs in (
        ("revenue_difference", "incremental_revenue_amount"),
        ("revenue_low", "incremental_revenue_low_amount"),
        ("revenue_high", "incremental_revenue_high_amount"),
    ):
        assert alone[mine] * whole["treated_count"] == pytest.approx(whole[theirs], rel=1e-9)


def test_a_run_is_compared_with_the_last_one_and_with_last_year(closed: Any) -> None:
    for days, low, high in ((30, -0.01, 0.03), (60, 0.3, 0.4), (371, 0.02, 0.06), (330, 0.5, 0.6)):
        as_of = world.DAY_ONE - timedelta(days=days)
        closed.execute(
            "INSERT INTO mart.campaign_results (run_id, campaign, as_of, treated_count, treated_buyer_count, holdout_count,"
            " holdout_buyer_count, uplift_rate, uplift_low_rate, uplift_high_rate, verdict, is_window_closed)"
            " VALUES (%s, 'winback_gold', %s, 500, 50, 200, 10, %s, %s, %s, 'no effect shown', %s)",
            (f"winback_gold@{as_of}", as_of, (low + high) / 2, low, high, days != 330),
        )
    found = {row["against"]: row for row in facts_of()["earlier"]}
    assert found["last_run"]["run_id"] == f"winback_gold@{world.DAY_ONE - timedelta(days=30)}"
    assert found["last_year"]["run_id"] == f"winback_gold@{world.DAY_ONE - timedelta(days=371)}"
    change = found["last_year"]["change"]
    assert change["change_rate"] == pytest.approx(0.12308 - 0.04)
    assert change["change_low_rate"] < change["change_rate"] < change["change_high_rate"]
    assert "last year" in in_words(RUN)


def test_revenue_of_a_few_large_orders_is_called_rough(closed: Any) -> None:
    closed.execute("UPDATE mart.campaign_funnels SET net_revenue_square_sum = revenue_amount * revenue_amount / 25")
    assert not facts_of()["is_revenue_rough"]
    assert "a few large orders" not in in_words(RUN)
    closed.execute(
        "UPDATE mart.campaign_funnels SET net_revenue_square_sum = revenue_amount * revenue_amount / 1.5 WHERE arm = 'holdout'"
    )
    assert facts_of()["weighty_buyers"] == pytest.approx(1.5)
    assert "one arm is worth 1.5 buyers" in in_words(RUN)
    assert "金额由少数大单决定" in write(RUN).read_text(encoding="utf-8")


def test_a_split_that_chance_does_not_make_is_said(closed: Any) -> None:
    facts = facts_of()["split"]
    assert [row["member_count"] for row in facts["arms"]] == [30, 65, 65]
    assert not facts["is_suspicious"]
    closed.execute("DELETE FROM push.audiences WHERE run_id = %s AND state = 'holdout' AND member_id > 135", (RUN,))
    assert facts_of()["split"]["is_suspicious"]
    assert "do not use the verdict" in in_words(RUN)


def test_leaks_are_counted_beside_the_result(closed: Any) -> None:
    assert facts_of()["leaks"] == []
    run, inside = closed.execute, world.at(world.DAY_TWO, 12)

    def message(key: str, run_id: str, member: int, channel: str, address: str) -> None:
        run(
            "INSERT INTO push.messages (message_key, run_id, member_id, step, channel, account, purpose, address, template, language,"
            " variables, state, not_before, expires_at, queued_at, accepted_at, updated_at)"
            " VALUES (%s, %s, %s, 'send', %s, 'x', 'marketing', %s, 't', 'zh', '{}', 'accepted', %s, %s, %s, %s, %s)",
            (key, run_id, member, channel, address, *[inside] * 5),
        )

    for run_id, campaign in (("winback_gold@2026-03-13", "winback_gold"), ("birthday@2026-03-13", "birthday")):
        run(
            "INSERT INTO push.campaign_runs (run_id, campaign, mode, as_of, as_of_at, config, config_hash, state, created_by, created_at,"
            " expires_at) VALUES (%s, %s, 'live', '2026-03-13', %s, '{}', 'x', 'sent', 'test', %s, %s)",
            (run_id, campaign, inside, inside, inside),
        )
    # members 131 to 160 are held out. 131: another run of the campaign. 132 and a treated one: another campaign's mass send
    message("m1", "winback_gold@2026-03-13", 131, "email", "email:zzz")
    message("m2", "birthday@2026-03-13", 132, "wechat_mass", "o-x")
    message("m3", "birthday@2026-03-13", 5, "wechat_mass", "o-y")
    # 133: a message to a treated member went to what turns out to be their phone
    identity = run(
        "INSERT INTO core.identities (kind, value, source_id, first_seen_at) VALUES ('phone', 'phone:shared', 'x', now()) RETURNING identity_id"
    ).fetchone()["identity_id"]
    run("INSERT INTO core.member_identities VALUES (%s, 133, now())", (identity,))
    run(
        "UPDATE push.messages SET channel = 'sms', address = 'phone:shared' WHERE run_id = %s AND member_id = 6", (RUN,)
    )
    # 134 opened a link of the run that somebody passed on; 135 turned out to be 7, who was treated
    run(
        "INSERT INTO core.interactions (source_id, event_id, identity_id, kind, message_key, occurred_at) VALUES ('own_pages', 'e1', 134,"
        " 'click', 'winback_gold/2026-03-12/8/send', %s)",
        (inside,),
    )
    run("UPDATE core.members SET absorbed_by = 7 WHERE member_id = 135")
    found = {(row["way"], row["channel"]): (row["holdout_count"], row["treated_count"]) for row in facts_of()["leaks"]}
    assert found == {
        ("same_campaign", "email"): (1, 0),
        ("other_campaign", "wechat_mass"): (1, 1),
        ("shared_address", "sms"): (1, 0),
        ("passed_on", "wechat_mass"): (1, 0),
        ("two_names", ""): (0, 1),
    }
    text = in_words(RUN)
    assert "a message of this run went to an address of theirs (SMS) 1" in text


def test_learnings_are_kept_said_and_refused_when_they_name_somebody(closed: Any) -> None:
    assert learn(RUN, "  The coupon alone brings nobody back.  ", "ulla") is None, "there is no report yet"
    write(RUN)
    before = one(closed, "SELECT facts, made_at FROM push.retrospectives")
    page = learn(RUN, "礼品比优惠券 <b>有效</b>", "ulla")
    assert page == report_path(RUN)
    html = page.read_text(encoding="utf-8")
    assert "The coupon alone brings nobody back." in html
    assert "礼品比优惠券 &lt;b&gt;有效&lt;/b&gt;" in html
    assert one(closed, "SELECT facts, made_at FROM push.retrospectives") == before
    assert "礼品比优惠券 <b>有效</b> (ulla" in in_words(RUN)
    for text, why in (
        ("", "is empty"),
        ("ask 100 0000 1234", "phone number"),
        ("a@mail.test said so", "e-mail address"),
    ):
        with pytest.raises(ValueError, match=why):
            learn(RUN, text, "ulla")
    with pytest.raises(ValueError, match="there is no run"):
        learn("nobody", "something", "ulla")
    assert one(closed, "SELECT count(*) AS n FROM push.learnings")["n"] == 2
    assert one(closed, "SELECT count(*) AS n FROM push.audit_log WHERE action = 'learn'")["n"] == 2


def test_the_console_shows_the_page_and_links_to_it(closed: Any) -> None:
    client = TestClient(create_app(require_user=lambda: "ulla"))
    assert client.get("/retrospective", params={"id": RUN}).status_code == 404
    assert "retrospective?id=" not in client.get("/run", params={"id": RUN}).text
    page = write(RUN).read_text(encoding="utf-8")
    answer = client.get("/retrospective", params={"id": RUN})
    assert answer.text == page
    assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
    assert "retrospective?id=winback_gold%402026-03-12" in client.get("/run", params={"id": RUN}).text


def test_the_commands_print_and_write(closed: Any) -> None:
    write_due()
    runner = CliRunner()
    shown = runner.invoke(app, ["results", RUN, "--language", "zh"])
    assert shown.exit_code == 0, shown.output
    assert "结论：有效" in shown.output
    assert runner.invoke(app, ["learnings", RUN, "Write earlier."]).exit_code == 0
    refused = runner.invoke(app, ["results", "nobody"])
    assert refused.exit_code == 1
    assert "there is no run 'nobody'" in refused.output
