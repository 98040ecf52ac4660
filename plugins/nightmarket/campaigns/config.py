"""What a campaign, a journey and the channels may look like in YAML, and everything that can be wrong with them.

A mistake is one sentence with file, line and field. `check_all()` reads every file the way a run would, so that a
campaign that breaks a platform's rule is refused here and not while it is being sent.
"""

import re
from collections.abc import Iterator
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from croniter import croniter
from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from nightmarket.channels.registry import CHANNELS
from nightmarket.settings import ConfigError, StrictModel, get_settings, load_yaml, where
from nightmarket.sources import PLATFORMS
from nightmarket.tiers import load_tiers

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{1,39}$")]
Purpose = Literal["marketing", "service"]
Language = Literal["zh", "en"]
LANGUAGES: tuple[Language, ...] = ("zh", "en")
Share = Annotated[Decimal, Field(ge=0, le=1)]
Money = Annotated[Decimal, Field(ge=0)]
Parameter = bool | int | Decimal | str
HttpsAddress = Annotated[str, Field(pattern=r"^https://[^\s\\\"'<>]+$")]
Stage = Literal[
    "none", "discovered", "aware", "considering", "choosing", "purchased", "satisfied", "loyal", "advocate"
]  # mart.member_stages
Names = Annotated[tuple[str, ...], Field(min_length=1)]


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


class Promotion(StrictModel):
    """A big promotion with a name and its days, both included: prices may go below the floor then."""

    name: Name
    first: date
    last: date

    @model_validator(mode="after")
    def _in_order(self) -> "Promotion":
        if self.last < self.first:
            raise ValueError(f"{self.name}: last is {self.last}, before first, {self.first}")
        return self


class ContentMix(StrictModel):
    """Of all campaigns, at most this share may be offers; asked from so many campaigns on."""

    offers_at_most: Share
    from_campaigns: Annotated[int, Field(ge=1)]


class Rule(StrictModel):
    """One rule of a platform, a law or the house, as data. `rule` is the name a refusal shows, `says` is what it demands."""

    rule: str
    says: str
    purposes: tuple[Purpose, ...] | None = None  # only messages of these purposes
    forbids_coupon: bool = False
    forbidden_words: tuple[str, ...] = ()
    required_words: Texts | None = None  # the text must say it, in its language
    needs_unsubscribe_link: bool = False  # marketing messages must carry {{ unsubscribe_link }}
    needs_sender: bool = False  # messages must name {{ shop.name }}
    subject_label: Texts | None = None  # marketing subjects must begin with it
    opt_out_suffix: str | None = None  # marketing SMS end with it; the channel adds it, texts must not
    window_hours: int | None = Field(None, gt=0)  # only so long after the person wrote to us
    window_messages: int | None = Field(None, gt=0)  # and so many of them
    day_messages: int | None = Field(None, gt=0)  # per receiver and day of the house's clock
    month_messages: int | None = Field(None, gt=0)  # per receiver and calendar month
    hours: dict[Purpose, SendWindow] = Field(default_factory=dict)  # send windows lie inside, on the receiver's clock
    price_share_at_least: Share | None = None  # what a coupon leaves of the price at least, outside big promotions
    content_mix: ContentMix | None = None  # over all campaigns


