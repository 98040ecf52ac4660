"""Coupon codes: how they are made, read from lists, checked and redeemed. The clear code is in the vault and nowhere else.

An own code is 20 characters of an alphabet without look-alikes: 19 by chance (86 bits) and a checksum, written in groups of
four. A code is one coupon of one person for ever; docs/decisions/0076-coupon-issuers.md says when it may go back.
"""

import logging
import re
import secrets
import unicodedata
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg

from nightmarket import dates
from nightmarket.campaigns.audience import RunRefused, audit
from nightmarket.campaigns.stocks import balance, lock_stock, sync_stock
from nightmarket.privacy import Keyring, Tokenizer, mask, normalise, store_secrets
from nightmarket.settings import get_settings
from nightmarket.warehouse import Row, connect, run_sql

log = logging.getLogger(__name__)
ALPHABET = (
    "34679ACDEFHJKMNPRTUVWXY"  # without 0 O Q, 1 I L, 2 Z, 5 S, 8 B, G (6); 23 is a prime, the checksum needs one
)
LENGTH = 20
GROUP = 4
MADE_AT_ONCE = 10_000
DESK = "desk"  # source of what a person types in at a shop's desk
CODE = re.compile(r"[A-Z0-9]{4,64}")  # of a list, without spaces and hyphens
MAX_LINES = 5_000_000
BALANCE = {  # words of a person for the columns of push/coupons_balance.sql
    "budget": "budget_count", "can still be promised": "free_count", "codes made": "made_count", "codes free": "free_codes",
    "codes bound": "bound_count", "codes void": "void_count", "reserved": "reserved_count", "in doubt": "unknown_count",
    "issued, open": "open_count", "redeemed": "redeemed_count", "expired": "expired_count", "released": "released_count",
    "lines refused": "rejected_count",
}  # fmt: skip
ONLY_CODES = ("made_count", "free_codes", "bound_count", "void_count", "rejected_count")


class CodeRefused(ValueError):
    """This code cannot be used; one sentence says why, without the code."""


def make_code() -> str:
    """A new code, e.g. 3M7K-AATW-...; nobody can guess another one from it."""
    body = "".join(secrets.choice(ALPHABET) for _ in range(LENGTH - 1))
    code = body + ALPHABET[_weighed(body)]
    return "-".join(code[start : start + GROUP] for start in range(0, LENGTH, GROUP))


def is_sound(code: str) -> bool:
    """Does the checksum fit? Any single wrong character and any two that were swapped make it fail."""
    text = normalise("coupon", code)
    if len(text) != LENGTH or set(text) - set(ALPHABET):
        return False
    return ALPHABET[_weighed(text[:-1])] == text[-1]


def _weighed(body: str) -> int:
    """Positions weigh 2, 3, ... modulo the prime 23, the checksum itself weighs -1: all differ, none is 0."""
    return sum((position + 2) * ALPHABET.index(character) for position, character in enumerate(body)) % len(ALPHABET)


# --------------------------------------------------------------------------------------------------------------- stocks
def make(stock_id: str, count: int, *, by: str) -> int:
    """Make `count` codes of an own or points stock in advance; returns how many the stock has made so far.

    Raises RunRefused for another issuer, or when the stock would have more codes than its budget has pieces.
    """
    if count < 1:
        raise RunRefused("give a number of codes above 0.")
    with connect(application_name="nightmarket-coupons") as connection:
        stock = lock_stock(connection, sync_stock(connection, stock_id)["stock_id"])
        if stock["issuer"] not in ("own", "points"):
            raise RunRefused(
                f"coupon stock {stock_id} is of {stock['issuer']}; only own and points codes are made here."
            )
        made = int(balance(connection, stock_id)["made_count"])
        if made + count > stock["budget_count"]:
            raise RunRefused(
                f"coupon stock {stock_id} has {made:,} codes and a budget of {stock['budget_count']:,}; {count:,} more are too many."
            )
        add_codes(connection, stock_id, count, origin=f"made by {by}")
        audit(connection, by, "coupons_make", stock_id, {"codes": count})
    return made + count


def add_codes(connection: psycopg.Connection[Row], stock_id: str, count: int, *, origin: str) -> None:
    """`count` new own codes of a stock, in the caller's transaction; the same code twice is thrown away and made anew."""
    while count > 0:
        tokens = Tokenizer.from_settings()
        codes = {tokens.token("coupon", code): code for code in (make_code() for _ in range(min(count, MADE_AT_ONCE)))}
        count -= len(_store(connection, stock_id, codes, dict.fromkeys(codes, origin), tokens))


