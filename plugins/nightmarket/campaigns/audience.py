"""Who gets a campaign, who does not and why: built once per run, frozen with its configuration, approved as one hash."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, Literal

import psycopg
from psycopg.types.json import Jsonb

from nightmarket import dates
from nightmarket.campaigns.config import Campaign, ChannelsFile, SendWindow, load_campaign, load_channels
from nightmarket.campaigns.experiment import thresholds
from nightmarket.campaigns.rendering import TemplateSource, load_template
from nightmarket.campaigns.rules import fill_rules, rules_hash
from nightmarket.channels.registry import CHANNELS
from nightmarket.settings import get_settings
from nightmarket.warehouse import Row, advisory_lock, connect, read_sql, run_sql, split_statements

log = logging.getLogger(__name__)
Mode = Literal["dry_run", "test", "live"]
NO_CAP = 1_000_000_000
WORK_MEM = "256MB"
AUDIENCES = "push.audiences"


class RunRefused(ValueError):
    """This run may not start or go on; one sentence says why. Repeating the same call does not help."""


class ApprovalVoid(RunRefused):
    """What was approved is not what stands in the run; nothing is sent."""


@dataclass(frozen=True)
class Plan:
    """The instants of a run. Everything follows from the as-of day, so that a rerun decides the same."""

    as_of_at: datetime  # first instant after the as-of day: all gates look back from here
    planned_at: datetime  # first instant after that at which sending is allowed
    planned_until: datetime  # end of that send window
    expires_at: datetime  # nothing goes out after this

    @classmethod
    def of(cls, as_of: date, window: SendWindow, expires_after_hours: int) -> "Plan":
        zone = get_settings().zone
        as_of_at = dates.day_end(as_of, zone)
        planned_at = dates.send_window(as_of_at, window.opens, window.closes, zone)
        until = datetime.combine(planned_at.astimezone(zone).date(), window.closes, tzinfo=zone)
        if until <= planned_at:  # the window goes over midnight, or is always open
            until += timedelta(days=1)
        return cls(as_of_at, planned_at, until, planned_at + timedelta(hours=expires_after_hours))


def build_run(
    campaign: str,
    as_of: date,
    mode: Mode,
    created_by: str,
    size_limit: int | None = None,
    test_members: Sequence[int] = (),
    request_id: str | None = None,
) -> str:
    """Create a run with its frozen configuration and audience; returns its run id.

    live: refused when the campaign is already live for that day, when its time is over, or when the night of that day
    is not green. dry_run: the same without consequences. test: only `test_members`, with the test coupon pool.
    `request_id` is the caller's own id (a DAG run): the same request finds its run again instead of being refused.
    Raises RunRefused, ConfigError.
    """
    settings = load_campaign(campaign)
    channels = load_channels()
    if mode == "test" and not test_members:
        raise RunRefused(f"{campaign}: a test needs test recipients (member ids).")
    plan = Plan.of(as_of, settings.send_window, settings.expires_after_hours)
    frozen = freeze(settings, channels)
    with connect(application_name="nightmarket-audience") as connection:
        advisory_lock(connection, f"run:{campaign}:{as_of}")
        existing = _same_request(connection, request_id)
        if existing:
            return existing
        if mode == "live":
            _refuse_live(connection, settings, as_of, plan)
        run_id = _new_run_id(connection, campaign, as_of, mode)
        connection.execute(
            """
            INSERT INTO push.campaign_runs (run_id, campaign, mode, as_of, as_of_at, config, config_hash, size_limit, state,
                needs_approval, created_by, request_id, created_at, expires_at)
            VALUES (%s, %s, %s, %s, %s, %s, %s, %s, 'building', %s, %s, %s, %s, %s)
            """,
            (run_id, campaign, mode, as_of, plan.as_of_at, Jsonb(frozen), config_hash(frozen), size_limit, mode == "live",
             created_by, request_id, dates.now(), plan.expires_at),
        )  # fmt: skip
        fill_audience(connection, run_id, settings, channels, as_of, mode, size_limit, test_members)
        checksum = audience_checksum(connection, run_id)
        connection.execute(
            "UPDATE push.campaign_runs SET audience_checksum = %s, content_hash = %s WHERE run_id = %s",
            (checksum, content_hash(checksum, config_hash(frozen)), run_id),
        )
        audit(connection, created_by, "build", run_id, {"mode": mode, "audience_checksum": checksum})
    log.info("run %s built: audience %s", run_id, checksum[:12])
    return run_id


def record_decision(run_id: str, approved: bool, by: str, reason: str, content_hash: str) -> None:
    """Write down a person's (or, below the approval limit, the policy's) yes or no to exactly `content_hash`.

    A refusal ends the run: what is not sent yet never is. When the question was about a change of a run that has begun
    to send (operate.extend), a yes lets it go on. Repeating the same decision changes nothing.
    Raises ApprovalVoid when the run's audience, templates or configuration are not what that hash stands for, and
    RunRefused when the run is not waiting for a decision, or when the campaign names who may say yes and `by` is not among them.
    """
    with connect(application_name="nightmarket-approval") as connection:
        run = lock_run(connection, run_id)
        if run["state"] in ("approved", "sending") and approved and run["approved_hash"] == content_hash:
            return
        if run["state"] in ("rejected", "cancelled") and not approved:
            return
        if run["state"] != "awaiting_approval":
            raise RunRefused(f"run {run_id} is {run['state']}; it does not wait for a decision.")
        if approved:
            current = current_content_hash(connection, run)
            if content_hash != current:
                raise ApprovalVoid(
                    f"run {run_id}: the approval is for content {content_hash[:12]}, the run holds {current[:12]}; make a new dry run."
                )
            allowed = run["config"]["campaign"]["approval"].get("by")
            if run["needs_approval"] and allowed and by not in allowed:
                raise RunRefused(
                    f"run {run_id}: only {', '.join(allowed)} may approve it (approval.by), not {by}; clear the approval to ask again."
                )
        elif run["previous_config"]:
            _take_back(connection, run, by, reason)
            return
        connection.execute(
            """
            UPDATE push.campaign_runs
            SET state = %s, approved_hash = %s, approved_by = %s, approved_at = %s, decision_reason = %s, previous_config = NULL
            WHERE run_id = %s
            """,
            (
                ("sending" if run["previous_config"] else "approved") if approved else "rejected",
                content_hash if approved else None,
                by,
                dates.now(),
                reason,
                run_id,
            ),
        )
        audit(
            connection,
            by,
            "approve" if approved else "reject",
            run_id,
            {"reason": reason, "content_hash": content_hash},
        )


def _take_back(connection: psycopg.Connection[Row], run: Row, by: str, reason: str) -> None:
    """A change of a run that sends was refused: it holds again what was approved, and nothing more of it goes out."""
    from nightmarket.campaigns.outbox import cancel_on

    count = cancel_on(connection, run["run_id"])
    audit(connection, by, "reject", run["run_id"], {"reason": reason, "of": "a change", "messages": count})


def freeze(campaign: Campaign, channels: ChannelsFile) -> dict[str, Any]:
    """Everything that decides what is sent to whom, as JSON: what was approved is what gets rendered, whatever files say later."""
    folders = sorted({channels.channels[name].templates for name in campaign.channels})
    names = sorted({variant.template for variant in campaign.variants})
    segment = read_sql(f"segments/{campaign.segment}.sql")
    return {
        "campaign": campaign.model_dump(mode="json"),
        **freeze_channels(channels, campaign.route(channels)),
        "stocks": {
            name: channels.coupon_stocks[name].model_dump(mode="json")
            for name in ((campaign.coupon.stock, campaign.coupon.test_stock) if campaign.coupon else ())
        },
        "templates": {
            f"{folder}/{name}": load_template(folder, name).as_json() for folder in folders for name in names
        },
        "segment_sha256": hashlib.sha256(segment.encode()).hexdigest(),
        "audience_sha256": hashlib.sha256(read_sql("push/audience.sql").encode()).hexdigest(),
        "rules_sha256": rules_hash(campaign),
    }


def freeze_channels(channels: ChannelsFile, names: Sequence[str]) -> dict[str, Any]:
    """The part of channels.yaml that a run depends on."""
    return {
        "channels": {name: channels.channels[name].model_dump(mode="json") for name in names},
        "brand": channels.brand.model_dump(mode="json"),
        "link_base_url": channels.link_base_url,
        "home_url": channels.home_url,
        "frequency": channels.frequency.model_dump(mode="json"),
        "global_holdout": channels.global_holdout.model_dump(mode="json"),
    }


def frozen_template(config: Mapping[str, Any], folder: str, name: str) -> TemplateSource:
    return TemplateSource.from_json(folder, name, config["templates"][f"{folder}/{name}"])


def config_hash(frozen: Mapping[str, Any]) -> str:
    text = json.dumps(frozen, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def content_hash(audience: str, config: str) -> str:
    """What an approval is for: who (audience checksum) gets what (configuration with templates)."""
    return hashlib.sha256(f"{audience}\n{config}".encode()).hexdigest()


def audience_checksum(connection: psycopg.Connection[Row], run_id: str) -> str:
    """sha256 over the sorted rows of push.audiences: state, arm, channel, language, address and the next channels."""
    row = run_sql(connection, "push/audience_checksum.sql", {"run_id": run_id})[0]
    return str(row["checksum"])


def current_content_hash(connection: psycopg.Connection[Row], run: Row) -> str:
    """The hash of what stands in the database now; equals the run's content_hash unless somebody changed rows."""
    return content_hash(audience_checksum(connection, run["run_id"]), config_hash(run["config"]))


