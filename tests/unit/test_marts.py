"""tiers.yaml and kpis.yaml: what is refused, with file, line and field; what reaches the SQL."""

import json
from datetime import date
from pathlib import Path

import pytest

from nightmarket import settings as settings_module
from nightmarket.marts import MART_TABLES, load_kpis, load_path, load_tiers, mart_parameters
from nightmarket.settings import ConfigError

GOOD = """\
window_days: 365
tiers:
  - tier: bronze
    name_zh: 铜卡
    name_en: Bronze
    min_net_amount: 0
    max_net_amount: 700
  - tier: silver
    name_zh: 银卡
    name_en: Silver
    min_net_amount: 700
    max_net_amount: 2000.50
  - tier: gold
    name_zh: 金卡
    name_en: Gold
    min_net_amount: 2000.50
    max_net_amount: null
"""


@pytest.fixture(autouse=True)
def house(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTMARKET_WAREHOUSE_DSN", "postgresql://nowhere")
    settings_module.get_settings.cache_clear()


def write(folder: Path, text: str) -> Path:
    path = folder / "tiers.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_good_tiers_are_read(tmp_path: Path) -> None:
    tiers = load_tiers(write(tmp_path, GOOD))
    assert [tier.tier for tier in tiers.tiers] == ["bronze", "silver", "gold"]
    assert str(tiers.tiers[1].max_net_amount) == "2000.5"


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("min_net_amount: 700", "min_net_amount: 701", "tiers.yaml:11: tiers.1.min_net_amount: a gap: 'bronze' ends at 700"),
        ("min_net_amount: 700", "min_net_amount: 699", "tiers.yaml:11: tiers.1.min_net_amount: an overlap: 'bronze' ends"),
        ("min_net_amount: 0\n", "min_net_amount: 1\n", "tiers.yaml:6: tiers.0.min_net_amount: the lowest tier must start at 0"),
        ("max_net_amount: null", "max_net_amount: 9000", "tiers.yaml:17: tiers.2.max_net_amount: the highest tier has no upper"),
        ("max_net_amount: 700", "max_net_amount: null", "tiers.yaml:7: tiers.0.max_net_amount: only the highest tier"),
        ("max_net_amount: 700", "max_net_amount: 0", "tiers.yaml:7: tiers.0.max_net_amount: the band is empty"),
        ("tier: silver", "tier: bronze", "tiers.yaml:8: tiers.1.tier: tier 'bronze' stands twice"),
        ("2000.50\n  - tier: gold", "2000.505\n  - tier: gold", "tiers.yaml:12: tiers.1.max_net_amount: Decimal input should have no more than 2"),
        ("min_net_amount: 0\n", "min_net_amount: -5\n", "tiers.yaml:6: tiers.0.min_net_amount: Input should be greater than or equal to 0"),
        ("name_en: Gold", "name: Gold", "tiers.yaml:15: tiers.2.name: unknown key. Known keys here: max_net_amount"),
        ("window_days: 365", "window: 365", "tiers.yaml:1: window: unknown key. Known keys here: tiers, window_days."),
        ("    name_en: Gold\n", "", "tiers.yaml:13: tiers.2.name_en: required key is missing"),
        ("window_days: 365", "window_days: a year", "tiers.yaml:1: window_days: Input should be a valid integer"),
    ],
)  # fmt: skip
def test_a_mistake_names_file_line_and_field(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    assert old in GOOD
    with pytest.raises(ConfigError) as caught:
        load_tiers(write(tmp_path, GOOD.replace(old, new, 1)))
    assert sentence in str(caught.value)


def test_the_stored_configuration_is_right_and_reaches_the_sql() -> None:
    assert load_tiers().window_days == 365
    kpis = load_kpis()
    given = mart_parameters(date(2026, 3, 14))
    assert given["business_date"] == "2026-03-14"
    assert given["rfm_window_days"] == kpis.rfm.window_days
    assert given["min_buyers"] == kpis.experiment.min_buyers
    assert json.loads(json.dumps(given)) == given, "small and JSON-able: it travels between tasks"
    assert load_path(MART_TABLES[0]) == "mart/member_days/load.sql"


def test_an_unknown_kpi_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "kpis.yaml"
    stored = (settings_module.get_settings().config_dir / "kpis.yaml").read_text(encoding="utf-8")
    path.write_text(stored.replace("high_from_score", "high_score"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"kpis\.yaml:\d+: rfm\.high"):
        load_kpis(path)