def _store(
    connection: psycopg.Connection[Row],
    stock_id: str,
    codes: dict[str, str],
    origins: dict[str, str],
    tokens: Tokenizer,
) -> set[str]:
    """Put codes (token -> clear) into the vault and the stock; returns the tokens that were new."""
    store_secrets(connection, tokens.secrets, Keyring.from_settings())
    rows = connection.execute(
        """
        INSERT INTO push.coupon_codes (code_token, stock_id, state, tail, origin, made_at, updated_at)
        SELECT u.token, %(stock)s, 'free', u.tail, u.origin, %(now)s, %(now)s
        FROM unnest(%(tokens)s::text[], %(tails)s::text[], %(origins)s::text[]) WITH ORDINALITY AS u (token, tail, origin, n)
        ORDER BY u.n
        ON CONFLICT (code_token) DO NOTHING
        RETURNING code_token
        """,
        {"stock": stock_id, "now": dates.now(), "tokens": list(codes), "origins": [origins[token] for token in codes],
         "tails": [mask("coupon", code) for code in codes.values()]},
    )  # fmt: skip
    return {row["code_token"] for row in rows}


@dataclass(frozen=True)
class Imported:
    """What came of a list: codes that are new, lines that were known from an earlier import, and refused lines with reasons."""

    added: int
    known: int
    refused: dict[int, str]


def import_codes(stock_id: str, path: Path, *, by: str) -> Imported:
    """Read a list of codes, one a line (or the first column of a CSV file), into a code_list stock. Reading it again adds nothing.

    Lines that hold no code, and codes that stand twice or belong to another stock, are kept in push.coupon_rejects by line
    and reason, never by what they say. Raises RunRefused when the stock is none of code_list, or the file cannot be read.
    """
    tokens = Tokenizer.from_settings()
    lines: dict[str, tuple[int, str]] = {}
    refused: dict[int, str] = {}
    for number, text in _lines(path):
        code = normalise("coupon", text)
        if not CODE.fullmatch(code):
            refused[number] = "not a code: 4 to 64 letters and digits"
            continue
        token = tokens.token("coupon", code)
        if token in lines:
            refused[number] = f"the same code as line {lines[token][0]}"
        else:
            lines[token] = (number, text)
    codes = {token: text for token, (_number, text) in lines.items()}
    tokens.secrets = codes  # the first spelling is the one people see
    origins = {token: f"{path.name}:{number}" for token, (number, _text) in lines.items()}
    with connect(application_name="nightmarket-coupons") as connection:
        stock = lock_stock(connection, sync_stock(connection, stock_id)["stock_id"])
        if stock["issuer"] != "code_list":
            raise RunRefused(
                f"coupon stock {stock_id} is of {stock['issuer']}; lists are read into stocks of code_list."
            )
        added = _store(connection, stock_id, codes, origins, tokens) if codes else set()
        known = 0
        for row in connection.execute(
            "SELECT code_token, stock_id FROM push.coupon_codes WHERE code_token = ANY(%s)",
            (sorted(set(codes) - added),),
        ):
            if row["stock_id"] == stock_id:
                known += 1
            else:
                refused[lines[row["code_token"]][0]] = "a code of another stock"
        connection.execute(
            """
            INSERT INTO push.coupon_rejects (stock_id, file_name, line_number, reason, rejected_at)
            SELECT %s, %s, u.number, u.reason, %s FROM unnest(%s::integer[], %s::text[]) AS u (number, reason)
            ON CONFLICT (stock_id, file_name, line_number) DO UPDATE SET reason = excluded.reason
            """,
            (stock_id, path.name, dates.now(), list(refused), list(refused.values())),
        )
        audit(connection, by, "coupons_import", stock_id,
              {"file": path.name, "added": len(added), "known": known, "refused": len(refused)})  # fmt: skip
    return Imported(len(added), known, dict(sorted(refused.items())))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number, first cell) of every filled line; a header line (code, 券码 ...) is none."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise RunRefused(f"{path}: {error.strerror}.") from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        try:
            text = raw.decode("gb18030")
        except UnicodeDecodeError as error:
            raise RunRefused(
                f"{path.name}: neither UTF-8 nor GB18030 at byte {error.start}; save it as UTF-8."
            ) from None
    for number, line in enumerate(text.splitlines(), start=1):
        if number > MAX_LINES:
            raise RunRefused(f"{path.name}: more than {MAX_LINES:,} lines; cut it into several files.")
        cell = unicodedata.normalize("NFKC", re.split(r"[,;\t]", line, maxsplit=1)[0]).strip().strip("\"'").strip()
        if cell and not (
            number == 1 and cell.lower() in ("code", "coupon_code", "券码", "优惠码", "优惠券码", "兑换码")
        ):
            yield number, cell


