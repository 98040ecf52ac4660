"""Raw HTTP against the sandbox, signed by code written from the platforms' documents, not from the sandbox's.

Nothing here imports the sandbox or the product: it is the second opinion.
"""

import base64
import hashlib
import hmac
import json
import math
import secrets
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote, urlencode

import requests
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

Access = dict[str, Any]


class RawClient:
    """One HTTP session and the access file of a running sandbox."""

    def __init__(self, access: Access) -> None:
        self.access = access
        self.http = requests.Session()
        self.merchant_key: Any = load_pem_private_key(access["wechat_pay"]["private_key_pem"].encode(), None)
        self.platform_key: Any = load_pem_public_key(access["wechat_pay"]["platform_public_key_pem"].encode())

    # control ----------------------------------------------------------------------------------------------------

    def control(self, method: str, path: str, body: Any = None) -> requests.Response:
        head = {"Authorization": "Bearer " + self.access["control"]["token"]}
        return self.http.request(method, self.access["control"]["url"] + path, json=body, headers=head, timeout=60)

    def now(self) -> datetime:
        return datetime.fromisoformat(self.control("GET", "/clock").json()["now"])

    def truth(self) -> dict[str, Any]:
        answer: dict[str, Any] = self.control("GET", "/truth").json()
        return answer

    # TOP --------------------------------------------------------------------------------------------------------

    def top_params(self, method: str, sign_method: str = "md5", **business: Any) -> dict[str, str]:
        """System and business parameters, unsigned; a value of None drops a parameter."""
        account = self.access["taobao"]
        system = {
            "method": method,
            "app_key": account["app_key"],
            "session": account["session"],
            "timestamp": self.now().strftime("%Y-%m-%d %H:%M:%S"),
            "format": "json",
            "v": "2.0",
            "sign_method": sign_method,
        }
        merged = {**system, **business}
        return {name: str(value) for name, value in merged.items() if value is not None}

    def top_sign(self, params: dict[str, str]) -> str:
        secret = self.access["taobao"]["app_secret"].encode()
        text = b""
        for name in sorted(params):
            if params[name]:
                text += name.encode() + params[name].encode()
        if params["sign_method"] == "md5":
            return hashlib.md5(secret + text + secret).hexdigest().upper()
        algorithm = hashlib.md5 if params["sign_method"] == "hmac" else hashlib.sha256
        return hmac.new(secret, text, algorithm).hexdigest().upper()

    def top_post(self, params: dict[str, str]) -> requests.Response:
        return self.http.post(self.access["taobao"]["gateway_url"], data=params, timeout=30)

    def top(self, method: str, sign_method: str = "md5", **business: Any) -> dict[str, Any]:
        """Call a method and give back what stands under the root, or the error envelope's content."""
        params = self.top_params(method, sign_method, **business)
        params["sign"] = self.top_sign(params)
        answer: dict[str, Any] = self.top_post(params).json()
        ((_, content),) = answer.items()
        return dict(content)

    def trades(self, method: str, size: int, **business: Any) -> list[dict[str, Any]]:
        """Every page of a list of trades, last page first, as the platform advises."""
        first = self.top(method, page_no=1, page_size=size, **business)
        rows: list[dict[str, Any]] = []
        for page in range(math.ceil(first["total_results"] / size), 0, -1):
            part = self.top(method, page_no=page, page_size=size, use_has_next="true", **business)
            rows += part["trades"]["trade"]
        return rows

    # WeChat -----------------------------------------------------------------------------------------------------

    def wechat_token(self, **changes: Any) -> dict[str, Any]:
        account = self.access["wechat_official"]
        body = {"grant_type": "client_credential", "appid": account["appid"], "secret": account["secret"], **changes}
        url = account["base_url"] + "/cgi-bin/stable_token"
        answer: dict[str, Any] = self.http.post(url, json=body, timeout=30).json()
        return answer

    def wechat(self, path: str, body: Any = None, token: str | None = None, **query: str) -> dict[str, Any]:
        """POST when there is a body, else GET."""
        token = self.wechat_token()["access_token"] if token is None else token
        url = f"{self.access['wechat_official']['base_url']}{path}?{urlencode({'access_token': token, **query})}"
        if body is None:
            answer: dict[str, Any] = self.http.get(url, timeout=30).json()
        else:
            answer = self.http.post(url, data=json.dumps(body, ensure_ascii=False).encode(), timeout=30).json()
        return answer

    # WeChat Pay -------------------------------------------------------------------------------------------------

    def pay(
        self, method: str, path: str, body: Any = None, timestamp: int | None = None, spoil: bool = False
    ) -> requests.Response:
        account = self.access["wechat_pay"]
        content = "" if body is None else json.dumps(body)
        stamp = str(timestamp if timestamp is not None else int(self.now().timestamp()))
        nonce = secrets.token_hex(16)
        text = "".join(part + "\n" for part in (method, path, stamp, nonce, content))
        signature = base64.b64encode(self.merchant_key.sign(text.encode(), PKCS1v15(), SHA256())).decode()
        head = {
            "Authorization": f'WECHATPAY2-SHA256-RSA2048 mchid="{account["mchid"]}",nonce_str="{nonce}",'
            f'signature="{signature}",timestamp="{stamp}",serial_no="{account["serial_no"]}"',
            "Accept": "application/json",
            "Content-Type": "application/json",
            "User-Agent": "raw-client",
        }
        if spoil:
            content += " "
        url = account["base_url"] + path
        return self.http.request(method, url, data=content or None, headers=head, timeout=30)

    def pay_answer_is_signed(self, answer: requests.Response) -> bool:
        """Does the platform's signature fit the answer? Raises when the head is incomplete."""
        head = answer.headers
        assert head["Wechatpay-Serial"] == self.access["wechat_pay"]["platform_key_id"]
        text = f"{head['Wechatpay-Timestamp']}\n{head['Wechatpay-Nonce']}\n{answer.text}\n"
        try:
            self.platform_key.verify(base64.b64decode(head["Wechatpay-Signature"]), text.encode(), PKCS1v15(), SHA256())
        except Exception:
            return False
        return True

    def send_coupon(self, openid: str, number: str, stock: str = "9856001", **changes: str) -> requests.Response:
        account = self.access["wechat_pay"]
        body = {
            "stock_id": stock,
            "out_request_no": number,
            "appid": account["appid"],
            "stock_creator_mchid": account["mchid"],
            **changes,
        }
        return self.pay("POST", f"/v3/marketing/favor/users/{openid}/coupons", body)

    # own pages --------------------------------------------------------------------------------------------------

    def events(self, since: datetime, until: datetime, page: int = 1, size: int = 500, **head: str) -> Any:
        account = self.access["own_pages"]
        query = urlencode(
            {"since": since.isoformat(), "until": until.isoformat(), "page": page, "page_size": size}, quote_via=quote
        )
        path = f"/pages/events?{query}"
        stamp = str(int(self.now().timestamp()))
        text = f"GET\n{path}\n{stamp}"
        sent = {
            "X-Pages-Key": account["key_id"],
            "X-Pages-Timestamp": stamp,
            "X-Pages-Signature": hmac.new(account["secret"].encode(), text.encode(), hashlib.sha256).hexdigest(),
            **head,
        }
        return self.http.get(account["base_url"] + f"/events?{query}", headers=sent, timeout=30)

    def all_events(self, since: datetime | None = None) -> list[dict[str, Any]]:
        """Every archived event up to now, all pages."""
        start = since or self.now() - timedelta(days=500)
        rows: list[dict[str, Any]] = []
        page, more = 1, True
        while more:
            answer = self.events(start, self.now() + timedelta(seconds=1), page).json()
            rows += answer["events"]
            page, more = page + 1, answer["has_more"]
        return rows
