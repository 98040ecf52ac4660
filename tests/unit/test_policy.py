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
