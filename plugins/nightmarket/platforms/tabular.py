"""Tables that stand in files: what a YAML block says of them, which file names are theirs, and their rows one by one.

CSV and Excel are read row by row. docs/connections/files.md explains every key.
"""

import codecs
import csv
import difflib
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from zoneinfo import ZoneInfo

from pydantic import Field, field_validator, model_validator

from nightmarket.platforms import declared
from nightmarket.platforms.declared import Formats, Reader, Table, judge
from nightmarket.settings import StrictModel

EXCEL = (".xlsx", ".xlsm")
BROKEN = "\ufffd"  # stands where bytes are not text of the declared encoding
# of a table, for parts that stand in its rows
SAME_FILE = ("encoding", "delimiter", "quote", "header_row", "skip_rows", "footer_rows", "skip_like", "fill_down")


# ---------------------------------------------------------------------------------------------------------- options
class FileTable(Table):
    """A table and the files its rows stand in."""

    file: str | None = None  # name pattern below the folder; * and {date}, {date:%d%m%y}, {anything}
    encoding: str = "utf-8"  # gbk reads gb18030 too; utf-8 with or without a mark; utf-16 by its mark
    delimiter: str = Field(default=",", min_length=1, max_length=1)
    quote: str = Field(default='"', min_length=1, max_length=1)
    sheet: str | None = None  # of an Excel file; unset: the first one
    header_row: int = Field(
        default=1, ge=0
    )  # counted from 1, earlier rows are skipped; 0: no header, columns are "1", "2"
    skip_rows: int = Field(default=0, ge=0)  # between the header and the first row
    footer_rows: int = Field(default=0, ge=0)  # at the end: totals
    skip_like: str | None = None  # regular expression; a row whose first filled cell matches is none (合计, 小计)
    fill_down: tuple[str, ...] = ()  # merged cells: where the first of these is empty, empty ones repeat the row above

    @field_validator("encoding")
    @classmethod
    def _encoding_exists(cls, value: str) -> str:
        try:
            codecs.lookup(value)
        except LookupError as error:
            raise ValueError(f"unknown encoding {value!r}; use gbk, gb18030, utf-8 or utf-16") from error
        return value

    @field_validator("skip_like")
    @classmethod
    def _skip_like_compiles(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"{value!r} is not a regular expression: {error}") from error
        return value

    @field_validator("file")
    @classmethod
    def _file_is_a_pattern(cls, value: str | None) -> str | None:
        if value is not None:
            Pattern(value)
        return value


class OrdersTable(FileTable):
    """Orders; their lines and payments stand in the same rows, in another sheet, or in files of their own."""

    lines: (
        FileTable | Literal["none"]
    )  # none: the export has no lines, each order becomes one line of an unknown article
    payments: FileTable | None = None


class Tables(StrictModel):
    """What the folder holds."""

    orders: OrdersTable | None = None
    refunds: FileTable | None = None
    reviews: FileTable | None = None
    customers: FileTable | None = None
    products: FileTable | None = None


class Options(Formats):
    """The block `options:` of a source."""

    complete: Literal["stable", "done"] = "stable"
    stable_seconds: float = Field(default=10, ge=0, le=600)
    expect: Literal["daily", "any"] = "any"  # daily: a day without a file of each {date} pattern fails
    closed: tuple[date, ...] = ()  # days without files
    wait_days: int = Field(default=3, ge=0, le=60)  # how long an order waits for its lines and payments
    tables: Tables

    @model_validator(mode="after")
    def _judge(self) -> "Options":
        for name, table in self.named():
            where = f"tables.{name}"
            if table.file is None:
                raise ValueError(f"{where}: file (the pattern of its names) is missing")
            judge(name, table, where)
            for part, block in parts_of(table):
                judge(part, block, f"{where}.{part}")
                own_rows = block.file is not None or block.sheet not in (None, table.sheet)
                if own_rows and "order_id" not in block.columns:
                    raise ValueError(
                        f"{where}.{part}.columns: {part} of their own need order_id, which ties them to orders"
                    )
        if not self.named():
            raise ValueError("tables: at least one of " + ", ".join(declared.TABLES))
        return self

    def named(self) -> list[tuple[str, FileTable]]:
        """The declared tables by the name of their stream."""
        found = ((name, getattr(self.tables, name)) for name in declared.TABLES)
        return [(name, table) for name, table in found if table is not None]


