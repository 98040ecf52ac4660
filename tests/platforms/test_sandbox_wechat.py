"""The sandbox's WeChat account and WeChat Pay on the wire."""

import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sandbox_client import RawClient

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "include"))
from sandbox import webhook

REVIEW = "SIMTEMPLATE00000000000000000000000000000001"
SENT = {"errcode": 0, "errmsg": "ok"}


@pytest.fixture
def raw(sandbox_process: Any) -> RawClient:
    client = RawClient(sandbox_process.access)
    client.control("POST", "/reset", {}).raise_for_status()
    return client


def move(raw: RawClient, **ahead: float) -> None:
    later = raw.now() + timedelta(**ahead)
    raw.control("POST", "/clock", {"now": later.isoformat()}).raise_for_status()


def set_fault(raw: RawClient, kind: str, platform: str = "wechat_official", **more: Any) -> None:
    raw.control("POST", "/faults", {"faults": [{"platform": platform, "kind": kind, **more}]}).raise_for_status()


def openids(raw: RawClient) -> list[str]:
    found: list[str] = raw.wechat("/cgi-bin/user/get")["data"]["openid"]
    return found


def writers(raw: RawClient, hours: int = 47) -> list[str]:
    """Followers who wrote to the account lately: their service window is open."""
    events = raw.all_events(raw.now() - timedelta(hours=hours))
    fields = [event["data"]["fields"] for event in events if event["kind"] == "wechat.event"]
    return list(dict.fromkeys(entry["FromUserName"] for entry in fields if entry["MsgType"] == "text"))


# ------------------------------------------------------------------------------------------------------------ tokens


def test_stable_token_is_the_same_while_it_lasts(raw: RawClient) -> None:
    first, second = raw.wechat_token(), raw.wechat_token()
    assert first["access_token"] == second["access_token"]
    assert 7100 < second["expires_in"] <= first["expires_in"] <= 7200
    move(raw, minutes=110)
    assert raw.wechat_token()["access_token"] == first["access_token"]
    move(raw, minutes=6)
    renewed = raw.wechat_token()
    assert renewed["access_token"] != first["access_token"]
    assert raw.wechat("/cgi-bin/user/get", token=first["access_token"])["total"] > 0  # both work for a while
    move(raw, minutes=6)
    assert raw.wechat("/cgi-bin/user/get", token=first["access_token"])["errcode"] == 40001
    assert raw.wechat("/cgi-bin/user/get", token=renewed["access_token"])["total"] > 0
    move(raw, hours=3)
    assert raw.wechat("/cgi-bin/user/get", token=renewed["access_token"])["errcode"] == 42001


def test_classic_token_replaces_itself_but_not_the_stable_one(raw: RawClient) -> None:
    account = raw.access["wechat_official"]
    query = {"grant_type": "client_credential", "appid": account["appid"], "secret": account["secret"]}
    url = account["base_url"] + "/cgi-bin/token"
    stable = raw.wechat_token()["access_token"]
    first, second = (raw.http.get(url, params=query, timeout=10).json()["access_token"] for _ in range(2))
    assert len({first, second, stable}) == 3
    move(raw, minutes=6)
    codes = [raw.wechat("/cgi-bin/user/get", token=token).get("errcode") for token in (first, second, stable)]
    assert codes == [40001, None, None]


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        (40013, {"appid": "wx1"}),
        (40125, {"secret": "guess"}),
        (41002, {"appid": ""}),
        (41004, {"secret": ""}),
        (40002, {"grant_type": "password"}),
    ],
)
def test_token_refusals(raw: RawClient, code: int, changes: dict[str, str]) -> None:
    assert raw.wechat_token(**changes)["errcode"] == code


def test_force_refresh_is_rare(raw: RawClient) -> None:
    first = raw.wechat_token(force_refresh=True)["access_token"]
    assert raw.wechat_token(force_refresh=True)["errcode"] == 45009
    move(raw, seconds=31)
    assert raw.wechat_token(force_refresh=True)["access_token"] != first
    for _ in range(18):
        move(raw, seconds=31)
        assert "access_token" in raw.wechat_token(force_refresh=True)
    move(raw, seconds=31)
    assert raw.wechat_token(force_refresh=True)["errcode"] == 45009