class Channel(StrictModel):
    """One way out: the sending account, its pace, its price and the rules that hold on it."""

    account: Name  # connection and source id of the sending account
    templates: Name  # folder under include/templates
    consent: Literal["following", "granted"]  # does following count as consent, or must it have been given?
    rate_per_second: Annotated[Decimal, Field(gt=0)]  # calls, shared by all workers
    calls_per_day: Annotated[int, Field(ge=1)] | None = (
        None  # of the account, all workers and runs; None = no quota known
    )
    calls_per_month: Annotated[int, Field(ge=1)] | None = None
    ask_every_seconds: Annotated[int, Field(ge=10)] = 600  # how often a platform is asked about one open message
    connections: Annotated[int, Field(ge=1, le=1000)] = 64
    timeout_seconds: Annotated[float, Field(gt=0, le=120)] = 10.0
    group_size: Annotated[int, Field(ge=2, le=10_000)] | None = None  # receivers of one call, for group channels
    max_characters: Annotated[int, Field(gt=0)]
    sign: Annotated[str, Field(pattern=r"^[^\[\]【】\s]{2,12}$")] | None = (
        None  # SMS: the registered signature, without brackets
    )
    cost_amount: Money  # per accepted message; of SMS per billed part
    rules: tuple[Rule, ...] = ()

    def rule_value(self, name: str) -> int | None:
        """The strictest value of a numeric rule of this channel, None when no rule sets it."""
        values = [value for rule in self.rules if (value := getattr(rule, name)) is not None]
        return min(values, default=None)


Issuer = Literal["wechat_pay", "own", "code_list", "points", "taobao_benefit", "youzan"]
CODE_ISSUERS = ("own", "code_list", "points")  # their coupons are codes that the database holds
# What each issuer's stock must say beside name, amounts and budget, and what it may say.
ISSUER_FIELDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "wechat_pay": (("platform_stock_id",), ("account",)),
    "own": (("valid_to",), ("valid_from", "valid_days")),
    "code_list": (("valid_to",), ("valid_from", "valid_days")),
    "points": (("valid_to", "points_price"), ("valid_from", "valid_days")),
    "taobao_benefit": (
        ("account", "platform_stock_id", "detail_id", "benefit_type", "valid_to"),
        ("valid_from", "receiver", "stop_codes", "calls_per_second"),
    ),
    "youzan": (
        ("account", "platform_stock_id", "valid_to"),
        ("valid_from", "send_api", "detail_api", "stop_codes", "calls_per_second"),
    ),
}
RECEIVER_KINDS = {"wechat_pay": "wechat_openid", "youzan": "youzan_open_id"}
ApiVersion = Annotated[str, Field(pattern=r"^[a-z.]+/\d+\.\d+\.\d+$")]


class Stock(StrictModel):
    """A coupon stock; amounts in yuan. Validity is read from the issuer where it tells it, and stands here where it does not."""

    issuer: Issuer
    name: str
    face_amount: Annotated[Decimal, Field(gt=0)]
    minimum_amount: Money
    budget_count: Annotated[int, Field(ge=1)]
    budget_amount: Money | None = None  # face value of all coupons together
    per_member_limit: Annotated[int, Field(ge=1)] = 1
    is_test: bool = False
    account: Name | None = None  # connection of the platform that issues it
    platform_stock_id: Annotated[str, Field(pattern=r"^[0-9A-Za-z_-]{1,64}$")] | None = None
    valid_from: date | None = None  # first day; unset: at once
    valid_to: date | None = None  # last day
    valid_days: Annotated[int, Field(ge=1, le=3650)] | None = None  # of one coupon, from the day it is given
    points_price: Annotated[int, Field(ge=1)] | None = None  # what a member pays for one
    detail_id: str | None = None  # Taobao: of the benefit
    benefit_type: str | None = None
    receiver: Literal["open_uid", "ouid"] = "open_uid"  # how Taobao is told who gets it
    send_api: ApiVersion = "youzan.ump.voucheractivity.send/3.0.1"
    detail_api: ApiVersion = "youzan.ump.voucher.query.detail/3.0.1"
    calls_per_second: Annotated[Decimal, Field(gt=0)] | None = None  # shared with everybody who uses the account
    stop_codes: tuple[str, ...] = ()  # refusals of the platform that are not about one person: they stop the run

    @model_validator(mode="after")
    def _whole(self) -> "Stock":
        needed, allowed = ISSUER_FIELDS[self.issuer]
        own = {name for fields in ISSUER_FIELDS.values() for part in fields for name in part}
        for name in needed:
            if getattr(self, name) is None:
                raise ValueError(f"a stock of {self.issuer} needs {name}")
        for name in sorted(own - {*needed, *allowed}):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"a stock of {self.issuer} has no {name}; it may say {', '.join((*needed, *allowed))}")
        if self.valid_from and self.valid_to and self.valid_to < self.valid_from:
            raise ValueError(f"valid_to is {self.valid_to}, before valid_from, {self.valid_from}")
        return self

    @field_validator("platform_stock_id")
    @classmethod
    def _as_its_platform_writes_it(cls, value: str | None, info: ValidationInfo) -> str | None:
        issuer = info.data.get("issuer")
        if value and issuer in ("wechat_pay", "youzan") and not re.fullmatch(r"[0-9]{1,20}", value):
            raise ValueError(f"{issuer} numbers its stocks with up to 20 digits")
        return value

    @property
    def has_codes(self) -> bool:
        """Are its coupons codes that the database holds? Then a message has to say them."""
        return self.issuer in CODE_ISSUERS

    @property
    def receiver_kind(self) -> str | None:
        """The kind of identity by which the issuer knows a person; None: it need not know one."""
        if self.issuer == "taobao_benefit":
            return f"taobao_{self.receiver}"
        return RECEIVER_KINDS.get(self.issuer)


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