def stock_balance(stock_id: str) -> Row:
    """The balance of a stock, as push/coupons_balance.sql says. Raises RunRefused when nobody has used it yet."""
    with connect(application_name="nightmarket-coupons") as connection:
        row = balance(connection, stock_id)
    if row["stock_id"] is None:
        raise RunRefused(
            f"coupon stock {stock_id!r} was never used; make codes, import a list or make a dry run first."
        )
    return row


def bind(connection: psycopg.Connection[Row], stock: Row, keys: list[str]) -> int:
    """Give each reserved coupon of `keys` a code of its own, making what is missing; the caller holds the stock's lock.

    Raises RunRefused when a list has fewer codes left than are promised; then nothing is bound.
    """
    reserved = connection.execute(
        "SELECT count(*) AS n FROM push.coupons WHERE request_key = ANY(%s) AND state = 'reserved'", (keys,)
    ).fetchone()
    free = connection.execute(
        "SELECT count(*) AS n FROM push.coupon_codes WHERE stock_id = %s AND state = 'free'", (stock["stock_id"],)
    ).fetchone()
    assert reserved is not None
    assert free is not None
    missing = reserved["n"] - free["n"]
    if missing > 0:
        if stock["issuer"] == "code_list":
            raise RunRefused(
                f"coupon stock {stock['stock_id']} has {free['n']:,} codes left, {reserved['n']:,} are promised; import more."
            )
        add_codes(connection, stock["stock_id"], missing, origin="made on demand")
    run_sql(
        connection,
        "push/coupons_bind.sql",
        {
            "stock_id": stock["stock_id"],
            "keys": keys,
            "now_at": dates.now(),
            "today_ends": dates.day_end(dates.now().astimezone(get_settings().zone).date(), get_settings().zone),
        },
    )
    return int(reserved["n"])


# ----------------------------------------------------------------------------------------------------------------- desk
def look_up(code: str) -> dict[str, Any]:
    """What a shop desk needs to know of a code: its stock, value and whether it can be used now. Raises CodeRefused.

    Keys: stock, name, amount, minimum, valid_to, state (usable, early, redeemed, expired), used_at, source_id, order_id, masked.
    """
    with connect(application_name="nightmarket-coupons") as connection:
        return _describe(_known(connection, code), code)


def redeem(code: str, *, order_id: str | None, source_id: str | None, by: str) -> dict[str, Any]:
    """Use a code once; returns what look_up says afterwards. A second time raises CodeRefused and says when and where it was used.

    The order it is used on, when told, is the one that attribution finds.
    """
    with connect(application_name="nightmarket-coupons") as connection:
        row = _known(connection, code, lock=True)
        found = _describe(row, code)
        if found["state"] == "redeemed":
            place = (
                f"order {row['order_id']} of {row['source_id']}"
                if row["order_id"]
                else (row["source_id"] or "an unknown place")
            )
            raise CodeRefused(f"code {found['masked']} was used on {_local(row['used_at']):%Y-%m-%d %H:%M}, {place}.")
        if found["state"] == "early":
            raise CodeRefused(f"code {found['masked']} is not valid before {_local(row['valid_from']):%Y-%m-%d}.")
        if found["state"] != "usable":
            raise CodeRefused(f"code {found['masked']} expired on {found['valid_to']}.")
        now, token = dates.now(), row["code_token"]
        connection.execute(
            """
            INSERT INTO core.coupon_uses (source_id, use_id, code_token, order_source_id, order_id, used_at)
            VALUES (%s, %s, %s, %s, %s, %s)
            ON CONFLICT (source_id, use_id, code_token) DO NOTHING
            """,
            (DESK, f"desk/{uuid.uuid4().hex}", token, source_id, order_id, now),
        )
        settle(connection, token)
        audit(
            connection,
            by,
            "coupon_redeem",
            found["stock"],
            {"code": found["masked"], "order": order_id, "source": source_id},
        )
        return _describe(_known(connection, code), code)


