"""What can be turned while the sandbox runs: how people react, and limits whose true value nobody has published.

`POST /control/settings {"purchase_treated": 0.2}` changes them, `POST /control/reset` brings them back.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(slots=True)
class Settings:
    # People. Probabilities; the daily ones are per person and day, drawn at the start of the day.
    purchase_base: float = 0.03  # p0: a buyer buys again that day
    purchase_treated: float = 0.13  # p1: the same, after a marketing message that day or the day before
    click: float = 0.35  # of a message with a link
    unsubscribe: float = 0.01  # of a marketing message
    redeem: float = 0.80  # a coupon in hand, when buying enough for it
    review_after_request: float = 0.30  # of a review request, within a day
    refund_live: float = 0.02  # a new trade is sent back
    follow_daily: float = 0.001  # of the people who do not follow
    unfollow_daily: float = 0.0005  # of the followers
    write_daily: float = 0.02  # of the followers: write to the account, which opens the service window
    template_blocked: float = 0.005  # status "failed:user block" of a template message
    template_failed: float = 0.002  # status "failed: system failed"

    # Limits of the platforms.
    top_rate: int = 400  # calls per method and real second before code 7
    top_ban_seconds: int = 1  # the N of "This ban will last for N more seconds"
    top_review_rows: int = 1500  # rows of traderates.get per window
    wechat_user_page: int = 10_000  # openids per page of user/get
    wechat_rate: int = 0  # message calls per real minute before 45011; 0 = no limit
    wechat_ready_hour: int = 8  # the datacube shows yesterday from this hour on
    wechat_datacube_calls: int = 1000  # per day and interface before 45009
    wechat_store_ip_allowed: bool = True  # off: HTTP 403 without an errcode
    wechat_store_minute_calls: int = 10_000  # per real minute before 45011
    wechat_store_window_orders: int = 10_000  # orders in one window of order/list/get before 31042
    wechat_store_aftersale_hours: int = 24  # the longest window of getaftersalelist
    wechat_store_aftersale_page: int = 50  # ids per page of getaftersalelist, which takes no page_size
    wechat_store_pay_later: float = (
        0.0  # of the paid orders: pay_time is the order's, the money comes when it is confirmed
    )
    shopify_bucket: int = 400  # calls the bucket holds; the smallest plan has 40, the largest 400
    shopify_leak: float = 20.0  # calls per real second that leave it; the smallest plan has 2
    weibo_hour_calls: int = 5_000  # per hour of the sandbox's clock before 10023
    weibo_token_days: int = 1825  # from 30 days before the anchor; then 21327
    weibo_timeline_rows: int = 0  # newest posts that user_timeline shows; 0 = all
    woo_modified_filter: bool = True  # off: a shop of before 2022, which does not look at modified_after
    custom_window: bool = True  # off: customer-service messages ignore the 48-hour rule (benchmarks)
    mass_per_month: int = 4
    jpush_minute_calls: int = 600  # pushes per real minute before 2002; 0 = no limit
    wecom_confirm_minutes: int = 30  # until an employee presses send; -1 = never
    wecom_per_day: int = 1  # broadcasts a contact gets in a day; the rest are status 3
    subscribe_msgid: bool = True  # the answer of bizsend names the message; whether the real one does is not known
    sms_failed: float = 0.01  # of the messages to a number that takes them: the carrier reports a failure
    aliyun_sms_minute: int = (
        50  # to one number with one signature and template, before isv.BUSINESS_LIMIT_CONTROL; 0 = no limit
    )
    aliyun_sms_hour: int = 50
    aliyun_sms_day: int = 50
    tencent_sms_30_seconds: int = 1  # to one number before LimitExceeded; nobody has published the true values
    tencent_sms_hour: int = 5
    tencent_sms_day: int = 10
    mail_dead: float = 0.0  # of the mailboxes: accepted, and reported as unknown afterwards
    mail_complains: float = 0.0  # of the mailboxes: every mail is called spam
    pay_rate: int = 500  # coupon calls per real second before 429
    youzan_rate: int = 400  # calls per real second before 4101
    youzan_month_calls: int = 0  # calls of a calendar month before 4204; 0 = no limit
    youzan_token_days: int = 7
    youzan_one_token: bool = True  # a new token ends the one before it
    youzan_customer_depth: int = 10_000  # page_no x page_size of the customer list
    youzan_customer_milliseconds: bool = False  # the unit of the customer list's time filter
    weidian_rate: int = 400  # calls per real second before a refusal
    weidian_token_seconds: int = 86_400
    weidian_one_token: bool = True
    jd_rate: int = 2_000  # calls per real second before code 2; a fast machine makes several hundred
    jd_calls_per_day: int = 0  # before code 2 until midnight; 0 = no limit, an application in test state has 500
    jd_token_days: int = 365
    jd_comment_total: bool = True  # comments come with their number
    jd_aftersale_fen: bool = False  # the unit of `refoundAmount`

    def update(self, changes: dict[str, Any]) -> None:
        """Set some values; raises ValueError with a sentence for an unknown name or a wrong type."""
        types = {entry.name: type(getattr(self, entry.name)) for entry in fields(self)}
        for name, value in changes.items():
            if name not in types:
                raise ValueError(f"there is no setting {name!r}; known are {', '.join(types)}")
            right = bool if types[name] is bool else (int, float) if types[name] is float else int
            if not isinstance(value, right) or (isinstance(value, bool) and types[name] is not bool):
                raise ValueError(f"setting {name} must be a {types[name].__name__}, not {value!r}")
        for name, value in changes.items():
            setattr(self, name, types[name](value))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
