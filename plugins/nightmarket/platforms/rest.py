"""Any shop with a JSON API, declared in YAML: where its lists are, how they are paged, and which field is which of ours.

docs/connections/rest.md explains every key. What a row becomes is declared as for files (platforms.declared); this module
adds how to get the rows: authorisation, windows, paging, limits of errors. Addresses that an answer names (next page) are
followed only on the shop's own host.
"""

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from urllib.parse import parse_qsl, quote, urljoin, urlsplit
from zoneinfo import ZoneInfo

import orjson
from pydantic import Field, model_validator

from nightmarket import dates
from nightmarket.dates import Window
from nightmarket.platforms import declared
from nightmarket.platforms.base import (
    Answer,
    AuthError,
    BadPayload,
    Check,
    NotFound,
    Plan,
    PlatformDown,
    RateLimited,
    Record,
    Refused,
    Slice,
    Stream,
    Token,
    Transport,
    Unusable,
    backfill_by_window,
    by_window,
    parse_json,
    probe,
)
from nightmarket.platforms.declared import Formats, Reader, Table, Unreadable, judge
from nightmarket.platforms.paging import settled, walk_back
from nightmarket.settings import ConfigError, Credentials, StrictModel

NAME = "rest"
PLACEHOLDER = re.compile(r"\{([a-z][a-z0-9_.]*)\}")
ACCOUNT = ("login", "password")  # and extra.<name>: what stands in the connection
WINDOW = ("start", "end")
SIGNED = (
    "method",
    "path",
    "query",
    "sorted_query",
    "sorted_pairs",
    "body",
    "body_md5",
    "body_sha256",
    "timestamp",
    "nonce",
)
NEXT_LINK = re.compile(r'<([^>]+)>\s*;[^,]*\brel="?next"?')
DEFAULT_WAIT = 1.0  # seconds, where a limit does not say how long it lasts
TOKEN_SECONDS = 3600  # where an OAuth2 server does not say how long a token is good


# ---------------------------------------------------------------------------------------------------------- options
def _only(where: str, text: object, known: Sequence[str]) -> None:
    """Raise ValueError when a template names something that is not there to be filled in."""
    for name in PLACEHOLDER.findall(text) if isinstance(text, str) else ():
        if name not in known and not (name.startswith("extra.") and "login" in known):
            raise ValueError(f"{where}: there is no {{{name}}} here; known: {', '.join(sorted(known))}, extra.<name>")


def _texts(value: object) -> Iterator[str]:
    """Every text in a template of a body."""
    if isinstance(value, dict):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)
    elif isinstance(value, str):
        yield value


class OAuth2(StrictModel):
    """Client credentials (RFC 6749, 4.4). The token is {token} in the templates of `auth`."""

    token_url: str  # path on the shop's host, or a whole address
    scope: str = ""
    client_auth: Literal["body", "basic"] = "body"


class Sign(StrictModel):
    """A signature over a text made of the request. It is {signature} in the templates of `auth`."""

    text: str
    digest: Literal["hmac-sha256", "hmac-sha1", "hmac-sha512", "hmac-md5", "sha256", "sha1", "sha512", "md5"]
    key: str = "{password}"  # of the hmac digests
    encoding: Literal["hex", "HEX", "base64"] = "hex"

    @model_validator(mode="after")
    def _judge(self) -> "Sign":
        _only("text", self.text, (*SIGNED, *ACCOUNT))
        _only("key", self.key, ACCOUNT)
        return self


class Auth(StrictModel):
    """What every request carries so that the shop knows who asks."""

    basic: bool = False
    headers: dict[str, str] = Field(default_factory=dict)
    query: dict[str, str] = Field(default_factory=dict)
    oauth2: OAuth2 | None = None
    sign: Sign | None = None
    timestamp: str = (
        "epoch"  # form of {timestamp}: epoch, epoch_ms, iso, or a strftime pattern in the zone of the options
    )

    @model_validator(mode="after")
    def _judge(self) -> "Auth":
        known = [*ACCOUNT, "timestamp", "nonce"]
        known += ["token"] if self.oauth2 else []
        known += ["signature"] if self.sign else []
        for place in ("headers", "query"):
            for name, text in getattr(self, place).items():
                _only(f"{place}.{name}", text, known)
        used = [*self.headers.values(), *self.query.values()]
        if self.sign and not any("{signature}" in text for text in used):
            raise ValueError("sign: no header and no query parameter has {signature}; say where it goes")
        return self


class WindowRule(StrictModel):
    """How {start} and {end} of a stream are written."""

    format: str = "iso"  # epoch, epoch_ms, iso, or a strftime pattern in the zone of the table
    start: Literal["inclusive", "exclusive"] = "inclusive"
    end: Literal["inclusive", "exclusive"] = "exclusive"
    days: float = Field(default=30, gt=0, le=3650)  # the longest window the API takes
    by: Literal["modified", "created"] = "modified"  # what the API's filter means
    oldest_days: float | None = Field(default=None, gt=0)  # the API shows nothing older
    lag_minutes: float = Field(default=0, ge=0, le=1440)  # a change shows only so long after it happened


