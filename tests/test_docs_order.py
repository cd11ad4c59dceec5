"""Commands in the documentation come after those that make the runs they need, and a missing run names its command."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from lightning_guide.runs.models import open_snapshots, raw_network
from lightning_guide.utils.files import read_yaml

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "configs" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FIT = re.compile(r"lightning-guide fit +-c (configs/\S+\.yaml)(.*)")


def runs_in(node: Any) -> Iterator[str]:
    """Yield the runs that a config reads."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "run" and isinstance(value, str):
                yield from [value] if ":" not in value else []  # a published model
            else:
                yield from runs_in(value)
    elif isinstance(node, list):
        for value in node:
            yield from runs_in(value)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_what_a_command_needs_was_made_above(page: Path) -> None:
    made: set[str] = set()
    for name, rest in FIT.findall(page.read_text(encoding="utf-8")):
        if not (ROOT / name).is_file():  # a placeholder
            continue
        config = read_yaml(ROOT / name)
        needed = set(runs_in(config)) if "cifar" not in name else set()  # its data is made elsewhere
        assert needed <= made, f"{page.name}: {name} needs {needed - made}"
        folder = re.search(r"default_root_dir (\S+)", rest)
        made.add(folder[1] if folder else config["trainer"]["default_root_dir"])


def test_a_missing_run_names_the_command_that_trains_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="train it first: lightning-guide fit -c configs/digits/classifier.yaml$"):
        raw_network("runs/digits/classifier", kind=nn.Module)
    with pytest.raises(ValueError, match="train it first: lightning-guide fit -c configs/digits/main.yaml$"):
        open_snapshots("runs/digits/main")
    with pytest.raises(ValueError, match="runs with snapshots: none$"):
        open_snapshots("runs/mine")
