"""JD: the wire rules without a network, what the simulator refuses, reading over HTTP, and core against the world's truth."""

import hashlib
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import orjson
import psycopg
import pytest
import requests
from malls import Recorded, use_every_stream, use_sources

from nightmarket import dates, landing, mapping, settings
from nightmarket.dates import Window
from nightmarket.platforms import jd
from nightmarket.platforms.base import (
    AuthError,
    BadPayload,
    Plan,
    PlatformDown,
    PlatformError,
    RateLimited,
    Record,
    Refused,
    Transport,
)
from nightmarket.settings import ConfigError, Credentials
from nightmarket.warehouse import Row

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "include"))
from sandbox.jd import signature

SOURCE = "jd_pop"
STREAMS = ("orders", "refunds", "aftersales", "comments", "items")
START = datetime(2026, 3, 1, tzinfo=UTC)

# The official guide's example, and one computed from its rule.
SECRET = "yourappSecret"
J1 = {
    "360buy_param_json": '{"end_date":null,"optional_fields":null,"order_state":"WAIT_SELLER_STOCK_OUT","page":"1",'
    '"page_size":"200","start_date":null}',
    "access_token": "yourtoken",
    "app_key": "yourappkey",
    "method": "jingdong.pop.order.search",
    "timestamp": "2021-05-07 09:20:39.683+0800",
    "v": "2.0",
}
J2 = J1 | {
    "360buy_param_json": '{"order_state":"FINISHED_L","page":"1","page_size":"100"}',
    "timestamp": "2024-01-02 03:04:05",
}


# ------------------------------------------------------------------------------------------------ without a network
@pytest.mark.parametrize("rule", [jd.sign, signature])
@pytest.mark.parametrize(
    ("parameters", "expected"),
    [(J1, "D70825340F4084360B9362B60DFD7930"), (J2, "D5B135A57C7275A1B3B65870692CD2D0")],
)
def test_published_signatures(rule: Callable[..., str], parameters: dict[str, str], expected: str) -> None:
    assert rule(parameters, SECRET) == expected
    assert rule({**parameters, "sign": "whatever"}, SECRET) == expected
    assert rule({**parameters, "page": "1"}, SECRET) != expected


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        ({"code": "19", "zh_desc": "无效access_token", "en_desc": "Invalid access_token"}, AuthError, "authorise the application again"),
        ({"code": 18}, AuthError, "access token is missing"),
        ({"code": "12"}, AuthError, "application secret"),
        ({"code": "21"}, AuthError, "not known to JD"),
        ({"code": "24", "en_desc": "No permission for this api"}, AuthError, "permission package"),
        ({"code": "2"}, RateLimited, "call limit reached"),
        ({"code": "8"}, Refused, "off by more than 6 minutes"),
        ({"code": "503", "errorMessage": "服务繁忙", "requestId": "r-5"}, PlatformDown, "not available right now"),
        ({"code": "67", "en_desc": "parameter is wrong"}, Refused, "JD code 67, parameter is wrong"),
        ({"code": "67", "en_desc": "phone 13800001234 is wrong"}, Refused, "(JD code 67)"),
        ({"zh_desc": "错误"}, Refused, "JD code missing"),
    ],
)  # fmt: skip
def test_errors_become_types_and_sentences(error: dict[str, Any], kind: type[Exception], words: str) -> None:
    found = jd.to_error("jingdong.pop.order.search", error)
    assert type(found) is kind
    assert words in str(found)
    assert str(found).startswith("jd, jingdong.pop.order.search: ")
    assert ("(request id r-5)" in str(found)) == ("requestId" in error)


METHOD = "jingdong.pop.PopCommentJsfService.getVenderCommentsForJos"
ROOT = "jingdong_pop_PopCommentJsfService_getVenderCommentsForJos"


@pytest.mark.parametrize("name", [f"{ROOT}_responce", f"{ROOT}_response"])
@pytest.mark.parametrize("code", ["0", 0])
def test_both_spellings_of_the_root_are_read(name: str, code: object) -> None:
    content = jd.read_answer(METHOD, orjson.dumps({name: {"code": code, "comments": []}}))
    assert content["comments"] == []


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        ({"error_response": {"code": "19"}}, AuthError, "not valid any more"),
        ({f"{ROOT}_responce": {"code": "24"}}, AuthError, "permission package"),
        ({"code": "503", "errorMessage": "服务繁忙", "errorSolution": "请重试"}, PlatformDown, "not available"),
        ({"something": 1}, BadPayload, f"page 3 has no {ROOT}_responce"),
        ([1], BadPayload, "page 3 is not a JSON object"),
    ],
)
def test_an_error_inside_http_200_is_an_error(answer: Any, kind: type[PlatformError], words: str) -> None:
    with pytest.raises(kind) as caught:
        jd.read_answer(METHOD, orjson.dumps(answer), 3)
    assert words in str(caught.value)


@pytest.mark.parametrize("success", [True, "true", "True", "1", 1])
def test_success_may_be_text(success: object) -> None:
    refund = {"id": 501, "orderId": "290000000002", "status": 3}
    result = {"success": success, "totalCount": 1, "result": [refund]}
    root = jd.REFUNDS_METHOD.replace(".", "_") + "_responce"
    session = Recorded((200, {}, {root: {"code": "0", "queryResult": result}}))
    keys = Credentials("jd_pop", "http://x", "key", "secret", extra={"access_token": "t"})
    shop = jd.connect(keys, session.transport("jd"), options=jd.Options())
    piece = next(iter(jd.streams(jd.Options())["refunds"].slices(shop, plan())))
    assert [row for page in piece.pages() for row in page] == [refund]


@pytest.mark.parametrize("success", [False, "false", "0", None, ""])
def test_failure_may_be_text_too(success: object) -> None:
    with pytest.raises(Refused, match=r"JD code 10100018, optional_fields is required"):
        jd.judge(METHOD, {"success": success, "numberCode": 10100018, "englishErrCode": "optional_fields is required"})


@pytest.mark.parametrize(("total", "expected"), [(7, 7), ("7", 7), ("0", 0), (0, 0)])
def test_counts_may_be_digits_and_empty_lists_absent(total: object, expected: int) -> None:
    assert jd.make_page(METHOD, 1, None, total) == (expected, [])


@pytest.mark.parametrize(
    ("rows", "total", "words"),
    [
        ("x", 1, "page 4 has no list of rows"),
        (None, None, "page 4 has no list of rows"),  # a format that changed is not an empty list
        ([], None, "page 4 does not say how many rows there are"),
        ([], "many", "page 4 does not say how many rows there are"),
    ],
)
def test_an_answer_of_another_shape_is_named(rows: object, total: object, words: str) -> None:
    with pytest.raises(BadPayload, match=words):
        jd.make_page(METHOD, 4, rows, total)
    assert jd.make_page(METHOD, 4, [], None, is_counted=False) == (None, [])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2026-03-01 08:00:00", START),
        ("2026-03-01 08:00:00.683+0800", START),
        (1772323200000, START),
        ("1772323200000", START),
        ("0001-01-01 00:00:00", None),  # JD's word for never
        ("", None),
        (None, None),
        ("soon", None),
    ],
)
def test_times_in_their_three_forms(value: object, expected: datetime | None) -> None:
    assert jd.to_time(value) == expected


def test_64_bit_ids_name_the_same_record_as_numbers_and_as_text() -> None:
    stream = jd.streams(jd.Options())["orders"]
    rows = [json.loads('{"orderId":5017416641960000037}'), {"orderId": "5017416641960000037"}]
    assert {stream.record_key(row) for row in rows} == {"5017416641960000037"}


@pytest.mark.parametrize("clear", [False, True])
def test_consignees_are_names_only_where_the_application_may_see_them(clear: bool) -> None:
    personal = jd.streams(jd.Options(clear_consignee=clear))["orders"].personal
    assert personal["consigneeInfo.mobile"] == ("phone" if clear else "nick")
    assert personal["consigneeInfo.fullname"] == ("name" if clear else "nick")
    assert personal["pin"] == "nick"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"host": ""}, "host"),
        ({"login": ""}, "login"),
        ({"password": ""}, "password"),
        ({"extra": {}}, "extra.access_token"),
        ({"extra": {"access_token": "a", "expires_at": "soon"}}, "extra.expires_at is not an instant"),
        ({"extra": {"access_token": "a", "expires_at": "2027-01-01T00:00:00"}}, "extra.expires_at is not an instant"),
    ],
)
def test_an_incomplete_connection_names_the_missing_part(changes: dict[str, Any], words: str) -> None:
    values: dict[str, Any] = {
        "host": "http://x/routerjson",
        "login": "1",
        "password": "2",
        "extra": {"access_token": "3"},
    }
    with pytest.raises(ConfigError, match=words):
        jd.connect(Credentials("my_jd", **(values | changes)), Transport("jd"), options=jd.Options())


