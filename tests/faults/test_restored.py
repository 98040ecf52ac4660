"""A database comes back from a backup after messages went out; a disk is full. Nothing goes out twice, nothing is lost unlisted."""

from pathlib import Path
from typing import Any

import pytest

from campaign_world import AS_OF, start_run, states
from nightmarket import dates
from nightmarket.campaigns import logbook, outbox
from nightmarket.campaigns.delivery import deliver
from nightmarket.campaigns.logbook import DatabaseRestored
from nightmarket.settings import get_settings
from nursery import Nursery, is_alive

COUNT = 12
CHANNELS = ["wechat_service", "wechat_mass", "email", "jpush", "sms_aliyun"]


def refused(run_id: str) -> str:
    with pytest.raises(DatabaseRestored) as caught:
        deliver(run_id, "restored", 30)
    return str(caught.value)


@pytest.mark.parametrize("channel", CHANNELS)
def test_what_went_out_after_the_backup_does_not_go_out_again(stage: Any, channel: str) -> None:
    run_id = stage.run(channel, COUNT)
    stage.snapshot()
    deliver(run_id, "first", 30)
    stage.restore()
    assert states(stage.db, run_id) == {"queued": COUNT}
    assert f"has calls up to number {COUNT}, the database up to 0: it was restored from a backup" in refused(run_id)
    assert states(stage.db, run_id) == {"queued": COUNT}
    is_repeatable = channel == "wechat_mass"
    counts = logbook.settle("tester", "the disk died")
    expected = (0, COUNT) if is_repeatable else (COUNT, 0)
    assert counts == {"calls": COUNT, "unknown": expected[0], "repeated": expected[1], "remembered": 0}
    assert logbook.settle("tester", "again")["calls"] == 0
    deliver(run_id, "second", 30)
    assert stage.judge(run_id) == {"accepted": expected[1], "unknown": expected[0], "arrived": COUNT}


def test_a_worker_finds_out_that_the_database_was_put_back_under_it(stage: Any) -> None:
    """It connects again by itself, within seconds; what stands there as queued it has sent a moment ago."""
    stage.audience("email", 40)
    with stage.config.editing("channels.yaml") as data:
        data["delivery"] |= {"attempt_group": 2, "claim_size": 4}
        data["channels"]["email"]["rate_per_second"] = 8
    deliver(start_run(), "before", 0.5)  # the pace of the account is known
    run_id = stage.db.execute("SELECT run_id FROM push.campaign_runs").fetchone()["run_id"]
    stage.snapshot()
    process = stage.worker(run_id, "surprised")
    stage.wait_until(lambda: len(stage.received_keys()) >= 12)
    stage.restore()
    assert process.wait() != 0
    assert "it was restored from a backup" in process.log.read_text()
    assert max(stage.received_keys().values()) == 1
    refused(run_id)
    logbook.settle("tester", "somebody put it back")
    deliver(run_id, "after", 30)
    arrived, found = stage.received_keys(), stage.messages(run_id)
    assert max(arrived.values()) == 1
    assert set(found.values()) == {"accepted", "unknown"}
    assert {key for key, state in found.items() if state == "accepted"} <= set(arrived) <= set(found)


def test_a_line_that_a_full_disk_cut_off_does_not_hide_the_others(stage: Any) -> None:
    run_id = stage.run("email", 3)
    folder = get_settings().var / "calls"
    folder.mkdir(parents=True, exist_ok=True)
    book = folder / f"{dates.now():%Y-%m-%d}.tsv"
    book.write_text("0\t2026-03-15T02:00:00+00:00\tema")
    stage.snapshot()
    deliver(run_id, "first", 30)
    stage.restore()
    refused(run_id)
    assert logbook.settle("tester", "the disk was full, and then it died") == {
        "calls": 3, "unknown": 3, "repeated": 0, "remembered": 0,
    }  # fmt: skip
    deliver(run_id, "second", 30)
    assert stage.judge(run_id) == {"accepted": 0, "unknown": 3, "arrived": 3}


def test_only_what_went_out_after_the_backup_is_in_doubt(stage: Any) -> None:
    members = stage.audience("wechat_service", COUNT)
    run_id = start_run()
    third = COUNT // 3
    for hours, some in ((1, members[third : 2 * third]), (2, members[2 * third :])):
        stage.db.execute(
            "UPDATE push.messages SET not_before = not_before + make_interval(hours => %s) WHERE member_id = ANY(%s)",
            (hours, some),
        )
    deliver(run_id, "first", 30)
    stage.snapshot()
    stage.later(hours=1, minutes=1)
    deliver(run_id, "second", 30)
    stage.restore()
    refused(run_id)
    logbook.settle("tester", "the disk died")
    deliver(run_id, "third", 30)
    assert states(stage.db, run_id) == {"accepted": third, "unknown": third, "queued": third}
    stage.later(hours=2, minutes=1)
    deliver(run_id, "fourth", 30)
    assert stage.judge(run_id) == {"accepted": 2 * third, "unknown": third, "arrived": COUNT}