def lock_run(connection: psycopg.Connection[Row], run_id: str) -> Row:
    """The run's row, locked until the transaction ends. Raises RunRefused when there is none."""
    row = connection.execute("SELECT * FROM push.campaign_runs WHERE run_id = %s FOR UPDATE", (run_id,)).fetchone()
    if row is None:
        raise RunRefused(f"there is no run {run_id!r}.")
    return row


def audit(
    connection: psycopg.Connection[Row], actor: str, action: str, subject: str, detail: Mapping[str, Any]
) -> None:
    """One line of push.audit_log, in the caller's transaction."""
    connection.execute(
        "INSERT INTO push.audit_log (occurred_at, actor, action, subject, detail) VALUES (%s, %s, %s, %s, %s)",
        (dates.now(), actor, action, subject, Jsonb(dict(detail))),
    )


def why_not(campaign: str, member_id: int) -> list[Row]:
    """What happened to a member in the runs of a campaign, newest first: state, the gate that stopped it, and its facts."""
    with connect() as connection:
        return run_sql(connection, "push/why_not.sql", {"campaign": campaign, "member_id": member_id})


def require_green(connection: psycopg.Connection[Row], business_date: date) -> None:
    """Raise RunRefused unless the quality gates of that night were run and are green."""
    gates = run_sql(connection, "push/night_state.sql", {"business_date": business_date})[0]
    if gates["checked_count"] == 0:
        raise RunRefused(
            f"the night of {business_date} has not been checked by the quality gates; nothing is sent on unchecked data."
        )
    if gates["failed_checks"]:
        raise RunRefused(f"the night of {business_date} is red ({gates['failed_checks']}); nothing is sent.")


