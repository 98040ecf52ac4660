"""The night report: the same figures as the tables, in both languages, self-contained, without anything personal."""

import json
import re
from datetime import date, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import psycopg
import pytest

import night_world as world
from nightmarket.console.words import Text, money, number, points, rate, say, signed
from nightmarket.report import summary, write_night_report

BOTH = [world.DAY_ONE, world.DAY_TWO]


class Page(HTMLParser):
    """What a reader sees: visible text, and everything the page would load or run."""

    VOID = frozenset({"meta", "br", "link", "img", "input", "hr"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.loads, self.tags, self.open = "", [], [], []  # type: ignore[var-annotated]
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self.loads += [
            f"{tag} {name}={value}"
            for name, value in attrs
            if name in ("src", "href", "action") and not str(value).startswith("#")
        ]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [
            f"{tag} {name}={value}" for name, value in attrs if name.endswith("href") and not str(value).startswith("#")
        ]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> without a start"
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open and "defs" not in self.open:
            self.text += data


@pytest.fixture
def nights(db: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    world.seed_shop(db)
    world.seed_campaign(db)
    world.seed_second_night(db)
    return db


def written(tmp_path: Path, days: list[date]) -> str:
    return write_night_report(tmp_path / "report.html", days).read_text(encoding="utf-8")


def one(connection: psycopg.Connection[Any], query: str, *parameters: Any) -> dict[str, Any]:
    row = connection.execute(query, parameters).fetchone()  # type: ignore[arg-type]
    assert row
    return dict(row)


def test_the_report_is_one_well_formed_file_that_loads_nothing(nights: Any, tmp_path: Path) -> None:
    page = Page(written(tmp_path, BOTH))
    assert page.open == []
    assert page.loads == []
    assert "script" not in page.tags
    assert page.tags.count("svg") == 3  # trend, uplift, reviews
    assert [path.name for path in tmp_path.iterdir() if "report" in path.name] == ["report.html"]


def test_figures_of_the_report_are_those_of_the_tables(nights: Any, tmp_path: Path) -> None:
    text = Page(written(tmp_path, BOTH)).text
    rows = [
        re.sub(r"\s+", " ", line) for line in re.findall(r"<tr>(<td>2026-03-1\d</td>.*?)</tr>", written(tmp_path, BOTH))
    ]
    for day in BOTH:
        end = world.at(day + timedelta(days=1), 0)
        orders = one(
            nights,
            "SELECT count(*) AS n, sum(goods_amount) AS amount, count(DISTINCT identity_id) AS buyers FROM core.orders"
            " WHERE is_paid AND paid_at < %s",
            end,
        )
        refunds = one(
            nights, "SELECT count(*) AS n, sum(refund_amount) AS amount FROM core.refunds WHERE settled_at < %s", end
        )
        wanted = [
            str(day), f"{orders['buyers']:,}", f"{orders['n']:,}", f"¥{orders['amount']:,.2f}", f"{refunds['n']:,}",
            f"¥{refunds['amount']:,.2f}", str(world.MEMBERS),
        ]  # fmt: skip
        assert wanted in [re.findall(r">([^<]+)</td>", row) for row in rows]
    for day in BOTH:
        kpi = one(nights, "SELECT gross_amount FROM mart.shop_kpis_daily WHERE day = %s", day)
        assert f"¥{kpi['gross_amount']:,.2f}" in text


def test_summary_says_what_the_report_says(nights: Any) -> None:
    result = json.loads(json.dumps(summary(BOTH)))  # JSON-able without help
    assert result["business_dates"] == ["2026-03-12", "2026-03-13"]
    first, second = result["nights"]
    assert {row["stream"]: row["seen_count"] for row in first["arrivals"]}["trades"] == 19180
    assert sum(row["rejected_count"] for row in first["arrivals"]) == 3
    assert [row["stream"] for row in second["arrivals"] if not row["is_read"]] == ["followers"]
    assert sum(row["member_count"] for row in second["tiers"]) == world.MEMBERS
    assert [(m["direction"], m["previous_tier"], m["tier"]) for m in second["tier_moves"]] == [("up", "silver", "gold")]
    assert {gate["gate"]: (gate["passed_count"], gate["failed_count"], gate["warned_count"]) for gate in second["gates"]} == {
        "core": (1, 1, 0), "mart": (0, 0, 1),
    }  # fmt: skip
    assert [run["mode"] for run in result["runs"]] == ["live", "dry_run"]  # the journey is not a campaign
    assert [(run["run_id"], run["segment_count"]) for run in result["journeys"]] == [(world.JOURNEY_ID, 50)]
    live = result["runs"][0]
    assert sum(row["member_count"] for row in live["partition"]) == live["segment_count"] == 240
    (stock,) = live["coupons"]
    parts = ("issued", "redeemed", "reserved", "expired", "released", "unknown")
    assert sum(stock[f"{part}_count"] for part in parts) == stock["coupon_count"] == 130
    assert result["headline"]["winback_gold@2026-03-12: verdict"] == "no effect shown"
    gross = one(nights, "SELECT sum(goods_amount) AS amount FROM core.orders WHERE is_paid")["amount"]
    assert second["totals_shop"][0]["gross_amount"] == float(gross)


def test_every_query_is_named_with_its_parameters(nights: Any, tmp_path: Path) -> None:
    text = Page(written(tmp_path, BOTH)).text
    queries = summary(BOTH)["queries"]
    for query in queries:
        assert Path(__file__).parents[2].joinpath(query["file"]).exists()
        assert Path(query["file"]).name in text
    assert "first_day = 2026-02-12, last_day = 2026-03-13" in text  # thirty days, both ends included


def test_checks_that_did_not_pass_are_a_table(nights: Any, tmp_path: Path) -> None:
    text = Page(written(tmp_path, BOTH)).text
    assert "core.followers" in text.split("Not passed")[1]
    assert "25 hours" in text.split("Not passed")[1]
    assert "unique_key" not in text  # repaired by the second try


def test_the_worst_comes_first(nights: Any) -> None:
    found = summary(BOTH)["notices"]
    levels = [notice["level"] for notice in found]
    assert levels == sorted(levels, key=["stop", "check", "note"].index)
    sentences = " ".join(notice["en"] for notice in found)
    assert "A gate is red: core.followers: freshness: 25 hours" in sentences
    assert "unique_key" not in sentences  # repaired by the second try
    assert "2 messages with an unknown outcome, not sent again" in sentences
    assert "wechat_official · followers was not read this night." in sentences
    assert "1 coupon of winback_gold@2026-03-12 with an unknown outcome" in sentences
    assert "3 records of taobao_flagship · traderates rejected earlier" in sentences
    assert all(notice["zh"] and re.search("[\u4e00-\u9fff]", notice["zh"]) for notice in found)


def test_a_quiet_night_says_that_nothing_needs_attention(db: Any, tmp_path: Path) -> None:
    world.seed_shop(db)
    db.execute("DELETE FROM raw.rejects")
    db.execute("UPDATE core.reviews SET reply = '抱歉', replied_at = created_at")
    text = Page(written(tmp_path, [world.DAY_ONE])).text
    assert summary([world.DAY_ONE])["notices"] == []
    assert "Every gate passed, no record was rejected, no message has an unknown outcome." in text
    assert "No campaign ran in these nights, and none is still being counted." in text


def test_an_empty_house_gives_a_report_that_warns(db: Any, tmp_path: Path) -> None:
    text = Page(written(tmp_path, [world.DAY_ONE])).text
    assert "No quality gate ran: nothing should be sent." in text
    assert "There are no shop KPIs for these business dates yet." in text
    assert "No member tiers have been computed yet." in text
    assert "None" not in text
    assert "NaN" not in text
    assert summary([world.DAY_ONE])["headline"]["2026-03-12: members"] == 0


def test_both_languages_are_there_for_every_heading(nights: Any, tmp_path: Path) -> None:
    html = written(tmp_path, BOTH)
    headings = re.findall(r"<h2>(.*?)</h2>", html)
    assert len(headings) == 7
    for heading in headings:
        assert re.match(r'[\u4e00-\u9fff]+<span class="en" lang="en">[A-Z]', heading), heading
    assert len(re.findall(r'<p class="en" lang="en">', html)) >= 10


def test_nothing_personal_and_no_markup_from_data(nights: Any, tmp_path: Path) -> None:
    html = written(tmp_path, BOTH)
    assert "secret-address" not in html
    assert "secret-address" not in json.dumps(summary(BOTH))
    assert "<script" not in html
    assert "&lt;script&gt;" in html  # the shop's name is shown, as text


def test_the_campaign_is_still_shown_while_its_window_is_open(nights: Any) -> None:
    assert [run["run_id"] for run in summary([world.DAY_TWO])["runs"]] == [world.RUN_ID]
    later = world.DAY_TWO + timedelta(days=30)
    assert summary([later])["runs"] == []


def test_too_few_people_give_no_difference(nights: Any, tmp_path: Path) -> None:
    nights.execute("UPDATE mart.campaign_results SET verdict = 'not enough data'")
    html = written(tmp_path, BOTH)
    assert "Not enough data to say." in html
    assert "29 of 130 treated members bought, 3 of 30 held out." in html
    assert "+12.3" not in html
    assert "3,901.73" not in html
    assert html.count("<svg") == 2
    assert "winback_gold@2026-03-12: uplift, points" not in summary(BOTH)["headline"]


def test_many_nights_and_repeated_days(nights: Any, tmp_path: Path) -> None:
    days = [world.DAY_TWO - timedelta(days=n) for n in range(8)]
    text = Page(written(tmp_path, [*days, *days])).text
    assert all(f"{day:%m-%d} 之夜到达的数据" in text for day in days)
    with pytest.raises(ValueError, match="at least one business date"):
        summary([])


def test_a_report_that_fails_leaves_the_old_one(nights: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "reports" / "night.html"
    assert write_night_report(path, BOTH) == path
    before = path.read_text()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "chmod", full)
    with pytest.raises(OSError, match="No space left"):
        write_night_report(path, [world.DAY_ONE])
    assert path.read_text() == before
    assert list(path.parent.iterdir()) == [path]


def test_the_mean_of_a_young_shop_is_over_its_age(db: Any) -> None:
    world.seed_shop(db)
    db.execute("DELETE FROM mart.shop_kpis_daily WHERE day < %s", (world.DAY_ONE - timedelta(days=3),))
    (shop,) = summary([world.DAY_ONE])["nights"][0]["shop_day"]
    wanted = one(db, "SELECT sum(gross_amount) / 3 AS mean FROM mart.shop_kpis_daily WHERE day < %s", world.DAY_ONE)
    assert shop["mean_gross_amount"] == pytest.approx(float(wanted["mean"]))
    assert shop["same_weekday_gross_amount"] is None
    db.execute("DELETE FROM mart.shop_kpis_daily WHERE day < %s", (world.DAY_ONE,))
    (shop,) = summary([world.DAY_ONE])["nights"][0]["shop_day"]
    assert shop["mean_gross_amount"] is None


@pytest.mark.parametrize(
    ("shown", "wanted"),
    [
        (number(8911407.9, 2), "8,911,407.90"),
        (number(None), "–"),
        (number(-3), "−3"),
        (signed(12), "+12"),
        (signed(-1234), "−1,234"),
        (signed(0), "±0"),
        (money("1234.5"), "¥1,234.50"),
        (money(-2, "EUR"), "−€2.00"),
        (money(1, "SEK"), "SEK 1.00"),
        (rate("0.1234"), "12.3 %"),
        (rate(None), "–"),
        (points("-0.0214"), "−2.1"),
        (points(0), "±0"),
        (say({}, "new_code"), Text("new_code", "new_code")),
        (say({}, None), Text("–", "–")),
    ],
)
def test_figures_look_as_people_write_them(shown: Any, wanted: Any) -> None:
    assert shown == wanted
