"""Faults on demand: which platform and method misbehaves how, how often, and after how many good answers."""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

PLATFORMS = ("taobao", "wechat_official", "wechat_pay", "own_pages", "smtp")
# Kinds every HTTP platform knows (app.py carries them out) ...
TRANSPORT = {
    "http_500": "HTTP 500, nothing was done",
    "http_502": "HTTP 502 with an HTML page, nothing was done",
    "http_503": "HTTP 503, nothing was done",
    "http_429": "HTTP 429 with Retry-After, nothing was done",
    "http_500_after": "it was done, the answer is HTTP 500",
    "timeout_before": "no answer for `seconds`, then the connection ends; nothing was done",
    "timeout_after": "it was done, but there is no answer for `seconds`, then the connection ends",
    "cut": "it was done, the connection ends in the middle of the answer",
    "cut_before": "the connection ends at once, nothing was done",
    "truncated_json": "half of the JSON, with a correct length",
    "garbage": "HTTP 200 with bytes that are no JSON",
    "empty": "HTTP 200 with an empty body",
    "slow": "the right answer after `seconds`",
}
# ... and kinds that only some platforms know (their modules carry them out).
SPECIAL = {
    "call_limit": ("taobao", "wechat_official", "wechat_pay"),
    "expired_session": ("taobao", "wechat_official"),
    "platform_busy": ("taobao", "wechat_official", "wechat_pay"),
    "duplicate_page": ("taobao", "wechat_official", "own_pages"),
    "shifting_page": ("taobao",),
    "missing_id": ("taobao", "wechat_official", "own_pages"),
    "bad_value": ("taobao", "own_pages"),
    "bad_signature": ("wechat_pay",),
    "event_lost": ("wechat_official",),
    "event_twice": ("wechat_official",),
    "user_block": ("wechat_official",),
    "system_failed": ("wechat_official",),
    "smtp_451": ("smtp",),
    "smtp_550": ("smtp",),
    "drop_after_data": ("smtp",),
    "drop_before_data": ("smtp",),
}


class FaultError(ValueError):
    """A fault that was asked for does not exist; str() is the sentence for the caller."""


@dataclass(slots=True)
class Fault:
    platform: str
    method: str  # fnmatch pattern; `custom/send` also matches at the end of a longer path
    kind: str
    times: int = 1  # how often it fires; -1 = until it is taken away
    after: int = 0  # good answers before that
    seconds: float = 5.0

    def matches(self, platform: str, method: str) -> bool:
        return self.platform == platform and (fnmatchcase(method, self.method) or method.endswith("/" + self.method))


def parse_faults(body: Any) -> list[Fault]:
    """The faults of a control request. Raises FaultError."""
    entries = body.get("faults") if isinstance(body, dict) else None
    if not isinstance(entries, list):
        raise FaultError('the body must be {"faults": [...]}; an empty list takes all faults away')
    faults = []
    for entry in entries:
        try:
            fault = Fault(**{"method": "*", **entry})
        except TypeError as error:
            raise FaultError(f"a fault has platform, method, kind, times, after and seconds, not {entry!r}") from error
        if fault.platform not in PLATFORMS:
            raise FaultError(f"there is no platform {fault.platform!r}; known are {', '.join(PLATFORMS)}")
        known = TRANSPORT if fault.platform != "smtp" else {}
        if fault.kind not in known and fault.platform not in SPECIAL.get(fault.kind, ()):
            raise FaultError(f"{fault.platform} has no fault {fault.kind!r}")
        fault.method = fault.method.removeprefix("/") or "*"
        faults.append(fault)
    return faults


def take(faults: list[Fault], platform: str, method: str) -> Fault | None:
    """The fault that fires for this request, if any; counts it down."""
    for fault in faults:
        if fault.times == 0 or not fault.matches(platform, method):
            continue
        if fault.after > 0:
            fault.after -= 1
            continue
        if fault.times > 0:
            fault.times -= 1
        return fault
    return None
