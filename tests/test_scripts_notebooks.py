"""Notebooks of scripts/examples run from a fresh kernel, with tiny settings, and use the public names alone."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

jupytext = pytest.importorskip("jupytext", reason="needs the extra `test`")
nbclient = pytest.importorskip("nbclient", reason="needs the extra `test`")

from nbformat.v4 import new_code_cell  # noqa: E402

ROOT = Path(__file__).parent.parent
NOTEBOOKS = {
    path.stem: path for path in (ROOT / "scripts" / "examples").glob("*.py") if "# %%" in path.read_text("utf-8")
}
TRAINING = {"CLASSIFIER_STEPS": 16, "STEPS": 16}
TINY: dict[str, dict[str, int]] = {
    "own_model": {"STEPS": 40, "POINTS": 50},
    "quickstart": {**TRAINING, "SAMPLES": 20},
    "fractal_autoguidance": {"STEPS": 32, "POINTS": 64, "SAMPLES": 64},
    "every_guidance": {**TRAINING, "SAMPLES": 10},
    "reward": {**TRAINING, "ROUNDS": 2, "STEPS_PER_ROUND": 2, "SAMPLES": 20},
    "find_guider": {**TRAINING, "BLOCK": 10, "BLOCKS": 2, "BUDGET": 320},
}
FIGURES = {
    "own_model": 1, "quickstart": 1, "fractal_autoguidance": 2, "every_guidance": 4, "reward": 2, "find_guider": 2
}  # fmt: skip
FAST = "own_model"  # trains in plain PyTorch on points


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder whose runs all notebooks share, as those of a user do."""
    return tmp_path_factory.mktemp("notebooks")


def execute(name: str, folder: Path, environment: pytest.MonkeyPatch) -> list[Any]:
    """Execute a notebook with the settings of `TINY` in a new kernel, and return its outputs."""
    environment.setenv("PYTHONPATH", str(ROOT))
    environment.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    for place in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        environment.setenv(place, str(folder / "jupyter"))
    notebook = jupytext.read(NOTEBOOKS[name])
    (at,) = (i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    assert TINY[name].keys() <= names(notebook.cells[at].source)
    tiny = new_code_cell("\n".join(f"{key} = {value}" for key, value in TINY[name].items()))
    notebook.cells.insert(at + 1, tiny)
    resources = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=1200, kernel_name="python3", resources=resources).execute()
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def names(source: str) -> set[str]:
    """Return the names that a cell sets."""
    return {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}


@pytest.mark.filterwarnings("ignore::DeprecationWarning:zmq", "ignore::DeprecationWarning:jupyter_client")
@pytest.mark.parametrize("name", [pytest.param(each, marks=[] if each == FAST else pytest.mark.slow) for each in TINY])
def test_a_notebook_runs_in_a_fresh_kernel(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = execute(name, folder, monkeypatch)
    images = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(images) == FIGURES[name]
    said = "".join(output.text for output in outputs if output.get("name") == "stderr")
    warnings = [line for line in said.splitlines() if "Warning" in line and "IProgress not found" not in line]
    assert not warnings, "ipywidgets, which the extra `notebooks` has, is the only thing that may be missing"
    assert any(output.get("name") == "stdout" for output in outputs), "a notebook prints its numbers"


def test_every_notebook_is_run_and_documented() -> None:
    assert NOTEBOOKS.keys() == TINY.keys() == FIGURES.keys()
    page = (ROOT / "docs" / "notebooks.md").read_text("utf-8")
    assert all(f"({'../scripts/examples/'}{name}.py)" in page for name in NOTEBOOKS)


@pytest.mark.parametrize("name", TINY)
def test_a_notebook_uses_public_names_and_ends_with_what_was_found(name: str) -> None:
    text = NOTEBOOKS[name].read_text("utf-8")
    imported = [
        node.module if isinstance(node, ast.ImportFrom) else alias.name
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    ]
    assert {each for each in imported if str(each).startswith("lightning_guide.")} <= {"lightning_guide.cli"}
    assert not any(str(each).split(".")[0] in ("scripts", "tests", "callbacks") for each in imported)
    last = text.rsplit("# %% [markdown]", 1)[1]
    assert re.match(r"\n# \*\*What was found\.\*\* ", last), "the last cell says what was found"
    assert text.count("plt.show()") >= 1 and text.count("suptitle") + text.count("set_title") >= 1
