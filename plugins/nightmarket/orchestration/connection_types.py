"""A connection type per platform for Airflow's own form: the platform's words for host, login and password, its extra fields.

Airflow finds them through the entry point `apache_airflow_provider` of this distribution and asks `get_provider_info()`. Extra
fields stand in the connection's `extra` under their own names; those marked secret are hidden in the form, and Airflow masks
them by their names in logs and its API. docs/connections says for each platform where to get them.
"""

from dataclasses import dataclass, field
from typing import Any

PREFIX = "nightmarket_"


@dataclass(frozen=True)
class Extra:
    """One extra field of a connection."""

    label: str
    secret: bool = False
    default: str | None = None
    needed: bool = False

    def schema(self) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": "string" if self.needed else ["string", "null"]}
        if self.secret:
            schema["format"] = "password"
        if self.default is not None:
            schema["default"] = self.default
        return {"label": self.label, "schema": schema}


@dataclass(frozen=True)
class Form:
    """What the form of a platform's connection asks for; None hides a field."""

    name: str
    host: str | None
    login: str | None
    password: str | None
    address: str = ""  # an example of host
    port: str | None = None
    extras: dict[str, Extra] = field(default_factory=dict)

    def behaviour(self) -> dict[str, Any]:
        asked = {"host": self.host, "login": self.login, "password": self.password, "port": self.port}
        return {
            "hidden-fields": ["schema", *(name for name, label in asked.items() if label is None)],
            "relabeling": {name: label for name, label in asked.items() if label},
            "placeholders": {"host": self.address} if self.address else {},
        }


