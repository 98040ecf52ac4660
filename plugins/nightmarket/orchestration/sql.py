"""One SQL file = one task. The file runs as it stands in include/sql, with bound parameters, in one transaction."""

from pathlib import Path
from typing import Any

from airflow.providers.common.sql.operators.sql import SQLExecuteQueryOperator

from nightmarket.orchestration.hooks import WAREHOUSE


def task_id_of(path: str) -> str:
    """`mart/member_rfm/load.sql` -> `load_member_rfm`; other files are named after folder and file."""
    file = Path(path)
    return f"load_{file.parent.name}" if file.name == "load.sql" else f"{file.parent.name}_{file.stem}"


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
