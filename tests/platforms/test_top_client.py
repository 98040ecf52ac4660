"""TOP's wire rules without a network: signatures against published vectors, errors as sentences, list shapes."""

from collections.abc import Callable
from typing import Any

import pytest

from nightmarket.platforms import base, taobao
from nightmarket.platforms.base import AuthError, BadPayload, NotFound, PlatformDown, RateLimited, Refused, Transport
from nightmarket.settings import ConfigError, Credentials

GUIDE = {  # the example of the official call guide
    "method": "taobao.item.seller.get",
    "app_key": "12345678",
    "session": "test",
    "timestamp": "2016-01-01 12:00:00",
    "format": "json",
    "v": "2.0",
    "fields": "num_iid,title,nick,price,num",
    "num_iid": "11223344",
}
OLD_GUIDE = {
    "method": "taobao.user.seller.get",
    "timestamp": "2013-05-06 13:52:03",
    "format": "xml",
    "app_key": "test",
    "v": "2.0",
    "fields": "nick",
    "session": "test",
}
CHINESE = {  # UTF-8 values, and underscores that sort before letters
    "method": "taobao.trades.sold.increment.get",
    "app_key": "12345678",
    "session": "test",
    "timestamp": "2016-01-01 12:00:00",
    "format": "json",
    "v": "2.0",
    "fields": "tid,status,payment,orders",
    "start_modified": "2015-12-31 00:00:00",
    "end_modified": "2015-12-31 00:30:00",
    "page_no": "1",
    "page_size": "40",
    "use_has_next": "true",
    "buyer_nick": "小明",
}


@pytest.mark.parametrize(
    ("parameters", "secret", "method", "expected"),
    [
        (GUIDE, "helloworld", "md5", "66987CB115214E59E6EC978214934FB8"),
        (OLD_GUIDE, "test", "md5", "72CB4D809B375A54502C09360D879C64"),
        (GUIDE, "helloworld", "hmac", "D56D7858309C31B6251083A874D48273"),
        (GUIDE, "helloworld", "hmac-sha256", "04DB15AD0774D5CFCE2C837DE43E3FCEA9011ED74F3038FB6AB5F3C4CEA119E8"),
        (CHINESE, "helloworld", "md5", "6EFF93695AB08B0407279180772D884E"),
        (CHINESE, "helloworld", "hmac", "98B0B08C3FC4564A243B6AECAC25962A"),
        (CHINESE, "helloworld", "hmac-sha256", "5C233D18E4A848A97F0CEDB0F091CE7FBC54FD9D6224A1B0E21A67036A65BBDA"),
    ],
)
def test_published_signatures(parameters: dict[str, str], secret: str, method: str, expected: str) -> None:
    assert taobao.sign(parameters | {"sign_method": method}, secret, method) == expected


def test_hmac_is_not_wrapped_in_the_secret() -> None:
    assert taobao.sign({"Hi": " There"}, "\x0b" * 16, "hmac") == "9294727A3638BB1C13F48EF8158BFC9D"  # RFC 2202, case 1


def test_empty_values_and_the_sign_itself_are_not_signed() -> None:
    noisy = GUIDE | {"sign_method": "md5", "empty": "", "sign": "whatever"}
    assert taobao.sign(noisy, "helloworld", "md5") == "66987CB115214E59E6EC978214934FB8"


