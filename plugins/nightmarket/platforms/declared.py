"""Tables of strangers, declared in YAML: which column is which of our fields, and how its text becomes a value.

Shared by the platforms that have no fixed shape (files, declared REST). A *table* is one entity (orders, lines, payments,
refunds, reviews, customers, products). Its rows become records of canonical fields: ids and texts as text, amounts as
decimal text in currency units, instants as ISO text with an offset, yes and no as booleans. include/sql/core/declared maps
these records, whatever they came from.

What cannot be read becomes a sentence that names field and column and shows the *shape* of the value, never the value.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any, Literal
from zoneinfo import ZoneInfo

from pydantic import AliasChoices, Field, field_validator, model_validator

from nightmarket.platforms.base import Record
from nightmarket.settings import StrictModel

ORDER_STATUSES = ("unpaid", "paid", "shipped", "signed", "finished", "refunded", "cancelled")
REFUND_STATUSES = ("requested", "returning", "refused", "closed", "settled")
NEVER_PAID = ("unpaid", "cancelled")
EMPTY = ("", "-", "--", "—", "NULL", "null", "None", "N/A", "#N/A", "\\N", "无", "0000-00-00 00:00:00", "0000-00-00")
YES_NO = {"是": True, "否": False, "有": True, "无": False, "y": True, "n": False, "yes": True, "no": False, "true": True,
          "false": False, "1": True, "0": False}  # fmt: skip
UNITS = {
    "yuan": Decimal(1),
    "fen": Decimal("0.01"),
    "cent": Decimal("0.01"),
    "thousand": Decimal(1000),
    "wan": Decimal(10_000),
}
YEARS = (1990, 2100)  # an instant outside of them is a mistake of the file
SHAPE_LENGTH = 24  # characters of a shape that a sentence shows
EXCEL_DAY_ZERO = datetime(1899, 12, 30)  # noqa: DTZ001 - the wall clock of a cell; its zone is declared


# ----------------------------------------------------------------------------------------------------------- entities
Kind = Literal[
    "id",
    "text",
    "prose",
    "amount",
    "number",
    "time",
    "flag",
    "status",
    "rating",
    "phone",
    "email",
    "name",
    "address",
    "nick",
    "coupon",
]
PERSONAL: tuple[Kind, ...] = ("phone", "email", "name", "address", "nick", "coupon")


@dataclass(frozen=True)
class Entity:
    """A thing a table can hold: its fields with their kinds, and those without which a row is nothing."""

    fields: Mapping[str, Kind]
    required: tuple[str, ...]
    key: str = ""  # names the record; entities without one are parts of another record
    statuses: tuple[str, ...] = ()


BUYER: Mapping[str, Kind] = {
    "customer_id": "id",  # what the shop calls the buyer
    "card": "id",  # number of a member card
    "phone": "phone",
    "email": "email",
    "name": "name",
    "nick": "nick",
    "address": "address",
    "language": "text",
}
ENTITIES: Mapping[str, Entity] = {
    "orders": Entity(
        {
            "order_id": "id", "status": "status", "is_paid": "flag", "paid_amount": "amount", "goods_amount": "amount",
            "postage_amount": "amount", "line_count": "number", "city": "text", "created_at": "time", "paid_at": "time",
            "shipped_at": "time", "signed_at": "time", "modified_at": "time", "shipment_id": "id", "carrier": "text",
            "coupon_code": "coupon", "remark": "prose", **BUYER,
        },
        ("order_id", "status", "created_at"),
        "order_id",
        ORDER_STATUSES,
    ),
    "lines": Entity(
        {
            "order_id": "id", "line_id": "id", "product_id": "id", "outer_id": "id", "title": "text", "unit_price": "amount",
            "quantity": "number", "line_amount": "amount", "paid_amount": "amount", "status": "text",
        },
        ("product_id",),
    ),
    "payments": Entity(
        {"order_id": "id", "payment_id": "id", "amount": "amount", "paid_at": "time", "method": "text"}, ("amount",)
    ),
    "refunds": Entity(
        {
            "refund_id": "id", "order_id": "id", "line_id": "id", "status": "status", "is_money": "flag",
            "refund_amount": "amount", "quantity": "number", "reason": "prose", "created_at": "time", "settled_at": "time",
            "modified_at": "time", **BUYER,
        },
        ("refund_id", "order_id", "status", "refund_amount", "created_at"),
        "refund_id",
        REFUND_STATUSES,
    ),
    "reviews": Entity(
        {
            "review_id": "id", "order_id": "id", "line_id": "id", "product_id": "id", "rating": "rating", "content": "prose",
            "reply": "prose", "created_at": "time", "replied_at": "time", "modified_at": "time", **BUYER,
        },
        ("review_id", "order_id", "rating", "created_at"),
        "review_id",
    ),
    "customers": Entity(
        {
            **BUYER, "is_member": "flag", "level": "text", "points": "number", "order_count": "number",
            "spent_amount": "amount", "joined_at": "time", "last_order_at": "time", "modified_at": "time",
        },
        ("customer_id",),
        "customer_id",
    ),
    "products": Entity(
        {
            "product_id": "id", "outer_id": "id", "title": "text", "price_amount": "amount", "is_listed": "flag",
            "modified_at": "time",
        },
        ("product_id", "title"),
        "product_id",
    ),
}  # fmt: skip
TABLES = tuple(name for name, entity in ENTITIES.items() if entity.key)  # those that are streams of their own


# --------------------------------------------------------------------------------------------------------- conversion
class Unreadable(ValueError):
    """A value that is not what its field needs; `str()` says why, without the value."""


def clean(text: str) -> str:
    """A cell's text as people mean it: full-width forms narrowed, spreadsheet wrappings (="001", '001, tabs) taken off."""
    if text.isascii():
        if text.isalnum():
            return text
        text = text.strip()
    else:
        text = unicodedata.normalize("NFKC", text).strip().strip("\ufeff\u200b\t").strip()
    if text.startswith('="') and text.endswith('"') and len(text) > 2:
        text = text[2:-1].strip()
    return text.removeprefix("'").strip()


def shape(value: object) -> str:
    """What a value looks like, without what it says: 9 for digits, a for letters, 字 for Chinese, signs as they are."""
    if not isinstance(value, str):
        return f"a {type(value).__name__}"
    marks = "".join(_mark(character) for character in value[:SHAPE_LENGTH])
    return f'"{marks}{"…" if len(value) > SHAPE_LENGTH else ""}"'


def _mark(character: str) -> str:
    if character.isdigit():
        return "9"
    if character.isascii():
        return "a" if character.isalpha() else character
    return "字" if character.isalpha() else "?"


def to_number(value: object, decimal_sign: str = ".", thousand_sign: str = ",") -> Decimal:
    """The number that a cell or a JSON value holds: currency signs, full-width digits and thousand signs understood.

    Negative as -1, 1- or (1). Thousand signs must stand where they belong, so that a decimal comma that was not declared
    is refused and not read as a thousand times more. Raises Unreadable.
    """
    if isinstance(value, bool):
        raise Unreadable("is yes or no, not a number")
    if isinstance(value, int | Decimal):
        return Decimal(value)
    if isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            raise Unreadable("is not a finite number")
        return Decimal(format(value, ".15g"))  # what a spreadsheet shows of its binary fractions
    if not isinstance(value, str):
        raise Unreadable(f"is not a number but {shape(value)}")
    if decimal_sign == "." and PLAIN.fullmatch(value):
        return Decimal(value)
    text, sign = _bare_number(clean(value))
    whole, point, fraction = text.partition(decimal_sign)
    groups = whole.split(_narrow(thousand_sign)) if thousand_sign else [whole]
    is_grouped = len(groups) > 1
    well_grouped = 1 <= len(groups[0]) <= 3 and all(len(group) == 3 for group in groups[1:])
    digits = "".join(groups)
    if (is_grouped and not well_grouped) or not _all_digits(digits or "0") or not _all_digits(fraction or "0"):
        raise Unreadable(
            f"is not a number with decimal sign {decimal_sign!r} and thousand sign {thousand_sign!r}: {shape(value)}"
        )
    if not digits and not fraction:
        raise Unreadable(f"is not a number: {shape(value)}")
    return Decimal(f"{sign}{digits or '0'}.{fraction or '0'}") if point else Decimal(f"{sign}{digits}")


PLAIN = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")
CURRENCY = re.compile(r"^(?:CNY|RMB|EUR|USD|US\$|[¥$€£元])|(?:CNY|RMB|EUR|USD|[¥$€£元])$", re.IGNORECASE)


def _bare_number(text: str) -> tuple[str, str]:
    """The digits and signs of a number without currency, and "-" or "" for its sign."""
    sign = ""
    if text.startswith("(") and text.endswith(")"):
        text, sign = text[1:-1], "-"
    for _ in range(2):  # a minus before or behind the currency sign
        text = CURRENCY.sub("", text.strip()).strip()
        text = text.replace("\u2212", "-")
        if not sign and text[:1] in ("-", "+"):
            sign, text = text[:1].replace("+", ""), text[1:].strip()
        elif not sign and text[-1:] == "-":
            sign, text = "-", text[:-1].strip()
    return _narrow(text), sign


def _narrow(text: str) -> str:
    """Every kind of space and apostrophe that is used between thousands, as the plain one."""
    return re.sub(r"[\u00a0\u2009\u202f]", " ", text).replace("\u2019", "'")


def _all_digits(text: str) -> bool:
    return text.isascii() and text.isdigit()


def to_decimal_text(number: Decimal) -> str:
    """A number as records hold it: plain digits, no exponent, no zeros that say nothing."""
    text = format(number, "f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text in ("-0", "") else text


ISO_LIKE = re.compile(
    r"(?P<y>\d{4})\s*[-/.年]\s*(?P<m>\d{1,2})\s*[-/.月]\s*(?P<d>\d{1,2})\s*日?"
    r"(?:[T\s]*(?P<h>\d{1,2})\s*[:时]\s*(?P<min>\d{1,2})\s*(?:[:分]\s*(?:(?P<s>\d{1,2})(?:[.,](?P<f>\d{1,9}))?\s*秒?)?)?)?"
    r"\s*(?P<zone>Z|[+-]\d{2}:?\d{2})?"
)
COMPACT = re.compile(r"(?P<y>\d{4})(?P<m>\d{2})(?P<d>\d{2})(?:(?P<h>\d{2})(?P<min>\d{2})(?P<s>\d{2}))?")


def to_instant(value: object, zone: ZoneInfo, formats: Sequence[str] = ()) -> datetime:
    """The instant that a cell or a JSON value names; a wall clock without an offset is read in `zone`, a day is its midnight.

    Without `formats`, what cannot be misread is understood: year first (2026-03-14 09:05, 2026/3/14, 2026年3月14日 9时5分,
    20260314090500, ISO 8601 with an offset), numbers of a spreadsheet (days) and of Unix (seconds, milliseconds). Anything
    else needs `formats`: strptime patterns, or `excel`, `epoch`, `epoch_ms`. Raises Unreadable.
    """
    if isinstance(value, datetime):
        return _judged(value if value.tzinfo else value.replace(tzinfo=zone))
    if isinstance(value, date):
        return _judged(datetime.combine(value, time.min, tzinfo=zone))
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise Unreadable(f"is not a time but {shape(value)}")
    if isinstance(value, int | float):
        return _judged(_from_count(float(value), zone, formats))
    text = clean(value)
    if not formats:
        found = _year_first(text, zone)
        if found is None:
            raise Unreadable(f"is not a time that begins with the year: {shape(value)}; declare time_formats")
        return _judged(found)
    for pattern in formats:
        found = _by_pattern(text, pattern, zone)
        if found is not None:
            return _judged(found)
    raise Unreadable(f"is not a time of the form {' or '.join(formats)}: {shape(value)}")


def _year_first(text: str, zone: ZoneInfo) -> datetime | None:
    match = ISO_LIKE.fullmatch(text) or COMPACT.fullmatch(text)
    if match is None:
        return None
    part = match.groupdict()
    try:
        found = datetime(
            int(part["y"]), int(part["m"]), int(part["d"]), int(part["h"] or 0), int(part["min"] or 0), int(part["s"] or 0),
            int((part.get("f") or "0").ljust(6, "0")[:6]), tzinfo=zone,
        )  # fmt: skip
        offset = part.get("zone")
        if offset:
            found = found.replace(tzinfo=datetime.strptime(offset, "%z").tzinfo)
    except ValueError:
        return None
    return found


def _by_pattern(text: str, pattern: str, zone: ZoneInfo) -> datetime | None:
    if pattern in ("excel", "epoch", "epoch_ms"):
        try:
            return _from_count(float(text), zone, (pattern,))
        except ValueError:
            return None
    try:
        found = datetime.strptime(text, pattern)  # noqa: DTZ007 - the zone follows
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=zone)


def _from_count(number: float, zone: ZoneInfo, formats: Sequence[str]) -> datetime:
    """Days of a spreadsheet or seconds of Unix: their ranges do not meet, so that they need not be declared."""
    try:
        if "excel" in formats or (not formats and 30_000 <= number < 80_000):
            return (EXCEL_DAY_ZERO + timedelta(seconds=round(number * 86_400))).replace(tzinfo=zone)
        if "epoch_ms" in formats or (not formats and 1e11 <= number < 1e13):
            return datetime.fromtimestamp(number / 1000, UTC)
        if "epoch" in formats or (not formats and 1e8 <= number < 1e10):
            return datetime.fromtimestamp(number, UTC)
    except (OverflowError, ValueError, OSError):
        pass
    raise Unreadable("is not a time but a number that counts neither days nor seconds")


def _judged(instant: datetime) -> datetime:
    if not YEARS[0] <= instant.year <= YEARS[1]:
        raise Unreadable(f"is a time outside of the years {YEARS[0]} to {YEARS[1]}")
    return instant


SHORTENED = re.compile(r"\d(?:\.\d+)?[eE]\+\d{1,3}")


def to_id(value: object) -> str:
    """An id as text. Raises Unreadable for one that a spreadsheet has rounded: its last digits are lost."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise Unreadable(f"is not an id but {shape(value)}")
    if isinstance(value, float):
        if not value.is_integer() or abs(value) >= 2**53:
            raise Unreadable("is a number that cannot be an id; export the column as text")
        return str(int(value))
    text = clean(str(value))
    if SHORTENED.fullmatch(text):
        raise Unreadable(f"is a number that a spreadsheet has shortened: {shape(text)}; export the column as text")
    return text


