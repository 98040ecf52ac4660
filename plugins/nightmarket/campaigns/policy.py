"""What may go where: the platforms' and the law's rules of channels.yaml applied to a campaign before it can run.

Every finding names the rule and the place in the file that breaks it. The numeric rules (window, messages per month)
are applied to each person when the audience is built and again when the message is claimed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from typing import Any

from nightmarket.campaigns.config import (
    LANGUAGES,
    Campaign,
    ChannelsFile,
    Promotion,
    ReviewJourney,
    Rule,
    SendWindow,
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
        yield from _hours_findings(path, channel.rules, campaign.purpose, campaign.send_window, f" on {name}")
        names = [(("variants", i, "template"), variant.template) for i, variant in enumerate(campaign.variants)]
        yield from _template_findings(path, names, channel.templates, channel.rules, campaign.purpose)
    yield from _hours_findings(path, channels.house_rules, campaign.purpose, campaign.send_window, "")
    yield from _price_findings(campaign, channels)


def mix_findings(campaigns: Sequence[Campaign], channels: ChannelsFile) -> Iterator[Finding]:
    """Rules about all campaigns together: not everything we say may be an offer."""
    offers = [campaign for campaign in campaigns if campaign.content == "offer"]
    for rule in channels.house_rules:
        mix = rule.content_mix
        if mix is None or len(campaigns) < mix.from_campaigns or len(offers) <= mix.offers_at_most * len(campaigns):
            continue
        place = where(campaign_path(offers[-1].campaign), "content")
        detail = (
            f"{len(offers)} of {len(campaigns)} campaigns are offers, more than {mix.offers_at_most:.0%}: {rule.says}"
        )
        yield Finding(rule.rule, place, detail)


def window_findings(channels: Sequence[str], purpose: str, window: SendWindow, file: ChannelsFile) -> list[str]:
    """In words, which rules about hours a send window breaks on these channels; for windows that stand in no file."""
    rules = [rule for name in channels for rule in file.channels[name].rules]
    return [
        f"{detail} (rule {rule.rule})"
        for rule in (*rules, *file.house_rules)
        for detail in _outside(rule, purpose, window)
    ]


def journey_findings(journey: ReviewJourney, channels: ChannelsFile) -> Iterator[Finding]:
    """Rules that a review journey breaks: those of its channels, and those for review requests everywhere."""
    path = journey_path(journey.journey)
    steps = [(("templates", step), template) for step, template in journey.templates.model_dump().items()]
    thanking = [(place, template) for place, template in steps if place[1] == "thanks"]
    asking = [step for step in steps if step not in thanking]
    for index, name in enumerate(journey.channels):
        channel = channels.channels[name]
        for rule in channel.rules:
            if rule.purposes is not None and journey.purpose not in rule.purposes:
                detail = f"a {journey.purpose} message may not use {name}: {rule.says}"
                yield Finding(rule.rule, where(path, "channels", index), detail)
        yield from _hours_findings(path, channel.rules, journey.purpose, journey.send_window, f" on {name}")
        for names, rules in ((asking, channels.review_rules), (thanking, channels.review_thanks_rules)):
            yield from _template_findings(path, names, channel.templates, (*channel.rules, *rules), journey.purpose)


def _hours_findings(
    path: Path, rules: Sequence[Rule], purpose: str, window: SendWindow, channel: str
) -> Iterator[Finding]:
    for rule in rules:
        for detail in _outside(rule, purpose, window):
            yield Finding(rule.rule, where(path, "send_window"), f"{detail}{channel}: {rule.says}")


def _outside(rule: Rule, purpose: str, window: SendWindow) -> Iterator[str]:
    """In words, when a send window does not lie within the hours of a rule. Equal ends mean the whole day."""
    allowed = next((hours for name, hours in rule.hours.items() if name == purpose), None)
    if allowed is None or allowed.opens == allowed.closes:
        return
    length = (_minutes(allowed.closes) - _minutes(allowed.opens)) % DAY_MINUTES
    opens = (_minutes(window.opens) - _minutes(allowed.opens)) % DAY_MINUTES
    closes = opens + ((_minutes(window.closes) - _minutes(window.opens)) % DAY_MINUTES or DAY_MINUTES)
    if closes > length:
        yield (
            f"{purpose} messages may go out from {allowed.opens:%H:%M} to {allowed.closes:%H:%M},"
            f" the window is {window.opens:%H:%M} to {window.closes:%H:%M}"
        )


DAY_MINUTES = 24 * 60


def _minutes(clock: time) -> int:
    return clock.hour * 60 + clock.minute


def _price_findings(campaign: Campaign, channels: ChannelsFile) -> Iterator[Finding]:
    """A coupon that leaves less of the price than the floor belongs into a big promotion, and all its days with it."""
    stock = channels.coupon_stocks.get(campaign.coupon.stock) if campaign.coupon else None
    if stock is None:
        return
    path = campaign_path(campaign.campaign)
    left = (stock.minimum_amount - stock.face_amount) / stock.minimum_amount if stock.minimum_amount else Decimal(0)
    promotion = next((p for p in channels.big_promotions if p.name == campaign.promotion), None)
    for rule in channels.house_rules:
        floor = rule.price_share_at_least
        if floor is None or left >= floor:
            continue
        if promotion is None:
            detail = (
                f"a coupon of {stock.face_amount} from {stock.minimum_amount} yuan leaves {left:.0%} of the price, less than"
                f" {floor:.0%}, and the campaign belongs to no big promotion: {rule.says}"
            )
            yield Finding(rule.rule, where(path, "coupon", "stock"), detail)
        else:
            yield from _date_findings(campaign, promotion, rule, path)


def _date_findings(campaign: Campaign, promotion: Promotion, rule: Rule, path: Path) -> Iterator[Finding]:
    """A price below the floor needs dates, and every one within its promotion."""
    days = campaign.schedule.dates if campaign.schedule else None
    if days is None:
        detail = f"below the floor a campaign runs on dates of {promotion.name} (schedule.dates) and by nothing else"
        yield Finding(rule.rule, where(path, "schedule"), f"{detail}: {rule.says}")
    for index, day in enumerate(days or ()):
        if not promotion.first <= day <= promotion.last:
            detail = f"{day} is not within {promotion.name} ({promotion.first} to {promotion.last})"
            yield Finding(rule.rule, where(path, "schedule", "dates", index), f"{detail}: {rule.says}")


def run_day_findings(campaign: Campaign, channels: ChannelsFile, day: date) -> list[str]:
    """As the discount floor says for a run that would send on `day`, also one that was started by hand."""
    promotion = next((p for p in channels.big_promotions if p.name == campaign.promotion), None)
    if promotion is None or promotion.first <= day <= promotion.last:
        return []
    below = _price_findings(campaign.model_copy(update={"promotion": None}), channels)
    return [
        f"{day} is not within {promotion.name} ({promotion.first} to {promotion.last}), and the coupon goes below the price floor"
        f" (rule {finding.rule})."
        for finding in below
    ]


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
        if rule.required_words and (wanted := getattr(rule.required_words, language)).lower() not in text:
            yield f"the {language} text does not say {wanted!r}"
        if rule.opt_out_suffix and rule.opt_out_suffix.lower() in text:
            yield f"the {language} text says {rule.opt_out_suffix!r} itself, so it would be there twice"
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
