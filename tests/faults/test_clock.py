"""A clock that is five minutes off, ours or the platform's, loses nothing: windows end at the platform's time."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from nightmarket import dates, landing
from nightmarket.platforms.base import Transport
from nightmarket.settings import ROOT
from nightmarket.warehouse import Row

INCREMENT = "taobao.trades.sold.increment.get"


@pytest.fixture(autouse=True)
def no_overlap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What hides a wrong clock every night, taken away: windows that overlap by an hour."""
    blocks = yaml.safe_load((ROOT / "include" / "config" / "sources.yaml").read_text(encoding="utf-8"))
    blocks["sources"] = {"taobao_flagship": blocks["sources"]["taobao_flagship"] | {"streams": {"trades": {"overlap_minutes": 0}}}}  # fmt: skip
    folder = tmp_path / "config"
    folder.mkdir()
    (folder / "sources.yaml").write_text(yaml.safe_dump(blocks, allow_unicode=True), encoding="utf-8")
    monkeypatch.setenv("NIGHTMARKET_CONFIG_DIR", str(folder))
    from nightmarket import settings

    settings.get_settings.cache_clear()


def land(run_id: str, **options: Any) -> landing.LandingSummary:
    return landing.land("taobao_flagship", "trades", run_id=run_id, until=dates.now(), **options)


def watermark(db: psycopg.Connection[Row]) -> datetime:
    row = db.execute("SELECT watermark FROM raw.cursors WHERE stream = 'trades'").fetchone()
    assert row is not None
    assert isinstance(row["watermark"], datetime)
    return row["watermark"]


@pytest.mark.parametrize("offset_minutes", [5, -5])
def test_what_changes_in_the_five_minutes_comes_in(
    db: psycopg.Connection[Row], sandbox: Any, set_clock: Callable[[str], None], offset_minutes: int
) -> None:
    def clocks(platform: str, ours: str) -> None:
        sandbox.control("POST", "/clock", {"now": platform})
        set_clock(ours)

    land("first")  # the clocks agree
    ours = "02:45" if offset_minutes > 0 else "02:35"
    clocks("2026-03-15T02:40:00+08:00", f"2026-03-15T{ours}:00+08:00")
    summary = land("off")
    platform_time = datetime.fromisoformat("2026-03-15T02:40:00+08:00")
    assert abs((watermark(db) - platform_time).total_seconds()) <= (15 if offset_minutes > 0 else 315)
    assert watermark(db).timestamp() <= platform_time.timestamp() + 15
    if offset_minutes > 0:
        assert summary.note is not None
        assert "our clock is 300 s ahead" in summary.note or "our clock is 301 s ahead" in summary.note
        assert landing.gaps() == []
    # three trades change at 02:42 of the platform, which our clock has called 02:47, or 02:37
    clocks(
        "2026-03-15T02:42:00+08:00", "2026-03-15T02:47:00+08:00" if offset_minutes > 0 else "2026-03-15T02:37:00+08:00"
    )
    sandbox.control(
        "POST",
        "/faults",
        {"faults": [{"platform": "taobao", "method": INCREMENT, "kind": "shifting_page", "times": 1}]},
    )
    sold = land(
        "touch",
        dry_run=True,
        window=dates.Window(watermark(db).replace(hour=0) - dates.timedelta(hours=20), dates.now()),
    )
    assert sold.seen > 0, "there was nothing to touch"
    clocks("2026-03-15T02:55:00+08:00", "2026-03-15T02:55:00+08:00")
    after = land("after")
    assert after.changed == 3
    assert landing.gaps() == []


def test_one_answer_with_an_old_date_proves_nothing() -> None:
    from email.utils import format_datetime

    transport = Transport("demo")
    for minutes in (0, 180):
        transport._look_at_clock(format_datetime(dates.now() - dates.timedelta(minutes=minutes), usegmt=False))
    assert transport.clock_offset is not None
    assert transport.clock_offset > 10_000
    assert not transport.ahead
    transport._look_at_clock("not a date")
    assert transport.clock_offset is None
