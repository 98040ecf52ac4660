"""Every word the report and the console show for a code of the tables, in Chinese and English, and how figures look.

An unknown code is shown as it is: better a strange word than a wrong one.
"""

from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from typing import Any, NamedTuple

from nightmarket.settings import get_settings

DASH = "–"
MINUS = "−"


class Text(NamedTuple):
    """The same thing in Chinese and English."""

    zh: str
    en: str


MESSAGE_STATES = {
    "planned": Text("待排队", "planned"),
    "queued": Text("排队中", "queued"),
    "sending": Text("发送中", "sending"),
    "accepted": Text("平台已接收", "accepted"),
    "delivered": Text("已送达", "delivered"),
    "failed": Text("发送失败", "failed"),
    "expired": Text("过期未发", "expired"),
    "suppressed": Text("发送前拦下", "suppressed"),
    "unknown": Text("结果未知", "unknown"),
    "waiting_staff": Text("待员工确认", "waiting for staff"),
    "cancelled": Text("已取消", "cancelled"),
    "holdout": Text("对照组（不发）", "held out"),
    "excluded": Text("排除", "excluded"),
    "targeted": Text("目标", "targeted"),
}
REASONS = {
    "filtered": Text("不符合活动的筛选条件", "ruled out by the campaign's filters"),
    "no_address": Text("没有可用地址", "no address on these channels"),
    "no_consent": Text("未同意接收", "no consent"),
    "suppressed": Text("在屏蔽名单", "suppressed"),
    "channel_limit": Text("渠道此时不可用", "no channel is open for them"),
    "capped": Text("已达营销频次上限", "frequency cap reached"),
    "already_reached": Text("本活动已触达", "already reached by this campaign"),
    "coupon_limit": Text("每人限领已满", "coupon limit per person reached"),
    "global_holdout": Text("全局对照组", "global hold-out"),
    "over_size_limit": Text("超出规模上限", "beyond the size limit"),
    "alone_in_group": Text("群发至少要两人", "alone in a mass send, which needs two"),
}
RUN_STATES = {
    "building": Text("正在圈人", "building"),
    "awaiting_approval": Text("等待审批", "awaiting approval"),
    "approved": Text("已批准", "approved"),
    "rejected": Text("已拒绝", "rejected"),
    "sending": Text("发送中", "sending"),
    "sent": Text("已发送", "sent"),
    "finished": Text("已结束", "finished"),
    "cancelled": Text("已取消", "cancelled"),
    "failed": Text("失败", "failed"),
    "dry_run_done": Text("试运行完成", "dry run done"),
}
MODES = {
    "dry_run": Text("试运行", "dry run"),
    "test": Text("测试发送", "test"),
    "live": Text("正式", "live"),
}
CHANNELS = {
    "wechat_service": Text("微信客服消息", "WeChat service message"),
    "wechat_template": Text("微信模板消息", "WeChat template message"),
    "wechat_subscribe": Text("微信订阅通知", "WeChat subscription notice"),
    "wecom_broadcast": Text("企业微信群发", "WeCom broadcast"),
    "jpush": Text("App 推送", "app push"),
    "wechat_mass": Text("微信群发", "WeChat mass send"),
    "wechat_pay": Text("微信支付代金券", "WeChat Pay coupon"),
    "email": Text("电子邮件", "e-mail"),
    "sms": Text("短信", "SMS"),
}
AUDIT_ACTIONS = {
    "build": Text("圈人", "audience built"),
    "report": Text("生成报告", "report written"),
    "approve": Text("批准", "approved"),
    "reject": Text("拒绝", "refused"),
    "drift": Text("审批后比对人群", "audience compared"),
    "void": Text("人群变化过大，审批作废", "audience changed: approval void"),
    "reserve": Text("预留优惠券", "coupons reserved"),
    "enqueue": Text("进入发送队列", "queued"),
    "second messages": Text("换渠道再发", "second messages queued"),
    "pause": Text("暂停", "paused"),
    "resume": Text("恢复", "resumed"),
    "extend": Text("延长", "extended"),
    "rerun": Text("准备再次运行", "to be run again"),
    "cancel": Text("取消", "cancelled"),
}
STEPS = {
    "ask": Text("邀请评价", "ask"),
    "remind": Text("提醒一次", "remind"),
    "send": Text("活动消息", "message"),
    "send-2": Text("换渠道补发", "second message"),
    "thanks": Text("感谢评价", "thanks"),
    "survey": Text("售后回访", "survey"),
}
LAWS = {
    "partition": Text("每人恰在一处", "partition"),
    "nobody else is messaged": Text("不发给目标之外的人", "nobody else is messaged"),
    "hold-outs receive nothing": Text("对照组什么都收不到", "hold-outs receive nothing"),
    "one address once": Text("一个地址只发一次", "one address once"),
    "never twice": Text("绝不重复发送", "never twice"),
    "second only after none": Text("首条未达才发第二条", "second only after none"),
    "nothing late": Text("过期不发", "nothing late"),
    "nothing unapproved": Text("未经批准不发", "nothing unapproved"),
    "coupons": Text("券账守恒", "coupons"),
    "no empty promise": Text("券先到账再承诺", "no empty promise"),
    "preview is reality": Text("预览即现实", "preview is reality"),
}
GATES = {
    "core": Text("基础层", "core"),
    "mart": Text("集市层", "mart"),
    "push": Text("触达层", "push"),
    "campaign": Text("活动守则", "campaign laws"),
}
CHECK_STATES = {
    "passed": Text("通过", "passed"),
    "warn": Text("提醒", "warned"),
    "fail": Text("红", "red"),
}
VERDICTS = {
    "not enough data": Text("数据不足：下不了结论。", "Not enough data to say."),
    "no effect shown": Text(
        "未见效果：区间包含零。",
        "No effect shown: the interval includes zero.",
    ),
    "positive": Text(
        "有效：收到消息的人买得更多，区间在零以上。",
        "Effect shown: people who got it bought more, and the interval lies above zero.",
    ),
    "negative": Text(
        "负效果：收到消息的人反而买得更少，区间在零以下。",
        "Negative effect: people who got it bought less, and the interval lies below zero.",
    ),
}
RFM_SEGMENTS = {
    "重要价值客户": Text("重要价值客户", "Champions"),
    "重要发展客户": Text("重要发展客户", "High value, rare"),
    "重要保持客户": Text("重要保持客户", "High value, gone quiet"),
    "重要挽留客户": Text("重要挽留客户", "High value, about to be lost"),
    "一般价值客户": Text("一般价值客户", "Loyal, low value"),
    "一般发展客户": Text("一般发展客户", "New, low value"),
    "一般保持客户": Text("一般保持客户", "Low value, gone quiet"),
    "一般挽留客户": Text("一般挽留客户", "Low value, about to be lost"),
}
STAGES = {
    "none": Text("仅有身份", "none"),
    "discovered": Text("发现", "discovered"),
    "aware": Text("认知", "aware"),
    "considering": Text("考虑", "considering"),
    "choosing": Text("选择", "choosing"),
    "purchased": Text("购买", "purchased"),
    "satisfied": Text("满意", "satisfied"),
    "loyal": Text("忠诚", "loyal"),
    "advocate": Text("拥护", "advocate"),
}
_WEEKDAYS = (
    Text("周一", "Mon"), Text("周二", "Tue"), Text("周三", "Wed"), Text("周四", "Thu"), Text("周五", "Fri"),
    Text("周六", "Sat"), Text("周日", "Sun"),
)  # fmt: skip
_SYMBOLS = {"CNY": "¥", "GBP": "£", "USD": "$", "EUR": "€"}