def test_bad_tokens(raw: RawClient) -> None:
    assert raw.wechat("/cgi-bin/user/get", token="")["errcode"] == 41001
    assert raw.wechat("/cgi-bin/user/get", token="nonsense")["errcode"] == 40014
    set_fault(raw, "expired_session")
    token = raw.wechat_token(force_refresh=True)["access_token"]
    raw.control("POST", "/faults", {"faults": []})
    set_fault(raw, "expired_session", method="cgi-bin/user/get")
    assert raw.wechat("/cgi-bin/user/get", token=token)["errcode"] == 42001
    assert raw.wechat("/cgi-bin/user/get", token=token)["errcode"] == 42001
    assert raw.wechat("/cgi-bin/user/get")["total"] > 0


def test_bodies_that_are_no_json(raw: RawClient) -> None:
    token = raw.wechat_token()["access_token"]
    url = raw.access["base_url"] + f"/cgi-bin/message/custom/send?access_token={token}"
    assert raw.http.post(url, data=b"{'touser'", timeout=10).json()["errcode"] == 47001
    assert raw.http.post(url, data=b"[]", timeout=10).json()["errcode"] == 47001


# ------------------------------------------------------------------------------------------------------------ followers


def test_follower_list_pages_and_repeats_its_last_openid(raw: RawClient) -> None:
    raw.control("POST", "/settings", {"wechat_user_page": 30}).raise_for_status()
    truth = raw.truth()
    listed: list[str] = []
    page = raw.wechat("/cgi-bin/user/get")
    while page["count"]:
        assert page["total"] == truth["followers"]
        assert page["count"] == len(page["data"]["openid"]) <= 30
        assert page["next_openid"] == page["data"]["openid"][-1]
        listed += page["data"]["openid"]
        page = raw.wechat("/cgi-bin/user/get", next_openid=page["next_openid"])
    assert page == {"total": truth["followers"], "count": 0, "next_openid": ""}
    assert len(set(listed)) == len(listed) == truth["followers"]
    since = [profile["subscribe_time"] for profile in profiles(raw, listed)]
    assert since == sorted(since)
    assert raw.wechat("/cgi-bin/user/get", next_openid="oNobody")["errcode"] == 40003


def profiles(raw: RawClient, wanted: list[str]) -> list[dict[str, Any]]:
    body = {"user_list": [{"openid": openid, "lang": "zh_CN"} for openid in wanted]}
    answer = raw.wechat("/cgi-bin/user/info/batchget", body)
    rows: list[dict[str, Any]] = answer["user_info_list"]
    return rows


def test_profiles(raw: RawClient) -> None:
    wanted = openids(raw)
    rows = profiles(raw, wanted[:100])
    assert [row["openid"] for row in rows] == wanted[:100]
    assert all(row["subscribe"] == 1 and row["unionid"] and row["nickname"] == "" for row in rows)
    single = raw.wechat("/cgi-bin/user/info", openid=wanted[0], lang="zh_CN")
    assert single == rows[0]
    left = next(
        event["data"]["fields"]["FromUserName"]
        for event in raw.all_events()
        if event["data"].get("fields", {}).get("Event") == "unsubscribe"
    )
    assert set(profiles(raw, [left])[0]) == {"subscribe", "openid", "unionid"}
    many = {"user_list": [{"openid": wanted[0]}] * 101}
    assert raw.wechat("/cgi-bin/user/info/batchget", many)["errcode"] == 40032
    assert raw.wechat("/cgi-bin/user/info/batchget", {"user_list": []})["errcode"] == 40031
    assert raw.wechat("/cgi-bin/user/info/batchget", {"user_list": [{"openid": "oNobody"}]})["errcode"] == 40003


# ------------------------------------------------------------------------------------------------------------ customer service


def text(openid: str, content: str = "您好") -> dict[str, Any]:
    return {"touser": openid, "msgtype": "text", "text": {"content": content}}


def test_service_window_five_messages_in_48_hours(raw: RawClient) -> None:
    openid = writers(raw)[0]
    codes = [raw.wechat("/cgi-bin/message/custom/send", text(openid, f"第{n}条"))["errcode"] for n in range(7)]
    assert codes == [0, 0, 0, 0, 0, 45047, 45047]
    move(raw, hours=49)
    silent = next(one for one in openids(raw) if one not in writers(raw, 60))
    assert raw.wechat("/cgi-bin/message/custom/send", text(silent))["errcode"] == 45015
    counters = raw.control("GET", "/counters").json()
    assert counters["messages"]["by_channel"] == {"wechat_service": 5}
    assert counters["messages"]["by_receiver"] == {openid: 5}
    assert counters["messages"]["max_per_receiver_and_key"] == 1


