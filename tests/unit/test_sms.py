"""SMS without a network: the vendors' published signatures, how operators bill a text, and texts that are approved elsewhere."""

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from campaign_world import ConfigFolder, without_database, write_config
from nightmarket.campaigns.config import Channel, Rule, SendWindow, _loosened, check_all
from nightmarket.campaigns.rendering import (
    CompiledTemplate,
    RenderError,
    TemplateSource,
    load_template,
    template_problems,
)
from nightmarket.campaigns.sms_length import SmsFrame, billed_units, segments
from nightmarket.channels import sms_aliyun, sms_tencent
from nightmarket.channels.base import Answer, Outcome
from nightmarket.channels.sms import mainland_number
from nightmarket.settings import Credentials

EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
FRAME = SmsFrame("sms_aliyun", "夜市", "拒收请回复R", 134)


# ------------------------------------------------------------------------------------------------------- signatures
def test_aliyun_v1_as_published() -> None:
    regions = {
        "AccessKeyId": "testid",
        "Action": "DescribeRegions",
        "Format": "XML",
        "SignatureMethod": "HMAC-SHA1",
        "SignatureNonce": "3ee8c1b8-83d3-44af-a94f-4e0ad82fd6cf",
        "SignatureVersion": "1.0",
        "Timestamp": "2016-02-23T12:46:24Z",
        "Version": "2014-05-26",
    }
    assert sms_aliyun.sign_v1("GET", regions, "testsecret") == "OLeaidS1JvxuMvnyHOwuJ+uX5qY="
    send = {
        "AccessKeyId": "testId",
        "Action": "SendSms",
        "Format": "XML",
        "OutId": "123",
        "PhoneNumbers": "15300000001",
        "RegionId": "cn-hangzhou",
        "SignName": "阿里云短信测试专用",
        "SignatureMethod": "HMAC-SHA1",
        "SignatureNonce": "45e25e9b-0a6f-4070-8c85-2956eda1b466",
        "SignatureVersion": "1.0",
        "TemplateCode": "SMS_71390007",
        "TemplateParam": '{"customer":"test"}',
        "Timestamp": "2017-07-12T02:42:19Z",
        "Version": "2017-05-25",
    }
    assert sms_aliyun.sign_v1("GET", send, "testSecret") == "zJDF+Lrzhj/ThnlvIToysFRq6t4="


@pytest.mark.parametrize(
    ("query", "headers", "secret", "canonical", "signature"),
    [
        (
            {"ImageId": "win2019_1809_x64_dtc_zh-cn_40G_alibase_20230811.vhd", "RegionId": "cn-shanghai"},
            {
                "host": "ecs.cn-shanghai.aliyuncs.com",
                "x-acs-action": "RunInstances",
                "x-acs-content-sha256": EMPTY,
                "x-acs-date": "2023-10-26T10:22:32Z",
                "x-acs-signature-nonce": "3156853299f313e23d1673dc12e1703d",
                "x-acs-version": "2014-05-26",
            },
            "YourAccessKeySecret",
            "7ea06492da5221eba5297e897ce16e55f964061054b7695beedaac1145b1e259",
            "06563a9e1b43f5dfe96b81484da74bceab24a1d853912eee15083a6f0f3283c0",
        ),
        (
            {
                "OutId": "job-1",
                "PhoneNumbers": "13800000000",
                "SignName": "测试",
                "TemplateCode": "SMS_100001",
                "TemplateParam": '{"code":"1"}',
            },
            {
                "host": "dysmsapi.aliyuncs.com",
                "x-acs-action": "SendSms",
                "x-acs-content-sha256": EMPTY,
                "x-acs-date": "2023-11-14T22:13:20Z",
                "x-acs-signature-nonce": "simnonce-0001",
                "x-acs-version": "2017-05-25",
            },
            "simsecret",
            "76b666954ae68247c631a59144c72e09657993daacc5cc31a77625bb46fae605",
            "846c6507bc9a1580b77612cf45d4acbc9f12433f1f7091bd7a7a95c9b26b573c",
        ),
    ],
)
def test_aliyun_v3_as_published(
    query: dict[str, str], headers: dict[str, str], secret: str, canonical: str, signature: str
) -> None:
    assert sms_aliyun.canonical_hash("POST", "/", query, headers, b"") == canonical
    assert sms_aliyun.sign_v3(canonical, secret) == signature


CVM = b'{"Limit": 1, "Filters": [{"Values": ["\\u672a\\u547d\\u540d"], "Name": "instance-name"}]}'
SMS = (
    b'{"PhoneNumberSet":["+8613800000000"],"SmsSdkAppId":"1400000000","SignName":"\\u6d4b\\u8bd5","TemplateId":"100001",'
    b'"TemplateParamSet":["1"],"SessionContext":"job-1"}'
)


