"""One SQL file = one task. The file runs as it stands in include/sql, with bound parameters, in one transaction."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from airflow.providers.common.sql.operators.sql import SQLExecuteQueryOperator

from nightmarket.orchestration.hooks import WAREHOUSE


def task_id_of(path: str) -> str:
    """`mart/member_rfm/load.sql` -> `load_member_rfm`; `core/taobao/orders.sql` -> `map_orders`; members likewise."""
    file = Path(path)
    if file.name == "load.sql":
        return f"load_{file.parent.name}"
    if file.parent.name == "members":
        return f"members_{file.stem}"
    return f"map_{file.stem}"


def feeds(files: Sequence[Any], folder: Path) -> list[tuple[str, str]]:
    """(path, path) for every file that a later one of `files` waits for, because it reads a core table that one writes.

    `files` are mapping files (path, writes) in an order in which they could run one by one. What they read is taken from
    the SQL itself, so a new join brings its edge along; tests/dags proves the result with a real SQL parser.
    """
    reads = {
        file.path: set(re.findall(r"\b(?:FROM|JOIN)\s+(core\.\w+)", (folder / file.path).read_text(encoding="utf-8")))
        for file in files
    }
    return [
        (earlier.path, later.path)
        for index, later in enumerate(files)
        for earlier in files[:index]
        if reads[later.path] & set(earlier.writes)
    ]


def sql_task(path: str, parameters: Any, **options: Any) -> SQLExecuteQueryOperator:
    """A task that runs include/sql/<path>; `parameters` may hold results of other tasks, which makes them upstream."""
    return SQLExecuteQueryOperator(
        task_id=options.pop("task_id", None) or task_id_of(path),
        conn_id=WAREHOUSE,
        sql=path,
        parameters=parameters,
        split_statements=True,
        doc=f"include/sql/{path}",  # once parsed, `sql` is the text of the file
        do_xcom_push=False,  # a load returns nothing; results of SELECTs stay in the database
        **options,
    )
