"""An approval is for an audience. Before coupons are reserved the same question is asked again: late consents, merges and late
orders may have changed the answer since. Within the campaign's tolerance the run goes on as approved; beyond it the approval is
void, the audience is built again, and a person is asked about the new report.
"""

import logging
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import psycopg

from nightmarket import dates
from nightmarket.campaigns.audience import (
    AUDIENCES,
    RunRefused,
    audience_checksum,
    audit,
    content_hash,
    fill_audience,
    lock_run,
)
from nightmarket.campaigns.config import Campaign, Channel, ChannelsFile, Frequency, Holdout, Stock, load_channels
from nightmarket.campaigns.results import dry_run_report
from nightmarket.warehouse import Row, connect, run_sql

log = logging.getLogger(__name__)
REPORTED = ("needs_approval", "answer_within_hours", "content_hash", "markdown_zh", "markdown_en")


@dataclass(frozen=True)
class Drift:
    """How many members came, went or stand elsewhere, of all that were or are in the campaign (held out included)."""

    members: int
    entered: int
    left: int
    moved: int
    tolerance: Decimal

    @property
    def share(self) -> Decimal:
        return Decimal(self.entered + self.left + self.moved) / self.members if self.members else Decimal(0)

    @property
    def is_beyond(self) -> bool:
        return self.share > self.tolerance

    def __str__(self) -> str:
        verdict = "beyond" if self.is_beyond else "within"
        return (
            f"{self.entered:,} entered, {self.left:,} left, {self.moved:,} moved of {self.members:,} members:"
            f" {self.share:.2%}, {verdict} the tolerance of {self.tolerance:.2%}"
        )


def check_drift(run_id: str) -> dict[str, Any]:
    """Compare the approved audience of a live run with what the same date gives now.

    Returns is_void and sentence; when void also the new report's needs_approval, answer_within_hours, content_hash,
    markdown_zh and markdown_en, and the run waits for a decision about it. Asked again after that, the answer is the same; a run that
    sends already is left alone. Raises RunRefused when the new audience breaks a rule (budget, coupons).
    """
    with connect(application_name="nightmarket-drift") as connection:
        run = lock_run(connection, run_id)
        is_void = run["rebuilt_at"] is not None and run["state"] in ("building", "awaiting_approval")
        sentence = "the audience was built again"
        if not is_void:
            if run["mode"] != "live" or run["state"] in ("sending", "sent", "finished"):
                return {"is_void": False, "sentence": "nothing to compare: a test, or a run that sends already"}
            if run["state"] != "approved":
                raise RunRefused(
                    f"run {run_id} is {run['state']}, not approved; there is no approval to hold against anything."
                )
            drift = measure(connection, run)
            is_void, sentence = drift.is_beyond, str(drift)
            audit(
                connection,
                "drift",
                "void" if is_void else "drift",
                run_id,
                {"sentence": sentence, "share": float(drift.share), "approved_by": run["approved_by"]},
            )
            if is_void:
                _rebuild(connection, run)
    log.info("run %s: %s", run_id, sentence)
    if not is_void:
        return {"is_void": False, "sentence": sentence}
    report = dry_run_report(run_id)
    kept = {key: report[key] for key in REPORTED}
    return {"is_void": True, "sentence": sentence, **kept}


def measure(connection: psycopg.Connection[Row], run: Row) -> Drift:
    """Build the run's audience again into the temporary table audience_again and count the differences."""
    config = run["config"]
    campaign = Campaign.model_validate(config["campaign"])
    connection.execute(f"CREATE TEMPORARY TABLE audience_again (LIKE {AUDIENCES} INCLUDING DEFAULTS) ON COMMIT DROP")  # type: ignore[arg-type]
    fill_audience(
        connection, run["run_id"], campaign, frozen_channels(config), run["as_of"], run["mode"], run["size_limit"],
        into="audience_again",
    )  # fmt: skip
    counts = run_sql(connection, "push/audience_drift.sql", {"run_id": run["run_id"]})[0]
    return Drift(
        counts["member_count"], counts["entered_count"], counts["left_count"], counts["moved_count"],
        campaign.approval.drift_tolerance,
    )  # fmt: skip


def frozen_channels(config: dict[str, Any]) -> ChannelsFile:
    """channels.yaml as the run froze it, as far as the audience depends on it."""
    return load_channels().model_copy(
        update={
            "channels": {name: Channel.model_validate(channel) for name, channel in config["channels"].items()},
            "coupon_stocks": {name: Stock.model_validate(stock) for name, stock in config["stocks"].items()},
            "frequency": Frequency.model_validate(config["frequency"]),
            "global_holdout": Holdout.model_validate(config["global_holdout"]),
        }
    )


def _rebuild(connection: psycopg.Connection[Row], run: Row) -> None:
    """Put audience_again in the place of the frozen audience; nothing of the run is approved any more."""
    run_id = run["run_id"]
    connection.execute("DELETE FROM push.audiences WHERE run_id = %s", (run_id,))
    connection.execute("INSERT INTO push.audiences SELECT * FROM audience_again")
    checksum = audience_checksum(connection, run_id)
    connection.execute(
        """
        UPDATE push.campaign_runs
        SET state = 'building', audience_checksum = %s, content_hash = %s, rebuilt_at = %s, report = NULL,
            approved_hash = NULL, approved_by = NULL, approved_at = NULL, decision_reason = NULL
        WHERE run_id = %s
        """,
        (checksum, content_hash(checksum, run["config_hash"]), dates.now(), run_id),
    )