@pytest.mark.parametrize(
    ("service", "secret", "timestamp", "more", "body", "canonical", "signature"),
    [
        (
            "cvm", "Gu5t9xGARNpq86cd98joQYCN3EXAMPLE", 1551113065, {}, CVM,
            "5ffe6a04c0664d6b969fab9a13bdab201d63ee709638e2749d62a09ca18d7031",
            "72e494ea809ad7a8c8f7a4507b9bddcbaa8e581f516e8da2f66e2c5a96525168",
        ),
        (
            "cvm", "Gu5t9xGARNpq86cd98joQYCN3EXAMPLE", 1551113065, {"x-tc-action": "describeinstances"}, CVM,
            "7019a55be8395899b900fb5564e4200d984910f34794a27cb3fb7d10ff6a1e84",
            "644be983de9a8a3f00db8eadaba61467c3b429e2215758ba897b738ca469fd26",
        ),
        (
            "sms", "SIMSECRETKEY", 1700000000, {}, SMS,
            "a1217c6bdbd198400e55db082b32cb138aaa7b084d61a1ce71916c1d96379a94",
            "706ad65ba152f145e2c7b556651dc35caf765cfd94708ec9bb4692ee347dd0f9",
        ),
    ],
)  # fmt: skip
def test_tencent_tc3_as_published(
    service: str, secret: str, timestamp: int, more: dict[str, str], body: bytes, canonical: str, signature: str
) -> None:
    host = f"{service}.tencentcloudapi.com"
    headers = {"content-type": "application/json; charset=utf-8", "host": host, **more}
    assert sms_tencent.canonical_hash(headers, body) == canonical
    assert sms_tencent.sign_tc3(canonical, secret, service, timestamp) == signature


# ----------------------------------------------------------------------------------------------------------- length
@pytest.mark.parametrize(
    ("units", "parts"), [(0, 1), (1, 1), (70, 1), (71, 2), (134, 2), (135, 3), (160, 3), (201, 3), (202, 4)]
)
def test_parts_as_operators_bill_them(units: int, parts: int) -> None:
    assert segments("市" * units) == segments("a" * units) == parts


def test_an_emoji_is_two_characters_on_the_network() -> None:
    assert [billed_units(text) for text in ("a", "市", "😀", "𠮷", "👨‍👩‍👧", "é")] == [1, 1, 2, 2, 8, 1]
    assert segments("市" * 69 + "😀") == 2
    assert segments("市" * 68 + "😀") == 1


def source(text: str, purpose: str = "marketing", limit: int = 500, **fields: str) -> TemplateSource:
    parts = {"txt": text, **{f"fields.{name}": value for name, value in fields.items()}}
    return TemplateSource(
        "sms", "probe", purpose, limit, "", {"zh": parts, "en": parts}, {},
        {"sms_aliyun": {"zh": "SMS_1", "en": "SMS_2"}}, tuple(fields),
    )  # fmt: skip


def render(source: TemplateSource, name: str | None = "王小明", frame: SmsFrame = FRAME) -> Any:
    return CompiledTemplate(source, frame).render("zh", {"member": {"name": name}})


def test_signature_and_way_to_refuse_stand_there_once() -> None:
    content = render(source("尊敬的会员${name}，上新了。", name="{{ member.name }}"))
    assert content.text == "【夜市】尊敬的会员王小明，上新了。拒收请回复R"
    assert (content.sign, content.template_id, content.fields) == ("夜市", "SMS_1", {"name": "王小明"})
    assert render(source("上新了。", "service")).text == "【夜市】上新了。"  # a notice must not have it


def test_what_is_too_long_fails_alone() -> None:
    text = "市" * (134 - len("【夜市】拒收请回复R") - 3)
    assert segments(render(source(text + "${name}", name="{{ member.name }}")).text) == 2
    with pytest.raises(RenderError, match=r"135 characters .* \(3 parts\), more than the 134 of sms_aliyun"):
        render(source(text + "${name}", name="{{ member.name }}"), "欧阳小明")


def test_an_empty_value_fails_alone() -> None:
    with pytest.raises(RenderError, match="name is empty, which vendors refuse"):
        render(source("${name}", name="{{ member.name }}"), "  ")


def test_a_value_is_put_in_as_it_is_and_cut() -> None:
    content = render(source("${name}", name="{{ member.name }}"), "${name} {{ 7 }}")
    assert content.text == "【夜市】${name} {{ 7 }}拒收请回复R"
    assert len(render(source("${name}", name="{{ member.name }}"), "长" * 50).fields["name"]) == 35


def test_a_longest_name_decides_what_a_message_may_cost() -> None:
    compiled = CompiledTemplate(source("市" * 45 + "${name}", name="{{ member.name }}"), FRAME)
    variables = {"member": {"name": "王"}}
    assert segments(compiled.render("zh", variables).text) == 1
    assert compiled.most_parts("zh", variables) == 2
    assert CompiledTemplate(source("x", "service")).most_parts("zh", {}) == 1


