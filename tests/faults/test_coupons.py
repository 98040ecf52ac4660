"""Coupons: never more than the budget with any number of workers, one per member for ever, whatever the platform does."""

import shutil
import threading
from datetime import timedelta
from typing import Any

import pytest

from campaign_world import AS_OF, approve, audience, green_night, start_run
from nightmarket.campaigns import coupons, outbox
from nightmarket.campaigns.audience import RunRefused, build_run
from nightmarket.campaigns.coupons import CouponsExhausted, CouponsInDoubt
from nightmarket.campaigns.delivery import deliver
from nightmarket.campaigns.results import LawBroken, check_laws, collect_receipts, dry_run_report, export_exposures

COUPON = {"stock": "winback_30", "test_stock": "test_pool"}


@pytest.fixture
def members(stage: Any) -> list[int]:
    """Ten followers of a campaign with coupons."""
    stage.config.campaign(coupon=COUPON)
    return stage.audience("wechat_service", 10)


def approved(name: str = "winback_gold") -> str:
    run_id = build_run(name, AS_OF, "live", "tester")
    approve(run_id, dry_run_report(run_id))
    return run_id


def granted(stage: Any) -> dict[str, int]:
    return dict(stage.sandbox.control("GET", "/counters")["coupons"]["by_out_request_no"])


def coupon_states(stage: Any) -> dict[str, int]:
    rows = stage.db.execute("SELECT state, count(*) AS n FROM push.coupons GROUP BY state").fetchall()
    return {row["state"]: row["n"] for row in rows}


def test_reserve_issue_send(stage: Any, members: list[int]) -> None:
    run_id = approved()
    report = dry_run_report(run_id)
    assert report["coupons"] == {
        "stock": "winback_30", "name": "满100减30", "needed": 10, "free": 5000, "amount": "30", "minimum": "100",
        "face_amount": "300", "valid_to": "2026-05-14",
    }  # fmt: skip
    assert coupons.reserve(run_id) == 10
    assert coupons.reserve(run_id) == 10
    with pytest.raises(RunRefused, match="10 coupons are not issued yet"):
        outbox.enqueue(run_id)
    assert coupons.issue(run_id) == {"issued": 10}
    assert coupons.issue(run_id) == {"issued": 10}
    assert granted(stage) == {f"winback_gold_20260314_{member}_send": 1 for member in members}
    outbox.enqueue(run_id)
    deliver(run_id, "w", 30)
    assert stage.judge(run_id)["accepted"] == 10
    contents = [message["content"] for message in stage.sandbox.control("GET", "/messages")["messages"]]
    assert all("30 元代金券已放入您的微信卡包：满 100 元可用，2026-05-14 前有效" in content for content in contents)


def test_only_who_has_an_openid_gets_one_and_is_told_so(stage: Any, members: list[int]) -> None:
    stage.config.campaign(channels=["wechat_service", "email"])
    mail = stage.people.add(email="mail@mail.test")
    run_id = start_run(with_coupons=True)
    deliver(run_id, "w", 30)
    assert stage.judge(run_id)["accepted"] == 11
    assert coupon_states(stage) == {"issued": 10}
    (letter,) = [m for m in stage.sandbox.control("GET", "/messages")["messages"] if m["channel"] == "email"]
    assert "券" not in letter["content"] + letter["subject"]
    assert mail


