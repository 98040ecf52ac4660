"""Message templates: sandboxed Jinja2 whose cost is bounded by what it may contain.

A template is data that many people may write, and a member's name is data that a stranger wrote. So: only the
variables of VARIABLES, only the syntax of ALLOWED_NODES (no loops, no calls, no arithmetic: output is at most the text
of the template plus the values), strict undefined, autoescape in HTML, values cleaned before they reach a channel.
A template that fails for one member fails that message only.
"""

import base64
import hashlib
import hmac
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, unquote

import yaml
from jinja2 import StrictUndefined, TemplateError, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import Field

from nightmarket.campaigns.config import LANGUAGES, Channel, Name, Purpose, Texts
from nightmarket.campaigns.sms_length import PART_UNITS, SmsFrame, billed_units, segments
from nightmarket.channels.base import Content
from nightmarket.privacy import Mac
from nightmarket.settings import ConfigError, StrictModel, get_settings, load_yaml, where

# Everything a template may say. `member` is None in a mass message (one text for all), `coupon` is None for a member
# who gets none, `order` and `reward` exist in messages about reviews only: test them with {% if %}.
VARIABLES: dict[str, str] = {
    "member.name": "how the person is called; None when we do not know it",
    "member.tier": "name of the member's tier in the message's language; None when the member has none",
    "member.points": "points balance on the campaign's as-of date; 0 when there are none",
    "member.last_order_date": "day of the last paid order, YYYY-MM-DD; None when there was none",
    "member.order_count": "paid orders so far",
    "member.favourite_category": "name of the category bought most of lately, in the message's language; None when unknown",
    "member.city": "city of the last order; None when unknown",
    "coupon.name": "name of the coupon stock",
    "coupon.amount": "face value in yuan, e.g. 30",
    "coupon.minimum": "smallest order in yuan it can be used on, e.g. 100",
    "coupon.valid_to": "last day it can be used, YYYY-MM-DD",
    "coupon.code": "the code to show or type in, where the stock's coupons are codes; None elsewhere",
    "order.title": "title of the order's first article",
    "order.date": "day the order was signed for, YYYY-MM-DD",
    "reward.points": "points given for a review; in thanks for a review only",
    "shop.name": "who is speaking, from channels.yaml",
    "shop.contact": "how to reach us, from channels.yaml",
    "link": "signed link that counts the click of this message",
    "unsubscribe_link": "signed link that ends messages like this one",
}
MEMBER_FACTS = frozenset(name for name in VARIABLES if name.startswith("member.")) - {"member.name", "member.tier"}
OPTIONAL = ("member", "coupon", "order", "reward")
ALLOWED_NODES = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.Name, nodes.Getattr, nodes.Const, nodes.If, nodes.CondExpr,
    nodes.And, nodes.Or, nodes.Not, nodes.Test, nodes.Filter, nodes.Compare, nodes.Operand,
)  # fmt: skip
ALLOWED_FILTERS = frozenset({"default", "d", "upper", "lower", "trim"})
ALLOWED_TESTS = frozenset({"defined", "none"})
MAX_TEMPLATE_CHARACTERS = 20_000
MAX_DEPTH = 12  # of the syntax tree: eight conditions in one another
MAX_MARKS = 2  # accents on one letter
MAX_VALUE_CHARACTERS = 200
MAX_RAW_CHARACTERS = 2_000  # of a value before it is cleaned; nobody is called longer
MAX_NAME_CHARACTERS = 24
MAX_THING_CHARACTERS = 20  # WeChat refuses a longer value of a thing field (47003)
MAX_SMS_VALUE_CHARACTERS = 35  # vendors refuse longer ones (isv.PARAM_LENGTH_LIMIT)
PARTS = {
    "wechat": ("txt",),
    "email": ("subject", "txt", "html"),
    "wechat_template": ("fields",),
    "wechat_subscribe": ("fields",),
    "push": ("subject", "txt"),  # the subject is the title of the notification
    "sms": ("txt", "fields"),
}
WITH_TEMPLATE_ID = ("wechat_template", "wechat_subscribe")  # folders whose texts stand at WeChat
PARAMETER = re.compile(r"\$\{(\w+)\}")  # of an approved SMS text
BIDI = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")  # controls that turn neighbouring text around
# Letters and digits of ASCII and Chinese characters, single spaces between them, at least one.
PLAIN = re.compile(r"[0-9A-Za-z\u4e00-\u9fff]+(?: [0-9A-Za-z\u4e00-\u9fff]+)*")
LOOKS_LIKE_LINK = re.compile(r"://|www\.|\.(com|cn|net|top|xyz|cc)\b", re.IGNORECASE)


