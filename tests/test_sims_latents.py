"""SIMS and Neon of a latent model, with the real autoencoder class: the set holds latents, evaluations see images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from callbacks import PostHocEMA
from datamodules import Latents, SelfSynthesized
from datamodules.commands.convert import convert
from datamodules.commands.encode import encode
from lightning_guide.commands.averages import neon
from lightning_guide.evaluation import FrechetDistance, RawPixels
from lightning_guide.guidance import SIMS, Main, Neon, Snapshot
from lightning_guide.modules.diffusion import DiffusionModule
from lightning_guide.networks import EDM2UNet
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.pretrained import DiffusersVAE
from lightning_guide.runs.models import finished_model, pretrained
from lightning_guide.seeds import SampleSeeds, mix
from lightning_guide.training.losses import EDMLoss
from tests.runs import SAMPLER, evaluation, tiny_trainer
from tests.small_networks import save_autoencoder

pytest.importorskip("diffusers", reason="needs the autoencoder class of diffusers, which is missing")

pytestmark = pytest.mark.filterwarnings("ignore:the latents in")  # a random autoencoder of arbitrary scale


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Latents:
    """12 images of 16 x 16 in 3 classes as latents (4, 8, 8), and their autoencoder."""
    folder = tmp_path_factory.mktemp("latents")
    save_autoencoder(folder / "vae")
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        (folder / "images" / "abc"[i % 3]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / "images" / "abc"[i % 3] / f"{i}.png")
    vae = DiffusersVAE(str(folder / "vae"), lowest=-1.0)
    convert(str(folder / "images"), str(folder / "shards"))
    encode(str(folder / "shards/*.tar"), str(folder / "z"), vae=vae, device="cpu")
    paths = str(folder / "z/train-*.tar")
    return Latents(
        paths, paths, vae=vae, mean=[0.1, 0.0, -0.1, 0.2], std=[0.5, 0.6, 0.7, 0.8], num_classes=3, batch_size=4
    )


def module(denoiser: nn.Module, **options: object) -> DiffusionModule:
    return DiffusionModule(denoiser, EDMLoss(), heldout_sigmas=(0.3,), **options)  # type: ignore[arg-type]


def test_a_latent_model_retrains_on_its_own_latents(data: Latents, tmp_path: Path) -> None:
    network = EDM2UNet(
        [4, 8, 8], num_classes=3, model_channels=8, channel_mult=[1], num_blocks=1, attention_resolutions=[]
    )
    for parameter in network.parameters():
        if parameter.ndim == 0:
            nn.init.constant_(parameter, 0.5)  # gains of zero would hide the network
    base, auxiliary = tmp_path / "base", tmp_path / "auxiliary"
    tiny_trainer(base, PostHocEMA(16), steps=4).fit(module(Preconditioned(network), average=None), datamodule=data)

    synthetic = SelfSynthesized(data, str(base), str(tmp_path / "set"), 6, sampler=SAMPLER, chunk_size=4, batch_size=4)
    trainer = tiny_trainer(auxiliary, PostHocEMA(8), steps=2, limit_val_batches=1.0, val_check_interval=2)
    trainer.fit(module(pretrained(str(base)), average=None), datamodule=synthetic)
    assert trainer.callback_metrics["heldout/sigma_0.3"].isfinite()
    drawn, labels = synthetic.training().take(torch.arange(4))
    model, seeds = finished_model(base, None, 0.05), SampleSeeds(mix(0, "synthesis"), range(4))
    x = SAMPLER.sample(model, seeds=seeds, condition=labels).x
    assert drawn.shape == (4, 4, 8, 8) and drawn.dtype == torch.float32
    torch.testing.assert_close(synthetic.encode(drawn), x)
    images = synthetic.decode(x)
    assert images.shape == (4, 3, 16, 16) and images.dtype == torch.uint8

    aux = Snapshot(8, 0.05, run=str(auxiliary))
    metrics = {"fd": FrechetDistance(RawPixels())}
    loops = {"base": evaluation(Main(), metrics=metrics)}
    loops |= {"sims": evaluation(SIMS(aux, weight=1.5), metrics=metrics), "neon": evaluation(Neon(aux, 1.5))}
    judged = module(finished_model(base), average=None, evaluations=loops)
    tiny_trainer(tmp_path / "judged").test(judged, datamodule=synthetic, verbose=False)
    results = judged.evaluations.results
    assert results["sims"]["nfe"] == 2 * results["base"]["nfe"] == 2 * results["neon"]["nfe"]
    assert results["sims"]["fd"] != results["base"]["fd"]

    neon(str(base), str(auxiliary), weight=1.5, auxiliary_images=8, out=str(tmp_path / "neon"))
    merged, other = finished_model(tmp_path / "neon"), finished_model(auxiliary, 8)
    for a, b, c in zip(merged.parameters(), model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, 1.5 * b - 0.5 * c)