TOKEN_LIFE = "until when it is good, ISO instant"  # noqa: S105 - a label, not a secret
PUSH_FIELDS = {
    "push_token": Extra("Token of the message push (server configuration)", secret=True),
    "encoding_aes_secret": Extra("EncodingAESKey of the message push", secret=True),
}
FORMS: dict[str, Form] = {
    "taobao": Form(
        "Taobao / Tmall (TOP) 淘宝天猫",
        "Gateway",
        "App key",
        "App secret",
        "https://eco.taobao.com/router/rest",
        extras={
            "session_token": Extra("Session of the shop (OAuth access token)", secret=True, needed=True),
            "sign_method": Extra("Signature: md5, hmac or hmac-sha256", default="hmac-sha256"),
        },
    ),
    "jd": Form(
        "JD (JOS / POP) 京东",
        "Gateway",
        "App key",
        "App secret",
        "https://api.jd.com/routerjson",
        extras={
            "access_token": Extra("Access token of the shop", secret=True, needed=True),
            "refresh_token": Extra("Refresh token", secret=True),
            "expires_at": Extra(f"Access token: {TOKEN_LIFE}"),
            "oauth_url": Extra("Address of the OAuth server", default="https://open-oauth.jd.com/oauth2"),
        },
    ),
    "youzan": Form(
        "Youzan 有赞",
        "Address",
        "client_id",
        "client_secret",
        "https://open.youzanyun.com",
        extras={
            "grant_id": Extra("Shop number (kdt_id)", needed=True),
            "push_header": Extra("Header of the push signature, where it has another name"),
        },
    ),
    "weidian": Form("Weidian 微店", "Address", "appkey", "secret", "https://api.vdian.com"),
    "wechat_store": Form("WeChat Store 微信小店", "Address", "AppID", "AppSecret", "https://api.weixin.qq.com"),
    "wechat_official": Form(
        "WeChat official account 公众号",
        "Address",
        "AppID",
        "AppSecret",
        "https://api.weixin.qq.com",
        extras=PUSH_FIELDS,
    ),
    "weibo": Form("Weibo 微博", "Address", "uid of the account", "Access token", "https://api.weibo.com"),
    "shopify": Form(
        "Shopify",
        "Shop address",
        None,
        "Admin API access token",
        "https://example.myshopify.com",
        extras={"api_version": Extra("API version, e.g. 2024-10")},
    ),
    "woocommerce": Form(
        "WooCommerce",
        "Shop address",
        "Consumer key",
        "Consumer secret",
        "https://shop.example",
        extras={
            "auth": Extra("How to sign in: auto, basic, query or oauth1", default="auto"),
            "signature_method": Extra("OAuth 1.0a: HMAC-SHA256 or HMAC-SHA1", default="HMAC-SHA256"),
        },
    ),
    "files": Form(
        "Files: folder or SFTP 文件",
        "SFTP server (empty: a folder of this machine)",
        "User",
        "Password",
        port="SFTP port",
        extras={
            "folder": Extra("Folder", needed=True),
            "known_hosts": Extra("SFTP: the server's line of known_hosts"),
            "private_key": Extra("SFTP: private key, instead of a password", secret=True),
            "passphrase": Extra("SFTP: passphrase of the private key", secret=True),
        },
    ),
    "rest": Form("Declared REST API", "Address", "User or key id", "Password or secret", "https://api.example"),
    "sms_aliyun": Form(
        "Aliyun SMS 阿里云短信",
        "Address",
        "AccessKey ID",
        "AccessKey Secret",
        "https://dysmsapi.aliyuncs.com",
        extras={
            "push_secret": Extra("Secret in the address that receipts and replies are pushed to", secret=True),
            "absent_is_unsent_after_seconds": Extra("Seconds after which a message that is not listed was not sent"),
        },
    ),
    "sms_tencent": Form(
        "Tencent Cloud SMS 腾讯云短信",
        "Address",
        "SecretId",
        "SecretKey",
        "https://sms.tencentcloudapi.com",
        extras={
            "sdk_app_id": Extra("SmsSdkAppId of the application", needed=True),
            "region": Extra("Region", default="ap-guangzhou"),
            "push_secret": Extra("Secret in the address that receipts and replies are called back at", secret=True),
        },
    ),
    "own_pages": Form(
        "Own follow-up pages 自有页面", "Address of the archive", "Key id", "Secret", "https://pages.example/archive"
    ),
    "wechat_pay": Form(
        "WeChat Pay coupons 微信支付券",
        "Address",
        "Merchant number (mchid)",
        None,
        "https://api.mch.weixin.qq.com",
        extras={
            "appid": Extra("AppID of the account whose followers get coupons", needed=True),
            "serial_no": Extra("Serial number of the merchant certificate", needed=True),
            "private_key": Extra("Merchant private key (PEM)", secret=True, needed=True),
            "platform_key_id": Extra("Id of WeChat Pay's public key", needed=True),
            "platform_public_key": Extra("WeChat Pay's public key (PEM)", needed=True),
        },
    ),
    "jpush": Form(
        "JPush app push 极光推送",
        "Address",
        "AppKey",
        "Master Secret",
        "https://api.jpush.cn",
        extras={
            "report_host": Extra("Address of the reports", default="https://report.jpush.cn"),
            "platforms": Extra("Platforms, e.g. android,ios", default="android,ios"),
            "time_to_live": Extra("Seconds a push waits for a phone that is off", default="86400"),
            "apns_production": Extra("iOS: production (true) or development (false)", default="true"),
            "options": Extra("More of JPush's options, a JSON object"),
        },
    ),
    "wecom": Form(
        "WeCom broadcasts 企业微信群发",
        "Address",
        "corpid",
        "Secret of customer contact (客户联系)",
        "https://qyapi.weixin.qq.com",
        extras={
            "sender": Extra("userid of the employee who sends; empty: whoever added the contact"),
            "create_path": Extra("Interface that makes a broadcast, where it has another address"),
            "task_path": Extra("Interface that tells which employees are to send"),
            "result_path": Extra("Interface that tells what came of each contact"),
        },
    ),
    "robot_wecom": Form(
        "WeCom group robot 企业微信群机器人", "Address", None, "Key of the webhook", "https://qyapi.weixin.qq.com"
    ),
    "robot_dingtalk": Form(
        "DingTalk robot 钉钉机器人",
        "Address",
        None,
        "access_token of the webhook",
        "https://oapi.dingtalk.com",
        extras={
            "sign_secret": Extra("Secret of the signature (加签), begins with SEC", secret=True),
            "keyword": Extra("Keyword the robot demands (自定义关键词)"),
        },
    ),
}


def connection_type(platform: str) -> str:
    """Airflow's `conn_type` of a platform."""
    return PREFIX + platform


def class_name(platform: str) -> str:
    """The hook class of a platform in orchestration/platform_hooks.py."""
    return "".join(part.capitalize() for part in platform.split("_")) + "Hook"


def get_provider_info() -> dict[str, Any]:
    """What Airflow's ProvidersManager asks a provider for. package-name must be the distribution's own name."""
    return {
        "package-name": "nightmarket",
        "name": "Nightmarket 夜市",
        "description": "Connections to the shops and social platforms that Nightmarket reads and sends through.",
        "versions": ["0.1.0"],
        "connection-types": [
            {
                "connection-type": connection_type(platform),
                "hook-name": form.name,
                "hook-class-name": f"nightmarket.orchestration.platform_hooks.{class_name(platform)}",
                "ui-field-behaviour": form.behaviour(),
                "conn-fields": {name: extra.schema() for name, extra in form.extras.items()},
            }
            for platform, form in FORMS.items()
        ],
    }
