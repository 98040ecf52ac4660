"""What a campaign run achieved: its figures while it runs, and the report that is kept when its attribution window is closed.

The whole run against its hold-out is a row of mart.campaign_results and is only read here; variants, the split of the members
and the comparison with earlier runs are computed by nightmarket.campaigns.experiment. No address, name or token is read.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from psycopg.types.json import Jsonb

from nightmarket import __version__, dates
from nightmarket.campaigns.audience import RunRefused, audit, lock_run
from nightmarket.campaigns.experiment import (
    SUSPICIOUS,
    Arm,
    change_of_uplift,
    compare_variants,
    minimum_detectable_uplift,
    sample_ratio,
)
from nightmarket.console import charts, words
from nightmarket.console.night import read_run_parts
from nightmarket.console.queries import Reader, reader
from nightmarket.console.words import Text
from nightmarket.marts import load_kpis
from nightmarket.privacy import EMAIL_IN_TEXT, PHONE_IN_TEXT
from nightmarket.report import environment, plain, write_page
from nightmarket.settings import get_settings
from nightmarket.warehouse import Row, connect, run_sql

log = logging.getLogger(__name__)

TARGETS = {  # of a campaign file; what each is measured by
    "uplift_rate": Text("转化提升（百分点）", "uplift of the buying rate (points)"),
    "delivered_rate": Text("送达率", "delivered"),
    "opened_rate": Text("打开率", "opened"),
    "clicked_rate": Text("点击率", "clicked"),
    "redemption_rate": Text("核销率", "coupons redeemed"),
    "cost_per_order_amount": Text("每单成本（至多）", "cost per order (at most)"),
}
OUTCOMES = {
    "pass": Text("达标", "pass"),
    "fail": Text("未达标", "fail"),
    "not enough data": Text("数据不足", "not enough data"),
}
EFFECTS = {  # the verdicts of mart.campaign_results in short
    "positive": Text("有效", "effect shown"),
    "no effect shown": Text("未见效果", "no effect shown"),
    "negative": Text("负效果", "negative effect"),
    "not enough data": Text("数据不足", "not enough data"),
}
WAYS = {
    "shared_address": Text("本轮消息发到了他们的地址", "a message of this run went to an address of theirs"),
    "same_campaign": Text("同一活动的其他轮次", "another run of this campaign"),
    "other_campaign": Text("其他活动的营销消息", "marketing of another campaign"),
    "passed_on": Text("打开了别人转发的链接", "opened a link that was passed on"),
    "two_names": Text("两个身份合并：一组一个", "two members in two arms turned out to be one"),
}
AGAINST = {"last_run": Text("上一轮", "the last run"), "last_year": Text("去年同期", "last year")}
INSTANTS = ("approved_at", "attribution_until", "created_at", "expires_at", "as_of_at", "finished_at", "reported_at")


def collect(read: Reader, run_id: str) -> dict[str, Any]:
    """Every figure of a run, JSON-able: what stands in the marts now. Raises ValueError when there is no such run."""
    run, plan = read.row("run", run_id=run_id), read.row("run_plan", run_id=run_id)
    if run is None or plan is None:
        raise ValueError(f"there is no run {run_id!r}; the console's page Runs lists them.")
    parts = read_run_parts(read, run_id)
    limits = load_kpis().experiment
    arms = {(row["arm"], row["variant"]): row for row in parts["funnel"]}
    treated, held_out = arms.get(("treatment", "")), arms.get(("holdout", ""))
    earlier = read.rows("run_earlier", run_id=run_id)
    facts = {
        "run": run,
        **parts,
        "owner": plan["owner"],
        "forecast": plan["forecast"],
        "targets": _targets(plan["targets"], treated, parts["result"], limits.min_arm_members),
        "split": _split(plan, read.rows("run_split", run_id=run_id)),
        "variants": [
            asdict(found)
            for found in compare_variants(
                {variant: _arm(row) for (arm, variant), row in arms.items() if arm == "treatment" and variant},
                _arm(held_out), limits.min_arm_members, limits.min_buyers,
            )
        ],
        "detectable_rate": _detectable(parts["result"]),
        "weighty_buyers": min(_arm(treated).weighty_buyers, _arm(held_out).weighty_buyers),
        "is_revenue_rough": min(_arm(treated).weighty_buyers, _arm(held_out).weighty_buyers) < limits.min_buyers,
        "costs": read.rows("run_costs", run_id=run_id),
        "earlier": [_compared(parts["result"], row) for row in earlier],
        "leaks": read.run("push/leaks.sql", run_id=run_id)["ways"],
    }  # fmt: skip
    figures: dict[str, Any] = plain(facts)
    return figures


def _arm(row: Row | None) -> Arm:
    """A row of the funnel as the statistics want it; an arm without members when there is none."""
    if row is None:
        return Arm(0, 0, 0.0, 0.0)
    net = row["revenue_amount"] - row["refund_amount"]
    return Arm(row["member_count"], row["buyer_count"], float(net), float(row["net_revenue_square_sum"]))


def _split(plan: Row, rows: Sequence[Row]) -> dict[str, Any]:
    """The arms as they came out beside what the shares ask for, and how likely chance does that (None: too few members)."""
    shares = {variant["name"]: Decimal(str(variant["share"])) for variant in plan["variants"] or ()}
    counts = {(row["arm"], row["variant"]): row["member_count"] for row in rows}
    held_out, cut = counts.get(("holdout", ""), 0), counts.get(("cut", ""), 0)
    variants = {name: counts.get(("treatment", name), 0) for name in shares}
    share = plan["holdout_share"] or Decimal(0)
    treated = sum(variants.values())
    lines = [{"arm": "holdout", "member_count": held_out, "expected_count": (held_out + treated + cut) * share}]
    lines += [
        {"arm": name, "member_count": members, "expected_count": treated * shares[name]}
        for name, members in variants.items()
    ]
    p_value = sample_ratio(held_out, variants, share, shares, cut)
    return {"arms": lines, "p_value": p_value, "is_suspicious": p_value is not None and p_value < SUSPICIOUS}


def _detectable(result: Row | None) -> float | None:
    """The effect that this run could have shown, with the rate its hold-out had in the end; None: not knowable."""
    if result is None or not result["holdout_count"]:
        return None
    rate = float(result["holdout_rate"])
    return minimum_detectable_uplift(result["treated_count"], result["holdout_count"], rate)


def _targets(
    targets: Mapping[str, Any], treated: Row | None, result: Row | None, min_members: int
) -> list[dict[str, Any]]:
    """Each target of the campaign file with the value reached and pass, fail or not enough data."""
    lines = []
    for name in TARGETS:
        if targets.get(name) is None:
            continue
        target = Decimal(str(targets[name]))
        if name == "uplift_rate":
            value, outcome = _uplift_target(target, result)
        else:
            value, outcome = _funnel_target(name, target, treated, min_members)
        lines.append({"target": name, "wanted": target, "value": value, "outcome": outcome})
    return lines


def _uplift_target(target: Decimal, result: Row | None) -> tuple[Decimal | None, str]:
    """Passed when the estimate reaches the line and an effect is shown; failed when it does not reach it."""
    if result is None or result["verdict"] == "not enough data":
        return None, "not enough data"
    value = result["uplift_rate"]
    if value < target:
        return value, "fail"
    return value, "pass" if result["verdict"] == "positive" else "not enough data"


def _funnel_target(name: str, target: Decimal, treated: Row | None, min_members: int) -> tuple[Decimal | None, str]:
    if treated is None or treated["member_count"] < min_members:
        return None, "not enough data"
    if name == "cost_per_order_amount":
        value = treated["cost_amount"] / treated["order_count"] if treated["order_count"] else None
        return value, "not enough data" if value is None else "pass" if value <= target else "fail"
    value = treated[name]
    return value, "not enough data" if value is None else "pass" if value >= target else "fail"


def _compared(result: Row | None, row: Row) -> dict[str, Any]:
    """An earlier run with the change of the uplift since, where both runs can say something."""
    usable = all(side is not None and side["verdict"] != "not enough data" for side in (result, row))
    change = dict(zip(("change_rate", "change_low_rate", "change_high_rate"), change_of_uplift(result, row), strict=True)) if usable and result else None  # fmt: skip
    return {**row, "change": change}


# --------------------------------------------------------------------------------------------------------- kept
def write_due() -> list[str]:
    """Make the report of every run whose window is closed in the marts and that has none yet; returns their run ids."""
    with connect(application_name="nightmarket-retrospective") as connection:
        due = [row["run_id"] for row in run_sql(connection, "push/retrospectives_due.sql", {})]
    for run_id in due:
        log.info("retrospective of %s: %s", run_id, write(run_id))
    return due


def write(run_id: str) -> Path:
    """Make, keep and file the report of a run; a report that is there already keeps its figures and is only filed again.

    Raises ValueError when the run is not there or its window is not closed in the marts.
    """
    with reader() as read:
        kept = read.row("retrospective", run_id=run_id)
        facts = kept["facts"] if kept else collect(read, run_id)
        learnings = read.rows("learnings", run_id=run_id)
    result = facts["result"]
    if result is None or not result["is_window_closed"]:
        raise ValueError(
            f"the attribution window of {run_id} is not closed in the marts; `nightmarket results` shows what is known so far."
        )
    made_at = kept["made_at"] if kept else dates.now()
    html = render(facts, learnings, made_at)
    with connect(application_name="nightmarket-retrospective") as connection:
        lock_run(connection, run_id)
        connection.execute(
            "INSERT INTO push.retrospectives (run_id, business_date, made_at, facts, html)"
            " SELECT %(run)s, c.business_date, %(at)s, %(facts)s, %(html)s FROM mart.campaign_results AS c WHERE c.run_id = %(run)s"
            " ON CONFLICT (run_id) DO UPDATE SET html = excluded.html",
            {"run": run_id, "at": made_at, "facts": Jsonb(facts), "html": html},
        )
    return write_page(report_path(run_id), html)


def report_path(run_id: str) -> Path:
    """var/reports/campaign-<run id>.html, with what a file name cannot hold as dashes."""
    return get_settings().var / "reports" / f"campaign-{re.sub(r'[^A-Za-z0-9._@-]', '-', run_id)}.html"


def learn(run_id: str, learning: str, said_by: str) -> Path | None:
    """Write down what somebody learned from a run; its report, where there is one, says it from then on.

    Returns the report's path, or None while there is no report. Raises ValueError when there is no such run, when the text
    is empty, or when it holds a phone number or an e-mail address.
    """
    text = learning.strip()
    if not text:
        raise ValueError("a learning is a sentence; this one is empty.")
    if PHONE_IN_TEXT.search(text) or EMAIL_IN_TEXT.search(text):
        raise ValueError(
            "this learning holds a phone number or an e-mail address; reports name no person. Write it without."
        )
    with connect(application_name="nightmarket-retrospective") as connection:
        try:
            lock_run(connection, run_id)
        except RunRefused as error:
            raise ValueError(str(error)) from None
        connection.execute(
            "INSERT INTO push.learnings (run_id, learning, said_by, said_at) VALUES (%s, %s, %s, %s)",
            (run_id, text, said_by, dates.now()),
        )
        audit(connection, said_by, "learn", run_id, {"characters": len(text)})
        row = connection.execute("SELECT FROM push.retrospectives AS p WHERE p.run_id = %s", (run_id,)).fetchone()
    return write(run_id) if row is not None else None


# --------------------------------------------------------------------------------------------------------- shown
def render(facts: Mapping[str, Any], learnings: Sequence[Row], made_at: datetime) -> str:
    """The report as one HTML text in both languages: style and charts inside, nothing loaded from anywhere."""
    facts = _timed(facts)
    run = {**facts["run"], **{name: facts[name] for name in ("partition", "funnel", "result", "coupons")}}
    name = run["run_id"]
    return environment().get_template("retrospective.html").render(
        **{**facts, "run": run},
        learnings=learnings, made_at=made_at, version=__version__, target_words=TARGETS, outcomes=OUTCOMES, effects=EFFECTS,
        ways=WAYS, against=AGAINST, uplift_charts={name: charts.uplift(name, facts["result"])},
        effect_chart=charts.effects(f"{name}-effects", _effect_lines(facts)),
    )  # fmt: skip


def in_words(run_id: str, language: str = "en") -> str:
    """The result of a run as text: the kept report's figures where there is one, else what is known so far."""
    with reader() as read:
        kept = read.row("retrospective", run_id=run_id)
        facts = kept["facts"] if kept else collect(read, run_id)
        learnings = read.rows("learnings", run_id=run_id)
    return environment().get_template("retrospective.txt").render(
        **_timed(facts), learnings=learnings, made_at=kept["made_at"] if kept else None, target_words=TARGETS, outcomes=OUTCOMES,
        effects=EFFECTS, ways=WAYS, against=AGAINST, t=lambda zh, en: zh if language == "zh" else en,
        w=lambda table, code: getattr(words.say(table, code), language),
    )  # fmt: skip


def _effect_lines(facts: Mapping[str, Any]) -> list[tuple[str, float, float, float]]:
    """(label, low, middle, high): this run by its date, its variants, earlier runs; only who has enough data."""
    lines = [(str(facts["run"]["as_of"]), facts["result"])] if facts["result"] else []
    lines += [(row["variant"], row) for row in facts["variants"]] if len(facts["variants"]) > 1 else []
    lines += [(str(row["as_of"]), row) for row in facts["earlier"]]
    return [
        (label, float(row["uplift_low_rate"]), float(row["uplift_rate"]), float(row["uplift_high_rate"]))
        for label, row in lines
        if row["verdict"] != "not enough data"
    ]


def _timed(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts with the instants of the run as instants again: JSON has none."""
    run = dict(facts["run"])
    run |= {name: datetime.fromisoformat(run[name]) for name in INSTANTS if run.get(name)}
    return {**facts, "run": run}