class TemplateMistake(ConfigError):
    """What a template must not contain, and on which line of its file."""

    def __init__(self, line: int, sentence: str) -> None:
        super().__init__(sentence)
        self.line = line


class RenderError(Exception):
    """This message cannot be rendered. The text names the template and the variable, never a value."""


class TemplateMeta(StrictModel):
    """include/templates/<folder>/<name>/meta.yaml."""

    template: Name
    channel: Name  # the folder: channels that share it share the text
    purpose: Purpose
    variables: tuple[str, ...]
    max_characters: Annotated[int, Field(gt=0, le=MAX_TEMPLATE_CHARACTERS)]
    template_id: str | None = None  # WeChat's id of the template, for WITH_TEMPLATE_ID only
    template_ids: dict[Name, Texts] = Field(
        default_factory=dict
    )  # SMS: channel -> the vendor's ids of the approved texts
    parameters: tuple[Name, ...] = ()  # SMS: the fields; their order is their number where a vendor counts them


@dataclass(frozen=True)
class TemplateSource:
    """A template as text, ready to be frozen into a run: parts["zh"]["txt"], parts["zh"]["fields.thing1"]."""

    folder: str
    name: str
    purpose: str
    max_characters: int
    template_id: str
    parts: dict[str, dict[str, str]]
    sample: dict[str, Any] = field(default_factory=dict)
    template_ids: dict[str, dict[str, str]] = field(default_factory=dict)
    parameters: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {
            "purpose": self.purpose,
            "max_characters": self.max_characters,
            "template_id": self.template_id,
            "parts": self.parts,
            "sample": self.sample,
            "template_ids": self.template_ids,
            "parameters": list(self.parameters),
        }

    @classmethod
    def from_json(cls, folder: str, name: str, data: Mapping[str, Any]) -> "TemplateSource":
        return cls(
            folder, name, data["purpose"], data["max_characters"], data["template_id"], data["parts"], data["sample"],
            data.get("template_ids", {}), tuple(data.get("parameters", ())),
        )  # fmt: skip

    def used_variables(self, language: str) -> set[str]:
        """Dotted names the parts of one language use."""
        used: set[str] = set()
        for text in self.parts[language].values():
            used |= _used(_parse(text))
        return used


def load_template(folder: str, name: str) -> TemplateSource:
    """Read include/templates/<folder>/<name>. Raises ConfigError naming the file."""
    path = get_settings().template_dir / folder / name
    meta = load_yaml(path / "meta.yaml", TemplateMeta)
    if (meta.channel, meta.template) != (folder, name):
        raise ConfigError(
            f"{where(path / 'meta.yaml')}: the folder is {folder}/{name}, the file says {meta.channel}/{meta.template}."
        )
    parts: dict[str, dict[str, str]] = {}
    for language in LANGUAGES:
        parts[language] = {}
        for part in PARTS.get(folder, ("txt",)):
            if part == "fields" and folder == "sms" and not meta.parameters:
                continue  # a text without parameters is what vendors like best
            if part == "fields":
                fields = _read_yaml(path / f"{language}.fields.yaml")
                parts[language].update({f"fields.{key}": str(value) for key, value in fields.items()})
            else:
                suffix = "subject.j2" if part == "subject" else f"{part}.j2"
                parts[language][part] = _read(path / f"{language}.{suffix}").rstrip("\n")
    try:
        sample = json.loads(_read(path / "sample.json"))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{_shown(path / 'sample.json')}:{error.lineno}: not valid JSON: {error.msg}.") from None
    ids = {channel: texts.model_dump() for channel, texts in meta.template_ids.items()}
    return TemplateSource(
        folder, name, meta.purpose, meta.max_characters, meta.template_id or "", parts, sample, ids, meta.parameters
    )


