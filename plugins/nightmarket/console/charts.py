"""Charts as inline SVG. Drawn by matplotlib without any display; digits only, words stand in the HTML around them.

Text stays text (svg.fonttype none), so a chart prints sharp and its figures can be searched and copied.
"""

import io
import re
import threading
from collections.abc import Collection, Sequence
from contextlib import contextmanager
from datetime import date
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from nightmarket.warehouse import Row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID = "#2b3440", "#6b7682", "#e3e6ea"
QUIET, ACCENT = "#8fa3bb", "#c77f2a"  # days of the past; the nights this report is about
GOOD, BAD = "#3f7d5e", "#b0473c"
_TEXT_STYLE = re.compile(r"font: ([0-9.]+)px [^;\"]*")
_FONT = "var(--sans)"
_lock = threading.Lock()  # the style is global to matplotlib, and the console draws in several threads


@contextmanager
def _figure(
    name: str, width: float, height: float, rows: int = 1
) -> "Iterator[tuple[Figure, list[Axes], io.StringIO]]":
    """A figure of `width` x `height` inches and a buffer that holds its SVG afterwards; ids are derived from `name`."""
    import matplotlib as mpl  # takes a second to import: only when something is drawn
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.size": 8,
        "axes.edgecolor": GRID,
        "axes.labelcolor": MUTED,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.axisbelow": True,
        "ytick.major.size": 0,
        "xtick.major.size": 0,
    }
    with _lock, mpl.rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots(rows, 1, sharex=rows > 1, squeeze=False)
        target = io.StringIO()
        yield figure, [row[0] for row in axes], target
        figure.savefig(target, format="svg", transparent=True, metadata={"Date": None, "Creator": None})


def _inline(svg: str, label: str) -> Markup:
    """The <svg> element alone, scalable, with the page's font and a label for readers that cannot see it."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = _TEXT_STYLE.sub(rf"font: \1px {_FONT}", svg)
    svg = re.sub(r' (width|height)="[0-9.]+pt"', "", svg, count=2)
    head, rest = svg.split(">", 1)
    return Markup(f'{head} class="chart" role="img" aria-label="{label}">{rest}')  # noqa: S704 - numbers and our own words


def _thousands(value: float, _position: Any = None) -> str:
    return f"{value:,.0f}"


def _day_axis(axis: "Axes", days: Sequence[date]) -> None:
    """A label under every seventh day, counted back from the last."""
    shown = list(range(len(days) - 1, -1, -7))[::-1]
    axis.set_xticks(shown, [f"{days[n].month}/{days[n].day}" for n in shown])
    axis.set_xlim(-0.7, len(days) - 0.3)


def _value_axis(axis: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    axis.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axis.yaxis.set_major_formatter(_thousands)
    axis.grid(axis="y", color=GRID, linewidth=0.7)
    axis.set_ylim(bottom=0)


def trends(rows: Sequence[Row], marked: Collection[date]) -> list[tuple[str, Markup]]:
    """(currency, chart) for rows of shop_trend.sql: revenue and paid orders by day, the marked days in the accent colour."""
    found = []
    for currency in dict.fromkeys(row["currency_code"] for row in rows):
        own = [row for row in rows if row["currency_code"] == currency]
        days = [row["day"] for row in own]
        money, orders = ([float(row[name]) for row in own] for name in ("gross_amount", "paid_order_count"))
        found.append((currency, _trend(f"trend-{currency}", days, money, orders, marked)))
    return found


def _trend(
    name: str, days: Sequence[date], money: Sequence[float], orders: Sequence[float], marked: Collection[date]
) -> Markup:
    colours = [ACCENT if day in marked else QUIET for day in days]
    with _figure(name, 7.2, 2.2, rows=2) as (_, (upper, lower), target):
        for axis, values in ((upper, money), (lower, orders)):
            axis.bar(range(len(days)), values, width=0.72, color=colours, linewidth=0)
            _value_axis(axis)
        _day_axis(lower, days)
    return _inline(target.getvalue(), "Revenue and paid orders by day")


def reviews(rows: Sequence[Row]) -> Markup | None:
    """Rows of reviews_trend.sql: orders signed as wide bars, of these asked and reviewed as narrow bars in front."""
    if not any(row["signed_order_count"] for row in rows):
        return None
    places = range(len(rows))
    signed, asked, reviewed = (
        [float(row[f"{name}_order_count"]) for row in rows] for name in ("signed", "asked", "reviewed")
    )
    with _figure("reviews", 7.2, 1.6) as (_, (axis,), target):
        axis.bar(places, signed, width=0.78, color=GRID, linewidth=0)
        axis.bar([x - 0.17 for x in places], asked, width=0.3, color=QUIET, linewidth=0)
        axis.bar([x + 0.17 for x in places], reviewed, width=0.3, color=GOOD, linewidth=0)
        _value_axis(axis)
        _day_axis(axis, [row["day"] for row in rows])
    return _inline(target.getvalue(), "Orders signed, asked for a review and reviewed, by day of signing")


def uplift(name: str, result: Row | None) -> Markup | None:
    """A row of run_result.sql: the difference in percentage points with its interval, against zero; None when there is none to show."""
    if not result or result["verdict"] == "not enough data":
        return None
    if None in (result["uplift_rate"], result["uplift_low_rate"], result["uplift_high_rate"]):
        return None
    low, middle, high = (float(result[f"uplift_{part}rate"]) * 100 for part in ("low_", "", "high_"))
    colour = GOOD if low > 0 else BAD if high < 0 else MUTED
    with _figure(name, 3.6, 0.75) as (_, (axis,), target):
        axis.axvline(0, color=INK, linewidth=0.9)
        axis.plot([low, high], [0, 0], color=colour, linewidth=5, alpha=0.35, solid_capstyle="butt")
        axis.plot([middle], [0], marker="o", markersize=6, color=colour)
        span = max(abs(low), abs(high), 0.1) * 1.2
        axis.set_xlim(min(low - span * 0.1, -span * 0.4), max(high + span * 0.1, span * 0.4))
        axis.set_ylim(-1, 1)
        axis.set_yticks([])
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:+g}".replace("-", "−") if value else "0")
        axis.grid(axis="x", color=GRID, linewidth=0.7)
    return _inline(target.getvalue(), "Difference of the buying rates with its interval, in percentage points")


def effects(name: str, lines: Sequence[tuple[str, float, float, float]]) -> Markup | None:
    """Differences of buying rates as (label, low, middle, high) in rates, one under the other against zero; None without any."""
    if not lines:
        return None
    places = range(len(lines), 0, -1)
    with _figure(name, 5.4, 0.45 + 0.27 * len(lines)) as (_, (axis,), target):
        axis.axvline(0, color=INK, linewidth=0.9)
        for place, (_label, *ends) in zip(places, lines, strict=True):
            low, middle, high = (value * 100 for value in ends)
            colour = GOOD if low > 0 else BAD if high < 0 else MUTED
            axis.plot([low, high], [place, place], color=colour, linewidth=5, alpha=0.35, solid_capstyle="butt")
            axis.plot([middle], [place], marker="o", markersize=5, color=colour)
        axis.set_ylim(0.4, len(lines) + 0.6)
        axis.set_yticks(list(places), [label for label, *_ in lines])
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:+g}".replace("-", "−") if value else "0")
        axis.grid(axis="x", color=GRID, linewidth=0.7)
    return _inline(target.getvalue(), "Differences of the buying rates with their intervals, in percentage points")
