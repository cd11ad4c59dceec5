"""Tables of docs/guidance.md: every config of a method has a row, whose file and classes exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import lightning_guide

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = [
    path for folder in ("guidance", "training_free") for path in sorted((ROOT / "configs" / folder).glob("*.yaml"))
]


def rows(page: str = "guidance.md") -> list[dict[str, str]]:
    """Return the rows of all tables of a page of docs/: column -> cell."""
    found: list[dict[str, str]] = []
    header: list[str] = []
    for line in (ROOT / "docs" / page).read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            header = []
        elif not header:
            header = cells
        elif not set(line) <= set("|-: "):
            assert len(cells) == len(header), f"a row with {len(cells)} instead of {len(header)} cells: {line}"
            found.append(dict(zip(header, cells, strict=True)))
    return found


ROWS = rows()


def classes(row: dict[str, str]) -> list[str]:
    """Return the class names in a row."""
    return re.findall(r"`([A-Z]\w*)", row["class"]) + re.findall(r"\[([A-Z]\w*)\(", row["class"])


def name(path: Path) -> str:
    """Return the path relative to the repository, for test reports."""
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("config", CONFIGS, ids=name)
def test_every_config_has_a_row_with_its_class(config: Path) -> None:
    folder = config.parent.name
    matching = [
        row
        for row in ROWS
        if row["config"] == config.stem and row["file"].startswith("training_free/") == (folder == "training_free")
    ]
    assert matching, f"docs/guidance.md has no row for the config {name(config)}"
    text = config.read_text(encoding="utf-8")
    used = [each for row in matching for each in classes(row)]
    assert not used or any(f"class_path: {each}" in text for each in used), f"{name(config)} uses none of {used}"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["method"])
def test_file_classes_and_config_of_a_row_exist(row: dict[str, str]) -> None:
    assert (ROOT / "lightning_guide" / "guidance" / row["file"]).is_file(), row["file"]
    missing = [each for each in classes(row) if not hasattr(lightning_guide, each)]
    assert not missing, f"the row {row['method']} names {missing}, which lightning_guide does not export"
    assert row["config"] == "-" or row["config"] in {config.stem for config in CONFIGS}, row["config"]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["method"])
def test_every_row_has_a_cost(row: dict[str, str]) -> None:
    assert re.match(r"\d", row.get("cost") or row["time"])
