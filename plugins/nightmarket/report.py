"""The night report: one self-contained HTML file for people, and the same figures as JSON for machines.

Both are made from the files of include/sql/console in one read-only snapshot, so they agree with each other and with
the console. No address, name or token is read, so none can be printed.
"""

import os
import tempfile
from collections.abc import Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from nightmarket import __version__, dates
from nightmarket.console import charts, words
from nightmarket.console.night import kpi_lines, notices, read_night, read_pauses, read_runs
from nightmarket.console.queries import Reader, reader
from nightmarket.settings import get_settings
from nightmarket.warehouse import Row

TREND_DAYS = 30
REVIEW_DAYS = 21
FULFILMENT_DAYS = 7


def collect(read: Reader, business_dates: Sequence[date]) -> dict[str, Any]:
    """Everything the report shows about these business dates, oldest first. Raises ValueError when there are none."""
    days = sorted(set(business_dates))
    if not days:
        raise ValueError("a night report needs at least one business date")
    last = days[-1]
    nights = [read_night(read, day) for day in days]
    runs, journeys = read_runs(read, days[0], last)
    return {
        "business_dates": days,
        "nights": nights,
        "runs": runs,
        "journeys": journeys,
        "notices": notices(nights[-1], runs, read_pauses(read, dates.now())),
        "shop_trend": read.rows("shop_trend", first_day=last - timedelta(days=TREND_DAYS - 1), last_day=last),
        "fulfilment": read.rows("fulfilment", first_day=last - timedelta(days=FULFILMENT_DAYS - 1), last_day=last),
        "reachable": read.rows("reachable", business_date=last, purpose="marketing"),
        "identities": read.rows("identities", business_date=last),
        "product_roles": read.rows("product_roles", business_date=last, top=3),
        "product_role_counts": read.rows("product_role_counts", business_date=last),
        "product_pairs": read.rows("product_pairs", business_date=last, top=3),
        "asset_cube": read.rows("asset_cube", business_date=last),
        "attribution": read.rows("attribution", campaign=""),
        "store_paths": read.rows("store_paths", first_day=last - timedelta(days=TREND_DAYS - 1), last_day=last),
        "stage_flow": read.rows("transitions", month=last.replace(day=1), about="stage"),
        "laws": read.rows("laws", first_day=days[0]),
        "sources": read.rows("source_totals", as_of_at=dates.now()),
        "reviews_trend": read.rows("reviews_trend", first_day=last - timedelta(days=REVIEW_DAYS - 1), last_day=last),
    }


def summary(business_dates: Sequence[date]) -> dict[str, Any]:
    """The figures of the report as JSON-able values.

    Money, counts and rates are numbers (money in the shops' currency, rates 0..1), days and instants ISO text;
    `headline` holds the few figures to show on a screen.
    """
    with reader() as read:
        data = collect(read, business_dates)
        queries = [{"file": f"include/sql/console/{name}.sql", "parameters": used} for name, used in read.used.items()]
    data["notices"] = [{"level": n.level, "zh": n.text.zh, "en": n.text.en} for n in data["notices"]]
    figures: dict[str, Any] = plain({"headline": headline(data), **data, "queries": queries})
    return figures


def headline(data: dict[str, Any]) -> dict[str, Any]:
    """The handful of figures a person asks for first: where the house stood after each night, what was sent."""
    figures: dict[str, Any] = {"business dates": ", ".join(day.isoformat() for day in data["business_dates"])}
    for night in data["nights"]:
        for shop in night["totals_shop"]:
            amount = words.money(shop["gross_amount"], shop["currency_code"])
            figures[f"{night['business_date']}: buyers, paid orders, paid line value to date"] = (
                f"{shop['buyer_count']:,}, {shop['paid_order_count']:,}, {amount}"
            )
        figures[f"{night['business_date']}: members"] = night["totals_people"]["member_count"]
        changed = sum(row["changed_count"] for row in night["arrivals"])
        rejected = sum(row["rejected_count"] for row in night["arrivals"])
        sent = sum(row["message_count"] for row in night["messages"] if row["state"] in ("accepted", "delivered"))
        figures |= _people_headline(night)
        figures[f"{night['business_date']}: records new or changed, rejected"] = f"{changed:,}, {rejected:,}"
        figures[f"{night['business_date']}: checks red"] = sum(gate["failed_count"] for gate in night["gates"])
        figures[f"{night['business_date']}: messages accepted"] = sent
    for run in data["runs"]:
        if run["mode"] != "live":
            continue
        name = run["run_id"]
        figures[f"{name}: segment, targeted"] = f"{run['segment_count']:,}, {run['targeted_count']:,}"
        if run["coupons"]:
            redeemed = sum(stock["redeemed_count"] for stock in run["coupons"])
            taken = sum(stock["coupon_count"] for stock in run["coupons"])
            figures[f"{name}: coupons, redeemed"] = f"{taken:,}, {redeemed:,}"
        if result := run["result"]:
            if result["verdict"] != "not enough data":
                low, high = words.points(result["uplift_low_rate"]), words.points(result["uplift_high_rate"])
                figures[f"{name}: uplift, points"] = f"{words.points(result['uplift_rate'])} ({low} to {high})"
            figures[f"{name}: verdict"] = result["verdict"]
    return figures


