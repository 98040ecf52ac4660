"""Nightmarket (夜市): the night shift of a retail brand's operations team. docs/architecture.md is the map."""

__version__ = "0.1.0"
