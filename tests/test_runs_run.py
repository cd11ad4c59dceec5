"""Odd and wrong input to the Python front door: names of the package, folders, samples and evaluations of a run."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import lightning_guide as lg
from lightning_guide.utils.files import check_config_files
from lightning_guide.utils.recipe import build

DATA = Path(__file__).parent / "data"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the stored run."""
    return Path(shutil.copytree(DATA / "run_ae12ae3", tmp_path / "run"))


# Names of the package


@pytest.mark.parametrize("name", ["guidance", "pretrained"])
def test_name_of_a_package_is_the_package(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package = getattr(lg, name)
    monkeypatch.delattr(lg, name)
    assert getattr(lg, name) is package is sys.modules[f"lightning_guide.{name}"]


def test_star_import_gives_the_public_names() -> None:
    names: dict[str, object] = {}
    exec("from lightning_guide import *", names)
    assert names["Heun"] is lg.Heun and names["sample"] is lg.sample
    assert "import_module" not in names and "PUBLIC" not in names
    assert set(names) - {"__builtins__"} <= set(dir(lg))


# Arguments


@pytest.mark.parametrize("grid", [0, -3, 1.5, True, "8", [1, 2], float("nan")])
def test_grid_is_a_whole_number_of_steps(grid: object) -> None:
    with pytest.raises(ValueError, match="whole number num_steps >= 1, got"):
        lg.Heun(grid)


def test_grid_takes_a_number_of_numpy() -> None:
    assert len(lg.Heun(np.int64(3)).grid.sigmas()) == 4


def test_recipe_without_arguments_builds_and_wrong_ones_are_named() -> None:
    assert isinstance(build({"class_path": "lightning_guide.Heun", "init_args": None}), lg.Heun)
    with pytest.raises(ValueError, match=r"recipe of lightning_guide.Heun: init_args is \[1\]; expected a dict"):
        build({"class_path": "lightning_guide.Heun", "init_args": [1]})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: null\n", "top.yaml: base is None; expected a file"),
        ("base: 3\n", "top.yaml: base is 3; expected a file"),
        ("base: [[a.yaml]]\n", r"top.yaml: base is \[\['a.yaml'\]\]; expected a file"),
        ("base: !tag a.yaml\n", "top.yaml: base is {'!tag'}; expected a file"),
        ("base: .\n", "top.yaml: base .* is a folder; expected a file"),
    ],
)
def test_wrong_base_is_described_as_written(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "top.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        check_config_files(["fit", "-c", str(tmp_path / "top.yaml")])
