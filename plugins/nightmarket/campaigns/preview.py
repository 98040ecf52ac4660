"""A message as one member would see it, before anything is sent; and how long every text is where it goes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import psycopg

from nightmarket import dates
from nightmarket.campaigns.config import (
    LANGUAGES,
    Campaign,
    ChannelsFile,
    ReviewJourney,
    list_campaigns,
    list_journeys,
    load_campaign,
    load_channels,
    load_journey,
)
from nightmarket.campaigns.rendering import (
    CompiledTemplate,
    RenderError,
    clean,
    load_template,
    member_values,
    signed_link,
)
from nightmarket.campaigns.sms_length import SmsFrame
from nightmarket.channels.base import Content
from nightmarket.channels.registry import CHANNELS
from nightmarket.privacy import Keyring, mask, open_secrets
from nightmarket.settings import ConfigError, get_settings
from nightmarket.warehouse import Row, connect, connect_vault, run_sql


@dataclass(frozen=True)
class Preview:
    """One message on one channel. `problem` says why it cannot be rendered; then there is no text."""

    channel: str
    variant: str  # of a campaign, or the step of a journey
    template: str
    language: str
    text: str  # subject, text and fields as they will stand there; the HTML of a mail says the same
    longest: int  # characters of the longest part
    limit: int  # that part may have
    parts: int  # for how many messages it is billed, with the longest name we keep
    problem: str = ""

    @property
    def heading(self) -> str:
        length = f"{self.longest} of {self.limit} characters"
        billed = f", billed as up to {self.parts} SMS" if CHANNELS[self.channel].family == "sms" else ""
        return (
            f"{self.channel} · {self.variant} · {self.template} · {self.language} · {self.problem or length + billed}"
        )


def preview_member(
    name: str, member_id: int, *, language: str | None = None, channel: str | None = None, as_of: date | None = None
) -> Iterator[Preview]:
    """Every message of a campaign or journey as `member_id` would see it, with the name masked and sample coupons and orders.

    Raises ValueError when there is no such campaign, channel or member, ConfigError when a file has a mistake.
    """
    settings, channels = _load(name), load_channels()
    if channel is not None and channel not in settings.channels:
        raise ValueError(f"{name} does not use the channel {channel!r}; it uses {', '.join(settings.channels)}.")
    if language is not None and language not in LANGUAGES:
        raise ValueError(f"language {language!r}: write one of {', '.join(LANGUAGES)}.")
    with connect(application_name="nightmarket-preview") as connection:
        chosen = language or _language(connection, member_id) or settings.default_language
        parameters = {"member_id": member_id, "language": chosen, "as_of": as_of or dates.today() - timedelta(days=1)}
        person = run_sql(connection, "push/sample.sql", parameters)[0]
    known = clear_name(person["name_token"], "王小明")
    links = {
        "link": signed_link(channels.link_base_url, "r", "preview"),
        "unsubscribe_link": signed_link(channels.link_base_url, "u", "preview"),
    }
    member = member_values({**person["facts"], "tier": person["tier"]}, known and mask("name", known))
    for variant, template in _templates(settings):
        for used in [channel] if channel else settings.channels:
            values = {**links, "member": member if CHANNELS[used].is_personal else None}
            yield _render(channels, used, variant, template, chosen, values)


def all_lengths() -> Iterator[Preview]:
    """Every text of every campaign and journey on every channel it uses, with the values of its sample.json."""
    channels = load_channels()
    for name in (*list_campaigns(), *list_journeys()):
        settings = _load(name)
        for variant, template in _templates(settings):
            for channel in settings.channels:
                for language in LANGUAGES:
                    yield _render(channels, channel, f"{name} {variant}", template, language, {})


def clear_name(token: str | None, placeholder: str) -> str | None:
    """The name behind a token where this process may open the vault, else the placeholder; masked by the caller."""
    if token is None:
        return None
    if get_settings().vault_dsn is None:
        return placeholder
    with connect_vault() as vault:
        return clean(open_secrets(vault, [token], Keyring.from_settings()).get(token), is_name=True)


def _load(name: str) -> Campaign | ReviewJourney:
    if name in list_journeys():
        return load_journey(name)
    try:
        return load_campaign(name)
    except ConfigError as error:
        raise ConfigError(f"{error} Journeys are {', '.join(list_journeys())}.") from None


def _templates(settings: Campaign | ReviewJourney) -> Sequence[tuple[str, str]]:
    if isinstance(settings, ReviewJourney):
        return list(settings.templates.model_dump().items())
    return [(variant.name, variant.template) for variant in settings.variants]


def _language(connection: psycopg.Connection[Row], member_id: int) -> str | None:
    if connection.execute("SELECT FROM core.members WHERE member_id = %s", (member_id,)).fetchone() is None:
        raise ValueError(f"there is no member {member_id}.")
    row = connection.execute(
        "SELECT p.language FROM core.member_identities AS mi JOIN core.profiles AS p ON p.identity_id = mi.identity_id"
        " WHERE mi.member_id = %s AND p.language IS NOT NULL ORDER BY p.observed_at DESC LIMIT 1",
        (member_id,),
    ).fetchone()
    return None if row is None else "zh" if row["language"].lower().startswith("zh") else "en"


def _render(
    channels: ChannelsFile, channel: str, variant: str, template: str, language: str, values: Mapping[str, Any]
) -> Preview:
    """The template with the values of its sample.json, and `values` in their place."""
    block = channels.channels[channel]
    source = load_template(block.templates, template)
    variables = {
        **source.sample,
        **values,
        "shop": {"name": getattr(channels.brand.name, language), "contact": getattr(channels.brand.contact, language)},
    }
    try:
        compiled = CompiledTemplate(source, SmsFrame.of(channel, block))
        content, parts = compiled.render(language, variables), compiled.most_parts(language, variables)
    except (RenderError, ConfigError) as error:
        return Preview(channel, variant, template, language, "", 0, source.max_characters, 1, str(error))
    longest = max(map(len, (content.text, content.html, content.subject, *content.fields.values())))
    return Preview(channel, variant, template, language, _text(content), longest, source.max_characters, parts)


def _text(content: Content) -> str:
    lines = [content.subject, content.text, "\n".join(f"{name}: {value}" for name, value in content.fields.items())]
    return "\n\n".join(filter(None, lines))