def template_problems(folder: str, name: str, channel_limit: int) -> Iterator[str]:
    """Mistakes of one template folder: syntax, unknown variables, missing languages, samples that do not render."""
    path = get_settings().template_dir / folder / name
    try:
        source = load_template(folder, name)
        declared = set(load_yaml(path / "meta.yaml", TemplateMeta).variables)
    except ConfigError as error:
        yield str(error)
        return
    for variable in sorted(declared - set(VARIABLES)):
        yield f"{where(path / 'meta.yaml', 'variables')}: {variable!r} is not in the dictionary; it has {', '.join(VARIABLES)}."
    if source.max_characters > channel_limit:
        yield f"{where(path / 'meta.yaml', 'max_characters')}: {source.max_characters} is more than the channel takes ({channel_limit})."
    if (folder in WITH_TEMPLATE_ID) != bool(source.template_id):
        yield f"{where(path / 'meta.yaml', 'template_id')}: {' and '.join(WITH_TEMPLATE_ID)} need WeChat's template id, and nothing else has one."
    for language in LANGUAGES:
        for part, text in source.parts[language].items():
            file = _file_of(path, language, part)
            try:
                tree = _parse(text)
            except TemplateMistake as mistake:
                yield f"{file}:{mistake.line}: {mistake}"
                continue
            for line, sentence in _forbidden(tree):
                yield f"{file}:{line}: {sentence}"
            for variable in sorted(_used(tree) - declared - set(OPTIONAL)):
                yield f"{file}: {variable!r} is used but not declared in meta.yaml."
    if folder in WITH_TEMPLATE_ID and set(source.parts["zh"]) != set(source.parts["en"]):
        yield f"{_shown(path)}: zh and en have different fields."
    if folder == "sms":
        yield from _sms_problems(source, path)
    yield from _samples_render(source, path)


def _sms_problems(source: TemplateSource, path: Path) -> Iterator[str]:
    """Where our copy cannot be the approved text: other parameters than it says, conditions, a second signature, links."""
    for language in LANGUAGES:
        parts = source.parts[language]
        text, file = parts["txt"], _file_of(path, language, "txt")
        if any("{" + mark in text for mark in "{%#"):
            yield f"{file}: an approved SMS text is fixed; write its parameters as ${{name}} and their values in {language}.fields.yaml."
        if "【" in text or "】" in text:
            yield f"{file}: leave out the signature 【…】; the vendor adds it, and it would be there twice."
        fields = {name.removeprefix("fields.") for name in parts if name.startswith("fields.")}
        if not set(PARAMETER.findall(text)) == fields == set(source.parameters):
            yield (
                f"{file}: the text has the parameters {', '.join(PARAMETER.findall(text)) or '(none)'}, {language}.fields.yaml has"
                f" {', '.join(sorted(fields)) or '(none)'} and meta.yaml {', '.join(source.parameters) or '(none)'}; they must be the same."
            )
        for name in sorted({"link", "unsubscribe_link"} & source.used_variables(language)):
            yield f"{_shown(path / f'{language}.fields.yaml')}: {name} may not be a parameter: links in SMS are part of the approved text."


