"""Pages: every link has a target, every page is linked from the README, files named in code and pages exist."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "configs/README.md")]
PAGES += [*sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "scripts").rglob("*.md"))]
OWN_ADDRESS = re.compile(
    r"https://(?:github\.com/\w[\w-]*/lightning-guide/blob|raw\.githubusercontent\.com/\w[\w-]*/lightning-guide)/main/"
)
NAMED = re.compile(r"\b(?:docs|scripts|tests|configs)/[\w/]*\b[a-z]\w*\.(?:md|py|yaml)\b")


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """Yield file and anchor of every link of a page within the repository."""
    for target in targets(page):
        path, _, anchor = target.partition("#")
        if at_home := OWN_ADDRESS.match(path):
            yield ROOT / path[at_home.end() :], anchor
        elif "://" not in target:
            yield (page.parent / path).resolve() if path else page, anchor


def targets(page: Path) -> list[str]:
    """Return the targets of all links of a page, as they are written."""
    text = page.read_text(encoding="utf-8")
    return re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^\[[^\]]+\]: (\S+)$", text, flags=re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def name(page: Path) -> str:
    """Return the path relative to the repository, for test reports."""
    return page.relative_to(ROOT).as_posix()


def test_anchors_follow_the_rules_of_github() -> None:
    assert "off-the-manifold-e4" in anchors(ROOT / "scripts" / "studies" / "training_free" / "README.md")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_have_targets(page: Path) -> None:
    for path, anchor in links(page):
        assert path.exists(), f"{name(page)} links to {path}, which does not exist"
        assert not anchor or anchor in anchors(path), f"{name(page)}: {name(path)} has no heading for #{anchor}"


def test_links_of_the_readme_work_on_the_page_of_a_package_index() -> None:
    readme, urls = PAGES[0], tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
    relative = [target for target in targets(readme) if not target.startswith(("https://", "#"))]
    assert not relative, f"README is shown outside the repository, but links to {relative}; expected absolute addresses"
    home = urls["Repository"].removeprefix("https://github.com")
    assert all(home in target for target in targets(readme) if "github" in target)
    assert all(path.exists() for path, _ in links(readme)) and len(list(links(readme))) > 10


def test_every_page_is_linked_from_the_readme() -> None:
    found, to_read = {PAGES[0]}, [PAGES[0]]
    while to_read:
        new = {path for path, _ in links(to_read.pop()) if path.suffix == ".md"} - found
        found |= new
        to_read += new
    lost = {name(page) for page in PAGES} - {name(page) for page in found}
    assert lost <= {"CONTRIBUTING.md", "docs/index.md"}, f"no chain of links leads from the README to {sorted(lost)}"


def test_every_study_has_a_record() -> None:
    studies = [path for path in (ROOT / "scripts" / "studies").iterdir() if (path / "__init__.py").is_file()]
    assert len(studies) >= 7
    assert all((study / "README.md").is_file() for study in studies)


def test_every_image_is_shown() -> None:
    shown = {path for page in PAGES for path, _ in links(page)}
    folders = [ROOT / "docs" / "images", *(ROOT / "scripts").rglob("images")]
    unused = {path for folder in folders for path in folder.iterdir()} - shown
    assert not unused, f"no page shows {sorted(map(name, unused))}"


def test_named_files_exist() -> None:
    folders = ("lightning_guide", "callbacks", "datamodules", "scripts", "tests")
    sources = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    sources += [*PAGES, *(ROOT / "configs").rglob("*.yaml"), ROOT / "Makefile"]
    for path in sources:
        for named in NAMED.findall(path.read_text(encoding="utf-8")):
            assert (ROOT / named).is_file(), f"{name(path)} names {named}, which does not exist"
