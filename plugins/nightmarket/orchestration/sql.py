"""One SQL file = one task. The file runs as it stands in include/sql, with bound parameters, in one transaction."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from airflow.providers.common.sql.operators.sql import SQLExecuteQueryOperator

from nightmarket.orchestration.hooks import WAREHOUSE

PEOPLE = {"core.identities", "core.identity_links", "core.profiles"}


def task_id_of(path: str) -> str:
    """`mart/member_rfm/load.sql` -> `load_member_rfm`; `core/taobao/orders.sql` -> `map_orders`; members likewise."""
    file = Path(path)
    if file.name == "load.sql":
        return f"load_{file.parent.name}"
    if file.parent.name == "members":
        return f"members_{file.stem}"
    return f"map_{file.stem}"


def feeds(mappings: Sequence[Any], folder: Path) -> list[tuple[str, str]]:
    """(name, name) for every mapping that a later one waits for: it reads or writes a core table that the earlier one writes.

    `mappings` have name, files and writes, in an order in which they could run one by one. What they read is taken from
    the SQL itself, so a new join brings its edge along; tests/dags proves the result with a real SQL parser. Tables of
    people are left out: every writer locks them for itself (core/write/people.sql).
    """
    reads = {
        mapping.name: {
            table
            for file in mapping.files
            for table in re.findall(r"\b(?:FROM|JOIN)\s+(core\.\w+)", (folder / file).read_text(encoding="utf-8"))
        }
        for mapping in mappings
    }
    return [
        (earlier.name, later.name)
        for index, later in enumerate(mappings)
        for earlier in mappings[:index]
        if ((reads[later.name] | set(later.writes)) & set(earlier.writes)) - PEOPLE
    ]


def sql_task(path: str | Sequence[str], parameters: Any, **options: Any) -> SQLExecuteQueryOperator:
    """A task that runs a file of include/sql, or several in one transaction.

    `parameters` may hold results of other tasks, which makes them upstream.
    """
    files = [path] if isinstance(path, str) else list(path)
    return SQLExecuteQueryOperator(
        task_id=options.pop("task_id", None) or task_id_of(files[0]),
        conn_id=WAREHOUSE,
        # included and not listed: what is given as a list is taken for single statements, and a file has several
        sql=files[0] if len(files) == 1 else "\n".join(f"{{% include '{file}' %}}" for file in files),
        parameters=parameters,
        split_statements=True,
        doc="\n".join(f"include/sql/{file}" for file in files),  # once parsed, `sql` is the text of the files
        do_xcom_push=False,  # a load returns nothing; results of SELECTs stay in the database
        **options,
    )
