"""Members, consents and a green night for tests of campaigns: rows as the landing would leave them."""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import requests
import yaml

from nightmarket import dates
from nightmarket import settings as settings_module
from nightmarket.privacy import Keyring, Tokenizer, store_secrets
from nightmarket.settings import ROOT
from nightmarket.warehouse import Row

AS_OF = date(2026, 3, 14)  # the business date of the test worlds
MORNING = "2026-03-15T10:00:00+08:00"  # when people are at work on the day after it
FOLLOWED = datetime.fromisoformat("2026-01-05T12:00:00+08:00")


def green_night(db: psycopg.Connection[Row], day: date = AS_OF, *, is_passed: bool = True) -> None:
    """The quality gates of a night, as build_marts leaves them."""
    db.execute(
        "INSERT INTO ops.gate_results (business_date, gate, table_name, check_name, severity, is_passed, observed, message,"
        " run_id, checked_at) VALUES (%s, 'mart', 'mart.member_days', 'unique', 'fail', %s, '0', 'test', 'test', %s)",
        (day, is_passed, dates.now()),
    )


class People:
    """Adds members one by one; each is a valuable sleeper of the segment unless told otherwise."""

    def __init__(self, db: psycopg.Connection[Row]) -> None:
        self.db = db
        self.tokens = Tokenizer.from_settings()
        self._number = 0

    def add(
        self,
        *,
        openid: str | None = None,
        email: str | None = None,
        email_consent: bool = True,
        phone: str | None = None,
        alias: str | None = None,
        contact: str | None = None,
        wechat_consent: bool | None = None,
        following: bool = True,
        name: str = "王小明",
        language: str = "zh",
        wrote_at: datetime | None = None,
        sleeping: bool = True,
    ) -> int:
        """One member; returns the member id. `alias` is one of the app, `contact` one of WeCom; with consent, as the phone."""
        self._number += 1
        row = self.db.execute(
            "INSERT INTO core.members (first_seen_at) VALUES (%s) RETURNING member_id", (FOLLOWED,)
        ).fetchone()
        assert row is not None
        member_id = int(row["member_id"])
        first = self._identity(member_id, "taobao_open_uid", f"AAOPEN{member_id:06d}")
        if openid:
            self._follow(member_id, openid, following, wechat_consent, wrote_at)
        if email:
            identity = self._identity(member_id, "email", self.tokens.token("email", email))
            self.consent(identity, "email", "marketing", email_consent)
        for family, kind, value in (
            ("sms", "phone", phone and self.tokens.token("phone", phone)),
            ("push", "mall_id", alias),
            ("wecom", "wecom_external_id", contact),
        ):
            if value:
                self.consent(self._identity(member_id, kind, value), family, "marketing", True)
        self.db.execute(
            "INSERT INTO core.profiles (identity_id, source_id, name, language, observed_at) VALUES (%s, 'own_pages', %s, %s, %s)",
            (first, self.tokens.token("name", name), language, FOLLOWED),
        )
        if sleeping:
            self.db.execute(
                "INSERT INTO mart.member_days (member_id, day, order_count, gross_amount, refund_amount, net_amount)"
                " VALUES (%s, %s, 2, 900, 0, 900)",
                (member_id, AS_OF - timedelta(days=120)),
            )
        with self.db.transaction():
            store_secrets(self.db, self.tokens.secrets, Keyring.from_settings())
        return member_id

    def _identity(self, member_id: int, kind: str, value: str) -> int:
        row = self.db.execute(
            "INSERT INTO core.identities (kind, value, source_id, first_seen_at) VALUES (%s, %s, 'test', %s) RETURNING identity_id",
            (kind, value, FOLLOWED),
        ).fetchone()
        assert row is not None
        self.db.execute(
            "INSERT INTO core.member_identities VALUES (%s, %s, %s)", (row["identity_id"], member_id, FOLLOWED)
        )
        return int(row["identity_id"])

    def _follow(
        self, member_id: int, openid: str, following: bool, consent: bool | None, wrote_at: datetime | None
    ) -> None:
        identity = self._identity(member_id, "wechat_openid", openid)
        self.db.execute(
            "INSERT INTO core.followers (source_id, openid, identity_id, is_following, followed_at, unfollowed_at, language, batch_id)"
            " VALUES ('wechat_official', %s, %s, %s, %s, %s, 'zh_CN', 1)",
            (openid, identity, following, FOLLOWED, None if following else FOLLOWED + timedelta(days=3)),
        )
        if consent is not None:
            self.consent(identity, "wechat", "marketing", consent)
        if wrote_at:
            self.db.execute(
                "INSERT INTO core.interactions (source_id, event_id, identity_id, kind, occurred_at) VALUES ('own_pages', %s, %s, 'message', %s)",
                (f"wrote/{openid}/{wrote_at.timestamp()}", identity, wrote_at),
            )

    def consent(
        self, identity: int, channel: str, purpose: str, granted: bool, at: datetime = FOLLOWED + timedelta(days=1)
    ) -> None:
        self._number += 1
        self.db.execute(
            "INSERT INTO core.consents (source_id, event_id, identity_id, channel, purpose, is_granted, evidence, occurred_at)"
            " VALUES ('own_pages', %s, %s, %s, %s, %s, 'test form', %s)",
            (f"consent/{self._number}", identity, channel, purpose, granted, at),
        )

    def identity_of(self, member_id: int, kind: str) -> int:
        row = self.db.execute(
            "SELECT i.identity_id FROM core.member_identities AS mi JOIN core.identities AS i USING (identity_id)"
            " WHERE mi.member_id = %s AND i.kind = %s",
            (member_id, kind),
        ).fetchone()
        assert row is not None
        return int(row["identity_id"])


