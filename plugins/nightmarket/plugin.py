"""The only Airflow plugin: mounts the console page at /nightmarket and puts it into the navigation."""

from typing import Any

from airflow.plugins_manager import AirflowPlugin


class LazyConsole:
    """The console as an ASGI app that is built at its first request.

    Airflow loads plugins in every process, workers included; only the api-server ever serves the page.
    """

    def __init__(self) -> None:
        self._app: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self._app is None:
            from nightmarket.console.app import create_app
            from nightmarket.console.auth import may_send, require_user
            from nightmarket.orchestration.hooks import use_airflow_connections

            use_airflow_connections()  # the receiver's secrets: the same connections that tasks use
            self._app = create_app(require_user=require_user, may_send=may_send)
        await self._app(scope, receive, send)


class NightmarketPlugin(AirflowPlugin):
    name = "nightmarket"
    fastapi_apps = [{"name": "nightmarket", "app": LazyConsole(), "url_prefix": "/nightmarket"}]  # noqa: RUF012
    external_views = [  # noqa: RUF012
        {
            "name": "夜市 Nightmarket",
            "href": "/nightmarket/",
            "destination": "nav",
            "url_route": "nightmarket",
            "nav_top_level": True,
        }
    ]
