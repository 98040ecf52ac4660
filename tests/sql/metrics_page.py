"""docs/metrics.md as data: its SQL blocks, by figure."""

import re
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"


@dataclass(frozen=True)
class Block:
    heading: str
    figure: str | None  # the name in `<!-- figure: name -->` before the block
    line: int
    sql: str

    def bound(self, day: str, run: str = "winback_gold@2026-03-14") -> str:
        """The query as psql would send it with \\set day and \\set run."""
        return self.sql.replace(":'day'", f"'{day}'").replace(":'run'", f"'{run}'")


def blocks() -> list[Block]:
    """Every ```sql block of the page, in order."""
    found: list[Block] = []
    heading, figure, inside = "", None, None
    for number, line in enumerate(PAGE.read_text(encoding="utf-8").splitlines(), start=1):
        if inside is not None:
            if line.startswith("```"):
                found.append(Block(heading, figure, number - len(inside), "\n".join(inside)))
                figure, inside = None, None
            else:
                inside.append(line)
        elif line.startswith("```sql"):
            inside = []
        elif line.startswith("#"):
            heading = line.lstrip("# ")
        elif match := re.fullmatch(r"<!-- figure: (\w+) -->", line):
            figure = match[1]
    return found
