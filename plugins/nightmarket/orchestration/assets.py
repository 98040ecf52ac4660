"""What one DAG tells the next. An event carries {"business_date": "YYYY-MM-DD", ...} and means "this is ready for that date".

Names are `layer.table`, group = layer. An asset is published by the last task of a DAG, after its gate: whoever is
scheduled on it never starts on bad data.
"""

from functools import cached_property

from airflow.sdk import Asset


class OurAsset(Asset):
    """An Asset that works its hash out once: Airflow hashes a DAG, and the assets that start it, at every edge of the DAG."""

    @cached_property
    def _hash(self) -> int:
        return super().__hash__()

    def __hash__(self) -> int:
        return self._hash


def source_asset(source_id: str) -> Asset:
    """Everything this source told us is in core."""
    return OurAsset(name=f"core.{source_id}", group="core")


def stream_asset(source_id: str, stream: str) -> Asset:
    """What one stream of a source gave us; its event carries the business date and the counts of the run."""
    return OurAsset(name=f"raw.{source_id}.{stream}", group="raw")


RECEIPTS = OurAsset(name="core.receipts", group="core")  # redemptions and delivery receipts are in core
MART_NIGHT = OurAsset(name="mart.night", group="mart")  # every mart of one business date, gate passed
FOLLOWUPS = OurAsset(name="push.followups", group="push")  # the journeys of one business date have been evaluated
