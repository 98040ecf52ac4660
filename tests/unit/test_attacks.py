"""A corpus of attack templates and hostile values: each is refused with file and line, or fails or bends only its own message."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from campaign_world import MORNING, People, green_night, sandbox_openids, start_run, without_database
from nightmarket import settings
from nightmarket.campaigns.delivery import deliver
from nightmarket.campaigns.rendering import (
    MAX_NAME_CHARACTERS,
    MAX_TEMPLATE_CHARACTERS,
    CompiledTemplate,
    RenderError,
    TemplateSource,
    clean,
    member_values,
    template_problems,
)
from nightmarket.channels.email import SMTP_POLICY
from nightmarket.settings import ROOT
from nightmarket.warehouse import Row

DEEP = 12
# what is tried -> the template and the line of its mistake
ATTACKS: dict[str, tuple[str, int]] = {
    "class": ("{{ member.__class__ }}", 1),
    "class of a string": ("您好\n{{ ''.__class__.__mro__ }}", 2),
    "subclasses": ("\n\n{{ ().__class__.__base__.__subclasses__() }}", 3),
    "globals": ("{{ member.name.__init__.__globals__ }}", 1),
    "attr filter": ("{{ member|attr('__class__') }}", 1),
    "item": ("a\nb\n{{ member['name'] }}", 3),
    "slice": ("{{ member.name[:3] }}", 1),
    "method": ("{{ member.name.upper() }}", 1),
    "format method": ("{{ '{0.__class__}'.format(member) }}", 1),
    "format filter": ("{{ '%s%s'|format(member, link) }}", 1),
    "percent": ("{{ '%999999999d' % 1 }}", 1),
    "huge text": ("x\n{{ 'a' * 1000000000 }}", 2),
    "huge number": ("{{ 9 ** 9 ** 9 }}", 1),
    "huge shift by adding": ("{{ member.points + member.points }}", 1),
    "concatenation": ("{{ link ~ link ~ link }}", 1),
    "center": ("{{ member.name|center(1000000000) }}", 1),
    "indent": ("{{ member.name|indent(1000000000) }}", 1),
    "filter with an expression inside": ("{{ member.name|default('a' * 1000000000) }}", 1),
    "filter that maps": ("{{ member|map(attribute='name')|list }}", 1),
    "filter that marks as safe": ("{{ member.name|safe }}", 1),
    "filter that prints": ("{{ member|pprint }}", 1),
    "filter block": ("{% filter upper %}{{ link }}{% endfilter %}", 1),
    "loop": ("a\n{% for letter in member.name %}{{ letter }}{% endfor %}", 2),
    "endless loops": ("{% for a in range(10**9) %}{% for b in range(10**9) %}{% endfor %}{% endfor %}", 1),
    "recursive loop": ("{% for a in member recursive %}{{ loop(a) }}{% endfor %}", 1),
    "macro that calls itself": ("{% macro m() %}{{ m() }}{% endmacro %}\n{{ m() }}", 1),
    "call block": ("{% call link() %}x{% endcall %}", 1),
    "include": ("a\n\n{% include '/etc/passwd' %}", 3),
    "include by variable": ("{% include member.name %}", 1),
    "import": ("{% import 'x' as y %}", 1),
    "from import": ("{% from 'x' import y %}", 1),
    "extends": ("{% extends 'x' %}", 1),
    "block": ("{% block a %}{{ self.a() }}{% endblock %}", 1),
    "set": ("{% set member = 1 %}", 1),
    "set block": ("{% set link %}https://evil.test{% endset %}{{ link }}", 1),
    "with": ("{% with link = 'https://evil.test' %}{{ link }}{% endwith %}", 1),
    "autoescape off": ("{% autoescape false %}{{ member.name }}{% endautoescape %}", 1),
    "do": ("{% do member.update({}) %}", 1),
    "debug": ("{% debug %}", 1),
    "namespace": ("{{ namespace(a=1) }}", 1),
    "cycler": ("{{ cycler('a', 'b') }}", 1),
    "lipsum": ("{{ lipsum(n=1000000) }}", 1),
    "globals by name": ("{{ config }}", 1),
    "another member's field": ("a\n{{ member.phone }}", 2),
    "a whole dictionary": ("{{ [member, coupon] }}", 1),
    "lambda in a test": ("{% if member is sameas link %}x{% endif %}", 1),
    "test that iterates": ("{% if member is iterable %}x{% endif %}", 1),
    "in": ("{% if 'a' in range(10**9) %}x{% endif %}", 1),
    "code after a comment": ("{# nothing to see #}\n{# {{ 7*7 }} #}\n{{ 7*7 }}", 3),
    "code in raw's shadow": ("{% raw %}{{ 7*7 }}{% endraw %}{{ 7*7 }}", 1),
    "broken": ("a\nb\n{{ member.name", 3),
    "broken block": ("{% if member %}", 1),
    "broken comment": ("a\n{# never closed", 2),
    "conditions in conditions": ("{% if member %}\n" * DEEP + "x" + "{% endif %}" * DEEP, 10),
    "a thousand conditions": ("{% if member %}" * 1000 + "{% endif %}" * 1000, 1),
    "a thousand nots": ("{% if " + "not " * 3000 + "member %}x{% endif %}", 1),
    "brackets": ("{{ " + "(" * 3000 + "link" + ")" * 3000 + " }}", 1),
    "chained choices": ("{{ " + "link if member else " * 40 + "link }}", 1),
    "accents without end": ("a" + "\u0301" * MAX_TEMPLATE_CHARACTERS, 1),
    "too long": ("x" * (MAX_TEMPLATE_CHARACTERS + 1), 1),
}


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A template folder that a test may break."""
    source = ROOT / "include" / "templates" / "wechat" / "winback_gift"
    folder = tmp_path / "house" / "templates" / "wechat" / "winback_gift"
    folder.mkdir(parents=True)
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    monkeypatch.setenv("NIGHTMARKET_TEMPLATE_DIR", str(tmp_path / "house" / "templates"))
    for _ in without_database(monkeypatch):
        yield folder


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused_with_file_and_line(name: str, house: Path) -> None:
    text, line = ATTACKS[name]
    (house / "zh.txt.j2").write_text(text, encoding="utf-8")
    started = time.thread_time()  # not of the clock: a busy machine is no dear template
    found = [sentence for sentence in template_problems("wechat", "winback_gift", 600) if "zh.txt.j2" in sentence]
    assert found[0].startswith(f"house/templates/wechat/winback_gift/zh.txt.j2:{line}: ")
    assert time.thread_time() - started < 2


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_that_was_frozen_into_a_run_is_not_compiled(name: str) -> None:
    text, _line = ATTACKS[name]
    source = TemplateSource("wechat", "probe", "marketing", 600, "", {"zh": {"txt": text}, "en": {"txt": "x"}})
    with pytest.raises(settings.ConfigError, match=r"template wechat/probe \(zh txt\), line \d+: "):
        CompiledTemplate(source)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("{# {{ 7*7 }} {% for %} #}你好", "你好"),
        ("{% raw %}{{ 7*7 }}{% endraw %}", "{{ 7*7 }}"),
        ("$(reboot) `reboot` ${member} %s {0.__class__}", "$(reboot) `reboot` ${member} %s {0.__class__}"),
        ("{{ '{{ 7*7 }}' }}", "{{ 7*7 }}"),
    ],
)
def test_what_only_looks_like_code_is_text(text: str, shown: str) -> None:
    source = TemplateSource("wechat", "probe", "marketing", 600, "", {"zh": {"txt": text}, "en": {"txt": text}})
    assert CompiledTemplate(source).render("zh", {}).text == shown


