"""Prompts in what callbacks show: columns of the gallery, texts beside grids, the table of a prediction, the page."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks import Gallery, SampleGrid, SampleWriter
from callbacks.captions import caption_strips
from callbacks.gallery import LABEL, _shrunk
from datamodules import DigitCaptions, NoData
from datamodules.digit_captions import NAMES
from lightning_guide.guidance import ClassifierFreeGuidance
from lightning_guide.modules.diffusion import DiffusionModule
from lightning_guide.networks import EDM2UNet
from lightning_guide.report.run_page import run_page
from tests.event_files import opened
from tests.runs import evaluation, tiny_module, tiny_trainer


def module(**options: Any) -> DiffusionModule:
    """A model of digits by their names that is not trained, with the same weights at every call."""
    torch.manual_seed(0)
    network = EDM2UNet((1, 8, 8), token_channels=32, model_channels=8, channel_mult=[1], num_blocks=1,
                       attention_resolutions=[])  # fmt: skip
    return tiny_module(network, average=None, label_dropout=0.1, **options)


def test_grids_galleries_logs_and_the_page_show_prompts(tmp_path: Path) -> None:
    guided = evaluation(ClassifierFreeGuidance(2.0), num_samples=4)
    reversed_order = evaluation(num_samples=4, first_index=6)
    evaluations = {"unguided": evaluation(num_samples=4), "cfg": guided, "later": reversed_order}
    board = TensorBoardLogger(str(tmp_path), name="tensorboard", version="")
    trainer = tiny_trainer(tmp_path, Gallery(4), SampleGrid(4), logger=board)
    trainer.test(module(evaluations=evaluations), datamodule=DigitCaptions(), verbose=False)
    texts = {path.name: path.read_text().split() for path in (tmp_path / "grids").glob("*.txt")}
    assert texts == {
        "test-0-unguided.txt": ["zero", "one", "two", "three"],
        "test-0-cfg.txt": ["zero", "one", "two", "three"],
        "test-0-later.txt": ["six", "seven", "eight", "nine"],
    }
    log = opened(tmp_path / "tensorboard")
    first, cfg, later = (_logged(log, f"samples/{name}") for name in evaluations)
    assert np.array_equal(_under(first), _under(cfg)), "the same prompts"
    assert not np.array_equal(_under(first), _under(later)) and _under(first).min() < 64 < _under(first).mean()
    (logged,) = log.Tensors("samples/cfg/prompts/text_summary")
    assert logged.tensor_proto.string_val[0].decode().splitlines() == ["1. zero", "1. one", "1. two", "1. three"]
    page = run_page(tmp_path)
    assert page.count("row by row") == 2 and "zero\none\ntwo\nthree" in page and "six\nseven\neight" in page


def _logged(log: EventAccumulator, tag: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(log.Images(tag)[0].encoded_image_string)).convert("L"))


def _under(image: np.ndarray) -> np.ndarray:
    """What stands under one row of images of 128 pixels."""
    assert image.shape == (len(image), 4 * 130 + 2) and len(image) > 140
    return image[131:]


@pytest.mark.parametrize("width", [40, 128, 512])
def test_captions_are_wrapped_and_shortened_to_the_width(width: int) -> None:
    texts = ["a cat", "", "W" * 300, "雪の中の猫", "a long prompt, best quality " * 20, "a cat"]
    strips = caption_strips(texts, width)
    assert strips.shape[:2] == (6, 1) and strips.shape[3] == width and strips.dtype == torch.uint8
    assert (strips[1] == 255).all() and torch.equal(strips[0], strips[5]) and not torch.equal(strips[0], strips[3])
    for i in (0, 2, 3, 4):
        ink = (strips[i, 0] < 128).nonzero()
        assert len(ink) and ink[:, 1].max() < width - 1, "no letter is cut off at the right"
        assert ink[:, 0].max() < strips.shape[2] - 1
    lines = [(strips[i, 0] < 128).any(1).int().diff().eq(1).sum() for i in (0, 2)]
    assert lines[0] == 1 and lines[1] == 4


def test_a_gallery_shows_prompts_once_under_the_rows_that_share_them(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, Gallery(3))
    loops = {name: evaluation(num_samples=3, first_index=first) for name, first in (("a", 0), ("b", 0), ("c", 4))}
    trainer.test(module(evaluations=loops), datamodule=DigitCaptions(), verbose=False)
    image = np.asarray(Image.open(tmp_path / "gallery/gallery.png").convert("L"))[:, LABEL:]
    white = (image == 255).all(axis=1)
    starts = np.flatnonzero(np.diff(white.astype(int)) == -1)  # of images, and of the texts under b and c
    heights = np.diff([*np.flatnonzero(np.diff(white.astype(int)) == 1)], prepend=0)
    assert len(starts) == 5 and heights[1] > 128 and 5 < heights[2] < 40


def test_large_images_of_a_gallery_are_shrunk() -> None:
    x = torch.arange(4, dtype=torch.uint8).mul(60).reshape(4, 1, 1, 1).expand(-1, 3, 300, 384)
    small = _shrunk(x)
    assert small.shape == (4, 3, 150, 192) and torch.equal(small[:, 0, 70, 90], x[:, 0, 0, 0])
    assert _shrunk(small) is small


def test_columns_of_a_gallery_bear_prompts(tmp_path: Path) -> None:
    heights = []
    for data in (DigitCaptions(), Untitled()):
        folder = tmp_path / type(data).__name__
        trainer = tiny_trainer(folder, Gallery(3))
        trainer.test(module(evaluations={"plain": evaluation(num_samples=3)}), datamodule=data, verbose=False)
        heights.append(Image.open(folder / "gallery/gallery.png").height)
    assert heights[0] > heights[1]  # room for the titles


class Untitled(DigitCaptions):
    """Prompts whose texts are not known."""

    prompt_texts = None  # type: ignore[assignment]


def test_a_prediction_lists_its_prompts(tmp_path: Path) -> None:
    writer = SampleWriter(str(tmp_path / "samples"))
    drawing = evaluation(num_samples=3, first_index=8)
    tiny_trainer(tmp_path, writer).predict(module(prediction=drawing), datamodule=DigitCaptions())
    with (tmp_path / "samples/prompts.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["index", "prompt"], ["8", "eight"], ["9", "nine"], ["10", "zero"]]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "samples").rglob("*.png")}
    assert len(before) == 3
    tiny_trainer(tmp_path, writer).predict(module(prediction=drawing), datamodule=Untitled())
    assert not (tmp_path / "samples/prompts.csv").exists()


def test_other_prompts_are_another_prediction(tmp_path: Path) -> None:
    """An interrupted prediction must not continue with images of other prompts."""

    class Renamed(DigitCaptions):
        prompt_texts = tuple(reversed(NAMES))  # type: ignore[assignment]

    folders = []
    for data in (DigitCaptions(), DigitCaptions(), Renamed()):
        writer = SampleWriter()
        drawing = evaluation(num_samples=2)
        tiny_trainer(tmp_path, writer).predict(module(prediction=drawing), datamodule=data)
        assert writer.written is not None
        folders.append(writer.written.name)
    assert folders == ["unguided-seed0", "unguided-seed0", "unguided-seed0-2"]


def test_models_without_texts_write_no_table(tmp_path: Path) -> None:
    network = EDM2UNet((1, 8, 8), model_channels=8, channel_mult=[1], num_blocks=1, attention_resolutions=[])
    drawing = tiny_module(network, average=None, label_dropout=0.0, prediction=evaluation(num_samples=2))
    tiny_trainer(tmp_path, SampleWriter(str(tmp_path / "samples"))).predict(drawing, datamodule=NoData((1, 8, 8)))
    assert not (tmp_path / "samples/prompts.csv").exists() and len(list(tmp_path.rglob("*.png"))) == 2
