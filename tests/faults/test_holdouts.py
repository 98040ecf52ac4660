"""Hold-outs last: over runs, over campaigns, over merges of members, and they receive nothing; the sandbox is the judge."""

from datetime import date, timedelta
from typing import Any

import pytest
import yaml

from campaign_world import AS_OF, approve, audience, green_night
from nightmarket.campaigns import outbox
from nightmarket.campaigns.audience import build_run
from nightmarket.campaigns.delivery import deliver
from nightmarket.campaigns.experiment import unit
from nightmarket.campaigns.results import check_laws, dry_run_report, export_exposures
from nightmarket.warehouse import run_sql


@pytest.fixture
def experiment(stage: Any) -> Any:
    """40 members by e-mail, three of ten held out by the campaign and one of ten by the house."""
    stage.members = stage.audience("email", 40)
    stage.config.campaign(holdout_share=0.3)
    with stage.config.editing("channels.yaml") as data:
        data["global_holdout"] |= {"share": 0.1, "salt": "the house"}
        data["frequency"]["messages"] = 100
    return stage


def send(stage: Any, campaign: str = "winback_gold", days: int = 0) -> str:
    """A live run of a campaign on the morning after AS_OF + days, delivered and judged."""
    day = AS_OF + timedelta(days=days)
    if days:
        stage.later(days=days)
        green_night(stage.db, day)
    run_id = build_run(campaign, day, "live", "tester")
    approve(run_id, dry_run_report(run_id))
    outbox.enqueue(run_id)
    deliver(run_id, f"w{days}", 60)
    export_exposures(run_id)
    check_laws(run_id)
    return run_id


def held_out(stage: Any, run_id: str) -> tuple[set[int], set[int]]:
    """(by the campaign, by the house)."""
    states = audience(stage.db, run_id)
    return tuple({m for m, state in states.items() if state == name} for name in ("holdout", "global_holdout"))  # type: ignore[return-value]


def got_something(stage: Any, since: date) -> set[int]:
    """Members whose messages of a day or later arrived at the sandbox's mail server."""
    keys = [key.split("/") for key in stage.received_keys()]
    return {int(member) for _campaign, day, member, _step in keys if date.fromisoformat(day) >= since}


def test_the_same_members_are_held_out_of_every_run_and_nothing_reaches_them(experiment: Any) -> None:
    first = held_out(experiment, send(experiment))
    assert all(first)
    second = held_out(experiment, send(experiment, days=1))
    assert second == first
    assert got_something(experiment, AS_OF) == set(experiment.members) - first[0] - first[1]


def test_another_campaign_draws_its_own_holdout_and_the_house_keeps_its_own(experiment: Any) -> None:
    folder = experiment.config.folder / "config" / "campaigns"
    other = yaml.safe_load((folder / "winback_gold.yaml").read_text(encoding="utf-8"))
    other |= {"campaign": "other", "salt": "another salt"}
    (folder / "other.yaml").write_text(yaml.safe_dump(other, allow_unicode=True), encoding="utf-8")
    (ours, house), (theirs, same_house) = (
        held_out(experiment, send(experiment)),
        held_out(experiment, send(experiment, "other", days=1)),
    )
    assert same_house == house
    assert theirs
    assert theirs != ours
    assert not got_something(experiment, AS_OF) & house


def merge(stage: Any, survivor: int, absorbed: int) -> None:
    """Two members turn out to be one person, as nightmarket.members leaves them."""
    stage.db.execute("UPDATE core.members SET absorbed_by = %s WHERE member_id = %s", (survivor, absorbed))
    stage.db.execute("UPDATE core.member_identities SET member_id = %s WHERE member_id = %s", (survivor, absorbed))
    stage.db.execute("DELETE FROM mart.member_days WHERE member_id = %s", (absorbed,))


def test_after_a_merge_the_survivor_keeps_its_arm(experiment: Any) -> None:
    run_id = send(experiment)
    held, _house = held_out(experiment, run_id)
    sent_to = sorted(got_something(experiment, AS_OF))
    keeper, newcomer = sorted(held)[:2]
    merge(experiment, keeper, sent_to[0])  # held out, and turns out to be somebody who was treated
    merge(experiment, sent_to[1], newcomer)  # treated, and turns out to be somebody who was held out
    again = send(experiment, days=1)
    assert held_out(experiment, again)[0] == held - {newcomer}
    now = got_something(experiment, AS_OF + timedelta(days=1))
    assert keeper not in now, "held out, whatever else this person is known by"
    assert sent_to[0] not in now
    assert sent_to[1] in now
    assert unit("winback_gold-2026:holdout", keeper) < 0.3 <= unit("winback_gold-2026:holdout", sent_to[1])
    # in the first run both persons got a message under one of their names: they count as treated, and the report says so
    ways = run_sql(experiment.db, "push/leaks.sql", {"run_id": run_id})[0]["ways"]
    assert [(row["way"], row["treated_count"]) for row in ways if row["way"] == "two_names"] == [("two_names", 2)]
