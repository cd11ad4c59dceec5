"""Paths in the config of a run that was copied, moved or renamed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lightning_guide.utils.files import read_yaml
from lightning_guide.utils.run_places import in_place, run_of_config


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with the runs new/main and new/small, and the data in new/data and data."""
    monkeypatch.chdir(tmp_path)
    for folder in ("new/runs/main/snapshots", "new/runs/small", "new/data", "data"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "data/here-0.tar").touch()
    (tmp_path / "new/data/there-0.tar").touch()
    return tmp_path


@pytest.mark.parametrize("root", ["runs/main", "/gone/runs/main"])
@pytest.mark.parametrize("folder", ["new/runs/main", "ABSOLUTE/new/runs/main"])
def test_paths_follow_the_folder(root: str, folder: str, disk: Path) -> None:
    folder = folder.replace("ABSOLUTE", str(disk))
    up = root.removesuffix("/runs/main") if root.startswith("/") else ""
    new = folder.removesuffix("/runs/main")
    cases = {
        root: folder,
        f"{root}/grids/deep": f"{folder}/grids/deep",
        f"{root}/../main/grids": f"{folder}/grids",
        f"{Path(root).parent}/small": f"{new}/runs/small",
        f"{Path(root).parent}/missing": f"{Path(root).parent}/missing",
        "data/here-*.tar": "data/here-*.tar",
        f"{up}/data/there-{{0..1}}.tar" if up else "gone/data/there-0.tar": None,
        "1/16": "1/16",
        "https://host/runs/main/x": "https://host/runs/main/x",
        "runs/mainly": "runs/mainly",
        "main": "main",
    }
    for written, expected in cases.items():
        settings = {"trainer": {"default_root_dir": root}, "data": [{"init_args": {"folder": written}}]}
        found = in_place(settings, folder)
        assert found["trainer"]["default_root_dir"] == folder
        if expected is None:
            expected = f"{new}/data/there-{{0..1}}.tar" if up else written
        assert found["data"][0]["init_args"]["folder"] == expected
        assert settings["trainer"]["default_root_dir"] == root


def test_only_settings_of_paths_are_taken_for_paths(disk: Path) -> None:
    settings: dict[str, Any] = {"trainer": {"default_root_dir": "run"}, "model": {"name": "run", "run": "run"}}
    assert in_place(settings, "new/runs/main")["model"] == {"name": "run", "run": "new/runs/main"}


def test_a_run_in_the_working_folder_takes_along_what_is_there(disk: Path) -> None:
    (disk / "new/runs/main/grids").mkdir()
    settings = {
        "trainer": {"default_root_dir": "."},
        "data": {"a": "x/grids", "folder": "grids", "b": "data/here-0.tar"},
    }
    found = in_place(settings, "new/runs/main")["data"]
    assert found == {"a": "x/grids", "folder": "new/runs/main/grids", "b": "data/here-0.tar"}


def test_paths_stay_where_the_run_is_where_it_was(disk: Path) -> None:
    (disk / "link").symlink_to(disk / "new/runs/main")
    settings = {"trainer": {"default_root_dir": "new/runs/main"}, "data": {"folder": "new/runs/main/x"}}
    assert in_place(settings, "link")["data"] == {"folder": "new/runs/main/x"}


def test_a_config_is_that_of_a_run_beside_what_a_run_writes(disk: Path) -> None:
    config = disk / "new/runs/main/config.yaml"
    config.write_text("trainer: {default_root_dir: somewhere}")
    assert run_of_config(config) is None and read_yaml(config)["trainer"]["default_root_dir"] == "somewhere"
    (disk / "new/runs/main/snapshots/images-000000000008-sigma_rel-0.1000.safetensors").touch()
    assert run_of_config(config) == config.parent == run_of_config(config.with_name("config.test.yaml"))
    assert read_yaml(config)["trainer"]["default_root_dir"] == str(config.parent)
    assert run_of_config(config.with_name("other.yaml")) is None
    (disk / "mine.yaml").write_text("base: new/runs/main/config.yaml\nseed_everything: 1\n")
    assert read_yaml("mine.yaml") == {"trainer": {"default_root_dir": str(config.parent)}, "seed_everything": 1}
