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
            "conn_type": "nightmarket_taobao",
            "host": top["gateway_url"],
            "login": top["app_key"],
            "password": top["app_secret"],
            "extra": {"session_token": top["session"], "sign_method": "hmac-sha256"},
        },
        "jd_pop": {
            "conn_type": "nightmarket_jd",
            "host": access["jd"]["gateway_url"],
            "login": access["jd"]["app_key"],
            "password": access["jd"]["app_secret"],
            "extra": {
                name: access["jd"][name] for name in ("access_token", "refresh_token", "expires_at", "oauth_url")
            },
        },
        "wechat_official": {
            "conn_type": "nightmarket_wechat_official",
            "host": wechat["base_url"],
            "login": wechat["appid"],
            "password": wechat["secret"],
            "extra": {"push_token": wechat["push_token"]},
        },
        "wechat_store": {
            "conn_type": "nightmarket_wechat_store",
            "host": access["wechat_store"]["base_url"],
            "login": access["wechat_store"]["appid"],
            "password": access["wechat_store"]["secret"],
        },
        "weibo_brand": {
            "conn_type": "http",
            "host": access["weibo"]["base_url"],
            "login": access["weibo"]["uid"],
            "password": access["weibo"]["access_token"],
        },
        "wechat_pay": {
            "conn_type": "nightmarket_wechat_pay",
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
            "conn_type": "nightmarket_own_pages",
            "host": pages["base_url"],
            "login": pages["key_id"],
            "password": pages["secret"],
        },
        "sms_aliyun": {
            "conn_type": "nightmarket_sms_aliyun",
            "host": access["sms_aliyun"]["base_url"],
            "login": access["sms_aliyun"]["access_key_id"],
            "password": access["sms_aliyun"]["access_key_secret"],
            "extra": {"push_secret": access["sms_aliyun"]["push_secret"]},
        },
        "sms_tencent": {
            "conn_type": "nightmarket_sms_tencent",
            "host": access["sms_tencent"]["base_url"],
            "login": access["sms_tencent"]["secret_id"],
            "password": access["sms_tencent"]["secret_key"],
            "extra": {
                "sdk_app_id": access["sms_tencent"]["sdk_app_id"],
                "push_secret": access["sms_tencent"]["push_secret"],
            },
        },
        "email": {
            "conn_type": "smtp",
            "host": smtp["host"],
            "port": smtp["port"],
            "login": smtp["username"],
            "password": smtp["password"],
            "extra": {name: smtp[name] for name in ("from_address", "bounce_address", "bounce_folder")},
        },
        "stall_shop": {
            "conn_type": "http",
            "host": access["rest"]["stall_url"],
            "login": access["rest"]["stall_key"],
            "password": access["rest"]["stall_secret"],
        },
        "bazaar_shop": {
            "conn_type": "http",
            "host": access["rest"]["bazaar_url"],
            "login": access["rest"]["bazaar_user"],
            "password": access["rest"]["bazaar_password"],
        },
        "shopify_mall": {
            "conn_type": "nightmarket_shopify",
            "host": access["shopify"]["base_url"],
            "password": access["shopify"]["access_token"],
        },
        "woo_mall": {
            "conn_type": "nightmarket_woocommerce",
            "host": access["woocommerce"]["base_url"],
            "login": access["woocommerce"]["consumer_key"],
            "password": access["woocommerce"]["consumer_secret"],
        },
        "youzan_mall": {
            "conn_type": "nightmarket_youzan",
            "host": access["youzan"]["base_url"],
            "login": access["youzan"]["client_id"],
            "password": access["youzan"]["client_secret"],
            "extra": {"grant_id": access["youzan"]["grant_id"]},
        },
        "weidian_shop": {
            "conn_type": "nightmarket_weidian",
            "host": access["weidian"]["base_url"],
            "login": access["weidian"]["appkey"],
            "password": access["weidian"]["secret"],
        },
    }
    connections["jpush"] = {
        "conn_type": "nightmarket_jpush",
        "host": access["jpush"]["base_url"],
        "login": access["jpush"]["app_key"],
        "password": access["jpush"]["master_secret"],
        "extra": {"report_host": access["jpush"]["report_url"]},
    }
    connections["wecom"] = {
        "conn_type": "nightmarket_wecom",
        "host": access["wecom"]["base_url"],
        "login": access["wecom"]["corpid"],
        "password": access["wecom"]["secret"],
    }
    connections["robot_wecom"] = {
        "conn_type": "nightmarket_robot_wecom",
        "host": access["robots"]["wecom_url"],
        "password": access["robots"]["wecom_key"],
    }
    connections["robot_dingtalk"] = {
        "conn_type": "nightmarket_robot_dingtalk",
        "host": access["robots"]["dingtalk_url"],
        "password": access["robots"]["dingtalk_token"],
        "extra": {"sign_secret": access["robots"]["dingtalk_secret"]},
    }
    connections["pos_stores"] = {"conn_type": "nightmarket_files", "extra": {"folder": access["pos"]["folder"]}}
    return {
        f"AIRFLOW_CONN_{name.upper()}": json.dumps(value, ensure_ascii=False) for name, value in connections.items()
    }