def parts_of(table: FileTable) -> list[tuple[str, FileTable]]:
    """Lines and payments of an orders table, as far as it has them."""
    if not isinstance(table, OrdersTable):
        return []
    parts = [("lines", table.lines), ("payments", table.payments)]
    return [(name, block) for name, block in parts if isinstance(block, FileTable)]


# ------------------------------------------------------------------------------------------------------------ names
@dataclass(frozen=True)
class Name:
    """What a file's name says: the values of its placeholders."""

    values: Mapping[str, str]
    day: date | None


class Pattern:
    """A pattern of file names: `*` and `?` as in a shell, `{date}` and other placeholders."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.subfolder = PurePosixPath(text).parent.as_posix().removeprefix(".")
        if set(self.subfolder) & set("*?{"):
            raise ValueError(f"file pattern {text!r}: placeholders may stand in the name only, not in its folder")
        self.date_format = "%Y%m%d"
        self.names: list[str] = []
        self._regex = re.compile(self._translate(PurePosixPath(text).name))

    def _translate(self, text: str) -> str:
        pieces = []
        for piece in re.split(r"(\{[^}]*\}|\*|\?)", text):
            if piece in ("*", "?"):
                pieces.append("[^/]*" if piece == "*" else "[^/]")
            elif piece.startswith("{"):
                pieces.append(self._placeholder(piece[1:-1]))
            else:
                pieces.append(re.escape(piece))
        return "".join(pieces)

    def _placeholder(self, text: str) -> str:
        name, _, form = text.partition(":")
        if not name.isidentifier() or name in self.names or (form and name != "date"):
            raise ValueError(f"file pattern {self.text!r}: {{{text}}} is not a placeholder like {{date}} or {{store}}")
        self.names.append(name)
        if name != "date":
            return f"(?P<{name}>[^/]+?)"
        if not form:
            return r"(?P<date>\d{4}-?\d{2}-?\d{2})"
        self.date_format = form
        return f"(?P<date>{re.sub('%.', lambda found: self._digits(found[0]), re.escape(form).replace(chr(92) + '%', '%'))})"

    def _digits(self, directive: str) -> str:
        known = {"%Y": r"\d{4}", "%y": r"\d{2}", "%m": r"\d{2}", "%d": r"\d{2}"}
        if directive not in known:
            raise ValueError(f"file pattern {self.text!r}: {directive} is not one of {', '.join(known)}")
        return known[directive]

    def read(self, path: str) -> Name | None:
        """What the name of `path` says, or None when it is not one of these."""
        match = self._regex.fullmatch(PurePosixPath(path).name)
        if match is None:
            return None
        values = match.groupdict()
        if "date" not in values:
            return Name(values, None)
        text = values["date"].replace("-", "") if self.date_format == "%Y%m%d" else values["date"]
        try:
            day = datetime.strptime(text, self.date_format).date()  # noqa: DTZ007 - a calendar day has no zone
        except ValueError:
            return None  # 20261399 is not a date: the file is nobody's
        return Name(values | {"date": day.isoformat()}, day)


@dataclass(frozen=True)
class Role:
    """Rows of one kind in one kind of file."""

    part: str  # orders, lines, payments, or the table's own name
    table: FileTable
    pattern: Pattern
    reader: Reader

    def is_same_rows(self, other: "Role") -> bool:
        """Whether both stand in the same rows of the same files."""
        return self.pattern.text == other.pattern.text and self.table.sheet == other.table.sheet


@dataclass(frozen=True)
class Feed:
    """One stream: its table, and where its rows and parts stand."""

    name: str
    roles: tuple[Role, ...]  # the first one is the table's own
    zone: ZoneInfo
    has_lines: bool

    @cached_property
    def is_joined(self) -> bool:
        return len(self.roles) > 1

    @cached_property
    def patterns(self) -> dict[str, Pattern]:
        return {role.pattern.text: role.pattern for role in self.roles}

    @cached_property
    def common(self) -> tuple[str, ...]:
        """Placeholders that all names have: they say which files belong together."""
        names = [set(pattern.names) for pattern in self.patterns.values()]
        return tuple(sorted(set.intersection(*names)))

    def tag(self, path: str, name: Name) -> tuple[str, ...]:
        """What files that belong together share; where all rows stand in one kind of file, each stands alone."""
        return tuple(name.values[key] for key in self.common) if len(self.patterns) > 1 else (path,)

    def unnamed(self, pattern: str, columns: Iterable[str]) -> list[str]:
        """Columns of a file that nobody has named: they are not stored, they could hold anything."""
        told = {""}
        for role in self.roles:
            if role.pattern.text == pattern:
                told |= {
                    *role.reader.columns(),
                    *role.table.personal,
                    *(role.table.keep if role.table.keep != "*" else columns),
                }
        return [column for column in columns if column not in told]

    def classify(self, path: str) -> tuple[str, Name] | None:
        """(pattern, what the name says) of a file of this stream, or None."""
        for text, pattern in self.patterns.items():
            if PurePosixPath(path).parent.as_posix().removeprefix(".") == pattern.subfolder:
                name = pattern.read(path)
                if name is not None:
                    return text, name
        return None


def feeds(options: Options) -> dict[str, Feed]:
    """What the options declare, by stream."""
    found = {}
    for name, table in options.named():
        assert table.file is not None
        roles = [Role(name, table, Pattern(table.file), Reader(name, table, options))]
        for part, block in parts_of(table):
            same_file = block.file is None
            inherited = block.model_copy(
                update={
                    "file": table.file if same_file else block.file,
                    "sheet": table.sheet if same_file and block.sheet is None else block.sheet,
                    **({name: getattr(table, name) for name in SAME_FILE} if same_file and block.sheet is None else {}),
                }
            )
            assert inherited.file is not None
            roles.append(Role(part, inherited, Pattern(inherited.file), Reader(part, inherited, table, options)))
        has_lines = isinstance(table, OrdersTable) and table.lines != "none"
        found[name] = Feed(name, tuple(roles), ZoneInfo(options.zone or "Asia/Shanghai"), has_lines)
    return found


# ------------------------------------------------------------------------------------------------------------- rows
@dataclass(frozen=True)
class Row:
    """One row of a file. `problem` says why its cells cannot be trusted."""

    line: int
    cells: Mapping[str, Any]
    problem: str | None = None


class FileError(Exception):
    """A whole file that cannot be read, as one sentence without the file's name."""


