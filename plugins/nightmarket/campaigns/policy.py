"""What may go where: the platforms' and the law's rules of channels.yaml applied to a campaign before it can run.

Every finding names the rule and the place in the file that breaks it. The numeric rules (window, messages per month)
are applied to each person when the audience is built and again when the message is claimed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nightmarket.campaigns.config import (
    LANGUAGES,
    Campaign,
    ChannelsFile,
    ReviewJourney,
    Rule,
    campaign_path,
    journey_path,
)
from nightmarket.campaigns.rendering import TemplateSource, load_template
from nightmarket.settings import ConfigError, where


@dataclass(frozen=True)
class Finding:
    """One broken rule: its name, where it is broken, and what it demands."""

    rule: str
    place: str
    detail: str

    @property
    def sentence(self) -> str:
        return f"{self.place}: {self.detail} (rule {self.rule})"


def campaign_findings(campaign: Campaign, channels: ChannelsFile) -> Iterator[Finding]:
    """Rules that a campaign breaks on any of its channels."""
    path = campaign_path(campaign.campaign)
    for index, name in enumerate(campaign.channels):
        channel = channels.channels[name]
        place = where(path, "channels", index)
        for rule in channel.rules:
            if rule.purposes is not None and campaign.purpose not in rule.purposes:
                yield Finding(rule.rule, place, f"a {campaign.purpose} campaign may not use {name}: {rule.says}")
            if rule.forbids_coupon and campaign.coupon is not None:
                yield Finding(rule.rule, where(path, "coupon"), f"{name} may not carry a coupon: {rule.says}")
        names = [(("variants", i, "template"), variant.template) for i, variant in enumerate(campaign.variants)]
        yield from _template_findings(path, names, channel.templates, channel.rules, campaign.purpose)


def journey_findings(journey: ReviewJourney, channels: ChannelsFile) -> Iterator[Finding]:
    """Rules that a review journey breaks: those of its channels, and those for review requests everywhere."""
    path = journey_path(journey.journey)
    names: list[tuple[tuple[Any, ...], str]] = [
        (("templates", "ask"), journey.templates.ask),
        (("templates", "remind"), journey.templates.remind),
    ]
    for index, name in enumerate(journey.channels):
        channel = channels.channels[name]
        for rule in channel.rules:
            if rule.purposes is not None and journey.purpose not in rule.purposes:
                detail = f"a {journey.purpose} message may not use {name}: {rule.says}"
                yield Finding(rule.rule, where(path, "channels", index), detail)
        rules = (*channel.rules, *channels.review_rules)
        yield from _template_findings(path, names, channel.templates, rules, journey.purpose)


def _template_findings(
    path: Path, names: Sequence[tuple[tuple[Any, ...], str]], folder: str, rules: Sequence[Rule], purpose: str
) -> Iterator[Finding]:
    for place, name in names:
        try:
            source = load_template(folder, name)
        except ConfigError:
            continue  # a template that cannot be read is reported by the configuration check
        if source.purpose != purpose:
            detail = f"template {folder}/{name} is for {source.purpose} messages, this is {purpose}"
            yield Finding("template.purpose", where(path, *place), detail)
        for rule in rules:
            for detail in _broken(rule, source, purpose):
                yield Finding(rule.rule, where(path, *place), f"template {folder}/{name}: {detail}: {rule.says}")


def _broken(rule: Rule, source: TemplateSource, purpose: str) -> Iterator[str]:
    """In words, what a template does against one rule."""
    for language in LANGUAGES:
        text = "\n".join(source.parts[language].values()).lower()
        used = source.used_variables(language)
        for word in rule.forbidden_words:
            if word.lower() in text:
                yield f"the {language} text says {word!r}"
        if rule.forbids_coupon and any(name.startswith("coupon") for name in used):
            yield f"the {language} text mentions a coupon"
        if purpose == "marketing" and rule.needs_unsubscribe_link and "unsubscribe_link" not in used:
            yield f"the {language} text has no unsubscribe_link"
        if rule.needs_sender and "shop.name" not in used:
            yield f"the {language} text does not name shop.name"
        if purpose == "marketing" and rule.subject_label is not None:
            label = getattr(rule.subject_label, language)
            if not source.parts[language].get("subject", "").startswith(label):
                yield f"the {language} subject does not begin with {label!r}"