class BounceOptions(StrictModel):
    """What follows from reports about mails (docs/connections/email.md)."""

    soft_count: Annotated[int, Field(ge=1)] = 3  # mails to an address that failed for now, in
    soft_days: Annotated[int, Field(ge=1, le=365)] = 30  # so many days: then it is left alone for
    soft_rest_days: Annotated[int, Field(ge=1, le=3650)] = 90
    policy_count: Annotated[int, Field(ge=1)] = 3  # servers that refused us, not the receiver, in
    policy_hours: Annotated[int, Field(ge=1, le=24 * 30)] = 24  # so many hours: then the channel is paused for
    pause_hours: Annotated[int, Field(ge=1, le=24 * 30)] = 6


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
    link_base_url: Annotated[
        str, Field(pattern=r"^https://[a-z0-9.-]+(:[0-9]+)?(/[A-Za-z0-9._-]+)*$")
    ]  # links: <it>/r/<key>
    home_url: HttpsAddress  # where a link leads when its campaign names no landing_url
    frequency: Frequency
    global_holdout: Holdout
    delivery: DeliveryOptions
    bounces: BounceOptions = BounceOptions()
    channels: dict[Name, Channel]
    review_rules: tuple[Rule, ...] = ()  # hold for review requests on every channel
    review_thanks_rules: tuple[Rule, ...] = ()  # and for the thanks for a review
    house_rules: tuple[Rule, ...] = ()  # hold for campaigns on every channel
    big_promotions: tuple[Promotion, ...] = ()
    landing_hosts: tuple[Annotated[str, Field(pattern=r"^[a-z0-9.-]+$")], ...] = ()  # where a campaign's link may lead
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

# Their texts need no unsubscribe link: two carry no advertising, and a push is ended in the app, which gets the link beside the text.
WITHOUT_LINK = ("wechat_template", "wechat_subscribe", "jpush")


def _loosened(name: str, channel: Channel) -> Iterator[str]:
    """In words, how a block of channels.yaml allows more than its platform or the law does."""
    for field, most in PLATFORM_LIMITS.get(name, {}).items():
        value = channel.rule_value(field)
        if value is None or value > most:
            yield f"one of its rules must set {field} to at most {most}, the platform's own limit; it is {value or 'not set'}"
    if name == "wechat_template" and not any(r.purposes == ("service",) and r.forbids_coupon for r in channel.rules):
        yield "WeChat rule 3.9 must stay: purposes [service] and forbids_coupon (no advertising, no coupons)"
    if name == "wechat_subscribe" and not any(rule.purposes == ("service",) for rule in channel.rules):
        yield "a subscription notice is a service notice (WeChat); one of its rules must say purposes [service]"
    if name == "jpush" and channel.consent != "granted":
        yield "marketing pushes need a consent that was given (Advertising Law art. 43); consent must be granted"
    if name == "email" and channel.consent != "granted":
        yield "marketing e-mail needs a consent that was given (Advertising Law art. 43); consent must be granted"
    if CHANNELS[name].family == "sms":
        yield from _loosened_sms(channel)
    elif not any(rule.needs_unsubscribe_link for rule in channel.rules) and name not in WITHOUT_LINK:
        yield "one of its rules must say needs_unsubscribe_link: an advertisement gives a way to refuse it (Advertising Law art. 43)"


