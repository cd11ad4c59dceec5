"""Small networks with random weights, on 8x8 images with 4 labels, for tests of perturbations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_guide.denoiser import Trajectory
from lightning_guide.networks import EDM2UNet
from lightning_guide.networks.dit import DiffusionTransformer
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.seeds import SampleSeeds

SIGMA = torch.tensor(0.7)
LABELS = torch.tensor([0, 3, 1])


def randomize_weights(network: nn.Module) -> None:
    """Set all weights to random values, so that no branch is zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("gain"):
                parameter.fill_(0.7)
            else:
                parameter.normal_(std=0.3, generator=generator)


def unet(**options: Any) -> Preconditioned:
    """A U-Net of two levels, 8x8 and 4x4, with attention on the lower one."""
    settings = {"model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attention_resolutions": [4]}
    network = EDM2UNet(**{"data_shape": (1, 8, 8), "num_classes": 4, **settings, **options})
    randomize_weights(network)
    return Preconditioned(network).eval()


def transformer(**options: Any) -> Preconditioned:
    """A transformer of 4 blocks on 4x4 tokens."""
    settings = {"channels": 16, "depth": 4, "heads": 2}
    network = DiffusionTransformer(**{"data_shape": (1, 8, 8), "num_classes": 4, **settings, **options})
    randomize_weights(network)
    return Preconditioned(network).eval()


NETWORKS = {"unet": unet, "transformer": transformer}


def noisy_images(count: int = 3) -> Tensor:
    """Return noisy images `(count, 1, 8, 8)`, each a function of its index."""
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def trajectory(indices: list[int] | range = range(3), *, step: int = 1, steps: int = 4, seed: int = 0) -> Trajectory:
    """Return a trajectory of the samples `indices` at a step where every method is active."""
    x = noisy_images(max(indices) + 1)[list(indices)]
    return Trajectory(x=x, seeds=SampleSeeds(seed, indices), sigma=float(SIGMA), step=step, steps=steps)


def save_autoencoder(folder: Path) -> None:
    """Save an AutoencoderKL of diffusers with random weights, from images (3, 2 h, 2 w) to latents (4, h, w)."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    model = AutoencoderKL(
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    model.save_pretrained(folder)
