"""Lists that move while they are read, and lists that need a call per row to be complete.

`settled` walks a list until it can be trusted: until as many different rows were seen as the platform counts, or, where it
counts nothing, until a walk that left doubts was followed by one that brought nothing new. `walk_back` does so for lists
that are cut by page numbers and say how many rows they have.
"""

from collections.abc import Callable, Iterator

from nightmarket.platforms.base import PlatformDown, Record

MAX_WALKS = 4  # how often one list is walked until it can be trusted

Page = tuple[int, list[Record]]  # (rows that match, the rows of this page)
Key = Callable[[Record], str | None]


def settled(
    platform: str,
    method: str,
    walk: Callable[[], Iterator[list[Record]]],
    key: Key,
    *,
    total: Callable[[], int | None] = lambda: None,
    shifts: bool = False,
) -> Iterator[list[Record]]:
    """The pages of `walk()`, walked again while rows may have been missed; some rows may come twice.

    `total()` is asked after each walk: what the platform counts now, None when it does not count. `shifts`: pages are cut
    by number, so that a row which moves makes another one jump over a page border. Rows without a key count as seen, so
    that a broken record is reported once and does not hold up the others. Raises PlatformDown when the list never holds still.
    """
    seen: set[str] = set()
    count: int | None = None
    for number in range(MAX_WALKS):
        known, nameless, pages, has_empty = len(seen), 0, 0, False
        for rows in walk():
            names = [key(row) for row in rows]
            nameless += names.count(None)
            seen.update(name for name in names if name is not None)
            pages += 1
            has_empty = has_empty or not rows
            yield rows
        count = total()
        if count is not None:
            if len(seen) + nameless >= count:
                return
            continue
        # one page is one moment; a page that was promised and came empty, or a border that may have moved, is doubtful
        if pages < 2 or not (shifts or has_empty) or (number > 0 and len(seen) == known):
            return
    counted = f", the platform counts {count}" if count is not None else ""
    raise PlatformDown(platform, method, f"the list kept changing: {len(seen)} rows after {MAX_WALKS} walks{counted}")


class Counted:
    """A list cut by page numbers that says how many rows it has, read from the last page to the first.

    What leaves the list moves others towards page 1, which is still to come: nothing is skipped, some rows come twice.
    `page(n)` gives the count and the rows of page n, from 1; `first` is page 1 when it was read just now.
    """

    def __init__(self, page: Callable[[int], Page], size: int, first: Page | None = None) -> None:
        self.page, self.size, self.count, self._first = page, size, 0, first

    def walk(self) -> Iterator[list[Record]]:
        """One walk. Afterwards `count` is what the platform counted last."""
        self.count, rows = self._first or self.page(1)
        self._first = None
        for number in range(-(-self.count // self.size), 1, -1):
            yield self.page(number)[1]
        if self.count > self.size:  # page 1 comes last and is counted again: did anything move in between?
            self.count, rows = self.page(1)
        yield rows


def walk_back(
    platform: str, method: str, page: Callable[[int], Page], size: int, key: Key, *, first: Page | None = None
) -> Iterator[list[Record]]:
    """All rows of a Counted list, until as many different rows were seen as the platform counts at the end."""
    counted = Counted(page, size, first)
    return settled(platform, method, counted.walk, key, total=lambda: counted.count)


def with_details(
    pages: Iterator[list[Record]], key: Key, complete: Callable[[str, Record], Record]
) -> Iterator[list[Record]]:
    """The rows, each once and made complete by a call of its own; what has no id is given as it is, to be rejected."""
    done: set[str] = set()
    for page in pages:
        full = []
        for row in page:
            name = key(row)
            if name is None:
                full.append(row)
            elif name not in done:
                done.add(name)
                full.append(complete(name, row))
        yield full


def at(record: object, *path: str) -> object:
    """What stands at a path; None when anything on the way is missing."""
    for name in path:
        record = record.get(name) if isinstance(record, dict) else None
    return record


def text_at(*path: str) -> Key:
    """A reader of an id at a path: its text, None when there is none."""

    def read(record: Record) -> str | None:
        value = at(record, *path)
        return None if value in (None, "") else str(value)

    return read
