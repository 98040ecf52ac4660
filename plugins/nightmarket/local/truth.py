"""What the sandbox's world says should have arrived, against what did: the demo's own bill, source by source.

Only figures that the platform can give are compared: a shop whose interface has no reviews is not asked for them.
"""

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from nightmarket.mapping import mappings_of
from nightmarket.sources import SourceConfig

# figure -> (column of include/sql/console/source_totals.sql, the world's own word, the core table that must be mapped)
SHOP_FIGURES = {
    "orders": ("order_count", "orders", "core.orders"),
    "paid orders": ("paid_order_count", "paid_orders", "core.orders"),
    "order lines": ("line_count", "lines", "core.orders"),
    "goods": ("goods_amount", "goods_amount", "core.orders"),
    "paid": ("paid_amount", "paid_amount", "core.orders"),
    "refunds paid back": ("settled_refund_count", "refunds_settled", "core.refunds"),
    "refunded": ("refund_amount", "refund_amount", "core.refunds"),
    "reviews": ("review_count", "reviews", "core.reviews"),
    "customers": ("customer_count", "customers", "core.customers"),
}
TAOBAO_FIGURES = {
    "orders": ("order_count", "trades", "core.orders"),
    "paid orders": ("paid_order_count", "paid_orders", "core.orders"),
    "order lines": ("line_count", "lines", "core.orders"),
    "goods of paid orders": ("paid_goods_amount", "paid_line_value", "core.orders"),
    "refunds paid back": ("settled_refund_count", "refunds", "core.refunds"),
    "refunded": ("refund_amount", "refund_fee", "core.refunds"),
}
WECHAT_FIGURES = {"followers": ("follower_count", "followers", "core.followers")}
WEIBO_FIGURES = {
    "posts": ("post_count", "posts", "core.social_posts"),
    "comments": ("comment_count", "comments", "core.social_comments"),
    "mentions": ("mention_count", "mentions", "core.social_comments"),
}


def world_of(
    config: SourceConfig, truth: Mapping[str, Any]
) -> tuple[Mapping[str, Any], Mapping[str, tuple[str, str, str]]]:
    """The part of the world that a source shows, and the figures to compare."""
    shops: Mapping[str, Any] = truth.get("shops", {})
    if config.platform == "taobao":
        return truth, TAOBAO_FIGURES
    if config.platform == "wechat_official":
        return truth, WECHAT_FIGURES
    if config.platform == "weibo":
        return truth.get("weibo", {}), WEIBO_FIGURES
    name = "pos" if config.platform == "files" else config.platform
    return shops.get(name, {}), SHOP_FIGURES


def compare(
    configs: Iterable[SourceConfig], totals: Iterable[Mapping[str, Any]], truth: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """One row per source and figure: {"source", "figure", "core", "world", "difference", "rejected", "arrived"}; numbers are exact."""
    known = {row["source_id"]: row for row in totals}
    rows = []
    for config in configs:
        world, figures = world_of(config, truth)
        row = known.get(config.source_id, {})
        mapped = {table for mapping in mappings_of(config) for table in mapping.writes}
        for figure, (column, word, table) in figures.items():
            if word not in world or table not in mapped:
                continue
            ours, theirs = Decimal(str(row.get(column) or 0)), Decimal(str(world[word]))
            rows.append(
                {
                    "source": config.source_id,
                    "figure": figure,
                    "core": ours,
                    "world": theirs,
                    "difference": ours - theirs,
                    "rejected": int(row.get("open_reject_count") or 0),
                    "arrived": int(row.get("seen_count") or 0),
                }
            )
    return rows
