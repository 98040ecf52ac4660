"""sources.yaml as the DAG files need it while they are parsed: quickly, and before any setting is known."""

import os
from pathlib import Path

import yaml

CONFIG_FOLDER = Path(__file__).resolve().parents[3] / "include" / "config"


def config_folder() -> Path:
    """include/config, or what NIGHTMARKET_CONFIG_DIR says."""
    return Path(os.environ.get("NIGHTMARKET_CONFIG_DIR") or CONFIG_FOLDER)


def source_ids() -> list[str]:
    """The ids of all sources, nothing else checked: extract_sources reads the same file with every check."""
    text = (config_folder() / "sources.yaml").read_text(encoding="utf-8")
    return list(yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))["sources"])  # noqa: S506 - a safe loader