def channel_problems(folder: str, name: str, channels: Mapping[str, Channel]) -> Iterator[str]:
    """Mistakes of an SMS template on the channels that send it: no id of the vendor's, a sample that is too long there."""
    frames = [frame for channel, block in channels.items() if (frame := SmsFrame.of(channel, block))]
    if not frames:
        return
    path = get_settings().template_dir / folder / name
    try:
        source = load_template(folder, name)
        for frame in frames:
            if frame.channel not in source.template_ids:
                file = where(path / "meta.yaml", "template_ids")
                yield f"{file}: there is no id for {frame.channel}; add the ids of the texts that it has approved."
            for language in LANGUAGES:
                CompiledTemplate(source, frame).render(language, source.sample)
    except ConfigError:
        return  # reported by template_problems
    except RenderError as error:
        yield f"{_shown(path)}: {error}"


def _samples_render(source: TemplateSource, path: Path) -> Iterator[str]:
    """Both languages, with everything known and with everything optional missing."""
    try:
        compiled = CompiledTemplate(source)
    except ConfigError:
        return  # reported with its line above
    for language in LANGUAGES:
        for missing in ((), OPTIONAL) if "order" not in source.sample else ((), ("member", "coupon", "reward")):
            variables = {**source.sample, **dict.fromkeys(missing)}
            try:
                compiled.render(language, variables)
            except RenderError as error:
                without = f" without {', '.join(missing)}" if missing else ""
                yield f"{_shown(path)}: {language}{without}: {error}"
                break


