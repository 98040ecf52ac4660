"""Our own pages behind the links of our messages: /r/ counts a click and leads on, /u/ ends messages, /s/ is a survey.

Nobody signs in here: a link is good when we signed it, and it says nothing but the key of a message or the number of a survey.
There is no session and no cookie, so nothing can be forged on somebody's behalf: who has the link has what it can do. What
people do becomes an event in raw.pushes, in the shape in which our pages have always told it (docs/connections/own_pages.md).
A link leads where the run's frozen configuration says, never where an address says (docs/decisions/0079-links.md).
"""

import logging
import re
import secrets
import unicodedata
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote

import orjson
import psycopg
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from nightmarket import dates
from nightmarket.campaigns.config import ChannelsFile, channels_path, load_channels
from nightmarket.campaigns.rendering import link_key, signed_link
from nightmarket.channels.registry import CHANNELS
from nightmarket.console.receiver import Connection, Receiver, Threads, read_body
from nightmarket.platforms.base import Push
from nightmarket.settings import ConfigError
from nightmarket.sources import load_sources

BODY_BYTES = 16 * 1024  # a comment of 1,000 Chinese characters is 9 KB in a form
COMMENT_CHARACTERS = 1000
FORM_FIELDS = 10
SCORES = range(1, 6)
# Programs that open links before people do: mail gateways, chat previews, crawlers. They are led on, and not counted.
SCANNER = re.compile(
    r"bot\b|crawl|spider|scan|preview|prefetch|proofpoint|mimecast|barracuda|safelinks|monitor|headless|curl|wget|python|java/|go-http|okhttp",
    re.IGNORECASE,
)
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Robots-Tag": "noindex, nofollow",
}
log = logging.getLogger(__name__)


class Link(NamedTuple):
    """What push.link_of says of a message."""

    channel: str
    purpose: str
    language: str
    is_group: bool
    landing_url: str | None
    survey_id: int | None


class Pages:
    """What the routes do, in a thread each. The receiver's login reads no table: it asks functions of the schema push."""

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver

    def follow(self, key: str, is_person: bool) -> str:
        """Where the link of a message leads; a person's click is kept."""

        def work(connection: Connection) -> Link | None:
            link = _link(connection, key)
            if link and is_person:
                # one person's message: once a minute, however often it is tapped; a mass send has one link for everybody
                mark = secrets.token_hex(8) if link.is_group else _minute()
                self._keep(connection, "click", f"click/{key}/{mark}", {"key": key})
            return link

        link = self.receiver.run(work)
        if link and link.survey_id is not None:
            return signed_link(_channels().link_base_url, "s", str(link.survey_id))
        return (link and link.landing_url) or _channels().home_url

    def message(self, key: str) -> Link | None:
        """What is known of a message."""
        return self.receiver.run(partial(_link, key=key))

    def withdraw(self, key: str) -> Link | None:
        """The person of a message gets no more like it, from now on. None: nobody can be told from this link."""

        def work(connection: Connection) -> Link | None:
            link = _link(connection, key)
            if link is None or link.is_group:
                return None
            event, now, family = f"unsubscribe/{key}/{_minute()}", dates.now(), CHANNELS[link.channel].family
            connection.execute(
                "SELECT push.withdraw(%s, %s, %s, %s, %s)", (pages_source(), event, key, family, now)
            ).fetchone()
            self._keep(
                connection, "unsubscribe", event, {"key": key, "channel": link.channel if family == "wechat" else family, "purpose": link.purpose}
            )  # fmt: skip
            return link

        return self.receiver.run(work)

    def survey(self, number: int) -> tuple[str, str]:
        """(state, language) of a survey: open, used, expired, or gone."""
        row = self.receiver.run(partial(_survey, number=number))
        if row is None:
            return "gone", ""
        _message, language, expires_at, answered_at = row
        if answered_at is not None:
            return "used", language
        return ("open" if dates.now() < expires_at else "expired"), language

    def answer(self, number: int, score: int, comment: str) -> None:
        """Keep the answer to a survey, unless it was used up or expired meanwhile."""

        def work(connection: Connection) -> None:
            row = connection.execute("SELECT push.answer_survey(%s, %s)", (number, dates.now())).fetchone()
            found = _survey(connection, number)
            if row and row[0] and found:
                data = {"key": found[0], "score": score, "comment": comment}
                self._keep(connection, "survey", f"survey/{number}", data)

        self.receiver.run(work)

    def _keep(self, connection: Connection, kind: str, event: str, data: dict[str, Any]) -> None:
        body = {"event_id": event, "kind": kind, "received_at": dates.now().isoformat(), "data": data}
        self.receiver.store(connection, pages_source(), [Push(event, orjson.dumps(body))])


def pages_source() -> str:
    """The source our own pages tell their events under. Raises ConfigError when sources.yaml has none."""
    for source_id, config in load_sources().items():
        if config.platform == "own_pages":
            return source_id
    raise ConfigError(
        "sources.yaml has no source of platform own_pages: what people do on our pages could not be kept."
    )