def _loosened_sms(channel: Channel) -> Iterator[str]:
    if channel.consent != "granted":
        yield "commercial SMS need a consent that was given (MIIT Order 31); consent must be granted"
    if channel.sign is None:
        yield "sign is missing: every SMS begins with the registered signature of its sender"
    if not any(rule.opt_out_suffix for rule in channel.rules):
        yield "one of its rules must set opt_out_suffix: a commercial SMS says how to refuse it (MIIT Order 31)"
    if not any("marketing" in rule.hours for rule in channel.rules):
        yield "one of its rules must set hours for marketing: operators and vendors refuse advertising at night"


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


class Fallback(StrictModel):
    """When a message goes on over the next channel of its member, if there is one."""

    on_refusal: bool = True  # the channel refused it, or may not be used any more: certainly not sent
    no_receipt_after_minutes: Annotated[int, Field(ge=5)] | None = (
        None  # accepted, but no receipt came: a second message
    )

    @model_validator(mode="after")
    def _refusal_first(self) -> "Fallback":
        if self.no_receipt_after_minutes is not None and not self.on_refusal:
            raise ValueError(
                "no_receipt_after_minutes needs on_refusal: true; who goes on in doubt goes on after a clear no"
            )
        return self


class ApprovalRule(StrictModel):
    above: Annotated[int, Field(ge=0)]  # more messages than this need a person
    by: tuple[str, ...] = ()  # only these users may say yes; () = everybody who may answer in Airflow
    answer_within_hours: Annotated[Decimal, Field(gt=0, le=72)] = Decimal(4)  # silence until then is a no
    drift_tolerance: Share = Decimal("0.01")  # share of members that may have changed since, before it is asked again


class Filters(StrictModel):
    """Who of the segment stays: what the marts of the as-of date say of a member must be in every list that is given."""

    tiers: Names | None = None  # of the first programme
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)] | None = None
    rfm_segments: Names | None = None
    cities: Names | None = None
    languages: Annotated[tuple[Language, ...], Field(min_length=1)] | None = None
    min_points: Annotated[int, Field(ge=1)] | None = None


class SegmentUse(StrictModel):
    segment: Name
    parameters: dict[str, Parameter] = Field(default_factory=dict)


class CampaignWithin(StrictModel):
    campaign: Name
    days: Annotated[int, Field(ge=1, le=365)]


class Exclusions(StrictModel):
    """Who of the segment goes: one that applies is enough."""

    segments: tuple[SegmentUse, ...] = ()
    campaigns: tuple[CampaignWithin, ...] = ()  # whoever got a message of that campaign so lately
    tiers: Names | None = None
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)] | None = None
    open_service_case: bool = False  # a bad review of theirs waits for our answer
    open_refund: bool = False  # has asked for a refund that is not settled


class Targets(StrictModel):
    """The lines a run has to pass; rates 0..1, amounts in yuan. A report shows them beside what was reached."""

    uplift_rate: Share | None = None
    delivered_rate: Share | None = None
    opened_rate: Share | None = None
    clicked_rate: Share | None = None
    redemption_rate: Share | None = None
    cost_per_order_amount: Money | None = None  # at most


