"""The plan of the house: who may import whom, one root, small documented files."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("lightning_guide", "callbacks", "datamodules")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MAX_LINES = 300


def name(path: Path) -> str:
    """The path as a reader of the test report wants to see it."""
    return path.relative_to(ROOT).as_posix()


def parse(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=name(path))


def imported(tree: ast.AST) -> Iterator[str]:
    """Absolute names of all modules imported anywhere in the tree, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


# Folders of lightning_guide in reading order: none imports a later one. Files of the root are the vocabulary.
ROOMS = (
    "utils vocabulary samplers distributions snapshots networks training runs pretrained objectives guidance "
    "evaluation optimization modules search report commands playground cli"
).split()
LIBRARY = ROOT / "lightning_guide"
VARIANTS = {  # configs of a guidance that are settings of another one
    "autoguidance_several": "autoguidance",
    "autoguidance_cfg": "autoguidance",
    "cfg_interval": "cfg",
    "cfg_schedules": "cfg",
    "icg_gaussian": "icg",
    "m_swg": "swg",
}
PROBLEMS = ("inverse", "networks")  # configs of training-free guidance that set a problem, not a method


# Words with a plain equivalent: earlier snapshot, image, replacement, "is not ...", continues, atomic.
PRIVATE_ENGLISH = re.compile(
    r"\b(younger|told|pictures?|stands? in|stand-ins?|knows? no|goes on|whole or not|in the eyes of|said so|"
    r"begun again|vouch(es)?|foreseen|truth itself|told apart)\b",
    re.IGNORECASE,
)
# The aliases of old names, and this list.
WITH_OLD_NAMES = (
    "CHANGELOG.md",
    "lightning_guide/__init__.py",
    "tests/test_cli_classes.py",
    "tests/test_layout.py",
    "tests/test_stored_run.py",
    "tests/data/",
)


def room(path: Path) -> str:
    """The folder of a library file, or its part of the root."""
    parts = path.relative_to(LIBRARY).parts
    return parts[0] if len(parts) > 1 else "cli" if parts[0] == "__main__.py" else "vocabulary"


def library_file(module: str) -> Path | None:
    """File of a module of the library; None if there is none of that name."""
    path = ROOT.joinpath(*module.split("."))
    files = [path.with_suffix(".py"), path / "__init__.py"]
    return next((file for file in files if file.is_file() and LIBRARY in file.parents), None)


def dependencies(path: Path) -> set[Path]:
    """Files of the library that a file imports, the root's __init__ left out."""
    tree = parse(path)
    modules = set(imported(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {file for file in map(library_file, modules) if file is not None} - {LIBRARY / "__init__.py"}


def undocumented(tree: ast.Module) -> Iterator[str]:
    """Public top-level classes and functions without a docstring."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if not node.name.startswith("_") and not ast.get_docstring(node):
                yield node.name


def test_imports_are_found_at_any_depth() -> None:
    source = "import a.b\nfrom c.d import e\nfrom . import f\ndef g():\n    from h import i\n"
    assert sorted(imported(ast.parse(source))) == ["a.b", "c.d", "h"]


@pytest.mark.parametrize("path", sorted((ROOT / "lightning_guide").rglob("*.py")), ids=name)
def test_library_imports_neither_callbacks_nor_datamodules(path: Path) -> None:
    if path.parent == ROOT / "lightning_guide" / "cli":
        pytest.skip("the command line brings the three packages together")
    upward = [module for module in imported(parse(path)) if module.split(".")[0] in PACKAGES[1:]]
    assert not upward, f"{name(path)} imports {upward}, which stand above it"


@pytest.mark.parametrize("path", sorted(LIBRARY.rglob("*.py")), ids=name)
def test_no_room_imports_one_above_it(path: Path) -> None:
    if path == LIBRARY / "__init__.py":
        pytest.skip("the front door")
    above = {name(file) for file in dependencies(path) if ROOMS.index(room(file)) > ROOMS.index(room(path))}
    assert not above, f"{name(path)} imports {sorted(above)}, which stand above {room(path)} in {ROOMS}"


def test_no_circles_of_files() -> None:
    graph = {path: dependencies(path) for path in LIBRARY.rglob("*.py") if path.name != "__init__.py"}
    done: set[Path] = set()

    def visit(path: Path, way: tuple[Path, ...]) -> None:
        assert path not in way, " -> ".join(name(file) for file in (*way, path))
        if path not in done:
            for file in graph.get(path, set()):
                visit(file, (*way, path))
            done.add(path)

    for path in graph:
        visit(path, ())


@pytest.mark.parametrize("config", sorted((ROOT / "configs" / "guidance").glob("*.yaml")), ids=name)
def test_config_of_a_guidance_has_a_module_of_its_name(config: Path) -> None:
    method = VARIANTS.get(config.stem, config.stem)
    folder = LIBRARY / "guidance"
    assert any((folder / part / f"{method}.py").is_file() for part in ("negatives", "combinations"))


@pytest.mark.parametrize("config", sorted((ROOT / "configs" / "training_free").glob("*.yaml")), ids=name)
def test_config_of_a_training_free_method_has_a_module_of_its_name(config: Path) -> None:
    if config.stem not in PROBLEMS:
        assert (LIBRARY / "guidance" / "training_free" / f"{config.stem}.py").is_file()


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_share_the_root_of_this_checkout(package: str) -> None:
    file = importlib.import_module(package).__file__
    assert file is not None and Path(file).resolve() == ROOT / package / "__init__.py"
    assert (ROOT / package / "py.typed").is_file()


def test_every_folder_with_code_is_a_package() -> None:
    missing = {name(path.parent) for path in FILES if not (path.parent / "__init__.py").is_file()}
    assert not missing, f"no __init__.py in {sorted(missing)}"


def test_tests_are_flat_and_shadow_nothing() -> None:
    assert (ROOT / "tests" / "__init__.py").is_file()  # else the `tests` of torch-fidelity stands before it
    nested = [name(path) for path in (ROOT / "tests").rglob("*.py") if path.parent != ROOT / "tests"]
    assert not nested, f"tests lie flat, but found {nested}"
    shadows = [package for package in PACKAGES if (ROOT / "tests" / package).exists()]
    shadows += [f"{package}.py" for package in PACKAGES if (ROOT / "tests" / f"{package}.py").exists()]
    assert not shadows, f"tests/{shadows} would shadow the package"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_file_is_small_and_documented(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{name(path)} has {lines} lines: look for the second concept"
    tree = parse(path)
    assert ast.get_docstring(tree), f"{name(path)} has no module docstring"
    bare = list(undocumented(tree))
    assert not bare, f"{name(path)}: no docstring on {bare}"


def test_texts_are_in_plain_english() -> None:
    suffixes = {".py", ".md", ".yaml", ".yml", ".toml"}
    folders = [*PACKAGES, "configs", "docs", "scripts", "tests"]
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in suffixes]
    files += [path for path in ROOT.iterdir() if path.suffix in suffixes]
    found = [
        f"{name(path)}:{number}: {line.strip()}"
        for path in files
        if not name(path).startswith(WITH_OLD_NAMES)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if PRIVATE_ENGLISH.search(line)
    ]
    assert not found, "\n".join(found)
