"""Commands in the documentation and in the comments of configs name configs and options that exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from lightning_guide.cli import COMMANDS
from lightning_guide.cli.table import read_signature
from lightning_guide.utils.files import read_yaml

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "configs/README.md")]
PAGES += [*sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "scripts").rglob("*.md"))]
SOURCES = [*PAGES, *sorted((ROOT / "configs").rglob("*.yaml")), *sorted((ROOT / "scripts").rglob("*.py"))]
TEXTS = {str(path.relative_to(ROOT)): re.sub(r" *\\\n[ #]*", " ", path.read_text()) for path in SOURCES}
CALL = re.compile(r"lightning(?:-guide|_guide\.cli) (\w+) ([^`\n]+)")
FUNCTIONS = {name for name, command in COMMANDS.items() if command.function}
CALLS = [(page, *call) for page, text in TEXTS.items() for call in CALL.findall(text)]
PLACEHOLDERS = re.compile(r"RUN|\bruns/|CONFIG|\.\.\.|\bX\b|this file|my[_.]")


def test_commands_are_found() -> None:
    assert len(CALLS) > 100 and {"docs/training.md", "docs/data.md"} <= {page for page, *_ in CALLS}


@pytest.mark.parametrize(
    ("page", "words"), dict.fromkeys((page, rest) for page, name, rest in CALLS if name not in FUNCTIONS)
)
def test_configs_of_a_command_exist_and_make_a_run(page: str, words: str) -> None:
    """They name model, data and folder, unless they extend a config of the reader."""
    named = re.findall(r"-c (\S+\.yaml)", words)
    files = [ROOT / name for name in named if not PLACEHOLDERS.search(name)]
    assert all(file.is_file() for file in files), f"{page}: {words}"
    if not files or len(files) < len(named) or PLACEHOLDERS.search(words):
        return
    together: dict[str, Any] = {"trainer": {}, "model": {}, "data": {}}
    for file in files:
        for key, part in read_yaml(file).items():
            if isinstance(part, dict):
                together.setdefault(key, {}).update(part)
    assert together["model"].get("class_path") and together["data"], f"{page}: {words} names no model, or no data"
    assert together["trainer"].get("default_root_dir") or "default_root_dir" in words, f"{page}: {words} has no folder"


@pytest.mark.parametrize(
    ("page", "name", "words"), dict.fromkeys((page, name, rest) for page, name, rest in CALLS if name in FUNCTIONS)
)
def test_options_of_a_command_exist(page: str, name: str, words: str) -> None:
    known = {*read_signature(COMMANDS[name].function).arguments, "help"}
    options = re.findall(r"--(\w+)", words.split("  #")[0])
    assert set(options) <= known, f"{page}: {name} {words}; there are {sorted(known)}"
