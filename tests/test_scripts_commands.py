"""Command lines of scripts, in pages and docstrings, are such as the scripts take."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [*sorted((ROOT / "scripts").glob("*.py")), *sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]
CALL = re.compile(r"scripts/(\w+)\.py +([^`#\n]+)")


def commands(script: str) -> dict[str, ast.arguments]:
    """Name of the command -> parameters of its function; "" for a script of one command, nothing without `auto_cli`."""
    tree = ast.parse((ROOT / "scripts" / f"{script}.py").read_text(encoding="utf-8"))
    functions = {node.name: node.args for node in tree.body if isinstance(node, ast.FunctionDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "auto_cli":
            given = node.args[0]
            if isinstance(given, ast.Name):
                return {"": functions[given.id]}
            assert isinstance(given, ast.List)
            return {each.id: functions[each.id] for each in given.elts if isinstance(each, ast.Name)}
    return {}


def calls() -> list[tuple[str, str, str]]:
    """(page or script that names it, script, words behind it) of every command line that has words."""
    found = []
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        text = (ast.get_docstring(ast.parse(text)) or "") if path.suffix == ".py" else text
        joined = re.sub(r"\\\n *", " ", re.sub(r"(`[^`\n]*)\n([^`]*`)", r"\1 \2", text))
        found += [(path.name, script, words) for script, words in CALL.findall(joined) if words.strip("() \t")]
    return found


def test_there_are_command_lines_to_look_at() -> None:
    assert len([call for call in calls() if "--" in call[2]]) > 30


@pytest.mark.parametrize(("page", "script", "words"), dict.fromkeys(calls()))
def test_a_script_takes_what_it_is_told(page: str, script: str, words: str) -> None:
    known = commands(script)
    if not known or not re.match(r"[\w.\[\"'-]", words):
        return
    plain = shlex.split(words.split("--")[0].rstrip("[ "))
    chosen = known[""] if "" in known else known[plain.pop(0)]
    options = {each.arg for each in [*chosen.args, *chosen.kwonlyargs]}
    assert set(re.findall(r"--(\w+)", words)) <= options, f"{page}: {script} {words}; there are {sorted(options)}"
    required = [each.arg for each in chosen.args[: len(chosen.args) - len(chosen.defaults)]]
    assert "..." in plain or len(plain) == len(required), f"{page}: {script} {words}; expected {required}"
