"""A past range read again from the shell or the UI: what was not there comes in, the watermark stays, the gaps say what is left."""

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from typer.testing import CliRunner

from nightmarket import cli, dates, landing, settings
from nightmarket.dates import Window
from nightmarket.landing import LandingError
from nightmarket.settings import ROOT
from nightmarket.warehouse import Row

SOURCE = "taobao_flagship"


@pytest.fixture(autouse=True)
def one_month(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shop whose first load goes back thirty days."""
    blocks = yaml.safe_load((ROOT / "include" / "config" / "sources.yaml").read_text(encoding="utf-8"))
    blocks["sources"] = {SOURCE: blocks["sources"][SOURCE] | {"history_days": 30, "streams": {"trades": {}}}}
    folder = tmp_path / "config"
    folder.mkdir()
    (folder / "sources.yaml").write_text(yaml.safe_dump(blocks, allow_unicode=True), encoding="utf-8")
    monkeypatch.setenv("NIGHTMARKET_CONFIG_DIR", str(folder))
    settings.get_settings.cache_clear()


def keys(db: psycopg.Connection[Row]) -> set[str]:
    return {row["record_key"] for row in db.execute("SELECT record_key FROM raw.heads WHERE stream = 'trades'")}


def test_a_backfill_brings_what_was_not_read_and_leaves_the_watermark(
    db: psycopg.Connection[Row], sandbox: Any, set_clock: Callable[[str], None]
) -> None:
    first = landing.land(SOURCE, "trades", run_id="first", until=dates.now())
    month = keys(db)
    past = Window(
        datetime.fromisoformat("2025-12-01T00:00:00+08:00"), datetime.fromisoformat("2026-01-01T00:00:00+08:00")
    )
    dry = landing.land(SOURCE, "trades", run_id="dry", until=dates.now(), window=past, dry_run=True)
    assert keys(db) == month
    summary = landing.land(SOURCE, "trades", run_id="backfill", until=dates.now(), window=past)
    assert dry.seen == summary.seen
    assert dry.changed >= summary.changed > 0  # a dry run does not remember what it saw in another window
    assert summary.watermark == first.watermark
    older = keys(db) - month
    assert len(older) == summary.changed
    again = landing.land(SOURCE, "trades", run_id="again", until=dates.now(), window=past)
    assert (again.seen, again.changed) == (summary.seen, 0)
    begins = datetime.fromisoformat(first.watermark or "") - timedelta(days=30)
    assert [gap.window for gap in landing.gaps()] == [Window(past.end, begins)]
    told = CliRunner().invoke(cli.app, ["gaps", SOURCE])
    assert told.exit_code == 1
    assert told.output == "taobao_flagship trades: 2026-01-01 00:00+08:00 to 2026-02-13 02:30+08:00 was never read.\n"
    landing.land(SOURCE, "trades", run_id="rest", until=dates.now(), window=Window(past.end, begins))
    assert landing.gaps() == []
    assert CliRunner().invoke(cli.app, ["gaps"]).exit_code == 0
    with pytest.raises(LandingError, match="not past yet"):
        landing.land(
            SOURCE, "trades", run_id="x", until=dates.now(), window=Window(dates.now() + timedelta(days=1), dates.now() + timedelta(days=2)),
        )  # fmt: skip


def test_gaps_of_an_unknown_source_are_a_sentence(db: psycopg.Connection[Row], sandbox: Any) -> None:
    told = CliRunner().invoke(cli.app, ["gaps", "no_such_shop"])
    assert told.exit_code == 1
    assert "no_such_shop" in told.output
