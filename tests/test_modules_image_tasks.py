"""Networks for image tasks: targets against independent methods, training, and use as guides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules import Digits
from lightning_guide.denoiser import Denoiser
from lightning_guide.distributions.gaussian_mixture import GaussianMixture
from lightning_guide.guidance.training_free import DPS, MPGD, MPGDLatent
from lightning_guide.modules.classifiers import RobustClassifierModule, adversarial_images
from lightning_guide.modules.image_tasks import (
    ImageTask,
    ImageTaskModule,
    Parts,
    Reconstruction,
    Sketch,
    outline,
    part_masks,
)
from lightning_guide.networks import ImageAutoencoder, ImageToImageNetwork
from lightning_guide.networks.classifiers import SmallClassifier
from lightning_guide.noise import KarrasGrid
from lightning_guide.objectives import Distance, NetworkDistance
from lightning_guide.pretrained import RunAutoencoder, RunNetwork
from lightning_guide.samplers import Euler
from lightning_guide.seeds import SampleSeeds
from tests.runs import tiny_trainer


def images(count: int = 40) -> Tensor:
    data = Digits()
    return data.encode(data.heldout().x[:count])


def test_parts_equal_hole_filling() -> None:
    found, x = part_masks(images()), images()
    for image, each in zip(x[:, 0].numpy() > 0, found, strict=True):
        holes = ndimage.binary_fill_holes(image) & ~image
        expected = torch.from_numpy(image).long() + 2 * torch.from_numpy(holes).long()
        assert torch.equal(each, expected)
    assert set(found.unique().tolist()) == {0, 1, 2}


def test_spiral_has_no_hole() -> None:
    """The path to the border is longer than any side."""
    rows = ["#######", "#.....#", "#.###.#", "#.#.#.#", "#.#...#", "#.#####", "......."]
    x = torch.tensor([[1.0 if c == "#" else -1.0 for c in row] for row in rows])[None, None]
    assert not (part_masks(x) == 2).any()
    x[0, 0, 5, 1] = 1.0
    assert int((part_masks(x) == 2).sum()) == 14


def test_outline_is_the_range_around_a_pixel() -> None:
    x, found = images(3), outline(images(3))
    for i in range(8):
        for j in range(8):
            around = x[:, 0, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].flatten(1)
            torch.testing.assert_close(found[:, 0, i, j], around.amax(1) - around.amin(1))


def trained(folder: Path, network: nn.Module, task: ImageTask) -> pl.Trainer:
    trainer = tiny_trainer(folder, steps=25, limit_val_batches=1, val_check_interval=25)
    module = ImageTaskModule(network, task, optimizer=lambda p: torch.optim.Adam(p, lr=1e-2))
    trainer.fit(module, datamodule=Digits(batch_size=32))
    return trainer


TASKS: dict[str, tuple[Any, ImageTask, float]] = {
    "parts": (lambda: ImageToImageNetwork([1, 8, 8], 3, widths=[16]), Parts(), 0.5),
    "sketch": (lambda: ImageToImageNetwork([1, 8, 8], 1, widths=[16]), Sketch(), 0.6),
    "autoencoder": (lambda: ImageAutoencoder([1, 8, 8], 4, widths=[8, 16]), Reconstruction(), 0.45),
}


@pytest.mark.parametrize("name", TASKS)
def test_learns_and_is_loaded_from_its_run(name: str, tmp_path: Path) -> None:
    make, task, most = TASKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = make()
        before = float(task.losses(network, images()).mean().detach())
        trainer = trained(tmp_path, network, task)
    after = float(task.losses(network, images()).mean().detach())
    assert after < most < before, (before, after)
    assert 0 < float(trainer.callback_metrics["heldout/loss"]) < before
    seen = RunNetwork(str(tmp_path))(images())
    torch.testing.assert_close(seen, network.eval()(images()))
    if name == "autoencoder":
        latent = RunAutoencoder(str(tmp_path))
        z = latent.encode(images().double())
        assert z.dtype == torch.float64 and z.shape == (40, 4, 4, 4)
        torch.testing.assert_close(latent.decode(z), seen.double(), rtol=1e-4, atol=1e-4)
        with pytest.raises(ValueError, match="has no method 'compress'"):
            RunNetwork(str(tmp_path)).part("compress", images())
        plain, loss = Gray(), Distance(images(1)[0])
        for guided in (
            MPGD(loss, 0.3, autoencoder=latent, positive=plain),
            MPGDLatent(loss, latent, 0.3, positive=plain),
        ):
            ends = [drawn(each, 3) for each in (plain, guided)]
            assert float((loss(ends[1]) - loss(ends[0])).max()) < 0


class Gray(Denoiser):
    """Denoiser of images of independent Gaussian pixels."""

    data_shape, num_classes, sigma_data = (1, 8, 8), 0, 0.5

    def __init__(self) -> None:
        super().__init__()
        self.prior = GaussianMixture(torch.zeros(1, 64), 0.3 * torch.eye(64)[None])

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.prior(x.flatten(1), sigma).reshape(x.shape)


def drawn(denoiser: Denoiser, count: int) -> Tensor:
    return Euler(KarrasGrid(6, sigma_min=0.1, sigma_max=5.0)).sample(denoiser, seeds=SampleSeeds(0, range(count))).x


def test_each_sample_has_its_reference() -> None:
    """Sample i is guided to reference i, modulo their number, in any batch."""
    network, references = nn.Flatten(), images(2)
    guide = DPS(NetworkDistance(network, references), 2.0, positive=Gray())
    ends = drawn(guide, 4)
    away = (ends[:, None] - references).flatten(2).norm(dim=2)
    assert away.argmin(1).tolist() == [0, 1, 0, 1]
    sampler = Euler(KarrasGrid(6, sigma_min=0.1, sigma_max=5.0))
    torch.testing.assert_close(sampler.sample(guide, seeds=SampleSeeds(0, [3])).x[0], ends[3], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(NetworkDistance(network, references)(ends), away[torch.arange(4), [0, 1, 0, 1]])


def test_attacks_stay_within_radius_and_raise_the_loss(tmp_path: Path) -> None:
    data, x = Digits(batch_size=64), images()
    labels = data.heldout().labels
    assert labels is not None
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = SmallClassifier([1, 8, 8], num_classes=10, widths=[8, 16])
        module = RobustClassifierModule(network, radius=0.5, attacks=2)
        tiny_trainer(tmp_path, steps=3).fit(module, datamodule=data)
    network.eval().requires_grad_(False)
    worse = adversarial_images(network, x, labels[:40], radius=0.7, times=3)
    assert float((worse - x).flatten(1).norm(dim=1).max()) <= 0.7 + 1e-5
    assert F.cross_entropy(network(worse), labels[:40]) > F.cross_entropy(network(x), labels[:40]) + 1e-3
    assert RunNetwork(str(tmp_path)).num_classes == 10
    with pytest.raises(ValueError, match="radius > 0 and attacks >= 1"):
        RobustClassifierModule(network, radius=0.0)


def test_invalid_settings_are_rejected() -> None:
    with pytest.raises(ValueError, match="ImageToImageNetwork needs data_shape"):
        ImageToImageNetwork([1, 8, 8], 3, widths=[7])
    with pytest.raises(ValueError, match=r"divide the sides by 4, not \(6, 8\)"):
        ImageAutoencoder([1, 6, 8])
