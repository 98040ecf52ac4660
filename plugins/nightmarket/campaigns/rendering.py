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
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, unquote

import yaml
from jinja2 import StrictUndefined, TemplateError, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import Field

from nightmarket.campaigns.config import LANGUAGES, Name, Purpose
from nightmarket.channels.base import Content
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
    "order.title": "title of the order's first article",
    "order.date": "day the order was signed for, YYYY-MM-DD",
    "shop.name": "who is speaking, from channels.yaml",
    "shop.contact": "how to reach us, from channels.yaml",
    "reward.points": "points given for a review; in thanks for a review only",
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
MAX_VALUE_CHARACTERS = 200
MAX_NAME_CHARACTERS = 24
MAX_THING_CHARACTERS = 20  # WeChat refuses a longer value of a thing field (47003)
PARTS = {"wechat": ("txt",), "email": ("subject", "txt", "html"), "wechat_template": ("fields",)}
BIDI = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")  # controls that turn neighbouring text around
LOOKS_LIKE_LINK = re.compile(r"://|www\.|\.(com|cn|net|top|xyz|cc)\b", re.IGNORECASE)


class RenderError(Exception):
    """This message cannot be rendered. The text names the template and the variable, never a value."""


class TemplateMeta(StrictModel):
    """include/templates/<folder>/<name>/meta.yaml."""

    template: Name
    channel: Name  # the folder: channels that share it share the text
    purpose: Purpose
    variables: tuple[str, ...]
    max_characters: Annotated[int, Field(gt=0, le=MAX_TEMPLATE_CHARACTERS)]
    template_id: str | None = None  # WeChat's id of the template, for wechat_template only


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

    def as_json(self) -> dict[str, Any]:
        return {
            "purpose": self.purpose,
            "max_characters": self.max_characters,
            "template_id": self.template_id,
            "parts": self.parts,
            "sample": self.sample,
        }

    @classmethod
    def from_json(cls, folder: str, name: str, data: Mapping[str, Any]) -> "TemplateSource":
        return cls(
            folder, name, data["purpose"], data["max_characters"], data["template_id"], data["parts"], data["sample"]
        )

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
    return TemplateSource(folder, name, meta.purpose, meta.max_characters, meta.template_id or "", parts, sample)


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
    if (folder == "wechat_template") != bool(source.template_id):
        yield f"{where(path / 'meta.yaml', 'template_id')}: wechat_template needs WeChat's template id, and nothing else has one."
    for language in LANGUAGES:
        for part, text in source.parts[language].items():
            file = _file_of(path, language, part)
            try:
                tree = _parse(text)
            except ConfigError as error:
                yield f"{file}: {error}"
                continue
            for line, sentence in _forbidden(tree):
                yield f"{file}:{line}: {sentence}"
            for variable in sorted(_used(tree) - declared - set(OPTIONAL)):
                yield f"{file}: {variable!r} is used but not declared in meta.yaml."
    if folder == "wechat_template" and set(source.parts["zh"]) != set(source.parts["en"]):
        yield f"{_shown(path)}: zh and en have different fields."
    yield from _samples_render(source, path)


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
    """A template compiled once and rendered for many members."""

    def __init__(self, source: TemplateSource) -> None:
        self.source = source
        self._parts = {}
        for language, parts in source.parts.items():
            for part, text in parts.items():
                tree = _parse(text)
                for line, sentence in _forbidden(tree):
                    raise ConfigError(f"template {source.folder}/{source.name} ({language}), line {line}: {sentence}")
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


def clean(value: str | None, *, is_name: bool = False) -> str | None:
    """A value a stranger wrote, made harmless: one line, no control characters, no angle brackets, no overlong text.

    WeChat shows <a> in text messages as a link, and mail headers end at a line break. A name that is a link is no name.
    """
    if value is None:
        return None
    text = unicodedata.normalize("NFC", str(value))
    text = "".join(" " if unicodedata.category(character) in ("Cc", "Zl", "Zp") else character for character in text)
    text = BIDI.sub("", text).replace("<", "‹").replace(">", "›")
    text = " ".join(text.split())
    if is_name and (LOOKS_LIKE_LINK.search(text) or not text):
        return None
    return _shorten(text, MAX_NAME_CHARACTERS if is_name else MAX_VALUE_CHARACTERS)


def _tidy(text: str) -> str:
    """Lines that held only a condition leave no gap."""
    return re.sub(r"\n[ \t]*(\n[ \t]*)+\n", "\n\n", text).strip()


def _shorten(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def signed_link(base_url: str, kind: str, key: str) -> str:
    """`kind` r counts a click, u unsubscribes, s is a survey. The signature stops others from making links that look like ours."""
    return f"{base_url}/{kind}/{quote(key, safe='')}?s={_signature(kind, key)}"


def link_key(path: str, signature: str) -> str | None:
    """The message key of the path of a link, e.g. /r/a%2Fb, or None when the signature is not ours."""
    _, kind, encoded = path.split("/", 2)
    key = unquote(encoded)
    return key if hmac.compare_digest(_signature(kind, key).encode(), signature.encode("utf-8", "replace")) else None


def _signature(kind: str, key: str) -> str:
    token_key = get_settings().token_key
    if token_key is None:
        raise ConfigError("NIGHTMARKET_TOKEN_KEY is not set: without it links cannot be signed.")
    signing_key = hmac.digest(token_key.get_secret_value().encode(), b"nightmarket links v1", hashlib.sha256)
    mac = hmac.digest(signing_key, f"{kind}/{key}".encode(), hashlib.sha256)
    return base64.urlsafe_b64encode(mac[:15]).decode()


class _Environment(ImmutableSandboxedEnvironment):
    def __init__(self, *, autoescape: bool) -> None:
        super().__init__(undefined=StrictUndefined, autoescape=autoescape, lstrip_blocks=True, cache_size=0)
        self.globals.clear()


_TEXT = _Environment(autoescape=False)
_HTML = _Environment(autoescape=True)


def _parse(text: str) -> nodes.Template:
    if len(text) > MAX_TEMPLATE_CHARACTERS:
        raise ConfigError(f"longer than {MAX_TEMPLATE_CHARACTERS} characters")
    try:
        return _TEXT.parse(text)
    except TemplateError as error:
        raise ConfigError(f"line {getattr(error, 'lineno', 1)}: {error.message}") from None
    except RecursionError:
        raise ConfigError("nested too deeply") from None


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
        raise ConfigError(f"{_shown(path)}: must be a mapping of WeChat's field names to text.")
    return data
