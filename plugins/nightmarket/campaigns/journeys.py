"""Journeys: what is due is computed from tables every night, so a missed night is caught up, once, without piling up.

Review collection: a signed order without a review gets one request and one reminder, each with its own message key for
ever; any review on any line ends it, and is thanked for and rewarded, whatever it says. Nobody reads the rating to decide
whom to ask, to thank or to reward; only a service case looks at it (campaigns/cases.py).
"""

import logging
from collections import Counter
from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from nightmarket import dates
from nightmarket.campaigns.audience import (
    Plan,
    RunRefused,
    audience_checksum,
    audit,
    config_hash,
    content_hash,
    freeze_channels,
    lock_run,
    require_green,
)
from nightmarket.campaigns.config import ChannelsFile, ReviewJourney, load_channels, load_journey
from nightmarket.campaigns.rendering import load_template
from nightmarket.channels.registry import CHANNELS
from nightmarket.channels.wechat_subscribe import WeChatSubscribe
from nightmarket.grants import use_points
from nightmarket.settings import get_settings
from nightmarket.sources import load_sources
from nightmarket.warehouse import Row, advisory_lock, connect, run_sql

log = logging.getLogger(__name__)
REVIEWS = "followup_reviews"
# step of a message -> what was done
STEPS = {"ask": "asked", "remind": "reminded", "thanks": "thanked", "survey": "surveyed"}
WITH_SURVEY = ("thanks", "survey")  # the link of these messages leads to a survey


def run_reviews(business_date: date) -> dict[str, Any]:
    """Reward the reviews that came in, and put what is due at the end of `business_date` into the outbox.

    Returns run_id, asked, reminded, thanked, surveyed, rewarded, excluded (reason: members) and skipped (why nothing was
    looked for, or ""). Repeating it adds only what became due since. Raises RunRefused when the night is not green or when
    more messages or rewards are due than the journey's size guard allows; then nothing is queued or given.
    """
    journey, channels = load_journey(REVIEWS), load_channels()
    plan = Plan.of(business_date, journey.send_window, journey.expires_after_hours)
    run_id = f"{journey.journey}@{business_date}"
    with connect(application_name="nightmarket-journeys") as connection:
        advisory_lock(connection, f"run:{journey.journey}:{business_date}")
        _open_run(connection, run_id, journey, channels, business_date, plan)
        if dates.now() >= plan.expires_at:
            skipped = f"requests for {business_date} would have had to go out by {plan.expires_at:%Y-%m-%d %H:%M}"
            log.warning("%s: %s", run_id, skipped)
            due: list[Row] = []
            rewarded = 0
        else:
            skipped = ""
            require_green(connection, business_date)
            parameters = _parameters(run_id, journey, channels, plan)
            rewarded = _reward(connection, run_id, journey, parameters)
            due = run_sql(connection, "push/review_requests.sql", parameters)
        targeted = [row for row in due if row["reason"] is None]
        if len(targeted) > journey.max_messages:
            raise RunRefused(
                f"{run_id}: {len(targeted):,} messages about reviews are due, more than the guard of {journey.max_messages:,}"
                f" in include/config/journeys/{journey.journey}.yaml; nothing is queued."
            )
        queued = _queue(connection, run_id, journey, channels, plan, due)
        _close_building(connection, run_id, bool(queued))
        steps = Counter(row["step"] for row in queued)
        excluded = Counter(row["reason"] for row in due if row["reason"])
        done = {name: steps[step] for step, name in STEPS.items()} | {"rewarded": rewarded}
        audit(connection, journey.journey, "enqueue", run_id, done)
    words = ", ".join(f"{count:,} {name}" for name, count in done.items())
    log.info("%s: %s, not reachable: %s", run_id, words, dict(excluded) or "none")
    return {"run_id": run_id, **done, "excluded": dict(excluded), "skipped": skipped}


def _reward(
    connection: psycopg.Connection[Row], run_id: str, journey: ReviewJourney, parameters: dict[str, Any]
) -> int:
    """Points for every order that was reviewed, once, in shops where that is allowed; how many orders are new."""
    due = run_sql(connection, "push/review_rewards.sql", parameters)
    if len(due) > journey.max_messages:
        raise RunRefused(
            f"{run_id}: {len(due):,} reviews are due for a reward, more than the guard of {journey.max_messages:,}"
            f" in include/config/journeys/{journey.journey}.yaml; nothing is given."
        )
    for row in due:  # each is a transaction of its own, kept by its use_id: a repetition gives nothing twice
        use_points(
            row["member_id"],
            journey.reward_points,
            kind="adjust",
            use_id=row["use_id"],
            reason="a review, whatever it says",
            actor=journey.journey,
        )
    return len(due)


def _open_run(
    connection: psycopg.Connection[Row],
    run_id: str,
    journey: ReviewJourney,
    channels: ChannelsFile,
    business_date: date,
    plan: Plan,
) -> None:
    """The night's run, once. It needs no approval: service messages, whose size the journey's guard limits."""
    frozen = _freeze(journey, channels)
    connection.execute(
        """
        INSERT INTO push.campaign_runs (run_id, campaign, mode, as_of, as_of_at, config, config_hash, state, needs_approval,
            approved_by, approved_at, decision_reason, created_by, created_at, expires_at)
        VALUES (%(run_id)s, %(journey)s, 'live', %(as_of)s, %(as_of_at)s, %(config)s, %(hash)s, 'sending', false,
            'policy', %(now)s, 'service message below the size guard', %(journey)s, %(now)s, %(expires_at)s)
        ON CONFLICT (run_id) DO NOTHING
        """,
        {
            "run_id": run_id,
            "journey": journey.journey,
            "as_of": business_date,
            "as_of_at": plan.as_of_at,
            "config": Jsonb(frozen),
            "hash": config_hash(frozen),
            "now": dates.now(),
            "expires_at": plan.expires_at,
        },
    )