def test_service_message_refusals(raw: RawClient) -> None:
    send = "/cgi-bin/message/custom/send"
    openid = writers(raw)[0]
    assert raw.wechat(send, text("oNobody"))["errcode"] == 40003
    assert raw.wechat(send, {"touser": openid, "msgtype": "fax", "fax": {}})["errcode"] == 40008
    assert raw.wechat(send, text(openid, ""))["errcode"] == 44004
    left = next(
        event["data"]["fields"]["FromUserName"]
        for event in raw.all_events()
        if event["data"].get("fields", {}).get("Event") == "unsubscribe"
    )
    assert raw.wechat(send, text(left))["errcode"] == 45015
    assert raw.control("GET", "/counters").json()["messages"]["total"] == 0


def test_the_same_text_twice_is_counted_twice_under_one_key(raw: RawClient) -> None:
    openid = writers(raw)[0]
    assert raw.wechat("/cgi-bin/message/custom/send", text(openid)) == SENT
    assert raw.wechat("/cgi-bin/message/custom/send", text(openid)) == SENT
    messages = raw.control("GET", "/counters").json()["messages"]
    assert messages["max_per_receiver_and_key"] == 2
    assert [entry["content"] for entry in raw.control("GET", "/messages").json()["messages"]] == ["您好", "您好"]


# ------------------------------------------------------------------------------------------------------------ templates


def template(openid: str, key: str = "k-1", **changes: Any) -> dict[str, Any]:
    data = {"thing1": "复古灯", "time2": "2026-03-10", "thing3": "请写下您的评价"}
    return {
        "touser": openid,
        "template_id": REVIEW,
        "url": "https://m.nightmarket.test/r/k%2F1?s=abc",
        "client_msg_id": key,
        "data": {name: {"value": value} for name, value in data.items()},
        **changes,
    }


def finished(raw: RawClient, event: str = "TEMPLATESENDJOBFINISH") -> list[dict[str, str]]:
    fields = [entry["data"]["fields"] for entry in raw.all_events(raw.now() - timedelta(hours=1)) if entry["kind"] == "wechat.event"]  # fmt: skip
    return [entry for entry in fields if entry.get("Event") == event]


def test_template_is_accepted_and_its_status_follows(raw: RawClient) -> None:
    raw.control("POST", "/settings", {"template_blocked": 0.0, "template_failed": 0.0}).raise_for_status()
    openid = openids(raw)[0]
    answer = raw.wechat("/cgi-bin/message/template/send", template(openid))
    assert answer["errcode"] == 0
    assert finished(raw) == []
    move(raw, minutes=1)
    (event,) = finished(raw)
    assert (event["FromUserName"], event["MsgID"], event["Status"]) == (openid, str(answer["msgid"]), "success")
    assert raw.control("GET", "/counters").json()["messages"]["by_key"] == {"k-1": 1}


@pytest.mark.parametrize(
    ("kind", "statuses"),
    [
        ("user_block", ["failed:user block"]),
        ("system_failed", ["failed: system failed"]),
        ("event_lost", []),
        ("event_twice", ["success", "success"]),
    ],
)
def test_template_status_faults(raw: RawClient, kind: str, statuses: list[str]) -> None:
    raw.control("POST", "/settings", {"template_blocked": 0.0, "template_failed": 0.0}).raise_for_status()
    set_fault(raw, kind, method="cgi-bin/message/template/send")
    assert raw.wechat("/cgi-bin/message/template/send", template(openids(raw)[0]))["errcode"] == 0
    move(raw, minutes=1)
    assert [event["Status"] for event in finished(raw)] == statuses