class Paging(StrictModel):
    """How to get from one page to the next. `parameter` and `size_parameter` go into the body where there is one."""

    kind: Literal["none", "page", "offset", "cursor", "link", "next_url"]
    parameter: str | None = None  # page, offset, cursor
    first: int = Field(default=1, ge=0, le=1)  # number of the first page
    size_parameter: str | None = None
    size: int = Field(default=100, ge=1, le=10_000)
    next: str | None = None  # cursor, next_url: path in the answer, or header:<name>
    more: str | None = None  # path of a yes or no: are there more pages
    alone: bool = False  # cursor: later pages take the cursor and the size, and nothing else

    @model_validator(mode="after")
    def _judge(self) -> "Paging":
        wanted = {
            "page": ("parameter",),
            "offset": ("parameter",),
            "cursor": ("parameter", "next"),
            "next_url": ("next",),
        }
        for name in wanted.get(self.kind, ()):
            if getattr(self, name) is None:
                raise ValueError(f"{name}: paging by {self.kind} needs it")
        if self.kind in ("page", "offset") and self.size_parameter is None and "size" not in self.model_fields_set:
            raise ValueError("size: say how many rows a page has, or which size_parameter asks for a number of them")
        return self


class Errors(StrictModel):
    """Errors inside HTTP 200: the path of a code, and what its values mean. Unknown codes are refusals."""

    code: str
    ok: tuple[str, ...] = Field(default=("0",))  # compared as texts
    auth: tuple[str, ...] = ()  # a person must act
    token: tuple[str, ...] = ()  # the token is not good any more: a new one is fetched
    limit: tuple[str, ...] = ()  # too many calls
    wait: str | None = None  # path of the seconds that a limit lasts
    busy: tuple[str, ...] = ()  # passes
    missing: tuple[str, ...] = ()  # the thing does not exist

    @model_validator(mode="before")
    @classmethod
    def _codes_are_text(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        names = ("ok", "auth", "token", "limit", "busy", "missing")
        return value | {
            name: tuple(_text(code) for code in _listed(value[name])) for name in names if value.get(name) is not None
        }


def _listed(value: object) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


class Detail(StrictModel):
    """A call per row that gives the whole of it."""

    path: str  # with {key}
    query: dict[str, str | int | bool] = Field(default_factory=dict)
    record: str = ""  # path of the row in the answer

    @model_validator(mode="after")
    def _judge(self) -> "Detail":
        if "{key}" not in self.path + " ".join(str(value) for value in self.query.values()):
            raise ValueError("path: it has no {key}, so every row would get the same answer")
        return self


class Part(Table):
    """Lines or payments inside an order: `records` is their path below it, [] walks a list."""

    records: str


class Endpoint(Table):
    """A list of the API and what its rows are."""

    method: Literal["GET", "POST"] = "GET"
    path: str = Field(pattern=r"^/")
    query: dict[str, str | int | bool] = Field(default_factory=dict)
    headers: dict[str, str] = Field(default_factory=dict)
    body: dict[str, Any] | None = None  # JSON
    form: dict[str, str | int | bool] | None = None
    records: str = ""  # path of the rows in the answer, [] walks a list; "" = the answer is the list
    total: str | None = None  # path of the number of all rows, or header:<name>
    window: WindowRule | None = None  # unset: the whole list every time
    paging: Paging = Paging(kind="none")
    detail: Detail | None = None

    @model_validator(mode="after")
    def _judge(self) -> "Endpoint":
        if self.body is not None and self.form is not None:
            raise ValueError("body and form: a request has one of them")
        if self.method == "GET" and (self.body is not None or self.form is not None):
            raise ValueError("method: a request with a body or a form is a POST")
        texts = [*_texts(self.query), *_texts(self.body or {}), *_texts(self.form or {}), self.path]
        for text in texts:
            _only("path, query, body or form", text, (*WINDOW, *ACCOUNT))
        for name, text in self.headers.items():
            _only(f"headers.{name}", text, ACCOUNT)
        has_window = any(f"{{{name}}}" in text for text in texts for name in WINDOW)
        if has_window and self.window is None:
            raise ValueError("window: {start} or {end} is used; say how instants are written")
        if self.window is not None and not has_window:
            raise ValueError("window: neither {start} nor {end} is used in path, query, body or form")
        if self.keep == "*":
            raise ValueError("keep: name the fields; what nobody looked at may hold personal values")
        return self


class Orders(Endpoint):
    """The list of orders."""

    lines: Part | Literal["none"]  # none: the API has no lines, each order becomes one line of an unknown article
    payments: Part | None = None


class Tables(StrictModel):
    """What the API can give."""

    orders: Orders | None = None
    refunds: Endpoint | None = None
    reviews: Endpoint | None = None
    customers: Endpoint | None = None
    products: Endpoint | None = None


class Options(Formats):
    """The block `options:` of a source."""

    auth: Auth = Auth()
    headers: dict[str, str] = Field(default_factory=dict)
    errors: Errors | None = None
    tables: Tables

    @model_validator(mode="after")
    def _judge(self) -> "Options":
        if not self.named():
            raise ValueError("tables: at least one of " + ", ".join(declared.TABLES))
        for name, table in self.named():
            judge(name, table, f"tables.{name}")
            if table.columns[declared.ENTITIES[name].key].column is None:
                raise ValueError(f"tables.{name}.columns: {declared.ENTITIES[name].key} needs a path, not a constant")
            for part, block in parts_of(table):
                judge(part, block, f"tables.{name}.{part}")
        return self

    def named(self) -> list[tuple[str, Endpoint]]:
        """The declared tables by the name of their stream."""
        found = ((name, getattr(self.tables, name)) for name in declared.TABLES)
        return [(name, table) for name, table in found if table is not None]


def parts_of(table: Endpoint) -> list[tuple[str, Part]]:
    """Lines and payments of an orders table, as far as it has them."""
    if not isinstance(table, Orders):
        return []
    parts = [("lines", table.lines), ("payments", table.payments)]
    return [(name, block) for name, block in parts if isinstance(block, Part)]


# ------------------------------------------------------------------------------------------------------------ paths
@dataclass(frozen=True)
class Place:
    """A value inside an answer, and the element of a list (or the whole answer) that it stands in."""

    value: Any
    parent: "Place | None" = None


def places(start: Place, path: str) -> Iterator[Place]:
    """Every value at a path: `a.b`, `a[].b` for each element of a list, `a.0.b` for one of them, `../b` one element up."""
    while path.startswith("../"):
        path = path[3:]
        if start.parent is None:
            return
        start = start.parent
    yield from _walk(start.value, start, [part for part in path.split(".") if part])


def _walk(value: Any, owner: Place, parts: Sequence[str]) -> Iterator[Place]:
    if not parts:
        yield owner if value is owner.value else Place(value, owner)
        return
    name = parts[0].removesuffix("[]")
    if isinstance(value, list) and name.isdigit():
        value = value[int(name)] if int(name) < len(value) else None
    elif name:
        value = value.get(name) if isinstance(value, dict) else None
    if parts[0].endswith("[]"):
        for item in value if isinstance(value, list) else ():
            yield from _walk(item, Place(item, owner), parts[1:])
    elif value is not None:
        yield from _walk(value, owner, parts[1:])


def value_at(place: Place, path: str) -> Any:
    """The first value at a path that is not empty; None when there is none."""
    return next((found.value for found in places(place, path) if found.value not in (None, "")), None)


def rows_at(answer: Any, path: str) -> list[Place] | None:
    """The rows at a path, of one list or of several; None when there is no list."""
    rows: list[Place] = []
    found = list(places(Place(answer), path))
    for place in found:
        if isinstance(place.value, list):
            owner = place.parent or place
            rows += [Place(item, owner) for item in place.value]
        else:
            rows.append(place)
    if not found and "[]" not in path:
        return None
    return rows


# ----------------------------------------------------------------------------------------------------------- client
def fill(text: str, values: Mapping[str, object], encode: Callable[[str], str] = lambda part: part) -> str:
    """A template with what stands in braces filled in; what is not known stays as it is."""
    return PLACEHOLDER.sub(lambda found: encode(str(values[found[1]])) if found[1] in values else found[0], text)


def fill_all(value: Any, values: Mapping[str, object]) -> Any:
    """A template of a body: texts are filled in; a text that is one placeholder becomes its value, a number a number."""
    if isinstance(value, dict):
        return {name: fill_all(part, values) for name, part in value.items()}
    if isinstance(value, list):
        return [fill_all(part, values) for part in value]
    if not isinstance(value, str):
        return value
    alone = PLACEHOLDER.fullmatch(value)
    return values[alone[1]] if alone and alone[1] in values else fill(value, values)


def to_text(instant: datetime, form: str, zone: ZoneInfo) -> str | int:
    """An instant as an API wants it: epoch, epoch_ms, iso (UTC, with an offset), or a strftime pattern in `zone`."""
    if form == "epoch":
        return int(instant.timestamp())
    if form == "epoch_ms":
        return int(instant.timestamp() * 1000)
    if form == "iso":
        return instant.astimezone(UTC).isoformat(timespec="seconds")
    return instant.astimezone(zone).strftime(form)


def escape(text: str) -> str:
    return quote(text, safe="-._~")


@dataclass
class Asked:
    """One request before it is authorised."""

    name: str  # of the call in sentences: the template of its path, which holds no secret and no id
    method: str
    path: str  # below the shop's address
    query: list[tuple[str, str]]
    headers: dict[str, str]
    body: dict[str, Any] | None = None
    form: dict[str, Any] | None = None

    def content(self) -> bytes:
        if self.body is not None:
            return orjson.dumps(self.body)
        if self.form is not None:
            return "&".join(f"{escape(name)}={escape(_text(value))}" for name, value in self.form.items()).encode()
        return b""


@dataclass(frozen=True)
class Client:
    """Authorised requests as the options declare them. Raises the typed errors of platforms.base."""

    base_url: str
    account: Mapping[str, str] = field(repr=False)  # login, password, extra.<name>
    options: Options
    transport: Transport
    page_sizes: Mapping[str, int]

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.options.zone or "Asia/Shanghai")

    def ask(self, asked: Asked, page: object = None) -> tuple[Any, Answer]:
        """The JSON of one request and the answer it came in, retried while that makes sense; a refused token once more."""
        if self.options.auth.oauth2 is None:
            return self.transport.retry(lambda: self._ask_once(asked, page, ""))
        token = self._token("")
        try:
            return self.transport.retry(lambda: self._ask_once(asked, page, token))
        except _BadToken:
            token = self._token(token)
            return self.transport.retry(lambda: self._ask_once(asked, page, token))

    def _ask_once(self, asked: Asked, page: object, token: str) -> tuple[Any, Answer]:
        content = asked.content()
        query, headers = self._authorised(asked, content, token)
        if asked.body is not None:
            headers["Content-Type"] = "application/json"
        elif asked.form is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        url = self.base_url + asked.path + (f"?{_joined(query)}" if query else "")
        answer = self.transport.fetch_full(asked.method, url, method=asked.name, headers=headers, data=content or None)
        self._judge_status(asked.name, answer.status)
        parsed = parse_json(NAME, asked.name, answer.body, page)
        self._judge_code(asked.name, parsed)
        return parsed, answer

    # -- authorisation
    def _authorised(self, asked: Asked, content: bytes, token: str) -> tuple[list[tuple[str, str]], dict[str, str]]:
        auth = self.options.auth
        values: dict[str, object] = {**self.account, "token": token, "nonce": secrets.token_hex(16)}
        values["timestamp"] = to_text(dates.now(), auth.timestamp, self.zone)
        unsigned = {name: fill(text, values) for name, text in auth.query.items() if "{signature}" not in text}
        query = [*asked.query, *unsigned.items()]
        if auth.sign:
            values["signature"] = signature(auth.sign, values, asked, query, content, urlsplit(self.base_url).path)
        signed = {name: fill(text, values) for name, text in auth.query.items() if "{signature}" in text}
        headers = {"Accept": "application/json", **self.options.headers, **asked.headers}
        headers |= {name: fill(text, values) for name, text in auth.headers.items()}
        if auth.basic:
            pair = f"{self.account.get('login', '')}:{self.account.get('password', '')}"
            headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
        if auth.oauth2 and not any("{token}" in text for text in (*auth.headers.values(), *auth.query.values())):
            headers["Authorization"] = f"Bearer {token}"
        return [*query, *signed.items()], headers

    def _token(self, bad: str) -> str:
        return self.transport.tokens.get("access", lambda _: self._new_token(), bad=bad).value

    def _new_token(self) -> Token:
        rule = self.options.auth.oauth2
        assert rule is not None
        login, password = self.account.get("login", ""), self.account.get("password", "")
        form = {"grant_type": "client_credentials"} | ({"scope": rule.scope} if rule.scope else {})
        headers = {"Accept": "application/json"}
        if rule.client_auth == "basic":
            pair = base64.b64encode(f"{escape(login)}:{escape(password)}".encode()).decode()
            headers["Authorization"] = f"Basic {pair}"
        else:
            form |= {"client_id": login, "client_secret": password}
        url = self.base_url + rule.token_url if rule.token_url.startswith("/") else rule.token_url

        def once() -> Any:
            status, body = self.transport.fetch("POST", url, method="token", headers=headers, data=form)
            if status in (400, 401, 403):  # RFC 6749 answers a wrong secret with 400 or 401
                raise AuthError(
                    NAME,
                    "token",
                    f"HTTP {status}: no token is given; check login (client id) and password (client secret)",
                )
            if status != 200:
                raise Refused(NAME, "token", f"HTTP {status}: no token is given; check auth.oauth2.token_url")
            return parse_json(NAME, "token", body)

        content = self.transport.retry(once)
        value = content.get("access_token") if isinstance(content, dict) else None
        if not isinstance(value, str) or not value:
            raise BadPayload(NAME, "token", "the answer has no access_token")
        seconds = content.get("expires_in")
        good_for = float(seconds) if str(seconds).replace(".", "", 1).isdigit() else TOKEN_SECONDS
        return Token(value, dates.now() + timedelta(seconds=good_for))

    # -- errors
    def _judge_status(self, method: str, status: int) -> None:
        if status == 200:
            return
        if status == 401 and self.options.auth.oauth2:
            raise _BadToken(
                NAME, method, "HTTP 401: the token is refused, also a new one; check what the account may read"
            )
        if status in (401, 403):
            raise AuthError(
                NAME,
                method,
                f"HTTP {status}: the shop refuses the account; check the connection and auth in the options",
            )
        if status == 404:
            raise NotFound(
                NAME,
                method,
                "HTTP 404: there is nothing at this path; check host of the connection and path in the options",
            )
        if 300 <= status < 400:
            raise Refused(
                NAME,
                method,
                f"HTTP {status}: the shop answers from another address; put that into host of the connection",
            )
        raise Refused(NAME, method, f"HTTP {status}: the request is refused")

    def _judge_code(self, method: str, parsed: Any) -> None:
        rule = self.options.errors
        if rule is None:
            return
        value = value_at(Place(parsed), rule.code)
        code = "" if value is None else _text(value)
        if value is None or code in rule.ok:
            return
        said = f"code {code[:40]}"
        if code in rule.token and self.options.auth.oauth2:
            raise _BadToken(NAME, method, f"{said}: the token is refused, also a new one")
        if code in (*rule.auth, *rule.token):
            raise AuthError(
                NAME, method, f"{said}: the shop refuses the account; check the connection and auth in the options"
            )
        if code in rule.limit:
            told = value_at(Place(parsed), rule.wait) if rule.wait else None
            wait = float(str(told)) if re.fullmatch(r"\d{1,6}(\.\d+)?", str(told)) else DEFAULT_WAIT
            self.transport.pause(wait)
            raise RateLimited(NAME, method, f"{said}: too many calls; next one in {wait:.0f} s", retry_after=wait)
        if code in rule.busy:
            raise PlatformDown(NAME, method, f"{said}: the shop is busy")
        if code in rule.missing:
            raise NotFound(NAME, method, f"{said}: it does not exist")
        raise Refused(NAME, method, f"{said}: the request is refused")

    # -- lists
    def size(self, name: str, table: Endpoint) -> int:
        """How many rows to ask for on a page; tests make it small, where the API lets itself be asked."""
        if table.paging.size_parameter is None:
            return table.paging.size
        return min(self.page_sizes.get(name, self.page_sizes.get("*", table.paging.size)), table.paging.size)

    def asked(self, table: Endpoint, values: Mapping[str, object], paging: Mapping[str, object]) -> Asked:
        """A request for one page: templates filled in, paging parameters added where they belong."""
        values = {**self.account, **values}
        query = {name: fill(_text(value), values) for name, value in table.query.items()}
        body, form = fill_all(table.body, values), fill_all(table.form, values)
        if body is not None:
            body = body | paging
        elif form is not None:
            form = form | paging
        else:
            query |= {name: _text(value) for name, value in paging.items()}
        headers = {name: fill(value, values) for name, value in table.headers.items()}
        path = fill(table.path, values, escape)
        return Asked(table.path, table.method, path, list(query.items()), headers, body, form)

    def alone(self, table: Endpoint, paging: Mapping[str, object]) -> Asked:
        """A later page whose cursor says everything."""
        return self.asked(
            table.model_copy(update={"query": {}, "body": table.body and {}, "form": table.form and {}}), {}, paging
        )

    def follow(self, table: Endpoint, link: str) -> Asked:
        """The request that an answer's address of the next page means. Raises BadPayload when it leaves the shop."""
        url = urlsplit(urljoin(self.base_url + table.path, link))
        base = urlsplit(self.base_url)
        if (url.scheme, url.netloc) != (base.scheme, base.netloc):
            raise BadPayload(NAME, table.path, "the next page lies on another host; it is not followed")
        own = set(self.options.auth.query)
        query = [pair for pair in parse_qsl(url.query, keep_blank_values=True) if pair[0] not in own]
        path = url.path.removeprefix(base.path) if base.path and url.path.startswith(base.path + "/") else url.path
        if path == url.path and base.path:
            raise BadPayload(NAME, table.path, "the next page lies outside of the shop's address; it is not followed")
        path = quote(path, safe="/%:@!$&'()*+,;=~-._")
        return Asked(table.path, table.method, path, query, dict(table.headers), table.body, table.form)


