"""docs/campaigns.md names every field, variable and gate that there is, and its example is a campaign that may run."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from campaign_world import without_database, write_config
from nightmarket.campaigns.config import Campaign, campaign_problems, load_campaign, load_channels
from nightmarket.campaigns.rendering import VARIABLES, TemplateMeta
from nightmarket.campaigns.results import REASONS
from nightmarket.settings import ROOT, StrictModel

PAGE = (ROOT / "docs" / "campaigns.md").read_text(encoding="utf-8")
FREE = ("parameters", "template_ids")  # their keys are names of somebody else's


def tables(heading: str) -> list[set[str]]:
    """The names in the first column of each table below a heading."""
    text = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        rows = block.splitlines()[2:]
        found.append({name for row in rows for name in re.findall(r"`([\w.]+)`", row.split("|")[1])})
    return found


def models(annotation: Any) -> Iterator[type[StrictModel]]:
    if isinstance(annotation, type) and issubclass(annotation, StrictModel):
        yield annotation
    for part in get_args(annotation):
        yield from models(part)


def fields(model: type[StrictModel], before: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        inner = [] if name in FREE else list(models(field.annotation))
        if inner:
            yield from fields(inner[0], f"{before}{name}.")
        else:
            yield before + name


def test_every_field_variable_and_gate_is_on_the_page() -> None:
    assert tables("The fields") == [set(fields(Campaign))]
    assert tables("Who gets it") == [set(REASONS)]
    assert tables("Templates") == [set(fields(TemplateMeta)), set(VARIABLES)]


@pytest.fixture(autouse=True)
def _files_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield from without_database(monkeypatch)


def test_the_example_is_a_campaign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = PAGE.partition("```yaml\n")[2].partition("```")[0]
    name = yaml.safe_load(example)["campaign"]
    config = write_config(tmp_path / "house", monkeypatch)
    (config.folder / "config" / "campaigns" / f"{name}.yaml").write_text(example, encoding="utf-8")
    assert list(campaign_problems(load_campaign(name), load_channels())) == []
