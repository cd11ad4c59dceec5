"""DDPM++: published size, blocks and attention against their formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_guide.guidance import PerturbedAttentionGuidance
from lightning_guide.networks import DDPMpp
from lightning_guide.networks.ddpmpp_block import DDPMBlock, ImageAttention
from lightning_guide.preconditioning import Preconditioned
from tests.small_networks import trajectory

SMALL = {"model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attention_resolutions": [4], "dropout": 0.0}


def small(**options: object) -> DDPMpp:
    torch.manual_seed(0)
    return DDPMpp((1, 8, 8), **(SMALL | options))  # type: ignore[arg-type]


def test_published_parameter_counts() -> None:
    with torch.device("meta"):
        cifar = DDPMpp((3, 32, 32), augmentation_channels=9)
        faces = DDPMpp((3, 64, 64), augmentation_channels=9, channel_mult=(1, 2, 2, 2))
    assert sum(parameter.numel() for parameter in cifar.parameters()) == 55_733_891  # "56 million"
    assert sum(parameter.numel() for parameter in faces.parameters()) == 61_805_571  # "62 million"
    attention = [name for name, module in cifar.named_modules() if isinstance(module, ImageAttention)]
    assert attention == [
        *[f"encoder.16x16_block{i}.attention" for i in range(4)],
        "decoder.8x8_in0.attention",
        "decoder.16x16_block4.attention",
    ]


def test_before_training_the_denoiser_is_c_skip_x() -> None:
    model = Preconditioned(small(num_classes=3)).eval()
    x, sigma = torch.randn(2, 1, 8, 8), torch.tensor([0.2, 3.0])
    expected = (0.25 / (sigma**2 + 0.25))[:, None, None, None] * x
    torch.testing.assert_close(model(x, sigma, torch.tensor([0, 1])), expected, atol=1e-3, rtol=0)


def test_output_depends_on_noise_level_and_label() -> None:
    network = small(num_classes=3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.2)
    model = Preconditioned(network).eval()
    x, sigma, labels = torch.randn(2, 1, 8, 8), torch.tensor(0.7), torch.tensor([0, 2])
    D = model(x, sigma, labels)
    assert (model(x, sigma, labels.flip(0)) - D).abs().max() > 1e-3
    torch.testing.assert_close(model(x, sigma), model(x, sigma, torch.tensor([-1, -1])))
    assert model(torch.randn(1, 1, 12, 4), sigma, None).shape == (1, 1, 12, 4)
    with pytest.raises(ValueError, match="the size 7x8 cannot be halved at every level; .* multiples of 2"):
        model(torch.randn(1, 1, 7, 8), sigma)
    embedding = network.embedding_noise(torch.tensor([0.3]), None)
    powers = torch.tensor([1.0, 10 ** (-4 / 3), 10 ** (-8 / 3), 1e-4])  # 1 ... 1/10,000
    waves = torch.cat([(0.3 * powers).cos(), (0.3 * powers).sin()])
    by_hand = F.silu(network.embedding_noise.second(F.silu(network.embedding_noise.first(waves))))
    torch.testing.assert_close(embedding[0], by_hand)


@pytest.mark.parametrize("resample", ["keep", "down", "up"])
def test_block_equals_its_formula(resample: str) -> None:
    torch.manual_seed(0)
    block = DDPMBlock(8, 12, embedding_channels=5, resample=resample).double()  # type: ignore[arg-type]
    nn.init.normal_(block.residual_out.weight)
    x, e = torch.randn(2, 8, 4, 4).double(), torch.randn(2, 5).double()

    def resized(x: torch.Tensor) -> torch.Tensor:
        if resample == "down":
            return x.reshape(*x.shape[:2], 2, 2, 2, 2).mean((3, 5))
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3) if resample == "up" else x

    y = block.residual_in(resized(F.silu(F.group_norm(x, 2, block.norm_in.weight, block.norm_in.bias, 1e-6))))
    y = y + (e @ block.modulation.weight.T + block.modulation.bias)[:, :, None, None]
    y = block.residual_out(F.silu(F.group_norm(y, 3, block.norm_out.weight, block.norm_out.bias, 1e-6)))
    assert block.projection is not None
    torch.testing.assert_close(block(x, e), (block.projection(resized(x)) + y) / math.sqrt(2))


def test_attention_equals_its_formula_and_is_perturbable() -> None:
    torch.manual_seed(0)
    layer = ImageAttention(8).double()
    nn.init.normal_(layer.output.weight)
    x = torch.randn(2, 8, 3, 2).double()
    q, k, v = layer.qkv(layer.norm(x)).flatten(2).chunk(3, dim=1)  # (2, 8, 6)
    weights = (q.mT @ k / math.sqrt(8)).softmax(-1)  # (2, 6, 6)
    y = (v @ weights.mT).reshape(2, 8, 3, 2)
    torch.testing.assert_close(layer(x), (x + layer.output(y)) / math.sqrt(2))
    network = small(num_classes=4)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.3)
    model, place = Preconditioned(network).eval(), trajectory()
    labels = torch.tensor([0, 3, 1])
    with torch.no_grad():
        guided = PerturbedAttentionGuidance(3.0, positive=model).start(place)(place.x, torch.tensor(0.7), labels).clean
        assert (guided - model(place.x, torch.tensor(0.7), labels)).abs().max() > 1e-4  # PAG replaces the core
