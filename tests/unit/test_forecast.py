"""Before anything is sent the report says what the segment does by itself, and what so many members can show."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from campaign_world import AS_OF, MORNING, ConfigFolder, People, green_night, write_config
from nightmarket.campaigns.audience import build_run
from nightmarket.campaigns.experiment import minimum_detectable_uplift
from nightmarket.campaigns.results import dry_run_report
from nightmarket.warehouse import Row

PAST_END = datetime.fromisoformat("2026-03-08T00:00:00+08:00")  # AS_OF less the seven days of the attribution window


@pytest.fixture
def config(
    db: psycopg.Connection[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, set_clock: Any
) -> ConfigFolder:
    """Two variants by e-mail, half of the members held out."""
    config = write_config(tmp_path / "house", monkeypatch)
    config.campaign(coupon=None, holdout_share=0.5, channels=["email"], attribution_days=7)
    with config.editing("channels.yaml") as data:
        data["global_holdout"]["share"] = 0
    set_clock(MORNING)
    green_night(db)
    return config


def report() -> dict[str, Any]:
    return dry_run_report(build_run("winback_gold", AS_OF, "dry_run", "tester"))


def bought(people: People, member: int, at: datetime, *, paid: bool = True) -> None:
    people.db.execute(
        "INSERT INTO core.orders (source_id, order_id, identity_id, status, status_original, is_paid, currency_code, goods_amount,"
        " paid_amount, line_count, unit_count, created_at, paid_at, modified_at, batch_id, loaded_at)"
        " VALUES ('taobao', %s, %s, 'paid', 'PAID', %s, 'CNY', 100, 100, 1, 1, %s, %s, %s, 1, %s)",
        (f"{member} {at}", people.identity_of(member, "taobao_open_uid"), paid, at, at, at, at),
    )


def test_the_base_rate_is_that_of_the_segment_one_window_ago(db: psycopg.Connection[Row], config: ConfigFolder) -> None:
    people = People(db)
    members = [people.add(email=f"p{number}@mail.test") for number in range(40)]
    bought(people, members[0], PAST_END)
    bought(people, members[1], PAST_END + timedelta(days=7, seconds=-1))
    bought(people, members[1], PAST_END + timedelta(days=3))  # twice is one buyer
    bought(people, members[2], PAST_END - timedelta(seconds=1))
    bought(people, members[3], PAST_END + timedelta(days=7))
    bought(people, members[4], PAST_END + timedelta(days=3), paid=False)
    bought(people, people.add(email="new@mail.test", sleeping=False), PAST_END + timedelta(days=3))
    found = report()
    experiment = found["experiment"]
    assert {name: experiment[name] for name in ("base_from", "base_member_count", "base_buyer_count", "base_days")} == {
        "base_from": "segment", "base_member_count": 40, "base_buyer_count": 2, "base_days": 7,
    }  # fmt: skip
    assert experiment["base_rate"] == 0.05
    sizes, variants = found["sizes"], found["variants"]
    assert experiment["detectable_rate"] == minimum_detectable_uplift(sizes["targeted"], sizes["holdout"], 0.05)
    for name, members_of in variants.items():
        alone = minimum_detectable_uplift(members_of, sizes["holdout"], 0.05, 2)
        assert experiment["variants"][name] == alone
        assert alone is not None
        assert alone > experiment["detectable_rate"], "a variant has fewer members, and there are two looks"
        assert f"| {name} | {alone * 100:.2f} |" in found["markdown_en"]
    assert "Without a message 5.0% buy within 7 days (of the 40 members" in found["markdown_en"]
    assert "不发消息时，7 天内约有 5.0% 的人购买" in found["markdown_zh"]


def test_without_history_the_rate_is_assumed_and_the_report_says_so(
    db: psycopg.Connection[Row], config: ConfigFolder
) -> None:
    people = People(db)
    for number in range(29):
        people.add(email=f"p{number}@mail.test")
    found = report()
    assert (found["experiment"]["base_from"], found["experiment"]["base_rate"]) == ("assumed", 0.03)
    assert "too little history: 3.0% buyers" in found["markdown_en"]
    assert "历史太少" in found["markdown_zh"]


def test_a_run_that_cannot_show_anything_says_so_in_words(db: psycopg.Connection[Row], config: ConfigFolder) -> None:
    config.campaign(holdout_share=0)
    people = People(db)
    for number in range(40):
        people.add(email=f"p{number}@mail.test")
    found = report()
    assert found["experiment"]["detectable_rate"] is None
    assert found["experiment"]["sample_ratio_p_value"] is not None, "the variants were drawn all the same"
    assert "cannot show what it changes" in found["markdown_en"]
    assert "看不出效果" in found["markdown_zh"]
    assert "| gift | too few members |" in found["markdown_en"]
    assert "None" not in found["markdown_en"] + found["markdown_zh"]


def test_arms_that_chance_does_not_make_are_a_warning(db: psycopg.Connection[Row], config: ConfigFolder) -> None:
    people = People(db)
    for number in range(60):
        people.add(email=f"p{number}@mail.test")
    run_id = build_run("winback_gold", AS_OF, "dry_run", "tester")
    db.execute(
        "DELETE FROM push.audiences WHERE run_id = %s AND state = 'holdout' AND member_id NOT IN"
        " (SELECT member_id FROM push.audiences WHERE state = 'holdout' ORDER BY member_id LIMIT 3)",
        (run_id,),
    )
    warnings = [finding["en"] for finding in dry_run_report(run_id)["findings"] if finding["severity"] == "warn"]
    assert any("not as large as chance would make them" in text for text in warnings)
