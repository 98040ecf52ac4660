"""categories.yaml: what is refused, with file, line and field; how words become regular expressions of PostgreSQL."""

from pathlib import Path

import psycopg
import pytest

from nightmarket import settings as settings_module
from nightmarket.categories import load_categories, sync_categories
from nightmarket.settings import ConfigError
from nightmarket.warehouse import Row, connect

GOOD = """\
default: {category: other, name_zh: 其他, name_en: Other}
categories:
  - category: fees
    name_zh: 费用
    name_en: Fees
    is_goods: false
    articles: ['^(POST|M)$']
  - category: bags
    name_zh: 包
    name_en: Bags
    words: [bag, key-ring, "50's", 背包]
    titles: ['\\mtote']
"""


@pytest.fixture(autouse=True)
def house(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTMARKET_WAREHOUSE_DSN", "postgresql://nowhere")
    settings_module.get_settings.cache_clear()


def write(folder: Path, text: str) -> Path:
    path = folder / "categories.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_stored_rules_are_right() -> None:
    file = load_categories()
    assert file.default.category == "other"
    assert [entry.category for entry in file.categories if not entry.is_goods] == ["service"]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("category: bags", "category: fees", "categories.yaml:8: categories.1.category: category 'fees' stands twice"),
        ("category: bags", "category: other", "categories.yaml:8: categories.1.category: category 'other' stands twice"),
        ("category: bags", "category: Big Bags", "categories.yaml:8: categories.1.category: String should match pattern"),
        ("    articles: ['^(POST|M)$']\n", "", "categories.yaml:3: categories.0: give words, titles or articles"),
        ("is_goods: false", "goods: false", "categories.yaml:6: categories.0.goods: unknown key. Known keys here: articles, category"),
        ("    name_en: Bags\n", "", "categories.yaml:8: categories.1.name_en: required key is missing"),
        ("default: {category: other, name_zh: 其他, name_en: Other}\n", "", "default: required key is missing"),
    ],
)  # fmt: skip
def test_a_mistake_names_file_line_and_field(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    assert old in GOOD
    with pytest.raises(ConfigError) as caught:
        load_categories(write(tmp_path, GOOD.replace(old, new, 1)))
    assert sentence in str(caught.value)


def test_words_are_whole_words_in_latin_and_anywhere_in_chinese(db: psycopg.Connection[Row], tmp_path: Path) -> None:
    assert sync_categories(db, write(tmp_path, GOOD)) == 3
    assert sync_categories(db, write(tmp_path, GOOD)) == 3, "again: the same rules, once"
    rows = db.execute(
        "SELECT t.title FROM unnest(%s::text[]) WITH ORDINALITY AS t (title, position)"
        " JOIN mart.category_rules AS r ON r.category = 'bags' AND t.title ~* r.title_pattern ORDER BY t.position",
        (
            [
                "Lunch BAG red",
                "Baggage",
                "a bag",
                "KEY-RING",
                "key ring",
                "50's",
                "50xs",
                "帆布背包👜",
                "totes",
                "a ketote",
            ],
        ),
    ).fetchall()
    assert [row["title"] for row in rows] == ["Lunch BAG red", "a bag", "KEY-RING", "50's", "帆布背包👜", "totes"]


def test_the_stored_rules_are_regular_expressions_of_postgresql(environment: str) -> None:
    with connect() as connection:
        assert sync_categories(connection) == len(load_categories().categories) + 1
        row = connection.execute("SELECT category FROM mart.category_rules ORDER BY position DESC LIMIT 1").fetchone()
        assert row == {"category": "other"}


def test_what_postgresql_does_not_take_is_one_sentence(db: psycopg.Connection[Row], tmp_path: Path) -> None:
    path = write(tmp_path, GOOD.replace("'\\mtote'", "'tote('"))
    with pytest.raises(
        ConfigError, match=r"categories\.yaml:8: categories\.1 \(bags\): invalid regular expression: paren"
    ):
        sync_categories(db, path)