def _people_headline(night: dict[str, Any]) -> dict[str, Any]:
    """Tiers, stages and KPIs of a night in a line each."""
    day, figures = night["business_date"], {}
    for programme in dict.fromkeys(row["programme"] for row in night["tiers"]):
        rows = [row for row in night["tiers"] if row["programme"] == programme]
        figures[f"{day}: {programme} tiers"] = ", ".join(
            f"{row['tier']} {row['member_count']:,}" for row in reversed(rows)
        )
        moves = [row for row in night["tier_moves"] if row["programme"] == programme]
        up, down, first = (
            sum(row["member_count"] for row in moves if row["direction"] == way) for way in ("up", "down", "first")
        )
        figures[f"{day}: {programme} tiers, risen, fallen, first"] = f"{up:,}, {down:,}, {first:,}"
    if any(row["member_count"] for row in night["stages"]):
        figures[f"{day}: stages"] = ", ".join(
            f"{row['stage']} {row['member_count']:,}" for row in night["stages"] if row["member_count"]
        )
    if night["points_day"] and night["points_day"]["open_points"]:
        points = night["points_day"]
        figures[f"{day}: points earned, open"] = f"{points['earned_points']:,}, {points['open_points']:,}"
    lights = [row["light"] for row in night["kpi_table"] if row["source_id"] == "" and row["grain"] == "day"]
    if lights:
        count = {light: lights.count(light) for light in ("green", "amber", "red")}
        unusual = sum(row["is_anomaly"] and row["grain"] == "day" for row in night["kpi_table"])
        figures[f"{day}: KPIs green, amber, red; unusual"] = (
            f"{count['green']}, {count['amber']}, {count['red']}; {unusual}"
        )
    return figures


def write_night_report(path: Path, business_dates: Sequence[date]) -> Path:
    """Write the report of these business dates to `path` (replaced in one step) and return it."""
    with reader() as read:
        html = render(read, business_dates)
    return write_page(path, html)


def write_page(path: Path, html: str) -> Path:
    """Write a page in one step: whoever opens the file sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(html)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)  # a full disk must not leave half a report behind
        raise
    return path


def render(read: Reader, business_dates: Sequence[date]) -> str:
    """The report as one HTML text: style and charts inside, nothing loaded from anywhere."""
    data = collect(read, business_dates)
    return (
        environment()
        .get_template("night.html")
        .render(
            **data,
            last=data["nights"][-1],
            trends=charts.trends(data["shop_trend"], data["business_dates"]),
            moves=_moves(data["nights"]),
            kpis=kpi_lines(data["nights"][-1]["kpi_table"]),
            flow=stage_flow(data["stage_flow"]),
            message_tables=[_message_table(night["messages"]) for night in data["nights"]],
            review_chart=charts.reviews(data["reviews_trend"]),
            uplift_charts={run["run_id"]: charts.uplift(run["run_id"], run["result"]) for run in data["runs"]},
            queries=dict(sorted(read.used.items())),
            written_at=dates.now(),
            version=__version__,
        )
    )


def environment() -> Environment:
    """Templates of include/templates/reports, with the filters and the words of the console."""
    templates = Environment(
        loader=FileSystemLoader(get_settings().template_dir / "reports"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= words.FILTERS
    templates.globals |= {"say": words.say, **words.TABLES, "TREND_DAYS": TREND_DAYS, "REVIEW_DAYS": REVIEW_DAYS}
    return templates


def stage_flow(rows: Sequence[Row]) -> dict[str, Any] | None:
    """Rows of transitions.sql as a matrix: a line per stage at the end of last month, a column per stage now; None without rows."""
    if not rows:
        return None
    states = [stage for stage in words.STAGES if any(row["state_to"] == stage for row in rows)]
    count = {(row["state_from"], row["state_to"]): row["member_count"] for row in rows}
    begun = [stage for stage in ("", *words.STAGES) if any(row["state_from"] == stage for row in rows)]
    lines = [{"state": state, "counts": [count.get((state, to), 0) for to in states]} for state in begun]
    return {"states": states, "lines": lines}


def _moves(nights: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line per programme and move between two tiers, with a count per night; first tiers are not moves."""
    lines: dict[tuple[str, str, str], dict[str, Any]] = {}
    for index, night in enumerate(nights):
        for row in night["tier_moves"]:
            if row["direction"] != "first":
                key = (row["programme"], row["previous_tier"], row["tier"])
                line = lines.setdefault(key, {**row, "counts": [0] * len(nights)})
                line["counts"][index] = row["member_count"]
    return sorted(lines.values(), key=lambda line: str(line["direction"]), reverse=True)


def _message_table(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Messages with one line per campaign, step and channel, and one column per state that occurs."""
    states = [state for state in words.MESSAGE_STATES if any(row["state"] == state for row in rows)]
    lines: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in rows:
        key = (row["campaign"], row["mode"], row["step"], row["channel"])
        line = lines.setdefault(
            key,
            dict(zip(("campaign", "mode", "step", "channel"), key, strict=True)) | {"counts": dict.fromkeys(states, 0)},
        )
        line["counts"][row["state"]] += row["message_count"]
    for line in lines.values():
        line["total"] = sum(line["counts"].values())
    return {"states": states, "lines": list(lines.values())}


def plain(value: Any) -> Any:
    """JSON-able: exact decimals as numbers (their digits survive), days and instants as ISO text."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, datetime | date):
        return value.isoformat()
    return value
