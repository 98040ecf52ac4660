"""From raw to core: which SQL files map which stream of a platform, and in which order.

A mapping takes what is new in one stream into one table, in one transaction: core/open.sql makes the new records visible, the
platform's file gives them types and the house's words and judges them (new_rows), the writers take the usable ones into core,
core/close.sql keeps the others with their reason and moves the mark. docs/decisions/0046-one-mapping-frame.md
"""

from collections.abc import Mapping as MappingOf
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg

from nightmarket import dates, warehouse
from nightmarket.sources import SourceConfig, source
from nightmarket.warehouse import Row, connect

OPEN, CLOSE, PEOPLE = "core/open.sql", "core/close.sql", "core/write/people.sql"
PEOPLE_TABLES = ("core.identities", "core.identity_links", "core.profiles")
# entity -> (writers, tables they write; the first one names the mark)
ENTITIES: MappingOf[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "orders": (
        (PEOPLE, "core/write/orders.sql"),
        ("core.orders", "core.order_lines", "core.products", "core.shipments", *PEOPLE_TABLES),
    ),
    "refunds": ((PEOPLE, "core/write/refunds.sql"), ("core.refunds", *PEOPLE_TABLES)),
    "reviews": ((PEOPLE, "core/write/reviews.sql"), ("core.reviews", *PEOPLE_TABLES)),
    "customers": ((PEOPLE, "core/write/customers.sql"), ("core.customers", *PEOPLE_TABLES)),
    "products": (("core/write/products.sql",), ("core.products",)),
    "coupons": (("core/write/coupons.sql",), ("core.shop_coupons",)),
}


@dataclass(frozen=True)
class Mapping:
    """One stream into one table. `files` are relative to include/sql and run in one transaction, in this order."""

    name: str  # of the task: map_<name>
    stream: str
    target: str  # whose mark in raw.mappings moves
    files: tuple[str, ...]
    writes: tuple[str, ...]


def entity(platform: str, name: str, stream: str, *, file: str = "", folder: str = "") -> Mapping:
    """The mapping of a stream to one of ENTITIES through core/<platform>/<name>.sql."""
    writers, tables = ENTITIES[name]
    mine = f"core/{folder or platform}/{file or name}.sql"
    return Mapping(file or name, stream, tables[0], (OPEN, mine, *writers, CLOSE), tables)


def whole(path: str, stream: str, *writes: str) -> Mapping:
    """A mapping that is one file with a frame of its own."""
    return Mapping(path.rpartition("/")[2].removesuffix(".sql"), stream, writes[0], (path,), writes)


MAPPINGS: MappingOf[str, tuple[Mapping, ...]] = {
    "taobao": (
        entity("taobao", "orders", "trades"),
        entity("taobao", "refunds", "refunds"),
        entity("taobao", "reviews", "rates"),
    ),
    "wechat_official": (
        whole("core/wechat_official/identities.sql", "followers", *PEOPLE_TABLES),
        whole("core/wechat_official/followers.sql", "followers", "core.followers"),
        whole("core/wechat_official/consents.sql", "followers", "core.consents"),
    ),
    "own_pages": (
        whole("core/own_pages/identities.sql", "events", *PEOPLE_TABLES),
        whole("core/own_pages/follow_events.sql", "events", "core.follow_events"),
        whole("core/own_pages/message_events.sql", "events", "core.message_events"),
        whole("core/own_pages/interactions.sql", "events", "core.interactions"),
        whole("core/own_pages/consents.sql", "events", "core.consents"),
    ),
}
MEMBER_FILES = ("core/members/members.sql",)


def mappings_of(config: SourceConfig) -> list[Mapping]:
    """The mappings of the streams that a source reads, in the order in which they run."""
    return [mapping for mapping in MAPPINGS[config.platform] if mapping.stream in config.streams]


def mapping_parameters(config: SourceConfig, mapping: Mapping, run_id: str, as_of_at: Any) -> dict[str, Any]:
    """Bound parameters of a mapping's files. `as_of_at` stamps what the mapping itself decides, never business facts."""
    return {
        "source_id": config.source_id,
        "account_source_id": config.account or config.source_id,
        "stream": mapping.stream,
        "target": mapping.target,
        "currency_code": config.currency_code,
        "run_id": run_id,
        "as_of_at": as_of_at,
    }


def run_mapping(
    connection: psycopg.Connection[Row], config: SourceConfig, mapping: Mapping, run_id: str, as_of_at: datetime
) -> None:
    """One mapping in the current transaction, as its task does it."""
    parameters = mapping_parameters(config, mapping, run_id, as_of_at)
    for file in mapping.files:
        warehouse.run_sql(connection, file, parameters)


def map_source(source_id: str, *, run_id: str, as_of_at: datetime | None = None) -> None:
    """All mappings of a source, each in its own transaction, as the extract DAG does task by task."""
    config = source(source_id)
    for mapping in mappings_of(config):
        with connect(application_name="nightmarket-mapping") as connection:
            run_mapping(connection, config, mapping, run_id, as_of_at or dates.now())


def resolve_members(*, run_id: str, as_of_at: datetime | None = None) -> None:
    """Tie identities to members, after the mappings of all sources."""
    for file in MEMBER_FILES:
        with connect(application_name="nightmarket-mapping") as connection:
            warehouse.run_sql(connection, file, {"run_id": run_id, "as_of_at": as_of_at or dates.now()})


def reset_mappings(connection: psycopg.Connection[Row], source_id: str) -> int:
    """Forget how far a source was mapped: the next mapping maps all of raw again, to the same rows. Returns how many marks."""
    return connection.execute("DELETE FROM raw.mappings WHERE source_id = %s", (source_id,)).rowcount