def void(code: str, *, by: str, reason: str) -> str:
    """Take a code out of use for good, whoever has it; its coupon expires now. Returns it masked. Raises CodeRefused."""
    with connect(application_name="nightmarket-coupons") as connection:
        row = _known(connection, code, lock=True)
        found, now = _describe(row, code), dates.now()
        if found["state"] != "usable":
            raise CodeRefused(f"code {found['masked']} is {found['state']} already.")
        connection.execute(
            "UPDATE push.coupons SET valid_to = %s, updated_at = %s WHERE request_key = %s",
            (now, now, row["request_key"]),
        )
        audit(connection, by, "coupon_void", found["stock"], {"code": found["masked"], "reason": reason})
    return str(found["masked"])


def in_words(found: dict[str, Any]) -> str:
    """look_up for a person at a desk."""
    value = (
        f"code {found['masked']} of {found['stock']} ({found['name']}): {found['amount']} off {found['minimum']} yuan"
    )
    if found["state"] == "redeemed":
        place = f", order {found['order_id']} of {found['source_id']}" if found["order_id"] else ""
        return f"{value}, used on {found['used_at']}{place}"
    if found["state"] == "expired":
        return f"{value}, expired on {found['valid_to']}"
    return f"{value}, usable until {found['valid_to']}"


def settle(connection: psycopg.Connection[Row], code_token: str | None = None) -> dict[str, int]:
    """Turn what shops, tills and pages told about codes into redemptions; counts of codes by what they turned out to be."""
    counts = run_sql(connection, "push/coupons_settle.sql", {"code_token": code_token, "now_at": dates.now()})[0]
    return {name: int(count) for name, count in counts.items()}


def _known(connection: psycopg.Connection[Row], code: str, *, lock: bool = False) -> Row:
    text = normalise("coupon", code)
    row = connection.execute(
        "SELECT c.*, s.name, s.face_amount, s.minimum_amount, s.valid_from, coalesce(p.valid_to, s.valid_to) AS valid_to,"
        " p.state AS coupon_state, e.occurred_at AS used_at, e.source_id, e.order_id"
        " FROM push.coupon_codes AS c JOIN push.coupon_stocks AS s ON s.stock_id = c.stock_id"
        " LEFT JOIN push.coupons AS p ON p.request_key = c.request_key"
        " LEFT JOIN core.coupon_events AS e ON e.issuer = s.issuer AND e.platform_coupon_id = c.code_token AND e.kind = 'redeemed'"
        " WHERE c.code_token = %s" + (" FOR UPDATE OF c" if lock else ""),
        (Tokenizer.from_settings().token("coupon", text),),
    ).fetchone()
    if row is None:
        own = len(text) == LENGTH
        hint = "; a character is wrong or two are swapped, type it again" if own and not is_sound(text) else ""
        raise CodeRefused(f"code {mask('coupon', text)} is none of ours{hint}.")
    if row["state"] == "free":
        raise CodeRefused(f"code {row['tail']} of {row['stock_id']} was never given to anybody.")
    if row["state"] == "void":
        raise CodeRefused(f"code {row['tail']} of {row['stock_id']} was taken back and is not valid any more.")
    return row


def _describe(row: Row, code: str) -> dict[str, Any]:
    now = dates.now()
    if row["coupon_state"] == "redeemed":
        state = "redeemed"
    else:
        state = "expired" if row["valid_to"] < now else "early" if row["valid_from"] > now else "usable"
    return {
        "stock": row["stock_id"],
        "name": row["name"],
        "amount": str(row["face_amount"]),
        "minimum": str(row["minimum_amount"]),
        "valid_to": f"{_local(row['valid_to']):%Y-%m-%d}",
        "state": state,
        "used_at": row["used_at"] and f"{_local(row['used_at']):%Y-%m-%d %H:%M}",
        "source_id": row["source_id"],
        "order_id": row["order_id"],
        "masked": mask("coupon", normalise("coupon", code)),
    }


def _local(instant: datetime) -> datetime:
    return instant.astimezone(get_settings().zone)