class Schedule(StrictModel):
    """When a campaign runs by itself: exactly one of cron, dates, on."""

    cron: str | None = None  # minute hour day month weekday, Asia/Shanghai
    dates: Annotated[tuple[date, ...], Field(min_length=1)] | None = None
    at: Clock = time(8)  # of `dates`; the as-of date is the day before
    on: Literal["tier_change"] | None = None  # as soon as the marts of a night are there
    tiers: Names | None = None  # of `on`: the tiers that were reached; the segment gets them as its parameter `tiers`

    @model_validator(mode="before")
    @classmethod
    def _spelt(cls, value: Any) -> Any:
        """YAML 1.1 reads an unquoted `on` as true; both spellings mean the key."""
        return {"on" if key is True else key: item for key, item in value.items()} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _one(self) -> "Schedule":
        if sum(value is not None for value in (self.cron, self.dates, self.on)) != 1:
            raise ValueError("a schedule has exactly one of cron, dates and on")
        if (self.on is None) != (self.tiers is None):
            raise ValueError("on: tier_change needs tiers, and tiers belong to it alone")
        if self.cron is not None and not croniter.is_valid(self.cron):
            raise ValueError(f"{self.cron!r} is not a cron expression of five fields")
        return self


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
    routing: Literal["cheapest", "listed"] = "cheapest"  # the allowed channel that costs least first, or as listed
    fallback: Fallback = Fallback()
    caps: Frequency | None = None  # of this campaign's own messages per member, beside the frequency over all campaigns
    coupon: CouponChoice | None = None
    default_language: Language = "zh"
    send_window: SendWindow
    expires_after_hours: Annotated[int, Field(ge=1, le=24 * 30)]  # from the first allowed instant after the as-of day
    budget: Budget
    attribution_days: Annotated[int, Field(ge=1, le=90)]
    approval: ApprovalRule
    content: Literal["offer", "story", "service"] = "offer"  # what it mostly is, for the content mix
    promotion: Name | None = None  # the big promotion of channels.yaml it belongs to
    filters: Filters = Filters()
    exclusions: Exclusions = Exclusions()
    landing_url: str | None = None  # where {{ link }} leads
    targets: Targets = Targets()
    schedule: Schedule | None = None

    def route(self, channels: "ChannelsFile") -> tuple[str, ...]:
        """The channels in the order in which a member's first allowed one is looked for."""
        if self.routing == "listed":
            return self.channels
        return tuple(sorted(self.channels, key=lambda name: channels.channels[name].cost_amount))

    @model_validator(mode="after")
    def _whole(self) -> "Campaign":
        if sum(variant.share for variant in self.variants) != 1:
            total = sum(variant.share for variant in self.variants)
            raise ValueError(f"the variants' shares sum to {total}, not to 1")
        for field, names in (("variants", [v.name for v in self.variants]), ("channels", list(self.channels))):
            if len(set(names)) != len(names):
                raise ValueError(f"{field}: a name stands twice in {names}")
        return self

    @property
    def segment_parameters(self) -> dict[str, Any]:
        """What the segment's SQL is given, beside the dates."""
        tiers = {"tiers": list(self.schedule.tiers)} if self.schedule and self.schedule.tiers else {}
        return {**self.parameters, **tiers}


class ReviewTemplates(StrictModel):
    ask: Name
    remind: Name
    thanks: Name
    survey: Name


