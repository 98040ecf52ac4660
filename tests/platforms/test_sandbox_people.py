"""The sandbox's people: what the archive tells of them, how they react to messages, and that only the seed decides."""

import sys
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from sandbox_client import RawClient

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "include"))

QUIET = {
    "purchase_base": 0.0,
    "purchase_treated": 0.0,
    "click": 0.0,
    "unsubscribe": 0.0,
    "review_after_request": 0.0,
    "refund_live": 0.0,
    "follow_daily": 0.0,
    "unfollow_daily": 0.0,
    "write_daily": 0.0,
    "template_blocked": 0.0,
    "template_failed": 0.0,
    "custom_window": False,
}


@pytest.fixture
def raw(sandbox_process: Any) -> RawClient:
    client = RawClient(sandbox_process.access)
    client.control("POST", "/reset", {}).raise_for_status()
    return client


def quiet_but(raw: RawClient, **settings: Any) -> None:
    """Nobody does anything but what `settings` says, from the next day on."""
    raw.control("POST", "/settings", {**QUIET, **settings}).raise_for_status()
    raw.control("POST", "/clock", {"now": "2026-03-16T00:00:01+08:00"}).raise_for_status()


def move(raw: RawClient, **ahead: float) -> None:
    raw.control("POST", "/clock", {"now": (raw.now() + timedelta(**ahead)).isoformat()}).raise_for_status()


def link(key: str, kind: str = "r") -> str:
    return f"https://m.nightmarket.test/{kind}/{quote(key, safe='')}?s=0123abcd"


def say(raw: RawClient, openid: str, content: str) -> None:
    body = {"touser": openid, "msgtype": "text", "text": {"content": content}}
    assert raw.wechat("/cgi-bin/message/custom/send", body)["errcode"] == 0


def followers(raw: RawClient) -> list[str]:
    listed: list[str] = raw.wechat("/cgi-bin/user/get")["data"]["openid"]
    return listed


def bindings(raw: RawClient) -> dict[str, dict[str, Any]]:
    """What followers told us about themselves, by openid."""
    events = [event["data"] for event in raw.all_events() if event["kind"] == "binding"]
    return {data["openid"]: data for data in events if data["openid"]}


def buyers(raw: RawClient) -> list[tuple[str, str]]:
    """(openid, phone) of followers who bound a phone under which somebody bought."""
    phones: set[str] = set()
    for method, size in (("taobao.trades.sold.get", 100), ("taobao.trades.sold.history.get", 50)):
        rows = raw.trades(method, size, fields="tid,receiver_mobile,pay_time", start_created="2020-01-01 00:00:00")
        phones |= {row["receiver_mobile"] for row in rows if "pay_time" in row}
    following = set(followers(raw))
    known = bindings(raw).items()
    return [(openid, data["phone"]) for openid, data in known if openid in following and data["phone"] in phones]


# ------------------------------------------------------------------------------------------------------------ who they are


def test_the_archive_is_complete_and_ordered(raw: RawClient) -> None:
    events, truth = raw.all_events(), raw.truth()
    assert len(events) == truth["events"] == len({event["event_id"] for event in events})
    times = [event["received_at"] for event in events]
    assert times == sorted(times)
    assert all(time.endswith("+08:00") for time in times)
    pushes = [event["data"] for event in events if event["kind"] == "wechat.event"]
    follows = [push["fields"]["FromUserName"] for push in pushes if push["fields"].get("Event") == "subscribe"]
    leaves = [push["fields"]["FromUserName"] for push in pushes if push["fields"].get("Event") == "unsubscribe"]
    assert len(follows) == truth["ever_followed"]
    assert set(follows) - set(leaves) == set(followers(raw))
    for push in pushes:
        assert f"<![CDATA[{push['fields']['FromUserName']}]]>" in push["xml"]
        assert push["appid"] == raw.access["wechat_official"]["appid"]


