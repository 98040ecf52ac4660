"""The archive of our own follow-up pages: what people did there, and every push WeChat sent to us. Ordered by arrival."""

from bisect import bisect_left, insort
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Any

from .clock import iso

Event = dict[str, Any]
NUMBERS = {"CreateTime", "MsgID", "MsgId", "TotalCount", "FilterCount", "SentCount", "ErrorCount"}
ACCOUNT_ID = "gh_nightmarket01"  # ToUserName of every push


class Archive:
    def __init__(self, events: list[tuple[int, int, Event]] | None = None) -> None:
        self.events = events if events is not None else []
        self.on_push: Callable[[Event], None] | None = None  # set when a webhook is configured

    def copy(self) -> "Archive":
        return Archive(list(self.events))

    def add(self, kind: str, at: int, data: dict[str, Any], copy: int = 0) -> Event:
        """Archive one event; its id is a hash of what happened, `copy` tells apart one that arrives twice."""
        name = repr((kind, at, copy, sorted((key, str(value)) for key, value in data.items())))
        event = {
            "event_id": blake2b(name.encode(), digest_size=12).hexdigest(),
            "kind": kind,
            "received_at": iso(at),
            "data": data,
        }
        insort(self.events, (at, len(self.events), event), key=lambda entry: entry[:2])
        if kind == "wechat.event" and self.on_push:
            self.on_push(event)
        return event

    def add_push(self, appid: str, openid: str, at: int, message: Mapping[str, Any], copy: int = 0) -> Event:
        """A push of WeChat: `message` holds MsgType and what follows it."""
        fields: dict[str, Any] = {"ToUserName": ACCOUNT_ID, "FromUserName": openid, "CreateTime": str(at)}
        fields |= {name: value if isinstance(value, dict) else str(value) for name, value in message.items()}
        body = "".join(_element(name, value) for name, value in fields.items())
        return self.add("wechat.event", at, {"appid": appid, "xml": f"<xml>{body}</xml>", "fields": fields}, copy)

    def between(self, since: float, until: float) -> list[Event]:
        """Events received in [since, until)."""
        low = bisect_left(self.events, since, key=lambda entry: entry[0])
        high = bisect_left(self.events, until, key=lambda entry: entry[0])
        return [event for _, _, event in self.events[low:high]]


def _element(name: str, value: Any) -> str:
    """One element of a push; a list is an element that repeats."""
    if isinstance(value, list):
        return "".join(_element(name, part) for part in value)
    if isinstance(value, dict):
        return f"<{name}>{''.join(_element(inner, part) for inner, part in value.items())}</{name}>"
    return f"<{name}>{value if name in NUMBERS else f'<![CDATA[{value}]]>'}</{name}>"
