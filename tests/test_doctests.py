"""Doctests: every example in a docstring of the packages runs as written."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("lightning_guide", "callbacks", "datamodules")


def _modules() -> list[str]:
    """Return the names of all modules whose source contains an example."""
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    with_examples = [path.relative_to(ROOT) for path in paths if ">>> " in path.read_text(encoding="utf-8")]
    return [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in with_examples]


MODULES = _modules()


@pytest.mark.parametrize("name", MODULES)
def test_examples_run_as_written(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Examples start in an empty folder and may leave files there."""
    module = importlib.import_module(name)
    monkeypatch.chdir(tmp_path)
    failed, attempted = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert attempted, f"{name} contains '>>>' outside of docstrings"
    assert not failed


def test_at_least_ten_modules_have_examples() -> None:
    assert len(MODULES) >= 10
