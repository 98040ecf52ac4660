"""Everything that imports Airflow: hooks, operators, params, assets, DAG factories."""
