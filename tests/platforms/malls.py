"""Sources of their own for tests of platforms that the default sources.yaml does not name, and what they brought."""

import json
import os
import shutil
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import psycopg
import pytest
import yaml
from nights import one

from nightmarket import dates, landing, mapping, settings, sources
from nightmarket.platforms.base import Answer, Transport
from nightmarket.warehouse import Row

CONFIG = Path(__file__).resolve().parents[2] / "include" / "config"


def use_sources(monkeypatch: pytest.MonkeyPatch, folder: Path, text: str) -> Path:
    """Let this process read a copy of include/config whose sources.yaml is `text`; returns that file."""
    config = folder / "config"
    shutil.copytree(CONFIG, config, dirs_exist_ok=True)
    file = config / "sources.yaml"
    file.write_text(text, encoding="utf-8")
    monkeypatch.setenv("NIGHTMARKET_CONFIG_DIR", str(config))
    settings.get_settings.cache_clear()
    return file


def use_every_stream(monkeypatch: pytest.MonkeyPatch, folder: Path, source_id: str) -> None:
    """Let this process read a copy of include/config in which a source reads all streams its platform has."""
    blocks = yaml.safe_load((CONFIG / "sources.yaml").read_text(encoding="utf-8"))
    block = blocks["sources"][source_id]
    module = sources.PLATFORMS[block["platform"]]
    every = module.streams(module.Options.model_validate(block.get("options", {})))
    block["streams"] = {name: block["streams"].get(name, {}) for name in every}
    use_sources(monkeypatch, folder, yaml.safe_dump(blocks, allow_unicode=True))


def land(source_id: str, run_id: str, **options: Any) -> dict[str, landing.LandingSummary]:
    """All streams of a source, up to now."""
    return {
        stream: landing.land(source_id, stream, run_id=run_id, until=dates.now(), **options)
        for stream in sources.source(source_id).streams
    }


def night(source_id: str, run_id: str, **options: Any) -> dict[str, landing.LandingSummary]:
    """Read and map one source, and tie its people together."""
    summaries = land(source_id, run_id, **options)
    mapping.map_source(source_id, run_id=run_id)
    mapping.resolve_members(run_id=run_id)
    return summaries


def figures(db: psycopg.Connection[Row], source_id: str) -> dict[str, Any]:
    """What core holds of a source, in the words of the world's truth."""
    queries = {
        "orders": "SELECT count(*) FROM core.orders WHERE source_id = %s",
        "paid_orders": "SELECT count(*) FROM core.orders WHERE source_id = %s AND is_paid",
        "lines": "SELECT count(*) FROM core.order_lines WHERE source_id = %s",
        "quantity": "SELECT sum(quantity) FROM core.order_lines WHERE source_id = %s",
        "goods_amount": "SELECT sum(line_amount) FROM core.order_lines WHERE source_id = %s",
        "paid_amount": "SELECT sum(paid_amount) FROM core.orders WHERE source_id = %s AND is_paid",
        "postage_amount": "SELECT sum(postage_amount) FROM core.orders WHERE source_id = %s AND is_paid",
        "refunds": "SELECT count(*) FROM core.refunds WHERE source_id = %s",
        "refunds_settled": "SELECT count(*) FROM core.refunds WHERE source_id = %s AND is_money",
        "refund_amount": "SELECT sum(refund_amount) FROM core.refunds WHERE source_id = %s AND is_money",
        "reviews": "SELECT count(*) FROM core.reviews WHERE source_id = %s",
        "customers": "SELECT count(*) FROM core.customers WHERE source_id = %s",
        "products": "SELECT count(*) FROM core.products WHERE source_id = %s AND price_amount IS NOT NULL",
        "buyers": "SELECT count(DISTINCT mi.member_id) FROM core.orders AS o JOIN core.member_identities AS mi USING (identity_id)"
                  " WHERE o.source_id = %s AND o.is_paid",
    }  # fmt: skip
    return {name: one(db, query, (source_id,)) for name, query in queries.items()}


def differences(db: psycopg.Connection[Row], source_id: str, truth: dict[str, Any], *left_out: str) -> dict[str, Any]:
    """Where core and the world's truth of a shop disagree: {} when every number is right."""
    found = figures(db, source_id)
    amounts = {"goods_amount", "paid_amount", "postage_amount", "refund_amount"}
    wanted = {name: Decimal(value) if name in amounts else value for name, value in truth.items()}
    return {
        name: (value, wanted[name])
        for name, value in found.items()
        if name in wanted and name not in left_out and (value or 0) != wanted[name]
    }


