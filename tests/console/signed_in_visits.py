"""Run by test_sign_in.py in a process of its own: the console behind Airflow's SimpleAuthManager. Prints JSON."""

import hashlib
import json
import os
from typing import Any

os.environ["_AIRFLOW_PROCESS_CONTEXT"] = "server"  # as the api-server's main module sets it

from airflow.api_fastapi.app import init_auth_manager
from airflow.models import Connection
from airflow.utils import db
from airflow.utils.session import create_session

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

    def pushed(token: str) -> dict[str, Any]:
        """WeChat's check of the address, signed with `token`, by somebody who is not signed in."""
        signature = hashlib.sha1("".join(sorted((token, "1700000000", "n"))).encode()).hexdigest()
        query = {"signature": signature, "timestamp": "1700000000", "nonce": "n", "echostr": "echo-58"}
        answer = visitor.get("/nightmarket/webhooks/wechat_official", params=query)
        return {"status": answer.status_code, "text": answer.text}

    with create_session() as session:  # kept in Airflow's database, as a person makes it in the UI
        session.add(
            Connection(  # noqa: AIR311 - the row itself, not the client's view of it
                conn_id="wechat_official",
                conn_type="http",
                host="http://127.0.0.1:1",
                login="wx1",
                password="secret-1",
                extra='{"push_token": "the-token"}',
            )
        )

    roles = ("viewer", "user", "op", "admin")
    bearer = manager.generate_jwt(SimpleAuthManagerUser(username="ulla", role="viewer"))
    return {
        "anonymous": {page: seen(visitor.get(f"/nightmarket/{page}")) for page in ("", "runs", "run?id=x", "sources")},
        "pushes": {token: pushed(token) for token in ("the-token", "another")},
        "browser": visit(None, "/nightmarket/run?id=a%40b%231"),
        "forged": seen(visitor.get("/nightmarket/", headers={"authorization": "Bearer abc.def.ghi"})),
        "bearer": visit(None, authorization=f"Bearer {bearer}"),
        **{role: visit(role) for role in roles},
    }


print("RESULT " + json.dumps(main()))
