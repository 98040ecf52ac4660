"""The edges written in the DAGs are the ones the SQL needs: whatever reads a table runs after everything that writes it."""

import re
from pathlib import Path
from typing import Any

import pytest
import sqlglot
from airflow.providers.common.sql.operators.sql import SQLExecuteQueryOperator
from airflow.sdk import DAG
from sqlglot import exp

from nightmarket.mapping import MAPPINGS
from nightmarket.orchestration.sql import sql_task
from nightmarket.warehouse import split_statements

SQL = Path(__file__).resolve().parents[2] / "include" / "sql"
# Marks and refusals: every mapping has rows of its own in them, named by its target. People: a lock puts the writers in order.
# Marks of marts and what they found moved: every mart has rows of its own in them.
BOOKKEEPING = {
    "raw.mappings", "raw.rejects", "core.identities", "core.identity_links", "core.profiles", "mart.marks", "mart.restatements",
    "mart.moved_days",
}  # fmt: skip
WRITES = (exp.Insert, exp.Update, exp.Delete, exp.Merge, exp.TruncateTable)


def tables(text: str) -> tuple[set[str], set[str]]:
    """(tables read, tables written) of an SQL text; temporary tables and names of WITH have no schema and are left out."""
    read, written = set(), set()
    for statement in split_statements(text):
        for tree in _parse(_plain(statement)):
            assert not isinstance(tree, exp.Command), f"sqlglot does not understand: {statement[:80]}"
            targets = [target for node in tree.find_all(*WRITES) for target in _targets(node)]
            written |= {_name(table) for table in targets} - {""}
            others = [table for table in tree.find_all(exp.Table) if not any(table is target for target in targets)]
            read |= {_name(table) for table in others} - {""}
    return read, written


def _name(table: exp.Table) -> str:
    return f"{table.db}.{table.name}" if table.db and table.db != "pg_temp" else ""


def _targets(node: exp.Expression) -> list[exp.Table]:
    if isinstance(node, exp.TruncateTable):
        return list(node.expressions)
    target = node.this.this if isinstance(node.this, exp.Schema) else node.this
    return [target] if isinstance(target, exp.Table) else []


def _parse(text: str) -> list[exp.Expression]:
    """sqlglot takes `JOIN x AS y ON CONFLICT` for a join condition; a WHERE in between says what PostgreSQL understands."""
    try:
        trees = sqlglot.parse(text, dialect="postgres")
    except sqlglot.errors.ParseError:
        trees = sqlglot.parse(text.replace("ON CONFLICT", "WHERE TRUE ON CONFLICT"), dialect="postgres")
    return [tree for tree in trees if tree is not None]


def _plain(text: str) -> str:
    """The statement without what sqlglot does not read and what names no table."""
    text = re.sub(r"%\((\w+)\)s", r"'\1'", text).replace("%%", "%")
    return re.sub(r"\bON COMMIT DROP\b|\bOVERRIDING (SYSTEM|USER) VALUE\b", "", text)


def path_of(task: Any) -> str:
    """The file of an SQL task, below include/sql."""
    return str(task.doc).removeprefix("include/sql/")


def missing_edges(dag: Any, folder: Path = SQL) -> list[str]:
    """What is read or overwritten without waiting for who writes it."""
    facts = {
        task.task_id: tables((folder / path_of(task)).read_text())
        for task in dag.tasks
        if isinstance(task, SQLExecuteQueryOperator)
    }
    facts = {name: (read - BOOKKEEPING, written - BOOKKEEPING) for name, (read, written) in facts.items()}
    problems = []
    for reader, (read, written) in facts.items():
        before = dag.get_task(reader).get_flat_relative_ids(upstream=True)
        after = dag.get_task(reader).get_flat_relative_ids(upstream=False)
        for writer, (_, others) in facts.items():
            if writer == reader:
                continue
            if (
                (read & others)
                and writer not in before
                and not (writer in after and reader_may_lead(reader, writer, facts))
            ):
                problems.append(f"{reader} reads {sorted(read & others)} but does not run after {writer}")
            if (written & others) and writer not in before | after:
                problems.append(f"{reader} and {writer} both write {sorted(written & others)} in no order")
    return sorted(problems)