def test_an_unknown_sign_method_is_named() -> None:
    with pytest.raises(ValueError, match=r"sha1.*md5, hmac, hmac-sha256"):
        taobao.sign(GUIDE, "helloworld", "sha1")


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        ({"code": 27, "msg": "Invalid session", "sub_code": "invalid-sessionkey"}, AuthError, "authorise the application again"),
        ({"code": 26, "msg": "Missing session"}, AuthError, "session is missing"),
        ({"code": 53, "msg": "x", "sub_code": "isv.w2-security-authorize-invalid"}, AuthError, "has lapsed"),
        ({"code": 25, "msg": "Invalid Signature"}, AuthError, "application secret"),
        ({"code": "29", "msg": "Invalid app Key"}, AuthError, "not known to TOP"),
        ({"code": 10, "msg": "Service Currently Unavailable"}, PlatformDown, "not available right now"),
        ({"code": 15, "msg": "Remote service error", "sub_code": "isp.top-remote-connection-timeout"}, PlatformDown, "not available"),
        ({"code": 15, "msg": "Remote service error", "sub_code": "isv.invalid-permission"}, Refused, "isv.invalid-permission"),
        ({"code": 15, "msg": "Remote service error", "sub_code": "isv.trade-not-exist"}, NotFound, "does not exist"),
        ({"code": 41, "msg": "Invalid Arguments", "sub_code": "isv.invalid-parameter:fields"}, Refused, "invalid-parameter:fields"),
        ({"code": 31, "msg": "Invalid Timestamp"}, Refused, "clock is off by more than 10 minutes"),
    ],
)  # fmt: skip
def test_errors_become_types_and_sentences(error: dict[str, Any], kind: type[Exception], words: str) -> None:
    found = taobao.to_error("taobao.trades.sold.get", error | {"request_id": "r-5"})
    assert type(found) is kind
    sentence = str(found)
    assert words in sentence
    assert sentence.startswith("taobao, taobao.trades.sold.get: ")
    assert sentence.endswith("(request id r-5)")


def test_the_ban_of_a_call_limit_is_read() -> None:
    message = "This ban will last for 17 more seconds"
    error = taobao.to_error("m", {"code": 7, "msg": "App Call Limited", "sub_msg": message})
    assert isinstance(error, RateLimited)
    assert error.retry_after == 17
    assert "17 s" in str(error)


def test_a_long_ban_is_not_waited_for_and_a_short_one_is() -> None:
    waits: list[float] = []
    bans = iter([2.0, 40_000.0])

    def attempt() -> None:
        raise RateLimited("taobao", "m", "call limit reached", retry_after=next(bans))

    with pytest.raises(RateLimited) as caught:
        Transport("taobao", sleep=waits.append).retry(attempt)
    assert caught.value.retry_after == 40_000
    assert len(waits) == 1
    assert 2 <= waits[0] <= 3


def test_retries_end_and_their_pauses_grow() -> None:
    waits: list[float] = []

    def attempt() -> None:
        raise PlatformDown("taobao", "m", "HTTP 500")

    with pytest.raises(PlatformDown):
        Transport("taobao", sleep=waits.append).retry(attempt)
    assert len(waits) == base.MAX_ATTEMPTS - 1
    assert all(0.5 * 2**n <= wait <= 0.75 * 2**n for n, wait in enumerate(waits))


@pytest.mark.parametrize(
    "error", [AuthError("taobao", "m", "x"), BadPayload("taobao", "m", "x"), Refused("taobao", "m", "x")]
)
def test_what_cannot_pass_is_not_repeated(error: Exception) -> None:
    calls = []

    def attempt() -> None:
        calls.append(1)
        raise error

    with pytest.raises(type(error)):
        Transport("taobao", sleep=lambda _: None).retry(attempt)
    assert len(calls) == 1


def test_errors_survive_a_process_boundary() -> None:
    import pickle

    error = RateLimited("taobao", "m", "call limit reached", request_id="r-1", retry_after=3, code=7)
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.retry_after, copy.code) == (str(error), 3, 7)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"trades": {"trade": [{"tid": 1}]}}, [{"tid": 1}]),
        ({"trades": [{"tid": 1}]}, [{"tid": 1}]),
        ({"total_results": 0}, []),
        ({"trades": {}}, []),
    ],
)
def test_list_shapes(content: dict[str, Any], expected: list[Any]) -> None:
    assert taobao.rows_of(content, "trades", "trade") == expected


def test_reviews_are_found_under_either_name() -> None:
    for name in ("trade_rate", "taobao_traderates_get_results"):
        assert taobao.rows_of(
            {"trade_rates": {name: [{"oid": 1}]}}, "trade_rates", "trade_rate", "taobao_traderates_get_results"
        )


def test_ids_beyond_2_to_the_53_keep_every_digit() -> None:
    answer = base.parse_json("taobao", "m", b'{"tid":4021187654321098765}')
    assert taobao.TRADES.record_key(answer) == "4021187654321098765"


def test_broken_json_names_platform_method_and_page_and_shows_nothing() -> None:
    with pytest.raises(BadPayload) as caught:
        base.parse_json("taobao", "taobao.trades.sold.get", b'{"receiver_name":"\xe7\x8e\x8b', 3)
    assert str(caught.value).startswith("taobao, taobao.trades.sold.get: page 3 is not readable JSON (")
    assert "receiver" not in str(caught.value)