def _same_request(connection: psycopg.Connection[Row], request_id: str | None) -> str | None:
    if request_id is None:
        return None
    row = connection.execute("SELECT run_id FROM push.campaign_runs WHERE request_id = %s", (request_id,)).fetchone()
    return str(row["run_id"]) if row else None


def _refuse_live(connection: psycopg.Connection[Row], campaign: Campaign, as_of: date, plan: Plan) -> None:
    live = connection.execute(
        """
        SELECT run_id, state FROM push.campaign_runs
        WHERE campaign = %s AND as_of = %s AND mode = 'live' AND state NOT IN ('rejected', 'cancelled', 'failed')
        """,
        (campaign.campaign, as_of),
    ).fetchone()
    if live:
        raise RunRefused(f"{campaign.campaign} is already live for {as_of}: run {live['run_id']} is {live['state']}.")
    if dates.now() >= plan.expires_at:
        raise RunRefused(
            f"{campaign.campaign} for {as_of} expired at {plan.expires_at:%Y-%m-%d %H:%M}; use a later as-of date."
        )
    require_green(connection, as_of)


def _new_run_id(connection: psycopg.Connection[Row], campaign: str, as_of: date, mode: Mode) -> str:
    """`<campaign>@<as_of>` for the first live run, with `#n` for dry runs, tests and repeats after a refusal."""
    base = f"{campaign}@{as_of}"
    used = connection.execute(
        "SELECT count(*) AS runs, coalesce(bool_or(run_id = %(base)s), false) AS is_taken FROM push.campaign_runs"
        " WHERE campaign = %(campaign)s AND as_of = %(as_of)s",
        {"base": base, "campaign": campaign, "as_of": as_of},
    ).fetchone()
    assert used is not None
    return base if mode == "live" and not used["is_taken"] else f"{base}#{used['runs'] + 1}"