def rows_of(path: Path, name: str, role: Role) -> Iterator[Row]:
    """The rows of a file, one after the other. Raises FileError."""
    if name.lower().endswith(".xls"):
        raise FileError("this is the old Excel format; save it as .xlsx or .csv")
    is_excel = name.lower().endswith(EXCEL)
    grid = _excel_grid(path, role.table) if is_excel else _csv_grid(path, role.table)
    yield from _named(grid, role, path, is_excel)


def _csv_grid(path: Path, table: FileTable) -> Iterator[tuple[int, list[Any], str | None]]:
    """(line, cells, problem). Lines count from 1; a value may run over several, then it is the first one."""
    try:
        with path.open(encoding=_codec(table.encoding), errors="replace", newline="") as stream:
            reader = csv.reader(stream, delimiter=table.delimiter, quotechar=table.quote, strict=False)
            while True:
                line = reader.line_num + 1
                try:
                    cells: list[Any] = next(reader)
                except StopIteration:
                    return
                except csv.Error:
                    yield line, [], "is not a line of a CSV file (a quote that is never closed?)"
                    continue
                broken = any(BROKEN in cell for cell in cells)
                yield line, cells, f"has bytes that are not {table.encoding}" if broken else None
    except UnicodeError:
        raise FileError(f"it is not {table.encoding}; change encoding") from None


def _codec(encoding: str) -> str:
    """The widest reading of a declared encoding: GBK exports hold GB18030 characters, UTF-8 ones a byte-order mark."""
    name = codecs.lookup(encoding).name
    return {"gbk": "gb18030", "gb2312": "gb18030", "utf-8": "utf-8-sig"}.get(name, name)


