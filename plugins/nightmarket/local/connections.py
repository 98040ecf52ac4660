"""Airflow connections (AIRFLOW_CONN_<ID>, JSON form) that point at the sandbox described by its access.json."""

import json
from typing import Any


def connection_environment(access: dict[str, Any]) -> dict[str, str]:
    """Environment variables for every account of the sandbox; a real account is a connection of the same shape."""
    top, wechat, pay, pages, smtp = (
        access[name] for name in ("taobao", "wechat_official", "wechat_pay", "own_pages", "smtp")
    )
    connections: dict[str, dict[str, Any]] = {
        "taobao_flagship": {
            "conn_type": "http",
            "host": top["gateway_url"],
            "login": top["app_key"],
            "password": top["app_secret"],
            "extra": {"session_token": top["session"], "sign_method": "hmac-sha256"},
        },
        "wechat_official": {
            "conn_type": "http",
            "host": wechat["base_url"],
            "login": wechat["appid"],
            "password": wechat["secret"],
        },
        "wechat_pay": {
            "conn_type": "http",
            "host": pay["base_url"],
            "login": pay["mchid"],
            "extra": {
                "appid": pay["appid"],
                "serial_no": pay["serial_no"],
                "private_key": pay["private_key_pem"],
                "platform_key_id": pay["platform_key_id"],
                "platform_public_key": pay["platform_public_key_pem"],
            },
        },
        "own_pages": {
            "conn_type": "http",
            "host": pages["base_url"],
            "login": pages["key_id"],
            "password": pages["secret"],
        },
        "email": {
            "conn_type": "smtp",
            "host": smtp["host"],
            "port": smtp["port"],
            "login": smtp["username"],
            "password": smtp["password"],
            "extra": {"from_address": smtp["from_address"]},
        },
    }
    return {
        f"AIRFLOW_CONN_{name.upper()}": json.dumps(value, ensure_ascii=False) for name, value in connections.items()
    }