def test_template_refusals(raw: RawClient) -> None:
    send, openid = "/cgi-bin/message/template/send", openids(raw)[0]
    left = next(
        event["data"]["fields"]["FromUserName"]
        for event in raw.all_events()
        if event["data"].get("fields", {}).get("Event") == "unsubscribe"
    )
    assert raw.wechat(send, template(left))["errcode"] == 43004
    assert raw.wechat(send, template(openid, template_id="X"))["errcode"] == 40037
    assert raw.wechat(send, template("oNobody"))["errcode"] == 40003
    lacking = raw.wechat(send, template(openid, data={"thing1": {"value": "x"}, "time2": {"value": "y"}}))
    assert lacking["errcode"] == 47003
    assert "thing3" in lacking["errmsg"]
    long = {"thing1": {"value": "长" * 21}, "time2": {"value": "y"}, "thing3": {"value": "z"}}
    assert raw.wechat(send, template(openid, data=long))["errcode"] == 47003


def test_advertising_in_a_template_is_accepted_and_noted(raw: RawClient) -> None:
    data = {"thing1": {"value": "送您优惠券"}, "time2": {"value": "y"}, "thing3": {"value": "z"}}
    assert raw.wechat("/cgi-bin/message/template/send", template(openids(raw)[0], data=data))["errcode"] == 0
    (violation,) = raw.control("GET", "/counters").json()["violations"]
    assert "优惠券" in violation["detail"]


def test_templates_are_listed(raw: RawClient) -> None:
    listed = raw.wechat("/cgi-bin/template/get_all_private_template")["template_list"]
    assert {entry["template_id"] for entry in listed} == {
        entry["template_id"] for entry in raw.access["wechat_official"]["templates"]
    }
    assert "{{thing1.DATA}}" in next(entry["content"] for entry in listed if entry["template_id"] == REVIEW)


# ------------------------------------------------------------------------------------------------------------ mass


def mass(receivers: list[str], key: str | None) -> dict[str, Any]:
    body = {"touser": receivers, "msgtype": "text", "text": {"content": "新品 https://m.nightmarket.test/r/g1?s=x"}}
    return body | ({"clientmsgid": key} if key else {})


def test_mass_send_counts_add_up_and_repeats_are_refused(raw: RawClient) -> None:
    receivers = openids(raw)[:20]
    left = "oNobodyKnowsThisOne"
    answer = raw.wechat("/cgi-bin/message/mass/send", mass([*receivers, left], "winback-1"))
    assert answer["errcode"] == 0
    repeat = raw.wechat("/cgi-bin/message/mass/send", mass([*receivers, left], "winback-1"))
    assert repeat["errcode"] == 45065
    assert (repeat["msg_id"], repeat["msg_data_id"]) == (answer["msg_id"], answer["msg_data_id"])
    assert raw.wechat("/cgi-bin/message/mass/get", {"msg_id": answer["msg_id"]})["msg_status"] == "SENDING"
    move(raw, minutes=5)
    assert raw.wechat("/cgi-bin/message/mass/get", {"msg_id": answer["msg_id"]})["msg_status"] == "SEND_SUCCESS"
    (event,) = finished(raw, "MASSSENDJOBFINISH")
    assert event["MsgID"] == str(answer["msg_id"])
    counts = [int(event[name]) for name in ("TotalCount", "FilterCount", "SentCount", "ErrorCount")]
    assert counts == [21, 20, 20, 0]
    messages = raw.control("GET", "/counters").json()["messages"]
    assert messages["by_key"] == {"winback-1": 20}
    assert set(messages["by_receiver"]) == set(receivers)
    assert messages["max_per_receiver_and_key"] == 1


def test_a_follower_gets_four_mass_messages_a_month(raw: RawClient) -> None:
    raw.control("POST", "/settings", {"unsubscribe": 0.0, "unfollow_daily": 0.0}).raise_for_status()
    receivers = openids(raw)[:3]
    for number in range(5):
        assert raw.wechat("/cgi-bin/message/mass/send", mass(receivers, f"m-{number}"))["errcode"] == 0
    move(raw, minutes=5)
    sent = {event["MsgID"]: event["SentCount"] for event in finished(raw, "MASSSENDJOBFINISH")}
    assert [count for _, count in sorted(sent.items())] == ["3", "3", "3", "3", "0"]
    assert set(raw.control("GET", "/counters").json()["messages"]["by_receiver"].values()) == {4}
    raw.control("POST", "/clock", {"now": "2026-04-01T08:00:00+08:00"}).raise_for_status()
    assert raw.wechat("/cgi-bin/message/mass/send", mass(receivers, "april"))["errcode"] == 0
    assert raw.control("GET", "/counters").json()["messages"]["by_key"]["april"] == 3


