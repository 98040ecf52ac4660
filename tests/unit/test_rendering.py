"""Templates say what they may and nothing else; a hostile template or name fails or bends only its own message."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from campaign_world import ConfigFolder, without_database, write_config
from nightmarket.campaigns.rendering import (
    VARIABLES,
    CompiledTemplate,
    RenderError,
    TemplateSource,
    clean,
    link_key,
    load_template,
    signed_link,
    template_problems,
)
from nightmarket.settings import ConfigError

SAMPLE: dict[str, Any] = {
    "member": {"name": "王小明", "tier": "金卡会员"},
    "coupon": {"name": "满100减30", "amount": "30", "minimum": "100", "valid_to": "2026-04-14"},
    "shop": {"name": "夜市旗舰店", "contact": "help@nightmarket.test"},
    "link": "https://m.nightmarket.test/r/k",
    "unsubscribe_link": "https://m.nightmarket.test/u/k",
}


def source(text: str, part: str = "txt", limit: int = 500) -> TemplateSource:
    return TemplateSource("wechat", "probe", "marketing", limit, "", {"zh": {part: text}, "en": {part: text}})


def render(text: str, variables: dict[str, Any] | None = None, **options: Any) -> str:
    content = CompiledTemplate(source(text, **options)).render("zh", {**SAMPLE, **(variables or {})})
    return content.html or content.text


def test_the_gift_reads_as_a_person_would_get_it(files: None) -> None:
    text = CompiledTemplate(load_template("wechat", "winback_gift")).render("zh", SAMPLE).text
    assert text == (
        "王小明，您好！\n\n30 元代金券已放入您的微信卡包：满 100 元可用，2026-04-14 前有效。\n\n"
        "去看看：https://m.nightmarket.test/r/k\n\n夜市旗舰店｜不想再收到：https://m.nightmarket.test/u/k"
    )


def test_without_a_coupon_no_coupon_is_mentioned(files: None) -> None:
    for name in ("winback_gift", "winback_missed"):
        for folder in ("wechat", "email"):
            template = CompiledTemplate(load_template(folder, name))
            for language in ("zh", "en"):
                content = template.render(language, {**SAMPLE, "coupon": None, "member": None})
                whole = f"{content.subject} {content.text} {content.html}".lower()
                assert "券" not in whole
                assert "coupon" not in whole
                assert "yuan" not in whole


ATTACKS = {
    "attribute of a class": "{{ member.__class__ }}",
    "item access": "{{ member['__class__'] }}",
    "format string": "{{ '%s'|format(member) }}",
    "call": "{{ member.name.upper() }}",
    "lipsum": "{{ lipsum(n=100) }}",
    "loop": "{% for a in member.name %}{{ a }}{% endfor %}",
    "endless loop": "{% for a in range(10**9) %}{% for b in range(10**9) %}{% endfor %}{% endfor %}",
    "multiplication": "{{ 'a' * 1000000000 }}",
    "power": "{{ 9 ** 9 ** 9 }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'x' as y %}",
    "macro": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "set": "{% set member = 1 %}",
    "filter that repeats": "{{ member.name|center(1000000000) }}",
    "filter that calls": "{{ member|map(attribute='name')|list }}",
    "test that calls": "{% if member is sameas link %}{% endif %}",
    "self": "{{ self.__init__ }}",
    "unknown variable": "{{ password }}",
    "unknown attribute": "{{ member.phone }}",
    "concatenation": "{{ member.name ~ member.name }}",
    "list": "{{ [member.name] }}",
    "do": "{% do member.update({}) %}",
    "syntax": "{{ member.name",
    "too long": "x" * 20_001,
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_hostile_template_does_not_compile(name: str) -> None:
    with pytest.raises(ConfigError):
        CompiledTemplate(source(ATTACKS[name]))


NAMES = {
    "{{7*7}}": "{{7*7}}",
    "{% for a in range(9) %}": "{% for a in range(9) %}",
    "Eve\r\nBcc: all@mail.test": "Eve Bcc: all@mail.test",
    "a\x00b\x1b[31m": "a b [31m",
    "<a href='x'>Tap</a>": "‹a href='x'›Tap‹/a›",
    "\u202eevil": "evil",
    "王" * 40: "王" * 23 + "…",
    "👨‍👩‍👧 家": "👨‍👩‍👧 家",
    "'; DROP TABLE core.members; --": "'; DROP TABLE core.memb…",
    "欧阳·阿布都热依木": "欧阳·阿布都热依木",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_name_is_only_text(name: str) -> None:
    cleaned = clean(name, is_name=True)
    assert cleaned == NAMES[name]
    assert render("{{ member.name }}", {"member": {"name": cleaned, "tier": None}}) == cleaned


@pytest.mark.parametrize("name", ["王小明", "Anna Li 3", "A", "王" * 40, "a b" * 90])
def test_a_plain_name_is_kept_as_it_is(name: str) -> None:
    kept = name if len(name) <= 24 else name[:23] + "…"
    assert clean(name, is_name=True) == kept
    assert clean(f"{name}\u200e", is_name=True) == kept  # the long way gives the same
    assert clean(f" {name.replace(' ', '  ')}\n", is_name=True) == kept


@pytest.mark.parametrize("name", ["https://evil.test/x", "www.evil.test", "加微信 evil.com", "  ", "\n"])
def test_a_name_that_is_a_link_is_no_name(name: str) -> None:
    assert clean(name, is_name=True) is None


def test_html_is_escaped() -> None:
    variables = {"member": {"name": "<script>alert(1)</script>", "tier": None}}
    assert render("<p>{{ member.name }}</p>", variables, part="html") == "<p>&lt;script&gt;alert(1)&lt;/script&gt;</p>"


def test_a_missing_variable_fails_and_names_it() -> None:
    with pytest.raises(RenderError, match="'dict object' has no attribute 'contact'"):
        render("{{ shop.contact }}", {"shop": {"name": "x"}})
    with pytest.raises(RenderError, match="txt"):
        render("{{ coupon.amount }}", {"coupon": None})


def test_output_is_bounded() -> None:
    with pytest.raises(RenderError, match="more than its limit of 10"):
        render("{{ member.name }} {{ member.name }} {{ member.name }}", limit=10)


def test_a_thing_field_is_cut_to_what_wechat_takes() -> None:
    content = CompiledTemplate(source("{{ order.title }}", part="fields.thing1")).render(
        "zh", {"order": {"title": "长" * 50, "date": ""}}
    )
    assert content.fields == {"thing1": "长" * 19 + "…"}


def test_links_are_signed_and_bound_to_their_kind_and_key(files: None) -> None:
    link = signed_link("https://m.nightmarket.test", "r", "winback/2026-03-14/7/send")
    path, signature = link.removeprefix("https://m.nightmarket.test").split("?s=")
    assert path == "/r/winback%2F2026-03-14%2F7%2Fsend"
    assert link_key(path, signature) == "winback/2026-03-14/7/send"
    assert link_key(path.replace("/r/", "/u/"), signature) is None
    assert link_key(path.replace("7", "8"), signature) is None


def test_every_template_of_the_house_is_sound(files: None) -> None:
    root = Path(__file__).resolve().parents[2] / "include" / "templates"
    checked = 0
    for meta in root.glob("*/*/meta.yaml"):
        assert list(template_problems(meta.parents[1].name, meta.parent.name, 20_000)) == []
        checked += 1
    assert checked >= 8


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield from without_database(monkeypatch)


@pytest.fixture
def config(files: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ConfigFolder:
    return write_config(tmp_path / "house", monkeypatch)


def problems(config: ConfigFolder, file: str, text: str) -> list[str]:
    (config.folder / "templates" / "wechat" / "winback_gift" / file).write_text(text, encoding="utf-8")
    return list(template_problems("wechat", "winback_gift", 600))


def test_mistakes_in_a_template_name_file_and_line(config: ConfigFolder) -> None:
    found = problems(config, "zh.txt.j2", "你好\n{{ member.phone }}\n{{ member.tier }}")
    assert (
        found[0]
        == f"house/templates/wechat/winback_gift/zh.txt.j2:2: 'phone' is not in the dictionary; it has {', '.join(VARIABLES)}"
    )
    assert any("'member.tier' is used but not declared" in sentence for sentence in found)


def test_an_unguarded_personal_variable_is_found_before_a_mass_send_meets_it(config: ConfigFolder) -> None:
    found = problems(config, "zh.txt.j2", "{{ member.name }} {{ link }} {{ unsubscribe_link }} {{ shop.name }}")
    assert found == [
        "house/templates/wechat/winback_gift: zh without member, coupon, order, reward: template wechat/winback_gift (zh txt): 'None' has no attribute 'name'"
    ]


def test_a_missing_language_is_found(config: ConfigFolder) -> None:
    (config.folder / "templates" / "wechat" / "winback_gift" / "en.txt.j2").unlink()
    assert list(template_problems("wechat", "winback_gift", 600)) == [
        "house/templates/wechat/winback_gift/en.txt.j2: this file does not exist."
    ]


def test_a_broken_sample_is_found(config: ConfigFolder) -> None:
    assert "not valid JSON" in problems(config, "sample.json", "{")[0]
    assert problems(config, "sample.json", json.dumps({**SAMPLE, "shop": {}}))[0].endswith("has no attribute 'name'")