# ------------------------------------------------------------------------------------------------ lists that move
class FakeShop:
    """A client whose list of comments is given; `shift` may change it before each answer."""

    def __init__(self, rows: list[int], size: int, counted: bool, shift: Callable[[int, list[int]], list[int]]) -> None:
        self.rows, self.size, self.counted, self.shift, self.calls = rows, size, counted, shift, 0
        self.options = jd.Options()

    def page_size(self, method: str, largest: int) -> int:
        return self.size

    def call(self, method: str, parameters: dict[str, Any], page: int | None = None) -> Record:
        self.calls += 1
        self.rows = self.shift(self.calls, self.rows)
        first = (parameters["page"] - 1) * self.size
        found: Record = {"comments": [{"commentId": str(one)} for one in self.rows[first : first + self.size]]}
        return found | ({"totalItem": len(self.rows)} if self.counted else {})

    def read(self) -> list[int]:
        window = Window(START, START + timedelta(days=1))
        return [int(row["commentId"]) for page in jd._comments(self, window) for row in page]  # type: ignore[arg-type]


def test_a_quiet_list_is_read_once_from_the_end() -> None:
    shop = FakeShop(list(range(10, 0, -1)), 3, True, lambda _, rows: rows)
    assert shop.read() == [1, 4, 3, 2, 7, 6, 5, 10, 9, 8]
    assert shop.calls == 1 + 4


@pytest.mark.parametrize("leaving", [1, 2, 5, 8, 10])
@pytest.mark.parametrize("at_call", range(1, 6))
@pytest.mark.parametrize("counted", [True, False])
def test_rows_that_leave_the_window_hide_no_other(leaving: int, at_call: int, counted: bool) -> None:
    shop = FakeShop(
        list(range(10, 0, -1)),
        3,
        counted,
        lambda call, rows: [r for r in rows if not (call >= at_call and r == leaving)],
    )
    assert set(shop.read()) >= set(range(1, 11)) - {leaving}


def test_a_list_without_a_count_is_read_until_nothing_new_shows() -> None:
    shop = FakeShop(list(range(10, 0, -1)), 3, False, lambda _, rows: rows)
    assert set(shop.read()) == set(range(1, 11))
    assert shop.calls == 2 * 4
    short = FakeShop([2, 1], 3, False, lambda _, rows: rows)
    assert short.read() == [2, 1]
    assert short.calls == 1


@pytest.mark.parametrize("counted", [True, False])
def test_a_list_that_never_holds_still_is_an_error_not_a_loss(counted: bool) -> None:
    numbers = iter(range(1000, 9000))

    def grow(call: int, rows: list[int]) -> list[int]:
        if counted:
            return [next(numbers), next(numbers), *rows]
        return [next(numbers) for _ in rows] if call % 2 else rows  # every walk of two pages meets other rows

    shop = FakeShop([3, 2, 1], 2, counted, grow)
    with pytest.raises(PlatformDown, match="kept changing"):
        shop.read()


def test_a_window_with_more_pages_than_jd_turns_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(jd.MAX_PAGES, "m", 2)
    born = {number: START + timedelta(hours=number) for number in range(24)}
    asked: list[Window] = []

    def read(window: Window, number: int) -> jd.Page:
        asked.append(window)
        rows = [{"id": one} for one, at in born.items() if window.start <= at < window.end]
        return len(rows), rows[(number - 1) * 3 : number * 3]

    day = Window(START, START + timedelta(days=1))
    found = [row["id"] for page in jd.rows_of("m", day, read, 3, lambda row: str(row["id"])) for row in page]
    assert sorted(found) == list(range(24))
    assert max(asked, key=lambda window: window.end - window.start) == day
    born = dict.fromkeys(range(24), START)
    with pytest.raises(Refused, match="24 rows within seconds of 2026-03-01 08:00:00"):
        list(jd.rows_of("m", day, read, 3, lambda row: str(row["id"])))


# ------------------------------------------------------------------------------------------------ which windows
def plan(**changes: Any) -> Plan:
    given: dict[str, Any] = {
        "until": dates.now().replace(microsecond=0),
        "cursors": {},
        "overlap": timedelta(hours=6),
        "window": timedelta(days=28),
        "history": timedelta(days=730),
    }
    return Plan(**(given | changes))


def windows_of(stream: str, **changes: Any) -> list[tuple[str, Window, Any]]:
    given = plan(**changes)
    pieces = jd.streams(jd.Options())[stream].slices(None, given)
    return [(piece.part, piece.window, dict(piece.cursors)) for piece in pieces]


@pytest.mark.parametrize(
    ("by", "end", "asked"),
    [
        ("created", "2026-03-01T08:00:05", ("08:00:00", "08:00:04")),
        ("created", "2026-03-01T08:00:05.700", ("08:00:00", "08:00:05")),
        ("created", "2026-03-01T08:00:00.900", ("08:00:00", "08:00:00")),  # shorter than a second
        ("modified", "2026-03-01T08:00:05", ("08:00:00", "08:00:05")),
    ],
)
def test_the_ends_of_a_window_on_the_wire(by: Any, end: str, asked: tuple[str, str]) -> None:
    class Asked(FakeShop):
        def call(self, method: str, parameters: dict[str, Any], page: int | None = None) -> Record:
            times.append((parameters["start_date"][11:], parameters["end_date"][11:]))
            return {"searchorderinfo_result": {"apiResult": {"success": "true"}, "orderTotal": "0"}}

    times: list[tuple[str, str]] = []
    window = Window(START, datetime.fromisoformat(end + "+08:00"))
    assert [row for page in jd._orders(by, Asked([], 1, True, lambda _, rows: rows), window) for row in page] == []  # type: ignore[arg-type]
    assert times == [asked]


def test_the_first_load_goes_by_creation_and_marks_where_the_increments_begin() -> None:
    now = dates.now().replace(microsecond=0)
    found = windows_of("orders", until=now)
    assert {part for part, _, _ in found} == {"created"}
    assert all(window.end - window.start <= timedelta(days=28) for _, window, _ in found)
    assert found[0][1].start >= now - timedelta(days=730)
    assert all(one[1].end == two[1].start for one, two in pairwise(found))
    assert found[0][2] == {"created": found[0][1].end, "since": now}
    assert found[-1][2] == {"": now, "created": None, "since": None}
    # a run that died goes on from its mark, with the same beginning of the increments
    since = now - timedelta(days=1)
    rest = windows_of("orders", until=now, cursors={"created": found[5][1].end, "since": since})
    assert rest[0][1].start == found[5][1].end
    assert rest[-1][2][""] == since


def test_increments_go_by_modification_and_a_stale_mark_starts_again() -> None:
    now = dates.now().replace(microsecond=0)
    found = windows_of("orders", until=now, cursors={"": now - timedelta(days=2)}, window=timedelta(days=1))
    assert [part for part, _, _ in found] == ["modified"] * 3
    assert found[0][1].start == now - timedelta(days=2, hours=6)
    assert found[-1][2] == {"": now}
    stale = windows_of("orders", until=now, cursors={"": now - timedelta(days=61)})
    assert stale[0][0] == "created"


@pytest.mark.parametrize(
    ("stream", "second", "applied", "decided"),
    [("refunds", "checked", 28, 28), ("aftersales", "approved", 7, 10)],
)
def test_requests_are_asked_for_by_application_and_by_decision(
    stream: str, second: str, applied: int, decided: int
) -> None:
    now = dates.now().replace(microsecond=0)
    first = windows_of(stream, until=now, overlap=timedelta(days=30))
    later = windows_of(
        stream,
        until=now,
        overlap=timedelta(days=30),
        cursors={"": now - timedelta(days=1), second: now - timedelta(days=1)},
    )
    for found in (first, later):
        for part, largest in ((second, decided), ("applied", applied)):
            mine = [window for name, window, _ in found if name == part]
            assert mine[-1].end == now
            assert all(window.end - window.start <= timedelta(days=largest) for window in mine)
    assert min(window.start for part, window, _ in first if part == "applied") == now - timedelta(days=730)
    assert min(window.start for part, window, _ in later if part == "applied") == now - timedelta(days=31)
    assert min(window.start for part, window, _ in later if part == second) == now - timedelta(days=31)
    assert later[-1][2] == {"": now}


# ------------------------------------------------------------------------------------------------ the token's life
class FakeGateway(Transport):
    """A transport that never opens a connection: answers of the OAuth address are given."""

    def __init__(self, *answers: Any) -> None:
        super().__init__("jd", sleep=lambda _: None)
        self.answers, self.asked = list(answers), []  # type: ignore[var-annotated]

    def fetch(self, verb: str, url: str, *, method: str, **arguments: Any) -> tuple[int, bytes]:  # type: ignore[override]
        self.asked.append((url, arguments.get("params")))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return 200, orjson.dumps(answer)