def sandbox_openids(sandbox: Any) -> list[str]:
    """Openids that follow the sandbox's account now."""
    account = sandbox.access["wechat_official"]
    token = requests.post(
        account["base_url"] + "/cgi-bin/stable_token",
        json={"grant_type": "client_credential", "appid": account["appid"], "secret": account["secret"]},
        timeout=10,
    ).json()["access_token"]
    answer = requests.get(account["base_url"] + "/cgi-bin/user/get", params={"access_token": token}, timeout=10).json()
    return list(answer["data"]["openid"])


def without_database(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The environment of code that reads files and touches no database."""
    monkeypatch.setenv("NIGHTMARKET_WAREHOUSE_DSN", "postgresql://nobody@127.0.0.1:1/none")
    monkeypatch.setenv("NIGHTMARKET_TOKEN_KEY", "a test key of more than thirty-two characters")
    settings_module.get_settings.cache_clear()
    yield
    settings_module.get_settings.cache_clear()


def write_config(folder: Path, monkeypatch: pytest.MonkeyPatch) -> "ConfigFolder":
    """A copy of include/config and include/templates that a test may change."""
    for name in ("config", "templates"):
        shutil.copytree(ROOT / "include" / name, folder / name, dirs_exist_ok=True)
    monkeypatch.setenv("NIGHTMARKET_CONFIG_DIR", str(folder / "config"))
    monkeypatch.setenv("NIGHTMARKET_TEMPLATE_DIR", str(folder / "templates"))
    settings_module.get_settings.cache_clear()
    return ConfigFolder(folder)


class ConfigFolder:
    """Edits YAML files of a copied configuration."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def editing(self, name: str) -> Iterator[dict[str, Any]]:
        """The parsed content of config/<name>; written back when the block ends."""
        path = self.folder / "config" / name
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        yield data
        path.write_text(yaml.safe_dump(data, allow_unicode=True, sort_keys=False), encoding="utf-8")

    def campaign(self, name: str = "winback_gold", **changes: Any) -> None:
        """Change top-level keys of a campaign; None removes a key."""
        with self.editing(f"campaigns/{name}.yaml") as data:
            data.update(changes)
            for key in [key for key, value in data.items() if value is None]:
                del data[key]


def states(db: psycopg.Connection[Row], run_id: str) -> dict[str, int]:
    rows = db.execute("SELECT state, count(*) AS n FROM push.messages WHERE run_id = %s GROUP BY state", (run_id,))
    return {row["state"]: row["n"] for row in rows}


def received(sandbox: Any) -> dict[str, Any]:
    """The sandbox's counters of accepted messages."""
    return dict(sandbox.control("GET", "/counters")["messages"])


def audience(db: psycopg.Connection[Row], run_id: str) -> dict[int, str]:
    """Member id -> state, or the reason when excluded."""
    rows = db.execute("SELECT member_id, state, reason FROM push.audiences WHERE run_id = %s", (run_id,))
    return {row["member_id"]: row["reason"] or row["state"] for row in rows}


def approve(run_id: str, report: dict[str, Any]) -> None:
    from nightmarket.campaigns.audience import record_decision

    record_decision(run_id, True, "tester", "looks right", report["content_hash"])


def dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1, default=str)


def member_ids(rows: Sequence[Row]) -> set[int]:
    return {row["member_id"] for row in rows}


def start_run(*, with_coupons: bool = False) -> str:
    """A live run of winback_gold, approved and in the outbox."""
    from nightmarket.campaigns import coupons, outbox
    from nightmarket.campaigns.audience import build_run
    from nightmarket.campaigns.results import dry_run_report

    run_id = build_run("winback_gold", AS_OF, "live", "tester")
    approve(run_id, dry_run_report(run_id))
    if with_coupons:
        coupons.reserve(run_id)
        coupons.issue(run_id)
    outbox.enqueue(run_id)
    return run_id
