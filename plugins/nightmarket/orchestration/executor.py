"""LocalExecutor whose workers have imported, before they are forked, what tasks import.

A task is a fork of a worker and a worker is a fork of the scheduler, so what is imported here is imported by no task again
(docs/decisions/0090-imported-once.md). Price: code in plugins/ is read when the stack starts. DAG files, SQL, templates and
configuration are read by every task, as before.
"""

from importlib import import_module

from airflow.executors.local_executor import LocalExecutor

WANTED = (
    "airflow.dag_processing.dagbag",
    "airflow.providers.common.sql.operators.sql",
    "airflow.providers.postgres.hooks.postgres",
    "airflow.providers.standard.decorators.python",
    "airflow.providers.standard.operators.hitl",
    "nightmarket.campaigns.cases",
    "nightmarket.campaigns.drift",
    "nightmarket.campaigns.journeys",
    "nightmarket.campaigns.results",
    "nightmarket.landing",
    "nightmarket.mapping",
    "nightmarket.marts",
    "nightmarket.orchestration.campaigns",
    "nightmarket.orchestration.completeness",
    "nightmarket.orchestration.defaults",
    "nightmarket.orchestration.extraction",
    "nightmarket.orchestration.night",
    "nightmarket.orchestration.sql",
    "nightmarket.predictions",
    "nightmarket.quality",
    "statsmodels.stats.power",
    "statsmodels.stats.proportion",
)


class PreloadedExecutor(LocalExecutor):
    """LocalExecutor, its workers forked with WANTED imported."""

    def start(self) -> None:
        for name in WANTED:
            import_module(name)
        super().start()