def fill_audience(
    connection: psycopg.Connection[Row],
    run_id: str,
    campaign: Campaign,
    channels: ChannelsFile,
    as_of: date,
    mode: Mode,
    size_limit: int | None,
    test_members: Sequence[int] = (),
    into: str = AUDIENCES,
) -> None:
    """Decide about every member of the segment, as of the date, and write the rows for `run_id` into the table `into`.

    Leaves the temporary tables audience_segment, audience_rules and audience_decided for the rest of the transaction, and a
    larger work_mem: everybody at once is hashed, not sorted through files.
    """
    plan = Plan.of(as_of, campaign.send_window, campaign.expires_after_hours)
    _fill_segment(connection, campaign, as_of, plan, test_members if mode == "test" else None)
    connection.execute(f"SET LOCAL work_mem = '{WORK_MEM}'")
    parameters = _parameters(run_id, campaign, channels, as_of, plan, mode, size_limit)
    connection.execute(
        "CREATE TEMPORARY TABLE audience_rules (member_id bigint NOT NULL, rule text NOT NULL) ON COMMIT DROP"
    )
    if mode != "test":
        fill_rules(connection, campaign, as_of, parameters)
    for statement in split_statements(read_sql("push/audience.sql")):
        connection.execute(statement.replace(f"INSERT INTO {AUDIENCES} ", f"INSERT INTO {into} ", 1), parameters)  # type: ignore[arg-type]
    # Without figures of what was just written the next statements expect one row, and join a million with a million by loops.
    # Only of the columns that statements ask for: figures of wide ones cost more than the rest together.
    connection.execute(f"ANALYZE {into} (run_id, member_id, state, reason, variant, channel, language)")  # type: ignore[arg-type]


