"""Held-out loss: its value, and independence of batches and processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_guide.data import Batch
from lightning_guide.distributions.gaussian_mixture import GaussianMixture, gaussian
from lightning_guide.seeds import SampleSeeds
from lightning_guide.training.losses import EDMLoss
from lightning_guide.training.monitor import HeldoutLoss
from tests.runs import TinyImages, tiny_module, tiny_trainer


def test_value_and_any_split() -> None:
    denoiser = GaussianMixture([[0.0, 1.0], [1.0, -1.0]], torch.eye(2).expand(2, 2, 2) * 0.1)
    x, _ = denoiser.sample(13, torch.Generator().manual_seed(0))
    loss, sigmas = EDMLoss(uncertainty=False), [0.1, 2.0]
    noise = SampleSeeds(5, range(13)).normal("heldout", (2,))
    expected = {}
    for sigma in sigmas:
        weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
        error = denoiser(x + sigma * noise, torch.tensor(sigma)) - x
        expected[f"sigma_{sigma:g}"] = weight * float(error.square().mean(1).double().mean())
    for batches in ([range(13)], [range(k, 13, 3) for k in range(3)], [range(k, k + 1) for k in range(12, -1, -1)]):
        heldout = HeldoutLoss(sigmas, seed=5)
        for indices in batches:
            heldout.update(loss, denoiser, Batch(x[list(indices)]), indices)
        assert heldout.compute() == pytest.approx(expected, rel=1e-5)
    heldout.reset(torch.device("cpu"))
    assert heldout.compute() == {}  # without examples there is no loss, not a loss of 0


def test_exact_denoiser_has_the_least_loss() -> None:
    exact, wrong = gaussian([0.0], [[0.25]]), gaussian([0.3], [[0.25]])
    x, _ = exact.sample(2000, torch.Generator().manual_seed(0))
    losses = []
    for denoiser in (exact, wrong):
        heldout = HeldoutLoss([0.5], seed=0)
        heldout.update(EDMLoss(uncertainty=False), denoiser, Batch(x), range(2000))
        losses.append(heldout.compute()["sigma_0.5"])
    assert losses[0] == pytest.approx(1, abs=0.06)  # posterior variance 0.125 times the weight 8
    assert losses[1] > losses[0] + 0.1


@pytest.mark.parametrize("batch", [1, 5, 13, 64])
def test_in_validation_it_does_not_depend_on_the_batch_size(tmp_path: Path, batch: int) -> None:
    values = []
    for size in (4, batch):
        module = tiny_module(average=None, heldout_sigmas=(0.1, 1.0))
        trainer = tiny_trainer(tmp_path, limit_val_batches=1.0)
        (result,) = trainer.validate(module, datamodule=TinyImages(batch_size=size), verbose=False)
        values.append(result)
    values = [{key: value for key, value in result.items() if key.startswith("heldout/")} for result in values]
    assert set(values[0]) == {"heldout/sigma_0.1", "heldout/sigma_1"}
    assert values[1] == pytest.approx(values[0], rel=1e-6)
