"""Run by test_sign_in.py in a process of its own: the console behind Airflow's SimpleAuthManager. Prints JSON."""

import json
from typing import Any

from airflow.api_fastapi.app import init_auth_manager
from airflow.utils import db

db.initdb()

from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser  # noqa: E402
from fastapi import FastAPI  # noqa: E402
from fastapi.testclient import TestClient  # noqa: E402

from nightmarket.plugin import NightmarketPlugin  # noqa: E402


def main() -> dict[str, Any]:
    house = FastAPI()
    manager = init_auth_manager(house)
    mounted = NightmarketPlugin.fastapi_apps[0]
    house.mount(mounted["url_prefix"], mounted["app"])
    visitor = TestClient(house, follow_redirects=False)
    browser = {"accept": "text/html,application/xhtml+xml"}

    def seen(answer: Any) -> dict[str, Any]:
        return {
            "status": answer.status_code,
            "location": answer.headers.get("location"),
            "sender": "push_campaign" in answer.text,
            "name": "ulla" in answer.text,
            "data": "No night has run yet" in answer.text,
        }

    def visit(role: str | None, address: str = "/nightmarket/?lang=en", **headers: str) -> dict[str, Any]:
        token = manager.generate_jwt(SimpleAuthManagerUser(username="ulla", role=role)) if role else None
        cookies = {"_token": token} if token else {}
        return seen(TestClient(house, follow_redirects=False, cookies=cookies).get(address, headers=headers or browser))

    roles = ("viewer", "user", "op", "admin")
    bearer = manager.generate_jwt(SimpleAuthManagerUser(username="ulla", role="viewer"))
    return {
        "anonymous": {page: seen(visitor.get(f"/nightmarket/{page}")) for page in ("", "runs", "run?id=x", "sources")},
        "browser": visit(None, "/nightmarket/run?id=a%40b%231"),
        "forged": seen(visitor.get("/nightmarket/", headers={"authorization": "Bearer abc.def.ghi"})),
        "bearer": visit(None, authorization=f"Bearer {bearer}"),
        **{role: visit(role) for role in roles},
    }


print("RESULT " + json.dumps(main()))