def test_mass_refusals(raw: RawClient) -> None:
    send, receivers = "/cgi-bin/message/mass/send", openids(raw)
    assert raw.wechat(send, mass(receivers[:1], "a"))["errcode"] == 40130
    assert raw.wechat(send, mass(["o"] * 10_001, "a"))["errcode"] == 40032
    assert raw.wechat(send, mass(receivers[:2], "x" * 65))["errcode"] == 40035
    assert raw.wechat("/cgi-bin/message/mass/get", {"msg_id": 1})["errcode"] == 40059


def test_quota_agrees_with_what_was_called(raw: RawClient) -> None:
    receivers = openids(raw)[:2]
    for number in range(102):
        last = raw.wechat("/cgi-bin/message/mass/send", mass(receivers, f"q-{number}"))
    assert last["errcode"] == 45009
    quota = raw.wechat("/cgi-bin/openapi/quota/get", {"cgi_path": "/cgi-bin/message/mass/send"})["quota"]
    assert quota == {"daily_limit": 100, "used": 100, "remain": 0}
    move(raw, days=1)
    assert raw.wechat("/cgi-bin/message/mass/send", mass(receivers, "tomorrow"))["errcode"] == 0
    assert raw.wechat("/cgi-bin/openapi/quota/get", {"cgi_path": "/nothing"})["errcode"] == 76021


@pytest.mark.parametrize(("kind", "code"), [("call_limit", 45009), ("platform_busy", -1)])
def test_busy_platform(raw: RawClient, kind: str, code: int) -> None:
    set_fault(raw, kind, method="custom/send")
    openid = writers(raw)[0]
    answers = [raw.wechat("/cgi-bin/message/custom/send", text(openid))["errcode"] for _ in range(2)]
    assert answers == [code, 0]


def test_minute_limit(raw: RawClient) -> None:
    raw.control("POST", "/settings", {"wechat_rate": 2, "custom_window": False}).raise_for_status()
    receivers = openids(raw)
    codes = [raw.wechat("/cgi-bin/message/custom/send", text(openid))["errcode"] for openid in receivers[:9]]
    assert codes.count(45011) >= 5


def test_push_signature_vectors() -> None:
    assert webhook.signature("test", "1410685589", "test") == "f21891de399b4e33a1a93c9a7b8a8fffb5a443ff"
    assert webhook.signature("simtoken", "1700000000", "nonce123") == "1adac743bcd498ba019f541d0378232e187cec7b"


# ------------------------------------------------------------------------------------------------------------ WeChat Pay


def test_coupon_is_given_once_per_request_number(raw: RawClient) -> None:
    openid, other = openids(raw)[:2]
    first = raw.send_coupon(openid, "run1-m1")
    assert first.status_code == 200
    assert raw.pay_answer_is_signed(first)
    again = raw.send_coupon(openid, "run1-m1")
    assert again.json() == first.json()
    for different in (raw.send_coupon(other, "run1-m1"), raw.send_coupon(openid, "run1-m1", stock="9856002")):
        assert (different.status_code, different.json()["code"]) == (400, "INVALID_REQUEST")
        assert raw.pay_answer_is_signed(different)
    coupons = raw.control("GET", "/counters").json()["coupons"]
    assert coupons["granted"] == 1
    assert coupons["by_out_request_no"] == {"run1-m1": 1}
    assert coupons["calls_by_out_request_no"] == {"run1-m1": 4}


