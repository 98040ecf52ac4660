"""LocalExecutor whose workers have imported, before they are forked, what tasks import, and which takes no more than they can do.

A task is a fork of a worker and a worker is a fork of the scheduler, so what is imported here is imported by no task again
(docs/decisions/0090-imported-once.md). Price: code in plugins/ is read when the stack starts. DAG files, SQL, templates and
configuration are read by every task, as before.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

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
    """LocalExecutor, its workers forked with WANTED imported.

    It also remembers what it runs. LocalExecutor of Airflow 3.3 does not, so the scheduler sees free slots for ever and queues all
    that is ready, first come first served: the last task of the longest source waited behind everybody's first ones.
    """

    def start(self) -> None:
        for name in WANTED:
            import_module(name)
        super().start()

    def _process_workloads(self, workload_list: Sequence[Any]) -> None:
        super()._process_workloads(workload_list)
        self.running.update(workload.key for workload in workload_list)

    def _check_workers(self) -> None:
        before = set(self.workers)
        super()._check_workers()
        if before - set(self.workers):  # a worker that died reports nothing: nobody knows which slot was its
            self.running.clear()