class ReviewJourney(StrictModel):
    """include/config/journeys/followup_reviews.yaml: one request, one reminder; thanks and a reward for any review; a survey."""

    journey: Name
    title: Texts
    owner: str
    purpose: Literal["service"] = "service"
    ask_after_days: Annotated[int, Field(ge=0, le=60)]  # whole days after the day of signing
    ask_within_days: Annotated[int, Field(ge=1, le=60)]  # and for so many days; older orders are never asked about
    remind_after_days: Annotated[int, Field(ge=1, le=60)]  # after the request
    remind_within_days: Annotated[int, Field(ge=1, le=60)]
    gap_days: Annotated[int, Field(ge=1, le=60)]  # between two requests to one person, whatever the order
    thanks_within_days: Annotated[
        int, Field(ge=1, le=60)
    ]  # after the review was written, or the service case was settled
    reward_points: Annotated[int, Field(ge=1)]  # for any review, once per order
    rewards: dict[str, bool]  # by platform of the shop: may it be rewarded there? one that is not named: no
    case_within_days: Annotated[int, Field(ge=1, le=60)]  # reviews written longer ago open no service case
    survey_valid_days: Annotated[
        int, Field(ge=1, le=90)
    ]  # the link in a thank-you or survey message can be used so long
    landing_url: HttpsAddress | None = None  # where the link of a request leads; default home_url of channels.yaml
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
    from nightmarket.campaigns.policy import mix_findings
    from nightmarket.campaigns.rendering import template_problems

    try:
        channels = load_channels()
    except ConfigError as error:
        return [str(error)]
    problems = list(_landing_problems(where(channels_path(), "home_url"), channels.home_url, channels))
    campaigns: list[Campaign] = []
    for name in list_campaigns():
        try:
            campaigns.append(_read_campaign(name))
            problems += campaign_problems(campaigns[-1], channels)
        except ConfigError as error:
            problems.append(str(error))
    problems += (finding.sentence for finding in mix_findings(campaigns, channels))
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
    yield from _segment_problems(path, campaign.segment, campaign.segment_parameters)
    yield from _rule_problems(campaign, channels, path)
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
        yield from _code_problems(campaign, channels, path)
        yield from _template_problems(
            path, [("variants", i, "template") for i in range(len(campaign.variants))],
            [variant.template for variant in campaign.variants], campaign.channels, channels,
        )  # fmt: skip
        yield from (finding.sentence for finding in campaign_findings(campaign, channels))


def _code_problems(campaign: Campaign, channels: ChannelsFile, path: Path) -> Iterator[str]:
    """A code has to be said, to one person at a time; and where there is none, nobody may promise it."""
    from nightmarket.campaigns.rendering import load_template

    if campaign.coupon is None:
        return
    for field in ("stock", "test_stock"):
        stock = channels.coupon_stocks[getattr(campaign.coupon, field)]
        for index, name in enumerate(campaign.channels):
            folder = channels.channels[name].templates
            if stock.has_codes and CHANNELS[name].is_group:
                yield (
                    f"{where(path, 'channels', index)}: {name} sends one text to all and cannot say a code;"
                    f" the coupons of {field} are codes ({stock.issuer})."
                )
                continue
            for position, variant in enumerate(campaign.variants):
                try:
                    template = load_template(folder, variant.template)
                    says = {"coupon.code" in template.used_variables(language) for language in template.parts}
                except ConfigError:
                    continue  # reported with its line elsewhere
                place = where(path, "variants", position, "template")
                if stock.has_codes and says != {True}:
                    yield f"{place}: {folder}/{variant.template} does not say coupon.code in every language; the coupons of {field} are codes."
                if not stock.has_codes and says != {False}:
                    yield f"{place}: {folder}/{variant.template} says coupon.code; the coupons of {field} are no codes ({stock.issuer})."


def journey_problems(journey: ReviewJourney, channels: ChannelsFile) -> Iterator[str]:
    """As campaign_problems, for a journey."""
    from nightmarket.campaigns.policy import journey_findings

    path = journey_path(journey.journey)
    yield from _landing_problems(where(path, "landing_url"), journey.landing_url, channels)
    for platform in journey.rewards:
        if platform not in PLATFORMS:
            known = ", ".join(sorted(PLATFORMS))
            yield f"{where(path, 'rewards', platform)}: there is no platform {platform!r}; there are {known}."
    unknown = [name for name in journey.channels if name not in channels.channels]
    for name in unknown:
        yield f"{where(path, 'channels', journey.channels.index(name))}: there is no channel {name!r} in channels.yaml."
    if not unknown:
        templates = journey.templates.model_dump()
        yield from _template_problems(
            path, [("templates", step) for step in templates], list(templates.values()), journey.channels, channels
        )
        yield from (finding.sentence for finding in journey_findings(journey, channels))


