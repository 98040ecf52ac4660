"""Airflow's connections for the product: `nightmarket.settings.credentials` asks here while a task runs.

Airflow looks into its secrets backend, the environment (AIRFLOW_CONN_*) and its own database, in that order of its
configuration, so an account may be kept wherever the deployment keeps accounts.
"""

from typing import Any

from nightmarket.settings import ConfigError, Credentials, use_credentials_from

WAREHOUSE = "warehouse"  # connection id of the SQL tasks; role nightmarket_etl, session time zone Asia/Shanghai


def airflow_credentials(conn_id: str) -> Credentials:
    """The Airflow connection `conn_id`. Raises ConfigError when it is not defined."""
    from airflow.sdk import BaseHook
    from airflow.sdk.exceptions import AirflowNotFoundException

    try:
        connection = BaseHook.get_connection(conn_id)
    except AirflowNotFoundException:
        raise ConfigError(
            f"connection {conn_id!r} is not defined: add it in Airflow (Admin, Connections) or set AIRFLOW_CONN_{conn_id.upper()}."
        ) from None
    return Credentials(
        conn_id,
        connection.host or "",
        connection.login or "",
        connection.password or "",
        connection.port,
        connection.extra_dejson,
    )


def use_airflow_connections(_context: Any = None) -> None:
    """Let library code in this process read its accounts from Airflow; every task runs it first (defaults.py)."""
    use_credentials_from(airflow_credentials)
