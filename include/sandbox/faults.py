"""Faults on demand: which platform and method misbehaves how, how often, and after how many good answers."""

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeVar

# Shops and accounts that are read page by page; rest is the platform declared in YAML.
SHOPS = ("taobao", "jd", "youzan", "weidian", "wechat_store", "shopify", "woocommerce")
LISTS = (*SHOPS, "wechat_official", "weibo", "rest", "own_pages")
PUSHING = ("wechat_official",)
SMS = ("sms_aliyun", "sms_tencent")
PLATFORMS = (*LISTS, "wechat_pay", "jpush", "wecom", "robots", *SMS, "smtp")
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
    "call_limit": (*LISTS, "wechat_pay", "jpush", "wecom", *SMS),  # refused as the platform refuses too many calls
    "expired_token": (*LISTS, "wecom"),  # the token ran out just now; a new one, or a later call, works
    "revoked_token": LISTS,  # the authorisation was taken away: every token is refused as long as the fault lasts
    "expired_session": ("taobao", "wechat_official"),  # the older name of both
    "platform_busy": (*LISTS, "wechat_pay", "wecom", *SMS),  # the platform's own "system busy", inside its envelope
    "wrong_clock": LISTS,  # the platform's clock is off by `seconds`, in what it tells and in what it compares
    "duplicate_page": LISTS,  # every row of the page twice
    "shifting_page": SHOPS,  # rows are modified between two pages
    "empty_last_page": LISTS,  # an empty page although more was promised
    "ids_as_numbers": LISTS,  # ids that are strings come as JSON numbers, ids that are numbers as strings
    "null_fields": LISTS,  # fields that may be null are
    "missing_fields": LISTS,  # the first row of the page lacks a field it must have
    "emoji": LISTS,  # names and texts with emoji and characters of 4 bytes
    "missing_id": ("taobao", "wechat_official", "own_pages"),
    "bad_value": ("taobao", "own_pages"),
    "busy_after": SMS,  # it was done, but the answer is the platform's own "system busy"
    "no_money": SMS,
    "receipt_lost": SMS,  # accepted, and the carrier never reports
    "receipt_failed": SMS,
    "receipt_twice": SMS,
    "details_late": SMS,  # who asks what became of a message is told of none
    "push_lost": PUSHING,
    "push_twice": PUSHING,
    "bad_signature": ("wechat_pay",),
    "event_lost": ("wechat_official",),
    "event_twice": ("wechat_official",),
    "user_block": ("wechat_official",),
    "system_failed": ("wechat_official",),
    "smtp_451": ("smtp",),
    "smtp_550": ("smtp",),
    "drop_after_data": ("smtp",),
    "drop_before_data": ("smtp",),
    "dsn_hard": ("smtp",),  # accepted, and minutes later a report comes back: no such mailbox (5.1.1)
    "dsn_soft": ("smtp",),  # the mailbox is full (4.2.2), given up
    "dsn_delayed": ("smtp",),  # not given up yet: says nothing
    "dsn_policy": ("smtp",),  # refused for who we are (5.7.1)
    "arf": ("smtp",),  # the receiver calls it spam
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
    is_idle: bool = False  # it found nothing to spoil in this answer: it has not happened, and stays for a later one

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
        fault.is_idle = False
        return fault
    return None


def give_back(fault: Fault) -> None:
    """The fault found nothing to spoil: it did not fire."""
    if fault.times >= 0:
        fault.times += 1


# ------------------------------------------------------------------------------------------------------------ helpers

Row = dict[str, Any]
T = TypeVar("T")
EMOJI = "😀𠮷"  # both need 4 bytes in UTF-8 and two units in UTF-16
PAGE_KINDS = ("duplicate_page", "empty_last_page", "ids_as_numbers", "null_fields", "missing_fields", "emoji")
SHIFTED = 3  # rows that shifting_page modifies before it answers


def spoil_rows(
    fault: Fault | None,
    rows: list[Row],
    *,
    ids: Sequence[str] = (),
    nullable: Sequence[str] = (),
    required: Sequence[str] = (),
    texts: Sequence[str] = (),
) -> list[Row]:
    """The rows of one page as the fault leaves them: for duplicate_page, ids_as_numbers, null_fields, missing_fields, emoji.

    A field is named by its path, `order.id`; a list on the way stands for each of its elements. ids: 64-bit ids; nullable:
    fields that a platform may send as null without harm; required: the first row loses the first of them it has; texts:
    names and free texts. Other faults, and none, leave the rows alone. The rows given are never changed.
    """
    if fault is None:
        return rows
    if not rows:
        fault.is_idle = fault.kind in PAGE_KINDS
        return rows
    if fault.kind == "duplicate_page":
        return rows + rows
    changes: dict[str, tuple[Sequence[str], Callable[[Any], Any]]] = {
        "ids_as_numbers": (ids, _other_type),
        "null_fields": (nullable, lambda _: None),
        "emoji": (texts, lambda value: f"{value}{EMOJI}" if isinstance(value, str) else value),
    }
    if fault.kind == "missing_fields":
        spoilt = deepcopy(rows)
        for path in required:
            *way, last = path.split(".")
            if holders := [holder for holder in _holders(spoilt[0], way) if last in holder]:
                del holders[0][last]
                break
        return spoilt
    if fault.kind not in changes:
        return rows
    spoilt = deepcopy(rows)
    paths, change = changes[fault.kind]
    for row in spoilt:
        for path in paths:
            *way, last = path.split(".")
            for holder in _holders(row, way):
                if last in holder:
                    holder[last] = change(holder[last])
    return spoilt


def _holders(value: Any, way: Sequence[str]) -> Iterable[Row]:
    """The objects at the end of a path."""
    if isinstance(value, list):
        for part in value:
            yield from _holders(part, way)
    elif isinstance(value, dict):
        if not way:
            yield value
        elif way[0] in value:
            yield from _holders(value[way[0]], way[1:])


def _other_type(value: Any) -> Any:
    """A number for digits, digits for a number; lists element by element."""
    if isinstance(value, list):
        return [_other_type(part) for part in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def shift_rows(fault: Fault | None, found: Sequence[T], touch: Callable[[T, float], None], now: float) -> bool:
    """For shifting_page: modify the first rows of a list before it is answered; the caller then lists them again.

    `touch` is `Shop.touch`: `if shift_rows(fault, found, shop.touch, now): found = shop.changed_between(start, end, now)`.
    """
    if fault is None or fault.kind != "shifting_page":
        return False
    for row in found[:SHIFTED]:
        touch(row, now)
    fault.is_idle = not found
    return bool(found)


def clock_of(fault: Fault | None, now: float) -> float:
    """The platform's clock: off by `seconds` under wrong_clock."""
    return now + fault.seconds if fault is not None and fault.kind == "wrong_clock" else now


def emptied(fault: Fault | None, rows: list[Row]) -> list[Row]:
    """For empty_last_page: no rows, although the caller's cursor, count or has_more still promises some."""
    if fault is None or fault.kind != "empty_last_page":
        return rows
    fault.is_idle = not rows
    return []


def spoil_page(fault: Fault | None, rows: list[Row], promised: bool, **paths: Sequence[str]) -> list[Row]:
    """`emptied` where an earlier answer promised these rows, `spoil_rows` for the other kinds.

    `promised` False (one thing in full, the only page of a list without a count): empty_last_page waits for another answer.
    """
    if fault is None or fault.kind != "empty_last_page":
        return spoil_rows(fault, rows, **paths)
    fault.is_idle = not (promised and rows)
    return rows if fault.is_idle else []