def _segment_problems(
    path: Path, segment: str, parameters: dict[str, Any], place: tuple[Any, ...] = ()
) -> Iterator[str]:
    """Mistakes in the use of a segment that stands below `place` of the file."""
    file = get_settings().sql_dir / "segments" / f"{segment}.sql"
    if not file.exists():
        yield f"{where(path, *place, 'segment')}: include/sql/segments/{segment}.sql does not exist."
        return
    wanted = set(re.findall(r"%\((\w+)\)s", file.read_text(encoding="utf-8"))) - {"business_date", "as_of_at"}
    for name in sorted(wanted - set(parameters)):
        yield f"{where(path, *place, 'parameters')}: segment {segment!r} needs the parameter {name!r}."
    for name in sorted(set(parameters) - wanted):
        yield f"{where(path, *place, 'parameters', name)}: segment {segment!r} has no parameter {name!r}."


def _rule_problems(campaign: Campaign, channels: ChannelsFile, path: Path) -> Iterator[str]:
    """Names in filters, exclusions, schedule, landing_url and fallback that nothing answers to."""
    known_tiers = {tier.tier for tier in load_tiers().programmes[0].tiers}
    used = [("filters", campaign.filters.tiers), ("exclusions", campaign.exclusions.tiers)]
    used += [("schedule", campaign.schedule.tiers)] if campaign.schedule else []
    for field, tiers in used:
        for index, tier in enumerate(tiers or ()):
            if tier not in known_tiers:
                yield (
                    f"{where(path, field, 'tiers', index)}: there is no tier {tier!r}; the first programme of tiers.yaml has"
                    f" {', '.join(sorted(known_tiers))}."
                )
    for index, use in enumerate(campaign.exclusions.segments):
        yield from _segment_problems(path, use.segment, use.parameters, ("exclusions", "segments", index))
    for index, other in enumerate(campaign.exclusions.campaigns):
        if other.campaign not in list_campaigns():
            place = where(path, "exclusions", "campaigns", index, "campaign")
            yield f"{place}: there is no campaign {other.campaign!r}."
    yield from _landing_problems(where(path, "landing_url"), campaign.landing_url, channels)
    if campaign.fallback.no_receipt_after_minutes is not None and not any(
        CHANNELS[name].reports_delivery for name in campaign.channels if name in CHANNELS
    ):
        place = where(path, "fallback", "no_receipt_after_minutes")
        yield f"{place}: none of its channels tells of delivery, so no receipt would ever come."
    if campaign.promotion is not None and campaign.promotion not in {p.name for p in channels.big_promotions}:
        yield f"{where(path, 'promotion')}: there is no big promotion {campaign.promotion!r} in channels.yaml."


def _landing_problems(place: str, address: str | None, channels: ChannelsFile) -> Iterator[str]:
    """Where a link may lead: to our own pages and shops, so that nobody can make it lead elsewhere by a slip of the pen."""
    if address is None:
        return
    url = urlsplit(address)
    if url.scheme != "https" or url.username or url.port:
        yield f"{place}: {address!r} is not a plain https address."
    elif url.hostname not in channels.landing_hosts:
        known = ", ".join(channels.landing_hosts) or "there are none"
        yield f"{place}: {url.hostname!r} is not one of landing_hosts in channels.yaml ({known})."


def _template_problems(
    path: Path, places: list[tuple[Any, ...]], names: list[str], channel_names: tuple[str, ...], channels: ChannelsFile
) -> Iterator[str]:
    """Every template exists in every channel's folder, in both languages, and can be rendered there."""
    from nightmarket.campaigns.rendering import channel_problems, template_problems

    folders = {channels.channels[name].templates: channels.channels[name].max_characters for name in channel_names}
    for place, name in zip(places, names, strict=True):
        for folder, limit in folders.items():
            if not (get_settings().template_dir / folder / name / "meta.yaml").exists():
                yield f"{where(path, *place)}: include/templates/{folder}/{name}/meta.yaml does not exist."
            else:
                yield from template_problems(folder, name, limit)
                users = {
                    key: channels.channels[key] for key in channel_names if channels.channels[key].templates == folder
                }
                yield from channel_problems(folder, name, users)
