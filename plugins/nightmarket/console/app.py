"""The console: what last night did, what campaigns do, what the sources gave. Read-only, server-rendered.

Mounted inside Airflow by plugin.py, which passes the sign-in dependencies of console/auth.py. All links are relative
and on one level, because the page lives in a sandboxed iframe below whatever prefix Airflow gives it.
"""

import json
import logging
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import psycopg
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, Response
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from nightmarket import dates
from nightmarket.console import charts, pages, receiver, words
from nightmarket.console.member import explain_member
from nightmarket.console.night import (
    kpi_lines,
    notices,
    read_night,
    read_pauses,
    read_run_desk,
    read_run_parts,
    read_runs,
)
from nightmarket.console.queries import Reader, reader
from nightmarket.settings import ConfigError
from nightmarket.sources import load_sources

HERE = Path(__file__).parent
LANGUAGES = ("zh", "en")
LANGUAGE_COOKIE = "nightmarket_language"
NIGHTS_SHOWN, RUNS_SHOWN, BATCHES_SHOWN, REJECTS_SHOWN, TREND_DAYS = 30, 200, 100, 200, 30
CASES_SHOWN = 200
TREND_NIGHTS = 14  # of the checks of the gates
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; form-action 'self'; frame-ancestors 'self'",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
log = logging.getLogger(__name__)


class PageError(Exception):
    """Something the visitor asked for cannot be shown: status and one sentence in both languages."""

    def __init__(self, status: int, zh: str, en: str) -> None:
        super().__init__(en)
        self.status, self.text = status, words.Text(zh, en)


def refuse() -> str:
    """The dependency of an app that was given no sign-in: nobody is signed in."""
    raise HTTPException(401, "The console was started without a sign-in.")


def nobody_may_send() -> bool:
    """The default answer to "may this visitor start campaigns?"."""
    return False


