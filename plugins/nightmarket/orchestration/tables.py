"""Small tables for task logs."""

from collections.abc import Mapping, Sequence
from typing import Any


def text_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> str:
    """Rows as aligned text: a heading, a line, one line per row; numbers to the right. `columns`: which, in which order."""
    if not rows:
        return "(nothing)"
    heading = list(columns or rows[0])
    cells = [[_text(row.get(name)) for name in heading] for row in rows]
    widths = [max(len(line[i]) for line in [heading, *cells]) for i in range(len(heading))]
    is_number = [all(isinstance(row.get(name), int | float) for row in rows) for name in heading]

    def line(values: Sequence[str]) -> str:
        return "  ".join(
            value.rjust(width) if right else value.ljust(width)
            for value, width, right in zip(values, widths, is_number, strict=True)
        ).rstrip()

    return "\n".join([line(heading), line(["-" * width for width in widths]), *map(line, cells)])


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
