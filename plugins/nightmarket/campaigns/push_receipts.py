"""Which pushes reached a phone: JPush is asked about the messages it took, by the ids it gave them.

A phone that is off receives later, or never: the absence of a receipt says nothing, so nothing becomes `failed` here.
"""

import asyncio
import logging
from datetime import timedelta

import psycopg

from nightmarket import dates
from nightmarket.channels.base import Outcome
from nightmarket.channels.jpush import REPORT_IDS, JPush
from nightmarket.settings import ConfigError, credentials
from nightmarket.warehouse import Row

log = logging.getLogger(__name__)
ASKED_FOR = timedelta(days=10)  # the longest a push waits for its phone; JPush answers for 28 days
AT_ONCE = 8


def collect(connection: psycopg.Connection[Row]) -> int:
    """Write one `delivered` per push that arrived into core.message_events; returns how many are new. Safe to repeat.

    An account that does not answer is left for the next run.
    """
    now = dates.now()
    rows = connection.execute(
        """
        SELECT m.account, m.platform_message_id AS msg_id, m.message_key
        FROM push.messages AS m
        WHERE m.channel = %s AND m.state = 'accepted' AND m.platform_message_id IS NOT NULL AND m.accepted_at > %s
          AND NOT EXISTS (
              SELECT 1 FROM core.message_events AS e WHERE e.message_key = m.message_key AND e.kind = 'delivered'
          )
        ORDER BY m.account, m.message_id
        """,
        (JPush.name, now - ASKED_FOR),
    ).fetchall()
    keys: dict[str, dict[str, str]] = {}
    for row in rows:
        keys.setdefault(row["account"], {})[row["msg_id"]] = row["message_key"]
    count = 0
    for account, by_id in keys.items():
        try:
            arrived = asyncio.run(_ask(account, list(by_id)))
        except ConfigError as error:
            log.warning("receipts of %s: %s", account, error)
            continue
        count += connection.execute(
            """
            INSERT INTO core.message_events (source_id, event_id, message_key, kind, occurred_at)
            SELECT %s, u.msg_id || '/received', u.message_key, 'delivered', %s
            FROM unnest(%s::text[], %s::text[]) AS u (msg_id, message_key)
            ON CONFLICT (source_id, event_id) DO NOTHING
            """,
            (account, now, arrived, [by_id[msg_id] for msg_id in arrived]),
        ).rowcount
    return count


async def _ask(account: str, msg_ids: list[str]) -> list[str]:
    async with JPush(credentials(account), connections=AT_ONCE, timeout_seconds=20) as channel:
        limit = asyncio.Semaphore(AT_ONCE)

        async def ask(part: list[str]) -> set[str]:
            async with limit:
                answer = await channel.received(part)
            if isinstance(answer, Outcome):
                log.warning("receipts of %s: %s (%s)", account, answer.message, answer.code)
                return set()
            return answer

        parts = [msg_ids[start : start + REPORT_IDS] for start in range(0, len(msg_ids), REPORT_IDS)]
        arrived = set().union(*await asyncio.gather(*map(ask, parts)))
    return [msg_id for msg_id in msg_ids if msg_id in arrived]