class _BadToken(AuthError):
    """The access token is refused; a new one may work."""


def _joined(query: Sequence[tuple[str, str]]) -> str:
    return "&".join(f"{escape(name)}={escape(value)}" for name, value in query)


def signature(
    rule: Sign,
    values: Mapping[str, object],
    asked: Asked,
    query: Sequence[tuple[str, str]],
    content: bytes,
    prefix: str = "",
) -> str:
    """The signature of a request. `sorted_*` hold the query and the form, sorted by name, values as they are."""
    pairs = sorted([*query, *((name, _text(value)) for name, value in (asked.form or {}).items())])
    known = {
        **values,
        "method": asked.method,
        "path": prefix + asked.path,
        "query": _joined(query),
        "sorted_query": "&".join(f"{name}={value}" for name, value in pairs),
        "sorted_pairs": "".join(f"{name}{value}" for name, value in pairs),
        "body": content.decode("utf-8"),
        "body_md5": hashlib.md5(content, usedforsecurity=False).hexdigest(),
        "body_sha256": hashlib.sha256(content).hexdigest(),
    }
    text = fill(rule.text, known).encode()
    algorithm = rule.digest.removeprefix("hmac-")
    if rule.digest.startswith("hmac-"):
        raw = hmac.new(fill(rule.key, known).encode(), text, algorithm).digest()
    else:
        raw = hashlib.new(algorithm, text, usedforsecurity=False).digest()
    if rule.encoding == "base64":
        return base64.b64encode(raw).decode()
    return raw.hex().upper() if rule.encoding == "HEX" else raw.hex()


