"""One night, and the runs of campaigns around it, as plain data; and what a person should look at first.

Figures come from include/sql/console as they are; here they are only put together and compared with zero.
"""

from collections.abc import Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any, NamedTuple

from nightmarket.console.queries import Reader
from nightmarket.console.words import CHANNELS, RUN_STATES, Text, moment, money, number, rate, say
from nightmarket.warehouse import Row

DEVIATION = Decimal("0.5")  # from the same weekday's mean: worth a word
LOW_STOCK = Decimal("0.1")  # of a coupon stock's budget
ASKED_ONCE = ("youzan",)  # issuers that would give a second coupon to a repeated request
MAX_RUNS = 50
UNUSUAL_SHOWN = 8


class Notice(NamedTuple):
    """One thing to look at. Level: 'stop' = act before anything is sent, 'check' = today, 'note' = good to know."""

    level: str
    text: Text


def read_night(read: Reader, business_date: date) -> dict[str, Any]:
    """Everything about one business date and its night. Keys are the file names in include/sql/console."""
    day = {"business_date": business_date}
    span = {"first_day": business_date, "last_day": business_date}
    return {
        "business_date": business_date,
        "arrivals": read.rows("arrivals", **day),
        "rejects": read.rows("rejects", **day),
        "gates": read.rows("gates", **day),
        "gates_open": read.rows("gates_open", **day),
        "shop_day": read.rows("shop_day", **day),
        "totals_shop": read.rows("totals_shop", **day),
        "totals_people": read.row("totals_people", **day),
        "tiers": read.rows("tiers", **day),
        "tier_moves": read.rows("tier_moves", **day),
        "rfm": read.rows("rfm", **day),
        "stages": read.rows("stages", **day),
        "points_day": read.row("points_day", **day),
        "restatements": read.rows("restatements", **day),
        "kpi_table": read.rows("kpi_table", **day),
        "messages": read.rows("messages", **span),
        "messages_open": read.rows("messages_open", **day),
        "failures": read.rows("failures", **day),
        "reviews_day": read.row("reviews_day", **day),
    }


def kpi_lines(rows: Sequence[Row]) -> dict[str, Any]:
    """The KPI table for people: `unusual` signals of a day (any source), and a line per KPI of all sources together."""
    lines: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["source_id"] == "":
            empty = dict.fromkeys(("day", "week", "month", "target", "last_year"))
            line = lines.setdefault(
                row["kpi"], {"name_zh": row["name_zh"], "name_en": row["name_en"], "position": row["position"], **empty}
            )
            line[row["grain"]] = row
            if row["target"] is not None:
                line["target"] = row | {"value": row["target"]}
            if row["grain"] == "day":
                line["last_year"] = row | {"value": row["last_year_value"]}
    shown = sorted((line for line in lines.values() if _has_value(line)), key=lambda line: line["position"])
    unusual = [row for row in rows if row["is_anomaly"] and row["grain"] == "day"]
    return {"unusual": unusual[:UNUSUAL_SHOWN], "lines": shown}


def _has_value(line: dict[str, Any]) -> bool:
    return any(line[grain] and line[grain]["value"] is not None for grain in ("day", "week", "month"))