def say(words: dict[str, Text], code: str | None) -> Text:
    """The words for a code; the code itself where there are none, a dash for nothing."""
    if code is None:
        return Text(DASH, DASH)
    return words.get(code) or Text(code, code)


def p_value(value: Any) -> str:
    """0.0300 -> "p 0.030"; what rounds to nothing is "p < 0.001", never 0."""
    return DASH if value is None else "p < 0.001" if value < 0.0005 else f"p {value:.3f}"


def number(value: Any, decimals: int = 0) -> str:
    """1234567 -> "1,234,567"; None -> a dash, never 0."""
    if value is None:
        return DASH
    text = f"{Decimal(value):,.{decimals}f}"
    return MINUS + text[1:] if text.startswith("-") else text


def signed(value: Any, decimals: int = 0) -> str:
    """A change: "+12", "−3", "±0", or a dash when there is nothing to compare with."""
    if value is None:
        return DASH
    text = number(value, decimals)
    if Decimal(value) == 0:
        return "±0"
    return text if text.startswith(MINUS) else f"+{text}"


def money(value: Any, currency: str = "CNY", decimals: int = 2) -> str:
    """1234.5 -> "¥1,234.50"."""
    if value is None:
        return DASH
    text = number(value, decimals)
    symbol = _SYMBOLS.get(currency, f"{currency} ")
    return f"{MINUS}{symbol}{text[1:]}" if text.startswith(MINUS) else f"{symbol}{text}"


def rate(value: Any, decimals: int = 1) -> str:
    """0.1234 -> "12.3 %"; None (nothing to divide by) -> a dash."""
    return DASH if value is None else f"{number(Decimal(value) * 100, decimals)} %"


def points(value: Any, decimals: int = 1) -> str:
    """A difference of two rates, in percentage points: 0.0123 -> "+1.2"."""
    return DASH if value is None else signed(round(Decimal(value) * 100, decimals), decimals)


def moment(value: datetime | None) -> str:
    """An instant on the clock of the business zone, to the minute."""
    return DASH if value is None else value.astimezone(get_settings().zone).strftime("%Y-%m-%d %H:%M")


def weekday(day: date) -> Text:
    return _WEEKDAYS[day.weekday()]


FILTERS: dict[str, Callable[..., Any]] = {
    "p_value": p_value, "number": number, "signed": signed, "money": money, "rate": rate, "points": points, "moment": moment,
    "weekday": weekday,
}  # fmt: skip
CASE_STATES = {
    "open": Text("待回复", "open"),
    "overdue": Text("逾期未回复", "overdue"),
    "answered": Text("已回复", "answered"),
    "closed": Text("已处理", "closed"),
}
TABLES = {
    "case_states": CASE_STATES,
    "message_states": MESSAGE_STATES, "reasons": REASONS, "run_states": RUN_STATES, "modes": MODES, "channels": CHANNELS,
    "steps": STEPS, "audit_actions": AUDIT_ACTIONS, "law_names": LAWS, "gates": GATES, "check_states": CHECK_STATES, "verdicts": VERDICTS, "rfm_segments": RFM_SEGMENTS, "stages": STAGES,
}  # fmt: skip