def test_a_run_that_the_backup_does_not_have_is_not_sent_again(stage: Any) -> None:
    stage.audience("email", COUNT)
    stage.snapshot()
    run_id = start_run()
    deliver(run_id, "first", 30)
    stage.restore()
    assert stage.db.execute("SELECT count(*) AS n FROM push.campaign_runs").fetchone() == {"n": 0}
    assert start_run() == run_id  # the scheduler catches up
    refused(run_id)
    assert logbook.settle("tester", "the disk died")["unknown"] == COUNT  # the keys are derived, so they are the same
    deliver(run_id, "second", 30)
    assert stage.judge(run_id) == {"accepted": 0, "unknown": COUNT, "arrived": COUNT}


def test_a_run_that_is_made_again_later_finds_its_messages_unknown(stage: Any) -> None:
    stage.audience("email", COUNT)
    stage.snapshot()
    run_id = start_run()
    deliver(run_id, "first", 30)
    stage.restore()
    assert logbook.settle("tester", "the disk died")["remembered"] == COUNT
    assert start_run() == run_id
    deliver(run_id, "second", 30)
    assert stage.judge(run_id) == {"accepted": 0, "unknown": COUNT, "arrived": COUNT}
    key = (
        f"winback_gold/{AS_OF}/{stage.db.execute('SELECT min(member_id) AS m FROM push.messages').fetchone()['m']}/send"
    )
    assert outbox.resolve(key, False, "boss", "she says that nothing came") == "queued"
    deliver(run_id, "third", 30)  # a person's word counts more than the log book
    assert states(stage.db, run_id) == {"accepted": 1, "unknown": COUNT - 1}


def test_an_old_backup_and_a_run_that_is_over(stage: Any) -> None:
    """A backup put back after the run expired: what was called is unknown, what was not is expired; nothing is called."""
    run_id = stage.run("wechat_mass", COUNT)
    stage.snapshot()
    deliver(run_id, "first", 30)
    stage.restore()
    stage.clock("2026-04-10T10:00:00+08:00")
    logbook.settle("tester", "the disk died")
    assert deliver(run_id, "second", 30)["calls"] == 0
    assert states(stage.db, run_id) == {"unknown": COUNT}
    assert max(stage.received_keys().values()) == 1


def test_the_book_forgets_after_forty_days(stage: Any) -> None:
    run_id = stage.run("email", 2)
    deliver(run_id, "first", 30)
    (book,) = (get_settings().var / "calls").iterdir()
    assert book.name == f"{dates.now():%Y-%m-%d}.tsv"
    assert len(book.read_text().splitlines()) == 2
    assert "mail.test" not in book.read_text()
    stage.clock("2026-05-01T10:00:00+08:00")
    deliver(None, "later", 30)
    assert not book.exists()


def test_without_the_log_book_nothing_is_sent(stage: Any, workers: Nursery) -> None:
    """The disk is full: a call that cannot be written down is not made."""
    run_id = stage.run("email", COUNT)
    pid = workers.worker("deliver on a full disk", run_id)
    stage.wait_until(lambda: not is_alive(pid))
    assert stage.received_keys() == {}
    assert states(stage.db, run_id) == {"queued": COUNT}
    assert stage.db.execute("SELECT count(*) AS n FROM push.attempts WHERE outcome = 'retry'").fetchone() == {
        "n": COUNT
    }
    deliver(run_id, "second", 30)
    assert stage.judge(run_id) == {"accepted": COUNT, "unknown": 0, "arrived": COUNT}


def test_a_full_disk_leaves_the_last_report_whole(stage: Any, workers: Nursery, tmp_path: Path) -> None:
    from nightmarket.report import write_night_report

    report = tmp_path / "reports" / "night.html"
    write_night_report(report, [AS_OF])
    before = report.read_bytes()
    pid = workers.worker("report on a full disk", str(report))
    stage.wait_until(lambda: not is_alive(pid))
    assert report.read_bytes() == before
    assert [path.name for path in report.parent.iterdir()] == ["night.html"], "half a report was left behind"
