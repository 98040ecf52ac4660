"""What would other tier rules have done? Who would rise and fall, since when, what points and coupons would cost. Nothing live is touched.

**Who uses it**: whoever thinks about new tiers. Change the text in the form, start, open the log of **compare**; the list of all members
who would stand differently is the CSV it names. The same from a shell: `nightmarket what-if --tiers proposed.yaml`.

**At 03:00**: nobody started it.

Runbook: docs/runbook.md#what_if_tiers
"""

import logging
from typing import Any

from airflow.sdk import Param, dag, task

from nightmarket.orchestration.defaults import DEFAULT_ARGS
from nightmarket.orchestration.form import business_date_param, check_form
from nightmarket.orchestration.labels import Domain, Impact, Layer
from nightmarket.orchestration.sources import config_folder

log = logging.getLogger(__name__)


@task(retries=1)
def compare(**context: Any) -> dict[str, Any]:
    """Tell the history by the rules of the form, compare, log; returns the counts and where the list of members is."""
    import tempfile
    from pathlib import Path

    from nightmarket import dates
    from nightmarket.settings import get_settings
    from nightmarket.tiers import load_tiers
    from nightmarket.what_if import in_words, what_if

    check_form(context["dag_run"].conf, context["dag"].params)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiers.yaml"
        path.write_text(context["params"]["tiers"], encoding="utf-8")
        proposed = load_tiers(path)
    result = what_if(proposed, dates.business_date(context["params"]["business_date"]))
    log.info("%s", in_words(result))
    reports = get_settings().var / "reports"
    reports.mkdir(parents=True, exist_ok=True)
    csv = result.write_csv(reports / f"what-if-{context['run_id'].replace(':', '-')}.csv")
    log.info("members who would stand differently: %s", csv)
    return {"members": result.members, "differing": len(result.differing), "csv": csv.name}


@dag(
    schedule=None,
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULT_ARGS,
    params={
        "tiers": Param(
            (config_folder() / "tiers.yaml").read_text(encoding="utf-8"),
            type="string", format="multiline", title="tiers.yaml 等级规则", description="The proposed rules; those in force are filled in.",
        ),
        "business_date": business_date_param(),
    },
    tags=[Layer.MART, Domain.MEMBERS, Impact.TIER_3],
    doc_md=__doc__,
)  # fmt: skip
def what_if_tiers():
    compare()


what_if_tiers()