def create_app(
    require_user: Callable[..., Any] = refuse,
    may_send: Callable[..., Any] = nobody_may_send,
) -> FastAPI:
    """The console as an ASGI app.

    `require_user` is a dependency that returns the visitor's name or raises; `may_send` one that returns whether the
    visitor may start campaigns (it shows or hides a link, nothing more). Without arguments every page answers 401.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")  # style and script only, no data
    archive = receiver.Receiver()
    app.include_router(receiver.create_router(archive))  # without a sign-in: platforms sign what they push,
    app.include_router(pages.create_router(archive))  # and we have signed the links of our messages
    templates = _environment()

    def show(request: Request, template: str, status: int = 200, **values: Any) -> Response:
        chosen = request.query_params.get("lang")
        language = _language(request)

        def link(page: str, **parameters: Any) -> str:
            query = urlencode({name: value for name, value in parameters.items() if value not in (None, "")})
            return f"{page}?{query}" if query else page

        def other_language() -> str:
            return "?" + urlencode({**request.query_params, "lang": "en" if language == "zh" else "zh"})

        html = templates.get_template(template).render(
            **values, language=language, link=link, other_language=other_language(),
            t=lambda zh, en: zh if language == "zh" else en,
            w=lambda table, code: getattr(words.say(table, code), language),
        )  # fmt: skip
        response = HTMLResponse(html, status, HEADERS)
        if chosen in LANGUAGES:
            response.set_cookie(LANGUAGE_COOKIE, chosen, max_age=365 * 86400, samesite="lax", httponly=True)
        return response

    @app.exception_handler(PageError)
    def page_error(request: Request, error: PageError) -> Response:
        return show(request, "error.html", error.status, text=error.text, page="", user="", sender=False)

    @app.exception_handler(psycopg.DataError)
    def not_a_value(request: Request, error: psycopg.DataError) -> Response:
        text = words.Text("这个地址里的值无法识别。", "The address holds a value that makes no sense.")
        return show(request, "error.html", 400, text=text, page="", user="", sender=False)

    @app.exception_handler(psycopg.OperationalError)
    def warehouse_down(request: Request, error: psycopg.OperationalError) -> Response:
        log.error("the warehouse cannot be reached: %s", type(error).__name__)  # the text may name hosts and users
        text = words.Text("数据仓库现在连不上，请稍后再试。", "The warehouse cannot be reached right now.")
        return show(request, "error.html", 503, text=text, page="", user="", sender=False)

    @app.exception_handler(ConfigError)
    def misconfigured(request: Request, error: ConfigError) -> Response:
        log.error("%s", error)
        text = words.Text("控制台的配置有误，详见 api-server 的日志。", "The console is misconfigured; the api-server's log says how.")  # fmt: skip
        return show(request, "error.html", 500, text=text, page="", user="", sender=False)

    @app.get("/")
    def overview(
        request: Request, night: str = "", user: str = Depends(require_user), sender: bool = Depends(may_send)
    ) -> Response:
        with reader() as read:
            days = [row["business_date"] for row in read.rows("nights", limit_rows=NIGHTS_SHOWN)]
            day = _day(night) or (days[0] if days else None)
            data = _overview(read, day) if day else None
        return show(request, "overview.html", page="overview", user=user, sender=sender, days=days, day=day, data=data)

    @app.get("/checks")
    def checks(
        request: Request, night: str = "", user: str = Depends(require_user), sender: bool = Depends(may_send)
    ) -> Response:
        with reader() as read:
            days = [row["business_date"] for row in read.rows("nights", limit_rows=NIGHTS_SHOWN)]
            day = _day(night) or (days[0] if days else None)
            rows = read.rows("gate_trend", business_date=day, night_count=TREND_NIGHTS) if day else []
        return show(request, "checks.html", page="overview", user=user, sender=sender, days=days, day=day, checks=rows)

    @app.get("/member")
    def member(
        request: Request,
        member: str = "",
        as_of: str = "",
        user: str = Depends(require_user),
        sender: bool = Depends(may_send),
    ) -> Response:
        number, day = _member_id(member), _day(as_of) or dates.today() - timedelta(days=1)
        text = None
        if number is not None:
            try:
                text = explain_member(number, day)
            except ValueError:
                raise PageError(404, f"没有会员 {number}。", f"There is no member {number}.") from None
        return show(request, "member.html", page="member", user=user, sender=sender, member=number, day=day, text=text)

    @app.get("/runs")
    def runs(request: Request, user: str = Depends(require_user), sender: bool = Depends(may_send)) -> Response:
        with reader() as read:
            rows = read.rows("runs", first_day=date(2000, 1, 1), last_day=dates.today(), limit_rows=RUNS_SHOWN)
        return show(request, "runs.html", page="runs", user=user, sender=sender, runs=rows, limit=RUNS_SHOWN)

    @app.get("/run")
    def run(
        request: Request, id: str, member: str = "", user: str = Depends(require_user), sender: bool = Depends(may_send)
    ) -> Response:
        member_id = _member_id(member)
        with reader() as read:
            row = read.row("run", run_id=id)
            if row is None:
                raise PageError(404, f"没有名为 {id} 的活动轮次。", f"There is no run {id}.")
            parts = read_run_parts(read, id) | read_run_desk(read, id, dates.now())
            why = read.rows("member_why", run_id=id, member_id=member_id) if member_id is not None else []
        return show(
            request, "run.html", page="runs", user=user, sender=sender, run=row, **parts, chart=charts.uplift(id, parts["result"]),
            member=member_id, why=why,
        )  # fmt: skip

    @app.get("/retrospective")
    def retrospective(id: str, user: str = Depends(require_user)) -> Response:
        with reader() as read:
            kept = read.row("retrospective", run_id=id)
        if kept is None:
            raise PageError(404, f"{id} 还没有复盘：归因窗口结束后的那一夜才写。", f"There is no retrospective of {id}: it is written in the night after its attribution window closes.")  # fmt: skip
        return HTMLResponse(kept["html"], 200, HEADERS)

    @app.get("/cases")
    def cases(
        request: Request, all: str = "", user: str = Depends(require_user), sender: bool = Depends(may_send)
    ) -> Response:
        with reader() as read:
            rows = read.rows("cases", only_open=not all, limit_rows=CASES_SHOWN)
        names = {name: config.name for name, config in load_sources().items()}
        return show(
            request, "cases.html", page="cases", user=user, sender=sender, cases=rows, limit=CASES_SHOWN, all=bool(all), names=names
        )  # fmt: skip

    @app.get("/sources")
    def sources(
        request: Request, source: str = "", user: str = Depends(require_user), sender: bool = Depends(may_send)
    ) -> Response:
        with reader() as read:
            cursors = read.rows("cursors")
            gaps = read.rows("gaps", source_id=source)
            totals = read.rows("source_totals", as_of_at=dates.now())
            batches = read.rows("batches", source_id=source, limit_rows=BATCHES_SHOWN)
            rejects = read.rows("rejects_open", source_id=source, limit_rows=REJECTS_SHOWN)
            scenes = read.rows("scenes", names=_scene_names())
        return show(
            request, "sources.html", page="sources", user=user, sender=sender, cursors=cursors, gaps=gaps, totals=totals, batches=batches,
            rejects=rejects, scenes=scenes,
            source=source, batch_limit=BATCHES_SHOWN, reject_limit=REJECTS_SHOWN,
        )  # fmt: skip

    return app


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= words.FILTERS
    environment.globals |= words.TABLES
    return environment


def _language(request: Request) -> str:
    """Asked for in the address, else chosen before, else what the browser prefers; Chinese when nobody says."""
    for wish in (request.query_params.get("lang"), request.cookies.get(LANGUAGE_COOKIE)):
        if wish in LANGUAGES:
            return str(wish)
    accepted = request.headers.get("accept-language", "").lower()
    return "en" if accepted.startswith("en") else "zh"


def _scene_names() -> str:
    """What the QR codes of our accounts are called in sources.yaml, as JSON."""
    return json.dumps({name: getattr(config.settings, "scenes", {}) for name, config in load_sources().items()})


def _day(text: str) -> date | None:
    if not text:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise PageError(
            400, f"{text} 不是 YYYY-MM-DD 形式的日期。", f"{text} is not a date of the form YYYY-MM-DD."
        ) from None


def _member_id(text: str) -> int | None:
    text = text.strip()
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise PageError(400, f"会员号是一个数字，{text} 不是。", f"A member id is a number; {text} is not.")
    return int(text)


def _overview(read: Reader, day: date) -> dict[str, Any]:
    night, (runs, _) = read_night(read, day), read_runs(read, day, day)
    rows = read.rows("shop_trend", first_day=day - timedelta(days=TREND_DAYS - 1), last_day=day)
    return {
        "night": night,
        "notices": notices(night, runs, read_pauses(read, dates.now())),
        "kpis": kpi_lines(night["kpi_table"]),
        "trends": charts.trends(rows, [day]),
    }