def test_coupon_query_stock_and_list(raw: RawClient) -> None:
    raw.control("POST", "/settings", {"redeem": 0.0}).raise_for_status()
    openid = openids(raw)[0]
    coupon_id = raw.send_coupon(openid, "n1").json()["coupon_id"]
    appid, mchid = raw.access["wechat_pay"]["appid"], raw.access["wechat_pay"]["mchid"]
    base = f"/v3/marketing/favor/users/{openid}/coupons"
    one = raw.pay("GET", f"{base}/{coupon_id}?appid={appid}")
    assert raw.pay_answer_is_signed(one)
    coupon = one.json()
    assert (coupon["status"], coupon["stock_id"]) == ("SENDED", "9856001")
    assert coupon["normal_coupon_information"] == {"coupon_amount": 3000, "transaction_minimum": 10000}
    assert "consume_information" not in coupon
    listed = raw.pay("GET", f"{base}?appid={appid}&stock_id=9856001&offset=0&limit=10").json()
    assert (listed["total_count"], listed["data"]) == (1, [coupon])
    assert raw.pay("GET", f"{base}?appid={appid}&status=USED").json()["total_count"] == 0
    stock = raw.pay("GET", f"/v3/marketing/favor/stocks/9856001?stock_creator_mchid={mchid}").json()
    assert stock["distributed_coupons"] == 1
    assert stock["stock_use_rule"]["max_amount"] == 5000 * 3000
    move(raw, days=61)
    assert raw.pay("GET", f"{base}/{coupon_id}?appid={appid}").json()["status"] == "EXPIRED"
    assert raw.send_coupon(openids(raw)[1], "late").json()["code"] == "REQUEST_BLOCKED"


@pytest.mark.parametrize(
    ("status", "code", "changes"),
    [
        (404, "RESOURCE_NOT_EXISTS", {"stock": "1"}),
        (400, "APPID_MCHID_NOT_MATCH", {"appid": "wxother"}),
        (403, "NO_AUTH", {"stock_creator_mchid": "1"}),
        (400, "PARAM_ERROR", {"out_request_no": ""}),
        (400, "PARAM_ERROR", {"out_request_no": "x" * 129}),
    ],
)
def test_coupon_refusals(raw: RawClient, status: int, code: str, changes: dict[str, str]) -> None:
    answer = raw.send_coupon(openids(raw)[0], "n1", **changes)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert raw.pay_answer_is_signed(answer)


@pytest.mark.slow
def test_coupon_limits_per_user_and_per_stock(raw: RawClient) -> None:
    receivers = openids(raw)
    assert raw.send_coupon(receivers[0], "a").status_code == 200
    assert raw.send_coupon(receivers[0], "b").json()["code"] == "RULE_LIMIT"
    assert raw.send_coupon("oNobody", "c").json()["code"] == "PARAM_ERROR"
    given = [
        raw.send_coupon(receiver, f"t-{receiver}-{n}", "9856999") for receiver in receivers[:60] for n in range(20)
    ]
    codes = [answer.json().get("code", "") for answer in given]
    assert codes == [""] * 1000 + ["NOT_ENOUGH"] * 200
    assert len({answer.json()["coupon_id"] for answer in given[:1000]}) == 1000


def test_pay_refuses_what_is_not_signed_by_the_merchant(raw: RawClient) -> None:
    openid = openids(raw)[0]
    path = f"/v3/marketing/favor/users/{openid}/coupons"
    spoilt = raw.pay("POST", path, {"stock_id": "9856001"}, spoil=True)
    assert (spoilt.status_code, spoilt.json()["code"]) == (401, "SIGN_ERROR")
    stale = raw.pay("GET", path, timestamp=int(raw.now().timestamp()) - 310)
    assert (stale.status_code, stale.json()["code"]) == (401, "SIGN_ERROR")
    bare = raw.http.get(raw.access["base_url"] + path, timeout=10)
    assert (bare.status_code, bare.json()["code"]) == (401, "SIGN_ERROR")


def test_pay_faults(raw: RawClient) -> None:
    openid = openids(raw)[0]
    set_fault(raw, "bad_signature", "wechat_pay")
    probe = raw.send_coupon(openid, "n1")
    assert probe.headers["Wechatpay-Signature"].startswith("WECHATPAY/SIGNTEST/")
    assert not raw.pay_answer_is_signed(probe)
    set_fault(raw, "http_500_after", "wechat_pay", method="send_coupon")
    other = openids(raw)[1]
    assert raw.send_coupon(other, "n2").status_code == 500
    assert raw.send_coupon(other, "n2").status_code == 200
    coupons = raw.control("GET", "/counters").json()["coupons"]
    assert coupons["by_out_request_no"] == {"n1": 1, "n2": 1}
    set_fault(raw, "call_limit", "wechat_pay")
    assert (limited := raw.send_coupon(openids(raw)[2], "n3")).status_code == 429
    assert limited.json()["code"] == "FREQUENCY_LIMITED"
