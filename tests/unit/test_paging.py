"""Walking lists that move: when a walk can be trusted, and when it is done again."""

from collections.abc import Iterator

import pytest

from nightmarket.platforms.base import PlatformDown, Record
from nightmarket.platforms.paging import MAX_WALKS, settled, text_at, walk_back

KEY = text_at("id")


def rows(*names: int) -> list[Record]:
    return [{"id": name} for name in names]


class Walks:
    """Walks that were prepared; the last one is repeated."""

    def __init__(self, *walks: list[list[Record]]) -> None:
        self.walks, self.done = list(walks), 0

    def __call__(self) -> Iterator[list[Record]]:
        walk = self.walks[min(self.done, len(self.walks) - 1)]
        self.done += 1
        yield from walk


def read(walks: Walks, **options: object) -> set[int]:
    return {row["id"] for page in settled("x", "m", walks, KEY, **options) for row in page}  # type: ignore[arg-type]


def test_one_page_is_one_moment() -> None:
    walks = Walks([rows(1, 2)])
    assert read(walks, shifts=True) == {1, 2}
    assert walks.done == 1
    assert read(Walks([[]])) == set()


def test_a_cursor_is_trusted_and_numbered_pages_are_not() -> None:
    pages = [rows(1, 2), rows(3)]
    for shifts, count in ((False, 1), (True, 2)):
        walks = Walks(pages)
        assert read(walks, shifts=shifts) == {1, 2, 3}
        assert walks.done == count


def test_an_empty_page_that_was_promised_is_doubted_wherever_it_stands() -> None:
    for spoilt in ([rows(1, 2), []], [[], rows(3)]):
        walks = Walks(spoilt, [rows(1, 2), rows(3)])
        assert read(walks) == {1, 2, 3}
        assert walks.done == 2
    walks = Walks([rows(1, 2), []])  # it ends like this every time: the second walk brings nothing new
    assert read(walks) == {1, 2}
    assert walks.done == 2


def test_the_count_decides_where_there_is_one() -> None:
    walks = Walks([rows(1)], [rows(1), rows(2)], [rows(3)])
    assert read(walks, total=lambda: 3) == {1, 2, 3}
    assert walks.done == 3
    assert read(Walks([rows(1), []]), total=lambda: 1) == {1}


def test_rows_without_a_name_count_and_a_list_that_never_holds_still_is_told() -> None:
    assert read(Walks([[{"id": 1}, {"id": 2}]]), total=lambda: 2) == {1, 2}
    walks = Walks([[{"id": 1}, {"x": 1}]])
    assert len(list(settled("x", "m", walks, KEY, total=lambda: 2))) == 1
    with pytest.raises(PlatformDown, match=f"1 rows after {MAX_WALKS} walks, the platform counts 5"):
        read(Walks([rows(1)]), total=lambda: 5)


def test_what_leaves_a_numbered_list_while_it_is_read_takes_nothing_with_it() -> None:
    """Between any two pages the first row leaves for a later window: read from the back, no other row is skipped."""
    content = list(range(1, 12))
    left: list[int] = []

    def page(number: int) -> tuple[int, list[Record]]:
        answer = len(content), rows(*content[(number - 1) * 3 : number * 3])
        if number > 1:
            left.append(content.pop(0))
        return answer

    seen = {row["id"] for found in walk_back("x", "m", page, 3, KEY) for row in found}
    assert set(content) <= seen
    assert left