@pytest.mark.parametrize("missing", ["host", "login", "password", "session_token"])
def test_an_incomplete_connection_names_the_missing_part(missing: str) -> None:
    values: dict[str, Any] = {
        "host": "http://x/router/rest",
        "login": "1",
        "password": "2",
        "extra": {"session_token": "3"},
    }
    if missing == "session_token":
        values["extra"] = {}
    else:
        values[missing] = ""
    with pytest.raises(ConfigError, match=missing):
        taobao.connect(Credentials("taobao_flagship", **values), Transport("taobao"), options=taobao.Options())


# ------------------------------------------------------------------------------------------------- lists that move
class FakeList:
    """Answers `call` with pages of rows, newest first; `shift` may change the rows before each answer."""

    def __init__(self, rows: list[int], size: int, shift: Callable[[int, list[int]], list[int]]) -> None:
        self.rows, self.size, self.shift, self.calls = rows, size, shift, 0

    def page_size(self, method: str, largest: int) -> int:
        return self.size

    def call(self, method: str, page: int, *, page_size: int, use_has_next: bool, **_: Any) -> dict[str, Any]:
        self.calls += 1
        self.rows = self.shift(self.calls, self.rows)
        part = [{"tid": tid} for tid in self.rows[(page - 1) * page_size : page * page_size]]
        answer: dict[str, Any] = {"trades": {"trade": part}} if part else {}
        return answer if use_has_next else answer | {"total_results": len(self.rows)}


def read(pages: FakeList) -> list[int]:
    walked = taobao.walk(
        pages,  # type: ignore[arg-type]
        "taobao.trades.sold.increment.get",
        100,
        lambda content: taobao.rows_of(content, "trades", "trade"),
        taobao.TRADES.record_key,
    )
    return [row["tid"] for page in walked for row in page if "tid" in row]


def test_a_quiet_list_is_read_once_from_the_end() -> None:
    pages = FakeList(list(range(10, 0, -1)), 3, lambda _, rows: rows)
    assert read(pages) == [1, 4, 3, 2, 7, 6, 5, 10, 9, 8]
    assert pages.calls == 1 + 4


def test_one_page_takes_one_call() -> None:
    pages = FakeList([3, 2, 1], 3, lambda _, rows: rows)
    assert read(pages) == [3, 2, 1]
    assert pages.calls == 1


@pytest.mark.parametrize("leaving", range(1, 11))
@pytest.mark.parametrize("at_call", range(1, 6))
def test_rows_that_leave_the_window_hide_no_other(leaving: int, at_call: int) -> None:
    pages = FakeList(
        list(range(10, 0, -1)), 3, lambda call, rows: [r for r in rows if not (call >= at_call and r == leaving)]
    )
    assert set(read(pages)) >= set(range(1, 11)) - {leaving}


@pytest.mark.parametrize("at_call", range(2, 6))
def test_a_row_that_enters_while_we_walk_pushes_no_other_out_of_sight(at_call: int) -> None:
    """Windows end before now, so nothing should enter; if the platform's clock differs, its count tells and we walk again."""
    pages = FakeList(list(range(10, 0, -1)), 3, lambda call, rows: [11, *rows] if call == at_call else rows)
    assert set(read(pages)) == set(range(1, 12))


def test_a_list_that_never_holds_still_is_an_error_not_a_loss() -> None:
    counter = iter(range(1000, 9000))
    pages = FakeList([2, 1], 1, lambda _, rows: [next(counter), next(counter), *rows])
    with pytest.raises(PlatformDown, match="kept changing"):
        read(pages)


def test_rows_without_an_id_do_not_hold_up_the_others() -> None:
    pages = FakeList(list(range(5, 0, -1)), 2, lambda _, rows: rows)
    original = pages.call

    def call(*arguments: Any, **options: Any) -> dict[str, Any]:
        answer = original(*arguments, **options)
        for row in answer["trades"]["trade"]:
            if row["tid"] == 3:
                del row["tid"]
        return answer

    pages.call = call  # type: ignore[method-assign]
    assert sorted(read(pages)) == [1, 2, 4, 5]
    assert pages.calls == 1 + 3
