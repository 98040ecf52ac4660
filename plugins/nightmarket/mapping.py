"""From raw to core: which SQL files map which stream of a platform, and in which order.

A mapping takes what is new in one stream into one table, in one transaction: core/open.sql makes the new records visible, the
platform's file gives them types and the house's words and judges them (new_rows), the writers take the usable ones into core,
core/close.sql keeps the others with their reason and moves the mark. docs/decisions/0046-one-mapping-frame.md
"""

import logging
import time
from collections.abc import Mapping as MappingOf
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import psycopg

from nightmarket import dates, members, warehouse
from nightmarket.sources import SourceConfig, source
from nightmarket.warehouse import Row, connect


class MappingError(Exception):
    """A mapping that cannot run, as one sentence."""


OPEN, CLOSE, PEOPLE = "core/open.sql", "core/close.sql", "core/write/people.sql"
PEOPLE_TABLES = ("core.identities", "core.identity_links", "core.profiles")
# entity -> (writers, tables they write; the first one names the mark)
ENTITIES: MappingOf[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "orders": (
        (PEOPLE, "core/write/orders.sql"),
        ("core.orders", "core.order_lines", "core.products", "core.shipments", *PEOPLE_TABLES),
    ),
    "orders_with_codes": (
        (PEOPLE, "core/write/orders.sql", "core/write/coupon_uses.sql"),
        ("core.orders", "core.order_lines", "core.products", "core.shipments", "core.coupon_uses", *PEOPLE_TABLES),
    ),
    "refunds": ((PEOPLE, "core/write/refunds.sql"), ("core.refunds", *PEOPLE_TABLES)),
    "reviews": ((PEOPLE, "core/write/reviews.sql"), ("core.reviews", *PEOPLE_TABLES)),
    "customers": ((PEOPLE, "core/write/customers.sql"), ("core.customers", *PEOPLE_TABLES)),
    "products": (("core/write/products.sql",), ("core.products",)),
    "coupons": (("core/write/coupons.sql",), ("core.shop_coupons",)),
    "followers": ((PEOPLE, "core/write/followers.sql"), ("core.followers", "core.consents", *PEOPLE_TABLES)),
    "events": (
        (
            PEOPLE,
            "core/write/form_profiles.sql",
            "core/write/follow_events.sql",
            "core/write/subscribe_events.sql",
            "core/write/message_events.sql",  # before interactions: a click is completed from it
            "core/write/interactions.sql",
            "core/write/consents.sql",
            "core/write/survey_answers.sql",
            "core/write/page_codes.sql",
        ),
        (
            "core.interactions",
            "core.follow_events",
            "core.subscribe_events",
            "core.message_events",
            "core.consents",
            "core.survey_answers",
            "core.coupon_uses",
            *PEOPLE_TABLES,
        ),
    ),
    "sms_events": (
        (PEOPLE, "core/write/message_events.sql", "core/write/sms_replies.sql"),
        ("core.message_events", "core.consents", "core.suppression_events", *PEOPLE_TABLES),
    ),
    "social_stats": (("core/write/social_stats.sql",), ("core.social_stats_daily",)),
    "tags": (("core/write/social_stats.sql", "core/write/tags.sql"), ("core.social_stats_daily", "core.social_tags")),
    "posts": (("core/write/posts.sql",), ("core.social_posts",)),
    "post_stats": (("core/write/post_stats.sql",), ("core.social_post_stats",)),
    "comments": ((PEOPLE, "core/write/comments.sql"), ("core.social_comments", *PEOPLE_TABLES)),
    "follower_sample": ((PEOPLE, "core/write/follower_sample.sql"), ("core.followers", *PEOPLE_TABLES)),
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


def figures(stream: str) -> Mapping:
    """The mapping of one of WeChat's daily figures; they all have the same shape."""
    return replace(entity("wechat_official", "social_stats", stream, file="figures"), name=stream)


MAPPINGS: MappingOf[str, tuple[Mapping, ...]] = {
    "taobao": (
        entity("taobao", "orders", "trades"),
        entity("taobao", "refunds", "refunds"),
        entity("taobao", "reviews", "rates"),
        entity("taobao", "customers", "members"),
        entity("taobao", "products", "items"),
    ),
    "jd": (
        entity("jd", "orders", "orders"),
        entity("jd", "refunds", "refunds"),
        entity("jd", "refunds", "aftersales", file="aftersales"),
        entity("jd", "reviews", "comments"),
        entity("jd", "products", "items"),
    ),
    "wechat_official": (
        entity("wechat_official", "followers", "followers"),
        entity("wechat_official", "events", "events", folder="events"),
        entity("wechat_official", "tags", "tags"),
        figures("user_summary"),
        figures("user_cumulate"),
        figures("article_summary"),
        entity("wechat_official", "posts", "article_total", file="articles"),
        entity("wechat_official", "post_stats", "article_total", file="article_stats"),
        figures("user_read"),
        figures("user_share"),
        figures("upstream_messages"),
        figures("interface_summary"),
    ),
    "wechat_store": (
        entity("wechat_store", "orders", "orders"),
        entity("wechat_store", "refunds", "aftersales"),
        entity("wechat_store", "customers", "members"),
        entity("wechat_store", "products", "products"),
        entity("wechat_store", "coupons", "coupons"),
    ),
    "weibo": (
        entity("weibo", "posts", "posts"),
        entity("weibo", "post_stats", "post_stats"),
        entity("weibo", "comments", "comments"),
        entity("weibo", "comments", "mentions", file="mentions"),
        entity("weibo", "follower_sample", "followers", file="followers"),
        entity("weibo", "social_stats", "account", file="account"),
    ),
    "sms_aliyun": (entity("sms_aliyun", "sms_events", "events", folder="sms", file="events"),),
    "sms_tencent": (entity("sms_tencent", "sms_events", "events", folder="sms", file="events"),),
    "own_pages": (entity("own_pages", "events", "events", folder="events"),),
    "rest": (  # streams of a declared source are named after what they hold
        entity("rest", "orders_with_codes", "orders", file="orders", folder="declared"),
        entity("rest", "refunds", "refunds", folder="declared"),
        entity("rest", "customers", "customers", folder="declared"),
        entity("rest", "reviews", "reviews", folder="declared"),
        entity("rest", "products", "products", folder="declared"),
    ),
    "shopify": (
        entity("shopify", "orders_with_codes", "orders", file="orders"),
        entity("shopify", "refunds", "orders"),
        entity("shopify", "customers", "customers"),
        entity("shopify", "products", "products"),
    ),
    "woocommerce": (
        entity("woocommerce", "orders_with_codes", "orders", file="orders"),
        entity("woocommerce", "refunds", "orders"),
        entity("woocommerce", "customers", "customers"),
        entity("woocommerce", "reviews", "reviews"),
        entity("woocommerce", "products", "products"),
        entity("woocommerce", "coupons", "coupons"),
    ),
    "youzan": (
        entity("youzan", "orders", "trades"),
        entity("youzan", "refunds", "refunds"),
        entity("youzan", "customers", "customers"),
        entity("youzan", "coupons", "coupons"),
        entity("youzan", "reviews", "reviews"),
    ),
    "weidian": (
        entity("weidian", "orders", "trades"),
        entity("weidian", "refunds", "trades"),
    ),
    "files": (
        entity("files", "orders_with_codes", "orders", file="orders", folder="declared"),
        *(entity("files", name, name, folder="declared") for name in ("refunds", "reviews", "customers", "products")),
    ),
}
PIECE = 40_000  # new records that are worth a mapping of their own while landing goes on
log = logging.getLogger(__name__)


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
    """All mappings of a source, each in its own transaction. Raises MappingError that names the one that failed."""
    config = source(source_id)
    for mapping in mappings_of(config):
        begun = time.monotonic()
        try:
            with connect(application_name="nightmarket-mapping") as connection:
                run_mapping(connection, config, mapping, run_id, as_of_at or dates.now())
        except psycopg.Error as error:
            raise MappingError(
                f"{source_id}: {mapping.stream} could not be taken into {mapping.target} "
                f"(include/sql/{mapping.files[1]}): {str(error).splitlines()[0]}"
            ) from error
        log.info("%s into %s: %.1f s", mapping.stream, mapping.target, time.monotonic() - begun)


class Alongside:
    """Maps a stream in the background while it is still being landed, piece by piece. A context manager.

    A first load of hours fills core as it goes, and no mapping has millions of records in one transaction. A night's own
    work is less than one piece: then nothing happens here. What is left, and what fails, is the map task's.
    """

    def __init__(self, source_id: str, stream: str, *, run_id: str, as_of_at: datetime | None = None) -> None:
        self._config = source(source_id)
        self._mappings = [mapping for mapping in mappings_of(self._config) if mapping.stream == stream]
        self._run_id, self._as_of_at = run_id, as_of_at or dates.now()
        self._worker = ThreadPoolExecutor(1, "nightmarket-mapping")
        self._running: Future[None] | None = None
        self._waiting = 0  # records committed and not yet given to a mapping
        self._mapped = 0
        self._analyzed = 0

    def __enter__(self) -> "Alongside":
        return self

    def __exit__(self, *_: object) -> None:
        self._worker.shutdown()

    def landed(self, changed: int) -> None:
        """So many new versions were committed. Landing calls this after every batch."""
        self._waiting += changed
        if self._waiting < PIECE or not self._mappings or (self._running and not self._running.done()):
            return
        if self._running and self._running.exception():
            return
        count, self._waiting = self._waiting, 0
        self._running = self._worker.submit(self._map, count)

    def _map(self, count: int) -> None:
        try:
            with connect(autocommit=True, application_name="nightmarket-mapping") as connection:
                for mapping in self._mappings:
                    with connection.transaction():
                        run_mapping(connection, self._config, mapping, self._run_id, self._as_of_at)
                self._mapped += count
                if (
                    self._mapped >= 2 * self._analyzed
                ):  # tables that grow from nothing: plans for empty ones would be slow
                    tables = sorted({"raw.batches", "raw.records", *(t for m in self._mappings for t in m.writes)})
                    connection.execute(f"ANALYZE {', '.join(tables)}")  # type: ignore[arg-type]
                    self._analyzed = self._mapped
        except psycopg.Error as error:
            log.warning("mapping alongside stopped (%s); the map task goes on and says why", type(error).__name__)
            raise


def resolve_members(*, run_id: str, as_of_at: datetime | None = None) -> None:
    """Tie identities to members, after the mappings of all sources."""
    with connect(application_name="nightmarket-mapping") as connection:
        members.resolve(connection, as_of_at)
    log.info("%s: members resolved", run_id)


def reset_mappings(connection: psycopg.Connection[Row], source_id: str) -> int:
    """Forget how far a source was mapped: the next mapping maps all of raw again, to the same rows. Returns how many marks."""
    return connection.execute("DELETE FROM raw.mappings WHERE source_id = %s", (source_id,)).rowcount
