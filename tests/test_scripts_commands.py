"""Commands of scripts in pages and docstrings: modules exist and accept the options."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "scripts").rglob("*.md"))]
SOURCES = [*sorted((ROOT / "scripts").rglob("*.py")), *PAGES, ROOT / "Makefile"]
CALL = re.compile(r"python -m (scripts(?:\.[a-z]\w*)+)(?: +([^`#\n]+))?")


def commands(module: str) -> dict[str, tuple[set[str], int]]:
    """Return command -> (options, number of required arguments); the command is "" if the script has only one."""
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
    functions = {node.name: node.args for node in tree.body if isinstance(node, ast.FunctionDef)}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    for call in calls:
        if isinstance(call.func, ast.Name) and call.func.id == "run_script":
            given = call.args[0]
            names = [given] if isinstance(given, ast.Name) else given.elts if isinstance(given, ast.List) else []
            found = {each.id: _signature(functions[each.id]) for each in names if isinstance(each, ast.Name)}
            return {"": next(iter(found.values()))} if isinstance(given, ast.Name) else found
    added = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument"]
    return {"": ({ast.literal_eval(call.args[0]).removeprefix("--").replace("-", "_") for call in added}, 0)}


def _signature(arguments: ast.arguments) -> tuple[set[str], int]:
    options = {each.arg for each in [*arguments.args, *arguments.kwonlyargs]}
    return options, len(arguments.args) - len(arguments.defaults)


def calls() -> list[tuple[str, str, str]]:
    """Return (page or script, module, arguments) of every command line."""
    found = []
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        text = (ast.get_docstring(ast.parse(text)) or "") if path.suffix == ".py" else text
        joined = re.sub(r"\\\n *", " ", re.sub(r"(`[^`\n]*)\n([^`]*`)", r"\1 \2", text))
        found += [(path.relative_to(ROOT).as_posix(), *call) for call in CALL.findall(joined)]
    return found


def test_command_lines_are_found() -> None:
    assert len([call for call in calls() if "--" in call[2]]) > 30


def test_every_script_documents_its_command() -> None:
    scripts = [path for path in (ROOT / "scripts").rglob("*.py") if "__main__" in path.read_text(encoding="utf-8")]
    assert len(scripts) > 25
    for path in scripts:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        assert f"python -m {module}" in docstring, f"{path.relative_to(ROOT)} does not document its command"


def test_no_script_is_run_by_its_path() -> None:
    for path in SOURCES:
        assert not re.search(r"python scripts/", path.read_text(encoding="utf-8")), path.relative_to(ROOT)


@pytest.mark.parametrize(("page", "module", "arguments"), dict.fromkeys(calls()))
def test_script_accepts_documented_arguments(page: str, module: str, arguments: str) -> None:
    known = commands(module)
    if not re.match(r"[\w.\[\"'-]", arguments):  # the rest of a sentence after a bare command
        return
    positional = shlex.split(arguments.split("--")[0].rstrip("[ "))
    options, required = known[""] if "" in known else known[positional.pop(0)]
    given = {each.replace("-", "_") for each in re.findall(r"--([\w-]+)", arguments)} - {"help"}
    assert given <= options, f"{page}: {module} {arguments}; there are {sorted(options)}"
    partial = "..." in positional or "--help" in arguments
    assert partial or len(positional) == required, f"{page}: {module} {arguments}; expected {required}"
