"""Why this member has this tier and stage: in words, with the orders behind it. No clear value is read, so none can be shown."""

from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from typing import Any

from nightmarket.console.queries import reader
from nightmarket.warehouse import Row

ORDERS_SHOWN, ENTRIES_SHOWN, STRETCHES_SHOWN = 25, 8, 8


def explain_member(member_id: int, as_of: date) -> str:
    """A page of text about a member at the end of `as_of`. Raises ValueError when there is no such member."""
    with reader() as read:
        portrait = read.row("member_portrait", member_id=member_id)
        if portrait is None:
            raise ValueError(
                f"there is no member {member_id}; ids stand in core.members and in the console's why-not lookup."
            )
        member = {"member_id": portrait["member_id"], "as_of": as_of}
        tiers = read.rows("member_tiers", **member)
        standing = next((row for row in tiers if row["is_standing"]), None)
        window = standing["window_days"] if standing else None
        money = read.rows("member_money", **member, window_days=window)
        lines = [
            *_heading(member_id, portrait, as_of),
            *_tiers(tiers, as_of),
            *_orders(money, window, as_of),
            *_stages(read.rows("member_stages", **member)),
            *_rfm(read.row("member_rfm", **member)),
            *_points(read.rows("member_points", **member)),
            *_outlook(portrait),
        ]
    return "\n".join(lines)


def _heading(asked: int, portrait: Row, as_of: date) -> Iterator[str]:
    merged = f" (asked for {asked}, who was merged into this member)" if asked != portrait["member_id"] else ""
    yield f"member {portrait['member_id']}{merged}, at the end of {as_of}"
    ways = [name for name in ("wechat", "email", "phone") if portrait[f"has_{name}"]]
    yield (
        f"known since {portrait['known_since_date']} by {portrait['identity_count']} identities"
        f" ({', '.join(ways) or 'no address'})"
    )


def _tiers(rows: list[Row], as_of: date) -> Iterator[str]:
    yield "\ntier"
    if not rows:
        yield "  none: a tier begins with the first paid order"
    for programme in dict.fromkeys(row["programme"] for row in rows):
        own = [row for row in rows if row["programme"] == programme]
        now = own[0]
        if not now["is_standing"]:
            yield f"  {now['programme_en']}: none on this date"
        else:
            yield f"  {now['programme_en']}: {now['tier_en']} ({now['tier_zh']}) since {now['valid_from']}, because {now['reason']}"
            yield from _what_next(now, as_of)
        for row in own[1:STRETCHES_SHOWN]:
            yield f"    before: {row['tier_en']} {row['valid_from']} to {row['valid_to']}, because {row['reason']}"
        if len(own) > STRETCHES_SHOWN:
            yield f"    and {len(own) - STRETCHES_SHOWN} earlier ones"


def _what_next(now: Row, as_of: date) -> Iterator[str]:
    window = f"{now['window_days']}-day" if now["window_days"] else "lifetime"
    yield f"    the {window} {now['measure'].replace('_', ' ')} on {as_of} is {_amount(now['value_now'])}"
    if now["review_date"]:
        kept = now["value_now"] >= now["keep_value"]
        if now["review_date"] <= as_of:
            yield (
                f"    missed its review of {now['review_date']} (keeps with {_amount(now['keep_value'])}); falls after"
                f" {now['grace_days']} days of grace unless it comes back"
            )
        else:
            yield (
                f"    next review {now['review_date']}: keeps with {_amount(now['keep_value'])};"
                f" today that would {'do' if kept else 'not do'}"
            )
    elif now["review_days"] is None:
        yield "    cannot be lost in this programme"
    if now["next_tier"]:
        missing = now["next_enter_value"] - now["value_now"]
        yield f"    {now['next_tier']} from {_amount(now['next_enter_value'])}: {_amount(max(missing, Decimal(0)))} more"


def _orders(rows: list[Row], window: int | None, as_of: date) -> Iterator[str]:
    span = f"in the {window} days that end with {as_of}" if window else f"up to {as_of}"
    total = sum((row["amount"] for row in rows), Decimal(0))
    yield f"\norders and refunds {span}: {len(rows)}, together {_amount(total)}"
    for row in rows[:ORDERS_SHOWN]:
        yield f"  {row['happened_at']:%Y-%m-%d}  {row['kind']:<6} {_amount(row['amount']):>14}  {row['source_id']} {row['order_id']}"
    if len(rows) > ORDERS_SHOWN:
        yield f"  and {len(rows) - ORDERS_SHOWN} more"


def _stages(rows: list[Row]) -> Iterator[str]:
    yield "\nstage"
    if not rows:
        yield "  none told yet on this date"
    for index, row in enumerate(rows[:STRETCHES_SHOWN]):
        yield f"  {'now' if index == 0 else 'before'}: {row['stage']} since {row['valid_from']}: {row['reason']}"


def _rfm(row: Row | None) -> Iterator[str]:
    yield "\nRFM"
    if row is None:
        yield "  no paid order in the window on this date"
    else:
        yield (
            f"  {row['rfm_segment']}: last order {row['recency_days']} days before the next morning (score {row['r_score']}),"
            f" {row['frequency_count']} orders ({row['f_score']}), {_amount(row['monetary_amount'])} ({row['m_score']})"
        )


def _points(rows: list[Row]) -> Iterator[str]:
    balance = sum(row["points"] for row in rows)
    yield f"\npoints: {balance:,}"
    for row in rows[:ENTRIES_SHOWN]:
        of = f" of {row['lot_day']}" if row["kind"] in ("reverse", "expire") else ""
        yield f"  {row['day']}  {row['kind']}{of} {row['points']:+,}"
    if len(rows) > ENTRIES_SHOWN:
        yield f"  and {len(rows) - ENTRIES_SHOWN} earlier entries"


def _outlook(portrait: Row) -> Iterator[str]:
    yield f"\nas of {portrait['business_date'] or 'no night yet'}"
    if portrait["last_order_date"]:
        yield f"  {portrait['activity']}; last order {portrait['last_order_date']}, {portrait['order_count']} in all"
    if portrait["expected_next_order_date"]:
        gap = portrait["median_gap_days"].normalize()
        yield f"  orders every {gap:f} days in the middle: the next one is expected around {portrait['expected_next_order_date']}"
    favourites = [
        portrait["favourite_category_en"],
        portrait["favourite_source_name"] or portrait["favourite_source_id"],
    ]
    if any(favourites):
        yield f"  favourites: {', '.join(text for text in favourites if text)}"
    if portrait["expected_amount"] is not None:
        yield (
            f"  still a customer with {portrait['alive_probability']:.0%}; expected in {portrait['expected_days']} days:"
            f" {portrait['expected_order_count']:.2f} orders, {_amount(portrait['expected_amount'])}"
        )


def _amount(value: Any) -> str:
    return f"{value:,.2f}" if value != value.to_integral_value() else f"{value:,.0f}"