def _freeze(journey: ReviewJourney, channels: ChannelsFile) -> dict[str, Any]:
    """As audience.freeze: what the run sends is what stood in the files when it began."""
    folders = sorted({channels.channels[name].templates for name in journey.channels})
    names = sorted(set(journey.templates.model_dump().values()))
    return {
        "campaign": {**journey.model_dump(mode="json"), "campaign": journey.journey},
        **freeze_channels(channels, journey.channels),
        "templates": {
            f"{folder}/{name}": load_template(folder, name).as_json() for folder in folders for name in names
        },
    }


def _parameters(run_id: str, journey: ReviewJourney, channels: ChannelsFile, plan: Plan) -> dict[str, Any]:
    chosen = [channels.channels[name] for name in journey.channels]
    families = [CHANNELS[name].family for name in journey.channels]
    ask_until = plan.as_of_at - timedelta(days=journey.ask_after_days)
    remind_until = plan.planned_at - timedelta(days=journey.remind_after_days) + timedelta(days=1)
    remind_until = dates.day_start(remind_until.astimezone(get_settings().zone).date(), get_settings().zone)
    return {
        "run_id": run_id,
        "journey": journey.journey,
        "as_of_at": plan.as_of_at,
        "planned_at": plan.planned_at,
        "ask_from": ask_until - timedelta(days=journey.ask_within_days),
        "ask_until": ask_until,
        "remind_from": remind_until - timedelta(days=journey.remind_within_days),
        "remind_until": remind_until,
        "written_from": plan.as_of_at - timedelta(days=journey.thanks_within_days),
        "rewarded_sources": [
            source_id for source_id, source in load_sources().items() if journey.rewards.get(source.platform, False)
        ],
        "gap_since": plan.planned_at - timedelta(days=journey.gap_days),
        "account": next((c.account for c, family in zip(chosen, families, strict=True) if family == "wechat"), ""),
        "channels": list(journey.channels),
        "families": families,
        "consent_kinds": [channel.consent for channel in chosen],
        "default_language": journey.default_language,
        "notice_templates": Jsonb(_notice_templates(journey, channels)),
    }


def _notice_templates(journey: ReviewJourney, channels: ChannelsFile) -> dict[str, str]:
    """WeChat's template of the subscription notice of each step: a person allows them one by one."""
    if WeChatSubscribe.name not in journey.channels:
        return {}
    folder = channels.channels[WeChatSubscribe.name].templates
    return {step: load_template(folder, name).template_id for step, name in journey.templates.model_dump().items()}


def _queue(
    connection: psycopg.Connection[Row],
    run_id: str,
    journey: ReviewJourney,
    channels: ChannelsFile,
    plan: Plan,
    due: Sequence[Row],
) -> list[Row]:
    """Freeze tonight's members and queue their messages; the rows that are new."""
    now = dates.now()
    not_before = dates.send_window(now, journey.send_window.opens, journey.send_window.closes, get_settings().zone)
    new_rows = []
    for row in due:
        inserted = connection.execute(
            """
            INSERT INTO push.audiences (run_id, member_id, state, reason, arm, channel, language, address, facts)
            VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT (run_id, member_id) DO NOTHING RETURNING member_id
            """,
            (run_id, row["member_id"], "excluded" if row["reason"] else "targeted", row["reason"],
             None if row["reason"] else "treatment", row["channel"] if not row["reason"] else None, row["language"],
             row["address"] if not row["reason"] else None,
             Jsonb({"message_key": row["message_key"], "openid": row["openid"], "email": row["email"]})),
        ).fetchone()  # fmt: skip
        if inserted and not row["reason"]:
            new_rows.append(row)
    template = journey.templates.model_dump()
    with connection.cursor() as cursor:
        cursor.executemany(
            """
            INSERT INTO push.messages (message_key, run_id, member_id, step, channel, account, purpose, address, template,
                language, variables, not_before, expires_at, queued_at, updated_at)
            VALUES (%s, %s, %s, %s, %s, %s, 'service', %s, %s, %s, %s, %s, %s, %s, %s)
            """,
            [
                (row["message_key"], run_id, row["member_id"], row["step"], row["channel"],
                 channels.channels[row["channel"]].account, row["address"], template[row["step"]], row["language"],
                 Jsonb({"member": {"name": row["name"], "tier": None}, "order": row["order_facts"],
                        "reward": row["reward_points"] and {"points": row["reward_points"]}}),
                 not_before, plan.expires_at, now, now)
                for row in new_rows
            ],
        )  # fmt: skip
        cursor.executemany(
            "INSERT INTO push.surveys (message_key, language, created_at, expires_at) VALUES (%s, %s, %s, %s)",
            [
                (row["message_key"], row["language"], now, not_before + timedelta(days=journey.survey_valid_days))
                for row in new_rows
                if row["step"] in WITH_SURVEY
            ],
        )
    return new_rows


def _close_building(connection: psycopg.Connection[Row], run_id: str, has_new: bool) -> None:
    """The run's hashes for what it holds now; a run with something new in it is sending (again)."""
    run = lock_run(connection, run_id)
    checksum = audience_checksum(connection, run_id)
    content = content_hash(checksum, run["config_hash"])
    connection.execute(
        """
        UPDATE push.campaign_runs
        SET audience_checksum = %s, content_hash = %s, approved_hash = %s, state = CASE WHEN %s THEN 'sending' ELSE state END
        WHERE run_id = %s
        """,
        (checksum, content, content, has_new, run_id),
    )
