"""Python and YAML of README, python.md, inverse_problems.md, text_to_image.md and extending.md run as printed."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_guide.cli import main

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
NAME = re.compile(r"# (my_\w+\.(?:py|yaml))")
SMALL = {
    "trainer": {
        "max_steps": 16, "val_check_interval": 16, "enable_progress_bar": False, "enable_model_summary": False,
    },
    "model": {"init_args": {"evaluations": {"plain": {"num_samples": 10, "batch_size": 10}}, "metrics": {}}},
}  # fmt: skip


def blocks(page: str, language: str) -> list[str]:
    """Code blocks of a page."""
    return [text for kind, text in BLOCK.findall((ROOT / page).read_text()) if kind == language]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_pipeline: Callable[[str], Path]) -> Path:
    """A folder with 16 steps of configs/digits/main.yaml in runs/digits/main, and a tiny model in models/sd15."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "small.yaml").write_text(yaml.safe_dump(SMALL))
    words = ["fit", "-c", str(ROOT / "configs/digits/main.yaml"), "-c", str(folder / "small.yaml")]
    main([*words, "--trainer.default_root_dir", str(folder / "runs/digits/main")])
    (folder / "models").mkdir()
    (folder / "models/sd15").symlink_to(tiny_pipeline("sd"))
    return folder


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same as working folder and on the path."""
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.setattr(sys, "argv", ["python"])
    return place


@pytest.mark.parametrize("page", ["README.md", "docs/python.md", "docs/inverse_problems.md", "docs/text_to_image.md"])
def test_python_of_a_page_runs(page: str, here: Path) -> None:
    found = blocks(page, "python")
    assert found, f"{page} shows no Python"
    namespace: dict[str, Any] = {}
    for block in found:
        exec(compile(block, page, "exec"), namespace)


def test_recipes_run_and_train_together(here: Path) -> None:
    namespace: dict[str, Any] = {}
    recipes = blocks("docs/extending.md", "python")
    for block in recipes:
        if name := NAME.match(block):
            (here / name[1]).write_text(block)
        exec(compile(block, "docs/extending.md", "exec"), namespace)
    assert sum(bool(NAME.match(block)) for block in recipes) == 6
    (config,) = blocks("docs/extending.md", "yaml")
    (here / "my_run.yaml").write_text(config)
    main(["fit", "-c", "my_run.yaml", "--trainer.max_steps=4", "--trainer.val_check_interval=4"])
    assert (here / "runs/squares/config.yaml").is_file()
    results = namespace["lg"].Run("runs/squares").evaluate()
    assert {"brightness", "nfe"} <= results["noisier"].keys()


def test_yaml_of_the_readme_is_a_config(here: Path) -> None:
    for block in blocks("README.md", "yaml"):
        (here / "readme.yaml").write_text(block)
        with pytest.raises(SystemExit) as left:
            main(["fit", "-c", str(ROOT / "configs/digits/main.yaml"), "-c", "readme.yaml", "--print_config"])
        assert left.value.code == 0


def test_every_public_name_can_be_reached_from_the_front() -> None:
    import lightning_guide as lg

    assert {"Run", "load", "sample", "Denoiser", "Preconditioned", "PerturbedAttentionGuidance", "Heun"} <= set(dir(lg))
    assert lg.Heun is __import__("lightning_guide.samplers", fromlist=["Heun"]).Heun
    with pytest.raises(AttributeError, match="no attribute 'NoSuchGuidance'"):
        lg.NoSuchGuidance  # noqa: B018