def test_nobody_in_the_world_can_be_a_real_person(raw: RawClient) -> None:
    data = [event["data"] for event in raw.all_events() if event["kind"] == "binding"]
    phones = [entry["phone"] for entry in data]
    assert len(set(phones)) == len(phones) == raw.truth()["bound_phones"]
    assert all(len(phone) == 11 and phone.startswith("100") for phone in phones)
    mails = [entry["email"] for entry in data if entry["email"]]
    assert mails
    assert all(mail.endswith(".test") for mail in mails)
    assert {entry["language"] for entry in data} == {"zh", "en"}
    alone = [entry for entry in data if entry["openid"] is None]
    assert alone
    assert all(entry["email"] and entry["consents"][0]["channel"] == "email" for entry in alone)
    assert any(consent["granted"] is False for entry in data for consent in entry["consents"])
    asked = [[consent["channel"] for consent in entry["consents"]] for entry in data]
    wanted = [["wechat"] * bool(entry["openid"]) + ["email"] * bool(entry["email"]) for entry in data]
    assert all([name for name in names if name != "sms"] == ours for names, ours in zip(asked, wanted, strict=True))
    assert 0.4 < sum("sms" in names for names in asked) / len(asked) < 0.8


def test_somebody_wrote_lately(raw: RawClient) -> None:
    since = raw.now() - timedelta(hours=48)
    texts = [event for event in raw.all_events(since) if event["data"].get("fields", {}).get("MsgType") == "text"]
    assert texts
    assert all(event["data"]["fields"]["Content"] and event["data"]["fields"]["MsgId"] for event in texts)


def test_pages_of_the_archive(raw: RawClient) -> None:
    whole = raw.all_events()
    since, until = raw.now() - timedelta(days=500), raw.now()
    listed: list[Any] = []
    for page in range(1, 100):
        answer = raw.events(since, until, page, size=7).json()
        listed += answer["events"]
        assert answer["page"] == page
        if not answer["has_more"]:
            break
    assert listed == whole
    border = datetime.fromisoformat(whole[50]["received_at"])
    before, after = (raw.events(*window).json()["events"] for window in ((since, border), (border, until)))
    assert before + after == whole  # [since, until)


@pytest.mark.parametrize(
    ("status", "arguments"),
    [
        (401, {"X-Pages-Key": "other"}),
        (401, {"X-Pages-Signature": "00"}),
        (401, {"X-Pages-Timestamp": "1"}),
        (400, {"size": 501}),
        (400, {"page": 0}),
    ],
)
def test_archive_refusals(raw: RawClient, status: int, arguments: Any) -> None:
    answer = raw.events(raw.now() - timedelta(days=1), raw.now(), **arguments)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]


# ------------------------------------------------------------------------------------------------------------ what they do


def test_treated_people_buy_and_others_do_not(raw: RawClient) -> None:
    quiet_but(raw, purchase_treated=1.0)
    chosen = buyers(raw)[:10]
    before = raw.truth()["paid_orders"]
    for openid, _ in chosen:
        say(raw, openid, "看看新品 " + link("winback/2026-03-16/1/gift"))
    move(raw, days=1)
    truth = raw.truth()
    assert truth["paid_orders"] == before + 10
    assert all(purchase["treated"] for purchase in truth["experiment"]["purchases"])
    rows = raw.trades(
        "taobao.trades.sold.get", 100, fields="receiver_mobile,created", start_created="2026-03-16 00:00:00"
    )
    assert sorted(row["receiver_mobile"] for row in rows) == sorted(phone for _, phone in chosen)
    move(raw, days=1)  # the day after counts too
    assert raw.truth()["paid_orders"] == before + 20
    move(raw, days=3)  # later days do not
    assert raw.truth()["paid_orders"] == before + 20
    assert len(truth["experiment"]["treated"]) == 10


def test_everybody_buys_at_the_base_rate(raw: RawClient) -> None:
    quiet_but(raw, purchase_base=1.0)
    before = raw.truth()["paid_orders"]
    move(raw, days=1)
    truth = raw.truth()
    assert truth["paid_orders"] - before == truth["experiment"]["eligible_buyers"] == truth["buyers"]
    assert truth["paid_orders_by_day"]["2026-03-16"] == truth["buyers"]
    rows = raw.trades("taobao.trades.sold.get", 100, fields="created,pay_time", start_created="2026-03-16 00:00:00")
    assert {row["pay_time"][:10] for row in rows} == {"2026-03-16"}