def connect(
    credentials: Credentials, transport: Transport, *, options: Options, page_sizes: Mapping[str, int] | None = None
) -> Client:
    """A client of the shop. Raises ConfigError when the connection lacks something that the options use."""
    if urlsplit(credentials.host).scheme not in ("http", "https"):
        raise ConfigError(f"connection {credentials.conn_id!r}: host (the shop's address, https://...) is missing.")
    account = {"login": credentials.login, "password": credentials.password}
    account |= {f"extra.{name}": str(value) for name, value in credentials.extra.items()}
    for name in sorted(_used(options)):
        if not account.get(name):
            raise ConfigError(
                f"connection {credentials.conn_id!r}: {name} is missing; the options of the source use it."
            )
    return Client(credentials.host.rstrip("/"), account, options, transport, page_sizes or {})


def _used(options: Options) -> set[str]:
    """What of the connection the options need."""
    auth = options.auth
    texts = [*auth.headers.values(), *auth.query.values()]
    texts += [auth.sign.text] if auth.sign else []
    texts += [auth.sign.key] if auth.sign and auth.sign.digest.startswith("hmac-") else []
    for _, table in options.named():
        texts += [*_texts(table.query), *_texts(table.body or {}), *_texts(table.form or {}), table.path]
        texts += [*table.headers.values(), *_texts(table.detail.query if table.detail else {})]
    names = {name for text in texts for name in PLACEHOLDER.findall(text)}
    used = {name for name in names if name in ACCOUNT or name.startswith("extra.")}
    return used | ({"login", "password"} if auth.basic or auth.oauth2 else set())


