"""Learning rates: the formula, and its use by images seen for any batch size and accumulation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from lightning_guide.training.learning_rate import ConstantRate, Cooldown, InverseSqrtRate, LearningRate
from tests.runs import TinyImages, tiny_module, tiny_trainer


@pytest.mark.parametrize("decay", [math.inf, 1.0, 70.0, 1000.0])
@pytest.mark.parametrize("ramp", [0.0, 1.0, 100.0])
def test_inverse_square_root(decay: float, ramp: float) -> None:
    rate = InverseSqrtRate(0.02, decay_images=decay, rampup_images=ramp)
    for images in (0, 1, 50, 69, 70, 71, 100, 5000, 10**12):
        expected = 0.02 / math.sqrt(max(images / decay, 1)) * (min(images / ramp, 1) if ramp else 1)
        assert rate.at(images) == pytest.approx(expected, rel=1e-12)


def test_cooldown() -> None:
    inner = InverseSqrtRate(0.04, decay_images=100)
    rate = Cooldown(inner, 600, 1000)
    for images, factor in ((0, 1), (100, 1), (600, 1), (700, 0.75), (999, 0.0025), (1000, 0), (1001, 0)):
        assert rate.at(images) == pytest.approx(factor * inner.at(images), rel=1e-12)
    with pytest.raises(ValueError, match="begin=7 and end=7"):
        Cooldown(inner, 7, 7)


def test_edm2_schedule() -> None:
    # EDM2-XS: peak 0.0120, decay after 70,000 batches of 2048, ramp of 10 million images
    rate = InverseSqrtRate(0.0120, decay_images=70_000 * 2048, rampup_images=10e6)
    assert rate.at(0) == 0
    assert rate.at(5_000_000) == pytest.approx(0.006)
    assert rate.at(10_000_000) == rate.at(70_000 * 2048) == 0.0120
    assert rate.at(4 * 70_000 * 2048) == pytest.approx(0.006)


def test_constant_rate_ramps_linearly() -> None:
    rate = ConstantRate(0.5, rampup_images=200)
    assert [rate.at(images) for images in (0, 50, 200, 10**9)] == [0, 0.125, 0.5, 0.5]
    assert ConstantRate(0.5).at(0) == 0.5


@pytest.mark.parametrize("options", [{"peak": 0}, {"decay_images": 0}, {"rampup_images": -1}, {"peak": math.nan}])
def test_invalid_rates_are_rejected(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="needs peak > 0, decay_images > 0 and rampup_images >= 0"):
        InverseSqrtRate(**options)


class Rates(pl.Callback):
    """Records the rate of each optimizer step, the images before it, and whether the weights changed."""

    def __init__(self) -> None:
        self.used: list[tuple[int, float]] = []
        self.moved: list[bool] = []
        self._before: list[torch.Tensor] = []

    def on_before_zero_grad(self, trainer: pl.Trainer, module: Any, optimizer: torch.optim.Optimizer) -> None:
        self._before = [p.detach().clone() for p in module.denoiser.parameters()]

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *args: Any) -> None:
        if trainer.global_step > len(self.used):
            images = module.images_seen - module.images_per_step
            self.used.append((images, trainer.optimizers[0].param_groups[0]["lr"]))
            pairs = zip(self._before, module.denoiser.parameters(), strict=True)
            self.moved.append(any(not torch.allclose(*pair, rtol=1e-6, atol=1e-7) for pair in pairs))


def used(folder: Path, rate: LearningRate | None, batch: int, accumulate: int) -> Rates:
    rates = Rates()
    trainer = tiny_trainer(folder, rates, steps=6, accumulate_grad_batches=accumulate)
    trainer.fit(tiny_module(learning_rate=rate, average=None), datamodule=TinyImages(batch_size=batch))
    return rates


def test_run_follows_images_for_any_accumulation(tmp_path: Path) -> None:
    rate = InverseSqrtRate(0.01, decay_images=20, rampup_images=12)
    whole, parted = used(tmp_path, rate, 6, 1), used(tmp_path, rate, 3, 2)
    assert whole.used == parted.used == [(6 * k, rate.at(6 * k)) for k in range(6)]
    assert whole.used[0][1] == 0.0
    assert whole.moved[0] is parted.moved[0] is False and all(whole.moved[1:] + parted.moved[1:])


def test_default_is_constant(tmp_path: Path) -> None:
    assert {value for _, value in used(tmp_path, None, 4, 1).used} == {0.01}
