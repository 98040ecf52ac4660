"""One machine: the embedded PostgreSQL, the sandbox and Airflow as one process tree."""