def test_n_workers_after_n_minus_1_coupons(stage: Any) -> None:
    """Eight campaigns want one coupon each at the same moment; the stock has seven."""
    stage.config.campaign(coupon=COUPON)
    stage.audience("wechat_service", 1)
    with stage.config.editing("channels.yaml") as data:
        data["coupon_stocks"]["winback_30"].update(budget_count=7, per_member_limit=100)
    folder = stage.config.folder / "config" / "campaigns"
    names = [f"rival_{number}" for number in range(8)]
    for name in names:
        shutil.copy(folder / "winback_gold.yaml", folder / f"{name}.yaml")
        stage.config.campaign(name, campaign=name, salt=name)
    runs = [approved(name) for name in names]
    barrier, reserved, refused = threading.Barrier(8), [], []

    def reserve(run_id: str) -> None:
        barrier.wait()
        try:
            reserved.append(coupons.reserve(run_id))
        except CouponsExhausted as error:
            refused.append(str(error))

    threads = [threading.Thread(target=reserve, args=(run_id,)) for run_id in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reserved == [1] * 7
    (sentence,) = refused
    assert "has 0 free coupons, run rival_" in sentence
    assert coupon_states(stage) == {"reserved": 7}


def test_not_enough_coupons_is_seen_in_the_dry_run(stage: Any, members: list[int]) -> None:
    with stage.config.editing("channels.yaml") as data:
        data["coupon_stocks"]["winback_30"]["budget_count"] = 9
    dry = build_run("winback_gold", AS_OF, "dry_run", "tester")
    findings = dry_run_report(dry)["findings"]
    assert [finding["en"] for finding in findings] == ["10 coupons are needed, 9 are free."]
    with pytest.raises(RunRefused, match="10 coupons are needed, 9 are free"):
        dry_run_report(build_run("winback_gold", AS_OF, "live", "tester"))


@pytest.mark.parametrize(
    "kind",
    ["http_500_after", "http_500", "cut", "garbage", "http_429", "bad_signature", "platform_busy"],
)
def test_in_doubt_the_same_request_is_repeated(stage: Any, members: list[int], kind: str) -> None:
    run_id = approved()
    coupons.reserve(run_id)
    stage.fault(platform="wechat_pay", method="*", kind=kind, times=3, after=2)
    assert coupons.issue(run_id) == {"issued": 10}
    assert granted(stage) == {f"winback_gold_20260314_{member}_send": 1 for member in members}


def test_while_in_doubt_nothing_is_sent(stage: Any, members: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coupons, "TRIES", 1)
    run_id = approved()
    coupons.reserve(run_id)
    stage.fault(platform="wechat_pay", method="*", kind="http_500_after", times=4)
    with pytest.raises(CouponsInDoubt, match="4 coupons are in doubt; repeat this step"):
        coupons.issue(run_id)
    assert coupon_states(stage) == {"issued": 6, "unknown": 4}
    with pytest.raises(RunRefused, match="4 coupons are not issued yet"):
        outbox.enqueue(run_id)
    assert coupons.issue(run_id) == {"issued": 10}
    assert set(granted(stage).values()) == {1}


def test_killed_while_issuing_each_coupon_is_given_once(stage: Any, members: list[int]) -> None:
    run_id = approved()
    coupons.reserve(run_id)
    stage.fault(platform="wechat_pay", method="*", kind="timeout_after", times=-1, seconds=9)
    worker = stage.worker(run_id, "first", "issue")
    stage.wait_until(lambda: len(granted(stage)) == 10)
    stage.kill(worker)
    stage.fault()
    assert coupon_states(stage) == {"unknown": 10}
    outbox.cancel(run_id, "boss", "stop")  # a coupon that may exist is not called free
    assert coupon_states(stage) == {"unknown": 10}
    stage.db.execute("UPDATE push.campaign_runs SET state = 'approved' WHERE run_id = %s", (run_id,))
    assert coupons.issue(run_id) == {"issued": 10}
    assert set(granted(stage).values()) == {1}
    calls = stage.sandbox.control("GET", "/counters")["coupons"]["calls_by_out_request_no"]
    assert set(calls.values()) == {2}


def test_two_workers_issue_at_once(stage: Any, members: list[int]) -> None:
    run_id = approved()
    coupons.reserve(run_id)
    workers = [stage.worker(run_id, name, "issue") for name in ("one", "two")]
    for worker in workers:
        stage.finish(worker)
    assert coupon_states(stage) == {"issued": 10}
    assert set(granted(stage).values()) == {1}


def test_a_person_who_may_not_have_one_is_listed_and_not_promised_one(stage: Any, members: list[int]) -> None:
    openid = stage.db.execute(
        "SELECT i.value FROM core.member_identities mi JOIN core.identities i USING (identity_id)"
        " WHERE mi.member_id = %s AND i.kind = 'wechat_openid'",
        (members[0],),
    ).fetchone()["value"]
    stage.db.execute("UPDATE core.identities SET value = 'oNOBODY' WHERE value = %s", (openid,))
    stage.db.execute("UPDATE core.followers SET openid = 'oNOBODY' WHERE openid = %s", (openid,))
    run_id = approved()
    coupons.reserve(run_id)
    assert coupons.issue(run_id) == {"issued": 9, "released": 1}
    outbox.enqueue(run_id)
    deliver(run_id, "w", 30)
    rows = stage.db.execute("SELECT address, last_error FROM push.messages WHERE state = 'failed'").fetchall()
    assert [row["address"] for row in rows] == ["oNOBODY"]
    assert rows[0]["last_error"].startswith("coupon refused: WeChat Pay refuses this coupon (PARAM_ERROR")
    assert len(stage.received_keys()) == 9
    check_laws(run_id)


def test_a_stock_that_is_empty_at_the_issuer_stops_the_run(stage: Any, members: list[int]) -> None:
    """Somebody gave coupons away by hand: our count says free, the issuer says no."""
    run_id = approved()
    coupons.reserve(run_id)
    stage.db.execute("UPDATE push.coupon_stocks SET platform_stock_id = '1'")
    with pytest.raises(RunRefused, match="the stock is not there or not running"):
        coupons.issue(run_id)
    assert coupon_states(stage) == {"reserved": 10}
    outbox.cancel(run_id, "boss", "no coupons")
    assert coupon_states(stage) == {"released": 10}
    assert granted(stage) == {}


def test_amounts_in_the_file_must_be_the_issuers(stage: Any, members: list[int]) -> None:
    with stage.config.editing("channels.yaml") as data:
        data["coupon_stocks"]["winback_30"]["face_amount"] = 25
    with pytest.raises(RunRefused, match=r"channels.yaml says 25 off 100, WeChat Pay says 30 off 100"):
        dry_run_report(build_run("winback_gold", AS_OF, "live", "tester"))


def test_a_test_run_uses_the_test_pool(stage: Any, members: list[int]) -> None:
    run_id = build_run("winback_gold", AS_OF, "test", "tester", test_members=members[:2])
    report = dry_run_report(run_id)
    assert (report["coupons"]["stock"], report["needs_approval"]) == ("test_pool", False)
    approve(run_id, report)
    coupons.reserve(run_id)
    coupons.issue(run_id)
    outbox.enqueue(run_id)
    deliver(run_id, "w", 30)
    assert stage.judge(run_id)["accepted"] == 2
    assert sorted(granted(stage)) == [f"winback_gold_20260314_t1_{member}_send" for member in members[:2]]
    assert export_exposures(run_id) == 0  # a test leaves nothing in core
    again = build_run("winback_gold", AS_OF, "test", "tester", test_members=members[:2])
    approve(again, dry_run_report(again))
    assert coupons.reserve(again) == 2
    live = start_run(with_coupons=True)  # and takes nothing from the real run
    deliver(live, "w", 30)
    assert {state for key, state in stage.messages(live).items()} == {"accepted"}


def test_who_had_the_coupon_does_not_get_it_again(stage: Any, members: list[int]) -> None:
    run_id = start_run(with_coupons=True)
    deliver(run_id, "w", 30)
    stage.later(days=10)
    day = AS_OF + timedelta(days=10)
    green_night(stage.db, day)
    stage.config.campaign(channels=["wechat_mass"])  # the service window is closed by then
    later = build_run("winback_gold", day, "dry_run", "tester")
    assert set(audience(stage.db, later).values()) == {"coupon_limit"} or set(audience(stage.db, later).values()) == {
        "channel_limit"
    }


def test_redemptions_come_back_once_and_balance(stage: Any, members: list[int]) -> None:
    stage.sandbox.control("POST", "/settings", {"purchase_base": 0.9, "purchase_treated": 0.95, "redeem": 1.0})
    run_id = start_run(with_coupons=True)
    deliver(run_id, "w", 30)
    assert export_exposures(run_id) == 10
    stage.later(days=2)
    first = collect_receipts()
    assert first["coupons_asked"] == 10
    assert first["coupons_redeemed"] > 0
    again = collect_receipts()
    assert again["coupons_asked"] == 10 - first["coupons_redeemed"]
    assert again["coupons_redeemed"] == 0
    truth = stage.sandbox.control("GET", "/counters")["coupons"]["granted"]
    assert truth == 10
    kinds = {
        row["kind"]: row["n"]
        for row in stage.db.execute("SELECT kind, count(*) AS n FROM core.coupon_events GROUP BY kind").fetchall()
    }
    assert kinds == {"issued": 10, "redeemed": first["coupons_redeemed"]}
    check_laws(run_id)
    stage.later(days=70)  # past the end of the stock
    last = collect_receipts()
    assert last["coupons_redeemed"] + last["coupons_expired"] == 10 - first["coupons_redeemed"]
    check_laws(run_id)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE push.coupon_stocks SET budget_count = 3",
        "UPDATE push.coupons SET platform_coupon_id = '1'",
        "UPDATE push.coupons SET platform_coupon_id = NULL",
        "UPDATE push.coupons SET state = 'released', platform_coupon_id = NULL",
    ],
)
def test_a_coupon_that_does_not_balance_breaks_the_law(stage: Any, members: list[int], damage: str) -> None:
    run_id = start_run(with_coupons=True)
    deliver(run_id, "w", 30)
    check_laws(run_id)
    stage.db.execute(damage)
    with pytest.raises(LawBroken, match=r"coupons|no empty promise"):
        check_laws(run_id)
