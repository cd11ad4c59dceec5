"""Folder of samples: holds exactly the last prediction, keeps files of the user, and continues an interrupted one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from callbacks.sample_writer import SampleWriter
from lightning_guide.evaluation.evaluation import Evaluation
from lightning_guide.guidance import Main, ScoreScaling
from lightning_guide.modules.diffusion import DiffusionModule
from lightning_guide.training.losses import EDMLoss
from tests.test_callbacks_sample_writer import SAMPLER, Interrupt, Shade, Stored, files, trainer

SHAPE = (3, 4, 4)


class Counting(Shade):
    """Denoiser that counts its calls."""

    calls = 0

    def forward(self, *args: Any) -> Any:
        Counting.calls += 1
        return super().forward(*args)


def predict(run: Path, writer: SampleWriter, *more: Any, shape: tuple[int, ...] = SHAPE, **options: Any) -> None:
    """Draw into the folder of `writer`, 4 samples at a time."""
    level, as_bytes = options.pop("level", 0.0), options.pop("as_bytes", True)
    chosen: dict[str, Any] = {"sampler": SAMPLER, "batch_size": 4} | options
    denoiser = Counting(shape)
    torch.nn.init.constant_(denoiser.level, level)
    module = DiffusionModule(denoiser, EDMLoss(), prediction=Evaluation(**chosen), average=None)
    trainer(run, writer, *more).predict(module, Stored(shape, as_bytes=as_bytes))


def record(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "samples.json").read_text())
    return content


@pytest.mark.parametrize("formats", [["png"], ["shards"], ["npz", "png"]])
def test_folder_holds_exactly_the_last_prediction_and_what_is_the_users(tmp_path: Path, formats: list[Any]) -> None:
    folder = tmp_path / "samples"
    predict(tmp_path, SampleWriter(str(folder), formats=formats, records_per_shard=4), num_samples=1035, batch_size=207)
    mine = folder / "000000" / "mine.png"
    mine.parent.mkdir(exist_ok=True)
    mine.write_bytes(b"of the user")
    writer = SampleWriter(str(folder), formats=formats, records_per_shard=4)
    predict(tmp_path, writer, num_samples=12, seed=1)
    assert mine.read_bytes() == b"of the user"
    expected = {
        "png": [f"000000/{i:06d}.png" for i in range(12)],
        "shards": [f"samples-00000-{i:06d}.tar" for i in range(3)],
        "npz": ["samples.npz"],
    }
    written = sorted(name for each in formats for name in expected[each])
    assert files(folder) == sorted([*written, "000000/mine.png"]) and record(folder)["files"] == written
    assert not (folder / "001000").exists() and writer.written == folder


def test_folders_are_named_by_guidance_and_seed_and_never_mixed(tmp_path: Path) -> None:
    names = []
    for options in ({}, {"seed": 1}, {"guidance": ScoreScaling(1.5)}, {"level": 0.5}, {"num_samples": 2}):
        writer = SampleWriter()
        predict(tmp_path, writer, **({"num_samples": 5} | options))
        assert writer.written is not None
        names.append(writer.written.relative_to(tmp_path / "samples").as_posix())
    assert names == ["unguided-seed0", "unguided-seed1", "ScoreScaling-1.5-seed0", "unguided-seed0-2", "unguided-seed0"]
    counts = {folder.name: len(list(folder.rglob("*.png"))) for folder in (tmp_path / "samples").iterdir()}
    assert counts == {"unguided-seed0": 2, "unguided-seed0-2": 5, "unguided-seed1": 5, "ScoreScaling-1.5-seed0": 5}


def test_prediction_is_under_the_only_guidance_of_a_config() -> None:
    one, two = ScoreScaling(1.5), ScoreScaling(2.0)
    chosen = Evaluation(two, SAMPLER)
    for guidances, prediction, expected in (
        ({"one": one}, None, one), ({"one": one}, chosen, two), ({"one": one, "two": two}, None, Main)
    ):  # fmt: skip
        module = DiffusionModule(Shade(SHAPE), EDMLoss(), guidances=guidances, prediction=prediction)
        found = module.prediction.evaluations["prediction"].guidance
        assert found is expected or (expected is Main and isinstance(found, Main))


@pytest.mark.filterwarnings("ignore:predict returned None")  # for samples that are written
def test_interrupted_prediction_continues_with_the_same_images(tmp_path: Path) -> None:
    whole, broken = SampleWriter(), SampleWriter()
    Counting.calls = 0
    predict(tmp_path / "whole", whole, num_samples=20)
    all_calls, Counting.calls = Counting.calls, 0
    with pytest.raises(RuntimeError, match="interrupted"):
        predict(tmp_path / "broken", broken, Interrupt(), num_samples=20)
    assert broken.written is not None and whole.written is not None
    assert not record(broken.written)["finished"] and len(files(broken.written)) == 8  # batches 0 and 1
    (broken.written / "000000" / "000002.png").write_bytes(b"\x89PNG of a full disk")
    Counting.calls = 0
    again = SampleWriter()
    predict(tmp_path / "broken", again, num_samples=20)
    assert (
        again.written == broken.written and Counting.calls == 1 + (all_calls - 1) * 4 // 5
    )  # only batch 1 was complete
    assert files(again.written) == files(whole.written) and len(files(whole.written)) == 20
    assert all(
        (again.written / name).read_bytes() == (whole.written / name).read_bytes() for name in files(again.written)
    )
    Counting.calls = 0
    predict(tmp_path / "broken", SampleWriter(), num_samples=20)
    assert Counting.calls == all_calls  # a finished one is drawn anew


@pytest.mark.filterwarnings("ignore:predict returned None")  # for samples that are written
def test_images_of_another_prediction_are_not_taken_for_those_of_an_interrupted_one(tmp_path: Path) -> None:
    folder = str(tmp_path / "samples")
    predict(tmp_path, SampleWriter(folder), num_samples=20)
    with pytest.raises(RuntimeError, match="interrupted"):
        predict(tmp_path, SampleWriter(folder), Interrupt(), num_samples=20, seed=1)
    assert len(files(tmp_path / "samples")) == 8
    predict(tmp_path, SampleWriter(folder), num_samples=20, seed=1)
    predict(tmp_path, SampleWriter(str(tmp_path / "new")), num_samples=20, seed=1)
    for name in files(tmp_path / "new"):
        assert (tmp_path / "samples" / name).read_bytes() == (tmp_path / "new" / name).read_bytes()


def test_files_that_no_prediction_has_recorded_are_not_replaced(tmp_path: Path) -> None:
    mine = tmp_path / "samples" / "unguided-seed0" / "000000" / "000003.png"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"of the user")
    with pytest.raises(ValueError, match=r"unguided-seed0 holds 000000/000003.png, which no prediction has recorded"):
        predict(tmp_path, SampleWriter(str(mine.parents[1])), num_samples=5)
    writer = SampleWriter()
    predict(tmp_path, writer, num_samples=5)
    assert writer.written == tmp_path / "samples" / "unguided-seed0-2" and mine.read_bytes() == b"of the user"


@pytest.mark.parametrize("shape", [(2,), (1,), (2, 6), (4, 3, 3)])
def test_data_other_than_images_are_an_archive_and_one_image(tmp_path: Path, shape: tuple[int, ...]) -> None:
    writer = SampleWriter()
    predict(tmp_path, writer, num_samples=6, shape=shape, as_bytes=False)
    assert writer.written is not None and files(writer.written) == ["samples.npz", "samples.png"]
    assert np.load(writer.written / "samples.npz")["x"].shape == (6, *shape)
    pixels = np.array(Image.open(writer.written / "samples.png"))
    assert pixels.std() > 1 and min(pixels.shape[:2]) >= 64
