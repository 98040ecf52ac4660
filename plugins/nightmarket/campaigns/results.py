"""What a run would do (dry-run report), what it did (facts for the marts, receipts), and whether the laws hold."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any

import psycopg
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from psycopg.types.json import Jsonb

from nightmarket import dates
from nightmarket.campaigns import bounces, coupons, push_receipts
from nightmarket.campaigns.audience import Plan, RunRefused, audit, frozen_template, lock_run
from nightmarket.campaigns.config import ApprovalRule, Campaign, Channel, SendWindow, load_channels
from nightmarket.campaigns.experiment import SUSPICIOUS
from nightmarket.campaigns.forecast import experiment_part
from nightmarket.campaigns.outbox import FAMILIES, REPEATABLE, SECOND_STEP, STEP
from nightmarket.campaigns.policy import run_day_findings
from nightmarket.campaigns.preview import clear_name
from nightmarket.campaigns.rendering import CompiledTemplate, RenderError, member_values, signed_link
from nightmarket.campaigns.sms_length import SmsFrame, segments
from nightmarket.channels.registry import CHANNELS
from nightmarket.privacy import mask
from nightmarket.settings import ConfigError, get_settings
from nightmarket.warehouse import Row, connect, run_sql

log = logging.getLogger(__name__)

REASONS: dict[str, tuple[str, str]] = {
    "filtered": ("不符合活动的筛选条件", "ruled out by a filter or an exclusion of the campaign"),
    "no_address": ("没有可用的联系方式", "no address on any channel of the campaign"),
    "no_consent": ("未同意接收", "no consent"),
    "suppressed": ("在屏蔽名单上（退信、拉黑）", "suppressed (bounced or blocked)"),
    "channel_limit": ("渠道的次数或时间窗口已用完", "the channel's limit for this member is used up"),
    "capped": ("近期营销消息已达上限", "received enough marketing messages lately"),
    "already_reached": ("本活动当天已触达", "already in this campaign for this day"),
    "coupon_limit": ("已领过该优惠券", "has had this coupon as often as allowed"),
    "global_holdout": ("全局对照组", "global hold-out"),
    "over_size_limit": ("超出人数上限", "over the size limit"),
    "alone_in_group": ("群发至少需要两名收件人", "a mass send takes two receivers of the same text"),
}
RECEIPT_DAYS = 60  # receipts come within days; a click this long after a call settles nothing any more
MEMBERS_SHOWN = 10  # of those who entered and left, masked
MODES = {"dry_run": ("演练", "dry run"), "test": ("测试发送", "test"), "live": ("正式发送", "live")}


class LawBroken(Exception):
    """A law does not hold after a run; one sentence with the count that breaks it. Needs a person."""


@dataclass(frozen=True)
class Law:
    """One law of a run and whether it holds; `observed` is the arithmetic in words."""

    name: str
    is_kept: bool
    observed: str

    def __str__(self) -> str:
        return f"{'kept' if self.is_kept else 'BROKEN'}: {self.name}: {self.observed}"


def dry_run_report(run_id: str) -> dict[str, Any]:
    """What this run would do, for the person who approves it; stored with the run, the same when asked again.

    Keys: sizes, excluded, channels, variants, coupons, cost, difference, findings, samples (names masked), content_hash,
    needs_approval, answer_within_hours, markdown_zh, markdown_en. A dry run is done with this; a live or test run then waits for a decision.
    Raises RunRefused when a live or test run breaks a rule (budget, coupons, a template that does not render).
    """
    with connect(application_name="nightmarket-report") as connection:
        run = lock_run(connection, run_id)
        if run["state"] != "building":
            if run["report"] is None or run["state"] == "failed":
                raise RunRefused(f"run {run_id} is {run['state']}; start a new one.")
            return dict(run["report"])
        report = _report(connection, run)
        failures = [finding for finding in report["findings"] if finding["severity"] == "fail"]
        state = "dry_run_done" if run["mode"] == "dry_run" else "failed" if failures else "awaiting_approval"
        connection.execute(
            "UPDATE push.campaign_runs SET report = %s, state = %s, needs_approval = %s WHERE run_id = %s",
            (Jsonb(report), state, report["needs_approval"], run_id),
        )
        audit(connection, "report", "report", run_id, {"state": state, "targeted": report["sizes"]["targeted"]})
    if state == "failed":
        raise RunRefused(f"run {run_id}: {failures[0]['en']}")
    return report


def _report(connection: psycopg.Connection[Row], run: Row) -> dict[str, Any]:
    config, campaign = run["config"], run["config"]["campaign"]
    rows = run_sql(
        connection, "push/audience_counts.sql", {"run_id": run["run_id"], **coupons.receiver_parameters(run)}
    )

    def total(**wanted: Any) -> int:
        return sum(row["member_count"] for row in rows if all(row[key] == value for key, value in wanted.items()))

    targeted, holdout = total(state="targeted"), total(state="holdout")
    findings: list[dict[str, str]] = []
    coupon = _coupon_part(connection, run, total(state="targeted", can_have_coupon=True), findings)
    samples = _samples(connection, run, rows, coupon, findings)
    channels = [
        {
            "channel": name,
            "messages": total(state="targeted", channel=name),
            "cost_amount": str(_billed(samples, name) * Decimal(channel["cost_amount"])),
        }
        for name, channel in config["channels"].items()
    ]
    messages_amount = sum((Decimal(row["cost_amount"]) for row in channels), Decimal(0))
    coupons_amount = Decimal(coupon["face_amount"]) if coupon else Decimal(0)
    fallback_amount = _fallback_amount(connection, run)
    budget_amount = Decimal(campaign["budget"]["amount"])
    total_amount = messages_amount + coupons_amount + fallback_amount
    if total_amount > budget_amount:
        findings.append(
            _finding(
                "fail",
                f"费用最多 {total_amount} 元，超出预算 {budget_amount} 元。",
                f"cost may reach {total_amount} yuan, over the budget of {budget_amount}.",
            )
        )
    if targeted == 0:
        findings.append(_finding("warn", "没有人会收到消息。", "nobody would get a message."))
    findings += _floor_findings(run)
    experiment = experiment_part(connection, run, rows)
    ratio = experiment["sample_ratio_p_value"]
    if run["mode"] != "test" and ratio is not None and ratio < SUSPICIOUS:
        findings.append(
            _finding(
                "warn",
                f"各组人数的比例不像随机分配的结果（p = {ratio:.1e}），请检查人群。",
                f"the arms are not as large as chance would make them (p = {ratio:.1e}); check the segment.",
            )
        )
    compared = {"run_id": run["run_id"], "shown": MEMBERS_SHOWN}
    difference = run_sql(connection, "push/audience_difference.sql", compared)[0]
    excluded = [
        {"reason": reason, "members": total(reason=reason), "zh": zh, "en": en}
        for reason, (zh, en) in REASONS.items()
        if total(reason=reason)
    ]
    plan = Plan.of(run["as_of"], SendWindow.model_validate(campaign["send_window"]), campaign["expires_after_hours"])
    zone = get_settings().zone
    report: dict[str, Any] = {
        "run_id": run["run_id"],
        "campaign": run["campaign"],
        "title": campaign["title"],
        "mode": run["mode"],
        "as_of": str(run["as_of"]),
        "sizes": {"segment": total(), "targeted": targeted, "holdout": holdout, "excluded": total(state="excluded")},
        "excluded": excluded,
        "channels": channels,
        "variants": {v["name"]: total(state="targeted", variant=v["name"]) for v in campaign["variants"]},
        "languages": {language: total(state="targeted", language=language) for language in ("zh", "en")},
        "coupons": coupon,
        "cost": {
            "messages_amount": f"{messages_amount:.2f}",
            "coupons_amount": f"{coupons_amount:.2f}",
            "fallback_amount": f"{fallback_amount:.2f}",  # when messages go on over dearer channels
            "total_amount": f"{total_amount:.2f}",
            "budget_amount": str(budget_amount),
        },
        "difference": {
            "against": difference["against"],
            "entered": difference["entered"],
            "left": difference["left_count"],
            "entered_members": [_masked(member) for member in difference["entered_ids"]],
            "left_members": [_masked(member) for member in difference["left_ids"]],
        },
        "findings": findings,
        "samples": samples,
        "experiment": experiment,
        "planned_at": f"{plan.planned_at.astimezone(zone):%Y-%m-%d %H:%M}",
        "expires_at": f"{plan.expires_at.astimezone(zone):%Y-%m-%d %H:%M}",
        "content_hash": run["content_hash"],
        "needs_approval": run["mode"] == "live" and targeted > campaign["approval"]["above"],
        "answer_within_hours": float(ApprovalRule.model_validate(campaign["approval"]).answer_within_hours),
    }
    for position, language in enumerate(("zh", "en")):
        report[f"markdown_{language}"] = _markdown(report, language, MODES[run["mode"]][position])
    return report


def _floor_findings(run: Row) -> list[dict[str, str]]:
    """A price below the floor on a day outside its big promotion: also a run that was started by hand is refused."""
    campaign = Campaign.model_validate(run["config"]["campaign"])
    plan = Plan.of(run["as_of"], campaign.send_window, campaign.expires_after_hours)
    day = plan.planned_at.astimezone(get_settings().zone).date()
    return [
        _finding("fail", f"价格低于下限：{problem}", problem)
        for problem in run_day_findings(campaign, load_channels(), day)
    ]


def _fallback_amount(connection: psycopg.Connection[Row], run: Row) -> Decimal:
    """Yuan at most beyond the first channels, when every message goes on over its dearest next one."""
    channels = run["config"]["channels"]
    row = run_sql(
        connection,
        "push/fallback_cost.sql",
        {
            "run_id": run["run_id"],
            "channels": list(channels),
            "costs": [
                Decimal(channel["cost_amount"])
                * (segments("x" * channel["max_characters"]) if CHANNELS[name].family == "sms" else 1)
                for name, channel in channels.items()
            ],
            "is_second": run["config"]["campaign"]["fallback"]["no_receipt_after_minutes"] is not None,
        },
    )[0]
    return Decimal(row["amount"])


def _billed(samples: Sequence[Mapping[str, Any]], channel: str) -> int:
    """Messages a channel bills at most: long SMS count for several."""
    return sum(sample["members"] * sample["parts"] for sample in samples if sample["channel"] == channel)


def _masked(member_id: int) -> str:
    """A member id by its end: enough to find it in a list one has, not enough to make one."""
    return f"…{member_id % 100:02d}"


def _finding(severity: str, zh: str, en: str) -> dict[str, str]:
    return {"severity": severity, "zh": zh, "en": en}


def _coupon_part(
    connection: psycopg.Connection[Row], run: Row, needed: int, findings: list[dict[str, str]]
) -> dict[str, Any] | None:
    """Coupons needed and free, asked from the issuer now; what stands in the way becomes a finding."""
    stock_id = coupons.stock_of(run)
    if stock_id is None:
        return None
    try:
        with connection.transaction():
            stock = coupons.sync_stock(connection, stock_id)
    except (RunRefused, ConfigError) as error:
        findings.append(
            _finding(
                "fail", f"无法读取优惠券批次 {stock_id}：{error}", f"coupon stock {stock_id} cannot be used: {error}"
            )
        )
        wanted = run["config"]["stocks"][stock_id]
        return {"stock": stock_id, "name": wanted["name"], "needed": needed, "free": 0, "valid_to": None,
                "amount": str(wanted["face_amount"]), "minimum": str(wanted["minimum_amount"]),
                "face_amount": str(needed * Decimal(wanted["face_amount"]))}  # fmt: skip
    free = coupons.free_count(connection, stock)
    if needed > free:
        findings.append(
            _finding(
                "fail", f"需要 {needed} 张优惠券，只剩 {free} 张。", f"{needed} coupons are needed, {free} are free."
            )
        )
    if stock["valid_to"] <= run["expires_at"]:
        findings.append(
            _finding("fail", "优惠券在发送期内就会过期。", "the coupons would expire while messages still go out.")
        )
    return {
        "stock": stock_id,
        "name": stock["name"],
        "needed": needed,
        "free": free,
        "amount": _plain(stock["face_amount"]),
        "minimum": _plain(stock["minimum_amount"]),
        "face_amount": str(needed * stock["face_amount"]),
        "valid_to": f"{coupons.valid_until(stock).astimezone(get_settings().zone):%Y-%m-%d}",
    }


def _plain(amount: Decimal) -> str:
    """30, not 30.00 and not 3E+1: as the outbox writes it."""
    return f"{amount.normalize():f}"


def _samples(
    connection: psycopg.Connection[Row],
    run: Row,
    rows: Sequence[Row],
    coupon: Mapping[str, Any] | None,
    findings: list[dict[str, str]],
) -> list[dict[str, Any]]:
    """One message per channel, variant and language as its first member would see it, with the name masked."""
    config = run["config"]
    template_of = {variant["name"]: variant["template"] for variant in config["campaign"]["variants"]}
    samples = []
    for row in rows:
        if row["state"] != "targeted":
            continue
        name, language = row["channel"], row["language"]
        source = frozen_template(config, config["channels"][name]["templates"], template_of[row["variant"]])
        person = run_sql(
            connection,
            "push/sample.sql",
            {"member_id": row["first_member_id"], "language": language, "as_of": run["as_of"]},
        )[0]
        clear = clear_name(person["name_token"], str((source.sample.get("member") or {}).get("name") or ""))
        variables = {
            "member": member_values(person["facts"] | {"tier": person["tier"]}, clear and mask("name", clear))
            if CHANNELS[name].is_personal
            else None,
            "coupon": coupons.shown(coupon, config) if coupon and row["can_have_coupon"] else None,
            "shop": {"name": config["brand"]["name"][language], "contact": config["brand"]["contact"][language]},
            "link": signed_link(config["link_base_url"], "r", "preview"),
            "unsubscribe_link": signed_link(config["link_base_url"], "u", "preview"),
        }
        try:
            compiled = CompiledTemplate(source, SmsFrame.of(name, Channel.model_validate(config["channels"][name])))
            content, parts = compiled.render(language, variables), compiled.most_parts(language, variables)
        except (RenderError, ConfigError) as error:
            findings.append(_finding("fail", f"模板无法渲染：{error}", f"a template does not render: {error}"))
            continue
        text = f"{content.subject}\n\n{content.text}" if content.subject else content.text
        samples.append({"channel": name, "variant": row["variant"], "language": language, "has_coupon": row["can_have_coupon"],
                        "members": row["member_count"], "parts": parts, "text": text})  # fmt: skip
    return samples


def _markdown(report: Mapping[str, Any], language: str, mode: str) -> str:
    environment = Environment(  # noqa: S701 - Markdown, and our own template
        loader=FileSystemLoader(get_settings().template_dir / "approval"), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    quoted = [
        {**sample, "text": "\n".join("> " + line for line in sample["text"].splitlines())}
        for sample in report["samples"]
    ]
    return environment.get_template(f"{language}.md.j2").render(
        **{**report, "title": report["title"][language], "mode": mode, "samples": quoted},
        targeted=report["sizes"]["targeted"],
        holdout=report["sizes"]["holdout"],
        excluded_total=report["sizes"]["excluded"],
        segment=report["sizes"]["segment"],
    )


def export_exposures(run_id: str) -> int:
    """Write what a live run did as facts into core (exposures, accepted messages, issued coupons); returns its exposures.

    Repeating it adds what came since. A test leaves nothing in core, a run without an accepted message neither.
    """
    with connect(application_name="nightmarket-export") as connection:
        run = lock_run(connection, run_id)
        config = run["config"]
        run_sql(
            connection,
            "push/export.sql",
            {
                "run_id": run_id,
                "channels": list(config["channels"]),
                "costs": [Decimal(channel["cost_amount"]) for channel in config["channels"].values()],
                "attribution_days": config["campaign"]["attribution_days"],
            },
        )
        row = connection.execute("SELECT count(*) AS n FROM core.exposures WHERE run_id = %s", (run_id,)).fetchone()
        assert row is not None
        return int(row["n"])


def collect_receipts() -> dict[str, int]:
    """What became of messages and coupons: delivery and failure from core.message_events, redemptions from issuers and shops.

    Also calls a run finished when its attribution window is over. Safe to repeat; counts of what changed.
    """
    mails = bounces.collect()
    with connect(application_name="nightmarket-receipts") as connection:
        pushes = push_receipts.collect(connection)
        now = dates.now()
        since = now - timedelta(days=RECEIPT_DAYS)
        counts = run_sql(connection, "push/receipts.sql", {"now_at": now, "accepted_since": since, **FAMILIES})[0]
        redeemed = coupons.collect_redemptions(connection)
        finished = connection.execute(
            """
            UPDATE push.campaign_runs AS r SET state = 'finished'
            WHERE r.state = 'sent' AND EXISTS (SELECT 1 FROM core.exposures AS x WHERE x.run_id = r.run_id)
              AND NOT EXISTS (SELECT 1 FROM core.exposures AS x WHERE x.run_id = r.run_id AND x.attribution_until > %s)
            """,
            (dates.now(),),
        ).rowcount
    result = {
        **counts,
        "pushes_received": pushes,
        **{f"mails_{kind}": count for kind, count in mails.items()},
        **{f"coupons_{name}": count for name, count in redeemed.items()},
        "runs_finished": finished,
    }
    log.info("receipts: %s", ", ".join(f"{name} {count:,}" for name, count in result.items()))
    return result


def check_laws(run_id: str) -> list[Law]:
    """The laws of a run (docs/decisions/0034-laws.md), kept in ops.gate_results under gate 'campaign'.

    Raises LawBroken with the first broken law, after all of them are written down.
    """
    with connect(application_name="nightmarket-laws") as connection:
        run = lock_run(connection, run_id)
        facts = run_sql(
            connection,
            "push/laws.sql",
            {"run_id": run_id, "repeatable": REPEATABLE, "first_step": STEP, "second_step": SECOND_STEP},
        )[0]
        laws = _laws(connection, run, facts)
        for law in laws:
            connection.execute(
                """
                INSERT INTO ops.gate_results (business_date, gate, table_name, check_name, severity, is_passed, observed,
                    message, run_id, checked_at)
                VALUES (%s, 'campaign', 'push.messages', %s, 'fail', %s, %s, %s, %s, %s)
                """,
                (
                    run["as_of"],
                    law.name,
                    law.is_kept,
                    law.observed,
                    f"law {law.name}: {law.observed}",
                    run_id,
                    dates.now(),
                ),
            )
    broken = [law for law in laws if not law.is_kept]
    if broken:
        raise LawBroken(f"run {run_id} breaks the law {broken[0].name!r}: {broken[0].observed}")
    return laws


def _laws(connection: psycopg.Connection[Row], run: Row, facts: Row) -> list[Law]:
    started = run["state"] in ("sending", "sent", "finished")
    states = ", ".join(
        f"{row['n']:,} {row['state']}"
        for row in connection.execute(
            "SELECT state, count(*) AS n FROM push.messages WHERE run_id = %s GROUP BY state ORDER BY state",
            (run["run_id"],),
        )
    )
    parts = facts["targeted_count"] + facts["holdout_count"] + facts["excluded_count"]
    laws = [
        Law(
            "partition",
            parts == facts["segment_count"] and (not started or facts["missing_count"] == 0),
            f"segment {facts['segment_count']:,} = targeted {facts['targeted_count']:,} + held out {facts['holdout_count']:,}"
            f" + excluded {facts['excluded_count']:,}; messages: {states or 'none'}; targeted without a message: {facts['missing_count']:,}",
        ),
        _none("nobody else is messaged", facts["forbidden_count"], "messages to members who were not targeted"),
        _none("hold-outs receive nothing", facts["leaked_count"], "messages at the address of a held-out member"),
        _none("one address once", facts["same_address_count"], "addresses with two messages of this run"),
        _none("never twice", facts["twice_count"], "messages with two calls that may both have gone out"),
        _none(
            "second only after none",
            facts["needless_count"],
            "second messages although the first one had arrived or is in doubt",
        ),
        _none("nothing late", facts["late_count"], "messages accepted after the run expired"),
        _none("nothing unapproved", facts["unapproved_count"], "messages of content nobody approved"),
        Law(
            "coupons",
            facts["coupon_issued_count"]
            == facts["coupon_open_count"] + facts["coupon_redeemed_count"] + facts["coupon_expired_count"]
            and facts["coupon_idless_count"] == facts["coupon_twice_count"] == facts["over_budget_count"] == 0
            and facts["coupon_codeless_count"] == 0,
            f"issued {facts['coupon_issued_count']:,} = open {facts['coupon_open_count']:,} + redeemed {facts['coupon_redeemed_count']:,}"
            f" + expired {facts['coupon_expired_count']:,}; reserved {facts['coupon_reserved_count']:,}, unknown"
            f" {facts['coupon_unknown_count']:,}, released {facts['coupon_released_count']:,}; issued without or with the same"
            f" platform id: {facts['coupon_idless_count'] + facts['coupon_twice_count']:,}; not their code:"
            f" {facts['coupon_codeless_count']:,}; stocks over budget: {facts['over_budget_count']:,}",
        ),
        _none("no empty promise", facts["empty_promise_count"], "accepted messages whose coupon was not issued"),
    ]
    if run["report"]:
        laws.append(_preview_law(connection, run, facts, started))
    return laws


def _none(name: str, count: int, what: str) -> Law:
    return Law(name, count == 0, f"{count:,} {what}")


def _preview_law(connection: psycopg.Connection[Row], run: Row, facts: Row, started: bool) -> Law:
    """Preview is reality: the report a person saw, and the last dry run of the same day and content, equal the outbox."""
    sizes = run["report"]["sizes"]
    is_kept = sizes["targeted"] == facts["targeted_count"] and (
        not started or facts["message_count"] - facts["second_count"] == sizes["targeted"]
    )
    observed = f"the report said {sizes['targeted']:,} messages, the outbox has {facts['message_count'] - facts['second_count']:,}"
    preview = connection.execute(
        """
        SELECT run_id, report, audience_checksum FROM push.campaign_runs
        WHERE campaign = %s AND as_of = %s AND mode = 'dry_run' AND config_hash = %s AND report IS NOT NULL
          AND size_limit IS NOT DISTINCT FROM %s AND created_at < %s
        ORDER BY created_at DESC LIMIT 1
        """,
        (run["campaign"], run["as_of"], run["config_hash"], run["size_limit"], run["created_at"]),
    ).fetchone()
    if preview and run["mode"] == "live" and run["rebuilt_at"] is None:  # else a later report took the dry run's place
        is_kept = is_kept and preview["audience_checksum"] == run["audience_checksum"]
        same = "the same" if preview["audience_checksum"] == run["audience_checksum"] else "another"
        observed += f"; dry run {preview['run_id']} said {preview['report']['sizes']['targeted']:,} to {same} audience"
    return Law("preview is reality", is_kept, observed)
