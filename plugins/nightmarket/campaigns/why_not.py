"""Why did a member get a campaign, or not? In words, zh and en: which gate, on which facts, run by run, newest first.

Before any run exists (or for another date) the audience of that date is decided as a dry run would, and forgotten again.
Addresses are never shown, only on which kinds of channel there is one.
"""

from datetime import date
from typing import Any

import psycopg

from nightmarket import dates
from nightmarket.campaigns.audience import AUDIENCES, fill_audience, freeze, why_not
from nightmarket.campaigns.config import Campaign, load_campaign, load_channels
from nightmarket.campaigns.results import MODES, REASONS
from nightmarket.warehouse import Row, connect, run_sql

RUNS_TOLD = 5


def explain_why_not(campaign: str, member_id: int, as_of: date | None = None) -> tuple[str, str]:
    """The answer in (zh, en). With `as_of` the answer of that date, whatever runs there were.

    Raises ConfigError when there is no such campaign, ValueError when there is no such member.
    """
    settings = load_campaign(campaign)
    with connect(application_name="nightmarket-why-not") as connection:
        person = _person(connection, member_id)
        rows = [] if as_of else why_not(campaign, member_id)[:RUNS_TOLD]
        told = [_of_run(connection, row, member_id) for row in rows]
        if not told:
            told = [_of_date(connection, settings, person, as_of or dates.business_date())]
    title = settings.title
    zh = [f"{title.zh}（{campaign}），会员 {member_id}", *(text for text, _ in told)]
    en = [f"{title.en} ({campaign}), member {member_id}", *(text for _, text in told)]
    if person != member_id:
        zh[0] += f"，已合并到会员 {person}"
        en[0] += f", merged into member {person}"
    return "\n".join(zh), "\n".join(en)


def _person(connection: psycopg.Connection[Row], member_id: int) -> int:
    """The member this one is today."""
    row = connection.execute(
        "SELECT coalesce(absorbed_by, member_id) AS person FROM core.members WHERE member_id = %s", (member_id,)
    ).fetchone()
    if row is None:
        raise ValueError(f"there is no member {member_id}.")
    return int(row["person"])


def _of_run(connection: psycopg.Connection[Row], row: Row, member_id: int) -> tuple[str, str]:
    mode = MODES[row["mode"]]
    zh, en = _verdict(connection, row, row["config"], member_id)
    return (
        f"* {row['run_id']}（{mode[0]}，截至 {row['as_of']}）：{zh}",
        f"* {row['run_id']} ({mode[1]}, as of {row['as_of']}): {en}",
    )


def _of_date(connection: psycopg.Connection[Row], campaign: Campaign, person: int, as_of: date) -> tuple[str, str]:
    """Decide the audience of a date into a temporary table, and read this member's row."""
    channels = load_channels()
    with connection.transaction(force_rollback=True):
        connection.execute(
            f"CREATE TEMPORARY TABLE audience_asked (LIKE {AUDIENCES} INCLUDING DEFAULTS) ON COMMIT DROP"
        )  # type: ignore[arg-type]
        fill_audience(connection, "", campaign, channels, as_of, "dry_run", None, into="audience_asked")
        row = connection.execute(
            f"SELECT a.*, push.audience_facts(ROW(a.*)::{AUDIENCES}) AS facts FROM audience_asked AS a WHERE a.member_id = %s",  # type: ignore[arg-type]
            (person,),
        ).fetchone()
        asked = row or {"state": "not in the segment", "reason": None, "facts": None}
        zh, en = _verdict(connection, {**asked, "as_of": as_of}, freeze(campaign, channels), person)
    return f"* 还没有为 {as_of} 运行过；若现在运行：{zh}", f"* no run for {as_of} yet; a run now would say: {en}"


def _verdict(connection: psycopg.Connection[Row], row: Row, config: Row, member_id: int) -> tuple[str, str]:
    if row["state"] == "not in the segment":
        return _not_in_the_segment(connection, config, member_id, row["as_of"])
    if row["state"] == "holdout":
        share = config["campaign"]["holdout_share"]
        return (
            f"对照组：按固定的哈希，这个活动留出 {float(share):.0%} 的人不发。",
            f"held out: {float(share):.0%} of this campaign get nothing, drawn by a hash that does not change.",
        )
    if row["state"] == "targeted":
        return _targeted(row)
    zh, en = REASONS[row["reason"]]
    facts = _facts(connection, row, config)
    return f"不发：{zh}。{facts[0]}", f"not sent: {en}. {facts[1]}"


