"""tiers.yaml and kpis.yaml: what is refused, with file, line and field; what reaches the SQL."""

import json
from datetime import date
from pathlib import Path

import pytest

from nightmarket import settings as settings_module
from nightmarket.marts import MART_TABLES, load_kpis, load_path, load_tiers, mart_parameters
from nightmarket.settings import ConfigError

GOOD = """\
programmes:
  - programme: main
    name_zh: 会员等级
    name_en: Member tiers
    measure: net_amount
    window_days: 365
    review_days: 90
    grace_days: 14
    downgrade: one_step
    tiers:
      - {tier: bronze, name_zh: 铜卡, name_en: Bronze, enter: 0}
      - {tier: silver, name_zh: 银卡, name_en: Silver, enter: 700, keep: 500}
      - {tier: gold, name_zh: 金卡, name_en: Gold, enter: 2000.50, points_multiplier: 1.5}
  - programme: club
    name_zh: 俱乐部
    name_en: Club
    measure: order_count
    window_days: null
    review_days: 0
    tiers:
      - {tier: guest, name_zh: 客人, name_en: Guest, enter: 0}
points:
  programme: main
  points_per_unit: 1
  expire_days: 730
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
    main, club = tiers.programmes
    assert [tier.tier for tier in main.tiers] == ["bronze", "silver", "gold"]
    assert [str(tier.keep) for tier in main.tiers] == ["0", "500", "2000.5"], (
        "what is not said: as much as it took to enter"
    )
    assert (club.review_days, club.grace_days, club.downgrade) == (0, 0, "by_balance")
    assert (tiers.points.rounding, tiers.points.point_amount) == ("floor", 0)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        # ladders
        ("enter: 2000.50", "enter: 700", "tiers.yaml:13: programmes.0.tiers.2.enter: 700 is not above 700 of 'silver'; lowest first"),
        ("keep: 500", "keep: 0", "tiers.yaml:12: programmes.0.tiers.1.keep: 0 is not above 0 of 'bronze'"),
        ("keep: 500", "keep: 701", "tiers.yaml:12: programmes.0.tiers.1.keep: keeping it asks for more (701) than reaching it (700)"),
        ("Bronze, enter: 0", "Bronze, enter: 1", "tiers.yaml:11: programmes.0.tiers.0.enter: the lowest tier must start at 0"),
        ("tier: silver", "tier: bronze", "tiers.yaml:12: programmes.0.tiers.1.tier: tier 'bronze' stands twice"),
        # programmes
        ("programme: club", "programme: main", "tiers.yaml:14: programmes.1.programme: programme 'main' stands twice"),
        ("review_days: 90", "review_days: 0",
         "tiers.yaml:9: programmes.0.downgrade: looked at every day (review_days: 0) a member falls to where the measure is"),
        ("grace_days: 14", "grace_days: 90", "tiers.yaml:8: programmes.0.grace_days: a grace of 90 days outlasts the review every 90"),
        ("grace_days: 14", "grace_days: 400", "tiers.yaml:8: programmes.0.grace_days: Input should be less than or equal to 366"),
        ("downgrade: one_step", "downgrade: two_steps", "tiers.yaml:9: programmes.0.downgrade: Input should be 'one_step' or 'by_balance'"),
        ("measure: net_amount", "measure: clicks", "tiers.yaml:5: programmes.0.measure: Input should be 'net_amount', 'order_count' or 'points'"),
        # points
        ("points:\n  programme: main", "points:\n  programme: best",
         "tiers.yaml:23: points.programme: there is no programme 'best'; there are main, club"),
        ("points_per_unit: 1", "points_per_unit: 0", "tiers.yaml:24: points.points_per_unit: Input should be greater than 0"),
        ("expire_days: 730", "expire_days: 0", "tiers.yaml:25: points.expire_days: Input should be greater than or equal to 1"),
        # values and keys
        ("enter: 2000.50", "enter: 2000.505", "tiers.yaml:13: programmes.0.tiers.2.enter: Decimal input should have no more than 2"),
        ("Bronze, enter: 0", "Bronze, enter: -5", "tiers.yaml:11: programmes.0.tiers.0.enter: Input should be greater than or equal to 0"),
        ("enter: 2000.50, points_multiplier", "enter: 2000.50, multiplier", "tiers.yaml:13: programmes.0.tiers.2.multiplier: unknown key"),
        ("    window_days: 365\n", "", "tiers.yaml:2: programmes.0.window_days: required key is missing"),
        ("window_days: 365", "window_days: a year", "tiers.yaml:6: programmes.0.window_days: Input should be a valid integer"),
    ],
)  # fmt: skip
def test_a_mistake_names_file_line_and_field(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    assert old in GOOD
    with pytest.raises(ConfigError) as caught:
        load_tiers(write(tmp_path, GOOD.replace(old, new, 1)))
    assert sentence in str(caught.value)


def test_the_stored_configuration_is_right_and_reaches_the_sql() -> None:
    assert load_tiers().programmes[0].window_days == 365
    kpis = load_kpis()
    given = mart_parameters(date(2026, 3, 14))
    assert given["business_date"] == "2026-03-14"
    assert given["rfm_window_days"] == kpis.rfm.window_days
    assert given["min_buyers"] == kpis.experiment.min_buyers
    assert json.loads(json.dumps(given)) == given, "small and JSON-able: it travels between tasks"
    assert load_path(MART_TABLES[0]) == "mart/touched_members/load.sql"


def test_an_unknown_kpi_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "kpis.yaml"
    stored = (settings_module.get_settings().config_dir / "kpis.yaml").read_text(encoding="utf-8")
    path.write_text(stored.replace("high_from_score", "high_score"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"kpis\.yaml:\d+: rfm\.high"):
        load_kpis(path)
