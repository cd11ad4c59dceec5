"""NCSN++: its size, and its layers against those of diffusers for the networks of the same paper."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_guide.networks import FourierWaves, NCSNpp
from lightning_guide.networks.ncsnpp import FilteredBlock, FilteredConv
from lightning_guide.preconditioning import Preconditioned


def test_parameter_counts() -> None:
    with torch.device("meta"):
        cifar = NCSNpp((3, 32, 32), augmentation_channels=9)
        faces = NCSNpp((3, 64, 64), augmentation_channels=9, channel_mult=(1, 2, 2, 2))
    assert sum(parameter.numel() for parameter in cifar.parameters()) == 56_397_827
    assert sum(parameter.numel() for parameter in faces.parameters()) == 62_761_091


def test_before_training_the_denoiser_is_c_skip_x() -> None:
    model = Preconditioned(NCSNpp((1, 8, 8), model_channels=8, channel_mult=[1, 2], num_blocks=1, num_classes=3)).eval()
    x, sigma = torch.randn(2, 1, 8, 12), torch.tensor([0.2, 3.0])
    expected = (0.25 / (sigma**2 + 0.25))[:, None, None, None] * x
    torch.testing.assert_close(model(x, sigma, torch.tensor([0, -1])), expected, atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match="NCSNpp: the size 7x8 cannot be halved"):
        model(torch.randn(1, 1, 7, 8), torch.tensor(1.0))


def test_the_image_reaches_lower_levels_by_a_second_path() -> None:
    network = NCSNpp((1, 8, 8), model_channels=8, channel_mult=[1, 1, 1], num_blocks=1, attention_resolutions=[])
    network.eval()
    x, e = torch.randn(2, 1, 8, 8), torch.randn(2, 32)
    features, residuals, root = network.encode(x, e), network.image_residuals, 2**0.5
    blocks = dict(zip(network.encoder, zip(features, features[1:], strict=False), strict=True))
    before, after = blocks["4x4_down"]
    torch.testing.assert_close(after, (network.encoder["4x4_down"](before, e) + residuals["4x4_down"](x)) / root)
    before, lower = blocks["2x2_down"]
    torch.testing.assert_close(lower, (network.encoder["2x2_down"](before, e) + residuals["2x2_down"](after)) / root)


def test_layers_are_those_of_diffusers() -> None:
    pytest.importorskip("diffusers", reason="needs the extra `pretrained`")
    from diffusers.models.downsampling import FirDownsample2D
    from diffusers.models.embeddings import GaussianFourierProjection
    from diffusers.models.upsampling import FirUpsample2D

    x = torch.randn(2, 3, 8, 6)
    theirs, own = FirDownsample2D(3, 5, use_conv=True), FilteredConv(3, 5)
    nn.init.normal_(theirs.Conv2d_0.bias)
    own.load_state_dict(theirs.Conv2d_0.state_dict())
    torch.testing.assert_close(own(x), theirs(x))
    down, up = (FilteredBlock(4, 4, embedding_channels=4, resample=each) for each in ("down", "up"))  # type: ignore[arg-type]
    torch.testing.assert_close(down._resample(x), FirDownsample2D(3)(x))
    torch.testing.assert_close(up._resample(x), FirUpsample2D(3)(x))
    projection, waves = GaussianFourierProjection(8, scale=16, log=False), FourierWaves(8)
    waves.frequencies.copy_(projection.weight)
    cos, sin = waves(torch.tensor([0.3, -1.0])).chunk(2, dim=1)
    expected = projection(torch.tensor([0.3, -1.0]))  # sines first, as in files of EDM
    torch.testing.assert_close(torch.cat([sin, cos], 1), expected, atol=1e-5, rtol=0)