class CompiledTemplate:
    """A template compiled once and rendered for many members; `frame` is what an SMS channel puts around it."""

    def __init__(self, source: TemplateSource, frame: SmsFrame | None = None) -> None:
        self.source, self.frame = source, frame
        self._parts = {}
        for language, parts in source.parts.items():
            for part, text in parts.items():
                try:
                    for line, sentence in _forbidden(_parse(text)):
                        raise TemplateMistake(line, sentence)
                except TemplateMistake as mistake:
                    place = f"template {source.folder}/{source.name} ({language} {part}), line {mistake.line}"
                    raise ConfigError(f"{place}: {mistake}") from None
                self._parts[language, part] = (_HTML if part == "html" else _TEXT).from_string(text)

    def render(self, language: str, variables: Mapping[str, Any]) -> Content:
        """The message in one language. Raises RenderError."""
        values = {**dict.fromkeys(OPTIONAL), **variables}
        rendered: dict[str, str] = {}
        for part in self.source.parts[language]:
            try:
                rendered[part] = self._parts[language, part].render(values)
            except (TemplateError, TypeError, ValueError) as error:
                raise RenderError(
                    f"template {self.source.folder}/{self.source.name} ({language} {part}): {error}"
                ) from None
            if len(rendered[part]) > self.source.max_characters:
                raise RenderError(
                    f"template {self.source.folder}/{self.source.name} ({language} {part}): {len(rendered[part])} characters,"
                    f" more than its limit of {self.source.max_characters}"
                )
        if self.source.folder == "sms":
            return self._sms(language, rendered)
        return Content(
            text=_tidy(rendered.get("txt", "")),
            html=rendered.get("html", ""),
            subject=" ".join(rendered.get("subject", "").split()),
            fields={
                name: _shorten(value, MAX_THING_CHARACTERS) if name.startswith("thing") else value
                for key, value in rendered.items()
                if (name := key.removeprefix("fields.")) != key
            },
            template_id=self.source.template_id,
        )

    def most_parts(self, language: str, variables: Mapping[str, Any]) -> int:
        """For how many messages one message is billed at most: SMS with the longest name we keep, everything else for one."""
        if self.frame is None:
            return 1
        member = variables.get("member")
        longest = {**variables, "member": member and {**member, "name": "王" * MAX_NAME_CHARACTERS}}
        try:
            return segments(self.render(language, longest).text)
        except RenderError:  # too long to be sent
            return -(-self.frame.max_units // PART_UNITS)

    def _sms(self, language: str, rendered: Mapping[str, str]) -> Content:
        """The approved text with its values, as the phone shows it. Raises RenderError, also when it is too long to be sent."""
        name = f"template sms/{self.source.name} ({language})"
        values = {
            parameter: _shorten(rendered[f"fields.{parameter}"].strip(), MAX_SMS_VALUE_CHARACTERS)
            for parameter in self.source.parameters
        }
        for parameter, value in values.items():
            if not value:
                raise RenderError(f"{name}: {parameter} is empty, which vendors refuse")
        text = PARAMETER.sub(lambda found: values[found[1]], rendered["txt"])
        if self.frame is None:
            return Content(text=text, fields=values)
        text = self.frame.around(text, self.source.purpose)
        if billed_units(text) > self.frame.max_units:
            raise RenderError(
                f"{name}: {billed_units(text)} characters with signature and way to refuse ({segments(text)} parts), more than"
                f" the {self.frame.max_units} of {self.frame.channel}"
            )
        ids = self.source.template_ids.get(self.frame.channel, {})
        return Content(text=text, fields=values, template_id=ids.get(language, ""), sign=self.frame.sign)


def clean(value: str | None, *, is_name: bool = False) -> str | None:
    """A value a stranger wrote, made harmless: one line, no control characters, no angle brackets, no overlong text.

    WeChat shows <a> in text messages as a link, and mail headers end at a line break. A name that is a link is no name.
    """
    if value is None:
        return None
    text = str(value)[:MAX_RAW_CHARACTERS]
    if PLAIN.fullmatch(text):  # nothing below would change it; most names are
        return _shorten(text, MAX_NAME_CHARACTERS if is_name else MAX_VALUE_CHARACTERS)
    text = unicodedata.normalize("NFC", text)
    text = "".join(" " if unicodedata.category(character) in ("Cc", "Zl", "Zp") else character for character in text)
    text = _few_marks(BIDI.sub("", text).replace("<", "‹").replace(">", "›"))
    text = " ".join(text.split())
    if is_name and (LOOKS_LIKE_LINK.search(text) or not any(unicodedata.category(c)[0] in "LNPS" for c in text)):
        return None
    return _shorten(text, MAX_NAME_CHARACTERS if is_name else MAX_VALUE_CHARACTERS)


def member_values(member: Mapping[str, Any] | None, clear_name: str | None) -> dict[str, Any] | None:
    """What a template may say of a member: every text of it cleaned, for a city was written by a stranger too."""
    if not member:
        return None
    values = {
        name: clean(value) if isinstance(value, str) else value for name, value in member.items() if name != "name"
    }
    values["name"] = clean(clear_name, is_name=True)
    return values


def _few_marks(text: str) -> str:
    """At most MAX_MARKS accents on a letter: more of them cover the lines above and below."""
    kept, marks = [], 0
    for character in text:
        marks = marks + 1 if unicodedata.category(character) in ("Mn", "Me") else 0
        if marks <= MAX_MARKS:
            kept.append(character)
    return "".join(kept)


def _tidy(text: str) -> str:
    """Lines that held only a condition leave no gap."""
    return re.sub(r"\n[ \t]*(\n[ \t]*)+\n", "\n\n", text).strip()


def _shorten(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def signed_link(base_url: str, kind: str, key: str) -> str:
    """`kind` r counts a click, u unsubscribes, s is a survey. The signature stops others from making links that look like ours."""
    return f"{base_url}/{kind}/{_quoted(key)}?s={_signature(kind, key)}"


@lru_cache(maxsize=8)  # a message has two links of one key
def _quoted(key: str) -> str:
    return quote(key, safe="")


def link_key(path: str, signature: str) -> str | None:
    """The message key of the path of a link, e.g. /r/a%2Fb, or None when the signature is not ours."""
    _, kind, encoded = path.split("/", 2)
    key = unquote(encoded)
    return key if hmac.compare_digest(_signature(kind, key).encode(), signature.encode("utf-8", "replace")) else None


def _signature(kind: str, key: str) -> str:
    token_key = get_settings().token_key
    if token_key is None:
        raise ConfigError("NIGHTMARKET_TOKEN_KEY is not set: without it links cannot be signed.")
    mac = _link_mac(token_key.get_secret_value()).digest(f"{kind}/{key}".encode())
    return base64.urlsafe_b64encode(mac[:15]).decode()


@lru_cache(maxsize=1)
def _link_mac(token_key: str) -> Mac:
    return Mac(hmac.digest(token_key.encode(), b"nightmarket links v1", hashlib.sha256))


class _Environment(ImmutableSandboxedEnvironment):
    def __init__(self, *, autoescape: bool) -> None:
        super().__init__(undefined=StrictUndefined, autoescape=autoescape, lstrip_blocks=True, cache_size=0)
        self.globals.clear()


_TEXT = _Environment(autoescape=False)
_HTML = _Environment(autoescape=True)


def _parse(text: str) -> nodes.Template:
    if len(text) > MAX_TEMPLATE_CHARACTERS:
        raise TemplateMistake(1, f"longer than {MAX_TEMPLATE_CHARACTERS} characters")
    try:
        tree = _TEXT.parse(text)
    except TemplateError as error:
        raise TemplateMistake(getattr(error, "lineno", 1), str(error.message)) from None
    except RecursionError:
        raise TemplateMistake(1, "nested too deeply") from None
    layer: list[nodes.Node] = [tree]
    for _ in range(MAX_DEPTH):
        layer = [child for node in layer for child in node.iter_child_nodes()]
    if layer:
        raise TemplateMistake(layer[0].lineno or 1, "nested too deeply")
    return tree


def _forbidden(tree: nodes.Template) -> Iterator[tuple[int, str]]:
    """(line, sentence) of everything a template must not contain."""
    for node in tree.find_all(nodes.Node):
        line = node.lineno or 1
        if not isinstance(node, ALLOWED_NODES):
            yield line, f"{type(node).__name__.lower()} is not allowed in a message template"
        elif isinstance(node, nodes.Filter) and node.name not in ALLOWED_FILTERS:
            yield line, f"filter {node.name!r} is not allowed; allowed are {', '.join(sorted(ALLOWED_FILTERS))}"
        elif isinstance(node, nodes.Test) and node.name not in ALLOWED_TESTS:
            yield line, f"test {node.name!r} is not allowed; allowed are {', '.join(sorted(ALLOWED_TESTS))}"
        elif isinstance(node, nodes.Name) and node.name not in {name.split(".")[0] for name in VARIABLES}:
            yield line, f"{node.name!r} is not in the dictionary; it has {', '.join(VARIABLES)}"
        elif isinstance(node, nodes.Getattr) and not (
            isinstance(node.node, nodes.Name) and f"{node.node.name}.{node.attr}" in VARIABLES
        ):
            yield line, f"{node.attr!r} is not in the dictionary; it has {', '.join(VARIABLES)}"


def _used(tree: nodes.Template) -> set[str]:
    """Dotted variables a template reads; a bare `coupon` in a test counts as `coupon`."""
    dotted = {
        f"{node.node.name}.{node.attr}" for node in tree.find_all(nodes.Getattr) if isinstance(node.node, nodes.Name)
    }
    return dotted | {
        node.name for node in tree.find_all(nodes.Name) if node.name in ("link", "unsubscribe_link", *OPTIONAL)
    }


def _file_of(path: Path, language: str, part: str) -> str:
    if part.startswith("fields."):
        return where(path / f"{language}.fields.yaml", part.removeprefix("fields."))
    return _shown(path / f"{language}.{'subject.j2' if part == 'subject' else part + '.j2'}")


def _shown(path: Path) -> str:
    home = get_settings().template_dir.parents[1]
    return str(path.relative_to(home) if path.is_relative_to(home) else path)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{_shown(path)}: this file does not exist.") from None


def _read_yaml(path: Path) -> dict[str, Any]:
    data = yaml.safe_load(_read(path))
    if not isinstance(data, dict) or not data:
        raise ConfigError(f"{_shown(path)}: must be a mapping of the template's field names to text.")
    return data