def test_the_order_of_parameters_survives_the_database() -> None:
    stored = source("${bb}${a}", bb="2", a="1").as_json()
    parts = {language: dict(sorted(texts.items())) for language, texts in stored["parts"].items()}  # as jsonb does
    again = TemplateSource.from_json("sms", "probe", {**stored, "parts": parts})
    assert list(render(again).fields) == ["bb", "a"]


# ------------------------------------------------------------------------------------------------------------- files
def test_our_templates_are_complete(files: None) -> None:
    for name in ("winback_gift", "winback_missed", "review_ask", "review_remind"):
        loaded = load_template("sms", name)
        for language in ("zh", "en"):
            content = CompiledTemplate(loaded, FRAME).render(language, loaded.sample)
            assert content.template_id == loaded.template_ids["sms_aliyun"][language]
            assert "$" not in content.text


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield from without_database(monkeypatch)


@pytest.fixture
def config(files: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ConfigFolder:
    return write_config(tmp_path / "house", monkeypatch)


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("zh.txt.j2", "【夜市】尊敬的会员${name}，上新了。", "zh.txt.j2: leave out the signature"),
        ("zh.txt.j2", "尊敬的{{ member.name }}，上新了。", "zh.txt.j2: an approved SMS text is fixed"),
        (
            "zh.txt.j2",
            "尊敬的${nick}，上新了。",
            "the text has the parameters nick, zh.fields.yaml has name and meta.yaml name",
        ),
        ("en.fields.yaml", 'name: "{{ link }}"', "en.fields.yaml: link may not be a parameter"),
    ],
)
def test_what_cannot_be_an_approved_text(config: ConfigFolder, file: str, text: str, words: str) -> None:
    (config.folder / "templates" / "sms" / "winback_gift" / file).write_text(text, encoding="utf-8")
    assert any(words in problem for problem in template_problems("sms", "winback_gift", 134))


def test_the_suffix_belongs_to_the_approved_text_not_to_ours(config: ConfigFolder) -> None:
    path = config.folder / "templates" / "sms" / "winback_gift" / "zh.txt.j2"
    path.write_text(path.read_text(encoding="utf-8").strip() + "拒收请回复R", encoding="utf-8")
    config.campaign(channels=["sms_aliyun"], coupon=None)
    assert any("the zh text says '拒收请回复R' itself" in problem for problem in check_all())


def test_tencent_takes_no_win_back(config: ConfigFolder) -> None:
    config.campaign(channels=["sms_tencent"], coupon=None)
    found = check_all()
    assert any("there is no id for sms_tencent" in problem for problem in found)
    assert any("好久不见" in problem and "rule tencent.template.standard" in problem for problem in found)


def test_a_campaign_over_aliyun_is_well_formed(config: ConfigFolder) -> None:
    config.campaign(channels=["sms_aliyun"], coupon=None)
    assert [problem for problem in check_all() if "winback_gold" in problem or "sms" in problem] == []
    config.campaign(send_window={"opens": "08:30", "closes": "20:00"})
    assert any("rule law.miit.31" in problem for problem in check_all())


def channel(**changes: Any) -> Channel:
    rules = (
        Rule(rule="law", says="by day", hours={"marketing": SendWindow(opens="09:00", closes="20:00")}),  # type: ignore[arg-type]
        Rule(rule="suffix", says="refuse", opt_out_suffix="拒收请回复R"),
    )
    values = {
        "account": "sms_aliyun", "templates": "sms", "consent": "granted", "rate_per_second": Decimal(10), "sign": "夜市",
        "max_characters": 134, "cost_amount": Decimal("0.05"), "rules": rules,
    }  # fmt: skip
    return Channel(**(values | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, []),
        ({"consent": "following"}, ["consent must be granted"]),
        ({"sign": None}, ["sign is missing"]),
        ({"rules": ()}, ["must set opt_out_suffix", "must set hours for marketing"]),
    ],
)
def test_what_the_law_wants_of_the_block(changes: dict[str, Any], words: list[str]) -> None:
    found = list(_loosened("sms_aliyun", channel(**changes)))
    assert len(found) == len(words)
    assert all(word in sentence for word, sentence in zip(words, found, strict=True))