# ------------------------------------------------------------------------------------------------------------ lists
class Feed:
    """One declared list: how it is read, and what its rows become."""

    def __init__(self, name: str, table: Endpoint, options: Options) -> None:
        self.name, self.table = name, table
        self.entity = declared.ENTITIES[name]
        self.reader = Reader(name, table, options)
        self.parts = {part: (block, Reader(part, block, table, options)) for part, block in parts_of(table)}
        self.zone = ZoneInfo(table.zone or options.zone or "Asia/Shanghai")
        self._list, _, self._below = table.records.partition("[]")  # what pages are cut from; the rows inside of it
        column = table.columns[self.entity.key].column
        assert column is not None
        self._key = column

    def key(self, row: Place) -> str | None:
        """The row's own name, as the API writes it."""
        value = value_at(row, self._key)
        return None if value is None else str(value)

    # -- pages
    def pages(self, client: Client, window: Window | None) -> Iterator[list[Any]]:
        """Everything of the window (or the whole list), as often as it takes until nothing can be missing."""

        def rows(answer: Any, page: object) -> list[Any]:
            read = rows_at(answer, self._list)
            if read is None:
                raise BadPayload(NAME, self.table.path, f"page {page} has no list at {self._list or 'its top'}")
            return [{"": place} for place in read]  # paging knows rows as dicts; what stands around a row goes with it

        for page in self._settled(client, window, rows, lambda row: self._page_key(row[""])):
            yield [self.record(client, place) for row in page for place in self._inside(row[""])]

    def _page_key(self, row: Place) -> str | None:
        """What tells an element of a page from the others: its id, or all of it when the rows lie inside."""
        return hashlib.sha256(orjson.dumps(row.value)).hexdigest() if self._below else self.key(row)

    def _inside(self, row: Place) -> Iterator[Place]:
        return _part_rows(row, self._below) if self._below else iter((row,))

    def _settled(
        self,
        client: Client,
        window: Window | None,
        rows: Callable[[Any, object], list[Any]],
        key: Callable[[Any], str | None],
    ) -> Iterator[list[Any]]:
        table, paging, path = self.table, self.table.paging, self.table.path
        values = self.values(window)
        size = client.size(self.name, table)
        counted: list[int | None] = [None]

        def one(extra: Mapping[str, object], page: object) -> tuple[int | None, list[Any], Any, Answer]:
            sized = {paging.size_parameter: size} if paging.size_parameter else {}
            answer, full = client.ask(client.asked(table, values, {**sized, **extra}), page)
            counted[0] = self.total(answer, full)
            return counted[0], rows(answer, page), answer, full

        def numbered(number: int) -> tuple[int | None, list[Any], Any, Answer]:
            assert paging.parameter is not None
            at = number - 1 + paging.first if paging.kind == "page" else (number - 1) * size
            return one({paging.parameter: at}, number)

        def counted_page(number: int) -> tuple[int, list[Any]]:
            total, found, _, _ = numbered(number)
            if total is None:
                raise BadPayload(NAME, path, f"page {number} has no number of rows at {table.total}")
            return total, found

        def forward() -> Iterator[list[Any]]:
            number = 1
            before: list[str | None] = []
            while True:
                _, found, answer, _ = numbered(number)
                names = [key(row) for row in found]
                if names and names == before:
                    problem = f"page {number} is page {number - 1} again; does the API know {paging.parameter!r}?"
                    raise BadPayload(NAME, path, problem)
                before = names
                yield found
                more = _is_more(answer, paging.more)
                if not (len(found) >= size if more is None else more):
                    return
                number += 1

        if paging.kind in ("page", "offset"):
            if table.total is not None:
                return walk_back(NAME, path, counted_page, size, key)
            return settled(NAME, path, forward, key, shifts=True)
        return settled(
            NAME,
            path,
            lambda: self._chain(client, one, rows, size),
            key,
            total=lambda: counted[0] if table.total else None,
        )

    def _chain(
        self,
        client: Client,
        one: Callable[[Mapping[str, object], object], tuple[int | None, list[Any], Any, Answer]],
        rows: Callable[[Any, object], list[Any]],
        size: int,
    ) -> Iterator[list[Any]]:
        """Pages each of which names the next one."""
        table, paging = self.table, self.table.paging
        sized: dict[str, object] = {paging.size_parameter: size} if paging.size_parameter else {}
        _, found, answer, full = one({}, 1)
        seen: set[str] = set()
        while True:
            yield found
            following = self._next(answer, full)
            if following is None:
                return
            if following in seen:
                raise BadPayload(NAME, table.path, f"page {len(seen) + 1} leads back to an earlier page")
            seen.add(following)
            if paging.kind == "cursor":
                assert paging.parameter is not None
                if not paging.alone:
                    _, found, answer, full = one({paging.parameter: following}, len(seen) + 1)
                    continue
                asked = client.alone(table, {**sized, paging.parameter: following})
            else:
                asked = client.follow(table, following)
            answer, full = client.ask(asked, len(seen) + 1)
            found = rows(answer, len(seen) + 1)

    def _next(self, answer: Any, full: Answer) -> str | None:
        """The cursor or address of the next page, None at the end."""
        paging = self.table.paging
        if paging.kind == "none" or _is_more(answer, paging.more) is False:
            return None
        if paging.kind == "link":
            found = NEXT_LINK.search(full.headers.get("Link", ""))
            return found[1] if found else None
        assert paging.next is not None
        value = _said(answer, full, paging.next)
        return None if value in (None, "", False, 0, "0") else str(value)

    def total(self, answer: Any, full: Answer) -> int | None:
        """How many rows the list has, as the API counts them."""
        if self.table.total is None:
            return None
        value = _said(answer, full, self.table.total)
        text = str(value)
        return int(text) if text.isdigit() else None

    def values(self, window: Window | None) -> dict[str, object]:
        """{start} and {end} of a window, written as the API wants them."""
        rule = self.table.window
        if window is None or rule is None:
            return {}
        second = timedelta(seconds=1)  # ours is [start, end); theirs may leave the start out or take the end in
        start = window.start - second if rule.start == "exclusive" else window.start
        end = window.end - second if rule.end == "inclusive" else window.end
        return {"start": to_text(start, rule.format, self.zone), "end": to_text(end, rule.format, self.zone)}

    # -- rows
    def record(self, client: Client, row: Place) -> Record | Unusable:
        """The row as a record in our fields, completed by its detail call; Unusable says why it cannot be one."""
        name = self.key(row)
        if self.table.detail is not None and name is not None:
            row = self._detail(client, self.table.detail, name, row)
        if not isinstance(row.value, dict):
            return Unusable(f"the row is {type(row.value).__name__}, not an object", {})
        converted = self.reader.convert(_cells(self.reader, row), row.value)
        record, problems = converted.record, list(converted.problems)
        for kept, value in record.get("original", {}).items():
            if isinstance(value, dict | list):  # as text, so that addresses and numbers in it are found
                record["original"][kept] = orjson.dumps(value).decode()
        parts: dict[str, list[Record]] = {"lines": [], "payments": []}
        for part, (block, reader) in self.parts.items():
            for place in _part_rows(row, block.records):
                piece = reader.convert(_cells(reader, place))
                parts[part].append(piece.record)
                problems += [f"{part} {len(parts[part])}: {problem}" for problem in piece.problems]
        if not problems and isinstance(self.table, Orders):
            if self.table.lines == "none":
                amount = record.get("goods_amount") or record.get("paid_amount")
                parts["lines"] = [{"product_id": "unknown", "title": "unknown", "quantity": "1", "line_amount": amount}]
            problems = declared.complete_order(record, parts["lines"], parts["payments"])
        if problems:
            return Unusable("; ".join(problems), record, record.get(self.entity.key))
        return record

    def _detail(self, client: Client, detail: Detail, name: str, row: Place) -> Place:
        values = {**client.account, "key": name}
        query = [(key, fill(_text(value), values)) for key, value in detail.query.items()]
        asked = Asked(detail.path, "GET", fill(detail.path, values, escape), query, dict(self.table.headers))
        try:
            answer, _ = client.ask(asked)
        except NotFound:
            return row  # listed a moment ago, not served in full: what the list said is all there is
        found = next(places(Place(answer), detail.record), None)
        if found is None or not isinstance(found.value, dict):
            raise BadPayload(NAME, detail.path, f"the answer has no object at {detail.record or 'its top'}")
        return found

    # -- the stream
    def stream(self) -> Stream:
        rule = self.table.window
        personal, free_text = self.reader.personal(), list(self.reader.free_text())
        for part, (_, reader) in self.parts.items():
            personal |= reader.personal(f"{part}[].")
            free_text += reader.free_text(prefix=f"{part}[].")
        if rule is None:
            slices: Callable[[Any, Plan], Iterator[Slice]] = self._everything
            backfill = None
        else:
            largest = timedelta(days=rule.days)
            oldest = timedelta(days=rule.oldest_days) if rule.oldest_days else None
            slices = by_window(
                self._pages, part=rule.by, largest=largest, lag=timedelta(minutes=rule.lag_minutes), oldest=oldest
            )
            backfill = backfill_by_window(self._pages, part=rule.by, largest=largest)
        return Stream(
            name=self.name,
            key=(self.entity.key,),
            occurred_at=declared.occurred_at,
            slices=slices,
            backfill=backfill,
            personal=personal,
            free_text=tuple(free_text),
            overlap=timedelta(hours=1),
            window=timedelta(days=rule.days if rule else 30),
            priority={"orders": 1, "refunds": 1, "products": 3}.get(self.name, 2),
            required=(self.entity.key,),
        )

    def _pages(self, client: Client, window: Window) -> Iterator[Any]:
        return self.pages(client, window)

    def _everything(self, client: Client, plan: Plan) -> Iterator[Slice]:
        start = plan.cursors.get("", plan.until - plan.history)
        window = Window(min(start, plan.until - timedelta(seconds=1)), plan.until)
        yield Slice("snapshot", window, lambda: self.pages(client, None), {"": plan.until})


