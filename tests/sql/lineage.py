"""What an SQL file reads and writes, by parsing it; and what its header says it reads."""

import re
from pathlib import Path

import sqlglot
from sqlglot import exp

from nightmarket.warehouse import split_statements

WRITES = (exp.Insert, exp.Update, exp.Delete, exp.Merge, exp.TruncateTable, exp.Create)
HEADER_KEYS = ("Grain", "Params", "Reads", "Writes", "Rerun", "Owner", "Decision", "Severity", "Table", "Units")


def sql_lineage(path: Path) -> tuple[frozenset[str], frozenset[str]]:
    """(tables read, tables written) of an SQL file, as `schema.table`.

    Temporary tables and names of WITH have no schema and are left out. A table that a statement writes counts as read
    only when it also stands in a FROM or a JOIN.
    """
    reads: set[str] = set()
    writes: set[str] = set()
    for statement in split_statements(path.read_text(encoding="utf-8")):
        tree = _parse(statement, path)
        targets = [table for node in tree.find_all(*WRITES) for table in _targets(node)]
        writes.update(_name(table) for table in targets)
        reads.update(_name(table) for table in tree.find_all(exp.Table) if not any(table is one for one in targets))
        # a function in LATERAL is schema.name(), not a table
        laterals = (one.this for one in tree.find_all(exp.Lateral) if isinstance(one.this, exp.Dot))
        reads.update(f"{one.this.name}.{one.expression.name}" for one in laterals)
    return frozenset(reads - {""}), frozenset(writes - {""})


def header(path: Path) -> dict[str, str]:
    """The keys of a file's header comment (Grain, Params, Reads, ...) with their text; "" is what stands before the first."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("--"):
            break
        lines.append(line.removeprefix("--").strip())
    parts = re.split(rf"\b({'|'.join(HEADER_KEYS)}): ", " ".join(lines) + " ")
    return {"": parts[0].strip()} | {key: text.strip() for key, text in zip(parts[1::2], parts[2::2], strict=True)}


def header_reads(path: Path) -> frozenset[str]:
    """Tables that the header's "Reads:" names; a file named there is none."""
    return frozenset(re.findall(r"\b[a-z_]+\.(?!sql\b)[a-z_0-9]+\b", header(path).get("Reads", "")))


def parameters_of(path: Path) -> frozenset[str]:
    """Names of the bound parameters of an SQL file."""
    return frozenset(re.findall(r"%\((\w+)\)s", path.read_text(encoding="utf-8")))


def _parse(statement: str, path: Path) -> exp.Expression:
    # what sqlglot does not read: bound parameters, doubled percents, ON COMMIT DROP, OVERRIDING SYSTEM VALUE
    text = re.sub(r"%\(\w+\)s", "NULL", statement).replace("%%", "%")
    text = re.sub(r"\bON COMMIT DROP\b|\bOVERRIDING SYSTEM VALUE\b", "", text)
    try:
        tree = sqlglot.parse_one(text, dialect="postgres")
    except sqlglot.errors.ParseError:
        # it takes `JOIN x ON CONFLICT` for a join condition; a WHERE in between says what PostgreSQL understands
        tree = sqlglot.parse_one(text.replace("ON CONFLICT", "WHERE TRUE ON CONFLICT"), dialect="postgres")
    if isinstance(tree, exp.Command):
        raise AssertionError(f"{path}: sqlglot does not understand: {statement[:80]}")
    return tree


def _targets(node: exp.Expression) -> list[exp.Table]:
    if isinstance(node, exp.TruncateTable):
        return [table for table in node.expressions if isinstance(table, exp.Table)]
    target = node.this.this if isinstance(node.this, exp.Schema) else node.this
    return [target] if isinstance(target, exp.Table) else []


def _name(table: exp.Table) -> str:
    name = table.name or table.this.name  # of a function in FROM: its own
    return f"{table.db}.{name}" if table.db and table.db != "pg_temp" else ""