def create_router(receiver: Receiver) -> APIRouter:
    """The routes of our pages. Statuses: 200, 302, 400, 404 (not signed by us), 413, 503 (try again)."""
    router, pages, threads = APIRouter(), Pages(receiver), Threads()

    async def guarded(request: Request, work: Callable[[], Response]) -> Response:
        """`work`, or a page that asks to try again; what went wrong stands in the log, never on the page."""
        try:
            return await threads(work)
        except (TimeoutError, ConfigError, psycopg.Error) as error:
            # an error of the database may name hosts and values; ours is a sentence
            log.error("a page was not served: %s", error if isinstance(error, ConfigError) else type(error).__name__)
            return _page(request, "again", status=503)

    @router.api_route("/r/{key:path}", methods=["GET", "HEAD"])
    async def follow(request: Request, key: str, s: str = "") -> Response:
        def work() -> Response:
            if not _is_ours("r", key, s):
                return _page(request, "unknown", status=404)
            try:
                return RedirectResponse(pages.follow(key, _is_person(request)), 302, _redirect_headers())
            except psycopg.Error as error:  # a click is lost, the person is not
                log.error("a click was not kept: %s", type(error).__name__)
                return RedirectResponse(_channels().home_url, 302, _redirect_headers())

        return await guarded(request, work)

    @router.api_route("/u/{key:path}", methods=["GET", "HEAD"])
    async def ask_to_leave(request: Request, key: str, s: str = "") -> Response:
        def work() -> Response:  # opening the page changes nothing: scanners open every link
            if not _is_ours("u", key, s):
                return _page(request, "unknown", status=404)
            link = pages.message(key)
            if link is None:
                return _page(request, "unknown", status=404)
            return _page(request, "group" if link.is_group else "leave", link.language)

        return await guarded(request, work)

    @router.post("/u/{key:path}")
    async def leave(request: Request, key: str, s: str = "") -> Response:
        # the button of the page, and what mail programs send by themselves (RFC 8058); the signed address is the whole request
        if await read_body(request, BODY_BYTES) is None:
            return _page(request, "unknown", status=413)

        def work() -> Response:
            if not _is_ours("u", key, s):
                return _page(request, "unknown", status=404)
            link = pages.withdraw(key)
            return _page(request, "left", link.language) if link else _page(request, "group")

        return await guarded(request, work)

    @router.api_route("/s/{number}", methods=["GET", "HEAD"])
    async def show_survey(request: Request, number: str, s: str = "") -> Response:
        def work() -> Response:
            if not _is_ours("s", number, s):
                return _page(request, "unknown", status=404)
            state, language = pages.survey(int(number))
            return _page(request, *_survey_page(state, language), status=404 if state == "gone" else 200)

        return await guarded(request, work)

    @router.post("/s/{number}")
    async def take_survey(request: Request, number: str, s: str = "") -> Response:
        body = await read_body(request, BODY_BYTES)
        if body is None:
            return _page(request, "unknown", status=413)

        def work() -> Response:
            if not _is_ours("s", number, s):
                return _page(request, "unknown", status=404)
            state, language = pages.survey(int(number))
            if state != "open":
                return _page(request, *_survey_page(state, language), status=404 if state == "gone" else 200)
            score, comment = _form(body)
            if score is None:
                return _page(request, "survey", language, status=400, problem=True)
            pages.answer(int(number), score, comment)
            return _page(request, *_survey_page(*pages.survey(int(number))))  # used: by this answer, or by a faster one

        return await guarded(request, work)

    return router


def _survey_page(state: str, language: str) -> tuple[str, str]:
    return {"open": "survey", "used": "thanks", "expired": "expired", "gone": "unknown"}[state], language


def _is_ours(kind: str, key: str, signature: str) -> bool:
    return link_key(f"/{kind}/{quote(key, safe='')}", signature) is not None


def _is_person(request: Request) -> bool:
    """A GET that no program says it made. Who says nothing of themselves is a program."""
    headers = request.headers
    if request.method != "GET" or "prefetch" in (headers.get("purpose", "") + headers.get("sec-purpose", "")).lower():
        return False
    agent = headers.get("user-agent", "")
    return bool(agent) and not SCANNER.search(agent)


def _link(connection: Connection, key: str) -> Link | None:
    row = connection.execute("SELECT * FROM push.link_of(%s)", (key,)).fetchone()
    return Link(*row) if row else None  # type: ignore[arg-type]


def _survey(connection: Connection, number: int) -> tuple[Any, ...] | None:
    return connection.execute("SELECT * FROM push.survey_of(%s)", (number,)).fetchone()


def _minute() -> str:
    return f"{dates.now():%Y%m%dT%H%M}"


def _form(body: bytes) -> tuple[int | None, str]:
    """(score, comment) of a posted survey; no score when there is none, or none of ours."""
    try:
        fields = parse_qs(body.decode("utf-8", "replace"), max_num_fields=FORM_FIELDS)
    except ValueError:
        return None, ""
    score = fields.get("score", [""])[0]
    comment = unicodedata.normalize("NFC", fields.get("comment", [""])[0])
    comment = "".join(" " if unicodedata.category(character).startswith("C") else character for character in comment)
    return (int(score) if score in map(str, SCORES) else None), " ".join(comment.split())[:COMMENT_CHARACTERS]


def _channels() -> ChannelsFile:
    return _channels_of(channels_path(), channels_path().stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _channels_of(_path: Path, _changed: int) -> ChannelsFile:
    return load_channels()


def _redirect_headers() -> dict[str, str]:
    return {name: value for name, value in HEADERS.items() if name != "Content-Security-Policy"}


def _page(request: Request, page: str, language: str = "", *, status: int = 200, problem: bool = False) -> Response:
    """One of our pages. It shows nothing of the address it was asked under, and nothing of a person."""
    if language not in ("zh", "en"):
        language = "en" if request.headers.get("accept-language", "").lower().startswith("en") else "zh"
    brand = _channels().brand
    html = _TEMPLATES.get_template("pages.html").render(
        page=page, language=language, problem=problem, scores=SCORES, comment_characters=COMMENT_CHARACTERS,
        name=getattr(brand.name, language), contact=getattr(brand.contact, language),
        t=lambda zh, en: zh if language == "zh" else en,
    )  # fmt: skip
    return HTMLResponse(html, status, HEADERS)


_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