def _cells(reader: Reader, row: Place) -> Callable[[str], Any]:
    """The values of a row by path. Raises Unreadable for a declared field that is a whole object or list."""
    declared_paths = reader.columns()

    def cell(path: str) -> Any:
        value = value_at(row, path)
        if isinstance(value, dict | list) and path in declared_paths:
            raise Unreadable("is an object or a list, not one value; name a field inside of it")
        return value

    return cell


def _part_rows(row: Place, path: str) -> Iterator[Place]:
    """The elements of the list at a path, whether or not it ends with []."""
    for place in places(row, path):
        if isinstance(place.value, list):
            yield from (Place(item, place.parent) for item in place.value)
        else:
            yield place


def _said(answer: Any, full: Answer, where: str) -> Any:
    """What stands at a path of the answer, or in header:<name>."""
    if where.startswith("header:"):
        return full.headers.get(where.removeprefix("header:"))
    return value_at(Place(answer), where)


def _is_more(answer: Any, path: str | None) -> bool | None:
    """Whether the answer promises more; None when nothing says so."""
    if path is None:
        return None
    value = value_at(Place(answer), path)
    return value not in (None, False, 0, "0", "false", "no")


# ---------------------------------------------------------------------------------------------------------- streams
def feeds(options: Options) -> dict[str, Feed]:
    """What the options declare, by stream."""
    return {name: Feed(name, table, options) for name, table in options.named()}


def streams(options: Options) -> Mapping[str, Stream]:
    """One stream per declared table."""
    return {name: feed.stream() for name, feed in feeds(options).items()}


def _readable(feed: Feed, page: Sequence[Any]) -> None:
    """Raise Refused with the reason of the first row that the declaration cannot read."""
    bad = [row for row in page if isinstance(row, Unusable)]
    if bad:
        raise Refused(NAME, feed.table.path, f"{len(bad)} of {len(page)} rows cannot be used: {bad[0].reason}")


def check(client: Client, names: Sequence[str]) -> Check:
    """The first page of each stream's last hour, read and converted; what is refused or unreadable, in words."""
    end = dates.now().replace(microsecond=0)
    window = Window(end - timedelta(hours=1), end)
    known = feeds(client.options)

    def look(feed: Feed) -> Callable[[], object]:
        return lambda: _readable(feed, next(feed.pages(client, window if feed.table.window else None), []))

    problems = probe({name: look(known[name]) for name in names if name in known})
    return Check(f"the shop at {urlsplit(client.base_url).hostname}", client.transport.clock_offset, problems)
