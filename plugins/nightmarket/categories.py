"""Product categories: include/config/categories.yaml, read and judged, and as rows of mart.category_rules.

The SQL that sorts products is include/sql/mart/products/load.sql; this module only turns words into regular expressions.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import psycopg
from pydantic import Field, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from nightmarket.settings import ConfigError, StrictModel, get_settings, load_yaml, where
from nightmarket.warehouse import Row

Text = Annotated[str, Field(min_length=1)]
LAST = 32_000  # position of the default, which has no pattern


class Named(StrictModel):
    """A category without rules: what fits no other one."""

    category: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    name_zh: Text
    name_en: Text
    is_goods: bool = True


class Category(Named):
    """A category and how its products are known; any one of the rules is enough."""

    words: list[Text] = Field(default_factory=list)
    titles: list[Text] = Field(default_factory=list)
    articles: list[Text] = Field(default_factory=list)

    @property
    def title_pattern(self) -> str | None:
        """One PostgreSQL regular expression for words and titles; None when the entry has neither."""
        latin = sorted(re.escape(word) for word in self.words if word.isascii())
        others = sorted(re.escape(word) for word in self.words if not word.isascii())
        whole = [rf"\m(?:{'|'.join(latin)})\M"] if latin else []
        return "|".join([*whole, *others, *(f"(?:{title})" for title in self.titles)]) or None

    @property
    def article_pattern(self) -> str | None:
        return "|".join(f"(?:{article})" for article in self.articles) or None


class Categories(StrictModel):
    """include/config/categories.yaml: entries in the order in which they are tried, and what is left."""

    default: Named
    categories: list[Category]

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> "Categories":
        """Also refuses repeated names and entries without a rule, each with the place of the field that is wrong."""
        model = super().model_validate(obj, **options)
        for place, message in _mistakes(model):
            mistake = InitErrorDetails(
                type=PydanticCustomError("category", "{message}", {"message": message}), loc=place, input=None
            )
            raise ValidationError.from_exception_data("Categories", [mistake])
        return model


def _mistakes(model: Categories) -> Iterable[tuple[tuple[str | int, ...], str]]:
    names = {model.default.category}
    for index, entry in enumerate(model.categories):
        if entry.category in names:
            yield ("categories", index, "category"), f"category {entry.category!r} stands twice"
        names.add(entry.category)
        if not (entry.words or entry.titles or entry.articles):
            yield ("categories", index), "give words, titles or articles; an entry without a rule fits nothing"


def load_categories(path: Path | None = None) -> Categories:
    """The category rules of include/config/categories.yaml. Raises ConfigError with file, line and field."""
    return load_yaml(path or _path(), Categories)


def sync_categories(connection: psycopg.Connection[Row], path: Path | None = None) -> int:
    """Bring mart.category_rules to what categories.yaml says; returns how many categories there are.

    Raises ConfigError when the file is wrong or PostgreSQL does not take one of its regular expressions.
    """
    file = load_categories(path)
    connection.execute("DELETE FROM mart.category_rules")  # positions are unique: replacing is simpler than reordering
    for index, entry in enumerate([*file.categories, file.default]):
        rules = (entry.title_pattern, entry.article_pattern) if isinstance(entry, Category) else (None, None)
        try:
            connection.execute(
                "INSERT INTO mart.category_rules (category, position, name_zh, name_en, is_goods, title_pattern,"
                " article_pattern) SELECT v.* FROM (VALUES (%s, %s, %s, %s, %s, %s::text, %s::text)) AS v"
                " WHERE coalesce('' ~* v.column6, TRUE) IS NOT NULL AND coalesce('' ~* v.column7, TRUE) IS NOT NULL",
                (entry.category, LAST if entry is file.default else index + 1, entry.name_zh, entry.name_en,
                 entry.is_goods, *rules),
            )  # fmt: skip
        except psycopg.errors.InvalidRegularExpression as error:
            place = where(path or _path(), "categories", index)
            raise ConfigError(f"{place} ({entry.category}): {str(error).splitlines()[0]}.") from None
    return len(file.categories) + 1


def _path() -> Path:
    return get_settings().config_dir / "categories.yaml"