def test_the_dearest_template_that_is_allowed_takes_milliseconds() -> None:
    """Nothing repeats, so time and size are bounded by the 20,000 characters of a template and the 200 of a value."""
    piece = "{{ member.city|d(link)|upper }}"
    text = piece * (MAX_TEMPLATE_CHARACTERS // len(piece))
    parts = {"html": text}
    source = TemplateSource("email", "dear", "service", MAX_TEMPLATE_CHARACTERS, "", {"zh": parts, "en": parts})
    compiled = CompiledTemplate(source)
    values = {"member": member_values({"city": "<" * 100_000}, "x" * 100_000), "link": "l"}
    times = []
    for _ in range(5):
        started = time.thread_time()
        with pytest.raises(RenderError, match="more than its limit"):
            compiled.render("zh", values)
        times.append(time.thread_time() - started)
    assert sorted(times)[2] < 0.25  # 20 ms on a quiet machine


# ------------------------------------------------------------------------------------------------------ hostile values
HOSTILE: dict[str, str | None] = {  # a name -> what is shown; None: as if it were not known
    "{{7*7}}": "{{7*7}}",
    "{% for a in range(9) %}x": "{% for a in range(9) %}x",
    "Eve\r\nBcc: all@mail.test": "Eve Bcc: all@mail.test",
    "Eve\u2028Subject: x\u2029y": "Eve Subject: x y",
    "a\x01b\x1b[31m\x7f": "a b [31m",
    "\u202egnp.exe": "gnp.exe",
    "\u2066\u2069\u200f": None,
    "\u200b\u200d\ufeff\u2060": None,
    "\u3164" * 3: "\u3164" * 3,
    "x" * 10_000: "x" * (MAX_NAME_CHARACTERS - 1) + "…",
    "\u200d" * 10_000: None,
    "a" + "\u0301" * 10_000: "á\u0301\u0301",
    "👨‍👩‍👧‍👦 一家": "👨‍👩‍👧‍👦 一家",
    "❤️🏳️‍🌈": "❤️🏳️‍🌈",
    "<script>alert(1)</script>": "‹script›alert(1)‹/scrip…",
    '"><img src=x onerror=1>': '"›‹img src=x onerror=1›',
    "<a href='weixin://x'>点我": None,
    "'; DROP TABLE core.members": "'; DROP TABLE core.membe"[:23] + "…",
    "=cmd|' /C calc'!A0": "=cmd|' /C calc'!A0",
    "%s%n${jndi:ldap}": "%s%n${jndi:ldap}",
    "点击 evil.com 领奖": None,
    "买买提·艾合买提": "买买提·艾合买提",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_text_or_nothing(name: str) -> None:
    assert clean(name, is_name=True) == HOSTILE[name]


def test_every_text_of_a_member_is_cleaned_not_only_the_name() -> None:
    values = member_values({"city": "上海\r\n<a href=x>", "tier": "金卡", "points": 12, "order_count": None}, None)
    assert values == {"city": "上海 ‹a href=x›", "tier": "金卡", "points": 12, "order_count": None, "name": None}
    assert member_values(None, "x") is None


def test_hostile_names_harm_nobody_elses_message(sandbox: Any, db: psycopg.Connection[Row], set_clock: Any) -> None:
    """One run with hostile and ordinary names, on WeChat and by mail, through the real delivery."""
    set_clock(MORNING)
    sandbox.control("POST", "/clock", {"now": MORNING})
    green_night(db)
    people, openids = People(db), iter(sandbox_openids(sandbox))
    ordinary = []
    for number, name in enumerate(HOSTILE):
        people.add(openid=next(openids), name=name, wrote_at=_recently())
        people.add(email=f"hostile{number}@mail.test", name=name, language="en")
        ordinary.append(people.add(openid=next(openids), name="王小明", wrote_at=_recently()))
        ordinary.append(people.add(email=f"plain{number}@mail.test", name="Jane Plain", language="en"))
    run_id = start_run()
    deliver(run_id, "test", 60)
    rows = db.execute("SELECT member_id, state, last_error FROM push.messages WHERE run_id = %s", (run_id,)).fetchall()
    states = {row["member_id"]: row["state"] for row in rows}
    assert {states[member] for member in ordinary if member in states} == {"accepted"}
    assert sum(member in states for member in ordinary) > 0.7 * len(ordinary)  # the others are held out
    assert set(states.values()) == {"accepted"}  # nothing of a name can fail: it is cleaned, or as if unknown


def _recently() -> Any:
    from datetime import datetime, timedelta

    return datetime.fromisoformat(MORNING) - timedelta(hours=2)


def test_a_header_cannot_be_made_from_a_subject() -> None:
    from email.message import EmailMessage

    source = TemplateSource("email", "probe", "service", 600, "", {
        "zh": {"subject": "{{ member.name }}\r\nBcc: x@y.test", "txt": "x", "html": "x"}, "en": {"subject": "x"},
    })  # fmt: skip
    content = CompiledTemplate(source).render("zh", {"member": {"name": "Eve\r\nCc: z@y.test"}})
    message = EmailMessage(policy=SMTP_POLICY)
    message["Subject"] = content.subject
    assert message.keys() == ["Subject"]
    assert "\n" not in content.subject
