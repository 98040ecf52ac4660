"""What all workers of one account share, kept in PostgreSQL: access tokens, the call limit, bans, the daily quota.

An account is one Airflow connection: two sources that use the same keys share its limit. Traffic runs on the database's
clock, which all workers see alike; only the day of a quota is the business day.
"""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any

import orjson
import psycopg

from nightmarket import dates
from nightmarket.platforms.base import (
    MAX_WAIT_SECONDS,
    TOKEN_AHEAD,
    LimitReached,
    PlatformDown,
    RateLimited,
    Token,
)
from nightmarket.privacy import Keyring
from nightmarket.settings import Credentials
from nightmarket.warehouse import Row, connect, session_lock

SHARE = (
    0.975  # of the limit that slots are given out for: calls may then be 25 ms late without a second holding too many
)
LATE_SECONDS = 0.010  # a worker that wakes up later than this gives its slot up and takes a new one
LOOK_AGAIN_SECONDS = 0.1  # after a longer sleep: has the platform asked for a pause meanwhile?
MAX_PAUSE_SECONDS = 24 * 3600.0
RENEW_AGAIN = timedelta(minutes=1)  # a platform that answers a renewal with the old token is not asked with every call
LOCK_SECONDS = 90
QUOTA_SHARES = {1: 1.0, 2: 0.9, 3: 0.75}  # how far a stream of this priority may spend the daily quota
KEPT_FOR = {2: "orders and refunds", 3: "orders, refunds, people and reviews"}

# One statement, one row: the lock comes first, the clock after it (docs/decisions/0048-shared-accounts.md).
RESERVE = """
UPDATE ops.pace
SET next_at = greatest(next_at, paused_until, clock_timestamp()) + make_interval(secs => %(gap)s)
WHERE account = %(account)s AND (paused_until IS NULL OR paused_until <= clock_timestamp() + make_interval(secs => %(longest)s))
RETURNING extract(EPOCH FROM next_at - make_interval(secs => %(gap)s) - clock_timestamp())::double precision AS starts_in
"""
COUNT = """
INSERT INTO ops.calls AS c (account, day, priority, call_count)
SELECT %(account)s, %(day)s, %(priority)s, %(calls)s
WHERE %(most)s::integer IS NULL OR %(most)s > (
    SELECT coalesce(sum(s.call_count), 0) FROM ops.calls AS s WHERE s.account = %(account)s AND s.day = %(day)s
)
ON CONFLICT (account, day, priority) DO UPDATE SET call_count = c.call_count + excluded.call_count
RETURNING call_count
"""

SECONDS_PAUSED = """
SELECT extract(EPOCH FROM paused_until - clock_timestamp())::double precision AS seconds FROM ops.pace WHERE account = %s
"""


