"""What a campaign, a journey and the channels may look like in YAML, and everything that can be wrong with them.

A mistake is one sentence with file, line and field. `check_all()` reads every file the way a run would, so that a
campaign that breaks a platform's rule is refused here and not while it is being sent.
"""

import re
from collections.abc import Iterator
from datetime import time
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from nightmarket.channels.registry import CHANNELS
from nightmarket.settings import ConfigError, StrictModel, get_settings, load_yaml, where

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{1,39}$")]
Purpose = Literal["marketing", "service"]
Language = Literal["zh", "en"]
LANGUAGES: tuple[Language, ...] = ("zh", "en")
Share = Annotated[Decimal, Field(ge=0, le=1)]
Money = Annotated[Decimal, Field(ge=0)]
Parameter = bool | int | Decimal | str


def _clock(value: Any) -> Any:
    """YAML 1.1 reads an unquoted 20:00 as 1200 (base 60); both spellings mean the same clock time."""
    return time(value // 60, value % 60) if isinstance(value, int) and 0 <= value < 24 * 60 else value


Clock = Annotated[time, BeforeValidator(_clock)]


class Texts(StrictModel):
    """A text in both languages."""

    zh: str
    en: str


class SendWindow(StrictModel):
    """When sending is allowed on the receiver's clock: [opens, closes), over midnight when opens > closes."""

    opens: Clock
    closes: Clock


class Rule(StrictModel):
    """One rule of a platform or a law, as data. `rule` is the name a refusal shows, `says` is what it demands."""

    rule: str
    says: str
    purposes: tuple[Purpose, ...] | None = None  # only messages of these purposes
    forbids_coupon: bool = False
    forbidden_words: tuple[str, ...] = ()
    needs_unsubscribe_link: bool = False  # marketing messages must carry {{ unsubscribe_link }}
    needs_sender: bool = False  # messages must name {{ shop.name }}
    subject_label: Texts | None = None  # marketing subjects must begin with it
    window_hours: int | None = Field(None, gt=0)  # only so long after the person wrote to us
    window_messages: int | None = Field(None, gt=0)  # and so many of them
    month_messages: int | None = Field(None, gt=0)  # per receiver and calendar month


class Channel(StrictModel):
    """One way out: the sending account, its pace, its price and the rules that hold on it."""

    account: Name  # connection and source id of the sending account
    templates: Name  # folder under include/templates
    consent: Literal["following", "granted"]  # does following count as consent, or must it have been given?
    rate_per_second: Annotated[Decimal, Field(gt=0)]  # calls, shared by all workers
    connections: Annotated[int, Field(ge=1, le=1000)] = 64
    timeout_seconds: Annotated[float, Field(gt=0, le=120)] = 10.0
    group_size: Annotated[int, Field(ge=2, le=10_000)] | None = None  # receivers of one call, for group channels
    max_characters: Annotated[int, Field(gt=0)]
    cost_amount: Money  # per accepted message
    rules: tuple[Rule, ...] = ()

    def rule_value(self, name: str) -> int | None:
        """The strictest value of a numeric rule of this channel, None when no rule sets it."""
        values = [value for rule in self.rules if (value := getattr(rule, name)) is not None]
        return min(values, default=None)


class Stock(StrictModel):
    """A coupon stock as it stands at its issuer; amounts in yuan. Validity is read from the issuer."""

    issuer: Literal["wechat_pay"]
    platform_stock_id: Annotated[str, Field(pattern=r"^[0-9]{1,20}$")]
    name: str
    face_amount: Money
    minimum_amount: Money
    budget_count: Annotated[int, Field(ge=1)]
    per_member_limit: Annotated[int, Field(ge=1)] = 1
    is_test: bool = False


class Brand(StrictModel):
    """Who is speaking: the law wants every message to say so."""

    name: Texts
    contact: Texts


class Frequency(StrictModel):
    """At most so many marketing messages per person in so many days, over all campaigns."""

    messages: Annotated[int, Field(ge=1)]
    days: Annotated[int, Field(ge=1, le=365)]


class Holdout(StrictModel):
    share: Annotated[Decimal, Field(ge=0, le=Decimal("0.5"))]
    salt: Annotated[str, Field(min_length=4)]


class DeliveryOptions(StrictModel):
    """How the outbox is worked off (docs/decisions/0032-outbox.md)."""

    lease_seconds: Annotated[int, Field(ge=5, le=3600)]
    claim_size: Annotated[int, Field(ge=1, le=5000)]
    attempt_group: Annotated[int, Field(ge=1, le=1000)]  # attempts recorded just before so many calls
    pace_share: Annotated[float, Field(gt=0, le=1)]  # share of the limit that is used
    breaker_failures: Annotated[int, Field(ge=1)]  # calls in a row that failed before the channel is paused
    breaker_pause_seconds: Annotated[int, Field(ge=1)]
    progress_seconds: Annotated[float, Field(gt=0)]


class ChannelsFile(StrictModel):
    """include/config/channels.yaml."""

    brand: Brand
    link_base_url: Annotated[str, Field(pattern=r"^https://[a-z0-9.-]+$")]
    frequency: Frequency
    global_holdout: Holdout
    delivery: DeliveryOptions
    channels: dict[Name, Channel]
    review_rules: tuple[Rule, ...] = ()  # hold for review requests on every channel
    coupon_stocks: dict[Name, Stock] = Field(default_factory=dict)

    @field_validator("channels")
    @classmethod
    def _known(cls, value: dict[str, Channel]) -> dict[str, Channel]:
        for name, channel in value.items():
            if name not in CHANNELS:
                raise ValueError(f"there is no channel {name!r}; channels are {', '.join(sorted(CHANNELS))}")
            for problem in _loosened(name, channel):
                raise ValueError(f"{name}: {problem}")
            if CHANNELS[name].is_group != (channel.group_size is not None):
                raise ValueError(f"{name}: group_size belongs to channels that send one call to many, and only there")
        return value


# What the platforms themselves set; channels.yaml may be stricter, never looser.
PLATFORM_LIMITS: dict[str, dict[str, int]] = {
    "wechat_mass": {"month_messages": 4},
    "wechat_service": {"window_hours": 48, "window_messages": 5},
}


def _loosened(name: str, channel: Channel) -> Iterator[str]:
    """In words, how a block of channels.yaml allows more than its platform or the law does."""
    for field, most in PLATFORM_LIMITS.get(name, {}).items():
        value = channel.rule_value(field)
        if value is None or value > most:
            yield f"one of its rules must set {field} to at most {most}, the platform's own limit; it is {value or 'not set'}"
    if name == "wechat_template" and not any(r.purposes == ("service",) and r.forbids_coupon for r in channel.rules):
        yield "WeChat rule 3.9 must stay: purposes [service] and forbids_coupon (no advertising, no coupons)"
    if name == "email" and channel.consent != "granted":
        yield "marketing e-mail needs a consent that was given (Advertising Law art. 43); consent must be granted"
    if not any(rule.needs_unsubscribe_link for rule in channel.rules) and name != "wechat_template":
        yield "one of its rules must say needs_unsubscribe_link: an advertisement gives a way to refuse it (Advertising Law art. 43)"


class Variant(StrictModel):
    name: Name
    share: Annotated[Decimal, Field(gt=0, le=1)]
    template: Name


class CouponChoice(StrictModel):
    stock: Name
    test_stock: Name  # test sends never use the real pool


class Budget(StrictModel):
    """What a run may use at most. `amount` counts messages and the face value of every coupon, in yuan."""

    messages: Annotated[int, Field(ge=1)]
    amount: Money


class ApprovalRule(StrictModel):
    above: Annotated[int, Field(ge=0)]  # more messages than this need a person


class Campaign(StrictModel):
    """include/config/campaigns/<campaign>.yaml."""

    campaign: Name
    title: Texts
    owner: str
    purpose: Literal["marketing"] = "marketing"
    segment: Name
    parameters: dict[str, Parameter] = Field(default_factory=dict)
    variants: Annotated[tuple[Variant, ...], Field(min_length=1)]
    holdout_share: Annotated[Decimal, Field(ge=0, le=Decimal("0.5"))]
    salt: Annotated[str, Field(min_length=4)]
    channels: Annotated[tuple[Name, ...], Field(min_length=1)]
    coupon: CouponChoice | None = None
    default_language: Language = "zh"
    send_window: SendWindow
    expires_after_hours: Annotated[int, Field(ge=1, le=24 * 30)]  # from the first allowed instant after the as-of day
    budget: Budget
    attribution_days: Annotated[int, Field(ge=1, le=90)]
    approval: ApprovalRule
    target_uplift_rate: Share | None = None  # the KPI this campaign is judged by

    @model_validator(mode="after")
    def _whole(self) -> "Campaign":
        if sum(variant.share for variant in self.variants) != 1:
            total = sum(variant.share for variant in self.variants)
            raise ValueError(f"the variants' shares sum to {total}, not to 1")
        for field, names in (("variants", [v.name for v in self.variants]), ("channels", list(self.channels))):
            if len(set(names)) != len(names):
                raise ValueError(f"{field}: a name stands twice in {names}")
        return self


class ReviewTemplates(StrictModel):
    ask: Name
    remind: Name


class ReviewJourney(StrictModel):
    """include/config/journeys/followup_reviews.yaml: signed orders without a review get one request and one reminder."""

    journey: Name
    title: Texts
    owner: str
    purpose: Literal["service"] = "service"
    ask_after_days: Annotated[int, Field(ge=0, le=60)]  # whole days after the day of signing
    ask_within_days: Annotated[int, Field(ge=1, le=60)]  # and for so many days; older orders are never asked about
    remind_after_days: Annotated[int, Field(ge=1, le=60)]  # after the request
    remind_within_days: Annotated[int, Field(ge=1, le=60)]
    gap_days: Annotated[int, Field(ge=1, le=60)]  # between two requests to one person, whatever the order
    channels: Annotated[tuple[Name, ...], Field(min_length=1)]
    templates: ReviewTemplates
    default_language: Language = "zh"
    send_window: SendWindow
    expires_after_hours: Annotated[int, Field(ge=1, le=24 * 7)]
    attribution_days: Annotated[int, Field(ge=1, le=90)]
    max_messages: Annotated[int, Field(ge=1)]  # more in one night stop the journey: something is wrong


def channels_path() -> Path:
    return get_settings().config_dir / "channels.yaml"


def campaign_path(name: str) -> Path:
    return get_settings().config_dir / "campaigns" / f"{name}.yaml"


def journey_path(name: str) -> Path:
    return get_settings().config_dir / "journeys" / f"{name}.yaml"


def load_channels() -> ChannelsFile:
    """The channels, stocks, caps and rules. Raises ConfigError."""
    return load_yaml(channels_path(), ChannelsFile)


def list_campaigns() -> list[str]:
    """Names of all campaign files, sorted; a broken file is listed too."""
    return sorted(path.stem for path in (get_settings().config_dir / "campaigns").glob("*.yaml"))


def list_journeys() -> list[str]:
    return sorted(path.stem for path in (get_settings().config_dir / "journeys").glob("*.yaml"))


def load_campaign(name: str) -> Campaign:
    """One campaign, with everything it refers to checked. Raises ConfigError with the first mistake."""
    if name not in list_campaigns():
        raise ConfigError(f"there is no campaign {name!r}; campaigns are {', '.join(list_campaigns()) or '(none)'}.")
    campaign = _read_campaign(name)
    for problem in campaign_problems(campaign, load_channels()):
        raise ConfigError(problem)
    return campaign


def load_journey(name: str) -> ReviewJourney:
    """One journey, with everything it refers to checked. Raises ConfigError with the first mistake."""
    journey = _read_journey(name)
    for problem in journey_problems(journey, load_channels()):
        raise ConfigError(problem)
    return journey


def _read_campaign(name: str) -> Campaign:
    path = campaign_path(name)
    campaign = load_yaml(path, Campaign)
    if campaign.campaign != name:
        raise ConfigError(f"{where(path, 'campaign')}: {campaign.campaign!r} is not the name of the file, {name!r}.")
    return campaign


def _read_journey(name: str) -> ReviewJourney:
    path = journey_path(name)
    journey = load_yaml(path, ReviewJourney)
    if journey.journey != name:
        raise ConfigError(f"{where(path, 'journey')}: {journey.journey!r} is not the name of the file, {name!r}.")
    return journey


def check_all() -> list[str]:
    """Every mistake in channels.yaml, the campaigns, the journeys and the templates; one sentence each, [] when none."""
    from nightmarket.campaigns.rendering import template_problems

    try:
        channels = load_channels()
    except ConfigError as error:
        return [str(error)]
    problems: list[str] = []
    for name in list_campaigns():
        try:
            problems += campaign_problems(_read_campaign(name), channels)
        except ConfigError as error:
            problems.append(str(error))
    for name in list_journeys():
        try:
            problems += journey_problems(_read_journey(name), channels)
        except ConfigError as error:
            problems.append(str(error))
    limits = {channel.templates: channel.max_characters for channel in channels.channels.values()}
    for folder in sorted(limits):
        for path in sorted((get_settings().template_dir / folder).glob("*/meta.yaml")):
            problems += template_problems(folder, path.parent.name, limits[folder])
    return list(dict.fromkeys(problems))


def campaign_problems(campaign: Campaign, channels: ChannelsFile) -> Iterator[str]:
    """Mistakes that only show when the campaign is read together with its segment, templates, stocks and channels."""
    from nightmarket.campaigns.policy import campaign_findings

    path = campaign_path(campaign.campaign)
    yield from _segment_problems(campaign, path)
    known = True
    for index, name in enumerate(campaign.channels):
        if name not in channels.channels:
            known = False
            yield f"{where(path, 'channels', index)}: there is no channel {name!r} in channels.yaml."
    if campaign.coupon:
        for field, wants_test in (("stock", False), ("test_stock", True)):
            name = getattr(campaign.coupon, field)
            stock = channels.coupon_stocks.get(name)
            if stock is None:
                known = False
                yield f"{where(path, 'coupon', field)}: there is no coupon stock {name!r} in channels.yaml."
            elif stock.is_test != wants_test:
                yield f"{where(path, 'coupon', field)}: stock {name!r} has is_test: {str(stock.is_test).lower()}."
    if known:
        yield from _template_problems(
            path, [("variants", i, "template") for i in range(len(campaign.variants))],
            [variant.template for variant in campaign.variants], campaign.channels, channels,
        )  # fmt: skip
        yield from (finding.sentence for finding in campaign_findings(campaign, channels))


def journey_problems(journey: ReviewJourney, channels: ChannelsFile) -> Iterator[str]:
    """As campaign_problems, for a journey."""
    from nightmarket.campaigns.policy import journey_findings

    path = journey_path(journey.journey)
    unknown = [name for name in journey.channels if name not in channels.channels]
    for name in unknown:
        yield f"{where(path, 'channels', journey.channels.index(name))}: there is no channel {name!r} in channels.yaml."
    if not unknown:
        names = [journey.templates.ask, journey.templates.remind]
        yield from _template_problems(
            path, [("templates", "ask"), ("templates", "remind")], names, journey.channels, channels
        )
        yield from (finding.sentence for finding in journey_findings(journey, channels))


def _segment_problems(campaign: Campaign, path: Path) -> Iterator[str]:
    file = get_settings().sql_dir / "segments" / f"{campaign.segment}.sql"
    if not file.exists():
        yield f"{where(path, 'segment')}: include/sql/segments/{campaign.segment}.sql does not exist."
        return
    wanted = set(re.findall(r"%\((\w+)\)s", file.read_text(encoding="utf-8"))) - {"business_date", "as_of_at"}
    for name in sorted(wanted - set(campaign.parameters)):
        yield f"{where(path, 'parameters')}: segment {campaign.segment!r} needs the parameter {name!r}."
    for name in sorted(set(campaign.parameters) - wanted):
        yield f"{where(path, 'parameters', name)}: segment {campaign.segment!r} has no parameter {name!r}."


def _template_problems(
    path: Path, places: list[tuple[Any, ...]], names: list[str], channel_names: tuple[str, ...], channels: ChannelsFile
) -> Iterator[str]:
    """Every template exists in every channel's folder, in both languages, and can be rendered there."""
    from nightmarket.campaigns.rendering import template_problems

    folders = {channels.channels[name].templates: channels.channels[name].max_characters for name in channel_names}
    for place, name in zip(places, names, strict=True):
        for folder, limit in folders.items():
            if not (get_settings().template_dir / folder / name / "meta.yaml").exists():
                yield f"{where(path, *place)}: include/templates/{folder}/{name}/meta.yaml does not exist."
            else:
                yield from template_problems(folder, name, limit)
