"""A shop that is declared in YAML: the documented examples as they stand, every way of paging and of proving who we are."""

import hashlib
import hmac
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import malls
import psycopg
import pytest
import requests
import yaml
from nights import everything, one

from nightmarket import dates, landing, mapping, sources
from nightmarket.platforms import rest
from nightmarket.platforms.base import AuthError, BadPayload, NotFound, PlatformDown, RateLimited, Refused, Unusable
from nightmarket.settings import ConfigError, Credentials
from nightmarket.warehouse import Row

DOCS = Path(__file__).resolve().parents[2] / "docs" / "connections" / "rest.md"
STALL, BAZAAR = re.findall(r"```yaml\n(sources:\n.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
EXAMPLES = {"stall_shop": STALL, "bazaar_shop": BAZAAR}
WIDE = {"orders": {"window_minutes": 44640}, "refunds": {}, "reviews": {}, "customers": {}, "products": {}}


@pytest.fixture(params=sorted(EXAMPLES))
def example(request: Any, sandbox: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> tuple[str, Any]:
    """Each documented example in turn: its source id and the sandbox."""
    malls.use_sources(monkeypatch, tmp_path, EXAMPLES[request.param])
    return request.param, sandbox


@pytest.fixture
def declare(sandbox: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Any:
    """Declare an example with changes: declare("bazaar_shop", lambda block: ...) returns its client."""

    def use(name: str, change: Any = lambda block: None) -> rest.Client:
        content = deepcopy(yaml.safe_load(EXAMPLES[name]))
        change(content["sources"][name])
        malls.use_sources(monkeypatch, tmp_path, yaml.safe_dump(content, allow_unicode=True))
        return client_of(name)

    return use


def client_of(name: str, **options: Any) -> rest.Client:
    from nightmarket import settings
    from nightmarket.platforms.base import Transport

    config = sources.source(name)
    return rest.connect(settings.credentials(name), Transport("rest"), options=config.settings, **options)


def differences(db: psycopg.Connection[Row], name: str, sandbox: Any) -> dict[str, Any]:
    return malls.differences(db, name, sandbox.control("GET", "/truth")["shops"]["weidian"])


# --------------------------------------------------------------------------------------------- the documented examples
def test_a_night_equals_the_truth_and_reading_or_mapping_again_changes_nothing(
    db: psycopg.Connection[Row], example: tuple[str, Any]
) -> None:
    name, sandbox = example
    summaries = malls.night(name, "first", page_sizes={"*": 3})
    assert differences(db, name, sandbox) == {}
    assert one(db, "SELECT count(*) FROM raw.rejects") == 0
    assert malls.clear_values_at_rest(db, sandbox, name) == []
    kinds = {row["kind"] for row in db.execute("SELECT DISTINCT kind FROM core.identities")}
    assert {"shop_customer_id", "phone", "email"} <= kinds
    before = everything(db)
    again = malls.night(name, "second")
    assert {stream: summary.changed for stream, summary in again.items()} == dict.fromkeys(summaries, 0)
    assert everything(db) == before
    assert mapping.reset_mappings(db, name) > 0
    mapping.map_source(name, run_id="third")
    mapping.resolve_members(run_id="third")
    assert everything(db) == before


def test_nights_that_follow_equal_the_truth(
    db: psycopg.Connection[Row], example: tuple[str, Any], set_clock: Any
) -> None:
    name, sandbox = example
    malls.night(name, "one")
    for day in ("2026-03-19", "2026-04-09"):
        malls.move(sandbox, set_clock, f"{day}T02:30:00+08:00")
        malls.night(name, day, page_sizes={"*": 2})
        assert differences(db, name, sandbox) == {}


def test_both_styles_give_the_same_core(
    db: psycopg.Connection[Row], sandbox: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """One shop through two APIs: what core says of its orders does not tell which one it was read through."""
    found = []
    for name, text in EXAMPLES.items():
        malls.use_sources(monkeypatch, tmp_path, text)
        malls.night(name, "r")
        rows = db.execute(
            "SELECT order_id, status, is_paid, goods_amount, paid_amount, postage_amount, line_count, unit_count, city, created_at,"
            " paid_at, shipped_at, signed_at, modified_at FROM core.orders WHERE source_id = %s ORDER BY order_id",
            (name,),
        )
        found.append([tuple(row.values()) for row in rows])
    assert found[0] == found[1] != []


# the others: tests/faults/test_matrix.py
@pytest.mark.parametrize("kind", ["empty_last_page", "missing_fields", "truncated_json"])
def test_a_fault_that_passes_is_repaired(db: psycopg.Connection[Row], example: tuple[str, Any], kind: str) -> None:
    name, sandbox = example
    malls.fault(sandbox, "rest", kind, times=2, after=2, seconds=1)
    try:
        malls.night(name, "first", page_sizes={"*": 3})
    except BadPayload as error:
        assert kind == "truncated_json" and "is not readable JSON" in str(error)  # noqa: PT017, PT018
    sandbox.control("POST", "/faults", {"faults": []})
    malls.night(name, "later")
    assert differences(db, name, sandbox) == {}
    assert one(db, "SELECT count(*) FROM raw.rejects WHERE resolved_at IS NULL") == 0


# -------------------------------------------------------------------------------------------------- ways of paging
@pytest.mark.parametrize(
    "change",
    [
        {"paging": {"kind": "page", "parameter": "page", "size_parameter": "per_page", "size": 100}, "total": "meta.total"},
        {"paging": {"kind": "page", "parameter": "page", "size_parameter": "per_page", "size": 100}, "total": "header:X-Total"},
        {"paging": {"kind": "page", "parameter": "page", "size_parameter": "per_page", "size": 100, "more": "meta.more"}, "total": None},
        {"paging": {"kind": "page", "parameter": "page", "size_parameter": "per_page", "size": 100}, "total": None},
        {"paging": {"kind": "offset", "parameter": "offset", "size_parameter": "limit", "size": 100}, "total": "meta.total"},
        {"paging": {"kind": "offset", "parameter": "offset", "size_parameter": "limit", "size": 100}, "total": None},
        {"paging": {"kind": "link", "size_parameter": "per_page", "size": 100}, "total": "meta.total"},
        {"paging": {"kind": "link", "size_parameter": "per_page", "size": 100}, "total": None},
        {"paging": {"kind": "next_url", "next": "meta.next", "size_parameter": "per_page", "size": 100}, "total": None},
    ],
    ids=["page-total", "page-header", "page-more", "page-short", "offset-total", "offset-short", "link-total", "link", "next_url"],
)  # fmt: skip
def test_every_way_of_paging_brings_every_order(
    db: psycopg.Connection[Row], declare: Any, sandbox: Any, change: dict[str, Any]
) -> None:
    def use(block: dict[str, Any]) -> None:
        block["options"]["tables"]["orders"].update(change)
        block["options"]["tables"]["orders"]["window"]["days"] = 366
        block["streams"] = {"orders": {"window_minutes": 525600}}

    declare("bazaar_shop", use)
    summary = malls.land("bazaar_shop", "r", page_sizes={"*": 3})["orders"]
    truth = sandbox.control("GET", "/truth")["shops"]["weidian"]
    assert summary.changed == truth["orders"] > 9
    assert summary.requests > summary.windows + 3, "everything was on one page"


@pytest.mark.parametrize("place", ["body", "form"])
def test_a_post_carries_window_and_cursor_in_its_body(
    db: psycopg.Connection[Row], declare: Any, sandbox: Any, place: str
) -> None:
    def use(block: dict[str, Any]) -> None:
        orders = block["options"]["tables"]["orders"]
        orders |= {"method": "POST", place: orders.pop("query")}
        block["streams"] = {"orders": {}}

    declare("stall_shop", use)
    summary = malls.land("stall_shop", "r", page_sizes={"*": 2})["orders"]
    assert summary.changed == sandbox.control("GET", "/truth")["shops"]["weidian"]["orders"]


def test_rows_are_completed_by_a_call_each(db: psycopg.Connection[Row], declare: Any, sandbox: Any) -> None:
    def use(block: dict[str, Any]) -> None:
        orders = block["options"]["tables"]["orders"]
        orders["query"]["view"] = "brief"
        orders["detail"] = {"path": "/orders/{key}", "record": "order"}
        block["streams"] = {"orders": {}}

    declare("bazaar_shop", use)
    malls.night("bazaar_shop", "r")
    truth = sandbox.control("GET", "/truth")["shops"]["weidian"]
    assert one(db, "SELECT count(*) FROM core.orders") == truth["orders"]
    assert one(db, "SELECT count(*) FROM core.order_lines") == truth["lines"]


def link(url: str) -> dict[str, str]:
    return {"Link": f'<{url}>; rel="next"'}


def feed(change: Any = lambda table: None, **more: Any) -> tuple[rest.Feed, dict[str, Any]]:
    options = deepcopy(yaml.safe_load(BAZAAR)["sources"]["bazaar_shop"]["options"]) | more
    change(options["tables"]["customers"])
    parsed = rest.Options.model_validate(options)
    return rest.feeds(parsed)["customers"], {"options": parsed}


def recorded(recording: malls.Recorded, options: Any, host: str = "https://shop.test/api") -> rest.Client:
    credentials = Credentials("bazaar_shop", host, "me", "s3cret")
    return rest.connect(credentials, recording.transport("rest"), **options)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://evil.test/api/customers?page=2", "the next page lies on another host"),
        ("http://shop.test/api/customers?page=2", "the next page lies on another host"),
        ("//evil.test/api/customers", "the next page lies on another host"),
        ("https://shop.test/admin/customers?page=2", "lies outside of the shop's address"),
    ],
)
def test_an_address_that_leaves_the_shop_is_not_followed(url: str, words: str) -> None:
    table, options = feed()
    recording = malls.Recorded((200, link(url), {"customers": []}))
    with pytest.raises(BadPayload, match=words):
        list(table.pages(recorded(recording, options), None))
    assert len(recording.asked) == 1


def test_an_address_on_the_shop_is_followed_however_it_is_written() -> None:
    for url in (
        "https://shop.test/api/customers?after=9&q=a%20b",
        "/api/customers?after=9&q=a%20b",
        "?after=9&q=a%20b",
    ):
        table, options = feed()
        recording = malls.Recorded((200, link(url), {"customers": [{"id": 1}]}), (200, {}, {"customers": [{"id": 2}]}))
        pages = list(table.pages(recorded(recording, options), None))
        assert [[row["customer_id"] for row in page] for page in pages] == [["1"], ["2"]]
        assert recording.asked[1][1] == "https://shop.test/api/customers?after=9&q=a%20b"
        assert recording.asked[1][2]["headers"]["Authorization"].startswith("Basic ")


def test_a_next_page_that_leads_back_ends_the_walk() -> None:
    table, options = feed()
    recording = malls.Recorded((200, link("?page=2"), {"customers": []}))
    with pytest.raises(BadPayload, match="page 2 leads back to an earlier page"):
        list(table.pages(recorded(recording, options), None))


def test_a_cursor_that_stands_alone_takes_the_size_and_nothing_else() -> None:
    def use(table: dict[str, Any]) -> None:
        table["query"] = {"sort": "id"}
        table["paging"] = {
            "kind": "cursor",
            "parameter": "c",
            "next": "header:X-Next",
            "alone": True,
            "size_parameter": "n",
        }

    table, options = feed(use)
    recording = malls.Recorded(
        (200, {"X-Next": "k 1"}, {"customers": [{"id": 1}]}), (200, {}, {"customers": [{"id": 2}]})
    )
    assert len(list(table.pages(recorded(recording, options), None))) == 2
    assert [url.partition("?")[2] for _, url, _ in recording.asked] == ["sort=id&n=100", "n=100&c=k%201"]


def test_an_api_that_does_not_know_the_page_parameter_is_told() -> None:
    def use(table: dict[str, Any]) -> None:
        table.pop("total")
        table["paging"] = {"kind": "page", "parameter": "pg", "size": 1}

    table, options = feed(use)
    recording = malls.Recorded((200, {}, {"customers": [{"id": 1}]}))
    with pytest.raises(BadPayload, match=r"page 2 is page 1 again; does the API know 'pg'\?"):
        list(table.pages(recorded(recording, options), None))


def test_a_secret_in_a_path_stays_out_of_sentences() -> None:
    table, options = feed(lambda table: table.update(path="/{password}/customers"))
    recording = malls.Recorded((418, {}, b""))
    with pytest.raises(Refused) as caught:
        list(table.pages(recorded(recording, options), None))
    assert recording.asked[0][1].startswith("https://shop.test/api/s3cret/customers")
    assert str(caught.value) == "rest, /{password}/customers: HTTP 418: the request is refused"


def test_check_says_which_rows_the_declaration_cannot_read() -> None:
    _, options = feed(lambda table: table["columns"].update(level="club"))
    rows = {"customers": [{"id": 1}, {"id": 2, "club": {"level": "L1"}}], "meta": {"total": 2}}
    found = rest.check(recorded(malls.Recorded((200, {}, rows)), options), ["customers"])
    assert found.problems["customers"] == (
        "1 of 2 rows cannot be used: level (column club) is an object or a list, not one value; name a field inside of it"
    )


def test_an_answer_without_the_list_names_its_path() -> None:
    table, options = feed()
    with pytest.raises(BadPayload, match=r"rest, /customers: page 1 has no list at customers"):
        list(table.pages(recorded(malls.Recorded((200, {}, {"people": []})), options), None))


# ------------------------------------------------------------------------------------------------ ways to be known
AUTH = {
    "header": {"headers": {"X-Api-Key": "{extra.api_key}"}},
    "query": {"query": {"api_key": "{extra.api_key}"}},
    "basic": {"basic": True},
    "oauth2-body": {"oauth2": {"token_url": "/token"}},
    "oauth2-basic": {"oauth2": {"token_url": "/token", "client_auth": "basic"}, "headers": {"Authorization": "Bearer {token}"}},
}  # fmt: skip


@pytest.mark.parametrize("way", sorted(AUTH))
def test_every_way_to_be_known_is_let_in(
    db: psycopg.Connection[Row], declare: Any, sandbox: Any, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    malls.change_connection(monkeypatch, "bazaar_shop", extra={"api_key": sandbox.access["rest"]["bazaar_api_key"]})

    def use(block: dict[str, Any]) -> None:
        block["options"]["auth"] = AUTH[way]
        block["streams"] = {"customers": {}, "products": {}}

    declare("bazaar_shop", use)
    summaries = malls.land("bazaar_shop", "r", page_sizes={"*": 5})
    truth = sandbox.control("GET", "/truth")["shops"]["weidian"]
    assert summaries["customers"].changed == truth["customers"]
    assert summaries["products"].changed == truth["products"]
    tokens = malls.requests_to(sandbox, "rest").get("bazaar/api/token", 0)
    assert tokens == (1 if "oauth2" in way else 0), "one token serves all streams"


def test_a_token_that_runs_out_in_the_middle_is_replaced(
    db: psycopg.Connection[Row], declare: Any, sandbox: Any
) -> None:
    def use(block: dict[str, Any]) -> None:
        block["options"]["auth"] = AUTH["oauth2-body"]
        block["streams"] = {"products": {}}

    declare("bazaar_shop", use)
    malls.fault(sandbox, "rest", "expired_token", after=4)
    summary = malls.land("bazaar_shop", "r", page_sizes={"*": 5})["products"]
    assert summary.changed == sandbox.control("GET", "/truth")["shops"]["weidian"]["products"]
    assert malls.requests_to(sandbox, "rest")["bazaar/api/token"] == 2


@pytest.mark.parametrize(
    ("auth", "words"),
    [
        (AUTH["basic"], "HTTP 401: the shop refuses the account"),
        (AUTH["oauth2-body"], "HTTP 401: no token is given; check login (client id) and password (client secret)"),
    ],
)
def test_wrong_credentials_say_what_to_do(
    db: psycopg.Connection[Row], declare: Any, monkeypatch: pytest.MonkeyPatch, auth: dict[str, Any], words: str
) -> None:
    malls.change_connection(monkeypatch, "bazaar_shop", password="n0t-it")
    declare("bazaar_shop", lambda block: block["options"].update(auth=auth))
    with pytest.raises(AuthError) as caught:
        landing.land("bazaar_shop", "orders", run_id="r", until=dates.now())
    assert words in str(caught.value)
    assert "n0t-it" not in str(caught.value)


def sign(text: str, digest: str, **more: str) -> rest.Sign:
    return rest.Sign.model_validate({"text": text, "digest": digest, **more})


def test_signatures_of_known_kinds() -> None:
    account = {"login": "app", "password": "helloworld", "timestamp": "7", "nonce": "n"}
    pairs = {"method": "taobao.item.seller.get", "app_key": "12345678", "session": "test", "timestamp": "2016-01-01 12:00:00",
             "format": "json", "v": "2.0", "fields": "num_iid,title,nick,price,num", "num_iid": "11223344"}  # fmt: skip

    def made(rule: rest.Sign, asked: rest.Asked, query: dict[str, str]) -> str:
        return rest.signature(rule, account, asked, list(query.items()), asked.content())

    # the published vector of TOP's call guide, declared: md5 over secret + sorted pairs + secret
    top = sign("{password}{sorted_pairs}{password}", "md5", encoding="HEX")
    asked = rest.Asked("", "POST", "/router/rest", [], {}, form=pairs | {"sign_method": "md5"})
    assert made(top, asked, {}) == "66987CB115214E59E6EC978214934FB8"
    asked = rest.Asked("", "POST", "/router/rest", [], {}, form=pairs | {"sign_method": "hmac-sha256"})
    hmac256 = sign("{sorted_pairs}", "hmac-sha256", encoding="HEX")
    assert made(hmac256, asked, {}) == "04DB15AD0774D5CFCE2C837DE43E3FCEA9011ED74F3038FB6AB5F3C4CEA119E8"
    # RFC 4231, case 2
    rule = sign("what do ya want for nothing?", "hmac-sha256", key="Jefe")
    assert made(rule, rest.Asked("", "GET", "/", [], {}), {}) == (
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    )
    whole = sign(
        "{method} {path}?{query} {sorted_query} {body_md5} {timestamp} {nonce} {login}", "hmac-sha1", encoding="base64"
    )
    asked = rest.Asked("", "POST", "/a b", [], {}, body={"x": 1})
    md5 = hashlib.md5(b'{"x":1}').hexdigest()
    text = f"POST /a b?b=2%203&a=1 a=1&b=2 3 {md5} 7 n app"
    wanted = hmac.new(b"helloworld", text.encode(), "sha1").digest()
    import base64

    assert made(whole, asked, {"b": "2 3", "a": "1"}) == base64.b64encode(wanted).decode()


def test_a_signature_in_the_query_is_not_signed_itself() -> None:
    auth = {
        "sign": {"text": "{sorted_query}", "digest": "hmac-sha256"},
        "query": {"app": "{login}", "sign": "{signature}"},
    }
    table, options = feed(auth=auth)
    recording = malls.Recorded((200, {}, {"customers": []}))
    list(table.pages(recorded(recording, options), None))
    query = recording.asked[0][1].partition("?")[2]
    wanted = hmac.new(b"s3cret", b"app=me&per_page=100", "sha256").hexdigest()
    assert query == f"per_page=100&app=me&sign={wanted}"


# ---------------------------------------------------------------------------------------------- errors inside HTTP 200
@pytest.mark.parametrize(
    ("content", "kind", "words"),
    [
        ({"code": 0, "customers": []}, None, ""),
        ({"code": "A1", "customers": []}, AuthError, "code A1: the shop refuses the account"),
        ({"code": 7, "wait": 90}, RateLimited, "code 7: too many calls; next one in 90 s"),
        ({"code": 9}, PlatformDown, "code 9: the shop is busy"),
        ({"code": 404}, NotFound, "code 404: it does not exist"),
        ({"code": 12, "msg": "王小明 10012345678"}, Refused, "code 12: the request is refused"),
        ({"customers": []}, None, ""),
    ],
)
def test_codes_mean_what_was_declared(content: Any, kind: type[Exception] | None, words: str) -> None:
    codes = {"code": "code", "ok": [0], "auth": ["A1"], "limit": 7, "wait": "wait", "busy": [9], "missing": [404]}
    table, options = feed(errors=codes)
    client = recorded(malls.Recorded((200, {}, content)), options)
    if kind is None:
        assert list(table.pages(client, None)) == [[]]
        return
    with pytest.raises(kind) as caught:
        list(table.pages(client, None))
    assert words in str(caught.value)
    assert "王小明" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (401, AuthError, "HTTP 401: the shop refuses the account"),
        (403, AuthError, "HTTP 403: the shop refuses the account"),
        (404, NotFound, "check host of the connection and path in the options"),
        (302, Refused, "the shop answers from another address"),
        (422, Refused, "HTTP 422: the request is refused"),
    ],
)
def test_http_statuses_mean_what_they_say(status: int, kind: type[Exception], words: str) -> None:
    table, options = feed()
    with pytest.raises(kind, match=words):
        list(table.pages(recorded(malls.Recorded((status, {}, b"")), options), None))


# ------------------------------------------------------------------------------------------------------------- rows
def test_paths() -> None:
    answer = {"a": {"b": 1, "list": [{"x": "", "y": 1}, {"x": "two", "parts": [{"z": 3}, {"z": 4}]}]}, "no": None}
    root = rest.Place(answer)
    assert rest.value_at(root, "a.b") == 1
    assert rest.value_at(root, "a.list[].x") == "two"
    assert rest.value_at(root, "a.list.1.parts.0.z") == 3
    assert rest.value_at(root, "no.where") is None
    rows = rest.rows_at(answer, "a.list[].parts")
    assert rows is not None
    assert [row.value for row in rows] == [{"z": 3}, {"z": 4}]
    assert rest.value_at(rows[0], "../x") == "two"
    assert rest.value_at(rows[0], "../../a.b") == 1
    assert rest.value_at(rows[0], "../../../a") is None
    assert rest.rows_at(answer, "nothing") is None
    assert rest.rows_at([1, 2], "") is not None


def test_a_row_that_cannot_be_read_says_why_and_never_what_it_holds() -> None:
    table, _ = feed()
    row = {"id": 1, "since": "long ago", "club": {"member": "perhaps"}, "name": "王小明"}
    found = table.record(None, rest.Place(row))  # type: ignore[arg-type]
    assert isinstance(found, Unusable)
    assert found.key == "1"
    assert found.reason == (
        'is_member (column club.member) is neither yes nor no: "aaaaaaa"; declare values; joined_at (column since) is not a time'
        ' that begins with the year: "aaaa aaa"; declare time_formats'
    )


def test_unusable_rows_are_quarantined_and_settled_once_the_declaration_is_right(
    db: psycopg.Connection[Row], declare: Any, sandbox: Any
) -> None:
    def forget(block: dict[str, Any]) -> None:
        block["streams"] = {"orders": {}}
        block["options"]["tables"]["orders"]["statuses"].pop("已完成")

    declare("bazaar_shop", forget)
    malls.night("bazaar_shop", "one")
    reasons = [row["reason"] for row in db.execute("SELECT DISTINCT reason FROM raw.rejects")]
    assert reasons == [
        'status (column status) is a word that the table `statuses` does not have: "已完成"; add it there'
    ]
    assert malls.clear_values_at_rest(db, sandbox, "bazaar_shop") == []
    declare("bazaar_shop", lambda block: block.update(streams={"orders": {}}))
    malls.night("bazaar_shop", "two")
    assert one(db, "SELECT count(*) FROM core.orders") == sandbox.control("GET", "/truth")["shops"]["weidian"]["orders"]
    assert one(db, "SELECT count(*) FROM raw.rejects WHERE resolved_at IS NULL") == 0


def test_what_is_kept_is_text_without_numbers_of_people(
    db: psycopg.Connection[Row], declare: Any, sandbox: Any
) -> None:
    def use(block: dict[str, Any]) -> None:
        block["options"]["tables"]["customers"] |= {"keep": ["club", "contact"], "personal": {}}
        block["streams"] = {"customers": {}}

    declare("bazaar_shop", use)
    malls.land("bazaar_shop", "r")
    assert one(db, "SELECT count(*) FROM raw.records WHERE payload #>> '{original,club}' LIKE '{\"member\":%'") > 0
    assert one(db, "SELECT count(*) FROM raw.records WHERE payload #>> '{original,contact}' LIKE '%phone:%'") > 0
    assert malls.clear_values_at_rest(db, sandbox, "bazaar_shop") == []


# ------------------------------------------------------------------------------------------------------- mistakes
def set_at(block: dict[str, Any], path: str, value: Any) -> None:
    *way, last = path.split(".")
    for name in way:
        block = block[name]
    if value is None:
        block.pop(last)
    else:
        block[last] = value


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("options.tables", None, "options.tables: required key is missing"),
        ("options.tables", {}, "at least one of orders, refunds, reviews, customers, products"),
        ("options.auth", {"user": "x"}, "options.auth.user: unknown key"),
        ("options.auth", {"headers": {"X": "{secret}"}}, "headers.X: there is no {secret} here; known: login, nonce, password"),
        ("options.auth", {"headers": {"X": "{token}"}}, "there is no {token} here"),
        ("options.auth", {"sign": {"text": "{path}", "digest": "hmac-sha256"}}, "no header and no query parameter has {signature}"),
        ("options.auth", {"sign": {"text": "{url}", "digest": "md5"}, "query": {"s": "{signature}"}}, "there is no {url} here"),
        ("options.auth", {"sign": {"text": "x", "digest": "crc32"}, "query": {"s": "{signature}"}}, "options.auth.sign.digest: Input should be"),
        ("options.tables.orders.path", "orders", "options.tables.orders.path: String should match"),
        ("options.tables.orders.window", None, "{start} or {end} is used; say how instants are written"),
        ("options.tables.orders.query", {"x": "{begin}"}, "there is no {begin} here"),
        ("options.tables.orders.query", {}, "neither {start} nor {end} is used"),
        ("options.tables.orders.paging", {"kind": "cursor", "parameter": "c"}, "next: paging by cursor needs it"),
        ("options.tables.orders.paging", {"kind": "page", "parameter": "p"}, "size: say how many rows a page has"),
        ("options.tables.orders.paging", {"kind": "scroll"}, "options.tables.orders.paging.kind: Input should be"),
        ("options.tables.orders.lines", None, "options.tables.orders.lines: required key is missing"),
        ("options.tables.orders.columns.order_id", None, "tables.orders.columns: orders need order_id"),
        ("options.tables.orders.columns.colour", "c", "orders have no field 'colour'"),
        ("options.tables.orders.statuses", {"x": "lost"}, "'x' becomes 'lost', which is not one of ours"),
        ("options.tables.orders.body", {"a": 1}, "a request with a body or a form is a POST"),
        ("options.tables.orders.detail", {"path": "/orders"}, "it has no {key}"),
        ("options.tables.orders.keep", "*", "keep: name the fields"),
        ("options.zone", "Mars/Olympus", "options.zone: Value error, unknown time zone 'Mars/Olympus'"),
        ("streams.coupons", {}, "streams.coupons: rest has no stream 'coupons'; known: customers, orders"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence_with_file_line_and_field(declare: Any, path: str, value: Any, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        declare("bazaar_shop", lambda block: set_at(block, path, value))
    sentence = str(caught.value)
    assert words in sentence
    assert re.match(r"\S*sources\.yaml:\d+: sources\.bazaar_shop\.", sentence)
    assert "\n" not in sentence


def test_a_connection_without_what_the_templates_use_is_told_before_the_first_call() -> None:
    _, options = feed(auth={"headers": {"X-Key": "{extra.api_key}"}})
    with pytest.raises(ConfigError, match=r"connection 'bazaar_shop': extra\.api_key is missing"):
        recorded(malls.Recorded((200, {}, {})), options)
    _, options = feed()
    with pytest.raises(ConfigError, match=r"host \(the shop's address, https://...\) is missing"):
        recorded(malls.Recorded((200, {}, {})), options, host="shop.test")


# ------------------------------------------------------------------------------------------------------- simulator
def stall(sandbox: Any, path: str, *, spoil: str = "", stamp: int | None = None, nonce: str = "", **query: Any) -> Any:
    access = sandbox.access["rest"]
    at = str(stamp if stamp is not None else int(dates.now().timestamp()))
    nonce = nonce or str(id(query)) + at + path + str(query)
    url = requests.Request("GET", access["stall_url"] + path, params=query).prepare().url
    assert url is not None
    target = url.partition(access["stall_url"].removesuffix("/stall/v1"))[2]
    text = "\n".join(
        ("GET", target.partition("?")[0], target.partition("?")[2], at, nonce, hashlib.sha256(b"").hexdigest())
    )
    mac = hmac.new(access["stall_secret"].encode(), text.encode(), "sha256").hexdigest()
    head = {"X-Stall-Key": access["stall_key"], "X-Stall-Time": at, "X-Stall-Nonce": nonce, "X-Stall-Sign": mac + spoil}
    answer = requests.get(url, headers=head, timeout=30)
    assert answer.status_code == 200
    return answer.json()


def test_the_stall_refuses_with_codes(sandbox: Any) -> None:
    now = int(dates.now().timestamp())
    window = {"since": now - 86400 * 30, "until": now}
    assert stall(sandbox, "/orders", **window)["code"] == 0
    assert stall(sandbox, "/orders", spoil="0", **window)["code"] == 4001
    assert stall(sandbox, "/orders", stamp=now - 600, **window)["code"] == 4002
    assert stall(sandbox, "/orders", nonce="n1", **window)["code"] == 0
    assert stall(sandbox, "/orders", nonce="n1", **window)["code"] == 4004
    assert stall(sandbox, "/orders", since=now - 86400 * 32, until=now)["code"] == 4000
    assert stall(sandbox, "/orders", limit=51, **window)["code"] == 4000
    assert stall(sandbox, "/orders", cursor="bm8=", **window)["code"] == 4000
    assert stall(sandbox, "/carts", **window)["code"] == 4040
    members = stall(sandbox, "/members", limit=2)["data"]
    assert members["has_more"]
    assert stall(sandbox, "/goods", limit=2, cursor=members["next"])["code"] == 4000, "a cursor belongs to its list"


def test_the_bazaar_refuses_with_statuses(sandbox: Any) -> None:
    access = sandbox.access["rest"]

    def get(path: str, auth: Any = (access["bazaar_user"], access["bazaar_password"]), **query: Any) -> int:
        return requests.get(access["bazaar_url"] + path, params=query, auth=auth, timeout=30).status_code

    window = {"modified_from": "2026-01-01T00:00:00+08:00", "modified_to": "2026-03-01T00:00:00+08:00"}
    assert get("/orders", **window) == 200
    assert get("/orders", auth=None, **window) == 401
    assert get("/orders", auth=("me", "guess"), **window) == 401
    assert get("/orders") == 400
    assert get("/orders", **window | {"modified_from": "2026-01-01T00:00:00"}) == 400
    assert get("/orders", **window | {"modified_from": "2024-01-01T00:00:00+08:00"}) == 400
    assert get("/orders", per_page=101, **window) == 400
    assert get("/orders/1") == 404
    assert get("/carts") == 404


def test_check_says_by_stream_what_is_refused(
    db: psycopg.Connection[Row], example: tuple[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, sandbox = example
    assert landing.check_source(name).startswith(f"{name}: works for the shop at 127.0.0.1; ")
    malls.fault(sandbox, "rest", "revoked_token", method="*orders", times=-1)
    assert "; orders: " in landing.check_source(name)