RENEWED = {"access_token": "second", "refresh_token": "r2", "expires_in": 86400 * 30, "scope": "snsapi_base"}


def fake_client(gateway: Transport, left: timedelta | None = None, refresh_token: str = "r1") -> jd.Client:
    extra = {"access_token": "first", "refresh_token": refresh_token, "oauth_url": "http://oauth"}
    if left is not None:
        extra["expires_at"] = (dates.now() + left).isoformat()
    return jd.connect(Credentials("jd_pop", "http://x", "key", "secret", extra=extra), gateway, options=jd.Options())


@pytest.mark.parametrize("left", [None, timedelta(days=3), timedelta(hours=24, minutes=5)])
def test_a_token_is_left_alone_until_jd_renews_it(left: timedelta | None) -> None:
    gateway = FakeGateway()
    assert fake_client(gateway, left)._token() == "first"
    assert gateway.asked == []


@pytest.mark.parametrize("left", [timedelta(hours=23), timedelta(minutes=1)])
def test_a_token_is_renewed_in_its_last_day_once(left: timedelta) -> None:
    gateway = FakeGateway(RENEWED)
    client = fake_client(gateway, left)
    assert [client._token(), client._token()] == ["second", "second"]
    ((url, sent),) = gateway.asked
    assert url == "http://oauth/refresh_token"
    assert sent == {"app_key": "key", "app_secret": "secret", "grant_type": "refresh_token", "refresh_token": "r1"}


def test_an_ended_token_is_not_renewed_but_a_person_is_asked() -> None:
    gateway = FakeGateway()
    with pytest.raises(AuthError, match=r"ended at .* renews no ended one; let the shop's owner authorise"):
        fake_client(gateway, timedelta(seconds=-1))._token()
    assert gateway.asked == []


def test_a_renewal_that_fails_lets_the_old_token_work_on() -> None:
    down = PlatformDown("jd", "oauth2/refresh_token", "HTTP 500")
    gateway = FakeGateway(*[down] * 5, RENEWED)
    client = fake_client(gateway, timedelta(hours=20))
    assert client._token() == "first"
    assert client._token() == "first"
    assert len(gateway.asked) == 5, "it is not asked again with every call"
    assert "could not be renewed: HTTP 500" in client.notes[0]


def test_a_refused_token_is_renewed_and_a_refused_renewal_is_told() -> None:
    gateway = FakeGateway(RENEWED)
    client = fake_client(gateway)
    assert client._token(bad=client._token()) == "second"
    assert client._token(bad="first") == "second", "another worker had it renewed already"
    refusing = fake_client(FakeGateway({"code": 1011, "msg": "refresh_token无效"}))
    with pytest.raises(AuthError, match=r"does not renew the access token \(JD code 1011\); let the shop's owner"):
        refusing._token(bad=refusing._token())


@pytest.mark.parametrize(
    ("answers", "refresh_token", "words"),
    [
        ([], "", "the connection has no refresh_token"),
        ([{"access_token": "x"}], "r1", "no expires_in"),
        ([[1]], "r1", "not a JSON object"),
        ([{"code": 1012, "msg": "尚未到可刷新时间"}], "r1", "does not renew the access token"),
    ],
)
def test_a_renewal_that_comes_to_nothing(answers: list[Any], refresh_token: str, words: str) -> None:
    client = fake_client(FakeGateway(*answers), timedelta(hours=1), refresh_token)
    assert client._token() == "first", "it is good for another hour"
    assert words in client.notes[0], "and check tells"
    with pytest.raises((AuthError, BadPayload), match=words):
        fake_client(FakeGateway(*answers), None, refresh_token)._token(bad="first")


def test_secrets_do_not_show_in_what_is_printed() -> None:
    shown = repr(fake_client(FakeGateway(), timedelta(days=3)))
    assert not any(secret in shown for secret in ("first", "r1", "'secret'"))


# -------------------------------------------------------------------------------------- what the simulator refuses
class Raw:
    """Calls signed from the guide's words, not by the product: the second opinion."""

    def __init__(self, sandbox: Any) -> None:
        self.sandbox, self.account = sandbox, sandbox.access["jd"]
        self.token = self.account["access_token"]
        self.secret = self.account["app_secret"]

    def params(self, method: str, body: Any, **changes: Any) -> dict[str, str]:
        now = datetime.fromisoformat(self.sandbox.control("GET", "/clock")["now"])
        given = {
            "360buy_param_json": body if isinstance(body, str) else json.dumps(body, ensure_ascii=False),
            "access_token": self.token,
            "app_key": self.account["app_key"],
            "method": method,
            "timestamp": now.strftime("%Y-%m-%d %H:%M:%S"),
            "v": "2.0",
        } | changes
        return {name: value for name, value in given.items() if value is not None}

    def send(self, params: dict[str, str], verb: str = "POST") -> dict[str, Any]:
        text = "".join(name + params[name] for name in sorted(params) if name != "sign")
        digest = hashlib.md5((self.secret + text + self.secret).encode()).hexdigest().upper()
        sent = {"sign": digest, **params}
        where = {"params": sent} if verb == "GET" else {"data": sent}
        answer: dict[str, Any] = requests.request(verb, self.account["gateway_url"], timeout=30, **where).json()  # type: ignore[arg-type]
        return answer

    def call(self, method: str, body: Any = "{}", **changes: Any) -> dict[str, Any]:
        """What stands under the root, which must be the only thing in the answer."""
        answer = self.send(self.params(method, body, **changes))
        ((name, content),) = answer.items()
        assert name in (f"{method.replace('.', '_')}_responce", "error_response"), name
        return dict(content)

    def oauth(self, call: str, **query: str) -> dict[str, Any]:
        query = {"app_key": self.account["app_key"], "app_secret": self.account["app_secret"], **query}
        answer: dict[str, Any] = requests.get(f"{self.account['oauth_url']}/{call}", params=query, timeout=30).json()
        return answer

    def authorise(self, app: dict[str, str]) -> dict[str, Any]:
        """What the shop's owner does in the browser, and the exchange of the code that comes back."""
        query = {"app_key": app["app_key"], "response_type": "code", "redirect_uri": "http://ours/back", "state": "s1"}
        answer = requests.get(f"{self.account['oauth_url']}/to_login", params=query, allow_redirects=False, timeout=30)
        assert answer.status_code == 302
        back = urlsplit(answer.headers["Location"])
        assert back.netloc == "ours"
        found = parse_qs(back.query)
        assert found["state"] == ["s1"]
        return self.oauth("access_token", grant_type="authorization_code", code=found["code"][0], **app)