def move(sandbox: Any, set_clock: Any, moment: str) -> None:
    """Our clock and the sandbox's."""
    set_clock(moment)
    sandbox.control("POST", "/clock", {"now": moment})


def put(db: psycopg.Connection[Row], source_id: str, stream: str, *payloads: dict[str, Any]) -> None:
    """Records as landing leaves them, one batch of each, for mappings of states that the sandbox's shops never get into."""
    for payload in payloads:
        db.execute(
            "WITH b AS (INSERT INTO raw.batches (source_id, stream, run_id, seen_count, changed_count, loaded_at)"
            " VALUES (%(source)s, %(stream)s, 'put', 1, 1, %(now)s)"
            " RETURNING batch_id)"
            " INSERT INTO raw.records (batch_id, source_id, stream, record_key, payload, content_hash, observed_at, run_id)"
            " SELECT batch_id, %(source)s, %(stream)s, %(key)s, %(payload)s::jsonb, ''::bytea, %(now)s, 'put' FROM b",
            {
                "source": source_id,
                "stream": stream,
                "key": str(payload["id"]),
                "payload": orjson.dumps(payload).decode(),
                "now": dates.now(),
            },
        )


def clear_values_at_rest(db: psycopg.Connection[Row], sandbox: Any, source_id: str) -> list[str]:
    """Clear phones and e-mail addresses of the world that stand in this source's raw records or rejects."""
    text = one(
        db,
        "SELECT coalesce((SELECT string_agg(payload::text, ' ') FROM raw.records WHERE source_id = %(s)s), '')"
        " || coalesce((SELECT string_agg(payload::text || reason, ' ') FROM raw.rejects WHERE source_id = %(s)s), '')",
        {"s": source_id},
    )
    people = sandbox.control("GET", "/people")["people"]
    values = {person[kind] for person in people for kind in ("phone", "email") if person[kind]}
    names = {person["name"] for person in people if len(person["name"]) > 2}
    return sorted(value for value in values | names if value in text)


def requests_to(sandbox: Any, platform: str) -> dict[str, int]:
    found: dict[str, int] = sandbox.control("GET", "/counters")["requests"].get(platform, {})
    return found


def refused(sandbox: Any, platform: str) -> dict[str, int]:
    found: dict[str, int] = sandbox.control("GET", "/counters")["refused"].get(platform, {})
    return found


def fault(sandbox: Any, platform: str, kind: str, **more: Any) -> None:
    sandbox.control("POST", "/faults", {"faults": [{"platform": platform, "kind": kind, **more}]})


def change_connection(monkeypatch: pytest.MonkeyPatch, conn_id: str, **changes: Any) -> None:
    variable = f"AIRFLOW_CONN_{conn_id.upper()}"
    monkeypatch.setenv(variable, json.dumps(json.loads(os.environ[variable]) | changes))


class Recorded:
    """A session that answers what it was given and keeps what it was asked: for wire details without a network."""

    def __init__(self, *answers: tuple[int, dict[str, str], Any]) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, str, dict[str, Any]]] = []

    def transport(self, platform: str) -> Transport:
        transport = Transport(platform, sleep=lambda _: None)
        transport.fetch_full = self._fetch  # type: ignore[method-assign]
        return transport

    def _fetch(self, verb: str, url: str, *, method: str, **arguments: Any) -> Answer:
        self.asked.append((verb, url, arguments))
        status, headers, content = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return Answer(status, headers, content if isinstance(content, bytes) else orjson.dumps(content))


def arrived(db: psycopg.Connection[Row], source_id: str, stream: str, records: Mapping[str, dict[str, Any]]) -> None:
    """Put records into raw as landing does, one batch."""
    row = db.execute(
        "INSERT INTO raw.batches (source_id, stream, part, run_id, window_start, window_end, seen_count, changed_count,"
        " rejected_count, loaded_at) VALUES (%s, %s, 'modified', 'r', now(), now(), %s, %s, 0, now()) RETURNING batch_id",
        (source_id, stream, len(records), len(records)),
    ).fetchone()
    assert row is not None
    for key, payload in records.items():
        db.execute(
            "INSERT INTO raw.records (batch_id, source_id, stream, record_key, payload, content_hash, observed_at, run_id)"
            " VALUES (%s, %s, %s, %s, %s, %s, '2026-03-14 10:00+08', 'r')",
            (row["batch_id"], source_id, stream, key, orjson.dumps(payload).decode(), key.encode()),
        )
