"""Guiders of a model of which only one checkpoint exists: each changes samples, and weight 1 changes none."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from webdataset import TarWriter

import lightning_guide as lg
from callbacks import EarlySnapshots, PostHocEMA
from datamodules import Latents
from datamodules.commands.encode import encode
from lightning_guide.denoiser import Denoiser
from lightning_guide.guidance import SIMS, Autoguidance, PrunedWeights, QuantizedWeights, Snapshot
from lightning_guide.modules.diffusion import DiffusionModule
from lightning_guide.optimization import LowRank
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.pretrained import DiffusersNetwork, DiffusersVAE
from lightning_guide.runs.models import RunModels
from lightning_guide.samplers import Euler
from lightning_guide.training.losses import EpsilonLoss
from lightning_guide.utils.images import encode_png
from tests.runs import tiny_trainer
from tests.test_pretrained_typed_prompts import PROMPTS, model

diffusers = pytest.importorskip("diffusers", reason="needs the extra `pretrained`")
pytestmark = pytest.mark.filterwarnings("ignore:the latents in")  # random networks of arbitrary scale


@pytest.fixture(scope="module")
def folder(tiny_pipeline: Callable[[str], Path]) -> Path:
    return tiny_pipeline("sd")


def smaller(main: Denoiser) -> Denoiser:
    """A U-Net of the same texts and latents with fewer channels, as a smaller published size."""
    network: Any = main.network
    torch.manual_seed(7)
    unet = diffusers.UNet2DConditionModel(**dict(network.model.config) | {"block_out_channels": (4, 8)}).eval()
    other = DiffusersNetwork.of(unet, empty_length=77)
    other.empty.copy_(network.empty)
    return Preconditioned(other, main.preconditioning, sigma_data=1.0)  # type: ignore[arg-type]


def longer_average(main: Denoiser) -> Denoiser:
    """The same network with weights that lag behind, as an average of another length."""
    other = copy.deepcopy(main)
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(0.98)
    return other


@pytest.mark.parametrize(
    "make",
    [
        smaller,
        longer_average,
        lambda main: QuantizedWeights(8, model=main),
        lambda main: QuantizedWeights(4, model=main),
        lambda main: PrunedWeights(0.2, model=main),
    ],
    ids=["smaller", "average", "8 bits", "4 bits", "pruned"],
)
def test_guiders_of_one_checkpoint(folder: Path, make: Callable[[Denoiser], Denoiser]) -> None:
    main, tokens = model(folder)[0], lg.encode_prompts(folder, PROMPTS)

    def draw(guidance: Denoiser) -> Tensor:
        return lg.sample(guidance, Euler(4), prompts=tokens, seed=1)

    plain = draw(main)
    off, on = (draw(resolved(Autoguidance(make(main), weight, positive=main), main)) for weight in (1.0, 2.0))
    torch.testing.assert_close(off, plain, atol=1e-5, rtol=1e-5)
    assert float((on - plain).abs().max()) > 1e-2 and bool(on.isfinite().all())


def resolved(guidance: Denoiser, main: Denoiser, run: Path | None = None) -> Denoiser:
    """Put models in place of references."""
    return guidance.resolve(RunModels(main, run=run or Path(), device=torch.device("cpu")))


def write_captioned(path: Path, count: int) -> None:
    """A shard of random images with captions."""
    path.parent.mkdir(parents=True)
    pixels = torch.Generator().manual_seed(0)
    with path.open("wb") as file, TarWriter(file) as tar:
        for i in range(count):
            image = torch.randint(256, (3, 16, 16), generator=pixels).to(torch.uint8)
            tar.write({"__key__": f"{i:04d}", "png": encode_png(image), "txt": f"number {i}"})


def test_an_early_snapshot_of_a_low_rank_fine_tuning(folder: Path, tmp_path: Path) -> None:
    """Images and captions become latents and embeddings; the additions are trained; their snapshots guide."""
    write_captioned(tmp_path / "pixels/train-00000.tar", 8)
    vae = DiffusersVAE(str(folder), subfolder="vae", lowest=-1)
    encode(str(tmp_path / "pixels/*.tar"), str(tmp_path / "z"), vae=vae, texts=str(folder), device="cpu")
    shards = str(tmp_path / "z/*.tar")
    options: dict[str, Any] = {"mean": [0.0] * 4, "std": [2.74499] * 4, "token_channels": 16, "batch_size": 4}
    module = DiffusionModule(LowRank(model(folder)[0], rank=2), EpsilonLoss(), label_dropout=0.1)
    callbacks = [PostHocEMA(16, sigma_rels=[0.05]), EarlySnapshots(["1/2"], rebuildable=1)]
    run = tmp_path / "run"
    tiny_trainer(run, *callbacks, steps=8).fit(module, datamodule=Latents(shards, shards, vae=vae, **options))
    tuned, tokens = lg.load(run), lg.encode_prompts(folder, PROMPTS)
    plain = lg.sample(tuned, Euler(4), prompts=tokens, seed=1)
    for guidance in (Autoguidance(Snapshot("1/2", 0.05), 2.0), SIMS(Snapshot("1/2", 0.05), 2.0)):
        guided = resolved(guidance, tuned, run)
        assert not torch.allclose(lg.sample(guided, Euler(4), prompts=tokens, seed=1), plain, atol=1e-4)
