"""A mistake in a campaign, a journey, channels.yaml or a template names file, line and field."""

from collections.abc import Iterator
from datetime import time
from pathlib import Path

import pytest

from campaign_world import ConfigFolder, without_database, write_config
from nightmarket.campaigns.config import check_all, list_campaigns, load_campaign, load_channels, load_journey
from nightmarket.settings import ConfigError


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield from without_database(monkeypatch)


@pytest.fixture
def config(files: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ConfigFolder:
    return write_config(tmp_path / "house", monkeypatch)


def test_the_house_has_no_mistake(files: None) -> None:
    assert check_all() == []
    assert "winback_gold" in list_campaigns()
    assert load_campaign("winback_gold").coupon is not None
    assert load_journey("followup_reviews").purpose == "service"


def replace(config: ConfigFolder, name: str, old: str, new: str) -> None:
    path = config.folder / "config" / name
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


CAMPAIGN_MISTAKES = {
    "unknown key": ("owner: growth", "owner: growth\nholdut: 1", "winback_gold.yaml:5: holdut: unknown key"),
    "missing key": ("salt: winback_gold-2026\n", "", "salt: required key is missing"),
    "share over 1": ("share: 0.5, template: winback_gift", "share: 0.7, template: winback_gift", "the variants' shares sum to 1.2, not to 1"),
    "hold-out over a half": ("holdout_share: 0.2", "holdout_share: 0.6", "winback_gold.yaml:10: holdout_share: Input should be less than or equal to 0.5"),
    "name of another file": ("campaign: winback_gold", "campaign: winback", "winback_gold.yaml:2: campaign: 'winback' is not the name of the file"),
    "unknown segment": ("segment: sleeping_valuable", "segment: nobody", "winback_gold.yaml:5: segment: include/sql/segments/nobody.sql does not exist"),
    "parameter the segment lacks": ("{min_days: 60,", "{min_dayz: 60, min_days: 60,", "winback_gold.yaml:6: parameters.min_dayz: segment 'sleeping_valuable' has no parameter 'min_dayz'"),
    "parameter forgotten": ("min_days: 60, ", "", "segment 'sleeping_valuable' needs the parameter 'min_days'"),
    "unknown channel": ("wechat_mass, email", "wechat_massive, email", "winback_gold.yaml:12: channels.1: there is no channel 'wechat_massive'"),
    "unknown template": ("template: winback_gift", "template: winback_gifts", "winback_gold.yaml:8: variants.0.template: include/templates/wechat/winback_gifts/meta.yaml does not exist"),
    "unknown stock": ("stock: winback_30,", "stock: winback_300,", "winback_gold.yaml:13: coupon.stock: there is no coupon stock 'winback_300'"),
    "real pool for tests": ("test_stock: test_pool", "test_stock: winback_10", "coupon.test_stock: stock 'winback_10' has is_test: false"),
    "key twice": ("owner: growth", "owner: growth\nowner: me", "winback_gold.yaml:5: owner: this key stands twice"),
    "not YAML": ("owner: growth", "owner: [growth", "not valid YAML"),
    "negative budget": ("amount: 60000", "amount: -1", "budget.amount: Input should be greater than or equal to 0"),
    "unknown tier": ("owner: growth", "owner: growth\nfilters: {tiers: [gold, golden]}", "winback_gold.yaml:5: filters.tiers.1: there is no tier 'golden'; the first programme of tiers.yaml has"),
    "unknown stage": ("owner: growth", "owner: growth\nexclusions: {stages: [asleep]}", "winback_gold.yaml:5: exclusions.stages.0: Input should be 'none', 'discovered'"),
    "unknown filter": ("owner: growth", "owner: growth\nfilters: {town: [x]}", "winback_gold.yaml:5: filters.town: unknown key. Known keys here: cities,"),
    "empty filter": ("owner: growth", "owner: growth\nfilters: {cities: []}", "winback_gold.yaml:5: filters.cities: Tuple should have at least 1 item"),
    "excluded segment without its parameter": ("owner: growth", "owner: growth\nexclusions: {segments: [{segment: new_buyers}]}", "winback_gold.yaml:5: exclusions.segments.0.parameters: segment 'new_buyers' needs the parameter 'max_days'"),
    "excluded campaign that is none": ("owner: growth", "owner: growth\nexclusions: {campaigns: [{campaign: win, days: 3}]}", "winback_gold.yaml:5: exclusions.campaigns.0.campaign: there is no campaign 'win'"),
    "link to a stranger": ("owner: growth", "owner: growth\nlanding_url: https://evil.test/x", "winback_gold.yaml:5: landing_url: 'evil.test' is not one of landing_hosts in channels.yaml (m.nightmarket.test"),
    "link to a look-alike": ("owner: growth", "owner: growth\nlanding_url: https://shop.nightmarket.test@evil.test/", "landing_url: 'https://shop.nightmarket.test@evil.test/' is not a plain https address"),
    "link without https": ("owner: growth", "owner: growth\nlanding_url: http://shop.nightmarket.test/", "is not a plain https address"),
    "receipts nobody sends": ("owner: growth", "owner: growth\nfallback: {no_receipt_after_minutes: 30}", "winback_gold.yaml:5: fallback.no_receipt_after_minutes: none of its channels tells of delivery"),
    "two schedules": ("owner: growth", 'owner: growth\nschedule: {cron: "0 10 * * 1", dates: [2026-11-11]}', "winback_gold.yaml:5: schedule: Value error, a schedule has exactly one of cron, dates and on"),
    "no cron": ("owner: growth", 'owner: growth\nschedule: {cron: "every monday"}', "'every monday' is not a cron expression of five fields"),
    "tier change to nowhere": ("owner: growth", "owner: growth\nschedule: {on: tier_change}", "on: tier_change needs tiers"),
    "tiers the segment does not take": ("owner: growth", "owner: growth\nschedule: {on: tier_change, tiers: [gold]}", "segment 'sleeping_valuable' has no parameter 'tiers'"),
    "promotion nobody announced": ("owner: growth", "owner: growth\npromotion: black_friday", "winback_gold.yaml:5: promotion: there is no big promotion 'black_friday'"),
    "drift over everything": ("approval: {above: 50}", "approval: {above: 50, drift_tolerance: 2}", "approval.drift_tolerance: Input should be less than or equal to 1"),
    "target over everything": ("uplift_rate: 0.02", "uplift_rate: 2", "targets.uplift_rate: Input should be less than or equal to 1"),
    "channel twice": ("wechat_mass, email", "email, email", "a name stands twice"),
}  # fmt: skip


@pytest.mark.parametrize("name", CAMPAIGN_MISTAKES)
def test_a_mistake_in_a_campaign(config: ConfigFolder, name: str) -> None:
    old, new, expected = CAMPAIGN_MISTAKES[name]
    replace(config, "campaigns/winback_gold.yaml", old, new)
    assert expected in check_all()[0]
    with pytest.raises(ConfigError) as caught:
        load_campaign("winback_gold")
    assert expected in str(caught.value)


CHANNEL_MISTAKES = {
    "a promotion that ends before it begins": ("name: mid_year, first: 2026-06-16", "name: mid_year, first: 2026-06-19", "mid_year: last is 2026-06-18, before first, 2026-06-19"),
    "a landing host that is an address": ("landing_hosts: [m.nightmarket.test", "landing_hosts: [https://m.nightmarket.test", "landing_hosts.0: String should match pattern"),
    "unknown channel": ("  wechat_mass:\n", "  pigeon:\n", "there is no channel 'pigeon'"),
    "group size missing": ("    group_size: 10000\n", "", "group_size belongs to channels that send one call to many"),
    "no rate": ("rate_per_second: 100\n", "rate_per_second: 0\n", "channels.email.rate_per_second: Input should be greater than 0"),
    "link base without https": ("https://m.nightmarket.test", "http://m.nightmarket.test", "link_base_url"),
    "stock id": ('"9856001"', '"abc"', "coupon_stocks.winback_30.platform_stock_id"),
    "more mass messages than allowed": ("month_messages: 4", "month_messages: 5", "must set month_messages to at most 4, the platform's own limit; it is 5"),
    "a longer window than allowed": ("window_hours: 48", "window_hours: 72", "must set window_hours to at most 48, the platform's own limit; it is 72"),
    "no rule about the window": ("        window_messages: 5\n", "", "must set window_messages to at most 5, the platform's own limit; it is not set"),
    "advertising by template message": ("        purposes: [service]\n", "", "WeChat rule 3.9 must stay"),
    "mail without consent": ("templates: email\n    consent: granted", "templates: email\n    consent: following", "marketing e-mail needs a consent that was given (Advertising Law art. 43)"),
    "push without consent": ("templates: push\n    consent: granted", "templates: push\n    consent: following", "marketing pushes need a consent"),
    "advertising notices": ("error 43101); service notices only\n        purposes: [service]\n", "error 43101); service notices only\n", "a subscription notice is a service notice (WeChat)"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANNEL_MISTAKES)
def test_a_mistake_in_channels(config: ConfigFolder, name: str) -> None:
    old, new, expected = CHANNEL_MISTAKES[name]
    replace(config, "channels.yaml", old, new)
    (sentence,) = check_all()
    assert "channels.yaml:" in sentence
    assert expected in sentence


def test_a_mistake_in_a_journey(config: ConfigFolder) -> None:
    replace(config, "journeys/followup_reviews.yaml", "ask: review_ask", "ask: review_beg")
    assert check_all()[0].endswith(
        "followup_reviews.yaml:25: templates.ask: include/templates/wechat_template/review_beg/meta.yaml does not exist."
    )
    with pytest.raises(ConfigError):
        load_journey("followup_reviews")


@pytest.mark.parametrize(
    ("file", "before", "after", "expected"),
    [
        ("config/journeys/followup_reviews.yaml", "taobao: false", "taobo: false", "rewards.taobo: there is no platform 'taobo'"),
        (
            "config/journeys/followup_reviews.yaml", "attribution_days: 7", "landing_url: https://evil.test/\nattribution_days: 7",
            "landing_url: 'evil.test' is not one of landing_hosts",
        ),
        ("config/channels.yaml", "home_url: https://shop", "home_url: https://evil", "home_url: 'evil.nightmarket.test' is not one of"),
        ("config/channels.yaml", "home_url: https://shop", "home_url: http://shop", "home_url:"),
        (
            "templates/email/review_thanks/zh.txt.j2", "任何评价", "好评",
            "templates.thanks: template email/review_thanks: the zh text says '好评'",
        ),
        (
            "templates/wechat_template/review_thanks/en.fields.yaml", "ny review", "ll reviews",
            "template wechat_template/review_thanks: the en text does not say 'any review'",
        ),
        (
            "templates/email/review_ask/en.txt.j2", "Good or bad", "For a reward", "the en text says 'reward'",
        ),
    ],
)  # fmt: skip
def test_a_mistake_about_reviews_and_links(
    config: ConfigFolder, file: str, before: str, after: str, expected: str
) -> None:
    path = config.folder / file
    text = path.read_text(encoding="utf-8")
    assert before in text
    path.write_text(text.replace(before, after), encoding="utf-8")
    assert any(expected in sentence for sentence in check_all())


def test_an_unknown_campaign_lists_the_known_ones(files: None) -> None:
    with pytest.raises(ConfigError, match=r"there is no campaign 'winback'; campaigns are .*winback_gold"):
        load_campaign("winback")


def test_an_unquoted_time_means_what_it_says(config: ConfigFolder) -> None:
    replace(config, "campaigns/winback_gold.yaml", '{opens: "09:00", closes: "20:00"}', "{opens: 10:30, closes: 20:00}")
    window = load_campaign("winback_gold").send_window
    assert (window.opens, window.closes) == (time(10, 30), time(20, 0))


def test_the_strictest_rule_counts(files: None) -> None:
    mass = load_channels().channels["wechat_mass"]
    assert mass.rule_value("month_messages") == 4
    assert mass.rule_value("window_hours") is None
