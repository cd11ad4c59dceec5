"""`~` is the home folder in configs, on the command line and in Python, wherever a path is expected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import lightning_guide as lg
from callbacks.output import output_folder
from datamodules import DiffusionData, Digits, ImageFolder, SelfSynthesized, write_shards
from datamodules.commands.convert import ImageArchive, convert
from datamodules.shards import shard_paths
from datamodules.storage.downloads import Downloads
from lightning_guide.cli import main
from lightning_guide.commands.guidance_files import read_guidances
from lightning_guide.pretrained.loading import read_weights
from lightning_guide.runs.checkpoints import newest_checkpoint
from lightning_guide.runs.models import pretrained
from lightning_guide.utils.files import read_yaml
from lightning_guide.utils.parser import update_paths
from tests.runs import tiny_trainer

RUN = Path(__file__).parent / "data/run_ae12ae3"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder, with a run; another working folder."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home/run").symlink_to(RUN)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def images(folder: Path) -> None:
    """Write four PNG files in two classes."""
    from PIL import Image

    for i, name in enumerate(("a/0", "a/1", "b/0", "b/1")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 40 * i, np.uint8)).save(folder / f"{name}.png")


def test_runs_in_python(home: Path) -> None:
    assert lg.Run("~/run").model().num_classes == lg.load("~/run").num_classes == lg.Run(RUN).model().num_classes
    assert lg.open_snapshots("~/run").entries() and lg.SnapshotStore("~/run/snapshots").entries()
    assert newest_checkpoint("~/run") == home / "run/checkpoints/step-000000008.ckpt"
    assert pretrained("~/run", images="1/1").data_shape == (1, 8, 8)


def test_files_in_configs(home: Path) -> None:
    guidance = {"model": {"init_args": {"guidances": {"g": {"class_path": "ClassifierFreeGuidance"}}}}}
    (home / "low.yaml").write_text(yaml.safe_dump(guidance))
    Path("high.yaml").write_text("base: ~/low.yaml\nseed_everything: 1\n")
    assert read_yaml("high.yaml") == guidance | {"seed_everything": 1}
    assert read_guidances(["~/low.yaml"]) == read_guidances(["high.yaml"])
    assert update_paths({"run": "~/run", "text": "a ~/b", "many": ["~/x"]}) == {
        "run": f"{home}/run", "text": "a ~/b", "many": [f"{home}/x"],
    }  # fmt: skip


def test_words_of_the_command_line(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["export", "~/run", "--images=1/1", "~/exported"])
    assert (home / "exported/model.safetensors").is_file()
    main(["pull", "~/exported", "~/pulled"])
    assert lg.load("~/pulled").data_shape == (1, 8, 8)
    with pytest.raises(SystemExit):
        main(["fit", "-c", "~/run/config.yaml", "--trainer.default_root_dir=~/new", "--print_config"])
    assert f"default_root_dir: {home}/new" in capsys.readouterr().out


def test_data_and_callbacks_in_python(home: Path, tmp_path: Path) -> None:
    images(home / "images")
    convert("~/images", "~/shards", size=8)
    assert shard_paths("~/shards/train-*.tar") == [home / "shards/train-00000.tar"]
    write_shards(ImageArchive("~/images"), "~/others", name="train", size=8)
    assert (home / "others/train.json").is_file()
    data: Any = ImageFolder("~/images", heldout="~/images", num_classes=2, size=8, batch_size=2)
    assert isinstance(data, DiffusionData) and data.reference(torch.device("cpu")) is not None
    assert Downloads("~/fetched").folder == home / "fetched"
    assert SelfSynthesized(Digits(batch_size=2), run="~/run", folder="~/own", num_samples=1).folder == home / "own"
    assert output_folder(tiny_trainer(tmp_path), "~/report") == home / "report"
    layer = torch.nn.Linear(2, 2)
    torch.save(layer.state_dict(), home / "weights.pt")
    read_weights(layer, "~/weights.pt")