def read_runs(read: Reader, first: date, last: date) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(campaigns, journeys): the runs of these nights, newest first; journeys with their partition only."""
    rows = read.rows("runs", first_day=first, last_day=last, limit_rows=MAX_RUNS)
    campaigns = [run | read_run_parts(read, run["run_id"]) for run in rows if run["kind"] == "campaign"]
    journeys = [
        run | {"partition": read.rows("run_partition", run_id=run["run_id"])}
        for run in rows
        if run["kind"] == "journey"
    ]
    return campaigns, journeys


def read_run_parts(read: Reader, run_id: str) -> dict[str, Any]:
    """Partition, funnel, result and coupons of one run."""
    return {
        "partition": read.rows("run_partition", run_id=run_id),
        "funnel": read.rows("run_funnel", run_id=run_id),
        "result": read.row("run_result", run_id=run_id),
        "coupons": read.rows("run_coupons", run_id=run_id),
    }


def read_run_desk(read: Reader, run_id: str, as_of_at: datetime) -> dict[str, Any]:
    """What whoever operates a run looks at: how far it is, the report that was decided about, and what was done to it."""
    report = read.row("run_report", run_id=run_id)
    return {
        "progress": read.row("run_progress", run_id=run_id, now_at=as_of_at),
        "report": report["report"] if report else None,
        "audit": read.rows("run_audit", run_id=run_id),
    }


def read_pauses(read: Reader, as_of_at: datetime) -> list[Row]:
    """Sending accounts that are paused at this instant."""
    return read.rows("pauses", as_of_at=as_of_at)


def notices(night: dict[str, Any], runs: list[dict[str, Any]], pauses: list[Row]) -> list[Notice]:
    """What to look at after this night, the worst first."""
    found = [
        *_gate_notices(night),
        *_failure_notices(night["failures"], pauses),
        *_message_notices(night["messages_open"]),
        *_arrival_notices(night),
        *_run_notices(runs),
        *_shop_notices(night),
    ]
    return sorted(found, key=lambda notice: ("stop", "check", "note").index(notice.level))


def _n(count: int, noun: str) -> str:
    return f"{number(count)} {noun}{'' if count == 1 else 's'}"


def _gate_notices(night: dict[str, Any]) -> list[Notice]:
    found = []
    if not any(gate["gate"] in ("core", "mart") for gate in night["gates"]):
        found.append(
            Notice("stop", Text("质量闸门没有运行：不应发送任何消息。", "No quality gate ran: nothing should be sent."))
        )
    for check in night["gates_open"]:
        name = f"{check['table_name']} · {check['check_name']}"
        seen = check["message"] or f"{name}: {check['observed']}"
        if check["severity"] == "fail":
            found.append(Notice("stop", Text(f"闸门未通过：{seen}", f"A gate is red: {seen}")))
        else:
            found.append(Notice("check", Text(f"闸门提醒：{seen}", f"A gate warns: {seen}")))
    return found


def _failure_notices(failures: list[Row], pauses: list[Row]) -> list[Notice]:
    found = []
    for row in failures:
        zh = f"任务失败：{row['dag_id']} · {row['task_id']}（{moment(row['failed_at'])}）。{row['sentence']}"
        en = f"A task failed: {row['dag_id']} · {row['task_id']} ({moment(row['failed_at'])}). {row['sentence']}"
        found.append(Notice("check", Text(zh, en)))
    for row in pauses:
        until = moment(row["paused_until"])
        zh = f"渠道 {row['account']} 暂停发送到 {until}：{row['pause_reason']}"
        en = f"Channel {row['account']} is paused until {until}: {row['pause_reason']}"
        found.append(Notice("check", Text(zh, en)))
    return found


def _message_notices(rows: list[Row]) -> list[Notice]:
    found = []
    for row in rows:
        n, channel = number(row["message_count"]), say(CHANNELS, row["channel"])
        why_zh, why_en = (f"：{row['last_error']}", f": {row['last_error']}") if row["last_error"] else ("。", ".")
        if row["state"] == "unknown":
            zh = f"{n} 条消息结果未知，不会自动重发，要由人决定（{row['campaign']}，{channel.zh}）{why_zh}"
            en = f"{_n(row['message_count'], 'message')} with an unknown outcome, not sent again; a person decides ({row['campaign']}, {channel.en}){why_en}"
            found.append(Notice("stop", Text(zh, en)))
        elif row["state"] == "sending":
            zh = f"{n} 条消息卡在发送中，租约已过期（{row['campaign']}，{channel.zh}）；下一次投递会处理。"
            en = f"{_n(row['message_count'], 'message')} stuck in sending with an expired lease ({row['campaign']}, {channel.en}); the next delivery takes care of it."
            found.append(Notice("check", Text(zh, en)))
        elif row["state"] == "waiting_staff":
            zh = f"{n} 条消息等待员工确认（{row['campaign']}，{channel.zh}）。"
            en = (
                f"{_n(row['message_count'], 'message')} waiting for staff to confirm ({row['campaign']}, {channel.en})."
            )
            found.append(Notice("check", Text(zh, en)))
        elif row["new_count"]:
            n = number(row["new_count"])
            zh = f"{n} 条消息发送失败（{row['campaign']}，{channel.zh}）{why_zh}"
            en = f"{_n(row['new_count'], 'message')} failed ({row['campaign']}, {channel.en}){why_en}"
            found.append(Notice("check", Text(zh, en)))
    return found


def _arrival_notices(night: dict[str, Any]) -> list[Notice]:
    found = []
    if not night["arrivals"]:
        found.append(Notice("stop", Text("还没有读取过任何数据源。", "No source has ever been read.")))
    for row in night["arrivals"]:
        if not row["is_read"]:
            name = f"{row['source_id']} · {row['stream']}"
            found.append(Notice("check", Text(f"这一夜没有读取 {name}。", f"{name} was not read this night.")))
    for row in night["rejects"]:
        name, new, open_ = (
            f"{row['source_id']} · {row['stream']}",
            number(row["new_count"]),
            number(row["open_count"]),
        )
        if row["new_count"]:
            zh = f"{name} 有 {new} 条记录被退回（未修复共 {open_} 条）：{row['reason']}"
            en = f"{_n(row['new_count'], 'record')} of {name} rejected ({open_} open in all): {row['reason']}"
            found.append(Notice("check", Text(zh, en)))
        else:
            zh = f"{name} 仍有 {open_} 条以前退回的记录未修复：{row['reason']}"
            en = f"{_n(row['open_count'], 'record')} of {name} rejected earlier, still not repaired: {row['reason']}"
            found.append(Notice("note", Text(zh, en)))
    return found


def _run_notices(runs: list[dict[str, Any]]) -> list[Notice]:
    found = []
    for run in runs:
        if run["state"] in ("awaiting_approval", "failed"):
            state = say(RUN_STATES, run["state"])
            found.append(Notice("check", Text(f"{run['run_id']}：{state.zh}。", f"{run['run_id']}: {state.en}.")))
        for stock in run["coupons"]:
            if stock["unknown_count"]:
                n = number(stock["unknown_count"])
                can_repeat = stock["issuer"] not in ASKED_ONCE
                zh = f"{run['run_id']} 有 {n} 张优惠券发放结果未知，"
                zh += (
                    "会用同一请求号重试。"
                    if can_repeat
                    else "平台无法查询，请人工核对（nightmarket coupons resolve）。"
                )
                en = f"{_n(stock['unknown_count'], 'coupon')} of {run['run_id']} with an unknown outcome; "
                en += (
                    "the same request is repeated." if can_repeat else "a person decides (nightmarket coupons resolve)."
                )
                found.append(Notice("check", Text(zh, en)))
            if stock["free_count"] < LOW_STOCK * stock["budget_count"]:
                n, total = number(stock["free_count"]), number(stock["budget_count"])
                zh = f"代金券“{stock['name']}”只剩 {n} 张（共 {total} 张）。"
                en = f"Coupon stock {stock['stock_id']} has {n} of {total} pieces left."
                found.append(Notice("note", Text(zh, en)))
    return list(dict.fromkeys(found))


def _shop_notices(night: dict[str, Any]) -> list[Notice]:
    found = []
    for shop in night["shop_day"]:
        usual = shop["same_weekday_gross_amount"]
        if usual and abs(shop["gross_amount"] - usual) > DEVIATION * usual:
            change = (shop["gross_amount"] - usual) / usual
            now, before = money(shop["gross_amount"], shop["currency_code"]), money(usual, shop["currency_code"])
            zh = f"{shop['source_id']} 成交额 {now}，与近四周同一星期几的平均 {before} 相差 {rate(change, 0)}。"
            en = f"Revenue of {shop['source_id']} was {now}, {rate(change, 0)} against the last four same weekdays' mean of {before}."
            found.append(Notice("note", Text(zh, en)))
    reviews = night["reviews_day"]
    if reviews and reviews["unanswered_count"]:
        n = number(reviews["unanswered_count"])
        zh = f"近 30 天有 {n} 条差评还没有回复。"
        en = f"{_n(reviews['unanswered_count'], 'negative review')} of the last 30 days without a reply."
        found.append(Notice("check", Text(zh, en)))
    return found
