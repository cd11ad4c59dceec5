"""Runs of a model with a ControlNet: its image is in snapshots and checkpoints, which need no file of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import lightning_guide as lg
from datamodules.examples import TensorExamples
from lightning_guide.pretrained import ControlledNetwork
from tests.runs import TinyImages, checkpoint
from tests.test_pretrained_training import config, fit

pytest.importorskip("diffusers", reason="needs the extra `pretrained`")


class CaptionedLatents(TinyImages):
    """Random latents with random texts."""

    token_channels = 16

    def __init__(self, **options: Any) -> None:
        super().__init__(shape=(4, 8, 8), classes=0, **options)

    def _images(self, count: int, seed: int) -> TensorExamples:
        tokens = torch.randn(count, 77, 16, generator=torch.Generator().manual_seed(seed))
        return TensorExamples(super()._images(count, seed).x, tokens)


@pytest.mark.slow
def test_snapshots_and_checkpoints_hold_the_image(tiny_pipeline: Callable[[str], Path], tmp_path: Path) -> None:
    pixels = torch.randint(256, (16, 16, 3), generator=torch.Generator().manual_seed(5)).to(torch.uint8)
    image, folder = tmp_path / "edges.png", shutil.copytree(tiny_pipeline("controlnet"), tmp_path / "published")
    Image.fromarray(pixels.numpy()).save(image)
    arguments = {"source": f"diffusers:{folder}", "controlnet": {"image": str(image), "scale": 2.0}}
    before = lg.Pretrained(**arguments).eval()
    settings: Any = config(tmp_path / "run", {"class_path": "Pretrained", "init_args": arguments}, folder)
    settings["model"]["init_args"] |= {"evaluations": {}, "prediction": {"num_samples": 2}}
    settings["data"] = {"class_path": f"{__name__}.CaptionedLatents", "init_args": {"batch_size": 4}}
    fit(settings, tmp_path / "config.yaml")
    assert torch.equal(checkpoint(tmp_path / "run")["state_dict"]["denoiser.network.image"], before.network.image)
    settings["trainer"] |= {"max_steps": 4, "val_check_interval": 4}
    fit(settings, tmp_path / "config.yaml")  # from the checkpoint
    assert checkpoint(tmp_path / "run")["global_step"] == 4

    shutil.rmtree(folder)
    image.unlink()
    after = lg.load(tmp_path / "run")
    x, sigma = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor(1.5)
    with torch.no_grad():
        difference = (after(x, sigma) - before(x, sigma)).abs().max()
        assert 0 < difference < 0.05 * before(x, sigma).abs().max()  # after four small steps
        assert isinstance(after.network, ControlledNetwork) and torch.equal(after.network.image, before.network.image)
        found = after(x, sigma)
        after.network.image.zero_()
        assert (after(x, sigma) - found).abs().max() > 3 * difference
