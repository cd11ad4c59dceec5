"""The pages: every link leads somewhere, every page is found from the README; files that code names are there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """File and anchor of every link of a page that stays in the repository."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            yield (page.parent / path).resolve() if path else page, anchor


def anchors(page: Path) -> set[str]:
    """The anchors that the headings of a page get on GitHub."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def name(page: Path) -> str:
    """The path as a reader of the test report wants to see it."""
    return page.relative_to(ROOT).as_posix()


def test_anchors_are_those_of_github() -> None:
    assert "off-the-manifold-e4" in anchors(ROOT / "docs" / "training_free_results.md")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for path, anchor in links(page):
        assert path.exists(), f"{name(page)} links to {path}, which is not there"
        assert not anchor or anchor in anchors(path), f"{name(page)}: {name(path)} has no heading for #{anchor}"


def test_every_page_is_found_from_the_readme() -> None:
    found, to_read = {PAGES[0]}, [PAGES[0]]
    while to_read:
        new = {path for path, _ in links(to_read.pop()) if path.suffix == ".md"} - found
        found |= new
        to_read += new
    lost = {name(page) for page in PAGES} - {name(page) for page in found}
    assert lost <= {"CONTRIBUTING.md"}, f"no chain of links leads from the README to {sorted(lost)}"


def test_every_picture_is_shown() -> None:
    shown = {path for page in PAGES for path, _ in links(page)}
    unused = {name(path) for path in (ROOT / "docs" / "images").iterdir()} - {name(path) for path in shown}
    assert not unused, f"no page shows {sorted(unused)}"


def test_files_that_code_names_exist() -> None:
    folders = ("lightning_guide", "callbacks", "datamodules", "scripts", "tests")
    for path in [*(path for folder in folders for path in (ROOT / folder).rglob("*.py")), ROOT / "Makefile"]:
        text = path.read_text(encoding="utf-8")
        for named in re.findall(r"\b(?:docs|scripts|tests|configs)/[\w/]*\b[a-z]\w*\.(?:md|py|yaml)\b", text):
            assert (ROOT / named).is_file(), f"{name(path)} names {named}, which is not there"