def _targeted(row: Row) -> tuple[str, str]:
    where = f"{row['channel']}, {row['variant']}, {row['language']}"
    state = row.get("message_state")
    if state is None:
        return f"会收到（{where}）；消息还没有进入队列。", f"is to get it ({where}); no message is queued yet."
    error_zh, error_en = (f"：{row['last_error']}", f": {row['last_error']}") if row["last_error"] else ("", "")
    return (
        f"在名单内（{where}），消息状态 {state}{error_zh}。",
        f"is to get it ({where}); its message is {state}{error_en}.",
    )


def _facts(connection: psycopg.Connection[Row], row: Row, config: Row) -> tuple[str, str]:
    """What the gate saw, in words."""
    facts, campaign = row["facts"] or {}, config["campaign"]
    channels, kinds = ", ".join(config["channels"]), ", ".join(sorted(facts.get("addresses") or {})) or "–"
    match row["reason"]:
        case "filtered":
            rule, _, found = str(facts.get("rule")).partition(": ")
            return (
                f"规则 {rule}（活动文件）；该会员为：{found}。",
                f"The rule is {rule} of the campaign's file; the member has: {found}.",
            )
        case "no_address":
            return (
                f"活动渠道：{channels}；没有这些渠道的地址。",
                f"The campaign's channels are {channels}; there is no address for any of them.",
            )
        case "no_consent":
            return f"活动渠道：{channels}；有地址的渠道类型：{kinds}；截至当时没有有效的营销同意。", (
                f"Its channels are {channels}; there are addresses of {kinds}; no consent to marketing stood there at the time."
            )
        case "suppressed":
            found = _suppressions(connection, row, facts)
            return f"屏蔽原因：{found}。", f"Suppressed for: {found}."
        case "channel_limit":
            wrote, sent = facts.get("wrote_at") or "–", facts.get("this_month") or {}
            return (
                f"最近一次写给我们：{wrote}；本月已收：{sent}；窗口内已收：{facts.get('service_in_window') or 0}。",
                f"Last wrote to us: {wrote}; received this month: {sent}; inside the window: {facts.get('service_in_window') or 0}.",
            )
        case "capped":
            rule = config["frequency"]
            return (
                f"{rule['days']} 天内已收到 {facts.get('marketing_recent')} 条营销消息，上限 {rule['messages']} 条。",
                f"{facts.get('marketing_recent')} marketing messages in {rule['days']} days; at most {rule['messages']} are allowed.",
            )
        case "coupon_limit":
            return (
                f"已有该批次优惠券 {facts.get('coupons_of_stock')} 张。",
                f"Has had {facts.get('coupons_of_stock')} coupons of this stock.",
            )
        case "already_reached":
            return (
                f"{row['as_of']} 的另一轮已经有给他的消息。",
                f"Another run for {row['as_of']} has a message for the member.",
            )
        case "global_holdout":
            share = float(config["global_holdout"]["share"])
            return f"{share:.0%} 的会员不参加任何活动，用来衡量所有活动的总效果。", (
                f"{share:.0%} of all members are in no campaign, so that the effect of all campaigns can be measured."
            )
        case "over_size_limit":
            return (
                f"预算最多 {campaign['budget']['messages']} 条。",
                f"The budget is {campaign['budget']['messages']} messages at most.",
            )
        case _:
            return "", ""


def _suppressions(connection: psycopg.Connection[Row], row: Row, facts: dict[str, Any]) -> str:
    """Why the member's addresses are suppressed; the addresses themselves are not told."""
    addresses = list((facts.get("addresses") or {}).values())
    rows = connection.execute(
        "SELECT DISTINCT channel, reason, since::date AS since FROM push.suppressions WHERE address = ANY(%s) ORDER BY since, channel",
        (addresses,),
    ).fetchall()
    return "; ".join(f"{found['channel']}: {found['reason']} ({found['since']})" for found in rows) or "–"


def _not_in_the_segment(
    connection: psycopg.Connection[Row], config: Row, member_id: int, as_of: date
) -> tuple[str, str]:
    campaign = config["campaign"]
    known = run_sql(connection, "push/member_facts.sql", {"member_id": member_id, "as_of": as_of})[0]
    asked = ", ".join(f"{name} = {value}" for name, value in campaign["parameters"].items()) or "–"
    facts = ", ".join(f"{name} = {value}" for name, value in known.items() if value is not None) or "–"
    sql = f"include/sql/segments/{campaign['segment']}.sql"
    return (
        f"不在分群 {campaign['segment']}（{sql}）里，参数：{asked}。截至 {as_of} 我们知道：{facts}。",
        f"not in the segment {campaign['segment']} ({sql}) with {asked}. What the marts of {as_of} know: {facts}.",
    )