def _fill_segment(
    connection: psycopg.Connection[Row], campaign: Campaign, as_of: date, plan: Plan, test_members: Sequence[int] | None
) -> None:
    """The temporary table audience_segment: the segment's members, or exactly the test recipients."""
    if test_members is not None:
        parameters: dict[str, Any] = {"member_ids": list(set(test_members))}
        query = "SELECT member_id, '{}' FROM core.members WHERE member_id = ANY(%(member_ids)s) AND absorbed_by IS NULL"
    else:
        parameters = {**campaign.segment_parameters, "business_date": as_of, "as_of_at": plan.as_of_at}
        *before, query = split_statements(read_sql(f"segments/{campaign.segment}.sql"))
        for statement in before:
            connection.execute(statement, parameters)  # type: ignore[arg-type]
    # Filled before it has its key: a million index entries are sorted once, and the segment may be read by several processes.
    connection.execute(
        "CREATE TEMPORARY TABLE audience_segment ON COMMIT DROP AS"
        f" SELECT s.member_id::bigint, s.facts::jsonb FROM (\n{query}\n) AS s (member_id, facts)",  # type: ignore[arg-type]
        parameters,
    )
    try:
        connection.execute("ALTER TABLE audience_segment ADD PRIMARY KEY (member_id), ALTER COLUMN facts SET NOT NULL")
    except psycopg.errors.UniqueViolation as error:
        raise RunRefused(f"segment {campaign.segment!r} returns a member twice: {error.diag.message_detail}") from None
    connection.execute("ANALYZE audience_segment (member_id)")
    if test_members is not None:
        known = connection.execute("SELECT member_id FROM audience_segment").fetchall()
        missing = sorted(set(test_members) - {row["member_id"] for row in known})
        if missing:
            raise RunRefused(f"test recipient {missing[0]} is not a member (or was merged into another one).")


def _parameters(
    run_id: str,
    campaign: Campaign,
    channels: ChannelsFile,
    as_of: date,
    plan: Plan,
    mode: Mode,
    size_limit: int | None,
) -> dict[str, Any]:
    names = campaign.route(channels)
    chosen = [channels.channels[name] for name in names]
    groups = [name for name in names if CHANNELS[name].is_group]
    is_test = mode == "test"
    stock = (campaign.coupon.test_stock if is_test else campaign.coupon.stock) if campaign.coupon else None
    accounts = [
        channel.account for name, channel in zip(names, chosen, strict=True) if CHANNELS[name].family == "wechat"
    ]
    return {
        "run_id": run_id,
        "campaign": campaign.campaign,
        "as_of": as_of,
        "purpose": campaign.purpose,
        "as_of_at": plan.as_of_at,
        "planned_at": plan.planned_at,
        "planned_until": plan.planned_until,
        "month_start": dates.day_start(
            plan.planned_at.astimezone(get_settings().zone).date().replace(day=1), get_settings().zone
        ),
        "account": accounts[0] if accounts else "",
        "channels": list(names),
        "families": [CHANNELS[name].family for name in names],
        "consent_kinds": [channel.consent for channel in chosen],
        "month_limits": [channel.rule_value("month_messages") for channel in chosen],
        "window_hours": [channel.rule_value("window_hours") for channel in chosen],
        "window_limits": [channel.rule_value("window_messages") or NO_CAP for channel in chosen],
        "group_channel": groups[0] if groups else "",
        "can_fall_back": campaign.fallback.on_refusal or campaign.fallback.no_receipt_after_minutes is not None,
        "cap_messages": NO_CAP if is_test else channels.frequency.messages,
        "cap_since": plan.as_of_at - timedelta(days=channels.frequency.days),
        "stock_id": stock,
        "coupon_limit": channels.coupon_stocks[stock].per_member_limit if stock else None,
        "coupon_needs_openid": stock is not None and channels.coupon_stocks[stock].receiver_kind == "wechat_openid",
        "global_salt": channels.global_holdout.salt,
        "global_share": 0.0 if is_test else float(channels.global_holdout.share),
        "salt": campaign.salt,
        "holdout_share": 0.0 if is_test else float(campaign.holdout_share),
        "variants": [variant.name for variant in campaign.variants],
        "bounds": thresholds([variant.share for variant in campaign.variants]),
        "max_messages": min(size_limit or NO_CAP, campaign.budget.messages),
        "default_language": campaign.default_language,
    }