def test_coupons_are_redeemed_by_those_who_buy_enough(raw: RawClient) -> None:
    quiet_but(raw, purchase_treated=1.0, redeem=1.0)
    chosen = [openid for openid, _ in buyers(raw)][:12]
    ids = {}
    for openid in chosen:
        ids[openid] = raw.send_coupon(openid, f"c-{openid}").json()["coupon_id"]
        say(raw, openid, "送您一张券 " + link(f"winback/{openid}"))
    move(raw, days=1)
    appid = raw.access["wechat_pay"]["appid"]
    purchases = {entry["coupon_id"]: entry for entry in raw.truth()["experiment"]["purchases"]}
    used = 0
    for openid, coupon_id in ids.items():
        coupon = raw.pay("GET", f"/v3/marketing/favor/users/{openid}/coupons/{coupon_id}?appid={appid}").json()
        assert (coupon["status"] == "USED") == (coupon_id in purchases)
        if coupon["status"] == "USED":
            used += 1
            assert coupon["consume_information"]["consume_time"] == purchases[coupon_id]["paid"]
            tid = purchases[coupon_id]["tid"]
            payment = raw.top("taobao.trade.fullinfo.get", fields="payment", tid=tid)["trade"]["payment"]
            assert float(payment) >= 100
    assert used >= 8
    assert raw.truth()["coupons"] == {"granted": 12, "SENDED": 12 - used, "USED": used, "EXPIRED": 0}


def test_clicks_carry_the_decoded_key(raw: RawClient) -> None:
    quiet_but(raw, click=1.0)
    first, second, third = followers(raw)[:3]
    say(raw, first, "新品 " + link("winback/2026-03-16/7/gift"))
    body = {"touser": [second, third], "msgtype": "text", "text": {"content": "群发 " + link("group/a b")}}
    assert raw.wechat("/cgi-bin/message/mass/send", body)["errcode"] == 0
    say(raw, second, "没有链接")
    move(raw, hours=7)
    clicks = [event["data"] for event in raw.all_events() if event["kind"] == "click"]
    found = sorted((click["key"], click["openid"]) for click in clicks)
    assert found == sorted([("winback/2026-03-16/7/gift", first), ("group/a b", second), ("group/a b", third)])


def test_leaving_is_unfollowing_on_wechat(raw: RawClient) -> None:
    quiet_but(raw, unsubscribe=1.0)
    openid = followers(raw)[0]
    say(raw, openid, "优惠 " + link("k"))
    move(raw, hours=7)
    assert openid not in followers(raw)
    last = raw.all_events()[-1]["data"]["fields"]
    assert (last["Event"], last["FromUserName"]) == ("unsubscribe", openid)


def some_signed_trade(raw: RawClient, phone: str) -> str | None:
    """A trade of that phone, signed lately enough to be reviewed, without a review."""
    fields = "tid,receiver_mobile,buyer_rate,end_time"
    for row in raw.trades("taobao.trades.sold.get", 100, fields=fields, status="TRADE_FINISHED"):
        if row["receiver_mobile"] == phone and not row["buyer_rate"] and row["end_time"] > "2026-03-05":
            return str(row["tid"])
    return None


def test_a_review_request_is_answered_within_a_day_once(raw: RawClient) -> None:
    quiet_but(raw, review_after_request=1.0, purchase_treated=1.0)
    found = ((openid, some_signed_trade(raw, phone)) for openid, phone in buyers(raw))
    openid, tid = next((openid, tid) for openid, tid in found if tid)
    before = raw.truth()
    data = {"thing1": {"value": "灯"}, "time2": {"value": "2026-03-10"}, "thing3": {"value": "请评价"}}
    for step in ("ask", "remind"):
        url = link(f"review/taobao_flagship/{tid}/{step}")
        body = {
            "touser": openid,
            "template_id": "SIMTEMPLATE00000000000000000000000000000001",
            "url": url,
            "data": data,
        }
        assert raw.wechat("/cgi-bin/message/template/send", body)["errcode"] == 0
    move(raw, days=1)
    rows = raw.top("taobao.traderates.get", fields="tid,created,content", rate_type="get", role="buyer", tid=tid)
    assert len({row["created"] for row in rows["trade_rates"]["trade_rate"]}) == 1
    trade = raw.top("taobao.trade.fullinfo.get", fields="buyer_rate,modified", tid=tid)["trade"]
    assert trade["buyer_rate"] is True
    assert trade["modified"] == rows["trade_rates"]["trade_rate"][0]["created"] >= "2026-03-16"
    after = raw.truth()
    assert after["reviews"] > before["reviews"]
    assert after["experiment"]["treated"] == []  # a request for a review is no marketing


