"""Works off the outbox during the day: what the night queued for the morning's send window, what a large campaign left
over, what a dead worker held. It asks the platforms about messages in doubt, goes on over the next channel where no
receipt came in time, turns what was sent into facts and checks the laws of every open run.

**Who uses it**: nobody looks at it while it is green; messages simply go out when their send window is open.

**At 03:00**: let it be, send windows are closed; the next run is ten minutes away. *A pause* in the sentence means that a
channel refused too often and was paused for some minutes by itself. Messages in state unknown are never sent again: the
console lists them, a person decides. To stop all sending at once: runbook, rule 2.

Runbook: docs/runbook.md#deliver_outbox
"""

from airflow.sdk import CronTriggerTimetable, chain, dag

from nightmarket.orchestration.defaults import DEFAULT_ARGS, ZONE
from nightmarket.orchestration.labels import Domain, Impact, Layer
from nightmarket.orchestration.sending import (
    ask_platforms,
    deliver,
    queue_second_messages,
    recover,
    settle_open_runs,
    watch_cases,
)

EVERY_TEN_MINUTES = "*/10 * * * *"


@dag(
    schedule=CronTriggerTimetable(EVERY_TEN_MINUTES, timezone=ZONE),
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULT_ARGS,
    params={},
    tags=[Layer.PUSH, Domain.CAMPAIGNS, Impact.TIER_1],
    doc_md=__doc__,
)
def deliver_outbox():
    watch_cases()  # beside the outbox: deadlines of service cases pass during the day
    recovered = recover()
    chain(recovered, ask_platforms(), queue_second_messages(), deliver(None), settle_open_runs(recovered))


deliver_outbox()
