"""The page inside the Airflow UI: FastAPI routes, Jinja2 pages, charts."""