def _excel_grid(path: Path, table: FileTable) -> Iterator[tuple[int, list[Any], str | None]]:
    import openpyxl

    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except Exception:  # openpyxl raises whatever its XML and ZIP readers raise
        raise FileError("it is not a readable .xlsx file; export it again") from None
    try:
        if table.sheet is not None and table.sheet not in book.sheetnames:
            raise FileError(f"it has no sheet {table.sheet!r}, it has {len(book.sheetnames)} others; change sheet")
        sheet: Any = book[table.sheet] if table.sheet else book.worksheets[0]
        if hasattr(sheet, "reset_dimensions"):
            sheet.reset_dimensions()  # many exporters write a wrong size, and rows behind it would be lost
        for line, cells in enumerate(sheet.iter_rows(values_only=True), start=1):
            yield line, list(cells), None
    finally:
        book.close()


def _named(grid: Iterator[tuple[int, list[Any], str | None]], role: Role, path: Path, is_excel: bool) -> Iterator[Row]:
    """Cells by the names of their columns; without header, footer, empty rows and totals. Raises FileError."""
    table = role.table
    names: list[str] | None = None
    skip_like = re.compile(table.skip_like) if table.skip_like else None
    held: deque[Row] = deque()  # the last rows may be the footer
    above: dict[str, Any] = {}
    skipped = 0
    for number, (line, cells, problem) in enumerate(grid, start=1):
        if number < table.header_row:
            continue
        if number == table.header_row:
            names = _header(cells, role, path, is_excel)
            continue
        if skipped < table.skip_rows:
            skipped += 1
            continue
        filled = [cell for cell in cells if cell not in (None, "") and str(cell).strip()]
        if (not filled and problem is None) or (skip_like and filled and skip_like.search(str(filled[0]))):
            continue
        if names is None:  # header_row: 0
            names = [str(position) for position in range(1, len(cells) + 1)]
            _judge_header(names, role, path, is_excel)
        if problem is None and not is_excel and len(cells) < len(names):
            problem = f"has {len(cells)} cells, the header {len(names)}"
        if problem is None and any(str(cell or "").strip() for cell in cells[len(names) :]):
            problem = f"has {len(cells)} cells, the header {len(names)} (a delimiter inside a value?)"
        row = dict(zip(names, cells, strict=False))
        if table.fill_down and problem is None:
            if row.get(table.fill_down[0]) in (None, ""):  # else a new group begins, and an empty cell in it is empty
                row |= {column: above.get(column) for column in table.fill_down if row.get(column) in (None, "")}
            above = row
        held.append(Row(line, row, problem))
        if len(held) > table.footer_rows:
            yield held.popleft()
    if names is None and table.header_row:
        raise FileError(f"it has no header in row {table.header_row}: it is empty")


def _header(cells: Sequence[Any], role: Role, path: Path, is_excel: bool) -> list[str]:
    names = [declared.clean(str(cell)) if cell is not None else "" for cell in cells]
    while names and not names[-1]:
        names.pop()
    double = [name for name, count in Counter(names).items() if name and count > 1]
    used = {declared.clean(column) for column in role.reader.columns()}
    if set(double) & used:
        raise FileError(f"the column {sorted(set(double) & used)[0]} stands twice in its header; give one another name")
    exact = {declared.clean(column): column for column in (*role.reader.columns(), *role.table.personal)}
    names = [exact.get(name, name) for name in names]
    _judge_header(names, role, path, is_excel)
    return names


def _judge_header(names: list[str], role: Role, path: Path, is_excel: bool) -> None:
    """Raise FileError when a declared column is missing. Names that are not ours stay unsaid: they may be a first row."""
    missing = sorted(role.reader.columns() - set(names))
    if not missing:
        return
    close = difflib.get_close_matches(missing[0], names, n=1, cutoff=0.6)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    if not close and not is_excel:
        fitting = _fitting_encoding(path, role)
        hint = f"; read as {fitting} it is there: change encoding" if fitting else ""
    raise FileError(
        f"the column {missing[0]} ({role.part}) is not in row {role.table.header_row} of its {len(names)} columns{hint}"
    )


def _fitting_encoding(path: Path, role: Role) -> str | None:
    """Another encoding or delimiter with which the header would be right; for the sentence."""
    for encoding in ("utf-8-sig", "gb18030", "utf-16"):
        try:
            with path.open(encoding=encoding, errors="strict") as stream:
                text = stream.read(20_000)
        except UnicodeError:
            continue
        except OSError:
            return None
        if all(column in text for column in role.reader.columns()):
            return encoding.removesuffix("-sig")
    return None