def reader_may_lead(reader: str, writer: str, facts: dict[str, tuple[set[str], set[str]]]) -> bool:
    """A table that both of them write is read by the first one too (an upsert); then their order is the rule above."""
    return bool(facts[reader][0] & facts[writer][1] & facts[reader][1])


def test_every_read_comes_after_the_write(bag: Any) -> None:
    problems = {dag_id: missing for dag_id, dag in bag.dags.items() if (missing := missing_edges(dag))}
    assert problems == {}


def test_every_sql_file_has_its_task_and_every_task_its_files(bag: Any) -> None:
    uses: dict[str, set[str]] = {}
    for dag_id, dag in bag.dags.items():
        for task in dag.tasks:
            if isinstance(task, SQLExecuteQueryOperator):
                assert task.do_xcom_push is False, f"{dag_id}.{task.task_id} would push rows into XCom"
                assert (SQL / path_of(task)).is_file(), f"{dag_id}.{task.task_id}: {task.doc} does not exist"
                uses.setdefault(path_of(task), set()).add(f"{dag_id}.{task.task_id}")
    mapped = {file for steps in MAPPINGS.values() for step in steps for file in step.files}
    stored = {str(path.relative_to(SQL)) for folder in ("core", "mart") for path in (SQL / folder).rglob("*.sql")}
    by_library = {"core/members/members.sql", "core/members/merges.sql"}  # nightmarket.members
    assert stored - set(uses) - mapped - by_library == set(), "SQL files that nothing runs"
    marts = {file: tasks for file, tasks in uses.items() if file.startswith("mart/")}
    assert {file: tasks for file, tasks in marts.items() if len(tasks) != 1} == {}


@pytest.mark.parametrize("platform", sorted(MAPPINGS))
def test_mappings_run_after_what_they_read(platform: str) -> None:
    """A source's mappings run one after the other: whatever one reads of core, no later one writes first."""
    facts = []
    for step in MAPPINGS[platform]:
        found = [tables((SQL / file).read_text()) for file in step.files]
        read, written = (set().union(*(pair[i] for pair in found)) - BOOKKEEPING for i in (0, 1))
        assert {table for table in written if table.startswith("core.")} <= set(step.writes) | BOOKKEEPING, step.name
        facts.append((step.name, read - written, written))
    for index, (name, read, _) in enumerate(facts):
        later = [other for other, _, written in facts[index + 1 :] if written & read]
        assert later == [], f"{name} reads what {later} write"


@pytest.fixture
def two_files(tmp_path: Path) -> Path:
    (tmp_path / "first.sql").write_text(
        "DELETE FROM mart.a WHERE d = %(d)s::date; INSERT INTO mart.a SELECT b FROM core.b"
    )
    (tmp_path / "second.sql").write_text(
        "WITH core_b AS (SELECT x FROM mart.a WHERE y LIKE '5%%') INSERT INTO mart.c (x) SELECT x FROM core_b"
    )
    return tmp_path


def test_a_forgotten_edge_is_found(two_files: Path) -> None:
    with DAG("proof", schedule=None) as dag:
        first, second = sql_task("first.sql", {}, task_id="first"), sql_task("second.sql", {}, task_id="second")
    assert missing_edges(dag, two_files) == ["second reads ['mart.a'] but does not run after first"]
    first >> second
    assert missing_edges(dag, two_files) == []


def test_an_edge_the_wrong_way_round_is_found(two_files: Path) -> None:
    with DAG("proof", schedule=None) as dag:
        sql_task("second.sql", {}, task_id="second") >> sql_task("first.sql", {}, task_id="first")
    assert missing_edges(dag, two_files) == ["second reads ['mart.a'] but does not run after first"]


def test_what_a_statement_reads_and_writes() -> None:
    assert tables((SQL / "console" / "gates.sql").read_text())[1] == set()
    update = "UPDATE core.t AS t SET a = s.a FROM core.s AS s WHERE s.k = t.k AND EXISTS (SELECT FROM raw.r)"
    assert tables(update) == ({"core.s", "raw.r"}, {"core.t"})
    merged = "WITH gone AS (DELETE FROM mart.a RETURNING x) INSERT INTO mart.b SELECT x FROM gone JOIN mart.a USING (x)"
    assert tables(merged) == ({"mart.a"}, {"mart.a", "mart.b"})
