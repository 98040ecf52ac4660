"""Quality gates: the checks that stand between layers and stop the night before anybody is messaged.

Checks stand beside what they check: in `table.yaml` of each mart (include/sql/mart/<table>/), in include/sql/core/tables/
<table>.yaml for core, and as SQL files in include/sql/checks/<gate>/ for what needs more than one table. A check of
severity `fail` stops the night, one of `warn` is written down and shown in the console.

What a constraint of the database already promises is not checked again: a check that cannot fail tells nothing.

A night judges what it can have moved, and in turn every part of the past; a full gate judges everything. Each header and
`recent:` says what that is for its table (docs/decisions/0075-gates-in-a-night.md).
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any, Literal

import psycopg
from psycopg import sql
from pydantic import Field, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from nightmarket import dates
from nightmarket.settings import ROOT, ConfigError, StrictModel, get_settings, load_yaml
from nightmarket.sources import load_sources
from nightmarket.warehouse import Row, connect, run_sql

GATES = ("core", "mart", "push")
Severity = Literal["fail", "warn"]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
Text = Annotated[str, Field(min_length=1)]


class GateFailed(Exception):
    """A check of severity `fail` did not hold; one sentence that names table, check and what was seen."""


class Column(StrictModel):
    """What a column holds, and in which unit (CNY, orders, rate 0..1, day, instant, id, words, ...)."""

    unit: Text
    description: Text


class Check(StrictModel):
    """A condition on the rows of one table; `where` narrows them (SQL; may use %(business_date)s)."""

    severity: Severity
    where: str | None = None

    @property
    def name(self) -> str:
        """Unique within its table; what ops.gate_results calls it."""
        raise NotImplementedError

    def query(self, table: sql.Composable, recent: str = "TRUE") -> sql.Composed:
        """A query of one row: is_passed (boolean), observed (text). `recent` (SQL) narrows the rows once more."""
        raise NotImplementedError

    def parameters(self) -> dict[str, Any]:
        """Bound parameters of the query, beside business_date."""
        return {}

    def _rows(self, *more: str) -> sql.Composed:
        return sql.SQL(" AND ").join(sql.SQL(f"({part})") for part in (self.where or "TRUE", *more))  # type: ignore[arg-type]

    def _suffix(self) -> str:
        return f" where {' '.join(self.where.split())}" if self.where else ""

    def _no_rows(self, table: sql.Composable, breaking: sql.Composable) -> sql.Composed:
        return sql.SQL("SELECT count(*) = 0 AS is_passed, count(*) || ' rows' AS observed FROM {} WHERE {}").format(
            table, breaking
        )


class Unique(Check):
    """No two rows share `columns` (a key that no constraint of the database guards). NULL equals NULL here."""

    kind: Literal["unique"]
    columns: Annotated[list[Name], Field(min_length=1)]

    @property
    def name(self) -> str:
        return f"unique {', '.join(self.columns)}{self._suffix()}"

    def query(self, table: sql.Composable, recent: str = "TRUE") -> sql.Composed:
        return sql.SQL(
            "SELECT count(*) = 0 AS is_passed, count(*) || ' keys more than once' AS observed"
            " FROM (SELECT 1 FROM {} WHERE {} GROUP BY {} HAVING count(*) > 1) AS repeated"
        ).format(table, self._rows(recent), sql.SQL(", ").join(map(sql.Identifier, self.columns)))


class NotNull(Check):
    """`column` is known in every row."""

    kind: Literal["not_null"]
    column: Name

    @property
    def name(self) -> str:
        return f"not_null {self.column}{self._suffix()}"

    def query(self, table: sql.Composable, recent: str = "TRUE") -> sql.Composed:
        unknown = sql.SQL("{} AND {} IS NULL")
        return self._no_rows(table, unknown.format(self._rows(recent), sql.Identifier(self.column)))


class AcceptedValues(Check):
    """`column` is one of `values`; NULL is not judged."""

    kind: Literal["accepted_values"]
    column: Name
    values: Annotated[list[str | int | bool], Field(min_length=1)]

    @property
    def name(self) -> str:
        return f"accepted_values {self.column}{self._suffix()}"

    def query(self, table: sql.Composable, recent: str = "TRUE") -> sql.Composed:
        other = sql.SQL("{} AND {}::text <> ALL(%(values)s::text[])")
        return self._no_rows(table, other.format(self._rows(recent), sql.Identifier(self.column)))

    def parameters(self) -> dict[str, Any]:
        return {"values": [str(value) for value in self.values]}


class Expression(Check):
    """`holds` (SQL) is true in every row; unknown (NULL) is not judged."""

    kind: Literal["expression"]
    id: Name
    holds: Text

    @property
    def name(self) -> str:
        return self.id

    def query(self, table: sql.Composable, recent: str = "TRUE") -> sql.Composed:
        return self._no_rows(table, self._rows(recent, f"NOT ({self.holds})"))


class Freshness(Check):
    """The newest `column` up to the end of the business date is at most `max_age_days` days old."""

    kind: Literal["freshness"]
    column: Name
    max_age_days: Annotated[int, Field(ge=0)]

    @property
    def name(self) -> str:
        return f"freshness {self.column}{self._suffix()}"

    def query(self, table: sql.Composable, recent: str = "TRUE") -> sql.Composed:
        return sql.SQL(  # the highest value as it stands: an index gives it without a scan
            "SELECT coalesce(%(business_date)s::date - max({column})::date <= {age}, FALSE) AS is_passed,"
            " coalesce('newest is of ' || max({column})::date, 'no rows') AS observed"
            " FROM {table} WHERE {rows} AND {column} < (%(business_date)s::date + 1)::timestamptz"
        ).format(column=sql.Identifier(self.column), age=self.max_age_days, table=table, rows=self._rows())


class RowCount(Check):
    """Rows of the business date against the mean of the `days` days before it that have any.

    Passes, saying so, while there are fewer than `min_history` such days: one night is no habit.
    """

    kind: Literal["row_count"]
    column: Name
    days: Annotated[int, Field(ge=1)] = 28
    min_history: Annotated[int, Field(ge=1)] = 7
    min_ratio: Annotated[float, Field(ge=0)]
    max_ratio: Annotated[float, Field(gt=0)]

    @property
    def name(self) -> str:
        return f"row_count {self.column}{self._suffix()}"

    def query(self, table: sql.Composable, recent: str = "TRUE") -> sql.Composed:
        return sql.SQL(
            "WITH by_day AS (SELECT {column}::date AS day, count(*) AS n FROM {table} WHERE {rows}"
            "  AND {column} >= (%(business_date)s::date - {days})::timestamptz"
            "  AND {column} < (%(business_date)s::date + 1)::timestamptz GROUP BY 1),"
            " compared AS (SELECT coalesce(sum(n) FILTER (WHERE day = %(business_date)s::date), 0) AS today,"
            "  avg(n) FILTER (WHERE day < %(business_date)s::date) AS usual,"
            "  count(*) FILTER (WHERE day < %(business_date)s::date) AS history FROM by_day)"
            " SELECT history < {min_history} OR today BETWEEN usual * {low} AND usual * {high} AS is_passed,"
            " today || ' rows, usual ' || coalesce(round(usual, 1)::text, 'unknown')"
            " || CASE WHEN history < {min_history} THEN ' (only ' || history || ' days of history)' ELSE '' END AS observed"
            " FROM compared"
        ).format(
            column=sql.Identifier(self.column), table=table, rows=self._rows(), days=self.days,
            min_history=self.min_history, low=self.min_ratio, high=self.max_ratio,
        )  # fmt: skip


AnyCheck = Annotated[Unique | NotNull | AcceptedValues | Expression | Freshness | RowCount, Field(discriminator="kind")]


class TableDoc(StrictModel):
    """table.yaml: what a table is, whose it is, what each column holds, what must be true of its rows."""

    table: Annotated[str, Field(pattern=r"^(core|mart)\.[a-z][a-z0-9_]*$")]
    owner: Text
    description: Annotated[str, Field(pattern=r"One row per [^.]+\.\s*$")]  # ends in the grain
    grain: Annotated[list[Name], Field(min_length=1)]  # the primary key
    columns: dict[Name, Column]
    recent: Text | None = (
        None  # SQL: the rows a night can have written; its checks look at no others, a full gate at all
    )
    checks: list[AnyCheck] = Field(default_factory=list)

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> "TableDoc":
        """Also refuses columns that are not described and two checks of one name, with the place of the mistake."""
        model = super().model_validate(obj, **options)
        for place, message in model._mistakes():
            mistake = InitErrorDetails(
                type=PydanticCustomError("table_doc", "{message}", {"message": message}), loc=place, input=None
            )
            raise ValidationError.from_exception_data("TableDoc", [mistake])
        return model

    def _mistakes(self) -> list[tuple[tuple[str | int, ...], str]]:
        found: list[tuple[tuple[str | int, ...], str]] = []
        for index, column in enumerate(self.grain):
            if column not in self.columns:
                found.append((("grain", index), f"column {column!r} is not described under columns"))
        names: set[str] = set()
        for index, check in enumerate(self.checks):
            used = [*getattr(check, "columns", []), *([check.column] if hasattr(check, "column") else [])]
            for column in used:
                if column not in self.columns:
                    found.append((("checks", index), f"column {column!r} is not described under columns"))
            if check.name in names:
                found.append((("checks", index), f"the check {check.name!r} stands twice"))
            names.add(check.name)
        return found


@dataclass(frozen=True)
class SqlCheck:
    """A file of include/sql/checks/<gate>/: its header says which table it judges and how severe it is."""

    name: str
    file: str  # below include/sql
    table: str
    severity: Severity
    sentence: str  # what must hold


@dataclass(frozen=True)
class CheckResult:
    table: str
    check: str
    severity: Severity
    is_passed: bool
    observed: str
    message: str

    @property
    def state(self) -> str:
        """passed, or what its severity makes of it: fail, warn."""
        return "passed" if self.is_passed else self.severity


@dataclass(frozen=True)
class GateReport:
    """What a gate saw. str() is one sentence for a log."""

    gate: str
    business_date: date
    run_id: str
    results: tuple[CheckResult, ...]

    @property
    def failed(self) -> list[CheckResult]:
        return [result for result in self.results if not result.is_passed and result.severity == "fail"]

    @property
    def warned(self) -> list[CheckResult]:
        return [result for result in self.results if not result.is_passed and result.severity == "warn"]

    def __str__(self) -> str:
        name = f"gate {self.gate} of {self.business_date}"
        if self.failed:
            first, others = self.failed[0], len(self.failed) - 1
            more = f" and {others} more {'check' if others == 1 else 'checks'} failed" if others else ""
            return f"{name} is red: {first.message}{more}; nobody is messaged until a later run passes."
        text = f"{name} is green: {len(self.results)} checks passed"
        if self.warned:
            passed = len(self.results) - len(self.warned)
            text = f"{name} is green: {passed} of {len(self.results)} checks passed, {len(self.warned)} warn: "
            text += "; ".join(result.message for result in self.warned)
        return text + "."


def load_tables(gate: str) -> list[TableDoc]:
    """The table.yaml files a gate reads, sorted by table. Raises ConfigError with file, line and field."""
    folder = get_settings().sql_dir
    places = {"core": "core/tables/*.yaml", "mart": "mart/*/table.yaml"}  # of push there are SQL checks only
    paths = folder.glob(places[gate]) if gate in places else ()
    tables = []
    for path in sorted(paths):
        doc = load_yaml(path, TableDoc)
        expected = f"{gate}.{path.stem if gate == 'core' else path.parent.name}"
        if doc.table != expected:
            shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
            raise ConfigError(f"{shown}: table: this file describes {expected}, not {doc.table}.")
        tables.append(doc)
    return tables


def load_sql_checks(gate: str) -> list[SqlCheck]:
    """The files of include/sql/checks/<gate>. Raises ConfigError when a header does not say table and severity."""
    folder = get_settings().sql_dir
    checks = []
    for path in sorted(folder.glob(f"checks/{gate}/*.sql")):
        file = path.relative_to(folder).as_posix()
        header = " ".join(
            line.removeprefix("--").strip()
            for line in path.read_text(encoding="utf-8").splitlines()
            if line.startswith("--")
        )
        found = re.search(r"Table: ([a-z]+\.[a-z_]+)\..*?Severity: (fail|warn)\.", header)
        if not found:
            raise ConfigError(f"include/sql/{file}: the header needs `Table: schema.table.` and `Severity: fail|warn.`")
        severity: Severity = "fail" if found[2] == "fail" else "warn"
        checks.append(SqlCheck(path.stem, file, found[1], severity, header.split(". ")[0] + "."))
    return checks


def run_gate(gate: str, business_date: date | str, run_id: str, *, full: bool = False) -> GateReport:
    """Run every check of a gate ("core", "mart" or "push") for a business date and keep the results in ops.gate_results.

    Running it again with the same run id replaces its results. Raises GateFailed when a check of severity `fail` does
    not hold (the results are kept all the same), ConfigError when a check cannot be run, ValueError for an unknown gate.
    """
    report = judge(gate, business_date, run_id, full=full)
    if report.failed:
        raise GateFailed(str(report))
    return report


def judge(gate: str, business_date: date | str, run_id: str, *, full: bool = False) -> GateReport:
    """run_gate without the exception. `full` judges everything there is, not only what a night can have moved."""
    if gate not in GATES:
        raise ValueError(f"there is no gate {gate!r}; the gates are {' and '.join(GATES)}")
    day = date.fromisoformat(business_date) if isinstance(business_date, str) else business_date
    tables, sql_checks = load_tables(gate), load_sql_checks(gate)
    with connect(application_name=f"nightmarket-gate-{gate}") as connection:
        parameters = gate_parameters(day, full or (gate == "mart" and not _moves_are_known(connection)))
        results = [_table_check(connection, doc, check, parameters) for doc in tables for check in doc.checks]
        results += [_sql_check(connection, check, parameters) for check in sql_checks]
        report = GateReport(gate, day, run_id, tuple(results))
        _keep(connection, report)
    return report


def gate_parameters(business_date: date, is_full: bool) -> dict[str, Any]:
    """Bound parameters of every check: the date, whether everything is judged, and after how many days without news each source
    is told of (`warn_days`) and stops the night (`fail_days`; NULL: never)."""
    silence = [{"source_id": name, **source.silent_after.model_dump()} for name, source in load_sources().items()]
    return {"business_date": business_date, "is_full": is_full, "silence": json.dumps(silence)}


def _moves_are_known(connection: psycopg.Connection[Row]) -> bool:
    """Whether mart.touched_days tells what the night moved. After a first night or a rebuild it is empty: everything was."""
    row = connection.execute("SELECT EXISTS (SELECT FROM mart.touched_days) AS known").fetchone()
    return bool(row and row["known"])


def _table_check(
    connection: psycopg.Connection[Row], doc: TableDoc, check: AnyCheck, parameters: Mapping[str, Any]
) -> CheckResult:
    recent = "TRUE" if parameters["is_full"] else doc.recent or "TRUE"
    query = check.query(sql.Identifier(*doc.table.split(".")), recent)
    try:
        row = connection.execute(query, {**parameters, **check.parameters()}).fetchone()
    except (psycopg.ProgrammingError, psycopg.DataError) as error:
        raise ConfigError(_cannot_run(f"{doc.table}: check {check.name!r}", error)) from None
    return _result(doc.table, check.name, check.severity, row or {}, f"{doc.table}: {check.name}")


def _sql_check(connection: psycopg.Connection[Row], check: SqlCheck, parameters: Mapping[str, Any]) -> CheckResult:
    try:
        rows = run_sql(connection, check.file, parameters)
    except (psycopg.ProgrammingError, psycopg.DataError) as error:
        raise ConfigError(_cannot_run(f"include/sql/{check.file}", error)) from None
    if len(rows) != 1 or set(rows[0]) != {"is_passed", "observed"}:
        raise ConfigError(f"include/sql/{check.file}: a check gives one row of is_passed and observed.")
    return _result(check.table, check.name, check.severity, rows[0], f"{check.table}: {check.name}")


def _cannot_run(what: str, error: psycopg.Error) -> str:
    return f"{what} cannot run: {str(error).splitlines()[0]}."


def _result(table: str, name: str, severity: Severity, row: Mapping[str, Any], subject: str) -> CheckResult:
    observed = str(row["observed"])
    return CheckResult(table, name, severity, row["is_passed"] is True, observed, f"{subject}: {observed}")


def _keep(connection: psycopg.Connection[Row], report: GateReport) -> None:
    key = (report.business_date, report.gate, report.run_id)
    connection.execute("DELETE FROM ops.gate_results WHERE business_date = %s AND gate = %s AND run_id = %s", key)
    for result in report.results:
        connection.execute(
            "INSERT INTO ops.gate_results (business_date, gate, run_id, table_name, check_name, severity, is_passed,"
            " observed, message, checked_at) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            (*key, result.table, result.check, result.severity, result.is_passed, result.observed, result.message,
             dates.now()),
        )  # fmt: skip