class Account:
    """One account as one worker sees it: a TokenStore and a Pace (platforms.base). A context manager.

    `calls_per_second` and `calls_per_day` bound all workers of the account together; None is no bound of ours.
    """

    def __init__(
        self,
        platform: str,
        credentials: Credentials,
        *,
        calls_per_second: float | None = None,
        calls_per_day: int | None = None,
        priority: int = 1,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.platform = platform
        self.name = credentials.conn_id
        self._keys = _fingerprint(credentials)
        self._gap = 1 / (calls_per_second * SHARE) if calls_per_second else 0.0
        self._late = LATE_SECONDS * max(1.0, 1 / calls_per_second) if calls_per_second else float("inf")
        self._per_day = calls_per_day
        self._priority = priority
        self._sleep = sleep
        self._tokens: dict[str, Token] = {}
        self._lock = threading.RLock()  # one connection, and platforms that read with several threads
        self._open: Any = None
        self._connection: psycopg.Connection[Row] | None = None
        self._keyring: Keyring | None = None

    def __enter__(self) -> "Account":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._open is not None:
            self._open.__exit__(None, None, None)
            self._open = self._connection = None

    @property
    def _db(self) -> psycopg.Connection[Row]:
        """Its own connection: a reservation must be visible at once, whatever the caller's transaction does."""
        if self._connection is None:
            self._open = connect(autocommit=True, application_name="nightmarket-account")
            self._connection = self._open.__enter__()
            self._connection.execute("SET synchronous_commit = off")  # a lost slot or count costs nothing
            self._connection.execute(
                "INSERT INTO ops.pace (account, next_at) VALUES (%s, clock_timestamp()) ON CONFLICT (account) DO NOTHING",
                (self.name,),
            )
        return self._connection

    # -- calls
    def wait(self, method: str) -> None:
        """Return when the next call may start. Raises RateLimited (a long ban) or LimitReached (today's share is spent)."""
        calls = 1  # a slot that was given up is not a second call
        while True:
            ready = time.monotonic() + self._reserve(method, calls)
            calls = 0
            sleep = ready - time.monotonic()
            if sleep <= 0:
                return
            self._sleep(sleep)
            if time.monotonic() - ready <= self._late and not (sleep > LOOK_AGAIN_SECONDS and self._is_paused()):
                return

    def pause(self, seconds: float) -> None:
        """The platform asked to wait: every worker of this account does. A pause is never made shorter."""
        with self._lock:
            self._pause(seconds)

    def _pause(self, seconds: float) -> None:
        self._db.execute(
            """
            UPDATE ops.pace SET paused_until = clock_timestamp() + make_interval(secs => %(seconds)s)
            WHERE account = %(account)s
              AND (paused_until IS NULL OR paused_until < clock_timestamp() + make_interval(secs => %(seconds)s - 1))
            """,  # within a second it is the pause that is known already
            {"account": self.name, "seconds": min(seconds, MAX_PAUSE_SECONDS)},
        )

    def _reserve(self, method: str, calls: int) -> float:
        """Seconds until our slot begins (not above 0: now). The call is counted with it, both or neither."""
        slot = {"account": self.name, "gap": self._gap, "longest": MAX_WAIT_SECONDS}
        count = {
            "account": self.name,
            "day": dates.today(),
            "priority": self._priority,
            "calls": calls,
            "most": self._most if calls else None,
        }
        with self._lock, self._db.transaction():
            row = self._db.execute(RESERVE, slot).fetchone()
            if row is None:
                raise self._paused(method)
            received = time.monotonic()
            # a second statement: it sees what others counted before they let the slot's row go
            if self._db.execute(COUNT, count).fetchone() is None:
                raise self._spent(method)
        return float(row["starts_in"]) - (time.monotonic() - received)

    @property
    def _most(self) -> int | None:
        """Calls of the account today, of all priorities, at which this stream stops."""
        return None if self._per_day is None else int(self._per_day * QUOTA_SHARES[self._priority])

    def _is_paused(self) -> bool:
        return self._seconds_paused() > 0

    def _seconds_paused(self) -> float:
        with self._lock:
            row = self._db.execute(SECONDS_PAUSED, (self.name,)).fetchone()
        return float(row["seconds"] or 0) if row else 0.0

    def _paused(self, method: str) -> RateLimited:
        seconds = self._seconds_paused()
        problem = f"the platform asked this account to wait; the next call is allowed in {seconds:.0f} s"
        return RateLimited(self.platform, method, problem, retry_after=max(seconds, 0))

    def _spent(self, method: str) -> LimitReached:
        kept = KEPT_FOR.get(self._priority)
        share = f"{QUOTA_SHARES[self._priority]:.0%} of " if kept else ""
        rest = f"; the rest is kept for {kept}" if kept else ""
        problem = (
            f"{share}the daily quota of account {self.name} ({self._per_day:,} calls, calls_per_day in sources.yaml) is"
            f" spent{rest}; reading goes on after midnight in Asia/Shanghai"
        )
        return LimitReached(self.platform, method, problem)

    # -- tokens
    def get(self, name: str, obtain: Callable[[Token | None], Token], *, bad: str = "") -> Token:
        """The token `name` of this account; `obtain(the last one)` is called by one worker when it must be renewed.

        It must when there is none, when it ends within TOKEN_AHEAD, or when it is the one that the platform refused
        (`bad`): of many workers that were refused the same value, the first renews it and the others take what it got.
        """
        with self._lock:
            return self._get(name, obtain, bad)

    def _get(self, name: str, obtain: Callable[[Token | None], Token], bad: str) -> Token:
        token = self._tokens.get(name)
        if token is not None and token.value != bad and token.expires_at > dates.now() + TOKEN_AHEAD:
            return token
        with self._only_one(name):
            token, updated_at = self._read(name)
            if token is None or self._must_renew(token, updated_at, bad):
                token = self._renew(name, token, obtain, bad)
        self._tokens[name] = token
        return token

    def _renew(self, name: str, last: Token | None, obtain: Callable[[Token | None], Token], bad: str) -> Token:
        try:
            token = obtain(last)
        except (PlatformDown, RateLimited):
            if last is not None and last.value != bad and last.expires_at > dates.now():
                return last  # ahead of its end: the next call tries again
            raise
        self._write(name, token)
        return token

    def _must_renew(self, token: Token, updated_at: datetime, bad: str) -> bool:
        now = dates.now()
        if token.value == bad or token.expires_at <= now:
            return True
        return token.expires_at <= now + TOKEN_AHEAD and updated_at <= now - RENEW_AGAIN

    @contextmanager
    def _only_one(self, name: str) -> Iterator[None]:
        """A lock of the session, not of a transaction: the call that renews takes slots in transactions of their own."""
        try:
            with session_lock(self._db, f"token/{self.name}/{name}", LOCK_SECONDS):
                yield
        except psycopg.errors.LockNotAvailable:
            problem = f"another worker has been renewing the access token of {self.name} for {LOCK_SECONDS} s"
            raise PlatformDown(self.platform, name, problem) from None

    def _read(self, name: str) -> tuple[Token | None, datetime]:
        row = self._db.execute(
            "SELECT value, expires_at, updated_at FROM ops.tokens WHERE account = %s AND name = %s AND value IS NOT NULL",
            (self.name, name),
        ).fetchone()
        if row is None:
            return None, dates.now()
        content = orjson.loads(self._keys_of_vault.open(self._label(name), bytes(row["value"])))
        if content["keys"] != self._keys:  # somebody has changed the connection: its tokens belong to the old keys
            return None, row["updated_at"]
        return Token(content["value"], row["expires_at"], content["extra"]), row["updated_at"]

    def _write(self, name: str, token: Token) -> None:
        content = orjson.dumps({"value": token.value, "extra": dict(token.extra), "keys": self._keys}).decode()
        sealed = self._keys_of_vault.seal(self._label(name), content)
        with self._db.transaction():
            self._db.execute("SET LOCAL synchronous_commit = on")  # a refresh token is often good for one use only
            self._db.execute(
                """
                INSERT INTO ops.tokens (account, name, value, expires_at, updated_at) VALUES (%s, %s, %s, %s, %s)
                ON CONFLICT (account, name)
                DO UPDATE SET value = excluded.value, expires_at = excluded.expires_at, updated_at = excluded.updated_at
                """,
                (self.name, name, sealed, token.expires_at, dates.now()),
            )

    def _label(self, name: str) -> str:
        return f"token/{self.name}/{name}"

    @property
    def _keys_of_vault(self) -> Keyring:
        if self._keyring is None:
            self._keyring = Keyring.from_settings()
        return self._keyring


def _fingerprint(credentials: Credentials) -> str:
    """Tells whether the keys of a connection were changed; it is only ever stored encrypted."""
    parts = [credentials.host, credentials.login, credentials.password, dict(credentials.extra)]
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]
