"""Odd and wrong input to the Python front door: names of the package, folders, samples and evaluations of a run."""

from __future__ import annotations

import os
import random
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import lightning_guide as lg
from lightning_guide.cli.configs import config_mistakes
from lightning_guide.commands.gallery import gallery
from lightning_guide.commands.sweep import Sweep
from lightning_guide.utils.parser import update_paths
from lightning_guide.utils.recipe import build

STEPS = lg.Heun(lg.KarrasGrid(2, sigma_min=0.1, sigma_max=5.0))
CONFIGS, DATA = Path(__file__).parent.parent / "configs", Path(__file__).parent / "data"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the stored run."""
    return Path(shutil.copytree(DATA / "run_ae12ae3", tmp_path / "run"))


def random_states() -> tuple[Any, ...]:
    """Global random states, and the seed that Lightning leaves in the environment."""
    numpy = np.random.get_state(legacy=False)["state"]
    kept = [os.environ.get(name) for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")]
    return torch.get_rng_state().tolist(), numpy["key"].tolist(), numpy["pos"], random.getstate(), kept


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
    with pytest.raises(ValueError, match="the number of steps of Heun is .*; expected a whole number from 1 on"):
        lg.Heun(grid)


def test_grid_takes_a_number_of_numpy() -> None:
    grid = lg.Heun(np.int64(3)).grid
    assert grid == 3 and type(grid) is int


def test_recipe_without_arguments_builds_and_wrong_ones_are_named() -> None:
    assert isinstance(build({"class_path": "lightning_guide.Heun", "init_args": None}), lg.Heun)
    with pytest.raises(ValueError, match=r"recipe of lightning_guide.Heun: init_args is \[1\]; expected a dict"):
        build({"class_path": "lightning_guide.Heun", "init_args": [1]})


def test_renamed_arguments_are_those_of_this_library_and_given_once() -> None:
    other = {"class_path": "elsewhere.EnergyGuidance", "init_args": {"moves": 1}}
    assert update_paths(other) == other
    with pytest.raises(
        ValueError, match="EnergyGuidance has moves and updates, the old and the new name of one argument"
    ):
        update_paths({"class_path": "EnergyGuidance", "init_args": {"moves": 1, "updates": 2}})


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
        list(config_mistakes("fit", ["-c", str(tmp_path / "top.yaml")]))


# A run folder


def write_config(folder: Path, **changes: Any) -> dict[str, Any]:
    """Lay `changes` of the arguments of the module over the config of a run."""
    config: dict[str, Any] = yaml.safe_load((folder / "config.yaml").read_text())
    config["model"]["init_args"] |= changes
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return config


@pytest.mark.parametrize(("name", "message"), [("none", "does not exist"), ("run/config.yaml", "is a file")])
def test_what_is_no_folder_is_no_run(name: str, message: str, folder: Path) -> None:
    with pytest.raises(
        ValueError, match=f"the run folder '.*{name}' {message}; expected the default_root_dir of a fit"
    ):
        lg.Run(folder.parent / name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "config.yaml is no config of a run: the content is None; expected keys and values"),
        ("- 1\n", r"the content is \[1\]"),
        ("data: {class_path: Digits}\n", "model is None"),
        ("model: DiffusionModule\n", "model is 'DiffusionModule'"),
        ("trainer: [1]\nmodel: {class_path: DiffusionModule}\n", r"trainer is \[1\]"),
        ("model: {class_path: DiffusionModule, init_args: [1]}\n", r"model.init_args is \[1\]"),
        ("model: {}\nmodel: {}\n", "config.yaml, line 2: duplicate key 'model'"),
    ],
)
def test_broken_config_is_named(text: str, message: str, folder: Path) -> None:
    (folder / "config.yaml").write_text(text)
    for use in (
        lg.load,
        lambda run: lg.Run(run).evaluate(),
        lambda run: gallery(str(run), ["pag.yaml"]),
    ):
        with pytest.raises(ValueError, match=message):
            use(folder)


def test_config_may_leave_trainer_and_arguments_empty(folder: Path) -> None:
    (folder / "config.yaml").write_text("trainer:\nmodel: {class_path: DiffusionModule, init_args: }\n")
    run = lg.Run(folder)
    assert run.config["trainer"] == {"default_root_dir": str(folder)} and run.settings == {}
    with pytest.raises(
        ValueError, match="run '.*run': .*config.yaml, line 2: model has no denoiser, which DiffusionModule needs"
    ):
        run.evaluate()


def test_average_of_the_config_is_taken_as_it_is(folder: Path) -> None:
    write_config(folder, average=0)
    with pytest.raises(ValueError, match="no snapshot of images=128, sigma_rel=0"):
        lg.load(folder)


# Run.sample and Run.evaluate


def test_run_of_a_gpu_is_sampled_without_one(folder: Path) -> None:
    config = write_config(folder)
    config["trainer"] |= {"accelerator": "gpu", "devices": 4, "strategy": "ddp"}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    x = lg.Run(folder).sample(lg.Autoguidance(lg.Snapshot("1/2", 0.1), 2.0), STEPS, labels=[1, 2])
    assert x.shape == (2, 1, 8, 8) and x.dtype == torch.uint8


def test_wrong_guidance_and_device_of_a_run_are_named(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"the guidance is \[1, 2\]; expected an object such as Autoguidance"):
        lg.Run(folder).sample([1, 2])
    with pytest.raises(ValueError, match="the device 'nowhere' cannot be used here"):
        lg.Run(folder).resolve(device="nowhere")
    (folder / "config.yaml").write_text("model: {class_path: DiffusionModule}\ndata: {class_path: Nothing}\n")
    with pytest.raises(ValueError, match="run '.*run': data.class_path: there is no class Nothing; expected a"):
        lg.Run(folder).sample(sampler=STEPS, count=1)


@pytest.mark.parametrize(
    ("evaluations", "message"),
    [
        ([1], r"evaluations is \[1\]; expected a dict"),
        ({"a": None}, "evaluation 'a' is None; expected a dict"),
        (
            {"a": {"nothing": 1}},
            "run '.*': model.init_args.evaluations.a.nothing: Evaluation has no argument nothing; there",
        ),
        ({"a": {"num_samples": 0}}, "run '.*': evaluation 'a' needs num_samples >= 1, got 0"),
    ],
)
def test_wrong_evaluations_are_named_and_leave_no_trace(evaluations: Any, message: str, folder: Path) -> None:
    before = random_states()
    with pytest.raises(ValueError, match=message) as raised:
        lg.Run(folder).evaluate(evaluations)
    assert "\n" not in str(raised.value) and random_states() == before


def test_evaluation_is_silent_and_leaves_random_states_and_the_folder(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before, files = random_states(), {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\.pytorch|torch")
        results = lg.Run(folder).evaluate({"cfg": {"guidance": lg.ClassifierFreeGuidance(2.0), "num_samples": 2}})
    assert results["cfg"]["nfe"] == 14 and capfd.readouterr() == ("", "")
    assert random_states() == before and files == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_raw_weights_are_those_of_the_newest_checkpoint(folder: Path) -> None:
    write_config(folder, average=None)
    settings = {"evaluations": {"a": {"num_samples": 2, "sampler": {"class_path": "Heun", "init_args": {"grid": 3}}}}}
    session = lg.Run(folder).session(model=settings)
    stored = torch.load(folder / "checkpoints/step-000000008.ckpt", weights_only=True)["state_dict"]
    session.model.load_state_dict(stored)
    session.trainer.test(session.model, datamodule=session.datamodule, verbose=False)
    expected = session.model.evaluations.results["a"]["nearest"]
    assert lg.Run(folder).test(model=settings)["a"]["nearest"] == expected
    loaded = lg.Run(folder).model().state_dict()
    assert all(torch.equal(loaded[name], stored[f"denoiser.{name}"]) for name in loaded)
    averaged = lg.Run(folder).model(sigma_rel=0.05).state_dict()
    assert any(not torch.equal(loaded[name], averaged[name]) for name in loaded)
    with pytest.raises(ValueError, match="raw weights .average: null.*expected sigma_rel as well for .*images=1/2"):
        lg.Run(folder).model(images="1/2")
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(ValueError, match="checkpoints holds no checkpoint; the config evaluates the raw weights"):
        lg.Run(folder).test(model=settings)
    with pytest.raises(ValueError, match="checkpoints holds no checkpoint; the config evaluates the raw weights"):
        lg.Run(folder).sample(count=1)


def test_missing_run_of_a_search_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the run folder 'none' does not exist"):
        Sweep(str(CONFIGS / "search/autoguidance.yaml"), tmp_path).start("none")
