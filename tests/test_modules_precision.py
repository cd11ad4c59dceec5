"""Mixed precision: the network computes in 16 bits; weights, averages, snapshots and the clock are unaffected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from callbacks import PostHocEMA
from lightning_guide.inference import fuse_weights
from lightning_guide.modules.diffusion import DiffusionModule
from lightning_guide.networks import EDM2UNet
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.training.learning_rate import adam
from tests.runs import TinyImages, evaluation, snapshots, tiny_module, tiny_trainer
from tests.small_networks import LABELS, SIGMA, noisy_images, unet

SHAPE = (1, 8, 8)


def trained(folder: Path, precision: Any) -> tuple[DiffusionModule, list[torch.dtype]]:
    """Train 4 steps of 2 micro-steps of 4 images; return the module and the input types of a convolution."""
    torch.manual_seed(0)
    network = EDM2UNet(SHAPE, num_classes=3, model_channels=8, channel_mult=[1, 2], num_blocks=1,
                       attention_resolutions=[4])  # fmt: skip
    seen: list[torch.dtype] = []
    convolution = network.input.multiply

    def recording(x: Tensor, weight: Tensor) -> Tensor:
        y = convolution(x, weight)
        seen.append(y.dtype)
        return y

    network.input.multiply = recording  # type: ignore[method-assign]
    module = tiny_module(network, evaluations={"plain": evaluation()}, average=0.05)
    trainer = tiny_trainer(folder, PostHocEMA(16), steps=4, precision=precision, accumulate_grad_batches=2,
                           limit_val_batches=1.0, val_check_interval=8)  # fmt: skip
    trainer.fit(module, datamodule=TinyImages(shape=SHAPE))
    return module, seen


def test_bfloat16_training_is_near_float32(tmp_path: Path) -> None:
    exact, wide = trained(tmp_path / "32", "32-true")
    rough, narrow = trained(tmp_path / "16", "bf16-mixed")
    assert set(wide) == {torch.float32} and set(narrow) == {torch.bfloat16}
    assert rough.images_seen == exact.images_seen == 32  # the clock counts images over micro-steps
    weights, others = (dict(module.denoiser.named_parameters()) for module in (exact, rough))
    assert all(weight.dtype == torch.float32 for weight in others.values())
    for name, weight in weights.items():
        moved = (others[name] - weight).norm() / weight.norm().clamp(min=0.05)
        assert moved < 0.3, name
    assert any(not torch.equal(others[name], weight) for name, weight in weights.items())
    for name, snapshot in snapshots(tmp_path / "16").items():
        assert all(tensor.dtype == torch.float32 for tensor in snapshot["tensors"].values()), name
    samples = rough.evaluations.results["plain"]["samples"]
    assert samples == exact.evaluations.results["plain"]["samples"] == 5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gradients", [True, False])
def test_network_in_sixteen_bits(dtype: torch.dtype, gradients: bool) -> None:
    """Also with fixed weights and in-place blocks."""
    model = unet()
    with torch.no_grad():
        exact = model(noisy_images(), SIGMA, LABELS)
    for each in (model, fuse_weights(model)):
        assert isinstance(each, Preconditioned)
        with torch.set_grad_enabled(gradients), torch.autocast("cpu", dtype=dtype):
            rough = each(noisy_images(), SIGMA, LABELS)
        assert rough.dtype == torch.float32
        error = (rough - exact).square().mean().sqrt() / exact.square().mean().sqrt()
        assert 0 < error < (0.03 if dtype == torch.bfloat16 else 0.004)


def test_scaled_loss_is_unscaled_before_the_step() -> None:
    """A fused step would unscale by itself, after all that looks at gradients."""
    parameters = [torch.nn.Parameter(torch.zeros(2))]
    assert not adam(scaled=True)(parameters).param_groups[0]["fused"]
    assert adam()(parameters).param_groups[0]["fused"]
