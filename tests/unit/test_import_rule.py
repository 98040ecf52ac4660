"""Data flows one way: the import rule of docs/architecture.md, kept by import-linter and two looks at the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def imported(path: Path) -> set[str]:
    """Every module a file names in an import statement, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
    return names


def test_layers_hold() -> None:
    linter = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([linter], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]


def test_the_sandbox_imports_nothing_of_ours() -> None:
    files = sorted((ROOT / "include" / "sandbox").rglob("*.py"))
    assert files
    guilty = [
        f"{path.name}: {name}"
        for path in files
        for name in imported(path)
        if name.split(".")[0] in ("nightmarket", "airflow")
    ]
    assert guilty == []


@pytest.mark.parametrize("path", sorted((ROOT / "dags").glob("*.py")), ids=lambda path: path.name)
def test_a_dag_imports_nothing_above_it(path: Path) -> None:
    above = [name for name in imported(path) if name.startswith(("nightmarket.local", "nightmarket.cli"))]
    assert above == []