@pytest.fixture(autouse=True)
def every_stream(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The default file leaves some streams out, to keep nights short."""
    use_every_stream(monkeypatch, tmp_path, "jd_pop")


@pytest.fixture
def raw(sandbox: Any) -> Raw:
    return Raw(sandbox)


SEARCH = "jingdong.pop.order.search"
GOOD = {
    "start_date": "2026-02-20 00:00:00",
    "end_date": "2026-03-15 00:00:00",
    "order_state": "FINISHED_L",
    "optional_fields": "orderId,modified",
    "page": "1",
    "page_size": "100",
}


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"method": ""}, "14"),
        ({"v": None}, "4"),
        ({"v": "1.0"}, "5"),
        ({"app_key": ""}, "20"),
        ({"app_key": "nobody"}, "21"),
        ({"timestamp": ""}, "7"),
        ({"timestamp": "now"}, "8"),
        ({"timestamp": "2026-03-15 02:37:01"}, "8"),
        ({"timestamp": "2026-03-15 02:23:00"}, "8"),
        ({"sign": ""}, "11"),
        ({"sign": "0" * 32}, "12"),
        ({"access_token": None}, "18"),
        ({"access_token": "x"}, "19"),
        ({"method": "jingdong.no.such"}, "15"),
        ({"360buy_param_json": "[1]"}, "10"),
    ],
)
def test_the_gateway_refuses(raw: Raw, changes: dict[str, Any], code: str) -> None:
    params = raw.params(SEARCH, GOOD) | changes
    answer = raw.send({name: value for name, value in params.items() if value is not None})
    assert answer["error_response"]["code"] == code
    assert set(answer["error_response"]) == {"code", "zh_desc", "en_desc"}
    assert raw.sandbox.control("GET", "/counters")["refused"]["jd"] == {code: 1}


def test_the_gateway_takes_what_is_right(raw: Raw) -> None:
    for verb in ("GET", "POST"):
        for stamp in ("2026-03-15 02:25:00", "2026-03-15 02:35:30.683+0800"):
            answer = raw.send(raw.params(SEARCH, GOOD, timestamp=stamp, format="json"), verb)
            assert answer["jingdong_pop_order_search_responce"]["code"] == "0"
    unsigned = raw.params(SEARCH, GOOD)
    signed = hashlib.md5(b"x").hexdigest().upper()
    assert raw.send(unsigned | {"sign": signed})["error_response"]["code"] == "12"


@pytest.mark.parametrize(
    "changes",
    [
        {"optional_fields": ""},
        {"optional_fields": None},
        {"order_state": ""},
        {"order_state": "1"},
        {"page": 1},  # decimal strings, not numbers
        {"page_size": "101"},
        {"page_size": None},
        {"page": "0"},
        {"start_date": None, "end_date": None},
        {"start_date": "2026-02-01 00:00:00", "end_date": "2026-03-02 00:00:00"},
        {"start_date": "2026-01-01 00:00:00", "end_date": "2026-02-02 00:00:00"},
        {"start_date": "2026-03-15 00:00:00", "end_date": "2026-03-14 00:00:00"},
        {"start_date": "yesterday"},
    ],
)
def test_the_order_search_refuses(raw: Raw, changes: dict[str, Any]) -> None:
    result = raw.call(SEARCH, GOOD | changes)["searchorderinfo_result"]
    assert result["apiResult"]["success"] in (False, "false")
    assert int(result["apiResult"]["numberCode"]) > 0
    assert "orderInfoList" not in result


def test_the_order_search_answers_as_jd_does(raw: Raw) -> None:
    answers = [raw.call(SEARCH, GOOD)["searchorderinfo_result"] for _ in range(2)]
    assert {type(answer["apiResult"]["success"]) for answer in answers} == {bool, str}
    assert {type(answer["orderTotal"]) for answer in answers} == {int, str}
    rows = answers[0]["orderInfoList"]
    assert len(rows) == int(answers[0]["orderTotal"]) > 0
    assert all(set(row) == {"orderId", "modified"} for row in rows)
    assert [row["modified"] for row in rows] == sorted(row["modified"] for row in rows), (
        "ascending unless sortType is 1"
    )
    down = raw.call(SEARCH, GOOD | {"sortType": 1})["searchorderinfo_result"]["orderInfoList"]
    assert [row["orderId"] for row in down] == [row["orderId"] for row in rows][::-1]
    month = GOOD | {"start_date": "2026-02-15 00:00:00"}
    assert raw.call(SEARCH, month)["searchorderinfo_result"]["apiResult"]["success"] in (True, "true")
    waiting = {name: GOOD[name] for name in ("optional_fields", "page", "page_size")}
    result = raw.call(SEARCH, waiting | {"order_state": "WAIT_SELLER_STOCK_OUT"})["searchorderinfo_result"]
    assert result["apiResult"]["success"] in (True, "true"), "the last month of what waits needs no dates"


OLD = GOOD | {"start_date": "2025-10-01 00:00:00", "end_date": "2025-10-31 00:00:00"}


def found_by(raw: Raw, date_type: int) -> int:
    return int(raw.call(SEARCH, OLD | {"dateType": date_type})["searchorderinfo_result"]["orderTotal"])


def test_orders_of_long_ago_show_by_creation_only(raw: Raw) -> None:
    assert found_by(raw, 0) == 0, "modified more than three months ago"
    assert found_by(raw, 1) > 0


@pytest.mark.slow
def test_orders_older_than_two_years_do_not_show(sandbox: Any, raw: Raw) -> None:
    sandbox.control("POST", "/clock", {"now": "2028-03-15T02:30:00+08:00"})
    assert raw.call(SEARCH, OLD)["code"] == "19", "two years on the token is gone"
    raw.token = raw.authorise({name: raw.account[name] for name in ("app_key", "app_secret")})["access_token"]
    assert found_by(raw, 1) == 0


@pytest.mark.parametrize(
    ("method", "body", "part"),
    [
        ("jingdong.pop.afs.soa.refundapply.queryPageList", {"pageIndex": 101, "pageSize": 50}, "queryResult"),
        ("jingdong.pop.afs.soa.refundapply.queryPageList", {"pageIndex": 1, "pageSize": 51}, "queryResult"),
        ("jingdong.asc.serviceAndRefund.view", {"pageNumber": 1}, "pageResult"),
        (
            "jingdong.asc.serviceAndRefund.view",
            {"pageNumber": 1, "applyTimeBegin": "2026-03-01 00:00:00", "applyTimeEnd": "2026-03-08 00:00:01"},
            "pageResult",
        ),
        (
            "jingdong.asc.serviceAndRefund.view",
            {"pageNumber": 1, "approveTimeBegin": "2026-03-01 00:00:00", "approveTimeEnd": "2026-03-11 00:00:01"},
            "pageResult",
        ),
        (
            "jingdong.asc.serviceAndRefund.view",
            {"pageNumber": 1, "applyTimeBegin": "2026-03-01 00:00:00"},
            "pageResult",
        ),
        ("jingdong.asc.serviceAndRefund.view", {"pageNumber": 1, "orderId": 1, "pageSize": 51}, "pageResult"),
    ],
)
def test_refund_lists_refuse(raw: Raw, method: str, body: dict[str, Any], part: str) -> None:
    assert raw.call(method, body)[part]["success"] is False


def test_other_refusals(sandbox: Any, raw: Raw) -> None:
    assert "comments" not in raw.call(METHOD, {"page": 1, "pageSize": 51})
    assert raw.call("jingdong.sku.read.searchSkuList", {"pageNo": 1, "page_size": 51})["page"] is None
    assert raw.call("jingdong.pop.order.get", {"order_id": "1", "optional_fields": "orderId"})["orderDetailInfo"][
        "apiResult"
    ]["success"] in (False, "false")
    basic = raw.account["basic_app"]
    token = raw.authorise(basic)["access_token"]
    raw.secret = basic["app_secret"]
    may = raw.call("jingdong.vender.shop.query", {}, app_key=basic["app_key"], access_token=token)
    assert may["shop_jos_result"]["shop_name"] == "夜市京东店"
    refused = raw.call(METHOD, {"page": 1, "pageSize": 5}, app_key=basic["app_key"], access_token=token)
    assert refused["code"] == "24"
    foreign = raw.call("jingdong.vender.shop.query", {}, app_key=basic["app_key"])
    assert foreign["code"] == "19", "a token belongs to its application"


def test_call_limits(sandbox: Any, raw: Raw) -> None:
    sandbox.control("POST", "/settings", {"jd_calls_per_day": 2})
    codes = [raw.call("jingdong.vender.shop.query").get("code") for _ in range(3)]
    assert codes == ["0", "0", "2"]
    sandbox.control("POST", "/clock", {"now": "2026-03-16T00:00:01+08:00"})
    assert raw.call("jingdong.vender.shop.query")["code"] == "0"
    sandbox.control("POST", "/settings", {"jd_calls_per_day": 0, "jd_rate": 1})
    codes = [raw.call("jingdong.vender.shop.query").get("code") for _ in range(5)]
    assert "2" in codes


def test_oauth_refuses_and_renews_only_in_the_last_day(sandbox: Any, raw: Raw) -> None:
    keys = {name: raw.account[name] for name in ("app_key", "app_secret")}
    assert raw.oauth("access_token", grant_type="authorization_code", code="x")["code"] == 1010
    assert raw.oauth("refresh_token", grant_type="refresh_token", refresh_token="x")["code"] == 1011
    assert raw.oauth("refresh_token", grant_type="password", refresh_token="x")["code"] == 1000
    assert raw.oauth("refresh_token", **(keys | {"app_secret": "x"}))["code"] == 1005
    assert raw.oauth("refresh_token", **(keys | {"app_key": "x"}))["code"] == 1004
    sandbox.control("POST", "/settings", {"jd_token_days": 3})
    first = raw.authorise(keys)
    assert 3 * 86400 - 5 <= first["expires_in"] <= 3 * 86400
    renewal = {"grant_type": "refresh_token", "refresh_token": first["refresh_token"]}
    assert raw.oauth("refresh_token", **renewal)["code"] == 1012, "too early"
    sandbox.control("POST", "/clock", {"now": "2026-03-17T12:00:00+08:00"})
    second = raw.oauth("refresh_token", **renewal)
    assert second["access_token"] != first["access_token"]
    assert raw.oauth("refresh_token", **renewal)["access_token"] == second["access_token"], "an answer may get lost"
    assert raw.call("jingdong.vender.shop.query", access_token=first["access_token"])["code"] == "19"
    assert raw.call("jingdong.vender.shop.query", access_token=second["access_token"])["code"] == "0"
    sandbox.control("POST", "/clock", {"now": "2026-03-21T12:00:00+08:00"})
    assert raw.call("jingdong.vender.shop.query", access_token=second["access_token"])["code"] == "19"
    late = {"grant_type": "refresh_token", "refresh_token": second["refresh_token"]}
    assert raw.oauth("refresh_token", **late)["code"] == 1011, "an ended token is not renewed"


# ------------------------------------------------------------------------------------------------------- over HTTP
def client(sandbox: Any, page: int = 1000, extra: dict[str, str] | None = None, **options: Any) -> jd.Client:
    account = sandbox.access["jd"]
    held = {name: account[name] for name in ("access_token", "refresh_token", "expires_at", "oauth_url")} | (
        extra or {}
    )
    keys = Credentials("jd_pop", account["gateway_url"], account["app_key"], account["app_secret"], extra=held)
    transport = Transport("jd", sleep=lambda _: None)
    return jd.connect(keys, transport, options=jd.Options(**options), page_sizes={"*": page})


def read(shop: jd.Client, stream: str, **changes: Any) -> list[Record]:
    definition = jd.streams(shop.options)[stream]
    given = plan(**({"window": definition.window, "overlap": definition.overlap} | changes))
    return [record for piece in definition.slices(shop, given) for page in piece.pages() for record in page]


def truth_of(sandbox: Any) -> dict[str, Any]:
    found: dict[str, Any] = sandbox.control("GET", "/truth")["shops"]["jd"]
    return found


@pytest.mark.parametrize("page", [1, 7, 1000])
def test_orders_read_are_the_worlds(sandbox: Any, page: int) -> None:
    truth = truth_of(sandbox)
    found = {record["orderId"]: record for record in read(client(sandbox, page), "orders")}
    assert len(found) == truth["orders"] > 20
    assert all(int(order_id) > 2**53 for order_id in found)
    lines = [line for record in found.values() for line in record["itemInfoList"]]
    assert len(lines) == truth["lines"]
    assert sum(int(line["itemTotal"]) for line in lines) == truth["quantity"]
    assert sum(int(line["itemTotal"]) * Decimal(line["jdPrice"]) for line in lines) == Decimal(truth["goods_amount"])
    paid = [record for record in found.values() if record["paymentConfirmTime"] != "0001-01-01 00:00:00"]
    assert len(paid) == truth["paid_orders"] < truth["orders"]
    assert sum(Decimal(str(record["actualPay"])) for record in paid) == Decimal(truth["paid_amount"])
    assert {type(record["actualPay"]) for record in paid} == {str, float}, "money is text or a number"
    assert {record["orderPayment"] for record in paid} <= {"0.00", 0.0}, "nobody keeps it up"


def test_details_replace_the_lists_rows(sandbox: Any) -> None:
    whole = read(client(sandbox), "orders")
    shop = client(sandbox, order_detail=True)
    detailed = read(shop, "orders")
    assert {row["orderId"]: row for row in detailed} == {row["orderId"]: row for row in whole}
    counted = sandbox.control("GET", "/counters")["requests"]["jd"]
    assert counted["jingdong.pop.order.get"] == len(whole)


def test_an_order_without_detail_is_the_lists_row(sandbox: Any) -> None:
    gone = {"orderId": "1", "orderState": "FINISHED_L"}
    assert jd._detail(client(sandbox), "1", gone) == {**gone, "detailCode": 10_100_020}


def test_the_other_streams_are_the_worlds(sandbox: Any) -> None:
    truth = truth_of(sandbox)
    shop = client(sandbox, 2)
    refunds = {record["id"]: record for record in read(shop, "refunds")}
    services = {record["serviceId"]: record for record in read(shop, "aftersales")}
    assert len(refunds) + len(services) == truth["refunds"]
    assert refunds
    assert services
    money = Decimal(0)
    money += sum(Decimal(row["applyRefundSum"]) / 100 for row in refunds.values() if row["status"] in (3, 6, 9))
    money += sum(Decimal(str(row["refoundAmount"])) for row in services.values() if row["status"] == 13)
    assert money == Decimal(truth["refund_amount"]) > 0
    assert {record["amountUnit"] for record in services.values()} == {"yuan"}
    comments = {record["commentId"]: record for record in read(shop, "comments")}
    assert len(comments) == truth["reviews"]
    assert {type(record["creationTime"]) for record in comments.values()} == {str, int}
    assert all(jd.to_time(record["creationTime"]) for record in comments.values())
    assert len({record["skuId"] for record in read(shop, "items")}) == truth["products"]
    wares = client(sandbox, 50, items_method="jingdong.ware.read.searchWare4Valid")
    assert len({record["wareId"] for record in read(wares, "items")}) == truth["products"]


def test_comments_without_a_count_are_the_same(sandbox: Any) -> None:
    whole = {record["commentId"] for record in read(client(sandbox, 2), "comments")}
    sandbox.control("POST", "/settings", {"jd_comment_total": False})
    for page in (1, 2, 50):
        assert {record["commentId"] for record in read(client(sandbox, page), "comments")} == whole


def test_what_was_settled_long_after_it_was_asked_for_is_seen_again(
    sandbox: Any, set_clock: Callable[[str], None]
) -> None:
    """Live refunds of the days after the anchor: read every night, they end as the world has them."""
    cursors: dict[str, dict[str, datetime]] = {"refunds": {}, "aftersales": {}}
    seen: dict[str, dict[str, Record]] = {"refunds": {}, "aftersales": {}}
    for day in range(15, 31, 3):
        moment = f"2026-03-{day}T02:30:00+08:00"
        set_clock(moment)
        sandbox.control("POST", "/clock", {"now": moment})
        shop = client(sandbox, 3)
        for name in cursors:
            stream = jd.streams(shop.options)[name]
            given = plan(cursors=dict(cursors[name]), overlap=stream.overlap, window=stream.window)
            for piece in stream.slices(shop, given):
                for page in piece.pages():
                    seen[name] |= {str(stream.record_key(record)): record for record in page}
                cursors[name] |= {part: at for part, at in piece.cursors.items() if at}
    truth = truth_of(sandbox)
    assert len(seen["refunds"]) + len(seen["aftersales"]) == truth["refunds"] > 4
    settled = [row for row in seen["refunds"].values() if row["status"] in (3, 6, 9)]
    settled += [row for row in seen["aftersales"].values() if row["status"] == 13]
    assert len(settled) == truth["refunds_settled"] > 2


def test_a_refused_token_is_renewed_once_and_a_revoked_one_is_told(sandbox: Any) -> None:
    shop = client(sandbox)
    whole = len(read(shop, "comments"))
    sandbox.control("POST", "/faults", {"faults": [{"platform": "jd", "kind": "expired_token", "times": 1}]})
    assert len(read(shop, "comments")) == whole
    counters = sandbox.control("GET", "/counters")
    assert counters["refused"]["jd"] == {"19": 1}
    assert counters["requests"]["jd"]["oauth2/refresh_token"] == 1
    sandbox.control("POST", "/faults", {"faults": [{"platform": "jd", "kind": "revoked_token", "times": -1}]})
    with pytest.raises(AuthError, match="authorise the application again"):
        read(shop, "comments")
    sandbox.control("POST", "/faults", {"faults": []})
    assert len(read(shop, "comments")) == whole


def test_a_token_that_ends_soon_is_renewed_over_http(sandbox: Any, raw: Raw, set_clock: Callable[[str], None]) -> None:
    sandbox.control("POST", "/settings", {"jd_token_days": 2})
    granted = raw.authorise({name: raw.account[name] for name in ("app_key", "app_secret")})
    held = {
        "access_token": granted["access_token"],
        "refresh_token": granted["refresh_token"],
        "expires_at": (dates.now() + timedelta(seconds=granted["expires_in"])).isoformat(),
    }
    shop = client(sandbox, extra=held)
    for moment, renewals in (("15T12:00", 0), ("16T12:00", 1), ("17T13:00", 2), ("18T14:00", 3)):
        set_clock(f"2026-03-{moment}:00+08:00")
        sandbox.control("POST", "/clock", {"now": f"2026-03-{moment}:00+08:00"})
        assert jd.check(shop, []).account == "shop 夜市京东店"
        assert sandbox.control("GET", "/counters")["requests"]["jd"].get("oauth2/refresh_token", 0) == renewals
    set_clock("2026-03-25T12:00:00+08:00")
    sandbox.control("POST", "/clock", {"now": "2026-03-25T12:00:00+08:00"})
    with pytest.raises(AuthError, match="renews no ended one"):
        jd.check(shop, [])


def test_a_renewed_token_serves_every_later_run(
    db: psycopg.Connection[Row],
    sandbox: Any,
    raw: Raw,
    monkeypatch: pytest.MonkeyPatch,
    set_clock: Callable[[str], None],
) -> None:
    sandbox.control("POST", "/settings", {"jd_token_days": 2})
    granted = raw.authorise({name: raw.account[name] for name in ("app_key", "app_secret")})
    variable = f"AIRFLOW_CONN_{SOURCE.upper()}"
    connection = json.loads(sandbox.connections()[variable])
    connection["extra"] |= {name: granted[name] for name in ("access_token", "refresh_token")}
    connection["extra"]["expires_at"] = (dates.now() + timedelta(seconds=granted["expires_in"])).isoformat()
    monkeypatch.setenv(variable, json.dumps(connection))
    for moment, renewals in (("15T12:00", 0), ("16T12:00", 1), ("16T13:00", 1), ("17T23:00", 2)):
        set_clock(f"2026-03-{moment}:00+08:00")
        sandbox.control("POST", "/clock", {"now": f"2026-03-{moment}:00+08:00"})
        landing.land(SOURCE, "comments", run_id=moment, until=dates.now())
        assert sandbox.control("GET", "/counters")["requests"]["jd"].get("oauth2/refresh_token", 0) == renewals
    kept = one(db, "SELECT string_agg(encode(value, 'escape'), ' ') FROM ops.tokens")
    assert kept
    assert granted["access_token"] not in kept
    assert sandbox.control("GET", "/counters")["refused"].get("jd", {}) == {}, "no call was made with an ended token"


def test_check_names_the_shop_and_what_may_not_be_read(sandbox: Any, raw: Raw) -> None:
    assert jd.check(client(sandbox), STREAMS).sentence() == "works for shop 夜市京东店; clocks agree"
    basic = raw.account["basic_app"]
    extra = {name: raw.authorise(basic)[name] for name in ("access_token", "refresh_token")}
    keys = Credentials("jd_pop", raw.account["gateway_url"], basic["app_key"], basic["app_secret"], extra=extra)
    found = jd.check(jd.connect(keys, Transport("jd"), options=jd.Options()), STREAMS)
    assert set(found.problems) == {"comments", "aftersales"}
    assert "comments: the application may not call this method" in found.sentence()


@pytest.mark.parametrize(
    "kind",
    [
        "duplicate_page",
        "empty_last_page",
        "shifting_page",
        "ids_as_numbers",
        "null_fields",
        "emoji",
        "platform_busy",
        "call_limit",
    ],
)
def test_one_bad_answer_loses_nothing(sandbox: Any, kind: str) -> None:
    shop = client(sandbox, 2)
    year = timedelta(days=380)
    for stream, after in (("orders", 5), ("refunds", 0), ("aftersales", 0), ("comments", 5), ("items", 2)):
        key = jd.streams(shop.options)[stream].record_key
        whole = {key(record) for record in read(shop, stream, history=year)}
        fault = {"platform": "jd", "kind": kind, "times": 1, "after": after}
        sandbox.control("POST", "/faults", {"faults": [fault]})
        assert {key(record) for record in read(shop, stream, history=year)} == whole, stream
    assert sandbox.control("GET", "/counters")["faults_fired"]["jd"] == {kind: 5}


def test_a_wrong_clock_is_told(sandbox: Any) -> None:
    sandbox.control(
        "POST", "/faults", {"faults": [{"platform": "jd", "kind": "wrong_clock", "times": -1, "seconds": 300}]}
    )
    assert len(read(client(sandbox), "comments")) == truth_of(sandbox)["reviews"]
    sandbox.control(
        "POST", "/faults", {"faults": [{"platform": "jd", "kind": "wrong_clock", "times": -1, "seconds": 400}]}
    )
    with pytest.raises(Refused, match="this machine's clock is off by more than 6 minutes"):
        read(client(sandbox), "comments")


# -------------------------------------------------------------------------------------------------------- into core
def night(run_id: str, **options: Any) -> dict[str, landing.LandingSummary]:
    done = {stream: landing.land(SOURCE, stream, run_id=run_id, until=dates.now(), **options) for stream in STREAMS}
    mapping.map_source(SOURCE, run_id=run_id)
    return done


def one(db: psycopg.Connection[Row], query: str) -> Any:
    row = db.execute(query).fetchone()  # type: ignore[arg-type]
    assert row is not None
    return next(iter(row.values()))


def assert_truth(db: psycopg.Connection[Row], truth: dict[str, Any]) -> None:
    """core holds exactly what the shop holds as of the clock."""
    counts = {
        "orders": "SELECT count(*) FROM core.orders",
        "paid_orders": "SELECT count(*) FROM core.orders WHERE is_paid",
        "lines": "SELECT count(*) FROM core.order_lines",
        "quantity": "SELECT sum(quantity) FROM core.order_lines",
        "refunds": "SELECT count(*) FROM core.refunds",
        "refunds_settled": "SELECT count(*) FROM core.refunds WHERE is_money",
        "reviews": "SELECT count(*) FROM core.reviews",
        "buyers": "SELECT count(DISTINCT identity_id) FROM core.orders WHERE is_paid",
        "products": "SELECT count(*) FROM core.products WHERE price_amount IS NOT NULL",
    }
    amounts = {
        "paid_amount": "SELECT sum(paid_amount) FROM core.orders WHERE is_paid",
        "goods_amount": "SELECT sum(goods_amount) FROM core.orders",
        "postage_amount": "SELECT sum(postage_amount) FROM core.orders WHERE is_paid",
        "refund_amount": "SELECT coalesce(sum(refund_amount), 0) FROM core.refunds WHERE is_money",
    }
    found = {name: one(db, query) for name, query in (counts | amounts).items()}
    wanted = {name: truth[name] for name in counts} | {name: Decimal(truth[name]) for name in amounts}
    assert {name: (found[name], wanted[name]) for name in wanted if found[name] != wanted[name]} == {}
    states = {"closed_unpaid": "cancelled"}
    rows = db.execute("SELECT status, count(*) AS n FROM core.orders GROUP BY 1").fetchall()
    assert {row["status"]: row["n"] for row in rows} == {
        states.get(state, state): number for state, number in truth["orders_by_state"].items()
    }
    assert one(db, "SELECT count(*) FROM raw.rejects WHERE resolved_at IS NULL") == 0


def everything(db: psycopg.Connection[Row]) -> dict[str, str]:
    tables = (
        "orders",
        "order_lines",
        "products",
        "shipments",
        "refunds",
        "reviews",
        "identities",
        "identity_links",
        "profiles",
    )
    return {
        table: one(
            db,
            f"SELECT count(*) || md5(coalesce(string_agg(md5(t::text), '' ORDER BY md5(t::text)), '')) FROM core.{table} AS t",
        )
        for table in tables
    }


BOUNDED = """
sources:
  jd_pop:
    platform: jd
    kind: shop
    name: 夜市京东店
    conn_id: jd_pop
    history_days: 400
    max_requests: 25
    streams: {orders: {}, refunds: {}, aftersales: {}, comments: {}, items: {}}
"""


def test_runs_that_end_at_their_bound_add_up(
    db: psycopg.Connection[Row], sandbox: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use_sources(monkeypatch, tmp_path, BOUNDED)
    cut = dict.fromkeys(STREAMS, 0)
    said: set[str] = set()
    for stream in STREAMS:
        for run in range(12):
            try:
                landing.land(SOURCE, stream, run_id=f"run {run}", until=dates.now(), page_sizes={"*": 10, SEARCH: 1})
                break
            except landing.LandingError as error:
                said.add(str(error).partition(": ")[2])
                cut[stream] += 1
    assert said == {"stopped after 25 requests (max_requests in sources.yaml); the next run goes on from here."}
    assert cut["orders"] >= 1
    assert cut["aftersales"] >= 2
    mapping.map_source(SOURCE, run_id="r")
    assert_truth(db, truth_of(sandbox))


def test_the_past_can_be_read_again(db: psycopg.Connection[Row], sandbox: Any) -> None:
    night("first")
    before, marks = everything(db), db.execute("SELECT stream, watermark FROM raw.cursors ORDER BY 1").fetchall()
    past = Window(dates.now() - timedelta(days=200), dates.now() - timedelta(days=20))
    for stream in STREAMS:
        summary = landing.land(SOURCE, stream, run_id="again", until=dates.now(), window=past)
        assert (summary.changed, summary.windows > 1) == (0, True)
        assert summary.seen > 0 or stream in ("refunds", "aftersales"), "few were sent back in that time"
    assert db.execute("SELECT stream, watermark FROM raw.cursors ORDER BY 1").fetchall() == marks
    mapping.map_source(SOURCE, run_id="again")
    assert everything(db) == before


def assert_parts_fit(db: psycopg.Connection[Row]) -> None:
    """Lines add up, parcels have their carrier, everybody's refunds and comments are theirs."""
    uneven = one(
        db,
        "SELECT count(*) FROM core.orders AS o JOIN (SELECT order_id, sum(paid_amount) AS paid FROM core.order_lines GROUP BY 1) AS l"
        " USING (order_id) WHERE l.paid <> o.paid_amount - o.postage_amount",
    )
    assert uneven == 0
    assert (
        one(db, "SELECT count(*) FROM core.orders WHERE paid_amount <> goods_amount + postage_amount AND is_paid") > 0
    )
    assert one(db, "SELECT count(*) FROM core.shipments WHERE carrier = '2087' AND shipment_id LIKE 'JDX%'") == one(
        db, "SELECT count(*) FROM core.orders WHERE shipped_at IS NOT NULL"
    )
    assert one(db, "SELECT count(*) FROM core.reviews WHERE identity_id IS NULL") == 0
    assert one(db, "SELECT count(*) FROM core.refunds WHERE identity_id IS NULL") == 0


def assert_nobody_is_clear(db: psycopg.Connection[Row]) -> None:
    """No pin, no masked name, no masked phone has become anybody's."""
    assert one(db, "SELECT count(*) FROM core.profiles") == 0, "masked names greet nobody"
    assert one(db, "SELECT count(*) FROM core.identities WHERE kind <> 'jd_open_id'") == 0
    pins = one(db, "SELECT count(*) FROM raw.records WHERE payload::text LIKE '%jd\\_%'")
    assert pins == 0, "a pin is a person's account"
    found = one(db, "SELECT count(*) FROM raw.records WHERE payload #>> '{consigneeInfo,mobile}' <> 'masked'")
    assert found == 0


def test_a_night_equals_the_truth_and_a_second_changes_nothing(db: psycopg.Connection[Row], sandbox: Any) -> None:
    first = night("first", page_sizes={"*": 5})
    assert_truth(db, truth_of(sandbox))
    assert all(summary.changed > 0 for summary in first.values())
    assert_parts_fit(db)
    assert_nobody_is_clear(db)
    before = everything(db)
    again = night("again")
    assert {name: summary.changed for name, summary in again.items()} == dict.fromkeys(again, 0)
    assert everything(db) == before
    mapping.reset_mappings(db, SOURCE)
    mapping.map_source(SOURCE, run_id="remap")
    assert everything(db) == before


def test_nights_that_follow_equal_the_truth(
    db: psycopg.Connection[Row], sandbox: Any, set_clock: Callable[[str], None]
) -> None:
    seen: set[str] = set()
    for day in (15, 16, 18, 22, 28):
        moment = f"2026-03-{day}T02:30:00+08:00"
        set_clock(moment)
        sandbox.control("POST", "/clock", {"now": moment})
        night(f"night {day}")
        assert_truth(db, truth_of(sandbox))
        seen |= {row["status"] for row in db.execute("SELECT DISTINCT status FROM core.orders")}
    assert seen >= {"shipped", "finished", "refunded", "cancelled"}


def test_clear_consignees_tie_buyers_to_their_phones(db: psycopg.Connection[Row], environment: str) -> None:
    row = order() | {"consigneeInfo": {"mobile": "phone:AAA", "fullname": "name:BBB", "city": "上海市"}}
    put(db, "orders", [row])
    kinds = db.execute("SELECT kind, value FROM core.identities ORDER BY kind").fetchall()
    assert [(found["kind"], found["value"]) for found in kinds] == [("jd_open_id", "oJD1"), ("phone", "phone:AAA")]
    assert one(db, "SELECT count(*) FROM core.identity_links") == 1
    assert one(db, "SELECT name FROM core.profiles") == "name:BBB"
    assert one(db, "SELECT city FROM core.orders") == "上海市"


# ---------------------------------------------------------------------------------------------------------- the SQL
LOADED = datetime(2026, 3, 15, tzinfo=UTC)


def put(db: psycopg.Connection[Row], stream: str, records: list[dict[str, Any]]) -> None:
    """Records into raw as landing would write them, one batch, and the mappings after it."""
    definition = jd.streams(jd.Options())[stream]
    batch = db.execute(
        "INSERT INTO raw.batches (source_id, stream, part, run_id, window_start, window_end, seen_count, changed_count,"
        " rejected_count, loaded_at, is_complete) VALUES (%s, %s, 'p', 'r', %s, %s, 1, 1, 0, %s, TRUE) RETURNING batch_id",
        (SOURCE, stream, LOADED, LOADED + timedelta(days=1), LOADED),
    ).fetchone()
    assert batch is not None
    for record in records:
        db.execute(
            "INSERT INTO raw.records (source_id, stream, record_key, payload, content_hash, observed_at, batch_id, run_id)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, 'r')",
            (SOURCE, stream, definition.record_key(record), json.dumps(record), json.dumps(record).encode()[:16], LOADED,
             batch["batch_id"]),
        )  # fmt: skip
    mapping.map_source(SOURCE, run_id="r")


def order(**changes: Any) -> dict[str, Any]:
    """An order as the guide's sample has it."""
    row: dict[str, Any] = {
        "orderId": "290000000001",
        "orderState": "FINISHED_L",
        "actualPay": "179.00",
        "shouldPay": "179.00",
        "orderPayment": "0.00",
        "freightPrice": "0.00",
        "orderStartTime": "2026-01-01 09:00:00",
        "paymentConfirmTime": "2026-01-01 09:01:00",
        "outBoundDate": "2026-01-02 10:00:00",
        "orderEndTime": "2026-01-05 12:00:00",
        "modified": "2026-01-05 12:00:03",
        "open_id_buyer": "oJD1",
        "itemInfoList": [
            {"skuId": "100012345", "skuName": "示例水杯", "itemTotal": "1", "jdPrice": "199.00", "outerSkuId": "CUP-1"}
        ],
    }
    return row | changes


NEVER = "0001-01-01 00:00:00"


ORDERS: list[tuple[dict[str, Any], str, bool, str]] = [
    ({}, "finished", True, "179.00"),
    ({"actualPay": 179}, "finished", True, "179"),
    ({"orderState": "WAIT_SELLER_STOCK_OUT", "outBoundDate": NEVER, "orderEndTime": NEVER}, "paid", True, "179.00"),
    # waits like a paid one, but is paid on delivery or later
    (
        {"orderState": "WAIT_SELLER_STOCK_OUT", "paymentConfirmTime": NEVER, "outBoundDate": NEVER, "actualPay": "0.00"},
        "unpaid", False, "179.00",
    ),
    ({"orderState": "LOCKED", "outBoundDate": NEVER}, "paid", True, "179.00"),
    ({"orderState": "PAUSE"}, "shipped", True, "179.00"),  # halted on its way
    ({"orderState": "WAIT_GOODS_RECEIVE_CONFIRM", "orderEndTime": ""}, "shipped", True, "179.00"),
    ({"orderState": "TRADE_CANCELED"}, "refunded", True, "179.00"),
    ({"orderState": "TRADE_CANCELED", "paymentConfirmTime": NEVER}, "cancelled", False, "179.00"),
    ({"orderState": "FINISHED_L", "paymentConfirmTime": NEVER}, "finished", True, "179.00"),  # paid to the courier
    ({"actualPay": None}, "finished", True, "179.00"),  # it lags: what was due stands in
    ({"actualPay": None, "orderPayment": "99.00"}, "finished", True, "179.00"),  # which nobody keeps up any more
    (
        {"actualPay": None, "orderPayment": "170.00", "orderStartTime": "2024-09-30 23:59:59"},
        "finished", True, "170.00",
    ),
]  # fmt: skip


def test_what_an_order_is(db: psycopg.Connection[Row]) -> None:
    put(db, "orders", [order(orderId=str(number), **changes) for number, (changes, *_) in enumerate(ORDERS)])
    rows = db.execute("SELECT * FROM core.orders ORDER BY order_id::integer").fetchall()
    found = [(row["status"], row["is_paid"], row["paid_amount"]) for row in rows]
    assert found == [(status, is_paid, Decimal(paid)) for _, status, is_paid, paid in ORDERS]
    for row in rows:
        assert (row["paid_at"] is not None) == row["is_paid"]
        assert row["created_at"].year >= 2024
        assert row["goods_amount"] == Decimal("199.00")
        assert (row["signed_at"] is not None) == (row["status"] == "finished")


UNUSABLE: list[tuple[dict[str, Any], str]] = [
    ({"orderState": "NEW_STATE"}, "orderState is missing or unknown"),
    ({"modified": "soon"}, "modified is missing or not a time"),
    ({"orderStartTime": None}, "orderStartTime is missing or not a time"),
    ({"paymentConfirmTime": "soon"}, "paymentConfirmTime is not a time"),
    ({"actualPay": "a lot"}, "actualPay is not a number"),
    ({"actualPay": None, "shouldPay": None}, "actualPay and shouldPay are missing"),
    ({"freightPrice": "x"}, "freightPrice is not a number"),
    ({"itemInfoList": []}, "the order has no lines"),
    ({"itemInfoList": [{"skuId": "", "jdPrice": "1", "itemTotal": "1"}]}, "a line has no id"),
    ({"itemInfoList": [{"skuId": "1", "jdPrice": "x", "itemTotal": "1"}]}, "not a number"),
]


def test_an_unusable_order_is_kept_with_its_reason_and_mended_by_a_good_one(db: psycopg.Connection[Row]) -> None:
    broken = [order(orderId=str(number), **changes) for number, (changes, _) in enumerate(UNUSABLE)]
    silent = order(orderId=str(len(UNUSABLE)))
    del silent["paymentConfirmTime"]  # not a word is not "never"
    put(db, "orders", [*broken, silent])
    assert one(db, "SELECT count(*) FROM core.orders") == 0
    rows = db.execute(
        "SELECT reason FROM raw.rejects WHERE resolved_at IS NULL ORDER BY record_key::integer"
    ).fetchall()
    wanted = [*(words for _, words in UNUSABLE), "paymentConfirmTime is missing"]
    assert [words for words, row in zip(wanted, rows, strict=True) if words not in row["reason"]] == []
    put(db, "orders", [order(orderId=str(number)) for number in range(len(wanted))])
    assert one(db, "SELECT count(*) FROM core.orders") == len(wanted)
    assert one(db, "SELECT count(*) FROM raw.rejects WHERE resolved_at IS NULL") == 0


def test_the_discount_is_shared_out_to_the_fen_and_the_same_thing_may_stand_twice(db: psycopg.Connection[Row]) -> None:
    items = [
        {"skuId": "1", "skuName": "甲", "itemTotal": "3", "jdPrice": "3.33"},
        {"skuId": "2", "skuName": "乙", "itemTotal": 1, "jdPrice": 7.01},
        {"skuId": "1", "skuName": "甲", "itemTotal": "1", "jdPrice": "0.00"},
        {"skuId": "3", "skuName": "丙", "itemTotal": "2", "jdPrice": "0.50"},
    ]
    put(db, "orders", [order(itemInfoList=items, actualPay="23.10", freightPrice="6.00")])
    rows = db.execute("SELECT line_id, product_id, paid_amount FROM core.order_lines ORDER BY line_id").fetchall()
    assert [(row["line_id"], row["product_id"]) for row in rows] == [("1", "1"), ("1-2", "1"), ("2", "2"), ("3", "3")]
    assert sum(row["paid_amount"] for row in rows) == Decimal("17.10")
    assert rows[1]["paid_amount"] == 0
    put(
        db,
        "orders",
        [order(itemInfoList=[items[2]], actualPay="0.00", freightPrice="0.00", modified="2026-01-06 00:00:00")],
    )
    assert one(db, "SELECT sum(paid_amount) FROM core.order_lines") == 0, "a gift alone divides nothing by zero"


REFUNDS: dict[int | str, str] = {
    0: "requested", 1: "requested", "5": "requested", 7: "returning", 2: "refused", 4: "refused", 8: "refused",
    3: "settled", "6": "settled", 9: "settled", 28: "requested",
}  # fmt: skip


def test_what_a_refund_is(db: psycopg.Connection[Row]) -> None:
    row = {
        "orderId": "290000000002", "applyRefundSum": 17900, "applyTime": "2026-01-02 10:00:00",
        "checkTime": "2026-01-02 11:00:00", "skuVoList": [{"skuId": 7, "skuCount": 2}],
    }  # fmt: skip
    put(db, "refunds", [{**row, "id": int(status), "status": status} for status in REFUNDS])
    found = {row["refund_id"]: row for row in db.execute("SELECT * FROM core.refunds")}
    assert {name: row["status"] for name, row in found.items()} == {
        str(name): status for name, status in REFUNDS.items()
    }
    for row in found.values():
        assert row["is_money"] == (row["status"] == "settled") == (row["settled_at"] is not None)
        assert (row["refund_amount"], row["line_id"], row["quantity"]) == (Decimal(179), "7", 2), "fen become yuan"
    put(db, "refunds", [{"id": 77, "status": "new", "applyRefundSum": "much", "applyTime": "soon"}])
    reason = one(db, "SELECT reason FROM raw.rejects")
    for words in ("orderId is missing", "status is missing or not a number", "applyRefundSum is", "applyTime is"):
        assert words in reason


@pytest.mark.parametrize(("unit", "written"), [("yuan", 12.34), ("yuan", "12.34"), ("fen", 1234)])
def test_what_an_after_sale_is(db: psycopg.Connection[Row], unit: str, written: object) -> None:
    bill = {
        "serviceId": 501,
        "orderId": 290000000002,
        "wareId": 7,
        "afsApplyTime": 1767319200000,
        "applyReason": "七天无理由",
    }
    asked = {"serviceId": 501, "amountUnit": unit, "status": None, "sameOrderServiceBill": bill}
    put(db, "aftersales", [asked])
    found = db.execute("SELECT * FROM core.refunds").fetchone()
    assert found is not None
    assert (found["refund_id"], found["status"], found["is_money"], found["refund_amount"]) == (
        "afs-501",
        "requested",
        False,
        0,
    )
    put(db, "aftersales", [asked | {"status": 14, "completeTime": "2026-01-05 10:00:00"}])
    assert one(db, "SELECT is_money FROM core.refunds") is False, "a payment that failed is still owed"
    put(db, "aftersales", [asked | {"status": 13, "refoundAmount": written, "completeTime": "2026-01-06 10:00:00"}])
    found = db.execute("SELECT * FROM core.refunds").fetchone()
    assert found is not None
    assert (found["status"], found["is_money"], found["refund_amount"]) == ("settled", True, Decimal("12.34"))
    assert found["settled_at"] == datetime(2026, 1, 6, 2, tzinfo=UTC)
    put(db, "aftersales", [asked | {"serviceId": 502, "status": 13}])
    assert "refoundAmount is missing" in one(db, "SELECT reason FROM raw.rejects")


def test_what_a_comment_is(db: psycopg.Connection[Row]) -> None:
    cases = [(5, 5, 5), ("1", 5, 1), (3, 3, 5), (2, 3, 3), (1, 3, 1), (0, 5, None), (4, 3, None), (None, 5, None)]
    row = {
        "skuid": "100012345", "content": "很好", "creationTime": "2026-01-08 10:00:00", "orderId": 290000000001,
        "open_id_buyer": "oJD1", "replies": [{"replyId": 1, "content": "谢谢", "creationTime": 1767924000000}],
    }  # fmt: skip
    put(
        db,
        "comments",
        [
            {**row, "commentId": str(number), "score": score, "scoreScale": scale}
            for number, (score, scale, _) in enumerate(cases)
        ],
    )
    found = db.execute("SELECT * FROM core.reviews ORDER BY review_id").fetchall()
    assert {int(row["review_id"]): row["rating"] for row in found} == {
        number: rating for number, (_, _, rating) in enumerate(cases) if rating
    }
    for review in found:
        assert (review["order_id"], review["line_id"], review["reply"]) == ("290000000001", "100012345", "谢谢")
        assert review["created_at"] == datetime(2026, 1, 8, 2, tzinfo=UTC)
        assert review["replied_at"] == datetime(2026, 1, 9, 2, tzinfo=UTC)
        assert review["identity_id"] is not None
    reasons = {row["reason"] for row in db.execute("SELECT reason FROM raw.rejects")}
    assert reasons == {"core.reviews: score is missing or not on its scale"}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"skuId": 7, "skuName": "杯", "outerId": "CUP", "jdPrice": 12.5, "status": 1},
            ("7", "杯", "CUP", Decimal("12.5"), True),
        ),
        (
            {"skuId": 7, "wareTitle": "杯", "jdPrice": "12.50", "status": "2"},
            ("7", "杯", None, Decimal("12.50"), False),
        ),
    ],
)
def test_what_an_item_is(db: psycopg.Connection[Row], row: dict[str, Any], expected: tuple[Any, ...]) -> None:
    put(db, "items", [row | {"modified": "2026-01-08 10:00:00"}])
    found = db.execute("SELECT product_id, title, outer_id, price_amount, is_listed FROM core.products").fetchone()
    assert found is not None
    assert tuple(found.values()) == expected
    put(db, "items", [{"skuId": 8, "modified": 1}])
    assert "skuName, wareTitle and title are missing; modified is missing" in one(db, "SELECT reason FROM raw.rejects")


def test_the_connection_of_the_local_stack_is_complete(sandbox: Any) -> None:
    shop = jd.connect(settings.credentials(SOURCE), Transport("jd"), options=jd.Options())
    assert jd.check(shop, STREAMS).problems == {}