# ------------------------------------------------------------------------------------------------------------- codes
ALIYUN_CODES = {
    "OK": "accepted",
    **dict.fromkeys(("isv.MOBILE_NUMBER_ILLEGAL", "isv.DOMESTIC_NUMBER_NOT_SUPPORTED"), "refused for good"),
    "isv.BUSINESS_LIMIT_CONTROL": "retry",
    **dict.fromkeys(("isv.DAY_LIMIT_CONTROL", "isv.MONTH_LIMIT_CONTROL"), "pause"),
    **dict.fromkeys(
        (
            "isv.SMS_TEMPLATE_ILLEGAL", "isv.SMS_SIGNATURE_ILLEGAL", "isv.SMS_SIGN_ILLEGAL", "isv.SIGN_STATE_ILLEGAL",
            "isv.SMS_SIGNATURE_SCENE_ILLEGAL", "isv.TEMPLATE_MISSING_PARAMETERS", "isv.INVALID_PARAMETERS", "isv.INVALID_JSON_PARAM",
            "isv.EXTEND_CODE_ERROR", "isv.MOBILE_COUNT_OVER_LIMIT", "isv.AMOUNT_NOT_ENOUGH", "isv.OUT_OF_SERVICE",
            "isv.PRODUCT_UN_SUBSCRIPT", "isv.PRODUCT_UNSUBSCRIBE", "isv.ACCOUNT_NOT_EXISTS", "isv.ACCOUNT_ABNORMAL",
            "isv.DENY_IP_RANGE", "isp.RAM_PERMISSION_DENY", "SignatureDoesNotMatch", "InvalidTimeStamp.Expired",
            "InvalidAccessKeyId.NotFound",
        ),
        "pause",
    ),
    **dict.fromkeys(
        ("isv.SMS_CONTENT_ILLEGAL", "isv.PARAM_LENGTH_LIMIT", "isv.PARAM_NOT_SUPPORT_URL", "isv.BLACK_KEY_CONTROL_LIMIT"), "refused"
    ),
    "isv.SOMETHING_NEW": "refused",
    "Throttling.User": "retry",
    **dict.fromkeys(("isp.SYSTEM_ERROR", "isp.SOMETHING_NEW", "SignatureNonceUsed", ""), "unknown"),
}  # fmt: skip
TENCENT_CODES = {
    **dict.fromkeys(
        ("FailedOperation.PhoneNumberInBlacklist", "InvalidParameterValue.IncorrectPhoneNumber"), "refused for good"
    ),
    **dict.fromkeys(
        (
            "LimitExceeded.PhoneNumberThirtySecondLimit", "LimitExceeded.PhoneNumberOneHourLimit", "LimitExceeded.PhoneNumberDailyLimit",
            "LimitExceeded.DeliveryFrequencyLimit", "LimitExceeded.SomethingNew", "RequestLimitExceeded",
        ),
        "retry",
    ),
    **dict.fromkeys(
        (
            "FailedOperation.TemplateIncorrectOrUnapproved", "FailedOperation.SignatureIncorrectOrUnapproved",
            "FailedOperation.InsufficientBalanceInSmsPackage", "FailedOperation.MarketingSendTimeConstraint", "AuthFailure.SignatureExpire",
            "AuthFailure.SomethingNew", "UnauthorizedOperation.RequestIpNotInWhitelist", "InvalidParameter", "MissingParameter",
        ),
        "pause",
    ),
    "FailedOperation.ContainSensitiveWord": "refused",
    "FailedOperation.SomethingNew": "refused",
    **dict.fromkeys(("InternalError.Timeout", "InternalError", ""), "unknown"),
}  # fmt: skip


def kind_of(outcome: Outcome) -> str:
    assert bool(outcome.retry_after) == (outcome.kind in ("retry", "pause")), "who waits is told for how long"
    return f"{outcome.kind} for good" if outcome.suppress else outcome.kind


@pytest.mark.parametrize("code", ALIYUN_CODES)
def test_what_every_code_of_aliyun_means(code: str) -> None:
    channel = sms_aliyun.SmsAliyun(Credentials("a", "", "id", "key"), connections=1, timeout_seconds=1)
    status = 200 if code.startswith("is") or code in ("OK", "") else 400
    outcome = channel._judge(Answer(status, {"Code": code, "Message": "13800000000 is wrong", "BizId": "1^0"}))
    assert kind_of(outcome) == ALIYUN_CODES[code]
    assert "13800000000" not in outcome.message


@pytest.mark.parametrize("code", TENCENT_CODES)
def test_what_every_code_of_tencent_means(code: str) -> None:
    account = Credentials("t", "", "id", "key", extra={"sdk_app_id": "1"})
    channel = sms_tencent.SmsTencent(account, connections=1, timeout_seconds=1)
    assert kind_of(channel._judge(200, code, "said")) == TENCENT_CODES[code]


def test_numbers_are_mainland_numbers_however_they_are_written() -> None:
    written = ["13800000000", "+86 138 0000 0000", "138-0000-0000", "8613800000000", "１３８００００００００"]
    assert {mainland_number(text) for text in written} == {"13800000000"}
    assert {mainland_number(text) for text in ("+1 202 555 0100", "+852 9123 4567", "2380000000", "", "(none)")} == {
        None
    }