def test_an_order_signed_long_ago_cannot_be_reviewed_any_more(raw: RawClient) -> None:
    quiet_but(raw, review_after_request=1.0)
    fields = "tid,receiver_mobile,buyer_rate,end_time"
    openid_of = {phone: openid for openid, phone in buyers(raw)}
    old = next(
        row
        for row in raw.trades("taobao.trades.sold.get", 100, fields=fields, status="TRADE_FINISHED")
        if row["receiver_mobile"] in openid_of and not row["buyer_rate"] and row["end_time"] < "2026-02-25"
    )
    say(raw, openid_of[old["receiver_mobile"]], link(f"review/taobao_flagship/{old['tid']}/ask"))
    move(raw, days=1)
    answer = raw.top("taobao.traderates.get", fields="tid", rate_type="get", role="buyer", tid=old["tid"])
    assert answer["total_results"] == 0


def test_a_stranger_cannot_review_somebody_elses_order(raw: RawClient) -> None:
    quiet_but(raw, review_after_request=1.0)
    (first, _), (second, _) = buyers(raw)[:2]
    found = ((openid, some_signed_trade(raw, phone)) for openid, phone in buyers(raw))
    owner, tid = next((openid, tid) for openid, tid in found if tid)
    say(raw, second if owner == first else first, link(f"review/taobao_flagship/{tid}/ask"))
    move(raw, days=1)
    assert raw.top("taobao.traderates.get", fields="tid", rate_type="get", role="buyer", tid=tid)["total_results"] == 0


# ------------------------------------------------------------------------------------------------------------ only the seed


def picture(raw: RawClient) -> Any:
    truth = raw.truth()
    del truth["now"]
    return truth, [event["event_id"] for event in raw.all_events()]


def test_small_steps_and_one_big_step_give_the_same_world(raw: RawClient) -> None:
    target = "2026-03-19T12:00:00+08:00"
    raw.control("POST", "/clock", {"now": target}).raise_for_status()
    at_once = picture(raw)
    raw.control("POST", "/reset", {}).raise_for_status()
    while (raw.now() + timedelta(hours=9)).isoformat() < target:
        move(raw, hours=9)
        raw.top("taobao.trades.sold.get", fields="tid")
        followers(raw)
    raw.control("POST", "/clock", {"now": target}).raise_for_status()
    assert picture(raw) == at_once
    assert len(at_once[0]["experiment"]["purchases"]) > 0


def test_reset_brings_the_first_state_back(raw: RawClient) -> None:
    first = picture(raw)
    quiet_but(raw, purchase_base=1.0, follow_daily=1.0, unfollow_daily=1.0)
    move(raw, days=2)
    raw.send_coupon(followers(raw)[0], "x")
    assert picture(raw) != first
    raw.control("POST", "/reset", {}).raise_for_status()
    assert picture(raw) == first
    counters = raw.control("GET", "/counters").json()
    assert counters["coupons"]["granted"] == 0
    assert raw.control("GET", "/settings").json()["purchase_base"] == 0.03


@pytest.mark.slow
def test_rates_of_the_whole_world_are_the_stated_ones() -> None:
    """p0, p1 and clicks over thousands of people, within four standard errors."""
    from sandbox.clock import DAY
    from sandbox.reactions import begin, receive
    from sandbox.state import World
    from sandbox.world import load_history

    world = World(load_history(11, date(2026, 3, 14)))
    begin(world)
    start = world.history.end
    world.clock.set(start + 60)
    world.settle()
    treated = [person for person in world.buyers if person.openid and person.openid in world.by_openid]
    for person in treated:
        assert person.openid
        receive(world, person, "wechat_mass", person.openid, link("group/x"), start + 60)
    world.clock.set(start + 2 * DAY)
    world.settle()

    def close(count: int, trials: int, share: float) -> bool:
        return abs(count - trials * share) < 4 * (trials * share * (1 - share)) ** 0.5

    bought = [entry["treated"] for entry in world.purchases]
    clicks = [event for _, _, event in world.archive.events if event["kind"] == "click"]
    others = len(world.buyers) - len(treated)
    assert close(bought.count(True), 2 * len(treated), 0.13)
    assert close(bought.count(False), 2 * others, 0.03)
    assert close(len(clicks), len(treated), 0.35)
    share = sum(person.openid is not None for person in world.buyers) / len(world.buyers)
    assert close(round(share * 4338), 4338, 0.45)
