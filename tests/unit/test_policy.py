"""A campaign that breaks a platform's rule or the law is refused at validation, with the rule's name and the line."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from campaign_world import ConfigFolder, without_database, write_config
from nightmarket.campaigns.config import check_all


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield from without_database(monkeypatch)


@pytest.fixture
def config(files: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ConfigFolder:
    return write_config(tmp_path / "house", monkeypatch)


def rewrite(config: ConfigFolder, path: str, old: str, new: str) -> None:
    file = config.folder / path
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")


def test_a_template_message_carries_neither_advertising_nor_a_coupon(config: ConfigFolder) -> None:
    config.campaign(channels=["wechat_template"])
    found = [sentence for sentence in check_all() if "wechat.template.3.9" in sentence]
    assert any(
        "a marketing campaign may not use wechat_template" in sentence and "channels.0" in sentence
        for sentence in found
    )
    assert any("wechat_template may not carry a coupon" in sentence for sentence in found)
    assert all("no advertising, no red packets, cards, coupons or vouchers" in sentence for sentence in found)


@pytest.mark.parametrize("word", ["优惠券", "红包", "discount"])
def test_a_template_message_may_not_say_it_either(config: ConfigFolder, word: str) -> None:
    rewrite(config, "templates/wechat_template/review_ask/zh.fields.yaml", "想听听您的真实评价", word)
    assert any(
        f"the zh text says {word!r}" in sentence and "wechat.template.3.9" in sentence for sentence in check_all()
    )


@pytest.mark.parametrize("word", ["好评", "五星", "优惠券"])
@pytest.mark.parametrize("folder", ["email", "wechat_template"])
def test_a_review_request_neither_names_a_rating_nor_offers_anything(
    config: ConfigFolder, word: str, folder: str
) -> None:
    name = "zh.txt.j2" if folder == "email" else "zh.fields.yaml"
    file = config.folder / "templates" / folder / "review_remind" / name
    file.write_text(file.read_text(encoding="utf-8").replace("还没有", f"还没有{word}"), encoding="utf-8")
    found = [sentence for sentence in check_all() if "law.reviews.inducement" in sentence]
    assert found
    assert "templates.remind" in found[0]
    assert word in found[0]


def test_marketing_names_its_sender_and_a_way_out(config: ConfigFolder) -> None:
    rewrite(config, "templates/email/winback_gift/en.txt.j2", "{{ unsubscribe_link }}", "")
    rewrite(config, "templates/email/winback_gift/en.html.j2", "{{ unsubscribe_link }}", "#")
    rewrite(config, "templates/wechat/winback_gift/zh.txt.j2", "{{ shop.name }}", "")
    found = [sentence for sentence in check_all() if "law.advertising.43" in sentence]
    assert any("email/winback_gift: the en text has no unsubscribe_link" in sentence for sentence in found)
    assert any("wechat/winback_gift: the zh text does not name shop.name" in sentence for sentence in found)
    assert all("variants.0.template" in sentence for sentence in found)


def test_an_advertising_mail_says_so_in_its_subject(config: ConfigFolder) -> None:
    rewrite(config, "templates/email/winback_missed/zh.subject.j2", "广告：", "")
    (sentence,) = check_all()
    assert "the zh subject does not begin with '广告：'" in sentence
    assert sentence.endswith("(rule law.email.label)")


def test_a_service_template_is_not_for_a_marketing_campaign(config: ConfigFolder) -> None:
    rewrite(config, "templates/wechat/winback_gift/meta.yaml", "purpose: marketing", "purpose: service")
    assert any("is for service messages, this is marketing" in sentence for sentence in check_all())


def rules_broken(config: ConfigFolder) -> list[str]:
    return [sentence for sentence in check_all() if "winback_gold.yaml" in sentence]


@pytest.mark.parametrize(
    ("opens", "closes", "is_allowed"),
    [
        ("08:00", "22:00", True),
        ("07:59", "20:00", False),
        ("09:00", "22:01", False),
        ("21:00", "09:00", False),
        ("10:00", "10:00", False),
    ],
)
def test_the_send_window_lies_inside_the_hours_of_the_house(
    config: ConfigFolder, opens: str, closes: str, is_allowed: bool
) -> None:
    config.campaign(send_window={"opens": opens, "closes": closes})
    found = [sentence for sentence in rules_broken(config) if sentence.endswith("(rule house.hours)")]
    assert bool(found) != is_allowed
    if found:
        assert (
            f"send_window: marketing messages may go out from 08:00 to 22:00, the window is {opens} to {closes}"
            in found[0]
        )


def test_hours_over_midnight_and_of_one_channel_and_purpose(config: ConfigFolder) -> None:
    with config.editing("channels.yaml") as data:
        data["house_rules"] = []
        hours = {"marketing": {"opens": "20:00", "closes": "02:00"}, "service": {"opens": "00:00", "closes": "00:00"}}
        data["channels"]["email"]["rules"].append({"rule": "mail.hours", "says": "at night only", "hours": hours})
    config.campaign(send_window={"opens": "21:00", "closes": "01:00"})
    assert rules_broken(config) == []
    config.campaign(send_window={"opens": "21:00", "closes": "03:00"})
    (sentence,) = rules_broken(config)
    assert sentence.endswith("the window is 21:00 to 03:00 on email: at night only (rule mail.hours)")


def test_a_coupon_stays_above_the_floor(config: ConfigFolder) -> None:
    config.campaign(coupon={"stock": "winback_10", "test_stock": "test_pool"})
    (sentence,) = rules_broken(config)
    assert "coupon.stock: a coupon of 10 from 20 yuan leaves 50% of the price, less than 70%" in sentence
    assert sentence.endswith("(rule house.discount_floor)")
    config.campaign(coupon={"stock": "winback_30", "test_stock": "test_pool"})  # exactly 70 %
    assert rules_broken(config) == []


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"dates": ["2026-11-01", "2026-11-11"]}, None),
        (
            {"dates": ["2026-11-11", "2026-11-12"]},
            "schedule.dates.1: 2026-11-12 is not within double_eleven (2026-11-01 to 2026-11-11)",
        ),
        ({"cron": "0 10 * * 1"}, "schedule: below the floor a campaign runs on dates of double_eleven"),
    ],
)
def test_below_the_floor_only_in_a_big_promotion(
    config: ConfigFolder, schedule: dict[str, object], expected: str | None
) -> None:
    config.campaign(
        coupon={"stock": "winback_10", "test_stock": "test_pool"}, promotion="double_eleven", schedule=schedule
    )
    found = rules_broken(config)
    assert [expected in sentence and "house.discount_floor" in sentence for sentence in found] == (
        [True] if expected else []
    )


def test_not_everything_is_an_offer(config: ConfigFolder) -> None:
    assert check_all() == []
    with config.editing("channels.yaml") as data:
        (rule,) = [rule for rule in data["house_rules"] if "content_mix" in rule]
        rule["content_mix"] = {"offers_at_most": 0.5, "from_campaigns": 3}
    (sentence,) = check_all()
    assert sentence.endswith("(rule house.content_mix)")
    assert "2 of 3 campaigns are offers, more than 50%" in sentence
    config.campaign(content="story")
    assert check_all() == []
