"""The console: what last night did, what campaigns do, what the sources gave. Read-only, server-rendered.

Mounted inside Airflow by plugin.py, which passes the sign-in dependencies of console/auth.py. All links are relative
and on one level, because the page lives in a sandboxed iframe below whatever prefix Airflow gives it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from nightmarket.console.queries import reader

HERE = Path(__file__).parent
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; frame-ancestors 'self'",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


def refuse() -> str:
    """The dependency of an app that was given no sign-in: nobody is signed in."""
    raise HTTPException(401, "The console was started without a sign-in.")


def create_app(
    require_user: Callable[..., Any] = refuse,
    may_send: Callable[..., Any] = lambda: False,
) -> FastAPI:
    """The console as an ASGI app.

    `require_user` is a dependency that returns the visitor's name or raises; `may_send` one that returns whether the
    visitor may start campaigns. Without arguments every data route answers 401.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")  # style and script only, no data
    pages = Environment(loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined)

    @app.get("/", response_class=HTMLResponse)
    def overview(request: Request, user: str = Depends(require_user), sender: bool = Depends(may_send)) -> HTMLResponse:
        with reader() as read:
            messages = read.rows("messages_open")
        text = pages.get_template("overview.html").render(user=user, sender=sender, messages=messages)
        return HTMLResponse(text, headers=HEADERS)

    return app
