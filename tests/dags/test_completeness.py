"""The marts do not start on an event alone: every source must have been read to the end of the date, and mapped."""

from datetime import date

import psycopg
import pytest

from nightmarket.orchestration.completeness import SourcesBehind, require_complete
from nightmarket.warehouse import Row

DAY = date(2026, 3, 14)


def read_to(db: psycopg.Connection[Row], source_id: str, moment: str) -> None:
    db.execute(
        "INSERT INTO raw.cursors (source_id, stream, watermark, run_id, updated_at) VALUES (%s, 'trades', %s, 'r', now())"
        " ON CONFLICT (source_id, stream) DO UPDATE SET watermark = excluded.watermark",
        (source_id, moment),
    )


def land(db: psycopg.Connection[Row], source_id: str) -> int:
    row = db.execute(
        "INSERT INTO raw.batches (source_id, stream, run_id, changed_count, loaded_at) VALUES (%s, 'trades', 'r', 1, now())"
        " RETURNING batch_id",
        (source_id,),
    ).fetchone()
    assert row is not None
    return int(row["batch_id"])


def test_a_source_that_is_still_being_read_holds_the_night(db: psycopg.Connection[Row]) -> None:
    read_to(db, "shop_a", "2026-03-15T02:30:00+08:00")
    read_to(db, "shop_b", "2026-03-14T12:00:00+08:00")  # by hand, at noon
    with pytest.raises(
        SourcesBehind, match=r"2026-03-14 is not complete in core yet: shop_b trades was read to 2026-03-14 12:00"
    ):
        require_complete(DAY)
    read_to(db, "shop_b", "2026-03-15T00:00:00+08:00")
    require_complete(DAY)


def test_what_is_landed_but_not_mapped_holds_the_night(db: psycopg.Connection[Row]) -> None:
    read_to(db, "shop_a", "2026-03-15T02:30:00+08:00")
    batch_id = land(db, "shop_a")
    db.execute("INSERT INTO raw.mappings (source_id, stream, target) VALUES ('shop_a', 'trades', 'core.orders')")
    with pytest.raises(SourcesBehind, match=r"shop_a trades waits for core\.orders"):
        require_complete(DAY)
    db.execute("UPDATE raw.mappings SET last_batch_id = %s", (batch_id,))
    require_complete(DAY)


def test_an_older_date_is_complete_at_once(db: psycopg.Connection[Row]) -> None:
    read_to(db, "shop_b", "2026-03-14T12:00:00+08:00")
    require_complete(date(2026, 3, 13))  # raises nothing
    with pytest.raises(SourcesBehind):  # the same marks hold the newer date back
        require_complete(DAY)
