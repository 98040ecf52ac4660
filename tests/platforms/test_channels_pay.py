"""WeChat Pay coupons on the wire: signatures both ways, one coupon per request key, every refusal its own error."""

import asyncio
import hashlib
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from campaign_world import sandbox_openids
from nightmarket.channels.wechat_pay import (
    PayError,
    PayInDoubt,
    PayRefused,
    PayStopped,
    WeChatPay,
    check,
    string_to_sign,
)
from nightmarket.settings import ConfigError, Credentials, credentials

STOCK = "9856001"


def ask(work: Callable[[WeChatPay], Any], account: Credentials | None = None) -> Any:
    """Run `work` with an open client."""

    async def run() -> Any:
        async with WeChatPay(account or credentials("wechat_pay"), timeout_seconds=0.5) as pay:
            return await work(pay)

    return asyncio.run(run())


def changed(**extra: str) -> Credentials:
    account = credentials("wechat_pay")
    return Credentials(account.conn_id, account.host, account.login, extra={**account.extra, **extra})


@pytest.fixture
def fault(sandbox: Any) -> Callable[..., None]:
    def set_fault(**fault: Any) -> None:
        sandbox.control("POST", "/faults", {"faults": [{"platform": "wechat_pay", **fault}]})

    return set_fault


def granted(sandbox: Any) -> dict[str, int]:
    return dict(sandbox.control("GET", "/counters")["coupons"]["by_out_request_no"])


def test_the_string_to_sign_is_that_of_the_documents() -> None:
    body = '{"stock_id":"9856888","out_request_no":"1900000001202311140001","appid":"wxsim0000000000001","stock_creator_mchid":"1900000001"}'
    nonce = "SIMNONCE0000000000000000000000001"
    post = string_to_sign(
        "POST", "/v3/marketing/favor/users/oSIM000000000000000000000001/coupons", "1700000000", nonce, body
    )
    assert (len(post), hashlib.sha256(post).hexdigest()) == (
        242,
        "4736f2928b1fc55234ff67e178d8c86b30f66b7e964199a1775c154d82261b60",
    )
    get = string_to_sign(
        "GET", "/v3/marketing/favor/stocks/9856888?stock_creator_mchid=1900000001", "1700000000", nonce, ""
    )
    assert (len(get), hashlib.sha256(get).hexdigest()) == (
        116,
        "0c55b09dc4e3e4f73e5d5b69f821c1fca57583216d613e137e197ec12e90a036",
    )


def test_the_same_request_gives_the_same_coupon(sandbox: Any) -> None:
    openid = sandbox_openids(sandbox)[0]
    first = ask(lambda pay: pay.issue(openid, STOCK, "cmp_20260314_1_send"))
    assert ask(lambda pay: pay.issue(openid, STOCK, "cmp_20260314_1_send")) == first
    assert granted(sandbox) == {"cmp_20260314_1_send": 1}
    status = ask(lambda pay: pay.coupon(openid, first))
    assert (status.status, status.used_at) == ("SENDED", None)


def test_a_stock_as_its_issuer_knows_it(sandbox: Any) -> None:
    stock = ask(lambda pay: pay.stock(STOCK))
    assert (stock.status, stock.face_amount, stock.minimum_amount, stock.max_coupons) == (
        "running",
        Decimal(30),
        Decimal(100),
        5000,
    )
    assert stock.valid_from.tzinfo is not None
    assert stock.valid_from < stock.valid_to
    assert asyncio.run(check(credentials("wechat_pay"), STOCK)) == (
        f"WeChat Pay: merchant {credentials('wechat_pay').login} may use stock 9856001 (running, 0 of 5000 given out)"
    )


def test_one_coupon_per_person(sandbox: Any) -> None:
    openid = sandbox_openids(sandbox)[0]
    ask(lambda pay: pay.issue(openid, STOCK, "one"))
    with pytest.raises(PayRefused, match="RULE_LIMIT") as caught:
        ask(lambda pay: pay.issue(openid, STOCK, "two"))
    assert (caught.value.code, caught.value.http_status) == ("RULE_LIMIT", 403)
    assert openid not in str(caught.value)


@pytest.mark.parametrize(
    ("account", "openid", "stock", "error", "says"),
    [
        ({}, "oNOBODY", STOCK, PayRefused, "PARAM_ERROR"),
        ({}, None, "123", PayStopped, "RESOURCE_NOT_EXISTS"),
        ({"serial_no": "0"}, None, STOCK, PayStopped, "SIGN_ERROR"),
        ({"appid": "wxother"}, None, STOCK, PayStopped, "APPID_MCHID_NOT_MATCH"),
    ],
)
def test_what_a_refusal_means(
    sandbox: Any, account: dict[str, str], openid: str | None, stock: str, error: type[PayError], says: str
) -> None:
    receiver = openid or sandbox_openids(sandbox)[0]
    with pytest.raises(error, match=says):
        ask(lambda pay: pay.issue(receiver, stock, "k"), changed(**account))
    assert granted(sandbox) == {}


def test_a_wrong_private_key_is_refused_by_the_platform(sandbox: Any) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    with pytest.raises(PayStopped, match="SIGN_ERROR"):
        ask(lambda pay: pay.stock(STOCK), changed(private_key=pem.decode()))


def test_an_answer_that_is_not_from_wechat_is_not_believed(sandbox: Any, fault: Callable[..., None]) -> None:
    openid = sandbox_openids(sandbox)[0]
    fault(method="*", kind="bad_signature")
    with pytest.raises(PayInDoubt, match="not signed by WeChat Pay"):
        ask(lambda pay: pay.issue(openid, STOCK, "probe"))
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key()
    pem = other.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()
    with pytest.raises(PayInDoubt, match="not signed by WeChat Pay"):
        ask(lambda pay: pay.issue(openid, STOCK, "probe"), changed(platform_public_key=pem))
    assert ask(lambda pay: pay.issue(openid, STOCK, "probe"))  # the identical request, now believed
    assert granted(sandbox) == {"probe": 1}


@pytest.mark.parametrize(
    "kind",
    [
        "timeout_after",
        "timeout_before",
        "cut",
        "http_500",
        "http_500_after",
        "garbage",
        "http_429",
        "call_limit",
        "platform_busy",
    ],
)
def test_in_doubt_the_identical_request_is_repeated(sandbox: Any, fault: Callable[..., None], kind: str) -> None:
    openid = sandbox_openids(sandbox)[0]
    fault(method="*", kind=kind, seconds=0.8)
    with pytest.raises(PayInDoubt):
        ask(lambda pay: pay.issue(openid, STOCK, "again"))
    assert ask(lambda pay: pay.issue(openid, STOCK, "again"))
    assert granted(sandbox) == {"again": 1}


def test_an_old_answer_is_a_replay(sandbox: Any, set_clock: Callable[[str], None]) -> None:
    set_clock("2026-03-15T02:37:00+08:00")  # our clock runs ahead of the platform's by more than five minutes
    with pytest.raises(PayError, match="SIGN_ERROR"):
        ask(lambda pay: pay.stock(STOCK))


def test_an_incomplete_connection_names_what_is_missing(sandbox: Any) -> None:
    for key in ("appid", "serial_no", "private_key", "platform_key_id", "platform_public_key"):
        with pytest.raises(ConfigError, match=rf"extra\.{key} is missing"):
            WeChatPay(changed(**{key: ""}))
    with pytest.raises(ConfigError, match="not a readable PEM key"):
        WeChatPay(changed(private_key="-----BEGIN nonsense"))