def to_text(value: object) -> str:
    """Text as it stands, without the spaces around it; numbers without an empty fraction."""
    if isinstance(value, str):
        return value.strip().strip("\ufeff")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def to_flag(value: object) -> bool:
    """Yes or no in the usual words. Raises Unreadable."""
    if isinstance(value, bool):
        return value
    text = clean(to_text(value)).lower()
    if text not in YES_NO:
        raise Unreadable(f"is neither yes nor no: {shape(text)}; declare values")
    return YES_NO[text]


# ------------------------------------------------------------------------------------------------------------ tables
class Formats(StrictModel):
    """How texts are to be read. What is not set is taken from the level above: column, table, source."""

    zone: str | None = None  # of times without an offset
    time_formats: tuple[str, ...] | None = None  # strptime patterns, excel, epoch, epoch_ms; unset: year first
    decimal_sign: Literal[".", ","] | None = None
    thousand_sign: Literal[",", ".", " ", "'", ""] | None = None
    unit: Literal["yuan", "fen", "cent", "thousand", "wan"] | None = None  # of amounts
    empty: tuple[str, ...] | None = None  # texts that mean nothing

    @field_validator("zone")
    @classmethod
    def _zone_exists(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                ZoneInfo(value)
            except (KeyError, ValueError, OSError) as error:
                raise ValueError(f"unknown time zone {value!r}; use a name like Asia/Shanghai") from error
        return value

    @field_validator("time_formats")
    @classmethod
    def _formats_are_known(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for pattern in value or ():
            if pattern not in ("excel", "epoch", "epoch_ms") and "%Y" not in pattern and "%y" not in pattern:
                raise ValueError(f"{pattern!r} has no year (%Y); use a strptime pattern, excel, epoch or epoch_ms")
        return value

    @model_validator(mode="after")
    def _signs_differ(self) -> "Formats":
        if self.decimal_sign is not None and self.decimal_sign == self.thousand_sign:
            raise ValueError(f"decimal_sign and thousand_sign are both {self.decimal_sign!r}; one of them is wrong")
        return self


class Column(Formats):
    """Where a canonical field comes from. In YAML a plain text stands for `{column: text}`."""

    column: str | None = Field(default=None, validation_alias=AliasChoices("column", "path"))
    constant: str | int | float | bool | None = None  # instead of a column
    default: str | int | float | bool | None = None  # when the column is empty
    values: dict[str, str | int | float | bool] | None = None  # text of the column -> what it means
    pattern: str | None = None  # regular expression; its first group, or all of it, is the value

    @model_validator(mode="before")
    @classmethod
    def _plain_text(cls, value: Any) -> Any:
        return {"column": value} if isinstance(value, str) else value

    @field_validator("pattern")
    @classmethod
    def _pattern_compiles(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"{value!r} is not a regular expression: {error}") from error
        return value

    @model_validator(mode="after")
    def _comes_from_somewhere(self) -> "Column":
        if (self.column is None) == (self.constant is None):
            raise ValueError("give either a column or a constant")
        return self


class Table(Formats):
    """One entity of a source: its columns, the meaning of its status words, what else is kept."""

    columns: dict[str, Column] = Field(min_length=1, validation_alias=AliasChoices("columns", "fields"))
    statuses: dict[str, str] = Field(default_factory=dict)  # the stranger's word -> ours
    keep: tuple[str, ...] | Literal["*"] = ()  # further columns that stay in raw; others are not stored
    personal: dict[str, Literal["phone", "email", "name", "address", "nick"]] = Field(default_factory=dict)  # of these

    @field_validator("statuses", mode="before")
    @classmethod
    def _words_are_text(cls, value: Any) -> Any:
        return {str(word): meaning for word, meaning in value.items()} if isinstance(value, dict) else value


def judge(entity: str, table: Table, where: str) -> None:
    """Raise ValueError with a sentence when `table` cannot be one of `entity`; `where` names it in the sentence."""
    known = ENTITIES[entity]
    for name, column in table.columns.items():
        if name not in known.fields:
            raise ValueError(
                f"{where}.columns: {entity} have no field {name!r}; known: {', '.join(sorted(known.fields))}"
            )
        if (
            known.fields[name] == "status"
            and column.constant is not None
            and str(column.constant) not in known.statuses
        ):
            raise ValueError(
                f"{where}.columns.{name}: {column.constant!r} is not one of ours: {', '.join(known.statuses)}"
            )
    missing = [name for name in known.required if name not in table.columns]
    if missing:
        raise ValueError(f"{where}.columns: {entity} need {' and '.join(missing)}")
    for word, status in table.statuses.items():
        if status not in known.statuses:
            ours = ", ".join(known.statuses) or f"{entity} have no statuses"
            raise ValueError(f"{where}.statuses: {word!r} becomes {status!r}, which is not one of ours: {ours}")


def safe_name(column: str) -> str:
    """A column's name as a key of `original`: without what has a meaning in paths."""
    return column.replace(".", "_").replace("[", "(").replace("]", ")").strip()


@dataclass(frozen=True)
class Converted:
    """A row as a record of canonical fields, and what is wrong with it. Values that cannot be read are left out."""

    record: Record
    problems: tuple[str, ...]


class Reader:
    """Turns rows of one declared table into records. `parents`: the formats of the levels above, nearest first."""

    def __init__(self, entity: str, table: Table, *parents: Formats) -> None:
        self.entity = ENTITIES[entity]
        self.name = entity
        self.table = table
        self._columns = [
            _Compiled(name, self.entity.fields[name], column, table, (column, table, *parents), self.entity.statuses)
            for name, column in table.columns.items()
        ]
        self._mapped = {column.column for column in table.columns.values() if column.column}

    def columns(self) -> set[str]:
        """The columns that a row must have: a header without one of them is another table's."""
        return set(self._mapped)

    def personal(self, prefix: str = "") -> dict[str, str]:
        """Dotted paths of the personal values of a record, for Stream.personal."""
        paths: dict[str, str] = {prefix + c.name: c.kind for c in self._columns if c.kind in PERSONAL}
        return paths | {f"{prefix}original.{safe_name(column)}": kind for column, kind in self.table.personal.items()}

    def free_text(self, prefix: str = "") -> tuple[str, ...]:
        """Dotted paths where people write what they like, and what was kept as it stood, for Stream.free_text."""
        # many shops number their members by phone
        prose = [
            prefix + c.name for c in self._columns if c.kind in ("prose", "text") or c.name in ("customer_id", "card")
        ]
        return (*prose, f"{prefix}original.*")

    def convert(self, value_of: Callable[[str], Any], columns: Iterable[str] = ()) -> Converted:
        """One row. `value_of(column)` gives a cell (None or "" when empty); `columns` are all there are, for `keep: "*"`.

        `original` holds the texts that were not ours already: of mapped columns and of `keep`, of `personal` as tokens.
        """
        record: Record = {}
        original: dict[str, Any] = {}
        problems: list[str] = []
        for column in self._columns:
            try:
                value, text = column.read(value_of)
            except Unreadable as error:
                problems.append(f"{column.words()} {error}")
                continue
            if value is None:
                if column.name in self.entity.required:
                    problems.append(f"{column.words()} is empty")
                continue
            record[column.name] = value
            if column.kind in ("status", "rating"):
                record[f"{column.name}_original"] = text
            elif column.column and column.kind not in PERSONAL and text != str(value):
                original[column.original] = text
        wanted = self.table.keep if self.table.keep != "*" else tuple(columns)
        for name in (*wanted, *self.table.personal):
            value = value_of(name) if name not in self._mapped else None
            if value not in (None, ""):
                original[safe_name(name)] = (
                    value if isinstance(value, str | int | bool | dict | list) else to_text(value)
                )
        if original:
            record["original"] = original
        return Converted(record, tuple(problems))


class _Compiled:
    """One column with its formats resolved."""

    def __init__(
        self,
        name: str,
        kind: Kind,
        column: Column,
        table: Table,
        levels: tuple[Formats, ...],
        statuses: tuple[str, ...],
    ) -> None:
        def level(setting: str, default: Any) -> Any:
            return next((getattr(each, setting) for each in levels if getattr(each, setting) is not None), default)

        self.name, self.kind, self.column = name, kind, column.column
        self.original = safe_name(column.column or name)
        self.constant, self.default = column.constant, column.default
        self.pattern = re.compile(column.pattern) if column.pattern else None
        self.values = {clean(word): meaning for word, meaning in (column.values or {}).items()}
        self.statuses = {clean(word): status for word, status in table.statuses.items()}
        self.ours = statuses
        self.zone = ZoneInfo(level("zone", "Asia/Shanghai"))
        self.formats = tuple(level("time_formats", ()))
        self.decimal_sign = level("decimal_sign", ".")
        self.thousand_sign = level("thousand_sign", "," if self.decimal_sign == "." else ".")
        self.factor = UNITS[level("unit", "yuan")]
        self.empty = frozenset(level("empty", EMPTY)) | {""}

    def words(self) -> str:
        return f"{self.name} (column {self.column})" if self.column else self.name

    def read(self, value_of: Callable[[str], Any]) -> tuple[Any, str]:
        """(canonical value or None when empty, the text it came from). Raises Unreadable."""
        value = value_of(self.column) if self.column is not None else self.constant
        if isinstance(value, str):
            found = self.pattern.search(value) if self.pattern else None
            if self.pattern:
                value = (found.group(1) if self.pattern.groups else found.group()) if found else None
        if value is None or (
            isinstance(value, str | int) and self._is_empty(clean(str(value)))
        ):  # 0 where it means never
            value = self.default
        if value is None:
            return None, ""
        text = to_text(value)
        if self.values:
            if clean(text) in self.values:
                value = self.values[clean(text)]
            elif self.kind not in ("amount", "number", "rating"):
                raise Unreadable(f"is none of the declared values: {shown(text)}; add it to values")
        return self._typed(value), text

    def _is_empty(self, text: str) -> bool:
        says_no = self.kind == "flag" and text.lower() in YES_NO  # 无 is an answer there
        return text in self.empty and not says_no

    def _typed(self, value: Any) -> Any:
        if self.kind == "id":
            return to_id(value)
        if self.kind in PERSONAL:
            return to_id(value) if self.kind == "phone" else to_text(value)
        if self.kind == "amount":
            return to_decimal_text(to_number(value, self.decimal_sign, self.thousand_sign) * self.factor)
        if self.kind == "number":
            return to_decimal_text(to_number(value, self.decimal_sign, self.thousand_sign))
        if self.kind == "time":
            return _instant_text(value, self.zone, self.formats)
        if self.kind == "flag":
            return to_flag(value)
        if self.kind == "status":
            return self._status(value)
        if self.kind == "rating":
            return self._rating(value)
        return to_text(value)

    def _status(self, value: Any) -> str:
        word = clean(to_text(value))
        status = self.statuses.get(word)
        if status is None and word in self.ours and (self.column is None or not self.statuses):
            status = word  # a constant, a default, or a file that uses our words
        if status is None:
            raise Unreadable(f"is a word that the table `statuses` does not have: {shown(word)}; add it there")
        return status

    def _rating(self, value: Any) -> int:
        number = to_number(value, self.decimal_sign, self.thousand_sign)
        if number not in (1, 2, 3, 4, 5):
            raise Unreadable("is not a rating from 1 to 5; declare values")
        return int(number)


def shown(word: str) -> str:
    """A status word, which a person needs to see to declare it; anything that could be more is shown as its shape."""
    if len(word) <= 12 and not re.search(r"\d{4}|@", word):
        return f'"{word}"'
    return shape(word)


@lru_cache(maxsize=100_000)
def _cached_instant(text: str, zone: ZoneInfo, formats: tuple[str, ...]) -> str:
    return to_instant(text, zone, formats).isoformat()


def _instant_text(value: Any, zone: ZoneInfo, formats: tuple[str, ...]) -> str:
    return (
        _cached_instant(value, zone, formats)
        if isinstance(value, str)
        else to_instant(value, zone, formats).isoformat()
    )


# ------------------------------------------------------------------------------------------------------------- orders
def complete_order(order: Record, lines: Sequence[Record], payments: Sequence[Record] = ()) -> list[str]:
    """Put lines and payments into an order, derive what the export leaves to the reader; returns what is wrong, in words.

    Lines without an id are counted from 1. A missing price is amount / quantity and the other way round; a line's paid
    amount defaults to its amount. An order's paid amount defaults to its payments, then to its lines; paid_at to the last
    payment, and of what was paid at once to its creation; is_paid to what the status says. `line_count` and `goods_amount`, where the export has them, must agree.
    """
    problems: list[str] = []
    for number, line in enumerate(lines, start=1):
        problems += complete_line(line, number)
    ids = [line.get("line_id") for line in lines]
    problems += [f"line {name} stands twice" for name in sorted({i for i in ids if i is not None and ids.count(i) > 1})]
    order["lines"] = list(lines)
    if payments:
        order["payments"] = list(payments)
        times = [payment["paid_at"] for payment in payments if payment.get("paid_at")]
        if times and not order.get("paid_at"):
            order["paid_at"] = max(times, key=datetime.fromisoformat)
    if order.get("paid_amount") is None:
        amounts = [payment.get("amount") for payment in payments] or [line.get("paid_amount") for line in lines]
        numbers = [_number(amount) for amount in amounts]
        if not numbers or any(number is None for number in numbers):
            problems.append("paid_amount is in no column, and there are no payments or lines to add up")
        else:
            order["paid_amount"] = to_decimal_text(sum((n for n in numbers if n is not None), Decimal(0)))
    if order.get("is_paid") is None and order.get("status") is not None:
        order["is_paid"] = order["status"] not in NEVER_PAID
    if order.get("is_paid", False):
        order.setdefault("paid_at", order.get("created_at"))
    return problems


def complete_line(line: Record, number: int) -> list[str]:
    """Derive what a line leaves to the reader; returns what is wrong. `number` is its place in the order, from 1."""
    if line.get("line_id") is None:
        line["line_id"] = str(number)
    quantity = _number(line.get("quantity", "1"))
    price, amount = _number(line.get("unit_price")), _number(line.get("line_amount"))
    if quantity is None:
        return [f"line {line['line_id']}: quantity is not a number"]
    if price is None and amount is None:
        amount = _number(line.get("paid_amount"))
    if price is None and amount is not None and quantity:
        price = (amount / quantity).quantize(Decimal("0.000001"))
    if price is None:
        return [f"line {line['line_id']}: unit_price is missing, and line_amount too"]
    line["quantity"] = to_decimal_text(quantity)
    line["unit_price"] = to_decimal_text(price)
    if line.get("paid_amount") is None:
        line["paid_amount"] = to_decimal_text(amount if amount is not None else price * quantity)
    line.setdefault("title", line.get("product_id"))
    return []


def missing_lines(order: Record, lines: Sequence[Record]) -> str | None:
    """What an order still waits for, in words: it tells how many lines it has or what they cost, and they are fewer or less."""
    if not lines:
        return "its lines"
    count = _number(order.get("line_count"))
    if count is not None and len(lines) < count:
        return f"{count - len(lines)} of its {to_decimal_text(count)} lines"
    goods = _number(order.get("goods_amount"))
    if goods is not None and count is None:
        total = Decimal(0)
        for line in lines:
            price, quantity = _number(line.get("unit_price")), _number(line.get("quantity", "1"))
            amount = _number(line.get("line_amount"))
            if amount is None and (price is None or quantity is None):
                return None
            total += amount if amount is not None else (price or Decimal(0)) * (quantity or Decimal(0))
        if goods - total > Decimal("0.05") and goods > total:
            return "lines for a part of its goods amount"
    return None


def _number(text: Any) -> Decimal | None:
    try:
        return None if text is None else Decimal(str(text))
    except InvalidOperation:
        return None


def occurred_at(record: Record) -> datetime | None:
    """When the thing a record tells of changed last: modified_at, else the latest of its other times."""
    names = ("modified_at",) if record.get("modified_at") else (
        "created_at", "paid_at", "shipped_at", "signed_at", "settled_at", "replied_at", "joined_at", "last_order_at",
    )  # fmt: skip
    found = [datetime.fromisoformat(record[name]) for name in names if isinstance(record.get(name), str)]
    return max(found, default=None)
